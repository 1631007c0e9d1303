# SPDX-License-Identifier: LGPL-2.1-or-later
"""Flipping bits of the image: which are chosen, and what counts as a reset that says why."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from crashlend.lab.entry.bytes import Piece
from crashlend.lab.entry.flips import Fate, Flip, Flips, choose, fate_of, flippable, parse_record
from crashlend.lab.entry.replay import HANG, RESET, UP, Ending
from crashlend.lab.spec import Saved
from crashlend.purgatory.x86_64 import ENDS, ENDS_OFFSET, RECORD_BYTES
from crashlend.ranges import Ranges

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MIB = 1 << 20
LAYOUT = {
    "segments": [
        {"name": "kernel", "start": MIB, "stored_bytes": 8000},
        {"name": "purgatory", "start": 2 * MIB, "stored_bytes": 20000},
        {"name": "boot_params", "start": 3 * MIB, "stored_bytes": 6000},
    ],
    "record_phys": 3 * MIB + 6000 - RECORD_BYTES,
}
# its memory, which it writes to, is from 9000 to 16384
HEAD = bytes(ENDS_OFFSET) + ENDS.pack(9000, 16384)
STEPS = [{"step": "self", "ms": 1, "bad": 0}, {"step": "verify", "ms": 90, "bad": 1}]
REASON = "digest of kernel"
NOTHING = Saved({}, "", None)


def record(**more: str) -> bytes:
    return (
        json.dumps({"steps": STEPS, "tsc_khz": 2000000, **more}).encode().ljust(RECORD_BYTES - 1)
        + b"\n"
    )


RESET_TOLD = Ending(
    RESET,
    2.5,
    f"crashlend: TSC 2 kHz\ncrashlend: {REASON}\ncrashlend: resetting\n",
    record(reset=REASON),
)


def test_only_constant_bytes_are_flipped() -> None:
    """Purgatory's own memory and its record are written to anyway: a flip there proves nothing."""
    places = flippable(LAYOUT, HEAD)
    assert places["kernel"] == Ranges([(MIB, MIB + 8000)])
    assert places["purgatory"] == Ranges(
        [(2 * MIB, 2 * MIB + 9000), (2 * MIB + 16384, 2 * MIB + 20000)]
    )
    assert places["boot_params"] == Ranges([(3 * MIB, 3 * MIB + 6000 - RECORD_BYTES)])


def test_flips_are_at_the_edges_and_everywhere() -> None:
    """The first and the last byte of each stretch, and others within; the same ones every time."""
    places = flippable(LAYOUT, HEAD)
    flips = choose(places, 24)
    assert flips == choose(places, 24)
    for name, ranges in places.items():
        mine = [flip for flip in flips if flip.segment == name]
        assert len(mine) == (72 if name == "purgatory" else 24)
        edges = {address for r in ranges for address in (r.start, r.end - 1)}
        assert edges <= {flip.address for flip in mine}
        assert all(flip.address in ranges and 0 <= flip.bit < 8 for flip in mine)
        for r in ranges:
            assert sum(r.start < flip.address < r.end - 1 for flip in mine) > 2
    assert len({flip.bit for flip in flips}) > 4


def test_the_record_is_read_from_memory() -> None:
    """The record is one JSON object and blanks; anything else is none."""
    assert parse_record(record(reset=REASON))["reset"] == REASON
    for none in (b"", b" " * RECORD_BYTES, b"[]", b"\xff" + record(), record()[:40]):
        assert parse_record(none) == {}


def test_a_reset_counts_when_record_and_console_say_why() -> None:
    """A reset without a record, without the line, or with another reason is not one that says why."""
    flip = Flip("kernel", MIB + 17, 3)
    good = fate_of(flip, MIB, RESET_TOLD)
    hang = replace(RESET_TOLD, how=HANG, where="RBX=1\nRIP=000000003effb47a RFL=46")
    assert fate_of(flip, MIB, hang).where == "RIP=000000003effb47a"
    assert (good.offset, good.bit, good.how, good.reason, good.bad) == (17, 3, RESET, REASON, 1)
    assert good.said == f"crashlend: {REASON}"
    assert good.told
    for odd in (
        replace(RESET_TOLD, memory=record()),
        replace(RESET_TOLD, memory=b" " * RECORD_BYTES),
        replace(RESET_TOLD, console=""),
        replace(RESET_TOLD, console="crashlend: digest of initramfs\n"),
        replace(RESET_TOLD, how=HANG),
        replace(RESET_TOLD, how=UP),
    ):
        assert not fate_of(flip, MIB, odd).told


@pytest.fixture
def flips() -> Iterator[Flips]:
    """What a sound trial knows at its end."""
    with Flips(4 * MIB, 3) as found:
        found.plan = {"layout": LAYOUT, "on_mismatch": "reset"}
        found.pieces = (Piece(0, 4 * MIB, 0),)
        found.entry = found.stopped_at = 2 * MIB
        found.control = Fate("", 0, 0, UP, 9.0, "", "", 0)
        for flip in choose(flippable(LAYOUT, HEAD), 3):
            reason = f"digest of {flip.segment}"
            ending = replace(RESET_TOLD, console=f"{reason}\n", memory=record(reset=reason))
            found.fates.append(fate_of(flip, flip.address, ending))
        yield found


