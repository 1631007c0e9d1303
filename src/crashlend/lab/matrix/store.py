# SPDX-License-Identifier: LGPL-2.1-or-later
"""Results of a matrix for questions in SQL. The JSON lines are the truth; this is made from them.

sqlite3 build/matrix/results.sqlite "SELECT name, why FROM latest WHERE verdict != 'passed'"
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

RESULTS, DATABASE = "results.jsonl", "results.sqlite"
COLUMNS = {
    "cell": "TEXT",
    "name": "TEXT",
    "kernel": "TEXT",
    "lender": "TEXT",
    "firmware": "TEXT",
    "verdict": "TEXT",
    "why": "TEXT",
    "release": "TEXT",
    "used_lender": "TEXT",
    "used_syscall": "TEXT",
    "reserved_bytes": "INTEGER",
    "lent_bytes": "INTEGER",
    "mem_total_bytes": "INTEGER",
    "vmcore_bytes": "INTEGER",
    "panic_to_saved_seconds": "REAL",
    "seconds": "REAL",
    "commit": "TEXT",
    "machines_lost": "INTEGER",
    "workers_lost": "INTEGER",
}


def write_database(lines: Iterable[dict[str, Any]], path: Path) -> None:
    """Make the database anew: ``results`` has every line, ``latest`` the last one of each cell.

    ``json`` is the whole line. The file is replaced at once, so a reader sees the old or the new.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [f'"{name}"' for name in COLUMNS]
    columns = ", ".join(f'"{name}" {kind}' for name, kind in COLUMNS.items())
    with tempfile.TemporaryDirectory(prefix=".new-", dir=path.parent) as scratch:
        new = Path(scratch, path.name)
        with closing(sqlite3.connect(new)) as database, database:
            database.execute(
                f"CREATE TABLE results (line INTEGER PRIMARY KEY, {columns}, json TEXT)"
            )
            database.execute(
                "CREATE VIEW latest AS SELECT * FROM results "
                "WHERE line IN (SELECT max(line) FROM results GROUP BY cell)"
            )
            marks = ", ".join("?" * (len(names) + 2))
            database.executemany(
                f"INSERT INTO results (line, {', '.join(names)}, json) VALUES ({marks})",
                (
                    (number, *(line.get(name) for name in COLUMNS), json.dumps(line))
                    for number, line in enumerate(lines, 1)
                    if line.get("cell")
                ),
            )
        new.replace(path)
