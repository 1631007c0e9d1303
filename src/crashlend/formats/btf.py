# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel's own types (/sys/kernel/btf/vmlinux): where a structure's fields lie, an enum's values.

Documentation/bpf/btf.rst, include/uapi/linux/btf.h. Only what is asked for is decoded.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from crashlend.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Collection

MAGIC, VERSION = 0xEB9F, 1
HEADER = struct.Struct("<HBBIIIII")
TYPE = struct.Struct("<III")
MEMBER, VALUE = struct.Struct("<III"), struct.Struct("<Ii")
STRUCT, ENUM = 4, 6
# Bytes that follow a type's own twelve: (once, for each of its vlen elements), by kind.
FOLLOWS = {
    1: (4, 0),  # INT
    2: (0, 0),  # PTR
    3: (12, 0),  # ARRAY
    STRUCT: (0, 12),
    5: (0, 12),  # UNION
    ENUM: (0, 8),
    7: (0, 0),  # FWD
    8: (0, 0),  # TYPEDEF
    9: (0, 0),  # VOLATILE
    10: (0, 0),  # CONST
    11: (0, 0),  # RESTRICT
    12: (0, 0),  # FUNC
    13: (0, 8),  # FUNC_PROTO
    14: (4, 0),  # VAR
    15: (0, 12),  # DATASEC
    16: (0, 0),  # FLOAT
    17: (4, 0),  # DECL_TAG
    18: (0, 0),  # TYPE_TAG
    19: (0, 12),  # ENUM64
}


def read_types(data: bytes, names: Collection[str]) -> dict[str, dict[str, int]]:
    """The structures and enums of these names: byte offsets of fields, values of constants.

    A name that is not there is left out, and so are bit fields. FormatError where it is no BTF.
    """
    if len(data) < HEADER.size:
        raise FormatError("BTF", "it is too short")
    magic, version, _, length, type_at, type_bytes, text_at, text_bytes = HEADER.unpack_from(data)
    if (magic, version) != (MAGIC, VERSION):
        raise FormatError("BTF", "it has not its magic number", offset=0)
    text = data[length + text_at : length + text_at + text_bytes]
    # a string's offset tells a type's name, which spares decoding a hundred thousand of them
    wanted = {text.find(b"\0" + name.encode() + b"\0") + 1: name for name in names}
    wanted.pop(0, None)
    out: dict[str, dict[str, int]] = {}
    at, end = length + type_at, length + type_at + type_bytes
    if end > len(data):
        raise FormatError("BTF", "its types are cut short", offset=len(data))
    while at + TYPE.size <= end:
        name_at, info, _ = TYPE.unpack_from(data, at)
        at += TYPE.size
        kind, count = info >> 24 & 0x1F, info & 0xFFFF
        if kind not in FOLLOWS:
            raise FormatError("BTF", f"a type of the unknown kind {kind}", offset=at)
        once, each = FOLLOWS[kind]
        after = at + once + each * count
        if after > end:
            raise FormatError("BTF", "a type is cut short", offset=at)
        if kind in (STRUCT, ENUM) and name_at in wanted:
            out[wanted[name_at]] = _elements(data, at, info, text)
        at = after
    return out


def _elements(data: bytes, at: int, info: int, text: bytes) -> dict[str, int]:
    kind, count, flag = info >> 24 & 0x1F, info & 0xFFFF, info >> 31
    out = {}
    for index in range(count):
        if kind == ENUM:
            name_at, value = VALUE.unpack_from(data, at + index * VALUE.size)
        else:
            name_at, _, bits = MEMBER.unpack_from(data, at + index * MEMBER.size)
            width, bits = (bits >> 24, bits & 0xFFFFFF) if flag else (0, bits)
            if width or bits % 8:
                continue
            value = bits // 8
        name = text[name_at : text.find(b"\0", name_at)]
        out[name.decode("ascii", "replace")] = value
    return out
