# SPDX-License-Identifier: LGPL-2.1-or-later
"""A rehearsal: a host's twin boots, loads as the host would, crashes and saves its dump, or does not."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

from crashlend.lab.records import machine_facts
from crashlend.lab.trial import STAGES, run_trial
from crashlend.lab.twin.run import make_twin_disk, twin_spec
from crashlend.lab.twin.shape import resemble
from crashlend.rehearsal import Rehearsal, fingerprints
from crashlend.sizes import mib

if TYPE_CHECKING:
    from crashlend.config import Settings
    from crashlend.facts import Facts
    from crashlend.lab.outcome import Outcome
    from crashlend.lab.packages import Say
    from crashlend.lab.twin.run import Payload
    from crashlend.lab.twin.shape import Change, Shape


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
    with tempfile.TemporaryDirectory(prefix="crashlend-twin-") as name:
        directory = Path(name)
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
        spec = replace(spec, impatient=True)
        say(f"booting the twin: {mib(shape.memory_bytes)}, {shape.cmdline or 'no words'}")
        outcome = run_trial(
            spec,
            keep=options.keep or directory / "run",
            say=say,
            on_event=_teller(say),
            read=lambda where: standin.read(standin.image, where),
        )
    changes = (*payload.changes, *standin.changes, *shape.changes)
    return Played(shape, changes, outcome)


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


def _teller(say: Say) -> Callable[[dict[str, Any]], None]:
    told: set[str] = set()  # a host that is itself a guest of the lab has hooks of its own

    def tell(event: dict[str, Any]) -> None:
        words = STAGES.get(str(event.get("event")))
        if words and words not in told:
            told.add(words)
            say(f"{event['at']:6.1f} s  {words}")

    return tell
