# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the guest does when it crashes: loads that begin, are topped up, and are measured."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import crashlend
from crashlend.lab.kernels import Kernel
from crashlend.lab.qemu import Report
from crashlend.lab.spec import Command, Spec
from crashlend.lab.working import check_work
from crashlend.sizes import GIB, MIB
from test_core_imports import python39

KERNEL = Kernel("6.1", "6.1.0", "bookworm", Path("vmlinuz"), Path("modules"), None)
FILE = Path(crashlend.__file__).parent / "lab/guestfiles/loads.py"


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("loads", FILE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "DIRECTORY", tmp_path)
    return module


class Memory:
    """A guest's /proc/meminfo, which the load under test changes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, loads: ModuleType, **more: int) -> None:
        self.now = {"MemTotal": GIB, "MemFree": GIB, "MemAvailable": GIB, "AnonPages": 0}
        self.now |= {"Cached": 0, "Buffers": 0, "AnonHugePages": 0, **more}
        monkeypatch.setattr(loads, "meminfo", lambda: dict(self.now))
        monkeypatch.setattr(loads.Load, "take", self.take)

    def take(self, size_bytes: int, flags: int = 0, *, huge: bool = False) -> None:
        self.now["AnonPages"] += size_bytes
        self.now["AnonHugePages"] += size_bytes if huge else 0
        self.now["MemAvailable"] -= size_bytes


def test_meminfo_is_bytes_and_counts(loads: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """KB become bytes; huge pages have no unit and stay counts."""
    text = "MemTotal:    2048 kB\nHugePages_Free:       7\nDirectMap4k:  4 kB\n"
    monkeypatch.setattr(loads.Path, "read_text", lambda self: text)
    expected = {"MemTotal": 2 * MIB, "HugePages_Free": 7, "DirectMap4k": 4096}
    assert loads.meminfo() == expected


def test_anonymous_memory_is_taken_and_topped_up(
    loads: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the per cent of MemTotal; what others own counts; what has gone is taken anew."""
    memory = Memory(monkeypatch, loads, AnonPages=GIB // 4)
    load = loads.Anon(60)
    load.run()
    assert 60 <= load.active() < 64
    memory.now["AnonPages"] -= GIB // 4
    load.run()
    assert load.active() >= 60


def test_no_load_drives_the_guest_into_oom(
    loads: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops where programs would be killed; that it is too little is then measured."""
    for load in (loads.Anon(80), loads.Thp(900)):
        memory = Memory(monkeypatch, loads, MemAvailable=200 * MIB)
        load.run()
        assert memory.now["MemAvailable"] >= 100 * MIB
        assert load.active() < load.amount


def test_the_cache_takes_what_is_free(
    loads: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A file of holes is read until free memory is near the watermarks, and no longer."""
    memory = Memory(monkeypatch, loads, MemTotal=256 * MIB, MemFree=256 * MIB)

    def read(file: int, buffers: list[memoryview], at: int) -> int:
        memory.now["Cached"] += MIB
        memory.now["MemFree"] -= MIB
        return len(buffers[0])

    monkeypatch.setattr(loads.os, "preadv", read)
    load = loads.Cache(0)
    assert (tmp_path / "holes").stat().st_blocks == 0
    load.run()
    assert load.active() >= 94
    read_so_far = memory.now["Cached"]
    load.run()
    assert memory.now["Cached"] == read_so_far


def test_a_load_that_is_last_begins_last(
    loads: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others begin at once; in the end all are topped up before any is measured."""
    said: list[str] = []

    class Told(loads.Load):  # type: ignore[misc, name-defined]
        def run(self) -> None:
            said.append(f"run {self.amount}")

        def active(self) -> int:
            said.append(f"measure {self.amount}")
            return 7

    monkeypatch.setattr(loads, "LOADS", {"told": Told})
    working = loads.Loads()
    working.take("told", "1", "before")
    working.take("told", "2", "last")
    assert said == ["run 1"]
    results: list[dict[str, Any]] = working.go_on()
    assert said[1:] == ["run 1", "run 2", "measure 1", "measure 2"]
    assert results[1] == {"load": "told", "when": "last", "amount": 2, "active": 7}


def test_programs_that_died_are_no_load(loads: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may count others' work: what counts is whether the load's own programs live."""
    monkeypatch.setattr(loads, "MEASURE_SECONDS", 0)
    monkeypatch.setattr(loads, "PATIENCE_SECONDS", 0)
    load = loads.Counted(1)
    counted = iter(range(100))
    monkeypatch.setattr(load, "count", lambda: next(counted), raising=False)
    assert load.active() == 1
    with subprocess.Popen([sys.executable, "-c", ""]) as program:
        program.wait()
        load.programs.append(program)
        assert load.active() == 0


def test_used_pages_are_those_that_are_in_no_free_block(
    loads: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """KPF_BUDDY is bit 10; each page frame has eight bytes, of lent memory alone."""
    flags = [0, 1 << 10, 0, 1 << 10 | 1, 1 << 5, 0]
    table = tmp_path / "kpageflags"
    table.write_bytes(b"".join(flag.to_bytes(8, "little") for flag in flags))
    monkeypatch.setattr(loads, "open", lambda path, *more, **named: table.open("rb"), raising=False)
    monkeypatch.setattr(loads, "meminfo", lambda: {"MemTotal": 1})
    found = loads.use_of([[4096, 3 * 4096], [4 * 4096, 6 * 4096]])
    assert (found["lent_pages"], found["lent_used_pages"]) == (4, 3)
    assert found["memory"]["MemTotal"] == 1


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="not Linux")
def test_it_runs_under_the_oldest_python_of_the_guests() -> None:
    """Debian 11 has Python 3.9: the module imports there, and reads its meminfo."""
    words = "import loads; assert loads.meminfo()['MemTotal'] > 0; loads.Load(1).take(1 << 20)"
    environment = {**os.environ, "PYTHONPATH": str(FILE.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([python39(), "-c", words], check=True, env=environment)


# ---- was the load there


def working(load: str, active: int, amount: int, *, used: int = 100) -> dict[str, Any]:
    memory = dict.fromkeys(("MemTotal", "MemFree", "Cached", "AnonPages"), MIB)
    event = {"event": "working", "load": load, "active": active, "amount": amount}
    return {**event, "memory": memory, "lent_pages": 100, "lent_used_pages": used}


@pytest.mark.parametrize(
    ("load", "amount", "enough", "short"),
    [
        ("anon", 60, 54, 53),
        ("cache", 0, 70, 69),
        ("dirty", 100, 75, 74),
        ("thp", 64, 48, 47),
        ("hugepages", 32, 24, 23),
        ("forks", 2, 2, 1),
        ("reads", 1, 1, 0),
    ],
)
def test_a_load_that_ebbed_away_is_told(load: str, amount: int, enough: int, short: int) -> None:
    """Without it the trial would have shown an idle guest."""
    spec = Spec(kernel=KERNEL, commands=(Command(("work", load, str(amount), "last"), 0, "agent"),))
    for active, holds in ((enough, True), (short, False)):
        report = Report([working(load, active, amount)])
        assert [check.ok for check in check_work(spec, report)] == [holds]
    assert [check.ok for check in check_work(spec, Report())] == [False]
    assert [*check_work(Spec(kernel=KERNEL), Report())] == []


def test_a_load_for_lent_memory_must_have_filled_it() -> None:
    """Three quarters of lent memory were in use, by the kernel's own page flags."""
    words = ("work", "cache", "0", "into")
    spec = Spec(kernel=KERNEL, commands=(Command(words, 0, "agent"),))
    for used, holds in ((75, True), (74, False)):
        report = Report([working("cache", 90, 0, used=used)])
        assert [check.ok for check in check_work(spec, report)] == [True, holds]


def test_dirty_files_are_new_each_time(
    loads: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """ext4 writes a file out at close that was truncated to be written anew: it would be clean."""
    monkeypatch.setattr(loads.Path, "write_text", lambda self, text: None)  # /proc/sys/vm
    load = loads.Dirty(1)
    load.run()
    with open(tmp_path / "dirty", "rb") as first:
        load.run()
        assert os.fstat(first.fileno()).st_nlink == 0
    assert (tmp_path / "dirty").stat().st_size == MIB
