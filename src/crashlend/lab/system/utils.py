# SPDX-License-Identifier: LGPL-2.1-or-later
"""kdump-utils' scripts (Fedora, RHEL) put into an installed Debian, from a clone of its repository.

Debian has no package of them. kdumpctl and its libraries are put in unchanged, with the configuration
that their own generators make for x86_64, dracut's shell functions, which they source, and keyctl. What they
load is kdump-tools' initramfs, because a dracut of Fedora's making is not here: so all of kdumpctl's
path to kexec runs, and none of mkdumprd.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from crashlend.errors import CrashlendError
from crashlend.lab.packages import Say, Suite, find_tool, silent, unpack
from crashlend.lab.spec import Check
from crashlend.lab.system.image import LABEL

if TYPE_CHECKING:
    from collections.abc import Mapping

PROGRAMS = {
    "kdumpctl": ("/usr/bin/kdumpctl", 0o755),
    "kdump-lib.sh": ("/usr/lib/kdump/kdump-lib.sh", 0o644),
    "kdump-lib-initramfs.sh": ("/usr/lib/kdump/kdump-lib-initramfs.sh", 0o644),
    "kdump-logger.sh": ("/usr/lib/kdump/kdump-logger.sh", 0o644),
    "kdump.service": ("/usr/lib/systemd/system/kdump.service", 0o644),
}
GENERATED = {
    "gen-kdump-sysconfig.sh": "/etc/sysconfig/kdump",
    "gen-kdump-conf.sh": "/etc/kdump.conf",
}
# docs/adoption.md
ADOPTION = 'KEXEC="/usr/sbin/crashlend kexec"\n'
# kdumpctl takes root= away; kdump-tools' initramfs boots that root to save its dump
THEIR_ROOT = (
    f'KDUMP_COMMANDLINE_APPEND="$KDUMP_COMMANDLINE_APPEND root=LABEL={LABEL} '
    'systemd.unit=kdump-tools-dump.service"\n'
)
# What kdumpctl calls and the system has not: (package, path in it).
FROM_DEBIAN = (
    ("dracut-core", "usr/lib/dracut/dracut-functions.sh"),
    ("keyutils", "bin/keyctl"),
)
# Their own unit runs kdumpctl. Each step tells what that printed, with the exit code behind it.
WANTED = {
    # step: whether a crash kernel is loaded behind it, and whether memory is lent
    "kdumpctl-start": (True, True),
    "kdumpctl-status": (True, True),
    "kdumpctl-reload": (True, True),
    "kdumpctl-stop": (False, False),
    "kdumpctl-again": (True, True),
    "kdumpctl-restart": (True, True),
}
# put on the crash kernel's line before the restart: what crashes later must have it
CHANGED = "crashlend.lab=restarted"
STEPS = f"""\
kdump-config unload
cp "/var/lib/kdump/initrd.img-$(uname -r)" "/var/lib/kdump/initramfs-$(uname -r)kdump.img"
step() {{
    "$@"
    code=$?
    journalctl -u kdump.service -o cat --no-pager --cursor-file=/run/cursor | grep -v '^-- '
    echo "exit $code"
    crashlend status --json | grep -E '"(loaded|bytes)"'
}}
systemctl daemon-reload
tell kdumpctl-start step systemctl start kdump.service
tell kdumpctl-status step kdumpctl status
tell kdumpctl-reload step systemctl reload kdump.service
tell kdumpctl-stop step systemctl stop kdump.service
tell kdumpctl-again step systemctl start kdump.service
echo 'KDUMP_COMMANDLINE_APPEND="$KDUMP_COMMANDLINE_APPEND {CHANGED}"' >>/etc/sysconfig/kdump
tell kdumpctl-restart step kdumpctl restart
"""


def files_of(clone: Path, suite: str, say: Say = silent) -> dict[str, tuple[bytes, int]]:
    """What to put into a system: paths with content and mode.

    ``clone`` is a working tree of rhkdump/kdump-utils, ``suite`` the Debian suite of the system.
    """
    files: dict[str, tuple[bytes, int]] = {}
    for name, (path, mode) in PROGRAMS.items():
        try:
            files[path] = ((clone / name).read_bytes(), mode)
        except OSError as error:
            raise CrashlendError(
                f"{clone} is no clone of kdump-utils",
                f"{name}: {error.strerror}",
                hint="git clone https://github.com/rhkdump/kdump-utils",
            ) from error
    for name, path in GENERATED.items():
        done = subprocess.run(
            [find_tool("bash"), str(clone / name), "x86_64"], capture_output=True, check=True
        )
        files[path] = (done.stdout, 0o644)
    sysconfig, mode = files["/etc/sysconfig/kdump"]
    files["/etc/sysconfig/kdump"] = (sysconfig + f"{ADOPTION}{THEIR_ROOT}".encode(), mode)
    conf, mode = files["/etc/kdump.conf"]
    files["/etc/kdump.conf"] = (conf + b"force_no_rebuild 1\n", mode)
    with tempfile.TemporaryDirectory(prefix="crashlend-dracut-") as scratch:
        for package, path in FROM_DEBIAN:
            (deb,) = Suite(suite, say).download([package])
            unpack(deb, Path(scratch))
            files[f"/usr/{path.removeprefix('usr/')}"] = (Path(scratch, path).read_bytes(), 0o755)
    return files


def steps(told: Mapping[str, str]) -> dict[str, list[str]]:
    """What kdumpctl printed at each step, by line."""
    return {name: told[name].strip().splitlines() for name in WANTED if name in told}


def check_steps(told: Mapping[str, str], console: str) -> list[Check]:
    """Whether each of kdumpctl's steps succeeded and left what it must leave.

    ``console`` has the line of the crash kernel that came up: the one that the restart was to load.
    """
    checks = []
    for name, wanted in WANTED.items():
        text = told.get(name, "")
        loaded = re.search(r'"loaded": (true|false)', text)
        lent = re.search(r'"bytes": ([0-9]+)', text)
        found = (loaded[1] == "true", int(lent[1]) > 0) if loaded and lent else None
        words = " | ".join(text.strip().splitlines())
        checks.append(
            Check(name.replace("-", " "), "exit 0" in text and found == wanted, words[-400:])
        )
    booted = [line for line in console.splitlines() if "Kernel command line: " in line][-1:]
    line = booted[0].strip() if booted else "no kernel told its line"
    return [*checks, Check("the restart loads what was changed", CHANGED in line, line[-400:])]
