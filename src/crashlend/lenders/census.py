# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the pages of a memory block hold, from /proc/kpageflags.

Sources: include/uapi/linux/kernel-page-flags.h, fs/proc/page.c. Pure: it takes the bytes of the
file for a range of pages. The census ranks and vetoes; what makes a block lendable is that it went
*offline*, because an offline block holds no kernel page by construction.
"""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from dataclasses import dataclass

from crashlend.errors import FormatError

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
_UNMOVABLE = _BIT["SLAB"] | _BIT["NOPAGE"] | _BIT["OFFLINE"] | _BIT["PGTABLE"] | _BIT["RESERVED"]
_MOVABLE = _BIT["BUDDY"] | _BIT["LRU"] | _BIT["ANON"] | _BIT["KSM"] | _BIT["THP"]
ENTRY_BYTES = 8


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
    words = array("Q")
    words.frombytes(flags)
    if sys.byteorder == "big":
        words.byteswap()
    counts = dict.fromkeys(("free", "movable", "unmovable", "unknown", "huge", "poisoned"), 0)
    for value, pages in Counter(words).items():
        counts[_kind(value)] += pages
    return BlockCensus(index, **counts)


def _kind(flags: int) -> str:
    if flags & _BIT["HWPOISON"]:
        return "poisoned"
    if flags & _BIT["HUGE"]:
        return "huge"
    if flags & _UNMOVABLE:
        return "unmovable"
    if flags & _BIT["BUDDY"]:
        return "free"
    return "movable" if flags & _MOVABLE else "unknown"
