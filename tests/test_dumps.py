# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reading dumps: formats, directories of captures, the end of a kernel in its log."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Optional

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capture_shell import needs_busybox, shell
from crashlend.cli.main import main
from crashlend.dumps.analyze import holes_named
from crashlend.dumps.check import check_dump
from crashlend.dumps.core import Core, memory_in, read_core
from crashlend.dumps.corefile import open_core
from crashlend.dumps.directory import DUMPS, find_dumps, is_dump_directory, read_dump
from crashlend.dumps.log import find_reason, find_release, read_end
from crashlend.dumps.recover import unflatten
from crashlend.errors import CrashlendError, FormatError
from crashlend.formats import diskdump, flattened
from crashlend.ranges import Ranges
from dump_files import (
    DMESG,
    DUMPED,
    LENT,
    PAGE,
    REASON,
    RELEASE,
    SECONDS,
    VMCOREINFO,
    capture_json,
    elf_core,
    flatten,
    holes_json,
    kdump,
    ranges_json,
    write_dump,
)

MAKEDUMPFILE = shutil.which("makedumpfile")


def core_of(path: Path, data: bytes) -> Core:
    path.write_bytes(data)
    with open_core(path) as file:
        return read_core(file)


def inside(path: Path, data: bytes, ranges: Ranges) -> int:
    path.write_bytes(data)
    with open_core(path) as file:
        return memory_in(file, ranges)


# --- kdump-compressed ---------------------------------------------------------------------------


