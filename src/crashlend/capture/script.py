# SPDX-License-Identifier: LGPL-2.1-or-later
"""The crash kernel's /init: parts of shell (init/*.sh), put together for the targets at hand.

One file, because a part that could not be read in the crash kernel would cost the dump.
"""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

# In their order in /init; main, which starts everything, is last.
ALWAYS = (
    *("base", "watch", "json", "report", "modules", "makedumpfile", "hooks", "pstore", "ladder"),
    "main",
)
# What a kind of target takes besides, in order.
KINDS = {
    "fs": ("devices", "directory", "fs"),
    "raw": ("devices", "stream", "raw"),
    "nfs": ("network", "directory", "nfs"),
    "ssh": ("network", "pipe", "ssh"),
    "http": ("network", "pipe", "http"),
}
# What a target may take besides (Target.parts).
PARTS = ("stack",)
_INTERPRETER = b"#!/bin/sh\n"


def script(kinds: Iterable[str], parts: Iterable[str] = ()) -> bytes:
    """/init for targets of these ``kinds`` (keys of :data:`KINDS`), with some further ``parts``."""
    wanted = dict.fromkeys(part for kind in kinds for part in KINDS[kind])
    names = dict.fromkeys((*ALWAYS[:-1], *parts, *wanted, ALWAYS[-1]))
    directory = files("crashlend.capture").joinpath("init")
    return _INTERPRETER + b"\n".join(
        directory.joinpath(f"{name}.sh").read_bytes() for name in names
    )
