# SPDX-License-Identifier: LGPL-2.1-or-later
"""One crash of an installed Debian system, and what its kdump-tools saved of it."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crashlend.dumps.recover import unflatten
from crashlend.errors import CrashlendError
from crashlend.lab.packages import find_tool, silent
from crashlend.lab.qemu import Disk, Machine, run_machine
from crashlend.lab.spec import Check
from crashlend.lab.system.edit import copy_directory, read_file, replay, write_files
from crashlend.lab.system.image import (
    BOOT_WORDS,
    JOB,
    PORT,
    build_system,
    install_crashlend,
    system_of,
)
from crashlend.lab.system.kdumpfile import PAGE, Bitmaps, read_bitmaps
from crashlend.lab.system.stamps import Stamps
from crashlend.lab.watch import PRODUCTIONS_OWN
from crashlend.ranges import Ranges
from crashlend.sizes import mib

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crashlend.lab.kernels import Kernel
    from crashlend.lab.packages import Say
    from crashlend.lab.qemu import Report

TOOLS_FILE = "/etc/default/kdump-tools"
# docs/adoption.md
ADOPTION = 'KDUMP_KEXEC_ARGS="--version >/dev/null && /usr/sbin/crashlend kexec -p"'
# What the console shows, in this order, and when.
STAMPS = (
    ("panic", PRODUCTIONS_OWN),
    ("crash_kernel", "Linux version "),
    ("init", "Begin: Mounting root file system"),
    ("service", "running makedumpfile --dump-dmesg"),
    ("dmesg_saved", "saved dmesg content in"),
    ("saved", "saved vmcore in"),
)
# Runs in the guest when kdump-tools has loaded, and all that udev has started is over.
_JOB = """\
say() {{ printf '{{"event":"%s","base64":"%s"}}\\n' "$1" "$2" >{port}; }}
tell() {{ name=$1; shift; say "$name" "$("$@" 2>&1 | base64 -w0)"; }}
stty -F {port} raw -echo
say booted ""
udevadm settle --timeout=300
{more}
udevadm settle --timeout=300
tell loaded cat /sys/kernel/kexec_crash_loaded
tell reservation cat /sys/kernel/kexec_crash_size
tell journal journalctl -b -u kdump-tools.service -o cat --no-pager
tell command cat /var/crash/kexec_cmd
tell payload stat -L -c %s /var/lib/kdump/initrd.img /var/lib/kdump/vmlinuz
tell test kdump-config status
[ ! -e /usr/sbin/crashlend ] || tell status crashlend status --json
# production uses its memory: the page cache goes where it may move
cat /usr/lib/x86_64-linux-gnu/* /usr/lib/modules/*/kernel/drivers/net/*/*/* >/dev/null 2>&1
tell meminfo cat /proc/meminfo
sync
say crashing ""
echo c >/proc/sysrq-trigger
"""


# A memory block goes and comes: kdump-tools' rule of udev has kdump-config try-reload for each event,
# where udevd's own SystemCallFilter lets it (not on Debian 12). Then the same from here, where it may.
RELOAD = """\
reload_once() {
    before=$(stat -c %y /var/crash/kexec_cmd)
    for index in 15 14 13 12 11; do
        state=/sys/devices/system/memory/memory$index/state
        echo offline >$state || continue
        echo online >$state && echo "block $index went and came" && break
    done
    udevadm settle --timeout=300
    kdump-config try-reload
    echo "try-reload $?"
    udevadm settle --timeout=300
    echo "settled $?"
    [ "$(stat -c %y /var/crash/kexec_cmd)" = "$before" ] || echo "loaded anew"
    crashlend kexec -S
    echo "status $?"
}
tell reload reload_once
"""


RELOADED = ("went and came", "try-reload 0", "settled 0", "loaded anew", "status 1")


@dataclass(frozen=True)
class SystemSpec:
    """A system to crash: ``cmdline`` is production's own, sizes are in bytes, times in seconds.

    ``settings`` is /etc/crashlend.conf; None: crashlend is not installed. ``defaults`` are more
    lines of /etc/default/kdump-tools. ``more``: commands for the guest's shell before the crash;
    ``tell NAME COMMAND`` reports what a command prints. ``files``: more files, path to content and mode.
    """

    kernel: Kernel
    cmdline: str = "crashkernel=512M,cma crashkernel=256M"
    settings: str | None = "[crashlend]\n"
    defaults: str = ADOPTION
    memory_bytes: int = 2 << 30
    more: str = ""
    files: Mapping[str, tuple[bytes, int]] = field(default_factory=dict)
    timeout_seconds: float = 1200.0


@dataclass(frozen=True)
class SystemOutcome:
    """What the guest told, when the console showed what, and what lay in /var/crash afterwards.

    ``stamps`` are seconds since the machine's start.
    """

    spec: SystemSpec
    told: dict[str, str]
    report: Report
    stamps: dict[str, float]
    dump: Path | None
    dmesg: str
    console: str
    kept: dict[str, int] = field(default_factory=dict)
    bitmaps: Bitmaps | None = None

    def since_panic(self, name: str) -> float | None:
        """Seconds from the panic to that stamp; None where one of them is missing."""
        if "panic" not in self.stamps or name not in self.stamps:
            return None
        return round(self.stamps[name] - self.stamps["panic"], 1)

    @property
    def status(self) -> dict[str, Any]:
        """What ``crashlend status --json`` said; empty where there is none."""
        try:
            value = json.loads(self.told.get("status", ""))
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    @property
    def lent(self) -> Ranges:
        """What was lent when the system crashed, as crashlend said it."""
        return Ranges(tuple(pair) for pair in self.status.get("lent", {}).get("ranges", []))

    def number(self, name: str) -> int:
        """A number that the guest told; 0 where it did not."""
        text = self.told.get(name, "").strip()
        return int(text) if text.isdecimal() else 0

    def to_json(self) -> dict[str, Any]:
        """What is kept of it."""
        initrd, _, vmlinuz = self.told.get("payload", "").strip().partition("\n")
        lent = self.status.get("lent", {})
        return {
            "kernel": self.spec.kernel.release,
            "cmdline": self.spec.cmdline,
            "memory_bytes": self.spec.memory_bytes,
            "loader": "kexec" if self.spec.settings is None else "crashlend",
            "kexec_command": self.told.get("command", "").strip(),
            "loaded": self.number("loaded") == 1,
            "reservation_bytes": self.number("reservation"),
            "payload": {
                "kernel_bytes": int(vmlinuz) if vmlinuz.isdecimal() else None,
                "initramfs_bytes": int(initrd) if initrd.isdecimal() else None,
            },
            "lent_bytes": lent.get("bytes", 0),
            "seconds": {
                **{f"panic_to_{name}": self.since_panic(name) for name, _ in STAMPS[1:]},
                "all": self.report.seconds,
            },
            "saved": self.kept,
            "kdump_tools_said": self.told.get("journal", "").strip().splitlines()[-8:],
        }


def run_system(spec: SystemSpec, *, keep: Path | None = None, say: Say = silent) -> SystemOutcome:
    """Install, boot and crash one system; read its disk. CrashlendError when the lab can't."""
    image = build_system(spec.kernel, say)
    with tempfile.TemporaryDirectory(prefix="crashlend-system-") as scratch:
        directory = keep or Path(scratch)
        directory.mkdir(parents=True, exist_ok=True)
        system = system_of(image, spec.kernel.release)
        disk = directory / "root.ext4"
        subprocess.run(["cp", "--reflink=auto", "--sparse=always", image, disk], check=True)
        prepare(disk, spec)
        machine = Machine(
            kernel=system.kernel,
            initramfs=system.initramfs,
            words=f"{BOOT_WORDS} loglevel=6 {spec.cmdline}",
            memory_bytes=spec.memory_bytes,
            disks=(Disk(disk),),
        )
        say("booting the system (minutes under emulation)")
        with Stamps(directory / "console.log", STAMPS) as stamps:
            report = run_machine(
                machine,
                directory,
                timeout_seconds=spec.timeout_seconds,
                on_event=lambda event: say(str(event.get("event"))),
            )
        replay(disk)
        told = {
            str(event["event"]): base64.b64decode(str(event.get("base64", ""))).decode(
                errors="replace"
            )
            for event in report.events
        }
        crash = copy_directory(disk, "/var/crash", directory / "saved")
        dump, dmesg, kept = read_dump(crash, directory)
        bitmaps = read_bitmaps(dump) if dump else None
        console = (directory / "console.log").read_text(errors="replace")
        if keep is None:
            dump = None if dump is None else Path(dump.name)
        disk.unlink()
        return SystemOutcome(spec, told, report, stamps.seen, dump, dmesg, console, kept, bitmaps)


