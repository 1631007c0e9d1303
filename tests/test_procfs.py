# SPDX-License-Identifier: LGPL-2.1-or-later
"""The text files of /proc and /sys: what they say, and that no bytes confuse their readers."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path
from typing import Any, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from build import MIB, facp, iomem_text, kmsg, zoneinfo
from crashlend.errors import FormatError
from crashlend.formats import procfs
from crashlend.formats.procfs import Resource, Zone

IOMEM = b"""\
00001000-0009fbff : System RAM
100000000-13fffffff : System RAM
  120000000-12fffffff : Crash kernel
140000000-17fffffff : dax0.0
  140000000-17fffffff : System RAM (kmem)
    140000000-140000fff : a : b
"""


def test_iomem_is_a_tree_of_half_open_ranges() -> None:
    """Indentation is depth, inclusive ends become half-open, names keep their colons."""
    assert procfs.parse_iomem(IOMEM)[1:3] == (
        Resource(0x100000000, 0x140000000, "System RAM", 0),
        Resource(0x120000000, 0x130000000, "Crash kernel", 1),
    )
    assert procfs.parse_iomem(IOMEM)[-1] == Resource(0x140000000, 0x140001000, "a : b", 2)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 5),
            st.integers(0, 1 << 52),
            st.integers(1, 1 << 52),
            st.text("abc :()-", min_size=1, max_size=9),
        ),
        max_size=9,
    )
)
def test_iomem_lines_come_back(lines: list[tuple[int, int, int, str]]) -> None:
    """Any resources that the kernel can print are read as they are."""
    text = iomem_text((depth, start, start + size, name) for depth, start, size, name in lines)
    assert procfs.parse_iomem(text) == tuple(
        Resource(start, start + size, name, depth) for depth, start, size, name in lines
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"garbage\n", "line 1 is not START-END"),
        (b"00-01 : a\n\0\xff\n", "line 2 is not START-END"),
        (b"00000002-00000001 : a\n", "line 1 has an impossible range"),
        (b"0-10000000000000000 : a\n", "line 1 has an impossible range"),
    ],
)
def test_garbage_in_iomem_is_named_by_line(text: bytes, words: str) -> None:
    """The message says which line is off."""
    with pytest.raises(FormatError, match=words):
        procfs.parse_iomem(text)


def test_hidden_addresses_are_known_as_such() -> None:
    """All zero means hidden; one real address, or no line at all, does not."""
    hidden = b"00000000-00000000 : System RAM\n  00000000-00000000 : Crash kernel\n"
    assert procfs.addresses_hidden(procfs.parse_iomem(hidden))
    assert not procfs.addresses_hidden(procfs.parse_iomem(hidden + b"00000000-00000fff : x\n"))
    assert not procfs.addresses_hidden(())


def test_zoneinfo_gives_every_zone_its_counts() -> None:
    """Pages spanned, present, managed and free, and the start; per zone and node."""
    zones = procfs.parse_zoneinfo(zoneinfo([(0, "DMA", 1, 3999), (1, "Movable", 4096, 32768)]))
    assert zones == (
        Zone(0, "DMA", 1, 3999, 3999, 3999, 1999, 0),
        Zone(1, "Movable", 4096, 32768, 32768, 32768, 16384, 0),
    )


def test_zoneinfo_of_this_machine_adds_up() -> None:
    """On a real kernel managed ≤ present ≤ spanned holds for every zone that is found."""
    file = Path("/proc/zoneinfo")
    if not file.exists():
        pytest.skip("no /proc/zoneinfo here")
    zones = procfs.parse_zoneinfo(file.read_bytes())
    assert zones
    assert all(z.managed <= z.present <= z.spanned for z in zones)
    assert any(z.managed for z in zones)


def test_meminfo_is_in_bytes_and_counts_stay_counts() -> None:
    """The kB of /proc/meminfo are KiB; HugePages_Total has no unit."""
    found = procfs.parse_meminfo(b"MemTotal:  4026104 kB\nHugePages_Total:      7\nodd line\n")
    assert found == {"MemTotal": 4026104 * 1024, "HugePages_Total": 7}


def test_crash_cma_ranges_become_half_open() -> None:
    """One line per range; an empty file means that the kernel made none."""
    text = b"100000000-11fffffff\n130000000-130ffffff\n"
    assert procfs.parse_crash_cma_ranges(text) == (
        (0x100000000, 0x120000000),
        (0x130000000, 0x131000000),
    )
    assert procfs.parse_crash_cma_ranges(b"") == ()
    for bad in (b"x", b"2-1", b"1", b"-1-2"):
        with pytest.raises(FormatError):
            procfs.parse_crash_cma_ranges(bad)


def test_dmesg_tells_the_crash_kernel_s_areas_from_others() -> None:
    """Linux 6.17: the areas right before the crashkernel line are its; a default CMA is not."""
    log = kmsg(
        b"cma: Reserved 16 MiB at 0x00000000bec00000",
        b"cma: Reserved 512 MiB at 0x0000000118000000",
        b"cma: Reserved 256 MiB at 0x0000000100000000",
        b"crashkernel CMA reserved: 768 MB in 2 ranges",
        b"cma: Reserved 64 MiB at 0x0000000090000000",
    )
    assert procfs.parse_dmesg_cma(log) == (
        (0x118000000, 0x118000000 + 512 * MIB),
        (0x100000000, 0x100000000 + 256 * MIB),
    )
    partial = kmsg(
        b"cma: Reserved 512 MiB at 0x0000000118000000",
        b"crashkernel CMA reservation failed: 1024 MB requested, 512 MB reserved in 1 ranges",
    )
    assert procfs.parse_dmesg_cma(partial) == ((0x118000000, 0x118000000 + 512 * MIB),)
    assert procfs.parse_dmesg_cma(kmsg(b"cma: Reserved 16 MiB at 0x1000000")) == ()
    cut = kmsg(b"crashkernel CMA reserved: 768 MB in 2 ranges")
    assert procfs.parse_dmesg_cma(cut) == ()


def test_fadt_names_the_reset_register_or_none() -> None:
    """(Port, value) where flag 10 says that there is one, in I/O space and one byte wide."""
    table = bytearray(244)
    table[:4] = b"FACP"
    struct.pack_into("<I", table, 112, 1 << 10)
    struct.pack_into("<BBBBQ", table, 116, 1, 8, 0, 1, 0xCF9)
    table[128] = 0x0F
    assert procfs.parse_fadt_reset(bytes(table)) == (0xCF9, 0x0F)
    for at, value in ((113, 0), (116, 0), (116, 2), (117, 32), (122, 1), (128, 0)):
        other = bytearray(table)
        other[at] = value
        expected = (0xCF9, 0) if at == 128 else None
        assert procfs.parse_fadt_reset(bytes(other)) == expected, at
    assert procfs.parse_fadt_reset(bytes(table[:128])) is None  # ACPI 1.0 has none
    assert procfs.parse_fadt_reset(b"") is None


def test_fadt_names_the_pm_timer_port_or_none() -> None:
    """X_PM_TMR_BLK wins over PM_TMR_BLK; memory space, other lengths and cut tables mean none."""
    table = bytearray(facp(0x608))
    assert procfs.parse_fadt_pm_timer(bytes(table)) == 0x608
    table[76:80] = (0x408).to_bytes(4, "little")
    assert procfs.parse_fadt_pm_timer(bytes(table)) == 0x608
    assert procfs.parse_fadt_pm_timer(bytes(table[:116])) == 0x408  # ACPI 1.0
    table[208] = 0
    assert procfs.parse_fadt_pm_timer(bytes(table)) is None
    table[91] = 0
    assert procfs.parse_fadt_pm_timer(bytes(table)) is None
    assert procfs.parse_fadt_pm_timer(b"FACP") is None


def test_vmcoreinfo_s_address_is_never_zero() -> None:
    """ADDRESS SIZE, both hexadecimal and positive; zeros, signs and other words are refused."""
    assert procfs.parse_address_size(b"0000000102344000 1000\n", "x") == (0x102344000, 0x1000)
    for bad in (b"0 0", b"0 1000", b"1000 0", b"-1000 10", b"12", b"1 2 3", b"x y", b"1_0 10"):
        with pytest.raises(FormatError):
            procfs.parse_address_size(bad, "x")


PARSERS: list[Callable[[bytes], Any]] = [
    procfs.parse_iomem,
    procfs.parse_zoneinfo,
    procfs.parse_meminfo,
    procfs.parse_crash_cma_ranges,
    procfs.parse_dmesg_cma,
    procfs.parse_fadt_pm_timer,
    lambda data: procfs.parse_address_size(data, "x"),
]
SAMPLES = [IOMEM, zoneinfo([(0, "DMA", 1, 9)]), b"MemTotal: 1 kB\n", facp(), b"1-2\n", b"1 2"]


@given(
    st.sampled_from(SAMPLES),
    st.lists(st.tuples(st.integers(0, 1000), st.binary(max_size=3)), max_size=5),
)
def test_no_bytes_confuse_a_parser(sample: bytes, changes: list[tuple[int, bytes]]) -> None:
    """Mutated files are read or refused with FormatError by every parser."""
    data = bytearray(sample)
    for at, new in changes:
        data[at % len(data) : at % len(data) + 1] = new or b"\0"
    for parse in PARSERS:
        with contextlib.suppress(FormatError):
            parse(bytes(data))
