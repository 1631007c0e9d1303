# SPDX-License-Identifier: LGPL-2.1-or-later
"""holes.json of a trial: that it tells all that is missing, and what the other checks take from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crashlend.dumps.core import memory_in
from crashlend.dumps.corefile import open_core
from crashlend.errors import FormatError
from crashlend.lab.spec import Check
from crashlend.ranges import Ranges
from crashlend.sizes import mib

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crashlend.lab.spec import Saved

LOW = Ranges([(0, 1 << 20)])
NAME = "holes.json tells what was lent, and by whom"
NAME_IN_DUMP = "the dump's own tables have nothing of any hole"


def ranges_of(pairs: Any) -> Ranges:
    """Ranges from JSON."""
    return Ranges((pair[0], pair[1]) for pair in pairs or [])


def holes_of(saved: Saved, plan: dict[str, Any]) -> Ranges:
    """All that can be in no dump: by holes.json where there is one, else by the plan."""
    if saved.holes:
        found = Ranges()
        for hole in saved.holes["holes"]:
            found |= ranges_of(hole["ranges"])
        return found
    return ranges_of(plan.get("lent")) | ranges_of(plan.get("reservation")) | LOW


def check_holes(saved: Saved, plan: dict[str, Any]) -> Iterator[Check]:
    """What holes.json says is what the plan lent, for each lender, and the dump agrees."""
    if saved.vmcore is None or not plan:
        return
    lent = ranges_of(plan.get("lent"))
    if not saved.holes:
        yield Check(NAME, False, "there is no holes.json beside the dump")
        return
    told: dict[str, Ranges] = {}
    for hole in saved.holes["holes"]:
        key = hole["lender"] or hole["why"]
        told[key] = told.get(key, Ranges()) | ranges_of(hole["ranges"])
    reservation = told.pop("reservation", Ranges())
    first = told.pop("first-mib", Ranges())
    told.pop("kernel-ranges", None)  # whatever they are: /proc/vmcore is the judge
    parts = {
        part["lender"]: ranges_of(part["lent"]) & lent
        for part in plan.get("offer", {}).get("parts", [])
    }
    by_lender = {name: part for name, part in parts.items() if part}
    union = Ranges(pair for part in told.values() for pair in part)
    yield Check(
        NAME,
        union == lent == ranges_of(saved.holes["lent"]["ranges"])
        and told == by_lender
        and reservation == ranges_of(plan.get("reservation"))
        and first == LOW,
        ", ".join(f"{name} {mib(part.size)}" for name, part in told.items())
        + f"{', ' if told else ''}reservation {mib(reservation.size)}",
    )
    try:
        with open_core(saved.vmcore) as file:
            inside = memory_in(file, holes_of(saved, plan))
    except FormatError as error:
        yield Check(NAME_IN_DUMP, False, str(error))
        return
    yield Check(NAME_IN_DUMP, not inside, f"{mib(inside)} of {mib(holes_of(saved, plan).size)}")
