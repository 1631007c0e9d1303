# SPDX-License-Identifier: LGPL-2.1-or-later
"""The ELF reader and the library closure, against pyelftools and ldd."""

from __future__ import annotations

import contextlib
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st

from crashlend.capture.libraries import find_libraries, resolve
from crashlend.errors import CrashlendError, FormatError
from crashlend.formats.elf import Elf, parse_elf

PROGRAMS = [
    Path(found).resolve()
    for name in ("ls", "cpio", "makedumpfile")
    if (found := shutil.which(name))
]


def build_elf(
    *,
    needed: tuple[str, ...] = (),
    runpath: str = "",
    rpath: str = "",
    interpreter: str = "",
    machine: int = 62,
) -> bytes:
    """A minimal 64-bit little-endian file: headers, one PT_LOAD, strings, dynamic section."""
    strings = b"\0"
    dynamic = b""
    for tag, value in [(1, n) for n in needed] + [(29, runpath), (15, rpath)]:
        if value:
            dynamic += struct.pack("<qQ", tag, len(strings))
            strings += value.encode() + b"\0"
    at = 64 + 3 * 56
    base = 0x400000
    dynamic += struct.pack("<qQqQqQ", 5, base + at, 10, len(strings), 0, 0)
    interp_at = at + len(strings)
    dynamic_at = interp_at + len(interpreter) + 1
    size = dynamic_at + len(dynamic)

    def segment(kind: int, offset: int, length: int) -> bytes:
        return struct.pack("<IIQQQQQQ", kind, 5, offset, base + offset, 0, length, length, 1)

    out = b"\x7fELF\2\1\1" + bytes(9)
    out += struct.pack("<HHIQQQIHHHHHH", 3, machine, 1, 0, 64, 0, 0, 64, 56, 3, 0, 0, 0)
    out += segment(1, 0, size) + segment(2, dynamic_at, len(dynamic))
    out += segment(3 if interpreter else 0, interp_at, len(interpreter) + 1)
    return out + strings + interpreter.encode() + b"\0" + dynamic


def test_reads_what_was_built() -> None:
    data = build_elf(
        needed=("liba.so", "libb.so"), runpath="/x:$ORIGIN/y", rpath="/r", interpreter="/lib/ld.so"
    )
    assert parse_elf(data) == Elf(
        64, "<", 62, "/lib/ld.so", ("liba.so", "libb.so"), ("/r",), ("/x", "$ORIGIN/y")
    )


@given(st.integers(0, 400), st.integers(0, 255))
def test_damage_never_raises_anything_else(at: int, value: int) -> None:
    data = bytearray(build_elf(needed=("liba.so",), interpreter="/lib/ld.so"))
    data[at % len(data)] = value
    with contextlib.suppress(FormatError):
        parse_elf(bytes(data))


def test_every_truncation_is_a_format_error() -> None:
    data = build_elf(needed=("liba.so",), interpreter="/lib/ld.so")
    for length in range(len(data) - 16):
        with pytest.raises(FormatError):
            parse_elf(data[:length])


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.name)
def test_agrees_with_pyelftools(program: Path) -> None:
    ours = parse_elf(program.read_bytes())
    with program.open("rb") as stream:
        theirs = ELFFile(stream)
        dynamic = next((s for s in theirs.iter_segments() if isinstance(s, DynamicSegment)), None)
        tags = list(dynamic.iter_tags()) if dynamic else []
        needed = tuple(getattr(t, "needed") for t in tags if t.entry.d_tag == "DT_NEEDED")  # noqa: B009
        assert (ours.bits, ours.needed) == (theirs.elfclass, needed)


@pytest.mark.skipif(shutil.which("ldd") is None, reason="ldd is not installed")
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.name)
def test_closure_is_what_ldd_says(program: Path) -> None:
    out = subprocess.run(["ldd", str(program)], capture_output=True, check=True, text=True).stdout
    expected = {Path(p).resolve() for p in re.findall(r"(/\S+) \(0x", out)}
    assert {library.source.resolve() for library in find_libraries(Path("/"), program)} == expected


def put(root: Path, path: str, data: bytes) -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


def test_libraries_are_searched_as_the_loader_does(tmp_path: Path) -> None:
    """RUNPATH, ld.so.conf with include, the right machine, names kept, symlinks inside root."""
    program = put(
        tmp_path,
        "opt/bin/tool",
        build_elf(
            needed=("liba.so.1", "libb.so"), runpath="$ORIGIN/../lib", interpreter="/lib64/ld.so.2"
        ),
    )
    put(tmp_path, "usr/lib64/ld-2.31.so", build_elf())
    (tmp_path / "lib64").symlink_to("/usr/lib64")
    (tmp_path / "usr/lib64/ld.so.2").symlink_to("ld-2.31.so")
    put(tmp_path, "opt/lib/liba.so.1", build_elf(needed=("libc.so.6",)))
    put(tmp_path, "etc/ld.so.conf", b"include /etc/ld.so.conf.d/*.conf\n")
    put(tmp_path, "etc/ld.so.conf.d/x.conf", b"# comment\n/srv/lib\n")
    put(tmp_path, "srv/lib/libb.so", build_elf(needed=("liba.so.1",)))
    put(tmp_path, "srv/lib/libc.so.6", build_elf(machine=3))  # another machine's
    put(tmp_path, "lib/x86_64-linux-gnu/libc.so.6", build_elf())
    found = {library.path: library.source for library in find_libraries(tmp_path, program)}
    assert found == {
        "/lib64/ld.so.2": tmp_path / "usr/lib64/ld-2.31.so",
        "/opt/lib/liba.so.1": tmp_path / "opt/lib/liba.so.1",
        "/srv/lib/libb.so": tmp_path / "srv/lib/libb.so",
        "/lib/x86_64-linux-gnu/libc.so.6": tmp_path / "lib/x86_64-linux-gnu/libc.so.6",
    }


def test_a_missing_library_is_named(tmp_path: Path) -> None:
    program = put(tmp_path, "bin/tool", build_elf(needed=("libnone.so",)))
    with pytest.raises(CrashlendError, match=r"libnone\.so was not found"):
        find_libraries(tmp_path, program)


def test_symlinks_stay_inside_the_root(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("/../../etc")
    (tmp_path / "loop").symlink_to("loop")
    assert resolve(tmp_path, "/a/passwd") == tmp_path / "etc/passwd"
    with pytest.raises(CrashlendError, match="too many symlinks"):
        resolve(tmp_path, "/loop/x")
