# SPDX-License-Identifier: LGPL-2.1-or-later
"""Build the capture initramfs, list what is in it, and explain why."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING

from crashlend import config
from crashlend.capture import cache
from crashlend.capture.initramfs import build_initramfs
from crashlend.capture.makedumpfile_probe import look_at
from crashlend.cli.hosts import CAPTURE, capture_spec, settings_from, target_notes
from crashlend.cli.output import print_json, write_file
from crashlend.errors import UsageError
from crashlend.sizes import mib

if TYPE_CHECKING:
    import argparse

    from crashlend.capture.contents import Entry
    from crashlend.capture.initramfs import Initramfs

BUILD, LIST, EXPLAIN = "build", "list", "explain"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        nargs="?",
        default=LIST,
        choices=(BUILD, LIST, EXPLAIN),
        help="build it into --output; list its files (the default); or explain each of them",
    )
    parser.add_argument("--json", action="store_true", help="print JSON (schema 1)")
    parser.add_argument(
        "--output", "-o", type=Path, metavar="FILE", help="write it; without, only list it"
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        help="for each file the reasons that lead to it, from this host's hardware on",
    )
    parser.add_argument("--release", default=platform.release(), help="for which kernel")
    config.add_flags(parser, CAPTURE)


def run(args: argparse.Namespace) -> int:
    if args.action == BUILD and not args.output:
        raise UsageError("cannot build", "no --output", hint="name a file: --output FILE")
    root = Path("/")
    spec = capture_spec(settings_from(args), args.release, root)
    built = build_initramfs(root, spec, cache.DIRECTORY)
    known = look_at(root, args.release)
    notes = (*(known.notes if known else ()), *target_notes(spec))
    if args.output:
        write_file(args.output, built.data)
    if args.json:
        print_json(answer_json(built, notes))
        return 0
    if args.action != BUILD:
        explain = args.explain or args.action == EXPLAIN
        for entry in built.entries:
            print(f"{entry.bytes:>9}  {entry.path:<40} {'' if explain else entry.why}".rstrip())
            if explain:
                print("\n".join(explanation(entry)))
    print(
        f"{mib(len(built.data))} ({built.compression}), {mib(built.unpacked_bytes)} unpacked"
        + (f", written to {args.output}" if args.output else "")
    )
    for note in notes:
        print(f"note: {note}")
    return 0


def explanation(entry: Entry) -> list[str]:
    """One line for each reason, the first one first, each further in than the last."""
    reasons = (*entry.chain, entry.why)
    return [f"{' ' * (13 + 2 * depth)}{reason}" for depth, reason in enumerate(reasons)]


def answer_json(built: Initramfs, notes: tuple[str, ...]) -> dict[str, object]:
    """What ``initramfs --json`` answers; ``chain`` are the reasons before ``why``."""
    return {
        "schema": 1,
        "bytes": len(built.data),
        "unpacked_bytes": built.unpacked_bytes,
        "compression": built.compression,
        "notes": notes,
        "entries": [
            {"path": e.path, "bytes": e.bytes, "why": e.why, "chain": e.chain}
            for e in built.entries
        ],
    }
