# SPDX-License-Identifier: LGPL-2.1-or-later
"""Dumps by code: kdump-compressed files, ELF cores, flattened streams, and directories of captures.

Offsets are written down here from makedumpfile's diskdump_mod.h and makedumpfile.h, not taken from the
code under test; makedumpfile itself judges them where it is installed.
"""

from __future__ import annotations

import json
import struct
import zlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

PAGE = 4096
RELEASE = "6.1.0-test-amd64"
LENT = ((0x40000, 0x48000), (0x50000, 0x58000))  # page frames
MAX_PFN = 0x80000
PRESENT = ((0x100, 0x40000), (0x48000, 0x50000), (0x58000, MAX_PFN))
DUMPED = ((0x100, 0x110), (0x48000, 0x48003))
SECONDS = 1795653094
VMCOREINFO = f"OSRELEASE={RELEASE}\nPAGESIZE=4096\nCRASHTIME={SECONDS}\n".encode()
DMESG = b"""\
[    0.000000] Linux version 6.1.0-test-amd64 (x@y) (gcc) #1 SMP
[   21.3] sysrq: Trigger a crash
[   21.4] Kernel panic - not syncing: sysrq triggered crash
[   21.4] CPU: 3 PID: 116 Comm: my prog Kdump: loaded Tainted: G        W          6.1.0-test-amd64 #1  Debian
[   21.4] Hardware name: QEMU
[   21.4] Call Trace:
[   21.4]  <TASK>
[   21.4]  dump_stack_lvl+0x44/0x5c
[   21.4]  ? _printk+0x68/0x83
[   21.4] RIP: 0033:0x7fe120fc4350
[   21.4] RAX: ffffffffffffffda RBX: 0000000000000001 RCX: 00007fe120fc4350
[   21.4]  </TASK>
[   21.4] Modules linked in: ext4(E) crc16 virtio_blk(OE+) [last unloaded: x]
"""
REASON = "Kernel panic - not syncing: sysrq triggered crash"
Spans = "Iterable[tuple[int, int]]"


