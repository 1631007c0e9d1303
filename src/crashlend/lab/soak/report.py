# SPDX-License-Identifier: LGPL-2.1-or-later
"""The soak's results as data and as Markdown: docs/results/soak.json, docs/soak.md. Pure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from crashlend.lab.markdown import number_first, table
from crashlend.lab.soak.run import FLAWED, LOST, PASSED, UNCRASHED, VOID, again
from crashlend.sizes import GIB, mib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    Result = Mapping[str, Any]

UNEXPLAINED = "unexplained"
COUNTED = (PASSED, FLAWED, LOST, UNCRASHED, VOID)
CRASHED = (PASSED, FLAWED, LOST)
_HEAD = """\
# Soak

Written by `make soak` (`crashlend lab soak`) from [results/soak.json](results/soak.json), which has every
single result.

Random guests from a seed: kernel, CPUs, memory, NUMA nodes, firmware, machine, processor, lender, sizes,
placement, what the guest does meanwhile, and how it crashes. Only what must work is drawn, so every
one has to save its dump, and every check of a trial has to hold.
([Why seeds, and what is drawn](decisions/0015-soak-from-a-seed.md).)

"""
_FOOT = """\
## How to repeat it

    make soak N={trials} SEED={seed}

Ctrl-C ends it; the same command goes on. One trial alone, with all its files where it fails:

    crashlend lab soak --only {seed}/INDEX

The same seed and index are the same guest on every machine, as long as the tables of
`lab/soak/cases.py` stay as they are. Chance that is not in the seed remains: where KASLR puts the
kernel, and what the host's load does to the guest's timing.

## What it does not show

Emulation (TCG) alone: no KVM, no real hardware, no device that still writes. Guests of 1 to 6 GiB.
Purgatory waits 1 s for DMA here (10 s by default).
"""


def soak_data(
    results: Sequence[Result], lines: Iterable[Result], machine: Mapping[str, Any]
) -> dict[str, Any]:
    """All that the documents say. ``lines`` are every line of the record, for the time it took.

    ``results`` has one line for each trial, all of one seed.
    """
    last: dict[int, float] = {}
    for line in lines:
        if "session" in line:
            last[line["session"]] = max(last.get(line["session"], 0.0), line["at"])
    kept = [{k: v for k, v in line.items() if k not in ("session", "at")} for line in results]
    return {
        "schema": 1,
        "seed": kept[0]["seed"] if kept else "",
        "trials": len(kept),
        "seconds": round(sum(last.values()), 1),
        "machine": dict(machine),
        "results": sorted(kept, key=lambda result: result["index"]),
    }


def markdown(data: Mapping[str, Any], explained: Mapping[str, str]) -> str:
    """The document. ``explained``: SEED/INDEX to why a dump was lost, or what else went wrong."""
    results = data["results"]
    parts = [_HEAD, _summary(data), "\n## By kind\n\n", _by_kind(results)]
    parts += ["\n## What did not go well\n\n", _odd(results, explained)]
    parts += ["\n", _FOOT.format(trials=data["trials"], seed=data["seed"])]
    return "".join(parts)


def counts(results: Iterable[Result]) -> dict[str, int]:
    """Crashes, dumps saved, dumps lost, and what crashed nothing."""
    found = Counter(result["verdict"] for result in results)
    return {
        "trials": sum(found[verdict] for verdict in COUNTED),
        "crashes": sum(found[verdict] for verdict in CRASHED),
        "saved": found[PASSED] + found[FLAWED],
        "lost": found[LOST],
        "all checks held": found[PASSED],
        "did not crash": found[UNCRASHED],
        "no verdict": found[VOID],
    }


def _summary(data: Mapping[str, Any]) -> str:
    found, machine = counts(data["results"]), data["machine"]
    trees = len({result.get("stamp") for result in data["results"]})
    sources = "" if trees < 2 else f", of {trees} states of the sources"
    lost_machines = sum(result.get("tries", 1) > 1 for result in data["results"])
    return (
        f"Seed {data['seed']}: {found['trials']} trials{sources}, {found['crashes']} crashes, "
        f"**{found['saved']} dumps saved, {found['lost']} lost**; in {found['all checks held']} "
        f"every check held. {found['did not crash']} did not come as far as the crash, "
        f"{found['no verdict']} have no verdict (QEMU or the lab failed), {lost_machines} were "
        f"tried again because QEMU ended. It took {data['seconds'] / 60:.0f} minutes on "
        f"{machine['host_cpus']} CPUs ({machine['qemu']}, {machine['accel']}).\n"
    )


def _memory(result: Result) -> str:
    size = result["memory_bytes"]
    limits = ((3 * GIB // 2, "up to 1.5 GiB"), (2 * GIB, "up to 2 GiB"), (3 * GIB, "up to 3 GiB"))
    return next((words for limit, words in limits if size <= limit), "more than 3 GiB")


WHEN = {"": "", "before": "before lending", "into": "into lent memory", "last": "begun last"}
KINDS: dict[str, Callable[[Result], str]] = {
    "kernel": lambda r: f"{r['kernel']}",
    "lender": lambda r: f"{r['source']}",
    "load": lambda r: f"{r['load']} {WHEN[r['load_when']]}".strip(),
    "crash": lambda r: r["crash"].partition("-cpu")[0],
    "firmware, machine": lambda r: f"{r['firmware']}, {r['machine']}",
    "placement": lambda r: f"{r['placement']}",
    "reservation": lambda r: {"keep": "kept", "auto": "shrunk", "exact": "shrunk to the page"}[
        r["reserve"]
    ],
    "CPUs": lambda r: f"{r['cpus']}",
    "NUMA nodes": lambda r: f"{r['nodes']}",
    "memory": _memory,
    "processor": lambda r: f"{r['cpu_model']}",
    "system call": lambda r: {"load": "kexec_load", "file": "kexec_file_load"}[r["syscall"]],
}


def _by_kind(results: Sequence[Result]) -> str:
    rows = []
    for kind, of in KINDS.items():
        for value in sorted({of(result) for result in results}, key=number_first):
            found = counts(r for r in results if of(r) == value)
            rows.append([kind, value, *(found[key] for key in ("crashes", "saved", "lost"))])
            kind = ""
    return table(["kind", "", "crashes", "dumps saved", "dumps lost"], rows)


def _odd(results: Sequence[Result], explained: Mapping[str, str]) -> str:
    rows = []
    for result in results:
        if result["verdict"] == PASSED:
            continue
        name = f"{result['seed']}/{result['index']}"
        rows.append(
            [
                f"`{name}`",
                guest(result),
                result["verdict"],
                result["why"][:400],
                explained.get(name, UNEXPLAINED),
            ]
        )
    if not rows:
        return "Nothing: every dump was saved, and every check held.\n"
    repeat = again({"seed": "SEED", "index": "INDEX"})
    head = ["trial", "guest", "verdict", "what was seen", "explanation"]
    return f"Each can be seen again: `{repeat}`.\n\n{table(head, rows)}"


def guest(result: Result) -> str:
    """One guest in a line."""
    load = f"{result['load']} {result['load_amount'] or ''} {WHEN[result['load_when']]}".split()
    return (
        f"{result['kernel']}, {mib(result['memory_bytes'])}, CPUs {result['cpus']}, nodes "
        f"{result['nodes']}, {result['firmware']} {result['machine']}, {result['source']} "
        f"{mib(result['lend_bytes'])}, {result['cmdline']}, {result['reserve']}, "
        f"{result['placement']}, {' '.join(load)}, {result['crash']}"
    )
