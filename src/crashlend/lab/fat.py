# SPDX-License-Identifier: LGPL-2.1-or-later
"""A FAT16 file system image of a directory's content: what firmware boots from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crashlend.lab.packages import find_tool, run_tool
from crashlend.ranges import align_up
from crashlend.sizes import MIB

if TYPE_CHECKING:
    from pathlib import Path

# of fewer clusters it would not be FAT16
LEAST_BYTES = 16 * MIB


def pack_fat(directory: Path, image: Path, *, free_bytes: int = MIB) -> None:
    """Make ``image``, without a partition table, with all that lies in ``directory``. No root needed.

    CrashlendError where a tool is missing or fails.
    """
    what = "cannot make the FAT file system"
    content = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    size = align_up(max(LEAST_BYTES, content * 51 // 50 + free_bytes), MIB)
    image.unlink(missing_ok=True)
    make = find_tool("mkfs.fat", "install the package dosfstools")
    run_tool([make, "-F", "16", "-C", str(image), str(size // 1024)], what)
    copy = find_tool("mcopy", "install the package mtools")
    run_tool([copy, "-i", str(image), "-s", *map(str, sorted(directory.iterdir())), "::/"], what)
