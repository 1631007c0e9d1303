# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hands the cells of a matrix to an executor and writes each result down as it comes.

Any concurrent.futures.Executor will do. A trial's function never raises, so an error that comes back
for one means that its worker was lost, and the trial says nothing: it is handed out again. So is
one whose virtual machine was lost, once. Only this process writes results: however often a cell was
begun, it has one.
"""

from __future__ import annotations

import time
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable

from crashlend.errors import CrashlendError
from crashlend.lab.matrix.cell import ABSENT, FAILED, PASSED, VOID, run_cell
from crashlend.lab.packages import silent
from crashlend.lab.records import time_left

if TYPE_CHECKING:
    from collections.abc import Iterable
    from concurrent.futures import Executor, Future

    from crashlend.lab.matrix.table import Cell
    from crashlend.lab.packages import Say
    from crashlend.lab.records import Records

MACHINE_TRIES, WORKER_TRIES = 2, 3
WORDS = {PASSED: "ok", FAILED: "FAILED", ABSENT: "no such kernel", VOID: "no verdict"}


@dataclass
class _Job:
    """A cell on its way, and what has been lost with it so far."""

    cell: Cell
    machines_lost: int = 0
    workers_lost: int = 0


class Matrix:
    """One run. ``start`` makes an executor, and another one where that is broken.

    ``trial`` is given a cell's ``to_json`` and answers as run_cell does; ``end`` is called when the run
    is broken off, before what runs is waited for; ``clock`` is in seconds.
    """

    def __init__(
        self,
        start: Callable[[], Executor],
        trial: Callable[[dict[str, Any]], dict[str, Any]] = run_cell,
        say: Say = silent,
        end: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.start, self.trial, self.say, self.end, self.clock = start, trial, say, end, clock
        self._executor: Executor | None = None
        self._pending: dict[Future[dict[str, Any]], _Job] = {}
        self._done: list[dict[str, Any]] = []

    def run(self, cells: Iterable[Cell], records: Records) -> list[dict[str, Any]]:
        """Run them all; their results in the order in which they came, which ``records`` has, too.

        When it is interrupted, what has not begun never does, and what is finished is kept.
        CrashlendError when nothing more can be handed out.
        """
        cells, began = list(cells), self.clock()
        try:
            for cell in cells:
                self._hand_out(_Job(cell))
            while self._pending:
                finished, _ = wait(self._pending, return_when=FIRST_COMPLETED)
                for future in finished:
                    if self._take(future, records):
                        self._tell(len(cells), self.clock() - began)
        except BaseException:
            self._abandon(records)
            raise
        if self._executor is not None:
            self._executor.shutdown()
        return self._done

    def _hand_out(self, job: _Job) -> None:
        for _ in range(2):
            self._executor = self._executor or self.start()
            try:
                future = self._executor.submit(self.trial, job.cell.to_json())
            except BrokenExecutor:
                self._executor.shutdown(wait=False)
                self._executor = None
            except Exception as error:
                hint = "the same command with --resume goes on"
                raise CrashlendError("cannot hand out trials", repr(error), hint=hint) from None
            else:
                self._pending[future] = job
                return
        raise CrashlendError("cannot hand out trials", "the executor breaks at once")

    def _take(self, future: Future[dict[str, Any]], records: Records) -> bool:
        """Whether this future had the cell's result; else it is handed out again."""
        job = self._pending.pop(future)
        try:
            result = future.result()
        except Exception as error:
            job.workers_lost += 1
            # its text may name the machine
            why = f"its worker was lost {job.workers_lost} times ({type(error).__name__})"
            self.say(f"{job.cell.name}: a worker was lost: {error!r}")
            result = {"verdict": VOID, "why": why, "machine_lost": False}
            again = job.workers_lost < WORKER_TRIES
        else:
            job.machines_lost += bool(result.get("machine_lost"))
            again = bool(result.get("machine_lost")) and job.machines_lost < MACHINE_TRIES
            if again:
                self.say(f"{job.cell.name}: {result['why']}; once more")
        if again:
            self._hand_out(job)
        else:
            self._keep(job, result, records)
        return not again

    def _keep(self, job: _Job, result: dict[str, Any], records: Records) -> None:
        cell = job.cell
        known = {
            "cell": cell.id,
            "name": cell.name,
            "kernel": cell.kernel,
            "lender": cell.spec.get("lender"),
            "firmware": cell.spec.get("firmware"),
            "expect": cell.expect,
        }
        lost = {"machines_lost": job.machines_lost, "workers_lost": job.workers_lost}
        full = {**known, **result, **lost}
        full.pop("machine_lost", None)  # machines_lost says it
        records.add(full.pop("sources", ""), full)
        self._done.append(full)

    def _tell(self, of: int, elapsed_seconds: float) -> None:
        result, done = self._done[-1], len(self._done)
        why = f": {result['why']}" if result["verdict"] != PASSED else ""
        self.say(
            f"{done}/{of}  {WORDS[result['verdict']]}  {result['name']} ({result['cell']})"
            f"{why}; {result.get('seconds', 0):.0f} s; {time_left(done, of, elapsed_seconds)}"
        )

    def _abandon(self, records: Records) -> None:
        """Let nothing more begin; keep what was finished and not looked at."""
        running = {future: job for future, job in self._pending.items() if not future.cancel()}
        self.end()
        if self._executor is not None:
            self._executor.shutdown()
        for future, job in running.items():
            if not future.done() or future.exception() is not None:
                continue
            if future.result()["verdict"] != VOID:
                self._keep(job, future.result(), records)


def missing(cells: Iterable[Cell], lines: Iterable[dict[str, Any]]) -> list[Cell]:
    """The cells whose last result is no verdict, or that have none: nothing can be said of them."""
    last = _last(lines)
    return [cell for cell in cells if last.get(cell.id, {}).get("verdict", VOID) == VOID]


def latest(cells: Iterable[Cell], lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each cell its last result, in the cells' order, without those that have none."""
    last = _last(lines)
    return [{**last[cell.id], "name": cell.name} for cell in cells if cell.id in last]


def _last(lines: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each cell, by its id, the line that counts."""
    return {line["cell"]: line for line in lines if line.get("cell") and line.get("verdict")}
