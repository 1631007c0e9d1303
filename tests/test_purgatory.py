# SPDX-License-Identifier: LGPL-2.1-or-later
"""Purgatory's real bytes, run in unicorn: its way, its clocks, what goes wrong and what it says."""

from __future__ import annotations

import hashlib
import itertools
import struct
from dataclasses import replace
from typing import Any, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crashlend.purgatory.x86_64 import (
    HANDOVER,
    HANDOVER_OFFSET,
    Copy,
    Handover,
    Region,
    bus_master,
    purgatory_bytes,
)
from machine import (
    CODE,
    KERNEL,
    NMI,
    PARAMS,
    PM_PORT,
    RECORD,
    SERIAL_PORT,
    Machine,
    Ports,
    UcError,
    bits,
    register,
)

STORED, INITRAMFS, LENT = 0xA100_0000, 0xA200_0000, 0x1_4000_0000
WATCHED = ((0x1_8000_0000, 0x1_8000_4000), (0x1_9000_0000, 0x1_9000_1000))
DATA = {
    STORED: bytes(i * 7 % 251 for i in range(3 * 4096)),
    INITRAMFS: bytes(i * 11 % 249 for i in range(5000)),
}
NAMES = {STORED: "kernel", INITRAMFS: "initramfs"}
MEMORY = {**DATA, LENT: bytes(3 * 4096)}


def region(start: int, data: bytes, name: str = "") -> Region:
    return Region(name or NAMES[start], start, len(data), hashlib.sha256(data).digest())


FULL = Handover(
    kernel_entry=KERNEL,
    boot_params=PARAMS,
    regions=[region(start, data) for start, data in DATA.items()],
    copy=Copy(STORED, LENT, 3 * 4096),
    wait_seconds=0.05,
    pm_timer_port=PM_PORT,
    serial_port=SERIAL_PORT,
    record_phys=RECORD,
)
PLAIN = replace(FULL, regions=(), copy=None)


def machine(ports: Ports | None = None, of: Handover = FULL, **more: Any) -> Machine:
    """A machine with the usual memory, and ``more`` parameters than ``of`` has."""
    memory = dict(MEMORY)
    for start, end in WATCHED if more.get("watch_seconds") else ():
        memory[start] = bytes(i % 253 for i in range(end - start))
    return Machine(replace(of, **more), ports, memory=memory)


def assert_entered(m: Machine) -> None:
    """What the 64-bit boot protocol demands (Documentation/arch/x86/boot.rst)."""
    got = m.registers()
    assert m.entered, m.lines
    assert got["RSI"] == PARAMS
    assert (got["CS"], got["DS"], got["ES"], got["SS"]) == (0x10, 0x18, 0x18, 0x18)
    assert got["EFLAGS"] & 0x600 == 0, "IF and DF must be clear"
    assert CODE <= got["RSP"] <= CODE + len(m.code)


def assert_reset(m: Machine, reason: str) -> None:
    """The reason on the console and in the record, then every way of resetting there is."""
    assert not m.entered
    assert m.lines[-2:] == [reason, "resetting the machine"]
    assert m.record["reset"] == reason
    assert [reset[:2] for reset in m.ports.resets] == RESETS
    assert m.is_reset


# keyboard controller, reset control register in three steps; then a triple fault
RESETS = [(0x64, 0xFE), (0xCF9, 0x02), (0xCF9, 0x06), (0xCF9, 0x0E)]


# --- the normal way ------------------------------------------------------------------------------


def test_the_kernel_is_entered_as_the_boot_protocol_demands() -> None:
    """Rsi is boot_params, selectors are 0x10 and 0x18, interrupts and direction flag are off."""
    m = machine().run()
    assert_entered(m)
    got = m.registers()
    assert {got[name] for name in ("RBX", "RCX", "RDX", "RDI", "RBP")} == {0}


