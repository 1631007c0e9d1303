# SPDX-License-Identifier: LGPL-2.1-or-later
"""One production that crashed, many crash kernels: each starts from purgatory's entry with less memory.

The twin is stopped where production ends (entry/stop.py). From there on a probe is the crash kernel's
boot and its dump alone, with the very memory that production left: only the image's memory map is cut
down (cut.py). Each probe has a dump target of its own.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

from crashlend.errors import CrashlendError
from crashlend.lab.entry.bytes import file_offset
from crashlend.lab.entry.memory_file import MemoryFile, demand_memory
from crashlend.lab.entry.replay import HANG, Replay, SavedStop
from crashlend.lab.twin import cut
from crashlend.lab.watch import last_panic
from crashlend.purgatory.x86_64 import RECORD_BYTES
from crashlend.ranges import Ranges
from crashlend.sizes import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crashlend.lab.packages import Say
    from crashlend.lab.qemu import Machine
    from crashlend.lab.twin.standin import StandIn

PARAMETERS, PURGATORY = "boot_params", "purgatory"
# what a guest's production has touched, and what a crash kernel writes, about
GUEST_BYTES, PROBE_BYTES = 1024 * MIB, 512 * MIB
# to the crash kernel's init, and without a word on the console: under emulation on a busy machine
UP_SECONDS, SILENCE_SECONDS = 300.0, 120.0


@dataclass(frozen=True)
class Look:
    """One probe. ``how`` is "saved", or how it died; figures are None where there was no report.

    ``memory_bytes`` is the RAM in the map that the crash kernel got, ``seconds`` what it took here.
    """

    memory_bytes: int
    saved: bool
    how: str
    seconds: float
    mem_total_bytes: int | None = None
    peak_used_bytes: int | None = None
    vmcore_bytes: int | None = None

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)


class _Capture(Replay):
    """A replay that goes on to the end of the capture, and ends early where nothing can come."""

    def __init__(self, state: Path, watched: tuple[int, int], deadline_seconds: float) -> None:
        super().__init__(state, watched, min(UP_SECONDS, deadline_seconds))
        self.capture: dict[str, Any] = {}
        self._seen, self._moved = -1, 0.0

    def _notice(self, event: dict[str, Any]) -> None:
        super()._notice(event)
        if event.get("event") == "captured" and isinstance(event.get("capture"), dict):
            self.capture = event["capture"]

    def _over(self, directory: Path, to_the_end: bool) -> str:
        how = super()._over(directory, to_the_end)
        # once it is up the capture watches itself, and a dump may take long without a word
        if how or self._host is None or self._up:
            return how
        try:
            size = (directory / "console.log").stat().st_size
        except OSError:
            size = 0
        if size != self._seen:
            self._seen, self._moved = size, time.monotonic()
        return HANG if time.monotonic() - self._moved >= SILENCE_SECONDS else ""


class Probes(SavedStop):
    """A twin that ends at purgatory's entry; ``search`` then asks for probes, as many as it likes."""

    name = "probes"

    def __init__(
        self,
        memory_bytes: int,
        standin: StandIn,
        init_size: int,
        search: Callable[[Probes, Say], None],
        *,
        jobs: int = 1,
        timeout_seconds: float = 600.0,
    ) -> None:
        """``init_size`` is what the crash kernel's image takes to unpack itself, in bytes.

        CrashlendError when this host has not the memory for ``jobs`` probes at a time.
        """
        demand_memory(jobs * (GUEST_BYTES + PROBE_BYTES))
        super().__init__(memory_bytes)
        self.standin, self.init_size, self.search = standin, init_size, search
        self.jobs, self.timeout_seconds = jobs, timeout_seconds
        self._machine: Machine | None = None
        self._memories: list[MemoryFile] = []
        self._parameters = self._purgatory = b""

    def finish(self, machine: Machine, say: Say) -> None:
        """The twin is stopped: search."""
        try:
            self.stopped()
        except CrashlendError as error:
            self.error = str(error)
            return
        disks = tuple(replace(disk, kept=False) for disk in machine.disks)
        self._machine = replace(machine, disks=disks)
        self._parameters = self._segment(PARAMETERS)
        self._purgatory = self._segment(PURGATORY)
        self._memories = [self.memory]
        try:
            self._memories += [self.memory.copy("crashlend-probe") for _ in range(self.jobs - 1)]
            self.search(self, say)
        finally:
            for memory in self._memories[1:]:
                memory.close()
            self._memories = []

    @property
    def ram(self) -> Ranges:
        """All RAM that the crash kernel was loaded with."""
        return cut.ram_of(self._parameters)

    @property
    def least_bytes(self) -> int:
        """What no probe can go below: where the image is stored and unpacks itself."""
        needed = cut.needed_ranges(self.plan["layout"], self.init_size)
        return (self.ram & needed).size

    def look(self, memory_bytes: int, worker: int = 0) -> Look:
        """Start the crash kernel with that much RAM; ``worker`` (below ``jobs``) is one at a time."""
        memory = self._memories[worker]
        self._dress(memory, memory_bytes)
        watched = (self.plan["layout"]["record_phys"], RECORD_BYTES)
        with tempfile.TemporaryDirectory(prefix="crashlend-probe-") as name:
            directory = Path(name)
            image = directory / "target.img"
            self.standin.make(image)
            machine = self._with_target(image, memory)
            replay = _Capture(self._state, watched, self.timeout_seconds)
            ending = replay.run(machine, directory, to_the_end=True)
            # what is on the disk counts; where only a guest could read that, what the capture reported
            on_disk = self.standin.is_file
            told = self.standin.read(image, directory).capture if on_disk else replay.capture
        return look_of(memory_bytes, told, ending.how, ending.console, ending.seconds)

    def _with_target(self, image: Path, memory: MemoryFile) -> Machine:
        if self._machine is None:
            raise CrashlendError("cannot probe", "the twin was not stopped")
        was = self.standin.words(self.standin.image)
        extra = self._machine.extra
        at = next(i for i in range(len(extra)) if extra[i : i + len(was)] == was)
        words = (*extra[:at], *self.standin.words(image), *extra[at + len(was) :])
        return replace(self._machine, extra=words, memory_file=memory.path)

    def _dress(self, memory: MemoryFile, memory_bytes: int) -> None:
        """Give the stopped image that much RAM, and purgatory the digests that go with it."""
        layout = self.plan["layout"]
        lent, reserved = (Ranges(tuple(r) for r in self.plan[k]) for k in ("lent", "reservation"))
        order = cut.order_of(reserved, lent, layout["kernel_runs_at"])
        needed = cut.needed_ranges(layout, self.init_size)
        page = cut.with_ram(self._parameters, cut.cut(self.ram, needed, memory_bytes, order))
        start = self._place(PARAMETERS)["start"]
        code = cut.resealed(self._purgatory, PARAMETERS, start, page)
        for name, data in ((PARAMETERS, page), (PURGATORY, code)):
            os.pwrite(memory.fd, data, file_offset(self.pieces, self._place(name)["start"]))

    def _place(self, name: str) -> dict[str, Any]:
        segments = self.plan["layout"]["segments"]
        found: dict[str, Any] = next(s for s in segments if s["name"] == name)
        return found

    def _segment(self, name: str) -> bytes:
        place = self._place(name)
        at = file_offset(self.pieces, place["start"])
        return os.pread(self.memory.fd, place["stored_bytes"], at)


def look_of(
    memory_bytes: int, capture: dict[str, Any], how: str, console: str, seconds: float
) -> Look:
    """What a probe's report, or its console where there is none, says of it."""
    crash = capture.get("crash_kernel", {})
    saved = capture.get("ok") is True
    told = "saved" if saved else "; ".join(_last_words(capture, how, console))
    return Look(
        memory_bytes,
        saved,
        told,
        seconds,
        crash.get("mem_total_bytes"),
        crash.get("peak_used_bytes"),
        capture.get("vmcore", {}).get("bytes") if saved else None,
    )


def _last_words(capture: dict[str, Any], how: str, console: str) -> Iterator[str]:
    """How it died: its last panic, the first process that memory ran out for, its own reason."""
    lines = [re.sub(r"^\[ *[0-9.]+\] ", "", line).strip() for line in console.splitlines()]
    words = [last_panic(lines), capture.get("reason", "")]
    words.insert(1, next((line for line in lines if "Out of memory: Killed" in line), ""))
    told = [word for word in words if word]
    yield from told or [f"{how} after: {next((x for x in reversed(lines) if x), 'nothing')}"]
