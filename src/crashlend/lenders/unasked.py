# SPDX-License-Identifier: LGPL-2.1-or-later
"""What kexec_file_load hands over whether anybody asks for it or not. Pure.

The kernel gives the crash kernel all of its ``,cma`` ranges and leaves them out of its core header,
also those that are not CMA any more (activation.py). So nothing can be lent beside such a range: the
crash kernel would overwrite what the dump needs. Without lending the host is as with ``kexec -s -p``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crashlend.errors import RefusedError
from crashlend.lenders.activation import activation
from crashlend.lenders.asked import lost_words
from crashlend.ranges import Ranges
from crashlend.sizes import mib

if TYPE_CHECKING:
    from crashlend.facts import Facts

PLAIN = "--lend 0 loads the crash kernel all the same, no better and no worse than kexec -s -p"


def demand_sound_ranges(facts: Facts) -> None:
    """RefusedError where kexec_file_load must not lend, whoever the lender is."""
    if activation(facts).lost:
        why, cure = lost_words(facts)
        raise RefusedError(
            "kexec_file_load must not lend memory on this host",
            f"it gives all of the kernel's ,cma ranges to the crash kernel: {why}",
            hint=f"{cure}; {PLAIN}",
        )


def unasked_notes(facts: Facts, lent: Ranges) -> tuple[str, ...]:
    """What the crash kernel gets beside ``lent``, and what that does."""
    missed = Ranges(facts.cma_ranges or ()) - lent
    lost = missed & activation(facts).lost
    notes = []
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
