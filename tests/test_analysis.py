# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lab's comparison of what drgn finds with what production said."""

from __future__ import annotations

import os
import sys
from importlib.resources import as_file, files
from typing import TYPE_CHECKING, Any

import pytest

from crashlend.dumps.analyze import Analysis, Crashed, Frame, Module, Reader, Task
from crashlend.lab.analysis import _compare, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OURS: dict[str, Any] = {
    "pid": 116,
    "release": "6.1.0",
    "cmdline": "quiet",
    "modules": ["crc16", "ext4"],
    "tasks": [
        *[[1, "init", False], [2, "kthreadd", True], [11, "rcu_tasks_kthread", True]],
        *[[7, "kworker/0:0-events", True], [116, "python3", False]],
    ],
}


def analysis() -> dict[str, Any]:
    stack = ("crash_setup_regs", "__crash_kexec", "panic", "sysrq_handle_crash", "vfs_write")
    return {
        "release": "6.1.0",
        "cmdline": "quiet",
        "vmlinux": "vmlinux",
        "crashed": Crashed(116, "python3", 0, tuple(Frame(n, 1, "", False) for n in stack)),
        "tasks": (
            *(Task(1, "init", "S", False), Task(2, "kthreadd", "S", True)),
            *(Task(11, "rcu_tasks_kthre", "I", True), Task(7, "kworker/0:0", "I", True)),
            Task(116, "python3", "R", False),
        ),
        "modules": (Module("ext4", ""), Module("crc16", "")),
        "unreadable": (),
    }


def failed(found: dict[str, Any]) -> list[str]:
    return [check.name for check in _compare(Analysis(**found), OURS) if not check.ok]


def test_the_same_is_the_same() -> None:
    """Names are cut off as the kernel does it, and a worker's without its work."""
    assert failed(analysis()) == []


def test_workers_may_come_and_go() -> None:
    """Between production's last word and the crash."""
    found = analysis()
    found["tasks"] = (*found["tasks"], Task(400, "kworker/u2:9", "I", True))
    assert failed(found) == []


@pytest.mark.parametrize(
    ("spoil", "name"),
    [
        (lambda a: a.update(cmdline="loud"), "drgn reads the same kernel and command line"),
        (lambda a: a.update(modules=a["modules"][1:]), "drgn finds the same modules"),
        (lambda a: a.update(tasks=a["tasks"][1:]), "drgn finds the same tasks"),
        (
            lambda a: a.update(tasks=(*a["tasks"], Task(9, "ghost", "S", False))),
            "drgn finds the same tasks",
        ),
        (lambda a: a.update(crashed=None), "drgn finds the task that crashed, and its stack"),
        (
            lambda a: a.update(crashed=Crashed(1, "init", 0, a["crashed"].stack)),
            "drgn finds the task that crashed, and its stack",
        ),
        (
            lambda a: a.update(crashed=Crashed(116, "python3", 0, a["crashed"].stack[::-1])),
            "drgn finds the task that crashed, and its stack",
        ),
    ],
)
def test_what_differs_is_found(spoil: Callable[[dict[str, Any]], None], name: str) -> None:
    """Each difference fails its own check."""
    found = analysis()
    spoil(found)
    assert failed(found) == [name]


class FakeFault(Exception):
    """As drgn.FaultError: knows its address."""

    def __init__(self, address: int) -> None:
        super().__init__("Excluded page")
        self.address = address


def test_what_can_t_be_read_costs_itself_alone() -> None:
    """A fault and any other error become a line each; a list goes on to where it breaks."""
    reader = Reader(None, FakeFault, lambda address: f"why {address:#x}")

    def raises(error: Exception) -> Any:
        raise error

    def some(error: Exception) -> Iterator[int]:
        yield 1
        raise error

    assert reader.get("a", lambda: 5, 0) == 5
    assert reader.get("b", lambda: raises(FakeFault(0x1000)), 0) == 0
    assert reader.get("c", lambda: raises(LookupError("no such symbol")), 0) == 0
    assert reader.get("d", lambda: raises(RecursionError()), 0) == 0
    assert list(reader.each("e", lambda: some(FakeFault(0x2000)))) == [1]
    assert list(reader.each("f", lambda: some(KeyError("next")))) == [1]
    assert [(one.what, one.address, one.why) for one in reader.unreadable] == [
        ("b", 0x1000, "why 0x1000"),
        ("c", None, "drgn: no such symbol"),
        ("d", None, "drgn: RecursionError"),
        ("e: the rest of them", 0x2000, "why 0x2000"),
        ("f: the rest of them", None, "drgn: 'next'"),
    ]


def test_plain_names() -> None:
    """Rescuers of 6.9 and later have R- for a reason of their own."""
    assert plain("kworker/u2:1-flush-254:0") == "kworker/u2:1"
    assert plain("kworker/R-rcu_gp") == "kworker/R-rcu_g"
    assert plain("ext4-rsv-conversion") == "ext4-rsv-conver"


def test_the_guest_tells_its_own_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process of this test is among them, by PID and name, and is no kernel thread."""
    with as_file(files("crashlend.lab").joinpath("guestfiles")) as guestfiles:
        monkeypatch.syspath_prepend(str(guestfiles))
        import tasks

        found = {pid: (name, kernel) for pid, name, kernel in tasks.tasks()}
    sys.modules.pop("tasks")
    with open("/proc/self/comm", encoding="ascii") as comm:
        assert found[os.getpid()] == (comm.read().strip(), False)
