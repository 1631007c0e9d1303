# SPDX-License-Identifier: LGPL-2.1-or-later
"""Lending and giving back on a machine that fails on command, killed at every single step."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Callable

import pytest

from build import BLOCK, GIB, HWPOISON, MIB, PAGE, MemoryFiles, page_flags, zoneinfo
from crashlend.errors import CrashlendError
from crashlend.facts import read_facts
from crashlend.formats.procfs import Zone
from crashlend.lenders import Candidate, NodeRoom
from crashlend.lenders.census import BlockCensus
from crashlend.system import lending, memory_blocks
from crashlend.system.memory_blocks import BlockBusyError, MemoryBlocks
from crashlend.system.state import LENT, RETURNING, SPOILED, TAKING, State

if TYPE_CHECKING:
    from pathlib import Path

PAGES = BLOCK // PAGE


class Killed(BaseException):
    """SIGKILL at one point: nothing in the code under test may catch it."""


class Clock:
    """Counts the points at which a kill can strike; strikes at number ``deadly``."""

    def __init__(self, deadly: int = 0) -> None:
        self.now = 0
        self.deadly = deadly

    def tick(self) -> None:
        self.now += 1
        if self.now == self.deadly:
            raise Killed(self.now)


@dataclass
class Machine:
    """Blocks 32 to 39 of a host: their zones while online (None: offline), and what goes wrong.

    ``busy`` and ``no_online`` hold what fails: (block, ways of going online). A ``leaky`` block
    comes back without its pages; a ``dirty`` one with kernel pages; ``dissolves`` loses huge pages.
    """

    zone: dict[int, str | None] = field(
        default_factory=lambda: dict.fromkeys(range(32, 40), "Normal")
    )
    busy: set[int] = field(default_factory=set)
    no_online: set[tuple[int, str]] = field(default_factory=set)
    leaky: set[int] = field(default_factory=set)
    dirty: set[int] = field(default_factory=set)
    dissolves: set[int] = field(default_factory=set)
    poisoned: set[int] = field(default_factory=set)
    huge: set[int] = field(default_factory=set)
    gone: set[int] = field(default_factory=set)
    available: int = 3 * GIB
    lost_pages: int = 0
    huge_pages: int = 200
    log: list[tuple[str, int]] = field(default_factory=list)

    stuck: set[int] = field(default_factory=set)  # busy once they are movable

    def offline_blocks(self) -> list[int]:
        return [i for i, zone in self.zone.items() if zone is None and i not in self.gone]

    def movable_blocks(self) -> list[int]:
        return [i for i, zone in self.zone.items() if zone == "Movable"]


class FakeBlocks(MemoryBlocks):
    """MemoryBlocks on a :class:`Machine`; a kill can strike before and after every call."""

    def __init__(self, machine: Machine, clock: Clock | None = None) -> None:
        super().__init__(BLOCK)
        self.machine = machine
        self.clock = clock or Clock()

    def state(self, index: int) -> str:
        if index in self.machine.gone:
            return ""
        return "offline" if self.machine.zone[index] is None else "online"

    def zone(self, index: int) -> str:
        return self.machine.zone[index] or "none"

    def offline(self, index: int, deadline_seconds: float) -> None:
        self.clock.tick()
        self.machine.log.append(("offline", index))
        if self.machine.zone[index] is None:
            raise BlockBusyError("Invalid argument")  # sysfs: it is offline already
        stuck = index in self.machine.stuck and self.machine.zone[index] == "Movable"
        if index in self.machine.busy or stuck:
            raise BlockBusyError("it holds pages that cannot move")
        self.machine.zone[index] = None
        if index in self.machine.dissolves:
            self.machine.huge_pages -= 64
        self.clock.tick()

    def online(self, index: int, how: str) -> None:
        self.clock.tick()
        self.machine.log.append((how, index))
        if self.machine.zone[index] is not None:
            raise BlockBusyError("Invalid argument")  # sysfs: it is online already
        if (index, how) in self.machine.no_online:
            raise BlockBusyError("Cannot allocate memory")
        self.machine.zone[index] = "Movable" if how == "online_movable" else "Normal"
        if index in self.machine.leaky:
            self.machine.lost_pages = PAGES
        self.clock.tick()

    def census(self, index: int) -> BlockCensus:
        self.clock.tick()
        movable = self.machine.zone[index] == "Movable"
        dirty = 5 if index in self.machine.dirty and movable else 0
        huge, poison = index in self.machine.huge, index in self.machine.poisoned
        return BlockCensus(index, PAGES - dirty - huge - poison, 0, dirty, 0, huge, poison)

    def zones(self) -> tuple[Zone, ...]:
        self.clock.tick()
        online = {
            name: PAGES * sum(zone == name for zone in self.machine.zone.values())
            for name in ("Normal", "Movable")
        }
        online["Movable"] -= self.machine.lost_pages if online["Movable"] else 0
        return tuple(Zone(0, name, 0, n, n, n, n) for name, n in online.items())

    def meminfo(self) -> dict[str, int]:
        self.clock.tick()
        return {"MemTotal": 4 * GIB, "MemAvailable": self.machine.available}

    def huge_pages(self) -> dict[str, str]:
        self.clock.tick()
        return {"node0/hugepages-2048kB": str(self.machine.huge_pages)}


class KillableState(State):
    """The real state file; a kill can strike before and after every write."""

    clock = Clock()

    def write(self) -> None:
        self.clock.tick()
        super().write()
        self.clock.tick()


def quiet(_message: str) -> None:
    pass


def take(
    machine: Machine, state: State, wanted: int = 3, clock: Clock | None = None
) -> tuple[list[int], list[lending.Refused]]:
    return lending.take(
        FakeBlocks(machine, clock),
        state,
        [Candidate(index, 0) for index in (39, 38, 37, 36, 35, 34)],
        wanted,
        [NodeRoom(0, 6)],
        deadline_seconds=1,
        say=quiet,
    )


@pytest.fixture(autouse=True)
def _fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kill tests write thousands of states: order matters to them, not the platter."""
    monkeypatch.setattr(os, "fsync", lambda _fd: None)


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(tmp_path / "state.json")


