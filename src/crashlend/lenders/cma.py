# SPDX-License-Identifier: LGPL-2.1-or-later
"""Lender ``cma``: the ranges that the kernel itself made for ``crashkernel=SIZE,cma``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crashlend.crashkernel.grammar import lent_request
from crashlend.errors import RefusedError
from crashlend.lenders import Offer, spoiled
from crashlend.lenders.activation import UNPROVEN, activation
from crashlend.lenders.asked import lost_words
from crashlend.lenders.census import KINDS
from crashlend.ranges import Ranges
from crashlend.sizes import mib

if TYPE_CHECKING:
    from crashlend.facts import Facts


# as of a zone: see lenders/zone.py
MOST_RUNS = 256
# With one of these the range is no CMA any more; all others come and go in one that is.
KERNELS = tuple(k.name for k in KINDS if k.counted == "unmovable")


def offer_cma(facts: Facts, asked_bytes: int, lendable: Ranges, *, whole: bool = False) -> Offer:
    """Take the kernel's ranges as they are, without units that have a page that must not be lent.

    ``whole``: nothing can be left out, because the kernel hands them over by itself.
    What is not CMA any more (activation.py) is not lent; RefusedError when that is all of it. Where
    it can't be left out either, nobody is asked (unasked.py).
    """
    ranges = Ranges(facts.cma_ranges or ())
    notes = []
    state = activation(facts)
    if state.lost and state.lost == ranges:
        why, cure = lost_words(facts)
        raise RefusedError(
            "the kernel's crashkernel CMA ranges must not be lent",
            why,
            hint=f"{cure}, or use --lender movable",
        )
    if state.lost:
        notes.append(f"a part of the kernel's ,cma ranges is not lent: {state.words(facts)}")
        ranges -= state.lost
    if state.unproven:
        why_not = facts.cma_evidence.why_not if facts.cma_evidence else "not looked at"
        notes.append(UNPROVEN.format(why_not))
    if facts.lent_pages is None and facts.meminfo.get("HardwareCorrupted", 0):
        raise RefusedError(
            "the kernel's crashkernel CMA ranges must not be lent",
            "the kernel counts poisoned memory, which may lie in them: their pages can't be looked at",
            hint="replace the memory; until then --lend 0",
        )
    if facts.iomem and not lendable.covers(ranges):
        raise RefusedError(
            "the kernel's crashkernel CMA ranges must not be lent",
            "they are not plain System RAM in /proc/iomem",
            hint="please report this host's `crashlend snapshot`",
        )
    if facts.iomem and facts.lent_pages is None:
        notes.append("the pages of the kernel's ranges can't be looked at: /proc/kpageflags")
    kernels = [kind for kind in KERNELS if kind in spoiled.kinds_in(facts, ranges)]
    if kernels:
        raise RefusedError(
            "the kernel's crashkernel CMA ranges must not be lent",
            f"they hold pages that are not movable ({spoiled.words(kernels)}): they are in ordinary "
            "use",
            hint="please report this host's `crashlend snapshot`",
        )
    if whole and not spoiled.must_not(facts).meets(ranges):
        # a balloon's pages are harmless there, too: the kernel gives them to the crash kernel
        return Offer("cma", asked_bytes, held=ranges, foreseen=ranges, notes=tuple(notes))
    made, ranges = ranges, ranges - spoiled.left_out(facts)
    ranges = Ranges(sorted(ranges, key=lambda r: -r.size)[:MOST_RUNS])
    kinds = spoiled.words(spoiled.kinds_in(facts, made))
    if whole and ranges != made:
        raise RefusedError(
            "kexec_file_load can't leave out a part of the kernel's CMA ranges",
            f"they hold pages that must not be lent ({kinds}), and the kernel gives all of them to "
            "the crash kernel",
            hint="--syscall load, where lockdown allows it; or wait until those pages are gone",
        )
    if ranges != made:
        notes.append(
            f"{mib(made.size - ranges.size)} of the kernel's ranges are left out: they hold pages "
            f"that must not be lent ({kinds})"
        )
    if 0 < made.size < asked_bytes != lent_request(facts.cmdline_bytes):  # else asked.py says it
        notes.append(f"the kernel made {mib(made.size)} of the {mib(asked_bytes)} asked for")
    return Offer("cma", asked_bytes, held=ranges, foreseen=ranges, notes=tuple(notes))
