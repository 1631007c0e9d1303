# SPDX-License-Identifier: LGPL-2.1-or-later
"""Files read from and put into an ext4 image without mounting it (debugfs needs no root)."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from crashlend.errors import CrashlendError
from crashlend.lab.packages import find_tool

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_HINT = "install the package e2fsprogs"


def write_files(image: Path, files: Mapping[str, tuple[bytes, int]]) -> None:
    """Write each absolute path's (content, mode), owned by root; directories are made.

    What stands there already is replaced. The image must be clean: its journal replayed.
    """
    lines: list[str] = []
    made: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="crashlend-edit-") as scratch:
        for index, (path, (data, mode)) in enumerate(files.items()):
            source = Path(scratch, str(index))
            source.write_bytes(data)
            for parent in [*reversed(Path(path).parents)][1:]:
                if str(parent) not in made:
                    made.add(str(parent))
                    lines.append(f"mkdir {parent}")
            # "write" is for new files alone
            lines += [f"rm {path}", f"write {source} {path}"]
            lines.append(f"set_inode_field {path} mode 0{0o100000 | mode:o}")
            lines += [f"set_inode_field {path} {owner} 0" for owner in ("uid", "gid")]
        commands = Path(scratch, "commands")
        commands.write_text("\n".join(lines) + "\n")
        _debugfs(image, ["-w", "-f", str(commands)])
    for path, (data, _) in files.items():
        if read_file(image, path) != data:
            raise CrashlendError("cannot write into the image", f"{path} is not in {image}")


def read_file(image: Path, path: str) -> bytes:
    """The content of a file of the image; empty where there is none."""
    with tempfile.TemporaryDirectory(prefix="crashlend-edit-") as scratch:
        out = Path(scratch, "out")
        _debugfs(image, ["-R", f"dump {path} {out}"])
        return out.read_bytes() if out.exists() else b""


def copy_directory(image: Path, path: str, into: Path) -> Path:
    """Copy a directory of the image below ``into``; returns where it is (it may not be).

    What an earlier run left there is removed: debugfs copies nothing over it, and does not say so.
    """
    into.mkdir(parents=True, exist_ok=True)
    if (into / Path(path).name).is_dir():
        shutil.rmtree(into / Path(path).name)
    # debugfs takes no path with a blank for the host's side
    _debugfs(image, ["-R", f"rdump {path} {os.path.relpath(into, into)}"], directory=into)
    return into / Path(path).name


def replay(image: Path) -> None:
    """Replay the journal of an image whose system went without unmounting it."""
    tool = find_tool("e2fsck", _HINT)
    done = subprocess.run([tool, "-p", str(image)], capture_output=True, check=False)
    if done.returncode > 2:  # 1: corrected, 2: and a mounted one were to reboot
        words = done.stdout.decode(errors="replace").strip()[-200:]
        raise CrashlendError("cannot read the file system", words or f"e2fsck {done.returncode}")


def _debugfs(image: Path, words: Sequence[str], directory: Path | None = None) -> None:
    done = subprocess.run(
        [find_tool("debugfs", _HINT), *words, str(image.absolute())],
        capture_output=True,
        cwd=directory,
        check=False,
    )
    if done.returncode:
        words_said = done.stderr.decode(errors="replace").strip()[-200:]
        raise CrashlendError(f"cannot open {image}", words_said)
