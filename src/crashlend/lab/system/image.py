# SPDX-License-Identifier: LGPL-2.1-or-later
"""A Debian system as people install it, in an ext4 image: systemd, the stock kernel, kdump-tools.

Its packages come from the machine's own mirror with signatures checked (lab/packages.py) and are
installed by dpkg in a chroot, scripts and all. kdump-tools is started once, in QEMU: its initramfs has
the modules of the machine that it is made on, and is made by its own kernel hook at its first start.
What lies beside the image, ``vmlinuz-RELEASE`` and ``initrd.img-RELEASE``, boots it.

All is cached under a key made of what is in it, and never changed afterwards.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

from crashlend.errors import CrashlendError
from crashlend.lab.guest import userland_suite
from crashlend.lab.packages import Say, Suite, cache_directory, find_tool, locked, silent
from crashlend.lab.qemu import Disk, Machine, run_machine
from crashlend.lab.system.edit import read_file, replay, write_files

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crashlend.lab.kernels import Kernel

LABEL = "crashlend-sys"
SIZE = "3G"
# The packages that make a Debian: essential ones, and what boots it.
SYSTEM = (
    *("base-files", "base-passwd", "bash", "bsdutils", "coreutils", "dash", "debianutils"),
    *("diffutils", "dpkg", "findutils", "grep", "gzip", "hostname", "init-system-helpers"),
    *("libc-bin", "login", "mawk", "mount", "ncurses-base", "ncurses-bin", "passwd", "perl-base"),
    *("sed", "sysvinit-utils", "tar", "usr-is-merged", "util-linux", "systemd", "systemd-sysv"),
    *("udev", "kmod", "e2fsprogs", "procps", "initramfs-tools", "zstd", "busybox", "python3"),
    "makedumpfile",
)
# Installed when that stands, as by its user: its postinst starts it, and no kernel hook runs.
KDUMP = ("kexec-tools", "kdump-tools")
# What only costs time under emulation, and has nothing to do with a crash.
MASKED = (
    *("systemd-update-utmp.service", "systemd-random-seed.service", "systemd-pcrphase.service"),
    *("systemd-pcrphase-sysinit.service", "e2scrub_reap.service", "e2scrub_all.timer"),
    *("getty@tty1.service", "serial-getty@ttyS0.service", "systemd-journal-flush.service"),
)
JOB = "/etc/crashlend-lab-job"
PORT = "/dev/ttyS1"
FILES = {
    "etc/fstab": f"LABEL={LABEL} / ext4 errors=remount-ro 0 1\n",
    "etc/hostname": "debian\n",
    "etc/hosts": "127.0.0.1 localhost debian\n",
    "etc/systemd/system/crashlend-lab.service": f"""\
[Unit]
Description=what the lab has this system do
After=kdump-tools.service multi-user.target
ConditionPathExists=!/proc/vmcore

