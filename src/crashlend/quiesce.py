# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is done about late DMA before anything is written to lent memory. Pure.

A device that production had started may still write when the crash kernel runs. The setting
``dma_quiesce`` names what is done against that, in this order:

    bus-masters-off[=bridges]   endpoints (and bridges) are told to write no more
    wait=SECONDS                time for requests in flight to end
    watch=SECONDS[:LIMIT]       lent memory must have stayed unchanged for SECONDS

What some devices do no wait ends (facts/writers.py): beside these, lending demands the first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crashlend.errors import RefusedError

if TYPE_CHECKING:
    from crashlend.facts import EndlessWriter, Facts, PciFunction

DEFAULT = "wait=10"
WAIT_MOST_SECONDS = 600.0
WATCH_LEAST_SECONDS, WATCH_MOST_SECONDS, LIMIT_MOST_SECONDS = 0.1, 600.0, 3600.0
LIMIT_FACTOR = 6
# what one processor reads of memory, if it is slow
READ_BYTES_PER_SECOND = 4 << 30
NUMBER = r"[0-9]{1,6}(?:\.[0-9]{1,6})?"
# crash_cma_clear_pending_dma() waits CMA_DMA_TIMEOUT_SEC: commit e1280f3071f1, Linux 6.17
KERNELS_OWN_SECONDS = 10.0
ENDPOINTS, BRIDGES = "endpoints", "bridges"
# PCI base classes and what of them is the system's own (PCI Code and ID Assignment Specification)
BRIDGE_CLASS, SYSTEM_CLASS = 0x06, 0x08
TO_OTHER_BUSES = (0x0604, 0x0607, 0x0609)  # PCI-to-PCI, CardBus, semi-transparent PCI-to-PCI
SD_HOST, OTHER_PERIPHERAL = 0x0805, 0x0880
# DMA engines that call themselves a system peripheral, as much else does that is none
ENGINES = ("idxd", "ioatdma")


@dataclass(frozen=True)
class Wish:
    """What the setting asks for; zero and empty stand for what it does not name."""

    wait_seconds: float = 0.0
    bus_masters: str = ""
    watch_seconds: float = 0.0
    watch_limit_seconds: float = 0.0

    def __str__(self) -> str:
        """The setting's text, each part in its usual form."""
        parts = []
        if self.wait_seconds or not (self.bus_masters or self.watch_seconds):
            parts.append(f"wait={show_number(self.wait_seconds)}")
        if self.bus_masters:
            parts.append("bus-masters-off" + ("=bridges" if self.bus_masters == BRIDGES else ""))
        if self.watch_seconds:
            limit = show_number(self.watch_limit_seconds)
            parts.append(f"watch={show_number(self.watch_seconds)}:{limit}")
        return ",".join(parts)


@dataclass(frozen=True)
class Quiesce:
    """What purgatory does, in the order of the module's table.

    ``bus_masters`` are addresses of functions in segment 0 (``0000:00:04.0``). A
    ``watch_seconds`` of 0 stands for no watch; ``watch_limit_seconds`` ends one that finds no
    rest. ``reason`` says why the wait is as long as it is.
    """

    wait_seconds: float
    reason: str
    bus_masters: tuple[str, ...] = ()
    watch_seconds: float = 0.0
    watch_limit_seconds: float = 0.0

    @property
    def least_seconds(self) -> float:
        """What it takes where nothing moves."""
        return self.wait_seconds + self.watch_seconds

    @property
    def most_seconds(self) -> float:
        """What it takes where memory finds no rest."""
        return self.wait_seconds + self.watch_limit_seconds

    def in_words(self) -> str:
        """All of it for people, with the reason."""
        steps = [f"{show_number(self.wait_seconds)} s"]
        if self.bus_masters:
            number = len(self.bus_masters)
            steps = [f"bus mastering of {number} function{'s' * (number != 1)} off", *steps]
        if self.watch_seconds:
            limit = show_number(self.watch_limit_seconds)
            steps.append(
                f"until lent memory rests for {show_number(self.watch_seconds)} s ({limit} s at most)"
            )
        return f"{', then '.join(steps)}: {self.reason}"


def show_number(value: float) -> str:
    """Seconds without needless digits."""
    return f"{value:.6f}".rstrip("0").rstrip(".")


