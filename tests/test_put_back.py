# SPDX-License-Identifier: LGPL-2.1-or-later
"""A load that fails: the old image comes back or is loudly gone, killed at every single step, too."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from build import BLOCK, MemoryFiles, bz_image
from crashlend.config import Settings
from crashlend.errors import EXIT_REBOOT_NEEDED, CrashlendError, TooSmallError
from crashlend.facts import STATE_PATH, read_facts
from crashlend.formats.bzimage import BzImage
from crashlend.health import find_problems
from crashlend.payload import Files
from crashlend.plan import Payload
from crashlend.system import alarm, handover, kept, kexec, loading, shrinking
from crashlend.system.state import write_parts_atomically
from test_cli import put_in_place
from test_lending import Clock, Killed, Machine, quiet
from test_shrink import END, FILES, TWO_BLOCKS, Death, ShrinkHost, assert_loaded

if TYPE_CHECKING:
    from collections.abc import Callable

NEW_KERNEL = bz_image(kernel=bytes(range(255, -1, -1)) * 64)
# what the kernel of these tests does not take, for a reason that no plan can know
BAD = Files(
    Path("/boot/vmlinuz-new"),
    NEW_KERNEL,
    Path("/initrd-new"),
    b"refused" * 1000,
    Payload(BzImage.parse(NEW_KERNEL), 7000),
)
MORE = Settings(lend=3 * BLOCK)


@dataclass
class FussyHost(ShrinkHost):
    """Refuses the image of :data:`BAD`, after it has dropped the old one; loads of others work.

    ``strict``: it refuses all images; ``during`` happens in each call.
    """

    code: int = errno.ENOMEM
    strict: bool = False
    during: Callable[[], object] = int

    def load_image(self, entry: int, segments: Any) -> None:
        self.during()
        initramfs = next(data for s, data in segments if s.name == "initramfs")
        if self.strict or initramfs.startswith(b"refused"):
            self.clock.tick()
            self.loads += 1
            if self.code not in (errno.EPERM, errno.EBUSY):
                self.loaded, self.image = False, []
            self.clock.tick()
            raise kexec._error(self.code)
        super().load_image(entry, segments)

    def reset(self) -> None:
        super().reset()
        self.strict, self.code, self.during = False, errno.ENOMEM, int
        for path in self.copies():
            path.unlink()

    def stored(self) -> list[Any]:
        """What is loaded, without what only kept room."""
        return [(segment, data) for segment, data in self.image if data]

    def copies(self) -> list[Path]:
        return sorted(kept.DIRECTORY.glob("*"))

    def alarms(self) -> list[str]:
        return (self.root / "kmsg").read_text().splitlines()

    def problems(self) -> list[str]:
        self.refresh()
        state = json.loads((self.root / STATE_PATH.lstrip("/")).read_text())
        return find_problems(read_facts(self.memory), state)


@pytest.fixture
def some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FussyHost:
    one = FussyHost(tmp_path, Machine())
    put_in_place(one, monkeypatch)

    def memory_files(_root: Path) -> MemoryFiles:
        one.refresh()
        return one.memory

    def ticking(real: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any, **more: Any) -> None:
            one.clock.tick()
            real(*args, **more)
            one.clock.tick()

        return call

    monkeypatch.setattr(loading, "TreeFiles", memory_files)
    monkeypatch.setattr(handover, "is_in_memory", lambda _known: None)
    calls = SimpleNamespace(open=one.open, write=one.write, close=one.close)
    calls.O_WRONLY, calls.O_CLOEXEC = os.O_WRONLY, os.O_CLOEXEC
    monkeypatch.setattr(shrinking, "os", calls)
    monkeypatch.setattr(os, "fsync", lambda _fd: None)
    monkeypatch.setattr(kept, "write_parts_atomically", ticking(write_parts_atomically))
    monkeypatch.setattr(kept, "forget_others", ticking(kept.forget_others))
    return one


def load(settings: Settings = TWO_BLOCKS, files: Files = FILES, **how: Any) -> loading.Loaded:
    return loading.load(settings, lambda _release: files, say=quiet, clock=lambda: 0.0, **how)


def load_bad(settings: Settings = TWO_BLOCKS, **how: Any) -> CrashlendError:
    with pytest.raises(CrashlendError) as caught:
        load(settings, BAD, **how)
    return caught.value


def test_the_very_same_image_comes_back(some: FussyHost) -> None:
    """Every segment of it; the record is the old one's, new blocks go home, and it exits 1."""
    load()
    image, record = some.stored(), some.state.loaded
    error = load_bad(MORE)
    assert (some.stored(), some.state.loaded) == (image, record)
    assert some.machine.movable_blocks() == [38, 39]
    assert "loaded before is loaded again" in error.hint
    assert error.exit_code == 1
    assert_loaded(some)
    assert (some.alarms(), some.problems()) == ([], [])
    # /boot has no part in it: the copy is all there is of the old files
    assert kept.recall(str(record and record["fingerprint"])).files == FILES


