# SPDX-License-Identifier: LGPL-2.1-or-later
"""Bytes of a dump by their place in it, whether it lies there as it is or flattened. Reads only."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Optional

from crashlend.errors import FormatError
from crashlend.formats import flattened

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class CoreFile:
    """A dump that is open. ``bytes`` is how long the dump is (not the file, where that is flattened).

    ``start`` and ``size`` bound it where it is a stretch of something longer (a raw device).
    """

    def __init__(self, fd: int, start: int = 0, size: Optional[int] = None) -> None:
        self.fd = fd
        self.start = start
        # a block device's st_size is 0
        self.file_bytes = os.lseek(fd, 0, os.SEEK_END) - start if size is None else size
        self.bytes = self.file_bytes
        self.pieces: Optional[list[flattened.Piece]] = None
        if flattened.is_flattened(self.raw(0, flattened.HEADER.size)):
            self.pieces = list(find_pieces(self))
            self.bytes = max((p.place + p.bytes for p in self.pieces), default=0)

    def raw(self, at: int, size: int) -> bytes:
        """What is there of ``size`` bytes of the file."""
        size = max(0, min(size, self.file_bytes - at))
        out = b""
        while len(out) < size:
            part = os.pread(self.fd, size - len(out), self.start + at + len(out))
            if not part:
                break
            out += part
        return out

    def read(self, at: int, size: int) -> bytes:
        """What is there of ``size`` bytes of the dump; what no piece of a flattened one has is zero."""
        if self.pieces is None:
            return self.raw(at, size)
        end = min(at + size, self.bytes)
        out = bytearray(max(0, end - at))
        for piece in self.pieces:  # later ones write over earlier ones
            first, last = max(at, piece.place), min(end, piece.place + piece.bytes)
            if first < last:
                out[first - at : last - at] = self.raw(piece.at + first - piece.place, last - first)
        return bytes(out)


def find_pieces(core: CoreFile) -> Iterator[flattened.Piece]:
    """The pieces of a flattened dump up to its end mark.

    Raises:
        FormatError: it is none, is damaged, or ends too early.

    """
    flattened.parse_header(core.raw(0, flattened.HEADER.size))
    at = flattened.HEADER_BYTES
    while True:
        piece = flattened.parse_piece(core.raw(at, flattened.PIECE.size), at)
        if piece is None:
            return
        at = piece.at + piece.bytes
        if at > core.file_bytes:
            raise FormatError(flattened.WHAT, "its last piece is cut short", offset=piece.at)
        yield piece


@contextmanager
def open_core(path: Path) -> Iterator[CoreFile]:
    """A dump file for reading. OSError where it can't be opened, FormatError where it is cut short.

    A pipe of that name is an OSError, too: nobody waits for what it may bring.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        yield CoreFile(fd)
    finally:
        os.close(fd)
