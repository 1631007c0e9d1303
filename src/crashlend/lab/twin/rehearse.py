# SPDX-License-Identifier: LGPL-2.1-or-later
"""A rehearsal: a host's twin boots, loads as the host would, crashes and saves its dump, or does not."""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crashlend.lab.records import machine_facts
from crashlend.lab.trial import STAGES, run_trial
from crashlend.lab.twin.private import private
from crashlend.lab.twin.run import make_twin_disk, twin_spec
from crashlend.lab.twin.shape import resemble
from crashlend.lab.watch import Watch
from crashlend.rehearsal import Rehearsal, fingerprints
from crashlend.sizes import mib

if TYPE_CHECKING:
    from crashlend.config import Settings
    from crashlend.facts import Facts
    from crashlend.lab.outcome import Outcome
    from crashlend.lab.packages import Say
    from crashlend.lab.twin.run import Payload
    from crashlend.lab.twin.shape import Change, Shape

# on the console, before the crash kernel is up: under emulation on a busy machine
SILENCE_SECONDS = 180.0


@dataclass(frozen=True)
class Options:
    """The twin's memory at most, in bytes; seconds for it; where its files are kept."""

    memory_bytes: int = 4 << 30
    timeout_seconds: float = 900.0
    accel: str = "tcg"
    keep: Path | None = None


@dataclass(frozen=True)
class Played:
    """A rehearsal that took place."""

    shape: Shape
    changes: tuple[Change, ...]
    outcome: Outcome
    target: str = ""  # the stand-in in words: file system, driver, name

    @property
    def ok(self) -> bool:
        return self.outcome.ok

    @property
    def reason(self) -> str:
        """Why it failed, most telling first; empty when it did not."""
        if self.ok:
            return ""
        outcome = self.outcome
        failed = [f"{c.name}: {c.detail}" for c in outcome.checks if not c.ok]
        told = outcome.death_by_memory or str(outcome.capture.get("reason") or "")
        if outcome.report.find("crashing") and told:
            return f"{told} ({failed[0]})"
        return failed[0]

    def to_json(self) -> dict[str, Any]:
        """The lab's own account, for the record."""
        trial = self.outcome.to_json()
        kept = ("lender", "syscall", "firmware", "reservation", "lent", "seconds", "crash_kernel")
        return {
            **{name: trial[name] for name in kept},
            "memory_bytes": self.shape.memory_bytes,
            "cpus": self.shape.cpus,
            "cmdline": self.shape.cmdline,
            "target": self.target,
            "vmcore_bytes": trial["vmcore"]["bytes"],
            "panic": self.outcome.capture.get("panic"),
            "checks": trial["checks"],
            "changes": [change._asdict() for change in self.changes],
            "machine": machine_facts(),
        }


def rehearse(
    facts: Facts, settings: Settings, payload: Payload, options: Options, say: Say
) -> Played:
    """Crash the twin of a host. CrashlendError when the lab itself can't; failing is a result."""
    shape = resemble(
        facts,
        settings,
        memory_bytes=options.memory_bytes,
        signed=bool(payload.kernel.version),
    )
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="crashlend-twin-"))
        directory = Path(name)
        where = stack.enter_context(private(options.keep or directory / "run"))
        standin = make_twin_disk(payload, directory)
        spec = twin_spec(
            payload,
            shape,
            settings,
            standin,
            directory,
            timeout_seconds=options.timeout_seconds,
            accel=options.accel,
        )
        eyes = _Eyes(where / "console.log", say)
        say(f"booting the twin: {mib(shape.memory_bytes)}, {shape.cmdline or 'no words'}")
        outcome = run_trial(
            spec,
            keep=where,
            say=say,
            on_event=eyes.see,
            given_up=eyes.given_up,
            read=lambda place: standin.read(standin.image, place),
        )
    changes = (*payload.changes, *standin.changes, *shape.changes)
    return Played(shape, changes, outcome, standin.in_words)


def record(
    played: Played, facts: Facts, settings: Settings, payload: Payload, date: str
) -> Rehearsal:
    """What is kept of it; ``date`` is now, UTC."""
    return Rehearsal(
        date=date,
        ok=played.ok,
        reason=played.reason,
        release=payload.kernel.release,
        fingerprints=fingerprints(
            facts, settings, payload.kernel.vmlinuz.read_bytes(), payload.initramfs
        ),
        twin=tuple(f"{c.what}: {c.twin} instead of {c.host} ({c.why})" for c in played.changes),
        result=played.to_json(),
    )


class _Eyes:
    """Tells what a twin does, and gives it up where its crash kernel can't come any more.

    Only until that is up: then the capture watches itself, and may be silent for long.
    """

    def __init__(self, console: Path, say: Say) -> None:
        self.say = say
        self.watch = Watch(console, time.monotonic, silence_seconds=SILENCE_SECONDS)
        self.seen: set[str] = set()

    def see(self, event: dict[str, Any]) -> None:
        name = str(event.get("event"))
        # a host that is itself a guest of the lab has hooks of its own, which report the same
        if name in STAGES and name not in self.seen:
            self.say(f"{event['at']:6.1f} s  {STAGES[name]}")
        self.seen.add(name)

    def given_up(self) -> str:
        return "" if "crash_kernel" in self.seen else self.watch.is_lost()
