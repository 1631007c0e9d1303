# SPDX-License-Identifier: LGPL-2.1-or-later
"""What must hold after a trial. Each check states a fact that could be false."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crashlend.crashkernel.grammar import lent_request
from crashlend.dumps.directory import lent_of
from crashlend.lab.crashes import NONE, find_crash
from crashlend.lab.fault_checks import check_crash, check_faults
from crashlend.lab.holes import check_holes, holes_of
from crashlend.lab.kills import check_kills
from crashlend.lab.late import check_late
from crashlend.lab.opener import opener
from crashlend.lab.shape import check_shape
from crashlend.lab.spec import Check
from crashlend.lab.watch import PRODUCTIONS_OWN, crash_kernel_lines, last_panic
from crashlend.lab.working import check_work
from crashlend.ranges import Ranges
from crashlend.sizes import mib, parse_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crashlend.lab.qemu import Report
    from crashlend.lab.spec import Saved, Spec

PAGE = 4096
MIB = 1 << 20
KERNEL_TEXT = 0xFFFFFFFF80000000
# How much of lent memory user space must have filled for the pattern to prove anything.
FILLED_SHARE = 0.75
# What MemTotal may lack of the RAM that the crash kernel was given. Its image and data, per-CPU
# areas and hash tables: 47 to 53 MiB on the suite's kernels, 5.10 to 7.3. A struct page (64 bytes)
# for each page of every memory section (128 MiB) that it touches. swiotlb's bounce buffer where
# there is RAM above 4 GiB.
KERNEL_BYTES = 72 * MIB
SECTION = 128 * MIB
PAGE_STRUCT = 64
# a panic in an interrupt has the backtraces of both stacks, out of memory a list of all tasks
LAST_LINES = 150
SWIOTLB_BYTES = 64 * MIB
# an exact reservation: the payload, and what the kernel and purgatory need besides
EXACT_FACTOR, EXACT_BYTES = 1.02, 7 * MIB // 10
LENDERS = {"cma", "movable-zone", "movable"}
OUT_OF_MEMORY = ("System is deadlocked on memory", "Out of memory", "page allocation failure")


def run_checks(spec: Spec, report: Report, plan: dict[str, Any], saved: Saved) -> list[Check]:
    """All checks that apply, in the order in which things happened."""
    if spec.loader != "crashlend":
        return [
            _commands(report),
            _came_up(report),
            _dump_saved(saved, report),
            _dump_opens(saved, spec),
        ]
    if spec.crash == NONE or spec.flips:
        return [
            _commands(report),
            *check_shape(spec, report, plan),
            _lent_as_asked(spec, plan),
            *_proven(spec, report, plan),
        ]
    return [*_checks(spec, report, plan, saved)]


def _checks(spec: Spec, report: Report, plan: dict[str, Any], saved: Saved) -> Iterator[Check]:
    yield _commands(report)
    yield from check_shape(spec, report, plan)
    lent = Ranges(tuple(r) for r in plan.get("lent", []))
    yield _lent_as_asked(spec, plan)
    yield from _bad_pages_left_out(report, lent)
    if spec.kill:
        yield from check_kills(spec, report)
    yield from _given_back(report)
    yield from _idempotent(report)
    yield from _proven(spec, report, plan)
    yield from _shrunk(spec, report, plan)
    yield from check_work(spec, report)
    yield from check_faults(spec, report, plan)
    if saved.vmcore is not None or saved.capture.get("dmesg", {}).get("bytes"):
        yield from check_crash(spec, saved)
    yield _came_up(report)
    yield from _between_the_kernels(report, plan, saved)
    grows = bool(spec.dimms or spec.spare_bytes)
    yield from _ram_as_planned(plan, report, saved, may_grow=grows)
    yield _dump_saved(saved, report)
    yield _dump_opens(saved, spec)
    yield from check_holes(saved, plan)
    if spec.allow_missing_user_data and not spec.capture_fault:  # which may cost the level
        yield _user_data_missing(spec, lent, saved)
    yield from check_late(spec, report)
    if not spec.scan:
        return
    scanned = report.find("scanned")
    loads = [h for h in scanned.get("pt_loads", []) if h[2] < KERNEL_TEXT]
    core = Ranges((start, end) for start, end, _ in loads)
    holes = holes_of(saved, plan)
    lent = lent_of(saved.holes) or lent
    if lent or not scanned:
        yield Check(
            "no PT_LOAD meets lent memory",
            bool(scanned) and not core.meets(lent),
            f"{mib((core & lent).size)} of {mib(lent.size)} are in /proc/vmcore"
            if scanned
            else "/proc/vmcore was not examined",
        )
    yield _all_covered(plan, core, holes, scanned)
    yield from _registers(spec, report, scanned)
    if spec.poison:
        yield from _poison(report, lent, scanned)


def _came_up(report: Report) -> Check:
    up = report.find("crash_kernel")
    return Check(
        "crash kernel came up",
        bool(up),
        f"{report.between('crashing', 'crash_kernel')} s after the panic"
        if up
        else "its init never ran" + (" (deadline)" if report.timed_out else ""),
    )


def _commands(report: Report) -> Check:
    commands = [e for e in report.events if e.get("event") == "command"]
    prepared = report.find("prepared")
    if prepared.get("exit"):
        return Check("crashlend did as asked", False, f"not prepared: {prepared['output'][-300:]}")
    programs = {c.get("program", "crashlend") for c in commands} - {"agent"}
    name = f"{' and '.join(sorted(programs)) or 'crashlend'} did as asked"
    bad = [c for c in commands if c["exit"] != c["expected"]]
    if bad:
        words = bad[0]["stderr"].strip()[-300:]
        detail = f"exit {bad[0]['exit']}, not {bad[0]['expected']}: {words}"
        return Check(name, False, detail)
    silent = [c for c in commands if c.get("says", "") not in c["stderr"]]
    if silent:
        return Check(name, False, f"no {silent[0]['says']!r} in: {silent[0]['stderr'][-300:]}")
    if not commands:
        return Check(name, False, "the guest never got that far")
    return Check(
        name,
        True,
        ", ".join(
            f"{c['argv'][0]} in {c['seconds']} s"
            + (f" (exit {c['exit']}, as it must)" if c["exit"] else "")
            for c in commands
        ),
    )


def asked_bytes(spec: Spec) -> int:
    """How much the trial's last load asks for: by the spec, not by what crashlend made of it."""
    if spec.lender == "none":
        return 0
    loads = [c.words for c in spec.commands if c.words[0] in ("load", "reload") and not c.exit]
    if loads and "--lend" in loads[-1]:
        return parse_size(loads[-1][loads[-1].index("--lend") + 1])
    return spec.lend_bytes if spec.lend_bytes is not None else lent_request(spec.cmdline.encode())


