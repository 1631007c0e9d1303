# SPDX-License-Identifier: LGPL-2.1-or-later
"""The reader of PCI functions: which there are, what drives them, whether they may write memory."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Optional

from crashlend.facts.data import NarrowDevice, PciFunction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crashlend.facts.reader import Reader

BASE = "/sys/bus/pci/devices"
ADDRESS = re.compile(r"([0-9a-f]{4,8}):[0-9a-f]{2}:[01][0-9a-f]\.[0-7]")
# PCI Local Bus Specification 3.0, 6.1: what every function has, readable without root
HEADER_BYTES = 64
COMMAND_AT, BUS_MASTER = 4, 4
HEADER_TYPE_AT, MANY_FUNCTIONS = 0x0E, 0x80


def pci_functions(reader: Reader) -> tuple[PciFunction, ...]:
    """All functions that sysfs names, by address."""
    found = (_function(reader, name) for name in reader.files.names(BASE))
    return tuple(one for one in found if one is not None)


def _function(reader: Reader, address: str) -> Optional[PciFunction]:
    if not ADDRESS.fullmatch(address):
        return None
    words = event_words(reader, f"{BASE}/{address}/uevent")
    # hexadecimal without leading zeros: 10802 is class 01
    kind = words.get("PCI_CLASS", "")
    if not re.fullmatch(r"[0-9A-Fa-f]{1,6}", kind):
        return None
    header = _header(reader, address)
    physical = ""
    if reader.files.exists(f"{BASE}/{address}/physfn"):
        other = event_words(reader, f"{BASE}/{address}/physfn/uevent")
        physical = other.get("PCI_SLOT_NAME", "unknown")
    known = len(header) == HEADER_BYTES and header[:2] != b"\xff\xff"
    return PciFunction(
        address=address,
        class_code=int(kind, 16),
        driver=words.get("DRIVER", ""),
        # Linux takes a function with this header for a bridge, whatever its class says
        bridge=known and header[HEADER_TYPE_AT] & ~MANY_FUNCTIONS in (1, 2),
        bus_master=bool(header[COMMAND_AT] & BUS_MASTER) if known else None,
        virtual_of=physical,
    )


def _header(reader: Reader, address: str) -> bytes:
    """The standard header; empty where the function sleeps: a read would wake it.

    pci_read_config() in drivers/pci/pci-sysfs.c takes a function out of D3cold.
    """
    if reader.text(f"{BASE}/{address}/power_state", optional=True) == "D3cold":
        return b""
    return reader.raw(f"{BASE}/{address}/config", optional=True, limit=HEADER_BYTES)


def event_words(reader: Reader, path: str) -> dict[str, str]:
    """A uevent file as a dict; empty where there is none."""
    text = reader.text(path, optional=True)
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def narrow_devices(reader: Reader, functions: Sequence[PciFunction]) -> tuple[NarrowDevice, ...]:
    """Storage (class 01) and network (02) functions whose driver set a mask of 32 bits or less.

    Without a driver dma_mask_bits reads 32 and says nothing (drivers/pci/pci-sysfs.c).
    """
    out = []
    for one in functions:
        if not one.driver or one.class_code >> 16 not in (1, 2):
            continue
        bits = reader.decimal(f"{BASE}/{one.address}/dma_mask_bits")
        if bits is not None and bits <= 32:
            out.append(NarrowDevice(one.address, one.driver, bits))
    return tuple(out)
