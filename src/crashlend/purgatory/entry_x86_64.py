# SPDX-License-Identifier: LGPL-2.1-or-later
"""The entry code of x86_64 as loaded: ``entry_x86_64.bin`` with its parameters filled in."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Optional

PM_TIMER_HZ = 3_579_545  # ACPI 6.5, 4.8.2.1
PIT_ROUND_SECONDS = 0.05
TSC_HZ = 6_000_000_000  # no processor's TSC is faster
PARAMETERS = struct.Struct("<QQQQQQQQI")
PARAMETERS_OFFSET = 16
MEMORY_BYTES = 4096  # what it runs in: beyond the stored bytes are its IDT and its stack


def entry_code(
    *,
    kernel_entry: int,
    boot_params: int,
    wait_seconds: float,
    pm_timer_port: Optional[int],
    copy: tuple[int, int, int] = (0, 0, 0),
) -> bytes:
    """The code, ready to run at any page-aligned address inside the identity map.

    It needs ``MEMORY_BYTES`` there. It waits ``wait_seconds`` (by the PM timer at
    ``pm_timer_port``, else by the PIT, else by the TSC, which may take several times as long) and
    enters the kernel at ``kernel_entry`` with rsi = ``boot_params``. After the wait it copies
    ``copy`` = (from, to, bytes), rounded up to 8 bytes; both sides must be whole pages.
    """
    code = bytearray(Path(__file__).with_name("entry_x86_64.bin").read_bytes())
    PARAMETERS.pack_into(
        code,
        PARAMETERS_OFFSET,
        kernel_entry,
        boot_params,
        math.ceil(wait_seconds * PM_TIMER_HZ),
        math.ceil(wait_seconds / PIT_ROUND_SECONDS),
        math.ceil(wait_seconds * TSC_HZ),
        copy[0],
        copy[1],
        -(-copy[2] // 8),
        pm_timer_port or 0,
    )
    return bytes(code)
