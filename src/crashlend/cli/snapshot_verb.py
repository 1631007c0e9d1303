# SPDX-License-Identifier: LGPL-2.1-or-later
"""Write the facts of this host to a file, for use elsewhere with --root."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from crashlend.cli.output import write_file
from crashlend.hostfiles import open_host
from crashlend.snapshot import take_snapshot

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="the archive to write (tar.gz)")
    parser.add_argument(
        "--census", action="store_true", help="count what the pages of memory blocks hold (root)"
    )


def run(args: argparse.Namespace) -> int:
    data, facts = take_snapshot(open_host(Path("/")), census=args.census)
    write_file(args.file, data)
    print(f"{args.file}: {len(data)} bytes, the facts of {facts.release}")
    for path, why in facts.missing.items():
        print(f"note: without {path}: {why}")
    return 0
