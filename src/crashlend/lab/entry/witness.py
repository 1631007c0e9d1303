# SPDX-License-Identifier: LGPL-2.1-or-later
"""The witness of a trial: memory as it was at purgatory's entry, compared with /proc/vmcore.

What the crash kernel reads from /proc/vmcore comes back through the memory of a PCI device
(guestfiles/vmcore.py) and is compared twice: as it is, which must show no difference, and after
bits were flipped in the stopped machine's memory, which must show those and no others.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from crashlend.errors import CrashlendError
from crashlend.formats.elfcore import PT_LOAD
from crashlend.lab.entry import bytes as compared
from crashlend.lab.entry.memory_file import MemoryFile, demand_memory
from crashlend.lab.entry.stop import EntryStop
from crashlend.lab.spec import Check
from crashlend.ranges import Ranges
from crashlend.sizes import MIB, mib

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

    from crashlend.lab.entry.bytes import Comparison, Load
    from crashlend.lab.entry.gdbstub import GdbStub
    from crashlend.lab.host import Action, Host
    from crashlend.lab.spec import Saved

SPARE_BYTES = 512 * MIB
LOW = Ranges([(0, MIB)])


def window_bytes(memory_bytes: int) -> int:
    """Room for a /proc/vmcore of that memory; a PCI device's memory must be a power of two."""
    # the kernel's text comes a second time, and there are the headers
    return 1 << (memory_bytes + 128 * MIB - 1).bit_length()


class Witness(EntryStop):
    """Copies memory at the stop, lets the machine go on, and compares what comes back."""

    name = "bytes"

    def __init__(self, memory_bytes: int) -> None:
        """CrashlendError when this host has not the memory for it."""
        demand_memory(3 * memory_bytes + SPARE_BYTES)
        super().__init__(memory_bytes)
        self.window = MemoryFile("crashlend-vmcore", window_bytes(memory_bytes))
        backend = f"memory-backend-file,id=vmcore,size={self.window.size},share=on"
        device = ("-device", "ivshmem-plain,memdev=vmcore")
        self.words = ("-object", f"{backend},mem-path={self.window.path}", *device)
        self.before: MemoryFile | None = None  # the memory at purgatory's entry
        self.loads: tuple[Load, ...] = ()
        self.found: Comparison | None = None
        self.control: Comparison | None = None
        self.flipped: tuple[int, ...] = ()
        self.seconds: dict[str, float] = {}

    @property
    def actions(self) -> Mapping[str, Action]:
        """After the stop, the crash kernel asks for its dump to be compared."""
        return {**super().actions, "compare": self._compare}

    def at_entry(self, host: Host, stub: GdbStub) -> None:
        """Copy the memory and let the machine go on."""
        began = time.monotonic()
        self.before = self.memory.copy("crashlend-stopped")
        stub.resume()
        self.seconds["copy"] = round(time.monotonic() - began, 3)

    def _compare(self, host: Host, words: Sequence[str]) -> str:
        """Compare what the guest has copied; "again" when it shall do so once more."""
        stub = self.stopped()
        if self.before is None:
            raise CrashlendError("cannot compare", "there is no copy of the stopped memory")
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
        stub.stop()  # the second time the bits go back to what they were
        compared.flip(self.memory.fd, self.pieces, self.flipped)
        stub.resume()
        return "again" if first else "enough"

    def checks(self, saved: Saved) -> Iterator[Check]:
        """What the witness saw, once the machine has ended."""
        yield from super().checks(saved)
        yield self._equal()
        yield self._control_found()
        yield self._elsewhere()

    def _equal(self) -> Check:
        name = "every byte of every PT_LOAD is as it was at purgatory's entry"
        if self.found is None:
            return Check(name, False, self.error or "/proc/vmcore was not compared")
        planned = {
            (h["phys"], h["phys"] + h["bytes"], h["virt"])
            for h in (self.plan.get("layout") or {}).get("program_headers", [])
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

    def _elsewhere(self) -> Check:
        """What purgatory and the crash kernel wrote to: nothing but what is theirs."""
        name = "nothing but the crash kernel's own memory changed until the end"
        if self.before is None:
            return Check(name, False, self.error or "there is no copy to compare with")
        changed = compared.changed_pages(self.before.fd, self.memory.fd, self.pieces)
        own = Ranges(tuple(r) for key in ("lent", "reservation") for r in self.plan.get(key, []))
        odd = changed - LOW - own
        return Check(
            name,
            not odd and changed.meets(own),
            f"{mib(changed.size)} changed, {mib((changed & own).size)} of them in lent memory and the "
            f"reservation, {odd.size} bytes elsewhere" + (f": {odd[0]}" if odd else ""),
        )

    def to_json(self) -> dict[str, Any]:
        """The figures of both comparisons."""
        return {
            **super().to_json(),
            "pt_loads": [[load.phys, load.end, load.virt] for load in self.loads],
            **(self.found.to_json() if self.found else {}),
            "flipped": list(self.flipped),
            "control": self.control.to_json() if self.control else None,
            "seconds": self.seconds,
        }

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        for file in (self.window, self.before):
            if file is not None:
                file.close()
