# SPDX-License-Identifier: LGPL-2.1-or-later
"""``crashlend lab agree``: what ``predict`` says, against kernels that were booted."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from crashlend.cli.output import print_json, progress, write_file
from crashlend.cli.run_flags import add_run_flags
from crashlend.errors import EXIT_DONE, EXIT_FAILED, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crashlend.lab.agree.cases import Case
    from crashlend.lab.agree.record import Recorder

DIRECTORY = Path("build/agree")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``lab agree``."""
    parser.add_argument(
        "--kernel", action="append", default=[], metavar="NAME", help="these kernels' cases alone"
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="CASE", help="cases with this in their name"
    )
    parser.add_argument(
        "--resume", action="store_true", help="boot only what was not observed before"
    )
    parser.add_argument(
        "--no-boot", action="store_true", help="compare and report only what was observed before"
    )
    parser.add_argument("--list", action="store_true", help="list the cases, boot none")
    add_run_flags(parser, DIRECTORY, keeps="what each guest told, a file per boot")


def run(args: argparse.Namespace) -> int:
    """Boot, compare, report; exit code 1 where a case is not as predicted without a known reason."""
    from crashlend.lab.agree import report
    from crashlend.lab.agree.cases import KERNELS, choose
    from crashlend.lab.agree.compare import judge_all
    from crashlend.lab.agree.data import json_text
    from crashlend.lab.agree.record import Recorder, keep
    from crashlend.lab.kernels import fetch
    from crashlend.lab.records import machine_facts

    unknown = sorted(set(args.kernel) - set(KERNELS))
    if unknown:
        raise UsageError(f"no cases for {unknown[0]}", "", hint=f"there are {', '.join(KERNELS)}")
    cases = choose(tuple(args.kernel), tuple(args.only))
    if args.list:
        for case in cases:
            print(f"{case.name}: {case.words}  ({case.shows})")
        return EXIT_DONE
    kernels = {name: fetch(name, progress) for name in sorted({case.kernel for case in cases})}
    recorder = Recorder(args.output, kernels, args.jobs, progress)
    failed = {} if args.no_boot else _boot(args, recorder, cases)
    kept = keep(recorder, cases, machine_facts()["qemu"])
    verdicts = judge_all(kept)
    if args.data:
        write_file(args.data, json_text(kept).encode())
    if args.report:
        write_file(args.report, report.markdown(kept, verdicts).encode())
    if args.json:
        print_json(report.data(kept, verdicts, failed))
    else:
        for verdict in verdicts:
            if verdict.fails:
                print(report.complaint(verdict))
        for name, why in failed.items():
            print(f"{name}: not observed: {why}")
        print(", ".join(f"{key}: {number}" for key, number in report.counts(verdicts).items()))
    complete = args.no_boot or (not failed and len(verdicts) == len(cases))
    good = complete and verdicts and not any(v.fails for v in verdicts)
    return EXIT_DONE if good else EXIT_FAILED


def _boot(args: argparse.Namespace, recorder: Recorder, cases: Sequence[Case]) -> dict[str, str]:
    from crashlend.lab.agree.record import boots_of

    boots = boots_of(cases)
    wanted = [boot for boot in boots if not args.resume or recorder.load(boot) is None]
    if len(wanted) < len(boots):
        progress(f"{len(boots) - len(wanted)} of {len(boots)} boots were observed before")
    try:
        return recorder.record(wanted)
    except KeyboardInterrupt:
        progress("interrupted; the same command with --resume goes on")
        raise
