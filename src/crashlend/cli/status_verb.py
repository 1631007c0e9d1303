# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tell whether a crash kernel is loaded, and how lent memory is doing.

As root on the running host it also brings back the memory that a killed crashlend left offline.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crashlend import records
from crashlend.arch import for_machine
from crashlend.cli.hosts import facts_from
from crashlend.cli.main import add_root
from crashlend.cli.output import print_json, print_rows, progress
from crashlend.errors import EXIT_DONE, EXIT_NOT_LOADED, EXIT_UNKNOWN
from crashlend.facts import STATE_PATH
from crashlend.health import changes_of, find_problems
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
    why_not = records.fault(loaded)
    if why_not:
        raise ValueError(why_not)
    return value