def _lent_as_asked(spec: Spec, plan: dict[str, Any]) -> Check:
    """What was asked for is lent; without this a trial that lends nothing passes all the rest."""
    name = "as much is lent as was asked for"
    if not plan:
        return Check(name, False, "nothing was loaded")
    asked, lender = asked_bytes(spec), plan.get("lender")
    lent = Ranges(tuple(r) for r in plan.get("lent", [])).size
    if not asked:
        ok = lender == "none" and not lent
        return Check("nothing is lent", ok, f"{mib(lent)}, lender {lender}; nothing was asked for")
    least = asked if spec.least_lent_bytes is None else spec.least_lent_bytes
    understood = plan["offer"]["asked_bytes"]
    detail = f"{mib(lent)} of {mib(asked)}, lender {lender}"
    if understood != asked:
        detail += f"; crashlend thought that {mib(understood)} were asked for"
    elif least != asked:
        detail += f"; {mib(least)} will do here"
    lenders = set(str(lender).split(","))
    return Check(
        name,
        lenders <= LENDERS
        and (spec.lender == "auto" or lenders <= set(spec.lender.split(",")))
        and understood == asked
        and lent >= least > 0,
        detail,
    )


def _bad_pages_left_out(report: Report, lent: Ranges) -> Iterator[Check]:
    """No page that the trial's preparation made bad is lent, and no block of one went offline."""
    addresses = [
        int(found, 16)
        for found in re.findall(
            r"(?m)^poisoned (0x[0-9a-f]+)$", report.find("prepared").get("output", "")
        )
    ]
    if not addresses:
        return
    inside = sum(address in lent for address in addresses)
    load = next((e for e in report.events if e.get("event") == "command"), {})
    before, after = report.find("booted").get("blocks", {}), load.get("blocks", {})
    same = after.get("Movable", 0) >= before.get("Movable", 0) and "offline" not in after
    yield Check(
        "bad pages are not lent and their blocks stay",
        not inside and same,
        f"{inside} of {len(addresses)} are lent; blocks {after}, before {before}",
    )


