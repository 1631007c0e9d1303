# SPDX-License-Identifier: LGPL-2.1-or-later
"""The last renewal of the crash kernel that failed, so that the same is not tried again and again.

A load that fails makes events of its own: blocks that went and came back. /run/crashlend/failed.json
is {"schema": 1, "situation", "error", "count", "at"}: what the host and the record were like,
how often in a row that was tried, and when, in seconds since the boot, which empties /run.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from crashlend.system.state import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

NAME = "failed.json"
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 60.0, 6 * 3600.0


def resting(directory: Path, situation: str, now: float) -> str:
    """Why nothing is tried at ``now``; empty where this situation is new or its pause is over."""
    failed = _last(directory)
    if failed.get("situation") != situation:
        return ""
    pause = min(FIRST_PAUSE_SECONDS * 2.0 ** min(failed["count"] - 1, 30), LONGEST_PAUSE_SECONDS)
    if not failed["at"] <= now < failed["at"] + pause:
        return ""
    return (
        f"the very same was tried {failed['count']} times and failed ({failed['error']}); it is not "
        f"tried again for {pause:.0f} s, unless something changes"
    )


def note_failure(directory: Path, situation: str, error: str, now: float) -> None:
    """Put on record that what this situation asks for failed. What can't be written is left."""
    failed = _last(directory)
    count = failed["count"] + 1 if failed.get("situation") == situation else 1
    value = {"schema": 1, "situation": situation, "error": error, "count": count, "at": now}
    with suppress(OSError):
        write_atomically(directory / NAME, json.dumps(value).encode())


def forget(directory: Path) -> None:
    """After a load that went well."""
    with suppress(OSError):
        (directory / NAME).unlink()


def _last(directory: Path) -> dict[str, Any]:
    """What is on record; empty where there is nothing, or nothing that can be read."""
    try:
        value = json.loads((directory / NAME).read_bytes())
        return {
            "situation": str(value["situation"]),
            "error": str(value["error"]),
            "count": max(1, int(value["count"])),
            "at": float(value["at"]),
        }
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
