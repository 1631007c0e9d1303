# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the pages of memory hold, from /proc/kpageflags. Pure: it takes the bytes of that file.

Sources: include/uapi/linux/kernel-page-flags.h, fs/proc/page.c. For blocks that are to be taken
the census ranks and vetoes; what makes such a block lendable is that it went *offline*, because an
offline block holds no kernel page by construction. In a ZONE_MOVABLE that was there before, the
census alone decides, page by page (:data:`KINDS`, :func:`clean_runs`). What is lent is looked at
again at each load and by ``status`` (:func:`unfit_units`).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import NamedTuple

from crashlend.errors import FormatError
from crashlend.ranges import Ranges
from crashlend.sizes import MIB

KPF = {
    "LRU": 5,
    "SLAB": 7,
    "BUDDY": 10,
    "ANON": 12,
    "SWAPBACKED": 14,
    "HUGE": 17,
    "HWPOISON": 19,
    "NOPAGE": 20,
    "KSM": 21,
    "THP": 22,
    "OFFLINE": 23,
    "ZERO_PAGE": 24,
    "PGTABLE": 26,
    "RESERVED": 32,
}
_BIT = {name: 1 << bit for name, bit in KPF.items()}
ENTRY_BYTES = 8
_U64 = struct.Struct("<Q")
PAGE = 4096
# What is lent of a zone is whole units: a pageblock, which is also one entry of the crash kernel's
# page tables. A bad page costs its unit.
UNIT_BYTES = 2 * MIB
UNIT_PAGES = UNIT_BYTES // PAGE
# The crash kernel keeps 2 MiB of struct page for each 128 MiB section that it has any memory of: a
# run shorter than this could cost it as much as it brings.
MIN_RUN_BYTES = 4 * MIB

# What becomes of memory with such a page in it (docs/census.md says it at length).
LENT = "lent"
LEFT_OUT = "left out"  # its unit is not lent; that one came later is no reason to load again
CUT = "cut"  # its unit is not lent; one that came later is a problem
NEVER = "never"  # the same, and of a block that crashlend made movable nothing is lent any more


class Kind(NamedTuple):
    """One kind of page: the flag that tells it, its name, what it counts as, and the verdict.

    ``why`` says what it is and where the kernel sets the flag.
    """

    flag: str
    name: str
    counted: str
    verdict: str
    why: str

    @property
    def clean(self) -> bool:
        """Whether the page may be lent where nothing but movable memory can be."""
        return self.verdict == LENT