def _given_back(report: Report) -> Iterator[Check]:
    """After ``unload`` production has every block as before, and all of its memory."""
    before = report.find("booted")
    for event in report.events:
        if event.get("event") == "command" and event["argv"][0] == "unload":
            same = event["blocks"].get("Movable", 0) == before["blocks"].get("Movable", 0)
            whole = "offline" not in event["blocks"] and event["mem_total"] >= before["mem_total"]
            yield Check(
                "unload gave all memory back",
                same and whole,
                f"blocks {event['blocks']}, before {before['blocks']}; "
                f"MemTotal {mib(event['mem_total'])}, before {mib(before['mem_total'])}",
            )


def _idempotent(report: Report) -> Iterator[Check]:
    """The same load again changes nothing, and the image is found in memory as it was loaded."""
    commands = [e for e in report.events if e.get("event") == "command" and e["exit"] == 0]
    for first, second in zip(commands, commands[1:]):
        if first["argv"] == second["argv"] and first["argv"][0] == "load":
            already = (second["answer"] or {}).get("already")
            yield Check("loading again changes nothing", already is True, f"already: {already}")
    for event in commands:
        if event["argv"][0] == "status":
            seen = (event["answer"] or {}).get("verified_in_memory")
            yield Check(
                "status finds the loaded image in memory", seen is True, f"verified: {seen}"
            )


def _proven(spec: Spec, report: Report, plan: dict[str, Any]) -> Iterator[Check]:
    """The kernel took the image in exactly the bytes that the plan required, by its own judgement."""
    answer = next(
        (
            e["answer"]
            for e in reversed(report.events)
            if e.get("event") == "command"
            and isinstance(e.get("answer"), dict)
            and "already" in e["answer"]
            and not e["answer"]["already"]
        ),
        None,
    )
    if answer is not None and plan.get("layout"):
        pages = plan["layout"].get("control_pages")
        yield Check(
            "the kernel took it in the bytes that were planned",
            answer.get("proven") is True,
            f"{pages} pages for its own use; proven: {answer.get('proven')}",
        )
    if not spec.probe:
        return
    probed = report.find("probed")
    planned, real = probed.get("control_pages"), probed.get("kernel_control_pages")
    yield Check(
        "and in no page less",
        bool(probed) and planned == real,
        f"planned {planned} pages for the kernel's own use, the least it took was {real}; "
        f"{probed['required_bytes']} bytes in all"
        if probed
        else "the kernel was not asked",
    )


def _shrunk(spec: Spec, report: Report, plan: dict[str, Any]) -> Iterator[Check]:
    """Production's MemTotal has grown by what the reservation lost, and the image still fits."""
    if spec.reserve == "keep":
        return
    load = next((e for e in report.events if e.get("event") == "command"), {})
    freed = (load.get("answer") or {}).get("freed_bytes", 0)
    gained = load.get("mem_total", 0) - report.find("booted").get("mem_total", 0)
    costs = plan.get("costs", {})
    yield Check(
        "the reservation shrank and production has the rest",
        freed > 0 and gained >= freed * 0.98,
        f"{mib(freed)} freed, MemTotal grew by {mib(gained)}; {mib(costs.get('taken_bytes') or 0)} "
        f"stay, {mib(costs.get('required_bytes') or 0)} required",
    )
    if spec.reserve == "exact":
        segments = (plan.get("layout") or {}).get("segments", [])
        payload = sum(s["stored_bytes"] for s in segments if s["name"] in ("kernel", "initramfs"))
        stays, most = costs.get("taken_bytes") or 0, payload * EXACT_FACTOR + EXACT_BYTES
        yield Check(
            "what stays reserved is little more than the payload",
            0 < payload <= stays <= most,
            f"{mib(stays)} for a payload of {mib(payload)}, {mib(int(most))} at most",
        )


def _between_the_kernels(report: Report, plan: dict[str, Any], saved: Saved) -> Iterator[Check]:
    """Purgatory waited as long as planned, verified the image, and the capture has its record."""
    if not plan.get("layout"):
        return
    planned = (plan.get("quiesce") or {}).get("wait_seconds") or 0
    took = report.between("crashing", "crash_kernel")
    if planned and took is not None:
        yield Check("purgatory waited for DMA", took >= planned, f"{took} s, {planned:g} s planned")
    if not saved.capture:
        return
    record = saved.capture.get("purgatory") or {}
    steps = {step.get("step"): step for step in record.get("steps", [])}
    wait, verify = steps.get("wait", {}).get("ms", 0), steps.get("verify", {})
    copied = plan["layout"].get("placement") != "lent" or steps.get("copy", {}).get("bad") == 0
    yield Check(
        "purgatory found the image whole and left its record",
        verify.get("bad") == 0 and wait >= planned * 1000 and copied,
        ", ".join(f"{name} {step.get('ms')} ms" for name, step in steps.items()) or "no record",
    )


