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

from crashlend.arch import for_machine
from crashlend.errors import CrashlendError, Terminated
from crashlend.facts import Facts, read_facts
from crashlend.hostfiles import TreeFiles
from crashlend.lenders import zone
from crashlend.plan import Plan, make_plan
from crashlend.proof import hole_filler, kernel_variants, may_ask
from crashlend.shrink import Shrink, plan_shrink
from crashlend.sizes import mib
from crashlend.system import kexec, lending, shrinking
from crashlend.system.image import CrashImage, build_image, is_in_memory
from crashlend.system.kexec import NoRoomError
from crashlend.system.memory_blocks import MemoryBlocks
from crashlend.system.state import UNDER_WAY, State, locked

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from crashlend.arch import Segment
    from crashlend.config import Settings
    from crashlend.lenders import Offer
    from crashlend.payload import Files
    from crashlend.plan import Payload

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
        state = State()
        facts = _recovered_facts(state, say)
        files = get_files(facts.release)
        plan = check(facts, settings, files.payload)
        begin = clock()
        pages = plan.offer.needs_census
        if plan.offer.wanted or pages:
            # which memory is best takes a look at every page; only now is that worth its time
            facts = read_facts(TreeFiles(Path("/")), census=True)
            plan = check(facts, settings, files.payload)
        before, previous = set(state.blocks), state.loaded
        try:
            taken, refused = _lend(facts, plan.offer, settings, state, say)
            if taken:
                facts = read_facts(TreeFiles(Path("/")), census=pages)
            lent_at = clock()
            plan = check(facts, settings, files.payload, held_only=True)
            if plan.lent.size < min(settings.lend_min, plan.offer.asked_bytes):
                raise CrashlendError(
                    "too little memory could be lent",
                    f"{mib(plan.lent.size)} of the {mib(settings.lend_min)} that lend_min demands",
                    hint="lower lend_min, or see `crashlend plan` for what is in the way",
                )
            shrunk = _shrink(facts, settings, files, state, say, shrink_to) if shrink else None
            if shrunk is not None:
                facts = read_facts(TreeFiles(Path("/")), census=pages)
                plan = check(facts, settings, files.payload, held_only=True)
            already = not again and _is_loaded(state, build_image(plan, facts, files))
            proven = None
            if not already:
                plan, proven = _load_image(facts, settings, files, state, say)
        except BaseException:
            # what was lent just now goes back, unless an image that uses it may be loaded;
            # blocks of earlier runs are left alone
            if state.loaded is previous or not kexec.crash_loaded():
                lending.recover(_blocks(facts), state, say=say)
                new = sorted(set(state.blocks) - before)
                _give_back(facts, new, settings, state, say)
            raise
        _give_back(facts, plan.offer.surplus, settings, state, say)
        freed = shrunk.freed_bytes if shrunk else 0
        return Loaded(
            plan, already, lent_at - begin, clock() - lent_at, tuple(refused), freed, proven
        )


def _shrink(
    facts: Facts,
    settings: Settings,
    files: Files,
    state: State,
    say: Say,
    to_bytes: Optional[int],
) -> Optional[Shrink]:
    """Shrink the reservation if that wins anything; afterwards no image is loaded.

    What can't be done leaves the reservation as it is and is said; the load goes on either way.
    """
    try:
        shrink = plan_shrink(facts, settings, files.payload, to_bytes)
    except CrashlendError as error:
        say(f"the reservation stays as it is: {error}")
        return None
    if shrink is None:
        say("the reservation is as small as it may be already")
        return None
    say(
        f"shrinking the reservation from {mib(shrink.before.size)} to {mib(shrink.after_bytes)}: "
        "this can't be undone until the next boot, and no crash kernel is loaded for a moment"
    )
    previous = state.loaded
    # what is lent of a zone stands nowhere else: the next plan must choose the same
    state.set_loaded({"step": "loading", "zone": shrink.plan.offer.part(zone.NAME).to_json()})
    try:
        try:
            shrink = _rehearse(shrink, facts, settings, files, state, to_bytes)
        except CrashlendError:
            if kexec.crash_loaded():
                # refused before the kernel let go of the old image (EPERM, EBUSY)
                state.set_loaded(previous)
            raise
        kexec.unload()
        shrinking.carry_out(shrink)
    except CrashlendError as error:
        say(f"the reservation stays as it is: {error}")
        return None
    return shrink


def _rehearse(
    shrink: Shrink,
    facts: Facts,
    settings: Settings,
    files: Files,
    state: State,
    to_bytes: Optional[int],
) -> Shrink:
    """Have the kernel judge the smallest reservation that its own tables allow.

    Returns the shrink that it took; ``shrink`` is the safe one. CrashlendError when it takes none.
    """
    ram_bytes = facts.meminfo.get("MemTotal", 0)

    def smallest(variant: Facts) -> Shrink:
        return plan_shrink(variant, settings, files.payload, to_bytes) or shrink

    variants = kernel_variants(facts, lambda variant: smallest(variant).plan)
    for variant in variants:
        smaller = smallest(variant)
        try:
            image = build_image(smaller.plan, variant, files)
            shrinking.prove(smaller, image, ram_bytes, exactly=True)
        except NoRoomError:
            continue
        _learn(state, variants, variant)
        return smaller
    # there may still be room in the margin
    shrinking.prove(shrink, build_image(shrink.plan, facts, files), ram_bytes, exactly=False)
    return shrink


