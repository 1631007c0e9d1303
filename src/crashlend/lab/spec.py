# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a trial is told, and what it leaves behind. Plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from crashlend.errors import EXIT_REFUSED
from crashlend.lab.guest import LAB_LABEL
from crashlend.lab.qemu import CPU_MODEL

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from crashlend.lab.kernels import Kernel

LOST, REFUSED, CAME_BACK, CORRUPTED = "lost", "refused", "came back", "corrupted"


@dataclass(frozen=True)
class Command:
    """One command in the guest and the exit code that it must have.

    ``program`` is crashlend, kexec (of kexec-tools), agent: what the lab's own agent does there, or
    host: what the lab does on the guest's behalf from outside (host.py); that must not fail. Any other
    is a program of the guest. ``fault`` is what strikes crashlend meanwhile (guestfiles/faulty.py),
    ``says`` what must be in its stderr.
    """

    words: tuple[str, ...]
    exit: int = 0
    program: str = "crashlend"
    fault: str = ""
    says: str = ""


@dataclass(frozen=True)
class Spec:
    """What to crash and how. Sizes in bytes, times in seconds.

    ``cmdline`` are production's own words (``crashkernel=…``); ``prepare`` is a command for the
    guest's shell before crashlend's first, which must succeed; ``lender`` and ``lend_bytes``
    override what crashlend would do by itself; ``least_lent_bytes`` will do where not all that is
    asked for can be had (None: all of it). ``build_in_guest``: the guest's own Python builds the
    capture initramfs from what it finds, as on a host (slow under TCG). ``probe``: after the load
    the kernel is asked for the smallest reservation that it would take. ``crash`` is a kind of
    crashes.py, or none (only load and report). ``firmware`` is bios, uefi or secure (UEFI with
    Secure Boot, from a disk: needs q35), ``machine`` pc or q35;
    ``nodes`` share memory and CPUs evenly. ``block_bytes``: the size of memory blocks that the
    guest's kernel must choose by itself (None: any). ``disk``: the bus of the disk that the dump
    goes to, virtio or ide (which addresses 32 bits).
    ``kill``: before all that, the guest kills crashlend at each of its steps, in these scenarios of
    guestfiles/kill.py. ``loader`` is crashlend, or what kexec-tools has: kexec-c (kexec_load), kexec-s
    (kexec_file_load). ``scan``: the crash kernel looks at /proc/vmcore after the dump, with Python,
    for which a small one has no memory. ``impatient``: end the machine as soon as its crash
    kernel is known to be lost (see watch.py). ``devices`` are more words for QEMU, ``spare_bytes`` and
    ``spare_cpus`` what may be plugged in while the guest runs. ``proof``: the guest is stopped at
    purgatory's entry, and raw /proc/vmcore compared with its memory then, byte for byte
    (witness.py). ``flips``: it is stopped there and started again with so many bits flipped in each
    segment of the image, one at a time (flips.py). ``whole``: at the end production has
    all the memory that it booted with, and so it has after each command that fails. ``late``: which
    device writes after the panic, a key of late.KINDS. ``parity``: both kernels tell what they have
    of their machine (parity.py); production does where a command says so. ``lab_label`` is the
    label of the lab's own disk, ``initramfs`` a capture initramfs that is not the lab's.
    ``analyze``: drgn reads the dump, and finds what production said of itself right before the
    crash (analysis.py). ``threads``: how many of makedumpfile must have written the dump (None: not
    looked at). ``speed``: after the dump the crash kernel writes it again with each compression and
    number of threads, and tells how long that took. ``capture_fault``: what is done to the capture, a
    key of capture_faults.CAPTURE_FAULTS. ``net``: the servers and the network of a second guest, a
    key of servers.client.NETS; ``net_reasons`` are patterns of the reasons for which targets fail
    there, in order. ``disk_layout``: what the guest makes of further disks and dumps to, a key of
    targets/layouts.py. ``own_tools``: the capture initramfs is built from a tree without busybox.
    ``shows``: patterns of what the crash kernel and the servers must have said (shows.py), without
    which a dump would have come by another way than the trial is about.
    """

    kernel: Kernel
    memory_bytes: int = 4 << 30
    cpus: int = 1
    cmdline: str = "crashkernel=1G,cma crashkernel=100M"
    prepare: str = ""
    lender: str = "auto"
    lend_bytes: int | None = None
    least_lent_bytes: int | None = None
    syscall: str = "auto"
    placement: str = "auto"
    reserve: str = "keep"
    crash: str = "sysrq"
    dump_level: int = 31
    allow_missing_user_data: bool = False
    dma_quiesce: str = "wait=1"
    accel: str = "tcg"
    timeout_seconds: float = 300.0
    dimms: tuple[int, ...] = ()
    cpu_model: str = CPU_MODEL
    firmware: str = "bios"
    machine: str = "pc"
    nodes: int = 1
    block_bytes: int | None = None
    disk: str = "virtio"
    poison: bool = True
    build_in_guest: bool = False
    probe: bool = False
    loader: str = "crashlend"
    scan: bool = True
    impatient: bool = False
    commands: tuple[Command, ...] = ()
    kill: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    spare_bytes: int = 0
    spare_cpus: int = 0
    proof: bool = False
    flips: int = 0
    whole: bool = False
    late: str = ""
    parity: bool = False
    lab_label: str = LAB_LABEL
    initramfs: Path | None = None
    analyze: bool = False
    threads: int | None = None
    speed: bool = False
    capture_fault: str = ""
    net: str = ""
    net_reasons: tuple[str, ...] = ()
    disk_layout: str = ""
    own_tools: bool = False
    shows: tuple[str, ...] = ()


@dataclass(frozen=True)
class Check:
    """One fact, whether it held, and the figures behind it."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Saved:
    """What the capture left on the disk, copied out of the image; ``place`` is the dump's directory."""

    capture: dict[str, Any]
    dmesg: str
    vmcore: Path | None
    holes: dict[str, Any] = field(default_factory=dict)
    place: Path | None = None


@dataclass(frozen=True)
class Trial:
    """One trial of the suite.

    ``expect`` is "" when every check must hold, ``lost`` when the dump must be lost because the
    crash kernel dies for lack of memory (a control), ``refused`` when crashlend itself must refuse
    with ``words`` in its message and ``exit`` as its exit code, ``came back`` when there is no dump,
    but the machine resets by itself and ``words`` are in the reason that is left, ``corrupted`` when
    late DMA must have been seen in memory (a control). ``lender`` and ``syscall`` are what must have
    been used, whatever the spec left to crashlend.
    """

    name: str
    proves: str
    kernel: str
    spec: Mapping[str, Any] = field(default_factory=dict)
    expect: str = ""
    words: str = ""
    exit: int = EXIT_REFUSED
    lender: str = "movable"
    syscall: str = "load"
    least_lent_ranges: int = 0
    quick: bool = True