def _ram_as_planned(
    plan: dict[str, Any], report: Report, saved: Saved, *, may_grow: bool
) -> Iterator[Check]:
    """The map that the crash kernel was handed, what it made of it, and what was left to use.

    The first is the loader's work, to the byte (/sys/firmware/memmap). Only the second is the crash
    kernel's own account: RAM that came by another way (ACPI, a driver) is in its /proc/iomem alone.
    """
    lent = Ranges(tuple(r) for r in plan.get("lent", []))
    handed = Ranges(tuple(r) for r in saved.capture.get("crash_kernel", {}).get("ram_ranges", []))
    layout = plan.get("layout")
    if layout is None:
        # kexec_file_load: the kernel made the map; lent memory must be in it, nothing foreign
        reservation = Ranges(tuple(r) for r in plan.get("reservation", []))
        allowed = lent | reservation | Ranges([(0, MIB)])
        planned = handed
        odd = handed - allowed
    else:
        planned = Ranges(
            (e["start"], e["end"]) for e in layout["memory_map"] if e["kind"] == "System RAM"
        )
        odd = (handed - planned) | (planned - handed)
    name = "crash kernel's RAM is as planned"
    if not handed:
        yield Check(name, False, "the capture reported no memory map")
    else:
        yield Check(
            name,
            not odd and handed.covers(lent),
            f"{mib(handed.size)} in {len(handed)} ranges, "
            f"of them {mib((handed & lent).size)} of {mib(lent.size)} lent"
            + (f"; not as planned: {odd!r}" if odd else ""),
        )
    yield from _ram_taken_over(planned, report, may_grow)


def _ram_taken_over(planned: Ranges, report: Report, may_grow: bool) -> Iterator[Check]:
    """/proc/iomem and MemTotal of the crash kernel, as the lab's hook saw them.

    ``may_grow``: ACPI says that memory may be plugged in above 4 GiB; the kernel sets bounce buffers
    aside for it, even without any (max_possible_pfn in pci_swiotlb_detect(), arch/x86).
    """
    seen = report.find("crash_kernel_memory")
    low = Ranges([(0, MIB)])  # the kernel keeps parts of it from itself
    own = (Ranges(tuple(r) for r in seen.get("ram", [])) - low).align_inwards(PAGE)
    wanted = (planned - low).align_inwards(PAGE)
    odd = (own - wanted) | (wanted - own)
    name = "crash kernel took that RAM over and no other"
    if not own:
        yield Check(name, False, "the lab's hook reported nothing")
        return
    yield Check(
        name,
        bool(wanted) and not odd,
        f"{mib(own.size)} above 1 MiB in its /proc/iomem" + (f"; odd: {odd!r}" if odd else ""),
    )
    total = seen.get("mem_total", 0)
    kept = planned.size - total
    bound = KERNEL_BYTES + planned.align_outwards(SECTION).size // PAGE * PAGE_STRUCT
    if planned and (may_grow or planned[-1].end > 4 << 30):
        bound += SWIOTLB_BYTES
    yield Check(
        "crash kernel can use that RAM",
        total > 0 and 0 <= kept <= bound,
        f"MemTotal {mib(total)}; the kernel and its tables have {mib(kept)} ({mib(bound)} at most)",
    )


def _dump_saved(saved: Saved, report: Report) -> Check:
    """A final name, and what the capture says of itself."""
    capture = saved.capture
    good = bool(saved.vmcore) and capture.get("ok") is True
    if good and saved.vmcore:
        size = saved.vmcore.stat().st_size
        seconds = report.between("crashing", "saved")
        return Check("dump saved", True, f"{mib(size)} in {seconds} s from the panic")
    return Check("dump saved", False, capture.get("reason") or "nothing was left on the disk")


