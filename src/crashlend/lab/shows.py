# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a crash kernel has told of itself, and the words without which a trial would prove nothing.

A dump that came by another way than the trial's name says is a dump all the same: only the words tell.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from crashlend.lab.spec import Check

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crashlend.lab.spec import Saved


def told(lines: Sequence[str], saved: Saved) -> str:
    """All that the crash kernel said: its lines of the console, capture.log, the rungs' reasons."""
    log = saved.place / "capture.log" if saved.place else None
    kept = log.read_text(errors="replace") if log and log.is_file() else ""
    reasons = (str(rung.get("reason")) for rung in saved.capture.get("ladder", []))
    return "\n".join((*lines, kept, *reasons))


def check_shows(name: str, shows: Sequence[str], text: str) -> Check:
    """All of the patterns are in the text; ``.`` is any character, the end of a line too."""
    silent = [words for words in shows if not re.search(words, text, re.DOTALL | re.MULTILINE)]
    shown = f"{len(shows)} signs of it" if shows else "it has no sign"
    return Check(name, bool(shows) and not silent, f"not said: {silent}" if silent else shown)
