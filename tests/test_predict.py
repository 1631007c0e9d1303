# SPDX-License-Identifier: LGPL-2.1-or-later
"""``crashlend predict``: what each word does, the traps, the line that works on every kernel."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import build
from crashlend.cli.main import main
from crashlend.crashkernel.advice import Advice, advise, misspelt, propose
from crashlend.crashkernel.boot import predict
from crashlend.crashkernel.early import boot_memory, map_of_size
from crashlend.crashkernel.generations import every_kernel, kernel_for
from crashlend.crashkernel.words import explain

if TYPE_CHECKING:
    from pathlib import Path

M, G = 1 << 20, 1 << 30


def words(*values: str) -> bytes:
    return " ".join(f"crashkernel={value}" for value in values).encode()


def effects(line: bytes, version: str = "7.3", memory: int = 8 * G, **more: Any) -> list[str]:
    kernel = kernel_for(version, **more)
    prediction = predict(boot_memory(map_of_size(memory), line, kernel), line, kernel)
    return [word.effect for word in explain(line, kernel, prediction)]


def advice(line: bytes, version: str = "7.3", memory: int = 8 * G) -> Advice:
    kernel = kernel_for(version)
    boot = boot_memory(map_of_size(memory), line, kernel)
    return advise(boot, line, kernel, predict(boot, line, kernel))


# --- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "version", "told"),
    [
        (
            words("1G,cma", "256M"),
            "7.3",
            [
                "1024 MiB that production uses until the crash",
                "256 MiB kept for the crash kernel",
            ],
        ),
        (
            words("1G,cma", "256M"),
            "6.12",
            [
                "this kernel does not know ,cma and takes it for a plain word; "
                "ignored: crashkernel=256M counts",
                "256 MiB kept for the crash kernel",
            ],
        ),
        (
            words("256M", "1G,cma"),
            "6.1",
            [
                "ignored: crashkernel=1G,cma counts",
                "this kernel does not know ,cma and takes it for a plain word; bad, the kernel says "
                '"crashkernel: unrecognized char: ," and reserves nothing at all',
            ],
        ),
        (
            words("128M", "256M", "1G,cma", "2G,cma"),
            "7.3",
            [
                "ignored: crashkernel=256M counts",
                "256 MiB kept for the crash kernel",
                "ignored: crashkernel=2G,cma counts",
                "2048 MiB that production uses until the crash",
            ],
        ),
        (
            words("1G,cma"),
            "7.3",
            ["not looked at: without a main word that works nothing is reserved"],
        ),
        (
            words("256M", "512M,high", "64M,low"),
            "7.3",
            [
                "256 MiB kept for the crash kernel",
                "ignored: the plain word counts",
                "ignored: ,low counts only beside a ,high word that counts",
            ],
        ),
        (
            words("512M,high", "64M,low"),
            "7.3",
            [
                "512 MiB kept for the crash kernel, above 4 GiB where there is room",
                "64 MiB of it below 4 GiB, for devices that reach no further",
            ],
        ),
        (
            words("512M,high", "0,low"),
            "7.3",
            [
                "512 MiB kept for the crash kernel, above 4 GiB where there is room",
                "no memory below 4 GiB for the crash kernel",
            ],
        ),
        (
            words("foo", "512M,high"),
            "6.1",
            [
                'bad, the kernel says "crashkernel: memory value expected", '
                "and goes on with the ,high word",
                "512 MiB kept for the crash kernel, above 4 GiB where there is room",
            ],
        ),
        (
            words("foo", "512M,high"),
            "7.3",
            [
                'bad, the kernel says "crashkernel: memory value expected" '
                "and reserves nothing at all",
                "ignored: beside a plain word, even a bad one, ,high does not count",
            ],
        ),
        (
            words("16G"),
            "7.3",
            ["asks for 16384 MiB, all of RAM or more: nothing is reserved"],
        ),
        (
            words("256M@16M"),
            "7.3",
            ["256 MiB kept for the crash kernel at 0x1000000, for which there is no room"],
        ),
        (
            words("256M", "300M@16M,cma"),
            "7.3",
            [
                "256 MiB kept for the crash kernel",
                "300 MiB that production uses until the crash; the kernel says "
                '"crashkernel: unrecognized char: @", and takes what it has read so far',
            ],
        ),
        (words("1G-2G:64M"), "7.3", ["asks for nothing, so nothing at all is reserved"]),
    ],
)
def test_each_word_is_told_in_plain_words(line: bytes, version: str, told: list[str]) -> None:
    assert effects(line, version) == told


def test_a_kernel_without_config_cma_or_without_the_hook_is_told() -> None:
    line = words("1G,cma", "256M")
    assert "without CONFIG_CMA" in effects(line, config_cma=False)[0]
    assert "passed over: on aarch64" in effects(line, "7.2", arch="arm64")[0]


# --- traps ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "warning"),
    [
        (words("256M", "1G,cma"), "on Linux up to 6.16 this line reserves nothing"),
        (words("256M,high", "1G,cma"), "on Linux 6.7 to 6.16 this line reserves nothing"),
        (words("1G,cma", "256M,high"), "beside a plain word ,high does not count, in any order"),
        (words("256M", "1G-4G:300M,cma"), "takes the first number, 1024 MiB, for the size"),
        (words("256M", "1G@16M,cma"), ",cma has no address"),
        (words("1G,cma"), "alone reserves nothing, and says nothing about it"),
        (words("256M", "1G,CMA"), "small letters only"),
        (words("256M,cam"), "what follows the comma is no suffix"),
        (words("0512M"), "octal"),
        (b"craskernel=256M", "'craskernel=256M' is no word of the kernel's"),
        (b"crash_kernel=256M", "no word of the kernel's"),
        (b"crashkernel 256M", "has no ="),
        (b"quiet", "there is no crashkernel= word"),
        (words("16G"), "the kernel reserves nothing, and says nothing about it"),
        (words("256M@16M"), "the kernel reserves nothing: kdump can't work"),
        (words("1G,cma", "256M") + b" kernelcore=2G", "may end a zone inside"),
        (words("256M") + b" x" * 1500, "the kernel reads 2047 of them"),
    ],
)
def test_the_traps_are_warned_of(line: bytes, warning: str) -> None:
    assert [text for text in advice(line).warnings if warning in text] != []


def test_over_asking_is_warned_of_with_what_is_left() -> None:
    """A 2 GiB guest gives nearly all of itself to 16G,cma; the stock 7.3 panicked on it."""
    got = advice(words("16G,cma", "128M"), memory=2 * G)
    assert any("asks for 16384 MiB, which there is not in 4 ranges" in t for t in got.warnings)
    assert any("production may panic while it boots" in t for t in got.warnings)
    more = advice(words("5G,cma", "128M"))
    assert any("left for the kernel's own data" in t for t in more.warnings)
    assert got.proposal == "crashkernel=1G,cma crashkernel=128M"


def test_a_good_line_has_no_warning_and_tells_what_dumps_leave_out() -> None:
    got = advice(words("1G,cma", "256M"))
    assert got.warnings == ()
    assert got.works_everywhere
    assert got.proposal == "crashkernel=1G,cma crashkernel=256M"
    assert any("makedumpfile -d 31" in note for note in got.notes)
    old = advice(words("1G,cma", "256M"), "6.1")
    assert any("crashlend reads the word" in note for note in old.notes)


def test_words_that_only_look_alike_are_left_alone() -> None:
    line = (
        b"quiet crash_kexec_post_notifiers kernelcore=1G kernel.panic=1 crash=1 ro root=/dev/crash"
    )
    assert misspelt(line) == []
    assert misspelt(b"xcrashkernel=64M") == []  # the kernel finds it


@pytest.mark.parametrize(
    ("line", "memory", "proposal"),
    [
        (words("256M", "1G,cma"), 8 * G, "crashkernel=1G,cma crashkernel=256M"),
        (words("300M,high", "1G,cma"), 8 * G, "crashkernel=1G,cma crashkernel=300M"),
        (words("1G,cma"), 8 * G, "crashkernel=1G,cma crashkernel=256M"),
        (words("1G-64G:200M", "1G,cma"), 8 * G, "crashkernel=1G,cma crashkernel=1G-64G:200M"),
        (words("200M", "1G-16G:300M,16G-:1G,cma"), 8 * G, "crashkernel=300M,cma crashkernel=200M"),
        (words("256M@16M"), 8 * G, "crashkernel=256M"),
        (b"", 8 * G, "crashkernel=1G,cma crashkernel=256M"),
        (b"craskernel=1G", 1 * G, "crashkernel=256M,cma crashkernel=128M"),
    ],
)
def test_the_proposal_keeps_what_was_meant(line: bytes, memory: int, proposal: str) -> None:
    assert advice(line, memory=memory).proposal == proposal


VALUES = st.sampled_from(
    [
        "256M",
        "1G,cma",
        "64G,cma",
        "300M,high",
        "64M,low",
        "1G-4G:128M",
        "1G-4G:1G,cma",
        "x",
        "4G@1G",
    ]
)


@given(st.lists(VALUES, max_size=4), st.sampled_from([512 * M, 2 * G, 8 * G, 64 * G]))
@settings(max_examples=40)
def test_a_proposal_works_on_every_kernel(values: list[str], memory_bytes: int) -> None:
    """Main part on each generation, all that ,cma asks for on those that carry it out."""
    line = words(*values)
    memory = boot_memory(map_of_size(memory_bytes), line, kernel_for("7.3"))
    proposal = propose(memory, line, "x86_64")
    assert proposal is not None
    for span in every_kernel("x86_64"):
        got = predict(memory, proposal.encode(), span.kernel)
        assert got.of_kind("main")
        if span.kernel.carries_cma:
            assert got.shared_bytes >= got.request.cma_bytes


def test_a_large_plain_word_is_told_how_to_cost_less() -> None:
    got = advice(words("2G"))
    assert got.cheaper is not None
    assert got.cheaper.endswith(" crashkernel=256M")
    assert advice(words("128M")).cheaper is None
    assert advice(words("1G,cma", "2G")).cheaper is None


# --- the verb ------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(["predict", *args]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(("version", "last"), [("4.18", "5.10"), ("7.4", "7.3"), ("9.9", "7.3")])
def test_a_kernel_whose_source_was_not_read_is_said_to_be_none(
    capsys: pytest.CaptureFixture[str], version: str, last: str
) -> None:
    """The next one that was read stands for it, and the answer says so, in JSON too."""
    args = ("crashkernel=64M", "--memory", "8G", "--kernel-version", version)
    assert f"kernel than {last} was read" in run(capsys, *args)
    assert last in json.loads(run(capsys, *args, "--json"))["memory"]["assumptions"][0]
    assert "was read" not in run(capsys, *args[:4], last)


def test_a_root_that_plays_no_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Beside a memory and a version nothing is read from it, not even whether it exists."""
    args = ["predict", "crashkernel=64M", "--memory", "8G", "--kernel-version", "7.3"]
    assert main([*args, "--root", "/nowhere"]) == 2
    assert "--root" in capsys.readouterr().err


