# SPDX-License-Identifier: LGPL-2.1-or-later
"""The reader of watchdogs: which of them would reset the machine when nobody answers any more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crashlend.facts.data import Watchdog

if TYPE_CHECKING:
    from crashlend.facts.reader import Reader

BASE = "/sys/class/watchdog"
# softdog is a timer of the kernel that has died: it fires no more
OF_THE_KERNEL = ("Software Watchdog",)


def watchdogs(reader: Reader) -> tuple[Watchdog, ...]:
    """The hardware's watchdogs (Documentation/ABI/testing/sysfs-class-watchdog).

    ``state`` reads active while a program has opened the device; one that the kernel feeds by
    itself reads inactive and can't be told from one at rest.
    """
    out = []
    for name in reader.files.names(BASE):
        identity = reader.text(f"{BASE}/{name}/identity", optional=True)
        state = reader.text(f"{BASE}/{name}/state", optional=True)
        if not state or identity in OF_THE_KERNEL:
            continue
        timeout = reader.decimal(f"{BASE}/{name}/timeout")
        nowayout = reader.text(f"{BASE}/{name}/nowayout", optional=True)
        out.append(
            Watchdog(name, identity, state == "active", timeout or None, nowayout not in ("", "0"))
        )
    return tuple(out)
