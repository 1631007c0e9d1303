# SPDX-License-Identifier: LGPL-2.1-or-later
"""The crash image: its bytes, loading it, and whose image is loaded.

The kernel only says whether there is one. Other programs load crash kernels too (kdump-tools reloads on memory hotplug, which lending causes).
So a load records where its boot_params and purgatory lie and their digests, and this looks at them again, through
/proc/kcore, which shows the reservation as part of the direct mapping.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional

from crashlend import filemode
from crashlend.arch import Layout, for_machine
from crashlend.capture.initramfs import load_archive
from crashlend.errors import CrashlendError
from crashlend.hostfiles import HostFiles, TreeFiles
from crashlend.ranges import align_up
from crashlend.system import file_load, kexec
from crashlend.system.physical import read_physical

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crashlend.arch import Segment
    from crashlend.facts import Facts
    from crashlend.payload import Files
    from crashlend.plan import Plan

# what tells one image from another in memory. Purgatory has the digests of all other segments, which
# is why an image that differs in the ELF core header alone is another; nothing writes there before a
# crash. boot_params come first: older versions looked for them alone
MARKED = ("boot_params", "purgatory")


@dataclass(frozen=True)
class CrashImage:
    """All bytes of one load. ``layout`` is None where the kernel itself places the segments.

    With ``core_header_at`` such an image lends memory by words (filemode.py): there in the
    initramfs begins crashlend's core header, whose address the command line has a placeholder for.
    From ``lending_at`` on the initramfs is about lending alone.
    """

    layout: Optional[Layout]
    segments: dict[str, bytes]
    kernel: bytes
    initramfs: bytes
    cmdline: bytes
    core_header_at: Optional[int] = None
    lending_at: int = 0

    def fingerprint(self) -> str:
        """What tells one image from another: every byte of it and where it goes."""
        digest = hashlib.sha256()
        if self.layout is None:
            for part in (self.kernel, self.initramfs, self.cmdline):
                digest.update(hashlib.sha256(part).digest())
        else:
            for segment in self.layout.segments:
                digest.update(f"{segment}\n".encode())
                digest.update(hashlib.sha256(self.segments[segment.name]).digest())
        return digest.hexdigest()

    def marker(self) -> Optional[dict[str, Any]]:
        """What to look for in memory later; None where nothing is known of the places."""
        if self.layout is None:
            return None
        first, *others = (
            marker(self.layout.segment(name).start, self.segments[name]) for name in MARKED
        )
        return {**first, "also": others}

    def load(
        self,
        fillers: Sequence[Segment] = (),
        note: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> Optional[dict[str, Any]]:
        """Hand it to the kernel. CrashlendError tells its errno in words.

        Returns what to look for in memory later; None where nothing is known of the places. Where it
        takes two loads, ``note`` gets that, as far as it is known, between them: the old image is gone.

        ``fillers`` are segments of which nothing is stored: parts of the reservation that the
        kernel must do without. NoRoomError when its control pages do not fit in the rest. Not for
        what the kernel itself places (``layout`` is None).
        """
        if self.layout is None:
            return self._load_by_file(note)
        segments = [(s, self.segments[s.name]) for s in self.layout.segments]
        kexec.load(
            self.layout.segment("purgatory").start, [*segments, *((f, b"") for f in fillers)]
        )
        return self.marker()

    def _load_by_file(self, note: Callable[[dict[str, Any]], None]) -> Optional[dict[str, Any]]:
        if self.core_header_at is None:
            file_load.load_once(self.kernel, self.initramfs, self.cmdline)
            return None
        found = file_load.load_lending(
            self.kernel,
            self.initramfs,
            self.cmdline,
            self.core_header_at,
            self.lending_at,
            note=lambda places: note(_marker_of(places)),
        )
        return _marker_of(found)


def build_image(plan: Plan, facts: Facts, files: Files) -> CrashImage:
    """Make the bytes that a complete plan describes."""
    cmdline = plan.cmdline.encode() if plan.cmdline else b""
    padding = align_up(len(files.initramfs), 4) - len(files.initramfs)
    own = files.initramfs + bytes(padding)
    initramfs = own + load_archive(plan.load_variables)
    at: Optional[int] = None
    if plan.by_word:
        initramfs, at = filemode.with_core_header(initramfs, plan.program_headers)
    segments: dict[str, bytes] = {}
    if plan.layout is not None:
        segments = for_machine(plan.arch).build_segments(
            facts,
            files.payload.image,
            plan.layout,
            kernel_file=files.kernel,
            initramfs=initramfs,
            cmdline=cmdline,
            lent=plan.lent,
            quiesce=plan.quiesce,
            on_mismatch=plan.on_mismatch,
        )
    return CrashImage(plan.layout, segments, files.kernel, initramfs, cmdline, at, len(own))


def _marker_of(places: file_load.Places) -> dict[str, Any]:
    first, *others = places
    return {**marker(*first), "also": [marker(*one) for one in others]}


def marker(start: int, data: bytes) -> dict[str, Any]:
    """What to record of a segment that begins at physical address ``start``."""
    return {"start": start, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def is_in_memory(known: Any, files: Optional[HostFiles] = None) -> Optional[bool]:
    """Whether the recorded segments still lie where they were; None when one can't be looked at."""
    if not isinstance(known, dict):
        return None
    others = known.get("also", [])
    files = files or TreeFiles(Path("/"))
    if not isinstance(others, list):
        return None
    found = [_is_there(one, files) for one in (known, *others)]
    return False if False in found else None if None in found else True


def _is_there(known: dict[str, Any], files: HostFiles) -> Optional[bool]:
    try:
        data = read_physical(files, known["start"], known["bytes"])
    except (OSError, CrashlendError, KeyError, TypeError):
        return None
    if len(data) != known["bytes"]:
        return None
    return bool(hashlib.sha256(data).hexdigest() == known.get("sha256"))
