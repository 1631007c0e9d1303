# SPDX-License-Identifier: LGPL-2.1-or-later
"""Ranges that the kernel lists for ``,cma`` and that are not CMA: found, refused, reported."""

from __future__ import annotations

import contextlib
import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from build import BLOCK, CMDLINE, GIB, MIB, MemoryFiles, facts, host, payload, zoneinfo
from crashlend.config import Settings
from crashlend.errors import FormatError, RefusedError
from crashlend.facts import CmaEvidence, read_facts
from crashlend.formats.btf import read_types
from crashlend.health import find_problems
from crashlend.hostfiles import ArchiveFiles
from crashlend.lenders import activation as signs
from crashlend.lenders.activation import activation
from crashlend.plan import make_plan
from crashlend.ranges import Ranges
from crashlend.snapshot import take_snapshot
from crashlend.system.state import State
from kernelmemory import Btf, btf, marked_host, page_types

if TYPE_CHECKING:
    from crashlend.facts import Facts

A, B = (0x110000000, 0x120000000), (0x124000000, 0x12C000000)
LOG = "/dev/kmsg"
CUT_COUNTS = page_types(128)[: page_types(128).rindex(b"Node 0")] + b"Node 0, zone\n"


def read(files: dict[str, bytes], **errors: int) -> Facts:
    return read_facts(MemoryFiles(files, {f"/proc/{name}": code for name, code in errors.items()}))


def plan_of(some: Facts, **settings: Any) -> Any:
    return make_plan(some, replace(Settings(), **settings), payload())


# --- the kernel's marks --------------------------------------------------------------------------


@pytest.mark.parametrize("old", [False, True])
def test_the_marks_of_pageblocks_tell_each_range(old: bool) -> None:
    """One of two ranges is CMA, by either layout of the flags: the other one is lost."""
    some = read(marked_host([A, B], [A], old=old))
    assert some.cma_evidence is not None
    assert some.cma_evidence.marked == (A,)
    assert activation(some).lost == Ranges([B])
    assert activation(some).by == (signs.BY_MARKS,)
    assert activation(read(marked_host([A, B], [A, B], old=old))) == signs.Activation()


def test_other_cma_does_not_hide_a_lost_range() -> None:
    """CmaTotal and the zone count a driver's area, which is as large as the range that was lost."""
    files = marked_host([A], [B, (0x130000000, 0x140000000)])
    assert read({**files, "/sys/kernel/btf/vmlinux": b""}).meminfo["CmaTotal"] == 256 * MIB
    assert activation(read(files)).lost == Ranges([A])


def test_a_range_is_judged_by_pageblocks() -> None:
    """A hole of one pageblock in the middle of a section is seen, and nothing beside it."""
    hole = (A[0] + 6 * MIB, A[0] + 8 * MIB)
    some = read(marked_host([A], [(A[0], hole[0]), (hole[1], A[1])]))
    assert activation(some).lost == Ranges([hole])


def test_marks_that_the_kernel_s_own_count_contradicts_are_not_believed() -> None:
    """/proc/pagetypeinfo has fewer CMA pageblocks than the marks: something was read wrongly."""
    some = read(marked_host([A], [A], counted=127))
    assert some.cma_evidence is not None
    assert some.cma_evidence.marked is None
    assert "it counts 127 CMA pageblocks, the marks 128" in some.cma_evidence.why_not


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"/sys/kernel/btf/vmlinux": None}, "no such file"),
        ({"/proc/pagetypeinfo": None}, "no such file"),
        ({"/sys/kernel/btf/vmlinux": b"\x7fELF"}, "BTF"),
        ({"/sys/kernel/btf/vmlinux": Btf().others().data}, "pageblock_bits"),
        ({"/proc/pagetypeinfo": b"Page block order: x\n"}, "Page block order"),
        ({"/proc/pagetypeinfo": b"Page block order: 99\n"}, "can't be"),
        ({"/proc/pagetypeinfo": CUT_COUNTS}, "not understood"),
        ({"/sys/kernel/vmcoreinfo": b"0000000003000000 1000\n"}, "not understood"),
        ({"/sys/kernel/vmcoreinfo": b"0000003300000000 1000\n"}, "does not show physical"),
    ],
)
def test_marks_that_cannot_be_read_are_none(files: dict[str, bytes | None], why: str) -> None:
    """Whatever of the four files is missing or strange: None and the reason, no traceback."""
    all_of = {**marked_host([A], [A]), **files}
    some = read({path: data for path, data in all_of.items() if data is not None})
    assert some.cma_evidence is not None
    assert some.cma_evidence.marked is None
    assert why in some.cma_evidence.why_not


