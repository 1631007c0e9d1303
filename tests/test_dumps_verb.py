# SPDX-License-Identifier: LGPL-2.1-or-later
"""`crashlend dumps`: what it prints, what it ends with, and what it removes."""

from __future__ import annotations

import builtins
import errno
import json
import os
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashlend.cli.main import main
from crashlend.dumps import prune
from crashlend.dumps.analyze import Missing, explain, holes_named
from crashlend.dumps.directory import Dump, find_dumps, read_dump
from crashlend.dumps.place import find_places
from crashlend.dumps.prune import QUIET_SECONDS, choose, is_under_way, leftovers
from crashlend.dumps.symbols import find_vmlinux
from crashlend.errors import CrashlendError
from crashlend.ranges import Ranges
from dump_files import DMESG, REASON, RELEASE, capture_json, flatten, kdump, write_dump


@pytest.fixture(autouse=True)
def no_makedumpfile(monkeypatch: pytest.MonkeyPatch) -> None:
    """These dumps are good enough for us, not for a program that reads their pages."""
    monkeypatch.setattr("crashlend.dumps.check.shutil.which", lambda name: None)


class Answer:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*words: object) -> Answer:
        code = main(["dumps", *map(str, words)])
        return Answer(code, *capsys.readouterr())

    return call


def old(path: Path) -> Path:
    """As if nobody had written there for a day."""
    for item in [*path.iterdir(), path]:
        os.utime(item, (0, 0))
    return path


# --- list, check, show --------------------------------------------------------------------------


def test_list(tmp_path: Path, run: Any) -> None:
    """A row for each, newest first; JSON has the same and what is wrong."""
    write_dump(tmp_path, "web-2026-01-01-000000", vmcore=None, vmcore_incomplete=b"x")
    write_dump(tmp_path, "web-2026-01-02-000000")
    lines = run("list", tmp_path).out.splitlines()
    assert lines[0].split() == [
        *("when", "(UTC)", "host", "kernel", "size", "level", "complete", "reason")
    ]
    assert lines[1].startswith(f"2026-01-02 00:00:00  web   {RELEASE}  ")
    assert "  31     yes       Kernel panic - not syncing" in lines[1]
    assert "  no        Kernel panic" in lines[2]
    answer = run("list", "--json", tmp_path)
    assert answer.code == 0
    assert answer.json["schema"] == 1
    newest, older = answer.json["dumps"]
    assert (newest["host"], newest["kernel"], newest["reason"]) == ("web", RELEASE, REASON)
    assert (newest["complete"], newest["faults"], newest["level"]) == (True, [], 31)
    assert newest["lent_bytes"] == 256 << 20
    assert older["complete"] is False
    assert older["faults"]


def test_list_by_the_settings(tmp_path: Path, run: Any) -> None:
    """Without a directory: where the host's settings say, below --root."""
    write_dump(tmp_path / "srv/dumps")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/crashlend.conf").write_text("[crashlend]\npath = /srv/dumps\n")
    assert len(run("list", "--root", tmp_path, "--json").json["dumps"]) == 1
    (tmp_path / "etc/crashlend.conf").write_text("[crashlend]\ntarget = ssh://a@b/c\n")
    answer = run("list", "--root", tmp_path)
    assert answer.code == 1
    assert "no target of ssh://a@b/c is mounted here" in answer.err
    assert "hint: name the directory" in answer.err