def prepare(disk: Path, spec: SystemSpec) -> None:
    """Put crashlend, its settings, the lines of kdump-tools' file and the job into a system."""
    if spec.settings is not None:
        install_crashlend(disk, spec.settings)
    defaults = read_file(disk, TOOLS_FILE).decode() + f"{spec.defaults}\n"
    job = _JOB.format(port=PORT, more=spec.more)
    own = {TOOLS_FILE: (defaults.encode(), 0o644), JOB: (job.encode(), 0o755)}
    write_files(disk, {**spec.files, **own})


def read_dump(crash: Path, directory: Path) -> tuple[Path | None, str, dict[str, int]]:
    """The newest dump that kdump-tools finished, its log, and all files there with their sizes.

    The dump is made ordinary: kdump-tools saves it flattened, for a pipe.
    """
    kept = {
        str(path.relative_to(crash)): path.stat().st_size
        for path in sorted(crash.glob("2*/*"))
        if path.is_file()
    }
    flat = [crash / name for name in kept if re.fullmatch(r"\d+/dump\.\d+", name)]
    if not flat:
        return None, "", kept
    tool = find_tool("makedumpfile", "install the package makedumpfile")
    dump, log = directory / "vmcore", directory / "dmesg.txt"
    for path in (dump, log):
        path.unlink(missing_ok=True)
    try:
        unflatten(flat[-1], dump)
    except CrashlendError:
        return None, "", kept
    subprocess.run([tool, "--dump-dmesg", dump, log], capture_output=True, check=False)
    return dump, log.read_text(errors="replace") if log.exists() else "", kept


