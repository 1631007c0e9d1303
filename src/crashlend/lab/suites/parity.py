# SPDX-License-Identifier: LGPL-2.1-or-later
"""Trials of what the crash kernel has of its machine: EFI, DMI, a way to reset, CPUs."""

from __future__ import annotations

from typing import Any

from crashlend.lab.parity import LOOK, WARM_RESET
from crashlend.lab.spec import Command, Trial
from crashlend.sizes import MIB

SMALL = {
    "memory_bytes": 1536 * MIB,
    "lend_bytes": 256 * MIB,
    "cmdline": "crashkernel=160M",
    "timeout_seconds": 600.0,
    "poison": False,
    "scan": False,
    "parity": True,
}
UEFI = {"firmware": "uefi", "machine": "q35"}


def _parity(name: str, proves: str, kernel: str, *words: str, **spec: Any) -> Trial:
    """Production tells what it has, then the crash kernel is loaded with these words."""
    commands = (LOOK, Command(("load", *words)))
    return Trial(
        f"parity-{name}-{kernel}",
        proves,
        kernel,
        {**SMALL, "commands": commands, **spec},
        quick=False,
    )


def _cpus(name: str, proves: str, kernel: str, cpu: int, *words: str, **spec: Any) -> Trial:
    return _parity(
        name, proves, kernel, "--nr-cpus", "4", *words, cpus=4, crash=f"sysrq-cpu{cpu}", **spec
    )


PARITY = (
    _parity(
        "uefi",
        "the crash kernel of a UEFI host reads and writes EFI variables, has DMI data, and resets the "
        "machine by EFI",
        "6.1",
        *("--append", "reboot=efi,warm"),
        devices=WARM_RESET,
        **UEFI,
    ),
    _parity("uefi", "the same by the newest kernel, which resets as it is used to", "7.3", **UEFI),
    *(
        _cpus(
            "cpus",
            "CPU 3 of four panics: the crash kernel starts all but the one that firmware booted",
            kernel,
            3,
        )
        for kernel in ("6.1", "7.3")
    ),
)
