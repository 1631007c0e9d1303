# SPDX-License-Identifier: LGPL-2.1-or-later
"""docs/capture-speed.md: what is measured of the capture's speed, as Markdown. Pure."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

from crashlend.lab.markdown import table
from crashlend.lab.speed.contenders import CONTENDERS
from crashlend.sizes import mib

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

BASE = "kdump-tools"
GOAL = 0.5
PAGE_BYTES = 4096
_HEAD = """\
# How quick the capture is

Written by `make bench-capture` (`crashlend lab capture-bench`) from
[results/capture-bench.json](results/capture-bench.json), which has every single run. What was decided
on it is in [decision 0028](decisions/0028-cpus-memory-and-time-in-the-capture.md).
"""
_COMPARE = """\
## Against kdump-tools

The same Debian {kernel} system, {memory} of memory, one virtio disk with ext4, and for all the command
line `{cmdline}` (this kernel ignores `,cma`: 320 MiB are reserved). kdump-tools: its own initramfs,
its own `kexec`, its own settings, as its package installs them. crashlend: `crashlend load`, the initramfs
that it builds there. Both dump at level 31 to /var/crash. They took turns, rounds: {rounds}; medians,
least to most in brackets. All times are from the panic, on the host's clock; "CPU" is what QEMU has had
of the host's CPUs from the panic until the dump was saved: work without waiting, and without what
others did on this machine meanwhile.
"""
_COMPARE_AFTER = """\
Both save the log first. kdump-tools has makedumpfile compress with zlib (`-c`) and write to a pipe (`-F`), and
runs below systemd, as the system itself does. Each dump that counts was opened by makedumpfile, which found
the panic in it.
"""
_TARGETS = """\
## By target

One crash each, with 512 MiB lent and 1 s of waiting for DMA. The initramfs is what is loaded, with the
lab's own two hooks (1.6 KB) and the load's variables in it; peak is the most memory that the crash
kernel had in use; MiB/s is of the dump as it is written (compressed).
"""
_THREADS = """\
## By compression and threads

