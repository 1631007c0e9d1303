# SPDX-License-Identifier: LGPL-2.1-or-later
"""Physical memory as /proc/kcore shows it: all RAM, the reservation included, read-only.

Lockdown closes it at ``confidentiality``, not at ``integrity``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crashlend.formats import elfcore

if TYPE_CHECKING:
    from crashlend.hostfiles import HostFiles

KCORE = "/proc/kcore"


def read_physical(files: HostFiles, start: int, size: int) -> bytes:
    """``size`` bytes at physical ``start``; b"" where kcore does not show them.

    OSError and FormatError where kcore can't be read or is none.
    """
    ehdr = files.read(KCORE, elfcore.EHDR.size)
    headers = files.read(KCORE, elfcore.headers_end(ehdr))
    places = elfcore.parse_program_headers(headers, physical=False)
    for header, place in zip(elfcore.parse_program_headers(headers), places):
        direct = header.type == elfcore.PT_LOAD and header.virt < elfcore.KERNEL_TEXT_BASE
        if direct and header.phys <= start and start + size <= header.end:
            return files.read(KCORE, size, offset=place.phys + start - header.phys)
    return b""
