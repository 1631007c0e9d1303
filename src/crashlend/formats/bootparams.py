# SPDX-License-Identifier: LGPL-2.1-or-later
"""struct boot_params, the "zero page": arch/x86/include/uapi/asm/bootparam.h."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple, Optional

from crashlend.errors import FormatError
from crashlend.formats.bzimage import HEADER, SETUP_HEADER_OFFSET
from crashlend.formats.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Sequence

SIZE = 4096
E820_OFFSET = 0x2D0
E820_MAX = 128
E820_ENTRY = struct.Struct("<QQI")
SETUP_DATA = struct.Struct("<QII")  # next, type, len
SETUP_DATA_ALIGN = 16
SETUP_E820_EXT = 1
SETUP_EFI = 4
# purgatory's record. The kernel counts its own types up from 0 and marks indirect ones with bit 31
# (SETUP_INDIRECT); these are four letters, "CLND". Of a type that it does not know it keeps the
# memory (memblock_x86_reserve_range_setup_data) and shows the bytes in
# /sys/kernel/boot_params/setup_data/N/{type,data} (arch/x86/kernel/ksysfs.c).
SETUP_CRASHLEND = 0x434C4E44

FIELDS = Layout(
    "boot_params",
    {
        "ext_mem_k": (0x002, "H"),
        "acpi_rsdp_addr": (0x070, "Q"),
        "ext_ramdisk_image": (0x0C0, "I"),
        "ext_ramdisk_size": (0x0C4, "I"),
        "ext_cmd_line_ptr": (0x0C8, "I"),
        "efi_loader_signature": (0x1C0, "I"),
        "efi_systab": (0x1C4, "I"),
        "efi_memdesc_size": (0x1C8, "I"),
        "efi_memdesc_version": (0x1CC, "I"),
        "efi_memmap": (0x1D0, "I"),
        "efi_memmap_size": (0x1D4, "I"),
        "efi_systab_hi": (0x1D8, "I"),
        "efi_memmap_hi": (0x1DC, "I"),
        "e820_entries": (0x1E8, "B"),
        "secure_boot": (0x1EC, "B"),
    },
)
# what production's zero page has and the crash kernel wants unchanged: the console's state
SCREEN_INFO = slice(0x000, 0x040)
EDID_INFO = slice(0x140, 0x1C0)

# what has its upper 32 bits elsewhere: name → (lower half in the setup header, upper half here)
WIDE = {
    "cmd_line_ptr": "ext_cmd_line_ptr",
    "ramdisk_image": "ext_ramdisk_image",
    "ramdisk_size": "ext_ramdisk_size",
}

EFI_64 = int.from_bytes(b"EL64", "little")  # arch/x86/include/asm/efi.h

E820_RAM, E820_RESERVED, E820_ACPI, E820_NVS, E820_UNUSABLE, E820_PMEM = 1, 2, 3, 4, 5, 7


class E820Entry(NamedTuple):
    """One line of the memory map: half-open ``[start, end)`` and an ``E820_*`` type."""

    start: int
    end: int
    type: int


class EfiInfo(NamedTuple):
    """Where the 64-bit system table lies, and the map of EFI's memory."""

    system_table: int
    map_phys: int
    map_bytes: int
    descriptor_bytes: int
    descriptor_version: int


def read_wide(page: bytes, name: str) -> int:
    """A field of :data:`WIDE`, both halves of it; FormatError where ``page`` ends before them."""
    return FIELDS.read(page, WIDE[name]) << 32 | HEADER.read(page, name)


