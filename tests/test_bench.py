# SPDX-License-Identifier: LGPL-2.1-or-later
"""The bench on made-up trials: what counts as enough, what is asked again, what is written."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from build import facts, payload
from crashlend.config import Settings
from crashlend.errors import CrashlendError
from crashlend.lab.bench import report as bench_report
from crashlend.lab.bench import run as bench
from crashlend.lab.bench import times as bench_times
from crashlend.lab.bench.run import Bench, Options, judge
from crashlend.lab.kernels import Kernel
from crashlend.lab.loaders import kexec_initramfs, load_command, load_variables
from crashlend.lab.outcome import Outcome
from crashlend.lab.qemu import LostVmError, Machine, Report, run_machine
from crashlend.lab.records import Records
from crashlend.lab.spec import Check, Spec
from crashlend.lab.watch import Watch
from crashlend.plan import make_plan
from crashlend.sizes import MIB

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parent.parent
KERNEL = Kernel("6.1", "6.1.0", "bookworm", Path("vmlinuz"), Path("modules"), None, "6.1.1-1")
PRODUCTION = "console=ttyS0 loglevel=4 panic=1 nokaslr crashkernel=100M"
OWN_PANIC = "[   12.4] Kernel panic - not syncing: sysrq triggered crash\r\n"
GOOD, BAD = Check("dump saved", True, ""), Check("dump saved", False, "nothing on the disk")


# ---- the verdict on one trial


def outcome(
    *checks: Check, spec: Spec | None = None, seconds: float = 60.0, **command: Any
) -> Outcome:
    """A trial whose one command loads; ``command`` overrides what the agent reported of it."""
    event = {"exit": 0, "expected": 0, "crash_loaded": True, "stderr": "", "seconds": 2.0}
    events: list[dict[str, Any]] = [
        {"event": "booted", "at": 1.0, "crash_ranges": [[0, 100 * MIB]], "nodes": {}},
        {"event": "command", "at": 2.0, "argv": ["-c"], "answer": None, **event, **command},
        {"event": "crashing", "at": 3.0},
    ]
    report = Report(events, seconds)
    return Outcome(spec or Spec(kernel=KERNEL), report, {}, {}, "", checks, "")


def test_a_saved_dump_is_enough() -> None:
    """Every check holds; the reservation is what production's /proc/iomem said."""
    verdict = judge(outcome(GOOD))
    assert (verdict["verdict"], verdict["reservation_bytes"]) == ("enough", 100 * MIB)


def test_a_refused_load_is_too_small() -> None:
    """Whatever the loader's exit code: what counts is also whether the kernel holds an image."""
    said = "Could not find a free area of memory\nand more\n"
    assert judge(outcome(BAD, exit=255, stderr=said))["why"] == said.splitlines()[0]
    assert judge(outcome(BAD, exit=255, stderr=said))["verdict"] == "refused"
    assert judge(outcome(GOOD, crash_loaded=False))["verdict"] == "refused"


def test_a_lost_dump_is_too_small() -> None:
    """The reason is the crash kernel's panic, else the capture's own, else the check's."""
    panicked = outcome(BAD)
    panicked.report.lost = "Kernel panic - not syncing: System is deadlocked on memory"
    assert judge(panicked)["verdict"] == "lost"
    assert "deadlocked" in judge(panicked)["why"]
    assert judge(replace(outcome(BAD), capture={"reason": "killed"}))["why"] == "killed"
    assert judge(outcome(BAD))["why"] == "dump saved: nothing on the disk"


@pytest.mark.parametrize("missing", ["command", "crashing"])
def test_a_trial_that_never_crashed_says_nothing(missing: str) -> None:
    """Production that does not come that far is no verdict on the reservation."""
    trial = outcome(BAD)
    trial.report.events[:] = [e for e in trial.report.events if e["event"] != missing]
    assert judge(trial)["verdict"] == "void"


def test_a_deadline_alone_says_nothing() -> None:
    """A slow machine is not a small reservation, unless something shows the loss."""
    trial = outcome(BAD)
    trial.report.timed_out = True
    assert judge(trial)["verdict"] == "void"
    assert judge(replace(trial, death_by_memory="panic"))["verdict"] == "lost"


def test_a_saved_dump_with_something_else_wrong_says_nothing() -> None:
    """That is a defect to be looked at, and no matter of size."""
    odd = judge(outcome(GOOD, Check("crash kernel's RAM is as planned", False, "odd")))
    assert (odd["verdict"], odd["why"]) == ("void", "crash kernel's RAM is as planned: odd")


# ---- the search, and what is kept of it