def test_a_kdump_tells_what_it_is(tmp_path: Path) -> None:
    """Both headers, vmcoreinfo, bitmaps and descriptors of a whole dump."""
    core = core_of(tmp_path / "d", kdump(level=17))
    assert (core.form, core.flattened, core.compression) == ("kdump", False, "zlib")
    assert (core.release, core.machine, core.seconds) == (RELEASE, "x86_64", SECONDS)
    assert (core.level, core.page_bytes) == (17, PAGE)
    assert core.pages == sum(end - first for first, end in DUMPED)
    assert core.vmcoreinfo["OSRELEASE"] == RELEASE
    assert core.faults == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"status": 1 | 8}, "no space left"),
        ({"split": 1}, "one part of several"),
        ({"vmcoreinfo": b""}, "no vmcoreinfo"),
        ({"vmcoreinfo": b"OSRELEASE=5.10\n"}, "its vmcoreinfo is of 5.10"),
        ({"dumped": ()}, "holds no page"),
    ],
)
def test_what_makes_a_kdump_less_than_whole_is_told(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    """Each fault by itself, in words."""
    (fault,) = core_of(tmp_path / "d", kdump(**changes)).faults
    assert words in fault


def test_every_way_to_cut_a_kdump_short_is_found(tmp_path: Path) -> None:
    """Whatever is missing at the end: an error or a fault, never a whole dump."""
    whole = kdump()
    for size in [*range(0, 9000, 777), *range(len(whole) - 900, len(whole), 7)]:
        try:
            core = core_of(tmp_path / "d", whole[:size])
        except FormatError:
            continue
        assert core.faults, size


def test_a_descriptor_that_points_elsewhere_is_found(tmp_path: Path) -> None:
    """Into the tables, behind the file, longer than a page, or with flags that nobody knows."""
    whole = kdump()
    at = _descriptors_at(whole)
    offset, size, flags, rest = struct.unpack_from("<QIIQ", whole, at)
    for bad in (
        (0, size, flags),
        (len(whole), size, flags),
        (1 << 63, size, flags),
        (offset, PAGE + 1, flags),
        (offset, 0, flags),
        (offset, size, 0x100),
    ):
        broken = bytearray(whole)
        struct.pack_into("<QIIQ", broken, at, *bad, rest)
        (fault,) = core_of(tmp_path / "d", bytes(broken)).faults
        assert "page 0" in fault


def _descriptors_at(whole: bytes) -> int:
    blocks = struct.unpack_from("<I", whole, 436)[0]
    return int(PAGE * (2 + blocks))


def test_lent_memory_is_in_no_bitmap(tmp_path: Path) -> None:
    """Counted to the page, at borders within a byte of the bitmap, too."""
    lent = Ranges((first * PAGE, end * PAGE) for first, end in LENT)
    assert inside(tmp_path / "d", kdump(), lent) == 0
    whole = Ranges([(0, 1 << 40)])
    assert inside(tmp_path / "d", kdump(), whole) == (0x80000 - 0x100 - 0x10000) * PAGE
    for first, end in ((0x40001, 0x40004), (0x47FFF, 0x48000), (0x50007, 0x50009)):
        spoilt = kdump(dumped=[(first, end)])
        assert inside(tmp_path / "d", spoilt, lent) == (end - first) * PAGE
        assert inside(tmp_path / "d", kdump(), Ranges([(first * PAGE, end * PAGE)])) == 0


@given(st.binary(max_size=64), st.integers(0, 600), st.integers(0, 600))
def test_bits_are_counted_between_any_two(data: bytes, first: int, end: int) -> None:
    """As one by one."""
    bits = [data[n // 8] >> n % 8 & 1 for n in range(len(data) * 8)]
    assert diskdump.count_bits_between(data, first, end) == sum(bits[first:end])
    assert diskdump.count_bits(data) == sum(bits)


@given(st.data())
def test_any_bytes_in_the_headers_raise_nothing_else(data: st.DataObject) -> None:
    """A damaged header is a FormatError, or read; no other error, and no endless read."""
    head = bytearray(kdump()[: 2 * PAGE])
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.sampled_from([*range(8, 20), *range(400, 470), *range(PAGE, PAGE + 104)]))
        head[at] = data.draw(st.integers(0, 255))
    try:
        header = diskdump.parse(bytes(head))
    except FormatError:
        return
    assert header.pages <= header.bitmaps[1].bytes * 8
    assert header.vmcoreinfo.bytes <= diskdump.VMCOREINFO_BYTES_MAX


SMALL = ((0x100, 0x110), (0x200, 0x203))
WHOLE = (
    kdump(present=SMALL, dumped=SMALL, max_pfn=0x400),
    elf_core(),
    elf_core(extended=True),
    elf_core(vmcoreinfo=VMCOREINFO.replace(str(SECONDS).encode(), b"9" * 5000)),
    elf_core(vmcoreinfo=VMCOREINFO.replace(str(SECONDS).encode(), "\u0663".encode() + b"\xff")),
    flatten(kdump(present=SMALL, dumped=SMALL, max_pfn=0x400)),
    flatten(elf_core(), step=997),
)
# numbers that break parsers, of the widths that fields have
EXTREMES = (
    0,
    1,
    0x7F,
    0x80,
    0xFFFF,
    0x7FFFFFFF,
    1 << 31,
    1 << 40,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
)


@st.composite
def damaged_dumps(draw: st.DrawFn) -> bytes:
    """A whole dump with numbers in it changed, mostly in its tables, or some of it gone."""
    data = bytearray(draw(st.sampled_from(WHOLE)))
    tables = st.sampled_from(
        [*range(512), *range(PAGE, PAGE + 256), *range(2 * PAGE, 2 * PAGE + 32)]
    )
    for _ in range(draw(st.integers(0, 6))):
        at = draw(tables | st.integers(0, len(data) - 8))
        number = draw(st.sampled_from(EXTREMES) | st.integers(0, (1 << 64) - 1))
        width, order = draw(st.sampled_from((1, 2, 4, 8))), draw(st.sampled_from(("little", "big")))
        data[at : at + width] = (number % (1 << 8 * width)).to_bytes(width, order)  # type: ignore[arg-type]
    if draw(st.booleans()):
        del data[draw(st.integers(0, len(data))) :]
    return bytes(data)


NUMBERS = st.sampled_from([*EXTREMES, 0x1000, 0x101000, -1, -(10**18), 10**18, 10**30])
ODD = NUMBERS | st.none() | st.booleans() | st.text(max_size=5) | st.floats() | st.just([[0, 1]])
RANGES = ODD | st.lists(ODD | st.lists(NUMBERS, min_size=1, max_size=3), max_size=4)


@st.composite
def damaged_reports(draw: st.DrawFn) -> bytes:
    """holes.json or capture.json with values that nobody writes, or bytes that are no JSON."""
    value = draw(st.sampled_from((holes_json(), capture_json(5))))
    value["lent"] = draw(ODD | st.fixed_dictionaries({"bytes": ODD, "ranges": RANGES}))
    value["holes"] = [
        {"why": draw(ODD | st.just("reservation")), "ranges": draw(RANGES)},
        draw(ODD),
    ]
    for name in draw(st.lists(st.sampled_from(sorted(value)), max_size=2)):
        value[name] = draw(ODD | st.just({"path": draw(ODD), "bytes": draw(ODD)}))
    data = json.dumps(value).encode()
    at = draw(st.integers(0, len(data)))
    broken = draw(st.integers(0, 3)) == 0
    return data[:at] + draw(st.binary(max_size=9)) + data[at:] if broken else data


@settings(
    deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(damaged_dumps(), damaged_reports(), damaged_reports(), st.sampled_from(DUMPS))
def test_no_damage_to_a_dump_or_its_reports_is_a_traceback(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    vmcore: bytes,
    capture: bytes,
    holes: bytes,
    name: str,
) -> None:
    """Whole dumps with changed fields, cut anywhere, beside changed reports: every reader ends in words."""
    with tempfile.TemporaryDirectory(dir=tmp_path) as where:
        path = write_dump(Path(where), vmcore=None, capture_json=capture, holes_json=holes)
        (path / name).write_bytes(vmcore)
        dump = read_dump(path)
        check_dump(dump, independent=False)
        holes_named(dump, "reservation")
        with pytest.MonkeyPatch.context() as patch:  # what others' programs do with it is theirs
            patch.setattr("crashlend.dumps.check.shutil.which", lambda name: None)
            for words in (("list", where), ("list", "--json", where), ("check", str(path))):
                main(["dumps", *words])
        with suppress(CrashlendError):
            unflatten(path / name, path / "out")
        capsys.readouterr()


def test_a_time_of_too_many_digits_is_none(tmp_path: Path) -> None:
    """int() refuses more than 4300; the dump itself is sound."""
    info = VMCOREINFO.replace(str(SECONDS).encode(), b"9" * 5000)
    core = core_of(tmp_path / "d", elf_core(vmcoreinfo=info))
    assert (core.seconds, core.faults) == (0, ())


def test_ranges_that_no_memory_has_are_none(tmp_path: Path) -> None:
    """Negative, behind 64 bits, inverted: not counted, and no reader stumbles."""
    ranges = [[-(10**18), 10**18], [0, 1 << 65], [8192, 4096], [4096, 8192]]
    for name in ("lent", "holes"):
        odd = {"ranges": ranges}
        report = holes_json(**{name: odd if name == "lent" else [{"why": "reservation", **odd}]})
        dump = read_dump(write_dump(tmp_path / name, holes_json=report))
        check_dump(dump, independent=False)
        found = dump.lent if name == "lent" else holes_named(dump, "reservation")
        assert found.to_json() == [[4096, 8192]]
    long = json.dumps(holes_json()).encode().replace(b"268435456", b"9" * 4000)
    dump = read_dump(write_dump(tmp_path, holes_json=long))
    assert dump.unknown == ("holes.json is damaged: no JSON",)


def test_a_dump_that_gets_shorter_while_it_is_read_is_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A truncated file gives no descriptors, or half a one: neither an endless loop nor an error."""
    (tmp_path / "d").write_bytes(kdump())
    for left in (0, 24 * 3, 24 * 3 + 7):
        with open_core(tmp_path / "d") as file:
            real, at = file.read, _descriptors_at(kdump())

            def read(
                start: int, size: int, real: Any = real, at: int = at, left: int = left
            ) -> Any:
                return real(start, size)[: left if start >= at else None]

            monkeypatch.setattr(file, "read", read)
            (fault,) = read_core(file).faults
        assert "cut short" in fault


def test_a_pipe_named_vmcore_is_not_waited_for(tmp_path: Path) -> None:
    """Nobody writes to it: it can't be read, and that is all."""
    path = write_dump(tmp_path, vmcore=None)
    os.mkfifo(path / "vmcore")
    dump = read_dump(path)
    assert dump.unknown
    assert "vmcore can't be read" in dump.unknown[0]


@given(
    st.binary(max_size=300), st.sampled_from([b"KDUMP   ", b"\x7fELF\2\1\1", b"makedumpfile", b""])
)
def test_any_bytes_as_a_dump_raise_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, start: bytes
) -> None:
    """Whatever lies in a file named vmcore: FormatError, or a Core."""
    path = tmp_path_factory.getbasetemp() / "any"
    with suppress(FormatError):
        core_of(path, start + data)


# --- flattened ----------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [997, 4096, 1 << 20])
def test_a_flattened_dump_reads_as_the_dump_itself(tmp_path: Path, step: int) -> None:
    """Pieces of any length, one of them written twice; recovered it is the same to the byte."""
    plain = kdump()
    (tmp_path / "vmcore.flat").write_bytes(flatten(plain, step=step))
    with open_core(tmp_path / "vmcore.flat") as file:
        core = read_core(file)
        assert file.read(100, len(plain)) == plain[100:]
        assert memory_in(file, Ranges([(0x48000 * PAGE, 0x48003 * PAGE)])) == 3 * PAGE
    assert core.flattened
    assert core.faults == ()
    assert core.pages == 19
    size = unflatten(tmp_path / "vmcore.flat", tmp_path / "vmcore").bytes
    assert (tmp_path / "vmcore").read_bytes() == plain
    assert size == len(plain)
    assert (tmp_path / "vmcore").stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(MAKEDUMPFILE is None, reason="makedumpfile is not installed")
def test_makedumpfile_recovers_the_same(tmp_path: Path) -> None:
    """An independent program makes the same bytes of the same stream."""
    assert MAKEDUMPFILE is not None
    data = flatten(kdump())
    subprocess.run(
        [MAKEDUMPFILE, "-R", str(tmp_path / "theirs")], input=data, capture_output=True, check=True
    )
    (tmp_path / "vmcore.flat").write_bytes(data)
    unflatten(tmp_path / "vmcore.flat", tmp_path / "ours")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


@pytest.mark.parametrize("size", [0, 10, 31, 4095, 4096, 4100, 4112, 9000, -17, -1])
def test_a_stream_that_ends_early_is_refused_before_anything_is_written(
    tmp_path: Path, size: int
) -> None:
    """No vmcore, no partial one; the message says so."""
    (tmp_path / "vmcore.flat").write_bytes(flatten(kdump())[:size])
    with pytest.raises(CrashlendError):
        unflatten(tmp_path / "vmcore.flat", tmp_path / "vmcore")
    assert [path.name for path in tmp_path.iterdir()] == ["vmcore.flat"]


def test_recover_writes_over_nothing(tmp_path: Path) -> None:
    """A vmcore that is there stays, and what is no stream is refused."""
    (tmp_path / "vmcore.flat").write_bytes(flatten(kdump()))
    (tmp_path / "vmcore").write_bytes(b"precious")
    with pytest.raises(CrashlendError, match="it exists"):
        unflatten(tmp_path / "vmcore.flat", tmp_path / "vmcore")
    assert (tmp_path / "vmcore").read_bytes() == b"precious"
    with pytest.raises(CrashlendError, match="no flattened dump"):
        unflatten(tmp_path / "vmcore", tmp_path / "other")


@given(st.binary(max_size=64))
def test_any_bytes_as_a_piece_are_one_the_end_or_an_error(data: bytes) -> None:
    """A piece has a place and a length that can be."""
    try:
        piece = flattened.parse_piece(data, 4096)
    except FormatError:
        return
    assert piece is None or (piece.place >= 0 and piece.bytes > 0 and piece.at == 4112)


# --- ELF ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("extended", [False, True])
def test_an_elf_core_tells_what_it_is(tmp_path: Path, extended: bool) -> None:
    """Its vmcoreinfo has release and time; the number of headers may be in a section header."""
    core = core_of(tmp_path / "d", elf_core(extended=extended))
    assert (core.form, core.release, core.seconds, core.level) == ("elf", RELEASE, SECONDS, None)
    assert core.pages == 2
    assert core.faults == ()
    assert inside(tmp_path / "d", elf_core(), Ranges([(0, 0x101000)])) == 0x1000


def test_what_makes_an_elf_core_less_than_whole_is_told(tmp_path: Path) -> None:
    """Marked as incomplete, cut short, without memory or vmcoreinfo."""
    whole = elf_core()
    assert "no space" in core_of(tmp_path / "d", elf_core(flags=1)).faults[0]
    assert "cut short" in core_of(tmp_path / "d", whole[:-1]).faults[0]
    assert "no memory" in core_of(tmp_path / "d", elf_core(loads=())).faults[0]
    assert "no vmcoreinfo" in core_of(tmp_path / "d", elf_core(vmcoreinfo=b"")).faults[0]
    for size in (0, 5, 63, 64, 100):
        with pytest.raises(FormatError):
            core_of(tmp_path / "d", whole[:size])


# --- directories --------------------------------------------------------------------------------


def test_a_capture_s_directory_is_read(tmp_path: Path) -> None:
    """Who, when, which kernel, why, what level: from the name, the reports and the dump."""
    dump = read_dump(write_dump(tmp_path, "web-1-2026-11-26-003147-2"))
    assert (dump.host, dump.when) == ("web-1", "2026-11-26T00:31:47Z")
    assert (dump.release, dump.reason, dump.level) == (RELEASE, REASON, 31)
    assert dump.lent.to_json() == ranges_json()
    assert dump.complete
    assert dump.strange == ()


def test_newest_first_and_nothing_else(tmp_path: Path) -> None:
    """By time, then by name; files, links and directories of others are not dumps."""
    for name in ("b-2026-01-02-000000", "a-2026-01-02-000000", "c-2025-12-31-235959"):
        write_dump(tmp_path, name)
    (tmp_path / "202601020000").mkdir()
    (tmp_path / "d-2026-01-02-000000").write_text("")
    (tmp_path / "e-2026-01-02-000000").symlink_to("a-2026-01-02-000000")
    found = [dump.path.name for dump in find_dumps(tmp_path)]
    assert found == ["b-2026-01-02-000000", "a-2026-01-02-000000", "c-2025-12-31-235959"]
    assert not is_dump_directory(tmp_path / "e-2026-01-02-000000")
    with pytest.raises(CrashlendError, match="cannot read"):
        find_dumps(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vmcore": None}, "only what was saved before it"),
        ({"vmcore": None, "vmcore_incomplete": b"KDUMP   "}, "never finished"),
        ({"vmcore": b""}, "does not open"),
        ({"vmcore": kdump()[:-1]}, "cut short"),
        ({"capture_json": None}, "no capture.json"),
        ({"capture_json": b"{"}, "damaged"),
        ({"capture_json": b"[" * 100000}, "damaged"),
        ({"capture_json": b"\xff\x00"}, "damaged"),
        ({"capture_json": {"schema": 2}}, "another version"),
        ({"holes_json": b"[]"}, "holes.json is damaged"),
        (
            {"capture_json": capture_json(1, ok=False, reason="disk full")},
            "the capture failed: disk full",
        ),
    ],
)
def test_what_is_missing_beside_or_in_a_dump_is_told(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    """Each makes it incomplete, in words, and check says that it can't be used."""
    dump = read_dump(write_dump(tmp_path, **changes))
    assert not dump.complete
    assert any(words in fault for fault in dump.faults), dump.faults
    assert not check_dump(dump, independent=False).usable


def test_an_unreadable_directory_is_an_incomplete_dump(tmp_path: Path) -> None:
    """One that went away meanwhile, as when another prune was faster."""
    dump = read_dump(tmp_path / "h-2026-01-02-000000")
    assert not dump.complete


def test_a_sound_dump_is_usable(tmp_path: Path) -> None:
    """All findings that can be made hold."""
    verdict = check_dump(read_dump(write_dump(tmp_path)), independent=False)
    assert [f.what for f in verdict.findings if not f.ok] == []
    assert len(verdict.findings) == 6
    assert verdict.usable


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"capture_json": capture_json(5)}, "of the size that capture.json tells"),
        ({"vmcore": kdump(level=17)}, "of the level that capture.json tells"),
        (
            {"holes_json": holes_json(lent={"ranges": [[4096, 8192]]})},
            "holes.json and capture.json agree",
        ),
        ({"vmcore": kdump(dumped=[(0x40000, 0x40001)])}, "nothing of lent memory is in it"),
    ],
)
def test_a_dump_that_is_not_what_its_reports_say_fails(
    tmp_path: Path, changes: dict[str, Any], what: str
) -> None:
    """Size, level, holes: each difference is a finding of its own."""
    if "vmcore" in changes:
        changes = {"capture_json": capture_json(len(changes["vmcore"])), **changes}
    verdict = check_dump(read_dump(write_dump(tmp_path, **changes)), independent=False)
    assert what in [finding.what for finding in verdict.findings if finding.ok is False]


