# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where dumps go: a local ext4 or xfs file system, and what it takes to reach it.

The crash kernel may find its disks in another order, so the file system is named by its UUID
or label where it has one. Which drivers are on the way is read from sysfs: from the disk up to
the root of the device tree, whatever driver is bound here will be wanted there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Optional

from crashlend.capture.libraries import resolve
from crashlend.capture.modules import Want
from crashlend.errors import CrashlendError

if TYPE_CHECKING:
    from pathlib import Path

SUPPORTED = ("ext4", "xfs")
_HINT = (
    "set target to a file system of its own: UUID=…, LABEL=… or /dev/… "
    f"({' or '.join(SUPPORTED)} on a disk or partition)"
)
# The virtio-mem device (include/uapi/linux/virtio_ids.h)
_VIRTIO_MEM_ALIAS = "virtio:d00000018"
_PREFIX_BYTES = 4096  # of a device, enough for both superblocks

# Superblocks: where the magic is and what it says, where UUID and label are.
# ext4: Documentation/filesystems/ext4/super.rst (at 1024); xfs: fs/xfs/libxfs/xfs_format.h.
_SUPERBLOCKS = {
    "ext4": (1024 + 0x38, b"\x53\xef", 1024 + 0x68, 1024 + 0x78, 16),
    "xfs": (0, b"XFSB", 32, 108, 12),
}


class Mount(NamedTuple):
    """A line of /proc/self/mountinfo: what is mounted where. ``root`` is inside the device."""

    device: str  # major:minor
    root: str
    point: str
    fstype: str
    source: str


class FileSystem(NamedTuple):
    """What a superblock says."""

    fstype: str
    uuid: str
    label: str


@dataclass(frozen=True)
class Target:
    """Where the crash kernel puts its dumps.

    ``spec`` is what it looks for (``UUID=…``, ``LABEL=…`` or a device), ``path`` the directory
    inside that file system, ``device`` the disk's name on this host, ``wants`` the kernel
    modules on the way, each with its reason.
    """

    spec: str
    fstype: str
    path: str
    device: str
    wants: tuple[Want, ...]
    options: str = ""


def find_target(root: Path, target: str, path: str) -> Target:
    """Find the dump target below ``root`` (``/``, or a copy of a host's /proc, /sys and /dev).

    ``target`` is ``UUID=…``, ``LABEL=…``, a device, or "" for the file system that holds
    ``path``, which else is the directory inside the target. Raises CrashlendError when the
    target does not exist or the crash kernel could not reach it.
    """
    if not path.startswith("/"):
        raise CrashlendError("cannot use the dump target", f"path {path} is not absolute")
    mounts = _mounts(root)
    if target:
        name = _device_of(root, target)
        number = _read(_follow(root, root / "sys/class/block" / name) / "dev")
        mount = next((m for m in mounts if m.device == number), None)
        inside = path
    else:
        real = "/" + str(resolve(root, path).relative_to(root))
        mount = _holder(mounts, real)
        name = _device_of_mount(root, mount)
        inside = _inside(mount, real)
    superblock = _superblock(root / "dev" / name)
    fstype = mount.fstype if mount else superblock.fstype
    if fstype not in SUPPORTED:
        raise CrashlendError(
            f"cannot dump to /dev/{name}", f"file system {fstype or 'unknown'}", hint=_HINT
        )
    wants = (*_device_wants(root, name), Want(f"fs-{fstype}", "file system of the dump target"))
    spec = _spec(root, name, superblock)
    return Target(spec, fstype, inside, f"/dev/{name}", wants)


def memory_wants(root: Path) -> tuple[Want, ...]:
    """Modules without which /proc/vmcore lacks memory: virtio_mem, where the host has some."""
    wants: list[Want] = []
    for device in sorted((root / "sys/bus/virtio/devices").glob("*")):
        if _read(_follow(root, device) / "modalias").startswith(_VIRTIO_MEM_ALIAS):
            why = "memory that is in the dump"
            wants += _walk_up(root, _follow(root, device), why)
    return _unique(wants)


def _mounts(root: Path) -> list[Mount]:
    for name in ("proc/self/mountinfo", "proc/1/mountinfo"):
        text = _read(root / name)
        if text:
            return [m for m in map(_parse_mount, text.splitlines()) if m is not None]
    raise CrashlendError("cannot find the dump target", f"cannot read {root}/proc/self/mountinfo")


