# SPDX-License-Identifier: LGPL-2.1-or-later
"""Memory below 4 GiB: what there is, how much of it bounce buffers may take, who needs it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from build import GIB, MIB, PAGE, RESERVATION, facts
from crashlend import lowmem
from crashlend.facts import NarrowDevice
from crashlend.ranges import Ranges
from test_plan import layout_of, plan_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crashlend.plan import Plan

START = RESERVATION[0]
HIGH = (4 * GIB, 5 * GIB)
IDE = NarrowDevice("0000:00:01.1", "ata_piix", 32)


def small(megabytes: int, files: Mapping[str, bytes] | None = None) -> object:
    return facts(reservations=[(START, START + megabytes * MIB)], files=files)


def slabs(word: str | None) -> int:
    assert word is not None
    return int(word.removeprefix("swiotlb="))


@given(st.integers(0, 512), st.integers(0, 64))
def test_bounce_buffers_leave_half_of_what_is_free(low_mib: int, occupied_mib: int) -> None:
    """Never under the kernel's least, in its units; nothing is said where its 64 MiB leave half."""
    low = (GIB, GIB + low_mib * MIB)
    occupied = Ranges([(GIB, GIB + occupied_mib * MIB)])
    word = lowmem.bounce_word(Ranges([low, HIGH]), occupied)
    free = max(0, low_mib - occupied_mib) * MIB
    if free >= 128 * MIB:
        assert word is None
    else:
        size = slabs(word) * 2048
        assert size % (256 * 1024) == 0
        assert size == MIB or free // 2 - 256 * 1024 < size <= free // 2
        assert size >= MIB


def test_without_memory_above_there_are_no_bounce_buffers() -> None:
    """A crash kernel below 4 GiB reaches all of its memory with 32 bits, and takes none."""
    assert lowmem.bounce_word(Ranges([(GIB, GIB + 32 * MIB)]), Ranges()) is None
    assert lowmem.bounce_word(Ranges(), Ranges()) is None


def test_the_first_mib_does_not_count() -> None:
    """What firmware and trampolines have is no use to drivers."""
    assert lowmem.low_bytes(Ranges([(0, 3 * MIB), HIGH])) == 2 * MIB


@pytest.mark.parametrize(("megabytes", "said"), [(16, True), (32, True), (256, False)])
def test_the_plan_sizes_them_where_little_is_below_4_gib(megabytes: int, said: bool) -> None:
    """With lent memory above 4 GiB and a small reservation; the word has a reason in the plan."""
    plan = plan_of(small(megabytes), lend=GIB // 2)  # type: ignore[arg-type]
    assert plan.lent[0].start >= 4 * GIB
    assert plan.cmdline is not None
    words = {a.word: a.reason for a in plan.cmdline.added}
    found = [word for word in words if word.startswith("swiotlb=")]
    assert bool(found) is said
    assert bool(plan.notes) is said
    if said:
        stored = sum(s.memory_bytes for s in layout_of(plan).segments)
        assert 0 < slabs(found[0]) * 2048 <= max(MIB, (megabytes * MIB - stored) // 2)
        assert words[found[0]] == lowmem.BOUNCE_REASON
        assert plan.costs.crash_kernel_low_bytes == megabytes * MIB - PAGE


def test_the_word_counts_in_the_line_that_is_loaded() -> None:
    """Segments are laid out for the line as it is in the end."""
    plan = plan_of(small(16), lend=GIB // 2)  # type: ignore[arg-type]
    layout = layout_of(plan)
    assert plan.cmdline is not None
    params = layout.segment("boot_params")
    assert params.stored_bytes >= 4096 + len(plan.cmdline.encode()) + 1


def test_production_s_own_size_is_dropped() -> None:
    """It was made for production's memory, and might be all that the crash kernel has."""
    plan = plan_of(facts(cmdline=b"swiotlb=262144 crashkernel=1G,cma crashkernel=256M\n"))
    assert plan.cmdline is not None
    assert "swiotlb" not in plan.cmdline.line


def test_devices_that_need_it_are_named() -> None:
    """Little memory matters to these alone; where there are none the note says that, too."""
    ram = Ranges([(GIB, GIB + 16 * MIB), HIGH])
    (note,) = lowmem.warnings(ram, [IDE])
    assert "0000:00:01.1 (ata_piix, 32 bits)" in note
    (note,) = lowmem.warnings(ram, [])
    assert "no disk or network device of this host needs more" in note
    assert lowmem.warnings(Ranges([(GIB, GIB + 64 * MIB)]), [IDE]) == ()


PCI = "/sys/bus/pci/devices"


@pytest.mark.parametrize(
    ("event", "bits", "found"),
    [
        (b"DRIVER=ata_piix\nPCI_CLASS=10180\n", b"32\n", [IDE]),
        (b"DRIVER=b44\nPCI_CLASS=20000\n", b"30\n", [replace(IDE, driver="b44", bits=30)]),
        (b"DRIVER=nvme\nPCI_CLASS=10802\n", b"64\n", []),
        (b"PCI_CLASS=10180\n", b"32\n", []),
        (b"DRIVER=i801_smbus\nPCI_CLASS=C0500\n", b"32\n", []),
        (b"DRIVER=piix4\nPCI_CLASS=1020\n", b"32\n", []),
        (b"DRIVER=ata_piix\nPCI_CLASS=10180\n", b"many\n", []),
    ],
)
def test_disks_and_networks_with_32_bits_are_found(
    event: bytes, bits: bytes, found: list[NarrowDevice]
) -> None:
    """A driver must be bound, and its class be storage or network."""
    base = f"{PCI}/0000:00:01.1"
    some = facts(files={f"{base}/uevent": event, f"{base}/dma_mask_bits": bits})
    assert list(some.narrow_devices) == found


NARROW = {
    f"{PCI}/0000:00:01.1/uevent": b"DRIVER=ata_piix\nPCI_CLASS=10180\n",
    f"{PCI}/0000:00:01.1/dma_mask_bits": b"32\n",
}


def low_blocks(plan: Plan) -> int:
    return lowmem.low_bytes(plan.lent) // (128 * MIB)


def test_a_device_that_needs_it_gets_one_block_below_4_gib() -> None:
    """One, the first to be tried; a host whose devices reach everything keeps its ZONE_DMA32."""
    plan = plan_of(facts(files=NARROW), lend=GIB // 2)
    assert low_blocks(plan) == 1
    assert plan.lent.size == GIB // 2
    assert plan.offer.candidates[0].block < 32
    assert low_blocks(plan_of(facts(), lend=GIB // 2)) == 0


@pytest.mark.parametrize("held", [(38, 39), (10, 39), (10, 11, 39)])
def test_the_block_below_4_gib_is_kept(held: tuple[int, ...]) -> None:
    """One that is lent already is enough, and of too many it is the last to go back."""
    some = facts(files=NARROW, movable=held, lent=held)
    plan = plan_of(some, lend=4 * 128 * MIB)
    assert low_blocks(plan) == max(1, sum(i < 32 for i in held))
    assert Ranges((i * 128 * MIB, (i + 1) * 128 * MIB) for i in held) - plan.lent == Ranges()
    fewer = plan_of(some, lend=128 * MIB, lender="movable")
    assert low_blocks(fewer) == (1 if 10 in held else 0)
