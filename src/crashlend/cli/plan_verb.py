# SPDX-License-Identifier: LGPL-2.1-or-later
"""Show what load would do, what it costs, and the exact bytes needed."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from crashlend import config
from crashlend.arch import for_machine
from crashlend.cli.census_table import census_json, census_lines
from crashlend.cli.drawing import draw_memory, memory_layers
from crashlend.cli.hosts import CAPTURE, LENDING, PAYLOAD, facts_from, files_if_any, settings_from
from crashlend.cli.main import add_root
from crashlend.cli.output import can_show, print_json, print_rows, printable, progress
from crashlend.facts.pages import PAGE_FLAGS
from crashlend.plan import make_plan
from crashlend.ranges import Ranges
from crashlend.sizes import mib

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from crashlend.facts import Facts
    from crashlend.formats.cmdline import CrashCmdline
    from crashlend.formats.cmdline_words import Reasoned
    from crashlend.plan import Plan


ON_MISMATCH = {
    "reset": "the machine is reset, the reason on its serial console",
    "boot": "the crash kernel boots all the same (setting on_mismatch)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_root(parser)
    parser.add_argument(
        "--census", action="store_true", help="look at what the pages of memory hold (root)"
    )
    parser.add_argument("--verbose", "-v", action="store_true", help="also every segment and range")
    config.add_flags(parser, (*LENDING, *PAYLOAD, *CAPTURE))


def run(args: argparse.Namespace) -> int:
    settings = settings_from(args)
    facts = facts_from(args, census=args.census)
    say = progress if sys.stderr.isatty() else _silent
    files, why_not = files_if_any(args, settings, facts.release, say)
    plan = make_plan(facts, settings, files.payload if files else None)
    if plan.incomplete == "no kernel image was given" and why_not:
        plan = replace(plan, incomplete=why_not)
    census = bool(args.census and facts.block_census)
    if args.json:
        extra = {"census": census_json(plan, facts)} if census else {}
        print_json({**plan.to_json(), **extra})
        return 0
    show_plan(plan, facts, verbose=args.verbose)
    if census:
        print("\n" + "\n".join(census_lines(plan, facts, verbose=args.verbose)))
    elif args.census:
        why = facts.missing.get(PAGE_FLAGS, "this snapshot was taken without --census")
        print(f"note: there is no census: {why}")
    return 0


def _silent(_message: str) -> None:
    pass


def show_plan(plan: Plan, facts: Facts, *, verbose: bool = False) -> None:
    """Print the plan for people: costs first, then memory, words, then what is special."""
    print_rows(cost_rows(plan))
    print()
    lines = draw_memory(
        memory_layers(known_ram(facts), plan.lent, plan.reservation), unicode=can_show("█")
    )
    print("\n".join(lines))
    if plan.cmdline is not None:
        print("\n" + "\n".join(cmdline_lines(plan.cmdline)) + "\n")
    notes = list(plan.notes)
    if plan.incomplete:
        label = "a coarse plan" if not facts.iomem else "not planned to the byte"
        notes.append(f"this is {label}: {plan.incomplete}")
        if not facts.iomem:
            notes.append("for the whole one: sudo crashlend plan")
    for note in notes:
        print(f"note: {note}")
    if verbose:
        _show_details(plan)
        _show_bus_masters(plan, facts)


def cmdline_lines(cmdline: CrashCmdline) -> list[str]:
    """The crash kernel's command line, and what became of production's words, by reason."""
    length = len(cmdline.encode())
    out = [f"the crash kernel's command line ({length} bytes, {cmdline.limit_bytes} at most)"]
    out.append(f"  {printable(cmdline.line)}")
    kept, dropped = len(cmdline.kept), len(cmdline.dropped)
    out.append(f"of production's {kept + dropped} words {kept} are kept, {dropped} dropped")
    out += _by_reason(cmdline.dropped)
    return [*out, "added", *_by_reason(cmdline.added)]


def _by_reason(words: Sequence[Reasoned]) -> list[str]:
    """Each reason once, behind the words that it is for."""
    found: dict[str, list[str]] = {}
    for word, reason in words:
        found.setdefault(reason, []).append(printable(word))
    return [f"  {' '.join(same)}: {reason}" for reason, same in found.items()]


def cost_rows(plan: Plan) -> list[tuple[str, str]]:
    """What each side has, in the design's words."""
    costs = plan.costs
    asked = f" of {mib(plan.offer.asked_bytes)} asked" if plan.offer.asked_bytes else ""
    rows = [
        ("taken from production", f"{mib(costs.taken_bytes)} (the reservation)"),
        (
            "shared until the crash",
            f"{mib(costs.shared_bytes)}{asked}, lender {plan.lender}, "
            f"{len(plan.lent)} range{'s' if len(plan.lent) != 1 else ''}",
        ),
    ]
    if costs.crash_kernel_bytes is not None:
        low = costs.crash_kernel_low_bytes or 0
        rows.append(
            ("the crash kernel has", f"{mib(costs.crash_kernel_bytes)}, {mib(low)} below 4 GiB")
        )
    if costs.required_bytes is not None:
        rows.append(
            (
                "needed in the reservation",
                f"{mib(costs.required_bytes)} ({costs.required_bytes} bytes)",
            )
        )
    if plan.layout is not None:
        where = {
            "reserved": "in the reservation",
            "lent": f"in lent memory, at {plan.layout.kernel_runs_at:#x}, copied after the wait",
        }
        reason = plan.layout.placement_reason
        rows.append(("the crash kernel runs", f"{where[plan.layout.placement]}: {reason}"))
    rows.append(("loaded by", "kexec_file_load" if plan.syscall == "file" else "kexec_load"))
    rows.append(("waits for DMA", plan.quiesce.in_words()))
    if plan.syscall == "load":
        rows.append(("if the image is damaged", ON_MISMATCH[plan.on_mismatch]))
    return rows