Linux {release}, makedumpfile {version}, four CPUs of a guest with two CPUs of its host to run on. The
dump is written again and again, from /proc/vmcore that has been read once, until it is on the disk;
MiB/s is of the memory that is in it ({mib_in}).
"""
_THREADS_AFTER = """\
makedumpfile's main thread spins while it waits for the others, and takes a CPU for itself. Here four
threads and it share two real CPUs, whatever the guest sees, so these figures say what threads cost
where CPUs are short, and not what they gain where there are many. Users with large hosts report that
([kdump-utils#14](https://github.com/rhkdump/kdump-utils/pull/14): 14,000 s with one CPU, 1,600 s with
nine threads, zlib on POWER).
"""
_NOT = """\
## What it does not show

- Emulation (TCG) on a machine that did other work meanwhile. Seconds are slow and noisy: on hardware a
  kernel is unpacked and booted several times faster. Ratios of captures that took turns say something.
- Large hosts. The dumps here have some 100 MiB in them; what a dump of 100 GiB takes is decided by
  the disk and by compression.
- Late DMA is waited for 10 s by default where memory is lent (`dma_quiesce`): that row shows it. Where
  the bus masters can be switched off, 1 s will do ([late DMA](late-dma.md)).
"""


def markdown(data: Mapping[str, Any]) -> str:
    """The document for what :meth:`crashlend.lab.speed.run.Bench.results` returned."""
    parts = [_HEAD, compared(data["compare"])]
    if data["targets"]:
        parts += [_TARGETS, targets(data["targets"])]
    if data["threads"]:
        parts += [threads(data["threads"])]
    machine = data["machine"]
    parts += [
        _NOT,
        f"{machine['qemu']}, {machine['accel']}, {machine['host_cpus']} CPUs; crashlend as of commit "
        f"{data['commit']}.\n",
    ]
    return "\n".join(parts)


def compared(part: Mapping[str, Any]) -> str:
    """The contenders beside each other, and how the goal was met."""
    runs = part["runs"]
    base = times(runs, BASE, "saved")
    base_cpu = times(runs, BASE, "saved", "cpu")
    rows = []
    for contender in CONTENDERS:
        mine = [run for run in runs if run["name"] == contender.name]
        if not mine:
            continue
        saved = times(runs, contender.name, "saved")
        rows.append(
            [
                contender.title,
                len(mine),
                *(spread(times(runs, contender.name, name)) for name in ("init", "dmesg")),
                spread(saved),
                ratio(saved, base),
                spread(times(runs, contender.name, "saved", "cpu")),
                ratio(times(runs, contender.name, "saved", "cpu"), base_cpu),
                mib(int(median(run["vmcore_bytes"] for run in mine))),
                _words(mine),
            ]
        )
    head = ["", "runs", "init", "log on the disk", "dump saved", "ratio"]
    head += ["CPU until saved", "ratio", "dump", "makedumpfile"]
    rounds = max((len(times(runs, c.name, "saved")) for c in CONTENDERS), default=0)
    intro = _COMPARE.format(
        kernel=part["kernel"],
        memory=mib(part["memory_bytes"]),
        cmdline=part["cmdline"],
        rounds=rounds,
    )
    return f"{intro}\n{table(head, rows)}\n{verdict(runs)}\n{_COMPARE_AFTER}"


def verdict(runs: Iterable[Mapping[str, Any]]) -> str:
    """Whether the goal is met, in a sentence; empty where one side has no runs."""
    runs = list(runs)
    base, mine = times(runs, BASE, "saved"), times(runs, "crashlend", "saved")
    if not base or not mine:
        return ""
    found = median(mine) / median(base)
    met = "is met" if found <= GOAL else "is not met"
    return (
        f"The goal, from panic to saved in at most {GOAL} of kdump-tools' time with nothing lent, {met}: "
        f"{found:.2f}.\n"
    )


def targets(found: Iterable[Mapping[str, Any]]) -> str:
    """A row for each target."""
    rows = []
    for one in found:
        seconds = (one["seconds"] or {}).get("dump") or 0
        rate = one["vmcore_bytes"] / (1 << 20) / seconds if seconds else 0
        rows.append(
            [
                one["title"],
                one["release"],
                f"{one['initramfs_bytes']:,}",
                *(f"{one['moments'].get(name, 0):.1f} s" for name in ("init", "dmesg", "saved")),
                f"{rate:.1f}",
                mib(one["peak_used_bytes"]),
            ]
        )
    head = ["target", "kernel", "initramfs, bytes", "panic → init", "→ log on the disk"]
    return table([*head, "→ dump saved", "MiB/s", "peak"], rows)


def threads(found: Mapping[str, Any]) -> str:
    """A row for each compression, a column for each number of threads."""
    # the first run of all fills caches
    runs = [run for run in found["runs"][1:] if run["exit"] == "0"]
    counts = sorted({run["threads"] for run in runs})
    rows = []
    for flag in dict.fromkeys(run["flag"] for run in runs):
        mine = {run["threads"]: run for run in runs if run["flag"] == flag}
        some = next(iter(mine.values()))
        rows.append(
            [
                f"`{flag}`",
                mib(some["bytes"]),
                *(_rate(mine[count]) if count in mine else "-" for count in counts),
            ]
        )
    inside = {run["pages"] * PAGE_BYTES for run in runs}
    intro = _THREADS.format(
        release=found["release"],
        version=found["version"],
        mib_in=" or ".join(mib(size) for size in sorted(inside)),
    )
    head = ["compression", "dump", *(f"{n} threads" if n else "no threads" for n in counts)]
    return f"{intro}\n{table(head, rows)}\n{_THREADS_AFTER}"


def times(
    runs: Iterable[Mapping[str, Any]], name: str, moment: str, clock: str = "moments"
) -> list[float]:
    """When that moment was in each run of that contender which had it; ``clock``: moments or cpu."""
    mine = [run.get(clock, {}) for run in runs if run["name"] == name]
    return [one[moment] for one in mine if moment in one]


def spread(values: list[float]) -> str:
    """The median, and least to most where they differ."""
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.1f} s"
    return f"{median(values):.1f} s ({min(values):.1f} to {max(values):.1f})"


def ratio(values: list[float], base: list[float]) -> str:
    """The median's part of the other median."""
    return f"×{median(values) / median(base):.2f}" if values and base else "-"


def _rate(run: Mapping[str, Any]) -> str:
    seconds = run["synced_cs"] / 100
    rate = run["pages"] * PAGE_BYTES / (1 << 20) / seconds if seconds else 0.0
    return f"{rate:.0f} MiB/s ({seconds:.1f} s)"


def _words(runs: Iterable[Mapping[str, Any]]) -> str:
    """makedumpfile's, of all runs; kdump-tools leaves no report, and has its default."""
    reports = [run.get("capture") or {} for run in runs]
    found = [(r.get("makedumpfile") or {}).get("args", ["-F", "-c", "-d", "31"]) for r in reports]
    return ", ".join(dict.fromkeys(f"`{' '.join(words)}`" for words in found))
