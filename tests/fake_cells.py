# SPDX-License-Identifier: LGPL-2.1-or-later
"""Trials of a matrix that need no QEMU: workers, threads and other processes import this.

What becomes of a cell stands in ``directory``/fates.json by its name; each begin is a line of
``directory``/begun: the cell's name and the process that it ran in.
"""

from __future__ import annotations

import json
import os
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crashlend.lab.kernels import Kernel, NoKernelError
from crashlend.lab.matrix import cell
from crashlend.lab.matrix.table import Cell
from crashlend.lab.outcome import Outcome
from crashlend.lab.qemu import LostVmError, Report
from crashlend.lab.spec import Check

if TYPE_CHECKING:
    from collections.abc import Callable

    from crashlend.lab.spec import Spec

LOSE_MACHINE, LOSE_EVERY_MACHINE = "lose the machine", "lose every machine"
AWAIT_KILL, DIE, FAIL, STUMBLE = "await kill", "die", "fail", "stumble"
WAIT_SECONDS = 100.0  # for what must come; nothing depends on how long it takes


def kernel(name: str, say: object = None) -> Kernel:
    """A kernel that no machine has."""
    if name == "9.9":
        raise NoKernelError("no kernel '9.9'", "not in sid")
    return Kernel(name, f"{name}.0", "sid", Path("vmlinuz"), Path("modules"), None, f"{name}.0-1")


def outcome(spec: Spec, *, ok: bool = True, **plan: str) -> Outcome:
    """What a trial of this spec left, with lender and system call as they are asked for."""
    plan = {"lender": spec.lender, "syscall": "load", **plan}
    checks = (Check("dump saved", ok, "40 MiB" if ok else "nothing was left"),)
    events: list[dict[str, Any]] = [{"event": "booted", "at": 1.0, "nodes": {}, "crash_ranges": []}]
    return Outcome(
        spec, Report([*events, {"event": "crashing", "at": 2.0}], 3.0), plan, {}, "", checks, ""
    )


def trial(directory: Path, spec: Spec, *, keep: Path | None = None, **_: Any) -> Outcome:
    """Stands for run_trial."""
    name = f"{spec.kernel.name} {spec.lender} {spec.firmware}"
    if keep is not None:
        keep.mkdir(parents=True)
        (keep / "console.log").write_text("its last words")
    path = directory / "fates.json"
    fate = (json.loads(path.read_text()) if path.exists() else {}).get(name, "")
    before = [line for line in begun(directory) if line == name]
    with (directory / "begun").open("a") as file:
        file.write(f"{name};{os.getpid()}\n")
    if fate == LOSE_EVERY_MACHINE or (fate == LOSE_MACHINE and not before):
        raise LostVmError("the virtual machine was lost", "QEMU ended with 1")
    if fate == STUMBLE:
        raise KeyError("nodes")
    if fate == DIE:
        os._exit(1)
    if fate == AWAIT_KILL and not before:
        (directory / "pid.new").write_text(str(os.getpid()))
        (directory / "pid.new").rename(directory / "pid")
        time.sleep(WAIT_SECONDS)
        raise AssertionError("nobody killed this process")
    return outcome(spec, ok=fate != FAIL)


def begun(directory: Path) -> list[str]:
    """The cells in the order in which they were begun, each time."""
    path = directory / "begun"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.partition(";")[0] for line in lines]


def wait_for_pid(directory: Path) -> int:
    """The process that waits to be killed."""
    end = time.monotonic() + WAIT_SECONDS
    while not (directory / "pid").exists():
        if time.monotonic() > end:
            raise AssertionError("no process waits to be killed")
        time.sleep(0.02)
    return int((directory / "pid").read_text())


def run(directory: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Stands for run_cell, wherever it is called."""
    return cell.run_cell(content, run=partial(trial, directory), get=kernel)


def here(directory: Path) -> Callable[..., cell.Here]:
    """Stands for the class Here."""
    return partial(cell.Here, run=partial(trial, directory), get=kernel)


def table(*rows: str) -> str:
    """A table of these rows, and the guests' memory."""
    return "\n".join(['[defaults]\nmemory = "2G"', *(f"[[trial]]\n{row}" for row in rows)])


def cells(*names: str) -> list[Cell]:
    """Cells by name: "6.1 movable bios"."""
    made = []
    for name in names:
        version, lender, firmware = name.split()
        made.append(Cell(name, version, {"lender": lender, "firmware": firmware}))
    return made
