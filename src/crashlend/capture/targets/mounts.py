# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is mounted where, from /proc/self/mountinfo."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, Optional

from crashlend.capture.hosttree import read_text
from crashlend.errors import CrashlendError

if TYPE_CHECKING:
    from pathlib import Path


class Mount(NamedTuple):
    """A line of /proc/self/mountinfo: what is mounted where. ``root`` is inside the device."""

    device: str  # major:minor
    root: str
    point: str
    fstype: str
    source: str


def read_mounts(root: Path) -> list[Mount]:
    """All mounts, in their order. Raises CrashlendError when mountinfo cannot be read."""
    for name in ("proc/self/mountinfo", "proc/1/mountinfo"):
        text = read_text(root / name)
        if text:
            return [m for m in map(_parse_mount, text.splitlines()) if m is not None]
    raise CrashlendError("cannot find the dump target", f"cannot read {root}/proc/self/mountinfo")


def _parse_mount(line: str) -> Optional[Mount]:
    # proc(5): "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw"
    left, _, right = line.partition(" - ")
    before, behind = left.split(), right.split()
    if len(before) < 6 or len(behind) < 2:
        return None
    return Mount(before[2], _plain(before[3]), _plain(before[4]), behind[0], _plain(behind[1]))


def _plain(text: str) -> str:
    """Undo the kernel's octal escapes for blanks and backslashes."""
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), text)


def holder(mounts: list[Mount], path: str) -> Mount:
    """The mount that holds ``path`` (absolute, without symlinks)."""
    best: Optional[Mount] = None
    for mount in mounts:
        below = mount.point == "/" or path == mount.point or path.startswith(mount.point + "/")
        # of two mounts on one directory the later one is seen
        if below and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    if best is None:
        raise CrashlendError("cannot find the dump target", f"nothing is mounted for {path}")
    return best


def inside(mount: Mount, path: str) -> str:
    """``path`` as it is named inside the mounted file system, from its own root on."""
    rest = path if mount.point == "/" else path[len(mount.point) :]
    return (mount.root.rstrip("/") + rest).rstrip("/") or "/"
