# SPDX-License-Identifier: LGPL-2.1-or-later
"""Defect B: a range over a zone's border is listed and is no CMA. Pure.

No guest can be told where to put the border: it is where ``movablecore=`` and the firmware's map put
it. So what the guest has is looked at before its verdict is believed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crashlend.lab.conform.boots import BORDER_CMA_BYTES, BORDER_MAIN_BYTES
from crashlend.lab.conform.told import lender_says
from crashlend.lab.conform.verdicts import CONFORMS, DEVIATES, UNTRIED, Result, Seen, made
from crashlend.ranges import Ranges
from crashlend.sizes import mib

if TYPE_CHECKING:
    from crashlend.lab.observation import Observation

PAGE_BYTES = 4096


def judge_border(all_of: Seen) -> Result:
    """Of the guest "border": CONFORMS only where the whole range is CMA, and has the border in it.

    UNTRIED, which is not good, where all is well but the border lies elsewhere.
    """
    guest = all_of.boots["border"]
    facts = all_of.facts("border")
    listed, main = Ranges(made(guest)), guest.crash_ranges.size
    total = guest.meminfo.get("CmaTotal", 0)
    words = [t for t in guest.messages if "could not be activated" in t]
    log = words[0] if words else "nothing"
    seen = f"listed {mib(listed.size)}, CmaTotal {mib(total)}; the log: {log}"
    if (listed.size, main) != (BORDER_CMA_BYTES, BORDER_MAIN_BYTES):
        return Result(f"{mib(main)} reserved; {seen}", DEVIATES)
    # the sum may have other areas in it: the area's own pages count where sysfs tells them
    pages = facts.cma_evidence.area_pages if facts.cma_evidence else None
    own_lost = pages is not None and pages * PAGE_BYTES < listed.size
    if own_lost:
        seen += f"; {pages} pages of it in sysfs"
    lost = bool(words) or total < listed.size or own_lost
    if not _crosses(guest, listed):
        why = "not tried: the range does not cross the border"
        return Result(f"{why}; {seen}", DEVIATES if lost else UNTRIED)
    if not lost:
        return Result(seen, CONFORMS)
    lent, why = lender_says(facts)
    copes = why if not lent and "are in ordinary use" in why else ""
    return Result(seen, "defect B" if words else DEVIATES, copes)


def _crosses(guest: Observation, listed: Ranges) -> bool:
    """Whether a ZONE_MOVABLE begins inside one of the ranges."""
    borders = [z.start_pfn * PAGE_BYTES for z in guest.zones if z.name == "Movable"]
    return any(r.start < border < r.end for r in listed for border in borders)
