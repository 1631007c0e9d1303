# SPDX-License-Identifier: LGPL-2.1-or-later
"""``crashlend lab capture-bench``: how quick a capture is, beside kdump-tools, by target and threads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from crashlend.cli.output import print_json, progress, write_file
from crashlend.cli.run_flags import count
from crashlend.errors import EXIT_DONE

if TYPE_CHECKING:
    import argparse

DIRECTORY = Path("build/capture-bench")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``lab capture-bench``."""
    parser.add_argument(
        "--rounds", type=count, default=3, metavar="N", help="runs of each that is compared"
    )
    parser.add_argument(
        "--most",
        type=int,
        metavar="N",
        help="run N guests at most (0: none), and report what there is",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=DIRECTORY,
        metavar="DIR",
        help="each single result, for the next run (default: %(default)s)",
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write Markdown there")
    parser.add_argument("--data", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep consoles")
    parser.add_argument("--json", action="store_true", help="print JSON (schema 1)")


def run(args: argparse.Namespace) -> int:
    """Run what is missing, then print, and write, all of it."""
    from crashlend.lab.records import Records
    from crashlend.lab.speed.report import markdown
    from crashlend.lab.speed.run import Bench

    records = Records(args.output / "results.jsonl")
    bench = Bench(records, args.rounds, args.most, args.keep, progress)
    data = bench.results()
    text = markdown(data)
    if args.data:
        write_file(args.data, (json.dumps(data, indent=1) + "\n").encode())
    if args.report:
        write_file(args.report, text.encode())
    print_json(data) if args.json else print(text, end="")
    return EXIT_DONE
