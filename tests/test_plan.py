# SPDX-License-Identifier: LGPL-2.1-or-later
"""The plan: what is lent, where everything goes, what is refused, and what must always hold."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from build import (
    BLOCK,
    GIB,
    HUGE,
    HWPOISON,
    MIB,
    PAGE,
    PAGE_OFFSET_LA57,
    RESERVATION,
    SLAB,
    TEXT_PHYS,
    TEXT_VIRT,
    bz_image,
    facts,
    payload,
)
from crashlend.arch import MapEntry, x86_64, x86_64_segments
from crashlend.config import Settings
from crashlend.errors import CrashlendError, RefusedError
from crashlend.facts import Facts, MemoryBlock, Refusal
from crashlend.formats import bootparams
from crashlend.formats.elfcore import PT_LOAD, PT_NOTE, parse_program_headers
from crashlend.formats.procfs import Resource, Zone
from crashlend.jsonable import to_json
from crashlend.plan import Plan, make_plan
from crashlend.purgatory import x86_64 as x86_64_purgatory
from crashlend.ranges import Ranges
from crashlend.sizes import mib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crashlend.arch import Layout

HOST = facts()
PAYLOAD = payload()
LOW_MIB = Ranges([(0, MIB)])


def plan_of(some: Facts = HOST, **settings: Any) -> Plan:
    return make_plan(some, Settings(**settings), PAYLOAD)


def layout_of(plan: Plan) -> Layout:
    assert plan.layout is not None
    return plan.layout


def crash_ram(plan: Plan) -> Ranges:
    """RAM of the crash kernel's map."""
    entries = [(e.start, e.end) for e in layout_of(plan).memory_map if e.kind == "System RAM"]
    assert sum(e - s for s, e in entries) == Ranges(entries).size, "RAM entries overlap"
    return Ranges(entries)


def loads(plan: Plan) -> list[tuple[int, int]]:
    """The PT_LOADs of RAM, without the one of the kernel's text."""
    found = [h for h in layout_of(plan).program_headers if h.type == PT_LOAD]
    assert (found[0].virt, found[0].phys) == (TEXT_VIRT, TEXT_PHYS)
    return [(h.phys, h.end) for h in found[1:]]


def assert_invariants(plan: Plan, some: Facts) -> None:
    """Assert what must hold for every complete plan of any host."""
    layout = layout_of(plan)
    reserved = Ranges((r.start, r.end) for r in some.iomem if r.name == "Crash kernel")
    ram = Ranges((r.start, r.end) for r in some.iomem if r.name.startswith("System RAM"))
    core = layout.segment("elfcorehdr")
    header = Ranges([(core.start, core.end)])
    # the crash kernel gets exactly what was planned for it (hazard 16)
    got = crash_ram(plan)
    assert got == (ram & LOW_MIB) | (reserved - header) | plan.lent
    assert got.size == plan.costs.crash_kernel_bytes
    assert not plan.lent.meets(reserved)
    assert not plan.lent.meets(Ranges([(0, 16 * MIB)]))
    # the dump has all other RAM, once, and nothing of what the crash kernel writes to (17)
    dumped = loads(plan)
    for excluded in (plan.lent, reserved, LOW_MIB):
        assert not Ranges(dumped).meets(excluded)
    assert Ranges(dumped) | plan.lent | reserved | LOW_MIB == ram | plan.lent | reserved | LOW_MIB
    assert sum(end - start for start, end in dumped) == Ranges(dumped).size
    assert all(
        h.virt - h.phys == some.page_offset
        for h in layout.program_headers
        if h.type == PT_LOAD and h.virt != TEXT_VIRT
    )
    # segments (kernel/kexec_core.c: sanity_check_segment_list)
    main = reserved[-1]
    for one in layout.segments:
        assert one.start % PAGE == one.memory_bytes % PAGE == 0
        assert main.start <= one.start < one.end <= main.end
        assert 0 < one.stored_bytes <= one.memory_bytes
    for a, b in combinations(layout.segments, 2):
        assert a.end <= b.start or b.end <= a.start
    kernel = layout.segment("kernel")
    if layout.placement == "reserved":
        assert kernel.start == layout.kernel_runs_at
        assert kernel.memory_bytes >= PAYLOAD.image.init_size
    assert layout.kernel_runs_at % PAYLOAD.image.alignment == 0
    free = main.size - sum(s.memory_bytes for s in layout.segments)
    assert free >= layout.control_pages * PAGE
    assert min(s.start for s in layout.segments) - main.start >= layout.control_pages * PAGE
    assert layout.required_bytes <= main.size


# --- a usual host --------------------------------------------------------------------------------


def test_same_inputs_give_the_same_plan() -> None:
    """A plan has no clock, environment or order of reading in it."""
    first, second = plan_of(facts()), plan_of(facts())
    assert first == second
    assert json.dumps(first.to_json()) == json.dumps(second.to_json())


def test_plan_json_has_schema_1_and_integer_addresses() -> None:
    """``plan --json`` parses, addresses are integers, ranges half-open pairs."""
    value = json.loads(json.dumps(plan_of().to_json()))
    assert value["schema"] == 1
    assert value["reservation"] == [list(RESERVATION)]
    assert sum(end - start for start, end in value["lent"]) == value["costs"]["shared_bytes"] == GIB


