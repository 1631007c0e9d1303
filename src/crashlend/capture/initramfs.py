# SPDX-License-Identifier: LGPL-2.1-or-later
"""Build the capture initramfs: busybox, makedumpfile, the modules on the way, and init.

Everything comes from the host itself. The same input gives the same bytes, so that "is the
loaded image still what would be built?" is a comparison.
"""

from __future__ import annotations

import gzip
import lzma
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from crashlend.capture import makedumpfile
from crashlend.capture.libraries import find_libraries, resolve
from crashlend.capture.makedumpfile_probe import find_threads
from crashlend.capture.modulelists import module_lists
from crashlend.capture.modules import Want, find_module_directory, read_module, read_module_tree
from crashlend.capture.script import script
from crashlend.capture.targets.target import Target
from crashlend.capture.targets.way import memory_wants
from crashlend.errors import CrashlendError
from crashlend.formats import newc
from crashlend.formats.elf import is_elf

if TYPE_CHECKING:
    from collections.abc import Mapping

# What init calls. Debian's busybox and busybox-static have all of these, from bullseye to sid
# (looked up in 1.30.1, 1.35.0 and 1.38.0; findfs and blkid, for two, are not in every one).
APPLETS = (
    "cat cp cttyhack date dd grep halt insmod mkdir mount mv od poweroff reboot rm sed setsid "
    "sh sleep sort stat sync tail timeout tr umount uname usleep"
)
# What hooks and a rescue shell like to have, as far as the host's busybox has it.
MORE_APPLETS = (
    "awk basename blockdev chmod chown cut df dirname dmesg du echo env expr find free gzip head "
    "ip kill ln ls lsmod md5sum mkfifo more nc nslookup ping printf ps readlink route seq sha256sum tar tee "
    "test touch udhcpc vi wc wget"
)
HOOK_STAGES = ("pre", "post", "failure")
_BUSYBOX = ("bin/busybox", "usr/bin/busybox", "bin/busybox-static", "usr/bin/busybox-static")
_SHELLS = ("/bin/sh", "/bin/busybox")
# The dictionary is memory that the crash kernel needs while it unpacks (XZ_DYNALLOC).
_XZ_DICTIONARY_BYTES_MAX = 8 << 20
_XZ_DICTIONARY_BYTES_MIN = 64 << 10


@dataclass(frozen=True)
class CaptureSpec:
    """What goes into a capture initramfs. Times are in seconds.

    ``release`` is the crash kernel's, ``targets`` are in order of preference, ``host`` the name that
    dump directories begin with, ``hooks`` a directory with ``pre.d``, ``post.d`` and ``failure.d``
    (it may be missing), ``modules`` further modules or aliases. ``dump_timeout`` 0: a dump may take
    as long as it grows; ``watchdog_timeout`` 0: watchdogs are left alone. ``pstore`` is auto (when no
    dump is saved), always or never.
    """

    release: str
    targets: tuple[Target, ...]
    dump_level: int = 31
    final_action: str = "reboot"
    host: str = "localhost"
    hooks: Optional[Path] = None
    modules: tuple[str, ...] = ()
    total_timeout: int = 600
    target_timeout: int = 60
    stall_timeout: int = 300
    hook_timeout: int = 60
    dump_timeout: int = 0
    watchdog_timeout: int = 60
    pstore: str = "auto"


@dataclass(frozen=True)
class Entry:
    """One file of the initramfs: its path there, its size in bytes and why it is there."""

    path: str
    bytes: int
    why: str


@dataclass(frozen=True)
class Initramfs:
    """``data`` is what to load; ``unpacked_bytes`` the archive within (``compression``)."""

    data: bytes
    unpacked_bytes: int
    compression: str
    entries: tuple[Entry, ...]


class _Contents:
    """The members collected so far, by path; the first reason for a file stays."""

    def __init__(self) -> None:
        self.members: dict[str, newc.Member] = {}
        self.entries: list[Entry] = []

    def add(self, member: newc.Member, why: str) -> None:
        if member.path not in self.members:
            self.members[member.path] = member
            self.entries.append(Entry("/" + member.path, len(member.data), why))

    def add_program(self, root: Path, source: Path, path: str, why: str) -> None:
        """An executable with its libraries, which keep the paths at which ld.so finds them."""
        self.add(newc.regular(path, _read(source), 0o755), why)
        for library in find_libraries(root, source):
            data = _read(library.source)
            self.add(newc.regular(library.path.lstrip("/"), data, 0o755), library.why)