def test_makedumpfile_is_asked_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its no counts, and so does another reason than dmesg.txt has; what it can't do is no fault of the dump."""
    name = "makedumpfile reads the log in it"
    tool = tmp_path / "bin/makedumpfile"
    tool.parent.mkdir()
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    dump = read_dump(write_dump(tmp_path))
    for script, ok, words in (
        (f'echo "{REASON}" >"$3"', True, REASON),
        ('echo "Kernel panic - not syncing: other" >"$3"', False, "other"),
        ('echo "The kernel version is not supported." >&2; exit 1', None, "is not supported"),
        ('echo "Can not read it." >&2; echo "makedumpfile Failed."; exit 1', False, "Can not read"),
    ):
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
        (finding,) = (f for f in check_dump(dump).findings if f.what == name)
        assert (finding.ok, words in finding.detail) == (ok, True), finding
    packed = read_dump(write_dump(tmp_path / "zstd", vmcore=kdump(status=0x20)))
    for versions, ok in (("lzo\tenabled\nzstd\tdisabled", None), ("zstd\tenabled", False)):
        tool.write_text(f"#!/bin/sh\n[ $1 != -v ] || {{ echo '{versions}'; exit 0; }}\nexit 1\n")
        (finding,) = (f for f in check_dump(packed).findings if f.what == name)
        assert finding.ok is ok, finding
    tool.unlink()
    monkeypatch.setenv("PATH", str(tool.parent))
    (finding,) = (f for f in check_dump(dump).findings if f.what == name)
    assert finding.ok is None
    assert check_dump(dump).usable