def parse_quiesce(text: str) -> Wish:
    """Read the setting; ValueError where it is none."""
    wish: dict[str, object] = {}
    names = []
    for item in text.split(","):
        name, _, value = item.strip().partition("=")
        names.append(name)
        if name == "wait" and re.fullmatch(NUMBER, value):
            wish["wait_seconds"] = _within(float(value), 0.0, WAIT_MOST_SECONDS)
        elif item.strip() == "bus-masters-off":
            wish["bus_masters"] = ENDPOINTS
        elif item.strip() == "bus-masters-off=bridges":
            wish["bus_masters"] = BRIDGES
        elif name == "watch" and re.fullmatch(f"{NUMBER}(:{NUMBER})?", value):
            seconds, _, limit = value.partition(":")
            least = _within(float(seconds), WATCH_LEAST_SECONDS, WATCH_MOST_SECONDS)
            most = float(limit) if limit else least * LIMIT_FACTOR
            wish["watch_seconds"] = least
            wish["watch_limit_seconds"] = _within(most, least, LIMIT_MOST_SECONDS)
        else:
            raise ValueError(f"no item of dma_quiesce: {item!r}")
    if len(set(names)) < len(names):
        raise ValueError(f"no dma_quiesce, an item stands twice: {text!r}")
    return Wish(**wish)  # type: ignore[arg-type]


def _within(value: float, least: float, most: float) -> float:
    if not least <= value <= most:
        raise ValueError(f"no value of dma_quiesce: {value}")
    return value


# --- which functions -----------------------------------------------------------------------------


def is_the_systems(one: PciFunction) -> bool:
    """Whether a function keeps the machine running and is left alone: IOMMUs, timers, host bridges.

    A bridge to other buses is none of these, nor is what only shares their class: SD hosts and DMA
    engines write user memory.
    """
    kind, base = one.class_code >> 8, one.class_code >> 16
    if base == BRIDGE_CLASS:
        return kind not in TO_OTHER_BUSES
    if base != SYSTEM_CLASS or kind == SD_HOST:
        return False
    return not (kind == OTHER_PERIPHERAL and one.driver in ENGINES)


def is_bridge(one: PciFunction) -> bool:
    """Whether what lies behind it writes memory through it."""
    return one.bridge or one.class_code >> 8 in TO_OTHER_BUSES


def is_reachable(one: PciFunction) -> bool:
    """Whether ports 0xcf8 and 0xcfc lead there: they have no segments.

    Of a virtual function nobody promises it (it has no vendor in its configuration space).
    """
    return int(one.address.partition(":")[0], 16) == 0 and not one.virtual_of


def candidates(facts: Facts, which: str) -> list[PciFunction]:
    """The functions that are to be switched off, endpoints first, reachable or not."""
    found = [one for one in facts.pci_functions if not is_the_systems(one)]
    endpoints = [one for one in found if not is_bridge(one)]
    return (
        [*endpoints, *(one for one in found if is_bridge(one))] if which == BRIDGES else endpoints
    )


# --- the plan ------------------------------------------------------------------------------------


def plan_quiesce(
    facts: Facts, wish: Wish, *, lending: bool, syscall: str, by_word: bool = False
) -> Quiesce:
    """What is done on this host.

    ``by_word``: with kexec_file_load crashlend itself lends memory that the kernel would not.
    RefusedError where a writer that no wait ends would be let go on, where a watchdog would surely
    end the wait, and where kexec_file_load (``syscall`` "file") has no place for what is asked.
    """
    if not lending:
        return Quiesce(0.0, "nothing is lent")
    if syscall == "file":
        return _by_the_kernel_alone(facts, wish, by_word)
    if facts.cma_ranges:
        wait = 0.0
        reason = "the kernel waits 10 s by itself, because it has crashkernel CMA ranges"
    else:
        wait = wish.wait_seconds
        reason = "DMA into lent memory must have ended (setting dma_quiesce)"
    off = candidates(facts, wish.bus_masters) if wish.bus_masters else []
    reachable = tuple(one.address for one in off if is_reachable(one))
    quiesce = Quiesce(wait, reason, reachable, wish.watch_seconds, wish.watch_limit_seconds)
    _demand_an_end(facts, quiesce)
    _outlive_watchdogs(facts, quiesce)
    return quiesce


def _by_the_kernel_alone(facts: Facts, wish: Wish, by_word: bool) -> Quiesce:
    """With kexec_file_load purgatory is the kernel's own, which waits for nothing.

    What the kernel lends by itself it lends in any case; crashlend adds nothing to that beside a
    writer that no wait ends.
    """
    if wish.bus_masters or wish.watch_seconds:
        raise RefusedError(
            f"dma_quiesce={wish} is not to be had with kexec_file_load",
            "what would do it is crashlend's own purgatory, and the kernel takes none",
            hint="use --syscall load, or --dma-quiesce wait=10",
        )
    if by_word and facts.privileged and facts.endless_writers:
        raise _beside(facts.endless_writers[0], "end what uses it, or --lend 0")
    return Quiesce(
        0.0,
        "the kernel waits 10 s by itself, because it has crashkernel CMA ranges"
        if facts.cma_ranges
        else "kexec_file_load leaves no place for a wait",
    )