def test_the_seed_s_line_lends_1g_beside_the_reservation() -> None:
    """The crash kernel has the lent 1G and the reservation, less its core header."""
    plan = plan_of()
    assert (plan.lender, plan.offer.asked_bytes, plan.lent.size) == ("movable", GIB, GIB)
    assert plan.costs.taken_bytes == 256 * MIB
    low = (0x9FC00 - 0x1000) // PAGE * PAGE
    assert plan.costs.crash_kernel_bytes is not None
    assert abs(plan.costs.crash_kernel_bytes - (GIB + 256 * MIB + low)) <= 2 * PAGE
    assert_invariants(plan, HOST)


def test_nothing_asked_nothing_lent() -> None:
    """Without a ,cma word and without --lend the lender is none, and all is as before."""
    some = facts(cmdline=b"root=/dev/vda1 crashkernel=256M\n")
    plan = plan_of(some)
    assert (plan.lender, plan.lent, plan.offer.candidates) == ("none", Ranges(), ())
    assert plan.quiesce.wait_seconds == 0
    assert_invariants(plan, some)


@pytest.mark.parametrize("words", [{"lend": 0}, {"lender": "none"}])
def test_lending_can_be_switched_off(words: dict[str, Any]) -> None:
    """--lend 0 and --lender none beat the word of the command line."""
    assert plan_of(**words).lender == "none"


def test_lend_setting_beats_the_command_line() -> None:
    """--lend SIZE is what is asked for, rounded up to whole blocks and said so."""
    plan = plan_of(lend=200 * MIB)
    assert (plan.offer.asked_bytes, plan.lent.size) == (200 * MIB, 256 * MIB)
    assert any("rounded up" in note for note in plan.notes)


def test_lent_blocks_of_an_earlier_run_are_kept() -> None:
    """A second plan lends what is lent already and asks for the rest; too many are surplus."""
    some = facts(movable=[36, 37, 38], lent=[36, 37, 38])
    plan = plan_of(some, lend=512 * MIB)
    assert plan.offer.held == Ranges([(36 * BLOCK, 39 * BLOCK)])
    assert plan.offer.wanted == 1
    assert plan.lent.covers(plan.offer.held)
    fewer = plan_of(some, lend=BLOCK)
    assert (fewer.offer.wanted, fewer.offer.surplus) == (0, (36, 37))
    assert fewer.lent == Ranges([(38 * BLOCK, 39 * BLOCK)])
    assert plan_of(some, lend=0).offer.surplus == (36, 37, 38)


def test_held_only_lends_no_more_than_there_is() -> None:
    """What load loads in the end counts on nothing that is not lent yet."""
    some = facts(movable=[38], lent=[38])
    plan = make_plan(some, Settings(), PAYLOAD, held_only=True)
    assert plan.lent == Ranges([(38 * BLOCK, 39 * BLOCK)])
    assert (plan.offer.candidates, plan.offer.wanted) == ((), 0)


def test_held_blocks_that_went_bad_go_back() -> None:
    """Poison or kernel data in a lent block: it is surplus, whatever is asked for."""
    census = {38: [(HWPOISON, 1)], 37: [(SLAB, 1)]}
    some = facts(movable=[36, 37, 38], lent=[36, 37, 38], census=census, corrupted_kb=4)
    plan = plan_of(some)
    assert plan.offer.held == Ranges([(36 * BLOCK, 37 * BLOCK)])
    assert plan.offer.surplus == (37, 38)
    assert not plan.lent.meets(Ranges([(37 * BLOCK, 39 * BLOCK)]))


# --- candidates ----------------------------------------------------------------------------------


def passed_over(some: Facts, index: int) -> str:
    offer = plan_of(some, lender="movable").offer
    return next(p.reason for p in offer.passed_over if p.index == index)


@pytest.mark.parametrize(
    ("kind", "index", "words"),
    [
        ({"census": {35: [(HWPOISON, 1)]}, "corrupted_kb": 4}, 35, "poisoned"),
        ({"census": {35: [(HUGE, 512)]}}, 35, "huge pages"),
        ({"offline": [35]}, 35, "it is offline"),
        ({"movable": [35]}, 35, "movable already"),
        ({}, 0, "several zones"),
        ({}, 20, "reservation"),
        ({}, 23, "a hole"),
    ],
)
def test_unfit_blocks_are_passed_over_with_the_reason(
    kind: dict[str, Any], index: int, words: str
) -> None:
    """Poison, huge pages, state, zone, reservation and holes each bar a block."""
    some = facts(**kind)
    assert words in passed_over(some, index)
    candidates = plan_of(some, lender="movable").offer.candidates
    assert index not in [c.block for c in candidates]


def test_clean_blocks_are_tried_first() -> None:
    """Blocks with pages that can't move come last; among equals the upper ones come first."""
    some = facts(census={39: [(SLAB, 900)], 38: [(SLAB, 3)]})
    candidates = [c.block for c in plan_of(some, lend=BLOCK).offer.candidates]
    assert candidates[0] == 37
    assert candidates[-2:] == [38, 39]


def test_poison_that_no_census_shows_stops_all_lending() -> None:
    """HardwareCorrupted without a block to blame: nothing is taken offline (hazard 2)."""
    plan = plan_of(facts(corrupted_kb=4, census={}))
    assert (plan.lent, plan.offer.wanted) == (Ranges(), 0)
    assert any("poisoned" in note for note in plan.notes)


