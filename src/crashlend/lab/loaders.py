# SPDX-License-Identifier: LGPL-2.1-or-later
"""How kexec-tools load the very crash kernel that crashlend loads: same image, initramfs, words.

What crashlend appends to the initramfs (how long a capture may stand still, that nothing is lent)
is in a file for kexec-tools, byte for byte as ``crashlend load --lender none`` has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crashlend.capture.initramfs import load_archive
from crashlend.formats.cmdline import crash_cmdline
from crashlend.lab.spec import Command
from crashlend.load_conf import STALL_SECONDS
from crashlend.ranges import align_up

if TYPE_CHECKING:
    from crashlend.lab.spec import Spec

CRASHLEND, KEXEC_LOAD, KEXEC_FILE_LOAD = "crashlend", "kexec-c", "kexec-s"
LOADERS = (CRASHLEND, KEXEC_LOAD, KEXEC_FILE_LOAD)
INITRAMFS = "initramfs.kexec"
_SWITCHES = {KEXEC_LOAD: "-c", KEXEC_FILE_LOAD: "-s"}


def load_command(spec: Spec, loader: str, production: str) -> Command:
    """What loads the crash kernel in the guest; ``production`` is its command line.

    Both system calls add elfcorehdr= by themselves: kexec in user space, or the kernel.
    """
    if loader == CRASHLEND:
        return Command(("load",))
    words = (
        _SWITCHES[loader],
        "-p",
        f"/boot/vmlinuz-{spec.kernel.release}",
        f"--initrd=/lab/{INITRAMFS}",
        f"--command-line={crash_cmdline(production).line}",
    )
    return Command(words, program="kexec")


def unload_command(loader: str) -> Command:
    """What drops the crash kernel that :func:`load_command` loaded."""
    if loader == CRASHLEND:
        return Command(("unload",))
    return Command((_SWITCHES[loader], "-p", "-u"), program="kexec")


def kexec_initramfs(capture: bytes, dump_level: int) -> bytes:
    """The capture initramfs with what ``crashlend load --lender none`` would append (below 1 TiB)."""
    padding = bytes(align_up(len(capture), 4) - len(capture))
    return capture + padding + load_archive(load_variables(dump_level))


def load_variables(dump_level: int) -> dict[str, str]:
    """The variables of such a load; a test compares them with the plan's.

    The reservation is not known before the guest boots: zeros, which are as long.
    """
    return {
        "STALL_TIMEOUT": str(STALL_SECONDS),
        "TOTAL_TIMEOUT": str(2 * STALL_SECONDS),
        "LENDER": "none",
        "LENT_BYTES": "0",
        "LENT_RANGES": "",
        "DUMP_LEVEL": str(dump_level),
        "ALLOW_MISSING_USER_DATA": "0",
        "LENT_PARTS": "",
        "UNASKED_RANGES": "",
        "RESERVATION": f"{0:#018x}-{0:#018x}",
    }
