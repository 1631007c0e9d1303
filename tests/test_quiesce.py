# SPDX-License-Identifier: LGPL-2.1-or-later
"""Late DMA: what the setting means, which functions are switched off, when lending is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from build import GIB, facts, payload, pci_function
from crashlend.config import Settings
from crashlend.errors import RefusedError
from crashlend.facts import CmaEvidence, EndlessWriter, Facts, PciFunction, Watchdog
from crashlend.plan import Plan, make_plan
from crashlend.quiesce import Quiesce, Wish, is_the_systems, parse_quiesce, quiesce_notes

PAYLOAD = payload()
DISK, CARD, PORT = "0000:00:04.0", "0000:00:02.0", "0000:00:1c.0"
HOST = facts(
    files={
        **pci_function("0000:00:00.0", 0x060000),
        **pci_function("0000:00:01.0", 0x060100),
        **pci_function(CARD, 0x030000, "ast"),
        **pci_function(DISK, 0x010802, "nvme"),
        **pci_function("0000:00:05.0", 0x080600),
        **pci_function(PORT, 0x060400, "pcieport", header=1),
        **pci_function("0000:01:00.0", 0x020000, "e1000e", master=False),
    }
)
GPU = EndlessWriter("GPU", "i915", CARD, "it follows notifiers", "2 open files")


def plan_of(some: Facts = HOST, **settings: Any) -> Plan:
    return make_plan(some, Settings(**settings), PAYLOAD)


def with_cma(some: Facts) -> Facts:
    """The same host, whose kernel made a ,cma range of 1 GiB."""
    made = ((4 * GIB, 5 * GIB),)
    return replace(some, cma_ranges=made, cma_evidence=CmaEvidence(marked=made))


def writing(*writers: EndlessWriter) -> Facts:
    return replace(HOST, endless_writers=writers)


def watched(timeout: int, **more: Any) -> Facts:
    return replace(HOST, watchdogs=(Watchdog("watchdog0", "iTCO_wdt", True, timeout, **more),))


def test_a_watch_that_can_not_read_all_memory_twice_is_told() -> None:
    """Its limit knows nothing of how much is lent."""
    big = quiesce_notes(HOST, Wish(), Quiesce(0, "", (), 1.0, 6.0), 64 * GIB)
    assert any("watch=1:34" in note for note in big)
    assert quiesce_notes(HOST, Wish(), Quiesce(0, "", (), 1.0, 6.0), GIB) == ()


# --- the setting ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wish"),
    [
        ("wait=10", Wish(10.0)),
        ("wait=0", Wish()),
        ("bus-masters-off", Wish(bus_masters="endpoints")),
        ("wait=0.5, bus-masters-off=bridges", Wish(0.5, "bridges")),
        ("watch=2", Wish(0.0, "", 2.0, 12.0)),
        ("watch=2:600,wait=600,bus-masters-off", Wish(600.0, "endpoints", 2.0, 600.0)),
    ],
)
def test_the_setting_s_words_mean(text: str, wish: Wish) -> None:
    """What is not named is not done; the limit of a watch is six times its length by default."""
    assert parse_quiesce(text) == wish


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            ",",
            "wait",
            "wait=",
            "wait=601",
            "wait=-1",
            "wait=nan",
            "wait=1e2",
            "wait=10,wait=5",
        ),
        *("wait=10,", "bus-masters-off=all", "bus-masters-off,bus-masters-off=bridges"),
        *("watch", "watch=0", "watch=2:1", "watch=2:", "watch=2:3601", "watch=601", "Wait=1", "10"),
        *("wait=٣", "bus-masters-on"),
    ],
)
def test_what_makes_no_sense_is_refused(text: str) -> None:
    """Unknown or doubled items, numbers out of bounds, a limit below the watch's own length."""
    with pytest.raises(ValueError, match=r"^no (item of |value of )?dma_quiesce"):
        parse_quiesce(text)


def seconds(least: float, most: float) -> st.SearchStrategy[float]:
    return st.integers(int(least * 10), int(most * 10)).map(lambda tenths: tenths / 10)


@given(
    st.builds(
        Wish,
        seconds(0, 600),
        st.sampled_from(["", "endpoints", "bridges"]),
    ),
    st.one_of(st.just((0.0, 0.0)), st.tuples(seconds(0.1, 600), seconds(0, 3000))),
)
def test_every_wish_survives_its_own_text(wish: Wish, watch: tuple[float, float]) -> None:
    """The text of a wish reads back as that wish, whatever it is made of."""
    length, more = watch
    wish = replace(wish, watch_seconds=length, watch_limit_seconds=length + more)
    assert parse_quiesce(str(wish)) == replace(
        wish, watch_limit_seconds=float(f"{wish.watch_limit_seconds:.6f}")
    )


