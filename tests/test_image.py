# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether the image in the reservation is the one that crashlend loaded."""

from __future__ import annotations

from dataclasses import replace

import pytest

from build import BLOCK, facts
from crashlend.config import Settings
from crashlend.facts import CrashNote
from crashlend.formats.elfcore import EHDR, PHDR, PT_LOAD, ProgramHeader, build_core_header
from crashlend.plan import make_plan
from crashlend.system.image import build_image, is_in_memory, marker
from test_shrink import FILES

START = 0xBB000000
DATA = bytes(range(256)) * 16
MAPPING = 0xFF11000000000000


class Kcore:
    """A /proc/kcore with one stretch of the direct mapping; all else is not there."""

    def __init__(self, memory: bytes, start: int = START) -> None:
        header = ProgramHeader(PT_LOAD, start, len(memory), MAPPING + start)
        raw = bytearray(build_core_header([header]))
        offset = EHDR.size + PHDR.size
        # kcore's p_offset is a place in the file, a core header's is a physical address
        raw[EHDR.size + 8 : EHDR.size + 16] = offset.to_bytes(8, "little")
        self.data = bytes(raw) + memory

    def read(self, path: str, limit: int = 1 << 26, offset: int = 0) -> bytes:
        if path != "/proc/kcore":
            raise FileNotFoundError(path)
        return self.data[offset : offset + limit]

    def names(self, path: str) -> list[str]:
        return []

    def exists(self, path: str) -> bool:
        return path == "/proc/kcore"


class Locked(Kcore):
    """What lockdown=confidentiality leaves of it."""

    def read(self, path: str, limit: int = 1 << 26, offset: int = 0) -> bytes:
        raise PermissionError("Operation not permitted")


def test_an_untouched_segment_is_found() -> None:
    """The very bytes that were loaded are still there."""
    assert is_in_memory(marker(START, DATA), Kcore(DATA)) is True


def test_one_changed_byte_is_somebody_else_s_image() -> None:
    """Any other content means that another program has loaded since."""
    other = DATA[:100] + b"\xff" + DATA[101:]
    assert is_in_memory(marker(START, DATA), Kcore(other)) is False


def test_one_of_several_segments_that_differs_is_enough() -> None:
    """And one that can't be looked at leaves it open, unless another differs."""
    first, second = marker(START, DATA[:2048]), marker(START + 2048, DATA[2048:])
    far = marker(START + (1 << 30), DATA)
    wrong = marker(START + 2048, bytes(2048))
    for others, expected in (
        ([second], True),
        ([wrong], False),
        ([far], None),
        ([far, wrong], False),
        ([5], None),
        (5, None),
    ):
        assert is_in_memory({**first, "also": others}, Kcore(DATA)) is expected


@pytest.mark.parametrize("change", ["elfcorehdr", "kernel", "nothing"])
def test_the_marker_tells_images_apart_whatever_differs(change: str) -> None:
    """A reload that changes no boot_params is another image: one that was killed is not taken for done."""
    now = facts(movable=[38, 39], lent=[38, 39])
    later, files = now, FILES
    if change == "elfcorehdr":
        note = now.crash_notes[-1]
        more = CrashNote(note.cpu + 1, note.phys + 0x1000, note.bytes)
        later = replace(now, crash_notes=(*now.crash_notes, more))
    elif change == "kernel":
        kernel = FILES.kernel[:-1] + bytes([FILES.kernel[-1] ^ 1])
        files = replace(FILES, kernel=kernel, payload=replace(FILES.payload))
    markers, firsts = [], []
    for host, these in ((now, FILES), (later, files)):
        plan = make_plan(host, Settings(lend=2 * BLOCK), these.payload)
        image = build_image(plan, host, these)
        markers.append(image.marker())
        firsts.append(image.segments["boot_params"])
    assert firsts[0] == firsts[1]
    assert (markers[0] == markers[1]) is (change == "nothing")


@pytest.mark.parametrize("known", [None, {}, {"start": "x", "bytes": 1}, {"start": 1}, []])
def test_a_damaged_record_says_nothing(known: object) -> None:
    """Without a usable record nothing is claimed."""
    assert is_in_memory(known, Kcore(DATA)) is None


def test_memory_that_cannot_be_read_says_nothing() -> None:
    """Lockdown hides kcore, and a range outside of it has no bytes: unknown, not wrong."""
    assert is_in_memory(marker(START, DATA), Locked(DATA)) is None
    assert is_in_memory(marker(START + (1 << 30), DATA), Kcore(DATA)) is None
