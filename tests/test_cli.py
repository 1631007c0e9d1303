# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command line on bad input: one line, one hint, the right exit code, the host unchanged.

Verbs run in this process, so that any exception but those that main() turns into words fails the
test. The host is a tree below tmp_path; memory blocks and kexec are fakes.
"""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from build import GIB, HUGE, MIB, RESERVATION, bz_image, host, pci_function, write_tree
from crashlend import config
from crashlend.cli import hosts, load_verb, status_verb
from crashlend.cli.main import main
from crashlend.errors import CrashlendError, RefusedError
from crashlend.hostfiles import TreeFiles
from crashlend.system import alarm, hotplug, kept, kexec, loading
from crashlend.system.state import State, locked
from crashlend.system.state import State as RealState
from test_lending import FakeBlocks, Machine


@dataclass
class Answer:
    """What one run of a verb printed and ended with."""

    code: int
    out: str
    err: str

    def assert_error(self, code: int, words: str, hint: str = "") -> None:
        """Assert one line ``crashlend: …``, one line ``hint: …`` and the exit code."""
        lines = [line for line in self.err.splitlines() if not line.startswith("  ")]
        assert len(lines) == 2, self.err
        assert lines[0].startswith("crashlend: ")
        assert words in lines[0]
        assert lines[1].startswith("hint: ")
        assert hint in lines[1]
        assert self.code == code
        assert self.out == ""


def run(*args: object) -> Answer:
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main([str(a) for a in args])
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Answer(code, out.getvalue(), err.getvalue())


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    """--kernel and --initramfs with good files."""
    (tmp_path / "vmlinuz").write_bytes(bz_image())
    (tmp_path / "initrd").write_bytes(bytes(2 * MIB))
    return ["--kernel", str(tmp_path / "vmlinuz"), "--initramfs", str(tmp_path / "initrd")]


def tree(tmp_path: Path, **kind: Any) -> Path:
    return write_tree(tmp_path / "root", host(**kind))


# --- plan --root ---------------------------------------------------------------------------------


def test_plan_json_parses_and_has_schema_1(tmp_path: Path, images: list[str]) -> None:
    """``plan --json`` is one JSON value with schema 1 and the whole plan."""
    answer = run("plan", "--json", "--root", tree(tmp_path), *images)
    value = json.loads(answer.out)
    assert (answer.code, answer.err, value["schema"]) == (0, "", 1)
    assert value["layout"]["segments"]
    assert value["costs"]["shared_bytes"] == GIB


def test_plan_for_people_has_the_words_of_the_design(tmp_path: Path, images: list[str]) -> None:
    """Rows say "taken from production" and "shared until the crash", with figures."""
    answer = run("plan", "--root", tree(tmp_path), *images)
    rows = dict(line.split("  ", 1) for line in answer.out.splitlines() if "  " in line)
    assert rows["taken from production"].strip().startswith("256 MiB")
    assert rows["shared until the crash"].strip().startswith("1024 MiB")
    assert "not planned to the byte" not in answer.out


def test_a_plan_names_what_is_switched_off(tmp_path: Path, images: list[str]) -> None:
    """The row has how many functions, -v each with its class, driver and what it is now."""
    files = {
        **pci_function("0000:00:04.0", 0x010802, "nvme"),
        **pci_function("0000:00:05.0", 0x020000, master=False),
    }
    root = tree(tmp_path, files=files)
    words = ("plan", "--dma-quiesce", "wait=3,bus-masters-off", "--root", root, *images)
    answer = run(*words, "-v")
    assert "bus mastering of 2 functions off, then 3 s: " in answer.out
    assert "0000:00:04.0  class 010802  nvme, on now" in answer.out
    assert "0000:00:05.0  class 020000  no driver, off now" in answer.out
    assert "0000:00:04.0" not in run(*words).out


def test_a_plan_without_root_is_labelled_coarse_and_names_sudo(tmp_path: Path) -> None:
    """Hidden addresses: exit 0, a picture, the label and the line to type."""
    answer = run("plan", "--root", tree(tmp_path, hidden=True))
    assert answer.code == 0
    assert "this is a coarse plan: /proc/iomem can't be read" in answer.out
    assert "sudo crashlend plan" in answer.out
    assert "GiB" in answer.out


def test_garbage_in_iomem_is_named_and_no_traceback(tmp_path: Path, images: list[str]) -> None:
    """The plan is coarse and says which line of the file is off."""
    root = tree(tmp_path, files={"/proc/iomem": b"00001000-0009fbff : System RAM\n\xff\0\n"})
    answer = run("plan", "--root", root, *images)
    assert answer.code == 0
    assert "line 2 is not START-END" in answer.out


KERNELS: dict[str, tuple[bytes, str]] = {
    "truncated": (bz_image(cut=4096), "truncated: 4096 bytes are missing"),
    "header only": (bz_image()[:0x210], "ends before its field"),
    "foreign": (b"\x7fELF" + bytes(4000), "no x86 boot header"),
    "text": (b"hello\n", "ends before its field"),
    "empty": (b"", "it is empty"),
    "32-bit": (bz_image(xloadflags=0), "no 64-bit entry point"),
    "ancient": (bz_image(protocol=0x0204), "boot protocol 2.04"),
}


@pytest.mark.parametrize("kind", KERNELS)
def test_a_bad_kernel_image_is_an_error(kind: str, tmp_path: Path, images: list[str]) -> None:
    """Named by --kernel and unusable: exit 1 with the file, the reason and a hint."""
    content, words = KERNELS[kind]
    Path(images[1]).write_bytes(content)
    answer = run("plan", "--root", tree(tmp_path), *images)
    answer.assert_error(1, words)
    assert images[1] in answer.err


@pytest.mark.parametrize(("index", "what"), [(1, "the kernel image"), (3, "the initramfs")])
def test_a_missing_file_is_an_error(
    index: int, what: str, tmp_path: Path, images: list[str]
) -> None:
    """A kernel or initramfs that is not there: exit 1, the path and a hint."""
    Path(images[index]).unlink()
    run("plan", "--root", tree(tmp_path), *images).assert_error(1, f"cannot read {what}")


@pytest.mark.parametrize(
    ("kind", "words", "code", "message", "hint"),
    [
        ({"reservations": []}, [], 1, "no memory is reserved", "crashkernel=1G,cma"),
        (
            {"reservations": [(RESERVATION[0], RESERVATION[0] + 24 * MIB)]},
            ["--placement", "reserved"],
            1,
            "it has 24.0 MiB; the crash kernel needs",
            "crashkernel=",
        ),
        ({"kexec_load_disabled": True}, [], 11, "no crash kernel can be loaded", "sysctl"),
        (
            {"lockdown": "confidentiality", "files": {"/proc/kcore": None}},
            [],
            11,
            "kexec_file_load can't lend",
            "--lend 0",
        ),
        (
            {"reservations": [(RESERVATION[0], RESERVATION[0] + 24 * MIB)]},
            ["--syscall", "file"],
            1,
            "too small for kexec_file_load",
            "crashkernel=",
        ),
        ({"lockdown": "integrity"}, ["--syscall", "load"], 11, "lockdown", "--syscall file"),
        ({}, ["--dump-level", "1"], 11, "dump level 1", "--allow-missing-user-data"),
        ({}, ["--lender", "cma"], 1, "lender cma has nothing", "--lender movable"),
        ({}, ["--lend", "much"], 2, "'much' is not allowed", "512M"),
        ({}, ["--dump-level", "99"], 2, "'99' is not allowed", "from 0 to 31"),
        ({}, ["--nonsense"], 2, "--nonsense", "--help"),
        ({"files": {"/proc/kcore": None}}, [], 1, "cannot build the core header", "root"),
        ({"cmdline": b"x" * 5000 + b" crashkernel=1G,cma\n"}, [], 1, "command line", ""),
        ({"log": [b"Memory Encryption Features active: AMD SEV"]}, [], 11, "AMD SEV", "--lend 0"),
    ],
)
def test_what_cannot_be_planned_is_said_in_one_line(
    kind: dict[str, Any],
    words: list[str],
    code: int,
    message: str,
    hint: str,
    tmp_path: Path,
    images: list[str],
) -> None:
    """Every refusal and error of planning: line, hint, exit code as designed."""
    answer = run("plan", "--root", tree(tmp_path, **kind), *images, *words)
    answer.assert_error(code, message, hint)


def test_no_movable_memory_is_said_with_reasons(tmp_path: Path, images: list[str]) -> None:
    """Every block has huge pages: nothing is shared, and -v says why, block by block."""
    root = tree(tmp_path, census={i: [(HUGE, 1)] for i in range(40)})
    answer = run("plan", "--census", "-v", "--root", root, *images)
    assert answer.code == 0
    assert "0 MiB of 1024 MiB asked" in answer.out
    assert "memory block 33 is passed over: it has huge pages" in answer.out


@pytest.mark.parametrize("verb", ["plan", "status"])
@pytest.mark.parametrize("kind", ["absent", "empty", "file", "binary", "archive cut"])
def test_a_root_that_is_no_snapshot_is_an_error(verb: str, kind: str, tmp_path: Path) -> None:
    """--root on anything else: exit 1, line and hint."""
    place = tmp_path / "place"
    if kind == "empty":
        place.mkdir()
    elif kind == "file":
        place.write_text("no snapshot\n")
    elif kind == "binary":
        place.write_bytes(bytes(range(256)) * 40)
    elif kind == "archive cut":
        place.write_bytes(b"\x1f\x8b\x08\x00\x0e\x96\x03k\x02\xff\xed\x9d")
    run(verb, "--root", place).assert_error(1, str(place), "snapshot")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """One tree and one payload for many examples."""
    base = tmp_path_factory.mktemp("shared")
    root = write_tree(base / "root", host())
    (base / "vmlinuz").write_bytes(bz_image(kernel=bytes(4096)))
    (base / "initrd").write_bytes(bytes(4096))
    return root, ["--kernel", str(base / "vmlinuz"), "--initramfs", str(base / "initrd")]


@given(line=st.binary(max_size=300))
@settings(max_examples=150, deadline=None)
def test_any_bytes_as_command_line_end_in_a_plan_or_in_words(
    shared: tuple[Path, list[str]], line: bytes
) -> None:
    """Production's command line may be any byte string: plan, plan -v and plan --json hold."""
    root, files = shared
    (root / "proc/cmdline").write_bytes(line + b" crashkernel=256M,cma\n")
    for words in (["--json"], ["-v"]):
        answer = run("plan", "--root", root, *files, *words)
        assert answer.code in (0, 1, 2, 11)
        if answer.code:
            lines = answer.err.splitlines()
            assert lines[0].startswith("crashlend: ")
            assert len(lines) <= 2
        elif words == ["--json"]:
            assert json.loads(answer.out)["schema"] == 1
        else:
            assert all(c.isprintable() for c in "".join(answer.out.split("\n")))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_of_any_encoding_gets_an_answer(
    encoding: str, tmp_path: Path, images: list[str]
) -> None:
    """Letters that the terminal cannot show are escaped, not a traceback."""
    root = tree(tmp_path, cmdline="name=é漢 crashkernel=1G,cma\n".encode() + b"\xff")
    done = subprocess.run(
        [sys.executable, "-m", "crashlend", "plan", "-v", "--root", root, *images],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr


# --- status --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loaded", "code"), [(True, 0), (False, 3), (None, 4)])
def test_status_ends_as_kdumpctl_s(loaded: bool | None, code: int, tmp_path: Path) -> None:
    """0 loaded, 3 not loaded, 4 unknown; JSON says the same."""
    root = tree(tmp_path, crash_loaded=loaded)
    answer = run("status", "--json", "--root", root)
    assert answer.code == code
    assert json.loads(answer.out)["loaded"] is loaded
    assert run("status", "--root", root).code == code


@pytest.mark.parametrize(
    "state",
    [b"[]", b"{", b"5", b'{"blocks": 5}', b'{"blocks": {"x": 1}}', b'{"loaded": 7}', b"\xff"],
)
def test_status_survives_a_damaged_state(state: bytes, tmp_path: Path) -> None:
    """Whatever is in the state file, status answers."""
    root = tree(tmp_path, files={"/run/crashlend/state.json": state})
    answer = run("status", "--root", root)
    assert answer.code == 3
    assert "not loaded" in answer.out


def test_status_names_blocks_that_are_not_lent_any_more(tmp_path: Path) -> None:
    """A lent block that no image uses, in a kernel zone, offline or gone: each with its remedy."""
    root = tree(tmp_path, lent=[36, 37, 38, 99], movable=[36], offline=[38])
    problems = json.loads(run("status", "--json", "--root", root).out)["problems"]
    assert [re.findall("block ([0-9]+) is", p)[0] for p in problems] == ["36", "37", "38", "99"]
    assert all("crashlend" in problem for problem in problems)


# --- load, unload on a fake host -----------------------------------------------------------------


@dataclass
class FakeHost:
    """The running host in fakes: a tree, a machine of memory blocks, a kernel that takes images."""

    root: Path
    machine: Machine
    loaded: bool = False
    loads: int = 0
    fail_with: list[BaseException] = field(default_factory=list)

    @property
    def state(self) -> State:
        return RealState(self.root / "run/crashlend/state.json")

    def refresh(self) -> None:
        """Write the machine's state where read_facts looks for it."""
        for index, zone in self.machine.zone.items():
            base = self.root / f"sys/devices/system/memory/memory{index}"
            (base / "state").write_text("online" if zone else "offline")
            (base / "valid_zones").write_text(zone or "none")
        (self.root / "sys/kernel/kexec_crash_loaded").write_text(f"{int(self.loaded)}\n")

    def blocks(self) -> FakeBlocks:
        return FakeBlocks(self.machine)

    def load_image(self, _entry: int, _segments: object) -> None:
        self.loads += 1
        self.loaded = False  # the kernel drops the old image first
        if self.fail_with:
            raise self.fail_with.pop()
        self.loaded = True

    def unload_image(self) -> None:
        self.loaded = False


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    """Replace everything by which load and unload reach the running host."""
    some = FakeHost(tree(tmp_path, files={"/proc/kpageflags": None}), Machine())
    put_in_place(some, monkeypatch)
    return some


def put_in_place(some: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ``some`` the running host of the verbs."""
    low = dict.fromkeys(range(1, 24), "DMA32")
    some.machine.zone = {**low, **some.machine.zone}

    def tree_files(_root: Path) -> TreeFiles:
        some.refresh()
        return TreeFiles(some.root)

    monkeypatch.setattr(loading, "TreeFiles", tree_files)
    monkeypatch.setattr(load_verb, "open_host", tree_files)
    monkeypatch.setattr(loading, "State", lambda: some.state)
    for module in (loading, hotplug):
        lock = partial(locked, some.root / "run/crashlend")
        monkeypatch.setattr(module, "locked", lock)
    monkeypatch.setattr(hotplug, "State", lambda: some.state)
    monkeypatch.setattr(hotplug, "EVENTS", some.root / "run/crashlend/events")
    monkeypatch.setattr(loading, "MemoryBlocks", lambda _bytes: some.blocks())
    monkeypatch.setattr(kexec, "load", some.load_image)
    monkeypatch.setattr(kexec, "unload", some.unload_image)
    monkeypatch.setattr(kexec, "crash_loaded", lambda: some.loaded)
    monkeypatch.setattr(kexec, "_call", None)  # whatever slips through fails
    monkeypatch.setattr(kept, "DIRECTORY", some.root / "var/lib/crashlend/loaded")
    monkeypatch.setattr(alarm, "KMSG", str(some.root / "kmsg"))
    (some.root / "kmsg").touch()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(hosts, "config", _NoFiles(config))


class _NoFiles:
    """The module config, with settings of this machine left out."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def load_settings(self, _root: Path, flags: dict[str, object]) -> Any:
        return self.config.load_settings(Path("/nonexistent"), flags)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.config, name)


def untouched(some: FakeHost) -> bool:
    """Whether nothing was taken offline, loaded or recorded as lent."""
    return some.machine.log == [] and some.loads == 0 and some.state.blocks == {}


def test_load_lends_loads_and_is_idempotent(fake: FakeHost, images: list[str]) -> None:
    """Eight blocks become movable, the image is loaded; a second load changes nothing."""
    answer = run("load", "--json", *images)
    value = json.loads(answer.out)
    assert (answer.code, value["schema"], value["already"]) == (0, 1, False)
    assert value["plan"]["costs"]["shared_bytes"] == GIB
    assert fake.machine.movable_blocks() == list(range(32, 40))
    assert fake.loaded
    log = copy.copy(fake.machine.log)
    again = json.loads(run("load", "--json", *images).out)
    assert again["already"] is True
    assert (fake.machine.log, fake.loads) == (log, 1)
    assert json.loads(run("reload", "--json", *images).out)["already"] is False
    assert (fake.machine.log, fake.loads) == (log, 2)


def test_unload_makes_all_blocks_ordinary_again_and_is_idempotent(
    fake: FakeHost, images: list[str]
) -> None:
    """The image is gone, no block is movable, no record is left; twice is as once."""
    run("load", *images)
    for _ in range(2):
        answer = run("unload", "--json")
        assert (answer.code, json.loads(answer.out)["still_movable"]) == (0, [])
        assert fake.machine.movable_blocks() == []
        assert (fake.state.blocks, fake.state.loaded, fake.loaded) == ({}, None, False)


def test_fewer_asked_for_are_given_back_after_the_new_load(
    fake: FakeHost, images: list[str]
) -> None:
    """Surplus blocks go home only when no loaded image uses them."""
    run("load", *images)
    assert run("load", "--lend", "256M", *images).code == 0
    assert fake.machine.movable_blocks() == [38, 39]
    assert run("load", "--lend", "0", *images).code == 0
    assert fake.machine.movable_blocks() == []
    assert fake.loads == 3


def test_dry_run_changes_nothing(fake: FakeHost, images: list[str]) -> None:
    """--dry-run of load plans it all and touches nothing."""
    answer = run("load", "--dry-run", "--json", *images)
    assert json.loads(answer.out)["schema"] == 1
    assert untouched(fake)


def test_load_without_root_is_refused(
    fake: FakeHost, images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not root: one line and the sudo hint; unload alike."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    run("load", *images).assert_error(1, "not root", "sudo")
    run("unload").assert_error(1, "not root", "sudo")
    assert untouched(fake)


@pytest.mark.parametrize(
    ("files", "words", "code", "message"),
    [
        ({"sys/kernel/kexec_crash_loaded": None}, [], 1, "cannot load a crash kernel"),
        ({"proc/sys/kernel/kexec_load_disabled": b"1\n"}, [], 11, "kexec_load_disabled is 1"),
        (
            {
                "sys/kernel/security/lockdown": b"none integrity [confidentiality]",
                "proc/kcore": None,
            },
            [],
            11,
            "kexec_file_load can't lend",
        ),
        ({"proc/iomem": b"00001000-0009fbff : System RAM\n"}, [], 1, "no memory is reserved"),
        ({}, ["--dump-level", "0"], 11, "dump level 0"),
        ({"sys/hypervisor/type": b"xen"}, [], 11, "Xen"),
    ],
)
def test_load_refuses_before_it_touches_anything(
    files: dict[str, bytes | None],
    words: list[str],
    code: int,
    message: str,
    fake: FakeHost,
    images: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No kexec, disabled, lockdown, no reservation, policy, Xen: host unchanged."""
    monkeypatch.setattr(FakeHost, "refresh", lambda _self: None)
    for path, content in files.items():
        place = fake.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content) if content is not None else place.unlink()
    run("load", *images, *words).assert_error(code, message)
    assert untouched(fake)


@pytest.mark.parametrize("kind", KERNELS)
def test_load_of_a_bad_kernel_leaves_the_host_unchanged(
    kind: str, fake: FakeHost, images: list[str]
) -> None:
    """The image is read and checked before a block or the old image is touched."""
    fake.loaded = True
    Path(images[1]).write_bytes(KERNELS[kind][0])
    run("load", *images).assert_error(1, KERNELS[kind][1])
    assert untouched(fake)
    assert fake.loaded


@pytest.mark.parametrize(
    "error",
    [
        CrashlendError("the kernel refused the crash image (ENOMEM)", "no room", hint="more"),
        RefusedError("the kernel refused the crash image (EPERM)", "no", hint="root"),
    ],
)
def test_a_failed_load_gives_the_memory_back_and_says_that_no_image_is_there(
    error: CrashlendError, fake: FakeHost, images: list[str]
) -> None:
    """Hazard 14: kexec_load drops the old image first; the blocks of this run go home."""
    fake.fail_with = [error]
    run("load", *images).assert_error(
        error.exit_code, "refused the crash image", "there is no crash kernel loaded now"
    )
    assert fake.machine.movable_blocks() == []
    assert (fake.state.blocks, fake.state.loaded) == ({}, None)


def test_a_failed_lending_gives_the_memory_back(fake: FakeHost, images: list[str]) -> None:
    """An error after some blocks were taken leaves none of them movable, and no load is tried."""
    fake.machine.leaky = {37}
    run("load", *images).assert_error(1, "block 37 came back smaller")
    assert fake.machine.offline_blocks() == []
    assert fake.machine.movable_blocks() == []
    assert (fake.state.blocks, fake.loads) == ({}, 0)


def test_blocks_of_an_image_that_may_be_loaded_are_not_given_back(
    fake: FakeHost, images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hazard 15: interrupted after the kernel took the image, its memory must stay lent."""
    real = fake.load_image

    def interrupted(entry: int, segments: object) -> None:
        real(entry, segments)
        raise KeyboardInterrupt

    monkeypatch.setattr(kexec, "load", interrupted)
    answer = run("load", *images)
    assert answer.code == 130
    assert fake.loaded
    assert fake.machine.movable_blocks() == list(range(32, 40)) == sorted(fake.state.blocks)


def test_lend_min_not_reached_is_a_failure_that_leaves_nothing(
    fake: FakeHost, images: list[str]
) -> None:
    """Too few blocks go: error with both figures, blocks back, the old image untouched."""
    fake.machine.busy = set(range(1, 39))
    fake.loaded = True
    answer = run("load", "--lend-min", "512M", *images)
    answer.assert_error(1, "128 MiB of the 512 MiB", "lend_min")
    assert fake.machine.movable_blocks() == []
    assert (fake.loaded, fake.loads) == (True, 0)


def test_a_second_crashlend_is_kept_out(fake: FakeHost, images: list[str]) -> None:
    """The lock is held: load and unload say so and change nothing."""
    with locked(fake.root / "run/crashlend"):
        run("load", *images).assert_error(1, "another crashlend is at work")
        run("unload").assert_error(1, "another crashlend is at work")
    assert untouched(fake)


def test_load_puts_right_what_an_interrupted_run_left(fake: FakeHost, images: list[str]) -> None:
    """A block that kill -9 left offline is online again before anything else is done."""
    state = fake.state
    state.set_block(35, "taking", "Normal")
    fake.machine.zone[35] = None
    assert run("load", *images).code == 0
    assert fake.machine.offline_blocks() == []


# --- status on a fake host -----------------------------------------------------------------------


@pytest.fixture
def told(fake: FakeHost, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    """The fake host as ``status`` sees it, too."""

    def tree_files(_root: Path) -> TreeFiles:
        fake.refresh()
        return TreeFiles(fake.root)

    monkeypatch.setattr(hosts, "open_host", tree_files)
    monkeypatch.setattr(status_verb, "open_host", tree_files)
    monkeypatch.setattr(status_verb, "is_in_memory", lambda _known: True)
    return fake


@pytest.mark.parametrize("step", ["taking", "returning"])
def test_status_brings_back_what_a_killed_run_left_offline(step: str, told: FakeHost) -> None:
    """The block is online and off the books; said on stderr and in JSON; nothing is wrong then."""
    told.state.set_block(35, step, "Normal")
    told.machine.zone[35] = None
    answer = run("status", "--json")
    value = json.loads(answer.out)
    assert (answer.code, value["recovered"], value["problems"]) == (3, [35], [])
    assert "memory block 35 was left offline" in answer.err
    assert told.machine.zone[35] == "Normal"
    assert told.state.blocks == {}
    assert json.loads(run("status", "--json").out)["recovered"] == []


def test_status_finishes_the_books_of_a_block_that_is_movable_already(told: FakeHost) -> None:
    """Killed before "lent" was recorded: it is recorded now, and status says that nobody uses it."""
    told.state.set_block(35, "taking", "Normal")
    told.machine.zone[35] = "Movable"
    value = json.loads(run("status", "--json").out)
    assert value["recovered"] == []
    assert told.state.blocks[35]["step"] == "lent"
    assert [("block 35" in p, "unload" in p) for p in value["problems"]] == [(True, True)]


def test_status_changes_nothing_where_nothing_is_half_way(
    told: FakeHost, images: list[str]
) -> None:
    """Lent blocks, even one that somebody took offline, are left: the image may count on them."""
    run("load", *images)
    log, before = list(told.machine.log), told.state.path.stat()
    value = json.loads(run("status", "--json").out)
    assert (value["by_crashlend"], value["problems"], value["recovered"]) == (True, [], [])
    told.machine.zone[39] = None
    value = json.loads(run("status", "--json").out)
    assert ["block 39" in problem for problem in value["problems"]] == [True]
    assert (told.machine.log, told.state.path.stat()) == (log, before)


def test_status_leaves_the_blocks_of_a_crashlend_at_work(told: FakeHost) -> None:
    """The lock is held: status reports, says why it does not help, and touches nothing."""
    told.state.set_block(35, "taking", "Normal")
    told.machine.zone[35] = None
    with locked(told.root / "run/crashlend"):
        answer = run("status", "--json")
    assert "another crashlend is at work" in answer.err
    value = json.loads(answer.out)
    assert (answer.code, value["recovered"]) == (3, [])
    assert "block 35 is offline" in value["problems"][0]
    assert told.machine.log == []


def test_status_of_others_than_root_changes_nothing(
    told: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads what it may read."""
    told.state.set_block(35, "taking", "Normal")
    told.machine.zone[35] = None
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert json.loads(run("status", "--json").out)["recovered"] == []
    assert told.machine.log == []


def test_status_of_a_snapshot_changes_nothing(told: FakeHost, tmp_path: Path) -> None:
    """With --root nothing is put right, root or not: it is another host's state."""
    told.state.set_block(35, "taking", "Normal")
    told.machine.zone[35] = None
    told.refresh()
    run("status", "--root", told.root)
    assert told.machine.log == []


def test_status_answers_although_a_block_does_not_come_back(told: FakeHost) -> None:
    """It says so, with what to type, and still lists the problem; likewise with damaged books."""
    told.state.set_block(35, "taking", "Normal")
    told.machine.zone[35] = None
    told.machine.no_online = {(35, f"online{way}") for way in ("", "_kernel", "_movable")}
    answer = run("status", "--json")
    assert "memory35/state" in answer.err
    value = json.loads(answer.out)
    assert (answer.code, value["recovered"], len(value["problems"])) == (3, [], 1)
    told.state.path.write_bytes(b"{")
    answer = run("status", "--json")
    assert (answer.code, json.loads(answer.out)["by_crashlend"]) == (3, None)
    assert "damaged" in answer.err


@pytest.mark.parametrize("cut", ["unload", "surplus"])
def test_status_names_movable_blocks_that_no_image_uses(
    cut: str, told: FakeHost, images: list[str]
) -> None:
    """An unload or a smaller load that was killed half way: production lacks them for nothing."""
    run("load", "--lend", "256M", *images)
    if cut == "unload":
        told.state.set_loaded(None)
        told.loaded = False
        idle = ["38", "39"]
    else:
        told.machine.zone[37] = "Movable"
        told.state.set_block(37, "lent", "Normal")
        idle = ["37"]
    problems = json.loads(run("status", "--json").out)["problems"]
    assert [re.findall("block ([0-9]+) is movable, but", p)[0] for p in problems] == idle


def test_a_damaged_state_file_stops_load(fake: FakeHost, images: list[str]) -> None:
    """What is lent is not guessed at: line and hint, nothing touched."""
    place = fake.root / "run/crashlend/state.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(b"{")
    run("load", *images).assert_error(1, "it is damaged")
    assert (fake.machine.log, fake.loads) == ([], 0)


def test_words_that_are_no_verb_are_usage_errors() -> None:
    """An unknown verb, no verb and an unknown flag: exit 2, line and hint."""
    for words in (["dance"], [], ["plan", "--dance"], ["snapshot"]):
        run(*words).assert_error(2, "", "--help")


def test_snapshot_writes_what_root_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: list[str]
) -> None:
    """The file of ``crashlend snapshot`` gives ``plan --root`` the same plan as the host."""
    from crashlend.cli import snapshot_verb

    root = tree(tmp_path)
    monkeypatch.setattr(snapshot_verb, "open_host", lambda _root: TreeFiles(root))
    file = tmp_path / "host.tar.gz"
    assert run("snapshot", file).code == 0
    packed = run("plan", "--json", "--root", file, *images)
    assert packed.code == 0
    assert json.loads(packed.out) == json.loads(run("plan", "--json", "--root", root, *images).out)
