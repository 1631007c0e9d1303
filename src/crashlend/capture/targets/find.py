# SPDX-License-Identifier: LGPL-2.1-or-later
"""From the setting ``target`` to the targets, in order of preference."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Callable

from crashlend.capture.targets.access import Access, read_secret
from crashlend.capture.targets.filesystem import find_filesystem
from crashlend.capture.targets.http import find_http
from crashlend.capture.targets.nfs import find_nfs
from crashlend.capture.targets.raw import PREFIX, find_raw
from crashlend.capture.targets.ssh import find_ssh
from crashlend.errors import CrashlendError

if TYPE_CHECKING:
    from pathlib import Path

    from crashlend.capture.targets.target import Target

Finder = Callable[["Path", str, str, Access], "Target"]

# What a word of the setting begins with, and who makes a target of it.
FORMS: dict[str, Finder] = {
    "UUID=": find_filesystem,
    "LABEL=": find_filesystem,
    "PARTUUID=": find_filesystem,
    "/dev/": find_filesystem,
    PREFIX: find_raw,
    "nfs://": find_nfs,
    "ssh://": find_ssh,
    "https://": find_http,
    "http://": find_http,
}
USUAL = Access()
# What begins the address of a server.
NETWORK_FORMS = ("nfs://", "ssh://", "https://", "http://")
# An address that is itself a secret is in a file for root's eyes alone.
FROM_FILE = "url:"


def find_targets(root: Path, text: str, path: str, access: Access = USUAL) -> tuple[Target, ...]:
    """The targets that ``text`` names: words by blanks, quoted as in a shell where they hold some.

    ``text`` may be "": the file system that holds ``path``, the directory for dumps on targets
    that are file systems; ``access`` is what they are reached with. Raises CrashlendError for what
    does not exist on the host below ``root`` or cannot be reached from a crash kernel.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise CrashlendError(
            f"cannot use the dump target {text}", str(error).lower(), hint="quote it as in a shell"
        ) from error
    if not words:
        return (find_filesystem(root, "", path, access),)
    return tuple(_find(root, word, path, access) for word in words)


def _find(root: Path, word: str, path: str, access: Access) -> Target:
    if word.startswith(FROM_FILE):
        word = _address(root, word[len(FROM_FILE) :])
    for prefix, finder in FORMS.items():
        if word.startswith(prefix) and word != prefix:
            return finder(root, word, path, access)
    raise CrashlendError(
        f"cannot use the dump target {word}",
        "unknown form",
        hint=f"targets begin with {', '.join((*FORMS, FROM_FILE))}",
    )


def _address(root: Path, file: str) -> str:
    hint = "write the address of one dump target into it, such as https://HOST/PATH?SIGNATURE"
    text = read_secret(root, file, "the address of a dump target in", hint).decode(errors="replace")
    if len(text.split()) != 1 or not text.startswith(NETWORK_FORMS):
        raise CrashlendError(f"cannot use the dump target in {file}", "not an address", hint=hint)
    return text.strip()