def test_lend_share_bounds_what_becomes_movable() -> None:
    """Half of RAM by default, what is movable already included, and the plan says so."""
    plan = plan_of(lend=3 * GIB)
    total = HOST.meminfo["MemTotal"]
    assert plan.lent.size <= total // 2 < plan.lent.size + BLOCK
    assert any("lend_share" in note for note in plan.notes)
    some = facts(movable=[32, 33, 34, 35])
    rest = plan_of(some, lend=3 * GIB, lender="movable")
    assert rest.lent.size == plan.lent.size - 4 * BLOCK
    assert plan_of(lend=3 * GIB, lend_share=0).lent == Ranges()


def test_every_node_keeps_a_block_for_its_kernel() -> None:
    """A node of two blocks lends one of them at most (hazard 7)."""
    some = replace(facts(nodes={39: 1, 38: 1}), zones=())
    room = dict(plan_of(some, lend_share=100).offer.room)
    assert room[1] == 1


def test_the_share_holds_on_every_node() -> None:
    """A node of which half is movable already lends no more, whatever the other one has."""
    node1 = [b.index for b in HOST.blocks if b.index >= 32]
    some = facts(nodes=dict.fromkeys(node1, 1))
    pages = BLOCK // 4096 * len(node1)
    zones = (
        Zone(0, "Normal", 0, 1 << 20, 1 << 20, 1 << 20, 0),
        Zone(1, "Normal", 0, pages // 2, pages // 2, pages // 2, 0),
        Zone(1, "Movable", 0, pages // 2, pages // 2, pages // 2, 0),
    )
    offer = plan_of(replace(some, zones=zones)).offer
    assert {c.node for c in offer.candidates} == {0}


def test_no_movable_memory_is_a_plan_without_lending() -> None:
    """No block qualifies: nothing is foreseen, every block has its reason, the rest is planned."""
    some = facts(census={i: [(HUGE, 1)] for i in range(40)})
    plan = plan_of(some)
    assert plan.lent == Ranges()
    assert plan.costs.crash_kernel_bytes is not None
    assert {p.index for p in plan.offer.passed_over} == {b.index for b in some.blocks}


def test_dimms_and_driver_memory_are_dumped_but_driver_memory_is_never_lent() -> None:
    """Nested "System RAM (kmem)" and "(virtio_mem)" are in PT_LOADs, in no offer (hazard 17)."""
    kmem, vmem, dimm = (8 * GIB, 9 * GIB), (10 * GIB, 11 * GIB), (6 * GIB, 7 * GIB)
    some = facts(
        dimms=[dimm],
        more_iomem=[
            (0, *kmem, "dax0.0"),
            (1, *kmem, "System RAM (kmem)"),
            (0, *vmem, "virtio0"),
            (1, vmem[0], vmem[0] + 512 * MIB, "System RAM (virtio_mem)"),
        ],
    )
    extra = [MemoryBlock(i, "online", ("Normal",), 0) for i in (*range(64, 72), *range(80, 84))]
    some = replace(some, blocks=(*some.blocks, *extra))
    plan = plan_of(some, lend=4 * GIB, lend_share=100)
    covered = Ranges(loads(plan)) | plan.lent
    assert covered.covers(Ranges([kmem, (vmem[0], vmem[0] + 512 * MIB), dimm]))
    assert plan.lent.meets(Ranges([dimm]))
    assert not plan.lent.meets(Ranges([kmem, vmem]))
    assert not crash_ram(plan).meets(Ranges([kmem, vmem]))
    assert_invariants(plan, some)


def test_a_shrunk_reservation_s_remains_are_ram_again() -> None:
    """What a shrink freed is "System RAM" nested in "System RAM": lendable and dumped."""
    part = (30 * BLOCK - 8 * BLOCK, 30 * BLOCK - 7 * BLOCK)
    some = facts(more_iomem=[(1, *part, "System RAM")])
    assert x86_64.reserve_lent(some).covers(Ranges([part]))
    assert_invariants(plan_of(some), some)


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0, 1, 16, 29, 27, 23, 2 | 4])
def test_dump_levels_that_want_user_data_are_refused_with_exit_11(level: int) -> None:
    """Bits 2, 4 and 8 must all be set with lent memory, else policy refuses (hazard 26)."""
    with pytest.raises(RefusedError, match=f"dump level {level}") as caught:
        plan_of(dump_level=level)
    assert caught.value.exit_code == 11
    assert "--allow-missing-user-data" in caught.value.hint
    allowed = plan_of(dump_level=level, allow_missing_user_data=True)
    assert allowed.load_variables["ALLOW_MISSING_USER_DATA"] == "1"
    nothing_lent = plan_of(dump_level=level, lend=0)
    assert nothing_lent.load_variables["ALLOW_MISSING_USER_DATA"] == "0"


@pytest.mark.parametrize("level", [14, 15, 30, 31])
def test_dump_levels_without_user_data_pass(level: int) -> None:
    """Whatever the other bits say."""
    assert plan_of(dump_level=level).lent


def test_no_reservation_names_the_words_to_boot_with() -> None:
    """Without ``Crash kernel`` in iomem there is no plan, but the line that makes one."""
    with pytest.raises(CrashlendError, match="no memory is reserved") as caught:
        plan_of(facts(reservations=[]))
    assert "crashkernel=1G,cma crashkernel=100M" in caught.value.hint


