# SPDX-License-Identifier: LGPL-2.1-or-later
"""A kernel's memory by code: BTF, and a /proc/kcore in which pageblocks are marked.

Layouts as in include/uapi/linux/btf.h and include/linux/mmzone.h, not taken from the code under test.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from build import GIB, MIB, PAGE, PAGE_OFFSET, TEXT_BYTES, TEXT_PHYS, TEXT_VIRT, host

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SECTION, PAGEBLOCK = 128 * MIB, 2 * MIB
ROOTS_AT, INFO_AT = 0x3000000, 0x102344000
CMA_TYPE = 4


class Btf:
    """Types one after the other; ``data`` is the file."""

    def __init__(self) -> None:
        self.text, self.types = bytearray(b"\0"), bytearray()

    def name(self, name: str) -> int:
        at = len(self.text)
        self.text += name.encode() + b"\0"
        return at

    def add(self, kind: int, name: str, more: bytes, count: int = 0, flag: int = 0) -> Btf:
        at = self.name(name) if name else 0
        self.types += struct.pack("<III", at, flag << 31 | kind << 24 | count, 8) + more
        return self

    def struct(self, name: str, fields: Mapping[str, int], bit_fields: bool = False) -> Btf:
        """``fields`` by byte offset; with ``bit_fields`` the last one has a width of 3 bits."""
        more = b""
        for index, (field, offset) in enumerate(fields.items()):
            width = 3 if bit_fields and index == len(fields) - 1 else 0
            more += struct.pack("<III", self.name(field), 1, width << 24 | offset * 8)
        return self.add(4, name, more, len(fields), int(bit_fields))

    def enum(self, name: str, values: Mapping[str, int]) -> Btf:
        more = b"".join(struct.pack("<Ii", self.name(n), v) for n, v in values.items())
        return self.add(6, name, more, len(values))

    def others(self) -> Btf:
        """One of each kind that nobody asks for, so that the walk has something to pass over."""
        for kind, more, count in (
            *((1, bytes(4), 0), (2, b"", 0), (3, bytes(12), 0), (5, bytes(24), 2)),
            *((7, b"", 0), (8, b"", 0), (9, b"", 0), (10, b"", 0), (11, b"", 0), (12, b"", 0)),
            *((13, bytes(24), 3), (14, bytes(4), 0), (15, bytes(12), 1), (16, b"", 0)),
            *((17, bytes(4), 0), (18, b"", 0), (19, bytes(36), 3)),
        ):
            self.add(kind, f"kind{kind}", more, count)
        return self

    @property
    def data(self) -> bytes:
        sizes = (24, 0, len(self.types), len(self.types), len(self.text))
        header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, *sizes)
        return header + bytes(self.types) + bytes(self.text)


def btf(*, flags_at: int = 24, bits: int = 5) -> bytes:
    """What 7.3 (8 bits a pageblock, flags at 24) or, with 16 and 4, an older kernel says."""
    count = "__NR_PAGEBLOCK_BITS" if bits > 4 else "NR_PAGEBLOCK_BITS"
    made = Btf().others().struct("mem_section", {"section_mem_map": 0, "usage": 8})
    made.struct("mem_section_usage", {"rcu": 0, "subsection_map": 16, "pageblock_flags": flags_at})
    made.enum("pageblock_bits", {"PB_migrate_0": 0, count: bits})
    return made.enum("migratetype", {"MIGRATE_MOVABLE": 1, "MIGRATE_CMA": CMA_TYPE}).data


def page_types(cma: int, *, order: int = 9) -> bytes:
    """/proc/pagetypeinfo with ``cma`` pageblocks of type CMA in its last zone (mm/vmstat.c)."""
    names = ("Unmovable", "Movable", "Reclaimable", "HighAtomic", "CMA", "Isolate")
    head = b"%-23s" % b"Number of blocks type " + b"".join(b"%12s " % n.encode() for n in names)
    rows = [("DMA", 0), ("DMA32", 0), ("Normal", cma)]
    return (
        b"Page block order: %d\nPages per block:  %d\n\n" % (order, 1 << order)
        + b"Free pages count per migrate type at order       0 \n"
        + b"Node    0, zone      DMA, type          CMA      7 \n\n"
        + head
        + b"\n"
        + b"".join(
            b"Node 0, zone %8s " % zone.encode()
            + b"".join(b"%12d " % n for n in (1, 9, 0, 0, count, 0))
            + b"\n"
            for zone, count in rows
        )
    )


class Sparse(bytes):
    """A file of which only pieces are there: offset → bytes; all else is zero."""

    pieces: dict[int, bytes]

    def __getitem__(self, key: object) -> bytes:  # type: ignore[override]
        assert isinstance(key, slice)
        out = bytearray(key.stop - key.start)
        for at, data in self.pieces.items():
            begin, end = max(at, key.start), min(at + len(data), key.stop)
            if begin < end:
                out[begin - key.start : end - key.start] = data[begin - at : end - at]
        return bytes(out)


def kernel_memory(
    marked: Sequence[tuple[int, int]],
    *,
    bits: int = 8,
    flags_at: int = 24,
    skip: int = 0,
    ram_end: int = 5 * GIB,
) -> Sparse:
    """/proc/kcore of a kernel that marks ``marked`` as CMA and all other pageblocks as movable.

    ``skip`` is or-ed to each mark: bits beside the type.
    """
    none = (1 << 64) - 1
    loads = [
        (TEXT_VIRT, TEXT_PHYS, TEXT_BYTES, 0),
        (0xFFFFC90000000000, none, 1 << 45, 0),
        (PAGE_OFFSET, 0, ram_end, 0x10000),
    ]
    headers = b"".join(
        struct.pack("<IIQQQQQQ", 1, 7, place, virt, phys, size, size, PAGE)
        for virt, phys, size, place in loads
    )
    start = struct.pack(
        "<4sBBBBB7xHHIQQQIHHHHHH",
        *(b"\x7fELF", 2, 1, 1, 0, 0, 4, 62, 1, 0, 64, 0, 0, 64, 56, len(loads), 0, 0, 0),
    )
    sections = 1 << 46 - 27
    info = (
        b"OSRELEASE=7.3\nPAGESIZE=4096\nSYMBOL(mem_section)=%x\nLENGTH(mem_section)=%d\n"
        b"SIZE(mem_section)=16\nNUMBER(SECTION_SIZE_BITS)=27\nNUMBER(MAX_PHYSMEM_BITS)=46\n"
        % (PAGE_OFFSET + ROOTS_AT, sections // 256)
    )
    physical = {INFO_AT: info, ROOTS_AT: struct.pack("<Q", PAGE_OFFSET + ROOTS_AT + PAGE)}
    root = bytearray(PAGE)
    for number in range(ram_end // SECTION):
        usage = ROOTS_AT + 2 * PAGE + number * 256
        struct.pack_into("<QQ", root, number * 16, 0xFFFFEA0000000003, PAGE_OFFSET + usage)
        flags = 0
        for block in range(SECTION // PAGEBLOCK):
            at = number * SECTION + block * PAGEBLOCK
            is_cma = any(s <= at < e for s, e in marked)
            flags |= ((CMA_TYPE if is_cma else 1) | skip) << block * bits
        data = flags.to_bytes(SECTION // PAGEBLOCK * bits // 8, "little")
        physical[usage + flags_at] = data
    physical[ROOTS_AT + PAGE] = bytes(root)
    out = Sparse()
    out.pieces = {0: start + headers, **{0x10000 + at: d for at, d in physical.items()}}
    return out


def marked_host(
    ranges: Sequence[tuple[int, int]],
    marked: Sequence[tuple[int, int]],
    *,
    counted: int | None = None,
    old: bool = False,
    **kind: object,
) -> dict[str, bytes]:
    """A host with these ``,cma`` ranges, of which ``marked`` are CMA; ``old``: layouts of 6.6."""
    blocks = sum((e - s) // PAGEBLOCK for s, e in marked) if counted is None else counted
    flags_at = 16 if old else 24
    files = {
        "/proc/kcore": kernel_memory(marked, bits=4 if old else 8, flags_at=flags_at, skip=8),
        "/proc/pagetypeinfo": page_types(blocks),
        "/sys/kernel/btf/vmlinux": btf(flags_at=flags_at, bits=4 if old else 5),
    }
    return {**host(cma_ranges=ranges, **kind), **files}  # type: ignore[arg-type]
