# SPDX-License-Identifier: LGPL-2.1-or-later
"""run_trial without a guest: all that it makes and reads is replaced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from crashlend.lab import trial
from crashlend.lab.kernels import Kernel
from crashlend.lab.qemu import Machine, Report
from crashlend.lab.spec import Saved, Spec

if TYPE_CHECKING:
    from crashlend.lab.outcome import Outcome

KERNEL: Kernel = Kernel.__new__(Kernel)
for _name, _value in (("release", "6.1.0"), ("vmlinuz", Path("/vmlinuz"))):
    object.__setattr__(KERNEL, _name, _value)
SAID = "Kernel panic - not syncing: sysrq triggered crash\ncrashlend: pre hook 70-fault\n"


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> list[Machine]:
    """Each machine that was to run; its crash kernel says SAID and leaves nothing."""
    seen: list[Machine] = []

    def run(machine: Machine, directory: Path, **_more: Any) -> Report:
        seen.append(machine)
        (directory / "console.log").write_text(SAID)
        return Report(events=[{"event": "crashing", "at": 1.0}])

    monkeypatch.setattr(trial, "run_machine", run)
    monkeypatch.setattr(trial, "choose_accel", lambda *_: "kvm")
    monkeypatch.setattr(trial, "build_root", lambda *_: Path("/root.img"))
    monkeypatch.setattr(trial, "build_boot_initramfs", lambda *_, **__: Path("/boot.img"))
    monkeypatch.setattr(trial, "make_lab_disk", lambda _spec, directory, _say: directory / "lab")
    monkeypatch.setattr(trial, "read_saved", lambda *_: Saved({}, "", None))
    return seen


def run(keep: Path, **more: Any) -> Outcome:
    return trial.run_trial(Spec(kernel=KERNEL, **more), keep=keep)


def test_premises_come_first(machines: list[Machine], tmp_path: Path) -> None:
    """why_not_back looks at what stands before the crash kernel's coming up: the premise must."""
    outcome = run(tmp_path, capture_fault="bad-hook", shows=("of the way",))
    names = [check.name for check in outcome.checks]
    assert names[:2] == [trial.CHECK_SHOWS, "the fault struck"]
    assert "crash kernel came up" in names[2:]
    assert not outcome.checks[0].ok
    assert "Killed process" in outcome.checks[1].detail
    assert len(machines) == 1


def test_a_plain_trial_has_none(machines: list[Machine], tmp_path: Path) -> None:
    """Nothing takes part but the guest; its acceleration is that of the outcome, and results are kept."""
    outcome = run(tmp_path, memory_bytes=1 << 30)
    assert outcome.checks[0].name == "crashlend did as asked"
    (machine,) = machines
    assert (machine.accel, outcome.spec.accel) == ("kvm", "kvm")
    assert (machine.memory_bytes, machine.sockets, machine.extra) == (1 << 30, (), ())
    assert [disk.image for disk in machine.disks] == [Path("/root.img"), tmp_path / "lab"]
    assert json.loads((tmp_path / "trial.json").read_text())["accel"] == "kvm"
    assert json.loads((tmp_path / "events.json").read_text()) == outcome.report.events
