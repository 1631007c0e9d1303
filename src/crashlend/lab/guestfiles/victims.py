# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs in the production guest: verbs of crashlend in forks that die at one exact step. Python 3.9.

A step is a call that changes the host: a file opened for writing, written, synced, renamed, made or
removed, and the kexec calls. They are counted around the system's functions; an audit hook notes
changes that went another way. The product has no part in it.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import pathlib
import signal
import struct
import sys
import time
import traceback
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

from crashlend.cli.main import main
from crashlend.system import kexec

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# calls by how their first argument names what they change
BY_PATH = ("open", "replace", "rename", "unlink", "remove", "mkdir", "rmdir", "truncate", "chmod")
BY_FD = ("write", "pwrite", "writev", "fsync", "fdatasync", "ftruncate", "fchmod")
# events of sys.audit (Library Reference, "Audit events table") that tell of a change or could hide one
AUDITED = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "os.link")
HIDING = (
    "os.system",
    "os.symlink",
    "os.chown",
    "subprocess.Popen",
    "os.posix_spawn",
    "os.exec",
    "os.fork",
)
# calls that take the kernel long enough to be killed in
LONG = ("write offline to ", "write online", "kexec ")
SYS_TIMER_CREATE, SYS_TIMER_SETTIME, SYS_TIMER_DELETE = 222, 223, 226

sys_write, sys_kill = os.write, os.kill
libc = ctypes.CDLL(None, use_errno=True)


class Deadly(NamedTuple):
    """Where a process is to die: after ``step`` (0: before the first), or inside a long call.

    The latter is the long call number ``call``, ``seconds`` after its begin.
    """

    step: int = -1
    call: int = 0
    seconds: float = 0.0


