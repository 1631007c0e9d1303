# SPDX-License-Identifier: LGPL-2.1-or-later
"""Text files of /proc and /sys, read as bytes with bounds. Inclusive ends become half-open."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Optional

from crashlend.errors import FormatError


@dataclass(frozen=True)
class Resource:
    """One line of /proc/iomem: ``[start, end)``, its name and its depth in the tree."""

    start: int
    end: int
    name: str
    depth: int


@dataclass(frozen=True)
class Zone:
    """One zone of /proc/zoneinfo; counts in pages, ``start_pfn`` as the kernel says it.

    ``cma`` is None where the kernel does not count it: before commit 3c381db1fac8, Linux 5.12.
    """

    node: int
    name: str
    start_pfn: int
    spanned: int
    present: int
    managed: int
    free: int
    cma: Optional[int] = None


_IOMEM = re.compile(rb"^( *)([0-9a-f]+)-([0-9a-f]+) : (.*)$")


def parse_iomem(data: bytes) -> tuple[Resource, ...]:
    """Read /proc/iomem (kernel/resource.c: r_show); FormatError names a line that is none.

    Addresses are all zero for those who lack CAP_SYS_ADMIN: the caller must check
    :func:`addresses_hidden`.
    """
    out = []
    for number, line in enumerate(data.splitlines(), 1):
        match = _IOMEM.match(line)
        if not match:
            raise FormatError("/proc/iomem", f"line {number} is not START-END : NAME")
        indent, start, end, name = match.groups()
        first, last = int(start, 16), int(end, 16)
        if last < first or last >= 1 << 64:
            raise FormatError("/proc/iomem", f"line {number} has an impossible range")
        out.append(Resource(first, last + 1, name.decode("utf-8", "replace"), len(indent) // 2))
    return tuple(out)


def addresses_hidden(resources: tuple[Resource, ...]) -> bool:
    """Whether the kernel hid the addresses (every line reads 00000000-00000000)."""
    return bool(resources) and all(r.start == 0 and r.end == 1 for r in resources)


def parse_zoneinfo(data: bytes) -> tuple[Zone, ...]:
    """Read /proc/zoneinfo (mm/vmstat.c: zoneinfo_show_print); unknown lines are passed over."""
    zones = []
    for section in re.split(rb"(?m)^(?=Node \d+, zone)", data):
        head = re.match(rb"Node (\d+), zone +(\S+)", section)
        if not head:
            continue
        counts = {
            key: int(found.group(1)) if found else 0
            for key, found in (
                (key, re.search(rb"(?m)^ +" + pattern + rb":? +(\d+)$", section))
                for key, pattern in (
                    ("start_pfn", rb"start_pfn"),
                    ("spanned", rb"spanned"),
                    ("present", rb"present"),
                    ("managed", rb"managed"),
                    ("free", rb"pages free"),
                )
            )
        }
        name = head.group(2).decode("ascii", "replace")
        cma = re.search(rb"(?m)^ +cma +(\d+)$", section)
        zones.append(
            Zone(int(head.group(1)), name, **counts, cma=int(cma.group(1)) if cma else None)
        )
    return tuple(zones)


def parse_meminfo(data: bytes) -> dict[str, int]:
    """Read /proc/meminfo: names to bytes (counts without a unit stay counts)."""
    out = {}
    for line in data.splitlines():
        match = re.match(rb"^([^:]+): +(\d+)( kB)?$", line)
        if match:
            name = match.group(1).decode("ascii", "replace")
            out[name] = int(match.group(2)) * (1024 if match.group(3) else 1)
    return out


def parse_crash_cma_ranges(data: bytes) -> tuple[tuple[int, int], ...]:
    """Read /sys/kernel/kexec/crash_cma_ranges: a ``%08llx-%08llx`` line per range (Linux 6.19)."""
    out = []
    for line in data.split():
        match = re.fullmatch(rb"([0-9a-f]+)-([0-9a-f]+)", line)
        if not match or int(match.group(2), 16) < int(match.group(1), 16):
            raise FormatError("crash_cma_ranges", f"{line[:40]!r} is not START-END")
        out.append((int(match.group(1), 16), int(match.group(2), 16) + 1))
    return tuple(out)


def parse_dmesg_cma(data: bytes) -> tuple[tuple[int, int], ...]:
    """Find the crashkernel CMA ranges in the kernel's log.

    Linux 6.17 and 6.18 carry ``,cma`` out but have no file that tells where; the log has
    ``cma: Reserved N MiB at 0xADDR`` for every area (mm/cma.c), and which of them are the crash
    kernel's only by order: they come right before ``crashkernel CMA reserved: …`` or
    ``… reservation failed: … reserved in N ranges``.
    """
    areas: list[tuple[int, int]] = []
    for line in data.splitlines():
        area = re.search(rb"cma: Reserved (\d+) MiB at (?:0x)?([0-9a-f]+)", line)
        if area:
            start = int(area.group(2), 16)
            areas.append((start, start + int(area.group(1)) * 1024 * 1024))
            continue
        done = re.search(
            rb"crashkernel CMA reserv(?:ed: \d+ MB|ation failed: .* reserved) in (\d+) ranges", line
        )
        if done:
            count = int(done.group(1))
            return tuple(areas[-count:]) if 0 < count <= len(areas) else ()
    return ()


def parse_address_size(data: bytes, what: str) -> tuple[int, int]:
    """Read ``/sys/kernel/vmcoreinfo``: a physical address and a size, both hexadecimal."""
    words = data.split()
    if len(words) != 2:
        raise FormatError(what, "not ADDRESS SIZE")
    address, size = parse_hex(words[0], what), parse_hex(words[1], what)
    if not address or not size:
        raise FormatError(what, "it is zero")
    return address, size


def parse_hex(data: bytes, what: str) -> int:
    """Read one hexadecimal number of at most 64 bits, with or without ``0x``."""
    match = re.fullmatch(rb"\s*(?:0x)?([0-9a-fA-F]{1,16})\s*", data)
    if not match:
        raise FormatError(what, f"{data[:40]!r} is not a hexadecimal number")
    return int(match.group(1), 16)


def parse_decimal(data: bytes, what: str) -> int:
    """Read one decimal number that is not negative."""
    match = re.fullmatch(rb"\s*([0-9]{1,20})\s*", data)
    if not match:
        raise FormatError(what, f"{data[:40]!r} is not a number")
    return int(match.group(1))


def parse_fadt_reset(data: bytes) -> Optional[tuple[int, int]]:
    """The ACPI reset register as (I/O port, value) from the FADT (ACPI 6.5, 4.8.3.6); None: none.

    Flag 10 (RESET_REG_SUP) of the u32 at 112, a generic address of 8 bits at 116, RESET_VALUE, a
    byte at 128. Registers in memory or PCI configuration space are none here.
    """
    if len(data) < 129 or data[:4] != b"FACP":
        return None
    (flags,) = struct.unpack_from("<I", data, 112)
    space, bits, _, _, address = struct.unpack_from("<BBBBQ", data, 116)
    usable = flags & 1 << 10 and (space, bits) == (1, 8) and 0 < address < 0x10000
    return (address, data[128]) if usable else None


def parse_fadt_pm_timer(data: bytes) -> Optional[int]:
    """The I/O port of the ACPI PM timer from the FADT (ACPI 6.5, table 5.9); None: there is none.

    PM_TMR_BLK is a u32 at 76, PM_TMR_LEN a byte at 91 that must be 4, X_PM_TMR_BLK a generic
    address at 208 whose space must be 1 (system I/O).
    """
    if len(data) < 92 or data[:4] != b"FACP" or data[91] != 4:
        return None
    if len(data) >= 220:
        space, address = data[208], struct.unpack_from("<Q", data, 212)[0]
        if address:
            return address if space == 1 and 0 < address < 0x10000 else None
    port = struct.unpack_from("<I", data, 76)[0]
    return port if 0 < port < 0x10000 else None
