# SPDX-License-Identifier: LGPL-2.1-or-later
"""CPUs and memory that come and go after the load: what is answered, when, and with what."""

from __future__ import annotations

import errno
import json
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from build import BLOCK, GIB, facts
from crashlend.changes import Changes, find_changes
from crashlend.cli import hosts
from crashlend.config import Settings, load_settings
from crashlend.errors import CrashlendError, RefusedError
from crashlend.facts import CrashNote, Facts
from crashlend.formats.procfs import Resource
from crashlend.quiesce import Quiesce, Wish
from crashlend.ranges import Ranges
from crashlend.system import attempts, hotplug, loading
from crashlend.system.state import locked
from test_cli import images, run
from test_lending import quiet
from test_put_back import FussyHost, load, offline, some, to_the_kernel
from test_shrink import END, FILES, assert_loaded

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ("images", "some")  # fixtures


@dataclass
class Time:
    """A clock that only sleeping moves; ``then`` is what happens at which second."""

    now: float = 0.0
    then: dict[float, Callable[[], object]] = field(default_factory=dict)

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds
        for due in [at for at in self.then if at <= self.now]:
            self.then.pop(due)()


def handle(
    event: str = "online:memory40", time: Time | None = None, quiet_seconds: float = 5.0
) -> hotplug.Handled:
    time = time or Time()
    waiting = hotplug.Waiting(time.clock, time.sleep, quiet_seconds)

    def build(_settings: Settings) -> Callable[[str], Any]:
        return lambda _release: FILES

    return hotplug.handle(event, build, waiting, say=quiet)


def grow(some: FussyHost, upto: int = 1) -> None:
    """Add blocks of memory above the last, and nothing else."""
    start = 0x140000000
    line = f"{start:x}-{start + upto * BLOCK - 1:x} : System RAM\n"
    lines = [x for x in some.iomem[END].decode().splitlines(True) if not x.startswith("140000000")]
    some.iomem[END] = "".join([*lines, line]).encode()


# --- what has changed ----------------------------------------------------------------------------

LENT = Ranges([(38 * BLOCK, 40 * BLOCK)])
NOW = facts(movable=[38, 39], lent=[38, 39])
RAM = Ranges((r.start, r.end) for r in NOW.iomem if r.name.startswith("System RAM"))
RECORD = {
    "step": "loaded",
    "lent": LENT.to_json(),
    "system_ram": RAM.to_json(),
    "notes": [[n.cpu, n.phys, n.bytes] for n in NOW.crash_notes],
}
STEPS = {38: "lent", 39: "lent"}


def with_block(now: Facts, index: int, **values: Any) -> Facts:
    blocks = [replace(b, **values) if b.index == index else b for b in now.blocks]
    return replace(now, blocks=tuple(blocks))


def test_an_untouched_host_has_not_changed() -> None:
    """Nor has one without an image, nor one whose record is older than this comparison."""
    assert find_changes(RECORD, NOW, STEPS) == Changes()
    assert find_changes(None, NOW, STEPS) == Changes()
    assert find_changes({**RECORD, "step": "loading"}, NOW, {}) == Changes()
    assert find_changes({"step": "loaded"}, NOW, {}) == Changes()
    assert not Changes().stale


OFFLINE = with_block(NOW, 39, state="offline", zones=("none",))
URGENT: dict[str, tuple[Facts, dict[int, str], dict[str, Any]]] = {
    "offline": (OFFLINE, STEPS, {}),
    "kernel zone": (with_block(NOW, 39, zones=("Normal",)), STEPS, {}),
    "two zones": (with_block(NOW, 39, zones=("none",)), STEPS, {}),
    "gone": (replace(NOW, blocks=tuple(b for b in NOW.blocks if b.index != 39)), STEPS, {}),
    "spoiled": (NOW, {38: "lent", 39: "spoiled"}, {}),
    "onlined by another": (NOW, {38: "lent"}, {}),
    "cma": (replace(NOW, cma_ranges=()), STEPS, {"cma": [[38 * BLOCK, 40 * BLOCK]]}),
}


@pytest.mark.parametrize("what", URGENT)
def test_lent_memory_that_left_is_urgent(what: str) -> None:
    """Hazard 15: the loaded map points at the kernel's data or at nothing."""
    now, steps, more = URGENT[what]
    changes = find_changes({**RECORD, **more}, now, steps)
    assert changes.urgent
    assert changes.sentences(urgent=True) == changes.sentences()


