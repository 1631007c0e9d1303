# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lab's checks on made-up trials: a sound one passes, and each way to prove nothing fails."""

from __future__ import annotations

import contextlib
import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from crashlend.cli import demo
from crashlend.lab import qemu
from crashlend.lab.checks import _ram_taken_over, asked_bytes, death_by_memory, run_checks
from crashlend.lab.kernels import Kernel
from crashlend.lab.lab_disk import complete_words
from crashlend.lab.outcome import Outcome
from crashlend.lab.qemu import LostVmError, Machine, Report, run_machine
from crashlend.lab.spec import LOST, REFUSED, Command, Saved, Spec, Trial
from crashlend.lab.suite import find, judge, why_not_lost
from crashlend.lab.suites.table import SUITE
from crashlend.lab.trial import remove_traces
from crashlend.ranges import Ranges
from crashlend.sizes import GIB, MIB
from dump_files import kdump

if TYPE_CHECKING:
    from collections.abc import Callable

KERNEL = Kernel("6.1", "6.1.0", "bookworm", Path("vmlinuz"), Path("modules"), None)
SEED = "crashkernel=1G,cma crashkernel=100M"
LOW, LENT = (4096, 0x9FC00), (4 * GIB, 5 * GIB)
RESERVATION, HEADER_AT = (2 * GIB, 2 * GIB + 100 * MIB), 2 * GIB + 100 * MIB - 4096
ROOMS = [LOW, (RESERVATION[0], HEADER_AT), LENT]
RAM = [LOW, (MIB, 3 * GIB), LENT]
SHAPE = {
    "efi": False,
    "acpi": True,
    "host_bridge": "0x1237",
    "cpus": 1,
    "nodes": {"0": [4 * GIB, {"Normal": 24, "Movable": 8}]},
    "crash_ranges": [list(RESERVATION)],
    "block_bytes": 128 * MIB,
    "la57": True,
}
CONSOLE = """\
[   12.4] Kernel panic - not syncing: sysrq triggered crash
[   12.4] CPU: 0 PID: 198 Comm: python3 Not tainted 6.1.0
"""
DEATH = "Kernel panic - not syncing: System is deadlocked on memory"
MAKEDUMPFILE = """\
#!/bin/sh
echo "Kernel panic - not syncing: sysrq triggered crash" >"$3"
"""


def pages(first: int, end: int) -> int:
    return (end - first) // 4096


