# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lender movable-zone and several lenders together: which pages, which runs, whose they are."""

from __future__ import annotations

import json
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
    TEXT_PHYS,
    MemoryFiles,
    facts,
    host,
)
from crashlend.arch import x86_64
from crashlend.errors import CrashlendError, FormatError, RefusedError
from crashlend.facts import CmaEvidence, MemoryBlock, read_facts
from crashlend.formats.procfs import Zone, parse_zoneinfo
from crashlend.hostfiles import CENSUS, CLEAN_RUNS, ArchiveFiles
from crashlend.lenders import zone
from crashlend.lenders.census import KINDS, KPF, MIN_RUN_BYTES, UNIT_BYTES, UNIT_PAGES, clean_runs
from crashlend.ranges import Ranges
from crashlend.snapshot import take_snapshot
from test_plan import assert_invariants, loads, plan_of, small

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crashlend.facts import Facts

# by include/uapi/linux/kernel-page-flags.h and include/linux/kernel-page-flags.h
NOPAGE, ZERO_PAGE, PGTABLE = 1 << 20, 1 << 24, 1 << 26
BAD = (SLAB, HUGE, HWPOISON, NOPAGE, OFFLINE, ZERO_PAGE, PGTABLE, RESERVED)
GOOD = (0, BUDDY, LRU | ANON, LRU, 1 << 0, 1 << 16 | 1 << 22, 1 << 21)
ZONE = range(34, 40)
TOP = Ranges([(34 * BLOCK, 40 * BLOCK)])


def zone_host(**kind: Any) -> Facts:
    """The host with its upper 768 MiB in a ZONE_MOVABLE of somebody else."""
    return facts(movable=ZONE, **{"census": {}, **kind})


# made once: reading the flags of 1.3 million pages takes a while
CLEAN = zone_host()
COARSE = facts(movable=ZONE)


def with_runs(runs: Ranges, some: Facts = CLEAN, lent: Ranges = Ranges()) -> Facts:  # noqa: B008
    """The host whose census found these runs, of which an earlier load lent ``lent``."""
    return replace(
        some,
        clean_runs=tuple((r.start, r.end) for r in runs),
        lent_zone=tuple((r.start, r.end) for r in lent),
    )


def again(some: Facts, lent: Ranges) -> Facts:
    return replace(some, lent_zone=tuple((r.start, r.end) for r in lent))


# --- the census ----------------------------------------------------------------------------------


def packed(flags: Sequence[int]) -> bytes:
    return struct.pack(f"={len(flags)}Q", *flags)


@pytest.mark.parametrize("flag", BAD)
@pytest.mark.parametrize("at", [0, UNIT_PAGES - 1, UNIT_PAGES, 3 * UNIT_PAGES - 1])
def test_one_bad_page_costs_its_unit(flag: int, at: int) -> None:
    """Kernel data, poison, a balloon's, no page at all: its 2 MiB are not clean, the others are."""
    flags = [LRU | ANON] * 3 * UNIT_PAGES
    flags[at] |= flag
    bad = at // UNIT_PAGES * UNIT_BYTES
    whole = Ranges([(0, 3 * UNIT_BYTES)])
    assert clean_runs(packed(flags), 0) == whole - Ranges([(bad, bad + UNIT_BYTES)])


@pytest.mark.parametrize("flag", GOOD)
def test_pages_of_users_and_free_ones_are_clean(flag: int) -> None:
    """So are those without a flag: in ZONE_MOVABLE they are on a per-CPU free list."""
    assert clean_runs(packed([flag] * UNIT_PAGES), 7 * UNIT_PAGES) == Ranges(
        [(7 * UNIT_BYTES, 8 * UNIT_BYTES)]
    )


def test_every_kind_has_a_verdict_and_a_source() -> None:
    """The table names each flag once, and where the kernel sets it."""
    assert len({kind.flag for kind in KINDS}) == len(KINDS)
    assert all(kind.flag in KPF and kind.why for kind in KINDS)
    assert {1 << KPF[kind.flag] for kind in KINDS if not kind.clean} == set(BAD)


def test_huge_pages_are_not_clean() -> None:
    """Devices may write there by physical address; of a poisoned one only the head is marked."""
    assert not clean_runs(packed([HUGE] * UNIT_PAGES), 0)


