# SPDX-License-Identifier: LGPL-2.1-or-later
"""Documents say what the code says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from crashlend import config
from crashlend.cli.main import VERBS
from crashlend.lab import fault_table, faults
from crashlend.lab.suites.faults import FAULTS
from crashlend.lab.suites.system import SYSTEM
from crashlend.lab.suites.table import SUITE
from crashlend.lenders.census import KINDS, NO_FLAGS

ROOT = Path(__file__).resolve().parent.parent
OWN_FORM = (
    "agree",
    "bench",
    "capture-bench",
    "judges",
    "matrix",
    "soak",
    "soak-explained",
    "initramfs-sizes",
)  # results that are no single trial's


def test_settings_are_documented() -> None:
    """docs/settings.md is what `make docs` writes."""
    written = (ROOT / "docs/settings.md").read_text()
    assert written.endswith(config.settings_markdown())


def test_the_census_is_documented() -> None:
    """docs/census.md is what `make docs` writes of the tables that decide."""
    made = subprocess.run(
        [sys.executable, str(ROOT / "tools/census_doc.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert (ROOT / "docs/census.md").read_text() == made.stdout
    for kind in (*KINDS, NO_FLAGS):
        assert kind.verdict in made.stdout


def test_what_can_go_wrong_is_the_table() -> None:
    """docs/what-can-go-wrong.md is what `make docs` writes."""
    assert (ROOT / "docs/what-can-go-wrong.md").read_text() == faults.page()


def test_what_shows_a_fault_exists() -> None:
    """Each trial that the table of faults names is in the suite, each test in its file."""
    trials = {trial.name for trial in SUITE}
    absent = []
    for proof in faults.proofs():
        file, is_test, name = proof.partition("::")
        if is_test:
            path = ROOT / "tests" / file
            there = path.is_file() and f"def {name}(" in path.read_text()
        else:
            there = proof in trials
        absent += [] if there else [proof]
    assert absent == []


def test_each_fault_is_shown_or_said_not_to_be() -> None:
    """No row is without a proof, and none is there twice."""
    rows = [fault for section in fault_table.SECTIONS for fault in section.faults]
    assert [fault.what for fault in rows if not fault.shown or not fault.then] == []
    assert len({fault.what for fault in rows}) == len(rows)


def test_each_trial_of_a_fault_is_in_the_table() -> None:
    """A trial of suites/faults.py that no row names proves nothing to anybody."""
    named = set(faults.proofs())
    assert [trial.name for trial in FAULTS if trial.name not in named] == []


def test_late_dma_is_what_kept_results_say() -> None:
    """docs/late-dma.md is what `make docs` writes, and has a row for every kept result."""
    words = [sys.executable, "tools/late_table.py", "docs/results"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, check=True, text=True)
    assert (ROOT / "docs/late-dma.md").read_text() == done.stdout
    kept = {path.stem for path in (ROOT / "docs/results").glob("late-*.json")}
    assert kept
    assert kept == set(re.findall(r"^\| \[(late-[^\]]+)\]", done.stdout, re.M))


def test_every_verb_is_in_the_changelog_or_the_readme() -> None:
    """No verb is without a word for users."""
    text = (ROOT / "README.md").read_text() + (ROOT / "CHANGELOG.md").read_text()
    assert [verb for verb in VERBS if not re.search(rf"\b{verb}\b", text)] == []


def test_the_proof_is_what_the_results_say() -> None:
    """docs/proof.md is what `make proof` writes from the kept results, and they are not none."""
    words = [sys.executable, str(ROOT / "tools/proof_page.py"), str(ROOT / "docs/results")]
    page = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert (ROOT / "docs/proof.md").read_text() == page
    assert page.count("](results/bytes-") > 2
    assert page.count("](results/flips-") > 1


def tracked() -> list[Path]:
    """The files of the repository; skips where there is no git."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.decode().split("\0") if name]


def test_every_source_file_names_its_licence() -> None:
    """Each source file carries its SPDX line near the top."""
    bare = [
        str(path.relative_to(ROOT))
        for path in tracked()
        if path.suffix in (".py", ".sh", ".S", ".toml") and path.is_file()
        if "SPDX-License-Identifier: LGPL-2.1-or-later" not in path.read_text()[:400]
    ]
    assert bare == []


def test_links_between_documents_lead_somewhere() -> None:
    """Relative links in Markdown files exist."""
    broken = []
    for path in tracked():
        if path.suffix == ".md" and path.is_file():
            for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
                if not (path.parent / target).exists():
                    broken.append(f"{path.name}: {target}")
    assert broken == []


def test_the_readme_shows_a_real_demo() -> None:
    """The README's output is docs/demo.txt, which `crashlend lab demo` printed."""
    demo = (ROOT / "docs/demo.txt").read_text().rstrip("\n")
    indented = "\n".join(f"    {line}".rstrip() for line in demo.splitlines())
    assert indented in (ROOT / "README.md").read_text()


def test_kept_results_are_of_trials_that_passed() -> None:
    """The results that documents cite are what the suite wrote, and they passed."""
    kept = sorted(p for p in (ROOT / "docs/results").glob("*.json") if p.stem not in OWN_FORM)
    kept = [p for p in kept if not p.stem.startswith(("conform-", "estimate-", "rehearsal-"))]
    assert kept
    for path in kept:
        result = json.loads(path.read_text())
        assert result["name"] == path.stem
        assert result["passed"] is True
        assert path.stem in {*(trial.name for trial in SUITE), *(trial.name for trial in SYSTEM)}
