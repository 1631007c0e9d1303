# SPDX-License-Identifier: LGPL-2.1-or-later
"""Binary layouts as tables: a name, an offset and a little-endian ``struct`` code per field."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from crashlend.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Mapping


class Field(NamedTuple):
    """One field: byte ``offset`` from the start of the structure and a ``struct`` code."""

    offset: int
    code: str

    @property
    def size(self) -> int:
        return struct.calcsize("<" + self.code)


class Layout:
    """A structure's fields by name. Reads are bounded, writes never grow the buffer."""

    def __init__(self, what: str, fields: Mapping[str, tuple[int, str]]) -> None:
        self.what = what
        self.fields = {name: Field(*field) for name, field in fields.items()}

    def read(self, data: bytes, name: str, base: int = 0) -> int:
        """Return the field's value; FormatError when ``data`` ends before it does."""
        field = self.fields[name]
        at = base + field.offset
        if at + field.size > len(data):
            raise FormatError(
                self.what, f"it ends before its field {name} ({len(data)} bytes)", offset=at
            )
        value: int = struct.unpack_from("<" + field.code, data, at)[0]
        return value

    def write(self, data: bytearray, name: str, value: int, base: int = 0) -> None:
        """Set the field; FormatError when the value does not fit it."""
        field = self.fields[name]
        try:
            struct.pack_into("<" + field.code, data, base + field.offset, value)
        except struct.error as error:
            raise FormatError(
                self.what, f"{value:#x} does not fit field {name} ({error})", offset=field.offset
            ) from error
