# SPDX-License-Identifier: LGPL-2.1-or-later
"""The census by kind, lent memory looked at again, and what plan and status make of it."""

from __future__ import annotations

import json
import re
import struct
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from build import (
    ANON,
    BLOCK,
    BUDDY,
    GIB,
    HUGE,
    HWPOISON,
    LRU,
    MIB,
    OFFLINE,
    PAGE,
    RESERVED,
    SLAB,
    MemoryFiles,
    facts,
    host,
    write_tree,
)
from crashlend.cli.census_table import census_json, census_lines, roles
from crashlend.errors import FormatError, RefusedError
from crashlend.facts import Facts, read_facts
from crashlend.health import find_problems
from crashlend.hostfiles import CENSUS, LENT_PAGES, ArchiveFiles
from crashlend.lenders import spoiled
from crashlend.lenders.census import (
    KINDS,
    NO_FLAGS,
    UNIT_PAGES,
    Unfit,
    count_kinds,
    count_pages,
    unfit_units,
)
from crashlend.ranges import Ranges
from crashlend.snapshot import take_snapshot
from test_cli import run
from test_plan import assert_invariants, plan_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

KSM, THP, SWAPBACKED, NOPAGE, ZERO_PAGE, PGTABLE = (1 << bit for bit in (21, 22, 14, 20, 24, 26))
NAMED = {
    "poisoned": HWPOISON,
    "hugetlb": HUGE,
    "reserved": RESERVED,
    "slab": SLAB,
    "page_tables": PGTABLE,
    "offline": OFFLINE,
    "no_page": NOPAGE,
    "zero_page": ZERO_PAGE | THP,
    "free": BUDDY,
    "ksm": KSM | ANON | LRU | SWAPBACKED,
    "thp": THP | ANON | LRU,
    "anon": ANON | LRU | SWAPBACKED,
    "shmem": SWAPBACKED | LRU,
    "file_cache": LRU,
    "no_flags": 0,
}
PAGES = BLOCK // PAGE
ZONE = range(34, 40)


def packed(flags: Sequence[int]) -> bytes:
    return struct.pack(f"={len(flags)}Q", *flags)


def lent_host(lent: Sequence[int], **kind: Any) -> Facts:
    """A host whose image was given these blocks, which are crashlend's own and movable."""
    ranges = [[i * BLOCK, (i + 1) * BLOCK] for i in lent]
    state = {
        "schema": 1,
        "blocks": {str(i): {"step": "lent", "zone": "Normal"} for i in lent},
        "loaded": {"step": "loaded", "lent": ranges, "zone": []},
    }
    files = {"/run/crashlend/state.json": json.dumps(state).encode()}
    return facts(movable=lent, crash_loaded=True, **{"census": {}, "files": files, **kind})


# --- kinds ---------------------------------------------------------------------------------------


def test_every_kind_is_told_by_its_flags() -> None:
    """One page of each kind, with the flags that the kernel sets together, is counted under it."""
    assert list(NAMED) == [kind.name for kind in (*KINDS, NO_FLAGS)]
    for name, flags in NAMED.items():
        assert count_kinds(packed([flags | 1 << 35, BUDDY])) == (
            {"free": 2} if name == "free" else count_kinds(packed([BUDDY])) | {name: 1}
        )


@given(
    st.lists(st.sampled_from(list(NAMED)), max_size=3 * UNIT_PAGES),
    st.integers(0, UNIT_PAGES),
    st.booleans(),
)
@hypothesis_settings(max_examples=100, deadline=None)
def test_counts_are_those_of_a_plain_look(names: list[str], free: int, odd: bool) -> None:
    """All pages are counted once, whatever the flags that decide nothing look like."""
    noise = [(n * 0x9E3779B97F4A7C15 & 0x7FFFFFF) << 36 for n in range(len(names))]
    flags = [NAMED[name] | (more if odd else 0) for name, more in zip(names, noise)]
    counted = count_kinds(packed([*flags, *[BUDDY] * free]))
    plain = dict.fromkeys((kind.name for kind in (*KINDS, NO_FLAGS)), 0)
    for name in [*names, *["free"] * free]:
        plain[name] += 1
    assert counted == {name: pages for name, pages in plain.items() if pages}


