# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a dump file says of itself, whether all of it is there, and which memory is in it.

kdump-compressed dumps and ELF cores, either as they are or flattened. No page is unpacked: what the
pages say is for makedumpfile, crash and drgn.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Optional

from crashlend.errors import FormatError
from crashlend.formats import diskdump, elfcore
from crashlend.ranges import Ranges

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crashlend.dumps.corefile import CoreFile

# read at a time: bitmaps, and descriptors (a whole number of them)
STEP = 1 << 20
DESCRIPTORS_STEP = diskdump.DESCRIPTOR.size << 16
# makedumpfile, check_and_modify_elf_headers(): e_flags of an ELF core that lacks something
ELF_INCOMPLETE = 1
ELF_HEADERS_MAX = 1 << 24


@dataclass(frozen=True)
class Core:
    """What was found in a dump file.

    ``form`` is kdump or elf; ``release`` and ``seconds`` (UNIX time) are of the crash, empty and 0 where
    the dump does not say; ``level`` is makedumpfile's -d (None: not written down); ``page_bytes`` the
    pages' size; ``pages`` how many are in the file; ``faults`` what makes it less than whole.
    """

    form: str
    flattened: bool
    file_bytes: int
    release: str = ""
    machine: str = ""
    seconds: int = 0
    level: Optional[int] = None
    compression: str = ""
    page_bytes: int = 4096
    pages: int = 0
    vmcoreinfo: dict[str, str] = field(default_factory=dict)
    faults: tuple[str, ...] = ()


def read_core(file: CoreFile) -> Core:
    """Read and check a dump's headers and tables. FormatError where it is no dump at all."""
    head = file.read(0, diskdump.HEAD_BYTES)
    if diskdump.is_kdump(head):
        return _read_kdump(file, diskdump.parse(head))
    if head[:4] == b"\x7fELF":
        return _read_elf(file)
    raise FormatError("dump", "neither a kdump-compressed file nor an ELF core", offset=0)


