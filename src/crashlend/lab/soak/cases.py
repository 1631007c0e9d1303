# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the soak crashes: random guests from a seed, the same on every machine. Pure.

Only what must work is drawn: each of these guests has to save its dump. So a request is one that
the guest's memory can meet, a shrunk reservation comes with lent memory, and without lending the
reservation alone is ample. tests/test_soak_cases.py states these rules a second time, by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, TypeVar

from crashlend.lab.crashes import KINDS
from crashlend.lab.qemu import CPU_MODEL
from crashlend.lab.spec import Command, Spec
from crashlend.sizes import GIB, KIB, MIB

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crashlend.lab.kernels import Kernel

T = TypeVar("T")

BLOCK = 128 * MIB  # what every kernel of the table makes of a guest of this size
# Choices are tables of weights: small guests and few CPUs are quicker, and two cores must do sixty.
KERNELS = {"5.10": 3, "6.1": 5, "6.12": 3, "6.17": 2, "6.18": 2, "7.3": 5}
CMA_KERNELS = ("7.3",)  # built with CMA and knowing ,cma
CPUS = {1: 8, 2: 6, 3: 1, 4: 3, 6: 1, 8: 1}
NODES = {1: 8, 2: 3, 3: 1, 4: 1}
HOSTS = {("bios", "pc"): 5, ("bios", "q35"): 3, ("uefi", "pc"): 1, ("uefi", "q35"): 2}
CPU_MODELS = {CPU_MODEL: 4, "max,la57=off,-erms,-fsrm": 1, "qemu64": 1}
MEMORY = {
    1 * GIB: 6,
    1280 * MIB: 6,
    1500 * MIB: 6,
    1536 * MIB + 40 * KIB: 4,  # QEMU wants whole 8 KiB
    1777 * MIB: 5,
    2 * GIB: 8,
    2 * GIB + 333 * MIB + 40 * KIB: 4,
    2560 * MIB: 3,
    3 * GIB: 2,
    3500 * MIB: 1,
    4 * GIB: 2,
    5000 * MIB: 1,
    6 * GIB: 1,
}
# where lent memory comes from, as the plan must name it; "movable" is 128 MiB blocks
MOVABLE, ZONE, CMA, NONE = "movable", "movable-zone", "cma", "none"
TOPPED_ZONE, TOPPED_CMA = "movable-zone,movable", "cma,movable"
SOURCES = {MOVABLE: 8, ZONE: 3, TOPPED_ZONE: 1, NONE: 1}
CMA_SOURCES = {MOVABLE: 4, ZONE: 2, CMA: 6, TOPPED_CMA: 2, NONE: 1}
MOST_NODES = {CMA: 2, TOPPED_CMA: 1, TOPPED_ZONE: 1}
LEND = {BLOCK: 2, 200 * MIB: 1, 2 * BLOCK: 5, 300 * MIB: 1, 3 * BLOCK: 2, 4 * BLOCK: 2}
CMA_LEND = {2 * BLOCK: 3, 4 * BLOCK: 2, 6 * BLOCK: 1, 8 * BLOCK: 1}
# User space comes into a range of the kernel's own last, when other memory is nearly full, and never
# into the last 100 MiB or so: a smaller one than this can't be filled by it.
LARGE_CMA = 6 * BLOCK
TOPPED_ZONE_BYTES = TOPPED_ZONE_LEND = 4 * BLOCK  # early boot's own data leave less than that
TOPPED_CMA_BYTES, TOPPED_CMA_LEND = BLOCK, 5 * BLOCK
# of a zone: early boot's data, the kernel's image, a block that it shares with its neighbour
ZONE_LOSS = 4 * BLOCK
# MiB reserved, --reserve, --placement; the first group holds a crash kernel, the second its stored
# bytes alone, the third shrinks to them
AMPLE = {
    (128, "keep", "auto"): 2,
    (133, "keep", "auto"): 1,
    (160, "keep", "reserved"): 2,
    (200, "keep", "auto"): 2,
    (256, "keep", "lent"): 1,
}
SMALL = {(24, "keep", "auto"): 1, (32, "keep", "lent"): 2, (57, "keep", "auto"): 1}
SHRUNK = {(160, "exact", "auto"): 1, (200, "auto", "auto"): 2, (256, "exact", "lent"): 1}
ENOUGH_ALONE = {(224, "keep", "auto"): 1, (256, "keep", "reserved"): 1}
# what the guest does meanwhile, and from when on: before it lends; into lent memory; after all
# else. Huge pages go last: a block that holds some is not lent.
IDLE = "idle"
BEFORE, INTO, LAST = "before", "into", "last"
LOADS = {
    (IDLE, ""): 4,
    ("cache", BEFORE): 2,
    ("cache", INTO): 2,
    ("cache", LAST): 1,
    ("anon", BEFORE): 2,
    ("anon", INTO): 1,
    ("anon", LAST): 2,
    ("dirty", BEFORE): 1,
    ("dirty", LAST): 2,
    ("thp", BEFORE): 1,
    ("thp", LAST): 1,
    ("hugepages", LAST): 2,
    ("forks", BEFORE): 2,
    ("reads", BEFORE): 2,
}
# per cent of MemTotal; MiB; programs side by side. The cache needs none: it takes what is free.
AMOUNTS = {
    "anon": {50: 1, 60: 2, 70: 1, 80: 1},
    "dirty": {64: 1, 128: 2},
    "thp": {64: 1, 128: 1},
    "hugepages": {32: 1, 64: 1},
    "forks": {1: 1, 2: 1},
    "reads": {1: 1, 2: 1},
}
# Kinds of crashes.py. Those in the middle of crashlend's own work need another load and are the
# suite's. Some take a module, which Debian 12's compiler builds for no newer kernel than its own.
CRASHES = {
    "sysrq": 8,
    "nmi": 2,
    "keyboard": 2,
    "oom": 1,
    "task": 1,
    "irq": 2,
    "softirq": 1,
    "nmi-handler": 1,
    "oops": 1,
    "oops-irq": 1,
    "overflow": 1,
    "lockup": 1,
    "hang": 1,
}
TRIGGER_KERNELS = ("5.10", "6.1")
MOST_ANON_BEFORE = 60  # what is in the way must find another place
# of MemTotal what programs and the kernel need; what of the guest's memory is not in MemTotal
ROOM, KERNELS_OWN = 300 * MIB, 160 * MIB


