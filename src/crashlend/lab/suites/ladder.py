# SPDX-License-Identifier: LGPL-2.1-or-later
"""Trials of the capture's ladder: each takes something away from it, and a dump must come all the same.

Or, where nothing can be saved, the reason must survive the reset, and the machine must come back.
capture_faults.py says what is done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crashlend.lab.spec import CAME_BACK, Command, Trial
from crashlend.lab.suites.faults import FILL_TARGET
from crashlend.sizes import MIB

if TYPE_CHECKING:
    from collections.abc import Mapping

SMALL: Mapping[str, Any] = {
    "memory_bytes": 1536 * MIB,
    "cmdline": "crashkernel=160M",
    "lend_bytes": 256 * MIB,
    "timeout_seconds": 900.0,
    "poison": False,
    "scan": False,
}
# a level that has everything; what was in lent memory is known to be missing
EVERYTHING = {"dump_level": 1, "allow_missing_user_data": True}
LOAD = Command(("load",))
# room for a dump of the kernel's own pages, not for one of everything
LITTLE_ROOM = f"""{FILL_TARGET}
busybox truncate -s $(($(stat -c %s /lab/full) - {40 * MIB})) /lab/full
sync
"""


def _trial(fault: str, proves: str, spec: Mapping[str, Any], **more: Any) -> Trial:
    body = {**SMALL, "capture_fault": fault, **spec}
    return Trial(f"ladder-{fault}-6.1", proves, "6.1", body, **more, quick=False)


LADDER = (
    _trial(
        "little-room",
        "a disk with little room: more is left out until the dump fits",
        {**EVERYTHING, "commands": (LOAD, Command(("-ec", LITTLE_ROOM), program="sh"))},
    ),
    _trial(
        "targets",
        "a target that is not there, one that is full, one that is read-only: the fourth has the dump",
        {},
    ),
    _trial(
        "dying",
        "makedumpfile is killed for want of memory, then dies of SIGSEGV: its third run saves the dump",
        EVERYTHING,
    ),
    _trial(
        "bad-hook",
        "a hook takes all CPU and memory, kills all other processes and hangs: a dump",
        {},
    ),
    _trial(
        "panic",
        "the crash kernel panics itself: the machine is back in time, both panics are in pstore (ERST)",
        {},
        expect=CAME_BACK,
        words="Kernel panic - not syncing: sysrq triggered crash",
    ),
    _trial(
        "no-target",
        "no target: the console and pstore (ERST) have the end of the log and the reason",
        {},
        expect=CAME_BACK,
        words="no dump was saved",
    ),
    _trial("raw", "a partition without a file system: the dump, its log and its report", {}),
    _trial(
        "hang",
        "all of the crash kernel hangs: the hardware watchdog, which it fed, resets the machine",
        {},
        expect=CAME_BACK,
        words="crashlend-lab: good night",
    ),
)
