# SPDX-License-Identifier: LGPL-2.1-or-later
"""bzImage, boot_params and the core header: round trips, oracles, mutations."""

from __future__ import annotations

import contextlib
import io
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from build import MIB, RELEASE, bz_image
from crashlend.errors import CrashlendError, FormatError
from crashlend.formats import bootparams, elfcore
from crashlend.formats.bootparams import (
    SETUP_CRASHLEND,
    E820Entry,
    build_boot_params,
    chain_bytes,
    parse_e820,
)
from crashlend.formats.bzimage import HEADER, BzImage
from crashlend.formats.elfcore import ProgramHeader
from crashlend.formats.layout import Layout

SMALL = bz_image(kernel=bytes(2048), init_size=1 * MIB)


def mutations(data: bytes, end: int) -> st.SearchStrategy[bytes]:
    """``data`` with a few bytes of its first ``end`` changed, and cut anywhere."""
    spots = st.lists(st.tuples(st.integers(0, end - 1), st.integers(0, 255)), max_size=6)

    def change(args: tuple[list[tuple[int, int]], int]) -> bytes:
        changed = bytearray(data)
        for at, value in args[0]:
            changed[at] = value
        return bytes(changed[: args[1]])

    lengths = st.just(len(data)) | st.integers(0, len(data))
    return st.tuples(spots, lengths).map(change)


# --- bzImage -------------------------------------------------------------------------------------


@given(
    kernel=st.binary(min_size=528, max_size=4096),
    setup_sects=st.integers(3, 60),
    alignment=st.integers(12, 30).map(lambda bits: 1 << bits),
    signature=st.binary(max_size=40),
)
def test_bzimage_fields_come_back(
    kernel: bytes, setup_sects: int, alignment: int, signature: bytes
) -> None:
    """What the writer put into an image is what the parser reads, the signature left out."""
    data = bz_image(
        kernel=kernel, setup_sects=setup_sects, alignment=alignment, signature=signature
    )
    image = BzImage.parse(data)
    stored = data[image.kernel_offset : image.kernel_offset + image.kernel_bytes]
    assert stored[: len(kernel)] == kernel
    assert len(stored) - len(kernel) < 16
    assert (image.release, image.alignment, image.init_size) == (RELEASE, alignment, 48 * MIB)
    assert image.setup_header == data[0x1F1:0x26C]
    assert (image.above_4g, image.five_level, image.cmdline_limit) == (True, True, 2047)


@pytest.mark.parametrize(
    ("corruption", "words"),
    [
        ({"magic": b"HdrX"}, "no x86 boot header"),
        ({"boot_flag": 0}, "no x86 boot header"),
        ({"protocol": 0x020B}, "boot protocol 2.11"),
        ({"xloadflags": 0}, "no 64-bit entry"),
        ({"relocatable": 0}, "not relocatable"),
        ({"alignment": 0x1001}, "impossible kernel_alignment"),
        ({"alignment": 0}, "impossible kernel_alignment"),
        ({"syssize": 0}, "holds no kernel"),
        ({"cut": 5000}, "truncated: 5000 bytes are missing"),
        ({"init_size": 4096}, "init_size 0x1000 is less"),
    ],
)
def test_a_corrupt_bzimage_is_refused_in_words(corruption: dict[str, Any], words: str) -> None:
    """Every kind of damage has its own message and an offset."""
    with pytest.raises(FormatError, match=words) as caught:
        BzImage.parse(bz_image(**corruption))
    assert caught.value.offset is not None


@pytest.mark.parametrize("foreign", [b"", b"\x7fELF" + bytes(1000), b"MZ" + bytes(600), b"x" * 600])
def test_foreign_files_are_not_kernels(foreign: bytes) -> None:
    """Empty, ELF, PE and text files are refused, each with FormatError."""
    with pytest.raises(FormatError):
        BzImage.parse(foreign)


@given(mutations(SMALL, 0x270))
@settings(max_examples=400)
def test_mutated_bzimage_is_read_or_refused(data: bytes) -> None:
    """No bytes make the parser fail in another way, and what it reads stays inside the file."""
    with contextlib.suppress(FormatError):
        image = BzImage.parse(data)
        assert 0 < image.kernel_bytes <= image.init_size
        assert image.kernel_offset + image.kernel_bytes <= len(data)


