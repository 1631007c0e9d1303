# SPDX-License-Identifier: LGPL-2.1-or-later
"""From what captures can save to what crash and drgn open.

A flattened dump becomes a vmcore; a dump on a raw partition (capture/rawdump.py) becomes a directory
as on any other target. Done here and not by ``makedumpfile -R``: an analysis host needs no makedumpfile
then, and a stream that ends too early is refused before a byte is written. A test holds that the
result is the same.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from crashlend.capture import rawdump
from crashlend.dumps.corefile import CoreFile, open_core
from crashlend.dumps.directory import FLAT, NAME, OWN_FILES, UNFINISHED, VMCORE
from crashlend.errors import CrashlendError, FormatError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STEP = 1 << 20
SMALL_BYTES_MAX = 256 << 20  # a log, a report
RECOVERING = ".recovering-"
_HINT_DAMAGED = "copy it again from where the capture sent it; nothing was written here"
_HINT_SPACE = "there must be room for the dump itself"


def unflatten(source: Path, target: Path) -> int:
    """Write the dump that ``source`` holds flattened; its length in bytes.

    ``target`` (0600) is there whole or not at all; it may not exist before.

    Raises:
        CrashlendError: the source is damaged or none, the target exists, or the disk is full.

    """
    what = f"cannot make {target}"
    with _told(what), open_core(source) as file:
        return _write_dump(file, target, what)


def is_raw(source: Path) -> bool:
    """Whether this device, or a copy of it, begins with a table of a raw dump."""
    try:
        with source.open("rb") as stream:
            return rawdump.is_marked(stream.read(rawdump.HEADER_BYTES))
    except OSError:
        return False


def recover_raw(device: Path, where: Path, *, mark: bool = False) -> tuple[Path, bool]:
    """Make a directory in ``where`` of the dump on a raw device.

    Returns it, and whether it was made now: one of that name that is there is left as it is.
    ``mark``: afterwards the device's table says that production has taken the dump. A dump that the
    capture did not finish comes without its vmcore.

    Raises:
        CrashlendError: the device carries none or a damaged one, or the disk is full.

    """
    what = f"cannot recover the dump on {device}"
    with _told(what), _opened(device, os.O_RDWR if mark else os.O_RDONLY) as fd:
        size = os.lseek(fd, 0, os.SEEK_END)
        table = rawdump.parse(os.pread(fd, rawdump.HEADER_BYTES, 0), size)
        if NAME.fullmatch(table.name) is None:
            raise CrashlendError(what, f"{table.name} is no name of a dump")
        done = where / table.name
        made = not done.exists()
        if made:
            _copy_sections(fd, table, done, what)
        if mark and table.state != rawdump.TAKEN:
            os.pwrite(fd, rawdump.build(replace(table, state=rawdump.TAKEN)), 0)
            os.fsync(fd)
    return done, made


def _copy_sections(fd: int, table: rawdump.RawDump, done: Path, what: str) -> None:
    """All files, in a directory that has its name when they are whole."""
    going = done.with_name(RECOVERING + done.name)
    done.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    going.mkdir(mode=0o700, exist_ok=True)
    for item in going.iterdir():  # of a recovery that was interrupted
        item.unlink()
    for section in table.sections:
        if section.name == rawdump.VMCORE:
            if section.size_bytes:
                file = CoreFile(fd, section.offset_bytes, section.size_bytes)
                _write_dump(file, going / VMCORE, what)
        elif section.name in OWN_FILES and section.size_bytes <= SMALL_BYTES_MAX:
            data = CoreFile(fd, section.offset_bytes, section.size_bytes).raw(0, section.size_bytes)
            _write_small(going / section.name, data)
    _sync_directory(going)
    os.rename(going, done)
    _sync_directory(done.parent)


def _write_dump(file: CoreFile, target: Path, what: str) -> int:
    if target.exists():
        raise CrashlendError(what, "it exists", hint="move it away, or name another with --output")
    if file.pieces is None:
        hint = "crashlend dumps check tells what it is"
        raise CrashlendError(what, "the source is no flattened dump", hint=hint)
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
    return file.bytes


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
def _told(what: str) -> Iterator[None]:
    """Errors of files and formats, in words."""
    try:
        yield
    except FormatError as error:
        raise CrashlendError(what, str(error), hint=_HINT_DAMAGED) from error
    except OSError as error:
        hint = _HINT_SPACE if error.errno == errno.ENOSPC else ""
        where = f"{error.filename}: " if error.filename else ""
        raise CrashlendError(what, f"{where}{error.strerror or error}", hint=hint) from error


def _sync_directory(path: Path) -> None:
    with suppress(OSError), _opened(path, os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.fsync(fd)


def default_target(source: Path) -> Path:
    """Beside vmcore.flat: vmcore; for a file of another name that name with .vmcore."""
    name = VMCORE if source.name == FLAT else f"{source.name}.{VMCORE}"
    return source.with_name(name)
