# SPDX-License-Identifier: LGPL-2.1-or-later
"""A loaded crash image that gets less memory: its memory map cut down, its digests made anew. Pure.

What is cut is what a smaller loan or a smaller reservation would lack: free memory at the bottom of
each range. What the image is stored in, and where its kernel unpacks itself, stays.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from crashlend.errors import CrashlendError
from crashlend.formats.bootparams import E820_ENTRY, E820_MAX, E820_OFFSET, E820_RAM, FIELDS
from crashlend.purgatory.x86_64 import (
    ENDS,
    ENDS_OFFSET,
    HANDOVER,
    HANDOVER_OFFSET,
    PARAMETERS,
    REGION,
    SHA256_BYTES,
)
from crashlend.ranges import Range, Ranges, align_up
from crashlend.sizes import MIB

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PAGE = 4096
LOW = Ranges([(0, MIB)])


def needed_ranges(layout: Mapping[str, Any], init_size: int) -> Ranges:
    """What no cut may touch: the first MiB, every segment, and ``init_size`` bytes for the kernel."""
    runs_at = layout["kernel_runs_at"]
    room = (runs_at, runs_at + align_up(init_size, PAGE))
    stored = ((s["start"], s["start"] + s["memory_bytes"]) for s in layout["segments"])
    return (LOW | Ranges([room, *stored])).align_outwards(PAGE)


def cut(ram: Ranges, needed: Ranges, size: int, order: Sequence[Range]) -> Ranges:
    """``size`` bytes of ``ram``: first what is ``needed``, then from the top of each of ``order`` down.

    CrashlendError where ``size`` is less than what is needed, or more than there is.
    """
    kept = ram & needed
    if not kept.size <= size <= ram.size:
        why = f"{size} bytes are not between {kept.size}, which the image takes, and {ram.size}"
        raise CrashlendError("cannot cut the crash kernel's memory", why)
    for place in order:
        # from the top: what a smaller range would have at the same end
        for free in reversed(list((ram & Ranges([place])) - kept)):
            left = size - kept.size
            if left <= 0:
                return kept
            kept |= Ranges([(max(free.start, free.end - left), free.end)])
    return kept


def order_of(reservation: Ranges, lent: Ranges, runs_at: int) -> tuple[Range, ...]:
    """Where memory is taken first: the reservation, the range that the kernel runs in, the others."""
    own = [r for r in lent if runs_at in Ranges([r])]
    others = [r for r in reversed(list(lent)) if r not in own]
    return (*reversed(list(reservation)), *own, *others)


def ram_of(page: bytes) -> Ranges:
    """The RAM of a zero page's memory map; CrashlendError where it goes on elsewhere."""
    return Ranges((start, start + size) for start, size, kind in _entries(page) if kind == E820_RAM)


def with_ram(page: bytes, ram: Ranges) -> bytes:
    """The zero page, and what follows it, with other RAM in its memory map; all else stays."""
    others = [e for e in _entries(page) if e[2] != E820_RAM]
    entries = sorted([*others, *((r.start, r.size, E820_RAM) for r in ram)])
    if len(entries) > E820_MAX:
        raise CrashlendError("cannot cut the crash kernel's memory", f"{len(entries)} ranges")
    out = bytearray(page)
    table = b"".join(E820_ENTRY.pack(*entry) for entry in entries)
    room = E820_MAX * E820_ENTRY.size
    out[E820_OFFSET : E820_OFFSET + room] = table.ljust(room, b"\0")
    FIELDS.write(out, "e820_entries", len(entries))
    return bytes(out)


def _entries(page: bytes) -> list[tuple[int, int, int]]:
    count = FIELDS.read(page, "e820_entries")
    if count >= E820_MAX:
        raise CrashlendError("cannot cut the crash kernel's memory", "its map has over 127 entries")
    return [E820_ENTRY.unpack_from(page, E820_OFFSET + i * E820_ENTRY.size) for i in range(count)]


def resealed(purgatory: bytes, name: str, start: int, segment: bytes) -> bytes:
    """Purgatory with the digest of region ``name``, now in ``segment`` from ``start`` on, made anew.

    And its own, which covers that. CrashlendError where it verifies no such region.
    """
    code = bytearray(purgatory)
    fields = dict(
        zip((n for n, _ in HANDOVER), PARAMETERS.unpack_from(code, HANDOVER_OFFSET), strict=True)
    )
    for index in range(fields["regions"]):
        at = fields["regions_at"] + index * REGION.size
        begin, size, _, known = REGION.unpack_from(code, at)
        if known.rstrip(b"\0").decode() != name:
            continue
        if begin < start or begin + size > start + len(segment):
            raise CrashlendError(f"cannot seal {name}", "it is not where it is verified")
        digest = hashlib.sha256(segment[begin - start : begin - start + size]).digest()
        REGION.pack_into(code, at, begin, size, digest, known)
        break
    else:
        raise CrashlendError(f"cannot seal {name}", "purgatory does not verify it")
    image_end, tables_at = ENDS.unpack_from(code, ENDS_OFFSET)
    behind = HANDOVER_OFFSET + SHA256_BYTES
    stored = fields["stored_bytes"]
    constant = code[:HANDOVER_OFFSET] + code[behind:image_end] + code[tables_at:stored]
    code[HANDOVER_OFFSET:behind] = hashlib.sha256(constant).digest()
    return bytes(code)
