# SPDX-License-Identifier: LGPL-2.1-or-later
"""Trials of what a dump with lent holes is good for: drgn reads it with Debian's debug symbols."""

from __future__ import annotations

from crashlend.lab.spec import Trial
from crashlend.sizes import MIB

ANALYZE = (
    Trial(
        "analyze-6.1",
        "drgn finds the tasks, modules and the stack that production had when it crashed, and lent "
        "memory is told of",
        "6.1",
        {
            "memory_bytes": 1536 * MIB,
            "lend_bytes": 256 * MIB,
            "cmdline": "crashkernel=128M",
            "timeout_seconds": 600.0,
            "analyze": True,
        },
        quick=False,
    ),
)
