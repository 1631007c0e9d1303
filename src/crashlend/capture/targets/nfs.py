# SPDX-License-Identifier: LGPL-2.1-or-later
"""A directory of an NFS server, version 4 or 3, as dump target: nfs://SERVER[:PORT]/EXPORT."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from crashlend.capture.libraries import resolve
from crashlend.capture.modules import Want
from crashlend.capture.targets.network import PARTS, reach
from crashlend.capture.targets.target import Program, Target
from crashlend.capture.targets.urls import parse_url
from crashlend.errors import CrashlendError

if TYPE_CHECKING:
    from pathlib import Path

    from crashlend.capture.targets.access import Access
    from crashlend.capture.targets.network import Reach

HINT = "write nfs://SERVER[:PORT]/EXPORT[?vers=4.2|4.1|4.0|3][&dir=/DIRECTORY][&OPTION=VALUE]"
VERSIONS = ("4.2", "4.1", "4.0", "3")
_OPTION = re.compile(r"[a-z0-9_]+(=[A-Za-z0-9_.:-]+)?")
# Set here for the sake of the crash kernel, or not to be had there.
_OURS = ("vers", "nfsvers", "addr", "clientaddr", "soft", "hard", "timeo", "retrans", "proto", "ro")
# Until 1.31 (Debian 11 has 1.30.1) busybox could be built to make the kernel's older, binary options of
# what it is told (FEATURE_MOUNT_NFS); it knows no version 4 then.
_BUSYBOX = ("bin/busybox", "usr/bin/busybox")
MOUNT = Program(
    ("usr/bin/mount", "bin/mount"), "bin/mount-nfs", "mount", "leaves NFS to the kernel"
)
_KERBEROS = ("krb5", "krb5i", "krb5p")


def find_nfs(root: Path, spec: str, path: str, access: Access) -> Target:
    """The target for an address; dumps go below ``dir`` of its query, or right into the export.

    ``path`` (the setting for local file systems) has no meaning here. CrashlendError for what is no
    such address, asks for what the crash kernel has not, or cannot be reached.
    """
    url = parse_url(spec, HINT)
    what = f"cannot use the dump target {url.shown}"
    if url.user or url.path in ("", "/"):
        why = "NFS knows no user" if url.user else "it names no export"
        raise CrashlendError(what, why, hint=HINT)
    options, directory, versions = _options(what, url.query, access.nfs_options)
    if url.port:
        options.append(f"port={url.port}")
    way = reach(root, url.host, access)
    programs = (MOUNT,) if _reads_options_itself(root) else ()
    return nfs_target(url.shown, url.path, directory, versions, options, way, programs)


def nfs_target(
    spec: str,
    export: str,
    directory: str,
    versions: tuple[str, ...],
    options: list[str],
    way: Reach,
    programs: tuple[Program, ...] = (),
) -> Target:
    """A target of kind ``nfs``: ``directory`` is inside the export ("" for its top)."""
    why = f"dump target {spec}"
    wants = [*way.wants]
    if any(version.startswith("4") for version in versions):
        wants.append(Want("nfsv4", why))
    if "3" in versions:
        wants.append(Want("nfsv3", why))
    variables = {
        **way.variables,
        "TARGET_PATH": directory.rstrip("/"),
        "TARGET_NFS_EXPORT": export,
        "TARGET_NFS_VERSIONS": " ".join(versions),
        "TARGET_NFS_OPTIONS": ",".join(options),
    }
    return Target(
        "nfs",
        spec,
        variables,
        tuple(wants),
        programs,
        way.files,
        PARTS,
        says=way.says,
        tools=way.tools,
    )


def _reads_options_itself(root: Path) -> bool:
    programs = [resolve(root, path) for path in _BUSYBOX]
    return any(b"mountport" in path.read_bytes() for path in programs if path.is_file())


def _options(what: str, query: str, more: str) -> tuple[list[str], str, tuple[str, ...]]:
    """Mount options, directory and versions out of the query and the setting nfs_options."""
    options: list[str] = []
    directory = ""
    versions: tuple[str, ...] = VERSIONS
    for word in (*filter(None, more.split(",")), *filter(None, query.split("&"))):
        name, _, value = word.partition("=")
        if name in ("vers", "nfsvers"):
            if value not in (*VERSIONS, "4"):
                raise CrashlendError(what, f"there is no NFS version {value}", hint=HINT)
            versions = VERSIONS[:3] if value == "4" else (value,)
        elif name == "dir":
            if not value.startswith("/") or ".." in value.split("/"):
                raise CrashlendError(what, f"the directory {value} is not absolute", hint=HINT)
            directory = value
        elif name == "sec" and value in _KERBEROS:
            raise CrashlendError(
                what,
                "Kerberos has no tickets in a crash kernel",
                hint="export it with sec=sys, too",
            )
        elif not _OPTION.fullmatch(word) or name in _OURS:
            raise CrashlendError(what, f"the option {word} is not for you to set", hint=HINT)
        else:
            options.append(word)
    return options, directory, versions
