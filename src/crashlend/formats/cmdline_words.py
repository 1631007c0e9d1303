# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which words of production's command line the crash kernel does not get, which it gets, and why.

What is in neither table is kept. Among the words kept on purpose: ``console=`` and ``earlyprintk=``
(else nobody sees why a capture failed), every IOMMU word (in-flight DMA still uses the translations;
switching them off turns its addresses into physical ones), words of drivers, and words of EFI and
ACPI: they describe the machine, which is the same. Words for user space (``rd.…``, ``systemd.…``)
cost nothing.
"""

from __future__ import annotations

from typing import NamedTuple


class Reasoned(NamedTuple):
    """A word of a command line and why it was dropped or added, for people."""

    word: str
    reason: str


class Drop(NamedTuple):
    """One row of the table of dropped words.

    ``name`` is the parameter with "_" for "-"; one that ends in "." or "_" stands for all that begin
    so. Below ``sysctl`` the kernel takes "/" for ".", and so does this table.
    ``memory`` marks words that change which memory the crash kernel has or tears away. The plan
    decides that alone, so such a word is not taken from the setting append either; nor is one that
    has a ``setting`` of its own.
    """

    name: str
    reason: str
    memory: bool = False
    setting: str = ""


_MAP = "the crash kernel's memory map comes from crashlend"
_ZONE = "the crash kernel needs all of its memory for any use"
_PLUGGED = "memory that is found later is production's"
_HUGE = "huge pages would take the crash kernel's memory"
_CMA = "a CMA area would take the crash kernel's memory"
_TUNED = "tuned for production's memory, huge pages among it"
_KHO = "kexec handover is for a planned kexec"
_CPUS = "names CPUs that the crash kernel does not start"
_NR_CPUS = "crashlend sets the number of CPUs"
_ROOT = "the crash kernel runs from its initramfs and mounts the target by itself"
_IMAGE = "names production's image to production's boot loader"
_HIBERNATED = "must not look for a hibernated system"
_INIT = "the initramfs has the init that captures"
_HUNGRY = "takes memory that the capture needs"
_STRICT = "a warning must not end the capture"
_FAILED = "crashlend sets what follows a failed capture"

DROPPED: tuple[Drop, ...] = (
    Drop("crashkernel", "the crash kernel prepares for no further crash", memory=True),
    Drop("mem", _MAP, memory=True),
    Drop("memmap", _MAP, memory=True),
    Drop("highmem", _MAP, memory=True),
    Drop("add_efi_memmap", _MAP, memory=True),
    Drop("efi_fake_mem", _MAP, memory=True),
    Drop("memblock", "only prints, and slows the crash kernel's start"),
    Drop("memtest", "would test all memory again, and slowly"),
    Drop("reserve_mem", "reserves memory for production's own use", memory=True),
    # a ring buffer at a fixed address ("@"), whatever lies there
    Drop("trace_instance", "could write to production's memory", memory=True),
    Drop("movable_node", _ZONE, memory=True),
    Drop("kernelcore", _ZONE, memory=True),
    Drop("movablecore", _ZONE, memory=True),
    Drop("memhp_default_state", _PLUGGED, memory=True),
    Drop("memory_hotplug.", _PLUGGED, memory=True),
    Drop("hugepages", _HUGE),
    Drop("hugepagesz", _HUGE),
    Drop("default_hugepagesz", _HUGE),
    Drop("hugetlb_cma", _HUGE),
    Drop("hugetlb_cma_only", _HUGE),
    Drop("thp_anon", _HUGE),
    Drop("thp_shmem", _HUGE),
    Drop("sysctl.vm.", _TUNED),
    Drop("swiotlb", "bounce buffers are sized for production's memory"),
    Drop("cma", _CMA),
    Drop("cma_pernuma", _CMA),
    Drop("numa_cma", _CMA),
    Drop("kho", _KHO, memory=True),
    Drop("kho_scratch", _KHO, memory=True),
    Drop("liveupdate", _KHO),
    Drop("elfcorehdr", "described another crash", memory=True),
    Drop("kaslr", "the kernel must stay where it is entered", memory=True),
    Drop("nr_cpus", _NR_CPUS, setting="nr_cpus"),
    Drop("maxcpus", _NR_CPUS, setting="nr_cpus"),
    Drop("possible_cpus", _NR_CPUS, setting="nr_cpus"),
    Drop("disable_cpu_apicid", "named the boot CPU of another kexec"),
    Drop("isolcpus", _CPUS),
    Drop("nohz_full", _CPUS),
    Drop("rcu_nocbs", _CPUS),
    Drop("irqaffinity", _CPUS),
    Drop("kthread_cpus", _CPUS),
    Drop("workqueue.unbound_cpus", _CPUS),
    Drop("BOOT_IMAGE", _IMAGE),
    Drop("initrd", _IMAGE),
    Drop("initrdmem", _IMAGE),
    Drop("bootconfig", "what it adds is in production's line already, its file is not loaded"),
    Drop("noinitrd", _ROOT),
    Drop("root", _ROOT),
    Drop("rootflags", _ROOT),
    Drop("rootfstype", _ROOT),
    Drop("rootdelay", _ROOT),
    Drop("rootwait", _ROOT),
    Drop("nfsroot", _ROOT),
    Drop("dm_mod.create", _ROOT),
    Drop("dm_mod.waitfor", _ROOT),
    Drop("ro", _ROOT),
    Drop("rw", _ROOT),
    Drop("resume", _HIBERNATED),
    Drop("resume_offset", _HIBERNATED),
    Drop("init", _INIT),
    Drop("rdinit", _INIT),
    Drop("panic", _FAILED),
    Drop("sysctl.kernel.panic", _FAILED),
    Drop("sysctl.kernel.panic_on_", _STRICT),
    Drop("sysctl.kernel.softlockup_panic", _STRICT),
    Drop("sysctl.kernel.hung_task_panic", _STRICT),
    Drop("sysctl.kernel.unknown_nmi_panic", _STRICT),
    Drop("panic_on_warn", _STRICT),
    Drop("panic_on_taint", _STRICT),
    Drop("oops", _STRICT),
    Drop("softlockup_panic", _STRICT),
    Drop("hung_task_panic", _STRICT),
    Drop("unknown_nmi_panic", _STRICT),
    Drop("log_buf_len", _HUNGRY),
    Drop("trace_buf_size", _HUNGRY),
    Drop("trace_event", _HUNGRY),
    Drop("ftrace", _HUNGRY),
    Drop("alloc_snapshot", _HUNGRY),
    Drop("page_owner", _HUNGRY),
    Drop("slub_debug", _HUNGRY),
    Drop("slab_debug", _HUNGRY),
    Drop("debug_pagealloc", _HUNGRY),
    Drop("dma_debug_entries", _HUNGRY),
    Drop("kmemleak", _HUNGRY),
    Drop("cgroup_enable", _HUNGRY),
    Drop("retain_initrd", _HUNGRY),
    Drop("dhash_entries", _HUNGRY),
    Drop("ihash_entries", _HUNGRY),
    Drop("mhash_entries", _HUNGRY),
    Drop("mphash_entries", _HUNGRY),
    Drop("thash_entries", _HUNGRY),
    Drop("uhash_entries", _HUNGRY),
    Drop("debug_guardpage_minorder", _HUNGRY),
    Drop("kgdbwait", "nobody waits at the debugger of a capture"),
)

# Reasons that hold for crashlend's own initramfs alone: another may boot production's root.
OTHERS_OWN = (_ROOT, _INIT)
# Words that mean something each time they stand on a line.
REPEATED = ("console", "earlyprintk", "earlycon")

# What a crash kernel needs to run in the memory that it is given, and to end.
NEEDED: tuple[Reasoned, ...] = (
    Reasoned("nokaslr", "keeps the kernel where it is entered"),
    Reasoned("acpi_no_memhotplug", "keeps production's DIMMs out of the crash kernel's memory"),
    Reasoned("reset_devices", "drivers must expect devices that nobody shut down"),
    Reasoned("nr_cpus=1", "each further CPU takes memory, and the others may be stuck"),
    Reasoned("irqpoll", "interrupts may arrive where the crashed kernel had put them"),
    Reasoned("panic=10", "a crash kernel that fails must reset, not hang"),
)
# What only saves memory.
THRIFTY: tuple[Reasoned, ...] = (
    Reasoned("numa=off", "each of production's nodes would have tables of its own"),
    Reasoned("cgroup_disable=memory", "there are no containers whose memory is to be counted"),
    Reasoned("transparent_hugepage=never", _HUGE),
    Reasoned("cma=0", "the kernel may have a CMA area built in"),
    Reasoned("novmcoredd", "drivers would keep dumps of their devices in memory"),
)
ADDED = NEEDED + THRIFTY
