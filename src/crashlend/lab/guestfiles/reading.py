# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs in the production guest: what really lies in the reservation after a load. Python 3.9.

Whoever loaded it, the crash kernel finds all it is told through its boot_params: they are looked
for in the reservation and read, with what they point at, through /proc/kcore. Nothing here is the
product's, and nothing is interpreted beyond what must be followed: judges/image.py does that.

    reading.py note                   remember what looks like boot_params now, and the kernel's log
    reading.py read RAMDISK [FILE]    print what has come since, as JSON, and put the initramfs that
                                      was found into the file RAMDISK; FILE is what the loader said
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import struct
import sys
from pathlib import Path
from typing import Any

PAGE = 4096
STEP = 1 << 20
NOTE = Path("/run/reading.json")
KERNEL_TEXT_BASE = 0xFFFFFFFF80000000
PT_LOAD = 1
# struct boot_params, arch/x86/include/uapi/asm/bootparam.h. The boot flag before it will not do:
# kexec-tools leave it out
MAGIC_AT, MAGIC = 0x202, b"HdrS"
MOST_NODES, MOST_BYTES, MOST_HEADERS = 64, 1 << 16, 4096


class Memory:
    """Physical memory as the kernel's direct mapping shows it."""

    def __init__(self) -> None:
        self.fd = os.open("/proc/kcore", os.O_RDONLY)
        ehdr = os.pread(self.fd, 64, 0)
        at, size, count = (
            struct.unpack_from("<Q", ehdr, 32)[0],
            *struct.unpack_from("<HH", ehdr, 54),
        )
        table = os.pread(self.fd, size * count, at)
        self.places = []
        for index in range(count):
            kind, _, offset, virt, phys, _, length, _ = struct.unpack_from(
                "<IIQQQQQQ", table, index * size
            )
            if kind == PT_LOAD and virt < KERNEL_TEXT_BASE and phys != (1 << 64) - 1:
                self.places.append((phys, phys + length, offset))

    def read(self, phys: int, size: int) -> bytes:
        """All of these bytes; ValueError when one is not to be seen."""
        for start, end, offset in self.places:
            if start <= phys and phys + size <= end:
                out = b""
                while len(out) < size:
                    piece = os.pread(self.fd, size - len(out), offset + phys - start + len(out))
                    if not piece:
                        break
                    out += piece
                if len(out) == size:
                    return out
        raise ValueError(f"physical {phys:#x}, {size} bytes: not in /proc/kcore")


def reservations() -> list[tuple[int, int]]:
    """The ranges of crashkernel=, half-open."""
    lines = re.findall(r"(\w+)-(\w+) : Crash kernel", Path("/proc/iomem").read_text())
    return [(int(start, 16), int(end, 16) + 1) for start, end in lines]


def candidates(memory: Memory) -> dict[str, str]:
    """Each page of the reservation that looks like boot_params: its address, and its digest."""
    found = {}
    for start, end in reservations():
        for at in range(start, end, STEP):
            data = memory.read(at, min(STEP, end - at))
            for page in range(0, len(data), PAGE):
                body = data[page : page + PAGE]
                if body[MAGIC_AT : MAGIC_AT + len(MAGIC)] == MAGIC:
                    found[f"{at + page:#x}"] = hashlib.sha256(body).hexdigest()
    return found


def log_since(number: int) -> tuple[int, list[str]]:
    """The kernel's messages after record ``number``, and the number of the last."""
    fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    lines: list[str] = []
    try:
        while True:
            try:
                record = os.read(fd, 8192).decode("utf-8", "replace")
            except BlockingIOError:
                return number, lines
            except BrokenPipeError:  # overwritten meanwhile: the next one is there
                continue
            head, _, text = record.partition(";")
            sequence = int(head.split(",")[1])
            if sequence > number:
                number = sequence
                lines.append(text.split("\n", 1)[0])
    finally:
        os.close(fd)


def encoded(data: bytes) -> str:
    """Bytes as JSON can have them."""
    return base64.b64encode(data).decode()


