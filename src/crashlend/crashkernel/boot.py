# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a kernel reserves at boot for ``crashkernel=`` words: every range with its address.

A model of reserve_crashkernel_generic() and reserve_crashkernel_cma(), and of what x86 and arm64 did
before Linux 6.7. Pure: memory, command line and kernel go in, ranges and the kernel's own messages
come out. ``early.py`` makes a :class:`BootMemory` of a host's facts, of a file or of a size alone.

Kernel source: kernel/crash_reserve.c, mm/cma.c (6.17 to 7.3), arch/x86/kernel/setup.c (5.10, 6.1),
arch/arm64/mm/init.c (6.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from crashlend.crashkernel.grammar import (
    ERR,
    INFO,
    WARN,
    Message,
    Request,
    low_request,
    parse_crashkernel,
)
from crashlend.crashkernel.memblock import Free
from crashlend.crashkernel.params import swiotlb_bytes
from crashlend.ranges import Range, Ranges

if TYPE_CHECKING:
    from crashlend.crashkernel.generations import BootKernel, Placing

_U64 = (1 << 64) - 1
_4G = 1 << 32
# [include/linux/crash_reserve.h]
CRASHKERNEL_CMA_RANGES_MAX = 4

MAIN, LOW_PART, CMA_PART = "main", "low", "cma"


@dataclass(frozen=True)
class BootMemory:
    """Memory as it is when the kernel reserves for the crash kernel.

    ``ram`` is memblock.memory: RAM in whole pages, that of the first MiB and what is reserved
    included. ``reserved`` is what early boot has taken of it already: the kernel image, the
    ramdisk, the first MiB, page tables, and so on. ``boundaries`` are addresses where one NUMA node
    ends inside a stretch of RAM: nothing is placed across one. ``bottom_up``: memblock searches
    upwards (x86 never does at this point).
    """

    ram: Ranges
    reserved: Ranges
    boundaries: tuple[int, ...] = ()
    bottom_up: bool = False

    @cached_property
    def ram_bytes(self) -> int:
        """memblock_phys_mem_size(): all RAM, reserved parts included."""
        return self.ram.size

    @cached_property
    def free(self) -> Free:
        """What nothing has taken yet; a prediction works on a copy."""
        return Free(self.ram - self.reserved, self.boundaries)


class BootRange(NamedTuple):
    """A range that the kernel reserved: half-open, ``kind`` is "main", "low" or "cma"."""

    kind: str
    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start

    def to_json(self) -> dict[str, object]:
        return {"kind": self.kind, "start": self.start, "end": self.end}


@dataclass(frozen=True)
class Prediction:
    """What a kernel makes of a command line.

    ``ranges`` come in the order in which the kernel reserved them. ``messages`` are all lines that
    it writes about them, those of reading the words included. ``ram_bytes`` is all RAM. ``modelled``
    False: the kernel reads the words as ``request`` says, but where this architecture's code places
    them is not known here.
    """

    request: Request
    ranges: tuple[BootRange, ...] = ()
    messages: tuple[Message, ...] = ()
    ram_bytes: int = 0
    modelled: bool = True

    @property
    def production_loses_bytes(self) -> int:
        """What production can't use for anything: the main part and the low one."""
        return sum(r.size for r in self.ranges if r.kind != CMA_PART)

    @property
    def shared_bytes(self) -> int:
        """What production uses until the crash: the ``,cma`` ranges."""
        return sum(r.size for r in self.ranges if r.kind == CMA_PART)

    @property
    def iomem(self) -> Ranges:
        """What /proc/iomem lists as "Crash kernel"; ``,cma`` ranges are not in it."""
        return Ranges((r.start, r.end) for r in self.ranges if r.kind != CMA_PART)

    def of_kind(self, kind: str) -> tuple[BootRange, ...]:
        """The ranges of one kind, in the kernel's order."""
        return tuple(r for r in self.ranges if r.kind == kind)


def predict(memory: BootMemory, cmdline: bytes, kernel: BootKernel) -> Prediction:
    """What ``kernel`` reserves on ``memory`` when it is booted with ``cmdline``.

    ``cmdline`` is as for ``grammar.parse_crashkernel``: any bytes. Never raises.
    """
    line = cmdline.split(b"\0", 1)[0][: kernel.line_bytes - 1]
    placing = kernel.placing
    if placing is not None and placing.low_slack:
        low = max(swiotlb_bytes(line) + placing.low_slack, placing.low_default)
        placing = placing._replace(low_default=low)
    request = parse_crashkernel(
        line,
        memory.ram_bytes,
        default_low_bytes=placing.low_default if placing else 0,
        generation=kernel.generation,
    )
    if not request.accepted or placing is None:
        return Prediction(
            request, (), request.messages, memory.ram_bytes, modelled=placing is not None
        )
    boot = _Boot(memory, kernel, placing, request)
    boot.reserve_main(line)
    if kernel.knows_cma:
        boot.reserve_crashkernel_cma(request.cma_bytes)
    messages = (*request.messages, *boot.messages)
    return Prediction(request, tuple(boot.ranges), messages, memory.ram_bytes)


class _Boot:
    """One boot: what is free, and what has been reserved and said so far."""

    def __init__(
        self, memory: BootMemory, kernel: BootKernel, placing: Placing, request: Request
    ) -> None:
        self.memory = memory
        self.kernel = kernel
        self.placing = placing
        self.request = request
        self.end = memory.ram[-1].end if memory.ram else 0
        self.free = memory.free.copy()
        self.high_max = self.end if placing.high_max is None else placing.high_max
        self.part = Range(0, 0)
        """What the last allocation was cut out of."""
        self.ranges: list[BootRange] = []
        self.messages: list[Message] = []

    def say(self, level: str, text: str) -> None:
        self.messages.append(Message(level, text))

    def alloc(self, size: int, align: int, start: int, end: int) -> int:
        """memblock_phys_alloc_range(): the address, taken; 0 where there is no room."""
        at = self.free.find(size, align, start, end, bottom_up=self.memory.bottom_up)
        if at:
            self.part = self.free.take(at, size)
        return at

    def reserve_main(self, line: bytes) -> None:
        """The main part and the low one, by the code of this generation."""
        if self.placing.style == "x86":
            self._reserve_x86(line)
        elif self.placing.style == "arm64":
            self._reserve_arm64()
        else:
            self._reserve_generic()

    def _reserve_generic(self) -> None:
        """[kernel/crash_reserve.c:reserve_crashkernel_generic]."""
        size, base = self.request.size_bytes, self.request.base
        place, low_size = self.placing, self.request.low_bytes or 0
        if base:
            at = self.alloc(size, place.fixed_align, base, (base + size) & _U64)
            if not at:
                self.say(WARN, "crashkernel reservation failed - memory is in use.")
                return
        else:
            low, high = (0, place.low_max), (place.low_max, self.high_max)
            tries = (high, low) if self.request.high else (low, high)
            at = self.alloc(size, place.align, *tries[0])
            if not at:
                at = self.alloc(size, place.align, *tries[1])
                if not self.request.high:
                    low_size = place.low_default
            if not at:
                self.say(WARN, f"cannot allocate crashkernel (size:{size:#x})")
                return
        self._finish(at, size, low_size)

    def _reserve_arm64(self) -> None:
        """[arch/arm64/mm/init.c:reserve_crashkernel 6.1]."""
        page = self.kernel.page_bytes
        size, base = (self.request.size_bytes + page - 1) // page * page, self.request.base or 0
        end = self.high_max if self.request.high else self.placing.low_max
        if base:
            end = (base + size) & _U64
        at = self.alloc(size, self.placing.align, base, end)
        if not at:
            self.say(WARN, f"cannot allocate crashkernel (size:{size:#x})")
            return
        self._finish(at, size, self.request.low_bytes or 0)

    def _finish(self, at: int, size: int, low_size: int) -> None:
        """The low part where the main one is high, and what is said of both."""
        main = self.part
        if at >= self.placing.low_max and low_size:
            low = self.alloc(low_size, self.placing.align, 0, self.placing.low_max)
            if not low:
                text = f"cannot allocate crashkernel low memory (size:{low_size:#x})."
                self.say(ERR, text)
                self.free.put_back(main)
                return
            end = low + low_size
            text = f"0x{low:08x} - 0x{end:08x} ({low_size >> 20} MB)"
            self.say(INFO, f"crashkernel low memory reserved: {text}")
            self.ranges.append(BootRange(LOW_PART, low, end))
        text = f"0x{at:016x} - 0x{at + size:016x} ({size >> 20} MB)"
        self.say(INFO, f"crashkernel reserved: {text}")
        self.ranges.append(BootRange(MAIN, at, at + size))

    def _reserve_x86(self, line: bytes) -> None:
        """[arch/x86/kernel/setup.c:reserve_crashkernel 5.10, 6.1]."""
        size, base, place = self.request.size_bytes, self.request.base, self.placing
        if base:
            at = self.alloc(size, place.fixed_align, base, (base + size) & _U64)
            if not at:
                self.say(INFO, "crashkernel reservation failed - memory is in use.")
                return
        else:
            at = 0
            if not self.request.high:
                at = self.alloc(size, place.align, place.lowest, place.low_max)
            if not at:
                at = self.alloc(size, place.align, place.lowest, self.high_max)
            if not at:
                self.say(INFO, "crashkernel reservation failed - No suitable area found.")
                return
        main = self.part
        if at >= _4G and not self._reserve_x86_low(line):
            self.free.put_back(main)
            return
        where = f"Reserving {size >> 20}MB of memory at {at >> 20}MB"
        self.say(INFO, f"{where} for crashkernel (System RAM: {self.memory.ram_bytes >> 20}MB)")
        self.ranges.append(BootRange(MAIN, at, at + size))

    def _reserve_x86_low(self, line: bytes) -> bool:
        """The low part for a main part above 4 GiB, whether ",high" was asked for or not."""
        low = low_request(line, self.kernel.generation, self.placing.low_default)
        self.messages += low.messages
        if not low.size:
            return True
        at = self.alloc(low.size, self.placing.align, 0, self.placing.low_max)
        if not at:
            what = f"Cannot reserve {low.size >> 20}MB crashkernel low memory"
            self.say(ERR, f"{what}, please try smaller size.")
            return False
        limit = min(self.memory.ram_bytes, self.placing.low_max) >> 20
        where = f"Reserving {low.size >> 20}MB of low memory at {at >> 20}MB"
        self.say(INFO, f"{where} for crashkernel (low RAM limit: {limit}MB)")
        self.ranges.append(BootRange(LOW_PART, at, at + low.size))
        return True

    def reserve_crashkernel_cma(self, cma_size: int) -> None:
        """[kernel/crash_reserve.c:reserve_crashkernel_cma]."""
        if not cma_size:
            return
        if not self.kernel.config_cma:
            self.say(WARN, "crashkernel CMA reservation not supported")
            return
        page = self.kernel.page_bytes
        request = _roundup(cma_size, page)
        reserved = count = 0
        while cma_size > reserved and count < CRASHKERNEL_CMA_RANGES_MAX:
            if not self._declare_contiguous(request, count):
                if request <= page:
                    break
                request = _roundup(request // 2, page)
                continue
            count += 1
            reserved += request
        if cma_size > reserved:
            text = f"{cma_size >> 20} MB requested, {reserved >> 20} MB reserved"
            self.say(WARN, f"crashkernel CMA reservation failed: {text} in {count} ranges")
        else:
            self.say(INFO, f"crashkernel CMA reserved: {reserved >> 20} MB in {count} ranges")

    def _declare_contiguous(self, asked: int, used_slots: int) -> bool:
        """[mm/cma.c:cma_declare_contiguous_nid]: one area of ``asked`` bytes in whole pageblocks."""
        block = self.kernel.pageblock_bytes
        at, size = 0, _roundup(asked, block)
        if used_slots >= self.kernel.cma_slots:
            self.say(ERR, "cma: Not enough slots for CMA reserved regions!")
        elif size > self.end:
            region = f"Size (0x{size:016x}) of region at 0x{0:016x}"
            self.say(ERR, f"cma: {region} exceeds limit (0x{self.end:016x})")
        elif size:
            at = self.free.find_cma(size, block, self.end, bottom_up=self.memory.bottom_up)
        if not at:
            self.say(ERR, f"cma: Failed to reserve {asked >> 20} MiB")
            return False
        self.free.take(at, size)
        self.say(INFO, f"cma: Reserved {asked >> 20} MiB at 0x{at:016x}")
        self.ranges.append(BootRange(CMA_PART, at, at + size))
        return True


def _roundup(value: int, unit: int) -> int:
    """The kernel's roundup() of an unsigned long long: it wraps at 64 bits."""
    return ((value + unit - 1) & _U64) // unit * unit
