# SPDX-License-Identifier: LGPL-2.1-or-later
"""The reader of pages: what each memory block holds, and what of a ZONE_MOVABLE is clean."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Optional

from crashlend.errors import CrashlendError, FormatError
from crashlend.facts.data import LentPages
from crashlend.facts.own import OwnRecord, Pairs
from crashlend.hostfiles import CENSUS, CLEAN_RUNS, LENT_PAGES
from crashlend.jsonable import from_json
from crashlend.lenders.census import (
    ENTRY_BYTES,
    MIN_RUN_BYTES,
    BlockCensus,
    Unfit,
    clean_runs,
    count_kinds,
    count_pages,
    is_reserved,
    unfit_units,
)
from crashlend.ranges import Ranges

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from crashlend.facts.data import MemoryBlock
    from crashlend.facts.reader import Reader
    from crashlend.formats.procfs import Resource

PAGE = 4096
PAGE_FLAGS = "/proc/kpageflags"
CHUNK_PAGES = 1 << 18  # a GiB at a time
# what counts of blocks written before there were kinds leave out
OLDER = {"offline": 0, "kinds": {}}
UNMARKED = "it does not mark the kernel's own code as reserved, so early boot's data would not show"


@dataclass(frozen=True)
class PageCensus:
    """What the pages hold: counts of each block, and the clean runs of a foreign ZONE_MOVABLE."""

    blocks: tuple[BlockCensus, ...] = ()
    clean_runs: Optional[Pairs] = None


def page_census(
    reader: Reader,
    iomem: Sequence[Resource],
    blocks: tuple[MemoryBlock, ...],
    block_bytes: Optional[int],
    own_blocks: Sequence[int],
    *,
    census: bool,
) -> PageCensus:
    """The census of a snapshot that has one, else that of the host when ``census`` asks for it."""
    recorded = PageCensus(
        reader.parsed(
            CENSUS,
            lambda data: from_json(
                tuple[BlockCensus, ...], [{**OLDER, **row} for row in json.loads(data)]
            ),
            (),
            optional=True,
        ),
        reader.parsed(
            CLEAN_RUNS, lambda data: from_json(Pairs, json.loads(data)), None, optional=True
        ),
    )
    if recorded.blocks or not census or not block_bytes:
        return recorded
    looked = _look(reader, blocks, block_bytes, own_blocks)
    if looked.clean_runs and not _marks_what_is_reserved(reader, iomem):
        reader.missing[PAGE_FLAGS] = UNMARKED
        return replace(looked, clean_runs=None)
    return looked


def lent_pages(
    reader: Reader,
    blocks: tuple[MemoryBlock, ...],
    block_bytes: Optional[int],
    own: OwnRecord,
    cma_ranges: Optional[Pairs],
) -> Optional[LentPages]:
    """What lent memory holds now; None where that can't be seen.

    A look at what could be lent as it is takes a few ms per GiB and is therefore always made.
    """
    recorded = reader.parsed(
        LENT_PAGES, lambda data: from_json(LentPages, json.loads(data)), None, optional=True
    )
    if recorded is not None:
        return recorded
    size = block_bytes or 0
    online = Ranges((b.index * size, (b.index + 1) * size) for b in blocks if b.state == "online")
    mine = Ranges(
        (b.index * size, (b.index + 1) * size)
        for b in blocks
        if b.is_movable and b.index in own.blocks
    )
    # what is offline or gone is no matter of its pages
    lent = Ranges(own.lent) & online if blocks else Ranges(own.lent)
    unfit: list[Unfit] = []
    kinds: Counter[str] = Counter()
    try:
        for first, last in _chunks(lent | mine | Ranges(cma_ranges or ())):
            flags = _flags(reader, first, last)
            unfit += unfit_units(flags, first)
            for part in lent & Ranges([(first * PAGE, last * PAGE)]):
                begin, end = part.start // PAGE - first, part.end // PAGE - first
                kinds.update(count_kinds(flags[begin * ENTRY_BYTES : end * ENTRY_BYTES]))
    except (OSError, CrashlendError):
        return None
    return LentPages(tuple(unfit), dict(kinds))


def _chunks(memory: Ranges) -> Iterator[tuple[int, int]]:
    """Its whole pages, [first, last + 1), a chunk at a time."""
    for run in memory.align_inwards(PAGE):
        for at in range(run.start // PAGE, run.end // PAGE, CHUNK_PAGES):
            yield at, min(at + CHUNK_PAGES, run.end // PAGE)


def _flags(reader: Reader, first: int, last: int) -> bytes:
    length = (last - first) * ENTRY_BYTES
    flags = reader.files.read(PAGE_FLAGS, length, offset=first * ENTRY_BYTES)
    if len(flags) < length:
        raise FormatError(PAGE_FLAGS, "it ends too early", offset=len(flags))
    return flags


def _look(
    reader: Reader,
    blocks: tuple[MemoryBlock, ...],
    block_bytes: int,
    own_blocks: Sequence[int],
) -> PageCensus:
    length = block_bytes // PAGE * ENTRY_BYTES
    counted = []
    clean: list[tuple[int, int]] = []
    whole = True
    for block in blocks:
        if block.state != "online":
            continue
        try:
            flags = reader.files.read(PAGE_FLAGS, length, offset=block.index * length)
            counted.append(count_pages(block.index, flags))
            if block.is_movable and block.index not in own_blocks:
                first_pfn = block.index * block_bytes // PAGE
                clean += clean_runs(flags, first_pfn)
        except (OSError, CrashlendError) as error:
            reader.missing[PAGE_FLAGS] = str(error)
            whole = False
            break
    # only now: a run may go on in the next block
    long = tuple((r.start, r.end) for r in Ranges(clean) if r.size >= MIN_RUN_BYTES)
    return PageCensus(tuple(counted), long if whole else None)


def _marks_what_is_reserved(reader: Reader, iomem: Sequence[Resource]) -> bool:
    """Whether the flag RESERVED is what it was: the kernel's own code carries it.

    It is the one flag that tells early boot's data, and among those that the kernel's header says
    never to rely on (include/linux/kernel-page-flags.h).
    """
    code = next((r.start // PAGE for r in iomem if r.name == "Kernel code"), None)
    if code is None:
        return False
    try:
        return is_reserved(reader.files.read(PAGE_FLAGS, ENTRY_BYTES, offset=code * ENTRY_BYTES))
    except OSError:
        return False
