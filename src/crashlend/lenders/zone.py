# SPDX-License-Identifier: LGPL-2.1-or-later
"""Lender ``movable-zone``: clean memory of a ZONE_MOVABLE that crashlend did not make.

Such a zone comes from movablecore=, kernelcore=, movable_node, or memory that was added later and
onlined as movable. Nothing is done to it: its pages are looked at one by one, because early boot
may have put its own data there before it was a zone. Lending all of such a zone destroys
production's crash notes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crashlend.errors import CrashlendError, RefusedError
from crashlend.lenders import Offer, PassedOver
from crashlend.lenders.activation import activation
from crashlend.lenders.census import MIN_RUN_BYTES, PAGE, UNIT_BYTES
from crashlend.ranges import Ranges, align_up
from crashlend.sizes import mib

if TYPE_CHECKING:
    from collections.abc import Iterable

    from crashlend.facts import Facts, MemoryBlock

# Every run costs the crash kernel an entry of its memory map and production's dump a program header.
# A kernel for few nodes takes 320 entries in all (E820_MAX_ENTRIES with NODES_SHIFT=6).
MOST_RUNS = 256
NAME = "movable-zone"


def foreign_blocks(facts: Facts) -> list[MemoryBlock]:
    """The memory blocks of a ZONE_MOVABLE that crashlend did not make.

    Whole blocks alone: one that spans two zones reads "none", and which zone a page lies in is not
    told anywhere.
    """
    return [b for b in facts.blocks if b.is_movable and b.index not in facts.own_blocks]


def offer_zone(facts: Facts, asked_bytes: int, lendable: Ranges) -> Offer:
    """Choose among the clean runs: what the loaded image has already, then few large ones.

    ``lendable`` is the architecture's ``reserve_lent``; empty when /proc/iomem hides it. Without a
    census nothing is ``held`` and what is foreseen is coarse: the zone's blocks, whatever they hold.
    CrashlendError when the host has no such zone or its pages can't be looked at, RefusedError when
    the pages would not tell.
    """
    zone = foreign_blocks(facts)
    if not zone:
        raise CrashlendError(
            f"lender {NAME} has nothing to lend",
            "no memory block lies in a ZONE_MOVABLE but for those that crashlend put there",
            hint="boot with movablecore=SIZE, or use --lender movable, which makes blocks movable",
        )
    if facts.memmap_on_memory:
        raise RefusedError(
            "memory of this host's ZONE_MOVABLE must not be lent",
            "memory_hotplug.memmap_on_memory is on: a block may hold its own memmap, which has no "
            "flag of its own",
            hint="boot without memory_hotplug.memmap_on_memory",
        )
    if facts.iomem and "/proc/kpageflags" in facts.missing:
        raise CrashlendError(
            f"lender {NAME} has nothing to lend",
            f"its pages can't be looked at: /proc/kpageflags: {facts.missing['/proc/kpageflags']}",
            hint="a kernel with CONFIG_PROC_PAGE_MONITOR is needed, and root; else --lender movable",
        )
    mixed = _nodes_with_other_cma(facts, zone)
    memory = _ranges(facts, (b for b in zone if b.node not in mixed))
    if facts.iomem:
        memory &= lendable
    notes = [
        f"node {node} has another CMA area in its ZONE_MOVABLE, whose pages may be a driver's: "
        "nothing of it is lent"
        for node in sorted(mixed)
    ]
    if facts.clean_runs is None:
        notes.append("the zone's pages were not looked at: --census tells which are clean")
        coarse = _pick(_whole(memory), asked_bytes, MOST_RUNS)
        return Offer(NAME, asked_bytes, foreseen=coarse, needs_census=True, notes=tuple(notes))
    clean = _whole(memory & Ranges(facts.clean_runs))
    if _poison_at_large(facts):
        notes.append("the kernel counts poisoned memory that no block's census shows: none is lent")
        clean = Ranges()
    lost = Ranges(facts.lent_zone) - clean
    if lost:
        notes.append(
            f"{mib(lost.size)} that were lent of the zone must not be any more: their pages went "
            "bad or away"
        )
    chosen = _choose(clean, Ranges(facts.lent_zone), asked_bytes)
    if chosen.size < asked_bytes:
        notes.append(
            f"the zone has {mib(chosen.size)} of the {mib(asked_bytes)} in clean runs of "
            f"{mib(MIN_RUN_BYTES)} or more"
        )
    dirty = [b for b in zone if not _ranges(facts, [b]).meets(clean)]
    return Offer(
        NAME,
        asked_bytes,
        held=chosen,
        foreseen=chosen,
        passed_over=tuple(PassedOver(b.index, "it has no clean run") for b in dirty),
        needs_census=True,
        notes=tuple(notes),
    )


def _ranges(facts: Facts, blocks: Iterable[MemoryBlock]) -> Ranges:
    size = facts.block_bytes or 0
    return Ranges((b.index * size, (b.index + 1) * size) for b in blocks)


def _whole(memory: Ranges) -> Ranges:
    """What of it is in whole units and in runs that are worth lending."""
    return Ranges(r for r in memory.align_inwards(UNIT_BYTES) if r.size >= MIN_RUN_BYTES)


def _choose(clean: Ranges, lent: Ranges, asked_bytes: int) -> Ranges:
    """What is lent already and still clean comes first, so that the same plan is made again."""
    kept = _whole(lent & clean)
    if kept.size >= asked_bytes + MIN_RUN_BYTES or len(kept) > MOST_RUNS:
        kept = _pick(kept, asked_bytes, MOST_RUNS)
    while True:
        # a run that touches another one makes room for one more
        more = _pick(_whole(clean - kept), asked_bytes - kept.size, MOST_RUNS - len(kept))
        if not more:
            return kept
        kept |= more


def _pick(runs: Ranges, asked_bytes: int, most: int) -> Ranges:
    """The longest runs, upper ones first, until there is enough: the last one gives its top."""
    chosen = []
    missing = asked_bytes
    for run in sorted(runs, key=lambda r: (-r.size, -r.start))[:most]:
        if missing <= 0:
            break
        size = min(run.size, max(align_up(missing, UNIT_BYTES), MIN_RUN_BYTES))
        chosen.append((run.end - size, run.end))
        missing -= size
    return Ranges(chosen)


def _nodes_with_other_cma(facts: Facts, zone: list[MemoryBlock]) -> set[int]:
    """The nodes whose ZONE_MOVABLE has CMA pages beside those for the crash kernel.

    cma_alloc() gives pages of such an area to drivers, zone or no zone, and they have no flags.
    """
    # a range that is listed and no CMA is not what is counted
    made = Ranges(facts.cma_ranges or ()) - activation(facts).lost
    mixed = set()
    for node in {b.node for b in zone}:
        ours = (made & _ranges(facts, (b for b in zone if b.node == node))).size
        counts = [z.cma for z in facts.zones if z.node == node and z.name == "Movable"]
        known = [count * PAGE for count in counts if count is not None]
        if len(known) < len(counts) or not counts:
            # Linux before 5.12 counts no CMA pages by zone: none at all is the only certainty
            other = facts.meminfo.get("CmaTotal", 0) > made.size
        else:
            other = sum(known) > ours
        if other:
            mixed.add(node)
    return mixed


def _poison_at_large(facts: Facts) -> bool:
    """Whether HardwareCorrupted counts pages that the census did not find (hazard 2)."""
    found = sum(c.poisoned for c in facts.block_census) * PAGE
    return facts.meminfo.get("HardwareCorrupted", 0) > found
