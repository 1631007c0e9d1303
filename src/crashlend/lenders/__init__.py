# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where lent memory comes from. Pure: a lender turns facts into an offer.

Carrying the offer out is the business of ``system.lending``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from crashlend.ranges import Ranges

NOTHING = Ranges()


class Candidate(NamedTuple):
    """A memory block that may be lent, and its node."""

    block: int
    node: int


class NodeRoom(NamedTuple):
    """How many blocks of a node may still be lent."""

    node: int
    blocks: int


@dataclass(frozen=True)
class PassedOver:
    """A memory block that will not be lent, and why."""

    index: int
    reason: str


@dataclass(frozen=True)
class Part:
    """What one lender contributes to an offer of several."""

    lender: str
    lent: Ranges


@dataclass(frozen=True)
class Offer:
    """What a lender has for this host, or several of them together (``cma,movable``).

    ``held`` can be lent as it is (the kernel's own ranges, clean memory of a ZONE_MOVABLE, blocks
    of an earlier run). ``candidates`` are the memory blocks to try, best first, until ``wanted`` of
    them are lent, of each node at most its ``room``; ``foreseen`` is what is lent when the first
    ones succeed. ``surplus`` are blocks of an earlier run that are not asked for any more.
    ``parts`` tells whose what is foreseen is. ``needs_census``: what is lent, or may be, is known
    by the pages alone. ``notes`` tell what limits the offer.
    """

    lender: str
    asked_bytes: int
    held: Ranges = NOTHING
    foreseen: Ranges = NOTHING
    candidates: tuple[Candidate, ...] = ()
    wanted: int = 0
    room: tuple[NodeRoom, ...] = ()
    surplus: tuple[int, ...] = ()
    passed_over: tuple[PassedOver, ...] = ()
    parts: tuple[Part, ...] = ()
    needs_census: bool = False
    notes: tuple[str, ...] = ()

    def part(self, lender: str) -> Ranges:
        """What ``lender`` contributes."""
        return next((part.lent for part in self.parts if part.lender == lender), NOTHING)
