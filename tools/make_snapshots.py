#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Make the snapshots that ``crashlend tour`` shows, from real guests in QEMU (TCG, no root).

    python tools/make_snapshots.py [NAME ...] [--to DIR] [--keep DIR]

Each guest boots with the seed's line, runs ``crashlend snapshot``, and is switched off; nothing is
crashed. Beside each archive goes a small JSON with what a plan needs beyond facts: the header of
the guest's own kernel image and the size of its capture initramfs. Needs QEMU and what
``crashlend lab`` needs; about a minute per guest once its kernel is fetched. The result differs
from run to run (KASLR places the kernel), so commit it only when there is a reason.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from crashlend.cli.output import complain, progress
from crashlend.errors import EXIT_DONE, EXIT_FAILED, CrashlendError
from crashlend.formats.bzimage import BzImage
from crashlend.jsonable import to_json
from crashlend.lab.guest import build_boot_initramfs, build_root
from crashlend.lab.kernels import fetch
from crashlend.lab.lab_disk import make_lab_disk, production_words
from crashlend.lab.packages import find_tool
from crashlend.lab.qemu import CPU_MODEL, Disk, Machine, run_machine
from crashlend.lab.spec import Command, Spec

GIB = 1 << 30
MIB = 1 << 20
LINE = "crashkernel=1G,cma crashkernel=100M"
PACKAGED = Path(__file__).resolve().parent.parent / "src/crashlend/snapshots"


@dataclass(frozen=True)
class Guest:
    """A host to take a snapshot of. ``title`` is shown to people."""

    name: str
    title: str
    kernel: str
    memory_bytes: int
    cpus: int = 1
    more_words: str = ""
    cpu_model: str = CPU_MODEL
    nodes: int = 1
    extra: tuple[str, ...] = ()


def _holes() -> str:
    """1 MiB taken out of every 256 MiB, for 4 GiB of RAM on a PC.

    With ``nokaslr``: of so many holes KASLR does not avoid all, and a kernel that was put upon one
    (seen on 6.1) hides it. So the kernel is at 16 MiB, and the holes begin well above it.
    """
    low = range(192 * MIB, 3 * GIB, 256 * MIB)
    places = [*low, *range(4 * GIB + 192 * MIB, 5 * GIB, 256 * MIB)]
    return " ".join(["nokaslr", *(f"memmap=1M${place >> 20}M" for place in places)])


GUESTS = (
    Guest("vm", "a small virtual machine", "6.1", 4 * GIB),
    Guest(
        "fragmented",
        "a host whose memory has a hole every 256 MiB",
        "6.1",
        4 * GIB,
        more_words=_holes(),
    ),
    Guest(
        "server",
        "a large server with two NUMA nodes",
        "7.3",
        64 * GIB,
        cpus=4,
        # without this bit the kernel takes the guest for bare metal: memory blocks of 2 GiB
        cpu_model=f"{CPU_MODEL},-hypervisor",
        nodes=2,
        extra=("-numa", "dist,src=0,dst=1,val=21"),
    ),
)


def main() -> int:
    """Make the snapshots that the command line names, or all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="which (default: all)")
    parser.add_argument("--to", type=Path, default=PACKAGED, metavar="DIR", help="where they go")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep disks and consoles")
    parser.add_argument("--words", default="", help="more words for the guests, to look closer")
    parser.add_argument("--timeout", type=float, default=400.0, metavar="SECONDS")
    args = parser.parse_args()
    unknown = set(args.names) - {guest.name for guest in GUESTS}
    if unknown:
        parser.error(f"no such guest: {', '.join(sorted(unknown))}")
    args.to.mkdir(parents=True, exist_ok=True)
    try:
        for guest in GUESTS:
            if not args.names or guest.name in args.names:
                wanted = replace(guest, more_words=f"{guest.more_words} {args.words}".strip())
                with tempfile.TemporaryDirectory(prefix="crashlend-") as scratch:
                    where = args.keep / guest.name if args.keep else Path(scratch)
                    where.mkdir(parents=True, exist_ok=True)
                    make(wanted, args.to, where.resolve(), args.timeout)
    except CrashlendError as error:
        complain("make_snapshots", str(error), error.hint)
        return EXIT_FAILED
    return EXIT_DONE


def make(guest: Guest, to: Path, scratch: Path, timeout_seconds: float) -> None:
    """Boot one guest, take its snapshot, write both files to ``to``."""
    kernel = fetch(guest.kernel, progress)
    spec = Spec(
        kernel=kernel,
        memory_bytes=guest.memory_bytes,
        cpus=guest.cpus,
        cmdline=f"{LINE} {guest.more_words}".strip(),
        crash="none",
        poison=False,
        cpu_model=guest.cpu_model,
        commands=(Command(("snapshot", "--census", f"/lab/{guest.name}.tar.gz")),),
    )
    root = build_root(kernel, progress)
    disk = make_lab_disk(spec, scratch, progress)
    machine = Machine(
        kernel=kernel.vmlinuz,
        initramfs=build_boot_initramfs(kernel, progress),
        words=production_words(spec),
        memory_bytes=spec.memory_bytes,
        cpus=spec.cpus,
        disks=(Disk(root, kept=False), Disk(disk)),
        cpu_model=spec.cpu_model,
        nodes=guest.nodes,
        extra=guest.extra,
    )
    progress(f"{guest.name}: booting {kernel.release}")
    report = run_machine(machine, scratch, timeout_seconds=timeout_seconds)
    command = report.find("command")
    if report.timed_out or command.get("exit") != 0:
        last = report.events[-1].get("event") if report.events else "nothing"
        end = "reached its deadline" if report.timed_out else "ended"
        why = f"the guest {end} after {report.seconds:.0f} s; it reported {last} last"
        raise CrashlendError(
            f"no snapshot of {guest.name}",
            f"{why}: {command['stderr']}" if command.get("stderr") else why,
            hint="look at the console with --keep DIR",
        )
    archive = _copy_out(disk, f"{guest.name}.tar.gz", scratch)
    initramfs = _copy_out(disk, "initramfs", scratch)
    image = to_json(BzImage.parse(kernel.vmlinuz.read_bytes()))
    image["setup_header"] = image["setup_header"].hex()
    beside = {
        "schema": 1,
        "title": guest.title,
        "payload": {"image": image, "initramfs_bytes": len(initramfs)},
    }
    (to / f"{guest.name}.tar.gz").write_bytes(archive)
    (to / f"{guest.name}.json").write_text(json.dumps(beside, indent=1) + "\n")
    progress(f"{guest.name}: {len(archive)} bytes after {report.seconds:.0f} s")
    for line in str(command.get("answer", "")).splitlines()[1:]:
        progress(f"{guest.name}: {line}")


def _copy_out(disk: Path, name: str, scratch: Path) -> bytes:
    """One file of the lab's disk (debugfs needs no root)."""
    tool = find_tool("debugfs", "install the package e2fsprogs")
    out = scratch / f"out-{name}"
    words = [tool, "-R", f"dump /{name} {os.path.relpath(out, scratch)}", str(disk)]
    done = subprocess.run(words, cwd=scratch, capture_output=True, check=False)
    if done.returncode != 0 or not out.is_file() or not out.stat().st_size:
        raise CrashlendError(f"cannot read {name} off the lab's disk", done.stderr.decode()[-200:])
    return out.read_bytes()


if __name__ == "__main__":
    sys.exit(main())
