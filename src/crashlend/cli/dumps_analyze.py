# SPDX-License-Identifier: LGPL-2.1-or-later
"""What drgn finds in a dump, as text and JSON; for `crashlend dumps analyze`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from crashlend.cli.output import print_json, print_rows, printable
from crashlend.dumps.analyze import analyze as open_and_read
from crashlend.errors import EXIT_DONE
from crashlend.jsonable import to_json

if TYPE_CHECKING:
    import argparse

    from crashlend.dumps.analyze import Analysis, Frame
    from crashlend.dumps.directory import Dump


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this action alone."""
    parser.add_argument(
        "--vmlinux",
        type=Path,
        metavar="FILE",
        help="the kernel's debug symbols (default: looked for below /usr/lib/debug)",
    )


def analyze(dump: Dump, args: argparse.Namespace) -> int:
    """Read the dump with drgn and print what there is."""
    found = open_and_read(dump, args.vmlinux)
    if args.json:
        print_json({"schema": 1, "path": str(dump.path), **to_json(found)})
    else:
        _print(dump, found)
    return EXIT_DONE


def _print(dump: Dump, found: Analysis) -> None:
    crashed = found.crashed
    print_rows(
        [
            ("dump", str(dump.path)),
            ("symbols", found.vmlinux),
            ("kernel", found.release),
            ("command line", found.cmdline),
            ("reason", dump.reason or "-"),
            (
                "crashed",
                f"{crashed.comm}, PID {crashed.pid}, CPU {crashed.cpu}" if crashed else "-",
            ),
        ]
    )
    if crashed:
        print("stack:")
        for number, frame in enumerate(crashed.stack):
            print(f"  #{number:<3}{printable(_frame(frame))}")
    print(f"{len(found.tasks)} tasks:")
    for task in found.tasks:
        name = f"[{task.comm}]" if task.kernel_thread else task.comm
        print(f"  {task.pid:>7} {task.state} {printable(name)}")
    print(f"{len(found.modules)} modules:")
    for module in found.modules:
        print(f"  {printable(module.name)}{' ' + module.taints if module.taints else ''}")
    if found.unreadable:
        print("not in the dump:")
        for one in found.unreadable:
            where = "" if one.address is None else f" ({one.address:#x})"
            print(f"  {printable(one.what)}{where}: {printable(one.why)}")


def _frame(frame: Frame) -> str:
    where = f" ({frame.source})" if frame.source else ""
    return f"{frame.name}{where}{' inlined' if frame.inline else ''}"
