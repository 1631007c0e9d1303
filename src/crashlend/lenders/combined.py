# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who lends: one lender or several, each asked for what those before it lack. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from crashlend.arch import for_machine
from crashlend.crashkernel.grammar import lent_request
from crashlend.errors import CrashlendError, RefusedError
from crashlend.lenders import Offer, Part, zone
from crashlend.lenders.cma import offer_cma
from crashlend.lenders.movable import offer_movable
from crashlend.lenders.unasked import demand_sound_ranges
from crashlend.lowmem import low_bytes
from crashlend.ranges import Ranges

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crashlend.config import Settings
    from crashlend.facts import Facts


def make_offer(facts: Facts, settings: Settings, syscall: str, *, held_only: bool = False) -> Offer:
    """Who lends, and what: ``--lend``, else the ``,cma`` word of the command line, else nothing.

    ``held_only``: what can be lent as it is, and no more. Of several lenders, one that has nothing
    or must not lend is passed over with a note; the first one's error is raised when that leaves
    none. With kexec_file_load (``syscall`` "file") nobody is asked where the kernel itself hands over what
    must not be lent.
    """
    asked = settings.lend if settings.lend is not None else lent_request(facts.cmdline_bytes)
    if not asked or settings.lender == "none":
        return Offer("none", asked, surplus=facts.lent_blocks)
    if syscall == "file":
        demand_sound_ranges(facts)
    names = _names(facts, settings.lender)
    offers: list[Offer] = []
    errors: list[CrashlendError] = []
    got = Ranges()
    for name in names:
        if got.size >= asked:
            break
        try:
            offer = _ask(name, facts, asked - got.size, got, settings, syscall)
        except CrashlendError as error:
            errors.append(error)
            continue
        if held_only:
            offer = replace(offer, foreseen=offer.held, candidates=(), wanted=0)
        offers.append(offer)
        got |= offer.foreseen
    if not offers:
        raise errors[0]
    combined = _combine(facts, offers, asked, got)
    if "movable" not in [offer.lender for offer in offers]:
        combined = replace(combined, surplus=facts.lent_blocks)
    return replace(
        combined,
        # a lender further down may yet be asked, when blocks refuse to move
        needs_census=zone.NAME in names and bool(zone.foreign_blocks(facts)),
        notes=(*(f"{error.what}: {error.why}" for error in errors), *combined.notes),
    )


def _names(facts: Facts, setting: str) -> Sequence[str]:
    """The lenders to ask, in order."""
    if setting != "auto":
        return setting.split(",")
    if facts.cma_ranges:
        return ("cma",)
    return (zone.NAME, "movable") if zone.foreign_blocks(facts) else ("movable",)


def _ask(
    name: str, facts: Facts, missing: int, got: Ranges, settings: Settings, syscall: str
) -> Offer:
    """One lender's offer for what is ``missing`` beside what others have ``got``."""
    for refusal in facts.refusals:
        if refusal.lender in (name, "any"):
            raise RefusedError(
                "memory of this host must not be lent",
                refusal.reason,
                hint="--lend 0 loads the crash kernel without lending, as kexec -p does",
            )
    lendable = for_machine(facts.arch).reserve_lent(facts)
    if name == "movable":
        # only for devices that reach nothing else: production wants its ZONE_DMA32, too
        low = bool(facts.narrow_devices) and not low_bytes(got)
        return offer_movable(facts, missing, lendable - got, settings.lend_share, low=low)
    if name == zone.NAME:
        return zone.offer_zone(facts, missing, lendable - got)
    if not facts.cma_ranges:
        raise CrashlendError(
            "lender cma has nothing to lend",
            "this kernel made no memory range for crashkernel=SIZE,cma",
            hint="it needs CONFIG_CMA, Linux 6.17 and that word; --lender movable works on any",
        )
    # its ranges are taken as they are, however much is asked for
    return offer_cma(facts, missing, lendable, whole=syscall == "file")


def _combine(facts: Facts, offers: Sequence[Offer], asked: int, got: Ranges) -> Offer:
    """One offer of several; it is named for those that contribute, else for all that were asked."""
    parts = tuple(Part(offer.lender, offer.foreseen) for offer in offers if offer.foreseen)
    held = Ranges()
    for offer in offers:
        held |= offer.held
    # only the lender movable has these
    movable = next((offer for offer in offers if offer.lender == "movable"), offers[0])
    # a block that one of them lends from is not passed over, whatever another one said
    size = facts.block_bytes or 0
    passed_over = {
        p.index: p
        for offer in reversed(offers)
        for p in offer.passed_over
        if not got.meets(Ranges([(p.index * size, (p.index + 1) * size)]))
    }
    return replace(
        movable,
        lender=",".join([part.lender for part in parts] or [offer.lender for offer in offers]),
        asked_bytes=asked,
        held=held,
        foreseen=got,
        passed_over=tuple(passed_over[index] for index in sorted(passed_over)),
        parts=parts,
        notes=tuple(note for offer in offers for note in offer.notes),
    )
