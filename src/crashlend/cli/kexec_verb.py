# SPDX-License-Identifier: LGPL-2.1-or-later
"""Take the command line of kexec-tools' kexec for crash kernels, and lend memory to it.

What kdump-tools (kdump-config) and kdump-utils (kdumpctl) call; their initramfs, their targets and
their dump stay theirs. docs/adoption.md has the line of configuration for each.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Callable, TypeVar

from crashlend import __version__, kexec_words
from crashlend.cli.hosts import files_getter, settings_from
from crashlend.cli.output import complain, progress
from crashlend.errors import EXIT_DONE, CrashlendError, RefusedError, TooSmallError
from crashlend.facts.others import Wanted, wanted_levels
from crashlend.formats.cmdline import from_proc
from crashlend.hostfiles import TreeFiles
from crashlend.plan import USER_DATA_LEVELS
from crashlend.sizes import mib
from crashlend.system import kexec, loading
from crashlend.system.callers import reload_follows
from crashlend.system.state import BusyError

if TYPE_CHECKING:
    import argparse

    from crashlend.config import Settings

T = TypeVar("T")
# the options are kexec's: nothing of them is argparse's
PARSER = {"prefix_chars": "\0", "add_help": False}
USAGE = """\
usage: crashlend kexec -p [OPTION]... --initrd=FILE --command-line=WORDS KERNEL
       crashlend kexec -p -u
       crashlend kexec -S

kexec-tools' kexec for crash kernels, with lent memory. What is lent, and where from, is in
/etc/crashlend.conf and on production's command line (crashkernel=SIZE,cma).

  -p, --load-panic             load the kernel for a crash
  -u, --unload                 unload it, and give all lent memory back
  -S, --status                 exit 1 when a crash kernel is loaded, 0 when none is (as kexec does)
  -s, --kexec-file-syscall     load by kexec_file_load
  -c, --kexec-syscall          load by kexec_load
  -a, --kexec-syscall-auto     by kexec_load, or by kexec_file_load where the first is refused
      --initrd=FILE            the initramfs, which is stored as it is
      --command-line=WORDS     the crash kernel's command line (also --append=WORDS)
      --reuse-cmdline          production's line, cleaned, before those
      --print-ckr-size         print the size of the reservation in bytes
  -d, --debug                  say more
  -h, --help; -v, --version
