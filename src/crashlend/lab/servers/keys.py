# SPDX-License-Identifier: LGPL-2.1-or-later
"""Keys and certificates of the lab's servers, made once by OpenSSH's and OpenSSL's own programs.

They open nothing but the lab's guests. The programs come out of the guest's packages and run with
their own loader, so that this machine needs neither.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from crashlend.errors import CrashlendError
from crashlend.lab.packages import Say, Suite, cache_directory, locked, silent, unpack

if TYPE_CHECKING:
    from collections.abc import Sequence

SUITE = "bookworm"
NAME = "server.lab"  # the name of the server, in its certificate and in the lab's DNS
ADDRESSES = ("192.168.77.1", "fd77::1")
SSH_KEYS = ("client", "host", "other")
_DAYS = "7300"
_OPENSSL_CONF = f"""[req]
distinguished_name = name
prompt = no
[name]
CN = {NAME}
[authority]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign
[server]
basicConstraints = CA:FALSE
subjectAltName = DNS:{NAME},{",".join(f"IP:{address}" for address in ADDRESSES)}
"""
# Two authorities: the client knows the first alone.
AUTHORITIES = ("ca", "otherca")


def lab_keys(say: Say = silent) -> Path:
    """The directory with what was made; the first call makes it.

    ``client``, ``host`` and ``other`` are SSH keys (with ``.pub``); of each of :data:`AUTHORITIES`
    there is NAME.pem and a server certificate with its key, NAME-server.pem.
    """
    place = cache_directory() / "keys"
    with locked(cache_directory() / "keys.lock", say):
        if place.is_dir():
            return place
        say("making the keys of the lab's servers")
        with tempfile.TemporaryDirectory(prefix=".new-", dir=cache_directory()) as scratch:
            tree, made = Path(scratch, "tree"), Path(scratch, "keys")
            tree.mkdir()
            made.mkdir(mode=0o700)
            names = ["openssh-client", "openssl"]
            for deb in Suite(SUITE, say).download(names, with_dependencies=True):
                unpack(deb, tree, without=("./usr/share",))
            for name in SSH_KEYS:
                words = [
                    "-q",
                    "-t",
                    "ed25519",
                    "-N",
                    "",
                    "-C",
                    f"lab-{name}",
                    "-f",
                    str(made / name),
                ]
                _run(tree, "usr/bin/ssh-keygen", words)
            (made / "openssl.cnf").write_text(_OPENSSL_CONF)
            for name in AUTHORITIES:
                _make_certificates(tree, made, name)
            made.rename(place)
    return place


def _make_certificates(tree: Path, made: Path, name: str) -> None:
    conf = str(made / "openssl.cnf")
    authority, key = str(made / f"{name}.pem"), str(made / f"{name}.key")
    server = made / f"{name}-server"
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-config", conf]
    common = ["-days", _DAYS]
    words = ["req", "-x509", *new, *common, "-extensions", "authority", "-keyout", key]
    words += ["-out", authority, "-subj", f"/CN=crashlend lab {name}"]
    _run(tree, "usr/bin/openssl", words)
    request = f"{server}.csr"
    _run(
        tree, "usr/bin/openssl", ["req", "-new", *new, "-keyout", f"{server}.key", "-out", request]
    )
    words = ["x509", "-req", "-in", request, "-CA", authority, "-CAkey", key, "-CAcreateserial"]
    words += [*common, "-extfile", conf, "-extensions", "server", "-out", f"{server}.crt"]
    _run(tree, "usr/bin/openssl", words)
    parts = (Path(f"{server}.crt"), Path(f"{server}.key"))
    Path(f"{server}.pem").write_text("".join(part.read_text() for part in parts))


def _run(tree: Path, program: str, words: Sequence[str]) -> None:
    loader = tree / "lib64/ld-linux-x86-64.so.2"
    libraries = f"{tree}/lib/x86_64-linux-gnu:{tree}/usr/lib/x86_64-linux-gnu"
    command = [str(loader), "--library-path", libraries, str(tree / program), *words]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        why = (done.stderr or done.stdout).strip()[-300:]
        raise CrashlendError(f"cannot make the lab's keys with {program}", why)