# The first row that applies says how a page is counted; a page is clean when no row that applies
# says otherwise. A page with none of these flags is "no_flags", and clean in ZONE_MOVABLE: such are
# the pages of per-CPU free lists, on their way to or from the LRU lists, or zsmalloc's. Elsewhere
# it may as well be kernel data without a flag (vmalloc), but of that nothing can be in
# ZONE_MOVABLE: only allocations with both __GFP_HIGHMEM and __GFP_MOVABLE get there (gfp_zone()),
# and what early boot put there before there were zones stays RESERVED until it is freed
# (memmap_init_reserved_pages()). Two exceptions are not for the census to see, and lenders/zone.py
# looks for them: another CMA area (a driver's DMA buffer has no flags) and a hot-added block's own
# memmap (memory_hotplug.memmap_on_memory).
# docs/decisions/0008-clean-runs-of-a-movable-zone.md
KINDS = (
    Kind("HWPOISON", "poisoned", "poisoned", NEVER, "hardware error: mm/memory-failure.c"),
    # DPDK without an IOMMU (uio) has devices write there by physical address, pinned by nobody;
    # and of a poisoned one only the head carries the flag (folio_set_hugetlb_hwpoison())
    Kind("HUGE", "hugetlb", "huge", CUT, "a user's hugetlb page, free or not: mm/hugetlb.c"),
    Kind("RESERVED", "reserved", "unmovable", NEVER, "early boot's own, and holes: mm/memblock.c"),
    Kind("SLAB", "slab", "unmovable", NEVER, "kmalloc and caches: mm/slub.c"),
    Kind("PGTABLE", "page_tables", "unmovable", NEVER, "page tables: include/linux/mm.h"),
    Kind(
        "OFFLINE",
        "offline",
        "offline",
        LEFT_OUT,
        "a balloon's page, virtio-mem's, or one not onlined: PageOffline() in "
        "include/linux/page-flags.h",
    ),
    Kind("NOPAGE", "no_page", "unmovable", NEVER, "there is no struct page: fs/proc/page.c"),
    Kind(
        "ZERO_PAGE",
        "zero_page",
        "unmovable",
        NEVER,
        "the kernel's pages of zeros: mm/huge_memory.c",
    ),
    Kind("BUDDY", "free", "free", LENT, "in the allocator's free lists: mm/page_alloc.c"),
    Kind("KSM", "ksm", "movable", LENT, "merged anonymous memory: mm/ksm.c"),
    Kind("THP", "thp", "movable", LENT, "a transparent huge page: mm/huge_memory.c"),
    Kind("ANON", "anon", "movable", LENT, "anonymous memory: mm/rmap.c"),
    Kind("SWAPBACKED", "shmem", "movable", LENT, "tmpfs and shared memory: mm/shmem.c"),
    Kind("LRU", "file_cache", "movable", LENT, "page cache: mm/filemap.c, mm/swap.c"),
)
NO_FLAGS = Kind(
    "",
    "no_flags",
    "unknown",
    LENT,
    "per-CPU free lists (mm/page_alloc.c), zsmalloc, pages between two lists; in a kernel zone also "
    "kernel data",
)
VERDICTS = {kind.name: kind.verdict for kind in (*KINDS, NO_FLAGS)}
_BAD = sum(_BIT[kind.flag] for kind in KINDS if not kind.clean)
_BAD_ONES = int.from_bytes(_U64.pack(_BAD) * UNIT_PAGES, "little")

# Counting works on planes: byte n of all entries as one string, for each n that has a flag of KINDS.
# Two tables per plane turn its bytes into bits for the first eight rows of KINDS and for the others.
_FIRST, _SECOND = KINDS[:8], KINDS[8:]


def _bits(plane: int, rows: tuple[Kind, ...]) -> bytes:
    """For each value of the plane's byte: which of ``rows`` it is a sign of, row n as bit n."""
    shifts = [(row, KPF[kind.flag] - 8 * plane) for row, kind in enumerate(rows)]
    return bytes(
        sum(1 << row for row, shift in shifts if 0 <= shift < 8 and value >> shift & 1)
        for value in range(256)
    )


def _lowest(first: int) -> bytes:
    """The number, ``first`` being that of bit 0, of the lowest bit that is set; 0 for none."""
    return bytes(first + (v & -v).bit_length() - 1 if v else 0 for v in range(256))


