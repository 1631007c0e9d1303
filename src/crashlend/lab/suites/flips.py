# SPDX-License-Identifier: LGPL-2.1-or-later
"""Trials that flip bits of the loaded image before purgatory runs."""

from __future__ import annotations

from typing import Any

from crashlend.lab.spec import Command, Trial
from crashlend.sizes import MIB


def _flips(name: str, proves: str, **spec: Any) -> Trial:
    return Trial(
        f"flips-{name}",
        proves,
        "6.1",
        {
            "memory_bytes": 1024 * MIB,
            "lend_bytes": 256 * MIB,
            "lender": "movable",
            "dma_quiesce": "wait=0",
            "poison": False,
            "scan": False,
            "timeout_seconds": 600.0,
            **spec,
        },
        quick=False,
    )


FLIPS = (
    _flips(
        "reserved-6.1",
        "24 bits flipped in each segment, one at a time: each resets the machine and says why",
        cmdline="crashkernel=128M",
        flips=24,
    ),
    _flips(
        "lent-6.1",
        "the same where purgatory copies the kernel into lent memory",
        cmdline="crashkernel=20M",
        placement="lent",
        flips=6,
    ),
    _flips(
        "boot-6.1",
        "on_mismatch = boot: a wrong digest is told and costs no dump",
        cmdline="crashkernel=128M",
        flips=1,
        commands=(Command(("load", "--on-mismatch", "boot")),),
    ),
)