def test_a_host_that_never_crashed_has_no_dumps(
    tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first capture makes the directory of the settings: until then it is no error, for none."""
    words: tuple[object, ...]
    for words in (("list",), ("check",), ("prune", "--keep", 1)):
        answer = run(*words, "--root", tmp_path)
        assert (answer.code, answer.err) == (0, "")
    assert run("show", "--root", tmp_path).code == 2
    # two targets, one of them was never dumped to
    path = write_dump(tmp_path / "b")
    places = [tmp_path / "a", tmp_path / "b"]
    monkeypatch.setattr("crashlend.cli.dumps_verb.find_places", lambda *_: places)
    assert [dump["path"] for dump in run("list", "--json").json["dumps"]] == [str(path)]
    assert run("check", path.name).code == 0
    # one that is there and can't be read is told, as is one that the user names
    (tmp_path / "a").write_text("")
    assert run("list").code == 1
    named: tuple[tuple[object, ...], ...] = (("list",), ("check", "--dir"), ("prune", "--keep", 1))
    for words in named:
        assert run(*words, tmp_path / "nowhere").code == 1


def test_check_looks_at_all_in_a_directory_and_a_name_stays_a_name(
    tmp_path: Path, run: Any
) -> None:
    """Not at the newest alone; what one word means changes nothing for the next."""
    bad = write_dump(tmp_path / "a", "web-2026-01-01-000000", vmcore=kdump()[:-1])
    write_dump(tmp_path / "a", "web-2026-01-02-000000")
    good = write_dump(tmp_path / "var/crash", "db-2026-01-01-000000")
    answer = run("check", tmp_path / "a")
    assert answer.code == 1
    assert f"{bad}: NOT USABLE" in answer.out
    found = run("check", "--json", "--root", tmp_path, tmp_path / "a", good.name).json["dumps"]
    assert [Path(dump["path"]).name[:3] for dump in found] == ["web", "web", "db-"]
    assert run("show", tmp_path / "a").code == 0


def test_no_dumps(tmp_path: Path, run: Any) -> None:
    """Nothing there is no error, unless one is asked for by name."""
    assert run("list", tmp_path).out == "no dumps\n"
    assert run("check", "--dir", tmp_path).code == 0
    answer = run("show", "--dir", tmp_path, "x-2026-01-01-000000")
    assert answer.code == 2
    assert "no dump x-2026-01-01-000000" in answer.err


def test_check_ends_with_1_when_one_is_not_usable(tmp_path: Path, run: Any) -> None:
    """It says what, why, and what may still help."""
    good = write_dump(tmp_path, "web-2026-01-01-000000")
    assert run("check", "--dir", tmp_path).code == 0
    bad = write_dump(tmp_path, "web-2026-01-02-000000", vmcore=kdump()[:-1])
    answer = run("check", "--dir", tmp_path)
    assert answer.code == 1
    assert f"{bad}: NOT USABLE" in answer.out
    assert f"{good}: usable" in answer.out
    assert "FAILED complete: it is cut short" in answer.out
    assert "hint: dmesg.txt beside it" in answer.out
    assert run("check", good).code == 0
    assert run("check", "--dir", tmp_path, good.name).code == 0
    found = run("check", "--json", bad).json["dumps"][0]
    assert found["usable"] is False
    assert any(finding["ok"] is False for finding in found["findings"])


def test_show(tmp_path: Path, run: Any) -> None:
    """The end of the newest dump, for people and for programs."""
    path = write_dump(tmp_path)
    answer = run("show", path)
    assert answer.code == 0
    for words in (REASON, "my prog, PID 116, CPU 3", "Tainted: G", " dump_stack_lvl+0x44", "ext4"):
        assert words in answer.out
    found = run("show", "--json", tmp_path).json
    assert (found["pid"], found["modules"]) == ("116", ["ext4", "crc16", "virtio_blk"])
    (path / "dmesg.txt").unlink()
    assert run("show", path).code == 1


def test_what_a_log_holds_can_t_steer_the_terminal(tmp_path: Path, run: Any) -> None:
    """Escapes of any file are shown, not sent."""
    log = DMESG.replace(b"sysrq triggered", b"\x1b[2J\xff").replace(b"ext4(E)", b"\x1b]0;x\x07")
    write_dump(tmp_path, dmesg_txt=log, capture_json=capture_json(5, panic="\x1b[31m"))
    for words in (("show", tmp_path), ("list", tmp_path), ("check", "--dir", tmp_path)):
        assert "\x1b" not in run(*words).out


# --- prune --------------------------------------------------------------------------------------


def made(name: str, *, complete: bool = True, strange: tuple[str, ...] = ()) -> Dump:
    host, _, when = name.partition("-")
    faults = () if complete else ("partial",)
    return Dump(Path("/d") / name, when, host, faults=faults, strange=strange)


def test_partial_ones_go_first_and_the_newest_ones_never() -> None:
    """By use: complete ones, newest first, then partial ones; the last crash's traces stay in any case."""
    dumps = [made(f"h-{n}", complete=n not in (2, 4, 6)) for n in range(7)]

    def gone(keep: int) -> list[str]:
        return [dump.path.name for dump in choose(dumps, keep).go]

    assert gone(7) == []
    assert gone(6) == ["h-2"]
    assert gone(5) == gone(4) == ["h-4", "h-2"]
    assert gone(3) == ["h-4", "h-2", "h-0"]
    assert gone(1) == gone(0) == ["h-4", "h-3", "h-2", "h-1", "h-0"]
    newest = ((dumps[6], "the newest one"), (dumps[5], "the newest complete one"))
    assert choose(dumps, 0).kept == newest


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 99), st.booleans(), st.booleans()),
        unique_by=lambda item: item[:2],
        max_size=12,
    ),
    st.integers(0, 5),
)
def test_prune_keeps_its_promises(items: list[tuple[str, int, bool, bool]], keep: int) -> None:
    """For any dumps of two hosts: nothing is lost twice, nothing of another's quota is touched."""
    dumps = [
        made(f"{host}-{n:02}", complete=complete, strange=("x",) if strange else ())
        for host, n, complete, strange in items
    ]
    choice = choose(dumps, keep)
    kept = [dump for dump, _ in choice.kept]
    assert sorted(d.path for d in [*choice.go, *kept]) == sorted(d.path for d in dumps)
    for host in "ab":
        own = [dump for dump in dumps if dump.host == host]
        stay = [dump for dump in kept if dump.host == host]
        assert len(stay) >= min(keep, len(own))
        whole = [dump for dump in own if dump.complete]
        if own:
            assert max(own, key=lambda dump: dump.when) in stay
        if whole:
            assert max(whole, key=lambda dump: dump.when) in stay
    assert not any(dump.strange for dump in choice.go)
    # what is left: a second prune has nothing to do
    assert choose(kept, keep).go == ()


