# SPDX-License-Identifier: LGPL-2.1-or-later
"""Faults in a load on a fake host: kexec_load refuses, there is no room for the state."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import pytest

from build import BLOCK
from crashlend.config import Settings
from crashlend.errors import CrashlendError
from crashlend.system import loading
from test_lending import Machine, quiet
from test_shrink import ShrinkHost, assert_loaded, load, some

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["some"]  # a fixture
ONE_BLOCK = Settings(lend=BLOCK)
# kexec_load(2), kexec_file_load(2), kernel/kexec.c, kernel/kexec_core.c, kernel/kexec_file.c
BEFORE_THE_OLD_IMAGE_GOES = (errno.EPERM, errno.EBUSY)
AFTERWARDS = (
    *(errno.EADDRNOTAVAIL, errno.EBADF, errno.EFAULT, errno.EINVAL, errno.EIO, errno.EINTR),
    *(errno.EKEYREJECTED, errno.ENODATA, errno.ENOEXEC, errno.ENOMEM, errno.ENOSYS),
)
EVERY = (*BEFORE_THE_OLD_IMAGE_GOES, *AFTERWARDS)


def name_of(code: int) -> str:
    return errno.errorcode[code]


def refuse(one: ShrinkHost, code: int) -> None:
    one.refuse = {"load": code, "filler load": code}


@pytest.mark.parametrize("code", EVERY, ids=name_of)
def test_a_first_load_that_fails_leaves_all_as_it_was(some: ShrinkHost, code: int) -> None:
    """Whatever errno it is: it is named, every block is back, nothing is recorded as loaded."""
    zones = dict(some.machine.zone)
    refuse(some, code)
    with pytest.raises(CrashlendError, match=name_of(code)):
        load(ONE_BLOCK)
    assert some.machine.zone == zones
    assert (some.loaded, some.state.loaded, some.state.blocks) == (False, None, {})
    some.refuse = {}
    load(ONE_BLOCK)
    assert_loaded(some)


@pytest.mark.parametrize("code", EVERY, ids=name_of)
def test_a_reload_that_fails_keeps_or_tells(some: ShrinkHost, code: int) -> None:
    """The old image stays, recorded and with its blocks; or it is gone, which is said.

    kexec_load frees it before it looks at the new one, but not where it may not begin at all. This
    kernel takes no image any more; that the old one is loaded again, test_put_back.py shows.
    """
    load(ONE_BLOCK)
    refuse(some, code)
    with pytest.raises(CrashlendError, match=name_of(code)) as caught:
        load(Settings(lend=2 * BLOCK))
    assert some.machine.offline_blocks() == []
    if code in BEFORE_THE_OLD_IMAGE_GOES:
        assert_loaded(some)
    else:
        assert not some.loaded
        assert (some.state.loaded or {})["step"] == "lost"
        assert "no crash kernel loaded now" in caught.value.hint
    some.refuse = {}
    load(Settings(lend=2 * BLOCK))
    assert_loaded(some)


class Full:
    """A file system that has no room from the ``after``-th file on."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.writes = 0

    def write_atomically(self, path: Path, data: bytes, **_more: Any) -> None:
        self.writes += 1
        if self.writes > self.after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


@pytest.mark.parametrize("after", range(12))
def test_no_room_for_the_state_at_any_write(
    some: ShrinkHost, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Nothing goes offline without a record; the error names the file; the next load is whole."""
    full = Full(after)
    monkeypatch.setattr("crashlend.system.state.write_atomically", full.write_atomically)
    said = ""
    try:
        load(Settings(lend=2 * BLOCK))
    except CrashlendError as error:
        said = str(error)
    assert ("state.json: No space left on device" in said) == (full.writes > after)
    assert some.machine.offline_blocks() == []
    assert set(some.machine.movable_blocks()) <= set(some.state.blocks)
    monkeypatch.setattr("crashlend.system.state.write_atomically", Full(99).write_atomically)
    load(Settings(lend=2 * BLOCK))
    assert_loaded(some)
    loading.unload(ONE_BLOCK, say=quiet)
    assert some.machine.movable_blocks() == Machine().movable_blocks()


def test_there_are_as_many_writes_as_are_tried(
    some: ShrinkHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above strikes at each write of such a load, and once at none."""
    full = Full(99)
    monkeypatch.setattr("crashlend.system.state.write_atomically", full.write_atomically)
    load(Settings(lend=2 * BLOCK))
    assert 2 <= full.writes < 12
