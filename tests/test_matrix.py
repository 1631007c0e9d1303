# SPDX-License-Identifier: LGPL-2.1-or-later
"""The matrix on trials that need no QEMU: its table, executors that lose workers, what is kept."""

from __future__ import annotations

import ast
import gc
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import fake_cells
from crashlend.cli.main import VERBS, main
from crashlend.cli.matrix import parse_flags, table_of
from crashlend.errors import EXIT_USAGE, CrashlendError, UsageError
from crashlend.lab.matrix import cell as cell_module
from crashlend.lab.matrix.cell import ABSENT, FAILED, PASSED, VOID, Here, run_cell, verdict
from crashlend.lab.matrix.cluster import check_address, cluster
from crashlend.lab.matrix.report import (
    counts,
    kernels_table,
    made_by_others,
    markdown,
    matrix_data,
    quoted,
)
from crashlend.lab.matrix.run import Matrix, latest, missing
from crashlend.lab.matrix.store import COLUMNS, DATABASE, RESULTS, write_database
from crashlend.lab.matrix.table import Cell, read_table
from crashlend.lab.records import LAB_COMMANDS, Records, json_text, product_commit, source_hash
from crashlend.lab.spec import REFUSED, Spec
from crashlend.sizes import GIB, MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ROOT = Path(__file__).resolve().parent.parent
OWN_TABLE = ROOT / "matrix/compatibility.toml"
NAMES = [
    f"{kernel} {lender} bios"
    for kernel in ("5.10", "6.1", "7.3")
    for lender in ("none", "movable", "cma")
]


def read(*rows: str) -> list[Cell]:
    return read_table(fake_cells.table(*rows), parse_flags)


# ---- the table


def test_a_list_stands_for_each_of_its_values() -> None:
    """Rows are products of their lists, in the order in which they are written."""
    cells = read('kernel = ["6.1", "7.3"]\nfirmware = ["bios", "uefi"]\nlend = "512M"')
    assert [cell.name for cell in cells] == [
        "6.1 auto bios",
        "6.1 auto uefi",
        "7.3 auto bios",
        "7.3 auto uefi",
    ]
    assert {cell.spec["lend_bytes"] for cell in cells} == {512 * MIB}
    assert {cell.spec["memory_bytes"] for cell in cells} == {2 * GIB}


def test_a_row_overrides_the_defaults_and_a_flag_may_repeat() -> None:
    """A list in a list is one value: a flag that is given more than once."""
    (cell,) = read(
        'memory = "1G"\ndimm = [["1G", "512M"]]\nallow-missing-user-data = true\ncpus = 2'
    )
    assert cell.spec["memory_bytes"] == GIB
    assert cell.spec["dimms"] == (GIB, 512 * MIB)
    assert cell.spec["allow_missing_user_data"] is True
    assert cell.spec["cpus"] == 2


def test_names_say_what_tells_cells_apart() -> None:
    """Two guests of one kernel, lender and firmware have other names, and every name is there once."""
    cells = read('kernel = ["6.1", "7.3"]', 'kernel = "6.1"\ncpus = [2, 4]')
    assert [cell.name for cell in cells] == [
        "6.1 auto bios cpus=1",
        "7.3 auto bios",
        "6.1 auto bios cpus=2",
        "6.1 auto bios cpus=4",
    ]


def test_an_id_is_of_the_content_alone() -> None:
    """Another order, another table or a default spelt out is the same trial; another flag is not."""
    (cell,) = read('kernel = "6.1"\nlend = "1G"')
    others = read('lend = "1024M"\nkernel = ["7.3", "6.1"]\ncpus = 1')
    assert [other.id == cell.id for other in others] == [False, True]
    ids = {
        read(f'kernel = "6.1"\nlend = "1G"\n{more}')[0].id
        for more in ("", "cpus = 2", 'crash = "nmi"', 'expect = "lost"')
    }
    assert len(ids) == 4
    assert all(len(one) == 12 for one in ids)


