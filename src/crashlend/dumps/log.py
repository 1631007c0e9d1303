# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the crashed kernel's log says of its end: the reason, who ran, the stack, registers, modules.

Written for any bytes: a log may be cut off, overwritten, or hold what users wrote to /dev/kmsg. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Optional

_STAMP = re.compile(r"^(<\d+>)?\[ *\d+\.\d+\](\[ *[TC]\d+\])? ?")
# as in init/report.sh (panic_line); an oops that is fatal goes to the crash kernel without a panic
_PANIC = re.compile(r"(Kernel panic - not syncing.*|sysrq: Trigger a crash.*)")
_OOPS = re.compile(
    r"((?:kernel )?BUG(?: at |: ).*|general protection fault.*|Oops: .*|Unable to handle kernel .*"
    r"|Internal error: .*|watchdog: .*lockup.*|divide error: .*|invalid opcode: .*)"
)
_CPU = re.compile(
    r"CPU: (\d+)(?: UID: \d+)? PID: (\d+) Comm: (.*?)(?: Kdump: loaded)? "
    r"(Not tainted|Tainted: .*?) (\d\S*\.\S*) "
)
_REGISTERS = re.compile(
    r"^(?:RIP|RSP|RAX|RDX|RBP|R10|R13|FS|CS|CR2|DR0|DR3|PKRU|Code|EFLAGS|pc|lr|sp|x\d+|pstate) ?: ?\S"
)
_CALL = re.compile(r"^call trace:", re.IGNORECASE)
_FRAME = re.compile(r"^ *(\? )?[\w.$]+\+0x[0-9a-f]+/0x[0-9a-f]+|^ *</?(TASK|IRQ|NMI|#DF|SOFTIRQ)>")
_MODULES = re.compile(r"^Modules linked in: ?(.*)$")
_VERSION = re.compile(r"Linux version (\S+) ")
LINE_MAX = 4096
BEFORE_PANIC = 400  # lines: how far before the panic the oops may be that led to it
MOST = 400  # lines of a stack


@dataclass(frozen=True)
class End:
    """How a kernel ended, in its own words. What the log does not say is empty.

    ``reason`` is the panic's line, ``cause`` the oops that led to it; ``cpu``, ``pid``, ``comm`` and
    ``taint`` are of who ran then; ``trace`` and ``registers`` are lines, without time stamps.
    """

    reason: str = ""
    cause: str = ""
    cpu: str = ""
    pid: str = ""
    comm: str = ""
    taint: str = ""
    release: str = ""
    trace: tuple[str, ...] = ()
    registers: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()


def lines_of(log: bytes) -> list[str]:
    """The log's lines without their stamps, whatever bytes they held."""
    text = log.decode("utf-8", "backslashreplace")
    return [_STAMP.sub("", line[:LINE_MAX]).rstrip("\r") for line in text.split("\n")]


def find_reason(log: bytes) -> str:
    """Why it crashed, in one line; empty where the log does not say."""
    end = read_end(log)
    return end.reason or end.cause


def find_release(log: bytes) -> str:
    """What the crashed kernel said of its version; empty where that is gone."""
    lines = lines_of(log)
    named = next((m[1] for m in map(_VERSION.match, lines) if m), "")
    return named or read_end(log).release


def read_end(log: bytes) -> End:
    """Find the end in a log; total, for any bytes."""
    lines = lines_of(log)
    panic = _first(lines, re.compile("Kernel panic - not syncing"), 0)
    if panic is None:
        panic = _first(lines, re.compile("sysrq: Trigger a crash"), 0)
    since = 0 if panic is None else max(0, panic - BEFORE_PANIC)
    until = len(lines) if panic is None else panic
    oopses = [i for i in range(since, until) if _OOPS.search(lines[i])]
    start, cause = panic, ""
    if oopses and (panic is None or "sysrq" not in lines[panic]):
        start = _first_of_block(lines, oopses)
        cause = _found(_OOPS, lines[start])
    reason = _found(_PANIC, lines[panic]) if panic is not None else ""
    if start is None:
        return End(modules=_modules(lines, 0))
    return _describe(lines[start : start + MOST], reason, cause, _modules(lines, start))


def _first_of_block(lines: list[str], oopses: list[int]) -> int:
    """The line that begins the last oops: others of the same one (BUG, then Oops) are close by.

    Each oops tells its CPU once, behind these lines.
    """
    start = oopses[-1]
    for index in reversed(oopses):
        if start - index <= 5 and not any(map(_CPU.search, lines[index:start])):
            start = index
    return start


def _describe(lines: list[str], reason: str, cause: str, modules: tuple[str, ...]) -> End:
    who = next((m for m in map(_CPU.search, lines) if m), None)
    cpu, pid, comm, taint, release = who.groups() if who else ("", "", "", "", "")
    calls = [i for i, line in enumerate(lines) if _CALL.match(line)]
    trace: list[str] = []
    registers: list[str] = []
    if calls:
        registers = [line for line in lines[: calls[0]] if _REGISTERS.match(line)]
        for line in lines[calls[0] + 1 :]:
            if _FRAME.match(line):
                trace.append(line.rstrip())
            elif not _REGISTERS.match(line) and line.strip():
                break
            elif not registers or line.strip():
                registers.append(line)
    else:
        registers = [line for line in lines if _REGISTERS.match(line)]
    return End(
        reason=reason,
        cause=cause,
        cpu=cpu,
        pid=pid,
        comm=comm,
        taint=taint.rstrip(),
        release=release,
        trace=tuple(trace),
        registers=tuple(line for line in dict.fromkeys(registers) if line.strip()),
        modules=modules,
    )


def _modules(lines: list[str], start: int) -> tuple[str, ...]:
    """Of the last list of modules from ``start`` on; without the marks of taint and unloading."""
    for line in reversed(lines[start:]):
        found = _MODULES.match(line)
        if found:
            names = found[1].split("[last unloaded", 1)[0].split()
            return tuple(re.sub(r"\(.*\)$", "", name) for name in names)
    return ()


def _first(lines: list[str], pattern: re.Pattern[str], start: int) -> Optional[int]:
    return next((i for i in range(start, len(lines)) if pattern.search(lines[i])), None)


def _found(pattern: re.Pattern[str], line: str) -> str:
    found = pattern.search(line)
    return found[1].strip() if found else line.strip()
