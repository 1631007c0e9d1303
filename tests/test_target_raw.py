# SPDX-License-Identifier: LGPL-2.1-or-later
"""Raw devices as targets, on a host that is built by code: what is taken and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from crashlend.capture.rawdump import COMPLETE, RawDump, build
from crashlend.capture.targets.find import find_targets
from crashlend.errors import CrashlendError
from disk_host import PCI, Host, ext4_superblock

MIB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Host:
    """A virtio disk of 32 MiB with nothing on it."""
    host = Host(tmp_path)
    host.driver(PCI, "virtio-pci", "virtio_pci")
    host.driver(f"{PCI}/virtio1", "virtio_blk", "virtio_blk")
    host.block(f"{PCI}/virtio1/block/vdc", "254:32", bytes(32 * MIB))
    host.write(f"{PCI}/virtio1/block/vdc/size", f"{32 * MIB // 512}\n")
    host.link("dev/disk/by-id/virtio-serial", "dev/vdc")
    return host


def test_a_blank_disk_is_a_target(disk: Host) -> None:
    """By its device, with the way to it and the size that it must have."""
    (target,) = find_targets(disk.root, "raw:/dev/vdc", "/var/crash")
    assert (target.kind, target.spec) == ("raw", "raw:/dev/vdc")
    assert target.variables == {"TARGET_DEVICE": "/dev/vdc", "TARGET_SECTORS": "65536"}
    assert [want.name for want in target.wants] == ["virtio_pci", "virtio_blk"]


@pytest.mark.parametrize(
    "name",
    [
        *("PARTUUID=abcd-01", "PARTUUID=ABCD-01", "/dev/vdc1", "/dev/disk/by-partuuid/abcd-01"),
        "/dev/disk/by-id/virtio-serial-part1",
    ],
)
def test_a_partition_is_found_by_its_uuid(disk: Host, name: str) -> None:
    """Whatever it is called here: a crash kernel has no udev, and may name disks in another order."""
    partition = f"{PCI}/virtio1/block/vdc/vdc1"
    disk.block(partition, "254:33", bytes(16 * MIB))
    disk.write(f"{partition}/partition", "1\n")
    disk.write(f"{partition}/size", f"{16 * MIB // 512}\n")
    disk.link("dev/disk/by-partuuid/abcd-01", "dev/vdc1")
    disk.link("dev/disk/by-id/virtio-serial-part1", "dev/vdc1")
    (target,) = find_targets(disk.root, f"raw:{name}", "/")
    assert target.spec == f"raw:{name}"
    assert target.variables == {"TARGET_DEVICE": "PARTUUID=abcd-01", "TARGET_SECTORS": "32768"}


def test_a_link_to_a_whole_disk_is_refused(disk: Host) -> None:
    """It could never be found in the crash kernel; the hint has both ways out."""
    with pytest.raises(CrashlendError, match="no such links") as caught:
        find_targets(disk.root, "raw:/dev/disk/by-id/virtio-serial", "/")
    assert "raw:PARTUUID=" in caught.value.hint
    assert "raw:/dev/vdc" in caught.value.hint


def test_a_device_with_an_earlier_dump_is_a_target(disk: Host) -> None:
    """Our own table marks it; what lies behind it does not matter."""
    content = build(RawDump(COMPLETE, "x")) + b"y" * (32 * MIB - 4096)
    (disk.root / "dev/vdc").write_bytes(content)
    assert find_targets(disk.root, "raw:/dev/vdc", "/")[0].kind == "raw"


@pytest.mark.parametrize(
    "content", [ext4_superblock().ljust(32 * MIB, b"\0"), bytes(32 * MIB - 512) + b"x" * 512]
)
def test_what_could_be_somebody_s_is_refused(disk: Host, content: bytes) -> None:
    """A signature at either end: a dump would destroy it. The hint says how to give it away."""
    (disk.root / "dev/vdc").write_bytes(content)
    with pytest.raises(CrashlendError, match="would destroy it") as caught:
        find_targets(disk.root, "raw:/dev/vdc", "/")
    assert "wipefs -a /dev/vdc" in caught.value.hint


def test_a_device_in_use_is_refused(disk: Host) -> None:
    """Mounted, or part of another device."""
    disk.mounts("1 0 254:32 / /x rw - ext4 /dev/vdc rw")
    with pytest.raises(CrashlendError, match="in use"):
        find_targets(disk.root, "raw:/dev/vdc", "/")
    disk.mounts()
    disk.write(f"{PCI}/virtio1/block/vdc/holders/dm-0/x")
    with pytest.raises(CrashlendError, match="in use"):
        find_targets(disk.root, "raw:/dev/vdc", "/")


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("raw:/dev/vdz", "no such disk"),
        ("raw:PARTUUID=none", "no such disk"),
        ("raw:UUID=1", "unknown form"),
        ("raw:vdc", "unknown form"),
    ],
)
def test_what_is_no_device_is_refused(disk: Host, spec: str, why: str) -> None:
    """The message says why, and the hint which forms there are."""
    with pytest.raises(CrashlendError, match=why) as caught:
        find_targets(disk.root, spec, "/")
    assert caught.value.hint


def test_a_device_that_is_too_small_is_refused(disk: Host) -> None:
    """Before the crash: at it there would be no room."""
    disk.write(f"{PCI}/virtio1/block/vdc/size", f"{8 * MIB // 512}\n")
    with pytest.raises(CrashlendError, match="8 MiB"):
        find_targets(disk.root, "raw:/dev/vdc", "/")
