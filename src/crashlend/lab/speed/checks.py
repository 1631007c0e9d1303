# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a trial of speed must have shown. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crashlend.lab.spec import Check

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crashlend.lab.qemu import Report
    from crashlend.lab.spec import Spec

CHECK_THREADS = "makedumpfile wrote with as many threads as it should"
CHECK_AGAIN = "it wrote the dump again in each way"


def check_speed(spec: Spec, report: Report, capture: Mapping[str, Any]) -> list[Check]:
    """Nothing, where the trial is not about speed."""
    checks = []
    if spec.threads is not None:
        words = (capture.get("makedumpfile") or {}).get("args", [])
        cpus = (capture.get("crash_kernel") or {}).get("cpus")
        found = threads_of(words)
        detail = f"{found} of {spec.threads} threads, {cpus} CPUs: {' '.join(words)}"
        checks.append(Check(CHECK_THREADS, found == spec.threads, detail))
    if spec.speed:
        runs = [event for event in report.events if event.get("event") == "speed"]
        bad = [f"{r['flag']} {r['threads']}: {r['exit']}" for r in runs if not worked(r)]
        detail = f"{len(runs)} runs" + (f", without a dump: {', '.join(bad)}" if bad else "")
        lzo = [r for r in runs if r["flag"] == "-l" and worked(r)]
        checks.append(Check(CHECK_AGAIN, bool(lzo), detail))
    return checks


def worked(run: Mapping[str, Any]) -> bool:
    """Whether this run made a dump with the compression that it was told."""
    return bool(run["exit"] == "0" and run["pages"] > 0)


def threads_of(words: list[str]) -> int:
    """How many threads these words of makedumpfile ask for."""
    if "--num-threads" not in words[:-1]:
        return 0
    return int(words[words.index("--num-threads") + 1])
