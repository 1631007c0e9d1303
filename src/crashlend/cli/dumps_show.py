# SPDX-License-Identifier: LGPL-2.1-or-later
"""How a kernel ended, from the log beside its dump; for `crashlend dumps show`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crashlend.cli.output import print_json, print_rows, printable
from crashlend.dumps.directory import read_dmesg
from crashlend.dumps.log import read_end
from crashlend.errors import EXIT_DONE, CrashlendError
from crashlend.jsonable import to_json

if TYPE_CHECKING:
    from crashlend.dumps.directory import Dump


def show(dump: Dump, *, as_json: bool) -> int:
    """Print what dmesg.txt says of the end.

    Raises:
        CrashlendError: there is none, or the log was not saved.

    """
    log = read_dmesg(dump.path)
    if not log:
        raise CrashlendError(
            f"cannot show the end of {dump.path.name}",
            "there is no dmesg.txt, or it is empty",
            hint="crashlend dumps analyze reads the log in the dump itself",
        )
    end = read_end(log)
    if as_json:
        print_json({"schema": 1, "path": str(dump.path), "when": dump.when, **to_json(end)})
        return EXIT_DONE
    who = f"{end.comm}, PID {end.pid}, CPU {end.cpu}" if end.pid else "-"
    print_rows(
        [
            ("dump", str(dump.path)),
            ("when", dump.when or "-"),
            ("kernel", end.release or dump.release or "-"),
            ("reason", end.reason or dump.reason or "-"),
            ("cause", end.cause or "-"),
            ("running", who),
            ("tainted", end.taint or "-"),
        ]
    )
    for title, lines in (("stack", end.trace), ("registers", end.registers)):
        if lines:
            print(f"{title}:")
            for line in lines:
                print(f"  {printable(line)}")
    if end.modules:
        print(f"modules: {printable(' '.join(end.modules))}")
    return EXIT_DONE
