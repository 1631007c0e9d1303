# SPDX-License-Identifier: LGPL-2.1-or-later
"""``crashlend lab demo``: the seed's line and its controls, crashed side by side."""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crashlend.cli.output import BOLD, GREEN, RED, print_json, progress, styled
from crashlend.cli.trials import announce, show_check
from crashlend.errors import EXIT_DONE, EXIT_FAILED
from crashlend.sizes import MIB, mib

if TYPE_CHECKING:
    import argparse

    from crashlend.lab.outcome import Outcome
    from crashlend.lab.spec import Spec

SEED = "crashkernel=1G,cma crashkernel={}M"
# What distributions take from production on a host with this much RAM: (name, from MiB, taken
# MiB), the last row that fits counts. Sources: kdump-utils' kdump-lib.sh; Ubuntu's kdump-tools;
# Debian 12's kdump-tools 1.8.1.
DISTRIBUTIONS = (
    ("RHEL 10", ((2048, 256), (65536, 512))),
    ("Ubuntu 24.10", ((2048, 320), (4096, 512), (32768, 1024), (65536, 2048), (131072, 4096))),
    ("Debian 12", ((384, 128),)),
)

CONSOLE_LINES = 25


@dataclass(frozen=True)
class Column:
    """One trial of the demo: what to call it, whether its dump is expected, and its trial."""

    title: str
    lends: bool
    spec: Spec


def columns(kernel: str) -> list[Column]:
    """The seed's 100M and the smaller reservation that tells the two apart, each both ways."""
    from crashlend.lab.kernels import fetch
    from crashlend.lab.spec import Spec

    base = Spec(kernel=fetch(kernel, progress), timeout_seconds=400)
    control = replace(base, lender="none", impatient=True)
    out = []
    for reserved in (100, 80):
        line = SEED.format(reserved)
        # filling lent memory with a pattern takes long under TCG: one column is enough for it
        lending = replace(base, cmdline=line, poison=reserved == 100)
        out.append(Column(f"{reserved}M + 1G lent", True, lending))
        out.append(Column(f"{reserved}M, control", False, replace(control, cmdline=line)))
    return out


def run_demo(args: argparse.Namespace) -> int:
    """Run the four trials two at a time, then print one table."""
    from crashlend.lab.captures import build_capture_for
    from crashlend.lab.trial import run_trial

    trials = columns(args.kernel)
    build_capture_for(trials[0].spec.kernel, progress)
    progress(f"{trials[0].spec.kernel.release}: production boots with {trials[0].spec.cmdline}")
    begin = time.monotonic()

    def one(index: int) -> Outcome:
        column = trials[index]

        def on_event(event: dict[str, Any]) -> None:
            event = {**event, "at": time.monotonic() - begin}
            announce(event, f"[{column.title}] ")

        keep = args.keep / str(index) if args.keep else Path(directory) / str(index)
        outcome = run_trial(column.spec, keep=keep, on_event=on_event)
        saved = "its dump is saved" if _saved(outcome) else "no dump"
        progress(f"{time.monotonic() - begin:6.1f} s  [{column.title}] is over: {saved}")
        return outcome

    with tempfile.TemporaryDirectory(prefix="crashlend-demo-") as directory:
        with ThreadPoolExecutor(2) as pool:
            # the long ones first: both cores are busy until nearly the end
            order = sorted(range(len(trials)), key=lambda i: not trials[i].lends)
            done = dict(zip(order, pool.map(one, order)))
        outcomes = [done[i] for i in range(len(trials))]
        seconds = time.monotonic() - begin
        held = _verdict(trials, outcomes)
        if args.json:
            print_json(
                {
                    "schema": 1,
                    "ok": held,
                    "seconds": round(seconds, 1),
                    "trials": [{"title": c.title, **o.to_json()} for c, o in zip(trials, outcomes)],
                }
            )
        else:
            _show(trials, outcomes, seconds, held)
    return EXIT_DONE if held else EXIT_FAILED


