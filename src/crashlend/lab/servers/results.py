# SPDX-License-Identifier: LGPL-2.1-or-later
"""What came of a trial on the lab's network: dumps on the server, reasons in the ladder."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

from crashlend.dumps.recover import unflatten
from crashlend.errors import CrashlendError
from crashlend.lab.packages import find_tool
from crashlend.lab.servers.client import NETS
from crashlend.lab.servers.configs import SIGNATURE, TOKEN
from crashlend.lab.spec import Check, Saved

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from crashlend.lab.servers.guest import Served
    from crashlend.lab.spec import Spec


def rearranged(saved: Saved) -> Saved:
    """The same with a dump that makedumpfile reads: a flattened one is made whole."""
    if saved.place is None or saved.vmcore is not None:
        return saved
    flat, whole = saved.place / "vmcore.flat", saved.place / "vmcore.rearranged"
    if not flat.is_file():
        return saved
    try:
        unflatten(flat, whole)
    except CrashlendError:
        return saved
    return replace(saved, vmcore=whole)


def server_logs(disk: Path) -> str:
    """What sshd and nginx have written on the servers' disk about those who came."""
    tool = find_tool("debugfs", "install the package e2fsprogs")
    logs = (
        subprocess.run([tool, "-R", f"cat /{name}", str(disk)], capture_output=True, check=False)
        for name in ("sshd.log", "access.log")
    )
    return "\n".join(done.stdout.decode(errors="replace") for done in logs)


def check_net(spec: Spec, saved: Saved, served: Served) -> Iterator[Check]:
    """The way that the capture went: each target that failed with its reason, then the one that has it.

    ``saved`` is what was found where the dump must be.
    """
    net = NETS[spec.net]
    ladder = saved.capture.get("ladder", [])
    failed = [rung for rung in ladder if not rung.get("ok")]
    reasons = [f"{rung.get('step')} {rung.get('target')}: {rung.get('reason')}" for rung in failed]
    told = len(failed) == len(spec.net_reasons) and all(
        rung.get("reason") and re.search(words, str(rung["reason"]))
        for words, rung in zip(spec.net_reasons, failed)
    )
    where = "the server" if net.on_server else "the local disk"
    yield Check(
        f"the dump is on {where}, and the ladder says how it came there",
        bool(ladder) and ladder[-1].get("ok") is True and told,
        "; ".join(reasons) or f"at once, on {ladder[-1].get('target') if ladder else 'nothing'}",
    )
    told_us = [f"{e.get('at')} {e.get('event')}: {e.get('what')}" for e in served.report.events]
    serving = any(e.get("event") == "serving" for e in served.report.events)
    yield Check("the servers were there", serving, "; ".join(told_us)[-400:])
    if net.stall:
        stalls = [e.get("what") for e in served.report.events if e.get("event") == "stalled"]
        yield Check(
            "each server stopped answering in the middle",
            len(stalls) == len(net.stall),
            "; ".join(map(str, stalls)) or "none did",
        )
    if saved.place is not None:
        modes = sorted(
            f"{path.name} {path.stat().st_mode & 0o777:o}"
            for path in saved.place.iterdir()
            if path.stat().st_mode & 0o077
        )
        yield Check("others may read nothing of it", not modes, ", ".join(modes) or "no file")
    secrets = [f.name for f in (saved.place.iterdir() if saved.place else ()) if _has_secret(f)]
    yield Check("no secret is beside the dump", not secrets, ", ".join(secrets) or "none found")


def _has_secret(path: Path) -> bool:
    if not path.is_file() or path.name.startswith("vmcore"):
        return False
    data = path.read_bytes()
    return any(secret.encode() in data for secret in (TOKEN, SIGNATURE))
