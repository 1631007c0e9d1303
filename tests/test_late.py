# SPDX-License-Identifier: LGPL-2.1-or-later
"""Trials of late DMA: what their judges demand, and what the guest's program tells devices."""

from __future__ import annotations

import importlib.util
import mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import crashlend
from crashlend.lab.kernels import Kernel
from crashlend.lab.late import CHECK_IN_FLIGHT, CHECK_NOTHING_CAME, check_late, device_words
from crashlend.lab.outcome import Outcome
from crashlend.lab.qemu import Report
from crashlend.lab.spec import CORRUPTED, Check, Spec
from crashlend.lab.suite import why_not_corrupted
from crashlend.lab.suites.dma import DMA
from crashlend.quiesce import parse_quiesce

if TYPE_CHECKING:
    from types import ModuleType

KERNEL = Kernel("6.1", "6.1.0", "bookworm", Path("vmlinuz"), Path("modules"), None)
READY = {"submitted": 128, "outstanding": 126, "pages": 8192, "pages_in_lent": 8192}
VICTIM = {"bytes": 200 << 20, "late_pages": 0, "seconds": 24}


def checks(
    late: str = "nvme", devices: tuple[str, ...] = (), **events: dict[str, Any]
) -> dict[str, Check]:
    report = Report([{"event": name, **values} for name, values in events.items()])
    return {c.name: c for c in check_late(Spec(kernel=KERNEL, late=late, devices=devices), report)}


def test_a_trial_without_late_dma_is_not_judged_by_it() -> None:
    """No check at all where no device was asked for."""
    assert checks("") == {}


def test_reads_must_be_under_way_and_aim_at_lent_memory_alone() -> None:
    """Nothing outstanding, no page, or one page elsewhere prove nothing."""
    assert checks(in_flight=READY)[CHECK_IN_FLIGHT].ok
    for spoilt in ({"outstanding": 0}, {"pages": 0, "pages_in_lent": 0}, {"pages_in_lent": 8191}):
        assert not checks(in_flight={**READY, **spoilt})[CHECK_IN_FLIGHT].ok
    assert not checks()[CHECK_IN_FLIGHT].ok


@pytest.mark.parametrize(("domain", "ok"), [("DMA-FQ", True), ("identity", False), ("", False)])
def test_an_iommu_must_have_translated(domain: str, ok: bool) -> None:
    """One that is there and passes everything through shows nothing."""
    found = checks(devices=("-device", "intel-iommu"), in_flight={**READY, "iommu": domain})
    assert found["the device's DMA went through the IOMMU"].ok is ok
    assert "the device's DMA went through the IOMMU" not in checks(in_flight=READY)


def test_nothing_came_only_where_somebody_looked() -> None:
    """A victim that never reported, or that owned nothing, is no proof."""
    assert checks(in_flight=READY, victim=VICTIM)[CHECK_NOTHING_CAME].ok
    assert not checks(in_flight=READY)[CHECK_NOTHING_CAME].ok
    assert not checks(in_flight=READY, victim={**VICTIM, "bytes": 0})[CHECK_NOTHING_CAME].ok
    assert not checks(in_flight=READY, victim={**VICTIM, "late_pages": 1})[CHECK_NOTHING_CAME].ok


def test_edu_is_looked_for_in_the_dump() -> None:
    """Its writes go beside lent memory, so /proc/vmcore has them."""
    ready = {"submitted": 5, "outstanding": 5, "pages": 5, "pages_in_lent": 0}
    assert checks("edu", in_flight=ready)[CHECK_IN_FLIGHT].ok
    assert checks("edu", in_flight=ready, scanned={"late_pages": 0})[CHECK_NOTHING_CAME].ok
    assert not checks("edu", in_flight=ready, scanned={"late_pages": 1})[CHECK_NOTHING_CAME].ok
    assert not checks("edu", in_flight=ready, victim=VICTIM)[CHECK_NOTHING_CAME].ok


def outcome(late_pages: int | None, **spoilt: Any) -> Outcome:
    events: list[dict[str, Any]] = [{"event": "in_flight", **READY, **spoilt}]
    if late_pages is not None:
        events.append({"event": "victim", **VICTIM, "late_pages": late_pages})
    spec, report = Spec(kernel=KERNEL, late="nvme"), Report(events)
    given = [
        Check(n, True, "") for n in ("crashlend did as asked", "as much is lent as was asked for")
    ]
    found = (*given, Check("dump saved", False, ""), *check_late(spec, report))
    return Outcome(spec, report, {}, {}, "", found, "")


def test_a_control_must_have_seen_what_came() -> None:
    """It may lose its dump of that; without late writes seen, or none under way, it proves nothing."""
    assert why_not_corrupted(outcome(7)) == ""
    assert "saw no late write" in why_not_corrupted(outcome(0))
    assert "saw no late write" in why_not_corrupted(outcome(None))
    assert "the control is none" in why_not_corrupted(outcome(7, outstanding=0))


def test_every_method_has_a_control_of_the_same_device() -> None:
    """What shows that nothing comes is worth as much as the trial that shows that it would have."""
    late = [t for t in DMA if "late" in t.spec]
    controls = [t.spec["late"] for t in late if t.expect == CORRUPTED]
    assert {t.spec["late"] for t in late} == set(controls)
    for trial in late:
        wish = parse_quiesce(trial.spec["dma_quiesce"])
        assert (str(wish) == "wait=0") == (trial.expect == CORRUPTED)


def test_the_disk_holds_nothing_but_the_pattern(tmp_path: Path) -> None:
    """Each byte that comes from it is no zero, so one that is none came from it."""
    words = device_words("nvme", tmp_path)
    assert set((tmp_path / "late.img").read_bytes()) == {0xD3}
    assert any(f"file={tmp_path}/late.img" in word and "iops-read=2" in word for word in words)
    assert device_words("edu", tmp_path).count("edu,dma_mask=0xffffffffff") == 4
    assert device_words("", tmp_path) == ()


# --- the guest's program -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guest() -> ModuleType:
    path = Path(crashlend.__file__).parent / "lab/guestfiles/late.py"
    spec = importlib.util.spec_from_file_location("late_in_guest", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_kernel_s_iocb_has_64_bytes(guest: ModuleType) -> None:
    """The layout of include/uapi/linux/aio_abi.h: buffer at 24, length at 32, offset at 40."""
    block = guest.IOCB.pack(1, 0, 0, guest.PREAD, 0, 7, 0x1000, 0x2000, 0x3000, 0, 0, 0)
    assert len(block) == 64
    assert int.from_bytes(block[20:24], "little") == 7
    assert [int.from_bytes(block[at : at + 8], "little") for at in (24, 32, 40)] == [
        *(0x1000, 0x2000, 0x3000)
    ]


def test_a_frame_is_lent_where_its_page_lies_in_a_range(guest: ModuleType) -> None:
    """Half-open, in bytes."""
    lent = [[0x100000, 0x200000]]
    inside = [guest.is_lent(frame, lent) for frame in (0xFF, 0x100, 0x1FF, 0x200)]
    assert inside == [False, True, True, False]


def test_an_edu_transfer_is_four_registers(guest: ModuleType) -> None:
    """Source, target, count and command, where QEMU's specification has them."""
    registers = mmap.mmap(-1, 1 << 20)
    guest.tell(registers, 0x40000, 0x123456000, 3)
    assert [
        int.from_bytes(registers[at : at + 8], "little") for at in (0x80, 0x88, 0x90, 0x98)
    ] == [*(0x40000, 0x123456000, 2048, 3)]
