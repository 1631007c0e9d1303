# SPDX-License-Identifier: LGPL-2.1-or-later
"""One virtual machine: QEMU's command line, its life, and what the guest reports.

The guest reports over a second serial port, one JSON object per line; the console is kept for
people. The one result that the lab reads there is the death of a control's crash kernel, which can't
report any more (checks.death_by_memory).
"""

from __future__ import annotations

import ctypes
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

from crashlend.errors import CrashlendError
from crashlend.lab.firmware import BIOS, SECURE, flash_words
from crashlend.lab.host import SOCKET, Host
from crashlend.sizes import KIB

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from crashlend.lab.host import Action

QEMU = "qemu-system-x86_64"
PR_SET_PDEATHSIG = 1
PAGE = 4096
# TCG carries "rep stosb" out byte by byte: without the bits that recommend it to the kernel and to
# the C library, clearing and copying memory is several times faster.
CPU_MODEL = "max,-erms,-fsrm"
# A guest that prints nothing is a hung accelerator, not a slow one.
KVM_PROBE_SECONDS = 15
SPARE_SLOTS = 4
EVENT_BEGINS = b'{"event"'


class LostVmError(CrashlendError):
    """The virtual machine itself failed: no verdict on what ran in it."""


@dataclass(frozen=True)
class Disk:
    """A raw image on a bus (virtio, ide, nvme or ahci), and whether changes are kept.

    ``name``: what QEMU calls its device, for those that may be unplugged, and for nvme and ahci.
    """

    image: Path
    bus: str = "virtio"
    kept: bool = True
    name: str = ""


