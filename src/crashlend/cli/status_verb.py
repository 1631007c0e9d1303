# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tell whether a crash kernel is loaded, and how lent memory is doing.

As root on the running host it also brings back the memory that a killed crashlend left offline.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crashlend.arch import for_machine
from crashlend.changes import Changes, find_changes
from crashlend.cli.hosts import facts_from
from crashlend.cli.main import add_root
from crashlend.cli.output import print_json, print_rows, progress
from crashlend.errors import EXIT_DONE, EXIT_NOT_LOADED, EXIT_UNKNOWN
from crashlend.facts import STATE_PATH
from crashlend.hostfiles import open_host
from crashlend.jsonable import to_json
from crashlend.lenders import spoiled
from crashlend.lenders.census import PAGE
from crashlend.ranges import Ranges
from crashlend.sizes import mib
from crashlend.system import loading
from crashlend.system.image import is_in_memory

if TYPE_CHECKING:
    import argparse

    from crashlend.facts import Facts, MemoryBlock


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_root(parser)


def run(args: argparse.Namespace) -> int:
    facts = facts_from(args)
    recovered: tuple[int, ...] = ()
    if args.root == Path("/") and os.geteuid() == 0:
        recovered = loading.finish_interrupted(say=progress)
        facts = facts_from(args) if recovered else facts
    state: dict[str, Any]
    try:
        state = _well_formed(json.loads(open_host(args.root).read(STATE_PATH)))
        readable = True
    except FileNotFoundError:
        state, readable = {}, True
    except (OSError, ValueError, RecursionError):
        state, readable = {}, False
    record = state.get("loaded") or {}
    problems = find_problems(facts, state)
    by_us = facts.crash_loaded is True and record.get("step") == "loaded"
    verified = None
    if by_us and args.root == Path("/"):
        verified = is_in_memory(record.get("marker"))
    if verified is False:
        by_us = False
        problems.append(
            "another program loaded its own crash kernel over crashlend's, which does not know "
            "of lent memory; disable it and run crashlend load"
        )
    lent = Ranges(tuple(r) for r in record.get("lent", [])) if by_us else Ranges()
    looked = facts.lent_pages if lent else None
    if lent:
        problems += spoiled.problems(facts)
    reservation = for_machine(facts.arch).reservations(facts).size or facts.crash_size_bytes or 0
    if args.json:
        print_json(
            {
                "schema": 1,
                "loaded": facts.crash_loaded,
                "by_crashlend": by_us if readable else None,
                "verified_in_memory": verified,
                "lender": record.get("lender") if by_us else None,
                "reservation_bytes": reservation,
                "lent": {
                    "bytes": lent.size,
                    "ranges": lent.to_json(),
                    # None: its pages could not be looked at
                    "pages": looked.kinds if looked else None,
                    "unfit": to_json(looked.unfit) if looked else None,
                },
                "kept": bool(record.get("kept")) if by_us else None,
                "changed": to_json(changes_of(facts, state)) if by_us else None,
                "problems": problems,
                "recovered": list(recovered),
            }
        )
    else:
        words = {True: "loaded", False: "not loaded", None: "unknown"}[facts.crash_loaded]
        if facts.crash_loaded and not by_us:
            words += " (by another program)" if readable else " (needs root to tell by whom)"
        rows = [("crash kernel", words), ("taken from production", mib(reservation))]
        if by_us:
            rows.append(
                ("shared until the crash", f"{mib(lent.size)}, lender {record.get('lender')}")
            )
            if looked and looked.kinds.get("offline"):
                rows.append(("of it in a balloon", mib(looked.kinds["offline"] * PAGE)))
            rows.append(("the crash kernel has", mib(int(record.get("crash_kernel_bytes") or 0))))
        print_rows(rows)
        for problem in problems:
            print(f"problem: {problem}")
    if facts.crash_loaded is None:
        return EXIT_UNKNOWN
    return EXIT_DONE if facts.crash_loaded else EXIT_NOT_LOADED