@pytest.mark.parametrize("code", [errno.EPERM, errno.EBUSY])
def test_an_image_that_the_kernel_kept_is_not_loaded_again(code: int, some: FussyHost) -> None:
    """Refused before the old one was dropped: nothing is given to the kernel a second time."""
    load()
    record, loads = some.state.loaded, some.loads
    some.code = code
    error = load_bad()
    assert "still there" in error.hint
    assert (some.state.loaded, some.loads) == (record, loads + 1)
    assert_loaded(some)


def offline(some: FussyHost) -> None:
    some.machine.zone[39] = None


def to_the_kernel(some: FussyHost) -> None:
    some.machine.zone[39] = "Normal"


def taken_out(some: FussyHost) -> None:
    some.machine.gone.add(39)
    for name in [n for n in some.memory.files if "/memory39/" in n]:
        del some.memory.files[name]
    del some.machine.zone[39]


def spoiled(some: FussyHost) -> None:
    some.machine.dirty.add(39)


def copy_lost(some: FussyHost) -> None:
    for path in some.copies():
        path.unlink()


def copy_damaged(some: FussyHost) -> None:
    path = kept.DIRECTORY / (some.state.loaded or {})["previous"]["fingerprint"]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def ram_gone(some: FussyHost) -> None:
    lines = some.iomem[END].splitlines(keepends=True)
    highest = max(i for i, line in enumerate(lines) if b"System RAM" in line)
    some.iomem[END] = b"".join(lines[:highest])


def another_reservation(some: FussyHost) -> None:
    some.end = END - BLOCK


CALAMITIES = (offline, to_the_kernel, taken_out, spoiled, copy_lost, copy_damaged, ram_gone)


