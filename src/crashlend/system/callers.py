# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who calls: whether an unload is the first half of a reload.

kdump-config and kdumpctl reload by unloading and loading. Where memory is lent, an unload gives its
blocks back, which are events of memory hotplug, which make both reload: without end. So the unload of
such a reload leaves all as it is, and the load that follows decides what must change. The old crash
kernel stays loaded meanwhile.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crashlend.hostfiles import HostFiles

# kdump-tools: /usr/sbin/kdump-config; kdump-utils: /usr/bin/kdumpctl. Not kdumpctl's restart: it loads
# nothing where a crash kernel is loaded still, and no rule of udev calls it.
RELOADS = {"kdump-config": ("reload", "try-reload", "condreload"), "kdumpctl": ("reload",)}
# a script, its subshells, sudo
GENERATIONS = 8


def reload_follows(files: HostFiles, pid: int) -> str:
    """The command that unloads in order to load, among the parents of ``pid``; empty: none does."""
    for _ in range(GENERATIONS):
        pid = _parent(files, pid)
        if pid <= 1:
            break
        words = _words(files, pid)
        for program, action in zip(words, words[1:]):
            name = os.path.basename(program)
            if action in RELOADS.get(name, ()):
                return f"{name} {action}"
    return ""


def _parent(files: HostFiles, pid: int) -> int:
    """The parent of a process; 0 where that can't be read.

    [Documentation/filesystems/proc.rst]
    """
    try:
        text = files.read(f"/proc/{pid}/stat").decode(errors="replace")
    except OSError:
        return 0
    # the name, in parentheses, may hold anything
    fields = text.rpartition(")")[2].split()
    return int(fields[1]) if len(fields) > 1 and fields[1].isdecimal() else 0


def _words(files: HostFiles, pid: int) -> list[str]:
    try:
        data = files.read(f"/proc/{pid}/cmdline")
    except OSError:
        return []
    return [word.decode(errors="replace") for word in data.split(b"\0") if word]
