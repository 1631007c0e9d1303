# SPDX-License-Identifier: LGPL-2.1-or-later
"""``crashlend lab soak``: random trials from a seed; every one must save its dump."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from crashlend.cli.output import print_json, progress, write_file
from crashlend.cli.run_flags import add_run_flags
from crashlend.errors import EXIT_DONE, EXIT_FAILED, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crashlend.lab.soak.cases import SoakCase

DIRECTORY = Path("build/soak")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``lab soak``."""
    parser.add_argument("--trials", type=int, default=60, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--seed", type=_seed, default="1", metavar="S", help="a word (default: %(default)s)"
    )
    parser.add_argument(
        "--only", type=_only, metavar="SEED/INDEX", help="this one trial, done before or not"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on: leave out what has a verdict already"
    )
    parser.add_argument("--dry-run", action="store_true", help="list the guests, crash none")
    add_run_flags(parser, DIRECTORY, keeps="results.jsonl, and failed/INDEX with all files")
    parser.add_argument(
        "--explained",
        type=Path,
        metavar="FILE",
        help='JSON, {"SEED/INDEX": "why its dump was lost"}, for the report',
    )


def _seed(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,32}", text):
        raise argparse.ArgumentTypeError("write letters, digits, dots and dashes, 32 at most")
    return text


def _only(text: str) -> tuple[str, int]:
    seed, slash, index = text.partition("/")
    if not slash or not index.isdecimal():
        raise argparse.ArgumentTypeError("write SEED/INDEX, such as 1/17")
    return _seed(seed), int(index)


def run(args: argparse.Namespace) -> int:
    """Run what is missing, then write, and print, the results of the whole seed."""
    from crashlend.lab.kernels import fetch
    from crashlend.lab.records import Records, json_text, machine_facts
    from crashlend.lab.soak.cases import draw
    from crashlend.lab.soak.report import counts, markdown, soak_data
    from crashlend.lab.soak.run import PASSED, RESULTS, Soak, latest, missing

    cases = [draw(*args.only)] if args.only else [draw(args.seed, n) for n in range(args.trials)]
    if args.dry_run:
        _list(cases)
        return EXIT_DONE
    explained = json.loads(args.explained.read_text()) if args.explained else {}
    records = Records(args.output / RESULTS)
    wanted = cases if args.only else _wanted(args, cases, missing(cases, records))
    kernels = {name: fetch(name, progress) for name in sorted({case.kernel for case in wanted})}
    soak = Soak(args.output, kernels, args.jobs, progress)
    try:
        soak.trials(wanted, records)
    except KeyboardInterrupt:
        progress("interrupted; the same command with --resume goes on")
        raise
    results = latest(cases, records)
    data = soak_data(results, records.lines, machine_facts())
    if args.report:
        write_file(args.report, markdown(data, explained).encode())
    if args.data:
        write_file(args.data, json_text(data).encode())
    if args.json:
        print_json(data)
    else:
        print(", ".join(f"{key}: {number}" for key, number in counts(results).items()))
    good = all(result["verdict"] == PASSED for result in results)
    return EXIT_DONE if good else EXIT_FAILED


def _wanted(
    args: argparse.Namespace, cases: Sequence[SoakCase], lacking: list[SoakCase]
) -> list[SoakCase]:
    """What is to be run of the cases, of which ``lacking`` have no verdict."""
    if not args.resume and len(lacking) < len(cases):
        raise UsageError(
            f"{args.output} has results of seed {args.seed}",
            f"{len(cases) - len(lacking)} of {len(cases)} trials",
            hint="--resume goes on; -o OTHER begins anew",
        )
    return lacking


def _list(cases: Sequence[SoakCase]) -> None:
    from dataclasses import asdict

    from crashlend.lab.soak.report import guest

    for case in cases:
        print(f"{case.name}: {guest(asdict(case))}")
