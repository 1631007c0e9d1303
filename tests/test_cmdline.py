# SPDX-License-Identifier: LGPL-2.1-or-later
"""Kernel command lines are split as the kernel does it; the crash kernel's has what it needs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashlend.errors import CrashlendError, UsageError
from crashlend.formats.cmdline import (
    crash_cmdline,
    from_proc,
    parameter_name,
    split,
    with_crashkernel,
)
from crashlend.formats.cmdline_words import ADDED, DROPPED, Drop

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
    name = row.name + ("x" if row.name[-1] in "._" else "")
    spellings = [name, name.replace("_", "-")]
    spellings += [name.replace(".", "/")] if name.startswith("sysctl.") else []
    for word in (*(f"{spelt}=1" for spelt in spellings), f'"{name}=1"'):
        got = crash_cmdline(f"a {word} b")
        assert got.line == f"a b {ALWAYS}"
        assert [d.word for d in got.dropped] == [word]


def test_similar_names_are_kept() -> None:
    line = "memory=1 cmax=2 rootx rdx.root=1 amd_iommu=off init_on_alloc=1 noresume --=x "
    line += "sysctl.kernel.printk=7 panic_print=1 oops_limit=3 numa_balancing=0 efi=debug"
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
    got = crash_cmdline("panic=8 console=tty0", append="panic=4 console=ttyS0")
    assert "panic=10" not in got.line.split()
    assert got.line.startswith("console=tty0 nokaslr")
    assert got.line.endswith("panic=4 console=ttyS0")


def test_the_callers_words_win_over_productions() -> None:
    got = crash_cmdline("swiotlb=65536 panic=5", [("swiotlb=8192", "little low memory"), "panic=3"])
    assert got.line.split().count("panic=3") == 1
    assert "panic=10" not in got.line
    assert "swiotlb=65536" not in got.line
    assert ("swiotlb=8192", "little low memory") in got.added


@pytest.mark.parametrize(
    "append",
    ["mem=1G", "crashkernel=64M", "x=crashkernel=1", "elfcorehdr=1", "--", 'a="b', "nr_cpus=2"],
)
def test_append_must_not_change_the_plan(append: str) -> None:
    with pytest.raises(UsageError, match="append"):
        crash_cmdline("a", append=append)


def test_keep_all_drops_only_what_changes_the_memory() -> None:
    line = "root=/dev/vda1 nr_cpus=2 irqpoll usbcore.nousb panic=5 hugepages=1"
    got = crash_cmdline(f"{line} mem=1G elfcorehdr=1 -- x", ["elfcorehdr=0x2"], keep_all=True)
    assert got.line == f"{line} nokaslr acpi_no_memhotplug reset_devices elfcorehdr=0x2 -- x"
    assert got.kept == (*line.split(), "--", "x")
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


# what a hostile boot loader might write: words that are dropped, spaces of all kinds, quotes
WORDS = (
    b'crashkernel=1G,cma xcrashkernel=5 mem=1G root=/dev/a quiet numa=off a" " b console=ttyS0 '
    b"nr_cpus=3 sysctl/vm/x=1 ro -- \xff \xc3\xa9 \0 = panic=0"
)
SPACES = [b" ", b"  ", b"\t", b"\n", b"\xa0", b" -- "]
PIECES = st.sampled_from([*WORDS.split(b" "), *SPACES, b'dyndbg="file a.c +p"'])
LINES = st.binary(max_size=300) | st.lists(PIECES, max_size=40).map(b"".join)


@given(LINES)
def test_any_production_line_gives_the_words_that_must_be_there(line: bytes) -> None:
    """Whatever stands in production's line, the crash kernel reads every word that it needs."""
    got = crash_cmdline(line, ["elfcorehdr=0x1000"])
    words = split(got.line)
    assert {*ALWAYS.split(), "elfcorehdr=0x1000"} <= set(words)
    assert "crashkernel=" not in got.line