class Steps:
    """Counts the steps of this process and dies at one point."""

    def __init__(self, deadly: Deadly, pipe: int) -> None:
        self.deadly = deadly
        self.pipe = pipe
        self.calls = 0
        self.done = 0
        self.inside = 0
        self.missed: list[str] = []

    def install(self) -> None:
        """Put the counters around all that changes the host."""
        # pathlib before Python 3.11 keeps the system's functions here
        accessor = getattr(pathlib, "_NormalAccessor", None)
        for name in (*BY_PATH, *BY_FD):
            real = getattr(os, name)
            counted = self.counted(name, real)
            setattr(os, name, counted)
            if accessor is not None and getattr(accessor, name, None) is real:
                setattr(accessor, name, staticmethod(counted))
        kexec._call = self.counted("kexec", kexec._call)
        sys.addaudithook(self.audit)
        self.passed("the first step is still to come")

    def counted(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            what = _describe(name, args)
            if not what:
                return real(*args, **more)
            self.inside += 1
            try:
                with self.killer_of(what):
                    result = real(*args, **more)  # one that fails changes nothing
            finally:
                self.inside -= 1
            self.passed(what)
            return result

        return call

    def passed(self, what: str) -> None:
        if self.done == self.deadly.step:
            sys_write(self.pipe, json.dumps({"killed": what}).encode() + b"\n")
            sys_kill(os.getpid(), signal.SIGKILL)
        self.done += 1

    @contextmanager
    def killer_of(self, what: str) -> Iterator[None]:
        """Around a call: where it is the deadly one, its SIGKILL comes from a timer."""
        self.calls += what.startswith(LONG)
        if self.calls != self.deadly.call or not what.startswith(LONG):
            yield
            return
        sys_write(self.pipe, json.dumps({"killed": f"inside {what}"}).encode() + b"\n")
        timer = start_killer(self.deadly.seconds)
        yield
        if libc.syscall(SYS_TIMER_DELETE, timer):
            raise OSError("timer_delete")
        sys_write(self.pipe, b'{"outlived": true}\n')

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        """Note what changes the host, or could, and is not counted."""
        if self.inside:
            return
        if event == "open":
            change = isinstance(args[2], int) and args[2] & WRITING and not isinstance(args[0], int)
        elif event == "os.mkdir":
            change = not os.path.isdir(args[0])
        elif event == "ctypes.dlsym":
            change = args[1] == "syscall"
        else:
            change = event in AUDITED or event in HIDING
        if change:
            self.missed.append(f"{event} {args[0]!r}"[:200])


def start_killer(seconds: float) -> int:
    """A timer whose signal is SIGKILL: it strikes inside a system call, too. timer_create(2)."""
    event = ctypes.create_string_buffer(struct.pack("<qii48x", 0, signal.SIGKILL, 0), 64)
    timer = ctypes.c_int(-1)
    when = struct.pack("<qqqq", 0, 0, int(seconds), int(seconds % 1 * 1e9) or 1)
    failed = libc.syscall(SYS_TIMER_CREATE, time.CLOCK_MONOTONIC, event, ctypes.byref(timer))
    failed = failed or libc.syscall(SYS_TIMER_SETTIME, timer, 0, when, None)
    if failed:
        raise OSError("timer_create or timer_settime")
    return timer.value


def _describe(name: str, args: tuple[Any, ...]) -> str:
    """The call in words; empty when it changes nothing that outlives the process."""
    if name == "kexec":
        # kexec_load(entry, segments, …); kexec_file_load(kernel, initramfs, …)
        return f"kexec {args[0]}: " + (f"{args[2]} segments" if args[2] else "unload")
    if name in BY_FD:
        place = os.readlink(f"/proc/self/fd/{args[0]}")
        if not place.startswith("/"):
            return ""  # a pipe, a memory file
        sysfs = name == "write" and place.startswith("/sys/")
        word = f"{bytes(args[1]).decode(errors='replace')} to " if sysfs else ""
        return f"{name} {word}{place}"
    if name == "open" and not (len(args) > 1 and args[1] & WRITING):
        return ""
    return " ".join([name, *map(str, args[: 2 if name in ("replace", "rename") else 1])])


def run_verb(words: list[str], deadly: Deadly | None = None) -> dict[str, Any]:
    """Run one verb in a fork, which dies where ``deadly`` says (None: nowhere).

    Returns ``killed`` (after which step) or ``exit``, ``out``, ``err``, ``calls`` and ``missed``;
    ``traceback`` is what must not be.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        answer = b"{}"
        try:
            steps = Steps(deadly, writer) if deadly is not None else None
            answer = json.dumps(verb_here(words, steps)).encode()
        except BaseException:  # nothing of the child may go on in it
            answer = json.dumps({"traceback": traceback.format_exc()[-1500:]}).encode()
        with os.fdopen(writer, "wb") as stream:
            stream.write(answer)
            stream.flush()
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        said = stream.read()
    status = os.waitpid(child, 0)[1]
    result: dict[str, Any] = {}
    for line in said.splitlines():
        result.update(json.loads(line))
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL or "killed" not in result:
            result["traceback"] = f"it died of signal {number}"
    else:
        result.pop("killed", None)
    return result


def verb_here(words: list[str], steps: Steps | None = None) -> dict[str, Any]:
    """Run one verb in this very process."""
    out, err = io.StringIO(), io.StringIO()
    trace, code = "", -1
    if steps is not None:
        steps.install()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = main(words)
    except BaseException:  # SystemExit too: these words are right
        trace = traceback.format_exc()[-1500:]
    result = {"exit": code, "out": out.getvalue(), "err": err.getvalue()[-800:]}
    if trace:
        result["traceback"] = trace
    if steps is not None:
        result.update(calls=steps.calls, missed=steps.missed)
    return result


def remembered(sha256: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, which knows the large inputs that this process has hashed before."""
    known: dict[bytes, Any] = {}

    def digest(data: bytes = b"", **more: Any) -> Any:
        if len(data) < MIB:
            return sha256(data, **more)
        key = bytes(data)
        if key not in known:
            known[key] = sha256(key)
        return known[key].copy()

    return digest
