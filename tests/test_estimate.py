# SPDX-License-Identifier: LGPL-2.1-or-later
"""Estimates: memory cut off a loaded image, the search for the least, what to write, the page."""

from __future__ import annotations

import hashlib
import json
import random
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from build import CMDLINE, GIB, MIB, bz_image, facts
from crashlend.cli.estimate_verb import show_estimate
from crashlend.config import Settings
from crashlend.errors import CrashlendError
from crashlend.formats.bzimage import BzImage
from crashlend.jsonable import to_json
from crashlend.lab.bench.search import Quest
from crashlend.lab.kernels import Kernel
from crashlend.lab.outcome import Outcome
from crashlend.lab.qemu import Report
from crashlend.lab.spec import Spec
from crashlend.lab.twin import cut, estimate, write
from crashlend.lab.twin.bisect import find_least, next_sizes
from crashlend.lab.twin.probes import Look, look_of
from crashlend.lab.twin.run import Payload as RunPayload
from crashlend.lab.twin.shape import Change, resemble
from crashlend.payload import Files
from crashlend.plan import Payload, make_plan
from crashlend.ranges import Range, Ranges
from crashlend.system.image import build_image

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crashlend.plan import Plan

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs/results"


# ---- memory is cut off


def loaded(placement: str = "auto") -> tuple[Plan, dict[str, bytes], BzImage]:
    """A load of a host with 256M reserved and 1G lent: its plan and the bytes of its segments."""
    file = bz_image()
    image = BzImage.parse(file)
    known = facts(cmdline=CMDLINE, movable=tuple(range(8, 16)), lent=tuple(range(8, 16)))
    payload = Payload(image, 2 * MIB)
    plan = make_plan(known, Settings(placement=placement), payload, held_only=True)
    files = Files(Path("k"), file, Path("i"), bytes(2 * MIB), payload)
    return plan, build_image(plan, known, files).segments, image


@pytest.mark.parametrize("placement", ["reserved", "lent"])
def test_cut_memory_holds_the_image_and_no_more_than_asked(placement: str) -> None:
    """Whatever size is asked for: exactly that, of the RAM there was, and all that the image takes."""
    plan, segments, image = loaded(placement)
    layout: Any = to_json(plan.layout)
    ram = cut.ram_of(segments["boot_params"])
    needed = cut.needed_ranges(layout, image.init_size)
    order = cut.order_of(plan.reservation, plan.lent, layout["kernel_runs_at"])
    assert ram.size > GIB
    for size in (needed_size := (ram & needed).size, needed_size + 4096, 200 * MIB, ram.size):
        got = cut.cut(ram, needed, size, order)
        assert got.size == size
        assert ram.covers(got)
        assert got.covers(ram & needed)
    with pytest.raises(CrashlendError):
        cut.cut(ram, needed, needed_size - 4096, order)
    with pytest.raises(CrashlendError):
        cut.cut(ram, needed, ram.size + 4096, order)


def test_memory_goes_first_where_a_smaller_loan_would_lack_it() -> None:
    """The reservation is filled first, then the range that the kernel runs in, both from their tops."""
    ram = Ranges([(0, 4096), (1 * GIB, 2 * GIB), (3 * GIB, 4 * GIB)])
    order = cut.order_of(Ranges([(3 * GIB, 4 * GIB)]), Ranges([(1 * GIB, 2 * GIB)]), GIB)
    got = cut.cut(ram, Ranges([(0, 4096)]), GIB + 8192, order)
    assert list(got) == [Range(0, 4096), Range(2 * GIB - 4096, 2 * GIB), Range(3 * GIB, 4 * GIB)]


