# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a makedumpfile can do, and whether it is too old for the crash kernel. Pure.

makedumpfile reads the kernel's own structures. Where it is older than the kernel it says "The kernel
version is not supported" and goes on: pages that it can't tell apart are in the dump, which is then
many times larger, or, worse, are missing from it. All of that is known before the crash.

What it was built with stands in the program itself, as text: there is no need to run it, and the
program of another host or of a guest can be read as well.
"""

from __future__ import annotations

import re
from typing import NamedTuple, Optional

# show_version() in print_info.c: the strings are whole in the program. zstd is not named before 1.7.0.
_VERSION = re.compile(rb"makedumpfile: version ([0-9][0-9.]{1,15}\+{0,2}) \(released on")
_BUILT_IN = re.compile(rb"\n?(lzo|snappy|zstd)\tenabled\n")
PATHS = ("usr/bin/makedumpfile", "usr/sbin/makedumpfile", "sbin/makedumpfile")
# Compressions, the fastest capture first (docs/capture-speed.md): name, its flag.
FLAGS = {"zstd": "-z", "lzo": "-l", "snappy": "-p", "zlib": "-c"}
# With --num-threads, makedumpfile before 1.7.8 may write pages that are not what memory held: a data
# race between the threads, fixed by its commit 65bf4c9 ("Fix a data race in multi-threading mode").
THREADS_SINCE = (1, 7, 8)


class Features(NamedTuple):
    """A makedumpfile's version ("" when not known) and its compressions, in the order of FLAGS."""

    version: str
    compressions: tuple[str, ...]

    @property
    def flags(self) -> tuple[str, ...]:
        """The compressions as its options, the best first."""
        return tuple(FLAGS[name] for name in self.compressions)

    @property
    def threads(self) -> bool:
        """Whether --num-threads is safe; makedumpfile_probe.find_threads tells if it can be had."""
        return number(self.version) >= THREADS_SINCE


class Release(NamedTuple):
    """A makedumpfile and the newest kernel that it was made for (LATEST_VERSION in makedumpfile.h)."""

    version: str
    kernel: str
    commit: str


class Harm(NamedTuple):
    """What goes wrong with kernels from ``kernel`` on, before a makedumpfile of version ``fixed``.

    ``commit`` is makedumpfile's own that mends it. ``lossy``: the dump lacks what it should have.
    """

    kernel: str
    fixed: str
    commit: str
    what: str
    lossy: bool = False


# From the history of https://github.com/makedumpfile/makedumpfile, the commits "[v…] Update version".
RELEASES = (
    Release("1.6.7", "5.4.8", "e730165"),
    Release("1.6.8", "5.9.4", "18e0cdb"),
    Release("1.6.9", "5.12.1", "a9ad811"),
    Release("1.7.0", "5.15.0", "06ef8e2"),
    Release("1.7.1", "5.17.1", "74bbdd1"),
    Release("1.7.2", "6.0.1", "9fefc68"),
    Release("1.7.3", "6.3.0", "ecc9355"),
    Release("1.7.4", "6.6.0", "3bc3b3e"),
    Release("1.7.5", "6.8.4", "c266469"),
    Release("1.7.6", "6.11.4", "97a8948"),
    Release("1.7.7", "6.14.2", "e4ae6b5"),
    Release("1.7.8", "6.17.4", "65e0b54"),
    Release("1.7.9", "7.0.0", "eb42d63"),
)
# The same history: commits whose message says "Required for kernel …". The version is the first with it;
# 1.8.0 was being made in June 2026.
HARMS = (
    Harm(
        "6.2", "1.7.3", "5f17bdd", "may leave out slab pages, without which dumps don't open", True
    ),
    Harm("6.3", "1.7.3", "446c4f6", "can't leave out compound pages: dumps are larger"),
    Harm("6.6", "1.7.4", "9661c1d", "can't leave out compound pages: dumps are larger"),
    Harm("6.9", "1.7.6", "985e575", "can't leave out huge pages: dumps are larger by all of them"),
    Harm(
        "6.10", "1.7.6", "bad2a7c", "may leave out slab pages, without which dumps don't open", True
    ),
    Harm(
        "6.12",
        "1.7.7",
        "72c3414",
        "can't leave out free pages: dumps are as large as memory, and take so much longer",
    ),
    Harm("7.1", "1.8.0", "f50c015", "may leave out compound tail pages that the kernel uses", True),
)