@needs_busybox
@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (DMESG, REASON),
        (
            b"[1.0] Oops: general protection fault, 0000 [#1] SMP\n[1.1] CPU: 0 PID: 5 Comm: x\n",
            None,
        ),
        (
            b"[1.0] BUG: unable to handle page fault for address: 0\n[1.1] Oops: 0002 [#1] SMP\n",
            None,
        ),
        (b"[1.0] kernel BUG at mm/slub.c:1!\n[1.1] invalid opcode: 0000 [#1]\n", None),
        (b"[1.0] divide error: 0000 [#1]\n", None),
        (b"[1.0] nothing\n", None),
    ],
)
def test_the_shell_s_words_for_a_crash_are_no_fault_of_its_dump(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: bytes, reason: Optional[str]
) -> None:
    """The capture's panic_line and find_reason may cut a line differently: one of them judges both logs."""
    (tmp_path / "dmesg").write_bytes(log)
    said = shell("panic_line dmesg", tmp_path)
    assert reason is None or said == find_reason(log) == reason
    vmcore = kdump()
    capture = capture_json(len(vmcore), panic=said)
    dump = read_dump(write_dump(tmp_path, vmcore=vmcore, capture_json=capture, dmesg_txt=log))
    tool = tmp_path / "bin/makedumpfile"
    tool.parent.mkdir()
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    tool.write_text(f"#!/bin/sh\ncp {tmp_path}/dmesg $3\n")
    tool.chmod(0o755)
    findings = check_dump(dump).findings
    assert [f for f in findings if f.ok is False] == []
    assert [f.ok for f in findings if f.what.startswith("makedumpfile")] == [True]


