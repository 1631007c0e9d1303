# SPDX-License-Identifier: LGPL-2.1-or-later
"""``lab soak``: runs the guests that soak_cases.py draws, judges them, and keeps what failed.

Each result is a line of results.jsonl, on the disk before the next one is waited for. A trial that
did not go well leaves all its files in failed/INDEX.
"""

from __future__ import annotations

import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Callable

from crashlend.errors import CrashlendError
from crashlend.lab.digest import figures, void
from crashlend.lab.leftovers import Leftovers
from crashlend.lab.packages import silent
from crashlend.lab.qemu import LostVmError
from crashlend.lab.records import Records, source_hash, time_left
from crashlend.lab.spec import Check
from crashlend.lab.trial import run_trial

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from crashlend.lab.kernels import Kernel
    from crashlend.lab.outcome import Outcome
    from crashlend.lab.packages import Say
    from crashlend.lab.soak.cases import SoakCase

# every check held; the dump is there and something else is wrong; production crashed and there is
# no dump; it did not come as far as the crash; nothing can be said, the lab itself failed
PASSED, FLAWED, LOST, UNCRASHED, VOID = "passed", "flawed", "lost", "uncrashed", "void"
WORDS = {
    PASSED: "ok",
    FLAWED: "dump saved, but a check failed",
    LOST: "DUMP LOST",
    UNCRASHED: "did not crash",
    VOID: "no verdict",
}
RESULTS = "results.jsonl"
TRIES = 2  # where the machine is lost, which says nothing of the product
DUMP_CHECKS = ("dump saved", "dump opens")  # how their names begin


@dataclass(frozen=True)
class Soak:
    """A run of drawn trials in ``directory``, ``jobs`` at a time. ``kernels`` by name.

    ``clock`` is in seconds.
    """

    directory: Path
    kernels: Mapping[str, Kernel]
    jobs: int = 2
    say: Say = silent
    run: Callable[..., Outcome] = run_trial
    clock: Callable[[], float] = time.monotonic
    stop: threading.Event = field(default_factory=threading.Event)

    def trials(self, cases: Iterable[SoakCase], records: Records) -> list[dict[str, Any]]:
        """Run them all; the results in the order in which they came, which ``records`` has, too.

        When it is interrupted it ends the guests, keeps what is finished and removes the rest.
        """
        cases = tuple(cases)
        # of a run that was killed
        leftovers = Leftovers(self.directory)
        leftovers.clear()
        tree, began = source_hash(lab_only=False)[:12], self.clock()
        session = 1 + max((line.get("session", 0) for line in records.lines), default=0)
        results: list[dict[str, Any]] = []
        with ThreadPoolExecutor(max(1, self.jobs)) as pool:
            futures = [pool.submit(self.one, case) for case in cases]
            try:
                for future in as_completed(futures):
                    elapsed = self.clock() - began
                    result = {**future.result(), "session": session, "at": round(elapsed, 1)}
                    records.add(tree, result)
                    results.append(result)
                    self.say(progress_line(result, len(results), len(cases), elapsed))
                    if result["verdict"] != PASSED:
                        self._tell(result)
            except BaseException:
                self.stop.set()
                pool.shutdown(cancel_futures=True)
                leftovers.clear()
                raise
        leftovers.clear()
        return results

    def one(self, case: SoakCase) -> dict[str, Any]:
        """One trial and its verdict; a lost machine is tried once more."""
        leftovers, name = Leftovers(self.directory), str(case.index)
        spec = case.spec(self.kernels[case.kernel])
        began, tries, result = self.clock(), 0, {}
        while tries < TRIES and not self.stop.is_set():
            tries += 1
            where = leftovers.begin(name)
            try:
                outcome = self.run(spec, keep=where, say=self.say, given_up=self._given_up)
            except CrashlendError as error:
                result = {"verdict": VOID, **void(error)}
                if not isinstance(error, LostVmError):
                    break
            except Exception as error:  # a defect of the lab's must not end the other trials
                result = {
                    "verdict": VOID,
                    **void(CrashlendError("the lab itself failed", repr(error))),
                }
                where.mkdir(parents=True, exist_ok=True)
                (where / "traceback.txt").write_text(traceback.format_exc())
                break
            else:
                result = digest(case, outcome)
                break
        result = {**asdict(case), **result, "tries": tries}
        result["seconds"] = round(self.clock() - began, 1)
        if result.get("verdict") == PASSED:
            leftovers.drop(name)
        elif not self.stop.is_set():
            leftovers.keep(name)
        return result

    def _given_up(self) -> str:
        return "interrupted" if self.stop.is_set() else ""

    def _tell(self, result: dict[str, Any]) -> None:
        """What went wrong, where its files are, and how to see it again."""
        name = f"{result['seed']}/{result['index']}"
        self.say(f"  {name}: {result['why']}")
        self.say(f"  all its files: {Leftovers(self.directory).failed(str(result['index']))}")
        self.say(f"  again: {again(result)} -o {self.directory}")


