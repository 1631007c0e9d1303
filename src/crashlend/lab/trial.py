# SPDX-License-Identifier: LGPL-2.1-or-later
"""A trial: one crash of a real kernel in QEMU, from boot to verified vmcore.

Nothing of a trial outlives it but what ``--keep`` asks for; trials run side by side.
"""

from __future__ import annotations

import compileall
import json
import os
import py_compile
import shutil
import subprocess
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

from crashlend.errors import CrashlendError
from crashlend.lab import late
from crashlend.lab.analysis import check_analysis
from crashlend.lab.capture_fault_checks import check_capture_fault, read_raw
from crashlend.lab.capture_faults import fault_devices, find_capture_fault, make_fault_disks
from crashlend.lab.captures import build_capture, lay_out_hooks
from crashlend.lab.checks import death_by_memory, run_checks
from crashlend.lab.crashes import find_crash
from crashlend.lab.entry.flips import Flips
from crashlend.lab.entry.stop import STOP, EntryStop
from crashlend.lab.entry.witness import Witness
from crashlend.lab.firmware import SECURE
from crashlend.lab.guest import build_boot_initramfs, build_root, pack_ext4
from crashlend.lab.loaders import INITRAMFS, kexec_initramfs, load_command
from crashlend.lab.outcome import Outcome, load_answer
from crashlend.lab.packages import find_tool, silent
from crashlend.lab.parity import check_parity
from crashlend.lab.places import read_place
from crashlend.lab.premises import check_premises
from crashlend.lab.qemu import Disk, Machine, choose_accel, run_machine
from crashlend.lab.secure import build_boot_disk
from crashlend.lab.servers import configs as server_configs
from crashlend.lab.servers.client import NETS, lay_out
from crashlend.lab.servers.guest import serving
from crashlend.lab.servers.results import check_net, rearranged, server_logs
from crashlend.lab.shows import check_shows, told
from crashlend.lab.spec import Saved, Spec
from crashlend.lab.speed.checks import check_speed
from crashlend.lab.targets import layouts
from crashlend.lab.targets.layouts import (
    check_target,
    load_words,
    make_disks,
    prepare,
)
from crashlend.lab.triggers import copy_trigger
from crashlend.lab.watch import PRODUCTIONS_OWN, Watch, crash_kernel_lines
from crashlend.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crashlend.lab.servers.guest import Served

Say = Callable[[str], None]
# How people see the stages of a trial.
STAGES = {
    "booted": "production is up",
    "loaded": "memory is lent, the crash kernel is loaded",
    "filled": "lent memory is full of production's data",
    "crashing": "the kernel panics",
    "crash_kernel": "the crash kernel is up",
    "saved": "the capture is over",
    "scanned": "/proc/vmcore is examined",
}
DISK_FREE_BYTES = 700 << 20
CHECK_SHOWS = "it went the way that the trial is about"
GUEST_PROGRAMS = (
    *("init", "agent.py", "probe.py", "kill.py", "victims.py", "scan.py", "loads.py", "late.py"),
    *("vmcore.py", "parity.py", "hogs.py", "faulty.py", "slowpage.py", "reading.py", "tasks.py"),
)


