# SPDX-License-Identifier: LGPL-2.1-or-later
"""The directories that captures leave: which are ours, and what their small files say. Reads only.

A capture makes ``<host>-<UTC time>`` (init/directory.sh) and puts these files into it, each under its
final name only when it is whole. A directory that holds anything else is not taken for ours.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from crashlend.dumps.core import Core, read_core
from crashlend.dumps.corefile import open_core
from crashlend.dumps.log import find_reason, find_release
from crashlend.errors import CrashlendError, FormatError
from crashlend.ranges import Ranges

if TYPE_CHECKING:
    from collections.abc import Iterable

CAPTURE, HOLES, DMESG, LOG = "capture.json", "holes.json", "dmesg.txt", "capture.log"
VMCORE, FLAT = "vmcore", "vmcore.flat"
DUMPS = (VMCORE, FLAT)
UNFINISHED = ".incomplete"
# init keeps room for its last words in it while the dump is written
RESERVE = "reserve"
# before the name of a directory that recover has not filled yet
RECOVERING = ".recovering-"
OWN_FILES = (CAPTURE, HOLES, DMESG, LOG, *DUMPS)
NAME = re.compile(r"(?P<host>[^.].*?)-(?P<day>\d{4}-\d\d-\d\d)-(?P<time>\d{6})(?:-\d{1,2})?")
# more than any capture writes
JSON_BYTES_MAX = 4 << 20
DMESG_BYTES_MAX = 64 << 20
SCHEMA = 1
ADDRESS_END = 1 << 64
# no number of a report has more digits; int() of very many raises or takes minutes
DIGITS_MAX = 20


@dataclass(frozen=True)
class Dump:
    """One directory of a capture, and what is known of it without looking into pages.

    ``when`` is UTC, ISO 8601, of the capture; ``release`` the crashed kernel's; ``reason`` the line of
    its panic; ``vmcore`` the dump, finished or not (None: there is none); ``capture`` and ``holes`` the
    reports beside it, empty where missing or damaged; ``faults`` what keeps it from being complete;
    ``unknown`` those of them that say nothing of the dump, only that it can't be judged here: a file that
    the system doesn't give, or one with its final name that is of no form known here. ``strange`` are
    names of files that no capture writes.
    """

    path: Path
    when: str
    host: str
    release: str = ""
    reason: str = ""
    vmcore: Optional[Path] = None
    bytes: int = 0
    level: Optional[int] = None
    core: Optional[Core] = None
    capture: dict[str, Any] = field(default_factory=dict)
    holes: dict[str, Any] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    strange: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """The dump is whole and the capture says so."""
        return not self.faults

    @property
    def lent(self) -> Ranges:
        """The physical memory that is missing because it was lent."""
        return lent_of(self.holes) or lent_of(self.capture)


def is_dump_directory(path: Path) -> bool:
    """Whether a capture made this directory: it has such a name, and is no link."""
    return NAME.fullmatch(path.name) is not None and path.is_dir() and not path.is_symlink()


def find_dumps(where: Path) -> list[Dump]:
    """All dumps in a directory, newest first.

    Raises:
        CrashlendError: the directory is not there or can't be read.

    """
    try:
        found = [path for path in where.iterdir() if is_dump_directory(path)]
    except OSError as error:
        raise CrashlendError(
            f"cannot read {where}",
            error.strerror or str(error),
            hint="name the directory that holds the dumps; mount the target first",
        ) from error
    return newest_first(read_dump(path) for path in found)


def newest_first(dumps: Iterable[Dump]) -> list[Dump]:
    """In the order in which they are told."""
    return sorted(dumps, key=lambda dump: (dump.when, dump.path.name), reverse=True)


def read_dump(path: Path) -> Dump:
    """Read what a capture left. Never raises for what it finds inside: that is in ``faults``."""
    match = NAME.fullmatch(path.name)
    when = ""
    if match:
        clock = match["time"]
        when = f"{match['day']}T{clock[:2]}:{clock[2:4]}:{clock[4:]}Z"
    faults: list[str] = []
    unknown: list[str] = []
    names = _names(path, unknown)
    capture: dict[str, Any] = {}
    if CAPTURE in names:
        capture = _read_json(path / CAPTURE, unknown)
    else:
        faults.append(f"there is no {CAPTURE}")
    holes = _read_json(path / HOLES, unknown) if HOLES in names else {}
    vmcore, unfinished = _find_vmcore(path, names)
    core, size = None, 0
    if vmcore is None:
        faults.append("there is no dump, only what was saved before it")
    else:
        if unfinished:
            faults.append(f"it was never finished: {vmcore.name}")
        core, size = _look_at(vmcore, faults if unfinished else unknown, unknown)
        faults += core.faults if core else ()
    if capture and capture.get("ok") is not True:
        faults.append(f"the capture failed: {text_of(capture, 'reason') or 'it does not say why'}")
    dmesg = read_dmesg(path)
    level = core.level if core and core.level is not None else None
    if level is None and isinstance(capture.get("dump_level"), int):
        level = capture["dump_level"]
    return Dump(
        path=path,
        when=when,
        host=match["host"] if match else "",
        release=(core.release if core else "") or find_release(dmesg),
        reason=text_of(capture, "panic") or find_reason(dmesg),
        vmcore=vmcore,
        bytes=size,
        level=level,
        core=core,
        capture=capture,
        holes=holes,
        faults=(*unknown, *faults),
        unknown=tuple(unknown),
        strange=strange_of(names),
    )


def read_dmesg(path: Path) -> bytes:
    """The crashed kernel's log beside a dump; empty where there is none."""
    try:
        with (path / DMESG).open("rb") as stream:
            return stream.read(DMESG_BYTES_MAX)
    except OSError:
        return b""