def _demand_an_end(facts: Facts, quiesce: Quiesce) -> None:
    """Refuse where a writer that no wait ends is not switched off."""
    if not facts.privileged:
        return  # who uses what is for root to see; the plan is a coarse one
    left = [one for one in facts.endless_writers if one.address not in quiesce.bus_masters]
    if not left:
        return
    out_of_reach = quiesce.bus_masters or not _could_be_off(facts, left)
    raise _beside(
        left[0],
        "its bus mastering can't be switched off: end what uses it, or --lend 0"
        if out_of_reach
        else "use --dma-quiesce wait=10,bus-masters-off, end what uses it, or --lend 0",
    )


def _beside(one: EndlessWriter, hint: str) -> RefusedError:
    return RefusedError(
        f"memory must not be lent beside {one.driver} ({one.address or 'address unknown'})",
        f"{one.name}: {one.why}, so no wait ends its DMA; {one.seen}",
        hint=hint,
    )


def _could_be_off(facts: Facts, writers: list[EndlessWriter]) -> bool:
    known = {one.address for one in candidates(facts, ENDPOINTS) if is_reachable(one)}
    return all(one.address in known for one in writers)


def _outlive_watchdogs(facts: Facts, quiesce: Quiesce) -> None:
    """Refuse where an armed watchdog fires before the shortest wait is over, however fresh it is."""
    before = KERNELS_OWN_SECONDS if facts.cma_ranges else 0.0
    for one in facts.watchdogs:
        if not one.armed or one.timeout_seconds is None or not quiesce.least_seconds:
            continue
        if one.timeout_seconds <= before + quiesce.least_seconds:
            raise RefusedError(
                f"{one.name} would reset the machine before the crash kernel starts",
                f"it is armed for {one.timeout_seconds} s, and purgatory waits "
                f"{show_number(quiesce.least_seconds)} s at least"
                + (" after the kernel's own 10 s" if before else ""),
                hint="set dma_quiesce shorter, or the watchdog's timeout longer",
            )


def quiesce_notes(facts: Facts, wish: Wish, quiesce: Quiesce, lent_bytes: int) -> tuple[str, ...]:
    """What people should know about it beside what is done; nothing where nothing is lent."""
    if not lent_bytes:
        return ()
    return (
        *_out_of_reach(facts, wish),
        *_left_alone(facts, quiesce),
        *_watchdogs(facts, quiesce),
        *_watch(quiesce, lent_bytes),
    )


def _watch(quiesce: Quiesce, lent_bytes: int) -> list[str]:
    """A note where lent memory can't be read twice before the watch gives up."""
    least = 2 * lent_bytes / READ_BYTES_PER_SECOND + quiesce.watch_seconds
    if not quiesce.watch_seconds or least <= quiesce.watch_limit_seconds:
        return []
    return [
        f"a watch of {show_number(quiesce.watch_limit_seconds)} s may be over before so much lent "
        f"memory is read twice: set watch={show_number(quiesce.watch_seconds)}:{int(least) + 1} or more"
    ]


def _out_of_reach(facts: Facts, wish: Wish) -> list[str]:
    if not wish.bus_masters:
        return []
    if not facts.pci_functions:
        return ["bus-masters-off: sysfs names no PCI function, so none is switched off"]
    missed = [o for o in candidates(facts, wish.bus_masters) if not is_reachable(o)]
    if not missed:
        return []
    virtual = sum(bool(one.virtual_of) for one in missed)
    names = ", ".join(one.address for one in missed[:4]) + (" …" if len(missed) > 4 else "")
    return [
        f"the bus mastering of {len(missed)} functions stays on ({virtual} virtual ones, "
        f"{len(missed) - virtual} in a segment above 0, where purgatory can't reach): {names}"
    ]


def _left_alone(facts: Facts, quiesce: Quiesce) -> list[str]:
    """Writers without end that are not switched off: where that was not refused."""
    left = [one for one in facts.endless_writers if one.address not in quiesce.bus_masters]
    where = "the kernel's own ,cma ranges are lent by the kernel itself"
    if not facts.privileged:
        where = "load, run as root, will look again and may refuse"
    return [
        f"no wait ends the DMA of {one.driver} ({one.address or 'address unknown'}): {one.seen}; "
        f"{where}"
        for one in left
    ]


def _watchdogs(facts: Facts, quiesce: Quiesce) -> list[str]:
    """A note where a watchdog may fire: it has used up part of its time when the kernel dies."""
    wait = (KERNELS_OWN_SECONDS if facts.cma_ranges else 0.0) + quiesce.most_seconds
    return [
        f"{one.name} ({one.identity or 'unknown'}) is armed for {one.timeout_seconds} s"
        f"{' and can not be stopped' if one.for_good else ''}; up to {show_number(wait)} s of that "
        "go by before the crash kernel starts, which must then be quick to feed it"
        for one in facts.watchdogs
        if one.armed and one.timeout_seconds is not None and one.timeout_seconds <= 2 * wait
    ]
