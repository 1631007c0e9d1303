# SPDX-License-Identifier: LGPL-2.1-or-later
"""Prints docs/census.md from the tables KINDS and NEVER_LENT. ``make docs`` runs it."""

from __future__ import annotations

from crashlend.facts.never import NEVER_LENT
from crashlend.lenders.census import CUT, KINDS, LEFT_OUT, LENT, NEVER, NO_FLAGS

INTRODUCTION = """# What memory holds, and what must never be lent

This page is made by `make docs` from the tables that decide (`lenders/census.py`, `facts/never.py`).

`crashlend plan --census` (as root, or on a snapshot that was taken with `--census`) shows what the
pages of memory hold, by kind, for the blocks that lend, the candidates and the rest; with `-v` for
each block, with `--json` for programs. [How fast](census-speed.md) it is was measured.

The census looks at each page's entry in /proc/kpageflags. For memory blocks that crashlend makes
movable it ranks and vetoes; what clears them is that they went *offline*. For a ZONE_MOVABLE of others
it decides alone. What is lent already is looked at again at every `load` and `reload`, and by
`status`.

## Kinds of pages

The first row that applies says how a page is counted. The verdict is on memory where nothing but
movable pages should be: a block of crashlend's, a ZONE_MOVABLE, a range of `crashkernel=SIZE,cma`.
(Ordinary blocks may hold anything; they are not lent before they went offline.)
"""
VERDICTS = {
    LENT: "the page may be lent",
    LEFT_OUT: "its 2 MiB are left out at load; one that came later is harmless",
    CUT: "its 2 MiB are left out at load; one that came later is a problem that `status` names",
    NEVER: "the same; a block that crashlend made movable is not lent at all any more, and a `,cma` "
    "range with kernel pages is refused. A poisoned block is never taken offline",
}
NOTES = """
Pages without flags can't be the kernel's own data there: only allocations with both __GFP_HIGHMEM and
__GFP_MOVABLE get into ZONE_MOVABLE (gfp_zone() in include/linux/gfp.h), and only movable ones into CMA
(mm/page_alloc.c: ALLOC_CMA). Runs shorter than 4 MiB are not lent.

A balloon's pages: virtio-balloon takes movable memory where the kernel can migrate such pages
(CONFIG_BALLOON_COMPACTION, CONFIG_BALLOON_MIGRATION), so they come into lent memory, too. They hold
nobody's data. The hypervisor has taken them back and gives memory again to whoever touches them (QEMU
dropped the pages with MADV_DONTNEED; VMware ESX pops its balloon). A load leaves them out, so that the
crash kernel does not claim what the hypervisor gave to others; when they come later they do not harm
the crash kernel. A balloon that negotiated MUST_TELL_HOST promised never to do so: it is refused.

## What must never be lent
"""


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def markdown() -> str:
    """The whole document."""
    kinds = [
        (
            k.name.replace("_", " "),
            f"KPF_{k.flag}" if k.flag else "none of these",
            k.verdict,
            k.why,
        )
        for k in (*KINDS, NO_FLAGS)
    ]
    never = [(n.what, n.recognised_by, n.verdict, n.source) for n in NEVER_LENT]
    return "\n".join(
        (
            INTRODUCTION,
            table(("kind", "flag", "verdict", "what it is, and where the kernel has it"), kinds),
            "".join(f"- *{name}*: {what}.\n" for name, what in VERDICTS.items()) + NOTES,
            table(("what", "recognised by", "verdict", "source"), never),
        )
    )


if __name__ == "__main__":
    print(markdown(), end="")
