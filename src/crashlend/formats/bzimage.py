# SPDX-License-Identifier: LGPL-2.1-or-later
"""The x86 kernel image: Documentation/arch/x86/boot.rst, boot protocol 2.12 and later."""

from __future__ import annotations

from dataclasses import dataclass

from crashlend.errors import FormatError
from crashlend.formats.layout import Layout

SETUP_HEADER_OFFSET = 0x1F1
SECTOR = 512
MIN_PROTOCOL = 0x020C

XLF_KERNEL_64 = 1 << 0
XLF_CAN_BE_LOADED_ABOVE_4G = 1 << 1
XLF_EFI_KEXEC = 1 << 4
XLF_5LEVEL = 1 << 5

# offsets are those in the file, which are also those in struct boot_params
HEADER = Layout(
    "kernel image",
    {
        "setup_sects": (0x1F1, "B"),
        "syssize": (0x1F4, "I"),
        "boot_flag": (0x1FE, "H"),
        "header_length": (0x201, "B"),
        "magic": (0x202, "I"),
        "version": (0x206, "H"),
        "kernel_version": (0x20E, "H"),
        "type_of_loader": (0x210, "B"),
        "loadflags": (0x211, "B"),
        "ramdisk_image": (0x218, "I"),
        "ramdisk_size": (0x21C, "I"),
        "cmd_line_ptr": (0x228, "I"),
        "kernel_alignment": (0x230, "I"),
        "relocatable_kernel": (0x234, "B"),
        "xloadflags": (0x236, "H"),
        "cmdline_size": (0x238, "I"),
        "setup_data": (0x250, "Q"),
        "pref_address": (0x258, "Q"),
        "init_size": (0x260, "I"),
    },
)
BOOT_FLAG = 0xAA55
MAGIC = int.from_bytes(b"HdrS", "little")
ENTRY_64_OFFSET = 0x200


@dataclass(frozen=True)
class BzImage:
    """What a loader must know of a bzImage. Offsets are in the file, sizes in bytes.

    The protected-mode kernel, which is all that gets loaded, is
    ``file[kernel_offset:kernel_offset + kernel_bytes]``; it runs in ``init_size`` bytes from
    its load address, which must be a multiple of ``alignment``.
    """

    release: str
    protocol: int
    setup_header: bytes
    kernel_offset: int
    kernel_bytes: int
    init_size: int
    alignment: int
    pref_address: int
    cmdline_limit: int
    above_4g: bool
    five_level: bool

    @property
    def efi_kexec(self) -> bool:
        """Whether it can take EFI's runtime services over from another kernel."""
        flags = HEADER.read(self.setup_header, "xloadflags", -SETUP_HEADER_OFFSET)
        return bool(flags & XLF_EFI_KEXEC)

    @classmethod
    def parse(cls, data: bytes) -> BzImage:
        """Read a whole image; FormatError says what is wrong and where."""
        what = HEADER.what
        if HEADER.read(data, "boot_flag") != BOOT_FLAG or HEADER.read(data, "magic") != MAGIC:
            raise FormatError(
                what,
                "no x86 boot header (HdrS)",
                offset=0x1FE,
                hint="crashlend loads bzImage files, such as /boot/vmlinuz-RELEASE",
            )
        protocol = HEADER.read(data, "version")
        if protocol < MIN_PROTOCOL:
            raise FormatError(
                what,
                f"boot protocol {protocol >> 8}.{protocol & 255:02d}; 2.12 (Linux 3.8) is needed",
                offset=0x206,
            )
        flags = HEADER.read(data, "xloadflags")
        if not flags & XLF_KERNEL_64:
            raise FormatError(what, "it has no 64-bit entry point", offset=0x236)
        if not HEADER.read(data, "relocatable_kernel"):
            raise FormatError(what, "it is not relocatable", offset=0x234)
        alignment = HEADER.read(data, "kernel_alignment")
        if alignment < 4096 or alignment & (alignment - 1):
            raise FormatError(what, f"impossible kernel_alignment {alignment:#x}", offset=0x230)
        kernel_offset = ((HEADER.read(data, "setup_sects") or 4) + 1) * SECTOR
        # syssize counts 16-byte paragraphs; what follows it in the file (a signature) is not code
        kernel_bytes = HEADER.read(data, "syssize") * 16
        if kernel_bytes <= ENTRY_64_OFFSET:
            raise FormatError(what, "it holds no kernel", offset=0x1F4)
        missing = kernel_offset + kernel_bytes - len(data)
        # the build pads syssize up to a paragraph; more than that is a truncated file
        if missing >= 16:
            raise FormatError(
                what,
                f"truncated: {missing} bytes are missing",
                offset=len(data),
                hint="copy the image again; compare its checksum with the package's",
            )
        kernel_bytes = min(kernel_bytes, len(data) - kernel_offset)
        init_size = HEADER.read(data, "init_size")
        if init_size < kernel_bytes:
            raise FormatError(
                what, f"init_size {init_size:#x} is less than the stored kernel", offset=0x260
            )
        end = 0x202 + HEADER.read(data, "header_length")
        return cls(
            release=_release(data),
            protocol=protocol,
            setup_header=data[SETUP_HEADER_OFFSET:end],
            kernel_offset=kernel_offset,
            kernel_bytes=kernel_bytes,
            init_size=init_size,
            alignment=alignment,
            pref_address=HEADER.read(data, "pref_address"),
            cmdline_limit=HEADER.read(data, "cmdline_size"),
            above_4g=bool(flags & XLF_CAN_BE_LOADED_ABOVE_4G),
            five_level=bool(flags & XLF_5LEVEL),
        )


def _release(data: bytes) -> str:
    """The release, first word of the version string; "" where the image has none."""
    pointer = HEADER.read(data, "kernel_version")
    if not pointer:
        return ""
    at = pointer + 0x200
    end = data.find(b"\0", at, at + 256)
    if end < 0:
        return ""
    words = data[at:end].decode("ascii", "replace").split()
    return words[0] if words else ""
