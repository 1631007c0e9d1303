# SPDX-License-Identifier: LGPL-2.1-or-later
"""EFI's runtime services reach the crash kernel as a kernel reads them, or not at all."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import struct
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from build import GIB, MIB, bz_image, efi_files, facts, payload
from crashlend.arch import x86_64, x86_64_segments
from crashlend.config import Settings
from crashlend.facts import Facts
from crashlend.formats import efi
from crashlend.jsonable import from_json, to_json
from crashlend.plan import make_plan
from crashlend.purgatory import x86_64 as purgatory

if TYPE_CHECKING:
    from pathlib import Path

    from crashlend.plan import Plan


# --- the receiving kernel's declarations, written down from its headers and the UEFI specification -


class SetupData(ctypes.LittleEndianStructure):
    """struct setup_data [arch/x86/include/uapi/asm/setup_data.h]."""

    _pack_ = 1
    _fields_ = (("next", ctypes.c_uint64), ("type", ctypes.c_uint32), ("len", ctypes.c_uint32))


class EfiSetupData(ctypes.LittleEndianStructure):
    """struct efi_setup_data [arch/x86/include/asm/efi.h]."""

    _fields_ = (
        ("fw_vendor", ctypes.c_uint64),
        ("runtime", ctypes.c_uint64),
        ("tables", ctypes.c_uint64),
        ("smbios", ctypes.c_uint64),
        ("reserved", ctypes.c_uint64 * 8),
    )


class EfiMemoryDescriptor(ctypes.LittleEndianStructure):
    """EFI_MEMORY_DESCRIPTOR [UEFI 2.10, 7.2.3]."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("phys_addr", ctypes.c_uint64),
        ("virt_addr", ctypes.c_uint64),
        ("num_pages", ctypes.c_uint64),
        ("attribute", ctypes.c_uint64),
    )


class EfiInfo(ctypes.LittleEndianStructure):
    """struct efi_info [arch/x86/include/uapi/asm/bootparam.h]."""

    _fields_ = (
        ("signature", ctypes.c_char * 4),
        ("systab", ctypes.c_uint32),
        ("memdesc_size", ctypes.c_uint32),
        ("memdesc_version", ctypes.c_uint32),
        ("memmap", ctypes.c_uint32),
        ("memmap_size", ctypes.c_uint32),
        ("systab_hi", ctypes.c_uint32),
        ("memmap_hi", ctypes.c_uint32),
    )


PAYLOAD = payload()


def uefi(**more: Any) -> Facts:
    return facts(efi=True, files={**efi_files(), **more.pop("files", {})}, **more)


HOST = uefi()


def with_map(some: Facts, regions: list[tuple[int, int, int, int, int]], **more: Any) -> Facts:
    """The same host with another map of runtime regions."""
    assert some.efi_runtime is not None
    named = tuple(efi.EfiRegion(*region) for region in regions)
    return replace(some, efi_runtime=replace(some.efi_runtime, regions=named), **more)


def built(some: Facts, plan: Plan, **image: Any) -> tuple[bytes, int, dict[str, bytes]]:
    """boot_params, where it lies, and all segments."""
    layout = plan.layout
    assert layout is not None
    assert plan.cmdline is not None
    segments = x86_64.build_segments(
        some,
        payload(**image).image,
        layout,
        kernel_file=bz_image(**image),
        initramfs=bytes(layout.segment("initramfs").stored_bytes),
        cmdline=plan.cmdline.encode(),
        lent=plan.lent,
        quiesce=plan.quiesce,
        on_mismatch=plan.on_mismatch,
    )
    return segments["boot_params"], layout.segment("boot_params").start, segments


def nodes(params: bytes, start: int) -> dict[int, bytes]:
    """The chain of setup_data, walked as parse_setup_data() does."""
    found = {}
    at = struct.unpack_from("<Q", params, 0x250)[0]
    while at:
        head = SetupData.from_buffer_copy(params, at - start)
        begin = at - start + ctypes.sizeof(SetupData)
        assert begin + head.len <= len(params)
        found[head.type] = params[begin : begin + head.len]
        at = head.next
    return found


