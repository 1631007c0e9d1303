# SPDX-License-Identifier: LGPL-2.1-or-later
"""What came of a trial, and its JSON. Plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from crashlend.lab import late
from crashlend.lab.crashes import find_crash
from crashlend.lab.shape import shape
from crashlend.lab.watch import PRODUCTIONS_OWN, crash_kernel_lines

if TYPE_CHECKING:
    from crashlend.lab.qemu import Report
    from crashlend.lab.spec import Check, Spec


@dataclass(frozen=True)
class Outcome:
    """What came of a trial; ``to_json`` is the contract of ``lab trial --json``."""

    spec: Spec
    report: Report
    plan: dict[str, Any]
    capture: dict[str, Any]
    vmcore_path: str
    checks: tuple[Check, ...]
    kept: str
    death_by_memory: str = ""  # the crash kernel's last words, see checks.death_by_memory
    console: str = ""  # both kernels', for people
    at_entry: dict[str, Any] = field(default_factory=dict)  # what further rooms saw, by their names

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    @property
    def last_words(self) -> str:
        """The console's end from production's panic on, at most 2000 characters of it."""
        crash = find_crash(self.spec.crash)
        own = crash.kind.words if crash else PRODUCTIONS_OWN
        return "\n".join(crash_kernel_lines(self.console + "\n", own) or [])[-2000:]

    def to_json(self) -> dict[str, Any]:
        """The trial's JSON, with at least the design's keys."""
        plan, capture, report = self.plan, self.capture, self.report
        costs = plan.get("costs", {})
        layout = plan.get("layout") or {}
        stored = {s["name"]: s["stored_bytes"] for s in layout.get("segments", [])}
        answer = load_answer(report)
        crash = capture.get("crash_kernel", {})
        seen = report.find("crash_kernel_memory")
        scanned = report.find("scanned")
        found = shape(report)
        return {
            "schema": 1,
            "ok": self.ok,
            "checks": [{"name": c.name, "ok": c.ok, "detail": c.detail} for c in self.checks],
            "kernel": self.spec.kernel.release,
            "arch": "x86_64",
            # as the guest saw them; None where it never reported
            **{
                name: found[name]
                for name in ("firmware", "machine", "nodes", "block_bytes", "secure")
            },
            "memory_bytes": self.spec.memory_bytes + sum(self.spec.dimms),
            "cpus": self.spec.cpus,
            "cpu_model": self.spec.cpu_model,
            "cmdline": self.spec.cmdline,
            "timed_out": report.timed_out,
            "python": report.find("booted").get("python"),
            "accel": self.spec.accel,
            "lender": plan.get("lender"),
            "syscall": plan.get("syscall"),
            "quiesce": plan.get("quiesce"),
            "late": late.result(self.spec, report, capture),
            "parity": {
                kernel: report.find(f"parity_{kernel}") or None
                for kernel in ("production", "crash")
            }
            if self.spec.parity
            else None,
            "reservation": {
                "before_bytes": (costs.get("taken_bytes") or 0) + answer.get("freed_bytes", 0)
                if costs
                else None,
                "after_bytes": costs.get("taken_bytes"),
                "required_bytes": costs.get("required_bytes"),
            },
            "probe": report.find("probed") or None,
            "payload": {
                "kernel_bytes": stored.get("kernel"),
                "initramfs_bytes": stored.get("initramfs"),
            },
            "lent": {
                "bytes": costs.get("shared_bytes"),
                "ranges": plan.get("lent"),
                "parts": (plan.get("offer") or {}).get("parts"),
            },
            "seconds": {
                "boot": report.find("booted").get("at"),
                "lend": answer.get("seconds", {}).get("lend"),
                "load": answer.get("seconds", {}).get("load"),
                "panic_to_crash_kernel": report.between("crashing", "crash_kernel"),
                "panic_to_saved": report.between("crashing", "saved"),
                "total": report.seconds,
            },
            "crash_kernel": {
                "mem_total_bytes": crash.get("mem_total_bytes", seen.get("mem_total")),
                "peak_used_bytes": crash.get("peak_used_bytes"),
                "ram_ranges": crash.get("ram_ranges"),
                "iomem_ranges": seen.get("ram"),
                "death_by_memory": self.death_by_memory or None,
            },
            "crash": self.spec.crash,
            "reason": capture.get("reason"),
            "ladder": capture.get("ladder"),
            "vmcore": {
                "path": self.vmcore_path or None,
                "bytes": capture.get("vmcore", {}).get("bytes"),
                "level": capture.get("dump_level"),
                "pt_loads": scanned.get("pt_loads"),
            },
            "kills": [
                {key: event[key] for key in ("scenario", "points", "kills", "failures", "missed")}
                for event in report.events
                if event.get("event") == "killed"
            ],
            **self.at_entry,
            "kept": self.kept or None,
        }


def load_answer(report: Report) -> dict[str, Any]:
    """What the last ``load`` or ``reload`` in the guest answered; empty when none did."""
    for event in reversed(report.events):
        if event.get("event") == "command" and event["argv"][0] in ("load", "reload"):
            answer = event.get("answer")
            if isinstance(answer, dict) and "plan" in answer:
                return answer
    return {}
