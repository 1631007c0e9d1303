# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the capture is told about a load, in etc/crashlend/load.conf. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crashlend.arch import for_machine

if TYPE_CHECKING:
    from crashlend.config import Settings
    from crashlend.facts import Facts
    from crashlend.lenders import Offer
    from crashlend.ranges import Ranges

STALL_SECONDS, STALL_SECONDS_PER_TIB = 300, 120


def load_variables(
    facts: Facts, offer: Offer, lent: Ranges, settings: Settings, unasked: Ranges, missing: bool
) -> dict[str, str]:
    """Shell variables; ranges are half-open, ``START-END`` by comma.

    ``unasked`` are ranges that the kernel by itself leaves out of the dump beside ``lent``,
    ``missing`` tells whether user data is, or may be. init makes holes.json of these.

    makedumpfile looks at all of production's memory before it writes much: the more there is, the
    longer a capture may seem to stand still before it is given up.
    """
    stall = settings.stall_timeout or STALL_SECONDS + STALL_SECONDS_PER_TIB * (
        facts.meminfo.get("MemTotal", 0) >> 40
    )
    return {
        "STALL_TIMEOUT": str(stall),
        "TOTAL_TIMEOUT": str(settings.total_timeout or 2 * stall),
        "LENDER": offer.lender,
        "LENT_BYTES": str(lent.size),
        "LENT_RANGES": _words(lent),
        "LENT_PARTS": lent_parts(offer, lent),
        "UNASKED_RANGES": _words(unasked),
        # as long before and after the reservation shrinks: its length is part of what is required
        "RESERVATION": ",".join(
            f"{r.start:#018x}-{r.end:#018x}" for r in for_machine(facts.arch).reservations(facts)
        ),
        "DUMP_LEVEL": str(settings.dump_level),
        "ALLOW_MISSING_USER_DATA": "1" if settings.allow_missing_user_data and missing else "0",
    }


def lent_parts(offer: Offer, lent: Ranges) -> str:
    """Whose each range is: ``LENDER=START-END,... LENDER=...``."""
    parts = ((part.lender, part.lent & lent) for part in offer.parts)
    return " ".join(f"{name}={_words(part)}" for name, part in parts if part)


def _words(ranges: Ranges) -> str:
    return ",".join(f"{r.start}-{r.end}" for r in ranges)
