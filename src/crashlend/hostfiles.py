# SPDX-License-Identifier: LGPL-2.1-or-later
"""The files of a host: the running one, an unpacked snapshot, or a snapshot archive."""

from __future__ import annotations

import io
import json
import lzma
import os
import tarfile
import zlib
from pathlib import Path
from typing import Protocol

from crashlend.errors import CrashlendError

# In a snapshot: which files the host had but would not let us read, and why.
MANIFEST = "crashlend-snapshot.json"
# In a snapshot: what the pages of each memory block held (/proc/kpageflags itself is too large).
# Below /proc, where no file of this name can be on a running host.
CENSUS = "/proc/crashlend-census.json"
# ... and where the clean memory of a ZONE_MOVABLE was.
CLEAN_RUNS = "/proc/crashlend-clean-runs.json"
# ... and what lent memory held, with or without a census of all the rest.
LENT_PAGES = "/proc/crashlend-lent-pages.json"
# ... and what showed whether the pages of the kernel's ,cma ranges are CMA.
CMA_EVIDENCE = "/proc/crashlend-cma-evidence.json"
# No file read here is larger; a truncated one is said to be so by its parser.
MAX_BYTES = 64 * 1024 * 1024
# What tarfile and the decompressors below it raise for damaged archives.
DAMAGED = (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError)


class HostFiles(Protocol):
    """Read access by absolute path. Errors are OSError, as the running host gives them."""

    def read(self, path: str, limit: int = MAX_BYTES, offset: int = 0) -> bytes: ...
    def names(self, path: str) -> list[str]: ...
    def exists(self, path: str) -> bool: ...


class TreeFiles:
    """The tree below ``root``: ``/`` or an unpacked snapshot."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.unreadable: dict[str, str] = {}
        manifest = root / MANIFEST
        if manifest.is_file():
            self.unreadable = _unreadable(manifest.read_bytes())

    def read(self, path: str, limit: int = MAX_BYTES, offset: int = 0) -> bytes:
        """At most ``limit`` bytes; what /dev/kmsg holds now (it would block for more)."""
        if path in self.unreadable:
            raise PermissionError(self.unreadable[path])
        fd = os.open(self.root / path.lstrip("/"), os.O_RDONLY | os.O_NONBLOCK)
        try:
            if offset:
                os.lseek(fd, offset, os.SEEK_SET)
            chunks = []
            left = limit
            while left > 0:
                try:
                    chunk = os.read(fd, min(left, 1 << 20))
                except BlockingIOError:
                    break
                except BrokenPipeError:  # kmsg: older records were overwritten meanwhile
                    continue
                if not chunk:
                    break
                chunks.append(chunk)
                left -= len(chunk)
            return b"".join(chunks)
        finally:
            os.close(fd)

    def names(self, path: str) -> list[str]:
        """What the directory holds, sorted; empty when there is none."""
        try:
            return sorted(os.listdir(self.root / path.lstrip("/")))
        except OSError:
            return []

    def exists(self, path: str) -> bool:
        return path in self.unreadable or (self.root / path.lstrip("/")).exists()


class ArchiveFiles:
    """A snapshot archive (tar, compressed or not), held in memory."""

    def __init__(self, data: bytes, name: str) -> None:
        self.files: dict[str, bytes] = {}
        self.dirs: dict[str, set[str]] = {}
        try:
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                for member in archive:
                    path = "/" + member.name.strip("/")
                    if member.isfile():
                        stream = archive.extractfile(member)
                        self.files[path] = stream.read(MAX_BYTES) if stream else b""
                    elif member.isdir():
                        # an empty one, too, is a sign: only that it exists is known of some
                        self.dirs.setdefault(path, set())
                    while path != "/":
                        parent, _, leaf = path.rpartition("/")
                        self.dirs.setdefault(parent or "/", set()).add(leaf)
                        path = parent or "/"
        except DAMAGED as error:
            raise CrashlendError(
                f"cannot read snapshot {name}",
                str(error) or type(error).__name__,
                hint="crashlend snapshot FILE makes one",
            ) from error
        self.unreadable = _unreadable(self.files.get("/" + MANIFEST, b""))

    def read(self, path: str, limit: int = MAX_BYTES, offset: int = 0) -> bytes:
        if path in self.unreadable:
            raise PermissionError(self.unreadable[path])
        if path not in self.files:
            raise FileNotFoundError(f"not in the snapshot: {path}")
        return self.files[path][offset : offset + limit]

    def names(self, path: str) -> list[str]:
        return sorted(self.dirs.get(path.rstrip("/") or "/", ()))

    def exists(self, path: str) -> bool:
        return path in self.files or path in self.dirs or path in self.unreadable


def _unreadable(manifest: bytes) -> dict[str, str]:
    try:
        value = json.loads(manifest or b"{}").get("unreadable", {})
    except (ValueError, AttributeError):
        return {}
    return {str(k): str(v) for k, v in value.items()} if isinstance(value, dict) else {}


def open_host(root: Path) -> HostFiles:
    """Open ``root``: a directory, or a snapshot archive as ``crashlend snapshot`` writes it."""
    if root.is_dir():
        if not (root / "proc").is_dir():
            raise _no_snapshot(root, "it has no directory proc")
        return TreeFiles(root)
    try:
        with root.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise _no_snapshot(root, "it is too large for one")
        archive = ArchiveFiles(data, str(root))
        if not archive.exists("/proc"):
            raise _no_snapshot(root, "it has no directory proc")
        return archive
    except OSError as error:
        raise CrashlendError(
            f"cannot read {root}",
            error.strerror or str(error),
            hint="--root takes a directory or a snapshot file",
        ) from error


def _no_snapshot(root: Path, why: str) -> CrashlendError:
    return CrashlendError(
        f"{root} is no snapshot",
        why,
        hint="--root takes what `crashlend snapshot FILE` writes, packed or unpacked",
    )