def test_the_crash_kernel_finds_what_production_had() -> None:
    """Walked as the kernel does: the map with production's mapping, and the addresses."""
    some = uefi()
    plan = make_plan(some, Settings(lend=512 * MIB), payload())
    params, start, _ = built(some, plan)
    info = EfiInfo.from_buffer_copy(params, 0x1C0)
    assert info.signature == b"EL64"
    assert (info.systab, info.systab_hi, info.memdesc_version) == (0xBF9EC018, 0, 1)
    at = (info.memmap | info.memmap_hi << 32) - start
    size = info.memdesc_size
    assert size == ctypes.sizeof(EfiMemoryDescriptor)
    regions = [
        EfiMemoryDescriptor.from_buffer_copy(params, at + size * n)
        for n in range(info.memmap_size // size)
    ]
    assert [(r.type, r.phys_addr, r.virt_addr, r.num_pages, r.attribute) for r in regions] == [
        (5, 0xBF8EC000, 0xFFFFFFFEFFEEC000, 0x30, 0x800000000000000F),
        (6, 0xBF91C000, 0xFFFFFFFEFFE1C000, 0xD0, 0x800000000000000F),
        (11, 0xFFC00000, 0xFFFFFFFEFFA00000, 0x400, 0x8000000000000001),
    ]
    (kind,) = [k for k in nodes(params, start) if k == 4]
    data = nodes(params, start)[kind]
    setup = EfiSetupData.from_buffer_copy(data)
    assert len(data) == ctypes.sizeof(EfiSetupData)
    assert (setup.fw_vendor, setup.tables, setup.smbios, setup.runtime) == (
        *(0xBF9A8F98, 0xBF9A9000, 0xBF9A1000),
        0xBF9EAB98,
    )
    assert not any(setup.reserved)
    assert params[0x1EC] == 2  # Secure Boot, as production was told
    assert struct.unpack_from("<Q", params, 0x70)[0] == 0xBFB7E014  # ACPI's pointer all the same
    assert not [note for note in plan.notes if "EFI" in note]


@given(
    length=st.integers(1, 900),
    regions=st.lists(
        st.tuples(
            st.integers(0, 15),
            *(st.integers(0, (1 << 64) - 1) for _ in range(4)),
        ),
        min_size=1,
        max_size=60,
    ),
)
@settings(max_examples=50, deadline=None)
def test_planned_and_built_bytes_are_the_same(
    length: int, regions: list[tuple[int, int, int, int, int]]
) -> None:
    """However long line and map are: no part of boot_params lies in another, the record is last.

    And all of it but the record is what purgatory verifies.
    """
    some = with_map(HOST, regions, cmdline="a" * length)
    plan = make_plan(some, Settings(lend=0), PAYLOAD)
    params, start, segments = built(some, plan)
    layout = plan.layout
    assert layout is not None
    assert len(params) == layout.segment("boot_params").stored_bytes
    assert plan.cmdline is not None
    line_at = layout.cmdline_phys - start
    assert params[line_at : params.index(b"\0", line_at)] == plan.cmdline.encode()
    info = EfiInfo.from_buffer_copy(params, 0x1C0)
    at = (info.memmap | info.memmap_hi << 32) - start
    packed = params[at : at + info.memmap_size]
    assert list(struct.iter_unpack("<I4xQQQQ", packed)) == regions
    assert line_at + len(plan.cmdline.encode()) < at
    assert at + len(packed) <= layout.setup_data_phys - start
    record = nodes(params, start)[0x434C4E44]
    assert record == b" " * purgatory.RECORD_BYTES
    assert params.endswith(record)
    assert layout.record_phys == start + len(params) - len(record)
    digest = hashlib.sha256(params[: layout.record_phys - start]).digest()
    assert digest in segments["purgatory"]


def test_gcc_agrees_on_the_structures(tmp_path: Path) -> None:
    """The C compiler lays the kernel's two structures out as the packers do."""
    if not shutil.which("gcc"):
        pytest.skip("gcc is not installed")
    source = tmp_path / "efi.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdint.h>\n#include <stdio.h>\n"
        "struct desc { uint32_t type; uint64_t phys, virt, pages, attribute; };\n"
        "struct setup { uint64_t fw_vendor, runtime, tables, smbios, reserved[8]; };\n"
        'int main(void) { printf("%zu %zu %zu %zu\\n", sizeof(struct desc), '
        "offsetof(struct desc, phys), sizeof(struct setup), offsetof(struct setup, smbios)); "
        "return 0; }\n"
    )
    program = tmp_path / "efi"
    subprocess.run(["gcc", "-o", program, source], check=True)
    told = subprocess.run([program], capture_output=True, text=True, check=True).stdout.split()
    runtime = efi.EfiRuntime(1, 2, 4, (efi.EfiRegion(0, 7, 0, 0, 0),))
    assert [int(n) for n in told] == [
        efi.DESCRIPTOR.size,
        efi.pack_map(runtime).index(7),
        efi.SETUP.size,
        efi.pack_setup(runtime, 3).index(4),
    ]


