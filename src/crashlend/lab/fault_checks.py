# SPDX-License-Identifier: LGPL-2.1-or-later
"""What must hold after a fault, beside what holds after every trial (checks.py)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from crashlend.lab.crashes import find_crash
from crashlend.lab.spec import Check
from crashlend.ranges import Ranges
from crashlend.sizes import mib

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crashlend.lab.outcome import Outcome
    from crashlend.lab.qemu import Report
    from crashlend.lab.spec import Saved, Spec

HOGS = "/lab/hogs.py"


def check_faults(spec: Spec, report: Report, plan: dict[str, Any]) -> Iterator[Check]:
    """Of production, before the crash: what was lost, and whether each hog was what it claims."""
    if spec.whole:
        yield _whole(report)
    for event in _commands(report):
        if event.get("fault", "").startswith("E"):
            name = event["fault"]
            yield Check(f"the kernel answered {name}", name in event["stderr"], _said(event))
        if event["argv"][0] == HOGS and isinstance(event.get("answer"), dict):
            yield from _hog(event["argv"][1], event["answer"], report, plan)


def check_crash(spec: Spec, saved: Saved) -> Iterator[Check]:
    """The kernel died on the CPU and in the context that was asked for, as its own log says."""
    crash = find_crash(spec.crash)
    if crash is None:
        return
    if crash.cpu is not None:
        yield Check(
            f"CPU {crash.cpu} panicked",
            bool(re.search(rf"CPU: {crash.cpu} (UID: \d+ )?PID:", saved.dmesg)),
            next((ln for ln in saved.dmesg.splitlines() if " PID: " in ln), "no backtrace")[-90:],
        )
    if crash.kind.seen:
        found = re.search(f".*(?:{crash.kind.seen}).*", saved.dmesg)
        yield Check(
            f"it died here: {crash.kind.what}",
            found is not None,
            found.group()[-120:].strip() if found else f"no {crash.kind.seen!r} in the log",
        )


def why_not_back(outcome: Outcome, words: str) -> str:
    """Why a machine without a dump did not come back by itself with the reason left; empty: it did.

    The reason is in capture.json where the crash kernel came that far, else on the console.
    """
    report, capture = outcome.report, outcome.capture
    for check in outcome.checks:
        if check.name == "crash kernel came up":
            break
        if not check.ok:
            return f"{check.name}: {check.detail}"
    if not report.find("crashing"):
        return "it never got as far as the crash"
    if report.find("failed"):
        return f"it did not crash: {report.find('failed').get('why')}"
    if report.timed_out or report.lost:
        return "it did not come back: " + (report.lost or "its deadline passed")
    if capture.get("ok"):
        return "it saved a dump"
    reason = capture.get("reason") or outcome.last_words
    if words not in reason:
        return f"no {words!r} in the reason that it left: {reason[-300:]!r}"
    return ""


def _commands(report: Report) -> list[dict[str, Any]]:
    return [event for event in report.events if event.get("event") == "command"]


def _said(event: dict[str, Any]) -> str:
    lines = event["stderr"].strip().splitlines()
    return next((line for line in lines if line.startswith("crashlend: ")), "nothing")[-200:]


def _whole(report: Report) -> Check:
    """Production lost no memory: at the end, and after each command that failed."""
    before, loaded = report.find("booted"), report.find("loaded")
    name = "production lost no memory"
    wrong = []
    for event in _commands(report):
        if event["exit"] == 0 or event["argv"][0] == HOGS:
            continue
        if event["mem_total"] < before["mem_total"] or "offline" in event["blocks"]:
            wrong.append(f"{event['argv'][0]} left {mib(event['mem_total'])}, {event['blocks']}")
    if not loaded:
        return Check(name, False, "it never got as far as the load")
    states: dict[str, int] = {}
    for _, blocks in loaded["nodes"].values():
        for state, count in blocks.items():
            states[state] = states.get(state, 0) + count
    ok = not wrong and loaded["mem_total"] >= before["mem_total"] and "offline" not in states
    detail = f"MemTotal {mib(loaded['mem_total'])}, before {mib(before['mem_total'])}; {states}"
    return Check(name, ok, "; ".join([detail, *wrong]))


def _hog(
    verb: str, answer: dict[str, Any], report: Report, plan: dict[str, Any]
) -> Iterator[Check]:
    lent = Ranges(tuple(r) for r in plan.get("lent", []))
    if verb == "pin":
        yield _pinned(answer, report, lent)
    elif verb == "register":
        before, after = answer["in_lent_before"], answer["in_lent_after"]
        yield Check(
            "what is pinned for good leaves lent memory first",
            before > 0 and after == 0,
            f"{before} of {answer['pages']} pages were in it, {after} are still",
        )
    elif verb == "huge":
        asked = re.search(r"(?m)^hugepages (\d+)$", report.find("prepared").get("output", ""))
        wanted = int(asked.group(1)) if asked else 0
        yield Check(
            "huge pages are all there, transparent ones and zswap are in use",
            answer["HugePages_Total"] == wanted > 0
            and answer["AnonHugePages"] > 0
            and answer["Zswapped"] > 0,
            f"{answer['HugePages_Total']} of {wanted} huge pages, {mib(answer['AnonHugePages'])} "
            f"transparent, {mib(answer['Zswapped'])} in zswap",
        )


def _pinned(answer: dict[str, Any], report: Report, lent: Ranges) -> Check:
    """Blocks with a page that does not migrate were tried, given up in time, and are not lent."""
    size = report.find("booted").get("block_bytes", 0)
    pinned = {*answer["pipe"], *answer["ring"]}
    refused = {
        row["block"]: row["reason"]
        for event in _commands(report)
        if event["argv"][0] == "load" and isinstance(event.get("answer"), dict)
        for row in event["answer"].get("refused", [])
    }
    gave_up = [b for b in pinned if "not emptied within" in refused.get(b, "")]
    inside = [b for b in pinned if lent.meets(Ranges([(b * size, (b + 1) * size)]))]
    kinds = [len(set(gave_up) & set(answer[how])) for how in ("pipe", "ring")]
    return Check(
        "blocks with pinned pages are given up in time and not lent",
        bool(answer["pipe"]) and bool(answer["ring"]) and bool(gave_up) and not inside,
        f"pinned by a pipe {answer['pipe']}, by a ring {answer['ring']}; given up {kinds[0]} and "
        f"{kinds[1]} of them; lent {inside}",
    )
