# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel inside a bzImage: an ELF image that QEMU starts without the kernel's decompressor.

Under emulation the decompressor takes two thirds of a boot. QEMU enters such an image where its note
says (PVH, CONFIG_PVH=y); from there on it is the same kernel at the same addresses as without KASLR.
"""

from __future__ import annotations

import hashlib
import lzma
import struct
import subprocess
from typing import TYPE_CHECKING

from crashlend.errors import CrashlendError, FormatError
from crashlend.formats.bzimage import SECTOR, BzImage
from crashlend.lab.packages import Say, cache_directory, find_tool, locked, silent, write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from crashlend.lab.kernels import Kernel

# of the protected-mode code: where what is compressed begins, and its length [boot.rst, 2.08]
PAYLOAD = 0x248
XZ, ZSTD, ELF = b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"\x7fELF"


def unpack_kernel(kernel: Kernel, say: Say = silent) -> Path:
    """The ELF image of a kernel, unpacked once into the cache.

    Raises:
        CrashlendError: it is compressed in a way that is not known here, or zstd is missing.

    """
    image = kernel.vmlinuz.read_bytes()
    key = hashlib.sha256(image).hexdigest()[:16]
    path = cache_directory() / "vmlinux" / f"{kernel.release}-{key}"
    with locked(path.parent / "lock", say):
        if not path.exists():
            write_atomically(path, unpack_payload(image))
    return path


def unpack_payload(image: bytes) -> bytes:
    """What a bzImage unpacks when it starts; FormatError where that is no ELF image."""
    BzImage.parse(image)
    offset, length = struct.unpack_from("<II", image, PAYLOAD)
    start = ((image[0x1F1] or 4) + 1) * SECTOR + offset
    packed = image[start : start + length]
    if packed.startswith(XZ):
        # what follows the stream is the unpacked size
        data = lzma.LZMADecompressor().decompress(packed)
    elif packed.startswith(ZSTD):
        zstd = find_tool("zstd", "install the package zstd")
        # -d complains of that size, which follows here, too
        done = subprocess.run([zstd, "-dcq"], input=packed[:-4], capture_output=True, check=False)
        if done.returncode:
            raise CrashlendError("cannot unpack the kernel", done.stderr.decode().strip())
        data = done.stdout
    else:
        why = f"it is packed neither with xz nor with zstd ({packed[:4].hex()})"
        raise CrashlendError("cannot unpack the kernel", why)
    if not data.startswith(ELF):
        raise FormatError("kernel image", "what it unpacks is no ELF image")
    return data
