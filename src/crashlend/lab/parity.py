# SPDX-License-Identifier: LGPL-2.1-or-later
"""Parity: what the crash kernel has of its machine, against what production has (hazards 20 and 21).

guestfiles/parity.py looks in both kernels. That EFI's variables work is judged outside, too: what
the crash kernel wrote must be in the guest's flash.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from crashlend.lab.crashes import find_crash
from crashlend.lab.firmware import VARIABLES
from crashlend.lab.spec import Check, Command

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from crashlend.lab.qemu import Report
    from crashlend.lab.spec import Spec

LOOK = Command(("/lab/parity.py", "production"), program="python3")
WRITTEN = "written by crash"
# OVMF's last word to the machine where a warm reset is asked for: the keyboard controller's reset
WARM_RESET = ("-trace", "pckbd_kbd_write_command")
RESET_WORDS = re.compile(r"pckbd_kbd_write_command\D*0xfe\b")


def check_parity(spec: Spec, report: Report, plan: dict[str, Any], directory: Path) -> list[Check]:
    """All that applies; ``directory`` has the guest's flash and QEMU's messages."""
    ours, theirs = report.find("parity_production"), report.find("parity_crash")
    if not ours or not theirs:
        silent = "production" if not ours else "the crash kernel"
        return [Check("both kernels told what they have", False, f"{silent} did not")]
    checks = [
        Check(
            "the crash kernel has production's DMI data",
            theirs["dmi"] == ours["dmi"] and not ours["dmi"]["sys_vendor"].startswith("("),
            f"{theirs['dmi']}, production's {ours['dmi']}",
        ),
        Check(
            "the machine left by itself",
            not report.timed_out and not report.lost,
            f"after {report.seconds} s, reboot type {theirs['reboot_type']}",
        ),
        _cpus(spec, ours, theirs, plan),
    ]
    if spec.firmware == "uefi":
        checks += _efi(ours, theirs, directory)
    if WARM_RESET[1] in spec.devices:
        checks.append(_reset_by_efi(theirs, directory))
    return checks


def _cpus(spec: Spec, ours: dict[str, Any], theirs: dict[str, Any], plan: dict[str, Any]) -> Check:
    """As many as were asked for and are there, less the one that firmware booted.

    Unless that one is the CPU that crashed, and runs the crash kernel.
    """
    line = (plan.get("cmdline") or {}).get("line", "")
    asked = re.findall(r"(?:^|\s)nr_cpus=([0-9]+)", line)
    crash = find_crash(spec.crash)
    on_first = crash is None or not crash.cpu
    usable = ours["cpus_online"] - (0 if on_first else 1)
    wanted = min(int(asked[-1]) if asked else 1, usable)
    return Check(
        "the crash kernel has its CPUs",
        bool(asked) and theirs["cpus_online"] == wanted,
        f"{theirs['cpus_online']} online of {wanted} wanted, {spec.crash}",
    )


def _efi(ours: dict[str, Any], theirs: dict[str, Any], directory: Path) -> Iterator[Check]:
    """Runtime services work in the crash kernel: variables are read and written."""
    yield Check(
        "EFI's runtime regions are handed on",
        theirs["runtime_regions"] == ours["runtime_regions"] > 0,
        f"{theirs['runtime_regions']} of {ours['runtime_regions']}",
    )
    had, has = ours["variables"] or {}, theirs["variables"] or {}
    yield Check(
        "the crash kernel reads production's EFI variables",
        has.get("productions") == "written by production" and has["count"] >= had.get("count", 0),
        f"{has or 'none'}; production had {had or 'none'}",
    )
    flash = (directory / VARIABLES).read_bytes() if (directory / VARIABLES).is_file() else b""
    name = "CrashlendCrash".encode("utf-16-le")
    yield Check(
        "what it writes to EFI variables is in flash",
        has.get("own") == WRITTEN and name in flash and WRITTEN.encode() in flash,
        f"read back {has.get('own')!r}; its name is{'' if name in flash else ' not'} in flash",
    )


def _reset_by_efi(theirs: dict[str, Any], directory: Path) -> Check:
    """The reset came from firmware: no other way of resetting writes this to this port.

    Holds with reboot=efi,warm alone: the kernel itself then has only the processor's reset left.
    """
    told = (directory / "qemu.log").read_text(errors="replace")
    found = RESET_WORDS.search(told)
    return Check(
        "the crash kernel resets the machine by EFI",
        theirs["reboot_type"] == "efi" and found is not None,
        found.group() if found else f"reboot type {theirs['reboot_type']}, no such write",
    )