def test_json_has_the_keys_of_the_design(capsys: pytest.CaptureFixture[str]) -> None:
    out = run(
        capsys,
        words("1G,cma", "256M").decode(),
        "--memory",
        "8G",
        "--kernel-version",
        "7.3",
        "--json",
    )
    got = json.loads(out)
    assert got["schema"] == 1
    assert set(got["request"]) == {
        "accepted",
        "size_bytes",
        "base",
        "high",
        "low_bytes",
        "cma_bytes",
        "messages",
    }
    assert [set(r) for r in got["ranges"]] == [{"kind", "start", "end"}] * 2
    assert {r["kind"]: r["end"] - r["start"] for r in got["ranges"]} == {"main": 256 * M, "cma": G}
    assert got["production_loses_bytes"] == 256 * M
    assert got["crash_kernel_gets_bytes"] == 256 * M + G
    assert got["works_everywhere"] is True


def test_the_answer_for_people_has_all_parts(capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, words("256M", "1G,cma").decode(), "--memory", "8G", "--kernel-version", "7.3")
    for part in (
        "What each word does",
        "What the kernel reserves",
        "What dmesg will say",
        "taken from production   256 MiB",
        "the crash kernel gets   1280 MiB",
        "0x00100000000 - 0x00140000000",
        "cma: Reserved 1024 MiB at 0x0000000100000000",
        "warning: on Linux up to 6.16",
        "A line that works on every kernel: crashkernel=1G,cma crashkernel=256M",
        "shared until the crash, ",
    ):
        assert part in out