@dataclass(frozen=True)
class Machine:
    """A virtual machine. Sizes in bytes; ``words`` is the kernel's command line.

    ``nodes``: NUMA nodes, which share memory and CPUs evenly. ``spare_bytes`` and ``spare_cpus`` are
    what may be plugged in while it runs. ``memory_file``: the file that is its memory, shared with who
    has it open, too; empty: memory of its own. Only without nodes. ``memory_private``: what the machine
    writes to it is the machine's alone. ``sockets``: descriptors that QEMU inherits, for its network.
    ``boot_disk``: the image of the disk from which firmware starts
    by itself; kernel, initramfs and words are there then (secure.py).
    """

    kernel: Path
    initramfs: Path
    words: str
    memory_bytes: int
    cpus: int = 1
    disks: tuple[Disk, ...] = ()
    accel: str = "tcg"
    dimms: tuple[int, ...] = ()
    cpu_model: str = CPU_MODEL
    firmware: str = "bios"
    machine: str = "pc"
    nodes: int = 1
    extra: tuple[str, ...] = ()  # more words for QEMU: devices, how far its nodes are apart
    spare_bytes: int = 0
    spare_cpus: int = 0
    memory_file: str = ""
    memory_private: bool = False
    boot_disk: str = ""
    sockets: tuple[int, ...] = ()

    def argv(self, directory: Path) -> list[str]:
        """QEMU's words; sockets and logs go into ``directory``."""
        memory = f"{self.memory_bytes // KIB}K"
        if self.dimms or self.spare_bytes:
            most = (self.memory_bytes + sum(self.dimms) + self.spare_bytes) >> 20
            slots = len(self.dimms) + (SPARE_SLOTS if self.spare_bytes else 0)
            memory += f",slots={slots},maxmem={most + 1024}M"
        processors = f"{self.cpus},maxcpus={self.cpus + self.spare_cpus}"
        argv = [
            find_qemu(),
            *("-accel", self.accel, "-cpu", self.cpu_model, "-smp", processors),
            *self.machine_words(),
            *("-m", memory),
            *("-display", "none", "-vga", "none", "-nodefaults", "-no-user-config", "-no-reboot"),
            *self.boot_words(),
            *("-chardev", f"file,id=console,path={directory}/console.log"),
            *("-serial", "chardev:console"),
            *("-chardev", f"socket,id=report,path={directory}/report.sock"),
            *("-serial", "chardev:report"),
            *("-qmp", f"unix:{directory}/{SOCKET},server=on,wait=off"),
            *("-rtc", "base=utc"),
            *(flash_words(directory, self.firmware) if self.firmware != BIOS else ()),
            *self.extra,
        ]
        for index, size in enumerate(self.dimms):
            argv += ["-object", f"memory-backend-ram,id=dimm{index},size={size >> 20}M"]
            argv += ["-device", f"pc-dimm,id=d{index},memdev=dimm{index}"]
        for disk in self.disks:
            # results must be on the disk when the guest says so; speed comes from the page cache
            bus = "none" if disk.name else disk.bus
            argv += [
                "-drive",
                f"file={disk.image},format=raw,if={bus},cache=unsafe,"
                f"snapshot={'off' if disk.kept else 'on'}" + f",id={disk.name}" * bool(disk.name),
            ]
            argv += device_words(disk) if disk.name else []
        return argv

    def boot_words(self) -> list[str]:
        """QEMU's words for what is started: the kernel itself, or what firmware finds on a disk."""
        if not self.boot_disk:
            return [
                "-kernel",
                str(self.kernel),
                "-initrd",
                str(self.initramfs),
                "-append",
                self.words,
            ]
        return [
            # on another bus: guests know their own disks by virtio's order
            *("-drive", f"file={self.boot_disk},format=raw,if=none,id=boot,snapshot=on"),
            *("-device", "ide-hd,bus=ide.0,drive=boot,bootindex=1"),
        ]

    def machine_words(self) -> list[str]:
        """QEMU's words for the machine, its nodes and their memory.

        No memory is set aside: a guest may have more than this host, as long as it touches less.
        """
        machine = self.machine + (",smm=on" if self.firmware == SECURE else "")
        backend = "memory-backend-ram,id={},size={},reserve=off"
        if self.nodes < 2:
            words = ["-machine", f"{machine},memory-backend=ram"]
            if self.memory_file:
                share = "off" if self.memory_private else "on"
                backend = "memory-backend-file,id={},size={},share=" + share
                backend += f",mem-path={self.memory_file}"
            return [*words, "-object", backend.format("ram", self.memory_bytes)]
        words = ["-machine", machine]
        pages = self.memory_bytes // PAGE
        for node in range(self.nodes):
            size = (pages * (node + 1) // self.nodes - pages * node // self.nodes) * PAGE
            words += ["-object", backend.format(f"node{node}", size)]
            first, last = (self.cpus * n // self.nodes for n in (node, node + 1))
            cpus = f",cpus={first}-{last - 1}" if first < last else ""  # a node may have none
            words += ["-numa", f"node,nodeid={node},memdev=node{node}{cpus}"]
        return words


@dataclass
class Report:
    """What a guest reported: ``events`` in order, each with ``at`` (seconds since start)."""

    events: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    timed_out: bool = False
    lost: str = ""  # why the machine was ended early

    def find(self, name: str) -> dict[str, Any]:
        """The first event of that name; empty when there was none."""
        return next((e for e in self.events if e.get("event") == name), {})

    def between(self, first: str, second: str) -> float | None:
        """Seconds from one event to another; None when either is missing."""
        a, b = self.find(first), self.find(second)
        return round(b["at"] - a["at"], 3) if a and b else None


def run_machine(
    machine: Machine,
    directory: Path,
    *,
    timeout_seconds: float,
    on_event: Callable[[dict[str, Any]], None] = lambda event: None,
    is_lost: Callable[[], str] = lambda: "",
    actions: Mapping[str, Action] | None = None,
    on_start: Callable[[Host], None] | None = None,
) -> Report:
    """Run the machine until it powers off or resets, or until the deadline.

    ``is_lost`` is asked about once a second; as soon as it says why nothing more can come, the
    machine is ended and the report has the reason. ``actions``: what the guest may ask of the host,
    beside QMP (host.py). ``on_start`` is called once the machine is there.
    LostVmError when QEMU itself fails. QEMU dies with this process, however that dies.
    """
    report = Report()
    path = directory / "report.sock"
    for old in (path, directory / SOCKET):  # of an earlier run in the same directory
        old.unlink(missing_ok=True)
    host = Host(directory, actions)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(path) if len(str(path)) > 100 else str(path))
        listener.listen(1)
        listener.settimeout(20)
        begin = time.monotonic()
        with (directory / "qemu.log").open("wb") as log:
            process = subprocess.Popen(
                machine.argv(directory),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=machine.sockets,
                preexec_fn=_die_with_parent,
            )
        try:
            connection = _accept(listener, process, directory)
            with connection:
                if on_start is not None:
                    _await_monitor(process, directory)
                    on_start(host)
                deadline = begin + timeout_seconds
                report.timed_out = not _read_events(
                    connection, report, begin, deadline, on_event, is_lost, host
                )
        finally:
            host.close()
            report.seconds = round(time.monotonic() - begin, 3)
            ended = _end(process, grace_seconds=0 if report.timed_out or report.lost else 10)
    if not ended and process.returncode != 0:
        raise _lost(directory, f"QEMU ended with {process.returncode}")
    return report


def _accept(
    listener: socket.socket, process: subprocess.Popen[bytes], directory: Path
) -> socket.socket:
    listener.settimeout(0.2)
    for _ in range(100):
        try:
            return listener.accept()[0]
        except TimeoutError:
            if process.poll() is not None:
                raise _lost(directory, f"QEMU ended with {process.returncode}") from None
    raise _lost(directory, "QEMU did not start within 20 s")


def _await_monitor(process: subprocess.Popen[bytes], directory: Path) -> None:
    """QEMU opens its monitor after the guest's ports; its socket is there before it listens."""
    path = directory / SOCKET
    for _ in range(400):
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(os.path.relpath(path) if len(str(path)) > 100 else str(path))
            except OSError:
                if process.poll() is not None:
                    break
                time.sleep(0.05)
                continue
            return
    raise _lost(directory, "QEMU has no monitor")


def _read_events(
    connection: socket.socket,
    report: Report,
    begin: float,
    deadline: float,
    on_event: Callable[[dict[str, Any]], None],
    is_lost: Callable[[], str],
    host: Host,
) -> bool:
    """Collect events until QEMU closes the port (True) or the deadline passes (False)."""
    buffer = b""
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            if not selector.select(min(left, 1.0)):
                report.lost = is_lost()
                if report.lost:
                    return True
                continue
            data = connection.recv(65536)
            if not data:
                return True
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                event = parse_event(line)
                if event is not None:
                    event["at"] = round(time.monotonic() - begin, 3)
                    report.events.append(event)
                    if event.get("event") == "host":
                        event["answer"] = host.answer(event.get("ask"))
                        connection.sendall(json.dumps(event["answer"]).encode() + b"\n")
                    on_event(event)


def parse_event(line: bytes) -> dict[str, Any] | None:
    """The event that a line of the report port ends with; None when there is none.

    What others leave on the port may stand before it, without an end of line: firmware's own words,
    or the answer to production's last question, which the crash kernel's terminal echoes.
    """
    try:
        event = json.loads(line[max(0, line.find(EVENT_BEGINS)) :])
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def _end(process: subprocess.Popen[bytes], grace_seconds: float) -> bool:
    """Wait for QEMU, then end it; whether it had to be ended."""
    try:
        process.wait(grace_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
    return False


def _lost(directory: Path, why: str) -> LostVmError:
    try:
        lines = (directory / "qemu.log").read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return LostVmError(
        "the virtual machine was lost",
        f"{why}: {lines[-1]}" if lines else why,
        hint=f"its console and messages are in {directory}",
    )


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def device_words(disk: Disk) -> list[str]:
    """QEMU's words for a disk that has a name."""
    drive = f"drive={disk.name},id=disk-{disk.name}"
    if disk.bus == "nvme":
        return ["-device", f"nvme,{drive},serial={disk.name}"]
    if disk.bus == "ahci":
        controller = f"ahci-{disk.name}"
        return ["-device", f"ahci,id={controller}", "-device", f"ide-hd,{drive},bus={controller}.0"]
    # behind the guest's own disks, which QEMU puts into the first free slots: names follow slots
    slot = 0x10 + int(disk.name[-1])
    return ["-device", f"virtio-blk-pci,{drive},addr={slot:#x}"]


def find_qemu() -> str:
    """QEMU's path; CrashlendError with the package's name when it is not installed."""
    found = shutil.which(QEMU)
    if not found:
        raise CrashlendError(
            "the lab cannot crash anything",
            f"{QEMU} is not installed",
            hint="on Debian: apt install qemu-system-x86",
        )
    return found


def choose_accel(wish: str, kernel: Path, directory: Path) -> str:
    """``kvm`` where it really works, else ``tcg``. ``auto`` probes; a wish for kvm that fails errs.

    /dev/kvm may exist and hang: a guest started on it prints nothing, or firmware's and the boot
    code's first words alone. So a tiny guest (the kernel alone) must come as far as its panic for
    want of a root within a few seconds.
    """
    if wish == "tcg":
        return "tcg"
    works = os.access("/dev/kvm", os.R_OK | os.W_OK) and _kvm_boots(kernel, directory)
    if not works and wish == "kvm":
        raise CrashlendError(
            "KVM does not work here", "a tiny guest did not boot", hint="use --accel tcg"
        )
    return "kvm" if works else "tcg"


def _kvm_boots(kernel: Path, directory: Path) -> bool:
    console = directory / "kvm-probe.log"
    argv: Sequence[str] = [
        find_qemu(),
        *("-machine", "pc", "-accel", "kvm", "-cpu", "host", "-m", "256", "-nodefaults"),
        *("-display", "none", "-no-reboot", "-kernel", str(kernel)),
        *("-append", "console=ttyS0 earlyprintk=ttyS0 panic=-1", "-serial", f"file:{console}"),
    ]
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=_die_with_parent,
    )
    try:
        for _ in range(KVM_PROBE_SECONDS * 10):
            if process.poll() is not None:
                break
            if _panicked(console):
                return True
            time.sleep(0.1)
        return _panicked(console)
    finally:
        _end(process, 0)


def _panicked(console: Path) -> bool:
    return console.exists() and b"Kernel panic" in console.read_bytes()