# --- the log ------------------------------------------------------------------------------------


def test_the_end_of_a_panic() -> None:
    """Reason, who ran, taint, stack, registers, modules; stamps are gone."""
    end = read_end(DMESG)
    assert end.reason == REASON
    assert (end.cpu, end.pid, end.comm, end.release) == ("3", "116", "my prog", RELEASE)
    assert end.taint == "Tainted: G        W"
    assert end.trace == (" <TASK>", " dump_stack_lvl+0x44/0x5c", " ? _printk+0x68/0x83", " </TASK>")
    assert end.registers == (
        "RIP: 0033:0x7fe120fc4350",
        "RAX: ffffffffffffffda RBX: 0000000000000001 RCX: 00007fe120fc4350",
    )
    assert end.modules == ("ext4", "crc16", "virtio_blk")
    assert find_release(DMESG) == RELEASE
    assert find_release(DMESG.split(b"\n", 1)[1]) == RELEASE


OOPS = b"""\
[   1.0] watchdog: BUG: soft lockup - CPU#0 stuck for 22s!
[   1.0] CPU: 0 PID: 5 Comm: slow Not tainted 6.1.0-test-amd64 #1
[   5.0] BUG: kernel NULL pointer dereference, address: 0000000000000000
[   5.0] #PF: supervisor write access in kernel mode
[   5.0] Oops: 0002 [#1] PREEMPT SMP NOPTI
[   5.0] CPU: 1 PID: 77 Comm: kworker/1:2 Not tainted 6.1.0-test-amd64 #1
[   5.0] RIP: 0010:do_it+0x5/0x10 [mod]
[   5.0] Code: 00
[   5.0] RSP: 0018:ff7303a7c05c3cd0 EFLAGS: 00010246
[   5.0] CR2: 0000000000000000 CR3: 0000000102c04001 CR4: 0000000000771ee0
[   5.0] Call Trace:
[   5.0]  <TASK>
[   5.0]  worker_thread+0x50/0x3c0
[   5.0]  </TASK>
[   5.0] Modules linked in: mod(O)
"""


