# SPDX-License-Identifier: LGPL-2.1-or-later
"""``lab bench``: how much must be reserved, by whom; how long loading and lending take.

Every probe is one trial: production boots with ``crashkernel=SIZE``, the crash kernel is loaded,
production crashes, and the size is enough when the dump is saved and opens. Each result is
written to a file at once; the same question of the same tree is not asked again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Callable

from crashlend.errors import CrashlendError
from crashlend.lab.bench import times as bench_times
from crashlend.lab.bench.search import Probe, Quest, evaluate, next_size
from crashlend.lab.captures import build_capture_for
from crashlend.lab.lab_disk import production_words
from crashlend.lab.packages import silent
from crashlend.lab.qemu import LostVmError
from crashlend.lab.records import Records, machine_facts, source_hash
from crashlend.lab.spec import Spec
from crashlend.lab.trial import run_trial

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from crashlend.lab.kernels import Kernel
    from crashlend.lab.outcome import Outcome
    from crashlend.lab.packages import Say

KERNELS = ("6.1", "7.3")
LOW_MIB, HIGH_MIB = 8, 256
# Production stays where it is loaded too: else each boot has its reservation elsewhere, and one that
# touches two memory sections costs the crash kernel 2 MiB more than one in a single section.
PLACED = "nokaslr"
COMFORTABLE_MIB = 256
# without a verdict (a lost machine, a deadline): a probe is repeated this often
TRIES = 3


@dataclass(frozen=True)
class Row:
    """What is searched: ``words`` are production's, with the size in MiB; ``spec`` the rest.

    ``after`` names the row whose answer is the first guess; ``guess`` counts where there is none.
    """

    key: str
    words: str
    guess: int
    spec: Mapping[str, Any] = field(default_factory=dict)
    after: str = ""
    stride: int = 8


RESERVED, LENT = "crashkernel={}M", "crashkernel=1G,cma crashkernel={}M"
ROWS = (
    Row("kexec-c", RESERVED, 104, {"loader": "kexec-c"}),
    Row("kexec-s", RESERVED, 104, {"loader": "kexec-s"}, after="kexec-c"),
    Row("crashlend-none", RESERVED, 104, {"lender": "none"}, after="kexec-c"),
    Row("crashlend-lent", LENT, 16, stride=2),
)
SHRINKS = {"crashlend-auto": "auto", "crashlend-exact": "exact"}
TIMES = "times"


@dataclass(frozen=True)
class Options:
    """How thorough the bench is: how often an answer is confirmed, and each time measured."""

    confirm: int = 2
    exact_rounds: int = 2
    rounds: int = 5
    lend_rounds: int = 3
    keep: Path | None = None

    @classmethod
    def quick(cls, keep: Path | None) -> Options:
        """One look each, for a first impression."""
        return cls(confirm=1, exact_rounds=1, rounds=2, lend_rounds=1, keep=keep)


@dataclass(frozen=True)
class Bench:
    """One kernel's bench."""

    kernel: Kernel
    options: Options
    records: Records
    say: Say = silent
    run: Callable[..., Outcome] = run_trial

    def results(self) -> dict[str, Any]:
        """All rows, the shrunk reservations and the times; runs what is missing."""
        rows: dict[str, dict[str, Any]] = {}
        for row in ROWS:
            rows[row.key] = self._search(row, rows.get(row.after, {}).get("answer_mib"))
        shrunk = {}
        for key, reserve in SHRINKS.items():
            often = self.options.exact_rounds if reserve == "exact" else 1
            shrunk[key] = [self._shrink(key, reserve, turn) for turn in range(often)]
        return {
            "name": self.kernel.name,
            "release": self.kernel.release,
            "version": self.kernel.version,
            "rows": rows,
            "shrunk": shrunk,
            "times": self._times(),
        }

    def _spec(self, words: str, **more: Any) -> Spec:
        return Spec(kernel=self.kernel, cmdline=f"{PLACED} {words}", **more)

    def _search(self, row: Row, known: int | None) -> dict[str, Any]:
        """Probe until the row's answer is confirmed."""
        quest = Quest(
            LOW_MIB,
            HIGH_MIB,
            known or row.guess,
            1 if known else row.stride,
            self.options.confirm,
        )
        stamp = self._stamp(row.key, row.words, dict(row.spec))
        while True:
            seen = [line for line in self.records.of(stamp) if line["verdict"] != "void"]
            probes = [Probe(p["size_mib"], p["verdict"] == "enough") for p in seen]
            size = next_size(quest, probes)
            if size is None:
                break
            spec = self._spec(
                row.words.format(size), scan=False, poison=False, impatient=True, **row.spec
            )
            result = self._probe(spec, f"{row.key}-{size}M-{len(seen)}")
            self.records.add(stamp, {"row": row.key, "size_mib": size, **result})
            self._say(f"{row.key} {size}M: {result['verdict']} {result['why']}".rstrip())
        found = evaluate(probes)
        return {
            "answer_mib": found.answer,
            "below_mib": found.below,
            "passed": found.passed,
            "failed": found.failed,
            "exceptions_mib": list(found.exceptions),
            "probes": [{k: v for k, v in p.items() if k not in ("stamp", "row")} for p in seen],
        }

    def _probe(self, spec: Spec, name: str) -> dict[str, Any]:
        """One trial with a verdict; CrashlendError when there is none after several tries."""
        for attempt in range(TRIES):
            try:
                result = judge(self._run(spec, f"{name}-{attempt}"))
            except LostVmError as error:
                result = {"verdict": "void", "why": str(error)}
            if result["verdict"] != "void":
                return result
            self._say(f"{name}: no verdict: {result['why']}")
        raise CrashlendError(
            "the bench cannot go on", f"{name}: no verdict in {TRIES} tries: {result['why']}"
        )

    def _shrink(self, key: str, reserve: str, turn: int) -> dict[str, Any]:
        """The reservation after ``load --shrink``, with the proof that the dump is saved."""
        stamp = self._stamp(key, LENT, {"reserve": reserve})
        known = self.records.of(stamp)
        if turn < len(known):
            return {k: v for k, v in known[turn].items() if k not in ("stamp", "row")}
        spec = self._spec(LENT.format(COMFORTABLE_MIB), reserve=reserve)
        result = self._probe(spec, f"{key}-{turn}")
        self.records.add(stamp, {"row": key, **result})
        self._say(
            f"{key}: {result['verdict']} {result['why']}, {result['reservation_bytes']} bytes"
        )
        return result

    def _times(self) -> dict[str, Any]:
        options = self.options
        spec = self._spec(RESERVED.format(COMFORTABLE_MIB), timeout_seconds=1800)
        plan = bench_times.steps(spec, production_words(spec), options.rounds, options.lend_rounds)
        stamp = self._stamp(TIMES, spec.cmdline, {"steps": [asdict(step) for step in plan]})
        known = self.records.of(stamp)
        if known:
            return dict(known[-1]["times"])
        outcome = self._run(bench_times.with_steps(spec, plan), TIMES)
        times = bench_times.digest(plan, outcome.report.events)
        times["initramfs_bytes"] = build_capture_for(self.kernel, self.say).stat().st_size
        self.records.add(stamp, {"row": TIMES, "times": times})
        self._say("times are measured")
        return times

    def _run(self, spec: Spec, name: str) -> Outcome:
        keep = self.options.keep
        return self.run(spec, keep=keep / self.kernel.name / name if keep else None, say=self.say)

    def _say(self, words: str) -> None:
        self.say(f"{self.kernel.name}  {words}")

    def _stamp(self, key: str, words: str, more: dict[str, Any]) -> str:
        """The same question on the same kernel to the same sources has the same stamp."""
        question = [key, PLACED, words, more, self.kernel.release, self.kernel.version]
        tree = source_hash(lab_only=key.startswith("kexec"))
        return hashlib.sha256(json.dumps([*question, tree]).encode()).hexdigest()[:16]