def lent_of(report: dict[str, Any]) -> Ranges:
    """The lent ranges that capture.json or holes.json tells; empty where it tells none."""
    lent = report.get("lent")
    return ranges_of(lent) if isinstance(lent, dict) else Ranges()


def ranges_of(report: dict[str, Any]) -> Ranges:
    """The ``ranges`` of an object in a report, as far as they can be physical memory."""
    pairs = report.get("ranges")
    return Ranges(
        (pair[0], pair[1])
        for pair in (pairs if isinstance(pairs, list) else ())
        if isinstance(pair, list)
        and [type(x) for x in pair] == [int, int]
        and 0 <= pair[0] < pair[1] <= ADDRESS_END
    )


def text_of(report: dict[str, Any], name: str) -> str:
    """A string of a report; empty where there is none."""
    value = report.get(name)
    return value if isinstance(value, str) else ""


def strange_of(names: Iterable[str]) -> tuple[str, ...]:
    """Those names that no capture gives to a file, sorted."""
    return tuple(
        sorted(n for n in names if n != RESERVE and n.removesuffix(UNFINISHED) not in OWN_FILES)
    )


def _names(path: Path, unknown: list[str]) -> list[str]:
    try:
        return os.listdir(path)
    except OSError as error:
        unknown.append(f"it can't be listed: {error.strerror or error}")
        return []


def _find_vmcore(path: Path, names: list[str]) -> tuple[Optional[Path], bool]:
    """The dump and whether it is unfinished; a finished one first."""
    for suffix in ("", UNFINISHED):
        for name in DUMPS:
            if name + suffix in names:
                return path / (name + suffix), bool(suffix)
    return None, False


def _look_at(vmcore: Path, odd: list[str], unknown: list[str]) -> tuple[Optional[Core], int]:
    """What is in the dump, and its bytes. A form that is not known here goes to ``odd``."""
    size = 0
    try:
        size = vmcore.stat().st_size
        with open_core(vmcore) as file:
            return read_core(file), size
    except FormatError as error:
        odd.append(f"{vmcore.name} does not open: {error}")
    except OSError as error:
        unknown.append(f"{vmcore.name} can't be read: {error.strerror or error}")
    return None, size


def _integer(digits: str) -> int:
    if len(digits) > DIGITS_MAX:
        raise ValueError("no number of a report is so long")
    return int(digits)


def _read_json(path: Path, unknown: list[str]) -> dict[str, Any]:
    """A report; empty, with the reason in ``unknown``, where it is not one of this version's."""
    try:
        with path.open("rb") as stream:
            value = json.loads(stream.read(JSON_BYTES_MAX), parse_int=_integer)
    except OSError as error:
        unknown.append(f"{path.name} can't be read: {error.strerror or error}")
        return {}
    except (ValueError, RecursionError):
        unknown.append(f"{path.name} is damaged: no JSON")
        return {}
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        unknown.append(f"{path.name} is damaged, or of another version of crashlend")
        return {}
    return value
