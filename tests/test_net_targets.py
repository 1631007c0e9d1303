# SPDX-License-Identifier: LGPL-2.1-or-later
"""Targets on the network: their forms, what they take along, what is refused, what stays secret."""

from __future__ import annotations

import base64
import hashlib
import hmac
from pathlib import Path
from typing import Any

import pytest

from crashlend.capture.targets import find, http, nfs, ssh
from crashlend.capture.targets.access import Access
from crashlend.capture.targets.find import find_targets
from crashlend.capture.targets.knownhosts import known_lines, matches
from crashlend.capture.targets.network import Reach
from crashlend.capture.targets.target import Target
from crashlend.capture.targets.urls import parse_url
from crashlend.errors import CrashlendError
from networks import write
from test_elf import build_elf

WAY = Reach("192.0.2.9", {"TARGET_HOST": "server", "TARGET_ADDRESS": "192.0.2.9"}, (), (), "eth0")
KEY = b"openssh-key-v1\0" + b"\0\0\0\x04none" + bytes(40)
LOCKED = b"openssh-key-v1\0" + b"\0\0\0\x0aaes256-ctr" + bytes(40)
HOST_KEY = "ssh-ed25519 AAAAC3Nz"
PEM = "-----BEGIN CERTIFICATE-----\n"


def private_key(data: bytes) -> str:
    text = base64.b64encode(data).decode()
    return f"-----BEGIN OPENSSH PRIVATE KEY-----\n{text}\n-----END OPENSSH PRIVATE KEY-----\n"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with everything, and a way to every server."""
    for module in (nfs, ssh, http):
        monkeypatch.setattr(module, "reach", lambda root, host, access: WAY)
    write(tmp_path, "root/.ssh/id_ed25519", private_key(KEY))
    write(tmp_path, "root/.ssh/known_hosts", f"server {HOST_KEY}\n[server]:2222 {HOST_KEY}2\n")
    write(tmp_path, "etc/ssl/certs/ca-certificates.crt", PEM, 0o644)
    write(tmp_path, "etc/token", "Authorization: Bearer s3cret\n")
    return tmp_path


def one(host: Path, text: str, **access: Any) -> Target:
    (target,) = find_targets(host, text, "/var/crash", Access(**access))
    return target


def data_of(target: Target, name: str) -> bytes:
    return next(file.data for file in target.files if file.path.endswith(name))


def test_several_targets_stay_in_their_order(host: Path) -> None:
    """Words by blanks; each form has its kind."""
    found = find_targets(host, "ssh://u@server/d nfs://server/e https://server/p/", "/var/crash")
    assert [target.kind for target in found] == ["ssh", "nfs", "http"]


def test_nfs_tries_version_4_2_first_and_3_last(host: Path) -> None:
    """Without a wish all versions come along; the export is the address's path."""
    target = one(host, "nfs://server:2050/srv/dumps")
    assert target.variables["TARGET_NFS_VERSIONS"] == "4.2 4.1 4.0 3"
    assert target.variables["TARGET_NFS_EXPORT"] == "/srv/dumps"
    assert target.variables["TARGET_NFS_OPTIONS"] == "port=2050"
    assert target.variables["TARGET_PATH"] == ""
    assert {want.name for want in target.wants} == {"nfsv4", "nfsv3"}


def test_nfs_takes_a_version_a_directory_and_options(host: Path) -> None:
    """From the address and from the setting."""
    target = one(
        host, "nfs://server/srv?vers=3&dir=/host/a&mountport=2051", nfs_options="noresvport"
    )
    assert target.variables["TARGET_NFS_VERSIONS"] == "3"
    assert target.variables["TARGET_PATH"] == "/host/a"
    assert target.variables["TARGET_NFS_OPTIONS"] == "noresvport,mountport=2051"
    assert [want.name for want in target.wants] == ["nfsv3"]


