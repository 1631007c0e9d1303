# SPDX-License-Identifier: LGPL-2.1-or-later
"""Memory as it is when the kernel reserves for ``crashkernel=``: what early boot left of RAM.

A :class:`MemoryMap` is what is known of a machine before its command line; :func:`boot_memory` reads
the words that change memory (``mem=``, ``memmap=``, ``cma=``) and adds what x86 takes before the
crash kernel's turn: the first MiB, the kernel image, the ramdisk, page tables and node data at the
top. These last two are not exact: they are some hundred KiB, while the crash kernel is placed in
steps of 16 MiB and a ``,cma`` range in steps of 2 MiB.

Kernel source: arch/x86/kernel/setup.c:setup_arch, arch/x86/kernel/e820.c, mm/numa.c,
kernel/dma/contiguous.c (5.10 to 7.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional

from crashlend.crashkernel.boot import BootMemory
from crashlend.crashkernel.generations import BootKernel, kernel_for
from crashlend.crashkernel.memblock import Free
from crashlend.crashkernel.params import early_words
from crashlend.errors import CrashlendError
from crashlend.formats import bootparams
from crashlend.ranges import Range, Ranges, align_up
from crashlend.sizes import GIB, MIB, mib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crashlend.facts import Facts
    from crashlend.formats.procfs import Resource

PAGE = 4096
_U64 = (1 << 64) - 1
FIRST_MIB = Range(0, MIB)
# What the kernel takes behind its image for early page tables and DMI (brk): some 100 KiB.
BRK_BYTES = 128 << 10
# sizeof(pg_data_t) with 64 possible nodes or more: 168 to 172 KiB were seen from 5.10 to 7.3.
NODE_DATA_BYTES = 0x2B000
# Debian's kernels end between 48 and 64 MiB behind the address that they are built for.
TYPICAL_KERNEL = Range(16 * MIB, 72 * MIB)
TYPICAL_RAMDISK_BYTES = 32 * MIB
SMALLEST = 64 * MIB
_NOTHING = Ranges()


@dataclass(frozen=True)
class MemoryMap:
    """What is known of a machine's memory before its command line is read.

    ``ram`` and ``other`` are the firmware's RAM and what else it lists; where they overlap it is not
    RAM. ``kernel`` is the image from _text to the end of bss, ``ramdisk`` where the boot loader put
    it. ``taken`` is what else early boot has reserved. ``nodes`` are the starts of NUMA nodes.
    ``node_data`` False: ``taken`` has page tables and node data already. ``assumptions`` are
    sentences for people: what was not known, and what was taken for it.
    """

    ram: Ranges
    other: Ranges
    kernel: Optional[Range] = None
    ramdisk: Optional[Range] = None
    taken: Ranges = _NOTHING
    nodes: tuple[int, ...] = ()
    node_data: bool = True
    arch: str = "x86_64"
    assumptions: tuple[str, ...] = ()


def boot_memory(found: MemoryMap, cmdline: bytes, kernel: BootKernel) -> BootMemory:
    """Memory at the crash kernel's turn, on a machine with ``found`` booted with ``cmdline``.

    Any bytes will do as ``cmdline``. A line that leaves no RAM gives memory without RAM.
    """
    ram = found.ram - found.other
    if found.arch == "x86_64":
        ram = _ram_of_words(found, cmdline, kernel)
        # [trim_bios_range, memblock_trim_memory]
        ram -= Ranges([(0, PAGE), (0xA0000, MIB)])
    ram = ram.align_inwards(PAGE)
    taken = [*found.taken]
    if found.arch == "x86_64":
        taken.append(FIRST_MIB)
    if found.kernel:
        taken.append(Range(found.kernel.start, align_up(found.kernel.end, PAGE) + BRK_BYTES))
    if found.ramdisk:
        taken.append(Range(found.ramdisk.start, align_up(found.ramdisk.end, PAGE)))
    reserved = Ranges(taken)
    if found.arch == "x86_64" and ram:
        if found.node_data:
            reserved |= _top_of_nodes(ram, reserved, found.nodes)
        if kernel.config_cma:
            reserved |= _global_cma(ram, reserved, found.nodes, cmdline, kernel)
    return BootMemory(ram, reserved, found.nodes)


def _ram_of_words(found: MemoryMap, cmdline: bytes, kernel: BootKernel) -> Ranges:
    """RAM after ``mem=`` and ``memmap=`` [arch/x86/kernel/e820.c:parse_memopt, parse_memmap_one]."""
    table = _Table(found.ram, found.other, kernel)
    for name, value in early_words(cmdline):
        if name == b"mem":
            size, _ = kernel.generation.memparse(value)
            if size and value != b"nopentium":
                table.ram -= Ranges([(size, _U64)])
        elif name == b"memmap":
            for one in value.split(b","):
                table.memmap_one(one)
    # Where entries overlap the higher type counts, and RAM is the lowest [e820__update_table].
    return table.ram - table.other


class _Table:
    """The e820 table as far as it matters here: RAM and what is not."""

    def __init__(self, ram: Ranges, other: Ranges, kernel: BootKernel) -> None:
        self.ram, self.other, self.memparse = ram, other, kernel.generation.memparse

    def memmap_one(self, text: bytes) -> None:
        if text.startswith(b"exactmap"):
            self.ram = self.other = Ranges()
            return
        size, rest = self.memparse(text)
        if rest == text:
            return
        kind = rest[:1]
        if kind not in (b"@", b"#", b"$", b"!", b"%"):
            self.ram -= Ranges([(size, _U64)])
            return
        start, rest = self.memparse(rest[1:])
        area = Ranges([(start, min(start + size, _U64))])
        if kind == b"@":
            self.ram |= area
        elif kind == b"%":
            self._change(area, rest)
        else:
            self.other |= area

    def _change(self, area: Ranges, rest: bytes) -> None:
        """``memmap=nn%ss-old+new``: types change; 1 is RAM."""
        old = new = 0
        if rest.startswith(b"-"):
            old, rest = self.memparse(rest[1:])
        if rest.startswith(b"+"):
            new, rest = self.memparse(rest[1:])
        if rest:
            return
        ram = self.ram & area if old in (0, 1) else Ranges()
        other = self.other & area if old != 1 else Ranges()
        moved = ram | other if old else area
        if old or not new:
            self.ram -= ram
            self.other -= other
        if new == 1:
            self.ram |= moved
        elif new:
            self.other |= moved


def _top_of_nodes(ram: Ranges, reserved: Ranges, nodes: Sequence[int]) -> Ranges:
    """Page tables of the direct mapping, then each node's pg_data_t, from the top of memory down.

    [arch/x86/mm/init.c:memory_map_top_down, mm/numa.c:alloc_node_data]
    """
    free = Free(ram - reserved, nodes)
    end = ram[-1].end
    taken = []
    # A page of 2 MiB entries per GiB, those before the first dozen in brk.
    tables = PAGE * max(ram.align_outwards(GIB).size // GIB - 12, 0)
    bounds = [*sorted(n for n in nodes if n < end), end]
    pieces = [(tables, 0, end)] if tables else []
    low = 0
    for high in bounds:
        if high > low and ram & Ranges([(low, high)]):
            pieces.append((NODE_DATA_BYTES, low, high))
        low = high
    for size, low, high in pieces:
        at = free.find(size, PAGE, low, high)
        if at:
            free.take(at, size)
            taken.append((at, at + size))
    return Ranges(taken)


def _global_cma(
    ram: Ranges, reserved: Ranges, nodes: Sequence[int], cmdline: bytes, kernel: BootKernel
) -> Ranges:
    """The area of ``cma=``, which comes before the crash kernel [dma_contiguous_reserve]."""
    value = None
    for name, text in early_words(cmdline):
        if name == b"cma":
            value = text
    if not value:
        return Ranges()
    size, rest = kernel.generation.memparse(value)
    size = align_up(size, kernel.pageblock_bytes)
    if not 0 < size <= ram[-1].end:
        return Ranges()
    if rest.startswith(b"@"):
        base, _ = kernel.generation.memparse(rest[1:])
        return Ranges([(base, base + size)]) if base else Ranges()
    at = Free(ram - reserved, nodes).find_cma(size, kernel.pageblock_bytes, ram[-1].end)
    return Ranges([(at, at + size)]) if at else Ranges()


# --- from a host's facts -------------------------------------------------------------------------

KERNEL_PARTS = ("Kernel code", "Kernel rodata", "Kernel data", "Kernel bss")
MOVES = "the kernel image lies where it is now (with KASLR it may lie elsewhere after a reboot)"


def map_of_facts(facts: Facts) -> MemoryMap:
    """The memory map of a host, for its next boot.

    From the firmware's map where the kernel shows it (x86), else from /proc/iomem. Raises
    CrashlendError where neither can be read.
    """
    notes: list[str] = []
    if facts.firmware_map:
        ram = Ranges((r.start, r.end) for r in facts.firmware_map if r.type == "System RAM")
        other = Ranges((r.start, r.end) for r in facts.firmware_map if r.type != "System RAM")
        taken = Ranges()
    else:
        ram, other, taken = map_of_iomem(facts.iomem)
        notes.append("RAM is what /proc/iomem lists now, hot-added memory included")
    if not ram:
        why = facts.missing.get("/proc/iomem", "it lists no System RAM")
        raise CrashlendError(
            "no memory map of this host",
            why,
            hint="run it as root, or name the memory with --memory or --map",
        )
    kernel = kernel_image(facts.iomem)
    notes.append(MOVES if kernel else f"{mib(TYPICAL_KERNEL.size)} of kernel image at 16 MiB")
    ramdisk = ramdisk_of(bytes.fromhex(facts.boot_params))
    if ramdisk is None:
        notes.append("there is no ramdisk")
    if facts.efi:
        notes.append("UEFI's boot services hold nothing (the kernel frees them only later)")
    return MemoryMap(
        ram,
        other,
        kernel or TYPICAL_KERNEL,
        ramdisk,
        taken,
        node_starts(facts),
        arch=facts.arch or "x86_64",
        assumptions=tuple(notes),
    )


def kernel_image(iomem: Sequence[Resource]) -> Optional[Range]:
    """Where the kernel image lies, from the sections that /proc/iomem lists."""
    parts = [r for r in iomem if r.name in KERNEL_PARTS]
    return Range(min(r.start for r in parts), max(r.end for r in parts)) if parts else None


def ramdisk_of(boot_params: bytes) -> Optional[Range]:
    """Where the boot loader put the ramdisk; None where it gave none."""
    if len(boot_params) < bootparams.SIZE:
        return None
    start, size = (bootparams.read_wide(boot_params, f"ramdisk_{n}") for n in ("image", "size"))
    return Range(start, start + size) if start and size else None


def node_starts(facts: Facts) -> tuple[int, ...]:
    """The addresses at which a NUMA node begins, the first one left out."""
    first: dict[int, int] = {}
    for zone in facts.zones:
        if zone.present and zone.name != "Movable":
            at = zone.start_pfn * PAGE
            first[zone.node] = min(at, first.get(zone.node, at))
    return tuple(sorted(first.values())[1:])


def map_of_iomem(iomem: Sequence[Resource]) -> tuple[Ranges, Ranges, Ranges]:
    """RAM, what is not RAM, and what is reserved in it (arm64 and others list that below RAM)."""
    ram = Ranges((r.start, r.end) for r in iomem if r.depth == 0 and r.name == "System RAM")
    taken = Ranges((r.start, r.end) for r in iomem if r.depth > 0 and r.name == "reserved")
    return ram, Ranges(), taken


# --- from a size alone -------------------------------------------------------------------------


def map_of_size(memory_bytes: int) -> MemoryMap:
    """A typical x86 machine with so much memory; what is typical is in ``assumptions``.

    Raises CrashlendError for less than 64 MiB and for more than an x86 processor can address.
    """
    if not SMALLEST <= memory_bytes <= 1 << 52:
        raise CrashlendError(
            "memory", f"{mib(memory_bytes)} is not a machine's", hint="give 64M to 4096T"
        )
    low = min(memory_bytes, 2 * GIB)
    parts = [(0, 0xA0000), (MIB, low - 128 * 1024)]
    if memory_bytes > low:
        parts.append((4 * GIB, 4 * GIB + memory_bytes - low))
    kernel, end = TYPICAL_KERNEL, low - 128 * 1024
    if low < 256 * MIB:
        kernel = Range(kernel.start, low // 2)
    ramdisk = min(TYPICAL_RAMDISK_BYTES, low // 8)
    notes = [
        f"{mib(low)} of it lie below 4 GiB" + (", the rest above" if memory_bytes > low else ""),
        f"the kernel image takes {mib(kernel.size)} from 16 MiB up",
        f"an initramfs of {mib(ramdisk)} lies at the top of low memory",
        "one NUMA node",
    ]
    return MemoryMap(
        Ranges(parts),
        Ranges(),
        kernel,
        Range((end - ramdisk) // PAGE * PAGE, end),
        assumptions=tuple(notes),
    )


# --- which kernel ------------------------------------------------------------------------------


def kernel_of(facts: Facts, *, config_cma: Optional[bool] = None) -> tuple[BootKernel, str]:
    """The kernel of a host, and in words what of it was probed and what is by its version.

    crash_cma_ranges in sysfs (Linux 6.19) or a line about such a range in the log shows that ",cma"
    is known, whatever the version says; CmaTotal in /proc/meminfo shows CONFIG_CMA. For the rest
    there is nothing to probe. ``config_cma``: what to take CONFIG_CMA for in place of that. Raises
    UsageError for an architecture without a table.
    """
    release = facts.release
    arch = facts.arch or "x86_64"
    given, how = config_cma is not None, "/proc/meminfo" if facts.meminfo else "assumed"
    if config_cma is None:
        config_cma = not facts.meminfo or "CmaTotal" in facts.meminfo
    kernel = kernel_for(release, arch, config_cma=config_cma)
    words = [f"CONFIG_CMA is {'on' if config_cma else 'off'} ({'as asked' if given else how})"]
    if facts.cma_ranges is not None:
        if not kernel.knows_cma:
            kernel = kernel_for("6.19", arch, config_cma=config_cma)
        words.append("it knows ,cma (it tells of such ranges)")
    else:
        knows = "knows" if kernel.knows_cma else "does not know"
        words.append(f"by its version it {knows} ,cma")
    words.append(f"it reads words as Linux {kernel.generation.name} (by its version)")
    return kernel, "; ".join(words)
