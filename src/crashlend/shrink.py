# SPDX-License-Identifier: LGPL-2.1-or-later
"""How small the reservation may become, and the host as it will be then. Pure.

Carrying it out is the business of ``system.shrinking``.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Optional

from crashlend.arch import for_machine
from crashlend.errors import CrashlendError
from crashlend.plan import make_plan
from crashlend.proof import TRIES
from crashlend.ranges import align_up
from crashlend.sizes import MIB, format_size, mib

if TYPE_CHECKING:
    from crashlend.config import Settings
    from crashlend.facts import Facts
    from crashlend.plan import Payload, Plan
    from crashlend.ranges import Range

PAGE = 4096
# each try of the rehearsal, the unload and the load count against kexec_load_limit_panic
LOADS = TRIES + 2
# what more a smaller reservation may need: program headers for what it gave back
SPARE_PAGES = 16
CRASH_KERNEL = "Crash kernel"


@dataclass(frozen=True)
class Shrink:
    """What to shrink the main reservation to.

    ``plan`` holds on the host as it is afterwards: what a later load plans there, too.
    ``written_bytes`` is what /sys/kernel/kexec_crash_size must be given, which is not always the
    size of the main reservation.
    """

    before: Range
    after_bytes: int
    written_bytes: int
    plan: Plan

    @property
    def freed_bytes(self) -> int:
        return self.before.size - self.after_bytes


def plan_shrink(
    facts: Facts, settings: Settings, payload: Payload, to_bytes: Optional[int] = None
) -> Optional[Shrink]:
    """Plan the smallest reservation, with its margin; None when there is nothing to win.

    ``to_bytes`` is the size to shrink to instead, if the crash kernel fits in it. The kernel runs in
    lent memory then, unless the settings say otherwise or nothing is lent.
    CrashlendError when the plan can't be made, or when the kernel's file for the size can't be
    used safely.
    """
    arch = for_machine(facts.arch)
    before = arch.main_reservation(facts)
    if before is None:
        raise arch.no_reservation()
    limit = facts.kexec_load_limit_panic
    if limit is not None and 0 <= limit < LOADS:
        raise CrashlendError(
            "cannot shrink the reservation",
            f"kernel.kexec_load_limit_panic allows {limit} more loads; it takes {LOADS}",
        )
    plan = make_plan(facts, settings, payload, held_only=True)
    if settings.placement == "auto" and plan.lent:
        # where no lent range takes the kernel it stays reserved
        with suppress(CrashlendError):
            smallest = replace(settings, placement="lent")
            plan = make_plan(facts, smallest, payload, held_only=True)
    if plan.layout is None:
        raise CrashlendError("cannot shrink the reservation", plan.incomplete)
    stored = sum(s.stored_bytes for s in plan.layout.segments)
    margin = settings.shrink_margin
    if margin is None:
        margin = max(4 * MIB, stored // 4)
    required = _required(facts, before, margin, plan, settings, payload)
    if to_bytes is not None and to_bytes < required:
        raise CrashlendError(
            f"cannot shrink the reservation to {mib(to_bytes)}",
            f"the crash kernel needs {mib(required)} in it",
        )
    after = align_up(required + margin if to_bytes is None else to_bytes, PAGE)
    if after >= before.size:
        return None
    kept = sum(s.memory_bytes for s in plan.layout.segments)
    if before.size - after + kept > facts.meminfo.get("MemTotal", 0) // 2:
        raise CrashlendError(
            "cannot shrink the reservation",
            f"the kernel rehearses no more than half of RAM, and {mib(before.size - after)} shall go",
            hint=f"shrink in steps: first --shrink {format_size(align_up(before.size // 2, MIB))}",
        )
    return Shrink(
        before,
        after,
        _written(facts, before, after),
        make_plan(_shrunk(facts, before, after), settings, payload, held_only=True),
    )


def _required(
    facts: Facts, before: Range, margin: int, plan: Plan, settings: Settings, payload: Payload
) -> int:
    """What is required once the rest is RAM again, which is one PT_LOAD more at times."""
    required = plan.layout.required_bytes if plan.layout else 0
    rough = align_up(required + margin, PAGE) + SPARE_PAGES * PAGE
    if plan.layout is None or rough >= before.size:
        return required
    same = replace(settings, placement=plan.layout.placement)
    after = make_plan(_shrunk(facts, before, rough), same, payload, held_only=True)
    return after.layout.required_bytes if after.layout else required


def _shrunk(facts: Facts, before: Range, after_bytes: int) -> Facts:
    """The host as it is once the reservation's upper part has been freed."""
    iomem = tuple(
        replace(r, end=r.start + after_bytes)
        if r.name == CRASH_KERNEL and r.start == before.start
        else r
        for r in facts.iomem
    )
    return replace(facts, iomem=iomem)


def _written(facts: Facts, before: Range, after_bytes: int) -> int:
    """The value for kexec_crash_size, which means different things (hazard 10).

    In Linux 6.1 it is the main reservation alone, from 6.17 on main and low together; told apart
    by what it reads now.
    """
    total = for_machine(facts.arch).reservations(facts).size
    if facts.crash_size_bytes == before.size:
        return after_bytes
    if facts.crash_size_bytes == total:
        return after_bytes + total - before.size
    raise CrashlendError(
        "cannot shrink the reservation",
        f"/sys/kernel/kexec_crash_size reads {facts.crash_size_bytes}, which is neither the main "
        f"reservation ({before.size}) nor all of it ({total})",
    )
