# SPDX-License-Identifier: LGPL-2.1-or-later
"""The bench of the capture: its clock, what counts as a run, and what is made of the figures."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from crashlend.errors import CrashlendError
from crashlend.lab.qemu import LostVmError, Report
from crashlend.lab.records import Records
from crashlend.lab.spec import Spec
from crashlend.lab.speed import report
from crashlend.lab.speed import run as run_module
from crashlend.lab.speed.checks import CHECK_AGAIN, CHECK_THREADS, check_speed, threads_of
from crashlend.lab.speed.compare import why_not
from crashlend.lab.speed.contenders import CONTENDERS, by_name, job
from crashlend.lab.speed.moments import (
    CRASHLEND,
    KDUMP_TOOLS,
    Follower,
    Line,
    cpu_seconds_of_children,
    moments,
)
from crashlend.lab.suites.speed import SPEED

CONSOLE = """\
[    0.000000] Linux version 6.1.0-56-amd64
crashlend: makedumpfile was never called here
[   17.408559] Kernel panic - not syncing: sysrq triggered crash
crashlend: segments are whole, 391 ms
[    0.000000] Linux version 6.1.0-56-amd64
[    3.491294] crashlend: crash kernel 6.1.0-56-amd64 is up
[    6.149932] crashlend: makedumpfile -l -d 31
[    7.000000] crashlend: makedumpfile -c -d 31
[    8.172944] crashlend: saved 47414436 bytes
""".splitlines()


def lines(texts: list[str]) -> list[Line]:
    """One line a second, from 100 on."""
    return [Line(100.0 + index, text) for index, text in enumerate(texts)]


def test_moments_are_from_the_panic() -> None:
    """Production's own lines do not count, the first of several does, and what never came is missing."""
    assert moments(lines(CONSOLE), CRASHLEND) == {
        "init": 3.0,
        "dmesg": 4.0,
        "saved": 6.0,
    }
    assert moments(lines(CONSOLE[:2]), CRASHLEND) == {}


def test_the_order_is_its_own() -> None:
    """Who saves the log last is understood as well."""
    text = [
        "Kernel panic - not syncing: x",
        "kdump-tools[211]: saved vmcore in /var/crash/1",
        "kdump-tools[211]: saved dmesg content in /var/crash/1",
    ]
    assert moments(lines(text), KDUMP_TOOLS) == {"saved": 1.0, "dmesg": 2.0}


def test_a_console_is_followed_as_it_grows(tmp_path: Path) -> None:
    """Lines are whole and in order, however they were written; an older console is not read."""
    console = tmp_path / "console.log"
    console.write_text("of an earlier run\n")
    with Follower(console) as follower, console.open("ab") as file:
        for piece in (b"one\ntw", b"o\r\nth", b"ree\nunfinished"):
            file.write(piece)
            file.flush()
    assert [line.text for line in follower.lines] == ["one", "two", "three"]
    assert [line.at for line in follower.lines] == sorted(line.at for line in follower.lines)


def test_only_crashlends_systems_load_with_crashlend() -> None:
    """kdump-tools has loaded by itself; crashlend takes its place; nothing crashes without an image."""
    for contender in CONTENDERS:
        text = job(contender)
        assert ("crashlend load" in text) == (contender.settings is not None)
        assert text.index("kexec_crash_loaded") < text.index("sysrq-trigger")
    assert by_name("kdump-tools").settings is None
    with pytest.raises(CrashlendError, match="no contender"):
        by_name("kdumpctl")


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (["-l", "-d", "31"], 0),
        (["-z", "--num-threads", "3", "-d", "31"], 3),
        (["--num-threads"], 0),
        ([], 0),
    ],
)
def test_threads_of_words(words: list[str], count: int) -> None:
    assert threads_of(words) == count


def spec(**more: Any) -> Spec:
    return Spec(kernel=None, **more)  # type: ignore[arg-type]


