# SPDX-License-Identifier: LGPL-2.1-or-later
"""Trials of upstream's defects in ``,cma``: what crashlend must see and refuse on a real kernel.

What a kernel itself makes of the words is the business of lab/conform.
"""

from __future__ import annotations

from crashlend.lab.spec import REFUSED, Command, Trial
from crashlend.lab.suites.never import in_guest
from crashlend.sizes import GIB, MIB

# A 2 GiB guest has its reservation at the top and the range right below it. The last 400 MiB of the
# node's memory become ZONE_MOVABLE: its border lies in the range.
BORDER = "nokaslr movablecore=400M crashkernel=256M,cma crashkernel=160M"
LOST = in_guest("""
listed = read("/sys/kernel/kexec/crash_cma_ranges").split("-")
start, end = int(listed[0], 16), int(listed[1], 16) + 1
told("the kernel lists a range: %x-%x" % (start, end), end - start == 256 << 20)
told("its log: could not be activated", "could not be activated" in
     subprocess.run(["dmesg"], stdout=subprocess.PIPE, text=True).stdout)
told("CmaTotal is 0", "CmaTotal:              0 kB" in read("/proc/meminfo"))
problems = crashlend("status")["problems"]
told("status says so: %s" % problems, any("are not CMA" in p and "%#x" % start in p
                                          for p in problems))
told("by the kernel's marks", any("does not mark" in p for p in problems))
""")
SEEN = in_guest("""
from crashlend.facts import read_facts
from crashlend.hostfiles import TreeFiles
from pathlib import Path
facts = read_facts(TreeFiles(Path("/")))
seen = facts.cma_evidence
told("the ranges are marked as CMA, %s: %s" % (facts.cma_ranges, seen),
     seen.marked == facts.cma_ranges and seen.remembered)
told("they are on record", state()["cma"] == {"ranges": [list(r) for r in facts.cma_ranges],
                                              "active": [list(r) for r in facts.cma_ranges]})
Path("/run/crashlend/state.json").rename("/run/kept.json")
again = read_facts(TreeFiles(Path("/"))).cma_evidence
Path("/run/kept.json").rename("/run/crashlend/state.json")
told("they are seen without the record: %s" % again,
     again.marked == facts.cma_ranges and not again.remembered)
told("status has no problem", crashlend("status")["problems"] == [])
""")

CONFORM = (
    Trial(
        "lost-cma-7.3",
        "a ,cma range that crosses into ZONE_MOVABLE is listed but no CMA: refused and reported",
        "7.3",
        {
            "memory_bytes": 2 * GIB,
            "cmdline": BORDER,
            "crash": "none",
            "commands": (LOST, Command(("load",))),
        },
        expect=REFUSED,
        words="are in ordinary use: the kernel does not mark their pageblocks as CMA",
        quick=False,
    ),
    Trial(
        "marked-cma-7.3",
        "the kernel's own marks show that its ,cma range is CMA, and a load records it",
        "7.3",
        {
            "memory_bytes": GIB + 512 * MIB,
            "cmdline": "crashkernel=256M,cma crashkernel=160M",
            "commands": (Command(("load",)), SEEN),
            "poison": False,
            "timeout_seconds": 500.0,
        },
        lender="cma",
        quick=False,
    ),
)