@dataclass(frozen=True)
class SoakCase:
    """One guest, and what is done to it. Sizes in bytes.

    ``source`` is the lender that the plan must name, ``lender`` what crashlend is told;
    ``lend_bytes`` is what must be lent, ``by_cmdline`` whether production's own words ask for it.
    ``load`` runs from ``load_when`` on (before, into, last; empty when idle).
    """

    seed: str
    index: int
    kernel: str
    cpus: int
    nodes: int
    memory_bytes: int
    firmware: str
    machine: str
    cpu_model: str
    source: str
    lender: str
    lend_bytes: int
    by_cmdline: bool
    cmdline: str
    reservation_bytes: int
    reserve: str
    placement: str
    syscall: str
    load: str
    load_when: str
    load_amount: int
    crash: str

    @property
    def name(self) -> str:
        """How a person asks for it again: SEED/INDEX."""
        return f"{self.seed}/{self.index}"

    @property
    def is_poisoned(self) -> bool:
        """Whether the trial marks memory page by page: not where a load has it already."""
        # the pattern is memory, too: with it there is no room for so much of a program's
        taken = self.load == "anon" or (self.load == "cache" and self.load_when != LAST)
        return not taken and not is_shy(self.source, self.lend_bytes)

    def spec(self, kernel: Kernel) -> Spec:
        """The trial of this guest; ``kernel`` goes by ``self.kernel``."""
        load = [Command(("load",))]
        work = Command(("work", self.load, str(self.load_amount), self.load_when), program="agent")
        if self.load != IDLE:
            load = [work, *load] if self.load_when == BEFORE else [*load, work]
        pressed = is_pressed(self.load, self.load_when)
        return Spec(
            kernel=kernel,
            memory_bytes=self.memory_bytes,
            cpus=self.cpus,
            nodes=self.nodes,
            cmdline=self.cmdline,
            lender=self.lender,
            lend_bytes=None if self.by_cmdline else self.lend_bytes,
            # what is in use may refuse to move
            least_lent_bytes=min(BLOCK, self.lend_bytes) if pressed and self.lend_bytes else None,
            syscall=self.syscall,
            placement=self.placement,
            reserve=self.reserve,
            crash=self.crash,
            timeout_seconds=480.0 if self.cpus < 4 else 720.0,
            cpu_model=self.cpu_model,
            firmware=self.firmware,
            machine=self.machine,
            poison=self.is_poisoned,
            whole=True,
            commands=tuple(load),
        )