# --- where it can't be had ------------------------------------------------------------------------

GONE = {path: None for path in efi_files() if "runtime-map" in path}


@pytest.mark.parametrize(
    ("files", "why"),
    [
        (GONE, "production does not use EFI's runtime services"),
        ({**GONE, "/sys/firmware/efi/fw_platform_size": None}, "a snapshot by an older crashlend"),
        ({"/sys/firmware/efi/fw_platform_size": b"32\n"}, "firmware is of 32 bits"),
        ({"/sys/firmware/efi/fw_vendor": None}, "fw_vendor"),
        ({"/sys/firmware/efi/runtime-map/1/virt_addr": b"x\n"}, "runtime-map/1/virt_addr"),
        ({"/sys/firmware/efi/runtime-map/0/type": b"0x100000000\n"}, "no type of memory"),
        ({"/sys/firmware/efi/config_table": None}, "EFI's tables are not known"),
        ({"/sys/kernel/boot_params/data": bytes(4096)}, "EFI's tables are not known"),
    ],
    ids=["noruntime", "old snapshot", "mixed", "vendor", "map", "type", "config", "signature"],
)
def test_half_of_it_is_never_handed_on(files: dict[str, bytes | None], why: str) -> None:
    """No signature, no map, no node: ACPI's pointer alone, and the plan says what is lost."""
    some = uefi(files=files)
    plan = make_plan(some, Settings(lend=0), payload())
    assert any(why in note and "no EFI variables" in note for note in plan.notes), plan.notes
    params, start, _ = built(some, plan)
    assert params[0x1C0:0x1E0] == bytes(32)
    assert params[0x1EC] == 0
    assert 4 not in nodes(params, start)
    assert struct.unpack_from("<Q", params, 0x70)[0] == 0xBFB7E014


def test_an_image_that_cannot_take_it_over_gets_none() -> None:
    """Bit 4 of xloadflags (XLF_EFI_KEXEC) says so [Documentation/arch/x86/boot.rst]."""
    some, old = uefi(), {"xloadflags": 0x2B}
    plan = make_plan(some, Settings(lend=0), payload(**old))
    assert any("this image can't take EFI" in note for note in plan.notes)
    params, start, _ = built(some, plan, **old)
    assert params[0x1C0:0x1E0] == bytes(32)
    assert 4 not in nodes(params, start)


def test_without_efi_nothing_is_said_of_it() -> None:
    """A BIOS host has no notes about it, and boot_params is as long as before."""
    plan = make_plan(facts(), Settings(lend=0), payload())
    assert not [note for note in plan.notes if "EFI" in note]
    parts = x86_64_segments.place_params(facts(), payload().image, 100, 5)
    assert parts == (4096, 4096 + 112, 4096 + 112, 4096 + 112 + 16 + purgatory.RECORD_BYTES)


def test_the_runtime_map_goes_through_json() -> None:
    some = uefi()
    assert some.efi_runtime is not None
    assert len(some.efi_runtime.regions) == 3
    assert from_json(Facts, to_json(some)) == some


def test_a_map_larger_than_a_page_is_paid_for() -> None:
    """What boot_params grows by is in the bytes that the reservation must have."""
    lent = Settings(lend=GIB, placement="lent")
    small, large = (
        make_plan(
            with_map(HOST, [(6, n << 12, n << 12, 1, 15) for n in range(count)]), lent, PAYLOAD
        )
        for count in (1, 400)
    )
    assert small.costs.required_bytes is not None
    assert large.costs.required_bytes == small.costs.required_bytes + 4 * 4096
