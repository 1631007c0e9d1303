# SPDX-License-Identifier: LGPL-2.1-or-later
"""The cache of compressed archives: never stale, never torn, nobody else's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from crashlend.capture import cache, compression
from crashlend.capture.cache import cache_key, read_cached, write_cached
from crashlend.capture.compression import pack
from crashlend.formats import newc

if TYPE_CHECKING:
    from pathlib import Path

XZ = {"CONFIG_RD_XZ": "y", "CONFIG_XZ_DEC_X86": "y"}
MEMBERS = [newc.regular("key", b"secret")]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_the_second_pack_compresses_nothing(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result of the first is taken, and is the same as without a cache."""
    first = pack(MEMBERS, XZ, directory)
    monkeypatch.setattr(compression, "_compress", None)
    assert pack(MEMBERS, XZ, directory) == first
    monkeypatch.undo()
    assert pack(MEMBERS, XZ) == first


def test_whatever_changes_the_result_changes_the_key(directory: Path) -> None:
    """Content, permissions, place, and how it is compressed."""
    others = [
        [newc.regular("key", b"secreT")],
        [newc.regular("key", b"secret", 0o755)],
        [newc.regular("kez", b"secret")],
        [*MEMBERS, newc.regular("more", b"")],
    ]
    results = [pack(members, XZ, directory).data for members in (MEMBERS, *others)]
    results.append(pack(MEMBERS, {}, directory).data)
    assert len({*results}) == 6
    assert cache_key("xz 9", b"a") != cache_key("xz 8", b"a")


def test_only_root_can_read_it(directory: Path) -> None:
    """Whatever the umask is: what others could write would be loaded."""
    old = os.umask(0)
    try:
        write_cached(directory, "k", b"data")
    finally:
        os.umask(old)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert [p.stat().st_mode & 0o777 for p in directory.iterdir()] == [0o600]


@pytest.mark.parametrize("config", [XZ, {}])
def test_secrets_are_never_kept(directory: Path, config: dict[str, str]) -> None:
    """What is for its owner alone is in the result, and in no file of the cache."""
    secret = os.urandom(64)  # which no compression makes shorter
    members = [*MEMBERS, newc.regular("etc/keys/1", secret, 0o600)]
    packed = pack(members, config, directory)
    assert pack(MEMBERS, config).data + pack(members[1:], config).data == packed.data
    whole = b"".join(path.read_bytes() for path in directory.iterdir())
    assert pack(members[1:], config).data not in whole
    assert pack(MEMBERS, config).data in whole


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o707])
def test_a_directory_that_others_can_use_is_not_used(directory: Path, mode: int) -> None:
    """What others could have written is not loaded, and nothing secret is left there."""
    write_cached(directory, "k", b"data")
    directory.chmod(mode)
    assert read_cached(directory, "k") is None
    write_cached(directory, "other", b"data")
    assert len([*directory.iterdir()]) == 1


def test_a_symlink_is_no_cache(tmp_path: Path) -> None:
    """Whoever may make one could lead it anywhere."""
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("real")
    write_cached(tmp_path / "link", "k", b"data")
    assert not [*(tmp_path / "real").iterdir()]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "version"])
def test_damaged_files_count_as_none(directory: Path, damage: str) -> None:
    """Torn, flipped, or of another version of crashlend: it is built again."""
    write_cached(directory, "k", b"data" * 100)
    (path,) = directory.iterdir()
    data = path.read_bytes()
    path.write_bytes(
        {
            "cut": data[:-1],
            "flip": data[:-1] + b"x",
            "empty": b"",
            "version": data.replace(b"initramfs 1", b"initramfs 0", 1),
        }[damage]
    )
    assert read_cached(directory, "k") is None
    write_cached(directory, "k", b"new")
    assert read_cached(directory, "k") == b"new"


KILLED = """
import os, sys
from pathlib import Path
from crashlend.capture import cache
os.fsync = lambda fd: (print("there", flush=True), sys.stdin.read())
cache.write_cached(Path(sys.argv[1]), "k", b"data" * 1000)
"""


def test_killed_in_the_middle_leaves_no_entry(directory: Path) -> None:
    """Kill -9 before the new name: nothing under the key, and the rest goes once it is old."""
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        os.kill(process.pid, signal.SIGKILL)
    (torn,) = directory.iterdir()
    assert read_cached(directory, "k") is None
    write_cached(directory, "k", b"data")
    assert read_cached(directory, "k") == b"data"
    assert torn.exists()  # another process may be writing it
    long_ago = time.time() - 7200
    os.utime(torn, (long_ago, long_ago))
    write_cached(directory, "k2", b"data")
    assert not torn.exists()


def test_the_oldest_go(directory: Path) -> None:
    """A cache does not grow with every kernel."""
    for number in range(cache.KEPT + 2):
        write_cached(directory, f"k{number}", b"data")
        os.utime(directory / f"k{number}.img", (number, number))
    write_cached(directory, "last", b"data")
    names = {path.stem for path in directory.iterdir()}
    assert len(names) == cache.KEPT
    assert "last" in names
    assert "k0" not in names


def test_no_room_for_a_cache_is_no_error(tmp_path: Path) -> None:
    """It is built each time, no more."""
    (tmp_path / "file").write_text("")
    directory = tmp_path / "file/cache"
    assert pack(MEMBERS, XZ, directory) == pack(MEMBERS, XZ)
