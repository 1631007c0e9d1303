# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs one of suites/system.py and judges what came out."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from crashlend.lab.checks import death_by_memory
from crashlend.lab.guest import userland_suite
from crashlend.lab.kernels import fetch
from crashlend.lab.packages import silent
from crashlend.lab.qemu import LostVmError
from crashlend.lab.spec import LOST, Check
from crashlend.lab.system import utils
from crashlend.lab.system.trial import (
    SystemOutcome,
    SystemSpec,
    check_lending,
    check_reload,
    check_saved,
    check_service,
    run_system,
)
from crashlend.lab.watch import PRODUCTIONS_OWN

if TYPE_CHECKING:
    from pathlib import Path

    from crashlend.lab.packages import Say
    from crashlend.lab.suites.system import SystemTrial


# what kexec-tools' kexec (2.0.25) says where the reservation is too small [kexec/kexec.c, locate_hole()]
NO_ROOM = ("Could not find a free area of memory", "locate_hole failed")


def run_system_trial(
    trial: SystemTrial,
    *,
    clone: Path | None = None,
    keep: Path | None = None,
    say: Say = silent,
) -> dict[str, Any]:
    """One trial's verdict as it is kept. A lost virtual machine is tried once more.

    ``clone``: a working tree of kdump-utils, for a trial of it.
    """
    spec = SystemSpec(kernel=fetch(trial.kernel, say), **trial.spec)
    if clone is not None:
        files = utils.files_of(clone, userland_suite(spec.kernel), say)
        spec = replace(spec, files=files, more=utils.STEPS)
    try:
        outcome = run_system(spec, keep=keep, say=say)
    except LostVmError as error:
        say(f"{trial.name}: {error}; once more")
        outcome = run_system(spec, keep=keep, say=say)
    if spec.settings is None:
        checks = check_saved(outcome)
    elif trial.utils:
        checks = utils.check_steps(outcome.told, outcome.console)
        checks += [*check_lending(outcome, trial.most_bytes), *check_saved(outcome)]
    else:
        checks = [check_service(outcome), check_reload(outcome)]
        checks += [*check_lending(outcome, trial.most_bytes), *check_saved(outcome)]
    why = judge(trial, outcome, checks)
    return {
        "schema": 1,
        "name": trial.name,
        "proves": trial.proves,
        "passed": not why,
        "why": why,
        "checks": [asdict(check) for check in checks],
        **({"steps": utils.steps(outcome.told)} if trial.utils else {}),
        "trial": outcome.to_json(),
    }


def judge(trial: SystemTrial, outcome: SystemOutcome, checks: list[Check]) -> str:
    """What is wrong with the outcome; empty when it is as it must be."""
    if trial.expect == LOST:
        return why_not_lost(outcome)
    return "; ".join(f"{check.name}: {check.detail}" for check in checks if not check.ok)


def why_not_lost(outcome: SystemOutcome) -> str:
    """Why a control is none.

    A missing dump proves nothing where production never crashed. kexec must have refused the
    reservation, or the crash kernel that it loaded must have died for lack of memory: a panic for it, or
    silence behind words that tell of it.
    """
    if "panic" not in outcome.stamps:
        return "the control never got as far as the crash"
    if outcome.dump is not None or "saved" in outcome.stamps:
        return f"the control saved its dump: {outcome.kept}"
    if outcome.number("loaded") != 1:
        words = outcome.told.get("journal", "")
        # a missing file, a wrong word: kexec fails of those, too
        if "failed to load kdump kernel" in words and any(told in words for told in NO_ROOM):
            return ""
        return f"kexec does not say that it has no room: {words[-300:]}"
    late = outcome.report.lost or ("the deadline passed" if outcome.report.timed_out else "")
    if death_by_memory(outcome.console, late, PRODUCTIONS_OWN):
        return ""
    return "nothing on the control's console says that its crash kernel ran out of memory"