@pytest.mark.parametrize("panic", [b"", b"[   5.1] Kernel panic - not syncing: Fatal exception\n"])
def test_the_end_of_an_oops(panic: bytes) -> None:
    """The stack is the oops's, not the panic's that follows; an earlier warning is not the cause."""
    end = read_end(OOPS + panic)
    assert end.cause == "BUG: kernel NULL pointer dereference, address: 0000000000000000"
    assert end.reason == ("Kernel panic - not syncing: Fatal exception" if panic else "")
    assert (end.pid, end.comm, end.taint) == ("77", "kworker/1:2", "Not tainted")
    assert end.trace == (" <TASK>", " worker_thread+0x50/0x3c0", " </TASK>")
    assert end.registers[0] == "RIP: 0010:do_it+0x5/0x10 [mod]"
    assert end.modules == ("mod",)


@given(st.binary(max_size=2000))
def test_any_bytes_have_an_end(log: bytes) -> None:
    """No log makes the reader fail."""
    read_end(log)
    read_end(log + DMESG + log)
    find_release(log)


@given(st.text(max_size=60), st.binary(max_size=60))
def test_what_users_write_to_the_log_changes_no_line_of_the_kernel(text: str, raw: bytes) -> None:
    """Lines before the panic, whatever they hold, leave the stack as it is."""
    if "panic" in text or b"panic" in raw or "sysrq" in text:
        return
    end = read_end(text.encode("utf-8", "surrogatepass") + b"\n" + raw + b"\n" + DMESG)
    assert end.trace == read_end(DMESG).trace
    assert end.reason == REASON


def test_read_only(tmp_path: Path) -> None:
    """Reading and checking leave every file and its times as they are."""
    path = write_dump(tmp_path)
    before = {item.name: item.stat().st_mtime_ns for item in path.iterdir()}
    check_dump(read_dump(path), independent=False)
    assert {item.name: item.stat().st_mtime_ns for item in path.iterdir()} == before
    assert os.listdir(tmp_path) == [path.name]
