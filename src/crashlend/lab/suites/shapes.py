# SPDX-License-Identifier: LGPL-2.1-or-later
"""Trials of the common shapes of x86_64 hosts: firmware, nodes, processors, memory.

What makes each the shape that it claims to be is checked on the guest itself (shape.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crashlend.lab.spec import Spec, Trial
from crashlend.sizes import GIB, KIB, MIB

if TYPE_CHECKING:
    from collections.abc import Mapping

UEFI = {"firmware": "uefi", "machine": "q35"}
HIGH = "crashkernel=1G,cma crashkernel=256M,high crashkernel=64M,low"
# with the mark of a virtual machine taken away the kernel chooses large blocks, as on bare metal
BARE_METAL = "max,-erms,-fsrm,-hypervisor"


def _shape(name: str, proves: str, kernel: str, spec: Mapping[str, Any], **expected: Any) -> Trial:
    return Trial(name, proves, kernel, spec, **expected, quick=False)


SHAPES = (
    _shape("uefi-6.1", "a UEFI host: the crash kernel is told where ACPI begins", "6.1", UEFI),
    _shape(
        "uefi-lent-6.1",
        "the same where the kernel unpacks itself in lent memory, on the other machine",
        "6.1",
        {
            "firmware": "uefi",
            "cmdline": "crashkernel=1G,cma crashkernel=16M",
            "placement": "lent",
        },
    ),
    _shape("uefi-7.3", "a UEFI host whose kernel made the ,cma range", "7.3", UEFI, lender="cma"),
    _shape(
        "uefi-lent-7.3",
        "the same in a small reservation",
        "7.3",
        {**UEFI, "cmdline": "crashkernel=1G,cma crashkernel=20M", "placement": "lent"},
        lender="cma",
    ),
    _shape("uefi-5.10", "a UEFI host with Debian 11's kernel", "5.10", UEFI),
    _shape("uefi-6.12", "a UEFI host with Debian 13's kernel", "6.12", UEFI),
    _shape("numa2-6.1", "two nodes with a CPU each", "6.1", {"nodes": 2, "cpus": 2}),
    _shape(
        "numa4-7.3",
        "four nodes: each lends its share and no more",
        "7.3",
        {"nodes": 4, "cpus": 4, "cmdline": "crashkernel=100M", "lend_bytes": GIB},
        least_lent_ranges=3,
    ),
    _shape("la57-off-6.1", "4-level page tables", "6.1", {"cpu_model": "max,la57=off,-erms,-fsrm"}),
    _shape("qemu64-6.1", "a plain processor: no 1 GiB pages", "6.1", {"cpu_model": "qemu64"}),
    _shape(
        "qemu64-7.3", "the same by the newest kernel", "7.3", {"cpu_model": "qemu64"}, lender="cma"
    ),
    _shape(
        "high-6.1",
        "a reservation above 4 GiB with a low part",
        "6.1",
        {"memory_bytes": 8 * GIB, "cmdline": HIGH},
    ),
    _shape(
        "high-7.3",
        "the same by a kernel that knows ,cma",
        "7.3",
        {"memory_bytes": 8 * GIB, "cmdline": HIGH},
        lender="cma",
    ),
    _shape(
        "high-shrink-6.1",
        "the high part shrinks, the low one stays",
        "6.1",
        {"memory_bytes": 8 * GIB, "cmdline": HIGH, "reserve": "auto"},
    ),
    _shape(
        "high-shrink-7.3",
        "the same where kexec_crash_size counts both parts",
        "7.3",
        {"memory_bytes": 8 * GIB, "cmdline": HIGH, "reserve": "auto"},
        lender="cma",
    ),
    _shape(
        "two-cpus-7.3",
        "two CPUs, the second panics",
        "7.3",
        {"cpus": 2, "crash": "sysrq-cpu1"},
        lender="cma",
    ),
    _shape(
        "eight-cpus-6.1",
        "eight CPUs, the last one panics",
        "6.1",
        {"cpus": 8, "crash": "sysrq-cpu7"},
    ),
    _shape(
        "odd-end-6.1",
        "memory that ends inside a page, far from the end of a block",
        "6.1",
        {"cmdline": f"mem=4700001K {Spec.cmdline}"},
    ),
    _shape(
        "odd-size-7.3",
        "memory of an odd number of pages",
        "7.3",
        {"memory_bytes": 4 * GIB + 333 * MIB + 40 * KIB},
        lender="cma",
    ),
    _shape(
        "blocks-2G-6.1",
        "66 GiB in blocks of 2 GiB: the request is rounded up to one",
        "6.1",
        {
            "memory_bytes": 66 * GIB,
            "cpu_model": BARE_METAL,
            "block_bytes": 2 * GIB,
            "poison": False,
            "timeout_seconds": 900.0,
        },
    ),
    _shape(
        "blocks-2G-7.3",
        "the same by the newest kernel, 3 GiB asked for",
        "7.3",
        {
            "memory_bytes": 66 * GIB,
            "cpu_model": BARE_METAL,
            "block_bytes": 2 * GIB,
            "cmdline": "crashkernel=100M",
            "lend_bytes": 3 * GIB,
            "poison": False,
            "timeout_seconds": 900.0,
        },
    ),
)