def test_threads_are_checked_where_a_trial_says_how_many() -> None:
    """What capture.json tells must be what the trial wants, none included."""
    capture = {
        "makedumpfile": {"args": ["-z", "--num-threads", "3", "-d", "31"]},
        "crash_kernel": {"cpus": 4},
    }
    assert check_speed(spec(), Report(), capture) == []
    for wanted, ok in ((3, True), (2, False), (0, False)):
        (check,) = check_speed(spec(threads=wanted), Report(), capture)
        assert (check.name, check.ok) == (CHECK_THREADS, ok)
        assert "4 CPUs" in check.detail
    (lost,) = check_speed(spec(threads=3), Report(), {})
    assert not lost.ok


def run(flag: str, threads: int, *, code: str = "0", seconds: float = 2.0) -> dict[str, Any]:
    pages = 25600 if code == "0" else 0  # 100 MiB
    return {
        "event": "speed",
        "flag": flag,
        "threads": threads,
        "cpus": 4,
        "exit": code,
        "pages": pages,
        "bytes": 50 << 20,
        "written_cs": 1,
        "synced_cs": int(seconds * 100),
    }


def each_way(**codes: str) -> list[dict[str, Any]]:
    """All runs of speed-hook on four CPUs, lzo without threads twice; codes by flag, as l="1"."""
    flags = [("-l", 0)] + [(flag, n) for flag in ("-l", "-z", "-c") for n in (0, 2, 3, 4)]
    return [run(flag, n, code=codes.get(flag[1], "0")) for flag, n in flags]


def verdict(runs: list[dict[str, Any]], *used: str) -> tuple[bool, str]:
    capture = {"makedumpfile": {"args": [*used, "-d", "31"]}}
    (check,) = check_speed(spec(speed=True), Report(events=runs), capture)
    assert check.name == CHECK_AGAIN
    return check.ok, check.detail


def test_a_compression_that_is_not_built_in_is_no_failure() -> None:
    """Zstd may be lacking, unless the capture's own dump has it; lzo and zlib may not."""
    assert verdict(each_way()) == (True, "13 runs")
    assert verdict(each_way(z="disabled"), "-l")[0]
    assert not verdict(each_way(z="disabled"), "-z")[0]
    assert not verdict(each_way(l="disabled"))[0]
    assert not verdict(each_way(c="disabled"))[0]
    assert not verdict([])[0]


def test_each_way_must_have_written_the_same_dump() -> None:
    """One run that failed, is missing or has other pages is one too many; one of lzo is not enough."""
    assert not verdict([run("-l", 0)])[0]
    for at in range(1, 13):
        runs = each_way()
        runs[at] = run(runs[at]["flag"], runs[at]["threads"], code="134 libgcc_s.so.1")
        ok, detail = verdict(runs)
        assert not ok
        assert f"{runs[at]['flag']} {runs[at]['threads']}: exit 134" in detail
    for at in range(2, 13):
        runs = each_way()
        gone = runs.pop(at)
        assert verdict(runs)[1].endswith(f"no run of {gone['flag']} {gone['threads']}")
    runs = each_way()
    runs[5]["pages"] += 1
    assert "not the same pages: [25600, 25601]" in verdict(runs)[1]


def test_some_disabled_runs_are_no_lacking_compression() -> None:
    """What worked without threads is built in."""
    runs = each_way()
    runs[6] = run("-z", 2, code="disabled")
    assert "-z 2: exit disabled" in verdict(runs)[1]


def compared(name: str, *saved: float) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "moments": {"init": 2.0, "saved": at},
            "vmcore_bytes": 40 << 20,
            "capture": {},
        }
        for at in saved
    ]


