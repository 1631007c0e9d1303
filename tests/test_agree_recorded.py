# SPDX-License-Identifier: LGPL-2.1-or-later
"""What booted kernels did, as recorded by ``lab agree``, against the model of today."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from crashlend.lab.agree import report
from crashlend.lab.agree.cases import CASES, HOSTS, KERNELS
from crashlend.lab.agree.compare import Verdict, judge_all
from crashlend.lab.agree.data import Kept, load
from crashlend.lab.agree.record import boot_of

ROOT = Path(__file__).parents[1]
DATA = ROOT / "docs/results/agree.json"


@pytest.fixture(scope="module")
def kept() -> Kept:
    return load(DATA.read_text())


@pytest.fixture(scope="module")
def verdicts(kept: Kept) -> tuple[Verdict, ...]:
    return judge_all(kept)


def test_the_model_says_what_the_kernels_did(verdicts: tuple[Verdict, ...]) -> None:
    """Every recorded boot, again, without QEMU: a regression of the model shows here in a second."""
    failed = [report.complaint(v) for v in verdicts if v.fails]
    assert not failed, "\n".join(failed)


def test_recorded_are_the_cases_of_the_table(kept: Kept) -> None:
    """Words that were changed since have not been asked of any kernel."""
    table = {case.name: case for case in CASES}
    for told in kept.results:
        case = table[told.name]
        assert (case.kernel, case.host, case.words) == (told.kernel, told.host, told.words)
        assert told.cmdline.encode() == boot_of(case).cmdline


def test_recorded_is_enough(kept: Kept) -> None:
    """60 cases and more, on each kernel, with one to four ,cma ranges, 1 to 12 GiB, UEFI and nodes.

    Also with a part above 4 GiB, addresses of all kinds, over-asking, either order, bad syntax.
    """
    assert len(kept.results) >= 60
    assert {told.kernel for told in kept.results} == set(KERNELS)
    ranges = Counter(len(told.seen.cma) for told in kept.results)
    assert all(ranges[n] for n in (1, 2, 3, 4))
    hosts = {told.host for told in kept.results}
    assert {"1G", "12G"} <= hosts
    assert any(HOSTS[name].guest.firmware == "uefi" for name in hosts)
    assert any(HOSTS[name].guest.nodes > 1 for name in hosts)
    names = " ".join(told.name for told in kept.results)
    families = "high-6G at-free at-kernel at-odd at-hole cma-over cma-first cma-last cma-range bad-"
    assert [family for family in families.split() if family not in names] == []


def test_the_page_is_of_what_was_recorded(kept: Kept, verdicts: tuple[Verdict, ...]) -> None:
    """docs/agreement.md is what the command writes from the kept data."""
    assert (ROOT / "docs/agreement.md").read_text() == report.markdown(kept, verdicts)