def test_a_small_reservation_is_refused_with_both_figures() -> None:
    """The message has what there is and what is needed; the hint is enough, a MiB less is not."""
    with pytest.raises(CrashlendError, match=r"it has 32\.0 MiB; .* needs \d") as caught:
        plan_of(
            facts(reservations=[(RESERVATION[0], RESERVATION[0] + 32 * MIB)]),
            placement="reserved",
        )
    word = next(w for w in caught.value.hint.split() if w.startswith("crashkernel="))
    needed = int(word[len("crashkernel=") : -1])
    start = RESERVATION[0]
    some = facts(reservations=[(start, start + needed * MIB)])
    assert_invariants(plan_of(some, placement="reserved"), some)
    with pytest.raises(CrashlendError, match="too small"):
        plan_of(facts(reservations=[(start, start + (needed - 1) * MIB)]), placement="reserved")


def small(size: int) -> Facts:
    """The host with a reservation of ``size`` bytes."""
    return facts(reservations=[(RESERVATION[0], RESERVATION[0] + size)])


def test_the_kernel_runs_in_the_reservation_whenever_it_fits() -> None:
    """``auto`` keeps it away from late DMA, and goes to lent memory only where it must."""
    assert layout_of(plan_of()).placement == "reserved"
    assert "it fits" in layout_of(plan_of()).placement_reason
    lent = layout_of(plan_of(small(32 * MIB)))
    assert lent.placement == "lent"
    needed = layout_of(plan_of()).required_bytes
    assert f"it would need {mib(needed)}" in lent.placement_reason
    asked = layout_of(plan_of(placement="lent"))
    assert asked.placement_reason == "as the setting placement says"
    with pytest.raises(CrashlendError, match="too small"):
        plan_of(small(32 * MIB), lend=0)


def test_in_lent_memory_only_stored_bytes_are_in_the_reservation() -> None:
    """The kernel's segment has its stored bytes; it runs in one lent range that holds init_size."""
    some = small(32 * MIB)
    plan = plan_of(some, placement="lent")
    layout = layout_of(plan)
    assert_invariants(plan, some)
    kernel = layout.segment("kernel")
    assert kernel.memory_bytes - kernel.stored_bytes < PAGE
    room = Ranges([(layout.kernel_runs_at, layout.kernel_runs_at + PAYLOAD.image.init_size)])
    assert plan.lent.covers(room)
    assert layout.kernel_runs_at % PAYLOAD.image.alignment == 0
    assert layout.required_bytes < PAYLOAD.image.init_size


def test_lent_ranges_too_short_for_the_kernel_are_said() -> None:
    """Placement ``lent`` needs one piece of init_size; nothing lent is no piece at all."""
    with pytest.raises(CrashlendError, match="in one piece"):
        plan_of(placement="lent", lend=0)


def test_an_image_that_must_stay_low_lands_below_4_gib() -> None:
    """An image without XLF_CAN_BE_LOADED_ABOVE_4G gets its place in low lent memory, or none."""
    low = replace(PAYLOAD.image, above_4g=False)
    entries = [MapEntry(GIB, 2 * GIB, "System RAM"), MapEntry(5 * GIB, 6 * GIB, "System RAM")]
    both = Ranges((e.start, e.end) for e in entries)
    found = x86_64.landing_zone(low, entries, both)
    assert found is not None
    assert GIB <= found < 2 * GIB
    assert x86_64.landing_zone(low, entries[1:], both) is None
    high = x86_64.landing_zone(PAYLOAD.image, entries, both)
    assert high is not None
    assert high >= 5 * GIB


def test_the_decompressor_sees_128_entries_of_the_map() -> None:
    """A lent range that stands later in the map is no place for the kernel."""
    entries = [MapEntry(n * GIB, n * GIB + 4096, "System RAM") for n in range(1, 129)]
    late = MapEntry(200 * GIB, 201 * GIB, "System RAM")
    lent = Ranges([(late.start, late.end)])
    assert x86_64.landing_zone(PAYLOAD.image, [*entries[:127], late], lent) is not None
    assert x86_64.landing_zone(PAYLOAD.image, [*entries, late], lent) is None


@given(st.integers(0, 300), st.integers(0, 15), st.integers(1, 40))
def test_required_bytes_are_exact(mib: int, shift: int, initramfs_mib: int) -> None:
    """A reservation holds the plan exactly when it has the required bytes."""
    start = RESERVATION[0] + shift * MIB
    end = start + mib * MIB
    files = payload(initramfs_mib * MIB + 5)
    big = facts(reservations=[(start, start + 400 * MIB)])
    required = layout_of(make_plan(big, Settings(lend=0), files)).required_bytes
    some = facts(reservations=[(start, end)] if mib else [(start, start + PAGE)])
    if mib * MIB >= required:
        assert layout_of(make_plan(some, Settings(lend=0), files)).required_bytes == required
    else:
        with pytest.raises(CrashlendError, match="too small"):
            make_plan(some, Settings(lend=0), files)


