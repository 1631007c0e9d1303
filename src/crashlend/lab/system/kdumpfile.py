# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which pages a dump of makedumpfile knows: both bitmaps of the kdump-compressed format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crashlend.dumps.corefile import open_core
from crashlend.errors import FormatError
from crashlend.formats import diskdump

if TYPE_CHECKING:
    from pathlib import Path

    from crashlend.ranges import Ranges

PAGE = 4096


@dataclass(frozen=True)
class Bitmaps:
    """``had``: a bit for each page that was there to be dumped; ``saved``: for each that is in the dump."""

    had: bytes
    saved: bytes

    def pages(self, which: bytes, ranges: Ranges) -> int:
        """How many pages of the ranges (in bytes) have their bit in one of the two."""
        return sum(
            diskdump.count_bits_between(which, one.start // PAGE, one.end // PAGE) for one in ranges
        )


def read_bitmaps(path: Path) -> Bitmaps:
    """The bitmaps of a dump file of pages of 4 KiB, flattened or not; FormatError where it is none."""
    with open_core(path) as file:
        header = diskdump.parse(file.read(0, diskdump.HEAD_BYTES))
        if header.block_bytes != PAGE:
            raise FormatError(diskdump.WHAT, f"pages of {header.block_bytes} bytes")
        had, saved = (file.read(bits.offset, bits.bytes) for bits in header.bitmaps)
    if len(saved) < header.bitmaps[1].bytes:
        raise FormatError(diskdump.WHAT, "it ends before its bitmaps")
    return Bitmaps(had, saved)
