# SPDX-License-Identifier: LGPL-2.1-or-later
"""The packaged snapshots and what ``crashlend tour`` makes of them: request, plan, core header.

They were taken from real guests by tools/make_snapshots.py, each with the boot header of its own
kernel and the size of its capture initramfs beside it, so that the plans are exact to the byte.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files

from crashlend.arch import for_machine
from crashlend.config import Settings
from crashlend.crashkernel.grammar import Request, parse_crashkernel
from crashlend.errors import CrashlendError
from crashlend.facts import Facts, read_facts
from crashlend.formats.bzimage import BzImage
from crashlend.formats.elfcore import PT_LOAD
from crashlend.hostfiles import ArchiveFiles
from crashlend.jsonable import from_json
from crashlend.plan import Payload, Plan, make_plan
from crashlend.ranges import Ranges

# in the order in which the tour shows them
NAMES = ("vm", "fragmented", "server")
LOW = Ranges([(0, 1 << 20)])


@dataclass(frozen=True)
class CoreHeader:
    """What the plan's core header says of production's memory, in bytes.

    ``pt_loads`` counts all PT_LOADs, the one for the kernel's own mapping included;
    ``covered`` is the RAM that /proc/vmcore will show, ``left_out`` the RAM it will not.
    """

    pt_loads: int
    notes: int
    covered: Ranges
    left_out: Ranges


@dataclass(frozen=True)
class Stop:
    """One stop of the tour: a host, what its command line asks for, and the plan."""

    name: str
    title: str
    facts: Facts
    payload: Payload
    request: Request
    plan: Plan
    ram: Ranges
    core_header: CoreHeader

    @property
    def words(self) -> tuple[str, ...]:
        """The ``crashkernel=`` words of the command line."""
        return tuple(w for w in self.facts.cmdline.split() if w.startswith("crashkernel="))

    @property
    def nodes(self) -> int:
        return len({block.node for block in self.facts.blocks})


def read_packaged(name: str) -> tuple[str, Facts, Payload]:
    """Title, facts and payload of one packaged snapshot; CrashlendError when it is not there."""
    directory = files("crashlend").joinpath("snapshots")
    try:
        archive = directory.joinpath(f"{name}.tar.gz").read_bytes()
        beside = json.loads(directory.joinpath(f"{name}.json").read_bytes())
    except OSError as error:
        raise CrashlendError(
            f"cannot read the packaged snapshot {name}",
            error.strerror or str(error),
            hint="install crashlend again; it comes with its snapshots",
        ) from error
    stored = beside["payload"]
    header = bytes.fromhex(stored["image"]["setup_header"])
    # what else a payload knows is of the host's programs, which no snapshot has
    image = from_json(BzImage, {**stored["image"], "setup_header": header})
    payload = Payload(image, stored["initramfs_bytes"])
    return beside["title"], read_facts(ArchiveFiles(archive, name)), payload


def make_stop(name: str) -> Stop:
    """Read one packaged snapshot and plan it with the default settings."""
    title, facts, payload = read_packaged(name)
    ram: Ranges = for_machine(facts.arch).system_ram(facts)
    plan = make_plan(facts, Settings(), payload)
    request = parse_crashkernel(facts.cmdline_bytes, ram.size)
    return Stop(name, title, facts, payload, request, plan, ram, _core_header(plan, facts, ram))


def _core_header(plan: Plan, facts: Facts, ram: Ranges) -> CoreHeader:
    if plan.layout is None or facts.kernel_text is None:
        raise CrashlendError("no plan to the byte", plan.incomplete or "the kernel is not located")
    loads = [h for h in plan.layout.program_headers if h.type == PT_LOAD]
    covered = Ranges((h.phys, h.end) for h in loads if h.virt != facts.kernel_text.virt)
    notes = len(plan.layout.program_headers) - len(loads)
    return CoreHeader(len(loads), notes, covered, ram - covered)
