# SPDX-License-Identifier: LGPL-2.1-or-later
"""The witness of a made-up trial: a sound one passes, and each way to prove nothing fails."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from crashlend.formats.elfcore import KERNEL_TEXT_BASE, PT_LOAD
from crashlend.lab.entry.bytes import Comparison, Load, Piece, choose_flips, flip, shown
from crashlend.lab.entry.witness import Witness
from crashlend.lab.spec import Saved
from crashlend.sizes import MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ENTRY = 3 * MIB
LENT = [4 * MIB, 5 * MIB]
TEXT = Load(2 * MIB, 2 * MIB + 4096, KERNEL_TEXT_BASE, 4096)
RAM = (Load(MIB, 3 * MIB, 0xFFFF888000100000, 8192), Load(5 * MIB, 8 * MIB, 0xFFFF888000500000, 0))
PLAN: dict[str, Any] = {
    "lent": [LENT],
    "reservation": [[3 * MIB, 4 * MIB]],
    "layout": {
        "segments": [{"name": "purgatory", "start": ENTRY}],
        "program_headers": [
            {"type": PT_LOAD, "phys": x.phys, "bytes": x.end - x.phys, "virt": x.virt}
            for x in (TEXT, *RAM)
        ],
    },
}
NOTHING = Saved({}, "", None)
EQUAL = Comparison(5 * MIB + 4096, 1281, 0, 0, ())


@pytest.fixture
def witness() -> Iterator[Witness]:
    """What a witness of a sound trial knows at its end."""
    with Witness(8 * MIB) as found:
        found.plan = PLAN
        found.entry = found.stopped_at = ENTRY
        found.pieces = (Piece(0, 8 * MIB, 0),)
        found.loads = (TEXT, *RAM)
        found.flipped = choose_flips(found.loads)
        found.found = EQUAL
        seen = tuple(shown(found.loads, found.flipped))
        found.control = replace(
            EQUAL, differing_bytes=len(seen), differing_pages=len(seen), addresses=seen
        )
        found.before = found.memory.copy("test-stopped")
        os.pwrite(found.memory.fd, b"crash kernel", LENT[0])
        os.pwrite(found.memory.fd, b"its real mode code", 0x8000)
        yield found


def failing(witness: Witness) -> list[str]:
    """The first words of what does not hold."""
    return [" ".join(c.name.split()[:3]) for c in witness.checks(NOTHING) if not c.ok]


def test_a_sound_trial_passes(witness: Witness) -> None:
    """All checks hold, and the figures are in them."""
    assert not failing(witness)
    details = " ".join(check.detail for check in witness.checks(NOTHING))
    assert f"{5 * MIB + 4096} bytes in 3 PT_LOADs compared, 0 differ" in details
    assert "7 bits flipped, which 9 bytes show; 9 bytes differ" in details


def _stopped_elsewhere(witness: Witness) -> None:
    witness.stopped_at = ENTRY + 1


def _one_byte_differs(witness: Witness) -> None:
    witness.found = replace(EQUAL, differing_bytes=1, differing_pages=1, addresses=(MIB,))


def _nothing_compared(witness: Witness) -> None:
    witness.found = replace(EQUAL, compared_bytes=0)


def _a_load_is_missing(witness: Witness) -> None:
    witness.loads = (TEXT, RAM[0])
    witness.flipped = choose_flips(witness.loads)
    seen = tuple(shown(witness.loads, witness.flipped))
    witness.control = replace(EQUAL, differing_bytes=len(seen), addresses=seen)


def _no_flip_is_found(witness: Witness) -> None:
    witness.control = EQUAL


def _more_than_the_flips_differs(witness: Witness) -> None:
    assert witness.control is not None
    more = witness.control.differing_bytes + 1
    witness.control = replace(witness.control, differing_bytes=more)


def _production_was_written_to(witness: Witness) -> None:
    flip(witness.memory.fd, witness.pieces, [6 * MIB])


def _the_crash_kernel_never_ran(witness: Witness) -> None:
    os.pwrite(witness.memory.fd, bytes(64), LENT[0])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_stopped_elsewhere, ["the machine stopped"]),
        (_one_byte_differs, ["every byte of"]),
        (_nothing_compared, ["every byte of"]),
        (_a_load_is_missing, ["every byte of"]),
        (_no_flip_is_found, ["flipped bits are"]),
        (_more_than_the_flips_differs, ["flipped bits are"]),
        (_production_was_written_to, ["nothing but the"]),
        (_the_crash_kernel_never_ran, ["nothing but the"]),
    ],
)
def test_what_proves_nothing_fails(
    witness: Witness, spoil: Callable[[Witness], None], words: list[str]
) -> None:
    """Each defect fails the check that is about it, and no other."""
    spoil(witness)
    assert failing(witness) == words


def test_a_trial_that_never_came_to_the_crash_fails() -> None:
    """Where nothing was seen nothing holds."""
    with Witness(8 * MIB) as witness:
        assert len(failing(witness)) == 4
        witness.error = "the gdb stub: it hung up"
        assert all("hung up" in check.detail for check in witness.checks(NOTHING))
