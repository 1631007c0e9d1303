# SPDX-License-Identifier: LGPL-2.1-or-later
"""A FAT16 file system as bytes: what firmware boots from, without root and without other tools.

Layout: Microsoft Extensible Firmware Initiative FAT32 File System Specification 1.03, whose FAT16
part UEFI takes over (UEFI 2.10, 13.3). Short names alone (8.3); FAT does not tell case.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crashlend.errors import CrashlendError
from crashlend.ranges import align_up

if TYPE_CHECKING:
    from collections.abc import Mapping

SECTOR = 512
ROOT_ENTRIES = 512
ENTRY = struct.Struct("<11sB14xHI")  # name, attributes, …, first cluster, size
BOOT = struct.Struct("<3s8sHBHBHHBHHHII BBBI11s8s")
# below this many clusters it would be FAT12, above the other FAT32
LEAST_CLUSTERS, MOST_CLUSTERS = 4085, 65524
END = 0xFFFF
MEDIA = 0xF8
DIRECTORY, ARCHIVE = 0x10, 0x20
_SHORT = re.compile(r"[A-Z0-9_-]{1,8}(\.[A-Z0-9_-]{1,3})?")


@dataclass
class _Directory:
    files: dict[str, bytes] = field(default_factory=dict)
    directories: dict[str, _Directory] = field(default_factory=dict)


def build_fat16(files: Mapping[str, bytes], *, free_bytes: int = 1 << 20) -> bytes:
    """An image with these files ("EFI/BOOT/BOOTX64.EFI" → its bytes), without a partition table.

    CrashlendError for a name that is not short, or for more than 2 GiB.
    """
    root = _tree(files)
    wanted = sum(map(len, files.values())) + free_bytes
    per_cluster = next((n for n in (4, 8, 16, 32, 64) if wanted // (n * SECTOR) < 60000), 0)
    if not per_cluster:
        raise CrashlendError("cannot make the FAT file system", f"{wanted} bytes are too many")
    cluster_bytes = per_cluster * SECTOR
    # each file and directory may waste a cluster
    parts = sum(path.count("/") + 1 for path in files)
    clusters = max(LEAST_CLUSTERS + 16, wanted // cluster_bytes + 2 * parts)
    clusters = min(clusters, MOST_CLUSTERS)
    writer = _Writer(cluster_bytes, clusters)
    entries = writer.add(root, parent=0, own=0)
    root_bytes = b"".join(entries).ljust(ROOT_ENTRIES * ENTRY.size, b"\0")
    table = struct.pack(f"<{clusters + 2}H", *(writer.table.get(n, 0) for n in range(clusters + 2)))
    table_bytes = align_up(len(table), SECTOR)
    image = bytearray(_boot_sector(per_cluster, clusters, table_bytes // SECTOR))
    image += table.ljust(table_bytes, b"\0") * 2 + root_bytes
    data_at = len(image)
    image += bytes(clusters * cluster_bytes)
    for cluster, data in writer.data.items():
        at = data_at + (cluster - 2) * cluster_bytes
        image[at : at + len(data)] = data
    return bytes(image)


def _tree(files: Mapping[str, bytes]) -> _Directory:
    root = _Directory()
    for path, data in files.items():
        *parents, name = path.upper().split("/")
        where = root
        for part in parents:
            where = where.directories.setdefault(part, _Directory())
        where.files[name] = data
    return root


class _Writer:
    """Hands out clusters in order, one chain after the other."""

    def __init__(self, cluster_bytes: int, clusters: int) -> None:
        self.cluster_bytes = cluster_bytes
        self.clusters = clusters
        self.table: dict[int, int] = {0: 0xFF00 | MEDIA, 1: END}
        self.data: dict[int, bytes] = {}
        self.next = 2

    def chain(self, size: int) -> int:
        """The first of as many clusters as ``size`` bytes take; 0 for none."""
        number = -(-size // self.cluster_bytes)
        first = self.next
        if first + number > self.clusters + 2:
            raise CrashlendError("cannot make the FAT file system", "it is full")
        for cluster in range(first, first + number):
            self.table[cluster] = cluster + 1 if cluster + 1 < first + number else END
        self.next += number
        return first if number else 0

    def add(self, directory: _Directory, parent: int, own: int) -> list[bytes]:
        """Write what a directory holds; return its entries. Cluster 0 stands for the root."""
        entries = []
        for name, data in sorted(directory.files.items()):
            first = self.chain(len(data))
            self.data[first] = data
            entries.append(ENTRY.pack(_short(name), ARCHIVE, first, len(data)))
        for name, below in sorted(directory.directories.items()):
            number = len(below.files) + len(below.directories) + 2
            first = self.chain(number * ENTRY.size)
            entries.append(ENTRY.pack(_short(name), DIRECTORY, first, 0))
            own_entries = [
                ENTRY.pack(b".".ljust(11), DIRECTORY, first, 0),
                ENTRY.pack(b"..".ljust(11), DIRECTORY, own, 0),
                *self.add(below, own, first),
            ]
            self.data[first] = b"".join(own_entries)
        return entries


def _short(name: str) -> bytes:
    if not _SHORT.fullmatch(name):
        raise CrashlendError("cannot make the FAT file system", f"{name!r} is no short name")
    stem, _, ending = name.partition(".")
    return stem.encode().ljust(8) + ending.encode().ljust(3)


def _boot_sector(per_cluster: int, clusters: int, table_sectors: int) -> bytes:
    sectors = 1 + 2 * table_sectors + ROOT_ENTRIES * ENTRY.size // SECTOR + clusters * per_cluster
    small = sectors if sectors < 1 << 16 else 0
    packed = BOOT.pack(
        *(b"\xeb\x3c\x90", b"CRASHLND", SECTOR, per_cluster, 1, 2, ROOT_ENTRIES, small, MEDIA),
        *(table_sectors, 32, 64, 0, 0 if small else sectors),
        *(0x80, 0, 0x29, 0x434C4E44, b"NO NAME    ", b"FAT16   "),
    )
    return packed.ljust(SECTOR - 2, b"\0") + b"\x55\xaa"
