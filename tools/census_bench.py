# SPDX-License-Identifier: LGPL-2.1-or-later
"""Measures how much memory per second the census looks at; prints docs/census-speed.md.

``make census`` runs it. Run as root it also reads this host's own /proc/kpageflags.
"""

from __future__ import annotations

import platform
import random
import re
import struct
import sys
import time
from pathlib import Path
from typing import Callable

from crashlend.hostfiles import TreeFiles
from crashlend.lenders.census import ENTRY_BYTES, KPF, PAGE, clean_runs, count_kinds, unfit_units
from crashlend.sizes import GIB

BLOCK_PAGES = 128 * (1 << 20) // PAGE
GIB_PAGES = GIB // PAGE
REPEATS = 5
LRU, ANON, BUDDY, SLAB = (1 << KPF[name] for name in ("LRU", "ANON", "BUDDY", "SLAB"))
# what file pages and anonymous pages look like besides: REFERENCED, UPTODATE, ACTIVE, MMAP …
FILE = [LRU | bits for bits in (0x08, 0x0C, 0x48, 0x4C, 0x808, 0x80C, 0x84C, 0x18, 0x200000008)]
ANONYMOUS = [LRU | ANON | bits for bits in (0x4808, 0x480C, 0x5848, 0x404C08)]


def packed(flags: list[int]) -> bytes:
    """The flags as the kernel gives them."""
    return struct.pack(f"={len(flags)}Q", *flags)


def free() -> bytes:
    """A GiB of free memory."""
    return packed([BUDDY]) * GIB_PAGES


def in_use(rng: random.Random) -> bytes:
    """A GiB in use: runs of file pages, anonymous memory, free memory and slab."""
    flags: list[int] = []
    while len(flags) < GIB_PAGES:
        kind = rng.choices((FILE, ANONYMOUS, [BUDDY], [SLAB], [0]), (40, 30, 20, 5, 5))[0]
        flags += [rng.choice(kind)] * rng.choice((1, 1, 1, 2, 4, 8, 32, 200))
    return packed(flags[:GIB_PAGES])


def every_page_another(rng: random.Random) -> bytes:
    """A GiB in which each page has random values of all 64 flags: no kernel has such."""
    return packed([rng.getrandbits(64) for _ in range(GIB_PAGES)])


def seconds(work: Callable[[bytes], object], data: bytes) -> float:
    """The best of some runs over the data, a memory block at a time as the facts do."""
    best = float("inf")
    size = BLOCK_PAGES * ENTRY_BYTES
    for _ in range(REPEATS):
        begin = time.process_time()
        for at in range(0, len(data), size):
            work(data[at : at + size])
        best = min(best, time.process_time() - begin)
    return best


def own_flags() -> tuple[bytes, float]:
    """The flags of this host's System RAM and the seconds that reading them took."""
    iomem = Path("/proc/iomem").read_text()
    found = re.findall(r"(?m)^([0-9a-f]+)-([0-9a-f]+) : System RAM", iomem)
    ram = [(int(start, 16) // PAGE, (int(end, 16) + 1) // PAGE) for start, end in found]
    if not any(end > 1 for _, end in ram):
        raise PermissionError("the kernel hides addresses")
    files, parts = TreeFiles(Path("/")), []
    begin = time.process_time()
    for first, last in ram:
        for at in range(first, last, BLOCK_PAGES):
            pages = min(BLOCK_PAGES, last - at)
            parts.append(
                files.read("/proc/kpageflags", pages * ENTRY_BYTES, offset=at * ENTRY_BYTES)
            )
    spent = time.process_time() - begin
    return b"".join(parts), spent


def row(name: str, data: bytes, read_seconds: float | None = None) -> str:
    """One line of the table: GiB of memory per second."""
    gib = len(data) / ENTRY_BYTES * PAGE / GIB
    spent = [
        seconds(work, data)
        for work in (
            count_kinds,
            lambda flags: clean_runs(flags, 0),
            lambda flags: unfit_units(flags, 0),
        )
    ]
    cells = [f"{gib / each:.0f}" for each in spent]
    if read_seconds is None:
        cells += ["", ""]
    else:
        cells += [f"{gib / read_seconds:.0f}", f"{gib / (read_seconds + spent[0]):.0f}"]
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Print the document."""
    rng = random.Random(4)
    model = re.search(r"(?m)^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text())
    print("# How fast the census is\n")
    print(
        "GiB of memory per second of CPU time, the best of "
        f"{REPEATS}, by `make census` on {model.group(1) if model else 'this processor'} with "
        f"Python {platform.python_version()}. "
        "An entry of /proc/kpageflags is 8 bytes per page of 4 KiB: 2 MiB per GiB.\n"
    )
    print("| memory | count by kind | find clean runs | find unfit units | read | read and count |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    print(row("free", free()))
    print(row("in use: small runs of file, anonymous, free, slab pages", in_use(rng)))
    print(row("adversarial: 64 random flags on each page", every_page_another(rng)))
    try:
        data, spent = own_flags()
    except OSError as error:
        print(f"this host's own was not read: {error}", file=sys.stderr)
        return
    gib = len(data) / ENTRY_BYTES * PAGE / GIB
    print(row(f"this host's own, {gib:.0f} GiB ({platform.release().split('-')[0]})", data, spent))


if __name__ == "__main__":
    main()
