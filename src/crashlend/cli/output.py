# SPDX-License-Identifier: LGPL-2.1-or-later
"""Printing: tables, errors and progress. Colour only on a terminal, and never with NO_COLOR."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import TYPE_CHECKING, TextIO

from crashlend.system.state import write_atomically

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

BOLD, DIM, RED, GREEN, YELLOW, BLUE, RESET = (
    "\033[1m",
    "\033[2m",
    "\033[31m",
    "\033[32m",
    "\033[33m",
    "\033[34m",
    "\033[0m",
)


def styled(text: str, style: str, stream: TextIO | None = None) -> str:
    """``text`` in a style where the stream is a terminal that wants colour."""
    stream = stream or sys.stdout
    if "NO_COLOR" in os.environ or not stream.isatty():
        return text
    return f"{style}{text}{RESET}"


def complain(who: str, message: str, hint: str) -> None:
    """One line of error and, where there is something to do, one of advice."""
    print(f"{who}: {printable(message)}", file=sys.stderr)
    if hint:
        print(f"hint: {printable(hint)}", file=sys.stderr)


def printable(text: str) -> str:
    """Whatever bytes a file name or a command line held, as one line that a terminal can show."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def progress(message: str) -> None:
    """One line of progress on stderr; stdout is for the answer alone.

    Never raises: who listens must not decide what is done to memory.
    """
    with contextlib.suppress(OSError, ValueError):
        print(styled(f"  {printable(message)}", DIM, sys.stderr), file=sys.stderr, flush=True)


def print_json(value: object) -> None:
    """The answer for programs."""
    print(json.dumps(value, indent=2, ensure_ascii=True))


def write_file(path: Path, data: bytes) -> None:
    """Write an answer to a file the user named: atomically, but never in a device's place."""
    if path.exists() and not path.is_file():
        with path.open("wb") as stream:
            stream.write(data)
        return
    write_atomically(path.resolve(), data)


def print_rows(rows: Sequence[tuple[str, str]]) -> None:
    """A table of two columns."""
    width = max((len(left) for left, _ in rows), default=0)
    for left, right in rows:
        print(f"{left:<{width}}  {printable(right)}")


def can_show(character: str) -> bool:
    """Whether stdout's encoding has the character."""
    try:
        character.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
