# SPDX-License-Identifier: LGPL-2.1-or-later
"""``lab capture-bench``: guests that crash while a clock runs. Each result is on the disk at once.

The same question of the same sources is not asked again, so that a run which was interrupted goes on
where it was.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

from crashlend.errors import CrashlendError
from crashlend.lab.kernels import fetch
from crashlend.lab.packages import silent
from crashlend.lab.qemu import LostVmError
from crashlend.lab.records import Records, machine_facts, product_commit, source_hash
from crashlend.lab.spec import Spec
from crashlend.lab.speed.compare import run_one
from crashlend.lab.speed.contenders import CONTENDERS, CRASHKERNEL, MEMORY_BYTES, by_name
from crashlend.lab.speed.moments import CRASHLEND, Follower, moments
from crashlend.lab.suite import find
from crashlend.lab.trial import run_trial
from crashlend.sizes import MIB

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crashlend.lab.packages import Say

COMPARED_ON = "6.1"
THREADS_TRIAL = "speed-threads-7.3"
# A guest without a result that counts is run again this often.
TRIES = 3


@dataclass(frozen=True)
class Target:
    """Where a dump goes, and the guest that shows how long it takes to get there."""

    title: str
    kernel: str
    spec: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"target {self.title} {self.kernel}"


# What all of them have in common: the reservation is ample, memory is lent, and DMA is waited for
# 1 s, as in all of the lab's trials.
TARGET_SPEC = {
    "memory_bytes": 2048 * MIB,
    "lend_bytes": 512 * MIB,
    "cmdline": "nokaslr crashkernel=512M,cma crashkernel=160M",
    "timeout_seconds": 900.0,
    "poison": False,
    "scan": False,
}
TARGETS = (
    Target("ext4 on a virtio disk", "6.1"),
    Target("ext4 on a virtio disk", "7.3"),
    Target("ext4 on an IDE disk", "6.1", {"disk": "ide"}),
)


@dataclass
class Bench:
    """What is measured and how often; ``most`` guests are run at most (None: all that are missing)."""

    records: Records
    rounds: int = 3
    most: int | None = None
    keep: Path | None = None
    say: Say = silent

    def results(self) -> dict[str, Any]:
        """All that is known when nothing is missing, or ``most`` guests have run."""
        compared = [
            self._result(f"compare {turn} {contender.name}", self._compare(contender.name))
            for turn in range(self.rounds)
            for contender in CONTENDERS
        ]
        threads = self._result("threads", self._threads)
        targets = [self._result(target.key, self._target(target)) for target in TARGETS]
        return {
            "schema": 1,
            "machine": machine_facts(),
            "commit": product_commit(),
            "compare": {
                "kernel": COMPARED_ON,
                "memory_bytes": MEMORY_BYTES,
                "cmdline": CRASHKERNEL,
                "runs": [run for run in compared if run],
            },
            "targets": [target for target in targets if target],
            "threads": threads or None,
        }

    def _result(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What the records have under ``key``, or what a guest shows now; empty: none was left."""
        digest = hashlib.sha256(json.dumps([key, source_hash(lab_only=False)]).encode())
        stamp = digest.hexdigest()[:16]
        for known in self.records.of(stamp):
            if not known["why"]:
                return {k: v for k, v in known.items() if k not in ("stamp", "key")}
        for _ in range(TRIES):
            if self.most is not None and self.most <= 0:
                return {}
            if self.most is not None:
                self.most -= 1
            try:
                result = measure()
            except LostVmError as error:
                result = {"why": str(error)}
            self.records.add(stamp, {"key": key, **result})
            self.say(f"{key}: {result['why'] or 'measured'}")
            if not result["why"]:
                return result
        raise CrashlendError("the bench cannot go on", f"{key}: {result['why']}")

    def _compare(self, name: str) -> Callable[[], dict[str, Any]]:
        kernel = fetch(COMPARED_ON, self.say)
        return lambda: run_one(by_name(name), kernel, keep=self.keep, say=self.say)

    def _target(self, target: Target) -> Callable[[], dict[str, Any]]:
        def measure() -> dict[str, Any]:
            kernel = fetch(target.kernel, self.say)
            spec = Spec(kernel=kernel, **{**TARGET_SPEC, **target.spec})
            with tempfile.TemporaryDirectory(prefix="crashlend-speed-") as name:
                with Follower(Path(name) / "console.log") as follower:
                    outcome = run_trial(spec, keep=Path(name), say=self.say)
                found = outcome.to_json()
            capture = outcome.capture
            return {
                "title": target.title,
                "release": kernel.release,
                "initramfs_bytes": found["payload"]["initramfs_bytes"],
                "vmcore_bytes": found["vmcore"]["bytes"],
                "peak_used_bytes": found["crash_kernel"]["peak_used_bytes"],
                "seconds": capture.get("seconds"),
                "makedumpfile": capture.get("makedumpfile"),
                "moments": moments(follower.lines, CRASHLEND),
                "cpu": moments(follower.lines, CRASHLEND, "cpu"),
                "why": "; ".join(f"{c.name}: {c.detail}" for c in outcome.checks if not c.ok),
            }

        return measure

    def _threads(self) -> dict[str, Any]:
        trial = find(THREADS_TRIAL)
        kernel = fetch(trial.kernel, self.say)
        outcome = run_trial(Spec(kernel=kernel, **trial.spec), say=self.say)
        events = [e for e in outcome.report.events if e.get("event") == "speed"]
        return {
            "release": kernel.release,
            "version": (outcome.capture.get("makedumpfile") or {}).get("version"),
            "runs": [{k: v for k, v in e.items() if k not in ("event", "at")} for e in events],
            "why": "; ".join(f"{c.name}: {c.detail}" for c in outcome.checks if not c.ok),
        }
