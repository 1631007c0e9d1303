# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is kept of the boots: what a host knew before, and what was seen. Plain data, JSON."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from crashlend.crashkernel.early import KERNEL_PARTS, boot_memory, kernel_of, map_of_facts
from crashlend.facts.data import Facts, FirmwareRange
from crashlend.formats.procfs import Resource, Zone
from crashlend.jsonable import from_json, to_json
from crashlend.lab.agree.cases import HOSTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crashlend.crashkernel.boot import BootMemory
    from crashlend.crashkernel.generations import BootKernel
    from crashlend.lab.observation import Observation

SCHEMA = 1
# syslog's levels as the model names them
LEVELS = {3: "err", 4: "warn", 6: "info"}
# What the kernel says of crashkernel= and of CMA areas; "crahskernel" is its own spelling, and 6.1 leaves
# the name out of what it says of ranges.
_OURS = re.compile(r"cra(sh|hs)kernel|^cma: |^Memory value expected")
# Has those words in it, too: command line and memory, and what becomes of the areas later. There ranges
# of one name collide in sysfs, and an area that crosses zones is not activated.
_NOT_OURS = re.compile(
    r"^(Command line|Kernel command line|Memory:|Unknown kernel command line parameters|"
    r"sysfs: cannot create duplicate filename|kobject: kobject_add_internal failed|"
    r"cma: CMA area crashkernel could not be activated)"
)


class Span(NamedTuple):
    """What memory a zone of a node has: the first page's number, and pages that are present."""

    node: int
    zone: str
    start_pfn: int
    present: int


@dataclass(frozen=True)
class HostRecord:
    """What one kernel tells on one host that was booted without ``crashkernel=``.

    No address in it depends on such a word. ``cma_file``: crash_cma_ranges is in sysfs.
    """

    host: str
    kernel: str
    release: str
    firmware_map: tuple[FirmwareRange, ...]
    kernel_parts: tuple[Resource, ...]
    ramdisk: tuple[int, int]
    zones: tuple[Span, ...]
    config_cma: bool
    cma_file: bool

    @property
    def facts(self) -> Facts:
        """The facts of a host, as far as they are known here."""
        start, end = self.ramdisk
        page = bytearray(4096)
        for value, low, high in ((start, 0x218, 0x0C0), (end - start, 0x21C, 0x0C4)):
            page[low : low + 4] = (value & 0xFFFF_FFFF).to_bytes(4, "little")
            page[high : high + 4] = (value >> 32).to_bytes(4, "little")
        return blank_facts(
            release=self.release,
            firmware_map=self.firmware_map,
            iomem=self.kernel_parts,
            boot_params=page.hex(),
            zones=tuple(Zone(z.node, z.zone, z.start_pfn, 0, z.present, 0, 0) for z in self.zones),
            meminfo={"MemTotal": 0, **({"CmaTotal": 0} if self.config_cma else {})},
            cma_ranges=() if self.cma_file else None,
            efi=HOSTS[self.host].guest.firmware == "uefi",
        )

    def boot(self, cmdline: bytes) -> tuple[BootMemory, BootKernel]:
        """What the model is given for a boot of this host with ``cmdline``."""
        facts = self.facts
        kernel, _ = kernel_of(facts)
        return boot_memory(map_of_facts(facts), cmdline, kernel), kernel


@dataclass(frozen=True)
class Seen:
    """What one boot with ``crashkernel=`` words showed, as far as the model speaks of it.

    ``messages`` are level and text in the order of the log. ``reserved`` is what /proc/iomem calls
    "Crash kernel", ``crash_size_bytes`` kexec_crash_size. ``cma`` are the ``,cma`` ranges in their
    order: of crash_cma_ranges, of the log where that is not there.
    """

    messages: tuple[tuple[str, str], ...]
    reserved: tuple[tuple[int, int], ...]
    crash_size_bytes: int
    cma: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Result:
    """One case and what was seen; ``release`` is the kernel's, ``cmdline`` the whole line."""

    name: str
    kernel: str
    host: str
    words: str
    shows: str
    cmdline: str
    seen: Seen


@dataclass(frozen=True)
class Kept:
    """All that docs/results/agree.json has."""

    machine: Mapping[str, Any]
    hosts: tuple[HostRecord, ...]
    results: tuple[Result, ...]

    def host_of(self, result: Result) -> HostRecord:
        """The host that a result is of."""
        return self.by_name[result.host, result.kernel]

    @property
    def by_name(self) -> dict[tuple[str, str], HostRecord]:
        """Hosts by name and kernel."""
        return {(host.host, host.kernel): host for host in self.hosts}


def host_record(host: str, kernel: str, seen: Observation) -> HostRecord:
    """What is kept of a baseline."""
    ramdisk = seen.ramdisk
    return HostRecord(
        host,
        kernel,
        seen.release,
        seen.firmware_map,
        tuple(r for r in seen.iomem if r.name in KERNEL_PARTS),
        (ramdisk.start, ramdisk.end) if ramdisk else (0, 0),
        tuple(Span(z.node, z.name, z.start_pfn, z.present) for z in seen.zones if z.present),
        "CmaTotal" in seen.meminfo,
        seen.cma_ranges is not None,
    )


def digest(seen: Observation) -> Seen:
    """What is kept of a case's boot."""
    messages = tuple(
        (LEVELS.get(line.level, str(line.level)), line.text)
        for line in seen.log
        if line.facility == 0 and _OURS.search(line.text) and not _NOT_OURS.match(line.text)
    )
    cma = seen.logged_cma_ranges if seen.cma_ranges is None else seen.cma_ranges
    return Seen(
        messages,
        tuple((r.start, r.end) for r in seen.iomem if r.name == "Crash kernel"),
        seen.crash_size_bytes,
        tuple((r.start, r.end) for r in cma),
    )


def json_text(kept: Kept) -> str:
    """The data as JSON with a host or a case on each line, so that a difference can be read."""

    def rows(items: tuple[Any, ...]) -> str:
        return ",\n".join("  " + json.dumps(to_json(item)) for item in items)

    return (
        f'{{\n "schema": {SCHEMA},\n "machine": {json.dumps(dict(kept.machine))},\n'
        f' "hosts": [\n{rows(kept.hosts)}\n ],\n "results": [\n{rows(kept.results)}\n ]\n}}\n'
    )


def load(text: str) -> Kept:
    """What :func:`json_text` made, again; FormatError where it is something else."""
    value = json.loads(text)
    hosts = from_json(tuple[HostRecord, ...], value["hosts"])
    results = from_json(tuple[Result, ...], value["results"])
    return Kept(value["machine"], hosts, results)


def blank_facts(**known: Any) -> Facts:
    """Facts of an x86-64 host of which nothing is known but ``known``."""
    blank: dict[str, Any] = {
        "arch": "x86_64",
        "release": "",
        "cmdline": "",
        "privileged": True,
        "efi": False,
        "memmap_on_memory": False,
        "boot_params": "",
        "meminfo": {},
        **dict.fromkeys(_EMPTY.split(), ()),
        **dict.fromkeys(_UNKNOWN.split()),
    }
    return Facts(**{**blank, **known})


_EMPTY = """iomem firmware_map blocks zones cpu_flags crash_notes huge_pools narrow_devices refusals
lent_blocks"""
_UNKNOWN = """block_bytes vmcoreinfo page_offset kernel_text rsdp efi_system_table efi_config_table
pm_timer_port crash_size_bytes crash_loaded cma_ranges lockdown kexec_load_disabled
kexec_load_limit_panic rounds_gib_outwards"""
