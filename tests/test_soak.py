# SPDX-License-Identifier: LGPL-2.1-or-later
"""The soak on trials that need no QEMU: verdicts, what is kept, resuming, ending, the table."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Callable

import pytest

from crashlend.cli import soak as verb
from crashlend.cli.main import main
from crashlend.errors import CrashlendError
from crashlend.lab.kernels import Kernel
from crashlend.lab.outcome import Outcome
from crashlend.lab.qemu import LostVmError, Report
from crashlend.lab.records import Records, json_text
from crashlend.lab.soak import run as lab
from crashlend.lab.soak.cases import KERNELS, SoakCase, draw
from crashlend.lab.soak.report import counts, markdown, soak_data
from crashlend.lab.soak.run import FLAWED, LOST, PASSED, UNCRASHED, VOID, Soak, latest, missing
from crashlend.lab.spec import Check, Spec

KERNEL = Kernel("6.1", "6.1.0", "bookworm", Path("vmlinuz"), Path("modules"), None)
CASES = [draw("s", index) for index in range(6)]
MACHINE = {"host_cpus": 2, "qemu": "QEMU 7.2", "accel": "tcg"}
DUMP = (
    Check("dump saved", True, "40 MiB"),
    Check("dump opens and its log ends in the panic", True, "panic"),
)
NO_DUMP = (replace(DUMP[0], ok=False, detail="nothing was left"), replace(DUMP[1], ok=False))


def outcome(spec: Spec, *checks: Check, crashed: bool = True, death: str = "") -> Outcome:
    """What a trial of this spec left; lender and system call are those of the guest by that name."""
    case = next(c for c in CASES if c.spec(KERNEL) == replace(spec, kernel=KERNEL))
    events: list[dict[str, Any]] = [{"event": "booted", "at": 1.0, "nodes": {}, "crash_ranges": []}]
    events += [{"event": "crashing", "at": 2.0}] if crashed else []
    plan = {"lender": case.source, "syscall": case.syscall}
    report = Report(events, 3.0)
    return Outcome(spec, report, plan, {}, "", (*checks, *DUMP)[: len(checks) or 2], "", death)


class Lab:
    """Stands for run_trial: what becomes of each guest is told by its index."""

    def __init__(self, fates: dict[int, Callable[[Spec], Outcome]] | None = None) -> None:
        self.fates = fates or {}
        self.runs: list[int] = []

    def __call__(self, spec: Spec, *, keep: Path, **_: Any) -> Outcome:
        index = int(keep.name)
        self.runs.append(index)
        keep.mkdir(parents=True)
        (keep / "console.log").write_text("its last words")
        return self.fates.get(index, outcome)(spec)


def soak(tmp_path: Path, fake: Lab, said: list[str] | None = None) -> Soak:
    words = [] if said is None else said
    return Soak(tmp_path, dict.fromkeys(KERNELS, KERNEL), 2, words.append, fake)


def run(
    tmp_path: Path, fake: Lab, cases: list[SoakCase] = CASES, said: list[str] | None = None
) -> dict[int, dict[str, Any]]:
    results = soak(tmp_path, fake, said).trials(cases, Records(tmp_path / lab.RESULTS))
    return {result["index"]: result for result in results}


# ---- verdicts


def test_all_checks_are_one_verdict_and_a_dump_is_another() -> None:
    """Lost is a crash without a dump; with a dump something else may be wrong; or no crash came."""
    spec = CASES[0].spec(KERNEL)
    flaw = Check("crash kernel's RAM is as planned", False, "odd")
    judged = {
        PASSED: outcome(spec),
        FLAWED: outcome(spec, flaw, *DUMP),
        LOST: outcome(spec, *NO_DUMP),
        UNCRASHED: outcome(spec, *NO_DUMP, crashed=False),
    }
    for verdict, result in judged.items():
        assert lab.digest(CASES[0], result)["verdict"] == verdict
    unread = outcome(spec, DUMP[0], NO_DUMP[1])
    assert lab.digest(CASES[0], unread)["verdict"] == LOST


def test_a_trial_without_the_dumps_checks_has_lost_it() -> None:
    """A check that was never made is not one that held."""
    spec = CASES[0].spec(KERNEL)
    assert lab.digest(CASES[0], outcome(spec, Check("other", True, "")))["verdict"] == LOST


def test_another_lender_than_was_drawn_is_a_flaw() -> None:
    """It would be counted for a kind that it was not."""
    result = outcome(CASES[0].spec(KERNEL))
    result.plan["lender"] = "somebody"
    found = lab.digest(CASES[0], result)
    assert found["verdict"] == FLAWED
    assert "as drawn" in found["why"]


def test_the_crash_kernels_last_words_come_first() -> None:
    """Who looks for the cause reads how the crash kernel died before what is missing."""
    result = outcome(CASES[0].spec(KERNEL), *NO_DUMP, death="Kernel panic: memory")
    assert lab.digest(CASES[0], result)["why"].startswith("Kernel panic: memory; dump saved: ")


# ---- what is kept


def test_a_success_leaves_its_line_and_a_failure_all_its_files(tmp_path: Path) -> None:
    """Nothing of a good trial lies about; of a bad one everything is in failed/INDEX."""
    (tmp_path / "running/9").mkdir(parents=True)  # a run before this one was killed
    said: list[str] = []
    results = run(tmp_path, Lab({1: lambda spec: outcome(spec, *NO_DUMP)}), said=said)
    assert {n: r["verdict"] for n, r in results.items()} == {
        n: LOST if n == 1 else PASSED for n in range(6)
    }
    assert [path.name for path in (tmp_path / "failed").iterdir()] == ["1"]
    assert (tmp_path / "failed/1/console.log").read_text() == "its last words"
    assert not (tmp_path / "running").exists()
    lines = [json.loads(line) for line in (tmp_path / lab.RESULTS).read_text().splitlines()]
    assert sorted(line["index"] for line in lines) == list(range(6))
    assert any(f"crashlend lab soak --only s/1 -o {tmp_path}" in words for words in said)
    assert any(words.startswith("6/6 ") and "the last one" in words for words in said)


def test_a_lost_machine_is_tried_once_more_and_counted_apart(tmp_path: Path) -> None:
    """It is no lost dump. The lab's own failures are not tried again."""

    def die(spec: Spec) -> Outcome:
        raise LostVmError("the virtual machine was lost", "QEMU ended with 1")

    def fail(spec: Spec) -> Outcome:
        raise CrashlendError("the lab can't", "a tool is missing")

    fake = Lab({0: die, 1: fail})
    results = run(tmp_path, fake)
    assert (results[0]["verdict"], results[0]["tries"], results[0]["machine_lost"]) == (
        VOID,
        2,
        True,
    )
    assert (results[1]["verdict"], results[1]["tries"]) == (VOID, 1)
    assert fake.runs.count(0) == 2
    assert counts(results.values()) == {
        "trials": 6,
        "crashes": 4,
        "saved": 4,
        "lost": 0,
        "all checks held": 4,
        "did not crash": 0,
        "no verdict": 2,
    }


