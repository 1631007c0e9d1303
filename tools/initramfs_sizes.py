# SPDX-License-Identifier: LGPL-2.1-or-later
"""Build the capture initramfs of Debian's kernels for plain targets, and keep how large each is.

Writes docs/results/initramfs-sizes.json and the table in docs/initramfs.md. ``--kernels`` adds to what
is kept; nothing is booted.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from crashlend.capture.initramfs import CaptureSpec, build_initramfs
from crashlend.capture.modules import Want
from crashlend.capture.targets.filesystem import filesystem_target
from crashlend.lab.guest import fill_root, userland, userland_suite
from crashlend.lab.kernels import fetch
from crashlend.lab.packages import Suite, unpack

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "docs/results/initramfs-sizes.json"
PAGE = ROOT / "docs/initramfs.md"
BEGIN, END = "<!-- sizes -->", "<!-- end of sizes -->"
BUSES = {
    "virtio": ("virtio_pci", "virtio_blk"),
    "NVMe": ("nvme",),
    "AHCI": ("ahci", "sd_mod"),
}
KERNELS = ("5.10", "6.1", "6.12", "7.3")
FILE_SYSTEMS = ("ext4", "xfs", "btrfs")
BUSYBOXES = {"busybox": "shared", "busybox-static": "static"}
LIMIT_BYTES = 3 << 20


def target(fstype: str, bus: str):
    """A file system on a disk of that bus."""
    wants = tuple(Want(name, "the disk") for name in BUSES[bus])
    return filesystem_target("LABEL=x", fstype, "/var/crash", (*wants, Want(f"fs-{fstype}", "it")))


def measure(name: str, static_file_systems: tuple[str, ...]) -> list[dict[str, object]]:
    """All rows of one kernel."""
    kernel = fetch(name, print)
    rows: list[dict[str, object]] = []
    for package, kind in BUSYBOXES.items():
        with tempfile.TemporaryDirectory(prefix="crashlend-") as scratch:
            root, cache = Path(scratch, "root"), Path(scratch, "cache")
            root.mkdir()
            fill_root(root, kernel, userland(kernel, print))
            for old in root.glob("usr/bin/busybox*"):
                old.unlink()
            unpack(Suite(userland_suite(kernel), print).download([package])[0], root)
            for fstype in FILE_SYSTEMS if kind == "shared" else static_file_systems:
                for bus in BUSES:
                    spec = CaptureSpec(kernel.release, (target(fstype, bus),), watchdog_timeout=0)
                    built = build_initramfs(root, spec, cache)
                    row = {"kernel": name, "release": kernel.release, "busybox": kind}
                    row |= {"fstype": fstype, "bus": bus, "bytes": len(built.data)}
                    rows.append({**row, "unpacked_bytes": built.unpacked_bytes})
                    print(rows[-1], flush=True)
    return rows


def table(rows: list[dict[str, object]]) -> str:
    """Markdown: KiB by kernel, file system and bus; with busybox-static in parentheses."""
    lines = [
        "| kernel | file system | " + " | ".join(BUSES) + " |",
        "|---|---|" + "--:|" * len(BUSES),
    ]
    size = {(r["kernel"], r["busybox"], r["fstype"], r["bus"]): int(str(r["bytes"])) for r in rows}
    for kernel in sorted({str(r["kernel"]) for r in rows}, key=lambda n: [*map(int, n.split("."))]):
        for fstype in FILE_SYSTEMS:
            cells = []
            for bus in BUSES:
                shared = size.get((kernel, "shared", fstype, bus))
                static = size.get((kernel, "static", fstype, bus))
                cell = "" if shared is None else f"{shared / 1024:.0f}"
                cells.append(cell + (f" ({static / 1024:.0f})" if static else ""))
            lines.append(f"| {kernel} | {fstype} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, keep, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernels", nargs="*", default=list(KERNELS))
    args = parser.parse_args()
    kept = json.loads(KEPT.read_text())["rows"] if KEPT.exists() else []
    for name in args.kernels:
        rows = measure(name, ("ext4", "xfs"))
        kept = [row for row in kept if row["kernel"] != name] + rows
        KEPT.write_text(json.dumps({"schema": 1, "rows": kept}, indent=1) + "\n")
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(kept)}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    sys.exit(main())
