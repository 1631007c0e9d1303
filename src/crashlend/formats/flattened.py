# SPDX-License-Identifier: LGPL-2.1-or-later
"""The flattened format: a dump as a stream of pieces, for pipes (makedumpfile -F).

A header of 4096 bytes, then pieces, each behind its place in the dump and its length; a piece may
write again what an earlier one wrote. The last one has -1 for both. All numbers are big-endian.

Source: struct makedumpfile_header, struct makedumpfile_data_header and write_buffer() of makedumpfile
(makedumpfile.h and makedumpfile.c, 1.8.0, commit b7587f1).
"""

from __future__ import annotations

import struct
from typing import NamedTuple, Optional

from crashlend.errors import FormatError

WHAT = "flattened dump"
SIGNATURE = b"makedumpfile".ljust(16, b"\0")
HEADER = struct.Struct(">16sqq")  # signature, type, version
HEADER_BYTES = 4096
TYPE = VERSION = 1
PIECE = struct.Struct(">qq")  # place in the dump, bytes
END = (-1, -1)
# nobody's dump: a damaged number
PLACE_MAX = 1 << 56


class Piece(NamedTuple):
    """``bytes`` at ``at`` in the stream belong to ``place`` in the dump."""

    place: int
    at: int
    bytes: int


def is_flattened(data: bytes) -> bool:
    """Whether ``data`` begins like such a stream."""
    return data[: len(SIGNATURE)] == SIGNATURE


def parse_header(data: bytes) -> None:
    """FormatError where these first bytes are not those of such a stream, of the version known here."""
    if len(data) < HEADER.size or not is_flattened(data):
        raise FormatError(WHAT, "no signature", offset=0)
    _, kind, version = HEADER.unpack_from(data)
    if (kind, version) != (TYPE, VERSION):
        raise FormatError(WHAT, f"type {kind}, version {version}", offset=16)


def parse_piece(data: bytes, at: int) -> Optional[Piece]:
    """The piece whose :data:`PIECE` header, ``data``, is at ``at``; None for the end mark."""
    if len(data) < PIECE.size:
        raise FormatError(WHAT, "it ends without its end mark", offset=at)
    place, size = PIECE.unpack_from(data)
    if (place, size) == END:
        return None
    if not 0 <= place < PLACE_MAX or not 0 < size < PLACE_MAX:
        raise FormatError(WHAT, f"a piece of {size} bytes for {place:#x}", offset=at)
    return Piece(place, at + PIECE.size, size)
