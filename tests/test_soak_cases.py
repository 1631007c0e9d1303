# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the soak draws: the same everywhere, only what must work, and all of what it promises."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crashlend.crashkernel.grammar import lent_request
from crashlend.lab.checks import asked_bytes
from crashlend.lab.crashes import KINDS, Crash, find_crash
from crashlend.lab.kernels import Kernel
from crashlend.lab.soak import cases as tables
from crashlend.lab.soak.cases import SoakCase, draw
from crashlend.lab.spec import Command
from crashlend.sizes import GIB, MIB

DRAWN = [draw("test", index) for index in range(2000)]
KERNEL = Kernel("6.1", "6.1.0", "bookworm", Path("vmlinuz"), Path("modules"), None)


def word(case: SoakCase, name: str) -> int:
    """The MiB of ``name=SIZEM`` on the case's command line; 0 without it."""
    found = re.search(rf"(?:^| ){name}=(\d+)M(?: |$)", case.cmdline)
    return int(found[1]) if found else 0


def reserved(case: SoakCase) -> int:
    return word(case, "crashkernel")


def zone_room(case: SoakCase) -> int:
    """MiB of a zone that are left when all that may lie in it does."""
    return word(case, "movablecore") - reserved(case) - 128 * (case.nodes - 1)


def crash_of(case: SoakCase) -> Crash:
    """What the lab makes of it; UsageError where it knows no such crash."""
    crash = find_crash(case.crash)
    assert crash
    return crash


# What must hold of every guest that is drawn: a name, and whether it does.
RULES: dict[str, Callable[[SoakCase], object]] = {
    "nodes have CPUs": lambda c: c.nodes <= c.cpus,
    "QEMU can have as much": lambda c: c.memory_bytes % 8192 == 0,
    "nodes have memory": lambda c: c.memory_bytes >= c.nodes * 512 * MIB,
    "the lab knows the crash": lambda c: crash_of(c),
    "the CPU that panics exists": lambda c: (crash_of(c).cpu or 0) < c.cpus,
    "modules are built for no newer kernel than Debian 12's": lambda c: (
        c.kernel in ("5.10", "6.1") or not crash_of(c).kind.module
    ),
    "memory runs out in a guest that does nothing else": lambda c: (
        c.crash != "oom" or c.load == "idle"
    ),
    "it does not crash in a load of its own": lambda c: "{reload}" not in crash_of(c).kind.script,
    "a reservation is on the command line": lambda c: reserved(c) * MIB == c.reservation_bytes,
    "it is the last of its words": lambda c: re.search(r"crashkernel=\d+M$", c.cmdline),
    "cma needs a kernel that has it": lambda c: "cma" not in c.source or c.kernel == "7.3",
    "and its word": lambda c: ("cma" in c.source) <= (",cma" in c.cmdline),
    "where the kernel has cma, its word makes it the lender": lambda c: (
        c.kernel != "7.3" or (",cma" in c.cmdline) == ("cma" in c.source)
    ),
    "a zone needs its word": lambda c: ("movable-zone" in c.source) == bool(word(c, "movablecore")),
    "a zone and cma exclude each other": lambda c: (
        not (word(c, "movablecore") and ",cma" in c.cmdline)
    ),
    "a zone alone has what is asked for": lambda c: (
        c.source != "movable-zone" or zone_room(c) * MIB >= c.lend_bytes + 256 * MIB
    ),
    "a zone that is to be topped up has not": lambda c: (
        c.source != "movable-zone,movable" or word(c, "movablecore") * MIB <= c.lend_bytes
    ),
    "a zone leaves the kernel memory": lambda c: (
        c.memory_bytes - word(c, "movablecore") * MIB >= 512 * MIB
    ),
    "at most half of memory becomes movable": lambda c: (
        "movable" not in c.source.split(",")
        or 2 * (c.lend_bytes + word(c, "movablecore") * MIB) < c.memory_bytes
        or (c.source == "movable-zone,movable" and 2 * c.lend_bytes < c.memory_bytes)
    ),
    "there is memory for lent, reserved and user space": lambda c: (
        c.memory_bytes >= c.lend_bytes + c.reservation_bytes + 512 * MIB
    ),
    "what shrinks has lent memory": lambda c: c.reserve == "keep" or c.lend_bytes >= 256 * MIB,
    "what shrinks is loaded by kexec_load": lambda c: c.reserve == "keep" or c.syscall == "load",
    "what shrinks was ample": lambda c: c.reserve == "keep" or c.reservation_bytes >= 160 * MIB,
    "a crash kernel in its reservation has room": lambda c: (
        c.placement != "reserved" or (c.reservation_bytes >= 128 * MIB and c.reserve == "keep")
    ),
    "lent placement has lent memory": lambda c: c.placement != "lent" or c.lend_bytes > 0,
    "kexec_file_load has cma or nothing": lambda c: (
        c.syscall == "load" or (c.source in ("cma", "none") and c.placement == "auto")
    ),
    "a crash kernel has 224 MiB": lambda c: c.lend_bytes + c.reservation_bytes >= 224 * MIB,
    "a small reservation has 256 MiB lent": lambda c: (
        c.reservation_bytes >= 128 * MIB or c.lend_bytes >= 256 * MIB
    ),
    "where lending may get little, the reservation is ample": lambda c: (
        c.load_when != "before"
        or c.load in ("forks", "reads")
        or (c.reservation_bytes >= 128 * MIB and c.reserve == "keep")
    ),
    "huge pages come after lending": lambda c: c.load != "hugepages" or c.load_when == "last",
    "what goes into lent memory has some": lambda c: c.load_when != "into" or c.lend_bytes > 0,
    "only the page cache gets into cma": lambda c: (
        c.load_when != "into" or "cma" not in c.source or c.load == "cache"
    ),
    "lent memory that a load has is not marked too": lambda c: (
        not (c.is_poisoned and c.load_when == "into")
    ),
    "loads have an amount": lambda c: (c.load_amount > 0) == (c.load not in ("idle", "cache")),
    "anonymous memory leaves 250 MiB": lambda c: (
        c.load != "anon"
        or (c.memory_bytes - c.reservation_bytes) * (100 - c.load_amount) >= 100 * 250 * MIB
    ),
    "and what must move finds room": lambda c: (
        (c.load, c.load_when) != ("anon", "before")
        or (c.memory_bytes - c.reservation_bytes) * (100 - c.load_amount)
        >= 100 * (c.lend_bytes + 250 * MIB)
    ),
    "the lender that is told can do it": lambda c: c.lender in ("auto", c.source),
    "by itself crashlend takes cma alone": lambda c: (
        c.source != "cma,movable" or c.lender != "auto"
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_only_what_must_work_is_drawn(rule: str) -> None:
    """The rule holds for each of two thousand guests."""
    assert [asdict(case) for case in DRAWN if not RULES[rule](case)] == []


@settings(max_examples=300)
@given(seed=st.text("abcXYZ0189.-_", min_size=1, max_size=12), index=st.integers(0, 10**6))
def test_so_it_is_for_every_seed(seed: str, index: int) -> None:
    """No seed and no index draws what breaks a rule."""
    case = draw(seed, index)
    assert [rule for rule, holds in RULES.items() if not holds(case)] == []


def test_a_guest_is_the_same_on_every_machine() -> None:
    """A seed and an index are all the chance there is; what they give was noted on another Python."""
    assert draw("golden", 0) == draw("golden", 0)
    chance = Random("golden/0").choices(range(1000), weights=range(1, 1001), k=6)
    assert chance == [728, 268, 838, 863, 762, 421]


def test_each_seed_and_each_index_is_another_guest() -> None:
    """Two thousand guests are nearly as many different ones, and another seed has others."""
    kinds = {tuple({**asdict(case), "index": 0}.values()) for case in DRAWN}
    assert len(kinds) > 1900
    assert asdict(draw("other", 0)).items() - asdict(DRAWN[0]).items() > {("seed", "other")}


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("kernel", set(tables.KERNELS)),
        ("source", {*tables.SOURCES, *tables.CMA_SOURCES}),
        ("cpus", set(tables.CPUS)),
        ("nodes", set(tables.NODES)),
        ("memory_bytes", set(tables.MEMORY)),
        ("firmware", {"bios", "uefi"}),
        ("machine", {"pc", "q35"}),
        ("cpu_model", set(tables.CPU_MODELS)),
        ("reserve", {"keep", "auto", "exact"}),
        ("placement", {"auto", "lent", "reserved"}),
        ("syscall", {"load", "file"}),
        ("load", {name for name, _ in tables.LOADS}),
        ("load_when", {"", "before", "into", "last"}),
    ],
)
def test_all_that_is_promised_is_drawn(field: str, values: set[object]) -> None:
    """No weight, rule or bound keeps a value of the tables from being drawn."""
    assert {getattr(case, field) for case in DRAWN} == values


