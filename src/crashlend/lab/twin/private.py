# SPDX-License-Identifier: LGPL-2.1-or-later
"""A directory for a twin's files: a host's initramfs is among them, with its keys."""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

from crashlend.errors import CrashlendError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def private(directory: Path) -> Iterator[Path]:
    """Make a directory that only this user can look into, and leave its files as private (0600).

    CrashlendError where it is there already and others can look into it, or it is another's: whoever
    has it open sees what comes later, so that to take the rights away would be too late.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise CrashlendError(
            f"cannot keep a twin's files in {directory}",
            "the keys of the host's initramfs will be among them, and others can look into it",
            hint="name a directory that is not there yet, or one of yours with mode 0700",
        )
    try:
        yield directory
    finally:
        for where, directories, files in os.walk(directory):
            for name, mode in (*((n, 0o700) for n in directories), *((n, 0o600) for n in files)):
                path = os.path.join(where, name)
                if not os.path.islink(path):
                    os.chmod(path, mode)
