# SPDX-License-Identifier: LGPL-2.1-or-later
"""Results that long runs leave: a line of JSON each, on the disk before the next is looked at.

And what they are results of: the sources that ran, and the machine.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
from importlib.resources import as_file, files
from typing import TYPE_CHECKING, Any

from crashlend.lab.qemu import find_qemu
from crashlend.lab.spec import Spec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


# The lab's own commands: what runs on hosts, and in the lab's guests, is the rest of cli/.
LAB_COMMANDS = (
    "cli/agree.py",
    "cli/bench.py",
    "cli/capture_bench.py",
    "cli/conform.py",
    "cli/demo.py",
    "cli/estimate_verb.py",
    "cli/judges.py",
    "cli/lab_verb.py",
    "cli/matrix.py",
    "cli/rehearse.py",
    "cli/run_flags.py",
    "cli/soak.py",
    "cli/system.py",
    "cli/trial_flags.py",
    "cli/trials.py",
    "cli/twin_flags.py",
    "lab/speed/report.py",
)


class Records:
    """Results so far, one JSON object per line; only those whose stamp is asked for count."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text() if path.exists() else ""
        for line in text.splitlines():
            try:
                result = json.loads(line)
            except ValueError:
                continue  # cut off when the run was
            if isinstance(result, dict):  # the end of one that was cut off may be a number
                self.lines.append(result)
        if text and not text.endswith("\n"):
            with path.open("a") as file:
                file.write("\n")  # the next result must not join what was cut off

    def of(self, stamp: str) -> list[dict[str, Any]]:
        """What was found under this stamp, in order."""
        return [line for line in self.lines if line.get("stamp") == stamp]

    def add(self, stamp: str, result: dict[str, Any]) -> None:
        """Keep a result; it is on the disk when this returns."""
        self.lines.append({"stamp": stamp, **result})
        with self.path.open("a") as file:
            file.write(json.dumps(self.lines[-1]) + "\n")
            file.flush()
            os.fsync(file.fileno())


def source_hash(*, lab_only: bool) -> str:
    """A digest of crashlend's sources: of all, or of those that a trial of kexec-tools runs.

    As they are now: each trial copies them anew, and long runs outlive changes.
    """
    digest = hashlib.sha256()
    with as_file(files("crashlend")) as package:
        for path in sorted(_sources(package)):
            name = path.relative_to(package).as_posix()
            if not lab_only or name.startswith(("lab/", "capture/", "formats/")):
                digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _sources(package: Path) -> Iterator[Path]:
    """Every source but what asks for results and shows them: of bench and matrix, and commands."""
    for path in package.rglob("*"):
        name = path.relative_to(package).as_posix()
        own = name.startswith(("snapshots/", "lab/bench/", "lab/matrix/")) or name in LAB_COMMANDS
        if path.is_file() and "__pycache__" not in name and not own:
            yield path


@functools.lru_cache(maxsize=1)
def machine_facts() -> dict[str, Any]:
    """What the bench ran on, as far as it matters."""
    done = subprocess.run([find_qemu(), "--version"], capture_output=True, text=True, check=False)
    defaults = Spec.__dataclass_fields__
    return {
        "qemu": (done.stdout.splitlines() or ["unknown"])[0],
        "accel": defaults["accel"].default,
        "memory_bytes": defaults["memory_bytes"].default,
        "cpus": defaults["cpus"].default,
        "cpu_model": defaults["cpu_model"].default,
        "host_cpus": os.cpu_count(),
    }


def product_commit() -> str:
    """The last commit that changed what runs on hosts, as of now; empty where there is no git.

    All of crashlend but lab/ and the lab's own commands: a commit to a test, a document or the lab
    keeps a result valid. A "+" follows where that part of the tree has changes that are not in a commit.
    """
    own = ["--", ".", *(f":(exclude){name}" for name in ("lab", *LAB_COMMANDS))]
    with as_file(files("crashlend")) as package:
        try:
            last = _git(package, "log", "-1", "--format=%h", "--abbrev=10", *own)
            changed = _git(package, "status", "--porcelain", *own)
        except (OSError, subprocess.SubprocessError):
            return ""
    return last + ("+" if last and changed else "")


def _git(directory: Path, *words: str) -> str:
    # without locks: this is asked while somebody else may commit
    command = ["git", "--no-optional-locks", *words]
    done = subprocess.run(
        command, cwd=directory, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


def json_text(data: Mapping[str, Any]) -> str:
    """The data as JSON with one of its results on each line, so that a difference can be read."""
    head = json.dumps({key: value for key, value in data.items() if key != "results"}, indent=1)
    rows = ",\n".join("  " + json.dumps(result) for result in data["results"])
    return head.removesuffix("\n}") + f',\n "results": [\n{rows}\n ]\n}}\n'


def time_left(done: int, of: int, elapsed_seconds: float) -> str:
    """How long the others will take, as long as these did on average."""
    if done >= of:
        return "the last one"
    return f"{elapsed_seconds / done * (of - done) / 60:.0f} min left"
