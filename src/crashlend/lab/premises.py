# SPDX-License-Identifier: LGPL-2.1-or-later
"""What must be so before a trial of a local target or of the capture's tools proves anything."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

from crashlend.errors import CrashlendError
from crashlend.lab.packages import find_tool
from crashlend.lab.spec import Check
from crashlend.lab.targets.layouts import find_layout
from crashlend.lab.twin.contents import read_files
from crashlend.ranges import Ranges
from crashlend.sizes import mib

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from crashlend.lab.spec import Saved, Spec


def check_premises(
    spec: Spec, plan: dict[str, Any], saved: Saved, disk: Path, directory: Path
) -> Iterator[Check]:
    """Those that the spec asks for; ``disk`` is the lab's own, ``directory`` the trial's."""
    if spec.own_tools:
        yield check_own_tools(loaded_files(disk, directory))
    if spec.disk_layout and find_layout(spec.disk_layout).opening_bytes:
        yield check_opening(find_layout(spec.disk_layout).opening_bytes, plan, saved.capture)


def loaded_files(disk: Path, directory: Path) -> Iterable[str]:
    """The paths in the initramfs that was loaded from the lab's disk; none where there is none."""
    out = directory / "loaded.initramfs"
    tool = find_tool("debugfs", "install the package e2fsprogs")
    subprocess.run(
        [tool, "-R", f"dump /initramfs {out.name}", str(disk.resolve())],
        cwd=directory,
        capture_output=True,
        check=False,
    )
    try:
        return read_files(out.read_bytes())
    except (OSError, CrashlendError):
        return ()
    finally:
        out.unlink(missing_ok=True)


def check_own_tools(paths: Iterable[str]) -> Check:
    """There is no busybox that could have done the work."""
    names = sorted(path.rpartition("/")[2] for path in paths)
    busybox = [name for name in names if "busybox" in name]
    return Check(
        "no busybox is in the capture",
        bool(names) and not busybox,
        ", ".join(busybox)
        or f"{len(names)} files, among them {'dash' if 'dash' in names else 'sh'}",
    )


def check_opening(opening_bytes: int, plan: dict[str, Any], capture: dict[str, Any]) -> Check:
    """Opening the target takes more than the reservation, and the crash kernel had that in use."""
    reserved = Ranges(tuple(r) for r in plan.get("reservation", [])).size
    peak = capture.get("crash_kernel", {}).get("peak_used_bytes") or 0
    return Check(
        "opening the target took more memory than is reserved",
        0 < reserved < opening_bytes <= peak,
        f"{mib(opening_bytes)} to open it, {mib(reserved)} reserved, {mib(peak)} in use at most",
    )
