# SPDX-License-Identifier: LGPL-2.1-or-later
"""The bench's results as Markdown: docs/benchmarks.md is what this makes of bench.json. Pure."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

from crashlend.lab.markdown import renewed, table
from crashlend.sizes import MIB, mib

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# in the order of the table: what is searched, then what a shrink leaves
TITLES = {
    "kexec-c": "`kexec -c -p`",
    "kexec-s": "`kexec -s -p`",
    "crashlend-none": "`crashlend load`, nothing lent",
    "crashlend-lent": "`crashlend load`, 1 GiB lent",
    "crashlend-auto": "the same, `--shrink`",
    "crashlend-exact": "the same, `--shrink --shrink-margin 0`",
}
_HEAD = """\
# Benchmarks

Written by `make bench` (`crashlend lab bench`) from
[results/bench.json](results/bench.json), which has every single result.

What must be reserved, and how long it takes, with kexec-tools and with crashlend: the same guest, kernel,
capture initramfs and command line of the crash kernel.
"""
_HOW = """\
## What was measured

Reservation: production boots with `crashkernel=SIZE`, the crash kernel is loaded, production
crashes by sysrq. A size is enough when the dump (level 31) is saved and makedumpfile finds the panic in
it. Steps of 1 MiB; the answer passed, and the next smaller size failed, as often as the table says. A size
that fails once is not enough. In the rows with `--shrink` production boots with {comfortable} MiB,
and crashlend shrinks that to what stands there, with every check of a trial passed. With lent memory
purgatory waits 1 s for DMA here (10 s by default), and a kernel with `,cma` ranges 10 s by itself.

The initramfs is the same file for all, {initramfs}. Behind it stand the capture's
variables for this load: the same bytes for both ways of kexec and for crashlend without lending; with
lending the lent ranges are among them. The crash kernel's command line is the same (production's
console and, among others, `nokaslr acpi_no_memhotplug reset_devices nr_cpus=1 irqpoll panic=10`); each
loader adds its own `elfcorehdr=`. Both kernels run with `nokaslr`: without it the reservation lies elsewhere
at each boot, and in one that touches two 128 MiB sections of memory the crash kernel has 2 MiB less.

Times: in one guest the loaders take turns, {rounds} rounds after one that fills caches. Each is the time of the
whole program; "its own part" is what crashlend spends in planning, building and
handing over the image, without the start of Python. Lending 1 GiB: {lend_rounds} times in an idle
guest, then {lend_rounds} times with memory full, each time taken back in between; a block has
{deadline:g} s to become empty here (10 s by default).

{machine}

## How to repeat it

    make bench

It takes about an hour. Results of an interrupted run are in build/bench and are taken up again,
unless the sources or the kernel changed. `crashlend lab bench --quick` looks once at everything.

## What it does not show

- Emulation (TCG) on a machine that did other work meanwhile: times are slow and noisy. Ratios of loaders
  that took turns say something, seconds do not.
- Memory full of small pages that nothing can reclaim. The anonymous memory here is in huge pages of 2 MiB. In
  runs with shared memory of 4 KiB pages in its place (no swap, 90% in use), 7 of the 8 blocks went, on 6.1 and
  on 7.3, and 21 others refused. On 6.1 14 of those were not empty after 8 s, 15 after 10 s in another run;
  with 100 s for each the load was not over after 14 minutes. The kernel's words were "migrating pfn …
  failed ret:-12": it found no memory to move the pages to.
- One capture, and a lean one: busybox, makedumpfile, a virtio disk with ext4. The distributions' own
  initramfs are several times larger and need more; lent memory has room for them.
- What a reservation must hold grows with CPUs, devices and drivers; the guest has one CPU and two disks.
- Near the border chance decides: the same size may save one dump and lose the next (100 MiB with `kexec -c`
  on 6.1 did so in a run before this one). Two looks each are few; read the sizes as give or take 1 MiB.
