# SPDX-License-Identifier: LGPL-2.1-or-later
"""Show what a kernel makes of crashkernel= words: on this host, on a memory map, on a size.

Without CMDLINE, what this host's own command line makes of its memory. Only the words crashkernel=,
mem=, memmap= and cma= play a part; the rest of a line may be left out.

--map reads a kernel log (lines BIOS-e820), /proc/iomem as root sees it, or lines START-END TYPE as
in /sys/firmware/memmap. Without --memory, --map and --root it is this host's memory; without
--kernel-version this host's kernel.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from crashlend.cli.drawing import draw_memory, memory_layers
from crashlend.cli.hosts import facts_from
from crashlend.cli.main import add_root, size_argument
from crashlend.cli.output import (
    BOLD,
    YELLOW,
    can_show,
    print_json,
    print_rows,
    printable,
    styled,
)
from crashlend.crashkernel.advice import Advice, advise
from crashlend.crashkernel.boot import BootMemory, Prediction, predict
from crashlend.crashkernel.early import MemoryMap, boot_memory, kernel_of, map_of_facts, map_of_size
from crashlend.crashkernel.generations import BootKernel, beyond_sources, kernel_for
from crashlend.crashkernel.maps import parse_map
from crashlend.crashkernel.words import Word, explain
from crashlend.errors import CrashlendError, UsageError
from crashlend.ranges import Ranges
from crashlend.sizes import mib

if TYPE_CHECKING:
    from crashlend.facts import Facts

KINDS = {
    "main": "kept for the crash kernel",
    "low": "kept for it below 4 GiB",
    "cma": "shared until the crash",
}
# The log of a machine with 100,000 entries has some 10 MiB.
LARGEST_MAP = 256 << 20
# An over-asked ,cma word can fill pages with one message.
MOST_LINES = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "cmdline",
        nargs="?",
        metavar="CMDLINE",
        help="a kernel command line, or its crashkernel= words alone, in quotes",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--memory",
        type=size_argument,
        metavar="SIZE",
        help="a typical machine with so much memory, such as 64G",
    )
    where.add_argument("--map", type=Path, metavar="FILE", help="a machine with this memory map")
    parser.add_argument(
        "--kernel-version", metavar="X.Y", help="Linux of this version in place of the host's"
    )
    parser.add_argument(
        "--no-config-cma", action="store_true", help="a kernel built without CONFIG_CMA"
    )
    add_root(parser)


def run(args: argparse.Namespace) -> int:
    asked = _Asked(args)
    line = asked.line()
    kernel, kernel_words = asked.kernel()
    found = asked.memory_map()
    doubt = beyond_sources(asked.version)
    if doubt:
        found = replace(found, assumptions=(doubt, *found.assumptions))
    memory = boot_memory(found, line, kernel)
    prediction = predict(memory, line, kernel)
    words = explain(line, kernel, prediction)
    advice = advise(memory, line, kernel, prediction)
    if args.json:
        print_json(prediction_json(prediction, words, advice, kernel, found))
        return 0
    _show(prediction, words, kernel, kernel_words, memory, found)
    _show_advice(prediction, advice)
    return 0


class _Asked:
    """What the arguments name; facts of a host are read only where they are needed."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self._facts: Optional[Facts] = None
        elsewhere = args.memory is not None or args.map is not None
        if elsewhere and args.kernel_version is not None and args.root != Path("/"):
            raise UsageError(
                "--root",
                "nothing is taken from it beside a memory and a kernel version",
                hint="leave one of the three out",
            )

    @property
    def facts(self) -> Facts:
        if self._facts is None:
            self._facts = facts_from(self.args)
        return self._facts

    @property
    def version(self) -> str:
        """Of the kernel, as far as it is known."""
        return self.args.kernel_version or self.facts.release

    def line(self) -> bytes:
        if self.args.cmdline is None:
            return self.facts.cmdline_bytes
        return os.fsencode(self.args.cmdline)

    def kernel(self) -> tuple[BootKernel, str]:
        config_cma = not self.args.no_config_cma
        if self.args.kernel_version is None:
            kernel, words = kernel_of(self.facts, config_cma=False if not config_cma else None)
            return kernel, f"{self.facts.release}, {kernel.arch}; {words}"
        elsewhere = self.args.memory is not None or self.args.map is not None
        arch = "x86_64" if elsewhere else self.facts.arch or "x86_64"
        kernel = kernel_for(self.args.kernel_version, arch, config_cma=config_cma)
        cma = f"CONFIG_CMA is {'taken to be on' if config_cma else 'off'}"
        words = f"knows ,cma; {cma}" if kernel.knows_cma else "does not know ,cma"
        return kernel, f"{self.args.kernel_version}, {kernel.arch}; {words}"

    def memory_map(self) -> MemoryMap:
        if self.args.memory is not None:
            return map_of_size(self.args.memory)
        if self.args.map is not None:
            return parse_map(_read(self.args.map), str(self.args.map))
        return map_of_facts(self.facts)


