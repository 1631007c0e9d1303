# SPDX-License-Identifier: LGPL-2.1-or-later
"""``crashlend lab system``: an installed Debian with kdump-tools, crashed with crashlend and without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from crashlend.cli.output import GREEN, RED, progress, styled
from crashlend.errors import EXIT_DONE, EXIT_FAILED, UsageError

if TYPE_CHECKING:
    import argparse

    from crashlend.lab.suites.system import SystemTrial

CLONE = "git clone https://github.com/rhkdump/kdump-utils"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``lab system``."""
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="these trials alone (system-6.1 …)"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="write one NAME.json each there")
    parser.add_argument(
        "--kdump-utils",
        type=Path,
        metavar="DIR",
        help="a clone of rhkdump/kdump-utils; without it its trial is left out",
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep consoles and dumps")


def run(args: argparse.Namespace) -> int:
    """Crash each system and say what came of it."""
    from crashlend.lab.suites.system import SYSTEM

    unknown = set(args.names) - {trial.name for trial in SYSTEM}
    if unknown:
        known = ", ".join(trial.name for trial in SYSTEM)
        raise UsageError(f"no trial {sorted(unknown)[0]!r}", "not in the suite", hint=known)
    wanted = [trial for trial in SYSTEM if trial.name in (args.names or [trial.name])]
    if not args.kdump_utils:
        if args.names and any(trial.utils for trial in wanted):
            raise UsageError("kdump-utils' trial", "it takes --kdump-utils DIR", hint=CLONE)
        wanted = [trial for trial in wanted if not trial.utils]
    wrong = [trial.name for trial in wanted if not _passed(trial, args)]
    return EXIT_FAILED if wrong else EXIT_DONE


def _passed(trial: SystemTrial, args: argparse.Namespace) -> bool:
    from crashlend.lab.system.judge import run_system_trial

    keep = args.keep / trial.name if args.keep else None
    clone = args.kdump_utils if trial.utils else None
    verdict = run_system_trial(trial, clone=clone, keep=keep, say=progress)
    for check in verdict["checks"]:
        mark = styled("ok  ", GREEN) if check["ok"] else styled("no  ", RED)
        print(f"  {mark} {check['name']}: {check['detail']}")
    passed = bool(verdict["passed"])
    words = "as it must be" if passed else f"not as it must be: {verdict['why']}"
    print(f"{trial.name}: {words}")
    if args.data:
        args.data.mkdir(parents=True, exist_ok=True)
        (args.data / f"{trial.name}.json").write_text(json.dumps(verdict, indent=1) + "\n")
    return passed