def test_every_step_is_told_and_recorded() -> None:
    """In the order of the work; the record is one JSON object with blanks and a newline behind."""
    functions = {0x0020: {"vendor": 0x8086, "command": 7}}
    m = machine(
        Ports(functions=functions),
        bus_masters=[0x0020],
        lent=WATCHED,
        watch_seconds=0.02,
        watch_limit_seconds=1,
    ).run()
    assert_entered(m)
    assert m.step_names == ["self", "bus-masters-off", "wait", "watch", "verify", "copy"]
    assert m.record["clock"] == "pm"
    assert 2_500_000 <= m.record["tsc_khz"] < 2_600_000
    assert m.step("self")["bad"] == 0
    verify, copy = m.step("verify"), m.step("copy")
    assert (verify["regions"], verify["bad"], "first_bad" in verify) == (2, 0, False)
    assert (copy["tries"], copy["bad"]) == (1, 0)
    assert "reset" not in m.record
    text = m.record_text()
    assert text.rstrip(b" \n") + b" " * text.count(b" ") + b"\n" == text
    assert [line.split()[0] for line in m.lines] == (
        ["TSC", "bus", "waiting", "waited", "watching", "lent", "changes", "segments", "kernel"]
    )


@pytest.mark.parametrize("at", [CODE, 0x1000, 0xFFFF_F000, 0x12_3456_7000])
def test_it_runs_at_any_page(at: int) -> None:
    """Also across 4 GiB; its own digest is right wherever it lies."""
    m = Machine(FULL, at=at, memory=dict(MEMORY)).run()
    assert m.entered
    assert m.cpu.mem_read(LENT, 3 * 4096) == DATA[STORED]


def test_without_anything_to_do_no_port_but_the_clock_s_is_touched() -> None:
    """No wait, no serial port, no record: it verifies itself and goes on."""
    m = machine(of=Handover(KERNEL, PARAMS, pm_timer_port=PM_PORT)).run()
    assert_entered(m)
    assert m.ports.used == {PM_PORT}


def test_the_tables_are_ours_before_any_port_is_touched() -> None:
    """At every access to a port the IDT is purgatory's own, and CS and SS are from its GDT."""
    m = machine(Ports(pm_rate=0)).run()
    assert_entered(m)
    (idt, cs, ss), *others = m.tables
    assert not others
    assert CODE <= idt < CODE + len(m.code)
    assert (cs, ss) == (0x10, 0x18)


def test_lent_memory_is_written_after_the_wait_alone() -> None:
    """Every stored byte arrives, none before the time is over."""
    m = machine(wait_seconds=0.2)
    times: list[float] = []
    m.on_access("write", LENT, 3 * 4096, lambda _at: times.append(m.ports.now))
    assert_entered(m.run())
    assert m.cpu.mem_read(LENT, 3 * 4096) == DATA[STORED]
    assert min(times) >= 0.2e9


def test_the_kernel_that_runs_where_it_is_stored_is_not_copied() -> None:
    """Placement reserved: nothing is written to lent memory."""
    m = machine(copy=None)
    m.on_access("write", LENT, 3 * 4096, lambda at: pytest.fail(f"{at:#x} is written"))
    assert_entered(m.run())
    assert "copy" not in m.step_names


def test_what_is_planned_is_what_is_made() -> None:
    """purgatory_bytes() is the length of the code, with 300 lent ranges as well."""
    lent = [(n * 0x10000, n * 0x10000 + 0x1000) for n in range(300)]
    m = machine(lent=lent, watch_seconds=1, bus_masters=[8, 9])
    assert len(m.code) == purgatory_bytes(2, 300, 2)
    unwatched = machine(lent=lent)
    assert len(unwatched.code) == purgatory_bytes(2, 0, 0)


def test_a_copy_of_what_is_not_verified_is_an_error() -> None:
    """The copy is checked by a region's digest; without that region nothing is built."""
    with pytest.raises(ValueError, match="not in list"):
        machine(copy=Copy(STORED, LENT, 4096))


# --- time ----------------------------------------------------------------------------------------


def waited(m: Machine) -> float:
    """Seconds of the machine's own time between the two lines on the console."""
    times: dict[str, float] = {}
    write = m.ports.write

    def noted(port: int, size: int, value: int) -> None:
        write(port, size, value)
        if port == SERIAL_PORT and value == ord("\n"):
            times[m.lines[-1].split()[0]] = m.ports.now

    m.ports.write = noted  # type: ignore[method-assign]
    assert_entered(m.run())
    return (times["waited"] - times["waiting"]) / 1e9