def read_features(program: bytes) -> Features:
    """What the program ``program`` (its file) says of itself.

    One that does not name its version (a wrapper, say) may have every compression: the capture tries
    them in turn, and takes the first that works.
    """
    version = _VERSION.search(program)
    if version is None:
        return Features("", tuple(FLAGS))
    built_in = {match.decode() for match in _BUILT_IN.findall(program)}
    have = tuple(name for name in FLAGS if name == "zlib" or name in built_in)
    return Features(version[1].decode(), have)


def number(version: str) -> tuple[int, ...]:
    """The numbers that a version or a kernel's release begins with: "6.1.0-56-amd64" is (6, 1, 0).

    "1.7.9++", which stands for what came after 1.7.9 and before the next, is (1, 7, 9).
    """
    found = re.match(r"[0-9]{1,6}(\.[0-9]{1,6}){0,3}", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def newest_kernel(version: str) -> str:
    """The newest kernel that a makedumpfile of this version was made for; "" when not known."""
    known = [release for release in RELEASES if number(release.version) <= number(version)]
    if not known or number(version) > number(RELEASES[-1].version):
        return ""
    return known[-1].kernel


def needed_for(release: str) -> str:
    """The first makedumpfile that was made for the kernel ``release``; "" when none is known."""
    kernel = _padded(release)
    return next((r.version for r in RELEASES if _padded(r.kernel) >= kernel), "")


def harms(version: str, release: str) -> tuple[Harm, ...]:
    """What is known to go wrong with a makedumpfile of ``version`` on the kernel ``release``."""
    if not version:
        return ()
    kernel = number(release)
    return tuple(
        harm
        for harm in HARMS
        if kernel >= number(harm.kernel) and number(version) < number(harm.fixed)
    )


def notes(features: Features, release: str, supported: Optional[bool]) -> tuple[str, ...]:
    """What people must know before the crash; empty when makedumpfile is new enough.

    ``supported`` is what makedumpfile itself said of the kernel ``release``, None when it could not be
    asked: then the table of :data:`RELEASES` answers.
    """
    known = newest_kernel(features.version)
    if supported is None:
        supported = not known or number(release) <= _padded(known)
        says = "is older than"
    else:
        says = "says that it does not support"
    found = harms(features.version, release)
    if supported and not found:
        return ()
    mine = f"makedumpfile {features.version}".strip()
    if not found:
        since = needed_for(release)
        newer = f"; {since} knows it" if since else "; no release that does was known in May 2026"
        upto = f" (it was made for kernels up to {known})" if known else ""
        return (
            f"{mine} {says} the crash kernel {release}{upto}{newer}. Nothing is known to go wrong "
            "with this pair; try a dump",
        )
    worst = [harm for harm in found if harm.lossy] or list(found)
    needed = max((harm.fixed for harm in found), key=number)
    what = "; it ".join(dict.fromkeys(harm.what for harm in worst))
    commits = ", ".join(harm.commit for harm in found)
    return (
        f"{mine} is too old for the crash kernel {release}: it {what}. Install {needed} or newer, "
        f"or one to which your distribution has added the mending commits ({commits})",
    )


def variables(features: Features, *, threads: bool, library: str = "") -> dict[str, str]:
    """What the capture is told, as shell variables: the compressions to try, and about threads.

    ``library`` is the path of what ``threads`` take besides.
    """
    return {
        "COMPRESSIONS": " ".join(features.flags),
        "THREADS": "auto" if threads else "0",
        "THREAD_LIBRARY": library,
    }


def _padded(text: str) -> tuple[int, ...]:
    """Three numbers, for comparing kernels: 6.8 is (6, 8, 0)."""
    return (*number(text), 0, 0, 0)[:3]
