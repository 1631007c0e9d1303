# SPDX-License-Identifier: LGPL-2.1-or-later
"""``lab rehearse``: a host's crash, played through in its twin; the result is kept for later."""

from __future__ import annotations

import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from crashlend.cli.hosts import facts_from, files_getter, settings_from
from crashlend.cli.output import print_json, printable, progress
from crashlend.cli.twin_flags import HOST, add_twin_flags, demand_lab, twin_payload
from crashlend.errors import EXIT_DONE, EXIT_FAILED, EXIT_UNKNOWN, CrashlendError, UsageError
from crashlend.rehearsal import (
    RECORD,
    demand_place,
    fingerprints,
    in_words,
    read_rehearsal,
    write_rehearsal,
)

if TYPE_CHECKING:
    import argparse

    from crashlend.rehearsal import Rehearsal

# a snapshot holds no files: their absence is no news
SNAPSHOTS_LACK = ("kernel", "initramfs")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``lab rehearse``."""
    add_twin_flags(parser)
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help=f"where the result is kept (default for this host: {RECORD})",
    )
    parser.add_argument(
        "--status",
        action="store_true",
        help="boot nothing: was this rehearsed, with what result, and does it still apply? Exit code: "
        "0 it was, and saved its dump; 1 it failed, or something has changed; 4 it never was, or not all of "
        "it could be compared (of a snapshot kernel and initramfs never can)",
    )


def run(args: argparse.Namespace) -> int:
    """Rehearse, or say what the last rehearsal was; the exit code."""
    place = _place(args)
    if args.status:
        return _status(args, place)
    demand_lab("rehearse")
    if place is not None:
        demand_place(place)
    from crashlend.lab.twin.estimate import need_root
    from crashlend.lab.twin.rehearse import Options, record, rehearse

    settings = settings_from(args)
    facts = facts_from(args)
    need_root(facts)
    payload = twin_payload(args, settings, facts, progress)
    options = Options(args.memory, args.timeout, args.accel, args.keep)
    played = rehearse(facts, settings, payload, options, progress)
    date = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    kept = record(played, facts, settings, payload, date)
    # a result of many minutes is told before anything else can go wrong
    if args.json:
        print_json(kept.to_json())
    else:
        show_rehearsal(kept)
    if place is not None:
        _keep(kept, place)
    return EXIT_DONE if kept.ok else EXIT_FAILED


def _place(args: argparse.Namespace) -> Path | None:
    """Where the result is kept: another host's never where this host's own is."""
    if args.output is not None:
        return Path(args.output)
    return RECORD if args.root == HOST else None


def _keep(kept: Rehearsal, place: Path) -> None:
    try:
        write_rehearsal(kept, place)
    except OSError as error:
        raise CrashlendError(
            f"the result is not kept in {place}", error.strerror or str(error)
        ) from error
    progress(f"kept in {place}")


def _status(args: argparse.Namespace, place: Path | None) -> int:
    if place is None:
        raise UsageError(
            "no record of a rehearsal to look at",
            "those of snapshots are where -o put them",
            hint="name the file with -o",
        )
    known = read_rehearsal(place)
    now = _fingerprints_now(args)
    changed = known.changed(now) if known else ()
    unknown = known.not_compared(now) if known else ()
    words = in_words(known, now)
    if args.json:
        body = known.to_json() if known else None
        print_json(
            {
                "schema": 1,
                "rehearsed": body,
                "changed": list(changed),
                "not_compared": list(unknown),
                "words": words,
            }
        )
    else:
        print(printable(words))
    if known is None:
        return EXIT_UNKNOWN
    if not known.ok or changed:
        return EXIT_FAILED
    files = () if args.root == HOST else SNAPSHOTS_LACK
    return EXIT_UNKNOWN if set(unknown) - set(files) else EXIT_DONE


def _fingerprints_now(args: argparse.Namespace) -> dict[str, str]:
    """Of this host, or of what the flags name; what cannot be read is not compared, and said."""
    settings = settings_from(args)
    facts = facts_from(args)
    if args.root != HOST:
        return fingerprints(facts, settings, None, None)
    try:
        files = files_getter(settings, progress)(facts.release)
    except CrashlendError as error:
        print(f"note: kernel and initramfs are not compared: {error}", file=sys.stderr)
        return fingerprints(facts, settings, None, None)
    return fingerprints(facts, settings, files.kernel, files.initramfs)


def show_rehearsal(kept: Rehearsal) -> None:
    """Print it for people: each check, the verdict, what was not as on the host."""
    for check in (kept.result or {}).get("checks", ()):
        print(
            f"{'ok    ' if check['ok'] else 'FAILED'} {check['name']}: {printable(check['detail'])}"
        )
    for words in kept.twin:
        print(f"note: not as on the host: {printable(words)}")
    print("the dump was saved" if kept.ok else f"failed: {printable(kept.reason)}")
