# SPDX-License-Identifier: LGPL-2.1-or-later
"""kexec_file_load: lent memory by words of the command line, lockdown, Secure Boot."""

from __future__ import annotations

from crashlend.errors import EXIT_FAILED, EXIT_NOT_LOADED, EXIT_REFUSED
from crashlend.lab.spec import REFUSED, Command, Trial
from crashlend.sizes import GIB, MIB

# kexec_load is refused by the kernel itself: by IMA, which Secure Boot makes appraise, before lockdown
# is asked. Unloading must work all the same.
UNDER_LOCKDOWN = (
    Command(
        ("-c", "kexec -c -p /boot/vmlinuz-$(uname -r) --reuse-cmdline"),
        program="sh",
        exit=255,
        says="kexec_load failed: Permission denied",
    ),
    Command(("load", "--syscall", "load"), exit=EXIT_REFUSED, says="lockdown is in force"),
    Command(("load",)),
    Command(("load",)),
    Command(("status",)),
    Command(("unload",)),
    Command(("status",), exit=EXIT_NOT_LOADED),
    Command(("load",)),
)
SECURE = {"firmware": "secure", "machine": "q35", "memory_bytes": 2 * GIB, "timeout_seconds": 900.0}

FILE = (
    *(
        Trial(
            f"file-movable-{kernel}",
            "kexec_file_load lends movable memory by words; what is lent is not in the dump",
            kernel,
            {
                "memory_bytes": 2 * GIB,
                "cmdline": "crashkernel=128M",
                "lender": "movable",
                "lend_bytes": 256 * MIB,
                "syscall": "file",
            },
            syscall="file",
            quick=False,
        )
        for kernel in ("5.10", "6.1", "6.12", "6.17", "7.3")
    ),
    Trial(
        "file-combined-7.3",
        "the kernel hands its own ,cma range over, words the movable memory beside it",
        "7.3",
        {
            "memory_bytes": 4 * GIB,
            "cmdline": "crashkernel=256M,cma crashkernel=128M",
            "lender": "cma,movable",
            "lend_bytes": 512 * MIB,
            "syscall": "file",
        },
        lender="cma,movable",
        syscall="file",
        quick=False,
    ),
    Trial(
        "secure-6.1",
        "real Secure Boot, from firmware's keys to the dump: movable memory is lent all the same",
        "6.1",
        {
            **SECURE,
            "cmdline": "crashkernel=256M,cma crashkernel=160M",
            "commands": UNDER_LOCKDOWN,
        },
        syscall="file",
        quick=False,
    ),
    Trial(
        "secure-cma-7.3",
        "the same with the kernel's own ,cma range",
        "7.3",
        # what the guest leaves free lies in the range: a large one shows that the rest was in use
        {**SECURE, "memory_bytes": 4 * GIB, "cmdline": "crashkernel=1G,cma crashkernel=160M"},
        lender="cma",
        syscall="file",
        quick=False,
    ),
    Trial(
        "lockdown-refused-6.1",
        "lockdown without Secure Boot: the kernel has no keys and refuses its own signed image",
        "6.1",
        {
            "memory_bytes": 2 * GIB,
            "cmdline": "lockdown=integrity crashkernel=128M",
            "lend_bytes": 256 * MIB,
            "crash": "none",
        },
        expect=REFUSED,
        words="Secure Boot is off",
        syscall="file",
        quick=False,
    ),
    Trial(
        "too-small-file-6.1",
        "a reservation without room for init_size is refused in words before the load",
        "6.1",
        {
            "memory_bytes": 2 * GIB,
            "cmdline": "crashkernel=48M",
            "lend_bytes": 256 * MIB,
            "syscall": "file",
            "crash": "none",
        },
        expect=REFUSED,
        words="all of init_size",
        exit=EXIT_FAILED,
        syscall="file",
        quick=False,
    ),
)
