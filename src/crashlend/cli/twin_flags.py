# SPDX-License-Identifier: LGPL-2.1-or-later
"""What estimate and rehearse share: the flags that name a host's files, and the files themselves."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from crashlend import config
from crashlend.capture.initramfs import build_initramfs
from crashlend.cli.hosts import CAPTURE, LENDING, capture_spec
from crashlend.cli.main import add_root, size_argument
from crashlend.errors import CrashlendError, UsageError
from crashlend.payload import find_kernel

if TYPE_CHECKING:
    import argparse
    from typing import Callable

    from crashlend.facts import Facts
    from crashlend.lab.twin.run import Payload

HOST = Path("/")
TIMEOUT_SECONDS = 900.0


def add_twin_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of both; a twin is made from them, from facts and from settings."""
    add_root(parser)
    parser.add_argument(
        "--kernel",
        dest="twin_kernel",
        metavar="NAME|PATH",
        help="the kernel, a name of lab kernels or a vmlinuz (default: what load would take here)",
    )
    parser.add_argument(
        "--modules", type=Path, metavar="DIR", help="lib/modules/RELEASE of a kernel given by path"
    )
    parser.add_argument(
        "--memory",
        type=size_argument,
        default=4 << 30,
        metavar="SIZE",
        help="the twin's memory at most (default: 4G); it gets more where less would not do",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=TIMEOUT_SECONDS,
        metavar="SECONDS",
        help="for one guest (default: %(default)g)",
    )
    parser.add_argument("--accel", choices=("auto", "tcg", "kvm"), default="tcg")
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="DIR",
        help="keep disk, console and events; the capture's keys (SSH, LUKS) and production's memory are "
        "in them, so DIR is made for you alone, and refused where others can look into it",
    )
    config.add_flags(parser, (*LENDING, "initramfs", "nr_cpus", "append", *CAPTURE))


def demand_lab(verb: str) -> None:
    """CrashlendError where this Python or what is installed can run no guests."""
    # the core runs on 3.9, the lab is for workstations (a tuple: mypy would take it for certain)
    if tuple(sys.version_info) < (3, 11):
        raise CrashlendError(
            f"{verb} needs Python 3.11",
            f"this is {platform.python_version()}",
            hint="take a snapshot here (crashlend snapshot FILE), and give it with --root on a "
            "workstation",
        )
    try:
        import qemu.qmp  # noqa: F401
    except ImportError:
        raise CrashlendError(
            f"{verb} boots guests, which takes the lab's libraries",
            "qemu.qmp is not installed",
            hint="pip install 'crashlend[lab]', or take a snapshot here and go on elsewhere",
        ) from None
    from crashlend.lab.qemu import find_qemu

    find_qemu()


def twin_payload(
    args: argparse.Namespace, settings: config.Settings, facts: Facts, say: Callable[[str], None]
) -> Payload:
    """The kernel and the capture initramfs that ``load`` would take, or that the flags name.

    UsageError for a snapshot without --kernel: it holds none.
    """
    from crashlend.lab.kernels import from_files, machine_suite
    from crashlend.lab.twin.run import (
        Payload,
        find_twin_kernel,
        kernel_changes,
        snapshot_payload,
    )

    given = Path(settings.initramfs).read_bytes() if settings.initramfs else None
    if args.root != HOST:
        if not args.twin_kernel:
            raise UsageError(
                f"no kernel for the twin of {args.root}",
                "a snapshot holds none",
                hint="name one with --kernel: a name of `crashlend lab kernels`, or a vmlinuz",
            )
        kernel = find_twin_kernel(args.twin_kernel, args.modules, say)
        return snapshot_payload(kernel, facts, given, say)
    if args.twin_kernel:
        kernel = find_twin_kernel(args.twin_kernel, args.modules, say)
    else:
        image = find_kernel(settings, facts.release)
        kernel = from_files(image, args.modules or Path("/lib/modules"), suite=machine_suite())
    if given is None:
        say("building the capture initramfs")
        given = build_initramfs(HOST, capture_spec(settings, kernel.release, HOST)).data
    return Payload(kernel, given, kernel_changes(kernel, facts))