def assert_sound(machine: Machine, state: State) -> None:
    """Assert that all memory is online and the state file tells exactly which blocks are lent."""
    assert machine.offline_blocks() == []
    assert sorted(state.blocks) == machine.movable_blocks()
    for index, block in state.blocks.items():
        assert block["step"] == (SPOILED if index in machine.dirty else LENT)
    again = State(state.path)
    assert again.blocks == state.blocks


def test_wanted_blocks_become_movable(state: State) -> None:
    """As many blocks as wanted are taken, in the candidates' order, and recorded as lent."""
    machine = Machine()
    assert take(machine, state) == ([39, 38, 37], [])
    assert machine.movable_blocks() == [37, 38, 39]
    assert_sound(machine, state)
    assert state.blocks[39]["zone"] == "Normal"


def test_busy_blocks_are_passed_over(state: State) -> None:
    """EBUSY costs nothing: the next candidates are tried, the refused stay as they were."""
    machine = Machine(busy={39, 37})
    taken, refused = take(machine, state)
    assert taken == [38, 36, 35]
    assert [r.index for r in refused] == [39, 37]
    assert_sound(machine, state)


def test_too_few_blocks_is_a_partial_result(state: State) -> None:
    """When candidates run out, what was had is kept."""
    machine = Machine(busy={39, 38, 37, 36, 35})
    taken, refused = take(machine, state)
    assert (taken, len(refused)) == ([34], 5)
    assert_sound(machine, state)


def test_a_block_that_cannot_be_movable_comes_home(state: State) -> None:
    """online_movable fails: the block goes online for the kernel and the next one is tried."""
    machine = Machine(no_online={(39, "online_movable")})
    taken, refused = take(machine, state, 1)
    assert (taken, [r.index for r in refused]) == ([38], [39])
    assert machine.zone[39] == "Normal"
    assert_sound(machine, state)


def test_a_block_comes_home_by_any_way_that_works(state: State) -> None:
    """online_kernel fails too: plain online is tried before giving up."""
    machine = Machine(no_online={(39, "online_movable"), (39, "online_kernel")})
    take(machine, state, 1)
    assert machine.zone[39] == "Normal"
    assert_sound(machine, state)


