# SPDX-License-Identifier: LGPL-2.1-or-later
"""Kernel modules without what a crash kernel can do without.

A module file is an ELF relocatable object with the signature behind it. Nearly half of one is there
for others than the code itself: type information for BPF, tables for stack traces and tracing,
names of functions. The module loader takes it as optional (each entry of DROPPED says where), and
what remains is what it reads: code, data, relocations, versions. Section numbers do not change.

What is lost: stack traces through such a module show no names and may be marked unreliable, and
nothing in it can be traced. What must not be touched (a signature that is going to be checked) is
not given to this function.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

# include/uapi/linux/elf.h
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELA = struct.Struct("<QQQ")
_IDENT = b"\x7fELF\x02\x01\x01"  # 64 bits, little endian
_RELOCATABLE, _X86_64 = 1, 62
_SYMTAB, _STRTAB, _RELA_TYPE, _NOBITS = 2, 3, 4, 8
_ALLOC = 2
_UNDEFINED = 0

# Sections of memory that the loader takes as optional, and who reads them.
DROPPED = {
    ".orc_unwind": "stack traces (arch/x86/kernel/unwind_orc.c: unwind_module_init)",
    ".orc_unwind_ip": "stack traces, likewise",
    ".orc_header": "stack traces, likewise",
    "__mcount_loc": "ftrace (kernel/trace/ftrace.c: ftrace_module_init); calls are nops or return",
    "__patchable_function_entries": "on x86 nobody; what is there is padding",
    "_ftrace_events": "trace events (kernel/trace/trace_events.c: trace_module_add_events)",
    "_ftrace_eval_map": "trace events, likewise",
    "__tracepoints_ptrs": "trace points (kernel/tracepoint.c: tracepoint_module_coming)",
    "__tracepoint_check": "trace points; only the build reads it",
    "__bpf_raw_tp_map": "BPF programs on trace points (kernel/trace/bpf_trace.c)",
    ".ibt_endbr_seal": "sealing of unused entries (arch/x86/kernel/alternative.c), a mitigation",
    ".call_sites": "call depth tracking (arch/x86/kernel/callthunks.c), a mitigation by choice",
}
# Outside memory: all but what the loader looks up (kernel/module/main.c).
_KEPT_OUTSIDE = re.compile(rb"\.(symtab|strtab|shstrtab|BTF.*|note.*|livepatch.*|klp.*)|\.rela.*")
# A module that registers types for BPF fails to load without its own (kernel/bpf/btf.c).
_NEEDS_BTF = re.compile(rb"btf|bpf_struct_ops")


class _Section(NamedTuple):
    name: int
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    entry: int


_NONE = _Section(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


def slim_module(data: bytes) -> bytes:
    """The module without its signature and what nobody reads while it is used.

    What is no x86-64 module in the layout of the ELF specification comes back as it is.
    """
    try:
        return _Slimmer(data).build()
    except (struct.error, IndexError, _UnknownLayoutError):
        return data


class _UnknownLayoutError(Exception):
    """The file is laid out in a way that is left alone."""


class _Slimmer:
    """One module while it is rebuilt."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.header = _HEADER.unpack_from(data)
        ident, kind, machine = self.header[:3]
        if not ident.startswith(_IDENT) or (kind, machine) != (_RELOCATABLE, _X86_64):
            raise _UnknownLayoutError
        offset, size, count, self.names_index = self.header[6], *self.header[11:14]
        if size != _SECTION.size or count < 2:
            raise _UnknownLayoutError
        self.sections = [
            _Section(*_SECTION.unpack_from(data, offset + index * size)) for index in range(count)
        ]
        self.strings = self.content(self.sections[self.names_index])
        tables = [i for i, s in enumerate(self.sections) if s.kind == _SYMTAB]
        if len(tables) != 1:
            raise _UnknownLayoutError
        self.table = tables[0]
        if self.sections[self.table].link == self.names_index:
            raise _UnknownLayoutError  # names of symbols and sections in one (clang's assembler)
        self.symbols = list(_SYMBOL.iter_unpack(self.content(self.sections[self.table])))

    def content(self, section: _Section) -> bytes:
        end = section.offset + section.size
        if end > len(self.data):
            raise _UnknownLayoutError
        return self.data[section.offset : end]

    def name(self, section: _Section) -> bytes:
        return self.strings[section.name : self.strings.index(b"\0", section.name)]

    def build(self) -> bytes:
        dropped = self.dropped()
        contents = {
            index: self.content(section)
            for index, section in enumerate(self.sections)
            if index and index not in dropped and section.kind not in (0, _NOBITS)
        }
        self.renumber(contents)
        return self.lay_out(contents, dropped)

    def dropped(self) -> set[int]:
        """The sections that are left out, by number."""
        names = self.content(self.sections[self.sections[self.table].link])
        imported = b"\0".join(
            names[name : names.index(b"\0", name)]
            for name, _, _, section, _, _ in self.symbols
            if section == _UNDEFINED and name
        )
        keep_btf = _NEEDS_BTF.search(imported) is not None
        found: set[int] = set()
        for index, section in enumerate(self.sections[1:], 1):
            name = self.name(section)
            if section.flags & _ALLOC:
                if name.decode(errors="replace") in DROPPED:
                    found.add(index)
            elif name.startswith(b".BTF"):
                if not keep_btf:
                    found.add(index)
            elif not _KEPT_OUTSIDE.fullmatch(name):
                found.add(index)
        for index, section in enumerate(self.sections):
            if section.kind == _RELA_TYPE and section.info in found:
                found.add(index)
        return found

    def renumber(self, contents: dict[int, bytes]) -> None:
        """Keep the symbols that relocations name, and the names of those defined elsewhere."""
        relas = {
            index: list(_RELA.iter_unpack(data))
            for index, data in contents.items()
            if self.sections[index].kind == _RELA_TYPE
        }
        used = {0, *(info >> 32 for entries in relas.values() for _, info, _ in entries)}
        old_names = self.content(self.sections[self.sections[self.table].link])
        numbers: dict[int, int] = {}
        names, table = bytearray(b"\0"), bytearray()
        first_global = 0
        for old, (name, info, other, section, value, size) in enumerate(self.symbols):
            if old not in used:
                continue
            numbers[old] = len(numbers)
            place = 0
            if name and (section == _UNDEFINED or section >= 0xFF00):
                place = len(names)
                names += old_names[name : old_names.index(b"\0", name)] + b"\0"
            table += _SYMBOL.pack(place, info, other, section, value, size)
            if info >> 4 == 0:  # local ones come first
                first_global = len(numbers)
        for index, entries in relas.items():
            contents[index] = b"".join(
                _RELA.pack(at, numbers[info >> 32] << 32 | info & 0xFFFFFFFF, addend)
                for at, info, addend in entries
            )
        old_table = self.sections[self.table]
        self.sections[self.table] = old_table._replace(info=first_global)
        contents[self.table] = bytes(table)
        contents[old_table.link] = bytes(names)

    def lay_out(self, contents: dict[int, bytes], dropped: set[int]) -> bytes:
        out = bytearray(_HEADER.size)
        headers: list[_Section] = []
        for index, section in enumerate(self.sections):
            if index in dropped or not index:
                headers.append(_NONE)
                continue
            out += bytes(-len(out) % max(section.alignment, 1))
            size = len(contents[index]) if index in contents else section.size
            headers.append(section._replace(offset=len(out), size=size))
            out += contents.get(index, b"")
        out += bytes(-len(out) % 8)
        header = list(self.header)
        header[6] = len(out)
        out[: _HEADER.size] = _HEADER.pack(*header)
        for section in headers:
            out += _SECTION.pack(*section)
        return bytes(out)