def test_memory_of_a_zone_of_others_needs_no_record_of_its_blocks() -> None:
    """It must be movable, and no more."""
    record = {**RECORD, "zone": LENT.to_json()}
    assert not find_changes(record, NOW, {}).stale
    assert find_changes(record, OFFLINE, {}).urgent


def test_additions_can_wait() -> None:
    """RAM and CPUs: the image is whole, the dump would lack them."""
    more = Resource(5 * GIB, 5 * GIB + BLOCK, "System RAM (virtio_mem)", 1)
    notes = (*NOW.crash_notes, CrashNote(7, 0x1234000, 372))
    now = replace(NOW, iomem=(*NOW.iomem, more), crash_notes=notes)
    changes = find_changes(RECORD, now, STEPS)
    assert (changes.ram_added, changes.cpus_added) == (Ranges([(more.start, more.end)]), (7,))
    assert (changes.stale, changes.urgent) == (True, False)
    assert [bool(s) for s in changes.sentences(urgent=False)] == [True, True]


def test_ram_that_is_only_dumped_can_wait() -> None:
    """The image is whole without it: nothing of it was lent."""
    now = replace(NOW, iomem=tuple(r for r in NOW.iomem if r.start < 4 * GIB))
    changes = find_changes({**RECORD, "lent": []}, now, {})
    assert changes.ram_gone
    assert (changes.stale, changes.urgent) == (True, False)
    assert len(changes.sentences(urgent=False)) == 1


def test_a_record_of_a_version_that_named_no_parts_is_understood() -> None:
    """What the lender cma lent is no block's; it is lost when the kernel's ranges are."""
    record = {**RECORD, "lender": "cma"}
    there = replace(NOW, cma_ranges=((38 * BLOCK, 40 * BLOCK),))
    assert not find_changes(record, there, {}).stale
    changes = find_changes(record, replace(NOW, cma_ranges=()), {})
    assert (changes.cma_lost, changes.lost) == (True, ())


def test_without_root_nothing_is_taken_for_gone() -> None:
    """Addresses and notes are hidden from others: that is no change."""
    hidden = replace(NOW, iomem=(), crash_notes=(), cma_ranges=None)
    assert not find_changes(RECORD, hidden, STEPS).stale


# --- what is done --------------------------------------------------------------------------------


def test_nothing_is_done_where_nothing_has_changed(some: FussyHost) -> None:
    """Not loaded, not crashlend's, up to date: no call into the kernel, no wait, no event left."""
    time = Time()
    assert handle(time=time).action == "none"
    load()
    loads = some.loads
    some.machine.log.clear()
    assert handle(time=time).action == "none"
    some.loaded = False
    assert handle(time=time).action == "none"
    assert (some.loads, some.machine.log, time.now, hotplug.pending()) == (loads, [], 0.0, ())


def test_lent_memory_that_leaves_is_answered_at_once(some: FussyHost) -> None:
    """Another block takes its place, with the settings and files of the load; theirs is left alone."""
    load()
    offline(some)
    some.machine.log.clear()
    time = Time()
    done = handle("offline:memory39", time)
    assert (done.action, time.now) == ("reloaded", 0.0)
    assert some.image_lent() == {37, 38} == set(some.machine.movable_blocks())
    assert sorted(some.state.blocks) == [37, 38]
    assert [entry for entry in some.machine.log if entry[1] == 39] == []
    assert handle().action == "none"


def test_lent_memory_that_went_to_the_kernel_is_answered_at_once(some: FussyHost) -> None:
    """The block may be taken again, empty; its old contents are in no image's memory for long."""
    load()
    to_the_kernel(some)
    time = Time()
    assert (handle("online:memory39", time).action, time.now) == ("reloaded", 0.0)
    assert some.image_lent() == set(some.machine.movable_blocks()) == {38, 39}
    assert ("offline", 39) in some.machine.log


