# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lab's own disk: what it brings into the guest that crashes, and the dump that it brings back."""

from __future__ import annotations

import compileall
import json
import os
import py_compile
import shutil
import subprocess
import tempfile
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crashlend.errors import CrashlendError
from crashlend.lab.capture_faults import find_capture_fault
from crashlend.lab.captures import build_capture, lay_out_hooks
from crashlend.lab.crashes import find_crash
from crashlend.lab.entry.stop import STOP
from crashlend.lab.guest import pack_ext4
from crashlend.lab.loaders import INITRAMFS, kexec_initramfs, load_command
from crashlend.lab.packages import find_tool
from crashlend.lab.places import read_place
from crashlend.lab.servers.client import lay_out
from crashlend.lab.spec import Saved
from crashlend.lab.targets.layouts import load_words, prepare
from crashlend.lab.triggers import copy_trigger
from crashlend.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crashlend.lab.packages import Say
    from crashlend.lab.spec import Command, Spec

DISK_FREE_BYTES = 700 << 20
GUEST_PROGRAMS = (
    *("init", "agent.py", "probe.py", "kill.py", "victims.py", "scan.py", "loads.py", "late.py"),
    *("vmcore.py", "parity.py", "hogs.py", "faulty.py", "slowpage.py", "reading.py", "tasks.py"),
)


def production_words(spec: Spec) -> str:
    """Production's command line; root and init are the boot initramfs's business.

    no_timer_check, which the crash kernel inherits: at boot the kernel counts timer interrupts
    against the TSC and panics when they come late ("IO-APIC + timer doesn't work!"). Under emulation
    on a loaded machine they do; KVM guests skip the test by themselves. earlyprintk, which it
    inherits too: a crash kernel that dies before its console is there shall say so.
    """
    early = "earlyprintk=ttyS0,115200"
    words = f"console=ttyS0 {early} loglevel=4 panic=1 no_timer_check {spec.cmdline}"
    return words.strip()


def make_lab_disk(spec: Spec, directory: Path, say: Say) -> Path:
    """The second disk: crashlend itself, the job, the hooks, and room for the dump."""
    disk = directory / "lab.ext4"
    with tempfile.TemporaryDirectory(prefix="crashlend-disk-") as name:
        tree = Path(name)
        tree.chmod(0o755)
        _lay_out_programs(spec, tree)
        crash = find_crash(spec.crash)
        if crash and crash.kind.module:
            copy_trigger(spec.kernel, tree, say)
        victim = bool(spec.late) and spec.late != "edu"
        fault = find_capture_fault(spec.capture_fault)
        copy = bool(spec.disk_layout)
        hooks = lay_out_hooks(tree, victim=victim, speed=spec.speed, copy=copy, fault=fault)
        if spec.net:
            lay_out(tree, say)
        commands = spec.commands or (load_command(spec, spec.loader, production_words(spec)),)
        commands += (STOP,) if spec.proof or spec.flips else ()
        if not spec.build_in_guest:
            own = spec.initramfs or build_capture(
                spec.kernel, hooks, say, disk=spec.disk, fault=fault, own_tools=spec.own_tools
            )
            shutil.copy(own, tree / "initramfs")
            if any(command.program == "kexec" for command in commands):
                capture = (tree / "initramfs").read_bytes()
                (tree / INITRAMFS).write_bytes(kexec_initramfs(capture, spec.dump_level))
        (tree / "init").chmod(0o755)
        (tree / "crash").mkdir()
        (tree / "job.json").write_text(json.dumps(_job(spec, commands)))
        pack_ext4(tree, disk, spec.lab_label, free_bytes=DISK_FREE_BYTES)
    return disk


def _lay_out_programs(spec: Spec, tree: Path) -> None:
    """Crashlend as an installed package, and the lab's own programs."""
    with as_file(files("crashlend")) as package:
        shutil.copytree(
            package,
            tree / "python/crashlend",
            ignore=shutil.ignore_patterns("__pycache__", "lab", "snapshots"),
        )
    # as an installed package is; a guest with another Python compiles for itself, more slowly
    compileall.compile_dir(
        tree / "python",
        stripdir=str(tree),
        prependdir="/lab",
        quiet=2,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    with as_file(files("crashlend.lab").joinpath("guestfiles")) as guestfiles:
        wanted = {"scan.py": spec.scan, "vmcore.py": spec.proof, "parity.py": spec.parity}
        for file in GUEST_PROGRAMS:
            if wanted.get(file) is False:
                continue
            shutil.copy(guestfiles / file, tree / file)


def _job(spec: Spec, commands: Sequence[Command]) -> dict[str, Any]:
    """What the agent in the guest is to do."""
    crash = find_crash(spec.crash)
    return {
        "prepare": prepare(spec) if spec.disk_layout else spec.prepare,
        "commands": [
            {
                "program": command.program,
                "argv": complete_words(spec, command.words)
                if command.program == "crashlend"
                else command.words,
                "exit": command.exit,
                "fault": command.fault,
                "says": command.says,
            }
            for command in commands
        ],
        "probe": spec.probe,
        "crash": crash.job(complete_words(spec, ("reload",))) if crash else None,
        "poison": spec.poison,
        "late": spec.late,
        "analyze": spec.analyze,
        "kill": spec.kill,
        "kill_load": complete_words(spec, ("load",))[1:],
    }


def complete_words(spec: Spec, words: Sequence[str]) -> list[str]:
    """One crashlend command of this trial; a load gets what the lab and the spec demand."""
    if words[0] not in ("load", "reload"):
        return [*words, *(["--json"] if words[0] in ("status", "unload") else [])]
    if "--event" in words:
        return [words[0], "--json", *words[1:]]  # it has the settings of the load that it renews
    out = [words[0], "--json", "--path", "/lab/crash", "--hooks", "/lab/hooks"]
    out += ["--dump-level", str(spec.dump_level), "--dma-quiesce", spec.dma_quiesce]
    out += ["--lender", spec.lender, "--syscall", spec.syscall, "--placement", spec.placement]
    if spec.reserve == "auto":
        out.append("--shrink")
    elif spec.reserve == "exact":
        out += ["--shrink", "--shrink-margin", "0"]
    elif spec.reserve != "keep":
        out += ["--shrink", spec.reserve]
    if not spec.build_in_guest:
        out += ["--initramfs", "/lab/initramfs"]
    out += load_words(spec)
    if spec.lend_bytes is not None:
        out += ["--lend", format_size(spec.lend_bytes)]
    if spec.allow_missing_user_data:
        out += ["--allow-missing-user-data"]
    return [*out, *words[1:]]


def read_saved(disk: Path, directory: Path, path: str = "/crash") -> Saved:
    """Copy the dumps' directory ``path`` out of the disk image (debugfs needs no root)."""
    out = directory / "saved"
    out.mkdir(exist_ok=True)
    done = subprocess.run(
        [
            find_tool("debugfs", "install the package e2fsprogs"),
            "-R",
            f"rdump {path} {os.path.relpath(out, directory)}",
            str(disk),
        ],
        cwd=directory,
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        raise CrashlendError("cannot read the lab's disk", done.stderr.decode()[-200:])
    newest = sorted(one for one in (out / Path(path).name).glob("*") if one.is_dir())
    if not newest:
        return Saved({}, "", None)
    return read_place(newest[-1])
