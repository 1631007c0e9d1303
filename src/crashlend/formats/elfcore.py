# SPDX-License-Identifier: LGPL-2.1-or-later
"""The ELF core header that the crash kernel turns into /proc/vmcore.

Layout: ELF-64 (System V gABI, ch. 4 and 5). Content: crash_prepare_elf64_headers() in
kernel/crash_core.c. p_offset is a *physical address*: that is how fs/proc/vmcore.c reads it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crashlend.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Sequence

EHDR = struct.Struct("<4sBBBBB7xHHIQQQIHHHHHH")
PHDR = struct.Struct("<IIQQQQQQ")
ELFCLASS64, ELFDATA2LSB, EV_CURRENT = 2, 1, 1
ET_CORE = 4
EM_X86_64 = 62
PT_LOAD, PT_NOTE = 1, 4
PF_RWX = 7
# x86_64: from here on up the kernel's image is mapped, below lies the direct mapping of all RAM
KERNEL_TEXT_BASE = 0xFFFFFFFF80000000


@dataclass(frozen=True)
class ProgramHeader:
    """One program header. ``phys`` and ``bytes`` bound the memory, ``virt`` is where it is mapped."""

    type: int
    phys: int
    bytes: int
    virt: int = 0

    @property
    def end(self) -> int:
        return self.phys + self.bytes


def build_core_header(headers: Sequence[ProgramHeader], machine: int = EM_X86_64) -> bytes:
    """The ELF header and its program headers, in the given order.

    FormatError when there are more than e_phnum can count (65534; PN_XNUM means another thing).
    """
    if len(headers) >= 0xFFFF:
        raise FormatError("core header", f"{len(headers)} program headers; 65534 at most")
    ehdr = EHDR.pack(
        b"\x7fELF",
        ELFCLASS64,
        ELFDATA2LSB,
        EV_CURRENT,
        0,  # ELFOSABI_NONE
        0,
        ET_CORE,
        machine,
        EV_CURRENT,
        0,
        EHDR.size,
        0,
        0,
        EHDR.size,
        PHDR.size,
        len(headers),
        0,
        0,
        0,
    )
    return ehdr + b"".join(
        PHDR.pack(
            h.type,
            PF_RWX if h.type == PT_LOAD else 0,
            h.phys,
            h.virt,
            h.phys,
            h.bytes,
            h.bytes,
            0 if h.type == PT_LOAD else 4,
        )
        for h in headers
    )


def headers_end(data: bytes) -> int:
    """Where the program headers end in the file whose first 64 bytes are ``data``."""
    if len(data) < EHDR.size or data[:4] != b"\x7fELF":
        raise FormatError("ELF core", "no ELF header", offset=0)
    fields = EHDR.unpack_from(data)
    end: int = fields[10] + fields[14] * fields[15]
    if end > 1 << 24:
        raise FormatError("ELF core", "its program headers are not near its start", offset=32)
    return end


def parse_program_headers(data: bytes, *, physical: bool = True) -> list[ProgramHeader]:
    """Read an ELF-64 core's program headers from its first bytes (/proc/kcore, /proc/vmcore).

    ``physical``: take p_paddr as the address (kcore has all ones where there is none).
    """
    if len(data) < EHDR.size or data[:4] != b"\x7fELF":
        raise FormatError("ELF core", "no ELF header", offset=0)
    fields = EHDR.unpack_from(data)
    if fields[1] != ELFCLASS64 or fields[2] != ELFDATA2LSB:
        raise FormatError("ELF core", "not 64-bit little-endian", offset=4)
    at, size, count = fields[10], fields[14], fields[15]
    if count and size != PHDR.size:
        raise FormatError("ELF core", f"program headers of {size} bytes", offset=54)
    if at + size * count > len(data):
        raise FormatError("ELF core", f"{count} program headers, cut short", offset=len(data))
    out = []
    for index in range(count):
        kind, _, offset, virt, phys, _, memsz, _ = PHDR.unpack_from(data, at + index * size)
        out.append(ProgramHeader(kind, phys if physical else offset, memsz, virt))
    return out
