# SPDX-License-Identifier: LGPL-2.1-or-later
"""What kexec_file_load hands over whether anybody asks for it or not. Pure.

The kernel gives the crash kernel all of its ``,cma`` ranges and leaves them out of its core header,
also those that are not CMA any more (activation.py) and those that nobody can tell. Nothing can be
lent beside such a range: of the first the crash kernel would overwrite what the dump needs, and of the
second a core header of crashlend's own would show the crash kernel's bytes as production's. Without
lending the host is as with ``kexec -s -p``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crashlend.crashkernel.early import kernel_of
from crashlend.errors import RefusedError, UsageError
from crashlend.lenders.activation import activation
from crashlend.lenders.asked import lost_words
from crashlend.ranges import Ranges
from crashlend.sizes import mib

if TYPE_CHECKING:
    from crashlend.facts import Facts

# facts/cma.py notes it as missing where nothing else tells the ranges either
LIST = "/sys/kernel/kexec/crash_cma_ranges"
UNTOLD = (
    "which those are nothing tells: this kernel says it in its log alone, which does not go back to the "
    "boot any more"
)
PLAIN = "--lend 0 loads the crash kernel all the same, no better and no worse than kexec -s -p"


def may_be_untold(facts: Facts) -> bool:
    """Whether the kernel may have ``,cma`` ranges that nothing tells any more.

    Linux 6.17 and 6.18 have no list (facts/cma.py), and their log may be cut before crashlend has seen
    it. Nothing shows that a kernel without the list knows the word; there the version is all there is.
    CmaTotal shows CONFIG_CMA; it may be 0 although ranges are listed: when all are lost.
    """
    if facts.cma_ranges is not None or not facts.privileged or LIST not in facts.missing:
        return False
    try:
        return kernel_of(facts)[0].carries_cma
    except UsageError:
        return True


def hands_over_ranges(facts: Facts) -> bool:
    """Whether the crash kernel gets ``,cma`` ranges, or may get them, even if nothing is lent."""
    return bool(facts.cma_ranges) or may_be_untold(facts)


def demand_sound_ranges(facts: Facts) -> None:
    """RefusedError where kexec_file_load must not lend, whoever the lender is."""
    if activation(facts).lost:
        why, cure = lost_words(facts)
        raise RefusedError(
            "kexec_file_load must not lend memory on this host",
            f"it gives all of the kernel's ,cma ranges to the crash kernel: {why}",
            hint=f"{cure}; {PLAIN}",
        )
    if may_be_untold(facts):
        raise RefusedError(
            "kexec_file_load must not lend memory now",
            f"it gives the kernel's ,cma ranges to the crash kernel, too, and {UNTOLD}",
            hint="reboot and load before the log is overwritten: crashlend then remembers them until "
            f"the next boot; {PLAIN}",
        )


def unasked_notes(facts: Facts, lent: Ranges) -> tuple[str, ...]:
    """What the crash kernel gets beside ``lent``, and what that does."""
    missed = Ranges(facts.cma_ranges or ()) - lent
    lost = missed & activation(facts).lost
    notes = []
    if may_be_untold(facts):
        notes.append(
            "the kernel may give the crash kernel ,cma ranges of its own and leave them out of the "
            f"dump: {UNTOLD}"
        )
    if missed:
        notes.append(
            f"the kernel gives the crash kernel {mib(missed.size)} of its own ,cma ranges, too, and "
            "leaves them out of the dump: kexec_file_load always does"
        )
    if lost:
        notes.append(
            f"{mib(lost.size)} of that are in ordinary use: the crash kernel will overwrite kernel "
            "data there, and the dump may be unreadable"
        )
    return tuple(notes)
