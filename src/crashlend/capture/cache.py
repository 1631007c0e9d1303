# SPDX-License-Identifier: LGPL-2.1-or-later
"""Compressed initramfs archives by content: compressing takes ten seconds, all else less than one.

The key is a digest of an archive before compression and of how it is compressed. So it is
never stale: whatever would change a byte of the result changes the key, be it a file of the host, a
setting, or another version of crashlend. Each file begins with a digest of what follows it, so one
that is torn or damaged counts as none. No secrets are given to it (compression.py): they would stay,
and be in backups, long after they were changed.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path
from typing import Optional

DIRECTORY = Path("/var/cache/crashlend")
KEPT = 8  # two for each of some kernels, or targets, that take turns
_MAGIC = b"crashlend initramfs 1\n"
_SUFFIX, _NEW = ".img", ".new-"
_DIGEST_BYTES = hashlib.sha256().digest_size


def cache_key(how: str, archive: bytes) -> str:
    """The key of ``archive``, compressed as ``how`` says."""
    digest = hashlib.sha256(how.encode() + b"\0")
    digest.update(archive)
    return digest.hexdigest()


def read_cached(directory: Path, key: str) -> Optional[bytes]:
    """What was kept under ``key``; None when there is nothing, or nothing whole."""
    path = directory / (key + _SUFFIX)
    try:
        if not _is_private(directory):
            return None
        data = path.read_bytes()
        begin = len(_MAGIC) + _DIGEST_BYTES
        whole = data.startswith(_MAGIC) and len(data) > begin
        if not whole or hashlib.sha256(data[begin:]).digest() != data[len(_MAGIC) : begin]:
            return None
        os.utime(path)  # the oldest go first
    except OSError:
        return None
    return data[begin:]


def write_cached(directory: Path, key: str, data: bytes) -> None:
    """Keep ``data`` under ``key``, whole or not at all. What cannot be kept is built again, no more."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_private(directory):
            return
        # 0600 from the beginning (tempfile); a name of its own, so that two may write at once
        with tempfile.NamedTemporaryFile(dir=directory, prefix=_NEW, delete=False) as stream:
            try:
                stream.write(_MAGIC + hashlib.sha256(data).digest() + data)
                stream.flush()
                os.fsync(stream.fileno())
                Path(stream.name).replace(directory / (key + _SUFFIX))
            except BaseException:
                Path(stream.name).unlink()
                raise
        _prune(directory)
    except OSError:
        return


def _is_private(directory: Path) -> bool:
    """Whether it is a directory of this user's that nobody else can read or write."""
    found = directory.lstat()
    own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    return own and not found.st_mode & 0o077


def _prune(directory: Path) -> None:
    """Leave the newest; what was killed while it wrote is old after an hour."""
    files = {path: path.stat().st_mtime for path in directory.iterdir() if path.is_file()}
    newest = max(files.values(), default=0)
    kept = sorted((p for p in files if p.suffix == _SUFFIX), key=lambda p: files[p], reverse=True)
    torn = [p for p in files if p.name.startswith(_NEW) and newest - files[p] > 3600]
    for path in (*kept[KEPT:], *torn):
        path.unlink()
