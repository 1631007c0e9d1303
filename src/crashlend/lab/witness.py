# SPDX-License-Identifier: LGPL-2.1-or-later
"""Watches one trial's memory from outside: a copy at purgatory's entry, compared with /proc/vmcore.

The guest's RAM is a file that the lab has, too. A hardware breakpoint of QEMU's gdb stub stops all
CPUs where production ends; the copy is taken there. What the crash kernel then reads from
/proc/vmcore comes back through the memory of a PCI device (guestfiles/vmcore.py) and is compared
twice: as it is, which must show no difference, and after bits were flipped in the stopped
machine's memory, which must show those and no others.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from crashlend.errors import CrashlendError
from crashlend.formats.elfcore import PT_LOAD
from crashlend.lab import bytes as compared
from crashlend.lab.gdbstub import BREAKPOINT, GdbStub
from crashlend.lab.memory_file import MemoryFile, demand_memory
from crashlend.lab.spec import Check, Command
from crashlend.ranges import Ranges
from crashlend.sizes import MIB, mib

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

    from crashlend.lab.bytes import Comparison, Load, Piece
    from crashlend.lab.host import Action, Host

ENTRY_SEGMENT = "entry"
STOP = Command(("stop-at-entry",), program="host")
SPARE_BYTES = 512 * MIB
LOW = Ranges([(0, MIB)])


def window_bytes(memory_bytes: int) -> int:
    """Room for a /proc/vmcore of that memory; a PCI device's memory must be a power of two."""
    # the kernel's text comes a second time, and there are the headers
    return 1 << (memory_bytes + 128 * MIB - 1).bit_length()


