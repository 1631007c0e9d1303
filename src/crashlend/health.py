# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is wrong with a host that has lent memory, each with its remedy. Pure.

``state`` is the content of the state file (system/state.py); what it says is compared with the facts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from crashlend.changes import Changes, find_changes
from crashlend.crashkernel.grammar import lent_request
from crashlend.lenders import spoiled
from crashlend.lenders.activation import activation
from crashlend.lenders.asked import find_in_request
from crashlend.quiesce import DEFAULT, candidates, is_reachable, parse_quiesce
from crashlend.ranges import Ranges

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crashlend.facts import Facts, MemoryBlock

NOW = "run crashlend reload now"


def find_problems(facts: Facts, state: dict[str, Any]) -> list[str]:
    """What the state file says and the host no longer bears out; most urgent first."""
    loaded = state.get("loaded") or {}
    problems = [*_of_blocks(facts, state), *_of_zones(facts, loaded), *_of_cma(facts, loaded)]
    problems += [*_of_host(facts, loaded), *_of_devices(facts, loaded)]
    problems += _changed(facts, state, told="".join(problems))
    if loaded.get("step") == "loading":
        problems.append("a load was interrupted; run crashlend load")
    elif loaded.get("step") == "lost":
        problems.append(f"the crash kernel was lost: {loaded.get('reason')}; run crashlend load")
    elif loaded and facts.crash_loaded is False:
        problems.append("the crash kernel that crashlend loaded is gone; run crashlend load")
    return [*problems, *_of_request(facts, loaded)]


def changes_of(facts: Facts, state: dict[str, Any]) -> Changes:
    """What has changed since the load; nothing where there is no image."""
    if not facts.crash_loaded:
        return Changes()
    blocks = state.get("blocks") or {}
    steps = {int(index): str(block.get("step")) for index, block in blocks.items()}
    return find_changes(state.get("loaded"), facts, steps)


def _of_blocks(facts: Facts, state: dict[str, Any]) -> Iterator[str]:
    """The memory blocks that crashlend made movable, or was about to."""
    blocks = {b.index: b for b in facts.blocks}
    loaded = state.get("loaded") or {}
    in_use = Ranges(tuple(r) for r in loaded.get("lent", []) if facts.crash_loaded)
    for key, record in (state.get("blocks") or {}).items():
        block, step = blocks.get(int(key)), record.get("step")
        if block is None:
            yield f"lent memory block {key} is gone; run crashlend reload"
        elif block.state != "online" and step in ("lent", "spoiled"):
            yield f"lent memory block {key} is {block.state}, by somebody else's doing; {NOW}"
        elif block.state != "online":
            yield f"memory block {key} is {block.state}: production lacks it; run crashlend load"
        elif step == "lent" and block.zones[:1] != ("Movable",):
            yield f"lent memory block {key} is not movable any more and may hold kernel data; {NOW}"
        elif step == "lent" and _is_idle(facts, block, loaded, in_use):
            yield (
                f"memory block {key} is movable, but no crash kernel of crashlend's uses it; "
                "run crashlend load or unload"
            )


def _of_zones(facts: Facts, loaded: dict[str, Any]) -> Iterator[str]:
    """What the loaded image was given of a ZONE_MOVABLE that crashlend did not make."""
    size = facts.block_bytes
    if not size:
        return
    blocks = {b.index: b for b in facts.blocks}
    zone = Ranges(tuple(r) for r in loaded.get("zone", [])).align_outwards(size)
    for index in (i for r in zone for i in range(r.start // size, r.end // size)):
        if index not in blocks or not blocks[index].is_movable:
            yield (
                f"memory block {index} holds lent memory and does not lie in ZONE_MOVABLE any more: "
                f"it may hold kernel data or be gone; {NOW}"
            )


def _of_cma(facts: Facts, loaded: dict[str, Any]) -> Iterator[str]:
    """What the loaded image was given of ranges that are not CMA any more."""
    lent = Ranges(tuple(r) for r in loaded.get("lent", []) if facts.crash_loaded)
    lost = activation(facts).lost & lent
    if lost:
        yield (
            f"lent memory ({', '.join(map(str, lost))}) is not CMA any more and may hold kernel data; "
            f"{NOW}"
        )


def _of_request(facts: Facts, loaded: dict[str, Any]) -> Iterator[str]:
    """What the kernel made of the ``,cma`` word.

    Not that it is too little where other memory was lent in its place.
    """
    lent = Ranges(tuple(r) for r in loaded.get("lent", []) if facts.crash_loaded)
    enough = lent.size >= lent_request(facts.cmdline_bytes)
    for finding in find_in_request(facts):
        if not finding.harmless and not (finding.less and enough):
            yield str(finding)


def _of_host(facts: Facts, loaded: dict[str, Any]) -> Iterator[str]:
    """Why this host must not lend any more what it has lent: a SEV guest that came later."""
    lenders = str(loaded.get("lender") or "").split(",")
    if facts.crash_loaded and loaded.get("lent"):
        for refusal in facts.refusals:
            if refusal.lender in ("any", *lenders):
                yield (
                    f"memory of this host must not be lent any more: {refusal.reason}; run crashlend "
                    "reload --lend 0"
                )


def _of_devices(facts: Facts, loaded: dict[str, Any]) -> Iterator[str]:
    """Devices whose late DMA the loaded image does not stop, because they came into use after it.

    Only root sees who uses what.
    """
    if not (facts.crash_loaded and facts.privileged and loaded.get("lent")):
        return
    off = loaded.get("bus_masters") or ()
    for one in facts.endless_writers:
        if one.address not in off:
            yield (
                f"{one.driver} ({one.address or 'address unknown'}) is in use and may write to lent "
                f"memory after a crash, for no wait ends that: {one.seen}; run crashlend reload "
                "--dma-quiesce wait=10,bus-masters-off, or with --lend 0"
            )
    settings = loaded.get("settings") or {}
    which = parse_quiesce(str(settings.get("dma_quiesce") or DEFAULT)).bus_masters
    for function in candidates(facts, which) if which else ():
        if is_reachable(function) and function.address not in off:
            yield (
                f"the PCI function {function.address} came after the load: its bus mastering would "
                "stay on; run crashlend reload"
            )


def _changed(facts: Facts, state: dict[str, Any], told: str) -> list[str]:
    """What the loaded image does not know of this host; blocks that were ``told`` of not again."""
    changes = changes_of(facts, state)
    fresh = [lost for lost in changes.lost if f"memory block {lost[0]} " not in told]
    now = replace(changes, lost=tuple(fresh))
    words = f"the crash kernel that is loaded counts on it; {NOW}"
    out = [f"{sentence}: {words}" for sentence in now.sentences(urgent=True)]
    words = "the crash kernel that is loaded does not know of it; run crashlend reload"
    return out + [f"{sentence}: {words}" for sentence in now.sentences(urgent=False)]


def _is_idle(facts: Facts, block: MemoryBlock, loaded: dict[str, Any], in_use: Ranges) -> bool:
    """Whether a block is lent to nobody: an unload or a smaller load was killed, or gave up.

    Not one of which a balloon has all that there is.
    """
    size = facts.block_bytes or 1
    where = Ranges([(block.index * size, (block.index + 1) * size)])
    if loaded.get("step") == "loaded" and not spoiled.fit(facts, where):
        return False
    return loaded.get("step") != "loading" and not in_use.meets(where)
