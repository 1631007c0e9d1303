# SPDX-License-Identifier: LGPL-2.1-or-later
"""How many CPUs the crash kernel starts, and in which words it is told. Pure.

The CPU that firmware booted (BSP) restarts firmware on an INIT, where any other waits to be started:
a crash kernel that runs on another CPU and starts that one resets the machine, or worse. Kernels
before 6.9 leave it alone when told its APIC id (disable_cpu_apicid=, generic_processor_info() in
arch/x86/kernel/apic/apic.c), and take no notice where they run on it themselves. Later ones find
it by themselves (commit 5c5682b9f87a) and do not know the word, which does no harm: the kernel hands
it to init as a variable. So it is always said.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from crashlend.sizes import mib

if TYPE_CHECKING:
    from crashlend.config import Settings
    from crashlend.facts import Facts

# what MemTotal lacks for each further CPU: 372 KiB in the trial parity-cpus-6.1 against one CPU
PER_CPU_BYTES = 400 << 10
# setting "auto": no more of lent memory than that goes to CPUs, and no more CPUs than that. What one CPU
# compresses few disks can write, and beyond eight readers of /proc/vmcore stand in each other's way.
SHARE_OF_LENT = 64
MOST_BY_ITSELF = 8
LEAST_THAT_HELP = 3
COUNT = "the setting nr_cpus; each CPU but the first takes about {}"
AUTO = "makedumpfile uses them; each CPU but the first takes about {} of {} lent"
SPARED = "the CPU that firmware booted would reset the machine if another one started it"
UNKNOWN = (
    "the crash kernel starts one CPU alone: which one firmware booted is not known (CPU 0 is offline, "
    "or this is a crash kernel itself)"
)


class CrashCpus(NamedTuple):
    """Words for the command line, each with its reason, and notes for people."""

    words: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def crash_cpus(
    facts: Facts, settings: Settings, lent_bytes: int = 0, *, threads: bool = False
) -> CrashCpus:
    """The words for as many CPUs as the setting ``nr_cpus`` says; none where that is one.

    "auto" is :func:`cpus_that_help` where the capture writes with ``threads``, and 1 where it does
    not: a CPU that does nothing is a risk for nothing.
    """
    by_itself = settings.nr_cpus == "auto"
    if by_itself:
        count = cpus_that_help(len(facts.crash_notes), lent_bytes) if threads else 1
    else:
        count = int(settings.nr_cpus)
    if count == 1:
        return CrashCpus((), ())
    if facts.boot_apic_id is None:
        if by_itself:  # what nobody asked for is not missed
            return CrashCpus((), ())
        # said, for a line that was written for this crash kernel may ask for more
        return CrashCpus((("nr_cpus=1", "which CPU firmware booted is not known"),), (UNKNOWN,))
    why = (
        AUTO.format(mib(PER_CPU_BYTES), mib(lent_bytes))
        if by_itself
        else COUNT.format(mib(PER_CPU_BYTES))
    )
    words = (
        (f"nr_cpus={count}", why),
        (f"disable_cpu_apicid={facts.boot_apic_id}", SPARED),
    )
    return CrashCpus(words, ())


def cpus_that_help(present: int, lent_bytes: int) -> int:
    """How many CPUs a crash kernel with so much lent memory starts on a host with ``present``.

    One, and as many more as the 64th part of lent memory carries; no more than the host has (the one
    that firmware booted may be spared: then one less comes up), and eight at most. makedumpfile's
    main thread keeps one busy, and a single thread beside it gains nothing: so three at least, or one.
    """
    carried = 1 + lent_bytes // SHARE_OF_LENT // PER_CPU_BYTES
    count = min(present, carried, MOST_BY_ITSELF)
    return count if count >= LEAST_THAT_HELP else 1
