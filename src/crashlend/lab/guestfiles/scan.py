# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs in the crash kernel, after the dump: what raw /proc/vmcore holds. Python 3.9.

Looks at the first eight bytes of every page of every PT_LOAD for the two patterns of agent.py
and the one of late.py.
"""

from __future__ import annotations

import json
import mmap
import struct
from pathlib import Path

from crashlend.formats.elfcore import EHDR, PT_LOAD, PT_NOTE, headers_end, parse_program_headers

PAGE = 4096
IN_LENT = int.from_bytes(b"\xc7" * 8, "little")
ELSEWHERE = int.from_bytes(b"\x9e" * 8, "little")
LATE = int.from_bytes(b"\xd3" * 8, "little")
WINDOW = 256 << 20
NOTE = struct.Struct("<III")  # Elf64_Nhdr: bytes of name, bytes of content, type
NT_PRSTATUS = 1


def register_notes(data: bytes) -> int:
    """How many CPUs' registers are among the notes."""
    count = at = 0
    while at + NOTE.size <= len(data):
        name, content, kind = NOTE.unpack_from(data, at)
        begin = at + NOTE.size
        count += kind == NT_PRSTATUS and data[begin : begin + name].rstrip(b"\0") == b"CORE"
        at = begin + -(-name // 4) * 4 + -(-content // 4) * 4
    return count


def main() -> None:
    """Print the result as one JSON line on the second serial port."""
    found = {IN_LENT: 0, ELSEWHERE: 0, LATE: 0}
    loads = []
    registers = 0
    with Path("/proc/vmcore").open("rb", buffering=0) as core:
        start = core.read(EHDR.size)
        core.seek(0)
        headers = core.read(headers_end(start))
        offsets = parse_program_headers(headers, physical=False)
        for header, place in zip(parse_program_headers(headers), offsets):
            if header.type == PT_NOTE:
                core.seek(place.phys)
                registers += register_notes(core.read(place.bytes))
            if header.type != PT_LOAD:
                continue
            loads.append([header.phys, header.end, header.virt])
            if header.virt >= 0xFFFFFFFF80000000:
                continue  # the kernel's text again, through its own mapping
            first = place.phys // PAGE * PAGE
            end = (place.phys + place.bytes) // PAGE * PAGE
            while first < end:
                length = min(WINDOW, end - first)
                with mmap.mmap(core.fileno(), length, prot=mmap.PROT_READ, offset=first) as area:
                    with memoryview(area) as view, view.cast("Q") as words:
                        heads = words[:: PAGE // 8].tolist()
                    for pattern in found:
                        found[pattern] += heads.count(pattern)
                first += length
    result = {
        "event": "scanned",
        "pt_loads": loads,
        "register_notes": registers,
        "in_lent_pages": found[IN_LENT],
        "elsewhere_pages": found[ELSEWHERE],
        "late_pages": found[LATE],
    }
    with open("/dev/ttyS1", "w", encoding="ascii") as port:
        port.write(json.dumps(result) + "\n")


main()
