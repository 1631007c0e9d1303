# SPDX-License-Identifier: LGPL-2.1-or-later
"""Stacks of devices in a /sys that is built by code: what leads to them, and what is refused."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

import pytest

from crashlend.capture.targets.access import Access
from crashlend.capture.targets.find import find_targets
from crashlend.capture.targets.superblocks import read_array_uuid, read_superblock
from crashlend.cli.hosts import access_of, settings_from
from crashlend.cli.main import make_parser
from crashlend.errors import CrashlendError, FormatError
from crashlend.formats.luks import parse_luks
from disk_host import (
    PCI,
    UUID,
    Host,
    ext4_superblock,
    luks1_header,
    luks2_header,
    md_superblock,
    plain_host,
)
from test_elf import build_elf

if TYPE_CHECKING:
    from pathlib import Path

    from crashlend.capture.targets.target import Target

LUKS = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"
ARRAY = bytes(range(16))
ARRAY_UUID = "00010203:04050607:08090a0b:0c0d0e0f"
GROUP, VOLUME = "G" * 32, "V" * 32
VDA1 = f"{PCI}/virtio1/block/vda/vda1"
VIRTUAL = "sys/devices/virtual/block"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A virtio disk, whose one partition the tests give to a stack."""
    host = plain_host(tmp_path)
    host.write("dev/vda1", b"")
    host.mounts("22 1 0:30 / / rw - tmpfs tmpfs rw")
    return host


def mapped(host: Host, number: int, uuid: str, name: str, *below: str, content: bytes = b"") -> str:
    """A device-mapper device; returns its directory."""
    device = f"{VIRTUAL}/dm-{number}"
    host.block(device, f"253:{number}", content)
    host.write(f"{device}/dm/uuid", uuid + "\n")
    host.write(f"{device}/dm/name", name + "\n")
    for member in below:
        host.link(f"{device}/slaves/{member.rsplit('/', 1)[-1]}", member)
    host.link(f"dev/mapper/{name}", f"dev/dm-{number}")
    return device


def volume(host: Host, number: int, name: str, *below: str, content: bytes = b"") -> str:
    return mapped(host, number, f"LVM-{GROUP}{VOLUME}", name, *below, content=content)


def luks(host: Host, number: int, *below: str, content: bytes = b"", header: bytes = b"") -> str:
    for member in below:
        host.write(f"dev/{member.rsplit('/', 1)[-1]}", header or luks2_header(LUKS, 262144))
    raw = LUKS.replace("-", "")
    return mapped(host, number, f"CRYPT-LUKS2-{raw}-crash", "crash", *below, content=content)


def raid(host: Host, *below: str, level: str = "raid1", content: bytes = b"") -> str:
    device = f"{VIRTUAL}/md0"
    host.block(device, "9:0", content)
    host.write(f"{device}/md/level", level + "\n")
    host.write(f"{device}/md/metadata_version", "1.2\n")
    for member in below:
        host.link(f"{device}/slaves/{member.rsplit('/', 1)[-1]}", member)
        host.write(f"dev/{member.rsplit('/', 1)[-1]}", md_superblock(ARRAY))
    return device


def find(host: Host, device: str, key_file: str = "") -> Target:
    (target,) = find_targets(host.root, device, "/crash", Access(key_file=key_file))
    return target


def steps(target: Target) -> list[str]:
    return target.variables["TARGET_STACK"].splitlines()


def with_key(host: Host, line: str = f"crash UUID={LUKS} /etc/key luks") -> None:
    host.write("etc/crypttab", f"# a comment\nother UUID=1 none\n{line}\n")
    secret(host, "etc/key", b"\1\2\3")


def secret(host: Host, path: str, data: bytes) -> None:
    host.write(path, data)
    (host.root / path).chmod(0o600)


