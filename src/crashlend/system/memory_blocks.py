# SPDX-License-Identifier: LGPL-2.1-or-later
"""Taking memory blocks offline and online again: /sys/devices/system/memory.

drivers/base/memory.c, mm/memory_hotplug.c. Every write is one ``os.write``: a buffered write
would report its error at close, where it is easily lost.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from crashlend.errors import CrashlendError
from crashlend.formats.procfs import Zone, parse_meminfo, parse_zoneinfo
from crashlend.lenders.census import ENTRY_BYTES, BlockCensus, count_pages

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

BASE = Path("/sys/devices/system/memory")
PAGE = 4096


class BlockBusyError(Exception):
    """The block can't change its state now; ``args[0]`` says why in words."""


class _Deadline(Exception):
    pass


class MemoryBlocks:
    """The running host's memory blocks of ``block_bytes`` each."""

    def __init__(self, block_bytes: int) -> None:
        self.block_bytes = block_bytes

    def state(self, index: int) -> str:
        """``online``, ``offline`` or ``going-offline``; "" when the block is gone."""
        return _read(BASE / f"memory{index}" / "state")

    def zone(self, index: int) -> str:
        """The zone an online block lies in; "none" when it spans several."""
        words = _read(BASE / f"memory{index}" / "valid_zones").split()
        return words[0] if words else "none"

    def offline(self, index: int, deadline_seconds: float) -> None:
        """Empty the block and take it offline.

        offline_pages() tries for ever while pages fail to migrate, until a signal arrives:
        after the deadline it gets one. BlockBusyError when it did not work; the block is online
        then, as before.
        """
        try:
            with _deadline(deadline_seconds):
                _write(BASE / f"memory{index}" / "state", b"offline")
        except _Deadline:
            if self.state(index) != "offline":
                raise BlockBusyError(f"not emptied within {deadline_seconds:g} s") from None
        except OSError as error:
            reason = {
                errno.EBUSY: "it holds pages that cannot move",
                errno.EINVAL: "it has holes or lies in several zones",
                errno.EINTR: "interrupted",
                errno.ENOMEM: "no memory to move its pages to",
            }.get(error.errno or 0, os.strerror(error.errno or 0))
            raise BlockBusyError(reason) from None

    def online(self, index: int, how: str) -> None:
        """Bring an offline block back: ``online_movable``, ``online_kernel`` or ``online``."""
        try:
            _write(BASE / f"memory{index}" / "state", how.encode())
        except OSError as error:
            raise BlockBusyError(os.strerror(error.errno or 0)) from None

    def census(self, index: int) -> BlockCensus:
        """What the block's pages hold now."""
        pages = self.block_bytes // PAGE
        try:
            with open("/proc/kpageflags", "rb", buffering=0) as stream:
                stream.seek(index * pages * ENTRY_BYTES)
                data = b""
                while len(data) < pages * ENTRY_BYTES:
                    chunk = stream.read(pages * ENTRY_BYTES - len(data))
                    if not chunk:
                        break
                    data += chunk
        except OSError as error:
            raise CrashlendError(
                "cannot look at the pages of a memory block",
                f"/proc/kpageflags: {error.strerror}",
                hint="a kernel with CONFIG_PROC_PAGE_MONITOR is needed, and root",
            ) from error
        if len(data) < pages * ENTRY_BYTES:
            raise CrashlendError(
                "cannot look at the pages of a memory block",
                f"/proc/kpageflags ends inside block {index}",
            )
        return count_pages(index, data)

    def poison_at_large(self) -> bool:
        """Whether the kernel counts more poisoned memory than the blocks' pages show.

        Where the rest of it lies is not known then; none of it comes back from being offline.
        """
        corrupted = self.meminfo().get("HardwareCorrupted", 0)
        if not corrupted:
            return False
        online = (i for i in self._indexes() if self.state(i) == "online")
        return corrupted > sum(self.census(index).poisoned for index in online) * PAGE

    def _indexes(self) -> list[int]:
        names = (path.name[len("memory") :] for path in BASE.glob("memory[0-9]*"))
        return sorted(int(name) for name in names if name.isdecimal())

    def zones(self) -> tuple[Zone, ...]:
        return parse_zoneinfo(Path("/proc/zoneinfo").read_bytes())

    def meminfo(self) -> dict[str, int]:
        return parse_meminfo(Path("/proc/meminfo").read_bytes())

    def huge_pages(self) -> dict[str, str]:
        """Every nr_hugepages of every node, by path: dissolved pages show here."""
        files = Path("/sys/devices/system/node").glob("node*/hugepages/*/nr_hugepages")
        return {str(path): _read(path) for path in files}


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _write(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Interrupt a system call after ``seconds``: SIGALRM whose handler raises."""

    def fire(_signal: int, _frame: FrameType | None) -> None:
        raise _Deadline

    if threading.current_thread() is not threading.main_thread():
        raise CrashlendError("cannot set a deadline", "not in the main thread")
    previous = signal.signal(signal.SIGALRM, fire)
    try:
        # again and again: the first alarm may strike before the write is in the kernel
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001), 0.1)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