def test_lockdown_hides_the_marks() -> None:
    """confidentiality: /proc/kcore gives EPERM (security/lockdown)."""
    some = read(marked_host([A], [A]), kcore=errno.EPERM)
    assert some.cma_evidence is not None
    assert some.cma_evidence.marked is None
    assert "not permitted" in some.cma_evidence.why_not


def test_btf_of_the_running_kernel_is_read() -> None:
    """list_head as include/linux/types.h has it, from a file with every kind of type."""
    path = Path("/sys/kernel/btf/vmlinux")
    if not path.exists():
        pytest.skip("this kernel has no BTF")
    assert read_types(path.read_bytes(), ["list_head"]) == {"list_head": {"next": 0, "prev": 8}}


def test_btf_leaves_out_bit_fields_and_what_is_not_there() -> None:
    """A structure with kind_flag; a name that only another type's name ends in is none."""
    data = Btf().others().struct("some", {"a": 0, "b": 8, "c": 12}, bit_fields=True).data
    assert read_types(data, ["some", "ome", "nothing"]) == {"some": {"a": 0, "b": 8}}


@pytest.mark.parametrize("cut", range(0, 200, 7))
def test_btf_cut_anywhere_is_an_error_or_less(cut: int) -> None:
    """Never a traceback that is not FormatError."""
    data = btf()
    with contextlib.suppress(FormatError):
        read_types(data[: len(data) - cut], ["mem_section"])


# --- without the marks ---------------------------------------------------------------------------


def evidence(some: Facts, **fields: Any) -> Facts:
    return replace(some, cma_evidence=replace(CmaEvidence(log_whole=True), **fields))


def test_the_only_area_s_own_count_settles_it() -> None:
    """After a failed activation total_pages is 0, or the area is not listed; else the range's size."""
    area = "/sys/kernel/mm/cma/crashkernel/total_pages"
    other = {"/sys/kernel/mm/cma/reserved/total_pages": b"65536\n", LOG: b"6,9,9,-;cut\n"}
    gone = facts(cma_ranges=[A], files=other)
    assert activation(gone) == signs.Activation(Ranges([A]), by=(signs.BY_AREA,))
    named = {"/sys/kernel/mm/cma/crashkernel0/total_pages": b"65536\n", **other}
    assert activation(facts(cma_ranges=[A], files=named)).lost == Ranges()
    lost = facts(cma_ranges=[A], files={area: b"0\n", LOG: b"6,9,9,-;cut\n"})
    assert activation(lost) == signs.Activation(Ranges([A]), by=(signs.BY_AREA,))
    good = facts(cma_ranges=[A], files={area: b"65536\n", LOG: b"6,9,9,-;cut\n"})
    assert activation(good) == signs.Activation()
    # of two areas of that name, the file would be one's
    two = facts(cma_ranges=[A, B], files={area: b"65536\n"})
    assert two.cma_evidence is not None
    assert two.cma_evidence.area_pages is None


def test_a_range_over_a_zone_s_border_is_lost() -> None:
    """kernelcore= puts ZONE_MOVABLE inside it: its blocks name two zones, whatever CMA there is."""
    some = evidence(facts(cma_ranges=[A, B]))
    zones = tuple(
        replace(b, zones=("Movable",)) if b.index == B[0] // BLOCK else b for b in some.blocks
    )
    assert B[0] // BLOCK != (B[1] - 1) // BLOCK
    assert activation(replace(some, blocks=zones)).lost == Ranges([B])
    assert activation(replace(some, blocks=zones)).by == (signs.BY_BORDER,)
    assert activation(some) == signs.Activation()


