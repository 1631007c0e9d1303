# SPDX-License-Identifier: LGPL-2.1-or-later
"""``crashlend lab conform``: whether a kernel's ``,cma`` does what upstream promises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crashlend.cli.output import print_json, print_rows, progress, write_file
from crashlend.errors import EXIT_DONE, EXIT_FAILED

if TYPE_CHECKING:
    import argparse

    from crashlend.lab.kernels import Kernel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``lab conform``."""
    parser.add_argument(
        "--kernel", default="7.3", metavar="NAME|PATH", help="a name of lab kernels, or a vmlinuz"
    )
    parser.add_argument(
        "--modules", type=Path, metavar="DIR", help="lib/modules/RELEASE of a vmlinuz given by path"
    )
    parser.add_argument("--json", action="store_true", help="print JSON (schema 1)")
    parser.add_argument(
        "--data", "-o", "--output", type=Path, metavar="FILE", help="write the JSON there"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write Markdown there")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the guests' consoles")


def run(args: argparse.Namespace) -> int:
    """Boot its guests; 0 when all conforms, or is a known defect that crashlend copes with."""
    from crashlend.lab.conform.page import markdown
    from crashlend.lab.conform.run import conform

    data = conform(_kernel(args), say=progress, keep=args.keep)
    if args.data:
        write_file(args.data, json.dumps(data, indent=1).encode() + b"\n")
    if args.report:
        write_file(args.report, markdown(data).encode())
    if args.json:
        print_json(data)
    else:
        _show(data)
    return EXIT_DONE if data["good"] else EXIT_FAILED


def _kernel(args: argparse.Namespace) -> Kernel:
    from crashlend.lab.kernels import fetch, from_files

    if "/" not in args.kernel:
        return fetch(args.kernel, progress)
    return from_files(Path(args.kernel), args.modules or Path(args.kernel).parent)


def _show(data: dict[str, Any]) -> None:
    print(f"Linux {data['release']} {data['feature'].replace('`', '')}")
    for one in data["repeats"]:
        print(f"died and was booted again: {one['words']}: {one['why']}")
    print_rows(
        [(check["check"], f"{check['verdict']}: {check['seen']}") for check in data["checks"]]
    )
