# SPDX-License-Identifier: LGPL-2.1-or-later
"""Byte for byte: raw /proc/vmcore against the memory that it must be a picture of.

Functions over open files: a guest's memory file, a copy of it, a copy of its /proc/vmcore.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from crashlend.errors import FormatError
from crashlend.formats.elfcore import (
    EHDR,
    KERNEL_TEXT_BASE,
    PT_LOAD,
    headers_end,
    parse_program_headers,
)
from crashlend.ranges import Range, Ranges

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

PAGE = 4096
CHUNK = 4 << 20
ADDRESSES = 4096  # how many differing bytes are told one by one

_LINE = re.compile(
    r"^\s+(?P<start>[0-9a-f]{16})-(?P<last>[0-9a-f]{16}) \(prio -?\d+, ram\): "
    r"(?P<region>\S+)(?: @(?P<offset>[0-9a-f]{16}))?",
    re.MULTILINE,
)


class Piece(NamedTuple):
    """Guest-physical memory ``[start, end)`` and its ``offset`` in the memory file, in bytes."""

    start: int
    end: int
    offset: int


class Load(NamedTuple):
    """One PT_LOAD of a /proc/vmcore: memory, where it is mapped, its offset in the file."""

    phys: int
    end: int
    virt: int
    offset: int


@dataclass(frozen=True)
class Comparison:
    """What a comparison saw. Addresses are physical; a byte that two PT_LOADs show counts twice.

    ``addresses`` has the first :data:`ADDRESSES` differing bytes.
    """

    compared_bytes: int
    compared_pages: int
    differing_bytes: int
    differing_pages: int
    addresses: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """As figures, with the first 32 addresses."""
        return {
            "compared_bytes": self.compared_bytes,
            "compared_pages": self.compared_pages,
            "differing_bytes": self.differing_bytes,
            "differing_pages": self.differing_pages,
            "first": list(self.addresses[:32]),
        }


def parse_flat_view(text: str, region: str = "ram") -> tuple[Piece, ...]:
    """Where the memory region ``region`` lies in the CPUs' address space.

    ``text`` is what QEMU's monitor answers to ``info mtree -f``. FormatError when no such region
    is in the view of the address space "memory".
    """
    views = re.split(r"^FlatView #\d+\s*$", text, flags=re.MULTILINE)
    pieces = tuple(
        Piece(
            int(line["start"], 16),
            int(line["last"], 16) + 1,
            int(line["offset"] or "0", 16),
        )
        for view in views
        if re.search(r'^\s*AS "memory",', view, re.MULTILINE)
        for line in _LINE.finditer(view)
        if line["region"] == region
    )
    if not pieces:
        raise FormatError("info mtree -f", f"no region {region!r} in the address space memory")
    return pieces


def file_offset(pieces: Sequence[Piece], phys: int) -> int:
    """Where in the memory file a guest-physical address is; FormatError when it is in none."""
    for piece in pieces:
        if piece.start <= phys < piece.end:
            return piece.offset + phys - piece.start
    raise FormatError("guest memory", f"{phys:#x} is not in the memory file")


def split(pieces: Sequence[Piece], start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """``[start, end)`` as (address, offset in the memory file, bytes), none across two pieces.

    FormatError when a byte of it is in none.
    """
    while start < end:
        offset = file_offset(pieces, start)
        until = min(end, next(p.end for p in pieces if p.start <= start < p.end))
        yield start, offset, until - start
        start = until


def read_loads(core: int) -> tuple[Load, ...]:
    """The PT_LOADs of the /proc/vmcore copied into the open file ``core``, in its order."""
    data = os.pread(core, headers_end(os.pread(core, EHDR.size, 0)), 0)
    places = parse_program_headers(data, physical=False)
    return tuple(
        Load(header.phys, header.end, header.virt, place.phys)
        for header, place in zip(parse_program_headers(data), places)
        if header.type == PT_LOAD
    )


def ram_of(loads: Iterable[Load]) -> Ranges:
    """What the PT_LOADs show of RAM, without the kernel's text, which is RAM shown once more."""
    return Ranges((load.phys, load.end) for load in loads if load.virt < KERNEL_TEXT_BASE)