def test_a_volume_on_a_partition(host: Host) -> None:
    """Group and volume are named as lvm wants them; "--" is a dash of a name."""
    volume(host, 0, "vg--one-crash--dumps", VDA1, content=ext4_superblock())
    target = find(host, "/dev/mapper/vg--one-crash--dumps")
    assert steps(target) == ["lvm vg-one crash-dumps vg--one-crash--dumps plain"]
    assert target.spec == f"UUID={UUID}"
    assert target.parts == ("stack",)
    assert [p.path for p in target.programs] == ["bin/lvm"]
    assert [w.name for w in target.wants] == ["virtio_pci", "virtio_blk", "dm_mod", "fs-ext4"]


def test_the_chain_leads_from_the_target_to_the_hardware(host: Host) -> None:
    """Each module knows the whole way, in order."""
    volume(host, 0, "vg-lv", VDA1, content=ext4_superblock())
    want = find(host, "/dev/dm-0").wants[1]
    assert (want.name, want.why) == ("virtio_blk", "driver virtio_blk of dump target /dev/vda1")
    assert want.chain == (
        f"dump target UUID={UUID} is ext4 on /dev/dm-0",
        "/dev/dm-0 is the LVM volume vg/lv",
        "/dev/vda1 is a partition of /dev/vda",
        "device pci0000:00/0000:00:04.0/virtio1",
    )


def test_raid1(host: Host) -> None:
    """The array is named by the UUID in its members, and its level's module is wanted."""
    raid(host, VDA1, content=ext4_superblock())
    target = find(host, "/dev/md0")
    assert steps(target) == [f"raid {ARRAY_UUID} plain"]
    assert "md-raid1" in [w.name for w in target.wants]
    assert [p.path for p in target.programs] == ["bin/mdadm"]


def test_the_array_s_uuid_from_udev_where_members_cannot_be_read(host: Host) -> None:
    """As in a snapshot."""
    raid(host, VDA1, content=ext4_superblock())
    host.write("dev/vda1", b"")
    host.link("dev/disk/by-id/md-uuid-1:2:3:4", "dev/md0")
    assert steps(find(host, "/dev/md0")) == ["raid 1:2:3:4 plain"]
    (host.root / "dev/disk/by-id/md-uuid-1:2:3:4").unlink()
    with pytest.raises(CrashlendError, match="in none of its members"):
        find(host, "/dev/md0")


@pytest.mark.parametrize("at", [0, 4096, (1 << 20) - 8192])
def test_array_superblocks_of_every_version(tmp_path: Path, at: int) -> None:
    """1.1 at the beginning, 1.2 behind 4 KiB, 1.0 at the end."""
    (tmp_path / "member").write_bytes(md_superblock(ARRAY, at))
    assert read_array_uuid(tmp_path / "member") == ARRAY_UUID


def test_luks_with_the_key_file_of_crypttab(host: Host) -> None:
    """The key goes into the initramfs for root alone; the memory that opening takes is told."""
    luks(host, 0, VDA1, content=ext4_superblock())
    with_key(host)
    target = find(host, "/dev/mapper/crash")
    assert steps(target) == [f"luks {LUKS} crash /etc/crashlend/keys/{LUKS} plain"]
    assert [(f.path, f.data, f.mode) for f in target.files] == [
        (f"etc/crashlend/keys/{LUKS}", b"\1\2\3", 0o600)
    ]
    assert target.memory_bytes == 256 << 20
    assert "256 MiB" in target.notes[0]
    assert "argon2id" in target.notes[0]
    assert {"dm_crypt", "crypto-aes", "crypto-xts", "crypto-essiv", "crypto-sha512"} <= {
        w.name for w in target.wants
    }
    assert {w.name for w in target.wants if not w.optional} >= {"dm_crypt", "fs-ext4"}


def test_luks_with_a_key_file_of_the_settings(host: Host) -> None:
    """The setting comes before crypttab."""
    luks(host, 0, VDA1, content=ext4_superblock())
    with_key(host)
    secret(host, "root/own", b"own")
    assert find(host, "/dev/dm-0", "/root/own").files[0].data == b"own"


