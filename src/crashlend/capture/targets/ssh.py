# SPDX-License-Identifier: LGPL-2.1-or-later
"""A directory on another host as dump target, by OpenSSH: ssh://USER@HOST[:PORT]/DIRECTORY.

Nothing is asked in a crash kernel: the key has no passphrase, and the host's own key is known when
the crash kernel is loaded, or the target is refused then.
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import TYPE_CHECKING

from crashlend.capture.targets.access import read_secret
from crashlend.capture.targets.knownhosts import KNOWN_HOSTS, known_lines
from crashlend.capture.targets.network import PARTS, reach
from crashlend.capture.targets.opened import opened_library
from crashlend.capture.targets.target import File, Program, Target
from crashlend.capture.targets.urls import Url, parse_url
from crashlend.errors import CrashlendError

if TYPE_CHECKING:
    from pathlib import Path

    from crashlend.capture.targets.access import Access
    from crashlend.capture.targets.network import Reach

HINT = "write ssh://USER@HOST[:PORT]/DIRECTORY (/~/DIRECTORY for one in the user's home)"
# kdump-tools and kdump-utils use the first; then OpenSSH's own, best first
KEYS = tuple(f"/root/.ssh/{name}" for name in ("kdump_id_rsa", "id_ed25519", "id_ecdsa", "id_rsa"))
SSH = Program(("usr/bin/ssh", "bin/ssh"), "bin/ssh", "openssh-client", "sends dumps by SSH")
_MAGIC = b"openssh-key-v1\0"
# getpwuid() must know root, or ssh ends at once: "No user exists for uid 0". What reads the file is a
# library of its own before glibc 2.34, which took it in (its NEWS); later ones may bring a stub.
_NSS_FILES = "libnss_files.so.2"
_PASSWD = b"root:x:0:0:root:/:/bin/sh\n"
_NSS = b"passwd: files\nhosts: files dns\n"


def find_ssh(root: Path, spec: str, path: str, access: Access) -> Target:
    """The target for an address, with the key and what is known of the host.

    ``path`` (the setting for local file systems) has no meaning here. CrashlendError for what is no
    such address, for a key that needs a passphrase, for a host that is not known, and where nothing
    leads there.
    """
    url = parse_url(spec, HINT)
    what = f"cannot use the dump target {url.shown}"
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", url.user):
        raise CrashlendError(what, "it names no user", hint=HINT)
    if url.path in ("", "/", "/~", "/~/") or url.query:
        raise CrashlendError(what, "it names no directory", hint=HINT)
    names = (access.ssh_key,) if access.ssh_key else KEYS
    key_path = next((name for name in names if _exists(root, name)), names[0])
    make = f"make one: ssh-keygen -t ed25519 -N '' -f {key_path}; ssh-copy-id -i {key_path} …"
    if not access.ssh_key and not _exists(root, key_path):
        why = f"there is no SSH key: none of {', '.join(KEYS)} exists"
        raise CrashlendError(what, why, hint=f"set ssh_key, or {make}")
    key = read_secret(root, key_path, "the SSH key", make)
    if is_encrypted(key):
        raise CrashlendError(
            f"cannot use the SSH key {key_path}",
            "it has a passphrase, and nobody can type it in a crash kernel",
            hint=make,
        )
    files = (access.ssh_known_hosts,) if access.ssh_known_hosts else KNOWN_HOSTS
    programs = (SSH, *opened_library(root, SSH, _NSS_FILES, "reads /etc/passwd for the C library"))
    known = known_lines(root, files, url.host, url.port or 22)
    if not known:
        port = f" -p {url.port}" if url.port else ""
        raise CrashlendError(
            what,
            f"{', '.join(files)}: {url.host}'s key is not known",
            hint=f"add it: ssh-keyscan{port} {url.host} >>{files[0]}; and compare it with what the "
            "server's administrator says: ssh-keygen -lf FILE",
        )
    return ssh_target(url, key, known, reach(root, url.host, access), programs)


def ssh_target(
    url: Url, key: bytes, known: bytes, way: Reach, programs: tuple[Program, ...]
) -> Target:
    """A target of kind ``ssh``: ``known`` are lines of known_hosts for the host's name."""
    place = f"etc/crashlend/ssh/{hashlib.sha256(url.shown.encode()).hexdigest()[:12]}"
    why = f"dump target {url.shown}"
    if not key.endswith(b"\n"):
        key += b"\n"  # ssh does not take it without
    variables = {
        **way.variables,
        "TARGET_PATH": url.path[3:] if url.path.startswith("/~/") else url.path.rstrip("/"),
        "TARGET_SSH_CONFIG": f"/{place}/config",
    }
    files = (
        File(f"{place}/config", client_config(url, place), 0o600, f"SSH's settings for {why}"),
        File(f"{place}/key", key, 0o600, f"SSH key for {why}"),
        File(f"{place}/known_hosts", known, 0o600, f"host key of {why}"),
        File("etc/passwd", _PASSWD, 0o644, "OpenSSH wants to know who it runs for"),
        File("etc/nsswitch.conf", _NSS, 0o644, "where names are looked up"),
        *way.files,
    )
    return Target(
        "ssh",
        url.shown,
        variables,
        way.wants,
        programs,
        files,
        PARTS,
        says=way.says,
        tools=(*way.tools, "mkfifo"),
    )


def client_config(url: Url, place: str) -> bytes:
    """OpenSSH's settings: one key, one known host, no questions; init adds address and times."""
    lines = (
        "Host target",
        f"User {url.user}",
        f"Port {url.port or 22}",
        f"HostKeyAlias {url.host}",
        f"IdentityFile /{place}/key",
        "IdentitiesOnly yes",
        f"UserKnownHostsFile /{place}/known_hosts",
        "GlobalKnownHostsFile /dev/null",
        "StrictHostKeyChecking yes",
        "CheckHostIP no",
        "UpdateHostKeys no",
        "BatchMode yes",
        "PreferredAuthentications publickey",
        "RequestTTY no",
        "LogLevel ERROR",
        "ServerAliveCountMax 3",
    )
    return "".join(f"{line}\n" for line in lines).encode()


def is_encrypted(key: bytes) -> bool:
    """Whether a private key needs a passphrase (PROTOCOL.key of OpenSSH; RFC 7468 and 1421)."""
    found = re.search(rb"-----BEGIN OPENSSH PRIVATE KEY-----\s(.*?)-----END", key, re.DOTALL)
    if not found:
        return b"ENCRYPTED" in key
    try:
        data = base64.b64decode(found[1], validate=False)
    except ValueError:
        return False
    # magic, then the cipher's name with its length
    return data.startswith(_MAGIC) and data[len(_MAGIC) + 4 :][:4] != b"none"


def _exists(root: Path, path: str) -> bool:
    return (root / path.lstrip("/")).is_file()