_PLANES = sorted({bit // 8 for bit in KPF.values()})
_TABLES = [(plane, _bits(plane, _FIRST), _bits(plane, _SECOND)) for plane in _PLANES]
_FIRST_NUMBER, _SECOND_NUMBER = _lowest(1), _lowest(1 + len(_FIRST))
_UNLESS = bytes(0 if value else 0xFF for value in range(256))
_NUMBERED = (NO_FLAGS, *KINDS)


@dataclass(frozen=True)
class BlockCensus:
    """Pages of one memory block by what they hold.

    ``unknown`` pages have none of the flags that decide: per-CPU free lists, or kernel data
    without a flag. ``kinds`` has the same pages by the names of :data:`KINDS`, those that there are;
    it is empty in a snapshot older than it, where ``unmovable`` counts ``offline`` ones, too.
    """

    index: int
    free: int
    movable: int
    unmovable: int
    unknown: int
    huge: int
    poisoned: int
    offline: int = 0
    kinds: dict[str, int] = field(default_factory=dict)


class Unfit(NamedTuple):
    """Memory, in bytes and whole units, whose every unit has a page that must not be lent.

    ``kinds`` are the names of such pages' kinds.
    """

    start: int
    end: int
    kinds: tuple[str, ...]


def count_pages(index: int, flags: bytes) -> BlockCensus:
    """Count the pages of block ``index`` whose kpageflags entries (u64, little-endian) are ``flags``."""
    counts = dict.fromkeys(
        ("free", "movable", "unmovable", "unknown", "huge", "poisoned", "offline"), 0
    )
    kinds = count_kinds(flags)
    for kind in (*KINDS, NO_FLAGS):
        counts[kind.counted] += kinds.get(kind.name, 0)
    return BlockCensus(index, **counts, kinds=kinds)


def count_kinds(flags: bytes) -> dict[str, int]:
    """Pages by kind, those kinds that there are.

    It takes the same time whatever the pages hold: no page becomes an object of Python's.
    """
    if len(flags) % ENTRY_BYTES:
        raise FormatError("/proc/kpageflags", "cut inside an entry", offset=len(flags))
    pages = len(flags) // ENTRY_BYTES
    first = second = 0
    for plane, bits_of_first, bits_of_second in _TABLES:
        values = flags[plane::ENTRY_BYTES]
        first |= int.from_bytes(values.translate(bits_of_first), "little")
        second |= int.from_bytes(values.translate(bits_of_second), "little")
    of_first = first.to_bytes(pages, "little")
    of_second = second.to_bytes(pages, "little").translate(_SECOND_NUMBER)
    # a row further down counts only where none of the first ones applies
    free = int.from_bytes(of_first.translate(_UNLESS), "little")
    number = int.from_bytes(of_first.translate(_FIRST_NUMBER), "little") | (
        int.from_bytes(of_second, "little") & free
    )
    rest = number.to_bytes(pages, "little")
    counts: dict[str, int] = {}
    for index, kind in enumerate(_NUMBERED):
        before = len(rest)
        rest = rest.translate(None, bytes([index]))
        if len(rest) < before:
            counts[kind.name] = before - len(rest)
    return {kind.name: counts[kind.name] for kind in (*KINDS, NO_FLAGS) if kind.name in counts}


def unfit_units(flags: bytes, first_pfn: int) -> tuple[Unfit, ...]:
    """Where in the pages from ``first_pfn`` on something is that must not be lent.

    ``flags`` are their kpageflags entries (u64, little-endian). Units at the ends may be cut.
    """
    if len(flags) % ENTRY_BYTES:
        raise FormatError("/proc/kpageflags", "cut inside an entry", offset=len(flags))
    out: list[Unfit] = []
    pfn, at = first_pfn, 0
    while at < len(flags):
        pages = UNIT_PAGES - pfn % UNIT_PAGES
        unit = flags[at : at + pages * ENTRY_BYTES]
        pages = len(unit) // ENTRY_BYTES
        if int.from_bytes(unit, "little") & _BAD_ONES:
            names = tuple(name for name in count_kinds(unit) if VERDICTS[name] != LENT)
            start = pfn * PAGE
            if out and out[-1].end == start and out[-1].kinds == names:
                start = out.pop().start
            out.append(Unfit(start, (pfn + pages) * PAGE, names))
        pfn, at = pfn + pages, at + len(unit)
    return tuple(out)


def is_reserved(flags: bytes) -> bool:
    """Whether the page with this one kpageflags entry is RESERVED."""
    return len(flags) == ENTRY_BYTES and bool(_U64.unpack(flags)[0] & _BIT["RESERVED"])


def clean_runs(flags: bytes, first_pfn: int) -> Ranges:
    """The clean memory, in bytes, of the pages from ``first_pfn`` on: whole units without a bad page.

    ``flags`` are their kpageflags entries (u64, little-endian).

    A unit is looked at as one long integer: some hundred million pages per second.
    """
    if len(flags) % ENTRY_BYTES:
        raise FormatError("/proc/kpageflags", "cut inside an entry", offset=len(flags))
    size = UNIT_PAGES * ENTRY_BYTES
    skipped = -first_pfn % UNIT_PAGES
    view = memoryview(flags)
    clean = (
        at
        for at in range(skipped, len(flags) // ENTRY_BYTES - UNIT_PAGES + 1, UNIT_PAGES)
        if not int.from_bytes(view[at * ENTRY_BYTES : at * ENTRY_BYTES + size], "little")
        & _BAD_ONES
    )
    return Ranges(((first_pfn + at) * PAGE, (first_pfn + at) * PAGE + UNIT_BYTES) for at in clean)