@given(st.text(alphabet="waitchbus-mrof=:,.0123456789 ", max_size=40))
def test_any_text_is_a_wish_or_a_value_error(text: str) -> None:
    """Nothing else comes out, and a wish keeps the bounds."""
    try:
        wish = parse_quiesce(text)
    except ValueError:
        return
    assert 0 <= wish.wait_seconds <= 600
    assert wish.watch_seconds <= wish.watch_limit_seconds <= 3600


# --- what is done --------------------------------------------------------------------------------


def test_the_default_waits_and_touches_no_device() -> None:
    """10 s as upstream, no function, no watch."""
    quiesce = plan_of().quiesce
    assert (quiesce.wait_seconds, quiesce.bus_masters, quiesce.watch_seconds) == (10.0, (), 0.0)


def test_endpoints_are_switched_off_and_nothing_of_the_system() -> None:
    """Every endpoint, a bus master now or not; no host bridge, ISA bridge, port or IOMMU."""
    plan = plan_of(dma_quiesce="bus-masters-off")
    assert plan.quiesce.bus_masters == (CARD, DISK, "0000:01:00.0")
    assert plan.quiesce.wait_seconds == 0
    assert "bus mastering of 3 functions off" in plan.quiesce.in_words()


def test_bridges_go_last_and_only_when_asked() -> None:
    """What is behind a bridge is told first."""
    bridges = plan_of(dma_quiesce="bus-masters-off=bridges").quiesce.bus_masters
    assert bridges == (CARD, DISK, "0000:01:00.0", PORT)


@pytest.mark.parametrize(
    ("kind", "driver", "system"),
    [
        *((0x060000, "", True), (0x060100, "", True), (0x068000, "", True), (0x060400, "", False)),
        *((0x080600, "", True), (0x080000, "", True), (0x080700, "", True)),
        *((0x080501, "sdhci-pci", False), (0x088000, "", True), (0x088000, "idxd", False)),
        *((0x010802, "nvme", False), (0x030000, "", False), (0x120000, "", False)),
    ],
)
def test_system_functions_are_known_by_class(kind: int, driver: str, system: bool) -> None:
    """Bridges of the system, IOMMUs, timers; not ports, SD hosts, DMA engines."""
    assert is_the_systems(PciFunction("0000:00:01.0", kind, driver, False, None, "")) == system


def test_functions_out_of_reach_are_named() -> None:
    """Ports 0xcf8 and 0xcfc know no segments, and virtual functions can't be found there."""
    some = replace(
        HOST,
        pci_functions=(
            *HOST.pci_functions,
            PciFunction("0001:00:00.0", 0x010802, "nvme", False, True, ""),
            PciFunction("10000:01:00.0", 0x010802, "nvme", False, True, ""),
            PciFunction("0000:01:10.0", 0x020000, "ixgbevf", False, True, "0000:01:00.0"),
        ),
    )
    plan = plan_of(some, dma_quiesce="bus-masters-off")
    assert plan.quiesce.bus_masters == (CARD, DISK, "0000:01:00.0")
    note = next(n for n in plan.notes if "stays on" in n)
    assert "3 functions stays on (1 virtual ones, 2 in a segment above 0" in note
    assert "0001:00:00.0" in note
    assert not any("stays on" in n for n in plan_of(some).notes)


def test_where_sysfs_names_no_function_the_plan_says_so() -> None:
    """An empty list is not taken for done."""
    plan = plan_of(replace(HOST, pci_functions=()), dma_quiesce="bus-masters-off")
    assert any("names no PCI function" in note for note in plan.notes)


def test_nothing_is_done_where_nothing_is_lent() -> None:
    """As kexec -p: no wait, no device touched."""
    quiesce = plan_of(lend=0, dma_quiesce="wait=10,bus-masters-off,watch=2").quiesce
    assert (quiesce.wait_seconds, quiesce.bus_masters, quiesce.watch_seconds) == (0.0, (), 0.0)


def test_the_kernel_s_own_wait_replaces_ours_and_nothing_else() -> None:
    """With ,cma ranges no second wait; bus masters and the watch stay."""
    some = with_cma(HOST)
    quiesce = plan_of(some, dma_quiesce="wait=10,bus-masters-off,watch=1").quiesce
    assert (quiesce.wait_seconds, len(quiesce.bus_masters)) == (0.0, 3)
    assert (quiesce.watch_seconds, quiesce.watch_limit_seconds) == (1.0, 6.0)


def test_the_plan_s_json_has_method_seconds_and_functions() -> None:
    """What scripts read: ``plan --json``."""
    value = plan_of(dma_quiesce="wait=3,bus-masters-off,watch=1:4").to_json()["quiesce"]
    assert value == {
        "wait_seconds": 3.0,
        "reason": "DMA into lent memory must have ended (setting dma_quiesce)",
        "bus_masters": [CARD, DISK, "0000:01:00.0"],
        "watch_seconds": 1.0,
        "watch_limit_seconds": 4.0,
    }


