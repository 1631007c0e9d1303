# SPDX-License-Identifier: LGPL-2.1-or-later
"""What targets are reached with: the settings about keys, certificates and addresses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crashlend.capture.libraries import resolve
from crashlend.errors import CrashlendError

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Access:
    """Files by their path on the host; "" where the usual ones will do. Times in seconds."""

    key_file: str = ""  # of LUKS devices for which crypttab names none
    ssh_key: str = ""
    ssh_known_hosts: str = ""
    http_ca: str = ""
    http_headers: str = ""
    nfs_options: str = ""
    network_address: str = "auto"
    network_timeout: int = 60


def read_file(root: Path, path: str, what: str, hint: str) -> bytes:
    """A file of the host below ``root``. CrashlendError, with ``what`` it is, when that fails."""
    try:
        return resolve(root, path).read_bytes()
    except OSError as error:
        raise CrashlendError(
            f"cannot read {what} {path}", error.strerror or str(error), hint=hint
        ) from error


def read_secret(root: Path, path: str, what: str, hint: str) -> bytes:
    """The same for what nobody but its owner may read. CrashlendError when others may."""
    data = read_file(root, path, what, hint)
    if resolve(root, path).stat().st_mode & 0o077:
        raise CrashlendError(
            f"cannot use {what} {path}", "others may read it", hint=f"run: chmod 600 {path}"
        )
    return data
