# SPDX-License-Identifier: LGPL-2.1-or-later
"""Plans for hosts of 512 GiB to 64 TiB, from constructed facts."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from big_hosts import BIG_BLOCK, BIG_HOSTS, HOLE, LOW_PART, Big
from build import GIB, MIB, PAGE, PAGE_OFFSET_LA57, payload
from crashlend.config import Settings
from crashlend.errors import CrashlendError
from crashlend.formats.elfcore import PT_LOAD, build_core_header, parse_program_headers
from crashlend.plan import Plan, make_plan
from crashlend.ranges import Ranges
from crashlend.shrink import plan_shrink
from test_plan import PAYLOAD, assert_invariants, layout_of, loads

if TYPE_CHECKING:
    from crashlend.facts import Facts

TIB = 1 << 40
# What planning may cost on the largest host here: 64 TiB in 32767 blocks, each with its census.
PLAN_SECONDS = 10.0

every_host = pytest.mark.parametrize("big", BIG_HOSTS.values(), ids=BIG_HOSTS)


def plan_of(some: Facts, lend_bytes: int = 64 * GIB, **settings: str) -> Plan:
    return make_plan(some, Settings(lend=lend_bytes, **settings), PAYLOAD)  # type: ignore[arg-type]


@every_host
@pytest.mark.parametrize("placement", ["reserved", "lent"])
def test_plan_of_a_big_host_holds_together(big: Big, placement: str) -> None:
    """All that must hold for any plan; lent memory is whole blocks of plain RAM, as asked."""
    some = big.facts()
    plan = plan_of(some, placement=placement)
    assert_invariants(plan, some)
    assert layout_of(plan).placement == placement
    assert plan.lent.size == 64 * GIB
    assert plan.lent.align_inwards(BIG_BLOCK) == plan.lent
    assert Ranges((start, end) for _, start, end in big.spans()).covers(plan.lent)
    assert not plan.lent.meets(Ranges([HOLE]))
    assert all(c.block * BIG_BLOCK >= HOLE[1] for c in plan.offer.candidates)


@every_host
def test_dump_of_a_big_host_has_all_of_its_memory(big: Big) -> None:
    """PT_LOADs, lent memory, reservation and the first MiB are all of RAM, to the byte."""
    some = big.facts()
    plan = plan_of(some)
    parts = Ranges([LOW_PART]) | plan.reservation
    dumped = Ranges(loads(plan))
    total = sum(end - start for _, start, end in big.spans())
    assert dumped.size + plan.lent.size + parts.size == total
    headers = parse_program_headers(build_core_header(layout_of(plan).program_headers))
    assert len(headers) == len(layout_of(plan).program_headers)
    # the direct mapping ends below the kernel's own part of the address space
    ram = [h for h in headers if h.type == PT_LOAD][1:]
    assert max(h.virt + h.bytes for h in ram) < 0xFFFFFE0000000000
    assert len(headers) == len(ram) + 1 + big.cpus + 1


@every_host
def test_control_pages_have_room_for_every_512_gib(big: Big) -> None:
    """The kernel's identity map takes a page for each 512 GiB of RAM, wherever it lies."""
    some = big.facts()
    slots = {s // (512 * GIB) for _, start, end in big.spans() for s in (start, end - 1)}
    layout = layout_of(plan_of(some))
    assert layout.control_pages >= len(slots)
    assert layout.required_bytes < 60 * MIB  # 48 of them are the image's own


@every_host
def test_no_node_of_a_big_host_lends_more_than_its_share(big: Big) -> None:
    """Asked for three quarters of all RAM, every node gives less than half of its own."""
    some = big.facts()
    plan = plan_of(some, big.nodes * big.node_bytes * 3 // 4)
    owner = {b.index: b.node for b in some.blocks}
    lent = Counter(owner[s // BIG_BLOCK] for r in plan.lent for s in range(*r, BIG_BLOCK))
    assert sorted(lent) == list(range(big.nodes))
    for node, blocks in lent.items():
        managed = sum(z.managed for z in some.zones if z.node == node) * PAGE
        assert managed // 2 - BIG_BLOCK < blocks * BIG_BLOCK <= managed // 2, node
    assert any("at most 50 %" in note for note in plan.notes)
    assert_invariants(plan, some)


@every_host
def test_shrink_of_a_big_host_leaves_the_low_part(big: Big) -> None:
    """Only the upper range shrinks; where the file counts both, both are in what is written."""
    some = big.facts()
    some = replace(some, lent_blocks=(5,), blocks=tuple(
        replace(b, zones=("Movable",)) if b.index == 5 else b for b in some.blocks
    ))  # fmt: skip
    low = LOW_PART[1] - LOW_PART[0]
    shrink = plan_shrink(some, Settings(lend=2 * GIB), PAYLOAD)
    assert shrink is not None
    assert shrink.plan.lent == Ranges([(5 * BIG_BLOCK, 6 * BIG_BLOCK)])
    assert shrink.plan.reservation[0] == LOW_PART
    assert shrink.before.size == 512 * MIB
    assert shrink.plan.reservation[1].size == shrink.after_bytes < 16 * MIB
    assert shrink.written_bytes == shrink.after_bytes + low
    older = replace(some, crash_size_bytes=512 * MIB)
    again = plan_shrink(older, Settings(lend=2 * GIB), PAYLOAD)
    assert again is not None
    assert again.written_bytes == shrink.after_bytes


def test_five_levels_need_an_image_that_knows_them() -> None:
    """64 TiB with 5-level page tables: the mapping is the wider one, an older image is refused."""
    some = BIG_HOSTS["64 TiB"].facts()
    assert max(end for _, end in loads(plan_of(some))) > 1 << 46  # beyond what 4 levels map
    assert some.page_offset == PAGE_OFFSET_LA57
    older = payload(xloadflags=0x0B)
    with pytest.raises(CrashlendError, match="5-level page tables"):
        make_plan(some, Settings(lend=64 * GIB), older)


@pytest.mark.timeout(120)
def test_planning_stays_fast() -> None:
    """Nothing walks pages, and nothing looks at all blocks for each block."""
    for big in BIG_HOSTS.values():
        some = big.facts(census=True)
        begin = time.process_time()
        plan = plan_of(some, TIB // 8)
        assert time.process_time() - begin < PLAN_SECONDS, big
        assert_invariants(plan, some)
        # the census counts: blocks with kernel data come last
        assert not [r for r in plan.lent for s in range(*r, BIG_BLOCK) if s // BIG_BLOCK % 5 == 0]
