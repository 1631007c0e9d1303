# SPDX-License-Identifier: LGPL-2.1-or-later
"""What must hold after a fault of the capture, and what a raw device was left with."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from crashlend.dumps.recover import recover_raw
from crashlend.errors import CrashlendError
from crashlend.lab.capture_faults import device_words
from crashlend.lab.observe import Guest, observe
from crashlend.lab.places import read_place
from crashlend.lab.shows import check_shows
from crashlend.lab.spec import Check, Saved
from crashlend.sizes import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from crashlend.lab.capture_faults import CaptureFault
    from crashlend.lab.kernels import Kernel
    from crashlend.lab.qemu import Report

# What production's boot after the reset looks at; it is another guest with the same firmware's memory.
_LOOK = "mkdir -p /pstore && mount -t pstore pstore /pstore && cat /pstore/*"
_AFTER_BYTES = 512 * MIB


def ladder_text(capture: dict[str, Any]) -> str:
    """The rungs of a capture.json as one line: ``step target yes|no[ level], …``."""
    return ", ".join(
        f"{rung['step']} {rung['target']} {'yes' if rung['ok'] else 'no'}"
        + (f" {rung['level']}" if "level" in rung else "")
        for rung in capture.get("ladder", [])
    )


def struck(fault: CaptureFault, text: str) -> Check:
    """That the fault struck at all; without it what follows proves nothing. ``text`` is as of told."""
    return check_shows("the fault struck", fault.shows, text)


def check_capture_fault(
    fault: CaptureFault,
    kernel: Kernel,
    report: Report,
    saved: Saved,
    directory: Path,
    said: str,
) -> Iterator[Check]:
    """That the fault struck, and that the capture did what it must about it.

    ``said`` is all that the crash kernel said (shows.told).
    """
    yield struck(fault, said)
    if fault.ladder:
        text = ladder_text(saved.capture)
        yield Check(
            "the capture's ladder is as it must be",
            re.fullmatch(fault.ladder, text) is not None,
            text or "there is no capture.json",
        )
    if fault.within_seconds:
        up = report.find("crash_kernel")
        took = report.seconds - up["at"] if up else 0.0
        yield Check(
            "the machine came back in time",
            bool(up) and not report.timed_out and took <= fault.within_seconds,
            f"{took:.0f} s after the crash kernel was up"
            if up
            else "the crash kernel was never up",
        )
    if fault.pstore:
        yield _pstore(fault, kernel, directory)


def _pstore(fault: CaptureFault, kernel: Kernel, directory: Path) -> Check:
    """Boot once more with what outlives a reset, and look there as production does."""
    name = "production finds it in pstore after the reset"
    guest = Guest(extra=tuple(device_words(fault, directory)))
    try:
        seen = observe(
            kernel, "loglevel=4", _AFTER_BYTES, guest=guest, commands={"pstore": _LOOK}
        ).answers["pstore"]
    except CrashlendError as error:
        return Check(name, False, str(error)[-300:])
    (directory / "pstore.txt").write_text(seen.text)
    missing = [words for words in fault.pstore if words not in seen.text]
    detail = f"not there: {missing}" if missing else f"{len(seen.text)} characters in all"
    return Check(name, seen.exit == 0 and not missing, detail)


def read_raw(image: Path, directory: Path) -> Saved:
    """What a raw device has, recovered into ``directory``/saved as people recover it."""
    where = directory / "saved/crash"
    where.mkdir(parents=True, exist_ok=True)
    try:
        place = recover_raw(image, where).path
    except CrashlendError:
        return Saved({}, "", None)
    return read_place(place)
