# SPDX-License-Identifier: LGPL-2.1-or-later
"""How the archive is compressed: as small as the crash kernel can unpack."""

from __future__ import annotations

import gzip
import lzma
from typing import TYPE_CHECKING, NamedTuple

from crashlend.formats import newc
from crashlend.formats.elf import is_elf

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

# The dictionary is memory that the crash kernel needs while it unpacks (XZ_DYNALLOC).
_XZ_DICTIONARY_BYTES_MAX = 8 << 20
_XZ_DICTIONARY_BYTES_MIN = 64 << 10


class Packed(NamedTuple):
    """``data`` is what to load, ``unpacked_bytes`` what the archives within have together."""

    data: bytes
    unpacked_bytes: int
    compression: str


def pack(members: Iterable[newc.Member], config: Mapping[str, str]) -> Packed:
    """The members as what a kernel with these CONFIG_ options unpacks, programs in an archive apart.

    The kernel unpacks one archive after the other (init/initramfs.c: unpack_to_rootfs). Machine code
    takes less behind a filter that makes jumps to one place alike (BCJ, since Linux 2.6.38); in
    modules, whose jumps are not linked yet, it would do harm.
    """
    members = list(members)
    compression = best_compression(config)
    if compression != "xz" or config.get("CONFIG_XZ_DEC_X86") != "y":
        unpacked = newc.build(members)
        return Packed(_compress(unpacked, compression), len(unpacked), compression)
    parts = ([m for m in members if not _is_program(m)], [m for m in members if _is_program(m)])
    archives = [newc.build(part) for part in parts if part]
    filters: tuple[list[dict[str, int]], ...] = ([], [{"id": lzma.FILTER_X86}])
    data = b"".join(_xz(archive, more) for archive, more in zip(archives, filters))
    return Packed(data, sum(map(len, archives)), compression)


def kernel_config(root: Path, release: str) -> Mapping[str, str]:
    """The CONFIG_ options of ``release`` that are set; empty when they are nowhere to be read."""
    paths = [root / "boot" / f"config-{release}"]
    paths += [root / d / "modules" / release / "config" for d in ("lib", "usr/lib")]
    paths += [root / "usr/lib/modules" / release / "kernel/config"]
    for path in paths:
        try:
            return _parse_config(path.read_text(encoding="utf-8", errors="replace"))
        except OSError:
            continue
    try:
        running = (root / "proc/sys/kernel/osrelease").read_text(encoding="utf-8").strip()
        if running == release:
            data = gzip.decompress((root / "proc/config.gz").read_bytes())
            return _parse_config(data.decode(errors="replace"))
    except (OSError, EOFError):
        pass
    return {}


def best_compression(config: Mapping[str, str]) -> str:
    """``xz`` where the kernel can unpack it, else ``gzip``, which every distribution's can."""
    return "xz" if config.get("CONFIG_RD_XZ") == "y" else "gzip"


def _parse_config(text: str) -> dict[str, str]:
    found = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and name.startswith("CONFIG_"):
            found[name] = value.strip()
    return found


def _is_program(member: newc.Member) -> bool:
    return is_elf(member.data) and not member.path.endswith(".ko")


def _compress(data: bytes, compression: str) -> bytes:
    return gzip.compress(data, 9, mtime=0) if compression == "gzip" else _xz(data, [])


def _xz(data: bytes, filters: list[dict[str, int]]) -> bytes:
    size = _XZ_DICTIONARY_BYTES_MIN
    while size < min(len(data), _XZ_DICTIONARY_BYTES_MAX):
        size *= 2
    # The kernel's decoder knows no other check than CRC32 (Documentation/staging/xz.rst).
    # lc=4 saves some KiB, on code as on relocations.
    best = 9 | lzma.PRESET_EXTREME
    lzma2 = {"id": lzma.FILTER_LZMA2, "preset": best, "dict_size": size, "lc": 4}
    return lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=[*filters, lzma2])
