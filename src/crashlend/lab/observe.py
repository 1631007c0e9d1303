# SPDX-License-Identifier: LGPL-2.1-or-later
"""Boot a kernel with a command line, in the smallest guest there is, and hear what it made of it.

No disk and no userland but busybox: a boot takes a few seconds under emulation. The guest tells over
its second serial port (guestfiles/observe); the console is for errors alone.
"""

from __future__ import annotations

import base64
import gzip
import re
import tempfile
import zlib
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crashlend.errors import CrashlendError
from crashlend.formats import newc
from crashlend.lab.guest import busybox_package, read_busybox
from crashlend.lab.observation import FILES, Answer, Observation
from crashlend.lab.packages import Say, silent
from crashlend.lab.qemu import CPU_MODEL, Machine, run_machine
from crashlend.lab.vmlinux import unpack_kernel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crashlend.lab.kernels import Kernel
    from crashlend.lab.qemu import Report

TIMEOUT_SECONDS = 300.0
CONSOLE_LINES = 12
CONSOLE = "console.log"
# nokaslr: addresses are to be the same in every boot. panic=-1 and QEMU's -no-reboot end the guest.
OWN_WORDS = "console=ttyS0 earlyprintk=ttyS0 nokaslr panic=-1"


@dataclass(frozen=True)
class Guest:
    """The shape of the guest; defaults are the smallest. Fields as in :class:`qemu.Machine`.

    ``unpacked``: start the kernel without its decompressor (vmlinux.py), three times as fast. Not
    under UEFI, which needs the bzImage.
    """

    cpus: int = 1
    firmware: str = "bios"
    machine: str = "pc"
    nodes: int = 1
    cpu_model: str = CPU_MODEL
    dimms: tuple[int, ...] = ()
    extra: tuple[str, ...] = ()
    spare_bytes: int = 0
    unpacked: bool = False


class ObserveError(CrashlendError):
    """The guest died or hung before it had told everything.

    ``console`` is all that it printed, ``told`` what it had told until then.
    """

    console: str = ""
    told: Mapping[str, bytes]


@dataclass(frozen=True)
class Asked:
    """What the guest is to do: shell text, before it tells and after, and files for that.

    ``prepare`` must succeed. ``commands`` may fail: their exit codes are part of the answer.
    ``files`` are put into the guest, by absolute path.
    """

    prepare: str = ""
    commands: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)


def observe(
    kernel: Kernel,
    cmdline: str,
    memory_bytes: int,
    *,
    guest: Guest = Guest(),
    prepare: str = "",
    commands: Mapping[str, str] | None = None,
    guest_files: Mapping[str, bytes] | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
    keep: Path | None = None,
    say: Say = silent,
) -> Observation:
    """Boot ``kernel`` with ``cmdline`` after the lab's own words, and give what the guest told.

    Args:
        kernel: what to boot.
        cmdline: words such as ``crashkernel=256M``, passed on byte for byte.
        memory_bytes: the guest's memory, without DIMMs.
        guest: its shape.
        prepare: shell text that runs in the guest before anything is read, and must succeed.
        commands: shell text by name, run after that; see :attr:`Observation.answers`.
        guest_files: content by absolute path, put into the guest for those.
        timeout_seconds: the guest's whole life.
        keep: a directory for console and QEMU's messages; None: they are removed.
        say: gets progress of fetching busybox.

    Raises:
        ObserveError: the guest died, hung, or ``prepare`` failed.
        CrashlendError: QEMU failed, or a package is missing.

    """
    asked = Asked(prepare, commands or {}, guest_files or {})
    scratch = tempfile.TemporaryDirectory(prefix="crashlend-observe-")
    with scratch if keep is None else nullcontext(str(keep)) as name:
        directory = Path(name)
        directory.mkdir(parents=True, exist_ok=True)
        initramfs = directory / "initramfs.cpio.gz"
        initramfs.write_bytes(build_initramfs(read_busybox(busybox_package(kernel, say)), asked))
        image = unpack_kernel(kernel, say) if guest.unpacked else kernel.vmlinuz
        machine = _machine(image, cmdline, memory_bytes, initramfs, guest)
        heard = _Ears()
        report = run_machine(
            machine,
            directory,
            timeout_seconds=timeout_seconds,
            on_event=heard.on_event,
            is_lost=lambda: "it has told everything" if heard.done else "",
        )
        console = _read(directory / CONSOLE)
    trouble = heard.trouble(report, timeout_seconds, asked)
    if trouble:
        raise _error(kernel, cmdline, trouble, console, heard.files)
    answers = {name: heard.answers[f"command-{i}"] for i, name in enumerate(asked.commands)}
    if prepare:
        answers["prepare"] = heard.answers["prepare"]
    return Observation(kernel.release, cmdline, memory_bytes, heard.files, answers, report.seconds)


