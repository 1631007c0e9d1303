# SPDX-License-Identifier: LGPL-2.1-or-later
"""The cpio format of initramfs archives ("newc", magic 070701): writer and bounded reader.

Source: Documentation/driver-api/early-userspace/buffer-format.rst and init/initramfs.c.
The writer is deterministic: the same members give the same bytes. Times are 0, the owner is
root, inodes are counted, and a directory always comes before what it holds.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crashlend.errors import FormatError
from crashlend.ranges import align_up

if TYPE_CHECKING:
    from collections.abc import Iterable

MAGIC = b"070701"
TRAILER = "TRAILER!!!"
# The header: the magic, then these fields of 8 hexadecimal digits each.
FIELDS = (
    "ino",
    "mode",
    "uid",
    "gid",
    "nlink",
    "mtime",
    "filesize",
    "devmajor",
    "devminor",
    "rdevmajor",
    "rdevminor",
    "namesize",
    "check",
)
HEADER_BYTES = len(MAGIC) + 8 * len(FIELDS)
# init/initramfs.c skips an entry whose name is longer than PATH_MAX, NUL included.
NAME_BYTES_MAX = 4096
_SIZE_MAX = 0xFFFFFFFF


@dataclass(frozen=True)
class Member:
    """One file of an archive. ``path`` is relative, without ``.`` or a leading slash.

    ``mode`` holds type and permissions as in ``st_mode``; ``data`` is the content of a regular
    file or the target of a symlink; ``device`` the (major, minor) of a device node.
    """

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(path: str, permissions: int = 0o755) -> Member:
    """A directory."""
    return Member(path, stat.S_IFDIR | permissions)


def regular(path: str, data: bytes, permissions: int = 0o644) -> Member:
    """A regular file."""
    return Member(path, stat.S_IFREG | permissions, data)


def symlink(path: str, target: str) -> Member:
    """A symbolic link to ``target``."""
    return Member(path, stat.S_IFLNK | 0o777, target.encode())


def character_device(path: str, major: int, minor: int, permissions: int = 0o600) -> Member:
    """A character device node."""
    return Member(path, stat.S_IFCHR | permissions, device=(major, minor))


def build(members: Iterable[Member]) -> bytes:
    """Write an archive. Missing parent directories are added with mode 0755.

    Members are sorted by path, so their order does not matter. Raises FormatError for a path
    that is not plain, that is there twice, or that lies in something that is no directory.
    """
    wanted: dict[str, Member] = {}
    for member in members:
        _check_path(member.path)
        if member.path in wanted:
            raise FormatError("cpio archive", f"{member.path} is there twice")
        wanted[member.path] = member
    for path in list(wanted):
        for parent in _parents(path):
            holder = wanted.setdefault(parent, directory(parent))
            if not stat.S_ISDIR(holder.mode):
                raise FormatError("cpio archive", f"{path} lies in {parent}, which is no directory")

    out = bytearray()
    # Sorted by components a parent precedes its children, and "a-b" cannot come between "a/…".
    ordered = sorted(wanted.values(), key=lambda m: m.path.split("/"))
    for ino, member in enumerate(ordered, start=1):
        _append(out, ino, member)
    _append(out, 0, Member(TRAILER, 0))
    return bytes(out)


def parse(data: bytes, *, start: int = 0) -> tuple[tuple[Member, ...], int]:
    """Read one archive that begins at ``start``; return its members and the offset behind it.

    Offsets are in bytes. Alignment counts from the start of ``data``, as in the kernel. Raises
    FormatError where the bytes end early or are not what the format demands.
    """
    members: list[Member] = []
    at = start
    while True:
        header = _take(data, at, HEADER_BYTES, "header")
        if header[: len(MAGIC)] != MAGIC:
            raise FormatError("cpio archive", f"no {MAGIC.decode()} header", offset=at)
        fields = _read_fields(header, at)
        name_bytes, size = fields["namesize"], fields["filesize"]
        if not 2 <= name_bytes <= NAME_BYTES_MAX:
            raise FormatError("cpio archive", f"name of {name_bytes} bytes", offset=at)
        raw_name = _take(data, at + HEADER_BYTES, name_bytes, "name")
        if raw_name[-1] != 0 or 0 in raw_name[:-1]:
            raise FormatError("cpio archive", "name not ended by its NUL", offset=at + HEADER_BYTES)
        try:
            name = raw_name[:-1].decode()
        except UnicodeDecodeError as error:
            raise FormatError(
                "cpio archive", "name is not UTF-8", offset=at + HEADER_BYTES
            ) from error
        content_at = align_up(at + HEADER_BYTES + name_bytes, 4)
        content = _take(data, content_at, size, f"content of {name}")
        at = align_up(content_at + size, 4)
        if name == TRAILER:
            return tuple(members), min(at, len(data))
        _check_path(name)
        device = (fields["rdevmajor"], fields["rdevminor"])
        members.append(Member(name, fields["mode"], content, device))


def _append(out: bytearray, ino: int, member: Member) -> None:
    name = member.path.encode() + b"\0"
    if len(name) > NAME_BYTES_MAX or len(member.data) > _SIZE_MAX:
        raise FormatError("cpio archive", f"{member.path} is too long or too large")
    values = {
        "ino": ino,
        "mode": member.mode,
        "nlink": 2 if stat.S_ISDIR(member.mode) else 1,
        "filesize": len(member.data),
        "rdevmajor": member.device[0],
        "rdevminor": member.device[1],
        "namesize": len(name),
    }
    out += MAGIC + b"".join(b"%08X" % values.get(field, 0) for field in FIELDS) + name
    _pad(out)
    out += member.data
    _pad(out)


def _pad(out: bytearray) -> None:
    out.extend(bytes(-len(out) % 4))


def _take(data: bytes, at: int, size: int, what: str) -> bytes:
    if at + size > len(data):
        why = f"{what} needs {size} bytes, {max(0, len(data) - at)} are left"
        raise FormatError("cpio archive", why, offset=at)
    return data[at : at + size]


def _read_fields(header: bytes, at: int) -> dict[str, int]:
    fields = {}
    for index, field in enumerate(FIELDS):
        begin = len(MAGIC) + 8 * index
        digits = header[begin : begin + 8]
        # int() alone would also take signs, spaces and underscores
        if not all(c in b"0123456789abcdefABCDEF" for c in digits):
            raise FormatError("cpio archive", f"{field} is not hexadecimal", offset=at + begin)
        fields[field] = int(digits, 16)
    return fields


def _check_path(path: str) -> None:
    parts = path.split("/")
    if not path or "\0" in path or path == TRAILER or any(p in ("", ".", "..") for p in parts):
        raise FormatError("cpio archive", f"not a plain relative path: {path!r}")


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]