def _saved(outcome: Outcome) -> bool:
    return any(c.ok for c in outcome.checks if c.name == "dump saved")


def _verdict(trials: list[Column], outcomes: list[Outcome]) -> bool:
    """Lending passes every check; the smaller control dies of OOM (100M is told as it is)."""
    from crashlend.lab.suite import why_not_lost

    lent = all(o.ok for c, o in zip(trials, outcomes) if c.lends)
    return lent and not why_not_lost(outcomes[-1])


def _show(trials: list[Column], outcomes: list[Outcome], seconds: float, held: bool) -> None:
    from crashlend.lab.suite import why_not_lost

    results = [o.to_json() for o in outcomes]
    crash = [r["crash_kernel"]["mem_total_bytes"] for r in results]
    rows = [
        ("", [c.title for c in trials]),
        ("taken from production", [_mib(r["reservation"]["before_bytes"]) for r in results]),
        ("shared until the crash", [_mib(r["lent"]["bytes"]) for r in results]),
        ("crash kernel's memory, planned", [_mib(_planned(o)) for o in outcomes]),
        ("crash kernel's MemTotal", [_mib(value) if value else "-" for value in crash]),
        ("most used by the capture", [_mib(r["crash_kernel"]["peak_used_bytes"]) for r in results]),
        (
            "panic to crash kernel's init",
            [_s(r["seconds"]["panic_to_crash_kernel"]) for r in results],
        ),
        ("panic to dump saved", [_s(r["seconds"]["panic_to_saved"]) for r in results]),
        (
            "dump",
            [
                _mib(r["vmcore"]["bytes"]) if _saved(o) else "LOST"
                for r, o in zip(results, outcomes)
            ],
        ),
        ("checks passed", [f"{sum(c.ok for c in o.checks)} of {len(o.checks)}" for o in outcomes]),
    ]
    widths = [max(len(row[1][i]) for row in rows) for i in range(len(trials))]
    print()
    for name, cells in rows:
        line = f"{name:<31}" + "".join(f"  {cell:>{w}}" for cell, w in zip(cells, widths))
        print(styled(line, BOLD) if not name else line)
    print()
    for column, outcome in zip(trials, outcomes):
        if column.lends:
            print(f"{column.title}:")
            for check in outcome.checks:
                show_check(check)
    lost = outcomes[-1]
    why = why_not_lost(lost) or f"its dump is lost ({lost.death_by_memory})"
    print(f"control at 80M: {why}")
    for column, outcome in zip(trials[:-1], outcomes[:-1]):
        if not _saved(outcome):
            print(f"{column.title}: no dump. {_why_lost(outcome)}")
    memory = outcomes[0].spec.memory_bytes // MIB
    others = ", ".join(
        f"{name} {max(taken for start, taken in table if start <= memory)} MiB"
        for name, table in DISTRIBUTIONS
    )
    print(f"distributions take from production at {memory} MiB of RAM: {others}")
    word = styled("it holds", GREEN) if held else styled("it does NOT hold", RED)
    wait = outcomes[0].plan.get("quiesce", {}).get("wait_seconds", 0)
    print(
        f"{word}; {seconds:.0f} s in all. (The wait for DMA was {wait:g} s here; 10 s by default.)"
    )


def _why_lost(outcome: Outcome) -> str:
    """What is known of a dump that was not expected to be lost: the directory of the trial is gone."""
    why = outcome.death_by_memory or outcome.report.lost or "its guest ended by itself"
    words = [f"    {line}" for line in outcome.last_words.splitlines()[-CONSOLE_LINES:]]
    return "\n".join([f"{why}; the end of its console:", *words])


def _planned(outcome: Outcome) -> int | None:
    value = outcome.plan.get("costs", {}).get("crash_kernel_bytes")
    return int(value) if value else None


def _mib(value: int | None) -> str:
    return "-" if value is None else mib(value)


def _s(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f} s"
