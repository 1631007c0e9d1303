# SPDX-License-Identifier: LGPL-2.1-or-later
"""The reader of pages: what each memory block holds, and what of a ZONE_MOVABLE is clean."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Optional

from crashlend.errors import CrashlendError
from crashlend.facts.own import Pairs
from crashlend.hostfiles import CENSUS, CLEAN_RUNS
from crashlend.jsonable import from_json
from crashlend.lenders.census import (
    ENTRY_BYTES,
    MIN_RUN_BYTES,
    BlockCensus,
    clean_runs,
    count_pages,
    is_reserved,
)
from crashlend.ranges import Ranges

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crashlend.facts.data import MemoryBlock
    from crashlend.facts.reader import Reader
    from crashlend.formats.procfs import Resource

PAGE = 4096
PAGE_FLAGS = "/proc/kpageflags"
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
            lambda data: from_json(tuple[BlockCensus, ...], json.loads(data)),
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
