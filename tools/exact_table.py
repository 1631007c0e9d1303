# SPDX-License-Identifier: LGPL-2.1-or-later
"""Writes docs/exact-size.md from the results of the trials exact-… (make exact)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

HEAD = """\
# The exact size

How many pages of the reservation each kernel takes for itself, as planned and as found by asking the
kernel: the image is loaded with ever less of the reservation left to it, until it refuses. `required`
is then the smallest reservation that holds the image in this layout; one page less is refused. Written by
`make exact` from its results. LA57 is what the processor has; Debian 11 builds its 5.10 without it.

| kernel | guest | processor | placement | planned | kernel took | required, bytes | equal |
|---|---|---|---|---|---|---|---|
"""
GUESTS = {
    "dimms": "2 GiB and a DIMM of 3 GiB",
    "uefi": "4 GiB, UEFI",
    "high": "6 GiB, crashkernel=64M,high",
    "reserved": "4 GiB",
}
PROCESSORS = {"qemu64": "2 MiB pages", "gb": "1 GiB pages", "max": "1 GiB pages, LA57"}


def row(path: Path) -> str:
    """One trial as a line of the table."""
    value = json.loads(path.read_text())
    _, _, shape, processor = value["name"].rsplit("-", 3)
    trial, probe = value["trial"], value["trial"]["probe"] or {}
    guest = GUESTS.get(shape, shape.replace("g", " GiB"))
    planned, took = probe.get("control_pages"), probe.get("kernel_control_pages")
    cells = (
        *(trial["kernel"], guest, PROCESSORS[processor], probe.get("placement")),
        *(planned, took, probe.get("required_bytes")),
        "yes" if value["passed"] and planned == took else f"**no**: {value['why']}",
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Print the page; the first argument is the directory of the results."""
    paths = sorted(Path(sys.argv[1]).glob("exact-*.json"))
    rows = [row(path) for path in paths]
    equal = sum(line.endswith("| yes |") for line in rows)
    print(
        HEAD + "\n".join(rows) + f"\n\n{equal} of {len(rows)} guests: planned and real are equal."
    )


main()