@pytest.mark.parametrize("lender", ["movable", "cma"])
def test_confidential_hosts_lend_nothing(lender: str) -> None:
    """A refusal for "any" holds for every lender, one for "movable" only for that (hazards 1, 9)."""
    ranges = ((4 * GIB, 5 * GIB),)
    some = replace(facts(cma_ranges=ranges), refusals=(Refusal("any", "this is a TDX guest"),))
    with pytest.raises(RefusedError, match="TDX") as caught:
        plan_of(some, lender=lender)
    assert "--lend 0" in caught.value.hint
    xen = replace(facts(cma_ranges=ranges), refusals=(Refusal("movable", "Xen"),))
    if lender == "movable":
        with pytest.raises(RefusedError, match="Xen"):
            plan_of(xen, lender=lender)
    else:
        assert plan_of(xen, lender=lender).lender == "cma"
    assert plan_of(some, lend=0).lender == "none"


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [
        ({"lockdown": "integrity"}, {"syscall": "load"}, "lockdown is in force"),
        ({"kexec_load_disabled": True}, {}, "kexec_load_disabled is 1"),
        ({"kexec_load_disabled": True}, {"lend": 0}, "kexec_load_disabled is 1"),
    ],
)
def test_what_the_kernel_forbids_is_refused_beforehand(
    kind: dict[str, Any], words: dict[str, Any], message: str
) -> None:
    """Lockdown and kexec_load_disabled end in exit 11 with a hint, before anything is touched."""
    with pytest.raises(RefusedError, match=message) as caught:
        plan_of(facts(**kind), **words)
    assert caught.value.exit_code == 11
    assert caught.value.hint


def test_memmap_on_memory_bars_the_lender_movable() -> None:
    """An offlined block would hold its own memmap (hazard 4)."""
    with pytest.raises(RefusedError, match="memmap_on_memory"):
        plan_of(replace(HOST, memmap_on_memory=True))


def test_a_kernel_without_memory_blocks_has_no_movable_memory() -> None:
    """No CONFIG_MEMORY_HOTPLUG: refused in words that name it."""
    with pytest.raises(RefusedError, match="no movable memory") as caught:
        plan_of(replace(HOST, blocks=(), block_bytes=None))
    assert "CONFIG_MEMORY_HOTPLUG" in caught.value.hint


def test_an_unknown_architecture_is_an_error_in_words() -> None:
    """Facts of an architecture that crashlend does not know give one line and a hint."""
    with pytest.raises(CrashlendError, match="does not know the architecture s390x") as caught:
        plan_of(replace(HOST, arch="s390x"))
    assert "x86_64" in caught.value.hint


@pytest.mark.parametrize("name", ["crash_notes", "vmcoreinfo", "page_offset", "kernel_text"])
def test_what_is_not_known_is_not_made_up(name: str) -> None:
    """Without crash notes, vmcoreinfo or mappings there is no core header and no plan."""
    unknown: dict[str, Any] = {name: () if name == "crash_notes" else None}
    with pytest.raises(CrashlendError, match="cannot build the core header"):
        plan_of(replace(HOST, **unknown))


# --- coarse plans --------------------------------------------------------------------------------


def test_without_root_the_plan_is_coarse_and_says_why() -> None:
    """Hidden addresses: blocks and sizes are planned, no address in the reservation."""
    plan = plan_of(facts(hidden=True, errors={"/proc/kcore": 13}))
    assert plan.layout is None
    assert "hides addresses" in plan.incomplete
    assert plan.lent.size == GIB
    assert plan.costs.taken_bytes == 256 * MIB


def test_without_a_payload_the_plan_is_coarse() -> None:
    """What would be lent is known without a kernel image."""
    plan = make_plan(HOST, Settings(), None)
    assert (plan.layout, plan.lent.size) == (None, GIB)
    assert "no kernel image" in plan.incomplete


def test_readable_iomem_without_plain_ram_clears_no_block() -> None:
    """Only a hidden iomem makes blocks pass unchecked: one without System RAM bars them all."""
    lines = [Resource(*RESERVATION, "Crash kernel", 0), Resource(0, 1 << 33, "garbage", 0)]
    plan = make_plan(replace(HOST, iomem=tuple(lines)), Settings(), None)
    assert plan.offer.candidates == ()


# --- other hosts ---------------------------------------------------------------------------------


def test_high_and_low_are_two_reservations() -> None:
    """The segments stand in the upper one; the crash kernel gets both, the dump neither."""
    low, high = (0xA0000000, 0xB0000000), (0x120000000, 0x130000000)
    some = facts(reservations=[low, high])
    plan = plan_of(some)
    assert plan.reservation == Ranges([low, high])
    assert plan.costs.taken_bytes == 512 * MIB
    assert all(s.start >= high[0] for s in layout_of(plan).segments)
    assert crash_ram(plan).covers(Ranges([low]))
    assert_invariants(plan, some)


def test_an_image_that_must_stay_below_4_gib_is_refused_above() -> None:
    """Xloadflags without CAN_BE_LOADED_ABOVE_4G and a reservation of ,high do not fit."""
    some, image = facts(reservations=[(0x120000000, 0x130000000)]), payload(xloadflags=0x01)
    with pytest.raises(CrashlendError, match="above 4 GiB"):
        make_plan(some, Settings(lend=0), image)
    with pytest.raises(CrashlendError, match="above 4 GiB"):
        make_plan(some, Settings(placement="reserved"), image)
    layout = layout_of(make_plan(some, Settings(), image))
    assert layout.placement == "lent"
    assert "above 4 GiB" in layout.placement_reason
    assert layout.kernel_runs_at + image.image.init_size <= 4 * GIB


def test_la57_moves_the_direct_mapping_and_wants_an_image_that_knows_it() -> None:
    """page_offset comes from kcore, one page more is for the tables (hazards 13, 19)."""
    some = facts(page_offset=PAGE_OFFSET_LA57, flags="la57 pdpe1gb")
    plan = plan_of(some)
    assert_invariants(plan, some)
    assert some.page_offset == PAGE_OFFSET_LA57
    assert layout_of(plan).control_pages == layout_of(plan_of()).control_pages + 1
    with pytest.raises(CrashlendError, match="5-level"):
        make_plan(some, Settings(), payload(xloadflags=0x03))


