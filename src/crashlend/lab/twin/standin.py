# SPDX-License-Identifier: LGPL-2.1-or-later
"""The disk that stands in for a host's dump target, so that its capture finds what it looks for.

Where the capture's first target is a file system on a disk that QEMU has, the stand-in has the same
bus, type, UUID or label, and the initramfs is as on the host; the lab's reporting hooks come behind it. Else the stand-in is a plain ext4 on virtio and what leads to it comes behind the initramfs, too; each
such replacement is a :class:`~crashlend.lab.twin.shape.Change`.
"""

from __future__ import annotations

import re
import shutil
import uuid
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from crashlend.capture.initramfs import shell_variables
from crashlend.capture.modules import Want, read_module, read_module_tree
from crashlend.capture.script import script
from crashlend.formats import newc
from crashlend.lab.lab_disk import read_saved
from crashlend.lab.packages import silent
from crashlend.lab.twin.contents import ETC
from crashlend.lab.twin.filesystems import FSTYPES, make_filesystem, read_back
from crashlend.lab.twin.shape import Change
from crashlend.sizes import GIB

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crashlend.lab.kernels import Kernel
    from crashlend.lab.spec import Saved
    from crashlend.lab.twin.contents import Capture

# The driver in the initramfs, and how QEMU attaches the drive "standin" for it. The first that fits.
BUSES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("virtio_blk", ("-device", "virtio-blk-pci,drive=standin")),
    ("nvme", ("-device", "nvme,drive=standin,serial=standin")),
    (
        "virtio_scsi",
        ("-device", "virtio-scsi-pci,id=own", "-device", "scsi-hd,bus=own.0,drive=standin"),
    ),
    ("ahci", ("-device", "ich9-ahci,id=own", "-device", "ide-hd,bus=own.0,drive=standin")),
    ("ata_piix", ("-device", "ide-hd,bus=ide.1,drive=standin")),
    ("megaraid_sas", ("-device", "megasas,id=own", "-device", "scsi-hd,bus=own.0,drive=standin")),
    ("mptsas", ("-device", "mptsas1068,id=own", "-device", "scsi-hd,bus=own.0,drive=standin")),
    ("vmw_pvscsi", ("-device", "pvscsi,id=own", "-device", "scsi-hd,bus=own.0,drive=standin")),
)
OWN = {
    "TARGET_KIND",
    "TARGET_SPEC",
    "TARGET_DEVICE",
    "TARGET_FSTYPE",
    "TARGET_OPTIONS",
    "TARGET_PATH",
}
IMAGE_BYTES = 4 * GIB
LABEL = "twin"
WANTS = (
    Want("virtio_pci", "the stand-in's disk"),
    Want("virtio_blk", "the stand-in's disk"),
    Want("fs-ext4", "the stand-in's file system"),
)
HOOKS = (("pre.d/00-twin", "pre-hook"), ("post.d/99-twin", "post-hook"))
REPORT = b"""#!/bin/sh
# For the lab: the capture's report, on one line.
[ -r "$CRASHLEND_CAPTURE_JSON" ] || exit 0
printf '{"event": "captured", "capture": %s}\\n' "$(tr -d '\\n' <"$CRASHLEND_CAPTURE_JSON")" >/dev/ttyS1
"""


@dataclass(frozen=True)
class StandIn:
    """A disk for dumps. ``image`` is the one of the twin; ``archive`` comes behind the initramfs.

    ``bus`` is the driver that reads it, ``path`` the directory of dumps in its file system, ``kernel``
    what runs in guests that read it.
    """

    image: Path
    bus: str
    fstype: str
    kernel: Kernel
    uuid: str
    label: str
    path: str
    archive: bytes
    changes: tuple[Change, ...]

    def words(self, image: Path) -> tuple[str, ...]:
        """QEMU's words for this disk in that image."""
        drive = f"file={image},format=raw,if=none,id=standin,cache=unsafe"
        return ("-drive", drive, *dict(BUSES)[self.bus])

    def make(self, image: Path) -> None:
        """An empty one; the file is sparse."""
        with image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        make_filesystem(
            self.fstype, image, self.kernel, uuid=self.uuid, label=self.label, say=silent
        )

    def read(self, image: Path, directory: Path) -> Saved:
        """What a capture left on it; files go below ``directory``/saved.

        Off the image where it is ext4, else by a guest that mounts it.
        """
        if self.fstype != "ext4":
            words = self.words(image)
            return read_back(self.fstype, self.bus, self.path, words, self.kernel, directory)
        shutil.rmtree(directory / "saved", ignore_errors=True)
        return read_saved(image, directory, self.path)

    @property
    def in_words(self) -> str:
        """File system, driver and name, for people."""
        return f"{self.fstype} on {self.bus}, {'UUID' if self.uuid else 'LABEL'}={self.uuid or self.label}"

    @property
    def is_file(self) -> bool:
        """Whether what is on it can be read without a guest."""
        return self.fstype == "ext4"