def _dump_opens(saved: Saved, spec: Spec) -> Check:
    """Makedumpfile, which did not write this file here, finds the panic in the dump's own log."""
    name = "dump opens and its log ends in the panic"
    if saved.vmcore is None:
        return Check(name, False, "there is no dump")
    words = (saved.capture.get("makedumpfile") or {}).get("args", [])
    with tempfile.TemporaryDirectory(prefix="crashlend-") as directory:
        scratch = Path(directory) / "guest"
        scratch.mkdir()
        command = opener(words, spec.kernel, scratch)
        if not command:
            return Check(name, False, "makedumpfile is not installed here")
        out = Path(directory) / "dmesg"
        done = subprocess.run(
            [*command, "--dump-dmesg", str(saved.vmcore), str(out)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0 or not out.exists():
            return Check(
                name, False, f"makedumpfile: {(done.stderr or done.stdout).strip()[-200:]}"
            )
        tail = out.read_text(errors="replace").splitlines()[-LAST_LINES:]
    crash = find_crash(spec.crash)
    panic = [line for line in tail if crash is not None and crash.kind.words in line]
    last = panic[-1].strip() if panic else f"not in its last {LAST_LINES} lines"
    return Check(name, bool(panic), last)


def _user_data_missing(spec: Spec, lent: Ranges, saved: Saved) -> Check:
    """The dump is of the level that was asked for, and who reads it is told what it lacks."""
    capture = saved.capture
    level, told = capture.get("dump_level"), capture.get("allow_missing_user_data")
    missing = Ranges(tuple(r) for r in capture.get("lent", {}).get("ranges", []))
    return Check(
        "capture.json tells that user data is missing",
        level == spec.dump_level and told is True and missing == lent and bool(lent),
        f"level {level}, allow_missing_user_data {told}, {mib(missing.size)} lent",
    )


def _all_covered(
    plan: dict[str, Any], core: Ranges, holes: Ranges, scanned: dict[str, Any]
) -> Check:
    """All System RAM is in /proc/vmcore but what holes.json tells: first MiB, reservation, lent."""
    name = "all other System RAM is in /proc/vmcore"
    if not scanned:
        return Check(name, False, "/proc/vmcore was not examined")
    ram = Ranges(tuple(r) for r in plan.get("system_ram", []))
    expected = (ram - holes).align_inwards(PAGE)
    missing = expected - core
    return Check(
        name,
        bool(expected) and not missing,
        f"{mib(expected.size)} expected, {mib(missing.size)} missing",
    )


def _registers(spec: Spec, report: Report, scanned: dict[str, Any]) -> Iterator[Check]:
    """Each CPU that was online has left its registers, and no other CPU has."""
    online, notes = report.find("loaded").get("cpus_online"), scanned.get("register_notes")
    if online is None or not spec.crash.startswith("sysrq"):
        return  # a CPU that hears no NMI can't save them
    yield Check(
        "the registers of every CPU are in /proc/vmcore",
        notes is not None and notes == online,
        f"{notes} notes of registers, {online} CPUs online",
    )


def _poison(report: Report, lent: Ranges, scanned: dict[str, Any]) -> Iterator[Check]:
    """Production's pattern from lent memory is nowhere, the one from elsewhere is all there."""
    filled = report.find("poisoned")
    inside, outside = filled.get("in_lent_pages", 0), filled.get("elsewhere_pages", 0)
    if lent:
        share = inside * PAGE / lent.size
        yield Check(
            "production used lent memory until the crash",
            share >= FILLED_SHARE,
            f"{mib(inside * PAGE)} of {mib(lent.size)} held production's data ({share:.0%})",
        )
        yield Check(
            "nothing of lent memory is in /proc/vmcore",
            bool(scanned) and scanned["in_lent_pages"] == 0,
            f"{scanned.get('in_lent_pages', 'unknown')} of {inside} marked pages found",
        )
    found = scanned.get("elsewhere_pages", 0)
    yield Check(
        "everything else is in /proc/vmcore",
        # a page that moved after it was marked leaves a copy behind in a free frame
        outside > 0 and found >= outside,
        f"{found if scanned else 'unknown'} marked pages found, {outside} were in use at the end",
    )


def death_by_memory(console: str, silent: str = "", own: str = PRODUCTIONS_OWN) -> str:
    """The crash kernel's last words where it died for lack of memory; empty otherwise.

    Its last panic; or, where it went ``silent`` (says why it is thought dead) without one, the last
    line that tells of the lack.

    The one place where the lab reads the console. Results come over the second serial port, but
    a crash kernel that dies before its init can't report there, and its silence proves nothing: it
    may never have been started. The console holds both kernels one after the other, so what
    counts stands after production's own panic, ``own``.
    """
    lines = crash_kernel_lines(console + "\n", own) or []
    lacks = [line for line in lines if any(words in line for words in OUT_OF_MEMORY)]
    if not lacks:
        return ""
    return last_panic(lines) or (f"{silent} after: {lacks[-1]}" if silent else "")
