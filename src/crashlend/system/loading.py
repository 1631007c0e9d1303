# SPDX-License-Identifier: LGPL-2.1-or-later
"""load and unload on the running host: facts → plan → lend → facts → plan → kexec_load.

The order keeps kdump never worse than it was: all that can be refused is refused before anything
is touched, and blocks go back to production only when no loaded image uses them any more.
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional

from crashlend.errors import CrashlendError, Terminated
from crashlend.facts import Facts, read_facts
from crashlend.hostfiles import TreeFiles
from crashlend.plan import Plan
from crashlend.ranges import Ranges
from crashlend.sizes import mib
from crashlend.system import fallback, kept, kexec, lending, shrinking
from crashlend.system.handover import check, is_loaded, load_image
from crashlend.system.image import build_image
from crashlend.system.memory_blocks import MemoryBlocks
from crashlend.system.state import UNDER_WAY, State, locked

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from crashlend.config import Settings
    from crashlend.lenders import Offer
    from crashlend.payload import Files

Say = Callable[[str], None]
GetFiles = Callable[[str], "Files"]


@dataclass(frozen=True)
class Loaded:
    """What ``load`` came to.

    ``proven``: whether the kernel took the image in the very bytes that the plan requires; None
    where it was not asked (it has the image already, or places it by itself).
    """

    plan: Plan
    already: bool
    lend_seconds: float
    load_seconds: float
    refused: tuple[lending.Refused, ...]
    freed_bytes: int = 0
    proven: Optional[bool] = None


def require_root() -> None:
    """CrashlendError unless this process may load kernels and move memory."""
    if os.geteuid() != 0:
        raise CrashlendError(
            "cannot change this host", "not root", hint="run it with sudo, or use --dry-run"
        )


def load(
    settings: Settings,
    get_files: GetFiles,
    *,
    say: Say,
    clock: Callable[[], float],
    again: bool = False,
    shrink: bool = False,
    shrink_to: Optional[int] = None,
) -> Loaded:
    """Lend memory and load the crash kernel. Idempotent: what is there already stays.

    ``shrink``: also give back what of the reservation is not needed (all beyond ``shrink_to``
    bytes, where that is given), once the kernel itself has shown that the image fits in the rest.

    ``get_files`` reads (or builds) kernel and initramfs for a release, ``again`` loads even
    when the very same image is loaded. Raises what planning refuses, before anything was touched.
    """
    require_root()
    with terminated_as_exception(), locked():
        return load_locked(
            settings,
            get_files,
            say=say,
            clock=clock,
            again=again,
            shrink=shrink,
            shrink_to=shrink_to,
        )


def load_locked(
    settings: Settings,
    get_files: GetFiles,
    *,
    say: Say,
    clock: Callable[[], float],
    again: bool = False,
    shrink: bool = False,
    shrink_to: Optional[int] = None,
) -> Loaded:
    """As :func:`load`, for callers that hold the lock and have signals come as exceptions."""
    state = State()
    previous = fallback.note_what_is_loaded(state)
    run = _Run(settings, state, say, clock, state.loaded, previous)
    try:
        facts = _recovered_facts(state, say)
        files = get_files(facts.release)
        return run.load(facts, files, again=again, shrink=shrink, shrink_to=shrink_to)
    except (CrashlendError, OSError) as error:
        run.settle(error)
        raise


@dataclass
class _Run:
    """One load: ``previous`` is the record of the image that a failure must not cost.

    ``before`` is what was on record at its start: another program's image may be loaded over that.
    """

    settings: Settings
    state: State
    say: Say
    clock: Callable[[], float]
    before: Optional[dict[str, Any]]
    previous: Optional[dict[str, Any]]
    settled: bool = False

    def load(
        self, facts: Facts, files: Files, *, again: bool, shrink: bool, shrink_to: Optional[int]
    ) -> Loaded:
        settings, state, say = self.settings, self.state, self.say
        plan = check(facts, settings, files.payload)
        state.see_cma(facts)
        begin = self.clock()
        pages = plan.offer.needs_census
        if plan.offer.wanted or pages:
            # which memory is best takes a look at every page; only now is that worth its time
            facts = read_facts(TreeFiles(Path("/")), census=True)
            plan = check(facts, settings, files.payload)
        before = set(state.blocks)
        try:
            taken, refused = _lend(facts, plan.offer, settings, state, say)
            if taken:
                facts = read_facts(TreeFiles(Path("/")), census=pages)
            lent_at = self.clock()
            plan = check(facts, settings, files.payload, held_only=True)
            if plan.lent.size < min(settings.lend_min, plan.offer.asked_bytes):
                raise CrashlendError(
                    "too little memory could be lent",
                    f"{mib(plan.lent.size)} of the {mib(settings.lend_min)} that lend_min demands",
                    hint="lower lend_min, or see `crashlend plan` for what is in the way",
                )
            shrunk, already, proven = None, False, None
            # from the first try that may drop the old image until the new one is there, or the old
            # one again
            with signals_held(), self.settling():
                if shrink:
                    shrunk = shrinking.shrink(facts, settings, files, state, shrink_to, say=say)
                    # also where it came to nothing: it may have spent loads and learned something
                    facts = read_facts(TreeFiles(Path("/")), census=pages)
                    plan = check(facts, settings, files.payload, held_only=True)
                already = not again and is_loaded(state, build_image(plan, facts, files))
                if not already:
                    plan, proven = load_image(facts, settings, files, state, say=say)
        except BaseException:
            # what was lent just now goes back, unless an image that uses it may be loaded;
            # blocks of earlier runs are left alone
            lending.recover(_blocks(facts), state, say=say)
            new = _unused(facts, sorted(set(state.blocks) - before), state)
            _give_back(facts, new, settings, state, say)
            raise
        kept.forget_others([str((state.loaded or {}).get("fingerprint"))])
        _give_back(facts, plan.offer.surplus, settings, state, say)
        freed = shrunk.freed_bytes if shrunk else 0
        lend_seconds, load_seconds = lent_at - begin, self.clock() - lent_at
        return Loaded(plan, already, lend_seconds, load_seconds, tuple(refused), freed, proven)

    @contextmanager
    def settling(self) -> Iterator[None]:
        try:
            yield
        except (CrashlendError, OSError) as error:
            self.settle(error)
            raise

    def settle(self, error: Exception) -> None:
        """After a failure: the old image back or away, once."""
        if self.settled:
            return
        self.settled = True
        pages = bool(self.previous and self.previous.get("zone"))

        def look() -> Facts:
            return _recovered_facts(self.state, self.say, census=pages)

        fallback.settle(self.state, self.before, self.previous, error, look, self.say)


def _unused(facts: Facts, indexes: Sequence[int], state: State) -> list[int]:
    """Those of the blocks that no loaded image uses, as far as the record can tell."""
    if not kexec.crash_loaded():
        return list(indexes)
    known = state.loaded or {}
    if known.get("step") == "loading" and "lent" not in known:
        return []  # a shrink's rehearsal: what it uses is not recorded
    lent = Ranges()
    for record in (known, known.get("previous") or {}, known.get("replaced_by") or {}):
        lent |= Ranges(tuple(pair) for pair in record.get("lent", ()))
    size = facts.block_bytes or 0
    return [i for i in indexes if not lent.meets(Ranges([(i * size, (i + 1) * size)]))]


def unload(settings: Settings, *, say: Say) -> tuple[lending.Refused, ...]:
    """Drop the crash kernel and give all lent blocks back; return those that stay movable."""
    require_root()
    with terminated_as_exception(), locked():
        state = State()
        facts = _recovered_facts(state, say)
        if facts.crash_loaded:
            if state.loaded is None:
                say("another program loaded this crash kernel; it is unloaded all the same")
            kexec.unload()
        state.set_loaded(None)
        kept.forget_others([])
        return _give_back(facts, sorted(state.blocks), settings, state, say)


def finish_interrupted(*, say: Say) -> tuple[int, ...]:
    """Bring back the memory blocks that a killed run left offline; return which.

    For ``status``, which must not wait and must not fail: without such a block nothing is touched
    or locked, and where another crashlend is at work (then they are its own) or anything else is in
    the way, it is said and left. Blocks that are lent are not looked at: when somebody took one
    offline, the loaded image may still count on it, and only ``load`` can put both right.
    """
    require_root()
    brought: tuple[int, ...] = ()
    try:
        if not _interrupted(State()):
            return ()
        with terminated_as_exception(), locked():
            state = State()
            before = _interrupted(state)
            blocks = _blocks(read_facts(TreeFiles(Path("/"))))
            offline = [i for i in before if blocks.state(i) not in ("", "online")]
            failed = {r.index for r in lending.recover(blocks, state, say=say, steps=UNDER_WAY)}
            brought = tuple(i for i in offline if i not in failed)
    except CrashlendError as error:
        say(f"{error}; {error.hint}" if error.hint else str(error))
    except OSError as error:
        say(f"cannot put right what an interrupted run left: {error}")
    return brought


def _interrupted(state: State) -> list[int]:
    return sorted(i for i, block in state.blocks.items() if block["step"] in UNDER_WAY)


@contextmanager
def signals_held() -> Iterator[None]:
    """Let signals to end wait: none strikes while one image is gone and the next not yet there."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []

    def hold(number: int, _frame: object) -> None:
        waiting.append(number)

    held = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {each: signal.signal(each, hold) for each in held}
    try:
        yield
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
        if waiting:
            signal.raise_signal(waiting[0])