@pytest.mark.parametrize("name", [field.name for field in fields(Access)])
def test_what_targets_are_reached_with_comes_from_the_flags(tmp_path: Path, name: str) -> None:
    """Every one of these settings, given on the command line, reaches the targets."""
    value = {"network_timeout": "7", "network_address": "static"}.get(name, "/root/own")
    flag = f"--{name.replace('_', '-')}"
    args = make_parser("load").parse_args(["load", flag, value])
    args.root = tmp_path
    assert str(getattr(access_of(settings_from(args)), name)) == value


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("crash UUID=1 none luks", "passphrase"),
        ("unrelated UUID=1 /etc/key luks", "passphrase"),
        (f"crash UUID={LUKS} /etc/missing luks", "No such file"),
        (f"crash UUID={LUKS} /etc/key luks,keyscript=/bin/x", "keyscript"),
        (f"crash UUID={LUKS} - tpm2-device=auto", "passphrase"),
        (f"crash UUID={LUKS} /dev/urandom plain", "plain"),
        (f"crash UUID={LUKS} /etc/key header=/boot/header", "header"),
    ],
)
def test_luks_that_a_human_must_open_is_refused(host: Host, line: str, why: str) -> None:
    """With a hint that says how to make and add a key file."""
    luks(host, 0, VDA1, content=ext4_superblock())
    with_key(host, line)
    with pytest.raises(CrashlendError, match=why) as caught:
        find(host, "/dev/dm-0")
    assert "luksAddKey" in caught.value.hint


def test_a_key_that_others_may_read_is_refused(host: Host) -> None:
    """As all other secrets are: whoever has read it opens the device."""
    luks(host, 0, VDA1, content=ext4_superblock())
    with_key(host)
    (host.root / "etc/key").chmod(0o640)
    with pytest.raises(CrashlendError, match="others may read it") as caught:
        find(host, "/dev/dm-0")
    assert caught.value.hint == "run: chmod 600 /etc/key"


def test_systemds_directory_of_keys(host: Host) -> None:
    """Crypttab without a key means /etc/cryptsetup-keys.d/NAME.key there."""
    luks(host, 0, VDA1, content=ext4_superblock())
    host.write("etc/crypttab", f"crash UUID={LUKS}\n")
    secret(host, "etc/cryptsetup-keys.d/crash.key", b"k")
    assert find(host, "/dev/dm-0").files[0].data == b"k"


def test_luks_on_lvm_on_raid1(host: Host) -> None:
    """Steps come from the disks up, and say where to look: a member of RAID1 looks like the array."""
    array = raid(host, VDA1)
    inner = volume(host, 0, "vg-secret", array)
    luks(host, 1, inner, content=ext4_superblock())
    with_key(host)
    target = find(host, "/dev/mapper/crash")
    assert steps(target) == [
        f"raid {ARRAY_UUID} plain",
        "lvm vg secret vg-secret stacked",
        f"luks {LUKS} crash /etc/crashlend/keys/{LUKS} stacked",
    ]
    assert [p.path for p in target.programs][:3] == ["bin/mdadm", "bin/lvm", "bin/cryptsetup"]


def test_what_two_members_share_is_there_once(host: Host) -> None:
    """A volume over two partitions of one disk."""
    other = f"{PCI}/virtio1/block/vda/vda2"
    host.block(other, "254:2")
    host.write(f"{other}/partition", "2\n")
    volume(host, 0, "vg-lv", VDA1, other, content=ext4_superblock())
    target = find(host, "/dev/dm-0")
    assert len(steps(target)) == 1
    assert [w.name for w in target.wants].count("virtio_blk") == 1


def test_libgcc_comes_with_cryptsetup(host: Host) -> None:
    """The C library opens it when a thread of argon2 is cancelled; nothing names it.

    On a host with i386's as well, whose directory comes first by name, it is cryptsetup's own.
    """
    luks(host, 0, VDA1, content=ext4_superblock())
    with_key(host)
    host.write("usr/sbin/cryptsetup", build_elf())
    host.write("usr/lib/i386-linux-gnu/libgcc_s.so.1", build_elf(machine=3))
    assert [p.path for p in find(host, "/dev/dm-0").programs] == ["bin/cryptsetup"]
    place = "usr/lib/x86_64-linux-gnu/libgcc_s.so.1"
    host.write(place, build_elf())
    assert [p.path for p in find(host, "/dev/dm-0").programs] == ["bin/cryptsetup", place]


