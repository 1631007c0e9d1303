# SPDX-License-Identifier: LGPL-2.1-or-later
"""The pages that kexec_load takes for itself: as counted on real kernels, and as a naive walk has it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from build import GIB, MIB, PAGE, facts
from crashlend.arch import x86_64_tables
from crashlend.formats.procfs import Resource
from crashlend.ranges import Range, Ranges

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crashlend.facts import Facts

HOST = facts()
TIB = 1024 * GIB
LOW = [(0x1000, 0x9FC00), (MIB, 0xBFFD7000)]


def ram(top_gib: int, *more: tuple[int, int]) -> Ranges:
    """A BIOS guest of QEMU's machine pc with so many GiB: at most 3 of them below 4 GiB."""
    low_end = min(top_gib * GIB, 3 * GIB) - 0x23000
    above = [(4 * GIB, (top_gib + 1) * GIB)] if top_gib > 3 else []
    return Ranges([(0x1000, 0x9FC00), (MIB, low_end), *above, *more])


def counted(some: Ranges, flags: str, **known: object) -> int:
    host = replace(HOST, iomem=(), cpu_flags=tuple(flags.split()), **known)  # type: ignore[arg-type]
    return x86_64_tables.control_pages(host, some, [])


@pytest.mark.parametrize(
    ("flags", "memory", "pages"),
    [
        ("", ram(2), 6),
        ("", ram(4), 8),
        ("", ram(12), 16),
        ("pdpe1gb la57", ram(2), 6),
        ("pdpe1gb la57", ram(4), 6),
        ("pdpe1gb la57", ram(12), 6),
        ("pdpe1gb", ram(4), 5),
        ("", ram(2, (4 * GIB, 7 * GIB)), 9),
        ("pdpe1gb la57", ram(2, (4 * GIB, 7 * GIB)), 6),
    ],
)
def test_as_many_pages_as_real_kernels_took(flags: str, memory: Ranges, pages: int) -> None:
    """Counted on Linux 6.1 and 7.3 by shrinking the reservation until a load failed."""
    assert counted(memory, flags) == pages


def test_a_kernel_that_rounds_outwards_needs_no_2_mib_entries() -> None:
    """Linux 5.10 took a page less than 6.1 on the same guest with 1 GiB pages; it has no LA57 there."""
    assert counted(ram(2), "pdpe1gb") == 5
    assert counted(ram(2), "pdpe1gb", rounds_gib_outwards=True) == 4
    assert counted(ram(2), "", rounds_gib_outwards=True) == counted(ram(2), "")


def test_efi_and_acpi_tables_are_mapped_too() -> None:
    """Each in a GiB without RAM costs a page, in one that is touched already none; so does pmem."""
    base = counted(ram(2), "")
    for name in ("ACPI Tables", "ACPI Non-volatile Storage", "Persistent Memory", "Soft Reserved"):
        for at, more in ((3 * GIB, 1), (GIB, 0)):
            lines = (Resource(at, at + PAGE, name, 0),)
            host = replace(HOST, iomem=lines, cpu_flags=())
            assert x86_64_tables.control_pages(host, ram(2), []) == base + more
    assert counted(ram(2), "", efi_system_table=3 * GIB + 5) == base + 1
    assert counted(ram(2), "", efi_config_table=3 * GIB - 24) == base + 1


def walk(touched: Sequence[tuple[int, int]], *, gib_entries: bool, outwards: bool) -> int:
    """Pages of third and second level entries as ident_pud_init() makes them, GiB by GiB."""
    slots: set[int] = set()
    entries: dict[int, str] = {}
    pages = 0
    for start, end in touched:
        at = start
        while at < end:
            gib, stop = at // GIB, min(end, (at // GIB + 1) * GIB)
            if at // (512 * GIB) not in slots:
                slots.add(at // (512 * GIB))
                pages += 1
            whole = outwards or (at % GIB == 0 and stop % GIB == 0)
            if entries.get(gib) is None:
                entries[gib] = "whole" if gib_entries and whole else "table"
                pages += entries[gib] == "table"
            at = stop
    return pages


SIZES = st.sampled_from([1, 3 * PAGE, MIB, GIB - PAGE, GIB, 3 * GIB, 700 * GIB])
STARTS = st.integers(0, 40).map(lambda n: n * 64 * GIB // 2) | st.integers(0, 3 * TIB // PAGE).map(
    lambda n: n * PAGE
)


@given(
    st.lists(st.tuples(STARTS, SIZES), min_size=1, max_size=4),
    st.lists(st.tuples(STARTS, SIZES), max_size=3),
    st.booleans(),
    st.booleans(),
)
def test_a_walk_as_the_kernel_does_it_comes_to_the_same(
    memory: list[tuple[int, int]],
    segments: list[tuple[int, int]],
    gib_entries: bool,
    outwards: bool,
) -> None:
    """Whatever is touched in whatever order: a table where none is yet, a GiB whole where it is."""
    some = Ranges((start, start + size) for start, size in memory)
    more = [Range(start, start + size) for start, size in segments]
    host = replace(
        HOST,
        iomem=(),
        cpu_flags=("pdpe1gb",) if gib_entries else (),
        rounds_gib_outwards=outwards,
    )
    touched = [*(some | Ranges([(0, MIB)])), *more]
    pages = walk(touched, gib_entries=gib_entries, outwards=outwards and gib_entries)
    assert x86_64_tables.control_pages(host, some, more) == 2 + pages + 1


def test_64_tib_are_counted_at_once() -> None:
    """With 1 GiB entries a page per 512 GiB, without them one per GiB more; no walk by pages."""
    memory = Ranges([*LOW, (4 * GIB, 64 * TIB)])
    assert counted(memory, "pdpe1gb la57") == 2 + 1 + 128 + 1 + 1
    assert counted(memory, "la57") == 2 + 1 + 128 + 64 * 1024 - 1 + 1


def variants_of(some: Facts) -> list[bool | None]:
    return [v.rounds_gib_outwards for v in x86_64_tables.kernel_variants(some)]


def test_what_is_not_known_of_the_kernel_has_two_variants() -> None:
    """Only where the processor has 1 GiB pages, and only until a load has shown it."""
    assert variants_of(HOST) == [True, False]
    assert variants_of(replace(HOST, rounds_gib_outwards=False)) == [False]
    assert variants_of(replace(HOST, cpu_flags=())) == [None]
