# SPDX-License-Identifier: LGPL-2.1-or-later
"""How little memory a host's capture needs: measured on its twin (docs/decisions/0024-…)."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crashlend.errors import CrashlendError
from crashlend.formats.bzimage import BzImage
from crashlend.lab.bench.search import Quest
from crashlend.lab.entry.stop import STOP
from crashlend.lab.records import machine_facts
from crashlend.lab.trial import run_trial
from crashlend.lab.twin.bisect import find_least
from crashlend.lab.twin.private import private
from crashlend.lab.twin.probes import Probes
from crashlend.lab.twin.run import make_twin_disk, twin_spec
from crashlend.lab.twin.shape import Change, host_memory, resemble
from crashlend.lab.twin.write import Advice, advise, bitmap_bytes
from crashlend.ranges import align_down, align_up
from crashlend.sizes import MIB, mib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crashlend.config import Settings
    from crashlend.facts import Facts
    from crashlend.lab.outcome import Outcome
    from crashlend.lab.packages import Say
    from crashlend.lab.twin.probes import Look
    from crashlend.lab.twin.run import Payload
    from crashlend.lab.twin.shape import Shape

# sizes that are looked at lie on this grid: two pages of 2 MiB more or less are noise
STEP_BYTES = 2 * MIB
LEAST_LEND_BYTES = 512 * MIB
# for a host on which nothing is reserved yet
RESERVE_BYTES = 256 * MIB
# purgatory's wait changes nothing in memory
QUIESCE = "wait=1"


@dataclass(frozen=True)
class Options:
    """How a host is estimated: probes at a time, seconds for one, the twin's memory at most."""

    jobs: int = 1
    timeout_seconds: float = 600.0
    memory_bytes: int = 4 << 30
    step_bytes: int = STEP_BYTES
    confirm: int = 2
    accel: str = "tcg"
    keep: Path | None = None


@dataclass
class Estimate:
    """What was found. ``whole`` is the capture with all that the plan gives it, as the host's would be."""

    shape: Shape
    payload: Payload
    outcome: Outcome
    looks: list[Look] = field(default_factory=list)
    least_bytes: int | None = None
    fails_at_bytes: int | None = None
    exceptions: tuple[int, ...] = ()
    floor_bytes: int = 0
    advice: Advice | None = None
    scaled_bytes: int = 0
    why_not: str = ""

    @property
    def whole(self) -> Look | None:
        return self.looks[0] if self.looks else None

    @property
    def peak_used_bytes(self) -> int | None:
        """The most that the capture used, of the memory it had to itself, with all that it would have."""
        return self.whole.peak_used_bytes if self.whole else None

    def to_json(self) -> dict[str, Any]:
        """``crashlend estimate --json``, schema 1."""
        plan = self.outcome.plan
        whole = self.whole
        return {
            "schema": 1,
            "ok": self.least_bytes is not None,
            "why_not": self.why_not,
            "kernel": self.payload.kernel.release,
            "least_bytes": self.least_bytes,
            "fails_at_bytes": self.fails_at_bytes,
            "at_least_bytes": self.floor_bytes,
            "peak_used_bytes": self.peak_used_bytes,
            "mem_total_bytes": whole.mem_total_bytes if whole else None,
            "memory_bytes": whole.memory_bytes if whole else None,
            "scaled_bytes": self.scaled_bytes,
            "reserve": self.advice.to_json() if self.advice else None,
            "placement": (plan.get("layout") or {}).get("placement"),
            "exceptions_bytes": list(self.exceptions),
            "probes": [look.to_json() for look in self.looks],
            "twin": {
                "memory_bytes": self.shape.memory_bytes,
                "cpus": self.shape.cpus,
                "cmdline": self.shape.cmdline,
                "lent_bytes": self.shape.lend_bytes,
                "changes": [change._asdict() for change in self.changes],
            },
            "machine": machine_facts(),
        }

    @property
    def changes(self) -> tuple[Any, ...]:
        """All that is not as on the host."""
        return (*self.payload.changes, *self.shape.changes)


