# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether the pages of the kernel's ``,cma`` ranges are CMA. Pure.

A range that crosses into another zone fails to activate and goes back to ordinary use, but stays
listed (mm/cma.c: cma_activate_area(), Linux 6.17 to 7.3). Kernel data may then live in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Optional

from crashlend.lenders import NOTHING
from crashlend.ranges import Ranges
from crashlend.sizes import mib

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crashlend.facts import CmaEvidence, Facts
    from crashlend.formats.procfs import Zone

PAGE = 4096
BY_MARKS = "the kernel does not mark their pageblocks as CMA"
BY_AREA = "/sys/kernel/mm/cma has no such area, or one of fewer pages"
BY_BORDER = "they cross into another memory zone, which no CMA area may"
BY_ZONE = "/proc/zoneinfo counts fewer CMA pages in their zone"
BY_TOTAL = "CmaTotal in /proc/meminfo is smaller than they are"
BY_LOG = "the kernel's log says that an area could not be activated, not which one"
UNPROVEN = (
    "nothing shows that the pages of the kernel's ,cma ranges are CMA (their marks can't be read: {}; "
    "the kernel's log is cut): other CMA may hide the loss of one"
)


@dataclass(frozen=True)
class Activation:
    """``lost`` is shown not to be CMA, ``by`` says what shows it; of ``unproven`` nothing is known."""

    lost: Ranges = NOTHING
    unproven: Ranges = NOTHING
    by: tuple[str, ...] = ()

    def words(self, facts: Facts) -> str:
        """How much of the ranges is lost, and what shows it."""
        return (
            f"{mib(self.lost.size)} of {mib(Ranges(facts.cma_ranges or ()).size)} "
            f"({', '.join(map(str, self.lost))}) are in ordinary use: {'; '.join(self.by)}"
        )


def activation(facts: Facts) -> Activation:
    """Judge the ranges by the best evidence there is.

    The marks on the pageblocks settle it. Without them any sign of a loss counts, and where it can't
    be said whose it is, all that it may be are lost; that none was lost is shown by the only area's
    own count or by a log that goes back to the boot.
    """
    made = Ranges(facts.cma_ranges or ())
    seen = facts.cma_evidence
    if not made:
        return Activation()
    if seen is not None and seen.marked is not None:
        lost = made - Ranges(seen.marked)
        return Activation(lost, by=(BY_MARKS,) if lost else ())
    if seen is not None and seen.area_pages is not None:
        lost = made if seen.area_pages * PAGE < made.size else Ranges()
        return Activation(lost, by=(BY_AREA,) if lost else ())
    lost, by = Ranges(), []
    for suspects, why in _signs(facts, seen):
        if not lost.covers(suspects):
            lost |= suspects
            by.append(why)
    whole_log = seen is not None and seen.log_whole
    return Activation(lost, Ranges() if whole_log else made - lost, tuple(by))


def _signs(facts: Facts, seen: Optional[CmaEvidence]) -> Iterator[tuple[Ranges, str]]:
    """What was lost by which sign; each takes account of those before it."""
    made = [Ranges([pair]) for pair in facts.cma_ranges or ()]
    everything = Ranges(facts.cma_ranges or ())
    where = [(one, _zones_of(facts, one)) for one in made]
    lost = Ranges(r for one, zones in where if zones and len(zones) > 1 for r in one)
    if lost:
        yield lost, BY_BORDER
    for zone in facts.zones:
        inside = Ranges(r for one, zones in where if zones == {(zone.node, zone.name)} for r in one)
        if zone.cma is not None and inside.size > zone.cma * PAGE:
            lost |= inside
            yield inside, BY_ZONE
    if (everything - lost).size > facts.meminfo.get("CmaTotal", 0):
        yield everything, BY_TOTAL
    elif seen is not None and seen.failures > sum(lost.covers(one) for one in made):
        yield everything, BY_LOG


def _zones_of(facts: Facts, one: Ranges) -> Optional[set[tuple[int, str]]]:
    """The zones that a range lies in; None where that can't be told.

    A memory block names its zone, or "none" when it spans several; then the zones' spans tell,
    unless they overlap, as they may when blocks were onlined as movable.
    """
    found: set[tuple[int, str]] = set()
    rest = one
    size = facts.block_bytes or 0
    for block in facts.blocks if size else ():
        here = Ranges([(block.index * size, (block.index + 1) * size)])
        if block.zones and block.zones[0] != "none" and one.meets(here):
            found.add((block.node, block.zones[0]))
            rest -= here
    spans = [z for z in facts.zones if z.present and rest.meets(_span(z))]
    if any(_span(a).meets(_span(b)) for a, b in combinations(spans, 2)):
        return None
    return (found | {(z.node, z.name) for z in spans}) or None


def _span(zone: Zone) -> Ranges:
    return Ranges([(zone.start_pfn * PAGE, (zone.start_pfn + zone.spanned) * PAGE)])
