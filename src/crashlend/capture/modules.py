# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which kernel modules a set of names and aliases takes, in the order in which to insert them.

Source: modules.dep(5), modprobe.d(5) and depmod's text files in ``lib/modules/RELEASE``. The
order is that of ``modprobe --show-depends``: soft dependencies, dependencies, the module.
"""

from __future__ import annotations

import gzip
import lzma
import shutil
import subprocess
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from crashlend.errors import CrashlendError

if TYPE_CHECKING:
    from collections.abc import Iterable

_ZSTD_TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class Want:
    """A module wanted by name or alias, and why. Optional ones may be missing everywhere.

    ``chain`` are the reasons that lead to this one, the first one first.
    """

    name: str
    why: str
    optional: bool = False
    chain: tuple[str, ...] = ()


@dataclass(frozen=True)
class Module:
    """A module to insert: its name with ``_``, its file and why it is there.

    ``chain`` are the reasons before that one, the first one first.
    """

    name: str
    path: Path
    why: str
    chain: tuple[str, ...] = ()


@dataclass(frozen=True)
class SoftDependencies:
    """What a module wants loaded before and after it, by name or alias."""

    pre: tuple[str, ...] = ()
    post: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModuleTree:
    """One ``lib/modules/RELEASE``, as far as dependencies go. Names are in ``_`` form."""

    directory: Path
    files: Mapping[str, str]
    dependencies: Mapping[str, tuple[str, ...]]
    softdeps: Mapping[str, SoftDependencies]
    aliases: tuple[tuple[str, str], ...]
    builtin: frozenset[str]
    builtin_aliases: tuple[tuple[str, str], ...] = field(default=())

    def lookup(self, name: str) -> tuple[str, ...]:
        """The loadable modules of a name or alias; empty when built in or unknown."""
        plain = normalize(name)
        if plain in self.files:
            return (plain,)
        if plain in self.builtin:
            return ()
        return tuple(dict.fromkeys(_match(self.aliases, plain)))

    def knows(self, name: str) -> bool:
        """Whether the kernel has this name or alias at all, loadable or built in."""
        plain = normalize(name)
        return (
            plain in self.builtin
            or bool(self.lookup(plain))
            or bool(_match(self.builtin_aliases, plain))
        )

    def closure(self, wants: Iterable[Want]) -> tuple[Module, ...]:
        """Everything that ``wants`` take, in the order for insmod.

        Raises CrashlendError when a want that is not optional is unknown to this kernel.
        """
        order: dict[str, Module] = {}
        seen: set[str] = set()
        for want in wants:
            names = self.lookup(want.name)
            if not names and not want.optional and not self.knows(want.name):
                raise CrashlendError(
                    f"cannot find kernel module {want.name}",
                    f"{self.directory} has none ({want.why})",
                    hint="install the package with this kernel's extra modules, and run depmod",
                )
            for name in names:
                self._visit(name, (*want.chain, want.why), order, seen)
        return tuple(order.values())

    def _visit(
        self, name: str, chain: tuple[str, ...], order: dict[str, Module], seen: set[str]
    ) -> None:
        # modules.dep lists all dependencies of a module, the deepest last
        for dependency in reversed(self.dependencies.get(name, ())):
            self._insert(dependency, (*chain, f"needed by {name}"), order, seen)
        self._insert(name, chain, order, seen)

    def _insert(
        self, name: str, chain: tuple[str, ...], order: dict[str, Module], seen: set[str]
    ) -> None:
        if name in seen:
            return
        seen.add(name)  # at once: soft dependencies may go in circles
        soft = self.softdeps.get(name, SoftDependencies())
        for found in (module for wanted in soft.pre for module in self.lookup(wanted)):
            self._visit(found, (*chain, f"wanted before {name}"), order, seen)
        order[name] = Module(name, self.directory / self.files[name], chain[-1], chain[:-1])
        for found in (module for wanted in soft.post for module in self.lookup(wanted)):
            self._visit(found, (*chain, f"wanted after {name}"), order, seen)


def normalize(name: str) -> str:
    """A module name or alias with ``_`` for ``-``, but not inside brackets (as in kmod)."""
    out: list[str] = []
    depth = 0
    for char in name:
        depth += {"[": 1, "]": -1}.get(char, 0)
        out.append("_" if char == "-" and depth <= 0 else char)
    return "".join(out)


def module_name(path: str) -> str:
    """The module that a file such as ``kernel/fs/nls/nls-utf8.ko.xz`` holds."""
    return normalize(path.rsplit("/", 1)[-1].split(".ko", 1)[0])


def find_module_directory(root: Path, release: str) -> Path:
    """``lib/modules/RELEASE`` below ``root``. Raises CrashlendError when there is none."""
    for parent in ("lib", "usr/lib"):
        directory = root / parent / "modules" / release
        if directory.is_dir():
            return directory
    raise CrashlendError(
        f"cannot find the modules of {release}",
        f"{root / 'lib/modules' / release} does not exist",
        hint=_installed_hint(root),
    )


def _installed_hint(root: Path) -> str:
    found = {path.parent.name for path in root.glob("lib/modules/*/modules.dep")}
    found |= {path.parent.name for path in root.glob("usr/lib/modules/*/modules.dep")}
    known = f"; there are {', '.join(sorted(found))}" if found else ""
    return f"install that kernel's package with its modules, or name an installed kernel{known}"


def read_module_tree(directory: Path) -> ModuleTree:
    """Read depmod's files. Raises CrashlendError when modules.dep is missing."""
    if not (directory / "modules.dep").is_file():
        raise CrashlendError(
            f"cannot use the modules in {directory}",
            "there is no modules.dep",
            hint=f"run: depmod {directory.name}",
        )
    files: dict[str, str] = {}
    dependencies: dict[str, tuple[str, ...]] = {}
    for line in _lines(directory / "modules.dep"):
        path, _, rest = line.partition(":")
        name = module_name(path)
        files[name] = path
        dependencies[name] = tuple(module_name(p) for p in rest.split())
    for name, needed in dependencies.items():
        for missing in (n for n in needed if n not in files):
            raise CrashlendError(
                f"cannot use the modules in {directory}",
                f"{name} needs {missing}, which modules.dep does not list",
                hint=f"run: depmod {directory.name}",
            )
    return ModuleTree(
        directory,
        files,
        dependencies,
        _read_softdeps(directory / "modules.softdep"),
        tuple(
            (normalize(words[1]), normalize(words[2]))
            for words in map(str.split, _lines(directory / "modules.alias"))
            if len(words) == 3 and words[0] == "alias"
        ),
        frozenset(module_name(line) for line in _lines(directory / "modules.builtin")),
        _read_builtin_aliases(directory / "modules.builtin.modinfo"),
    )


