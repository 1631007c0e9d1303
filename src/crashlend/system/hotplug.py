# SPDX-License-Identifier: LGPL-2.1-or-later
"""What follows when CPUs or memory come and go after the load: ``crashlend reload --event``.

Events only wake it up. What is done is decided by comparing the record of the loaded image with the
host (changes.py), so events may be lost, doubled or of crashlend's own making: where nothing has
changed, nothing is done. Lent memory that left is answered at once, all else when it has been quiet
for a while, because the blocks of a DIMM come one by one.

/run/crashlend/events holds one empty file for each event that nobody has looked at yet, written by
the udev rule (packaging/udev) or here. One process looks at them; others leave theirs and go.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional

from crashlend import config
from crashlend.changes import find_changes, notes_json
from crashlend.errors import CrashlendError, RefusedError
from crashlend.system import attempts, fallback, kept, loading
from crashlend.system.state import BusyError, State, locked

if TYPE_CHECKING:
    from crashlend.config import Settings
    from crashlend.facts import Facts
    from crashlend.payload import Files
    from crashlend.system.loading import Loaded

Say = Callable[[str], None]
EVENTS = Path("/run/crashlend/events")
LOCK = "events.lock"
POLL_SECONDS = 0.5
# how long another crashlend may be at work before this gives up: longer than any load takes
LOCK_SECONDS = 1800.0
QUIETS_AT_MOST = 12


@dataclass(frozen=True)
class Handled:
    """What came of it: ``action`` is none, reloaded, or left (to the process that is at it)."""

    action: str
    why: str
    loaded: Optional[Loaded] = None


@dataclass(frozen=True)
class Look:
    """What is to be done: ``urgency`` is none, later, or now; ``settings`` those of the load."""

    urgency: str
    why: str
    settings: Optional[Settings] = None
    fingerprint: str = ""
    # what tells this situation from another: the record's step, and a digest of what it is judged by
    step: str = ""
    situation: str = ""


@dataclass(frozen=True)
class Waiting:
    """Time as the handler sees it; tests have their own.

    ``configured`` are the settings for the renewal of a load that has none on record.
    """

    clock: Callable[[], float]
    sleep: Callable[[float], None]
    quiet_seconds: float
    configured: Optional[Settings] = None


def note(event: str) -> None:
    """Leave a note that something happened; ``event`` is udev's ACTION:NAME, or with a DEVPATH."""
    action, _, place = event.partition(":")
    name = re.sub(r"[^A-Za-z0-9:._-]", "_", f"{action}:{place.rsplit('/', 1)[-1]}")[:100]
    EVENTS.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(EVENTS / name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def pending() -> tuple[str, ...]:
    """The events that nobody has looked at yet."""
    try:
        return tuple(sorted(os.listdir(EVENTS)))
    except OSError:
        return ()


def take_notes() -> tuple[str, ...]:
    """The pending events, which are off the list before what they tell of is looked at."""
    events = pending()
    for name in events:
        with suppress(FileNotFoundError):
            os.unlink(EVENTS / name)
    return events


def handle(
    event: str, build: Callable[[Settings], Callable[[str], Files]], waiting: Waiting, *, say: Say
) -> Handled:
    """Bring the crash kernel up to date with the host, if it is crashlend's and out of date.

    With an ``event`` of its own it leaves that to whoever is at it already; without one (the
    service) it waits, because it would be started again at once for the events that are there.
    ``build`` makes the payload for settings where no copy of the loaded one is kept. Raises what
    ``load`` raises; then the old image is still there, brought back, or loudly gone.
    """
    loading.require_root()
    if event:
        note(event)
    handled = None
    deadline = waiting.clock() + LOCK_SECONDS
    while handled is None or pending():
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(name=LOCK))
            except BusyError:
                if event or waiting.clock() >= deadline:
                    return handled or Handled("left", "another crashlend looks at it already")
                waiting.sleep(POLL_SECONDS)
                continue
            handled = _Handler(build, waiting, say).run()
    return handled


