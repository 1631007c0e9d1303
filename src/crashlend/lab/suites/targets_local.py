# SPDX-License-Identifier: LGPL-2.1-or-later
"""Trials of local targets: the guest makes a stack, crashlend finds it, the crash kernel rebuilds it.

The dump is copied from there to the lab's own disk by a hook, after the page cache is dropped.
"""

from __future__ import annotations

import json
from typing import Any

from crashlend.lab.spec import Command, Trial
from crashlend.sizes import MIB


def _local(name: str, proves: str, kernel: str, layout: str, **more: Any) -> Trial:
    spec = {
        "memory_bytes": 1536 * MIB,
        "lend_bytes": 512 * MIB,
        "cmdline": "crashkernel=128M",
        "disk_layout": layout,
        "build_in_guest": True,
        "poison": False,
        "scan": False,
        "timeout_seconds": 1200.0,
        **more,
    }
    return Trial(name, proves, kernel, spec, quick=False)


# The disk is pulled out of the running guest, which needs a moment. Nothing is written to the array
# afterwards: then its metadata would know that it is degraded, which is the easier case.
_UNPLUG = (
    Command(("load",)),
    Command(("qmp", "device_del", json.dumps({"id": "disk-target1"})), program="host"),
    Command(
        ("sh", "-c", "sleep 10; cat /proc/mdstat >&2; test ! -e /sys/block/vdd"), program="busybox"
    ),
)

TARGETS_LOCAL = (
    _local("xfs-nvme-7.3", "xfs on a partition of an NVMe disk, newest kernel", "7.3", "xfs-nvme"),
    _local("btrfs-ahci-6.12", "a subvolume of btrfs on an AHCI disk", "6.12", "btrfs-ahci"),
    _local("lvm-5.10", "ext4 on LVM on a partition, by Debian 11's lvm", "5.10", "lvm"),
    _local(
        "raid1-missing-6.1",
        "RAID1 with its metadata at the end, whose second disk is pulled before the crash",
        "6.1",
        "raid1",
        commands=_UNPLUG,
        shows=(r"/dev/md\d+ has been started with 1 drive \(out of 2\)",),
    ),
    _local("luks-7.3", "xfs on LUKS2 with argon2id and a key file", "7.3", "luks"),
    _local(
        "luks-lvm-raid1-6.1",
        "ext4 on LUKS2 on LVM on RAID1; opening it takes more than the reservation",
        "6.1",
        "combined",
    ),
    Trial(
        "own-tools-6.1",
        "a capture of dash, coreutils, util-linux and kmod instead of busybox",
        "6.1",
        {
            "memory_bytes": 1536 * MIB,
            "lend_bytes": 512 * MIB,
            "cmdline": "crashkernel=128M",
            "own_tools": True,
            "poison": False,
            "scan": False,
            "timeout_seconds": 600.0,
        },
        quick=False,
    ),
)