def memory_in(file: CoreFile, memory: Ranges) -> int:
    """How many bytes of physical ``memory`` the dump claims to hold, or says /proc/vmcore held.

    Zero for what was lent. FormatError where it is no dump.
    """
    head = file.read(0, diskdump.HEAD_BYTES)
    if not diskdump.is_kdump(head):
        return (_elf_memory(file) & memory).size
    header = diskdump.parse(head)
    page = header.block_bytes
    found = 0
    for start, end in memory.align_inwards(page):
        counts = [_count(file, bits, start // page, end // page) for bits in header.bitmaps]
        found += max(counts)
    return found * page


def _count(file: CoreFile, bits: diskdump.Extent, first: int, end: int) -> int:
    """The set bits of a bitmap among those of the page frames [first, end)."""
    found = 0
    at = first // 8
    last = min(-(-end // 8), bits.bytes)
    while at < last:
        data = file.read(bits.offset + at, min(STEP, last - at))
        if not data:
            break
        found += diskdump.count_bits_between(data, max(first - at * 8, 0), end - at * 8)
        at += len(data)
    return found


def _read_kdump(file: CoreFile, header: diskdump.Header) -> Core:
    info = diskdump.parse_vmcoreinfo(
        file.read(header.vmcoreinfo.offset, header.vmcoreinfo.bytes)
        if header.vmcoreinfo.bytes
        else b""
    )
    present = _count(file, header.bitmaps[1], 0, header.pages)
    return Core(
        form="kdump",
        flattened=file.pieces is not None,
        file_bytes=file.file_bytes,
        release=header.release,
        machine=header.machine,
        seconds=header.seconds,
        level=header.level,
        compression=header.compression,
        page_bytes=header.block_bytes,
        pages=present,
        vmcoreinfo=info,
        faults=tuple(_kdump_faults(file, header, info, present)),
    )


def _kdump_faults(
    file: CoreFile, header: diskdump.Header, info: dict[str, str], present: int
) -> Iterator[str]:
    if header.incomplete:
        yield "makedumpfile marked it as incomplete: it had no space left"
    if header.split:
        yield "it is one part of several (makedumpfile --split): --reassemble joins them"
    if info.get("OSRELEASE", header.release) != header.release:
        yield f"its vmcoreinfo is of {info['OSRELEASE']}, its header of {header.release}"
    if not info:
        yield "it has no vmcoreinfo: crash and drgn will not open it"
    if not present:
        yield "it holds no page"
    end = header.descriptors_at + present * diskdump.DESCRIPTOR.size
    if end > file.bytes:
        yield f"it is cut short: {file.bytes} bytes, and {end} are needed for its tables alone"
        return
    pages = diskdump.Extent(end, file.bytes - end)
    number, at = 0, header.descriptors_at
    while at < end:
        size = min(DESCRIPTORS_STEP, end - at)
        data = file.read(at, size)
        if len(data) < size:  # it got shorter meanwhile
            yield "it is cut short: its descriptors end too early"
            return
        bad = diskdump.find_bad_descriptor(data, number, header.block_bytes, pages)
        if bad:
            yield f"it is cut short or damaged: {bad}"
            return
        number += len(data) // diskdump.DESCRIPTOR.size
        at += len(data)


# --- ELF ----------------------------------------------------------------------------------------


def _elf_headers(file: CoreFile) -> tuple[int, list[tuple[int, int, int, int]]]:
    """e_flags, and of each program header: type, place in the file, physical address, bytes there."""
    ehdr = file.read(0, elfcore.EHDR.size)
    fields = elfcore.EHDR.unpack(ehdr) if len(ehdr) == elfcore.EHDR.size else ()
    if not fields or (fields[1], fields[2]) != (elfcore.ELFCLASS64, elfcore.ELFDATA2LSB):
        raise FormatError("ELF core", "not 64-bit little-endian", offset=4)
    if fields[6] != elfcore.ET_CORE:
        raise FormatError("ELF core", f"type {fields[6]} is no core", offset=16)
    at, flags, size, count = fields[10], fields[12], fields[14], fields[15]
    if count == 0xFFFF:  # PN_XNUM: sh_info of the first section has the number
        count = int.from_bytes(file.read(fields[11] + 44, 4), "little")
    if size != elfcore.PHDR.size or not 0 < count * size <= ELF_HEADERS_MAX:
        raise FormatError("ELF core", f"{count} program headers of {size} bytes", offset=54)
    table = file.read(at, count * size)
    if len(table) < count * size:
        raise FormatError("ELF core", "its program headers are cut short", offset=at)
    headers = [(h[0], h[2], h[4], h[5]) for h in elfcore.PHDR.iter_unpack(table)]
    return flags, headers


def _elf_memory(file: CoreFile) -> Ranges:
    _, headers = _elf_headers(file)
    loads = [(phys, phys + size) for kind, _, phys, size in headers if kind == elfcore.PT_LOAD]
    return Ranges(loads)


def _read_elf(file: CoreFile) -> Core:
    flags, headers = _elf_headers(file)
    faults = []
    if flags & ELF_INCOMPLETE:
        faults.append("makedumpfile marked it as incomplete: it had no space left")
    loads = [h for h in headers if h[0] == elfcore.PT_LOAD]
    end = max((at + size for _, at, _, size in headers), default=0)
    if not loads:
        faults.append("it holds no memory")
    if end > file.bytes:
        faults.append(f"it is cut short: {file.bytes} bytes of {end}")
    info: dict[str, str] = {}
    left = ELF_HEADERS_MAX
    for kind, at, _, size in headers:
        if kind == elfcore.PT_NOTE and left > 0:
            info.update(_vmcoreinfo_of(file.read(at, min(size, left))))
            left -= size
    if not info:
        faults.append("it has no vmcoreinfo: crash and drgn will not open it")
    return Core(
        form="elf",
        flattened=file.pieces is not None,
        file_bytes=file.file_bytes,
        release=info.get("OSRELEASE", ""),
        seconds=_number(info.get("CRASHTIME", "")),
        compression="none",
        pages=_elf_memory(file).size // 4096,
        vmcoreinfo=info,
        faults=tuple(faults),
    )


def _number(text: str) -> int:
    """A decimal number of at most 20 digits; 0 for any other text. int() refuses very long ones."""
    return int(text) if re.fullmatch(r"[0-9]{1,20}", text) else 0


def _vmcoreinfo_of(notes: bytes) -> dict[str, str]:
    """The content of the note VMCOREINFO, if these are whole notes with one among them."""
    at = 0
    while at + 12 <= len(notes):
        name_bytes, bytes_, _ = (
            int.from_bytes(notes[at + n : at + n + 4], "little") for n in (0, 4, 8)
        )
        name = notes[at + 12 : at + 12 + name_bytes].rstrip(b"\0")
        begin = at + 12 + -(-name_bytes // 4) * 4
        if name == b"VMCOREINFO":
            return diskdump.parse_vmcoreinfo(notes[begin : begin + bytes_])
        at = begin + -(-bytes_ // 4) * 4
    return {}
