# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kdump-compressed format: what makedumpfile writes without -E. Headers, bitmaps, descriptors.

    block 0              the main header
    block 1 ...          the sub header, vmcoreinfo and ELF notes
    then                 two bitmaps of equal length, a bit per page frame, lowest bit first:
                         what /proc/vmcore had, and what of it is in this file
    then                 a descriptor for each page that is in the file, in ascending order
    then                 the pages

Source: diskdump_mod.h and write_kdump_header() in makedumpfile.c (makedumpfile 1.8.0, commit b7587f1);
read_dump_header() in diskdump.c of crash. Here: 64-bit and little-endian, as on x86_64 and arm64.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple, Optional

from crashlend.errors import FormatError
from crashlend.formats.layout import Layout

WHAT = "kdump header"
SIGNATURE = b"KDUMP   "
_UTS_BYTES = 65  # __NEW_UTS_LEN + 1
_UTS = ("sysname", "nodename", "release", "version", "machine", "domainname")
_UTS_AT = 12
# struct disk_dump_header; struct timeval is aligned to 8 behind struct new_utsname
MAIN = Layout(
    WHAT,
    {
        "header_version": (8, "i"),
        "seconds": (408, "q"),
        "status": (424, "I"),
        "block_size": (428, "i"),
        "sub_hdr_size": (432, "i"),
        "bitmap_blocks": (436, "I"),
        "max_mapnr": (440, "I"),
        "nr_cpus": (460, "i"),
    },
)
# struct kdump_sub_header, at the start of block 1; the fields that each header version added
SUB = Layout(
    "kdump sub header",
    {
        "phys_base": (0, "Q"),
        "dump_level": (8, "i"),  # 1
        "split": (12, "i"),  # 2
        "offset_vmcoreinfo": (32, "Q"),  # 3
        "size_vmcoreinfo": (40, "Q"),
        "max_mapnr_64": (96, "Q"),  # 6
    },
)
SUB_BYTES = 104
BLOCKS = (4096, 8192, 16384, 32768, 65536)  # page sizes
HEAD_BYTES = BLOCKS[-1] + SUB_BYTES  # of a file, enough for both headers
NEWEST_VERSION = 6

COMPRESSIONS = {0x1: "zlib", 0x2: "lzo", 0x4: "snappy", 0x20: "zstd"}
INCOMPLETE = 0x8  # of status: makedumpfile ran out of space
DESCRIPTOR = struct.Struct("<QIIQ")  # struct page_desc: offset, size, flags, page_flags
PAGE_FLAGS = 0x2F  # the compressions; 0: stored as it is

VMCOREINFO_BYTES_MAX = 1 << 20
# of a bitmap: 512 TiB in pages of 4 KiB
BITMAP_BYTES_MAX = 1 << 34


class Extent(NamedTuple):
    """A stretch of a file."""

    offset: int
    bytes: int

    @property
    def end(self) -> int:
        return self.offset + self.bytes


@dataclass(frozen=True)
class Header:
    """Both headers of a dump.

    ``seconds`` is the crash's UNIX time, ``level`` makedumpfile's -d (None: older than that field),
    ``pages`` how many page frames each bitmap speaks of.
    """

    version: int
    release: str
    machine: str
    seconds: int
    status: int
    block_bytes: int
    sub_blocks: int
    bitmap_blocks: int
    pages: int
    cpus: int
    level: Optional[int]
    split: bool
    vmcoreinfo: Extent

    @property
    def incomplete(self) -> bool:
        return bool(self.status & INCOMPLETE)

    @property
    def compression(self) -> str:
        """Of pages that got smaller by it."""
        return next((name for bit, name in COMPRESSIONS.items() if self.status & bit), "none")

    @property
    def bitmaps(self) -> tuple[Extent, Extent]:
        """What was in /proc/vmcore, and what is in this file."""
        half = self.bitmap_blocks * self.block_bytes // 2
        start = (1 + self.sub_blocks) * self.block_bytes
        return Extent(start, half), Extent(start + half, half)

    @property
    def descriptors_at(self) -> int:
        return self.bitmaps[1].end


def is_kdump(data: bytes) -> bool:
    """Whether ``data`` begins like such a dump."""
    return data[: len(SIGNATURE)] == SIGNATURE