def test_a_cut_map_is_sealed_again() -> None:
    """The map has the new RAM and all other entries; purgatory's digests fit it, its own as well."""
    plan, segments, _ = loaded()
    page, code = segments["boot_params"], segments["purgatory"]
    assert plan.layout is not None
    start = plan.layout.segment("boot_params").start
    ram = Ranges([(4096, 0x9F000), (GIB, GIB + 100 * MIB)])
    new = cut.with_ram(page, ram)
    assert cut.ram_of(new) == ram
    assert len(new) == len(page)
    assert others(new) == others(page) != []
    sealed = cut.resealed(code, "boot_params", start, new)
    # of the region boot_params, as purgatory.h has it: what is in front of the record
    verified = new[: plan.layout.record_phys - start]
    assert sealed.count(hashlib.sha256(verified).digest()) == 1
    assert code.count(hashlib.sha256(page[: len(verified)]).digest()) == 1
    assert len(sealed) == len(code)
    # nothing but that digest and its own is another
    assert sum(a != b for a, b in zip(sealed, code, strict=True)) <= 64
    assert sealed[16:48] != code[16:48]
    assert cut.resealed(sealed, "boot_params", start, page) == code


def others(page: bytes) -> list[tuple[int, int, int]]:
    """The entries of a zero page's map that are not RAM (boot.rst: at 0x2d0, count at 0x1e8)."""
    entries = [struct.unpack_from("<QQI", page, 0x2D0 + 20 * i) for i in range(page[0x1E8])]
    return [entry for entry in entries if entry[2] != 1]


def test_what_purgatory_does_not_verify_cannot_be_sealed() -> None:
    """A name that is not among its regions is refused, not passed over."""
    _, segments, _ = loaded()
    with pytest.raises(CrashlendError, match="does not verify"):
        cut.resealed(segments["purgatory"], "nothing", 0, b"")


# ---- the search


def search(enough: Any, quest: Quest, jobs: int = 1) -> tuple[Any, list[int]]:
    """A search with a made-up prober; also the sizes that it was asked for."""
    asked: list[int] = []

    def look(sizes: Sequence[int]) -> list[bool]:
        asked.extend(sizes)
        return [enough(size) for size in sizes]

    return find_least(quest, look, jobs)[0], asked


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_the_least_is_found_to_the_step(jobs: int) -> None:
    """A prober that says the same each time: the answer passes, the size below it fails."""
    for least in (30, 31, 77, 101, 299, 300):
        found, asked = search(lambda size, least=least: size >= least, Quest(30, 300, 90, 4), jobs)
        assert found.answer == least
        assert len(asked) <= 40


def test_nothing_is_enough() -> None:
    """No size passes: no answer, and no endless search."""
    found, asked = search(lambda _: False, Quest(30, 300, 90, 4))
    assert found.answer is None
    assert found.below == 300
    assert len(asked) < 20


def test_probes_ahead_are_those_that_come_next() -> None:
    """With two at a time, the second is what a pass or a failure of the first leads to."""
    quest = Quest(10, 200, 100, 8)
    first, second, third = next_sizes(quest, [], 3)
    assert first == 100
    assert (second, third) == (92, 108)
    assert next_sizes(quest, [], 1) == (100,)


def test_an_unreliable_size_is_no_answer() -> None:
    """Where sizes pass only sometimes, the answer is above each that failed; exceptions are told."""
    for seed in range(40):
        source = random.Random(seed)

        def flaky(size: int, source: random.Random = source) -> bool:
            return size >= 100 or (size >= 80 and source.random() < 0.5)

        seen: list[tuple[int, bool]] = []

        def look(sizes: Sequence[int], seen: list[Any] = seen, flaky: Any = flaky) -> list[bool]:
            answers = [flaky(size) for size in sizes]
            seen.extend(zip(sizes, answers, strict=True))
            return answers

        found, _ = find_least(Quest(40, 300, 120, 4), look, 1)
        failed = [size for size, ok in seen if not ok]
        assert found.answer is not None
        assert 80 <= found.answer <= 100
        assert found.answer > max(failed)
        assert set(found.exceptions) == {s for s, ok in seen if ok and s <= max(failed)}


class FakeProbes:
    """A twin that saves with ``least`` bytes; what it used, and all RAM it has."""

    def __init__(self, least: int, whole: int = 640 * MIB) -> None:
        self.least, self.ram = least, Ranges([(0, whole)])
        self.least_bytes, self.init_size, self.jobs = 70 * MIB, 64 * MIB, 1

    def look(self, size: int, worker: int = 0) -> Look:
        return Look(size, size >= self.least, "saved", 1.0, size - 50 * MIB, 40 * MIB, 30 * MIB)


