# SPDX-License-Identifier: LGPL-2.1-or-later
"""The judges on images made here: what is read, what is compared, what is let pass."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import struct
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import pytest

from crashlend.errors import FormatError
from crashlend.formats.elfcore import PT_LOAD, PT_NOTE, ProgramHeader, build_core_header
from crashlend.lab.judges.compare import Finding, compare
from crashlend.lab.judges.guests import (
    KERNEL,
    LENDING,
    PLAIN,
    TOOLS,
    Load,
    Reading,
    parse_load,
    printed_map,
)
from crashlend.lab.judges.image import BOOT_PARAMS, EfiRange, Entry, Header, Image, parse_image
from crashlend.lab.judges.verdict import JUDGES, Known, judge
from crashlend.ranges import Ranges

ROOT = Path(__file__).resolve().parent.parent
MIB = 1 << 20
RESERVATION = Ranges([(0x7000_0000, 0x7A00_0000)])
CORE_AT, TEXT = 0x79FF_F000, 0xFFFF_FFFF_8100_0000
OFFSET = 0xFFFF_8880_0000_0000
CORE = (
    ProgramHeader(PT_NOTE, 0x3000_1000, 0x170),
    ProgramHeader(PT_NOTE, 0x3000_2000, 0x1024),
    ProgramHeader(PT_LOAD, 0x2000_0000, 0x30_0000, TEXT),
    ProgramHeader(PT_LOAD, 0x10_0000, 0x6FF0_0000, OFFSET + 0x10_0000),
    ProgramHeader(PT_LOAD, 0x7A00_0000, 0x5FF_0000, OFFSET + 0x7A00_0000),
)
MAP = (
    (0x1000, 0x9E000, 1),
    (0x7000_0000, CORE_AT - 0x7000_0000, 1),
    (0xBFFE_0000, 0x2_0000, 3),
)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def page(entries: tuple[tuple[int, int, int], ...] = MAP, **fields: int) -> bytes:
    """A zero page by the offsets of the kernel's header, written out here once more."""
    out = bytearray(4096)
    at = {"ext_mem_k": (0x002, "H"), "loadflags": (0x211, "B"), "setup_data": (0x250, "Q")}
    struct.pack_into("<4s", out, 0x202, b"HdrS")
    struct.pack_into("<II", out, 0x218, 0x7800_0000, 1234)
    struct.pack_into("<I", out, 0x228, 0x79FF_E000)
    for name, value in fields.items():
        offset, code = at[name]
        struct.pack_into("<" + code, out, offset, value)
    out[0x1E8] = min(len(entries), 128)
    for number, entry in enumerate(entries[:128]):
        struct.pack_into("<QQI", out, 0x2D0 + 20 * number, *entry)
    return bytes(out)


def raw(data: bytes | None = None, **parts: Any) -> dict[str, Any]:
    """What guestfiles/reading.py prints of one image."""
    return {
        "boot_params_phys": 0x79FF_D000,
        "boot_params": b64(page() if data is None else data),
        "cmdline_phys": 0x79FF_E000,
        "cmdline": b64(b"console=ttyS0 nr_cpus=1 elfcorehdr=%#x" % CORE_AT),
        "setup_data": [],
        "ramdisk_phys": 0x7800_0000,
        "ramdisk_bytes": 1234,
        "ramdisk_sha256": "ab" * 32,
        "elfcorehdr_phys": CORE_AT,
        "elfcorehdr": b64(build_core_header(CORE)),
        **parts,
    }


IMAGE = parse_image(raw())


def differing(theirs: Image, ours: Image = IMAGE) -> list[Finding]:
    return [finding for finding in compare(theirs, ours, RESERVATION) if not finding.equal]


def with_header(number: int, **changes: Any) -> Image:
    headers = list(IMAGE.headers)
    headers[number] = headers[number]._replace(**changes)
    return replace(IMAGE, headers=tuple(headers))


def with_map(*entries: Entry) -> Image:
    return replace(IMAGE, memory_map=(*IMAGE.memory_map, *entries))


# --- reading an image


