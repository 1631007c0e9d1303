# SPDX-License-Identifier: LGPL-2.1-or-later
"""``crashkernel=`` is read as the kernel's own parser reads it.

The tables were taken from the parsers of Linux 5.10 to 7.3, compiled and run in user space.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from crashlend.crashkernel.generations import ROWS, kernel_for
from crashlend.crashkernel.grammar import (
    CMA,
    LINUX_6_17,
    Request,
    lent_request,
    memparse,
    memparse_saturating,
    parse_crashkernel,
)

M, G = 1 << 20, 1 << 30
RAM = 8 * G
U64 = (1 << 64) - 1


def words(*values: str) -> bytes:
    return " ".join(["ro", *(f"crashkernel={value}" for value in values), "quiet"]).encode()


def yes(size: int, cma: int = 0, **more: object) -> Request:
    return replace(Request(accepted=True, size_bytes=size, cma_bytes=cma), **more)  # type: ignore[arg-type]


NOTHING = Request(accepted=False)
VALUE = "crashkernel: memory value expected"


def strange(char: str) -> str:
    return f"crashkernel: unrecognized char: {char}"


# words, what the kernel reserves, what it says ("!" before an info)
TABLE: list[tuple[bytes, Request, list[str]]] = [
    (words("256M", "512M,cma"), yes(256 * M, 512 * M), []),
    (words("512M,cma", "256M"), yes(256 * M, 512 * M), []),
    (words("256M", "512M,cma", "1G,cma"), yes(256 * M, G), []),
    (words("256M", "300M"), yes(300 * M), []),
    (words("512M,cma"), NOTHING, []),
    (words("256M,high", "512M,cma"), yes(256 * M, 512 * M, high=True, low_bytes=256 * M), []),
    (
        words("64M,low", "512M,cma", "256M,high"),
        yes(256 * M, 512 * M, high=True, low_bytes=64 * M),
        [],
    ),
    (words("256M,high", "0,low"), yes(256 * M, high=True, low_bytes=0), []),
    (words("256M,low", "512M,cma"), NOTHING, []),
    (words("256M,high", "x,low", "1M@,cma"), NOTHING, [VALUE]),
    (words("256M,,high", "64M,low"), NOTHING, [strange(",")]),
    (words("0,high"), NOTHING, []),
    (words("256M", "512M,high"), yes(256 * M), []),
    (words("foo", "512M,high"), NOTHING, [VALUE]),
    (words("0", "512M,cma"), NOTHING, []),
    (words("16G", "512M,cma"), NOTHING, []),
    (words("8G"), NOTHING, []),
    (words("256M", "0,cma"), yes(256 * M), []),
    (words("256M", "16G,cma"), yes(256 * M, 16 * G), []),
    (words("256M", "1G-4G:300M,cma"), yes(256 * M, G), [strange("-")]),
    (words("256M", "300M@16M,cma"), yes(256 * M, 300 * M), [strange("@")]),
    (words("256M", "512M,high,cma"), yes(256 * M, 512 * M), [strange(",")]),
    (words("256M", "512Mfoo,cma"), yes(256 * M, 512 * M), [strange("f")]),
    (words("256M", "512M,cma,high"), yes(256 * M), []),
    (words("256M,cma,foo"), NOTHING, [strange(",")]),
    (words("256M", "512M,CMA"), NOTHING, [strange(",")]),
    (words("256M", ",cma"), yes(256 * M), [VALUE]),
    (words("256M", "xyz,cma"), yes(256 * M), [VALUE]),
    (words("1G-4G:128M,4G-:256M", "512M,cma"), yes(256 * M, 512 * M), []),
    (words("1G-4G:128M,4G-:256M,cma"), NOTHING, []),
    (words("256M@"), yes(256 * M), []),
    (words("256M@16M"), yes(256 * M, base=16 * M), []),
    (words("256M@0x1000000foo"), yes(256 * M, base=0x1000000F), []),
    (
        words("1G-4G:128M,16G-:256M"),
        NOTHING,
        ["!crashkernel size resulted in zero bytes"],
    ),
    (words("1G-:128M@32M"), yes(128 * M, base=32 * M), []),
    (words("1G-:128M,x@32M"), yes(128 * M, base=32 * M), []),
    (words("1G-:128M@"), NOTHING, ["crashkernel: Memory value expected after '@'"]),
    (words(":128M"), NOTHING, ["crashkernel: Memory value expected"]),
    (words("1G:128M"), NOTHING, ["crashkernel: '-' expected"]),
    (words("4G-4G:128M"), NOTHING, ["crashkernel: end <= start"]),
    (words("1G-2G,x:128M"), NOTHING, ["crashkernel: ':' expected"]),
    (words("1G-x:128M"), NOTHING, ["crashkernel: Memory value expected"]),
    (words("1G-:"), NOTHING, ["crashkernel: Memory value expected"]),
    (words("1G-:8G"), NOTHING, ["crashkernel: invalid size"]),
    (words("256MB"), NOTHING, [strange("B")]),
    (words("0512M"), yes(0o512 * M), []),
    (words("0x1E"), yes(30), []),
    (words("K"), NOTHING, []),
    (b"xcrashkernel=64M", yes(64 * M), []),
    (b"quiet -- crashkernel=64M", yes(64 * M), []),
    (b'foo="a crashkernel=64M b"', yes(64 * M), []),
    (b"crashkernel=64M\tquiet", NOTHING, [strange("\\x09")]),
    (b"crashkernel=64M\n", NOTHING, [strange("\\x0a")]),
    (b"crashkernel=64M\0 crashkernel=128M", yes(64 * M), []),
    (b"crashkernel=64M\xff", NOTHING, [strange("\\xff")]),
    (b"", NOTHING, []),
    (b"crashkernel", NOTHING, []),
    (b"crashkernel=", NOTHING, [VALUE]),
]


@pytest.mark.parametrize(("line", "expected", "says"), TABLE, ids=[repr(t[0]) for t in TABLE])
def test_the_kernels_own_results(line: bytes, expected: Request, says: list[str]) -> None:
    got = parse_crashkernel(line, RAM)
    assert replace(got, messages=()) == expected
    assert [("!" if m.level == "info" else "") + m.text for m in got.messages] == says


def test_ram_is_rounded_up_for_ranges_but_not_for_the_last_check() -> None:
    assert parse_crashkernel(words("4G-:64M"), 4 * G - 5 * M).accepted
    assert not parse_crashkernel(words("4G-:64M"), 4 * G - 128 * M).accepted
    assert not parse_crashkernel(words("0-:600M"), 600 * M).accepted


def test_other_default_for_the_low_part() -> None:
    got = parse_crashkernel(words("256M,high"), RAM, default_low_bytes=128 * M)
    assert got.low_bytes == 128 * M


def test_a_generation_without_the_suffix_reads_it_as_a_plain_word() -> None:
    old = replace(LINUX_6_17, suffixes=(b",high", b",low"))
    assert not parse_crashkernel(words("256M", "1G,cma"), RAM, generation=old).accepted
    got = parse_crashkernel(words("1G,cma", "256M"), RAM, generation=old)
    assert (got.size_bytes, got.cma_bytes) == (256 * M, 0)


@pytest.mark.parametrize(
    ("data", "value", "rest"),
    [
        (b"512M", 512 * M, b""),
        (b"1g,cma", G, b",cma"),
        (b"0512M", 330 * M, b""),
        (b"08", 0, b"8"),
        (b"0x1E", 30, b""),
        (b"0X1ek", 30 << 10, b""),
        (b"0x", 0, b"x"),
        (b"0xg", 0, b"xg"),
        (b"0", 0, b""),
        (b"K", 0, b""),
        (b"", 0, b""),
        (b"-1", 0, b"-1"),
        (b" 1", 0, b" 1"),
        (b"1.5G", 1, b".5G"),
        (b"256MB", 256 * M, b"B"),
        (b"18446744073709551615", (1 << 64) - 1, b""),
        (b"18446744073709551617", 1, b""),
        (b"16E", 0, b""),
        (b"17E", 1 << 60, b""),
        (b"2T", 2 << 40, b""),
        (b"2p", 2 << 50, b""),
        # more digits than int() takes
        (b"1" * 5000 + b"x", sum(10**n for n in range(5000)) % (1 << 64), b"x"),
    ],
)
def test_memparse(data: bytes, value: int, rest: bytes) -> None:
    assert memparse(data) == (value, rest)


@pytest.mark.parametrize(
    ("data", "value", "rest"),
    [
        (b"512M,cma", 512 * M, b",cma"),
        (b"K", 0, b"K"),
        (b"M@16M", 0, b"M@16M"),
        (b"0K", 0, b""),
        (b"0x", 0, b"x"),
        (b"16E", U64, b""),
        (b"17E,cma", U64, b",cma"),
        (b"15E", 15 << 60, b""),
        (b"18446744073709551616", U64, b""),
        (b"99999999999999999999999K", U64, b""),
        (b"0x1ffffffffffffffff", U64, b""),
        (b"1" * 5000 + b"x", U64, b"x"),
    ],
)
def test_memparse_of_7_2_saturates(data: bytes, value: int, rest: bytes) -> None:
    assert memparse_saturating(data) == (value, rest)


OLD, MIDDLE, NEW = ("5.10", "6.1"), ("6.12",), ("6.17", "7.2")
EXPECTED = "crashkernel: Memory value expected"

# words, versions, what they reserve, what they say; 8 GiB of RAM, x86
BY_GENERATION: list[tuple[bytes, tuple[str, ...], Request, list[str]]] = [
    # ",cma" before 6.17 is a bad plain word, unless a plain one follows it
    (words("256M", "512M,cma"), OLD + MIDDLE, NOTHING, [strange(",")]),
    (words("512M,cma", "256M"), OLD + MIDDLE, yes(256 * M), []),
    (words("512M,cma", "256M"), NEW, yes(256 * M, 512 * M), []),
    # ",high" after a bad plain word counts on x86 up to 6.6 alone
    (words("foo", "512M,high"), OLD, yes(512 * M, high=True, low_bytes=256 * M), [VALUE]),
    (words("foo", "512M,high"), MIDDLE + NEW, NOTHING, [VALUE]),
    (words("0", "512M,high"), OLD, yes(512 * M, high=True, low_bytes=256 * M), []),
    (words("0", "512M,high"), MIDDLE + NEW, NOTHING, []),
    (
        words("256M,high", "512M,cma"),
        OLD,
        yes(256 * M, high=True, low_bytes=256 * M),
        [strange(",")],
    ),
    (words("256M,high", "512M,cma"), MIDDLE, NOTHING, [strange(",")]),
    # a bad ",low" spoils ",high" from 6.7 on; before, it is read later and then does not count
    (words("256M,high", "x,low"), OLD, yes(256 * M, high=True, low_bytes=256 * M), []),
    (words("256M,high", "x,low"), MIDDLE + NEW, NOTHING, [VALUE]),
    # more than RAM is left to the search before 6.7
    (words("16G"), OLD, yes(16 * G), []),
    (words("16G"), MIDDLE + NEW, NOTHING, []),
    # spellings
    (words("1G-:"), OLD, NOTHING, ["Memory value expected"]),
    (words("1G-:"), MIDDLE + NEW, NOTHING, [EXPECTED]),
    (words("1G-:1M@"), OLD, NOTHING, ["Memory value expected after '@'"]),
    (words("1G-:1M@"), MIDDLE, NOTHING, ["crahskernel: Memory value expected after '@'"]),
    (words("1G-:1M@"), NEW, NOTHING, [f"{EXPECTED} after '@'"]),
    # numbers
    (words("17E"), ("6.12", "6.17"), NOTHING, []),
    (words("256M", "17E,cma"), ("6.17",), yes(256 * M, 1 << 60), []),
    (words("256M", "17E,cma"), ("7.2",), yes(256 * M, U64), []),
    (words("256M", "16E,cma"), ("6.17",), yes(256 * M), []),
    (words("256M", "K,cma"), ("6.17",), yes(256 * M), []),
    (words("256M", "K,cma"), ("7.2",), yes(256 * M), [VALUE]),
    (words("K"), OLD + MIDDLE + ("6.17",), NOTHING, []),
    (words("K"), ("7.2",), NOTHING, [VALUE]),
]


@pytest.mark.parametrize(
    ("line", "version", "expected", "says"),
    [(line, v, expected, says) for line, vs, expected, says in BY_GENERATION for v in vs],
)
def test_what_each_generation_makes_of_words(
    line: bytes, version: str, expected: Request, says: list[str]
) -> None:
    got = parse_crashkernel(line, RAM, generation=kernel_for(version).generation)
    assert replace(got, messages=()) == expected
    assert [m.text for m in got.messages] == says


def test_5_10_does_not_round_ram_for_ranges() -> None:
    ram = 4 * G - 5 * M
    for version, accepted in (("5.10", False), ("6.1", True)):
        generation = kernel_for(version).generation
        assert parse_crashkernel(words("4G-:64M"), ram, generation=generation).accepted is accepted


@pytest.mark.parametrize(
    ("arch", "version", "cma", "high"),
    [
        ("x86_64", "6.17", G, True),
        ("aarch64", "6.12", 0, True),
        ("aarch64", "7.2", 0, True),
        ("aarch64", "7.3", G, True),
        ("riscv64", "7.2", 0, True),
        ("riscv64", "7.3", G, True),
        ("loongarch64", "7.3", 0, True),
        ("ppc64le", "6.18", 0, False),
        ("ppc64le", "6.19", G, False),
        ("s390x", "7.3", 0, False),
        ("arm64", "5.10", 0, False),
    ],
)
def test_what_each_architecture_reads(arch: str, version: str, cma: int, high: bool) -> None:
    """Whether the size of ",cma" arrives, and whether ",high" alone is read."""
    generation = kernel_for(version, arch).generation
    assert parse_crashkernel(words("1G,cma", "256M"), RAM, generation=generation).cma_bytes == cma
    assert parse_crashkernel(words("256M,high"), RAM, generation=generation).accepted is high


def test_an_architecture_that_passes_cma_over_says_nothing_of_it() -> None:
    """s390 from 6.17 on: the suffix is in the table, so the word is no plain one either."""
    generation = kernel_for("7.3", "s390x").generation
    got = parse_crashkernel(words("256M", "foo,cma"), RAM, generation=generation)
    assert (got.accepted, got.messages) == (True, ())


@pytest.mark.parametrize(
    ("line", "size"),
    [
        (words("1G,cma", "100M"), G),
        (words("100M", "256M,cma", "1G,cma"), G),
        (words("1G,cma"), G),
        (words("100M"), 0),
        (words("100M", "xyz,cma"), 0),
        (words("100M", "1G-4G:300M,cma"), G),
        (words("1G,CMA"), 0),
        (b"crashkernel=1G,cma\0 crashkernel=2G,cma", G),
        (b"", 0),
    ],
)
def test_lent_request_is_the_last_cma_word(line: bytes, size: int) -> None:
    assert lent_request(line) == size


def test_json_has_the_keys_of_the_design() -> None:
    got = parse_crashkernel(words("256M@16M", "300M@1M,cma"), RAM).to_json()
    assert json.loads(json.dumps(got)) == {
        "accepted": True,
        "size_bytes": 256 * M,
        "base": 16 * M,
        "high": False,
        "low_bytes": None,
        "cma_bytes": 300 * M,
        "messages": [{"level": "warn", "text": strange("@")}],
    }


PIECES = [b"crashkernel=", b" ", b",high", b",low", CMA, b"@", b"-", b":", b",", b"1G", b"0x1E"]
PIECES += [b"256M", b"0512M", b"16G", b"K", b"1G-4G:128M,4G-:256M", b"\t", b'"', b"\0", b"\xff"]
LINES = st.one_of(
    st.binary(max_size=300),
    st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=3)), max_size=14).map(b"".join),
)


@given(LINES, st.integers(0, 1 << 52))
@example(b"crashkernel=" + b"9" * 6000, RAM)
def test_any_line_gives_a_sound_request(line: bytes, ram: int) -> None:
    """No bytes raise, and what is accepted can be: sizes below RAM, nothing when refused."""
    got = parse_crashkernel(line, ram)
    if got.accepted:
        assert 0 < got.size_bytes < ram
        assert got.base is None or 0 < got.base < 1 << 64
        assert (got.low_bytes is not None) == got.high
        assert got.cma_bytes == lent_request(line)
        assert not (got.high and got.base)
    else:
        assert got == Request(accepted=False, messages=got.messages)
    assert all(m.level in ("warn", "info") and m.text.isprintable() for m in got.messages)
    assert parse_crashkernel(line + b"\0" + line, ram) == got


@given(LINES, st.integers(0, 1 << 52))
def test_any_line_is_read_by_every_kernel(line: bytes, ram: int) -> None:
    """No bytes raise under any row; a size that is accepted is more than nothing."""
    for rows in ROWS.values():
        for row in rows:
            got = parse_crashkernel(line, ram, generation=row.generation)
            assert got.accepted == (got.size_bytes > 0)
            assert got.accepted or got == Request(accepted=False, messages=got.messages)
            assert all(m.text.isprintable() for m in got.messages)


@given(st.binary(max_size=40))
def test_both_memparse_agree_but_for_overflow_and_lone_letters(data: bytes) -> None:
    (old, rest), (new, new_rest) = memparse(data), memparse_saturating(data)
    if new_rest == rest:
        assert new in (old, U64)
    else:
        assert (old, new, new_rest) == (0, 0, data)


@given(st.binary(max_size=40))
def test_memparse_takes_a_prefix(data: bytes) -> None:
    value, rest = memparse(data)
    assert data.endswith(rest)
    assert 0 <= value < 1 << 64
    assert memparse(data[: len(data) - len(rest)]) == (value, b"")


@given(LINES)
def test_only_the_last_cma_word_counts(line: bytes) -> None:
    ended = line.replace(b"\0", b"") + b" crashkernel=3M,cma"
    assert lent_request(ended) == 3 * M
