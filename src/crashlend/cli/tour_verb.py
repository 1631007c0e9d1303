# SPDX-License-Identifier: LGPL-2.1-or-later
"""Show the idea on packaged snapshots of real machines: no root, no QEMU, no network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crashlend.cli.drawing import draw_memory, memory_layers
from crashlend.cli.output import BOLD, can_show, print_json, print_rows, styled
from crashlend.cli.plan_verb import cost_rows
from crashlend.jsonable import to_json
from crashlend.sizes import mib
from crashlend.tour import NAMES, Stop, make_stop

if TYPE_CHECKING:
    import argparse

# a 64 GiB host must not fill a screen of its own
DRAWING_LINES = 6
# of the plan's rows those that carry the idea
SHOWN = (
    "taken from production",
    "needed in the reservation",
    "shared until the crash",
    "the crash kernel has",
)
INTRO = """\
When Linux panics, a second kernel, the crash kernel, boots in memory that was kept for it and saves
a dump. That memory is usually lost to production for good, and too small. Two words on the boot
line ask for a little memory of that kind, and for much that production uses until the crash:"""
OUTRO = """\
These are plans: no crash was run, and nothing of this machine was read or changed.
To see a real kernel crash in QEMU and save its dump this way: make demo, or crashlend lab demo
To plan for this machine: sudo crashlend plan"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", nargs="?", choices=NAMES, metavar="NAME", help=f"only one: {', '.join(NAMES)}"
    )
    parser.add_argument("--json", action="store_true", help="print JSON (schema 1)")


def run(args: argparse.Namespace) -> int:
    stops = [make_stop(name) for name in ((args.name,) if args.name else NAMES)]
    if args.json:
        print_json({"schema": 1, "crash_was_run": False, "hosts": [stop_json(s) for s in stops]})
        return 0
    print(INTRO)
    print(f"    {' '.join(stops[0].words)}")
    for stop in stops:
        print()
        _show(stop)
    print(f"\n{OUTRO}")
    return 0


def stop_json(stop: Stop) -> dict[str, object]:
    """One host of the tour for programs; ``plan`` is as ``crashlend plan --json`` prints it."""
    header = stop.core_header
    return {
        "name": stop.name,
        "title": stop.title,
        "release": stop.facts.release,
        "arch": stop.facts.arch,
        "memory_bytes": stop.ram.size,
        "cpus": len(stop.facts.crash_notes),
        "nodes": stop.nodes,
        "words": list(stop.words),
        "request": stop.request.to_json(),
        "plan": stop.plan.to_json(),
        "core_header": {
            "pt_loads": header.pt_loads,
            "notes": header.notes,
            "covered_bytes": header.covered.size,
            "left_out": to_json(header.left_out),
        },
    }


def _show(stop: Stop) -> None:
    facts, plan = stop.facts, stop.plan
    print(styled(f"{stop.name}: {stop.title}, Linux {facts.release}", BOLD))
    print_rows(
        [
            *_memory(stop),
            ("asked for", _request(stop)),
            ("who lends", _lender(stop)),
            *(row for row in cost_rows(plan) if row[0] in SHOWN),
            *_core_header(stop),
        ]
    )
    layers = memory_layers(stop.ram, plan.lent, plan.reservation)
    print("\n".join(draw_memory(layers, unicode=can_show("█"), max_lines=DRAWING_LINES)))


def _memory(stop: Stop) -> list[tuple[str, str]]:
    machine = f"{mib(stop.ram.size)}, {_count(len(stop.facts.crash_notes), 'CPU')}"
    if stop.nodes > 1:
        machine += f", {stop.nodes} NUMA nodes"
    rows = [("memory", machine)]
    largest = max(piece.size for piece in stop.ram)
    wanted = stop.request.size_bytes + stop.request.cma_bytes
    if largest < wanted:
        why = f"in pieces of at most {mib(largest)}"
        rows.append(("", f"{why}: crashkernel={wanted >> 20}M would fail"))
    return rows


def _request(stop: Stop) -> str:
    request = stop.request
    return f"{mib(request.size_bytes)} kept for the crash kernel, {mib(request.cma_bytes)} shared"


def _lender(stop: Stop) -> str:
    count = len(stop.plan.lent)
    if stop.plan.lender == "cma":
        return f"this kernel knows ,cma: it made {_count(count, 'range')}, which crashlend uses"
    blocks = stop.plan.lent.size // (stop.facts.block_bytes or 1)
    return (
        f"this kernel ignores ,cma: crashlend makes {_count(blocks, 'block')} of "
        f"{mib(stop.facts.block_bytes or 0)} movable"
    )


def _core_header(stop: Stop) -> list[tuple[str, str]]:
    header = stop.core_header
    return [
        (
            "the dump's core header",
            f"{_count(header.pt_loads, 'PT_LOAD')}: production's {mib(header.covered.size)};",
        ),
        ("", f"left out {mib(header.left_out.size)}: reservation, lent memory, first MiB"),
    ]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"