DATA: dict[str, Any] = {
    "machine": {"qemu": "QEMU 7.2", "accel": "tcg", "host_cpus": 2},
    "commit": "abcdef",
    "compare": {
        "kernel": "6.1",
        "memory_bytes": 2 << 30,
        "cmdline": "crashkernel=320M",
        "runs": [*compared("kdump-tools", 60, 40, 50), *compared("crashlend", 20, 15, 90)],
    },
    "targets": [
        {
            "title": "ext4 on a virtio disk",
            "release": "6.1.0-56-amd64",
            "initramfs_bytes": 2400000,
            "vmcore_bytes": 40 << 20,
            "peak_used_bytes": 50 << 20,
            "seconds": {"dump": 4.0},
            "moments": {"init": 10.0, "dmesg": 12.0, "saved": 15.0},
        }
    ],
    "threads": {
        "release": "7.3.4",
        "version": "1.7.8",
        "runs": [
            run("-l", 0, seconds=9),
            run("-l", 0),
            run("-l", 3, seconds=4),
            run("-z", 0, seconds=5),
            run("-c", 0, code="1"),
        ],
    },
}


def test_medians_make_the_ratio() -> None:
    """One slow run decides nothing: 20 s against 50 s is 0.40, and the goal is met."""
    text = report.markdown(DATA)
    assert "×0.40" in text
    assert "is met: 0.40" in text
    assert "50.0 s (40.0 to 60.0)" in text


def test_a_goal_that_is_missed_is_said() -> None:
    runs = [*compared("kdump-tools", 30), *compared("crashlend", 20)]
    assert "is not met: 0.67" in report.verdict(runs)
    assert report.verdict(compared("crashlend", 20)) == ""


def test_threads_table_leaves_out_the_first_run_and_failures() -> None:
    """The first run fills caches: 100 MiB in 2 s are 50 MiB/s, not the 11 of the first."""
    text = report.threads(DATA["threads"])
    (lzo,) = [line for line in text.splitlines() if line.startswith("| `-l`")]
    (zstd,) = [line for line in text.splitlines() if line.startswith("| `-z`")]
    assert lzo == "| `-l` | 50 MiB | 50 MiB/s (2.0 s) | 25 MiB/s (4.0 s) |"
    assert zstd.endswith("| 20 MiB/s (5.0 s) | - |")
    assert "`-c`" not in text


def test_targets_table() -> None:
    """40 MiB in 4 s are 10 MiB/s; times are from the panic."""
    (row,) = [line for line in report.targets(DATA["targets"]).splitlines() if "virtio" in line]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2:] == ["2,400,000", "10.0 s", "12.0 s", "15.0 s", "10.0", "50 MiB"]


def test_what_is_not_measured_yet_is_left_out() -> None:
    """An interrupted run can be reported."""
    some = {**DATA, "targets": [], "threads": None, "compare": {**DATA["compare"], "runs": []}}
    text = report.markdown(some)
    assert "By target" not in text
    assert "By compression" not in text


def test_trials_of_speed_say_how_many_threads() -> None:
    """A trial of this table without a number would check nothing of its own."""
    assert all(trial.spec["threads"] is not None for trial in SPEED)


GOOD = {"moments": {"init": 2.0, "saved": 9.0}, "vmcore_bytes": 1, "capture": {}}


class Guests:
    """Stands in for what crashes guests: what was asked for, and what each comes to."""

    def __init__(self, *whys: str) -> None:
        self.whys = list(whys)
        self.asked: list[str] = []

    def compare(self, contender: Any, *_: object, **__: object) -> dict[str, Any]:
        self.asked.append(contender.name)
        return {"name": contender.name, **GOOD, "why": self.whys.pop(0) if self.whys else ""}

    def trial(self, *_: object, **__: object) -> object:
        self.asked.append("trial")
        raise LostVmError("the virtual machine was lost", "it is none")


@pytest.fixture
def _no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "fetch", lambda *_: SimpleNamespace(release="6.1"))
    monkeypatch.setattr(run_module, "TARGETS", ())


