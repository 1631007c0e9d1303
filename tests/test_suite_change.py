# SPDX-License-Identifier: LGPL-2.1-or-later
"""The trials of hosts that change: what they run in the guest, and how the lab reads the answers."""

from __future__ import annotations

import ast
import struct
from pathlib import Path
from types import ModuleType

import pytest

import crashlend
from crashlend.cli.main import make_parser
from crashlend.lab.checks import asked_bytes
from crashlend.lab.kernels import Kernel
from crashlend.lab.lab_disk import complete_words
from crashlend.lab.outcome import load_answer
from crashlend.lab.qemu import Report
from crashlend.lab.spec import Command, Spec
from crashlend.lab.suites.change import CHANGE
from crashlend.sizes import MIB

KERNEL = Kernel("6.1", "6.1", "bookworm", Path("/k"), Path("/m"), None)


@pytest.mark.parametrize("trial", CHANGE, ids=lambda trial: trial.name)
def test_programs_of_the_trials_are_python_3_9(trial: object) -> None:
    """They run with the guest's Python, and what they call crashlend with is understood."""
    for command in trial.spec["commands"]:  # type: ignore[attr-defined]
        if command.program == "python3":
            ast.parse(command.words[1], feature_version=(3, 9))
        elif command.program == "crashlend":
            spec = Spec(kernel=KERNEL, **trial.spec)  # type: ignore[attr-defined]
            words = complete_words(spec, command.words)
            make_parser(words[0]).parse_args(words)


def test_an_event_gets_no_settings() -> None:
    """It takes those of the load that it renews, and would refuse others."""
    spec = Spec(kernel=KERNEL)
    assert complete_words(spec, ("reload", "--event")) == ["reload", "--json", "--event"]


def test_the_plan_is_that_of_the_last_load_that_made_one() -> None:
    """An event that needed nothing done has no plan; nor has a load that was refused."""
    made = {"event": "command", "argv": ["load"], "answer": {"plan": {"lent": []}}}
    nothing = {"event": "command", "argv": ["reload"], "answer": {"action": "none"}}
    refused = {"event": "command", "argv": ["reload"], "answer": None}
    assert load_answer(Report([made, nothing, refused])) == made["answer"]


def test_what_a_refused_load_asked_for_does_not_count() -> None:
    """The image of the load before it is what must have its memory."""
    commands = (Command(("load",)), Command(("reload", "--lend", "0"), exit=1))
    spec = Spec(kernel=KERNEL, lend_bytes=256 * MIB, commands=commands)
    assert asked_bytes(spec) == 256 * MIB


def note(name: bytes, kind: int, content: bytes) -> bytes:
    """One ELF note, padded."""
    head = struct.pack("<III", len(name) + 1, len(content), kind)
    return head + (name + b"\0").ljust(8, b"\0") + content.ljust(-(-len(content) // 4) * 4, b"\0")


@pytest.fixture
def scan(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """guestfiles/scan.py, which looks at /proc/vmcore as soon as it is run: its functions alone."""
    path = Path(crashlend.__file__).parent / "lab/guestfiles/scan.py"
    source = path.read_text().removesuffix("\n\nmain()\n")
    module = ModuleType("scan")
    exec(compile(source, str(path), "exec"), module.__dict__)
    return module


def test_registers_are_counted_among_other_notes(scan: ModuleType) -> None:
    """NT_PRSTATUS of "CORE", each as long as it says; a cut one ends the count."""
    cpu = note(b"CORE", 1, b"r" * 336)
    info = struct.pack("<III", 11, 13, 0) + b"VMCOREINFO\0\0" + b"x" * 13 + b"\0" * 3
    assert scan.register_notes(cpu + info + cpu + note(b"CORE", 2, b"") + cpu) == 3
    assert scan.register_notes(note(b"LINUX", 1, b"r" * 8)) == 0
    assert scan.register_notes(b"\1\0") == 0
