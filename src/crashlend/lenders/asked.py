# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the kernel made of the ``,cma`` word, beside what was asked of it. Pure.

Each finding says what is, why, and what to do. The defects are named as in docs/conformance.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from crashlend.crashkernel.grammar import lent_request, parse_crashkernel
from crashlend.lenders.activation import activation
from crashlend.ranges import Ranges
from crashlend.sizes import mib

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crashlend.facts import Facts

LINE = "crashkernel=1G,cma crashkernel=100M"
# words that put a ZONE_MOVABLE somewhere in the middle: its border may lie in a range (defect B)
BORDER_WORDS = re.compile(rb"(?:^|\s)(kernelcore|movablecore)=(\S+)")


class Finding(NamedTuple):
    """``harmless``: kdump works all the same. ``less``: less memory was had than was asked for.

    The latter is made good by other memory that is lent.
    """

    what: str
    why: str
    remedy: str
    harmless: bool = False
    less: bool = False

    def __str__(self) -> str:
        return f"{self.what}: {self.why}; {self.remedy}"


def lost_words(facts: Facts) -> tuple[str, str]:
    """Why ranges that are not CMA any more must not be lent, and what would mend that."""
    words = [b"=".join(found) for found in BORDER_WORDS.findall(facts.cmdline_bytes)]
    drop = " and ".join(word.decode("utf-8", "replace") for word in words)
    cure = f"boot without {drop}" if drop else "look for 'could not be activated' in the log"
    return activation(facts).words(facts), cure


def find_in_request(facts: Facts) -> list[Finding]:
    """All that is to be said of the ``,cma`` word and the ranges; gravest first.

    For a kernel that does not know the word only how it is read: crashlend carries it out by itself.
    """
    return [*_lost(facts), *_misread(facts), *_ignored(facts), *_partial(facts), *_no_sysfs(facts)]


def _lost(facts: Facts) -> Iterator[Finding]:
    """Defect B: ranges are listed whose pages are in ordinary use."""
    if activation(facts).lost:
        why, cure = lost_words(facts)
        yield Finding(
            "the kernel lists ,cma ranges that are not CMA",
            why,
            f"{cure}; until then kexec_load can lend movable memory, and kexec_file_load (kexec -s) "
            "gives these ranges to the crash kernel all the same",
        )


def _misread(facts: Facts) -> Iterator[Finding]:
    """Defect C: the kernel warns of a bad word, ignores its own error and takes what it had read.

    Where it made no list of ranges it may not know the word: crashlend then reads it the same way.
    """
    word = _last_word(facts.cmdline_bytes)
    if not word:
        return
    # a main word that is sure to be good: all messages are those of the ,cma word
    messages = parse_crashkernel(b"crashkernel=1M " + word, 1 << 62).messages
    size = lent_request(facts.cmdline_bytes)
    if messages:
        yield Finding(
            f"{word.decode('utf-8', 'replace')} is read as {mib(size)}",
            f"the kernel warns '{messages[0].text}' and takes the first number all the same"
            if facts.cma_ranges is not None
            else "crashlend takes the first number, as a kernel does that knows ,cma",
            "a ,cma word has one size, no ranges and no address: crashkernel=SIZE,cma",
        )


def _ignored(facts: Facts) -> Iterator[Finding]:
    """A kernel that knows ``,cma`` (the list is there) and made no range."""
    asked = lent_request(facts.cmdline_bytes)
    if facts.cma_ranges is None or facts.cma_ranges or not asked:
        return
    what = f"the kernel knows ,cma but made nothing of the {mib(asked)} asked for"
    if not facts.crash_size_bytes and not any(r.name == "Crash kernel" for r in facts.iomem):
        yield Finding(
            what,
            "where no main reservation is asked for, or it can't be had, there is no CMA either, "
            "mostly without a message",
            f"boot with both words: {LINE}",
            less=True,
        )
    elif "CmaTotal" not in facts.meminfo:
        yield Finding(
            what,
            "it was built without CONFIG_CMA",
            "nothing need be done: crashlend lends movable memory",
            harmless=True,
            less=True,
        )
    else:
        yield Finding(
            what,
            "no stretch of memory was free for it at boot ('crashkernel CMA reservation failed')",
            "ask for less; until then crashlend lends movable memory",
            harmless=True,
            less=True,
        )


def _partial(facts: Facts) -> Iterator[Finding]:
    """What could not be had in at most four ranges is given up; what was had is kept."""
    asked, made = lent_request(facts.cmdline_bytes), Ranges(facts.cma_ranges or ())
    if made and made.size < asked:
        count = len(facts.cma_ranges or ())
        yield Finding(
            f"the kernel made {mib(made.size)} of the {mib(asked)} asked for",
            f"it halves what it can't have in one piece, and stops at 4 ranges (here {count})",
            f"ask for at most {mib(made.size)}, or add the rest with --lender cma,movable",
            less=True,
        )


def _no_sysfs(facts: Facts) -> Iterator[Finding]:
    """Defect A: all ranges register with sysfs by one name, the second try takes all of it away."""
    seen, count = facts.cma_evidence, len(facts.cma_ranges or ())
    if seen is not None and count > 1 and not seen.sysfs:
        yield Finding(
            f"/sys/kernel/mm/cma is missing beside {count} ,cma ranges",
            "the kernel registers them all by one name (mm/cma_sysfs.c); a stack trace in its log "
            "comes from that, or it has no CONFIG_CMA_SYSFS",
            "nothing need be done: nothing else depends on it",
            harmless=True,
        )


def _last_word(line: bytes) -> bytes:
    """The ``,cma`` word that counts, as it stands on the command line."""
    words = re.findall(rb"crashkernel=[^ ]*,cma(?= |$)", line.split(b"\0", 1)[0])
    return words[-1] if words else b""
