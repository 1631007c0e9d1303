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
# The kernel's own image (kexec_file_load): it renews the core header when memory comes or goes.
RENEWED = in_guest("""
from pathlib import Path
from crashlend.formats.elfcore import PT_LOAD, parse_program_headers
from crashlend.hostfiles import TreeFiles
from crashlend.ranges import Ranges
from crashlend.facts import read_facts
from crashlend.system.physical import read_physical
files = TreeFiles(Path("/"))
facts = read_facts(files)
made = Ranges(facts.cma_ranges)
start = next(r.start for r in facts.iomem if r.name == "Crash kernel")
def dumped():
    # the kernel puts it at the start of the reservation
    headers = parse_program_headers(read_physical(files, start, 1 << 16))
    return Ranges((h.phys, h.end) for h in headers if h.type == PT_LOAD and h.virt < 0xffffffff80000000)
def look(when):
    seen = dumped()
    told("%s: the core header has %d bytes, none of the ranges" % (when, seen.size),
         seen.size > (512 << 20) and not seen.meets(made))
    return seen
told("crash_hotplug of memory is 1", read(BASE + "/crash_hotplug") == "1")
told("crash_hotplug of CPUs is 1", read("/sys/devices/system/cpu/crash_hotplug") == "1")
first = look("as loaded")
def offline(index):
    try:
        open("%s/memory%d/state" % (BASE, index), "w").write("offline")
    except OSError:
        return False
    return True
taken = next((b.index for b in facts.blocks if first.covers(Ranges(
    [(b.index * SIZE, (b.index + 1) * SIZE)])) and offline(b.index)), None)
told("a block went offline: %s" % taken, taken is not None)
block = Ranges([(taken * SIZE, (taken + 1) * SIZE)])
told("the header has lost it", look("without a block") == first - block)
open("%s/memory%d/state" % (BASE, taken), "w").write("online")
told("the header has it again", look("with it") == first)
held = [r.start // SIZE for r in made]
told("a block of the range does not go offline: %s" % held, not any(offline(i) for i in held))
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
    Trial(
        "renewed-cma-7.3",
        "the core header that the kernel renews when a memory block goes or comes leaves the ,cma range "
        "out",
        "7.3",
        {
            "memory_bytes": GIB + 512 * MIB,
            "cmdline": "crashkernel=256M,cma crashkernel=160M",
            "syscall": "file",
            "commands": (Command(("load",)), RENEWED),
            "poison": False,
            "timeout_seconds": 500.0,
        },
        lender="cma",
        syscall="file",
        quick=False,
    ),
)
