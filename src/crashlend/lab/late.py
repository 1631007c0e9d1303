# SPDX-License-Identifier: LGPL-2.1-or-later
"""Late DMA: devices that still write after the panic, and what must hold of what they write.

Reads are in flight when the kernel panics, from a throttled disk into memory of user space that lies
in lent ranges (nvme, lsi), or QEMU's device for teaching is told to write a tenth of a second later
(edu). guestfiles/late.py starts them, guestfiles/victim-hook looks from inside the crash kernel at
memory that it owns, guestfiles/scan.py at production's memory in /proc/vmcore.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from crashlend.lab.spec import Check

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from crashlend.lab.qemu import Report
    from crashlend.lab.spec import Spec

PAGE = 4096
# what the disk is full of and edu writes: not a zero in it, and no other pattern of the lab's
PATTERN = 0xD3
DISK_BYTES = 64 << 20
IMAGE = "late.img"
CHECK_IN_FLIGHT = "DMA was in flight at the crash"
CHECK_NOTHING_CAME = "no late write was seen"
EDU_DEVICES = 5


class Device(NamedTuple):
    """One kind: QEMU's words (``{image}`` is a read-only disk), and how many reads a second."""

    words: tuple[str, ...]
    reads_per_second: int = 0


def _disk(reads_per_second: int) -> tuple[str, ...]:
    return (
        "-drive",
        "file={image},format=raw,if=none,id=late,snapshot=on,cache=unsafe,"
        f"throttling.iops-read={reads_per_second}",
    )


KINDS = {
    "nvme": Device((*_disk(2), "-device", "nvme,serial=late,drive=late"), 2),
    "lsi": Device(
        (
            *_disk(1),
            *("-device", "lsi53c895a,id=lsi"),
            *("-device", "scsi-hd,bus=lsi.0,drive=late"),
        ),
        1,
    ),
    # its mask is 28 bits by default; one of them sits behind a bridge
    "edu": Device(
        (
            # a tenth of a second of the guest's time is 25 million instructions, however busy the
            # host is: enough for the way from the panic into purgatory
            *("-icount", "shift=2"),
            *("-device", "pci-bridge,id=behind,chassis_nr=9"),
            *("-device", "edu,dma_mask=0xffffffffff,bus=behind,addr=1"),
            *(("-device", "edu,dma_mask=0xffffffffff") * (EDU_DEVICES - 1)),
        )
    ),
}


def device_words(kind: str, directory: Path) -> tuple[str, ...]:
    """QEMU's words for a kind; makes the disk that it reads from. "" gives none."""
    if not kind:
        return ()
    image = directory / IMAGE
    words = tuple(word.format(image=image) for word in KINDS[kind].words)
    if any(str(image) in word for word in words):
        with image.open("wb") as file:
            for _ in range(DISK_BYTES >> 20):
                file.write(bytes([PATTERN]) * (1 << 20))
    return words


def seen_pages(kind: str, report: Report) -> int | None:
    """How many pages held late data in the end; None where nobody could look."""
    event = report.find("scanned") if kind == "edu" else report.find("victim")
    value = event.get("late_pages")
    return value if isinstance(value, int) else None


def check_late(spec: Spec, report: Report) -> Iterator[Check]:
    """Writes were under way when production died, and none of them was seen afterwards."""
    if not spec.late:
        return
    ready = report.find("in_flight")
    outstanding, pages = ready.get("outstanding", 0), ready.get("pages", 0)
    placed = ready.get("pages_in_lent", 0)
    yield Check(
        CHECK_IN_FLIGHT,
        outstanding > 0 and (spec.late == "edu" or 0 < pages == placed),
        f"{outstanding} of {ready.get('submitted')} by {spec.late}, {placed} of {pages} pages in lent "
        "memory"
        if ready
        else "the guest started none",
    )
    if any("iommu" in word for word in spec.devices):
        domain = str(ready.get("iommu"))
        yield Check("the device's DMA went through the IOMMU", domain.startswith("DMA"), domain)
    seen = seen_pages(spec.late, report)
    where = "production's memory" if spec.late == "edu" else "the crash kernel's own memory"
    watched = report.find("victim").get("bytes", 0)
    yield Check(
        CHECK_NOTHING_CAME,
        seen == 0 and (spec.late == "edu" or watched > 0),
        f"{seen} pages of {where}"
        + ("" if spec.late == "edu" else f", {watched >> 20} MiB watched")
        if seen is not None
        else "nobody looked",
    )


def result(spec: Spec, report: Report, capture: dict[str, Any]) -> dict[str, Any] | None:
    """What a trial's JSON says of late DMA; None where it was not about that."""
    if not spec.late:
        return None
    ready, victim = report.find("in_flight"), report.find("victim")
    return {
        "device": spec.late,
        "dma_quiesce": spec.dma_quiesce,
        "outstanding": ready.get("outstanding"),
        "pages_in_lent": ready.get("pages_in_lent"),
        "iommu": ready.get("iommu"),
        "watched_bytes": victim.get("bytes"),
        "watched_seconds": victim.get("seconds"),
        "seen_pages": seen_pages(spec.late, report),
        "purgatory": capture.get("purgatory"),
    }
