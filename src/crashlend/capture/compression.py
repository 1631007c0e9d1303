# SPDX-License-Identifier: LGPL-2.1-or-later
"""How the archive is compressed: as small as the crash kernel can unpack."""

from __future__ import annotations

import gzip
import lzma
import stat
from typing import TYPE_CHECKING, NamedTuple, Optional

from crashlend.capture.cache import cache_key, read_cached, write_cached
from crashlend.formats import newc
from crashlend.formats.elf import is_elf

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

# The dictionary is memory that the crash kernel needs while it unpacks (XZ_DYNALLOC).
_XZ_DICTIONARY_BYTES_MAX = 8 << 20
_XZ_DICTIONARY_BYTES_MIN = 64 << 10
# lc=4 saves some KiB, on code as on relocations. A change of these words is another cache.
_XZ_WORDS = {"preset": 9 | lzma.PRESET_EXTREME, "lc": 4}
_X86 = {"id": lzma.FILTER_X86}
if TYPE_CHECKING:
    # what is in an archive, how it is filtered, where it is kept
    _Part = tuple[list[newc.Member], Sequence[Mapping[str, int]], Optional[Path]]


class Packed(NamedTuple):
    """``data`` is what to load, ``unpacked_bytes`` what the archives within have together."""

    data: bytes
    unpacked_bytes: int
    compression: str


def pack(
    members: Iterable[newc.Member], config: Mapping[str, str], cache: Optional[Path] = None
) -> Packed:
    """The members as what a kernel with these CONFIG_ options unpacks, programs in an archive apart.

    The kernel unpacks one archive after the other (init/initramfs.c: unpack_to_rootfs). Machine code
    takes less behind a filter that makes jumps to one place alike (BCJ, since Linux 2.6.38); in
    modules, whose jumps are not linked yet, it would do harm. ``cache`` is a directory (cache.py). What
    is for its owner alone is a small archive of its own that is never kept there.
    """
    compression = best_compression(config)
    apart = compression == "xz" and config.get("CONFIG_XZ_DEC_X86") == "y"
    common: list[newc.Member] = []
    programs: list[newc.Member] = []
    secrets: list[newc.Member] = []
    for member in members:
        if _is_secret(member):
            secrets.append(member)
        else:
            (programs if apart and _is_program(member) else common).append(member)
    data, unpacked = b"", 0
    parts: tuple[_Part, ...] = (
        (common, (), cache),
        (programs, (_X86,), cache),
        (secrets, (), None),
    )
    for part, filters, where in parts:
        if part:
            archive = newc.build(part)
            data += _cached(where, archive, compression, filters)
            unpacked += len(archive)
    return Packed(data, unpacked, compression)


def _cached(
    cache: Optional[Path], archive: bytes, compression: str, filters: Sequence[Mapping[str, int]]
) -> bytes:
    """The archive, compressed; each by itself, for programs change more rarely than settings."""
    if cache is None:
        return _compress(archive, compression, filters)
    key = cache_key(f"{compression} {filters} {_XZ_WORDS}", archive)
    data = read_cached(cache, key)
    if data is None:
        data = _compress(archive, compression, filters)
        write_cached(cache, key, data)
    return data


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


def _is_secret(member: newc.Member) -> bool:
    return stat.S_ISREG(member.mode) and not member.mode & 0o077


def _compress(data: bytes, compression: str, filters: Sequence[Mapping[str, int]]) -> bytes:
    if compression == "gzip":
        return gzip.compress(data, 9, mtime=0)
    size = _XZ_DICTIONARY_BYTES_MIN
    while size < min(len(data), _XZ_DICTIONARY_BYTES_MAX):
        size *= 2
    # The kernel's decoder knows no other check than CRC32 (Documentation/staging/xz.rst).
    lzma2 = {"id": lzma.FILTER_LZMA2, "dict_size": size, **_XZ_WORDS}
    return lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=[*filters, lzma2])
