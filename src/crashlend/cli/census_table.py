# SPDX-License-Identifier: LGPL-2.1-or-later
"""What ``plan --census`` shows: the pages of memory by kind, of all blocks and of those that lend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crashlend.lenders.census import KINDS, NO_FLAGS, PAGE
from crashlend.ranges import Ranges
from crashlend.sizes import MIB

if TYPE_CHECKING:
    from crashlend.facts import Facts
    from crashlend.lenders.census import BlockCensus
    from crashlend.plan import Plan

# in the order in which people want them: what is good to lend first
ORDER = (*(k for k in KINDS if k.clean), NO_FLAGS, *(k for k in KINDS if not k.clean))
ROLES = ("lent", "candidate", "passed over", "other")
COUNTED = ("free", "movable", "unknown", "unmovable", "huge", "poisoned", "offline")


def pages_of(census: BlockCensus) -> dict[str, int]:
    """Pages by kind; by the coarser counts in a snapshot that has no others."""
    return census.kinds or {name: n for name in COUNTED if (n := getattr(census, name))}


def roles(plan: Plan, facts: Facts) -> dict[int, str]:
    """What the plan does with each block that was looked at."""
    size = facts.block_bytes or 1
    candidates = {c.block for c in plan.offer.candidates}
    passed = {p.index for p in plan.offer.passed_over}
    out = {}
    for census in facts.block_census:
        index = census.index
        if plan.lent.meets(Ranges([(index * size, (index + 1) * size)])):
            out[index] = "lent"
        else:
            known = "passed over" if index in passed else "other"
            out[index] = "candidate" if index in candidates else known
    return out


def census_json(plan: Plan, facts: Facts) -> dict[str, Any]:
    """The census for programs, in pages of 4 KiB: sums by role, and every block."""
    role = roles(plan, facts)
    nodes = {block.index: block.node for block in facts.blocks}
    return {
        "page_bytes": PAGE,
        "verdicts": {kind.name: kind.verdict for kind in ORDER},
        "sums": {name: _sum(facts, role, name) for name in ROLES},
        "blocks": [
            {
                "block": c.index,
                "node": nodes.get(c.index),
                "role": role[c.index],
                "pages": pages_of(c),
            }
            for c in facts.block_census
        ],
    }


def _sum(facts: Facts, role: dict[int, str], name: str) -> dict[str, int]:
    total: dict[str, int] = {}
    for census in facts.block_census:
        if role[census.index] == name:
            for kind, pages in pages_of(census).items():
                total[kind] = total.get(kind, 0) + pages
    return total


def census_lines(plan: Plan, facts: Facts, *, verbose: bool) -> list[str]:
    """The census for people, in MiB: a row for each kind, a column for each role."""
    role = roles(plan, facts)
    shown = [name for name in ROLES if name in role.values()]
    sums = {name: _sum(facts, role, name) for name in shown}
    blocks = {name: sum(r == name for r in role.values()) for name in shown}
    head = [f"{name} ({blocks[name]})" for name in shown]
    wide = [max(len(text), 10) for text in head]
    lines = [
        "what memory holds, in MiB, and what becomes of such a page (number of memory blocks)",
        f"  {'':12}" + "".join(f"  {h:>{w}}" for h, w in zip(head, wide)),
    ]
    verdict = {kind.name: kind.verdict for kind in ORDER}
    present = {kind for each in sums.values() for kind in each}
    names = [*(k.name for k in ORDER), *(n for n in COUNTED if n not in verdict)]
    for name in (n for n in names if n in present):
        cells = (f"  {_mib(sums[s].get(name, 0)):>{w}}" for s, w in zip(shown, wide))
        label = name.replace("_", " ")
        lines.append(f"  {label:12}{''.join(cells)}  {verdict.get(name, '')}".rstrip())
    if verbose:
        lines += _block_lines(facts, role)
    return lines


def _block_lines(facts: Facts, role: dict[int, str]) -> list[str]:
    lines = []
    for census in facts.block_census:
        if role[census.index] in ("lent", "candidate"):
            pages = pages_of(census)
            held = ", ".join(f"{kind.replace('_', ' ')} {_mib(n)}" for kind, n in pages.items())
            lines.append(f"  memory block {census.index} ({role[census.index]}): {held}")
    return lines


def _mib(pages: int) -> str:
    """One decimal, and never 0.0 for what there is."""
    value = pages * PAGE / MIB
    return f"{value:.1f}" if not pages or value >= 0.05 else f"{value:.3f}"
