# SPDX-License-Identifier: LGPL-2.1-or-later
"""The shared libraries that an executable needs, found the way ld.so(8) finds them.

Nothing is executed (ldd runs what it looks at), so the files may belong to another machine.
Libraries that a program opens with dlopen() are not seen; :func:`find_library` finds one by its name.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from crashlend.errors import CrashlendError, FormatError
from crashlend.formats.elf import Elf, parse_elf

if TYPE_CHECKING:
    from collections.abc import Iterator

_LINKS_MAX = 40  # as in the kernel, then ELOOP
_INCLUDE_DEPTH_MAX = 8
_SYSTEM_DIRECTORIES = ("/lib64", "/usr/lib64", "/lib", "/usr/lib", "/lib32", "/usr/lib32")


@dataclass(frozen=True)
class Library:
    """``path`` is the name that the loader opens, ``source`` the file behind all symlinks."""

    path: str
    source: Path
    why: str


def resolve(root: Path, path: str) -> Path:
    """Follow every symlink of ``path`` as a process would whose root directory is ``root``.

    Returns a path below ``root``; what does not exist stays as it is. Raises CrashlendError
    when the symlinks go in a circle.
    """
    done: list[str] = []
    rest = [part for part in reversed(path.split("/")) if part not in ("", ".")]
    links = 0
    while rest:
        part = rest.pop()
        if part == "..":
            del done[-1:]
            continue
        here = root.joinpath(*done, part)
        if not here.is_symlink():
            done.append(part)
            continue
        links += 1
        if links > _LINKS_MAX:
            raise CrashlendError(f"cannot resolve {path}", "too many symlinks")
        target = os.readlink(here)
        if target.startswith("/"):
            done = []
        rest.extend(p for p in reversed(target.split("/")) if p not in ("", "."))
    return root.joinpath(*done)


def find_libraries(root: Path, executable: Path) -> tuple[Library, ...]:
    """Every shared library and the loader of ``executable`` (a path on this machine), sorted.

    Empty for static executables. Raises CrashlendError when a library is not found.
    """
    top = _read(executable)
    found: dict[str, Library] = {}
    if top.interpreter:
        source = resolve(root, top.interpreter)
        if not source.is_file():
            raise CrashlendError(
                f"cannot collect the libraries of {executable}",
                f"its loader {top.interpreter} does not exist",
            )
        name = top.interpreter.rsplit("/", 1)[-1]
        found[name] = Library(top.interpreter, source, f"loader of {executable.name}")
    system = tuple(_system_directories(root))
    queue: list[tuple[str, Elf]] = [("/" + str(executable.relative_to(root)), top)]
    while queue:
        user, elf = queue.pop(0)
        for name in elf.needed:
            if name.rsplit("/", 1)[-1] in found:
                continue
            path, source, library = _search(root, name, user, elf, top, system)
            found[name] = Library(path, source, f"library of {user.rsplit('/', 1)[-1]}")
            queue.append((path, library))
    return tuple(sorted(found.values(), key=lambda item: item.path))


def find_library(root: Path, executable: Path, name: str) -> Library:
    """The library ``name`` as ``executable`` would open it by dlopen(); CrashlendError without it."""
    top = _read(executable)
    user = "/" + str(executable.relative_to(root))
    system = tuple(_system_directories(root))
    path, source, _ = _search(root, name, user, top, top, system)
    return Library(path, source, f"opened by {executable.name}")


def _search(
    root: Path, name: str, user: str, elf: Elf, top: Elf, system: tuple[str, ...]
) -> tuple[str, Path, Elf]:
    # ld.so(8): DT_RPATH counts only without DT_RUNPATH, and also for the libraries' libraries
    own = elf.runpath or elf.rpath + top.rpath
    origin = user.rsplit("/", 1)[0]
    own = tuple(d.replace("${ORIGIN}", origin).replace("$ORIGIN", origin) for d in own)
    directories = (*map(os.path.normpath, own), *system)
    candidates = [name] if "/" in name else [f"{d}/{name}" for d in directories]
    for path in candidates:
        source = resolve(root, path)
        if not source.is_file():
            continue
        try:
            library = _read(source)
        except FormatError:
            continue  # the loader goes on too
        if library.abi == elf.abi:
            return path, source, library
    raise CrashlendError(
        f"cannot collect the libraries of {user}",
        f"{name} was not found",
        hint="install the package that holds it, or check with: ldd " + user,
    )


def _read(path: Path) -> Elf:
    try:
        return parse_elf(path.read_bytes())
    except OSError as error:
        raise CrashlendError(f"cannot read {path}", str(error.strerror)) from error


def _system_directories(root: Path) -> Iterator[str]:
    yield from _configured(root, "/etc/ld.so.conf", _INCLUDE_DEPTH_MAX)
    for directory in ("/lib", "/usr/lib"):
        # multiarch directories, in case ld.so.conf.d does not name them
        multiarch = sorted(resolve(root, directory).glob("*-linux-gnu*"))
        yield from (f"{directory}/{path.name}" for path in multiarch)
    yield from _SYSTEM_DIRECTORIES


def _configured(root: Path, name: str, depth: int) -> Iterator[str]:
    try:
        text = resolve(root, name).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return
    for line in text.splitlines():
        words = line.split("#", 1)[0].split()
        if words[:1] == ["include"] and depth:
            for pattern in words[1:]:
                where, _, files = pattern.rpartition("/")
                where = where if where.startswith("/") else f"/etc/{where}"
                for path in sorted(resolve(root, where).glob(files)):
                    yield from _configured(root, f"{where}/{path.name}", depth - 1)
        elif words and words[0].startswith("/"):
            yield words[0].rstrip("/")