def test_without_config_cma_as_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    args = ("--memory", "8G", "--kernel-version", "7.3", "--no-config-cma")
    assert "not supported" in run(capsys, words("1G,cma", "256M").decode(), *args)


def test_a_snapshot_without_words_is_its_own_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The build host: 6.1 with crashkernel=1G,cma crashkernel=256M."""
    build.write_tree(tmp_path, build.host())
    got = json.loads(run(capsys, "--root", str(tmp_path), "--json"))
    assert got["request"]["size_bytes"] == 256 * M
    assert [r["kind"] for r in got["ranges"]] == ["main"]
    assert got["kernel"] == {
        "arch": "x86_64",
        "generation": "6.1",
        "knows_cma": False,
        "config_cma": False,
    }
    newer = run(capsys, "--root", str(tmp_path), "--kernel-version", "7.3", "--json")
    assert [r["kind"] for r in json.loads(newer)["ranges"]] == ["main", "cma"]


def test_a_map_from_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "map"
    path.write_text("0x100000-0x7fffffff System RAM\n")
    args = ("crashkernel=64M", "--map", str(path), "--kernel-version", "6.12", "--json")
    got = json.loads(run(capsys, *args))
    assert got["ranges"] == [{"kind": "main", "start": 0x7B000000, "end": 0x7F000000}]


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["--memory", "1M"], 1),
        (["--memory", "foo"], 2),
        (["--memory", "8G", "--kernel-version", "seven"], 2),
        (["--memory", "8G", "--map", "x"], 2),
        (["--map", "/nonexistent/map"], 1),
    ],
)
def test_errors_are_clear(capsys: pytest.CaptureFixture[str], args: list[str], code: int) -> None:
    try:
        got = main(["predict", "crashkernel=1M", *args])
    except SystemExit as error:
        got = int(str(error.code))
    assert got == code
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert err.startswith("crashlend")


def test_a_map_that_is_none_is_named_with_its_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "map"
    path.write_text("0x2000-0x1000 System RAM\n")
    assert main(["predict", "x", "--map", str(path), "--kernel-version", "6.1"]) == 1
    assert "line 1 ends below its start" in capsys.readouterr().err


@given(st.binary(max_size=120).filter(lambda b: b"\0" not in b), st.booleans())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_answered(
    capsys: pytest.CaptureFixture[str], data: bytes, as_json: bool
) -> None:
    """As an argument of the command: the kernel's result, never a traceback."""
    line = "crashkernel=" + os.fsdecode(data)
    args = [
        "--memory",
        "1G",
        "--kernel-version",
        "7.3",
        *(["--json"] if as_json else []),
        "--",
        line,
    ]
    out = run(capsys, *args)
    assert out.isascii() or not as_json
    assert all(c.isprintable() or c == "\n" for c in out)


def test_a_sparse_map_of_100000_entries_is_drawn(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Spread over 2^51 bytes; the drawing has few lines all the same."""
    step = (1 << 51) // 100_000 // 4096 * 4096
    path = tmp_path / "map"
    path.write_text(
        "0x0-0x3fffffff System RAM\n"
        + "".join(f"{n * step:#x}-{n * step + 64 * M - 1:#x} System RAM\n" for n in range(100_000))
    )
    out = run(capsys, "crashkernel=16M", "--map", str(path), "--kernel-version", "7.3")
    assert len(out.splitlines()) < 50
    assert "16 MiB  kept for" in out