def test_a_busybox_that_makes_its_own_nfs_options_gets_help(host: Path) -> None:
    """Debian 11's knows no version 4; later ones leave the options to the kernel."""
    assert one(host, "nfs://server/e").programs == ()
    write(host, "bin/busybox", "\0mountport\0", 0o755)
    assert [p.path for p in one(host, "nfs://server/e").programs] == ["bin/mount-nfs"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("nfs://server", "names no export"),
        ("nfs://server/", "names no export"),
        ("nfs://u@server/e", "knows no user"),
        ("nfs://server/e?vers=5", "no NFS version 5"),
        ("nfs://server/e?hard", "not for you to set"),
        ("nfs://server/e?timeo=1", "not for you to set"),
        ("nfs://server/e?x=a,b", "not for you to set"),
        ("nfs://server/e?sec=krb5p", "Kerberos"),
        ("nfs://server/e?dir=../x", "not absolute"),
        ("nfs://server/e?dir=/a/../x", "not absolute"),
        ("ssh://server/d", "names no user"),
        ("ssh://-o@server/d", "names no user"),
        ("ssh://u:pw@server/d", "password does not belong"),
        ("ssh://u@server", "names no directory"),
        ("ssh://u@server/~/", "names no directory"),
        ("ssh://u@server/d?x", "names no directory"),
        ("ssh://u@-oProxyCommand=x/d", "no name of a host"),
        ("ssh://u@2001:db8::1/d", "it is not SCHEME"),
        ("ssh://u@server:0/d", "no port 0"),
        ("ssh://u@server:70000/d", "no port 70000"),
        ("https://server", "names no path"),
        ("https://u@server/p/", "users are not told"),
        ("https://server/{nam}/", "neither {file} nor {name}"),
        ("https://server/a`b`/", "quotes"),
        ("'https://server/a b/'", "blanks"),
        ("gopher://server/", "unknown form"),
    ],
)
def test_addresses_that_make_no_sense_are_refused(host: Path, text: str, why: str) -> None:
    """Each with its reason, and none with a password in it."""
    with pytest.raises(CrashlendError, match=why) as caught:
        find_targets(host, text, "/var/crash")
    assert "pw" not in str(caught.value)
    assert caught.value.hint


def test_ssh_takes_one_key_and_the_lines_about_its_host(host: Path) -> None:
    """Strict checking under the host's name, whatever address it has then; nothing is asked."""
    target = one(host, "ssh://dumper@server/srv/dumps")
    config = data_of(target, "/config").decode()
    for line in (
        "User dumper",
        "Port 22",
        "HostKeyAlias server",
        "StrictHostKeyChecking yes",
        "BatchMode yes",
        "IdentitiesOnly yes",
    ):
        assert f"{line}\n" in config
    assert data_of(target, "/known_hosts") == f"server {HOST_KEY}\n".encode()
    assert data_of(target, "/key").decode() == private_key(KEY)
    assert target.variables["TARGET_PATH"] == "/srv/dumps"
    assert [program.path for program in target.programs] == ["bin/ssh"]
    assert {file.mode for file in target.files if "/ssh/" in file.path} == {0o600}


def test_ssh_gets_what_its_c_library_opens(host: Path) -> None:
    """Before glibc 2.34 root's name is read by a library that nothing names; by one of ssh's ABI."""
    for path, data in {
        "usr/bin/ssh": build_elf(),
        "usr/lib/i386-linux-gnu/libnss_files.so.2": build_elf(machine=3),
        "usr/lib/x86_64-linux-gnu/libnss_files.so.2": build_elf(needed=("libc.so.6",)),
    }.items():
        file = host / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    paths = [program.path for program in one(host, "ssh://u@server/d").programs]
    assert paths == ["bin/ssh", "usr/lib/x86_64-linux-gnu/libnss_files.so.2"]


def test_ssh_has_another_key_on_another_port_and_directories_at_home(host: Path) -> None:
    """[HOST]:PORT is another host for known_hosts."""
    target = one(host, "ssh://u@server:2222/~/dumps")
    assert data_of(target, "/known_hosts") == f"server {HOST_KEY}2\n".encode()
    assert target.variables["TARGET_PATH"] == "dumps"


