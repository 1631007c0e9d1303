# SPDX-License-Identifier: LGPL-2.1-or-later
"""What each architecture must supply: the three hooks of the series, its image and purgatory.

``reserve_lent``           which memory may be lent
``include_in_memory_map``  how the lent ranges reach the crash kernel
``exclude_from_vmcore``    what the core header's PT_LOADs leave out, and how they address the rest
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Optional, Protocol, cast

from crashlend.errors import CrashlendError
from crashlend.formats.elfcore import ProgramHeader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crashlend.facts import Facts
    from crashlend.formats.bzimage import BzImage
    from crashlend.quiesce import Quiesce
    from crashlend.ranges import Range, Ranges


@dataclass(frozen=True)
class Segment:
    """One kexec segment: ``stored_bytes`` are copied to ``start``, ``memory_bytes`` are kept free.

    ``memory_bytes`` is a multiple of the page size and not below ``stored_bytes``.
    """

    name: str
    start: int
    stored_bytes: int
    memory_bytes: int

    @property
    def end(self) -> int:
        return self.start + self.memory_bytes


@dataclass(frozen=True)
class MapEntry:
    """One range of the crash kernel's memory map, ``kind`` in /sys/firmware/memmap's words."""

    start: int
    end: int
    kind: str


@dataclass(frozen=True)
class Layout:
    """Where everything lies in the reservation, and what the crash kernel is told.

    ``control_pages`` is how many pages the kernel takes for itself from the bottom of the
    reservation, ``required_bytes`` how large it must be for all of it. ``placement`` is
    ``reserved`` or ``lent``, ``placement_reason`` why. At ``record_phys`` purgatory writes what it
    did, as JSON text.
    """

    segments: tuple[Segment, ...]
    memory_map: tuple[MapEntry, ...]
    program_headers: tuple[ProgramHeader, ...]
    cmdline_phys: int
    setup_data_phys: int
    record_phys: int
    control_pages: int
    required_bytes: int
    placement: str
    placement_reason: str
    kernel_runs_at: int

    def segment(self, name: str) -> Segment:
        """The segment of that name; StopIteration when there is none."""
        return next(s for s in self.segments if s.name == name)


class Architecture(Protocol):
    """All that the plan and the load ask of an architecture; a module supplies it."""

    RAM: str

    def system_ram(self, facts: Facts) -> Ranges: ...
    def reservations(self, facts: Facts) -> Ranges: ...
    def main_reservation(self, facts: Facts) -> Optional[Range]: ...
    def no_reservation(self) -> CrashlendError: ...
    def reserve_lent(self, facts: Facts) -> Ranges: ...
    def include_in_memory_map(
        self, facts: Facts, core_header: Optional[Segment], lent: Ranges
    ) -> tuple[MapEntry, ...]: ...
    def exclude_from_vmcore(self, facts: Facts, lent: Ranges) -> tuple[ProgramHeader, ...]: ...
    def core_header_segment(
        self, reservation: Range, headers: Sequence[ProgramHeader]
    ) -> Segment: ...
    def lay_out(
        self,
        facts: Facts,
        image: BzImage,
        initramfs_bytes: int,
        cmdline_bytes: int,
        lent: Ranges,
        placement: str,
        quiesce: Quiesce,
    ) -> Layout: ...
    def firmware_notes(self, facts: Facts, image: BzImage) -> tuple[str, ...]: ...
    def kernel_variants(self, facts: Facts) -> tuple[Facts, ...]: ...
    def build_segments(
        self,
        facts: Facts,
        image: BzImage,
        layout: Layout,
        *,
        kernel_file: bytes,
        initramfs: bytes,
        cmdline: bytes,
        lent: Ranges,
        quiesce: Quiesce,
        on_mismatch: str,
    ) -> dict[str, bytes]: ...


# machine (as uname has it) → module
MODULES = {"x86_64": "crashlend.arch.x86_64"}


def for_machine(machine: str) -> Architecture:
    """The architecture's module; CrashlendError for one that crashlend does not know."""
    if machine not in MODULES:
        raise CrashlendError(
            "cannot plan",
            f"crashlend does not know the architecture {machine or '(unknown)'}",
            hint=f"it knows {', '.join(MODULES)}",
        )
    return cast("Architecture", import_module(MODULES[machine]))
