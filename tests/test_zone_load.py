# SPDX-License-Identifier: LGPL-2.1-or-later
"""Loading with memory of a ZONE_MOVABLE on a fake host: what is kept, dropped, left by a kill."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from build import BLOCK, BUDDY, GIB, HWPOISON, MIB, PAGE, RESERVED, TEXT_PHYS, MemoryFiles, host
from crashlend.config import Settings
from crashlend.facts import STATE_PATH, read_facts
from crashlend.formats import bootparams
from crashlend.health import find_problems
from crashlend.ranges import Ranges
from crashlend.system import handover, loading, shrinking
from test_cli import put_in_place
from test_lending import Clock, Killed, Machine, quiet
from test_shrink import END, START, Death, ShrinkHost, load

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

ZONE = range(12, 16)  # below the reservation; the machine's blocks 32 to 39 can be made movable
WHOLE = Ranges([(12 * BLOCK, 16 * BLOCK)])
PAGES = BLOCK // PAGE
FREE = struct.pack("=Q", BUDDY) * PAGES


class ZoneFiles(MemoryFiles):
    """A host with page flags for the blocks of the zone alone; of others nothing is known."""

    def __init__(self) -> None:
        super().__init__(host(movable=ZONE))
        self.poisoned: set[int] = set()  # page frame numbers

    def read(self, path: str, limit: int = 1 << 30, offset: int = 0) -> bytes:
        if path != "/proc/kpageflags":
            return super().read(path, limit, offset)
        first = offset // 8
        if first == TEXT_PHYS // PAGE:
            return struct.pack("=Q", RESERVED)
        if first // PAGES not in ZONE:
            return b""
        flags = bytearray(FREE)
        for pfn in self.poisoned:
            if first <= pfn < first + PAGES:
                flags[(pfn - first) * 8 : (pfn - first + 1) * 8] = struct.pack("=Q", HWPOISON)
        return bytes(flags[:limit])


@dataclass
class ZoneHost(ShrinkHost):
    """A :class:`ShrinkHost` with a ZONE_MOVABLE that somebody else made."""

    memory: ZoneFiles = field(default_factory=ZoneFiles)
    zone: set[int] = field(default_factory=lambda: set(ZONE))

    def refresh(self) -> None:
        super().refresh()
        for index in ZONE:
            zone = b"Movable\n" if index in self.zone else b"DMA32\n"
            self.memory.files[f"/sys/devices/system/memory/memory{index}/valid_zones"] = zone
        corrupted = len(self.memory.poisoned) * 4
        info = b"MemTotal: 4000000 kB\nMemAvailable: 3500000 kB\nHardwareCorrupted: %d kB\n"
        self.memory.files["/proc/meminfo"] = info % corrupted

    def image_ram(self) -> Ranges:
        """The RAM of the loaded image above 1 MiB, without the reservation."""
        params = next((data for s, data in self.image if s.name == "boot_params"), None)
        if params is None:
            return Ranges()
        entries = bootparams.parse_e820(params[:4096])
        ram = Ranges((e.start, e.end) for e in entries if e.type == 1 and e.start >= MIB)
        return ram - Ranges([(START, END)])

    def blocks_of_image(self) -> set[int]:
        return {r.start // BLOCK for r in self.image_ram().align_inwards(BLOCK)}


@pytest.fixture
def some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ZoneHost:
    one = ZoneHost(tmp_path, Machine())
    put_in_place(one, monkeypatch)

    def memory_files(_root: Path) -> MemoryFiles:
        one.refresh()
        return one.memory

    monkeypatch.setattr(loading, "TreeFiles", memory_files)
    monkeypatch.setattr(handover, "is_in_memory", lambda _known: None)
    calls = SimpleNamespace(open=one.open, write=one.write, close=one.close)
    calls.O_WRONLY, calls.O_CLOEXEC = os.O_WRONLY, os.O_CLOEXEC
    monkeypatch.setattr(shrinking, "os", calls)
    monkeypatch.setattr(os, "fsync", lambda _fd: None)
    return one


def recorded(one: ZoneHost) -> dict[str, Any]:
    loaded = one.state.loaded
    assert loaded is not None
    return loaded


def assert_loaded(one: ZoneHost) -> None:
    """Assert that the image has what the record says, all of it clean or our own, and no more."""
    record = recorded(one)
    lent, zone = (Ranges(tuple(r) for r in record[name]) for name in ("lent", "zone"))
    assert (one.loaded, record["step"]) == (True, "loaded")
    assert one.image_ram() == lent
    assert lent & WHOLE == zone
    movable = Ranges((i * BLOCK, (i + 1) * BLOCK) for i in one.machine.movable_blocks())
    assert lent - zone == movable
    assert sorted(one.state.blocks) == one.machine.movable_blocks()
    assert one.machine.offline_blocks() == []
    assert not any(pfn * PAGE in lent for pfn in one.memory.poisoned)


ENOUGH = Settings(lend=256 * MIB)
MORE = Settings(lend=768 * MIB)


def test_the_zone_is_lent_and_no_block_is_touched(some: ZoneHost) -> None:
    """Nothing goes offline; a second load finds the image, and unload has nothing to give back."""
    done = load(ENOUGH)
    assert (done.plan.lender, done.already) == ("movable-zone", False)
    assert (some.machine.log, some.state.blocks) == ([], {})
    assert recorded(some)["zone"] == [[14 * BLOCK, 16 * BLOCK]]
    assert_loaded(some)
    assert load(ENOUGH).already
    assert (some.loads, some.machine.log) == (1, [])
    assert loading.unload(ENOUGH, say=quiet) == ()
    assert (some.loaded, some.state.loaded, some.machine.log) == (False, None, [])


def test_what_the_zone_lacks_is_made_movable(some: ZoneHost) -> None:
    """Both together; the same again changes nothing; less needs no block, and it goes back."""
    done = load(MORE)
    assert (done.plan.lender, done.plan.lent.size) == ("movable-zone,movable", 768 * MIB)
    assert some.machine.movable_blocks() == [38, 39]
    assert_loaded(some)
    log = list(some.machine.log)
    assert load(MORE).already
    assert some.machine.log == log
    assert load(ENOUGH).plan.lender == "movable-zone"
    assert some.machine.movable_blocks() == []
    assert_loaded(some)


def test_blocks_that_refuse_are_made_up_for_by_the_zone(some: ZoneHost) -> None:
    """movable,movable-zone: the second is asked once the first one's blocks did not go."""
    some.machine.busy = set(range(1, 40)) - {36}
    done = load(Settings(lend=256 * MIB, lender="movable,movable-zone"))
    assert [(p.lender, p.lent.size) for p in done.plan.offer.parts] == [
        ("movable", BLOCK),
        ("movable-zone", BLOCK),
    ]
    assert_loaded(some)


