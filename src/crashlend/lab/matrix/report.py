# SPDX-License-Identifier: LGPL-2.1-or-later
"""A matrix's results as data and as Markdown: the page, and what the README quotes. Pure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from crashlend.lab.markdown import number_first, renewed, table
from crashlend.lab.matrix.cell import ABSENT, FAILED, PASSED, VOID
from crashlend.sizes import mib

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from crashlend.lab.matrix.table import Cell

    Result = Mapping[str, Any]

NOT_RUN = "not run"
MARKS = {PASSED: "pass", FAILED: "**FAIL**", ABSENT: "no such kernel", VOID: "no verdict"}
FIRMWARE = {"bios": "BIOS", "uefi": "UEFI"}
WHY_CHARACTERS = 400
_HEAD = """\
# Compatibility

Written by `crashlend lab matrix {table}` from its results, of which the last of each cell is kept.

A cell is one crash of a stock Debian kernel in emulation. It passes when every check of the trial held:
the lender was the one asked for, the crash kernel had the memory that was planned and no other, the dump
was saved, opens, and has all of production's memory but what was lent. Times are those of emulation on a
busy machine.

"""
_FOOT = """\
## How to repeat it

    crashlend lab matrix {table} -o build/matrix

Ctrl-C ends it, and the same with `--resume` goes on; one cell alone with `--only NAME` (or its id). `--dask
ADDRESS` spreads the cells over the workers of a Dask cluster. build/matrix has every result as a line of
results.jsonl and as a row of results.sqlite, and the files of what failed.
"""


def matrix_data(name: str, cells: Sequence[Cell], results: Sequence[Result]) -> dict[str, Any]:
    """All that the documents say of the table called ``name``; ``results`` has one for a cell."""
    there = {result["cell"] for result in results}
    kept = [{k: v for k, v in result.items() if k != "stamp"} for result in results]
    for result, line in zip(kept, results):
        result["sources"] = line.get("stamp", "")
    return {
        "schema": 1,
        "table": name,
        "not_run": [cell.name for cell in cells if cell.id not in there],
        "results": kept,
    }


def made_by_others(data: Mapping[str, Any], sources: str) -> int:
    """How many of the results were made by other sources than these."""
    return sum(result["sources"] != sources for result in data["results"])


def counts(data: Mapping[str, Any]) -> dict[str, int]:
    """How many cells came out how."""
    found = Counter(result["verdict"] for result in data["results"])
    words = {PASSED: "passed", FAILED: "failed", ABSENT: "no such kernel", VOID: "no verdict"}
    return {
        **{words[verdict]: found[verdict] for verdict in words},
        NOT_RUN: len(data["not_run"]),
    }


def markdown(data: Mapping[str, Any]) -> str:
    """The page."""
    parts = [
        _HEAD.format(table=data["table"]),
        _summary(data),
        "\n",
        kernels_table(data["results"]),
    ]
    parts += ["\n## Each cell\n\n", _cells(data["results"]), "\n## What did not pass\n\n"]
    parts += [_odd(data), "\n", _FOOT.format(table=data["table"])]
    return "".join(parts)


def quoted(document: str, data: Mapping[str, Any]) -> str:
    """The document with the table between ``<!-- matrix: kernels -->`` and ``<!-- end -->`` renewed."""
    return renewed(document, "matrix", {"kernels": kernels_table(data["results"])})


def has_quote(document: str) -> bool:
    """Whether ``quoted`` has something to renew in this document, and can."""
    try:
        return renewed(document, "matrix", {"kernels": "\0"}) != document
    except KeyError:  # it asks for another table, which there is not
        return False


def kernels_table(results: Iterable[Result]) -> str:
    """Kernels by lenders; each place says which firmware passed, and what did not."""
    results = list(results)
    kernels = sorted({r["kernel"] for r in results}, key=number_first)
    lenders = list(dict.fromkeys(r["lender"] for r in results))
    rows = []
    for kernel in kernels:
        of_kernel = [r for r in results if r["kernel"] == kernel]
        places = [_place([r for r in of_kernel if r["lender"] == lender]) for lender in lenders]
        rows.append([_kernel(of_kernel), *places])
    return table(["kernel", *(f"`{lender}`" for lender in lenders)], rows)


def _kernel(results: Sequence[Result]) -> str:
    builds = {r["kernel_version"] for r in results if r.get("kernel_version")}
    words = f"Debian {', '.join(sorted(builds, key=number_first))}" if builds else "not offered"
    return f"{results[0]['kernel']} ({words})"


def _place(results: Sequence[Result]) -> str:
    """Such as "BIOS, UEFI", or "BIOS, UEFI **FAIL**"."""
    words = []
    for firmware in dict.fromkeys(r["firmware"] for r in results):
        verdicts = [r["verdict"] for r in results if r["firmware"] == firmware]
        odd = [MARKS[v] for v in dict.fromkeys(verdicts) if v != PASSED]
        words.append(" ".join([FIRMWARE.get(firmware, str(firmware)), *odd]))
    return ", ".join(words)


def _summary(data: Mapping[str, Any]) -> str:
    found, results = counts(data), data["results"]
    words = ", ".join(
        f"{n} {what}" for what, n in found.items() if n or what in ("passed", "failed")
    )
    commits = sorted({r["commit"] for r in results if r.get("commit")})
    machines = sorted({f"{r['machine']['qemu']}" for r in results if r.get("machine")})
    accels = sorted({r["accel"] for r in results if r.get("accel")})
    seconds = sum(r.get("seconds", 0) for r in results)
    return (
        f"**{words}** of {sum(found.values())} cells, {seconds / 60:.0f} minutes of guests in all "
        f"({'; '.join([*machines, *accels])}). A result tells the last commit that changed what runs on "
        f"hosts when it was made; here "
        f"{_listed(commits)}.\n"
    )


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words) if words else "none is known"


def _cells(results: Sequence[Result]) -> str:
    head = ["kernel", "lender", "firmware", "", "reserved", "lent", "crash kernel's MemTotal"]
    head += ["dump", "panic to dump", "whole trial", "commit"]
    notes = {id(r): n for n, r in enumerate((r for r in results if r["verdict"] != PASSED), 1)}
    rows = []
    for result in results:
        mark = MARKS[result["verdict"]] + (f" ({notes[id(result)]})" if id(result) in notes else "")
        more = result["name"].split(" ")[3:]
        rows.append(
            [
                result.get("release") or result["kernel"],
                " ".join([result["lender"], *more]),
                FIRMWARE.get(result["firmware"], result["firmware"]),
                mark,
                *(_size(result.get(key)) for key in ("reserved_bytes", "lent_bytes")),
                *(_size(result.get(key)) for key in ("mem_total_bytes", "vmcore_bytes")),
                *(_seconds(result.get(key)) for key in ("panic_to_saved_seconds", "seconds")),
                result.get("commit") or "-",
            ]
        )
    return table(head, rows)


def _size(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else mib(size_bytes)


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.0f} s"


def _odd(data: Mapping[str, Any]) -> str:
    """A numbered line for each cell that did not pass, by the number it has in the table."""
    lines = [
        f"{number}. `{result['name']}` ({result['cell']}): {_line(result['why'])}"
        for number, result in enumerate((r for r in data["results"] if r["verdict"] != PASSED), 1)
    ]
    if data["not_run"]:
        lines += [""] if lines else []
        lines += [f"Not run yet: {', '.join(f'`{name}`' for name in data['not_run'])}."]
    return "\n".join(lines or ["Nothing: every cell passed."]) + "\n"


def _line(why: str) -> str:
    return " ".join(why.split())[:WHY_CHARACTERS]