class Guest:
    """Trials that need no QEMU: the loader's need is a number."""

    need: ClassVar = {"kexec-c": 91, "kexec-s": 93, "none": 90, "auto": 17}

    def __init__(self, spoil: Callable[[int], bool] = lambda run: False) -> None:
        self.specs: list[Spec] = []
        self.spoil = spoil

    def __call__(self, spec: Spec, **_: Any) -> Outcome:
        self.specs.append(spec)
        if self.spoil(len(self.specs)):
            raise KeyboardInterrupt
        if spec.crash == "none":
            return times_outcome(spec)
        found = re.search(r"crashkernel=(\d+)M", spec.cmdline)
        assert found
        key = spec.loader if spec.loader != "crashlend" else spec.lender
        enough = int(found[1]) >= self.need[key]
        result = outcome(GOOD if enough else BAD, spec=spec)
        result.capture.update(vmcore={"bytes": 40 * MIB}, ok=enough)
        result.capture.update(crash_kernel={"peak_used_bytes": 30 * MIB, "mem_total_bytes": 1})
        result.report.events.append({"event": "saved", "at": 9.0})
        if key == "auto":
            segments = [{"name": "kernel", "stored_bytes": 8 * MIB}]
            costs = {"taken_bytes": 12 * MIB, "required_bytes": 11 * MIB, "shared_bytes": 1 << 30}
            result = replace(
                result, plan={"lender": "movable", "costs": costs, "layout": {"segments": segments}}
            )
            result.report.events[1].update(argv=["load"], answer={"plan": result.plan})
        return result


def times_outcome(spec: Spec) -> Outcome:
    """A guest that did every command, each load slower than the one before."""
    events: list[dict[str, Any]] = []
    for number, command in enumerate(spec.commands):
        if command.program == "agent":
            memory = {"MemTotal": 1000 * MIB, "MemFree": 90 * MIB}
            more = {"MemAvailable": 1, "AnonPages": 300 * MIB, "Cached": 600 * MIB}
            events.append({"event": "fill", **memory, **more})
            continue
        answer: Any = "kexec-tools 2.0.25\n"
        if command.words[0] == "load":
            lent = [[0, 1 << 30]] if "--lend" in command.words else []
            answer = {"seconds": {"lend": 1.5, "load": 0.5}, "refused": [], "plan": {"lent": lent}}
        said = [(1.0, "x"), (1.5, "  memory block 7 is movable now (1 of 8)")]
        said += [(1.7, "  memory block 6 stays: busy"), (2.2, "  memory block 5 is movable now")]
        event = {"event": "command", "exit": 0, "expected": 0, "answer": answer, "said": said}
        event.update(seconds=float(number), available=[500 * MIB, 470 * MIB], stderr="")
        events.append({**event, "argv": list(command.words)})
    return Outcome(spec, Report(events, 1.0), {}, {}, "", (), "")


@pytest.fixture(autouse=True)
def capture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A capture initramfs that need not be built."""
    file = tmp_path / "capture"
    file.write_bytes(bytes(2 * MIB))
    monkeypatch.setattr(bench, "build_capture_for", lambda kernel, say: file)
    monkeypatch.setattr(bench, "source_hash", lambda *, lab_only: "tree")


def test_the_bench_finds_what_each_loader_needs(tmp_path: Path) -> None:
    """The answers are the guests' needs, confirmed from both sides, and the document has them."""
    guest = Guest()
    result = Bench(KERNEL, Options(), Records(tmp_path / "r.jsonl"), run=guest).results()
    answers = {key: (row["answer_mib"], row["below_mib"]) for key, row in result["rows"].items()}
    assert answers == {
        "kexec-c": (91, 90),
        "kexec-s": (93, 92),
        "crashlend-none": (90, 89),
        "crashlend-lent": (17, 16),
    }
    assert {(r["passed"], r["failed"]) for r in result["rows"].values()} == {(2, 2)}
    machine = {"qemu": "QEMU 7", "accel": "tcg", "memory_bytes": 4 << 30, "cpus": 1}
    machine |= {"cpu_model": "max", "host_cpus": 2}
    options = {"rounds": 5, "lend_rounds": 3}
    text = bench_report.markdown(
        {"machine": machine, "options": options, "kernels": [json.loads(json.dumps(result))]}
    )
    assert "| `kexec -c -p` | 91 MiB | ×1.00 | 2 × saved; 90 MiB: 2 × lost |" in text
    assert "| `crashlend load`, 1 GiB lent | 17 MiB | ×0.19 |" in text
    assert "| the same, `--shrink --shrink-margin 0` | 12 MiB | ×0.13 |" in text


