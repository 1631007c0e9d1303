# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether the guest was the host that the trial asked for: as its kernel saw it.

Without this a trial of a shape proves nothing when the shape does not come about.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from crashlend.config import Settings
from crashlend.lab.firmware import SECURE, UEFI
from crashlend.lab.spec import Check
from crashlend.ranges import Ranges
from crashlend.sizes import MIB, mib, parse_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crashlend.lab.kernels import Kernel
    from crashlend.lab.qemu import Report
    from crashlend.lab.spec import Spec

# the device in slot 0 of bus 0
HOST_BRIDGES = {"0x1237": "pc", "0x29c0": "q35"}


def shape(report: Report) -> dict[str, Any]:
    """What the guest said of itself: firmware, machine, CPUs, nodes; None where it said nothing."""
    booted = report.find("booted")
    efi = booted.get("efi")
    return {
        "firmware": None if efi is None else "uefi" if efi else "bios",
        "machine": HOST_BRIDGES.get(booted.get("host_bridge", "")),
        "cpus": booted.get("cpus"),
        "nodes": len(booted["nodes"]) if booted else None,
        "crash_ranges": len(booted["crash_ranges"]) if booted else None,
        "block_bytes": booted.get("block_bytes"),
        "five_level": booted.get("la57"),
        "secure": _secure(booted.get("secure") or {}),
    }


def _secure(told: dict[str, Any]) -> bool | None:
    """Whether firmware's variable, the kernel's log and lockdown all speak of Secure Boot."""
    if not told:
        return None
    enabled = "enabled" in (told.get("kernel") or "")
    locked = "[integrity]" in (told.get("lockdown") or "")
    return told.get("variable") == 1 and enabled and locked


def asked_shape(spec: Spec) -> dict[str, Any]:
    """The shape that a trial's words must bring about; only what they determine."""
    asked: dict[str, Any] = {
        "firmware": UEFI if spec.firmware == SECURE else spec.firmware,
        "machine": spec.machine,
        "cpus": spec.cpus,
        "nodes": spec.nodes,
    }
    if spec.firmware == SECURE:
        asked["secure"] = True
    if ",high" in spec.cmdline:  # the kernel adds a range below 4 GiB by itself
        asked["crash_ranges"] = 2
    if spec.block_bytes is not None:
        asked["block_bytes"] = spec.block_bytes
    if spec.accel == "tcg":  # what "max" and "host" have under KVM is the processor's business
        model, *features = spec.cpu_model.split(",")
        able = model == "max" and not {"la57=off", "-la57"} & set(features)
        able = able and _knows_five_levels(spec.kernel)
        asked["five_level"] = able and "no5lvl" not in spec.cmdline.split()
    return asked


def _knows_five_levels(kernel: Kernel) -> bool:
    """Whether the kernel can use LA57: an option that Debian 11 left out, and later kernels lack."""
    if kernel.config is None:
        return True
    return "# CONFIG_X86_5LEVEL is not set" not in kernel.config.read_text().splitlines()


def check_shape(spec: Spec, report: Report, plan: dict[str, Any]) -> Iterator[Check]:
    """The guest is of the shape asked for."""
    if not report.find("booted"):
        return  # that it never got so far is another check's fact
    found, asked = shape(report), asked_shape(spec)
    odd = {name: found[name] for name in asked if found[name] != asked[name]}
    words = f"{found['firmware']}, {found['machine']}, CPUs {found['cpus']}, nodes {found['nodes']}"
    words += f", blocks of {mib(found['block_bytes'] or 0)}"
    words += ", 5-level paging" if found["five_level"] else ""
    words += ", Secure Boot" if found["secure"] else ""
    if odd:
        words += "; asked for: " + ", ".join(f"{name} {asked[name]}" for name in odd)
    yield Check("the guest is of the shape asked for", not odd, words)
    yield from _acpi(report)
    yield from _low_range_stays(report)
    yield from _rounded(report, plan)
    yield from _end_of_memory(spec, plan)
    yield from _shares(spec, report, plan)


def _acpi(report: Report) -> Iterator[Check]:
    """The crash kernel has ACPI as production has it: under UEFI it must be told where it begins."""
    seen = report.find("crash_kernel")
    if not report.find("booted").get("acpi") or not seen:
        return
    there = seen.get("acpi") is True
    yield Check(
        "crash kernel found ACPI", there, "its tables are in sysfs" if there else "it has no tables"
    )


def _low_range_stays(report: Report) -> Iterator[Check]:
    """Of two reserved ranges the low one is where and as large as it was, shrunk or not."""
    before = report.find("booted")["crash_ranges"]
    after = report.find("loaded").get("crash_ranges")
    if len(before) < 2 or after is None:
        return
    yield Check(
        "the low part of the reservation is as it was",
        len(after) == len(before) and after[0] == before[0],
        f"{Ranges(tuple(r) for r in before)!r} before, {Ranges(tuple(r) for r in after)!r} after",
    )


def _rounded(report: Report, plan: dict[str, Any]) -> Iterator[Check]:
    """Movable memory is lent in whole blocks; where that is more than was asked for, it is said."""
    block, asked = report.find("booted")["block_bytes"], plan.get("offer", {}).get("asked_bytes", 0)
    if plan.get("lender") != "movable" or not asked % block:
        return
    lent = sum(end - start for start, end in plan["lent"])
    told = [note for note in plan["notes"] if "rounded up" in note]
    yield Check(
        "the request is rounded up to whole blocks, and the plan says so",
        bool(told) and lent % block == 0,
        f"{mib(asked)} asked for, {mib(lent)} lent; {told[0] if told else 'the plan says nothing'}",
    )


def _end_of_memory(spec: Spec, plan: dict[str, Any]) -> Iterator[Check]:
    """With ``mem=`` production's RAM ends there, to the byte."""
    match = re.search(r"(?:^|\s)mem=(\d+[KMG]?)(?:\s|$)", spec.cmdline)
    if not match or not plan:
        return
    end, wanted = max(end for _, end in plan["system_ram"]), parse_size(match.group(1))
    yield Check(
        "production's memory ends where it was told to",
        end == wanted,
        f"at {end:#x}, {end % (128 * MIB):#x} bytes after a boundary of 128 MiB",
    )


def _shares(spec: Spec, report: Report, plan: dict[str, Any]) -> Iterator[Check]:
    """No node lent more than its share, and each keeps memory that the kernel can use."""
    nodes = report.find("loaded").get("nodes", {})
    if spec.nodes < 2 or plan.get("lender") != "movable" or not nodes:
        return
    size = report.find("booted")["block_bytes"]
    share = Settings().lend_share
    lent = {n: blocks.get("Movable", 0) for n, (_, blocks) in nodes.items()}
    own = {n: sum(blocks.values()) - lent[n] for n, (_, blocks) in nodes.items()}
    fair = all(lent[n] * size * 100 <= total * share for n, (total, _) in nodes.items())
    yield Check(
        "no node lends more than its share",
        fair and any(lent.values()) and all(own.values()),
        f"at most {share} %: "
        + ", ".join(f"node {n} {mib(lent[n] * size)} of {mib(nodes[n][0])}" for n in sorted(nodes)),
    )