def _well_formed(value: Any) -> dict[str, Any]:
    """The state file's content; ValueError for what crashlend cannot have written."""
    if not isinstance(value, dict):
        raise ValueError("no object")
    blocks, loaded = value.get("blocks") or {}, value.get("loaded") or {}
    if not isinstance(blocks, dict) or not isinstance(loaded, dict):
        raise ValueError("no objects in it")
    if not all(key.isdecimal() and isinstance(block, dict) for key, block in blocks.items()):
        raise ValueError("no blocks in it")
    size = loaded.get("crash_kernel_bytes")
    ranges = all(
        _are_ranges(loaded.get(name, [])) for name in ("lent", "zone", "cma", "system_ram")
    )
    notes = loaded.get("notes", [])
    ranges = ranges and isinstance(notes, list) and all(isinstance(note, list) for note in notes)
    if not ranges or not (size is None or isinstance(size, int)):
        raise ValueError("no load in it")
    return value


def _are_ranges(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(x, int) for x in pair)
        for pair in value
    )


def find_problems(facts: Facts, state: dict[str, Any]) -> list[str]:
    """What the state file says and the host no longer bears out."""
    problems = []
    blocks = {b.index: b for b in facts.blocks}
    loaded = state.get("loaded") or {}
    in_use = Ranges(tuple(r) for r in loaded.get("lent", []) if facts.crash_loaded)
    size = facts.block_bytes or 1
    for key, record in (state.get("blocks") or {}).items():
        block = blocks.get(int(key))
        if block is None:
            problems.append(f"lent memory block {key} is gone; run crashlend reload")
        elif block.state != "online" and record.get("step") in ("lent", "spoiled"):
            problems.append(
                f"lent memory block {key} is {block.state}, by somebody else's doing; "
                "run crashlend reload now"
            )
        elif block.state != "online":
            problems.append(
                f"memory block {key} is {block.state}: production lacks it; run crashlend load"
            )
        elif record.get("step") == "lent" and block.zones[:1] != ("Movable",):
            problems.append(
                f"lent memory block {key} is not movable any more and may hold kernel data; "
                "run crashlend reload now"
            )
        elif record.get("step") == "lent" and _is_idle(facts, block, loaded, in_use):
            problems.append(
                f"memory block {key} is movable, but no crash kernel of crashlend's uses it; "
                "run crashlend load or unload"
            )
    known = loaded.get("zone", []) if facts.block_bytes else []
    zone = Ranges(tuple(r) for r in known).align_outwards(size)
    for index in (i for r in zone for i in range(r.start // size, r.end // size)):
        if index not in blocks or not blocks[index].is_movable:
            problems.append(
                f"memory block {index} holds lent memory and does not lie in ZONE_MOVABLE any more: "
                "it may hold kernel data or be gone; run crashlend reload now"
            )
    problems += _changed(facts, state, told="".join(problems))
    if loaded.get("step") == "loading":
        problems.append("a load was interrupted; run crashlend load")
    elif loaded.get("step") == "lost":
        problems.append(f"the crash kernel was lost: {loaded.get('reason')}; run crashlend load")
    elif loaded and facts.crash_loaded is False:
        problems.append("the crash kernel that crashlend loaded is gone; run crashlend load")
    return problems


def _changed(facts: Facts, state: dict[str, Any], told: str) -> list[str]:
    """What the loaded image does not know of this host; blocks that were ``told`` of not again."""
    changes = changes_of(facts, state)
    fresh = [lost for lost in changes.lost if f"memory block {lost[0]} " not in told]
    now = replace(changes, lost=tuple(fresh))
    words = "the crash kernel that is loaded counts on it; run crashlend reload now"
    out = [f"{sentence}: {words}" for sentence in now.sentences(urgent=True)]
    words = "the crash kernel that is loaded does not know of it; run crashlend reload"
    return out + [f"{sentence}: {words}" for sentence in now.sentences(urgent=False)]


def changes_of(facts: Facts, state: dict[str, Any]) -> Changes:
    """What has changed since the load; nothing where there is no image."""
    if not facts.crash_loaded:
        return Changes()
    blocks = state.get("blocks") or {}
    steps = {int(index): str(block.get("step")) for index, block in blocks.items()}
    return find_changes(state.get("loaded"), facts, steps)


def _is_idle(facts: Facts, block: MemoryBlock, loaded: dict[str, Any], in_use: Ranges) -> bool:
    """Whether a block is lent to nobody: an unload or a smaller load was killed, or gave up.

    Not one of which a balloon has all that there is.
    """
    size = facts.block_bytes or 1
    where = Ranges([(block.index * size, (block.index + 1) * size)])
    if loaded.get("step") == "loaded" and not spoiled.fit(facts, where):
        return False
    return loaded.get("step") != "loading" and not in_use.meets(where)