def test_a_choice_is_kept_when_better_ones_come_up(some: ZoneHost) -> None:
    """The upper runs were dirty at first: what was lent then stays lent."""
    some.memory.poisoned = {15 * PAGES, 14 * PAGES}
    first = load(ENOUGH)
    assert not first.plan.lent.meets(Ranges([(14 * BLOCK, 14 * BLOCK + MIB)]))
    some.memory.poisoned = set()
    assert load(ENOUGH).already
    assert load(ENOUGH, shrink=True).plan.lent == first.plan.lent
    assert_loaded(some)
    loading.unload(ENOUGH, say=quiet)
    assert load(ENOUGH).plan.lent == Ranges([(14 * BLOCK, 16 * BLOCK)])


def test_a_page_that_goes_bad_is_dropped_by_the_next_load(some: ZoneHost) -> None:
    """It is said, the rest stays, and other memory makes up for it."""
    before = load(ENOUGH).plan.lent
    bad = 15 * PAGES + 7
    some.memory.poisoned = {bad}
    done = load(ENOUGH)
    assert not done.already
    assert bad * PAGE not in done.plan.lent
    assert done.plan.lent.covers(before - Ranges([(15 * BLOCK, 15 * BLOCK + 2 * MIB)]))
    assert done.plan.lent.size >= 256 * MIB
    assert any("must not be any more" in note for note in done.plan.notes)
    assert_loaded(some)
    assert load(ENOUGH).already
    assert not any("must not be any more" in note for note in load(ENOUGH).plan.notes)