def test_an_image_is_read_as_it_was_made() -> None:
    """Map, places, command line and program headers come out as they went in."""
    assert IMAGE.memory_map == (
        Entry(0x1000, 0x9F000, "RAM"),
        Entry(0x7000_0000, CORE_AT, "RAM"),
        Entry(0xBFFE_0000, 0xC000_0000, "ACPI tables"),
    )
    assert IMAGE.fields["hdr.header"] == int.from_bytes(b"HdrS", "little")
    assert IMAGE.fields["hdr.ramdisk_size"] == 1234
    assert IMAGE.places["elfcorehdr"] == CORE_AT
    assert IMAGE.cmdline == f"console=ttyS0 nr_cpus=1 elfcorehdr={CORE_AT:#x}"
    assert IMAGE.core["e_type"] == "ET_CORE"
    assert [h.type for h in IMAGE.headers] == ["PT_NOTE"] * 2 + ["PT_LOAD"] * 3
    load = IMAGE.headers[3]
    assert (load.paddr, load.end, load.vaddr, load.offset) == (
        *(0x10_0000, 0x7000_0000, OFFSET + 0x10_0000, 0x10_0000),
    )


def test_the_maps_continuation_is_part_of_the_map() -> None:
    """What SETUP_E820_EXT holds follows the 128 entries; other nodes are kept by their digest."""
    entries = tuple((n << 20, 4096, 2) for n in range(128))
    nodes = [
        {"type": 1, "bytes": 20, "data": b64(struct.pack("<QQI", 1 << 40, 4096, 1))},
        {"type": 9, "bytes": 3, "data": b64(b"abc")},
    ]
    image = parse_image(raw(page(entries), setup_data=nodes))
    assert len(image.memory_map) == 129
    assert image.memory_map[-1] == Entry(1 << 40, (1 << 40) + 4096, "RAM")
    assert image.setup_data == ((9, 3, hashlib.sha256(b"abc").hexdigest()),)


def test_what_efi_needs_is_read() -> None:
    """SETUP_EFI by its fields, the runtime map by descriptors of whatever size the page names."""
    data = bytearray(page())
    struct.pack_into("<I", data, 0x1C8, 48)
    memmap = b"".join(
        struct.pack("<IIQQQQQ", 5 + n, 0, 0x1000 * n, 0x2000 * n, n, 0xF, 0xEE) for n in (1, 2)
    )
    node = {"type": 4, "bytes": 96, "data": b64(struct.pack("<4Q", 1, 0, 3, 4) + bytes(64))}
    image = parse_image(raw(bytes(data), setup_data=[node], efi_memmap=b64(memmap)))
    assert image.efi == {"fw_vendor": 1, "tables": 3, "smbios": 4}
    assert image.efi_map == (
        EfiRange(6, 0x1000, 0x2000, 1, 0xF),
        EfiRange(7, 0x2000, 0x4000, 2, 0xF),
    )
    assert image.setup_data == ()
    assert Image.from_json(json.loads(json.dumps(image.to_json()))) == image
    with pytest.raises(FormatError, match="descriptors of 0 bytes"):
        parse_image(raw(efi_memmap=b64(memmap)))


def test_a_page_that_is_none_is_refused() -> None:
    """Too short a page and a count of entries beyond the table are errors."""
    with pytest.raises(FormatError, match="4095 bytes"):
        parse_image(raw(page()[:4095]))
    broken = bytearray(page())
    broken[0x1E8] = 129
    with pytest.raises(FormatError, match="129 map entries"):
        parse_image(raw(bytes(broken)))


def test_a_byte_that_no_field_has_is_seen() -> None:
    """A gap of the structure is compared like everything else."""
    data = bytearray(page())
    data[0xF00:0xF02] = b"xy"
    assert parse_image(raw(bytes(data))).fields["0xf00"] == b"xy".hex()


def test_an_image_goes_through_json_unchanged() -> None:
    """What is kept is what was read."""
    load = Load(IMAGE, RESERVATION, IMAGE.memory_map)
    assert Load.from_json(json.loads(json.dumps(load.to_json()))) == load


def test_the_judges_offsets_are_the_headers(tmp_path: Path) -> None:
    """The offsetof and sizeof of gcc on <asm/bootparam.h> agree with every field of the table."""
    if not shutil.which("gcc"):
        pytest.skip("gcc is not installed")
    prints = "".join(
        f'printf("{name} %zu %zu\\n", offsetof(struct boot_params, {name}), '
        f"sizeof(((struct boot_params *)0)->{name}));\n"
        for name in BOOT_PARAMS
    )
    source = tmp_path / "offsets.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <linux/types.h>\n"
        f"#include <asm/bootparam.h>\nint main(void) {{\n{prints}return 0; }}\n"
    )
    program = tmp_path / "offsets"
    built = subprocess.run(["gcc", "-o", program, source], capture_output=True, text=True)
    if "bootparam.h" in built.stderr and "No such file" in built.stderr:
        pytest.skip("no x86 uapi headers (linux-libc-dev)")
    assert built.returncode == 0, built.stderr
    lines = subprocess.run([program], capture_output=True, text=True, check=True).stdout.split("\n")
    found = {w[0]: (int(w[1]), int(w[2])) for w in map(str.split, lines) if w}
    sizes = {
        name: (at, code if isinstance(code, int) else struct.calcsize("<" + code))
        for name, (at, code) in BOOT_PARAMS.items()
    }
    assert found == sizes


