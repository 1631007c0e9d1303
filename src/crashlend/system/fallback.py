# SPDX-License-Identifier: LGPL-2.1-or-later
"""After a load that failed: the old image back, or away, and in either case the truth on record.

kexec_load drops the old image before it knows whether it takes the new one. So a copy of the old one
is on disk (kept.py), and is loaded again if and only if all that it counts on is still there. An old
image that is still loaded and counts on memory that was taken from it must go. A host that is left
without a crash kernel says so: in the error, in ``status``, and in the kernel's log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Optional

from crashlend.arch import for_machine
from crashlend.changes import find_changes
from crashlend.errors import EXIT_REBOOT_NEEDED, CrashlendError, TooSmallError
from crashlend.ranges import Ranges
from crashlend.system import handover, kept, kexec
from crashlend.system.alarm import alarm

if TYPE_CHECKING:
    from crashlend.facts import Facts
    from crashlend.system.state import State

Say = Callable[[str], None]
Record = dict[str, Any]


def note_what_is_loaded(state: State) -> Optional[Record]:
    """The record of the image that may be brought back; None: there is none of crashlend's.

    A load that was killed right after the kernel took its image is noted as done.
    """
    known = state.loaded
    if known is None:
        return None
    loaded = kexec.crash_loaded()
    if known.get("step") == "loading" and loaded and handover.is_still_there(known):
        state.set_loaded({**known, "step": "loaded", "previous": None})
        return state.loaded
    previous = handover.previous_image(state)
    if previous is None or known.get("step") == "loading":
        return previous
    # somebody unloaded it, or loaded another over it: it is not ours to bring back
    ours = loaded and handover.is_still_there(previous) is not False
    return previous if ours else None


def settle(
    state: State,
    before: Optional[Record],
    previous: Optional[Record],
    error: Exception,
    look: Callable[[], Facts],
    say: Say,
) -> None:
    """Decide what becomes of the old image (``previous``) after a load that ended in ``error``.

    ``before`` is the record as the load found it. ``look`` reads the facts anew, with all that says
    whether lent memory is still fit to be lent. Raises nothing of its own: ``error`` is what the
    caller raises, and its hint gets the outcome.
    """
    outcome = _outcome(state, before, previous, error, look, say)
    _forget_copies(state)
    if isinstance(error, CrashlendError) and outcome:
        error.hint = f"{error.hint}; {outcome}".lstrip("; ")


def _outcome(
    state: State,
    before: Optional[Record],
    previous: Optional[Record],
    error: Exception,
    look: Callable[[], Facts],
    say: Say,
) -> str:
    loaded = kexec.crash_loaded()
    try:
        if loaded and _is_new(state.loaded, before, previous):
            return "the new crash kernel is loaded all the same"
        there = loaded and handover.may_be_previous(state, previous)
        if there and previous is not None:
            return _keep_or_drop(state, previous, error, look, say)
        if loaded and previous is None and not there:
            return _lose(state, {}, error, "it is of a load that did not end well", say)
        if there:
            ours = before is not None and before.get("step") == "loaded"
            return "another program's crash kernel is loaded" if ours else ""
        if previous is not None:
            return _bring_back(state, previous, error, look(), say)
        if before is not None and before.get("step") in ("lost", "loaded"):
            # a loss stays on record until a load goes well
            return _lose(state, before, error, "nothing is there to be brought back", say)
        state.set_loaded(None)
    except (CrashlendError, OSError) as second:
        return _lose(state, previous or {}, error, f"and then: {second}", say)
    return "there is no crash kernel loaded now"


def _forget_copies(state: State) -> None:
    """Remove the copies of all images but the one that is loaded."""
    known = state.loaded or {}
    wanted = [known, known.get("previous") or {}] if kexec.crash_loaded() else []
    kept.forget_others([str(r["fingerprint"]) for r in wanted if "fingerprint" in r])


def _is_new(known: Optional[Record], *old: Optional[Record]) -> bool:
    """Whether the kernel took the new image, and what failed came after that."""
    return known is not None and known.get("step") == "loaded" and all(known is not o for o in old)


def _keep_or_drop(
    state: State, previous: Record, error: Exception, look: Callable[[], Facts], say: Say
) -> str:
    """The old image is still loaded: it stays unless it counts on what is not there any more."""
    try:
        facts = look()
    except (CrashlendError, OSError) as second:
        words = "the crash kernel that was loaded before is still there; what it counts on could"
        return f"{words} not be looked at: {second}"
    changes = find_changes(previous, facts, _steps(state))
    if changes.urgent:
        kexec.unload()
        return _lose(state, previous, error, "; ".join(changes.sentences()), say)
    if isinstance(error, TooSmallError):
        error.exit_code = EXIT_REBOOT_NEEDED
    return "the crash kernel that was loaded before is still there"


def _bring_back(state: State, previous: Record, error: Exception, facts: Facts, say: Say) -> str:
    """The kernel has dropped the old image: load its copy, if it is sound to do so.

    Also over one that came in its place and must not be used.
    """
    why_not = why_not_again(previous, facts, _steps(state))
    if why_not:
        return _lose(state, previous, error, f"the old one can't be brought back: {why_not}", say)
    copy = kept.recall(str(previous.get("fingerprint")))
    found = copy.image.load()
    if not kexec.crash_loaded():
        raise CrashlendError("the old crash kernel is not loaded", "the kernel says so afterwards")
    # the kernel may have put it elsewhere, where it chooses the places
    state.set_loaded({**previous, "marker": found})
    say("the new crash kernel was not taken; the one that was loaded before is loaded again")
    return "the crash kernel that was loaded before is loaded again"


def why_not_again(previous: Record, facts: Facts, steps: dict[int, str]) -> str:
    """Why the image of that record must not be loaded again; empty when it may."""
    if not previous.get("kept"):
        return "no copy of it was kept"
    changes = find_changes(previous, facts, steps)
    if changes.urgent or changes.ram_gone:  # its dump would read what is not there
        return "; ".join(changes.sentences())
    zone = Ranges(tuple(pair) for pair in previous.get("zone", ()))
    if zone and not Ranges(facts.clean_runs or ()).covers(zone):
        return "memory that it was lent of a ZONE_MOVABLE is not known to be clean any more"
    reserved = Ranges(tuple(pair) for pair in previous.get("reservation", ()))
    if for_machine(facts.arch).reservations(facts) != reserved:
        return "the reservation is another one now"
    return ""


def _lose(state: State, previous: Record, error: Exception, why: str, say: Say) -> str:
    """Put on record, and into the kernel's log, that this host has no crash kernel now."""
    gone = not kexec.crash_loaded()
    reason = f"{error}; {why}"
    words = "there is no crash kernel loaded now" if gone else "the crash kernel must not be used"
    alarm(f"{words}: {reason}")
    say(f"{words}: {why}")
    if gone:
        lost = {"step": "lost", "reason": reason, "settings": previous.get("settings", {})}
        state.set_loaded(lost)
    return f"{words}: {why}"


def _steps(state: State) -> dict[int, str]:
    return {index: str(block["step"]) for index, block in state.blocks.items()}
