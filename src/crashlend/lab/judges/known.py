# SPDX-License-Identifier: LGPL-2.1-or-later
"""The differences that are right, each with its reason and with the source that shows it.

A row holds in every guest and from each judge that it names, or it must go (verdict.py). Sources are
files of Linux, or of kexec-tools where that is said.
"""

from __future__ import annotations

from crashlend.lab.judges.guests import KERNEL, TOOLS
from crashlend.lab.judges.verdict import Known

BIOS = ("bios-*", "cma-7.3", "cma-ranges-*", "cma-high-*", "cma-dimm-*")
UEFI = ("uefi-*", "cma-uefi-*")
BZIMAGE = "arch/x86/kernel/kexec-bzimage64.c"
SETUP = "kexec-tools kexec/arch/i386/x86-linux-setup.c"
CRASHDUMP = "kexec-tools kexec/arch/i386/crashdump-x86.c"

BOTH = (
    Known(
        *("word swiotlb", "nothing", "swiotlb=16384"),
        "with RAM above 4 GiB the kernel takes 64 MiB below it for bounce buffers, which is all of the "
        "low part here; crashlend asks for half of that where little is left (lowmem.py)",
        "include/linux/swiotlb.h: IO_TLB_DEFAULT_SIZE; kernel/dma/swiotlb.c: swiotlb_init_remap",
        guests=("cma-high-*",),
    ),
    Known(
        *("setup_data SETUP_RNG_SEED", "32 bytes, *", "nothing"),
        "with a seed in it no load would be the same twice, and load, reload and status tell by the "
        "bytes whose image is loaded; the crash kernel seeds itself from RDRAND and from timing",
        f"{BZIMAGE}, {SETUP}: setup_rng_seed; drivers/char/random.c: random_init_early",
    ),
    Known(
        *("setup_data purgatory's record", "nothing", "1024 bytes, *"),
        "purgatory writes there what it did and why it reset; the crash kernel keeps the node and shows "
        "it to the capture",
        "arch/x86/kernel/ksysfs.c, e820.c: memblock_x86_reserve_range_setup_data",
    ),
    Known(
        *("memory map: other entries in the reservation", "nothing", "the core header: reserved"),
        "kept from use as RAM by all three; named reserved it also is no gap into which PCI may put "
        "something",
        "arch/x86/kernel/crash.c: crash_setup_memmap_entries leaves a hole",
    ),
    Known(
        *("PT_NOTE align", "0", "4"),
        "notes consist of words of 4 bytes; 0 and 4 mean the same, and /proc/vmcore makes headers of its own",
        "kernel/crash_core.c: crash_prepare_elf64_headers sets none; fs/proc/vmcore.c",
    ),
    Known(
        *("boot_params hdr.type_of_loader", "0xd0", "0xff"),
        "0xD is assigned to kexec-tools, and the kernel uses it, too; 0xFF is for loaders without a "
        "number. It is shown in /proc/sys/kernel/bootloader_type and must not be 0",
        "Documentation/arch/x86/boot.rst",
    ),
    Known(
        *("boot_params hdr.loadflags", "0x0", "0x1"),
        "the image's own flag, that its code belongs at 1 MiB or above, stays set as the protocol wants; "
        "the 64-bit entry does not look",
        f"Documentation/arch/x86/boot.rst; {BZIMAGE}: bzImage64_load clears them",
    ),
    Known(
        *("boot_params edid_info", "0x0", "128 times 0x13"),
        "production's page is taken over with its monitor; 0x13 is what the setup code leaves where there "
        "is none, and drivers know it for that",
        "arch/x86/boot/video-vesa.c: vesa_store_edid",
        guests=BIOS,
    ),
)

