# SPDX-License-Identifier: LGPL-2.1-or-later
"""The generations of kernels, as tables: how each reads ``crashkernel=`` and where it looks.

    … 5.19        RAM is not rounded for ranges; else as 6.0
    6.0 … 6.6     x86 and arm64 have reservation code of their own; ",cma" is unknown
    6.7 … 6.16    kernel/crash_reserve.c for x86, arm64, riscv, loongarch; ",cma" is unknown
    6.17 … 7.1    ",cma" on x86; on powerpc from 6.19
    7.2 …         memparse() saturates; ",cma" on arm64 and riscv from 7.3

A row stands for the versions from its own up to the next; it tells what was read in the sources
named beside it (5.10, 6.1, 6.12, 6.17, 7.2, 7.3). Distributions backport, so where a feature can be
probed that counts, and the version only for the rest (``early.kernel_of``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Optional

from crashlend.crashkernel.grammar import (
    CMA,
    HIGH,
    LINUX_6_17,
    LOW,
    Generation,
    memparse,
    memparse_saturating,
)
from crashlend.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

_M, _G, _T = 1 << 20, 1 << 30, 1 << 40

# [kernel/crash_core.c 5.10]
LINUX_5_10 = Generation(
    "5.10",
    (HIGH, LOW),
    memparse,
    rounds_total=False,
    below_ram=False,
    no_size="Memory value expected",
    no_offset="Memory value expected after '@'",
)
# [kernel/crash_core.c 6.1]
LINUX_6_1 = replace(LINUX_5_10, name="6.1", rounds_total=True)
# [kernel/crash_reserve.c 6.12; the spelling is the kernel's]
LINUX_6_12 = Generation(
    "6.12", (HIGH, LOW), memparse, no_offset="crahskernel: Memory value expected after '@'"
)
# [lib/cmdline.c 7.2]
LINUX_7_2 = replace(LINUX_6_17, name="7.2", memparse=memparse_saturating)


class Placing(NamedTuple):
    """Where an architecture looks for the main part and the low one.

    ``style`` names the code: "generic" (6.7 and later), "x86" or "arm64" (before). ``align`` is
    CRASH_ALIGN, ``fixed_align`` that of a part with "@". ``low_max`` and ``high_max`` bound the
    searches (None: the end of RAM); ``lowest`` is where the search for the main part begins.
    ``low_default`` is DEFAULT_CRASH_KERNEL_LOW_SIZE, at least the bounce buffers and ``low_slack``
    where that is not 0.
    """

    style: str
    align: int
    fixed_align: int
    low_max: int
    high_max: Optional[int]
    low_default: int
    lowest: int = 0
    low_slack: int = 0


# [arch/x86/kernel/setup.c 5.10, 6.1]
X86_OLD = Placing("x86", 16 * _M, _M, 4 * _G, 64 * _T, 256 * _M, 16 * _M, 8 * _M)
# [arch/x86/include/asm/crash_reserve.h 6.12 to 7.3]
X86 = Placing("generic", 16 * _M, 16 * _M, 4 * _G, 64 * _T, 256 * _M, 0, 8 * _M)
# [arch/arm64/mm/init.c 6.1; physical addresses of 48 bits, DMA zone of 32]
ARM64_OLD = Placing("arm64", 2 * _M, 2 * _M, 4 * _G, 256 * _T, 0)
# [arch/arm64/include/asm/crash_reserve.h 6.12 to 7.3]
ARM64 = Placing("generic", 2 * _M, 2 * _M, 4 * _G, 256 * _T, 128 * _M)
# [arch/riscv, arch/loongarch include/asm/crash_reserve.h 6.12 to 7.3]
END_OF_RAM = Placing("generic", 2 * _M, 2 * _M, 4 * _G, None, 128 * _M)


class Row(NamedTuple):
    """One generation on one architecture; ``placing`` None: the addresses are not modelled."""

    since: tuple[int, int]
    generation: Generation
    placing: Optional[Placing]


def _unread(generation: Generation) -> Generation:
    """The suffix is in the table, but the architecture passes nowhere to put the size."""
    return replace(generation, reads_cma=False)


def _plain_only(generation: Generation) -> Generation:
    return replace(generation, high_after="never")


ROWS: dict[str, tuple[Row, ...]] = {
    "x86_64": (
        Row((0, 0), replace(LINUX_5_10, high_after="failure", low_late=True), X86_OLD),
        Row((6, 0), replace(LINUX_6_1, high_after="failure", low_late=True), X86_OLD),
        Row((6, 7), LINUX_6_12, X86),
        Row((6, 17), LINUX_6_17, X86),
        Row((7, 2), LINUX_7_2, X86),
    ),
    "aarch64": (
        Row((0, 0), _plain_only(LINUX_5_10), None),
        Row((6, 0), LINUX_6_1, ARM64_OLD),
        Row((6, 7), LINUX_6_12, ARM64),
        Row((6, 17), _unread(LINUX_6_17), ARM64),
        Row((7, 2), _unread(LINUX_7_2), ARM64),
        Row((7, 3), replace(LINUX_7_2, name="7.3"), ARM64),
    ),
    "riscv64": (
        Row((0, 0), _plain_only(LINUX_5_10), None),
        Row((6, 0), _plain_only(LINUX_6_1), None),
        Row((6, 7), LINUX_6_12, END_OF_RAM),
        Row((6, 17), _unread(LINUX_6_17), END_OF_RAM),
        Row((7, 2), _unread(LINUX_7_2), END_OF_RAM),
        Row((7, 3), replace(LINUX_7_2, name="7.3"), END_OF_RAM),
    ),
    "loongarch64": (
        Row((6, 0), _plain_only(LINUX_6_1), None),
        Row((6, 7), LINUX_6_12, END_OF_RAM),
        Row((6, 17), _unread(LINUX_6_17), END_OF_RAM),
        Row((7, 2), _unread(LINUX_7_2), END_OF_RAM),
    ),
    # The base is forced by arch/powerpc/kexec/core.c:get_crash_base, which needs the device tree.
    "ppc64le": (
        Row((0, 0), _plain_only(LINUX_5_10), None),
        Row((6, 0), _plain_only(LINUX_6_1), None),
        Row((6, 7), _plain_only(LINUX_6_12), None),
        Row((6, 17), _plain_only(_unread(LINUX_6_17)), None),
        Row((6, 19), _plain_only(replace(LINUX_6_17, name="6.19")), None),
        Row((7, 2), _plain_only(LINUX_7_2), None),
    ),
    # [arch/s390/kernel/setup.c: code of its own, no high, no low, no cma]
    "s390x": (
        Row((0, 0), _plain_only(LINUX_5_10), None),
        Row((6, 0), _plain_only(LINUX_6_1), None),
        Row((6, 7), _plain_only(LINUX_6_12), None),
        Row((6, 17), _plain_only(_unread(LINUX_6_17)), None),
        Row((7, 2), _plain_only(_unread(LINUX_7_2)), None),
    ),
}
# COMMAND_LINE_SIZE where it is not 2048 [arch/*/include/uapi/asm/setup.h 7.3; s390: its default]
LINE_BYTES = {"loongarch64": 4096, "s390x": 4096}
# the first and the last kernel whose sources the rows come from
OLDEST, NEWEST = (5, 10), (7, 3)
ALIASES = {"arm64": "aarch64", "ppc64": "ppc64le", "s390": "s390x", "riscv": "riscv64"}


@dataclass(frozen=True)
class BootKernel:
    """A kernel as far as ``boot.predict`` needs to know it.

    ``config_cma``: built with CONFIG_CMA. ``pageblock_bytes``: CMA_MIN_ALIGNMENT_BYTES.
    ``cma_slots``: how many areas CONFIG_CMA_AREAS leaves when the turn of ``,cma`` comes.
    ``line_bytes``: COMMAND_LINE_SIZE; what is longer is cut.
    """

    arch: str
    generation: Generation
    placing: Optional[Placing]
    config_cma: bool = True
    page_bytes: int = 4096
    pageblock_bytes: int = 2 * _M
    cma_slots: int = 20
    line_bytes: int = 2048

    @property
    def knows_cma(self) -> bool:
        """Whether the suffix ",cma" is one to this kernel."""
        return CMA in self.generation.suffixes

    @property
    def carries_cma(self) -> bool:
        """Whether it makes ranges for ",cma"."""
        return self.knows_cma and self.generation.reads_cma and self.config_cma


def kernel_for(version: str, arch: str = "x86_64", *, config_cma: bool = True) -> BootKernel:
    """The kernel of a version ("6.12", or a release that begins so) on an architecture.

    Raises UsageError for what is no version or an architecture without a table.
    """
    match = re.match(r"(\d{1,4})\.(\d{1,4})(?!\d)", version)
    if match is None:
        raise UsageError(
            "kernel version", f"{version!r} is not one", hint="write it as in 6.12 or 7.3"
        )
    arch = ALIASES.get(arch, arch)
    rows = ROWS.get(arch)
    if rows is None:
        known = ", ".join(ROWS)
        raise UsageError("architecture", f"{arch!r} is not modelled", hint=f"modelled: {known}")
    wanted = (int(match[1]), int(match[2]))
    row = rows[0]
    for candidate in rows:
        if candidate.since <= wanted:
            row = candidate
    return _kernel(arch, row, config_cma=config_cma)


def beyond_sources(version: str) -> str:
    """That no kernel of this age was read, as a sentence; empty where one was, or for no version."""
    match = re.match(r"(\d{1,4})\.(\d{1,4})(?!\d)", version)
    wanted = (int(match[1]), int(match[2])) if match else OLDEST
    if OLDEST <= wanted <= NEWEST:
        return ""
    older = wanted < OLDEST
    last = ".".join(map(str, OLDEST if older else NEWEST))
    return f"no {'older' if older else 'newer'} kernel than {last} was read: taken for that one"


def _kernel(arch: str, row: Row, *, config_cma: bool = True) -> BootKernel:
    line = LINE_BYTES.get(arch, 2048)
    return BootKernel(arch, row.generation, row.placing, config_cma=config_cma, line_bytes=line)


class Span(NamedTuple):
    """The versions of one row, as text; ``first`` "" is from the beginning, ``last`` "" open."""

    first: str
    last: str
    kernel: BootKernel


def every_kernel(arch: str) -> list[Span]:
    """One kernel of each generation of an architecture, oldest first, all with CONFIG_CMA.

    Raises UsageError for an architecture without a table.
    """
    arch = kernel_for("6.1", arch).arch
    rows = ROWS[arch]
    out = []
    for row, after in zip(rows, (*rows[1:], None)):
        first = f"{row.since[0]}.{row.since[1]}" if row.since[0] else ""
        last = _before(after.since) if after else ""
        out.append(Span(first, last, _kernel(arch, row)))
    return out


def _before(version: tuple[int, int]) -> str:
    """The last version before this one."""
    major, minor = version
    return f"{major}.{minor - 1}" if minor else f"{major - 1}.19"


def in_words(spans: Sequence[Span]) -> str:
    """Versions for people: "up to 6.16", "6.7 to 6.16 and 7.2 or later"; spans in their order."""
    merged: list[list[str]] = []
    for span in spans:
        if merged and span.first and merged[-1][1] == _before(_version(span.first)):
            merged[-1][1] = span.last
        else:
            merged.append([span.first, span.last])
    out = []
    for first, last in merged:
        if first and last:
            out.append(f"{first} to {last}")
        elif first:
            out.append(f"{first} or later")
        else:
            out.append(f"up to {last}" if last else "of any version")
    return " and ".join(out)


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")
    return int(major), int(minor)
