# SPDX-License-Identifier: LGPL-2.1-or-later
"""Purgatory of x86_64 as loaded: ``x86_64.bin`` with its parameters and tables. Pure.

The layout is that of ``x86_64/purgatory.h``. In memory::

    0           code; at 8 two u32: where the image ends, where the tables begin
    16          HANDOVER
    image end   what it writes to, its stack too (stored as zeros)
    tables      regions, lent ranges, bus masters
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Optional

if TYPE_CHECKING:
    from collections.abc import Sequence

BINARY = Path(__file__).with_name("x86_64.bin")
SHA256_BYTES = 32
ENDS = struct.Struct("<II")
ENDS_OFFSET = 8
HANDOVER_OFFSET = 16
# struct handover, in its order; a test has the compiler compare
HANDOVER = (
    ("sha256", "32s"),
    ("kernel_entry", "Q"),
    ("boot_params", "Q"),
    ("copy_to", "Q"),
    ("record", "Q"),
    ("wait_us", "Q"),
    ("watch_us", "Q"),
    ("watch_limit_us", "Q"),
    ("record_bytes", "I"),
    ("on_mismatch", "I"),
    ("copy_region", "I"),
    ("pm_port", "I"),
    ("serial_port", "I"),
    ("reset_port", "I"),
    ("reset_value", "I"),
    ("stored_bytes", "I"),
    ("regions_at", "I"),
    ("regions", "I"),
    ("lent_at", "I"),
    ("lent", "I"),
    ("bus_masters_at", "I"),
    ("bus_masters", "I"),
)
PARAMETERS = struct.Struct("<" + "".join(code for _, code in HANDOVER))
REGION = struct.Struct("<QQ32s16s")  # start, bytes, sha256, name with a NUL
RANGE = struct.Struct("<QQ")
BUS_MASTER = struct.Struct("<H")
ON_MISMATCH = {"reset": 0, "boot": int.from_bytes(b"BOOT", "little")}
# room for the record, JSON text; its longest is about 700 bytes
RECORD_BYTES = 1024


class Region(NamedTuple):
    """A piece of the reservation and the digest of what was loaded there."""

    name: str
    start: int
    size_bytes: int
    sha256: bytes


class Copy(NamedTuple):
    """The kernel's way into lent memory; whole pages."""

    from_phys: int
    to_phys: int
    size_bytes: int


@dataclass(frozen=True)
class Handover:
    """What purgatory is told.

    ``copy`` is None where the kernel runs where it is stored; else a region with the same start and
    size must be among ``regions``. ``bus_masters`` are bus << 8 | device << 3 | function. ``lent``,
    whole pages, is looked at only when ``watch_seconds`` is not 0. ``record_phys`` is where
    ``record_bytes`` blanks wait for the record; None: it keeps none. Ports are None where there is
    no such device; ``reset_register`` is (port, value).
    """

    kernel_entry: int
    boot_params: int
    regions: Sequence[Region] = ()
    copy: Optional[Copy] = None
    on_mismatch: str = "reset"
    wait_seconds: float = 0.0
    bus_masters: Sequence[int] = ()
    lent: Sequence[tuple[int, int]] = ()
    watch_seconds: float = 0.0
    watch_limit_seconds: float = 0.0
    pm_timer_port: Optional[int] = None
    serial_port: Optional[int] = None
    reset_register: Optional[tuple[int, int]] = None
    record_phys: Optional[int] = None
    record_bytes: int = RECORD_BYTES


@lru_cache(maxsize=1)
def _binary() -> bytes:
    return BINARY.read_bytes()


def purgatory_bytes(regions: int, lent_ranges: int, bus_masters: int) -> int:
    """How many bytes :func:`purgatory_code` will give for so many of each."""
    _, tables_at = ENDS.unpack_from(_binary(), ENDS_OFFSET)
    size: int = tables_at + REGION.size * regions + RANGE.size * lent_ranges
    return size + BUS_MASTER.size * bus_masters


def purgatory_code(handover: Handover) -> bytes:
    """Purgatory, ready to run at any page-aligned address inside the identity map.

    It is entered at its first byte and needs the memory that it is stored in, no more. Times are
    rounded up to microseconds. ValueError for a copy of something that is no region.
    """
    binary = _binary()
    image_end, tables_at = ENDS.unpack_from(binary, ENDS_OFFSET)
    regions = b"".join(
        REGION.pack(r.start, r.size_bytes, r.sha256, r.name.encode("ascii")[:15])
        for r in handover.regions
    )
    watched = handover.lent if handover.watch_seconds else ()
    lent = b"".join(RANGE.pack(start, end) for start, end in watched)
    bus_masters = b"".join(map(BUS_MASTER.pack, handover.bus_masters))
    tables = regions + lent + bus_masters
    port, value = handover.reset_register or (0, 0)
    recorded = handover.record_phys is not None
    values = {
        "sha256": bytes(SHA256_BYTES),
        "kernel_entry": handover.kernel_entry,
        "boot_params": handover.boot_params,
        "copy_to": handover.copy.to_phys if handover.copy else 0,
        "record": handover.record_phys or 0,
        "wait_us": _microseconds(handover.wait_seconds),
        "watch_us": _microseconds(handover.watch_seconds),
        "watch_limit_us": _microseconds(handover.watch_limit_seconds),
        "record_bytes": handover.record_bytes if recorded else 0,
        "on_mismatch": ON_MISMATCH[handover.on_mismatch],
        "copy_region": _copy_region(handover),
        "pm_port": handover.pm_timer_port or 0,
        "serial_port": handover.serial_port or 0,
        "reset_port": port,
        "reset_value": value,
        "stored_bytes": tables_at + len(tables),
        "regions_at": tables_at,
        "regions": len(handover.regions),
        "lent_at": tables_at + len(regions),
        "lent": len(watched),
        "bus_masters_at": tables_at + len(regions) + len(lent),
        "bus_masters": len(handover.bus_masters),
    }
    code = bytearray(binary.ljust(tables_at, b"\0") + tables)
    PARAMETERS.pack_into(code, HANDOVER_OFFSET, *(values[name] for name, _ in HANDOVER))
    behind = HANDOVER_OFFSET + SHA256_BYTES
    constant = code[:HANDOVER_OFFSET] + code[behind:image_end] + code[tables_at:]
    code[HANDOVER_OFFSET:behind] = hashlib.sha256(constant).digest()
    return bytes(code)


def bus_master(address: str) -> int:
    """What purgatory wants of "0000:bus:device.function"; ValueError unless it is in segment 0."""
    segment, bus, rest = address.split(":")
    device, function = rest.split(".")
    if int(segment, 16):
        raise ValueError(address)
    return int(bus, 16) << 8 | int(device, 16) << 3 | int(function, 16)


def _microseconds(seconds: float) -> int:
    return math.ceil(seconds * 1_000_000)


def _copy_region(handover: Handover) -> int:
    if handover.copy is None:
        return 0
    wanted = (handover.copy.from_phys, handover.copy.size_bytes)
    return [(r.start, r.size_bytes) for r in handover.regions].index(wanted)
