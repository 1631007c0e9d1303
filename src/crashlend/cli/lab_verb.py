# SPDX-License-Identifier: LGPL-2.1-or-later
"""Boot and crash real kernels in QEMU."""

from __future__ import annotations

import argparse
import platform
import sys
from pathlib import Path
from typing import Any

from crashlend.cli import (
    agree,
    bench,
    capture_bench,
    conform,
    judges,
    matrix,
    rehearse,
    soak,
    system,
)
from crashlend.cli.output import print_json, progress
from crashlend.cli.trial_flags import add_trial_flags, trial_spec
from crashlend.errors import EXIT_DONE, EXIT_FAILED, CrashlendError

# What runs many guests, each in a module of its own: add_arguments(parser), run(args) -> exit code.
RUNS: dict[str, tuple[Any, str]] = {
    "agree": (agree, "what predict says, against kernels that are booted"),
    "bench": (bench, "what kexec-tools and crashlend need, side by side"),
    "capture-bench": (
        capture_bench,
        "how quick a capture is, beside kdump-tools, by target, by threads",
    ),
    "conform": (conform, "does a kernel's ,cma do what upstream promises?"),
    "judges": (judges, "what crashlend loads beside what the kernel and kexec-tools load"),
    "matrix": (matrix, "a table of trials: kernels, lenders, firmware; here or on a cluster"),
    "rehearse": (rehearse, "this host's crash, played through in a QEMU guest that resembles it"),
    "soak": (soak, "random trials from a seed, each of which must go well"),
    "system": (system, "an installed Debian with kdump-tools, with crashlend and without"),
}
# those that boot some of their guests under UEFI
UEFI_RUNS = ("agree", "soak")
# those that may boot no guest here, and look for QEMU themselves where they do
ELSEWHERE = ("judges", "matrix", "rehearse")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    subs = parser.add_subparsers(metavar="WHAT", dest="what", required=True)

    demo = subs.add_parser("demo", help="the main trial and its control, side by side")
    demo.add_argument("--kernel", default="6.1", help="which kernel (see lab kernels)")
    demo.add_argument("--json", action="store_true", help="print JSON (schema 1)")
    demo.add_argument("--keep", type=Path, metavar="DIR", help="keep disks, consoles and dumps")

    trial = subs.add_parser("trial", help="one crash, from boot to verified vmcore")
    add_trial_flags(trial)

    for name, (module, words) in RUNS.items():
        text = f"{words[:1].upper()}{words[1:]}. Exit code: 0 when all is as it must be, else 1."
        module.add_arguments(subs.add_parser(name, help=words, description=text))

    kernels = subs.add_parser("kernels", help="which kernels there are; fetch one")
    kernels.add_argument("--json", action="store_true", help="print JSON (schema 1)")
    kernels.add_argument("--fetch", metavar="NAME", help="fetch and unpack this one")


def run(args: argparse.Namespace) -> int:
    if args.what == "rehearse" and args.status:  # on a host: it reads a file and boots nothing
        return rehearse.run(args)
    # the core runs on 3.9, the lab is for workstations (a tuple: mypy would take it for certain)
    if tuple(sys.version_info) < (3, 11):
        raise CrashlendError(
            "the lab needs Python 3.11",
            f"this is {platform.python_version()}",
            hint="all other verbs work with this one",
        )
    if args.what == "kernels":
        return _kernels(args)
    from crashlend.lab.firmware import find_ovmf
    from crashlend.lab.qemu import find_qemu

    if args.what not in ELSEWHERE:
        find_qemu()  # before anything is fetched
    firmware = args.firmware if args.what == "trial" else "bios"
    if args.what in UEFI_RUNS or firmware != "bios":
        find_ovmf(secure=firmware == "secure")
    if args.what == "demo":
        from crashlend.cli.demo import run_demo

        return run_demo(args)
    if args.what in RUNS:
        code: int = RUNS[args.what][0].run(args)
        return code
    from crashlend.cli.trials import announce, show_outcome
    from crashlend.lab.trial import run_trial

    spec = trial_spec(args)
    outcome = run_trial(spec, keep=args.keep, say=progress, on_event=announce)
    if args.json:
        print_json(outcome.to_json())
    else:
        show_outcome(outcome)
    return EXIT_DONE if outcome.ok else EXIT_FAILED


def _kernels(args: argparse.Namespace) -> int:
    from crashlend.lab.kernels import fetch, list_kernels

    if args.fetch:
        kernel = fetch(args.fetch, progress)
        if args.json:
            print_json({"schema": 1, "release": kernel.release, "vmlinuz": str(kernel.vmlinuz)})
        else:
            print(f"{args.fetch}: {kernel.release}, {kernel.vmlinuz}")
        return EXIT_DONE
    offers = list_kernels(progress)
    if args.json:
        print_json(
            {
                "schema": 1,
                "kernels": [
                    {
                        "name": o.name,
                        "suite": o.suite,
                        "package": o.package,
                        "version": o.version,
                        "fetched": o.fetched,
                    }
                    for o in offers
                ],
            }
        )
        return EXIT_DONE
    for o in offers:
        print(f"{o.name:<12} {o.suite:<18} {o.version:<24} {'here' if o.fetched else ''}")
    return EXIT_DONE
