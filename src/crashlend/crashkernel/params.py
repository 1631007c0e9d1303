# SPDX-License-Identifier: LGPL-2.1-or-later
"""Other words of the command line that decide where ``crashkernel=`` ends up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crashlend.crashkernel.grammar import strtoull
from crashlend.formats.cmdline import split

if TYPE_CHECKING:
    from collections.abc import Iterator

# [include/linux/swiotlb.h]
SWIOTLB_DEFAULT_BYTES = 64 << 20
IO_TLB_BYTES = 2048
IO_TLB_SEGSIZE = 128
_U64 = (1 << 64) - 1


def early_words(cmdline: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and value of each word that parse_early_param() sees, quotes taken off.

    [kernel/params.c:parse_args, lib/cmdline.c:next_arg]
    """
    for word in split(cmdline):
        name, _, value = word.partition(b"=")
        name = name[1:] if name.startswith(b'"') else name
        if name == b"--" and not value:
            return
        if value.startswith(b'"'):
            value = value[1:]
        yield name.replace(b"-", b"_"), value[:-1] if word.endswith(b'"') else value


def swiotlb_bytes(cmdline: bytes) -> int:
    """swiotlb_size_or_default(): what ``swiotlb=`` asks for in slabs of 2 KiB, else 64 MiB.

    Guests with encrypted memory make it larger by themselves; that is not modelled.
    [kernel/dma/swiotlb.c:setup_io_tlb_npages]
    """
    slabs = 0
    if b"swiotlb" not in cmdline:
        return SWIOTLB_DEFAULT_BYTES
    for name, value in early_words(cmdline):
        if name == b"swiotlb" and value[:1].isdigit():
            slabs = strtoull(value, saturate=False)[0]
    slabs = (slabs + IO_TLB_SEGSIZE - 1) // IO_TLB_SEGSIZE * IO_TLB_SEGSIZE
    return slabs * IO_TLB_BYTES & _U64 or SWIOTLB_DEFAULT_BYTES
