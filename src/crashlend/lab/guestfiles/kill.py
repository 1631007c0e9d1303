# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs in the production guest: kills crashlend at every step, and judges what comes after.

Each victim dies by SIGKILL before its first step, then after each (after one step and before the
next one the host is the same), until one survives: so no step is left out. Then ``load``, ``unload``
or ``status`` follows, and the kernel's own files tell whether all is right. After a step that changed
the host each of the three follows, with a kill for each; after one that touched a temporary file or
only opened one, one of them in turn. The calls that take long are killed inside, too, ever later
until one outlives it. Python 3.9.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any, Callable, NamedTuple

from victims import Deadly, remembered, run_verb, verb_here

from crashlend.cli.main import VERBS
from crashlend.formats.bootparams import E820_RAM, SIZE, parse_e820
from crashlend.formats.procfs import parse_iomem
from crashlend.hostfiles import TreeFiles
from crashlend.ranges import Ranges
from crashlend.system import image
from crashlend.system.physical import read_physical

BLOCKS = Path("/sys/devices/system/memory")
RUN = Path("/run/crashlend")
STATE = RUN / "state.json"
MIB = 1 << 20
FAILURES_SHOWN = 20
FOLLOWING = ("load", "unload", "status")
# steps after which the host is as before but for a temporary file or an open one
PASSING = ("open ", "write /run/", "write /var/lib/crashlend/", "fsync ")
# How late kills come inside a long call, until it outlives one. A timer that is due at once may still
# come too late for a short call on a host that is busy: then it is tried again, up to so many times.
LATE_SECONDS = [0.0, *(0.001 * 2**n for n in range(14))]
TRIES = 5
# what a shrink leaves beside what is stored: less each time, for it is for good
MARGIN_KIB, MARGIN_STEP_KIB = 70 << 10, 128


