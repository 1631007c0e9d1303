# SPDX-License-Identifier: LGPL-2.1-or-later
"""The guest's killer: it finds every step, kills where it says, and its judges can say no."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import crashlend
from crashlend.lab.kernels import Kernel
from crashlend.lab.kills import KILLED_AFTER, check_kills
from crashlend.lab.qemu import Report
from crashlend.lab.spec import Check, Spec
from crashlend.lab.suites.table import SUITE
from test_core_imports import python39

if TYPE_CHECKING:
    from types import ModuleType

GUESTFILES = Path(crashlend.__file__).parent / "lab/guestfiles"
BLOCK = 128 << 20
# runs victims.run_verb on a verb that is made up: WORDS, a function body, DEADLY
PROGRAM = """\
import json, os, pathlib, sys, time
sys.path[:0] = [sys.argv[1], str(pathlib.Path(sys.argv[1]).parents[2])]
import victims
from crashlend.system import kexec
from crashlend.system.state import State
place = pathlib.Path(sys.argv[2])
kexec._call = lambda *_args: {kexec}
def verb(_words):
{body}
    return 0
victims.main = verb
print(json.dumps(victims.run_verb(["made up"], victims.Deadly({deadly}))))
"""


def run(
    body: str, deadly: str, place: Path, *, kexec: str = "None", python: str = sys.executable
) -> dict[str, Any]:
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    text = PROGRAM.format(body=lines, deadly=deadly, kexec=kexec)
    done = subprocess.run(
        [python, "-c", text, str(GUESTFILES), str(place)], capture_output=True, check=True
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


WRITE_STATE = "State(place / 'run/state.json').set_loaded(None)\nkexec._call(246, 0, 0)"


@pytest.mark.parametrize("which", ["this", "3.9"])
def test_every_step_is_found_and_the_state_file_is_whole_after_each(
    which: str, tmp_path: Path
) -> None:
    """In the order in which they are made; the file appears with the rename and not before."""
    python = sys.executable if which == "this" else python39()
    killed: list[str] = []
    while True:
        place = tmp_path / str(len(killed))
        answer = run(WRITE_STATE, str(len(killed)), place, python=python)
        if "killed" not in answer:
            break
        assert (place / "run/state.json").exists() == (len(killed) >= 6)
        words = answer["killed"].replace(str(place), "")
        killed.append(words.replace(".state.json.new", "NEW"))
    assert killed == [
        "the first step is still to come",
        "mkdir ",
        "mkdir /run",
        "open /run/NEW",
        "write /run/NEW",
        "fsync /run/NEW",
        "replace /run/NEW /run/state.json",
        "kexec 246: unload",
    ]
    assert (answer["exit"], answer["missed"]) == (0, [])


@pytest.mark.parametrize(
    ("body", "event"),
    [
        ("with open(place / 'x', 'w') as stream:\n    stream.write('y')", "open"),
        ("import shutil\nos.system('true')", "os.system"),
        ("import ctypes\nctypes.CDLL(None).syscall", "ctypes.dlsym"),
    ],
)
def test_what_changes_the_host_another_way_is_noted(body: str, event: str, tmp_path: Path) -> None:
    """A step that is not counted makes the trial fail; it can't go unseen."""
    assert [m.split()[0] for m in run(body, "99", tmp_path)["missed"]] == [event]


def test_reading_is_no_step(tmp_path: Path) -> None:
    """Files opened for reading and pipes are not counted, nor noted."""
    (tmp_path / "x").write_text("y")
    body = "(place / 'x').read_bytes()\nos.write(os.pipe()[1], b'z')"
    answer = run(body, "1", tmp_path)
    assert (answer["exit"], answer["missed"]) == (0, [])


