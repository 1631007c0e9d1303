# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs in the production guest: crashlend, with one fault at one moment of its load. Python 3.9.

    faulty.py FAULT WORDS...    crashlend WORDS, where FAULT strikes

The kernel is the real one, and what it answers is its own; only what it is given, or when, is off.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from pathlib import Path
from typing import Any, Callable

from slowpage import SlowPage

from crashlend.arch import Segment
from crashlend.cli.main import main
from crashlend.formats import elfcore
from crashlend.system import kexec
from crashlend.system.memory_blocks import MemoryBlocks

MIB = 1 << 20
CRASH_SIZE = Path("/sys/kernel/kexec_crash_size")
real_load, real_call = kexec.load, kexec._call


def crash() -> None:
    """End this kernel."""
    with open("/proc/sysrq-trigger", "wb", buffering=0) as trigger:
        trigger.write(b"c")


def no_address(entry: int, segments: Any) -> None:
    """EADDRNOTAVAIL: the reservation has shrunk since it was looked at."""
    kexec.load = real_load
    CRASH_SIZE.write_text(str(int(CRASH_SIZE.read_text()) - 4 * MIB))
    real_load(entry, segments)


def no_memory(entry: int, segments: Any) -> None:
    """ENOMEM: segments leave no page of the reservation for the kernel's own use."""
    lines = [ln for ln in Path("/proc/iomem").read_text().splitlines() if "Crash kernel" in ln]
    first, last = (int(word, 16) for word in lines[-1].split(":")[0].strip().split("-"))
    taken = sorted((s.start, s.start + s.memory_bytes) for s, _ in segments)
    at = first
    fillers = []
    for start, end in [*taken, (last + 1, last + 1)]:
        if start > at:
            fillers.append((Segment("filler", at, 0, start - at), b""))
        at = max(at, end)
    real_load(entry, [*segments, *fillers])


def not_permitted(entry: int, segments: Any) -> None:
    """EPERM: loading is forbidden, for good, since it was looked at."""
    Path("/proc/sys/kernel/kexec_load_disabled").write_text("1")
    real_load(entry, segments)


def invalid(entry: int, segments: Any) -> None:
    """EINVAL: two segments in one place."""
    real_load(entry, [*segments, segments[0]])


def bad_address(*words: Any) -> None:
    """EFAULT: a segment's buffer is not mapped."""
    number, entry, count, table, flags = words
    if count:
        max(table[:count], key=lambda row: row.bufsz).buf = 0x1000
    real_call(number, entry, count, table, flags)


def before_load(_entry: int, _segments: Any) -> None:
    """The kernel crashes after lending, right before kexec_load."""
    os.sync()
    crash()


def in_lending(_blocks: Any, _index: int, _how: str) -> None:
    """The kernel crashes while a block is offline on its way to be lent."""
    os.sync()
    crash()


def in_load(number: int, entry: int, count: int, table: Any, flags: int) -> None:
    """The kernel crashes inside kexec_load, while that has the kernel's own lock."""
    if not count:
        real_call(number, entry, count, table, flags)
        return
    row = max(table[:count], key=lambda each: each.bufsz)
    slow = SlowPage(ctypes.string_at(row.buf, row.bufsz))
    row.buf = slow.address

    def watch() -> None:
        slow.wait()
        crash()

    threading.Thread(target=watch, daemon=True).start()
    real_call(number, entry, count, table, flags)


def no_elf_header(*args: Any, **more: Any) -> bytes:
    """An ELF core header that is none."""
    return b"\0" * len(real_header(*args, **more))


real_header = elfcore.build_core_header
# what each fault puts in whose place
FAULTS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "EADDRNOTAVAIL": (kexec, "load", no_address),
    "EPERM": (kexec, "load", not_permitted),
    "ENOMEM": (kexec, "load", no_memory),
    "EINVAL": (kexec, "load", invalid),
    "EFAULT": (kexec, "_call", bad_address),
    "in-lending": (MemoryBlocks, "online", in_lending),
    "before-load": (kexec, "load", before_load),
    "in-load": (kexec, "_call", in_load),
    "elfcorehdr": (elfcore, "build_core_header", no_elf_header),
}
where, name, put = FAULTS[sys.argv[1]]
setattr(where, name, put)
sys.exit(main(sys.argv[2:]))