def judge(outcome: Outcome) -> dict[str, Any]:
    """What one trial says of its reservation: enough, too small (refused, lost), or void.

    Void says nothing: production did not come as far as the crash, the deadline passed while
    nothing showed that the crash kernel was lost, or a dump was saved with something else wrong.
    """
    report, result = outcome.report, outcome.to_json()
    failed = [c for c in outcome.checks if not c.ok]
    command = report.find("command")
    if not command:
        verdict, why = "void", "production never loaded anything"
    elif command["exit"] != command["expected"] or not command["crash_loaded"]:
        said = command["stderr"].strip().splitlines() or [f"exit {command['exit']}"]
        verdict, why = "refused", said[0][:200]
    elif not report.find("crashing"):
        verdict, why = "void", "production never crashed"
    elif not failed:
        verdict, why = "enough", ""
    else:
        told = report.lost or outcome.capture.get("reason") or outcome.death_by_memory
        without_dump = any(c.name.startswith("dump ") for c in failed)
        verdict = "lost" if without_dump and (told or not report.timed_out) else "void"
        why = str(told or f"{failed[-1].name}: {failed[-1].detail}")[:200]
    return {
        "verdict": verdict,
        "why": why,
        "reservation_bytes": reserved_bytes(result, report.find("booted")),
        "required_bytes": result["reservation"]["required_bytes"],
        "payload_bytes": sum(v or 0 for v in result["payload"].values()) or None,
        "lender": result["lender"],
        "lent_bytes": result["lent"]["bytes"],
        "checks": f"{sum(c.ok for c in outcome.checks)} of {len(outcome.checks)}",
        "mem_total_bytes": result["crash_kernel"]["mem_total_bytes"],
        "peak_used_bytes": result["crash_kernel"]["peak_used_bytes"],
        "vmcore_bytes": result["vmcore"]["bytes"],
        "panic_to_saved_seconds": result["seconds"]["panic_to_saved"],
        "process_seconds": command.get("seconds"),
        "seconds": report.seconds,
    }


def reserved_bytes(result: dict[str, Any], booted: dict[str, Any]) -> int:
    """The reservation that the crash kernel was loaded into: what a shrink left, else as booted."""
    after: int | None = result["reservation"]["after_bytes"]
    return after or sum(end - start for start, end in booted.get("crash_ranges", []))


def bench_data(options: Options, kernels: list[dict[str, Any]]) -> dict[str, Any]:
    """The whole of the results; ``docs/results/bench.json`` is this."""
    how = asdict(replace(options, keep=None))
    how.pop("keep")
    return {"schema": 1, "machine": machine_facts(), "options": how, "kernels": kernels}
