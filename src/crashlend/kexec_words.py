# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command line of kexec-tools' kexec, as kdump-tools and kdump-utils write it. Pure.

Options are read as getopt_long() reads them there: bundled (``-pu``), ``--opt=x``, ``--opt x``, long
ones shortened, and between and behind the kernel's name. The tables are those of kexec/kexec.h and
kexec/arch/i386/include/arch/options.h of kexec-tools 2.0.32.
"""

from __future__ import annotations

import getopt
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Optional

from crashlend.errors import UsageError
from crashlend.formats.cmdline import crash_base, parameter_name, split

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from crashlend.config import Settings

# kexec's own: KEXEC_OPT_STR, and the short options by their long names
SHORT = "h?vdfixyluet:pscaS"
LONG_NAMES: Mapping[str, str] = {
    "-h": "help",
    "-?": "help",
    "-v": "version",
    "-d": "debug",
    "-f": "force",
    "-i": "no-checks",
    "-x": "no-ifdown",
    "-y": "no-sync",
    "-l": "load",
    "-u": "unload",
    "-e": "exec",
    "-t": "type",
    "-p": "load-panic",
    "-s": "kexec-file-syscall",
    "-c": "kexec-syscall",
    "-a": "kexec-syscall-auto",
    "-S": "status",
}
CARRIED_OUT = (
    *("help", "version", "debug", "load-panic", "unload", "status", "print-ckr-size", "type="),
    *("kexec-file-syscall", "kexec-syscall", "kexec-syscall-auto"),
    *("command-line=", "append=", "reuse-cmdline", "initrd=", "ramdisk="),
)
# Taken and of no effect, and why.
IDLE: Mapping[str, str] = {
    "no-checks": "the image is verified in any case",
    "no-ifdown": "is for the start of a loaded kernel",
    "no-sync": "is for the start of a loaded kernel",
    "elf32-core-headers": "the core header of a 64-bit kernel has 64-bit addresses",
    "elf64-core-headers": "they are always 64-bit ones",
    "args-linux": "is for kernels that are ELF files",
    "args-elf": "is for kernels that are ELF files",
    "args-none": "is for kernels that are ELF files",
    "hotplug": "crashlend's own rule of udev loads anew where memory or CPUs have changed",
    "no-cma": "the image lies in the reservation in any case",
    "reset-vga": "purgatory touches no VGA",
    "console-vga": "purgatory touches no VGA",
    "console-serial": "purgatory writes to production's serial console",
    "serial=": "purgatory writes to production's serial console",
    "serial-baud=": "purgatory writes to production's serial console",
    "force-dtb": "x86 machines have ACPI",
    "reuse-video-type": "production's video mode is handed over in any case",
}
# A planned kexec: another program's business.
NOT_FOR_CRASHES = (
    *("load", "exec", "force", "entry=", "load-preserve-context", "load-jump-back-helper"),
    *("load-live-update", "exec-live-update", "reuseinitrd"),
)
# What would change how the crash kernel is entered, or where it lies.
NOT_DONE = (
    *("mem-min=", "mem-max=", "real-mode", "entry-32bit", "pass-memmap-cmdline", "noefi", "dtb="),
    "module=",
)
LONG = (*CARRIED_OUT, *IDLE, *NOT_FOR_CRASHES, *NOT_DONE)
TYPES = ("bzImage", "bzImage64")
SYSCALLS: Mapping[str, str] = {
    "kexec-file-syscall": "file",
    "kexec-syscall": "load",
    "kexec-syscall-auto": "auto",
}


class Line(NamedTuple):
    """What the crash kernel's command line is made of: kexec puts them together in this order."""

    reuse: bool
    text: str


@dataclass(frozen=True)
class Request:
    """What one call of kexec asks for.

    ``action`` is load, unload, status, print-size, help or version. ``syscall`` is empty where the
    call leaves it open. ``line`` is None where the call says nothing of a command line. ``idle`` are
    options that were given and change nothing.
    """

    action: str
    kernel: str = ""
    initrd: str = ""
    line: Optional[Line] = None
    syscall: str = ""
    debug: bool = False
    idle: tuple[str, ...] = ()


