# SPDX-License-Identifier: LGPL-2.1-or-later
"""Writes docs/late-dma.md from kept results of the trials late-… (make docs)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from crashlend.facts.writers import KINDS, SHARED

HEAD = """\
# Late DMA

A device that production had started may still write when the crash kernel runs. Long-term users (VFIO,
RDMA, io_uring's buffers) do not matter here: their pages are moved away from movable memory before they
are pinned. What matters are requests in flight, direct reads above all, into pages that happen to lie in
lent memory. Three means are there, in any combination (`dma_quiesce`,
[decision 10](decisions/0010-what-is-done-about-late-dma.md)):

| `dma_quiesce` | what purgatory does before anything is written to lent memory | it ends | it costs |
|---|---|---|---|
| `wait=SECONDS` | waits (10 s by default; nothing where the kernel waits 10 s by itself) | requests that end in that time | that time |
| `bus-masters-off` | clears the bus master bit of every endpoint that sysfs named at load | what those functions do, at once | milliseconds |
| `bus-masters-off=bridges` | then of the bridges, too | likewise, of what lies behind them | milliseconds |
| `watch=SECONDS[:LIMIT]` | sums up lent memory until it has stayed the same for so long | nothing, but it goes on as soon as memory rests, and the record says whether it did | SECONDS at least, LIMIT at most |

## What was seen

Written by `make docs` from kept results of trials on emulated guests, each a crash with DMA under way. *nvme*,
*lsi53c895a*: up to 128 direct reads of 256 KiB into lent memory, from a disk that is throttled to two reads
or one read a second. The crash kernel then fills nearly all of its memory with zeros before it does
anything else; what is no zero 15 s later came late. *edu*: five functions of QEMU's teaching device, one
behind a bridge, are told to write 2 KiB each, which they do a tenth of a second later; what came is seen in
production's memory in /proc/vmcore. A row with `wait=0` is the control: nothing is done.

| trial | device | `dma_quiesce` | under way at the panic | purgatory's steps | seconds lost | pages written late | dump |
|---|---|---|---|---|---|---|---|
"""
TAIL = """

## DMA that no wait ends

Some devices do not write for one request but for as long as a process has memory mapped: no pin keeps
those pages out of lent memory, and nobody is left to tell the device to stop. Where one is in use,
`load` refuses to lend until `bus-masters-off` is set and reaches the function. A device that is merely
there does not matter; where it can't be told whether it is in use, it counts as in use.

| driver | what | why no wait ends it | where the kernel does that |
|---|---|---|---|
"""
LIMITS = """

In use is: open verbs devices (the count of `ib_uverbs` in /proc/modules beyond other modules), open files
of the card (debugfs, else the driver's count in /proc/modules, which the console raises too), clients of a
work queue of type `user` (sysfs). With `--syscall file` the kernel lends its own ranges by itself, so there it
is a note.

## Watchdogs

A hardware watchdog goes on while purgatory waits. One that is armed for no longer than the shortest wait is
refused at load, because it would surely fire (trial `watchdog-6.1`); where the longest wait is more than half
of its timeout there is a note. A watchdog that the kernel feeds by itself, with no program behind it, reads `inactive` in sysfs and is
not seen.

## What this does not show

- **Real devices.** All rows are models in QEMU. Its NVMe and AHCI map guest memory when a request comes in
  and take no notice of the bus master bit afterwards, so `bus-masters-off` is not shown with them; its virtio
  devices end all requests inside the write that clears the bit. What real devices do with requests in flight
  when it is cleared is theirs: the PCI specification forbids them to begin further writes.
- **Real IOMMUs.** The rows with an IOMMU are QEMU's intel-iommu and one device behind it.
- **Out of reach.** Functions in segments above 0 and virtual functions are not switched off; the plan names
  them. System functions are left alone on purpose: host bridges, IOMMUs, timers, interrupt controllers.
- **Bridges.** QEMU does not enforce a bridge's own bus master bit, so `=bridges` is shown to be done and
  nothing more.
- **Writers without end** are recognised in constructed facts alone so far.
- **A watch sees changes only.** A device that writes what is there already, or later than the rest that was
  asked for, is not seen. It reads all lent memory: where that has an uncorrectable error, the machine
  resets (a machine check), while a crash kernel might never have touched that page.
- **In use is judged at load, and by `status`.** A device that comes into use later, or is plugged in, is named
  by `status` with its remedy; nothing acts on that by itself.
"""
STEPS = ("bus-masters-off", "wait", "watch")


def cells(value: dict[str, Any]) -> tuple[str, ...]:
    """One trial as the cells of its row."""
    trial, late = value["trial"], value["trial"]["late"]
    steps = [s for s in (late["purgatory"] or {}).get("steps", []) if s["step"] in STEPS]
    device = {"lsi": "lsi53c895a"}.get(late["device"], late["device"])
    if "intel_iommu=on" in trial["cmdline"]:
        device += " behind intel-iommu"
    what = "writes" if late["device"] == "edu" else "reads"
    return (
        f"[{value['name']}](results/{value['name']}.json)",
        device,
        f"`{late['dma_quiesce']}`",
        f"{late['outstanding']} {what}",
        "; ".join(map(in_words, steps)) or "none",
        f"{sum(step['ms'] for step in steps) / 1000:.1f}",
        str(late["seen_pages"]),
        "saved" if trial["vmcore"]["bytes"] else "lost",
    )


def in_words(step: dict[str, Any]) -> str:
    """One step of purgatory's record."""
    if step["step"] == "bus-masters-off":
        return f"{step['cleared']} of {step['functions']} functions switched off"
    if step["step"] == "watch":
        rest = "then at rest" if step["quiet"] else "no rest"
        return f"{step['changes']} changes in {step['passes']} passes, {rest}"
    return "waited"


def row(words: tuple[str, ...]) -> str:
    """The cells as a line of Markdown."""
    return "| " + " | ".join(words) + " |"


def page(directory: Path) -> str:
    """The whole document from the results in a directory."""
    values = [json.loads(path.read_text()) for path in sorted(directory.glob("late-*.json"))]
    seen = "\n".join(row(cells(value)) for value in values)
    kinds = [*KINDS, SHARED._replace(driver="any of class uacce")]
    endless = "\n".join(row((f"`{k.driver}`", k.name, k.why, k.source)) for k in kinds)
    return HEAD + seen + TAIL + endless + LIMITS


if __name__ == "__main__":
    sys.stdout.write(page(Path(sys.argv[1])))
