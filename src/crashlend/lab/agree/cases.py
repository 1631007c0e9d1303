# SPDX-License-Identifier: LGPL-2.1-or-later
"""The boots that the model is compared with: hosts, and words for kernels on them. A table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from crashlend.errors import UsageError
from crashlend.lab.observe import Guest
from crashlend.sizes import GIB, MIB

OLD = ("6.1", "6.12")
BEFORE_CMA = (*OLD, "6.17")  # Debian's 6.17 knows the word, but was built without CONFIG_CMA
WITH_CMA = ("7.2", "7.3")
KERNELS = (*BEFORE_CMA, *WITH_CMA)
NEW = ("6.17", *WITH_CMA)
NEWEST = ("7.3",)
ENDS = ("6.1", "7.3")
SMALL = Guest(unpacked=True)


@dataclass(frozen=True)
class GuestHost:
    """A host that the words are tried on: memory, shape, and words that are in every line of it."""

    name: str
    memory_bytes: int
    guest: Guest = SMALL
    words: str = ""


@dataclass(frozen=True)
class Case:
    """One boot: ``words`` follow those of the host. ``shows``: what it is there for."""

    name: str
    kernel: str
    host: str
    words: str
    shows: str


class _Row(NamedTuple):
    slug: str
    kernels: tuple[str, ...]
    host: str
    words: str
    shows: str


# QEMU's pc has RAM below 3 GiB and, of more than 3.5 GiB, the rest from 4 GiB on.
_HOSTS = (
    GuestHost("1G", 1 * GIB),
    GuestHost("2G", 2 * GIB),
    GuestHost("3G", 3 * GIB),
    GuestHost("4G", 4 * GIB),
    GuestHost("6G", 6 * GIB),
    GuestHost("8G", 8 * GIB),
    GuestHost("12G", 12 * GIB),
    GuestHost("odd", 2 * GIB - 5 * MIB),
    GuestHost("uefi-2G", 2 * GIB, Guest(firmware="uefi", machine="q35")),
    GuestHost("uefi-6G", 6 * GIB, Guest(firmware="uefi", machine="q35")),
    GuestHost("numa2-2G", 2 * GIB, Guest(nodes=2, cpus=2, unpacked=True)),
    GuestHost("numa2-8G", 8 * GIB, Guest(nodes=2, cpus=2, unpacked=True)),
    GuestHost("numa4-6G", 6 * GIB, Guest(nodes=4, cpus=4, unpacked=True)),
    GuestHost("one-hole", 2 * GIB, words="memmap=1M$0x40000000"),
    GuestHost("uneven", 2 * GIB, words="memmap=1M$0x57800000"),
    GuestHost(
        "quarters", 2 * GIB, words="memmap=1M$0x20000000 memmap=1M$0x40000000 memmap=1M$0x60000000"
    ),
    GuestHost("hole-8G", 8 * GIB, words="memmap=64M$0x140000000 memmap=16M$0x60000000"),
    GuestHost("mem-1500M", 2 * GIB, words="mem=1500M"),
)
HOSTS = {host.name: host for host in _HOSTS}

_TABLE = (
    # ---- the main reservation: size, place
    _Row("plain", KERNELS, "2G", "crashkernel=256M", "a plain size"),
    _Row("plain", NEWEST, "1G", "crashkernel=160M", "a plain size"),
    _Row("plain", NEWEST, "3G", "crashkernel=300M", "not a multiple of the alignment"),
    _Row("plain", ENDS, "4G", "crashkernel=512M", "below the hole before 4 GiB"),
    _Row("plain", NEWEST, "12G", "crashkernel=1G", "low memory is tried first"),
    _Row("plain", NEWEST, "odd", "crashkernel=255M", "memory that ends in the middle of a block"),
    _Row("bytes", NEWEST, "2G", "crashkernel=100000001", "the size is not rounded"),
    _Row(
        "large",
        ("6.1", "6.12", "6.17", "7.3"),
        "8G",
        "crashkernel=4G",
        "no room below 4 GiB: above, and a low part",
    ),
    _Row("large", NEWEST, "12G", "crashkernel=6G", "no room below 4 GiB: above, and a low part"),
    _Row("high", KERNELS, "6G", "crashkernel=512M,high", "above 4 GiB, 256 MiB below by default"),
    _Row("high", ENDS, "2G", "crashkernel=256M,high", "nothing above 4 GiB: below, no low part"),
    _Row("high-low", ENDS, "8G", "crashkernel=1G,high crashkernel=96M,low", "both sizes given"),
    _Row("high-no-low", ENDS, "6G", "crashkernel=1G,high crashkernel=0,low", "no low part"),
    _Row(
        "high-low-large",
        ENDS,
        "6G",
        "crashkernel=512M,high crashkernel=3200M,low",
        "no room for the low part: all is given up",
    ),
    _Row("high-plain", NEWEST, "6G", "crashkernel=1G,high crashkernel=256M", "plain words win"),
    _Row("low-alone", NEWEST, "6G", "crashkernel=256M,low", "a low part needs a high one"),
    _Row("at-free", ENDS, "2G", "crashkernel=256M@512M", "at an address that is free"),
    _Row("at-kernel", ENDS, "2G", "crashkernel=128M@16M", "where the kernel is"),
    _Row("at-odd", KERNELS, "2G", "crashkernel=128M@513M", "not a multiple of 16 MiB"),
    _Row("at-end", NEWEST, "2G", "crashkernel=128M@1984M", "reaches beyond the end of RAM"),
    _Row("at-zero", NEWEST, "2G", "crashkernel=128M@0", "address 0 is no address"),
    _Row("at-nothing", ENDS, "2G", "crashkernel=128M@", "no address behind the @"),
    _Row("at-hole", NEWEST, "one-hole", "crashkernel=128M@960M", "over a hole"),
    _Row("at-above", ENDS, "8G", "crashkernel=256M@5G", "at an address above 4 GiB"),
    _Row("holes", NEWEST, "quarters", "crashkernel=400M", "the highest piece is too small"),
    _Row("holes-none", ENDS, "quarters", "crashkernel=600M", "every piece is too small"),
    _Row("too-large", ENDS, "2G", "crashkernel=3G", "more than there is: nothing, no word of it"),
    _Row("nearly-all", ENDS, "2G", "crashkernel=2000M", "less than RAM, but not in one piece"),
    _Row("mem", NEWEST, "mem-1500M", "crashkernel=256M", "RAM cut by mem="),
    _Row("uefi", ENDS, "uefi-2G", "crashkernel=256M", "under UEFI"),
    _Row("uefi-high", NEWEST, "uefi-6G", "crashkernel=512M,high", "under UEFI, above 4 GiB"),
    _Row("numa", NEWEST, "numa2-2G", "crashkernel=256M", "two nodes"),
    _Row("numa-node", NEWEST, "numa4-6G", "crashkernel=1700M", "larger than any node"),
    _Row("numa-high", NEWEST, "numa2-8G", "crashkernel=512M,high", "two nodes, above 4 GiB"),
    # ---- ranges
    _Row("ranges", ENDS, "2G", "crashkernel=1G-2G:64M,2G-4G:192M,4G-:1G", "a range holds the size"),
    _Row("ranges-round", NEWEST, "odd", "crashkernel=1G-2G:64M,2G-:192M", "RAM is rounded up"),
    _Row("ranges-none", ("6.12", "7.3"), "2G", "crashkernel=4G-8G:256M", "no range holds it"),
    _Row("ranges-at", NEWEST, "2G", "crashkernel=1G-:128M@256M", "ranges and an address"),
    _Row(
        "ranges-at-none",
        ("6.1", "6.12", "6.17", "7.3"),
        "2G",
        "crashkernel=1G-:128M@",
        "ranges, @ and no address",
    ),
    _Row("ranges-first", NEWEST, "2G", "crashkernel=0-:128M,1G-:256M", "the first that holds it"),
    # ---- words that are no such words
    _Row("bad-size", ("6.17", "7.3"), "2G", "crashkernel=lots", "no number"),
    _Row("bad-unit", NEWEST, "2G", "crashkernel=256MB", "a letter too many"),
    _Row("bad-utf8", ENDS, "2G", "crashkernel=256Mé", "bytes that are not ASCII"),
    _Row("bad-tab", NEWEST, "2G", "crashkernel=256M\tquiet", "a tab ends no word for the parser"),
    _Row("bad-minus", ("6.12", "7.3"), "2G", "crashkernel=1G:256M", "ranges without -"),
    _Row("bad-order", NEWEST, "2G", "crashkernel=4G-2G:256M", "a range that ends before it begins"),
    _Row("bad-colon", NEWEST, "2G", "crashkernel=1G-2G,2G-4G:256M", "a range without a size"),
    _Row("bad-no-size", NEWEST, "2G", "crashkernel=1G-:", "nothing after the :"),
    _Row("bad-no-start", NEWEST, "2G", "crashkernel=-4G:256M", "nothing before the -"),
    _Row("bad-end", NEWEST, "2G", "crashkernel=1G-x:256M", "an end that is no number"),
    _Row("bad-large", ENDS, "2G", "crashkernel=1G-:2G", "a size as large as RAM"),
    _Row(
        "bad-suffix", ("6.17", "7.3"), "2G", "crashkernel=256M,height", "a suffix that nobody knows"
    ),
    _Row(
        "bad-high", ("6.1", "6.12", "7.3"), "6G", "crashkernel=lots,high", "no number before ,high"
    ),
    _Row(
        "bad-low",
        ("6.1", "6.12", "7.3"),
        "6G",
        "crashkernel=256M,high crashkernel=x,low",
        "none before ,low",
    ),
    _Row("zero", NEWEST, "2G", "crashkernel=0", "nothing asked"),
    _Row("octal", NEWEST, "2G", "crashkernel=0400M", "a leading 0 is octal: 256M"),
    _Row("hex", NEWEST, "2G", "crashkernel=0x10000000", "hexadecimal"),
    _Row(
        "lone-unit",
        ("6.17", "7.2"),
        "2G",
        "crashkernel=M",
        "a unit without a number, which 7.2 refuses",
    ),
    _Row(
        "overflow",
        ("6.17", "7.2"),
        "2G",
        "crashkernel=16E",
        "wraps to 0 before 7.2, and saturates since",
    ),
    _Row(
        "last-wins", NEWEST, "2G", "crashkernel=512M crashkernel=128M", "the last of a kind counts"
    ),
    _Row("inside", ENDS, "2G", "xcrashkernel=192M", "found anywhere, also in another word"),
    _Row("quoted", NEWEST, "2G", '"crashkernel=192M"', "quotes are not understood"),
    _Row("dashes", NEWEST, "2G", "-- crashkernel=192M", "what follows -- counts, too"),
    _Row("misspelt", NEWEST, "2G", "craskernel=192M", "a word that no one reads"),
    # ---- ,cma where it is not known or not built in
    _Row("cma-first", KERNELS, "2G", "crashkernel=512M,cma crashkernel=128M", "works everywhere"),
    _Row(
        "cma-last", KERNELS, "2G", "crashkernel=128M crashkernel=512M,cma", "kdump lost until 6.16"
    ),
    _Row(
        "cma-high",
        KERNELS,
        "6G",
        "crashkernel=512M,cma crashkernel=256M,high",
        "on 6.12 no order helps",
    ),
    _Row(
        "cma-alone",
        ("6.1", "6.17", "7.3"),
        "2G",
        "crashkernel=512M,cma",
        "nothing at all, no word of it",
    ),
    _Row("cma-low", NEWEST, "6G", "crashkernel=256M,low crashkernel=512M,cma", "nothing either"),
    _Row(
        "cma-of-ranges",
        WITH_CMA,
        "4G",
        "crashkernel=1G-8G:192M crashkernel=512M,cma",
        "ranges for the reservation, a size for ,cma",
    ),
    _Row("cma-main-large", NEWEST, "2G", "crashkernel=512M,cma crashkernel=3G", "no main, no ,cma"),
    _Row(
        "cma-main-failed",
        NEW,
        "quarters",
        "crashkernel=256M,cma crashkernel=600M",
        "the main part finds no room, and ,cma is made all the same",
    ),
    # ---- ,cma carried out
    _Row("cma", NEWEST, "1G", "crashkernel=256M,cma crashkernel=128M", "below the reservation"),
    _Row("cma", WITH_CMA, "4G", "crashkernel=512M,cma crashkernel=128M", "from 4 GiB on"),
    _Row("cma", NEWEST, "12G", "crashkernel=4G,cma crashkernel=256M", "from 4 GiB on"),
    _Row("cma", NEWEST, "uefi-2G", "crashkernel=512M,cma crashkernel=128M", "under UEFI"),
    _Row("cma", NEWEST, "uefi-6G", "crashkernel=1G,cma crashkernel=128M", "under UEFI"),
    _Row("cma", NEWEST, "numa2-2G", "crashkernel=512M,cma crashkernel=128M", "two nodes"),
    _Row("cma", NEWEST, "numa4-6G", "crashkernel=2G,cma crashkernel=128M", "across nodes"),
    _Row("cma", NEWEST, "mem-1500M", "crashkernel=256M,cma crashkernel=128M", "RAM cut by mem="),
    _Row(
        "cma-high-low",
        NEWEST,
        "8G",
        "crashkernel=1G,cma crashkernel=512M,high crashkernel=64M,low",
        "all three kinds",
    ),
    _Row(
        "cma-two",
        WITH_CMA,
        "one-hole",
        "crashkernel=1200M,cma crashkernel=128M",
        "two ranges",
    ),
    _Row("cma-two", WITH_CMA, "6G", "crashkernel=3500M,cma crashkernel=128M", "above and below"),
    _Row("cma-three", WITH_CMA, "uneven", "crashkernel=1500M,cma crashkernel=128M", "three ranges"),
    _Row("cma-four", WITH_CMA, "quarters", "crashkernel=1100M,cma crashkernel=128M", "four ranges"),
    _Row(
        "cma-not-enough",
        WITH_CMA,
        "quarters",
        "crashkernel=1500M,cma crashkernel=128M",
        "four ranges are less than was asked for",
    ),
    _Row("cma-hole", NEWEST, "hole-8G", "crashkernel=2G,cma crashkernel=512M", "holes in both"),
    # not of 2 GiB: such a kernel then has no memory of its own and panics in cma_init_reserved_areas()
    _Row(
        "cma-over",
        WITH_CMA,
        "6G",
        "crashkernel=16G,cma crashkernel=128M",
        "more than RAM takes nearly all of it",
    ),
    _Row("cma-over", NEWEST, "12G", "crashkernel=11G,cma crashkernel=256M", "more than any piece"),
    _Row("cma-tiny", WITH_CMA, "2G", "crashkernel=100K,cma crashkernel=128M", "rounded to 2 MiB"),
    _Row("cma-tiny", NEWEST, "4G", "crashkernel=1,cma crashkernel=128M", "a byte"),
    _Row("cma-odd", NEWEST, "2G", "crashkernel=3M,cma crashkernel=128M", "rounded to 4 MiB"),
    _Row(
        "cma-zero",
        ("6.17", "7.3"),
        "2G",
        "crashkernel=0,cma crashkernel=128M",
        "nothing, no word of it",
    ),
    _Row(
        "cma-last-wins",
        NEWEST,
        "2G",
        "crashkernel=512M,cma crashkernel=128M crashkernel=64M,cma",
        "the last of a kind counts",
    ),
    # ---- ,cma misspelt
    _Row("cma-range", NEW, "2G", "crashkernel=1G-4G:300M,cma crashkernel=128M", "1G is taken"),
    _Row(
        "cma-at", WITH_CMA, "2G", "crashkernel=300M@16M,cma crashkernel=128M", "300M, and a warning"
    ),
    _Row(
        "cma-then-high", NEWEST, "2G", "crashkernel=128M crashkernel=512M,cma,high", "a ,high word"
    ),
    _Row(
        "cma-of-high", NEWEST, "2G", "crashkernel=128M crashkernel=512M,high,cma", "512M, a warning"
    ),
    _Row(
        "cma-more", NEWEST, "2G", "crashkernel=128M crashkernel=512M,cma,more", "a bad plain word"
    ),
    _Row("cma-upper", NEWEST, "2G", "crashkernel=128M crashkernel=512M,CMA", "a bad plain word"),
    _Row(
        "cma-nothing",
        ("6.17", "7.3"),
        "2G",
        "crashkernel=,cma crashkernel=128M",
        "no number, a warning",
    ),
    _Row(
        "cma-no-number", NEWEST, "2G", "crashkernel=half,cma crashkernel=128M", "no number either"
    ),
    _Row("cma-16E", NEW, "2G", "crashkernel=16E,cma crashkernel=128M", "wraps, or saturates"),
)
CASES = tuple(
    Case(f"{row.slug}-{row.host}-{kernel}", kernel, row.host, row.words, row.shows)
    for row in _TABLE
    for kernel in row.kernels
)


def choose(kernels: tuple[str, ...] = (), only: tuple[str, ...] = ()) -> tuple[Case, ...]:
    """The cases of some kernels, of those the ones with one of ``only`` in the name; empty: all.

    Raises:
        UsageError: there is none.

    """
    found = tuple(
        case
        for case in CASES
        if (not kernels or case.kernel in kernels)
        and (not only or any(part in case.name for part in only))
    )
    if not found:
        raise UsageError("no such case", ", ".join(only), hint="crashlend lab agree --list")
    return found
