# SPDX-License-Identifier: LGPL-2.1-or-later
"""Crashes of real kernels in QEMU: the quick ones of the suite, or all (CRASHLEND_TRIALS=all)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from crashlend.lab.judges.guests import CASES, Case, read_guest
from crashlend.lab.judges.report import verdicts
from crashlend.lab.suite import run_named
from crashlend.lab.suites.table import SUITE

RESULTS = Path(os.environ.get("CRASHLEND_RESULTS", "build/trials"))
ALL = os.environ.get("CRASHLEND_TRIALS") == "all"
CHOSEN = [t.name for t in SUITE if t.quick or ALL]
# one guest, in which nothing crashes, so that a plan which the kernel would not make fails here, too
JUDGED = [case for case in CASES if ALL or case.name == "cma-7.3"]


@pytest.mark.trial
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", CHOSEN)
def test_trial(name: str) -> None:
    """The trial comes out as the suite says; its result is kept as a file."""
    verdict = run_named(name, results=RESULTS, keep=None)
    assert verdict.passed, f"{name}: {verdict.why}\n{last_words(name)}"


@pytest.mark.trial
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", JUDGED, ids=[f"judges-{case.name}" for case in JUDGED])
def test_judges(case: Case) -> None:
    """The kernel and kexec-tools load there what crashlend loads, but for the table's differences."""
    complaints = [c for verdict in verdicts([read_guest(case)]) for c in verdict.complaints()]
    assert complaints == []


def last_words(name: str) -> str:
    """The end of a failed trial's console: who reads a CI log has nothing else of it."""
    path = RESULTS / f"{name}.console.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return "\n".join(["its console ended:", *lines[-25:]])


def test_suite_fits_the_budget() -> None:
    """At most a dozen trials run with the tests."""
    assert sum(t.quick for t in SUITE) <= 12
