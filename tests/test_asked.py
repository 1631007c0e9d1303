# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the kernel made of the ``,cma`` word, beside what was asked: said by plan and status."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from build import GIB, MIB, facts, payload
from crashlend.config import Settings
from crashlend.health import find_problems
from crashlend.lenders.asked import find_in_request
from crashlend.plan import make_plan

if TYPE_CHECKING:
    from collections.abc import Sequence

MAIN = b" crashkernel=256M\n"
ONE = [(0x110000000, 0x120000000)]
# what a fragmented guest got of 1100M (lab agree has it from a booted kernel)
THREE = [
    (0x100000000, 0x100000000 + 550 * MIB),
    (0x124000000, 0x124000000 + 274 * MIB),
    (0x136000000, 0x136000000 + 128 * MIB),
]
SYSFS = {"/sys/kernel/mm/cma/other/total_pages": b"1\n"}


def told(line: bytes, **kind: Any) -> list[str]:
    return [str(finding) for finding in find_in_request(facts(cmdline=line, **kind))]


def test_what_was_asked_and_made_needs_no_word() -> None:
    """A whole range, as asked; no ,cma word and no range; a kernel that does not know the word."""
    assert told(b"crashkernel=256M,cma" + MAIN, cma_ranges=ONE) == []
    assert told(b"x" + MAIN, cma_ranges=[]) == []
    assert told(b"crashkernel=256M,cma" + MAIN) == []


@pytest.mark.parametrize(
    ("word", "size", "message"),
    [
        (b"crashkernel=1G-4G:300M,cma", "1024 MiB", "unrecognized char: -"),
        (b"crashkernel=300M@16M,cma", "300 MiB", "unrecognized char: @"),
        (b"crashkernel=512Mfoo,cma", "512 MiB", "unrecognized char: f"),
        (b"crashkernel=512M,high,cma", "512 MiB", "unrecognized char: ,"),
        (b"crashkernel=xyz,cma", "0 MiB", "memory value expected"),
    ],
)
def test_a_bad_word_is_named_with_what_the_kernel_took_for_it(
    word: bytes, size: str, message: str
) -> None:
    """Defect C (kernel.md 1.3): it warns and goes on with the first number."""
    for line in (word + MAIN, b"crashkernel=64M,cma " + word + MAIN):
        # a bad main word has messages too, which are not this word's
        for more in (b"", b" crashkernel=1G-"):
            first = told(line[:-1] + more + b"\n", cma_ranges=ONE)[0]
            assert first.startswith(f"{word.decode()} is read as {size}: ")
            assert f"'crashkernel: {message}'" in first
            assert first.endswith("crashkernel=SIZE,cma")
    assert not any("is read as" in f for f in told(word + b" crashkernel=1M,cma" + MAIN))


def test_a_bad_word_on_a_kernel_without_cma_is_not_laid_on_the_kernel() -> None:
    """It made no list of ranges: nobody knows that it warned, so crashlend's own reading is told."""
    first = told(b"crashkernel=1G-4G:300M,cma" + MAIN, cma_ranges=None)[0]
    assert "crashlend takes the first number" in first
    assert "the kernel warns" not in first


def test_less_than_asked_is_told_with_how_it_came() -> None:
    """1100M in three ranges of 952 MiB: the kernel keeps what it had and halves the rest."""
    line = b"crashkernel=1100M,cma" + MAIN
    less = told(line, cma_ranges=THREE, files=SYSFS)
    assert len(less) == 1
    assert less[0].startswith("the kernel made 952 MiB of the 1100 MiB asked for")
    assert "(here 3)" in less[0]
    assert "ask for at most 952 MiB" in less[0]


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ({"reservations": []}, "crashkernel=1G,cma crashkernel=100M"),
        ({}, "CONFIG_CMA"),
        ({"files": {"/proc/meminfo": b"MemTotal: 9 kB\nCmaTotal: 0 kB\n"}}, "reservation failed"),
    ],
)
def test_a_word_of_which_nothing_came(kind: dict[str, Any], why: str) -> None:
    """The list is there and empty: no main word, no CONFIG_CMA, or no room."""
    kind = {"files": {"/proc/meminfo": b"MemTotal: 9 kB\n"}, **kind}
    (finding,) = told(b"crashkernel=1G,cma" + MAIN, cma_ranges=[], **kind)
    assert finding.startswith("the kernel knows ,cma but made nothing of the 1024 MiB asked for")
    assert why in finding


@pytest.mark.parametrize(("ranges", "said"), [(THREE, True), (THREE[:1], False)])
def test_a_missing_sysfs_tree_is_explained(ranges: Sequence[Any], said: bool) -> None:
    """Defect A: with two ranges or more /sys/kernel/mm/cma is gone; nothing depends on it."""
    some = facts(cmdline=b"crashkernel=550M,cma" + MAIN, cma_ranges=ranges)
    findings = [f for f in find_in_request(some) if "/sys/kernel/mm/cma" in f.what]
    assert bool(findings) is said
    assert all(f.harmless for f in findings)
    there = facts(cmdline=b"crashkernel=550M,cma" + MAIN, cma_ranges=ranges, files=SYSFS)
    assert not [f for f in find_in_request(there) if "/sys/kernel/mm/cma" in f.what]


def test_plan_and_status_tell_it() -> None:
    """All of it by plan, by status what is a problem, unless other memory was lent in its place."""
    some = facts(cmdline=b"crashkernel=1100M,cma" + MAIN, cma_ranges=THREE, crash_loaded=True)
    notes = make_plan(some, replace(Settings()), payload()).notes
    assert [n for n in notes if n.startswith("the kernel made 952 MiB")]
    assert [n for n in notes if n.startswith("/sys/kernel/mm/cma")]
    (problem,) = find_problems(some, {})
    assert problem.startswith("the kernel made 952 MiB")
    lent = [*map(list, THREE), [0x80000000, 0x80000000 + 256 * MIB]]
    topped_up = {"step": "loaded", "lent": lent, "lender": "cma,movable"}
    assert not [p for p in find_problems(some, {"loaded": topped_up}) if "asked for" in p]
    bad = facts(cmdline=b"crashkernel=1G-4G:300M,cma" + MAIN, cma_ranges=[(4 * GIB, 5 * GIB)])
    assert [p for p in find_problems(bad, {}) if "is read as 1024 MiB" in p]
