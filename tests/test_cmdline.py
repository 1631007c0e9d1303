# SPDX-License-Identifier: LGPL-2.1-or-later
"""Kernel command lines are split as the kernel does it; the crash kernel's has what it needs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashlend.errors import CrashlendError, UsageError
from crashlend.formats.cmdline import (
    ADDED,
    DROPPED,
    Drop,
    crash_cmdline,
    from_proc,
    parameter_name,
    split,
)

ALWAYS = " ".join(word for word, _ in ADDED)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"", []),
        (b"  a  b=c\td\n", [b"a", b"b=c", b"d"]),
        (b'dyndbg="file a.c +p" x', [b'dyndbg="file a.c +p"', b"x"]),
        (b'"my word=1 2" x', [b'"my word=1 2"', b"x"]),
        (b'a"b c"d e', [b'a"b c"d', b"e"]),
        (b'a="b c', [b'a="b c']),
        (b'""', [b'""']),
        (b'a=\\" b', [b'a=\\" b']),
        (b"a\xa0b", [b"a", b"b"]),
        (b"a b\0c", [b"a", b"b"]),
    ],
)
def test_split(line: bytes, words: list[bytes]) -> None:
    assert split(line) == words


@given(st.binary(max_size=200))
def test_split_keeps_all_bytes_but_the_spaces_between(line: bytes) -> None:
    words = split(line)
    rest = line.split(b"\0", 1)[0]
    for word in words:
        at = rest.index(word)
        assert not rest[:at].strip(b"\t\n\v\f\r \xa0")
        rest = rest[at + len(word) :]
    assert not rest.strip(b"\t\n\v\f\r \xa0")
    assert split(b" ".join(words)) == words
    text = line.decode("utf-8", "surrogateescape")
    assert [w.encode("utf-8", "surrogateescape") for w in split(text)] == words


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("quiet", "quiet"),
        ("nr-cpus=1", "nr_cpus"),
        ('"mem=1G"', "mem"),
        ('"quiet"', "quiet"),
        ("=a=b", "=a"),
        ('a="b=c"', "a"),
        ('""', ""),
    ],
)
def test_parameter_name(word: str, name: str) -> None:
    assert parameter_name(word) == name


def test_from_proc_takes_one_newline_off() -> None:
    assert from_proc(b"a b\n") == b"a b"
    assert from_proc(b"a b\n\n") == b"a b\n"
    assert from_proc(b"a b") == b"a b"


def test_a_distributions_line() -> None:
    production = (
        "BOOT_IMAGE=/boot/vmlinuz-6.1 root=/dev/vda1 ro console=tty0 console=ttyS0,115200 quiet "
        "intel_iommu=on iommu=pt crashkernel=1G,cma crashkernel=512M hugepagesz=1G hugepages=8 "
        "movable_node memmap=1M$16M mem=8G kernelcore=50% isolcpus=1-3 panic=0 nokaslr "
        'dyndbg="file a.c +p"'
    )
    got = crash_cmdline(production, ["elfcorehdr=0x77f00000"])
    kept = 'console=tty0 console=ttyS0,115200 quiet intel_iommu=on iommu=pt dyndbg="file a.c +p"'
    assert got.line == f"{kept} {ALWAYS} elfcorehdr=0x77f00000"
    assert sorted(
        [*kept.replace(" a.c +p", "~").split(), *(d.word for d in got.dropped)]
    ) == sorted(production.replace(" a.c +p", "~").split())
    assert all(reason for _, reason in (*got.dropped, *got.added))
    assert [a.word for a in got.added] == [*ALWAYS.split(), "elfcorehdr=0x77f00000"]


@pytest.mark.parametrize("row", DROPPED, ids=lambda row: row.name)
def test_each_row_drops_its_word_however_it_is_spelt(row: Drop) -> None:
    name = row.name + ("x" if row.name[-1] in "./" else "")
    for word in (f"{name}=1", f"{name.replace('_', '-')}=1", f'"{name}=1"'):
        got = crash_cmdline(f"a {word} b")
        assert got.line == f"a b {ALWAYS}"
        assert [d.word for d in got.dropped] == [word]


def test_similar_names_are_kept() -> None:
    line = "memory=1 cmax=2 rootx rdx.root=1 amd_iommu=off init_on_alloc=1 noresume"
    assert crash_cmdline(line).line == f"{line} {ALWAYS}"


def test_crashkernel_is_found_where_the_kernel_finds_it() -> None:
    """A leftover anywhere, even inside quotes, would make the crash kernel reserve memory."""
    got = crash_cmdline('xcrashkernel=1G foo="a crashkernel=64M b" c')
    assert got.line == f"c {ALWAYS}"
    assert "crashkernel" not in got.line


def test_words_for_init_are_dropped() -> None:
    got = crash_cmdline("a -- single crashkernel=5")
    assert got.line == f"a {ALWAYS}"
    assert [d.word for d in got.dropped] == ["--", "single", "crashkernel=5"]


def test_append_wins_over_what_is_always_added() -> None:
    got = crash_cmdline("nr_cpus=8 console=tty0", append="nr_cpus=4 console=ttyS0")
    assert "nr_cpus=1" not in got.line.split()
    assert got.line.startswith("console=tty0 nokaslr")
    assert got.line.endswith("nr_cpus=4 console=ttyS0")


def test_the_callers_words_win_over_productions() -> None:
    got = crash_cmdline("swiotlb=65536 panic=5", [("swiotlb=8192", "little low memory"), "panic=3"])
    assert got.line.split().count("panic=3") == 1
    assert "panic=10" not in got.line
    assert "swiotlb=65536" not in got.line
    assert ("swiotlb=8192", "little low memory") in got.added


@pytest.mark.parametrize(
    "append", ["mem=1G", "crashkernel=64M", "x=crashkernel=1", "elfcorehdr=1", "--", 'a="b']
)
def test_append_must_not_change_the_plan(append: str) -> None:
    with pytest.raises(UsageError, match="append"):
        crash_cmdline("a", append=append)


def test_keep_all_drops_only_what_changes_the_memory() -> None:
    line = "root=/dev/vda1 nr_cpus=2 irqpoll usbcore.nousb panic=5 hugepages=1"
    got = crash_cmdline(f"{line} mem=1G elfcorehdr=1 -- x", ["elfcorehdr=0x2"], keep_all=True)
    assert got.line == f"{line} nokaslr acpi_no_memhotplug reset_devices elfcorehdr=0x2 -- x"
    assert [d.word for d in got.dropped] == ["mem=1G", "elfcorehdr=1"]


def test_an_open_quote_does_not_swallow_the_added_words() -> None:
    got = crash_cmdline('a b="c d')
    assert got.line == f'a {ALWAYS} b="c d'
    assert "nokaslr" in split(got.line)


def test_bytes_survive() -> None:
    got = crash_cmdline(b"a=\xff\xfe b=\xc3\xa9")
    assert got.encode().startswith(b"a=\xff\xfe b=\xc3\xa9 nokaslr")


def test_too_long_is_said_with_numbers_and_the_longest_word() -> None:
    fits = 2047 - len(f" {ALWAYS}")
    assert len(crash_cmdline("x" * fits).line) == 2047
    with pytest.raises(CrashlendError, match="2048 bytes, 1 more than the 2047") as caught:
        crash_cmdline("y=" + "x" * (fits - 1))
    assert f"y={'x' * 38}… ({fits + 1} bytes)" in caught.value.hint


@given(st.binary(max_size=300))
def test_any_production_line_gives_the_words_that_must_be_there(line: bytes) -> None:
    got = crash_cmdline(line, ["elfcorehdr=0x1000"])
    words = split(got.line)
    assert {*ALWAYS.split(), "elfcorehdr=0x1000"} <= set(words)
    assert "crashkernel=" not in got.line
    kept = [w for w in words if w not in {a.word for a in got.added}]
    assert kept == [w for w in split(line.decode("utf-8", "surrogateescape")) if w in kept]