def test_more_than_128_map_entries_go_to_setup_data() -> None:
    """A fragmented host's map does not fit the zero page: SETUP_E820_EXT takes the rest."""
    extra = [(0, 8 * GIB + i * 2 * PAGE, 8 * GIB + (2 * i + 1) * PAGE) for i in range(200)]
    reserved = [Resource(start, end, "Reserved", 0) for _, start, end in extra]
    some = replace(HOST, iomem=(*HOST.iomem, *reserved))
    plan = plan_of(some)
    assert_invariants(plan, some)
    segments = built(some, plan)
    page, rest = segments["boot_params"][:4096], segments["boot_params"][4096:]
    layout = layout_of(plan)
    at = layout.setup_data_phys - layout.segment("boot_params").start - 4096
    entries = bootparams.parse_e820(page, rest[at:])
    assert len(entries) == len(layout.memory_map) > 128
    assert int.from_bytes(page[0x250:0x258], "little") == layout.setup_data_phys


def test_what_firmware_named_is_handed_on_as_production_has_it() -> None:
    """Reserved ranges at any depth are in the map; one that production took back is not.

    EFI marks the windows of PCI host bridges as reserved. A crash kernel that were told so could not
    give devices what they have (efi_remove_e820_mmio(), remove_e820_regions()).
    """
    window = replace(HOST.firmware_map[0], start=0xE000_0000, end=0xF000_0000, type="Reserved")
    some = replace(
        HOST,
        firmware_map=(*HOST.firmware_map, window),
        iomem=(
            *HOST.iomem,
            Resource(0xE000_0000, 0xFEC0_0000, "PCI Bus 0000:00", 0),
            Resource(0xFED1_C000, 0xFED2_0000, "Reserved", 1),
            Resource(0xFED4_0000, 0xFED4_5000, "Soft Reserved", 0),
        ),
    )
    entries = layout_of(plan_of(some)).memory_map
    before = layout_of(plan_of()).memory_map
    assert set(entries) - set(before) == {MapEntry(0xFED1_C000, 0xFED2_0000, "Reserved")}
    assert set(before) < set(entries)


def built(some: Facts, plan: Plan, **words: Any) -> dict[str, bytes]:
    """The bytes of all segments of a plan."""
    layout = layout_of(plan)
    assert plan.cmdline is not None
    return x86_64.build_segments(
        some,
        PAYLOAD.image,
        layout,
        kernel_file=bz_image(),
        initramfs=bytes(layout.segment("initramfs").stored_bytes),
        cmdline=plan.cmdline.encode(),
        lent=plan.lent,
        quiesce=plan.quiesce,
        on_mismatch=plan.on_mismatch,
        **words,
    )


def test_segments_have_the_planned_bytes() -> None:
    """What is built is exactly as long as planned, and says what the plan says."""
    plan = plan_of()
    layout, segments = layout_of(plan), built(HOST, plan)
    assert {n: len(d) for n, d in segments.items()} == {
        s.name: s.stored_bytes for s in layout.segments
    }
    assert tuple(parse_program_headers(segments["elfcorehdr"])) == layout.program_headers
    params = segments["boot_params"]
    entries = bootparams.parse_e820(params[:4096])
    kinds = x86_64_segments.E820_TYPES
    assert [(e.start, e.end, e.type) for e in entries] == [
        (e.start, e.end, kinds[e.kind]) for e in layout.memory_map
    ]
    line_at = layout.cmdline_phys - layout.segment("boot_params").start
    line = params[line_at : params.index(b"\0", line_at)]
    assert plan.cmdline is not None
    assert line == plan.cmdline.encode()
    assert f"elfcorehdr={layout.segment('elfcorehdr').start:#x}".encode() in line.split()
    assert int.from_bytes(params[0x228:0x22C], "little") == layout.cmdline_phys
    assert int.from_bytes(params[0x218:0x21C], "little") == layout.segment("initramfs").start
    assert segments["kernel"] == bz_image()[4 * 512 :]