# --- comparing two


def test_the_same_image_differs_in_nothing() -> None:
    """All subjects are equal, and there are many."""
    findings = compare(IMAGE, IMAGE, RESERVATION)
    assert [f for f in findings if not f.equal] == []
    assert len(findings) > 100
    assert len({f.subject for f in findings}) == len(findings)


CHANGES: list[tuple[str, Callable[[], Image], str, str]] = [
    (
        "memory map: RAM",
        lambda: with_map(Entry(1 << 32, (1 << 32) + MIB, "RAM")),
        "also 0x100000000-0x100100000",
        "also nothing",
    ),
    (
        "memory map: reserved",
        lambda: with_map(Entry(0, 4096, "reserved")),
        "also 0x0-0x1000",
        "also nothing",
    ),
    (
        "memory map: type 12",
        lambda: with_map(Entry(0, 4096, "type 12")),
        "also 0x0-0x1000",
        "also nothing",
    ),
    (
        "memory map: other entries in the reservation",
        lambda: with_map(Entry(CORE_AT, CORE_AT + 4096, "reserved")),
        "the core header: reserved",
        "nothing",
    ),
    (
        "memory map: entries overlap",
        lambda: with_map(Entry(0x2000, 0x3000, "RAM")),
        "yes",
        "no",
    ),
    (
        "PT_LOADs that show another place",
        lambda: with_header(3, offset=0x7100_0000),
        "0x100000-0x70000000",
        "nothing",
    ),
    (
        "PT_LOADs: virtual address less physical",
        lambda: with_header(3, vaddr=OFFSET),
        f"{OFFSET - 0x10_0000:#x} {OFFSET:#x}",
        f"{OFFSET:#x}",
    ),
    (
        "PT_LOAD of the kernel's text",
        lambda: with_header(2, vaddr=TEXT + MIB),
        f"0x20000000-0x20300000 at {TEXT + MIB:#x}",
        f"0x20000000-0x20300000 at {TEXT:#x}",
    ),
    ("PT_LOAD flags", lambda: with_header(3, flags=5), "5 7", "7"),
    ("PT_LOAD align", lambda: with_header(3, align=4096), "0 4096", "0"),
    ("PT_LOAD with less in the file than in memory", lambda: with_header(3, filesz=1), "yes", "no"),
    ("PT_NOTE align", lambda: with_header(0, align=0), "0 4", "4"),
    (
        "PT_NOTEs in their order",
        lambda: with_header(0, paddr=0x4000_0000),
        "0x40000000-0x40000170, 0x30002000-0x30003024",
        "0x30001000-0x30001170, 0x30002000-0x30003024",
    ),
    (
        "core header e_machine",
        lambda: replace(IMAGE, core={**IMAGE.core, "e_machine": "EM_386"}),
        "EM_386",
        "EM_X86_64",
    ),
    (
        "boot_params hdr.loadflags",
        lambda: parse_image(raw(page(loadflags=1))),
        "0x1",
        "0x0",
    ),
    (
        "boot_params hdr.setup_data",
        lambda: parse_image(raw(page(setup_data=0x1000))),
        "0x1000",
        "nothing",
    ),
    (
        "boot_params screen_info.ext_mem_k",
        lambda: parse_image(raw(page(ext_mem_k=0xFC00))),
        "0xfc00",
        "0x0",
    ),
    (
        "initramfs",
        lambda: replace(IMAGE, ramdisk_sha256="cd" * 32),
        "1234 bytes, sha256 cdcdcdcdcdcdcdcd",
        "1234 bytes, sha256 abababababababab",
    ),
    (
        "setup_data SETUP_RNG_SEED",
        lambda: replace(IMAGE, setup_data=((9, 32, "ef" * 32),)),
        "32 bytes, sha256 efefefefefefefef",
        "nothing",
    ),
    (
        "setup_data SETUP_EFI tables",
        lambda: replace(IMAGE, efi={"tables": 0xBF00_0000}),
        "0xbf000000",
        "nothing",
    ),
    (
        "EFI memory map",
        lambda: replace(IMAGE, efi_map=(EfiRange(5, 0x1000, 0x2000, 3, 0xF),)),
        "0x1000 3 pages at 0x2000 type 5 attribute 0xf",
        "nothing",
    ),
    (
        "word acpi_rsdp",
        lambda: replace(IMAGE, cmdline=f"acpi_rsdp=0x1 {IMAGE.cmdline}"),
        "acpi_rsdp=0x1",
        "nothing",
    ),
    (
        "order of the words",
        lambda: replace(IMAGE, cmdline=f"nr_cpus=1 console=ttyS0 elfcorehdr={CORE_AT}"),
        "nr_cpus=1 console=ttyS0",
        "console=ttyS0 nr_cpus=1",
    ),
]


