# SPDX-License-Identifier: LGPL-2.1-or-later
"""A crash image as its kernel will find it, from the bytes that lie in the reservation.

Read by other code than what builds it: the tables here are written from the kernel's header and not
from the product's, and the ELF core header is read by pyelftools.
"""

from __future__ import annotations

import base64
import hashlib
import io
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from elftools.elf.elffile import ELFFile

from crashlend.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Mapping

PAGE = 4096
# arch/x86/include/uapi/asm/bootparam.h (asm/setup_data.h for the types), all of its 4096 bytes: an
# integer's struct code, or a count of bytes. Unnamed gaps are looked at as "0xSTART".
HEADER_AT, HEADER_END, TABLE_AT, ENTRY_BYTES, TABLE_MOST = 0x1F1, 0x290, 0x2D0, 20, 128
BOOT_PARAMS: dict[str, tuple[int, str | int]] = {
    "screen_info.orig_x": (0x000, "B"),
    "screen_info.orig_y": (0x001, "B"),
    "screen_info.ext_mem_k": (0x002, "H"),
    "screen_info.orig_video_page": (0x004, "H"),
    "screen_info.orig_video_mode": (0x006, "B"),
    "screen_info.orig_video_cols": (0x007, "B"),
    "screen_info.flags": (0x008, "B"),
    "screen_info.unused2": (0x009, "B"),
    "screen_info.orig_video_ega_bx": (0x00A, "H"),
    "screen_info.unused3": (0x00C, "H"),
    "screen_info.orig_video_lines": (0x00E, "B"),
    "screen_info.orig_video_isVGA": (0x00F, "B"),
    "screen_info.orig_video_points": (0x010, "H"),
    "screen_info.lfb_width": (0x012, "H"),
    "screen_info.lfb_height": (0x014, "H"),
    "screen_info.lfb_depth": (0x016, "H"),
    "screen_info.lfb_base": (0x018, "I"),
    "screen_info.lfb_size": (0x01C, "I"),
    "screen_info.cl_magic": (0x020, "H"),
    "screen_info.cl_offset": (0x022, "H"),
    "screen_info.lfb_linelength": (0x024, "H"),
    "screen_info.red_size": (0x026, "B"),
    "screen_info.red_pos": (0x027, "B"),
    "screen_info.green_size": (0x028, "B"),
    "screen_info.green_pos": (0x029, "B"),
    "screen_info.blue_size": (0x02A, "B"),
    "screen_info.blue_pos": (0x02B, "B"),
    "screen_info.rsvd_size": (0x02C, "B"),
    "screen_info.rsvd_pos": (0x02D, "B"),
    "screen_info.vesapm_seg": (0x02E, "H"),
    "screen_info.vesapm_off": (0x030, "H"),
    "screen_info.pages": (0x032, "H"),
    "screen_info.vesa_attributes": (0x034, "H"),
    "screen_info.capabilities": (0x036, "I"),
    "screen_info.ext_lfb_base": (0x03A, "I"),
    "apm_bios_info": (0x040, 20),
    "tboot_addr": (0x058, "Q"),
    "ist_info": (0x060, 16),
    "acpi_rsdp_addr": (0x070, "Q"),
    "hd0_info": (0x080, 16),
    "hd1_info": (0x090, 16),
    "sys_desc_table": (0x0A0, 16),
    "olpc_ofw_header": (0x0B0, 16),
    "ext_ramdisk_image": (0x0C0, "I"),
    "ext_ramdisk_size": (0x0C4, "I"),
    "ext_cmd_line_ptr": (0x0C8, "I"),
    "cc_blob_address": (0x13C, "I"),
    "edid_info": (0x140, 128),
    "efi_info.efi_loader_signature": (0x1C0, "I"),
    "efi_info.efi_systab": (0x1C4, "I"),
    "efi_info.efi_memdesc_size": (0x1C8, "I"),
    "efi_info.efi_memdesc_version": (0x1CC, "I"),
    "efi_info.efi_memmap": (0x1D0, "I"),
    "efi_info.efi_memmap_size": (0x1D4, "I"),
    "efi_info.efi_systab_hi": (0x1D8, "I"),
    "efi_info.efi_memmap_hi": (0x1DC, "I"),
    "alt_mem_k": (0x1E0, "I"),
    "scratch": (0x1E4, "I"),
    "e820_entries": (0x1E8, "B"),
    "eddbuf_entries": (0x1E9, "B"),
    "edd_mbr_sig_buf_entries": (0x1EA, "B"),
    "kbd_status": (0x1EB, "B"),
    "secure_boot": (0x1EC, "B"),
    "sentinel": (0x1EF, "B"),
    "hdr.setup_sects": (0x1F1, "B"),
    "hdr.root_flags": (0x1F2, "H"),
    "hdr.syssize": (0x1F4, "I"),
    "hdr.ram_size": (0x1F8, "H"),
    "hdr.vid_mode": (0x1FA, "H"),
    "hdr.root_dev": (0x1FC, "H"),
    "hdr.boot_flag": (0x1FE, "H"),
    "hdr.jump": (0x200, "H"),
    "hdr.header": (0x202, "I"),
    "hdr.version": (0x206, "H"),
    "hdr.realmode_swtch": (0x208, "I"),
    "hdr.start_sys_seg": (0x20C, "H"),
    "hdr.kernel_version": (0x20E, "H"),
    "hdr.type_of_loader": (0x210, "B"),
    "hdr.loadflags": (0x211, "B"),
    "hdr.setup_move_size": (0x212, "H"),
    "hdr.code32_start": (0x214, "I"),
    "hdr.ramdisk_image": (0x218, "I"),
    "hdr.ramdisk_size": (0x21C, "I"),
    "hdr.bootsect_kludge": (0x220, "I"),
    "hdr.heap_end_ptr": (0x224, "H"),
    "hdr.ext_loader_ver": (0x226, "B"),
    "hdr.ext_loader_type": (0x227, "B"),
    "hdr.cmd_line_ptr": (0x228, "I"),
    "hdr.initrd_addr_max": (0x22C, "I"),
    "hdr.kernel_alignment": (0x230, "I"),
    "hdr.relocatable_kernel": (0x234, "B"),
    "hdr.min_alignment": (0x235, "B"),
    "hdr.xloadflags": (0x236, "H"),
    "hdr.cmdline_size": (0x238, "I"),
    "hdr.hardware_subarch": (0x23C, "I"),
    "hdr.hardware_subarch_data": (0x240, "Q"),
    "hdr.payload_offset": (0x248, "I"),
    "hdr.payload_length": (0x24C, "I"),
    "hdr.setup_data": (0x250, "Q"),
    "hdr.pref_address": (0x258, "Q"),
    "hdr.init_size": (0x260, "I"),
    "hdr.handover_offset": (0x264, "I"),
    "hdr.kernel_info_offset": (0x268, "I"),
    "edd_mbr_sig_buffer": (0x290, 64),
    "eddbuf": (0xD00, 492),
}
SETUP_E820_EXT, SETUP_EFI = 1, 4
# struct efi_setup_data, arch/x86/include/asm/efi.h
EFI_SETUP = ("fw_vendor", "runtime", "tables", "smbios")
EFI_DESCRIPTOR = struct.Struct("<I4xQQQQ")
MAP_TYPES = {1: "RAM", 2: "reserved", 3: "ACPI tables", 4: "ACPI NVS", 5: "unusable", 7: "PMEM"}


