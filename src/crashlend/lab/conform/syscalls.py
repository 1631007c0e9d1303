# SPDX-License-Identifier: LGPL-2.1-or-later
"""A program for guests that have nothing but busybox: one kexec_load(2) as its stdin says. x86_64.

stdin: seven little-endian 64-bit numbers: entry, nr_segments, flags and the one segment (buf, bufsz,
mem, memsz: include/uapi/linux/kexec.h). It ends with the errno, 0 where the kernel took it.
"""

from __future__ import annotations

import struct

ASKED_BYTES = 56
BASE = 0x400000
CODE = bytes.fromhex(
    "4883ec48"  # sub rsp, 72
    "31c0"  # xor eax, eax: read
    "31ff"  # xor edi, edi: stdin
    "4889e6"  # mov rsi, rsp
    "ba38000000"  # mov edx, 56
    "0f05"  # syscall
    "488b3c24"  # mov rdi, [rsp]: entry
    "488b742408"  # mov rsi, [rsp + 8]: nr_segments
    "4c8b542410"  # mov r10, [rsp + 16]: flags
    "488d542418"  # lea rdx, [rsp + 24]: the segment
    "b8f6000000"  # mov eax, 246: kexec_load
    "0f05"  # syscall
    "f7d8"  # neg eax
    "89c7"  # mov edi, eax
    "b8e7000000"  # mov eax, 231: exit_group
    "0f05"  # syscall
)


def kexec_load_program() -> bytes:
    """An ELF executable (System V gABI, ch. 4 and 5) of one segment, its headers in it."""
    header, program = 64, 56
    size = header + program + len(CODE)
    ehdr = struct.pack(
        "<4sBBBBB7xHHIQQQIHHHHHH",
        *(b"\x7fELF", 2, 1, 1, 0, 0, 2, 62, 1, BASE + header + program, header, 0, 0),
        *(header, program, 1, 0, 0, 0),
    )
    phdr = struct.pack("<IIQQQQQQ", 1, 5, 0, BASE, BASE, size, size, 4096)
    return ehdr + phdr + CODE
