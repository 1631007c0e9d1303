# SPDX-License-Identifier: LGPL-2.1-or-later
"""Trials of late DMA: devices that still write after the panic, against each way to end that.

Of each device one control in which its writes arrive, and one trial for each method in which none
does. QEMU's NVMe and AHCI take no notice of bus mastering (guest pages are mapped when a request
comes in), and virtio ends its requests inside the write that switches it off: bus-masters-off is
shown with edu and lsi53c895a, which write at completion.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crashlend.lab.spec import CORRUPTED, REFUSED, Trial
from crashlend.sizes import MIB

if TYPE_CHECKING:
    from collections.abc import Mapping

GUEST = {
    "memory_bytes": 1536 * MIB,
    "cmdline": "crashkernel=100M",
    "lend_bytes": 256 * MIB,
    "lender": "movable",
    "poison": False,
    "timeout_seconds": 500.0,
}
# 128 reads at two a second
NVME = {**GUEST, "late": "nvme"}
LSI = {**GUEST, "late": "lsi"}
EDU = {**GUEST, "late": "edu"}
IOMMU = {
    **NVME,
    "machine": "q35",
    "devices": ("-device", "intel-iommu"),
    "cmdline": "crashkernel=100M intel_iommu=on",
}

# armed for 8 s, and fed every second for as long as the guest lives
WATCHDOG = """
modprobe i6300esb heartbeat=8
(while :; do echo; sleep 1; done) >/dev/watchdog 2>/dev/null </dev/null &
sleep 3
cat /sys/class/watchdog/watchdog0/state
"""


def _dma(
    name: str, proves: str, device: Mapping[str, Any], quiesce: str, expect: str = ""
) -> Trial:
    spec = {**device, "dma_quiesce": quiesce}
    return Trial(f"late-{name}-6.1", proves, "6.1", spec, expect, quick=False)


DMA = (
    _dma(
        "nvme-control",
        "reads in flight into lent memory overwrite the crash kernel's own where nobody waits",
        NVME,
        "wait=0",
        CORRUPTED,
    ),
    _dma("nvme-wait", "a wait longer than the reads: none of them is seen", NVME, "wait=75"),
    _dma(
        "nvme-watch",
        "watching lent memory until it rests takes as long as the reads, and no longer",
        NVME,
        "watch=5:200",
    ),
    _dma("edu-control", "five devices write after the panic", EDU, "wait=0", CORRUPTED),
    _dma(
        "edu-off",
        "switched off before they write, one of them behind a bridge: none does",
        EDU,
        "bus-masters-off",
    ),
    _dma("lsi-control", "a SCSI adapter's reads arrive", LSI, "wait=0", CORRUPTED),
    _dma("lsi-off", "the same adapter, switched off: none is seen", LSI, "bus-masters-off"),
    _dma(
        "iommu-control",
        "behind an IOMMU that production's words have switched on, reads arrive, too",
        IOMMU,
        "wait=0",
        CORRUPTED,
    ),
    _dma(
        "iommu-wait",
        "with the IOMMU on and DMA in flight the crash kernel comes up and saves its dump",
        IOMMU,
        "wait=75",
    ),
    Trial(
        "watchdog-6.1",
        "an armed watchdog that would surely fire during the wait: refused",
        "6.1",
        {
            **GUEST,
            "dma_quiesce": "wait=10",
            "devices": ("-device", "i6300esb"),
            "prepare": WATCHDOG,
        },
        expect=REFUSED,
        words="watchdog0 would reset the machine",
        quick=False,
    ),
)
