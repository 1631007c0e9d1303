# SPDX-License-Identifier: LGPL-2.1-or-later
"""Copies of loaded images: the very same bytes come back, or an error in words."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from build import BLOCK, facts
from crashlend import config
from crashlend.config import Settings
from crashlend.errors import CrashlendError
from crashlend.plan import make_plan
from crashlend.system import kept
from crashlend.system.image import CrashImage, build_image
from test_shrink import FILES


@pytest.fixture(autouse=True)
def _directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "DIRECTORY", tmp_path / "var/lib/crashlend/loaded")


def image(syscall: str = "load") -> CrashImage:
    host = facts(movable=[38, 39], lent=[38, 39])
    settings = Settings(lend=2 * BLOCK if syscall == "load" else 0, syscall=syscall)
    return build_image(make_plan(host, settings, FILES.payload), host, FILES)


@pytest.mark.parametrize("syscall", ["load", "file"])
def test_what_is_kept_is_recalled_whole(syscall: str) -> None:
    """Image and files, for both system calls; the kernel and the initramfs are stored once."""
    one = image(syscall)
    assert kept.keep(one, one.fingerprint(), FILES) == ""
    copy = kept.recall(one.fingerprint())
    assert copy.image == one
    assert copy.files == FILES
    size = (kept.DIRECTORY / one.fingerprint()).stat().st_size
    assert size < len(FILES.kernel) + len(one.initramfs) + 50_000


def test_the_captures_threads_are_recalled() -> None:
    """A reload from the copy plans as many CPUs as the load did."""
    one = image()
    files = replace(FILES, payload=replace(FILES.payload, threads=True))
    kept.keep(one, one.fingerprint(), files)
    assert kept.recall(one.fingerprint()).files.payload.threads


def test_a_second_copy_of_the_same_image_is_not_written() -> None:
    """It has the same name, and costs no time."""
    one = image()
    kept.keep(one, one.fingerprint(), FILES)
    path = kept.DIRECTORY / one.fingerprint()
    before = path.stat().st_ino
    kept.keep(one, one.fingerprint(), FILES)
    assert path.stat().st_ino == before


def test_no_copy_is_said() -> None:
    """The path is in the message."""
    with pytest.raises(CrashlendError, match="there is no copy"):
        kept.recall("0" * 64)


@pytest.mark.parametrize("seed", range(40))
def test_a_changed_byte_anywhere_is_found(seed: int) -> None:
    """In the first line, in the kernel's unused parts, in the initramfs: never loaded, no traceback."""
    one = image()
    name = one.fingerprint()
    kept.keep(one, name, FILES)
    path = kept.DIRECTORY / name
    data = bytearray(path.read_bytes())
    dice = random.Random(seed)
    first_line = data.index(b"\n") if seed % 2 else len(data)
    data[dice.randrange(first_line)] ^= 1 << dice.randrange(8)
    path.write_bytes(data)
    with pytest.raises(CrashlendError, match="damaged"):
        kept.recall(name)


@pytest.mark.parametrize(
    "change", [{"schema": 2}, {"layout": {"x": 1}}, {"parts": []}, {"cmdline": 5}]
)
def test_a_copy_of_another_version_is_refused(change: dict[str, object]) -> None:
    """A crashlend that was updated meanwhile says so and loads nothing it does not understand."""
    one = image()
    name = one.fingerprint()
    kept.keep(one, name, FILES)
    path = kept.DIRECTORY / name
    line, _, rest = path.read_bytes().partition(b"\n")
    header = {**json.loads(line.partition(b" ")[2]), **change}
    path.write_bytes(kept._with_digest(json.dumps(header).encode()) + rest)
    with pytest.raises(CrashlendError, match="damaged"):
        kept.recall(name)


def test_a_copy_under_another_name_is_refused() -> None:
    """The name is the digest of what must come out."""
    one = image()
    kept.keep(one, "f" * 64, FILES)
    with pytest.raises(CrashlendError, match="another image"):
        kept.recall("f" * 64)


def test_others_are_forgotten_and_half_written_ones_too() -> None:
    """What a killed run left goes with the next load; a directory that is not there is no error."""
    kept.forget_others(["x"])
    one = image()
    kept.keep(one, one.fingerprint(), FILES)
    (kept.DIRECTORY / kept.NEW).write_bytes(b"half")
    (kept.DIRECTORY / ("0" * 64)).write_bytes(b"old")
    kept.forget_others([one.fingerprint()])
    assert [path.name for path in kept.DIRECTORY.iterdir()] == [one.fingerprint()]


def test_settings_go_through_text_unchanged() -> None:
    """Those of a load come back for its renewal; unknown ones are of another version."""
    settings = replace(
        Settings(), lend=3 << 30, shrink_margin=0, dump_level=15, allow_missing_user_data=True
    )
    settings = replace(settings, append="one two", block_deadline=2.5, kernel="/boot/other")
    texts = config.to_text(settings)
    assert config.from_text(texts) == settings
    assert config.from_text({**texts, "of another version": "1"}) == settings
    assert config.from_text({}) == Settings()