def test_a_block_that_never_comes_back_is_a_loud_error(state: State) -> None:
    """No way online works: an error with a command in its hint, and the state still knows it."""
    ways = ("online_movable", "online_kernel", "online")
    machine = Machine(no_online={(39, way) for way in ways})
    with pytest.raises(CrashlendError, match="block 39 does not come back") as caught:
        take(machine, state)
    assert "memory39/state" in caught.value.hint
    assert state.blocks[39]["step"] == TAKING
    machine.no_online.clear()
    lending.recover(FakeBlocks(machine), state, say=quiet)
    assert_sound(machine, state)


def test_a_zone_that_does_not_grow_stops_everything(state: State) -> None:
    """A hypervisor kept the pages although sysfs says online: no further block is touched."""
    machine = Machine(leaky={38})
    with pytest.raises(CrashlendError, match="block 38 came back smaller") as caught:
        take(machine, state)
    assert caught.value.hint
    assert 37 not in {index for _, index in machine.log}
    assert_sound(machine, state)
    assert 38 not in state.blocks


def test_poisoned_blocks_never_go_offline(state: State) -> None:
    """Hazard 2: neither on the way out nor on the way back."""
    machine = Machine(poisoned={39})
    assert take(machine, state, 1)[0] == [38]
    machine.poisoned.add(38)
    machine.log.clear()
    kept = lending.give_back(FakeBlocks(machine), state, [38], deadline_seconds=1, say=quiet)
    assert [k.index for k in kept] == [38]
    assert machine.log == []
    assert_sound(machine, state)


def test_blocks_with_huge_pages_never_go_offline(state: State) -> None:
    """Hazard 3: offlining would dissolve free ones silently, on the way out as on the way back."""
    machine = Machine(huge={39})
    assert take(machine, state, 1)[0] == [38]
    machine.huge.add(38)
    machine.log.clear()
    kept = lending.give_back(FakeBlocks(machine), state, [38], deadline_seconds=1, say=quiet)
    assert [k.index for k in kept] == [38]
    assert machine.log == []
    assert_sound(machine, state)


def test_lost_huge_pages_are_said(state: State) -> None:
    """nr_hugepages is compared before and after each block."""
    machine = Machine(dissolves={38})
    with pytest.raises(CrashlendError, match="huge pages were lost"):
        take(machine, state)
    assert machine.offline_blocks() == []


def test_a_block_with_kernel_pages_after_onlining_is_not_lent(state: State) -> None:
    """Hazard 4: the census after onlining decides; the block goes home."""
    machine = Machine(dirty={39})
    assert take(machine, state, 1)[0] == [38]
    assert machine.zone[39] == "Normal"
    assert_sound(machine, state)


def test_poison_that_comes_while_a_block_is_taken_keeps_it_online(state: State) -> None:
    """Hazard 2: it is not lent, and not even its undoing takes it offline again."""

    class Late(FakeBlocks):
        def census(self, index: int) -> BlockCensus:
            late = self.machine.zone[index] == "Movable"
            return BlockCensus(index, PAGES - 6, 0, 5 * late, 0, 0, int(late))

    machine = Machine()
    taken, _ = lending.take(
        Late(machine),
        state,
        [Candidate(39, 0)],
        1,
        [NodeRoom(0, 8)],
        deadline_seconds=1,
        say=quiet,
    )
    assert taken == []
    assert machine.log == [("offline", 39), ("online_movable", 39)]
    assert state.blocks[39]["step"] == SPOILED


def test_a_balloons_pages_right_after_onlining_were_there_before(state: State) -> None:
    """Hazard 4: PageOffline that did not move away; the block goes home."""

    class Balloon(FakeBlocks):
        def census(self, index: int) -> BlockCensus:
            return BlockCensus(index, PAGES - 1, 0, 0, 0, 0, 0, offline=1)

    machine = Machine()
    taken, refused = lending.take(
        Balloon(machine),
        state,
        [Candidate(39, 0)],
        1,
        [NodeRoom(0, 8)],
        deadline_seconds=1,
        say=quiet,
    )
    assert (taken, [r.index for r in refused], machine.zone[39]) == ([], [39], "Normal")


