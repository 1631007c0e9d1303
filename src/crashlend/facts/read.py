# SPDX-License-Identifier: LGPL-2.1-or-later
"""The one reader of a host: :func:`read_facts`, and a small reader for each kind of fact."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Optional

from crashlend.errors import CrashlendError
from crashlend.facts.cma import cma_evidence, cma_ranges
from crashlend.facts.data import (
    CrashNote,
    Facts,
    FirmwareRange,
    HugePool,
    KernelText,
    MemoryBlock,
)
from crashlend.facts.efi import efi_runtime
from crashlend.facts.never import refusals
from crashlend.facts.own import own_record
from crashlend.facts.pages import lent_pages, page_census
from crashlend.facts.pci import narrow_devices, pci_functions
from crashlend.facts.reader import Reader
from crashlend.facts.watchdogs import watchdogs
from crashlend.facts.writers import endless_writers
from crashlend.formats import bootparams, elfcore, procfs
from crashlend.formats.cmdline import from_proc

if TYPE_CHECKING:
    from crashlend.hostfiles import HostFiles

PAGE = 4096
NO_PHYSICAL_ADDRESS = (1 << 64) - 1
# Flags of /proc/cpuinfo that decide something here.
CPU_FLAGS = ("la57", "pdpe1gb", "tdx_guest", "hypervisor", "constant_tsc")
MEMINFO = (
    "MemTotal",
    "MemFree",
    "MemAvailable",
    "CmaTotal",
    "CmaFree",
    "HardwareCorrupted",
    "Unaccepted",
)
NO_RSDP = "it names no ACPI 2.0 root pointer: the crash kernel would run without ACPI"
HIDDEN = "the kernel hides addresses from unprivileged readers"


def read_facts(files: HostFiles, *, census: bool = False) -> Facts:
    """Read everything from ``files``: the running host or a snapshot of one.

    ``census``: also look at what the pages of every online block hold (about 10 ms per GiB); a
    snapshot that was taken with a census brings it along in any case.
    """
    reader = Reader(files)
    iomem = reader.parsed("/proc/iomem", procfs.parse_iomem, ())
    if procfs.addresses_hidden(iomem):
        reader.missing["/proc/iomem"] = HIDDEN
        iomem = ()
    block_bytes = _block_bytes(reader)
    meminfo: dict[str, int] = reader.parsed("/proc/meminfo", procfs.parse_meminfo, {})
    core = _kcore_headers(reader)
    release = reader.text("/proc/sys/kernel/osrelease")
    blocks = _memory_blocks(reader)
    cpu_flags = _cpu_flags(reader)
    functions = pci_functions(reader)
    own = own_record(reader)
    made = cma_ranges(reader, meminfo, own)
    looked = page_census(
        reader,
        iomem,
        blocks,
        block_bytes,
        own.blocks,
        census=census,
    )
    return Facts(
        arch=_arch(reader),
        release=release,
        cmdline=from_proc(reader.raw("/proc/cmdline")).decode("utf-8", "surrogateescape"),
        privileged=bool(iomem),
        iomem=iomem,
        firmware_map=_firmware_map(reader),
        block_bytes=block_bytes,
        blocks=blocks,
        zones=reader.parsed("/proc/zoneinfo", procfs.parse_zoneinfo, ()),
        meminfo={name: meminfo[name] for name in MEMINFO if name in meminfo},
        cpu_flags=cpu_flags,
        crash_notes=_crash_notes(reader),
        vmcoreinfo=reader.parsed(
            "/sys/kernel/vmcoreinfo",
            lambda data: procfs.parse_address_size(data, "/sys/kernel/vmcoreinfo"),
            None,
        ),
        page_offset=_page_offset(core),
        kernel_text=_kernel_text(core),
        rsdp=_rsdp(reader),
        efi=files.exists("/sys/firmware/efi"),
        efi_system_table=bootparams.efi_system_table(
            reader.raw("/sys/kernel/boot_params/data", optional=True)
        ),
        efi_config_table=reader.parsed(
            "/sys/firmware/efi/config_table",
            lambda data: procfs.parse_hex(data, "config_table"),
            None,
            optional=True,
        ),
        pm_timer_port=reader.parsed(
            "/sys/firmware/acpi/tables/FACP", procfs.parse_fadt_pm_timer, None, optional=True
        ),
        serial_port=_serial_port(reader),
        reset_register=reader.parsed(
            "/sys/firmware/acpi/tables/FACP", procfs.parse_fadt_reset, None, optional=True
        ),
        boot_params=reader.raw("/sys/kernel/boot_params/data", optional=True).hex(),
        crash_size_bytes=reader.decimal("/sys/kernel/kexec_crash_size"),
        crash_loaded=reader.flag("/sys/kernel/kexec_crash_loaded"),
        cma_ranges=made,
        lockdown=_lockdown(reader),
        kexec_load_disabled=reader.flag("/proc/sys/kernel/kexec_load_disabled"),
        # absent in Linux 6.1, there in 6.12: how many more crash images may be loaded; -1: any number
        kexec_load_limit_panic=reader.parsed(
            "/proc/sys/kernel/kexec_load_limit_panic", int, None, optional=True
        ),
        huge_pools=_huge_pools(reader),
        narrow_devices=narrow_devices(reader, functions),
        memmap_on_memory=reader.text(
            "/sys/module/memory_hotplug/parameters/memmap_on_memory", optional=True
        )[:1]
        in ("Y", "f", "1"),
        refusals=refusals(reader, cpu_flags, meminfo),
        lent_blocks=own.lent_blocks,
        own_blocks=own.blocks,
        lent_zone=own.lent_zone,
        rounds_gib_outwards=own.rounds_gib_outwards,
        block_census=looked.blocks,
        clean_runs=looked.clean_runs,
        pci_functions=functions,
        endless_writers=endless_writers(reader, functions),
        watchdogs=watchdogs(reader),
        lent_now=own.lent,
        lent_pages=lent_pages(reader, blocks, block_bytes, own, made),
        cma_evidence=cma_evidence(reader, made or (), own),
        efi_runtime=efi_runtime(reader),
        boot_apic_id=_boot_apic_id(reader),
        missing=dict(sorted(reader.missing.items())),
    )


def _arch(reader: Reader) -> str:
    """The machine as uname has it; /proc/sys/kernel/arch is there since Linux 6.1."""
    arch = reader.text("/proc/sys/kernel/arch", optional=True)
    if arch:
        return arch
    return "x86_64" if reader.files.exists("/sys/kernel/boot_params") else ""


def _cpu_flags(reader: Reader) -> tuple[str, ...]:
    match = re.search(rb"(?m)^flags\s*:(.*)$", reader.raw("/proc/cpuinfo"))
    present = set(match.group(1).decode("ascii", "replace").split()) if match else set()
    return tuple(flag for flag in CPU_FLAGS if flag in present)


def _boot_apic_id(reader: Reader) -> Optional[int]:
    """The APIC id of processor 0, which is the one that firmware booted.

    None while it is offline; and where production is itself a crash kernel, which may run on any.
    """
    if reader.files.exists("/proc/vmcore"):
        return None
    for block in reader.raw("/proc/cpuinfo").split(b"\n\n"):
        if re.search(rb"(?m)^processor\s*:\s*0$", block):
            # the first is the hardware's; the kernel may have given it another
            for name in (rb"initial apicid", rb"apicid"):
                match = re.search(rb"(?m)^" + name + rb"\s*:\s*([0-9]{1,10})$", block)
                if match:
                    return int(match.group(1))
    return None


def _firmware_map(reader: Reader) -> tuple[FirmwareRange, ...]:
    base = "/sys/firmware/memmap"
    out = []
    for name in reader.files.names(base):
        start, end = reader.hex(f"{base}/{name}/start"), reader.hex(f"{base}/{name}/end")
        if start is not None and end is not None and end >= start:
            out.append(FirmwareRange(start, end + 1, reader.text(f"{base}/{name}/type")))
    return tuple(sorted(out, key=lambda r: (r.start, r.end)))


def _block_bytes(reader: Reader) -> Optional[int]:
    path = "/sys/devices/system/memory/block_size_bytes"
    size = reader.hex(path)
    if size is not None and (size < PAGE or size & (size - 1)):
        reader.missing[path] = f"{size:#x} is no size of a memory block"
        return None
    return size


def _memory_blocks(reader: Reader) -> tuple[MemoryBlock, ...]:
    base = "/sys/devices/system/memory"
    out = []
    for name in reader.files.names(base):
        match = re.fullmatch(r"memory(\d+)", name)
        if not match:
            continue
        index = int(match.group(1))
        nodes = [n for n in reader.files.names(f"{base}/{name}") if re.fullmatch(r"node\d+", n)]
        out.append(
            MemoryBlock(
                index,
                reader.text(f"{base}/{name}/state"),
                tuple(reader.text(f"{base}/{name}/valid_zones", optional=True).split()),
                int(nodes[0][4:]) if nodes else 0,
            )
        )
    return tuple(sorted(out, key=lambda b: b.index))


def _crash_notes(reader: Reader) -> tuple[CrashNote, ...]:
    base = "/sys/devices/system/cpu"
    out = []
    for name in reader.files.names(base):
        match = re.fullmatch(r"cpu(\d+)", name)
        if not match:
            continue
        phys = reader.hex(f"{base}/{name}/crash_notes")
        size = reader.decimal(f"{base}/{name}/crash_notes_size")
        if phys and size:
            out.append(CrashNote(int(match.group(1)), phys, size))
        elif phys == 0 or size == 0:
            reader.missing[f"{base}/{name}/crash_notes"] = "it is zero"
    return tuple(sorted(out, key=lambda note: note.cpu))


def _kcore_headers(reader: Reader) -> list[elfcore.ProgramHeader]:
    # the headers alone: what follows them in this file is the kernel's memory
    start = reader.raw("/proc/kcore", limit=elfcore.EHDR.size)
    if not start:
        reader.missing.setdefault("/proc/kcore", "it is empty")
        return []
    try:
        data = reader.raw("/proc/kcore", limit=elfcore.headers_end(start))
        return elfcore.parse_program_headers(data)
    except CrashlendError as error:
        reader.missing["/proc/kcore"] = str(error)
        return []


def _page_offset(core: list[elfcore.ProgramHeader]) -> Optional[int]:
    """What the direct mapping adds to a physical address: the same for all of kcore's RAM.

    Holds with 5-level paging and with KASLR, because it is read off (fs/proc/kcore.c sets
    p_paddr for KCORE_RAM and KCORE_TEXT, all ones for the rest).
    """
    offsets = [
        h.virt - h.phys
        for h in core
        if h.type == elfcore.PT_LOAD
        and h.phys != NO_PHYSICAL_ADDRESS
        and h.virt < elfcore.KERNEL_TEXT_BASE
    ]
    return max(set(offsets), key=offsets.count) if offsets else None


def _kernel_text(core: list[elfcore.ProgramHeader]) -> Optional[KernelText]:
    for h in core:
        known = h.type == elfcore.PT_LOAD and h.phys != NO_PHYSICAL_ADDRESS
        if known and h.virt >= elfcore.KERNEL_TEXT_BASE:
            return KernelText(h.virt, h.phys, h.bytes)
    return None


def _serial_port(reader: Reader) -> Optional[int]:
    """The I/O port of the last ``console=ttyS`` of production that is behind one.

    The file reads 0x0 for a UART in memory (drivers/tty/serial/serial_core.c, port_show()).
    """
    consoles = re.findall(rb"(?:^|\s)console=(ttyS[0-9]+)", reader.raw("/proc/cmdline"))
    for name in reversed(consoles):
        path = f"/sys/class/tty/{name.decode()}/port"
        port = reader.parsed(path, lambda data: int(data, 16), None, optional=True)
        if port and 0 < port < 0x10000:
            return port
    return None


def _rsdp(reader: Reader) -> Optional[int]:
    """The ACPI root pointer, which the crash kernel cannot find by itself under UEFI."""
    match = re.search(
        r"^ACPI20=(0x[0-9a-f]+)$", reader.text("/sys/firmware/efi/systab", optional=True), re.M
    )
    if match:
        return int(match.group(1), 16)
    # what our own loader was told, where production itself was started by kexec
    page = reader.raw("/sys/kernel/boot_params/data", optional=True)
    if len(page) >= bootparams.SIZE:
        told = bootparams.FIELDS.read(page, "acpi_rsdp_addr")
        if told:
            return told
    if reader.files.exists("/sys/firmware/efi"):
        reader.missing["/sys/firmware/efi/systab"] = NO_RSDP
    return None


def _lockdown(reader: Reader) -> Optional[str]:
    """Which lockdown level is in force; None where the kernel has no lockdown file."""
    match = re.search(r"\[(\w+)\]", reader.text("/sys/kernel/security/lockdown", optional=True))
    return match.group(1) if match else None


def _huge_pools(reader: Reader) -> tuple[HugePool, ...]:
    out = []
    nodes = [
        n for n in reader.files.names("/sys/devices/system/node") if re.fullmatch(r"node\d+", n)
    ]
    for node in nodes:
        base = f"/sys/devices/system/node/{node}/hugepages"
        for name in reader.files.names(base):
            match = re.fullmatch(r"hugepages-(\d+)kB", name)
            total = reader.decimal(f"{base}/{name}/nr_hugepages") if match else None
            if match and total:
                out.append(HugePool(int(node[4:]), int(match.group(1)) * 1024, total))
    return tuple(out)
