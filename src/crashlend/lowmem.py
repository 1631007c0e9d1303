# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the crash kernel has below 4 GiB, where every device can reach it. Pure.

A host with much memory lends blocks from above; below 4 GiB its crash kernel may have nothing but
the reservation. Bounce buffers for devices that address 32 bits come from there, and so do the
buffers of drivers that ask for them (ZONE_DMA32). With RAM above 4 GiB the kernel takes 64 MiB for
bounce buffers; where they can't be had, some kernels take half again and again until nothing is
left for others (swiotlb_init_remap(), kernel/dma/swiotlb.c, Linux 5.19 and later), and older ones
take none at all. So the size is said.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

from crashlend.ranges import Ranges, align_down
from crashlend.sizes import GIB, MIB, mib

if TYPE_CHECKING:
    from collections.abc import Iterable

    from crashlend.facts import NarrowDevice

LOW = Ranges([(MIB, 4 * GIB)])
DEFAULT_BOUNCE_BYTES = 64 * MIB  # IO_TLB_DEFAULT_SIZE, include/linux/swiotlb.h
SLAB_BYTES, SEGMENT_SLABS = 2048, 128  # IO_TLB_SHIFT, IO_TLB_SEGSIZE
LEAST_BOUNCE_BYTES = MIB  # IO_TLB_MIN_SLABS
BOUNCE_REASON = "bounce buffers must leave half of the memory below 4 GiB to others"


def low_bytes(ram: Ranges) -> int:
    """How much of the crash kernel's RAM lies between 1 MiB and 4 GiB."""
    return (ram & LOW).size


def bounce_word(ram: Ranges, occupied: Ranges) -> Optional[str]:
    """The word that sizes the bounce buffers; None where the kernel's own choice is right.

    ``ram`` is the crash kernel's memory, ``occupied`` what is taken of it from the start: segments,
    and where the kernel unpacks itself.
    """
    free = low_bytes(ram - occupied)
    if not ram or ram[-1].end <= 4 * GIB or free >= 2 * DEFAULT_BOUNCE_BYTES:
        return None
    size = align_down(free // 2, SLAB_BYTES * SEGMENT_SLABS)
    return f"swiotlb={max(size, LEAST_BOUNCE_BYTES) // SLAB_BYTES}"


def warnings(ram: Ranges, devices: Iterable[NarrowDevice]) -> tuple[str, ...]:
    """What to tell where little of the crash kernel's memory lies below 4 GiB (hazard 6)."""
    low = low_bytes(ram)
    if low >= DEFAULT_BOUNCE_BYTES:
        return ()
    named = [f"{d.address} ({d.driver}, {d.bits} bits)" for d in devices]
    if not named:
        return (
            f"the crash kernel has only {mib(low)} below 4 GiB; no disk or network device of this "
            "host needs more",
        )
    return (
        f"the crash kernel has only {mib(low)} below 4 GiB, and these devices address nothing "
        f"above: {', '.join(named)}; a dump target behind one of them is slow and may fail; a "
        "larger reservation helps",
    )
