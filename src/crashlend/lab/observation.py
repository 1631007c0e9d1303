# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a guest told of its kernel: log, resources, firmware map. Plain data and how it is read."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from crashlend.errors import FormatError
from crashlend.facts.data import FirmwareRange
from crashlend.formats import procfs
from crashlend.formats.cmdline import from_proc
from crashlend.ranges import Range, Ranges

if TYPE_CHECKING:
    from collections.abc import Mapping

END_MARK = "crashlend-observe: end"
# What is read of every guest, by name; a kernel that lacks one leaves it out.
FILES = {
    "cmdline": "/proc/cmdline",
    "iomem": "/proc/iomem",
    "meminfo": "/proc/meminfo",
    "zoneinfo": "/proc/zoneinfo",
    "version": "/proc/version",
    "kexec_crash_size": "/sys/kernel/kexec_crash_size",  # until 6.18, later as a link
    "crash_cma_ranges": "/sys/kernel/kexec/crash_cma_ranges",
    "boot_params": "/sys/kernel/boot_params/data",
}

_RECORD = re.compile(r"(\d+),(\d+),(\d+),([^;]*);(.*)")
# boot_params of x86: the ramdisk's address and size, their upper halves [asm/bootparam.h]
_RAMDISK = (0x218, 0x0C0), (0x21C, 0x0C4)


class LogLine(NamedTuple):
    r"""A record of /dev/kmsg. ``text`` as it stands there: unprintable bytes are ``\\xNN``.

    ``level`` is syslog's (4 warning, 6 info); ``facility`` is 0 for the kernel's own.
    """

    level: int
    facility: int
    sequence: int
    microseconds: int
    text: str


class Answer(NamedTuple):
    """What a command of the caller's left: its exit code, stdout and stderr."""

    exit: int
    text: str