def test_purgatory_is_told_what_the_plan_says() -> None:
    """Every segment but itself is verified, the record's room is not; the kernel is copied."""
    cmdline = b"crashkernel=1G,cma crashkernel=256M console=ttyS0\n"
    some = facts(cmdline=cmdline, files={"/sys/class/tty/ttyS0/port": b"0x3F8\n"})
    plan = plan_of(some, placement="lent", on_mismatch="boot")
    layout, segments = layout_of(plan), built(some, plan)
    code = segments["purgatory"]
    names = [name for name, _ in x86_64_purgatory.HANDOVER]
    told = dict(zip(names, x86_64_purgatory.PARAMETERS.unpack_from(code, 16)))
    params = layout.segment("boot_params")
    assert told["kernel_entry"] == layout.kernel_runs_at + 0x200
    assert told["boot_params"] == params.start
    assert (told["wait_us"], told["on_mismatch"]) == (10_000_000, int.from_bytes(b"BOOT", "little"))
    assert (told["pm_port"], told["serial_port"]) == (0x608, 0x3F8)
    assert told["copy_to"] == layout.kernel_runs_at
    rows = x86_64_purgatory.REGION.iter_unpack(code[told["regions_at"] : told["lent_at"]])
    regions = {name.rstrip(b"\0").decode(): (start, size, sha) for start, size, sha, name in rows}
    assert {*regions, "purgatory"} == {*segments}
    assert list(regions)[told["copy_region"]] == "kernel"
    for name, (start, size, sha256) in regions.items():
        segment, data = layout.segment(name), segments[name]
        assert start == segment.start
        # the kernel zeroes the rest of the last page
        stored = data.ljust(-(-len(data) // PAGE) * PAGE, b"\0")[:size]
        assert hashlib.sha256(stored).digest() == sha256
        if name != "boot_params":
            assert len(data) <= size <= segment.memory_bytes
    at = told["record"] - params.start
    assert regions["boot_params"][1] == at == len(segments["boot_params"]) - told["record_bytes"]
    assert segments["boot_params"][at:] == b" " * told["record_bytes"]
    assert layout.record_phys == told["record"]


def test_kexec_file_load_says_that_the_kernel_s_purgatory_runs() -> None:
    """What crashlend's would do does not happen there."""
    plan = plan_of(facts(lockdown="integrity"), lend=0)
    assert plan.syscall == "file"
    assert any("own purgatory" in note for note in plan.notes)
    assert not any("own purgatory" in note for note in plan_of().notes)


def test_notes_of_every_cpu_and_vmcoreinfo_are_in_the_core_header() -> None:
    """One PT_NOTE per CPU at its physical address, then vmcoreinfo."""
    some = facts(cpus=5)
    found = [h for h in layout_of(plan_of(some)).program_headers if h.type == PT_NOTE]
    expected = [(n.phys, n.bytes) for n in some.crash_notes]
    assert [(h.phys, h.bytes) for h in found] == [*expected, (0x102344000, 0x1000)]


def test_the_crash_command_line_keeps_production_s_memory_out() -> None:
    """Nokaslr and acpi_no_memhotplug are there, crashkernel= and memory words are not (16, 18)."""
    line = b"ro crashkernel=1G,cma crashkernel=256M movable_node mem=4G hugepages=9 console=ttyS0"
    plan = plan_of(facts(cmdline=line + b"\n"))
    assert plan.cmdline is not None
    words = plan.cmdline.line.split()
    assert {"nokaslr", "acpi_no_memhotplug", "console=ttyS0"} <= set(words)
    names = {word.partition("=")[0] for word in words}
    assert not names & {"crashkernel", "movable_node", "mem", "hugepages"}


def test_dma_wait_is_for_lent_memory_that_the_kernel_does_not_wait_for() -> None:
    """The setting when movable memory is lent, else none; each with its reason (hazard 23)."""
    assert plan_of().quiesce.wait_seconds == 10
    assert plan_of(dma_quiesce="wait=0.5").quiesce.wait_seconds == 0.5
    assert plan_of(lend=0).quiesce.wait_seconds == 0
    kernel_waits = plan_of(facts(cma_ranges=[(4 * GIB, 5 * GIB)]))
    assert kernel_waits.quiesce.wait_seconds == 0
    assert "kernel waits" in kernel_waits.quiesce.reason
    # hazard 23: it waits whenever it has the ranges, whoever lends
    assert (
        plan_of(facts(cma_ranges=[(4 * GIB, 5 * GIB)]), lender="movable").quiesce.wait_seconds == 0
    )


# --- lender cma ----------------------------------------------------------------------------------

CMA = [(0x110000000, 0x150000000 - 0x20000000)]


def test_the_kernel_s_ranges_are_lent_where_there_are_any() -> None:
    """Lender auto takes cma; its ranges are lent to the byte."""
    some = facts(cma_ranges=CMA)
    plan = plan_of(some)
    assert (plan.lender, plan.lent) == ("cma", Ranges(CMA))
    assert any("512 MiB of the 1024 MiB" in note for note in plan.notes)
    assert_invariants(plan, some)


def test_cma_without_ranges_is_an_error_that_names_the_way_out() -> None:
    """--lender cma on a kernel that made none."""
    with pytest.raises(CrashlendError, match="nothing to lend") as caught:
        plan_of(lender="cma")
    assert "movable" in caught.value.hint


@pytest.mark.parametrize("ranges", [[(0x9F000000, 0xA1000000)], [(0xC0000000, 0xC1000000)]])
def test_listed_ranges_that_are_not_plain_ram_are_refused(ranges: Sequence[Any]) -> None:
    """A range over the reservation or over no RAM is not lent."""
    with pytest.raises(RefusedError, match="not plain System RAM"):
        plan_of(facts(cma_ranges=ranges))


def test_ranges_that_are_no_cma_any_more_are_refused() -> None:
    """The list is larger than CmaTotal: pages went back to ordinary use."""
    some = facts(cma_ranges=CMA)
    some = replace(some, meminfo={**some.meminfo, "CmaTotal": 16 * MIB})
    with pytest.raises(RefusedError, match="ordinary use"):
        plan_of(some)


def test_file_syscall_hands_the_map_to_the_kernel() -> None:
    """kexec_file_load: no layout, but the crash kernel's memory is known."""
    some = facts(cma_ranges=CMA, lockdown="integrity")
    plan = plan_of(some)
    assert (plan.syscall, plan.layout) == ("file", None)
    assert plan.cmdline is not None
    assert "elfcorehdr" not in plan.cmdline.line
    assert plan.costs.crash_kernel_bytes is not None
    assert plan.costs.crash_kernel_bytes > 512 * MIB + 256 * MIB


# --- any host ------------------------------------------------------------------------------------

SMALL_BLOCK = 64 * MIB


@st.composite
def hosts(draw: st.DrawFn) -> Facts:
    """Hosts with holes anywhere, named resources in their RAM, DIMMs, drivers, nodes."""
    edges = draw(st.lists(st.integers(1, 3000), min_size=2, max_size=16, unique=True))
    edges.sort()
    page = draw(st.sampled_from([MIB, MIB + PAGE, 3 * PAGE]))
    areas = [(0x1000, 0x9F000), (MIB, 1200 * MIB)]
    areas += [
        (1200 * MIB + a * page, 1200 * MIB + b * page) for a, b in zip(edges[::2], edges[1::2])
    ]
    lines = [Resource(start, end, "System RAM", 0) for start, end in areas]
    size = draw(st.integers(80 * MIB // PAGE, 300 * MIB // PAGE)) * PAGE
    at = draw(st.integers(32 * MIB // PAGE, (1200 * MIB - size) // PAGE)) * PAGE
    assume(at >= TEXT_PHYS + 64 * MIB)
    lines.append(Resource(at, at + size, "Crash kernel", 1))
    lines.append(Resource(TEXT_PHYS, TEXT_PHYS + 0x1003000, "Kernel code", 1))
    top = areas[-1][1]
    for number in range(draw(st.integers(0, 3))):
        start = (top // SMALL_BLOCK + 1 + number * 4) * SMALL_BLOCK
        driver = draw(st.sampled_from(["dax0.0", "virtio0", ""]))
        if driver:
            lines.append(Resource(start, start + 2 * SMALL_BLOCK, driver, 0))
            name = "System RAM (kmem)" if driver == "dax0.0" else "System RAM (virtio_mem)"
            lines.append(Resource(start, start + SMALL_BLOCK, name, 1))
        else:
            lines.append(Resource(start, start + 2 * SMALL_BLOCK, "System RAM", 0))
    last = max(r.end for r in lines) // SMALL_BLOCK
    indexes = range(0, last, draw(st.integers(1, 3)))
    kinds = draw(st.lists(st.sampled_from(BLOCK_KINDS), min_size=1, max_size=5))
    blocks = tuple(MemoryBlock(index, *kinds[n % len(kinds)], 0) for n, index in enumerate(indexes))
    count = draw(st.integers(0, 140))
    lines += [
        Resource(s, s + PAGE, KINDS[s // PAGE % len(KINDS)], 0)
        for s in range(64 * GIB, 64 * GIB + count * 2 * PAGE, 2 * PAGE)
    ]
    lent = tuple(draw(st.lists(st.sampled_from([b.index for b in blocks]), max_size=4)))
    return replace(
        HOST,
        iomem=tuple(lines),
        blocks=blocks,
        block_bytes=SMALL_BLOCK,
        zones=(Zone(0, "Normal", 0, 9, 9, 9, 9),),
        lent_blocks=tuple(sorted(set(lent))),
        cma_ranges=None,
    )


BLOCK_KINDS = [
    ("online", ("DMA32",)),
    ("online", ("Normal",)),
    ("online", ("Movable",)),
    ("online", ("none",)),
    ("offline", ("Normal", "Movable")),
]
KINDS = [
    "Reserved",
    "ACPI Tables",
    "ACPI Non-volatile Storage",
    "Soft Reserved",
    "Persistent Memory",
]


@given(hosts(), st.integers(0, 4 * GIB), st.integers(0, 100))
@hypothesis_settings(max_examples=150, deadline=None)
def test_invariants_hold_on_any_host(some: Facts, asked: int, share: int) -> None:
    """Map, PT_LOADs and segments are consistent, or the reservation is too small and said so."""
    try:
        plan = plan_of(some, lend=asked, lend_share=share)
    except CrashlendError as error:
        assert "reservation is too small" in str(error)  # noqa: PT017
        return
    assert_invariants(plan, some)
    lendable = x86_64.reserve_lent(some)
    assert lendable.covers(plan.lent)
    held_blocks = {b.index for b in some.blocks if b.index in some.lent_blocks}
    assert all(r.start // SMALL_BLOCK in held_blocks for r in plan.offer.held)
    assert json.loads(json.dumps(to_json(plan)))


@given(st.lists(st.tuples(st.integers(0, 1 << 18), st.integers(1, 1 << 12)), max_size=6))
@hypothesis_settings(max_examples=100, deadline=None)
def test_cma_ranges_anywhere_keep_the_invariants(pages: list[tuple[int, int]]) -> None:
    """The kernel's ranges may begin and end at any page: several are lent, or all refused."""
    ranges = Ranges((4 * GIB + s * PAGE, min(5 * GIB, 4 * GIB + (s + n) * PAGE)) for s, n in pages)
    assume(ranges)
    some = facts(cma_ranges=[(r.start, r.end) for r in ranges])
    plan = plan_of(some)
    assert plan.lent == ranges
    assert_invariants(plan, some)


def test_no_load_is_tried_where_the_limit_is_used_up() -> None:
    """kexec_load_limit_panic of 0 is refused beforehand; -1 and an absent file are no limit."""
    with pytest.raises(RefusedError, match="kexec_load_limit_panic"):
        plan_of(replace(HOST, kexec_load_limit_panic=0))
    assert plan_of(replace(HOST, kexec_load_limit_panic=-1)) == plan_of()
    assert HOST.kexec_load_limit_panic is None
