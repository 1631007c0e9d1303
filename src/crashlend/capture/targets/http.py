# SPDX-License-Identifier: LGPL-2.1-or-later
"""A web server or object store that takes PUT as dump target: https://HOST/PATH, by curl.

The address may hold {name} (of the dump: HOST-TIME) and {file} (vmcore.flat, dmesg.txt, …). One that
ends in "/" is a directory; any other without {file} is a single object, the dump. What identifies
this host (a signature in the query, a header) is a secret: it is in files for root's eyes alone and
nowhere else.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from crashlend.capture.targets.access import read_file, read_secret
from crashlend.capture.targets.network import PARTS, reach
from crashlend.capture.targets.target import File, Program, Target
from crashlend.capture.targets.urls import parse_url
from crashlend.errors import CrashlendError

if TYPE_CHECKING:
    from pathlib import Path

    from crashlend.capture.targets.access import Access
    from crashlend.capture.targets.network import Reach
    from crashlend.capture.targets.urls import Url

HINT = "write https://HOST[:PORT]/PATH/ or …/{name}/{file}?SIGNATURE"
CURL = Program(("usr/bin/curl", "bin/curl"), "bin/curl", "curl", "sends dumps by HTTP")
PORTS = {"http": 80, "https": 443}
# Debian, Arch; Fedora, RHEL; SUSE; what the last resort is called elsewhere
BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


def find_http(root: Path, spec: str, path: str, access: Access) -> Target:
    """The target for an address, with the authorities to trust and the header to send.

    ``path`` (the setting for local file systems) has no meaning here. CrashlendError for what is no
    such address, where the files are missing or open to others, and where nothing leads there.
    """
    url = parse_url(spec, HINT)
    what = f"cannot use the dump target {url.shown}"
    if url.user:
        raise CrashlendError(what, "users are not told in an address", hint="set http_headers")
    if not url.path:
        raise CrashlendError(what, "it names no path", hint=HINT)
    for name in re.findall(r"\{([^}]*)\}", url.path + url.query):
        if name not in ("file", "name"):
            raise CrashlendError(what, f"{{{name}}} is neither {{file}} nor {{name}}", hint=HINT)
    headers = b""
    if access.http_headers:
        hint = "write one header a line, such as: Authorization: Bearer TOKEN"
        headers = read_secret(root, access.http_headers, "the headers in", hint)
        if url.scheme == "http":
            raise CrashlendError(
                what, "http_headers would be sent in clear text", hint="use https://"
            )
    authorities = _authorities(root, access.http_ca) if url.scheme == "https" else b""
    return http_target(url, headers_config(headers), authorities, reach(root, url.host, access))


def http_target(url: Url, config: bytes, authorities: bytes, way: Reach) -> Target:
    """A target of kind ``http``; ``config`` are further lines for curl, ``authorities`` PEM."""
    place = f"etc/crashlend/http/{hashlib.sha256(url.shown.encode()).hexdigest()[:12]}"
    why = f"dump target {url.shown}"
    files = [*way.files]
    if authorities:
        config += f'cacert = "/{place}/ca.pem"\n'.encode()
        files.append(File(f"{place}/ca.pem", authorities, 0o644, f"authorities for {why}"))
    files.append(File(f"{place}/curl.conf", config, 0o600, f"curl's settings for {why}"))
    path = url.path + "{name}/{file}" if url.path.endswith("/") else url.path
    query = f"?{url.query}" if url.query else ""
    variables = {
        **way.variables,
        "TARGET_URL": f"{url.scheme}://{url.authority}{path}{query}",
        "TARGET_HTTP_PORT": str(url.port or PORTS[url.scheme]),
        "TARGET_HTTP_CONFIG": f"/{place}/curl.conf",
    }
    return Target(
        "http",
        url.shown,
        variables,
        way.wants,
        (CURL,),
        tuple(files),
        PARTS,
        says=way.says,
        tools=(*way.tools, "mkfifo"),
    )


def headers_config(text: bytes) -> bytes:
    """Lines for curl's configuration out of a file of headers, one a line. CrashlendError if bad."""
    lines: list[str] = []
    for line in text.decode(errors="replace").splitlines():
        if not line.strip():
            continue
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[ \t]*[ -~]+", line.strip()):
            # not shown: it may be a token
            raise CrashlendError(
                "cannot use the headers in http_headers",
                f"line {len(lines) + 1} is no header",
                hint="write one header a line, such as: Authorization: Bearer TOKEN",
            )
        quoted = line.strip().replace("\\", "\\\\").replace('"', '\\"')
        lines.append(f'header = "{quoted}"\n')
    return "".join(lines).encode()


def _authorities(root: Path, configured: str) -> bytes:
    names = (configured,) if configured else BUNDLES
    name = next((n for n in names if (root / n.lstrip("/")).is_file()), names[0])
    hint = "set http_ca to a PEM file, or install the package ca-certificates"
    data = read_file(root, name, "the certificate authorities in", hint)
    if b"-----BEGIN CERTIFICATE-----" not in data:
        raise CrashlendError(f"cannot use {name}", "it holds no certificate in PEM", hint=hint)
    return data