def run_trial(
    spec: Spec,
    *,
    keep: Path | None = None,
    say: Say = silent,
    on_event: Callable[[dict[str, Any]], None] = lambda event: None,
    given_up: Callable[[], str] = lambda: "",
    stop: EntryStop | None = None,
    read: Callable[[Path], Saved] | None = None,
) -> Outcome:
    """Run one trial. CrashlendError when the lab itself can't; LostVmError when QEMU dies.

    ``given_up`` is asked about once a second, and says why the guest is to end early. ``stop``: what
    to do at purgatory's entry, where the spec's own words for that ask for nothing. ``read``: what was
    saved, read into that directory, where it is not on the lab's own disk.
    """
    crash = find_crash(spec.crash)  # before anything is made
    fault = find_capture_fault(spec.capture_fault)
    own = crash.kind.words if crash else PRODUCTIONS_OWN
    with ExitStack() as stack:
        if keep is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="crashlend-")))
        else:
            directory = keep
            directory.mkdir(parents=True, exist_ok=True)
            remove_traces(directory)
        served = _serve(spec, directory, stack, say)
        packages = (
            *(server_configs.PACKAGES if served else ()),
            *(layouts.PACKAGES if spec.disk_layout else ()),
        )
        root = build_root(spec.kernel, say, packages)
        boot = build_boot_initramfs(spec.kernel, say, lab_label=spec.lab_label, disk=spec.disk)
        accel = choose_accel(spec.accel, spec.kernel.vmlinuz, directory)
        spec = replace(spec, accel=accel)
        disk = make_lab_disk(spec, directory, say)
        targets = make_disks(spec, directory)
        stop = stop or stop_of(spec)
        if stop:
            stack.enter_context(stop)
        boot_disk = ""
        if spec.firmware == SECURE:
            words = production_words(spec)
            boot_disk = str(build_boot_disk(spec.kernel, boot, words, directory, say))
        machine = Machine(
            kernel=spec.kernel.vmlinuz,
            initramfs=boot,
            words=production_words(spec),
            memory_bytes=spec.memory_bytes,
            cpus=spec.cpus,
            disks=(
                Disk(root, kept=False),
                Disk(disk, bus=spec.disk),
                *targets,
                *(make_fault_disks(fault, directory) if fault else ()),
            ),
            accel=accel,
            dimms=spec.dimms,
            cpu_model=spec.cpu_model,
            firmware=spec.firmware,
            machine=spec.machine,
            nodes=spec.nodes,
            extra=(
                *spec.devices,
                *late.device_words(spec.late, directory),
                *(stop.words if stop else ()),
                *(fault_devices(fault, directory) if fault else ()),
                *(served.link.words if served else ()),
            ),
            sockets=served.link.sockets if served else (),
            spare_bytes=spec.spare_bytes,
            spare_cpus=spec.spare_cpus,
            memory_file=stop.memory.path if stop else "",
            boot_disk=boot_disk,
        )
        watch = Watch(directory / "console.log", time.monotonic, own=own)

        def seen(event: dict[str, Any]) -> None:
            on_event(event)
            if stop:
                stop.notice(event)

        report = run_machine(
            machine,
            directory,
            timeout_seconds=spec.timeout_seconds,
            on_event=seen,
            is_lost=lambda: given_up() or (watch.is_lost() if spec.impatient else ""),
            actions=stop.actions if stop else None,
        )
        if stop:
            stop.finish(machine, say)
        if fault and "raw-0" in fault.targets:
            saved = read_raw(directory / "disk-0", directory)
        else:
            saved = read(directory) if read else read_saved(disk, directory)
        if served:
            served.end()
            if NETS[spec.net].on_server:
                saved = rearranged(read_saved(served.disk, served.disk.parent))
        plan = load_answer(report).get("plan", {})
        console = read_console(directory)
        checks = run_checks(spec, report, plan, saved)
        said = told(crash_kernel_lines(console + "\n", own) or [], saved)
        premises = [*check_premises(spec, plan, saved, disk, directory)]
        if spec.shows:
            logs = server_logs(served.disk) if served else ""
            premises.append(check_shows(CHECK_SHOWS, spec.shows, f"{said}\n{logs}"))
        if fault:
            premises += check_capture_fault(fault, spec.kernel, report, saved, directory, said)
        checks[:0] = premises
        if stop:
            checks += stop.checks(saved)
        if served:
            checks += check_net(spec, saved, served)
        if spec.parity:
            checks += check_parity(spec, report, plan, directory)
        more: dict[str, Any] = {stop.name: stop.to_json()} if stop else {}
        if spec.analyze:
            found, analysis = check_analysis(spec, report, saved, say)
            checks += found
            more.update(analysis)
        checks += check_target(spec, saved)
        checks += check_speed(spec, report, saved.capture)
        outcome = Outcome(
            spec=spec,
            report=report,
            plan=plan,
            capture=saved.capture,
            vmcore_path=str(saved.vmcore) if keep and saved.vmcore else "",
            checks=tuple(checks),
            kept=str(keep) if keep else "",
            death_by_memory=death_by_memory(console, report.lost, own),
            console=console,
            at_entry=more,
        )
        if keep is not None:
            (keep / "events.json").write_text(json.dumps(report.events, indent=1))
            (keep / "trial.json").write_text(json.dumps(outcome.to_json(), indent=1))
        return outcome


def _serve(spec: Spec, directory: Path, stack: ExitStack, say: Say) -> Served | None:
    """The servers of the trial's network, starting, if it has one."""
    if not spec.net:
        return None
    (directory / "server").mkdir(exist_ok=True)
    remove_traces(directory / "server")
    return stack.enter_context(
        serving(
            spec.kernel,
            directory / "server",
            stall=NETS[spec.net].stall,
            timeout_seconds=spec.timeout_seconds,
            say=say,
        )
    )


def stop_of(spec: Spec) -> EntryStop | None:
    """What is to be done where purgatory begins, if anything."""
    if spec.proof:
        return Witness(spec.memory_bytes)
    return Flips(spec.memory_bytes, spec.flips) if spec.flips else None


def remove_traces(directory: Path) -> None:
    """Take an earlier trial's results away: what this one does not make must not seem to be its."""
    if (directory / "saved/crash").exists():
        shutil.rmtree(directory / "saved/crash")
    for name in ("console.log", "events.json", "trial.json"):
        (directory / name).unlink(missing_ok=True)


def read_console(directory: Path) -> str:
    """Both kernels' console; empty when there was none."""
    try:
        return (directory / "console.log").read_text(errors="replace")
    except OSError:
        return ""


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
        (tree / "job.json").write_text(
            json.dumps(
                {
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
            )
        )
        pack_ext4(tree, disk, spec.lab_label, free_bytes=DISK_FREE_BYTES)
    return disk


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
