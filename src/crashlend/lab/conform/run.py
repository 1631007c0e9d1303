# SPDX-License-Identifier: LGPL-2.1-or-later
"""Boots a kernel's guests and judges what they told: the data of a conformance report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crashlend.lab.conform.boots import BOOTS, FEATURES
from crashlend.lab.conform.checks import CHECKS
from crashlend.lab.conform.syscalls import kexec_load_program
from crashlend.lab.conform.verdicts import ABSENT, DEVIATES, Result, Seen
from crashlend.lab.observe import ObserveError, observe
from crashlend.lab.packages import Say, silent

if TYPE_CHECKING:
    from pathlib import Path

    from crashlend.lab.conform.boots import Boot
    from crashlend.lab.conform.verdicts import Check
    from crashlend.lab.kernels import Kernel
    from crashlend.lab.observation import Observation

PROGRAMS = {"/bin/kexec-load": kexec_load_program()}


def conform(kernel: Kernel, *, say: Say = silent, keep: Path | None = None) -> dict[str, Any]:
    """Boot all guests that can tell something of this kernel, and judge; the report as JSON has it.

    A guest that dies is what its checks then say. CrashlendError where the first one does, or QEMU
    can't be run.
    """
    seen: dict[str, Observation] = {}
    lost: dict[str, str] = {}
    repeats: dict[str, str] = {}
    for boot in BOOTS:
        if seen and Seen(seen).feature < boot.needs:
            continue
        say(f"{kernel.name}: {boot.words}")
        try:
            seen[boot.name] = _observe_twice(kernel, boot, say, keep, repeats)
        except ObserveError as error:
            if not seen:
                raise
            say(str(error))
            lost[boot.name] = _short(error)
    return report(kernel, Seen(seen), lost, repeats)


def _observe_twice(
    kernel: Kernel, boot: Boot, say: Say, keep: Path | None, repeats: dict[str, str]
) -> Observation:
    """A guest that dies once says little: under emulation on a busy machine the timer check may fail.

    But one that dies half of the time does, too: ``repeats`` takes the reason, for the report.
    """
    try:
        return _observe(kernel, boot, say, keep)
    except ObserveError as error:
        say(f"{error}; once more")
        repeats[boot.name] = _short(error)
        return _observe(kernel, boot, say, keep)


def _short(error: ObserveError) -> str:
    return error.why.split(";")[0]


def _observe(kernel: Kernel, boot: Boot, say: Say, keep: Path | None) -> Observation:
    return observe(
        kernel,
        boot.words,
        boot.memory_bytes,
        commands=boot.commands,
        guest_files=PROGRAMS if boot.commands else None,
        keep=keep / boot.name if keep else None,
        say=say,
    )


def report(
    kernel: Kernel, seen: Seen, lost: dict[str, str], repeats: dict[str, str] | None = None
) -> dict[str, Any]:
    """The checks' results; ``lost`` says of which boots nothing was heard, and why.

    ``repeats`` says of which boots the first try was not heard of, and why.
    """
    checks = []
    for check in CHECKS:
        result = _judge(check, seen, lost)
        checks.append(
            {
                "check": check.name,
                "promise": check.promise,
                "source": check.source,
                "tried": [
                    boot.words
                    for boot in BOOTS
                    if boot.name in check.boots and check.applies(seen.feature)
                ],
                **result._asdict(),
                "good": result.good,
            }
        )
    return {
        "schema": 1,
        # one's own kernel is named by a path, which is nobody's business elsewhere
        "kernel": kernel.release if "/" in kernel.name else kernel.name,
        "release": kernel.release,
        "version": kernel.version,
        "feature": FEATURES[seen.feature],
        "boots": len(seen.boots) + len(lost),
        "repeats": [
            {"words": boot.words, "why": repeats[boot.name]}
            for boot in BOOTS
            if repeats and boot.name in repeats
        ],
        "good": all(check["good"] for check in checks),
        "checks": checks,
    }


def _judge(check: Check, seen: Seen, lost: dict[str, str]) -> Result:
    if not check.applies(seen.feature):
        return Result(f"the kernel {FEATURES[seen.feature]}", ABSENT)
    died = [lost[name] for name in check.boots if name in lost]
    return Result(died[0], DEVIATES) if died else check.judge(seen)
