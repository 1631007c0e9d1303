# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is on the disks of a trial: file systems and stacks, which the guest makes by itself.

Nothing here needs root or loop devices on this machine. There is no udev in the guest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from crashlend.errors import UsageError
from crashlend.lab.qemu import Disk
from crashlend.lab.spec import Check

if TYPE_CHECKING:
    from pathlib import Path

    from crashlend.lab.spec import Saved, Spec

# What brings such stacks up in the guest, beyond guest.USERLAND.
PACKAGES = ("lvm2", "mdadm", "cryptsetup-bin", "xfsprogs", "btrfs-progs", "fdisk")
DISK_BYTES = 1 << 30
_HEAD = """set -ex
export PATH=/usr/sbin:/usr/bin:/sbin:/bin DM_DISABLE_UDEV=1 MDADM_NO_UDEV=1
mkdir -p /run/lvm /run/lock/lvm /run/cryptsetup /run/mdadm /mnt
# gzip, which is quicker under emulation: the builder takes it where the kernel has no xz
sed -i /CONFIG_RD_XZ=/d /boot/config-*
"""
_PARTITION = "printf 'label: gpt\\n,\\n' | sfdisk -q --no-reread {0}; sleep 1\n"
KEY_KIB = 256 << 10
_KEY = """mkdir -p /etc/keys
dd if=/dev/urandom of=/etc/keys/crash bs=64 count=1
chmod 600 /etc/keys/crash
modprobe -a dm_crypt algif_skcipher xts
cryptsetup luksFormat -q --type luks2 --pbkdf argon2id --pbkdf-memory {KEY_KIB} \
  --pbkdf-force-iterations 4 --pbkdf-parallel 1 {0} /etc/keys/crash
cryptsetup open --key-file /etc/keys/crash {0} crashes
echo "crashes UUID=$(cryptsetup luksUUID {0}) /etc/keys/crash luks" >/etc/crypttab
"""


@dataclass(frozen=True)
class Layout:
    """``target`` is what crashlend is told, ``prepare`` makes it; ``bus`` is that of the ``disks``.

    ``opening_bytes``: what opening the target takes, which must be more than what is reserved (0: no
    more than any target).
    """

    target: str
    prepare: str
    disks: int = 1
    bus: str = "virtio"
    opening_bytes: int = 0


LAYOUTS = {
    "xfs-nvme": Layout(
        "/dev/nvme0n1p1",
        f"modprobe -a nvme xfs\nsleep 2\n{_PARTITION.format('/dev/nvme0n1')}"
        "mkfs.xfs -q /dev/nvme0n1p1\n",
        bus="nvme",
    ),
    "btrfs-ahci": Layout(
        "/dev/sda",
        "modprobe -a ahci sd_mod btrfs\nsleep 2\nmkfs.btrfs -q /dev/sda\n"
        "mount -t btrfs /dev/sda /mnt\nbtrfs subvolume create /mnt/lab\n",
        bus="ahci",
    ),
    "lvm": Layout(
        "/dev/mapper/vg--one-crash--dumps",
        f"modprobe -a dm_mod\n{_PARTITION.format('/dev/vdc')}pvcreate -y /dev/vdc1\n"
        "vgcreate vg-one /dev/vdc1\nlvcreate -y -W n -Z n -n crash-dumps -L 700M vg-one\n"
        "mke2fs -q -t ext4 /dev/mapper/vg--one-crash--dumps\n",
    ),
    # the end of the members, where a member looks like the array
    "raid1": Layout(
        "/dev/md0",
        "modprobe -a raid1\nmdadm --create /dev/md0 --run --level=1 --raid-devices=2 --metadata=1.0 "
        "--assume-clean /dev/vdc /dev/vdd\nmke2fs -q -t ext4 /dev/md0\n",
        disks=2,
    ),
    "luks": Layout(
        "/dev/mapper/crashes",
        _KEY.format("/dev/vdc", KEY_KIB=KEY_KIB) + "mkfs.xfs -q /dev/mapper/crashes\n",
        opening_bytes=KEY_KIB << 10,
    ),
    "combined": Layout(
        "/dev/mapper/crashes",
        "modprobe -a raid1 dm_mod\nmdadm --create /dev/md0 --run --level=1 --raid-devices=2 "
        "--metadata=1.2 --assume-clean /dev/vdc /dev/vdd\npvcreate -y /dev/md0\n"
        "vgcreate vg /dev/md0\nlvcreate -y -W n -Z n -n secret -L 700M vg\n"
        + _KEY.format("/dev/mapper/vg-secret", KEY_KIB=KEY_KIB)
        + "mke2fs -q -t ext4 /dev/mapper/crashes\n",
        disks=2,
        opening_bytes=KEY_KIB << 10,
    ),
}


def find_layout(name: str) -> Layout:
    """A layout by name; UsageError when there is none."""
    if name not in LAYOUTS:
        raise UsageError(f"no layout {name!r}", "unknown", hint=", ".join(LAYOUTS))
    return LAYOUTS[name]


def prepare(spec: Spec) -> str:
    """The guest's command that makes the layout, before the spec's own."""
    return f"{_HEAD}{find_layout(spec.disk_layout).prepare}{spec.prepare}"


def make_disks(spec: Spec, directory: Path) -> tuple[Disk, ...]:
    """Empty disks for the layout; none where the spec names none."""
    if not spec.disk_layout:
        return ()
    layout = find_layout(spec.disk_layout)
    disks = []
    for number in range(layout.disks):
        image = directory / f"target{number}.raw"
        with image.open("wb") as stream:
            stream.truncate(DISK_BYTES)
        disks.append(Disk(image, bus=layout.bus, name=f"target{number}"))
    return tuple(disks)


def load_words(spec: Spec) -> list[str]:
    """Crashlend's words: the layout's target, and behind it the lab's own disk, to tell by.

    argon2 takes more than a minute under emulation.
    """
    if not spec.disk_layout:
        return []
    target = find_layout(spec.disk_layout).target
    return ["--target", f"{target} /dev/vdb", "--target-timeout", "300", "--total-timeout", "1200"]


def check_target(spec: Spec, saved: Saved) -> list[Check]:
    """The dump was saved on the first target, not on the lab's own disk, which is the second."""
    if not spec.disk_layout:
        return []
    ladder: list[dict[str, Any]] = saved.capture.get("ladder", [])
    dumped = [rung for rung in ladder if rung.get("step") == "dump" and rung.get("ok")]
    reasons = [rung["reason"] for rung in ladder if rung.get("reason")]
    first = next((rung["target"] for rung in ladder if rung["target"]), "")
    good = bool(dumped) and dumped[-1]["target"] == first and saved.capture.get("ok") is True
    told = f"{dumped[-1]['target']} ({spec.disk_layout})" if dumped else "; ".join(reasons)
    return [Check("dump saved on the target that was asked for", good, told or "no ladder")]
