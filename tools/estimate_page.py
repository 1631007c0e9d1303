# SPDX-License-Identifier: LGPL-2.1-or-later
"""Writes docs/estimate.md from kept comparisons estimate-… (make docs)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from crashlend.sizes import mib

HEAD = """\
# Estimate and rehearse

Two questions before anything is written on a command line: how much memory does *this* capture need, and
does it work at all? Both are answered by a *twin*: a QEMU guest of the host's shape that runs the host's
kernel and its capture initramfs, with a disk that stands in for the dump target, and is crashed in the
host's stead ([decision 24](decisions/0024-twins.md)). Nothing is changed on the host, and no reboot is needed.

    crashlend estimate                                   # as root: for this host
    crashlend lab rehearse                               # as root: crash this host's twin
    crashlend lab rehearse --status                      # was this rehearsed, and does it still apply?

    crashlend snapshot host.tar.gz                       # as root, on a host without QEMU; then elsewhere:
    crashlend estimate --root host.tar.gz --kernel 6.1
    crashlend lab rehearse --root host.tar.gz --kernel 6.1 -o host.rehearsal.json

Both need Python 3.11, QEMU and the extra `[lab]`. A snapshot holds facts, not files: `--kernel` names a
kernel of `crashlend lab kernels` or a vmlinuz (with `--modules`), `--initramfs` a file from the host; without
it one is built from the lab's own userland, and the result says so.

What `--keep DIR` leaves has the host's capture initramfs in it, and so its keys, and a dump: DIR is made with mode
0700 and its files with 0600, and one that is there already and that others can look into is refused.

## estimate

Production boots once, loads as the host would, and is stopped where its panic hands over. From there the
crash kernel is started again and again with less memory in its map: each probe is its boot and its whole
dump, from the same production's memory, to a fresh disk. The first has all that the plan gives it; its peak
is *most used by the capture*. Then the least memory with which the dump is saved is searched for, to 2 MiB
(`--step`); the answer and the size below it are looked at twice. With `--json` each probe is there, with its
memory and how it ended.

*Must be in the reservation* is the image as stored, where the crash kernel runs in lent memory; the rest *may
be lent*. What to write has margins, and says which: a quarter of kernel and initramfs (4 MiB at least) in the
reservation, a quarter of all that is needed (64 MiB at least) in what is lent, in whole memory blocks.

"""
BEHIND = """

## What is not as on the host

Each result lists it (`note: not as on the host`, `changes` in JSON):

- **Memory** beyond `--memory` (4G). The reservation and what is lent are as on the host as far as they fit. What
  makedumpfile's bitmaps take for the rest of the host's memory (two bits a page) is added to an estimate.
- **CPUs** beyond 8, NUMA nodes beyond 4; for an estimate one node, BIOS and `kexec_load`.
- **crashkernel=** where it depends on the size of memory or names an address: then it is what came of it on the
  host. Words that name the host's own disks, consoles and hardware are left out.
- **The dump target.** The stand-in is a disk on the same bus (virtio, NVMe, AHCI, IDE, SCSI as far as QEMU has the
  controller) with the same UUID or label, so that the initramfs is the host's, byte for byte; behind it come
  hooks of the lab that report. A target over the network, on LVM, RAID or LUKS, a raw partition, another file
  system than ext4, xfs and btrfs, or a controller that QEMU lacks is replaced by ext4 on virtio, and what leads there comes
  behind the initramfs, too: then the way to the real target is *not* rehearsed, and what its drivers take is
  not in the estimate.
- **Devices.** Drivers of real hardware that the crash kernel starts take memory that no twin can show.
- `shrink_on_load` is rehearsed; for an estimate the reservation stays whole.
- `final_action` halt or shell is replaced by reboot.

## rehearse

Exit code 0 when the dump was saved and opens, 1 with the reason when not. The record
(`/var/lib/crashlend/rehearsal.json`; for a snapshot where `-o` says) has the date, the result, every check and
fingerprints of kernel, initramfs, settings (those that are not at their default), crashlend's version and layout
(crashkernel= words, what is asked for, memory, CPUs, firmware, release; not the size to which a load has shrunk the
reservation). `--status` compares them and names what has changed since; it boots nothing and runs on Python 3.9.
What could not be compared is named (`not_compared` in JSON); on a host the exit code is then 4, not 0.
"""


def main() -> None:
    """The page on standard output."""
    kept = [json.loads(path.read_text()) for path in _results(Path(sys.argv[1]))]
    played = sorted(Path(sys.argv[1]).glob("rehearsal-*.json"))
    print(HEAD + "\n".join([*_table(kept), "", *_probes(kept)]) + BEHIND, end="")
    print("\n".join(["", *_rehearsals(played)]))


def _rehearsals(paths: list[Path]) -> list[str]:
    lines = [
        "Kept ones, each of a snapshot, among them some that had to fail:",
        "",
        "| record | twin | stand-in | exit code | why |",
        "|---|---|---|---|---|",
    ]
    for path in paths:
        one = json.loads(path.read_text())
        result = one["result"]
        twin = f"{mib(result['memory_bytes'])}, `{result['cmdline']}`, lender {result['lender'] or '-'}"
        why = "the dump was saved" if one["ok"] else one["reason"].replace("|", "\\|")
        cells = [f"[{path.stem}](results/{path.name})", twin, result.get("target", "")]
        lines.append("| " + " | ".join([*cells, "0" if one["ok"] else "1", why]) + " |")
    return lines


def _results(directory: Path) -> list[Path]:
    return sorted(directory.glob("estimate-*.json"))


def _table(kept: list[dict[str, Any]]) -> list[str]:
    lines = [
        "## An estimate beside the real capture",
        "",
        "A guest of the lab took a snapshot of itself, loaded, and really crashed; its `capture.json` says what",
        "the capture used. The estimate got the snapshot, the kernel and the initramfs (`make estimate`).",
        "",
        "| result | kernel | host | real capture used | estimate | difference | least memory | write |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in kept:
        real, told = one["real"], one["estimate"]
        host = f"{mib(real['memory_bytes'])}, {real['cpus']} CPUs, `{real['cmdline']}`"
        cells = [
            f"[{one['name']}](results/{one['name']}.json)",
            real["kernel"],
            host,
            mib(real["peak_used_bytes"]),
            mib(told["peak_used_bytes"]),
            f"{one['difference_percent']:+.1f} %",
            mib(told["least_bytes"]),
            f"`{told['reserve']['line']}`",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _probes(kept: list[dict[str, Any]]) -> list[str]:
    lines = []
    for one in kept:
        lines += [f"The probes of {one['name']}, in their order:", ""]
        lines += ["| memory | capture | used |", "|---|---|---|"]
        for probe in one["estimate"]["probes"]:
            used = mib(probe["peak_used_bytes"]) if probe["peak_used_bytes"] else ""
            lines.append(f"| {mib(probe['memory_bytes'])} | {probe['how']} | {used} |")
        lines.append("")
    return lines[:-1]


if __name__ == "__main__":
    main()
