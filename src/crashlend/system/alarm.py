# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel's log: where a host without a crash kernel says so, whoever reads it."""

from __future__ import annotations

import os
from contextlib import suppress

KMSG = "/dev/kmsg"
LEVEL_ERR = 3  # include/linux/kern_levels.h
MOST_BYTES = 900  # LOG_LINE_MAX in kernel/printk is 1024 with its prefix: a longer write is EINVAL


def alarm(words: str) -> None:
    """Write one line to the kernel's log at level err. Never raises: it follows a failure."""
    line = " ".join(words.split()).encode("utf-8", "replace")[:MOST_BYTES]
    with suppress(OSError):
        fd = os.open(KMSG, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            os.write(fd, b"<%d>crashlend: %s\n" % (LEVEL_ERR, line))
        finally:
            os.close(fd)
