# SPDX-License-Identifier: LGPL-2.1-or-later
"""What OpenSSH knows of a host: the lines of known_hosts that speak of it (sshd(8), its format)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from crashlend.capture.libraries import resolve

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

KNOWN_HOSTS = ("/root/.ssh/known_hosts", "/etc/ssh/ssh_known_hosts")


def known_lines(root: Path, files: Sequence[str], host: str, port: int) -> bytes:
    """The lines of ``files`` (those that exist) for a host, told by its plain name; b"" for none.

    Hosts may be hashed, patterns, or negated; markers (@cert-authority, @revoked) stay.
    """
    name = (host if port == 22 else f"[{host}]:{port}").lower()
    found: list[str] = []
    for file in files:
        try:
            text = resolve(root, file).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        for line in text.splitlines():
            words = line.split()
            marker = [words.pop(0)] if words and words[0].startswith("@") else []
            if len(words) >= 3 and not words[0].startswith("#") and matches(words[0], name):
                found.append(" ".join([*marker, host, *words[1:3]]))
    known = [line for line in dict.fromkeys(found) if not line.startswith("@revoked")]
    return "".join(f"{line}\n" for line in dict.fromkeys(found)).encode() if known else b""


def matches(patterns: str, name: str) -> bool:
    """Whether the first field of a line speaks of ``name`` (lower case, ``[HOST]:PORT``)."""
    if patterns.startswith("|1|"):
        try:
            salt, digest = (base64.b64decode(part) for part in patterns[3:].split("|", 1))
        except (ValueError, binascii.Error):
            return False
        return hmac.compare_digest(hmac.new(salt, name.encode(), hashlib.sha1).digest(), digest)
    good = False
    for pattern in patterns.lower().split(","):
        # brackets mean themselves
        plain = pattern.lstrip("!").replace("[", "[[]")
        if fnmatchcase(name, plain):
            if pattern.startswith("!"):
                return False
            good = True
    return good
