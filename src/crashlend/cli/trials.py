# SPDX-License-Identifier: LGPL-2.1-or-later
"""Trials for people: stages as they happen, then what each side had and every check."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from crashlend.cli.output import GREEN, RED, print_rows, progress, styled
from crashlend.sizes import mib

if TYPE_CHECKING:
    from crashlend.lab.outcome import Outcome
    from crashlend.lab.spec import Check


def announce(event: dict[str, Any], who: str = "") -> None:
    """Say a stage of a trial as it happens."""
    from crashlend.lab.trial import STAGES  # the core must import without the lab

    words = STAGES.get(event.get("event", ""))
    if words:
        progress(f"{event['at']:6.1f} s  {who}{words}")


def show_outcome(outcome: Outcome) -> None:
    """The trial for people: what each side had, then every check."""
    result = outcome.to_json()
    crash = result["crash_kernel"]["mem_total_bytes"]
    print_rows(
        [
            ("kernel", f"{result['kernel']}, {mib(result['memory_bytes'])}, {result['cpus']} CPU"),
            ("taken from production", mib(result["reservation"]["before_bytes"] or 0)),
            (
                "shared until the crash",
                f"{mib(result['lent']['bytes'] or 0)}, lender {result['lender']}",
            ),
            (
                "the crash kernel had",
                mib(crash)
                if crash
                else f"unknown: {outcome.death_by_memory or 'it did not live to tell'}",
            ),
        ]
    )
    for check in outcome.checks:
        show_check(check)
    sys.stdout.flush()


def show_check(check: Check) -> None:
    """One check on one line."""
    mark = styled("ok    ", GREEN) if check.ok else styled("FAILED", RED)
    print(f"  {mark} {check.name}: {check.detail}")
