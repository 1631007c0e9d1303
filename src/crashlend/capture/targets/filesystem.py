# SPDX-License-Identifier: LGPL-2.1-or-later
"""Local file systems as dump targets.

The crash kernel may find its disks in another order, so the file system is named by its UUID
or label where it has one.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from crashlend.capture.hosttree import follow, read_text
from crashlend.capture.libraries import resolve
from crashlend.capture.modules import Want
from crashlend.capture.targets.mounts import holder, inside, read_mounts
from crashlend.capture.targets.superblocks import read_superblock
from crashlend.capture.targets.target import DISK_HINT, Target
from crashlend.capture.targets.way import device_wants
from crashlend.errors import CrashlendError

if TYPE_CHECKING:
    from pathlib import Path

    from crashlend.capture.targets.mounts import Mount
    from crashlend.capture.targets.superblocks import FileSystem

SUPPORTED = ("ext4", "xfs")


def find_filesystem(root: Path, spec: str, path: str) -> Target:
    """The file system ``spec`` (``UUID=…``, ``LABEL=…``, a device) as a target.

    ``spec`` may be "": then it is the file system that holds ``path``, which else is the
    directory inside. Raises CrashlendError when it does not exist or could not be reached.
    """
    if not path.startswith("/"):
        raise CrashlendError("cannot use the dump target", f"path {path} is not absolute")
    mounts = read_mounts(root)
    if spec:
        name = _device_of(root, spec)
        number = read_text(follow(root, root / "sys/class/block" / name) / "dev")
        mount = next((m for m in mounts if m.device == number), None)
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
    wants = (*device_wants(root, name), Want(f"fs-{fstype}", "file system of the dump target"))
    return filesystem_target(_spec(root, name, superblock), fstype, directory, wants)


def filesystem_target(spec: str, fstype: str, path: str, wants: tuple[Want, ...]) -> Target:
    """A target of kind ``fs``: ``spec`` is what the crash kernel looks for."""
    variables = {
        "TARGET_DEVICE": spec,
        "TARGET_FSTYPE": fstype,
        "TARGET_OPTIONS": "",
        "TARGET_PATH": path.rstrip("/"),
    }
    return Target("fs", spec, variables, wants)


def _device_of_mount(root: Path, mount: Mount) -> str:
    device = follow(root, root / "sys/dev/block" / mount.device)
    if not device.exists():
        raise CrashlendError(
            f"cannot dump to {mount.point}",
            f"it is {mount.fstype} from {mount.source}, not a file system on a disk",
            hint=DISK_HINT,
        )
    return device.name


def _device_of(root: Path, target: str) -> str:
    kind, _, value = target.partition("=")
    if kind in ("UUID", "LABEL") and value:
        link = f"/dev/disk/by-{kind.lower()}/{_udev_escape(value)}"
    elif target.startswith("/dev/"):
        link = target
    else:
        raise CrashlendError(f"cannot use the dump target {target}", "unknown form", hint=DISK_HINT)
    name = resolve(root, link).name
    if not follow(root, root / "sys/class/block" / name).exists():
        raise CrashlendError(
            f"cannot find the dump target {target}", "no such disk", hint=DISK_HINT
        )
    return name


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