def build_initramfs(busybox: bytes, asked: Asked = Asked()) -> bytes:
    """The guest's whole userland: busybox, guestfiles/observe as /init, and what is asked.

    The same input gives the same bytes: where the initramfs lies depends on its size.
    """
    init = files("crashlend.lab").joinpath("guestfiles/observe").read_bytes()
    listed = "".join(f"{name} {path}\n" for name, path in FILES.items())
    members = [
        newc.directory("dev"),
        newc.character_device("dev/console", 5, 1),
        newc.directory("bin"),
        newc.regular("bin/busybox", busybox, 0o755),
        newc.symlink("bin/sh", "busybox"),
        newc.regular("init", init, 0o755),
        newc.regular("files", listed.encode()),
        newc.directory("ask"),
    ]
    if asked.prepare:
        members.append(newc.regular("ask/prepare", asked.prepare.encode() + b"\n"))
    for index, text in enumerate(asked.commands.values()):
        members.append(newc.regular(f"ask/command-{index}", text.encode() + b"\n"))
    made = {"dev", "bin", "ask"}
    for path, data in asked.files.items():
        for parent in [*Path(path.lstrip("/")).parents][-2::-1]:
            if str(parent) not in made:
                members.append(newc.directory(str(parent)))
                made.add(str(parent))
        members.append(newc.regular(path.lstrip("/"), data, 0o755))
    return gzip.compress(newc.build(members), 1, mtime=0)


class _Ears:
    """Collects what the guest tells."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.answers: dict[str, Answer] = {}
        self.up = self.done = False
        self.spoilt = ""

    def on_event(self, event: dict[str, Any]) -> None:
        kind = event.get("event")
        self.up |= kind == "up"
        self.done |= kind == "done"
        if kind != "observed":
            return
        name = str(event["name"])
        try:
            data = gzip.decompress(base64.b64decode(event["data"], validate=True))
        except (ValueError, OSError, EOFError, zlib.error) as error:
            self.spoilt = f"{name}: {error}"
            return
        if name == "prepare" or re.fullmatch(r"command-\d+", name):
            self.answers[name] = Answer(int(event["exit"]), data.decode("utf-8", "replace"))
        else:
            self.files[name] = data

    def trouble(self, report: Report, timeout_seconds: float, asked: Asked) -> str:
        """Why this is no observation; empty when it is one."""
        if self.spoilt:
            return f"what it told was spoilt on the way: {self.spoilt}"
        if not self.done:
            where = "while it was telling" if self.up else "before its init ran"
            if report.timed_out:
                return f"it was not done after {timeout_seconds:.0f} s, ended {where}"
            return f"it died {where}"
        lacking = {"log", "memmap", "cmdline", "iomem"} - self.files.keys()
        lacking |= {f"command-{i}" for i in range(len(asked.commands))} - self.answers.keys()
        if lacking:
            return f"it did not tell {', '.join(sorted(lacking))}"
        if asked.prepare and self.answers["prepare"].exit:
            answer = self.answers["prepare"]
            return f"its preparation ended with {answer.exit}: {answer.text.strip()}"
        return ""


def _machine(
    image: Path, cmdline: str, memory_bytes: int, initramfs: Path, guest: Guest
) -> Machine:
    return Machine(
        kernel=image,
        initramfs=initramfs,
        words=f"{OWN_WORDS} {cmdline}".rstrip(" "),
        memory_bytes=memory_bytes,
        cpus=guest.cpus,
        dimms=guest.dimms,
        cpu_model=guest.cpu_model,
        firmware=guest.firmware,
        machine=guest.machine,
        nodes=guest.nodes,
        extra=guest.extra,
        spare_bytes=guest.spare_bytes,
    )


def _error(
    kernel: Kernel, cmdline: str, why: str, console: str, told: Mapping[str, bytes]
) -> ObserveError:
    last = [line.rstrip() for line in console.splitlines() if line.strip()][-CONSOLE_LINES:]
    ending = "; its console ends:\n  " + "\n  ".join(last) if last else "; its console is empty"
    error = ObserveError(f"no observation of {kernel.name} with {cmdline!r}", why + ending)
    error.console, error.told = console, told
    return error


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