def test_without_a_look_at_the_pages_nothing_of_a_zone_is_loaded(
    some: ZoneHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/proc/kpageflags can't be read: not one page of the zone is handed over unseen."""

    def unreadable(path: str, limit: int = 1 << 30, offset: int = 0) -> bytes:
        if path == "/proc/kpageflags":
            raise PermissionError(1, "Operation not permitted")
        return MemoryFiles.read(some.memory, path, limit, offset)

    monkeypatch.setattr(some.memory, "read", unreadable)
    done = load(ENOUGH)
    assert done.plan.lender == "movable"
    assert not done.plan.lent.meets(WHOLE)
    assert any("can't be looked at" in note for note in done.plan.notes)
    assert_loaded(some)


def test_status_tells_of_blocks_that_left_the_zone(some: ZoneHost) -> None:
    """Unplugged or onlined elsewhere: the loaded image counts on memory that is not there."""
    some.memory.poisoned = {16 * PAGES - 1}  # lent memory ends inside block 15
    load(ENOUGH)
    state = json.loads((some.root / STATE_PATH.lstrip("/")).read_text())
    some.refresh()
    assert find_problems(read_facts(some.memory), state) == []
    some.zone.discard(15)
    some.refresh()
    problems = find_problems(read_facts(some.memory), state)
    assert len(problems) == 1
    assert "block 15" in problems[0]
    assert "reload now" in problems[0]
    done = load(ENOUGH)
    assert not done.plan.lent.meets(Ranges([(15 * BLOCK, 16 * BLOCK)]))
    assert_loaded(some)


# --- killed at every step ------------------------------------------------------------------------


def unload() -> None:
    loading.unload(MORE, say=quiet)


def zone_alone() -> None:
    load(ENOUGH)


def zone_and_blocks() -> None:
    load(MORE)


def shrink_both() -> None:
    load(MORE, shrink=True)


RUNS: dict[str, tuple[Sequence[Callable[[], object]], Callable[[], object]]] = {
    "load": ([], zone_and_blocks),
    "shrink": ([zone_alone], shrink_both),
    "load less": ([zone_and_blocks], zone_alone),
    "unload": ([shrink_both], unload),
}


@pytest.mark.parametrize("final", [True, False], ids=["kill", "signal"])
@pytest.mark.parametrize("name", RUNS)
def test_killed_at_any_step_the_next_load_puts_all_right(
    name: str, final: bool, some: ZoneHost
) -> None:
    """Every call into the kernel and every write of the state, with both lenders at work."""
    before, run = RUNS[name]
    steps = 0
    while True:
        steps += 1
        some.reset()
        for each in before:
            each()
        some.clock = Death(steps, final=final)
        try:
            run()
        except Killed:
            pass
        else:
            break
        # no image may count on memory that production has again, or that is not in the zone
        assert some.blocks_of_image() <= {*some.machine.movable_blocks(), *ZONE}, steps
        if not final:
            assert some.machine.offline_blocks() == [], steps
        some.clock = Clock()
        shrink_both() if steps % 2 else zone_and_blocks()
        assert_loaded(some)
        assert some.machine.movable_blocks() == [38, 39], steps
        assert sum(end - start for start, end in recorded(some)["lent"]) == 768 * MIB < GIB
        unload()
        assert not some.loaded
        assert some.machine.movable_blocks() == some.machine.offline_blocks() == []
        assert (some.state.blocks, some.state.loaded) == ({}, None)
    assert some.clock.now < steps
    assert steps > 10