- The smallest size that saved a dump is no recommendation: it leaves nothing for a bad day.
"""


def markdown(data: dict[str, Any]) -> str:
    """The document for what :func:`crashlend.lab.bench.run.bench_data` returned."""
    part = sections(data)
    parts = [_HEAD, "## Reservation needed to save the dump\n", part["reservations"]]
    parts += ["## Time to load\n", part["loads"], "## Time to lend 1 GiB\n", part["lending"]]
    parts += [part["available"], _how(data)]
    return "\n".join(parts)


def sections(data: dict[str, Any]) -> dict[str, str]:
    """What other documents may quote, by name."""
    kernels = data["kernels"]
    return {
        "reservations": "\n".join(_reservations(kernel) for kernel in kernels),
        "loads": _loads(kernels),
        "lending": _lending(kernels),
        "available": _available(kernels),
    }


def quoted(document: str, data: dict[str, Any]) -> str:
    """The document with what stands between ``<!-- bench: NAME -->`` and ``<!-- end -->`` renewed."""
    return renewed(document, "bench", sections(data))


def taken_rows(kernel: dict[str, Any]) -> list[tuple[str, int | None]]:
    """The bytes taken from production of each row, in the table's order; None: not found."""
    found: list[tuple[str, int | None]] = []
    for key in TITLES:
        if key in kernel["rows"]:
            answer = kernel["rows"][key]["answer_mib"]
            found.append((key, None if answer is None else answer * MIB))
        else:
            found.append((key, max(r["reservation_bytes"] for r in kernel["shrunk"][key])))
    return found


def _reservations(kernel: dict[str, Any]) -> str:
    taken = taken_rows(kernel)
    base = dict(taken)["kexec-c"]
    rows = []
    for key, size in taken:
        looks = kernel["rows"][key]["probes"] if key in kernel["rows"] else kernel["shrunk"][key]
        good = [look for look in looks if look["verdict"] == "enough"]
        if key in kernel["rows"]:
            good = [look for look in good if look["size_mib"] == kernel["rows"][key]["answer_mib"]]
        rows.append(
            [
                TITLES[key],
                mib(size) if size else "-",
                _share(size, base),
                _confirmed(kernel, key),
                _spread([look["vmcore_bytes"] / MIB for look in good], "MiB"),
                _spread([look["peak_used_bytes"] / MIB for look in good], "MiB"),
                _spread([look["panic_to_saved_seconds"] for look in good], "s"),
            ]
        )
    head = [
        "loaded by",
        "taken from production",
        "of `kexec -c`",
        "tried",
        "dump",
        "most used by the capture",
        "panic to dump saved",
    ]
    exact = kernel["shrunk"]["crashlend-exact"][-1]
    words = (
        f"Stored: {mib(exact['payload_bytes'])} of kernel and initramfs; required to the page: "
        f"{mib(exact['required_bytes'])}. Lender: {exact['lender']}.{_exceptions(kernel)}\n"
    )
    return f"### Linux {kernel['release']} ({kernel['version']})\n\n{table(head, rows)}\n{words}"


def _confirmed(kernel: dict[str, Any], key: str) -> str:
    if key not in kernel["rows"]:
        looks = kernel["shrunk"][key]
        checks = ", ".join(dict.fromkeys(look["checks"] for look in looks))
        return f"{sum(r['verdict'] == 'enough' for r in looks)} × saved; checks {checks}"
    row = kernel["rows"][key]
    if row["answer_mib"] is None:
        return f"{row['below_mib']} MiB fails {row['failed']} ×"
    words = f"{row['passed']} × saved"
    if row["below_mib"] is not None:
        kinds = {
            probe["verdict"] for probe in row["probes"] if probe["size_mib"] == row["below_mib"]
        }
        how = " or ".join(sorted(kinds - {"enough"}))
        words += f"; {row['below_mib']} MiB: {row['failed']} × {how}"
    return words


def _exceptions(kernel: dict[str, Any]) -> str:
    odd = [
        f"{TITLES[key]}: {', '.join(f'{size} MiB' for size in row['exceptions_mib'])}"
        for key, row in kernel["rows"].items()
        if row["exceptions_mib"]
    ]
    if not odd:
        return " No exceptions: no size both passed and failed, none passed below one that failed."
    return f" Exceptions (passed once, though they or a larger size failed): {'; '.join(odd)}."


def _loads(kernels: Sequence[dict[str, Any]]) -> str:
    titles = {
        "kexec-c": "`kexec -c -p`",
        "kexec-s": "`kexec -s -p`",
        "crashlend": "`crashlend load`, nothing lent",
        "own": "… its own part",
    }
    rows = [[title] for title in titles.values()]
    for kernel in kernels:
        times = kernel["times"]
        values = {**times["load_seconds"], "own": times["own_load_seconds"]}
        base = median(values["kexec-c"])
        for row, key in zip(rows, titles):
            row += [_spread(values[key], "s"), _share(median(values[key]), base)]
    head = ["loaded by"]
    for kernel in kernels:
        head += [kernel["name"], "of `kexec -c`"]
    versions = ", ".join(f"{k['name']}: {k['times']['kexec_tools']}" for k in kernels)
    return f"{table(head, rows)}\nMedian (least to most). {versions}.\n"


