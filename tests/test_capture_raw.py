# SPDX-License-Identifier: LGPL-2.1-or-later
"""A raw device as target: what init writes is what rawdump.py reads."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from capture_shell import SHELLS, needs_busybox
from capture_world import World
from crashlend.capture.rawdump import COMPLETE, VMCORE, WRITING, RawDump, Section, build, parse

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = needs_busybox

MIB = 1 << 20
DEVICE_BYTES = 4 * MIB
FIND = 'find_target_device() { echo "$PWD/device"; }\nSYS=$PWD/sys'


def world(where: Path, content: bytes = b"") -> World:
    """One raw target, ``content`` at its beginning and zero bytes after that."""
    made = World(where, ["raw:x"])
    (where / "targets/0.conf").write_text(
        f"TARGET_KIND=raw TARGET_SPEC=raw:x TARGET_SECTORS={DEVICE_BYTES // 512}\n"
    )
    (where / "device").write_bytes(content.ljust(DEVICE_BYTES, b"\0"))
    size = where / "sys/class/block/device/size"
    size.parent.mkdir(parents=True)
    size.write_text(f"{DEVICE_BYTES // 512}\n")
    return made


def read(where: Path) -> tuple[RawDump, dict[str, bytes]]:
    """The table, and what it names."""
    data = (where / "device").read_bytes()
    dump = parse(data, DEVICE_BYTES)
    found = {s.name: data[s.offset_bytes : s.offset_bytes + s.size_bytes] for s in dump.sections}
    return dump, found


@pytest.mark.parametrize("by", SHELLS)
def test_a_dump(tmp_path: Path, by: tuple[str, ...]) -> None:
    """Dump, log and the last report are on the device, and its table says that they are whole."""
    report = world(tmp_path).capture("ok", more=FIND, by=by)
    assert report["ok"] is True
    assert report["vmcore"] == {"path": "vmcore.flat", "bytes": 8}
    assert report["makedumpfile"]["args"][-1] == "-F"
    dump, found = read(tmp_path)
    assert dump.state == COMPLETE
    assert dump.name.startswith("h-2")
    assert found[VMCORE] == b"the dump"
    assert b"a test" in found["dmesg.txt"]
    assert json.loads(found["capture.json"]) == report


def test_a_dump_that_fails(tmp_path: Path) -> None:
    """The table knows where it began, and that it has no end; log and report are there."""
    report = world(tmp_path).capture("broken", more=FIND)
    assert "Input/output error" in report["reason"]
    dump, found = read(tmp_path)
    assert dump.state == COMPLETE
    assert found[VMCORE] == b""
    assert b"a test" in found["dmesg.txt"]
    assert json.loads(found["capture.json"]) == report


def test_a_capture_that_is_cut_off(tmp_path: Path) -> None:
    """Until the end the table says so; what was saved until then is valid."""
    world(tmp_path).capture("ok", more=FIND + "\nraw_dump() { cp device cut; return 1; }")
    (tmp_path / "cut").replace(tmp_path / "device")
    dump, found = read(tmp_path)
    assert dump.state == WRITING
    assert b"a test" in found["dmesg.txt"]
    assert json.loads(found["capture.json"])["reason"] == "the capture did not finish"


def test_a_device_that_is_too_small(tmp_path: Path) -> None:
    """Dd's words are the reason, the report still has its place, and the next level is tried."""
    small = (
        FIND + '\nraw_sink() { cat >/dev/null; echo "dd: No space left on device" >&2; return 1; }'
    )
    report = world(tmp_path).capture("ok", "ok", more=small + "\nDUMP_LEVEL=1")
    rungs = [(r["step"], r["ok"], r.get("level")) for r in report["ladder"]][3:]
    assert rungs == [("dump", False, 1), ("dump", False, 17), ("dump", False, 31)]
    assert "No space left on device" in report["ladder"][3]["reason"]
    assert json.loads(read(tmp_path)[1]["capture.json"]) == report


def test_an_earlier_dump_gives_way(tmp_path: Path) -> None:
    """Our own table marks the device as ours; nothing of the old dump is taken for the new one's."""
    old = build(RawDump(COMPLETE, "old", (Section("old.txt", 4096, 10),)))
    assert world(tmp_path, old).capture("ok", more=FIND)["ok"] is True
    dump, _ = read(tmp_path)
    assert dump.name != "old"
    assert dump.find("old.txt") is None


@pytest.mark.parametrize(
    "content", [b"x", bytes(1024 + 0x38) + b"\x53\xef", bytes(65536 + 64) + b"_BHRfS_M"]
)
def test_what_is_somebody_s_is_not_written_to(tmp_path: Path, content: bytes) -> None:
    """Disks may have changed their order: a file system's device is left as it is."""
    made = world(tmp_path, content)
    before = (tmp_path / "device").read_bytes()
    report = made.capture("ok", more=FIND)
    assert "neither blank nor marked" in report["reason"]
    assert (tmp_path / "device").read_bytes() == before


def test_a_device_of_another_size_is_not_it(tmp_path: Path) -> None:
    """A blank device in its place may be the beginning of somebody's new disk."""
    made = world(tmp_path)
    (tmp_path / "sys/class/block/device/size").write_text("4096\n")
    assert "neither blank nor marked" in made.capture("ok", more=FIND)["reason"]
    assert not any((tmp_path / "device").read_bytes())


def test_what_an_earlier_run_left_says_nothing_of_the_next(tmp_path: Path) -> None:
    """A sink that could not be ended is not taken for the one that fails; no other is begun beside it."""
    late = (
        FIND
        + """
    await() { [ "$2" = 20 ] && return 124; command wait "$1"; }
    raw_sink() { (sleep 2; : >"$sunk"; echo 1179656 >"$TMP/raw.end.$RUN") & cat >/dev/null; wait; }
    DUMP_TIMEOUT=1 DUMP_LEVEL=1
    """
    )
    report = world(tmp_path).capture("stands", "ok", more=late)
    assert report["ok"] is False
    assert report["ladder"][-1]["reason"].endswith("raw:x does not take what was written")
    assert [r["step"] for r in report["ladder"]].count("dump") == 1
