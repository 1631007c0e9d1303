# SPDX-License-Identifier: LGPL-2.1-or-later
"""LUKS headers, as far as a crash kernel must know them: what opens the device, and at what cost.

Source: the on-disk format specifications of LUKS1 (1.2.3) and LUKS2 (1.1.2); all numbers are
big-endian. Both begin with the same magic and have the UUID at byte 168, as text. LUKS2 goes on
with JSON behind 4096 bytes of header.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass

from crashlend.errors import FormatError

MAGIC = b"LUKS\xba\xbe"
UUID_AT, UUID_BYTES = 168, 40
_HEADER_BYTES = 4096
_SIZE = struct.Struct(">6sHQ")  # magic, version, size of header and JSON (LUKS2)
_JSON_BYTES_MAX = 4 << 20  # the largest of the sizes that LUKS2 allows
KIB = 1024


@dataclass(frozen=True)
class Luks:
    """``version`` is 1 or 2; ``ciphers`` are the device's and its key slots', as dm-crypt names them.

    ``memory_bytes``: what the key slot that takes most wants for its key derivation (argon2), 0 for
    PBKDF2. ``kdf`` names that derivation.
    """

    version: int
    uuid: str
    ciphers: tuple[str, ...]
    kdf: str
    memory_bytes: int


def header_bytes(data: bytes) -> int:
    """How much of the device :func:`parse_luks` wants; ``data`` are its first 16 bytes or more."""
    if len(data) < _SIZE.size or not data.startswith(MAGIC):
        raise FormatError("LUKS header", "it has no LUKS magic", offset=0)
    _, version, size = _SIZE.unpack_from(data)
    if version == 1:
        return _HEADER_BYTES
    if version != 2 or not _HEADER_BYTES < size <= _JSON_BYTES_MAX:
        raise FormatError("LUKS header", f"version {version}, {size} bytes", offset=6)
    return int(size)


def parse_luks(data: bytes) -> Luks:
    """The header of a LUKS device. Raises FormatError for what is none, or is damaged."""
    size = header_bytes(data)
    if len(data) < size:
        raise FormatError("LUKS header", f"{len(data)} of {size} bytes", offset=len(data))
    uuid = _text(data, UUID_AT, UUID_BYTES)
    if data[6:8] == b"\0\1":
        # cipher name, mode: 32 bytes each at 8 and 40
        cipher = f"{_text(data, 8, 32)}-{_text(data, 40, 32)}"
        return Luks(1, uuid, (cipher,), "pbkdf2", 0)
    text = data[_HEADER_BYTES:size].split(b"\0", 1)[0]
    try:
        return _luks2(uuid, json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise FormatError("LUKS2 metadata", str(error), offset=_HEADER_BYTES) from error


def _luks2(uuid: str, metadata: dict[str, dict[str, dict[str, dict[str, object]]]]) -> Luks:
    slots = list(metadata["keyslots"].values())
    ciphers = [str(segment["encryption"]) for segment in metadata["segments"].values()]
    ciphers += [str(slot["area"]["encryption"]) for slot in slots if "area" in slot]
    kdfs = [slot["kdf"] for slot in slots if "kdf" in slot]
    costs = [(int(str(kdf.get("memory", 0))) * KIB, str(kdf["type"])) for kdf in kdfs]
    memory, kdf = max(costs, default=(0, ""))
    return Luks(2, uuid, tuple(dict.fromkeys(ciphers)), kdf, memory)


def _text(data: bytes, at: int, count: int) -> str:
    return data[at : at + count].split(b"\0", 1)[0].decode("ascii", "replace")
