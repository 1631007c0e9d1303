# SPDX-License-Identifier: LGPL-2.1-or-later
"""The code between the two kernels, run in unicorn, and built again from its source."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from crashlend import purgatory
from crashlend.purgatory.entry_x86_64 import PM_TIMER_HZ, entry_code

unicorn = pytest.importorskip("unicorn", reason="unicorn is not installed")
from unicorn import x86_const as reg  # noqa: E402

HERE = Path(purgatory.__file__).parent
CODE, KERNEL, PARAMS = 0xAF3F_0000, 0xA000_0200, 0xAF40_0000
PM_PORT = 0x608
STILL = 1 << 33  # TSC cycles after which a timer is given up
PIT_ROUND_COUNT = 59659  # 50 ms of 1.193182 MHz


@dataclass
class Timers:
    """A PM timer that gains ``pm_step`` per reading, and PIT channel 2.

    ``pm_stops_after`` readings it stands still; ``pit_polls`` readings of port 0x61 make one
    round (None: the output never rises). ``tsc_step`` cycles pass between two readings.
    """

    pm_start: int = 0
    pm_step: int = 1000
    pm_bits: int = 24
    pm_stops_after: int | None = None
    pit_polls: int | None = 3
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
    tsc: int = 1 << 40

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
        if self.pit_left is not None and self.pit_gate and self.pit_polls is not None:
            self.pit_left -= 1
            if self.pit_left == 0:
                self.rounds += 1
        over = self.pit_left is not None and self.pit_left <= 0
        return self.pit_gate | (0x20 if over else 0) | 0x10

    def write(self, port: int, size: int, value: int) -> None:
        self.ports.add(port)
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
        else:
            assert port == 0x42
            self.pit_bytes.append(value)


@dataclass
class End:
    """The state of the processor at the kernel's entry."""

    registers: dict[str, int]
    timers: Timers
    tsc_passed: int


def run(timers: Timers | None = None, *, port: int | None = PM_PORT, seconds: float = 0.01) -> End:
    """Run the code with a hostile start state up to the kernel's entry."""
    timers = timers or Timers()
    code = entry_code(
        kernel_entry=KERNEL, boot_params=PARAMS, wait_seconds=seconds, pm_timer_port=port
    )
    cpu = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    cpu.mem_map(CODE, 0x1000)  # one page: touching any other memory is an error
    cpu.mem_write(CODE, code)
    cpu.mem_map(KERNEL & ~0xFFF, 0x1000)
    cpu.mem_write(KERNEL, b"\xf4")
    cpu.reg_write(reg.UC_X86_REG_RSP, 0xDEAD_0000)
    cpu.reg_write(reg.UC_X86_REG_EFLAGS, 0x602)  # IF and DF set
    for name in ("RAX", "RBX", "RCX", "RDX", "RSI", "RDI", "RBP", "R8", "R9"):
        cpu.reg_write(getattr(reg, f"UC_X86_REG_{name}"), 0x5555_5555_5555_5555)

    def rdtsc(uc: Any, address: int, size: int, _data: object) -> None:
        timers.tsc += timers.tsc_step
        uc.reg_write(reg.UC_X86_REG_RAX, timers.tsc & 0xFFFFFFFF)
        uc.reg_write(reg.UC_X86_REG_RDX, timers.tsc >> 32)
        uc.reg_write(reg.UC_X86_REG_RIP, address + size)

    at = CODE + code.index(b"\x0f\x31")
    cpu.hook_add(unicorn.UC_HOOK_CODE, rdtsc, begin=at, end=at)
    cpu.hook_add(
        unicorn.UC_HOOK_INSN,
        lambda _uc, port, size, _data: timers.read(port, size),
        None,
        1,
        0,
        reg.UC_X86_INS_IN,
    )
    cpu.hook_add(
        unicorn.UC_HOOK_INSN,
        lambda _uc, port, size, value, _data: timers.write(port, size, value),
        None,
        1,
        0,
        reg.UC_X86_INS_OUT,
    )
    begin = timers.tsc
    cpu.emu_start(CODE, KERNEL, timeout=60 * unicorn.UC_SECOND_SCALE)
    names = ("RIP", "RSI", "RSP", "CS", "DS", "ES", "SS", "EFLAGS", "RBX", "RCX", "RDX", "RDI")
    registers = {n: cpu.reg_read(getattr(reg, f"UC_X86_REG_{n}")) for n in names}
    return End(registers, timers, timers.tsc - begin)


def assert_entered(end: End) -> None:
    """Assert what the 64-bit boot protocol demands at the kernel's entry."""
    got = end.registers
    assert got["RIP"] == KERNEL
    assert got["RSI"] == PARAMS
    assert (got["CS"], got["DS"], got["ES"], got["SS"]) == (0x10, 0x18, 0x18, 0x18)
    assert got["EFLAGS"] & 0x600 == 0, "IF and DF must be clear"
    assert CODE <= got["RSP"] <= CODE + 0x1000


def ticks(seconds: float) -> int:
    return round(seconds * 3_579_545)


def test_the_kernel_is_entered_as_the_boot_protocol_demands() -> None:
    """Rsi is boot_params, selectors are 0x10 and 0x18, interrupts and direction flag are off."""
    end = run()
    assert_entered(end)
    assert {end.registers[name] for name in ("RBX", "RCX", "RDX", "RDI")} == {0}


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
    timers = Timers(pm_stops_after=readings, pm_step=10, tsc_step=STILL // 50)
    end = run(timers, seconds=1)
    assert_entered(end)
    assert timers.rounds == 20


def test_a_slow_pm_timer_is_not_dead() -> None:
    """Every tick starts the time to show life anew."""
    timers = Timers(pm_step=1, tsc_step=STILL // 3)
    end = run(timers, seconds=0.0001)
    assert_entered(end)
    assert timers.rounds == 0
    assert end.tsc_passed > STILL * 10


@pytest.mark.parametrize("port", [None, PM_PORT])
def test_dead_timers_do_not_hang_the_crash(port: int | None) -> None:
    """Neither timer moves: the kernel is entered after 2^33 TSC cycles of each."""
    timers = Timers(pm_stops_after=0, pit_polls=None, tsc_step=STILL // 50)
    end = run(timers, port=port, seconds=10)
    assert_entered(end)
    assert STILL <= end.tsc_passed <= 3 * STILL


def test_pm_timer_frequency_is_acpi_s() -> None:
    """ACPI 6.5, 4.8.2.1: 3.579545 MHz."""
    assert PM_TIMER_HZ == 3_579_545


def test_it_fits_in_one_page() -> None:
    """The code, its data and its stack are one page: the segment has no more."""
    assert len((HERE / "entry_x86_64.bin").read_bytes()) <= 4096


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
