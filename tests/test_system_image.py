# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lab's installed Debian: what it is made of, files in its image, words on its console."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from crashlend.errors import CrashlendError
from crashlend.lab.kernels import Kernel
from crashlend.lab.packages import find_tool
from crashlend.lab.system import image
from crashlend.lab.system.edit import copy_directory, read_file, replay, write_files
from crashlend.lab.system.stamps import Stamps


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A small ext4 image with one file in it."""
    tree, disk = tmp_path / "tree", tmp_path / "disk.ext4"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/hostname").write_text("debian\n")
    disk.touch()
    with disk.open("r+b") as stream:
        stream.truncate(16 << 20)
    tool = find_tool("mke2fs", "install the package e2fsprogs")
    subprocess.run([tool, "-q", "-F", "-t", "ext4", "-d", tree, disk], check=True)
    return disk


def test_files_are_put_into_an_image_and_read_again(disk: Path, tmp_path: Path) -> None:
    """New directories, a replaced file, modes: the file system holds and has what was written."""
    program = bytes(range(256)) * 40
    write_files(
        disk,
        {
            "/etc/hostname": (b"other\n", 0o644),
            "/usr/sbin/program": (program, 0o755),
        },
    )
    assert read_file(disk, "/etc/hostname") == b"other\n"
    assert read_file(disk, "/usr/sbin/program") == program
    assert read_file(disk, "/nowhere") == b""
    replay(disk)
    check = subprocess.run(["e2fsck", "-fn", disk], capture_output=True, check=False)
    assert check.returncode == 0, check.stdout
    copied = copy_directory(disk, "/usr", tmp_path / "out")
    assert (copied / "sbin/program").stat().st_mode & 0o777 == 0o755
    assert (copied / "sbin/program").read_bytes() == program


def test_what_is_no_image_is_said(tmp_path: Path) -> None:
    """A file without a file system: an error with its name, not silence."""
    (tmp_path / "file").write_bytes(bytes(4096))
    with pytest.raises(CrashlendError, match="file"):
        write_files(tmp_path / "file", {"/a": (b"b", 0o644)})
    with pytest.raises(CrashlendError, match="cannot read the file system"):
        replay(tmp_path / "file")


def test_stamps_come_in_order(tmp_path: Path) -> None:
    """Words count behind those before them alone, in whatever pieces they come."""
    console = tmp_path / "console"
    stamps = Stamps(console, [("panic", "panic"), ("up", "Linux version"), ("saved", "saved")])
    for piece in (b"Linux version 1\nsaved\npa", b"nic\nLinux ver", b"sion 1\n"):
        with console.open("ab") as stream:
            stream.write(piece)
        stamps.look()
    assert [*stamps.seen] == ["panic", "up"]


def test_a_kernel_of_no_release_is_no_system() -> None:
    """A system's kernel comes from the same suite as all else: others are refused in words."""
    other = Kernel("7.3", "7.3.4", "trixie-backports", Path("v"), Path("m"), None, "7.3.4-1")
    with pytest.raises(CrashlendError, match="no package of a Debian release's own"):
        image._packages(other, print)
    own = Kernel("path", "6.1.0", "bookworm", Path("v"), Path("m"), None, "")
    with pytest.raises(CrashlendError, match="no package of a Debian release's own"):
        image._packages(own, print)


def test_masked_units_and_the_job_are_laid_out(tmp_path: Path) -> None:
    """Systemd finds its masks as links to /dev/null, and starts the lab's job."""
    image._lay_out(tmp_path)
    units = tmp_path / "etc/systemd/system"
    assert all((units / name).readlink() == Path("/dev/null") for name in image.MASKED)
    assert (tmp_path / image.WANTS).resolve() == units / "crashlend-lab.service"
    assert f"ExecStart=/bin/sh {image.JOB}" in (units / "crashlend-lab.service").read_text()
