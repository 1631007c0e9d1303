# SPDX-License-Identifier: LGPL-2.1-or-later
"""The /sys, /proc and /dev of a host, as far as the way to its disks goes, built by code."""

from __future__ import annotations

import json
import struct
import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

UUID = "11111111-2222-3333-4444-555555555555"
PCI = "sys/devices/pci0000:00/0000:00:04.0"


def ext4_superblock(label: str = "") -> bytes:
    data = bytearray(4096)
    data[1024 + 0x38 : 1024 + 0x3A] = b"\x53\xef"
    data[1024 + 0x68 : 1024 + 0x78] = uuid.UUID(UUID).bytes
    data[1024 + 0x78 : 1024 + 0x78 + len(label)] = label.encode()
    return bytes(data)


class Host:
    """A host's files. Devices are directories in /sys/devices, linked from where they belong."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "proc/self").mkdir(parents=True)
        (root / "sys/class/block").mkdir(parents=True)
        (root / "sys/dev/block").mkdir(parents=True)
        (root / "dev").mkdir()

    def write(self, path: str, data: str | bytes = "") -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data if isinstance(data, bytes) else data.encode())

    def link(self, path: str, target: str) -> None:
        link = self.root / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to("/" + target)

    def driver(self, device: str, name: str, module: str = "", modalias: str = "") -> None:
        (self.root / device).mkdir(parents=True, exist_ok=True)
        driver = f"sys/bus/any/drivers/{name}"
        (self.root / driver).mkdir(parents=True, exist_ok=True)
        self.link(f"{device}/driver", driver)
        if module:
            (self.root / "sys/module" / module).mkdir(parents=True, exist_ok=True)
            self.link(f"{driver}/module", f"sys/module/{module}")
        if modalias:
            self.write(f"{device}/modalias", modalias + "\n")

    def block(self, device: str, number: str, content: bytes = b"") -> None:
        name = device.rsplit("/", 1)[-1]
        self.write(f"{device}/dev", number + "\n")
        self.link(f"sys/class/block/{name}", device)
        self.link(f"sys/dev/block/{number}", device)
        self.write(f"dev/{name}", content)

    def mounts(self, *lines: str) -> None:
        self.write("proc/self/mountinfo", "".join(line + "\n" for line in lines))


def plain_host(root: Path) -> Host:
    """A virtio disk with one ext4 partition, mounted on /."""
    host = Host(root)
    host.driver(PCI, "virtio-pci", "virtio_pci", "pci:v00001AF4d00001001")
    host.driver(f"{PCI}/virtio1", "virtio_blk", "virtio_blk", "virtio:d00000002v00001AF4")
    host.block(f"{PCI}/virtio1/block/vda", "254:0")
    host.block(f"{PCI}/virtio1/block/vda/vda1", "254:1", ext4_superblock())
    host.write(f"{PCI}/virtio1/block/vda/vda1/partition", "1\n")
    host.mounts(
        "22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/root rw",
        "23 22 0:21 / /proc rw - proc proc rw",
        "24 22 0:30 / /tmp rw - tmpfs tmpfs rw",
    )
    return host


def luks2_header(luks_uuid: str, memory_kib: int = 65536) -> bytes:
    """The first header of a LUKS2 device (on-disk format 1.1.2) with a key slot of argon2id."""
    metadata = {
        "keyslots": {
            "0": {
                "type": "luks2",
                "key_size": 64,
                "area": {"type": "raw", "encryption": "aes-xts-plain64"},
                "kdf": {"type": "argon2id", "time": 4, "memory": memory_kib, "cpus": 1},
            },
            "1": {
                "type": "luks2",
                "key_size": 64,
                "area": {"type": "raw", "encryption": "serpent-cbc-essiv:sha512"},
                "kdf": {"type": "pbkdf2", "hash": "sha256", "iterations": 1000},
            },
        },
        "tokens": {},
        "segments": {"0": {"type": "crypt", "encryption": "aes-xts-plain64"}},
        "digests": {},
        "config": {"json_size": "12288", "keyslots_size": "16744448"},
    }
    binary = struct.pack(">6sHQ", b"LUKS\xba\xbe", 2, 16384).ljust(168, b"\0")
    binary += luks_uuid.encode().ljust(40, b"\0")
    return binary.ljust(4096, b"\0") + json.dumps(metadata).encode().ljust(12288, b"\0")


def luks1_header(luks_uuid: str) -> bytes:
    """The header of a LUKS1 device (on-disk format 1.2.3)."""
    header = struct.pack(">6sH32s32s32s", b"LUKS\xba\xbe", 1, b"aes", b"xts-plain64", b"sha256")
    return (header.ljust(168, b"\0") + luks_uuid.encode()).ljust(4096, b"\0")


def md_superblock(array: bytes, at: int = 4096, device_bytes: int = 1 << 20) -> bytes:
    """A member of a Linux RAID array (struct mdp_superblock_1) with its superblock ``at`` bytes in."""
    block = struct.pack("<IIII16s", 0xA92B4EFC, 1, 0, 0, array)
    return (bytes(at) + block).ljust(device_bytes, b"\0")
