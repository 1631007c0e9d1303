# SPDX-License-Identifier: LGPL-2.1-or-later
"""The project's own trials by name: what each proves, and what must come out.

``make test`` runs those marked quick, ``make trial`` all. Documents name them, and a test fails
when a document names one that does not pass.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crashlend.errors import EXIT_FAILED, EXIT_NOT_LOADED, EXIT_REFUSED, UsageError
from crashlend.lab.kernels import fetch
from crashlend.lab.packages import Say, silent
from crashlend.lab.qemu import LostVmError
from crashlend.lab.spec import Command, Spec
from crashlend.lab.trial import Outcome, run_trial
from crashlend.sizes import GIB, MIB

if TYPE_CHECKING:
    from collections.abc import Mapping

SEED = "crashkernel=1G,cma crashkernel=100M"
# 16 MiB out of every 448: the largest free stretch is 432 MiB. KASLR does not mind all of these words
# and may put the kernel over a hole.
HOLES = "nokaslr " + " ".join(f"memmap=16M${448 * MIB * n:#x}" for n in range(1, 7))
LOST, REFUSED = "lost", "refused"


@dataclass(frozen=True)
class Trial:
    """One trial of the suite.

    ``expect`` is "" when every check must hold, ``lost`` when the dump must be lost because the
    crash kernel dies for lack of memory (a control), ``refused`` when crashlend itself must refuse
    with ``words`` in its message and ``exit`` as its exit code. ``lender`` and ``syscall`` are what
    must have been used, whatever the spec left to crashlend.
    """

    name: str
    proves: str
    kernel: str
    spec: Mapping[str, Any] = field(default_factory=dict)
    expect: str = ""
    words: str = ""
    exit: int = EXIT_REFUSED
    lender: str = "movable"
    syscall: str = "load"
    least_lent_ranges: int = 0
    quick: bool = True


SUITE = (
    Trial("movable-6.1", "the seed's line on a kernel without ,cma: 100M + 1G gives 1.1G", "6.1"),
    Trial(
        "small-6.1",
        "a reservation too small for a crash kernel saves a dump with lent memory",
        "6.1",
        {"cmdline": "crashkernel=1G,cma crashkernel=80M", "poison": False},
    ),
    Trial(
        "control-6.1",
        "the same reservation without lending loses its dump: OOM",
        "6.1",
        {"cmdline": "crashkernel=1G,cma crashkernel=80M", "lender": "none"},
        expect=LOST,
        lender="none",
    ),
    Trial(
        "none-6.1",
        "unload gives every block back, and nothing asked is nothing lent: as kexec -p",
        "6.1",
        {
            "cmdline": "crashkernel=100M",
            "commands": (
                Command(("load", "--lend", "1G", "--dump-level", "1"), exit=EXIT_REFUSED),
                Command(("load", "--lend", "1G")),
                Command(("load", "--lend", "1G")),
                Command(("status",)),
                Command(("load", "--lend", "512M")),
                Command(("unload",)),
                Command(("status",), exit=EXIT_NOT_LOADED),
                Command(("load",)),
            ),
        },
        lender="none",
    ),
    Trial("movable-6.12", "Debian 13's kernel and Python 3.13", "6.12"),
    Trial(
        "movable-5.10",
        "Debian 11's kernel and Python 3.9, which also builds the capture initramfs",
        "5.10",
        {"build_in_guest": True},
    ),
    Trial("cma-7.3-load", "the kernel's own ,cma ranges by kexec_load", "7.3", lender="cma"),
    Trial(
        "cma-7.3-file",
        "the kernel's own ,cma ranges by kexec_file_load",
        "7.3",
        {"syscall": "file"},
        lender="cma",
        syscall="file",
    ),
    Trial(
        "movable-7.3-dimms",
        "two DIMMs: the crash kernel takes only what was planned",
        "7.3",
        {
            "memory_bytes": 2 * GIB,
            "dimms": (GIB, GIB),
            "cmdline": "crashkernel=100M",
            "lend_bytes": 512 * MIB,
        },
    ),
    Trial(
        "fragmented-6.1",
        "fragmented physical memory: several smaller ranges are lent",
        "6.1",
        {"memory_bytes": 3 * GIB, "cmdline": f"{HOLES} {SEED}"},
        least_lent_ranges=3,
    ),
    Trial(
        "fragmented-512M-6.1",
        "on that memory crashkernel=512M reserves nothing",
        "6.1",
        {"memory_bytes": 3 * GIB, "cmdline": f"{HOLES} crashkernel=512M", "crash": "none"},
        expect=REFUSED,
        words="no memory is reserved for a crash kernel",
        exit=EXIT_FAILED,
    ),
    Trial(
        "four-cpus-6.1",
        "four CPUs, the last one panics",
        "6.1",
        {"cpus": 4, "crash": "sysrq-cpu3"},
    ),
    Trial(
        "tiny-6.1",
        "16M reserved: only stored bytes are in it, the kernel unpacks itself in lent memory",
        "6.1",
        {"cmdline": "crashkernel=1G,cma crashkernel=16M", "placement": "lent"},
        quick=False,
    ),
    Trial(
        "shrink-6.1",
        "a comfortable reservation shrinks to the payload and a margin; production has the rest",
        "6.1",
        {"cmdline": "crashkernel=1G,cma crashkernel=256M", "reserve": "auto"},
        quick=False,
    ),
    Trial(
        "shrink-exact-7.3",
        "the same to the page, on the kernel's own ,cma range",
        "7.3",
        {"cmdline": "crashkernel=1G,cma crashkernel=256M", "reserve": "exact"},
        lender="cma",
        quick=False,
    ),
    Trial(
        "tiny-cma-7.3",
        "the same in the kernel's own ,cma range",
        "7.3",
        {"cmdline": "crashkernel=1G,cma crashkernel=20M", "placement": "lent"},
        lender="cma",
        quick=False,
    ),
    Trial(
        "movable-7.3",
        "movable memory on a kernel that has ,cma but was not asked for it",
        "7.3",
        {"cmdline": "crashkernel=100M", "lend_bytes": GIB},
        quick=False,
    ),
    Trial(
        "movable-6.17", "a kernel that knows ,cma but was built without CMA", "6.17", quick=False
    ),
    Trial(
        "default-wait-6.1",
        "the product's default of 10 s for DMA",
        "6.1",
        {"dma_wait": 10.0, "poison": False},
        quick=False,
    ),
    Trial(
        "user-data-refused-6.1",
        "a dump level that wants user data is refused with lent memory",
        "6.1",
        {"dump_level": 1, "crash": "none"},
        expect=REFUSED,
        words="wants user data",
        quick=False,
    ),
    Trial(
        "user-data-allowed-6.1",
        "the same level where missing user data is allowed",
        "6.1",
        {
            "dump_level": 17,
            "allow_missing_user_data": True,
            "memory_bytes": 2 * GIB,
            "lend_bytes": 512 * MIB,
            "poison": False,
        },
        quick=False,
    ),
)


@dataclass(frozen=True)
class Verdict:
    """Whether a trial came out as it must, and if not why. ``result`` is its JSON."""

    name: str
    passed: bool
    why: str
    result: dict[str, Any]


def find(name: str) -> Trial:
    """The trial of that name; UsageError when there is none."""
    for trial in SUITE:
        if trial.name == name:
            return trial
    raise UsageError(
        f"no trial {name!r}", "not in the suite", hint=", ".join(t.name for t in SUITE)
    )


def run_named(
    name: str, *, results: Path | None = None, keep: Path | None = None, say: Say = silent
) -> Verdict:
    """Run one trial and judge it; write ``results``/NAME.json where that is given.

    A lost virtual machine is tried once more: it says nothing about the product.
    """
    trial = find(name)
    spec = Spec(kernel=fetch(trial.kernel, say), **trial.spec)
    try:
        outcome = run_trial(spec, keep=keep, say=say)
    except LostVmError as error:
        say(f"{name}: {error}; once more")
        outcome = run_trial(spec, keep=keep, say=say)
    why = judge(trial, outcome)
    verdict = Verdict(name, not why, why, outcome.to_json())
    if results is not None:
        results.mkdir(parents=True, exist_ok=True)
        body = {"schema": 1, "name": name, "proves": trial.proves, "passed": verdict.passed}
        text = json.dumps({**body, "why": why, "trial": verdict.result}, indent=1)
        (results / f"{name}.json").write_text(text + "\n")
    return verdict


def judge(trial: Trial, outcome: Outcome) -> str:
    """What is wrong with the outcome; empty when it is as it must be."""
    if trial.expect == REFUSED:
        return _why_not_refused(trial, outcome)
    used = (outcome.plan.get("lender"), outcome.plan.get("syscall"))
    if outcome.plan and used != (trial.lender, trial.syscall):
        return "lender {}, syscall {}".format(*used) + f", not {trial.lender}, {trial.syscall}"
    if trial.expect == LOST:
        return why_not_lost(outcome)
    failed = [f"{c.name}: {c.detail}" for c in outcome.checks if not c.ok]
    if failed:
        return "; ".join(failed)
    ranges = len(outcome.plan.get("lent", []))
    if ranges < trial.least_lent_ranges:
        return f"only {ranges} lent ranges, not {trial.least_lent_ranges}"
    return ""


def why_not_lost(outcome: Outcome) -> str:
    """Why a control is none; empty when its crash kernel died for lack of memory.

    A missing dump alone proves nothing: production may never have crashed, the deadline may have
    run out, the crash kernel may have died of something else or never have been started.
    """
    checks = {c.name: c for c in outcome.checks}
    for name in ("crashlend did as asked", "nothing is lent"):
        if name not in checks:
            return f"the control is none: not checked: {name}"
        if not checks[name].ok:
            return f"the control is none: {name}: {checks[name].detail}"
    if not outcome.report.find("crashing"):
        return "the control never got as far as the crash"
    if outcome.report.timed_out:
        return "the control ran into its deadline"
    survived = [n for n in ("crash kernel came up", "dump saved") if checks[n].ok]
    if survived:
        return f"the control did not lose its dump: {survived}"
    if not outcome.death_by_memory:
        return "nothing on the control's console says that its crash kernel ran out of memory"
    return ""


def _why_not_refused(trial: Trial, outcome: Outcome) -> str:
    commands = [e for e in outcome.report.events if e.get("event") == "command"]
    if not commands:
        return "not refused: the guest never got that far"
    last = commands[-1]
    if last["exit"] != trial.exit:
        return f"exit {last['exit']}, not {trial.exit}: {last['stderr'].strip()[-300:]}"
    if trial.words not in last["stderr"]:
        return f"refused in other words: {last['stderr'].strip()[-300:]}"
    return ""