def build_initramfs(root: Path, spec: CaptureSpec) -> Initramfs:
    """Collect and compress the capture initramfs from the host's files below ``root``.

    Raises CrashlendError when a tool, a library or a module is missing, with the package to
    install where that is known.
    """
    contents = _Contents()
    for name in ("proc", "sys", "dev", "run", "tmp", "target", "bin"):
        contents.add(newc.directory(name), "mount point" if name != "bin" else "programs")
    # what the kernel opens for init before devtmpfs is mounted
    contents.add(newc.character_device("dev/console", 5, 1), "init's standard streams")
    contents.add(newc.character_device("dev/null", 1, 3, 0o666), "nothing")
    kinds = [target.kind for target in spec.targets]
    init = script(kinds, [part for target in spec.targets for part in target.parts])
    contents.add(newc.regular("init", init, 0o755), "captures")
    _add_busybox(contents, root)
    program = _find_tool(root, makedumpfile.PATHS, "makedumpfile")
    contents.add_program(root, program, "bin/makedumpfile", "writes the dump")
    features = makedumpfile.read_features(contents.members["bin/makedumpfile"].data)
    threads = find_threads(root, program, features)
    if threads.library:
        data = _read(threads.library.source)
        path = threads.library.path.lstrip("/")
        contents.add(newc.regular(path, data, 0o755), "threads of makedumpfile")
    for number, target in enumerate(spec.targets):
        _add_target(contents, root, target, number)
    _add_modules(contents, root, spec)
    if spec.hooks is not None:
        _add_hooks(contents, root, spec.hooks)
    config = shell_variables(
        {
            **_capture_variables(spec, _library_path(contents)),
            **makedumpfile.variables(features, threads=threads.usable),
        }
    )
    contents.add(newc.regular("etc/crashlend/capture.conf", config), "settings")

    unpacked = newc.build(contents.members.values())
    compression = best_compression(kernel_config(root, spec.release))
    data = _compress(unpacked, compression)
    entries = tuple(sorted(contents.entries, key=lambda entry: entry.path))
    return Initramfs(data, len(unpacked), compression, entries)


def load_archive(variables: Mapping[str, str]) -> bytes:
    """A small archive with /etc/crashlend/load.conf, which overrides capture.conf.

    None, not even an empty one, where there are no variables.

    To be appended to the initramfs behind zero bytes up to a multiple of 4. Variables that
    init knows: LENDER, LENT_BYTES, LENT_RANGES (``start-end,…``, half-open), DUMP_LEVEL,
    ALLOW_MISSING_USER_DATA (0 or 1), and every one of capture.conf.
    """
    if not variables:
        return b""
    return newc.build([newc.regular("etc/crashlend/load.conf", shell_variables(variables))])


def shell_variables(variables: Mapping[str, str]) -> bytes:
    """``NAME='value'`` lines for a POSIX shell. Raises CrashlendError for what is no name."""
    lines = []
    for name, value in variables.items():
        if not re.fullmatch(r"[A-Z][A-Z0-9_]*", name) or "\0" in value:
            raise CrashlendError(f"cannot pass {name} to the crash kernel", "not a shell variable")
        quoted = value.replace("'", "'\\''")
        lines.append(f"{name}='{quoted}'\n")
    return "".join(lines).encode(errors="surrogateescape")


def kernel_config(root: Path, release: str) -> Mapping[str, str]:
    """The CONFIG_ options of ``release`` that are set; empty when they are nowhere to be read."""
    paths = [root / "boot" / f"config-{release}"]
    paths += [root / d / "modules" / release / "config" for d in ("lib", "usr/lib")]
    paths += [root / "usr/lib/modules" / release / "kernel/config"]
    for path in paths:
        try:
            return _parse_config(path.read_text(encoding="utf-8", errors="replace"))
        except OSError:
            continue
    try:
        running = (root / "proc/sys/kernel/osrelease").read_text(encoding="utf-8").strip()
        if running == release:
            data = gzip.decompress((root / "proc/config.gz").read_bytes())
            return _parse_config(data.decode(errors="replace"))
    except (OSError, EOFError):
        pass
    return {}


def best_compression(config: Mapping[str, str]) -> str:
    """``xz`` where the kernel can unpack it, else ``gzip``, which every distribution's can."""
    return "xz" if config.get("CONFIG_RD_XZ") == "y" else "gzip"


def _parse_config(text: str) -> dict[str, str]:
    found = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and name.startswith("CONFIG_"):
            found[name] = value.strip()
    return found


def _compress(data: bytes, compression: str) -> bytes:
    if compression == "gzip":
        return gzip.compress(data, 9, mtime=0)
    size = _XZ_DICTIONARY_BYTES_MIN
    while size < min(len(data), _XZ_DICTIONARY_BYTES_MAX):
        size *= 2
    # The kernel's decoder knows no other check than CRC32 (Documentation/staging/xz.rst).
    lzma2 = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": size}
    return lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=[lzma2])