class _Handler:
    def __init__(
        self, build: Callable[[Settings], Callable[[str], Files]], waiting: Waiting, say: Say
    ) -> None:
        self.build = build
        self.waiting = waiting
        self.say = say

    def run(self) -> Handled:
        """Look and act until there are no events left."""
        clock, quiet = self.waiting.clock, self.waiting.quiet_seconds
        handled = Handled("none", "")
        began = last = clock()
        look = self.look(take_notes())
        while True:
            due = {"now": 0.0, "later": min(last + quiet, began + QUIETS_AT_MOST * quiet)}
            if look.urgency == "none":
                handled = handled if handled.loaded else Handled("none", look.why)
                if not pending():
                    return handled
            elif clock() >= due[look.urgency]:
                try:
                    handled = self.act()
                except BusyError:
                    look = self.look(())  # when the other is done; it may be needless then
                    continue
                look, began = Look("none", look.why), clock()
                if not pending():
                    return handled
            else:
                self.waiting.sleep(min(POLL_SECONDS, due[look.urgency] - clock()))
            events = take_notes()
            if events:
                last = clock()
                look = self.look(events)

    def look(self, events: tuple[str, ...]) -> Look:
        """Compare record and host, when no other crashlend is at work on them."""
        deadline = self.waiting.clock() + LOCK_SECONDS
        while True:
            try:
                with locked():
                    look = look_now(self.waiting.clock)
                break
            except BusyError:
                if self.waiting.clock() >= deadline:
                    raise
                self.waiting.sleep(POLL_SECONDS)
        shown = ", ".join(events[:3]) + (f" and {len(events) - 3} more" if len(events) > 3 else "")
        self.say(f"{shown or 'looking'}: {look.why}")
        return look

    def act(self) -> Handled:
        """Load anew with the settings of the load that is out of date, if it still is.

        BusyError: another crashlend is at work, and what it does may make this needless. Nobody
        else can change anything between the look and the load.
        """
        with loading.terminated_as_exception(), locked():
            look = look_now(self.waiting.clock)
            if look.urgency == "none":
                return Handled("none", look.why)
            settings = look.settings or self.waiting.configured or config.Settings()
            get_files = self.build(settings)
            with suppress(CrashlendError):
                files = kept.recall(look.fingerprint).files
                get_files = lambda _release: files  # noqa: E731
            try:
                done = self.renew(look, settings, get_files)
            except (CrashlendError, OSError) as error:
                self.failed(look, error)
                raise
        attempts.forget(EVENTS.parent)
        return Handled("reloaded", look.why, done)

    def renew(self, look: Look, settings: Settings, get_files: Callable[[str], Files]) -> Loaded:
        """Load; where lending is refused by now and the old image had to go, without lent memory."""
        try:
            return self.load(settings, get_files)
        except RefusedError as error:
            if look.urgency != "now":
                raise
            self.say(f"{error}; loading without lent memory, until the next crashlend load")
            return self.load(replace(settings, lend=0), get_files)

    def load(self, settings: Settings, get_files: Callable[[str], Files]) -> Loaded:
        return loading.load_locked(
            settings, get_files, say=self.say, clock=self.waiting.clock, again=True
        )

    def failed(self, before: Look, error: Exception) -> None:
        """Take the events of one's own making off the list, and see to it that they start nothing.

        What changed meanwhile without our doing is looked at again.
        """
        take_notes()
        after = before
        with suppress(CrashlendError, OSError):
            after = look_now(self.waiting.clock)
        # an old image that went because of this failure is not news
        tried = before if after.step == before.step else after
        attempts.note_failure(EVENTS.parent, tried.situation, str(error), self.waiting.clock())
        if after.urgency != "none" and after.situation != tried.situation:
            note("change:meanwhile")


def look_now(clock: Callable[[], float] = time.monotonic) -> Look:
    """Compare record and host. A load that was killed right after its success is noted as done.

    What was tried in the very same situation and failed is not tried again before its pause is over
    (attempts.py), by ``clock``.
    """
    look = _compare(State())
    if look.urgency == "none":
        return look
    why_not = attempts.resting(EVENTS.parent, look.situation, clock())
    return replace(look, urgency="none", why=f"{look.why}: {why_not}") if why_not else look


def _compare(state: State) -> Look:
    known = state.loaded
    if known is None:
        return Look("none", "no crash kernel of crashlend's is loaded")
    settings = _settings(known)
    facts = loading.facts_now()
    if known.get("step") == "lost":
        return _with_situation(Look("later", "the crash kernel was lost", settings), known, facts)
    ours = fallback.note_what_is_loaded(state)
    known = state.loaded or known
    fingerprint = str(known.get("fingerprint", ""))
    if known.get("step") == "loading":
        previous = known.get("previous") or {}
        settings = settings or _settings(previous)
        look = Look("later", "a load was interrupted", settings, fingerprint)
        return _with_situation(look, known, facts)
    if ours is None:
        return Look("none", "the loaded crash kernel is not crashlend's")
    steps = {index: str(block["step"]) for index, block in state.blocks.items()}
    changes = find_changes(known, facts, steps)
    if not changes.stale:
        return Look("none", "nothing has changed that the crash kernel must know")
    why = "; ".join(changes.sentences())
    look = Look("now" if changes.urgent else "later", why, settings, fingerprint)
    return _with_situation(look, known, facts)


def _settings(record: dict[str, Any]) -> Optional[Settings]:
    """Those of the load; None: an older version wrote this record."""
    texts = record.get("settings")
    return config.from_text(texts) if texts else None


def _with_situation(look: Look, known: dict[str, Any], facts: Facts) -> Look:
    """The same with what tells it from other situations.

    Not what a load that fails leaves changed, such as which blocks are movable.
    """
    step = str(known.get("step"))
    ram = [[r.start, r.end] for r in facts.iomem if r.name.startswith("System RAM")]
    seen: list[Any] = [step, look.fingerprint, look.why, ram, notes_json(facts)]
    if step != "loaded":
        seen.append([block.index for block in facts.blocks if block.state != "online"])
    digest = hashlib.sha256(json.dumps(seen).encode()).hexdigest()
    return replace(look, step=step, situation=digest)