def build_boot_params(
    *,
    setup_header: bytes,
    memory_map: Sequence[E820Entry],
    cmdline_phys: int,
    ramdisk_phys: int,
    ramdisk_bytes: int,
    setup_data_phys: int,
    production: bytes = b"",
    rsdp_phys: int = 0,
    efi: Optional[EfiInfo] = None,
    more_data: Sequence[tuple[int, bytes]] = (),
) -> tuple[bytes, bytes]:
    """Return the zero page and the blob of setup_data nodes behind it.

    The nodes are what the page's 128 map entries cannot hold, if there is any, then ``more_data``:
    (type, bytes). ``production`` is the running kernel's zero page (console state, and with ``efi``
    whether Secure Boot was on), ``setup_data_phys`` where the caller will put the blob.
    """
    page = bytearray(SIZE)
    if len(production) >= SIZE:
        page[SCREEN_INFO] = production[SCREEN_INFO]
        # The BIOS's count of memory above 1 MiB shares these bytes. A kernel that finds no memory map
        # goes by it, and that memory is production's [arch/x86/kernel/e820.c:e820__memory_setup_default]
        FIELDS.write(page, "ext_mem_k", 0)
        page[EDID_INFO] = production[EDID_INFO]
    page[SETUP_HEADER_OFFSET : SETUP_HEADER_OFFSET + len(setup_header)] = setup_header
    HEADER.write(page, "type_of_loader", 0xFF)
    HEADER.write(
        page, "loadflags", HEADER.read(setup_header, "loadflags", -SETUP_HEADER_OFFSET) | 1
    )
    for name, value in zip(WIDE, (cmdline_phys, ramdisk_phys, ramdisk_bytes)):
        HEADER.write(page, name, value & 0xFFFFFFFF)
        FIELDS.write(page, WIDE[name], value >> 32)
    FIELDS.write(page, "acpi_rsdp_addr", rsdp_phys)
    if efi is not None:
        _write_efi(page, efi)
        if len(production) >= SIZE:
            FIELDS.write(page, "secure_boot", FIELDS.read(production, "secure_boot"))

    first, rest = memory_map[:E820_MAX], memory_map[E820_MAX:]
    FIELDS.write(page, "e820_entries", len(first))
    page[E820_OFFSET : E820_OFFSET + E820_ENTRY.size * len(first)] = pack_e820(first)
    nodes = [(SETUP_E820_EXT, pack_e820(rest))] if rest else []
    blob = chain([*nodes, *more_data], setup_data_phys)
    HEADER.write(page, "setup_data", setup_data_phys if blob else 0)
    return bytes(page), blob


def _write_efi(page: bytearray, efi: EfiInfo) -> None:
    """Fill in struct efi_info."""
    for name, value in (
        ("efi_loader_signature", EFI_64),
        ("efi_systab", efi.system_table & 0xFFFFFFFF),
        ("efi_systab_hi", efi.system_table >> 32),
        ("efi_memdesc_size", efi.descriptor_bytes),
        ("efi_memdesc_version", efi.descriptor_version),
        ("efi_memmap", efi.map_phys & 0xFFFFFFFF),
        ("efi_memmap_hi", efi.map_phys >> 32),
        ("efi_memmap_size", efi.map_bytes),
    ):
        FIELDS.write(page, name, value)


def chain(nodes: Sequence[tuple[int, bytes]], phys: int) -> bytes:
    """The (type, bytes) as one chain of setup_data that begins at ``phys``."""
    out = b""
    for number, (kind, data) in enumerate(nodes, 1):
        used = len(out) + SETUP_DATA.size + len(data)
        padding = -used % SETUP_DATA_ALIGN if number < len(nodes) else 0
        following = phys + used + padding if number < len(nodes) else 0
        out += SETUP_DATA.pack(following, kind, len(data)) + data + bytes(padding)
    return out


def chain_bytes(map_entries: int, more_bytes: Sequence[int]) -> int:
    """The length of that chain for a memory map and for ``more_data`` of these lengths."""
    extra = max(0, map_entries - E820_MAX) * E820_ENTRY.size
    lengths = [*([extra] if extra else []), *more_bytes]
    return len(chain([(0, bytes(length)) for length in lengths], 0))


def efi_system_table(page: bytes) -> Optional[int]:
    """Where a zero page says that the 64-bit EFI system table lies; None: it names none."""
    if len(page) < SIZE or FIELDS.read(page, "efi_loader_signature") != EFI_64:
        return None
    at = FIELDS.read(page, "efi_systab_hi") << 32 | FIELDS.read(page, "efi_systab")
    return at or None


def pack_e820(entries: Sequence[E820Entry]) -> bytes:
    """The entries as the kernel reads them: start, size, type."""
    return b"".join(E820_ENTRY.pack(e.start, e.end - e.start, e.type) for e in entries)


def parse_e820(page: bytes, setup_data: bytes = b"") -> list[E820Entry]:
    """The memory map of a zero page and, where there is one, its SETUP_E820_EXT blob."""
    count = FIELDS.read(page, "e820_entries")
    if count > E820_MAX or len(page) < SIZE:
        raise FormatError("boot_params", f"{count} map entries, 128 at most", offset=0x1E8)
    data = page[E820_OFFSET : E820_OFFSET + count * E820_ENTRY.size]
    if setup_data:
        if len(setup_data) < SETUP_DATA.size:
            raise FormatError("setup_data", "it ends before its header does", offset=0)
        _, kind, length = SETUP_DATA.unpack_from(setup_data)
        if kind == SETUP_E820_EXT:
            data += setup_data[SETUP_DATA.size : SETUP_DATA.size + length]
    whole = len(data) // E820_ENTRY.size * E820_ENTRY.size
    return [E820Entry(s, s + n, t) for s, n, t in E820_ENTRY.iter_unpack(data[:whole])]
