# SPDX-License-Identifier: LGPL-2.1-or-later
"""Physical memory where it may not be shown: b"" then."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crashlend.errors import FormatError
from crashlend.kcore import Kcore

if TYPE_CHECKING:
    from crashlend.hostfiles import HostFiles


def read_physical(files: HostFiles, start: int, size: int) -> bytes:
    """``size`` bytes at physical ``start``; b"" where kcore does not show them.

    OSError and FormatError where kcore can't be read or is none.
    """
    return shown(Kcore(files), start, size)


def shown(core: Kcore, start: int, size: int) -> bytes:
    """The same of a kcore whose headers were read before."""
    try:
        return core.physical(start, size)
    except FormatError:
        return b""
