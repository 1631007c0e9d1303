# SPDX-License-Identifier: LGPL-2.1-or-later
"""docs/agreement.md: what was booted, what was seen, and whether it is what was predicted. Pure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from crashlend.lab.agree.cases import CASES, HOSTS
from crashlend.lab.agree.data import SCHEMA
from crashlend.lab.markdown import number_first, table
from crashlend.sizes import MIB, mib

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from crashlend.lab.agree.compare import Verdict
    from crashlend.lab.agree.data import Kept

_HEAD = """# Prediction against booted kernels

`crashlend predict` says what a kernel makes of its `crashkernel=` words. Here Debian's kernels were
asked: each case was booted in QEMU with `nokaslr` (not under UEFI: without the kernel's decompressor),
and what it showed is compared with what `crashkernel/boot.py` says. The model is given what a host
knows before it has any such word: the firmware's map, where the kernel image and the initramfs lie,
the NUMA nodes, all from a boot of the same guest without `crashkernel=`.

Compared are, to the byte: the kernel's messages about `crashkernel=` and CMA with their levels, in
order; the "Crash kernel" ranges of /proc/iomem; the ranges of /sys/kernel/kexec/crash_cma_ranges (of
the log where there is no such file); /sys/kernel/kexec_crash_size.

Written by `crashlend lab agree` (`make agree`), from docs/results/agree.json.

"""
_KNOWN = """
## Where they disagree

{table}
"""


def counts(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """Cases, those that agree, those with a known reason, those that fail, and what was compared."""
    return {
        "cases": len(verdicts),
        "agree": sum(v.agrees for v in verdicts),
        "known": sum(not v.agrees and not v.fails for v in verdicts),
        "fail": sum(v.fails for v in verdicts),
        "messages": sum(len(v.result.seen.messages) for v in verdicts),
        "ranges": sum(len(v.result.seen.reserved) + len(v.result.seen.cma) for v in verdicts),
    }


def markdown(kept: Kept, verdicts: Sequence[Verdict]) -> str:
    """The whole page."""
    parts = [_HEAD, _summary(kept, verdicts), "\n## By kernel\n\n", _kernels(kept, verdicts)]
    odd = [v for v in verdicts if not v.agrees or v.fails]
    if odd:
        parts.append(_KNOWN.format(table=_odd(odd)))
    parts += ["\n## Hosts\n\n", _hosts(kept), "\n## Cases\n"]
    parts += [_cases(kernel, verdicts) for kernel in _kernel_names(verdicts)]
    return "".join(parts)


def data(kept: Kept, verdicts: Sequence[Verdict], failed: Mapping[str, str]) -> dict[str, Any]:
    """The verdicts for programs. ``failed``: cases that could not be observed, and why."""
    return {
        "schema": SCHEMA,
        **counts(verdicts),
        "machine": dict(kept.machine),
        "unobserved": dict(failed),
        "verdicts": [
            {
                "case": v.result.name,
                "kernel": v.result.kernel,
                "words": v.result.words,
                "agrees": v.agrees,
                "fails": v.fails,
                "reason": v.reason,
                "differences": [d._asdict() for d in v.differences],
            }
            for v in verdicts
        ],
    }


def complaint(verdict: Verdict) -> str:
    """A failed case in words: what was predicted, what was seen."""
    if not verdict.differences:
        listed = ", ".join(verdict.listed)
        return f"{verdict.result.name}: agrees, but is listed as differing in {listed}"
    lines = [f"{verdict.result.name}: {verdict.result.words}"]
    for what, predicted, seen in verdict.differences:
        lines += [f"  {what}, predicted:", *(f"    {x}" for x in predicted.splitlines() or [""])]
        lines += [f"  {what}, seen:", *(f"    {x}" for x in seen.splitlines() or [""])]
    return "\n".join(lines)


def _summary(kept: Kept, verdicts: Sequence[Verdict]) -> str:
    found = counts(verdicts)
    kernels = len({v.result.kernel for v in verdicts})
    by_ranges = Counter(len(v.result.seen.cma) for v in verdicts)
    several = ", ".join(f"{by_ranges[n]} with {n}" for n in (2, 3, 4) if by_ranges[n])
    text = (
        f"**{found['agree']} of {found['cases']} cases are as predicted**, on {kernels} kernels and "
        f"{len({v.result.host for v in verdicts})} hosts: {found['messages']} messages and "
        f"{found['ranges']} ranges"
    )
    text += f", of `,cma` ranges {by_ranges[1]} cases with one, {several}" if several else ""
    text += f". {found['known']} differ for a known reason." if found["known"] else "."
    text += f" {found['fail']} FAIL." if found["fail"] else ""
    booted = {v.result.name for v in verdicts}
    others = sum(case.name not in booted for case in CASES)
    text += (
        f" The table has {others} more cases, which were not booted for this page."
        if others
        else ""
    )
    return f"{text} Emulator: {kept.machine.get('qemu', 'unknown')}.\n"


def _kernels(kept: Kept, verdicts: Sequence[Verdict]) -> str:
    rows = []
    for kernel in _kernel_names(verdicts):
        own = [v for v in verdicts if v.result.kernel == kernel]
        host = next(h for h in kept.hosts if h.kernel == kernel)
        cma = "yes" if host.config_cma else "no"
        found = counts(own)
        rows.append((kernel, host.release, cma, found["cases"], found["agree"], found["ranges"]))
    head = ("Kernel", "Release", "CONFIG_CMA", "Cases", "As predicted", "Ranges")
    return table(head, rows)


def _odd(verdicts: Iterable[Verdict]) -> str:
    rows = []
    for v in verdicts:
        what = "; ".join(
            f"{d.what}: predicted `{_line(d.predicted)}`, seen `{_line(d.seen)}`"
            for d in v.differences
        )
        reason = "**fails**" if v.fails else v.reason
        rows.append((v.result.name, what or "nothing, though it is listed", reason))
    return table(("Case", "What", "Reason"), rows)


def _hosts(kept: Kept) -> str:
    rows = []
    used = {host.host for host in kept.hosts}
    for host in HOSTS.values():
        if host.name not in used:
            continue
        guest = host.guest
        shape = [guest.firmware.upper(), guest.machine]
        shape += [f"{guest.cpus} CPUs"] if guest.cpus > 1 else []
        shape += [f"{guest.nodes} nodes"] if guest.nodes > 1 else []
        words = f"`{host.words}`" if host.words else ""
        rows.append((host.name, mib(host.memory_bytes), ", ".join(shape), words))
    return table(("Host", "Memory", "Shape", "Words on every line"), rows)


def _cases(kernel: str, verdicts: Sequence[Verdict]) -> str:
    rows = []
    for v in verdicts:
        if v.result.kernel != kernel:
            continue
        seen = v.result.seen
        mark = "yes" if v.agrees else "**no**"
        rows.append(
            (
                v.result.host,
                f"`{_line(v.result.words)}`",
                v.result.shows,
                _places(seen.reserved),
                _places(seen.cma),
                len(seen.messages),
                mark,
            )
        )
    head = ("Host", "Words", "What for", "Crash kernel", ",cma", "Messages", "As predicted")
    return f"\n### {kernel}\n\n" + table(head, rows)


def _places(ranges: Iterable[tuple[int, int]]) -> str:
    return "; ".join(f"{_size(end - start)} at {start:#x}" for start, end in ranges) or "–"


def _size(size: int) -> str:
    return mib(size) if size % MIB == 0 else f"{size} bytes"


def _kernel_names(verdicts: Iterable[Verdict]) -> list[str]:
    names = {v.result.kernel for v in verdicts}
    return sorted(names, key=number_first)


def _line(text: str) -> str:
    """One line for a cell: what a table or a reader would take amiss is written out."""
    joined = " / ".join(text.splitlines()) or "none"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in joined)