# --- writers that no wait ends -------------------------------------------------------------------


def test_a_writer_without_end_refuses_lending_until_it_is_switched_off() -> None:
    """The refusal names it, why, what shows it, and the way out; that way is accepted (23)."""
    with pytest.raises(RefusedError, match="i915") as caught:
        plan_of(writing(GPU))
    assert "2 open files" in str(caught.value)
    assert "--dma-quiesce wait=10,bus-masters-off" in caught.value.hint
    assert "--lend 0" in caught.value.hint
    assert CARD in plan_of(writing(GPU), dma_quiesce="bus-masters-off").quiesce.bus_masters
    assert plan_of(writing(GPU), lend=0).lent.size == 0


@pytest.mark.parametrize("address", ["", "0001:00:02.0", "0000:00:05.0", "0000:07:00.0"])
def test_a_writer_out_of_reach_is_refused_with_bus_masters_off_too(address: str) -> None:
    """Unknown, in another segment, a system function, gone: nothing would stop it."""
    some = writing(replace(GPU, address=address))
    for setting in ("wait=10", "bus-masters-off"):
        with pytest.raises(RefusedError) as caught:
            plan_of(some, dma_quiesce=setting)
        assert "can't be switched off" in caught.value.hint


def test_the_kernel_s_ranges_need_it_too() -> None:
    """Its 10 s end such a writer as little as ours."""
    with pytest.raises(RefusedError, match="no wait ends"):
        plan_of(with_cma(writing(GPU)))


def test_without_root_a_writer_is_a_note() -> None:
    """Who uses what is for root to see: a coarse plan names the doubt and refuses nothing."""
    some = replace(writing(GPU), privileged=False, iomem=())
    notes = plan_of(some, lend=GIB, lender="movable").notes
    assert any("i915" in note and "may refuse" in note for note in notes)


# --- kexec_file_load -----------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["bus-masters-off", "wait=10,watch=2"])
def test_kexec_file_load_has_no_place_for_it(setting: str) -> None:
    """Refused when set, because the kernel's own purgatory would not do it."""
    some = with_cma(HOST)
    with pytest.raises(RefusedError, match="kexec_file_load"):
        plan_of(some, syscall="file", dma_quiesce=setting)
    assert plan_of(some, syscall="file", lender="none", dma_quiesce=setting).lent.size == 0


def test_kexec_file_load_waits_as_the_kernel_does() -> None:
    """The plan tells the kernel's wait; a writer without end can only be told of."""
    plan = plan_of(with_cma(writing(GPU)), syscall="file")
    assert plan.quiesce.wait_seconds == 0
    assert "kernel waits 10 s" in plan.quiesce.reason
    assert any("i915" in note for note in plan.notes)


# --- watchdogs -----------------------------------------------------------------------------------


def test_a_wait_that_an_armed_watchdog_surely_ends_is_refused() -> None:
    """Fed in the very moment of the panic it fires after its timeout (22)."""
    with pytest.raises(RefusedError, match="watchdog0 would reset"):
        plan_of(watched(10, for_good=False))
    assert plan_of(watched(11, for_good=False)).quiesce.wait_seconds == 10
    assert plan_of(watched(10, for_good=False), dma_quiesce="wait=5").quiesce.wait_seconds == 5
    assert plan_of(watched(10, for_good=False), lend=0).lent.size == 0


def test_the_watch_counts_with_its_shortest_and_warns_with_its_longest() -> None:
    """Memory that rests at once takes its length; one that does not, the limit."""
    with pytest.raises(RefusedError):
        plan_of(watched(12, for_good=False), dma_quiesce="wait=10,watch=2")
    plan = plan_of(watched(60, for_good=True), dma_quiesce="wait=10,watch=5:30")
    note = next(n for n in plan.notes if "watchdog0" in n)
    assert "up to 40 s" in note
    assert "can not be stopped" in note


def test_the_kernel_s_own_wait_counts_and_is_not_refused_alone() -> None:
    """It can't be shortened: a note; with ours on top it is refused."""
    some = with_cma(watched(10, for_good=False))
    assert any("watchdog0" in note for note in plan_of(some).notes)
    with pytest.raises(RefusedError, match="after the kernel's own 10 s"):
        plan_of(some, dma_quiesce="watch=1")


def test_a_watchdog_at_rest_or_a_slow_one_says_nothing() -> None:
    """Not armed, without a known timeout, or with more than twice the time."""
    for one in (
        Watchdog("watchdog0", "x", False, 5, False),
        Watchdog("watchdog0", "x", True, None, False),
        Watchdog("watchdog0", "x", True, 21, False),
    ):
        assert not any("watchdog0" in n for n in plan_of(replace(HOST, watchdogs=(one,))).notes)
