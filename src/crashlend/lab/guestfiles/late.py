# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs in the production guest, for agent.py: starts DMA that is still on its way at the crash.

Python 3.9. The devices are those of lab/late.py.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import subprocess
import threading
import time
from pathlib import Path
from typing import Optional

PAGE = 4096
PFN_MASK = (1 << 55) - 1
PATTERN = 0xD3
CHUNK = 32 << 20
PCI = Path("/sys/bus/pci/devices")

# Linux AIO (include/uapi/linux/aio_abi.h): waits for nobody, and one call per read
SYS_IO_SETUP, SYS_IO_GETEVENTS, SYS_IO_SUBMIT = 206, 208, 209
IOCB = struct.Struct("<QIIHhIQQqQII")
PREAD = 0
READS, READ_BYTES = 128, 256 << 10
MODULES = {"nvme": ("nvme",), "lsi": ("sd_mod", "sym53c8xx")}
DISKS = {"nvme": "nvme0n1", "lsi": "sda"}

# QEMU's docs/specs/edu: its buffer and its registers
EDU_ID = "0x11e8"
EDU_BUFFER, EDU_BYTES = 0x40000, 2048  # 4096 at once end QEMU
EDU_FROM, EDU_TO, EDU_COUNT, EDU_COMMAND = 0x80, 0x88, 0x90, 0x98
EDU_START, EDU_TO_MEMORY = 1, 2

libc = ctypes.CDLL(None, use_errno=True)


def address_of(area: mmap.mmap) -> int:
    """Where a mapping lies in this process."""
    return ctypes.addressof(ctypes.c_char.from_buffer(area))


