# SPDX-License-Identifier: LGPL-2.1-or-later
"""The addresses of network targets, as people write them: SCHEME://USER@HOST:PORT/PATH?QUERY."""

from __future__ import annotations

import re
from typing import NamedTuple

from crashlend.capture.targets.network import check_host
from crashlend.errors import CrashlendError


class Url(NamedTuple):
    """Parts of an address; ``port`` 0 is the usual one, ``path`` begins with "/" or is ""."""

    scheme: str
    user: str
    host: str
    port: int
    path: str
    query: str

    @property
    def shown(self) -> str:
        """For people: without the query, which may hold a signature."""
        user = f"{self.user}@" if self.user else ""
        return f"{self.scheme}://{user}{self.authority}{self.path}"

    @property
    def authority(self) -> str:
        """HOST[:PORT], with brackets around an IPv6 address."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" if self.port else host


def parse_url(text: str, hint: str) -> Url:
    """Split an address. CrashlendError, which never shows the query, for what is none."""
    shown = re.sub(r"//[^/@]*:[^/@]*@", "//…@", text.split("?", 1)[0])
    what = f"cannot use the dump target {shown}"
    found = re.fullmatch(
        r"([a-z]+)://(?:([^@/?]*)@)?(\[[^\]/?@]*\]|[^:/?@\[\]]+)(?::([0-9]{1,5}))?(/[^?]*)?(?:\?(.*))?",
        text,
    )
    if not found:
        raise CrashlendError(what, "it is not SCHEME://[USER@]HOST[:PORT]/PATH", hint=hint)
    scheme, user, host, port, path, query = found.groups()
    if not re.fullmatch(r"[!-~]*", text) or re.search(r'["\\`]', text):
        raise CrashlendError(what, "it holds blanks, quotes or control characters", hint=hint)
    if port is not None and not 0 < int(port) < 65536:
        raise CrashlendError(what, f"there is no port {port}", hint=hint)
    if ":" in (user or ""):
        raise CrashlendError(what, "a password does not belong into an address", hint=hint)
    plain = check_host(host, shown)
    return Url(scheme, user or "", plain, int(port or 0), path or "", query or "")
