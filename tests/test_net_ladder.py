# SPDX-License-Identifier: LGPL-2.1-or-later
"""The ladder with a server in it: what it saves there, and when the next target has the dump."""

from __future__ import annotations

from pathlib import Path

import pytest

from capture_shell import executable, needs_busybox
from capture_world import World, rungs

pytestmark = needs_busybox

SPEC = "ssh://u@server/d"
# Runs the other side's part here; "refuse" and "dies" are what may happen to it.
SSH = """
for word; do last=$word; done
[ -e refuse ] && { cat refuse >&2; exit 255; }
case $last in *'wc -c <"$file.incomplete"'"'") [ -e dies ] && { head -c 3 >/dev/null; cat dies >&2; exit 255; } ;; esac
exec sh -c "$last"
"""
UP = """
network_up() { NET_DEVICE=eth0; }
"""


@pytest.fixture
def world(tmp_path: Path) -> World:
    """An SSH server first, then a local disk."""
    made = World(tmp_path, ["server", "disk"])
    executable(tmp_path / "bin/ssh", SSH)
    (tmp_path / "targets/0.conf").write_text(
        f"TARGET_KIND=ssh TARGET_SPEC={SPEC} TARGET_PATH={tmp_path}/server/crash "
        "TARGET_HOST=127.0.0.1 TARGET_ADDRESS=127.0.0.1 TARGET_SSH_CONFIG=none\n"
    )
    return made


def test_a_server_has_all_that_a_disk_would_have(world: World) -> None:
    """The dump is flattened there, the rest is the same; the report says where it is."""
    report = world.capture("ok", more=UP)
    assert rungs(report)[1:] == [
        ("open", SPEC, True),
        ("begin", SPEC, True),
        ("dump", SPEC, True, 31),
    ]
    assert (report["ok"], report["vmcore"]) == (True, {"path": "vmcore.flat", "bytes": 8})
    saved = world.saved("server")
    assert saved.keys() == {
        "capture.json",
        "capture.log",
        "dmesg.txt",
        "holes.json",
        "vmcore.flat",
    }
    assert saved["vmcore.flat"] == "the dump"
    assert not (world.where / "disk").exists()


def test_a_server_that_refuses_costs_one_rung(world: World) -> None:
    """Its words are the reason, and the disk has the dump."""
    (world.where / "refuse").write_text("Host key verification failed.\n")
    report = world.capture("ok", more=UP)
    assert rungs(report)[1:3] == [("open", SPEC, False), ("open", "disk", True)]
    assert report["ladder"][1]["reason"] == f"{SPEC}: Host key verification failed."
    assert (report["ok"], report["vmcore"]["path"]) == (True, "vmcore")


def test_a_connection_that_breaks_in_the_middle_costs_one_rung(world: World) -> None:
    """No other level is tried there, nothing there looks like a dump, and the disk has it."""
    (world.where / "dies").write_text("client_loop: send disconnect: Broken pipe\n")
    executable(
        world.where / "bin/makedumpfile",
        (world.where / "bin/makedumpfile")
        .read_text()
        .replace("ok) ", "ok) [ $out = /dev/stdout ] && exec sh -c 'while :; do echo; done'; "),
    )
    report = world.capture("ok", "ok", more=UP)
    assert [rung for rung in rungs(report) if rung[0] == "dump"] == [
        ("dump", SPEC, False, 31),
        ("dump", "disk", True, 31),
    ]
    failed = next(rung for rung in report["ladder"] if not rung["ok"])
    assert failed["reason"] == f"{SPEC}: client_loop: send disconnect: Broken pipe"
    assert "vmcore.flat" not in world.saved("server")
    assert report["ok"] is True


def test_a_server_without_room_is_sent_less(world: World) -> None:
    """More is left out on the same target first."""
    report = world.capture("space", "ok", more=f"{UP} DUMP_LEVEL=1")
    assert [rung for rung in rungs(report) if rung[0] == "dump"] == [
        ("dump", SPEC, False, 1),
        ("dump", SPEC, True, 17),
    ]
    assert world.saved("server")["vmcore.flat"] == "the dump"
