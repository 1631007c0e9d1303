# SPDX-License-Identifier: LGPL-2.1-or-later
"""EFI's runtime services, as far as they can be handed on to a crash kernel."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Optional

from crashlend.errors import FormatError
from crashlend.formats.efi import EfiRegion, EfiRuntime
from crashlend.formats.procfs import parse_hex

if TYPE_CHECKING:
    from crashlend.facts.reader import Reader

EFI = "/sys/firmware/efi"
RUNTIME_MAP = f"{EFI}/runtime-map"
# the files of one region, in the order of EfiRegion
FIELDS = ("type", "phys_addr", "virt_addr", "num_pages", "attribute")
# fw_platform_size is there on every host with EFI
UNREAD = "neither it nor fw_platform_size is here, as in a snapshot by an older crashlend"
LOST = "the crash kernel has no EFI variables, no DMI data and no reset by EFI"


def efi_runtime(reader: Reader) -> Optional[EfiRuntime]:
    """What production's kernel tells of them; None without EFI, or noted why it can't be had.

    The map is there while the kernel itself uses the services: not with noefi or efi=noruntime.
    """
    if not reader.files.exists(EFI):
        return None
    bits = reader.text(f"{EFI}/fw_platform_size", optional=True)
    if bits not in ("", "64"):
        reader.missing[RUNTIME_MAP] = f"firmware is of {bits} bits: {LOST}"
        return None
    numbers = [name for name in reader.files.names(RUNTIME_MAP) if name.isdecimal()]
    if not numbers and not bits:
        reader.missing[RUNTIME_MAP] = f"{UNREAD}: {LOST}"
        return None
    if not numbers:
        reader.missing[RUNTIME_MAP] = f"production does not use EFI's runtime services: {LOST}"
        return None
    try:
        regions = tuple(_region(reader, number) for number in sorted(numbers, key=int))
        vendor = parse_hex(reader.raw(f"{EFI}/fw_vendor", optional=True), f"{EFI}/fw_vendor")
    except FormatError as error:
        reader.missing[RUNTIME_MAP] = f"{error}: {LOST}"
        return None
    smbios = re.search(r"^SMBIOS=(0x[0-9a-f]+)$", reader.text(f"{EFI}/systab", optional=True), re.M)
    runtime = reader.text(f"{EFI}/runtime", optional=True)
    return EfiRuntime(
        fw_vendor=vendor,
        runtime=int(runtime, 16) if re.fullmatch(r"0x[0-9a-f]+", runtime) else 0,
        smbios=int(smbios.group(1), 16) if smbios else 0,
        regions=regions,
    )


def _region(reader: Reader, number: str) -> EfiRegion:
    paths = [f"{RUNTIME_MAP}/{number}/{field}" for field in FIELDS]
    values = [parse_hex(reader.raw(path, optional=True), path) for path in paths]
    if values[0] >> 32:
        raise FormatError(paths[0], f"{values[0]:#x} is no type of memory")
    return EfiRegion(*values)
