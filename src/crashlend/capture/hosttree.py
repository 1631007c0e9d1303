# SPDX-License-Identifier: LGPL-2.1-or-later
"""Files of a host below a directory: ``/``, or a copy of a host's /proc, /sys and /dev."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crashlend.capture.libraries import resolve

if TYPE_CHECKING:
    from pathlib import Path


def follow(root: Path, path: Path) -> Path:
    """Resolve symlinks of a path below ``root``, inside it."""
    return resolve(root, str(path.relative_to(root)))


def read_text(path: Path) -> str:
    """A small file's text without blanks at its ends; "" when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").strip()
    except OSError:
        return ""
