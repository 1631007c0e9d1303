# SPDX-License-Identifier: LGPL-2.1-or-later
"""Lend memory and load the crash kernel."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from crashlend import config
from crashlend.cli.hosts import CAPTURE, LENDING, PAYLOAD, files_getter, settings_from
from crashlend.cli.main import size_argument
from crashlend.cli.output import print_json, print_rows, progress
from crashlend.cli.plan_verb import cost_rows, show_plan
from crashlend.facts import read_facts
from crashlend.hostfiles import open_host
from crashlend.sizes import mib
from crashlend.system import handover, loading

if TYPE_CHECKING:
    import argparse


SMALLEST = 0  # --shrink without a size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON (schema 1)")
    parser.add_argument("--dry-run", action="store_true", help="plan everything, change nothing")
    parser.add_argument(
        "--shrink",
        nargs="?",
        const=SMALLEST,
        type=size_argument,
        metavar="SIZE",
        help="give back what of the reservation is not needed, or all beyond SIZE, until the next "
        "boot",
    )
    config.add_flags(parser, (*LENDING, *PAYLOAD, *CAPTURE))


def run(args: argparse.Namespace, *, again: bool = False) -> int:
    settings = settings_from(args)
    get_files = files_getter(settings, progress)
    if args.dry_run:
        facts = read_facts(open_host(Path("/")), census=True)
        plan = handover.check(facts, settings, get_files(facts.release).payload)
        print_json(plan.to_json()) if args.json else show_plan(plan, facts)
        return 0
    done = loading.load(
        settings,
        get_files,
        say=progress,
        clock=time.monotonic,
        again=again,
        shrink=args.shrink is not None or settings.shrink_on_load,
        shrink_to=args.shrink if args.shrink != SMALLEST else None,
    )
    if args.json:
        print_json(answer_json(done))
        return 0
    print("the crash kernel was loaded already" if done.already else "the crash kernel is loaded")
    if done.freed_bytes:
        print(f"{mib(done.freed_bytes)} of the reservation are production's again")
    print_rows(cost_rows(done.plan))
    for note in done.plan.notes:
        print(f"note: {note}")
    if done.plan.lender != "none" and done.plan.lent.size < done.plan.offer.asked_bytes:
        print("note: less was lent than asked for; `crashlend plan --census -v` shows why")
    return 0


def answer_json(done: loading.Loaded) -> dict[str, object]:
    """What ``load --json`` answers."""
    return {
        "schema": 1,
        "loaded": True,
        "already": done.already,
        "freed_bytes": done.freed_bytes,
        "proven": done.proven,
        "seconds": {"lend": done.lend_seconds, "load": done.load_seconds},
        "refused": [{"block": r.index, "reason": r.reason} for r in done.refused],
        "plan": done.plan.to_json(),
    }