def test_a_border_inside_a_block_is_found_by_the_zones_spans() -> None:
    """The block says "none"; spans that do not overlap tell, others tell nothing."""
    border = (A[0] + 16 * MIB) // 4096
    text = zoneinfo(
        [(0, "Normal", 0x100000, border - 0x100000), (0, "Movable", border, 0x140000 - border)],
        [A],
    )
    base = f"/sys/devices/system/memory/memory{A[0] // BLOCK}/valid_zones"
    some = facts(cma_ranges=[A], files={"/proc/zoneinfo": text, base: b"none\n"})
    one = replace(some, cma_ranges=((A[0], A[0] + 32 * MIB),))
    assert activation(one).by == (signs.BY_BORDER,)
    wide = tuple(replace(z, spanned=z.spanned + 0x10000) for z in some.zones)
    assert activation(replace(one, zones=wide)).lost == Ranges()


def test_a_zone_that_counts_too_little_cma_has_lost_its_ranges() -> None:
    """Per zone: what lies in another one is not suspected."""
    low = (0x40000000, 0x44000000)
    some = evidence(facts(cma_ranges=[low, A]))
    less = tuple(replace(z, cma=0) if z.name == "Normal" else z for z in some.zones)
    assert activation(replace(some, zones=less)).lost == Ranges([A])
    assert activation(replace(some, zones=less)).by == (signs.BY_ZONE,)
    older = tuple(replace(z, cma=None) for z in some.zones)
    assert activation(replace(some, zones=older)).lost == Ranges()


def test_the_log_s_failures_and_the_total_count_where_nothing_else_tells() -> None:
    """One of two areas failed, nobody knows which: both are lost. A known loss explains a failure."""
    some = evidence(facts(cma_ranges=[A, B]), failures=1)
    assert activation(some) == signs.Activation(Ranges([A, B]), by=(signs.BY_LOG,))
    zones = tuple(
        replace(b, zones=("Movable",)) if b.index == B[0] // BLOCK else b for b in some.blocks
    )
    assert activation(replace(some, blocks=zones)).lost == Ranges([B])
    total = replace(evidence(some), meminfo={**some.meminfo, "CmaTotal": 300 * MIB})
    assert activation(total).by == (signs.BY_TOTAL,)


def test_the_kernel_s_words_for_a_failure_are_counted() -> None:
    """mm/cma.c: "CMA area %s could not be activated"; another area's name is no sign."""
    words = b"cma: CMA area %s could not be activated"
    some = facts(cma_ranges=[A], log=[words % b"crashkernel", words % b"reserved"])
    assert some.cma_evidence is not None
    assert some.cma_evidence.failures == 1


def test_a_cut_log_proves_nothing() -> None:
    """Nothing speaks against the ranges: they are lent, and the plan says on what it rests."""
    some = facts(cma_ranges=[A], files={LOG: b"6,900,9,-;late\n"})
    assert activation(some).unproven == Ranges([A])
    plan = plan_of(some)
    assert plan.lent == Ranges([A])
    assert any("nothing shows that the pages" in note for note in plan.notes)
    assert not any("nothing shows" in n for n in plan_of(facts(cma_ranges=[A])).notes)


# --- what follows --------------------------------------------------------------------------------


def test_a_lost_range_is_refused_with_the_word_that_did_it() -> None:
    """Defect B: exit 11, what, why, remedy."""
    line = b"kernelcore=3500M " + CMDLINE
    some = read(marked_host([A], [], cmdline=line))
    with pytest.raises(RefusedError, match="must not be lent") as caught:
        plan_of(some)
    assert "256 MiB of 256 MiB (0x110000000-0x120000000) are in ordinary use" in caught.value.why
    assert "does not mark" in caught.value.why
    assert "boot without kernelcore=3500M" in caught.value.hint
    assert "--lender movable" in caught.value.hint


def test_the_other_ranges_are_lent_without_the_lost_one() -> None:
    """kexec_load: what is lost stays production's memory and is dumped; by file it can't be left out."""
    some = read(marked_host([A, B], [A]))
    plan = plan_of(some)
    assert plan.lent == Ranges([A])
    assert any("not lent" in note and "0x124000000" in note for note in plan.notes)


