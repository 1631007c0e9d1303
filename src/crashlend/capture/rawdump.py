# SPDX-License-Identifier: LGPL-2.1-or-later
"""A dump on a partition without a file system: the table at its beginning.

The first 4096 bytes are lines of ASCII, then zero bytes. init/raw.sh writes them::

    crashlend raw dump 1
    state complete
    name web1-2026-11-26-013000
    section capture.json 4096 5120
    section dmesg.txt 12288 81234
    section vmcore.flat 1179648 123456789
    end

Offsets are bytes from the beginning of the device, multiples of 4096; sizes are bytes. Sections lie
apart, in any order. Of two with one name the later line holds (capture.json is written anew when
more is known). ``vmcore.flat`` is makedumpfile's flattened format (``makedumpfile -R`` makes a
vmcore of it). Its size is 0 from the beginning of the dump until all of it is on the device.

The table is one write of less than a sector in the usual case, made when what it tells of is on the
device: it takes the place of the final name that a file would get.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Optional

from crashlend.errors import FormatError

MAGIC = "crashlend raw dump 1"
HEADER_BYTES = 4096
ALIGN_BYTES = 4096
# what must be zero at both ends of a device that carries no dump yet: where file systems, partition
# tables, LVM, RAID and LUKS have their signatures (ZFS's labels, 256 KiB each, reach furthest)
BLANK_BYTES = 1 << 20
# The capture is (or was) at work; it came to its end; production has taken the dump.
WRITING, COMPLETE, TAKEN = STATES = ("writing", "complete", "taken")
VMCORE = "vmcore.flat"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_NUMBER = re.compile(r"[0-9]{1,19}")


@dataclass(frozen=True)
class Section:
    """A file on the device, in bytes. ``size_bytes`` 0 of a vmcore: it was never finished."""

    name: str
    offset_bytes: int
    size_bytes: int


@dataclass(frozen=True)
class RawDump:
    """What the table says. ``name`` is the directory's that the dump would have had."""

    state: str
    name: str
    sections: tuple[Section, ...] = ()

    def find(self, name: str) -> Optional[Section]:
        """The section of that name, or None."""
        return next((section for section in self.sections if section.name == name), None)


def is_marked(head: bytes) -> bool:
    """Whether a device that begins so carries a table of ours, whatever its state."""
    return head.startswith(MAGIC.encode() + b"\n")


def is_blank(head: bytes, tail: bytes) -> bool:
    """Whether both ends of a device (:data:`BLANK_BYTES` each) are zero."""
    return not any(head) and not any(tail)


def parse(head: bytes, device_bytes: Optional[int] = None) -> RawDump:
    """The table in the first :data:`HEADER_BYTES` of a device that is ``device_bytes`` long.

    Raises FormatError where it is none, or says what cannot be.
    """
    if not is_marked(head):
        raise FormatError("raw dump", "the device does not begin with a table of crashlend's")
    text, _, rest = head[:HEADER_BYTES].partition(b"\nend\n")
    if any(rest) or len(text) + 5 > HEADER_BYTES:
        raise FormatError("raw dump", "its table does not end")
    state = name = ""
    sections: dict[str, Section] = {}
    for line in text.decode("ascii", "replace").split("\n")[1:]:
        key, *words = line.split(" ")
        if key == "state" and len(words) == 1 and words[0] in STATES:
            state = words[0]
        elif key == "name" and len(words) == 1 and _NAME.fullmatch(words[0]):
            name = words[0]
        elif key == "section":
            section = _section(words, device_bytes)
            sections.pop(section.name, None)
            sections[section.name] = section
        else:
            raise FormatError("raw dump", f"{line[:60]!r} in its table means nothing")
    if not state or not name:
        raise FormatError("raw dump", "its table lacks its state or its name")
    return RawDump(state, name, tuple(sections.values()))


def build(dump: RawDump) -> bytes:
    """The table's :data:`HEADER_BYTES`, to be written to the beginning of the device."""
    lines = [MAGIC, f"state {dump.state}", f"name {dump.name}"]
    lines += [f"section {s.name} {s.offset_bytes} {s.size_bytes}" for s in dump.sections]
    data = "".join(f"{line}\n" for line in (*lines, "end")).encode("ascii")
    if len(data) > HEADER_BYTES:
        raise FormatError("raw dump", "too many sections for its table")
    return data.ljust(HEADER_BYTES, b"\0")


def _section(words: list[str], device_bytes: Optional[int]) -> Section:
    if (
        len(words) != 3
        or not _NAME.fullmatch(words[0])
        or not all(map(_NUMBER.fullmatch, words[1:]))
    ):
        raise FormatError("raw dump", f"a section of its table is {' '.join(words)[:60]!r}")
    section = Section(words[0], int(words[1]), int(words[2]))
    end = section.offset_bytes + section.size_bytes
    if section.offset_bytes < HEADER_BYTES or section.offset_bytes % ALIGN_BYTES:
        raise FormatError("raw dump", f"{section.name} is at {section.offset_bytes}, where none is")
    if device_bytes is not None and end > device_bytes:
        raise FormatError("raw dump", f"{section.name} ends at {end}, the device at {device_bytes}")
    return section
