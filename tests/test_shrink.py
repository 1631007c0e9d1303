# SPDX-License-Identifier: LGPL-2.1-or-later
"""Shrinking the reservation: how far, in which order, and killed at every single step."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from build import BLOCK, GIB, MIB, PAGE, RESERVATION, MemoryFiles, bz_image, facts, host, payload
from crashlend.config import Settings
from crashlend.errors import CrashlendError
from crashlend.facts import STATE_PATH
from crashlend.formats import bootparams
from crashlend.formats.bzimage import BzImage
from crashlend.payload import Files
from crashlend.plan import Payload, make_plan
from crashlend.ranges import Ranges
from crashlend.shrink import Shrink, plan_shrink
from crashlend.system import handover, kexec, loading, shrinking
from test_cli import FakeHost, put_in_place
from test_lending import Clock, FakeBlocks, KillableState, Killed, Machine, quiet
from test_plan import PAYLOAD, assert_invariants, crash_ram, layout_of, loads

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from crashlend.arch import Segment
    from crashlend.facts import Facts

LENT = (36, 37, 38, 39)
START, END = RESERVATION
LOW, HIGH = (0xB0000000, 0xB0000000 + 128 * MIB), (0x110000000, 0x110000000 + 256 * MIB)
NOT_LENT = {"lend": 0}


def lending_host(**kind: Any) -> Facts:
    return facts(movable=LENT, lent=LENT, **kind)


def shrink_of(some: Facts, load: Payload = PAYLOAD, **settings: Any) -> Shrink:
    shrink = plan_shrink(some, Settings(**settings), load)
    assert shrink is not None
    return shrink


# --- how far -------------------------------------------------------------------------------------


@pytest.mark.parametrize("initramfs", [2 * MIB, 2 * MIB + 5, 40 * MIB])
@pytest.mark.parametrize("margin", [None, 0, 1, 10 * MIB])
def test_the_target_is_what_is_required_and_the_margin(initramfs: int, margin: int | None) -> None:
    """Unset, the margin is a quarter of what is stored, 4 MiB at least; 0 is exact."""
    load, some = payload(initramfs), lending_host()
    shrink = shrink_of(some, load, shrink_margin=margin)
    layout = layout_of(make_plan(some, Settings(placement="lent"), load, held_only=True))
    if margin is None:
        margin = max(4 * MIB, sum(s.stored_bytes for s in layout.segments) // 4)
    wanted = layout.required_bytes + margin
    assert wanted <= shrink.after_bytes < wanted + PAGE
    assert shrink.after_bytes % PAGE == 0
    assert (shrink.before.start, shrink.before.end) == RESERVATION
    assert shrink.freed_bytes == 256 * MIB - shrink.after_bytes


def test_exact_fits_and_a_page_less_does_not() -> None:
    """With margin 0 the plan afterwards needs all there is; it cannot be made one page below."""
    size = shrink_of(lending_host(), shrink_margin=0).after_bytes
    make_plan(shrunk(size), Settings(), PAYLOAD, held_only=True)
    with pytest.raises(CrashlendError, match="reservation is too small"):
        make_plan(shrunk(size - PAGE), Settings(), PAYLOAD, held_only=True)


@pytest.mark.parametrize("megabytes", [20, 100])
def test_a_size_that_is_asked_for_is_what_stays(megabytes: int, some: ShrinkHost) -> None:
    """Whatever the margin; the image is loaded into just that."""
    done = load(shrink=True, shrink_to=megabytes * MIB)
    assert some.end - START == megabytes * MIB
    assert done.freed_bytes == END - some.end
    assert done.plan.reservation == Ranges([(START, some.end)])
    assert_loaded(some)


def test_a_size_that_is_too_small_is_said_with_what_is_needed(some: ShrinkHost) -> None:
    """The reservation stays, and the image is loaded all the same."""
    said: list[str] = []
    assert load(said=said, shrink=True, shrink_to=PAGE).freed_bytes == 0
    assert any("stays as it is" in line and "needs" in line for line in said)
    assert_loaded(some)


@pytest.mark.parametrize("margin", [0, None])
def test_nothing_to_win_is_none(margin: int | None) -> None:
    """What was shrunk already, or is smaller than the margin wants it, stays as it is."""
    size = shrink_of(lending_host(), shrink_margin=margin).after_bytes
    for one in (size, size - PAGE) if margin is None else (size,):
        assert plan_shrink(shrunk(one), Settings(shrink_margin=margin), PAYLOAD) is None
    assert shrink_of(shrunk(size + PAGE), shrink_margin=margin).after_bytes == size


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({}, "lent"),
        ({"placement": "lent"}, "lent"),
        ({"placement": "reserved"}, "reserved"),
        (NOT_LENT, "reserved"),
    ],
)
def test_the_kernel_runs_in_lent_memory_where_there_is_any(
    settings: dict[str, Any], where: str
) -> None:
    """Under auto it does, for the smallest reservation; asked for or nothing lent, it does not."""
    shrink = shrink_of(lending_host(), **settings)
    assert layout_of(shrink.plan).placement == where
    assert (shrink.after_bytes > PAYLOAD.image.init_size) == (where == "reserved")


def test_lent_memory_that_has_no_room_for_the_kernel_is_not_counted_on() -> None:
    """Auto: where no lent range takes the kernel, it stays and the reservation shrinks less."""
    some, load = facts(movable=[39], lent=[39]), payload(init_size=160 * MIB)
    shrink = shrink_of(some, load)
    assert layout_of(shrink.plan).placement == "reserved"
    assert shrink.after_bytes > 160 * MIB


def shrunk(size: int, **kind: Any) -> Facts:
    """The host with a reservation that ends early, as Linux shows it after a shrink."""
    return lending_host(
        reservations=[(START, START + size)],
        more_iomem=[(1, START + size, END, "System RAM")] if size < END - START else (),
        **kind,
    )


@pytest.mark.parametrize("settings", [{}, NOT_LENT, {"placement": "reserved"}])
@pytest.mark.parametrize("margin", [0, None])
def test_the_plan_afterwards_holds_on_the_shrunk_host(
    settings: dict[str, Any], margin: int | None
) -> None:
    """It is the plan that the shrunk host gives; what is freed is RAM and dumped, not handed on."""
    shrink = shrink_of(lending_host(), shrink_margin=margin, **settings)
    after = shrunk(shrink.after_bytes)
    assert_invariants(shrink.plan, after)
    segments = layout_of(shrink.plan).segments
    assert all(START <= s.start < s.end <= START + shrink.after_bytes for s in segments)
    freed = Ranges([(START + shrink.after_bytes, END)])
    assert shrink.plan.system_ram.covers(freed)
    assert Ranges(loads(shrink.plan)).covers(freed)
    assert not crash_ram(shrink.plan).meets(freed)
    real = make_plan(after, Settings(**settings), PAYLOAD, held_only=True)
    assert (real.layout, real.cmdline) == (shrink.plan.layout, shrink.plan.cmdline)


# --- the kernel's file ---------------------------------------------------------------------------

SIZE_FILE = "/sys/kernel/kexec_crash_size"


@pytest.mark.parametrize("limit", [0, 4])
def test_a_load_limit_that_would_leave_no_image_is_respected(limit: int) -> None:
    """A shrink takes up to five of the loads that kexec_load_limit_panic counts; fewer are refused."""
    some = facts()
    with pytest.raises(CrashlendError, match="kexec_load_limit_panic"):
        plan_shrink(replace(some, kexec_load_limit_panic=limit), Settings(), PAYLOAD)
    assert shrink_of(replace(some, kexec_load_limit_panic=5)).freed_bytes > 0


def test_more_than_half_of_ram_goes_in_steps() -> None:
    """The kernel would refuse the filler, after it had dropped the old image."""
    some = replace(facts(), meminfo={"MemTotal": 400 * MIB})
    with pytest.raises(CrashlendError, match="half of RAM") as caught:
        plan_shrink(some, Settings(lend=0), PAYLOAD)
    assert caught.value.hint.endswith("--shrink 128M")
    assert plan_shrink(some, Settings(lend=0), PAYLOAD, 128 * MIB) is not None


def test_what_is_given_back_may_be_one_program_header_more() -> None:
    """A reservation at the end of RAM: its freed part is a PT_LOAD of its own, and may take a page."""
    end = 0xBFFE0000
    notes = 66  # so that the headers before fill their page, and those after do not fit
    for cpus in range(notes, notes + 8):
        some = facts(reservations=[(end - 256 * MIB, end)], cpus=cpus)
        shrink = plan_shrink(some, Settings(lend=0, shrink_margin=0), PAYLOAD)
        assert shrink is not None
        assert shrink.plan.layout is not None
        assert shrink.plan.layout.required_bytes == shrink.after_bytes


def test_written_for_one_reservation_is_its_new_size() -> None:
    """Both meanings are the same there."""
    shrink = shrink_of(lending_host())
    assert shrink.written_bytes == shrink.after_bytes


@pytest.mark.parametrize(("read", "more"), [(256 * MIB, 0), (384 * MIB, 128 * MIB)])
def test_written_for_two_reservations_follows_what_the_file_reads(read: int, more: int) -> None:
    """Hazard 10: the main part alone (6.1) or main and low together (6.17); low keeps its size."""
    some = facts(
        movable=LENT,
        lent=LENT,
        reservations=[LOW, HIGH],
        files={SIZE_FILE: b"%d\n" % read},
    )
    shrink = shrink_of(some)
    assert (shrink.before.start, shrink.before.end) == HIGH
    assert shrink.written_bytes == shrink.after_bytes + more
    assert shrink.written_bytes > more
    assert shrink.plan.reservation == Ranges([LOW, (HIGH[0], HIGH[0] + shrink.after_bytes)])


@pytest.mark.parametrize("content", [b"134217728\n", b"0\n", b"x\n", None])
def test_another_meaning_of_the_file_is_refused(content: bytes | None) -> None:
    """A size that is neither of the two known: nothing is written by guess."""
    some = lending_host(reservations=[LOW, HIGH], files={SIZE_FILE: content})
    with pytest.raises(CrashlendError, match="cannot shrink the reservation"):
        plan_shrink(some, Settings(), PAYLOAD)


# --- on a fake host ------------------------------------------------------------------------------


class Death(Clock):
    """With ``final`` no step is made any more after the deadly one: SIGKILL, not a signal."""

    def __init__(self, deadly: int = 0, *, final: bool = False) -> None:
        super().__init__(deadly)
        self.final = final

    def tick(self) -> None:
        super().tick()
        if self.final and self.deadly and self.now > self.deadly:
            raise Killed(self.now)


@dataclass
class ShrinkHost(FakeHost):
    """A fake host whose kernel checks segments and has /sys/kernel/kexec_crash_size.

    ``refuse`` is what the kernel refuses, with its errno; ``image`` the segments that are loaded.
    ``takes`` is how many control pages it wants, all from the bottom of the reservation.
    """

    clock: Clock = field(default_factory=Clock)
    events: list[str] = field(default_factory=list)
    refuse: dict[str, int] = field(default_factory=dict)
    image: list[tuple[Segment, bytes]] = field(default_factory=list)
    end: int = END
    takes: int = 4
    memory: MemoryFiles = field(default_factory=lambda: MemoryFiles(host()))
    iomem: dict[int, bytes] = field(default_factory=dict)

    @property
    def state(self) -> KillableState:
        state = KillableState(self.root / "run/crashlend/state.json")
        state.clock = self.clock
        return state

    def blocks(self) -> FakeBlocks:
        return FakeBlocks(self.machine, self.clock)

    def refresh(self) -> None:
        """Bring the files in memory up to date; a tree on disk would take most of the time."""
        files = self.memory.files
        for index, zone in self.machine.zone.items():
            base = f"/sys/devices/system/memory/memory{index}"
            files[f"{base}/state"] = b"online\n" if zone else b"offline\n"
            files[f"{base}/valid_zones"] = (zone or "none").encode()
        files["/sys/kernel/kexec_crash_loaded"] = b"%d\n" % self.loaded
        files[SIZE_FILE] = b"%d\n" % (self.end - START)
        if self.end not in self.iomem:
            freed = [(1, self.end, END, "System RAM")] if self.end < END else []
            shown = host(reservations=[(START, self.end)], more_iomem=freed)
            self.iomem[self.end] = shown["/proc/iomem"]
        files["/proc/iomem"] = self.iomem[self.end]
        state = self.root / "run/crashlend/state.json"
        files.pop(STATE_PATH, None)
        if state.exists():
            files[STATE_PATH] = state.read_bytes()

    def load_image(self, _entry: int, segments: object) -> None:
        assert isinstance(segments, list)
        self.clock.tick()
        filler = "filler" in [s.name for s, _ in segments]
        name = "filler load" if filler else "load"
        self.events.append(name)
        if self.refuse.get(name) in (errno.EPERM, errno.EBUSY):
            raise kexec._error(self.refuse[name])
        self.loads += 1
        self.loaded, self.image = False, []  # the kernel drops the old image first
        if name in self.refuse:
            raise kexec._error(self.refuse[name])
        inside = all(START <= s.start < s.end <= self.end for s, _ in segments)
        kept = Ranges((s.start, s.end) for s, _ in segments)
        if not inside or kept.size != sum(s.memory_bytes for s, _ in segments):
            raise kexec._error(errno.EADDRNOTAVAIL)
        if START + self.takes * PAGE > kept[0].start:
            raise kexec._error(errno.ENOMEM)
        self.loaded, self.image = True, segments
        self.clock.tick()

    def unload_image(self) -> None:
        self.clock.tick()
        self.events.append("unload")
        if "unload" in self.refuse:
            raise kexec._error(self.refuse["unload"])
        self.loaded, self.image = False, []
        self.clock.tick()

    def open(self, path: Path, flags: int) -> int:
        assert (str(path), flags & os.O_ACCMODE) == (SIZE_FILE, os.O_WRONLY)
        self.clock.tick()
        return 99

    def write(self, _fd: int, data: bytes) -> int:
        """crash_shrink_memory() in kernel/crash_core.c."""
        self.clock.tick()
        self.events.append("write")
        code = self.refuse.get("write", errno.ENOENT if self.loaded else 0)
        size = int(data)
        if size > self.end - START:
            code = errno.EINVAL
        if code:
            raise OSError(code, os.strerror(code))
        self.end = START + size
        self.clock.tick()
        return len(data)

    def close(self, _fd: int) -> None:
        self.clock.tick()

    def image_lent(self) -> set[int]:
        """The memory blocks that the loaded image takes for its own."""
        params = next((data for s, data in self.image if s.name == "boot_params"), None)
        if params is None:
            return set()
        entries = bootparams.parse_e820(params[:4096])
        ram = [(e.start, e.end) for e in entries if e.type == 1 and e.start >= 4 * GIB]
        return {i for start, end in ram for i in range(start // BLOCK, end // BLOCK)}

    def reset(self) -> None:
        """Back to right after the boot."""
        self.clock, self.events, self.refuse, self.image = Clock(), [], {}, []
        self.loaded, self.end = False, END
        self.machine.zone.update(dict.fromkeys(range(32, 40), "Normal"))
        (self.root / "run/crashlend/state.json").unlink(missing_ok=True)


KERNEL = bz_image(kernel=bytes(range(256)) * 64)
FILES = Files(
    Path("/boot/vmlinuz"),
    KERNEL,
    Path("/initrd"),
    b"initrd" * 1000,
    Payload(BzImage.parse(KERNEL), 6000),
)
TWO_BLOCKS = Settings(lend=2 * BLOCK)


@pytest.fixture
def some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ShrinkHost:
    one = ShrinkHost(tmp_path, Machine())
    put_in_place(one, monkeypatch)

    def memory_files(_root: Path) -> MemoryFiles:
        one.refresh()
        return one.memory

    monkeypatch.setattr(loading, "TreeFiles", memory_files)
    monkeypatch.setattr(handover, "is_in_memory", lambda _known: None)
    calls = SimpleNamespace(open=one.open, write=one.write, close=one.close)
    calls.O_WRONLY, calls.O_CLOEXEC = os.O_WRONLY, os.O_CLOEXEC
    monkeypatch.setattr(shrinking, "os", calls)
    # order matters here, not the platter
    monkeypatch.setattr(os, "fsync", lambda _fd: None)
    return one


def load(
    settings: Settings = TWO_BLOCKS, said: list[str] | None = None, **how: Any
) -> loading.Loaded:
    say = quiet if said is None else said.append
    return loading.load(settings, lambda _release: FILES, say=say, clock=lambda: 0.0, **how)


def assert_loaded(one: ShrinkHost) -> None:
    """Assert an ordinary image on lent blocks, all memory online, and a state that says so."""
    state = one.state
    assert one.machine.offline_blocks() == []
    assert one.loaded
    assert "filler" not in [s.name for s, _ in one.image]
    assert state.loaded is not None
    assert state.loaded["step"] == "loaded"
    assert state.loaded["reservation"] == [[START, one.end]]
    assert sorted(state.blocks) == one.machine.movable_blocks() == sorted(one.image_lent())
    assert {block["step"] for block in state.blocks.values()} <= {"lent"}


def test_the_order_is_lend_prove_unload_write_load(
    some: ShrinkHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel has judged before anything is given up, and no image is there at the write."""
    said: list[str] = []

    def noted(entry: int, segments: object) -> None:
        assert some.machine.movable_blocks() == [38, 39]
        some.load_image(entry, segments)

    monkeypatch.setattr(kexec, "load", noted)
    done = load(said=said, shrink=True)
    assert some.events == ["filler load", "unload", "write", "load"]
    assert done.freed_bytes == END - some.end > 240 * MIB
    assert done.plan.reservation == Ranges([(START, some.end)])
    assert not done.already
    irreversible = next(n for n, line in enumerate(said) if "until the next boot" in line)
    assert "no crash kernel is loaded for a moment" in said[irreversible]
    assert_loaded(some)