@pytest.mark.parametrize("least_mib", [70, 102, 333])
def test_an_estimate_looks_at_the_whole_first(least_mib: int) -> None:
    """First with all memory, whose peak is the capture's; then down to the least, on the grid."""
    seeker = estimate._Search(estimate.Options())
    seeker.run(FakeProbes(least_mib * MIB), lambda _: None)  # type: ignore[arg-type]
    assert seeker.looks[0].memory_bytes == 640 * MIB
    assert seeker.least_bytes is not None
    assert 0 <= seeker.least_bytes - least_mib * MIB < 2 * MIB
    assert seeker.least_bytes % (2 * MIB) == 0


def test_a_twin_that_never_saves_has_no_least() -> None:
    """Where all memory is not enough, nothing less is tried, and there is no answer."""
    seeker = estimate._Search(estimate.Options())
    seeker.run(FakeProbes(2 * GIB), lambda _: None)  # type: ignore[arg-type]
    assert len(seeker.looks) == 1
    assert seeker.least_bytes is None


# ---- how a probe ended


def test_how_a_probe_died_is_told() -> None:
    """The last panic, whom memory ran out for, and the capture's own reason; else the last line."""
    console = (
        "[    1.0] Out of memory: Killed process 77 (makedumpfile) total-vm:9kB\n"
        "[    2.0] Kernel panic - not syncing: System is deadlocked on memory\n"
        "[    2.1] ---[ end Kernel panic - not syncing: System is deadlocked on memory ]---\n"
    )
    report = {"ok": False, "reason": "makedumpfile ended with 137"}
    look = look_of(MIB, report, "reset", console, 1.0)
    assert not look.saved
    assert look.how == (
        "Kernel panic - not syncing: System is deadlocked on memory; "
        "Out of memory: Killed process 77 (makedumpfile) total-vm:9kB; makedumpfile ended with 137"
    )
    assert look_of(MIB, {}, "hang", "[ 0.1] early\n", 1.0).how == "hang after: early"
    good = {"ok": True, "crash_kernel": {"mem_total_bytes": 9, "peak_used_bytes": 5}}
    good["vmcore"] = {"bytes": 3}
    look = look_of(MIB, good, "crash kernel up", console, 1.0)
    assert (look.saved, look.how, look.peak_used_bytes, look.vmcore_bytes) == (True, "saved", 5, 3)


# ---- what to write


def test_a_reservation_that_is_not_shrunk_is_said() -> None:
    """The search has the whole reservation, also where the host's load shrinks it: that is a change."""
    assert estimate.whole(Settings()) == ()
    (change,) = estimate.whole(Settings(shrink_on_load=True))
    assert (change.host, change.twin) == ("shrunk when it is loaded", "whole")


def test_what_to_write_is_enough_and_has_its_reasons() -> None:
    """What is reserved holds the stored image with room, what is lent all that is needed with room."""
    plan, _, _ = loaded()
    advice = write.advise(facts(cmdline=CMDLINE), plan.to_json(), 102 * MIB)
    assert plan.layout is not None
    assert advice.required_bytes < plan.layout.required_bytes  # no room to unpack itself in there
    assert advice.reserve_bytes >= advice.required_bytes + 4 * MIB
    assert advice.lend_bytes == 256 * MIB
    assert advice.lend_bytes >= 102 * MIB * 1.25
    assert advice.lent_bytes + advice.required_bytes == 102 * MIB
    assert advice.line == f"crashkernel=256M,cma crashkernel={advice.reserve_bytes // MIB}M"
    assert len(advice.reasons) == 2


def test_bitmaps_of_memory_that_the_twin_lacks() -> None:
    """Two bits for each page of 4 KiB: 64 MiB per TiB; nothing where the twin has it all."""
    assert write.bitmap_bytes(1 << 40) == 64 * MIB
    assert write.bitmap_bytes(0) == write.bitmap_bytes(-5) == 0


# ---- what is printed


