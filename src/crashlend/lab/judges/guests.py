# SPDX-License-Identifier: LGPL-2.1-or-later
"""The guests in which the judges load: kexec-tools and crashlend in turn, each read back.

Nothing crashes: what the crash kernel would find is read from the reservation after each load.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from crashlend.errors import CrashlendError
from crashlend.lab.judges.image import MAP_TYPES, Entry, Image, parse_image
from crashlend.lab.kernels import fetch
from crashlend.lab.lab_disk import production_words
from crashlend.lab.loaders import KEXEC_FILE_LOAD, KEXEC_LOAD, load_command, unload_command
from crashlend.lab.packages import Say, silent
from crashlend.lab.qemu import LostVmError
from crashlend.lab.spec import Command, Spec
from crashlend.lab.trial import run_trial
from crashlend.ranges import Ranges
from crashlend.sizes import GIB

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

READING = "/lab/reading.py"
SAID = "/run/said"
# whose image is read: the kernel's own (kexec -s -p), kexec-tools' (kexec -c -p), crashlend's with
# what it lends by itself, and crashlend's with nothing lent
KERNEL, TOOLS, LENDING, PLAIN = "kernel", "kexec-tools", "crashlend", "crashlend-none"
# which of crashlend's a judge's is compared with, where both were loaded
OURS = {KERNEL: LENDING, TOOLS: PLAIN}
# all that kexec says is a witness; when it fails, the end of that must be in the trial's own words
FAILED = f"{{ tail -c 1500 {SAID} >&2; exit 1; }}"
_PRINTED = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16}) \((\d+)\)")
_UEFI = {"firmware": "uefi", "machine": "q35"}


@dataclass(frozen=True)
class Case:
    """One guest. ``spec`` are the fields of lab.spec.Spec that differ from the judges' own.

    ``silent``: judges that print no memory map there (the kernel's log has it since 6.7).
    """

    name: str
    shows: str
    kernel: str
    spec: Mapping[str, Any] = field(default_factory=dict)
    silent: tuple[str, ...] = ()

    @property
    def has_cma(self) -> bool:
        """Whether its kernel is asked for ``,cma`` (and then knows it)."""
        return ",cma" in str(self.spec.get("cmdline", ""))


CASES = (
    Case("bios-6.1", "a kernel without ,cma", "6.1", {"cmdline": "crashkernel=192M"}, (KERNEL,)),
    Case(
        "uefi-6.1",
        "the same under UEFI",
        "6.1",
        {**_UEFI, "cmdline": "crashkernel=192M"},
        (KERNEL,),
    ),
    Case("bios-7.3", "the newest kernel, nothing asked", "7.3", {"cmdline": "crashkernel=192M"}),
    Case(
        "cma-7.3",
        "one ,cma range",
        "7.3",
        {"cmdline": "crashkernel=512M,cma crashkernel=192M"},
    ),
    Case(
        "cma-uefi-7.3",
        "one ,cma range under UEFI",
        "7.3",
        {**_UEFI, "cmdline": "crashkernel=512M,cma crashkernel=192M"},
    ),
    Case(
        "cma-ranges-7.3",
        "memory with holes: several ,cma ranges, and four CPUs",
        "7.3",
        {
            "memory_bytes": 3 * GIB,
            "cpus": 4,
            # 16 MiB out of every 448 below 3 GiB
            "cmdline": "nokaslr "
            + " ".join(f"memmap=16M${448 * n:d}M" for n in range(1, 7))
            + " crashkernel=900M,cma crashkernel=192M",
        },
    ),
    Case(
        "cma-high-7.3",
        "a reservation in two parts, memory above 4 GiB",
        "7.3",
        {
            "memory_bytes": 5 * GIB,
            "cmdline": "crashkernel=512M,cma crashkernel=192M,high crashkernel=64M,low",
        },
    ),
    Case(
        "cma-dimm-7.3",
        "memory that was added as a DIMM",
        "7.3",
        {"dimms": (GIB,), "cmdline": "crashkernel=512M,cma crashkernel=192M"},
    ),
)


@dataclass(frozen=True)
class Load:
    """One load in the guest, read back.

    ``reservation`` are the ranges of crashkernel= at that time. ``printed`` is the memory map that the
    loader says it made (kexec -d, or the kernel's log), None where it says nothing.
    """

    image: Image
    reservation: Ranges
    printed: tuple[Entry, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "reservation": self.reservation.to_json(),
            "printed": None if self.printed is None else [list(entry) for entry in self.printed],
            **self.image.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Load:
        """The load that :meth:`to_json` wrote."""
        printed = data["printed"]
        return cls(
            image=Image.from_json(data),
            reservation=Ranges((start, end) for start, end in data["reservation"]),
            printed=None if printed is None else tuple(Entry(*entry) for entry in printed),
        )


@dataclass(frozen=True)
class Reading:
    """One guest: each load by whose it is, and what made them."""

    name: str
    release: str
    kexec_tools: str
    loads: dict[str, Load]

    def to_json(self) -> dict[str, Any]:
        """Plain data, for docs/results/judges.json."""
        loads = {name: load.to_json() for name, load in self.loads.items()}
        return {
            "name": self.name,
            "release": self.release,
            "kexec_tools": self.kexec_tools,
            "loads": loads,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Reading:
        """The reading that :meth:`to_json` wrote."""
        loads = {name: Load.from_json(load) for name, load in data["loads"].items()}
        return cls(data["name"], data["release"], data["kexec_tools"], loads)


def spec_of(case: Case, say: Say = silent) -> Spec:
    """The trial without a crash: each load, what reads it back, and the unload."""
    spec = Spec(
        kernel=fetch(case.kernel, say),
        memory_bytes=2 * GIB,
        lender="auto",
        syscall="load",
        crash="none",
        poison=False,
        scan=False,
        timeout_seconds=600.0,
    )
    spec = replace(spec, **case.spec)
    words = production_words(spec)
    commands = [_python("note")]
    loads = [LENDING]
    if case.has_cma:
        loads.insert(0, PLAIN)
    for name in loads:
        flags = ("--lender", "none") if name == PLAIN else ()
        commands += [Command(("load", *flags)), _read(name), Command(("unload",))]
    for name, loader in ((TOOLS, KEXEC_LOAD), (KERNEL, KEXEC_FILE_LOAD)):
        line = _kexec_line(
            load_command(spec, loader, words), OURS[name] if case.has_cma else LENDING
        )
        commands += [
            Command(
                ("-c", f"{{ kexec --version; {line}; }} >{SAID} 2>&1 || {FAILED}"), program="sh"
            ),
            _read(name, SAID),
            unload_command(loader),
        ]
    return replace(spec, commands=tuple(commands))


def _kexec_line(command: Command, whose: str) -> str:
    """The command for a shell, with the initramfs that was found of another load."""
    words = [w for w in command.words if not w.startswith("--initrd=")]
    return shlex.join(["kexec", "-d", *words, f"--initrd={_ramdisk(whose)}"])


def read_guest(case: Case, *, keep: Path | None = None, say: Say = silent) -> Reading:
    """Boot the guest, and return each image by whose it is.

    CrashlendError when a command failed in the guest or a check of the trial did not hold.
    """
    spec = spec_of(case, say)
    try:
        outcome = run_trial(spec, keep=keep, say=say)
    except LostVmError as error:  # says nothing about the product
        say(f"{case.name}: {error}; once more")
        outcome = run_trial(spec, keep=keep, say=say)
    failed = [f"{check.name}: {check.detail}" for check in outcome.checks if not check.ok]
    if failed:
        raise CrashlendError(f"the guest {case.name} could not be read", "; ".join(failed))
    answers = [
        event["answer"]
        for event in outcome.report.events
        if event.get("event") == "command" and event["argv"][:2] == [READING, "read"]
    ]
    names = [*([PLAIN] if case.has_cma else []), LENDING, TOOLS, KERNEL]
    if len(answers) != len(names):
        raise CrashlendError(f"the guest {case.name} could not be read", f"{len(answers)} readings")
    return Reading(
        name=case.name,
        release=spec.kernel.release,
        kexec_tools=answers[-1]["said"].split("\n", 1)[0],
        loads={name: parse_load(answer) for name, answer in zip(names, answers)},
    )


def parse_load(answer: Mapping[str, Any]) -> Load:
    """Make sense of what guestfiles/reading.py printed."""
    found = re.findall(r"(\w+)-(\w+) : Crash kernel", answer["iomem"])
    lines = [*answer["said"].splitlines(), *answer["log"]]
    return Load(
        image=parse_image(answer["image"]),
        reservation=Ranges((int(start, 16), int(end, 16) + 1) for start, end in found),
        printed=printed_map(lines),
    )


def printed_map(lines: Iterable[str]) -> tuple[Entry, ...] | None:
    """The memory map that a loader printed, in its order; None when it printed none.

    kexec-tools (dbgprint_mem_range and setup_linux_system_parameters) and the kernel
    (setup_boot_parameters) have the same words for it: a heading, then first-last (type) per line.
    """
    out: list[Entry] | None = None
    for line in lines:
        text = line.removeprefix("kexec-bzImage64: ")
        entry = _PRINTED.fullmatch(text)
        if text.startswith("E820 memmap:"):
            out = []
        elif out is not None and entry:
            kind = MAP_TYPES.get(int(entry[3]), f"type {entry[3]}")
            out.append(Entry(int(entry[1], 16), int(entry[2], 16) + 1, kind))
        elif out:
            break
    return None if out is None else tuple(out)


def _python(*words: str) -> Command:
    return Command((READING, *words), program="python3")


def _read(whose: str, *said: str) -> Command:
    return _python("read", _ramdisk(whose), *said)


def _ramdisk(whose: str) -> str:
    return f"/run/ramdisk-{whose}"