def _parse_mount(line: str) -> Optional[Mount]:
    # proc(5): "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw"
    left, _, right = line.partition(" - ")
    before, behind = left.split(), right.split()
    if len(before) < 6 or len(behind) < 2:
        return None
    return Mount(before[2], _plain(before[3]), _plain(before[4]), behind[0], _plain(behind[1]))


def _plain(text: str) -> str:
    """Undo the kernel's octal escapes for blanks and backslashes."""
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), text)


def _holder(mounts: list[Mount], path: str) -> Mount:
    best: Optional[Mount] = None
    for mount in mounts:
        below = mount.point == "/" or path == mount.point or path.startswith(mount.point + "/")
        # of two mounts on one directory the later one is seen
        if below and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    if best is None:
        raise CrashlendError("cannot find the dump target", f"nothing is mounted for {path}")
    return best


def _inside(mount: Mount, path: str) -> str:
    rest = path if mount.point == "/" else path[len(mount.point) :]
    return (mount.root.rstrip("/") + rest).rstrip("/") or "/"


def _device_of_mount(root: Path, mount: Mount) -> str:
    device = _follow(root, root / "sys/dev/block" / mount.device)
    if not device.exists():
        raise CrashlendError(
            f"cannot dump to {mount.point}",
            f"it is {mount.fstype} from {mount.source}, not a file system on a disk",
            hint=_HINT,
        )
    return device.name


def _device_of(root: Path, target: str) -> str:
    kind, _, value = target.partition("=")
    if kind in ("UUID", "LABEL") and value:
        link = f"/dev/disk/by-{kind.lower()}/{_udev_escape(value)}"
    elif target.startswith("/dev/"):
        link = target
    else:
        raise CrashlendError(f"cannot use the dump target {target}", "unknown form", hint=_HINT)
    name = resolve(root, link).name
    if not _follow(root, root / "sys/class/block" / name).exists():
        raise CrashlendError(f"cannot find the dump target {target}", "no such disk", hint=_HINT)
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
            if _follow(root, link).name == name and "\\" not in link.name:
                return f"{kind.upper()}={link.name}"
    return f"/dev/{name}"


def _superblock(device: Path) -> FileSystem:
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


def _device_wants(root: Path, name: str) -> tuple[Want, ...]:
    device = _follow(root, root / "sys/class/block" / name)
    if (device / "partition").exists():
        device = device.parent
    why = f"dump target /dev/{name}"
    if any((device / "slaves").glob("*")) or (device / "dm").exists():
        raise CrashlendError(
            f"cannot dump to /dev/{name}",
            "it is made of other devices (LVM, RAID, encryption), which is not supported yet",
            hint=_HINT,
        )
    # with nvme_core.multipath=Y some disks hang below a virtual "subsystem" with their controllers
    if device.parent.name.startswith("nvme-subsys"):
        paths = [p for p in sorted(device.parent.glob("nvme*")) if p.is_symlink()]
        starts = [_follow(root, path) for path in paths]
    else:
        starts = [device]
    if not starts or any("/devices/virtual/" in f"{path}/" for path in starts):
        raise CrashlendError(
            f"cannot dump to /dev/{name}", "it is a virtual block device", hint=_HINT
        )
    wants = [want for start in starts for want in _walk_up(root, start, why)]
    return _unique(wants)


def _walk_up(root: Path, device: Path, why: str) -> list[Want]:
    wants: list[Want] = []
    top = _follow(root, root / "sys/devices")
    while device != top and top in device.parents:
        driver = _follow(root, device / "driver")
        module = _follow(root, driver / "module")
        if module.is_dir():
            wants.append(Want(module.name, f"driver {driver.name} of {why}"))
        elif driver.is_dir() and _read(device / "modalias"):
            # built in here, but the crash kernel may be another one
            alias = _read(device / "modalias")
            wants.append(Want(alias, f"driver {driver.name} of {why}", optional=True))
        device = device.parent
    return wants[::-1]  # buses first


def _unique(wants: list[Want]) -> tuple[Want, ...]:
    first: dict[str, Want] = {}
    for want in wants:
        first.setdefault(want.name, want)
    return tuple(first.values())


def _follow(root: Path, path: Path) -> Path:
    """Resolve symlinks of a path below ``root``, inside it."""
    return resolve(root, str(path.relative_to(root)))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").strip()
    except OSError:
        return ""
