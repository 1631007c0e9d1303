# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether a saved dump can be used, and whether it is what the reports beside it say.

Two readings that know nothing of each other: crashlend's own, of headers and tables (core.py), and
where it is installed makedumpfile's, which goes through the page tables to the log.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Optional

from crashlend.dumps.core import memory_in
from crashlend.dumps.corefile import open_core
from crashlend.dumps.directory import HOLES, lent_of, read_dmesg
from crashlend.dumps.log import find_reason
from crashlend.errors import FormatError
from crashlend.sizes import mib

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crashlend.dumps.directory import Dump

MAKEDUMPFILE_SECONDS = 600
# by every makedumpfile; show_version() tells which others it was built with
ALWAYS_UNPACKED = ("none", "zlib")
# its words for a kernel that is too new for it (check_release() in makedumpfile.c)
UNSUPPORTED = "not supported"
_HINT_BESIDE = "dmesg.txt beside it may still tell the reason: crashlend dumps show"
_HINT_FLAT = "crashlend dumps recover makes a vmcore of it"


class Finding(NamedTuple):
    """One thing that was looked at. ``ok`` is None where it could not be judged."""

    what: str
    ok: Optional[bool]
    detail: str


@dataclass(frozen=True)
class Verdict:
    """All findings about one dump.

    ``usable``: it is whole, and crash and drgn can open it; a flattened one after it was recovered.
    """

    dump: Dump
    findings: tuple[Finding, ...]
    hint: str = ""

    @property
    def usable(self) -> bool:
        return all(finding.ok is not False for finding in self.findings)

    @property
    def in_words(self) -> str:
        if not self.usable:
            return "NOT USABLE"
        flattened = self.dump.core is not None and self.dump.core.flattened
        return "usable after recover" if flattened else "usable"


def check_dump(dump: Dump, *, independent: bool = True) -> Verdict:
    """Look at a dump. ``independent``: have makedumpfile read it as well, where it is installed."""
    findings = [*_own_findings(dump)]
    if independent and dump.core is not None and all(f.ok is not False for f in findings):
        findings.append(_read_by_makedumpfile(dump))
    hint = ""
    if dump.core is not None and dump.core.flattened:
        hint = _HINT_FLAT
    if any(finding.ok is False for finding in findings):
        hint = _HINT_BESIDE if dump.reason else ""
    return Verdict(dump, tuple(findings), hint)


def _own_findings(dump: Dump) -> Iterator[Finding]:
    yield Finding("complete", dump.complete, "; ".join(dump.faults) or "dump and reports are whole")
    core = dump.core
    if core is None:
        return
    form = f"{core.form}{', flattened' if core.flattened else ''}, {core.compression}"
    pages = core.pages * core.page_bytes
    yield Finding("opens", True, f"{form}, kernel {core.release}, {mib(pages)} of memory")
    yield _level(dump)
    yield from _size(dump)
    yield from _holes(dump)


def _size(dump: Dump) -> Iterator[Finding]:
    """The report may tell of the flattened dump that this one was made of."""
    told = dump.capture.get("vmcore")
    if not isinstance(told, dict) or dump.vmcore is None or not dump.complete:
        return
    name, size = str(told.get("path")).rpartition("/")[2], told.get("bytes")
    what = "of the size that capture.json tells"
    if name != dump.vmcore.name:
        yield Finding(what, None, f"it tells of {name}")
    else:
        yield Finding(what, size == dump.bytes, f"{dump.bytes} of {size}")


def _level(dump: Dump) -> Finding:
    """The level is written into kdump-compressed files alone."""
    own = dump.core.level if dump.core else None
    told = dump.capture.get("dump_level")
    name = "of the level that capture.json tells"
    if own is None or not isinstance(told, int):
        return Finding(name, None, f"level {told}; the dump does not tell")
    return Finding(name, own == told, f"level {own}, {told} by capture.json")


def _holes(dump: Dump) -> Iterator[Finding]:
    """What was lent is in no table of the dump; both reports say the same."""
    lent = dump.lent
    if dump.holes and dump.capture:
        same = lent_of(dump.holes) == lent_of(dump.capture)
        yield Finding("holes.json and capture.json agree", same, f"{mib(lent.size)} lent")
    if not lent or dump.vmcore is None:
        return
    name = "nothing of lent memory is in it"
    try:
        with open_core(dump.vmcore) as file:
            inside = memory_in(file, lent)
    except (FormatError, OSError) as error:
        yield Finding(name, None, str(error))
        return
    source = HOLES if dump.holes else "capture.json"
    yield Finding(name, not inside, f"{mib(inside)} of {mib(lent.size)} ({source})")


def _read_by_makedumpfile(dump: Dump) -> Finding:
    """The program finds the kernel's log in the dump, which tells the same reason as dmesg.txt.

    Both logs are asked by the same function: capture.json has the line that the capture's shell found.
    """
    name = "makedumpfile reads the log in it"
    tool = shutil.which("makedumpfile")
    if tool is None or dump.vmcore is None or dump.core is None:
        return Finding(name, None, "it is not installed here")
    if dump.core.flattened:
        return Finding(name, None, "not from a flattened dump")
    packing = dump.core.compression
    if packing not in ALWAYS_UNPACKED and f"{packing}\tenabled" not in _run(tool, "-v").said:
        return Finding(name, None, f"the one that is installed here doesn't unpack {packing}")
    with tempfile.TemporaryDirectory(prefix="crashlend-") as directory:
        out = Path(directory) / "dmesg"
        ran = _run(tool, "--dump-dmesg", os.path.abspath(dump.vmcore), str(out))
        if ran.code is None:
            return Finding(name, None, f"not within {MAKEDUMPFILE_SECONDS} s")
        if ran.code != 0 or not out.exists():
            return Finding(name, None if UNSUPPORTED in ran.said else False, ran.complaint)
        log = out.read_bytes()
    reason, beside = find_reason(log), find_reason(read_dmesg(dump.path))
    if beside and reason != beside:
        return Finding(name, False, f"it tells of {reason!r}, dmesg.txt of {beside!r}")
    return Finding(name, True, reason or f"{len(log)} bytes")


class _Ran(NamedTuple):
    """How a program ended. ``code`` is None where it took too long."""

    code: Optional[int]
    said: str

    @property
    def complaint(self) -> str:
        """Its first line that says something."""
        lines = [line.strip() for line in self.said.split("\n")]
        said = [line for line in lines if line and "makedumpfile Failed" not in line]
        return said[0] if said else f"exit {self.code}"


def _run(*words: str) -> _Ran:
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=MAKEDUMPFILE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _Ran(None, "")
    return _Ran(done.returncode, (done.stderr + done.stdout).decode(errors="backslashreplace"))
