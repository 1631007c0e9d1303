# SPDX-License-Identifier: LGPL-2.1-or-later
"""The shell of the capture's init, run by the host's busybox without a crash."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from crashlend.capture.script import KINDS, PARTS, script

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

BUSYBOX = shutil.which("busybox")
needs_busybox = pytest.mark.skipif(BUSYBOX is None, reason="busybox is not installed")
# Enough of the world to run a function by itself.
STUBS = """
say() { echo "$*" >>said; }
bounded() { shift; "$@"; }
DIR=$PWD TARGET_KIND=fs
"""


# Those that may be /bin/sh in an initramfs: what init needs must work in each.
SHELLS = [
    pytest.param(shell, marks=pytest.mark.skipif(shutil.which(shell[0]) is None, reason="no shell"))
    for shell in (("busybox", "sh"), ("dash",), ("bash", "--posix"))
]


def shell(text: str, cwd: Path, by: Sequence[str] = ("busybox", "sh")) -> str:
    """What ``text`` prints, run in ``cwd`` with the functions of /init for every kind of target.

    TMP, ETC and LOG are in ``cwd``; programs in ``cwd``/bin come first.
    """
    (cwd / "init").write_bytes(script(KINDS, PARTS))
    setup = (
        f". ./init; defaults; TMP=$PWD LOG=$PWD/log ETC=$PWD MOUNTPOINT=$PWD/target PATH={cwd}/bin"
    )
    setup += ":/bin:/usr/bin:/sbin:/usr/sbin"
    if BUSYBOX is None:
        pytest.skip("busybox is not installed")
    command = [*by, "-c", f"{setup}\n{text}"]
    done = subprocess.run(command, cwd=cwd, capture_output=True, check=True, text=True, timeout=60)
    return done.stdout


def executable(path: Path, text: str) -> None:
    """A shell script that can be called."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