def compare(core: int, memory: int, loads: Sequence[Load], pieces: Sequence[Piece]) -> Comparison:
    """Compare every byte of every PT_LOAD with the memory file.

    FormatError where a PT_LOAD shows memory that is not in the file, or where a file ends early.
    """
    compared = pages = bad_bytes = bad_pages = 0
    addresses: list[int] = []
    for load in loads:
        pages += -(-load.end // PAGE) - load.phys // PAGE
        for phys, offset, size in split(pieces, load.phys, load.end):
            compared += size
            at = load.offset + phys - load.phys
            for start, left, right in _unequal(core, at, memory, offset, size, phys):
                found = [start + n for n, (x, y) in enumerate(zip(left, right)) if x != y]
                bad_pages += 1
                bad_bytes += len(found)
                addresses += found[: ADDRESSES - len(addresses)]
    return Comparison(compared, pages, bad_bytes, bad_pages, tuple(addresses))


def changed_pages(before: int, after: int, pieces: Sequence[Piece]) -> Ranges:
    """The pages of guest-physical memory that differ between two states of the memory file."""
    return Ranges(
        (start, start + len(left))
        for piece in pieces
        for start, left, _ in _unequal(
            before, piece.offset, after, piece.offset, piece.end - piece.start, piece.start
        )
    )


def choose_flips(loads: Sequence[Load]) -> tuple[int, ...]:
    """Where a negative control flips bits: at every edge that a PT_LOAD has, and in the middle.

    The first and the last byte of each range of RAM, of the kernel's text, and the middle byte of
    the largest range.
    """
    ram = ram_of(loads)
    edges = [Range(load.phys, load.end) for load in loads if load.virt >= KERNEL_TEXT_BASE]
    chosen = {address for r in (*ram, *edges) for address in (r.start, r.end - 1)}
    largest = max(ram, key=lambda r: r.size)
    chosen.add((largest.start + largest.end) // 2)
    return tuple(sorted(chosen))


def flip(memory: int, pieces: Sequence[Piece], addresses: Iterable[int]) -> None:
    """Flip one bit at each address of the memory file; doing so again undoes it."""
    for address in addresses:
        offset = file_offset(pieces, address)
        (value,) = _read(memory, 1, offset)
        os.pwrite(memory, bytes([value ^ 1 << address // PAGE % 8]), offset)


def shown(loads: Iterable[Load], addresses: Iterable[int]) -> list[int]:
    """The addresses as a comparison that finds exactly them tells them: once for each PT_LOAD."""
    wanted = sorted(addresses)
    return [a for load in loads for a in wanted if load.phys <= a < load.end]


def _unequal(
    a: int, a_offset: int, b: int, b_offset: int, size: int, phys: int
) -> Iterator[tuple[int, bytes, bytes]]:
    """Every page that differs: its address and both contents. ``phys`` is the first byte's address.

    Of a page that is not whole in the stretch, what is in it.
    """
    done = 0
    while done < size:
        # to a page's end, so that the chunks to come begin with whole pages
        length = min(size - done, CHUNK - (phys + done) % PAGE)
        left, right = _read(a, length, a_offset + done), _read(b, length, b_offset + done)
        at = 0
        while left != right and at < length:
            end = min(length, at + PAGE - (phys + done + at) % PAGE)
            if left[at:end] != right[at:end]:
                yield phys + done + at, left[at:end], right[at:end]
            at = end
        done += length


def _read(file: int, size: int, offset: int) -> bytes:
    data = os.pread(file, size, offset)
    if len(data) != size:
        raise FormatError("a memory file", f"{len(data)} of {size} bytes", offset=offset)
    return data
