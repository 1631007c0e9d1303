# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the host's makedumpfile is worth: whether it supports a kernel, and may have threads.

Whether it supports a kernel it is asked, without a crash and without being root.

It is given a core file of five pages that says to be of that kernel: notes with the release, a page
table that maps the kernel's address space, and a utsname. makedumpfile reads it as it would read
/proc/vmcore, says what it thinks of the release, and stops, for there is no memory to dump.
"""

from __future__ import annotations

import os
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple, Optional

from crashlend.capture.libraries import Library, find_library, resolve
from crashlend.capture.makedumpfile import PATHS, Features, notes, read_features
from crashlend.errors import CrashlendError
from crashlend.formats.elf import parse_elf

SECONDS = 10.0
# get_kernel_version() in makedumpfile.c; the words are the same in all versions since 2007
UNSUPPORTED = "The kernel version is not supported"
# No kernel has this version: a makedumpfile that finds nothing wrong with it was not asked properly.
_IMPOSSIBLE = "255.0.0"
_PAGE_BYTES = 4096
_KERNEL_MAP = 0xFFFFFFFF80000000  # __START_KERNEL_map: physical 0, as phys_base says below
_PAGE_TABLE, _UTSNAME, _END = 0, 2 * _PAGE_BYTES, 3 * _PAGE_BYTES
# In uts_namespace the name has 4 bytes before it (a reference count). Those before 1.7.0 take that
# for granted, later ones read it from the notes: so it is said as it was.
_NAME_AT = 4
_PRESENT, _HUGE = 0x1, 0x80


# The C library opens it when a thread ends (pthread_cancel, pthread_exit), and aborts where it is not:
# "libgcc_s.so.1 must be installed for pthread_cancel to work", with the dump all but written.
THREAD_LIBRARY = "libgcc_s.so.1"
_GLIBC = "ld-linux"  # what its loader is called; others do not need the library


class Known(NamedTuple):
    """The host's makedumpfile, what people must know of it, and whether it can have threads."""

    features: Features
    notes: tuple[str, ...]
    threads: bool


class Threads(NamedTuple):
    """Whether makedumpfile can have threads, and the library that it needs for that, if any."""

    usable: bool
    library: Optional[Library] = None


def find_threads(root: Path, program: Path, features: Features) -> Threads:
    """Whether ``program`` below ``root``, which is of ``features``, can have threads."""
    if not features.threads:
        return Threads(usable=False)
    try:
        interpreter = parse_elf(program.read_bytes()).interpreter
        if _GLIBC not in (interpreter or ""):
            return Threads(usable=True)
        return Threads(True, find_library(root, program, THREAD_LIBRARY))
    except (OSError, CrashlendError):
        return Threads(usable=False)


def look_at(root: Path, release: str) -> Optional[Known]:
    """The makedumpfile below ``root`` against the kernel ``release``; None when there is none.

    It is run only where ``root`` is this very system; of another one the table of versions tells.
    """
    for candidate in PATHS:
        path = resolve(root, candidate)
        try:
            features = read_features(path.read_bytes())
        except OSError:
            continue
        supported = supports(path, release) if root == Path("/") else None
        threads = find_threads(root, path, features).usable
        return Known(features, notes(features, release, supported), threads)
    return None


def core_of(release: str) -> bytes:
    """A core file of x86-64 that claims to be of the kernel ``release``."""
    lines = (
        f"OSRELEASE={release}",
        f"PAGESIZE={_PAGE_BYTES}",
        f"SYMBOL(init_uts_ns)={_KERNEL_MAP + _UTSNAME:x}",
        f"OFFSET(uts_namespace.name)={_NAME_AT}",
        f"SYMBOL(init_top_pgt)={_KERNEL_MAP + _PAGE_TABLE:x}",
        "NUMBER(phys_base)=0",
        "NUMBER(pgtable_l5_enabled)=0",
    )
    text = "".join(line + "\n" for line in lines).encode()
    name = b"VMCOREINFO\0"
    note = struct.pack("<III", len(name), len(text), 0) + _aligned(name) + _aligned(text)
    # elf(5): ELF64, little-endian, ET_CORE, EM_X86_64; two program headers, PT_NOTE and PT_LOAD
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    at = len(head) + 2 * 56
    head += struct.pack("<IIQQQQQQ", 4, 0, at, 0, 0, len(note), len(note), 0)
    head += struct.pack("<IIQQQQQQ", 1, 7, _PAGE_BYTES, _KERNEL_MAP, 0, _END, _END, 0)
    # every entry of the top table leads to the second page, every one of that to physical 0
    top = struct.pack("<Q", _PAGE_BYTES | _PRESENT) * 512
    upper = struct.pack("<Q", _HUGE | _PRESENT) * 512
    names = ("Linux", "host", release, "", "x86_64", "")  # struct new_utsname: 65 bytes each
    utsname = bytes(_NAME_AT) + b"".join(n.encode()[:64].ljust(65, b"\0") for n in names)
    return (head + note).ljust(_PAGE_BYTES, b"\0") + top + upper + utsname.ljust(_PAGE_BYTES, b"\0")


def supports(program: Path, release: str) -> Optional[bool]:
    """What ``program`` says of the kernel ``release``; None when it can't be run or does not tell."""
    if _is_unsupported(program, _IMPOSSIBLE) is not True:
        return None
    unsupported = _is_unsupported(program, release)
    return None if unsupported is None else not unsupported


def _is_unsupported(program: Path, release: str) -> Optional[bool]:
    with tempfile.TemporaryDirectory(prefix="crashlend-") as name:
        core = Path(name) / "core"
        core.write_bytes(core_of(release))
        try:
            done = subprocess.run(
                [str(program), "--dump-dmesg", str(core), str(Path(name) / "dmesg")],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=SECONDS,
                check=False,
                env={**os.environ, "LC_ALL": "C"},
            )
        except (OSError, subprocess.SubprocessError):
            return None
    return UNSUPPORTED in done.stdout.decode(errors="replace")


def _aligned(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