def test_additions_are_answered_once_when_it_is_quiet(some: FussyHost) -> None:
    """Four blocks, one by one: one load, five seconds after the last."""
    load()

    def add(blocks: int) -> None:
        grow(some, blocks)
        hotplug.note("add:memory40")

    time = Time()
    for second in (0, 2, 4, 6):
        time.then[second] = partial(add, 1 + second // 2)
    time.then.pop(0)()
    done = handle(time=time)
    assert done.action == "reloaded"
    assert 11 <= time.now < 12.5
    assert some.loads == 2
    assert (some.state.loaded or {})["system_ram"][-1][1] == 0x140000000 + 4 * BLOCK
    assert handle().action == "none"


def test_waiting_for_quiet_has_an_end(some: FussyHost) -> None:
    """Events without end: twelve times the quiet at most."""
    load()
    grow(some)
    time = Time()

    def again() -> None:
        hotplug.note("online:memory40")
        if time.now < 59:
            time.then[time.now + 1] = again

    time.then[1] = again
    assert handle(time=time).action == "reloaded"
    assert 60 <= time.now < 61


def test_what_becomes_urgent_while_it_waits_waits_no_longer(some: FussyHost) -> None:
    """Memory is added, and then a lent block leaves."""
    load()
    grow(some)

    def leave() -> None:
        offline(some)
        hotplug.note("offline:memory39")

    time = Time(then={2: leave})
    assert handle(time=time).action == "reloaded"
    assert 2 <= time.now < 3
    assert 39 not in some.image_lent()


def test_a_second_handler_leaves_its_event_to_the_first(some: FussyHost) -> None:
    """And the first one takes it, even where it came when it had looked for the last time."""
    load()
    grow(some)
    with locked(some.root / "run/crashlend", hotplug.LOCK):
        assert handle().action == "left"
    assert hotplug.pending() == ("online:memory40",)
    assert handle("").action == "reloaded"
    assert hotplug.pending() == ()


def test_the_service_waits_for_a_handler_that_is_at_it(some: FussyHost) -> None:
    """It would be started again at once for the events that it left; but it does not wait for ever."""
    load()
    grow(some)
    hotplug.note("online:memory40")
    holder = locked(some.root / "run/crashlend", hotplug.LOCK)
    holder.__enter__()
    time = Time(then={3: lambda: holder.__exit__(None, None, None)})
    assert handle("", time).action == "reloaded"
    assert time.now >= 3
    assert hotplug.pending() == ()
    with locked(some.root / "run/crashlend", hotplug.LOCK):
        time = Time()
        assert handle("", time).action == "left"
    assert hotplug.LOCK_SECONDS <= time.now < 2 * hotplug.LOCK_SECONDS


def test_it_waits_while_another_crashlend_is_at_work(
    some: FussyHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events of its own making come while it holds the lock; afterwards there is nothing to do."""
    load()
    loads = some.loads
    holder = locked(some.root / "run/crashlend")
    holder.__enter__()
    time = Time(then={3: lambda: holder.__exit__(None, None, None)})
    assert handle("offline:memory39", time).action == "none"
    assert 3 <= time.now < 4
    assert some.loads == loads


def test_the_renewed_image_has_the_settings_of_the_old(some: FussyHost) -> None:
    """Flags of the load are in no file; the next event finds them again, too."""
    settings = Settings(lend=2 * BLOCK, dump_level=15, final_action="halt")
    load(settings)
    for blocks in (1, 2):
        grow(some, blocks)
        done = handle()
        assert done.loaded is not None
        assert done.loaded.plan.dump_level == 15
        assert (some.state.loaded or {})["settings"]["final_action"] == "halt"
        assert done.loaded.plan.lent.size == 2 * BLOCK


def test_a_lost_crash_kernel_is_tried_again(some: FussyHost) -> None:
    """What made the load fail may be over when something has changed."""
    load()
    some.strict = True
    offline(some)
    with pytest.raises(CrashlendError):
        handle("offline:memory39")
    assert not some.loaded
    assert len(some.alarms()) == 1
    some.strict = False
    some.machine.zone[39] = "Normal"
    assert handle("online:memory39").action == "reloaded"
    assert some.loaded


def test_what_failed_is_not_tried_again_for_events_of_its_own_making(some: FussyHost) -> None:
    """The very same situation: no call into the kernel, no block moved, until a pause is over."""
    load()
    grow(some)
    some.strict, some.code = True, errno.EPERM
    some.during = partial(hotplug.note, "offline:memory37")
    with pytest.raises(CrashlendError):
        handle()
    assert hotplug.pending() == ()
    loads = some.loads
    some.machine.log.clear()
    for start in (6, 30, 60):
        done = handle("online:memory37", Time(start))
        assert (done.action, "tried 1 times" in done.why) == ("none", True)
    assert (some.loads, some.machine.log) == (loads, [])
    with pytest.raises(CrashlendError):
        handle(time=Time(70))
    assert some.loads > loads
    loads = some.loads
    assert handle(time=Time(150)).action == "none"
    some.strict = False
    assert handle(time=Time(1000)).action == "reloaded"
    assert not (hotplug.EVENTS.parent / attempts.NAME).exists()


def test_a_lost_image_is_not_lost_again_and_again(some: FussyHost) -> None:
    """That it is gone is the failure's own doing, and no news."""
    load()
    some.strict = True
    offline(some)
    with pytest.raises(CrashlendError):
        handle("offline:memory39")
    loads = some.loads
    assert handle("offline:memory39").action == "none"
    assert (some.loads, len(some.alarms())) == (loads, 1)


def test_what_changes_while_a_load_fails_is_looked_at(some: FussyHost) -> None:
    """Its event is not lost among those of the failure's own making."""
    load()
    grow(some)
    some.strict, some.code = True, errno.EPERM
    some.during = partial(grow, some, 2)
    with pytest.raises(CrashlendError):
        handle()
    assert hotplug.pending() == ("change:meanwhile",)
    some.strict = False
    assert handle("").action == "reloaded"


@pytest.mark.parametrize("longest", [50, 200])
def test_pauses_grow_and_have_an_end(tmp_path: Path, longest: int) -> None:
    """From a minute to six hours, however often it fails; damage to the file is no failure."""
    for count in range(longest):
        attempts.note_failure(tmp_path, "x", "no", float(count))
    assert attempts.resting(tmp_path, "x", longest + 6 * 3600 - 5)
    assert not attempts.resting(tmp_path, "x", longest + 6 * 3600)
    assert not attempts.resting(tmp_path, "y", float(longest))
    (tmp_path / attempts.NAME).write_text('{"situation": "x", "count": "?"}')
    assert not attempts.resting(tmp_path, "x", 0)
    attempts.note_failure(tmp_path, "x", "no", 0)
    assert attempts.resting(tmp_path, "x", 59)
    assert not attempts.resting(tmp_path, "x", 60)


@pytest.mark.parametrize("meanwhile", ["unload", "load", "load for the waiting"])
def test_a_look_that_is_out_of_date_is_not_acted_on(some: FussyHost, meanwhile: str) -> None:
    """A person unloads, or loads, between the look and the load: that stands."""
    settings = Settings(lend=2 * BLOCK, dump_level=15)
    load(settings)
    grow(some)

    def person() -> None:
        if meanwhile == "unload":
            loading.unload(settings, say=quiet)
        else:
            load(Settings(lend=BLOCK), again=True)

    time = Time(then={1: person})
    if meanwhile == "load for the waiting":
        holder = locked(some.root / "run/crashlend")

        def busy() -> None:
            holder.__enter__()
            time.then[9] = done

        def done() -> None:
            holder.__exit__(None, None, None)
            person()

        time.then = {4.9: busy}
    assert handle(time=time).action == "none"
    loaded = some.state.loaded
    assert (loaded is None) == (meanwhile == "unload")
    assert loaded is None or len(some.image_lent()) == 1


def test_when_no_image_can_be_had_the_one_with_absent_memory_goes(some: FussyHost) -> None:
    """Nothing else moves and lend_min is not reached: unloaded, loudly."""
    load(Settings(lend=2 * BLOCK, lend_min=2 * BLOCK))
    some.machine.busy = set(range(1, 40))
    offline(some)
    with pytest.raises(CrashlendError) as caught:
        handle("offline:memory39")
    assert not some.loaded
    assert "no crash kernel" in caught.value.hint
    assert any("was lost" in problem for problem in some.problems())


def test_where_lending_is_refused_by_now_there_is_a_crash_kernel_without_it(
    some: FussyHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old image had to go; a device that came into use since the load forbids a new one that lends."""
    load()
    offline(some)

    def refuse(
        _facts: Facts, _wish: Wish, *, lending: bool, syscall: str, by_word: bool = False
    ) -> Quiesce:
        if lending:
            raise RefusedError("memory must not be lent beside i915", "it is in use")
        return Quiesce(0.0, f"nothing is lent ({syscall})")

    monkeypatch.setattr("crashlend.plan.plan_quiesce", refuse)
    done = handle("offline:memory39")
    assert done.loaded is not None
    assert (some.loaded, done.loaded.plan.lent.size) == (True, 0)


def test_an_addition_that_no_image_can_be_had_for_costs_nothing(some: FussyHost) -> None:
    """The old image stays, its dump will lack the addition, and status says that."""
    load()
    grow(some)
    some.strict, some.code = True, 1
    with pytest.raises(CrashlendError) as caught:
        handle()
    assert "still there" in caught.value.hint
    assert_loaded(some)
    assert any("were added" in problem and "reload" in problem for problem in some.problems())


def test_status_tells_each_change_with_its_remedy(some: FussyHost) -> None:
    """A block by its number, once; memory by its size."""
    load()
    assert some.problems() == []
    grow(some)
    offline(some)
    problems = some.problems()
    assert [("block 39" in p, "128.0 MiB" in p or "128 MiB" in p) for p in problems] == [
        (True, False),
        (False, True),
    ]
    assert all("crashlend reload" in problem for problem in problems)


def test_events_are_files_with_harmless_names(some: FussyHost) -> None:
    """A DEVPATH gives its last part; nothing leaves the directory."""
    hotplug.note("offline:/devices/system/memory/memory33")
    hotplug.note("add:../../etc/passwd")
    hotplug.note("x/y:" + "z" * 300)
    names = hotplug.take_notes()
    assert names[:2] == ("add:passwd", "offline:memory33")
    assert len(names) == 3
    assert all("/" not in name and len(name) <= 100 for name in names)
    assert hotplug.take_notes() == ()


def test_reload_event_on_the_command_line(
    some: FussyHost, images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """JSON has the plan where something was loaded; settings do not go with it; --dry-run looks."""
    load()
    answer = json.loads(run("reload", "--json", "--event", "online:cpu1").out)
    assert (answer["action"], "plan" in answer) == ("none", False)
    offline(some)
    dry = json.loads(run("reload", "--json", "--dry-run", "--event", "offline:memory39").out)
    assert (dry["urgency"], some.loads) == ("now", 1)
    answer = json.loads(run("reload", "--json", "--event", "offline:memory39").out)
    assert (answer["action"], answer["plan"]["costs"]["shared_bytes"]) == ("reloaded", 2 * BLOCK)
    run("reload", "--event", "--lend", "1G").assert_error(2, "--lend was given", "without --event")
    run("reload", "--shrink", "--event").assert_error(2, "--shrink was given", "without --event")


def test_settings_that_cannot_be_read_do_not_stop_a_renewal(
    some: FussyHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its load has the settings of the old one; the events are off the list, and it is said."""
    load()
    offline(some)
    hotplug.note("offline:memory39")
    (some.root / "etc").mkdir(exist_ok=True)
    (some.root / "etc/crashlend.conf").write_text("[crashlend]\nlend = never heard of\n")
    read = SimpleNamespace(load_settings=lambda _root, flags: load_settings(some.root, flags))
    monkeypatch.setattr(hosts, "config", read)
    done = run("reload", "--event")
    assert done.code == 0, done.err
    assert "hotplug_quiet" in done.err
    assert hotplug.pending() == ()
    assert 39 not in some.image_lent()


def test_a_record_without_settings_is_renewed_with_those_that_are_set(some: FussyHost) -> None:
    """An older version wrote it: what the host's files say is nearer than what is built in."""
    load()
    record = dict(some.state.loaded or {})
    del record["settings"]
    some.state.set_loaded(record)
    grow(some)
    time = Time()
    waiting = hotplug.Waiting(time.clock, time.sleep, 5.0, Settings(lend=BLOCK, dump_level=15))
    done = hotplug.handle("", lambda _settings: lambda _release: FILES, waiting, say=quiet)
    assert done.loaded is not None
    assert (done.loaded.plan.lent.size, done.loaded.plan.dump_level) == (BLOCK, 15)
