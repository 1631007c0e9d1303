# SPDX-License-Identifier: LGPL-2.1-or-later
"""The flags that describe a trial, and the trial that they describe; a matrix's table has the same."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crashlend.cli.main import size_argument
from crashlend.cli.output import progress
from crashlend.cli.run_flags import count
from crashlend.config import table
from crashlend.errors import UsageError

if TYPE_CHECKING:
    from crashlend.lab.spec import Spec


def add_trial_flags(parser: argparse.ArgumentParser) -> None:
    """What a trial is told; ``lab matrix`` reads its table by the same words."""
    parser.add_argument(
        "--kernel", default="6.1", metavar="NAME|PATH", help="a name of lab kernels, or a vmlinuz"
    )
    parser.add_argument(
        "--modules", type=Path, metavar="DIR", help="lib/modules/RELEASE of a vmlinuz given by path"
    )
    parser.add_argument("--memory", type=size_argument, default=4 << 30, metavar="SIZE")
    parser.add_argument("--cpus", type=count, default=1, metavar="N")
    parser.add_argument(
        "--nodes", type=count, default=1, metavar="N", help="NUMA nodes; memory and CPUs are split"
    )
    parser.add_argument(
        "--firmware",
        choices=("bios", "uefi", "secure"),
        default="bios",
        help="secure: UEFI with Secure Boot, from firmware's keys to a signed kernel",
    )
    parser.add_argument(
        "--machine", choices=("pc", "q35"), help="default: pc; q35 with --firmware secure"
    )
    parser.add_argument(
        "--cpu-model", metavar="MODEL", help="QEMU's -cpu, such as max,la57=off or qemu64"
    )
    parser.add_argument(
        "--cmdline",
        default="crashkernel=1G,cma crashkernel=100M",
        metavar="WORDS",
        help="production's own words (default: %(default)s)",
    )
    parser.add_argument(
        "--lender",
        type=_lenders,
        default="auto",
        metavar="NAME[,NAME...]",
        help="auto, none, or some of cma, movable-zone, movable",
    )
    parser.add_argument(
        "--lend", type=size_argument, metavar="SIZE", help="instead of the ,cma word"
    )
    parser.add_argument(
        "--prepare", default="", metavar="COMMAND", help="for the guest's shell, before the load"
    )
    parser.add_argument("--syscall", choices=("auto", "load", "file"), default="auto")
    parser.add_argument(
        "--placement",
        choices=("auto", "reserved", "lent"),
        default="auto",
        help="where the crash kernel runs",
    )
    parser.add_argument(
        "--reserve",
        type=_reserve,
        default="keep",
        metavar="keep|auto|exact|SIZE",
        help="shrink the reservation: to what is required and a margin, to what is required, or to "
        "SIZE",
    )
    parser.add_argument(
        "--crash",
        default="sysrq",
        metavar="KIND",
        help="how: sysrq, nmi, oom, irq-cpuN ... (a wrong one lists all), or none (load only)",
    )
    parser.add_argument("--dump-level", type=int, default=31, metavar="N")
    parser.add_argument("--allow-missing-user-data", action="store_true")
    parser.add_argument(
        "--dma-quiesce",
        type=_quiesce,
        default="wait=1",
        metavar="ITEM[,ITEM...]",
        help="what is done about late DMA; the product's default is wait=10 (default here: wait=1)",
    )
    parser.add_argument(
        "--late",
        choices=("nvme", "lsi", "edu"),
        default="",
        help="a device that still writes after the panic",
    )
    parser.add_argument(
        "--dimm",
        type=size_argument,
        action="append",
        default=[],
        metavar="SIZE",
        help="add a pc-dimm",
    )
    parser.add_argument(
        "--disk", choices=("virtio", "ide"), default="virtio", help="the bus of the dump's disk"
    )
    parser.add_argument("--accel", choices=("auto", "tcg", "kvm"), default="tcg")
    parser.add_argument("--timeout", type=float, default=300.0, metavar="SECONDS")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep disk, console and dump")
    parser.add_argument("--json", action="store_true", help="print JSON (schema 1)")


def _reserve(text: str) -> str:
    if text not in ("keep", "auto", "exact"):
        size_argument(text)
    return text


def _quiesce(text: str) -> str:
    kind = table()["dma_quiesce"].kind
    try:
        return str(kind.parse(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"write {kind.allowed}") from None


def _lenders(text: str) -> str:
    kind = table()["lender"].kind
    try:
        return str(kind.parse(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"write {kind.allowed}") from None


def trial_spec(args: argparse.Namespace) -> Spec:
    """The trial that the flags describe; fetches its kernel."""
    from crashlend.lab.crashes import find_crash
    from crashlend.lab.kernels import fetch, from_files
    from crashlend.lab.spec import Spec

    find_crash(args.crash)  # before anything is fetched
    if "/" in args.kernel:
        modules = args.modules or Path(args.kernel).parent
        kernel = from_files(Path(args.kernel), modules)
    else:
        kernel = fetch(args.kernel, progress)
    return Spec(kernel=kernel, **spec_fields(args))


def spec_fields(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of a Spec that the flags tell, all but its kernel."""
    from crashlend.lab.qemu import CPU_MODEL

    return {
        "memory_bytes": args.memory,
        "cpus": args.cpus,
        "cmdline": args.cmdline,
        "lender": args.lender,
        "lend_bytes": args.lend,
        "prepare": args.prepare,
        "syscall": args.syscall,
        "placement": args.placement,
        "reserve": args.reserve,
        "crash": args.crash,
        "dump_level": args.dump_level,
        "allow_missing_user_data": args.allow_missing_user_data,
        "dma_quiesce": args.dma_quiesce,
        "late": args.late,
        "accel": args.accel,
        "timeout_seconds": args.timeout,
        "dimms": tuple(args.dimm),
        "disk": args.disk,
        "firmware": args.firmware,
        "machine": _machine(args),
        "nodes": args.nodes,
        "cpu_model": args.cpu_model or CPU_MODEL,
    }


def _machine(args: argparse.Namespace) -> str:
    """The machine asked for, or the one that the firmware needs."""
    if args.firmware != "secure":
        return str(args.machine or "pc")
    if args.machine == "pc":
        raise UsageError(
            "--machine pc", "Secure Boot needs SMM, which it lacks", hint="use --machine q35"
        )
    return "q35"
