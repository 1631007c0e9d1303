# SPDX-License-Identifier: LGPL-2.1-or-later
"""crashlend initramfs: build, list, explain; and what plans say of a target that takes memory."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from build import facts
from crashlend.capture.contents import Entry
from crashlend.capture.initramfs import CaptureSpec, Initramfs
from crashlend.cli import initramfs_verb
from crashlend.cli.main import main
from crashlend.config import Settings
from crashlend.errors import EXIT_USAGE
from crashlend.plan import make_plan
from crashlend.sizes import GIB, MIB
from test_plan import PAYLOAD

if TYPE_CHECKING:
    from pathlib import Path

BUILT = Initramfs(
    b"image",
    99,
    "xz",
    (Entry("/init", 7, "captures"), Entry("/lib/a.ko", 5, "needed by b", ("disk", "driver"))),
)


@pytest.fixture(autouse=True)
def _host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initramfs_verb, "capture_spec", lambda *_: CaptureSpec("6.1", ()))
    monkeypatch.setattr(initramfs_verb, "build_initramfs", lambda *_: BUILT)
    monkeypatch.setattr(initramfs_verb, "look_at", lambda *_: None)


def test_list_names_one_reason(capsys: pytest.CaptureFixture[str]) -> None:
    """One line for each file, and the sizes."""
    assert main(["initramfs"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[1].split() == ["5", "/lib/a.ko", "needed", "by", "b"]
    assert "xz" in out[-1]


@pytest.mark.parametrize("words", [["explain"], ["--explain"]])
def test_explain_names_all_of_them(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    """From the first reason to the last, each further in."""
    assert main(["initramfs", *words]) == 0
    out = capsys.readouterr().out.splitlines()
    at = next(number for number, line in enumerate(out) if "/lib/a.ko" in line)
    assert [line.strip() for line in out[at + 1 : at + 4]] == ["disk", "driver", "needed by b"]
    indents = [len(line) - len(line.lstrip()) for line in out[at + 1 : at + 4]]
    assert indents == sorted({*indents})


def test_json_has_the_chain(capsys: pytest.CaptureFixture[str]) -> None:
    """For programs: the reasons before ``why``, in order."""
    assert main(["initramfs", "--json"]) == 0
    entry = json.loads(capsys.readouterr().out)["entries"][1]
    assert (entry["chain"], entry["why"]) == (["disk", "driver"], "needed by b")


def test_build_writes_and_lists_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And needs to be told where."""
    assert main(["initramfs", "build", "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out").read_bytes() == b"image"
    assert "/lib/a.ko" not in capsys.readouterr().out
    assert main(["initramfs", "build"]) == EXIT_USAGE


def test_a_plan_says_when_a_key_slot_wants_more_than_there_is() -> None:
    """LUKS2's argon2id takes a GiB: lent memory is what lets it open."""
    host = facts()
    payload = replace(PAYLOAD, target_bytes=GIB)
    lean = make_plan(host, Settings(lender="none"), payload)
    rich = make_plan(host, Settings(lend=1280 * MIB, lend_share=90), payload)
    told = [[n for n in plan.notes if "opening the dump target" in n] for plan in (lean, rich)]
    assert len(told[0]) == 1
    assert "lend more" in told[0][0]
    has = rich.costs.crash_kernel_bytes
    assert has is not None
    assert bool(told[1]) == (has < GIB + 160 * MIB)
    assert not told[1]