def test_prune(tmp_path: Path, run: Any) -> None:
    """--dry-run only says; then it is done; then there is nothing to do."""
    for day in (1, 2, 3):
        old(write_dump(tmp_path, f"web-2026-01-0{day}-000000"))
    strange = old(write_dump(tmp_path, "web-2025-01-01-000000", notes_txt=b"mine"))
    (tmp_path / "other").mkdir()
    answer = run("prune", "--keep", 2, "--dry-run", tmp_path)
    assert f"would remove {tmp_path}/web-2026-01-01-000000\n" in answer.out
    assert len(find_dumps(tmp_path)) == 4
    answer = run("prune", "--keep", 2, "--json", tmp_path).json
    assert answer["removed"] == [str(tmp_path / "web-2026-01-01-000000")]
    assert {"path": str(strange), "why": "it holds what is not ours: notes.txt"} in answer["kept"]
    assert run("prune", "--keep", 2, "--json", tmp_path).json["removed"] == []
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        *("other", "web-2025-01-01-000000", "web-2026-01-02-000000", "web-2026-01-03-000000")
    ]
    assert run("prune", "--keep", -1, tmp_path).code == 2


def test_a_dump_that_is_being_written_stays(tmp_path: Path, run: Any) -> None:
    """Partial and new: another host's capture, or a copy under way. Later it goes."""
    write_dump(tmp_path, "web-2026-01-02-000000")
    path = write_dump(tmp_path, "web-2026-01-01-000000", vmcore=None, vmcore_incomplete=b"KDUMP")
    dump = read_dump(path)
    now = max(item.stat().st_mtime for item in path.iterdir())
    assert is_under_way(dump, now + QUIET_SECONDS - 1)
    assert not is_under_way(dump, now + QUIET_SECONDS + 1)
    answer = run("prune", "--keep", 0, "--json", tmp_path).json
    assert answer["removed"] == []
    assert {"path": str(path), "why": "it is still being written"} in answer["kept"]
    old(path)
    assert run("prune", "--keep", 0, "--json", tmp_path).json["removed"] == [str(path)]


