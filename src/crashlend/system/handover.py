# SPDX-License-Identifier: LGPL-2.1-or-later
"""Handing an image to the kernel, with the kernel as the judge of its size, and on record."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Callable, Optional

from crashlend import config
from crashlend.arch import for_machine
from crashlend.changes import notes_json
from crashlend.errors import CrashlendError
from crashlend.lenders import zone
from crashlend.plan import Plan, make_plan
from crashlend.proof import hole_filler, kernel_variants, may_ask
from crashlend.system import kept, kexec
from crashlend.system.file_load import StillLoadedError
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


def is_still_there(record: dict[str, Any]) -> Optional[bool]:
    """Whether the image of that record is what lies in the reservation; None: it can't be told."""
    return is_in_memory(record.get("marker"))


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
            image = build_image(exact, variant, files)
            _hand_over(image, _record(exact, variant, settings, files), files, state, filler, say)
        except NoRoomError:
            proven = False
            continue
        except ImpossibleError:
            break  # RAM has shrunk meanwhile (a balloon): over half of it is not to be filled
        learn(state, variant)
        return exact, True
    image = build_image(plan, facts, files)
    _hand_over(image, _record(plan, facts, settings, files), files, state, (), say)
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


def previous_image(state: State) -> Optional[dict[str, Any]]:
    """The record of the image that the kernel holds, or held before the load that is under way."""
    known = state.loaded
    if known is None or known.get("step") == "loaded":
        return known
    return known.get("previous") if known.get("step") == "loading" else None


def may_be_previous(state: State, previous: Optional[dict[str, Any]]) -> bool:
    """Whether the image that is loaded now can be the one of that record (None: another program's).

    Not where a load was interrupted or failed after the kernel had let go of the old image.
    """
    return not _replaced_by(state) and (previous is None or is_still_there(previous) is not False)


def _replaced_by(state: State) -> Optional[dict[str, Any]]:
    known = state.loaded or {}
    return known.get("replaced_by") if known.get("step") == "loading" else None


def _record(plan: Plan, facts: Facts, settings: Settings, files: Files) -> dict[str, Any]:
    """What is to be known of an image while it is loaded; ``changes.py`` compares it with the host."""
    return {
        "kernel": str(files.kernel_path),
        "lender": plan.lender,
        "lent": plan.lent.to_json(),
        "zone": plan.offer.part(zone.NAME).to_json(),
        "cma": plan.offer.part("cma").to_json(),
        "reservation": plan.reservation.to_json(),
        "required_bytes": plan.costs.required_bytes,
        "crash_kernel_bytes": plan.costs.crash_kernel_bytes,
        "dump_level": plan.dump_level,
        "bus_masters": list(plan.quiesce.bus_masters),
        "system_ram": plan.system_ram.to_json(),
        "notes": notes_json(facts),
        "settings": config.to_text(settings),
    }


def _hand_over(
    crash_image: CrashImage,
    record: dict[str, Any],
    files: Files,
    state: State,
    fillers: Sequence[Segment],
    say: Say,
) -> None:
    """Load the image, its copy on disk and its record in the state before the kernel is asked.

    After a failure the record is the old image's where that is still loaded; where it is not,
    "loading" stays until somebody decides what becomes of the old image (fallback.py). Its
    ``replaced_by`` tells what was lent to an image that came in the old one's place.
    """
    previous = previous_image(state)
    fingerprint = crash_image.fingerprint()
    why_not = kept.keep(crash_image, fingerprint, files)
    if why_not:
        say(
            f"no copy of this image is kept: a load that fails later can't bring it back ({why_not})"
        )
    record = {
        **record,
        "fingerprint": fingerprint,
        "marker": crash_image.marker(),
        "kept": not why_not,
    }
    under_way = {**record, "step": "loading", "previous": previous}
    replaced_by = _replaced_by(state)
    if replaced_by:
        under_way["replaced_by"] = replaced_by
    state.set_loaded(under_way)
    gone = {"replaced_by": {"lent": record.get("lent", [])}}

    def note(marker: dict[str, Any]) -> None:
        state.set_loaded({**under_way, **gone, "marker": marker})

    try:
        found = crash_image.load(fillers, note)
        if not kexec.crash_loaded():
            raise CrashlendError("the crash kernel is not loaded", "the kernel says so afterwards")
    except StillLoadedError:
        state.set_loaded({**under_way, **gone})
        raise
    except (CrashlendError, OSError):
        # refused before the kernel let go of the old image (EPERM, EBUSY), or never asked: it is there
        if kexec.crash_loaded() and may_be_previous(state, previous):
            state.set_loaded(previous)
        raise
    state.set_loaded({**record, "marker": found, "step": "loaded"})
