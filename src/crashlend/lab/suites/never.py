# SPDX-License-Identifier: LGPL-2.1-or-later
"""Trials of memory that must not be lent, or must not be any more: poison, balloons, virtio-mem.

The guest itself judges what the crash alone would not show: Python scripts that look at crashlend's
answers, at the kernel's own files, and end with an error when a fact does not hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crashlend.lab.spec import Command, Trial
from crashlend.sizes import GIB, MIB

if TYPE_CHECKING:
    from collections.abc import Mapping

COMMON = """
import json, os, struct, subprocess, sys, time
BASE = "/sys/devices/system/memory"
read = lambda path: open(path).read().strip()
SIZE = int(read(BASE + "/block_size_bytes"), 16)
def crashlend(*words):
    done = subprocess.run([sys.executable, "-m", "crashlend", *words, "--json"],
                          stdout=subprocess.PIPE)
    return json.loads(done.stdout)
def flags(address):
    fd = os.open("/proc/kpageflags", os.O_RDONLY)
    value, = struct.unpack("Q", os.pread(fd, 8, address // 4096 * 8))
    os.close(fd)
    return value
def state():
    return json.loads(read("/run/crashlend/state.json"))
def zone(index):
    return (read("%s/memory%d/valid_zones" % (BASE, index)).split() or ["none"])[0]
def poison(start):
    # an address as a machine check gives it: Documentation/ABI/testing/sysfs-memory-page-offline
    for address in range(start + (8 << 20) + 0x5000, start + SIZE, 1 << 20):
        if not flags(address) & 1 << 10:
            continue  # a free page: it takes nothing else with it
        try:
            fd = os.open(BASE + "/hard_offline_page", os.O_WRONLY)
            os.write(fd, b"0x%x" % address)
            os.close(fd)
        except OSError as error:
            print(hex(address), error, file=sys.stderr)
        if flags(address) & 1 << 19:
            open("/run/poisoned", "a").write("%d\\n" % address)
            print("poisoned", hex(address), file=sys.stderr)
            return address
    sys.exit("nothing could be poisoned")
def poisoned():
    return [int(line) for line in open("/run/poisoned")]
def inside(address, ranges):
    return any(start <= address < end for start, end in ranges)
def told(what, fact):
    print("%s: %s" % ("holds" if fact else "DOES NOT HOLD", what), file=sys.stderr)
    if not fact:
        sys.exit(1)
"""


def in_guest(script: str) -> Command:
    """A Python script that the guest runs, with the helpers above."""
    return Command(("-c", COMMON + script), program="python3")


# the block that the lender likes best is the one that gets the poison
POISON_BEFORE = in_guest("""
plan = lambda: crashlend("plan", "--census", "--lend", "256M", "--lender", "movable",
                         "--initramfs", "/lab/initramfs")
best = plan()["offer"]["candidates"][0][0]
poison(best * SIZE)
after = plan()
why = {p["index"]: p["reason"] for p in after["offer"]["passed_over"]}
told("the plan passes block %d over: %s" % (best, why.get(best)), "poisoned" in why.get(best, ""))
told("the plan's census counts it", after["census"]["sums"]["passed over"].get("poisoned") == 1)
""")
NOT_TAKEN = in_guest("""
first = poisoned()[0]
told("the poisoned block is where it was", zone(first // SIZE) != "Movable")
told("its page was never freed by going offline", flags(first) & 1 << 19)
told("it is not lent", not inside(first, state()["loaded"]["lent"]))
told("status has no problem", crashlend("status")["problems"] == [])
""")
POISON_LENT = in_guest("""
lent = state()["loaded"]["lent"]
bad = poison(lent[-1][0])
answer = crashlend("status")
told("status names the poison: %s" % answer["problems"],
     any("poisoned" in p and "reload" in p for p in answer["problems"]))
told("its JSON counts the page", answer["lent"]["pages"].get("poisoned") == 1)
told("and says where: %s" % answer["lent"]["unfit"],
     any(start <= bad < end and kinds == ["poisoned"] for start, end, kinds in
         answer["lent"]["unfit"]))
""")
DROPPED = in_guest(
    """
bad = poisoned()[-1]
now = state()
told("what has the poison is not lent any more", not inside(bad, now["loaded"]["lent"]))
told("as much as asked for is lent all the same: %s" % now["loaded"]["lent"],
     sum(end - start for start, end in now["loaded"]["lent"]) >= ENOUGH)
told("the poisoned page is still known to the kernel", flags(bad) & 1 << 19)
told("its block is online", read("%s/memory%d/state" % (BASE, bad // SIZE)) == "online")
told("status has no problem", crashlend("status")["problems"] == [])
""".replace("ENOUGH", str(256 * MIB))
)
SPOILED = in_guest("""
block = state()["blocks"][str(poisoned()[-1] // SIZE)]
told("the record has the block as spoiled: %s" % block, block["step"] == "spoiled")
""")
CUT = in_guest("""
bad = poisoned()[-1]
now = state()["loaded"]["lent"]
told("the page is not lent any more", not inside(bad, now))
told("only its 2 MiB are left out: %s" % now,
     inside(bad - (2 << 20), now) and inside(bad + (2 << 20), now))
told("status has no problem", crashlend("status")["problems"] == [])
""")

BALLOON_UP = """
def balloon_pages():
    return crashlend("status")["lent"]["pages"].get("offline", 0)
for _ in range(60):
    got = balloon_pages()
    if got >= LEAST:
        break
    time.sleep(2)
"""
IN_BALLOON = in_guest(
    BALLOON_UP.replace("LEAST", "2048")
    + """
told("the balloon has %d pages of lent memory" % got, got >= 2048)
told("status finds no problem in it", crashlend("status")["problems"] == [])
"""
)
BALLOON_LEFT_OUT = in_guest("""
answer = crashlend("status")
got = answer["lent"]["pages"].get("offline", 0)
told("what is lent now has no page of the balloon but those that came since: %d" % got, got <= 512)
told("memory is lent: %s" % answer["lent"]["ranges"], answer["lent"]["bytes"] >= 64 << 20)
""")
BALLOON_AGAIN = in_guest(
    BALLOON_UP.replace("LEAST", "1024")
    + """
told("it has %d pages of lent memory again" % got, got >= 1024)
"""
)

VIRTIO_MEM = """
echo online_movable >/sys/devices/system/memory/auto_online_blocks
modprobe virtio_mem || exit 1
tries=0
until [ "$(grep -c 'System RAM (virtio_mem)' /proc/iomem)" -gt 0 ] &&
    grep -q Movable /sys/devices/system/memory/memory*/valid_zones; do
    tries=$((tries + 1)); [ $tries -lt 60 ] || exit 1
    sleep 1
done
sleep 5
cat /proc/iomem
grep . /sys/devices/system/memory/memory*/valid_zones
"""
NOT_VIRTIO_MEM = in_guest("""
import re
found = re.findall(r"(\\w+)-(\\w+) : System RAM \\(virtio_mem\\)", open("/proc/iomem").read())
device = [(int(start, 16), int(end, 16) + 1) for start, end in found]
lent = state()["loaded"]["lent"]
movable = [i for start, end in device for i in range(start // SIZE, end // SIZE)
           if zone(i) == "Movable"]
told("virtio-mem's blocks are a ZONE_MOVABLE: %s" % movable, movable)
told("nothing of it is lent: %s, %s" % (device, lent),
     not any(start < e and s < end for start, end in device for s, e in lent))
""")


def _never(name: str, proves: str, kernel: str, spec: Mapping[str, Any], **expected: Any) -> Trial:
    small = {
        "memory_bytes": GIB + 512 * MIB,
        "cmdline": "crashkernel=160M",
        "lend_bytes": 256 * MIB,
        "lender": "movable",
        "poison": False,
        "timeout_seconds": 500.0,
    }
    return Trial(name, proves, kernel, {**small, **spec}, **expected, quick=False)


POISON = (
    POISON_BEFORE,
    Command(("load",)),
    NOT_TAKEN,
    POISON_LENT,
    Command(("reload",)),
    DROPPED,
    SPOILED,
)

NEVER = (
    _never(
        "poison-6.1",
        "a poisoned block never goes offline; poison in lent memory is reported, and reload drops "
        "its block",
        "6.1",
        {"commands": POISON},
    ),
    _never("poison-7.3", "the same by the newest kernel", "7.3", {"commands": POISON}),
    _never(
        "poison-cma-7.3",
        "poison in the kernel's own ,cma range: reload leaves out the 2 MiB around it",
        "7.3",
        {
            "cmdline": "crashkernel=256M,cma crashkernel=160M",
            "lend_bytes": None,
            "least_lent_bytes": 254 * MIB,
            "lender": "auto",
            "commands": (Command(("load",)), POISON_LENT, Command(("reload",)), CUT),
        },
        lender="cma",
    ),
    _never(
        "balloon-6.1",
        "a balloon's pages are left out at load, and those that come later do no harm",
        "6.1",
        {
            "devices": ("-device", "virtio-balloon-pci,id=balloon0"),
            "prepare": "modprobe virtio_balloon",
            "least_lent_bytes": 64 * MIB,
            "commands": (
                Command(("load",)),
                Command(("qmp", "balloon", f'{{"value": {1472 * MIB}}}'), program="host"),
                IN_BALLOON,
                Command(("reload",)),
                BALLOON_LEFT_OUT,
                Command(("qmp", "balloon", f'{{"value": {1440 * MIB}}}'), program="host"),
                BALLOON_AGAIN,
            ),
        },
    ),
    _never(
        "virtio-mem-6.1",
        "virtio-mem's memory is never lent, though it lies in a ZONE_MOVABLE",
        "6.1",
        {
            "devices": (
                *("-object", f"memory-backend-ram,id=vmem0,size={512 * MIB},reserve=off"),
                *("-device", f"virtio-mem-pci,id=vm0,memdev=vmem0,requested-size={384 * MIB}"),
            ),
            "spare_bytes": 512 * MIB,
            "prepare": VIRTIO_MEM,
            "lender": "auto",
            "commands": (Command(("load",)), NOT_VIRTIO_MEM),
        },
    ),
)
