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
COUNT = "the setting nr_cpus; each CPU but the first takes about {}"
SPARED = "the CPU that firmware booted would reset the machine if another one started it"
UNKNOWN = (
    "the crash kernel starts one CPU alone: which one firmware booted is not known (CPU 0 is offline, "
    "or this is a crash kernel itself)"
)


class CrashCpus(NamedTuple):
    """Words for the command line, each with its reason, and notes for people."""

    words: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def crash_cpus(facts: Facts, settings: Settings) -> CrashCpus:
    """The words for as many CPUs as the setting ``nr_cpus`` says; none where that is one."""
    count = settings.nr_cpus
    if count == 1:
        return CrashCpus((), ())
    if facts.boot_apic_id is None:
        return CrashCpus((), (UNKNOWN,))
    words = (
        (f"nr_cpus={count}", COUNT.format(mib(PER_CPU_BYTES))),
        (f"disable_cpu_apicid={facts.boot_apic_id}", SPARED),
    )
    return CrashCpus(words, ())
