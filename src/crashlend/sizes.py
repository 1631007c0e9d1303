# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sizes as people write and read them. Inside crashlend every size is an int of bytes."""

from __future__ import annotations

import re

from crashlend.errors import UsageError

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

_UNITS = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": 1 << 40}
# No machine has 10^19 bytes, and int() need not see what is longer.
_SIZE = re.compile(r"([0-9]{1,19})(?:([KMGT])(?:iB)?)?", re.IGNORECASE)


def parse_size(text: str, what: str = "size") -> int:
    """Bytes of "4096", "512M", "1G", "1GiB" (K, M, G, T, each 1024 times the one before).

    Stricter than the kernel: no sign, fraction, space or other base. ``what`` names the thing in
    the UsageError.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise UsageError(
            what,
            f"{text!r} is not a size",
            hint="write digits and one of K, M, G or T, such as 512M or 1G",
        )
    return int(match[1]) * _UNITS[(match[2] or "").upper()]


def format_size(size_bytes: int) -> str:
    """The shortest exact text that :func:`parse_size` reads back, such as "1G" or "1536M"."""
    for unit in ("T", "G", "M", "K"):
        if size_bytes and size_bytes % _UNITS[unit] == 0:
            return f"{size_bytes // _UNITS[unit]}{unit}"
    return str(size_bytes)


def mib(size_bytes: int) -> str:
    """The size for people: "1024 MiB" where it is a whole number of MiB, else "12.3 MiB".

    One decimal, rounded half up; three below 0.1 MiB, so that a page does not look like nothing.
    """
    if size_bytes < 0:
        return f"-{mib(-size_bytes)}"
    if size_bytes % MIB == 0:
        return f"{size_bytes // MIB} MiB"
    digits = 1 if size_bytes * 10 >= MIB else 3
    scale = 10**digits
    # Integers, for a float's rounding would depend on the value's binary form.
    scaled = (size_bytes * scale * 2 + MIB) // (2 * MIB)
    return f"{scaled // scale}.{scaled % scale:0{digits}d} MiB"
