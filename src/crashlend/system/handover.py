# SPDX-License-Identifier: LGPL-2.1-or-later
"""Handing an image to the kernel, with the kernel as the judge of its size, and on record."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Callable, Optional

from crashlend.arch import for_machine
from crashlend.errors import CrashlendError
from crashlend.lenders import zone
from crashlend.plan import Plan, make_plan
from crashlend.proof import hole_filler, kernel_variants, may_ask
from crashlend.system import kexec
from crashlend.system.image import CrashImage, build_image, is_in_memory
from crashlend.system.kexec import ImpossibleError, NoRoomError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crashlend.arch import Segment
    from crashlend.config import Settings
    from crashlend.facts import Facts
    from crashlend.payload import Files
    from crashlend.plan import Payload
    from crashlend.system.state import State

Say = Callable[[str], None]


def check(facts: Facts, settings: Settings, payload: Payload, *, held_only: bool = False) -> Plan:
    """The plan, when it can be carried out; CrashlendError says why it can't. Changes nothing."""
    if facts.crash_loaded is None:
        raise CrashlendError(
            "this kernel cannot load a crash kernel",
            "/sys/kernel/kexec_crash_loaded does not exist",
            hint="a kernel with CONFIG_KEXEC and CONFIG_CRASH_DUMP is needed",
        )
    try:
        plan = make_plan(facts, settings, payload, held_only=held_only)
    except CrashlendError:
        plan = _plan_of_a_variant(facts, settings, payload, held_only)
    if plan.cmdline is None:
        raise CrashlendError(
            "cannot plan to the byte",
            plan.incomplete,
            hint="/proc/iomem must show its addresses: CAP_SYS_ADMIN in the host's own namespaces",
        )
    return plan


def _plan_of_a_variant(facts: Facts, settings: Settings, payload: Payload, held_only: bool) -> Plan:
    """The plan in a reservation so small that it fits one way of the kernel's tables alone.

    An exact shrink leaves such a one; whoever removes the state file takes away what was learned.
    """
    for variant in for_machine(facts.arch).kernel_variants(facts):
        with suppress(CrashlendError):
            return make_plan(variant, settings, payload, held_only=held_only)
    return make_plan(facts, settings, payload, held_only=held_only)


def is_loaded(state: State, crash_image: CrashImage) -> bool:
    """Whether this very image is loaded, by us and as far as memory shows it."""
    known = state.loaded
    return (
        known is not None
        and known.get("step") == "loaded"
        and known.get("fingerprint") == crash_image.fingerprint()
        and kexec.crash_loaded()
        and is_in_memory(known.get("marker")) is not False
    )


def load_image(
    facts: Facts, settings: Settings, files: Files, state: State, *, say: Say
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
        except ImpossibleError:
            break  # RAM has shrunk meanwhile (a balloon): over half of it is not to be filled
        learn(state, variant)
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


def learn(state: State, variant: Facts) -> None:
    """Remember what the kernel has just shown to be so, by taking just what ``variant`` requires."""
    if variant.rounds_gib_outwards is not None:
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
