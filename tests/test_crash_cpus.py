# SPDX-License-Identifier: LGPL-2.1-or-later
"""More than one CPU in the crash kernel: never without sparing the one that firmware booted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from build import BLOCK, facts, payload
from crashlend.config import Settings
from crashlend.crash_cpus import PER_CPU_BYTES, SHARE_OF_LENT, cpus_that_help, crash_cpus
from crashlend.errors import UsageError
from crashlend.facts import Facts
from crashlend.plan import Plan, make_plan


def cpuinfo(*cpus: tuple[int, int | None, int | None]) -> bytes:
    """``/proc/cpuinfo`` of (processor, initial apicid, apicid) [arch/x86/kernel/cpu/proc.c]."""
    blocks = []
    for number, initial, apicid in cpus:
        lines = [f"processor\t: {number}", "vendor_id\t: GenuineIntel"]
        lines += [] if apicid is None else [f"apicid\t\t: {apicid}"]
        lines += [] if initial is None else [f"initial apicid\t: {initial}"]
        lines += ["flags\t\t: fpu la57 pdpe1gb", "power management:"]
        blocks.append("\n".join(lines) + "\n")
    return ("\n".join(blocks) + "\n").encode()


FOUR = cpuinfo((0, 6, 6), (1, 1, 1), (2, 2, 2), (10, 0, 0))


def host(text: bytes = FOUR, **files: bytes) -> Facts:
    more = {path.replace("_", "/"): data for path, data in files.items()}
    return facts(cpus=4, files={"/proc/cpuinfo": text, **more})


def planned(some: Facts, **settings: object) -> Plan:
    return make_plan(some, Settings(lend=0, **settings), payload())  # type: ignore[arg-type]


def words(plan: Plan) -> list[str]:
    assert plan.cmdline is not None
    return plan.cmdline.line.split()


def test_one_cpu_where_nothing_is_lent() -> None:
    """A single CPU starts no other: the word that old kernels want is not said."""
    plan = planned(host())
    assert "nr_cpus=1" in words(plan)
    assert not [w for w in words(plan) if w.startswith("disable_cpu_apicid")]


def test_several_spare_the_one_that_firmware_booted() -> None:
    """Both words are there, each once and with its reason, in kexec_file_load's line too."""
    for syscall in ("load", "file"):
        plan = planned(host(), nr_cpus=4, syscall=syscall)
        found = [w for w in words(plan) if "cpu" in w]
        assert found == ["nr_cpus=4", "disable_cpu_apicid=6"]
        assert plan.cmdline is not None
        reasons = dict(plan.cmdline.added)
        assert "setting nr_cpus" in reasons["nr_cpus=4"]
        assert "firmware booted" in reasons["disable_cpu_apicid=6"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (FOUR, 6),
        (cpuinfo((0, None, 3)), 3),
        (cpuinfo((0, 300, 2)), 300),  # x2APIC: the hardware's own, not what the kernel made of it
        (cpuinfo((1, 0, 0), (2, 2, 2)), None),
        (cpuinfo((0, None, None)), None),
        (b"", None),
        (b"processor : 0\napicid : 99999999999999\n", None),
    ],
    ids=["first", "apicid", "x2apic", "offline", "none", "empty", "nonsense"],
)
def test_the_boot_cpu_is_processor_0(text: bytes, found: int | None) -> None:
    """Processor 10 is no processor 0, and of two ids the hardware's is taken."""
    assert host(text).boot_apic_id == found


@pytest.mark.parametrize(
    "some",
    [host(cpuinfo((1, 0, 0))), facts(files={"/proc/cpuinfo": FOUR, "/proc/vmcore": b"\x7fELF"})],
    ids=["cpu0-offline", "crash-kernel"],
)
def test_where_it_is_not_known_one_cpu_must_do(some: Facts) -> None:
    """The note says why; more CPUs without sparing it could reset the machine."""
    plan = planned(some, nr_cpus=4)
    assert "nr_cpus=1" in words(plan)
    assert any("one CPU alone" in note for note in plan.notes)
    assert crash_cpus(some, Settings(nr_cpus=1)).notes == ()


@pytest.mark.parametrize("word", ["nr_cpus=4", "maxcpus=2", "possible-cpus=8"])
def test_the_setting_append_is_no_way_around_it(word: str) -> None:
    with pytest.raises(UsageError, match="setting of its own") as caught:
        planned(host(), append=word)
    assert "nr_cpus" in caught.value.hint


def test_append_may_name_another_cpu_to_spare() -> None:
    """The last one wins in the kernel: who knows better can say so."""
    plan = planned(host(), nr_cpus=2, append="disable_cpu_apicid=0")
    assert [w for w in words(plan) if w.startswith("disable")][-1] == "disable_cpu_apicid=0"


MIB = 1 << 20


@pytest.mark.parametrize(
    ("present", "lent_bytes", "count"),
    [
        (64, 0, 1),
        (64, 2 * SHARE_OF_LENT * PER_CPU_BYTES - 1, 1),
        (64, 2 * SHARE_OF_LENT * PER_CPU_BYTES, 3),
        (64, 128 * MIB, 6),
        (64, 1024 * MIB, 8),
        (4, 1024 * MIB, 4),
        (2, 1024 * MIB, 1),
        (1, 1024 * MIB, 1),
        (0, 1024 * MIB, 1),
    ],
)
def test_cpus_by_lent_memory(present: int, lent_bytes: int, count: int) -> None:
    """A 64th part of lent memory pays for CPUs; never more than the host has, nor than eight, nor two."""
    assert cpus_that_help(present, lent_bytes) == count


def lending(*, threads: bool, **settings: object) -> Plan:
    """The plan of a host with four CPUs that has lent two blocks."""
    some = facts(cpus=4, movable=[38, 39], lent=[38, 39], files={"/proc/cpuinfo": FOUR})
    given = replace(payload(), threads=threads)
    return make_plan(some, Settings(lend=2 * BLOCK, **settings), given)  # type: ignore[arg-type]


def test_the_plan_starts_cpus_by_itself() -> None:
    """With lent memory and a capture that has threads all four CPUs come up, and firmware's is spared."""
    for syscall in ("load", "file"):
        plan = lending(threads=True, syscall=syscall)
        assert plan.lent.size == 2 * BLOCK
        assert [w for w in words(plan) if "cpu" in w] == ["nr_cpus=4", "disable_cpu_apicid=6"]
        assert plan.cmdline is not None
        assert "256 MiB lent" in dict(plan.cmdline.added)["nr_cpus=4"]


def test_a_capture_without_threads_gets_one_cpu() -> None:
    """Another's initramfs, and a makedumpfile whose threads may corrupt the dump, get one by themselves."""
    assert "nr_cpus=1" in words(lending(threads=False))


def test_the_setting_counts_more() -> None:
    """A number is a number, whatever the capture can do with it."""
    assert "nr_cpus=3" in words(lending(threads=False, nr_cpus=3))
    assert "nr_cpus=1" in words(lending(threads=True, nr_cpus=1))


def test_by_itself_an_unknown_boot_cpu_is_no_matter() -> None:
    """Where auto can start one CPU alone there is no note: nobody asked for more."""
    some = host(cpuinfo((1, 0, 0)))
    assert crash_cpus(some, Settings(), 1024 * MIB, threads=True) == ((), ())
