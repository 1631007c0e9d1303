# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel judges how exact the plan is, at every load, and is remembered."""

from __future__ import annotations

import json

import pytest

from build import MIB, PAGE
from crashlend.config import Settings
from crashlend.errors import CrashlendError
from crashlend.proof import TRIES, hole_filler, may_ask
from crashlend.system import loading
from test_plan import layout_of, plan_of
from test_shrink import START, ShrinkHost, assert_loaded, load, some

__all__ = ("some",)  # the fixture


@pytest.mark.parametrize(
    ("takes", "loads", "proven", "learned"),
    [(3, 1, True, True), (4, 1, True, True), (5, 2, True, False), (6, 3, False, None)],
)
def test_the_load_itself_is_the_proof(
    takes: int, loads: int, proven: bool, learned: bool | None, some: ShrinkHost
) -> None:
    """Of two ways to build its tables the kernel shows its own; one that needs more is said."""
    some.takes = takes
    said: list[str] = []
    done = load(said=said)
    assert (len(some.events), done.proven) == (loads, proven)
    assert some.state.learned.get("rounds_gib_outwards") is learned
    assert any("more of the reservation than the plan says" in line for line in said) != proven
    pages = layout_of(done.plan).control_pages
    assert pages == {True: 4, False: 5, None: 5}[learned]
    holes = [s for s, _ in some.image if s.name == "hole"]
    assert [s.start for s in holes] == ([START + pages * PAGE] if proven else [])
    assert_loaded(some)


@pytest.mark.parametrize(("takes", "pages"), [(4, 4), (5, 5)])
def test_what_a_load_has_shown_holds_until_the_next_boot(
    takes: int, pages: int, some: ShrinkHost
) -> None:
    """A second load asks once, unload forgets nothing, and the plan is exact from then on."""
    some.takes = takes
    load()
    loading.unload(Settings(), say=lambda _line: None)
    some.events.clear()
    done = load()
    assert some.events == ["load"]
    assert done.proven is True
    assert layout_of(done.plan).control_pages == pages
    record = json.loads((some.root / "run/crashlend/state.json").read_bytes())
    assert record["learned"] == {"rounds_gib_outwards": takes == 4}


@pytest.mark.parametrize(("takes", "pages"), [(4, 4), (5, 5)])
def test_an_exact_shrink_is_exact_on_either_kernel(
    takes: int, pages: int, some: ShrinkHost
) -> None:
    """The reservation that stays has the pages that this kernel takes, not one more."""
    some.takes = takes
    done = load(Settings(lend=256 * MIB, shrink_margin=0), shrink=True)
    assert done.proven is True
    assert done.plan.costs.required_bytes == done.plan.reservation.size == some.end - START
    assert layout_of(done.plan).control_pages == pages
    assert_loaded(some)


def test_a_kernel_that_needs_more_shrinks_only_where_the_margin_has_it(some: ShrinkHost) -> None:
    """Without a margin the reservation stays; with one the rehearsal without the filler decides."""
    some.takes = 7
    said: list[str] = []
    assert load(Settings(lend=256 * MIB, shrink_margin=0), said, shrink=True).freed_bytes == 0
    assert any("stays as it is" in line for line in said)
    assert load(Settings(lend=256 * MIB), shrink=True).freed_bytes > 0
    assert_loaded(some)


@pytest.mark.parametrize("limit", [1, TRIES])
def test_counted_loads_are_not_spent_on_proofs(limit: int, some: ShrinkHost) -> None:
    """With kernel.kexec_load_limit_panic low, one load is one load, and nothing is claimed."""
    some.memory.files["/proc/sys/kernel/kexec_load_limit_panic"] = b"%d\n" % limit
    done = load()
    assert (some.events, done.proven) == (["load"], None)
    assert [s.name for s, _ in some.image if s.name == "hole"] == []


def test_a_limit_counts_and_none_does_not() -> None:
    """-1 and a kernel without the file allow any number."""
    assert [may_ask(n) for n in (None, -1, TRIES + 1)] == [True] * 3
    assert [may_ask(n) for n in (0, 1, TRIES)] == [False] * 3


def test_the_filler_leaves_the_control_pages_and_touches_the_lowest_segment() -> None:
    """It is as large as the hole less the planned pages; half of RAM is the kernel's own bound."""
    layout = layout_of(plan_of())
    start = plan_of().reservation[0].start
    (filler,) = hole_filler(layout, start, 4 << 30) or []
    assert (filler.start, filler.end) == (
        start + layout.control_pages * PAGE,
        layout.segments[0].start,
    )
    assert filler.stored_bytes == 0
    total = filler.memory_bytes + sum(s.memory_bytes for s in layout.segments)
    assert hole_filler(layout, start, 2 * total) == [filler]
    assert hole_filler(layout, start, 2 * total - 2 * PAGE) is None
    assert hole_filler(layout, start, 2 * total, PAGE) is None
    assert (
        hole_filler(layout, layout.segments[0].start - layout.control_pages * PAGE, 4 << 30) == []
    )


def test_other_errors_are_no_judgement(some: ShrinkHost) -> None:
    """EBUSY is said as it is, and no second load is tried."""
    some.refuse = {"load": 16}
    with pytest.raises(CrashlendError, match="EBUSY"):
        load()
    assert some.events == ["load"]