class Host:
    """The running host as its own files show it now."""

    def __init__(self) -> None:
        self.block_bytes = int((BLOCKS / "block_size_bytes").read_text(), 16)
        self.offline: list[int] = []
        self.movable: list[int] = []
        for place in BLOCKS.glob("memory[0-9]*"):
            index = int(place.name[len("memory") :])
            if (place / "state").read_text().strip() != "online":
                self.offline.append(index)
            elif (place / "valid_zones").read_text().split()[:1] == ["Movable"]:
                self.movable.append(index)
        self.offline.sort()
        self.movable.sort()
        self.loaded = Path("/sys/kernel/kexec_crash_loaded").read_text().strip() == "1"
        info = Path("/proc/meminfo").read_text()
        self.mem_total = int(re.findall(r"MemTotal: +(\d+) kB", info)[0]) * 1024
        self.state: dict[str, Any] = json.loads(STATE.read_text()) if STATE.exists() else {}
        self.known = sorted(map(int, self.state.get("blocks", {})))
        self.record: dict[str, Any] = self.state.get("loaded") or {}
        names = os.listdir(RUN) if RUN.exists() else []
        self.leftovers = sorted(set(names) - {"lock", "state.json"})

    def image_blocks(self) -> list[int] | None:
        """The memory blocks that the loaded image takes for its own; None: not our image.

        From the boot_params that lie in the reservation, as /proc/kcore shows it.
        """
        marker = self.record.get("marker")
        files = TreeFiles(Path("/"))
        if not self.loaded or not marker or not image.is_in_memory(marker):
            return None
        page = read_physical(files, marker["start"], SIZE)
        ram = Ranges((e.start, e.end) for e in parse_e820(page) if e.type == E820_RAM)
        iomem = parse_iomem(files.read("/proc/iomem"))
        own = Ranges((r.start, r.end) for r in iomem if r.name == "Crash kernel")
        lent = ram - own - Ranges([(0, MIB)])
        size = self.block_bytes
        return [i for r in lent for i in range(r.start // size, -(-r.end // size))]

    def as_seen(self) -> tuple[Any, ...]:
        """All that a reading verb must leave as it is."""
        return (self.offline, self.movable, self.loaded, self.mem_total, self.state)


# --- what must hold ------------------------------------------------------------------------------


def why_not_safe(host: Host) -> list[str]:
    """What is wrong at the moment of the kill: nobody could put it right, or a panic would be lost."""
    wrong = []
    lost = sorted({*host.offline, *host.movable} - set(host.known))
    if lost:
        wrong.append(f"not in the state file: blocks {lost}")
    unsafe = sorted(set(host.image_blocks() or []) - set(host.movable))
    if unsafe:
        wrong.append(f"the image counts on blocks {unsafe}, which are production's")
    return wrong


def why_not_sound(host: Host, answer: dict[str, Any]) -> list[str]:
    """What is wrong whatever was run: lost memory, unknown movable memory, a traceback."""
    wrong = []
    if "traceback" in answer:
        wrong.append(f"traceback: {answer['traceback']}")
    if host.offline:
        wrong.append(f"offline: blocks {host.offline}")
    if host.movable != host.known:
        wrong.append(f"movable: blocks {host.movable}, by the state file {host.known}")
    return wrong


def why_not_loaded(answer: dict[str, Any], host: Host, asked_bytes: int) -> list[str]:
    """What is wrong after a ``load``."""
    wrong = why_not_sound(host, answer)
    if answer.get("exit") != 0:
        return [*wrong, f"exit {answer.get('exit')}: {answer.get('err', '')[-300:]}"]
    used = host.image_blocks()
    if not host.loaded or host.record.get("step") != "loaded" or used is None:
        wrong.append(f"loaded {host.loaded}, record {host.record.get('step')}, in memory {used}")
    if used != host.movable:
        wrong.append(f"the image in memory has blocks {used}, movable are {host.movable}")
    if len(host.movable) * host.block_bytes != asked_bytes:
        wrong.append(f"lent: {len(host.movable)} blocks, not {asked_bytes >> 20} MiB")
    if host.leftovers:
        wrong.append(f"left over: {host.leftovers}")
    return wrong


def why_not_unloaded(answer: dict[str, Any], host: Host, at_boot: Host) -> list[str]:
    """What is wrong after an ``unload``: production must have all that it had at boot."""
    wrong = why_not_sound(host, answer)
    if answer.get("exit") != 0:
        wrong.append(f"exit {answer.get('exit')}: {answer.get('err', '')[-300:]}")
    if host.loaded or host.movable != at_boot.movable or host.record:
        wrong.append(f"loaded {host.loaded}, movable {host.movable}, record {bool(host.record)}")
    if host.mem_total < at_boot.mem_total:
        wrong.append(f"MemTotal {host.mem_total}, at boot {at_boot.mem_total}")
    if host.leftovers:
        wrong.append(f"left over: {host.leftovers}")
    return wrong


def why_not_told(answer: dict[str, Any], before: Host, host: Host) -> list[str]:
    """What is wrong after a ``status``: it brings back what is offline and tells the truth."""
    wrong = why_not_sound(host, answer)
    if answer.get("exit") != (0 if host.loaded else 3) or host.loaded != before.loaded:
        wrong.append(f"exit {answer.get('exit')}, loaded {host.loaded}, before {before.loaded}")
        return wrong
    told = json.loads(answer["out"])
    if told["loaded"] != host.loaded or told["recovered"] != before.offline:
        wrong.append(f"told {told}, offline were {before.offline}")
    steps = {block["step"] for block in before.state.get("blocks", {}).values()}
    if not steps & {"taking", "returning"} and before.as_seen() != host.as_seen():
        wrong.append("it changed the host")
    if not set(before.movable) <= set(host.movable) or len(host.leftovers) > 1:
        wrong.append(f"movable {before.movable} → {host.movable}, left over {host.leftovers}")
    used = host.image_blocks() if host.record.get("step") == "loaded" else None
    idle = not host.loaded and not host.record and not host.movable
    if bool(told["problems"]) == (idle or (used is not None and used == host.movable)):
        wrong.append(f"problems {told['problems']}, image {used}, movable {host.movable}")
    if told["by_crashlend"] != (used is not None):
        wrong.append(f"by_crashlend {told['by_crashlend']}, image {used}")
    return wrong


# --- scenarios -----------------------------------------------------------------------------------


class Scenario(NamedTuple):
    """What runs before the victim, its words, and what else must be done right before it."""

    name: str
    before: list[list[str]]
    victim: Callable[[], list[str]]
    begin: Callable[[], list[str]] = list
    exit: int = 0  # of the victim that survives


class Killer:
    """Kills one victim after the other on this host, and keeps account of one scenario."""

    def __init__(self, load: list[str]) -> None:
        self.load = load  # words of a load, without how much
        self.at_boot = Host()
        self.block_bytes = self.at_boot.block_bytes
        self.points: list[str] = []
        self.failures: list[dict[str, Any]] = []
        self.missed: list[str] = []
        self.wrong: list[str] = []
        self.kills = 0

    def load_words(self, blocks: int) -> list[str]:
        return ["load", *self.load, "--lend", f"{blocks * self.block_bytes >> 20}M"]

    def clean(self, *, unloaded: bool = False) -> list[str]:
        """Unload if that is not done, and forget everything as after a boot; what went wrong."""
        wrong = []
        if not unloaded:
            answer = run_verb(["unload", "--json"])
            wrong = why_not_unloaded(answer, Host(), self.at_boot)
        shutil.rmtree(RUN, ignore_errors=True)
        return [f"clean: {line}" for line in wrong]

    def follow(self, verb: str) -> list[str]:
        """Run what comes after the kill and judge it."""
        before = Host()
        if verb == "load":
            answer = run_verb(self.load_words(2))
            return why_not_loaded(answer, Host(), 2 * self.block_bytes)
        answer = run_verb([verb, "--json"])
        if verb == "unload":
            return why_not_unloaded(answer, Host(), self.at_boot)
        return why_not_told(answer, before, Host())

    def kill(self, scenario: Scenario, deadly: Deadly, verb: str) -> dict[str, Any]:
        """Run the victim from a clean host; if it dies run ``verb``, judge, and clean up.

        Returns the victim's answer.
        """
        answer: dict[str, Any]
        for words in scenario.before:
            answer = run_verb(words)
            if answer.get("exit") != 0:
                self.wrong.append(f"before: {answer}"[-600:])
        self.wrong += scenario.begin()
        answer = run_verb(scenario.victim(), deadly)
        if "killed" in answer:
            self.kills += 1
            self.wrong += [*why_not_safe(Host()), *self.follow(verb)]
        elif answer.get("exit") != scenario.exit or "traceback" in answer:
            self.wrong.append(f"it was not killed: {answer}"[-900:])
        unloaded = "killed" in answer and verb == "unload" and not self.wrong
        self.wrong += self.clean(unloaded=unloaded)
        if self.wrong:
            after = answer.get("killed", "the end")
            self.failures.append({"after": after, "then": verb, "not": self.wrong})
            sys.stderr.write(f"{scenario.name}: {self.failures[-1]}\n")
            self.wrong = []
        return answer

    def at_every_step(self, scenario: Scenario) -> None:
        """Kill it after each of its steps until it survives."""
        while True:
            step = len(self.points)
            turn = step % len(FOLLOWING)
            for verb in (*FOLLOWING[turn:], *FOLLOWING[:turn]):
                answer = self.kill(scenario, Deadly(step), verb)
                if "killed" not in answer:
                    self.missed += answer.get("missed", [])
                    return
                if answer["killed"].startswith(PASSING):
                    break
            self.points.append(answer["killed"])

    def inside_long_calls(self, scenario: Scenario) -> None:
        """Kill it inside each of its long calls, later each time until the call outlives it."""
        call, calls = 1, 1
        while call <= calls:
            for late, seconds in enumerate([0.0] * (TRIES - 1) + LATE_SECONDS):
                verb = FOLLOWING[self.kills % len(FOLLOWING)]
                answer = self.kill(scenario, Deadly(call=call, seconds=seconds), verb)
                if "killed" not in answer:
                    calls = answer.get("calls", 0)
                    if late >= TRIES - 1:
                        break
                else:
                    self.points.append(answer["killed"])
            else:
                wrong = [f"long call {call} outlived no kill"]
                self.failures.append({"after": "the end", "then": "", "not": wrong})
            call += 1

    def enumerate(self, scenario: Scenario, how: Callable[[Scenario], None]) -> None:
        """Do all kills of a scenario and report them."""
        began = time.monotonic()
        self.points, self.failures, self.missed, self.kills = [], [], [], 0
        self.wrong = self.clean()
        how(scenario)
        report(
            "killed",
            scenario=scenario.name,
            points=self.points,
            kills=self.kills,
            failed=len(self.failures),
            failures=self.failures[:FAILURES_SHOWN],
            missed=self.missed,
            seconds=round(time.monotonic() - began, 1),
        )


def report(event: str, **values: object) -> None:
    """Send one event to the lab."""
    with open("/dev/ttyS1", "w", encoding="ascii") as port:
        port.write(json.dumps({"event": event, **values}) + "\n")


def run(names: list[str], load: list[str]) -> None:
    """Run the scenarios of these names. ``load`` is the words of a load, without how much."""
    for verb in VERBS:
        if verb != "lab":
            import_module(f"crashlend.cli.{verb}_verb")
    # under emulation this takes longer than all else, and the same bytes come again and again
    hashlib.sha256 = remembered(hashlib.sha256)
    killer = Killer(load)
    one, two, three = (killer.load_words(n) for n in (1, 2, 3))
    for words in (one, three, two, ["unload", "--json"]):
        verb_here(words)  # not in a fork: warm, and all forks after it
    margins = (f"{kib}K" for kib in range(MARGIN_KIB, 0, -MARGIN_STEP_KIB))
    offline_at = [0]

    def half_taken() -> list[str]:
        """Kill a load when its first block is offline; what went wrong."""
        for step in range(offline_at[0], 40):
            answer = run_verb(two, Deadly(step))
            if answer.get("killed", "").startswith("write offline"):
                offline_at[0] = step
                return [] if Host().offline else ["no block is offline"]
            killer.clean()
        return ["no load got as far as a block that is offline"]

    unload, status = ["unload", "--json"], ["status", "--json"]
    scenarios = (
        Scenario("load", [], lambda: two),
        Scenario("load more", [one], lambda: two),
        Scenario("load less", [three], lambda: one),
        Scenario("reload", [two], lambda: ["reload", *two[1:]]),
        Scenario("unload", [two], lambda: unload),
        Scenario("status", [], lambda: status, half_taken, exit=3),
        Scenario("shrink", [], lambda: [*two, "--shrink", "--shrink-margin", next(margins)]),
        Scenario("inside load", [], lambda: one),
        Scenario("inside unload", [one], lambda: unload),
    )
    for scenario in scenarios:
        inside = scenario.name.startswith("inside")
        if scenario.name in names:
            killer.enumerate(scenario, killer.inside_long_calls if inside else killer.at_every_step)


if __name__ == "__main__":
    job = json.loads(Path("/lab/job.json").read_text())
    run(job["kill"], job["kill_load"])
