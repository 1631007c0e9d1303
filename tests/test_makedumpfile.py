# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a makedumpfile can do, and whether it is too old for the crash kernel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from build import facts, payload
from crashlend.capture import makedumpfile_probe
from crashlend.capture.makedumpfile import (
    HARMS,
    RELEASES,
    Features,
    harms,
    needed_for,
    newest_kernel,
    notes,
    number,
    read_features,
    variables,
)
from crashlend.capture.makedumpfile_probe import core_of, find_threads, look_at, supports
from crashlend.config import Settings
from crashlend.lab.opener import lacks
from crashlend.plan import make_plan
from test_elf import build_elf

INSTALLED = shutil.which("makedumpfile", path=f"{os.defpath}:/usr/sbin:/sbin")


def program(version: str = "1.7.6", **built_in: str) -> bytes:
    """The strings of a makedumpfile among other bytes."""
    lines = "".join(f"{name}\t{state}\n" for name, state in built_in.items())
    text = f"makedumpfile: version {version} (released on 1 Jan 2026)\n"
    return b"\x7fELF\0\xff" + text.encode() + b"\0" + lines.encode() + b"\0zstd support:\n\0"


@pytest.mark.parametrize(
    ("built_in", "flags"),
    [
        ({"lzo": "enabled", "snappy": "disabled", "zstd": "enabled"}, ("-z", "-l", "-c")),
        ({"lzo": "enabled", "snappy": "enabled", "zstd": "disabled"}, ("-l", "-p", "-c")),
        ({"lzo": "disabled", "snappy": "disabled"}, ("-c",)),
        ({}, ("-c",)),
    ],
)
def test_compressions_are_those_built_in(built_in: dict[str, str], flags: tuple[str, ...]) -> None:
    """A compression is taken where the program says that it has it; zlib is always there, and last."""
    assert read_features(program(**built_in)).flags == flags


@pytest.mark.parametrize(
    ("version", "threads"),
    [("1.6.8", False), ("1.7.7++", False), ("1.7.8", True), ("1.7.9++", True), ("1.8.0", True)],
)
def test_threads_only_since_the_race_is_mended(version: str, threads: bool) -> None:
    """--num-threads is used from 1.7.8 on: before, threads may corrupt the dump."""
    assert read_features(program(version)).threads is threads


@pytest.mark.parametrize(
    ("version", "loader", "library", "usable"),
    [
        ("1.7.8", "/lib64/ld-linux-x86-64.so.2", True, True),
        ("1.7.8", "/lib64/ld-linux-x86-64.so.2", False, False),
        ("1.7.8", "/lib/ld-musl-x86_64.so.1", False, True),
        ("1.7.6", "/lib64/ld-linux-x86-64.so.2", True, False),
    ],
)
def test_threads_need_a_library_of_glibc(
    tmp_path: Path, version: str, loader: str, library: bool, usable: bool
) -> None:
    """Glibc opens libgcc_s.so.1 when a thread ends, and aborts without it: then there are none."""
    where = tmp_path / "usr/bin/makedumpfile"
    where.parent.mkdir(parents=True)
    where.write_bytes(build_elf(interpreter=loader) + program(version))
    if library:
        found = tmp_path / "usr/lib/libgcc_s.so.1"
        found.parent.mkdir()
        found.write_bytes(build_elf())
    features = read_features(where.read_bytes())
    threads = find_threads(tmp_path, where, features)
    assert threads.usable is usable
    assert (threads.library is not None) is (usable and library)
    if threads.library:
        assert threads.library.path == "/usr/lib/libgcc_s.so.1"
    assert variables(features, threads=threads.usable)["THREADS"] == ("auto" if usable else "0")
    known = look_at(tmp_path, "6.1.0")
    assert known is not None
    assert known.threads is usable


def test_a_program_of_unknown_version() -> None:
    """A wrapper may have every compression, gets no threads, and nothing is claimed of its age."""
    features = read_features(b"#!/bin/sh\nexec /opt/makedumpfile version 9\n")
    assert features.flags == ("-z", "-l", "-p", "-c")
    assert not features.threads
    assert notes(features, "7.3.4", None) == ()
    (note,) = notes(features, "7.3.4", False)
    assert note.startswith("makedumpfile says that it does not support the crash kernel 7.3.4;")


