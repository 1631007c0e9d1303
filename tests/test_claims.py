# SPDX-License-Identifier: LGPL-2.1-or-later
"""The README's table of claims: every row names a module that exists and a trial that passes."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from crashlend.lab.suites.table import SUITE

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(os.environ.get("CRASHLEND_RESULTS", ROOT / "build/trials"))
SERIES_PATCHES = 4


def rows() -> list[list[str]]:
    """The cells of the table below the heading "What the series promises"."""
    text = (ROOT / "README.md").read_text()
    section = text.split("## What the series promises", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def proofs(cell: str) -> list[str]:
    """What a row's last cell names: trials, or tests as FILE::NAME."""
    return re.findall(r"`([^`]+)`", cell)


def test_there_is_a_row_for_each_patch() -> None:
    """The four patches of the series each have their row."""
    assert sum(row[0].startswith("patch") for row in rows()) == SERIES_PATCHES


@pytest.mark.parametrize("row", rows(), ids=lambda row: str(row[0])[:40])
def test_row_names_what_exists(row: list[str]) -> None:
    """Modules, trials and tests that a row names are in the tree."""
    _, how, proof = row
    for module in re.findall(r"`([a-z_0-9/]+\.(?:py|sh|S))`", how):
        assert (ROOT / "src/crashlend" / module).is_file(), module
    names = {trial.name for trial in SUITE if trial.quick}
    assert proofs(proof), "a claim without a proof"
    for name in proofs(proof):
        if "::" in name:
            file, test = name.split("::")
            assert f"def {test}(" in (ROOT / "tests" / file).read_text(), name
        else:
            assert name in names, name


@pytest.mark.claims
@pytest.mark.parametrize("row", rows(), ids=lambda row: str(row[0])[:40])
def test_row_is_proven(row: list[str]) -> None:
    """The trials that a row names have passed in this very run."""
    for name in proofs(row[2]):
        if "::" not in name:
            result = RESULTS / f"{name}.json"
            assert result.is_file(), f"{name} has not run: make test runs it"
            assert json.loads(result.read_text())["passed"], name
