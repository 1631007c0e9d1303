# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a capture initramfs says of itself: its settings, its targets, the modules that it loads.

A twin's disk is made after that, so that the unchanged initramfs of a host finds it.
"""

from __future__ import annotations

import gzip
import lzma
import re
import shlex
import subprocess
import zlib
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from crashlend.errors import CrashlendError, FormatError
from crashlend.formats import newc
from crashlend.lab.packages import find_tool

if TYPE_CHECKING:
    from collections.abc import Mapping

ETC = "etc/crashlend"
MAGICS = {b"\x1f\x8b": "gzip", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
# a wrong file must not eat this machine's memory
MAX_BYTES = 1 << 30


@dataclass(frozen=True)
class Capture:
    """A capture initramfs of crashlend's. ``modules`` in the order of loading, "-" as "_".

    ``variables`` are capture.conf's; ``targets`` those of each target, in order of preference.
    """

    variables: Mapping[str, str]
    targets: tuple[Mapping[str, str], ...]
    modules: tuple[str, ...]


def read_capture(data: bytes) -> Capture:
    """Read an initramfs; CrashlendError where it is not one that crashlend built."""
    files = read_files(data)
    if f"{ETC}/capture.conf" not in files:
        raise CrashlendError(
            "cannot make a twin for this initramfs",
            f"it is not crashlend's own: there is no /{ETC}/capture.conf in it",
            hint="leave --initramfs out: crashlend builds one",
        )
    variables = shell_words(files[f"{ETC}/capture.conf"])
    targets = []
    for name in variables.get("TARGETS", "").split():
        conf = files.get(f"{ETC}/targets/{name}.conf")
        if conf is None:
            raise CrashlendError("cannot make a twin for this initramfs", f"no target {name} in it")
        targets.append(shell_words(conf))
    listed = files.get(f"{ETC}/modules", b"").decode().split()
    modules = tuple(PurePosixPath(path).name.partition(".ko")[0] for path in listed)
    return Capture(variables, tuple(targets), tuple(m.replace("-", "_") for m in modules))


def read_files(data: bytes) -> dict[str, bytes]:
    """The regular files of an initramfs: archives one behind the other, the last one wins.

    FormatError for what is neither an archive nor a compressed one.
    """
    found: dict[str, bytes] = {}
    at = 0
    while True:
        at += len(data[at:]) - len(data[at:].lstrip(b"\0"))
        if at >= len(data):
            return found
        if data[at : at + len(newc.MAGIC)] == newc.MAGIC:
            members, at = newc.parse(data, start=at)
            found.update((m.path, m.data) for m in members if m.mode & 0o170000 == 0o100000)
            continue
        inner, used = _decompress(data[at:], at)
        found.update(read_files(inner))
        at += used


def _decompress(data: bytes, offset: int) -> tuple[bytes, int]:
    """The first compressed stream, and how many bytes it takes."""
    kind = next((kind for magic, kind in MAGICS.items() if data.startswith(magic)), "")
    try:
        if kind == "zstd":
            zstd = find_tool("zstd", "install the package zstd")
            done = subprocess.run([zstd, "-dcq"], input=data, check=True, capture_output=True)
            return done.stdout, len(data)
        if kind == "gzip":
            stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
            out = stream.decompress(data, MAX_BYTES)
            return out, len(data) - len(stream.unused_data)
        if kind == "xz":
            xz = lzma.LZMADecompressor(lzma.FORMAT_XZ)
            out = xz.decompress(data, MAX_BYTES)
            return out, len(data) - len(xz.unused_data)
    except (zlib.error, lzma.LZMAError, gzip.BadGzipFile, subprocess.CalledProcessError) as error:
        raise FormatError("initramfs", str(error), offset=offset) from error
    raise FormatError("initramfs", "neither cpio nor xz, gzip or zstd", offset=offset)


def shell_words(conf: bytes) -> dict[str, str]:
    """``NAME='value'`` lines, as crashlend writes them."""
    found = {}
    for word in shlex.split(conf.decode(errors="surrogateescape")):
        name, equals, value = word.partition("=")
        if equals and re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
            found[name] = value
    return found