class Case:
    """A trial that went well, to be spoilt."""

    def __init__(self, directory: Path) -> None:
        self.spec = Spec(kernel=KERNEL, cmdline=SEED)
        self.plan: dict[str, Any] = {
            "lender": "movable",
            "syscall": "load",
            "offer": {
                "asked_bytes": GIB,
                "parts": [{"lender": "movable", "lent": [list(LENT)]}],
            },
            "lent": [list(LENT)],
            "reservation": [list(RESERVATION)],
            "system_ram": [list(r) for r in RAM],
            "layout": {
                "memory_map": [
                    {"start": start, "end": end, "kind": "System RAM"} for start, end in ROOMS
                ]
                + [{"start": HEADER_AT, "end": RESERVATION[1], "kind": "Reserved"}],
                "segments": [],
                "control_pages": 6,
            },
        }
        core = Ranges([(MIB, 3 * GIB)]) - Ranges([RESERVATION])
        self.events: dict[str, dict[str, Any]] = {
            "booted": {"blocks": {}, "mem_total": 4 * GIB, **SHAPE},
            "command": self.command(0),
            "loaded": {"cpus_online": 1},
            "poisoned": {"in_lent_pages": pages(*LENT), "elsewhere_pages": 20000},
            "crashing": {},
            "crash_kernel": {"acpi": True},
            "crash_kernel_memory": {
                "mem_total": 1000 * MIB,
                # the kernel keeps the first 64 KiB from itself
                "ram": [[65536, LOW[1]], *([s, e] for s, e in ROOMS[1:])],
            },
            "saved": {},
            "scanned": {
                "pt_loads": [[r.start, r.end, 0] for r in core],
                "register_notes": 1,
                "in_lent_pages": 0,
                "elsewhere_pages": 20000,
            },
        }
        self.proven: bool | None = True
        self.timed_out = False
        self.lost = ""
        self.console = CONSOLE
        vmcore = directory / "vmcore"
        present = [(r.start // 4096, r.end // 4096) for r in core]
        vmcore.write_bytes(kdump(present=present, max_pfn=5 * GIB // 4096))
        self.saved = Saved(
            {
                "ok": True,
                "crash_kernel": {"ram_ranges": [[s, e] for s, e in ROOMS]},
                "purgatory": {"steps": [{"step": "verify", "ms": 9, "regions": 4, "bad": 0}]},
            },
            "",
            vmcore,
            {
                "lent": {"ranges": [list(LENT)]},
                "holes": [
                    {"why": "lent", "lender": "movable", "ranges": [list(LENT)]},
                    {"why": "reservation", "lender": None, "ranges": [list(RESERVATION)]},
                    {"why": "first-mib", "lender": None, "ranges": [[0, MIB]]},
                ],
            },
        )

    def command(self, code: int, stderr: str = "") -> dict[str, Any]:
        return {
            "argv": ["load"],
            "exit": code,
            "expected": 0,
            "seconds": 1.0,
            "stderr": stderr,
            "answer": {"plan": self.plan} if code == 0 else None,
        }

    def outcome(self) -> Outcome:
        if "command" in self.events and self.events["command"]["exit"] == 0:
            answer = {"plan": self.plan, "already": False, "proven": self.proven}
            self.events["command"]["answer"] = answer
            plan = self.plan
        else:
            plan = {}
        events = [
            {"event": name, **values, "at": float(at)}
            for at, (name, values) in enumerate(self.events.items())
        ]
        report = Report(events, 60.0, self.timed_out, self.lost)
        return Outcome(
            spec=self.spec,
            report=report,
            plan=plan,
            capture=self.saved.capture,
            vmcore_path="",
            checks=tuple(run_checks(self.spec, report, plan, self.saved)),
            kept="",
            death_by_memory=death_by_memory(self.console, self.lost),
        )

    def lend_nothing(self) -> None:
        """As crashlend does with lender none; everything else fits that."""
        self.plan.update(lender="none", lent=[])
        self.plan["offer"]["parts"] = []
        self.saved.holes.update(lent={"ranges": []}, holes=self.saved.holes["holes"][1:])
        entries = self.plan["layout"]["memory_map"]
        self.plan["layout"]["memory_map"] = [e for e in entries if e["start"] < LENT[0]]
        rooms = [[s, e] for s, e in ROOMS if s < LENT[0]]
        self.saved.capture["crash_kernel"]["ram_ranges"] = rooms
        self.events["crash_kernel_memory"].update(ram=rooms, mem_total=50 * MIB)
        self.events["scanned"]["pt_loads"].append([*LENT, 0])
        self.events["scanned"]["elsewhere_pages"] += pages(*LENT)

    def die(self) -> None:
        """Turn it into a control that died of OOM."""
        self.lend_nothing()
        self.spec = replace(self.spec, lender="none")
        for name in ("crash_kernel", "crash_kernel_memory", "saved", "scanned"):
            del self.events[name]
        self.saved = Saved({}, "", None)
        self.console += f"[    1.4] {DEATH}\r\n[    1.4] Rebooting in 10 seconds..\r\n"


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    """A sound trial; makedumpfile is one that likes every dump."""
    tool = tmp_path / "bin/makedumpfile"
    tool.parent.mkdir()
    tool.write_text(MAKEDUMPFILE)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    return Case(tmp_path)


MOVABLE = Trial("made-up", "", "6.1")
CONTROL = Trial("control", "", "6.1", expect=LOST, lender="none")


def test_sound_trial_passes(case: Case) -> None:
    outcome = case.outcome()
    assert judge(MOVABLE, outcome) == ""
    assert outcome.ok
    assert json.dumps(outcome.to_json())


# ---- nothing lent, or by another lender


def test_lending_nothing_fails(case: Case) -> None:
    """The old checks all pass; what was asked for is not there."""
    case.lend_nothing()
    failed = [c.name for c in case.outcome().checks if not c.ok]
    assert failed == ["as much is lent as was asked for"]
    assert judge(MOVABLE, case.outcome())
    assert judge(replace(MOVABLE, lender="none"), case.outcome())


@pytest.mark.parametrize(
    ("steps", "passes"),
    [
        ([{"step": "wait", "ms": 1500}, {"step": "verify", "ms": 9, "bad": 0}], True),
        ([{"step": "wait", "ms": 1499}, {"step": "verify", "ms": 9, "bad": 0}], False),
        ([{"step": "wait", "ms": 1500}, {"step": "verify", "ms": 9, "bad": 1}], False),
        ([{"step": "wait", "ms": 1500}], False),
        ([], False),
    ],
)
def test_purgatory_must_have_waited_and_verified(
    steps: list[dict[str, Any]], passes: bool, case: Case
) -> None:
    """Its own record counts: a slow guest could pass for one that waited."""
    case.plan["quiesce"] = {"wait_seconds": 1.5}
    case.saved.capture["purgatory"] = {"steps": steps}
    failed = [c.name for c in case.outcome().checks if not c.ok]
    assert ("purgatory found the image whole and left its record" not in failed) is passes


def test_the_kernel_s_copy_must_have_been_verified(case: Case) -> None:
    """Where the kernel runs in lent memory, the record must say that its copy was whole."""
    case.plan["layout"]["placement"] = "lent"
    name = "purgatory found the image whole and left its record"
    assert name in [c.name for c in case.outcome().checks if not c.ok]
    case.saved.capture["purgatory"]["steps"].append({"step": "copy", "ms": 1, "bad": 0})
    assert name not in [c.name for c in case.outcome().checks if not c.ok]


@pytest.mark.parametrize(
    ("stays", "passes"),
    [(10_200_000, True), (10_933_000, True), (10_935_000, False), (9_999_999, False)],
)
def test_an_exact_reservation_is_the_payload_and_hardly_more(
    stays: int, passes: bool, case: Case
) -> None:
    """1.02 times kernel and initramfs and 0.7 MiB; less than both is no measurement."""
    case.spec = replace(case.spec, reserve="exact")
    case.plan["layout"]["segments"] = [
        {"name": name, "stored_bytes": n}
        for name, n in (("kernel", 8_000_000), ("initramfs", 2_000_000))
    ] + [{"name": "purgatory", "stored_bytes": 900}]
    case.plan["costs"] = {"taken_bytes": stays, "required_bytes": stays}
    failed = [c.name for c in case.outcome().checks if not c.ok]
    assert ("what stays reserved is little more than the payload" not in failed) is passes


@pytest.mark.parametrize(
    ("reserve", "words"),
    [
        ("keep", []),
        ("auto", ["--shrink"]),
        ("exact", ["--shrink", "--shrink-margin", "0"]),
        ("20M", ["--shrink", "20M"]),
    ],
)
def test_reserve_becomes_words_of_load(reserve: str, words: list[str], case: Case) -> None:
    """The lab's --reserve is what a user would say."""
    found = complete_words(replace(case.spec, reserve=reserve), ["load"])
    at = found.index("--shrink") if "--shrink" in found else len(found)
    assert found[at : at + len(words)] == words
    assert ("--shrink" in found) is bool(words)


@pytest.mark.parametrize("proven", [False, None])
def test_a_load_that_proves_nothing_fails(proven: bool | None, case: Case) -> None:
    """The kernel refused the planned bytes, or was not asked."""
    case.proven = proven
    assert "bytes that were planned" in judge(MOVABLE, case.outcome())


@pytest.mark.parametrize(("real", "passes"), [(6, True), (5, False), (7, False), (None, False)])
def test_a_probe_must_find_the_planned_pages(real: int | None, passes: bool, case: Case) -> None:
    """One page more or less, or no answer at all, is a difference between model and kernel."""
    case.spec = replace(case.spec, probe=True)
    if real is not None:
        case.events["probed"] = {
            "control_pages": 6,
            "kernel_control_pages": real,
            "required_bytes": 10 * MIB,
        }
    assert (judge(MOVABLE, case.outcome()) == "") is passes


def test_lending_too_little_fails_unless_the_spec_allows_it(case: Case) -> None:
    case.spec = replace(case.spec, lend_bytes=2 * GIB)
    case.plan["offer"]["asked_bytes"] = 2 * GIB
    assert "1024 MiB of 2048 MiB" in judge(MOVABLE, case.outcome())
    case.spec = replace(case.spec, least_lent_bytes=GIB)
    assert judge(MOVABLE, case.outcome()) == ""
    case.spec = replace(case.spec, least_lent_bytes=GIB + 1)
    assert judge(MOVABLE, case.outcome())


def test_misread_request_fails(case: Case) -> None:
    """What was asked for is the spec's word, not crashlend's reading of it."""
    case.plan["offer"]["asked_bytes"] = 0
    assert "crashlend thought that 0 MiB were asked for" in judge(MOVABLE, case.outcome())


def test_lending_unasked_fails(case: Case) -> None:
    case.spec = replace(case.spec, cmdline="crashkernel=100M")
    failed = [c.name for c in case.outcome().checks if not c.ok]
    assert failed == ["nothing is lent"]


@pytest.mark.parametrize(
    ("trial", "used"),
    [
        (replace(MOVABLE, lender="cma"), "lender movable"),
        (replace(MOVABLE, syscall="file"), "syscall load"),
    ],
)
def test_another_lender_or_syscall_fails(case: Case, trial: Trial, used: str) -> None:
    assert used in judge(trial, case.outcome())


def test_lender_of_the_spec_counts(case: Case) -> None:
    case.spec = replace(case.spec, lender="cma")
    assert not case.outcome().ok


@pytest.mark.parametrize(
    ("asked", "used", "ok"),
    [
        ("auto", "movable-zone,movable", True),
        ("cma,movable", "cma,movable", True),
        ("cma,movable", "movable", True),
        ("movable", "cma,movable", False),
        ("auto", "none", False),
        ("auto", "movable,elsewhere", False),
    ],
)
def test_lenders_are_those_that_were_asked(case: Case, asked: str, used: str, ok: bool) -> None:
    """Some of those that the spec names, whichever for auto, and no unknown ones."""
    case.spec = replace(case.spec, lender=asked)
    case.plan["lender"] = used
    assert case.outcome().ok == ok


@pytest.mark.parametrize(
    ("address", "after", "ok"),
    [
        (LENT[0] - 4096, {"Movable": 9}, True),
        (LENT[1], {"Movable": 10}, True),
        (LENT[0] + 12288, {"Movable": 9}, False),
        (LENT[0] - 4096, {"Movable": 8, "offline": 1}, False),
        (LENT[0] - 4096, {"Movable": 8, "Normal": 1}, False),
    ],
)
def test_bad_pages_must_not_be_lent_nor_their_blocks_taken(
    case: Case, address: int, after: dict[str, int], ok: bool
) -> None:
    """What the preparation made bad lies outside lent memory, and its blocks are where they were."""
    output = f"poisoned 0x1000\npoisoned {address:#x}\nHardwareCorrupted: 8 kB\n"
    case.events = {
        **case.events,
        "booted": {**case.events["booted"], "blocks": {"Movable": 9}},
        "prepared": {"exit": 0, "output": output},
        "command": {**case.command(0), "blocks": after},
    }
    assert case.outcome().ok == ok


def test_a_preparation_that_fails_is_told(case: Case) -> None:
    """The check has what the command said, not that the guest never got that far."""
    booted = case.events["booted"]
    case.events = {"booted": booted, "prepared": {"exit": 2, "output": "no such file"}}
    assert any("not prepared: no such file" in c.detail for c in case.outcome().checks)


def test_suite_names_the_lender_it_claims() -> None:
    """A name that begins with a lender means that lender."""
    for trial in SUITE:
        first = trial.name.split("-")[0]
        if first in ("movable", "cma", "none"):
            assert trial.lender == first, trial.name
        if first == "zone":
            assert trial.lender == "movable-zone", trial.name
        if first == "combined":
            assert "," in trial.lender, trial.name
        if trial.expect == LOST:
            assert trial.lender == trial.spec["lender"] == "none"
    assert find("cma-7.3-file").syscall == "file"


@pytest.mark.parametrize(
    ("spec", "asked"),
    [
        (Spec(kernel=KERNEL), GIB),
        (Spec(kernel=KERNEL, lender="none"), 0),
        (Spec(kernel=KERNEL, cmdline="crashkernel=100M"), 0),
        (Spec(kernel=KERNEL, cmdline="crashkernel=100M", lend_bytes=GIB), GIB),
        (Spec(kernel=KERNEL, lend_bytes=0), 0),
        (
            Spec(
                kernel=KERNEL,
                commands=(Command(("load", "--lend", "2G")), Command(("load", "--lend", "512M"))),
            ),
            512 * MIB,
        ),
        (
            Spec(kernel=KERNEL, commands=(Command(("load", "--lend", "2G")), Command(("load",)))),
            GIB,
        ),
    ],
)
def test_asked_bytes(spec: Spec, asked: int) -> None:
    assert asked_bytes(spec) == asked


# ---- the control


def test_control_that_died_of_oom_passes(case: Case) -> None:
    case.die()
    outcome = case.outcome()
    assert judge(CONTROL, outcome) == ""
    assert not outcome.ok
    assert outcome.to_json()["crash_kernel"]["death_by_memory"] == DEATH


@pytest.mark.parametrize("ended", ["timed_out", "lost"])
def test_control_that_hangs_for_lack_of_memory_passes(case: Case, ended: str) -> None:
    """A crash kernel may die of it and not reset: after its panic, or silent with no panic at all."""
    case.die()
    if ended == "lost":
        case.console = CONSOLE + "kworker/0:1: page allocation failure: order:0\n"
        case.lost = "silent for 90 s"
    else:
        case.timed_out = True
    assert judge(CONTROL, case.outcome()) == ""


def _silent_and_no_word_of_memory(case: Case) -> None:
    case.console = CONSOLE + "tsc: Fast TSC calibration failed\n"
    case.lost = "silent for 90 s"


def _never_crashed(case: Case) -> None:
    del case.events["crashing"]


def _deadline(case: Case) -> None:
    case.timed_out = True
    case.console = CONSOLE + "Out of memory: Killed process 9\n"


def _silent(case: Case) -> None:
    case.console = CONSOLE


def _no_crash_kernel(case: Case) -> None:
    case.console = CONSOLE + "---[ end Kernel panic - not syncing: sysrq triggered crash ]---\n"


def _other_death(case: Case) -> None:
    case.console = CONSOLE + "Kernel panic - not syncing: VFS: Unable to mount root fs\n"


def _production_ran_out(case: Case) -> None:
    case.console = f"[ 9.0] Out of memory: Killed process 9\n[ 9.0] {DEATH}\n"


def _production_ran_out_before(case: Case) -> None:
    case.console = "[ 9.0] Out of memory: Killed process 9\n" + CONSOLE


def _came_up(case: Case) -> None:
    case.events["crash_kernel"] = {}


def _lent(case: Case) -> None:
    case.plan.update(lent=[list(LENT)])


def _not_loaded(case: Case) -> None:
    case.events["command"] = case.command(1, "crashlend: no\n")


def _no_command(case: Case) -> None:
    del case.events["command"]


@pytest.mark.parametrize(
    "spoil",
    [
        _never_crashed,
        _deadline,
        _silent,
        _silent_and_no_word_of_memory,
        _no_crash_kernel,
        _other_death,
        _production_ran_out,
        _production_ran_out_before,
        _came_up,
        _lent,
        _not_loaded,
        _no_command,
    ],
)
def test_control_that_proves_nothing_fails(case: Case, spoil: Callable[[Case], None]) -> None:
    """A missing dump is no proof: the crash kernel must have run out of memory."""
    case.die()
    spoil(case)
    assert judge(CONTROL, case.outcome())
    assert why_not_lost(case.outcome())


def test_demo_wants_a_true_control(case: Case, tmp_path: Path) -> None:
    """The demo's word follows the same rule, and its other columns must have lent what was asked."""
    good = case.outcome()
    nothing = Case(tmp_path)
    nothing.lend_nothing()
    control = Case(tmp_path)
    control.die()
    silent = Case(tmp_path)
    silent.die()
    _never_crashed(silent)
    columns = [
        demo.Column("100M + 1G lent", True, case.spec),
        demo.Column("80M, control", False, control.spec),
    ]
    assert demo._verdict(columns, [good, control.outcome()])
    assert not demo._verdict(columns, [good, silent.outcome()])
    assert not demo._verdict(columns, [nothing.outcome(), control.outcome()])


# ---- refusals


@pytest.mark.parametrize(
    ("code", "stderr", "why"),
    [
        (11, "crashlend: it wants user data\n", ""),
        (1, "crashlend: it wants user data\n", "exit 1, not 11"),
        (11, "crashlend: other words\n", "in other words"),
        (0, "", "exit 0, not 11"),
    ],
)
def test_refusal_is_the_exit_code_and_the_words(
    case: Case, code: int, stderr: str, why: str
) -> None:
    trial = Trial("refused", "", "6.1", expect=REFUSED, words="wants user data")
    case.events["command"] = case.command(code, stderr)
    found = judge(trial, case.outcome())
    assert why in found
    assert bool(found) == bool(why)


def test_refusal_of_a_guest_that_never_got_there(case: Case) -> None:
    del case.events["command"]
    trial = Trial("refused", "", "6.1", expect=REFUSED, words="")
    assert judge(trial, case.outcome())


# ---- the crash kernel's memory


def test_foreign_ram_is_found(case: Case) -> None:
    """RAM that nobody handed over: it shows in the crash kernel's own /proc/iomem alone."""
    case.events["crash_kernel_memory"]["ram"].append([8 * GIB, 9 * GIB])
    assert "took that RAM over" in judge(MOVABLE, case.outcome())


def test_ram_that_was_not_taken_over_is_found(case: Case) -> None:
    del case.events["crash_kernel_memory"]["ram"][-1]
    assert "took that RAM over" in judge(MOVABLE, case.outcome())


def test_registers_of_every_online_cpu_must_be_there(case: Case) -> None:
    """One note too few is a CPU that the dump knows nothing of."""
    case.events["loaded"]["cpus_online"] = 2
    assert "1 notes of registers, 2 CPUs online" in judge(MOVABLE, case.outcome())


def test_silent_hook_fails(case: Case) -> None:
    del case.events["crash_kernel_memory"]
    assert "reported nothing" in judge(MOVABLE, case.outcome())


def test_ends_within_a_page_do_not_count(case: Case) -> None:
    """The loader's map is held to the byte, the kernel's to its pages."""
    case.events["crash_kernel_memory"]["ram"][1] = [RESERVATION[0], HEADER_AT + 7]
    assert judge(MOVABLE, case.outcome()) == ""


@pytest.mark.parametrize("total", [0, 800 * MIB, 1200 * MIB])
def test_mem_total_must_fit(case: Case, total: int) -> None:
    case.events["crash_kernel_memory"]["mem_total"] = total
    assert "can use that RAM" in judge(MOVABLE, case.outcome())


@pytest.mark.parametrize(("may_grow", "kept_mib", "ok"), [
    (False, 75, True), (False, 140, False), (True, 140, True), (True, 200, False),
])  # fmt: skip
def test_bounce_buffers_for_memory_that_may_come(may_grow: bool, kept_mib: int, ok: bool) -> None:
    """Where memory may be plugged in the kernel keeps 64 MiB more, all its RAM below 4 GiB or not."""
    planned = Ranges([(GIB, GIB + 512 * MIB)])
    event = {
        "event": "crash_kernel_memory",
        "ram": planned.to_json(),
        "mem_total": (512 - kept_mib) * MIB,
    }
    *_, check = _ram_taken_over(planned, Report([event]), may_grow)
    assert (check.name, check.ok) == ("crash kernel can use that RAM", ok)


def test_lent_memory_must_be_handed_over(case: Case) -> None:
    """A plan that forgets lent memory agrees with itself all the way."""
    lent, lender = case.plan["lent"], case.plan["lender"]
    case.lend_nothing()
    case.events["scanned"]["pt_loads"].pop()
    case.plan.update(lent=lent, lender=lender)
    assert "of them 0 MiB of 1024 MiB lent" in judge(MOVABLE, case.outcome())


def test_map_of_kexec_file_load(case: Case) -> None:
    """The kernel made the map: within what is allowed, with all of lent memory."""
    trial = replace(MOVABLE, syscall="file", lender="cma")
    case.plan.update(layout=None, lender="cma", syscall="file")
    assert judge(trial, case.outcome()) == ""
    case.saved.capture["crash_kernel"]["ram_ranges"].append([3 * GIB, 3 * GIB + MIB])
    case.events["crash_kernel_memory"]["ram"].append([3 * GIB, 3 * GIB + MIB])
    assert "not as planned" in judge(trial, case.outcome())


# ---- the patterns


@pytest.mark.parametrize(
    ("found", "ok"), [(20000, True), (20001, True), (19999, False), (0, False)]
)
def test_stale_copies_do_not_count(case: Case, found: int, ok: bool) -> None:
    """A page that migrated after it was marked left a copy; a page that is missing is missing."""
    case.events["scanned"]["elsewhere_pages"] = found
    check = {c.name: c for c in case.outcome().checks}["everything else is in /proc/vmcore"]
    assert check.ok == ok
    assert str(found) in check.detail
    assert "20000" in check.detail


def test_pattern_of_lent_memory_fails(case: Case) -> None:
    case.events["scanned"]["in_lent_pages"] = 1
    assert judge(MOVABLE, case.outcome())


# ---- user data


def test_missing_user_data_must_be_told(case: Case) -> None:
    case.spec = replace(case.spec, dump_level=17, allow_missing_user_data=True)
    assert "user data is missing" in judge(MOVABLE, case.outcome())
    case.saved.capture.update(
        dump_level=17, allow_missing_user_data=True, lent={"ranges": [list(LENT)]}
    )
    assert judge(MOVABLE, case.outcome()) == ""
    case.saved.capture["dump_level"] = 31
    assert "user data is missing" in judge(MOVABLE, case.outcome())


def test_allowing_takes_no_value() -> None:
    words = complete_words(Spec(kernel=KERNEL, allow_missing_user_data=True), ("load",))
    assert "--allow-missing-user-data" in words
    assert "yes" not in words


# ---- what an earlier run left in the same directory


def test_earlier_results_are_taken_away(tmp_path: Path) -> None:
    dump = tmp_path / "saved/crash/host-2024/vmcore"
    dump.parent.mkdir(parents=True)
    others = [tmp_path / "saved/mine", tmp_path / "mine"]
    for file in (dump, *others):
        file.write_text("old")
    for name in ("console.log", "trial.json", "events.json"):
        (tmp_path / name).write_text("old")
    remove_traces(tmp_path)
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == sorted(others)
    remove_traces(tmp_path)


def test_old_socket_is_no_hindrance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second run in a directory starts its machine: here one that ends at once."""
    monkeypatch.setattr(qemu, "QEMU", "false")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as old:
        old.bind(str(tmp_path / "report.sock"))
    machine = Machine(Path("vmlinuz"), Path("initramfs"), "", 1 << 30)
    for _ in range(2):
        with pytest.raises(LostVmError):
            run_machine(machine, tmp_path, timeout_seconds=5)


HOLES_TELL = "holes.json tells what was lent, and by whom"
TABLES_AGREE = "the dump's own tables have nothing of any hole"


def failed_by(case: Case) -> list[str]:
    return [check.name for check in case.outcome().checks if not check.ok]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda holes: holes.clear(),
        lambda holes: holes["holes"].pop(0),
        lambda holes: holes["holes"][0].update(lender="cma"),
        lambda holes: holes["lent"].update(ranges=[]),
    ],
)
def test_holes_that_do_not_tell_what_was_lent_are_found(
    case: Case, spoil: Callable[[dict[str, Any]], None]
) -> None:
    """None at all, no lent memory, another lender's, or none in the sum: each fails."""
    spoil(case.saved.holes)
    assert HOLES_TELL in failed_by(case)


def test_a_hole_that_was_in_proc_vmcore_is_found(case: Case) -> None:
    """A hole too many: the dump's bitmap has it, and all of RAM is no longer expected."""
    case.saved.holes["holes"].append(
        {"why": "lent", "lender": "movable", "ranges": [[MIB, 2 * MIB]]}
    )
    assert failed_by(case) == [HOLES_TELL, TABLES_AGREE]


def test_a_hole_too_few_leaves_memory_missing(case: Case) -> None:
    """What holes.json does not tell must be in /proc/vmcore."""
    case.saved.holes["holes"][1]["ranges"] = []
    assert failed_by(case) == [HOLES_TELL, "all other System RAM is in /proc/vmcore"]


def test_a_dump_that_is_none_is_found(case: Case) -> None:
    """Its tables are read, not only its name."""
    assert case.saved.vmcore is not None
    case.saved.vmcore.write_bytes(b"dump")
    assert failed_by(case) == [TABLES_AGREE]