def bitmap(spans: Iterable[tuple[int, int]], max_pfn: int) -> bytes:
    """A bit per page frame, lowest first; rounded up to whole blocks."""
    out = bytearray(-(-max_pfn // 8 // PAGE) * PAGE or PAGE)
    for first, end in spans:
        for pfn in range(first, end) if end - first < 64 else ():
            out[pfn // 8] |= 1 << pfn % 8
        if end - first >= 64:
            assert first % 8 == end % 8 == 0
            out[first // 8 : end // 8] = b"\xff" * ((end - first) // 8)
    return bytes(out)


def kdump(
    *,
    present: Sequence[tuple[int, int]] = PRESENT,
    dumped: Sequence[tuple[int, int]] = DUMPED,
    max_pfn: int = MAX_PFN,
    level: int = 31,
    status: int = 1,
    release: str = RELEASE,
    version: int = 6,
    vmcoreinfo: bytes = VMCOREINFO,
    seconds: int = SECONDS,
    split: int = 0,
    block_size: int = PAGE,
) -> bytes:
    """A whole dump with pages of zlib-packed bytes."""
    head = bytearray(PAGE)
    head[:8] = b"KDUMP   "
    struct.pack_into("<i", head, 8, version)
    for index, text in enumerate(("Linux", "node", release, "#1 SMP", "x86_64", "(none)")):
        data = text.encode()[:64]
        head[12 + 65 * index : 12 + 65 * index + len(data)] = data
    struct.pack_into("<qq", head, 408, seconds, 0)
    bits = bitmap(present, max_pfn), bitmap(dumped, max_pfn)
    blocks = (len(bits[0]) + len(bits[1])) // PAGE
    struct.pack_into("<IiiII", head, 424, status, block_size, 1, blocks, min(max_pfn, 0xFFFFFFFF))
    struct.pack_into("<i", head, 460, 1)
    sub = bytearray(PAGE)
    struct.pack_into("<Qii", sub, 0, 0x1000000, level, split)
    struct.pack_into("<QQ", sub, 32, PAGE + 104, len(vmcoreinfo))
    struct.pack_into("<Q", sub, 96, max_pfn)
    sub[104 : 104 + len(vmcoreinfo)] = vmcoreinfo
    count = sum(end - first for first, end in dumped)
    at = 2 * PAGE + len(bits[0]) * 2 + 24 * count
    descriptors, pages = b"", b""
    for number in range(count):
        page = zlib.compress(bytes([number & 0xFF]) * PAGE)
        descriptors += struct.pack("<QIIQ", at + len(pages), len(page), 1, 0)
        pages += page
    return bytes(head + sub) + bits[0] + bits[1] + descriptors + pages


def flatten(data: bytes, *, step: int = 5000, end: bool = True, again: bool = True) -> bytes:
    """The same as a stream of pieces, the first of them written twice."""
    out = b"makedumpfile".ljust(16, b"\0") + struct.pack(">qq", 1, 1)
    out = out.ljust(4096, b"\0")
    if again:
        out += struct.pack(">qq", 0, 100) + b"\xee" * 100
    for at in range(0, len(data), step):
        piece = data[at : at + step]
        out += struct.pack(">qq", at, len(piece)) + piece
    return out + (struct.pack(">qq", -1, -1) if end else b"")


def elf_core(
    loads: Sequence[tuple[int, int]] = ((0x100000, 0x102000),),
    *,
    flags: int = 0,
    vmcoreinfo: bytes = VMCOREINFO,
    extended: bool = False,
) -> bytes:
    """An ELF core with these physical ranges, and their number in a section header if ``extended``."""
    note = struct.pack("<III", 11, len(vmcoreinfo), 0) + b"VMCOREINFO\0\0" + vmcoreinfo
    note += bytes(-len(note) % 4)
    shoff = 64 if extended else 0
    phoff = 64 + (64 if extended else 0)
    count = len(loads) + 1
    at = phoff + 56 * count
    ehdr = struct.pack(
        "<4sBBBBB7xHHIQQQIHHHHHH",
        *(b"\x7fELF", 2, 1, 1, 0, 0, 4, 62, 1, 0, phoff, shoff, flags, 64, 56),
        *(0xFFFF if extended else count, 64, int(extended), 0),
    )
    section = struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, count, 0, 0) if extended else b""
    headers = struct.pack("<IIQQQQQQ", 4, 0, at, 0, 0, len(note), len(note), 4)
    place = at + len(note)
    for start, end in loads:
        size = end - start
        headers += struct.pack("<IIQQQQQQ", 1, 7, place, start, start, size, size, 0)
        place += size
    body = b"".join(bytes(end - start) for start, end in loads)
    return ehdr + section + headers + note + body


def ranges_json(spans: Iterable[tuple[int, int]] = LENT) -> list[list[int]]:
    return [[first * PAGE, end * PAGE] for first, end in spans]


def capture_json(vmcore_bytes: int, **changes: Any) -> dict[str, Any]:
    """What init writes beside a dump that is ``vmcore_bytes`` long."""
    lent = ranges_json()
    return {
        "schema": 1,
        "ok": True,
        "reason": "",
        "dump_level": 31,
        "lender": "movable",
        "lent": {"bytes": sum(e - s for s, e in lent), "ranges": lent},
        "vmcore": {"path": "vmcore", "bytes": vmcore_bytes},
        "panic": REASON,
        **changes,
    }


def holes_json(**changes: Any) -> dict[str, Any]:
    lent = ranges_json()
    return {
        "schema": 1,
        "lender": "movable",
        "lent": {"bytes": sum(e - s for s, e in lent), "ranges": lent},
        "holes": [
            {"why": "lent", "lender": "movable", "ranges": lent},
            {"why": "reservation", "lender": None, "ranges": [[0x60000000, 0x61000000]]},
            {"why": "first-mib", "lender": None, "ranges": [[0, 1 << 20]]},
        ],
        "dump_level": 31,
        **changes,
    }


def write_dump(where: Path, name: str = "h1-2026-11-26-003147", **changes: Any) -> Path:
    """A directory as a capture leaves it; ``changes``: a file's content by its name, None for none.

    "." in names is "_": ``vmcore``, ``capture_json``, ``holes_json``, ``dmesg_txt``.
    """
    path = where / name
    path.mkdir(parents=True, mode=0o700)
    vmcore = changes.pop("vmcore", kdump())
    contents: dict[str, Any] = {
        "vmcore": vmcore,
        "capture_json": capture_json(len(vmcore or b"")),
        "holes_json": holes_json(),
        "dmesg_txt": DMESG,
        "capture_log": b"crash kernel 6.1.0 is up\n",
        **changes,
    }
    for key, content in contents.items():
        if content is not None:
            data = json.dumps(content).encode() if isinstance(content, dict) else content
            (path / key.replace("_", ".")).write_bytes(data)
    return path