# --- boot_params ---------------------------------------------------------------------------------

addresses = st.integers(0, (1 << 52) - 1)
entries = st.builds(
    lambda start, size, kind: E820Entry(start, start + size, kind),
    addresses,
    st.integers(1, 1 << 45),
    st.sampled_from([1, 2, 3, 4, 5, 7]),
)


def zero_page(memory_map: list[E820Entry], **more: Any) -> tuple[bytes, bytes]:
    arguments: dict[str, Any] = {
        "setup_header": BzImage.parse(SMALL).setup_header,
        "memory_map": memory_map,
        "cmdline_phys": 0x1_2345_6000,
        "ramdisk_phys": 0x2_0000_1000,
        "ramdisk_bytes": 0x1_0000_0003,
        "setup_data_phys": 0xABC000,
        **more,
    }
    return build_boot_params(**arguments)


@given(st.lists(entries, max_size=300))
def test_memory_map_comes_back_from_zero_page_and_setup_data(memory_map: list[E820Entry]) -> None:
    """128 entries sit in the page, the rest in SETUP_E820_EXT; together they are the map."""
    page, blob = zero_page(memory_map)
    assert len(page) == 4096
    assert page[0x1E8] == min(128, len(memory_map))
    assert bool(blob) == (len(memory_map) > 128)
    assert struct.unpack_from("<Q", page, 0x250)[0] == (0xABC000 if blob else 0)
    if blob:
        assert struct.unpack_from("<QII", blob) == (0, 1, 20 * (len(memory_map) - 128))
    assert parse_e820(page, blob) == memory_map


@given(
    st.lists(entries, min_size=100, max_size=140),
    st.lists(st.tuples(st.integers(2, 1 << 30), st.binary(max_size=99)), max_size=3),
)
def test_setup_data_is_one_chain(
    memory_map: list[E820Entry], more: list[tuple[int, bytes]]
) -> None:
    """The zero page points at the first node, each at the next one, aligned; the last one at 0."""
    page, blob = zero_page(memory_map, more_data=more)
    assert chain_bytes(len(memory_map), [len(data) for _, data in more]) == len(blob)
    found, at = [], struct.unpack_from("<Q", page, 0x250)[0]
    while at:
        assert at % 16 == 0
        following, kind, size = struct.unpack_from("<QII", blob, at - 0xABC000)
        data = blob[at - 0xABC000 + 16 :][:size]
        assert len(data) == size
        found.append((kind, data))
        at = following
    rest = b"".join(struct.pack("<QQI", e.start, e.end - e.start, e.type) for e in memory_map[128:])
    assert found == [*([(1, rest)] if rest else []), *more]
    assert parse_e820(page, blob) == memory_map


def test_the_record_s_type_is_no_kernel_s() -> None:
    """Far above those that the kernel counts up, and not marked as indirect (bit 31)."""
    assert SETUP_CRASHLEND.to_bytes(4, "big") == b"CLND"
    assert not SETUP_CRASHLEND >> 31


def test_addresses_above_4_gib_are_split() -> None:
    """Command line and ramdisk have their upper halves in the ext_ fields."""
    page, _ = zero_page([])
    assert struct.unpack_from("<II", page, 0x218) == (0x1000, 3)
    assert struct.unpack_from("<III", page, 0xC0) == (2, 1, 1)
    assert struct.unpack_from("<I", page, 0x228) == (0x23456000,)


def test_only_the_console_state_of_production_is_taken_over() -> None:
    """screen_info and EDID come from production's page; its memory, EFI, e820 and header do not."""
    page, _ = zero_page([], production=b"\xee" * 4096, rsdp_phys=0xBFB7E014)
    # ext_mem_k would be production's memory above 1 MiB
    assert page[:0x40] == b"\xee" * 2 + bytes(2) + b"\xee" * 0x3C
    assert page[0x140:0x1C0] == b"\xee" * 0x80
    assert page[0x1C0:0x1E8] == bytes(0x28)
    assert page[0x2D0:0xD00] == bytes(0xA30)
    assert struct.unpack_from("<Q", page, 0x70) == (0xBFB7E014,)
    assert (page[0x210], page[0x211] & 1, page[0x202:0x206]) == (0xFF, 1, b"HdrS")


