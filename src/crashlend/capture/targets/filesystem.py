# SPDX-License-Identifier: LGPL-2.1-or-later
"""Local file systems as dump targets.

The crash kernel may find its disks in another order, so the file system is named by its UUID
or label where it has one.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import replace
from typing import TYPE_CHECKING

from crashlend.capture.hosttree import follow
from crashlend.capture.libraries import resolve
from crashlend.capture.modules import Want
from crashlend.capture.targets.access import Access
from crashlend.capture.targets.mounts import holder, inside, read_mounts
from crashlend.capture.targets.stack import find_way
from crashlend.capture.targets.superblocks import read_superblock
from crashlend.capture.targets.target import DISK_HINT, Target
from crashlend.errors import CrashlendError

if TYPE_CHECKING:
    from pathlib import Path

    from crashlend.capture.targets.mounts import Mount
    from crashlend.capture.targets.superblocks import FileSystem

SUPPORTED = ("ext4", "xfs", "btrfs")
# btrfs is mounted from its top, whichever subvolume production has where: paths are from there
_OPTIONS = {"btrfs": "subvolid=5"}


def find_filesystem(root: Path, spec: str, path: str, access: Access) -> Target:
    """The file system ``spec`` (``UUID=…``, ``LABEL=…``, ``PARTUUID=…``, a device) as a target.

    ``spec`` may be "": then it is the file system that holds ``path``, which else is the
    directory inside (of btrfs: from its top, not from a subvolume). ``access`` may name the key file
    of LUKS devices for which /etc/crypttab names none. Raises CrashlendError when it does not exist or could not be
    reached.
    """
    if not path.startswith("/"):
        raise CrashlendError("cannot use the dump target", f"path {path} is not absolute")
    mounts = read_mounts(root)
    if spec:
        name = _device_of(root, spec)
        mount = next((m for m in mounts if _name_of_mount(root, m) == name), None)
        directory = path
    else:
        real = "/" + str(resolve(root, path).relative_to(root))
        mount = holder(mounts, real)
        name = _device_of_mount(root, mount)
        directory = inside(mount, real)
    superblock = read_superblock(root / "dev" / name)
    fstype = mount.fstype if mount else superblock.fstype
    if fstype not in SUPPORTED:
        raise CrashlendError(
            f"cannot dump to /dev/{name}", f"file system {fstype or 'unknown'}", hint=DISK_HINT
        )
    if superblock.devices > 1:
        why = f"its btrfs is made of {superblock.devices} devices"
        raise CrashlendError(f"cannot dump to /dev/{name}", why, hint=DISK_HINT)
    found = _spec(root, name, superblock)
    chain = (f"dump target {found} is {fstype} on /dev/{name}",)
    way = find_way(root, name, key_file=access.key_file, chain=chain)
    wants = (*way.wants, Want(f"fs-{fstype}", "file system of the dump target", chain=chain))
    target = filesystem_target(found, fstype, directory, wants)
    if not way.steps:
        return target
    return replace(
        target,
        variables={**target.variables, "TARGET_STACK": "\n".join(way.steps)},
        programs=tuple(way.programs.values()),
        files=tuple(way.files.values()),
        parts=("stack",),
        memory_bytes=way.memory_bytes,
        notes=tuple(way.notes),
    )


def filesystem_target(spec: str, fstype: str, path: str, wants: tuple[Want, ...]) -> Target:
    """A target of kind ``fs`` on a disk: ``spec`` is what the crash kernel looks for."""
    variables = {
        "TARGET_DEVICE": spec,
        "TARGET_FSTYPE": fstype,
        "TARGET_OPTIONS": _OPTIONS.get(fstype, ""),
        "TARGET_PATH": path.rstrip("/"),
        "TARGET_STACK": "",
    }
    return Target("fs", spec, variables, wants)


def _name_of_mount(root: Path, mount: Mount) -> str:
    """The block device of a mount; "" where there is none."""
    device = follow(root, root / "sys/dev/block" / mount.device)
    if device.exists():
        return device.name
    # btrfs mounts have numbers of their own (fs/btrfs/super.c: get_anon_bdev)
    if mount.fstype == "btrfs" and mount.source.startswith("/dev/"):
        name = resolve(root, mount.source).name
        if follow(root, root / "sys/class/block" / name).exists():
            return name
    return ""


def _device_of_mount(root: Path, mount: Mount) -> str:
    name = _name_of_mount(root, mount)
    if not name:
        raise CrashlendError(
            f"cannot dump to {mount.point}",
            f"it is {mount.fstype} from {mount.source}, not a file system on a disk",
            hint=DISK_HINT,
        )
    return name


def _device_of(root: Path, target: str) -> str:
    kind, _, value = target.partition("=")
    if kind in ("UUID", "LABEL", "PARTUUID") and value:
        link = f"/dev/disk/by-{kind.lower()}/{_udev_escape(value)}"
    elif target.startswith("/dev/"):
        link = target
    else:
        raise CrashlendError(f"cannot use the dump target {target}", "unknown form", hint=DISK_HINT)
    device = resolve(root, link)
    name = device.name
    if not follow(root, root / "sys/class/block" / name).exists():
        name = _name_of_node(root, device)
    if not name:
        raise CrashlendError(
            f"cannot find the dump target {target}", "no such disk", hint=DISK_HINT
        )
    return name


def _name_of_node(root: Path, path: Path) -> str:
    """The kernel's name of a device node; "" for what is none. Without udev /dev/mapper has some."""
    try:
        status = path.stat()
    except OSError:
        return ""
    if not stat.S_ISBLK(status.st_mode):
        return ""
    number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    device = follow(root, root / "sys/dev/block" / number)
    return device.name if device.exists() else ""


def _udev_escape(text: str) -> str:
    """Escape a label as udev does in /dev/disk/by-label (systemd: encode_devnode_name)."""
    plain = r"[A-Za-z0-9#+\-.:=@_]"
    return "".join(
        c if re.fullmatch(plain, c) or ord(c) > 127 else f"\\x{ord(c):02x}" for c in text
    )


def _spec(root: Path, name: str, superblock: FileSystem) -> str:
    for kind, known in (("uuid", superblock.uuid), ("label", superblock.label)):
        if known:
            return f"{kind.upper()}={known}"
        # the device itself may be unreadable or, in a copy of a host, not there
        for link in sorted((root / "dev/disk" / f"by-{kind}").glob("*")):
            if follow(root, link).name == name and "\\" not in link.name:
                return f"{kind.upper()}={link.name}"
    return f"/dev/{name}"
