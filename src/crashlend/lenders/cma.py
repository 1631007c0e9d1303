# SPDX-License-Identifier: LGPL-2.1-or-later
"""Lender ``cma``: the ranges that the kernel itself made for ``crashkernel=SIZE,cma``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crashlend.errors import RefusedError
from crashlend.lenders import Offer
from crashlend.ranges import Ranges
from crashlend.sizes import mib

if TYPE_CHECKING:
    from crashlend.facts import Facts


def offer_cma(facts: Facts, asked_bytes: int, lendable: Ranges) -> Offer:
    """Take the kernel's ranges as they are.

    RefusedError when they are not CMA any more: a range that crosses into another zone fails to
    activate and goes back to ordinary use, but stays listed (mm/cma.c, Linux 6.17 to 7.3).
    """
    ranges = Ranges(facts.cma_ranges or ())
    notes = []
    if ranges.size > facts.meminfo.get("CmaTotal", 0):
        raise RefusedError(
            "the kernel's crashkernel CMA ranges must not be lent",
            f"it lists {mib(ranges.size)} but has only "
            f"{mib(facts.meminfo.get('CmaTotal', 0))} of CMA: their pages are in ordinary use",
            hint="dmesg says 'could not be activated'; drop kernelcore=/movablecore= or use "
            "--lender movable",
        )
    if facts.meminfo.get("HardwareCorrupted", 0):
        raise RefusedError(
            "the kernel's crashkernel CMA ranges must not be lent",
            "the kernel counts poisoned memory, which may lie in them",
            hint="replace the memory; until then --lend 0",
        )
    if facts.iomem and not lendable.covers(ranges):
        raise RefusedError(
            "the kernel's crashkernel CMA ranges must not be lent",
            "they are not plain System RAM in /proc/iomem",
            hint="please report this host's `crashlend snapshot`",
        )
    if 0 < ranges.size < asked_bytes:
        notes.append(f"the kernel made {mib(ranges.size)} of the {mib(asked_bytes)} asked for")
    return Offer("cma", asked_bytes, held=ranges, foreseen=ranges, notes=tuple(notes))