def test_a_dirty_block_that_cannot_go_home_is_never_lent(state: State) -> None:
    """It stays movable and on the books, but facts do not count it as lent until it is clean."""
    machine = Machine(dirty={39}, stuck={39})
    taken, refused = take(machine, state, 1)
    assert (taken, [r.index for r in refused]) == ([38], [39])
    assert_sound(machine, state)
    assert lent_by(state) == (38,)
    lending.give_back(FakeBlocks(machine), state, [39], deadline_seconds=1, say=quiet)
    assert lent_by(state) == (38,)
    lending.recover(FakeBlocks(machine), state, say=quiet)
    assert lent_by(state) == (38,)
    machine.dirty.clear()
    lending.recover(FakeBlocks(machine), state, say=quiet)
    assert lent_by(state) == (38, 39)


def lent_by(state: State) -> tuple[int, ...]:
    """The blocks that facts take for lent, from the state file as it is on disk."""
    files = {"/run/crashlend/state.json": state.path.read_bytes()}
    return read_facts(MemoryFiles(files)).lent_blocks


def test_recover_brings_the_others_home_when_one_does_not_come(state: State) -> None:
    """One block that fails for good does not keep the next one offline."""
    machine = Machine()
    take(machine, state)
    machine.zone.update({37: None, 38: None, 39: None})
    for index in (37, 38, 39):
        state.set_block(index, "returning")
    machine.no_online = {(37, way) for way in ("online_movable", "online_kernel", "online")}
    failed = lending.recover(FakeBlocks(machine), state, say=quiet)
    assert [refused.index for refused in failed] == [37]
    assert machine.offline_blocks() == [37]
    assert sorted(state.blocks) == [37]


def test_memory_pressure_ends_the_taking(state: State) -> None:
    """MemAvailable must hold the block and a margin; otherwise nothing is emptied."""
    machine = Machine(available=BLOCK + 63 * MIB)
    taken, refused = take(machine, state)
    assert (taken, machine.log) == ([], [])
    assert "memory is available" in refused[0].reason
    machine.available = BLOCK + 4 * GIB // 50
    assert take(machine, state, 1)[0] == [39]


def test_given_back_blocks_are_ordinary_again(state: State) -> None:
    """After give_back the machine and the state are as before take."""
    machine = Machine()
    take(machine, state)
    kept = lending.give_back(
        FakeBlocks(machine), state, [37, 38, 39], deadline_seconds=1, say=quiet
    )
    assert (kept, machine.movable_blocks(), state.blocks) == ([], [], {})


def test_a_block_that_cannot_be_emptied_stays_movable(state: State) -> None:
    """It is reported, stays online and recorded, and a later give_back returns it."""
    machine = Machine()
    take(machine, state)
    machine.busy = {38}
    kept = lending.give_back(
        FakeBlocks(machine), state, [37, 38, 39], deadline_seconds=1, say=quiet
    )
    assert [k.index for k in kept] == [38]
    assert_sound(machine, state)
    machine.busy = set()
    assert not lending.give_back(FakeBlocks(machine), state, [38], deadline_seconds=1, say=quiet)
    assert_sound(machine, state)


def test_recover_forgets_what_others_changed(state: State) -> None:
    """A lent block that is gone or in another zone now is no longer lent."""
    machine = Machine()
    take(machine, state)
    machine.gone.add(39)
    machine.zone[39] = None
    machine.zone[38] = "Normal"
    said: list[str] = []
    lending.recover(FakeBlocks(machine), state, say=said.append)
    assert sorted(state.blocks) == [37]
    assert len(said) == 2


def test_recover_leaves_lent_blocks_alone_that_somebody_took_offline(state: State) -> None:
    """Its own steps are on record before they are made: this one's owner may want the DIMM out."""
    machine = Machine()
    take(machine, state, 2)
    machine.zone[39] = None
    log = list(machine.log)
    said: list[str] = []
    lending.recover(FakeBlocks(machine), state, say=said.append)
    assert (machine.log, sorted(state.blocks)) == (log, [38])
    assert ["somebody else" in line for line in said] == [True]


