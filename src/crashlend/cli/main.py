# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command line: one sub-command per verb, each in a module of its own."""

from __future__ import annotations

import argparse
import io
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from crashlend import __version__
from crashlend.cli.output import complain
from crashlend.errors import EXIT_FAILED, EXIT_USAGE, CrashlendError, Terminated
from crashlend.sizes import parse_size

if TYPE_CHECKING:
    from collections.abc import Sequence

VERBS = (
    "plan",
    "load",
    "unload",
    "reload",
    "status",
    "kexec",
    "snapshot",
    "predict",
    "estimate",
    "initramfs",
    "config",
    "dumps",
    "tour",
    "lab",
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Usage errors look like all others: what, why, hint."""
        complain(self.prog.split()[0], message, f"see {self.prog} --help")
        raise SystemExit(EXIT_USAGE)


def make_parser(verb: str = "") -> argparse.ArgumentParser:
    """The parser; verb modules add their own arguments. With ``verb``, only that one is read."""
    parser = _Parser(
        prog="crashlend",
        description="Give the kdump crash kernel gigabytes; take only a few MiB from production.",
        epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 not loaded, 4 unknown, 10 done but a "
        "reboot is needed, 11 refused by policy.",
    )
    parser.add_argument("--version", action="version", version=f"crashlend {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", dest="verb", required=True)
    for name in (verb,) if verb in VERBS else VERBS:
        module = import_module(f"crashlend.cli.{name}_verb")
        words = (module.__doc__ or "").strip().splitlines()[0]
        sub = verbs.add_parser(
            name,
            help=words[:1].lower() + words[1:].rstrip("."),
            description=module.__doc__,
            **getattr(module, "PARSER", {}),
        )
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    return parser


def add_root(parser: argparse.ArgumentParser) -> None:
    """The flags that every reading verb has."""
    parser.add_argument("--json", action="store_true", help="print JSON (schema 1)")
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("/"),
        metavar="DIR",
        help="read a snapshot (file or unpacked) instead of this host",
    )


def size_argument(text: str) -> int:
    """A size with K, M, G or T, for argparse."""
    try:
        return parse_size(text)
    except CrashlendError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code. All errors of crashlend's own end here."""
    argv = sys.argv[1:] if argv is None else argv
    args = make_parser(argv[0] if argv else "").parse_args(argv)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except CrashlendError as error:
        complain("crashlend", str(error), error.hint)
        return error.exit_code
    except KeyboardInterrupt:
        complain("crashlend", "interrupted", "")
        return 130
    except Terminated as signal_number:
        complain("crashlend", "ended by a signal", "what it had begun is put right")
        return 128 + int(signal_number.args[0])
    except BrokenPipeError:
        # the reader went away (head, less): not our error, and nothing more can be said
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        hint = "run it as root" if isinstance(error, PermissionError) and os.geteuid() else ""
        complain("crashlend", f"the system refused{where}: {error.strerror or error}", hint)
        return EXIT_FAILED


def run() -> NoReturn:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a letter it can't show must not end the run
            stream.reconfigure(errors="backslashreplace")
    raise SystemExit(main())
