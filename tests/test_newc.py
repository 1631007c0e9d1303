# SPDX-License-Identifier: LGPL-2.1-or-later
"""The newc archive: round trip, determinism, bounds, and what cpio(1) makes of it."""

from __future__ import annotations

import contextlib
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashlend.errors import FormatError
from crashlend.formats import newc

names = st.text("abcXYZ-._é", min_size=1, max_size=8).filter(lambda n: n not in (".", ".."))
paths = st.lists(names, min_size=1, max_size=3).map("/".join)


def sample() -> list[newc.Member]:
    return [
        newc.regular("init", b"#!/bin/sh\n", 0o755),
        newc.directory("dev", 0o755),
        newc.character_device("dev/console", 5, 1),
        newc.symlink("bin/sh", "busybox"),
        newc.regular("bin/busybox", bytes(range(256)) * 5, 0o755),
        newc.regular("empty", b""),
    ]


@given(st.dictionaries(paths, st.binary(max_size=40), max_size=8))
def test_parse_of_build_gives_the_members_back(contents: dict[str, bytes]) -> None:
    files = {
        path: data
        for path, data in contents.items()
        if not any(other.startswith(path + "/") for other in contents)
    }
    archive = newc.build([newc.regular(path, data) for path, data in files.items()])
    members, end = newc.parse(archive)
    assert {m.path: m.data for m in members if stat.S_ISREG(m.mode)} == files
    assert end == len(archive)
    assert newc.build(members) == archive


def test_same_members_in_any_order_give_the_same_bytes() -> None:
    assert newc.build(sample()) == newc.build(reversed(sample()))


def test_parents_come_first_and_are_made() -> None:
    members, _ = newc.parse(newc.build([newc.regular("a/b/c", b""), newc.regular("a-b", b"")]))
    assert [m.path for m in members] == ["a", "a/b", "a/b/c", "a-b"]


def test_concatenated_archives_are_read_one_after_the_other() -> None:
    first = newc.build(sample())
    both = first + newc.build([newc.regular("etc/x", b"1")])
    _, end = newc.parse(both)
    assert end == len(first)
    assert [m.path for m in newc.parse(both, start=end)[0]] == ["etc", "etc/x"]


@pytest.mark.parametrize("path", ["", "/a", "a//b", "a/", "../a", "./a", "a\0b", "TRAILER!!!"])
def test_paths_that_are_not_plain_are_refused(path: str) -> None:
    with pytest.raises(FormatError, match="not a plain relative path"):
        newc.build([newc.regular(path, b"")])


def test_contradictory_members_are_refused() -> None:
    with pytest.raises(FormatError, match="twice"):
        newc.build([newc.regular("a", b""), newc.regular("a", b"")])
    with pytest.raises(FormatError, match="no directory"):
        newc.build([newc.regular("a", b""), newc.regular("a/b", b"")])


def test_every_truncation_is_an_error_with_an_offset() -> None:
    archive = newc.build(sample())
    for length in range(0, len(archive) - 4, 7):
        with pytest.raises(FormatError, match="offset"):
            newc.parse(archive[:length])


@given(st.integers(0, 600), st.integers(0, 255))
def test_damage_never_raises_anything_else(at: int, value: int) -> None:
    archive = bytearray(newc.build(sample()))
    archive[at % len(archive)] = value
    with contextlib.suppress(FormatError):
        newc.parse(bytes(archive))


@pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio is not installed")
def test_cpio_lists_and_unpacks_it(tmp_path: Path) -> None:
    archive = newc.build(m for m in sample() if not stat.S_ISCHR(m.mode))
    command = ["cpio", "--extract", "--quiet", "--format=newc", "--make-directories"]
    subprocess.run(command, input=archive, cwd=tmp_path, check=True)
    assert (tmp_path / "bin/busybox").read_bytes() == bytes(range(256)) * 5
    assert (tmp_path / "bin/sh").readlink() == Path("busybox")
    assert (tmp_path / "init").stat().st_mode & 0o777 == 0o755

    listed = subprocess.run(
        ["cpio", "--list", "--verbose", "--quiet", "--numeric-uid-gid"],
        input=newc.build(sample()),
        capture_output=True,
        check=True,
    ).stdout.decode()
    assert "5,   1" in next(line for line in listed.splitlines() if "console" in line)


@pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio is not installed")
def test_archives_of_cpio_are_read(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/f").write_bytes(b"12345")
    done = subprocess.run(
        ["cpio", "--create", "--quiet", "--format=newc"],
        input=b"d\nd/f\n",
        cwd=tmp_path,
        capture_output=True,
        check=True,
    )
    members, _ = newc.parse(done.stdout)
    assert [(m.path, m.data) for m in members] == [("d", b""), ("d/f", b"12345")]