def _read(path: Path) -> bytes:
    with path.open("rb") as stream:
        data = stream.read(LARGEST_MAP + 1)
    if len(data) > LARGEST_MAP:
        raise CrashlendError(str(path), f"more than {mib(LARGEST_MAP)} is no memory map")
    return data


def prediction_json(
    prediction: Prediction,
    words: tuple[Word, ...],
    advice: Advice,
    kernel: BootKernel,
    found: MemoryMap,
) -> dict[str, object]:
    """The answer for programs, schema 1: addresses are integers, ranges half-open."""
    return {
        "schema": 1,
        "request": prediction.request.to_json(),
        "ranges": [r.to_json() for r in prediction.ranges],
        "production_loses_bytes": prediction.production_loses_bytes,
        "shared_bytes": prediction.shared_bytes,
        "crash_kernel_gets_bytes": sum(r.size for r in prediction.ranges),
        "messages": [m.to_json() for m in prediction.messages],
        "modelled": prediction.modelled,
        "words": [word.to_json() for word in words],
        "warnings": list(advice.warnings),
        "notes": list(advice.notes),
        "proposal": advice.proposal,
        "cheaper": advice.cheaper,
        "works_everywhere": advice.works_everywhere,
        "memory": {"bytes": prediction.ram_bytes, "assumptions": list(found.assumptions)},
        "kernel": {
            "arch": kernel.arch,
            "generation": kernel.generation.name,
            "knows_cma": kernel.knows_cma,
            "config_cma": kernel.config_cma,
        },
    }


def _show(
    prediction: Prediction,
    words: tuple[Word, ...],
    kernel: BootKernel,
    kernel_words: str,
    memory: BootMemory,
    found: MemoryMap,
) -> None:
    print_rows(
        [
            ("kernel", f"Linux {kernel_words}"),
            ("memory", mib(prediction.ram_bytes)),
            *(("" if index else "assumed", text) for index, text in enumerate(found.assumptions)),
        ]
    )
    if words:
        print(styled("\nWhat each word does", BOLD))
        print_rows([(f"  {_text(word.text)}", word.effect) for word in words])
    print(styled("\nWhat the kernel reserves", BOLD))
    if not prediction.modelled:
        print(f"  where {kernel.arch} places it is not modelled")
    else:
        _show_ranges(prediction, memory)
    if prediction.messages:
        print(styled("\nWhat dmesg will say", BOLD))
        lines = [message.text for message in prediction.messages]
        for text in lines[:MOST_LINES]:
            print(f"  {printable(text)}")
        if len(lines) > MOST_LINES:
            print(f"  … {len(lines) - MOST_LINES - 1} lines like these …")
            print(f"  {printable(lines[-1])}")


def _show_ranges(prediction: Prediction, memory: BootMemory) -> None:
    rows = [
        (f"  {r.start:#013x} - {r.end:#013x}", f"{mib(r.size):>10}  {KINDS[r.kind]}")
        for r in sorted(prediction.ranges, key=lambda r: r.start)
    ]
    print_rows(rows or [("  nothing", "")])
    if not prediction.ranges:
        return
    gets = prediction.production_loses_bytes + prediction.shared_bytes
    print()
    print_rows(
        [
            ("  taken from production", mib(prediction.production_loses_bytes)),
            ("  shared until the crash", mib(prediction.shared_bytes)),
            ("  the crash kernel gets", mib(gets)),
        ]
    )
    shared = Ranges((r.start, r.end) for r in prediction.of_kind("cma"))
    layers = memory_layers(memory.ram, shared, prediction.iomem)
    print()
    print("\n".join(draw_memory(layers, unicode=can_show("█"))))


def _show_advice(prediction: Prediction, advice: Advice) -> None:
    print()
    for text in advice.warnings:
        print(f"{styled('warning', YELLOW)}: {printable(text)}")
    for text in advice.notes:
        print(f"note: {printable(text)}")
    if not advice.works_everywhere or advice.warnings:
        if advice.proposal is not None:
            print(f"A line that works on every kernel: {advice.proposal}")
        return
    print("This line works on every kernel of this architecture.")
    if advice.cheaper is not None:
        loses = mib(prediction.production_loses_bytes)
        print(f"As much for the crash kernel, less than {loses} from production: {advice.cheaper}")


def _text(word: bytes) -> str:
    shown = printable(word.decode("utf-8", "backslashreplace"))
    return shown if len(shown) <= 60 else f"{shown[:59]}…"