@pytest.mark.parametrize(
    ("subject", "change", "theirs", "ours"), CHANGES, ids=[row[0] for row in CHANGES]
)
def test_one_change_is_one_difference(
    subject: str, change: Callable[[], Image], theirs: str, ours: str
) -> None:
    """Each kind of difference has a subject of its own, and says what each side has."""
    found = differing(change())
    assert found == [Finding(subject, theirs, ours)]


def test_lost_ram_in_a_core_header_is_a_difference_of_sets() -> None:
    """A range that one dump lacks is named; so is one that is covered twice."""
    short = differing(with_header(3, memsz=0x6FE0_0000, filesz=0x6FE0_0000))
    assert short == [Finding("PT_LOADs of RAM", "also nothing", "also 0x6ff00000-0x70000000")]
    twice = replace(IMAGE, headers=(*IMAGE.headers, IMAGE.headers[4]))
    assert differing(twice) == [Finding("PT_LOADs of RAM more than needed", "1", "0")]


def test_where_in_the_reservation_a_part_lies_is_no_difference() -> None:
    """Another place of core header, command line and initramfs is equal; one outside is not."""
    moved = replace(
        IMAGE,
        memory_map=(
            IMAGE.memory_map[0],
            Entry(0x7000_1000, 0x7A00_0000, "RAM"),
            IMAGE.memory_map[2],
        ),
        places={**IMAGE.places, "elfcorehdr": 0x7000_0000},
        fields={**IMAGE.fields, "hdr.cmd_line_ptr": 0x7000_5000, "hdr.ramdisk_image": 0x7200_0000},
        cmdline="elfcorehdr=1835008K console=ttyS0 nr_cpus=1",
    )
    assert differing(moved) == []
    outside = replace(IMAGE, fields={**IMAGE.fields, "hdr.cmd_line_ptr": 0x5000})
    subject = "boot_params hdr.cmd_line_ptr"
    assert differing(outside) == [Finding(subject, "0x5000", "in the reservation")]
    beyond = replace(IMAGE, cmdline="console=ttyS0 nr_cpus=1 elfcorehdr=0x5000")
    assert [f.subject for f in differing(beyond)] == ["word elfcorehdr"]


def test_a_hole_in_the_reservation_is_told_by_what_lies_there() -> None:
    """The core header, a copy that the core header shows, or nothing that is known."""
    hole = replace(
        IMAGE,
        memory_map=(
            *IMAGE.memory_map[::2],
            Entry(0x7000_0000, 0x7100_0000, "RAM"),
            Entry(0x7100_1000, CORE_AT, "RAM"),
        ),
    )
    assert differing(hole) == [
        Finding(
            "memory map: not RAM in the reservation",
            "4096 bytes of nothing known, the core header",
            "the core header",
        )
    ]
    copied = replace(
        hole,
        headers=(*IMAGE.headers, Header("PT_LOAD", 7, 0x7100_0000, OFFSET, 0, 4096, 4096, 0)),
    )
    assert {f.subject: f.theirs for f in differing(copied)} == {
        "memory map: not RAM in the reservation": "a copy of 0x0-0x1000, the core header",
        "PT_LOADs of RAM": "also 0x0-0x1000",
        "PT_LOADs that show another place": "0x0-0x1000",
    }


# --- the table of known differences


