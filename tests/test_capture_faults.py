# SPDX-License-Identifier: LGPL-2.1-or-later
"""Faults of the capture: a trial shows nothing unless its fault has struck."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from crashlend.lab.capture_fault_checks import struck
from crashlend.lab.capture_faults import CAPTURE_FAULTS, GONE_UUID
from crashlend.lab.shows import told
from crashlend.lab.spec import Saved

if TYPE_CHECKING:
    from pathlib import Path

# What crash kernels have said under each fault, as their console and capture.log had it.
SAID = {
    "little-room": "failed: makedumpfile ended with 1: Can't write. No space left on device",
    "targets": f"failed: the dump target {GONE_UUID} did not appear within 5 s\n"
    "failed: makedumpfile ended with 1: Can't write. No space left on device\n"
    "mkdir: can't create directory '/target/crash': Read-only file system",
    "dying": "makedumpfile -l -d 1\n"
    "Out of memory: Killed process 537 (dd) total-vm:358436kB, anon-rss:325848kB\n"
    "failed: makedumpfile ended with 137: killed, probably out of memory\n"
    "failed: makedumpfile ended with 139",
    "bad-hook": "pre hook 70-fault\nOut of memory: Killed process 164 (tail) total-vm:332464kB\n"
    "pre hook 70-fault ended with 124\nsaved 44487619 bytes",
    "panic": "pre hook 70-fault\nsysrq: Trigger a crash\n"
    "Kernel panic - not syncing: sysrq triggered crash\nCPU: 0 PID: 163 Comm: 70-fault",
    "no-target": f"crashlend: failed: the dump target {GONE_UUID} did not appear within 5 s",
    "raw": "target raw:/dev/vdc is /dev/vdc\nmakedumpfile -l -d 31 -F\nsaved 44562181 bytes",
    "hang": "crashlend: pre hook 70-fault\ncrashlend-lab: good night",
}
# What one says that was not disturbed at all, to the lab's own disk.
UNDISTURBED = """crashlend: crash kernel 6.1.0-56-amd64 is up
crashlend: crashed: Kernel panic - not syncing: sysrq triggered crash
crashlend: pre hook 50-lab
crashlend: pre hook 70-fault
crashlend: target LABEL=CRASH is /dev/vdb
crashlend: makedumpfile -l -d 31
crashlend: saved 44487619 bytes
crashlend: done, ok: reboot"""


@pytest.mark.parametrize("name", CAPTURE_FAULTS)
def test_each_fault_has_signs_that_nothing_else_gives(name: str) -> None:
    """What was said under a fault shows that it struck; the same capture without it does not."""
    fault = CAPTURE_FAULTS[name]
    assert struck(fault, f"{UNDISTURBED[:120]}\n{SAID[name]}").ok
    assert fault.shows
    for words in fault.shows:
        assert not re.search(words, UNDISTURBED, re.DOTALL), words
    check = struck(fault, UNDISTURBED)
    assert not check.ok
    assert "not said" in check.detail


def test_one_sign_of_several_is_not_enough() -> None:
    """A makedumpfile that dies of something else than memory is another fault."""
    fault = CAPTURE_FAULTS["dying"]
    without = SAID["dying"].replace("(dd)", "(sh)")
    assert "Killed process" in struck(fault, without).detail
    assert not struck(fault, without).ok


def test_a_hook_that_ended_at_once_did_not_strike() -> None:
    """Not packed, not executable, or ended by itself: the ladder alone would be that of a sound capture."""
    for said in (UNDISTURBED, UNDISTURBED.replace("70-fault", "70-fault ended with 127")):
        assert not struck(CAPTURE_FAULTS["bad-hook"], said).ok


def test_a_machine_that_went_on_did_not_hang() -> None:
    """The last words must be the last."""
    fault = CAPTURE_FAULTS["hang"]
    assert not struck(fault, SAID["hang"] + "\ncrashlend: target LABEL=CRASH is /dev/vdb").ok


def test_a_fault_without_a_sign_is_none() -> None:
    assert not struck(replace(CAPTURE_FAULTS["raw"], shows=()), SAID["raw"]).ok


def test_told_is_console_log_and_reasons(tmp_path: Path) -> None:
    """Each of the three may be the only one that has the words."""
    (tmp_path / "capture.log").write_text("in the log\n")
    capture = {"ladder": [{"reason": "in a rung"}, {}]}
    text = told(["on the console"], Saved(capture, "", None, place=tmp_path))
    assert all(words in text for words in ("on the console", "in the log", "in a rung"))
    assert not told([], Saved({}, "", None)).strip()
