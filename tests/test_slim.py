# SPDX-License-Identifier: LGPL-2.1-or-later
"""Modules without what a crash kernel can do without, judged by readelf."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest

from crashlend.capture.slim import DROPPED, slim_module

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = """
extern int printk(const char *, ...);
extern int %s(void);
static const int table[] __attribute__((section(".orc_unwind"), used)) = {1, 2, 3};
static void *const sites[] __attribute__((section("__mcount_loc"), used)) = {(void *)printk};
static const char types[] __attribute__((section(".BTF,\\"\\",@progbits#"), used)) = "types";
static int helper(void) { return %s(); }
int (*kept)(void) = helper;
int init(void) { return printk("hello") + kept(); }
"""

needs_tools = pytest.mark.skipif(
    shutil.which("gcc") is None or shutil.which("readelf") is None,
    reason="gcc or readelf is not installed",
)


def module(where: Path, imports: str = "something") -> bytes:
    """A relocatable object with tables of a module, a debug section and a signature's end."""
    source = where / "m.c"
    source.write_text(SOURCE % (imports, imports))
    command = ["gcc", "-c", "-O1", "-g", "-mcmodel=kernel", "-fno-pic", "m.c", "-o", "m.ko"]
    subprocess.run(command, cwd=where, check=True)
    return (where / "m.ko").read_bytes() + b"signature~Module signature appended~\n"


def readelf(where: Path, data: bytes, *flags: str) -> str:
    (where / "slim.ko").write_bytes(data)
    done = subprocess.run(
        ["readelf", *flags, "-W", "slim.ko"], cwd=where, capture_output=True, text=True, check=True
    )
    assert not done.stderr
    return done.stdout


def sections(text: str) -> dict[str, str]:
    """Name to type of each section that readelf lists."""
    return dict(re.findall(r"^ +\[ *\d+\] (\S+) +([A-Z0-9_]+) ", text, re.MULTILINE))


@needs_tools
def test_tables_debug_information_and_signature_are_gone(tmp_path: Path) -> None:
    """What the loader takes as optional is left out, what it reads stays, and the ELF is sound."""
    whole = module(tmp_path)
    slim = slim_module(whole)
    before, after = (sections(readelf(tmp_path, d, "-S")) for d in (whole, slim))
    assert {".orc_unwind", "__mcount_loc", ".rela__mcount_loc", ".BTF", ".debug_info"} <= {*before}
    assert not {*after} & {".orc_unwind", "__mcount_loc", ".rela__mcount_loc", ".BTF"}
    assert not [name for name in after if "debug" in name]
    assert {".text", ".rela.text", ".data", ".rela.data", ".symtab", ".strtab"} <= {*after}
    assert b"Module signature" not in slim
    assert len(slim) < len(whole)


@needs_tools
def test_relocations_say_the_same(tmp_path: Path) -> None:
    """Each relocation has its place, type, addend, and the section or name that it is about."""

    def targets(data: bytes) -> list[tuple[str, ...]]:
        out: list[tuple[str, ...]] = []
        symbols = {}
        for line in readelf(tmp_path, data, "-s").splitlines():
            words = line.split()
            if len(words) >= 7 and words[0].endswith(":") and words[0][:-1].isdigit():
                name = words[7] if len(words) > 7 and words[6] == "UND" else ""
                symbols[int(words[0][:-1])] = (words[1], words[3], words[6], name)
        section = ""
        for line in readelf(tmp_path, data, "-r").splitlines():
            words = line.split()
            if line.startswith("Relocation section"):
                section = words[2]
            elif len(words) > 3 and words[2].startswith("R_X86_64"):
                number = int(words[1], 16) >> 32
                out.append((section, words[0], words[2], words[-1], *symbols[number]))
        return [entry for entry in out if not re.search("debug|mcount", entry[0])]

    whole = module(tmp_path)
    assert targets(slim_module(whole)) == targets(whole) != []


@needs_tools
def test_types_stay_where_the_module_registers_them(tmp_path: Path) -> None:
    """A module that registers functions for BPF fails to load without its types."""
    slim = slim_module(module(tmp_path, "register_btf_kfunc_id_set"))
    assert ".BTF" in sections(readelf(tmp_path, slim, "-S"))


@needs_tools
def test_slimming_twice_is_slimming_once(tmp_path: Path) -> None:
    """Nothing is left to drop, and the layout does not depend on the file's own."""
    slim = slim_module(module(tmp_path))
    assert slim_module(slim) == slim


@pytest.mark.parametrize(
    "data", [b"", b"no module", b"\x7fELF\2\1\1" + bytes(57), b"\x7fELF\1\1\1" + bytes(90)]
)
def test_what_is_no_module_stays_as_it_is(data: bytes) -> None:
    """Other files, and modules of other machines, are not touched."""
    assert slim_module(data) == data


@needs_tools
def test_a_module_cut_anywhere_is_left_alone_or_read(tmp_path: Path) -> None:
    """No length of a damaged file raises."""
    whole = module(tmp_path)
    for size in range(0, len(whole), 97):
        slim_module(whole[:size])


@needs_tools
def test_names_of_symbols_and_sections_in_one_table_are_left_alone(tmp_path: Path) -> None:
    """As clang's assembler lays out; without some of them sections would lose their names."""
    data = bytearray(module(tmp_path))
    (at,) = struct.unpack_from("<Q", data, 0x28)
    size, count, names = struct.unpack_from("<HHH", data, 0x3A)
    headers = [at + size * index for index in range(count)]
    kinds = [struct.unpack_from("<I", data, header + 4)[0] for header in headers]
    (symbols,) = struct.unpack_from("<I", data, headers[kinds.index(2)] + 40)
    tables = [struct.unpack_from("<QQ", data, headers[index] + 24) for index in (symbols, names)]
    both = [bytes(data[offset : offset + length]) for offset, length in tables]
    for header in headers[1:]:
        (name,) = struct.unpack_from("<I", data, header)
        struct.pack_into("<I", data, header, name + len(both[0]))
    struct.pack_into("<QQ", data, headers[symbols] + 24, len(data), sum(map(len, both)))
    struct.pack_into("<H", data, 0x3E, symbols)
    data += b"".join(both)
    assert ".symtab" in sections(readelf(tmp_path, bytes(data), "-S"))
    assert slim_module(bytes(data)) == data


def test_every_dropped_section_names_who_reads_it() -> None:
    """The table is the argument for each."""
    assert all(DROPPED.values())
