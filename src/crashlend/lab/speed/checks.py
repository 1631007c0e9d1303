# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a trial of speed must have shown. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crashlend.lab.spec import Check

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from crashlend.lab.qemu import Report
    from crashlend.lab.spec import Spec

CHECK_THREADS = "makedumpfile wrote with as many threads as it should"
CHECK_AGAIN = "it wrote the same dump again in each way"
FLAGS, DISABLED = ("-l", "-z", "-c"), "disabled"
ALWAYS = ("-l", "-c")  # what each distribution's makedumpfile can


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
        wrong = what_is_wrong(runs, (capture.get("makedumpfile") or {}).get("args", []))
        detail = f"{len(runs)} runs" + (f"; {'; '.join(wrong)}" if wrong else "")
        checks.append(Check(CHECK_AGAIN, not wrong, detail))
    return checks


def what_is_wrong(runs: Sequence[Mapping[str, Any]], used: Sequence[str]) -> list[str]:
    """Each compression that is built in, with each number of threads, must have written as many pages.

    The numbers are those of speed-hook, by the CPUs. Built in are ALWAYS, what the capture itself has
    ``used`` for its dump, and what no run of calls disabled.
    """
    wrong = []
    for flag in FLAGS:
        own = {r["threads"]: r for r in runs if r["flag"] == flag}
        may_lack = flag not in ALWAYS and flag not in used
        if may_lack and own and all(r["exit"] == DISABLED for r in own.values()):
            continue
        cpus = next((r["cpus"] for r in own.values()), 0)
        missing = {0, 2, cpus - 1, cpus} - own.keys() if own else {0}
        wrong += [f"no run of {flag} {threads}" for threads in sorted(missing)]
        wrong += [f"{flag} {n}: exit {r['exit']}" for n, r in own.items() if not worked(r)]
    pages = {r["pages"] for r in runs if worked(r)}
    return [*wrong, f"not the same pages: {sorted(pages)}"] if len(pages) > 1 else wrong


def worked(run: Mapping[str, Any]) -> bool:
    """Whether this run made a dump with the compression that it was told."""
    return bool(run["exit"] == "0" and run["pages"] > 0)


def threads_of(words: list[str]) -> int:
    """How many threads these words of makedumpfile ask for."""
    if "--num-threads" not in words[:-1]:
        return 0
    return int(words[words.index("--num-threads") + 1])
