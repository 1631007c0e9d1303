# SPDX-License-Identifier: LGPL-2.1-or-later
"""Libraries that a program opens while it runs, and so names in no table that could be read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crashlend.capture.libraries import find_library, resolve
from crashlend.capture.targets.target import Program
from crashlend.errors import CrashlendError

if TYPE_CHECKING:
    from pathlib import Path


def opened_library(root: Path, program: Program, name: str, why: str) -> tuple[Program, ...]:
    """The library ``name`` as ``program`` would find it: one of its own ABI. () where there is none."""
    paths = (resolve(root, candidate) for candidate in program.candidates)
    executable = next((path for path in paths if path.is_file()), None)
    if executable is None:
        return ()
    try:
        path = find_library(root, executable, name).path.lstrip("/")
    except CrashlendError:
        return ()
    return (Program((path,), path, name, why),)
