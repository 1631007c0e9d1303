# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the verbs share: settings, facts and payload from the parsed arguments."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Callable, Optional

from crashlend import config
from crashlend.capture import cache
from crashlend.capture.hosttree import read_text
from crashlend.capture.initramfs import CaptureSpec, build_initramfs
from crashlend.capture.makedumpfile_probe import look_at
from crashlend.capture.targets.access import Access
from crashlend.capture.targets.find import find_targets
from crashlend.errors import CrashlendError
from crashlend.facts import Facts, read_facts
from crashlend.hostfiles import open_host
from crashlend.load_conf import STALL_SECONDS
from crashlend.payload import Files, find_kernel, read_files

if TYPE_CHECKING:
    import argparse

LENDING = (
    "lend",
    "lender",
    "lend_min",
    "lend_share",
    "block_deadline",
    "syscall",
    "placement",
    "shrink_margin",
    "dma_quiesce",
    "on_mismatch",
)
PAYLOAD = ("kernel", "initramfs", "nr_cpus", "append", "cmdline")
# what targets are reached with: every one of them is a setting of the same name
ACCESS = tuple(field.name for field in fields(Access))
CAPTURE = (
    *("dump_level", "allow_missing_user_data", "target", "path", "final_action", "hooks"),
    *("total_timeout", "target_timeout", "stall_timeout", "dump_timeout", "hook_timeout"),
    *("watchdog_timeout", "pstore"),
    *ACCESS,
)


def settings_from(args: argparse.Namespace) -> config.Settings:
    """The effective settings: files below --root when that is a directory, then flags."""
    root = getattr(args, "root", Path("/"))
    return config.load_settings(root if root.is_dir() else Path("/nonexistent"), vars(args))


def facts_from(args: argparse.Namespace, *, census: bool = False) -> Facts:
    """The facts of this host or of the snapshot that --root names."""
    return read_facts(open_host(args.root), census=census)


def access_of(settings: config.Settings) -> Access:
    """What targets are reached with."""
    return Access(**{name: getattr(settings, name) for name in ACCESS})


def _host_name(root: Path) -> str:
    """The host's name; "(none)" is the kernel's word for one that was never given."""
    names = (read_text(root / path) for path in ("proc/sys/kernel/hostname", "etc/hostname"))
    return next((name for name in names if name not in ("", "(none)")), "")


def capture_spec(settings: config.Settings, release: str, root: Path) -> CaptureSpec:
    """What the capture initramfs must hold for this host and these settings."""
    # a load by crashlend tells the capture more, by how much memory there is; another's does not
    stall = settings.stall_timeout or STALL_SECONDS
    return CaptureSpec(
        release=release,
        targets=find_targets(root, settings.target, settings.path, access_of(settings)),
        dump_level=settings.dump_level,
        final_action=settings.final_action,
        # dumps of several hosts may meet on one server
        host=_host_name(root),
        hooks=root / settings.hooks.lstrip("/"),
        total_timeout=settings.total_timeout or 2 * stall,
        stall_timeout=stall,
        target_timeout=settings.target_timeout,
        hook_timeout=settings.hook_timeout,
        dump_timeout=settings.dump_timeout,
        watchdog_timeout=settings.watchdog_timeout,
        pstore=settings.pstore,
        append=f"{settings.append} {settings.cmdline}",
    )


def files_getter(settings: config.Settings, say: Callable[[str], None]) -> Callable[[str], Files]:
    """A function that finds kernel and initramfs for a release; it builds the latter if need be."""

    def get(release: str) -> Files:
        kernel = find_kernel(settings, release)
        if settings.initramfs:
            return read_files(kernel, Path(settings.initramfs))
        say("building the capture initramfs")
        spec = capture_spec(settings, release, Path("/"))
        built = build_initramfs(Path("/"), spec, cache.DIRECTORY)
        with TemporaryDirectory(prefix="crashlend-") as directory:
            path = Path(directory) / f"initramfs-{release}"
            path.write_bytes(built.data)
            known = look_at(Path("/"), release)
            threads, notes = (known.threads, known.notes) if known else (False, ())
            return read_files(
                kernel,
                path,
                threads=threads,
                notes=(*notes, *target_notes(spec)),
                target_bytes=max((target.memory_bytes for target in spec.targets), default=0),
            )

    return get


def target_notes(spec: CaptureSpec) -> tuple[str, ...]:
    """What people should know of the targets."""
    return tuple(note for target in spec.targets for note in target.notes)


def files_if_any(
    args: argparse.Namespace, settings: config.Settings, release: str, say: Callable[[str], None]
) -> tuple[Optional[Files], str]:
    """Kernel and initramfs for a plan, or None and why there are none."""
    if args.root != Path("/") and not (settings.kernel and settings.initramfs):
        return None, "a snapshot holds no kernel: name one with --kernel and --initramfs"
    try:
        return files_getter(settings, say)(release), ""
    except CrashlendError as error:
        if settings.kernel and settings.initramfs:
            raise  # these and no others were asked for
        return None, f"{error} ({error.hint})" if error.hint else str(error)
