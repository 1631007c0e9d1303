# SPDX-License-Identifier: LGPL-2.1-or-later
"""A trial: one crash of a real kernel in QEMU, from boot to verified vmcore.

Nothing of a trial outlives it but what ``--keep`` asks for; trials run side by side.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

from crashlend.lab import late
from crashlend.lab.analysis import check_analysis
from crashlend.lab.capture_fault_checks import check_capture_fault, read_raw
from crashlend.lab.capture_faults import fault_devices, find_capture_fault, make_fault_disks
from crashlend.lab.checks import death_by_memory, run_checks
from crashlend.lab.crashes import find_crash
from crashlend.lab.entry.flips import Flips
from crashlend.lab.entry.stop import EntryStop
from crashlend.lab.entry.witness import Witness
from crashlend.lab.firmware import SECURE
from crashlend.lab.guest import build_boot_initramfs, build_root
from crashlend.lab.lab_disk import make_lab_disk, production_words, read_saved
from crashlend.lab.outcome import Outcome, load_answer
from crashlend.lab.packages import silent
from crashlend.lab.parity import check_parity
from crashlend.lab.premises import check_premises
from crashlend.lab.qemu import Disk, Machine, choose_accel, run_machine
from crashlend.lab.secure import build_boot_disk
from crashlend.lab.servers import configs as server_configs
from crashlend.lab.servers.client import NETS
from crashlend.lab.servers.guest import serving
from crashlend.lab.servers.results import check_net, rearranged, server_logs
from crashlend.lab.shows import check_shows, told
from crashlend.lab.spec import Saved, Spec
from crashlend.lab.speed.checks import check_speed
from crashlend.lab.targets import layouts
from crashlend.lab.watch import PRODUCTIONS_OWN, Watch, crash_kernel_lines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crashlend.lab.capture_faults import CaptureFault
    from crashlend.lab.qemu import Report
    from crashlend.lab.servers.guest import Served
    from crashlend.lab.spec import Check

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
CHECK_SHOWS = "it went the way that the trial is about"


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
    find_crash(spec.crash)  # before anything is made
    fault = find_capture_fault(spec.capture_fault)
    with ExitStack() as stack:
        directory = _enter(keep, stack)
        served = _serve(spec, directory, stack, say)
        stop = stop or stop_of(spec)
        if stop:
            stack.enter_context(stop)
        bench = Bench(spec, directory, say, fault, served, stop)
        machine = _machine(bench)
        bench = replace(bench, spec=replace(spec, accel=machine.accel))
        report = _run(bench, machine, on_event, given_up)
        if stop:
            stop.finish(machine, say)
        outcome = _judge(bench, report, _read(bench, read), keep)
        if keep is not None:
            (keep / "events.json").write_text(json.dumps(report.events, indent=1))
            (keep / "trial.json").write_text(json.dumps(outcome.to_json(), indent=1))
        return outcome


@dataclass(frozen=True)
class Bench:
    """One trial under way: its spec, where its files are, and what takes part in it beside the guest."""

    spec: Spec
    directory: Path
    say: Say
    fault: CaptureFault | None = None
    served: Served | None = None
    stop: EntryStop | None = None

    @property
    def disk(self) -> Path:
        """The lab's own."""
        return self.directory / "lab.ext4"

    @property
    def own(self) -> str:
        """How production dies."""
        crash = find_crash(self.spec.crash)
        return crash.kind.words if crash else PRODUCTIONS_OWN


def _enter(keep: Path | None, stack: ExitStack) -> Path:
    """The trial's directory, without an earlier one's results."""
    if keep is None:
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="crashlend-")))
    keep.mkdir(parents=True, exist_ok=True)
    remove_traces(keep)
    return keep


