# SPDX-License-Identifier: LGPL-2.1-or-later
"""The comparison of /proc/vmcore with memory, on made-up files: what differs is found, to the byte."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest

from crashlend.errors import CrashlendError, FormatError
from crashlend.formats.elfcore import (
    KERNEL_TEXT_BASE,
    PT_LOAD,
    PT_NOTE,
    ProgramHeader,
    build_core_header,
)
from crashlend.lab.entry.bytes import (
    Load,
    Piece,
    changed_pages,
    choose_flips,
    compare,
    file_offset,
    flip,
    parse_flat_view,
    read_loads,
    shown,
)
from crashlend.lab.entry.memory_file import MemoryFile, demand_memory
from crashlend.lab.entry.witness import window_bytes
from crashlend.ranges import Ranges
from crashlend.sizes import GIB, MIB

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = 4096
# a machine of 12 pages: eight from 0, four from "4 GiB"; the file has no hole
HIGH = 0x100000
PIECES = (Piece(0, 8 * PAGE, 0), Piece(HIGH, HIGH + 4 * PAGE, 8 * PAGE))
TEXT = ProgramHeader(PT_LOAD, 3 * PAGE, 2 * PAGE, KERNEL_TEXT_BASE)
RAM = (
    ProgramHeader(PT_LOAD, PAGE, 3 * PAGE + 100, 0xFFFF888000001000),  # ends amid a page
    ProgramHeader(PT_LOAD, 6 * PAGE, 2 * PAGE, 0xFFFF888000006000),
    ProgramHeader(PT_LOAD, HIGH, 4 * PAGE, 0xFFFF888000100000),
)

# QEMU 7.2, -machine pc with 5 GiB after its BIOS has run, shortened
MTREE = """\
FlatView #0
 AS "I/O", root: io
 Root memory region: io
  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan

FlatView #2
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 Root memory region: system
  0000000000000000-00000000000c2fff (prio 0, ram): ram
  00000000000c3000-00000000000e7fff (prio 0, rom): ram @00000000000c3000
  00000000000e8000-00000000000effff (prio 0, ram): ram @00000000000e8000
  0000000000100000-00000000bfffffff (prio 0, ram): ram @0000000000100000
  00000000fec00000-00000000fec00fff (prio 0, i/o): ioapic
  0000000100000000-000000017fffffff (prio 0, ram): ram @00000000c0000000
  0000000200000000-00000003ffffffff (prio 1, ram): shm

FlatView #3
 AS "cpu-smm-0", root: memory
 Root memory region: memory
  0000000000000000-00000000000fffff (prio 0, ram): ram
"""


@pytest.fixture
def memory() -> Iterator[MemoryFile]:
    """The machine's memory, of random bytes."""
    with MemoryFile("test-memory", 12 * PAGE) as file:
        os.pwrite(file.fd, random.Random(1).randbytes(12 * PAGE), 0)
        yield file


