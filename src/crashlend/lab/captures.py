# SPDX-License-Identifier: LGPL-2.1-or-later
"""The guest's capture initramfs, built here instead of in the guest: xz under TCG takes a minute.

It is the same builder on the same files (the guest's tree, unpacked), so the result is the same;
trials that build in the guest show that. Cached by the content of all that goes in.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

from crashlend.capture.initramfs import CaptureSpec, build_initramfs
from crashlend.capture.modules import Want
from crashlend.capture.targets.filesystem import filesystem_target
from crashlend.lab.capture_faults import HOOK, CaptureFault, fault_targets
from crashlend.lab.guest import DISK_MODULES, LAB_LABEL, build_root, fill_root, userland
from crashlend.lab.packages import Say, cache_directory, locked, silent, write_atomically

if TYPE_CHECKING:
    from crashlend.lab.kernels import Kernel

# the hook after the dump looks at all of it, under emulation
HOOK_SECONDS = 300
TARGET = filesystem_target(
    f"LABEL={LAB_LABEL}",
    "ext4",
    "/crash",
    (
        Want("virtio_pci", "the lab's disks"),
        Want("virtio_blk", "the lab's disks"),
        Want("fs-ext4", "file system of the dump target"),
    ),
)


# What takes busybox's place in a capture, as on hosts that have none.
OWN_TOOLS = ("coreutils", "dash", "grep", "kmod", "mount", "sed", "util-linux")


def build_capture(
    kernel: Kernel,
    hooks: Path,
    say: Say = silent,
    *,
    disk: str = "virtio",
    fault: CaptureFault | None = None,
    own_tools: bool = False,
) -> Path:
    """The capture initramfs for ``kernel`` with the trial's hooks; built once, then cached.

    ``disk``: the bus of the lab's own disk, a key of ``guest.DISK_MODULES``. ``fault``: what is to go
    wrong in it. ``own_tools``: from a tree without busybox.
    """
    fault = fault or CaptureFault(shows=())
    packages = OWN_TOOLS if own_tools else ()
    more = tuple(Want(name, "the lab's disk") for name in DISK_MODULES[disk])
    target = replace(TARGET, wants=(*TARGET.wants, *more))
    key = hashlib.sha256(build_root(kernel, say).name.encode())
    key.update(f"{disk} {HOOK_SECONDS} {fault} {packages}".encode())
    for package in ("crashlend.capture", "crashlend.formats"):
        with as_file(files(package)) as directory:
            for path in sorted(directory.rglob("*")):
                if path.is_file() and path.suffix != ".pyc":
                    key.update(path.read_bytes())
    for hook in sorted(hooks.rglob("*")):
        if hook.is_file():
            key.update(hook.read_bytes())
    place = cache_directory() / "captures" / f"{kernel.release}-{key.hexdigest()[:16]}.img"
    place.parent.mkdir(parents=True, exist_ok=True)
    with locked(place.parent / "lock", say):
        if not place.exists():
            say(f"building the capture initramfs for {kernel.release}")
            with tempfile.TemporaryDirectory(prefix="crashlend-") as directory:
                root = Path(directory)
                fill_root(root, kernel, userland(kernel, say, packages))
                if own_tools:
                    for busybox in root.glob("usr/bin/busybox*"):
                        busybox.unlink()
                for name, text in fault.sysfs.items():
                    (root / name).parent.mkdir(parents=True, exist_ok=True)
                    (root / name).write_text(text)
                settings = {"hook_timeout": HOOK_SECONDS, **fault.settings}
                spec = CaptureSpec(
                    kernel.release, fault_targets(fault, target), hooks=hooks, **settings
                )
                write_atomically(place, build_initramfs(root, spec).data)
    return place


def build_capture_for(kernel: Kernel, say: Say = silent) -> Path:
    """The capture initramfs with the lab's own hooks, so that trials side by side find it there."""
    with tempfile.TemporaryDirectory(prefix="crashlend-") as directory:
        return build_capture(kernel, lay_out_hooks(Path(directory)), say)


def lay_out_hooks(
    tree: Path,
    *,
    victim: bool = False,
    speed: bool = False,
    copy: bool = False,
    fault: CaptureFault | None = None,
) -> Path:
    """Put the lab's hooks into ``tree``/hooks as the product wants them; return that directory.

    ``victim``: with the one that looks for late DMA in the crash kernel's own memory; ``speed``: with
    the one that writes the dump again and again; ``copy``: with the one that copies it to the lab's
    own disk; ``fault``: with its own, after the one that tells that the crash kernel is up.
    """
    with as_file(files("crashlend.lab").joinpath("guestfiles")) as guestfiles:
        for kind in ("pre", "post"):
            hooks = tree / "hooks" / f"{kind}.d"
            hooks.mkdir(parents=True)
            shutil.copy(guestfiles / f"{kind}-hook", hooks / "50-lab")
            (hooks / "50-lab").chmod(0o755)
        if victim:
            shutil.copy(guestfiles / "victim-hook", tree / "hooks/pre.d/60-victim")
            (tree / "hooks/pre.d/60-victim").chmod(0o755)
        if copy:
            shutil.copy(guestfiles / "copy-hook", tree / "hooks/post.d/40-copy")
            (tree / "hooks/post.d/40-copy").chmod(0o755)
        if speed:
            shutil.copy(guestfiles / "speed-hook", tree / "hooks/post.d/60-speed")
            (tree / "hooks/post.d/60-speed").chmod(0o755)
    if fault and fault.hook:
        (tree / f"hooks/pre.d/{HOOK}").write_text(f"#!/bin/sh\n{fault.hook}")
        (tree / f"hooks/pre.d/{HOOK}").chmod(0o755)
    return tree / "hooks"