def image(memory: Memory, at: int, save: Path) -> dict[str, Any]:
    """The boot_params at this address and what they lead to, as bytes (base64).

    The initramfs goes into the file ``save``, so that another loader can be given the same.
    """
    page = memory.read(at, PAGE)

    def word(low: int, high: int) -> int:
        first, second = (struct.unpack_from("<I", page, offset)[0] for offset in (low, high))
        return int(second << 32 | first)

    line_at, ramdisk_at, ramdisk_bytes = word(0x228, 0xC8), word(0x218, 0xC0), word(0x21C, 0xC4)
    longest = struct.unpack_from("<I", page, 0x238)[0]
    line = memory.read(line_at, longest + 1).split(b"\0", 1)[0]
    nodes: list[dict[str, Any]] = []
    node = struct.unpack_from("<Q", page, 0x250)[0]
    while node and len(nodes) < MOST_NODES:
        following, kind, size = struct.unpack("<QII", memory.read(node, 16))
        data = memory.read(node + 16, min(size, MOST_BYTES))
        nodes.append({"phys": node, "type": kind, "bytes": size, "data": encoded(data)})
        node = following
    ramdisk = memory.read(ramdisk_at, ramdisk_bytes)
    save.write_bytes(ramdisk)
    out: dict[str, Any] = {
        "boot_params_phys": at,
        "boot_params": encoded(page),
        "cmdline_phys": line_at,
        "cmdline": encoded(line),
        "setup_data": nodes,
        "ramdisk_phys": ramdisk_at,
        "ramdisk_bytes": ramdisk_bytes,
        "ramdisk_sha256": hashlib.sha256(ramdisk).hexdigest(),
    }
    efi_at, efi_bytes = word(0x1D0, 0x1DC), word(0x1D4, 0x1D4) & 0xFFFFFFFF
    if efi_at and efi_bytes <= MOST_BYTES:
        out["efi_memmap"] = encoded(memory.read(efi_at, efi_bytes))
    # [size@]address, each with a suffix as memparse() takes it: kexec-tools write ...K
    named = re.findall(rb"(?:^| )elfcorehdr=(?:\w+@)?(0x[0-9a-f]+|\d+)(K?)", line)
    if named:
        core_at = int(named[-1][0], 0) << (10 if named[-1][1] else 0)
        ehdr = memory.read(core_at, 64)
        size, count = struct.unpack_from("<HH", ehdr, 54)
        table_at = struct.unpack_from("<Q", ehdr, 32)[0]
        if size != 56 or count > MOST_HEADERS or table_at > PAGE:
            raise ValueError(f"no ELF core header at {core_at:#x}")
        out["elfcorehdr_phys"] = core_at
        out["elfcorehdr"] = encoded(memory.read(core_at, table_at + size * count))
    return out


def note(memory: Memory) -> None:
    """Remember what is there, so that a later look tells what is new."""
    NOTE.write_text(json.dumps({"seen": candidates(memory), "log": log_since(-1)[0]}))


def read(memory: Memory, save: Path, said: str) -> dict[str, Any]:
    """What one load since the last note left; ValueError when that is not one image."""
    before = json.loads(NOTE.read_text())
    now = candidates(memory)
    new = [at for at, digest in now.items() if before["seen"].get(at) != digest]
    if len(new) != 1:
        raise ValueError(f"{len(new)} new boot_params in the reservation: {new}")
    return {
        "image": image(memory, int(new[0], 16), save),
        "said": said,
        "log": log_since(before["log"])[1],
        "iomem": Path("/proc/iomem").read_text(),
    }


def main() -> None:
    """Do what the words ask for, and take note of what is there then."""
    memory = Memory()
    if sys.argv[1] == "read":
        said = Path(sys.argv[3]).read_text(errors="replace") if len(sys.argv) > 3 else ""
        print(json.dumps(read(memory, Path(sys.argv[2]), said)))
    note(memory)


if __name__ == "__main__":
    main()