def known_ram(facts: Facts) -> Ranges:
    """RAM as far as it is known: /proc/iomem, else whole memory blocks that are online."""
    if facts.iomem:
        found: Ranges = for_machine(facts.arch).system_ram(facts)
        return found
    size = facts.block_bytes or 0
    return Ranges(
        (b.index * size, (b.index + 1) * size) for b in facts.blocks if b.state == "online"
    )


def _show_bus_masters(plan: Plan, facts: Facts) -> None:
    """The functions that purgatory switches off, in its order."""
    if plan.quiesce.bus_masters:
        print("\nfunctions whose bus mastering is switched off")
    known = {one.address: one for one in facts.pci_functions}
    for address in plan.quiesce.bus_masters:
        one = known[address]
        now = {True: "on now", False: "off now", None: "not known now"}[one.bus_master]
        print(f"  {address}  class {one.class_code:06x}  {one.driver or 'no driver'}, {now}")


def _show_details(plan: Plan) -> None:
    print("\nlent ranges")
    for part in plan.offer.parts:
        for r in part.lent:
            print(f"  {r.start:#014x} - {r.end:#014x}  {mib(r.size)} ({part.lender})")
    if plan.layout is not None:
        print("\nsegments in the reservation")
        for s in plan.layout.segments:
            print(f"  {s.start:#014x} - {s.end:#014x}  {s.name:<12} {s.stored_bytes} bytes stored")
        print(f"  and {plan.layout.control_pages} pages for the kernel's own use, from the bottom")
        print("\nthe crash kernel's memory map")
        for e in plan.layout.memory_map:
            print(f"  {e.start:#014x} - {e.end:#014x}  {e.kind}")
        print("\nprogram headers of /proc/vmcore")
        for h in plan.layout.program_headers:
            kind = {1: "LOAD", 4: "NOTE"}[h.type]
            print(f"  {h.phys:#014x} - {h.end:#014x}  {kind} at {h.virt:#x}")
    for passed in plan.offer.passed_over:
        print(f"memory block {passed.index} is passed over: {passed.reason}")