@given(LINES)
def test_each_word_of_production_is_kept_byte_for_byte_or_dropped_with_a_reason(
    line: bytes,
) -> None:
    """Kept and dropped words, put together again, are production's: none is lost or changed.

    The kept ones are in the line in their order; but one whose quote is never closed is its last.
    """
    got = crash_cmdline(line)
    production = split(line.decode("utf-8", "surrogateescape"))
    kept, dropped = list(got.kept), list(got.dropped)
    for word in production:
        if kept and kept[0] == word and (not dropped or dropped[0].word != word):
            kept.pop(0)
        else:
            gone = dropped.pop(0)
            assert gone.word == word
            assert gone.reason
    assert not kept
    assert not dropped
    added = [a.word for a in got.added]
    words = split(got.encode())
    assert [w.decode("utf-8", "surrogateescape") for w in words] == [
        *(w for w in got.kept if w.count('"') % 2 == 0),
        *added,
        *(w for w in got.kept if w.count('"') % 2),
    ]


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        (
            "BOOT_IMAGE=(hd0,gpt2)/vmlinuz-5.14.0-427.el9.x86_64 root=/dev/mapper/rhel-root ro "
            "crashkernel=1G-4G:192M,4G-64G:256M,64G-:512M resume=/dev/mapper/rhel-swap "
            "rd.lvm.lv=rhel/root rd.lvm.lv=rhel/swap rhgb quiet",
            "rd.lvm.lv=rhel/root rd.lvm.lv=rhel/swap rhgb quiet",
        ),
        (
            "BOOT_IMAGE=/vmlinuz-6.8.0-31-generic root=/dev/mapper/ubuntu--vg-ubuntu--lv ro quiet "
            "splash crashkernel=2G-4G:320M,4G-32G:512M,32G-64G:1024M,64G-128G:2048M,128G-:4096M "
            "vt.handoff=7",
            "quiet splash vt.handoff=7",
        ),
        (
            "BOOT_IMAGE=/boot/vmlinuz-6.4.0-150600.21-default root=UUID=4f68-a splash=silent "
            "mitigations=auto quiet security=apparmor crashkernel=305M,high crashkernel=72M,low",
            "splash=silent mitigations=auto quiet security=apparmor",
        ),
        (
            "BOOT_IMAGE=(hd0,gpt3)/boot/ostree/fedora-coreos/vmlinuz rw mitigations=auto,nosmt "
            "ostree=/ostree/boot.1/fedora-coreos/0 ignition.platform.id=metal console=ttyS0,115200n8 "
            "root=UUID=5 rootflags=prjquota boot=UUID=8",
            "mitigations=auto,nosmt ostree=/ostree/boot.1/fedora-coreos/0 ignition.platform.id=metal "
            "console=ttyS0,115200n8 boot=UUID=8",
        ),
        (
            "BOOT_IMAGE=/boot/vmlinuz-6.1.0-21-cloud-amd64 root=PARTUUID=7 ro console=tty0 "
            "console=ttyS0,115200 earlyprintk=ttyS0,115200 consoleblank=0 nvme_core.io_timeout=4294967295 "
            "default_hugepagesz=1G hugepagesz=1G hugepages=16 isolcpus=managed_irq,domain,2-15 "
            "nohz_full=2-15 rcu_nocbs=2-15 intel_iommu=on iommu=pt skew_tick=1 "
            'module_blacklist="a,b c" oops=panic panic=30 crashkernel=512M',
            "console=tty0 console=ttyS0,115200 earlyprintk=ttyS0,115200 consoleblank=0 "
            "nvme_core.io_timeout=4294967295 intel_iommu=on iommu=pt skew_tick=1 "
            'module_blacklist="a,b c"',
        ),
    ],
    ids=["rhel", "ubuntu", "suse", "coreos", "tuned"],
)
def test_lines_of_distributions(line: str, kept: str) -> None:
    """What RHEL 9, Ubuntu 24.04, SLES 15, Fedora CoreOS and a tuned host boot with."""
    got = crash_cmdline(line)
    assert got.line == f"{kept} {ALWAYS}"
    assert list(got.kept) == split(kept)


# --- crashkernel= in production's line ------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "result"),
    [
        (b"", b"N"),
        (b"quiet  splash", b"quiet  splash N"),
        (b"a  crashkernel=512M\tb ", b"a  N\tb "),
        (b"crashkernel=512M", b"N"),
        (b"crashkernel=100M a crashkernel=1G,cma b", b"N a b"),
        (b"a -- single", b"a N -- single"),
        (b'a "--" crashkernel=7', b'a N "--"'),
        (b'a b="c d', b'a N b="c d'),
        (b'xcrashkernel=1 dyndbg="a crashkernel=2" c', b"N c"),
        (b"a\0crashkernel=1 b", b"a N"),
        (b"craskernel=1G a=\xff", b"craskernel=1G a=\xff N"),
    ],
)
def test_crashkernel_words_take_the_place_of_old_ones(line: bytes, result: bytes) -> None:
    """In the one order that works on every kernel: the shared part, then what protects memory."""
    new = b"crashkernel=1G,cma crashkernel=100M"
    assert with_crashkernel(line, "100M", "1G") == result.replace(b"N", new)


def test_one_part_alone_two_protected_parts_and_none() -> None:
    assert with_crashkernel(b"a", "100M", "") == b"a crashkernel=100M"
    assert with_crashkernel(b"a", "256M,high 64M,low", "1G") == (
        b"a crashkernel=1G,cma crashkernel=256M,high crashkernel=64M,low"
    )
    assert with_crashkernel(b"a crashkernel=1 b", "", "") == b"a b"


@pytest.mark.parametrize("value", ['1G"', "1G\xa0x", "\u0661", "1G=2"])
def test_what_is_no_value_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match="crashkernel"):
        with_crashkernel(b"a", value, "1G")


@given(LINES)
def test_every_other_word_of_production_stays_where_it_is(line: bytes) -> None:
    """Without the words that say crashkernel= the line is the same; putting them in again as well."""
    got = with_crashkernel(line, "100M", "1G")
    words = split(got)
    ours = [b"crashkernel=1G,cma", b"crashkernel=100M"]
    at = words.index(ours[0])
    assert words[at : at + 2] == ours
    rest = words[:at] + words[at + 2 :]
    assert rest == [word for word in split(line) if b"crashkernel=" not in word]
    assert b"--" not in words[:at]
    assert with_crashkernel(got, "100M", "1G") == got
    if b"crashkernel=" not in line:
        before, after = got.split(b" ".join(ours))
        assert line.split(b"\0", 1)[0] in {
            cut + after.removeprefix(space)
            for space in (b"", b" ")
            for cut in (before, before.removesuffix(b" "))
        }
