# SPDX-License-Identifier: LGPL-2.1-or-later
"""What must never be lent: every row of the table is recognised from constructed facts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from build import BLOCK, GIB, HUGE, HWPOISON, MIB, OFFLINE, MemoryFiles, facts, host
from crashlend.arch import x86_64
from crashlend.errors import CrashlendError, RefusedError
from crashlend.facts import read_facts
from crashlend.facts.never import NEVER_LENT
from crashlend.hostfiles import ArchiveFiles
from crashlend.ranges import Ranges
from crashlend.snapshot import take_snapshot
from test_plan import plan_of

if TYPE_CHECKING:
    from collections.abc import Mapping

KVM_AMD = {"/sys/module/kvm_amd/parameters/sev": b"Y\n"}
BALLOON = "/sys/bus/virtio/devices/virtio3"
HV = "/sys/bus/vmbus/drivers/hv_balloon/1eccfd72-4b41-45ef/x"

# the row's beginning, the host, what the reason says
REFUSED: list[tuple[str, dict[str, Any], bytes]] = [
    *(
        ("active memory encryption", {"log": [b"Memory Encryption Features active: " + word]}, word)
        for word in (
            b"AMD SEV",
            b"AMD SEV SEV-ES",
            b"AMD SEV SEV-ES SEV-SNP",
            b"Intel TDX",
            b"AMD SME",
        )
    ),
    ("SEV-SNP guests", {"files": {"/sys/devices/platform/sev-guest/uevent": b"x"}}, b"SEV"),
    ("SEV-SNP guests", {"files": {"/dev/sev-guest": b""}}, b"SEV"),
    ("TDX guests", {"flags": "fpu tdx_guest"}, b"TDX guest"),
    ("TDX guests", {"files": {"/sys/devices/virtual/misc/tdx_guest/dev": b"10:1"}}, b"TDX guest"),
    (
        "active SME",
        {"cmdline": b"ro mem_encrypt=on crashkernel=1G,cma crashkernel=256M"},
        b"mem_enc",
    ),
    (
        "hosts of SEV guests",
        {
            "files": {
                **KVM_AMD,
                "/sys/module/ccp/refcnt": b"3\n",
                "/sys/module/ccp/holders/kvm_amd/x": b"",
            }
        },
        b"/dev/sev is in use",
    ),
    ("hosts of SEV guests", {"files": KVM_AMD}, b"not counted"),
    ("hosts of TDX guests", {"files": {"/sys/module/kvm_intel/parameters/tdx": b"Y\n"}}, b"TDX"),
    ("unaccepted memory", {"unaccepted": True}, b"unaccepted"),
    (
        "a virtio balloon that must tell",
        {
            "files": {
                f"{BALLOON}/device": b"0x0005\n",
                f"{BALLOON}/features": b"1100000000000000000000000000000010000000\n",
            }
        },
        b"virtio3 must tell the host",
    ),
    ("Xen guests", {"files": {"/sys/hypervisor/type": b"xen\n"}}, b"Xen"),
    ("Hyper-V guests", {"files": {HV: b""}}, b"Hyper-V"),
]

# in /proc/iomem: the row's beginning, resources of the top 128 MiB of RAM
AT, END = 5 * GIB, 5 * GIB + BLOCK
EXCLUDED: list[tuple[str, list[tuple[int, int, int, str]]]] = [
    ("virtio-mem's memory", [(0, AT, END, "virtio0"), (1, AT, END, "System RAM (virtio_mem)")]),
    (
        "memory that other drivers added",
        [(0, AT, END, "Soft Reserved"), (1, AT, END, "dax0.0"), (2, AT, END, "System RAM (kmem)")],
    ),
    (
        "memory that other drivers added",
        [
            (0, AT, END, "CXL Window 0"),
            (1, AT, END, "region0"),
            (2, AT, END, "dax0.0"),
            (3, AT, END, "System RAM (kmem)"),
        ],
    ),
    (
        "memory that other drivers added",
        [(0, AT, END, "CXL Window 0"), (1, AT, END, "System RAM")],
    ),
    ("soft-reserved and persistent", [(0, AT, END, "Soft Reserved")]),
    ("soft-reserved and persistent", [(0, AT, END, "Persistent Memory")]),
    ("soft-reserved and persistent", [(0, AT, END, "Persistent Memory (legacy)")]),
    (
        "soft-reserved and persistent",
        [(0, AT, END, "Persistent Memory"), (1, AT, END, "namespace0.0")],
    ),
    ("the reservation, the kernel", [(0, AT, END, "System RAM"), (1, AT, END, "Whatever")]),
]
ELSEWHERE = (
    "memory that holds its own memmap",
    "other CMA areas",
    "the kernel's ,cma ranges that failed",  # test_activation.py
    "poisoned memory",
    "hugetlb pages",
    "a balloon's pages",
)


def refusing_host(kind: Mapping[str, Any]) -> Mapping[str, bytes]:
    kind = dict(kind)
    unaccepted = kind.pop("unaccepted", False)
    out = host(**kind)
    if unaccepted:
        out["/proc/meminfo"] += b"Unaccepted:      2048 kB\n"
    return out


def test_every_row_has_a_case() -> None:
    """A row that nothing here constructs would be a claim alone."""
    cases = [*(row for row, _, _ in REFUSED), *(row for row, _ in EXCLUDED), *ELSEWHERE]
    for row in NEVER_LENT:
        assert any(row.what.startswith(case) for case in cases), row.what
        assert bool(row.sign) == any(row.what.startswith(case) for case, _, _ in REFUSED)


@pytest.mark.parametrize(("row", "kind", "words"), REFUSED)
def test_a_host_that_must_not_lend_is_refused(row: str, kind: dict[str, Any], words: bytes) -> None:
    """Its reason comes from that row; planning exits 11; a snapshot of it says the same."""
    (never,) = [n for n in NEVER_LENT if n.what.startswith(row)]
    some = read_facts(MemoryFiles(dict(refusing_host(kind))))
    found = [r for r in some.refusals if words.decode() in r.reason]
    assert found
    assert found[0].lender == never.lender
    with pytest.raises(RefusedError, match="must not be lent"):
        plan_of(some, lender="movable")
    data, _ = take_snapshot(MemoryFiles(dict(refusing_host(kind))))
    assert read_facts(ArchiveFiles(data, "x")).refusals == some.refusals


@pytest.mark.parametrize(
    "files",
    [
        # the module that holds it is not a user, and without SEV nobody asks
        {
            **KVM_AMD,
            "/sys/module/ccp/refcnt": b"1\n",
            "/sys/module/ccp/holders/kvm_amd/x": b"",
        },
        {"/sys/module/kvm_amd/parameters/sev": b"N\n", "/sys/module/ccp/refcnt": b"7\n"},
        # raid456 holds two of ccp's DMA channels
        {
            **KVM_AMD,
            "/sys/module/ccp/refcnt": b"3\n",
            "/sys/module/ccp/holders/kvm_amd/x": b"",
            **{
                f"/sys/class/dma/dma{n}chan0/{file}": data
                for n, driver in enumerate((b"ccp", b"ccp", b"ioatdma"))
                for file, data in (
                    ("device/uevent", b"DRIVER=" + driver + b"\nPCI_CLASS=108000\n"),
                    ("in_use", b"1\n"),
                )
            },
        },
        {"/sys/module/kvm_amd/parameters/sev": b"0\n"},
        {"/sys/module/kvm_intel/parameters/tdx": b"N\n"},
        # a balloon that need not tell; another device with bit 0
        {f"{BALLOON}/device": b"0x0005\n", f"{BALLOON}/features": b"0110000\n"},
        {f"{BALLOON}/device": b"0x0002\n", f"{BALLOON}/features": b"1110000\n"},
        {f"{BALLOON}/device": b"0x0005\n"},
        {f"{BALLOON}/device": b"garbage", f"{BALLOON}/features": b"1\n"},
    ],
)
def test_ordinary_hosts_are_not_refused(files: dict[str, bytes]) -> None:
    """What looks like a sign and is none."""
    assert facts(files=files).refusals == ()


@pytest.mark.parametrize(("row", "lines"), EXCLUDED)
def test_memory_that_is_not_plain_ram_is_excluded(
    row: str, lines: list[tuple[int, int, int, str]]
) -> None:
    """Neither a block of its own nor as a ZONE_MOVABLE somebody made of it."""
    assert any(n.what.startswith(row) for n in NEVER_LENT)
    memory = Ranges([(AT, END)])
    index = AT // BLOCK
    block = {
        f"/sys/devices/system/memory/memory{index}/state": b"online\n",
        f"/sys/devices/system/memory/memory{index}/valid_zones": b"Movable\n",
    }
    some = facts(more_iomem=lines, files=block)
    assert not x86_64.reserve_lent(some).meets(memory)
    assert not plan_of(some, lender="movable", lend=2 * GIB).lent.meets(memory)
    dirty = replace(some, clean_runs=((AT, END),))
    assert plan_of(dirty, lender="movable-zone", lend=64 * MIB).lent == Ranges()
    blocks = tuple(replace(b, zones=("Normal",)) if b.index == index else b for b in some.blocks)
    assert not plan_of(replace(some, blocks=blocks), lend=2 * GIB).lent.meets(memory)


def test_blocks_that_hold_their_own_memmap_are_refused() -> None:
    """memory_hotplug.memmap_on_memory: for both lenders of movable memory."""
    some = replace(facts(movable=[39]), memmap_on_memory=True)
    for lender in ("movable", "movable-zone"):
        with pytest.raises(RefusedError, match="memmap"):
            plan_of(some, lender=lender)


def test_pages_that_must_not_be_lent_are_left_alone() -> None:
    """Poison and huge pages bar a block; poison that no page shows bars all; a balloon bars none."""
    census = {39: [(HWPOISON, 1)], 38: [(HUGE, 512)], 37: [(OFFLINE, 7)]}
    plan = plan_of(facts(census=census, corrupted_kb=4), lend=2 * GIB)
    candidates = {c.block for c in plan.offer.candidates}
    assert not candidates & {38, 39}
    assert 37 in candidates
    assert plan_of(facts(census=census, corrupted_kb=8), lend=2 * GIB).lent == Ranges()


def test_another_cma_area_bars_its_nodes_zone() -> None:
    """Its pages may be a driver's, and have no flags."""
    some = facts(movable=range(34, 40), census={})
    zones = tuple(replace(z, cma=4096) if z.name == "Movable" else z for z in some.zones)
    plan = plan_of(replace(some, zones=zones), lender="movable-zone", lend=256 * MIB)
    assert plan.lent == Ranges()
    with pytest.raises(CrashlendError):
        plan_of(facts(), lender="cma")