@contextmanager
def terminated_as_exception() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind like an interrupt: no block is left half way.

    Only once: a second signal, while things are put right, is waited out.
    """
    handled = (signal.SIGTERM, signal.SIGHUP)

    def fire(number: int, _frame: object) -> None:
        for each in handled:
            signal.signal(each, signal.SIG_IGN)
        raise Terminated(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {each: signal.signal(each, fire) for each in handled}
    try:
        yield
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)


def facts_now() -> Facts:
    """The running host's facts, read as ``load`` reads them."""
    return read_facts(TreeFiles(Path("/")))


def _recovered_facts(state: State, say: Say, *, census: bool = False) -> Facts:
    facts = read_facts(TreeFiles(Path("/")), census=census and not state.blocks)
    if state.blocks:
        lending.recover(_blocks(facts), state, say=say)
        facts = read_facts(TreeFiles(Path("/")), census=census)
    return facts


def _blocks(facts: Facts) -> MemoryBlocks:
    return MemoryBlocks(facts.block_bytes or 0)


def _lend(
    facts: Facts, offer: Offer, settings: Settings, state: State, say: Say
) -> tuple[list[int], list[lending.Refused]]:
    if not offer.wanted:
        return [], []
    return lending.take(
        _blocks(facts),
        state,
        offer.candidates,
        offer.wanted,
        offer.room,
        deadline_seconds=settings.block_deadline,
        say=say,
    )


def _give_back(
    facts: Facts, indexes: Sequence[int], settings: Settings, state: State, say: Say
) -> tuple[lending.Refused, ...]:
    try:
        kept = lending.give_back(
            _blocks(facts),
            state,
            indexes,
            deadline_seconds=settings.block_deadline,
            say=say,
        )
    except BaseException:
        # a signal must not leave a block offline
        lending.recover(_blocks(facts), state, say=say)
        raise
    return tuple(kept)