@pytest.mark.parametrize("lender", ["auto", "cma", "movable", "cma,movable"])
def test_by_file_nothing_is_lent_beside_a_lost_range(lender: str) -> None:
    """The kernel hands it over whoever lends: kernel data that both core headers leave out."""
    for active in ([A], []):
        some = read(marked_host([A, B], active, movable=[36], lent=[36], lockdown="integrity"))
        with pytest.raises(RefusedError, match="must not lend memory") as caught:
            plan_of(some, lender=lender, lend=GIB)
        assert "0x124000000-0x12c000000) are in ordinary use" in caught.value.why
        assert "--lender" not in caught.value.hint
        assert "--lend 0" in caught.value.hint


def untold(**kind: Any) -> Facts:
    """6.17 under Secure Boot, the log has wrapped before crashlend was started for the first time."""
    files = {
        "/proc/sys/kernel/osrelease": b"6.17.0-test\n",
        "/proc/meminfo": b"MemTotal: 4000000 kB\nCmaTotal: 262144 kB\n",
        LOG: b"6,900,9,-;late\n",
        **kind.pop("files", {}),
    }
    return facts(movable=[36], lent=[36], lockdown="integrity", files=files, **kind)


@pytest.mark.parametrize("total", [b"CmaTotal: 262144 kB\n", b"CmaTotal: 0 kB\n"])
def test_by_file_nothing_is_lent_beside_ranges_that_nobody_can_tell(total: bytes) -> None:
    """The kernel lends them by itself, and our core header would have PT_LOADs over them."""
    some = untold(files={"/proc/meminfo": b"MemTotal: 4000000 kB\n" + total})
    with pytest.raises(RefusedError, match="must not lend memory now") as caught:
        plan_of(some, lender="movable", lend=BLOCK)
    assert "reboot" in caught.value.hint
    plain = plan_of(some, lend=0)
    assert any("may give the crash kernel ,cma ranges" in note for note in plain.notes)
    with pytest.raises(RefusedError, match="dump level 0"):
        plan_of(some, lend=0, dump_level=0)
    allowed = plan_of(some, lend=0, dump_level=0, allow_missing_user_data=True)
    assert allowed.load_variables["ALLOW_MISSING_USER_DATA"] == "1"


@pytest.mark.parametrize(
    "kind",
    [
        {"files": {"/proc/sys/kernel/osrelease": b"6.12.1\n"}},
        {"files": {"/proc/meminfo": b"MemTotal: 4000000 kB\n"}},
        {"files": {LOG: b"6,1,0,-;Linux version 6.17.0\n"}},
        {"cma_ranges": []},
        {"cmdline": b"crashkernel=256M\n"},
    ],
)
def test_by_file_movable_memory_is_lent_where_the_kernel_has_no_ranges(
    kind: dict[str, Any],
) -> None:
    """It does not know the word, has no CMA, a whole log or a list without any, or was not asked."""
    plan = plan_of(untold(**kind), lender="movable", lend=BLOCK)
    assert plan.by_word.size == BLOCK
    assert not any("may give the crash kernel" in note for note in plan.notes)


def test_by_kexec_load_ranges_that_nobody_can_tell_do_not_matter() -> None:
    """There crashlend builds the memory map: they stay production's and are dumped."""
    some = replace(untold(), lockdown="none")
    assert plan_of(some, lender="movable", lend=BLOCK).lent.size == BLOCK


@pytest.mark.parametrize("settings", [{"lend": 0}, {"lender": "none"}])
def test_by_file_without_lending_the_plan_says_what_a_lost_range_does(
    settings: dict[str, Any],
) -> None:
    """No worse than kexec -s -p, so it is not refused; but kernel data will be overwritten."""
    plan = plan_of(read(marked_host([A, B], [A])), syscall="file", **settings)
    assert plan.lent == Ranges()
    assert any(n.startswith("128 MiB of that") and "overwrite" in n for n in plan.notes)
    good = plan_of(read(marked_host([A, B], [A, B])), syscall="file", **settings)
    assert not any("overwrite" in note for note in good.notes)