def test_uapi_header_agrees_on_every_offset(tmp_path: Path) -> None:
    """The offsetof of gcc on <asm/bootparam.h> gives the offset and size of each field used here."""
    if not shutil.which("gcc"):
        pytest.skip("gcc is not installed")
    # members of structs inside boot_params under other names
    renamed = {
        "magic": "header",
        **{n: f"efi_info.{n}" for n in bootparams.FIELDS.fields if n.startswith("efi_")},
        "ext_mem_k": "screen_info.ext_mem_k",
    }
    names = [n for n in HEADER.fields if n != "header_length"]  # second byte of a jump, no member
    members = {n: f"hdr.{renamed.get(n, n)}" for n in names} | {
        n: renamed.get(n, n) for n in bootparams.FIELDS.fields
    }
    prints = "".join(
        f'printf("{name} %zu %zu\\n", offsetof(struct boot_params, {member}), '
        f"sizeof(((struct boot_params *)0)->{member}));\n"
        for name, member in members.items()
    )
    source = tmp_path / "offsets.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <linux/types.h>\n"
        "#include <asm/bootparam.h>\nint main(void) {\n"
        + prints
        + 'printf("map %zu %zu\\n", offsetof(struct boot_params, e820_table), '
        "sizeof(struct boot_e820_entry));\n"
        'printf("all %zu %d\\n", sizeof(struct boot_params), E820_MAX_ENTRIES_ZEROPAGE);\n'
        'printf("ext %d %zu\\n", SETUP_E820_EXT, offsetof(struct setup_data, data));\n'
        'printf("efi %d %zu\\n", SETUP_EFI, sizeof(struct efi_info));\nreturn 0; }\n'
    )
    program = tmp_path / "offsets"
    built = subprocess.run(["gcc", "-o", program, source], capture_output=True, text=True)
    if "bootparam.h" in built.stderr:
        pytest.skip("no x86 uapi headers (linux-libc-dev)")
    assert built.returncode == 0, built.stderr
    lines = subprocess.run([program], capture_output=True, text=True, check=True).stdout.split("\n")
    found = {w[0]: (int(w[1]), int(w[2])) for w in map(str.split, lines) if w}
    for layout in (HEADER, bootparams.FIELDS):
        for name, field in layout.fields.items():
            if name in members:
                assert found[name] == (field.offset, field.size), name
    assert found["map"] == (bootparams.E820_OFFSET, bootparams.E820_ENTRY.size)
    assert found["all"] == (bootparams.SIZE, bootparams.E820_MAX)
    assert found["efi"] == (bootparams.SETUP_EFI, 32)
    assert found["ext"] == (bootparams.SETUP_E820_EXT, bootparams.SETUP_DATA.size)


def test_the_efi_system_table_is_read_only_where_firmware_is_64_bit_efi() -> None:
    """The address has two halves; another signature, a short page and zero name no table."""
    page = bytearray(4096)
    page[0x1C0:0x1C8] = b"EL64" + struct.pack("<I", 0xBF8EC018)
    struct.pack_into("<I", page, 0x1D8, 0x3)
    assert bootparams.efi_system_table(bytes(page)) == 0x3BF8EC018
    assert bootparams.efi_system_table(bytes(page[:4095])) is None
    for signature, address in ((b"EL32", 0xBF8EC018), (b"EL64", 0), (bytes(4), 1)):
        page[0x1C0:0x1C8] = signature + struct.pack("<I", address)
        struct.pack_into("<I", page, 0x1D8, 0)
        assert bootparams.efi_system_table(bytes(page)) is None


@given(mutations(zero_page([E820Entry(0, 4096, 1)])[0], 0x400), st.binary(max_size=60))
def test_mutated_zero_page_is_read_or_refused(page: bytes, setup_data: bytes) -> None:
    """No bytes make the map's parser fail in another way than FormatError."""
    with contextlib.suppress(FormatError):
        parse_e820(page, setup_data)


