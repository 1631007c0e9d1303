# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest under real Secure Boot: what firmware starts is signed, link by link.

OVMF with Microsoft's keys starts Debian's shim, which Microsoft signed; shim starts GRUB and the
kernel, which Debian signed; the kernel locks itself down. QEMU's ``-kernel`` would go around shim,
so all of it lies on a disk of its own, as on a host.
"""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from crashlend.errors import CrashlendError, FormatError
from crashlend.lab.fat import pack_fat
from crashlend.lab.guest import userland_suite
from crashlend.lab.packages import Say, Suite, unpack

if TYPE_CHECKING:
    from crashlend.lab.kernels import Kernel

PACKAGES = ("shim-signed", "grub-efi-amd64-signed")
SHIM = "usr/lib/shim/shimx64.efi.signed"
GRUB = "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"
# where GRUB's signed image looks for its configuration
GRUB_DIRECTORY = "EFI/debian"


def build_boot_disk(kernel: Kernel, initramfs: Path, words: str, directory: Path, say: Say) -> Path:
    """The disk that a Secure Boot guest starts from, made in ``directory``.

    CrashlendError where the kernel is not signed, or a package is missing.
    """
    image = kernel.vmlinuz.read_bytes()
    if not is_signed(image):
        raise CrashlendError(
            f"cannot boot {kernel.name} under Secure Boot",
            f"{kernel.vmlinuz.name} has no signature",
            hint="Debian signs its stock kernels: name one, such as 6.1",
        )
    debs = Suite(userland_suite(kernel), say).download(PACKAGES)
    disk = directory / "boot.fat"
    with tempfile.TemporaryDirectory(prefix="crashlend-") as scratch:
        unpacked, tree = Path(scratch, "unpacked"), Path(scratch, "tree")
        unpacked.mkdir()
        for deb in debs:
            unpack(deb, unpacked)
        for name, content in (
            ("EFI/BOOT/BOOTX64.EFI", (unpacked / SHIM).read_bytes()),
            ("EFI/BOOT/GRUBX64.EFI", (unpacked / GRUB).read_bytes()),
            (f"{GRUB_DIRECTORY}/grub.cfg", grub_configuration(words).encode()),
            ("vmlinuz", image),
            ("initrd.gz", initramfs.read_bytes()),
        ):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes(content)
        pack_fat(tree, disk)
    return disk


def grub_configuration(words: str) -> str:
    """What GRUB does: start the kernel with these words, each as it is."""
    quoted = " ".join("'" + word.replace("'", "'\\''") + "'" for word in words.split())
    return f"set timeout=0\nlinux /vmlinuz {quoted}\ninitrd /initrd.gz\nboot\n"


def is_signed(image: bytes) -> bool:
    """Whether a PE image has a certificate table (PE format, optional header, data directory 4)."""
    try:
        (pe,) = struct.unpack_from("<I", image, 0x3C)
        if image[:2] != b"MZ" or image[pe : pe + 4] != b"PE\0\0":
            return False
        (magic,) = struct.unpack_from("<H", image, pe + 24)
        at, size = struct.unpack_from("<II", image, pe + 24 + {0x20B: 112, 0x10B: 96}[magic] + 32)
    except (struct.error, KeyError) as error:
        raise FormatError("kernel image", "no PE header that can be read") from error
    return bool(0 < at < len(image) and size > 0)
