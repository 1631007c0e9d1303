# SPDX-License-Identifier: LGPL-2.1-or-later
"""A Debian kernel's debug symbols: of its -dbg package the vmlinux alone, kept in the cache."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from crashlend.errors import CrashlendError
from crashlend.lab.packages import Say, Suite, cache_directory, find_tool, locked, silent

if TYPE_CHECKING:
    from crashlend.lab.kernels import Kernel


def debug_vmlinux(kernel: Kernel, say: Say = silent) -> Path:
    """The vmlinux with the symbols of this very build (some 600 MB).

    Its package (more than 800 MB) is fetched for it and removed again.

    Raises:
        CrashlendError: Debian has none for this build (any more).

    """
    what = f"no debug symbols of {kernel.release}"
    path = cache_directory() / "symbols" / f"vmlinux-{kernel.release}_{kernel.version}"
    with locked(path.parent / "lock", say):
        if path.exists():
            return path
        suite = Suite(kernel.suite, say)
        name = f"linux-image-{kernel.release}-dbg"
        offers = [p for p in suite.candidates([name]) if p.version == kernel.version]
        if not offers:
            why = f"{kernel.suite} has no {name} of {kernel.version or 'its version'}"
            raise CrashlendError(what, why)
        (deb,) = suite.fetch(offers[:1])
        say(f"unpacking the symbols of {kernel.release}")
        _take_out(deb, f"./usr/lib/debug/boot/vmlinux-{kernel.release}", path, what)
        deb.unlink(missing_ok=True)
    return path


def _take_out(deb: Path, member: str, path: Path, what: str) -> None:
    """One file of a package; the rest of it is not even read."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new-", delete=False) as out:
        source = subprocess.Popen(
            [find_tool("dpkg-deb"), "--fsys-tarfile", str(deb)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # it complains when nobody reads on
        )
        with source:
            done = subprocess.run(
                [find_tool("tar"), "-x", "-O", "--occurrence=1", member],
                stdin=source.stdout,
                stdout=out,
                stderr=subprocess.PIPE,
                check=False,
            )
            if source.stdout:
                source.stdout.close()
    if done.returncode != 0 or not Path(out.name).stat().st_size:
        Path(out.name).unlink()
        raise CrashlendError(what, done.stderr.decode(errors="replace").strip()[-200:])
    Path(out.name).replace(path)
