# SPDX-License-Identifier: LGPL-2.1-or-later
"""Build the capture initramfs, and list what is in it and why."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING

from crashlend import config
from crashlend.capture.initramfs import build_initramfs
from crashlend.capture.makedumpfile_probe import look_at
from crashlend.cli.hosts import CAPTURE, capture_spec, settings_from
from crashlend.cli.output import print_json, write_file
from crashlend.sizes import mib

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON (schema 1)")
    parser.add_argument(
        "--output", "-o", type=Path, metavar="FILE", help="write it; without, only list it"
    )
    parser.add_argument("--release", default=platform.release(), help="for which kernel")
    config.add_flags(parser, CAPTURE)


def run(args: argparse.Namespace) -> int:
    root = Path("/")
    built = build_initramfs(root, capture_spec(settings_from(args), args.release, root))
    known = look_at(root, args.release)
    notes = known.notes if known else ()
    if args.output:
        write_file(args.output, built.data)
    if args.json:
        print_json(
            {
                "schema": 1,
                "bytes": len(built.data),
                "unpacked_bytes": built.unpacked_bytes,
                "compression": built.compression,
                "notes": notes,
                "entries": [
                    {"path": e.path, "bytes": e.bytes, "why": e.why} for e in built.entries
                ],
            }
        )
        return 0
    for entry in built.entries:
        print(f"{entry.bytes:>9}  {entry.path:<40} {entry.why}")
    print(
        f"{mib(len(built.data))} ({built.compression}), {mib(built.unpacked_bytes)} unpacked"
        + (f", written to {args.output}" if args.output else "")
    )
    for note in notes:
        print(f"note: {note}")
    return 0
