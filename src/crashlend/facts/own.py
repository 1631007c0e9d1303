# SPDX-License-Identifier: LGPL-2.1-or-later
"""The reader of crashlend's own record of this host: system/state.py writes it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Optional

from crashlend.jsonable import from_json

if TYPE_CHECKING:
    from crashlend.facts.reader import Reader

STATE_PATH = "/run/crashlend/state.json"
Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class OwnRecord:
    """All memory blocks that the record names, the lent ones of them, and what is lent of a zone.

    ``lent`` is all memory that the loaded image was given.
    ``rounds_gib_outwards`` is what an earlier load has shown of the kernel; None: nothing yet.
    ``cma_ranges`` are the kernel's ``,cma`` ranges as a load has seen them, ``cma_active`` those of
    them whose pages were seen to be CMA.
    """

    blocks: tuple[int, ...] = ()
    lent_blocks: tuple[int, ...] = ()
    lent_zone: Pairs = ()
    lent: Pairs = ()
    rounds_gib_outwards: Optional[bool] = None
    cma_ranges: Pairs = ()
    cma_active: Pairs = ()


def own_record(reader: Reader) -> OwnRecord:
    """What the record says; a damaged one is none."""
    return reader.parsed(STATE_PATH, _parse, OwnRecord(), optional=True)


def _parse(data: bytes) -> OwnRecord:
    value = json.loads(data)
    blocks: Any = value.get("blocks") if isinstance(value, dict) else None
    if not isinstance(blocks, dict):
        raise ValueError("it is damaged")
    loaded, learned = value.get("loaded"), value.get("learned")
    given = loaded if isinstance(loaded, dict) else {}
    zone, lent = given.get("zone", []), given.get("lent", [])
    seen = value.get("cma")
    cma = seen if isinstance(seen, dict) else {}
    rounds = learned.get("rounds_gib_outwards") if isinstance(learned, dict) else None
    known = {int(index): block for index, block in blocks.items() if isinstance(block, dict)}
    return OwnRecord(
        tuple(sorted(known)),
        # any other step is on its way
        tuple(sorted(index for index, block in known.items() if block.get("step") == "lent")),
        from_json(Pairs, zone),
        from_json(Pairs, lent),
        rounds if isinstance(rounds, bool) else None,
        from_json(Pairs, cma.get("ranges", [])),
        from_json(Pairs, cma.get("active", [])),
    )
