# SPDX-License-Identifier: LGPL-2.1-or-later
"""Lender ``movable``: memory blocks that go offline and come back as movable memory.

Which blocks, in which order, and how many at most is decided here, from facts alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

from crashlend.errors import RefusedError
from crashlend.lenders import Candidate, NodeRoom, Offer, PassedOver, spoiled
from crashlend.ranges import Ranges
from crashlend.sizes import GIB, mib

if TYPE_CHECKING:
    from collections.abc import Iterable

    from crashlend.facts import Facts, MemoryBlock

PAGE = 4096
KERNEL_ZONES = ("DMA32", "Normal")
# more ranges are not lent: see lenders/zone.py
MOST_RUNS = 256


def offer_movable(
    facts: Facts, asked_bytes: int, lendable: Ranges, share_percent: int, *, low: bool = False
) -> Offer:
    """Rank the blocks that may be lent.

    ``low``: one of them should lie below 4 GiB, where there is one that may go.

    ``lendable`` is the architecture's ``reserve_lent``; empty when /proc/iomem hides it, which
    makes the offer a coarse one. At most ``share_percent`` of RAM becomes movable, what is
    movable already included: a kernel that has nearly nothing but movable memory deadlocks
    (Documentation/admin-guide/mm/memory-hotplug.rst: up to 3:1 or 4:1 is considered safe).
    RefusedError on hosts whose memory can't be lent this way.
    """
    if facts.memmap_on_memory:
        raise RefusedError(
            "movable memory must not be lent on this host",
            "memory_hotplug.memmap_on_memory is on: an offlined block holds its own memmap",
            hint="boot without memory_hotplug.memmap_on_memory",
        )
    block_bytes = facts.block_bytes
    if not block_bytes or not facts.blocks:
        raise RefusedError(
            "there is no movable memory to be had",
            "/sys/devices/system/memory has no memory blocks",
            hint="a kernel with CONFIG_MEMORY_HOTPLUG and CONFIG_MEMORY_HOTREMOVE is needed",
        )
    known = {*facts.own_blocks, *facts.lent_blocks}
    mine = [b for b in facts.blocks if b.index in known and b.is_movable]
    # what was clean when it was lent may not be so any more: then it goes back
    bad = {b.index: _spoiled(facts, b, block_bytes, lendable) for b in mine}
    ours = [b for b in mine if b.index in facts.lent_blocks and not bad[b.index]]
    needed = -(-asked_bytes // block_bytes)
    # of more blocks than are asked for now, the upper ones stay: they are the likelier neighbours
    if low:
        ours.sort(key=lambda b: (_is_low(b, block_bytes), b.index))
    surplus: list[MemoryBlock] = []
    held: list[MemoryBlock] = []
    missing = needed * block_bytes
    for block in reversed(ours):
        # what a balloon has of a block is replaced as soon as it is a whole one's worth
        if missing < block_bytes:
            surplus.append(block)
            continue
        held.append(block)
        missing -= spoiled.fit(facts, _ranges([block.index], block_bytes)).size
    notes: list[str] = []
    wanted = max(0, missing // block_bytes)
    if asked_bytes % block_bytes:
        notes.append(f"memory blocks are {mib(block_bytes)} here: the request is rounded up")

    movable_bytes = sum(z.managed for z in facts.zones if z.name == "Movable") * PAGE
    limit_bytes = facts.meminfo.get("MemTotal", 0) * share_percent // 100
    most = max(0, (limit_bytes - movable_bytes) // block_bytes)
    if wanted > most:
        notes.append(
            f"at most {share_percent} % of RAM ({mib(limit_bytes)}) may be movable: "
            f"{most * block_bytes // (1 << 20)} MiB more at most (setting lend_share)"
        )
        wanted = most

    good, passed_over = [], []
    for block in facts.blocks:
        if block in ours:
            continue
        if block in mine:
            why = bad[block.index] or "an interrupted run left it; load looks at it"
            passed_over.append(PassedOver(block.index, f"it must not be lent any more: {why}"))
            continue
        reason = _why_not(facts, block, block_bytes, lendable)
        if reason:
            passed_over.append(PassedOver(block.index, reason))
        else:
            good.append(block)
    room = _room(facts, share_percent)
    candidates = sorted((b for b in good if room[b.node]), key=lambda b: _rank(facts, b))
    if low and not any(_is_low(b, block_bytes) for b in held):
        first = next((b for b in candidates if _is_low(b, block_bytes)), None)
        candidates.sort(key=lambda b: b is not first)
    if _poison_at_large(facts):
        notes.append("the kernel counts poisoned memory that no block's census shows: none is lent")
        candidates = []
    chosen = _first(candidates, wanted, room)
    whole = _ranges((b.index for b in held), block_bytes)
    fit = spoiled.fit(facts, whole)
    held_ranges = Ranges(sorted(fit, key=lambda r: -r.size)[:MOST_RUNS])
    if held_ranges != whole:
        kinds = spoiled.words(spoiled.kinds_in(facts, whole))
        notes.append(
            f"{mib(whole.size - held_ranges.size)} of lent memory blocks are left out: they hold "
            f"pages that must not be lent ({kinds})"
        )
    notes += [
        f"memory block {b.index} is movable by crashlend's doing, but not lent: {bad[b.index]}"
        for b in mine
        if bad[b.index]
    ]
    return Offer(
        "movable",
        asked_bytes,
        held=held_ranges,
        foreseen=held_ranges | _ranges((b.index for b in chosen), block_bytes),
        candidates=tuple(Candidate(b.index, b.node) for b in candidates) if chosen else (),
        wanted=len(chosen),
        room=tuple(NodeRoom(node, most) for node, most in sorted(room.items())),
        surplus=tuple(
            b.index
            for b in mine
            if b in surplus or (b not in ours and b.index in facts.lent_blocks)
        ),
        passed_over=tuple(passed_over),
        notes=tuple(notes),
    )


def _ranges(indexes: Iterable[int], block_bytes: int) -> Ranges:
    return Ranges((i * block_bytes, (i + 1) * block_bytes) for i in indexes)


def _is_low(block: MemoryBlock, block_bytes: int) -> bool:
    return (block.index + 1) * block_bytes <= 4 * GIB


def _spoiled(facts: Facts, block: MemoryBlock, block_bytes: int, lendable: Ranges) -> str:
    """Why nothing of a block that crashlend made movable may be lent any more; "" when it may."""
    whole = _ranges([block.index], block_bytes)
    kinds = spoiled.kinds_that_spoil(facts, whole)
    if kinds:
        return f"it has pages that must not be lent ({spoiled.words(kinds)})"
    census = facts.census_by_block.get(block.index)
    if census is not None and census.poisoned:
        return "it has poisoned pages"
    if census is not None and census.unmovable:
        return "it has pages that may not move"
    if facts.iomem and not lendable.covers(whole):
        return "it is a driver's memory, or it has a hole"
    return ""


def _why_not(facts: Facts, block: MemoryBlock, block_bytes: int, lendable: Ranges) -> Optional[str]:
    """Why this block is not even tried; None when it is."""
    census = facts.census_by_block.get(block.index)
    whole = Ranges([(block.index * block_bytes, (block.index + 1) * block_bytes)])
    checks = (
        (block.state != "online", f"it is {block.state or 'gone'}"),
        (block.is_movable, "it is movable already, by somebody else"),
        (not set(block.zones) & set(KERNEL_ZONES), "it lies in several zones or in ZONE_DMA"),
        (
            bool(facts.iomem) and not lendable.covers(whole),
            "it holds the reservation, the kernel, a hole, or memory of a driver",
        ),
        (census is not None and census.poisoned > 0, "it has poisoned pages"),
        (census is not None and census.huge > 0, "it has huge pages, which would be dissolved"),
    )
    return next((reason for applies, reason in checks if applies), None)


def _rank(facts: Facts, block: MemoryBlock) -> tuple[int, int]:
    """Best first: blocks with the fewest pages that may not move, then from the top.

    Counts are taken by their order of magnitude, so that equally good blocks stay neighbours
    and make one range.
    """
    census = facts.census_by_block.get(block.index)
    doubtful = census.unmovable + census.offline + census.unknown // 8 if census else 0
    return (doubtful.bit_length(), -block.index)


def _room(facts: Facts, share_percent: int) -> dict[int, int]:
    """How many blocks more each node can lend: ``share_percent`` of it, and never its last one.

    What the kernel can't allocate on one node it may not find on another that is as full.
    """
    block_pages = (facts.block_bytes or PAGE) // PAGE
    left = dict.fromkeys((b.node for b in facts.blocks), 0)
    for block in facts.blocks:
        if block.state == "online" and set(block.zones) & set(KERNEL_ZONES):
            left[block.node] += 1
    room = {}
    for node in left:
        zones = [z for z in facts.zones if z.node == node]
        movable = sum(z.managed for z in zones if z.name == "Movable")
        most = sum(z.managed for z in zones) * share_percent // 100 - movable
        # without zones nothing is known but that one block must stay
        room[node] = max(0, min(left[node] - 1, most // block_pages if zones else left[node]))
    return room


def _first(candidates: list[MemoryBlock], wanted: int, room: dict[int, int]) -> list[MemoryBlock]:
    """The blocks that are lent when none of them refuses."""
    room = dict(room)
    chosen: list[MemoryBlock] = []
    for block in candidates:
        if len(chosen) < wanted and room[block.node] > 0:
            room[block.node] -= 1
            chosen.append(block)
    return chosen


def _poison_at_large(facts: Facts) -> bool:
    """Whether HardwareCorrupted counts pages that the census did not find (hazard 2)."""
    corrupted = facts.meminfo.get("HardwareCorrupted", 0)
    if not facts.block_census:
        return False  # nobody has looked yet; load does before it takes anything
    return corrupted > sum(c.poisoned for c in facts.block_census) * PAGE