class Witness:
    """One trial's witness. Machine and trial get :attr:`memory`, ``words``, ``actions``."""

    def __init__(self, memory_bytes: int) -> None:
        """CrashlendError when this host has not the memory for it."""
        demand_memory(3 * memory_bytes + SPARE_BYTES)
        self.memory = MemoryFile("crashlend-guest", memory_bytes)
        self.window = MemoryFile("crashlend-vmcore", window_bytes(memory_bytes))
        self.before: MemoryFile | None = None  # the memory at purgatory's entry
        self.entry = 0
        self.stopped_at: int | None = None
        self.pieces: tuple[Piece, ...] = ()
        self.loads: tuple[Load, ...] = ()
        self.found: Comparison | None = None
        self.control: Comparison | None = None
        self.flipped: tuple[int, ...] = ()
        self.seconds: dict[str, float] = {}
        self.error = ""
        self._plan: dict[str, Any] = {}
        self._stub: GdbStub | None = None
        self._watch: threading.Thread | None = None

    @property
    def words(self) -> tuple[str, ...]:
        """QEMU's words for the device that /proc/vmcore comes through."""
        backend = f"memory-backend-file,id=vmcore,size={self.window.size},share=on"
        device = "ivshmem-plain,memdev=vmcore"
        return ("-object", f"{backend},mem-path={self.window.path}", "-device", device)

    @property
    def actions(self) -> Mapping[str, Action]:
        """What the guest asks for: to be stopped when it crashes, later to have its dump compared."""
        return {"stop-at-entry": self._arm, "compare": self._compare}

    def notice(self, event: dict[str, Any]) -> None:
        """See an event of the guest: a load's answer says where purgatory is."""
        answer = event.get("answer")
        if event.get("event") == "command" and isinstance(answer, dict) and "plan" in answer:
            self._plan = answer["plan"]

    def _arm(self, host: Host, words: Sequence[str]) -> str:
        """Set the breakpoint; from now on a thread waits for it."""
        segments = {s["name"]: s["start"] for s in (self._plan.get("layout") or {})["segments"]}
        self.entry = segments[ENTRY_SEGMENT]
        view = host.qmp("human-monitor-command", **{"command-line": "info mtree -f"})
        self.pieces = compared.parse_flat_view(str(view).replace("\r", ""))
        path = host.directory / "gdb.sock"
        path.unlink(missing_ok=True)
        server = f"gdbserver unix:{path},server=on,wait=off"
        host.qmp("human-monitor-command", **{"command-line": server})
        self._stub = stub = GdbStub(path)
        stub.break_at(self.entry)
        self._watch = threading.Thread(target=self._stop_and_copy, args=(stub,), daemon=True)
        self._watch.start()
        stub.resume()
        return f"a breakpoint at {self.entry:#x}"

    def _stop_and_copy(self, stub: GdbStub) -> None:
        try:
            signal = stub.wait_for_stop()
            began = time.monotonic()
            if signal != BREAKPOINT:
                self.error = f"the machine stopped with signal {signal}"
                return
            self.stopped_at = stub.instruction_pointer()
            self.before = self.memory.copy("crashlend-stopped")
            stub.remove_break(self.entry)
            stub.resume()
            self.seconds["copy"] = round(time.monotonic() - began, 3)
        except (CrashlendError, OSError) as error:
            self.error = str(error)

    def _compare(self, host: Host, words: Sequence[str]) -> str:
        """Compare what the guest has copied; "again" when it shall do so once more."""
        if self._watch is None or self._stub is None:
            raise CrashlendError("cannot compare", "no breakpoint was set")
        self._watch.join()
        if self.before is None:
            raise CrashlendError("cannot compare", self.error or "there is no copy")
        began = time.monotonic()
        first = self.found is None
        self.loads = compared.read_loads(self.window.fd)
        seen = compared.compare(self.window.fd, self.before.fd, self.loads, self.pieces)
        if first:
            self.found = seen
            self.flipped = compared.choose_flips(self.loads)
        else:
            self.control = seen
        self.seconds["compare" if first else "control"] = round(time.monotonic() - began, 3)
        self._stub.stop()  # the second time the bits go back to what they were
        compared.flip(self.memory.fd, self.pieces, self.flipped)
        self._stub.resume()
        return "again" if first else "enough"

    def checks(self, plan: dict[str, Any]) -> Iterator[Check]:
        """What the witness saw, once the machine has ended."""
        yield Check(
            "the machine stopped where production ends",
            self.stopped_at is not None and self.stopped_at == self.entry,
            f"at {self.stopped_at:#x}, purgatory's entry is {self.entry:#x}"
            if self.stopped_at is not None
            else self.error or "it never came to purgatory's entry",
        )
        yield self._equal(plan)
        yield self._control_found()
        yield self._elsewhere(plan)

    def _equal(self, plan: dict[str, Any]) -> Check:
        name = "every byte of every PT_LOAD is as it was at purgatory's entry"
        if self.found is None:
            return Check(name, False, self.error or "/proc/vmcore was not compared")
        planned = {
            (h["phys"], h["phys"] + h["bytes"], h["virt"])
            for h in (plan.get("layout") or {}).get("program_headers", [])
            if h["type"] == PT_LOAD
        }
        same = planned == {(load.phys, load.end, load.virt) for load in self.loads}
        figures = f"{self.found.compared_bytes} bytes in {len(self.loads)} PT_LOADs compared, "
        figures += f"{self.found.differing_bytes} differ"
        if self.found.addresses:
            figures += f", the first at {self.found.addresses[0]:#x}"
        ok = same and self.found.compared_bytes > 0 and self.found.differing_bytes == 0
        return Check(name, ok, figures + ("" if same else "; the PT_LOADs are not as planned"))

    def _control_found(self) -> Check:
        name = "flipped bits are found, and nothing else"
        if self.control is None:
            return Check(name, False, self.error or "there was no second comparison")
        expected = compared.shown(self.loads, self.flipped)
        return Check(
            name,
            bool(expected)
            and list(self.control.addresses) == expected
            and self.control.differing_bytes == len(expected),
            f"{len(self.flipped)} bits flipped, which {len(expected)} bytes show; "
            f"{self.control.differing_bytes} bytes differ",
        )

    def _elsewhere(self, plan: dict[str, Any]) -> Check:
        """What purgatory and the crash kernel wrote to: nothing but what is theirs."""
        name = "nothing but the crash kernel's own memory changed until the end"
        if self.before is None:
            return Check(name, False, self.error or "there is no copy to compare with")
        changed = compared.changed_pages(self.before.fd, self.memory.fd, self.pieces)
        own = Ranges(tuple(r) for key in ("lent", "reservation") for r in plan.get(key, []))
        odd = changed - LOW - own
        return Check(
            name,
            not odd and changed.meets(own),
            f"{mib(changed.size)} changed, {mib((changed & own).size)} of them in lent memory and the "
            f"reservation, {odd.size} bytes elsewhere" + (f": {odd[0]}" if odd else ""),
        )

    def to_json(self) -> dict[str, Any]:
        """What is kept of it: the key "bytes" of the trial's result."""
        return {
            "entry": self.entry,
            "stopped_at": self.stopped_at,
            "pt_loads": [[load.phys, load.end, load.virt] for load in self.loads],
            **(self.found.to_json() if self.found else {}),
            "flipped": list(self.flipped),
            "control": self.control.to_json() if self.control else None,
            "seconds": self.seconds,
        }

    def __enter__(self) -> Witness:
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
        for file in (self.memory, self.window, self.before):
            if file is not None:
                file.close()
