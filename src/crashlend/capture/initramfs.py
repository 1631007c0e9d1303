# SPDX-License-Identifier: LGPL-2.1-or-later
"""Build the capture initramfs: tools, makedumpfile, the modules on the way, and init.

Everything comes from the host itself. The same input gives the same bytes, so that "is the
loaded image still what would be built?" is a comparison.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from crashlend.capture import makedumpfile
from crashlend.capture.compression import kernel_config, pack
from crashlend.capture.contents import Contents, Entry, find_tool, read_file
from crashlend.capture.firmware import add_firmware
from crashlend.capture.makedumpfile_probe import find_threads
from crashlend.capture.modulelists import module_lists
from crashlend.capture.modules import Want, find_module_directory, read_module, read_module_tree
from crashlend.capture.script import script
from crashlend.capture.signatures import are_enforced
from crashlend.capture.slim import slim_module
from crashlend.capture.targets.target import Target
from crashlend.capture.targets.way import memory_wants
from crashlend.capture.tools import add_own, add_tools
from crashlend.errors import CrashlendError
from crashlend.formats import newc
from crashlend.formats.elf import is_elf

if TYPE_CHECKING:
    from collections.abc import Mapping

HOOK_STAGES = ("pre", "post", "failure")
_SHELLS = ("/bin/sh", "/bin/busybox")


@dataclass(frozen=True)
class CaptureSpec:
    """What goes into a capture initramfs. Times are in seconds.

    ``release`` is the crash kernel's, ``targets`` are in order of preference, ``host`` the name that
    dump directories begin with, ``hooks`` a directory with ``pre.d``, ``post.d`` and ``failure.d``
    (it may be missing), ``modules`` further modules or aliases. ``dump_timeout`` 0: a dump may take
    as long as it grows; ``watchdog_timeout`` 0: watchdogs are left alone. ``pstore`` is auto (when no
    dump is saved), always or never. ``append``: more words for the crash kernel's command line, which
    may say that it takes signed modules alone.
    """

    release: str
    targets: tuple[Target, ...]
    dump_level: int = 31
    final_action: str = "reboot"
    host: str = "localhost"
    hooks: Optional[Path] = None
    modules: tuple[str, ...] = ()
    append: str = ""
    total_timeout: int = 600
    target_timeout: int = 60
    stall_timeout: int = 300
    hook_timeout: int = 60
    dump_timeout: int = 0
    watchdog_timeout: int = 60
    pstore: str = "auto"


@dataclass(frozen=True)
class Initramfs:
    """``data`` is what to load; ``unpacked_bytes`` the archive within (``compression``)."""

    data: bytes
    unpacked_bytes: int
    compression: str
    entries: tuple[Entry, ...]


def build_initramfs(root: Path, spec: CaptureSpec, cache: Optional[Path] = None) -> Initramfs:
    """Collect and compress the capture initramfs from the host's files below ``root``.

    ``cache``: a directory for compressed results (cache.py). Raises CrashlendError when a tool, a library or a module is missing, with the package to
    install where that is known.
    """
    contents = Contents()
    config = kernel_config(root, spec.release)
    for name in ("proc", "sys", "dev", "run", "tmp", "target", "bin"):
        contents.add(newc.directory(name), "mount point" if name != "bin" else "programs")
    # what the kernel opens for init before devtmpfs is mounted
    contents.add(newc.character_device("dev/console", 5, 1), "init's standard streams")
    contents.add(newc.character_device("dev/null", 1, 3, 0o666), "nothing")
    kinds = [target.kind for target in spec.targets]
    init = script(kinds, [part for target in spec.targets for part in target.parts])
    contents.add(newc.regular("init", init, 0o755), "captures")
    add_tools(contents, root)
    program = find_tool(root, makedumpfile.PATHS, "makedumpfile")
    contents.add_program(root, program, "bin/makedumpfile", "writes the dump")
    features = makedumpfile.read_features(contents.members["bin/makedumpfile"].data)
    threads = find_threads(root, program, features)
    if threads.library:
        data = read_file(threads.library.source)
        path = threads.library.path.lstrip("/")
        contents.add(newc.regular(path, data, 0o755), "threads of makedumpfile")
    for number, target in enumerate(spec.targets):
        _add_target(contents, root, target, number)
    _add_modules(contents, root, spec, signed=are_enforced(root, config, spec.append))
    if spec.hooks is not None:
        _add_hooks(contents, root, spec.hooks)
    settings = shell_variables(
        {
            **_capture_variables(spec, contents.library_path()),
            **makedumpfile.variables(
                features,
                threads=threads.usable,
                library=threads.library.path if threads.library else "",
            ),
        }
    )
    contents.add(newc.regular("etc/crashlend/capture.conf", settings), "settings")

    packed = pack(contents.members.values(), config, cache)
    entries = tuple(sorted(contents.entries, key=lambda entry: entry.path))
    return Initramfs(*packed, entries)


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


def _add_target(contents: Contents, root: Path, target: Target, number: int) -> None:
    chain = (f"dump target {target.spec}",)
    for program in target.programs:
        source = find_tool(root, program.candidates, program.package)
        contents.add_program(root, source, program.path, program.why, chain)
    for name in target.tools:
        if f"bin/{name}" not in contents.members:
            _add_tool(contents, root, target, name)
    for file in target.files:
        contents.add(newc.regular(file.path, file.data, file.mode), file.why, chain)
    own = {"TARGET_KIND": target.kind, "TARGET_SPEC": target.spec}
    conf = shell_variables({**own, **target.variables})
    path = f"etc/crashlend/targets/{number}.conf"
    why = f"dump target {target.spec}" + (f": {target.says}" if target.says else "")
    contents.add(newc.regular(path, conf, 0o600), why)


def _add_tool(contents: Contents, root: Path, target: Target, name: str) -> None:
    """The host's own, where busybox has none. Each DHCP client but busybox's wants its own scripts."""
    if name == "udhcpc":
        raise CrashlendError(
            f"cannot dump to {target.spec}",
            "its interface has its address by DHCP, and no busybox with udhcpc is installed",
            hint="install the package busybox, or set network_address = static: then the crash kernel "
            "has the address that the interface has now",
        )
    add_own(contents, root, name, (f"dump target {target.spec}", f"no busybox has {name}"))


def _add_modules(contents: Contents, root: Path, spec: CaptureSpec, *, signed: bool) -> None:
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
            path = f"lib/modules/{module.name}.ko"
            member = newc.regular(path, data if signed else slim_module(data))
            contents.add(member, module.why, module.chain)
            add_firmware(contents, root, spec.release, module, data)
        if inserts or name == "modules":
            lines = "".join(insert.line for insert in inserts)
            contents.add(
                newc.regular(f"etc/crashlend/{name}", lines.encode()), "order of the modules"
            )


def _add_hooks(contents: Contents, root: Path, hooks: Path) -> None:
    for stage in HOOK_STAGES:
        for source in sorted((hooks / f"{stage}.d").glob("*")):
            if not source.is_file() or not source.stat().st_mode & 0o111:
                continue
            path, why = f"etc/crashlend/hooks/{stage}.d/{source.name}", f"{stage} hook"
            data = read_file(source)
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
            # what only root may read may hold a token
            mode = 0o755 if source.stat().st_mode & 0o077 else 0o700
            contents.add(newc.regular(path, data, mode), why)


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
