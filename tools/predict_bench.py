# SPDX-License-Identifier: LGPL-2.1-or-later
"""How fast predictions are, and how their time grows with the memory map; prints a page.

CPU time of one core, so that a busy machine does not count. Writes docs/predict-speed.md:
``make predictions``.
"""

from __future__ import annotations

import platform
import time
from typing import TYPE_CHECKING, Callable

from crashlend.crashkernel.boot import BootMemory, predict
from crashlend.crashkernel.early import boot_memory, map_of_size
from crashlend.crashkernel.generations import kernel_for
from crashlend.crashkernel.maps import parse_map
from crashlend.ranges import Ranges

if TYPE_CHECKING:
    from crashlend.crashkernel.early import MemoryMap

M, G = 1 << 20, 1 << 30
SECONDS = 1.0
LINES = {
    "`1G,cma` and `256M`": b"ro quiet crashkernel=1G,cma crashkernel=256M root=/dev/vda1",
    "`256M,high` and `1G,cma`": b"crashkernel=256M,high crashkernel=1G,cma",
    "`1T,cma` and `128M`: over-asked": b"crashkernel=1T,cma crashkernel=128M",
    "a bad word": b"crashkernel=256MB",
}
ENTRIES = (100, 1_000, 10_000, 100_000)
TARGET = 2_000


def per_call(call: Callable[[], object], seconds: float = SECONDS) -> float:
    """CPU seconds of one call, over at least ``seconds`` of them."""
    count, start = 0, time.process_time()
    while (spent := time.process_time() - start) < seconds or not count:
        call()
        count += 1
    return spent / count


def scattered(entries: int) -> bytes:
    """A map of ``entries`` pieces of RAM of 2 MiB, and 2 GiB whole at the top."""
    lines = [f"{n * 4 * M:#x}-{n * 4 * M + 2 * M - 1:#x} System RAM" for n in range(1, entries)]
    lines.append(f"{1 << 41:#x}-{(1 << 41) + 2 * G - 1:#x} System RAM")
    return "\n".join(lines).encode()


def main() -> None:
    """Print the page."""
    print("# How fast predictions are\n")
    print("One core's CPU time; `make predictions` wrote this page", end=" ")
    print(f"(Python {platform.python_version()}, {_cpu()}).\n")
    print("A typical machine of 64 GiB, from the command line to ranges and messages:\n")
    print("| words | 6.1 | 7.3 |\n|---|---|---|")
    slowest = 0.0
    for name, line in LINES.items():
        cells = []
        for version in ("6.1", "7.3"):
            kernel = kernel_for(version)
            memory = boot_memory(map_of_size(64 * G), line, kernel)
            spent = per_call(lambda m=memory, k=kernel, w=line: predict(m, w, k))  # type: ignore[misc]
            slowest = max(slowest, spent)
            cells.append(f"{1 / spent:,.0f}/s")
        print(f"| {name} | {' | '.join(cells)} |")
    verdict = "held" if slowest * TARGET < 1 else "missed"
    print(f"\nAsked for: {TARGET:,} per second, {verdict} by the slowest row.\n")
    print("Growth with the map: pieces of 2 MiB, words `1G,cma` and `256M,high`, Linux 7.3.")
    print('"New" is a prediction on memory that was not predicted on before.\n')
    print("| entries | read the map | early boot | new | again | µs per entry, all |")
    print("|---|---|---|---|---|---|")
    for entries in ENTRIES:
        print(growth_row(entries))


def growth_row(entries: int) -> str:
    """A row of the table of growth."""
    kernel, line = kernel_for("7.3"), b"crashkernel=256M,high crashkernel=0,low crashkernel=1G,cma"
    text = scattered(entries)
    found: MemoryMap = parse_map(text)
    memory = boot_memory(found, line, kernel)
    if len(predict(memory, line, kernel).ranges) != 2:
        raise SystemExit("the map does not hold what is asked for: the bench would measure nothing")
    read = per_call(lambda: parse_map(text))
    early = per_call(lambda: boot_memory(found, line, kernel))
    new = per_call(lambda: predict(_fresh(memory), line, kernel))
    again = per_call(lambda: predict(memory, line, kernel))
    cells = [f"{seconds * 1000:,.2f} ms" for seconds in (read, early, new, again)]
    return f"| {entries:,} | {' | '.join(cells)} | {(read + early + new) / entries * 1e6:.1f} |"


def _fresh(memory: BootMemory) -> BootMemory:
    """The same memory, with nothing computed yet."""
    return BootMemory(Ranges(memory.ram), Ranges(memory.reserved), memory.boundaries)


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as stream:
            names = [
                line.split(":", 1)[1].strip() for line in stream if line.startswith("model name")
            ]
    except OSError:
        names = []
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