def is_pressed(load: str, when: str) -> bool:
    """Whether lending meets memory in use, so that less than all may be had."""
    return when == BEFORE and load not in (IDLE, "forks", "reads")


def is_shy(source: str, lend_bytes: int) -> bool:
    """Whether user space can't be made to fill it: a small range of the kernel's own."""
    return source == CMA and lend_bytes < LARGE_CMA


def crash_kinds(kernel: str, load: str) -> dict[str, int]:
    """How such a guest may be made to panic: kinds of crashes.py, with weights."""
    return {
        kind.name: CRASHES[kind.name]
        for kind in KINDS
        if kind.name in CRASHES
        and (kernel in TRIGGER_KERNELS or not kind.module)
        and (load == IDLE or kind.name != "oom")
    }


def _on_cpu(name: str, cpus: int) -> dict[str, int]:
    """Where it may panic: on whichever CPU comes, or on one of choice, the first one rarely."""
    if not any(kind.name == name and kind.on_any_cpu for kind in KINDS):
        return {name: 1}
    return {name: cpus, **{f"{name}-cpu{cpu}": 2 if cpu else 1 for cpu in range(cpus)}}


def draw(seed: str, index: int) -> SoakCase:
    """The guest number ``index`` of a seed. All chance comes from these two."""
    chance = Random(f"{seed}/{index}")

    def pick(table: Mapping[T, int]) -> T:
        # choices() alone: random() is the same in every Python, what others make of it is not
        return chance.choices(tuple(table), weights=tuple(table.values()))[0]

    kernel = pick(KERNELS)
    source = pick(CMA_SOURCES if kernel in CMA_KERNELS else SOURCES)
    cpus = pick(CPUS)
    nodes = pick({n: w for n, w in NODES.items() if n <= cpus and n <= MOST_NODES.get(source, 4)})
    firmware, machine = pick(HOSTS)
    load, when = pick({k: w for k, w in LOADS.items() if _suits(k, source)})
    lend_bytes = pick(_lend(source))
    megabytes, reserve, placement = pick(_reservations(source, lend_bytes, load, when))
    reservation = megabytes * MIB
    syscall = "load"
    if source in (CMA, NONE) and (reserve, placement) == ("keep", "auto") and megabytes >= 128:
        syscall = pick({"load": 2, "file": 1})
    least = least_memory(source, lend_bytes, reservation, nodes)
    if (load, when) == ("anon", BEFORE):
        least = max(least, 2 * (lend_bytes + ROOM) + reservation + KERNELS_OWN)
    memory = pick({m: w for m, w in MEMORY.items() if m >= least})
    amount = pick(_amounts(load, when, lend_bytes, memory - reservation - KERNELS_OWN))
    by_cmdline = source == CMA or (
        source == MOVABLE and kernel not in CMA_KERNELS and pick({True: 1, False: 2})
    )
    words = _words(source, lend_bytes, megabytes, nodes, by_cmdline=by_cmdline)
    # by itself crashlend takes the kernel's own ranges alone
    told = source if source == TOPPED_CMA else pick({"auto": 2, source: 1})
    return SoakCase(
        seed=seed,
        index=index,
        kernel=kernel,
        cpus=cpus,
        nodes=nodes,
        memory_bytes=memory,
        firmware=firmware,
        machine=machine,
        cpu_model=pick(CPU_MODELS),
        source=source,
        lender=told,
        lend_bytes=lend_bytes,
        by_cmdline=by_cmdline,
        cmdline=words,
        reservation_bytes=reservation,
        reserve=reserve,
        placement=placement,
        syscall=syscall,
        load=load,
        load_when=when,
        load_amount=amount,
        crash=pick(_on_cpu(pick(crash_kinds(kernel, load)), cpus)),
    )