def failing(flips: Flips, saved: Saved = NOTHING) -> list[str]:
    return [c.name for c in flips.checks(saved) if not c.ok]


def spoil(flips: Flips, segment: str, **change: Any) -> None:
    at = next(n for n, f in enumerate(flips.fates) if f.segment == segment)
    flips.fates[at] = replace(flips.fates[at], **change)


def test_a_sound_trial_passes(flips: Flips) -> None:
    """Every flip a reset with its reason; the table counts them."""
    assert not failing(flips)
    table = flips.to_json()["segments"]
    assert table["kernel"] == {
        "flips": 3,
        "reset_with_reason": 3,
        "reset_without_reason": 0,
        "crash_kernel_up": 0,
        "hang": 0,
        "slowest_seconds": 2.5,
    }
    assert set(table) == {"kernel", "purgatory", "boot_params"}


@pytest.mark.parametrize(
    ("segment", "change"),
    [
        ("kernel", {"how": HANG}),
        ("kernel", {"how": UP}),
        ("kernel", {"reason": ""}),
        ("kernel", {"reason": "digest of initramfs", "said": "digest of initramfs"}),
        ("boot_params", {"said": "nothing"}),
        ("purgatory", {"how": UP}),
    ],
)
def test_one_bad_flip_fails_its_segment(flips: Flips, segment: str, change: dict[str, Any]) -> None:
    """A hang, a start, a reset without its reason: the check of that segment fails, and no other."""
    spoil(flips, segment, **change)
    assert [name.split(":")[0] for name in failing(flips)] == [f"flips in {segment}"]


def test_purgatory_may_reset_without_a_word(flips: Flips) -> None:
    """A flip in what runs before the digest may reset at once or loop: told, but no more than a few."""
    spoil(flips, "purgatory", reason="", said="")
    assert not failing(flips)
    row = flips.to_json()["segments"]["purgatory"]
    assert (row["reset_without_reason"], row["hang"]) == (1, 0)
    spoil(flips, "purgatory", how=HANG, where="RIP=000000003effb47a")
    assert not failing(flips)
    row = flips.to_json()["segments"]["purgatory"]
    assert (row["reset_without_reason"], row["hang"]) == (0, 1)
    assert "RIP=000000003effb47a" in " ".join(check.detail for check in flips.checks(NOTHING))
    flips.fates = [
        replace(f, reason="", said="") if f.segment == "purgatory" else f for f in flips.fates
    ]
    assert failing(flips) == [
        "flips in purgatory: none starts the crash kernel, most reset and say why"
    ]


def _no_control(flips: Flips) -> None:
    flips.control = None


def _control_hangs(flips: Flips) -> None:
    flips.control = Fate("", 0, 0, HANG, 9.0, "", "", 0)


def _control_is_wrong(flips: Flips) -> None:
    flips.control = Fate("", 0, 0, UP, 9.0, "", "", 1)


@pytest.mark.parametrize("change", [_no_control, _control_hangs, _control_is_wrong])
def test_without_a_control_nothing_is_shown(flips: Flips, change: Callable[[Flips], None]) -> None:
    """An image that would reset anyway shows nothing by resetting."""
    change(flips)
    assert len(failing(flips)) == 1


def test_too_few_flips_fail(flips: Flips) -> None:
    """A segment that was not flipped at all is not passed over."""
    flips.fates = [fate for fate in flips.fates if fate.segment != "boot_params"]
    assert len(failing(flips)) == 1


def test_on_mismatch_boot_must_save_and_tell(flips: Flips, tmp_path: Path) -> None:
    """The dump is there, and capture.json has the digest that was wrong; each lack fails."""
    flips.plan["on_mismatch"] = "boot"
    flips.fates = [Fate("boot_params", 0xFF0, 0, UP, 60.0, "", "", 1)]
    good = Saved({"purgatory": {"steps": STEPS}}, "", tmp_path)
    assert not failing(flips, good)
    assert failing(flips, replace(good, vmcore=None))
    assert failing(flips, replace(good, capture={"purgatory": {"steps": STEPS[:1]}}))
    assert failing(flips, replace(good, capture={}))
    flips.fates = [replace(flips.fates[0], how=RESET)]
    assert failing(flips, good)


def test_a_flip_lasts_as_long_as_its_replay(flips: Flips) -> None:
    """One bit of the memory file is flipped, and back afterwards, whatever happens."""
    os.pwrite(flips.memory.fd, b"\x5a", MIB)

    def replayed() -> None:
        with flips._flipped(Flip("kernel", MIB, 3)):
            assert os.pread(flips.memory.fd, 1, MIB) == b"\x52"
            raise KeyError

    with pytest.raises(KeyError):
        replayed()
    assert os.pread(flips.memory.fd, 1, MIB) == b"\x5a"