def test_status_names_a_lost_range_and_most_urgently_one_that_is_lent() -> None:
    """A load of another tool, or of an older crashlend, gave it to the crash kernel."""
    some = replace(read(marked_host([A], [])), crash_loaded=True)
    problem = find_problems(some, {})[0]
    assert problem.startswith("the kernel lists ,cma ranges that are not CMA")
    loaded = {"step": "loaded", "lender": "cma", "lent": [list(A)], "cma": [list(A)]}
    first = find_problems(some, {"loaded": loaded})[0]
    assert first.startswith("lent memory (0x110000000-0x120000000) is not CMA any more")
    good = replace(read(marked_host([A], [A])), crash_loaded=True)
    assert not [p for p in find_problems(good, {"loaded": loaded}) if "CMA" in p]


# --- kept from the first load on -----------------------------------------------------------------


def test_ranges_outlive_the_log(tmp_path: Path) -> None:
    """6.17 and 6.18 tell them in their log alone; once a load has seen them they are on record."""
    meminfo = b"MemTotal: 4000000 kB\nCmaTotal: 262144 kB\n"
    log = [
        b"cma: Reserved 256 MiB at 0x0000000110000000",
        b"crashkernel CMA reserved: 256 MB in 1 ranges",
    ]
    state = State(tmp_path / "state.json")
    state.see_cma(facts(log=log, files={"/proc/meminfo": meminfo}))
    record = (tmp_path / "state.json").read_bytes()
    later = {"/proc/meminfo": meminfo, LOG: b"6,900,9,-;late\n"}
    assert facts(files=later).cma_ranges is None
    later["/run/crashlend/state.json"] = record
    assert facts(files=later).cma_ranges == (A,)
    # what the kernel itself lists counts, not the record
    listed = {"/sys/kernel/kexec/crash_cma_ranges": b"", "/run/crashlend/state.json": record}
    assert facts(files=listed).cma_ranges == ()


def test_marks_are_looked_at_once(tmp_path: Path) -> None:
    """A range that was seen to be CMA stays so until the kernel ends; one that was not is no such."""
    state = State(tmp_path / "state.json")
    files = marked_host([A, B], [A])
    state.see_cma(read(files))
    assert State(tmp_path / "state.json").cma == {"ranges": [list(A), list(B)], "active": [list(A)]}
    files["/run/crashlend/state.json"] = (tmp_path / "state.json").read_bytes()
    again = MemoryFiles(files)
    assert activation(read_facts(again)).lost == Ranges([B])
    assert "/sys/kernel/btf/vmlinux" in again.read_paths
    state.see_cma(read(marked_host([A], [A])))
    files = marked_host([A], [A])
    files["/run/crashlend/state.json"] = (tmp_path / "state.json").read_bytes()
    known = MemoryFiles(files)
    some = read_facts(known)
    assert some.cma_evidence is not None
    assert (some.cma_evidence.remembered, some.cma_evidence.marked) == (True, (A,))
    assert "/sys/kernel/btf/vmlinux" not in known.read_paths


def test_a_load_records_them_and_other_writes_keep_them(tmp_path: Path) -> None:
    """Nothing is written for a host without ranges; forgetting an image does not forget them."""
    path = tmp_path / "state.json"
    State(path).see_cma(facts())
    assert not path.exists()
    State(path).see_cma(facts(cma_ranges=[A]))
    State(path).set_loaded(None)
    assert json.loads(path.read_bytes())["cma"] == {"ranges": [list(A)], "active": []}


def test_a_snapshot_has_the_evidence_and_none_of_the_kernel_s_memory() -> None:
    """What was seen on the host is what a plan elsewhere rests on; BTF and marks stay there."""
    files = MemoryFiles(marked_host([A, B], [A]))
    data, some = take_snapshot(files)
    archive = ArchiveFiles(data, "x")
    assert read_facts(archive).cma_evidence == some.cma_evidence
    assert activation(read_facts(archive)).lost == Ranges([B])
    assert "/sys/kernel/btf/vmlinux" not in archive.files
    assert "/proc/pagetypeinfo" not in archive.files
    assert len(archive.files["/proc/kcore"]) == 64 + 3 * 56


def test_hosts_without_ranges_are_not_looked_at() -> None:
    """No range, no evidence, and not a byte of BTF."""
    files = MemoryFiles(host())
    assert read_facts(files).cma_evidence is None
    assert "/sys/kernel/btf/vmlinux" not in files.read_paths