def _lending(kernels: Sequence[dict[str, Any]]) -> str:
    rows = []
    figures: dict[str, Callable[[list[dict[str, Any]]], str]] = {
        "whole `crashlend load --lend 1G`": lambda each: _spread(
            [one["process_seconds"] for one in each], "s"
        ),
        "choosing and moving blocks": lambda each: _spread([one["seconds"] for one in each], "s"),
        "one block (128 MiB)": lambda each: _spread(
            [s for one in each for s in one["block_seconds"]], "s"
        ),
        "blocks that refused": lambda each: ", ".join(str(o["refused_blocks"]) for o in each),
        "one block that refused": lambda each: _spread(
            [s for one in each for s, _ in one["refused"]], "s"
        ),
        "lent": lambda each: ", ".join(sorted({mib(one["lent_bytes"]) for one in each})),
    }
    for title, figure in figures.items():
        row = [title]
        for kernel in kernels:
            for state in ("idle", "full"):
                row.append(figure(kernel["times"]["lending"][state]))
        if set(row[1:]) != {"-"}:
            rows.append(row)
    head = [""]
    for kernel in kernels:
        head += [f"{kernel['name']}, idle", f"{kernel['name']}, memory full"]
    words = [
        f"{k['name']} full: {_full(k['times']['full'])}; moving takes "
        f"{_share(_moving(k, 'full'), _moving(k, 'idle'))} of the idle time."
        for k in kernels
    ]
    return f"{table(head, rows)}\n" + "\n".join(words) + "\n"


def _full(memory: dict[str, int]) -> str:
    total = memory["MemTotal"]
    used = 1 - memory["MemFree"] / total
    return (
        f"{used:.0%} of {mib(total)} in use, {mib(memory['AnonPages'])} of it anonymous, "
        f"{mib(memory['Cached'])} page cache"
    )


def _moving(kernel: dict[str, Any], state: str) -> float:
    return float(median(one["seconds"] for one in kernel["times"]["lending"][state]))


def available_lost(kernel: dict[str, Any]) -> list[float]:
    """By how many MiB lending lowered MemAvailable in the idle guest, each time."""
    each = [one["available_bytes"] for one in kernel["times"]["lending"]["idle"]]
    return [(before - after) / MIB for before, after in each]


def _available(kernels: Sequence[dict[str, Any]]) -> str:
    words = "; ".join(f"{k['name']}: {_spread(available_lost(k), 'MiB')}" for k in kernels)
    return f"MemAvailable is lower after 1 GiB is lent (idle guest) by: {words}.\n"


def _how(data: dict[str, Any]) -> str:
    from crashlend.lab.bench.run import COMFORTABLE_MIB
    from crashlend.lab.bench.times import DEADLINE_SECONDS

    machine, options = data["machine"], data["options"]
    sizes = [k["times"]["initramfs_bytes"] for k in data["kernels"]]
    return _HOW.format(
        comfortable=COMFORTABLE_MIB,
        initramfs=" and ".join(
            f"{mib(size)} for {k['name']}" for size, k in zip(sizes, data["kernels"])
        ),
        rounds=options["rounds"],
        lend_rounds=options["lend_rounds"],
        deadline=DEADLINE_SECONDS,
        machine=f"Guest: {mib(machine['memory_bytes'])}, {machine['cpus']} CPU "
        f"({machine['cpu_model']}), {machine['accel']}, {machine['qemu']}; the machine has "
        f"{machine['host_cpus']} CPUs.",
    )


def _share(value: float | None, base: float | None) -> str:
    """``value`` as a part of ``base``: "×0.17"."""
    if not value or not base:
        return "-"
    return f"×{value / base:.2f}"


def _spread(values: Sequence[float], unit: str) -> str:
    """The median, and least to most where they differ."""
    if not values:
        return "-"
    digits = 1 if unit == "MiB" else 2
    middle = f"{median(values):.{digits}f} {unit}"
    if len({f"{value:.{digits}f}" for value in values}) == 1:
        return middle
    return f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"
