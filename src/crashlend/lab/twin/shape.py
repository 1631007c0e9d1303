# SPDX-License-Identifier: LGPL-2.1-or-later
"""Of which shape a host's twin is, from the host's facts, and what is not as on the host. Pure.

Nothing is made smaller in silence: every difference is a :class:`Change` that results carry along.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from crashlend.arch import for_machine
from crashlend.crashkernel.grammar import lent_request
from crashlend.formats.cmdline import parameter_name, split
from crashlend.lab.firmware import BIOS, SECURE, UEFI
from crashlend.lab.qemu import CPU_MODEL
from crashlend.ranges import align_down, align_up
from crashlend.sizes import GIB, MIB, format_size, mib, parse_size

if TYPE_CHECKING:
    from crashlend.config import Settings
    from crashlend.facts import Facts

# What a twin may have at most, unless somebody wants it larger. No crash kernel starts more CPUs by itself
# (crash_cpus.MOST_BY_ITSELF).
MEMORY_BYTES, CPUS, NODES = 4 * GIB, 8, 4
BLOCK = 128 * MIB
# What production itself takes in the lab: userland, Python, the page cache of its root.
PRODUCTION_BYTES = 768 * MIB
# What firmware keeps for itself is no difference.
FIRMWARE_BYTES = 16 * MIB
HIGH = 4 * GIB

# Words that are not taken over, by name (a pattern), and why.
LEFT_OUT = (
    (r"boot_image|initrd|root\w*|ro|rw|resume\w*|init|rdinit|rd\..*|noresume", "names what boots"),
    (r"(rd_)?luks\..*|crypt\w*|netroot|nfsroot|ip|bootdev|ifname|vlan|bond", "names what boots"),
    (
        r"systemd\..*|splash|quiet|loglevel|debug|vconsole\..*|locale\..*|lang|plymouth\..*",
        "init's",
    ),
    (r"console|earlyprintk|earlycon|serial|netconsole", "the lab's own console is there"),
    (r"panic|no_timer_check", "the lab sets it"),
    (r"mem|memmap|efi_fake_mem|memory_corruption.*", "the twin has memory of its own"),
    (
        r"pci|pcie.*|acpi\w*|apic|noapic|nolapic|ioapic.*|vfio.*|isolcpus|nohz.*|rcu_nocb.*",
        "hardware's",
    ),
    (r"nomodule", "the twin's drivers are modules"),
    (r"crashkernel", "resolved anew, see there"),
)


class Change(NamedTuple):
    """What the twin has instead of what the host has, and why; in words."""

    what: str
    host: str
    twin: str
    why: str


@dataclass(frozen=True)
class Shape:
    """The guest. Sizes in bytes; ``lend_bytes`` 0 lends nothing; ``cmdline`` are production's words."""

    memory_bytes: int
    cpus: int
    nodes: int
    firmware: str
    cpu_model: str
    cmdline: str
    lend_bytes: int
    changes: tuple[Change, ...] = field(default=())


def resemble(
    facts: Facts,
    settings: Settings,
    *,
    memory_bytes: int = MEMORY_BYTES,
    cpus: int = CPUS,
    least_lend_bytes: int = 0,
    reserve_bytes: int = 0,
    simple: bool = False,
    signed: bool = False,
) -> Shape:
    """The shape of the twin of a host.

    ``memory_bytes`` and ``cpus`` are what the twin may have at most; it gets more memory where the
    reservation and what is lent would not fit. ``least_lend_bytes``: lend at least that.
    ``reserve_bytes``: reserve that where the host has nothing reserved (yet). ``simple``: one node and BIOS, for a machine that is stopped and started again. ``signed``: the kernel can be
    booted under Secure Boot.
    """
    changes: list[Change] = []
    host_bytes = host_memory(facts)
    reserve = crashkernel_words(facts, changes)
    if not reserve.bytes and reserve_bytes:
        reserve = _reserved_first(reserve, reserve_bytes, changes)
    asked = settings.lend if settings.lend is not None else lent_request(facts.cmdline_bytes)
    if settings.lender == "none":
        asked = 0
    lend = _lend(asked, least_lend_bytes, reserve.bytes, memory_bytes, settings, changes)
    share = max(1, settings.lend_share)
    least = reserve.bytes + PRODUCTION_BYTES + lend * 100 // share
    if reserve.high_bytes:
        least = max(least, HIGH + reserve.high_bytes + lend)
    size = min(host_bytes, max(memory_bytes, align_up(least, 256 * MIB)))
    size = align_up(size, MIB)
    if abs(size - host_bytes) > FIRMWARE_BYTES:
        why = "what the capture needs grows with memory by makedumpfile's bitmaps alone"
        changes.append(Change("memory", mib(host_bytes), mib(size), why))
    count = len(facts.crash_notes) or 1
    few = min(count, cpus)
    if few != count:
        changes.append(Change("CPUs", str(count), str(few), "the lab's CPUs are emulated"))
    nodes = _nodes(facts, few, simple, changes)
    firmware = _firmware(facts, simple, signed, changes)
    words = [*reserve.words, *_other_words(facts, size / host_bytes, changes)]
    five = "la57" in facts.cpu_flags
    model = CPU_MODEL if five else f"{CPU_MODEL},la57=off"
    return Shape(size, few, nodes, firmware, model, " ".join(words), lend, tuple(changes))


