# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which pages a dump of makedumpfile knows: the bitmaps of the kdump-compressed format.

disk_dump_header in diskdump_mod.h of makedumpfile: a header block, sub-header blocks, then two bitmaps of the
same size, one bit a page: of pages that /proc/vmcore had, and of those that are in the dump.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crashlend.errors import FormatError

if TYPE_CHECKING:
    from pathlib import Path

    from crashlend.ranges import Ranges

SIGNATURE = b"KDUMP   "
# block_size, sub_hdr_size (both int), bitmap_blocks, max_mapnr (both unsigned int)
_FIELDS = struct.Struct("<iiII")
_FIELDS_AT = 428
_MOST_BLOCKS = 1 << 20
PAGE = 4096


@dataclass(frozen=True)
class Bitmaps:
    """``had``: a bit for each page that was there to be dumped; ``saved``: for each that is in the dump."""

    had: bytes
    saved: bytes

    def pages(self, which: bytes, ranges: Ranges) -> int:
        """How many pages of the ranges (in bytes) have their bit in one of the two."""
        count = 0
        for one in ranges:
            for pfn in range(one.start // PAGE, one.end // PAGE):
                if pfn // 8 < len(which):
                    count += which[pfn // 8] >> (pfn % 8) & 1
        return count


def read_bitmaps(path: Path) -> Bitmaps:
    """The bitmaps of a dump file (not a flattened one); FormatError where it is none."""
    with path.open("rb") as stream:
        header = stream.read(_FIELDS_AT + _FIELDS.size)
        if len(header) < _FIELDS_AT + _FIELDS.size or not header.startswith(SIGNATURE):
            raise FormatError(str(path), "no dump of makedumpfile's", offset=0)
        block, sub_blocks, blocks, _ = _FIELDS.unpack_from(header, _FIELDS_AT)
        if block != PAGE or not 0 <= sub_blocks < _MOST_BLOCKS or not 0 < blocks < _MOST_BLOCKS:
            raise FormatError(str(path), "a header that makes no sense", offset=_FIELDS_AT)
        stream.seek(block * (1 + sub_blocks))
        data = stream.read(block * blocks)
    if len(data) < block * blocks:
        raise FormatError(str(path), "it ends before its bitmaps")
    half = len(data) // 2
    return Bitmaps(data[:half], data[half:])
