# SPDX-License-Identifier: LGPL-2.1-or-later
"""The checks of a conformance run. Pure: what the guests told goes in, verdicts come out."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from crashlend.lab.conform.boots import (
    BUILT,
    CMA_BYTES,
    FEATURES,
    HIGH_BYTES,
    KNOWN,
    LOW_BYTES,
    MAIN_BYTES,
    UNKNOWN,
)
from crashlend.lab.conform.border import judge_border
from crashlend.lab.conform.told import lender_says
from crashlend.lab.conform.verdicts import (
    ABSENT,
    DEVIATES,
    UNSUPPORTED,
    Check,
    Result,
    Seen,
    conforms,
    made,
    said,
)
from crashlend.lenders.activation import activation
from crashlend.lenders.asked import find_in_request
from crashlend.ranges import Ranges
from crashlend.sizes import MIB, mib

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


DOC = "Documentation/admin-guide/kernel-parameters.txt"
RESERVE = "kernel/crash_reserve.c"
EADDRNOTAVAIL = 99


def _understood(all_of: Seen) -> Result:
    first = all_of.boots["first"]
    got, main = _total(made(first)), first.crash_ranges.size
    seen = f"{FEATURES[all_of.feature]}: {mib(main)} reserved, {mib(got)} of CMA"
    if all_of.feature == BUILT:
        log = said(first, "crashkernel CMA reserved: 192 MB in 1 ranges")
        return conforms(got == CMA_BYTES and main == MAIN_BYTES and bool(log), seen)
    # what no kernel may do: let the word cost the reservation
    return Result(seen, ABSENT if main == MAIN_BYTES else DEVIATES)


def _order(all_of: Seen) -> Result:
    last = all_of.boots["last"]
    main, got = last.crash_ranges.size, _total(made(last))
    seen = f"{mib(main)} reserved, {mib(got)} of CMA"
    if all_of.feature == UNKNOWN:
        words = said(last, "crashkernel: unrecognized char: ,")
        seen = f"{seen}; the log: {words[0] if words else 'nothing'}"
        return Result(seen, ABSENT if not main and words else DEVIATES)
    return conforms(main == MAIN_BYTES and got == _total(made(all_of.boots["first"])), seen)


def _alone(all_of: Seen) -> Result:
    alone = all_of.boots["alone"]
    words = said(alone, "crashkernel")
    seen = (
        f"{mib(alone.crash_ranges.size)} reserved, {mib(_total(made(alone)))} of CMA; "
        f"the log: {words[0] if words else 'nothing'}"
    )
    nothing = not alone.crash_ranges and not made(alone)
    return conforms(nothing and (all_of.feature == UNKNOWN or not words), seen)


def _unsupported(all_of: Seen) -> Result:
    words = said(all_of.boots["first"], UNSUPPORTED)
    return conforms(bool(words), words[0] if words else "no message")


def _iomem(all_of: Seen) -> Result:
    first = all_of.boots["first"]
    cma = Ranges(made(first))
    meeting = [r for r in first.iomem if cma.meets(Ranges([(r.start, r.end)]))]
    names = sorted({r.name for r in meeting})
    total = first.meminfo.get("CmaTotal", 0)
    seen = f"{', '.join(names)} over the range; CmaTotal {mib(total)}"
    return conforms(names == ["System RAM"] and total >= CMA_BYTES, seen)


def _sysfs_one(all_of: Seen) -> Result:
    evidence = all_of.facts("first").cma_evidence
    pages = evidence.area_pages if evidence else None
    if pages is None:
        return Result("no /sys/kernel/mm/cma/crashkernel/total_pages", ABSENT)
    return conforms(pages * 4096 == CMA_BYTES, f"total_pages {pages}")


def _lends(all_of: Seen) -> Result:
    facts = all_of.facts("first")
    lent, why = lender_says(facts)
    state = activation(facts)
    seen = f"lent: {mib(lent)}; {why or 'no refusal'}; shown not to be CMA: {mib(state.lost.size)}"
    return conforms(lent == CMA_BYTES and not state.lost and not state.unproven, seen)


def _misread(boot: str, got_bytes: int, message: str) -> Check:
    """Defect C: one bad word, what the kernel takes for it, and its warning."""

    def judge(all_of: Seen) -> Result:
        guest = all_of.boots[boot]
        got, words = _total(made(guest)), said(guest, message)
        seen = f"{mib(got)} of CMA; the log: {words[0] if words else 'nothing'}"
        if not got:  # refused, as its own return value says; the main word must not suffer
            main = guest.crash_ranges.size
            return conforms(main == MAIN_BYTES, f"{mib(main)} reserved, {seen}")
        copes = [str(f) for f in find_in_request(all_of.facts(boot)) if "is read as" in f.what]
        known = got == got_bytes and bool(words) and guest.crash_ranges.size == MAIN_BYTES
        return Result(seen, "defect C" if known else DEVIATES, copes[0] if copes else "")

    return Check(
        f"bad word ({boot})",
        "a ,cma word that parse_crashkernel_suffix() refuses (-EINVAL) asks for nothing",
        f"{RESERVE}: parse_crashkernel() ignores the error and keeps the size",
        (boot,),
        judge,
        BUILT,
    )


def _partial(all_of: Seen) -> Result:
    guest = all_of.boots["overask"]
    got, count = _total(made(guest)), len(made(guest))
    words = said(guest, "crashkernel CMA reservation failed")
    left = guest.meminfo.get("MemAvailable", 0)
    seen = (
        f"{mib(got)} in {count} ranges, {mib(left)} available to production; "
        f"the log: {words[0] if words else 'nothing'}"
    )
    told = f"{got // MIB} MB reserved in {count} ranges"
    kept = 0 < got < 16 << 30 and 1 <= count <= 4 and bool(words) and told in words[0]
    reported = [f for f in find_in_request(all_of.facts("overask")) if f.less]
    if not reported:
        return Result(f"{seen}; crashlend does not report it", DEVIATES)
    return conforms(kept, seen)


def _several(all_of: Seen) -> Result:
    """Defect A: sysfs loses its tree beside two ranges or more."""
    guest = all_of.boots["overask"]
    facts = all_of.facts("overask")
    evidence, count = facts.cma_evidence, len(made(guest))
    alone = all_of.facts("first").cma_evidence
    if alone is None or not alone.sysfs:
        return Result("no /sys/kernel/mm/cma with one range either", ABSENT)
    there = evidence is not None and evidence.sysfs
    errors = [t for t in guest.messages if "cannot create duplicate filename" in t]
    seen = f"{count} ranges: the tree is {'there' if there else 'missing'}" + (
        f"; the log: {errors[0]}" if errors else ""
    )
    if there or count < 2:
        return conforms(count >= 2, seen)
    copes = [str(f) for f in find_in_request(facts) if "/sys/kernel/mm/cma" in f.what]
    return Result(seen, "defect A", copes[0] if copes else "")


def _shrink(all_of: Seen) -> Result:
    steps = list(_states(all_of.boots["first"].answers["shrink"].text))
    sizes = [(size, ranges.size) for _, size, ranges in steps]
    seen = ", ".join(f"{mib(size)} ({mib(total)} in iomem)" for size, total in sizes)
    wanted = [MAIN_BYTES, MAIN_BYTES // 2, 0]
    return conforms(sizes == [(size, size) for size in wanted], seen)


def _shrink_cma(all_of: Seen) -> Result:
    text = all_of.boots["first"].answers["shrink"].text
    found = re.findall(r"(?m)^([0-9a-f]{8,})-([0-9a-f]{8,})$", text)
    after = Ranges((int(a, 16), int(b, 16) + 1) for a, b in found)
    total = re.search(r"CmaTotal: +(\d+) kB", text)
    kept = int(total.group(1)) * 1024 if total else 0
    listed = all_of.boots["first"].cma_ranges is not None
    seen = f"after size 0: {mib(after.size)} listed, CmaTotal {mib(kept)}"
    same = after == Ranges(made(all_of.boots["first"])) or not listed
    return conforms(same and kept >= CMA_BYTES, seen)


def _shrink_high(all_of: Seen) -> Result:
    guest = all_of.boots["high"]
    steps = list(_states(guest.answers["shrink"].text))
    if len(steps) != 3 or len(steps[0][2]) != 2:
        return Result(f"{mib(guest.crash_ranges.size)} reserved, not in two parts", DEVIATES)
    (_, start, _), (_, after, second), (_, end, third) = steps
    seen = "; ".join(f"size {mib(s)}: {', '.join(map(str, r)) or 'none'}" for _, s, r in steps)
    step = 32 * MIB
    if start == HIGH_BYTES:  # the main part alone: up to 6.12 at least
        first_good = (after, second.size) == (HIGH_BYTES - step, HIGH_BYTES - step + LOW_BYTES)
        last_good = (end, third.size) == (48 * MIB, 48 * MIB + LOW_BYTES)
        seen = f"the main part alone counts; {seen}"
    else:
        whole = HIGH_BYTES + LOW_BYTES
        first_good = start == whole and (after, second.size) == (whole - step, whole - step)
        # the main part goes first: what stays are 48 MiB of the low one
        last_good = (end, third.size) == (48 * MIB, 48 * MIB) and third[-1].end <= 1 << 32
        seen = f"both parts count; {seen}"
    return conforms(first_good and last_good, seen)


def _kexec_load(all_of: Seen) -> Result:
    answer = all_of.boots["first"].answers["kexec"].text
    codes = dict(re.findall(r"(?m)^([a-z-]+) (\d+)$", answer))
    names = ("inside", "unload", "segment-outside", "entry-outside", "loaded")
    seen = ", ".join(f"{name} {codes.get(name, '?')}" for name in names)
    address = int(codes.get("segment", 0))
    cma = Ranges(made(all_of.boots["first"]))
    if cma:
        seen += f"; {address:#x} is {'in' if address in cma else 'not in'} the ,cma range"
    expected = ["0", "0", str(EADDRNOTAVAIL), str(EADDRNOTAVAIL), "0"]
    got = [codes.get(name) for name in names]
    return conforms(got == expected and (not cma or address in cma), seen)


def _offline(all_of: Seen) -> Result:
    answer = all_of.boots["first"].answers["offline"]
    found = re.search(r"(?m)^(memory\d+) (\d+) (\w+)$", answer.text)
    if not found:
        return _unanswered(all_of)
    seen = f"{found[1]}: exit {found[2]}, {found[3]}"
    return conforms(found[2] != "0" and found[3] == "online", seen)


def _hotplug(all_of: Seen) -> Result:
    answer = all_of.boots["first"].answers["offline"]
    files = dict(
        re.findall(r"(?m)^(\S*(?:crash_hotplug|crash_elfcorehdr_size)):(\d+)$", answer.text)
    )
    if not files or answer.exit:
        return _unanswered(all_of)
    seen = ", ".join(f"{name.rsplit('/', 2)[-1]} {value}" for name, value in files.items())
    return conforms(len(files) == 3, seen)


def _unanswered(all_of: Seen) -> Result:
    """The script needs the list of ranges; where there is one, that it told nothing is a failure."""
    first = all_of.boots["first"]
    if first.cma_ranges is None:
        return Result("not looked at: no list of ranges", ABSENT)
    answer = first.answers["offline"]
    told = " ".join(answer.text.split()) or "nothing"
    return Result(f"the script ended with {answer.exit} and told: {told}", DEVIATES)


CHECKS = (
    Check(
        "understood",
        "`crashkernel=SIZE,cma` beside a main word reserves both",
        DOC,
        ("first",),
        _understood,
    ),
    Check(
        "order",
        "from 6.17 on each kind's last word counts, whatever their order; before, a `,cma` word at "
        "the end costs the reservation",
        f"{RESERVE}: get_last_crashkernel()",
        ("last",),
        _order,
    ),
    Check(
        "alone",
        "`,cma` without a main word reserves nothing; from 6.17 on without a message",
        f"{RESERVE}: parse_crashkernel()",
        ("alone",),
        _alone,
    ),
    Check(
        "not built in",
        "without CONFIG_CMA the kernel says that the reservation is not supported",
        f"{RESERVE}: reserve_crashkernel_cma()",
        ("first",),
        _unsupported,
        KNOWN,
        only=True,
    ),
    Check(
        "memory map",
        "the range is plain System RAM in /proc/iomem and counted in CmaTotal",
        "arch/x86/kernel/setup.c; mm/cma.c",
        ("first",),
        _iomem,
        BUILT,
    ),
    Check(
        "one area in sysfs",
        "/sys/kernel/mm/cma/crashkernel tells its size (CONFIG_CMA_SYSFS)",
        "Documentation/ABI/testing/sysfs-kernel-mm-cma",
        ("first",),
        _sysfs_one,
        BUILT,
    ),
    Check(
        "crashlend lends it",
        "crashlend's plan lends the range, and nothing shows that it is not CMA",
        "lenders/activation.py",
        ("first",),
        _lends,
        BUILT,
    ),
    _misread("ranges", CMA_BYTES, "crashkernel: unrecognized char: -"),
    _misread("offset", 128 * MIB, "crashkernel: unrecognized char: @"),
    _misread("foo", 128 * MIB, "crashkernel: unrecognized char: f"),
    Check(
        "partial",
        "what can't be had is halved, up to 4 ranges; what was had is kept, and the log tells it",
        f"{RESERVE}: reserve_crashkernel_cma()",
        ("overask",),
        _partial,
        BUILT,
    ),
    Check(
        "several areas in sysfs",
        "each CMA area has its directory in /sys/kernel/mm/cma",
        "Documentation/ABI/testing/sysfs-kernel-mm-cma; mm/cma_sysfs.c",
        ("overask", "first"),
        _several,
        BUILT,
    ),
    Check(
        "border of a zone",
        "what crash_cma_ranges lists is memory for movable pages alone",
        f"{DOC}; mm/cma.c: cma_activate_area()",
        ("border",),
        judge_border,
        BUILT,
    ),
    Check(
        "shrinking",
        "a smaller number in kexec_crash_size frees the rest; /proc/iomem agrees",
        "Documentation/ABI/testing/sysfs-kernel-kexec; kernel/kexec_core.c: crash_shrink_memory()",
        ("first",),
        _shrink,
    ),
    Check(
        "shrinking leaves CMA",
        "the ,cma ranges stay, whatever is written to kexec_crash_size",
        "kernel/kexec_core.c: crash_shrink_memory()",
        ("first",),
        _shrink_cma,
        BUILT,
    ),
    Check(
        "shrinking two parts",
        "kexec_crash_size and /proc/iomem agree after each step (a fault until 00fbff75c5ac)",
        "kernel/kexec_core.c: __crash_shrink_memory()",
        ("high",),
        _shrink_high,
    ),
    Check(
        "kexec_load",
        "a segment or an entry outside of the reservation, in a ,cma range too, is refused with "
        "EADDRNOTAVAIL (99)",
        "kernel/kexec_core.c: sanity_check_segment_list()",
        ("first",),
        _kexec_load,
    ),
    Check(
        "offline",
        "a memory block with such pages does not go offline",
        "mm/page_isolation.c: has_unmovable_pages()",
        ("first",),
        _offline,
        BUILT,
    ),
    Check(
        "hotplug",
        "crash_hotplug and crash_elfcorehdr_size are there: the kernel can renew its own core header "
        "(1 once it does so)",
        "Documentation/ABI/testing/sysfs-devices-memory, sysfs-kernel-kexec",
        ("first",),
        _hotplug,
        BUILT,
    ),
)


def _total(ranges: Iterable[tuple[int, int]]) -> int:
    return Ranges(ranges).size


def _states(text: str) -> Iterator[tuple[str, int, Ranges]]:
    """The lines ``NAME|SIZE|RESOURCES`` of a shrink."""
    for name, size, resources in re.findall(r"(?m)^(\w+)\|(\d+)\|(.*)$", text):
        pairs = re.findall(r"([0-9a-f]+)-([0-9a-f]+) : Crash kernel", resources)
        yield name, int(size), Ranges((int(a, 16), int(b, 16) + 1) for a, b in pairs)
