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
from crashlend.ranges import align_up
from crashlend.sizes import MIB, mib

if TYPE_CHECKING:
    from crashlend.config import Settings
    from crashlend.facts import Facts
    from crashlend.plan import Payload, Plan
    from crashlend.ranges import Range

PAGE = 4096
# the rehearsal, the unload and the load count against kexec_load_limit_panic
LOADS = 3
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

    ``to_bytes`` is the size to shrink to instead, if the crash kernel fits in it. The kernel runs in lent memory then, unless the settings say otherwise or nothing is lent.
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
    required = plan.layout.required_bytes
    if to_bytes is not None and to_bytes < required:
        raise CrashlendError(
            f"cannot shrink the reservation to {mib(to_bytes)}",
            f"the crash kernel needs {mib(required)} in it",
        )
    after = align_up(required + margin if to_bytes is None else to_bytes, PAGE)
    if after >= before.size:
        return None
    return Shrink(
        before,
        after,
        _written(facts, before, after),
        make_plan(_shrunk(facts, before, after), settings, payload, held_only=True),
    )


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
