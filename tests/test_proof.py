# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel judges how exact the plan is, at every load, and is remembered."""

from __future__ import annotations

import errno
import json
import os
import signal
from typing import TYPE_CHECKING, Callable

import pytest

from build import MIB, PAGE
from crashlend.config import Settings
from crashlend.errors import CrashlendError, Terminated
from crashlend.proof import TRIES, hole_filler, may_ask
from crashlend.system import kexec, loading
from test_plan import layout_of, plan_of
from test_shrink import START, ShrinkHost, assert_loaded, load, some

if TYPE_CHECKING:
    from crashlend.arch import Segment

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


class Counting:
    """kernel.kexec_load_limit_panic: every call counts down, at 0 the kernel says EPERM."""

    def __init__(self, host: ShrinkHost, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.host, self.limit = host, limit
        self.show()
        for name in ("load", "unload"):
            monkeypatch.setattr(kexec, name, self.counted(getattr(kexec, name)))

    def show(self) -> None:
        self.host.memory.files["/proc/sys/kernel/kexec_load_limit_panic"] = b"%d\n" % self.limit

    def counted(self, real: Callable[..., None]) -> Callable[..., None]:
        def call(*args: object) -> None:
            if self.limit == 0:
                raise kexec._error(errno.EPERM)
            self.limit -= 1
            self.show()
            real(*args)

        return call


@pytest.mark.parametrize("takes", [4, 5, 6])
@pytest.mark.parametrize("margin", [0, None])
@pytest.mark.parametrize("limit", range(1, 9))
def test_no_limit_is_so_low_that_a_shrink_leaves_no_image(
    limit: int, margin: int | None, takes: int, some: ShrinkHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the kernel takes, and whether the reservation shrinks or not."""
    some.takes = takes
    Counting(some, limit, monkeypatch)
    load(Settings(lend=256 * MIB, shrink_margin=margin), shrink=True)
    assert_loaded(some)


def test_a_signal_waits_while_one_image_is_gone_and_the_next_not_there(
    some: ShrinkHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM right after the refusal that dropped the old image: the new one is loaded all the same."""
    some.takes = 5
    real = some.load_image

    def struck(entry: int, segments: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        real(entry, segments)

    monkeypatch.setattr(kexec, "load", struck)
    with pytest.raises(Terminated):
        load()
    assert some.events == ["load", "load"]
    assert_loaded(some)


def test_a_filler_that_ram_has_become_too_small_for_is_left_out(
    some: ShrinkHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EINVAL after a balloon has grown: the image is loaded without it, and nothing is claimed."""
    real = some.load_image

    def refused(entry: int, segments: list[tuple[Segment, bytes]]) -> None:
        if any(s.name == "hole" for s, _ in segments):
            raise kexec._error(errno.EINVAL)
        real(entry, segments)

    monkeypatch.setattr(kexec, "load", refused)
    assert load().proven is None
    assert_loaded(some)


def test_a_reservation_for_one_kind_of_kernel_is_loaded_without_its_record(
    some: ShrinkHost,
) -> None:
    """After an exact shrink the state file is lost: what was learned is gone, kdump is not."""
    settings = Settings(lend=256 * MIB, shrink_margin=0)
    load(settings, shrink=True)
    (some.root / "run/crashlend/state.json").unlink()
    some.machine.zone.update(dict.fromkeys((38, 39), "Normal"))
    some.loaded = False
    assert load(settings).plan.layout is not None
    assert_loaded(some)
