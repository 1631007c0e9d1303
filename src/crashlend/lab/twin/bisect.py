# SPDX-License-Identifier: LGPL-2.1-or-later
"""The search for the least memory: which probes come next, and what they say. Pure.

The bench's search (bench/search.py) decides; here it is asked ahead, so that several probes can run at
a time: the next one, and the ones that would follow its passing and its failing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable

from crashlend.lab.bench.search import Probe, Quest, evaluate, next_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crashlend.lab.bench.search import Finding

# a search that goes on longer has probes that agree with nothing
MOST_PROBES = 40


def next_sizes(quest: Quest, probes: Sequence[Probe], jobs: int) -> tuple[int, ...]:
    """Up to ``jobs`` sizes to look at now, the most useful first; none when the search is over.

    The first is what the search wants to know. The others are what it will want next, whichever way
    that comes out; a size may be there twice.
    """
    level: list[list[Probe]] = [list(probes)]
    sizes: list[int] = []
    while level and len(sizes) < jobs:
        following: list[list[Probe]] = []
        for known in level:
            size = next_size(quest, known)
            if size is None or len(sizes) >= jobs:
                continue
            sizes.append(size)
            following += [[*known, Probe(size, True)], [*known, Probe(size, False)]]
        level = following
    return tuple(sizes)


def find_least(
    quest: Quest, look: Callable[[Sequence[int]], Sequence[bool]], jobs: int
) -> tuple[Finding, tuple[Probe, ...]]:
    """Search; ``look`` probes sizes (at once, where it can) and says which were enough."""
    probes: list[Probe] = []
    while len(probes) < MOST_PROBES:
        sizes = next_sizes(quest, probes, jobs)
        if not sizes:
            break
        probes += [Probe(size, ok) for size, ok in zip(sizes, look(sizes), strict=True)]
    return evaluate(probes), tuple(probes)
