# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fixtures by code: a bzImage writer and hosts shaped like QEMU's pc machine.

Offsets and file contents are written down here from the kernel's documents, not taken from the
code under test. A host is a dict of path → bytes (:func:`host`); it becomes a tree below a
directory (:func:`write_tree`), files in memory (:class:`MemoryFiles`) or facts (:func:`facts`).
"""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING, Any

from crashlend.facts import Facts, read_facts
from crashlend.formats.bzimage import BzImage
from crashlend.plan import Payload

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PAGE = 4096
BLOCK = 128 * MIB
RELEASE = "6.1.0-test-amd64"
CMDLINE = b"BOOT_IMAGE=/vmlinuz root=/dev/vda1 ro crashkernel=1G,cma crashkernel=256M\n"
PAGE_OFFSET = 0xFFFF888000000000
PAGE_OFFSET_LA57 = 0xFF11000000000000
TEXT_VIRT, TEXT_PHYS, TEXT_BYTES = 0xFFFFFFFF81000000, 0x1000000, 0x2000000
RESERVATION = (0xA0000000, 0xA0000000 + 256 * MIB)
SECRET = b"MEMORY OF THE KERNEL"
PRIVATE_LOG_LINE = b"6,3,90,-;usb 1-1: SerialNumber: 1234567\n"

# bits of /proc/kpageflags: Documentation/admin-guide/mm/pagemap.rst
SLAB, BUDDY, ANON, LRU, HUGE, HWPOISON, OFFLINE, RESERVED = (
    1 << 7,
    1 << 10,
    1 << 12,
    1 << 5,
    1 << 17,
    1 << 19,
    1 << 23,
    1 << 32,
)


def bz_image(
    *,
    release: str = RELEASE,
    kernel: bytes = bytes(range(256)) * 4096,
    init_size: int = 48 * MIB,
    alignment: int = 2 * MIB,
    protocol: int = 0x020F,
    xloadflags: int = 0x3B,  # 64-bit entry, above 4 GiB, EFI, EFI after kexec, 5-level
    relocatable: int = 1,
    magic: bytes = b"HdrS",
    boot_flag: int = 0xAA55,
    setup_sects: int = 3,
    syssize: int | None = None,
    cmdline_size: int = 2047,
    cut: int = 0,
    signature: bytes = b"",
) -> bytes:
    """A kernel image (Documentation/arch/x86/boot.rst) that no processor would like to run."""
    setup = bytearray(((setup_sects or 4) + 1) * 512)
    version = release.encode() + b" (builder@host) #1 SMP\0"
    setup[0x400 : 0x400 + len(version)] = version
    for offset, code, value in (
        (0x1F1, "B", setup_sects),
        (0x1F4, "I", -(-len(kernel) // 16) if syssize is None else syssize),
        (0x1FE, "H", boot_flag),
        (0x200, "H", 0x6AEB),
        (0x206, "H", protocol),
        (0x20E, "H", 0x200),
        (0x211, "B", 0x01),
        (0x230, "I", alignment),
        (0x234, "B", relocatable),
        (0x235, "B", 21),
        (0x236, "H", xloadflags),
        (0x238, "I", cmdline_size),
        (0x258, "Q", 16 * MIB),
        (0x260, "I", init_size),
    ):
        struct.pack_into("<" + code, setup, offset, value)
    setup[0x202:0x206] = magic
    data = bytes(setup) + kernel + signature
    return data[: len(data) - cut] if cut else data


def payload(initramfs_bytes: int = 2 * MIB, **image: Any) -> Payload:
    return Payload(BzImage.parse(bz_image(**image)), initramfs_bytes)


# --- hosts ---------------------------------------------------------------------------------------


def iomem_text(lines: Iterable[tuple[int, int, int, str]]) -> bytes:
    """``/proc/iomem`` of (depth, start, end, name), half-open."""
    return b"".join(
        f"{'  ' * depth}{start:08x}-{end - 1:08x} : {name}\n".encode()
        for depth, start, end, name in lines
    )


def kcore(ram: Iterable[tuple[int, int]], page_offset: int, memory: bytes = SECRET) -> bytes:
    """``/proc/kcore`` (fs/proc/kcore.c): notes, text, vmalloc, RAM; then the memory itself."""
    none = (1 << 64) - 1
    loads = [(TEXT_VIRT, TEXT_PHYS, TEXT_BYTES), (0xFFFFC90000000000, none, 1 << 45)]
    loads += [(page_offset + start, start, end - start) for start, end in ram]
    headers = [struct.pack("<IIQQQQQQ", 4, 0, 0x1000, 0, 0, 0x900, 0, 0)]
    headers += [struct.pack("<IIQQQQQQ", 1, 7, 0x3000, v, p, n, n, PAGE) for v, p, n in loads]
    start = struct.pack(
        "<4sBBBBB7xHHIQQQIHHHHHH",
        *(b"\x7fELF", 2, 1, 1, 0, 0, 4, 62, 1, 0, 64, 0, 0, 64, 56, len(headers), 0, 0, 0),
    )
    return start + b"".join(headers) + memory * 100


def zoneinfo(
    zones: Iterable[tuple[int, str, int, int]], cma: Sequence[tuple[int, int]] = ()
) -> bytes:
    """``/proc/zoneinfo`` of (node, name, start_pfn, pages); ``cma`` is CMA, in bytes."""
    return b"".join(
        b"Node %d, zone %8s\n"
        b"  pages free     %d\n        boost    0\n        min      11\n"
        b"        spanned  %d\n        present  %d\n        managed  %d\n        cma      %d\n"
        b"        protection: (0, 2973, 3915, 3915, 3915)\n      nr_free_pages 11\n"
        b"  pagesets\n    cpu: 0\n              count: 1\n  node_unreclaimable:  0\n"
        b"  start_pfn:           %d\n"
        % (
            *(node, name.encode(), pages // 2, pages, pages, pages),
            sum(max(0, min(e // PAGE, start + pages) - max(s // PAGE, start)) for s, e in cma),
            start,
        )
        for node, name, start, pages in zones
    )


def facp(pm_port: int = 0x608) -> bytes:
    """A FADT (ACPI 6.5, table 5.9) whose PM timer is at ``pm_port``."""
    table = bytearray(244)
    table[:4] = b"FACP"
    struct.pack_into("<I", table, 76, pm_port)
    table[91] = 4
    table[208] = 1
    struct.pack_into("<Q", table, 212, pm_port)
    return bytes(table)


def kmsg(*messages: bytes) -> bytes:
    return (
        b"6,1,0,-;Linux version 6.1.0\n"
        + PRIVATE_LOG_LINE
        + b"".join(b"6,%d,%d,-;%s\n" % (n, n, message) for n, message in enumerate(messages, 4))
    )


def page_flags(blocks: Mapping[int, Sequence[tuple[int, int]]], last: int) -> bytes:
    """``/proc/kpageflags``: per block (flags, pages) runs, the rest free; ``last`` block index."""
    pages = BLOCK // PAGE
    out = bytearray(struct.pack("<Q", BUDDY) * pages * (last + 1))
    code = TEXT_PHYS // PAGE * 8
    out[code : code + 8] = struct.pack("<Q", RESERVED)
    for index, runs in blocks.items():
        at = index * pages * 8
        for flags, count in runs:
            out[at : at + 8 * count] = struct.pack("<Q", flags) * count
            at += 8 * count
    return bytes(out)


def host(
    *,
    cmdline: bytes = CMDLINE,
    reservations: Sequence[tuple[int, int]] = (RESERVATION,),
    more_iomem: Sequence[tuple[int, int, int, str]] = (),
    dimms: Sequence[tuple[int, int]] = (),
    hidden: bool = False,
    movable: Sequence[int] = (),
    offline: Sequence[int] = (),
    nodes: Mapping[int, int] | None = None,
    cpus: int = 2,
    flags: str = "fpu pdpe1gb constant_tsc hypervisor",
    page_offset: int = PAGE_OFFSET,
    lockdown: str = "none",
    kexec_load_disabled: bool = False,
    crash_loaded: bool | None = False,
    cma_ranges: Sequence[tuple[int, int]] | None = None,
    log: Sequence[bytes] = (),
    efi: bool = False,
    corrupted_kb: int = 0,
    lent: Sequence[int] = (),
    census: Mapping[int, Sequence[tuple[int, int]]] | None = None,
    files: Mapping[str, bytes | None] | None = None,
) -> dict[str, bytes]:
    """All files of a 4 GiB QEMU guest (pc, BIOS): 3 GiB below 4 GiB, one above, 128 MiB blocks.

    ``files`` replaces single files in the end; None takes one away.
    """
    low_end, high, high_end = 0xBFFE0000, 4 * GIB, 5 * GIB
    ram = [(0x1000, 0x9FC00), (0x100000, low_end), (high, high_end), *dimms]
    lines: list[tuple[int, int, int, str]] = [
        (0, 0, 0x1000, "Reserved"),
        (0, 0x1000, 0x9FC00, "System RAM"),
        (0, 0x9FC00, 0xA0000, "Reserved"),
        (0, 0xA0000, 0xC0000, "PCI Bus 0000:00"),
        (0, 0xF0000, 0x100000, "Reserved"),
        (1, 0xF0000, 0x100000, "System ROM"),
        (0, 0x100000, low_end, "System RAM"),
        (1, TEXT_PHYS, TEXT_PHYS + 0x1003000, "Kernel code"),
        (1, 0x2200000, 0x2C00000, "Kernel rodata"),
        *((1, s, e, "Crash kernel") for s, e in reservations if e <= low_end),
        (0, low_end, 0xC0000000, "Reserved"),
        (0, 0xC0000000, 0xFEC00000, "PCI Bus 0000:00"),
        (0, 0xFEC00000, 0xFEC00400, "IOAPIC 0"),
        (0, 0xFFFC0000, 0x100000000, "Reserved"),
        (0, high, high_end, "System RAM"),
        *((1, s, e, "Crash kernel") for s, e in reservations if s >= high),
        *((0, s, e, "System RAM") for s, e in dimms),
        *more_iomem,
    ]
    if hidden:
        lines = [(depth, 0, 1, name) for depth, _, _, name in lines]
    out = {
        "/proc/iomem": iomem_text(lines),
        "/proc/cmdline": cmdline,
        "/proc/sys/kernel/arch": b"x86_64\n",
        "/proc/sys/kernel/osrelease": RELEASE.encode() + b"\n",
        "/proc/sys/kernel/kexec_load_disabled": b"%d\n" % kexec_load_disabled,
        "/proc/cpuinfo": f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t:\n".encode(),
        "/proc/meminfo": b"MemTotal: %d kB\nMemFree: 3400000 kB\nMemAvailable: 3500000 kB\n"
        b"HardwareCorrupted: %5d kB\nHugePages_Total:       0\n"
        % ((high_end - GIB - sum(e - s for s, e in reservations)) // KIB, corrupted_kb),
        "/proc/zoneinfo": zoneinfo(
            [
                (0, "DMA", 1, 0xF9F),
                (0, "DMA32", 0x1000, 0xBEFE0),
                (0, "Normal", 0x100000, 0x40000),
                *((0, "Movable", i * BLOCK // PAGE, BLOCK // PAGE) for i in movable),
            ],
            cma_ranges or (),
        ),
        "/proc/kcore": kcore(ram, page_offset),
        "/dev/kmsg": kmsg(*log),
        "/sys/kernel/vmcoreinfo": b"0000000102344000 1000\n",
        # byte 0x70 on: the firmware named no ACPI root pointer here
        "/sys/kernel/boot_params/data": bytes(0x78)
        + bytes(range(0x78, 256))
        + bytes(range(256)) * 15,
        "/sys/kernel/kexec_crash_size": b"%d\n" % sum(e - s for s, e in reservations),
        "/sys/kernel/security/lockdown": b" ".join(
            b"[%s]" % word if word.decode() == lockdown else word
            for word in (b"none", b"integrity", b"confidentiality")
        ),
        "/sys/firmware/acpi/tables/FACP": facp(),
        "/sys/devices/system/memory/block_size_bytes": b"%x\n" % BLOCK,
    }
    if crash_loaded is not None:
        out["/sys/kernel/kexec_crash_loaded"] = b"%d\n" % crash_loaded
    for cpu in range(cpus):
        base = f"/sys/devices/system/cpu/cpu{cpu}"
        out[f"{base}/crash_notes"] = b"%x\n" % (0x13FC00000 + cpu * 0x40000)
        out[f"{base}/crash_notes_size"] = b"%d\n" % 368
    firmware = [
        (0, 0x9FC00, "System RAM"),
        (0x9FC00, 0xA0000, "Reserved"),
        (0xF0000, 0x100000, "Reserved"),
        (0x100000, low_end, "System RAM"),
        (low_end, 0xC0000000, "Reserved"),
        (0xFFFC0000, 0x100000000, "Reserved"),
        (high, high_end, "System RAM"),
    ]
    for number, (start, end, kind) in enumerate(firmware):
        base = f"/sys/firmware/memmap/{number}"
        out[f"{base}/start"] = b"%#x\n" % start
        out[f"{base}/end"] = b"%#x\n" % (end - 1)
        out[f"{base}/type"] = kind.encode() + b"\n"
    indexes = {i for s, e in ram for i in range(s // BLOCK, -(-e // BLOCK))}
    for index in sorted(indexes):
        base = f"/sys/devices/system/memory/memory{index}"
        zone = "none" if index == 0 else "DMA32" if index < high // BLOCK else "Normal"
        out[f"{base}/state"] = b"offline\n" if index in offline else b"online\n"
        out[f"{base}/valid_zones"] = ("Movable" if index in movable else zone).encode() + b"\n"
        node = nodes.get(index, 0) if nodes else 0
        out[f"{base}/node{node}/meminfo"] = b""
    if cma_ranges is not None:
        text = b"".join(b"%08x-%08x\n" % (s, e - 1) for s, e in cma_ranges)
        out["/sys/kernel/kexec/crash_cma_ranges"] = text
        total = sum(e - s for s, e in cma_ranges) // KIB
        out["/proc/meminfo"] += b"CmaTotal: %d kB\nCmaFree: %d kB\n" % (total, total)
    if efi:
        out["/sys/firmware/efi/systab"] = b"ACPI20=0xbfb7e014\nSMBIOS=0xbf9a1000\n"
    if lent:
        entries = ",".join(f'"{i}": {{"step": "lent", "zone": "Normal", "node": 0}}' for i in lent)
        out["/run/crashlend/state.json"] = (
            f'{{"schema": 1, "blocks": {{{entries}}}, "loaded": null}}'.encode()
        )
    if census is not None:
        out["/proc/kpageflags"] = page_flags(census, max(indexes))
    for path, data in (files or {}).items():
        if data is None:
            out.pop(path, None)
        else:
            out[path] = data
    return out


def efi_files(
    regions: Sequence[tuple[int, int, int, int, int]] = (
        (5, 0xBF8EC000, 0xFFFFFFFEFFEEC000, 0x30, 0x800000000000000F),
        (6, 0xBF91C000, 0xFFFFFFFEFFE1C000, 0xD0, 0x800000000000000F),
        (11, 0xFFC00000, 0xFFFFFFFEFFA00000, 0x400, 0x8000000000000001),
    ),
    *,
    secure_boot: int = 2,
) -> dict[str, bytes]:
    """What a UEFI host has beside systab (Documentation/ABI/testing/sysfs-firmware-efi*)."""
    page = bytearray(4096)
    # struct efi_info of boot_params: "EL64", system table in two halves
    struct.pack_into("<4sI", page, 0x1C0, b"EL64", 0xBF9EC018)
    page[0x1EC] = secure_boot
    out = {
        "/sys/firmware/efi/fw_platform_size": b"64\n",
        "/sys/firmware/efi/fw_vendor": b"0xbf9a8f98\n",
        "/sys/firmware/efi/runtime": b"0xbf9eab98\n",
        "/sys/firmware/efi/config_table": b"0xbf9a9000\n",
        "/sys/kernel/boot_params/data": bytes(page),
    }
    names = ("type", "phys_addr", "virt_addr", "num_pages", "attribute")
    for number, region in enumerate(regions):
        for name, value in zip(names, region):
            out[f"/sys/firmware/efi/runtime-map/{number}/{name}"] = b"%#x\n" % value
    return out


def pci_function(
    address: str,
    kind: int,
    driver: str = "",
    *,
    header: int = 0,
    master: bool = True,
    virtual_of: str = "",
    config: bytes | None = None,
) -> dict[str, bytes]:
    """The files of one PCI function in sysfs; ``kind`` is its class code (0x010802)."""
    base = f"/sys/bus/pci/devices/{address}"
    lines = [f"PCI_CLASS={kind:X}", f"PCI_SLOT_NAME={address}"]
    if driver:
        lines.insert(0, f"DRIVER={driver}")
    space = bytearray(64)
    struct.pack_into("<HHH", space, 0, 0x1AF4, 0x1001, 0x103 | 4 * master)
    space[0x0E] = header
    out = {
        f"{base}/uevent": "".join(f"{line}\n" for line in lines).encode(),
        f"{base}/config": bytes(space) if config is None else config,
        f"{base}/dma_mask_bits": b"64\n",
    }
    if virtual_of:
        out[f"{base}/physfn/uevent"] = f"PCI_SLOT_NAME={virtual_of}\n".encode()
    return out


def write_tree(root: Path, files: Mapping[str, bytes]) -> Path:
    for path, data in files.items():
        place = root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    return root


class MemoryFiles:
    """HostFiles of a dict; ``errors`` are the paths that can't be read, with their errno."""

    def __init__(self, files: Mapping[str, bytes], errors: Mapping[str, int] | None = None) -> None:
        self.files = dict(files)
        self.errors = dict(errors or {})
        self.read_paths: list[str] = []
        self.dirs: dict[str, set[str]] = {}
        for path in (*self.files, *self.errors):
            at = path
            while at:
                parent, _, leaf = at.rpartition("/")
                self.dirs.setdefault(parent or "/", set()).add(leaf)
                at = parent

    def read(self, path: str, limit: int = 1 << 30, offset: int = 0) -> bytes:
        self.read_paths.append(path)
        if path in self.errors:
            raise OSError(self.errors[path], os.strerror(self.errors[path]))
        if path not in self.files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return self.files[path][offset : offset + limit]

    def names(self, path: str) -> list[str]:
        return sorted(self.dirs.get(path, ()))

    def target(self, path: str) -> str:
        return ""

    def exists(self, path: str) -> bool:
        return path in self.files or path in self.dirs or path in self.errors


def facts(*, errors: Mapping[str, int] | None = None, **kind: Any) -> Facts:
    """The facts of :func:`host`, with the census where its flags are given."""
    census = kind.get("census") is not None
    return read_facts(MemoryFiles(host(**kind), errors), census=census)
