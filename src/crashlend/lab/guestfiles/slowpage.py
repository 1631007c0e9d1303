# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs in the production guest: memory that stops whoever reads it. Python 3.9."""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Any

PAGE = 4096
# include/uapi/linux/userfaultfd.h, arch/x86/entry/syscalls/syscall_64.tbl
SYS_USERFAULTFD = 323
UFFDIO_API, UFFDIO_REGISTER, UFFD_API, MODE_MISSING = 0xC018AA3F, 0xC020AA00, 0xAA, 1
libc = ctypes.CDLL(None, use_errno=True)


class SlowPage:
    """A buffer whose last page nobody supplies: whoever reads it, the kernel too, waits for ever."""

    def __init__(self, data: bytes) -> None:
        size = -(-len(data) // PAGE) * PAGE
        self.area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.area))
        self.fd = libc.syscall(SYS_USERFAULTFD, os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "userfaultfd")
        self.ioctl(UFFDIO_API, (ctypes.c_uint64 * 3)(UFFD_API, 0, 0))
        ctypes.memmove(self.address, data, size - PAGE)
        last = (ctypes.c_uint64 * 4)(self.address + size - PAGE, PAGE, MODE_MISSING, 0)
        self.ioctl(UFFDIO_REGISTER, last)

    def ioctl(self, request: int, argument: Any) -> None:
        """OSError when the kernel refuses."""
        if libc.ioctl(self.fd, ctypes.c_ulong(request), argument) != 0:
            raise OSError(ctypes.get_errno(), f"userfaultfd ioctl {request:#x}")

    def wait(self) -> None:
        """Until somebody reads the last page."""
        os.read(self.fd, 32)