def read_module(path: Path) -> bytes:
    """The module itself, decompressed: busybox's insmod takes nothing else.

    Besides, one compression of the whole archive gives less than many small ones. Raises
    CrashlendError for damaged files, and where ``zstd`` would be needed and is not there.
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".xz":
            data = lzma.decompress(data)
        elif path.suffix == ".gz":
            data = gzip.decompress(data)
        elif path.suffix == ".zst":
            data = _unzstd(path)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise CrashlendError(f"cannot read kernel module {path}", str(error)) from error
    return data


def _unzstd(path: Path) -> bytes:
    program = shutil.which("zstd")
    if program is None:
        raise CrashlendError(
            f"cannot decompress kernel module {path}",
            "the zstd program is not installed",
            hint="install the package zstd",
        )
    command = [program, "--decompress", "--stdout", "--quiet", "--", str(path)]
    try:
        done = subprocess.run(
            command, capture_output=True, check=True, timeout=_ZSTD_TIMEOUT_SECONDS
        )
    except subprocess.CalledProcessError as error:
        why = error.stderr.decode(errors="replace").strip()
        raise CrashlendError(f"cannot decompress kernel module {path}", why) from error
    except subprocess.TimeoutExpired as error:
        raise CrashlendError(f"cannot decompress kernel module {path}", "timeout") from error
    return done.stdout


def _match(aliases: tuple[tuple[str, str], ...], name: str) -> list[str]:
    return [module for pattern, module in aliases if _matches(name, pattern)]


def _matches(name: str, pattern: str) -> bool:
    # fnmatch compiles each of tens of thousands of patterns; nearly all differ at the start
    for at, char in enumerate(pattern):
        if char in "*?[":
            return name.startswith(pattern[:at]) and fnmatchcase(name, pattern)
    return name == pattern


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _read_softdeps(path: Path) -> dict[str, SoftDependencies]:
    found: dict[str, SoftDependencies] = {}
    for line in _lines(path):
        words = line.split()
        if len(words) < 3 or words[0] != "softdep":
            continue
        lists: dict[str, list[str]] = {"pre:": [], "post:": []}
        # words before the first "pre:" or "post:" mean nothing (kmod ignores them too)
        current: list[str] = []
        for word in words[2:]:
            if word in lists:
                current = lists[word]
            else:
                current.append(word)
        name = normalize(words[1])
        old = found.get(name, SoftDependencies())
        found[name] = SoftDependencies(
            old.pre + tuple(lists["pre:"]), old.post + tuple(lists["post:"])
        )
    return found


def _read_builtin_aliases(path: Path) -> tuple[tuple[str, str], ...]:
    """``module.alias=pattern`` entries, NUL-separated (scripts/mod/modpost, since Linux 5.2)."""
    if not path.is_file():
        return ()
    found: list[tuple[str, str]] = []
    for entry in path.read_bytes().split(b"\0"):
        key, _, value = entry.decode(errors="surrogateescape").partition("=")
        module, _, what = key.partition(".")
        if what == "alias":
            found.append((normalize(value), normalize(module)))
    return tuple(found)