# --- killed at every step ------------------------------------------------------------------------

FAULTS: dict[str, Callable[[], Machine]] = {
    "none": Machine,
    "busy": lambda: Machine(busy={39, 37}),
    "not movable": lambda: Machine(no_online={(39, "online_movable")}),
    "only plain online": lambda: Machine(no_online={(39, "online_movable"), (39, "online_kernel")}),
    "only movable": lambda: Machine(no_online={(38, "online_kernel"), (38, "online")}),
    "dirty": lambda: Machine(dirty={38}),
    "leaky": lambda: Machine(leaky={38}),
    "huge pages lost": lambda: Machine(dissolves={38}),
    "dirty and stuck": lambda: Machine(dirty={38}, stuck={38, 39}),
    "poison": lambda: Machine(poisoned={39}),
}


def scenario(machine: Machine, path: Path, clock: Clock) -> None:
    """Recover, take three blocks, give two back: what two runs of the tool do."""
    KillableState.clock = clock
    state = KillableState(path)
    lending.recover(FakeBlocks(machine, clock), state, say=quiet)
    take(machine, state, 3, clock)
    lending.give_back(FakeBlocks(machine, clock), state, [39, 38], deadline_seconds=1, say=quiet)


@pytest.mark.parametrize("fault", FAULTS)
def test_killed_at_every_step_no_memory_stays_lost(fault: str, tmp_path: Path) -> None:
    """Wherever kill -9 strikes, the next recover() leaves all online and the state true."""
    deadly = 0
    while True:
        deadly += 1
        machine, path = FAULTS[fault](), tmp_path / f"{deadly}.json"
        try:
            scenario(machine, path, Clock(deadly))
            break
        except Killed:
            pass
        except CrashlendError:
            break
        known = State(path)
        assert set(machine.offline_blocks()) <= set(known.blocks), f"step {deadly}: unrecorded"
        lending.recover(FakeBlocks(machine), known, say=quiet)
        assert_sound(machine, known)
    assert deadly > 15


@pytest.mark.parametrize("fault", ["none", "not movable", "only plain online"])
def test_a_killed_recovery_is_recovered_too(fault: str, tmp_path: Path) -> None:
    """Kill take at any step, then recover() at any step: the one after that puts all right."""
    for first in range(1, 200, 2):
        for second in range(1, 50):
            machine, path = FAULTS[fault](), tmp_path / "state.json"
            path.unlink(missing_ok=True)
            try:
                scenario(machine, path, Clock(first))
                return
            except Killed:
                pass
            KillableState.clock = clock = Clock(second)
            try:
                lending.recover(FakeBlocks(machine, clock), KillableState(path), say=quiet)
                finished = True
            except Killed:
                finished = False
            state = State(path)
            lending.recover(FakeBlocks(machine), state, say=quiet)
            assert_sound(machine, state)
            if finished:
                break


