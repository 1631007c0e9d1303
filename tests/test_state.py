# SPDX-License-Identifier: LGPL-2.1-or-later
"""The state file: every change is on disk, whole or not at all; the lock; damaged files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashlend.errors import CrashlendError
from crashlend.system.state import LENT, TAKING, State, locked, write_atomically

if TYPE_CHECKING:
    from pathlib import Path


class Killed(BaseException):
    pass


def test_every_change_is_on_disk(tmp_path: Path) -> None:
    """A second reader sees each step as soon as the call returns."""
    path = tmp_path / "run" / "state.json"
    state = State(path)
    assert (state.blocks, state.loaded) == ({}, None)
    state.set_block(39, TAKING, "Normal")
    assert State(path).blocks == {39: {"step": TAKING, "zone": "Normal"}}
    state.set_block(39, LENT)
    assert State(path).blocks[39] == {"step": LENT, "zone": "Normal"}
    state.set_loaded({"step": "loaded", "fingerprint": "x"})
    assert State(path).loaded == {"step": "loaded", "fingerprint": "x"}
    state.drop_block(39)
    state.set_loaded(None)
    assert (State(path).blocks, State(path).loaded) == ({}, None)
    assert json.loads(path.read_bytes())["schema"] == 1


def test_killed_writes_leave_no_heap_of_files(tmp_path: Path) -> None:
    """What kill -9 leaves of a write is one file at most, and the next write uses it up."""
    program = (
        "import os, pathlib, signal, sys\nfrom crashlend.system.state import State\n"
        "os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)\n"
        "State(pathlib.Path(sys.argv[1])).write()\n"
    )
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", program, tmp_path / "state.json"], check=False)
        assert done.returncode == -signal.SIGKILL
        assert len(os.listdir(tmp_path)) == 1
    State(tmp_path / "state.json").set_loaded(None)
    assert os.listdir(tmp_path) == ["state.json"]


def test_dropping_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    """Recovery may forget a block twice."""
    State(tmp_path / "state.json").drop_block(7)


@pytest.mark.parametrize("call", ["open", "write", "fsync", "close", "replace"])
def test_a_kill_leaves_the_old_file_or_the_new_one(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before any system call of the write, the file is the whole old one."""
    path = tmp_path / "state.json"
    write_atomically(path, b"old")

    def killed(*_args: object, **_more: object) -> None:
        raise Killed

    monkeypatch.setattr(os, call, killed)
    with pytest.raises(Killed):
        write_atomically(path, b"the new content")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_content_is_on_the_disk_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fsync comes before rename, so that a power cut leaves no empty file under the name."""
    calls: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(fd: int) -> None:
        calls.append("fsync")
        real_fsync(fd)

    def replace(a: str, b: str) -> None:
        calls.append("replace")
        real_replace(a, b)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_atomically(tmp_path / "x", b"1")
    assert calls == ["fsync", "replace"]


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """write(2) may take less than it was given."""
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real_write(fd, bytes(data[:3])))
    write_atomically(tmp_path / "x", b"0123456789")
    assert (tmp_path / "x").read_bytes() == b"0123456789"


def test_only_root_may_read_what_is_written(tmp_path: Path) -> None:
    """The file's mode is 0600 unless said otherwise."""
    write_atomically(tmp_path / "x", b"1")
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o600


def _loaded(text: str) -> bytes:
    return b'{"blocks": {}, "loaded": {"step": "loaded", %s}}' % text.encode()


DAMAGED = [
    *map(
        _loaded,
        (
            '"notes": [[]]',
            '"notes": [5]',
            '"notes": [["x", 1, 2]]',
            '"settings": []',
            '"settings": {"lend": 5}',
            '"lent": [[1]]',
            '"zone": [[2, 1]]',
            '"cma": {}',
            '"system_ram": null',
            '"reservation": [[1, true]]',
            '"crash_kernel_bytes": "x"',
            '"previous": 5',
            '"previous": {"lent": 5}',
        ),
    ),
    b"",
    b"{",
    b"[]",
    b"7",
    b"{}",
    b'{"blocks": {}}',
    b'{"blocks": [], "loaded": null}',
    b'{"blocks": {"x": {}}, "loaded": null}',
    b'{"blocks": {"1": {}}, "loaded": null}',
    b'{"blocks": {"1": 5}, "loaded": null}',
    b'{"blocks": {"1": {"step": "dancing"}}, "loaded": null}',
    b'{"blocks": {}, "loaded": 5}',
    b"\xff\xfe",
    b"[" * 100000,
]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_file_is_an_error_with_advice(content: bytes, tmp_path: Path) -> None:
    """Never guessed at: an error that names the file and what to compare by hand."""
    path = tmp_path / "state.json"
    path.write_bytes(content)
    with pytest.raises(CrashlendError, match="it is damaged") as caught:
        State(path)
    assert "state" in caught.value.hint
    assert path.read_bytes() == content


@given(st.data())
def test_mutated_state_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Any damage to a real file is read or refused with CrashlendError."""
    path = tmp_path_factory.getbasetemp() / "mutated-state.json"
    text = b'{"schema": 1, "blocks": {"39": {"step": "lent", "zone": "N"}}, "loaded": null}'
    changed = bytearray(text)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(changed) - 1))
        changed[at : at + 1] = data.draw(st.binary(max_size=2))
    path.write_bytes(bytes(changed))
    try:
        state = State(path)
    except CrashlendError:
        return
    assert all(
        block["step"] in ("taking", "lent", "returning", "spoiled")
        for block in state.blocks.values()
    )


def test_the_lock_is_one(tmp_path: Path) -> None:
    """While one holds it a second gets an error that says so; afterwards it is free."""
    with locked(tmp_path):
        with pytest.raises(CrashlendError, match="another crashlend is at work") as caught:  # noqa: SIM117
            with locked(tmp_path):
                pass
        assert caught.value.hint
    with locked(tmp_path):
        pass


def test_the_lock_dies_with_its_holder(tmp_path: Path) -> None:
    """After kill -9 of the holder the lock can be had at once."""
    program = (
        "import sys, time, pathlib\nfrom crashlend.system.state import locked\n"
        "with locked(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(CrashlendError), locked(tmp_path):
            pass
        holder.kill()
        holder.wait()
        with locked(tmp_path):
            pass


def test_a_lock_that_cannot_be_made_is_an_error_in_words(tmp_path: Path) -> None:
    """No permission, or a file in the directory's place: one line and a hint."""
    (tmp_path / "file").write_text("")
    with pytest.raises(CrashlendError, match="cannot lock") as caught, locked(tmp_path / "file"):
        pass
    assert "root" in caught.value.hint
