# SPDX-License-Identifier: LGPL-2.1-or-later
"""From what captures can save to what crash and drgn open.

A flattened dump becomes a vmcore; a dump on a raw partition (capture/rawdump.py) becomes a directory
as on any other target. Done here and not by ``makedumpfile -R``: an analysis host needs no makedumpfile
then, and a stream that ends too early is refused before a byte of it is written. A test holds that the
result is the same.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from crashlend.capture import rawdump
from crashlend.dumps.corefile import CoreFile, open_core
from crashlend.dumps.directory import DUMPS, FLAT, NAME, OWN_FILES, RECOVERING, UNFINISHED, VMCORE
from crashlend.errors import CrashlendError, FormatError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STEP = 1 << 20
SMALL_BYTES_MAX = 256 << 20  # a log, a report
SMALL = tuple(name for name in OWN_FILES if name not in DUMPS)
_HINT_DAMAGED = "copy it again from where the capture sent it; nothing was written here"
_HINT_SPACE = "there must be room for the dump itself"


class Recovered(NamedTuple):
    """``path`` is the vmcore or the directory; ``made``: not all of it was there before."""

    path: Path
    made: bool
    bytes: int = 0


def unflatten(source: Path, target: Path, *, dry_run: bool = False) -> Recovered:
    """Write the dump that ``source`` holds flattened; ``bytes`` is its length.

    ``target`` (0600) is there whole or not at all. One that is as long as the dump was made by an
    earlier run. ``dry_run``: the source is checked, nothing is written.

    Raises:
        CrashlendError: the source is damaged or none, another target exists, or the disk is full.

    """
    what = f"cannot make {target}"
    with _told(what, _HINT_DAMAGED), open_core(source) as file:
        if file.pieces is None:
            hint = "crashlend dumps check tells what it is"
            raise CrashlendError(what, "the source is no flattened dump", hint=hint)
        made = not _is_made(file, target, what)
        if made and not dry_run:
            _write_dump(file, target)
        return Recovered(target, made, file.bytes)


def _is_made(file: CoreFile, target: Path, what: str) -> bool:
    """Whether the dump is there already. CrashlendError where something else is."""
    try:
        size = target.lstat().st_size
    except FileNotFoundError:
        return False
    if size != file.bytes:
        hint = "move it away, or name another with --output"
        raise CrashlendError(what, f"it exists, with {size} bytes and not {file.bytes}", hint=hint)
    return True


def is_raw(source: Path) -> bool:
    """Whether this device, or a copy of it, begins with a table of a raw dump."""
    try:
        with source.open("rb") as stream:
            return rawdump.is_marked(stream.read(rawdump.HEADER_BYTES))
    except OSError:
        return False


def recover_raw(
    device: Path, where: Path, *, mark: bool = False, dry_run: bool = False
) -> Recovered:
    """Make a directory in ``where`` of the dump on a raw device.

    The small files come first and have their directory to themselves in any case: a damaged vmcore
    costs none of them. What is there already is left as it is, so that a run again brings what an
    earlier one could not. ``mark``: afterwards, when all of it is there, the device's table says that
    production has taken the dump. ``dry_run``: all is read, nothing is written.

    Raises:
        CrashlendError: the device carries none or a damaged one, or the disk is full.

    """
    what = f"cannot recover the dump on {device}"
    writing = mark and not dry_run
    with _told(what), _opened(device, os.O_RDWR if writing else os.O_RDONLY) as fd:
        size = os.lseek(fd, 0, os.SEEK_END)
        table = rawdump.parse(os.pread(fd, rawdump.HEADER_BYTES, 0), size)
        if NAME.fullmatch(table.name) is None:
            raise CrashlendError(what, f"{table.name} is no name of a dump")
        done = where / table.name
        made = not done.exists()
        if made and not dry_run:
            _copy_small(fd, table, done)
        section = table.find(rawdump.VMCORE)
        if section is not None and section.size_bytes and not (done / VMCORE).exists():
            made = True
            with _told(what, "" if dry_run else f"what was saved beside it is in {done}"):
                file = CoreFile(fd, section.offset_bytes, section.size_bytes)
                if file.pieces is None:
                    raise FormatError("raw dump", "its vmcore is no flattened dump")
                if not dry_run:
                    _write_dump(file, done / VMCORE)
        if writing and table.state != rawdump.TAKEN:
            os.pwrite(fd, rawdump.build(replace(table, state=rawdump.TAKEN)), 0)
            os.fsync(fd)
    return Recovered(done, made)


def _copy_small(fd: int, table: rawdump.RawDump, done: Path) -> None:
    """All files but the vmcore, in a directory that has its name when they are whole."""
    going = done.with_name(RECOVERING + done.name)
    done.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    going.mkdir(mode=0o700, exist_ok=True)
    for item in going.iterdir():  # of a recovery that was interrupted
        item.unlink()
    for section in table.sections:
        if section.name in SMALL and section.size_bytes <= SMALL_BYTES_MAX:
            data = CoreFile(fd, section.offset_bytes, section.size_bytes).raw(0, section.size_bytes)
            _write_small(going / section.name, data)
    _sync_directory(going)
    os.rename(going, done)
    _sync_directory(done.parent)


def _write_dump(file: CoreFile, target: Path) -> None:
    partial = target.with_name(target.name + UNFINISHED)
    try:
        with _opened(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as out:
            _write_pieces(file, out)
            os.fsync(out)
        os.rename(partial, target)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    _sync_directory(target.parent)


def _write_pieces(file: CoreFile, out: int) -> None:
    for piece in file.pieces or ():
        for done in range(0, piece.bytes, STEP):
            data = file.raw(piece.at + done, min(STEP, piece.bytes - done))
            view, at = memoryview(data), piece.place + done
            while view:
                count = os.pwrite(out, view, at)
                view, at = view[count:], at + count
    os.ftruncate(out, file.bytes)


def _write_small(path: Path, data: bytes) -> None:
    with _opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as out:
        view = memoryview(data)
        while view:
            view = view[os.write(out, view) :]
        os.fsync(out)


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _told(what: str, hint: str = "") -> Iterator[None]:
    """Errors of files and formats, in words; ``hint`` is for what is damaged."""
    try:
        yield
    except FormatError as error:
        raise CrashlendError(what, str(error), hint=hint) from error
    except OSError as error:
        hint = _HINT_SPACE if error.errno == errno.ENOSPC else hint
        where = f"{error.filename}: " if error.filename else ""
        raise CrashlendError(what, f"{where}{error.strerror or error}", hint=hint) from error


def _sync_directory(path: Path) -> None:
    with suppress(OSError), _opened(path, os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.fsync(fd)


def default_target(source: Path) -> Path:
    """Beside vmcore.flat: vmcore; for a file of another name that name with .vmcore."""
    name = VMCORE if source.name == FLAT else f"{source.name}.{VMCORE}"
    return source.with_name(name)