def test_many_different_flags_are_counted_right() -> None:
    """More distinct values than a kernel has: only the bits that decide are told apart."""
    flags = [(n << 33) | (SLAB if n % 3 == 0 else LRU) for n in range(40 * UNIT_PAGES)]
    third = -(-len(flags) // 3)
    assert count_kinds(packed(flags)) == {"slab": third, "file_cache": len(flags) - third}


def test_a_block_has_coarse_and_fine_counts() -> None:
    """The counts that decide, and the same pages by kind."""
    census = count_pages(7, packed([SLAB, RESERVED, OFFLINE, ANON, LRU, BUDDY, 0, HUGE, HWPOISON]))
    assert (census.unmovable, census.offline, census.movable, census.free) == (2, 1, 2, 1)
    assert (census.unknown, census.huge, census.poisoned) == (1, 1, 1)
    assert sum(census.kinds.values()) == 9
    with pytest.raises(FormatError, match="cut inside"):
        count_pages(7, bytes(7))


def test_unfit_units_are_told_with_their_kinds() -> None:
    """Whole units, neighbours of the same kinds as one; units at the ends may be cut."""
    flags = [BUDDY] * (4 * UNIT_PAGES)
    first = UNIT_PAGES - 2
    flags[0] = OFFLINE  # in the last two pages of its unit
    flags[2 + UNIT_PAGES - 1] = HWPOISON
    flags[2 + UNIT_PAGES] = HWPOISON
    flags[2 + 3 * UNIT_PAGES] = SLAB
    flags[2 + 3 * UNIT_PAGES + 1] = HUGE | LRU
    unit = UNIT_PAGES * PAGE
    assert unfit_units(packed(flags), first) == (
        Unfit(first * PAGE, unit, ("offline",)),
        Unfit(unit, 3 * unit, ("poisoned",)),
        Unfit(4 * unit, (first + 4 * UNIT_PAGES) * PAGE, ("hugetlb", "slab")),
    )
    assert unfit_units(packed([LRU, 0, BUDDY, ANON | KSM]), 0) == ()
    with pytest.raises(FormatError, match="cut inside"):
        unfit_units(bytes(12), 0)


# --- facts ---------------------------------------------------------------------------------------


def test_lent_memory_is_looked_at_without_a_census() -> None:
    """What the image was given is counted by kind; the rest of memory is not read."""
    reads: list[tuple[int, int]] = []

    class Watched(MemoryFiles):
        def read(self, path: str, limit: int = 1 << 30, offset: int = 0) -> bytes:
            if path == "/proc/kpageflags":
                reads.append((offset // 8 * PAGE, (offset + limit) // 8 * PAGE))
            return super().read(path, limit, offset)

    state = b'{"blocks": {"38": {"step": "lent"}}, "loaded": {"lent": [[%d, %d]]}}' % (
        38 * BLOCK,
        39 * BLOCK,
    )
    files = host(
        movable=[38],
        census={38: [(ANON | LRU, 100), (HWPOISON, 1)]},
        files={"/run/crashlend/state.json": state},
    )
    some = read_facts(Watched(files))
    assert reads == [(38 * BLOCK, 39 * BLOCK)]
    assert some.lent_pages is not None
    assert some.lent_pages.kinds == {"anon": 100, "poisoned": 1, "free": PAGES - 101}
    assert some.lent_pages.unfit == (Unfit(38 * BLOCK, 38 * BLOCK + 2 * MIB, ("poisoned",)),)


def test_lent_memory_that_cannot_be_looked_at_is_none() -> None:
    """No kpageflags, or one that ends early: it is not taken for fit."""
    for data in (None, b"", bytes(8 * 100)):
        files = {"/proc/kpageflags": data}
        assert facts(cma_ranges=[(4 * GIB, 5 * GIB)], files=files).lent_pages is None


def test_a_snapshot_brings_lent_pages_along() -> None:
    """Status elsewhere says what it would on the host, without the flags of single pages."""
    files = host(cma_ranges=[(4 * GIB, 5 * GIB)], census={33: [(HUGE, 512)]})
    data, some = take_snapshot(MemoryFiles(files))
    archive = ArchiveFiles(data, "x")
    assert LENT_PAGES in archive.files
    assert "/proc/kpageflags" not in archive.files
    assert read_facts(archive) == some
    assert some.lent_pages is not None
    assert some.lent_pages.unfit


def test_a_census_from_before_there_were_kinds_is_read() -> None:
    """A snapshot of an older crashlend ranks blocks as it did."""
    row = {
        "index": 33, "free": 1, "movable": 2, "unmovable": 3, "unknown": 4, "huge": 5, "poisoned": 6
    }  # fmt: skip
    some = read_facts(MemoryFiles(host(files={CENSUS: json.dumps([row]).encode()})))
    assert (some.block_census[0].unmovable, some.block_census[0].kinds) == (3, {})
    plan = plan_of(some)
    assert census_json(plan, some)["blocks"][0]["pages"]["unmovable"] == 3
    assert any("unmovable" in line for line in census_lines(plan, some, verbose=True))


# --- what is lent already --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["poisoned", "slab", "reserved", "page_tables", "zero_page"])
def test_a_block_with_kernel_pages_or_poison_is_dropped_whole(name: str) -> None:
    """Another block takes its place, a note tells why, and it is not taken for ever clean."""
    kilobytes = 4 if name == "poisoned" else 0
    some = lent_host([38, 39], census={39: [(NAMED[name], 1)]}, corrupted_kb=kilobytes)
    plan = plan_of(some, lend=256 * MIB)
    assert not plan.lent.meets(Ranges([(39 * BLOCK, 40 * BLOCK)]))
    assert plan.lent.size == 256 * MIB
    assert any("memory block 39" in note and "not lent" in note for note in plan.notes)
    assert_invariants(plan, some)


@pytest.mark.parametrize(("name", "pages"), [("offline", 1), ("hugetlb", 512)])
def test_a_balloons_and_huge_pages_cost_their_units(name: str, pages: int) -> None:
    """Hazard 5: they are subtracted, and cost no other block."""
    some = lent_host([38, 39], census={38: [(BUDDY, UNIT_PAGES), (NAMED[name], pages)]})
    plan = plan_of(some, lend=256 * MIB)
    gap = Ranges([(38 * BLOCK + 2 * MIB, 38 * BLOCK + 4 * MIB)])
    # the 2 MiB below it are no run that is worth its struct pages
    assert plan.lent == Ranges([(38 * BLOCK + 4 * MIB, 40 * BLOCK)])
    assert not plan.lent.meets(gap)
    assert plan.offer.surplus == ()
    assert any(name in note and "4 MiB" in note for note in plan.notes)
    assert_invariants(plan, some)


def test_a_whole_block_that_a_balloon_has_is_replaced_not_given_back() -> None:
    """Going offline would move the balloon's pages into what is lent beside it."""
    some = lent_host([38, 39], census={39: [(OFFLINE, PAGES * 2 // 3)]})
    plan = plan_of(some, lend=256 * MIB)
    assert (plan.offer.surplus, plan.offer.wanted) == ((), 0)
    assert 128 * MIB < plan.lent.size < 256 * MIB
    both = lent_host([38, 39], census={39: [(OFFLINE, PAGES)], 38: [(OFFLINE, 1)]})
    plan = plan_of(both, lend=256 * MIB)
    assert (plan.offer.surplus, plan.offer.wanted) == ((), 1)
    assert plan.lent.size == 256 * MIB - 2 * MIB
    after = lent_host([37, 38, 39], census={39: [(OFFLINE, PAGES)]})
    plan = plan_of(after, lend=256 * MIB)
    assert (plan.offer.surplus, plan.offer.wanted) == ((), 0)
    state = json.loads(host_state([37, 38, 39], plan.lent))
    assert find_problems(after, state) == []


def host_state(blocks: Sequence[int], lent: Ranges) -> str:
    """What the record says once ``lent`` of these blocks is given to the image."""
    return json.dumps(
        {
            "blocks": {str(i): {"step": "lent", "zone": "Normal"} for i in blocks},
            "loaded": {"step": "loaded", "lent": lent.to_json(), "zone": []},
        }
    )


def test_a_spoiled_block_is_not_lent_again() -> None:
    """Once the record has it as spoiled it stays out, and is not called somebody else's."""
    state = b'{"blocks": {"39": {"step": "spoiled", "zone": ""}}, "loaded": null}'
    some = facts(
        movable=[39],
        census={39: [(HWPOISON, 1)]},
        corrupted_kb=4,
        files={"/run/crashlend/state.json": state},
    )
    plan = plan_of(some, lend=256 * MIB, lender="movable")
    reason = next(p.reason for p in plan.offer.passed_over if p.index == 39)
    assert "poisoned" in reason
    assert plan.offer.surplus == ()
    assert 39 not in [c.block for c in plan.offer.candidates]


CMA = [(0x120000000, 0x130000000)]


def test_a_cma_range_lends_all_but_the_unit() -> None:
    """Poison that the pages show costs 2 MiB of the kernel's range, not all of it."""
    index = CMA[0][0] // BLOCK
    some = facts(cma_ranges=CMA, census={index: [(BUDDY, 1000), (HWPOISON, 1)]}, corrupted_kb=4)
    plan = plan_of(some)
    gap = (CMA[0][0] + 2 * MIB, CMA[0][0] + 4 * MIB)
    assert plan.lent == Ranges(CMA) - Ranges([gap])
    assert any("left out" in note and "poisoned" in note for note in plan.notes)
    asked = plan_of(some, lend=Ranges(CMA).size)
    assert not any("the kernel made" in note for note in asked.notes)
    assert_invariants(plan, some)


def test_kexec_file_load_cannot_leave_a_page_out() -> None:
    """The kernel gives its ranges to the crash kernel by itself: refused, with the way out."""
    index = CMA[0][0] // BLOCK
    some = facts(cma_ranges=CMA, census={index: [(HUGE, 512)]})
    with pytest.raises(RefusedError, match="leave out") as caught:
        plan_of(some, syscall="file")
    assert "--syscall load" in caught.value.hint
    with pytest.raises(RefusedError, match="leave out"):
        plan_of(replace(some, lockdown="integrity"))
    assert plan_of(some).lent.size == Ranges(CMA).size - 2 * MIB


def test_kexec_file_load_need_not_leave_a_balloon_s_pages_out() -> None:
    """The hypervisor gives them back: a host under lockdown with a balloon keeps its crash kernel."""
    index = CMA[0][0] // BLOCK
    some = facts(cma_ranges=CMA, census={index: [(OFFLINE, 512)]})
    assert plan_of(some, syscall="file").lent == Ranges(CMA)
    assert plan_of(some).lent.size == Ranges(CMA).size - 2 * MIB


def test_a_cma_range_with_kernel_pages_is_none() -> None:
    """Slab in it: it is in ordinary use, whatever the kernel lists."""
    some = facts(cma_ranges=CMA, census={CMA[0][0] // BLOCK: [(SLAB, 1)]})
    with pytest.raises(RefusedError, match="not movable"):
        plan_of(some)


def test_unseen_poison_still_bars_a_cma_range() -> None:
    """Without kpageflags nobody knows where it lies."""
    with pytest.raises(RefusedError, match="poisoned"):
        plan_of(facts(cma_ranges=CMA, corrupted_kb=4))


# --- status --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [kind.name for kind in KINDS if not kind.clean and kind.name != "offline"]
)
def test_a_bad_page_that_came_later_is_a_problem(name: str) -> None:
    """Status names the kind, the block and what to do."""
    some = lent_host([38, 39], census={38: [(BUDDY, 5000), (NAMED[name], 1)]})
    (problem,) = spoiled.problems(some)
    assert name.replace("_", " ") in problem
    assert "memory block 38)" in problem
    assert "crashlend reload" in problem


def test_a_balloon_that_came_later_is_none() -> None:
    """Hazard 5: movable balloon pages may enter later."""
    assert spoiled.problems(lent_host([39], census={39: [(OFFLINE, 9000), (0, 9)]})) == []


def test_what_is_not_lent_is_no_problem() -> None:
    """A bad page in a movable block of ours that the image was not given."""
    some = replace(
        lent_host([38, 39], census={39: [(SLAB, 1)]}), lent_now=((38 * BLOCK, 39 * BLOCK),)
    )
    assert spoiled.problems(some) == []


# --- plan --census -------------------------------------------------------------------------------


def test_the_census_table_has_each_role_and_kind() -> None:
    """Sums by role are those of the blocks; lent blocks are those that the plan lends from."""
    some = facts(census={39: [(ANON | LRU, 256)], 38: [(SLAB, 900)], 20: [(RESERVED, 3)]})
    plan = plan_of(some, lend=256 * MIB)
    value = census_json(plan, some)
    assert {b["block"] for b in value["blocks"] if b["role"] == "lent"} == {
        r // BLOCK for part in plan.lent for r in range(part.start, part.end, BLOCK)
    }
    total = sum(sum(each.values()) for each in value["sums"].values())
    assert total == sum(sum(c.kinds.values()) for c in some.block_census)
    assert value["sums"]["candidate"]["slab"] == 900
    lines = census_lines(plan, some, verbose=True)
    (slab,) = [line for line in lines if line.startswith("  slab")]
    assert slab.split()[-1] == "never"
    assert "3.5" in slab
    assert any(line.startswith("  memory block 38 (candidate): slab 3.5") for line in lines)
    assert set(roles(plan, some).values()) == {"lent", "candidate", "passed over"}


# --- the verbs -----------------------------------------------------------------------------------


def loaded_tree(tmp_path: Path, **kind: Any) -> Path:
    """A host whose image has block 38, as far as its files tell."""
    state = {
        "schema": 1,
        "blocks": {"38": {"step": "lent", "zone": "Normal"}},
        "loaded": {
            "step": "loaded",
            "lender": "movable",
            "lent": [[38 * BLOCK, 39 * BLOCK]],
            "zone": [],
            "crash_kernel_bytes": GIB,
        },
    }
    files = {"/run/crashlend/state.json": json.dumps(state).encode()}
    return write_tree(tmp_path / "root", host(movable=[38], crash_loaded=True, files=files, **kind))


def test_status_tells_what_lent_memory_holds(tmp_path: Path) -> None:
    """Kinds and places in JSON, a problem for poison, a row for the balloon; still loaded."""
    census = {38: [(OFFLINE, 512), (HWPOISON, 1), (LRU, 511)]}
    root = loaded_tree(tmp_path, census=census, corrupted_kb=4)
    answer = run("status", "--json", "--root", root)
    value = json.loads(answer.out)
    assert answer.code == 0
    assert value["lent"]["pages"] == {
        "poisoned": 1, "offline": 512, "free": PAGES - 1024, "file_cache": 511
    }  # fmt: skip
    start = 38 * BLOCK
    assert value["lent"]["unfit"] == [
        [start, start + 2 * MIB, ["offline"]],
        [start + 2 * MIB, start + 4 * MIB, ["poisoned"]],
    ]
    assert [p for p in value["problems"] if "poisoned" in p and "memory block 38" in p]
    text = run("status", "--root", root).out
    assert re.search(r"of it in a balloon +2 MiB", text)
    assert "problem: lent memory has pages" in text


def test_status_without_a_look_at_pages_says_so(tmp_path: Path) -> None:
    """None is not "nothing bad"."""
    value = json.loads(run("status", "--json", "--root", loaded_tree(tmp_path)).out)
    assert (value["lent"]["pages"], value["lent"]["unfit"]) == (None, None)


def test_plan_shows_the_census(tmp_path: Path) -> None:
    """As a table and in JSON; without one the plan says why there is none."""
    root = write_tree(tmp_path / "root", host(census={39: [(ANON | LRU, 256)]}))
    assert re.search(r"(?m)^  anon +1\.0 .* lent$", run("plan", "--census", "--root", root).out)
    value = json.loads(run("plan", "--census", "--json", "--root", root).out)
    assert value["census"]["sums"]["lent"].get("anon") == 256
    assert value["census"]["verdicts"]["slab"] == "never"
    assert "census" not in json.loads(run("plan", "--json", "--root", root).out)
    (root / "proc/kpageflags").unlink()
    answer = run("plan", "--census", "--root", root)
    assert answer.code == 0
    assert "note: there is no census: " in answer.out
