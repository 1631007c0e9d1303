# SPDX-License-Identifier: LGPL-2.1-or-later
"""Measure how little memory the crash kernel needs, in a twin of this host (QEMU)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crashlend.cli.hosts import facts_from, settings_from
from crashlend.cli.main import size_argument
from crashlend.cli.output import print_json, print_rows, printable, progress
from crashlend.cli.run_flags import count
from crashlend.cli.twin_flags import add_twin_flags, demand_lab, twin_payload
from crashlend.errors import EXIT_DONE, EXIT_FAILED
from crashlend.sizes import MIB, mib

if TYPE_CHECKING:
    import argparse

    from crashlend.lab.twin.estimate import Estimate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_twin_flags(parser)
    parser.add_argument(
        "--jobs", type=count, default=1, metavar="J", help="probes at a time (default: 1)"
    )
    parser.add_argument(
        "--step",
        type=size_argument,
        default=2 * MIB,
        metavar="SIZE",
        help="how exact the answer is (default: 2M)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="look at each size once, and do not confirm the answer"
    )


def run(args: argparse.Namespace) -> int:
    demand_lab("estimate")
    from crashlend.lab.twin.estimate import Options, estimate, need_root

    settings = settings_from(args)
    facts = facts_from(args)
    need_root(facts)
    options = Options(
        jobs=args.jobs,
        timeout_seconds=args.timeout,
        memory_bytes=args.memory,
        step_bytes=args.step,
        confirm=1 if args.quick else 2,
        accel=args.accel,
        keep=args.keep,
    )
    payload = twin_payload(args, settings, facts, progress)
    found = estimate(facts, settings, payload, options, progress)
    if args.json:
        print_json(found.to_json())
    else:
        show_estimate(found)
    return EXIT_DONE if found.least_bytes is not None else EXIT_FAILED


def show_estimate(found: Estimate) -> None:
    """Print it for people: the answer, the probes, what to write, what is not as on the host."""
    if found.least_bytes is not None:
        print_rows(answer_rows(found))
    else:
        print(f"no estimate: {printable(found.why_not)}")
    if found.looks:
        print("\nprobes (the crash kernel's memory, and how its capture ended)")
        for look in found.looks:
            used = f", {mib(look.peak_used_bytes)} used" if look.peak_used_bytes else ""
            print(f"  {mib(look.memory_bytes):>10}  {printable(look.how)}{used}")
    if found.advice is not None:
        print(f"\nwrite on the kernel's command line\n  {found.advice.line}")
        for reason in found.advice.reasons:
            print(f"  {reason}")
    for change in found.changes:
        print(
            f"note: not as on the host: {change.what}: {printable(change.twin)} instead of "
            f"{printable(change.host)} ({change.why})"
        )


def answer_rows(found: Estimate) -> list[tuple[str, str]]:
    """The figures of an estimate that came to one."""
    whole, advice = found.whole, found.advice
    if found.least_bytes is None or whole is None or advice is None:
        return []
    fails = f"; with {mib(found.fails_at_bytes)} it is lost" if found.fails_at_bytes else ""
    rows = [
        ("least memory that saves the dump", f"{mib(found.least_bytes)}{fails}"),
        ("  must be in the reservation", mib(advice.required_bytes)),
        ("  may be lent", mib(advice.lent_bytes)),
    ]
    if found.scaled_bytes:
        words = (
            f"{mib(found.scaled_bytes)} more for makedumpfile's bitmaps of all the host's memory"
        )
        rows.insert(1, ("  the twin has less memory", words))
    if whole.peak_used_bytes is not None and whole.mem_total_bytes is not None:
        words = (
            f"{mib(whole.peak_used_bytes)} of {mib(whole.mem_total_bytes)}, with all that it gets"
        )
        rows.append(("most used by the capture", words))
    return rows
