# SPDX-License-Identifier: LGPL-2.1-or-later
"""The ways in which the lab crashes a kernel: a table of kinds, and how each is triggered.

A kind is named as in ``lab trial --crash``; where it can be had on a CPU of one's choice,
``-cpuN`` may follow ("sysrq-cpu3", "irq-cpu1").
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crashlend.errors import UsageError
from crashlend.lab import watch
from crashlend.lab.triggers import MODULE

if TYPE_CHECKING:
    from collections.abc import Sequence

NONE = "none"
PANIC = f"{watch.PANIC}: "


@dataclass(frozen=True)
class Kind:
    """One way to crash a kernel.

    Attributes:
        name: in ``--crash``.
        what: where the kernel is when it dies, for people.
        words: what the crashed kernel's log has near its end then, and its console, too.
        seen: a pattern that is in that log only when the kernel died where it was to.
        script: for the guest's shell, which triggers it; ``{cpu}`` is the number of a CPU. Empty
            for sysrq, which the agent writes itself. ``{reload}`` are crashlend's words for it.
        host: what the host is asked to do for it, as words of a "host" command.
        module: whether it takes the lab's trigger module (see triggers.py).
        on_any_cpu: whether ``-cpuN`` may follow.

    """

    name: str
    what: str
    words: str
    seen: str = ""
    script: str = ""
    host: tuple[str, ...] = ()
    module: bool = False
    on_any_cpu: bool = False


def _insmod(context: str, crash: str) -> str:
    return f"insmod /lab/{MODULE} context={context} crash={crash} cpu={{cpu}}"


def _module(name: str, what: str, words: str, seen: str, script: str) -> Kind:
    return Kind(name, what, words, seen, script, module=True, on_any_cpu=True)


OWN_PANIC = f"{PANIC}crashlend_trigger"
IN = r"crashlend_trigger: \w+ on CPU \d+: "
OOPS = "echo 1 >/proc/sys/kernel/panic_on_oops; "
SYSRQ_KEYS = (
    '{"keys": [{"type": "qcode", "data": "alt"}, {"type": "qcode", "data": "sysrq"}, '
    '{"type": "qcode", "data": "c"}]}'
)

KINDS = (
    Kind(
        "sysrq",
        "a task writes c to /proc/sysrq-trigger",
        watch.PRODUCTIONS_OWN,
        on_any_cpu=True,
    ),
    Kind(
        "keyboard",
        "the interrupt of the keyboard: Alt-SysRq-c",
        watch.PRODUCTIONS_OWN,
        "<IRQ>",
        script="echo 1 >/proc/sys/kernel/sysrq",
        host=("qmp", "send-key", SYSRQ_KEYS),
    ),
    Kind(
        "nmi",
        "an NMI from outside, as a BMC sends it (unknown_nmi_panic)",
        f"{PANIC}NMI: Not continuing",
        "<NMI>",
        script="echo 1 >/proc/sys/kernel/unknown_nmi_panic",
        host=("qmp", "inject-nmi", "{}"),
    ),
    Kind(
        "oom",
        "memory runs out (panic_on_oom)",
        f"{PANIC}Out of memory: ",
        script="echo 1 >/proc/sys/vm/panic_on_oom; python3 /lab/hogs.py everything",
    ),
    _module("task", "panic() in a task", OWN_PANIC, IN + "task 1", _insmod("process", "panic")),
    _module(
        "irq",
        "panic() in a hardware interrupt",
        OWN_PANIC,
        IN + "task 0, interrupt 1",
        _insmod("irq", "panic"),
    ),
    _module(
        "softirq",
        "panic() in a softirq",
        OWN_PANIC,
        IN + "task 0, interrupt 0, softirq 1",
        _insmod("softirq", "panic"),
    ),
    _module(
        "nmi-handler",
        "panic() in the handler of an NMI",
        OWN_PANIC,
        IN + "task 0, .*NMI 1",
        _insmod("nmi", "panic"),
    ),
    _module(
        "oops",
        "a null pointer in a task (panic_on_oops)",
        "BUG: kernel NULL pointer dereference",
        IN + "task 1",
        OOPS + _insmod("process", "null"),
    ),
    _module(
        "oops-irq",
        "a null pointer in a hardware interrupt",
        "BUG: kernel NULL pointer dereference",
        IN + "task 0, interrupt 1",
        _insmod("irq", "null"),
    ),
    _module(
        "overflow",
        "the kernel's stack runs over: a double fault",
        "stack guard page was hit",
        r"RIP: \S+:overflow\+0x|<#DF>",
        OOPS + _insmod("process", "overflow"),
    ),
    _module(
        "lockup",
        "a CPU spins: the soft lockup watchdog panics",
        f"{PANIC}softlockup: hung tasks",
        "soft lockup - CPU#",
        "echo 1 >/proc/sys/kernel/softlockup_panic; echo 3 >/proc/sys/kernel/watchdog_thresh; "
        + _insmod("process", "spin"),
    ),
    Kind(
        "hang",
        "a task hangs: khungtaskd panics",
        f"{PANIC}hung_task: blocked tasks",
        "task crashlend_hang:",
        "echo 1 >/proc/sys/kernel/hung_task_panic; echo 3 >/proc/sys/kernel/hung_task_timeout_secs; "
        + f"insmod /lab/{MODULE} crash=hang",
        module=True,
    ),
    Kind(
        "in-lending",
        "a task, while a block is offline on its way to be lent",
        watch.PRODUCTIONS_OWN,
        script="python3 /lab/faulty.py in-lending {reload} --lend 512M",
    ),
    Kind(
        "before-load",
        "a task, while crashlend is about to replace the loaded image",
        watch.PRODUCTIONS_OWN,
        script="python3 /lab/faulty.py before-load {reload}",
    ),
    Kind(
        "in-load",
        "a task, while another one is inside kexec_load",
        watch.PRODUCTIONS_OWN,
        script="python3 /lab/faulty.py in-load {reload}",
    ),
)


@dataclass(frozen=True)
class Crash:
    """What a trial asks for: a kind, and on which CPU (None: whichever comes)."""

    kind: Kind
    cpu: int | None = None

    def job(self, reload_words: Sequence[str]) -> dict[str, object]:
        """What the guest's agent is told; ``reload_words`` are the trial's, for crashlend."""
        script = self.kind.script.replace("{cpu}", str(self.cpu or 0))
        script = script.replace("{reload}", shlex.join(reload_words))
        return {"cpu": self.cpu, "script": script, "host": list(self.kind.host)}


def find_crash(text: str) -> Crash | None:
    """The crash that ``text`` names; None for ``none``, which only loads.

    UsageError, with all kinds in its hint, when there is no such kind.
    """
    if text == NONE:
        return None
    name, _, number = text.rpartition("-cpu")
    by_name = {kind.name: kind for kind in KINDS}
    if text in by_name:
        return Crash(by_name[text])
    if name in by_name and by_name[name].on_any_cpu and re.fullmatch(r"[0-9]{1,4}", number):
        return Crash(by_name[name], int(number))
    anywhere = ", ".join(kind.name for kind in KINDS if kind.on_any_cpu)
    raise UsageError(
        f"no crash {text!r}",
        "the lab does not know this kind",
        hint=f"{', '.join(by_name)}, {NONE}; on a CPU of your choice (-cpuN): {anywhere}",
    )