def test_a_cell_goes_through_json_unchanged() -> None:
    """A worker on another machine has the same cell, with the same id and the same Spec."""
    (cell,) = read('dimm = [["1G", "1G"]]\nlend = "1G"\nexpect = "refused"\nwords = "no"\nexit = 1')
    there = Cell.from_json(json.loads(json.dumps(cell.to_json())))
    assert there == cell
    assert there.id == cell.id
    assert Spec(fake_cells.kernel("6.1"), **there.spec) == Spec(
        fake_cells.kernel("6.1"), **cell.spec
    )


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('memory = "2X"', "trial 2, memory = '2X': argument --memory: "),
        ('lender = "nobody"', "trial 2, lender = 'nobody'"),
        ('firmware = ["bios", "coreboot"]', "trial 2, firmware = 'coreboot'"),
        ("lenders = 3", "trial 2, lenders = 3: unrecognized arguments"),
        ('mem = "2G"', "trial 2, mem = '2G': unrecognized arguments"),
        ("kernel = 6.10", "trial 2, kernel = 6.1: it is a name"),
        ('kernel = "/boot/vmlinuz"', "trial 2, kernel: '/boot/vmlinuz' is no kernel that every"),
        ('kernel = "running"', "trial 2, kernel: 'running' is no kernel that every"),
        ('keep = "/tmp"', "trial 2, keep: a matrix has it for all"),
        ("json = true", "trial 2, json: a matrix has it for all"),
        ("cpus = []", "trial 2, cpus: the list is empty"),
        ("cpus = 0", "trial 2, cpus = 0"),
        ("cpus = {a = 1}", "trial 2, cpus = {'a': 1}: write text"),
        ('crash = "gently"', "trial 2, crash = 'gently'"),
        ('allow-missing-user-data = "yes"', "trial 2, allow-missing-user-data = 'yes'"),
        ('expect = "luck"', "trial 2, expect: 'luck' is not known"),
        ('exit = "1"', "trial 2, exit: '1' is not of type int"),
        ('kernel = "5.10"', "trial 2: it is in trial 1 already: 5.10 auto bios"),
        ('kernel = ["7.3", "7.3"]', "trial 2: it is in trial 2 already"),
    ],
)
def test_errors_name_the_row_and_the_key(row: str, words: str) -> None:
    """Whoever wrote the table sees where to look."""
    with pytest.raises(UsageError) as error:
        read('kernel = "5.10"', row)
    assert str(error.value).startswith(words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[trial]\n", "the table is not TOML"),
        ("", "it has no [[trial]]"),
        ("[defaults]\n", "it has no [[trial]]"),
        ("[trial]\nkernel = '6.1'\n", "write [defaults] once"),
        ("[[defaults]]\n[[trial]]\n", "write [defaults] once"),
        ("trial = [1]\n", "write [defaults] once"),
        ("[default]\n[[trial]]\n", "[default] is not known"),
    ],
)
def test_what_is_no_table_is_refused(text: str, words: str) -> None:
    """Never a traceback."""
    with pytest.raises(UsageError) as error:
        read_table(text, parse_flags)
    assert words in str(error.value)


# ---- one cell


def one(**spec: Any) -> Cell:
    return Cell("6.1 movable bios", "6.1", {"lender": "movable", "firmware": "bios", **spec})


def test_a_cell_passes_when_lender_and_system_call_are_as_asked() -> None:
    """A choice that is left to crashlend may come out any way; one that was made may not."""
    spec = Spec(fake_cells.kernel("6.1"), lender="movable")
    plans = {
        "as asked": fake_cells.outcome(spec),
        "cma": fake_cells.outcome(spec, lender="cma"),
        "file": fake_cells.outcome(spec, syscall="file"),
    }
    judged = {
        (cell.spec.get("lender"), cell.spec.get("syscall"), used): verdict(cell, plan)["verdict"]
        for cell in (one(), one(lender="auto"), one(syscall="load"))
        for used, plan in plans.items()
    }
    failed = {key for key, found in judged.items() if found == FAILED}
    assert failed == {
        ("movable", None, "cma"),
        ("movable", "load", "cma"),
        ("movable", "load", "file"),
    }


def test_what_fails_tells_why_and_the_last_words() -> None:
    """The result goes to another machine without its files."""
    spec = Spec(fake_cells.kernel("6.1"), lender="movable")
    found = verdict(one(), fake_cells.outcome(spec, ok=False))
    assert found["verdict"] == FAILED
    assert found["why"] == "dump saved: nothing was left"
    assert "last_words" in found
    assert "last_words" not in verdict(one(), fake_cells.outcome(spec))


def test_a_cell_that_must_be_refused_passes_when_it_is() -> None:
    """``expect`` is judged as in the suite: exit code and words of the refusal."""
    spec = Spec(fake_cells.kernel("6.1"), lender="movable")
    cell = Cell("6.1 movable bios", "6.1", {"lender": "movable"}, REFUSED, "wants user data", 11)
    taken = fake_cells.outcome(spec)
    assert verdict(cell, taken)["verdict"] == FAILED
    taken.report.events.append(
        {"event": "command", "argv": ["load"], "exit": 11, "stderr": "it wants user data"}
    )
    assert verdict(cell, taken)["verdict"] == PASSED


def test_a_trial_never_raises(tmp_path: Path) -> None:
    """A kernel that is not offered, a lost machine and a defect of the lab's are results, without paths."""
    names = ["9.9 none bios", "6.1 none bios", "7.3 none bios"]
    fates(tmp_path, {names[1]: fake_cells.LOSE_EVERY_MACHINE, names[2]: fake_cells.STUMBLE})
    gone, lost, broken = (
        fake_cells.run(tmp_path, cell.to_json()) for cell in fake_cells.cells(*names)
    )
    assert (gone["verdict"], lost["verdict"], broken["verdict"]) == (ABSENT, VOID, VOID)
    assert (lost["machine_lost"], broken["machine_lost"]) == (True, False)
    assert "KeyError" in broken["why"]
    assert run_cell({"nonsense": 1})["verdict"] == VOID
    for result in (gone, lost, broken):
        assert json.loads(json.dumps(result)) == result
        assert str(tmp_path) not in json.dumps(result)
        assert len(result["sources"]) == 12


