# SPDX-License-Identifier: LGPL-2.1-or-later
"""Lending by kexec_file_load: words, a core header of our own, and where the kernel put it."""

from __future__ import annotations

import errno
import os
import random
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from build import BLOCK, GIB, MIB, PAGE, bz_image, facts
from crashlend import filemode
from crashlend.config import Settings
from crashlend.errors import CrashlendError, RefusedError, TooSmallError
from crashlend.filemode import PLACEHOLDER, at_address, largest, without_lending
from crashlend.fileroom import check_room
from crashlend.formats import elfcore, newc
from crashlend.formats.bzimage import BzImage
from crashlend.formats.elfcore import PT_LOAD, ProgramHeader
from crashlend.plan import Plan, make_plan
from crashlend.ranges import Range, Ranges
from crashlend.system import fallback, file_load, handover, kept, kexec, loading
from crashlend.system import image as image_module
from crashlend.system.image import CrashImage, build_image, is_in_memory
from test_image import Kcore
from test_quiesce import GPU, writing
from test_shrink import FILES

LENT = (36, 38, 39)
CMA = [(0x110000000 - GIB // 4, 0x110000000)]


def plan_of(some: Any = None, **settings: Any) -> Plan:
    host = facts(movable=LENT, lent=LENT) if some is None else some
    words = {"lender": "movable", "lend": len(LENT) * BLOCK, "syscall": "file", **settings}
    return make_plan(host, Settings(**words), FILES.payload)


def words_of(plan: Plan, name: str) -> list[str]:
    assert plan.cmdline is not None
    found = (word.partition("=") for word in plan.cmdline.line.split())
    return [value for key, _, value in found if key == name]


def memparse(text: str) -> int:
    """A number as lib/cmdline.c:memparse() reads it."""
    match = re.fullmatch(r"(0x[0-9a-f]+|[1-9][0-9]*)([KMGT]?)", text)
    assert match, text
    return int(match[1], 0) << {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[match[2]]


def read_memmap(text: str) -> Ranges:
    """What parse_memmap_opt() in arch/x86/kernel/e820.c adds as RAM."""
    pairs = (item.split("@") for item in text.split(","))
    return Ranges((memparse(at), memparse(at) + memparse(size)) for size, at in pairs)


# --- the plan ------------------------------------------------------------------------------------


def test_lent_memory_is_on_the_command_line_and_out_of_the_core_header() -> None:
    """The kernel reads back just what is lent; no PT_LOAD meets it; all other RAM has one."""
    plan = plan_of()
    lent = Ranges((i * BLOCK, (i + 1) * BLOCK) for i in LENT)
    assert plan.lent == plan.by_word == lent
    (memmap,) = words_of(plan, "memmap")
    assert read_memmap(memmap) == lent
    loads = Ranges((h.phys, h.end) for h in plan.program_headers if h.type == PT_LOAD)
    assert not loads.meets(lent)
    low = Ranges([(0, MIB)])
    assert loads.covers(plan.system_ram - plan.reservation - lent - low)
    assert plan.costs.shared_bytes == lent.size


@pytest.mark.parametrize("lockdown", ["none", "integrity"])
def test_auto_takes_kexec_file_load_under_lockdown_alone(lockdown: str) -> None:
    """What is lent is the same, how it is handed over is not."""
    host = facts(movable=LENT, lent=LENT, lockdown=lockdown)
    plan = plan_of(host, syscall="auto")
    assert plan.syscall == ("file" if lockdown == "integrity" else "load")
    assert plan.lent.size == 3 * BLOCK
    assert bool(words_of(plan, "memmap")) == (lockdown == "integrity")


def test_the_last_elfcorehdr_is_ours() -> None:
    """The kernel puts its own before the line, and the last one counts."""
    assert words_of(plan_of(), "elfcorehdr") == ["0x0000000000000000"]
    assert words_of(plan_of(lend=0), "elfcorehdr") == []


def test_the_kernel_s_own_ranges_need_no_word_and_are_in_no_header() -> None:
    """They are in the map that it builds; a header of ours must leave them out, asked for or not."""
    host = facts(movable=LENT, lent=LENT, cma_ranges=CMA)
    both = plan_of(host, lender="cma,movable", lend=GIB // 4 + 3 * BLOCK)
    assert both.lent.covers(Ranges(CMA))
    assert read_memmap(words_of(both, "memmap")[0]) == both.lent - Ranges(CMA)
    for plan in (both, plan_of(host)):
        loads = Ranges((h.phys, h.end) for h in plan.program_headers if h.type == PT_LOAD)
        assert not loads.meets(Ranges(CMA))
    assert any("too, and leaves them out" in note for note in plan_of(host).notes)
    for plan in (both, plan_of(host)):
        # the crash kernel has them, too
        gets = (plan.lent | Ranges(CMA)).size + plan.reservation.size
        assert plan.costs.crash_kernel_bytes is not None
        assert 0 <= plan.costs.crash_kernel_bytes - gets <= MIB
    alone = plan_of(host, lender="cma", lend=GIB // 4)
    assert (alone.by_word, alone.program_headers) == (Ranges(), ())


def test_a_dump_that_lacks_the_kernels_own_ranges_has_no_user_data_either() -> None:
    """kexec_file_load leaves them out though nothing is asked for: such levels are refused there."""
    host = facts(cma_ranges=CMA)
    with pytest.raises(RefusedError, match="dump level 1"):
        plan_of(host, lend=0, lender="none", dump_level=1)
    allowed = plan_of(host, lend=0, lender="none", dump_level=1, allow_missing_user_data=True)
    assert allowed.load_variables["ALLOW_MISSING_USER_DATA"] == "1"
    assert not plan_of(host, lend=0, lender="none", dump_level=1, syscall="load").lent


def test_a_short_line_takes_the_largest_ranges_and_the_rest_is_said() -> None:
    """No word is cut, the line keeps within its limit, and the plan names what is not lent."""
    pages = [Range(4 * GIB + i * MIB, 4 * GIB + i * MIB + (i % 7 + 1) * PAGE) for i in range(200)]
    handed = filemode.hand_over(facts(), Ranges(pages), (), "", 2047)
    assert 20 < len(handed.by_word) < 200
    assert min(r.size for r in handed.by_word) >= max(
        r.size for r in Ranges(pages) - handed.by_word
    )
    assert any("has no room" in note for note in handed.notes)
    assert handed.lent == handed.by_word


@given(
    st.lists(st.tuples(st.integers(1, 1 << 30), st.integers(1, 1 << 20)), min_size=1, max_size=60),
    st.integers(0, 2000),
)
def test_words_say_what_they_must_in_the_room_there_is(
    pairs: list[tuple[int, int]], room: int
) -> None:
    """Read back by the kernel's rules they are the ranges; they are never longer than allowed."""
    wanted = Ranges((at * PAGE, (at + size) * PAGE) for at, size in pairs)
    taken = largest(wanted, room)
    assert taken - wanted == Ranges()
    for word in filemode.words_of(taken)[:1]:
        text = word.word.partition("=")[2]
        assert len(text) <= room
        assert read_memmap(text) == taken


def test_the_order_of_loads_is_told_nobody_waits_for_dma() -> None:
    """Without ,cma ranges of the kernel's nothing waits: a note, for it can't be had."""
    assert any("nothing waits for DMA" in note for note in plan_of().notes)
    host = facts(movable=LENT, lent=LENT, cma_ranges=CMA)
    assert not any("nothing waits for DMA" in note for note in plan_of(host).notes)


def test_beside_a_writer_without_end_nothing_is_lent_by_words() -> None:
    """No wait ends its DMA, and kexec_file_load switches no bus master off."""
    with pytest.raises(RefusedError, match="must not be lent beside i915") as caught:
        plan_of(writing(GPU), lend=GIB)
    assert "bus-masters" not in caught.value.hint


def test_without_kcore_nothing_is_lent_by_words() -> None:
    """lockdown=confidentiality hides where the image lies; the kernel's own ranges need no look."""
    some = facts(movable=LENT, lent=LENT, cma_ranges=CMA, lockdown="confidentiality")
    host = replace(some, page_offset=None, kernel_text=None)
    with pytest.raises(RefusedError, match="confidentiality") as caught:
        plan_of(host, syscall="auto")
    assert "--lender cma" in caught.value.hint
    assert plan_of(host, lender="cma", lend=GIB // 4).lent == Ranges(CMA)


def test_one_load_that_is_left_is_not_enough() -> None:
    """Two loads, and what a failure takes: an unload and the old image; -1 stands for any number."""
    host = facts(movable=LENT, lent=LENT)
    for limit in (1, 2, 4):
        with pytest.raises(RefusedError, match=f"allows {limit} more load"):
            plan_of(replace(host, kexec_load_limit_panic=limit))
    for enough in (-1, 5, None):
        assert plan_of(replace(host, kexec_load_limit_panic=enough)).by_word


# --- the bytes -----------------------------------------------------------------------------------


def image_of(plan: Plan | None = None) -> CrashImage:
    host = facts(movable=LENT, lent=LENT)
    return build_image(plan or plan_of(host), host, FILES)


def test_the_core_header_stands_at_a_page_in_an_archive_of_its_own() -> None:
    """The kernel unpacks it as any file (zeros between archives are skipped, at multiples of 4)."""
    image = image_of()
    at = image.core_header_at
    assert at is not None
    assert at % PAGE == 0
    headers = plan_of().program_headers
    data = elfcore.build_core_header(headers)
    assert image.initramfs[at : at + len(data)] == data
    begin = image.initramfs.rindex(b"\0" * 64 + b"070701", 0, at) + 64
    assert begin % 4 == 0
    members, end = newc.parse(image.initramfs, start=begin)
    assert end == len(image.initramfs)
    assert {m.path: m.data for m in members}[filemode.CORE_HEADER_PATH] == data


def test_without_words_nothing_is_appended() -> None:
    """As before where nothing is lent."""
    image = image_of(plan_of(lend=0))
    assert image.core_header_at is None
    assert filemode.CORE_HEADER_PATH.encode() not in image.initramfs


@pytest.mark.parametrize("line", ["a=1", 'a=1 b="x y" dyndbg="open end', 'a="\xa0x" \udcff'])
def test_a_line_that_lends_nothing_is_as_long(line: str) -> None:
    """No memmap=, no elfcorehdr=, the mark is in it, and every other word is as it was."""
    lending = f"memmap=1M@1G,0x1000@0x2000 {PLACEHOLDER}"
    full = f"{line.partition('dyndbg')[0].rstrip()} {lending} {line[len(line.partition('dyndbg')[0]) :]}"
    data = full.rstrip().encode("utf-8", "surrogateescape")
    plain = without_lending(data, "0123456789abcdef")
    assert len(plain) == len(data)
    assert b"memmap=" not in plain
    assert b"elfcorehdr=" not in plain
    assert b"0123456789abcdef" in plain
    assert plain.split(b" ")[1] == data.split(b" ")[0]


def test_the_placeholder_has_room_for_every_address() -> None:
    """16 digits; the length of the line does not change."""
    line = b"a " + PLACEHOLDER.encode() + b" b"
    assert at_address(line, (1 << 52) - PAGE) == b"a elfcorehdr=0x000ffffffffff000 b"
    with pytest.raises(CrashlendError, match="address"):
        at_address(b"a b", 0)


# --- the load ------------------------------------------------------------------------------------

START, SIZE = 0x20000000, 8 * MIB


class Kernel:
    """A kernel that places what it is given as kexec_file_load does, in memory that stays dirty."""

    def __init__(self) -> None:
        self.memory = bytearray(SIZE)
        self.loads: list[tuple[bytes, bytes]] = []
        self.loaded = False
        self.down = 0  # how much further down all lies than it might
        self.moves = 0  # and each load than the one before it
        self.kcore = True
        self.keeps = False  # its limit of loads is used up

    def load_file(self, kernel: int, initramfs: int, cmdline: bytes, *, sizes: str = "") -> None:
        data = os.pread(initramfs, 1 << 30, 0)
        assert os.pread(kernel, 1 << 30, 0) == FILES.kernel
        self.loads.append((data, cmdline))
        params = START + SIZE - 10 * PAGE - self.down - self.moves * len(self.loads)
        ramdisk = params - 16 * PAGE - -(-len(data) // PAGE) * PAGE
        page = bytearray(PAGE)
        page[0x1FE:0x200] = b"\x55\xaa"
        page[0x202:0x206] = b"HdrS"
        page[0x210] = 0xD0
        page[0x218:0x21C] = ramdisk.to_bytes(4, "little")
        page[0x21C:0x220] = len(data).to_bytes(4, "little")
        page[0x228:0x22C] = (params + PAGE).to_bytes(4, "little")
        self.put(params, bytes(page) + b"elfcorehdr=0x20000000 " + cmdline + b"\0")
        self.put(ramdisk, data)
        self.loaded = True

    def put(self, phys: int, data: bytes) -> None:
        self.memory[phys - START : phys - START + len(data)] = data

    def unload(self, *, by_file: bool = False) -> None:
        if self.keeps:
            raise kexec._error(errno.EPERM)
        self.loaded = False

    def read(self, path: str, limit: int = 1 << 26, offset: int = 0) -> bytes:
        if path == "/proc/iomem":
            return f"{START:08x}-{START + SIZE - 1:08x} : Crash kernel\n".encode()
        if not self.kcore:
            raise PermissionError(1, "Operation not permitted")
        return Kcore(bytes(self.memory), START).read(path, limit, offset)

    def names(self, path: str) -> list[str]:
        return []

    def exists(self, path: str) -> bool:
        return True


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    fake = Kernel()
    monkeypatch.setattr(kexec, "load_file", fake.load_file)
    monkeypatch.setattr(kexec, "unload", fake.unload)
    monkeypatch.setattr(file_load, "TreeFiles", lambda root: fake)
    return fake


def test_the_address_on_the_command_line_is_that_of_the_core_header(kernel: Kernel) -> None:
    """Found in what was loaded first, verified in what was loaded then."""
    image = image_of()
    found = image.load()
    (plain, first), (full, second) = kernel.loads
    assert (len(plain), len(first)) == (len(full), len(second))
    assert full == image.initramfs
    address = int(second.split(b"elfcorehdr=")[1].split(b" ")[0], 16)
    data = elfcore.build_core_header(plan_of().program_headers)
    assert bytes(kernel.memory[address - START : address - START + len(data)]) == data
    assert is_in_memory(found, kernel) is True
    kernel.memory[address - START + 8] ^= 1
    assert is_in_memory(found, kernel) is False


def test_the_search_reads_the_headers_of_kcore_once(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have a line per stretch of RAM; the reservation is read a megabyte at a time."""
    real, starts = kernel.read, []

    def read(path: str, limit: int = 1 << 26, offset: int = 0) -> bytes:
        starts.extend([path] * (path == "/proc/kcore" and not offset))
        return real(path, limit, offset)

    monkeypatch.setattr(kernel, "read", read)
    kernel.down = 6 * MIB
    image_of().load()
    monkeypatch.setattr(file_load, "load_once", lambda *_: None)
    starts.clear()
    with pytest.raises(CrashlendError, match="cannot tell"):
        image_of().load()
    assert len(starts) == 2


def test_between_the_two_loads_a_plain_crash_kernel_is_there(kernel: Kernel) -> None:
    """It lends nothing: neither words nor what the capture would be told of lent memory."""
    image = image_of()
    image.load()
    plain, line = kernel.loads[0]
    assert plain[: len(FILES.initramfs)] == FILES.initramfs
    assert not plain[image.lending_at :].strip(b"\0")
    assert b"memmap=" not in line
    assert b"elfcorehdr" not in line


def test_what_an_older_load_left_is_not_believed(kernel: Kernel) -> None:
    """The same image lay elsewhere before, higher up: its bytes are still there."""
    image = image_of()
    image.load()
    kernel.down = 3 * PAGE
    found = image.load()
    assert found is not None
    assert found["start"] == START + SIZE - 10 * PAGE - 3 * PAGE


def test_a_second_load_that_lies_elsewhere_is_unloaded(kernel: Kernel) -> None:
    """Its word would name the wrong place: no dump. Better none that seems to be there."""
    kernel.moves = PAGE
    with pytest.raises(CrashlendError, match="would not find its core header"):
        image_of().load()
    assert not kernel.loaded


def test_without_kcore_the_image_is_unloaded(kernel: Kernel) -> None:
    """As where it can't be found: an error in words, nothing loaded."""
    kernel.kcore = False
    with pytest.raises(CrashlendError, match="cannot tell where the kernel put"):
        image_of().load()
    assert not kernel.loaded


class Record:
    """A state file in memory."""

    def __init__(self) -> None:
        self.loaded: Any = None
        self.steps: list[str] = []
        self.blocks: dict[int, Any] = {}

    def set_loaded(self, loaded: Any) -> None:
        self.loaded = loaded
        self.steps.append(loaded["step"] if loaded else "")


def test_the_record_tells_where_the_image_lies(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So status and the next load look at memory; after a failure nothing says that it is loaded."""
    monkeypatch.setattr(kept, "keep", lambda *_: "")
    monkeypatch.setattr(kexec, "crash_loaded", lambda: kernel.loaded)
    monkeypatch.setattr(image_module, "TreeFiles", lambda root: kernel)
    state, image = Record(), image_of()
    handover._hand_over(image, {}, FILES, state, (), print)  # type: ignore[arg-type]
    assert state.steps == ["loading", "loading", "loaded"]
    assert handover.is_loaded(state, image)  # type: ignore[arg-type]
    kernel.put(state.loaded["marker"]["start"], b"another image")
    assert not handover.is_loaded(state, image)  # type: ignore[arg-type]
    kernel.moves = PAGE
    with pytest.raises(CrashlendError):
        handover._hand_over(image, {}, FILES, state, (), print)  # type: ignore[arg-type]
    assert state.loaded["step"] == "loading"


def handed_over(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> tuple[Record, Any]:
    """A state, and the call that hands an image to the kernel, that of the plan or another one."""
    monkeypatch.setattr(kept, "keep", lambda *_: "")
    monkeypatch.setattr(kexec, "crash_loaded", lambda: kernel.loaded)
    monkeypatch.setattr(image_module, "TreeFiles", lambda root: kernel)
    state = Record()

    def hand_over(image: CrashImage, **record: Any) -> None:
        handover._hand_over(image, record, FILES, state, (), print)  # type: ignore[arg-type]

    return state, hand_over


@pytest.mark.parametrize("old", [plan_of, lambda: plan_of(lend=0), None])
def test_an_image_that_cannot_be_unloaded_is_not_taken_for_the_old_one(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, old: Any
) -> None:
    """The record stays "loading", with what was lent to it, also when the next load is refused."""
    state, hand_over = handed_over(kernel, monkeypatch)
    if old:
        hand_over(image_of(old()), lent=[[1, 2]])
    kernel.keeps, kernel.moves = True, PAGE
    with pytest.raises(file_load.StillLoadedError, match="would not find its core header"):
        hand_over(image_of(), lent=[[3, 4]])
    assert (state.loaded["step"], state.loaded["replaced_by"]) == ("loading", {"lent": [[3, 4]]})
    monkeypatch.setattr(file_load, "load_once", refuse)
    with pytest.raises(CrashlendError, match="EPERM"):
        hand_over(image_of(), lent=[[5, 6]])
    assert (state.loaded["step"], state.loaded["replaced_by"]) == ("loading", {"lent": [[3, 4]]})
    monkeypatch.setattr(fallback, "alarm", print)
    # all that is on record stays out of production
    some = facts()
    for lent in ([[3, 4]], [[5, 6]], [[1, 2]] * bool(old)):
        blocks = [start // (some.block_bytes or 1) for start, _ in lent]
        assert loading._unused(some, blocks, state) == []  # type: ignore[arg-type]
    said = fallback._outcome(
        state,  # type: ignore[arg-type]
        None,
        handover.previous_image(state),  # type: ignore[arg-type]
        CrashlendError("x", "y"),
        facts,
        print,
    )
    assert said.startswith("the crash kernel must not be used")


def test_an_error_before_the_kernel_is_asked_leaves_the_old_image_on_record(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No memory for the copy of the kernel's file: the old one is loaded, and the record says so."""
    state, hand_over = handed_over(kernel, monkeypatch)
    hand_over(image_of(), lent=[[1, 2]])
    old = state.loaded

    def no_memory(_name: str) -> int:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(os, "memfd_create", no_memory)
    with pytest.raises(OSError, match="memory"):
        hand_over(image_of(), lent=[[3, 4]])
    assert state.loaded is old


class KillError(BaseException):
    """kill -9: nothing that the program does after it counts."""


def test_an_image_whose_load_was_killed_after_the_kernel_took_it_is_noted(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with kexec_load: the record knows where its core header lies before the second load."""
    state, hand_over = handed_over(kernel, monkeypatch)

    def killed(*_: Any) -> None:
        raise KillError

    monkeypatch.setattr(file_load, "_verified", killed)
    with pytest.raises(KillError):
        hand_over(image_of(), lent=[[1, 2]])
    assert state.loaded["step"] == "loading"
    assert fallback.note_what_is_loaded(state)  # type: ignore[arg-type]
    assert (state.loaded["step"], state.loaded["lent"]) == ("loaded", [[1, 2]])


def test_after_a_kill_between_the_loads_the_old_image_is_not_said_to_be_there(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plain one is: it is not taken for the new one, and a load that is refused tells the truth."""
    state, hand_over = handed_over(kernel, monkeypatch)
    hand_over(image_of(plan_of(lend=0)), lent=[])
    old, real = state.loaded, file_load.load_once

    def second_is_killed(*words: Any) -> None:
        if len(kernel.loads) == 2:
            raise KillError
        real(*words)

    monkeypatch.setattr(file_load, "load_once", second_is_killed)
    with pytest.raises(KillError):
        hand_over(image_of(), lent=[[1, 2]])
    assert fallback.note_what_is_loaded(state) is old  # type: ignore[arg-type]
    monkeypatch.setattr(file_load, "load_once", refuse)
    with pytest.raises(CrashlendError):
        hand_over(image_of(), lent=[[1, 2]])
    assert not handover.may_be_previous(state, old)  # type: ignore[arg-type]
    assert state.loaded["previous"] is old


def refuse(*_: Any) -> None:
    raise kexec._error(errno.EPERM)


# --- the room ------------------------------------------------------------------------------------


def places(reservation: Range, image: BzImage, ramdisk: int, purgatory: int, header: int) -> bool:
    """Whether kexec_file_load would find room: locate_mem_hole_{bottom_up,top_down}() retold."""
    taken: list[Range] = []

    def place(size: int, align: int, down: bool) -> bool:
        size = -(-size // PAGE) * PAGE
        start = (reservation.end - size) // align * align if down else reservation.start
        while reservation.start <= start and start + size <= reservation.end:
            if not any(start < t.end and t.start < start + size for t in taken):
                taken.append(Range(start, start + size))
                return True
            start = (start - PAGE) // align * align if down else start + PAGE
        return False

    return (
        place(header, PAGE, down=False)
        and place(purgatory, PAGE, down=True)
        and place(2 * PAGE, PAGE, down=True)
        and place(image.init_size, image.alignment, down=True)
        and place(ramdisk, PAGE, down=True)
    )


@pytest.mark.parametrize("seed", range(60))
def test_what_is_refused_for_want_of_room_the_kernel_would_refuse(seed: int) -> None:
    """Never wrong in saying no; and what passes with 1 MiB to spare the kernel takes."""
    dice = random.Random(seed)
    image = BzImage.parse(bz_image(init_size=dice.randrange(4, 12) * MIB + 4096))
    start = dice.randrange(256, 512) * MIB
    size = dice.randrange(4 * MIB // PAGE, 24 * MIB // PAGE) * PAGE
    ramdisk = dice.randrange(1, 4 * MIB)
    reservation = Range(start, start + size)
    try:
        check_room(reservation, image, ramdisk)
    except TooSmallError:
        assert not places(reservation, image, ramdisk, PAGE, PAGE)
    else:
        assert places(reservation, image, ramdisk, PAGE, PAGE)


def test_too_small_is_said_before_the_load_with_the_numbers() -> None:
    """The size that is there, init_size, the initramfs, and what to boot with."""
    image = BzImage.parse(bz_image(init_size=48 * MIB))
    with pytest.raises(TooSmallError, match="48 MiB") as caught:
        check_room(Range(GIB, GIB + 48 * MIB), image, 3 * MIB)
    assert "init_size" in caught.value.why
    advised = re.search(r"crashkernel=(\d+)M", caught.value.hint)
    assert advised
    check_room(Range(GIB, GIB + int(advised[1]) * MIB), image, 3 * MIB)
    assert places(Range(GIB, GIB + int(advised[1]) * MIB), image, 3 * MIB, 8 * PAGE, MIB)


def test_headers_of_a_large_host_still_fit_what_was_counted() -> None:
    """The plan counts the header's bytes before it has them."""
    for number in (1, 40, 700):
        headers = [ProgramHeader(PT_LOAD, i * MIB, PAGE) for i in range(number)]
        whole, _ = filemode.with_core_header(b"\0" * 1000, headers)
        assert len(whole) - 1000 <= filemode.core_header_bytes(number) + PAGE