def test_the_program_of_another_root(tmp_path: Path) -> None:
    """Of a copy of another host the file is read, and never run; without one nothing is said."""
    assert look_at(tmp_path, "6.12.0") is None
    where = tmp_path / "usr/sbin/makedumpfile"
    where.parent.mkdir(parents=True)
    where.write_bytes(b"#!/bin/sh\ntouch " + str(tmp_path / "was-run").encode() + b"\n" + program())
    where.chmod(0o755)
    known = look_at(tmp_path, "6.12.0")
    assert known is not None
    assert known.features.version == "1.7.6"
    assert "free pages" in known.notes[0]
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("6.1.0-56-amd64", (6, 1, 0)),
        ("7.3.4+deb13-amd64", (7, 3, 4)),
        ("1.7.9++", (1, 7, 9)),
        ("6.12", (6, 12)),
        ("next-20260501", ()),
    ],
)
def test_numbers_of_a_release(text: str, numbers: tuple[int, ...]) -> None:
    """The numbers at a release's beginning are compared, whatever follows them."""
    assert number(text) == numbers


@pytest.mark.parametrize(
    ("version", "kernel"),
    [("1.7.2", "6.0.1"), ("1.7.5++", "6.8.4"), ("1.7.9", "7.0.0"), ("1.9.0", ""), ("1.5.0", "")],
)
def test_newest_kernel_of_a_version(version: str, kernel: str) -> None:
    """The table knows which kernel a version was made for, and says so where it does not."""
    assert newest_kernel(version) == kernel


@pytest.mark.parametrize(
    ("release", "version"),
    [("6.1.0-56-amd64", "1.7.3"), ("6.8.4", "1.7.5"), ("6.8.5", "1.7.6"), ("7.3.4", "")],
)
def test_needed_version(release: str, version: str) -> None:
    """The first makedumpfile made for a kernel is named; none where no release was."""
    assert needed_for(release) == version


def test_the_tables_are_in_order() -> None:
    """Versions and kernels rise together, or the first match would not be the right one."""
    pairs = [(number(r.version), number(r.kernel)) for r in RELEASES]
    assert pairs == sorted(pairs)
    assert [p[1] for p in pairs] == sorted(p[1] for p in pairs)
    assert [number(h.kernel) for h in HARMS] == sorted(number(h.kernel) for h in HARMS)


@pytest.mark.parametrize(
    ("version", "release", "commits"),
    [
        ("1.7.2", "6.1.0-56-amd64", ()),
        ("1.7.6", "6.12.118+deb13-amd64", ("72c3414",)),
        ("1.7.7", "6.12.118+deb13-amd64", ()),
        ("1.7.8", "7.3.4+deb13-amd64", ("f50c015",)),
        ("1.7.3", "6.9.0", ("9661c1d", "985e575")),
        ("1.7.8", "6.17.13", ()),
    ],
)
def test_known_harms(version: str, release: str, commits: tuple[str, ...]) -> None:
    """Each pair has the harms whose kernel is reached and whose mending version is not."""
    assert tuple(harm.commit for harm in harms(version, release)) == commits


def test_new_enough_is_not_mentioned() -> None:
    """A makedumpfile that supports the kernel, by its own word or by the table, makes no note."""
    assert notes(Features("1.7.6", ("zlib",)), "6.1.0-56-amd64", True) == ()
    assert notes(Features("1.7.6", ("zlib",)), "6.1.0-56-amd64", None) == ()
    assert notes(Features("1.7.2", ("zlib",)), "6.0.1", None) == ()


def test_free_pages_are_told_before_the_crash() -> None:
    """The pair that fills disks (sonic-buildimage: 7.5 GB dumps) is named with what mends it."""
    (note,) = notes(Features("1.7.6", ("zlib",)), "6.12.118+deb13-amd64", False)
    assert "free pages" in note
    assert "as large as memory" in note
    assert "1.7.7" in note
    assert "72c3414" in note


def test_missing_pages_are_told_first() -> None:
    """Where pages would be missing from the dump, that is what the note is about, not its size."""
    (note,) = notes(Features("1.7.2", ("zlib",)), "6.12.0", False)
    assert "slab pages" in note
    assert "free pages" not in note
    assert note.count("slab pages") == 1
    assert "1.7.7" in note  # mends all of it


