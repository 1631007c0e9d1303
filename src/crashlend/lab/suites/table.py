# SPDX-License-Identifier: LGPL-2.1-or-later
"""The table of the project's own trials: what each proves, what it is told, what must come out.

``make test`` runs those marked quick, ``make trial`` all. Documents name them, and a test fails
when a document names one that does not pass.
"""

from __future__ import annotations

from crashlend.errors import EXIT_FAILED, EXIT_NOT_LOADED, EXIT_REFUSED
from crashlend.lab.spec import LOST, REFUSED, Command, Trial
from crashlend.lab.suites.analyze import ANALYZE
from crashlend.lab.suites.bytes import BYTES
from crashlend.lab.suites.change import CHANGE
from crashlend.lab.suites.conform import CONFORM
from crashlend.lab.suites.dma import DMA
from crashlend.lab.suites.exact import EXACT
from crashlend.lab.suites.faults import FAULTS
from crashlend.lab.suites.file import FILE
from crashlend.lab.suites.flips import FLIPS
from crashlend.lab.suites.ladder import LADDER
from crashlend.lab.suites.never import NEVER
from crashlend.lab.suites.parity import PARITY
from crashlend.lab.suites.shapes import SHAPES
from crashlend.lab.suites.speed import SPEED
from crashlend.lab.suites.targets_local import TARGETS_LOCAL
from crashlend.lab.suites.targets_net import TARGETS_NET
from crashlend.sizes import GIB, MIB

SEED = "crashkernel=1G,cma crashkernel=100M"
# 16 MiB out of every 448: the largest free stretch is 432 MiB. KASLR does not mind all of these words
# and may put the kernel over a hole.
HOLES = "nokaslr " + " ".join(f"memmap=16M${448 * MIB * n:#x}" for n in range(1, 7))
# A bad page in every 6 MiB of the zone: clean runs of 4 MiB. soft_offline_page takes a physical
# address (Documentation/ABI/testing/sysfs-memory-page-offline).
BAD_PAGES = f"""
cd /sys/devices/system/memory
size=$((0x$(cat block_size_bytes)))
for block in memory*; do
    [ "$(cat $block/valid_zones)" = Movable ] || continue
    at=$((0x$(cat $block/phys_index) * size + {MIB}))
    end=$((at + size - {MIB}))
    while [ $at -lt $end ]; do
        address=$(printf 0x%x $at)
        echo $address >soft_offline_page && echo "poisoned $address"
        at=$((at + {6 * MIB}))
    done
done
grep HardwareCorrupted /proc/meminfo
"""
# As little memory as will do: the guest looks at all of it before each of some hundred loads.
KILL = {
    "memory_bytes": 1280 * MIB,
    "cmdline": "nokaslr crashkernel=160M",
    "lend_bytes": 256 * MIB,
    "lender": "movable",
    "timeout_seconds": 1500.0,
}
KILL_LENDING = {**KILL, "kill": ("load", "load more", "status", "inside load")}
KILL_RETURNING = {**KILL, "kill": ("unload", "load less", "reload", "shrink", "inside unload")}