def test_layout_neither_reads_nor_writes_beyond() -> None:
    """A field beyond the data and a value beyond the field are FormatErrors with offset."""
    layout = Layout("thing", {"a": (2, "H")})
    with pytest.raises(FormatError, match="ends before its field a") as caught:
        layout.read(b"123", "a")
    assert caught.value.offset == 2
    with pytest.raises(FormatError, match="does not fit"):
        layout.write(bytearray(8), "a", 0x10000)


# --- ELF core header -----------------------------------------------------------------------------

u64 = st.integers(0, (1 << 64) - 1)
headers = st.builds(ProgramHeader, st.sampled_from([1, 4]), u64, u64, u64)
CORE = [
    ProgramHeader(elfcore.PT_NOTE, 0x13FC00000, 368),
    ProgramHeader(elfcore.PT_NOTE, 0x102344000, 4096),
    ProgramHeader(elfcore.PT_LOAD, 0x1000000, 0x2000000, 0xFFFFFFFF81000000),
    ProgramHeader(elfcore.PT_LOAD, 0x100000, 0x9FF00000, 0xFFFF888000100000),
]


@given(st.lists(headers, max_size=40))
def test_program_headers_come_back(items: list[ProgramHeader]) -> None:
    """Parsing what was built gives the same headers, by p_paddr as by p_offset."""
    data = elfcore.build_core_header(items)
    assert elfcore.parse_program_headers(data) == items
    assert elfcore.parse_program_headers(data, physical=False) == items
    assert elfcore.headers_end(data) == len(data)


def test_pyelftools_reads_the_core_header() -> None:
    """An independent library finds an x86-64 core file with these segments."""
    elffile = pytest.importorskip("elftools.elf.elffile")
    elf = elffile.ELFFile(io.BytesIO(elfcore.build_core_header(CORE)))
    assert elf.header["e_type"] == "ET_CORE"
    assert elf.header["e_machine"] == "EM_X86_64"
    assert elf.header["e_shnum"] == 0
    rows = [
        (
            {"PT_NOTE": 4, "PT_LOAD": 1}[s["p_type"]],
            s["p_paddr"],
            s["p_memsz"],
            s["p_vaddr"],
        )
        for s in (elf.get_segment(i) for i in range(elf.num_segments()))
    ]
    assert rows == [(h.type, h.phys, h.bytes, h.virt) for h in CORE]
    # fs/proc/vmcore.c takes p_offset for the physical address
    assert [elf.get_segment(i)["p_offset"] for i in range(4)] == [h.phys for h in CORE]


def test_readelf_reads_the_core_header(tmp_path: Path) -> None:
    """The readelf of binutils finds the same program headers and nothing to warn about in the ELF header."""
    if not shutil.which("readelf"):
        pytest.skip("readelf (binutils) is not installed")
    file = tmp_path / "core"
    file.write_bytes(elfcore.build_core_header(CORE))
    shown = subprocess.run(
        ["readelf", "-h", "-l", "-W", file], capture_output=True, text=True, env={"LC_ALL": "C"}
    )
    assert "CORE (Core file)" in shown.stdout
    rows = [line.split() for line in shown.stdout.splitlines()]
    found = [
        ({"NOTE": 4, "LOAD": 1}[r[0]], int(r[3], 16), int(r[5], 16), int(r[2], 16))
        for r in rows
        if r and r[0] in ("NOTE", "LOAD")
    ]
    assert found == [(h.type, h.phys, h.bytes, h.virt) for h in CORE]


def test_more_headers_than_e_phnum_counts_are_refused() -> None:
    """65535 means PN_XNUM, so it is one too many."""
    with pytest.raises(FormatError, match="65534 at most"):
        elfcore.build_core_header([CORE[0]] * 0xFFFF)


@given(mutations(elfcore.build_core_header(CORE), 64 + 4 * 56))
@settings(max_examples=300)
def test_mutated_core_header_is_read_or_refused(data: bytes) -> None:
    """No bytes make the parsers fail in another way than FormatError; the end is bounded."""
    with contextlib.suppress(CrashlendError):
        assert elfcore.headers_end(data) <= 1 << 24
    with contextlib.suppress(CrashlendError):
        elfcore.parse_program_headers(data)
