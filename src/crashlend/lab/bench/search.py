# SPDX-License-Identifier: LGPL-2.1-or-later
"""The smallest size that is enough, found by noisy probes that cost a minute each. Pure.

What comes next is a function of what was seen, so that an interrupted search goes on where it was:
its probes are replayed from a file. Sizes are in steps (the bench's step is 1 MiB).

A size is enough when every probe of it passed: one that is enough only sometimes is not. Nor is
one taken as enough when a larger one was seen to fail, because then nobody knows what is between.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Probe(NamedTuple):
    """One look at one size."""

    size: int
    enough: bool


@dataclass(frozen=True)
class Quest:
    """What is searched: sizes from ``low`` to ``high``, both included.

    ``guess`` is looked at first, and from there in strides that double, the first of ``stride``.
    The answer and the size below it are each looked at ``confirm`` times.
    """

    low: int
    high: int
    guess: int
    stride: int = 1
    confirm: int = 2

    def __post_init__(self) -> None:
        if not (self.low <= self.guess <= self.high and self.stride > 0 and self.confirm > 0):
            raise ValueError(f"not a search: {self}")


@dataclass(frozen=True)
class Finding:
    """What the probes so far say.

    ``answer`` is the smallest size that passed, with no failure of it or above it; None when there
    is none. ``below`` is the largest that failed, None when none did. ``exceptions`` are sizes
    against the order: they passed at least once, but they or a larger one failed.
    """

    answer: int | None
    below: int | None
    exceptions: tuple[int, ...]
    passed: int  # how often the answer did
    failed: int  # how often ``below`` did
    below_passed: int  # how often ``below`` passed all the same


def evaluate(probes: Iterable[Probe]) -> Finding:
    """Read the answer off the probes, whatever their order."""
    passes, fails = _tally(probes)
    below = max(fails, default=None)
    good = [size for size in passes if below is None or size > below]
    answer = min(good, default=None)
    odd = tuple(sorted(s for s in passes if below is not None and s <= below))
    return Finding(
        answer,
        below,
        odd,
        passes[answer] if answer is not None else 0,
        fails[below] if below is not None else 0,
        passes[below] if below is not None else 0,
    )


def next_size(quest: Quest, probes: Sequence[Probe]) -> int | None:
    """The size to look at next, or None when the search is over.

    It is over when the answer passed ``confirm`` times and the size right below was looked at as
    often and failed; when ``low`` itself passed ``confirm`` times; or when ``high`` failed that
    often: then nothing in range is enough.
    """
    if not probes:
        return quest.guess
    passes, fails = _tally(probes)
    found = evaluate(probes)
    answer, below = found.answer, found.below
    if answer is None:
        if below is not None and below >= quest.high:
            return quest.high if _looks(passes, fails, quest.high) < quest.confirm else None
        if below is None:  # only the type checker believes that: there are probes
            return quest.guess
        return min(quest.high, below + (quest.stride << max(0, len(fails) - 1)))
    floor = quest.low - 1 if below is None else below
    if answer - floor > 1:
        if below is None:
            return max(quest.low, answer - (quest.stride << max(0, len(passes) - 1)))
        return (answer + floor) // 2
    for size in (answer, floor):
        if size >= quest.low and _looks(passes, fails, size) < quest.confirm:
            return size
    return None


def _looks(passes: Counter[int], fails: Counter[int], size: int) -> int:
    return passes[size] + fails[size]


def _tally(probes: Iterable[Probe]) -> tuple[Counter[int], Counter[int]]:
    passes: Counter[int] = Counter()
    fails: Counter[int] = Counter()
    for size, enough in probes:
        (passes if enough else fails)[size] += 1
    return passes, fails
