# SPDX-License-Identifier: LGPL-2.1-or-later
"""``crashlend lab bench``: what must be reserved, and how long loading and lending take."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crashlend.cli.output import print_json, progress, write_file
from crashlend.errors import EXIT_DONE

if TYPE_CHECKING:
    import argparse

DIRECTORY = Path("build/bench")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``lab bench``."""
    parser.add_argument(
        "--kernel", action="append", metavar="NAME", help="which (default: 6.1 and 7.3); repeatable"
    )
    parser.add_argument("--quick", action="store_true", help="one look each, no confirmation")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="kernels at a time")
    parser.add_argument(
        "--results",
        type=Path,
        default=DIRECTORY,
        metavar="DIR",
        help="each single result, for the next run (default: %(default)s)",
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write Markdown there")
    parser.add_argument(
        "--quote", type=Path, metavar="FILE", help="renew what this Markdown file quotes of it"
    )
    parser.add_argument("--data", type=Path, metavar="FILE", help="write the raw data there")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep disks, consoles and dumps")
    parser.add_argument("--json", action="store_true", help="print JSON (schema 1)")


def run(args: argparse.Namespace) -> int:
    """Run what is missing, then print, and write, all of it."""
    from crashlend.lab.bench.report import markdown, quoted
    from crashlend.lab.bench.run import KERNELS, Bench, Options, bench_data
    from crashlend.lab.kernels import fetch
    from crashlend.lab.records import Records

    options = Options.quick(args.keep) if args.quick else Options(keep=args.keep)
    kernels = [fetch(name, progress) for name in args.kernel or KERNELS]

    def one(index: int) -> dict[str, Any]:
        kernel = kernels[index]
        records = Records(args.results / f"{kernel.release}.jsonl")
        return Bench(kernel, options, records, progress).results()

    with ThreadPoolExecutor(max(1, args.jobs)) as pool:
        results = list(pool.map(one, range(len(kernels))))
    data = bench_data(options, results)
    text = markdown(data)
    if args.data:
        write_file(args.data, (json.dumps(data, indent=1) + "\n").encode())
    if args.output:
        write_file(args.output, text.encode())
    if args.quote:
        write_file(args.quote, quoted(args.quote.read_text(), data).encode())
    print_json(data) if args.json else print(text, end="")
    return EXIT_DONE
