# SPDX-License-Identifier: LGPL-2.1-or-later
"""Giving most of the reservation back to production, for good (until the next boot).

The kernel judges before anything is given up: a filler segment takes the part that shall go, so a
load succeeds only if all the rest fits in what stays.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Optional

from crashlend.arch import Segment
from crashlend.errors import CrashlendError
from crashlend.lenders import zone
from crashlend.proof import hole_filler, kernel_variants
from crashlend.shrink import Shrink, plan_shrink
from crashlend.sizes import mib
from crashlend.system import kexec
from crashlend.system.handover import learn, previous_image
from crashlend.system.image import build_image
from crashlend.system.kexec import NoRoomError

if TYPE_CHECKING:
    from crashlend.config import Settings
    from crashlend.facts import Facts
    from crashlend.payload import Files
    from crashlend.system.image import CrashImage
    from crashlend.system.state import State

Say = Callable[[str], None]

CRASH_SIZE = Path("/sys/kernel/kexec_crash_size")


def shrink(
    facts: Facts,
    settings: Settings,
    files: Files,
    state: State,
    to_bytes: Optional[int],
    *,
    say: Say,
) -> Optional[Shrink]:
    """Shrink the reservation if that wins anything; afterwards no image is loaded.

    What can't be done leaves the reservation as it is and is said; the load goes on either way.
    """
    try:
        planned = plan_shrink(facts, settings, files.payload, to_bytes)
    except CrashlendError as error:
        say(f"the reservation stays as it is: {error}")
        return None
    if planned is None:
        say("the reservation is as small as it may be already")
        return None
    say(
        f"shrinking the reservation from {mib(planned.before.size)} to {mib(planned.after_bytes)}: "
        "this can't be undone until the next boot, and no crash kernel is loaded for a moment"
    )
    previous = previous_image(state)
    # what is lent of a zone stands nowhere else: the next plan must choose the same
    chosen = planned.plan.offer.part(zone.NAME).to_json()
    state.set_loaded({"step": "loading", "zone": chosen, "previous": previous})
    try:
        try:
            proven = _rehearse(planned, facts, settings, files, state, to_bytes)
        except CrashlendError:
            if kexec.crash_loaded():
                # refused before the kernel let go of the old image (EPERM, EBUSY)
                state.set_loaded(previous)
            raise
        kexec.unload()
        carry_out(proven)
    except CrashlendError as error:
        say(f"the reservation stays as it is: {error}")
        return None
    return proven


def _rehearse(
    planned: Shrink,
    facts: Facts,
    settings: Settings,
    files: Files,
    state: State,
    to_bytes: Optional[int],
) -> Shrink:
    """Have the kernel judge the smallest reservation that its own tables allow.

    Returns the shrink that it took; ``planned`` is the safe one. CrashlendError when it takes none.
    """
    ram_bytes = facts.meminfo.get("MemTotal", 0)

    def smallest(variant: Facts) -> Shrink:
        return plan_shrink(variant, settings, files.payload, to_bytes) or planned

    variants = kernel_variants(facts, lambda variant: smallest(variant).plan)
    for variant in variants:
        smaller = smallest(variant)
        try:
            image = build_image(smaller.plan, variant, files)
            prove(smaller, image, ram_bytes, exactly=True)
        except NoRoomError:
            continue
        learn(state, variant)
        return smaller
    # there may still be room in the margin
    prove(planned, build_image(planned.plan, facts, files), ram_bytes, exactly=False)
    return planned


def prove(shrink: Shrink, image: CrashImage, ram_bytes: int, *, exactly: bool) -> None:
    """Load ``image`` with the part that shall go filled up; CrashlendError when it does not fit.

    ``exactly``: leave the kernel as many control pages as planned, and not the margin as well.
    The image that was loaded before is gone either way.
    """
    layout = image.layout
    if layout is None:
        raise CrashlendError("cannot shrink the reservation", "the kernel places the segments")
    start = shrink.before.start + shrink.after_bytes
    filler = Segment("filler", start, 0, shrink.before.end - start)
    hole = hole_filler(layout, shrink.before.start, ram_bytes, filler.memory_bytes)
    image.load([filler, *(hole if exactly and hole else ())])


def carry_out(shrink: Shrink) -> None:
    """Write the new size; no image may be loaded. CrashlendError tells why it did not work."""
    try:
        fd = os.open(CRASH_SIZE, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, str(shrink.written_bytes).encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise CrashlendError(
            f"the reservation does not shrink to {mib(shrink.after_bytes)}",
            f"{CRASH_SIZE}: {error.strerror}",
            hint="it stays as large as it is",
        ) from error