def test_files_of_what_fails_stay_on_this_machine(tmp_path: Path) -> None:
    """Of what passes nothing stays, and of what fails everything."""
    fates(tmp_path, {"7.3 none bios": fake_cells.FAIL})
    good, bad = fake_cells.cells("6.1 none bios", "7.3 none bios")
    here = Here(tmp_path / "out", run=partial(fake_cells.trial, tmp_path), get=fake_cells.kernel)
    assert [here(cell.to_json())["verdict"] for cell in (good, bad)] == [PASSED, FAILED]
    assert [path.name for path in (tmp_path / "out/failed").iterdir()] == [bad.id]
    assert (tmp_path / "out/failed" / bad.id / "console.log").read_text() == "its last words"
    assert list((tmp_path / "out/running").iterdir()) == []


# ---- what a result is of


def git(directory: Path, *words: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, *words], cwd=directory, check=True, capture_output=True)


def test_a_result_is_of_the_sources_that_run_on_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands that the guest runs count; the lab and its own commands do not, and nothing is cached."""
    monkeypatch.setattr("crashlend.lab.records.files", lambda name: tmp_path)
    names = ["plan.py", "cli/load_verb.py", "cli/output.py", "lab/trial.py", *LAB_COMMANDS]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    assert product_commit() == ""
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "all")
    told: dict[str, tuple[bool, bool]] = {}
    for name in names:
        before = product_commit()
        (tmp_path / name).write_text("2")
        dirty = product_commit()
        git(tmp_path, "commit", "-qam", name)
        told[name] = (dirty == f"{before}+", product_commit() != before)
    theirs = (True, True)
    assert {name for name, seen in told.items() if seen == theirs} == set(names[:3])
    assert {seen for name, seen in told.items() if name not in names[:3]} == {(False, False)}


def test_the_digest_of_the_sources_has_the_commands_that_guests_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is that of now, whatever it was before."""
    monkeypatch.setattr("crashlend.lab.records.files", lambda name: tmp_path)
    found = []
    for name in ("cli/load_verb.py", "lab/trial.py", "cli/matrix.py", "lab/matrix/run.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
        found.append(source_hash(lab_only=False))
    assert len(set(found[:2])) == 2
    assert len(set(found[1:])) == 1


# estimate stands beside lab, but is made of guests, too
LAB_VERBS = ("lab", "estimate")


def test_the_labs_own_commands_are_those_that_no_other_verb_needs() -> None:
    """A new module of cli/ is on one side or the other."""
    directory = ROOT / "src/crashlend/cli"
    everything = {path.stem for path in directory.glob("*.py")}
    needed, wanted = (
        set(),
        {"__init__", "main", *(f"{v}_verb" for v in VERBS if v not in LAB_VERBS)},
    )
    while wanted:
        needed |= wanted
        for path in [directory / f"{name}.py" for name in wanted]:
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and node.module == "crashlend.cli":
                    wanted = wanted | {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    wanted = wanted | {(node.module or "").removeprefix("crashlend.cli.")}
        wanted = (wanted & everything) - needed
    assert sorted(f"cli/{name}.py" for name in everything - needed) == sorted(
        name for name in LAB_COMMANDS if name.startswith("cli/")
    )


def test_a_cell_tells_the_sources_from_before_its_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are copied into the guest as it begins; a commit while it runs is not in it."""
    now = {"commit": "old", "sources": "old sources"}
    monkeypatch.setattr(cell_module, "product_commit", lambda: now["commit"])
    monkeypatch.setattr(cell_module, "source_hash", lambda *, lab_only: now["sources"])

    def trial(spec: Spec, **_: Any) -> Any:
        now.update(commit="new", sources="new sources")
        return fake_cells.outcome(spec)

    (cell,) = fake_cells.cells("6.1 none bios")
    found = [run_cell(cell.to_json(), run=trial, get=fake_cells.kernel) for _ in range(2)]
    assert [(r["commit"], r["sources"]) for r in found] == [
        ("old", "old sources"),
        ("new", "new sources"),
    ]


# ---- executors


def fates(directory: Path, by_name: dict[str, str]) -> None:
    (directory / "fates.json").write_text(json.dumps(by_name))


def go(
    tmp_path: Path,
    start: Callable[[], Executor],
    cells: Sequence[Cell],
    say: Callable[[str], None] = lambda words: None,
) -> dict[str, dict[str, Any]]:
    """Run them, and check that each has exactly one line, which is what was returned."""
    records = Records(tmp_path / RESULTS)
    results = Matrix(start, partial(fake_cells.run, tmp_path), say).run(cells, records)
    lines = [json.loads(line) for line in (tmp_path / RESULTS).read_text().splitlines()]
    assert sorted(line["cell"] for line in lines) == sorted(cell.id for cell in cells)
    assert sorted(r["cell"] for r in results) == sorted(line["cell"] for line in lines)
    return {line["name"]: line for line in lines}


def test_a_lost_machine_is_tried_once_more_and_is_no_failure(tmp_path: Path) -> None:
    """Lost once: the second verdict counts. Lost twice: there is none. A failure is never repeated."""
    a, b, c, d = NAMES[:4]
    fates(
        tmp_path, {a: fake_cells.LOSE_MACHINE, b: fake_cells.LOSE_EVERY_MACHINE, c: fake_cells.FAIL}
    )
    said: list[str] = []
    found = go(tmp_path, lambda: ThreadPoolExecutor(2), fake_cells.cells(a, b, c, d), said.append)
    seen = {name: (r["verdict"], r["machines_lost"]) for name, r in found.items()}
    assert seen == {a: (PASSED, 1), b: (VOID, 2), c: (FAILED, 0), d: (PASSED, 0)}
    begun = fake_cells.begun(tmp_path)
    assert [begun.count(name) for name in (a, b, c, d)] == [2, 2, 1, 1]
    assert sum("the last one" in words for words in said) == 1
    assert any(words.startswith("2/4 ") and " min left" in words for words in said)
    assert any("FAILED" in words and "nothing was left" in words for words in said)


def kill_the_waiting(directory: Path, first: threading.Event | None = None) -> threading.Thread:
    """Kills the process that a cell runs in, once that waits for it, and ``first`` has happened."""

    def kill() -> None:
        pid = fake_cells.wait_for_pid(directory)
        if first is None or first.wait(fake_cells.WAIT_SECONDS):
            os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def test_cells_of_a_killed_process_run_again(tmp_path: Path) -> None:
    """A pool that breaks takes all its cells with it: another pool runs them, each has one verdict."""
    fates(tmp_path, {NAMES[2]: fake_cells.AWAIT_KILL})
    pools = []

    def start() -> Executor:
        pools.append(ProcessPoolExecutor(2, mp_context=get_context("spawn")))
        return pools[-1]

    killer = kill_the_waiting(tmp_path)
    found = go(tmp_path, start, fake_cells.cells(*NAMES))
    killer.join()
    assert [found[name]["verdict"] for name in NAMES] == [PASSED] * len(NAMES)
    assert found[NAMES[2]]["workers_lost"] == 1
    assert len(pools) == 2


def test_a_cell_that_kills_every_worker_has_no_verdict(tmp_path: Path) -> None:
    """It is given up after three workers, and the others have theirs."""
    fates(tmp_path, {NAMES[1]: fake_cells.DIE})
    start = partial(ProcessPoolExecutor, 1, mp_context=get_context("spawn"))
    found = go(tmp_path, start, fake_cells.cells(*NAMES[:2]))
    assert found[NAMES[0]]["verdict"] == PASSED
    assert (found[NAMES[1]]["verdict"], found[NAMES[1]]["workers_lost"]) == (VOID, 3)
    assert found[NAMES[1]]["why"] == "its worker was lost 3 times (BrokenProcessPool)"


class Unusable(ThreadPoolExecutor):
    """An executor that takes nothing."""

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("cannot schedule new futures after shutdown")


def test_an_executor_that_takes_nothing_is_an_error_in_words(tmp_path: Path) -> None:
    """Nothing is written, and the message says how to go on."""
    with pytest.raises(CrashlendError) as error:
        go(tmp_path, lambda: Unusable(1), fake_cells.cells(*NAMES))
    assert "--resume" in error.value.hint
    assert not (tmp_path / RESULTS).exists()


def test_an_interrupt_leaves_what_is_finished(tmp_path: Path) -> None:
    """What runs is told to end, what waits never begins, what is finished is in the file."""
    ended: list[bool] = []
    begun: list[str] = []

    def trial(content: dict[str, Any]) -> dict[str, Any]:
        begun.append(content["name"])
        if content["name"] == NAMES[2]:
            raise KeyboardInterrupt
        return fake_cells.run(tmp_path, content)

    records = Records(tmp_path / RESULTS)
    matrix = Matrix(lambda: ThreadPoolExecutor(1), trial, end=lambda: ended.append(True))
    with pytest.raises(KeyboardInterrupt):
        matrix.run(fake_cells.cells(*NAMES), records)
    assert ended == [True]
    known = {line["name"] for line in Records(tmp_path / RESULTS).lines}
    assert NAMES[2] not in known
    assert known <= set(begun)
    assert {NAMES[0], NAMES[1]} <= known


@pytest.mark.filterwarnings("default")
def test_a_cluster_that_does_not_answer_is_an_error_in_words() -> None:
    """Within the time that was given, and never a traceback."""
    with pytest.raises(CrashlendError) as error, cluster("tcp://127.0.0.1:1", connect_seconds=0.2):
        pass
    assert "cannot reach the cluster at tcp://127.0.0.1:1" in str(error.value)


def test_without_dask_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra."""
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(CrashlendError) as error, cluster("tcp://127.0.0.1:1"):
        pass
    assert "crashlend[cluster]" in error.value.hint


# ---- what is kept


def test_the_database_is_the_lines(tmp_path: Path) -> None:
    """SQLite has every line, in order, and of each cell the last one in its view."""
    fates(tmp_path, {NAMES[1]: fake_cells.LOSE_EVERY_MACHINE, NAMES[2]: fake_cells.FAIL})
    cells = fake_cells.cells(*NAMES)
    go(tmp_path, lambda: ThreadPoolExecutor(1), cells)
    fates(tmp_path, {})
    records = Records(tmp_path / RESULTS)
    Matrix(lambda: ThreadPoolExecutor(1), partial(fake_cells.run, tmp_path)).run(
        cells[1:2], records
    )
    write_database(records.lines, tmp_path / DATABASE)
    write_database(records.lines, tmp_path / DATABASE)  # made anew, not added to
    lines = [json.loads(line) for line in (tmp_path / RESULTS).read_text().splitlines()]
    with closing(sqlite3.connect(tmp_path / DATABASE)) as database:
        database.row_factory = sqlite3.Row
        rows = [dict(row) for row in database.execute("SELECT * FROM results ORDER BY line")]
        last = {row["cell"]: row["json"] for row in database.execute("SELECT * FROM latest")}
    assert [json.loads(row["json"]) for row in rows] == lines
    assert [{name: row[name] for name in COLUMNS} for row in rows] == [
        {name: line.get(name) for name in COLUMNS} for line in lines
    ]
    assert {cell: json.loads(text) for cell, text in last.items()} == {
        line["cell"]: line for line in latest(cells, lines)
    }
    assert [path.name for path in tmp_path.glob(".new-*")] == []


def test_a_line_that_was_cut_off_is_a_cell_to_run(tmp_path: Path) -> None:
    """The machine's power may go while a result is written."""
    cells = fake_cells.cells(*NAMES[:3])
    go(tmp_path, lambda: ThreadPoolExecutor(1), cells)
    path = tmp_path / RESULTS
    path.write_bytes(path.read_bytes()[:-20])
    records = Records(path)
    lost = missing(cells, records.lines)
    assert len(lost) == 1
    Matrix(lambda: ThreadPoolExecutor(1), partial(fake_cells.run, tmp_path)).run(lost, records)
    assert missing(cells, Records(path).lines) == []
    assert [r["verdict"] for r in latest(cells, Records(path).lines)] == [PASSED] * 3


def test_lines_that_are_no_results_are_left_out(tmp_path: Path) -> None:
    """The end of a line that was cut off may be JSON, and a line from elsewhere may have no stamp."""
    (cell,) = fake_cells.cells(NAMES[0])
    line = {key: value for key, value in result(NAMES[0], PASSED).items() if key != "stamp"}
    path = tmp_path / RESULTS
    path.write_text("\n".join(["7", "[1]", "null", '"a"', json.dumps(line)]) + "\n")
    lines = Records(path).lines
    assert lines == [line]
    assert missing([cell], lines) == []
    data = matrix_data("table.toml", [cell], latest([cell], lines))
    assert data["results"] == [{**line, "sources": ""}]


# ---- the command

ROWS = ('kernel = ["6.1", "7.3"]\nlender = ["none", "movable"]\nfirmware = ["bios", "uefi"]',)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words of the command on a table of eight cells, whose trials need no QEMU."""
    monkeypatch.setattr(cell_module, "Here", fake_cells.here(tmp_path))
    monkeypatch.setattr("crashlend.lab.qemu.find_qemu", lambda: "qemu")
    monkeypatch.setattr("crashlend.lab.firmware.find_ovmf", lambda: None)
    (tmp_path / "table.toml").write_text(fake_cells.table(*ROWS))
    return ["lab", "matrix", str(tmp_path / "table.toml"), "-o", str(tmp_path / "out")]


def files(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def test_the_command_lists_what_it_would_crash(
    tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A dry run crashes nothing and makes nothing; later it tells the verdicts."""
    assert main([*command, "--dry-run"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 8
    assert not (tmp_path / "out").exists()
    assert main([*command, "--only", "6.1 none *"]) == 0
    capsys.readouterr()
    assert main([*command, "--dry-run"]) == 0
    assert capsys.readouterr().out.count(PASSED) == 2


def test_the_command_goes_on_and_twice_is_once(
    tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """With --resume what has a verdict is left alone: run again, it changes no byte of any file."""
    fates(tmp_path, {"7.3 none uefi": fake_cells.FAIL})
    (tmp_path / "README.md").write_text("a\n<!-- matrix: kernels -->\nold\n<!-- end -->\nb\n")
    written = ["--report", str(tmp_path / "out/page.md"), "--data", str(tmp_path / "out/data.json")]
    command = [*command, *written, "--quote", str(tmp_path / "README.md")]
    assert main([*command, "--only", "6.1 *"]) == 0
    assert main(command) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 1
    assert (
        "passed: 7, failed: 1, no such kernel: 0, no verdict: 0, not run: 0\n"
        in capsys.readouterr().out
    )
    before, begun = files(tmp_path / "out"), fake_cells.begun(tmp_path)
    assert sorted(begun) == sorted(set(begun))
    assert len(begun) == 8
    assert main([*command, "--resume"]) == 1
    after = files(tmp_path / "out")
    database = str(tmp_path / "out" / DATABASE)
    assert {k: v for k, v in after.items() if k != database} == {
        k: v for k, v in before.items() if k != database
    }
    assert fake_cells.begun(tmp_path) == begun
    data = json.loads((tmp_path / "out/data.json").read_text())
    assert data["not_run"] == []
    assert len(data["results"]) == 8
    assert (tmp_path / "README.md").read_text() == quoted(
        "a\n<!-- matrix: kernels -->\n<!-- end -->\nb\n", data
    )
    assert (
        "7.3 (Debian 7.3.0-1) | BIOS, UEFI **FAIL** | BIOS, UEFI |"
        in (tmp_path / "README.md").read_text()
    )


def test_the_last_line_tells_how_many_results_are_of_other_sources(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """--resume leaves out what has a verdict, whatever made it: whoever reads that is told."""
    monkeypatch.setattr(cell_module, "source_hash", lambda *, lab_only: "before the change")
    assert main([*command, "--only", "6.1 none *"]) == 0
    data = {"results": [{"sources": "a"}, {"sources": "b"}, {"sources": "b"}]}
    assert made_by_others(data, "a") == 2
    assert capsys.readouterr().out.endswith("not run: 6; 2 of other sources than these\n")


def test_only_repeats_a_cell_whose_last_verdict_counts(
    tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """After a defect is mended its cell is run once more, and nothing else."""
    fates(tmp_path, {"6.1 movable bios": fake_cells.FAIL})
    assert main(command) == 1
    fates(tmp_path, {})
    cell = next(c for c in table_of(Path(command[2])) if c.name == "6.1 movable bios")
    assert main([*command, "--only", cell.id, "--json"]) == 0
    data = json.loads(capsys.readouterr().out.partition("\n")[2])
    assert {r["verdict"] for r in data["results"]} == {PASSED}
    assert fake_cells.begun(tmp_path).count("6.1 movable bios") == 2
    assert len(fake_cells.begun(tmp_path)) == 9
    assert main([*command, "--only", "6.2 *"]) == 2


def test_a_repeated_cell_whose_machine_is_lost_runs_again(
    tmp_path: Path, command: list[str]
) -> None:
    """The last line counts for --resume as it does for the report: no verdict is one to run."""
    assert main(command) == 0
    name = "6.1 movable bios"
    fates(tmp_path, {name: fake_cells.LOSE_EVERY_MACHINE})
    assert main([*command, "--only", name]) == 1
    lines = Records(tmp_path / "out" / RESULTS).lines
    assert [cell.name for cell in missing(table_of(Path(command[2])), lines)] == [name]
    fates(tmp_path, {})
    assert main([*command, "--resume"]) == 0
    lines = Records(tmp_path / "out" / RESULTS).lines
    assert [r["verdict"] for r in lines if r["name"] == name] == [PASSED, VOID, PASSED]
    assert len(fake_cells.begun(tmp_path)) == 8 + 2 + 1  # a lost machine is tried twice


@pytest.mark.parametrize("run", ["matrix FILE", "agree", "soak"])
@pytest.mark.parametrize("jobs", ["0", "-2", "two"])
def test_no_run_takes_less_than_one_job(
    capsys: pytest.CaptureFixture[str], run: str, jobs: str
) -> None:
    """0 is not one, and nothing is looked for before that is said."""
    with pytest.raises(SystemExit) as caught:
        main(["lab", *run.split(), "--jobs", jobs])
    assert caught.value.code == EXIT_USAGE
    assert f"{jobs!r} is not a number from 1 on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--dask", "banana"], "--dask 'banana': it is not SCHEME://HOST:PORT"),
        (["--dask", ""], "--dask '': it is not SCHEME://HOST:PORT"),
        (["--dask", "host:8786"], "--dask 'host:8786': it is not SCHEME://HOST:PORT"),
        (["--dask", "tcp://host"], "--dask 'tcp://host': it is not SCHEME://HOST:PORT"),
        (["--dask", "tcp://host:0"], "--dask 'tcp://host:0': it is not"),
        (["--dask", "tcp://host:99999"], "--dask 'tcp://host:99999': it is not"),
    ],
)
def test_flags_that_make_no_sense_are_refused(
    tmp_path: Path,
    command: list[str],
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    complaint: str,
) -> None:
    """Before anything runs, in words; Dask, which leaves a broken client behind, never sees them."""
    assert main([*command, *words]) == EXIT_USAGE
    gc.collect()
    said = capsys.readouterr().err
    assert complaint in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "address", ["tcp://a.example:8786", "tls://10.0.0.1:1", "tcp://[::1]:65535", "ws://h:80"]
)
def test_what_dask_calls_an_address_is_taken(address: str) -> None:
    """A name, IPv4, or IPv6 in brackets."""
    check_address(address)


@pytest.mark.parametrize(
    ("text", "code", "complaint"),
    [
        (None, 1, "cannot read"),
        ("# no marker\n", 2, "it has no place for the table"),
        ("<!-- matrix: kernels -->\nnever ended\n", 2, "it has no place for the table"),
        ("<!-- matrix: seas -->\n<!-- end -->\n", 2, "it has no place for the table"),
    ],
)
def test_what_cannot_be_renewed_is_refused_before_the_run(
    tmp_path: Path,
    command: list[str],
    capsys: pytest.CaptureFixture[str],
    text: str | None,
    code: int,
    complaint: str,
) -> None:
    """Not after hours of crashes, and never left unchanged without a word."""
    if text is not None:
        (tmp_path / "page.md").write_text(text)
    assert main([*command, "--quote", str(tmp_path / "page.md")]) == code
    assert complaint in capsys.readouterr().err
    assert fake_cells.begun(tmp_path) == []


def test_a_run_that_was_killed_goes_on(
    tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Kill -9 in the middle: what was finished is not run again, and nothing is lost or twice."""
    fates(tmp_path, {"7.3 movable bios": fake_cells.AWAIT_KILL})
    program = (
        "import sys, fake_cells; from pathlib import Path\n"
        "from crashlend.lab import firmware, qemu; from crashlend.lab.matrix import cell\n"
        "cell.Here = fake_cells.here(Path(sys.argv[1])); qemu.find_qemu = lambda: 'qemu'\n"
        "firmware.find_ovmf = lambda: None\n"
        "from crashlend.cli.main import main; sys.exit(main(sys.argv[2:]))\n"
    )
    where = os.pathsep.join([str(ROOT / "tests"), str(ROOT / "src")])
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path), *command, "--jobs", "1"],
        env={**os.environ, "PYTHONPATH": where},
        stderr=subprocess.DEVNULL,
    ) as running:
        pid = fake_cells.wait_for_pid(tmp_path)
        assert pid == running.pid  # threads: the guests are in the command's own process
        os.kill(pid, signal.SIGKILL)
    finished = {line["name"] for line in Records(tmp_path / "out" / RESULTS).lines}
    assert finished
    assert main([*command, "--resume"]) == 0
    begun = fake_cells.begun(tmp_path)
    assert [begun.count(name) for name in finished] == [1] * len(finished)
    assert begun.count("7.3 movable bios") == 2
    lines = Records(tmp_path / "out" / RESULTS).lines
    assert sorted(line["name"] for line in lines) == sorted(
        cell.name for cell in table_of(Path(command[2]))
    )
    assert not (tmp_path / "out/running").exists()


@pytest.fixture
def workers() -> Iterator[Any]:
    """A Dask cluster of two processes on this machine."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        dashboard_address="127.0.0.1:0",  # any port: other clusters may be here
        host="127.0.0.1",
        silence_logs=50,
    ) as made:
        yield made


@pytest.mark.filterwarnings("default")  # what Dask's own dependencies warn of
def test_a_dask_cluster_that_loses_a_worker_and_a_machine(
    tmp_path: Path, command: list[str], workers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each cell has exactly one verdict where a worker is killed by its pid and one VM is lost."""
    lost, killed = "6.1 movable bios", "7.3 none uefi"
    fates(tmp_path, {lost: fake_cells.LOSE_MACHINE, killed: fake_cells.AWAIT_KILL})
    trial = partial(fake_cells.run, tmp_path)
    monkeypatch.setattr("crashlend.lab.matrix.run.Matrix", partial(Matrix, trial=trial))
    said: list[str] = []
    # results that a worker has and nobody fetched die with it: the lost machine's must be here first
    machine_lost = threading.Event()

    def say(words: str) -> None:
        said.append(words)
        if "once more" in words:
            machine_lost.set()

    monkeypatch.setattr("crashlend.cli.matrix.progress", say)
    killer = kill_the_waiting(tmp_path, machine_lost)
    assert main([*command, "--dask", workers.scheduler_address]) == 0
    killer.join()
    lines = Records(tmp_path / "out" / RESULTS).lines
    names = [cell.name for cell in table_of(Path(command[2]))]
    assert sorted(line["name"] for line in lines) == sorted(names)
    assert {line["verdict"] for line in lines} == {PASSED}
    assert {line["name"]: line["machines_lost"] for line in lines if line["machines_lost"]} == {
        lost: 1
    }
    assert fake_cells.begun(tmp_path).count(killed) == 2
    assert said[0] == "2 workers, 2 trials at a time"
    pids = {line.split(";")[1] for line in (tmp_path / "begun").read_text().splitlines()}
    assert str(os.getpid()) not in pids


@pytest.mark.filterwarnings("default")
def test_the_trial_itself_goes_through_dask(tmp_path: Path, workers: Any) -> None:
    """run_cell, which --dask sends, on a worker: with a kernel that is refused before any download."""
    said: list[str] = []
    cell = Cell("six none bios", "six", {"lender": "none", "firmware": "bios"})
    with cluster(workers.scheduler_address, said.append) as start:
        (found,) = Matrix(start, say=said.append).run([cell], Records(tmp_path / RESULTS))
    assert (found["verdict"], found["workers_lost"]) == (VOID, 0)
    assert found["why"] == "no kernel 'six': not a name"
    (line,) = Records(tmp_path / RESULTS).lines
    assert line == {"stamp": source_hash(lab_only=False)[:12], **found}
    assert found["commit"] == product_commit()
    assert said[0] == "2 workers, 2 trials at a time"


@pytest.mark.filterwarnings("default")
def test_a_cluster_without_workers_is_an_error_in_words() -> None:
    """Trials would wait there for ever."""
    from distributed import LocalCluster

    with (
        LocalCluster(
            n_workers=0, dashboard_address="127.0.0.1:0", host="127.0.0.1", silence_logs=50
        ) as made,
        pytest.raises(CrashlendError) as error,
        cluster(made.scheduler_address),
    ):
        pass
    assert "it has no workers" in str(error.value)
    assert f"dask worker {made.scheduler_address}" in error.value.hint


def test_a_table_that_is_not_there_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    """It has an exit code and words, as every error."""
    assert main(["lab", "matrix", "/nonexistent.toml", "--dry-run"]) == 1
    assert "cannot read /nonexistent.toml" in capsys.readouterr().err


# ---- the documents


def result(name: str, found: str, **more: Any) -> dict[str, Any]:
    (cell,) = fake_cells.cells(name)
    version, lender, firmware = name.split()
    known = {
        "cell": cell.id,
        "name": name,
        "kernel": version,
        "lender": lender,
        "firmware": firmware,
    }
    return {**known, "verdict": found, "why": "", "stamp": "tree", "commit": "abc", **more}


def test_the_table_says_which_firmware_passed() -> None:
    """Kernels in the order of their age; what did not pass has its number and its reason."""
    results = [
        result("6.12 none bios", PASSED, kernel_version="6.12.1-1", seconds=61.0),
        result("6.12 none uefi", FAILED, kernel_version="6.12.1-1", why="dump saved:\nno | dump"),
        result("6.1 none bios", PASSED, kernel_version="6.1.1-1", lent_bytes=512 * MIB),
        result("6.1 cma bios", VOID, why="QEMU ended"),
        result("5.10 cma bios", ABSENT, why="not in sid"),
    ]
    assert kernels_table(results).splitlines() == [
        "| kernel | `none` | `cma` |",
        "| --- | --- | --- |",
        "| 5.10 (not offered) |  | BIOS no such kernel |",
        "| 6.1 (Debian 6.1.1-1) | BIOS | BIOS no verdict |",
        "| 6.12 (Debian 6.12.1-1) | BIOS, UEFI **FAIL** |  |",
    ]
    cells = fake_cells.cells(*(r["name"] for r in results), "7.3 cma bios")
    data = matrix_data("table.toml", cells, results)
    assert json.loads(json_text(data)) == data
    assert counts(data) == {
        "passed": 2,
        "failed": 1,
        "no such kernel": 1,
        "no verdict": 1,
        "not run": 1,
    }
    text = markdown(data)
    assert "**2 passed, 1 failed, 1 no such kernel, 1 no verdict, 1 not run** of 6 cells" in text
    assert "(`6.12 none uefi`" not in text
    numbered = [line for line in text.splitlines() if line[:2] in ("1.", "2.", "3.")]
    assert [line.split("`")[1] for line in numbered] == [
        "6.12 none uefi",
        "6.1 cma bios",
        "5.10 cma bios",
    ]
    assert numbered[0].endswith("dump saved: no | dump")
    assert "| **FAIL** (1) |" in text
    assert "Not run yet: `7.3 cma bios`." in text


def test_the_documents_are_what_the_kept_results_say() -> None:
    """docs/compatibility.md and the README's table are what `make matrix` writes of its results."""
    data = json.loads((ROOT / "docs/results/matrix.json").read_text())
    assert (ROOT / "docs/results/matrix.json").read_text() == json_text(data)
    assert (ROOT / "docs/compatibility.md").read_text() == markdown(data)
    readme = (ROOT / "README.md").read_text()
    assert "<!-- matrix: kernels -->" in readme
    assert readme == quoted(readme, data)


def test_the_kept_results_are_of_the_table() -> None:
    """Each is of a cell of matrix/compatibility.toml as that is now; what has none is told."""
    data = json.loads((ROOT / "docs/results/matrix.json").read_text())
    assert data["table"] == OWN_TABLE.relative_to(ROOT).as_posix()
    cells = table_of(OWN_TABLE)
    told = [cell for cell in cells if cell.name not in data["not_run"]]
    assert [r["cell"] for r in data["results"]] == [cell.id for cell in told]
    assert [r["name"] for r in data["results"]] == [cell.name for cell in told]
    assert len(data["not_run"]) == len(cells) - len(told)


def test_the_table_has_what_is_promised() -> None:
    """Each lender on the kernels that it is for, none on all of them, under BIOS and UEFI."""
    found: dict[str, set[str]] = {}
    for cell in table_of(OWN_TABLE):
        kernels = found.setdefault(f"{cell.spec['lender']} {cell.spec['firmware']}", set())
        kernels.add(cell.kernel)
    on_all = {"5.10", "6.1", "6.12", "6.17", "6.18", "7.2", "7.3"}
    for firmware in ("bios", "uefi"):
        assert found[f"none {firmware}"] == on_all
        assert found[f"movable {firmware}"] == on_all - {"7.2"}
        assert found[f"movable-zone {firmware}"] == {"6.1", "7.3"}
        assert found[f"cma {firmware}"] == {"7.2", "7.3"}
