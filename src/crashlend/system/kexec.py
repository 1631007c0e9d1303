# SPDX-License-Identifier: LGPL-2.1-or-later
"""kexec_load(2) and kexec_file_load(2). include/uapi/linux/kexec.h; kernel/kexec.c."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from crashlend.errors import CrashlendError, RefusedError
from crashlend.formats import bootparams
from crashlend.system.file_errors import Circumstances, file_error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crashlend.arch import Segment

SYSCALLS = {"x86_64": (246, 320)}
KEXEC_ON_CRASH = 1
KEXEC_FILE_UNLOAD, KEXEC_FILE_ON_CRASH = 1, 2
KEXEC_ARCH_X86_64 = 62 << 16
MAX_SEGMENTS = 16
NO_FILE = -1
# enum efi_secureboot_mode, include/linux/efi.h
SECURE_BOOT = {2: False, 3: True}


class NoRoomError(CrashlendError):
    """ENOMEM: the kernel finds no room in the reservation for its own control pages."""


class ImpossibleError(CrashlendError):
    """EINVAL: the kernel finds the segments impossible (more than half of RAM, for one)."""


class _Segment(ctypes.Structure):
    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("bufsz", ctypes.c_size_t),
        ("mem", ctypes.c_void_p),
        ("memsz", ctypes.c_size_t),
    )


def load(entry: int, segments: Sequence[tuple[Segment, bytes]]) -> None:
    """Load a crash image; an old one is gone from the moment the kernel starts, even on failure.

    Segments are taken as planned: page-aligned, inside the reservation, apart from each other.
    """
    if len(segments) > MAX_SEGMENTS:
        raise CrashlendError("cannot load", f"{len(segments)} segments; the kernel takes 16")
    # the buffers must outlive the call: keep references to them
    buffers = [ctypes.create_string_buffer(data, len(data) or 1) for _, data in segments]
    table = (_Segment * max(1, len(segments)))()
    for row, (segment, data), buffer in zip(table, segments, buffers):
        row.buf = ctypes.cast(buffer, ctypes.c_void_p).value if data else None
        row.bufsz = len(data)
        row.mem = segment.start
        row.memsz = segment.memory_bytes
    code = _call(_number(0), entry, len(segments), table, KEXEC_ON_CRASH | KEXEC_ARCH_X86_64)
    if code:
        raise _error(code)


def unload(*, by_file: bool = False) -> None:
    """Drop the loaded crash image; nothing happens when there is none.

    Lockdown (EPERM) and IMA (EACCES) refuse kexec_load even where it is to load nothing: then
    kexec_file_load does it, which reads no file for that. ``by_file``: try that one first, as under
    lockdown. A call that is refused counts against kernel.kexec_load_limit_panic like any other:
    kexec_load_permitted() in kernel/kexec_core.c comes before all else.
    """
    by_file = by_file or bool(_lockdown())
    if by_file and not _unload_by_file():
        return
    code = _call(_number(0), 0, 0, None, KEXEC_ON_CRASH | KEXEC_ARCH_X86_64)
    if code in (errno.EPERM, errno.EACCES) and not by_file and not _unload_by_file():
        return
    if code:
        raise _error(code)


def _unload_by_file() -> int:
    flags = KEXEC_FILE_UNLOAD | KEXEC_FILE_ON_CRASH
    return _call(_number(1), NO_FILE, NO_FILE, 0, None, flags)


def load_file(kernel: int, initramfs: int, cmdline: bytes, *, sizes: str = "") -> None:
    """Have the kernel itself load the image from two file descriptors.

    ``sizes``: words on what is to be placed, for the error that says that there is no room.
    """
    words = (kernel, initramfs, len(cmdline) + 1, cmdline + b"\0", KEXEC_FILE_ON_CRASH)
    code = _call(_number(1), *words)
    if code:
        raise file_error(code, Circumstances(_lockdown(), _secure_boot(), sizes))


def crash_loaded() -> bool:
    """Whether the kernel holds a crash image now."""
    return Path("/sys/kernel/kexec_crash_loaded").read_bytes().strip() == b"1"


def _number(which: int) -> int:
    machine = os.uname().machine
    if machine not in SYSCALLS:
        raise CrashlendError("cannot load", f"crashlend does not know the architecture {machine}")
    return SYSCALLS[machine][which]


def _call(number: int, *args: object) -> int:
    """The call's errno; 0 when all is well."""
    libc = ctypes.CDLL(None, use_errno=True)
    wrapped = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    return ctypes.get_errno() if libc.syscall(ctypes.c_long(number), *wrapped) != 0 else 0


def _error(code: int) -> CrashlendError:
    """An errno of kexec_load in words (kernel/kexec.c, kexec_core.c)."""
    name = errno.errorcode.get(code, str(code))
    what = f"the kernel refused the crash image ({name})"
    if code == errno.EPERM:
        lockdown = _lockdown()
        if lockdown:
            return RefusedError(
                what,
                f"kernel lockdown ({lockdown}) forbids kexec_load of what is not signed",
                hint="only kexec_file_load of a signed kernel remains: --syscall file",
            )
        return RefusedError(
            what,
            "not permitted",
            hint="run as root; kernel.kexec_load_disabled or a load limit may be set until reboot; where "
            "securityfs is not mounted lockdown is not seen, and needs --syscall file",
        )
    if code == errno.EACCES:
        # ima_load_data(), security/integrity/ima/ima_main.c
        return RefusedError(
            what,
            "IMA can't appraise an image that is not given to the kernel as a file",
            hint="only kexec_file_load of a signed kernel remains: --syscall file",
        )
    if code == errno.ENOMEM:
        return NoRoomError(
            what,
            "no room for the kernel's control pages in the reservation",
            hint="reserve a little more memory",
        )
    if code == errno.EINVAL:
        return ImpossibleError(
            what, "it finds the segments impossible", hint="please report this as a bug"
        )
    why, hint = {
        errno.EADDRNOTAVAIL: (
            "a segment lies outside the reservation",
            "the reservation changed since it was read; try again",
        ),
        errno.EBUSY: ("another kexec is under way", "try again"),
        errno.ENOSYS: (
            "this kernel has no such system call",
            "a kernel with CONFIG_KEXEC is needed",
        ),
    }.get(code, (os.strerror(code), ""))
    return CrashlendError(what, why, hint=hint)


def _lockdown() -> str:
    try:
        text = Path("/sys/kernel/security/lockdown").read_text()
    except OSError:
        return ""
    for level in ("integrity", "confidentiality"):
        if f"[{level}]" in text:
            return level
    return ""


def _secure_boot() -> Optional[bool]:
    """Whether the kernel was started under Secure Boot; None where it does not say."""
    if not Path("/sys/firmware/efi").exists():
        return False
    try:
        page = Path("/sys/kernel/boot_params/data").read_bytes()
    except OSError:
        return None
    if len(page) < bootparams.SIZE:
        return None
    return SECURE_BOOT.get(bootparams.FIELDS.read(page, "secure_boot"))
