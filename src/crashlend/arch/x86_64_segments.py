# SPDX-License-Identifier: LGPL-2.1-or-later
"""x86_64: the bytes of every segment of a layout. Pure.

The segment boot_params holds, one behind the other: the zero page, the command line, the map of
EFI's runtime regions (where they are handed on), the chain of setup_data, which ends in purgatory's
record.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple, Optional

from crashlend.formats import bootparams, efi, elfcore
from crashlend.formats.bzimage import ENTRY_64_OFFSET, BzImage
from crashlend.purgatory.x86_64 import (
    RECORD_BYTES,
    Copy,
    Handover,
    Region,
    bus_master,
    purgatory_code,
)
from crashlend.ranges import Ranges, align_up

if TYPE_CHECKING:
    from crashlend.arch import Layout
    from crashlend.facts import Facts
    from crashlend.formats.efi import EfiRuntime
    from crashlend.quiesce import Quiesce

PAGE = 4096
# what purgatory verifies besides itself; boot_params last, because its record is behind them
VERIFIED = ("kernel", "initramfs", "elfcorehdr", "boot_params")

RAM = "System RAM"
RESERVED = "Reserved"
E820_TYPES = {
    RAM: bootparams.E820_RAM,
    RESERVED: bootparams.E820_RESERVED,
    "ACPI Tables": bootparams.E820_ACPI,
    "ACPI Non-volatile Storage": bootparams.E820_NVS,
    "Unusable memory": bootparams.E820_UNUSABLE,
    "Persistent Memory": bootparams.E820_PMEM,
}


class Params(NamedTuple):
    """Where the parts of boot_params begin, in bytes from the zero page; ``end`` is its length."""

    cmdline: int
    efi_map: int
    setup_data: int
    end: int


def place_params(facts: Facts, image: BzImage, cmdline_bytes: int, map_entries: int) -> Params:
    """How boot_params is laid out for a command line of that length and so many map entries."""
    runtime = efi_runtime(facts, image)
    efi_map = bootparams.SIZE + align_up(cmdline_bytes + 1, 16)
    setup_data = efi_map + align_up(runtime.map_bytes if runtime else 0, 16)
    nodes = [*([efi.SETUP.size] if runtime else []), RECORD_BYTES]
    return Params(
        bootparams.SIZE,
        efi_map,
        setup_data,
        setup_data + bootparams.chain_bytes(map_entries, nodes),
    )


def efi_runtime(facts: Facts, image: BzImage) -> Optional[EfiRuntime]:
    """EFI's runtime services where this image can take them over; else ACPI's pointer must do.

    Never half of it: with efi_info and without the map a crash kernel hangs early.
    """
    known = facts.efi_system_table and facts.efi_config_table and image.efi_kexec
    return facts.efi_runtime if known else None


def firmware_notes(facts: Facts, image: BzImage) -> tuple[str, ...]:
    """Why EFI's runtime services are not handed on although production has them."""
    if facts.efi_runtime is None or efi_runtime(facts, image) is not None:
        return ()
    if not image.efi_kexec:
        return ("this image can't take EFI's runtime services over: no EFI variables, no DMI data",)
    return ("EFI's tables are not known: the crash kernel has no EFI variables and no DMI data",)


def build_segments(
    facts: Facts,
    image: BzImage,
    layout: Layout,
    *,
    kernel_file: bytes,
    initramfs: bytes,
    cmdline: bytes,
    lent: Ranges,
    quiesce: Quiesce,
    on_mismatch: str,
) -> dict[str, bytes]:
    """The bytes of every segment of ``layout``, by its name."""
    ramdisk, params = layout.segment("initramfs"), layout.segment("boot_params")
    runtime = efi_runtime(facts, image)
    parts = place_params(facts, image, len(cmdline), len(layout.memory_map))
    page, setup_data = bootparams.build_boot_params(
        setup_header=image.setup_header,
        memory_map=[
            bootparams.E820Entry(e.start, e.end, E820_TYPES[e.kind]) for e in layout.memory_map
        ],
        cmdline_phys=layout.cmdline_phys,
        ramdisk_phys=ramdisk.start,
        ramdisk_bytes=len(initramfs),
        setup_data_phys=layout.setup_data_phys,
        production=bytes.fromhex(facts.boot_params),
        rsdp_phys=facts.rsdp or 0,
        efi=bootparams.EfiInfo(
            facts.efi_system_table or 0,
            params.start + parts.efi_map,
            runtime.map_bytes,
            efi.DESCRIPTOR.size,
            efi.DESCRIPTOR_VERSION,
        )
        if runtime
        else None,
        more_data=[
            *(
                [(bootparams.SETUP_EFI, efi.pack_setup(runtime, facts.efi_config_table or 0))]
                if runtime
                else []
            ),
            # the last one, behind all that purgatory verifies
            (bootparams.SETUP_CRASHLEND, b" " * RECORD_BYTES),
        ],
    )
    line = (cmdline + b"\0").ljust(parts.efi_map - parts.cmdline, b"\0")
    efi_map = efi.pack_map(runtime) if runtime else b""
    efi_map = efi_map.ljust(parts.setup_data - parts.efi_map, b"\0")
    segments = {
        "kernel": kernel_file[image.kernel_offset : image.kernel_offset + image.kernel_bytes],
        "initramfs": initramfs,
        "boot_params": page + line + efi_map + setup_data,
        "elfcorehdr": elfcore.build_core_header(layout.program_headers),
    }
    regions = tuple(_region(layout, name, segments[name]) for name in VERIFIED)
    segments["purgatory"] = purgatory_code(
        Handover(
            kernel_entry=layout.kernel_runs_at + ENTRY_64_OFFSET,
            boot_params=params.start,
            regions=regions,
            copy=_copy(layout, regions[0]),
            on_mismatch=on_mismatch,
            wait_seconds=quiesce.wait_seconds,
            bus_masters=tuple(map(bus_master, quiesce.bus_masters)),
            lent=tuple((r.start, r.end) for r in lent),
            watch_seconds=quiesce.watch_seconds,
            watch_limit_seconds=quiesce.watch_limit_seconds,
            pm_timer_port=facts.pm_timer_port,
            serial_port=facts.serial_port,
            reset_register=facts.reset_register,
            record_phys=layout.record_phys,
        )
    )
    return segments


def _region(layout: Layout, name: str, data: bytes) -> Region:
    """What purgatory verifies of a segment: whole pages, of which the kernel zeroes the rest.

    Of boot_params only what lies before the record, which purgatory writes.
    """
    start = layout.segment(name).start
    if name == "boot_params":
        data = data[: layout.record_phys - start]
    else:
        data = data.ljust(align_up(len(data), PAGE), b"\0")
    return Region(name, start, len(data), hashlib.sha256(data).digest())


def _copy(layout: Layout, kernel: Region) -> Optional[Copy]:
    if layout.kernel_runs_at == kernel.start:
        return None
    return Copy(kernel.start, layout.kernel_runs_at, kernel.size_bytes)