OF_KERNEL = (
    Known(
        *("setup_data SETUP_EFI runtime", "nothing", "0x*"),
        "read by older crash kernels alone, and the kernel loads its like; crashlend says it where "
        "production does, as kexec-tools do",
        f"{BZIMAGE}: prepare_add_efi_setup_data; {SETUP}: get_efi_values",
        judges=(KERNEL,),
        guests=UEFI,
    ),
    Known(
        *("boot_params eddbuf_entries", "0x*", "0x0"),
        "what the BIOS says of its disks, for the module edd alone; the capture finds its target by "
        "label or UUID",
        f"{BZIMAGE}: setup_boot_parameters; drivers/firmware/edd.c",
        judges=(KERNEL,),
        guests=BIOS,
    ),
    Known(
        *("boot_params eddbuf", "sha256 *", "0x0"),
        "the same disks",
        f"{BZIMAGE}: setup_boot_parameters",
        judges=(KERNEL,),
        guests=BIOS,
    ),
    Known(
        *("boot_params efi_info.efi_memdesc_size", "0x30", "0x28"),
        "the kernel copies descriptors with what firmware's have behind them; crashlend, as kexec-tools, "
        "makes them of the kernel's own fields. Size and descriptors agree on each side",
        f"{BZIMAGE}: setup_efi_state; include/linux/efi.h: for_each_efi_memory_desc_in_map",
        judges=(KERNEL,),
        guests=UEFI,
    ),
    Known(
        *("boot_params efi_info.efi_memmap_size", "0x*", "0x*"),
        "as many descriptors of another size; EFI memory map says that they are equal",
        f"{BZIMAGE}: setup_efi_info_memmap",
        judges=(KERNEL,),
        guests=UEFI,
    ),
)

OF_TOOLS = (
    Known(
        *("boot_params secure_boot", "0x0", "0x*"),
        "crashlend hands it on like the kernel's own loader; kexec-tools leave it out",
        f"{BZIMAGE}: setup_efi_state",
        judges=(TOOLS,),
        guests=UEFI,
    ),
    Known(
        *("word acpi_rsdp", "acpi_rsdp=0x*", "nothing"),
        "crashlend says it in boot_params alone, which every kernel since 5.0 reads",
        f"{CRASHDUMP}: cmdline_add_efi; arch/x86/boot/compressed/acpi.c: get_rsdp_addr",
        judges=(TOOLS,),
        guests=BIOS,
    ),
    Known(
        *("PT_LOADs of RAM", "also 0x1000-0x9?c00", "also nothing"),
        "kexec-tools' purgatory keeps a copy of the first 640 KiB. Since 5.5 a kernel with crashkernel= "
        "puts nothing of its own there, so the kernel's loader leaves them out, and so does crashlend",
        f"{CRASHDUMP}: get_backup_area; arch/x86/kernel/crash.c: elf_header_exclude_ranges; "
        "arch/x86/realmode/init.c: reserve_real_mode",
        judges=(TOOLS,),
        guests=BIOS,
    ),
    Known(
        *("PT_LOADs of RAM", "also 0x1000-0xa0000", "also nothing"),
        "the same",
        f"{CRASHDUMP}: get_backup_area",
        judges=(TOOLS,),
        guests=UEFI,
    ),
    Known(
        *("PT_LOADs that show another place", "0x1000-0x*", "nothing"),
        "that copy, in the place of what it is of",
        f"{CRASHDUMP}: load_crashdump_segments",
        judges=(TOOLS,),
    ),
    Known(
        "memory map: not RAM in the reservation",
        "the core header and a copy of 0x1000-0x*",
        "the core header",
        "that copy, kept from use",
        f"{CRASHDUMP}: load_crashdump_segments",
        judges=(TOOLS,),
    ),
    Known(
        *("boot_params hdr.boot_flag", "0x55", "0xaa55"),
        "kexec-tools clear the second byte as aux_device_info, of a time before the boot protocol; "
        "crashlend leaves the image's header as it is",
        f"{SETUP}: setup_linux_system_parameters",
        judges=(TOOLS,),
    ),
    Known(
        *("boot_params hdr.root_flags", "0xffff", "0x1"),
        "of the image's header; an initramfs mounts no root",
        f"{SETUP}: setup_linux_system_parameters",
        judges=(TOOLS,),
    ),
    Known(
        *("boot_params hdr.root_dev", "0x300", "0x0"),
        "the same: kexec-tools name /dev/hda",
        f"{SETUP}: setup_linux_system_parameters",
        judges=(TOOLS,),
    ),
    Known(
        *("boot_params screen_info.cl_magic", "0xa33f", "0x0"),
        "the command line's place in the protocol before 2.02, which no kernel reads that has a 64-bit entry",
        f"{SETUP}: setup_linux_bootloader_parameters_high; Documentation/arch/x86/boot.rst",
        judges=(TOOLS,),
    ),
    Known(
        *("boot_params screen_info.cl_offset", "0x*", "0x0"),
        "the same",
        f"{SETUP}: setup_linux_bootloader_parameters_high",
        judges=(TOOLS,),
    ),
)

KNOWN: tuple[Known, ...] = (*BOTH, *OF_KERNEL, *OF_TOOLS)
