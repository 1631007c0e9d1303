# SPDX-License-Identifier: LGPL-2.1-or-later
"""The code between the two kernels, run in unicorn, and built again from its source."""

from __future__ import annotations

import itertools
import shutil
import struct
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from crashlend import purgatory
from crashlend.purgatory.entry_x86_64 import (
    MEMORY_BYTES,
    PARAMETERS,
    PARAMETERS_OFFSET,
    PM_TIMER_HZ,
    TSC_HZ,
    entry_code,
)

unicorn = pytest.importorskip("unicorn", reason="unicorn is not installed")
from unicorn import x86_const as reg  # noqa: E402

HERE = Path(purgatory.__file__).parent
CODE, KERNEL, PARAMS = 0xAF3F_0000, 0xA000_0200, 0xAF40_0000
PM_PORT = 0x608
STILL = 1 << 33  # TSC cycles after which the PM timer is given up
IDT, GATES, NMI = CODE + 0x800, 32, 2
PIT_ROUND_COUNT = 59659  # 50 ms of 1.193182 MHz


@dataclass
class Timers:
    """A PM timer that gains ``pm_step`` per reading, and PIT channel 2.

    ``pm_stops_after`` readings it stands still; ``pit_polls`` readings of port 0x61 make one
    round (None: the output never rises). Without a PIT, port 0x61 always reads ``no_pit``.
    ``tsc_step`` cycles pass between two readings.
    """

    pm_start: int = 0
    pm_step: int = 1000
    pm_bits: int = 24
    pm_stops_after: int | None = None
    pit_polls: int | None = 3
    no_pit: int | None = None
    tsc_step: int = 1000
    pm_value: int = 0
    pm_passed: int = 0
    pm_reads: int = 0
    pit_bytes: list[int] = field(default_factory=list)
    pit_mode: int = 0
    pit_left: int | None = None
    pit_gate: int = 0
    rounds: int = 0
    counts: set[int] = field(default_factory=set)
    ports: set[int] = field(default_factory=set)
    writes: list[tuple[int, int]] = field(default_factory=list)
    tsc: int = 1 << 40
    first_write: list[int] = field(default_factory=list)

    def read(self, port: int, size: int) -> int:
        self.ports.add(port)
        if port == PM_PORT:
            assert size == 4
            value = (self.pm_start + self.pm_passed) % (1 << self.pm_bits)
            self.pm_reads += 1
            if self.pm_stops_after is None or self.pm_reads <= self.pm_stops_after:
                self.pm_passed += self.pm_step
            return value
        assert (port, size) == (0x61, 1)
        if self.no_pit is not None:
            return self.no_pit
        if self.pit_left is not None and self.pit_gate and self.pit_polls is not None:
            self.pit_left -= 1
            if self.pit_left == 0:
                self.rounds += 1
        over = self.pit_left is not None and self.pit_left <= 0
        return self.pit_gate | (0x20 if over else 0) | 0x10

    def write(self, port: int, size: int, value: int) -> None:
        self.ports.add(port)
        self.writes.append((port, value))
        assert size == 1
        if port == 0x61:
            assert not value & 2, "the speaker is on"
            rising = value & 1 and not self.pit_gate
            self.pit_gate = value & 1
            if rising and len(self.pit_bytes) == 2:
                self.counts.add(self.pit_bytes[0] | self.pit_bytes[1] << 8)
                self.pit_left = (self.pit_polls or 1 << 60) + 1
        elif port == 0x43:
            assert value == 0xB0, "channel 2, both bytes, mode 0, binary"
            self.pit_bytes = []
            self.pit_left = None
        elif port not in (0x64, 0xCF9):
            assert port == 0x42
            self.pit_bytes.append(value)


@dataclass
class End:
    """The state of the processor at the kernel's entry."""

    registers: dict[str, int]
    timers: Timers
    tsc_passed: int
    cpu: Any
    tables: set[tuple[int, int, int]]  # IDT, CS and SS at each access to a port


