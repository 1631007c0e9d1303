# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whose crash image is loaded: the kernel only says whether there is one.

Other programs load crash kernels too (kdump-tools reloads on memory hotplug, which lending causes).
So a load records where its boot_params lie and their digest, and this looks at them again, through
/proc/kcore, which shows the reservation as part of the direct mapping.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Optional

from crashlend.errors import CrashlendError
from crashlend.formats import elfcore
from crashlend.hostfiles import HostFiles, TreeFiles

KCORE = "/proc/kcore"


def marker(start: int, data: bytes) -> dict[str, Any]:
    """What to record of a segment that begins at physical address ``start``."""
    return {"start": start, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def is_in_memory(known: Any, files: Optional[HostFiles] = None) -> Optional[bool]:
    """Whether the recorded segment still lies where it was; None when it can't be looked at."""
    if not isinstance(known, dict):
        return None
    try:
        data = _read_physical(files or TreeFiles(Path("/")), known["start"], known["bytes"])
    except (OSError, CrashlendError, KeyError, TypeError):
        return None
    if len(data) != known["bytes"]:
        return None
    return hashlib.sha256(data).hexdigest() == known.get("sha256")


def _read_physical(files: HostFiles, start: int, size: int) -> bytes:
    """``size`` bytes at physical ``start``; b"" where kcore does not show them."""
    ehdr = files.read(KCORE, elfcore.EHDR.size)
    headers = files.read(KCORE, elfcore.headers_end(ehdr))
    places = elfcore.parse_program_headers(headers, physical=False)
    for header, place in zip(elfcore.parse_program_headers(headers), places):
        direct = header.type == elfcore.PT_LOAD and header.virt < elfcore.KERNEL_TEXT_BASE
        if direct and header.phys <= start and start + size <= header.end:
            return files.read(KCORE, size, offset=place.phys + start - header.phys)
    return b""
