# SPDX-License-Identifier: LGPL-2.1-or-later
"""Any bytes as command line and memory map: an answer, never a traceback (atheris, libFuzzer).

    make fuzz                            a minute
    .venv/bin/python tools/fuzz_cmdline.py -max_total_time=600 build/fuzz

An input's first byte chooses kernel, architecture and memory; the rest is the line. An odd second
byte makes the rest a memory map as text in place of that. What is checked is in :func:`check_line`.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["crashlend"]):
    from crashlend.crashkernel.advice import advise
    from crashlend.crashkernel.boot import BootMemory, predict
    from crashlend.crashkernel.early import boot_memory, map_of_size
    from crashlend.crashkernel.generations import ROWS, BootKernel, every_kernel
    from crashlend.crashkernel.maps import parse_map
    from crashlend.crashkernel.words import explain
    from crashlend.errors import FormatError
    from crashlend.formats.cmdline import split
    from crashlend.ranges import Ranges

KERNELS = [span.kernel for arch in ROWS for span in every_kernel(arch)]
SIZES = (256 << 20, 2 << 30, 8 << 30, 1 << 40)
PIECES = b"crashkernel="


def one_input(data: bytes) -> None:
    """What libFuzzer calls."""
    if len(data) < 2:
        return
    kernel, size = KERNELS[data[0] % len(KERNELS)], SIZES[data[0] // 64]
    rest = data[2:]
    if data[1] & 1:
        try:
            found = parse_map(rest)
        except FormatError:
            return
        check_line(boot_memory(found, b"", kernel), b"crashkernel=64M crashkernel=1G,cma", kernel)
        return
    for line in (rest, PIECES + rest):
        check_line(boot_memory(map_of_size(size), line, kernel), line, kernel)


def check_line(memory: BootMemory, line: bytes, kernel: BootKernel) -> None:
    """Predict, explain, advise; raise where an answer is unsound."""
    got = predict(memory, line, kernel)
    words = explain(line, kernel, got)
    advice = advise(memory, line, kernel, got)
    split(line)
    taken = Ranges((r.start, r.end) for r in got.ranges)
    if taken.size != sum(r.size for r in got.ranges):
        raise AssertionError(f"ranges overlap: {got.ranges}")
    if not (memory.ram - memory.reserved).covers(taken):
        raise AssertionError(f"something is reserved that was not free: {got.ranges}")
    if got.ranges and not got.request.accepted:
        raise AssertionError("ranges of a request that was refused")
    if not all(m.text.isprintable() for m in got.messages):
        raise AssertionError(f"a message that no log shows so: {got.messages}")
    if len(words) > len(line) // len(PIECES) or (advice.works_everywhere and not words):
        raise AssertionError(f"words that are not in the line: {words}")


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