def least_memory(source: str, lend_bytes: int, reservation: int, nodes: int) -> int:
    """The least memory of a guest that can lend so much and go on, in bytes."""
    blocks = -(-lend_bytes // BLOCK)
    least = [reservation + lend_bytes + 2 * ROOM, nodes * 4 * BLOCK]
    if MOVABLE in source.split(","):
        # the first block, the kernel's, the reservation's, where early boot's data are, UEFI's
        others = 5 + nodes + -(-reservation // BLOCK)
        zone = TOPPED_ZONE_BYTES if source == TOPPED_ZONE else 0
        least.append((blocks + others) * BLOCK + zone)
        # half of memory may be movable (setting lend_share), of each node too
        least.append(2 * (blocks * BLOCK + zone) + reservation + KERNELS_OWN)
        if nodes > 1:
            each = -(-blocks // (nodes - 1))  # the first node may have none to spare
            least.append(nodes * each * BLOCK * 100 // 45)
    if source == ZONE:
        least.append(zone_bytes(lend_bytes, reservation, nodes) + 2 * ROOM + BLOCK)
    if source == CMA:
        least.append(nodes * (lend_bytes + reservation + 3 * BLOCK))
    return max(least)


def zone_bytes(lend_bytes: int, reservation: int, nodes: int) -> int:
    """How large a zone must be, which has early boot's data and maybe the reservation in it."""
    return lend_bytes + reservation + ZONE_LOSS + (nodes - 1) * BLOCK


def _suits(load: tuple[str, str], source: str) -> bool:
    name, when = load
    if when == INTO:
        # anonymous memory goes into the kernel's own range last, the cache in the end everywhere
        return source != NONE and (name == "cache" or CMA not in source.split(","))
    return not (is_pressed(name, when) and "," in source)


def _lend(source: str) -> dict[int, int]:
    fixed = {NONE: 0, TOPPED_ZONE: TOPPED_ZONE_LEND, TOPPED_CMA: TOPPED_CMA_LEND}
    if source in fixed:
        return {fixed[source]: 1}
    return CMA_LEND if source == CMA else LEND


def _reservations(
    source: str, lend_bytes: int, load: str, when: str
) -> dict[tuple[int, str, str], int]:
    if source == NONE:
        return ENOUGH_ALONE
    if lend_bytes < 2 * BLOCK or is_pressed(load, when):
        return AMPLE
    return {**AMPLE, **SMALL, **SHRUNK}


def _amounts(load: str, when: str, lend_bytes: int, usable: int) -> dict[int, int]:
    """How much of a load this guest bears; ``usable`` is about its MemTotal."""
    amounts = AMOUNTS.get(load, {0: 1})
    if load != "anon":
        return amounts
    room = ROOM + lend_bytes if when == BEFORE else ROOM
    most = 100 * (usable - room) // usable
    return {
        a: w for a, w in amounts.items() if a <= most and (when != BEFORE or a <= MOST_ANON_BEFORE)
    }


def _words(
    source: str, lend_bytes: int, reservation_mib: int, nodes: int, *, by_cmdline: bool
) -> str:
    """Production's own words; those before 6.17 take the last crashkernel= alone."""
    words = [f"crashkernel={reservation_mib}M"]
    if by_cmdline:
        words.insert(0, f"crashkernel={lend_bytes // MIB}M,cma")
    elif source == TOPPED_CMA:
        words.insert(0, f"crashkernel={TOPPED_CMA_BYTES // MIB}M,cma")
    elif source == TOPPED_ZONE:
        words.insert(0, f"movablecore={TOPPED_ZONE_BYTES // MIB}M")
    elif source == ZONE:
        size = zone_bytes(lend_bytes, reservation_mib * MIB, nodes)
        words.insert(0, f"movablecore={size // MIB}M")
    return " ".join(words)
