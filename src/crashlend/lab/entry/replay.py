# SPDX-License-Identifier: LGPL-2.1-or-later
"""A machine that was stopped once starts from there again and again, each time with its own memory.

The devices' state was saved without the memory (QEMU's migration, ``x-ignore-shared``). The memory file
is mapped privately: what a run writes is gone with it, and what was flipped in the file before is what it
begins with.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crashlend.errors import CrashlendError
from crashlend.lab.entry.bytes import file_offset
from crashlend.lab.entry.stop import EntryStop
from crashlend.lab.qemu import run_machine

if TYPE_CHECKING:
    from crashlend.lab.entry.gdbstub import GdbStub
    from crashlend.lab.host import Host
    from crashlend.lab.qemu import Machine

TURN = b"\xeb\xfe"  # jmp .
SAVE_SECONDS = 60.0
CAPTURE_SECONDS = 600.0
IGNORE_SHARED = {"capabilities": [{"capability": "x-ignore-shared", "state": True}]}
RESET, UP, HANG = "reset", "crash kernel up", "hang"


@dataclass(frozen=True)
class Ending:
    """How a replay ended: ``how`` is one of RESET, UP, HANG. Seconds from the start.

    ``console`` is what was printed, ``memory`` what the watched memory held at the end.
    """

    how: str
    seconds: float
    console: str
    memory: bytes
    where: str = ""  # the CPU's registers, of one that hangs


def save_state(host: Host, stub: GdbStub, memory: int, offset: int, path: Path) -> None:
    """Save the devices and CPUs of a machine that a breakpoint has stopped, without its memory.

    The next instruction is at ``offset`` of the open memory file. No machine can begin in the state
    "stopped by a breakpoint"; so this one turns on the spot for a moment and is stopped once more.
    """
    code = os.pread(memory, len(TURN), offset)
    place = stub.instruction_pointer()
    os.pwrite(memory, TURN, offset)
    stub.resume()
    stub.stop()
    os.pwrite(memory, code, offset)
    if stub.instruction_pointer() != place:
        raise CrashlendError("cannot save the machine", "it did not stay where it was")
    host.qmp("migrate-set-capabilities", **IGNORE_SHARED)
    host.qmp("migrate", uri=f"exec:cat >{path}")
    _wait_for(host, "query-migrate", "completed", SAVE_SECONDS)


def _wait_for(host: Host, command: str, status: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        answer = host.qmp(command)
        found = answer.get("status") if isinstance(answer, dict) else None
        if found == status:
            return
        if found == "failed" or time.monotonic() > deadline:
            raise CrashlendError("QEMU's migration", f"{command}: {json.dumps(answer)}")
        time.sleep(0.02)


class Replay:
    """One run from the saved state on."""

    def __init__(self, state: Path, watched: tuple[int, int], budget_seconds: float) -> None:
        """``watched`` is the memory (start, bytes) to be told at the end."""
        self.state, self.watched, self.budget_seconds = state, watched, budget_seconds
        self._up = False
        self._deadline = 0.0
        self._host: Host | None = None
        self._memory = b""
        self._where = ""

    def run(self, machine: Machine, directory: Path, *, to_the_end: bool = False) -> Ending:
        """Run until the machine resets, its crash kernel is up, or the budget is spent.

        ``to_the_end``: a crash kernel that is up goes on until it has left.
        """
        again = replace(
            machine,
            memory_private=True,
            extra=(*machine.extra, "-incoming", "defer", "-S", "-action", "shutdown=pause"),
        )
        report = run_machine(
            again,
            directory,
            timeout_seconds=self.budget_seconds + (CAPTURE_SECONDS if to_the_end else SAVE_SECONDS),
            on_start=lambda host: self._restore(host),
            on_event=self._notice,
            is_lost=lambda: self._over(directory, to_the_end),
        )
        console = (directory / "console.log").read_text(errors="replace")
        how = report.lost or HANG
        return Ending(how, report.seconds, console, self._memory, self._where)

    def _restore(self, host: Host) -> None:
        self._host = host
        host.qmp("migrate-set-capabilities", **IGNORE_SHARED)
        host.qmp("migrate-incoming", uri=f"exec:cat {self.state}")
        _wait_for(host, "query-migrate", "completed", SAVE_SECONDS)
        host.qmp("cont")
        self._deadline = time.monotonic() + self.budget_seconds

    def _notice(self, event: dict[str, Any]) -> None:
        self._up = self._up or event.get("event") == "crash_kernel"

    def _over(self, directory: Path, to_the_end: bool) -> str:
        """How it ended; empty while it goes on."""
        if self._host is None:
            return ""
        status = self._host.qmp("query-status")
        ended = isinstance(status, dict) and status["status"] == "shutdown"
        hangs = not self._up and time.monotonic() >= self._deadline
        if not (ended or hangs or (self._up and not to_the_end)):
            return ""
        start, size = self.watched
        file = directory / "watched"
        self._host.qmp("pmemsave", val=start, size=size, filename=str(file))
        self._memory = file.read_bytes()
        if self._up:
            return UP
        if hangs and not ended:
            words = {"command-line": "info registers"}
            self._where = str(self._host.qmp("human-monitor-command", **words))
        return RESET if ended else HANG


class SavedStop(EntryStop):
    """A stop that saves the machine for replays, and ends it."""

    def __init__(self, memory_bytes: int) -> None:
        super().__init__(memory_bytes)
        self._state = Path()

    def at_entry(self, host: Host, stub: GdbStub) -> None:
        """Save the machine, and end it: its memory stays in the lab's hands."""
        self._state = host.directory / "state"
        save_state(host, stub, self.memory.fd, file_offset(self.pieces, self.entry), self._state)
        stub.kill()