def parse(data: bytes) -> Header:
    """Both headers from a file's first :data:`HEAD_BYTES`. FormatError says what is off, and where."""
    if not is_kdump(data):
        raise FormatError(WHAT, "no signature", offset=0)
    block = _between(MAIN.read(data, "block_size"), BLOCKS[0], BLOCKS[-1], "block_size")
    if block not in BLOCKS:
        raise FormatError(WHAT, f"blocks of {block} bytes", offset=MAIN.fields["block_size"].offset)
    version = _between(MAIN.read(data, "header_version"), 0, 1 << 16, "header_version")
    sub_blocks = _between(MAIN.read(data, "sub_hdr_size"), 1, 1 << 20, "sub_hdr_size")
    bitmap_blocks = MAIN.read(data, "bitmap_blocks")
    pages = MAIN.read(data, "max_mapnr")
    if version >= 6:
        pages = SUB.read(data, "max_mapnr_64", block)
    half = bitmap_blocks * block // 2
    if bitmap_blocks % 2 or not 0 < pages <= half * 8 or half > BITMAP_BYTES_MAX:
        why = f"{pages} page frames in two bitmaps of {half} bytes"
        raise FormatError(WHAT, why, offset=MAIN.fields["bitmap_blocks"].offset)
    info = Extent(0, 0)
    if version >= 3:
        info = Extent(
            SUB.read(data, "offset_vmcoreinfo", block), SUB.read(data, "size_vmcoreinfo", block)
        )
        if info.bytes > VMCOREINFO_BYTES_MAX:
            at = block + SUB.fields["size_vmcoreinfo"].offset
            raise FormatError(WHAT, f"vmcoreinfo of {info.bytes} bytes", offset=at)
    return Header(
        version=version,
        release=_name(data, "release"),
        machine=_name(data, "machine"),
        seconds=MAIN.read(data, "seconds"),
        status=MAIN.read(data, "status"),
        block_bytes=block,
        sub_blocks=sub_blocks,
        bitmap_blocks=bitmap_blocks,
        pages=pages,
        cpus=MAIN.read(data, "nr_cpus"),
        level=SUB.read(data, "dump_level", block) if version >= 1 else None,
        split=version >= 2 and SUB.read(data, "split", block) != 0,
        vmcoreinfo=info,
    )


def parse_vmcoreinfo(data: bytes) -> dict[str, str]:
    """NAME=VALUE lines, as the kernel's vmcoreinfo has them; what is none is left out."""
    lines = data.split(b"\0", 1)[0].decode("utf-8", "backslashreplace").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def count_bits(data: bytes) -> int:
    """How many bits of a bitmap are set."""
    step = 1 << 16
    return sum(
        bin(int.from_bytes(data[at : at + step], "little")).count("1")
        for at in range(0, len(data), step)
    )


def count_bits_between(data: bytes, first: int, end: int) -> int:
    """How many of the bits [``first``, ``end``) are set; those behind the data are not."""
    end = min(end, len(data) * 8)
    if first >= end:
        return 0
    whole = int.from_bytes(data[first // 8 : -(-end // 8)], "little") >> first % 8
    return bin(whole & ((1 << (end - first)) - 1)).count("1")


def find_bad_descriptor(data: bytes, first: int, block_bytes: int, pages: Extent) -> str:
    """What is off with the first bad descriptor of ``data``; empty when none is.

    ``first``: the number of the first of them; ``pages``: where in the file pages may lie.
    """
    for number, (offset, size, flags, _) in enumerate(DESCRIPTOR.iter_unpack(data), first):
        if not pages.offset <= offset <= pages.end - size:
            return f"page {number} is at {offset:#x}, {size} bytes: not in the file"
        if not 0 < size <= block_bytes or flags & ~PAGE_FLAGS:
            return f"page {number} has {size} bytes and the flags {flags:#x}"
    return ""


def _between(value: int, least: int, most: int, name: str) -> int:
    if not least <= value <= most:
        raise FormatError(WHAT, f"{name} is {value}", offset=MAIN.fields[name].offset)
    return value


def _name(data: bytes, field: str) -> str:
    at = _UTS_AT + _UTS.index(field) * _UTS_BYTES
    return data[at : at + _UTS_BYTES].split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