def test_every_crash_is_drawn() -> None:
    """All kinds of the lab's table but those in the middle of crashlend's own work, on every CPU."""
    drawn = {crash_of(case).kind.name for case in DRAWN}
    assert drawn == {kind.name for kind in KINDS if "{reload}" not in kind.script}
    assert {crash_of(case).cpu for case in DRAWN} == {None, *range(8)}


def test_most_guests_are_small() -> None:
    """Sixty trials must be done on two cores in less than forty minutes."""
    assert sorted(case.memory_bytes for case in DRAWN)[len(DRAWN) // 2] <= 2 * GIB
    assert sum(case.cpus <= 2 for case in DRAWN) > len(DRAWN) * 0.6


def test_the_trial_asks_for_what_was_drawn() -> None:
    """What the trial's own check demands is what the case has, by word or by flag."""
    for case in DRAWN:
        spec = case.spec(KERNEL)
        assert asked_bytes(spec) == case.lend_bytes
        if case.by_cmdline:
            assert lent_request(case.cmdline.encode()) == case.lend_bytes
        loads = [c for c in spec.commands if c.program == "agent"]
        assert len(loads) == (case.load != "idle")


def test_a_load_begins_where_it_was_drawn() -> None:
    """One that presses on lending comes before it, and less will do then; others come after."""
    before = next(c for c in DRAWN if (c.load, c.load_when) == ("anon", "before") and c.lend_bytes)
    spec = before.spec(KERNEL)
    assert [c.words[0] for c in spec.commands] == ["work", "load"]
    assert spec.least_lent_bytes == min(128 * MIB, before.lend_bytes)
    last = next(case for case in DRAWN if (case.load, case.load_when) == ("dirty", "last"))
    work = Command(("work", "dirty", str(last.load_amount), "last"), program="agent")
    assert last.spec(KERNEL).commands == (Command(("load",)), work)
    assert last.spec(KERNEL).least_lent_bytes is None
