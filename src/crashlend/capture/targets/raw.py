# SPDX-License-Identifier: LGPL-2.1-or-later
"""A partition or disk without a file system as dump target.

It is written to without asking in the crash kernel, so nothing that could be somebody's is taken: a
device must be blank at both ends, or begin with crashlend's own table (rawdump.py).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from crashlend.capture.hosttree import follow, read_text
from crashlend.capture.libraries import resolve
from crashlend.capture.rawdump import BLANK_BYTES, HEADER_BYTES, is_blank, is_marked
from crashlend.capture.targets.access import Access
from crashlend.capture.targets.target import Target
from crashlend.capture.targets.way import device_wants
from crashlend.errors import CrashlendError

if TYPE_CHECKING:
    from pathlib import Path

PREFIX = "raw:"
SECTOR_BYTES = 512
# the table, the small files and what raw.sh keeps free for them, and a dump worth the name
_LEAST_BYTES = 16 << 20


def find_raw(root: Path, spec: str, path: str, access: Access) -> Target:
    """The device of ``raw:PARTUUID=…`` or ``raw:/dev/…`` as a target.

    ``path`` and ``access`` mean nothing here.

    Raises CrashlendError when it does not exist, is in use, or holds what is not crashlend's.
    """
    name = _device_of(root, spec)
    sysfs = follow(root, root / "sys/class/block" / name)
    sectors = int(read_text(sysfs / "size") or "0")
    if any((sysfs / "holders").glob("*")) or _is_mounted(root, read_text(sysfs / "dev")):
        raise CrashlendError(
            f"cannot dump to {spec}",
            f"/dev/{name} is in use",
            hint="name a device that nothing else uses",
        )
    if sectors * SECTOR_BYTES < _LEAST_BYTES:
        raise CrashlendError(
            f"cannot dump to {spec}",
            f"/dev/{name} has {sectors * SECTOR_BYTES >> 20} MiB",
            hint="a raw device needs 16 MiB at least, and room for the dump",
        )
    _check_content(root / "dev" / name, spec)
    device = _lasting_name(root, name, spec)
    variables = {"TARGET_DEVICE": device, "TARGET_SECTORS": str(sectors)}
    return Target("raw", spec, variables, device_wants(root, name))


def _device_of(root: Path, spec: str) -> str:
    where = spec[len(PREFIX) :]
    if where.startswith("PARTUUID="):
        where = f"/dev/disk/by-partuuid/{where[len('PARTUUID=') :].lower()}"
    elif not where.startswith("/dev/"):
        raise CrashlendError(
            f"cannot use the dump target {spec}",
            "unknown form",
            hint="write raw:PARTUUID=… or raw:/dev/…",
        )
    name = resolve(root, where).name
    if not follow(root, root / "sys/class/block" / name).exists():
        raise CrashlendError(
            f"cannot find the dump target {spec}", "no such disk", hint="see lsblk -o NAME,PARTUUID"
        )
    return name


def _lasting_name(root: Path, name: str, spec: str) -> str:
    """How the crash kernel finds it, which has none of udev's links: PARTUUID=…, or the device."""
    for link in sorted((root / "dev/disk/by-partuuid").glob("*")):
        if follow(root, link).name == name:
            return f"PARTUUID={link.name}"
    if spec[len(PREFIX) :] == f"/dev/{name}":
        return f"/dev/{name}"
    raise CrashlendError(
        f"cannot use the dump target {spec}",
        f"it is a link to the disk {name}, and a crash kernel has no such links",
        hint=f"make a partition and name it, raw:PARTUUID=…, or take raw:/dev/{name}: it is written to "
        "only if it has the same size and is blank or crashlend's",
    )


def _is_mounted(root: Path, number: str) -> bool:
    """Whether a file system of that device (MAJOR:MINOR) is mounted [proc_pid_mountinfo(5)]."""
    text = read_text(root / "proc/self/mountinfo")
    return any(line.split()[2:3] == [number] for line in text.splitlines())


def _check_content(device: Path, spec: str) -> None:
    """Refuse a device that could hold something of somebody else's."""
    try:
        with device.open("rb") as stream:
            head = stream.read(BLANK_BYTES)
            stream.seek(-BLANK_BYTES, os.SEEK_END)
            tail = stream.read(BLANK_BYTES)
    except OSError as error:
        raise CrashlendError(f"cannot read {device}", str(error.strerror)) from error
    if is_marked(head[:HEADER_BYTES]) or is_blank(head, tail):
        return
    raise CrashlendError(
        f"cannot dump to {spec}",
        f"{device.name} is not blank and does not carry crashlend's mark: a dump would destroy it",
        hint="if nothing on it is needed, make its first and its last MiB zero: "
        f"wipefs -a /dev/{device.name} && blkdiscard -z /dev/{device.name}",
    )
