# SPDX-License-Identifier: LGPL-2.1-or-later
"""Having the kernel judge the model: a load into exactly the bytes that the plan requires. Pure.

The hole at the bottom of the reservation is filled up to the planned control pages by a segment of
which nothing is stored. Then the load itself shows that they suffice, and gives nothing up for it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Callable, Optional

from crashlend.arch import Segment, for_machine
from crashlend.errors import CrashlendError

if TYPE_CHECKING:
    from crashlend.arch import Layout
    from crashlend.facts import Facts
    from crashlend.plan import Plan

PAGE = 4096
# what one load may take when it is refused in every way but the last: more must be left after it
TRIES = 3


def hole_filler(
    layout: Layout, start: int, ram_bytes: int, more_bytes: int = 0
) -> Optional[list[Segment]]:
    """The segment that leaves the kernel its control pages alone at ``start``, the reservation's.

    Empty where the hole is no larger. None where all segments, ``more_bytes`` of others included,
    would be over half of RAM: sanity_check_segment_list() in kernel/kexec_core.c refuses that.
    """
    begin = start + layout.control_pages * PAGE
    size = layout.segments[0].start - begin
    total = size + more_bytes + sum(s.memory_bytes for s in layout.segments)
    if total > ram_bytes // 2:
        return None
    return [Segment("hole", begin, 0, size)] if size > 0 else []


def kernel_variants(facts: Facts, plan: Callable[[Facts], Optional[Plan]]) -> tuple[Facts, ...]:
    """The facts under each way in which this kernel may build its tables, the smallest first.

    ``facts`` alone where a load has shown it since boot, where it makes no difference to ``plan`` or
    only one of them can be planned, and where loads are counted (kernel.kexec_load_limit_panic) and there are few left.
    """
    if not may_ask(facts.kexec_load_limit_panic):
        return (facts,)
    fitting: dict[int, Facts] = {}
    for variant in for_machine(facts.arch).kernel_variants(facts):
        with suppress(CrashlendError):
            layout = getattr(plan(variant), "layout", None)
            fitting.setdefault(layout.control_pages if layout else 0, variant)
    return tuple(fitting.values()) if len(fitting) > 1 else (facts,)


def may_ask(limit: Optional[int]) -> bool:
    """Whether there are loads to spare: ``limit`` None or below zero is any number of them."""
    return limit is None or limit < 0 or limit > TRIES
