# SPDX-License-Identifier: LGPL-2.1-or-later
"""The table at the beginning of a raw dump device: what is read, what is refused."""

from __future__ import annotations

import pytest

from crashlend.capture.rawdump import (
    BLANK_BYTES,
    COMPLETE,
    HEADER_BYTES,
    STATES,
    VMCORE,
    WRITING,
    RawDump,
    Section,
    build,
    is_blank,
    is_marked,
    parse,
)
from crashlend.errors import FormatError

DUMP = RawDump(
    COMPLETE,
    "web1-2026-11-26-013000",
    (Section("dmesg.txt", 4096, 100), Section(VMCORE, 1 << 20, 5 << 20)),
)


@pytest.mark.parametrize("state", STATES)
def test_a_table_is_read_as_it_was_built(state: str) -> None:
    """Building and parsing are inverse, and the table fills the head of the device."""
    dump = RawDump(state, DUMP.name, DUMP.sections)
    data = build(dump)
    assert len(data) == HEADER_BYTES
    assert is_marked(data)
    assert parse(data, 8 << 20) == dump
    assert parse(data + b"the dump itself") == dump
    assert dump.find(VMCORE) == DUMP.sections[1]
    assert dump.find("holes.json") is None


def test_the_later_of_two_sections_holds() -> None:
    """capture.json is written anew beside the old one; the table's last line names the new one."""
    sections = (Section("a", 4096, 1), Section("b", 8192, 2), Section("a", 12288, 3))
    found = parse(build(RawDump(WRITING, "x", sections)))
    assert found.sections == (Section("b", 8192, 2), Section("a", 12288, 3))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "does not begin"),
        ("crashlend raw dump 2\nstate complete\nname x\nend\n", "does not begin"),
        ("crashlend raw dump 1\nstate complete\nname x\n", "does not end"),
        ("crashlend raw dump 1\nstate complete\nname x\nend\nmore", "does not end"),
        ("crashlend raw dump 1\nname x\nend\n", "lacks its state"),
        ("crashlend raw dump 1\nstate complete\nend\n", "lacks its state or its name"),
        ("crashlend raw dump 1\nstate broken\nname x\nend\n", "means nothing"),
        ("crashlend raw dump 1\nstate complete\nname ../x\nend\n", "means nothing"),
        ("crashlend raw dump 1\nstate complete\nname x\nsection a 4096\nend\n", "section"),
        ("crashlend raw dump 1\nstate complete\nname x\nsection ../a 4096 1\nend\n", "section"),
        ("crashlend raw dump 1\nstate complete\nname x\nsection a -4096 1\nend\n", "section"),
        ("crashlend raw dump 1\nstate complete\nname x\nsection a 0 1\nend\n", "where none is"),
        ("crashlend raw dump 1\nstate complete\nname x\nsection a 4097 1\nend\n", "where none is"),
        ("crashlend raw dump 1\nstate complete\nname x\nsection a 4096 61441\nend\n", "ends at"),
    ],
)
def test_what_is_no_table_is_refused(text: str, why: str) -> None:
    """A table that is damaged, foreign or names what cannot be is an error that says why."""
    with pytest.raises(FormatError, match=why):
        parse(text.encode().ljust(HEADER_BYTES, b"\0"), 65536)


def test_a_table_of_too_many_sections_is_not_built() -> None:
    """What is built is always whole."""
    sections = tuple(Section("x" * 100 + str(n), 4096, 1) for n in range(99))
    with pytest.raises(FormatError, match="too many"):
        build(RawDump(WRITING, "x", sections))


def test_blank_is_zero_at_both_ends() -> None:
    """A signature at either end of a device makes it somebody's."""
    zero = bytes(BLANK_BYTES)
    assert is_blank(zero, zero)
    assert not is_blank(zero[:-1] + b"x", zero)
    assert not is_blank(zero, b"x" + zero[1:])
    assert not is_marked(zero)