def bench(
    directory: Path, guests: Guests, monkeypatch: pytest.MonkeyPatch, **more: Any
) -> run_module.Bench:
    monkeypatch.setattr(run_module, "run_one", guests.compare)
    monkeypatch.setattr(run_module, "run_trial", guests.trial)
    return run_module.Bench(Records(directory / "results.jsonl"), **more)


@pytest.mark.usefixtures("_no_kernels")
def test_contenders_take_turns_and_most_is_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many guests and no more; the next run goes on where this one ended, and asks none twice."""
    names = [contender.name for contender in CONTENDERS]
    first, second = Guests(), Guests()
    data = bench(tmp_path, first, monkeypatch, rounds=2, most=4).results()
    assert first.asked == [*names, names[0]]
    assert len(data["compare"]["runs"]) == 4
    data = bench(tmp_path, second, monkeypatch, rounds=2, most=2).results()
    assert second.asked == names[1:]
    assert [run["name"] for run in data["compare"]["runs"]] == names * 2
    assert data["threads"] is None


@pytest.mark.usefixtures("_no_kernels")
def test_a_run_that_does_not_count_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dump that does not open is no result; three in a row end the bench, and all are on record."""
    guests = Guests("the dump does not open")
    data = bench(tmp_path, guests, monkeypatch, rounds=1, most=2).results()
    assert guests.asked == [CONTENDERS[0].name] * 2
    assert len(data["compare"]["runs"]) == 1
    stubborn = Guests(*["the dump does not open"] * 9)
    with pytest.raises(CrashlendError, match="cannot go on"):
        bench(tmp_path / "other", stubborn, monkeypatch, rounds=1).results()
    assert len(stubborn.asked) == run_module.TRIES


@pytest.mark.usefixtures("_no_kernels")
def test_a_lost_machine_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says nothing about the capture, and is run again."""
    guests = Guests()
    with pytest.raises(CrashlendError, match="cannot go on"):
        bench(tmp_path, guests, monkeypatch, rounds=1).results()
    assert guests.asked[len(CONTENDERS) :] == ["trial"] * run_module.TRIES


@pytest.mark.parametrize(
    ("moments_seen", "panic", "timed_out", "words"),
    [
        ({"init": 1.0, "saved": 2.0}, "Kernel panic - not", False, ""),
        ({"init": 1.0}, "Kernel panic - not", False, "not seen on the console: saved"),
        ({"init": 1.0, "saved": 2.0}, "", False, "the dump does not open"),
        ({"init": 1.0, "saved": 2.0}, "Kernel panic - not", True, "the deadline passed"),
    ],
)
def test_what_counts(
    moments_seen: dict[str, float], panic: str, timed_out: bool, words: str
) -> None:
    """A run counts when its times are known and its dump was opened."""
    assert why_not({"moments": moments_seen, "panic": panic}, timed_out=timed_out) == words


def test_work_is_counted_where_time_says_little() -> None:
    """The same moments on the other clock: two seconds of work between the panic and the dump."""
    text = [
        Line(100.0, "Kernel panic - not syncing: x", 50.0),
        Line(900.0, "crashlend: saved 1 bytes", 52.0),
    ]
    assert moments(text, CRASHLEND) == {"saved": 800.0}
    assert moments(text, CRASHLEND, "cpu") == {"saved": 2.0}


def test_a_childs_work_is_seen() -> None:
    """What a child has had of the CPUs grows with its work, and sleeping is none."""
    if not Path(f"/proc/self/task/{os.getpid()}/children").exists():
        pytest.skip("the kernel has no CONFIG_PROC_CHILDREN")
    before = cpu_seconds_of_children()
    with subprocess.Popen(
        [sys.executable, "-c", "while True: pass"], stdout=subprocess.DEVNULL
    ) as child:
        try:
            for _ in range(600):
                if cpu_seconds_of_children() > before + 0.1:
                    break
                time.sleep(0.1)
            else:
                pytest.fail("a busy child was not seen to work")
        finally:
            child.kill()