def _machine(bench: Bench) -> Machine:
    """The guest that crashes, with all its disks made."""
    spec, directory, say = bench.spec, bench.directory, bench.say
    fault, served, stop = bench.fault, bench.served, bench.stop
    packages = (
        *(server_configs.PACKAGES if served else ()),
        *(layouts.PACKAGES if spec.disk_layout else ()),
    )
    root = build_root(spec.kernel, say, packages)
    boot = build_boot_initramfs(spec.kernel, say, lab_label=spec.lab_label, disk=spec.disk)
    spec = replace(spec, accel=choose_accel(spec.accel, spec.kernel.vmlinuz, directory))
    disk = make_lab_disk(spec, directory, say)
    targets = layouts.make_disks(spec, directory)
    words = production_words(spec)
    secure = spec.firmware == SECURE
    return Machine(
        kernel=spec.kernel.vmlinuz,
        initramfs=boot,
        words=words,
        memory_bytes=spec.memory_bytes,
        cpus=spec.cpus,
        disks=(
            Disk(root, kept=False),
            Disk(disk, bus=spec.disk),
            *targets,
            *(make_fault_disks(fault, directory) if fault else ()),
        ),
        accel=spec.accel,
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
        boot_disk=str(build_boot_disk(spec.kernel, boot, words, directory, say)) if secure else "",
    )


def _run(
    bench: Bench,
    machine: Machine,
    on_event: Callable[[dict[str, Any]], None],
    given_up: Callable[[], str],
) -> Report:
    """From boot to the end."""
    watch = Watch(bench.directory / "console.log", time.monotonic, own=bench.own)
    stop = bench.stop

    def seen(event: dict[str, Any]) -> None:
        on_event(event)
        if stop:
            stop.notice(event)

    return run_machine(
        machine,
        bench.directory,
        timeout_seconds=bench.spec.timeout_seconds,
        on_event=seen,
        is_lost=lambda: given_up() or (watch.is_lost() if bench.spec.impatient else ""),
        actions=stop.actions if stop else None,
    )


def _read(bench: Bench, read: Callable[[Path], Saved] | None) -> Saved:
    """What was saved, from where this trial's dump must be; ends the servers."""
    directory, fault, served = bench.directory, bench.fault, bench.served
    if fault and "raw-0" in fault.targets:
        saved = read_raw(directory / "disk-0", directory)
    else:
        saved = read(directory) if read else read_saved(bench.disk, directory)
    if served:
        served.end()
        if NETS[bench.spec.net].on_server:
            saved = rearranged(read_saved(served.disk, served.disk.parent))
    return saved


def _judge(bench: Bench, report: Report, saved: Saved, keep: Path | None) -> Outcome:
    """All checks: the trial's premises first, then what holds for all trials, then what it is about."""
    spec, directory = bench.spec, bench.directory
    plan = load_answer(report).get("plan", {})
    console = read_console(directory)
    checks = [*_premises(bench, report, plan, saved, console)]
    checks += run_checks(spec, report, plan, saved)
    more: dict[str, Any] = {}
    if bench.stop:
        checks += bench.stop.checks(saved)
        more[bench.stop.name] = bench.stop.to_json()
    if bench.served:
        checks += check_net(spec, saved, bench.served)
    if spec.parity:
        checks += check_parity(spec, report, plan, directory)
    if spec.analyze:
        found, analysis = check_analysis(spec, report, saved, bench.say)
        checks += found
        more.update(analysis)
    checks += layouts.check_target(spec, saved)
    checks += check_speed(spec, report, saved.capture)
    return Outcome(
        spec=spec,
        report=report,
        plan=plan,
        capture=saved.capture,
        vmcore_path=str(saved.vmcore) if keep and saved.vmcore else "",
        checks=tuple(checks),
        kept=str(keep) if keep else "",
        death_by_memory=death_by_memory(console, report.lost, bench.own),
        console=console,
        at_entry=more,
    )


def _premises(
    bench: Bench, report: Report, plan: dict[str, Any], saved: Saved, console: str
) -> Iterator[Check]:
    """Without these the rest proves nothing."""
    spec, fault = bench.spec, bench.fault
    said = told(crash_kernel_lines(console + "\n", bench.own) or [], saved)
    yield from check_premises(spec, plan, saved, bench.disk, bench.directory)
    if spec.shows:
        logs = server_logs(bench.served.disk) if bench.served else ""
        yield check_shows(CHECK_SHOWS, spec.shows, f"{said}\n{logs}")
    if fault:
        yield from check_capture_fault(fault, spec.kernel, report, saved, bench.directory, said)


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
