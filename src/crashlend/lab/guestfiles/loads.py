# SPDX-License-Identifier: LGPL-2.1-or-later
"""What production does when it crashes: memory in use, files not yet written, programs at work.

Each load is begun, topped up right before the crash, and measured then. Python 3.9.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
import time
from array import array
from pathlib import Path

PAGE, MIB, HUGE = 4096, 1 << 20, 2 << 20
MAP_HUGETLB = 0x40000  # uapi/asm-generic/mman-common.h; Python has no name for it
KPF_BUDDY = 1 << 10  # uapi/linux/kernel-page-flags.h: a page of a free block
STEP = 32 * MIB
LEAST_AVAILABLE = 100 * MIB  # programs must not be killed for a load's sake
# free memory stays near the zones' watermarks, however much is read
CACHE_FREE_PERCENT = 6
MEASURE_SECONDS, PATIENCE_SECONDS = 1.0, 30.0
DIRECTORY = Path("/var/tmp")
DISK = "vda"
# each burst in processes of its own; not so many that others get no time
FORKS = "while :; do (:) & (:) & (:) & wait; done"
NAMES = (
    *("MemTotal", "MemFree", "MemAvailable", "Cached", "Buffers", "Dirty", "AnonPages"),
    *("AnonHugePages", "HugePages_Total", "HugePages_Free", "Hugepagesize"),
)


def meminfo() -> dict[str, int]:
    """/proc/meminfo: bytes, but counts of huge pages."""
    found = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, value, *unit = line.replace(":", " ").split()
        found[name] = int(value) * (1024 if unit else 1)
    return found


class Load:
    """One load; ``amount`` is in the unit that its class names."""

    def __init__(self, amount: int) -> None:
        self.amount = amount
        self.areas: list[mmap.mmap] = []
        self.programs: list[subprocess.Popen[bytes]] = []

    def run(self) -> None:
        """Begin, or top up what has ebbed away."""

    def active(self) -> int:
        """How much is done right now, in the unit of the load."""
        return 0

    def take(self, size_bytes: int, flags: int = 0, *, huge: bool = False) -> None:
        """Own so much more memory, all of it touched."""
        area = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | flags)
        if huge:
            area.madvise(mmap.MADV_HUGEPAGE)
        ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(area)), 0x3A, size_bytes)
        self.areas.append(area)


class Anon(Load):
    """Anonymous memory, in per cent of MemTotal."""

    def run(self) -> None:
        memory = meminfo()
        while memory["AnonPages"] * 100 < self.amount * memory["MemTotal"]:
            if memory["MemAvailable"] < LEAST_AVAILABLE + STEP:
                return
            self.take(STEP)
            memory = meminfo()

    def active(self) -> int:
        memory = meminfo()
        return memory["AnonPages"] * 100 // memory["MemTotal"]


class Cache(Load):
    """The page cache takes what is free: a file of holes is read, which costs no disk.

    Active is its part of what other use of memory leaves to it, in per cent.
    """

    def __init__(self, amount: int) -> None:
        super().__init__(amount)
        self.at = 0
        self.size = 2 * meminfo()["MemTotal"] // STEP * STEP
        self.buffer = memoryview(bytearray(MIB))
        self.file = os.open(DIRECTORY / "holes", os.O_RDWR | os.O_CREAT)
        os.ftruncate(self.file, self.size)

    def run(self) -> None:
        for _ in range(self.size // STEP):
            memory = meminfo()
            if memory["MemFree"] * 100 <= CACHE_FREE_PERCENT * memory["MemTotal"]:
                return
            for _ in range(STEP // MIB):
                os.preadv(self.file, [self.buffer], self.at)
                self.at = (self.at + MIB) % self.size

    def active(self) -> int:
        memory = meminfo()
        cached = memory["Cached"] + memory["Buffers"]
        return cached * 100 // (cached + memory["MemFree"])


class Dirty(Load):
    """Files that are written and not yet on the disk, in MiB. A sync ends it; it begins anew."""

    def run(self) -> None:
        for name, value in (
            ("dirty_background_ratio", 90),
            ("dirty_ratio", 95),
            ("dirty_writeback_centisecs", 0),
            ("dirty_expire_centisecs", 100 * 3600),
        ):
            Path("/proc/sys/vm", name).write_text(f"{value}\n")
        piece = os.urandom(MIB)
        # the first disk: what is half written there is no matter for the dump. A new file each time:
        # ext4 writes one out at close that was truncated to be written anew (auto_da_alloc)
        path = DIRECTORY / "dirty"
        path.unlink(missing_ok=True)
        with open(path, "wb") as file:
            for _ in range(self.amount):
                file.write(piece)

    def active(self) -> int:
        return meminfo()["Dirty"] // MIB


class Thp(Load):
    """Anonymous memory in huge pages that the kernel makes by itself, in MiB."""

    def run(self) -> None:
        while meminfo()["AnonHugePages"] < self.amount * MIB:
            if meminfo()["MemAvailable"] < LEAST_AVAILABLE + STEP or len(self.areas) > 16:
                return
            self.take(STEP, huge=True)

    def active(self) -> int:
        return meminfo()["AnonHugePages"] // MIB


class HugePages(Load):
    """Pages of hugetlbfs that a program uses, in MiB."""

    def run(self) -> None:
        wanted = self.amount * MIB // HUGE
        Path("/proc/sys/vm/nr_hugepages").write_text(f"{wanted}\n")
        memory = meminfo()
        if memory["HugePages_Free"]:
            self.take(memory["HugePages_Free"] * HUGE, MAP_HUGETLB)

    def active(self) -> int:
        memory = meminfo()
        return (memory["HugePages_Total"] - memory["HugePages_Free"]) * HUGE // MIB


class Counted(Load):
    """Programs at work, ``amount`` of them; active is what the kernel counts in a second."""

    def count(self) -> int:
        return 0

    def active(self) -> int:
        end = time.monotonic() + PATIENCE_SECONDS  # the machine may be busy
        while True:
            before = self.count()
            time.sleep(MEASURE_SECONDS)
            seen = self.count() - before
            alive = all(program.poll() is None for program in self.programs)
            if (seen >= self.amount and alive) or time.monotonic() > end:
                return seen if alive else 0


class Forks(Counted):
    """Shells that start processes whenever nobody else wants the CPU.

    With an equal share they make a load take many minutes under emulation.
    """

    def run(self) -> None:
        while len(self.programs) < self.amount:
            shell = subprocess.Popen(["/bin/sh", "-c", FORKS])
            os.setpriority(os.PRIO_PROCESS, shell.pid, 19)
            self.programs.append(shell)

    def count(self) -> int:
        lines = Path("/proc/stat").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("processes "))


class Reads(Counted):
    """Programs that read the first disk past the page cache, into their own memory."""

    def run(self) -> None:
        while len(self.programs) < self.amount:
            self.programs.append(subprocess.Popen([sys.executable, __file__, f"/dev/{DISK}"]))

    def count(self) -> int:
        """Reads that the disk has completed (Documentation/ABI/stable/sysfs-block, stat)."""
        return int(Path(f"/sys/block/{DISK}/stat").read_text().split()[0])


LOADS = {
    "anon": Anon,
    "cache": Cache,
    "dirty": Dirty,
    "thp": Thp,
    "hugepages": HugePages,
    "forks": Forks,
    "reads": Reads,
}


class Loads:
    """What this guest does, from when on."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, str, Load]] = []

    def take(self, name: str, amount: str, when: str) -> None:
        """One load more; it begins at once unless it is the ``last`` thing to begin."""
        load = LOADS[name](int(amount))
        self.taken.append((name, when, load))
        if when != "last":
            load.run()

    def go_on(self) -> list[dict[str, object]]:
        """Begin what is last, top up the others, and measure all."""
        for _, _, load in self.taken:
            load.run()
        return [
            {"load": name, "when": when, "amount": load.amount, "active": load.active()}
            for name, when, load in self.taken
        ]


def use_of(lent: list[list[int]]) -> dict[str, object]:
    """What memory is used for now, and how much of lent memory is in use, in pages."""
    memory = meminfo()
    used = total = 0
    with open("/proc/kpageflags", "rb", buffering=0) as file:
        for start, end in lent:
            file.seek(start // PAGE * 8)
            flags = array("Q", file.read((end - start) // PAGE * 8))
            total += len(flags)
            used += sum(1 for flag in flags if not flag & KPF_BUDDY)
    return {
        "memory": {name: memory.get(name, 0) for name in NAMES},
        "lent_pages": total,
        "lent_used_pages": used,
    }


def read_disk(path: str) -> None:
    """Read all of it again and again, without the page cache."""
    disk = os.open(path, os.O_RDONLY | os.O_DIRECT)
    size = os.lseek(disk, 0, os.SEEK_END) // MIB * MIB
    area = mmap.mmap(-1, MIB)  # on a page boundary, as O_DIRECT wants it
    at = 0
    while True:
        os.preadv(disk, [area], at)
        at = (at + MIB) % size


if __name__ == "__main__":
    read_disk(sys.argv[1])
