# SPDX-License-Identifier: LGPL-2.1-or-later
"""The free memory of early boot, and the kernel's search in it.

Kernel source: mm/memblock.c (the same from 5.10 to 7.3).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from typing import TYPE_CHECKING

from crashlend.ranges import Range, Ranges

if TYPE_CHECKING:
    from collections.abc import Iterable

# The first page is never handed out [memblock_find_in_range_node].
_LOWEST = 4096
_4G = 1 << 32


class Free:
    """What is free; :meth:`find` looks, :meth:`take` takes. Addresses are in bytes.

    ``boundaries`` are addresses where one memory region ends and the next begins though nothing
    lies between them (NUMA nodes): nothing is found across one.
    """

    def __init__(self, free: Ranges, boundaries: Iterable[int] = ()) -> None:
        cuts = sorted(boundaries)
        self._parts = list(_split(free, cuts) if cuts else free)
        self._largest = max((end - start for start, end in self._parts), default=0)

    def copy(self) -> Free:
        """The same free memory, to be taken from without changing this."""
        other = Free(Ranges())
        other._parts, other._largest = self._parts.copy(), self._largest
        return other

    def find(self, size: int, align: int, start: int, end: int, *, bottom_up: bool = False) -> int:
        """The address that the kernel would choose in [start, end); 0 where it finds none.

        ``align`` is a power of two.
        """
        start = max(start, _LOWEST)
        if size > self._largest or end - start < size:
            return 0
        parts, mask = self._parts, align - 1
        first = max(bisect_right(parts, (start, start)) - 1, 0)
        last = bisect_left(parts, (end, end))
        if bottom_up:
            for index in range(first, last):
                low, high = parts[index]
                at = (max(low, start) + mask) & ~mask
                if at + size <= min(high, end):
                    return at
            return 0
        for index in range(last - 1, first - 1, -1):
            low, high = parts[index]
            at = (min(high, end) - size) & ~mask
            if at >= max(low, start):
                return at
        return 0

    def find_cma(self, size: int, align: int, limit: int, *, bottom_up: bool = False) -> int:
        """Where a CMA area goes: upwards from 4 GiB where RAM reaches so far, else downwards.

        ``limit`` is the end of RAM. [mm/cma.c:cma_alloc_mem]
        """
        at = 0
        if not bottom_up and limit >= _4G + size:
            at = self.find(size, align, _4G, limit, bottom_up=True)
        return at or self.find(size, align, 0, limit, bottom_up=bottom_up)

    def take(self, start: int, size: int) -> Range:
        """Make [start, start + size), which was found, no longer free; give what it was part of."""
        end = start + size
        index = bisect_right(self._parts, (start, 1 << 65)) - 1
        part = self._parts.pop(index)
        if part.start < start:
            insort(self._parts, Range(part.start, start))
        if end < part.end:
            insort(self._parts, Range(end, part.end))
        if part.size == self._largest:
            self._largest = max((high - low for low, high in self._parts), default=0)
        return part

    def put_back(self, part: Range) -> None:
        """Undo the last :meth:`take`, which gave ``part``."""
        first = bisect_left(self._parts, (part.start, 0))
        last = bisect_left(self._parts, (part.end, 0))
        self._parts[first:last] = [part]
        self._largest = max(self._largest, part.size)


def _split(free: Ranges, cuts: list[int]) -> Iterable[Range]:
    for start, end in free:
        at = start
        for index in range(bisect_right(cuts, start), bisect_left(cuts, end)):
            yield Range(at, cuts[index])
            at = cuts[index]
        yield Range(at, end)
