# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel's own mark on each pageblock: which parts of some memory are MIGRATE_CMA.

No file tells that of an address: /proc/zoneinfo and /proc/pagetypeinfo count by zone. The marks lie
in the kernel's memory, which /proc/kcore shows to root (not under lockdown=confidentiality), and where
to look is told by the kernel: vmcoreinfo has mem_section, BTF its fields.
[mm/page_alloc.c: get_pfnblock_migratetype(), include/linux/mmzone.h: struct mem_section]
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional

from crashlend.errors import CrashlendError, FormatError
from crashlend.formats.btf import read_types
from crashlend.formats.procfs import parse_address_size
from crashlend.kcore import KCORE, Kcore
from crashlend.ranges import Range, Ranges

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crashlend.facts.reader import Reader
    from crashlend.hostfiles import HostFiles

PAGE = 4096
BTF, PAGE_TYPES = "/sys/kernel/btf/vmlinux", "/proc/pagetypeinfo"
VMCOREINFO = "/sys/kernel/vmcoreinfo"
TYPES = ("mem_section", "mem_section_usage", "pageblock_bits", "migratetype")
TYPE_BITS = 0b111  # PAGEBLOCK_MIGRATETYPE_MASK; in 6.12 PB_migrate to PB_migrate_end


@dataclass(frozen=True)
class Marks:
    """Where the marks lie and how to read them; sizes in bytes, ``bits`` for each pageblock.

    ``roots`` is the virtual address of mem_section, the array of ``root_count`` pointers to pages of
    ``entry`` bytes for each section (CONFIG_SPARSEMEM_EXTREME).
    """

    roots: int
    root_count: int
    entry: int
    usage: int
    flags: int
    section: int
    block: int
    bits: int
    cma: int


def cma_parts(reader: Reader, memory: Ranges) -> tuple[Optional[Ranges], str]:
    """What of ``memory`` lies in pageblocks of type CMA, in whole pageblocks; else None, and why.

    The marks are believed only when /proc/pagetypeinfo, where the kernel counts them, has as many.
    """
    try:
        core = _kernel_memory(reader.files)
        counted = _read(reader.files, PAGE_TYPES)
        info = core.physical(*parse_address_size(_read(reader.files, VMCOREINFO), VMCOREINFO))
        marks = _marks(info, _read(reader.files, BTF), counted)
        found = Ranges(_marked(core, marks, memory))
        blocks = sum(r.size // marks.block for r in found)
        if blocks > _cma_blocks(counted):
            raise FormatError(
                PAGE_TYPES, f"it counts {_cma_blocks(counted)} CMA pageblocks, the marks {blocks}"
            )
    except OSError as error:
        return None, error.strerror or str(error)
    except CrashlendError as error:
        return None, str(error)
    except (LookupError, ValueError) as error:
        return None, f"what tells of them is not understood: {error}"
    return found & memory, ""


def _kernel_memory(files: HostFiles) -> Kcore:
    try:
        return Kcore(files)
    except FileNotFoundError:
        raise FormatError(KCORE, "no such file on this host") from None


def _pointer(core: Kcore, at: int) -> int:
    (value,) = struct.unpack("<Q", core.virtual(at, 8))
    return int(value)


def _read(files: HostFiles, path: str, limit: int = 1 << 26) -> bytes:
    try:
        return files.read(path, limit)
    except FileNotFoundError:
        raise FormatError(path, "no such file on this host") from None


def _marks(info: bytes, btf: bytes, page_types: bytes) -> Marks:
    """Put together what vmcoreinfo, BTF and pagetypeinfo say; KeyError names what they lack."""
    types = read_types(btf, TYPES)
    section_bits = _number(info, rb"NUMBER\(SECTION_SIZE_BITS\)")
    entry, roots = _number(info, rb"SIZE\(mem_section\)"), _number(info, rb"LENGTH\(mem_section\)")
    order = _number(page_types, rb"Page block order", rb": *")
    bits = types["pageblock_bits"]
    # Linux 6.12 has the latter, 6.18 the former
    count = bits["__NR_PAGEBLOCK_BITS" if "__NR_PAGEBLOCK_BITS" in bits else "NR_PAGEBLOCK_BITS"]
    if not (0 <= order <= section_bits - 12 <= 30 and 8 <= entry <= PAGE and 0 < count <= 32):
        raise FormatError("vmcoreinfo", "sizes of mem_section that can't be")
    # CONFIG_SPARSEMEM_EXTREME: without it every section is a root of its own, and no pointer
    if roots * (PAGE // entry) != 1 << _number(info, rb"NUMBER\(MAX_PHYSMEM_BITS\)") - section_bits:
        raise FormatError("vmcoreinfo", "mem_section is no array of pages")
    return Marks(
        roots=_number(info, rb"SYMBOL\(mem_section\)", base=16),
        root_count=roots,
        entry=entry,
        usage=types["mem_section"]["usage"],
        flags=types["mem_section_usage"]["pageblock_flags"],
        section=1 << section_bits,
        block=PAGE << order,
        bits=1 << (count - 1).bit_length(),
        cma=types["migratetype"]["MIGRATE_CMA"],
    )


def _marked(core: Kcore, marks: Marks, memory: Ranges) -> Iterator[tuple[int, int]]:
    """Each pageblock of ``memory`` whose type is CMA, a section at a time."""
    for run in memory.align_outwards(marks.block):
        for number in range(run.start // marks.section, -(-run.end // marks.section)):
            start = number * marks.section
            part = Range(max(run.start, start), min(run.end, start + marks.section))
            flags = _flags_of(core, marks, number)
            for at in range(part.start, part.end, marks.block):
                shift = (at - start) // marks.block * marks.bits
                if flags >> shift & TYPE_BITS == marks.cma:
                    yield at, at + marks.block


def _flags_of(core: Kcore, marks: Marks, section: int) -> int:
    """The pageblock flags of one section, as one number; 0 (unmovable) where it has none."""
    per_root = PAGE // marks.entry
    if section // per_root >= marks.root_count:
        raise FormatError("mem_section", f"it has no section {section}")
    root = _pointer(core, marks.roots + section // per_root * 8)
    if not root:
        return 0
    usage = _pointer(core, root + section % per_root * marks.entry + marks.usage)
    if not usage:
        return 0
    words = -(-marks.section // marks.block * marks.bits // 64)
    return int.from_bytes(core.virtual(usage + marks.flags, words * 8), "little")


def _cma_blocks(page_types: bytes) -> int:
    """How many pageblocks of type CMA the kernel counts in all zones (mm/vmstat.c)."""
    total, column = 0, None
    for line in page_types.splitlines():
        words = line.split()
        if line.startswith(b"Number of blocks type"):
            column = words.index(b"CMA") - len(words) if b"CMA" in words else None
        elif not line.strip():
            column = None
        elif column is not None and line.startswith(b"Node"):
            total += int(words[column])
    return total


def _number(text: bytes, name: bytes, between: bytes = b"=", base: int = 10) -> int:
    found = re.search(rb"(?m)^" + name + between + rb"([0-9a-f]+)$", text)
    if found is None:
        raise KeyError(name.decode().replace("\\", ""))
    return int(found.group(1), base)
