# SPDX-License-Identifier: LGPL-2.1-or-later
"""A bounded reader of what is needed from ELF files: machine, interpreter, needed libraries.

Source: the System V gABI, chapters 4 and 5, and <elf.h>. Only program headers are used, since
they are what the dynamic loader itself goes by; section headers may be stripped.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from crashlend.errors import FormatError

MAGIC = b"\x7fELF"
_CLASSES = {1: 32, 2: 64}  # EI_CLASS
_ORDERS = {1: "<", 2: ">"}  # EI_DATA

# Per class: field names and struct codes, in file order.
_HEADER_AT = 16  # behind e_ident
_HEADER_NAMES = (
    *("type", "machine", "version", "entry", "phoff", "shoff", "flags", "ehsize"),
    *("phentsize", "phnum", "shentsize", "shnum", "shstrndx"),
)
_HEADER = {32: "HHIIIIIHHHHHH", 64: "HHIQQQIHHHHHH"}
_PHDR_NAMES = {
    32: ("type", "offset", "vaddr", "paddr", "filesz", "memsz", "flags", "align"),
    64: ("type", "flags", "offset", "vaddr", "paddr", "filesz", "memsz", "align"),
}
_PHDR = {32: "IIIIIIII", 64: "IIQQQQQQ"}
_DYNAMIC = {32: "iI", 64: "qQ"}

PT_LOAD, PT_DYNAMIC, PT_INTERP = 1, 2, 3
DT_NULL, DT_NEEDED, DT_STRTAB, DT_STRSZ, DT_RPATH, DT_RUNPATH = 0, 1, 5, 10, 15, 29

_STRING_BYTES_MAX = 4096  # PATH_MAX


@dataclass(frozen=True)
class Elf:
    """What the dynamic loader needs to know of an ELF file.

    ``bits`` is 32 or 64, ``order`` ``<`` or ``>``; ``interpreter`` is empty for static files
    and libraries; ``rpath`` and ``runpath`` are split at ``:``, ``$ORIGIN`` left as it is.
    """

    bits: int
    order: str
    machine: int
    interpreter: str = ""
    needed: tuple[str, ...] = ()
    rpath: tuple[str, ...] = ()
    runpath: tuple[str, ...] = ()

    @property
    def abi(self) -> tuple[int, str, int]:
        """Equal for files that can be loaded into one process."""
        return self.bits, self.order, self.machine


def is_elf(data: bytes) -> bool:
    """Whether ``data`` begins like an ELF file."""
    return data[: len(MAGIC)] == MAGIC


def parse_elf(data: bytes) -> Elf:
    """Read an executable or a shared library. Raises FormatError with the offset."""
    if not is_elf(data):
        raise FormatError("ELF file", "no ELF magic", offset=0)
    if len(data) < _HEADER_AT or data[4] not in _CLASSES or data[5] not in _ORDERS:
        raise FormatError("ELF file", "unknown class or byte order", offset=4)
    bits, order = _CLASSES[data[4]], _ORDERS[data[5]]
    values = _unpack(data, _HEADER_AT, order + _HEADER[bits], "file header")
    header = dict(zip(_HEADER_NAMES, values))
    segments = _segments(data, bits, order, header)

    interpreter = ""
    dynamic: list[tuple[int, int]] = []
    for segment in segments:
        if segment["type"] == PT_INTERP:
            end = segment["offset"] + segment["filesz"]
            interpreter = _string(data, segment["offset"], end, "interpreter")
        elif segment["type"] == PT_DYNAMIC:
            dynamic = _dynamic(data, bits, order, segment)
    if not dynamic:
        return Elf(bits, order, header["machine"], interpreter)

    table = dict(reversed(dynamic))  # the first of several counts
    if DT_STRTAB not in table:
        raise FormatError("ELF file", "dynamic section without a string table")
    start = _file_offset(table[DT_STRTAB], segments)
    end = min(len(data), start + table.get(DT_STRSZ, len(data)))

    def strings(tag: int) -> list[str]:
        return [_string(data, start + v, end, "dynamic string") for t, v in dynamic if t == tag]

    return Elf(
        bits,
        order,
        header["machine"],
        interpreter,
        needed=tuple(strings(DT_NEEDED)),
        rpath=_split_path(strings(DT_RPATH)),
        runpath=_split_path(strings(DT_RUNPATH)),
    )


def _segments(data: bytes, bits: int, order: str, header: dict[str, int]) -> list[dict[str, int]]:
    names, layout = _PHDR_NAMES[bits], order + _PHDR[bits]
    size = struct.calcsize(layout)
    if header["phnum"] and header["phentsize"] != size:
        why = f"program headers of {header['phentsize']} bytes, not {size}"
        raise FormatError("ELF file", why, offset=_HEADER_AT)
    return [
        dict(zip(names, _unpack(data, header["phoff"] + i * size, layout, "segment")))
        for i in range(header["phnum"])
    ]


def _dynamic(data: bytes, bits: int, order: str, segment: dict[str, int]) -> list[tuple[int, int]]:
    layout = order + _DYNAMIC[bits]
    size = struct.calcsize(layout)
    entries: list[tuple[int, int]] = []
    for index in range(segment["filesz"] // size):
        at = segment["offset"] + index * size
        tag, value = _unpack(data, at, layout, "dynamic entry")
        if tag == DT_NULL:
            break
        entries.append((tag, value))
    return entries


def _file_offset(address: int, segments: list[dict[str, int]]) -> int:
    for segment in segments:
        distance = address - segment["vaddr"]
        if segment["type"] == PT_LOAD and 0 <= distance < segment["filesz"]:
            return segment["offset"] + distance
    raise FormatError("ELF file", f"address {address:#x} is in no loaded segment")


def _unpack(data: bytes, at: int, layout: str, what: str) -> tuple[int, ...]:
    size = struct.calcsize(layout)
    if at + size > len(data):
        raise FormatError("ELF file", f"{what} ends behind the file", offset=at)
    return struct.unpack_from(layout, data, at)


def _string(data: bytes, start: int, end: int, what: str) -> str:
    limit = min(end, len(data), start + _STRING_BYTES_MAX)
    nul = data.find(b"\0", start, limit) if start < limit else -1
    if nul < 0:
        raise FormatError("ELF file", f"{what} is not ended by a NUL", offset=start)
    return data[start:nul].decode(errors="surrogateescape")


def _split_path(values: list[str]) -> tuple[str, ...]:
    return tuple(part for value in values for part in value.split(":") if part)
