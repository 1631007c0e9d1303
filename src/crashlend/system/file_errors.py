# SPDX-License-Identifier: LGPL-2.1-or-later
"""What kexec_file_load says, in words (kernel/kexec_file.c, arch/x86/kernel/kexec-bzimage64.c).

Its errno is the least of it: the same EPERM stands for a limit that is used up and for a signature
that lockdown does not accept.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import Optional

from crashlend.errors import CrashlendError, RefusedError, TooSmallError

SIGNED = "use the distribution's own signed image (/boot/vmlinuz-RELEASE)"
# kimage_validate_signature() and what it asks: crypto/asymmetric_keys, security/integrity
SIGNATURES = {
    errno.EKEYREJECTED: "its signature is not that of a key that the kernel trusts",
    errno.ENOKEY: "it is signed with a key that the kernel does not have",
    errno.ENODATA: "the image is not signed",
    errno.EBADMSG: "its signature does not fit its bytes: the file is damaged or was changed",
    errno.ELIBBAD: "the image is no PE file with a signature in it",
    errno.ENOPKG: "its signature is of a kind that the kernel can't check",
    errno.EACCES: "IMA's policy demands a signature that the file does not have",
}
OTHERS = {
    errno.EBUSY: ("another kexec is under way", "try again"),
    errno.ENOSYS: (
        "this kernel has no such system call",
        "a kernel with CONFIG_KEXEC_FILE is needed",
    ),
    errno.ENOEXEC: ("it does not take this image format", "give it a bzImage"),
    errno.EINVAL: (
        "it finds the image or its command line impossible",
        "a shorter command line may help; else please report this as a bug",
    ),
    errno.ENOENT: (
        "something that it was told to take along does not exist",
        "dmesg may say what (a key of dm-crypt, for one); take that out of the host's configuration",
    ),
}


@dataclass(frozen=True)
class Circumstances:
    """What the errno depends on.

    ``lockdown`` is "", integrity or confidentiality; ``secure_boot`` whether firmware says that it
    is on (None: it says nothing). ``sizes`` are words on what was to be placed and where.
    """

    lockdown: str = ""
    secure_boot: Optional[bool] = None
    sizes: str = ""


def file_error(code: int, about: Circumstances) -> CrashlendError:
    """The error for that errno."""
    what = f"the kernel refused the crash image ({errno.errorcode.get(code, code)})"
    if code == errno.EPERM:
        return _not_permitted(what, about)
    if code == errno.EADDRNOTAVAIL:
        return TooSmallError(
            what,
            "the reservation has no free piece that is large enough"
            + (f": {about.sizes}" if about.sizes else ""),
            hint="boot with a larger crashkernel=; kexec_load (--syscall load) needs less, where "
            "lockdown allows it",
        )
    if code == errno.ENOMEM:
        return CrashlendError(
            what,
            "no memory for reading the files, or no room in the reservation for the kernel's control "
            "pages" + (f": {about.sizes}" if about.sizes else ""),
            hint="reserve a little more memory",
        )
    if code in SIGNATURES:
        return RefusedError(what, SIGNATURES[code] + _state(about), hint=SIGNED)
    why, hint = OTHERS.get(code, (os.strerror(code), ""))
    return CrashlendError(what, why, hint=hint)


def _not_permitted(what: str, about: Circumstances) -> CrashlendError:
    if not about.lockdown:
        return RefusedError(
            what,
            "not permitted",
            hint="run as root; kernel.kexec_load_disabled or a load limit may be set until reboot",
        )
    if about.secure_boot is False:
        return RefusedError(
            what,
            f"kernel lockdown ({about.lockdown}) takes only images whose signature it can check, and "
            "Secure Boot is off: without it the kernel has none of the firmware's keys (its platform "
            "keyring is empty), and even the distribution's signed image is refused",
            hint="switch Secure Boot on in the firmware, or boot without lockdown=",
        )
    return RefusedError(
        what,
        f"kernel lockdown ({about.lockdown}) does not accept the image's signature"
        + _state(about)
        + "; or kernel.kexec_load_disabled or a load limit is set until reboot",
        hint=f"{SIGNED}; its key must be in the firmware's db, a MOK, or built into this kernel",
    )


def _state(about: Circumstances) -> str:
    words = [f"lockdown is {about.lockdown}"] if about.lockdown else []
    if about.secure_boot is not None:
        words.append(f"Secure Boot is {'on' if about.secure_boot else 'off'}")
    return f" ({', '.join(words)})" if words else ""
