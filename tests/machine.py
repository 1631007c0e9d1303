# SPDX-License-Identifier: LGPL-2.1-or-later
"""A machine for purgatory to run on: unicorn's processor, and models of what it finds at I/O ports.

There is one time, in nanoseconds. It goes on by ``step_ns`` with each reading of the TSC and by
``port_ns`` with each access to a port; all clocks are made of it.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Callable

import pytest

from crashlend.formats.bootparams import SETUP_CRASHLEND
from crashlend.purgatory.x86_64 import ENDS, ENDS_OFFSET, Handover, purgatory_code

if TYPE_CHECKING:
    from collections.abc import Iterable

unicorn = pytest.importorskip("unicorn", reason="unicorn is not installed")
from unicorn import x86_const as reg  # noqa: E402

UcError = unicorn.UcError

CODE, KERNEL, PARAMS, RECORD = 0xAF3F_0000, 0xA000_0200, 0xAF40_0000, 0xAF50_0400
PM_PORT, SERIAL_PORT = 0x608, 0x3F8
PAGE = 4096
RDTSC = bytes.fromhex("0f31 48c1e220")  # and the shift behind it
NMI, EXCEPTIONS = 2, 32
ERROR_CODES = {8, 10, 11, 12, 13, 14, 17, 21, 29, 30}  # Intel SDM 3A, table 6-1
GENERAL = ("RAX", "RBX", "RCX", "RDX", "RSI", "RDI", "RBP", *(f"R{n}" for n in range(8, 16)))
REGISTERS = (*GENERAL, "RSP", "RIP", "EFLAGS", "CS", "DS", "ES", "SS")


def register(name: str) -> int:
    return int(getattr(reg, f"UC_X86_REG_{name}"))


@dataclass
class Ports:
    """What answers at the ports. ``reset_works`` names the way of resetting that this machine has."""

    ghz: float = 2.5
    step_ns: float = 100_000
    port_ns: float = 1_000
    tsc_start: int = 1 << 40
    pm_start: int = 0
    pm_bits: int = 24
    pm_rate: float = 1.0  # 0: it stands still
    pm_read: Callable[[int, int], int] | None = None  # (reading number, value) → value
    pit: bool = True
    pit_rate: float = 1.0
    no_pit: int = 0xFF  # what port 0x61 reads where there is none
    serial: str = "works"  # "absent", "stuck"
    stuck_after: int = 0
    functions: dict[int, dict[str, int]] = field(default_factory=dict)
    now: float = 0.0
    pm_reads: int = 0
    pit_bytes: list[int] = field(default_factory=list)
    pit_gate: int = 0
    pit_end: float | None = None
    pit_runs: int = 0
    pit_delays: list[float] = field(default_factory=list)
    output: bytearray = field(default_factory=bytearray)
    address: int = 0
    config_writes: list[tuple[int, int, int]] = field(default_factory=list)
    resets: list[tuple[int, int, float]] = field(default_factory=list)
    used: set[int] = field(default_factory=set)

    @property
    def tsc(self) -> int:
        return self.tsc_start + int(self.now * self.ghz)

    def read(self, port: int, size: int) -> int:
        self.used.add(port)
        self.now += self.port_ns
        if port == PM_PORT:
            assert size == 4
            value = (self.pm_start + int(self.now * self.pm_rate * 3.579545e-3)) % (
                1 << self.pm_bits
            )
            self.pm_reads += 1
            return self.pm_read(self.pm_reads, value) if self.pm_read else value
        if port == SERIAL_PORT + 5:
            assert size == 1
            stuck = self.serial == "stuck" and len(self.output) >= self.stuck_after
            return 0xFF if self.serial == "absent" else 0x00 if stuck else 0x60
        if 0xCFC <= port <= 0xCFF:
            return self.config_read(port, size)
        assert (port, size) == (0x61, 1), f"nobody asked to read port {port:#x}"
        if not self.pit:
            return self.no_pit
        over = self.pit_end is not None and self.now >= self.pit_end
        return self.pit_gate | (0x20 if over else 0) | 0x10

    def write(self, port: int, size: int, value: int) -> None:
        self.used.add(port)
        self.now += self.port_ns
        if port == 0xCF8:
            assert size == 4
            assert value >> 31
            self.address = value
        elif 0xCFC <= port <= 0xCFF:
            self.config_write(port, size, value)
        elif port == SERIAL_PORT:
            assert self.serial == "works" or len(self.output) < self.stuck_after
            self.output.append(value)
        elif port in (0x42, 0x43, 0x61):
            assert size == 1
            self.pit_write(port, value)
        else:
            self.resets.append((port, value, self.now))

    def pit_write(self, port: int, value: int) -> None:
        """Channel 2 in mode 0: the output is low from the gate on, for one clock more than the count."""
        if port == 0x43:
            assert value == 0xB0, "channel 2, both bytes, mode 0, binary"
            self.pit_bytes, self.pit_end = [], None
        elif port == 0x42:
            self.pit_bytes.append(value)
        else:
            assert not value & 2, "the speaker is on"
            rising = value & 1 and not self.pit_gate
            self.pit_gate = value & 1
            if rising and len(self.pit_bytes) == 2:
                count = self.pit_bytes[0] | self.pit_bytes[1] << 8
                length = (count + 1) / 1.193182e-3 / self.pit_rate if self.pit_rate else 1e30
                self.pit_end = self.now + length
                if self.pit_runs < len(self.pit_delays):
                    self.now += self.pit_delays[self.pit_runs]
                self.pit_runs += 1

    def selected(self, port: int) -> tuple[dict[str, int] | None, int, int]:
        function = self.address >> 8 & 0xFFFF
        return self.functions.get(function), (self.address & 0xFC) + port - 0xCFC, function

    def config_read(self, port: int, size: int) -> int:
        found, offset, _ = self.selected(port)
        if found is None:
            return (1 << 8 * size) - 1
        low = {0: found["vendor"] | 0x1234 << 16, 4: found["command"] | 0xFFFF << 16}
        return low[offset] & ((1 << 8 * size) - 1)

    def config_write(self, port: int, size: int, value: int) -> None:
        found, offset, function = self.selected(port)
        assert found is not None
        assert (offset, size) == (4, 2), "only the command register, without the status beside it"
        self.config_writes.append((function, offset, value))
        found["command"] = found["command"] if found.get("fixed") else value


class Machine:
    """Purgatory in memory and a processor in a hostile state, about to jump into it.

    ``memory`` are further pieces: start → bytes. Touching memory that nobody spoke of ends the
    run with an error.
    """

    def __init__(
        self,
        handover: Handover,
        ports: Ports | None = None,
        *,
        at: int = CODE,
        memory: dict[int, bytes] | None = None,
        kernel: int = KERNEL,
    ) -> None:
        self.ports = ports or Ports()
        self.at, self.kernel = at, kernel
        self.code = purgatory_code(handover)
        self.image_end, self.tables_at = ENDS.unpack_from(self.code, ENDS_OFFSET)
        self.record_at = handover.record_phys
        self.cpu = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        self.mapped: set[int] = set()
        self.place(at, self.code)
        self.place(kernel, b"\xf4")
        if self.record_at is not None:
            node = struct.pack("<QII", 0, SETUP_CRASHLEND, handover.record_bytes)
            self.place(self.record_at - len(node), node + b" " * handover.record_bytes)
        for start, data in (memory or {}).items():
            self.place(start, data)
        for name in GENERAL:
            self.cpu.reg_write(register(name), 0x5555_5555_5555_5555)
        self.cpu.reg_write(register("RSP"), 0xDEAD_0000)
        self.cpu.reg_write(register("EFLAGS"), 0x602)  # IF and DF set
        self.tables: set[tuple[int, int, int]] = set()
        self.stop_when: Callable[[], bool] = lambda: False
        self.interrupts: list[int] = []
        self._hook()

    def place(self, start: int, data: bytes) -> None:
        """Put bytes into memory that exists from now on, in whole pages."""
        for page in range(start // PAGE, -(-(start + len(data)) // PAGE)):
            if page not in self.mapped:
                self.mapped.add(page)
                self.cpu.mem_map(page * PAGE, PAGE)
        self.cpu.mem_write(start, data)

    def _hook(self) -> None:
        def rdtsc(uc: Any, address: int, size: int, _data: object) -> None:
            self.ports.now += self.ports.step_ns
            uc.reg_write(reg.UC_X86_REG_RAX, self.ports.tsc & 0xFFFFFFFF)
            uc.reg_write(reg.UC_X86_REG_RDX, self.ports.tsc >> 32)
            uc.reg_write(reg.UC_X86_REG_RIP, address + size)
            if self.stop_when():
                uc.emu_stop()

        def note(uc: Any) -> None:
            idt = uc.reg_read(reg.UC_X86_REG_IDTR)[1]
            cs, ss = uc.reg_read(reg.UC_X86_REG_CS), uc.reg_read(reg.UC_X86_REG_SS)
            self.tables.add((idt, cs, ss))

        def port_in(uc: Any, port: int, size: int, _data: object) -> int:
            note(uc)
            return self.ports.read(port, size)

        def port_out(uc: Any, port: int, size: int, value: int, _data: object) -> None:
            note(uc)
            self.ports.write(port, size, value)

        def interrupted(uc: Any, number: int, _data: object) -> None:
            self.interrupts.append(number)
            uc.emu_stop()

        def constant(_uc: Any, _access: int, address: int, *_more: object) -> None:
            raise AssertionError(f"it writes to its constants, at +{address - self.at:#x}")

        assert self.code.count(RDTSC) == 1
        counter = self.at + self.code.index(RDTSC)
        add = self.cpu.hook_add
        add(unicorn.UC_HOOK_CODE, rdtsc, begin=counter, end=counter)
        add(unicorn.UC_HOOK_INSN, port_in, None, 1, 0, reg.UC_X86_INS_IN)
        add(unicorn.UC_HOOK_INSN, port_out, None, 1, 0, reg.UC_X86_INS_OUT)
        add(unicorn.UC_HOOK_INTR, interrupted)
        write = unicorn.UC_HOOK_MEM_WRITE
        add(write, constant, begin=self.at, end=self.at + self.image_end - 1)
        if self.tables_at < len(self.code):
            add(write, constant, begin=self.at + self.tables_at, end=self.at + len(self.code) - 1)

    def run(self, start: int | None = None, instructions: int = 0) -> Machine:
        """Until the kernel is entered, the processor is lost, or ``stop_when`` says so.

        Or so many instructions later, where that is not 0.
        """
        begin = self.at if start is None else start
        if instructions:
            self.cpu.ctl_flush_tb()  # what was translated before does not count
        limit = 60 * unicorn.UC_SECOND_SCALE
        self.cpu.emu_start(begin, self.kernel, timeout=limit, count=instructions)
        return self

    def run_with_faults(self) -> Machine:
        """As :meth:`run`, with the page faults and invalid opcodes that unicorn does not deliver."""
        try:
            return self.run()
        except UcError as error:
            return self.deliver(6 if error.errno == unicorn.UC_ERR_INSN_INVALID else 14)

    def on_access(self, kind: str, start: int, size: int, then: Callable[[int], object]) -> None:
        """Call ``then(address)`` before each "read" or after each "write" of a range."""
        hook = {"read": unicorn.UC_HOOK_MEM_READ, "write": unicorn.UC_HOOK_MEM_WRITE}[kind]
        self.cpu.hook_add(
            hook,
            lambda _uc, _access, at, *_more: then(at) and None,
            begin=start,
            end=start + size - 1,
        )

    def registers(self) -> dict[str, int]:
        return {name: self.cpu.reg_read(register(name)) for name in REGISTERS}

    def gates(self) -> list[tuple[int, int, int, int]]:
        """The IDT as the processor would use it: (handler, selector, ist, kind)."""
        _, base, limit, _ = self.cpu.reg_read(reg.UC_X86_REG_IDTR)
        assert limit == EXCEPTIONS * 16 - 1
        out = []
        for low, selector, ist, kind, middle, high, zero in struct.iter_unpack(
            "<HHBBHII", self.cpu.mem_read(base, limit + 1)
        ):
            assert zero == 0
            out.append((low | middle << 16 | high << 32, selector, ist, kind))
        return out

    def deliver(self, vector: int) -> Machine:
        """What the processor does on an exception (Intel SDM 3A, 6.14), then go on from there."""
        now = self.registers()
        frame = [now["RIP"], now["CS"], now["EFLAGS"], now["RSP"], now["SS"]]
        if vector in ERROR_CODES:
            frame.insert(0, 0xE0E0)
        rsp = (now["RSP"] & ~15) - 8 * len(frame)
        self.cpu.mem_write(rsp, struct.pack(f"<{len(frame)}Q", *frame))
        self.cpu.reg_write(register("RSP"), rsp)
        return self.run(self.gates()[vector][0])

    @property
    def entered(self) -> bool:
        return bool(self.registers()["RIP"] == self.kernel)

    @property
    def is_reset(self) -> bool:
        """The last way of resetting was reached: int3 without an IDT, a triple fault."""
        _, base, limit, _ = self.cpu.reg_read(reg.UC_X86_REG_IDTR)
        return self.interrupts[-1:] == [3] and (base, limit) == (0, 0)

    @property
    def lines(self) -> list[str]:
        """The complete lines on the serial console, without the common beginning."""
        *lines, _ = self.ports.output.decode("ascii").split("\r\n")
        return [line.removeprefix("crashlend: ") for line in lines]

    @property
    def just_said(self) -> str:
        """The last line; "" in the middle of another one."""
        return self.lines[-1] if self.ports.output.endswith(b"\n") else ""

    def record_text(self, size: int = 1024) -> bytes:
        assert self.record_at is not None
        return bytes(self.cpu.mem_read(self.record_at, size))

    @property
    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.record_text())
        return found

    def step(self, name: str) -> dict[str, Any]:
        """The record's step of that name; there is one."""
        (found,) = [step for step in self.record["steps"] if step["step"] == name]
        return dict(found)

    @property
    def step_names(self) -> list[str]:
        return [step["step"] for step in self.record["steps"]]


def bits(data: bytes, flipped: Iterable[int]) -> bytes:
    """The bytes with these bits flipped."""
    out = bytearray(data)
    for bit in flipped:
        out[bit // 8] ^= 1 << bit % 8
    return bytes(out)
