# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether production really did, when it crashed, what the trial wanted it to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crashlend.lab.spec import Check
from crashlend.sizes import mib

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crashlend.lab.qemu import Report
    from crashlend.lab.spec import Spec

PAGE = 4096
# of each load the unit of its amount, and the per cent of it that must be there at the crash
UNITS = {
    "anon": ("% of MemTotal is anonymous memory", 90),
    "dirty": ("MiB are not written yet", 75),
    "thp": ("MiB in transparent huge pages", 75),
    "hugepages": ("MiB of hugetlbfs are in use", 75),
    "forks": ("processes started in a second", 100),
    "reads": ("reads from the disk in a second", 100),
    "cache": ("% of what nothing else uses is page cache", 100),
}
CACHE_PERCENT = 70  # the kernel keeps free what it needs in need: watermarks of each zone
INTO = "into"
LEAST_USED_PERCENT = 75  # of lent memory, where a load is to fill it


def check_work(spec: Spec, report: Report) -> Iterator[Check]:
    """Each load of the spec was at work, and where it was to fill lent memory, it did."""
    wanted = [c.words for c in spec.commands if c.program == "agent" and c.words[0] == "work"]
    seen = [event for event in report.events if event.get("event") == "working"]
    for _, load, _, when in wanted:
        name = f"load was active: {load}"
        found = next((event for event in seen if event["load"] == load), None)
        if found is None:
            yield Check(name, False, "the guest did not report it")
            continue
        words, percent = UNITS[load]
        amount = CACHE_PERCENT if load == "cache" else int(found["amount"])
        memory = found["memory"]
        yield Check(
            name,
            amount > 0 and found["active"] * 100 >= amount * percent,
            f"{found['active']} {words}, {amount} asked for; MemTotal {mib(memory['MemTotal'])}, "
            f"free {mib(memory['MemFree'])}, page cache {mib(memory['Cached'])}, anonymous "
            f"{mib(memory['AnonPages'])}",
        )
        if when == INTO:
            used, total = found["lent_used_pages"], found["lent_pages"]
            yield Check(
                "the load used lent memory until the crash",
                total > 0 and used * 100 >= total * LEAST_USED_PERCENT,
                f"{mib(used * PAGE)} of {mib(total * PAGE)} were not free",
            )