@pytest.mark.parametrize("calamity", [*CALAMITIES, another_reservation])
def test_an_image_that_must_not_come_back_is_loudly_gone(
    calamity: Callable[[FussyHost], None], some: FussyHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Struck right when the new image fails: error, status and the kernel's log say it, and why."""
    load()
    real = some.load_image

    def strike(entry: int, segments: Any) -> None:
        try:
            real(entry, segments)
        finally:
            if some.loads == 2:
                calamity(some)

    monkeypatch.setattr(kexec, "load", strike)
    error = load_bad()
    assert not some.loaded
    assert (error.exit_code, "no crash kernel loaded now" in error.hint) == (1, True)
    assert len(some.alarms()) == 1
    assert some.alarms()[0].startswith("<3>crashlend: there is no crash kernel")
    assert any("the crash kernel was lost" in problem for problem in some.problems())
    # the next load has it all right again, and the loss is forgotten
    some.machine.dirty.clear()
    some.strict = False
    monkeypatch.setattr(kexec, "load", real)
    load()
    assert (some.loaded, some.state.loaded and some.state.loaded["step"]) == (True, "loaded")
    assert some.problems() == []


@pytest.mark.parametrize("calamity", [offline, to_the_kernel, taken_out])
def test_an_image_that_counts_on_memory_that_left_is_dropped_when_no_other_can_be_had(
    calamity: Callable[[FussyHost], None], some: FussyHost
) -> None:
    """Hazard 15: it would use RAM that is absent, or the kernel's own; a reload that fails drops it."""
    load()
    calamity(some)
    with pytest.raises(CrashlendError) as caught:
        load(Settings(lend=2 * BLOCK, dump_level=0))  # refused while it is planned
    assert not some.loaded
    assert "no crash kernel" in caught.value.hint
    assert len(some.alarms()) == 1


def test_an_image_stays_when_ram_that_it_was_not_lent_goes(some: FussyHost) -> None:
    """It is told, and costs no image: the dump lacks what is not there."""
    load()
    ram_gone(some)
    with pytest.raises(CrashlendError) as caught:
        load(Settings(lend=2 * BLOCK, dump_level=0))
    assert "still there" in caught.value.hint
    assert_loaded(some)
    assert any("gone since the load" in problem for problem in some.problems())


def test_an_image_that_lost_nothing_stays_when_another_cannot_be_planned(some: FussyHost) -> None:
    """Refused by policy: the old one is still loaded, and it is said."""
    load()
    with pytest.raises(CrashlendError) as caught:
        load(Settings(lend=2 * BLOCK, dump_level=0))
    assert "still there" in caught.value.hint
    assert_loaded(some)
    assert some.alarms() == []


def test_what_only_a_reboot_can_cure_exits_10_where_an_image_stays(some: FussyHost) -> None:
    """Hazard 12: a new initramfs that outgrew the reservation; without an old image it is 1."""
    files = replace(FILES, initramfs=bytes(300 << 20))
    files = replace(files, payload=Payload(files.payload.image, len(files.initramfs)))
    with pytest.raises(TooSmallError) as caught:
        load(files=files)
    assert caught.value.exit_code == 1
    load()
    with pytest.raises(TooSmallError) as caught:
        load(files=files)
    assert caught.value.exit_code == EXIT_REBOOT_NEEDED
    assert_loaded(some)


def test_a_full_disk_costs_the_net_and_not_the_load(
    some: FussyHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said, and the older copy stays until the new image is in place."""

    def full(*_args: object, **_more: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    load()
    first = some.copies()
    said: list[str] = []
    monkeypatch.setattr(kept, "write_parts_atomically", full)
    load_bad(MORE)
    assert_loaded(some)
    assert some.copies() == first
    loading.load(MORE, lambda _release: FILES, say=said.append, clock=lambda: 0.0)
    assert ["No space left" in line for line in said if "no copy" in line] == [True]
    assert some.copies() == []
    assert_loaded(some)
    error = load_bad(MORE)
    assert "no copy of it was kept" in error.hint
    assert not some.loaded


def test_only_the_loaded_image_is_kept_and_only_root_may_read_it(some: FussyHost) -> None:
    """One file of mode 0600 in a directory of mode 0700; none after an unload."""
    load()
    load(MORE, again=True)
    (copy,) = some.copies()
    assert (copy.stat().st_mode & 0o777, kept.DIRECTORY.stat().st_mode & 0o777) == (0o600, 0o700)
    assert copy.name == (some.state.loaded or {})["fingerprint"]
    loading.unload(MORE, say=quiet)
    assert some.copies() == []


def test_a_state_that_cannot_be_written_does_not_cost_the_image(
    some: FussyHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recovery that has nothing to put right writes nothing; where it has, the old image stays."""
    load()
    kind = type(some.state)
    with monkeypatch.context() as full:
        full.setattr(kind, "write", _no_room)
        assert load().already
    some.state.set_block(39, "returning")
    monkeypatch.setattr(kind, "write", _no_room)
    with pytest.raises(CrashlendError) as caught:
        load()
    assert "still there" in caught.value.hint
    assert (some.loaded, some.alarms()) == (True, [])


def _no_room(_state: object) -> None:
    raise CrashlendError("cannot write", "no room")


def test_another_program_s_image_is_nobody_s_to_bring_back(
    some: FussyHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was loaded over crashlend's: when that is dropped by a load that fails, none is loaded."""
    load()
    monkeypatch.setattr(handover, "is_in_memory", lambda _known: False)
    error = load_bad()
    assert not some.loaded
    assert "there is no crash kernel loaded now" in error.hint
    assert (some.state.loaded or {})["step"] == "lost"
    assert (len(some.alarms()), some.copies()) == (1, [])


def test_another_program_s_image_that_stays_is_not_taken_for_the_new_one(
    some: FussyHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused while it was planned, or before the kernel let go: theirs is still loaded."""
    load()
    monkeypatch.setattr(handover, "is_in_memory", lambda _known: False)
    with pytest.raises(CrashlendError) as caught:
        load(Settings(lend=2 * BLOCK, dump_level=0))
    assert "another program's crash kernel is loaded" in caught.value.hint
    some.code = errno.EBUSY
    assert "another program's crash kernel is loaded" in load_bad().hint
    assert (some.loaded, some.alarms()) == (True, [])


def test_a_loss_stays_on_record_until_a_load_goes_well(some: FussyHost) -> None:
    """The next failure tells its own reason; the settings of the load that was lost stay known."""
    load(Settings(lend=2 * BLOCK, final_action="halt"))
    some.strict = True
    load_bad()
    reasons = set()
    for settings in (TWO_BLOCKS, Settings(lend=2 * BLOCK, dump_level=0)):
        with pytest.raises(CrashlendError):
            load(settings)
        record = some.state.loaded or {}
        assert (record["step"], record["settings"]["final_action"]) == ("lost", "halt")
        reasons.add(record["reason"])
    assert len(reasons) == 2
    some.strict = False
    load()
    assert some.problems() == []


def test_loads_that_fail_leave_no_heap_of_copies(some: FussyHost) -> None:
    """Each is written before the kernel is asked; what it did not take goes, whatever comes of it."""
    some.strict = True
    load_bad()
    assert some.copies() == []
    some.strict = False
    load()
    mine = some.copies()
    for code in (errno.EBUSY, errno.ENOMEM):
        some.code = code
        load_bad(MORE)
        assert some.copies() == mine


def test_an_alarm_is_one_line_that_the_kernel_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Level err, one write, less than the kernel's longest line; a log that is not there is no error."""
    monkeypatch.setattr(alarm, "KMSG", str(tmp_path / "kmsg"))
    alarm.alarm("nobody listens")
    (tmp_path / "kmsg").touch()
    alarm.alarm("two\nlines " + "x" * 5000)
    text = (tmp_path / "kmsg").read_text()
    assert text.startswith("<3>crashlend: two lines xxx")
    assert (text.count("\n"), len(text) < 1000) == (1, True)


def test_an_old_image_that_the_kernel_does_not_take_back_is_gone(some: FussyHost) -> None:
    """Two failures in a row: both are in the reason."""
    load()
    some.strict = True
    error = load_bad()
    assert not some.loaded
    assert "and then: the kernel refused" in error.hint
    assert len(some.alarms()) == 1


# --- killed at every step ------------------------------------------------------------------------


def fail() -> None:
    load_bad(MORE)


def fail_shrinking() -> None:
    load_bad(MORE, shrink=True)


@pytest.mark.parametrize("final", [True, False], ids=["kill", "signal"])
@pytest.mark.parametrize("run", [fail, fail_shrinking])
def test_killed_at_any_step_the_old_image_is_not_lost(
    run: Callable[[], None], final: bool, some: FussyHost
) -> None:
    """Before and after every call and every write; the next load, good or bad, ends with an image."""
    steps = 0
    while True:
        steps += 1
        some.reset()
        load()
        old = some.stored()
        some.clock = Death(steps, final=final)
        try:
            run()
        except Killed:
            pass
        else:
            break
        assert some.image_lent() <= set(some.machine.movable_blocks()), steps
        some.clock = Clock()
        if steps % 2:
            load_bad(MORE)
            assert some.stored() == old, steps
        load()
        assert_loaded(some)
        assert len(some.copies()) == 1, steps
        loading.unload(TWO_BLOCKS, say=quiet)
        assert (some.loaded, some.copies()) == (False, [])
        assert some.machine.movable_blocks() == some.machine.offline_blocks() == []
    assert steps > 10
    assert some.clock.now < steps
