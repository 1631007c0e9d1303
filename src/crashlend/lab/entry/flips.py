# SPDX-License-Identifier: LGPL-2.1-or-later
"""Bits of the loaded image flipped before purgatory runs: each must end in a reset that says why.

The machine is stopped at purgatory's entry once, its devices are saved, and from there it starts again
and again (replay.py), each time with one bit of one segment flipped in its memory.
"""

from __future__ import annotations

import json
import os
import random
import re
import tempfile
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from crashlend.errors import CrashlendError
from crashlend.lab.entry.bytes import PAGE, file_offset
from crashlend.lab.entry.replay import HANG, RESET, UP, Ending, Replay, SavedStop
from crashlend.lab.spec import Check
from crashlend.purgatory.x86_64 import ENDS, ENDS_OFFSET, RECORD_BYTES
from crashlend.ranges import Ranges

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from crashlend.lab.packages import Say
    from crashlend.lab.qemu import Machine
    from crashlend.lab.spec import Saved

SEED = 4
# purgatory's work and, where it goes on, the crash kernel's start, under emulation on a busy machine
BUDGET_SECONDS = 60.0
PURGATORY, PARAMETERS = "purgatory", "boot_params"
# of purgatory, part of which runs before it has verified itself, more bits are flipped
OWN_FACTOR = 3
# ... and of these this share must reset and say why; what a damaged program does can't be promised
OWN_SHARE = 0.8
# the last bytes of struct boot_params, _pad9 in Linux's bootparam.h: nobody reads them
HARMLESS_OFFSET = 0xFF0


class Flip(NamedTuple):
    """One bit of guest-physical memory, and the segment it is in."""

    segment: str
    address: int
    bit: int


@dataclass(frozen=True)
class Fate:
    """What became of one flip.

    ``how`` is one of replay's endings, ``reason`` what the record says of a reset, ``said`` the
    console's line about it (else its last one), ``bad`` how many digests the record calls wrong,
    ``where`` the CPUs' instruction pointers when the machine hung.
    """

    segment: str
    offset: int
    bit: int
    how: str
    seconds: float
    reason: str
    said: str
    bad: int
    where: str = ""

    @property
    def told(self) -> bool:
        """Whether it was a reset of which record and console say why."""
        return self.how == RESET and bool(self.reason) and self.reason in self.said


def flippable(layout: Mapping[str, Any], purgatory_head: bytes) -> dict[str, Ranges]:
    """The constant bytes of each segment, as loaded.

    Without what purgatory writes to: its own memory, of which ``purgatory_head``, its first bytes,
    tells the place, and its record at the end of boot_params.
    """
    found = {}
    for segment in layout["segments"]:
        start, end = segment["start"], segment["start"] + segment["stored_bytes"]
        written: tuple[int, int] = (0, 0)
        if segment["name"] == PURGATORY:
            first, behind = ENDS.unpack_from(purgatory_head, ENDS_OFFSET)
            written = (start + first, start + behind)
        elif segment["name"] == PARAMETERS:
            written = (layout["record_phys"], end)
        found[segment["name"]] = Ranges([(start, end)]) - Ranges([written])
    return found


def choose(places: Mapping[str, Ranges], count: int) -> list[Flip]:
    """One bit in ``count`` bytes of each segment, of purgatory in three times as many.

    Its edges, the others from the seed.
    """
    chosen = []
    for name, ranges in places.items():
        source = random.Random(f"{SEED} {name}")
        at = [address for r in ranges for address in (r.start, r.end - 1)]
        while len(at) < count * (OWN_FACTOR if name == PURGATORY else 1):
            nth = source.randrange(ranges.size)
            for r in ranges:
                if nth < r.size:
                    at.append(r.start + nth)
                    break
                nth -= r.size
        chosen += [Flip(name, address, source.randrange(8)) for address in at]
    return chosen


def parse_record(memory: bytes) -> dict[str, Any]:
    """Purgatory's record as it stands in memory; empty when there is none."""
    try:
        record = json.loads(memory.decode("ascii"))
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def fate_of(flip: Flip, segment_start: int, ending: Ending) -> Fate:
    """What a replay's ending says of its flip."""
    record = parse_record(ending.memory)
    reason = str(record.get("reset", ""))
    lines = [line.strip() for line in ending.console.splitlines() if line.strip()]
    told = [line for line in lines if reason and reason in line]
    return Fate(
        segment=flip.segment,
        offset=flip.address - segment_start,
        bit=flip.bit,
        how=ending.how,
        seconds=ending.seconds,
        reason=reason,
        said=(told or lines or [""])[-1],
        bad=sum(int(step.get("bad", 0)) for step in record.get("steps", ())),
        where=" ".join(re.findall(r"\bRIP=[0-9a-f]+", ending.where)),
    )