def test_an_unknown_host_is_refused_with_the_way_to_add_it(host: Path) -> None:
    """Not in the crash kernel, where nobody could answer."""
    with pytest.raises(CrashlendError, match="other's key is not known") as caught:
        one(host, "ssh://u@other:2200/d")
    assert "ssh-keyscan -p 2200 other" in caught.value.hint
    assert "ssh-keygen -lf" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "text", "mode", "why"),
    [
        ("root/.ssh/id_ed25519", private_key(LOCKED), 0o600, "passphrase"),
        (
            "root/.ssh/id_ed25519",
            "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n",
            0o600,
            "passphrase",
        ),
        ("root/.ssh/id_ed25519", private_key(KEY), 0o644, "others may read it"),
    ],
)
def test_keys_that_would_not_do_are_refused(
    host: Path, name: str, text: str, mode: int, why: str
) -> None:
    """One with a passphrase, one that others may read."""
    write(host, name, text, mode)
    with pytest.raises(CrashlendError, match=why) as caught:
        one(host, "ssh://u@server/d")
    assert caught.value.hint


def test_a_host_without_a_key_is_told_how_to_make_one(host: Path) -> None:
    """The usual names are tried, and named."""
    (host / "root/.ssh/id_ed25519").unlink()
    with pytest.raises(CrashlendError, match="there is no SSH key") as caught:
        one(host, "ssh://u@server/d")
    assert "ssh-keygen" in caught.value.hint
    with pytest.raises(CrashlendError, match="cannot read the SSH key /none"):
        one(host, "ssh://u@server/d", ssh_key="/none")


def hashed(name: str) -> str:
    salt = b"0123456789abcdefghij"
    digest = hmac.new(salt, name.encode(), hashlib.sha1).digest()
    return "|1|" + "|".join(base64.b64encode(part).decode() for part in (salt, digest))


@pytest.mark.parametrize(
    ("patterns", "name", "found"),
    [
        ("server", "server", True),
        ("SERVER,other", "server", True),
        ("*.example.org", "a.example.org", True),
        ("*.example.org,!b.example.org", "b.example.org", False),
        ("serv?r", "server", True),
        ("[server]:2222", "[server]:2222", True),
        ("server", "[server]:2222", False),
        ("[server]:2222", "server", False),
        (hashed("server"), "server", True),
        (hashed("server"), "other", False),
        ("|1|bad", "server", False),
    ],
)
def test_known_hosts_are_matched_as_openssh_does(patterns: str, name: str, found: bool) -> None:
    """Hashes, patterns, negation, ports (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT)."""
    assert matches(patterns, name) is found


def test_markers_of_known_hosts_stay(tmp_path: Path) -> None:
    """An authority vouches under the host's name; a revoked key alone makes nobody known."""
    write(tmp_path, "a", f"@cert-authority *.lab {HOST_KEY} comment\n@revoked x.lab {HOST_KEY}9\n")
    assert known_lines(tmp_path, ["/a", "/none"], "x.lab", 22) == (
        f"@cert-authority x.lab {HOST_KEY}\n@revoked x.lab {HOST_KEY}9\n".encode()
    )
    write(tmp_path, "a", f"@revoked x.lab {HOST_KEY}9\n")
    assert known_lines(tmp_path, ["/a"], "x.lab", 22) == b""


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://server/d/", "https://server/d/{name}/{file}"),
        ("https://server:8443/d/{name}-{file}", "https://server:8443/d/{name}-{file}"),
        ("https://[2001:db8::1]/one?sig=a%2Fb", "https://[2001:db8::1]/one?sig=a%2Fb"),
    ],
)
def test_a_directory_gets_names_and_a_query_stays(host: Path, text: str, url: str) -> None:
    """What is no directory and has no {file} is one object."""
    target = one(host, text)
    assert target.variables["TARGET_URL"] == url
    assert b"cacert" in data_of(target, "/curl.conf")
    assert data_of(target, "/ca.pem").decode() == PEM