@given(
    st.integers(0, 3 * UNIT_PAGES),
    st.lists(st.tuples(st.integers(0, 5 * UNIT_PAGES), st.sampled_from((*BAD, *GOOD))), max_size=6),
    st.integers(0, 5 * UNIT_PAGES),
)
@hypothesis_settings(max_examples=200, deadline=None)
def test_clean_runs_are_those_of_a_plain_look(
    first: int, odd: list[tuple[int, int]], pages: int
) -> None:
    """A unit is clean when all its 512 pages were seen and none has a bad flag."""
    flags = [BUDDY] * pages
    for at, flag in odd:
        if at < pages:
            flags[at] = flag
    clean = []
    for unit in range((first + pages) // UNIT_PAGES + 1):
        seen = [f for n, f in enumerate(flags, first) if n // UNIT_PAGES == unit]
        if len(seen) == UNIT_PAGES and not any(f & b for f in seen for b in BAD):
            clean.append((unit * UNIT_BYTES, (unit + 1) * UNIT_BYTES))
    assert clean_runs(packed(flags), first) == Ranges(clean)


def test_flags_cut_inside_an_entry_are_an_error() -> None:
    """Bytes that are no whole entries are no kpageflags."""
    with pytest.raises(FormatError, match="cut inside"):
        clean_runs(bytes(UNIT_PAGES * 8 - 1), 0)


# --- facts ---------------------------------------------------------------------------------------


def test_facts_have_the_clean_runs_of_foreign_blocks_alone() -> None:
    """Crashlend's own blocks, in whatever step, kernel zones and mixed blocks are left out."""
    state = {
        "schema": 1,
        "blocks": {"39": {"step": "lent", "zone": "Normal"}, "38": {"step": "spoiled", "zone": ""}},
        "loaded": {"step": "loaded", "zone": [[34 * BLOCK, 35 * BLOCK]]},
    }
    mixed = {"/sys/devices/system/memory/memory34/valid_zones": b"none\n"}
    files = {"/run/crashlend/state.json": json.dumps(state).encode(), **mixed}
    some = zone_host(census={36: [(SLAB, 1)]}, files=files)
    assert (some.own_blocks, some.lent_blocks) == ((38, 39), (39,))
    assert some.lent_zone == ((34 * BLOCK, 35 * BLOCK),)
    assert some.clean_runs == ((35 * BLOCK, 36 * BLOCK), (36 * BLOCK + 2 * MIB, 38 * BLOCK))
    assert COARSE.clean_runs is None


def test_short_runs_are_left_out_and_runs_go_on_across_blocks() -> None:
    """A run of 2 MiB is none; two halves in neighbouring blocks are one of 4 MiB."""
    full = [(RESERVED, BLOCK // PAGE)]
    pages = BLOCK // PAGE
    census = {
        34: [(RESERVED, pages - 512)],
        35: [(0, 512), (RESERVED, pages - 512)],
        36: [(RESERVED, 512), (LRU, 512), (RESERVED, pages - 1024)],
        **dict.fromkeys((37, 38, 39), full),
    }
    some = zone_host(census=census)
    assert some.clean_runs == ((35 * BLOCK - 2 * MIB, 35 * BLOCK + 2 * MIB),)


@pytest.mark.parametrize("pages", [b"", b"x" * 100], ids=["empty", "cut"])
def test_flags_that_end_early_clear_nothing(pages: bytes) -> None:
    """What kpageflags does not tell of is not clean."""
    some = read_facts(
        MemoryFiles(host(movable=ZONE, files={"/proc/kpageflags": pages})), census=True
    )
    assert not some.clean_runs


def test_a_look_that_fails_on_the_way_clears_nothing() -> None:
    """An error in the middle of the zone: what was seen before it counts for no more."""

    class Failing(MemoryFiles):
        def read(self, path: str, limit: int = 1 << 30, offset: int = 0) -> bytes:
            if path == "/proc/kpageflags" and offset >= 38 * BLOCK // PAGE * 8:
                raise OSError(5, "Input/output error")
            return super().read(path, limit, offset)

    some = read_facts(Failing(host(movable=ZONE, census={})), census=True)
    assert some.clean_runs is None
    with pytest.raises(CrashlendError, match="can't be looked at"):
        plan_of(some, lender="movable-zone")


def test_flags_whose_meaning_changed_clear_nothing() -> None:
    """The kernel's own code must read as reserved, else early boot's data would not show."""
    files = host(movable=ZONE, census={})
    flags = bytearray(files["/proc/kpageflags"])
    flags[TEXT_PHYS // PAGE * 8 + 4] = 0  # bit 32
    files["/proc/kpageflags"] = bytes(flags)
    some = read_facts(MemoryFiles(files), census=True)
    assert some.clean_runs is None
    with pytest.raises(CrashlendError, match="does not mark the kernel's own code as reserved"):
        plan_of(some, lender="movable-zone")
    files["/proc/iomem"] = files["/proc/iomem"].replace(b"Kernel code", b"Kernel text")
    assert read_facts(MemoryFiles(files), census=True).clean_runs is None


def test_a_snapshot_with_census_brings_the_runs_along() -> None:
    """A plan made elsewhere lends exactly what the host would; without census it is coarse."""
    files = MemoryFiles(host(movable=ZONE, census={36: [(SLAB, 1)], 38: [(RESERVED, 9000)]}))
    data, some = take_snapshot(files, census=True)
    archive = ArchiveFiles(data, "x")
    assert {CENSUS, CLEAN_RUNS} <= set(archive.files)
    assert "/proc/kpageflags" not in archive.files
    there = read_facts(archive)
    assert there.clean_runs == some.clean_runs is not None
    assert plan_of(there) == plan_of(some)
    without, _ = take_snapshot(files)
    assert read_facts(ArchiveFiles(without, "x")).clean_runs is None


def test_a_damaged_record_of_a_zone_is_no_record() -> None:
    """Whatever the state file holds under "zone", facts are read and nothing counts as lent."""
    for value in ("[[1]]", "5", '[["a", 2]]', '{"x": 1}'):
        state = f'{{"blocks": {{}}, "loaded": {{"zone": {value}}}}}'.encode()
        some = facts(files={"/run/crashlend/state.json": state})
        assert some.lent_zone == ()
        assert "/run/crashlend/state.json" in some.missing


# --- which runs ----------------------------------------------------------------------------------


def test_the_zone_is_lent_without_touching_a_block() -> None:
    """Lender auto finds it; nothing is taken, and the crash kernel and the dump agree."""
    plan = plan_of(CLEAN, lend=512 * MIB)
    assert (plan.lender, plan.offer.candidates, plan.offer.wanted) == ("movable-zone", (), 0)
    assert plan.lent == Ranges([(40 * BLOCK - 512 * MIB, 40 * BLOCK)])
    assert plan.quiesce.wait_seconds == 10
    assert_invariants(plan, CLEAN)
    held = plan_of(CLEAN, lend=512 * MIB)
    assert held.offer.held == held.lent


def test_few_large_runs_are_taken_and_the_last_one_is_trimmed() -> None:
    """The longest first; the last gives its top, in whole 2 MiB."""
    base = 34 * BLOCK
    runs = Ranges(
        [
            (base, base + 8 * MIB),
            (base + 64 * MIB, base + 164 * MIB),
            (base + GIB // 4, base + GIB // 2),
        ]
    )
    plan = plan_of(with_runs(runs), lend=300 * MIB + 1, lender="movable-zone")
    top = base + 164 * MIB
    assert plan.lent == Ranges([(top - 46 * MIB, top), (base + GIB // 4, base + GIB // 2)])


def test_what_is_less_than_asked_is_said() -> None:
    """All clean runs are lent, and a note has both figures."""
    plan = plan_of(CLEAN, lender="movable-zone")
    assert plan.lent == TOP
    assert any("768 MiB of the 1024 MiB" in note for note in plan.notes)


def test_at_most_256_runs_are_lent() -> None:
    """Each is an entry in a map that holds so many on any kernel."""
    some = with_runs(
        Ranges((at, at + 4 * MIB) for at in range(32 * BLOCK, 40 * BLOCK, 6 * MIB)),
        replace(
            CLEAN,
            blocks=tuple(
                replace(b, zones=("Movable",)) if b.index >= 16 else b for b in CLEAN.blocks
            ),
        ),
    )
    more = with_runs(
        Ranges((at, at + 4 * MIB) for at in range(16 * BLOCK, 40 * BLOCK, 6 * MIB)), some
    )
    plan = plan_of(more, lend=2 * GIB, lender="movable-zone")
    assert len(plan.lent) == 256 < len(more.clean_runs or ())
    assert len(x86_64.include_in_memory_map(more, None, plan.lent)) > 128
    assert_invariants(plan, more)
    for lent in (plan.lent, Ranges([(16 * BLOCK, 40 * BLOCK)])):
        once = plan_of(again(more, lent), lend=2 * GIB, lender="movable-zone")
        assert once.lent == plan.lent


def test_what_was_lent_is_kept_while_it_is_clean() -> None:
    """A second load finds the same ranges, although it would now choose others."""
    lent = Ranges([(35 * BLOCK, 36 * BLOCK)])
    plan = plan_of(with_runs(TOP, lent=lent), lend=BLOCK)
    assert plan.lent == lent
    more = plan_of(with_runs(TOP, lent=lent), lend=2 * BLOCK)
    assert more.lent.covers(lent)
    assert more.lent.size == 2 * BLOCK
    less = plan_of(with_runs(TOP, lent=lent), lend=BLOCK // 2)
    assert lent.covers(less.lent)
    assert less.lent.size == BLOCK // 2


def test_what_went_bad_is_dropped_and_said() -> None:
    """A lent page that is poisoned now: its unit goes, others make up for it, a note tells."""
    lent = Ranges([(35 * BLOCK, 36 * BLOCK)])
    bad = Ranges([(35 * BLOCK + 6 * MIB, 35 * BLOCK + 8 * MIB)])
    plan = plan_of(with_runs(TOP - bad, lent=lent), lend=BLOCK)
    assert not plan.lent.meets(bad)
    assert plan.lent.covers(lent - bad)
    assert BLOCK <= plan.lent.size < BLOCK + MIN_RUN_BYTES
    assert any("2 MiB that were lent of the zone must not be" in note for note in plan.notes)
    assert not any("must not be" in note for note in plan_of(CLEAN).notes)


@st.composite
def zones(draw: st.DrawFn) -> Facts:
    """Hosts whose ZONE_MOVABLE has clean runs anywhere, some of them lent, holes and drivers too."""
    runs = draw(
        st.lists(
            st.tuples(st.integers(15 * 64, 41 * 64), st.integers(1, 300)), min_size=1, max_size=40
        )
    )
    unit = draw(st.sampled_from([UNIT_BYTES, UNIT_BYTES + PAGE, 3 * PAGE * 128]))
    clean = Ranges((s * UNIT_BYTES, s * UNIT_BYTES + n * unit) for s, n in runs)
    movable = draw(st.sets(st.integers(16, 41), min_size=1))
    own = draw(st.sets(st.sampled_from(sorted(movable)), max_size=3))
    lent = Ranges(
        (s * UNIT_BYTES, (s + n) * UNIT_BYTES)
        for s, n in draw(
            st.lists(st.tuples(st.integers(15 * 64, 41 * 64), st.integers(1, 99)), max_size=9)
        )
    )
    blocks = [MemoryBlock(i, "online", ("Normal",), 0) for i in range(1, 42)]
    some = replace(
        CLEAN,
        blocks=tuple(replace(b, zones=("Movable",)) if b.index in movable else b for b in blocks),
        own_blocks=tuple(sorted(own)),
        lent_blocks=tuple(sorted(own)),
        zones=(Zone(0, "Normal", 0, 1 << 20, 1 << 20, 1 << 20, 9, 0),),
    )
    return with_runs(clean, some, lent)


@given(zones(), st.integers(1, 2 * GIB))
@hypothesis_settings(max_examples=200, deadline=None)
def test_lent_memory_is_clean_lendable_enough_and_stays(some: Facts, asked: int) -> None:
    """Of any zone: clean, foreign, plain RAM; what is asked if there is so much; the same again."""
    try:
        plan = plan_of(some, lend=asked, lender="movable-zone")
    except CrashlendError as error:
        assert "nothing to lend" in str(error)  # noqa: PT017
        assert not zone.foreign_blocks(some)
        return
    foreign = Ranges((b.index * BLOCK, (b.index + 1) * BLOCK) for b in zone.foreign_blocks(some))
    can = Ranges(some.clean_runs or ()) & x86_64.reserve_lent(some) & foreign
    assert can.covers(plan.lent)
    assert all(r.size >= MIN_RUN_BYTES for r in plan.lent)
    assert plan.lent.align_inwards(UNIT_BYTES) == plan.lent
    assert len(plan.lent) <= zone.MOST_RUNS
    assert plan.lent.size < asked + MIN_RUN_BYTES
    whole = Ranges(r for r in can.align_inwards(UNIT_BYTES) if r.size >= MIN_RUN_BYTES)
    if plan.lent.size < asked:
        left = (whole - plan.lent).align_inwards(UNIT_BYTES)
        assert all(r.size < MIN_RUN_BYTES for r in left)
    assert plan_of(again(some, plan.lent), lend=asked, lender="movable-zone").lent == plan.lent
    assert_invariants(plan, some)


# --- what must not be lent -----------------------------------------------------------------------


def test_without_a_census_the_offer_is_coarse_and_nothing_is_held() -> None:
    """The plan says so and how to do better; what load loads in the end counts on none of it."""
    plan = plan_of(COARSE, lend=512 * MIB)
    assert (plan.lent.size, plan.offer.held, plan.offer.needs_census) == (512 * MIB, Ranges(), True)
    assert any("--census" in note for note in plan.notes)
    assert not any("--census" in note for note in plan_of(CLEAN, lend=512 * MIB).notes)
    hidden = facts(hidden=True, movable=ZONE, errors={"/proc/kcore": 13})
    assert plan_of(hidden, lend=512 * MIB).lent.size == 512 * MIB


def test_a_host_without_such_a_zone_is_told_how_to_make_one() -> None:
    """Crashlend's own blocks are no such zone."""
    for some in (facts(), facts(movable=[38, 39], lent=[38, 39])):
        with pytest.raises(CrashlendError, match="nothing to lend") as caught:
            plan_of(some, lender="movable-zone")
        assert "movablecore=" in caught.value.hint


def test_memory_of_drivers_and_named_resources_is_never_lent() -> None:
    """A virtio-mem device's blocks read Movable too; so does a block that the kernel sits in."""
    driver = (10 * GIB, 10 * GIB + 2 * BLOCK)
    lines = [(0, *driver, "virtio0"), (1, *driver, "System RAM (virtio_mem)")]
    some = facts(movable=ZONE, more_iomem=[*lines, (1, 36 * BLOCK, 36 * BLOCK + MIB, "Kernel bss")])
    extra = tuple(MemoryBlock(i, "online", ("Movable",), 0) for i in (80, 81))
    some = with_runs(TOP | Ranges([driver]), replace(some, blocks=(*some.blocks, *extra)))
    plan = plan_of(some, lender="movable-zone")
    assert plan.lent == TOP - Ranges([(36 * BLOCK, 36 * BLOCK + 2 * MIB)])
    assert Ranges(loads(plan)).covers(Ranges([driver]))


def test_unmarked_memmap_bars_the_zone() -> None:
    """memory_hotplug.memmap_on_memory: such pages have no flag that tells them."""
    with pytest.raises(RefusedError, match="memmap_on_memory"):
        plan_of(replace(CLEAN, memmap_on_memory=True), lender="movable-zone")


def test_poison_that_no_census_shows_bars_the_zone() -> None:
    """HardwareCorrupted beyond what was found: none of the zone is lent (hazard 2)."""
    plan = plan_of(zone_host(corrupted_kb=4), lender="movable-zone")
    assert not plan.lent
    assert any("poisoned memory that no" in note for note in plan.notes)
    found = zone_host(corrupted_kb=4, census={36: [(HWPOISON, 1)]})
    assert plan_of(found, lender="movable-zone").lent == TOP - Ranges(
        [(36 * BLOCK, 36 * BLOCK + 2 * MIB)]
    )


def counted(some: Facts, *counts: int | None) -> Facts:
    """The host's zones with these numbers of CMA pages in each Movable one."""
    zones = [Zone(n, "Movable", 0, 1 << 18, 1 << 18, 1 << 18, 0, c) for n, c in enumerate(counts)]
    return replace(some, zones=(*zones, Zone(0, "Normal", 0, 1, 1, 1, 1, 77)))


def test_a_zone_with_another_cma_area_is_not_lent() -> None:
    """A driver's pages of it have no flag; the crash kernel's own ranges there do no harm."""
    some = counted(CLEAN, 512)
    plan = plan_of(some, lender="movable-zone")
    assert not plan.lent
    assert any("another CMA area" in note for note in plan.notes)
    assert plan_of(counted(CLEAN, 0), lender="movable-zone").lent == TOP
    meminfo = {**some.meminfo, "CmaTotal": 2 * MIB}
    made = replace(some, cma_ranges=((36 * BLOCK, 36 * BLOCK + 2 * MIB),), meminfo=meminfo)
    assert plan_of(made, lender="movable-zone").lent == TOP
    assert not plan_of(counted(made, 513), lender="movable-zone").lent
    # listed, but no CMA: then what is counted is another area
    lost = replace(made, cma_evidence=CmaEvidence(marked=()))
    assert not plan_of(lost, lender="movable-zone").lent


def test_a_node_with_another_cma_area_does_not_bar_the_others() -> None:
    """The count is by node: what is clean elsewhere is lent."""
    some = replace(
        counted(CLEAN, 0, 512),
        blocks=tuple(replace(b, node=int(b.index >= 38)) for b in CLEAN.blocks),
    )
    assert plan_of(some, lender="movable-zone").lent == Ranges([(34 * BLOCK, 38 * BLOCK)])


@pytest.mark.parametrize(("total", "lends"), [(0, True), (4 * MIB, False)])
def test_a_kernel_that_counts_no_cma_by_zone_must_have_none(total: int, lends: bool) -> None:
    """Linux 5.10: CmaTotal alone tells whether there is such an area anywhere."""
    some = counted(CLEAN, None)
    some = replace(some, meminfo={**some.meminfo, "CmaTotal": total})
    assert bool(plan_of(some, lender="movable-zone").lent) == lends


def test_zoneinfo_s_count_of_cma_pages_is_read() -> None:
    """A number since Linux 5.12, None before."""
    text = b"Node 1, zone  Movable\n        managed  9\n"
    assert [z.cma for z in parse_zoneinfo(text + b"        cma      512\n")] == [512]
    assert [z.cma for z in parse_zoneinfo(text)] == [None]


def test_kexec_file_load_lends_a_zone_by_words() -> None:
    """All runs that kexec_load would be given are on the command line."""
    plan = plan_of(CLEAN, syscall="file")
    assert plan.by_word == plan.lent == plan_of(CLEAN).lent
    assert plan.lent


# --- several lenders -----------------------------------------------------------------------------

CMA = [(0x110000000 - GIB // 4, 0x110000000)]


def test_auto_takes_the_zone_and_tops_up_with_blocks() -> None:
    """What the zone lacks is asked of movable memory; the result names both."""
    plan = plan_of(CLEAN)
    assert plan.lender == "movable-zone,movable"
    assert [(p.lender, p.lent.size) for p in plan.offer.parts] == [
        ("movable-zone", 6 * BLOCK),
        ("movable", 2 * BLOCK),
    ]
    assert plan.lent.size == GIB
    assert plan.offer.wanted == 2
    assert plan.offer.held == TOP
    assert not set(ZONE) & {p.index for p in plan.offer.passed_over}
    assert_invariants(plan, CLEAN)


def test_the_kernel_s_ranges_are_topped_up_with_blocks() -> None:
    """--lender cma,movable: blocks that hold the ranges are no candidates."""
    some = facts(cma_ranges=CMA)
    plan = plan_of(some, lender="cma,movable")
    assert plan.lender == "cma,movable"
    assert plan.offer.part("cma") == Ranges(CMA)
    assert plan.offer.held == Ranges(CMA)
    assert plan.lent.size == GIB
    assert {c.block for c in plan.offer.candidates}.isdisjoint({32, 33})
    assert plan.quiesce.wait_seconds == 0
    assert plan.load_variables["LENDER"] == "cma,movable"
    assert plan.to_json()["lender"] == "cma,movable"
    assert_invariants(plan, some)


def test_a_lender_that_is_not_needed_lends_nothing_and_gives_back() -> None:
    """Cma has all that is asked: blocks of an earlier run are surplus, and are not named."""
    some = facts(cma_ranges=CMA, movable=[39], lent=[39])
    plan = plan_of(some, lender="cma,movable", lend=CMA[0][1] - CMA[0][0])
    assert (plan.lender, plan.lent, plan.offer.surplus) == ("cma", Ranges(CMA), (39,))
    zone_alone = plan_of(replace(CLEAN, lent_blocks=(20,)), lender="movable-zone")
    assert zone_alone.offer.surplus == (20,)


def test_a_lender_that_has_nothing_is_passed_over_with_a_note() -> None:
    """--lender cma,movable-zone,movable on a kernel without ,cma and zone: blocks, and why."""
    plan = plan_of(facts(), lender="cma,movable-zone,movable")
    assert (plan.lender, plan.lent.size) == ("movable", GIB)
    assert sum("nothing to lend" in note for note in plan.notes) == 2


def test_when_none_of_them_lends_the_first_one_s_error_is_told() -> None:
    """Nothing is pretended: the first preference's reason and hint."""
    with pytest.raises(CrashlendError, match="lender cma has nothing"):
        plan_of(facts(), lender="cma,movable-zone")


def test_order_is_preference() -> None:
    """Movable first takes blocks and leaves the zone alone, until blocks refuse."""
    plan = plan_of(CLEAN, lender="movable,movable-zone", lend=512 * MIB)
    assert (plan.lender, plan.offer.held, plan.offer.needs_census) == ("movable", Ranges(), True)
    from crashlend.config import Settings
    from crashlend.plan import make_plan
    from test_plan import PAYLOAD

    settings = Settings(lender="movable,movable-zone", lend=512 * MIB)
    in_the_end = make_plan(CLEAN, settings, PAYLOAD, held_only=True)
    assert (in_the_end.lender, in_the_end.lent.size) == ("movable-zone", 512 * MIB)


@pytest.mark.parametrize("first", ["cma", "movable-zone"])
def test_memory_that_two_lenders_have_is_counted_once(first: str) -> None:
    """The kernel's range inside the zone: the other lender makes up for it."""
    inside = (39 * BLOCK, 40 * BLOCK)
    some = counted(replace(CLEAN, cma_ranges=(inside,)), BLOCK // PAGE)
    some = replace(some, meminfo={**some.meminfo, "CmaTotal": BLOCK})
    order = [first, *{"cma", "movable-zone"} - {first}]
    plan = plan_of(some, lender=",".join(order), lend=2 * BLOCK)
    assert plan.lent.size >= 2 * BLOCK
    assert plan.lent.size == sum(r.size for r in plan.lent)
    assert_invariants(plan, some)


def test_a_refusal_for_movable_memory_leaves_the_zone() -> None:
    """Xen's and Hyper-V's balloons matter for what goes online again; "any" bars both."""
    from crashlend.facts import Refusal

    xen = replace(CLEAN, refusals=(Refusal("movable", "Xen"),))
    plan = plan_of(xen)
    assert plan.lender == "movable-zone"
    assert any("Xen" in note for note in plan.notes)
    with pytest.raises(RefusedError, match="TDX"):
        plan_of(replace(CLEAN, refusals=(Refusal("any", "TDX"),)))


def test_the_kernel_can_run_in_the_zone() -> None:
    """Placement lent finds its landing zone in one clean run."""
    some = with_runs(TOP, replace(small(32 * MIB), blocks=CLEAN.blocks, zones=CLEAN.zones))
    plan = plan_of(some, placement="lent", lend=512 * MIB, lender="movable-zone")
    assert plan.layout is not None
    assert plan.layout.placement == "lent"
    assert plan.layout.kernel_runs_at >= 34 * BLOCK
    assert_invariants(plan, some)