class Header(NamedTuple):
    """One program header, its fields named as in the ELF specification."""

    type: str
    flags: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int
    align: int

    @property
    def end(self) -> int:
        return self.paddr + self.memsz


class EfiRange(NamedTuple):
    """One descriptor of EFI's map for runtime services: efi_memory_desc_t of include/linux/efi.h."""

    type: int
    phys: int
    virt: int
    pages: int
    attribute: int


class Entry(NamedTuple):
    """One line of the memory map, half-open, its type in words."""

    start: int
    end: int
    type: str


@dataclass(frozen=True)
class Image:
    """What one load left. ``fields`` has those of boot_params that are not zero, bytes as hex.

    ``setup_data`` are the (type, bytes) of the chain without the memory map's continuation, the bytes
    as digest; ``places`` where each part lies, by name: boot_params, cmdline, ramdisk, elfcorehdr.
    ``core`` are the fields of the ELF header itself. ``efi`` is what SETUP_EFI says, ``efi_map`` the
    map that efi_info points at.
    """

    fields: dict[str, int | str]
    memory_map: tuple[Entry, ...]
    setup_data: tuple[tuple[int, int, str], ...]
    cmdline: str
    ramdisk_bytes: int
    ramdisk_sha256: str
    places: dict[str, int]
    core: dict[str, int | str] = field(default_factory=dict)
    headers: tuple[Header, ...] = ()
    efi: dict[str, int] = field(default_factory=dict)
    efi_map: tuple[EfiRange, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data, for a file that people compare."""
        return {
            "fields": self.fields,
            "memory_map": [list(entry) for entry in self.memory_map],
            "setup_data": [list(node) for node in self.setup_data],
            "cmdline": self.cmdline,
            "ramdisk": [self.ramdisk_bytes, self.ramdisk_sha256],
            "places": self.places,
            "core": self.core,
            "headers": [list(header) for header in self.headers],
            "efi": self.efi,
            "efi_map": [list(descriptor) for descriptor in self.efi_map],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Image:
        """The image that :meth:`to_json` wrote."""
        return cls(
            fields=data["fields"],
            memory_map=tuple(Entry(*entry) for entry in data["memory_map"]),
            setup_data=tuple((node[0], node[1], node[2]) for node in data["setup_data"]),
            cmdline=data["cmdline"],
            ramdisk_bytes=data["ramdisk"][0],
            ramdisk_sha256=data["ramdisk"][1],
            places=data["places"],
            core=data["core"],
            headers=tuple(Header(*header) for header in data["headers"]),
            efi=data["efi"],
            efi_map=tuple(EfiRange(*descriptor) for descriptor in data["efi_map"]),
        )


def parse_image(raw: Mapping[str, Any]) -> Image:
    """Make sense of what guestfiles/reading.py printed; FormatError where it has none."""
    page = base64.b64decode(raw["boot_params"])
    if len(page) != PAGE:
        raise FormatError("boot_params", f"{len(page)} bytes, not {PAGE}", offset=0)
    nodes = [(n["type"], n["bytes"], base64.b64decode(n["data"])) for n in raw["setup_data"]]
    count = page[BOOT_PARAMS["e820_entries"][0]]
    if count > TABLE_MOST:
        raise FormatError("boot_params", f"{count} map entries", offset=0x1E8)
    table = page[TABLE_AT : TABLE_AT + count * ENTRY_BYTES]
    table += b"".join(data for kind, _, data in nodes if kind == SETUP_E820_EXT)
    places = {
        name: raw[f"{name}_phys"]
        for name in ("boot_params", "cmdline", "ramdisk", "elfcorehdr")
        if f"{name}_phys" in raw
    }
    core: dict[str, int | str] = {}
    headers: tuple[Header, ...] = ()
    if "elfcorehdr" in raw:
        core, headers = parse_core(base64.b64decode(raw["elfcorehdr"]))
    return Image(
        fields=parse_fields(page, count),
        memory_map=parse_map(table),
        setup_data=tuple(
            (kind, size, hashlib.sha256(data).hexdigest())
            for kind, size, data in nodes
            if kind not in (SETUP_E820_EXT, SETUP_EFI)
        ),
        cmdline=base64.b64decode(raw["cmdline"]).decode("utf-8", "surrogateescape"),
        ramdisk_bytes=raw["ramdisk_bytes"],
        ramdisk_sha256=raw["ramdisk_sha256"],
        places=places,
        core=core,
        headers=headers,
        efi=next((parse_efi(data) for kind, _, data in nodes if kind == SETUP_EFI), {}),
        efi_map=parse_efi_map(base64.b64decode(raw.get("efi_memmap", "")), page),
    )


def parse_fields(page: bytes, entries: int) -> dict[str, int | str]:
    """All of boot_params that is not zero, but the ``entries`` of the memory map."""
    out: dict[str, int | str] = {}
    left = bytearray(page)
    left[TABLE_AT : TABLE_AT + entries * ENTRY_BYTES] = bytes(entries * ENTRY_BYTES)
    for name, (at, code) in BOOT_PARAMS.items():
        size = code if isinstance(code, int) else struct.calcsize("<" + code)
        data = page[at : at + size]
        left[at : at + size] = bytes(size)
        if any(data):
            out[name] = data.hex() if isinstance(code, int) else int.from_bytes(data, "little")
    # nobody should write there: each run of bytes is a field of its own
    at = 0
    while at < PAGE:
        end = at
        while end < PAGE and left[end]:
            end += 1
        if end > at:
            out[f"{at:#05x}"] = bytes(left[at:end]).hex()
        at = end + 1
    return out


def parse_efi(data: bytes) -> dict[str, int]:
    """The fields of SETUP_EFI that are not zero."""
    if len(data) < 8 * len(EFI_SETUP):
        raise FormatError("setup_data SETUP_EFI", f"{len(data)} bytes", offset=0)
    values = struct.unpack_from(f"<{len(EFI_SETUP)}Q", data)
    return {name: value for name, value in zip(EFI_SETUP, values) if value}


def parse_efi_map(data: bytes, page: bytes) -> tuple[EfiRange, ...]:
    """The descriptors, which have the size that the zero page names."""
    size = int.from_bytes(page[0x1C8:0x1CC], "little")
    if not data:
        return ()
    if size < EFI_DESCRIPTOR.size:
        raise FormatError("EFI memory map", f"descriptors of {size} bytes", offset=0x1C8)
    ends = range(EFI_DESCRIPTOR.size, len(data) + 1, size)
    return tuple(
        EfiRange(*EFI_DESCRIPTOR.unpack_from(data, end - EFI_DESCRIPTOR.size)) for end in ends
    )


def parse_map(table: bytes) -> tuple[Entry, ...]:
    """The lines of the memory map, in their order."""
    return tuple(
        Entry(start, start + size, MAP_TYPES.get(kind, f"type {kind}"))
        for start, size, kind in struct.iter_unpack("<QQI", table)
    )


def parse_core(data: bytes) -> tuple[dict[str, int | str], tuple[Header, ...]]:
    """The ELF header's fields that mean something, and all program headers."""
    elf = ELFFile(io.BytesIO(data))
    core: dict[str, int | str] = {
        name: elf.header[name]
        for name in ("e_type", "e_machine", "e_version", "e_entry", "e_flags", "e_phentsize")
    }
    ident = elf.header["e_ident"]
    for name in ("EI_CLASS", "EI_DATA", "EI_VERSION", "EI_OSABI", "EI_ABIVERSION"):
        core[name] = ident[name]
    headers = tuple(
        Header(
            str(h["p_type"]),
            *(
                h[f"p_{name}"]
                for name in ("flags", "offset", "vaddr", "paddr", "filesz", "memsz", "align")
            ),
        )
        for h in (elf.get_segment(n).header for n in range(elf.num_segments()))
    )
    return core, headers
