# SPDX-License-Identifier: LGPL-2.1-or-later
"""What crashlend knows of a host. :func:`read_facts` is the only reader; Facts is plain data.

What could not be read is None or empty *and* stands in :attr:`Facts.missing` with the reason:
it is never taken for zero. Addresses and sizes are bytes, ranges half-open.
"""

from __future__ import annotations

from crashlend.facts.data import (
    CmaEvidence,
    CrashNote,
    EndlessWriter,
    Facts,
    FirmwareRange,
    HugePool,
    KernelText,
    LentPages,
    MemoryBlock,
    NarrowDevice,
    PciFunction,
    Refusal,
    Watchdog,
)
from crashlend.facts.own import STATE_PATH
from crashlend.facts.read import read_facts

__all__ = (
    "STATE_PATH",
    "CmaEvidence",
    "CrashNote",
    "EndlessWriter",
    "Facts",
    "FirmwareRange",
    "HugePool",
    "KernelText",
    "LentPages",
    "MemoryBlock",
    "NarrowDevice",
    "PciFunction",
    "Refusal",
    "Watchdog",
    "read_facts",
)
