# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who is compared: kdump-tools as Debian has it, and crashlend's own capture in three ways. Pure.

The same Debian system, kernel, command line, memory and disk for all; each saves to the same
directory of the same file system, with its own initramfs, its own loader and its own defaults.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crashlend.errors import CrashlendError
from crashlend.lab.speed.moments import CRASHLEND, KDUMP_TOOLS

if TYPE_CHECKING:
    from collections.abc import Mapping

MEMORY_BYTES = 2 << 30
# The same for all, with room for everyone: a system of systemd needs most of it.
CRASHKERNEL = "crashkernel=512M,cma crashkernel=320M"
SECONDS = 1500.0
CRASH = "sync\necho 1 >/proc/sys/kernel/sysrq\necho c >/proc/sysrq-trigger\n"
LOADED = (
    'test "$(cat /sys/kernel/kexec_crash_loaded)" = 1 || { echo no crash kernel; poweroff -f; }\n'
)
DUMPS = "/var/crash"


@dataclass(frozen=True)
class Contender:
    """Who captures. ``settings``: crashlend's file; None where kdump-tools does it all."""

    name: str
    title: str
    patterns: Mapping[str, str]
    settings: str | None = None


CONTENDERS = (
    Contender("kdump-tools", "kdump-tools, as installed", KDUMP_TOOLS),
    Contender("crashlend", "crashlend, nothing lent", CRASHLEND, "[crashlend]\nlender = none\n"),
    Contender(
        "crashlend-lent",
        "crashlend, 512 MiB lent, 10 s for DMA (both are its defaults)",
        CRASHLEND,
        "[crashlend]\n",
    ),
)


def job(contender: Contender) -> str:
    """What the system does once it is up: load, unless kdump-tools has, and crash."""
    if contender.settings is None:
        return LOADED + CRASH
    return "kdump-config unload\ncrashlend load || poweroff -f\n" + LOADED + CRASH


def by_name(name: str) -> Contender:
    """The contender of that name; CrashlendError when there is none."""
    for contender in CONTENDERS:
        if contender.name == name:
            return contender
    raise CrashlendError(f"no contender {name!r}", ", ".join(c.name for c in CONTENDERS))
