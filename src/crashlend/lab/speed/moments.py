# SPDX-License-Identifier: LGPL-2.1-or-later
"""When what happened, from a console as it grows: the only clock that both sides of a crash share.

Each line has two times: the host's clock when it was seen, and how much time QEMU has had on the host's
CPUs until then. On a busy machine the first says little; the second is the work that was done, whoever
else wanted the CPUs, and knows nothing of waiting. Whoever captures says what it does on the console:
each has its own patterns.
"""

from __future__ import annotations

import os
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
    """A line of the console, and when it was whole: seconds of the host's clock, and of its CPUs."""

    at: float
    text: str
    cpu: float = 0.0


def moments(
    lines: Iterable[Line], patterns: Mapping[str, str], clock: str = "at"
) -> dict[str, float]:
    """Seconds from the panic to the first line of each pattern after it; those that came.

    ``clock`` is that of :class:`Line` ("at" or "cpu").

    Whether one comes before another is left to who captures.
    """
    began: float | None = None
    found: dict[str, float] = {}
    for line in lines:
        if began is None:
            began = getattr(line, clock) if PANIC in line.text else None
            continue
        for name, pattern in patterns.items():
            if name not in found and re.search(pattern, line.text):
                found[name] = round(getattr(line, clock) - began, 2)
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
            now, cpu = time.monotonic(), cpu_seconds_of_children() if data else 0.0
            at += len(data)
            *whole, rest = (rest + data).split(b"\n")
            texts = [line.decode(errors="replace").strip() for line in whole]
            self.lines += [Line(now, text, cpu) for text in texts]
            if last:
                return
            self._over.wait(LOOK_SECONDS)


def cpu_seconds_of_children() -> float:
    """What the children of this process have had of the CPUs so far; QEMU is the only one that counts.

    From proc(5): /proc/PID/task/TID/children, and utime and stime in /proc/PID/stat.
    """
    total = 0
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/children", encoding="ascii") as file:
                children = file.read().split()
        except OSError:
            continue  # the thread has ended
        for child in children:
            try:
                with open(f"/proc/{child}/stat", encoding="utf-8", errors="replace") as file:
                    fields = file.read().rpartition(")")[2].split()
            except OSError:
                continue
            total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")
