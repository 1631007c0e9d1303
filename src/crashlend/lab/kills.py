# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether guestfiles/kill.py killed crashlend at every step, and all was right afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crashlend.lab.spec import Check

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crashlend.lab.qemu import Report
    from crashlend.lab.spec import Spec

# What guestfiles/kill.py must have killed crashlend after, by scenario.
OFFLINE, MOVABLE = "write offline to /sys", "write online_movable to /sys"
ONLINE, RECORD = "write online_kernel to /sys", "replace /run/crashlend/"
# kexec_crash_size is a link to kexec/crash_size where the kernel has that directory (7.3)
KEXEC, SHRINK = "kexec ", " to /sys/kernel/kexec"
KILLED_AFTER = {
    "load": (OFFLINE, MOVABLE, RECORD, KEXEC),
    "load more": (OFFLINE, MOVABLE, RECORD, KEXEC),
    "load less": (KEXEC, OFFLINE, ONLINE, RECORD),
    "reload": (KEXEC, RECORD),
    "unload": (KEXEC, OFFLINE, ONLINE, RECORD),
    "status": (ONLINE, RECORD),
    "shrink": (OFFLINE, KEXEC, SHRINK, RECORD),
    # onlining and unloading are over before a timer's signal can be relied on to come
    "inside load": (f"inside {OFFLINE}", f"inside {KEXEC}"),
    "inside unload": (f"inside {OFFLINE}",),
}


def check_kills(spec: Spec, report: Report) -> Iterator[Check]:
    """Each scenario of guestfiles/kill.py ran to its end, over the steps that it is about."""
    seen = {e["scenario"]: e for e in report.events if e.get("event") == "killed"}
    for name in spec.kill:
        event = seen.get(name, {"points": [], "failures": [], "missed": []})
        points, failures = event["points"], event["failures"]
        absent = [step for step in KILLED_AFTER[name] if not any(step in point for point in points)]
        detail = f"{len(points)} steps, {event.get('kills', 0)} kills in {event.get('seconds')} s"
        if failures:
            first = failures[0]
            detail += f"; {event['failed']} went wrong: after {first['after']} then {first['then']}"
            detail += f": {'; '.join(first['not'])}"[:400]
        for what, which in (("never killed after", absent), ("not counted", event["missed"])):
            detail += f"; {what}: {which}" if which else ""
        good = bool(points) and not (failures or absent or event["missed"])
        yield Check(f"killed at every step: {name}", good, detail)
