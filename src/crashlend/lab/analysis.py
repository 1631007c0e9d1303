# SPDX-License-Identifier: LGPL-2.1-or-later
"""What drgn finds in a trial's dump, against what production said right before it crashed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from crashlend.dumps.analyze import Reader, analyze, import_drgn, open_program
from crashlend.dumps.check import check_dump
from crashlend.dumps.directory import read_dmesg, read_dump
from crashlend.dumps.log import read_end
from crashlend.errors import CrashlendError
from crashlend.jsonable import to_json
from crashlend.lab.spec import Check
from crashlend.lab.symbols import debug_vmlinux
from crashlend.sizes import mib

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from crashlend.dumps.analyze import Analysis
    from crashlend.dumps.directory import Dump
    from crashlend.lab.packages import Say
    from crashlend.lab.qemu import Report
    from crashlend.lab.spec import Saved, Spec

PAGE = 4096
# of a crash by sysrq-c, innermost last; panic() calls __crash_kexec() in between
STACK = ("sysrq_handle_crash", "panic", "__crash_kexec")
# /proc shows of a worker also what it works on, and a kernel thread's name in full (5.17); the task
# itself has not got that
COMM_BYTES = 15  # TASK_COMM_LEN - 1
_WORKER = re.compile(r"kworker/(?!R-)[^-]*")


def check_analysis(
    spec: Spec, report: Report, saved: Saved, say: Say
) -> tuple[list[Check], dict[str, Any]]:
    """All checks, and what drgn found, as JSON."""
    ours = report.find("kernel")
    if saved.vmcore is None or not ours:
        why = "there is no dump" if ours else "production did not tell"
        return [Check("drgn opens the dump", False, why)], {}
    dump = read_dump(saved.vmcore.parent)
    checks = [*_by_dumps(dump, ours)]
    try:
        vmlinux = debug_vmlinux(spec.kernel, say)
        found = analyze(dump, vmlinux)
    except CrashlendError as error:
        return [*checks, Check("drgn opens the dump", False, f"{error} ({error.hint})")], {}
    checks.append(Check("drgn opens the dump", True, f"{len(found.unreadable)} not in it"))
    checks += _compare(found, ours)
    checks.append(_lent_pages(dump, vmlinux))
    return checks, {"analysis": to_json(found) | {"vmlinux": vmlinux.name}}


def _by_dumps(dump: Dump, ours: dict[str, Any]) -> Iterator[Check]:
    """What `crashlend dumps` says without symbols."""
    verdict = check_dump(dump)
    bad = [f"{f.what}: {f.detail}" for f in verdict.findings if f.ok is False]
    yield Check(
        "crashlend dumps check finds it usable",
        verdict.usable,
        "; ".join(bad) or ", ".join(finding.what for finding in verdict.findings),
    )
    end = read_end(read_dmesg(dump.path))
    called = any("sysrq_handle_crash+" in line for line in end.trace)
    yield Check(
        "dmesg.txt tells who crashed, and how",
        end.pid == str(ours["pid"]) and end.release == ours["release"] and called,
        f"{end.reason}; {end.comm}, PID {end.pid}, {len(end.trace)} lines of stack",
    )
    yield Check(
        "capture.json tells which kernel crashed",
        dump.capture.get("crashed_release") == ours["release"] == dump.release,
        f"{dump.capture.get('crashed_release')}, by the dump {dump.release}",
    )


def _compare(found: Analysis, ours: dict[str, Any]) -> Iterator[Check]:
    yield Check(
        "drgn reads the same kernel and command line",
        (found.release, found.cmdline) == (ours["release"], ours["cmdline"]),
        f"{found.release}: {found.cmdline}",
    )
    crashed = found.crashed
    names = [frame.name for frame in crashed.stack] if crashed else []
    places = [names.index(name) if name in names else -1 for name in STACK]
    names_of = {pid: name for pid, name, _ in ours["tasks"]}
    yield Check(
        "drgn finds the task that crashed, and its stack",
        crashed is not None
        and (crashed.pid, crashed.comm) == (ours["pid"], names_of.get(ours["pid"]))
        and -1 not in places
        and places == sorted(places, reverse=True),
        f"{crashed.comm if crashed else None}: {' < '.join(names)}",
    )
    theirs = {(task.pid, task.comm, task.kernel_thread) for task in found.tasks}
    wanted = {(pid, plain(name), kernel) for pid, name, kernel in ours["tasks"]}
    # workers come and go at any time
    odd = {task for task in theirs ^ wanted if not _WORKER.fullmatch(task[1])}
    common = theirs & wanted
    yield Check(
        "drgn finds the same tasks",
        not odd and len(common) > len(wanted) * 3 // 4,
        f"{len(common)} of {len(wanted)}, of them {sum(t[2] for t in common)} kernel threads"
        + (f"; odd: {_first(odd)}" if odd else ""),
    )
    modules = sorted(module.name for module in found.modules)
    yield Check("drgn finds the same modules", modules == ours["modules"] != [], ", ".join(modules))


def plain(name: str) -> str:
    """A task's own name: cut off, and without what a worker works on."""
    found = _WORKER.match(name)
    return (found[0] if found else name)[:COMM_BYTES]


def _first(items: Iterable[Any]) -> str:
    return ", ".join(map(str, sorted(items)[:5]))


def _lent_pages(dump: Dump, vmlinux: Path) -> Check:
    """Each page of lent memory is a fault for drgn, and the reason is told."""
    drgn = import_drgn()
    program, missing = open_program(dump, vmlinux)
    reader = Reader(program, drgn.FaultError, missing.why)
    asked = [at for start, end in dump.lent for at in (start, (start + end) // 2, end - PAGE)]
    for at in asked:
        reader.get(f"{at:#x}", lambda at=at: program.read(at, 8, physical=True), b"")  # type: ignore[misc]
    why = {one.why for one in reader.unreadable}
    return Check(
        "drgn has nothing of lent memory, and crashlend tells why",
        bool(asked) and len(reader.unreadable) == len(asked) and why == {missing.LENT},
        f"{len(reader.unreadable)} of {len(asked)} pages of {mib(dump.lent.size)}: {_first(why)}",
    )