def test_a_long_call_is_killed_inside(tmp_path: Path) -> None:
    """SIGKILL comes while the call is under way; one that is over in time outlives it."""
    body = "kexec._call(246, 0, 0)\nplace.write_text('went on')"
    answer = run(body, "call=1, seconds=0.05", tmp_path / "x", kexec="time.sleep(20)")
    assert answer["killed"] == "inside kexec 246: unload"
    assert not (tmp_path / "x").exists()
    answer = run("kexec._call(246, 0, 0)", "call=1, seconds=60", tmp_path)
    assert (answer["exit"], answer["outlived"], answer["calls"]) == (0, True, 1)


# --- the judges ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kill() -> ModuleType:
    """guestfiles/kill.py, which is no module of the package."""
    sys.path.insert(0, str(GUESTFILES))
    try:
        spec = spec_from_file_location("kill", GUESTFILES / "kill.py")
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(GUESTFILES))
    return module


def host(kill: ModuleType, **values: Any) -> Any:
    """A host with two lent blocks and their image, to be spoilt."""
    some = kill.Host.__new__(kill.Host)
    blocks = values.get("known", [6, 7])
    some.__dict__.update(
        block_bytes=BLOCK,
        offline=[],
        movable=[6, 7],
        loaded=True,
        mem_total=1000,
        known=blocks,
        state={"blocks": {str(i): {"step": "lent"} for i in blocks}},
        record={"step": "loaded"},
        leftovers=[],
        image_blocks=lambda: [6, 7],
    )
    some.__dict__.update(values)
    return some


DONE = {"exit": 0, "out": "", "err": ""}
EMPTY = {"movable": [], "known": [], "loaded": False, "record": {}, "image_blocks": lambda: None}
BAD: dict[str, dict[str, Any]] = {
    "offline": {"offline": [5]},
    "movable by nobody": {"known": [7]},
    "a record that is not true": {"known": [5, 6, 7]},
    "not loaded": {"loaded": False},
    "half loaded": {"record": {"step": "loading"}},
    "another image": {"image_blocks": lambda: None},
    "an image of other blocks": {"image_blocks": lambda: [5, 6]},
    "left over": {"leftovers": [".state.json.new"]},
}


def test_a_sound_host_is_sound(kill: ModuleType) -> None:
    """After each of the three verbs, and at the moment of a kill."""
    at_boot = host(kill, **EMPTY)
    assert kill.why_not_loaded(DONE, host(kill), 2 * BLOCK) == []
    assert kill.why_not_unloaded(DONE, host(kill, **EMPTY), at_boot) == []
    assert kill.why_not_safe(host(kill)) == []
    assert kill.why_not_told(told(), host(kill), host(kill)) == []


@pytest.mark.parametrize("what", BAD)
def test_no_bad_load_is_taken_for_a_good_one(what: str, kill: ModuleType) -> None:
    """Each thing that may be wrong after a load is found; so are exit codes and tracebacks."""
    assert kill.why_not_loaded(DONE, host(kill, **BAD[what]), 2 * BLOCK)
    assert kill.why_not_loaded({**DONE, "exit": 1}, host(kill), 2 * BLOCK)
    assert kill.why_not_loaded({**DONE, "traceback": "x"}, host(kill), 2 * BLOCK)
    assert kill.why_not_loaded(DONE, host(kill), 3 * BLOCK)


@pytest.mark.parametrize(
    "bad",
    [
        {"offline": [7]},
        {"loaded": True},
        {"movable": [7], "known": [7]},
        {"record": {"step": "loaded"}},
        {"mem_total": 999},
        {"leftovers": ["x"]},
    ],
)
def test_no_bad_unload_is_taken_for_a_good_one(bad: dict[str, Any], kill: ModuleType) -> None:
    """All memory is back, nothing is loaded or recorded."""
    assert kill.why_not_unloaded(DONE, host(kill, **{**EMPTY, **bad}), host(kill, **EMPTY))


@pytest.mark.parametrize("bad", [{"offline": [5]}, {"movable": [6, 7, 8]}, {"movable": [7]}])
def test_what_nobody_could_put_right_is_found(bad: dict[str, Any], kill: ModuleType) -> None:
    """A block that is offline or movable off the books, or the image's but production's."""
    assert kill.why_not_safe(host(kill, **bad))


