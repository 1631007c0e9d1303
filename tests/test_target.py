# SPDX-License-Identifier: LGPL-2.1-or-later
"""Finding the dump target in a /sys, /proc and /dev that are built by code."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from crashlend.capture.targets.find import find_targets
from crashlend.capture.targets.target import Target
from crashlend.capture.targets.way import memory_wants
from crashlend.errors import CrashlendError
from disk_host import UUID, Host, ext4_superblock, plain_host


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A virtio disk with one ext4 partition, mounted on /."""
    return plain_host(tmp_path)


def only_target(root: Path, text: str, path: str) -> Target:
    (target,) = find_targets(root, text, path)
    return target


def variable(target: Target, name: str) -> str:
    return target.variables[f"TARGET_{name}"]


def wants(host: Host, target: str = "", path: str = "/var/crash") -> list[str]:
    return [want.name for want in only_target(host.root, target, path).wants]


def test_the_file_system_that_holds_the_path(host: Host) -> None:
    target = only_target(host.root, "", "/var/crash")
    assert (target.kind, target.spec) == ("fs", f"UUID={UUID}")
    assert target.variables == {
        "TARGET_DEVICE": f"UUID={UUID}",
        "TARGET_FSTYPE": "ext4",
        "TARGET_OPTIONS": "",
        "TARGET_PATH": "/var/crash",
        "TARGET_STACK": "",
    }
    assert [want.name for want in target.wants] == ["virtio_pci", "virtio_blk", "fs-ext4"]
    assert target.wants[0].why == "driver virtio-pci of dump target /dev/vda1"


def test_the_path_is_inside_the_file_system(host: Host) -> None:
    """Symlinks are followed; a bind mount's own root comes first; the last mount counts."""
    host.link("var/crash", "srv/dumps/here")
    host.mounts(
        "22 1 254:1 / / rw - ext4 /dev/root rw",
        "24 22 0:30 / /srv/dumps rw - tmpfs tmpfs rw",
        "25 22 254:1 /data\\040store /srv/dumps rw - ext4 /dev/root rw",
    )
    assert variable(only_target(host.root, "", "/var/crash"), "PATH") == "/data store/here"


@pytest.mark.parametrize("target", ["/dev/vda1", f"UUID={UUID}", "LABEL='my disk'", "/dev/by/x"])
def test_targets_by_name(host: Host, target: str) -> None:
    host.link(f"dev/disk/by-uuid/{UUID}", "dev/vda1")
    host.link("dev/disk/by-label/my\\x20disk", "dev/vda1")
    host.link("dev/by/x", "dev/vda1")
    host.mounts("22 1 0:30 / / rw - tmpfs tmpfs rw")
    found = only_target(host.root, target, "/crash")
    assert (found.spec, variable(found, "PATH")) == (f"UUID={UUID}", "/crash")


def test_without_superblock_udev_links_and_mounts_speak(host: Host) -> None:
    """As in a snapshot, which has no device contents."""
    host.write("dev/vda1", b"")
    assert only_target(host.root, "", "/x").spec == "/dev/vda1"
    host.link("dev/disk/by-label/crash", "dev/vda1")
    assert only_target(host.root, "", "/x").spec == "LABEL=crash"
    host.link(f"dev/disk/by-uuid/{UUID}", "dev/vda1")
    assert only_target(host.root, "", "/x").spec == f"UUID={UUID}"


def test_a_driver_that_is_built_in_is_wanted_by_its_alias(host: Host) -> None:
    device = "sys/devices/pci0000:00/0000:00:05.0"
    host.driver(device, "nvme", modalias="pci:v00001B36d00000010")
    host.block(f"{device}/nvme/nvme0/nvme0n1", "259:0", ext4_superblock())
    target = only_target(host.root, "/dev/nvme0n1", "/")
    assert target.wants[0].name == "pci:v00001B36d00000010"
    assert target.wants[0].optional
    assert variable(target, "PATH") == ""  # the directories' common part


def test_nvme_multipath_leads_to_its_controllers(host: Host) -> None:
    device = "sys/devices/pci0000:00/0000:00:05.0"
    host.driver(device, "nvme", "nvme")
    (host.root / device / "nvme/nvme0").mkdir(parents=True)
    subsystem = "sys/devices/virtual/nvme-subsystem/nvme-subsys0"
    host.block(f"{subsystem}/nvme0n1", "259:0", ext4_superblock())
    host.link(f"{subsystem}/nvme0", f"{device}/nvme/nvme0")
    assert wants(host, "/dev/nvme0n1") == ["nvme", "fs-ext4"]


