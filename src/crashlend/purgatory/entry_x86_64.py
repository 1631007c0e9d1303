# SPDX-License-Identifier: LGPL-2.1-or-later
"""The entry code of x86_64 as loaded: ``entry_x86_64.bin`` with its parameters filled in."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Optional

PM_TIMER_HZ = 3_579_545  # ACPI 6.5, 4.8.2.1
PIT_ROUND_SECONDS = 0.05
PARAMETERS = struct.Struct("<QQQQI")
PARAMETERS_OFFSET = 16


def entry_code(
    *, kernel_entry: int, boot_params: int, wait_seconds: float, pm_timer_port: Optional[int]
) -> bytes:
    """The code, ready to run at any page-aligned address inside the identity map.

    It waits ``wait_seconds`` (by the PM timer at ``pm_timer_port``, else by the PIT) and enters
    the kernel at ``kernel_entry`` with rsi = ``boot_params``.
    """
    code = bytearray(Path(__file__).with_name("entry_x86_64.bin").read_bytes())
    PARAMETERS.pack_into(
        code,
        PARAMETERS_OFFSET,
        kernel_entry,
        boot_params,
        round(wait_seconds * PM_TIMER_HZ),
        round(wait_seconds / PIT_ROUND_SECONDS),
        pm_timer_port or 0,
    )
    return bytes(code)
