# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who saves a dump sooner: one crash of one contender (contenders.py) on a system of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crashlend.dumps.recover import unflatten
from crashlend.errors import CrashlendError
from crashlend.formats import flattened
from crashlend.lab.packages import find_tool
from crashlend.lab.qemu import Disk, Machine, run_machine
from crashlend.lab.speed.contenders import (
    CRASHKERNEL,
    DUMPS,
    MEMORY_BYTES,
    SECONDS,
    Contender,
    job,
)
from crashlend.lab.speed.moments import Follower, moments
from crashlend.lab.system.edit import copy_directory, read_file, replay, write_files
from crashlend.lab.system.image import (
    BOOT_WORDS,
    JOB,
    build_system,
    install_crashlend,
    system_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crashlend.lab.kernels import Kernel
    from crashlend.lab.packages import Say


def run_one(contender: Contender, kernel: Kernel, *, keep: Path | None, say: Say) -> dict[str, Any]:
    """One crash: its moments, what was saved, and why it does not count ("" when it does)."""
    image = build_system(kernel, say)
    with tempfile.TemporaryDirectory(prefix="crashlend-speed-") as name:
        directory = Path(name)
        disk = directory / "root.ext4"
        command = [find_tool("cp"), "--sparse=always", "--reflink=auto", str(image), str(disk)]
        subprocess.run(command, check=True)
        replay(disk)
        if contender.settings is not None:
            install_crashlend(disk, contender.settings)
        write_files(disk, {JOB: (job(contender).encode(), 0o644)})
        system = system_of(image, kernel.release)
        machine = Machine(
            kernel=system.kernel,
            initramfs=system.initramfs,
            words=f"{BOOT_WORDS} {CRASHKERNEL}",
            memory_bytes=MEMORY_BYTES,
            disks=(Disk(disk),),
        )
        try:
            with Follower(directory / "console.log") as follower:
                report = run_machine(machine, directory, timeout_seconds=SECONDS)
            replay(disk)
            result = result_of(contender, disk, directory)
            result["moments"] = moments(follower.lines, contender.patterns)
            result["cpu"] = moments(follower.lines, contender.patterns, "cpu")
            result["why"] = why_not(result, timed_out=report.timed_out)
        finally:
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                if (directory / "console.log").exists():
                    shutil.copy(directory / "console.log", keep / f"{contender.name}.log")
    return {"name": contender.name, **result}


def result_of(contender: Contender, disk: Path, directory: Path) -> dict[str, Any]:
    """What the newest dump directory on the disk has, and whether its dump opens."""
    saved = copy_directory(disk, DUMPS, directory / "saved")
    dumps = sorted(
        path
        for path in saved.glob("*/*")
        if path.is_file() and (path.name == "vmcore" or path.name.startswith("dump."))
    )
    result: dict[str, Any] = {"vmcore_bytes": 0, "panic": "", "capture": {}}
    if dumps:
        result["vmcore_bytes"] = dumps[-1].stat().st_size
        result["panic"] = panic_in(dumps[-1])
    reports = sorted(saved.glob("*/capture.json"))
    if reports:
        capture = json.loads(reports[-1].read_text(errors="replace"))
        keys = ("seconds", "makedumpfile", "purgatory", "crash_kernel")
        result["capture"] = {key: capture.get(key) for key in keys}
    if contender.settings is None:
        conf = read_file(disk, "/etc/default/kdump-tools").decode(errors="replace")
        result["configured"] = [
            line for line in conf.splitlines() if line and not line.startswith("#")
        ]
    return result


def panic_in(vmcore: Path) -> str:
    """The panic's line in the log of a dump, by makedumpfile here; "" when it finds none.

    kdump-tools leaves the flattened format, as it came through the pipe; that is put together first.
    """
    tool = find_tool("makedumpfile", "install the package makedumpfile")
    out = vmcore.parent / "dmesg.of.it"
    with vmcore.open("rb") as file:
        head = file.read(flattened.HEADER.size)
    if flattened.is_flattened(head):
        try:
            vmcore = unflatten(vmcore, vmcore.parent / "whole").path
        except CrashlendError:
            return ""
    subprocess.run([tool, "--dump-dmesg", str(vmcore), str(out)], capture_output=True, check=False)
    if not out.exists():
        return ""
    lines = out.read_text(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if "Kernel panic - not" in line), "")


def why_not(result: Mapping[str, Any], *, timed_out: bool) -> str:
    """Why a run does not count; empty when its dump is there, opens, and the times are known."""
    missing = [name for name in ("init", "saved") if name not in result["moments"]]
    if missing:
        return f"not seen on the console: {', '.join(missing)}"
    if not result["panic"]:
        return "the dump does not open"
    return "the deadline passed" if timed_out else ""
