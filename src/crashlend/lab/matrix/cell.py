# SPDX-License-Identifier: LGPL-2.1-or-later
"""One cell of a matrix, run where this is called: a machine of a cluster, or this one.

What comes back is plain JSON, and refers to no file of the machine that it comes from.
"""

from __future__ import annotations

import threading
import time
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Callable

from crashlend.errors import CrashlendError
from crashlend.lab.digest import figures, void
from crashlend.lab.kernels import NoKernelError, fetch
from crashlend.lab.leftovers import Leftovers
from crashlend.lab.matrix.table import Cell
from crashlend.lab.packages import silent
from crashlend.lab.records import machine_facts, product_commit, source_hash
from crashlend.lab.spec import Spec, Trial
from crashlend.lab.suite import judge
from crashlend.lab.trial import run_trial

if TYPE_CHECKING:
    from pathlib import Path

    from crashlend.lab.kernels import Kernel
    from crashlend.lab.outcome import Outcome
    from crashlend.lab.packages import Say

# as it must; not so; Debian has no such kernel any more; nothing can be said of the product
PASSED, FAILED, ABSENT, VOID = "passed", "failed", "absent", "void"
ANY = "auto"
WHY_CHARACTERS = 2000


def run_cell(
    content: dict[str, Any],
    *,
    keep: Path | None = None,
    say: Say = silent,
    given_up: Callable[[], str] = lambda: "",
    run: Callable[..., Outcome] = run_trial,
    get: Callable[[str, Say], Kernel] = fetch,
) -> dict[str, Any]:
    """Fetch the cell's kernel into this machine's cache, crash it, and say what came of it.

    Never raises for what happens to the trial: who asked may be on another machine, where an error
    from here means that this one was lost.
    """
    began, made = time.monotonic(), {}
    try:
        cell = Cell.from_json(content)
        kernel = get(cell.kernel, say)
        # before the trial, which copies the sources at its start: they may be others when it ends
        made = made_with()
        outcome = run(Spec(kernel=kernel, **cell.spec), keep=keep, say=say, given_up=given_up)
        result = verdict(cell, outcome, given_up())
    except NoKernelError as error:
        result = {"verdict": ABSENT, "why": str(error)}
    except CrashlendError as error:
        result = {"verdict": VOID, **void(error)}
    except Exception as error:  # a defect of the lab's, and nothing of the product's
        trace = traceback.format_exc(limit=-3)[-WHY_CHARACTERS:]
        why = void(CrashlendError("the lab itself failed", repr(error)))
        result = {"verdict": VOID, **why, "last_words": trace}
    return {**result, "seconds": round(time.monotonic() - began, 1), **(made or made_with())}


def made_with() -> dict[str, Any]:
    """Sources, product and machine of a trial that begins here and now."""
    try:
        facts = machine_facts()
    except CrashlendError:  # without QEMU: then that is why there is no verdict
        facts = {}
    return {
        "commit": product_commit(),
        "sources": source_hash(lab_only=False)[:12],
        "machine": {key: facts[key] for key in ("qemu", "host_cpus") if key in facts},
    }


def verdict(cell: Cell, outcome: Outcome, ended: str = "") -> dict[str, Any]:
    """What came of the cell; none where the guest was ``ended`` early. Last words if it failed."""
    if ended:
        return {"verdict": VOID, **void(CrashlendError("the trial was ended", ended))}
    why = judge(as_trial(cell, outcome), outcome)
    result = {"verdict": FAILED if why else PASSED, "why": why[:WHY_CHARACTERS]}
    result |= {"kernel_version": outcome.spec.kernel.version, "accel": outcome.spec.accel}
    result |= figures(outcome)
    return {**result, "last_words": outcome.last_words} if why else result


def as_trial(cell: Cell, outcome: Outcome) -> Trial:
    """What suite.judge wants to know. Where the cell leaves a choice, that was made rightly."""
    lender, syscall = cell.spec.get("lender", ANY), cell.spec.get("syscall", ANY)
    return Trial(
        cell.name,
        "",
        cell.kernel,
        expect=cell.expect,
        words=cell.words,
        exit=cell.exit,
        lender=str(outcome.plan.get("lender")) if lender == ANY else lender,
        syscall=str(outcome.plan.get("syscall")) if syscall == ANY else syscall,
    )


@dataclass(frozen=True)
class Here:
    """Runs cells on this machine; the files of one that fails stay in ``directory``/failed/ID."""

    directory: Path
    say: Say = silent
    run: Callable[..., Outcome] = run_trial
    get: Callable[[str, Say], Kernel] = fetch
    stop: threading.Event = field(default_factory=threading.Event)

    def __call__(self, content: dict[str, Any]) -> dict[str, Any]:
        """What :func:`run_cell` says."""
        leftovers, name = Leftovers(self.directory), Cell.from_json(content).id
        result = run_cell(
            content,
            keep=leftovers.begin(name),
            say=self.say,
            given_up=lambda: "interrupted" if self.stop.is_set() else "",
            run=self.run,
            get=self.get,
        )
        if result["verdict"] in (PASSED, ABSENT):
            leftovers.drop(name)
        elif not self.stop.is_set():
            leftovers.keep(name)
        return result