def test_a_prune_that_was_killed_is_finished_by_the_next(
    tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half removed, it has no longer the name of a dump; what is not ours is no leftover."""
    write_dump(tmp_path, "web-2026-01-02-000000")
    old(write_dump(tmp_path, "web-2026-01-01-000000"))

    class Killed(BaseException):
        pass

    def die(path: Path) -> None:
        (path / "vmcore").unlink()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(prune, "remove_leftover", die)
        with pytest.raises(Killed):
            main(["dumps", "prune", "--keep", "1", str(tmp_path)])
    assert [dump.path.name for dump in find_dumps(tmp_path)] == ["web-2026-01-02-000000"]
    assert [path.name for path in leftovers(tmp_path, 0)] == [".pruned-web-2026-01-01-000000"]
    (tmp_path / ".pruned-mine").mkdir()
    (tmp_path / ".pruned-a-2026-01-01-000000").symlink_to(tmp_path)
    assert run("prune", "--keep", 1, "--dry-run", tmp_path).code == 0
    assert leftovers(tmp_path, 0)
    assert run("prune", "--keep", 1, tmp_path).code == 0
    assert leftovers(tmp_path, 0) == []
    assert (tmp_path / ".pruned-mine").exists()
    assert len(find_dumps(tmp_path)) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"capture_json": {"schema": 2}}, "another version"),
        ({"capture_json": b"{"}, "capture.json is damaged"),
        ({"holes_json": {"schema": 2}}, "another version"),
        ({"vmcore": b"a form of tomorrow"}, "vmcore does not open"),
    ],
)
def test_what_is_not_known_here_never_goes(
    tmp_path: Path, run: Any, changes: dict[str, Any], words: str
) -> None:
    """Another version's dump may be the best one: it stays, older and newer ones or not, with the reason."""
    new = old(write_dump(tmp_path, "web-2026-01-02-000000"))
    other = old(write_dump(tmp_path, "web-2026-01-01-000000", **changes))
    alone = old(write_dump(tmp_path, "db-2026-01-01-000000", **changes))
    answer = run("prune", "--keep", 0, "--json", tmp_path).json
    assert answer["removed"] == []
    why = {one["path"]: one["why"] for one in answer["kept"]}
    for path in (other, alone):
        assert "it can't be judged" in why[str(path)]
        assert words in why[str(path)]
    assert new.exists()
    rows = run("list", tmp_path).out.splitlines()[1:]
    assert [row.split()[7] for row in rows] == ["yes", "?", "?"]


@pytest.mark.parametrize("what", ["listdir", "capture.json", "vmcore"])
def test_what_can_t_be_read_never_goes(
    tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """A stale directory, a bad sector: neither is a partial dump."""
    write_dump(tmp_path, "web-2026-01-02-000000")
    path = old(write_dump(tmp_path, "web-2026-01-01-000000"))
    error = OSError(errno.EIO, "Input/output error")
    real, real_open = os.listdir, os.open

    def listdir(where: Any) -> Any:
        if what == "listdir" and Path(where) == path:
            raise error
        return real(where)

    def opened(where: Any, *args: Any, **kwargs: Any) -> int:
        if what == "vmcore" and Path(where) == path / what:
            raise error
        return real_open(where, *args, **kwargs)

    monkeypatch.setattr("crashlend.dumps.directory.os.listdir", listdir)
    monkeypatch.setattr("crashlend.dumps.corefile.os.open", opened)
    if what == "capture.json":
        (path / what).unlink()
        (path / what).mkdir()  # reading it is an OSError
        old(path)
    answer = run("prune", "--keep", 0, "--json", tmp_path).json
    assert answer["removed"] == []
    (why,) = (one["why"] for one in answer["kept"] if one["path"] == str(path))
    assert "it can't be judged" in why


def test_a_dump_is_looked_at_again_before_it_goes(tmp_path: Path) -> None:
    """A file that came meanwhile, or a capture that ended: what was chosen is no longer there."""
    path = write_dump(tmp_path, "web-2026-01-01-000000", vmcore=None)
    dump = read_dump(path)
    (path / "sub").mkdir()
    (path / "sub/file").write_text("precious")
    assert prune.remove(dump) == prune.CHANGED
    assert (path / "sub/file").read_text() == "precious"
    shutil.rmtree(path / "sub")
    (path / "vmcore").write_bytes(kdump())
    assert prune.remove(dump) == prune.CHANGED
    shutil.rmtree(path)
    assert prune.remove(dump) == prune.FASTER


def test_removal_refuses_what_is_not_ours_even_at_the_last_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the rename it looks once more: the directory comes back whole under its own name."""
    path = write_dump(tmp_path, "web-2026-01-01-000000")
    dump = read_dump(path)
    (path / "notes").write_text("precious")
    before = sorted(os.listdir(path))
    monkeypatch.setattr(prune, "read_dump", lambda where: dump)
    assert prune.remove(dump) == "it holds what is not ours: notes"
    assert sorted(os.listdir(path)) == before
    assert leftovers(tmp_path, 0) == []
    leftover = tmp_path / ".pruned-web-2026-01-01-000000"
    os.rename(path, leftover)
    assert prune.remove_leftover(leftover) == "it holds what is not ours: notes"
    assert sorted(os.listdir(leftover)) == before


# --- recover, analyze ---------------------------------------------------------------------------


def test_recover(tmp_path: Path, run: Any) -> None:
    """A flattened dump in its directory becomes the vmcore beside it; check told to do so."""
    flat = flatten(kdump())
    path = write_dump(tmp_path, vmcore=None, vmcore_flat=flat, capture_json=capture_json(len(flat)))
    answer = run("check", path)
    assert answer.code == 0, answer.out
    assert f"{path}: usable after recover\n" in answer.out
    assert "hint: crashlend dumps recover" in answer.out
    told = {"schema": 1, "vmcore": str(path / "vmcore"), "bytes": len(kdump())}
    assert run("recover", path, "--json", "--dry-run").json == {
        **told,
        "dry_run": True,
        "made": True,
    }
    assert f"{path}/vmcore (would be made)" in run("recover", path, "--dry-run").out
    assert not (path / "vmcore").exists()
    assert run("recover", path, "--json").json == {**told, "dry_run": False, "made": True}
    assert (path / "vmcore").read_bytes() == kdump()
    assert read_dump(path).vmcore == path / "vmcore"
    again = run("recover", path)
    assert (again.code, "(was there)" in again.out) == (0, True)
    (path / "vmcore").write_bytes(b"mine")
    again = run("recover", path)
    assert again.code == 1
    assert "it exists" in again.err
    assert run("recover", path / "nothing").code == 1
    assert run("recover", path / "vmcore.flat", "-o", tmp_path / "elsewhere").code == 0


def raw_device(path: Path, *, state: str = "complete", vmcore: bytes = b"") -> Path:
    """A device as capture/rawdump.py describes it; the vmcore's size is rounded up to blocks."""
    capture = json.dumps(capture_json(5, vmcore={"path": "raw/vmcore.flat", "bytes": 5})).encode()
    name = "web-2026-01-01-000000"
    size = -(-len(vmcore) // 65536) * 65536
    sections = (("capture.json", 4096, len(capture)), ("dmesg.txt", 16384, len(DMESG)))
    lines = [f"section {a} {b} {c}" for a, b, c in (*sections, ("vmcore.flat", 65536, size))]
    head = "\n".join(["crashlend raw dump 1", f"state {state}", f"name {name}", *lines, "end", ""])
    data = bytearray((1 << 20) + size)
    for at, piece in ((0, head.encode()), (4096, capture), (16384, DMESG), (65536, vmcore)):
        data[at : at + len(piece)] = piece
    path.write_bytes(data)
    return path


def test_recover_from_a_raw_device(tmp_path: Path, run: Any) -> None:
    """Its files are in a directory as on any target; again it is left as it is; --mark is noted."""
    device = raw_device(tmp_path / "device", vmcore=flatten(kdump()))
    before = device.read_bytes()
    answer = run("recover", device, "--dir", tmp_path / "crash", "--json", "--dry-run", "--mark")
    assert (answer.code, answer.json["made"], answer.json["dry_run"]) == (0, True, True)
    assert [path.name for path in tmp_path.iterdir()] == ["device"]
    assert device.read_bytes() == before
    answer = run("recover", device, "--dir", tmp_path / "crash", "--json")
    assert answer.code == 0, answer.err
    assert (answer.json["made"], answer.json["complete"]) == (True, True), answer.out
    path = tmp_path / "crash/web-2026-01-01-000000"
    assert (path / "vmcore").read_bytes() == kdump()
    assert (path / "dmesg.txt").read_bytes() == DMESG
    assert path.stat().st_mode & 0o777 == 0o700
    assert {item.stat().st_mode & 0o777 for item in path.iterdir()} == {0o600}
    assert run("check", path).code == 0
    assert device.read_bytes() == before
    (path / "dmesg.txt").write_bytes(b"mine")
    again = run("recover", device, "--dir", tmp_path / "crash", "--mark")
    assert "was there" in again.out
    assert (path / "dmesg.txt").read_bytes() == b"mine"
    assert b"\nstate taken\n" in device.read_bytes()[:4096]
    assert device.read_bytes()[4096:] == before[4096:]


def test_a_raw_dump_that_was_never_finished_comes_without_vmcore(tmp_path: Path, run: Any) -> None:
    """What was saved before the dump is there, and is told to be all."""
    device = raw_device(tmp_path / "device", state="writing")
    leftover = tmp_path / "crash/.recovering-web-2026-01-01-000000"
    leftover.mkdir(parents=True)
    (leftover / "vmcore.incomplete").write_bytes(b"of a recovery that was killed")
    answer = run("recover", device, "--dir", tmp_path / "crash")
    assert answer.code == 0
    assert "there is no dump, only what was saved before it" in answer.out
    path = tmp_path / "crash/web-2026-01-01-000000"
    assert sorted(item.name for item in path.iterdir()) == ["capture.json", "dmesg.txt"]
    assert not leftover.exists()


def test_a_damaged_raw_dump_costs_no_other_file(tmp_path: Path, run: Any) -> None:
    """Its stream is cut short: an error, each time, and not marked as taken; log and report are there."""
    device = raw_device(tmp_path / "device", vmcore=flatten(kdump(), end=False))
    before = device.read_bytes()
    path = tmp_path / "crash/web-2026-01-01-000000"
    for _ in range(2):
        answer = run("recover", device, "--dir", tmp_path / "crash", "--mark")
        assert answer.code == 1
        assert "flattened dump" in answer.err
        assert f"what was saved beside it is in {path}" in answer.err
        assert sorted(item.name for item in path.iterdir()) == ["capture.json", "dmesg.txt"]
    assert device.read_bytes() == before
    # a device that can be read after all: the next run brings the rest
    raw_device(device, vmcore=flatten(kdump()))
    assert run("recover", device, "--dir", tmp_path / "crash", "--mark").code == 0
    assert (path / "vmcore").read_bytes() == kdump()
    assert b"\nstate taken\n" in device.read_bytes()[:4096]


def test_what_a_killed_recovery_left_goes_when_it_is_old(tmp_path: Path, run: Any) -> None:
    """It may be at work for an hour; then prune removes it, whatever is on the device by then."""
    left = tmp_path / ".recovering-web-2026-01-01-000000"
    left.mkdir()
    (left / "dmesg.txt").write_bytes(DMESG)
    assert run("prune", "--keep", 1, tmp_path).code == 0
    assert left.exists()
    old(left)
    assert run("prune", "--keep", 1, "--dry-run", tmp_path).code == 0
    assert left.exists()
    assert run("prune", "--keep", 1, tmp_path).code == 0
    assert not left.exists()


def test_analyze_without_drgn_says_how_to_get_it(
    tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line and a hint, no traceback."""
    real = builtins.__import__

    def no_drgn(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "drgn":
            raise ImportError("No module named 'drgn'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_drgn)
    answer = run("analyze", write_dump(tmp_path))
    assert answer.code == 1
    assert "crashlend: cannot analyze a dump: drgn: No module named 'drgn'" in answer.err
    assert "crashlend[analyze]" in answer.err


def stand_in(monkeypatch: pytest.MonkeyPatch, **methods: Any) -> None:
    """A module drgn whose Program has these methods alone."""
    module = types.ModuleType("drgn")
    module.Program = type("Program", (), methods)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "drgn", module)


def test_a_drgn_that_is_too_old_is_told_as_such(
    tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before 0.2 it has no finders to be chosen: its fault, not the dump's."""
    stand_in(monkeypatch, set_core_dump=None, load_debug_info=None, main_module=None)
    answer = run("analyze", write_dump(tmp_path), "--vmlinux", "/dev/null")
    assert answer.code == 1
    assert "the drgn that is installed here has no set_enabled_debug_info_finders()" in answer.err
    assert "drgn 0.2 or newer is needed" in answer.err


def test_what_drgn_says_of_a_core_without_a_main_module_is_told(
    tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, no traceback."""

    def fine(self: Any, *_: Any) -> None:
        return None

    def none(self: Any) -> Any:
        raise LookupError("module not found")

    names = ("set_core_dump", "set_enabled_debug_info_finders", "load_debug_info")
    stand_in(monkeypatch, main_module=none, **dict.fromkeys(names, fine))
    answer = run("analyze", write_dump(tmp_path), "--vmlinux", "/dev/null")
    assert answer.code == 1
    assert "drgn: module not found" in answer.err


def test_a_made_up_dump_is_refused_by_drgn_in_words(tmp_path: Path, run: Any) -> None:
    """What drgn itself says, where it is installed: no traceback."""
    pytest.importorskip("drgn")
    path = write_dump(tmp_path)
    answer = run("analyze", path)
    assert answer.code == 1
    assert "no debug symbols" in answer.err
    (tmp_path / "vmlinux").write_bytes(b"no ELF")
    answer = run("analyze", path, "--vmlinux", tmp_path / "vmlinux")
    assert answer.code == 1
    assert "crashlend: cannot analyze" in answer.err


def test_why_an_address_is_missing(tmp_path: Path) -> None:
    """Lent, reserved, or left out by the level: as far as it can be told."""
    dump = read_dump(write_dump(tmp_path))
    reserved = holes_named(dump, "reservation")
    assert reserved.to_json() == [[0x60000000, 0x61000000]]
    assert explain(0x40000000, dump.lent, reserved, 31) == Missing.LENT
    assert explain(0x60000000, dump.lent, reserved, 31) == (
        "it is the crash kernel's by the boot command line"
    )
    assert "level 31" in explain(0x100000, dump.lent, reserved, 31)
    assert "level 31" in explain(None, dump.lent, reserved, 31)
    assert explain(0x100000, dump.lent, reserved, 0) == "not in the dump"
    for damaged in (None, [], [None], [{"why": "reservation", "ranges": [[1], "x", None]}]):
        made_up = Dump(tmp_path, "", "", holes={"holes": damaged})
        assert holes_named(made_up, "reservation") == Ranges()


def test_symbols_are_found_where_distributions_put_them(tmp_path: Path) -> None:
    """Debian's place and Fedora's; a release is no path."""
    assert find_vmlinux(RELEASE, tmp_path) is None
    for place in (f"lib/modules/{RELEASE}/vmlinux", f"boot/vmlinux-{RELEASE}"):
        path = tmp_path / "usr/lib/debug" / place
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")
        assert find_vmlinux(RELEASE, tmp_path) == path
    assert find_vmlinux("../../x", tmp_path) is None
    assert find_vmlinux("", tmp_path) is None


# --- places -------------------------------------------------------------------------------------


def test_places_of_mounted_targets(tmp_path: Path) -> None:
    """By UUID, label or device, and NFS; the directory is named from the file system's own root."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text(
        "30 1 254:1 / / rw - ext4 /dev/vda1 rw\n"
        "31 30 254:17 /sub /bind rw - ext4 /dev/vdb1 rw\n"
        "32 30 254:17 / /mnt/dumps rw - ext4 /dev/vdb1 rw\n"
        "33 30 0:50 / /nfs rw - nfs4 srv:/export/d rw\n"
    )
    (tmp_path / "sys/class/block/vdb1").mkdir(parents=True)
    (tmp_path / "sys/class/block/vdb1/dev").write_text("254:17\n")
    (tmp_path / "dev/disk/by-uuid").mkdir(parents=True)
    (tmp_path / "dev/vdb1").write_text("")
    (tmp_path / "dev/disk/by-uuid/1-2").symlink_to("../../vdb1")
    on_disk = [tmp_path / "mnt/dumps/var/crash"]
    assert find_places(tmp_path, "", "/var/crash") == [tmp_path / "var/crash"]
    assert find_places(tmp_path, "UUID=1-2", "/var/crash") == on_disk
    assert find_places(tmp_path, "/dev/vdb1 ssh://u@h/d UUID=1-2", "/var/crash") == on_disk
    assert find_places(tmp_path, "nfs://srv/export/d?vers=3 /dev/vdb1", "/var/crash") == [
        tmp_path / "nfs/var/crash",
        *on_disk,
    ]
    for target in ("UUID=9", "raw:/dev/vdb1", "/dev/vdz", "'"):
        with pytest.raises(CrashlendError):
            find_places(tmp_path, target, "/var/crash")
