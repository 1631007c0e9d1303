# SPDX-License-Identifier: LGPL-2.1-or-later
"""The guest with the servers: a kernel's own NFS server, OpenSSH, nginx, dnsmasq, on one link.

The link is a pair of sockets between the two QEMUs: no port of this machine is taken, nothing
leaves it. Beside it the client has a card on a hub with nobody else, so that finding the right one
means something.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

from crashlend.errors import CrashlendError
from crashlend.lab.guest import build_boot_initramfs, build_root, pack_ext4
from crashlend.lab.packages import Say, silent
from crashlend.lab.qemu import Disk, LostVmError, Machine, Report, run_machine
from crashlend.lab.servers import configs
from crashlend.lab.servers.keys import lab_keys

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from crashlend.lab.host import Host
    from crashlend.lab.kernels import Kernel

SERVER_MAC = "52:54:00:77:00:01"
CLIENT_MAC = "52:54:00:77:00:02"
SILENT_MAC = "52:54:00:77:00:03"
MEMORY_BYTES = 512 << 20
DISK_FREE_BYTES = 700 << 20
STALL_BYTES = 3 << 20
START_SECONDS = 240.0
END_SECONDS = 60.0


@dataclass(frozen=True)
class Link:
    """The client's end: QEMU's words for its cards, and the sockets that it inherits."""

    words: tuple[str, ...]
    sockets: tuple[int, ...]


@dataclass
class Served:
    """The servers of one trial. ``report`` and ``error`` are there when they have ended."""

    link: Link
    disk: Path
    report: Report = field(default_factory=Report)
    error: str = ""
    serving: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    def end(self) -> None:
        """Have them power off; then all that they were sent is on ``disk``."""
        self.over.set()
        if self.thread is not None:
            self.thread.join(END_SECONDS)
        if self.error:
            raise LostVmError("the lab's servers failed", self.error)


def card_words(fd: int, mac: str, name: str) -> tuple[str, ...]:
    """QEMU's words for a network card whose other end is a socket."""
    return (
        *("-netdev", f"socket,id={name},fd={fd}"),
        *("-device", f"virtio-net-pci,netdev={name},mac={mac},romfile="),
    )


def silent_card_words() -> tuple[str, ...]:
    """A card on a hub with nobody else: its carrier is there, and no answer ever comes."""
    return (
        *("-netdev", "hubport,id=silent,hubid=7"),
        *("-device", f"virtio-net-pci,netdev=silent,mac={SILENT_MAC},romfile="),
    )


@contextmanager
def serving(
    kernel: Kernel,
    directory: Path,
    *,
    stall: Sequence[str] = (),
    timeout_seconds: float,
    say: Say = silent,
) -> Iterator[Served]:
    """Run the servers as long as the block runs; what they were sent is then on ``disk``.

    ``stall``: which servers (ssh, http, nfs) stop answering, one after the other, each once
    :data:`STALL_BYTES` have arrived.
    ``directory`` gets the guest's console and its disk. LostVmError where it does not run.
    """
    directory.mkdir(parents=True, exist_ok=True)
    root = build_root(kernel, say, configs.PACKAGES)
    boot = build_boot_initramfs(kernel, say)
    disk = _make_disk(directory, stall, say)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        link = Link(
            (*silent_card_words(), *card_words(theirs.fileno(), CLIENT_MAC, "lab")),
            (theirs.fileno(),),
        )
        served = Served(link, disk)
        machine = Machine(
            kernel=kernel.vmlinuz,
            initramfs=boot,
            words="console=ttyS0 loglevel=4 panic=1 no_timer_check",
            memory_bytes=MEMORY_BYTES,
            disks=(Disk(root, kept=False), Disk(disk)),
            extra=card_words(ours.fileno(), SERVER_MAC, "lab"),
            sockets=(ours.fileno(),),
        )
        served.thread = threading.Thread(
            target=_run, args=(served, machine, directory, timeout_seconds), daemon=True
        )
        served.thread.start()
        try:
            yield served
        finally:
            served.over.set()
            served.thread.join(END_SECONDS)


def _run(served: Served, machine: Machine, directory: Path, timeout_seconds: float) -> None:
    def over(_host: Host, _words: Sequence[str]) -> object:
        served.over.wait(timeout_seconds)
        return "over"

    def seen(event: dict[str, object]) -> None:
        if event.get("event") == "serving":
            served.serving.set()
        if event.get("event") == "failed":
            served.error = str(event.get("what"))

    try:
        served.report = run_machine(
            machine,
            directory,
            timeout_seconds=timeout_seconds + START_SECONDS,
            on_event=seen,
            actions={"over": over},
        )
    except CrashlendError as error:
        served.error = str(error)
    served.serving.set()


def _make_disk(directory: Path, stall: Sequence[str], say: Say) -> Path:
    disk = directory / "lab.ext4"
    with tempfile.TemporaryDirectory(prefix="crashlend-disk-") as name:
        tree = Path(name)
        tree.chmod(0o755)
        with as_file(files("crashlend.lab").joinpath("guestfiles/server-init")) as init:
            shutil.copy(init, tree / "init")
        (tree / "init").chmod(0o755)
        for empty in ("etc", "crash", "incoming"):
            (tree / empty).mkdir()
        shutil.copytree(lab_keys(say), tree / "keys")
        for file, text in (
            ("etc/nginx.conf", configs.nginx()),
            ("etc/sshd_config", configs.SSHD),
            ("etc/exports", configs.EXPORTS),
            ("etc/dnsmasq.conf", configs.DNSMASQ),
            (
                "job.sh",
                f"STALL='{' '.join(stall)}' STALL_BYTES={STALL_BYTES} MAC={SERVER_MAC} "
                f"WRONG_HOST_PORT={configs.WRONG_HOST_PORT}\n",
            ),
        ):
            (tree / file).write_text(text)
        pack_ext4(tree, disk, "CRASH", free_bytes=DISK_FREE_BYTES)
    return disk
