# SPDX-License-Identifier: LGPL-2.1-or-later
"""The project's own trials by name: runs one of suites/table.py and judges what came out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from crashlend.errors import UsageError
from crashlend.lab.fault_checks import why_not_back
from crashlend.lab.kernels import fetch
from crashlend.lab.late import CHECK_IN_FLIGHT, CHECK_NOTHING_CAME, seen_pages
from crashlend.lab.outcome import Outcome
from crashlend.lab.packages import Say, silent
from crashlend.lab.qemu import LostVmError
from crashlend.lab.spec import CAME_BACK, CORRUPTED, LOST, REFUSED, Spec, Trial
from crashlend.lab.suites.table import SUITE
from crashlend.lab.trial import run_trial

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Verdict:
    """Whether a trial came out as it must, and if not why. ``result`` is its JSON."""

    name: str
    passed: bool
    why: str
    result: dict[str, Any]


def find(name: str) -> Trial:
    """The trial of that name; UsageError when there is none."""
    for trial in SUITE:
        if trial.name == name:
            return trial
    raise UsageError(
        f"no trial {name!r}", "not in the suite", hint=", ".join(t.name for t in SUITE)
    )


def run_named(
    name: str, *, results: Path | None = None, keep: Path | None = None, say: Say = silent
) -> Verdict:
    """Run one trial and judge it; write ``results``/NAME.json where that is given.

    A lost virtual machine is tried once more: it says nothing about the product.
    """
    trial = find(name)
    spec = Spec(kernel=fetch(trial.kernel, say), **trial.spec)
    try:
        outcome = run_trial(spec, keep=keep, say=say)
    except LostVmError as error:
        say(f"{name}: {error}; once more")
        outcome = run_trial(spec, keep=keep, say=say)
    why = judge(trial, outcome)
    verdict = Verdict(name, not why, why, outcome.to_json())
    if results is not None:
        results.mkdir(parents=True, exist_ok=True)
        body = {"schema": 1, "name": name, "proves": trial.proves, "passed": verdict.passed}
        # a result is kept and cited; where its files lay is nobody's business elsewhere
        trial_json = {**verdict.result, "kept": None}
        trial_json["vmcore"] = {**trial_json["vmcore"], "path": None}
        text = json.dumps({**body, "why": why, "trial": trial_json}, indent=1)
        (results / f"{name}.json").write_text(text + "\n")
        if why:
            (results / f"{name}.console.txt").write_text(outcome.console)
    return verdict


def judge(trial: Trial, outcome: Outcome) -> str:
    """What is wrong with the outcome; empty when it is as it must be."""
    if trial.expect == REFUSED:
        return _why_not_refused(trial, outcome)
    used = (outcome.plan.get("lender"), outcome.plan.get("syscall"))
    if outcome.plan and used != (trial.lender, trial.syscall):
        return "lender {}, syscall {}".format(*used) + f", not {trial.lender}, {trial.syscall}"
    if trial.expect == LOST:
        return why_not_lost(outcome)
    if trial.expect == CAME_BACK:
        return why_not_back(outcome, trial.words)
    if trial.expect == CORRUPTED:
        return why_not_corrupted(outcome)
    failed = [f"{c.name}: {c.detail}" for c in outcome.checks if not c.ok]
    if failed:
        return "; ".join(failed)
    ranges = len(outcome.plan.get("lent", []))
    if ranges < trial.least_lent_ranges:
        return f"only {ranges} lent ranges, not {trial.least_lent_ranges}"
    return ""


def why_not_lost(outcome: Outcome) -> str:
    """Why a control is none; empty when its crash kernel died for lack of memory.

    A missing dump alone proves nothing: production may never have crashed, the deadline may have
    run out, the crash kernel may have died of something else or never have been started.
    """
    checks = {c.name: c for c in outcome.checks}
    for name in ("crashlend did as asked", "nothing is lent"):
        if name not in checks:
            return f"the control is none: not checked: {name}"
        if not checks[name].ok:
            return f"the control is none: {name}: {checks[name].detail}"
    if not outcome.report.find("crashing"):
        return "the control never got as far as the crash"
    if outcome.report.timed_out and not outcome.death_by_memory:
        return "the control ran into its deadline"
    survived = [n for n in ("crash kernel came up", "dump saved") if checks[n].ok]
    if survived:
        return f"the control did not lose its dump: {survived}"
    if not outcome.death_by_memory:
        return "nothing on the control's console says that its crash kernel ran out of memory"
    return ""


def why_not_corrupted(outcome: Outcome) -> str:
    """Why a control of late DMA is none; empty when it was under way and has been seen to arrive.

    Whatever else goes wrong in such a trial may be the corruption's own doing.
    """
    checks = {c.name: c for c in outcome.checks}
    for name in ("crashlend did as asked", "as much is lent as was asked for", CHECK_IN_FLIGHT):
        if name not in checks or not checks[name].ok:
            detail = checks[name].detail if name in checks else "not checked"
            return f"the control is none: {name}: {detail}"
    if not seen_pages(outcome.spec.late, outcome.report):
        return f"the control saw no late write: {checks[CHECK_NOTHING_CAME].detail}"
    return ""


def _why_not_refused(trial: Trial, outcome: Outcome) -> str:
    commands = [e for e in outcome.report.events if e.get("event") == "command"]
    if not commands:
        return "not refused: the guest never got that far"
    last = commands[-1]
    if last["exit"] != trial.exit:
        return f"exit {last['exit']}, not {trial.exit}: {last['stderr'].strip()[-300:]}"
    if trial.words not in last["stderr"]:
        return f"refused in other words: {last['stderr'].strip()[-300:]}"
    return ""