@pytest.mark.parametrize("ghz", [0.8, 2.5, 5.9])
@pytest.mark.parametrize("clock", ["pm", "pit"])
def test_it_waits_as_long_as_asked(clock: str, ghz: float) -> None:
    """By the calibrated TSC, whatever its frequency: not shorter, and hardly longer."""
    port = PM_PORT if clock == "pm" else None
    m = machine(Ports(ghz=ghz, step_ns=50_000), of=PLAIN, wait_seconds=1.0, pm_timer_port=port)
    took = waited(m)
    assert m.record["clock"] == clock
    assert 1.0 <= took < 1.03
    assert 1000 <= m.step("wait")["ms"] < 1030


@pytest.mark.parametrize(("bits_", "start"), [(24, 0xFFFF00), (24, 0xFFFFFF), (32, 0xFFFFFF00)])
def test_the_pm_timer_may_wrap_around(bits_: int, start: int) -> None:
    """A counter of 24 or 32 bits that runs over during the calibration loses nothing."""
    m = machine(Ports(pm_start=start, pm_bits=bits_)).run()
    assert_entered(m)
    assert (m.record["clock"], m.record["tsc_khz"] // 100_000) == ("pm", 25)


@pytest.mark.parametrize(
    "ports",
    [
        Ports(pm_rate=0),
        Ports(pm_rate=0.001),
        Ports(pm_rate=100),
        Ports(pm_read=lambda reading, value: 0xFFFFFFFF),
        Ports(pm_read=lambda reading, value: min(reading, 200)),
    ],
)
def test_a_pm_timer_that_is_wrong_gives_way_to_the_pit(ports: Ports) -> None:
    """Still from the first or later, far too slow, far too fast, or none at all."""
    ports.step_ns = 100_000
    m = machine(ports).run()
    assert_entered(m)
    assert (m.record["clock"], m.record["tsc_khz"] // 100_000) == ("pit", 25)


def test_two_wrong_readings_of_the_pm_timer_do_not_count() -> None:
    """The median of five samples: a glitch, or a pause of the machine, spoils its own sample."""
    glitches = {3: 0x800000, 700: 0xFFFF00}
    ports = Ports(pm_read=lambda reading, value: glitches.get(reading, value))
    m = machine(ports).run()
    assert (m.record["clock"], m.record["tsc_khz"] // 100_000) == ("pm", 25)


def test_a_pause_of_the_machine_makes_no_wait_shorter() -> None:
    """SMIs in every sample: the TSC is taken for a faster one, and the wait is longer."""

    def paused(reading: int, value: int) -> int:
        if reading % 150 == 0:
            ports.now += 5e6
        return value

    ports = Ports(pm_read=paused, step_ns=50_000)
    m = machine(ports, of=PLAIN, wait_seconds=1.0)
    assert waited(m) >= 1.0
    assert m.record["clock"] == "pm"


def test_a_run_of_the_pit_whose_beginning_was_missed_is_done_again() -> None:
    """An SMI or a busy host may hide the low output; that costs a run, no more."""
    m = machine(Ports(pit_delays=[2e7, 0, 2e7]), pm_timer_port=None).run()
    assert (m.record["clock"], m.record["tsc_khz"] // 100_000) == ("pit", 25)
    assert m.ports.pit_runs == 5 + 2


DEAD = [
    Ports(pit=False),
    Ports(pit=False, no_pit=0x20),
    Ports(pit=False, no_pit=0),
    Ports(pit_rate=0),
]


@pytest.mark.parametrize("port", [None, PM_PORT])
@pytest.mark.parametrize("dead", DEAD)
def test_without_any_timer_the_tsc_counts_as_the_fastest(dead: Ports, port: int | None) -> None:
    """No timer: neither a hang nor a wait that is skipped; at 2.5 GHz it takes 6/2.5 as long."""
    ports = replace(dead, pm_rate=0, step_ns=100_000, output=bytearray(), used=set())
    m = machine(ports, of=PLAIN, wait_seconds=0.5, pm_timer_port=port)
    took = waited(m)
    assert (m.record["clock"], m.record["tsc_khz"]) == ("tsc", 6_000_000)
    assert 0.5 * 6 / 2.5 <= took < 0.5 * 6 / 2.5 * 1.01
    assert m.ports.now < 5e9, "looking for a timer takes seconds at most"


def test_times_are_rounded_up() -> None:
    """A time below a microsecond is one; only zero is no wait."""
    assert machine(of=PLAIN, wait_seconds=1e-9).run().step_names == ["self", "wait", "verify"]
    assert machine(of=PLAIN, wait_seconds=0).run().step_names == ["self", "verify"]


# --- digests -------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", DATA)
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_one_flipped_bit_in_a_segment_resets_the_machine(start: int, where: str) -> None:
    """Not a byte of lent memory is written, and the reason names the segment."""
    size = len(DATA[start]) * 8
    bit = {"first": 0, "middle": size // 2 + 3, "last": size - 1}[where]
    m = machine()
    m.place(start, bits(DATA[start], [bit]))
    m.on_access("write", LENT, 3 * 4096, lambda at: pytest.fail(f"{at:#x} is written"))
    m.run()
    assert_reset(m, f"digest of {NAMES[start]}")
    verify = m.step("verify")
    assert (verify["bad"], verify["first_bad"]) == (1, list(DATA).index(start))


def test_all_bad_segments_are_counted() -> None:
    """The first one is the reason."""
    m = machine()
    for start, data in DATA.items():
        m.place(start, bits(data, [77]))
    m.run()
    assert_reset(m, "digest of kernel")
    assert (m.step("verify")["bad"], m.step("verify")["first_bad"]) == (2, 0)


def test_a_doubtful_dump_where_that_is_preferred() -> None:
    """on_mismatch=boot: said, recorded, and the kernel is entered."""
    m = machine(on_mismatch="boot")
    m.place(INITRAMFS, bits(DATA[INITRAMFS], [9]))
    assert_entered(m.run())
    assert "digest of initramfs" in m.lines
    assert (m.step("verify")["bad"], m.step("verify")["first_bad"]) == (1, 1)
    assert "reset" not in m.record


def test_a_flipped_bit_in_the_parameters_or_tables_is_found_first() -> None:
    """Each byte from the digest on, and of the tables: a reset before anything is done by them."""
    m = quick()
    ports_told = range(offset("serial_port"), offset("stored_bytes"))
    places = {*range(16, 160), *range(m.tables_at, len(m.code), 7)} - {*ports_told}
    too_long = range(offset("stored_bytes") + 1, offset("stored_bytes") + 4)
    for place in sorted(places - {*range(offset("record"), offset("record") + 8)}):
        m = flipped(quick(), place * 8 + place % 8).run_with_faults()
        assert not m.entered, f"byte {place}"
        assert m.is_reset, f"byte {place}"
        if place in range(offset("record_bytes"), offset("record_bytes") + 4):
            continue
        assert m.record["steps"] == []
        reason = "exception 14" if "exception" in m.lines[0] else "digest of purgatory"
        assert m.record["reset"].startswith(reason), f"byte {place}"
        assert reason != "exception 14" or place in too_long, f"byte {place}"


@pytest.mark.parametrize("name", ["record", "record_bytes"])
@pytest.mark.parametrize("on_mismatch", ["reset", "boot"])
def test_a_record_whose_place_is_doubtful_is_not_written(name: str, on_mismatch: str) -> None:
    """The node's header must agree with the parameters: other memory is to be dumped."""
    m = flipped(quick(on_mismatch=on_mismatch), offset(name) * 8 + 6)
    m.on_access("write", RECORD & ~4095, 4096, lambda at: pytest.fail(f"{at:#x} is written"))
    m.run()
    assert m.lines[0] == "digest of purgatory"
    assert (m.entered, m.is_reset) == (on_mismatch == "boot", on_mismatch == "reset")


def test_a_damaged_purgatory_boots_where_that_is_preferred() -> None:
    """It says so, and its record, too, whose place is known to be right."""
    m = flipped(quick(on_mismatch="boot"), offset("wait_us") * 8)
    assert_entered(m.run())
    assert m.step("self")["bad"] == 1


@pytest.mark.parametrize(
    ("name", "bit"),
    [
        *(("wait_us", bit) for bit in (0, 32, 40, 63)),
        *(("watch_us", bit) for bit in (20, 36)),
        *(("watch_limit_us", bit) for bit in (30, 50)),
        *((name, bit) for name in ("regions", "lent", "bus_masters") for bit in (3, 12, 31)),
        ("bus_masters_at", 20),
    ],
)
def test_a_damaged_parameter_neither_lasts_nor_leads_astray(name: str, bit: int) -> None:
    """Where booting is preferred, what could last or loop by a damaged number is left out."""
    ports = Ports(step_ns=5e6)
    m = flipped(machine(ports, on_mismatch="boot"), offset(name) * 8 + bit)
    assert_entered(m.run())
    assert m.step_names == ["self", "wait", "copy"]
    assert 10_000 <= m.step("wait")["ms"] < 20_000
    assert ports.config_writes == []


def test_a_flipped_bit_does_not_turn_a_reset_into_a_boot() -> None:
    """on_mismatch is four letters: no single bit makes the one into the other."""
    for bit in range(offset("on_mismatch") * 8, offset("on_mismatch") * 8 + 32):
        assert flipped(quick(), bit).run().is_reset
        assert flipped(quick(on_mismatch="boot"), bit).run().is_reset


def test_a_flipped_bit_in_the_code_never_boots_unsaid() -> None:
    """Found by its digest, or it leads astray, which is an exception; the kernel is not entered."""
    found, astray = 0, 0
    for bit in range(offset("bus_masters") * 8 + 32, quick().image_end * 8, 997):
        m = flipped(quick(), bit)
        try:
            m.run_with_faults()
        except (UcError, AssertionError):  # no exception that is delivered, or a port nobody knows
            astray += 1
            continue
        assert not m.entered, f"bit {bit}"
        found += m.is_reset
    assert found > 40
    assert astray < 10


def quick(**more: Any) -> Machine:
    """A machine whose time flies: for what no time matters to."""
    return machine(Ports(step_ns=5e6), wait_seconds=0, **more)


def flipped(m: Machine, bit: int) -> Machine:
    m.place(m.at, bits(m.code, [bit]))
    return m


def offset(name: str) -> int:
    """Where a field of struct handover lies in the segment."""
    before = itertools.takewhile(lambda row: row[0] != name, HANDOVER)
    return HANDOVER_OFFSET + struct.calcsize("<" + "".join(code for _, code in before))


@pytest.mark.parametrize(("times", "tries"), [(1, 2), (3, 4)])
def test_a_copy_that_a_device_wrote_over_is_made_again(times: int, tries: int) -> None:
    """Up to three times; then the digest is right."""
    m = machine()
    spoil(m, times)
    assert_entered(m.run())
    assert (m.step("copy")["tries"], m.step("copy")["bad"]) == (tries, 0)
    assert m.cpu.mem_read(LENT, 3 * 4096) == DATA[STORED]


def spoil(m: Machine, times: int) -> None:
    """A device writes into the copy when its last bytes are there, so many times."""
    left = [times]
    last = LENT + 2 * 4096 + 128

    def wrote(at: int) -> None:
        if at == last and left[0]:
            left[0] -= 1
            m.cpu.mem_write(LENT + 64, b"late DMA")

    m.on_access("write", LENT, 3 * 4096, wrote)


@pytest.mark.parametrize("on_mismatch", ["reset", "boot"])
def test_a_copy_that_is_never_right_is_a_mismatch(on_mismatch: str) -> None:
    """Four tries in all; then the machine is reset, or boots where the plan says so."""
    m = machine(on_mismatch=on_mismatch)
    spoil(m, 99)
    m.run()
    assert (m.step("copy")["tries"], m.step("copy")["bad"]) == (4, 1)
    if on_mismatch == "boot":
        assert_entered(m)
    else:
        assert_reset(m, "digest of the kernel's copy")


SIZES = [0, 1, 3, 55, 56, 57, 63, 64, 65, 119, 120, 127, 128, 129, 1000, 4096, 70001]


@pytest.mark.parametrize("size", SIZES)
def test_sha_256_is_hashlib_s(size: int) -> None:
    """Around the borders of blocks and of the padding; one byte more or less is a mismatch."""
    data = bytes(i * i % 241 for i in range(size))
    assert verified(data, hashlib.sha256(data).digest())
    assert not verified(data, hashlib.sha256(data + b"\0").digest())
    if data:
        assert not verified(data, hashlib.sha256(data[:-1]).digest())


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 7))
def test_sha_256_of_any_bytes_at_any_address(data: bytes, offset: int) -> None:
    """Aligned or not."""
    assert verified(data, hashlib.sha256(data).digest(), offset)


def verified(data: bytes, digest: bytes, offset: int = 0) -> bool:
    """Whether purgatory takes ``data`` for what has this digest."""
    start = INITRAMFS + offset
    handover = Handover(KERNEL, PARAMS, [Region("x", start, len(data), digest)])
    handover = replace(handover, pm_timer_port=PM_PORT)
    m = Machine(handover, Ports(step_ns=500_000), memory={start: data or b" "}).run()
    assert m.entered != m.is_reset
    return m.entered


# --- bus masters ---------------------------------------------------------------------------------


def test_bus_masters_are_switched_off_and_nothing_else_is_changed() -> None:
    """Of the functions named; one that is gone, or was off, is not written to."""
    functions = {
        bus_master("0000:00:04.0"): {"vendor": 0x8086, "command": 0x0507},
        bus_master("0000:00:1f.2"): {"vendor": 0x8086, "command": 0x0003},
        bus_master("0000:3a:00.7"): {"vendor": 0x15B3, "command": 0x0406},
        bus_master("0000:00:05.0"): {"vendor": 0x8086, "command": 0x0007},  # not named
    }
    named = ["0000:00:04.0", "0000:00:1f.2", "0000:3a:00.7", "0000:00:09.0"]
    ports = Ports(functions=functions)
    m = machine(ports, bus_masters=[bus_master(name) for name in named], wait_seconds=0).run()
    assert_entered(m)
    assert [f["command"] for f in functions.values()] == [0x0503, 0x0003, 0x0402, 0x0007]
    assert ports.config_writes == [(0x0020, 4, 0x0503), (0x3A07, 4, 0x0402)]
    step = m.step("bus-masters-off")
    assert (step["functions"], step["cleared"], step["still_on"]) == (3, 2, 0)
    assert "functions that did not answer or heed it: 1" in m.lines


def test_a_function_that_keeps_its_bit_is_told() -> None:
    """The register is read again: lending may have been allowed on the strength of that bit."""
    stubborn = {0x0020: {"vendor": 0x8086, "command": 7, "fixed": 1}}
    m = machine(Ports(functions=stubborn), bus_masters=[0x0020], wait_seconds=0).run()
    assert_entered(m)
    step = m.step("bus-masters-off")
    assert (step["functions"], step["cleared"], step["still_on"]) == (1, 1, 1)
    assert "functions that did not answer or heed it: 1" in m.lines


def test_bus_masters_are_off_before_lent_memory_is_written() -> None:
    """And before the wait: what a device still has in flight lands while that runs."""
    functions = {0x20: {"vendor": 0x8086, "command": 7}}
    m = machine(Ports(functions=functions), bus_masters=[0x20])
    seen: list[int] = []
    m.on_access("write", LENT, 4096, lambda _at: seen.append(functions[0x20]["command"]))
    assert_entered(m.run())
    assert set(seen) == {3}
    assert m.step_names.index("bus-masters-off") < m.step_names.index("wait")


def test_functions_of_other_segments_cannot_be_reached() -> None:
    """CF8 and CFC know segment 0 alone."""
    assert bus_master("0000:ff:1f.7") == 0xFFFF
    with pytest.raises(ValueError, match=r"0001:00:04\.0"):
        bus_master("0001:00:04.0")


# --- the watch -----------------------------------------------------------------------------------


def watching(ports: Ports | None = None, seconds: float = 0.05, limit: float = 1.0) -> Machine:
    ports = ports or Ports(step_ns=200_000)
    return machine(
        ports,
        wait_seconds=0,
        lent=WATCHED,
        watch_seconds=seconds,
        watch_limit_seconds=limit,
    )


def test_quiet_memory_is_watched_for_the_time_asked() -> None:
    """Every word of every range is read in each pass; no change is seen."""
    m = watching()
    read: set[int] = set()
    for start, end in WATCHED:
        m.on_access("read", start, end - start, read.add)
    assert_entered(m.run())
    assert read == {at for start, end in WATCHED for at in range(start, end, 8)}
    step = m.step("watch")
    assert (step["changes"], step["quiet"]) == (0, True)
    assert step["passes"] >= 3
    assert 50 <= step["ms"] < 80


@pytest.mark.parametrize("last", [0, 3, 10])
def test_the_time_counts_from_the_last_change(last: int) -> None:
    """Memory that changes for some passes and settles: quiet, so much later."""
    m = watching()
    change_each_pass(m, last)
    assert_entered(m.run())
    step = m.step("watch")
    assert (step["changes"], step["quiet"]) == (last, True)
    quiet_from = list(m.changed_at) if last else [0.0]  # type: ignore[attr-defined]
    assert m.ports.now - quiet_from[-1] >= 0.05e9


def change_each_pass(m: Machine, times: int) -> None:
    """A device changes a word of the last range each time the first word is read, so often."""
    m.changed_at = []  # type: ignore[attr-defined]
    passes = [0]

    def first(_at: int) -> None:
        passes[0] += 1
        if 1 < passes[0] <= times + 1:
            m.cpu.mem_write(WATCHED[1][0] + 0xFF8, passes[0].to_bytes(8, "little"))
            m.changed_at.append(m.ports.now)  # type: ignore[attr-defined]

    m.on_access("read", WATCHED[0][0], 8, first)


def test_memory_that_never_settles_is_given_up_on() -> None:
    """After the limit it goes on, and the record says so."""
    m = watching(limit=0.2)
    change_each_pass(m, 10**9)
    assert_entered(m.run())
    step = m.step("watch")
    assert step["quiet"] is False
    assert step["changes"] == step["passes"] - 1 > 3
    assert 200 <= step["ms"] < 220


def test_a_pass_that_takes_longer_than_the_limit_is_cut() -> None:
    """The limit holds inside a pass: with terabytes one takes minutes."""
    m = watching(Ports(step_ns=3e8), limit=0.2)
    assert_entered(m.run())
    assert (m.step("watch")["passes"], m.step("watch")["quiet"]) == (0, False)


@pytest.mark.parametrize(
    "change",
    [
        lambda old: bits(old, [0]),
        lambda old: bits(old, [len(old) * 8 - 1]),
        lambda old: old[8:16] + old[:8] + old[16:],
        lambda old: old[32:64] + old[:32] + old[64:],
        lambda old: bits(old, [63, 64 * 4 + 63]),
    ],
)
def test_any_change_is_seen(change: Callable[[bytes], bytes]) -> None:
    """The first and the last bit, words that change places, two upper bits of one lane."""
    m = watching()
    start, end = WATCHED[1]
    done: list[int] = []

    def second_pass(_at: int) -> None:
        done.append(1)
        if len(done) == 2:
            m.cpu.mem_write(start, change(bytes(m.cpu.mem_read(start, end - start))))

    m.on_access("read", WATCHED[0][0], 8, second_pass)
    assert_entered(m.run())
    assert m.step("watch")["changes"] == 1


# --- exceptions ----------------------------------------------------------------------------------

STAGES = ["calibrate", "wait", "watch", "verify", "copy"]


def stopped_at(stage: str) -> Machine:
    """A machine that has run up to the middle of a stage."""
    m = machine(Ports(), lent=WATCHED, watch_seconds=0.05, watch_limit_seconds=1)
    line, more_instructions = {
        "calibrate": ("", 0),
        "wait": ("waiting", 100),
        "watch": ("watching", 2000),
        "verify": ("changes seen", 20_000),
        "copy": ("segments are whole", 100),
    }[stage]
    m.stop_when = lambda: m.just_said.startswith(line) if line else m.ports.pm_reads == 100
    m.run()
    m.stop_when = lambda: False
    if more_instructions:
        m.run(m.registers()["RIP"], more_instructions)
    assert not m.entered
    assert not m.interrupts
    return m


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("vector", [0, 6, 8, 13, 18, 30])
def test_an_exception_at_any_stage_resets_the_machine(stage: str, vector: int) -> None:
    """With its number and place on the console and in the record, error code or not."""
    m = stopped_at(stage)
    place = m.registers()["RIP"]
    m.deliver(vector)
    assert_reset(m, f"exception {vector} at {place:#x}")
    before = STAGES.index(stage)
    assert m.step_names == ["self", "wait", "watch", "verify"][:before]


def test_a_page_fault_says_what_was_touched() -> None:
    """CR2 tells more than the place does."""
    m = stopped_at("wait")
    m.cpu.reg_write(register("CR2"), 0xFEE0_0030)
    place = m.registers()["RIP"]
    m.deliver(14)
    assert_reset(m, f"exception 14 at {place:#x} touching 0xfee00030")


def test_an_exception_while_the_reason_is_told_resets_at_once() -> None:
    """No endless loop of exceptions: the second one goes straight to the reset."""
    m = stopped_at("wait")
    m.stop_when = lambda: b"exception" in m.ports.output
    m.ports.serial = "stuck"
    m.ports.stuck_after = len(m.ports.output) + 25
    m.deliver(13)
    assert not m.interrupts
    m.stop_when = lambda: False
    m.deliver(13)
    assert [reset[:2] for reset in m.ports.resets] == RESETS
    assert m.is_reset


@pytest.mark.parametrize("stage", STAGES)
def test_an_nmi_at_any_stage_changes_nothing(stage: str) -> None:
    """The handler goes back to where the NMI came, all registers as before, and all ends well."""
    m = stopped_at(stage)
    assert_entered(m.deliver(NMI))
    assert m.step_names == ["self", "wait", "watch", "verify", "copy"]
    assert m.cpu.mem_read(LENT, 3 * 4096) == DATA[STORED]


@pytest.mark.parametrize("at", [CODE, 0x1000, 0xFFFF_F000, 0x12_3456_7000])
def test_an_nmi_returns_and_every_other_exception_is_told_apart(at: int) -> None:
    """32 interrupt gates on our code segment and our stack, at any address."""
    m = Machine(FULL, at=at, memory=dict(MEMORY)).run()
    gates = m.gates()
    assert {gate[1:] for gate in gates} == {(0x10, 0, 0x8E)}
    assert len({gate[0] for gate in gates}) == 32
    assert all(at <= gate[0] < at + m.image_end for gate in gates)
    assert m.cpu.mem_read(gates[NMI][0], 2) == b"\x48\xcf", "iretq"


# --- reset, console, record ----------------------------------------------------------------------


def test_every_way_of_resetting_has_its_time() -> None:
    """2^27 cycles each: one that takes effect late is not overtaken."""
    m = machine()
    m.place(STORED, bits(DATA[STORED], [1]))
    m.run()
    times = [at for *_, at in m.ports.resets]
    assert all(later - sooner >= (1 << 27) / 2.5 for sooner, later in zip(times, times[1:]))


def test_acpi_s_reset_register_is_the_first_where_there_is_one() -> None:
    """What the firmware names is what it has tested."""
    m = machine(reset_register=(0xB2, 0x73))
    m.place(STORED, bits(DATA[STORED], [1]))
    m.run()
    assert [reset[:2] for reset in m.ports.resets] == [(0xB2, 0x73), *RESETS]
    assert m.is_reset


@pytest.mark.parametrize("after", [0, 30])
def test_a_serial_port_that_stands_still_is_given_up(after: int) -> None:
    """Hardware flow control, a broken UART: 11 ms of the fastest TSC are lost once."""
    good = machine().run()
    m = machine(Ports(serial="stuck", stuck_after=after)).run()
    assert_entered(m)
    assert len(m.ports.output) == after
    assert m.ports.now - good.ports.now < 0.1e9


def test_a_serial_port_that_is_not_there_costs_nothing() -> None:
    """0xff is no line status."""
    m = machine(Ports(serial="absent")).run()
    assert_entered(m)
    assert not m.ports.output


def test_without_a_place_no_record_is_kept() -> None:
    """Address 0 is not written to, also on the way to a reset."""
    assert_entered(machine(record_phys=None).run())
    m = machine(record_phys=None)
    m.place(STORED, bits(DATA[STORED], [1]))
    assert m.run().is_reset


@pytest.mark.parametrize("size", [1, 20, 150, 400])
def test_a_record_never_leaves_its_room(size: int) -> None:
    """Too small a room cuts it; what lies behind stays."""
    m = machine(record_bytes=size)
    m.place(RECORD + size, b"?" * 64)
    assert_entered(m.run())
    assert m.record_text(size + 64)[size:] == b"?" * 64
    assert m.record_text(size)[-1:] == b"\n"


def test_the_longest_record_has_room() -> None:
    """All steps, every number at its longest, and the longest reason."""
    number = 2**64 - 1
    keys = {
        "self": ("bad",),
        "bus-masters-off": ("functions", "cleared"),
        "wait": (),
        "watch": ("passes", "changes", "quiet"),
        "verify": ("regions", "bad", "first_bad"),
        "copy": ("tries", "bad"),
    }
    steps = [
        f'{{"step":"{name}","ms":{number}' + "".join(f',"{k}":{number}' for k in more) + "},"
        for name, more in keys.items()
    ]
    reason = f"exception 14 at {number:#x} touching {number:#x}"
    text = '{"steps":[' + "".join(steps) + f'],"tsc_khz":{2**32},"clock":"pit","reset":"{reason}"}}'
    assert len(text) < FULL.record_bytes
