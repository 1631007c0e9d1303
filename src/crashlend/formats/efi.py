# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a kernel needs to go on using EFI's runtime services that another kernel has set up.

Firmware lets its addresses be changed once: the crash kernel must map the runtime regions where
production did, and can't learn from firmware's tables where they were before
(kexec_enter_virtual_mode() in arch/x86/platform/efi/efi.c; arch/x86/kernel/kexec-bzimage64.c,
setup_efi_state(), builds the same for kexec_file_load).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

# efi_memory_desc_t [include/linux/efi.h]: type, padding, phys, virt, pages of 4 KiB, attribute
DESCRIPTOR = struct.Struct("<I4xQQQQ")
DESCRIPTOR_VERSION = 1
# struct efi_setup_data [arch/x86/include/asm/efi.h]: fw_vendor, runtime (older kernels read it, in
# newer ones it is unused), tables, smbios; eight words are reserved
SETUP = struct.Struct("<QQQQ64x")


class EfiRegion(NamedTuple):
    """One runtime region as /sys/firmware/efi/runtime-map has it; ``pages`` are of 4 KiB."""

    type: int
    phys: int
    virt: int
    pages: int
    attribute: int


@dataclass(frozen=True)
class EfiRuntime:
    """EFI's runtime services: physical addresses that firmware's own tables have lost, and the map.

    ``runtime`` and ``smbios`` are 0 where they are not known.
    """

    fw_vendor: int
    runtime: int
    smbios: int
    regions: tuple[EfiRegion, ...]

    @property
    def map_bytes(self) -> int:
        return DESCRIPTOR.size * len(self.regions)


def pack_map(runtime: EfiRuntime) -> bytes:
    """The runtime map as the crash kernel reads it, in descriptors of ``DESCRIPTOR.size``."""
    return b"".join(DESCRIPTOR.pack(*region) for region in runtime.regions)


def pack_setup(runtime: EfiRuntime, config_table: int) -> bytes:
    """The content of a SETUP_EFI node; ``config_table`` is the configuration table's address."""
    return SETUP.pack(runtime.fw_vendor, runtime.runtime, config_table, runtime.smbios)
