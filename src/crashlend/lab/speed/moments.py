# SPDX-License-Identifier: LGPL-2.1-or-later
"""When what happened, from a console as it grows: the only clock that both sides of a crash share.

The times are the host's, of when the line was seen. Whoever captures says what it does on the
console: each has its own patterns.
"""

from __future__ import annotations

import re
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from typing_extensions import Self

PANIC = "Kernel panic - not syncing"
LOOK_SECONDS = 0.05

# What is looked for after the panic: init's first words, and so on.
CRASHLEND = {
    "init": r"crashlend: crash kernel \S+ is up",
    # said when dmesg.txt and a first report are on the disk
    "dmesg": r"crashlend: makedumpfile ",
    "saved": r"crashlend: saved [0-9]+ bytes",
    "left": r"reboot: Restarting system",
}
KDUMP_TOOLS = {
    # initramfs-tools
    "init": r"Loading, please wait",
    "dmesg": r"saved dmesg content in",
    "saved": r"saved vmcore in",
    "left": r"reboot: Restarting system",
}


class Line(NamedTuple):
    """A line of the console, and when it was whole, in seconds of the host's clock."""

    at: float
    text: str


def moments(lines: Iterable[Line], patterns: Mapping[str, str]) -> dict[str, float]:
    """Seconds from the panic to the first line of each pattern after it; those that came.

    Whether one comes before another is left to who captures.
    """
    began: float | None = None
    found: dict[str, float] = {}
    for line in lines:
        if began is None:
            began = line.at if PANIC in line.text else None
            continue
        for name, pattern in patterns.items():
            if name not in found and re.search(pattern, line.text):
                found[name] = round(line.at - began, 2)
    return found


class Follower:
    """Reads a console while it is written; use it as a context, then ask for ``lines``."""

    def __init__(self, console: Path) -> None:
        self.console = console
        self.lines: list[Line] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        self.console.unlink(missing_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._thread.join()

    def _follow(self) -> None:
        at, rest = 0, b""
        while True:
            last = self._over.is_set()  # what was written before that is read below
            try:
                with self.console.open("rb") as file:
                    file.seek(at)
                    data = file.read()
            except OSError:
                data = b""
            now = time.monotonic()
            at += len(data)
            *whole, rest = (rest + data).split(b"\n")
            self.lines += [Line(now, line.decode(errors="replace").strip()) for line in whole]
            if last:
                return
            self._over.wait(LOOK_SECONDS)