def test_a_defect_of_the_lab_ends_no_other_trial(tmp_path: Path) -> None:
    """It has no verdict, and its traceback lies with the trial's files."""

    def stumble(spec: Spec) -> Outcome:
        raise KeyError("nodes")

    results = run(tmp_path, Lab({3: stumble}))
    assert [r["verdict"] for r in results.values()].count(PASSED) == 5
    assert (results[3]["verdict"], results[3]["machine_lost"]) == (VOID, False)
    assert "KeyError" in results[3]["why"]
    assert "stumble" in (tmp_path / "failed/3/traceback.txt").read_text()


def test_what_has_a_verdict_is_not_run_again(tmp_path: Path) -> None:
    """A lost dump is a verdict, a lost machine is none; the last result of a guest counts."""

    def die(spec: Spec) -> Outcome:
        raise LostVmError("the virtual machine was lost", "QEMU ended with 1")

    run(tmp_path, Lab({0: die, 1: lambda spec: outcome(spec, *NO_DUMP)}), CASES[:3])
    records = Records(tmp_path / lab.RESULTS)
    assert [case.index for case in missing(CASES, records)] == [0, 3, 4, 5]
    fake = Lab()
    run(tmp_path, fake, missing(CASES[:3], records))
    run(tmp_path, fake, CASES[1:2])
    verdicts = [r["verdict"] for r in latest(CASES, Records(tmp_path / lab.RESULTS))]
    assert fake.runs == [0, 1]
    assert verdicts == [PASSED] * 3
    run(tmp_path, Lab({2: die}), CASES[2:3])  # a repeated one that is lost has none any more
    assert [case.index for case in missing(CASES[:3], Records(tmp_path / lab.RESULTS))] == [2]


def test_a_guest_that_is_drawn_otherwise_now_has_no_result(tmp_path: Path) -> None:
    """A change of the tables makes another guest of the same index."""
    run(tmp_path, Lab(), CASES[:1])
    records = Records(tmp_path / lab.RESULTS)
    changed = replace(CASES[0], cpus=CASES[0].cpus + 1)
    assert missing([changed], records) == [changed]
    assert latest([changed], records) == []


