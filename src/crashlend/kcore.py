# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel's direct mapping of RAM as /proc/kcore shows it, the reservation included; read-only.

Lockdown closes it at ``confidentiality``, not at ``integrity``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crashlend.errors import FormatError
from crashlend.formats import elfcore

if TYPE_CHECKING:
    from crashlend.hostfiles import HostFiles

KCORE = "/proc/kcore"


class Kcore:
    """Its headers are read once: memory that is added later is not seen.

    OSError and FormatError where it can't be read or is none; FormatError for what it does not show.
    """

    def __init__(self, files: HostFiles) -> None:
        self.files = files
        ehdr = files.read(KCORE, elfcore.EHDR.size)
        headers = files.read(KCORE, elfcore.headers_end(ehdr))
        places = elfcore.parse_program_headers(headers, physical=False)
        self.direct = [
            (header, place.phys)
            for header, place in zip(elfcore.parse_program_headers(headers), places)
            if header.type == elfcore.PT_LOAD
            and header.virt < elfcore.KERNEL_TEXT_BASE
            and header.phys < 1 << 52
        ]

    def physical(self, start: int, size: int) -> bytes:
        """``size`` bytes at physical ``start``."""
        for header, place in self.direct:
            if header.phys <= start and start + size <= header.end:
                return self._read(place + start - header.phys, size)
        raise FormatError(KCORE, f"it does not show physical {start:#x}")

    def virtual(self, start: int, size: int) -> bytes:
        """``size`` bytes at virtual ``start``."""
        for header, place in self.direct:
            if header.virt <= start and start + size <= header.virt + header.bytes:
                return self._read(place + start - header.virt, size)
        raise FormatError(KCORE, f"it does not show {start:#x}")

    def _read(self, offset: int, size: int) -> bytes:
        data = self.files.read(KCORE, size, offset=offset)
        if len(data) != size:
            raise FormatError(KCORE, "it ends too early", offset=offset)
        return data