SUITE = (
    Trial("movable-6.1", "the seed's line on a kernel without ,cma: 100M + 1G gives 1.1G", "6.1"),
    Trial(
        "small-6.1",
        "a reservation too small for a crash kernel, and then shrunk to the payload, saves a dump "
        "with lent memory",
        "6.1",
        {"cmdline": "crashkernel=1G,cma crashkernel=80M", "reserve": "exact", "poison": False},
    ),
    Trial(
        "control-6.1",
        "the same reservation without lending loses its dump: OOM",
        "6.1",
        {
            "cmdline": "crashkernel=1G,cma crashkernel=80M",
            "lender": "none",
            "impatient": True,
        },
        expect=LOST,
        lender="none",
    ),
    Trial(
        "none-6.1",
        "unload gives every block back, and nothing asked is nothing lent: as kexec -p",
        "6.1",
        {
            "cmdline": "crashkernel=100M",
            "commands": (
                Command(("load", "--lend", "1G", "--dump-level", "1"), exit=EXIT_REFUSED),
                Command(("load", "--lend", "1G")),
                Command(("load", "--lend", "1G")),
                Command(("status",)),
                Command(("load", "--lend", "512M")),
                Command(("unload",)),
                Command(("status",), exit=EXIT_NOT_LOADED),
                Command(("load",)),
            ),
        },
        lender="none",
    ),
    Trial(
        "movable-6.12",
        "Debian 13's kernel and Python 3.13, under UEFI",
        "6.12",
        {"firmware": "uefi", "machine": "q35"},
    ),
    Trial(
        "movable-5.10",
        "Debian 11's kernel and Python 3.9, which also builds the capture initramfs",
        "5.10",
        {"build_in_guest": True},
    ),
    Trial("cma-7.3-load", "the kernel's own ,cma ranges by kexec_load", "7.3", lender="cma"),
    Trial(
        "cma-7.3-file",
        "the kernel's own ,cma ranges by kexec_file_load",
        "7.3",
        {"syscall": "file"},
        lender="cma",
        syscall="file",
    ),
    Trial(
        "movable-7.3-dimms",
        "two DIMMs: the crash kernel takes only what was planned",
        "7.3",
        {
            "memory_bytes": 2 * GIB,
            "dimms": (GIB, GIB),
            "cmdline": "crashkernel=100M",
            "lend_bytes": 512 * MIB,
        },
    ),
    Trial(
        "fragmented-6.1",
        "fragmented physical memory: several smaller ranges are lent",
        "6.1",
        {"memory_bytes": 3 * GIB, "cmdline": f"{HOLES} {SEED}"},
        least_lent_ranges=3,
    ),
    Trial(
        "fragmented-512M-6.1",
        "on that memory crashkernel=512M reserves nothing",
        "6.1",
        {"memory_bytes": 3 * GIB, "cmdline": f"{HOLES} crashkernel=512M", "crash": "none"},
        expect=REFUSED,
        words="no memory is reserved for a crash kernel",
        exit=EXIT_FAILED,
    ),
    Trial(
        "four-cpus-6.1",
        "four CPUs on two NUMA nodes, the last one panics",
        "6.1",
        {"cpus": 4, "nodes": 2, "crash": "sysrq-cpu3"},
        quick=False,
    ),
    Trial(
        "tiny-6.1",
        "16M reserved: only stored bytes are in it, the kernel unpacks itself in lent memory",
        "6.1",
        {"cmdline": "crashkernel=1G,cma crashkernel=16M", "placement": "lent"},
        quick=False,
    ),
    Trial(
        "shrink-6.1",
        "a comfortable reservation shrinks to the payload and a margin; production has the rest",
        "6.1",
        {"cmdline": "crashkernel=1G,cma crashkernel=256M", "reserve": "auto"},
        quick=False,
    ),
    *(
        Trial(
            f"narrow-disk-{kernel}",
            "a disk that addresses 32 bits, memory lent above 4 GiB, 16M reserved: the dump is saved",
            kernel,
            {
                "memory_bytes": 8 * GIB,
                "cmdline": "crashkernel=1G,cma crashkernel=16M",
                "placement": "lent",
                "disk": "ide",
                "timeout_seconds": 600.0,
            },
            quick=False,
        )
        # without a size that fits, 5.10 has no bounce buffers at all
        for kernel in ("5.10", "6.1")
    ),
    Trial(
        "shrink-exact-6.1",
        "the same to the page: what stays is the payload and hardly more",
        "6.1",
        {"cmdline": "crashkernel=1G,cma crashkernel=256M", "reserve": "exact"},
        quick=False,
    ),
    Trial(
        "shrink-size-6.1",
        "the same to a size that was asked for",
        "6.1",
        {"cmdline": "crashkernel=1G,cma crashkernel=256M", "reserve": "20M"},
        quick=False,
    ),
    Trial(
        "shrink-exact-7.3",
        "the same to the page, on the kernel's own ,cma range",
        "7.3",
        {"cmdline": "crashkernel=1G,cma crashkernel=256M", "reserve": "exact"},
        lender="cma",
        quick=False,
    ),
    Trial(
        "tiny-cma-7.3",
        "the same in the kernel's own ,cma range",
        "7.3",
        {"cmdline": "crashkernel=1G,cma crashkernel=20M", "placement": "lent"},
        lender="cma",
        quick=False,
    ),
    Trial(
        "movable-7.3",
        "movable memory on a kernel that has ,cma but was not asked for it",
        "7.3",
        {"cmdline": "crashkernel=100M", "lend_bytes": GIB},
        quick=False,
    ),
    Trial(
        "movable-6.17", "a kernel that knows ,cma but was built without CMA", "6.17", quick=False
    ),
    Trial(
        "zone-6.1",
        "clean memory of a zone of movablecore=, beside early boot's own data in it",
        "6.1",
        {
            "cmdline": "movablecore=1500M crashkernel=100M",
            "lender": "movable-zone",
            "lend_bytes": 768 * MIB,
            "commands": (Command(("load",)), Command(("load",)), Command(("status",))),
        },
        lender="movable-zone",
        quick=False,
    ),
    Trial(
        "zone-7.3",
        "the same on the newest kernel",
        "7.3",
        {
            "cmdline": "movablecore=1500M crashkernel=100M",
            "lender": "movable-zone",
            "lend_bytes": 768 * MIB,
        },
        lender="movable-zone",
        quick=False,
    ),
    Trial(
        "zone-kernelcore-6.12",
        "a zone of kernelcore=, found by itself; the kernel runs in it",
        "6.12",
        {"cmdline": "kernelcore=2G crashkernel=16M", "placement": "lent", "lend_bytes": 512 * MIB},
        lender="movable-zone",
        quick=False,
    ),
    Trial(
        "zone-dimms-6.12",
        "added DIMMs that the host onlined as movable",
        "6.12",
        {
            "memory_bytes": 2 * GIB,
            "dimms": (GIB, GIB),
            "cmdline": "memhp_default_state=online_movable crashkernel=100M",
            "lender": "movable-zone",
            "lend_bytes": GIB,
        },
        lender="movable-zone",
        quick=False,
    ),
    Trial(
        "zone-runs-6.1",
        "a zone full of bad pages: more runs than boot_params has entries, no bad page in them",
        "6.1",
        {
            "cmdline": "movablecore=1500M crashkernel=100M",
            "prepare": BAD_PAGES,
            "lender": "movable-zone",
            "lend_bytes": 560 * MIB,
            "timeout_seconds": 600.0,
        },
        lender="movable-zone",
        least_lent_ranges=130,
        quick=False,
    ),
    Trial(
        "combined-6.1",
        "a zone that has not enough is topped up with blocks, without being told",
        "6.1",
        {"cmdline": "movablecore=1200M crashkernel=100M", "lend_bytes": 1200 * MIB},
        lender="movable-zone,movable",
        quick=False,
    ),
    Trial(
        "combined-7.3",
        "the kernel's own range and movable blocks",
        "7.3",
        {
            "cmdline": "crashkernel=256M,cma crashkernel=100M",
            "lender": "cma,movable",
            "lend_bytes": GIB,
        },
        lender="cma,movable",
        quick=False,
    ),
    Trial(
        "default-wait-6.1",
        "the product's default of 10 s for DMA",
        "6.1",
        {"dma_quiesce": "wait=10", "poison": False},
        quick=False,
    ),
    Trial(
        "user-data-refused-6.1",
        "a dump level that wants user data is refused with lent memory",
        "6.1",
        {"dump_level": 1, "crash": "none"},
        expect=REFUSED,
        words="wants user data",
        quick=False,
    ),
    Trial(
        "user-data-allowed-6.1",
        "the same level where missing user data is allowed",
        "6.1",
        {
            "dump_level": 17,
            "allow_missing_user_data": True,
            "memory_bytes": 2 * GIB,
            "lend_bytes": 512 * MIB,
            "poison": False,
        },
        quick=False,
    ),
    *(
        Trial(
            f"kill-{kernel}",
            "kill -9 at every step of lending and loading: the next run puts all right",
            kernel,
            KILL_LENDING,
            quick=False,
        )
        for kernel in ("6.1", "7.3")
    ),
    *(
        Trial(
            f"kill-return-{kernel}",
            "kill -9 at every step of giving back, reloading, shrinking: likewise",
            kernel,
            KILL_RETURNING,
            quick=False,
        )
        for kernel in ("6.1", "7.3")
    ),
    *DMA,
    *EXACT,
    *SHAPES,
    *SPEED,
    *PARITY,
    *BYTES,
    *FLIPS,
    *NEVER,
    *CHANGE,
    *FAULTS,
    *CONFORM,
    *FILE,
    *ANALYZE,
    *LADDER,
    *TARGETS_LOCAL,
    *TARGETS_NET,
)