def test_an_interrupt_keeps_what_is_done_and_nothing_else(tmp_path: Path) -> None:
    """Guests are told to end, half-made files go, finished results stay."""

    def interrupt(spec: Spec) -> Outcome:
        raise KeyboardInterrupt

    fake = Lab({2: interrupt})
    running = replace(soak(tmp_path, fake), jobs=1)
    records = Records(tmp_path / lab.RESULTS)
    with pytest.raises(KeyboardInterrupt):
        running.trials(CASES, records)
    assert running.stop.is_set()
    assert running._given_up()
    assert not (tmp_path / "running").exists()
    assert not (tmp_path / "failed").exists()
    done = {line["index"] for line in Records(tmp_path / lab.RESULTS).lines}
    assert done <= {0, 1}
    assert 2 not in done


# ---- the table


def result(index: int, verdict: str, **more: Any) -> dict[str, Any]:
    line = {**asdict(draw("s", index)), "verdict": verdict, "why": "", "tries": 1, "stamp": "t"}
    return {**line, "session": 1, "at": 60.0 * index, **more}


LINES = [
    result(0, PASSED, kernel="6.1"),
    result(2, FLAWED, kernel="6.1", why="RAM | odd"),
    result(1, LOST, kernel="6.12", why="panic"),
    result(3, UNCRASHED, kernel="6.12", why="refused"),
    result(4, VOID, kernel="7.3", why="QEMU ended", tries=2, session=2, at=30.0),
]


def test_the_data_has_every_result_once_and_the_time_of_all_sessions(tmp_path: Path) -> None:
    """Sessions are added up; a line of JSON is one trial."""
    data = soak_data(LINES, LINES, MACHINE)
    assert (data["seed"], data["trials"], data["seconds"]) == ("s", 5, 210.0)
    text = json_text(data)
    assert json.loads(text) == data
    assert [r["index"] for r in data["results"]] == [0, 1, 2, 3, 4]
    assert sum('"verdict"' in line for line in text.splitlines()) == 5
    assert json.loads(json_text(soak_data([], [], MACHINE)))["results"] == []


def test_the_table_counts_by_kind_and_explains_what_was_lost() -> None:
    """Crashes, dumps saved, dumps lost; each loss has its explanation or is unexplained."""
    data = soak_data(LINES, LINES, MACHINE)
    text = markdown(data, {"s/1": "a defect, fixed"})
    assert "5 trials, 3 crashes, **2 dumps saved, 1 lost**; in 1 every check held" in text
    assert "make soak N=5 SEED=s" in text
    assert "| kernel | 6.1 | 2 | 2 | 0 |\n|  | 6.12 | 1 | 0 | 1 |\n|  | 7.3 | 0 | 0 | 0 |" in text
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `s/")}
    assert rows["s/1"].endswith("| lost | panic | a defect, fixed |")
    assert rows["s/2"].endswith("| flawed | RAM \\| odd | unexplained |")
    assert set(rows) == {"s/1", "s/2", "s/3", "s/4"}
    good = soak_data(LINES[:1], LINES[:1], MACHINE)
    assert "every dump was saved, and every check held" in markdown(good, {})


# ---- the command


def test_the_command_lists_what_it_would_crash(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dry run crashes nothing and writes nothing."""
    args = ["lab", "soak", "--trials", "2", "--seed", "s", "--dry-run", "-o", str(tmp_path / "x")]
    assert main(args) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["s/0", "s/1"]
    assert not (tmp_path / "x").exists()


def test_the_command_writes_both_documents_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Results that are there are taken up with --resume alone, never mixed by chance."""
    fake = Lab({1: lambda spec: outcome(spec, *NO_DUMP)})
    monkeypatch.setattr(lab, "Soak", lambda *args: replace(Soak(*args), run=fake))
    monkeypatch.setattr("crashlend.lab.kernels.fetch", lambda name, say: KERNEL)
    monkeypatch.setattr("crashlend.lab.records.machine_facts", lambda: MACHINE)
    (tmp_path / "why.json").write_text('{"s/1": "known"}')
    words = ["lab", "soak", "--seed", "s", "-o", str(tmp_path / "out"), "--trials"]
    assert main([*words, "1"]) == 0
    assert main([*words, "2"]) == 2
    assert "--resume" in capsys.readouterr().err
    more = ["--report", str(tmp_path / "soak.md"), "--data", str(tmp_path / "soak.json")]
    more += ["--explained", str(tmp_path / "why.json"), "--resume"]
    assert main([*words, "2", *more]) == 1
    assert sorted(fake.runs) == [0, 1]
    assert "| known |" in (tmp_path / "soak.md").read_text()
    assert json.loads((tmp_path / "soak.json").read_text())["trials"] == 2
    assert "lost: 1" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["1", "a b/1", "1/x", "/1", "1/-1"])
def test_what_names_no_guest_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """--only wants a seed, which is a word, and an index."""
    with pytest.raises(SystemExit) as stopped:
        main(["lab", "soak", "--only", text])
    assert stopped.value.code == 2
    assert verb._only("a-b.c/17") == ("a-b.c", 17)