@pytest.fixture
def core(memory: MemoryFile) -> Iterator[MemoryFile]:
    """A true picture of it, as /proc/vmcore is one: headers, then each PT_LOAD in whole pages."""
    headers = [ProgramHeader(PT_NOTE, 0, 64), TEXT, *RAM]
    data = bytearray(build_core_header(headers).ljust(PAGE, b"\0"))
    for index, header in enumerate(headers):
        at = len(data) if header.type == PT_LOAD else 64
        # p_offset, the third field of a program header, is a place in the file here
        data[64 + 56 * index + 8 : 64 + 56 * index + 16] = at.to_bytes(8, "little")
        if header.type == PT_LOAD:
            size = -(-header.bytes // PAGE) * PAGE
            data += os.pread(memory.fd, size, file_offset(PIECES, header.phys))
    with MemoryFile("test-core", len(data)) as file:
        os.pwrite(file.fd, bytes(data), 0)
        yield file


def test_memory_is_where_qemu_says() -> None:
    """Memory's pieces come from the CPUs' own address space: RAM alone, with its place in the file."""
    pieces = parse_flat_view(MTREE)
    assert [tuple(map(hex, piece)) for piece in pieces] == [
        ("0x0", "0xc3000", "0x0"),
        ("0xe8000", "0xf0000", "0xe8000"),
        ("0x100000", "0xc0000000", "0x100000"),
        ("0x100000000", "0x180000000", "0xc0000000"),
    ]
    assert file_offset(pieces, 4 * GIB) == 0xC0000000
    assert file_offset(pieces, 0xBFFFFFFF) == 0xBFFFFFFF
    for outside in (0xC0000000, 0xFFFFFFFF, 0x180000000):
        with pytest.raises(FormatError):
            file_offset(pieces, outside)
    with pytest.raises(FormatError):
        parse_flat_view(MTREE, "elsewhere")


def test_equal_files_do_not_differ(memory: MemoryFile, core: MemoryFile) -> None:
    """A true picture has no difference, and all of each PT_LOAD was looked at."""
    loads = read_loads(core.fd)
    seen = compare(core.fd, memory.fd, loads, PIECES)
    assert [load[:3] for load in loads] == [(h.phys, h.end, h.virt) for h in (TEXT, *RAM)]
    assert (seen.differing_bytes, seen.differing_pages, seen.addresses) == (0, 0, ())
    assert seen.compared_bytes == 11 * PAGE + 100
    assert seen.compared_pages == 2 + 4 + 2 + 4


@pytest.mark.parametrize(
    "address",
    [PAGE, 4 * PAGE + 99, 6 * PAGE, 8 * PAGE - 1, HIGH, HIGH + 2 * PAGE, HIGH + 4 * PAGE - 1],
)
def test_one_bit_is_found(memory: MemoryFile, core: MemoryFile, address: int) -> None:
    """One flipped bit of memory is one differing byte, at its address, in each PT_LOAD that has it."""
    loads = read_loads(core.fd)
    flip(memory.fd, PIECES, [address])
    seen = compare(core.fd, memory.fd, loads, PIECES)
    assert list(seen.addresses) == shown(loads, [address])
    assert seen.differing_bytes == seen.differing_pages == len(seen.addresses) > 0
    flip(memory.fd, PIECES, [address])
    assert compare(core.fd, memory.fd, loads, PIECES).differing_bytes == 0


def test_text_is_compared_through_both_mappings(memory: MemoryFile, core: MemoryFile) -> None:
    """A byte of the kernel's text is in two PT_LOADs; what only one of them got wrong is found."""
    loads = read_loads(core.fd)
    flip(memory.fd, PIECES, [3 * PAGE])
    assert compare(core.fd, memory.fd, loads, PIECES).addresses == (3 * PAGE, 3 * PAGE)
    flip(memory.fd, PIECES, [3 * PAGE])
    os.pwrite(core.fd, b"wrong", loads[0].offset + PAGE)
    seen = compare(core.fd, memory.fd, loads, PIECES)
    assert (seen.differing_bytes, seen.differing_pages) == (5, 1)
    assert set(seen.addresses) == {4 * PAGE + n for n in range(5)}


def test_what_no_load_has_is_not_compared(memory: MemoryFile, core: MemoryFile) -> None:
    """Bytes outside of the PT_LOADs may differ: the crash kernel's own memory does."""
    loads = read_loads(core.fd)
    flip(memory.fd, PIECES, [0, 4 * PAGE + 100 + PAGE])
    assert compare(core.fd, memory.fd, loads, PIECES).differing_bytes == 0


def test_a_load_of_no_memory_is_an_error(memory: MemoryFile, core: MemoryFile) -> None:
    """A PT_LOAD beyond memory, or a file cut short, is an error and not a smaller comparison."""
    with pytest.raises(FormatError):
        compare(core.fd, memory.fd, [Load(8 * PAGE, 9 * PAGE, 0, PAGE)], PIECES)
    os.ftruncate(core.fd, core.size - 1)
    with pytest.raises(FormatError):
        compare(core.fd, memory.fd, read_loads(core.fd), PIECES)


def test_flips_stand_at_every_edge(core: MemoryFile) -> None:
    """The control flips the first and the last byte of RAM's ranges and of the text, and a middle."""
    chosen = choose_flips(read_loads(core.fd))
    edges = {PAGE, 4 * PAGE + 99, 6 * PAGE, 8 * PAGE - 1, HIGH, HIGH + 4 * PAGE - 1}
    assert edges | {3 * PAGE, 5 * PAGE - 1} <= set(chosen)
    assert len(chosen) == len(edges) + 2 + 1


def test_changed_pages_are_told(memory: MemoryFile) -> None:
    """What changed between two states of memory is told in pages, by guest-physical address."""
    with memory.copy("test-copy") as before:
        assert not changed_pages(before.fd, memory.fd, PIECES)
        flip(memory.fd, PIECES, [5 * PAGE + 1, HIGH + PAGE, HIGH + 2 * PAGE])
        assert changed_pages(before.fd, memory.fd, PIECES) == Ranges(
            [(5 * PAGE, 6 * PAGE), (HIGH + PAGE, HIGH + 3 * PAGE)]
        )


def test_a_copy_is_whole_and_takes_no_room_for_holes() -> None:
    """A copy of a memory file has the same bytes, and holes where nothing was ever written."""
    with MemoryFile("test-holes", 64 * MIB) as file:
        for at in (0, 5 * MIB + 17, 64 * MIB - 4):
            os.pwrite(file.fd, b"data", at)
        with file.copy("test-copy") as other:
            assert os.pread(other.fd, 64 * MIB, 0) == os.pread(file.fd, 64 * MIB, 0)
            assert os.fstat(other.fd).st_blocks * 512 < MIB


def test_a_memory_file_opens_by_its_path(memory: MemoryFile) -> None:
    """What QEMU opens by the path is the same file."""
    with open(memory.path, "r+b") as file:
        file.write(b"hello")
    assert os.pread(memory.fd, 5, 0) == b"hello"


def test_too_large_a_trial_is_refused_before_it_starts() -> None:
    """Who has not the memory is told how much it takes."""
    demand_memory(MIB)
    with pytest.raises(CrashlendError, match="MiB are available"):
        demand_memory(1 << 60)


def test_the_window_is_a_power_of_two_with_room() -> None:
    """A PCI device's memory can have no other sizes; the whole dump and the text's double fit."""
    for size in (GIB, 1280 * MIB, 2 * GIB, 4 * GIB):
        window = window_bytes(size)
        assert window & (window - 1) == 0
        assert window >= size + 128 * MIB