def finished(*looks: Look, least: int | None) -> estimate.Estimate:
    """An estimate that came out like that."""
    plan, _, _ = loaded()
    kernel = Kernel("k", "6.1.0-test", "bookworm", Path("v"), Path("m"), None)
    outcome = Outcome(Spec(kernel=kernel), Report(), plan.to_json(), {}, "", (), "")
    shape = resemble(facts(cmdline=CMDLINE), Settings())
    change = Change("dump target", "nfs://a/b", "ext4 on virtio", "no network here")
    found = estimate.Estimate(shape, RunPayload(kernel, b"", (change,)), outcome, [*looks])
    found.least_bytes = least
    if least is not None:
        found.fails_at_bytes = least - 2 * MIB
        found.advice = write.advise(facts(cmdline=CMDLINE), outcome.plan, least)
    else:
        found.why_not = "no dump is saved with 640 MiB either: it died"
    return found


def test_an_estimate_is_told_to_people(capsys: pytest.CaptureFixture[str]) -> None:
    """The answer and its parts, each probe and how it ended, the line, what was not as on the host."""
    whole = Look(640 * MIB, True, "saved", 1.0, 577 * MIB, 43 * MIB, 30 * MIB)
    died = Look(100 * MIB, False, "Kernel panic - not syncing: System is deadlocked", 1.0)
    show_estimate(finished(whole, died, least=102 * MIB))
    told = capsys.readouterr().out
    assert "102 MiB; with 100 MiB it is lost" in told
    assert "43 MiB of 577 MiB" in told
    assert "100 MiB  Kernel panic - not syncing: System is deadlocked" in told
    assert "crashkernel=256M,cma crashkernel=" in told
    assert "dump target: ext4 on virtio instead of nfs://a/b (no network here)" in told


def test_no_estimate_has_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    """Where nothing saved the dump there are no figures and no line to write, but why."""
    found = finished(Look(640 * MIB, False, "it died", 1.0), least=None)
    show_estimate(found)
    told = capsys.readouterr().out
    assert "no estimate: no dump is saved with 640 MiB either: it died" in told
    assert "crashkernel=" not in told
    answer = found.to_json()
    assert (answer["ok"], answer["least_bytes"], answer["reserve"]) == (False, None, None)
    assert answer["probes"][0]["how"] == "it died"


def test_an_estimate_for_programs() -> None:
    """Schema 1: the figures, each probe, what to write, the twin and its changes."""
    whole = Look(640 * MIB, True, "saved", 1.0, 577 * MIB, 43 * MIB, 30 * MIB)
    answer = json.loads(json.dumps(finished(whole, least=102 * MIB).to_json()))
    assert answer["schema"] == 1
    assert answer["ok"] is True
    assert (answer["least_bytes"], answer["peak_used_bytes"]) == (102 * MIB, 43 * MIB)
    reserve = answer["reserve"]
    assert reserve["required_bytes"] + reserve["lent_bytes"] == 102 * MIB
    assert answer["twin"]["changes"][0]["what"] == "dump target"


# ---- the kept comparison


def kept() -> list[dict[str, Any]]:
    """The kept comparisons of an estimate with the real capture."""
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("estimate-*.json"))]


def test_estimates_are_within_ten_percent_of_the_real_capture() -> None:
    """Of each kept comparison: the estimate's peak against capture.json's of the very host."""
    assert kept()
    for one in kept():
        real, told = one["real"]["peak_used_bytes"], one["estimate"]["peak_used_bytes"]
        assert abs(told - real) <= 0.10 * real
        assert one["difference_percent"] == pytest.approx((told - real) / real * 100, abs=0.06)
        probes = one["estimate"]["probes"]
        failed = max(p["memory_bytes"] for p in probes if not p["saved"])
        saved = [p["memory_bytes"] for p in probes if p["memory_bytes"] > failed]
        assert one["estimate"]["least_bytes"] == min(saved)


def test_the_page_is_what_the_results_say() -> None:
    """docs/estimate.md is what `make docs` writes of the kept comparisons."""
    words = [sys.executable, str(ROOT / "tools/estimate_page.py"), str(RESULTS)]
    page = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert (ROOT / "docs/estimate.md").read_text() == page
