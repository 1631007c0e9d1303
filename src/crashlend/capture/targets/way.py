# SPDX-License-Identifier: LGPL-2.1-or-later
"""The way to a device: up through sysfs, and the module of every driver that is bound there.

The crash kernel may find its devices in another order, but whatever driver is bound here will be
wanted there.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from crashlend.capture.hosttree import follow, read_text
from crashlend.capture.modules import Want
from crashlend.capture.targets.target import DISK_HINT
from crashlend.errors import CrashlendError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# The virtio-mem device (include/uapi/linux/virtio_ids.h)
_VIRTIO_MEM_ALIAS = "virtio:d00000018"
# iSCSI disks hang below a session (scsi_transport_iscsi.c: iscsi_add_session), by whatever card; those
# of FCoE below a network interface (fcoe_sysfs.c: fcoe_ctlr_device_add)
_OVER_NETWORK = re.compile(r"/(session[0-9]+|net)/")
# Bound to every SCSI disk, also where software alone is behind it.
_DISK_DRIVER = "sd"
_LOCAL_HINT = (
    "set target to a file system on a local disk, or to a server: nfs://…, ssh://…, https://…"
)


def memory_wants(root: Path) -> tuple[Want, ...]:
    """Modules without which /proc/vmcore lacks memory: virtio_mem, where the host has some."""
    wants: list[Want] = []
    for device in sorted((root / "sys/bus/virtio/devices").glob("*")):
        if read_text(follow(root, device) / "modalias").startswith(_VIRTIO_MEM_ALIAS):
            why = "memory that is in the dump"
            wants += walk_up(root, follow(root, device), why)
    return unique(wants)


def device_wants(root: Path, name: str, chain: tuple[str, ...] = ()) -> tuple[Want, ...]:
    """Modules on the way to the block device ``name`` (as in /sys/class/block), buses first.

    The device is a disk or a partition of one; what is made of other devices is stack.py's.
    Raises CrashlendError where there is no hardware behind it.
    """
    device = follow(root, root / "sys/class/block" / name)
    if (device / "partition").exists():
        device = device.parent
        chain = (*chain, f"/dev/{name} is a partition of /dev/{device.name}")
    if any((device / "slaves").glob("*")) or (device / "dm").exists():
        raise CrashlendError(
            f"cannot dump to /dev/{name}", "it is made of other devices", hint=DISK_HINT
        )
    # with nvme_core.multipath=Y some disks hang below a virtual "subsystem" with their controllers
    if device.parent.name.startswith("nvme-subsys"):
        paths = [p for p in sorted(device.parent.glob("nvme*")) if p.is_symlink()]
        starts = [follow(root, path) for path in paths]
    else:
        starts = [device]
    if not starts or any("/devices/virtual/" in f"{path}/" for path in starts):
        raise CrashlendError(
            f"cannot dump to /dev/{name}", "it is a virtual block device", hint=DISK_HINT
        )
    if any(_OVER_NETWORK.search(f"{path}/") for path in starts):
        why = "it is a disk over the network (iSCSI or FCoE), and a crash kernel does not log in there"
        raise CrashlendError(f"cannot dump to /dev/{name}", why, hint=_LOCAL_HINT)
    for start in starts:
        if all(driver.name == _DISK_DRIVER for _, driver in _bound(root, start)):
            why = "no driver of hardware is bound on the way to it"
            raise CrashlendError(f"cannot dump to /dev/{name}", why, hint=_LOCAL_HINT)
    why = f"dump target /dev/{name}"
    wants = [want for start in starts for want in walk_up(root, start, why, chain)]
    return unique(wants)


def walk_up(root: Path, device: Path, why: str, chain: tuple[str, ...] = ()) -> list[Want]:
    """The modules of every driver from ``device`` (in /sys/devices) up, buses first."""
    wants: list[Want] = []
    top = follow(root, root / "sys/devices")
    for place, driver in _bound(root, device):
        module = follow(root, driver / "module")
        reason = f"driver {driver.name} of {why}"
        here = (*chain, f"device {place.relative_to(top)}")
        if module.is_dir():
            wants.append(Want(module.name, reason, chain=here))
        elif read_text(place / "modalias"):
            # built in here, but the crash kernel may be another one
            alias = read_text(place / "modalias")
            wants.append(Want(alias, reason, optional=True, chain=here))
    return wants[::-1]  # buses first


def _bound(root: Path, device: Path) -> Iterator[tuple[Path, Path]]:
    """Each device with a driver, and that, from ``device`` (in /sys/devices) up."""
    top = follow(root, root / "sys/devices")
    while device != top and top in device.parents:
        driver = follow(root, device / "driver")
        if driver.is_dir():
            yield device, driver
        device = device.parent


def unique(wants: list[Want]) -> tuple[Want, ...]:
    """Each want once, with its first reason."""
    first: dict[str, Want] = {}
    for want in wants:
        first.setdefault(want.name, want)
    return tuple(first.values())
