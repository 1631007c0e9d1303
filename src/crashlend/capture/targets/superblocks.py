# SPDX-License-Identifier: LGPL-2.1-or-later
"""Superblocks: what a device says of its file system, or of the array it belongs to."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

_PREFIX_BYTES = 68 << 10  # of a device, enough for all of them


class _Layout(NamedTuple):
    """Where the magic is and what it says, where UUID and label are, in bytes of the device."""

    magic_at: int
    magic: bytes
    uuid_at: int
    label_at: int
    label_bytes: int


# ext4: Documentation/filesystems/ext4/super.rst (at 1024); xfs: fs/xfs/libxfs/xfs_format.h; btrfs:
# include/uapi/linux/btrfs_tree.h (struct btrfs_super_block, at 64 KiB). init/devices.sh has them too.
_SUPERBLOCKS = {
    "ext4": _Layout(1024 + 0x38, b"\x53\xef", 1024 + 0x68, 1024 + 0x78, 16),
    "xfs": _Layout(0, b"XFSB", 32, 108, 12),
    "btrfs": _Layout(65536 + 0x40, b"_BHRfS_M", 65536 + 0x20, 65536 + 0x12B, 256),
}
_BTRFS_DEVICES_AT = 65536 + 0x88

# Linux RAID: include/uapi/linux/raid/md_p.h (struct mdp_superblock_1). Version 1.1 begins the
# device, 1.2 is 4 KiB in, 1.0 at the last multiple of 4 KiB that is 8 KiB or more before the end.
_MD_MAGIC = b"\xfc\x4e\x2b\xa9"
_MD_UUID_AT, _MD_BYTES = 16, 256


class FileSystem(NamedTuple):
    """What a superblock says. ``devices``: how many devices the file system is made of."""

    fstype: str
    uuid: str
    label: str
    devices: int = 1


def read_superblock(device: Path) -> FileSystem:
    """What ``device`` says; empty strings for what is unknown or cannot be read."""
    data = _read(device, 0, _PREFIX_BYTES)
    for fstype, layout in _SUPERBLOCKS.items():
        at, end = layout.magic_at, layout.label_at + layout.label_bytes
        if data[at : at + len(layout.magic)] != layout.magic or len(data) < end:
            continue
        raw = data[layout.uuid_at : layout.uuid_at + 16].hex()
        label = data[layout.label_at : end].split(b"\0", 1)[0].decode(errors="replace")
        devices = 1
        if fstype == "btrfs":
            devices = int.from_bytes(data[_BTRFS_DEVICES_AT : _BTRFS_DEVICES_AT + 8], "little")
        return FileSystem(fstype, dashed(raw) if int(raw, 16) else "", label, devices)
    return FileSystem("", "", "")


def read_array_uuid(device: Path) -> str:
    """The UUID of the Linux RAID array (metadata 1.x) that ``device`` is a member of, or "".

    In mdadm's form: four groups of eight hexadecimal digits, with colons.
    """
    places = [4096, 0]
    try:
        with device.open("rb") as stream:
            end = stream.seek(0, 2)
        if end >= 8192:
            places.append(((end - 8192) // 4096) * 4096)
    except OSError:
        return ""
    for place in places:
        data = _read(device, place, _MD_BYTES)
        if data[:4] == _MD_MAGIC and data[4:8] == b"\1\0\0\0":
            raw = data[_MD_UUID_AT : _MD_UUID_AT + 16].hex()
            return ":".join(raw[at : at + 8] for at in range(0, 32, 8))
    return ""


def dashed(raw: str) -> str:
    """32 hexadecimal digits as a UUID."""
    return "-".join((raw[:8], raw[8:12], raw[12:16], raw[16:20], raw[20:]))


def _read(device: Path, at: int, count: int) -> bytes:
    try:
        with device.open("rb") as stream:
            stream.seek(at)
            return stream.read(count)
    except OSError:
        return b""
