# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where lent memory comes from. Pure: a lender turns facts into an offer.

Carrying the offer out is the business of ``system.lending``.
"""

from __future__ import annotations

from dataclasses import dataclass

from crashlend.ranges import Ranges

NOTHING = Ranges()


@dataclass(frozen=True)
class PassedOver:
    """A memory block that will not be lent, and why."""

    index: int
    reason: str


@dataclass(frozen=True)
class Offer:
    """What a lender has for this host.

    ``held`` is lent already (by the kernel, or by an earlier run). ``candidates`` are the memory
    blocks to try, best first, until ``wanted`` of them are lent; ``foreseen`` is what is lent when
    the first ones succeed. ``surplus`` are blocks of an earlier run that are not asked for any more.
    ``notes`` tell what limits the offer.
    """

    lender: str
    asked_bytes: int
    held: Ranges = NOTHING
    foreseen: Ranges = NOTHING
    candidates: tuple[int, ...] = ()
    wanted: int = 0
    surplus: tuple[int, ...] = ()
    passed_over: tuple[PassedOver, ...] = ()
    notes: tuple[str, ...] = ()
