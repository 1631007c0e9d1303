# SPDX-License-Identifier: LGPL-2.1-or-later
"""The readers of facts that have to do with pages and with what crashlend itself has lent."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Optional

from crashlend.errors import CrashlendError
from crashlend.hostfiles import CENSUS
from crashlend.jsonable import from_json
from crashlend.lenders.census import ENTRY_BYTES, BlockCensus, count_pages

if TYPE_CHECKING:
    from crashlend.facts import MemoryBlock, _Reader

PAGE = 4096


def block_census(
    reader: _Reader, blocks: tuple[MemoryBlock, ...], block_bytes: Optional[int]
) -> tuple[BlockCensus, ...]:
    """What the pages of every online block hold, from /proc/kpageflags."""
    if not block_bytes:
        return ()
    length = block_bytes // PAGE * ENTRY_BYTES
    out = []
    for block in blocks:
        if block.state != "online":
            continue
        try:
            flags = reader.files.read("/proc/kpageflags", length, offset=block.index * length)
            out.append(count_pages(block.index, flags))
        except (OSError, CrashlendError) as error:
            reader.missing["/proc/kpageflags"] = str(error)
            break
    return tuple(out)


def recorded_census(reader: _Reader) -> tuple[BlockCensus, ...]:
    """The census in a snapshot; the running host has none of the kind."""
    return reader.parsed(
        CENSUS,
        lambda data: from_json(tuple[BlockCensus, ...], json.loads(data)),
        (),
        optional=True,
    )


def lent_blocks(reader: _Reader, path: str) -> tuple[int, ...]:
    """The blocks that the state file at ``path`` says crashlend made movable."""

    def parse(data: bytes) -> tuple[int, ...]:
        value = json.loads(data)
        blocks = value.get("blocks") if isinstance(value, dict) else None
        if not isinstance(blocks, dict):
            raise ValueError("it is damaged")
        # any other step is on its way; a damaged record is no record
        return tuple(
            sorted(
                int(index)
                for index, block in blocks.items()
                if isinstance(block, dict) and block.get("step") == "lent"
            )
        )

    return reader.parsed(path, parse, (), optional=True)
