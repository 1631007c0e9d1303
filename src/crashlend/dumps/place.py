# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where this host's dumps are, by its settings: the directories of mounted targets. Reads only."""

from __future__ import annotations

import shlex
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from crashlend.capture.hosttree import follow, read_text
from crashlend.capture.targets.mounts import read_mounts
from crashlend.errors import CrashlendError

if TYPE_CHECKING:
    from crashlend.capture.targets.mounts import Mount

# what udev keeps of names that a device may be found by
_LINKS = {"UUID=": "by-uuid", "LABEL=": "by-label", "PARTUUID=": "by-partuuid"}
_HINT = "name the directory, or mount the target; a raw target: crashlend dumps recover DEVICE"


def find_places(root: Path, target: str, path: str) -> list[Path]:
    """The directories for dumps on the targets that are mounted, in order of preference.

    ``target`` and ``path`` are the settings of these names, ``root`` is ``/`` or a copy of a host.
    A target that is no file system (ssh, http, raw) has no directory here.

    Raises:
        CrashlendError: there is none.

    """
    try:
        words = shlex.split(target)
    except ValueError as error:
        raise CrashlendError(f"cannot read the setting target ({target})", str(error)) from error
    if not words:
        return [root / path.lstrip("/")]
    mounts: list[Mount] = []
    with suppress(CrashlendError):
        mounts = read_mounts(root)
    found = [place for word in words for place in _places_of(root, word, path, mounts)]
    if not found:
        raise CrashlendError(
            "cannot find this host's dumps", f"no target of {target} is mounted here", hint=_HINT
        )
    return list(dict.fromkeys(found))


def _places_of(root: Path, word: str, path: str, mounts: list[Mount]) -> list[Path]:
    if word.startswith("nfs://"):
        # nfs://SERVER[:PORT]/EXPORT[?OPTIONS] is mounted from SERVER:/EXPORT
        server, _, export = word[len("nfs://") :].partition("?")[0].partition("/")
        host = server.rsplit(":", 1)[0] if server.rpartition(":")[2].isdigit() else server
        source = f"{host}:/{export}".rstrip("/")
        points = [m.point for m in mounts if m.fstype.startswith("nfs") and m.source == source]
        return [root / point.lstrip("/") / path.lstrip("/") for point in points]
    kind = next((prefix for prefix in _LINKS if word.startswith(prefix)), "")
    if kind:
        name = follow(root, root / "dev/disk" / _LINKS[kind] / word[len(kind) :]).name
    elif word.startswith("/dev/"):
        name = follow(root, root / word.lstrip("/")).name
    else:
        return []
    number = read_text(follow(root, root / "sys/class/block" / name) / "dev")
    for mount in mounts:
        # the directory is named from the file system's own root on; what else is mounted of it
        # (a bind mount, another subvolume) may not hold it
        if number and mount.device == number and mount.root == "/":
            return [root / mount.point.lstrip("/") / path.lstrip("/")]
    return []
