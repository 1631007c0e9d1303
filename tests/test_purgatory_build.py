# SPDX-License-Identifier: LGPL-2.1-or-later
"""Purgatory's bytes: built again from their source, and what the compiler says of them."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from crashlend import purgatory
from crashlend.purgatory import x86_64

HERE = Path(purgatory.__file__).parent
SOURCE = HERE / "x86_64"
BUILT_BY = (HERE / "x86_64.cc").read_text()
TOOLS = ("gcc", "ld", "make", "objcopy", "readelf")


def compiler() -> str:
    """The installed compiler in its own words, as beside the packaged bytes; skips without one."""
    for tool in TOOLS:
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
    out = subprocess.run(["gcc", "--version"], capture_output=True, text=True, check=True).stdout
    target = subprocess.run(["gcc", "-dumpmachine"], capture_output=True, text=True, check=True)
    if not target.stdout.startswith("x86_64"):
        pytest.skip("this compiler is not one for x86_64")
    return out.splitlines()[0] + "\n"


def build(out: Path) -> None:
    subprocess.run(["make", "-s", "-C", SOURCE, f"O={out}"], check=True, timeout=100)


def test_the_bytes_are_what_their_source_gives(tmp_path: Path) -> None:
    """The packaged .bin is byte for byte what the same compiler makes of the packaged source."""
    found = compiler()
    if found != BUILT_BY:
        pytest.skip(f"the bytes are {BUILT_BY.strip()}'s, here is {found.strip()}")
    build(tmp_path)
    assert (tmp_path / "x86_64.bin").read_bytes() == (HERE / "x86_64.bin").read_bytes()


def test_no_address_is_absolute(tmp_path: Path) -> None:
    """All relocations are relative to the instruction, whatever the compiler: any place will do."""
    compiler()
    build(tmp_path)
    kinds: set[str] = set()
    for unit in sorted(tmp_path.glob("*.o")):
        out = subprocess.run(
            ["readelf", "-rW", unit], capture_output=True, text=True, check=True
        ).stdout
        kinds |= set(re.findall(r"R_X86_64_\w+", out))
    assert kinds == {"R_X86_64_PC32", "R_X86_64_PLT32"}
    linked = subprocess.run(
        ["readelf", "-rW", tmp_path / "x86_64.elf"], capture_output=True, text=True, check=True
    ).stdout
    assert "There are no relocations" in linked


def test_c_and_python_agree_on_the_layout(tmp_path: Path) -> None:
    """Every field of struct handover, and the tables' rows, by offsetof and sizeof."""
    compiler()
    lines, offset = ['#include "purgatory.h"'], 0
    for name, code in x86_64.HANDOVER:
        size = struct.calcsize("<" + code)
        member = f"((struct handover *)0)->{name}"
        lines.append(
            f"_Static_assert(__builtin_offsetof(struct handover, {name}) == {offset}"
            f' && sizeof({member}) == {size}, "{name}");'
        )
        offset += size
    for struct_name, packed, fields in (
        ("handover", x86_64.PARAMETERS, {}),
        ("region", x86_64.REGION, {"start": 0, "bytes": 8, "sha256": 16, "name": 48}),
        ("range", x86_64.RANGE, {"start": 0, "end": 8}),
    ):
        lines.append(f'_Static_assert(sizeof(struct {struct_name}) == {packed.size}, "size");')
        lines += [
            f'_Static_assert(__builtin_offsetof(struct {struct_name}, {n}) == {at}, "{n}");'
            for n, at in fields.items()
        ]
    lines.append(f'_Static_assert(ON_MISMATCH_BOOT == {x86_64.ON_MISMATCH["boot"]}, "boot");')
    (tmp_path / "layout.c").write_text("\n".join(lines) + "\n")
    command = ["gcc", "-std=gnu11", f"-I{SOURCE}", "-fsyntax-only", str(tmp_path / "layout.c")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_header_is_where_the_loader_writes_it() -> None:
    """At offset 16 there is nothing but zeros, and both ends lie behind it, in their order."""
    binary = (HERE / "x86_64.bin").read_bytes()
    image_end, tables_at = x86_64.ENDS.unpack_from(binary, x86_64.ENDS_OFFSET)
    end = x86_64.HANDOVER_OFFSET + x86_64.PARAMETERS.size
    assert binary[x86_64.HANDOVER_OFFSET : end] == bytes(x86_64.PARAMETERS.size)
    assert end < image_end == len(binary) < tables_at
    assert image_end % 16 == tables_at % 16 == 0
