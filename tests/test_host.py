# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the host does for a guest, against a QEMU without a guest."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crashlend.lab.host import SOCKET, Host
from crashlend.lab.qemu import QEMU, parse_event

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A host beside a QEMU that has no machine to speak of."""
    words = ["-machine", "none", "-display", "none", "-nodefaults", "-no-user-config"]
    with subprocess.Popen(
        [QEMU, *words, "-qmp", f"unix:{tmp_path}/{SOCKET},server=on,wait=off"],
        stdin=subprocess.DEVNULL,
    ) as qemu:
        try:
            while not (tmp_path / SOCKET).exists() and qemu.poll() is None:
                time.sleep(0.05)
            found = Host(tmp_path, {"add": lambda host, words: sum(map(int, words))})
            yield found
            found.close()
        finally:
            qemu.kill()


def test_qmp_is_answered_by_qemu(host: Host) -> None:
    """QEMU's own answer comes back, and its arguments arrive."""
    answer = host.answer(["qmp", "query-status"])
    assert answer["return"]["running"] is True
    assert host.answer(["qmp", "qom-list", '{"path": "/"}'])["return"]


def test_refusals_come_back_in_words(host: Host) -> None:
    """What QEMU, or nobody, knows is an error for the guest, with its name, and not the lab's end."""
    assert "no-such-thing" in host.answer(["qmp", "no-such-thing"])["error"]
    assert "'fly'" in host.answer(["fly"])["error"]
    assert "error" in host.answer([])
    assert "error" in host.answer("qmp")
    assert "error" in host.answer(["qmp", "qom-list", "{"])


def test_a_trial_brings_actions_of_its_own(host: Host) -> None:
    """Actions beside QMP get the words of the command."""
    assert host.answer(["add", "2", "3"]) == {"return": 5}
    assert "error" in host.answer(["add", "two"])


def test_a_machine_that_is_gone_is_an_error(tmp_path: Path) -> None:
    """Without a QEMU the answer says so."""
    assert "error" in Host(tmp_path).answer(["qmp", "query-status"])


@pytest.mark.parametrize("before", [b"", b'{"return": {}}', b"\x1b[2J\x1b[01;01H", b"{"])
def test_an_event_is_found_behind_what_others_left_on_the_port(before: bytes) -> None:
    """The echo of an answer, or firmware's words on the same line, cost no event."""
    assert parse_event(before + b'{"event": "saved", "status": "ok"}') == {
        "event": "saved",
        "status": "ok",
    }
    assert parse_event(before) in (None, {"return": {}})
    assert parse_event(before + b'{"event": "sav') is None
