# SPDX-License-Identifier: LGPL-2.1-or-later
"""The guests of a conformance run: command lines, and what is tried in each. At most ten a kernel."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crashlend.lab.conform.told import TELL
from crashlend.sizes import GIB, MIB

if TYPE_CHECKING:
    from collections.abc import Mapping

# What a kernel can do with ",cma": nothing, read it (built without CMA), carry it out.
UNKNOWN, KNOWN, BUILT = 0, 1, 2
FEATURES = (
    "does not know `,cma`",
    "knows `,cma`, built without CONFIG_CMA",
    "carries `,cma` out",
)
MAIN_BYTES, CMA_BYTES = 96 * MIB, 192 * MIB
HIGH_BYTES, LOW_BYTES = 96 * MIB, 64 * MIB
# With the reservation at the top of 2 GiB and the range right below it, the border of the last
# 400 MiB, which become ZONE_MOVABLE, lies in the range.
BORDER = "movablecore=400M crashkernel=256M,cma crashkernel=160M"
BORDER_MAIN_BYTES, BORDER_CMA_BYTES = 160 * MIB, 256 * MIB
# 16 MiB out of every 200: no free stretch has 192 MiB, so the request comes down to 128 MiB and four
# ranges leave enough. On one stretch halves add up to nearly all of memory, and 7.3 panics in
# cma_init_reserved_areas() for lack of it.
HOLES = " ".join(f"memmap=16M${200 * n}M" for n in range(1, 5))

SIZE = "/sys/kernel/kexec_crash_size"
_STATE = f"""
state() {{
    echo "$1|$(cat {SIZE})|$(grep 'Crash kernel' /proc/iomem | tr -s ' ' | tr '\\n' ';')"
}}
shrink() {{
    echo "$1" 2>/dev/null >{SIZE}
    state "$1"
}}
state start
"""
SHRINK = (
    _STATE
    + f"""
shrink {MAIN_BYTES // 2}
shrink 0
cat /sys/kernel/kexec/crash_cma_ranges 2>/dev/null
grep CmaTotal /proc/meminfo
"""
)
# first what fits the main part alone, then less than the low part has
SHRINK_HIGH = _STATE + f"shrink $(($(cat {SIZE}) - {32 * MIB}))\nshrink {48 * MIB}\n"
# kexec_load with one empty segment: inside, outside (below the reservation), entry outside
KEXEC = """
le() {
    rest=$1
    for byte in 1 2 3 4 5 6 7 8; do
        printf "\\\\$(printf %03o $((rest & 255)))"
        rest=$((rest >> 8))
    done
}
try() { # NAME ENTRY SEGMENT
    { le "$2"; le 1; le 4063233; le 0; le 0; le "$3"; le 4096; } >/tmp/ask
    kexec-load </tmp/ask
    echo "$1 $?"
}
start=$((0x$(sed -n 's/^ *\\([0-9a-f]*\\)-.*: Crash kernel$/\\1/p' /proc/iomem | head -n 1)))
outside=$((start - 16777216))
echo "segment $outside"
try inside $start $start
{ le 0; le 0; le 4063233; le 0; le 0; le 0; le 0; } >/tmp/ask
kexec-load </tmp/ask
echo "unload $?"
try segment-outside $start $outside
try entry-outside $outside $start
echo "loaded $(cat /sys/kernel/kexec_crash_loaded)"
"""
OFFLINE = """
cd /sys/devices/system/memory
IFS=- read -r first last </sys/kernel/kexec/crash_cma_ranges || exit 0
middle=$(((0x$first + 0x$last) / 2))
block=memory$((middle / 0x$(cat block_size_bytes)))
echo offline 2>&1 >$block/state
echo "$block $? $(cat $block/state)"
grep . crash_hotplug ../cpu/crash_hotplug /sys/kernel/kexec/crash_elfcorehdr_size 2>/dev/null
true
"""


@dataclass(frozen=True)
class Boot:
    """One guest. ``needs`` is what the kernel must be able to do for it to tell anything."""

    name: str
    words: str
    memory_bytes: int
    needs: int = UNKNOWN
    commands: Mapping[str, str] = field(default_factory=dict)


BOOTS = (
    Boot(
        "first",
        "crashkernel=192M,cma crashkernel=96M",
        GIB,
        commands={"tell": TELL, "kexec": KEXEC, "offline": OFFLINE, "shrink": SHRINK},
    ),
    Boot("last", "crashkernel=96M crashkernel=192M,cma", GIB),
    Boot("alone", "crashkernel=192M,cma", GIB),
    Boot(
        "high",
        "crashkernel=96M,high crashkernel=64M,low",
        5 * GIB,
        commands={"shrink": SHRINK_HIGH},
    ),
    Boot("ranges", "crashkernel=192M-4G:300M,cma crashkernel=96M", GIB, BUILT, {"tell": TELL}),
    Boot("offset", "crashkernel=128M@16M,cma crashkernel=96M", GIB, BUILT, {"tell": TELL}),
    Boot("foo", "crashkernel=128Mfoo,cma crashkernel=512M-:96M", GIB, BUILT, {"tell": TELL}),
    Boot("overask", f"{HOLES} crashkernel=16G,cma crashkernel=96M", GIB, BUILT, {"tell": TELL}),
    Boot("border", BORDER, 2 * GIB, BUILT, {"tell": TELL}),
)
