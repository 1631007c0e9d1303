# SPDX-License-Identifier: LGPL-2.1-or-later
"""What init tells beside the dump: holes.json, and what capture.json says of the crashed kernel."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

import test_capture_raw
import test_file_handover as file_mode
from build import RESERVATION, facts, payload
from capture_shell import STUBS, needs_busybox, shell
from crashlend.capture.initramfs import load_archive
from crashlend.capture.rawdump import TAKEN
from crashlend.config import Settings
from crashlend.dumps.check import check_dump
from crashlend.dumps.directory import lent_of, read_dump
from crashlend.dumps.recover import recover_raw
from crashlend.formats import newc
from crashlend.plan import make_plan
from crashlend.ranges import Ranges
from crashlend.sizes import GIB, MIB
from dump_files import flatten, kdump

if TYPE_CHECKING:
    from pathlib import Path

LOADED = """
LENDER=cma,movable LENT_BYTES=12288 LENT_RANGES=4096-8192,16384-24576
LENT_PARTS='movable=16384-24576 cma=4096-8192' RESERVATION=0x0000000000100000-0x0000000000200000
"""
PUT = """
fs_put() { cp "$1" "saved-$2"; }
fs_begin() { DIR=$PWD; }
"""


def holes(script: str, where: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(shell(f"{script}\nholes_json", where))
    return found


@needs_busybox
def test_holes_tell_what_is_missing_and_why(tmp_path: Path) -> None:
    """By lender, the reservation, the first MiB; and which pages the level leaves out."""
    found = holes(LOADED, tmp_path)
    assert found["schema"] == 1
    assert found["lent"] == {"bytes": 12288, "ranges": [[4096, 8192], [16384, 24576]]}
    assert found["holes"] == [
        {"why": "lent", "lender": "movable", "ranges": [[16384, 24576]]},
        {"why": "lent", "lender": "cma", "ranges": [[4096, 8192]]},
        {"why": "reservation", "lender": None, "ranges": [[MIB, 2 * MIB]]},
        {"why": "first-mib", "lender": None, "ranges": [[0, MIB]]},
    ]
    assert found["dump_level"] == 31
    assert found["left_out"] == [
        *("zero-pages", "page-cache", "private-page-cache", "user-data", "free-pages")
    ]


@needs_busybox
def test_ranges_that_the_kernel_leaves_out_unasked_are_holes_too(tmp_path: Path) -> None:
    """kexec_file_load gives the crash kernel all of its ,cma ranges, asked for or not."""
    plan = file_mode.plan_of(facts(cma_ranges=file_mode.CMA), lend=0, lender="none", syscall="file")
    assert plan.load_variables["LENT_PARTS"] == ""
    found = holes(f"UNASKED_RANGES={plan.load_variables['UNASKED_RANGES']}", tmp_path)
    assert found["holes"][0] == {
        "why": "kernel-ranges",
        "lender": None,
        "ranges": [list(r) for r in file_mode.CMA],
    }
    lent = file_mode.plan_of(
        facts(cma_ranges=file_mode.CMA), lender="cma", lend=GIB // 4, syscall="file"
    )
    assert lent.load_variables["UNASKED_RANGES"] == ""
    assert lent.load_variables["LENT_PARTS"].startswith("cma=")


@needs_busybox
def test_nothing_lent_is_no_hole_of_a_lender(tmp_path: Path) -> None:
    """Without load.conf at all it is JSON, too."""
    found = holes("", tmp_path)
    assert [hole["why"] for hole in found["holes"]] == ["reservation", "first-mib"]
    assert lent_of(found) == Ranges()


@needs_busybox
@pytest.mark.parametrize(
    ("script", "level", "left_out"),
    [
        ("DUMP_LEVEL=17", 17, ["zero-pages", "free-pages"]),
        ("DUMP_LEVEL=1 DUMP_ARGS='-l --num-threads 4 -d 31'", 31, None),
        ("DUMP_LEVEL=0", 0, []),
        ("DUMP_LEVEL=x", 0, []),
    ],
)
def test_the_level_is_the_last_run_s(
    tmp_path: Path, script: str, level: int, left_out: list[str] | None
) -> None:
    """Where the ladder left out more than was wished for, both reports tell it."""
    found = holes(script, tmp_path)
    assert found["dump_level"] == level
    assert left_out is None or found["left_out"] == left_out
    assert json.loads(shell(f"{script}\ncapture_json ''", tmp_path))["dump_level"] == level


@needs_busybox
def test_holes_are_there_before_the_dump_and_once_more_when_the_level_changed(
    tmp_path: Path,
) -> None:
    """put_first writes them; the last report only where they would say another level."""
    script = STUBS + PUT + LOADED + ": >log; NAME=x DUMP_LEVEL=17 LEAST_PID=999999; put_first\n"
    shell(script, tmp_path)
    assert json.loads((tmp_path / "saved-holes.json").read_text())["dump_level"] == 17
    (tmp_path / "saved-holes.json").unlink()
    shell(script + "rm saved-holes.json; write_report", tmp_path)
    assert not (tmp_path / "saved-holes.json").exists()
    shell(script + "DUMP_ARGS='-d 31'; write_report", tmp_path)
    assert json.loads((tmp_path / "saved-holes.json").read_text())["dump_level"] == 31


@needs_busybox
def test_holes_that_cannot_be_saved_cost_nothing(tmp_path: Path) -> None:
    """The dump goes on, and the console is told."""
    script = 'fs_put() { case $2 in holes*) return 1 ;; esac; }\nput_first && echo "on|$REASON"'
    assert shell(STUBS + script, tmp_path) == "on|\n"
    assert "cannot save holes.json" in (tmp_path / "said").read_text()


@needs_busybox
@pytest.mark.parametrize(
    ("log", "release"),
    [
        ("[    0.0] Linux version 6.1.0-56-amd64 (a@b) (gcc) #1\n", "6.1.0-56-amd64"),
        (
            "[  9.1] CPU: 0 PID: 1 Comm: a b Kdump: loaded Not tainted 5.10.0-46-amd64 #1 Debian\n",
            "5.10.0-46-amd64",
        ),
        (
            "[  9.1] CPU: 0 PID: 1 Comm: x Tainted: G    W   7.3.4+deb13-amd64 #1\n",
            "7.3.4+deb13-amd64",
        ),
        ("nothing\n", ""),
    ],
)
def test_the_crashed_kernel_s_version_comes_from_its_log(
    tmp_path: Path, log: str, release: str
) -> None:
    """Its first line, or where that was overwritten the panic's."""
    (tmp_path / "dmesg.txt").write_text(log)
    report = json.loads(shell("HOST=web; capture_json ''", tmp_path))
    assert report["crashed_release"] == release
    assert report["host"] == "web"
    assert len(report["time"]) == len("2026-11-26T00:54:43Z")


