# SPDX-License-Identifier: LGPL-2.1-or-later
"""Unload the crash kernel and make all lent memory ordinary again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crashlend import config
from crashlend.cli.hosts import settings_from
from crashlend.cli.output import print_json, progress
from crashlend.system import loading
from crashlend.system.state import State

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON (schema 1)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be given back")
    config.add_flags(parser, ("block_deadline",))


def run(args: argparse.Namespace) -> int:
    if args.dry_run:
        blocks = sorted(State().blocks)
        if args.json:
            print_json({"schema": 1, "would_give_back": blocks})
        else:
            print(f"would unload the crash kernel and give back {len(blocks)} memory blocks")
        return 0
    kept = loading.unload(settings_from(args), say=progress)
    if args.json:
        kept_json = [{"block": r.index, "reason": r.reason} for r in kept]
        print_json({"schema": 1, "loaded": False, "still_movable": kept_json})
        return 0
    print("the crash kernel is unloaded")
    if kept:
        print(
            f"note: {len(kept)} memory blocks can't be emptied now and stay movable; "
            "the next unload tries again"
        )
    return 0
