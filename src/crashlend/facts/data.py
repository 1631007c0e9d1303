# SPDX-License-Identifier: LGPL-2.1-or-later
"""Facts as plain data: what is known of one host. It goes through JSON unchanged."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Optional

from crashlend.formats.efi import EfiRuntime
from crashlend.formats.procfs import Resource, Zone
from crashlend.lenders.census import BlockCensus, Unfit


@dataclass(frozen=True)
class FirmwareRange:
    """One entry of /sys/firmware/memmap."""

    start: int
    end: int
    type: str


@dataclass(frozen=True)
class MemoryBlock:
    """One memory block: ``state`` and ``zones`` in sysfs' words (zones: what it is or may be)."""

    index: int
    state: str
    zones: tuple[str, ...]
    node: int

    @property
    def is_movable(self) -> bool:
        """Whether it is online and all of it lies in ZONE_MOVABLE.

        A block that spans zones reads "none": which of its pages lie where is not told.
        """
        return self.state == "online" and self.zones[:1] == ("Movable",)


@dataclass(frozen=True)
class CrashNote:
    """Where one CPU's registers are saved on a crash (physical address and bytes)."""

    cpu: int
    phys: int
    bytes: int


@dataclass(frozen=True)
class KernelText:
    """The kernel image's own mapping: ``_text`` virtual, physical, and bytes to ``_end``."""

    virt: int
    phys: int
    bytes: int


@dataclass(frozen=True)
class HugePool:
    """Huge pages of one size on one node."""

    node: int
    page_bytes: int
    total: int


@dataclass(frozen=True)
class NarrowDevice:
    """A disk or network controller in use that can't address memory above 4 GiB by itself."""

    address: str
    driver: str
    bits: int


@dataclass(frozen=True)
class PciFunction:
    """One PCI function as sysfs names it: ``address`` is segment:bus:device.function.

    ``class_code`` has base class, subclass and interface (0x010802). ``bridge``: its header is
    that of a bridge. ``bus_master``: whether it may write memory now, None where that can't be
    read. ``virtual_of``: the physical function of a virtual one, else empty.
    """

    address: str
    class_code: int
    driver: str
    bridge: bool
    bus_master: Optional[bool]
    virtual_of: str


@dataclass(frozen=True)
class EndlessWriter:
    """A device whose DMA into movable memory no wait ends (facts/writers.py).

    ``address`` is its PCI function, empty where that is not known; ``seen`` is what shows that it
    is in use, or that this can't be told.
    """

    name: str
    driver: str
    address: str
    why: str
    seen: str


@dataclass(frozen=True)
class Watchdog:
    """A hardware watchdog. ``armed``: it resets the machine ``timeout_seconds`` after the last sign.

    ``for_good``: once armed it can't be stopped (nowayout).
    """

    name: str
    identity: str
    armed: bool
    timeout_seconds: Optional[int]
    for_good: bool


@dataclass(frozen=True)
class Refusal:
    """Why memory of this host must not be lent; ``lender`` is "movable" or "any"."""

    lender: str
    reason: str


@dataclass(frozen=True)
class LentPages:
    """What is lent, or could be as it is, looked at page by page.

    ``unfit``: where pages are that must not be lent, of crashlend's own blocks, of the kernel's
    ``,cma`` ranges and of what the loaded image was given. ``kinds`` counts the pages of the
    latter.
    """

    unfit: tuple[Unfit, ...] = ()
    kinds: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class CmaEvidence:
    """What shows whether the pages of the kernel's ``,cma`` ranges are CMA (lenders/activation.py).

    ``marked`` are the parts of them whose pageblocks the kernel itself marks as CMA; None where the
    marks can't be read, ``why_not`` says why. ``area_pages`` is what the only area of that name has
    by sysfs, None where that can't be said or there are several; ``sysfs``: whether /sys/kernel/mm/cma is there.
    ``failures``: how many of the areas the log says could not be activated; ``log_whole``: whether
    the log goes back to the boot. ``remembered``: an earlier run has seen the marks on all of it.
    """

    marked: Optional[tuple[tuple[int, int], ...]] = None
    why_not: str = ""
    area_pages: Optional[int] = None
    sysfs: bool = False
    failures: int = 0
    log_whole: bool = False
    remembered: bool = False


@dataclass(frozen=True)
class Facts:
    """All that is known of one host; see the module for what absence means.

    ``rounds_gib_outwards``: whether kexec's identity map gives a GiB a single entry that RAM covers
    only in part; None until a load since boot has shown it (arch/x86_64_tables.py).
    ``own_blocks`` are the memory blocks that crashlend has made movable or is about to,
    ``lent_blocks`` those of them that are lent, ``lent_zone`` what the loaded image was given of a
    ZONE_MOVABLE that crashlend did not make, ``lent_now`` all that it was given. ``clean_runs`` is
    what may be lent of that zone, None without a census. ``lent_pages`` is None where the pages of
    lent memory could not be looked at, ``cma_evidence`` where there are no ``cma_ranges``.
    ``serial_port`` is the I/O port of production's serial console (8250), ``reset_register`` ACPI's,
    as (I/O port, value). ``boot_apic_id`` is the APIC id of the CPU that firmware booted.
    """

    arch: str
    release: str
    cmdline: str
    privileged: bool
    iomem: tuple[Resource, ...]
    firmware_map: tuple[FirmwareRange, ...]
    block_bytes: Optional[int]
    blocks: tuple[MemoryBlock, ...]
    zones: tuple[Zone, ...]
    meminfo: dict[str, int]
    cpu_flags: tuple[str, ...]
    crash_notes: tuple[CrashNote, ...]
    vmcoreinfo: Optional[tuple[int, int]]
    page_offset: Optional[int]
    kernel_text: Optional[KernelText]
    rsdp: Optional[int]
    efi: bool
    efi_system_table: Optional[int]
    efi_config_table: Optional[int]
    pm_timer_port: Optional[int]
    boot_params: str
    crash_size_bytes: Optional[int]
    crash_loaded: Optional[bool]
    cma_ranges: Optional[tuple[tuple[int, int], ...]]
    lockdown: Optional[str]
    kexec_load_disabled: Optional[bool]
    kexec_load_limit_panic: Optional[int]
    huge_pools: tuple[HugePool, ...]
    narrow_devices: tuple[NarrowDevice, ...]
    memmap_on_memory: bool
    refusals: tuple[Refusal, ...]
    lent_blocks: tuple[int, ...]
    rounds_gib_outwards: Optional[bool]
    serial_port: Optional[int] = None
    reset_register: Optional[tuple[int, int]] = None
    own_blocks: tuple[int, ...] = ()
    lent_zone: tuple[tuple[int, int], ...] = ()
    block_census: tuple[BlockCensus, ...] = ()
    clean_runs: Optional[tuple[tuple[int, int], ...]] = None
    pci_functions: tuple[PciFunction, ...] = ()
    endless_writers: tuple[EndlessWriter, ...] = ()
    watchdogs: tuple[Watchdog, ...] = ()
    lent_now: tuple[tuple[int, int], ...] = ()
    lent_pages: Optional[LentPages] = None
    cma_evidence: Optional[CmaEvidence] = None
    efi_runtime: Optional[EfiRuntime] = None
    boot_apic_id: Optional[int] = None
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def cmdline_bytes(self) -> bytes:
        return self.cmdline.encode("utf-8", "surrogateescape")

    @cached_property
    def census_by_block(self) -> dict[int, BlockCensus]:
        """The block census by index: a large host has tens of thousands of blocks."""
        return {c.index: c for c in self.block_census}