def _add_busybox(contents: _Contents, root: Path) -> None:
    source = _find_tool(root, _BUSYBOX, "busybox")
    contents.add_program(root, source, "bin/busybox", "shell and tools of init")
    # busybox holds the names of its applets as one list of NUL-terminated strings
    data = contents.members["bin/busybox"].data
    wished = (*APPLETS.split(), *MORE_APPLETS.split())
    present = [name for name in wished if b"\0" + name.encode() + b"\0" in data]
    missing = sorted({*APPLETS.split()} - {*present})
    if missing:
        raise CrashlendError(
            f"cannot use {source}",
            f"it lacks {', '.join(missing)}",
            hint="install the package busybox or busybox-static",
        )
    for applet in present:
        contents.add(newc.symlink(f"bin/{applet}", "busybox"), "applet of busybox")


def _add_target(contents: _Contents, root: Path, target: Target, number: int) -> None:
    for program in target.programs:
        source = _find_tool(root, program.candidates, program.package)
        contents.add_program(root, source, program.path, program.why)
    for file in target.files:
        contents.add(newc.regular(file.path, file.data, file.mode), file.why)
    own = {"TARGET_KIND": target.kind, "TARGET_SPEC": target.spec}
    conf = shell_variables({**own, **target.variables})
    path = f"etc/crashlend/targets/{number}.conf"
    why = f"dump target {target.spec}" + (f": {target.says}" if target.says else "")
    contents.add(newc.regular(path, conf, 0o600), why)


def _add_modules(contents: _Contents, root: Path, spec: CaptureSpec) -> None:
    tree = read_module_tree(find_module_directory(root, spec.release))
    extra = tuple(Want(name, "named in the settings") for name in spec.modules)
    wants = tuple(want for target in spec.targets for want in target.wants)
    lists = module_lists(
        root,
        tree,
        (*wants, *memory_wants(root), *extra),
        watchdogs=spec.watchdog_timeout > 0,
        pstore=spec.pstore != "never",
    )
    for name, inserts in lists._asdict().items():
        for insert in inserts:
            module = insert.module
            data = read_module(module.path)
            contents.add(newc.regular(f"lib/modules/{module.name}.ko", data), module.why)
        if inserts or name == "modules":
            lines = "".join(insert.line for insert in inserts)
            contents.add(
                newc.regular(f"etc/crashlend/{name}", lines.encode()), "order of the modules"
            )


def _add_hooks(contents: _Contents, root: Path, hooks: Path) -> None:
    for stage in HOOK_STAGES:
        for source in sorted((hooks / f"{stage}.d").glob("*")):
            if not source.is_file() or not source.stat().st_mode & 0o111:
                continue
            path, why = f"etc/crashlend/hooks/{stage}.d/{source.name}", f"{stage} hook"
            data = _read(source)
            if is_elf(data):
                contents.add_program(root, source, path, why)
                continue
            interpreter = data.split(b"\n", 1)[0][2:].decode(errors="replace").split()
            if not data.startswith(b"#!") or not interpreter or interpreter[0] not in _SHELLS:
                raise CrashlendError(
                    f"cannot use the hook {source}",
                    "it is neither an ELF program nor a script for /bin/sh",
                    hint="begin it with #!/bin/sh (busybox runs it), or make it not executable",
                )
            contents.add(newc.regular(path, data, 0o755), why)


def _capture_variables(spec: CaptureSpec, library_path: str) -> dict[str, str]:
    return {
        "TARGETS": " ".join(map(str, range(len(spec.targets)))),
        "HOST": re.sub(r"[^A-Za-z0-9._-]", "_", spec.host).lstrip(".") or "localhost",
        "DUMP_LEVEL": str(spec.dump_level),
        "FINAL_ACTION": spec.final_action,
        "TOTAL_TIMEOUT": str(spec.total_timeout),
        "TARGET_TIMEOUT": str(spec.target_timeout),
        "STALL_TIMEOUT": str(spec.stall_timeout),
        "HOOK_TIMEOUT": str(spec.hook_timeout),
        "DUMP_TIMEOUT": str(spec.dump_timeout),
        "WATCHDOG_TIMEOUT": str(spec.watchdog_timeout),
        "PSTORE": spec.pstore,
        "LIBRARY_PATH": library_path,
    }


def _library_path(contents: _Contents) -> str:
    """Where the libraries are. There is no ld.so.cache, and each libc has its own defaults."""
    libraries = (path for path in contents.members if ".so" in path.rsplit("/", 1)[-1])
    return ":".join(sorted({"/" + path.rsplit("/", 1)[0] for path in libraries}))


def _find_tool(root: Path, candidates: tuple[str, ...], package: str) -> Path:
    for candidate in candidates:
        path = resolve(root, candidate)
        if path.is_file():
            return path
    raise CrashlendError(
        "cannot build the capture initramfs",
        f"{package} is not installed",
        hint=f"install the package {package}",
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CrashlendError(f"cannot read {path}", str(error.strerror)) from error
