# SPDX-License-Identifier: LGPL-2.1-or-later
"""Trials of the exact size: sixty-four guests, and the kernel of each judges the plan."""

from __future__ import annotations

from typing import Any

from crashlend.lab.qemu import CPU_MODEL
from crashlend.lab.spec import Trial
from crashlend.sizes import GIB, MIB

# processors with 2 MiB pages alone, with 1 GiB pages, and with 5-level page tables as well
PROCESSORS = {"qemu64": "qemu64", "gb": "qemu64,+pdpe1gb", "max": CPU_MODEL}


def exact(kernel: str, shape: str, processor: str, **spec: Any) -> Trial:
    """A trial that asks the kernel for the smallest reservation it takes, and crashes nothing."""
    return Trial(
        f"exact-{kernel}-{shape}-{processor}",
        "the kernel takes the image in the bytes that were planned, and in none less",
        kernel,
        {
            "memory_bytes": 4 * GIB,
            "cmdline": "crashkernel=64M",
            "lend_bytes": 128 * MIB,
            "placement": "lent",
            "cpu_model": PROCESSORS[processor],
            "probe": True,
            "crash": "none",
            **spec,
        },
        quick=False,
    )


EXACT_KERNELS = ("5.10", "6.1", "6.12", "7.3")
EXACT = (
    *(
        exact(kernel, f"{gib}g", processor, memory_bytes=gib * GIB)
        for kernel in EXACT_KERNELS
        for gib in (2, 4, 12)
        for processor in PROCESSORS
    ),
    *(
        exact(kernel, shape, processor, **spec)
        for kernel in EXACT_KERNELS
        for shape, processor, spec in (
            ("dimms", "qemu64", {"memory_bytes": 2 * GIB, "dimms": (3 * GIB,)}),
            ("dimms", "max", {"memory_bytes": 2 * GIB, "dimms": (3 * GIB,)}),
            ("uefi", "qemu64", {"firmware": "uefi", "machine": "q35"}),
            ("uefi", "max", {"firmware": "uefi", "machine": "q35"}),
            ("high", "qemu64", {"memory_bytes": 6 * GIB, "cmdline": "crashkernel=64M,high"}),
            ("high", "max", {"memory_bytes": 6 * GIB, "cmdline": "crashkernel=64M,high"}),
            ("reserved", "max", {"cmdline": "crashkernel=128M", "placement": "reserved"}),
        )
    ),
)
