# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lab's one kernel module, built against the headers of the kernel that it is to crash.

Debian builds its kernels without LKDTM, so what crashes in an interrupt or in an NMI must come from
somewhere else. The headers are fetched as kernels are; the module is cached per build.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

from crashlend.errors import CrashlendError
from crashlend.lab.packages import (
    Say,
    Suite,
    cache_directory,
    find_tool,
    locked,
    silent,
    unpack,
    write_atomically,
)

if TYPE_CHECKING:
    from crashlend.lab.kernels import Kernel

MODULE = "crashlend_trigger.ko"
SOURCE = "crashlend_trigger.c"
STOCK_KINDS = "crash it by a kind that takes no module, such as nmi or keyboard"


def build_trigger(kernel: Kernel, say: Say = silent) -> Path:
    """The trigger module for this very kernel; built once, then cached.

    Raises:
        CrashlendError: the kernel is no package, its headers are gone from the archive, gcc or make
            is missing, or the headers' own programs do not run here (those of a newer suite want a
            newer C library).

    """
    what = f"cannot build the trigger module for {kernel.release}"
    with as_file(files("crashlend.lab").joinpath(f"guestfiles/trigger/{SOURCE}")) as source:
        text = source.read_bytes()
    key = hashlib.sha256(f"{kernel.release} {kernel.version}\n".encode() + text).hexdigest()[:16]
    place = cache_directory() / "triggers" / f"{kernel.release}-{key}.ko"
    with locked(cache_directory() / "triggers" / "lock", say):
        if place.exists():
            return place
        if not kernel.version:
            raise CrashlendError(what, "it is no Debian package: no headers", hint=STOCK_KINDS)
        find_tool("gcc", "install the package gcc")
        make = find_tool("make", "install the package make")
        debs = _headers(kernel, what, say)
        say(f"building the trigger module for {kernel.release}")
        with tempfile.TemporaryDirectory(prefix=".new-", dir=place.parent) as scratch:
            headers = unpack_headers(kernel.release, debs, Path(scratch, "headers"))
            tree = Path(scratch, "module")
            tree.mkdir()
            (tree / SOURCE).write_bytes(text)
            (tree / "Kbuild").write_text(f"obj-m := {MODULE.removesuffix('.ko')}.o\n")
            # the compiler of this machine: Debian names the exact one, which may not be here
            words = [make, "-s", "-C", str(headers), f"M={tree}", "CC=gcc", "modules"]
            _run_make(words, what)
            write_atomically(place, (tree / MODULE).read_bytes())
    return place


def header_parts(release: str, depends: tuple[str, ...]) -> list[str]:
    """The packages of a kernel's headers: its own, the common ones, and the build's programs."""
    parts = [n for n in depends if re.fullmatch(r"linux-headers-.*-common|linux-kbuild-.*", n)]
    return [f"linux-headers-{release}", *parts]


def unpack_headers(release: str, debs: list[Path], root: Path) -> Path:
    """Unpack headers below ``root``; return the directory that make is to be run in.

    The packages count on /usr/src: their Makefiles are told where they really are.
    """
    root.mkdir()
    for deb in debs:
        unpack(deb, root, without=("./usr/share",))
    headers = root / f"usr/src/linux-headers-{release}"
    makefile = headers / "Makefile"
    text = makefile.read_text().replace("/usr/src/", f"{root}/usr/src/")
    makefile.unlink()  # not through a link
    makefile.write_text(text)
    return headers


def copy_trigger(kernel: Kernel, tree: Path, say: Say = silent) -> None:
    """Put the module into the lab's disk."""
    shutil.copy(build_trigger(kernel, say), tree / MODULE)


def _run_make(words: list[str], what: str) -> None:
    done = subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={**os.environ, "LC_ALL": "C"},
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        raise CrashlendError(what, first_error(done.stderr), hint=STOCK_KINDS)


def first_error(stderr: str) -> str:
    """The first line that tells of an error: warnings and what make adds say nothing."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    telling = re.compile(r"\berror:|ERROR:|not found|No such file", re.IGNORECASE)
    return next((line for line in lines if telling.search(line)), " ".join(lines[:1]))


def _headers(kernel: Kernel, what: str, say: Say) -> list[Path]:
    suite = Suite(kernel.suite, say)
    name = f"linux-headers-{kernel.release}"
    found = [package for package in suite.candidates([name]) if package.version == kernel.version]
    if not found:
        why = f"{suite.name} has no {name} of {kernel.version}"
        raise CrashlendError(what, why, hint=STOCK_KINDS)
    return suite.download(header_parts(kernel.release, found[0].depends))
