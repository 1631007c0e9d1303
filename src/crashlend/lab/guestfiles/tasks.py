# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs in the production guest: what the kernel says of itself right before it crashes. Python 3.9."""

from __future__ import annotations

import os
from pathlib import Path

PF_KTHREAD = 0x00200000  # include/linux/sched.h


def tasks(proc: Path = Path("/proc")) -> list[tuple[int, str, bool]]:
    """Of each process: PID, name, and whether it is a kernel thread."""
    found = []
    for entry in proc.iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            stat = (entry / "stat").read_text(errors="replace")
        except OSError:  # it has ended meanwhile
            continue
        # proc(5): PID (NAME) STATE PPID PGRP SESSION TTY TPGID FLAGS; a name may hold anything
        head, _, rest = stat.rpartition(")")
        name = head.partition("(")[2]
        found.append((int(entry.name), name, bool(int(rest.split()[6]) & PF_KTHREAD)))
    return sorted(found)


def kernel() -> dict[str, object]:
    """Who runs, which modules are there, which kernel it is and with which words."""
    modules = Path("/proc/modules").read_text().splitlines()
    return {
        "pid": os.getpid(),
        "tasks": tasks(),
        "modules": sorted(line.split()[0] for line in modules),
        "release": os.uname().release,
        "cmdline": Path("/proc/cmdline").read_text().strip(),
    }