def run(
    timers: Timers | None = None,
    *,
    port: int | None = PM_PORT,
    seconds: float = 0.01,
    at: int = CODE,
    copy: tuple[int, int, int] = (0, 0, 0),
    stored: bytes = b"",
) -> End:
    """Run the code with a hostile start state up to the kernel's entry."""
    timers = timers or Timers()
    code = entry_code(
        kernel_entry=KERNEL,
        boot_params=PARAMS,
        wait_seconds=seconds,
        pm_timer_port=port,
        copy=copy,
    )
    cpu = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    cpu.mem_map(at, MEMORY_BYTES)  # touching any other memory is an error
    cpu.mem_write(at, code)
    cpu.mem_map(KERNEL & ~0xFFF, 0x1000)
    cpu.mem_write(KERNEL, b"\xf4")
    if stored:
        for place in copy[:2]:
            cpu.mem_map(place, -(-len(stored) // 4096) * 4096)
        cpu.mem_write(copy[0], stored)
        written: list[int] = []
        cpu.hook_add(
            unicorn.UC_HOOK_MEM_WRITE,
            lambda *a: written.append(timers.pm_passed),
            begin=copy[1],
            end=copy[1] + len(stored),
        )
        timers.first_write = written
    cpu.reg_write(reg.UC_X86_REG_RSP, 0xDEAD_0000)
    cpu.reg_write(reg.UC_X86_REG_EFLAGS, 0x602)  # IF and DF set
    for name in ("RAX", "RBX", "RCX", "RDX", "RSI", "RDI", "RBP", "R8", "R9"):
        cpu.reg_write(getattr(reg, f"UC_X86_REG_{name}"), 0x5555_5555_5555_5555)

    def rdtsc(uc: Any, address: int, size: int, _data: object) -> None:
        timers.tsc += timers.tsc_step
        uc.reg_write(reg.UC_X86_REG_RAX, timers.tsc & 0xFFFFFFFF)
        uc.reg_write(reg.UC_X86_REG_RDX, timers.tsc >> 32)
        uc.reg_write(reg.UC_X86_REG_RIP, address + size)

    tables = set()

    def note(uc: Any) -> None:
        idt = uc.reg_read(reg.UC_X86_REG_IDTR)[1]
        tables.add((idt, uc.reg_read(reg.UC_X86_REG_CS), uc.reg_read(reg.UC_X86_REG_SS)))

    def port_in(uc: Any, number: int, size: int, _data: object) -> int:
        note(uc)
        return timers.read(number, size)

    def port_out(uc: Any, number: int, size: int, value: int, _data: object) -> None:
        note(uc)
        timers.write(number, size, value)

    assert code.count(b"\x0f\x31") == 1
    counter = at + code.index(b"\x0f\x31")
    cpu.hook_add(unicorn.UC_HOOK_CODE, rdtsc, begin=counter, end=counter)
    cpu.hook_add(unicorn.UC_HOOK_INSN, port_in, None, 1, 0, reg.UC_X86_INS_IN)
    cpu.hook_add(unicorn.UC_HOOK_INSN, port_out, None, 1, 0, reg.UC_X86_INS_OUT)
    begin = timers.tsc
    cpu.emu_start(at, KERNEL, timeout=60 * unicorn.UC_SECOND_SCALE)
    names = ("RIP", "RSI", "RSP", "CS", "DS", "ES", "SS", "EFLAGS", "RBX", "RCX", "RDX", "RDI")
    registers = {n: cpu.reg_read(getattr(reg, f"UC_X86_REG_{n}")) for n in names}
    return End(registers, timers, timers.tsc - begin, cpu, tables)


def assert_entered(end: End) -> None:
    """Assert what the 64-bit boot protocol demands at the kernel's entry."""
    got = end.registers
    assert got["RIP"] == KERNEL
    assert got["RSI"] == PARAMS
    assert (got["CS"], got["DS"], got["ES"], got["SS"]) == (0x10, 0x18, 0x18, 0x18)
    assert got["EFLAGS"] & 0x600 == 0, "IF and DF must be clear"
    assert CODE <= got["RSP"] <= CODE + MEMORY_BYTES


def ticks(seconds: float) -> int:
    return round(seconds * 3_579_545)


def test_the_kernel_is_entered_as_the_boot_protocol_demands() -> None:
    """Rsi is boot_params, selectors are 0x10 and 0x18, interrupts and direction flag are off."""
    end = run()
    assert_entered(end)
    assert {end.registers[name] for name in ("RBX", "RCX", "RDX", "RDI")} == {0}


@pytest.mark.parametrize("size", [8, 4096, 3 * 4096 + 5])
def test_the_kernel_is_copied_to_lent_memory_after_the_wait(size: int) -> None:
    """Every stored byte arrives, and lent memory is not touched before the time is over."""
    stored = bytes(i * 7 % 251 for i in range(size))
    end = run(Timers(pm_step=400), copy=(0x9000_0000, 0x1_4000_0000, size), stored=stored)
    assert_entered(end)
    assert end.cpu.mem_read(0x1_4000_0000, size) == stored
    assert min(end.timers.first_write) >= ticks(0.01)


@pytest.mark.parametrize("seconds", [0.01, 0.5])
@pytest.mark.parametrize("step", [1, 77, 4000])
def test_it_waits_as_many_pm_timer_ticks(seconds: float, step: int) -> None:
    """The timer has gained the ticks of the time, and not more than one reading above."""
    if seconds / step > 0.1:
        seconds = 0.001
    end = run(Timers(pm_step=step), seconds=seconds)
    assert_entered(end)
    # the last reading returned what had passed before it
    waited = end.timers.pm_passed - step
    assert ticks(seconds) <= waited <= ticks(seconds) + step
    assert end.timers.ports == {PM_PORT}


@pytest.mark.parametrize("bits", [24, 32])
@pytest.mark.parametrize("start", [0xFFFF00, 0xFFFFFF])
def test_the_pm_timer_may_wrap_around(bits: int, start: int) -> None:
    """A counter of 24 or 32 bits that runs over many times loses no tick."""
    high = 0xFF000000 if bits == 32 else 0
    timers = Timers(pm_start=start | high, pm_bits=bits, pm_step=0x7FFFFF)
    end = run(timers, seconds=20)
    assert_entered(end)
    waited = timers.pm_passed - timers.pm_step
    assert ticks(20) <= waited <= ticks(20) + timers.pm_step
    assert ticks(20) > 4 << 24


def test_no_time_to_wait_touches_no_timer() -> None:
    """Where nothing is lent, or the kernel waits itself, no port is read."""
    end = run(seconds=0)
    assert_entered(end)
    assert end.timers.ports == set()


def test_without_a_pm_timer_the_pit_counts() -> None:
    """10 s are 200 rounds of 50 ms on channel 2."""
    end = run(port=None, seconds=10)
    assert_entered(end)
    assert end.timers.rounds == 200
    assert end.timers.counts == {PIT_ROUND_COUNT}
    assert PM_PORT not in end.timers.ports


@pytest.mark.parametrize("readings", [1, 50])
def test_a_pm_timer_that_stands_still_gives_way_to_the_pit(readings: int) -> None:
    """Dead from the start or later: the whole time is waited by the PIT then."""
    timers = Timers(pm_stops_after=readings, pm_step=10, tsc_step=STILL // 500)
    end = run(timers, seconds=10)
    assert_entered(end)
    assert timers.rounds == 200


def test_a_slow_pm_timer_is_not_dead() -> None:
    """Every tick starts the time to show life anew."""
    timers = Timers(pm_step=1_000_000, tsc_step=STILL // 3)
    end = run(timers, seconds=5)
    assert_entered(end)
    assert timers.rounds == 0
    assert timers.pm_passed > 3_000_000
    assert end.tsc_passed > 3 * STILL


def assert_waited_by_tsc(end: End, seconds: float) -> None:
    """Assert that the TSC has ended the wait, not before a 6 GHz TSC's time, and soon after."""
    assert_entered(end)
    cycles = seconds * 6_000_000_000
    assert cycles <= end.tsc_passed <= cycles + 3 * end.timers.tsc_step


@pytest.mark.parametrize("seconds", [0.02, 10])
@pytest.mark.parametrize("reads", [0xFF, 0x20])
@pytest.mark.parametrize("port", [None, PM_PORT])
def test_without_any_timer_the_tsc_ends_the_wait(
    port: int | None, reads: int, seconds: float
) -> None:
    """No PIT: its output is high at once. No round counts, and the wait is not skipped."""
    step = int(seconds * TSC_HZ / 500)
    timers = Timers(pm_stops_after=0, no_pit=reads, tsc_step=step)
    assert_waited_by_tsc(run(timers, port=port, seconds=seconds), seconds)


@pytest.mark.parametrize("seconds", [0.02, 10])
@pytest.mark.parametrize("timers", [{"no_pit": 0}, {"pit_polls": None}])
@pytest.mark.parametrize("port", [None, PM_PORT])
def test_dead_timers_neither_hang_the_crash_nor_skip_the_wait(
    port: int | None, timers: dict[str, Any], seconds: float
) -> None:
    """Neither timer moves: the TSC ends the wait."""
    still = Timers(pm_stops_after=0, tsc_step=int(seconds * TSC_HZ / 500), **timers)
    assert_waited_by_tsc(run(still, port=port, seconds=seconds), seconds)


def test_timers_that_crawl_do_not_hang_the_crash() -> None:
    """A PM timer or a PIT that is far too slow, but moves, is overtaken by the TSC."""
    for port in (None, PM_PORT):
        timers = Timers(pm_step=1, pit_polls=5, tsc_step=TSC_HZ // 50)
        assert_waited_by_tsc(run(timers, port=port, seconds=10), 10)
        assert timers.pm_passed if port else timers.rounds


def test_a_pit_round_whose_beginning_was_missed_is_waited_again() -> None:
    """An SMI or a busy host may hide the low output; that costs time, it never saves any."""
    timers = Timers(pit_polls=3)
    readings = itertools.count()
    read = timers.read

    def late(port: int, size: int) -> int:
        if next(readings) == 2:  # two readings program the PIT
            timers.pit_left = 0
        return read(port, size)

    timers.read = late  # type: ignore[method-assign]
    assert_entered(run(timers, port=None, seconds=1))
    assert timers.rounds == 20
    assert timers.writes.count((0x43, 0xB0)) == 21


@pytest.mark.parametrize("seconds", [0.001, 0.02, 0.051, 0.7, 10])
def test_no_timer_is_given_less_than_the_time(seconds: float) -> None:
    """Every way to wait is rounded up."""
    code = entry_code(
        kernel_entry=KERNEL, boot_params=PARAMS, wait_seconds=seconds, pm_timer_port=PM_PORT
    )
    fields = PARAMETERS.unpack_from(code, PARAMETERS_OFFSET)
    entry, params, pm, rounds, cycles, *copy, port = fields
    assert (entry, params, port) == (KERNEL, PARAMS, PM_PORT)
    assert copy == [0, 0, 0]
    assert seconds <= pm / 3_579_545 < seconds + 1e-6
    # in mode 0 the output rises one clock after the count
    assert seconds <= rounds * (PIT_ROUND_COUNT + 1) / 1_193_182
    assert rounds * 0.05 < seconds + 0.051
    assert seconds <= cycles / 6e9 < seconds + 1e-6


@dataclass
class Gate:
    """One entry of the IDT."""

    handler: int
    selector: int
    ist: int
    kind: int


def gates(end: End) -> list[Gate]:
    """The IDT as it stands in memory at the kernel's entry."""
    _, base, limit, _ = end.cpu.reg_read(reg.UC_X86_REG_IDTR)
    assert limit == GATES * 16 - 1
    out = []
    for entry in struct.iter_unpack("<HHBBHII", end.cpu.mem_read(base, limit + 1)):
        low, selector, ist, kind, middle, high, zero = entry
        assert zero == 0
        out.append(Gate(low | middle << 16 | high << 32, selector, ist, kind))
    return out


@pytest.mark.parametrize("at", [CODE, 0x1000, 0xFFFF_F000, 0x12_3456_7000])
@pytest.mark.parametrize("seconds", [0, 0.01])
def test_an_nmi_returns_and_every_other_exception_has_one_handler(seconds: float, at: int) -> None:
    """32 interrupt gates on our code segment and our stack, at any address."""
    end = run(at=at, seconds=seconds)
    table = gates(end)
    assert len(table) == GATES
    assert {(g.selector, g.ist, g.kind) for g in table} == {(0x10, 0, 0x8E)}
    assert len({g.handler for g in table}) == 2
    assert [n for n, g in enumerate(table) if g.handler != table[0].handler] == [NMI]
    stored = len((HERE / "entry_x86_64.bin").read_bytes())
    assert all(at <= g.handler < at + stored for g in table)


def test_an_nmi_changes_nothing() -> None:
    """From any state, the handler goes back to where the NMI came, all registers as before."""
    end = run()
    cpu, names = end.cpu, ("RAX", "RBX", "RCX", "RDX", "RSI", "RDI", "R8", "R9", "RSP", "EFLAGS")
    top = CODE + MEMORY_BYTES - 64
    before = {name: cpu.reg_read(getattr(reg, f"UC_X86_REG_{name}")) for name in names}
    before["RSP"], before["EFLAGS"] = top, 0x46 | 1
    cpu.mem_write(top - 40, struct.pack("<5Q", KERNEL, 0x10, 0x47, top, 0x18))
    cpu.reg_write(reg.UC_X86_REG_RSP, top - 40)
    cpu.emu_start(gates(end)[NMI].handler, KERNEL, count=10)
    after = {name: cpu.reg_read(getattr(reg, f"UC_X86_REG_{name}")) for name in names}
    assert after == before
    assert cpu.reg_read(reg.UC_X86_REG_RIP) == KERNEL


def test_an_exception_resets_the_machine() -> None:
    """Keyboard controller, reset control register, at last a triple fault; time between them."""
    end = run()
    timers, cpu = end.timers, end.cpu
    timers.writes.clear()
    timers.tsc_step = 1 << 22
    begin = timers.tsc
    interrupts: list[int] = []

    def interrupted(uc: Any, number: int, _data: object) -> None:
        interrupts.append(number)
        uc.emu_stop()

    cpu.hook_add(unicorn.UC_HOOK_INTR, interrupted)
    cpu.emu_start(gates(end)[0].handler, 0, count=100_000)
    assert timers.writes == [(0x64, 0xFE), (0xCF9, 0x02), (0xCF9, 0x06), (0xCF9, 0x0E)]
    assert timers.tsc - begin >= 4 << 27
    assert interrupts == [3]
    _, base, limit, _ = cpu.reg_read(reg.UC_X86_REG_IDTR)
    assert (base, limit) == (0, 0), "int3 with this IDT must be a triple fault"


def test_the_tables_are_ours_before_any_timer_is_touched() -> None:
    """At every access to a port the IDT is the code's own, and CS and SS are from its GDT."""
    end = run(Timers(pm_stops_after=3, tsc_step=STILL // 500), seconds=10)
    assert end.timers.rounds == 200
    assert end.tables == {(IDT, 0x10, 0x18)}


def test_pm_timer_frequency_is_acpi_s() -> None:
    """ACPI 6.5, 4.8.2.1: 3.579545 MHz."""
    assert PM_TIMER_HZ == 3_579_545


def test_it_fits_in_one_page() -> None:
    """What is stored ends before the IDT, and the IDT well before the stack's top."""
    assert CODE + len((HERE / "entry_x86_64.bin").read_bytes()) <= IDT
    assert IDT + GATES * 16 + 1024 <= CODE + MEMORY_BYTES
    assert MEMORY_BYTES == 4096


def test_the_binary_is_what_its_source_gives(tmp_path: Path) -> None:
    """The packaged .bin is byte for byte what binutils make of the packaged .S."""
    for tool in ("as", "objcopy"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} (binutils) is not installed")
    built = tmp_path / "entry.o"
    source = HERE / "entry_x86_64.S"
    done = subprocess.run(
        ["as", "--64", "-o", built, source], capture_output=True, text=True, check=False
    )
    if "unrecognized option" in done.stderr:
        pytest.skip("this assembler is not one for x86")
    assert done.returncode == 0, done.stderr
    flat = tmp_path / "entry.bin"
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", built, flat], check=True)
    assert flat.read_bytes() == (HERE / "entry_x86_64.bin").read_bytes()
