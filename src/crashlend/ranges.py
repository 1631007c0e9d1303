# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sets of integers as sorted, disjoint, half-open ranges. Immutable.

Everything that speaks of physical memory here is a :class:`Ranges`: ``[start, end)`` in bytes.
The kernel's own files use inclusive ends; they are converted where they are read.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class Range(NamedTuple):
    """One half-open range ``[start, end)``."""

    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start

    def __str__(self) -> str:
        return f"{self.start:#x}-{self.end:#x}"


class Ranges:
    """A set of integers as a tuple of disjoint, non-adjacent, ascending :class:`Range` objects."""

    __slots__ = ("_items",)
    _items: tuple[Range, ...]

    def __init__(self, items: Iterable[tuple[int, int]] = ()) -> None:
        """Take any pairs; empty and inverted ones are dropped, touching ones are merged."""
        merged: list[Range] = []
        for start, end in sorted((s, e) for s, e in items if s < e):
            if merged and start <= merged[-1].end:
                if end > merged[-1].end:
                    merged[-1] = Range(merged[-1].start, end)
            else:
                merged.append(Range(start, end))
        self._items = tuple(merged)

    def __iter__(self) -> Iterator[Range]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Range:
        return self._items[index]

    def __bool__(self) -> bool:
        return bool(self._items)

    def __eq__(self, other: object) -> bool:
        return self._items == other._items if isinstance(other, Ranges) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._items)

    def __repr__(self) -> str:
        return f"Ranges([{', '.join(str(r) for r in self._items)}])"

    def __contains__(self, value: int) -> bool:
        index = bisect_right(self._items, (value, float("inf"))) - 1
        return index >= 0 and self._items[index].start <= value < self._items[index].end

    @property
    def size(self) -> int:
        """How many integers (bytes) the set holds."""
        return sum(r.size for r in self._items)

    def __or__(self, other: Ranges) -> Ranges:
        return Ranges([*self._items, *other._items])

    def __and__(self, other: Ranges) -> Ranges:
        out: list[Range] = []
        a, b = iter(self._items), iter(other._items)
        x, y = next(a, None), next(b, None)
        while x and y:
            start, end = max(x.start, y.start), min(x.end, y.end)
            if start < end:
                out.append(Range(start, end))
            if x.end < y.end:
                x = next(a, None)
            else:
                y = next(b, None)
        return Ranges(out)

    def __sub__(self, other: Ranges) -> Ranges:
        out: list[Range] = []
        holes = other._items
        if not holes:
            return self
        first = 0
        for start, end in self._items:
            while first < len(holes) and holes[first].end <= start:
                first += 1
            at, index = start, first
            while index < len(holes) and holes[index].start < end:
                if at < holes[index].start:
                    out.append(Range(at, holes[index].start))
                at = max(at, holes[index].end)
                index += 1
            if at < end:
                out.append(Range(at, end))
        return Ranges(out)

    def covers(self, other: Ranges) -> bool:
        """Whether every integer of ``other`` is in this set."""
        return not other - self

    def meets(self, other: Ranges) -> bool:
        """Whether the two sets share an integer."""
        return bool(self & other)

    def align_inwards(self, alignment: int) -> Ranges:
        """Keep only whole aligned units (a page, a memory block) of every range."""
        return Ranges(
            (-(-start // alignment) * alignment, end // alignment * alignment)
            for start, end in self._items
        )

    def align_outwards(self, alignment: int) -> Ranges:
        """Grow every range to whole aligned units."""
        return Ranges(
            (start // alignment * alignment, -(-end // alignment) * alignment)
            for start, end in self._items
        )

    def to_json(self) -> list[list[int]]:
        return [[r.start, r.end] for r in self._items]


def align_up(value: int, alignment: int) -> int:
    """The smallest multiple of ``alignment`` that is not below ``value``."""
    return -(-value // alignment) * alignment


def align_down(value: int, alignment: int) -> int:
    """The largest multiple of ``alignment`` that is not above ``value``."""
    return value // alignment * alignment
