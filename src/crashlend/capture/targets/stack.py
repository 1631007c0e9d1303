# SPDX-License-Identifier: LGPL-2.1-or-later
"""Devices that are made of other devices: RAID1, LUKS and LVM in any nesting, as sysfs shows them.

The result is a list of steps from the disks up, which init/stack.sh takes with the host's own
tools. A table for device-mapper taken from here would be quicker, and wrong after the next change.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crashlend.capture.hosttree import follow, read_text
from crashlend.capture.modules import Want
from crashlend.capture.targets.keys import find_key, luks_note, luks_programs, read_luks
from crashlend.capture.targets.superblocks import dashed, read_array_uuid
from crashlend.capture.targets.target import File, Program
from crashlend.capture.targets.way import device_wants, unique
from crashlend.errors import CrashlendError

if TYPE_CHECKING:
    from pathlib import Path

_DEPTH_MAX = 16
# A member that is missing must not cost the dump: these levels start without it, resync or not.
_RAID_LEVELS = ("raid0", "raid1", "raid10")
_LVM = Program(("sbin/lvm", "usr/sbin/lvm"), "bin/lvm", "lvm2", "activates the target's volume")
_MDADM = Program(
    ("sbin/mdadm", "usr/sbin/mdadm"), "bin/mdadm", "mdadm", "assembles the target's RAID"
)
# lvm reads no more of the host than its disks: no udev, no daemons, no list of devices
_LVM_CONF = b"""devices {
	obtain_device_list_from_udev = 0
	external_device_info_source = "none"
	multipath_component_detection = 0
}
activation {
	udev_sync = 0
	udev_rules = 0
	monitoring = 0
}
backup {
	backup = 0
	archive = 0
}
"""
_LVM_FILE = File("etc/lvm/lvm.conf", _LVM_CONF, 0o644, "lvm without udev")
_HINT = "set target to a file system on a disk, RAID1, LUKS or a plain LVM volume"
_VOLUME_ID = re.compile(r"LVM-[A-Za-z0-9]{64}")


@dataclass
class Way:
    """What it takes to have a block device in the crash kernel.

    ``steps``: lines for init/stack.sh, from the disks up; none for disks and partitions.
    ``memory_bytes``: what opening it wants at once (LUKS), ``notes``: what people should know.
    """

    steps: dict[str, None] = field(default_factory=dict)
    wants: list[Want] = field(default_factory=list)
    programs: dict[str, Program] = field(default_factory=dict)
    files: dict[str, File] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    memory_bytes: int = 0

    def need(self, *things: object) -> None:
        """Programs and files, each once."""
        for thing in things:
            if isinstance(thing, Program):
                self.programs.setdefault(thing.path, thing)
            elif isinstance(thing, File):
                self.files.setdefault(thing.path, thing)


def find_way(root: Path, name: str, *, key_file: str = "", chain: tuple[str, ...] = ()) -> Way:
    """All that leads to the block device ``name`` (as in /sys/class/block).

    ``key_file`` opens LUKS devices for which /etc/crypttab names none. Raises CrashlendError for
    what a crash kernel could not put together, or not without a human.
    """
    finder = _Finder(root, key_file)
    finder.visit(name, chain, 0)
    finder.way.wants = list(unique(finder.way.wants))
    return finder.way


class _Finder:
    """One walk down from a device to its disks."""

    def __init__(self, root: Path, key_file: str) -> None:
        self.root, self.key_file, self.way = root, key_file, Way()

    def visit(self, name: str, chain: tuple[str, ...], depth: int) -> bool:
        """Add what ``name`` needs; whether it is made of other devices."""
        if depth > _DEPTH_MAX:
            raise self.refuse(name, "its devices go in a circle")
        device = follow(self.root, self.root / "sys/class/block" / name)
        if (device / "partition").exists() and (device.parent / "md").is_dir():
            return self.visit(
                device.parent.name, (*chain, f"/dev/{name} is a partition"), depth + 1
            )
        if (device / "dm").is_dir():
            self.mapped(name, device, chain, depth)
        elif (device / "md").is_dir():
            self.raid(name, device, chain, depth)
        else:
            self.way.wants += device_wants(self.root, name, chain)
            return False
        return True

    def below(self, device: Path, chain: tuple[str, ...], depth: int) -> bool:
        """Visit what a device is made of; whether any of that is made of others in turn."""
        members = sorted(path.name for path in (device / "slaves").glob("*"))
        if not members:
            raise self.refuse(device.name, "sysfs does not say what it is made of")
        stacked = False
        for member in members:  # every one, not until the first
            stacked |= self.visit(member, chain, depth + 1)
        return stacked

    def mapped(self, name: str, device: Path, chain: tuple[str, ...], depth: int) -> None:
        uuid, label = read_text(device / "dm/uuid"), read_text(device / "dm/name")
        if uuid.startswith("LVM-"):
            self.volume(name, device, uuid, label, chain, depth)
        elif re.match(r"CRYPT-LUKS[12]-", uuid):
            self.luks(name, device, uuid, label, chain, depth)
        elif uuid.startswith("CRYPT-"):
            raise self.refuse(name, f"{label} is encrypted without a LUKS header")
        elif "mpath-" in uuid:
            raise self.refuse(name, f"{label} is a multipath device")
        else:
            raise self.refuse(name, f"{label} is a device-mapper device of unknown kind")

    def volume(
        self, name: str, device: Path, uuid: str, label: str, chain: tuple[str, ...], depth: int
    ) -> None:
        # device-mapper names: "-" between volume group and volume, "--" within either
        parts = [p.replace("--", "-") for p in re.split(r"(?<!-)-(?!-)", label)]
        if not _VOLUME_ID.fullmatch(uuid) or len(parts) != 2:
            raise self.refuse(name, f"{label} is an inner part of an LVM volume")
        for member in (device / "slaves").glob("*"):
            inner = follow(self.root, self.root / "sys/class/block" / member.name)
            if read_text(inner / "dm/uuid").startswith(uuid[:36]):
                raise self.refuse(
                    name,
                    f"{label} is made of other volumes (thin, cache, snapshot, LVM's own RAID)",
                )
        why = f"/dev/{name} is the LVM volume {parts[0]}/{parts[1]}"
        stacked = self.below(device, (*chain, why), depth)
        self.way.need(_LVM, _LVM_FILE)
        self.want("dm_mod", "device-mapper, for LVM", (*chain, why))
        self.step("lvm", parts[0], parts[1], label, "stacked" if stacked else "plain")

    def luks(
        self, name: str, device: Path, uuid: str, label: str, chain: tuple[str, ...], depth: int
    ) -> None:
        why = f"/dev/{name} is the LUKS device {label}"
        stacked = self.below(device, (*chain, why), depth)
        members = sorted(path.name for path in (device / "slaves").glob("*"))
        own = dashed(uuid.split("-")[2])
        key = find_key(self.root, label, own, [f"/dev/{m}" for m in members], self.key_file)
        self.way.need(*luks_programs(self.root), key)
        header = read_luks(self.root / "dev" / members[0])
        for wanted, reason, optional in _crypto_wants(header.ciphers if header else ()):
            self.want(wanted, reason, (*chain, why), optional=optional)
        if header and header.memory_bytes:
            self.way.memory_bytes = max(self.way.memory_bytes, header.memory_bytes)
            self.way.notes.append(luks_note(label, header))
        # a blank in a name would take the words of the step apart
        if re.search(r"\s", label):
            raise self.refuse(name, f"there is a blank in the name {label!r}")
        self.step("luks", own, label, "/" + key.path, "stacked" if stacked else "plain")

    def raid(self, name: str, device: Path, chain: tuple[str, ...], depth: int) -> None:
        level = read_text(device / "md/level")
        if read_text(device / "md/metadata_version").startswith("external:"):
            raise self.refuse(name, "its RAID is the firmware's (external metadata)")
        if level not in _RAID_LEVELS:
            raise self.refuse(name, f"{level or 'its RAID level'} may not start after a crash")
        why = f"/dev/{name} is a {level} array"
        stacked = self.below(device, (*chain, why), depth)
        self.way.need(_MDADM)
        self.want(f"md-{level}", f"RAID level of /dev/{name}", (*chain, why))
        uuid = self.array_uuid(name, device)
        self.step("raid", uuid, "stacked" if stacked else "plain")

    def array_uuid(self, name: str, device: Path) -> str:
        for member in sorted((device / "slaves").glob("*")):
            uuid = read_array_uuid(self.root / "dev" / member.name)
            if uuid:
                return uuid
        for link in sorted((self.root / "dev/disk/by-id").glob("md-uuid-*")):
            if follow(self.root, link).name == name:
                return link.name[len("md-uuid-") :]
        raise self.refuse(name, "the UUID of its array is in none of its members")

    def want(self, name: str, why: str, chain: tuple[str, ...], *, optional: bool = False) -> None:
        self.way.wants.append(Want(name, why, optional=optional, chain=chain))

    def step(self, *words: str) -> None:
        self.way.steps[" ".join(words)] = None

    def refuse(self, name: str, why: str) -> CrashlendError:
        return CrashlendError(f"cannot dump to /dev/{name}", why, hint=_HINT)


def _crypto_wants(ciphers: tuple[str, ...]) -> list[tuple[str, str, bool]]:
    """Modules for dm-crypt and the ciphers ("aes-xts-plain64"); cryptsetup asks by AF_ALG, too."""
    found = [("dm_crypt", "device-mapper's encryption", False)]
    names = ["algif_skcipher"]
    for cipher in ciphers or ("aes-xts-plain64",):
        algorithm, _, rest = cipher.partition("-")
        mode, _, iv = rest.partition("-")
        names += [f"crypto-{algorithm}", f"crypto-{mode}"] if mode else [f"crypto-{algorithm}"]
        if iv.startswith("essiv"):
            names += ["crypto-essiv", f"crypto-{iv.partition(':')[2] or 'sha256'}"]
    return found + [(name, "cipher of the LUKS device", True) for name in dict.fromkeys(names)]
