# SPDX-License-Identifier: LGPL-2.1-or-later
"""Trials of upstream's defects in ``,cma``: what crashlend must see and refuse on a real kernel.

What a kernel itself makes of the words is the business of lab/conform.
"""

from __future__ import annotations

import json

from crashlend.lab.spec import REFUSED, Command, Trial
from crashlend.lab.suites.never import in_guest
from crashlend.sizes import GIB, MIB

# A 2 GiB guest has its reservation at the top and the range right below it. The last 400 MiB of the
# node's memory become ZONE_MOVABLE: its border lies in the range.
DIMM_BYTES = 256 * MIB
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
# The kernel's own image (kexec_file_load): it renews the core header when memory comes.
HEADER = """
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
"""
AS_LOADED = in_guest(
    HEADER
    + """
told("crash_hotplug of memory is 1", read(BASE + "/crash_hotplug") == "1")
told("crash_hotplug of CPUs is 1", read("/sys/devices/system/cpu/crash_hotplug") == "1")
Path("/run/core-header").write_text("%d" % look("as loaded").size)
def offline(index):
    try:
        with open("%s/memory%d/state" % (BASE, index), "wb", 0) as state:
            state.write(b"offline")
    except OSError:
        return False
    return True
held = [r.start // SIZE for r in made]
told("a block of the range does not go offline: %s" % held, not any(offline(i) for i in held))
"""
)
GROWN = in_guest(
    HEADER
    + f"""
before = int(Path("/run/core-header").read_text())
for _ in range(60):
    blocks = [n for n in os.listdir(BASE) if n.startswith("memory") and int(n[6:]) * SIZE >= 4 << 30]
    for name in blocks:
        if read("%s/%s/state" % (BASE, name)) == "offline":
            open("%s/%s/state" % (BASE, name), "w").write("online")
    if len(blocks) * SIZE >= {DIMM_BYTES} and dumped().size > before:
        break
    time.sleep(2)
told("blocks came: %s" % blocks, blocks)
told("the kernel has put the DIMM into the header: %d bytes more" % (dumped().size - before),
     look("with a DIMM").size - before == {DIMM_BYTES})
"""
)
MORE = {"qom-type": "memory-backend-ram", "id": "more", "size": DIMM_BYTES}
DIMM = {"driver": "pc-dimm", "id": "dimm", "memdev": "more"}

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
        "the core header that the kernel itself renews when a DIMM comes leaves the ,cma range out",
        "7.3",
        {
            "memory_bytes": GIB + 512 * MIB,
            "cmdline": "crashkernel=256M,cma crashkernel=160M",
            "syscall": "file",
            "crash": "none",
            "spare_bytes": DIMM_BYTES,
            "commands": (
                Command(("load",)),
                AS_LOADED,
                *(
                    Command(("qmp", name, json.dumps(words)), program="host")
                    for name, words in (("object-add", MORE), ("device_add", DIMM))
                ),
                GROWN,
            ),
            "poison": False,
            "timeout_seconds": 500.0,
        },
        lender="cma",
        syscall="file",
        quick=False,
    ),
)
