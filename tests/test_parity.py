# SPDX-License-Identifier: LGPL-2.1-or-later
"""The checks of the parity trials hold for a crash kernel that has all, and fail for each lack."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

import pytest

from crashlend.lab.kernels import Kernel
from crashlend.lab.parity import WARM_RESET, check_parity
from crashlend.lab.qemu import Report
from crashlend.lab.spec import Spec

KERNEL = Kernel("6.1", "6.1.0", "bookworm", Path("vmlinuz"), Path("modules"), None)
PRODUCTION: dict[str, Any] = {
    "event": "parity_production",
    "efi": True,
    "variables": {"problem": "", "count": 26, "productions": "", "own": "written by production"},
    "runtime_regions": 6,
    "dmi": {"sys_vendor": "QEMU", "product_name": "Standard PC"},
    "reboot_type": "acpi",
    "cpus_online": 4,
}
CRASH: dict[str, Any] = {
    **PRODUCTION,
    "event": "parity_crash",
    "variables": {
        "problem": "",
        "count": 27,
        "productions": "written by production",
        "own": "written by crash",
    },
    "reboot_type": "efi",
    "cpus_online": 3,
}
PLAN = {"cmdline": {"line": "console=ttyS0 nr_cpus=4 disable_cpu_apicid=0"}}
FLASH = b"\xff" * 9 + "CrashlendCrash".encode("utf-16-le") + b"\0\0written by crash\xff"
RESET = b"pckbd_kbd_write_command 0x60\npckbd_kbd_write_command 0xfe\n"


@dataclass
class Case:
    """One guest: what both kernels told, its flash, what QEMU said."""

    ours: dict[str, Any] = field(default_factory=lambda: copy.deepcopy(PRODUCTION))
    theirs: dict[str, Any] = field(default_factory=lambda: copy.deepcopy(CRASH))
    flash: bytes = FLASH
    told: bytes = RESET
    report: Report = field(default_factory=Report)
    spec: dict[str, Any] = field(default_factory=dict)

    def failed(self, directory: Path) -> set[str]:
        """The names of the checks that do not hold."""
        (directory / "efi-variables.fd").write_bytes(self.flash)
        (directory / "qemu.log").write_bytes(self.told)
        self.report.events += [event for event in (self.ours, self.theirs) if event]
        words = {"firmware": "uefi", "devices": WARM_RESET, "crash": "sysrq-cpu3", **self.spec}
        spec = Spec(kernel=KERNEL, cpus=4, parity=True, **words)
        checks = check_parity(spec, self.report, PLAN, directory)
        return {check.name for check in checks if not check.ok}


def test_all_is_well(tmp_path: Path) -> None:
    """Three CPUs of four: the one that firmware booted is spared when another one crashed."""
    assert Case().failed(tmp_path) == set()


def test_the_cpu_that_firmware_booted_is_started_where_it_crashed(tmp_path: Path) -> None:
    """Then the crash kernel runs on it, and starts all the others."""
    case = Case(spec={"crash": "sysrq-cpu0"})
    case.theirs["cpus_online"] = 4
    assert case.failed(tmp_path) == set()


def no_event(case: Case) -> None:
    case.theirs = {}


def set_in(path: str, value: Any) -> Callable[[Case], None]:
    def change(case: Case) -> None:
        where: Any = case.theirs
        *steps, last = path.split(".")
        for step in steps:
            where = where[step]
        where[last] = value

    return change


def cut_flash(case: Case) -> None:
    case.flash = b"\xff" * 100


def other_reset(case: Case) -> None:
    case.told = b"pckbd_kbd_write_command 0x60\n"


def no_dmi_at_all(case: Case) -> None:
    for told in (case.ours, case.theirs):
        told["dmi"] = {"sys_vendor": "(No such file or directory)"}


def ran_out(case: Case) -> None:
    case.report.timed_out = True


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (no_event, "both kernels told what they have"),
        (set_in("cpus_online", 1), "the crash kernel has its CPUs"),
        (set_in("cpus_online", 4), "the crash kernel has its CPUs"),
        (
            set_in("dmi.sys_vendor", "(No such file or directory)"),
            "the crash kernel has production",
        ),
        (no_dmi_at_all, "the crash kernel has production"),
        (set_in("runtime_regions", 0), "EFI's runtime regions are handed on"),
        (set_in("variables", None), "the crash kernel reads production's EFI variables"),
        (set_in("variables.productions", ""), "the crash kernel reads production's EFI variables"),
        (set_in("variables.own", ""), "what it writes to EFI variables is in flash"),
        (cut_flash, "what it writes to EFI variables is in flash"),
        (other_reset, "the crash kernel resets the machine by EFI"),
        (set_in("reboot_type", "acpi"), "the crash kernel resets the machine by EFI"),
        (ran_out, "the machine left by itself"),
    ],
)
def test_each_lack_is_found(change: Callable[[Case], None], name: str, tmp_path: Path) -> None:
    case = Case()
    change(case)
    assert any(failed.startswith(name) for failed in case.failed(tmp_path))
