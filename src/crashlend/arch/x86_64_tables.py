# SPDX-License-Identifier: LGPL-2.1-or-later
"""How many pages of the reservation kexec_load takes for itself on x86_64: exactly, beforehand.

Source: arch/x86/kernel/machine_kexec_64.c (init_pgtable), arch/x86/mm/ident_map.c, kernel/kexec.c
(Linux 5.10 to 7.3). All of them come one by one from the bottom of the reservation:

    2   control code and PGD (one aligned pair up to 6.12, two single pages later)
    P   with 5-level paging: one for each 256 TiB that the identity map touches
    U   one for each 512 GiB that it touches
    N   one for each GiB that is mapped by 2 MiB pages
    1   the copy of vmcoreinfo
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from crashlend.ranges import Range, Ranges, align_down, align_up

if TYPE_CHECKING:
    from collections.abc import Iterable

    from crashlend.facts import Facts

PAGE = 4096
MIB, GIB = 1 << 20, 1 << 30
SLOT_BYTES = 512 * GIB  # what one page of third-level entries maps
FIVE_LEVEL_SLOT_BYTES = 512 * SLOT_BYTES
CONTROL_PAGES = 2
VMCOREINFO_PAGES = 1
DEVICE_MEMORY = ("Persistent Memory", "Soft Reserved")
ISA = Range(0, MIB)  # init_mem_mapping() maps it first, whatever of it is RAM
SYSTEM_TABLE_BYTES = 120  # efi_system_table_64_t, UEFI 2.10, 4.3
CONFIGURATION_TABLE_BYTES = 24  # one efi_config_table_64_t: what else there is lies beside it


def control_pages(facts: Facts, ram: Ranges, segments: Iterable[Range]) -> int:
    """All pages that the load of ``segments`` needs on a host whose RAM is ``ram``.

    Which of the touched GiB gets a single 1 GiB entry depends on the order, so the ranges are
    walked as the kernel does: RAM as mapped at boot or by hotplug, segments, EFI tables, ACPI.
    Memory of devices (pmem, CXL) is mapped like RAM once a driver has it (memremap_pages()).
    """
    mapped = Ranges((r.start, r.end) for r in facts.iomem if r.name in DEVICE_MEMORY)
    acpi = (r for r in facts.iomem if r.name in ("ACPI Tables", "ACPI Non-volatile Storage"))
    touched = [
        *(ram | mapped | Ranges([ISA])),
        *segments,
        *_efi_tables(facts),
        *(Range(r.start, r.end) for r in acpi),
    ]
    everything = Ranges(touched)
    upper = units(everything, SLOT_BYTES)
    if "la57" in facts.cpu_flags:
        upper += units(everything, FIVE_LEVEL_SLOT_BYTES)
    if "pdpe1gb" in facts.cpu_flags:
        lower = 0 if facts.rounds_gib_outwards else pages_of_2_mib_entries(touched)
    else:
        lower = units(everything, GIB)
    return CONTROL_PAGES + upper + lower + VMCOREINFO_PAGES


def kernel_variants(facts: Facts) -> tuple[Facts, ...]:
    """The facts under each way in which this kernel may map GiB, the one with fewer pages first.

    Before commit cc31744a2945 (Linux 6.10, and stable kernels since) a 1 GiB entry is made where a
    range covers any part of that GiB: no page of 2 MiB entries at all. Builds of one version
    differ in it, so a load has to show it.
    """
    if facts.rounds_gib_outwards is not None or "pdpe1gb" not in facts.cpu_flags:
        return (facts,)
    return tuple(replace(facts, rounds_gib_outwards=known) for known in (True, False))


def units(ranges: Ranges, unit_bytes: int) -> int:
    """How many aligned units of that size the ranges touch."""
    return ranges.align_outwards(unit_bytes).size // unit_bytes


def pages_of_2_mib_entries(touched: Iterable[Range]) -> int:
    """In how many GiB the identity map needs 2 MiB entries although the processor has 1 GiB ones.

    A GiB that one range covers whole gets a 1 GiB entry, unless a part of it is mapped already;
    where a 1 GiB entry stands, nothing is added (ident_pud_init() since commit cc31744a2945).
    """
    whole = Ranges()
    in_part: set[int] = set()
    for r in touched:
        inside = Ranges([(align_up(r.start, GIB), align_down(r.end, GIB))])
        for piece in Ranges([r]) - inside:
            # at most one GiB at either end, or both in one where nothing is whole
            for start in range(align_down(piece.start, GIB), piece.end, GIB):
                if start not in whole:
                    in_part.add(start)
        whole |= inside - Ranges((start, start + GIB) for start in in_part)
    return len(in_part)


def _efi_tables(facts: Facts) -> list[Range]:
    """The EFI system table and the configuration table, which the identity map has, too."""
    return [
        Range(at, at + size)
        for at, size in (
            (facts.efi_system_table, SYSTEM_TABLE_BYTES),
            (facts.efi_config_table, CONFIGURATION_TABLE_BYTES),
        )
        if at
    ]
