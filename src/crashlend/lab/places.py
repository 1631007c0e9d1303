# SPDX-License-Identifier: LGPL-2.1-or-later
"""A dump's directory, as a capture left it or a recovery made it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from crashlend.lab.spec import Saved

if TYPE_CHECKING:
    from pathlib import Path


def read_place(place: Path) -> Saved:
    """What is in the directory; what is not there is empty."""

    def told(name: str) -> Any:
        path = place / name
        return json.loads(path.read_text(errors="replace")) if path.is_file() else {}

    log, vmcore = place / "dmesg.txt", place / "vmcore"
    dmesg = log.read_text(errors="replace") if log.is_file() else ""
    core = vmcore if vmcore.is_file() else None
    return Saved(told("capture.json"), dmesg, core, told("holes.json"), place)