def test_older_without_known_harm() -> None:
    """Its own word counts more than the table; without a known harm the note says just that."""
    (asked,) = notes(Features("1.7.2", ("zlib",)), "6.1.0-56-amd64", False)
    assert "says that it does not support" in asked
    assert "6.0.1" in asked
    assert "1.7.3" in asked
    assert "Nothing is known" in asked
    (by_table,) = notes(Features("1.7.2", ("zlib",)), "6.1.0-56-amd64", None)
    assert "is older than the crash kernel" in by_table
    assert notes(Features("1.7.2", ("zlib",)), "6.1.0-56-amd64", True) == ()


def test_core_is_a_core_file(tmp_path: Path) -> None:
    """Readelf takes the probe's file for a core of x86-64 with its notes, and finds the release."""
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("binutils is not installed")
    (tmp_path / "core").write_bytes(core_of("7.3.4+deb13-amd64"))
    done = subprocess.run(
        [readelf, "-W", "-h", "-l", "-n", str(tmp_path / "core")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "CORE (Core file)" in done.stdout
    assert "X86-64" in done.stdout
    assert "VMCOREINFO" in done.stdout
    assert re.search(r"LOAD +0x001000 0xffffffff80000000 0x0+ 0x003000", done.stdout)
    assert done.stderr == ""


@pytest.mark.skipif(INSTALLED is None, reason="makedumpfile is not installed")
def test_the_real_one_answers() -> None:
    """The installed makedumpfile supports the kernel that it was made for, and not the next series."""
    assert INSTALLED
    where = Path(INSTALLED)
    features = read_features(where.read_bytes())
    said = subprocess.run([INSTALLED, "-v"], capture_output=True, text=True, check=False)
    assert features.version in said.stdout + said.stderr
    kernel = newest_kernel(features.version)
    if not kernel:
        pytest.skip(f"makedumpfile {features.version} is newer than the table")
    assert supports(where, kernel) is True
    major, minor, _ = number(kernel)
    assert supports(where, f"{major}.{minor + 1}.0-1-amd64") is False


def test_what_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer is None: a program that is not there, says nothing, or never ends."""
    silent, hangs = tmp_path / "silent", tmp_path / "hangs"
    silent.write_text("#!/bin/sh\necho something else\n")
    hangs.write_text("#!/bin/sh\nexec sleep 1000\n")
    for file in (silent, hangs):
        file.chmod(0o755)
    monkeypatch.setattr(makedumpfile_probe, "SECONDS", 0.5)
    assert supports(tmp_path / "missing", "6.1.0") is None
    assert supports(silent, "6.1.0") is None
    began = time.monotonic()
    assert supports(hangs, "6.1.0") is None
    assert time.monotonic() - began < 300  # not 1000


def test_one_that_knows_everything_is_not_believed(tmp_path: Path) -> None:
    """It must find an impossible kernel unsupported, or its silence about a real one means nothing."""
    picky, lax = tmp_path / "picky", tmp_path / "lax"
    picky.write_text(
        '#!/bin/sh\ngrep -q -a "OSRELEASE=6.1.0$" "$2" || echo "The kernel version is not '
        'supported."\nexit 1\n'
    )
    lax.write_text("#!/bin/sh\nexit 1\n")
    for file in (picky, lax):
        file.chmod(0o755)
    assert supports(picky, "6.1.0") is True
    assert supports(picky, "6.2.0") is False
    assert supports(lax, "6.1.0") is None


def test_the_plan_passes_it_on() -> None:
    """What is known of the payload's programs is among the notes of the plan, once."""
    given = replace(payload(), notes=("makedumpfile is too old",))
    for syscall in ("load", "file"):
        plan = make_plan(facts(), Settings(lend=0, syscall=syscall), given)
        assert plan.notes.count("makedumpfile is too old") == 1


@pytest.mark.parametrize(
    ("words", "built_in", "lacking"),
    [
        (["-z", "--num-threads", "3", "-d", "31"], {"zstd": "disabled"}, True),
        (["-z", "-d", "31"], {"zstd": "enabled"}, False),
        (["-l", "-d", "31"], {"lzo": "enabled", "zstd": "disabled"}, False),
        (["-d", "31"], {}, False),
        ([], {}, False),
    ],
)
def test_which_dumps_another_makedumpfile_must_open(
    words: list[str], built_in: dict[str, str], lacking: bool
) -> None:
    """One without zstd finds nothing in a dump that has it, so the lab takes the guest's own."""
    assert lacks(words, program(**built_in)) is lacking
