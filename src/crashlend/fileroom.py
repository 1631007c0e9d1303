# SPDX-License-Identifier: LGPL-2.1-or-later
"""The room that kexec_file_load needs in the reservation, where the kernel places everything. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crashlend.errors import TooSmallError
from crashlend.ranges import Ranges, align_down, align_up
from crashlend.sizes import MIB, mib

if TYPE_CHECKING:
    from crashlend.formats.bzimage import BzImage
    from crashlend.ranges import Range

PAGE = 4096
# Purgatory (8 pages and more), boot_params with the command line, the core header: at least
LEAST_ABOVE_BYTES, LEAST_BELOW_BYTES = 3 * PAGE, PAGE
# and what is plenty for them: with CONFIG_CRASH_HOTPLUG the core header alone has 0.9 MiB
PLENTY_BYTES = 2 * MIB


def check_room(reservation: Range, image: BzImage, initramfs_bytes: int) -> None:
    """TooSmallError where the kernel can't place the image, which it would tell as errno 99.

    It places the core header from below; from above purgatory, boot_params, the kernel with all
    of init_size at its alignment, then the initramfs (bzImage64_load(), locate_mem_hole_top_down()).
    Of the first three only the least is known, so what passes here may still not fit.
    """
    kernel_bytes = align_up(image.init_size, PAGE)
    ramdisk_bytes = align_up(initramfs_bytes, PAGE)
    top = align_down(reservation.end, PAGE) - LEAST_ABOVE_BYTES
    start = align_down(top - kernel_bytes, image.alignment)
    above = top - start - kernel_bytes
    below = start - align_up(reservation.start, PAGE) - LEAST_BELOW_BYTES
    if below >= 0 and max(above, below) >= ramdisk_bytes:
        return
    needed = kernel_bytes + ramdisk_bytes + image.alignment + PLENTY_BYTES
    raise TooSmallError(
        "the reservation is too small for kexec_file_load",
        f"it has {mib(reservation.size)} in one piece; there the kernel keeps all of init_size free, "
        f"{mib(image.init_size)} for this image, beside the initramfs of {mib(initramfs_bytes)}",
        hint=f"boot with crashkernel={align_up(needed, MIB) // MIB}M or more"
        "; kexec_load (--syscall load) needs less, where lockdown allows it",
    )


def taken_at_start(reservation: Range, image: BzImage, initramfs_bytes: int) -> Ranges:
    """Roughly what of the reservation is taken from the crash kernel's start on."""
    size = align_up(image.init_size + initramfs_bytes + MIB, PAGE)
    return Ranges([(max(reservation.start, reservation.end - size), reservation.end)])
