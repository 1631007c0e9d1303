# SPDX-License-Identifier: LGPL-2.1-or-later
"""x86_64: the series' three hooks, the layout of the reservation, and the bytes that go into it.

Everything here is pure. Sources: arch/x86/kernel/crash.c, arch/x86/kernel/machine_kexec_64.c,
Documentation/arch/x86/boot.rst.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Optional

from crashlend.arch import Layout, MapEntry, Segment
from crashlend.arch.x86_64_segments import (
    E820_TYPES,
    RAM,
    RESERVED,
    VERIFIED,
    build_segments,
    firmware_notes,
    place_params,
)
from crashlend.arch.x86_64_tables import control_pages, kernel_variants
from crashlend.errors import CrashlendError, TooSmallError
from crashlend.formats import bootparams, elfcore
from crashlend.formats.elfcore import ProgramHeader
from crashlend.purgatory.x86_64 import RECORD_BYTES, purgatory_bytes
from crashlend.ranges import Range, Ranges, align_down, align_up
from crashlend.sizes import mib

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from crashlend.facts import Facts
    from crashlend.formats.bzimage import BzImage
    from crashlend.quiesce import Quiesce

__all__ = (
    "build_segments",
    "firmware_notes",
    "kernel_variants",
)  # of arch.Architecture, and live elsewhere

PAGE = 4096
MIB = 1 << 20
GIB = 1 << 30
LOW = Ranges([(0, MIB)])
# ISA DMA and what firmware likes to touch; the kernel, too, keeps its crash image above it
LENDABLE_FROM = 16 * MIB


def system_ram(facts: Facts) -> Ranges:
    """All RAM that the kernel may hold data in: "System RAM…" at any level of the tree.

    "System RAM (kmem)" and "(virtio_mem)" are nested below their device (hazard 17).
    """
    return Ranges((r.start, r.end) for r in facts.iomem if r.name.startswith(RAM))


def reservations(facts: Facts) -> Ranges:
    """The protected memory of ``crashkernel=``: one range, or two with ``,high`` and ``,low``."""
    return Ranges((r.start, r.end) for r in facts.iomem if r.name == "Crash kernel")


def reserve_lent(facts: Facts) -> Ranges:
    """Which memory may be lent at all, before any census.

    Top-level "System RAM" only, because what a driver added (virtio-mem, kmem, dax) can be
    taken away again; without the reservation, the kernel image and every other named resource
    inside it, and nothing below 16 MiB.
    """
    plain = Ranges((r.start, r.end) for r in facts.iomem if r.depth == 0 and r.name == RAM)
    # a shrunk reservation comes back as "System RAM" nested in "System RAM"
    taken = Ranges((r.start, r.end) for r in facts.iomem if r.depth > 0 and r.name != RAM)
    return plain - taken - Ranges([(0, LENDABLE_FROM)])


def include_in_memory_map(
    facts: Facts, core_header: Optional[Segment], lent: Ranges
) -> tuple[MapEntry, ...]:
    """The crash kernel's memory map: it gets this RAM and no other.

    RAM is what production has below 1 MiB, the reservation without the core header, and the lent
    ranges (crash_setup_memmap_entries() in the series). Everything else that firmware named is
    handed on as production's kernel has it, so that ACPI and PCI find what they had. Not from the
    firmware's own map: there EFI marks the windows of host bridges as reserved, which production has
    taken back (efi_remove_e820_mmio()) and a crash kernel without EFI's map could not.
    """
    header = Ranges([(core_header.start, core_header.end)] if core_header else [])
    ram = (system_ram(facts) & LOW) | (reservations(facts) - header) | lent
    entries = [MapEntry(r.start, r.end, RAM) for r in ram]
    entries += [MapEntry(r.start, r.end, RESERVED) for r in header]
    # at any depth: they come late, and PCI's windows may have been there before
    # [e820__reserve_resources_late()]
    entries += [
        MapEntry(r.start, r.end, r.name)
        for r in facts.iomem
        if r.name in E820_TYPES and r.name != RAM
    ]
    return tuple(sorted(entries, key=lambda e: (e.start, e.end)))


def exclude_from_vmcore(facts: Facts, lent: Ranges) -> tuple[ProgramHeader, ...]:
    """The core header's program headers: notes, kernel text, then RAM less what is excluded.

    Excluded are the first MiB (the crash kernel uses it), the reservation and the lent ranges.
    CrashlendError when production's notes or mappings are not known.
    """
    if not facts.crash_notes or facts.vmcoreinfo is None:
        raise CrashlendError(
            "cannot build the core header",
            "the CPUs' crash notes or vmcoreinfo can't be read",
            hint="run as root on a kernel with CONFIG_KEXEC and CONFIG_CRASH_DUMP",
        )
    if facts.page_offset is None or facts.kernel_text is None:
        raise CrashlendError(
            "cannot build the core header",
            "/proc/kcore does not tell where the kernel is mapped",
            hint="run as root on a kernel with CONFIG_PROC_KCORE",
        )
    offset = facts.page_offset
    notes = [ProgramHeader(elfcore.PT_NOTE, n.phys, n.bytes) for n in facts.crash_notes]
    notes.append(ProgramHeader(elfcore.PT_NOTE, *facts.vmcoreinfo))
    text = facts.kernel_text
    ram = system_ram(facts) - LOW - reservations(facts) - lent
    return (
        *notes,
        ProgramHeader(elfcore.PT_LOAD, text.phys, text.bytes, text.virt),
        *(ProgramHeader(elfcore.PT_LOAD, r.start, r.size, offset + r.start) for r in ram),
    )


def main_reservation(facts: Facts) -> Optional[Range]:
    """The range that must hold every segment (crashk_res): with ``,high`` the upper one."""
    found = reservations(facts)
    return found[-1] if found else None


def core_header_segment(reservation: Range, headers: Sequence[ProgramHeader]) -> Segment:
    """The core header, at the very top of the reservation, so that it splits nothing."""
    size = elfcore.EHDR.size + elfcore.PHDR.size * len(headers)
    pages = align_up(size, PAGE)
    return Segment("elfcorehdr", align_down(reservation.end, PAGE) - pages, size, pages)


def lay_out(
    facts: Facts,
    image: BzImage,
    initramfs_bytes: int,
    cmdline_bytes: int,
    lent: Ranges,
    placement: str,
    quiesce: Quiesce,
) -> Layout:
    """Place every segment.

    ``placement`` says where the crash kernel runs: ``reserved``, out of reach of late DMA; ``lent``,
    so that the reservation must hold its stored bytes alone and not the several times larger room
    in which it unpacks itself; ``auto``, reserved whenever it fits.

    All segments stand at the top, the hole for the kernel's control pages is at the bottom: then
    nothing the crash kernel's decompressor writes to can hold the page tables it runs on.
    CrashlendError when there is no reservation, when it is too small (with the bytes needed), or
    when the image can't run there.
    """
    reservation = main_reservation(facts)
    if reservation is None:
        raise no_reservation()
    if "la57" in facts.cpu_flags and not image.five_level:
        raise CrashlendError(
            "cannot load this kernel",
            "the processor runs with 5-level page tables, which this image does not know",
            hint="use a kernel with CONFIG_X86_5LEVEL, or boot production with no5lvl",
        )
    headers = exclude_from_vmcore(facts, lent)
    core = core_header_segment(reservation, headers)
    memory_map = include_in_memory_map(facts, core, lent)
    parts = place_params(facts, image, cmdline_bytes, len(memory_map))
    watched = len(lent) if quiesce.watch_seconds else 0
    code_bytes = purgatory_bytes(len(VERIFIED), watched, len(quiesce.bus_masters))
    at = core.start
    above = [core]
    for name, stored in (
        ("boot_params", parts.end),
        ("purgatory", code_bytes),
        ("initramfs", initramfs_bytes),
    ):
        at -= align_up(stored, PAGE)
        above.append(Segment(name, at, stored, align_up(stored, PAGE)))

    shortest: Optional[int] = None
    reasons = {"reserved": "it fits there, out of reach of late DMA"}
    for way in _ways(reservation, image, at, landing_zone(image, memory_map, lent)):
        if placement not in ("auto", way.placement):
            continue
        segments = sorted([*above, way.kernel], key=lambda s: s.start)
        places = [Range(s.start, s.end) for s in segments]
        control = control_pages(facts, system_ram(facts), places)
        lowest = align_up(reservation.start + control * PAGE, way.alignment)
        required = lowest - reservation.start + way.needed_bytes + reservation.end - at
        shortest = required if shortest is None else min(shortest, required)
        if way.kernel.start < lowest or reservation.size < required:
            reasons["lent"] = f"to run in the reservation it would need {mib(required)} there"
            continue
        params = next(s for s in segments if s.name == "boot_params")
        return Layout(
            segments=tuple(segments),
            memory_map=memory_map,
            program_headers=headers,
            cmdline_phys=params.start + parts.cmdline,
            setup_data_phys=params.start + parts.setup_data,
            record_phys=params.start + params.stored_bytes - RECORD_BYTES,
            control_pages=control,
            required_bytes=required,
            placement=way.placement,
            placement_reason=reasons.get(way.placement, "it can't run above 4 GiB")
            if placement == "auto"
            else "as the setting placement says",
            kernel_runs_at=way.runs_at,
        )
    raise _no_place(reservation, image, initramfs_bytes, placement, shortest, bool(lent))


class _Way(NamedTuple):
    """One way to place the kernel: its segment, what of it is needed, where it will run."""

    placement: str
    kernel: Segment
    needed_bytes: int
    runs_at: int
    alignment: int


def _ways(reservation: Range, image: BzImage, end: int, landing: Optional[int]) -> Iterator[_Way]:
    """The ways that this image allows, the one that is safer from late DMA first.

    The kernel's segment ends at ``end``. Where it runs there, it has room to unpack itself; what
    alignment leaves above that is the segment's, too: the kernel's control pages must find one hole
    alone, at the bottom.
    """
    if end <= 4 * GIB or image.above_4g:
        run_bytes = align_up(image.init_size, PAGE)
        start = align_down(end - run_bytes, image.alignment)
        kernel = Segment("kernel", start, image.kernel_bytes, end - start)
        yield _Way("reserved", kernel, run_bytes, start, image.alignment)
    if landing is not None:
        stored = align_up(image.kernel_bytes, PAGE)
        kernel = Segment("kernel", end - stored, image.kernel_bytes, stored)
        yield _Way("lent", kernel, stored, landing, PAGE)


def _no_place(
    reservation: Range,
    image: BzImage,
    initramfs_bytes: int,
    placement: str,
    shortest: Optional[int],
    lending: bool,
) -> CrashlendError:
    """Why nothing fits; ``shortest`` is the smallest reservation that would do, None if none would."""
    if shortest is not None:
        return TooSmallError(
            "the reservation is too small",
            f"it has {reservation.size / MIB:.1f} MiB; the crash kernel needs "
            f"{shortest / MIB:.1f} MiB in it, {shortest - reservation.size} bytes more "
            f"({initramfs_bytes / MIB:.1f} for its initramfs, "
            f"{image.init_size / MIB:.1f} to start, {image.kernel_bytes / MIB:.1f} if it starts in "
            "lent memory)",
            hint=f"boot with crashkernel={align_up(shortest, MIB) // MIB}M or more"
            + ("" if lending else ", or lend memory: --lend 1G"),
        )
    if placement == "lent":
        return CrashlendError(
            "the crash kernel cannot run in lent memory",
            f"no lent range has {image.init_size / MIB:.1f} MiB in one piece for it",
            hint="lend more, or use --placement reserved",
        )
    return CrashlendError(
        "cannot load this kernel",
        "the reservation lies above 4 GiB, where this image can't run",
        hint="reserve memory without ,high, lend memory below 4 GiB (--placement lent), or use a "
        "kernel with CONFIG_RELOCATABLE",
    )


def landing_zone(image: BzImage, memory_map: Sequence[MapEntry], lent: Ranges) -> Optional[int]:
    """Where in lent memory the kernel can unpack itself: ``init_size`` bytes in one piece.

    Above 16 MiB, aligned, below 4 GiB where the image must be, and in one of the map's first 128
    entries: the decompressor sees no others (boot_params holds no more). The highest such place,
    which leaves low memory to drivers that need it.
    """
    seen = Ranges((e.start, e.end) for e in memory_map[: bootparams.E820_MAX] if e.kind == RAM)
    usable = lent & seen & Ranges([(LENDABLE_FROM, 1 << 52 if image.above_4g else 4 * GIB)])
    for r in reversed(list(usable)):
        start = align_down(r.end - align_up(image.init_size, PAGE), image.alignment)
        if start >= r.start:
            return start
    return None


def no_reservation() -> CrashlendError:
    """The error for a host without any ``crashkernel=`` memory."""
    return CrashlendError(
        "no memory is reserved for a crash kernel",
        "/proc/iomem has no Crash kernel range",
        hint="boot once with: crashkernel=1G,cma crashkernel=100M (this order works on every "
        "kernel); dmesg says why when those words are there already",
    )