def reading(**loads: Image) -> Reading:
    """A guest in which every load left the same, but those that are given."""
    names = {"kernel": KERNEL, "tools": TOOLS, "lending": LENDING, "plain": PLAIN}
    made = {name: Load(IMAGE, RESERVATION) for name in names.values()}
    made.update({names[key]: Load(image, RESERVATION) for key, image in loads.items()})
    return Reading("guest-1", "6.1.0", "kexec-tools 2.0.25", made)


FLAGGED = parse_image(raw(page(loadflags=1)))
ROW = Known("boot_params hdr.loadflags", "0x1", "0x0", "why", "source", judges=(KERNEL,))


def test_equal_images_pass() -> None:
    """Both judges have their say, and nothing to complain of."""
    both = judge(reading(), ())
    assert [(v.judge, v.passed, v.known, v.unknown) for v in both] == [
        (name, True, (), ()) for name in JUDGES
    ]


def test_an_unknown_difference_fails() -> None:
    """It is named with both sides."""
    kernel, tools = judge(reading(kernel=FLAGGED), ())
    assert not kernel.passed
    assert list(kernel.complaints()) == ["boot_params hdr.loadflags: kernel has 0x1; crashlend 0x0"]
    assert tools.passed


def test_a_known_difference_passes_where_it_is_known() -> None:
    """The row is for this judge, this guest and these values, and for no others."""
    kernel, _ = judge(reading(kernel=FLAGGED), [ROW])
    assert kernel.passed
    assert [(f.subject, row) for f, row in kernel.known] == [(ROW.subject, ROW)]
    for other in (
        replace(ROW, judges=(TOOLS,)),
        replace(ROW, guests=("guest-2",)),
        replace(ROW, theirs="0x2"),
        replace(ROW, ours="0x2"),
    ):
        assert not judge(reading(kernel=FLAGGED), [other])[0].passed


def test_a_row_that_is_no_longer_so_fails() -> None:
    """The table cannot outlive what it excuses."""
    kernel, tools = judge(reading(), [ROW])
    assert (kernel.gone, kernel.passed) == ((ROW,), False)
    assert list(kernel.complaints()) == [f"{ROW.subject}: no longer differs as the table says"]
    assert tools.passed


def test_kexec_tools_are_compared_with_what_lends_nothing() -> None:
    """Where crashlend was loaded both ways, each judge has the load that does the same."""
    kernel, tools = judge(reading(plain=FLAGGED), ())
    assert kernel.passed
    assert [f.ours for f in tools.unknown] == ["0x1"]
    only = reading()
    del only.loads[PLAIN]
    assert all(v.passed for v in judge(only, ()))


def test_a_reading_that_the_loader_contradicts_fails() -> None:
    """The map that the loader printed must be the one that was read, in whatever order."""
    guest = reading()
    guest.loads[KERNEL] = Load(IMAGE, RESERVATION, tuple(reversed(IMAGE.memory_map)))
    assert [(v.passed, v.witnessed) for v in judge(guest, ())] == [(True, True), (True, False)]
    guest.loads[KERNEL] = Load(IMAGE, RESERVATION, IMAGE.memory_map[1:])
    verdict = judge(guest, ())[0]
    assert not verdict.passed
    assert "the map that the loader printed" in next(verdict.complaints())


def test_the_printed_map_is_found_in_either_loaders_words() -> None:
    """It is bare by kexec -d and has a prefix in the kernel's log; other ranges are not taken for it."""
    bare = [
        "0000000000000000-0000000000000fff (2)",
        "E820 memmap:",
        "0000000000001000-000000000009fbff (1)",
        "0000000000100000-00000000001fffff (12)",
        "/sys/firmware/edd does not exist.",
        "0000000000000000-0000000000000fff (2)",
    ]
    expected = (Entry(0x1000, 0x9FC00, "RAM"), Entry(0x100000, 0x200000, "type 12"))
    assert printed_map(bare) == expected
    assert printed_map([f"kexec-bzImage64: {line}" for line in bare]) == expected
    assert printed_map(bare[:1]) is None


def test_a_load_has_the_reservation_of_its_time() -> None:
    """Both parts of a reservation are taken from /proc/iomem, half-open."""
    answer = {
        "image": raw(),
        "said": "",
        "log": [],
        "iomem": "70000000-79ffffff : Crash kernel\n100000000-10fffffff : Crash kernel\n",
    }
    load = parse_load(answer)
    assert load.reservation == RESERVATION | Ranges([(1 << 32, 0x1_1000_0000)])
    assert load.printed is None
