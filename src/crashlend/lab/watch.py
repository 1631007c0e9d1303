# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether a crash kernel is lost, from the console: trials that lose many need not wait for each.

A crash kernel that panics resets after ten seconds; one that dies before its console is there
hangs for ever, because panic= is read late and Debian's CONFIG_PANIC_TIMEOUT is 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable

if TYPE_CHECKING:
    from pathlib import Path

PANIC = "Kernel panic - not syncing"
PRODUCTIONS_OWN = f"{PANIC}: sysrq triggered crash"
# from the panic to the next words 10 s under TCG, a dump 5 s; several times that on a busy machine
SILENCE_SECONDS = 90.0


def crash_kernel_lines(console: str, own: str = PRODUCTIONS_OWN) -> list[str] | None:
    """The whole lines that follow production's panic, without time stamps; None before it.

    ``own`` is how production dies, as crashes.py has it.
    """
    _, crashed, after = console.partition(own)
    if not crashed:
        return None
    *whole, _unfinished = after.split("\n")
    return [re.sub(r"^\[ *[0-9.]+\] ", "", line).strip() for line in whole]


def last_panic(lines: list[str]) -> str:
    """The last panic among them (not "---[ end Kernel panic"); empty when there is none."""
    return next((line for line in reversed(lines) if line.startswith(PANIC)), "")


@dataclass
class Watch:
    """Looks at a console again and again; ``clock`` is in seconds, ``own`` as above."""

    console: Path
    clock: Callable[[], float]
    silence_seconds: float = SILENCE_SECONDS
    own: str = PRODUCTIONS_OWN
    seen: int = -1
    since: float = 0.0

    def is_lost(self) -> str:
        """Why the crash kernel is lost; empty while it may live, or production has not crashed."""
        try:
            text = self.console.read_text(errors="replace")
        except OSError:
            return ""
        lines = crash_kernel_lines(text, self.own)
        if lines is None:
            return ""
        panic = last_panic(lines)
        if panic:
            return panic
        if len(text) != self.seen:
            self.seen, self.since = len(text), self.clock()
        if self.clock() - self.since >= self.silence_seconds:
            return f"silent for {self.silence_seconds:g} s"
        return ""
