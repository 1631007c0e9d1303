# SPDX-License-Identifier: LGPL-2.1-or-later
"""Firmware that the drivers on the way load: what their modules name and this host has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crashlend.capture.contents import Contents, read_file
from crashlend.capture.libraries import resolve
from crashlend.formats import newc

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from crashlend.capture.modules import Module

# As the kernel looks for it (drivers/base/firmware_loader/main.c: fw_path), compressed or not.
_DIRECTORIES = (
    "lib/firmware/updates/{release}",
    "lib/firmware/updates",
    "lib/firmware/{release}",
    "lib/firmware",
)
_SUFFIXES = ("", ".xz", ".zst")
_KEY = b"firmware="


def firmware_names(module: bytes) -> Iterator[str]:
    """The files that a module says it loads (``MODULE_FIRMWARE``); patterns are left out.

    A module holds its information as NUL-terminated ``key=value`` strings.
    """
    at = module.find(b"\0" + _KEY)
    while at >= 0:
        end = module.find(b"\0", at + 1)
        name = module[at + 1 + len(_KEY) : end].decode(errors="replace")
        if name and ".." not in name and not name.startswith("/") and not set(name) & set("*?[\n"):
            yield name
        at = module.find(b"\0" + _KEY, end)


def add_firmware(contents: Contents, root: Path, release: str, module: Module, data: bytes) -> None:
    """Put in what ``module``, whose file holds ``data``, names and this host has."""
    for name in firmware_names(data):
        for place in (f"{d.format(release=release)}/{name}" for d in _DIRECTORIES):
            found = [place + s for s in _SUFFIXES if resolve(root, place + s).is_file()]
            if found:
                member = newc.regular(found[0], read_file(resolve(root, found[0])))
                contents.add(member, f"firmware of {module.name}", (*module.chain, module.why))
                break
