# SPDX-License-Identifier: LGPL-2.1-or-later
"""UEFI for a virtual machine: the distribution's OVMF, and a copy of its variables for each guest.

OVMF is two flash images that go together: code, which is never written, and variables, which are.
With ``-kernel`` it starts the kernel's EFI stub, so guests need no boot loader and no other disk.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from crashlend.errors import CrashlendError

VARIABLES = "efi-variables.fd"  # a guest's own, in its directory
OVMF_DIRECTORIES = (
    "/usr/share/OVMF",  # Debian, Ubuntu
    "/usr/share/edk2/ovmf",  # Fedora, RHEL
    "/usr/share/edk2/x64",  # Arch
    "/usr/share/qemu",  # SUSE
)
# Plain builds: those with Secure Boot need SMM and enrolled keys. The smaller layout is older and
# gone from Debian 13.
OVMF_PAIRS = (
    ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"),
    ("OVMF_CODE.4m.fd", "OVMF_VARS.4m.fd"),
    ("ovmf-x86_64-4m-code.bin", "ovmf-x86_64-4m-vars.bin"),
    ("OVMF_CODE.fd", "OVMF_VARS.fd"),
)
# With Secure Boot: variables in which Microsoft's keys are enrolled, code that guards them by SMM.
SECURE_PAIRS = (
    ("OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.ms.fd"),
    ("OVMF_CODE.secboot.fd", "OVMF_VARS.secboot.fd"),  # Fedora
)
BIOS, UEFI, SECURE = FIRMWARE = ("bios", "uefi", "secure")


def find_ovmf(
    directories: tuple[str, ...] = OVMF_DIRECTORIES, *, secure: bool = False
) -> tuple[Path, Path]:
    """OVMF's code and the variables that go with it; CrashlendError when it is not installed."""
    for directory in map(Path, directories):
        for code, variables in SECURE_PAIRS if secure else OVMF_PAIRS:
            pair = directory / code, directory / variables
            if all(path.is_file() for path in pair):
                return pair
    raise CrashlendError(
        "the lab cannot boot a UEFI guest" + (" with Secure Boot" if secure else ""),
        f"OVMF is in none of {', '.join(directories)}",
        hint="on Debian: apt install ovmf",
    )


def flash_words(directory: Path, firmware: str = UEFI) -> list[str]:
    """QEMU's words for a UEFI guest whose variables are kept in ``directory``, fresh ones.

    Without SMM a guest's kernel could write the variables that say what may be started.
    """
    code, variables = find_ovmf(secure=True) if firmware == SECURE else find_ovmf()
    own = directory / VARIABLES
    shutil.copyfile(variables, own)
    words = [
        *("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={code}"),
        *("-drive", f"if=pflash,unit=1,format=raw,file={own}"),
    ]
    if firmware == SECURE:
        words += ["-global", "driver=cfi.pflash01,property=secure,value=on"]
        words += ["-global", "ICH9-LPC.disable_s3=1"]
    return words
