# SPDX-License-Identifier: LGPL-2.1-or-later
"""Giving most of the reservation back to production, for good (until the next boot).

The kernel judges before anything is given up: a filler segment takes the part that shall go, so a
load succeeds only if all the rest fits in what stays.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from crashlend.arch import Segment
from crashlend.errors import CrashlendError
from crashlend.proof import hole_filler
from crashlend.sizes import mib

if TYPE_CHECKING:
    from crashlend.shrink import Shrink
    from crashlend.system.image import CrashImage

CRASH_SIZE = Path("/sys/kernel/kexec_crash_size")


def prove(shrink: Shrink, image: CrashImage, ram_bytes: int, *, exactly: bool) -> None:
    """Load ``image`` with the part that shall go filled up; CrashlendError when it does not fit.

    ``exactly``: leave the kernel as many control pages as planned, and not the margin as well.
    The image that was loaded before is gone either way.
    """
    layout = image.layout
    if layout is None:
        raise CrashlendError("cannot shrink the reservation", "the kernel places the segments")
    start = shrink.before.start + shrink.after_bytes
    filler = Segment("filler", start, 0, shrink.before.end - start)
    hole = hole_filler(layout, shrink.before.start, ram_bytes, filler.memory_bytes)
    image.load([filler, *(hole if exactly and hole else ())])


def carry_out(shrink: Shrink) -> None:
    """Write the new size; no image may be loaded. CrashlendError tells why it did not work."""
    try:
        fd = os.open(CRASH_SIZE, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, str(shrink.written_bytes).encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise CrashlendError(
            f"the reservation does not shrink to {mib(shrink.after_bytes)}",
            f"{CRASH_SIZE}: {error.strerror}",
            hint="it stays as large as it is",
        ) from error
