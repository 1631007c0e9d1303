# SPDX-License-Identifier: LGPL-2.1-or-later
"""The flags that all long runs of the lab share: how many at a time, and where results go."""

from __future__ import annotations

import argparse
from pathlib import Path


def count(text: str) -> int:
    """A number from 1 on, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def add_run_flags(parser: argparse.ArgumentParser, directory: Path, *, keeps: str) -> None:
    """``keeps``: what is in the directory of ``-o``, for people."""
    parser.add_argument("--jobs", type=count, default=2, metavar="J", help="guests at a time, here")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=directory,
        metavar="DIR",
        help=f"{keeps} (default: %(default)s)",
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write Markdown there")
    parser.add_argument("--data", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--json", action="store_true", help="print JSON (schema 1)")
