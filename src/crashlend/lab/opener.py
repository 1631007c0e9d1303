# SPDX-License-Identifier: LGPL-2.1-or-later
"""The makedumpfile that opens a guest's dump here: this machine's, or the guest's own.

One that was built without zstd does not say so when it is given a dump with zstd in it: it takes compressed
pages for what was in memory, and finds nothing. The guest's own runs here by its own loader.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from crashlend.capture.makedumpfile import FLAGS, read_features
from crashlend.lab.guest import fill_root, userland
from crashlend.lab.packages import silent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crashlend.lab.kernels import Kernel

LOADER = "lib64/ld-linux-x86-64.so.2"
LIBRARIES = "usr/lib/x86_64-linux-gnu"


def opener(words: Sequence[str], kernel: Kernel, scratch: Path) -> list[str]:
    """A command that opens a dump written with these ``words`` of makedumpfile; empty: there is none.

    ``scratch`` is an empty directory, for the guest's programs where they are needed.
    """
    here = shutil.which("makedumpfile")
    if here is None:
        return []
    if not lacks(words, Path(here).read_bytes()):
        return [here]
    fill_root(scratch, kernel, userland(kernel, silent))
    program = scratch / "usr/bin/makedumpfile"
    return [str(scratch / LOADER), "--library-path", str(scratch / LIBRARIES), str(program)]


def lacks(words: Sequence[str], program: bytes) -> bool:
    """Whether ``program``, a makedumpfile, was built without the compression of these words."""
    have = read_features(program).flags
    return any(word in FLAGS.values() and word not in have for word in words)
