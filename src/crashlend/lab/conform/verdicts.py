# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a check comes to, and the boots that it rests on. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Callable, NamedTuple

from crashlend.lab.conform.boots import BUILT, KNOWN, UNKNOWN
from crashlend.lab.conform.told import facts_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crashlend.facts import Facts
    from crashlend.lab.observation import Observation
    from crashlend.ranges import Range

CONFORMS, DEVIATES, ABSENT = "conforms", "deviates", "does not apply"
# The guest came out otherwise than the check needs it: nothing is known, and that is not good.
UNTRIED = "not tried"
UNSUPPORTED = "crashkernel CMA reservation not supported"


class Result(NamedTuple):
    """``verdict`` is one of the four above, or "defect A" to C, which upstream has as of 7.3.

    ``copes`` says what crashlend makes of a defect; empty where that is not as it must be.
    """

    seen: str
    verdict: str
    copes: str = ""

    @property
    def good(self) -> bool:
        """Whether all is well, or crashlend copes with what is not."""
        return self.verdict in (CONFORMS, ABSENT) or (
            self.verdict.startswith("defect") and bool(self.copes)
        )


@dataclass(frozen=True)
class Seen:
    """All that the guests of one kernel told, by the names of the boots."""

    boots: Mapping[str, Observation]

    @cached_property
    def feature(self) -> int:
        """What the kernel can do with ",cma": by what it made of it, and said."""
        first = self.boots["first"]
        if made(first):
            return BUILT
        said = UNSUPPORTED in first.messages or first.cma_ranges is not None
        return KNOWN if said else UNKNOWN

    def facts(self, boot: str) -> Facts:
        return facts_of(self.boots[boot])


@dataclass(frozen=True)
class Check:
    """``promise``: what upstream says or its code does; ``boots``: where that is tried.

    ``needs`` is what the kernel must be able to do for that, ``only``: that and no more.
    """

    name: str
    promise: str
    source: str
    boots: tuple[str, ...]
    judge: Callable[[Seen], Result]
    needs: int = UNKNOWN
    only: bool = False

    def applies(self, feature: int) -> bool:
        return feature == self.needs if self.only else feature >= self.needs


def made(seen: Observation) -> tuple[Range, ...]:
    """The ranges of ``,cma``, from the list, else from the log."""
    return seen.logged_cma_ranges if seen.cma_ranges is None else seen.cma_ranges


def said(seen: Observation, words: str) -> tuple[str, ...]:
    """The kernel's messages that begin so."""
    return tuple(text for text in seen.messages if text.startswith(words))


def conforms(fact: bool, seen: str) -> Result:
    """``seen`` and whether that is as promised."""
    return Result(seen, CONFORMS if fact else DEVIATES)