def parse(words: Sequence[str]) -> Request:
    """What these words (without the program's name) ask for.

    Raises UsageError for words that kexec would not take, and for what is no business of a crash
    kernel's.
    """
    try:
        found, rest = getopt.gnu_getopt([*words], SHORT, [*LONG])
    except getopt.GetoptError as error:
        raise UsageError("kexec", str(error), hint="see crashlend kexec --help") from None
    options = [(_name(option), value) for option, value in found]
    given = [name for name, _ in options]
    values = dict(options)
    for name in ("help", "version"):
        if name in given:
            return Request(name)
    _refuse(given)
    request = Request(
        "load",
        syscall=next((SYSCALLS[name] for name in reversed(given) if name in SYSCALLS), ""),
        debug="debug" in given,
        idle=tuple(dict.fromkeys(n for n in given if n in IDLE or f"{n}=" in IDLE)),
    )
    if "print-ckr-size" in given:
        return replace(request, action="print-size")
    if "status" in given:
        return replace(request, action="status")
    if "load-panic" not in given:
        raise UsageError(
            "crashlend kexec is for crash kernels alone",
            "there is no -p (--load-panic)",
            hint="use kexec itself for a planned reboot; unload a crash kernel with -p -u",
        )
    # kexec goes by the last one; with a kernel -u says no more than -p does: the old one is replaced
    if "unload" in given and not rest:
        return replace(request, action="unload")
    return _load(request, rest, options, values)


def _load(
    request: Request,
    rest: Sequence[str],
    options: Sequence[tuple[str, str]],
    values: Mapping[str, str],
) -> Request:
    if len(rest) != 1 or not rest[0]:
        many = len(rest) > 1
        why = f"{len(rest)} kernels were named: {' '.join(rest)}" if many else "no kernel was named"
        raise UsageError("kexec", why, hint="the kernel's file is the one word that is no option")
    kind = values.get("type", TYPES[0])
    if kind not in TYPES:
        raise UsageError("kexec", f"--type={kind} can't be loaded", hint="a bzImage can")
    initrd = [value for name, value in options if name in ("initrd", "ramdisk")]
    line = [value for name, value in options if name in ("command-line", "append")]
    reuse = "reuse-cmdline" in values
    if not initrd or not initrd[-1]:
        raise UsageError(
            "kexec",
            "no initramfs was given",
            hint="--initrd=FILE; crashlend load builds one of its own",
        )
    if not reuse and not line:
        raise UsageError(
            "kexec",
            "no command line was given",
            hint="--command-line=WORDS, or --reuse-cmdline for production's",
        )
    return replace(
        request,
        kernel=rest[0],
        initrd=initrd[-1],
        line=Line(reuse, line[-1] if line else ""),
    )


def _name(option: str) -> str:
    return LONG_NAMES[option] if option in LONG_NAMES else option.lstrip("-")


def _refuse(given: Sequence[str]) -> None:
    for name in given:
        if name in NOT_FOR_CRASHES or f"{name}=" in NOT_FOR_CRASHES:
            raise UsageError(
                "crashlend kexec is for crash kernels alone",
                f"--{name} is for a planned reboot into another kernel",
                hint="use kexec itself for that",
            )
        if name in NOT_DONE or f"{name}=" in NOT_DONE:
            raise UsageError(
                "kexec",
                f"--{name} would change how the crash kernel is entered or where it lies",
                hint="leave it out: crashlend plans both",
            )


def settings_of(request: Request, settings: Settings, production: bytes) -> Settings:
    """The settings with what the call says put over them; ``production`` is production's line.

    The record of the load has its files for later ones: ``request`` must name them by absolute paths.
    A number of CPUs on the line becomes the setting, which spares the CPU that firmware booted.
    """
    line = request.line or Line(False, "")
    text = line.text.strip()
    if line.reuse:
        text = f"{crash_base(production, text)} {text}".strip()
    if not text.isprintable():
        raise UsageError("the crash kernel's command line", f"{text!r} has characters of no word")
    if not text:
        raise UsageError("the crash kernel's command line", "it is empty", hint="root=… at least")
    return replace(
        settings,
        kernel=request.kernel,
        initramfs=request.initrd,
        cmdline=text,
        syscall=request.syscall or settings.syscall,
        nr_cpus=_cpus(text) or settings.nr_cpus,
    )


def _cpus(text: str) -> int:
    """The last nr_cpus= of a line, from 1 to 512; 0 where there is none."""
    found = [w.partition("=")[2] for w in split(text) if parameter_name(w) == "nr_cpus"]
    number = found[-1] if found else ""
    return int(number) if number.isdecimal() and 1 <= int(number[:9]) <= 512 else 0
