# SPDX-License-Identifier: LGPL-2.1-or-later
"""Memory maps as text, for ``predict --map``: what people can copy from a machine.

Three forms, told apart by their content; ends are inclusive, as the kernel prints them:

- a kernel log: ``BIOS-e820: [mem 0x0-0x9fbff] usable``, "System RAM" in place of "usable" from 7.x.
  From the same log come RAMDISK, NODE_DATA and "node N:" where they are printed;
- /proc/iomem as root sees it: ``00100000-7ffdefff : System RAM``;
- one range per line as in /sys/firmware/memmap: ``0x100000-0x7ffdefff System RAM``. Lines that are
  empty or begin with "#" are passed over.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import NamedTuple

from crashlend.crashkernel.early import (
    MOVES,
    TYPICAL_KERNEL,
    MemoryMap,
    kernel_image,
    map_of_iomem,
)
from crashlend.errors import FormatError
from crashlend.formats.procfs import addresses_hidden, parse_iomem
from crashlend.ranges import Range, Ranges
from crashlend.sizes import mib

# No processor that Linux runs on addresses more.
LIMIT = 1 << 52
RAM_NAMES = ("usable", "system ram")

_MEM = rb"\[mem 0x([0-9a-f]+)-0x([0-9a-f]+)\]"
_E820 = re.compile(rb"BIOS-e820: " + _MEM + rb" *([^\r\n]*)")
_RAMDISK = re.compile(rb"\bRAMDISK: " + _MEM)
_NODE_DATA = re.compile(rb"NODE_DATA\(\d+\) allocated " + _MEM)
_NODE = re.compile(rb"\bnode +(\d{1,9}): " + _MEM)
_IOMEM = re.compile(rb" *[0-9a-f]+-[0-9a-f]+ : ")
_PLAIN = re.compile(rb"(?:0x)?([0-9a-f]+)\s*-\s*(?:0x)?([0-9a-f]+)[\s:]+(\S.*)", re.IGNORECASE)
_HINT = "crashlend predict --help names the three forms that --map reads"


class _Line(NamedTuple):
    start: int
    end: int
    kind: str
    number: int


def parse_map(data: bytes, what: str = "memory map") -> MemoryMap:
    """Read a memory map in any of the three forms.

    Overlapping entries count as the kernel counts them: where RAM and something else overlap it is
    not RAM. Entries of no bytes are passed over. Raises FormatError, with the line where there is
    one, for text in none of the forms, for an end below its start, for addresses of 2^52 and more,
    and for a map without RAM.
    """
    if b"BIOS-e820: [mem" in data:
        found = _parse_log(data, what)
    elif _IOMEM.match(data.lstrip(b"\n")):
        found = _parse_iomem(data, what)
    else:
        found = _from_lines(_plain_lines(data, what), what)
    if not found.ram:
        raise FormatError(what, "it has no RAM", hint=_HINT)
    return found


def _parse_log(data: bytes, what: str) -> MemoryMap:
    lines = [
        _Line(int(m[1], 16), int(m[2], 16) + 1, m[3].decode("ascii", "replace"), 0)
        for m in _E820.finditer(data)
    ]
    found = _from_lines(lines, what)
    ramdisk = _RAMDISK.search(data)
    nodes: dict[int, int] = defaultdict(lambda: LIMIT)
    for match in _NODE.finditer(data):
        nodes[int(match[1])] = min(nodes[int(match[1])], int(match[2], 16))
    node_data = [(int(m[1], 16), int(m[2], 16) + 1) for m in _NODE_DATA.finditer(data)]
    notes = [n for n in found.assumptions if not (ramdisk and "ramdisk" in n)]
    return MemoryMap(
        found.ram,
        found.other,
        found.kernel,
        Range(int(ramdisk[1], 16), int(ramdisk[2], 16) + 1) if ramdisk else None,
        Ranges(node_data),
        tuple(sorted(nodes.values())[1:]),
        node_data=not node_data,
        assumptions=tuple(notes),
    )


def _parse_iomem(data: bytes, what: str) -> MemoryMap:
    resources = parse_iomem(data.strip(b"\n"))
    if addresses_hidden(resources):
        raise FormatError(
            what,
            "all addresses are zero",
            hint="the kernel hides them from unprivileged readers: take it with sudo cat /proc/iomem",
        )
    lines = [_Line(r.start, r.end, r.name, n) for n, r in enumerate(resources, 1)]
    _check(lines, what)
    ram, other, taken = map_of_iomem(resources)
    kernel = kernel_image(resources)
    return MemoryMap(
        ram,
        other,
        kernel or TYPICAL_KERNEL,
        None,
        taken,
        assumptions=((MOVES if kernel else _typical()), NO_RAMDISK),
    )


NO_RAMDISK = "no ramdisk: the map does not tell where it lies"


def _typical() -> str:
    return f"the kernel image takes {mib(TYPICAL_KERNEL.size)} from 16 MiB up"


def _plain_lines(data: bytes, what: str) -> list[_Line]:
    lines = []
    for number, text in enumerate(data.splitlines(), 1):
        text = text.strip()
        if not text or text.startswith(b"#"):
            continue
        match = _PLAIN.fullmatch(text)
        if match is None:
            shown = text[:60].decode("ascii", "backslashreplace")
            why = f"line {number} is not START-END TYPE: {shown!r}"
            raise FormatError(what, why, hint=_HINT)
        kind = match[3].decode("ascii", "replace")
        lines.append(_Line(int(match[1], 16), int(match[2], 16) + 1, kind, number))
    return lines


def _from_lines(lines: list[_Line], what: str) -> MemoryMap:
    _check(lines, what)
    is_ram = [line.kind.lower().startswith(RAM_NAMES) for line in lines]
    return MemoryMap(
        Ranges((line.start, line.end) for line, ram in zip(lines, is_ram) if ram),
        Ranges((line.start, line.end) for line, ram in zip(lines, is_ram) if not ram),
        TYPICAL_KERNEL,
        assumptions=(_typical(), NO_RAMDISK),
    )


def _check(lines: list[_Line], what: str) -> None:
    for line in lines:
        where = f"line {line.number}" if line.number else f"the entry at {line.start:#x}"
        if line.end < line.start:
            raise FormatError(what, f"{where} ends below its start", hint=_HINT)
        if line.end > LIMIT and line.kind.lower().startswith(RAM_NAMES):
            raise FormatError(
                what,
                f"{where} has RAM at {line.end - 1:#x}, above 2^52",
                hint="no processor addresses that; look for a digit too many",
            )