def test_the_filler_is_exactly_the_part_that_goes(
    some: ShrinkHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no bytes, and the segments beside it are those that are loaded in the end."""
    tried: list[list[tuple[Segment, bytes]]] = []

    def noted(entry: int, segments: list[tuple[Segment, bytes]]) -> None:
        tried.append(list(segments))
        some.load_image(entry, segments)

    monkeypatch.setattr(kexec, "load", noted)
    load(shrink=True)
    rehearsed, loaded = ({s.name: (s, d) for s, d in one} for one in (tried[-2], tried[-1]))
    filler, data = rehearsed.pop("filler")
    assert (data, filler.stored_bytes) == (b"", 0)
    assert (filler.start, filler.end) == (some.end, END)
    assert rehearsed == loaded


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize(
    ("refuse", "words"),
    [
        ({"filler load": errno.ENOMEM}, "ENOMEM"),
        ({"filler load": errno.EBUSY}, "EBUSY"),
        ({"unload": errno.EBUSY}, "EBUSY"),
        ({"write": errno.EPERM}, "not permitted"),
        ({"write": errno.ENOENT}, "No such file"),
    ],
)
def test_what_is_refused_leaves_the_reservation_and_an_ordinary_image(
    refuse: dict[str, int], words: str, before: bool, some: ShrinkHost
) -> None:
    """ENOMEM of the proof, an unload or a write that fails: said, and the load goes on."""
    if before:
        load(Settings(lend=BLOCK))
        some.events.clear()
    said: list[str] = []
    some.refuse = refuse
    done = load(said=said, shrink=True)
    assert (done.freed_bytes, some.end) == (0, END)
    assert some.events[-1] == "load"
    assert ("write" in some.events) == ("write" in refuse)
    assert re.search(f"stays as it is.*{words}", "\n".join(said))
    assert_loaded(some)


@pytest.mark.parametrize("content", [b"1\n", None])
def test_a_shrink_that_cannot_be_planned_is_said_and_the_load_goes_on(
    content: bytes | None, some: ShrinkHost
) -> None:
    """A size file of unknown meaning or none at all: nothing is tried, the image is loaded."""
    real = some.refresh

    def refresh() -> None:
        real()
        some.memory.files.pop(SIZE_FILE)
        if content is not None:
            some.memory.files[SIZE_FILE] = content

    some.refresh = refresh  # type: ignore[method-assign]
    said: list[str] = []
    done = load(said=said, shrink=True)
    assert (done.freed_bytes, some.events) == (0, ["load"])
    assert any("stays as it is" in line for line in said)
    assert_loaded(some)


def test_an_image_that_stays_loaded_when_all_is_refused_keeps_its_record(some: ShrinkHost) -> None:
    """EPERM comes before the kernel lets go of the old image: record and blocks are as before."""
    load(Settings(lend=BLOCK))
    before = some.state.loaded
    some.refuse = {"filler load": errno.EPERM, "load": errno.EPERM}
    with pytest.raises(CrashlendError, match="EPERM"):
        load(shrink=True)
    assert some.state.loaded == before
    assert_loaded(some)
    assert some.machine.movable_blocks() == [39]


@pytest.mark.parametrize("margin", [None, 0, 100 * MIB])
@pytest.mark.parametrize("again_shrink", [True, False])
def test_a_second_load_changes_nothing(
    margin: int | None, again_shrink: bool, some: ShrinkHost
) -> None:
    """With --shrink or without, whatever the margin: same image, no step, nothing freed."""
    settings = replace(TWO_BLOCKS, shrink_margin=margin)
    load(settings, shrink=True)
    events, log, end = list(some.events), list(some.machine.log), some.end
    done = load(settings, shrink=again_shrink)
    assert (done.already, done.freed_bytes) == (True, 0)
    assert (some.events, some.machine.log, some.end) == (events, log, end)
    assert_loaded(some)


def test_blocks_stay_lent_to_a_proof_that_an_interrupt_leaves(
    some: ShrinkHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hazard 15, twice in a row: the second interrupted run must not think nothing was loaded."""
    real = some.unload_image

    def interrupted() -> None:
        raise KeyboardInterrupt

    for blocks in (1, 2):
        monkeypatch.setattr(kexec, "unload", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(Settings(lend=blocks * BLOCK), shrink=True)
        assert some.loaded
        assert some.image_lent() <= set(some.machine.movable_blocks())
    monkeypatch.setattr(kexec, "unload", real)
    load(shrink=True)
    assert_loaded(some)


# --- killed at every step ------------------------------------------------------------------------


def unload() -> None:
    loading.unload(TWO_BLOCKS, say=quiet)


def shrink_load() -> None:
    load(shrink=True)


def plain_load() -> None:
    load()


def load_one_block() -> None:
    load(Settings(lend=BLOCK))


RUNS: dict[str, tuple[Sequence[Callable[[], object]], Callable[[], object]]] = {
    "shrink": ([], shrink_load),
    "shrink with an image": ([load_one_block], shrink_load),
    "load": ([], plain_load),
    "load more after shrink": ([shrink_load, load_one_block], plain_load),
    "load fewer after shrink": ([shrink_load], load_one_block),
    "unload after shrink": ([shrink_load], unload),
}


@pytest.mark.parametrize("final", [True, False], ids=["kill", "signal"])
@pytest.mark.parametrize("name", RUNS)
def test_killed_at_any_step_the_next_load_puts_all_right(
    name: str, final: bool, some: ShrinkHost
) -> None:
    """Every call into the kernel and every write of the state, before and after it, one by one.

    ``kill`` makes no further step, as SIGKILL; ``signal`` unwinds through all clean-up.
    """
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
        # no image may count on memory that production has again (hazard 15)
        assert some.image_lent() <= set(some.machine.movable_blocks()), steps
        if not final:
            assert some.machine.offline_blocks() == [], steps
        some.clock = Clock()
        shrink_load() if steps % 2 else plain_load()
        assert_loaded(some)
        assert some.machine.movable_blocks() == [38, 39], steps
        unload()
        assert not some.loaded
        assert some.machine.movable_blocks() == some.machine.offline_blocks() == []
        assert (some.state.blocks, some.state.loaded) == ({}, None)
    assert some.clock.now < steps
    assert steps > 10