def told(code: int = 0, **values: Any) -> dict[str, Any]:
    answer = {"loaded": True, "by_crashlend": True, "recovered": [], "problems": [], **values}
    return {"exit": code, "out": json.dumps(answer), "err": ""}


def test_no_false_status_is_taken_for_a_true_one(kill: ModuleType) -> None:
    """Exit code, problems, what was recovered, whose image it is; and that it changed nothing."""
    good = host(kill)
    assert kill.why_not_told(told(3), good, good)
    assert kill.why_not_told(told(problems=["x"]), good, good)
    assert kill.why_not_told(told(recovered=[5]), good, good)
    assert kill.why_not_told(told(by_crashlend=False), good, good)
    assert kill.why_not_told(told(), good, host(kill, mem_total=999))
    loading = host(kill, record={"step": "loading"})
    assert kill.why_not_told(told(by_crashlend=False), loading, loading)
    assert kill.why_not_told(told(by_crashlend=False, problems=["x"]), loading, loading) == []
    before = host(kill, offline=[7], movable=[6])
    before.state["blocks"]["7"]["step"] = "taking"
    after = host(kill, movable=[6], known=[6], image_blocks=lambda: [6])
    assert kill.why_not_told(told(recovered=[7]), before, after) == []
    assert kill.why_not_told(told(), before, after)


# --- the lab's check -----------------------------------------------------------------------------

KERNEL = Kernel("6.1", "6.1.0", "bookworm", Path("vmlinuz"), Path("modules"), None)


def checks(**values: Any) -> list[Check]:
    points = [f"write offline to /sys{i}" for i in range(3)]
    points += ["write online_movable to /sys", "replace /run/crashlend/x", "kexec 246: unload"]
    event = {
        "event": "killed",
        "scenario": "load",
        "points": points,
        "kills": 9,
        "failed": 0,
        "failures": [],
        "missed": [],
        "seconds": 1.0,
        **values,
    }
    return [*check_kills(Spec(kernel=KERNEL, kill=("load",)), Report([event], 1.0, False))]


def test_a_scenario_that_went_well_passes() -> None:
    assert [c.ok for c in checks()] == [True]


@pytest.mark.parametrize(
    "bad",
    [
        {"scenario": "unload"},
        {"points": []},
        {"points": ["kexec 246: unload"]},
        {"missed": ["open '/x'"]},
        {"failed": 1, "failures": [{"after": "x", "then": "load", "not": ["offline"]}]},
    ],
)
def test_a_scenario_that_proves_nothing_or_went_wrong_fails(bad: dict[str, Any]) -> None:
    """Absent, empty, without the steps that it is about, incomplete, or with a failure."""
    assert [c.ok for c in checks(**bad)] == [False]


@pytest.mark.parametrize("file", ["kexec_crash_size", "kexec/crash_size"])
def test_a_shrink_counts_under_either_name_and_only_when_written(file: str) -> None:
    """The link's target on 7.3, the file itself on 6.1; opening it shrinks nothing."""
    points = ["write offline to /sys", "replace /run/crashlend/x", "kexec 246: unload"]
    for last, good in ((f"write 9 to /sys/kernel/{file}", True), (f"open /sys/{file}", False)):
        event = {"event": "killed", "scenario": "shrink", "points": [*points, last]}
        event.update(failures=[], missed=[])
        spec = Spec(kernel=KERNEL, kill=("shrink",))
        assert [c.ok for c in check_kills(spec, Report([event], 1.0, False))] == [good]


def test_every_scenario_is_in_a_trial() -> None:
    """What the guest can do is done, and what a trial names exists."""
    named = {name for trial in SUITE for name in trial.spec.get("kill", ())}
    text = (GUESTFILES / "kill.py").read_text()
    assert named == set(KILLED_AFTER)
    assert all(f'Scenario("{name}"' in text for name in named)