@dataclass(frozen=True)
class Observation:
    """One boot of one kernel, as the guest told it.

    Attributes:
        release: of the kernel that was booted.
        words: the command line that was asked for, without the lab's own words.
        memory_bytes: the guest's memory.
        files: content by the names of :data:`FILES`, and ``log`` and ``memmap``.
        answers: by the names of the commands that were given; ``prepare`` where there was one.
        seconds: how long the guest lived.

    Properties raise FormatError when the guest told what is none of the kernel's formats.

    """

    release: str
    words: str
    memory_bytes: int
    files: Mapping[str, bytes]
    answers: Mapping[str, Answer] = field(default_factory=dict)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """For a file; :meth:`from_json` reads it. Bytes become the characters of latin-1."""
        return {
            "release": self.release,
            "words": self.words,
            "memory_bytes": self.memory_bytes,
            "seconds": self.seconds,
            "files": {name: data.decode("latin-1") for name, data in self.files.items()},
            "answers": {name: list(answer) for name, answer in self.answers.items()},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Observation:
        """What :meth:`to_json` made, again."""
        return cls(
            value["release"],
            value["words"],
            value["memory_bytes"],
            {name: text.encode("latin-1") for name, text in value["files"].items()},
            {name: Answer(*answer) for name, answer in value["answers"].items()},
            value["seconds"],
        )

    @cached_property
    def log(self) -> tuple[LogLine, ...]:
        """The kernel's log from the boot on; :attr:`log_complete` tells whether it begins there."""
        return parse_kmsg(self.files["log"])

    @property
    def log_complete(self) -> bool:
        """Whether the log's first record is the boot's first, and its last the observer's."""
        mark = END_MARK.encode() in self.files["log"]
        return mark and bool(self.log) and self.log[0].sequence == 0

    @cached_property
    def messages(self) -> tuple[str, ...]:
        """The texts of the kernel's own records, in order."""
        return tuple(line.text for line in self.log if line.facility == 0)

    @property
    def cmdline(self) -> bytes:
        """The whole command line as the kernel had it."""
        return from_proc(self.files["cmdline"])

    @cached_property
    def iomem(self) -> tuple[procfs.Resource, ...]:
        """/proc/iomem, as root reads it."""
        return procfs.parse_iomem(self.files["iomem"])

    @property
    def crash_ranges(self) -> Ranges:
        """What /proc/iomem calls "Crash kernel"."""
        return Ranges((r.start, r.end) for r in self.iomem if r.name == "Crash kernel")

    @property
    def crash_size_bytes(self) -> int:
        """/sys/kernel/kexec_crash_size."""
        return procfs.parse_decimal(self.files["kexec_crash_size"], "kexec_crash_size")

    @cached_property
    def cma_ranges(self) -> tuple[Range, ...] | None:
        """The ranges that the kernel made for ``,cma``, in its order; None where no file tells.

        That file is of 6.19 and later (37a0a436c843) with CONFIG_CMA; :attr:`logged_cma_ranges` is
        for those before.
        """
        data = self.files.get("crash_cma_ranges")
        if data is None:
            return None
        return tuple(Range(*pair) for pair in procfs.parse_crash_cma_ranges(data))

    @property
    def logged_cma_ranges(self) -> tuple[Range, ...]:
        """The ranges that the log tells of, rounded to MiB (6.17 and later)."""
        text = "\n".join(self.messages).encode()
        return tuple(Range(*pair) for pair in procfs.parse_dmesg_cma(text))

    @cached_property
    def firmware_map(self) -> tuple[FirmwareRange, ...]:
        """/sys/firmware/memmap, by address: what the firmware said before any ``memmap=`` word."""
        return parse_memmap(self.files["memmap"])

    @property
    def ramdisk(self) -> Range | None:
        """Where the boot loader put the initramfs, from boot_params; None when there is none."""
        page = self.files["boot_params"]
        if len(page) < 0x220:
            raise FormatError("boot_params", f"{len(page)} bytes are too few")
        start, size = (
            int.from_bytes(page[low : low + 4], "little")
            | int.from_bytes(page[high : high + 4], "little") << 32
            for low, high in _RAMDISK
        )
        return Range(start, start + size) if size else None

    @property
    def meminfo(self) -> dict[str, int]:
        """/proc/meminfo, in bytes."""
        return procfs.parse_meminfo(self.files["meminfo"])

    @property
    def zones(self) -> tuple[procfs.Zone, ...]:
        """/proc/zoneinfo."""
        return procfs.parse_zoneinfo(self.files["zoneinfo"])


def parse_kmsg(data: bytes) -> tuple[LogLine, ...]:
    """Read what was read from /dev/kmsg; the observer's own mark is left out.

    Lines that begin with a space say more of the record before (SUBSYSTEM=…) and are passed over.
    """
    lines = []
    for number, line in enumerate(data.decode("utf-8", "replace").split("\n"), 1):
        if not line or line.startswith(" "):
            continue
        match = _RECORD.fullmatch(line)
        if match is None:
            raise FormatError("/dev/kmsg", f"line {number} is no record: {line[:60]!r}")
        prefix, sequence, microseconds = (int(n) for n in match.groups()[:3])
        if match[5] != END_MARK:
            lines.append(LogLine(prefix & 7, prefix >> 3, sequence, microseconds, match[5]))
    return tuple(lines)


def parse_memmap(data: bytes) -> tuple[FirmwareRange, ...]:
    """Read the guest's ``START END TYPE`` lines, ends included, as /sys/firmware/memmap has them."""
    found = []
    for line in data.decode("utf-8", "replace").splitlines():
        start, _, rest = line.partition(" ")
        end, _, kind = rest.partition(" ")
        try:
            found.append(FirmwareRange(int(start, 16), int(end, 16) + 1, kind))
        except ValueError:
            raise FormatError(
                "the firmware's map", f"{line[:60]!r} is not START END TYPE"
            ) from None
    return tuple(sorted(found, key=lambda entry: (entry.start, entry.end)))
