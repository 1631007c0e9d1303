# SPDX-License-Identifier: LGPL-2.1-or-later
"""Trials of what the capture makes of CPUs and memory."""

from __future__ import annotations

from crashlend.lab.spec import Command, Trial
from crashlend.sizes import MIB

SMALL = {
    "memory_bytes": 2048 * MIB,
    "cpus": 4,
    "lend_bytes": 512 * MIB,
    "cmdline": "nokaslr crashkernel=512M,cma crashkernel=160M",
    "timeout_seconds": 900.0,
    "poison": False,
    "scan": False,
    # on the CPU that firmware booted, or that one would be spared, and one CPU less come up
    "crash": "sysrq-cpu0",
}

SPEED = (
    Trial(
        "speed-auto-7.3",
        "crashlend builds the capture in the guest, finds that its makedumpfile is safe with threads, "
        "starts four CPUs by itself, and three threads write a dump that opens",
        "7.3",
        {**SMALL, "threads": 3, "build_in_guest": True},
        lender="cma",
        quick=False,
    ),
    Trial(
        "speed-old-6.1",
        "with a makedumpfile whose threads may corrupt the dump four CPUs write it without any",
        "6.1",
        {**SMALL, "threads": 0, "commands": (Command(("load", "--nr-cpus", "4")),)},
        quick=False,
    ),
    Trial(
        "speed-threads-7.3",
        "each compression and number of threads writes the same dump again; how long it takes",
        "7.3",
        {**SMALL, "threads": 3, "speed": True, "commands": (Command(("load", "--nr-cpus", "4")),)},
        lender="cma",
        quick=False,
    ),
)