def test_scsi_disks_take_the_disk_driver_too(host: Host) -> None:
    pci = "sys/devices/pci0000:00/0000:00:1f.2"
    disk = f"{pci}/ata1/host0/target0:0:0/0:0:0:0"
    host.driver(pci, "ahci", "ahci")
    host.driver(disk, "sd", "sd_mod")
    host.block(f"{disk}/block/sda", "8:0", ext4_superblock())
    assert wants(host, "/dev/sda") == ["ahci", "sd_mod", "fs-ext4"]


@pytest.mark.parametrize(
    ("where", "hardware", "why"),
    [
        ("platform/host3/session1/target3:0:0", "", "iSCSI"),
        ("pci0000:00/0000:00:07.0/host3/session1/target3:0:0", "bnx2i", "iSCSI"),
        ("pci0000:00/0000:00:07.0/net/eth0/ctlr_0/host3/rport-3:0-0/target3:0:0", "ixgbe", "FCoE"),
        ("rbd/0", "", "no driver of hardware"),
    ],
)
def test_disks_behind_a_login_are_refused(host: Host, where: str, hardware: str, why: str) -> None:
    """In a crash kernel nobody logs in to iSCSI, FCoE or Ceph: such a disk would never appear."""
    if hardware:
        host.driver(f"sys/devices/{'/'.join(where.split('/')[:2])}", hardware, hardware)
    disk = f"sys/devices/{where}/3:0:0:0"
    host.driver(disk, "sd", "sd_mod")
    host.block(f"{disk}/block/sdb", "8:16", ext4_superblock())
    with pytest.raises(CrashlendError, match=why) as caught:
        only_target(host.root, "/dev/sdb", "/")
    assert "ssh://" in caught.value.hint


def test_what_cannot_hold_dumps_is_refused(host: Host) -> None:
    host.block("sys/devices/virtual/block/loop0", "7:0", ext4_superblock())
    with pytest.raises(CrashlendError, match="virtual block device"):
        only_target(host.root, "/dev/loop0", "/")
    with pytest.raises(CrashlendError, match="tmpfs"):
        only_target(host.root, "", "/tmp/x")
    with pytest.raises(CrashlendError, match="no such disk"):
        only_target(host.root, "UUID=abc", "/")
    with pytest.raises(CrashlendError, match="unknown form"):
        only_target(host.root, "ftp://x", "/")
    host.mounts("22 1 254:1 / / rw - vfat /dev/vda1 rw")
    with pytest.raises(CrashlendError, match="file system vfat"):
        only_target(host.root, "", "/")
    with pytest.raises(CrashlendError, match="not absolute"):
        only_target(host.root, "", "x")


def test_several_targets_keep_their_order(host: Host) -> None:
    """Words by blanks; one with a blank in it is quoted as in a shell."""
    host.link(f"dev/disk/by-uuid/{UUID}", "dev/vda1")
    host.link("dev/disk/by-label/my\\x20disk", "dev/vda1")
    found = find_targets(host.root, f"'LABEL=my disk' /dev/vda1 UUID={UUID}", "/crash")
    assert [variable(target, "PATH") for target in found] == ["/crash"] * 3
    with pytest.raises(CrashlendError, match="no closing quotation"):
        find_targets(host.root, "'LABEL=my disk", "/crash")


def test_virtio_mem_is_wanted_where_it_is_there(host: Host) -> None:
    assert memory_wants(host.root) == ()
    device = "sys/devices/pci0000:00/0000:00:06.0"
    host.driver(device, "virtio-pci")
    host.driver(f"{device}/virtio2", "virtio_mem", "virtio_mem", "virtio:d00000018v00001AF4")
    host.link("sys/bus/virtio/devices/virtio2", f"{device}/virtio2")
    assert [want.name for want in memory_wants(host.root)] == ["virtio_pci", "virtio_mem"]


@pytest.mark.parametrize("fstype", ["ext4", "xfs"])
def test_superblocks_as_mkfs_writes_them(host: Host, fstype: str) -> None:
    mkfs = shutil.which(f"mkfs.{fstype}")
    if mkfs is None:
        pytest.skip(f"mkfs.{fstype} is not installed")
    image = host.root / "dev/vda1"
    with image.open("wb") as stream:
        stream.truncate(320 << 20)
    by_uuid = {"ext4": ["-U", UUID], "xfs": ["-m", f"uuid={UUID}"]}[fstype]
    subprocess.run([mkfs, "-q", *by_uuid, "-L", "crash", str(image)], check=True)
    host.mounts()
    host.write("proc/self/mountinfo", "22 1 0:1 / / rw - tmpfs tmpfs rw\n")
    target = only_target(host.root, "/dev/vda1", "/")
    assert (variable(target, "FSTYPE"), target.spec) == (fstype, f"UUID={UUID}")