# --- the real class on files ---------------------------------------------------------------------


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in the place of /sys/devices/system/memory."""
    monkeypatch.setattr(memory_blocks, "BASE", tmp_path)
    block = tmp_path / "memory39"
    block.mkdir()
    (block / "state").write_text("online\n")
    (block / "valid_zones").write_text("Normal Movable\n")
    return block


def test_state_and_zone_are_read_from_sysfs(sysfs: Path) -> None:
    """The first word of valid_zones is the zone; a block that is gone has no state."""
    blocks = MemoryBlocks(BLOCK)
    assert (blocks.state(39), blocks.zone(39)) == ("online", "Normal")
    assert (blocks.state(40), blocks.zone(40)) == ("", "none")


def test_offline_and_online_write_one_word(sysfs: Path) -> None:
    """The kernel's words, without a newline, straight to the state file."""
    blocks = MemoryBlocks(BLOCK)
    (sysfs / "state").write_text("")
    blocks.offline(39, 5)
    assert (sysfs / "state").read_bytes() == b"offline"
    (sysfs / "state").write_text("")
    blocks.online(39, "online_movable")
    assert (sysfs / "state").read_bytes() == b"online_movable"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.EBUSY, "cannot move"),
        (errno.EINVAL, "holes"),
        (errno.ENOMEM, "no memory"),
        (errno.EPERM, "not permitted"),
    ],
)
def test_the_error_of_the_write_itself_is_not_lost(
    sysfs: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    """What write(2) answers becomes BlockBusyError in words (a buffered write would lose it)."""

    def write(_fd: int, _data: bytes) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(BlockBusyError, match=words):
        MemoryBlocks(BLOCK).offline(39, 5)
    with pytest.raises(BlockBusyError):
        MemoryBlocks(BLOCK).online(39, "online")


@pytest.mark.timeout(30, method="thread")
@pytest.mark.parametrize("seconds", [0.1, 0.0])
def test_an_offlining_that_never_ends_is_interrupted(
    sysfs: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """The deadline strikes while the system call blocks, and the signal handler is put back."""
    import signal

    (sysfs / "state").unlink()
    os.mkfifo(sysfs / "state")  # opening it for writing blocks for ever, like a stuck migration
    before = signal.getsignal(signal.SIGALRM)
    blocks = MemoryBlocks(BLOCK)
    monkeypatch.setattr(blocks, "state", lambda _index: "online")
    with pytest.raises(BlockBusyError, match="not emptied within"):
        blocks.offline(39, seconds)
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


@pytest.mark.timeout(30, method="thread")
def test_a_deadline_that_strikes_late_does_not_lose_the_block(
    sysfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The block went offline right before the signal: that is success, so that it is onlined."""
    (sysfs / "state").write_text("offline")

    def write(_path: Path, _data: bytes) -> None:
        raise memory_blocks._Deadline

    monkeypatch.setattr(memory_blocks, "_write", write)
    MemoryBlocks(BLOCK).offline(39, 5)


def test_census_counts_the_pages_of_one_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks at the entries of this block, not at its neighbours'."""
    file = tmp_path / "kpageflags"
    file.write_bytes(page_flags({1: [(HWPOISON, 2), (1 << 7, 3), (1 << 17, 4)]}, 2))
    real_open = open
    monkeypatch.setattr(
        "builtins.open",
        lambda path, *args, **more: real_open(
            file if path == "/proc/kpageflags" else path, *args, **more
        ),
    )
    blocks = MemoryBlocks(BLOCK)
    census = blocks.census(1)
    assert (census.poisoned, census.unmovable, census.huge, census.free) == (2, 3, 4, PAGES - 9)
    assert blocks.census(2).free == PAGES


@pytest.mark.parametrize(
    ("corrupted", "poisoned", "at_large"),
    [(0, {}, False), (0, {1: 1}, False), (8192, {1: 1, 2: 1}, False), (8192, {1: 1}, True)],
)
def test_poison_is_at_large_when_pages_show_less_of_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    corrupted: int,
    poisoned: dict[int, int],
    at_large: bool,
) -> None:
    """Poison whose block is known bars that block alone; an offline block's is not known."""
    for index in (1, 2, 3):
        (tmp_path / f"memory{index}").mkdir()
        (tmp_path / f"memory{index}/state").write_text("offline" if index == 3 else "online")
    monkeypatch.setattr(memory_blocks, "BASE", tmp_path)

    class Pages(MemoryBlocks):
        def meminfo(self) -> dict[str, int]:
            return {"HardwareCorrupted": corrupted}

        def census(self, index: int) -> BlockCensus:
            assert index != 3
            return BlockCensus(index, 0, 0, 0, 0, 0, poisoned.get(index, 0))

    assert Pages(BLOCK).poison_at_large() is at_large


def test_zones_of_a_host_are_summed_up() -> None:
    """The managed pages of all zones together are what taking a block must not lower."""
    from crashlend.formats.procfs import parse_zoneinfo

    zones = parse_zoneinfo(zoneinfo([(0, "DMA32", 1, 100), (1, "Normal", 7, 1000)]))
    assert sum(zone.managed for zone in zones) == 1100


def test_steps_of_the_state_are_as_documented() -> None:
    """The state file's words are read by other tools: they stay."""
    words = (TAKING, LENT, RETURNING, SPOILED)
    assert words == ("taking", "lent", "returning", "spoiled")