def test_every_loader_is_asked_in_the_same_guest(tmp_path: Path) -> None:
    """But for the loader and the lending the probes' trials are alike, and none shrinks."""
    guest = Guest()
    Bench(KERNEL, Options(), Records(tmp_path / "r.jsonl"), run=guest).results()
    probes = [spec for spec in guest.specs if spec.impatient]
    alike = {replace(s, loader="", lender="", cmdline="") for s in probes}
    assert len(alike) == 1
    words = {re.sub(r"crashkernel=(1G,cma )?|\d+M|crashkernel=", "", s.cmdline) for s in probes}
    assert {" ".join(w.split()) for w in words} == {bench.PLACED}


def test_an_interrupted_bench_goes_on_where_it_was(tmp_path: Path) -> None:
    """Together the two runs try what one would, and one more: the trial that was cut off."""
    whole = Guest()
    records = Records(tmp_path / "whole.jsonl")
    expected = Bench(KERNEL, Options(), records, run=whole).results()
    first, path = Guest(spoil=lambda run: run == 9), tmp_path / "parts.jsonl"
    with pytest.raises(KeyboardInterrupt):
        Bench(KERNEL, Options(), Records(path), run=first).results()
    path.write_text(path.read_text() + '{"stamp": "cut o')
    second = Guest()
    assert Bench(KERNEL, Options(), Records(path), run=second).results() == expected
    assert len(first.specs) + len(second.specs) == len(whole.specs) + 1
    third = Guest()
    assert Bench(KERNEL, Options(), Records(path), run=third).results() == expected
    assert third.specs == []


def test_a_finished_bench_is_not_run_again(tmp_path: Path) -> None:
    """Same parameters, same sources: all of it is known."""
    path, again = tmp_path / "r.jsonl", Guest()
    first = Bench(KERNEL, Options(), Records(path), run=Guest()).results()
    assert Bench(KERNEL, Options(), Records(path), run=again).results() == first
    assert again.specs == []


def test_other_sources_are_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change to what crashlend alone runs does not repeat the rows of kexec-tools."""
    path = tmp_path / "r.jsonl"
    Bench(KERNEL, Options(), Records(path), run=Guest()).results()
    monkeypatch.setattr(
        bench, "source_hash", lambda *, lab_only: "tree" if lab_only else "other tree"
    )
    again = Guest()
    Bench(KERNEL, Options(), Records(path), run=again).results()
    assert {spec.loader for spec in again.specs} == {"crashlend"}


def test_a_lost_machine_is_tried_again_and_not_for_ever(tmp_path: Path) -> None:
    """It says nothing of the reservation; three in a row end the bench."""
    lost: list[Spec] = []

    def run(spec: Spec, **_: Any) -> Outcome:
        lost.append(spec)
        raise LostVmError("the virtual machine was lost", "QEMU ended with 1")

    with pytest.raises(CrashlendError, match="no verdict in 3 tries"):
        Bench(KERNEL, Options(), Records(tmp_path / "r.jsonl"), run=run).results()
    assert len(lost) == 3


def test_times_of_a_guest_that_stopped_half_way_are_refused() -> None:
    """Fewer answers than commands would be read as other commands' times."""
    spec = Spec(kernel=KERNEL)
    plan = bench_times.steps(spec, PRODUCTION, 2, 1)
    events = times_outcome(bench_times.with_steps(spec, plan)).report.events
    whole = bench_times.digest(plan, events)
    assert {loader: len(each) for loader, each in whole["load_seconds"].items()} == {
        "kexec-c": 2,
        "kexec-s": 2,
        "crashlend": 2,
    }
    assert whole["lending"]["full"][0]["block_seconds"] == [0.5]
    assert whole["lending"]["idle"][0]["refused"] == [[0.2, "busy"]]
    with pytest.raises(CrashlendError, match="did not finish"):
        bench_times.digest(plan, events[:-1])


def test_loaders_take_turns() -> None:
    """Each round has every loader once, so that a busy minute meets all alike."""
    plan = bench_times.steps(Spec(kernel=KERNEL), PRODUCTION, 3, 1)
    loads = [step.what for step in plan if step.what.startswith("load")]
    assert loads == ["load crashlend", "load kexec-c", "load kexec-s"] * 3


# ---- the same crash kernel for all


def test_kexec_gets_the_bytes_that_crashlend_would_load() -> None:
    """The variables behind the initramfs are those of a plan that lends nothing.

    All but where the reservation is; that has the same length.
    """
    plan = make_plan(facts(), Settings(lender="none", dump_level=31), payload())
    ours, theirs = load_variables(31), dict(plan.load_variables)
    assert len(ours.pop("RESERVATION")) == len(theirs.pop("RESERVATION"))
    assert ours == theirs
    assert kexec_initramfs(b"abcde", 31).startswith(b"abcde\0\0\x000707")


