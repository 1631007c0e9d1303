# SPDX-License-Identifier: LGPL-2.1-or-later
"""The ladder of the capture: each rung fails in turn, and what is tried next."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from capture_shell import SHELLS, executable, needs_busybox, shell
from capture_world import World, rungs

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = needs_busybox

SAVED = {"capture.json", "capture.log", "dmesg.txt", "holes.json", "vmcore"}
# Never comes to the end of writing out a dump to "slow".
SLOW_DD = """
case $(readlink /proc/$$/fd/1) in */slow/*vmcore*) exec sleep 50 ;; esac
exec busybox dd "$@"
"""
LOG_SAVED = ("dmesg", "", True)


def on(target: str) -> list[tuple[object, ...]]:
    """The rungs before the dump."""
    return [("open", target, True), ("begin", target, True)]


@pytest.mark.parametrize("by", SHELLS)
def test_a_dump_at_the_first_try(tmp_path: Path, by: tuple[str, ...]) -> None:
    """The log comes first, then the dump; nothing is left of what was only for the way."""
    world = World(tmp_path)
    report = world.capture("ok", by=by)
    assert rungs(report) == [LOG_SAVED, *on("disk"), ("dump", "disk", True, 31)]
    assert (report["ok"], report["reason"]) == (True, "")
    saved = world.saved("disk")
    assert saved.keys() == SAVED
    assert saved["vmcore"] == "the dump"
    assert "a test" in saved["dmesg.txt"]
    assert json.loads(saved["capture.json"]) == report
    assert world.lines("closed") == ["disk"]
    assert world.lines("ends") == []  # neither pstore nor the console is needed


@pytest.mark.parametrize(
    ("asked", "levels"),
    [(0, [0, 17, 31]), (1, [1, 17, 31]), (16, [16, 17, 31]), (17, [17, 31]), (31, [31])],
)
def test_more_is_left_out_where_there_is_no_room(
    tmp_path: Path, asked: int, levels: list[int]
) -> None:
    """Each level leaves out all that the one before it did, and more; then there is the log alone."""
    world = World(tmp_path)
    report = world.capture(*["space"] * len(levels), more=f"DUMP_LEVEL={asked}")
    assert rungs(report)[3:] == [("dump", "disk", False, level) for level in levels]
    assert all(level & asked == asked for level in levels)
    assert report["ok"] is False
    assert report["reason"] == "makedumpfile ended with 1: write_buffer: No space left on device"
    saved = world.saved("disk")
    assert saved["vmcore.incomplete"] == "a part"  # better than nothing
    assert "vmcore" not in saved
    assert "a test" in saved["dmesg.txt"]
    assert world.lines("ends") == ["pstore", "console"]


def test_a_dump_that_leaves_out_more_is_a_dump(tmp_path: Path) -> None:
    """The report has the level that was saved, and the one that was not is in the ladder."""
    world = World(tmp_path)
    report = world.capture("space", "ok", more="DUMP_LEVEL=1")
    assert rungs(report)[3:] == [("dump", "disk", False, 1), ("dump", "disk", True, 17)]
    assert (report["ok"], report["reason"], report["dump_level"]) == (True, "", 17)
    assert world.saved("disk").keys() == SAVED


@pytest.mark.parametrize(
    ("room_kib", "write_bytes", "counted", "tried"),
    [
        (100, "100000000", ["1", "17"], ["31"]),  # far more than fits, at both levels
        (100, "600000", ["1"], ["1"]),  # compressed it may fit: the write finds out
        (200, "100000000", [], ["1"]),  # an eighth of memory: no time is spent on counting
        (100, "", ["1"], ["1"]),  # a makedumpfile that does not count
    ],
)
def test_a_dump_that_surely_does_not_fit_is_not_begun(
    tmp_path: Path, room_kib: int, write_bytes: str, counted: list[str], tried: list[str]
) -> None:
    """Makedumpfile counts first where room is short; 31 is tried whatever it would count."""
    world = World(tmp_path)
    (tmp_path / "core").write_bytes(bytes(1 << 20))
    (tmp_path / "dry").write_text(f"Write bytes     : {write_bytes}\n")
    report = world.capture("ok", more=f"DUMP_LEVEL=1; directory_free() {{ echo {room_kib}; }}")
    assert world.lines("counted") == counted
    assert [call.split("-d ")[1].split()[0] for call in world.lines("calls")] == tried
    assert report["ok"] is True
    if len(counted) > 1:
        assert report["ladder"][3]["reason"] == (
            "it has 100000000 bytes before compression, and 100 KiB are free"
        )


def test_what_a_failed_run_left_is_room_for_the_next(tmp_path: Path) -> None:
    """It is removed before the next run, so it does not count as used."""
    world = World(tmp_path)
    place = "DIR=$PWD; directory_free() { echo 100; }; directory_room\n"
    script = place + "dd if=/dev/zero of=vmcore.incomplete bs=1024 count=40 2>/dev/null\n" + place
    assert shell(script, world.where).split() == ["100", "140"]


@pytest.mark.parametrize("by", SHELLS)
def test_the_next_target_is_tried(tmp_path: Path, by: tuple[str, ...]) -> None:
    """A target that is not there, one that is full: each has its rungs, the third has the dump."""
    world = World(tmp_path, ["gone", "full", "good"])
    (tmp_path / "gone.gone").touch()
    report = world.capture("space", "ok", by=by)
    assert rungs(report) == [
        LOG_SAVED,
        ("open", "gone", False),
        *on("full"),
        ("dump", "full", False, 31),
        *on("good"),
        ("dump", "good", True, 31),
    ]
    assert report["ladder"][1]["reason"] == "gone is not there"
    assert (report["ok"], report["reason"]) == (True, "")
    assert world.lines("closed") == ["gone", "full", "good"]
    # the one that was given up says so, and keeps what it got
    full = world.saved("full")
    assert full["vmcore.incomplete"] == "a part"
    assert json.loads(full["capture.json"])["ok"] is False
    assert world.saved("good")["vmcore"] == "the dump"
    assert world.lines("ends") == []


def test_nothing_of_one_target_is_left_for_the_next(tmp_path: Path) -> None:
    """A raw device after a file system on LVM must not be looked for among stacked devices."""
    World(tmp_path, ["one", "two"])
    (tmp_path / "targets/0.conf").write_text("TARGET_KIND=fs TARGET_STACK='a b' TARGET_X2=1\n")
    script = 'TARGET_TIMEOUT=7; use_target 0; echo "$TARGET_STACK"; use_target 1\n'
    script += 'echo "${TARGET_STACK-none} ${TARGET_X2-none} $TARGET_TIMEOUT $TARGET_SPEC"'
    assert shell(script, tmp_path).splitlines() == ["a b", "none none 7 two"]


def test_a_target_that_takes_no_file_is_given_up(tmp_path: Path) -> None:
    """A target may be reached, and be read-only: no time is spent on a dump there."""
    world = World(tmp_path, ["locked", "good"])
    refuse = 'fs_put() { [ "$TARGET_SPEC" != locked ] && directory_put "$@"; }'
    report = world.capture("ok", more=refuse)
    assert rungs(report)[1:4] == [
        ("open", "locked", True),
        ("begin", "locked", False),
        ("open", "good", True),
    ]
    assert report["ok"] is True
    assert len(world.lines("calls")) == 1


def test_a_target_that_breaks_in_the_middle(tmp_path: Path) -> None:
    """After an error of the device no other level is tried there."""
    world = World(tmp_path, ["bad", "good"])
    report = world.capture("broken", "ok", more="DUMP_LEVEL=0")
    assert rungs(report)[3:] == [
        ("dump", "bad", False, 0),
        *on("good"),
        ("dump", "good", True, 0),
    ]


def test_a_dump_that_stands_still_is_ended(tmp_path: Path) -> None:
    """Its target is given up, for another level would stand still as well."""
    world = World(tmp_path, ["stuck", "good"])
    report = world.capture("stands", "ok", more="STALL_TIMEOUT=1 DUMP_LEVEL=0")
    assert rungs(report)[3:] == [
        ("dump", "stuck", False, 0),
        *on("good"),
        ("dump", "good", True, 0),
    ]
    why = "makedumpfile ended with 137: nothing was written for 1 s"
    assert report["ladder"][3]["reason"] == why


# After the first run nothing that touches "dead" comes back: how long each was waited for.
DEAD = """
STALL_TIMEOUT=1
bounded() {
  limit=$1
  shift
  case "$*" in
    */dead*) [ ! -e calls ] || { echo "$limit $1" >>waited; return 124; } ;;
  esac
  case $1 in *mount) return 0 ;; esac
  "$@"
}
fs_close() { TARGET_MOUNTED=$MOUNTPOINT; directory_close; }
"""


def test_a_disk_that_stands_still_is_asked_once_more(tmp_path: Path) -> None:
    """Not for two minutes each by all that would be tidy: the next target has its turn."""
    world = World(tmp_path, ["dead", "good"])
    report = world.capture("stands", "ok", more=DEAD)
    assert rungs(report)[3:] == [
        ("dump", "dead", False, 31),
        *on("good"),
        ("dump", "good", True, 31),
    ]
    assert world.lines("waited") == ["10 sh", "5 umount"]
    world = World(tmp_path / "x", ["dead"])
    report = world.capture("stands", more=DEAD)
    assert report["ok"] is False
    assert world.lines("waited") == ["10 sh", "5 umount"]
    assert world.lines("ends") == ["pstore", "console"]


def test_a_disk_that_answers_again_has_its_report(tmp_path: Path) -> None:
    """It may have been makedumpfile alone that stood still."""
    world = World(tmp_path, ["stuck", "good"])
    world.capture("stands", "ok", more="STALL_TIMEOUT=1")
    assert "nothing was written for 1 s" in world.saved("stuck")["capture.json"]


def test_after_a_retry_a_stall_is_a_stall(tmp_path: Path) -> None:
    """The run that takes less memory may find the disk dead: no other level is begun there."""
    world = World(tmp_path, ["dies", "good"])
    report = world.capture("memory", "broken", "ok", more="DUMP_LEVEL=0")
    assert rungs(report)[3:] == [
        ("dump", "dies", False, 0),
        ("dump", "dies", False, 0),
        *on("good"),
        ("dump", "good", True, 0),
    ]


def test_a_dump_that_takes_too_long_makes_room_for_a_smaller_one(tmp_path: Path) -> None:
    """dump_timeout ends it; the next level is tried on the same target."""
    world = World(tmp_path)
    report = world.capture("stands", "ok", more="DUMP_TIMEOUT=1 DUMP_LEVEL=1")
    assert rungs(report)[3:] == [("dump", "disk", False, 1), ("dump", "disk", True, 17)]
    assert "longer than 1 s" in report["ladder"][3]["reason"]


def test_out_of_memory_is_answered_by_a_run_that_takes_less(tmp_path: Path) -> None:
    """The same level once more with small bitmaps; the larger of two parts is kept."""
    world = World(tmp_path)
    report = world.capture("memory", "crash", more="directory_free() { echo 99; }")
    assert rungs(report)[3:] == [("dump", "disk", False, 31)] * 2
    assert "--cyclic-buffer" not in world.lines("calls")[0]
    assert "--cyclic-buffer 1024" in world.lines("calls")[1]
    assert "killed, probably out of memory" in report["ladder"][3]["reason"]
    saved = world.saved("disk")
    assert len(saved["vmcore.incomplete"]) == 8192
    assert "vmcore.earlier.incomplete" not in saved


def test_a_part_that_would_take_the_room_of_the_next_run_goes(tmp_path: Path) -> None:
    """An incomplete dump is kept for want of a better one, never at the cost of it."""
    world = World(tmp_path)
    room = "directory_free() { echo 31; }"
    assert world.capture("memory", "ok", more=room)["ok"] is True
    assert not [name for name in world.lines("there") if "vmcore" in name]  # in the second run
    assert world.saved("disk").keys() == SAVED


def test_a_makedumpfile_that_dies_is_tried_at_each_level(tmp_path: Path) -> None:
    """A crash of makedumpfile at one level may not be one at the next."""
    world = World(tmp_path)
    report = world.capture("crash", "crash", "ok", more="DUMP_LEVEL=0")
    assert rungs(report)[3:] == [
        ("dump", "disk", False, 0),
        ("dump", "disk", False, 17),
        ("dump", "disk", True, 31),
    ]
    assert report["ladder"][3]["reason"] == "makedumpfile ended with 139"


def test_a_compression_that_is_not_built_in_costs_no_rung(tmp_path: Path) -> None:
    """The next compression is tried at the same level."""
    world = World(tmp_path)
    report = world.capture("no-lzo", "ok")
    assert rungs(report)[3:] == [("dump", "disk", True, 31)]
    assert report["makedumpfile"]["args"] == ["-c", "-d", "31"]


def test_a_full_disk_at_the_final_flush_is_no_dump(tmp_path: Path) -> None:
    """What makedumpfile thinks is written may not be on the disk: only then it gets its name."""
    world = World(tmp_path, ["lies", "good"])
    flush = "flush() { case $1 in */lies/*/vmcore.*) return 1 ;; esac; }"
    report = world.capture("ok", "ok", more=flush)
    assert rungs(report)[3:] == [
        ("dump", "lies", False, 31),
        *on("good"),
        ("dump", "good", True, 31),
    ]
    assert "vmcore" not in world.saved("lies")
    assert "cannot write the dump out" in report["ladder"][3]["reason"]


@pytest.mark.parametrize("by", SHELLS[1:])
def test_a_dump_that_is_not_written_out_in_time_stays(tmp_path: Path, by: tuple[str, ...]) -> None:
    """It is complete but for that: it is not removed for one that leaves out more."""
    world = World(tmp_path, ["slow", "good"])
    executable(tmp_path / "bin/dd", SLOW_DD)
    more = "STALL_TIMEOUT=1 DUMP_LEVEL=0; written_out() { echo 1; }"
    report = world.capture("ok", "ok", more=more, by=by)
    assert rungs(report)[3:] == [
        ("dump", "slow", False, 0),
        *on("good"),
        ("dump", "good", True, 0),
    ]
    assert report["ladder"][3]["reason"] == (
        "cannot write the dump out: nothing was written for 1 s"
    )
    assert world.saved("slow")["vmcore.incomplete"] == "the dump"


def test_a_dump_that_fills_the_disk_leaves_room_for_the_report(tmp_path: Path) -> None:
    """The reserve is given back for the last report: it says what has become of the dump."""
    world = World(tmp_path)
    full = 'directory_write() { [ ! -e calls ] || [ ! -e "$DIR/reserve" ] || return 1; put "$@"; }'
    put = 'put() { cp "$1" "$DIR/$2"; }'
    report = world.capture("space", more=f"{put}; {full}")
    assert json.loads(world.saved("disk")["capture.json"]) == report
    assert "No space left" in report["reason"]


def test_no_target_at_all(tmp_path: Path) -> None:
    """The console and pstore have the reason; the report is where failure hooks find it."""
    world = World(tmp_path, ["one", "two"])
    for name in ("one", "two"):
        (tmp_path / f"{name}.gone").touch()
    report = world.capture()
    assert rungs(report) == [LOG_SAVED, ("open", "one", False), ("open", "two", False)]
    assert report["reason"] == "one is not there"
    assert world.lines("ends") == ["pstore", "console"]
    assert World(tmp_path / "x", []).capture()["reason"] == "there is no dump target"


def test_a_target_that_could_not_say_why_is_no_missing_setting(tmp_path: Path) -> None:
    """What fails in a subshell cannot leave its reason: then it is that the target was not reached."""
    world = World(tmp_path)
    report = world.capture(more='fs_open() { (fail "no card"); return 1; }')
    assert report["reason"] == "cannot reach disk"


def test_without_a_vmcore_the_reason_is_saved(tmp_path: Path) -> None:
    """A kernel that no crash started has nothing to dump; the target still gets the report."""
    world = World(tmp_path)
    (tmp_path / "core").unlink()
    report = world.capture()
    assert rungs(report) == [("dmesg", "", False), *on("disk")]
    assert "no /proc/vmcore" in report["reason"]
    assert world.lines("calls") == []


def test_no_step_is_begun_without_time(tmp_path: Path) -> None:
    """What is left of the total is looked at before each rung, and ends the ladder."""
    world = World(tmp_path, ["first", "second"])
    # enough for the first target's first run, and nothing after that
    clock = 'left() { [ "$(wc -l 2>/dev/null <calls)" = 1 ] && echo 0 || echo 100; }'
    report = world.capture("space", more=f"DUMP_LEVEL=0; {clock}")
    assert rungs(report)[3:] == [
        ("dump", "first", False, 0),
        ("dump", "first", False, 17),
        ("open", "second", False),
    ]
    assert report["ladder"][4]["reason"] == "no time was left"
    assert report["ladder"][5]["reason"] == "no time was left for this target"


@pytest.mark.parametrize(
    ("pstore", "runs", "ends"),
    [
        ("auto", ["ok"], []),
        ("always", ["ok"], ["pstore"]),
        ("never", ["space"], ["console"]),
        ("always", ["space"], ["pstore", "console"]),
    ],
)
def test_when_pstore_is_asked(
    tmp_path: Path, pstore: str, runs: list[str], ends: list[str]
) -> None:
    """auto: only where no dump was saved."""
    world = World(tmp_path)
    world.capture(*runs, more=f"PSTORE={pstore}")
    assert world.lines("ends") == ends


@pytest.mark.parametrize("text", ['"', "\\", "\t", "'", "$(x)", "é", "\x7f"])
def test_whatever_a_reason_holds_the_report_is_json(tmp_path: Path, text: str) -> None:
    """Reasons quote programs, which may say anything."""
    (tmp_path / "why").write_text(text)
    script = (
        'TARGET_SPEC=$(cat why); step "$(cat why)" no "$(cat why)" 7; capture_json "$(cat why)"'
    )
    report = json.loads(shell(script, tmp_path))
    assert report["ladder"][0]["seconds"] == 0.07


def test_files_are_for_root_alone(tmp_path: Path) -> None:
    """0700 and 0600 whatever makedumpfile asks for: init's umask."""
    world = World(tmp_path)
    world.capture("ok", more="umask 077")
    (place,) = (tmp_path / "disk/crash").iterdir()
    assert place.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in place.iterdir()} == {0o600}
