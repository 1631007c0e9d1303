# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the pages of memory hold, from /proc/kpageflags. Pure: it takes the bytes of that file.

Sources: include/uapi/linux/kernel-page-flags.h, fs/proc/page.c. For blocks that are to be taken
the census ranks and vetoes; what makes such a block lendable is that it went *offline*, because an
offline block holds no kernel page by construction. In a ZONE_MOVABLE that was there before, the
census alone decides, page by page (:data:`KINDS`, :func:`clean_runs`).
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from crashlend.errors import FormatError
from crashlend.ranges import Ranges
from crashlend.sizes import MIB

KPF = {
    "LOCKED": 0,
    "LRU": 5,
    "SLAB": 7,
    "BUDDY": 10,
    "MMAP": 11,
    "ANON": 12,
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
_U64 = struct.Struct("=Q")
PAGE = 4096
# What is lent of a zone is whole units: a pageblock, which is also one entry of the crash kernel's
# page tables. A bad page costs its unit.
UNIT_BYTES = 2 * MIB
UNIT_PAGES = UNIT_BYTES // PAGE
# The crash kernel keeps 2 MiB of struct page for each 128 MiB section that it has any memory of: a
# run shorter than this could cost it as much as it brings.
MIN_RUN_BYTES = 4 * MIB


class Kind(NamedTuple):
    """One kind of page: the flag that tells it, what it counts as, and whether it is clean.

    ``clean``: in ZONE_MOVABLE the page may be lent. ``why`` says what it is and where the kernel
    sets the flag.
    """

    flag: str
    counted: str
    clean: bool
    why: str


# The first row that applies says how a page is counted; a page is clean when no row that applies
# says otherwise. A page with none of these flags is "unknown", and clean in ZONE_MOVABLE: such are
# the pages of per-CPU free lists, on their way to or from the LRU lists, or zsmalloc's. Elsewhere
# it may as well be kernel data without a flag (vmalloc), but of that nothing can be in
# ZONE_MOVABLE: only allocations with both __GFP_HIGHMEM and __GFP_MOVABLE get there (gfp_zone()),
# and what early boot put there before there were zones stays RESERVED until it is freed
# (memmap_init_reserved_pages()). Two exceptions are not for the census to see, and lenders/zone.py
# looks for them: another CMA area (a driver's DMA buffer has no flags) and a hot-added block's own
# memmap (memory_hotplug.memmap_on_memory).
# docs/decisions/0008-clean-runs-of-a-movable-zone.md
KINDS = (
    Kind("HWPOISON", "poisoned", False, "hardware error: mm/memory-failure.c"),
    # DPDK without an IOMMU (uio) has devices write there by physical address, pinned by nobody;
    # and of a poisoned one only the head carries the flag (folio_set_hugetlb_hwpoison())
    Kind("HUGE", "huge", False, "a user's hugetlb page, free or not: mm/hugetlb.c"),
    Kind("RESERVED", "unmovable", False, "early boot's own, and holes: mm/memblock.c"),
    Kind("SLAB", "unmovable", False, "kmalloc and caches: mm/slub.c"),
    Kind("PGTABLE", "unmovable", False, "page tables: include/linux/mm.h"),
    Kind("OFFLINE", "unmovable", False, "a balloon's, virtio-mem's, not onlined: PageOffline()"),
    Kind("NOPAGE", "unmovable", False, "there is no struct page: fs/proc/page.c"),
    Kind("ZERO_PAGE", "unmovable", False, "the kernel's pages of zeros: mm/huge_memory.c"),
    Kind("BUDDY", "free", True, "in the allocator's free lists: mm/page_alloc.c"),
    Kind("LRU", "movable", True, "user memory or page cache: mm/swap.c"),
    Kind("ANON", "movable", True, "anonymous memory: mm/rmap.c"),
    Kind("KSM", "movable", True, "merged anonymous memory: mm/ksm.c"),
    Kind("THP", "movable", True, "a transparent huge page: mm/huge_memory.c"),
)
_COUNTED = tuple((_BIT[kind.flag], kind.counted) for kind in KINDS)


@dataclass(frozen=True)
class BlockCensus:
    """Pages of one memory block by what they hold.

    ``unknown`` pages have none of the flags that decide: per-CPU free lists, or kernel data
    without a flag.
    """

    index: int
    free: int
    movable: int
    unmovable: int
    unknown: int
    huge: int
    poisoned: int


def count_pages(index: int, flags: bytes) -> BlockCensus:
    """Count the pages of block ``index`` whose kpageflags entries (u64, native) are ``flags``."""
    if len(flags) % ENTRY_BYTES:
        raise FormatError("/proc/kpageflags", "cut inside an entry", offset=len(flags))
    values: Counter[int] = Counter()
    size = UNIT_PAGES * ENTRY_BYTES
    for at in range(0, len(flags), size):
        unit = flags[at : at + size]
        pages = len(unit) // ENTRY_BYTES
        if unit == unit[:ENTRY_BYTES] * pages:  # most are: free, or one program's
            values[_U64.unpack_from(unit)[0]] += pages
        else:
            values.update(memoryview(unit).cast("Q"))
    counts = dict.fromkeys(("free", "movable", "unmovable", "unknown", "huge", "poisoned"), 0)
    for value, pages in values.items():
        counts[_kind(value)] += pages
    return BlockCensus(index, **counts)


def _kind(flags: int) -> str:
    return next((counted for bit, counted in _COUNTED if flags & bit), "unknown")


def is_reserved(flags: bytes) -> bool:
    """Whether the page with this one kpageflags entry is RESERVED."""
    return len(flags) == ENTRY_BYTES and bool(_U64.unpack(flags)[0] & _BIT["RESERVED"])


def clean_runs(flags: bytes, first_pfn: int) -> Ranges:
    """The clean memory, in bytes, of the pages from ``first_pfn`` on: whole units without a bad page.

    ``flags`` are their kpageflags entries (u64, native).

    A unit is looked at as one long integer: some hundred million pages per second.
    """
    if len(flags) % ENTRY_BYTES:
        raise FormatError("/proc/kpageflags", "cut inside an entry", offset=len(flags))
    bad = sum(_BIT[kind.flag] for kind in KINDS if not kind.clean)
    mask = int.from_bytes(_U64.pack(bad) * UNIT_PAGES, "little")
    size = UNIT_PAGES * ENTRY_BYTES
    skipped = -first_pfn % UNIT_PAGES
    view = memoryview(flags)
    clean = (
        at
        for at in range(skipped, len(flags) // ENTRY_BYTES - UNIT_PAGES + 1, UNIT_PAGES)
        if not int.from_bytes(view[at * ENTRY_BYTES : at * ENTRY_BYTES + size], "little") & mask
    )
    return Ranges(((first_pfn + at) * PAGE, (first_pfn + at) * PAGE + UNIT_BYTES) for at in clean)
