# SPDX-License-Identifier: LGPL-2.1-or-later
"""The checks of faults on made-up trials: a sound one passes, and each false fact fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import pytest

from crashlend.lab.fault_checks import check_crash, check_faults, why_not_back
from crashlend.lab.kernels import Kernel
from crashlend.lab.outcome import Outcome
from crashlend.lab.qemu import Report
from crashlend.lab.spec import CAME_BACK, Check, Command, Saved, Spec, Trial
from crashlend.lab.suite import judge
from crashlend.sizes import GIB, MIB

KERNEL = Kernel("6.1", "6.1.0", "bookworm", Path("vmlinuz"), Path("modules"), None)
SPEC = Spec(kernel=KERNEL, whole=True)
BLOCK = 128 * MIB
LENT = [[2 * BLOCK, 4 * BLOCK]]
Event = dict[str, Any]


def command(argv: list[str], **more: Any) -> Event:
    event = {"event": "command", "argv": argv, "exit": 0, "stderr": "", "answer": None}
    return {**event, "mem_total": 2 * GIB, "blocks": {"Movable": 2}, **more}


def events(*commands: Event) -> list[Event]:
    """A guest that booted, did ``commands``, loaded and panicked."""
    nodes = {"0": [2 * GIB, {"Movable": 2, "DMA32": 14}]}
    return [
        {"event": "booted", "mem_total": 2 * GIB, "block_bytes": BLOCK},
        {"event": "prepared", "exit": 0, "output": "hugepages 32\n"},
        *commands,
        {"event": "loaded", "mem_total": 2 * GIB, "nodes": nodes},
        {"event": "crashing"},
    ]


def failing(found: list[Event], spec: Spec = SPEC) -> list[str]:
    return [c.name for c in check_faults(spec, Report(found), {"lent": LENT}) if not c.ok]


def test_a_whole_production_passes() -> None:
    """A command that failed and lost nothing is as it must be."""
    assert failing(events(command(["load"], exit=1))) == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda e: e[3].update(mem_total=2 * GIB - 4096),
        lambda e: e[3]["nodes"]["0"][1].update(offline=1),
        lambda e: e[2].update(mem_total=2 * GIB - BLOCK),
        lambda e: e[2].update(blocks={"offline": 1}),
        lambda e: e.pop(3),
    ],
    ids=["a page", "a block", "after a failure", "offline after a failure", "never loaded"],
)
def test_lost_memory_fails(spoil: Callable[[list[Event]], object]) -> None:
    """Less of MemTotal or a block offline, at the end or after a command that failed."""
    found = events(command(["load"], exit=1))
    found[3]["nodes"] = {"0": [2 * GIB, {"Movable": 2}]}
    spoil(found)
    assert failing(found) == ["production lost no memory"]
    assert failing(found, replace(SPEC, whole=False)) == []


def test_an_errno_must_be_named() -> None:
    """A fault named after an errno is one only if the kernel answered so."""
    good = command(["load"], fault="EINVAL", exit=1, stderr="crashlend: refused (EINVAL): why")
    assert failing(events(good)) == []
    assert failing(events({**good, "stderr": "crashlend: (ENOMEM)"})) == [
        "the kernel answered EINVAL"
    ]


def hog(verb: str, **answer: Any) -> Event:
    return command(["/lab/hogs.py", verb], answer=answer)


def pinned(lent_block: int = 9, reason: str = "not emptied within 2 s") -> list[Event]:
    refused = [{"block": 6, "reason": reason}]
    load = command(["load"], answer={"refused": refused})
    return events(hog("pin", pipe=[6, lent_block], ring=[7]), load)


def test_pinned_blocks_are_given_up_and_not_lent() -> None:
    """Tried, given up for time, none of them lent; each of these can be false."""
    name = ["blocks with pinned pages are given up in time and not lent"]
    assert failing(pinned()) == []
    assert failing(pinned(lent_block=3)) == name
    assert failing(pinned(reason="it holds pages that cannot move")) == name
    none = events(hog("pin", pipe=[], ring=[7]), command(["load"], answer={"refused": []}))
    assert failing(none) == name


@pytest.mark.parametrize(("before", "after"), [(0, 0), (9, 1)])
def test_pages_pinned_for_good_leave(before: int, after: int) -> None:
    """They were in lent memory, else nothing is shown, and none is afterwards."""
    assert failing(events(hog("register", pages=10, in_lent_before=9, in_lent_after=0))) == []
    found = events(hog("register", pages=10, in_lent_before=before, in_lent_after=after))
    assert failing(found) == ["what is pinned for good leaves lent memory first"]


@pytest.mark.parametrize("gone", ["HugePages_Total", "AnonHugePages", "Zswapped"])
def test_huge_pages_and_zswap_are_there(gone: str) -> None:
    """All that were asked for, some transparent ones, something in zswap."""
    facts = {"HugePages_Total": 32, "AnonHugePages": MIB, "Zswapped": MIB}
    assert failing(events(hog("huge", **facts))) == []
    assert len(failing(events(hog("huge", **{**facts, gone: 0})))) == 1


def crashed(kind: str, dmesg: str) -> list[str]:
    spec = replace(SPEC, crash=kind)
    return [c.name for c in check_crash(spec, Saved({}, dmesg, None)) if not c.ok]


def test_the_log_tells_where_the_kernel_died() -> None:
    """The CPU and the context are those that were asked for."""
    log = (
        "crashlend_trigger: panic on CPU 1: task 0, interrupt 1, softirq 0, NMI 0\n"
        "CPU: 1 PID: 7 Comm: kworker\n"
    )
    assert crashed("irq-cpu1", log) == []
    assert crashed("irq-cpu0", log) == ["CPU 0 panicked"]
    assert crashed("softirq-cpu1", log) == ["it died here: panic() in a softirq"]
    assert crashed("nmi", log) != []
    assert crashed("none", "") == []


def outcome(**more: Any) -> Outcome:
    """A machine that came back without a dump, for the reason "no /proc/vmcore"."""
    checks = (
        Check("production lost no memory", True, ""),
        Check("crash kernel came up", False, ""),
    )
    capture = {"ok": False, "reason": "no /proc/vmcore: no header"}
    one = Outcome(SPEC, Report(events()), {}, capture, "", checks, "")
    return replace(one, **more)


TRIAL = Trial("x", "", "6.1", expect=CAME_BACK, words="no /proc/vmcore")


def test_a_machine_that_came_back_passes() -> None:
    """No dump, but a reset and the reason, which may stand on the console alone."""
    assert judge(TRIAL, outcome()) == ""
    end = "Kernel panic - not syncing: sysrq triggered crash\nRebooting in 1 seconds..\n"
    console = outcome(capture={}, console=end)
    assert judge(replace(TRIAL, words="Rebooting in"), console) == ""


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"checks": (Check("production lost no memory", False, "a lot"),)}, "a lot"),
        ({"report": Report(events()[:-1])}, "never got as far"),
        (
            {"report": Report([*events(), {"event": "failed", "why": "nothing happened"}])},
            "nothing happened",
        ),
        ({"report": Report(events(), timed_out=True)}, "deadline"),
        ({"report": Report(events(), lost="silent")}, "silent"),
        ({"capture": {"ok": True, "reason": ""}}, "saved a dump"),
        ({"capture": {"ok": False, "reason": "the disk is full"}}, "no 'no /proc/vmcore'"),
        ({"capture": {}}, "no 'no /proc/vmcore'"),
    ],
)
def test_a_machine_that_did_not_come_back_fails(more: dict[str, Any], why: str) -> None:
    """Each way to prove nothing is told."""
    assert why in why_not_back(outcome(**more), TRIAL.words)


def test_commands_may_have_to_say_something() -> None:
    """A fault and words belong to a command; by default there are none."""
    assert (Command(("load",)).fault, Command(("load",)).says) == ("", "")
