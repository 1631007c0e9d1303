# SPDX-License-Identifier: LGPL-2.1-or-later
"""File systems for stand-ins: made here without root, and read back where a file is not enough.

ext4 is made and read with the tools of e2fsprogs. Others are made by Debian's own programs, fetched like
all packages of the lab and run where they lie, and read back by a guest that mounts them: as production
would find the dump after the crash.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from crashlend.errors import CrashlendError
from crashlend.lab.guest import build_boot_initramfs, build_root, pack_ext4, userland_suite
from crashlend.lab.lab_disk import read_saved
from crashlend.lab.packages import (
    Say,
    Suite,
    cache_directory,
    find_tool,
    locked,
    run_tool,
    silent,
    unpack,
)
from crashlend.lab.qemu import Disk, Machine, run_machine
from crashlend.lab.spec import Saved
from crashlend.sizes import GIB, MIB

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crashlend.lab.kernels import Kernel

# The program, the package that has it, and its words for UUID and label.
MAKERS: dict[str, tuple[str, str, tuple[str, ...], tuple[str, ...]]] = {
    "xfs": ("mkfs.xfs", "xfsprogs", ("-m", "uuid={}"), ("-L", "{}")),
    "btrfs": ("mkfs.btrfs", "btrfs-progs", ("-U", "{}"), ("-L", "{}")),
}
FSTYPES = ("ext4", *MAKERS)
LAB_LABEL = "crashlend-look"
LOOK_BYTES, LOOK_SECONDS = 1 * GIB, 600.0
_LOOK = """#!/bin/sh
# Made by crashlend: finds the dumps on the stand-in, as production would after the crash.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
for module in @DRIVER@ sd_mod @FSTYPE@; do
    modprobe "$module"
done
sleep 2
for device in /dev/vd[b-z] /dev/sd? /dev/nvme?n?; do
    [ -b "$device" ] || continue
    mount -t @FSTYPE@ -o ro "$device" /mnt || continue
    mkdir /lab/found
    cp -r "/mnt@PATH@/." /lab/found/
    umount /mnt
    break
done
umount /lab || mount -o remount,ro /lab
sync
poweroff -f
"""


def make_filesystem(
    fstype: str, image: Path, kernel: Kernel, *, uuid: str = "", label: str = "", say: Say = silent
) -> None:
    """Make a file system in the file ``image``, as old as ``kernel``'s userland knows it.

    CrashlendError where a tool or a package is missing, or the tool refuses.
    """
    what = "cannot make the stand-in for the dump target"
    if fstype == "ext4":
        words = [find_tool("mke2fs", "install the package e2fsprogs"), "-q", "-F", "-t", "ext4"]
        words += ["-b", "4096", "-m", "0", "-E", "lazy_itable_init=1,root_owner=0:0"]
        words += ["-U", uuid] if uuid else []
        words += ["-L", label] if label else []
        run_tool([*words, str(image)], what)
        return
    program, package, by_uuid, by_label = MAKERS[fstype]
    words = [*_program(program, package, kernel, say), "-q", "-f"]
    words += [word.format(uuid) for word in by_uuid] if uuid else []
    words += [word.format(label) for word in by_label] if label else []
    run_tool([*words, str(image)], what)


def _program(name: str, package: str, kernel: Kernel, say: Say) -> Sequence[str]:
    """The words that run a program of a Debian package, unpacked and run with its own libraries."""
    suite = Suite(userland_suite(kernel), say)
    place = cache_directory() / "tools" / f"{suite.name}-{package}"
    place.parent.mkdir(parents=True, exist_ok=True)
    with locked(place.parent / "lock", say):
        if not place.exists():
            say(f"fetching {package}")
            with tempfile.TemporaryDirectory(prefix=".new-", dir=place.parent) as scratch:
                root = Path(scratch, "root")
                (root / "usr/lib").mkdir(parents=True)
                for merged in ("bin", "sbin", "lib", "lib64"):
                    (root / "usr" / merged).mkdir(exist_ok=True)
                    (root / merged).symlink_to(f"usr/{merged}")
                for deb in suite.fetch(suite.resolve([package])):
                    unpack(deb, root, without=("./usr/share",))
                root.rename(place)
    libraries = f"{place}/usr/lib/x86_64-linux-gnu:{place}/usr/lib"
    found = next(
        (p for p in (place / "usr/sbin" / name, place / "usr/bin" / name) if p.exists()), None
    )
    if found is None:
        raise CrashlendError(f"cannot run {name}", f"the package {package} has none")
    loader = str(place / "usr/lib64/ld-linux-x86-64.so.2")
    return [loader, "--library-path", libraries, str(found)]


def read_back(
    fstype: str,
    driver: str,
    path: str,
    disk_words: Sequence[str],
    kernel: Kernel,
    directory: Path,
    say: Say = silent,
) -> Saved:
    """What a capture left below ``path``, found by a guest that mounts the disk of ``disk_words``.

    Files go below ``directory``/saved. LostVmError when QEMU dies.
    """
    for old in ("saved", "look"):
        shutil.rmtree(directory / old, ignore_errors=True)
    place = directory / "look"
    (place / "tree").mkdir(parents=True)
    script = _LOOK
    for mark, value in (
        ("@DRIVER@", driver),
        ("@FSTYPE@", fstype),
        ("@PATH@", path.rstrip("/")),
    ):
        script = script.replace(mark, value)
    (place / "tree/init").write_text(script)
    (place / "tree/init").chmod(0o755)
    disk = place / "look.ext4"
    pack_ext4(place / "tree", disk, LAB_LABEL, free_bytes=768 * MIB)
    machine = Machine(
        kernel=kernel.vmlinuz,
        initramfs=build_boot_initramfs(kernel, say, lab_label=LAB_LABEL),
        words="console=ttyS0 loglevel=4 panic=1 no_timer_check",
        memory_bytes=LOOK_BYTES,
        disks=(Disk(build_root(kernel, say), kept=False), Disk(disk)),
        extra=tuple(disk_words),
    )
    say("production comes up again and looks for the dump")
    run_machine(machine, place, timeout_seconds=LOOK_SECONDS)
    return read_saved(disk, directory, "/found")
