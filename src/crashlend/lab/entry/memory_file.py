# SPDX-License-Identifier: LGPL-2.1-or-later
"""Memory that a virtual machine and the lab share: a guest's RAM, or a window to pass data through.

It has no name in any directory, so nothing of it can outlive the lab, however that ends.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from crashlend.errors import CrashlendError
from crashlend.sizes import mib

if TYPE_CHECKING:
    from types import TracebackType

CHUNK = 16 << 20


class MemoryFile:
    """A file of ``size`` bytes in memory; only what is written takes room."""

    def __init__(self, name: str, size: int) -> None:
        """``name`` is for people who look at the process."""
        self.size = size
        self.fd = os.memfd_create(name)
        os.ftruncate(self.fd, size)

    @property
    def path(self) -> str:
        """What another process, which this one outlives, can open."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def copy(self, name: str) -> MemoryFile:
        """The content as it is now; holes stay holes."""
        other = MemoryFile(name, self.size)
        at = 0
        while at < self.size:
            try:
                at = os.lseek(self.fd, at, os.SEEK_DATA)
            except OSError:  # ENXIO: nothing but a hole from here on
                break
            end = os.lseek(self.fd, at, os.SEEK_HOLE)
            while at < end:
                at += os.pwrite(other.fd, os.pread(self.fd, min(CHUNK, end - at), at), at)
        return other

    def close(self) -> None:
        """Give the memory back, once no other process has it."""
        os.close(self.fd)

    def __enter__(self) -> MemoryFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def demand_memory(needed_bytes: int) -> None:
    """CrashlendError when this host has not that much memory to spare now."""
    with open("/proc/meminfo", encoding="ascii") as file:
        lines = dict(line.split(":", 1) for line in file)
    available = int(lines["MemAvailable"].split()[0]) * 1024
    if available < needed_bytes:
        raise CrashlendError(
            "this trial needs more memory than the host has",
            f"{mib(needed_bytes)} for the guest, its copy and its dump; {mib(available)} are available",
            hint="a smaller guest, or fewer trials at a time",
        )