def check(facts: Facts, settings: Settings, payload: Payload, *, held_only: bool = False) -> Plan:
    """The plan, when it can be carried out; CrashlendError says why it can't. Changes nothing."""
    if facts.crash_loaded is None:
        raise CrashlendError(
            "this kernel cannot load a crash kernel",
            "/sys/kernel/kexec_crash_loaded does not exist",
            hint="a kernel with CONFIG_KEXEC and CONFIG_CRASH_DUMP is needed",
        )
    plan = make_plan(facts, settings, payload, held_only=held_only)
    if plan.cmdline is None:
        raise CrashlendError(
            "cannot plan to the byte",
            plan.incomplete,
            hint="/proc/iomem must show its addresses: CAP_SYS_ADMIN in the host's own namespaces",
        )
    return plan


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


def _recovered_facts(state: State, say: Say) -> Facts:
    files = TreeFiles(Path("/"))
    facts = read_facts(files)
    if state.blocks:
        lending.recover(_blocks(facts), state, say=say)
        facts = read_facts(files)
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


def _is_loaded(state: State, crash_image: CrashImage) -> bool:
    known = state.loaded
    return (
        known is not None
        and known.get("step") == "loaded"
        and known.get("fingerprint") == crash_image.fingerprint()
        and kexec.crash_loaded()
        and is_in_memory(known.get("marker")) is not False
    )


def _load_image(
    facts: Facts, settings: Settings, files: Files, state: State, say: Say
) -> tuple[Plan, Optional[bool]]:
    """Load the image into as much of the reservation as the plan requires, if the kernel takes it.

    Returns the plan that holds now and whether the kernel did: False when it needs more than the
    model knows, None when it was not asked.
    """

    def planned(variant: Facts) -> Plan:
        return check(variant, settings, files.payload, held_only=True)

    plan, proven = planned(facts), None
    variants = kernel_variants(facts, planned)
    for variant in variants:
        exact = planned(variant)
        filler = _hole_filler(exact, variant)
        if filler is None:
            break
        try:
            _hand_over(exact, build_image(exact, variant, files), files, state, filler)
        except NoRoomError:
            proven = False
            continue
        _learn(state, variants, variant)
        return exact, True
    _hand_over(plan, build_image(plan, facts, files), files, state)
    if proven is False:
        say(
            "the kernel took more of the reservation than the plan says; please report this host's "
            "`crashlend snapshot`"
        )
    return plan, proven


def _hole_filler(plan: Plan, facts: Facts) -> Optional[list[Segment]]:
    """What fills the hole, if anything; None where the kernel is not to be asked."""
    reservation = for_machine(plan.arch).main_reservation(facts)
    asked = may_ask(facts.kexec_load_limit_panic)
    if plan.layout is None or reservation is None or not asked:
        return None
    return hole_filler(plan.layout, reservation.start, facts.meminfo.get("MemTotal", 0))


def _learn(state: State, variants: Sequence[Facts], variant: Facts) -> None:
    """Remember which of the ``variants`` the kernel has just shown to be so."""
    if len(variants) > 1 and variant.rounds_gib_outwards is not None:
        state.learn("rounds_gib_outwards", variant.rounds_gib_outwards)


def _hand_over(
    plan: Plan,
    crash_image: CrashImage,
    files: Files,
    state: State,
    fillers: Sequence[Segment] = (),
) -> None:
    """Load the image; where a failure leaves none at all, the error says so."""
    record: dict[str, Any] = {
        "step": "loading",
        "fingerprint": crash_image.fingerprint(),
        "marker": crash_image.marker(),
        "kernel": str(files.kernel_path),
        "lender": plan.lender,
        "lent": plan.lent.to_json(),
        "zone": plan.offer.part(zone.NAME).to_json(),
        "reservation": plan.reservation.to_json(),
        "required_bytes": plan.costs.required_bytes,
        "crash_kernel_bytes": plan.costs.crash_kernel_bytes,
        "dump_level": plan.dump_level,
    }
    previous = state.loaded
    state.set_loaded(record)
    try:
        crash_image.load(fillers)
        if not kexec.crash_loaded():
            raise CrashlendError("the crash kernel is not loaded", "the kernel says so afterwards")
    except CrashlendError as error:
        # refused before the kernel let go of the old image (EPERM, EBUSY): that one is still there
        state.set_loaded(previous if kexec.crash_loaded() else None)
        if not kexec.crash_loaded():
            error.hint = f"{error.hint}; there is no crash kernel loaded now".lstrip("; ")
        raise
    state.set_loaded({**record, "step": "loaded"})
