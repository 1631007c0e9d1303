# SPDX-License-Identifier: LGPL-2.1-or-later
"""The host's hardware watchdogs: which modules the capture needs to feed them.

A watchdog that production has armed goes on counting in the crash kernel and would reset the machine
in the middle of the dump; one that nobody has armed will reset a crash kernel that hangs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crashlend.capture.hosttree import follow
from crashlend.capture.modules import Want
from crashlend.capture.targets.way import unique, walk_up

if TYPE_CHECKING:
    from pathlib import Path

    from crashlend.capture.modules import ModuleTree

# softdog is a timer of the kernel that has died; the others only pass on what others do
NOT_HARDWARE = frozenset({"softdog", "watchdog", "pretimeout_noop", "pretimeout_panic"})
# watchdogs that live elsewhere in the kernel's tree
ELSEWHERE = frozenset({"ipmi_watchdog", "mei_wdt"})
# what reaches the BMC: not among a driver's dependencies, for any of them will do
BEFORE = {"ipmi_watchdog": ("ipmi_si", "ipmi_ssif")}
WHY = "hardware watchdog"


def watchdog_wants(root: Path, tree: ModuleTree) -> tuple[Want, ...]:
    """The watchdog drivers that production has loaded, each after what its device hangs on.

    By where their modules are in the kernel's tree: in sysfs not every watchdog has a device (those
    of drivers that set no parent, such as i6300esb of 6.1, are virtual there).
    """
    wants: list[Want] = []
    for module in sorted((root / "sys/module").glob("*")):
        name = module.name
        file = tree.files.get(name, "")
        if not file or name in NOT_HARDWARE:
            continue
        if "/drivers/watchdog/" not in file and name not in ELSEWHERE:
            continue
        if _is_loaded(root, name):
            for needed in (*BEFORE.get(name, ()), name):
                wants += _driver_wants(root, needed)
    optional = [Want(want.name, want.why, optional=True) for want in wants]
    return unique(optional)


def _is_loaded(root: Path, name: str) -> bool:
    """As a module: built-in code has a directory in sysfs, too, but no initstate."""
    return (root / "sys/module" / name / "initstate").exists()


def _driver_wants(root: Path, name: str) -> list[Want]:
    """That driver, after what its devices hang on; nothing when it is no loaded module."""
    if not _is_loaded(root, name):
        return []
    wants: list[Want] = []
    for driver in sorted((root / "sys/module" / name / "drivers").glob("*")):
        for device in sorted(follow(root, driver).glob("*")):
            target = follow(root, device)
            if (target / "driver").exists() or (target / "driver").is_symlink():
                wants += walk_up(root, target, WHY)
    return [*wants, Want(name, WHY)]
