# SPDX-License-Identifier: LGPL-2.1-or-later
"""The bench's guest that never crashes: loads side by side, lending idle and with memory full. Pure.

The loaders take turns, so that what else the machine does meets all of them alike.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from crashlend.errors import CrashlendError
from crashlend.lab.loaders import CRASHLEND, LOADERS, load_command, unload_command
from crashlend.lab.spec import Command
from crashlend.sizes import MIB

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from crashlend.lab.spec import Spec

LEND = "1G"
# of MemTotal; the file is what of it the page cache holds, the rest is anonymous
FULL_SHARE, FULL_CACHE_BYTES = 0.9, 600 * MIB
IDLE, FULL = "idle", "full"
# The product's 10 s are ample for hardware. Moving 32768 pages under TCG on a busy machine takes
# as long, and what is to be measured is the moving.
DEADLINE_SECONDS = 120.0
_BLOCK = re.compile(r"memory block \d+ (is movable now|stays: (.*))")


@dataclass(frozen=True)
class Step:
    """One command and what it measures: ``warm`` counts for nothing, it fills caches."""

    what: str
    command: Command


def steps(spec: Spec, production: str, rounds: int, lend_rounds: int) -> tuple[Step, ...]:
    """What the guest does, in order."""
    out = [Step("version", Command(("--version",), program="kexec"))]
    nothing = Command(("load", "--lender", "none"))
    loads = {
        loader: nothing if loader == CRASHLEND else load_command(spec, loader, production)
        for loader in LOADERS
    }
    for turn in range(rounds + 1):
        for loader, load in loads.items():
            out.append(Step(f"load {loader}" if turn else "warm", load))
            out.append(Step("unload", unload_command(loader)))
    lending = Command(("load", "--lend", LEND, "--block-deadline", f"{DEADLINE_SECONDS:g}"))
    for state in (IDLE, FULL):
        if state == FULL:
            words = ("fill", f"{FULL_SHARE:g}", str(FULL_CACHE_BYTES))
            out.append(Step("fill", Command(words, program="agent")))
        for _ in range(lend_rounds):
            out.append(Step(f"lend {state}", lending))
            out.append(Step("unload", unload_command(CRASHLEND)))
    return tuple(out)


def with_steps(spec: Spec, plan: Sequence[Step]) -> Spec:
    """The guest's trial: it crashes nothing."""
    return replace(spec, crash="none", commands=tuple(step.command for step in plan))


def digest(plan: Sequence[Step], events: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The figures of a guest that did all of ``plan``; CrashlendError when it did not.

    ``load_seconds`` are whole processes, ``own_load_seconds`` what crashlend says of planning,
    building and handing over the image alone. Of each lending: ``seconds`` (choosing the blocks
    and moving them), ``block_seconds`` of each block but the first, from the one before it, and
    ``refused`` of those that did not go, as [seconds, reason]; ``available_bytes`` before and after.
    """
    done = [e for e in events if e.get("event") in ("command", "fill")]
    bad = [e for e in done if e.get("exit", 0) != e.get("expected", 0)]
    if bad or len(done) != len(plan):
        why = bad[0]["stderr"].strip()[-200:] if bad else f"{len(done)} of {len(plan)} steps done"
        raise CrashlendError("the guest that measures times did not finish", why)
    loads: dict[str, list[float]] = {loader: [] for loader in LOADERS}
    own: list[float] = []
    lending: dict[str, list[dict[str, Any]]] = {IDLE: [], FULL: []}
    out: dict[str, Any] = {}
    for step, event in zip(plan, done):
        what, _, which = step.what.partition(" ")
        if what == "load":
            loads[which].append(event["seconds"])
            if which == CRASHLEND:
                own.append(event["answer"]["seconds"]["load"])
        elif what == "lend":
            lending[which].append(_lending(event))
        elif what == "fill":
            out["full"] = {k: v for k, v in event.items() if k not in ("event", "at")}
        elif what == "version":
            out["kexec_tools"] = str(event["answer"]).split("\n")[0].strip()
    return {**out, "load_seconds": loads, "own_load_seconds": own, "lending": lending}


def _lending(event: dict[str, Any]) -> dict[str, Any]:
    answer = event["answer"]
    found = [(at, _BLOCK.search(line)) for at, line in event["said"]]
    moments = [(at, match[2]) for at, match in found if match]
    took = [(round(b[0] - a[0], 3), b[1]) for a, b in zip(moments, moments[1:])]
    return {
        "seconds": answer["seconds"]["lend"],
        "process_seconds": event["seconds"],
        "block_seconds": [seconds for seconds, reason in took if not reason],
        "refused": [[seconds, reason] for seconds, reason in took if reason],
        "refused_blocks": len(answer["refused"]),
        "lent_bytes": sum(end - start for start, end in answer["plan"]["lent"]),
        "available_bytes": event["available"],
    }