def test_kexec_gets_the_words_that_crashlend_would_pass() -> None:
    """All but elfcorehdr=, which each loader adds by itself."""
    some = replace(facts(), cmdline=PRODUCTION)
    plan = make_plan(some, Settings(lender="none"), payload())
    assert plan.cmdline is not None
    own = re.sub(r" elfcorehdr=\S+", "", plan.cmdline.line)
    for loader, switch in (("kexec-c", "-c"), ("kexec-s", "-s")):
        words = load_command(Spec(kernel=KERNEL), loader, PRODUCTION).words
        assert words[:3] == (switch, "-p", "/boot/vmlinuz-6.1.0")
        assert words[-1] == f"--command-line={own}"
    assert own.split().count("nokaslr") == 1


# ---- a crash kernel that is known to be lost


def test_the_watch_waits_for_the_crash_kernels_own_panic(tmp_path: Path) -> None:
    """Production's panic is what is wanted; half a line is not read."""
    console = tmp_path / "console.log"
    watch = Watch(console, clock=lambda: 0.0)
    assert watch.is_lost() == ""
    console.write_text("[ 1.0] Kernel panic - not syncing: VFS: no root\n")
    assert watch.is_lost() == ""
    console.write_text(OWN_PANIC + "[    2.0] Kernel panic - not syncing: System is dead")
    assert watch.is_lost() == ""
    console.write_text(OWN_PANIC + "[    2.0] Kernel panic - not syncing: deadlocked\r\n")
    assert watch.is_lost() == "Kernel panic - not syncing: deadlocked"


def test_the_watch_ends_a_silent_crash_kernel(tmp_path: Path) -> None:
    """It died before its console was there; every word starts the clock anew."""
    console, now = tmp_path / "console.log", [0.0]
    watch = Watch(console, clock=lambda: now[0], silence_seconds=90)
    console.write_text("[ 1.0] production is up\n")
    now[0] = 500.0
    assert watch.is_lost() == ""
    console.write_text(OWN_PANIC)
    assert watch.is_lost() == ""
    now[0] = 589.0
    assert watch.is_lost() == ""
    console.write_text(OWN_PANIC + "[ 0.0] Linux version\n")
    assert watch.is_lost() == ""
    now[0] = 679.0
    assert watch.is_lost() == "silent for 90 s"


def test_a_lost_machine_is_ended_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine would go on for a minute; the report has the reason and is no deadline's."""
    program = (
        "import socket, sys, time\n"
        "path = next(w for w in sys.argv if 'report.sock' in w).split('path=')[1]\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(path); time.sleep(60)\n"
    )
    script = tmp_path / "qemu"
    script.write_text(f"#!/usr/bin/env python3\n{program}")
    script.chmod(0o755)
    monkeypatch.setattr("crashlend.lab.qemu.find_qemu", lambda: str(script))
    machine = Machine(Path("vmlinuz"), Path("initramfs"), "", 1 << 30)
    report = run_machine(machine, tmp_path, timeout_seconds=50, is_lost=lambda: "it panicked")
    assert (report.lost, report.timed_out) == ("it panicked", False)
    assert report.seconds < 20


# ---- the documents


def kept() -> dict[str, Any]:
    """The results that the repository keeps."""
    value: dict[str, Any] = json.loads((ROOT / "docs/results/bench.json").read_text())
    return value


def test_the_benchmarks_are_what_the_results_say() -> None:
    """docs/benchmarks.md is what the command makes of docs/results/bench.json."""
    assert (ROOT / "docs/benchmarks.md").read_text() == bench_report.markdown(kept())


def test_the_costs_quote_the_benchmarks() -> None:
    """Whatever docs/what-it-costs.md shows of the bench is what its results say now."""
    document = (ROOT / "docs/what-it-costs.md").read_text()
    assert bench_report.quoted(document, kept()) == document
    named = re.findall(r"<!-- bench: (\w+) -->", document)
    assert sorted(named) == sorted(bench_report.sections(kept()))
    changed = kept()
    changed["kernels"][0]["rows"]["kexec-c"]["answer_mib"] += 1
    assert bench_report.quoted(document, changed) != document


def test_the_kept_results_hold_what_the_readme_says() -> None:
    """With lent memory the same dump needs less than a quarter of the reservation of kexec -c."""
    for kernel in kept()["kernels"]:
        taken = dict(bench_report.taken_rows(kernel))
        base, lent = taken["kexec-c"], taken["crashlend-lent"]
        assert base
        assert lent
        assert lent * 4 < base
