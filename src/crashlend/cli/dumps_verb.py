# SPDX-License-Identifier: LGPL-2.1-or-later
"""List, check, prune and look into saved dumps.

DUMP is the directory that a capture made, by path or by name; a directory that holds such ones means
all in it for check, the newest in it for the others.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from crashlend.cli import dumps_analyze, dumps_show
from crashlend.cli.hosts import settings_from
from crashlend.cli.main import add_root
from crashlend.cli.output import print_json, printable, progress
from crashlend.dumps.check import Verdict, check_dump
from crashlend.dumps.directory import (
    FLAT,
    Dump,
    find_dumps,
    is_dump_directory,
    newest_first,
    read_dump,
)
from crashlend.dumps.place import find_places
from crashlend.dumps.prune import choose, is_under_way, leftovers, remove, remove_leftover
from crashlend.dumps.recover import Recovered, default_target, is_raw, recover_raw, unflatten
from crashlend.errors import EXIT_DONE, EXIT_FAILED, CrashlendError, UsageError
from crashlend.sizes import mib

if TYPE_CHECKING:
    import argparse

REASON_WIDTH = 48


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
    listing = actions.add_parser("list", help="what is there, newest first")
    _add_place(listing, "directory")
    add_root(listing)
    check = actions.add_parser("check", help="can they be used? exits 1 when one can not")
    check.add_argument("dumps", nargs="*", metavar="DUMP", help="default: all that are there")
    _add_place(check, "--dir")
    add_root(check)
    prune = actions.add_parser("prune", help="remove all but a number of them")
    _add_place(prune, "directory")
    prune.add_argument(
        "--keep", type=int, required=True, metavar="N", help="how many stay, of each host"
    )
    prune.add_argument("--dry-run", action="store_true", help="only say what would go")
    add_root(prune)
    for name, words in (
        ("show", "the panic, the stack, registers and modules, from the log"),
        ("analyze", "tasks, the crashing stack and modules, by drgn (extra [analyze])"),
    ):
        look = actions.add_parser(name, help=words)
        look.add_argument("dump", nargs="?", metavar="DUMP", help="default: the newest")
        _add_place(look, "--dir")
        add_root(look)
        if name == "analyze":
            dumps_analyze.add_arguments(look)
    recover = actions.add_parser("recover", help="make a vmcore of a flattened or a raw dump")
    recover.add_argument(
        "source", type=Path, metavar="SOURCE", help="vmcore.flat, its directory, or a raw device"
    )
    recover.add_argument(
        "--output", "-o", type=Path, metavar="FILE", help="the vmcore (default: beside vmcore.flat)"
    )
    _add_place(recover, "--dir")
    recover.add_argument(
        "--dry-run", action="store_true", help="only read, and say what would be made"
    )
    recover.add_argument(
        "--mark", action="store_true", help="note on the raw device that its dump was taken"
    )
    add_root(recover)


def _add_place(parser: argparse.ArgumentParser, name: str) -> None:
    words = "where the dumps are (default: by the settings target and path)"
    if name.startswith("-"):
        parser.add_argument(name, dest="directory", type=Path, metavar="DIR", help=words)
    else:
        parser.add_argument(name, nargs="?", type=Path, metavar="DIR", help=words)


def run(args: argparse.Namespace) -> int:
    return _ACTIONS[args.action](args)


def _places(args: argparse.Namespace) -> list[Path]:
    """The directories that dumps go to, whether they are there or not."""
    if args.directory is not None:
        return [args.directory]
    settings = settings_from(args)
    return find_places(args.root, settings.target, settings.path)


def _look_into(args: argparse.Namespace) -> list[Path]:
    """Where to look for dumps: a directory that the user names must be there.

    One of the settings is made by the first capture; until then it holds none.
    """
    return [p for p in _places(args) if args.directory is not None or not _is_missing(p)]


def _is_missing(path: Path) -> bool:
    try:
        path.lstat()
    except OSError as error:  # others, as of a stale mount, are told where it is read
        return isinstance(error, FileNotFoundError)
    return False


def _meant(args: argparse.Namespace, name: Optional[str] = None) -> list[Dump]:
    """The dumps that a word of the command line means, newest first; without one all that are there."""
    if name is not None and is_dump_directory(Path(name).resolve()):
        return [read_dump(Path(name).resolve())]
    if name is not None and Path(name).is_dir():
        return find_dumps(Path(name))
    found = newest_first(dump for place in _look_into(args) for dump in find_dumps(place))
    if name is None:
        return found
    named = [dump for dump in found if dump.path.name == name]
    if not named:
        where = ", ".join(map(str, _places(args)))
        raise UsageError(f"no dump {name}", f"not in {where}", hint="see crashlend dumps list")
    return named


def find_dump(args: argparse.Namespace, name: Optional[str]) -> Dump:
    """The newest of the dumps that a word of the command line means, or of all."""
    found = _meant(args, name)
    if not found:
        where = name or ", ".join(map(str, _places(args)))
        raise UsageError("no dump", f"not in {where}", hint="see crashlend dumps list")
    return found[0]


# --- list ---------------------------------------------------------------------------------------


def _list(args: argparse.Namespace) -> int:
    dumps = _meant(args)
    if args.json:
        print_json({"schema": 1, "dumps": [dump_json(dump) for dump in dumps]})
        return EXIT_DONE
    if not dumps:
        print("no dumps")
        return EXIT_DONE
    head = ("when (UTC)", "host", "kernel", "size", "level", "complete", "reason")
    rows: list[tuple[str, ...]] = [head, *map(_row, dumps)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths)]
        print("  ".join(cells).rstrip())
    return EXIT_DONE


def _row(dump: Dump) -> tuple[str, ...]:
    reason = printable(dump.reason) or "-"
    if len(reason) > REASON_WIDTH:
        reason = reason[: REASON_WIDTH - 3] + "..."
    cells = (
        dump.when.replace("T", " ").rstrip("Z"),
        dump.host,
        dump.release or "-",
        mib(dump.bytes) if dump.vmcore else "-",
        "-" if dump.level is None else str(dump.level),
        "yes" if dump.complete else "?" if dump.unknown else "no",
    )
    return (*map(printable, cells), reason)


def dump_json(dump: Dump) -> dict[str, Any]:
    """A dump as JSON; part of the contract of ``dumps --json``."""
    core = dump.core
    return {
        "path": str(dump.path),
        "when": dump.when,
        "host": dump.host,
        "kernel": dump.release or None,
        "reason": dump.reason or None,
        "vmcore": str(dump.vmcore) if dump.vmcore else None,
        "bytes": dump.bytes,
        "form": core.form if core else None,
        "flattened": core.flattened if core else None,
        "compression": core.compression if core else None,
        "level": dump.level,
        "lent_bytes": dump.lent.size,
        "complete": dump.complete,
        "faults": list(dump.faults),
        "unknown": list(dump.unknown),
    }


# --- check --------------------------------------------------------------------------------------


def _check(args: argparse.Namespace) -> int:
    dumps = [dump for name in args.dumps or [None] for dump in _meant(args, name)]
    verdicts = [check_dump(dump) for dump in dumps]
    if args.json:
        print_json({"schema": 1, "dumps": [_verdict_json(verdict) for verdict in verdicts]})
    elif not verdicts:
        print("no dumps")
    else:
        for verdict in verdicts:
            _print_verdict(verdict)
    return EXIT_DONE if all(verdict.usable for verdict in verdicts) else EXIT_FAILED


def _verdict_json(verdict: Verdict) -> dict[str, Any]:
    return {
        **dump_json(verdict.dump),
        "usable": verdict.usable,
        "findings": [{"what": f.what, "ok": f.ok, "detail": f.detail} for f in verdict.findings],
        "hint": verdict.hint or None,
    }


def _print_verdict(verdict: Verdict) -> None:
    print(f"{printable(str(verdict.dump.path))}: {verdict.in_words}")
    marks = {True: "ok", False: "FAILED", None: "-"}
    for finding in verdict.findings:
        print(f"  {marks[finding.ok]:<6} {finding.what}: {printable(finding.detail)}")
    if verdict.hint:
        print(f"  hint: {verdict.hint}")


# --- prune --------------------------------------------------------------------------------------


def _prune(args: argparse.Namespace) -> int:
    if args.keep < 0:
        raise UsageError("--keep", f"{args.keep} is no number of dumps", hint="0 or more")
    gone: list[str] = []
    kept: list[dict[str, str]] = []
    for place in _look_into(args):
        now = time.time()
        for path in leftovers(place, now):
            progress(f"{path}: left by a prune or a recovery that was interrupted")
            why = "" if args.dry_run else remove_leftover(path)
            if why:
                kept.append({"path": str(path), "why": why})
        dumps = find_dumps(place)
        choice = choose(dumps, args.keep, [dump for dump in dumps if is_under_way(dump, now)])
        for dump in choice.go:
            why = "" if args.dry_run else remove(dump)
            if why:
                kept.append({"path": str(dump.path), "why": why})
            else:
                gone.append(str(dump.path))
        kept += [{"path": str(dump.path), "why": why} for dump, why in choice.kept]
    if args.json:
        print_json({"schema": 1, "dry_run": args.dry_run, "removed": gone, "kept": kept})
        return EXIT_DONE
    word = "would remove" if args.dry_run else "removed"
    for name in gone:
        print(f"{word} {printable(name)}")
    for one in kept:
        print(f"kept {printable(one['path'])}: {printable(one['why'])}")
    return EXIT_DONE


# --- the rest -----------------------------------------------------------------------------------


def _show(args: argparse.Namespace) -> int:
    return dumps_show.show(find_dump(args, args.dump), as_json=args.json)


def _analyze(args: argparse.Namespace) -> int:
    return dumps_analyze.analyze(find_dump(args, args.dump), args)


def _recover(args: argparse.Namespace) -> int:
    source = args.source / FLAT if args.source.is_dir() else args.source
    if not source.exists():
        raise CrashlendError(f"cannot recover {source}", "it does not exist")
    if is_raw(source):
        return _recover_raw(source, args)
    target = args.output or default_target(source)
    done = unflatten(source, target, dry_run=args.dry_run)
    if args.json:
        told = {"dry_run": args.dry_run, "made": done.made, "vmcore": str(target)}
        print_json({"schema": 1, **told, "bytes": done.bytes})
    else:
        print(f"{printable(str(target))}{_how(done, args)}: {mib(done.bytes)}")
    return EXIT_DONE


def _recover_raw(source: Path, args: argparse.Namespace) -> int:
    done = recover_raw(source, _raw_place(args), mark=args.mark, dry_run=args.dry_run)
    dump = read_dump(done.path) if done.path.exists() else None
    if args.json:
        told = dump_json(dump) if dump else {"path": str(done.path)}
        print_json({"schema": 1, "dry_run": args.dry_run, "made": done.made, **told})
    else:
        state = "" if dump is None else f": {'; '.join(dump.faults) or mib(dump.bytes)}"
        print(printable(f"{done.path}{_how(done, args)}{state}"))
    return EXIT_DONE


def _how(done: Recovered, args: argparse.Namespace) -> str:
    if not done.made:
        return " (was there)"
    return " (would be made)" if args.dry_run else ""


def _raw_place(args: argparse.Namespace) -> Path:
    """Where the directory of a raw dump goes: the path of the settings where no target is mounted."""
    try:
        return _places(args)[0]
    except CrashlendError:
        return Path(args.root, settings_from(args).path.lstrip("/"))


_ACTIONS = {
    "list": _list,
    "check": _check,
    "prune": _prune,
    "show": _show,
    "analyze": _analyze,
    "recover": _recover,
}
