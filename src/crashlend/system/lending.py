# SPDX-License-Identifier: LGPL-2.1-or-later
"""Carrying out what the ``movable`` lender offers, and taking it back. Safe to kill at any point.

Every step is in the state file before it is made, so the next run knows which blocks are on their
way: :func:`recover` brings them home. What says so must not decide what is done: ``say`` must not
raise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable

from crashlend.errors import CrashlendError
from crashlend.sizes import MIB, mib
from crashlend.system.memory_blocks import PAGE, BlockBusyError, MemoryBlocks
from crashlend.system.state import LENT, RETURNING, SPOILED, STEPS, TAKING, UNDER_WAY, State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crashlend.lenders import Candidate, NodeRoom

# a block with a poisoned page would not come back: it is never taken offline (hazard 2)
POISONED = "it has poisoned pages and would not come back"
# a host in which so many blocks refuse has no memory that moves; each may take the whole deadline
REFUSALS_PER_BLOCK, REFUSALS = 2, 16
Say = Callable[[str], None]
ONLINE_MOVABLE, ONLINE_KERNEL, ONLINE_ANY = "online_movable", "online_kernel", "online"


@dataclass(frozen=True)
class Refused:
    """A block that was tried and did not go, and why."""

    index: int
    reason: str


def take(
    blocks: MemoryBlocks,
    state: State,
    candidates: Sequence[Candidate],
    wanted: int,
    room: Sequence[NodeRoom],
    *,
    deadline_seconds: float,
    say: Say,
) -> tuple[list[int], list[Refused]]:
    """Make up to ``wanted`` of the candidate blocks movable; return those and the refused ones.

    ``room`` is how many of each node may go.

    A block that refuses costs nothing but time: the next candidate is tried. Memory pressure ends
    the taking, because emptying a block must not push production into reclaim.
    """
    taken: list[int] = []
    refused: list[Refused] = []
    left = dict(room)
    for index, node in candidates:
        if len(taken) == wanted:
            break
        if not left.get(node):
            continue
        if len(refused) >= REFUSALS_PER_BLOCK * wanted + REFUSALS:
            say(f"{len(refused)} memory blocks refused: no more are tried")
            break
        pressure = _pressure(blocks)
        if pressure:
            refused.append(Refused(index, pressure))
            break
        try:
            _take_one(blocks, state, index, deadline_seconds)
        except BlockBusyError as error:
            refused.append(Refused(index, str(error)))
            say(f"memory block {index} stays: {error}")
            continue
        taken.append(index)
        left[node] -= 1
        say(f"memory block {index} is movable now ({len(taken)} of {wanted})")
    return taken, refused


def _take_one(blocks: MemoryBlocks, state: State, index: int, deadline_seconds: float) -> None:
    # looked at again right before: minutes may have passed since the facts were read
    census = blocks.census(index)
    if census.poisoned:
        raise BlockBusyError(POISONED)
    if census.huge:
        raise BlockBusyError("it has huge pages")
    zone = blocks.zone(index)
    managed = _managed(blocks)
    huge_pages = blocks.huge_pages()
    state.set_block(index, TAKING, zone)
    try:
        blocks.offline(index, deadline_seconds)
    except BlockBusyError:
        state.drop_block(index)
        raise
    try:
        blocks.online(index, ONLINE_MOVABLE)
    except BlockBusyError as error:
        _bring_home(blocks, state, index)
        raise BlockBusyError(f"it does not go online as movable ({error})") from None
    state.set_block(index, LENT)
    # sysfs says "online" even where a hypervisor's hook kept the pages (hazard 1)
    grown = _managed(blocks) - managed
    if grown < -(blocks.block_bytes // PAGE // 64):
        _bring_home_movable(blocks, state, index)
        raise CrashlendError(
            f"memory block {index} came back smaller",
            f"{-grown * PAGE // MIB} MiB of it are not in use any more",
            hint="lending is not safe on this host (a balloon driver?); use --lend 0",
        )
    after = blocks.census(index)
    # no balloon is that fast: what is PageOffline now was so all the time, without being moved
    if after.unmovable + after.offline > 0:
        _bring_home_movable(blocks, state, index)
        raise BlockBusyError("it holds pages that are not movable even after it was offline")
    if blocks.huge_pages() != huge_pages:
        # free huge pages are dissolved silently by offlining; their owner wants them back
        raise CrashlendError(
            "huge pages were lost",
            f"offlining memory block {index} dissolved free ones",
            hint="set nr_hugepages again; then use --lend 0 or fewer blocks",
        )


def give_back(
    blocks: MemoryBlocks, state: State, indexes: Sequence[int], *, deadline_seconds: float, say: Say
) -> list[Refused]:
    """Make lent blocks ordinary memory again; return those that stay movable, and why.

    A block that can't be emptied now stays movable, which costs production nothing but its use
    for kernel data. It stays in the state, so that the next ``unload`` tries again.
    """
    kept: list[Refused] = []
    at_large = bool(indexes) and blocks.poison_at_large()
    for index in indexes:
        try:
            census = blocks.census(index)
            if census.poisoned or at_large:
                raise BlockBusyError(POISONED)
            if census.huge:
                raise BlockBusyError("it has huge pages, which would be dissolved")
            pressure = _pressure(blocks)
            if pressure:
                raise BlockBusyError(pressure)
            before = str(state.blocks.get(index, {}).get("zone") or "")
            state.set_block(index, RETURNING)
            try:
                blocks.offline(index, deadline_seconds)
            except BlockBusyError:
                _keep_movable(blocks, state, index)
                raise
            _bring_home(blocks, state, index)
            if index in state.blocks:
                raise BlockBusyError("it goes online as movable only")
            zone = blocks.zone(index)
            moved = f", it was in {before}" if before and zone != before else ""
            say(f"memory block {index} is ordinary memory again (in {zone}{moved})")
        except BlockBusyError as error:
            kept.append(Refused(index, str(error)))
            say(f"memory block {index} stays movable: {error}")
    return kept


def recover(
    blocks: MemoryBlocks, state: State, *, say: Say, steps: Sequence[str] = STEPS
) -> list[Refused]:
    """Put right what an interrupted run left: blocks between two states.

    A lent block that is offline is another's doing, who may be about to take it out of the machine: it
    is dropped. ``steps`` are those of the blocks that are looked at; (TAKING, RETURNING) is only what was
    under way. Also looks again at the pages of what is lent: poison and balloons come later, too. Returns
    the blocks that do not come back online; they stay in the state, and must not bar a new load.
    """
    failed: list[Refused] = []
    mine = [index for index, block in state.blocks.items() if block["step"] in steps]
    for index in mine:
        now = blocks.state(index)
        if now in ("", "online"):
            continue
        if state.blocks[index]["step"] not in UNDER_WAY:
            # not our doing: our own steps are on record before they are made
            if now == "offline":
                say(f"memory block {index} was taken offline by somebody else: it is theirs now")
                state.drop_block(index)
            continue
        try:
            _bring_home(blocks, state, index)
            say(f"memory block {index} was left {now} by an interrupted run; it is online again")
        except CrashlendError as error:
            failed.append(Refused(index, str(error)))
            say(f"{error}; {error.hint}")
    for index, block in [(i, state.blocks[i]) for i in mine if i in state.blocks]:
        now = blocks.state(index)
        if not now:
            say(f"memory block {index} is gone: it was taken out of the machine")
            state.drop_block(index)
        elif now == "online" and blocks.zone(index) != "Movable":
            if block["step"] in (LENT, SPOILED):
                say(f"memory block {index} is no longer movable: somebody else changed it")
            state.drop_block(index)
        elif now == "online":
            _keep_movable(blocks, state, index)
    return failed


def _bring_home(blocks: MemoryBlocks, state: State, index: int) -> None:
    """Bring an offline block online again, for kernel use if that can be, else at all."""
    for how in (ONLINE_KERNEL, ONLINE_ANY, ONLINE_MOVABLE):
        try:
            blocks.online(index, how)
        except BlockBusyError:
            continue
        if blocks.zone(index) == "Movable":
            _keep_movable(blocks, state, index)
        else:
            state.drop_block(index)
        return
    raise CrashlendError(
        f"memory block {index} does not come back online",
        f"{mib(blocks.block_bytes)} of production's memory are missing",
        hint=f"dmesg says why; try: echo online > /sys/devices/system/memory/memory{index}/state",
    )


def _bring_home_movable(blocks: MemoryBlocks, state: State, index: int) -> None:
    """Undo a block that went online as movable but must not be lent."""
    if blocks.census(index).poisoned:
        _keep_movable(blocks, state, index)
        return
    state.set_block(index, RETURNING)
    try:
        blocks.offline(index, 10)
    except BlockBusyError:
        _keep_movable(blocks, state, index)
        return
    _bring_home(blocks, state, index)


def _keep_movable(blocks: MemoryBlocks, state: State, index: int) -> None:
    """Keep account of a movable block: it is lent only while its pages may be."""
    census = blocks.census(index)
    step = SPOILED if census.unmovable or census.poisoned else LENT
    if state.blocks.get(index, {}).get("step") != step:  # a full /run fails no more than it must
        state.set_block(index, step)


def _pressure(blocks: MemoryBlocks) -> str:
    """Why no block should be emptied now: its pages must fit elsewhere, without reclaim."""
    info = blocks.meminfo()
    margin = max(64 * MIB, info.get("MemTotal", 0) // 50)
    available = info.get("MemAvailable", 0)
    if available < blocks.block_bytes + margin:
        return f"only {mib(available)} of memory is available"
    return ""


def _managed(blocks: MemoryBlocks) -> int:
    """Pages in use of all zones together: taking a block must not lower it."""
    return sum(zone.managed for zone in blocks.zones())
