# SPDX-License-Identifier: LGPL-2.1-or-later
"""What goes into a capture initramfs: members of the archive, each with the reasons for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crashlend.capture.libraries import find_libraries, resolve
from crashlend.errors import CrashlendError
from crashlend.formats import newc

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """One file of the initramfs: its path there, its size in bytes and why it is there.

    ``chain`` are the reasons that lead to ``why``, the first one first: from what this host is or is
    told down to the file.
    """

    path: str
    bytes: int
    why: str
    chain: tuple[str, ...] = ()


class Contents:
    """The members collected so far, by path; the first reason for a file stays."""

    def __init__(self) -> None:
        self.members: dict[str, newc.Member] = {}
        self.entries: list[Entry] = []
        self.programs: dict[Path, str] = {}

    def add(self, member: newc.Member, why: str, chain: tuple[str, ...] = ()) -> None:
        """One member, unless there is one at its path."""
        if member.path not in self.members:
            self.members[member.path] = member
            self.entries.append(Entry("/" + member.path, len(member.data), why, chain))

    def add_program(
        self, root: Path, source: Path, path: str, why: str, chain: tuple[str, ...] = ()
    ) -> None:
        """An executable with its libraries, which keep the paths at which ld.so finds them.

        One program under several names (kmod, coreutils) is there once.
        """
        known = self.programs.setdefault(source, path)
        if known != path:
            self.add(newc.symlink(path, f"/{known}"), why, (*chain, f"it is /{known}"))
            return
        self.add(newc.regular(path, read_file(source), 0o755), why, chain)
        for library in find_libraries(root, source):
            data = read_file(library.source)
            member = newc.regular(library.path.lstrip("/"), data, 0o755)
            self.add(member, library.why, (*chain, f"/{path}: {why}"))

    def library_path(self) -> str:
        """Where the libraries are. There is no ld.so.cache, and each libc has its own defaults."""
        libraries = (path for path in self.members if ".so" in path.rsplit("/", 1)[-1])
        return ":".join(sorted({"/" + path.rsplit("/", 1)[0] for path in libraries}))


def find_tool(root: Path, candidates: tuple[str, ...], package: str) -> Path:
    """The first of ``candidates`` that is a file, behind all symlinks; CrashlendError if none."""
    for candidate in candidates:
        path = resolve(root, candidate)
        if path.is_file():
            return path
    raise CrashlendError(
        "cannot build the capture initramfs",
        f"{package} is not installed",
        hint=f"install the package {package}",
    )


def read_file(path: Path) -> bytes:
    """A file of the host; CrashlendError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise CrashlendError(f"cannot read {path}", str(error.strerror)) from error
