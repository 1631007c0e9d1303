# SPDX-License-Identifier: LGPL-2.1-or-later
"""``crashlend lab judges``: what crashlend loads beside what the kernel and kexec-tools load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from crashlend.cli.output import GREEN, RED, print_json, progress, styled, write_file
from crashlend.errors import EXIT_DONE, EXIT_FAILED, UsageError

if TYPE_CHECKING:
    import argparse

    from crashlend.lab.judges.guests import Case, Reading
    from crashlend.lab.judges.verdict import Verdict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``lab judges``."""
    parser.add_argument(
        "--guest", action="append", metavar="NAME", help="this one alone (may be repeated)"
    )
    parser.add_argument("--kernel", metavar="NAME", help="guests of this kernel alone")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write docs/judges.md there")
    parser.add_argument("--data", type=Path, metavar="FILE", help="write all readings there")
    parser.add_argument(
        "--replay", type=Path, metavar="FILE", help="judge the readings kept there; boot nothing"
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep disks and consoles")
    parser.add_argument("--json", action="store_true", help="print JSON (schema 1)")


def run(args: argparse.Namespace) -> int:
    """Boot the guests, or take kept readings; compare, write and say what came of it."""
    from crashlend.lab.firmware import find_ovmf
    from crashlend.lab.judges.report import (
        json_text,
        machine_in,
        markdown,
        readings_from,
        verdicts,
    )
    from crashlend.lab.qemu import find_qemu
    from crashlend.lab.records import machine_facts

    cases = _cases(args)
    if args.replay:
        text = args.replay.read_text()
        wanted = {case.name for case in cases}
        readings = [reading for reading in readings_from(text) if reading.name in wanted]
        if not readings:
            raise UsageError(str(args.replay), "it has no reading of these guests")
        machine = machine_in(text)
    else:
        find_qemu()  # before anything is fetched
        find_ovmf()
        readings = [_read(args, case) for case in cases]
        machine = {k: v for k, v in machine_facts().items() if k in ("qemu", "accel", "cpu_model")}
    if args.data:
        write_file(args.data, json_text(readings, machine).encode())
    if args.report:
        write_file(args.report, markdown(readings).encode())
    found = verdicts(readings)
    if args.json:
        print_json({"schema": 1, "verdicts": [_summary(verdict) for verdict in found]})
    else:
        for verdict in found:
            _show(verdict)
    good = bool(found) and all(verdict.passed for verdict in found)
    return EXIT_DONE if good else EXIT_FAILED


def _cases(args: argparse.Namespace) -> list[Case]:
    from crashlend.lab.judges.guests import CASES

    names = [case.name for case in CASES]
    for name in args.guest or []:
        if name not in names:
            raise UsageError(
                f"no guest {name!r}", "the judges do not know it", hint=", ".join(names)
            )
    found = [
        case
        for case in CASES
        if (not args.guest or case.name in args.guest)
        and (not args.kernel or case.kernel == args.kernel)
    ]
    if not found:
        kernels = ", ".join(dict.fromkeys(case.kernel for case in CASES))
        raise UsageError("no such guest", f"none has the kernel {args.kernel!r}", hint=kernels)
    return found


def _read(args: argparse.Namespace, case: Case) -> Reading:
    from crashlend.lab.judges.guests import read_guest

    progress(f"{case.name}: {case.shows}")
    return read_guest(case, keep=args.keep / case.name if args.keep else None, say=progress)


def _summary(verdict: Verdict) -> dict[str, object]:
    return {
        "guest": verdict.guest,
        "judge": verdict.judge,
        "ok": verdict.passed,
        "equal": [finding.subject for finding in verdict.equal],
        "known": [finding.subject for finding, _ in verdict.known],
        "wrong": list(verdict.complaints()),
    }


def _show(verdict: Verdict) -> None:
    mark = styled("ok    ", GREEN) if verdict.passed else styled("FAILED", RED)
    print(
        f"  {mark} {verdict.guest}, {verdict.judge}: {len(verdict.equal)} subjects equal, "
        f"{len(verdict.known)} differ for a known reason"
    )
    for complaint in verdict.complaints():
        print(f"           {complaint}")