@pytest.mark.parametrize(
    ("uuid", "why"),
    [
        ("CRYPT-PLAIN-x", "without a LUKS header"),
        ("mpath-3600", "multipath"),
        ("part1-mpath-3600", "multipath"),
        (f"LVM-{GROUP}{VOLUME}-tpool", "inner part"),
        ("", "unknown kind"),
    ],
)
def test_other_mapped_devices_are_refused(host: Host, uuid: str, why: str) -> None:
    """Each in its own words, with what would do."""
    mapped(host, 0, uuid, "some-thing", VDA1, content=ext4_superblock())
    with pytest.raises(CrashlendError, match=why) as caught:
        find(host, "/dev/dm-0")
    assert "set target" in caught.value.hint


def test_volumes_made_of_volumes_are_refused(host: Host) -> None:
    """Thin pools, caches and snapshots: their inner volumes are of the same group."""
    inner = mapped(host, 0, f"LVM-{GROUP}{'P' * 32}-tpool", "vg-pool-tpool", VDA1)
    volume(host, 1, "vg-thin", inner, content=ext4_superblock())
    with pytest.raises(CrashlendError, match="made of other volumes"):
        find(host, "/dev/dm-1")


def test_raid_that_may_not_start_is_refused(host: Host) -> None:
    """RAID5 is dirty after a crash, and with a disk missing it then does not start."""
    array = raid(host, VDA1, level="raid5", content=ext4_superblock())
    with pytest.raises(CrashlendError, match="raid5 may not start"):
        find(host, "/dev/md0")
    host.write(f"{array}/md/metadata_version", "external:imsm\n")
    with pytest.raises(CrashlendError, match="firmware"):
        find(host, "/dev/md0")


def test_btrfs_from_its_top(host: Host) -> None:
    """A subvolume is a directory there; its mount has a number that no device has."""
    superblock = bytearray(1 << 17)
    superblock[65536 + 0x20 : 65536 + 0x30] = ARRAY
    superblock[65536 + 0x40 : 65536 + 0x48] = b"_BHRfS_M"
    superblock[65536 + 0x88] = 1
    superblock[65536 + 0x12B : 65536 + 0x12E] = b"big"
    host.write("dev/vda1", bytes(superblock))
    host.mounts("22 1 0:44 /@ / rw - btrfs /dev/vda1 rw,subvol=/@")
    (target,) = find_targets(host.root, "", "/var/crash")
    assert target.spec == "UUID=00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert target.variables["TARGET_OPTIONS"] == "subvolid=5"
    assert target.variables["TARGET_PATH"] == "/@/var/crash"
    assert read_superblock(host.root / "dev/vda1").label == "big"
    superblock[65536 + 0x88] = 2
    host.write("dev/vda1", bytes(superblock))
    with pytest.raises(CrashlendError, match="made of 2 devices"):
        find_targets(host.root, "", "/var/crash")


def test_partuuid(host: Host) -> None:
    """A file system by its partition's name, which becomes its own UUID."""
    host.write("dev/vda1", ext4_superblock())
    host.link("dev/disk/by-partuuid/1234-01", "dev/vda1")
    assert find(host, "PARTUUID=1234-01").spec == f"UUID={UUID}"


def test_luks_headers_that_are_damaged() -> None:
    """Any cut or byte is a FormatError, or another header; nothing else is raised."""
    good = luks2_header(LUKS)
    assert parse_luks(good).uuid == LUKS
    assert parse_luks(luks1_header(LUKS)).ciphers == ("aes-xts-plain64",)
    for size in (0, 7, 15, 200, 4096, 5000, len(good) - 1):
        with pytest.raises(FormatError):
            parse_luks(good[:size])
    for damaged in (
        good.replace(b"keyslots", b"keysl0ts"),
        good.replace(b'"kdf": {', b'"kdf": 5,{'),
        good.replace(b'"memory": 65536', b'"memory": "x"'),
        good.replace(b"LUKS", b"LUKX"),
    ):
        with pytest.raises(FormatError):
            parse_luks(damaged)