def make_standin(capture: Capture, kernel: Kernel, directory: Path) -> StandIn:
    """Choose the stand-in for a capture and make it in ``directory``; ``kernel`` is the crash kernel.

    CrashlendError where a tool is missing.
    """
    changes: list[Change] = []
    bus = find_bus(capture, builtin(kernel))
    number, why = find_target(capture)
    members = [_hook(name, file) for name, file in HOOKS]
    members.append(newc.regular(f"{ETC}/hooks/post.d/98-twin", REPORT, 0o755))
    variables = dict(capture.variables)
    if variables.get("FINAL_ACTION", "reboot") not in ("reboot", "poweroff"):
        was = variables["FINAL_ACTION"]
        changes.append(Change("final action", was, "reboot", "nobody would end the twin"))
        variables["FINAL_ACTION"] = "reboot"
    found_uuid, label, path, fstype = "", "", "", "ext4"
    if number is None or not bus:
        why = why or f"QEMU has no disk for any of {', '.join(capture.modules) or 'no modules'}"
        spec = ", ".join(t.get("TARGET_SPEC", "?") for t in capture.targets) or "none"
        changes.append(Change("dump target", spec, "ext4 on virtio, by its label", why))
        bus, label, path = "virtio_blk", LABEL, "/var/crash"
        members += _replacement(capture, kernel)
        variables["TARGETS"] = LABEL
    else:
        target = capture.targets[number]
        kind, _, value = target["TARGET_DEVICE"].partition("=")
        found_uuid, label = (value, "") if kind == "UUID" else ("", value)
        path, fstype = target["TARGET_PATH"] or "/", target["TARGET_FSTYPE"]
        if len(capture.targets) > 1:
            spec = ", ".join(t.get("TARGET_SPEC", "?") for t in capture.targets)
            why = "the first one that the twin can have"
            changes.append(Change("dump targets", spec, target["TARGET_SPEC"], why))
            variables["TARGETS"] = capture.variables["TARGETS"].split()[number]
    if variables != capture.variables:
        members.append(newc.regular(f"{ETC}/capture.conf", shell_variables(variables)))
    standin = StandIn(
        image=directory / "standin.img",
        bus=bus,
        fstype=fstype,
        kernel=kernel,
        uuid=found_uuid,
        label=label,
        path=path,
        archive=newc.build(members),
        changes=tuple(changes),
    )
    standin.make(standin.image)
    return standin


def find_target(capture: Capture) -> tuple[int | None, str]:
    """The first target that a plain disk can stand in for; None and why where there is none."""
    reasons = []
    for number, target in enumerate(capture.targets):
        why = _why_not(target)
        if not why:
            return number, ""
        reasons.append(f"{target.get('TARGET_SPEC', '?')}: {why}")
    return None, "; ".join(reasons) or "it has no target"


def _why_not(words: Mapping[str, str]) -> str:
    if words.get("TARGET_KIND") != "fs":
        return f"the lab has no stand-in of the kind {words.get('TARGET_KIND')}"
    more = sorted(n for n, v in words.items() if n.startswith("TARGET_") and v and n not in OWN)
    if more:
        return f"the lab's stand-in has no {', '.join(more)}"
    if words.get("TARGET_FSTYPE") not in FSTYPES:
        return f"the lab makes no {words.get('TARGET_FSTYPE')}"
    kind, _, value = words.get("TARGET_DEVICE", "").partition("=")
    if kind == "UUID" and _is_uuid(value):
        return ""
    if kind == "LABEL" and re.fullmatch(r"[!-~]{1,16}", value):
        return ""
    return "it is named neither by UUID nor by label"


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False


def find_bus(capture: Capture, inside: frozenset[str]) -> str:
    """The driver of a disk that both the initramfs and QEMU have; empty where there is none.

    What the initramfs loads itself is on the way to the target; what is built into the kernel
    (``inside``) may be.
    """
    for have in (frozenset(capture.modules), inside):
        for driver, _ in BUSES:
            if driver in have:
                return driver
    return ""


def builtin(kernel: Kernel) -> frozenset[str]:
    """The names of the modules that are built into a kernel."""
    try:
        text = (kernel.modules / "modules.builtin").read_text()
    except OSError:
        return frozenset()
    names = (Path(line).name.partition(".ko")[0] for line in text.split())
    return frozenset(name.replace("-", "_") for name in names)


def _replacement(capture: Capture, kernel: Kernel) -> list[newc.Member]:
    """What leads a capture to the plain stand-in: init's part, a target, the modules."""
    conf = {
        "TARGET_KIND": "fs",
        "TARGET_SPEC": f"LABEL={LABEL}",
        "TARGET_DEVICE": f"LABEL={LABEL}",
        "TARGET_FSTYPE": "ext4",
        "TARGET_OPTIONS": "",
        "TARGET_PATH": "/var/crash",
    }
    members = [newc.regular(f"{ETC}/targets/{LABEL}.conf", shell_variables(conf), 0o600)]
    members.append(newc.regular("init", script(["fs"]), 0o755))
    names = [f"/lib/modules/{name}.ko" for name in capture.modules]
    for module in read_module_tree(kernel.modules).closure(WANTS):
        if module.name.replace("-", "_") in capture.modules:
            continue
        members.append(newc.regular(f"lib/modules/twin/{module.name}.ko", read_module(module.path)))
        names.append(f"/lib/modules/twin/{module.name}.ko")
    text = "".join(f"{name}\n" for name in names)
    return [*members, newc.regular(f"{ETC}/modules", text.encode())]


def _hook(name: str, file: str) -> newc.Member:
    data = files("crashlend.lab").joinpath("guestfiles").joinpath(file).read_bytes()
    # a capture of a host without busybox has other tools behind the same name
    data = data.replace(b"#!/bin/busybox sh", b"#!/bin/sh", 1)
    return newc.regular(f"{ETC}/hooks/{name}", data, 0o755)


def appended(initramfs: bytes, archive: bytes) -> bytes:
    """An initramfs with an archive behind it, as the kernel unpacks one after the other."""
    return initramfs + bytes(-len(initramfs) % 4) + archive
