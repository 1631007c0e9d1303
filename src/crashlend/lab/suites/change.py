# SPDX-License-Identifier: LGPL-2.1-or-later
"""Trials of hosts that change after the load: memory and CPUs come and go, a new image is refused.

There is no udev in the guest: a few lines of Python do what the rule and the units in packaging/ do,
leave a file in /run/crashlend/events and start ``crashlend reload --event``.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from crashlend.errors import EXIT_FAILED
from crashlend.lab.spec import Command, Trial
from crashlend.sizes import MIB

if TYPE_CHECKING:
    from collections.abc import Mapping

SMALL = {
    "memory_bytes": 1536 * MIB,
    "cmdline": "crashkernel=160M",
    "lend_bytes": 256 * MIB,
    "timeout_seconds": 900.0,
    "poison": False,
}
# What the programs below share. ``status`` is what crashlend says; ``note`` is the rule's touch(1).
COMMON = """
import json, pathlib, subprocess, sys, time
BLOCKS = pathlib.Path("/sys/devices/system/memory")
SIZE = int((BLOCKS / "block_size_bytes").read_text(), 16)
EVENTS = pathlib.Path("/run/crashlend/events")
def status():
    done = subprocess.run([sys.executable, "-m", "crashlend", "status", "--json"],
                          stdout=subprocess.PIPE, check=False)
    return json.loads(done.stdout)
def note(event):
    EVENTS.mkdir(exist_ok=True)
    (EVENTS / event).touch()
def wait_for(path):
    for _ in range(600):
        if path.exists():
            return
        time.sleep(0.1)
    raise SystemExit(f"{path} did not come within a minute")
def lent_blocks():
    ranges = status()["lent"]["ranges"]
    return [i for start, end in ranges for i in range(start // SIZE, end // SIZE)]
"""
BLOCK_LEAVES = """
block = lent_blocks()[0]
(BLOCKS / f"memory{block}/state").write_text("offline")
pathlib.Path("/run/left").write_text(str(block))
told = [p for p in status()["problems"] if f"block {block} " in p]
assert len(told) == 1 and "crashlend reload now" in told[0], told
note(f"offline:memory{block}")
"""
BLOCK_HAS_LEFT = """
block = int(pathlib.Path("/run/left").read_text())
now = status()
assert now["loaded"] and now["by_crashlend"] and not now["problems"], now
assert len(lent_blocks()) == 2 and block not in lent_blocks(), now
assert (BLOCKS / f"memory{block}/state").read_text().strip() == "offline"
assert not list(EVENTS.iterdir())
"""
MEMORY_COMES = """
known = pathlib.Path("/run/known").read_text().split()
for _ in range(600):
    new = [p for p in BLOCKS.glob("memory[0-9]*") if p.name not in known]
    if len(new) == 2:
        break
    time.sleep(0.1)
for block in new:
    note(f"add:{block.name}")
    if (block / "state").read_text().strip() == "offline":
        (block / "state").write_text("online")
        note(f"online:{block.name}")
now = status()
assert now["changed"]["ram_added"] and not now["changed"]["lost"], now
assert [p for p in now["problems"] if "256 MiB of memory were added" in p], now
"""
REMEMBER_BLOCKS = """
names = [p.name for p in BLOCKS.glob("memory[0-9]*")]
pathlib.Path("/run/known").write_text(" ".join(names))
"""
UP_TO_DATE = """
now = status()
assert now["loaded"] and now["by_crashlend"] and now["kept"] and not now["problems"], now
"""
CPU_GOES = """
online = pathlib.Path("/sys/devices/system/cpu/cpu1/online")
online.write_text("0")
note("offline:cpu1")
assert not status()["problems"], status()
"""
CPU_IS_BACK = """
pathlib.Path("/sys/devices/system/cpu/cpu1/online").write_text("1")
note("online:cpu1")
"""
CPU_COMES = """
new = pathlib.Path("/sys/devices/system/cpu/cpu2")
wait_for(new / "crash_notes")
note("add:cpu2")
if (new / "online").read_text().strip() == "0":
    (new / "online").write_text("1")
    note("online:cpu2")
told = [p for p in status()["problems"] if "CPU 2 was added" in p]
assert len(told) == 1 and "crashlend reload" in told[0], status()
"""


def _python(program: str) -> Command:
    return Command(("-c", COMMON + program), program="python3")


def _qmp(command: str, **arguments: object) -> Command:
    return Command(("qmp", command, json.dumps(arguments)), program="host")


LOAD, EVENT = Command(("load",)), Command(("reload", "--event"))


def _change(name: str, proves: str, kernel: str, spec: Mapping[str, Any]) -> Trial:
    return Trial(name, proves, kernel, {**SMALL, **spec}, quick=False)


CHANGE = (
    _change(
        "change-offline-6.1",
        "somebody takes a lent block offline: status tells, the event has another lent in its place "
        "and leaves theirs alone",
        "6.1",
        {"commands": (LOAD, _python(BLOCK_LEAVES), EVENT, _python(BLOCK_HAS_LEFT))},
    ),
    _change(
        "change-memory-6.1",
        "a DIMM is plugged in: status tells, the event makes it part of the dump",
        "6.1",
        {
            "spare_bytes": 256 * MIB,
            "commands": (
                LOAD,
                _python(REMEMBER_BLOCKS),
                _qmp(
                    "object-add",
                    **{"qom-type": "memory-backend-ram", "id": "more", "size": 256 * MIB},
                ),
                _qmp("device_add", driver="pc-dimm", id="dimm", memdev="more"),
                _python(MEMORY_COMES),
                EVENT,
                _python(UP_TO_DATE),
            ),
        },
    ),
    _change(
        "change-cpu-6.1",
        "a CPU goes offline and comes back, which changes nothing, and one is plugged in, panics, and "
        "has its registers in the dump",
        "6.1",
        {
            "cpus": 2,
            "spare_cpus": 1,
            "crash": "sysrq-cpu2",
            "commands": (
                LOAD,
                _python(CPU_GOES),
                EVENT,
                _python(CPU_IS_BACK),
                EVENT,
                _qmp(
                    "device_add",
                    **{
                        "driver": "max-x86_64-cpu",
                        "id": "cpu2",
                        "socket-id": 0,
                        "die-id": 0,
                        "core-id": 2,
                        "thread-id": 0,
                    },
                ),
                _python(CPU_COMES),
                EVENT,
                _python(UP_TO_DATE),
            ),
        },
    ),
    _change(
        "change-refused-6.1",
        "the kernel drops the old image and refuses the new one: the old one is loaded again, with its "
        "lent memory, and saves the dump",
        "6.1",
        {
            # kexec_file_load unpacks in the reservation: the kernel alone can say that it is too small
            "cmdline": "crashkernel=24M",
            "commands": (
                LOAD,
                Command(("reload", "--syscall", "file", "--lend", "0"), exit=EXIT_FAILED),
                _python(UP_TO_DATE),
            ),
        },
    ),
)