Taken without effect: {idle}.
"""
# how long another crashlend may be at work: a load takes seconds, lending up to minutes
BUSY_SECONDS = 300.0
BUSY_POLL_SECONDS = 0.5
STATUS_UNKNOWN = 255
CRASH_SIZE = "/sys/kernel/kexec_crash_size"
NOT_LENT = (
    "the dump is to have user data or page cache (level {}), which lent memory can't give: nothing is lent, "
    "and the capture has the reservation alone"
)
UNKNOWN_LEVEL = (
    "no configuration of kdump-tools or kdump-utils was found, so what the capture leaves out of the dump "
    "is taken from the setting dump_level: {}"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="...", help="see crashlend kexec --help")


def run(args: argparse.Namespace) -> int:
    request = kexec_words.parse(args.words)
    if request.action == "help":
        idle = ", ".join(f"--{name.rstrip('=')}" for name in kexec_words.IDLE)
        print(USAGE.format(idle=idle), end="")
        return EXIT_DONE
    if request.action == "version":
        print(f"crashlend {__version__}")
        return EXIT_DONE
    if request.action == "status":
        return _status()
    if request.action == "print-size":
        print(TreeFiles(Path("/")).read(CRASH_SIZE).decode().strip())
        return EXIT_DONE
    if request.action == "unload":
        return _unload(args)
    return _load(args, request)


def _status() -> int:
    """As kexec does: 1 loaded, 0 not loaded, 255 where this kernel does not say."""
    try:
        return int(kexec.crash_loaded())
    except OSError as error:
        complain("crashlend", f"cannot tell: {error.filename}: {error.strerror}", "")
        return STATUS_UNKNOWN


def _unload(args: argparse.Namespace) -> int:
    why = reload_follows(TreeFiles(Path("/")), os.getpid())
    if why:
        progress(f"{why}: the crash kernel stays until it is loaded anew")
        return EXIT_DONE
    kept = when_free(lambda: loading.unload(settings_from(args), say=progress))
    if kept:
        progress(f"{len(kept)} memory blocks can't be emptied now and stay movable")
    return EXIT_DONE


def _load(args: argparse.Namespace, request: kexec_words.Request) -> int:
    files = TreeFiles(Path("/"))
    kernel, initrd = os.path.abspath(request.kernel), os.path.abspath(request.initrd)
    settings = kexec_words.settings_of(
        replace(request, kernel=kernel, initrd=initrd),
        settings_from(args),
        from_proc(files.read("/proc/cmdline")),
    )
    settings, notes = with_level(settings, wanted_levels(files))
    for note in notes:
        progress(f"note: {note}")
    lends = can_lend(settings)
    if not lends:
        progress(f"WARNING: {NOT_LENT.format(settings.dump_level)}")
        settings = without_lending(settings)
    for name in request.idle if request.debug else ():
        progress(f"--{name} changes nothing: {_why_idle(name)}")
    try:
        done = when_free(
            lambda: loading.load(
                settings,
                files_getter(settings, progress),
                say=progress,
                clock=time.monotonic,
                shrink=settings.shrink_on_load,
            )
        )
    except TooSmallError as error:
        if lends:
            raise
        raise RefusedError(
            f"dump level {settings.dump_level} wants user data, so nothing can be lent, and without that",
            str(error),
            hint="use a level with 2, 4 and 8 set (31), set allow_missing_user_data, or reserve more",
        ) from error
    for note in done.plan.notes:
        progress(f"note: {note}")
    if lends and done.plan.lent.size < done.plan.offer.asked_bytes:
        progress(
            f"note: {mib(done.plan.lent.size)} are lent, {mib(done.plan.offer.asked_bytes)} were asked "
            "for; crashlend plan --census -v shows why"
        )
    if request.debug and done.plan.cmdline is not None:
        for word, reason in done.plan.cmdline.dropped:
            progress(f"dropped {word}: {reason}")
        for word, reason in done.plan.cmdline.added:
            progress(f"added {word}: {reason}")
    words = "is loaded already" if done.already else "is loaded"
    progress(
        f"the crash kernel {words}: {mib(done.plan.lent.size)} lent, "
        f"{mib(done.plan.costs.taken_bytes)} taken from production"
    )
    return EXIT_DONE


def _why_idle(name: str) -> str:
    return kexec_words.IDLE.get(name) or kexec_words.IDLE[f"{name}="]


def with_level(settings: Settings, wanted: tuple[Wanted, ...]) -> tuple[Settings, tuple[str, ...]]:
    """The settings with the level of who will save the dump; notes for people.

    What can't be told counts as one that wants all memory: then nothing is lent, unless the setting
    allow_missing_user_data is there.
    """
    if not wanted:
        return settings, (UNKNOWN_LEVEL.format(settings.dump_level),)
    level, notes = 31, []
    for one in wanted:
        if one.level is None:
            notes.append(f"{one.file}: {one.why}: taken for a dump of all memory")
        level &= one.level or 0
    return replace(settings, dump_level=level), tuple(notes)


def can_lend(settings: Settings) -> bool:
    """Whether the dump that is wanted can do without what lent memory holds."""
    enough = settings.dump_level & USER_DATA_LEVELS == USER_DATA_LEVELS
    return enough or settings.allow_missing_user_data


def without_lending(settings: Settings) -> Settings:
    """The settings of a load like kexec's own: nothing is lent, and the whole reservation stays.

    A kernel's own ranges that kexec_file_load leaves out of every dump are missing with kexec, too.
    """
    return replace(
        settings, lender="none", lend_min=0, shrink_on_load=False, allow_missing_user_data=True
    )


def when_free(act: Callable[[], T]) -> T:
    """Do it when no other crashlend is at work: the caller has no second try."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            return act()
        except BusyError as error:
            if time.monotonic() >= deadline:
                raise CrashlendError(error.what, error.why, hint=error.hint) from error
            time.sleep(BUSY_POLL_SECONDS)