[Service]
Type=oneshot
StandardOutput=journal+console
StandardError=journal+console
TimeoutStartSec=infinity
ExecStart=/bin/sh {JOB}
""",
    JOB.lstrip("/"): "sync\npoweroff -f\n",
}
WANTS = "etc/systemd/system/multi-user.target.wants/crashlend-lab.service"
# It makes its initramfs at its first start, which takes minutes under emulation.
FIRST_START_SECONDS = 1800.0
FIRST_START_BYTES = 1 << 30
BOOT_WORDS = (
    f"root=LABEL={LABEL} ro console=ttyS0 loglevel=4 panic=1 no_timer_check "
    "systemd.show_status=false"
)
_HINT = "run it as root, or with subordinate user ids of your own (/etc/subuid; package uidmap)"
# Raised when the same packages would give another system.
_LAYOUT = 1


@dataclass(frozen=True)
class System:
    """An installed system: its root file system, and what boots it."""

    root: Path
    kernel: Path
    initramfs: Path


def build_system(kernel: Kernel, say: Say = silent) -> Path:
    """The image of a Debian with systemd, kdump-tools and ``kernel``; label ``crashlend-sys``.

    The first time takes some ten minutes, then less than a second. :func:`system_of` tells what boots
    it.

    Raises:
        CrashlendError: a package or a privilege is missing, or kdump-tools did not make its initramfs.

    """
    early, late = _packages(kernel, say)
    with as_file(files("crashlend.lab.system").joinpath("guest/install.sh")) as script:
        parts = [script.read_text(), *(d.name for d in (*early, *late)), *MASKED]
        directory = cache_directory() / "systems" / f"{kernel.release}-{_key(parts)}"
        with locked(directory.parent / "lock", say):
            image = directory / "root.ext4"
            if image.exists():
                return image
            with tempfile.TemporaryDirectory(prefix=".new-", dir=directory.parent) as name:
                new = Path(name, "system")
                new.mkdir()
                say(f"installing Debian with {kernel.release} and kdump-tools (minutes)")
                _install(script, early, late, new)
                say("kdump-tools starts for the first time and makes its initramfs (minutes)")
                _start_once(new, kernel)
                new.rename(directory)
    return image


def system_of(image: Path, release: str) -> System:
    """What :func:`build_system` made, with what boots it."""
    return System(
        image, image.parent / f"vmlinuz-{release}", image.parent / f"initrd.img-{release}"
    )


def _packages(kernel: Kernel, say: Say) -> tuple[list[Path], list[Path]]:
    """The .deb files of the system and of kdump-tools, with all that they depend on."""
    suite = Suite(userland_suite(kernel), say)
    if kernel.suite != suite.name or not kernel.version:
        raise CrashlendError(
            "cannot install this kernel as a system",
            f"{kernel.name} is no package of a Debian release's own",
            hint="take that of a release: 6.1, 6.12",
        )
    system = suite.resolve([*SYSTEM, f"linux-image-{kernel.release}"])
    known = {package.name for package in system}
    more = [p for p in suite.resolve([*SYSTEM, *KDUMP]) if p.name not in known]
    return suite.fetch(system), suite.fetch(more)


def _key(parts: Sequence[str]) -> str:
    text = "\n".join([str(_LAYOUT), SIZE, *parts, *(f"{k} {v}" for k, v in FILES.items())])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _install(script: Path, early: Sequence[Path], late: Sequence[Path], new: Path) -> None:
    """Run install.sh where it is root and may mount."""
    work = new.parent
    for name, debs in (("early", early), ("late", late)):
        (work / name).mkdir()
        for deb in debs:
            _link(deb, work / name / deb.name)
    _lay_out(work / "extra")
    (work / "root").mkdir(mode=0o755)
    words = [find_tool("unshare", "install the package util-linux")]
    if os.geteuid() != 0:
        words += ["--user", "--map-root-user", "--map-auto"]
    words += ["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]
    words += ["sh", str(script), *(str(work / n) for n in ("root", "early", "late", "extra"))]
    log = work / "log"
    with log.open("wb") as out:
        done = subprocess.run(
            [*words, str(new / "root.ext4"), LABEL, SIZE],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        lines = log.read_text(errors="replace").strip().splitlines()
        last = "; ".join(lines[-2:]) or f"unshare exited with {done.returncode}"
        raise CrashlendError("cannot install Debian into an image", last, hint=_HINT)


def _lay_out(extra: Path) -> None:
    """The lab's own files of the system."""
    for name, text in FILES.items():
        (extra / name).parent.mkdir(parents=True, exist_ok=True)
        (extra / name).write_text(text)
    links = {WANTS: "../crashlend-lab.service"}
    links |= {f"etc/systemd/system/{unit}": "/dev/null" for unit in MASKED}
    for name, target in links.items():
        (extra / name).parent.mkdir(parents=True, exist_ok=True)
        (extra / name).symlink_to(target)


def _start_once(new: Path, kernel: Kernel) -> None:
    """Boot the system until kdump-tools has made its initramfs, and see that it has."""
    system = system_of(new / "root.ext4", kernel.release)
    machine = Machine(
        kernel=system.kernel,
        initramfs=system.initramfs,
        words=f"{BOOT_WORDS} crashkernel=160M",
        memory_bytes=FIRST_START_BYTES,
        disks=(Disk(system.root),),
    )
    run_machine(machine, new.parent, timeout_seconds=FIRST_START_SECONDS)
    # it went without unmounting: what is put into copies must not be undone by the journal
    replay(system.root)
    made = f"/var/lib/kdump/initrd.img-{kernel.release}"
    if not read_file(system.root, made):
        lines = (new.parent / "console.log").read_text(errors="replace").splitlines()[-3:]
        raise CrashlendError(
            "kdump-tools did not make its initramfs", f"no {made}: {' | '.join(lines)}"
        )


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def install_crashlend(image: Path, settings: str) -> None:
    """Put crashlend of this tree into a copy of the system, as its package does, with settings."""
    with as_file(files("crashlend")) as package:
        wanted = {
            f"/usr/lib/python3/dist-packages/crashlend/{path.relative_to(package)}": (
                path.read_bytes(),
                0o644,
            )
            for path in sorted(package.rglob("*"))
            if path.is_file()
            and path.relative_to(package).parts[0] not in ("lab", "snapshots")
            and "__pycache__" not in path.parts
        }
    program = (
        "#!/usr/bin/python3\n"
        "import sys\n\nfrom crashlend.cli.main import run\n\nsys.argv[0] = 'crashlend'\nrun()\n"
    )
    wanted["/usr/sbin/crashlend"] = (program.encode(), 0o755)
    wanted["/etc/crashlend.conf"] = (settings.encode(), 0o644)
    write_files(image, wanted)
