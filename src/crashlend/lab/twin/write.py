# SPDX-License-Identifier: LGPL-2.1-or-later
"""From the least memory that was found to what to write on the kernel's command line. Pure.

Two rules, both told with their reason: what is reserved is what the image takes there and room to
grow; what is lent is all that was found to be needed and a quarter more, in whole blocks.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from crashlend.ranges import align_up
from crashlend.sizes import MIB, format_size, mib

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crashlend.facts import Facts

PAGE = 4096
# as load --shrink leaves: a quarter of the payload, 4 MiB at least
LEAST_MARGIN_BYTES = 4 * MIB
LEND_MARGIN_PERCENT, LEND_LEAST_BYTES = 25, 64 * MIB
# makedumpfile's two bitmaps have a bit for each page of production's memory
BITMAPS = 2


@dataclass(frozen=True)
class Advice:
    """What to write, in bytes, and ``line``, which says it.

    ``required_bytes`` must be in the reservation: the stored kernel and initramfs, and the little that
    the kernel and purgatory need there. ``lent_bytes`` may be lent: the rest of what is needed.
    """

    required_bytes: int
    reserve_bytes: int
    lent_bytes: int
    lend_bytes: int
    line: str
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {**asdict(self), "reasons": list(self.reasons)}


def bitmap_bytes(missing_bytes: int) -> int:
    """What makedumpfile's bitmaps take for production's memory that a twin lacks."""
    return -(-max(0, missing_bytes) // PAGE // 8) * BITMAPS


def advise(facts: Facts, plan: Mapping[str, Any], least_bytes: int) -> Advice:
    """What to write for a capture that needs ``least_bytes``; ``plan`` is the twin's."""
    layout = plan["layout"]
    sizes = {s["name"]: s for s in layout["segments"]}
    payload = sum(sizes[name]["stored_bytes"] for name in ("kernel", "initramfs"))
    stored = sum(align_up(s["stored_bytes"], PAGE) for s in layout["segments"])
    required = stored + layout["control_pages"] * PAGE
    margin = max(LEAST_MARGIN_BYTES, payload // 4)
    reserve = align_up(required + margin, MIB)
    lent = max(0, least_bytes - required)
    more = max(LEND_LEAST_BYTES, least_bytes * LEND_MARGIN_PERCENT // 100)
    block = facts.block_bytes or 128 * MIB
    lend = align_up(least_bytes + more, block)
    reasons = (
        f"reserved: {mib(required)} for the image as stored, and {mib(margin)} for a kernel or "
        "initramfs that grows (a quarter of them, 4 MiB at least)",
        f"lent: all of the {mib(least_bytes)} that are needed, although the reservation has some of "
        f"it, {mib(more)} more for what another boot's layout, more hardware or a newer kernel take "
        f"({LEND_MARGIN_PERCENT} %, 64 MiB at least), in whole memory blocks of {mib(block)}",
    )
    line = f"crashkernel={format_size(lend)},cma crashkernel={format_size(reserve)}"
    return Advice(required, reserve, lent, lend, line, reasons)
