# SPDX-License-Identifier: LGPL-2.1-or-later
"""Stops a trial's machine at purgatory's entry, where production ends and nothing else has begun.

The guest's RAM is a file that the lab has open, too. The guest asks for the stop once its crash kernel
is loaded; a hardware breakpoint of QEMU's gdb stub then stops all CPUs as soon as one comes there.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from crashlend.errors import CrashlendError
from crashlend.lab.entry.bytes import parse_flat_view
from crashlend.lab.entry.gdbstub import BREAKPOINT, GdbStub
from crashlend.lab.entry.memory_file import MemoryFile
from crashlend.lab.spec import Check, Command

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType

    from typing_extensions import Self  # typing has it from 3.11 on

    from crashlend.lab.entry.bytes import Piece
    from crashlend.lab.host import Action, Host
    from crashlend.lab.packages import Say
    from crashlend.lab.qemu import Machine
    from crashlend.lab.spec import Saved

ENTRY_SEGMENT = "purgatory"
STOP = Command(("stop-at-entry",), program="host")


class EntryStop(ABC):
    """One trial that is stopped there; what happens then is a subclass's :meth:`at_entry`.

    ``memory`` and ``words`` are for the machine, ``actions`` and :meth:`notice` for its run.
    """

    name = ""  # its key in the trial's JSON
    words: tuple[str, ...] = ()

    def __init__(self, memory_bytes: int) -> None:
        """``memory_bytes`` is the guest's memory."""
        self.memory = MemoryFile("crashlend-guest", memory_bytes)
        self.plan: dict[str, Any] = {}
        self.entry = 0
        self.stopped_at: int | None = None
        self.pieces: tuple[Piece, ...] = ()
        self.error = ""
        self._stub: GdbStub | None = None
        self._watch: threading.Thread | None = None

    @abstractmethod
    def at_entry(self, host: Host, stub: GdbStub) -> None:
        """All CPUs are stopped at purgatory's entry. Runs in a thread of its own."""

    def finish(self, machine: Machine, say: Say) -> None:  # noqa: B027  (most have nothing to do)
        """The machine has ended; what else is to be done before the checks."""

    def checks(self, saved: Saved) -> Iterable[Check]:
        """What was seen."""
        yield Check(
            "the machine stopped where production ends",
            self.stopped_at is not None and self.stopped_at == self.entry,
            f"at {self.stopped_at:#x}, purgatory's entry is {self.entry:#x}"
            if self.stopped_at is not None
            else self.error or "it never came to purgatory's entry",
        )

    def to_json(self) -> dict[str, Any]:
        """What is kept of it."""
        return {"entry": self.entry, "stopped_at": self.stopped_at}

    @property
    def actions(self) -> Mapping[str, Action]:
        """What the guest may ask of the host."""
        return {STOP.words[0]: self._arm}

    def notice(self, event: dict[str, Any]) -> None:
        """See an event of the guest: a load's answer says where purgatory is."""
        answer = event.get("answer")
        if event.get("event") == "command" and isinstance(answer, dict) and "plan" in answer:
            self.plan = answer["plan"]

    def stopped(self) -> GdbStub:
        """The stub, after :meth:`at_entry` is over; CrashlendError when it never came to that."""
        if self._watch is None or self._stub is None:
            raise CrashlendError("not stopped", "no breakpoint was set")
        self._watch.join()
        if self.error:
            raise CrashlendError("not stopped", self.error)
        return self._stub

    def _arm(self, host: Host, words: Sequence[str]) -> str:
        """Set the breakpoint; from now on a thread waits for it."""
        segments = (self.plan.get("layout") or {}).get("segments", [])
        self.entry = next(s["start"] for s in segments if s["name"] == ENTRY_SEGMENT)
        view = host.qmp("human-monitor-command", **{"command-line": "info mtree -f"})
        self.pieces = parse_flat_view(str(view).replace("\r", ""))
        path = host.directory / "gdb.sock"
        path.unlink(missing_ok=True)
        server = f"gdbserver unix:{path},server=on,wait=off"
        host.qmp("human-monitor-command", **{"command-line": server})
        self._stub = stub = GdbStub(path)
        stub.break_at(self.entry)
        self._watch = threading.Thread(target=self._wait, args=(host, stub), daemon=True)
        self._watch.start()
        stub.resume()
        return f"a breakpoint at {self.entry:#x}"

    def _wait(self, host: Host, stub: GdbStub) -> None:
        try:
            signal = stub.wait_for_stop()
            if signal != BREAKPOINT:
                self.error = f"the machine stopped with signal {signal}"
                return
            self.stopped_at = stub.instruction_pointer()
            stub.remove_break(self.entry)
            self.at_entry(host, stub)
        except (CrashlendError, OSError) as error:
            self.error = str(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._stub is not None:
            self._stub.close()
        if self._watch is not None:
            self._watch.join()  # the machine is gone, and with it the stub
        self.memory.close()
