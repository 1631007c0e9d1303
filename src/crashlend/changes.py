# SPDX-License-Identifier: LGPL-2.1-or-later
"""What has changed on a host since its crash kernel was loaded, and whether that can wait. Pure.

The record (state.json's ``loaded``) is compared with the host, not with events: whoever looks, and
however often, comes to the same answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Optional

from crashlend.arch import for_machine
from crashlend.errors import CrashlendError
from crashlend.ranges import Ranges
from crashlend.sizes import mib

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crashlend.facts import Facts

NOTHING = Ranges()


@dataclass(frozen=True)
class Changes:
    """What is no longer as it was at the load.

    Three kinds: lent memory that is lost is ``urgent``, and an image that counts on it must go where
    no other can be had; all else can wait until it is quiet, and costs no image.

    ``lost`` names lent memory that is not lent any more, by block, in words; ``ram_gone`` and
    ``ram_added`` are System RAM, ``cpus_gone`` and ``cpus_added`` CPUs whose notes the dump will
    have for nothing or lack.
    """

    lost: tuple[tuple[int, str], ...] = ()
    cma_lost: bool = False
    ram_gone: Ranges = NOTHING
    ram_added: Ranges = NOTHING
    cpus_gone: tuple[int, ...] = ()
    cpus_added: tuple[int, ...] = ()

    @property
    def urgent(self) -> bool:
        """Whether the image counts on lent memory that is production's again, or gone.

        Not for RAM that is only dumped: without it an image is whole, and the dump lacks what is
        not there.
        """
        return bool(self.lost or self.cma_lost)

    @property
    def stale(self) -> bool:
        """Whether a load would now make another image."""
        return self != Changes()

    def sentences(self, *, urgent: Optional[bool] = None) -> tuple[str, ...]:
        """One for each change, for people, without a remedy; all, or only what is (not) urgent."""
        now = [f"lent memory block {index} is {why}" for index, why in self.lost]
        if self.cma_lost:
            now.append("the kernel's ,cma ranges are not what they were")
        later = []
        if self.ram_gone:
            later.append(f"{mib(self.ram_gone.size)} of memory are gone since the load")
        if self.ram_added:
            later.append(f"{mib(self.ram_added.size)} of memory were added since the load")
        for what, cpus in (("removed", self.cpus_gone), ("added", self.cpus_added)):
            if cpus:
                many = "CPUs {} were" if len(cpus) > 1 else "CPU {} was"
                later.append(f"{many.format(', '.join(map(str, cpus)))} {what} since the load")
        return tuple((*now, *later) if urgent is None else now if urgent else later)


def find_changes(
    loaded: Optional[Mapping[str, Any]], facts: Facts, steps: Mapping[int, str]
) -> Changes:
    """Compare the record of the loaded image with the host as it is now.

    ``steps`` are the blocks of the state file by index. Without an image, or for what the facts
    can't tell (not root, a kernel without memory blocks), there is no change.
    """
    if not loaded or loaded.get("step") != "loaded":
        return Changes()
    gone, added = _ram(loaded, facts)
    cpus_gone, cpus_added = _cpus(loaded, facts)
    # records of versions that knew of one part only
    cma = _ranges(loaded.get("cma", loaded.get("lent") if loaded.get("lender") == "cma" else ()))
    return Changes(
        lost=_lost(_ranges(loaded.get("lent")) - cma, _ranges(loaded.get("zone")), facts, steps),
        cma_lost=facts.cma_ranges is not None and not Ranges(facts.cma_ranges).covers(cma),
        ram_gone=gone,
        ram_added=added,
        cpus_gone=cpus_gone,
        cpus_added=cpus_added,
    )


def _lost(
    lent: Ranges, zone: Ranges, facts: Facts, steps: Mapping[int, str]
) -> tuple[tuple[int, str], ...]:
    """Each block of which something is lent and which is not ZONE_MOVABLE's or not ours any more."""
    size = facts.block_bytes
    if not size:
        return ()
    blocks = {block.index: block for block in facts.blocks}
    out = []
    for index in (
        i for r in lent.align_outwards(size) for i in range(r.start // size, r.end // size)
    ):
        block = blocks.get(index)
        ours = (lent - zone).meets(Ranges([(index * size, (index + 1) * size)]))
        if block is None:
            out.append((index, "gone"))
        elif block.state != "online":
            out.append((index, block.state or "in no known state"))
        elif not block.is_movable:
            out.append((index, "not movable any more and may hold kernel data"))
        elif ours and steps.get(index) == "spoiled":
            out.append((index, "movable, but holds pages that must not be lent"))
        elif ours and steps.get(index) != "lent":
            out.append((index, "not crashlend's any more: somebody else changed it"))
    return tuple(out)


def _ram(loaded: Mapping[str, Any], facts: Facts) -> tuple[Ranges, Ranges]:
    """System RAM that is gone, and that was added."""
    if not facts.iomem or "system_ram" not in loaded:
        return NOTHING, NOTHING
    try:
        now = for_machine(facts.arch).system_ram(facts)
    except CrashlendError:
        return NOTHING, NOTHING
    then = _ranges(loaded["system_ram"])
    return then - now, now - then


def _cpus(loaded: Mapping[str, Any], facts: Facts) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """CPUs that have notes no longer, and that have new ones. Offline CPUs keep theirs."""
    if not facts.crash_notes or "notes" not in loaded:
        return (), ()
    then = {tuple(note) for note in loaded["notes"]}
    now = {(note.cpu, note.phys, note.bytes) for note in facts.crash_notes}
    gone, added = then - now, now - then
    return tuple(sorted(cpu for cpu, *_ in gone)), tuple(sorted(cpu for cpu, *_ in added))


def notes_json(facts: Facts) -> list[list[int]]:
    """The CPUs' notes as the record has them."""
    return [[note.cpu, note.phys, note.bytes] for note in facts.crash_notes]


def _ranges(value: Any) -> Ranges:
    return Ranges(tuple(pair) for pair in value or ())