def again(result: Mapping[str, Any]) -> str:
    """The command that repeats this one trial."""
    return f"crashlend lab soak --only {result['seed']}/{result['index']}"


def missing(cases: Iterable[SoakCase], records: Records) -> list[SoakCase]:
    """The cases whose last result is no verdict, or that have none. One drawn otherwise has none."""
    cases = list(cases)
    known = [line for line in latest(cases, records) if line["verdict"] != VOID]
    return [case for case in cases if not any(is_of(line, case) for line in known)]


def latest(cases: Iterable[SoakCase], records: Records) -> list[dict[str, Any]]:
    """Of each case its last result, without those that have none."""
    found = []
    for case in cases:
        lines = [line for line in records.lines if line.get("verdict") and is_of(line, case)]
        found += lines[-1:]
    return found


def is_of(line: Mapping[str, Any], case: SoakCase) -> bool:
    """Whether this is a result of just this guest."""
    return all(line.get(key) == value for key, value in asdict(case).items())


def digest(case: SoakCase, outcome: Outcome) -> dict[str, Any]:
    """What is kept of a trial: the verdict, why, and the figures that a table needs."""
    failed = [check for check in (*outcome.checks, *as_drawn(case, outcome)) if not check.ok]
    verdict = judge(outcome, failed)
    told = outcome.death_by_memory or outcome.capture.get("reason")
    whys = [f"{check.name}: {check.detail}" for check in failed]
    if verdict == LOST and told:
        whys.insert(0, str(told))
    return {
        "verdict": verdict,
        "why": "; ".join(whys)[:2000],
        **figures(outcome),
        "memory_at_crash": outcome.report.find("working").get("memory"),
    }


def judge(outcome: Outcome, failed: Iterable[Check]) -> str:
    """The verdict on a trial whose machine lived."""
    if not outcome.report.find("crashing"):
        return UNCRASHED
    held = [check.name for check in outcome.checks if check.ok]
    if not all(any(name.startswith(words) for name in held) for words in DUMP_CHECKS):
        return LOST
    return FLAWED if list(failed) else PASSED


def as_drawn(case: SoakCase, outcome: Outcome) -> list[Check]:
    """Lender and system call are those of the case: otherwise it was counted for another kind."""
    used = outcome.plan.get("lender"), outcome.plan.get("syscall")
    drawn = case.source, case.syscall
    if not outcome.plan:
        return []
    return [Check("lender and system call are as drawn", used == drawn, f"{used}, drawn {drawn}")]


def progress_line(result: Mapping[str, Any], done: int, of: int, elapsed: float) -> str:
    """One finished trial and how long the others will take, as these did on average."""
    guest = f"{result['kernel']}, {result['source']}, {result['load']} {result['load_when']}"
    return (
        f"{done}/{of}  {WORDS[result['verdict']]}  {result['seed']}/{result['index']}: "
        f"{guest.strip()}, {result['crash']}; {result['seconds']:.0f} s; "
        f"{time_left(done, of, elapsed)}"
    )
