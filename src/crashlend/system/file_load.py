# SPDX-License-Identifier: LGPL-2.1-or-later
"""kexec_file_load of an image whose core header is crashlend's own (filemode.py).

Where the kernel puts the initramfs, and with it the header, it tells nobody. So the image is loaded
twice: first one of the same sizes that lends nothing, with a mark on its command line by which its
boot_params are found in the reservation; then, with the header's address in place, the real one,
which must then lie where the first one lay. Between the two a crash finds what ``kexec -p`` loads.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Callable, NamedTuple, Optional

from crashlend.errors import CrashlendError
from crashlend.filemode import at_address, without_lending
from crashlend.formats import bootparams, procfs
from crashlend.formats.bzimage import BOOT_FLAG, HEADER, MAGIC, BzImage
from crashlend.hostfiles import HostFiles, TreeFiles
from crashlend.kcore import Kcore
from crashlend.sizes import mib
from crashlend.system import kexec
from crashlend.system.physical import read_physical, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = 4096
CHUNK = 1 << 20
# params->hdr.type_of_loader = 0x0D << 4, arch/x86/kernel/kexec-bzimage64.c
LOADED = {"magic": MAGIC, "boot_flag": BOOT_FLAG, "type_of_loader": 0xD0}
MARK_BYTES = 8
# (physical address, bytes)
Places = tuple[tuple[int, bytes], ...]
Note = Callable[[Places], None]
NOT_FOUND = "cannot tell where the kernel put the image"


class StillLoadedError(CrashlendError):
    """What was loaded can't be used, and the kernel keeps it."""


class Placed(NamedTuple):
    """boot_params of a loaded image: where they lie, and what they say of the rest."""

    phys: int
    page: bytes
    cmdline_phys: int
    ramdisk_phys: int
    ramdisk_bytes: int


def load_once(kernel: bytes, initramfs: bytes, cmdline: bytes) -> None:
    """Load this. CrashlendError tells the kernel's errno in words."""
    fds = []
    try:
        # the call takes file descriptors: both files go into memory files
        for name, data in (("kernel", kernel), ("initramfs", initramfs)):
            fd = os.memfd_create(name)
            fds.append(fd)
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
        kexec.load_file(fds[0], fds[1], cmdline, sizes=_sizes(kernel, initramfs))
    finally:
        for fd in fds:
            os.close(fd)


def load_lending(
    kernel: bytes,
    initramfs: bytes,
    cmdline: bytes,
    core_header_at: int,
    lending_at: int,
    files: Optional[HostFiles] = None,
    note: Note = lambda _places: None,
) -> Places:
    """Load an image that lends memory by words; return what lies where.

    ``note`` is called between the two loads, when the old image is gone, with what will lie where
    after the second one, as far as that is known.

    ``core_header_at`` and ``lending_at`` are offsets in the initramfs, as of CrashImage. After an
    error no image is loaded, unless the kernel refused already the first one (then the old one is
    there) or refuses to unload: StillLoadedError, and what is loaded must not be used.
    """
    files = files or TreeFiles(Path("/"))
    mark = os.urandom(MARK_BYTES).hex()
    plain = initramfs[:lending_at] + bytes(len(initramfs) - lending_at)
    load_once(kernel, plain, without_lending(cmdline, mark))
    try:
        placed = _find(files, mark.encode(), len(initramfs))
        core_header = (placed.ramdisk_phys + core_header_at, initramfs[core_header_at:])
        line = at_address(cmdline, core_header[0])
        note((core_header,))
        load_once(kernel, initramfs, line)
        return _verified(files, placed, line, core_header)
    except (CrashlendError, OSError) as error:
        if isinstance(error, OSError):
            error = CrashlendError(NOT_FOUND, f"/proc/kcore: {error.strerror or error}")
        # it is not the one that the record will name
        try:
            kexec.unload(by_file=True)
        except CrashlendError as second:
            raise StillLoadedError(
                "a crash kernel that must not be used is loaded",
                f"{error}; and then it could not be unloaded: {second}",
                hint=second.hint,
            ) from error
        raise error


def _find(files: HostFiles, mark: bytes, ramdisk_bytes: int) -> Placed:
    """The boot_params whose command line has the mark. The kernel puts them near the top."""
    core = Kcore(files)
    for start, end in _reservations(files):
        for at in range(end - PAGE, start - 1, -CHUNK):
            begin = max(start, at + PAGE - CHUNK)
            data = shown(core, begin, at + PAGE - begin)
            for placed in _candidates(begin, data):
                line = shown(core, placed.cmdline_phys, _line_bytes(placed))
                if mark in line.split(b"\0", 1)[0] and placed.ramdisk_bytes == ramdisk_bytes:
                    return placed
    raise CrashlendError(
        NOT_FOUND,
        "its boot_params are nowhere in the reservation, as /proc/kcore shows it",
        hint="use --lender cma where the kernel made ,cma ranges, or --lend 0; please report this "
        "host's `crashlend snapshot`",
    )


def _line_bytes(placed: Placed) -> int:
    """How much of memory to read for a command line: to the end of its page but one."""
    return 2 * PAGE - placed.cmdline_phys % PAGE


def _reservations(files: HostFiles) -> list[tuple[int, int]]:
    """Crash kernel ranges, the highest first: that is the main one, where all segments lie."""
    resources = procfs.parse_iomem(files.read("/proc/iomem"))
    found = [(r.start, r.end) for r in resources if r.name == "Crash kernel"]
    return sorted(found, reverse=True)


def _candidates(start: int, data: bytes) -> Iterator[Placed]:
    """All pages of ``data``, which lies at ``start``, that look like boot_params of this call."""
    for at in range(0, len(data) - PAGE + 1, PAGE):
        page = data[at : at + PAGE]
        if all(HEADER.read(page, name) == value for name, value in LOADED.items()):
            yield _placed(start + at, page)


def _placed(phys: int, page: bytes) -> Placed:
    names = ("cmd_line_ptr", "ramdisk_image", "ramdisk_size")
    return Placed(phys, page, *(bootparams.read_wide(page, name) for name in names))


def _verified(
    files: HostFiles, first: Placed, line: bytes, core_header: tuple[int, bytes]
) -> Places:
    """What lies in memory now, if that is what it must be; CrashlendError if not."""
    page = read_physical(files, first.phys, PAGE)
    now = _placed(first.phys, page) if len(page) == PAGE else first._replace(page=b"")
    text = read_physical(files, now.cmdline_phys, _line_bytes(now)).split(b"\0", 1)[0]
    at, data = core_header
    same = now._replace(page=b"") == first._replace(page=b"")
    if not same or not text.endswith(b" " + line) or read_physical(files, at, len(data)) != data:
        raise CrashlendError(
            "the crash kernel would not find its core header",
            "the kernel put the image elsewhere than the one of the same sizes before it",
            hint="try again; use --lend 0 if that does not help",
        )
    return ((now.phys, page), (now.cmdline_phys, text), core_header)


def _sizes(kernel: bytes, initramfs: bytes) -> str:
    """Words on what needs room and how much there is."""
    try:
        reserved = int(Path("/sys/kernel/kexec_crash_size").read_text())
    except (OSError, ValueError):
        return ""
    needs = mib(BzImage.parse(kernel).init_size)
    return (
        f"it needs {needs} in one piece (init_size of this image), the initramfs {mib(len(initramfs))}, "
        f"and {mib(reserved)} are reserved in all"
    )