def estimate(
    facts: Facts, settings: Settings, payload: Payload, options: Options, say: Say
) -> Estimate:
    """Boot the host's twin, crash it, and look for the least memory with which its dump is saved.

    CrashlendError when the lab itself can't. That no dump is saved is a result (``why_not``).
    """
    image = BzImage.parse(payload.kernel.vmlinuz.read_bytes())
    shape = resemble(
        facts,
        settings,
        memory_bytes=options.memory_bytes,
        least_lend_bytes=LEAST_LEND_BYTES if settings.lender != "none" else 0,
        reserve_bytes=RESERVE_BYTES,
        simple=True,
    )
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="crashlend-twin-"))
        directory = Path(name)
        kept = stack.enter_context(private(options.keep or directory / "run"))
        standin = make_twin_disk(payload, directory)
        payload = replace(payload, changes=(*payload.changes, *standin.changes, *whole(settings)))
        spec = twin_spec(
            payload,
            shape,
            replace(settings, shrink_on_load=False),
            standin,
            directory,
            more=(STOP,),
            timeout_seconds=options.timeout_seconds,
            syscall="load",
            dma_quiesce=QUIESCE,
            poison=False,
            accel=options.accel,
        )
        search = _Search(options)
        probes = Probes(
            shape.memory_bytes,
            standin,
            image.init_size,
            search.run,
            jobs=options.jobs,
            timeout_seconds=options.timeout_seconds,
        )
        say(f"booting the twin: {mib(shape.memory_bytes)}, {shape.cmdline or 'no words'}")
        outcome = run_trial(
            spec,
            keep=kept,
            say=say,
            stop=probes,
            read=lambda where: standin.read(standin.image, where),
        )
    found = Estimate(shape, payload, outcome, search.looks)
    found.floor_bytes = search.floor_bytes
    _judge(found, search, probes, facts)
    return found


def whole(settings: Settings) -> tuple[Change, ...]:
    """That the twin's reservation is not shrunk, where the host's is."""
    if not settings.shrink_on_load:
        return ()
    why = "the search itself takes memory away"
    return (Change("the reservation", "shrunk when it is loaded", "whole", why),)


def _judge(found: Estimate, search: _Search, probes: Probes, facts: Facts) -> None:
    """What the search says; or why there is nothing to say."""
    failed = next((c for c in found.outcome.checks if not c.ok), None)
    if not found.looks:
        told = probes.error or (f"{failed.name}: {failed.detail}" if failed else "it never crashed")
        found.why_not = f"the twin did not get to its crash kernel: {told}"
        return
    first = found.looks[0]
    if not first.saved:
        found.why_not = f"no dump is saved with {mib(first.memory_bytes)} either: {first.how}"
        return
    found.least_bytes = search.least_bytes
    found.fails_at_bytes = search.fails_at_bytes
    found.exceptions = search.exceptions
    found.scaled_bytes = bitmap_bytes(host_memory(facts) - found.shape.memory_bytes)
    if found.least_bytes is None:
        found.why_not = "no size passed whose larger ones passed, too: see the probes"
        return
    least = found.least_bytes + found.scaled_bytes
    found.advice = advise(facts, found.outcome.plan, least)


class _Search:
    """The whole capture once, then the search; keeps every look."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.looks: list[Look] = []
        self.floor_bytes = 0
        self.least_bytes: int | None = None
        self.fails_at_bytes: int | None = None
        self.exceptions: tuple[int, ...] = ()

    def run(self, probes: Probes, say: Say) -> None:
        step, whole = self.options.step_bytes, probes.ram.size
        self.floor_bytes = probes.least_bytes
        first = self._look(probes, [whole], say)[0]
        if not first.saved:
            return
        low = align_up(probes.least_bytes, step) // step
        high = align_down(whole - 1, step) // step
        if low > high:
            self.least_bytes = whole
            return
        used = (first.peak_used_bytes or 0) + probes.init_size
        quest = Quest(
            low, high, min(high, max(low, used // step)), stride=4, confirm=self.options.confirm
        )

        def look(sizes: Sequence[int]) -> list[bool]:
            return [one.saved for one in self._look(probes, [size * step for size in sizes], say)]

        finding, _ = find_least(quest, look, self.options.jobs)
        # where no smaller size was enough, all of it was
        self.least_bytes = finding.answer * step if finding.answer is not None else whole
        self.fails_at_bytes = finding.below * step if finding.below is not None else None
        self.exceptions = tuple(size * step for size in finding.exceptions)

    def _look(self, probes: Probes, sizes: Sequence[int], say: Say) -> list[Look]:
        with ThreadPoolExecutor(len(sizes)) as pool:
            tasks = [pool.submit(probes.look, size, n) for n, size in enumerate(sizes)]
            looks = [task.result() for task in tasks]
        for one in looks:
            say(f"{mib(one.memory_bytes)}: {one.how} ({one.seconds:.0f} s)")
        self.looks += looks
        return looks


def need_root(facts: Facts) -> None:
    """CrashlendError where the facts lack what only root sees."""
    if not facts.iomem:
        raise CrashlendError(
            "cannot make a twin of this host",
            f"/proc/iomem can't be read: {facts.missing.get('/proc/iomem', 'it is empty')}",
            hint="run it as root, or take a snapshot as root and give it with --root",
        )
