# SPDX-License-Identifier: LGPL-2.1-or-later
"""``crashlend lab matrix``: a table of trials on this machine, or on a Dask cluster."""

from __future__ import annotations

import argparse
import fnmatch
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from crashlend.cli.output import print_json, print_rows, progress, write_file
from crashlend.cli.run_flags import add_run_flags
from crashlend.errors import EXIT_DONE, EXIT_FAILED, CrashlendError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from crashlend.lab.matrix.run import Matrix
    from crashlend.lab.matrix.table import Cell
    from crashlend.lab.records import Records

DIRECTORY = Path("build/matrix")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``lab matrix``."""
    parser.add_argument(
        "table", type=Path, metavar="FILE", help="TOML: [defaults], and [[trial]] with lists"
    )
    parser.add_argument(
        "--dask", metavar="ADDRESS", help="run them on the Dask cluster of this scheduler instead"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on: leave out what has a verdict already, whatever sources it was made with",
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="PATTERN",
        help="cells whose name or id matches, such as '6.1 *', done before or not; repeatable",
    )
    parser.add_argument("--dry-run", action="store_true", help="list the cells, crash none")
    add_run_flags(
        parser, DIRECTORY, keeps="results.jsonl, results.sqlite, and failed/ID with all files"
    )
    parser.add_argument(
        "--quote", type=Path, metavar="FILE", help="renew what this Markdown file quotes of them"
    )


def run(args: argparse.Namespace) -> int:
    """Run what is missing, then write, and print, the results of the whole table."""
    from crashlend.lab.matrix.cell import PASSED
    from crashlend.lab.matrix.run import latest, missing
    from crashlend.lab.matrix.store import DATABASE, RESULTS, write_database
    from crashlend.lab.packages import locked
    from crashlend.lab.records import Records

    _check(args)
    cells = table_of(args.table)
    chosen = _chosen(cells, args.only)
    if args.dry_run:
        return _list(chosen, args.output / RESULTS)
    with locked(args.output / "lock", progress):
        records = Records(args.output / RESULTS)
        lacking = missing(chosen, records.lines)
        if not args.resume and not args.only and len(lacking) < len(chosen):
            raise UsageError(
                f"{args.output} has results of {args.table}",
                f"{len(chosen) - len(lacking)} of {len(chosen)} cells",
                hint="--resume goes on; -o OTHER begins anew",
            )
        wanted = lacking if args.resume else chosen
        try:
            if wanted:
                with _matrix(args, wanted) as matrix:
                    matrix.run(wanted, records)
        except KeyboardInterrupt:
            progress("interrupted; the same command with --resume goes on")
            raise
        finally:
            write_database(records.lines, args.output / DATABASE)
        _write(args, cells, records)
        good = [r["verdict"] == PASSED for r in latest(chosen, records.lines)]
    return EXIT_DONE if len(good) == len(chosen) and all(good) else EXIT_FAILED


def _check(args: argparse.Namespace) -> None:
    """What would be an error after hours is one now."""
    from crashlend.lab.matrix.cluster import check_address
    from crashlend.lab.matrix.report import has_quote

    if args.dask is not None:
        check_address(args.dask)
    if args.quote and not has_quote(_read(args.quote)):
        hint = "write <!-- matrix: kernels --> and <!-- end --> around the place, each on its line"
        raise UsageError(f"--quote {args.quote}", "it has no place for the table", hint=hint)


def table_of(path: Path) -> list[Cell]:
    """The cells of the file; its keys are the flags of ``lab trial``."""
    from crashlend.lab.matrix.table import read_table

    return read_table(_read(path), parse_flags)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise CrashlendError(
            f"cannot read {path}", getattr(error, "strerror", "") or str(error)
        ) from None


class _Flags(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(
            message, hint="keys and values are those of lab trial's flags: see its --help"
        )


def parse_flags(words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The kernel's name and the fields of the Spec that these flags of ``lab trial`` tell."""
    from crashlend.cli.trial_flags import add_trial_flags, spec_fields
    from crashlend.lab.crashes import find_crash

    parser = _Flags(add_help=False, allow_abbrev=False)
    add_trial_flags(parser)
    args = parser.parse_args(words)
    find_crash(args.crash)
    return args.kernel, spec_fields(args)


def _chosen(cells: Sequence[Cell], patterns: Sequence[str] | None) -> list[Cell]:
    if not patterns:
        return list(cells)
    for pattern in patterns:
        if not any(_matches(cell, pattern) for cell in cells):
            raise UsageError(
                f"--only {pattern!r}", "no cell has such a name or id", hint="--dry-run lists all"
            )
    return [cell for cell in cells if any(_matches(cell, pattern) for pattern in patterns)]


def _matches(cell: Cell, pattern: str) -> bool:
    return fnmatch.fnmatchcase(cell.name, pattern) or cell.id == pattern


@contextmanager
def _matrix(args: argparse.Namespace, cells: Sequence[Cell]) -> Iterator[Matrix]:
    """What runs these cells: on the cluster, or here with as many threads as there are jobs."""
    from concurrent.futures import ThreadPoolExecutor

    from crashlend.lab.firmware import find_ovmf
    from crashlend.lab.leftovers import Leftovers
    from crashlend.lab.matrix.cell import Here
    from crashlend.lab.matrix.cluster import cluster
    from crashlend.lab.matrix.run import Matrix
    from crashlend.lab.qemu import find_qemu

    if args.dask is not None:
        with cluster(args.dask, progress) as start:
            yield Matrix(start, say=progress)
        return
    find_qemu()
    if any(cell.spec["firmware"] == "uefi" for cell in cells):
        find_ovmf()
    here = Here(args.output, progress)
    try:
        yield Matrix(lambda: ThreadPoolExecutor(args.jobs), here, say=progress, end=here.stop.set)
    finally:
        Leftovers(args.output).clear()


def _write(args: argparse.Namespace, cells: Sequence[Cell], records: Records) -> None:
    from crashlend.lab.matrix.report import counts, made_by_others, markdown, matrix_data, quoted
    from crashlend.lab.matrix.run import latest
    from crashlend.lab.records import json_text, source_hash

    data = matrix_data(args.table.as_posix(), cells, latest(cells, records.lines))
    if args.report:
        write_file(args.report, markdown(data).encode())
    if args.data:
        write_file(args.data, json_text(data).encode())
    if args.quote:
        write_file(args.quote, quoted(_read(args.quote), data).encode())
    if args.json:
        print_json(data)
    else:
        words = ", ".join(f"{key}: {number}" for key, number in counts(data).items())
        others = made_by_others(data, source_hash(lab_only=False)[:12])
        print(f"{words}; {others} of other sources than these" if others else words)


def _list(cells: Sequence[Cell], results: Path) -> int:
    """Every cell with its id and its verdict so far; makes nothing, not even the directory."""
    from crashlend.lab.matrix.run import latest
    from crashlend.lab.records import Records

    lines = Records(results).lines if results.exists() else []
    known = {result["cell"]: result["verdict"] for result in latest(cells, lines)}
    print_rows([(cell.id, f"{cell.name}  {known.get(cell.id, '')}".rstrip()) for cell in cells])
    return EXIT_DONE
