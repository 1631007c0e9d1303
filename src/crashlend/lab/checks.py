# SPDX-License-Identifier: LGPL-2.1-or-later
"""What must hold after a trial. Each check states a fact that could be false."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crashlend.ranges import Ranges
from crashlend.sizes import mib

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crashlend.lab.qemu import Report
    from crashlend.lab.spec import Saved, Spec

PAGE = 4096
MIB = 1 << 20
KERNEL_TEXT = 0xFFFFFFFF80000000
# How much of lent memory user space must have filled for the pattern to prove anything.
FILLED_SHARE = 0.75


@dataclass(frozen=True)
class Check:
    """One fact, whether it held, and the figures behind it."""

    name: str
    ok: bool
    detail: str


def run_checks(spec: Spec, report: Report, plan: dict[str, Any], saved: Saved) -> list[Check]:
    """All checks that apply, in the order in which things happened."""
    if spec.crash == "none":
        return [_commands(report)]
    return [*_checks(spec, report, plan, saved)]


def _checks(spec: Spec, report: Report, plan: dict[str, Any], saved: Saved) -> Iterator[Check]:
    yield _commands(report)
    lent = Ranges(tuple(r) for r in plan.get("lent", []))
    yield from _given_back(report)
    yield from _on_cpu(spec, saved)
    yield Check(
        "crash kernel came up",
        bool(report.find("crash_kernel")),
        f"{report.between('crashing', 'crash_kernel')} s after the panic"
        if report.find("crash_kernel")
        else "its init never ran" + (" (deadline)" if report.timed_out else ""),
    )
    yield _ram_as_planned(plan, saved)
    yield _dump_saved(saved, report)
    yield _dump_opens(saved)
    scanned = report.find("scanned")
    loads = [h for h in scanned.get("pt_loads", []) if h[2] < KERNEL_TEXT]
    core = Ranges((start, end) for start, end, _ in loads)
    if lent or not scanned:
        yield Check(
            "no PT_LOAD meets lent memory",
            bool(scanned) and not core.meets(lent),
            f"{mib((core & lent).size)} of {mib(lent.size)} are in /proc/vmcore"
            if scanned
            else "/proc/vmcore was not examined",
        )
    yield _all_covered(plan, core, lent, scanned)
    if spec.poison:
        yield from _poison(report, lent, scanned)


def _commands(report: Report) -> Check:
    commands = [e for e in report.events if e.get("event") == "command"]
    bad = [c for c in commands if c["exit"] != c["expected"]]
    if bad:
        words = bad[0]["stderr"].strip()[-300:]
        detail = f"exit {bad[0]['exit']}, not {bad[0]['expected']}: {words}"
        return Check("crashlend did as asked", False, detail)
    if not commands:
        return Check("crashlend did as asked", False, "the guest never got that far")
    return Check(
        "crashlend did as asked",
        True,
        ", ".join(
            f"{c['argv'][0]} in {c['seconds']} s"
            + (f" (exit {c['exit']}, as it must)" if c["exit"] else "")
            for c in commands
        ),
    )


def _given_back(report: Report) -> Iterator[Check]:
    """After ``unload`` production has every block as before, and all of its memory."""
    before = report.find("booted")
    for event in report.events:
        if event.get("event") == "command" and event["argv"][0] == "unload":
            same = event["blocks"].get("Movable", 0) == before["blocks"].get("Movable", 0)
            whole = "offline" not in event["blocks"] and event["mem_total"] >= before["mem_total"]
            yield Check(
                "unload gave all memory back",
                same and whole,
                f"blocks {event['blocks']}, before {before['blocks']}; "
                f"MemTotal {mib(event['mem_total'])}, before {mib(before['mem_total'])}",
            )


def _on_cpu(spec: Spec, saved: Saved) -> Iterator[Check]:
    """The CPU that was told to crash is the one that did, as its own backtrace says."""
    if not spec.crash.startswith("sysrq-cpu"):
        return
    cpu = spec.crash[len("sysrq-cpu") :]
    yield Check(
        f"CPU {cpu} panicked",
        bool(re.search(rf"CPU: {cpu} (UID: \d+ )?PID:", saved.dmesg)),
        next((line for line in saved.dmesg.splitlines() if " PID: " in line), "no backtrace")[-90:],
    )


def _ram_as_planned(plan: dict[str, Any], saved: Saved) -> Check:
    """The crash kernel's own e820 against the plan's map, to the byte."""
    name = "crash kernel's RAM is as planned"
    found = Ranges(tuple(r) for r in saved.capture.get("crash_kernel", {}).get("ram_ranges", []))
    if not found:
        return Check(name, False, "the capture reported no memory map")
    layout = plan.get("layout")
    if layout is None:
        # kexec_file_load: the kernel made the map; lent memory must be in it, nothing foreign
        lent = Ranges(tuple(r) for r in plan.get("lent", []))
        allowed = lent | Ranges(tuple(r) for r in plan["reservation"]) | Ranges([(0, MIB)])
        return Check(
            name,
            found.covers(lent) and allowed.covers(found),
            f"{mib(found.size)}, of them {mib((found & lent).size)} of {mib(lent.size)} lent",
        )
    planned = Ranges(
        (e["start"], e["end"]) for e in layout["memory_map"] if e["kind"] == "System RAM"
    )
    odd = (found - planned) | (planned - found)
    return Check(
        name, not odd, f"{mib(found.size)} in {len(found)} ranges" if not odd else repr(odd)
    )


def _dump_saved(saved: Saved, report: Report) -> Check:
    """A final name, and what the capture says of itself."""
    capture = saved.capture
    good = bool(saved.vmcore) and capture.get("ok") is True
    if good and saved.vmcore:
        size = saved.vmcore.stat().st_size
        seconds = report.between("crashing", "saved")
        return Check("dump saved", True, f"{mib(size)} in {seconds} s from the panic")
    return Check("dump saved", False, capture.get("reason") or "nothing was left on the disk")


def _dump_opens(saved: Saved) -> Check:
    """Makedumpfile, which did not write this file here, finds the panic in the dump's own log."""
    name = "dump opens and its log ends in the panic"
    if saved.vmcore is None:
        return Check(name, False, "there is no dump")
    tool = shutil.which("makedumpfile")
    if tool is None:
        return Check(name, False, "makedumpfile is not installed here")
    with tempfile.TemporaryDirectory(prefix="crashlend-") as directory:
        out = Path(directory) / "dmesg"
        done = subprocess.run(
            [tool, "--dump-dmesg", str(saved.vmcore), str(out)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0 or not out.exists():
            return Check(
                name, False, f"makedumpfile: {(done.stderr or done.stdout).strip()[-200:]}"
            )
        tail = out.read_text(errors="replace").splitlines()[-60:]
    panic = [
        line
        for line in tail
        if re.search(r"Kernel panic - not syncing|sysrq: Trigger a crash", line)
    ]
    return Check(name, bool(panic), panic[-1].strip() if panic else "no panic in its last 60 lines")


def _all_covered(
    plan: dict[str, Any], core: Ranges, lent: Ranges, scanned: dict[str, Any]
) -> Check:
    """All System RAM but the first MiB, the reservation and lent memory is in /proc/vmcore."""
    name = "all other System RAM is in /proc/vmcore"
    if not scanned:
        return Check(name, False, "/proc/vmcore was not examined")
    ram = Ranges(tuple(r) for r in plan.get("system_ram", []))
    reservation = Ranges(tuple(r) for r in plan.get("reservation", []))
    expected = (ram - Ranges([(0, MIB)]) - reservation - lent).align_inwards(PAGE)
    missing = expected - core
    return Check(
        name,
        bool(expected) and not missing,
        f"{mib(expected.size)} expected, {mib(missing.size)} missing",
    )


def _poison(report: Report, lent: Ranges, scanned: dict[str, Any]) -> Iterator[Check]:
    """Production's pattern from lent memory is nowhere, the one from elsewhere is all there."""
    filled = report.find("poisoned")
    inside, outside = filled.get("in_lent_pages", 0), filled.get("elsewhere_pages", 0)
    if lent:
        share = inside * PAGE / lent.size
        yield Check(
            "production used lent memory until the crash",
            share >= FILLED_SHARE,
            f"{mib(inside * PAGE)} of {mib(lent.size)} held production's data ({share:.0%})",
        )
        yield Check(
            "nothing of lent memory is in /proc/vmcore",
            bool(scanned) and scanned["in_lent_pages"] == 0,
            f"{scanned.get('in_lent_pages', 'unknown')} of {inside} marked pages found",
        )
    yield Check(
        "everything else is in /proc/vmcore",
        bool(scanned) and outside > 0 and scanned["elsewhere_pages"] == outside,
        f"{scanned.get('elsewhere_pages', 'unknown')} of {outside} marked pages found",
    )
