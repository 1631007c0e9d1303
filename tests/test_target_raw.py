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
    host.link("dev/disk/by-partuuid/abcd-01", "dev/vdc")
    return host


@pytest.mark.parametrize("spec", ["raw:/dev/vdc", "raw:PARTUUID=abcd-01", "raw:PARTUUID=ABCD-01"])
def test_a_blank_device_is_a_target(disk: Host, spec: str) -> None:
    """By device or by partition UUID, with the way to it and the size that it must have."""
    (target,) = find_targets(disk.root, spec, "/var/crash")
    assert (target.kind, target.spec) == ("raw", spec)
    assert target.variables == {"TARGET_DEVICE": spec[4:], "TARGET_SECTORS": "65536"}
    assert [want.name for want in target.wants] == ["virtio_pci", "virtio_blk"]


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