def check_service(outcome: SystemOutcome) -> Check:
    """Whether kdump-tools' own service loaded through crashlend."""
    command = outcome.told.get("command", "")
    return Check(
        "kdump-tools' service loaded by crashlend kexec",
        outcome.number("loaded") == 1
        and "crashlend kexec" in command
        and outcome.status.get("by_crashlend") is True,
        command.strip()[:300] or "nothing is on record",
    )


def check_lending(outcome: SystemOutcome, most_bytes: int) -> list[Check]:
    """What is lent, and what of the reservation is left: ``most_bytes`` at most."""
    taken, lent = outcome.number("reservation"), outcome.lent
    return [
        Check(
            "memory is lent", bool(lent), f"{mib(lent.size)}, lender {outcome.status.get('lender')}"
        ),
        check_holes(outcome),
        Check(
            "the reservation is as small as it is to be",
            0 < taken <= most_bytes,
            f"{mib(taken)}; payload {outcome.told.get('payload', '').split()}",
        ),
    ]


def check_holes(outcome: SystemOutcome) -> Check:
    """Whether /proc/vmcore had no page of lent memory, and the dump has none."""
    name = "nothing of lent memory is in the dump"
    bitmaps, lent = outcome.bitmaps, outcome.lent
    if bitmaps is None or not lent:
        return Check(name, False, "there is no dump to look at, or nothing is lent")
    had, saved = bitmaps.pages(bitmaps.had, lent), bitmaps.pages(bitmaps.saved, lent)
    everything = Ranges([(0, outcome.spec.memory_bytes * 2)])
    others = bitmaps.pages(bitmaps.had, everything), bitmaps.pages(bitmaps.saved, everything)
    detail = (
        f"{had} of {lent.size // PAGE} lent pages were in /proc/vmcore, {saved} are in the dump; "
    )
    detail += f"of all {others[0]} pages there {others[1]} are in it"
    return Check(name, had == saved == 0 and min(others) > 0, detail)


def check_reload(outcome: SystemOutcome) -> Check:
    """Whether kdump-tools can reload behind a memory block that went and came, to an end."""
    text = outcome.told.get("reload", "")
    return Check(
        "kdump-config try-reload loads anew, and there it ends",
        all(words in text for words in RELOADED),
        " | ".join(text.strip().splitlines())[-400:],
    )


def check_saved(outcome: SystemOutcome) -> list[Check]:
    """What must hold of a crash whose dump was saved, whoever loaded the crash kernel."""
    log = outcome.dmesg.strip().splitlines()
    panics = [line for line in log if PRODUCTIONS_OWN in line]
    return [
        Check(
            "the crash kernel came up",
            "crash_kernel" in outcome.stamps,
            f"{outcome.since_panic('crash_kernel')} s after the panic",
        ),
        Check(
            "kdump-tools saved its own dump",
            outcome.dump is not None and "saved" in outcome.stamps,
            f"{outcome.kept} {outcome.since_panic('saved')} s after the panic",
        ),
        Check(
            "the dump opens and its log has the panic",
            bool(panics),
            panics[-1].strip() if panics else f"{len(log)} lines of log",
        ),
        Check(
            "the system restarted by itself",
            not outcome.report.timed_out,
            f"after {outcome.report.seconds} s in all",
        ),
    ]
