# SPDX-License-Identifier: LGPL-2.1-or-later
"""From the setting ``target`` to the targets, in order of preference."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Callable

from crashlend.capture.targets.filesystem import find_filesystem
from crashlend.capture.targets.raw import PREFIX, find_raw
from crashlend.errors import CrashlendError

if TYPE_CHECKING:
    from pathlib import Path

    from crashlend.capture.targets.target import Target

Finder = Callable[["Path", str, str], "Target"]

# What a word of the setting begins with, and who makes a target of it.
FORMS: dict[str, Finder] = {
    "UUID=": find_filesystem,
    "LABEL=": find_filesystem,
    "/dev/": find_filesystem,
    PREFIX: find_raw,
}


def find_targets(root: Path, text: str, path: str) -> tuple[Target, ...]:
    """The targets that ``text`` names: words by blanks, quoted as in a shell where they hold some.

    ``text`` may be "": the file system that holds ``path``, the directory for dumps on targets
    that are file systems. Raises CrashlendError for what does not exist on the host below ``root``
    or cannot be reached from a crash kernel.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise CrashlendError(
            f"cannot use the dump target {text}", str(error).lower(), hint="quote it as in a shell"
        ) from error
    if not words:
        return (find_filesystem(root, "", path),)
    return tuple(_finder(word)(root, word, path) for word in words)


def _finder(word: str) -> Finder:
    for prefix, finder in FORMS.items():
        if word.startswith(prefix) and word != prefix:
            return finder
    raise CrashlendError(
        f"cannot use the dump target {word}",
        "unknown form",
        hint=f"targets begin with {', '.join(FORMS)}",
    )
