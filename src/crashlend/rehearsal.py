# SPDX-License-Identifier: LGPL-2.1-or-later
"""The record of a rehearsal: what was rehearsed, when, with what result, and whether it still applies.

Written by ``lab rehearse``; its ``--status`` reads it, and so can whatever runs on hosts. What was
rehearsed is told by fingerprints; none depends on addresses, which are others after each boot.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from crashlend import __version__, config
from crashlend.arch import for_machine
from crashlend.crashkernel.grammar import lent_request
from crashlend.errors import CrashlendError
from crashlend.formats.cmdline import parameter_name, split
from crashlend.sizes import GIB
from crashlend.system.state import write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crashlend.config import Settings
    from crashlend.facts import Facts

RECORD = Path("/var/lib/crashlend/rehearsal.json")
SCHEMA = 1
# In the order in which they are told; each with words for "this has changed".
PARTS = {
    "kernel": "the kernel image",
    "initramfs": "the capture initramfs",
    "settings": "the settings",
    "crashlend": "crashlend itself",
    "layout": "memory, CPUs, firmware or the crashkernel= words",
}
# Settings that name files are told by what is in them.
BY_CONTENT = ("kernel", "initramfs", "hooks")


@dataclass(frozen=True)
class Rehearsal:
    """One rehearsal. ``date`` is UTC as in ISO 8601; ``reason`` is why it failed, else empty.

    ``twin`` is what was not as on the host, in words; ``result`` the lab's own account.
    """

    date: str
    ok: bool
    reason: str
    release: str
    fingerprints: Mapping[str, str]
    twin: tuple[str, ...] = ()
    result: Optional[Mapping[str, Any]] = None

    def to_json(self) -> dict[str, Any]:
        """The record's content, schema 1."""
        return {
            "schema": SCHEMA,
            "date": self.date,
            "ok": self.ok,
            "reason": self.reason,
            "release": self.release,
            "fingerprints": dict(self.fingerprints),
            "twin": list(self.twin),
            "result": dict(self.result) if self.result is not None else None,
        }

    def changed(self, now: Mapping[str, str]) -> tuple[str, ...]:
        """Which parts are not as rehearsed; keys of :data:`PARTS`. What ``now`` lacks is not compared."""
        return tuple(
            part for part in PARTS if part in now and now[part] != self.fingerprints.get(part)
        )

    def not_compared(self, now: Mapping[str, str]) -> tuple[str, ...]:
        """Of which parts ``now`` says nothing; keys of :data:`PARTS`."""
        return tuple(part for part in PARTS if part not in now)


def fingerprints(
    facts: Facts, settings: Settings, kernel: Optional[bytes], initramfs: Optional[bytes]
) -> dict[str, str]:
    """What a rehearsal is told by; files that are not known (None) have no fingerprint.

    Nor has the layout where the map of memory can't be read. A load that shrinks the reservation is no change
    of it: its size at boot follows from the words and the map.
    """
    usual = config.to_text(config.Settings())
    texts = config.to_text(settings)
    # what is at its default counts by crashlend's version: a setting that a new one brings is no change
    own = {k: v for k, v in texts.items() if k not in BY_CONTENT and usual.get(k) != v}
    words = [w for w in split(facts.cmdline) if parameter_name(w) == "crashkernel"]
    layout = {
        "words": words,
        "reserved": bool(facts.crash_size_bytes),
        "asked": lent_request(facts.cmdline_bytes),
        "memory_gib": round(for_machine(facts.arch).system_ram(facts).size / GIB),
        "cpus": len(facts.crash_notes),
        "efi": facts.efi,
        "lockdown": facts.lockdown,
        "release": facts.release,
    }
    found = {}
    for name, data in (("kernel", kernel), ("initramfs", initramfs)):
        if data is not None:
            found[name] = hashlib.sha256(data).hexdigest()
    found["settings"] = _digest(own)
    found["crashlend"] = __version__
    if facts.iomem:
        found["layout"] = _digest(layout)
    return found


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read_rehearsal(path: Path = RECORD) -> Optional[Rehearsal]:
    """The last rehearsal; None where there was none. CrashlendError for a damaged record."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value["schema"] != SCHEMA:
            raise ValueError(f"schema {value['schema']!r}")
        return Rehearsal(
            date=str(value["date"]),
            ok=bool(value["ok"]),
            reason=str(value["reason"]),
            release=str(value["release"]),
            fingerprints={str(k): str(v) for k, v in value["fingerprints"].items()},
            twin=tuple(map(str, value["twin"])),
            result=value["result"],
        )
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CrashlendError(f"cannot read {path}", error.strerror or str(error)) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CrashlendError(
            f"cannot read {path}", f"it is no record of a rehearsal: {error}", hint="rehearse again"
        ) from error


def demand_place(path: Path) -> None:
    """CrashlendError where no record can be written there; nothing is left behind but directories."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    except OSError as error:
        raise CrashlendError(
            f"cannot keep the result in {path}",
            error.strerror or str(error),
            hint="name a file with -o",
        ) from error


def write_rehearsal(rehearsal: Rehearsal, path: Path = RECORD) -> None:
    """Keep a rehearsal; the one before is replaced. OSError where that can't be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(rehearsal.to_json(), indent=1) + "\n").encode())


def in_words(rehearsal: Optional[Rehearsal], now: Mapping[str, str]) -> str:
    """One sentence: whether this was rehearsed, when, with what result, and what has changed since."""
    if rehearsal is None:
        return "never rehearsed"
    result = "the dump was saved" if rehearsal.ok else f"it failed: {rehearsal.reason}"
    changed = rehearsal.changed(now)
    unknown = ", ".join(PARTS[part] for part in rehearsal.not_compared(now))
    if changed:
        what = ", ".join(PARTS[part] for part in changed)
        words = f"({result}), but not with exactly this: {what} changed since"
    elif unknown:
        words = f"({result}); nothing that was compared has changed since"
    else:
        return f"rehearsed on {rehearsal.date} with exactly this: {result}"
    return f"rehearsed on {rehearsal.date} {words}" + (
        f"; not compared: {unknown}" if unknown else ""
    )
