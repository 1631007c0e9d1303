# SPDX-License-Identifier: LGPL-2.1-or-later
"""What was lent, or could be as it is, and holds pages that must not be lent. Pure.

Poison, huge pages and a balloon's pages come after lending, too: a load leaves their memory out,
``status`` names it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crashlend.lenders.census import LEFT_OUT, MIN_RUN_BYTES, NEVER, UNIT_BYTES, VERDICTS
from crashlend.ranges import Ranges
from crashlend.sizes import mib

if TYPE_CHECKING:
    from collections.abc import Iterable

    from crashlend.facts import Facts
    from crashlend.lenders.census import Unfit


def left_out(facts: Facts) -> Ranges:
    """All units that a load must leave out; nothing where the pages could not be looked at."""
    return Ranges((u.start, u.end) for u in _unfit(facts))


def must_not(facts: Facts) -> Ranges:
    """Those of them that hold worse than a balloon's pages, which the hypervisor gives back."""
    bad = (u for u in _unfit(facts) if any(VERDICTS[kind] != LEFT_OUT for kind in u.kinds))
    return Ranges((u.start, u.end) for u in bad)


def fit(facts: Facts, memory: Ranges) -> Ranges:
    """What of it may be lent, in runs that are worth it; all of it where nobody could look."""
    unfit = left_out(facts) & memory
    if not unfit:
        return memory
    return Ranges(r for r in (memory - unfit).align_inwards(UNIT_BYTES) if r.size >= MIN_RUN_BYTES)


def kinds_in(facts: Facts, memory: Ranges) -> tuple[str, ...]:
    """The kinds of pages in ``memory`` that must not be lent, by their names."""
    found = (u.kinds for u in _unfit(facts) if memory.meets(Ranges([(u.start, u.end)])))
    return tuple(dict.fromkeys(kind for kinds in found for kind in kinds))


def kinds_that_spoil(facts: Facts, block: Ranges) -> tuple[str, ...]:
    """Those of them with which nothing of a block that crashlend made movable may be lent."""
    return tuple(kind for kind in kinds_in(facts, block) if VERDICTS[kind] == NEVER)


def problems(facts: Facts) -> list[str]:
    """What ``status`` must say of the pages that the loaded image counts on.

    A balloon's pages are none: the hypervisor gives memory back to whoever touches it.
    """
    lent = Ranges(facts.lent_now)
    bad: dict[tuple[str, ...], Ranges] = {}
    for unit in _unfit(facts):
        kinds = tuple(kind for kind in unit.kinds if VERDICTS[kind] != LEFT_OUT)
        where = lent & Ranges([(unit.start, unit.end)])
        if kinds and where:
            bad[kinds] = bad.get(kinds, Ranges()) | where
    return [
        f"lent memory has pages that must not be lent ({words(kinds)}): {mib(where.size)} around "
        f"them{_blocks(facts, where)}; run crashlend reload"
        for kinds, where in bad.items()
    ]


def words(kinds: Iterable[str]) -> str:
    """The kinds for people."""
    return ", ".join(kind.replace("_", " ") for kind in kinds)


def _blocks(facts: Facts, where: Ranges) -> str:
    if not facts.block_bytes:
        return ""
    size = facts.block_bytes
    indexes = [
        str(index)
        for run in where.align_outwards(size)
        for index in range(run.start // size, run.end // size)
    ]
    more = f" and {len(indexes) - 8} more" if len(indexes) > 8 else ""
    return f" (memory block {', '.join(indexes[:8])}{more})"


def _unfit(facts: Facts) -> tuple[Unfit, ...]:
    return facts.lent_pages.unfit if facts.lent_pages else ()