def host_memory(facts: Facts) -> int:
    """The host's RAM in bytes: by /proc/iomem, else by what is online."""
    ram = for_machine(facts.arch).system_ram(facts).size
    return int(ram or facts.meminfo.get("MemTotal", 0) or GIB)


class Reserve(NamedTuple):
    """``crashkernel=`` words, the bytes that they protect, and what of it is above 4 GiB."""

    words: tuple[str, ...]
    bytes: int
    high_bytes: int


def crashkernel_words(facts: Facts, changes: list[Change]) -> Reserve:
    """The words that give the twin the reservation that the host has now.

    Production's own where each has a plain size that came about; else the sizes that did: what a
    range of memory sizes or an address stands for is the host's.
    """
    words = [w for w in split(facts.cmdline) if parameter_name(w) == "crashkernel"]
    found = for_machine(facts.arch).reservations(facts)
    high = sum(r.size for r in found if r.start >= HIGH)
    total = found.size or facts.crash_size_bytes or 0
    plain = [w for w in words if not w.endswith(",cma")]
    shared = [w for w in words if w.endswith(",cma")]
    if _plain_bytes(plain) == total and total:
        return Reserve((*shared, *plain), total, high)
    made = [f"crashkernel={format_size(total)}"] if total else []
    if high:
        made = [f"crashkernel={format_size(high)},high"]
        made += [f"crashkernel={format_size(total - high)},low"] if total > high else []
    if made != plain:
        was = " ".join(plain) or "none"
        why = "what came of it on the host, which a twin's memory would turn into something else"
        changes.append(Change("crashkernel", was, " ".join(made) or "none", why))
    return Reserve((*shared, *made), total, high)


def _reserved_first(reserve: Reserve, size: int, changes: list[Change]) -> Reserve:
    """A reservation for a host that has none: an image must be stored somewhere to be measured."""
    shared = [word for word in reserve.words if word.endswith(",cma")]
    word = f"crashkernel={format_size(size)}"
    changes.append(
        Change("crashkernel", "nothing is reserved", word, "the image must have a place")
    )
    return Reserve((*shared, word), size, 0)


def _plain_bytes(words: list[str]) -> int | None:
    """What the last plain word, or a pair of ``,high`` and ``,low``, asks for; None: it depends."""
    sizes: dict[str, int] = {}
    for word in words:
        match = re.fullmatch(r"crashkernel=(\d+[KMG]?)(,high|,low|)", word, re.IGNORECASE)
        if match is None:
            return None
        sizes[match.group(2)] = parse_size(match.group(1))
    if "" in sizes:
        return sizes[""]
    return sum(sizes.values()) if set(sizes) == {",high", ",low"} else None


def _lend(
    asked: int,
    least: int,
    reserved: int,
    memory: int,
    settings: Settings,
    changes: list[Change],
) -> int:
    """How much the twin lends: as the host, as far as it has memory for it."""
    room = (memory - reserved - PRODUCTION_BYTES) * settings.lend_share // 100
    most = max(BLOCK, align_down(max(0, room), BLOCK))
    if asked > most:
        changes.append(Change("lent", mib(asked), mib(most), "the twin has less memory"))
        return most
    if asked < least:
        why = "a search needs more than it finds"
        changes.append(Change("lent", mib(asked), mib(least), why))
        return least
    return asked


def _nodes(facts: Facts, cpus: int, simple: bool, changes: list[Change]) -> int:
    count = len({block.node for block in facts.blocks}) or 1
    nodes = 1 if simple else min(count, NODES, cpus)
    if nodes != count:
        why = "a stopped machine has one" if simple else "as many as it has CPUs for"
        changes.append(Change("NUMA nodes", str(count), str(nodes), why))
    return nodes


def _firmware(facts: Facts, simple: bool, signed: bool, changes: list[Change]) -> str:
    if not facts.efi:
        return BIOS
    if simple:
        changes.append(Change("firmware", UEFI, BIOS, "its flash is not saved when stopped"))
        return BIOS
    if facts.lockdown in ("integrity", "confidentiality"):
        if signed:
            return SECURE
        why = "the lab has Secure Boot for Debian's signed kernels alone"
        changes.append(Change("firmware", SECURE, UEFI, why))
    return UEFI


def _other_words(facts: Facts, ratio: float, changes: list[Change]) -> list[str]:
    """Production's other words, sizes that are shares of memory scaled with it."""
    kept = []
    for word in split(facts.cmdline):
        name = parameter_name(word).lower()
        if word == "--":
            break  # the rest is init's
        if any(re.fullmatch(pattern, name) for pattern, _ in LEFT_OUT):
            continue
        new = _scaled(word, name, ratio)
        if new != word:
            changes.append(Change(name, word, new, "scaled with memory"))
        kept.append(new)
    return kept


def _scaled(word: str, name: str, ratio: float) -> str:
    key, _, value = word.partition("=")
    if ratio >= 1 or not value:
        return word
    if name == "hugepages" and value.isdecimal():
        return f"{key}={int(int(value) * ratio)}"
    if name in ("movablecore", "kernelcore") and re.fullmatch(r"\d+[KMG]?", value, re.IGNORECASE):
        return f"{key}={format_size(align_down(int(parse_size(value) * ratio), MIB) or MIB)}"
    return word
