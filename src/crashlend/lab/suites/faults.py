# SPDX-License-Identifier: LGPL-2.1-or-later
"""Trials of faults: what goes wrong before, in and after a load, and the many ways to crash.

fault_table.py says what each is for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crashlend.errors import EXIT_FAILED, EXIT_REFUSED
from crashlend.lab.spec import CAME_BACK, Command, Trial
from crashlend.sizes import GIB, MIB

if TYPE_CHECKING:
    from collections.abc import Mapping

SMALL = {
    "memory_bytes": 1536 * MIB,
    "cmdline": "crashkernel=160M",
    "lend_bytes": 256 * MIB,
    "timeout_seconds": 600.0,
    "whole": True,
}


def _trial(name: str, proves: str, kernel: str, spec: Mapping[str, Any], **more: Any) -> Trial:
    return Trial(name, proves, kernel, {**SMALL, **spec}, **more, quick=False)


def _crash(kind: str, proves: str, *, kernel: str = "6.1", cpus: int = 1) -> Trial:
    return _trial(f"crash-{kind}-{kernel}", proves, kernel, {"crash": kind, "cpus": cpus})


def _shell(script: str) -> Command:
    return Command(("-ec", script), program="sh")


def _hog(*words: str) -> Command:
    return Command(("/lab/hogs.py", *words), program="python3")


def _end_of(verb: str) -> Command:
    # gone, not only told to go: what it holds must be free
    return _shell(f"p=$(cat /run/{verb}.pid); kill -9 $p; while [ -d /proc/$p ]; do sleep 1; done")


LOAD = Command(("load",))
STATUS = Command(("status",))
# /run is small, so that a file fills it
FILL_RUN = "mount -o remount,size=1M /run; dd if=/dev/zero of=/run/full bs=4k 2>/dev/null || true"
SMALL_VAR = "mkdir -p /var/lib/crashlend; mount -t tmpfs -o size=64k none /var/lib/crashlend"
FILL_TARGET = """
dd if=/dev/zero of=/lab/full bs=1M 2>/dev/null || true
dd if=/dev/zero of=/lab/full2 bs=4k 2>/dev/null || true
sync
"""
# room for the dump's beginning, not for all of it
NEARLY = f"""{FILL_TARGET}
busybox truncate -s $(($(stat -c %s /lab/full) - {8 * MIB})) /lab/full
sync
"""
HUGE = """
echo 32 >/proc/sys/vm/nr_hugepages
echo "hugepages $(cat /proc/sys/vm/nr_hugepages)"
echo always >/sys/kernel/mm/transparent_hugepage/enabled
dd if=/dev/zero of=/lab/swap bs=1M count=256 2>/dev/null
busybox mkswap /lab/swap && busybox swapon /lab/swap
echo 1 >/sys/module/zswap/parameters/enabled
cat /sys/module/zswap/parameters/enabled
"""

FAULTS = (
    *(
        _crash(f"sysrq-cpu{cpu}", f"CPU {cpu} of four panics: a dump", cpus=4)
        for cpu in range(3)  # the last one: four-cpus-6.1
    ),
    _crash("irq-cpu1", "a panic in a hardware interrupt of the second CPU: a dump", cpus=2),
    _crash("softirq", "a panic in a softirq: a dump"),
    _crash("nmi-handler-cpu1", "a panic in an NMI's handler on the second CPU: a dump", cpus=2),
    _crash("nmi", "an NMI from outside that panics: a dump"),
    _crash("nmi", "the same by the newest kernel", kernel="7.3"),
    _crash("keyboard", "a crash in the interrupt of a stock kernel's driver", kernel="7.3"),
    _crash("oom", "memory runs out and the kernel panics: a dump"),
    _crash("oops", "a null pointer in a task: a dump"),
    _crash("oops-irq", "a null pointer in an interrupt: a dump"),
    _crash("overflow", "the kernel's stack runs over: a dump"),
    _crash("lockup", "a CPU that spins: the watchdog's panic leaves a dump"),
    _crash("hang", "a task that hangs: khungtaskd's panic leaves a dump"),
    _trial(
        "pinned-6.1",
        "blocks that do not empty are given up in time, others are lent, none is lost",
        "6.1",
        {
            "memory_bytes": 2 * GIB,
            "poison": False,
            "commands": (
                _hog("pin", str(500 * MIB)),
                Command(("load", "--lend", "1G", "--block-deadline", "2")),
            ),
            "least_lent_bytes": 128 * MIB,
        },
    ),
    _trial(
        "errnos-6.1",
        "kexec_load fails with each errno that can be had: said, nothing lost, and the next load works",
        "6.1",
        {
            "poison": False,
            "commands": (
                *(
                    Command(("load",), EXIT_FAILED, fault=name)
                    for name in ("EADDRNOTAVAIL", "ENOMEM", "EINVAL", "EFAULT")
                ),
                _hog("hold-lock"),
                Command(("load",), EXIT_FAILED, says="another crashlend is at work"),
                _end_of("hold-lock"),
                _hog("load-forever"),
                Command(("load",), EXIT_FAILED, says="EBUSY"),
                _end_of("load-forever"),
                LOAD,
                STATUS,
            ),
        },
    ),
    _trial(
        "load-disabled-6.1",
        "a reload that the kernel forbids leaves the old image, which saves the dump",
        "6.1",
        {
            "poison": False,
            "commands": (
                LOAD,
                Command(("reload",), EXIT_REFUSED, fault="EPERM"),
                Command(("reload",), EXIT_REFUSED, says="kexec_load_disabled is 1"),
                STATUS,
            ),
        },
    ),
    _trial(
        "run-full-6.1",
        "/run is full: no block is touched, the image stays, all goes on when there is room; "
        "/var/lib is: it costs the image's copy alone",
        "6.1",
        {
            "poison": False,
            "commands": (
                _shell(FILL_RUN),
                Command(("load",), EXIT_FAILED, says="No space left on device"),
                _shell(f"rm /run/full; {SMALL_VAR}"),
                Command(("load",), says="no copy of this image is kept"),
                _shell(FILL_RUN),
                Command(("reload",), EXIT_FAILED, says="No space left on device"),
                STATUS,
            ),
        },
    ),
    _trial(
        "crash-in-lending-6.1",
        "a crash while one more block is offline, to be lent: the image before it saves the dump",
        "6.1",
        {"crash": "in-lending", "poison": False},
    ),
    _trial(
        "crash-before-load-6.1",
        "a crash between lending and kexec_load: the image before it saves the dump",
        "6.1",
        {"crash": "before-load"},
    ),
    _trial(
        "crash-in-load-6.1",
        "a crash inside kexec_load: no dump, and the machine comes back by itself",
        "6.1",
        {"crash": "in-load", "poison": False},
        expect=CAME_BACK,
        words="Rebooting in 1 seconds",
    ),
    _trial(
        "full-ram-6.1",
        "90 % of RAM is in use when memory is lent and when the kernel panics",
        "6.1",
        {
            "memory_bytes": 4 * GIB,
            "poison": False,
            "commands": (Command(("fill", "0.9", "0"), program="agent"), LOAD),
            "least_lent_bytes": 128 * MIB,
        },
    ),
    _trial(
        "dirty-6.1",
        "lent memory full of dirty page cache",
        "6.1",
        {
            "poison": False,
            "lend_bytes": 128 * MIB,
            # less than half of what is free on the disk: ext4 writes out when there is more
            "commands": (LOAD, Command(("work", "dirty", "110", "into"), program="agent")),
        },
    ),
    _trial(
        "huge-6.1",
        "huge pages, transparent ones and zswap in use: no huge page is lost",
        "6.1",
        {
            "poison": False,
            "prepare": HUGE,
            "commands": (LOAD, _hog("huge", str(200 * MIB))),
        },
    ),
    _trial(
        "hog-6.1",
        "a guest's memory that is locked and then pinned for good: it leaves lent memory",
        "6.1",
        {
            "poison": False,
            "commands": (
                _hog("lock", str(500 * MIB)),
                LOAD,
                _hog("register", str(128 * MIB)),
            ),
        },
    ),
    _trial(
        "elfcorehdr-6.1",
        "an ELF core header that is none: the capture says so and reboots",
        "6.1",
        {"poison": False, "commands": (Command(("load",), fault="elfcorehdr"),)},
        expect=CAME_BACK,
        words="no /proc/vmcore",
    ),
    _trial(
        "target-full-6.1",
        "the target has no room at all: the console has the reason, and the machine comes back",
        "6.1",
        {"poison": False, "commands": (LOAD, _shell(FILL_TARGET))},
        expect=CAME_BACK,
        words="cannot make the directory",
    ),
    _trial(
        "target-small-6.1",
        "the target has no room for the dump: the log and the reason are saved, and it comes back",
        "6.1",
        {"poison": False, "commands": (LOAD, _shell(NEARLY))},
        expect=CAME_BACK,
        words="makedumpfile ended with",
    ),
)