def frames(area: mmap.mmap) -> list[int]:
    """The page frames of a mapping whose pages are all present."""
    count = len(area) // PAGE
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        pagemap.seek(address_of(area) // PAGE * 8)
        entries = struct.unpack(f"<{count}Q", pagemap.read(count * 8))
    return [entry & PFN_MASK for entry in entries]


def touched(size: int) -> mmap.mmap:
    """Anonymous memory of which every page is there."""
    area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    ctypes.memset(address_of(area), 1, size)
    return area


def is_lent(frame: int, lent: list[list[int]]) -> bool:
    """Whether a page frame lies in one of the ranges."""
    return any(start <= frame * PAGE < end for start, end in lent)


def iommu_domain(place: Path) -> str:
    """How the IOMMU translates for the function that a device is part of: DMA, identity; "" none."""
    for one in (place, *place.parents):
        kind = one / "iommu_group/type"
        if kind.exists():
            return kind.read_text().strip()
    return ""


class Reads:
    """Direct reads from a slow disk into lent memory, all handed to the kernel, few done."""

    def __init__(self, kind: str, lent: list[list[int]]) -> None:
        self.lent = lent
        subprocess.run(["modprobe", "-a", *MODULES[kind]], check=True)
        disk = Path("/dev") / DISKS[kind]
        for _ in range(900):  # the slow disk is looked at for partitions first
            if disk.is_block_device():
                break
            time.sleep(0.1)
        for name in ("nomerges", "scheduler"):
            value = "2" if name == "nomerges" else "none"
            Path(f"/sys/block/{disk.name}/queue/{name}").write_text(value)
        self.domain = iommu_domain(Path(f"/sys/block/{disk.name}/device").resolve())
        self.disk = os.open(disk, os.O_RDONLY | os.O_DIRECT)
        self.area = touched(READS * READ_BYTES)
        self.context = ctypes.c_ulong(0)
        if libc.syscall(SYS_IO_SETUP, READS, ctypes.byref(self.context)):
            raise OSError(ctypes.get_errno(), "io_setup")
        self.submitted = 0
        self.keep: list[object] = []

    def submit(self) -> None:
        """Hand over all reads; blocks as soon as the disk's own queue is full."""
        base = address_of(self.area)
        for index in range(READS):
            block = IOCB.pack(
                *(index, 0, 0, PREAD, 0, self.disk),
                *(base + index * READ_BYTES, READ_BYTES, index * READ_BYTES, 0, 0, 0),
            )
            text = ctypes.create_string_buffer(block, len(block))
            pointer = ctypes.c_void_p(ctypes.addressof(text))
            self.keep += [text, pointer]
            if libc.syscall(SYS_IO_SUBMIT, self.context, 1, ctypes.byref(pointer)) != 1:
                return
            self.submitted += 1

    def start(self) -> dict[str, object]:
        """Start them; what is on its way now, and where it goes."""
        threading.Thread(target=self.submit, daemon=True).start()
        before = -1
        while self.submitted < READS and self.submitted != before:
            before = self.submitted
            time.sleep(1)
        events = ctypes.create_string_buffer(32 * READS)  # struct io_event
        none = ctypes.create_string_buffer(16)  # a timespec of zero: do not wait
        done = libc.syscall(SYS_IO_GETEVENTS, self.context, 0, READS, events, none)
        submitted = self.submitted
        placed = frames(self.area)[: submitted * READ_BYTES // PAGE]
        return {
            "submitted": submitted,
            "outstanding": submitted - max(done, 0),
            "pages": len(placed),
            "pages_in_lent": sum(is_lent(frame, self.lent) for frame in placed),
            "iommu": self.domain,
        }

    def fire(self) -> None:
        """Nothing more: they are under way."""


class Edu:
    """Devices that write one piece of memory a tenth of a second after they are told to.

    Into production's own memory, beside lent ranges: there /proc/vmcore shows what came.
    """

    def __init__(self, _kind: str, lent: list[list[int]]) -> None:
        Path("/proc/sys/kernel/printk").write_text("0")  # a panic in silence: it must be quick
        self.areas: list[mmap.mmap] = []
        self.targets: list[int] = []
        self.registers: list[mmap.mmap] = []
        found = [p for p in sorted(PCI.iterdir()) if (p / "device").read_text().strip() == EDU_ID]
        while len(self.targets) < len(found) + 1:
            # movable memory comes first, and all of it may be lent
            area = touched(CHUNK)
            self.areas.append(area)
            outside = [frame for frame in frames(area) if not is_lent(frame, lent)]
            self.targets += outside[: len(found) + 1 - len(self.targets)]
        for place in found:
            self.registers.append(self.switched_on(place))
        self.fill_buffers(self.areas[-1], lent)

    @staticmethod
    def switched_on(place: Path) -> mmap.mmap:
        """Enable the function and its bus mastering, as a driver does; map its registers."""
        (place / "enable").write_text("1")
        with open(place / "config", "r+b", buffering=0) as config:
            config.seek(4)
            command = int.from_bytes(config.read(2), "little") | 4
            config.seek(4)
            config.write(command.to_bytes(2, "little"))
        fd = os.open(place / "resource0", os.O_RDWR | os.O_SYNC)
        try:
            return mmap.mmap(fd, 1 << 20)
        finally:
            os.close(fd)

    def fill_buffers(self, area: mmap.mmap, lent: list[list[int]]) -> None:
        """Let each device read the pattern from a page; nothing of it stays in memory."""
        where = frames(area)
        index = next(n for n, frame in enumerate(where) if not is_lent(frame, lent))
        page = address_of(area) + index * PAGE
        ctypes.memset(page, PATTERN, PAGE)
        for registers in self.registers:
            tell(registers, where[index] * PAGE, EDU_BUFFER, EDU_START)
        time.sleep(1)
        ctypes.memset(page, 1, PAGE)

    def start(self) -> dict[str, object]:
        """What will be on its way."""
        number = len(self.registers)
        return {"submitted": number, "outstanding": number, "pages": number, "pages_in_lent": 0}

    def fire(self) -> None:
        """Tell all of them, a moment before the crash."""
        for registers, frame in zip(self.registers, self.targets):
            tell(registers, EDU_BUFFER, frame * PAGE, EDU_START | EDU_TO_MEMORY)


def tell(registers: mmap.mmap, source: int, target: int, command: int) -> None:
    """One transfer of an edu device. Each register is written in one access."""
    for at, value in (
        *((EDU_FROM, source), (EDU_TO, target)),
        *((EDU_COUNT, EDU_BYTES), (EDU_COMMAND, command)),
    ):
        ctypes.c_uint64.from_buffer(registers, at).value = value


def prepare(kind: str, lent: list[list[int]]) -> Optional[object]:
    """What starts the DMA of this kind; None for none."""
    if not kind:
        return None
    return Edu(kind, lent) if kind == "edu" else Reads(kind, lent)