@needs_busybox
def test_init_reads_what_the_plan_writes(tmp_path: Path) -> None:
    """From load.conf to holes.json: each lender's ranges and the reservation, to the byte."""
    plan = make_plan(facts(), Settings(lend=GIB), payload())
    members, _ = newc.parse(load_archive(plan.load_variables))
    conf = next(m.data for m in members if m.path == "etc/crashlend/load.conf")
    (tmp_path / "load.conf").write_bytes(conf)
    found = holes(". ./load.conf", tmp_path)
    assert lent_of(found) == plan.lent
    by_why = {hole["lender"] or hole["why"]: hole["ranges"] for hole in found["holes"]}
    assert by_why["movable"] == plan.lent.to_json()
    assert by_why["reservation"] == [list(RESERVATION)]


def test_the_length_of_the_variables_does_not_depend_on_where_the_reservation_begins() -> None:
    """A reservation that shrinks to the byte must still hold the initramfs that was planned."""
    words = [
        make_plan(facts(reservations=(r,)), Settings(lend=0), payload()).load_variables[
            "RESERVATION"
        ]
        for r in (RESERVATION, (0x8000000, 0x10000000))
    ]
    assert len(words[0]) == len(words[1])
    assert words[0] != words[1]


@needs_busybox
def test_what_init_put_on_a_raw_device_is_recovered(tmp_path: Path) -> None:
    """Init's own table and sections; the stream is makedumpfile's: a whole dump, usable."""
    raw = test_capture_raw.world(tmp_path)
    (tmp_path / "flat").write_bytes(flatten(kdump()))
    stream = 'stream_dump() { raw_sink <"$TMP/flat" 2>"$TMP/sink.log"; }'
    report = raw.capture("ok", more=f"{test_capture_raw.FIND}\n{stream}")
    assert report["ok"] is True
    path, made, _ = recover_raw(tmp_path / "device", tmp_path / "crash", mark=True)
    assert made
    assert (path / "vmcore").read_bytes() == kdump()
    dump = read_dump(path)
    assert dump.complete, dump.faults
    assert dump.strange == ()
    assert [f.what for f in check_dump(dump, independent=False).findings if f.ok is False] == []
    table, _ = test_capture_raw.read(tmp_path)
    assert table.state == TAKEN
