# SPDX-License-Identifier: LGPL-2.1-or-later
"""Superblocks: what a device says of its file system."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

_PREFIX_BYTES = 4096  # of a device, enough for both superblocks

# Superblocks: where the magic is and what it says, where UUID and label are.
# ext4: Documentation/filesystems/ext4/super.rst (at 1024); xfs: fs/xfs/libxfs/xfs_format.h.
_SUPERBLOCKS = {
    "ext4": (1024 + 0x38, b"\x53\xef", 1024 + 0x68, 1024 + 0x78, 16),
    "xfs": (0, b"XFSB", 32, 108, 12),
}


class FileSystem(NamedTuple):
    """What a superblock says."""

    fstype: str
    uuid: str
    label: str


def read_superblock(device: Path) -> FileSystem:
    """What ``device`` says; empty strings for what is unknown or cannot be read."""
    try:
        with device.open("rb") as stream:
            data = stream.read(_PREFIX_BYTES)
    except OSError:
        return FileSystem("", "", "")
    for fstype, (at, magic, uuid_at, label_at, label_bytes) in _SUPERBLOCKS.items():
        if data[at : at + len(magic)] == magic and len(data) >= label_at + label_bytes:
            raw = data[uuid_at : uuid_at + 16].hex()
            uuid = "-".join((raw[:8], raw[8:12], raw[12:16], raw[16:20], raw[20:]))
            label = data[label_at : label_at + label_bytes].split(b"\0", 1)[0]
            return FileSystem(fstype, uuid if int(raw, 16) else "", label.decode(errors="replace"))
    return FileSystem("", "", "")
