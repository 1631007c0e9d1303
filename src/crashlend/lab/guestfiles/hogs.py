# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs in the production guest: programs that make life hard for lending. Python 3.9.

Each verb but the first sets its scene, prints one JSON object of what it made, and leaves a process
behind that keeps it so until the crash.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import sys
import threading
import time
from array import array
from pathlib import Path
from typing import Callable

from slowpage import SlowPage

PAGE = 4096
MIB = 1 << 20
CHUNK = 32 * MIB
PFN_MASK = (1 << 55) - 1
MLOCK_ERROR = "mlock failed"
# include/uapi/linux/io_uring.h, arch/x86/entry/syscalls/syscall_64.tbl
SYS_VMSPLICE, SYS_IO_URING_SETUP, SYS_IO_URING_REGISTER = 278, 425, 427
IORING_REGISTER_BUFFERS = 0
SYS_KEXEC_LOAD, KEXEC_ON_CRASH_X86_64 = 246, 1 | 62 << 16
MADV_HUGEPAGE = 14
BLOCKS = Path("/sys/devices/system/memory")
libc = ctypes.CDLL(None, use_errno=True)


class Area:
    """Private anonymous memory, all of it touched."""

    def __init__(self, size: int, *, huge: bool = False) -> None:
        self.size = size
        self.map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        if huge:
            self.map.madvise(MADV_HUGEPAGE)
        ctypes.memset(self.address, 0x5A, size)

    def frames(self) -> list[int]:
        """The page frame of each page; 0 where it has none."""
        with open("/proc/self/pagemap", "rb", buffering=0) as stream:
            stream.seek(self.address // PAGE * 8)
            data = array("Q", stream.read(self.size // PAGE * 8))
        return [entry & PFN_MASK if entry >> 63 else 0 for entry in data]


class IoVec(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def call(number: int, *args: object) -> int:
    """One system call; OSError when it fails."""
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    result = libc.syscall(ctypes.c_long(number), *words)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"system call {number}")
    return int(result)


def vector(parts: list[tuple[int, int]]) -> ctypes.Array[IoVec]:
    """Addresses and lengths as the kernel takes them."""
    return (IoVec * len(parts))(*(IoVec(address, size) for address, size in parts))


def splice_into_pipe(addresses: list[int]) -> None:
    """Pin a page each: they lie in a pipe that nobody reads (no page of them migrates meanwhile)."""
    _, into = os.pipe()
    fcntl.fcntl(into, 1031, MIB)  # F_SETPIPE_SZ: one slot for each page
    call(SYS_VMSPLICE, into, vector([(a, PAGE) for a in addresses]), len(addresses), 0)


def register_buffers(parts: list[tuple[int, int]]) -> None:
    """Pin memory for good, as RDMA, VFIO and KVM's device assignment do (FOLL_LONGTERM)."""
    ring = call(SYS_IO_URING_SETUP, 4, (ctypes.c_char * 120)())
    call(SYS_IO_URING_REGISTER, ring, IORING_REGISTER_BUFFERS, vector(parts), len(parts))


def available() -> int:
    """MemAvailable in bytes."""
    text = Path("/proc/meminfo").read_text().split("MemAvailable:")[1]
    return int(text.split()[0]) * 1024


def lent_frames() -> list[tuple[int, int]]:
    """What the loaded image's record calls lent, in page frames."""
    state = json.loads(Path("/run/crashlend/state.json").read_text())
    loaded = state["loaded"] or {"lent": []}
    return [(start // PAGE, end // PAGE) for start, end in loaded["lent"]]


def count_in_lent(frames: list[int]) -> int:
    """How many of these page frames are lent."""
    lent = lent_frames()
    return sum(any(start <= frame < end for start, end in lent) for frame in frames)


def stay(answer: dict[str, object]) -> None:
    """Print the answer and go on in the background."""
    print(json.dumps(answer), flush=True)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    while True:
        time.sleep(60)


def everything() -> None:
    """Take memory until there is none: the kernel must end this process, or itself."""
    taken = []
    while True:
        taken.append(Area(CHUNK))


def pin(keep_bytes: int) -> None:
    """Pin one page in each memory block that this process gets a page of, by turns in two ways."""
    pages_per_block = int((BLOCKS / "block_size_bytes").read_text(), 16) // PAGE
    areas = []
    while available() > keep_bytes:
        areas.append(Area(CHUNK))
    found: dict[int, tuple[Area, int]] = {}
    for area in areas:
        for index, frame in enumerate(area.frames()):
            if frame:
                found.setdefault(frame // pages_per_block, (area, index * PAGE))
    # every third block is left alone
    piped = {b: at for b, at in found.items() if b % 3 == 0}
    ringed = {b: at for b, at in found.items() if b % 3 == 1}
    splice_into_pipe([area.address + offset for area, offset in piped.values()])
    register_buffers([(area.address + offset, PAGE) for area, offset in ringed.values()])
    kept = {(id(area), offset) for area, offset in (*piped.values(), *ringed.values())}
    for area in areas:
        for offset in range(0, area.size, PAGE):
            if (id(area), offset) not in kept:
                area.map.madvise(mmap.MADV_DONTNEED, offset, PAGE)
    stay({"pipe": sorted(piped), "ring": sorted(ringed)})


def lock(size: int) -> None:
    """A guest's memory as KVM with locked memory has it: mlocked, and most of what there is."""
    area = Area(size)
    if libc.mlock(ctypes.c_void_p(area.address), ctypes.c_size_t(size)) != 0:
        raise OSError(ctypes.get_errno(), MLOCK_ERROR)
    stay({"locked_bytes": size})


def register(size: int) -> None:
    """Pin memory that lies in lent memory for good: the kernel has to move it out first."""
    area = Area(size)
    before = count_in_lent(area.frames())
    register_buffers([(area.address, size)])
    frames = area.frames()
    stay({"pages": len(frames), "in_lent_before": before, "in_lent_after": count_in_lent(frames)})


def huge(size: int) -> None:
    """Transparent huge pages of ``size`` bytes, then more than there is: zswap has to take some."""
    area = Area(size, huge=True)
    taken = []
    deadline = time.monotonic() + 120
    while field("Zswapped") < 16 * MIB and time.monotonic() < deadline:
        taken.append(Area(8 * MIB))
    names = ("AnonHugePages", "HugePages_Total", "Zswap", "Zswapped", "SwapFree")
    stay({**{name: field(name) for name in names}, "touched_bytes": area.size})


def field(name: str) -> int:
    """A value of /proc/meminfo in bytes, or a count."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        key, value, *unit = line.split()
        if key == f"{name}:":
            return int(value) * (1024 if unit else 1)
    return 0


def hold_lock() -> None:
    """Be another crashlend that is at work."""
    Path("/run/crashlend").mkdir(exist_ok=True)
    fd = os.open("/run/crashlend/lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    stay({"pid": os.getpid()})


def load_forever() -> None:
    """Be another program that is inside kexec_load, and does not get on."""
    line = next(ln for ln in Path("/proc/iomem").read_text().splitlines() if "Crash kernel" in ln)
    start = int(line.strip().split("-")[0], 16)
    slow = SlowPage(b"x" * (2 * PAGE))
    segment = (ctypes.c_uint64 * 4)(slow.address, 2 * PAGE, start, 2 * PAGE)
    arguments = (SYS_KEXEC_LOAD, start, 1, segment, KEXEC_ON_CRASH_X86_64)
    threading.Thread(target=call, args=arguments, daemon=True).start()
    slow.wait()
    stay({"pid": os.getpid()})


def main() -> None:
    """Run one verb; all but everything leave a child behind."""
    verb, *sizes = sys.argv[1:]
    actions: dict[str, Callable[..., None]] = {
        "everything": everything,
        "pin": pin,
        "lock": lock,
        "register": register,
        "huge": huge,
        "hold-lock": hold_lock,
        "load-forever": load_forever,
    }
    if verb == "everything":
        everything()
    # the parent ends once the scene is set: what it prints is this child's
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        os.dup2(into, 1)
        os.close(into)
        actions[verb](*(int(size) for size in sizes))
    os.close(into)
    Path(f"/run/{verb}.pid").write_text(str(child))
    answer = b""
    while not answer.endswith(b"\n"):
        piece = os.read(out, 4096)
        if not piece:
            sys.exit(1)
        answer += piece
    print(answer.decode().strip())


main()
