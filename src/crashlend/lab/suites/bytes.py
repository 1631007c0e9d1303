# SPDX-License-Identifier: LGPL-2.1-or-later
"""Trials that prove a dump to the byte: raw /proc/vmcore against memory at purgatory's entry."""

from __future__ import annotations

from typing import Any

from crashlend.lab.spec import Trial
from crashlend.sizes import GIB, MIB

# lent memory above 4 GiB, RAM in two pieces
HIGH: dict[str, Any] = {"memory_bytes": 4 * GIB}
# user space leaves half of what is free, some 130 MiB, in the kernel's range
LARGE_CMA: dict[str, Any] = {"memory_bytes": 1792 * MIB, "lend_bytes": None}


def _bytes(
    name: str, proves: str, kernel: str, lender: str, *, quick: bool = False, **spec: Any
) -> Trial:
    return Trial(
        f"bytes-{name}-{kernel}",
        f"{proves}: not one byte of /proc/vmcore differs, and flipped bits are found",
        kernel,
        {
            "memory_bytes": 1280 * MIB,
            "lend_bytes": 256 * MIB,
            "lender": lender,
            "proof": True,
            "timeout_seconds": 600.0,
            **spec,
        },
        lender=lender,
        quick=quick,
    )


BYTES = (
    _bytes("movable", "movable blocks", "6.1", "movable", quick=True, cmdline="crashkernel=128M"),
    _bytes(
        "movable-lent",
        "the same where the crash kernel unpacks itself in lent memory, above 4 GiB, and two CPUs",
        "6.1",
        "movable",
        cmdline="crashkernel=20M",
        placement="lent",
        cpus=2,
        crash="sysrq-cpu1",
        **HIGH,
    ),
    _bytes(
        "zone",
        "clean runs of a zone of movablecore=",
        "6.1",
        "movable-zone",
        cmdline="movablecore=500M crashkernel=128M",
        lend_bytes=192 * MIB,  # early boot's data is in the zone, too
    ),
    _bytes(
        "zone-lent",
        "the same where the crash kernel unpacks itself in one, by the newest kernel",
        "7.3",
        "movable-zone",
        cmdline="movablecore=500M crashkernel=20M",
        lend_bytes=192 * MIB,
        placement="lent",
    ),
    _bytes(
        "cma",
        "the kernel's own ,cma range",
        "7.3",
        "cma",
        cmdline="crashkernel=768M,cma crashkernel=128M",
        **LARGE_CMA,
    ),
    _bytes(
        "cma-lent",
        "the same where the crash kernel unpacks itself in it",
        "7.3",
        "cma",
        cmdline="crashkernel=768M,cma crashkernel=20M",
        **LARGE_CMA,
        placement="lent",
    ),
)