class Flips(SavedStop):
    """A trial whose machine ends at purgatory's entry, to start from there with flipped bits.

    Where the plan says ``on_mismatch`` boot, one bit is flipped that nothing but the digest minds.
    """

    name = "flips"

    def __init__(self, memory_bytes: int, count: int) -> None:
        """``count`` flips of each segment."""
        super().__init__(memory_bytes)
        self.count = count
        self.control: Fate | None = None
        self.fates: list[Fate] = []

    def finish(self, machine: Machine, say: Say) -> None:
        """Replay: first as it was, then with each flip."""
        try:
            self.stopped()
        except CrashlendError as error:
            self.error = str(error)
            return
        layout = self.plan["layout"]
        starts = {s["name"]: s["start"] for s in layout["segments"]}
        head = os.pread(self.memory.fd, PAGE, file_offset(self.pieces, starts[PURGATORY]))
        calm = replace(machine, disks=tuple(replace(d, kept=False) for d in machine.disks))
        nothing = Flip("", 0, 0)
        self.control = fate_of(nothing, 0, self._replay(calm))
        say(f"no flip: {self.control.how} after {self.control.seconds} s")
        if self.plan["on_mismatch"] == "boot":
            flip = Flip(PARAMETERS, starts[PARAMETERS] + HARMLESS_OFFSET, 0)
            with self._flipped(flip):
                ending = self._replay(machine, to_the_end=True)
            self.fates.append(fate_of(flip, starts[PARAMETERS], ending))
            return
        for flip in choose(flippable(layout, head), self.count):
            with self._flipped(flip):
                ending = self._replay(calm)
            fate = fate_of(flip, starts[flip.segment], ending)
            self.fates.append(fate)
            say(f"{fate.segment} +{fate.offset:#x} bit {fate.bit}: {fate.how}, {fate.said!r}")

    def _replay(self, machine: Machine, *, to_the_end: bool = False) -> Ending:
        watched = (self.plan["layout"]["record_phys"], RECORD_BYTES)
        again = replace(machine, memory_file=self.memory.path)
        with tempfile.TemporaryDirectory(prefix="crashlend-") as directory:
            replay = Replay(self._state, watched, BUDGET_SECONDS)
            return replay.run(again, Path(directory), to_the_end=to_the_end)

    @contextmanager
    def _flipped(self, flip: Flip) -> Iterator[None]:
        """The memory file with that bit flipped, for as long as a replay begins from it."""
        offset = file_offset(self.pieces, flip.address)
        (value,) = os.pread(self.memory.fd, 1, offset)
        os.pwrite(self.memory.fd, bytes([value ^ 1 << flip.bit]), offset)
        try:
            yield
        finally:
            os.pwrite(self.memory.fd, bytes([value]), offset)

    def checks(self, saved: Saved) -> Iterator[Check]:
        """A control that comes up, and a reset with its reason for every flip."""
        yield from super().checks(saved)
        control = self.control
        yield Check(
            "without a flip the crash kernel comes up and no digest is wrong",
            control is not None and control.how == UP and control.bad == 0,
            f"{control.how}, {control.bad} wrong" if control else self.error or "never replayed",
        )
        if self.plan.get("on_mismatch") == "boot":
            yield self._booted_all_the_same(saved)
            return
        for segment in (s["name"] for s in (self.plan.get("layout") or {}).get("segments", ())):
            yield self._reset_and_told(segment)

    def _reset_and_told(self, segment: str) -> Check:
        fates = [fate for fate in self.fates if fate.segment == segment]
        good = [f for f in fates if f.told and (segment == PURGATORY or segment in f.reason)]
        odd = [f"+{f.offset:#x} bit {f.bit}: {f.how} {f.where}" for f in fates if f not in good]
        words = f"{len(good)} of {len(fates)}" + (f"; {', '.join(odd[:12])}" if odd else "")
        if segment == PURGATORY:
            # what runs before the digest can be hit, too: it may then reset at once, or loop for ever
            return Check(
                f"flips in {segment}: none starts the crash kernel, most reset and say why",
                len(fates) >= self.count
                and all(f.how != UP for f in fates)
                and len(good) >= OWN_SHARE * len(fates),
                words,
            )
        return Check(
            f"flips in {segment}: each resets the machine and the record says why",
            len(fates) >= self.count and len(good) == len(fates),
            words,
        )

    def _booted_all_the_same(self, saved: Saved) -> Check:
        steps = (saved.capture.get("purgatory") or {}).get("steps", [])
        bad = sum(int(step.get("bad", 0)) for step in steps)
        return Check(
            "with on_mismatch = boot a flip costs no dump, and capture.json tells of it",
            [f.how for f in self.fates] == [UP] and bad == 1 and saved.vmcore is not None,
            f"{bad} digests wrong in capture.json, "
            + ("a dump was saved" if saved.vmcore else "no dump was saved"),
        )

    def to_json(self) -> dict[str, Any]:
        """A table by segment, and every flip."""
        table = {}
        for segment in dict.fromkeys(fate.segment for fate in self.fates):
            fates = [fate for fate in self.fates if fate.segment == segment]
            ends = Counter(fate.how for fate in fates)
            table[segment] = {
                "flips": len(fates),
                "reset_with_reason": sum(fate.told for fate in fates),
                "reset_without_reason": ends[RESET] - sum(fate.told for fate in fates),
                "crash_kernel_up": ends[UP],
                "hang": ends[HANG],
                "slowest_seconds": max(fate.seconds for fate in fates),
            }
        return {
            **super().to_json(),
            "seed": SEED,
            "control": asdict(self.control) if self.control else None,
            "segments": table,
            "flips": [asdict(fate) for fate in self.fates],
        }
