# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is done to a capture on purpose, and what its ladder must make of it.

Most faults are provoked from inside, by a hook that runs in the crash kernel before the dump: it can do
there whatever breaks. Others are targets that do not take the dump.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crashlend.capture.targets.filesystem import filesystem_target
from crashlend.capture.targets.target import Target
from crashlend.errors import UsageError
from crashlend.lab.guest import pack_ext4
from crashlend.lab.qemu import Disk
from crashlend.sizes import KIB, MIB

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from crashlend.capture.modules import Want

LAB, GONE = "lab", "gone"
HOOK = "70-fault"  # in pre.d
GOOD_NIGHT = "crashlend-lab: good night"
GONE_UUID = "UUID=00000000-1111-2222-3333-444444444444"
# The first two virtio disks are the guest's root and the lab's own.
OWN_DISKS = ("/dev/vdc", "/dev/vdd")
ERST = (
    *("-object", f"memory-backend-file,id=erst,size={256 * KIB},mem-path={{}}/erst.bin,share=on"),
    *("-device", "acpi-erst,memdev=erst"),
)


@dataclass(frozen=True)
class CaptureFault:
    """One fault of the capture.

    Attributes:
        shows: patterns of what the crash kernel says only when the fault has struck, on the console,
            in capture.log or in a rung's reason; all of them must be there. ``.`` is any character,
            also the end of a line.
        hook: shell text of a hook that runs first thing in the crash kernel.
        targets: in order: ``lab`` (the lab's disk), ``gone`` (there is none), ``disk-N`` (the Nth of
            ``disks``, a file system), ``raw-N`` (the same without one).
        disks: sizes in bytes; a file system has that much room.
        settings: of the capture, fields of CaptureSpec.
        sysfs: what the host's /sys says when the initramfs is built, by path.
        devices: QEMU's words; ``{}`` stands for the machine's directory.
        ladder: a pattern of the rungs in capture.json, ``step target yes|no[ level]`` joined by ``, ``.
        pstore: what production must find in /sys/fs/pstore after the reset.
        within_seconds: how long the crash kernel may be at work, 0: as long as it likes.

    """

    shows: tuple[str, ...]
    hook: str = ""
    targets: tuple[str, ...] = (LAB,)
    disks: tuple[int, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    sysfs: Mapping[str, str] = field(default_factory=dict)
    devices: tuple[str, ...] = ()
    ladder: str = ""
    pstore: tuple[str, ...] = ()
    within_seconds: float = 0


_OPEN_LAB = "dmesg  yes, open LABEL=CRASH yes, begin LABEL=CRASH yes"
# makedumpfile dies in another way in each of its first runs. dd asks for all memory at once: what it
# reads into is touched, page by page.
_DYING = r"""
mv /bin/makedumpfile /bin/makedumpfile.good
cat >/bin/makedumpfile <<'END'
#!/bin/sh
case $1 in -v | --dump-dmesg) exec makedumpfile.good "$@" ;; esac
echo run >>/tmp/runs
case $(grep -c run /tmp/runs) in
  1)
    total=$(sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo)
    exec dd if=/dev/zero of=/dev/null bs=$((total * 97 / 100))k count=1
    ;;
  2) kill -SEGV $$ ;;
  *) exec makedumpfile.good "$@" ;;
esac
END
chmod 755 /bin/makedumpfile
"""
# What hooks do that nobody tested: kill all that they can, take all memory, hang and take the CPU.
_BAD_HOOK = r"""
kill -9 -1
tail /dev/zero >/dev/null 2>&1 &
while :; do :; done
"""

CAPTURE_FAULTS = {
    # more is left out until it fits
    "little-room": CaptureFault(
        shows=("No space left on device|before compression, and [0-9]+ KiB are free",),
        ladder=f"{_OPEN_LAB}, dump LABEL=CRASH no 1, (dump LABEL=CRASH no 17, )?"
        "dump LABEL=CRASH yes (17|31)",
    ),
    # not there, full, read-only: the fourth target has the dump
    "targets": CaptureFault(
        shows=(
            f"dump target {GONE_UUID} did not appear",
            "No space left on device",
            r"Read-only file system|write-protected|mounting /dev/vdd on \S+ failed: Permission",
        ),
        # as soon as its driver has found it
        hook="(until busybox blockdev --setro /dev/vdd 2>/dev/null; do usleep 100000; done) &\n",
        targets=(GONE, "disk-0", "disk-1", LAB),
        disks=(4 * MIB, 64 * MIB),
        settings={"target_timeout": 5},
        ladder=f"dmesg  yes, open {GONE_UUID} no, open LABEL=disk-0 yes, begin LABEL=disk-0 yes, "
        "dump LABEL=disk-0 no 31, open LABEL=disk-1 (no|yes, begin LABEL=disk-1 no), "
        "open LABEL=CRASH yes, begin LABEL=CRASH yes, dump LABEL=CRASH yes 31",
    ),
    "dying": CaptureFault(
        shows=(
            r"Out of memory: Killed process [0-9]+ \(dd\)",
            "makedumpfile ended with 137: killed, probably out of memory",
            "makedumpfile ended with 139",
        ),
        hook=_DYING,
        ladder=f"{_OPEN_LAB}, dump LABEL=CRASH no 1, dump LABEL=CRASH no 1, "
        "dump LABEL=CRASH yes 17",
    ),
    "bad-hook": CaptureFault(
        # 124: its own timeout was killed, too, so that /init had to end it (await)
        shows=(
            r"Out of memory: Killed process [0-9]+ \(tail\)",
            f"pre hook {HOOK} ended with 124",
        ),
        hook=_BAD_HOOK,
        settings={"hook_timeout": 20},
        ladder=f"{_OPEN_LAB}, dump LABEL=CRASH yes 31",
    ),
    # the crash kernel's own panic, with what production said, is in pstore
    "panic": CaptureFault(
        # after production's panic: its own
        shows=(f"pre hook {HOOK}.*Kernel panic - not syncing: sysrq triggered crash",),
        hook="echo c >/proc/sysrq-trigger\n",
        devices=ERST,
        pstore=("Panic#1", "crashed: Kernel panic - not syncing: sysrq triggered crash"),
        within_seconds=60,
    ),
    "no-target": CaptureFault(
        shows=(f"dump target {GONE_UUID} did not appear within 5 s",),
        targets=(GONE,),
        settings={"target_timeout": 5},
        devices=ERST,
        pstore=(
            "| [",
            "Kernel panic - not syncing: sysrq triggered crash",
            f"no dump was saved: the dump target {GONE_UUID} did not appear within 5 s",
        ),
        within_seconds=120,
    ),
    "raw": CaptureFault(
        shows=("target raw:/dev/vdc is /dev/vdc.*makedumpfile [^\n]* -F",),
        targets=("raw-0",),
        disks=(192 * MIB,),
        ladder="dmesg  yes, open raw:/dev/vdc yes, begin raw:/dev/vdc yes, dump raw:/dev/vdc yes 31",
    ),
    # all of the crash kernel sleeps, for good: nothing in software ends that. Until then, longer than
    # the watchdog waits, it is fed
    "hang": CaptureFault(
        # its last words
        shows=(f"pre hook {HOOK}.*{GOOD_NIGHT}(?!.*crashlend: )",),
        hook=f"sleep 20\necho '<3>{GOOD_NIGHT}' >/dev/kmsg\necho freeze >/sys/power/state\n",
        settings={"watchdog_timeout": 15},
        sysfs={"sys/module/i6300esb/initstate": "live\n"},
        devices=("-device", "i6300esb", "-action", "watchdog=reset"),
        within_seconds=120,
    ),
}


def find_capture_fault(name: str) -> CaptureFault | None:
    """The fault of that name; None for "", which is none. UsageError when there is no such fault."""
    if name and name not in CAPTURE_FAULTS:
        raise UsageError(
            f"no capture fault {name!r}", "the lab does not know it", hint=", ".join(CAPTURE_FAULTS)
        )
    return CAPTURE_FAULTS.get(name)


def fault_targets(fault: CaptureFault, lab: Target) -> tuple[Target, ...]:
    """The targets of the capture, ``lab`` among them."""
    return tuple(_target(word, fault, lab) for word in fault.targets)


def _target(word: str, fault: CaptureFault, lab: Target) -> Target:
    wants: tuple[Want, ...] = lab.wants
    kind, _, number = word.partition("-")
    if word == LAB:
        return lab
    if word == GONE:
        return filesystem_target(GONE_UUID, "ext4", "/crash", wants)
    if kind == "disk":
        return filesystem_target(f"LABEL={word}", "ext4", "/crash", wants)
    device = OWN_DISKS[int(number)]
    variables = {
        "TARGET_DEVICE": device,
        "TARGET_SECTORS": str(fault.disks[int(number)] // 512),
    }
    return Target("raw", f"raw:{device}", variables, wants)


def make_fault_disks(fault: CaptureFault, directory: Path) -> tuple[Disk, ...]:
    """The fault's own disks, in that directory, fresh ones."""
    disks = []
    for number, size in enumerate(fault.disks):
        image = directory / f"disk-{number}"
        if f"raw-{number}" in fault.targets:
            image.unlink(missing_ok=True)
            with image.open("wb") as file:
                file.truncate(size)
        else:
            with tempfile.TemporaryDirectory(prefix="crashlend-") as empty:
                pack_ext4(Path(empty), image, f"disk-{number}", free_bytes=size)
        disks.append(Disk(image))
    return tuple(disks)


def fault_devices(fault: CaptureFault, directory: Path) -> Sequence[str]:
    """QEMU's words for the fault; memory that outlives a reset is in that directory."""
    (directory / "erst.bin").unlink(missing_ok=True)
    return device_words(fault, directory)


def device_words(fault: CaptureFault, directory: Path) -> Sequence[str]:
    """The same for a machine that comes after it."""
    return [word.replace("{}", str(directory)) for word in fault.devices]