def test_headers_are_told_to_curl_in_a_file(host: Path) -> None:
    """Quotes and backslashes survive; the file is root's alone."""
    write(host, "etc/token", 'X-Token: a"b\\c\n\n')
    target = one(host, "https://server/d/", http_headers="/etc/token")
    assert b'header = "X-Token: a\\"b\\\\c"\n' in data_of(target, "/curl.conf")
    modes = {file.path.rsplit("/", 1)[1]: file.mode for file in target.files}
    assert modes["curl.conf"] == 0o600


@pytest.mark.parametrize(
    ("text", "mode", "target", "why"),
    [
        ("Bearer s3cret\n", 0o600, "https://server/d/", "line 1 is no header"),
        ("A: b\n", 0o640, "https://server/d/", "others may read it"),
        ("A: b\n", 0o600, "http://server/d/", "clear text"),
    ],
)
def test_headers_that_would_not_do_are_refused(
    host: Path, text: str, mode: int, target: str, why: str
) -> None:
    """A line that is none is not shown: it may be the token."""
    write(host, "etc/token", text, mode)
    with pytest.raises(CrashlendError, match=why) as caught:
        one(host, target, http_headers="/etc/token")
    assert "s3cret" not in str(caught.value) + caught.value.hint


def test_authorities_that_are_missing_are_named(host: Path) -> None:
    """Without any the server could not be verified, and that is never left out."""
    (host / "etc/ssl/certs/ca-certificates.crt").unlink()
    with pytest.raises(CrashlendError, match="certificate authorities"):
        one(host, "https://server/d/")
    write(host, "ca", "not PEM\n")
    with pytest.raises(CrashlendError, match="no certificate in PEM"):
        one(host, "https://server/d/", http_ca="/ca")


def test_an_address_that_is_a_secret_comes_out_of_a_file(host: Path) -> None:
    """And out of one that others may not read."""
    write(host, "etc/put", "https://server/b/{file}?X-Amz-Signature=s3cret\n")
    target = one(host, "url:/etc/put")
    assert target.variables["TARGET_URL"].endswith("?X-Amz-Signature=s3cret")
    write(host, "etc/put", "https://server/b?X-Amz-Signature=s3cret\n", 0o644)
    with pytest.raises(CrashlendError, match="others may read it"):
        one(host, "url:/etc/put")
    write(host, "etc/put", "s3cret two\n")
    with pytest.raises(CrashlendError, match="not an address") as caught:
        one(host, "url:/etc/put")
    assert "s3cret" not in str(caught.value)


def test_nothing_that_people_see_holds_a_secret(host: Path) -> None:
    """Neither the name of a target nor any reason for a file has the token or the signature."""
    target = one(host, "https://server/b/{file}?sig=s1gned", http_headers="/etc/token")
    shown = [target.spec, target.says, *(f"{file.path} {file.why}" for file in target.files)]
    assert not [text for text in shown if "s1gned" in text or "s3cret" in text]
    assert target.spec == "https://server/b/{file}"
    with pytest.raises(CrashlendError) as caught:
        one(host, "https://server/{x}?sig=s1gned")
    assert "s1gned" not in str(caught.value) + caught.value.hint


def test_addresses_are_taken_apart() -> None:
    """And put together again without what may be secret."""
    url = parse_url("ssh://u@[2001:db8::1]:22/d", "")
    assert (url.user, url.host, url.port, url.path) == ("u", "2001:db8::1", 22, "/d")
    assert url.shown == "ssh://u@[2001:db8::1]:22/d"
    assert parse_url("https://h/p?secret", "").shown == "https://h/p"


def test_every_form_is_told_where_one_is_unknown(host: Path) -> None:
    """The hint lists them."""
    with pytest.raises(CrashlendError) as caught:
        one(host, "ftp://server/")
    for form in (*find.FORMS, *find.NETWORK_FORMS, find.FROM_FILE):
        assert form in caught.value.hint
