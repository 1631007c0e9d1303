# SPDX-License-Identifier: LGPL-2.1-or-later
"""The shell and the tools of init: busybox, and the host's own programs for what it lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

from crashlend.capture.contents import Contents, find_tool, read_file
from crashlend.capture.libraries import resolve
from crashlend.errors import CrashlendError
from crashlend.formats import newc
from crashlend.formats.elf import is_elf

if TYPE_CHECKING:
    from pathlib import Path

# What init calls. Debian's busybox and busybox-static have all of these, from bullseye to sid
# (looked up in 1.30.1, 1.35.0 and 1.38.0; findfs and blkid, for two, are not in every one).
APPLETS = (
    "cat cp cttyhack date dd grep halt insmod mkdir mount mv od poweroff reboot rm sed setsid "
    "sh sleep sort stat sync tail timeout tr umount uname usleep"
)
# What hooks and a rescue shell like to have, as far as the host has it.
MORE_APPLETS = (
    "awk basename blockdev chmod chown cut df dirname dmesg du echo env expr find free gzip head "
    "ip kill ln ls lsmod md5sum mkfifo more nc nslookup ping printf ps readlink route seq sha256sum tar tee "
    "test touch udhcpc vi wc wget"
)
# A dynamic one shares its C library with makedumpfile, so it comes first where a host has both.
_BUSYBOX = ("bin/busybox", "usr/bin/busybox", "bin/busybox-static", "usr/bin/busybox-static")
_WHERE = ("usr/bin", "bin", "usr/sbin", "sbin")
# Where a tool goes by another name on hosts without busybox.
_OTHER_NAMES = {"sh": ("dash", "bash", "sh"), "insmod": ("kmod", "insmod")}
_PACKAGES = {
    "mount": "util-linux",
    "umount": "util-linux",
    "setsid": "util-linux",
    "insmod": "kmod",
    "ip": "iproute2",
    "grep": "grep",
    "sed": "sed",
    "sh": "dash or bash",
}
# The rest of busybox, in the shell. Those of systemd would bring megabytes of libraries to say less.
_SCRIPTS = {
    "usleep": 'exec sleep "$(printf %d.%06d "$(($1 / 1000000))" "$(($1 % 1000000))")"',
    "cttyhack": 'exec setsid -c "$@" </dev/console >/dev/console 2>&1',
    "reboot": "echo b >/proc/sysrq-trigger",
    "poweroff": "echo o >/proc/sysrq-trigger; exec sleep 30",
    # nothing but a system call halts
    "halt": "echo o >/proc/sysrq-trigger; exec sleep 30",
}


def add_tools(contents: Contents, root: Path) -> None:
    """All of :data:`APPLETS`, and of :data:`MORE_APPLETS` what busybox has.

    What a host has no busybox for, or one without it, is its own program. Raises CrashlendError where a tool is nowhere to be had, with the package that has it.
    """
    source, present = _find_busybox(root), []
    chain = ("this host has no busybox",)
    if source is not None:
        contents.add_program(root, source, "bin/busybox", "shell and tools of init")
        # busybox holds the names of its applets as one list of NUL-terminated strings
        data = contents.members["bin/busybox"].data
        wished = (*APPLETS.split(), *MORE_APPLETS.split())
        present = [name for name in wished if b"\0" + name.encode() + b"\0" in data]
        chain = ("this host's busybox lacks it",)
    for applet in present:
        contents.add(newc.symlink(f"bin/{applet}", "busybox"), "applet of busybox")
    for name in APPLETS.split():
        if name not in present:
            add_own(contents, root, name, chain)


def _find_busybox(root: Path) -> Optional[Path]:
    found = [path for path in (resolve(root, name) for name in _BUSYBOX) if path.is_file()]
    shared = [path for path in found if b"/ld-" in read_file(path)[:4096]]
    return next(iter(shared or found), None)


def add_own(contents: Contents, root: Path, name: str, chain: tuple[str, ...]) -> None:
    """The host's own program with its libraries, or what does the same. CrashlendError without it."""
    if name in _SCRIPTS:
        text = f"#!/bin/sh\n{_SCRIPTS[name]}\n".encode()
        contents.add(newc.regular(f"bin/{name}", text, 0o755), "tool of init", chain)
        return
    names = _OTHER_NAMES.get(name, (name,))
    candidates = tuple(f"{where}/{one}" for one in names for where in _WHERE)
    source = find_tool(root, candidates, f"busybox (or {_PACKAGES.get(name, 'coreutils')})")
    if not is_elf(read_file(source)):
        raise CrashlendError(
            "cannot build the capture initramfs",
            f"{source} is not a program but a script",
            hint="install the package busybox",
        )
    contents.add_program(root, source, f"bin/{name}", "tool of init", chain)
