# SPDX-License-Identifier: LGPL-2.1-or-later
"""``lab conform``: each verdict from guests written by code, and the pages from the kept results."""

from __future__ import annotations

import base64
import json
import re
import struct
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from build import GIB, MIB, host, kmsg, zoneinfo
from crashlend.cli.main import main
from crashlend.lab.conform import run as conform_run
from crashlend.lab.conform.boots import BOOTS, BUILT, KNOWN, UNKNOWN
from crashlend.lab.conform.checks import CHECKS
from crashlend.lab.conform.page import markdown
from crashlend.lab.conform.run import conform, report
from crashlend.lab.conform.syscalls import ASKED_BYTES, CODE, kexec_load_program
from crashlend.lab.conform.verdicts import ABSENT, CONFORMS, DEVIATES, UNTRIED, Seen
from crashlend.lab.kernels import Kernel
from crashlend.lab.observation import FILES, Answer, Observation
from crashlend.lab.observe import ObserveError

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs/conformance"
RESULTS = sorted(p.stem.partition("-")[2] for p in (ROOT / "docs/results").glob("conform-*.json"))
KERNEL = Kernel("7.9", "7.9.1-test", "trixie", Path("vmlinuz"), Path("modules"), None)
MAIN = (0xA0000000, 0xA0000000 + 96 * MIB)
RANGE = (0xA0000000 - 192 * MIB, 0xA0000000)
FOUR = [(0x40000000 + i * 512 * MIB, 0x40000000 + i * 512 * MIB + 128 * MIB) for i in range(4)]
SHRUNK = "start|100663296|a0000000-a5ffffff : Crash kernel;\n48|50331648|a0000000-a2ffffff : Crash kernel;\n0|0|\n"
KEPT = "94000000-9fffffff\nCmaTotal:         196608 kB\n"
KEXEC = "segment {}\ninside 0\nunload 0\nsegment-outside 99\nentry-outside 99\nloaded 0\n"
OFFLINE = "memory19 1 online\ncrash_hotplug:1\n../cpu/crash_hotplug:1\n/sys/kernel/kexec/crash_elfcorehdr_size:917616\n"
BOTH = (
    "start|167772160|100000000-105ffffff : Crash kernel; b0000000-b3ffffff : Crash kernel;\n"
    "134217728|134217728|100000000-103ffffff : Crash kernel; b0000000-b3ffffff : Crash kernel;\n"
    "50331648|50331648|b0000000-b2ffffff : Crash kernel;\n"
)
MAIN_ALONE = (
    "start|100663296|100000000-105ffffff : Crash kernel; b0000000-b3ffffff : Crash kernel;\n"
    "67108864|67108864|100000000-103ffffff : Crash kernel; b0000000-b3ffffff : Crash kernel;\n"
    "50331648|50331648|100000000-102ffffff : Crash kernel; b0000000-b3ffffff : Crash kernel;\n"
)
AREA = "/sys/kernel/mm/cma/crashkernel/total_pages"
BORDER_MAIN = (0x75000000, 0x7F000000)
BORDER_RANGE = (0x65000000, 0x75000000)
MOVABLE_START = 0x67000000
NOT_ACTIVATED = "cma: CMA area crashkernel could not be activated"


def guest(
    words: str,
    *,
    main: Sequence[tuple[int, int]] = (MAIN,),
    cma: Sequence[tuple[int, int]] | None = (),
    log: Sequence[str] = (),
    total_bytes: int | None = None,
    files: dict[str, bytes] | None = None,
    **answers: str,
) -> Observation:
    """What a guest told, in the files that build.host() writes."""
    pages = sum(e - s for s, e in cma or ()) // 4096
    told = host(
        cmdline=words.encode() + b"\n",
        reservations=main,
        cma_ranges=cma,
        log=[s.encode() for s in log],
    )
    if total_bytes is not None:
        text = told["/proc/meminfo"].split(b"CmaTotal")[0]
        told["/proc/meminfo"] = text + b"CmaTotal: %d kB\n" % (total_bytes // 1024)
    if cma and len(cma) == 1:
        told[AREA] = b"%d\n" % pages
    told.update(files or {})
    listed = "".join(
        f"{path} {base64.b64encode(data).decode()}\n"
        for path, data in told.items()
        if path.startswith(("/sys/kernel/mm", "/sys/devices/system/memory", "/proc/sys"))
    )
    answers = {"tell": listed, **answers}
    kept = {name: told[path] for name, path in FILES.items() if path in told}
    return Observation(
        "7.9.1-test",
        words,
        GIB,
        {**kept, "log": told["/dev/kmsg"], "memmap": b""},
        {name: Answer(0, text) for name, text in answers.items()},
    )


def misread(boot: str, size: int, char: str) -> Observation:
    words = next(b.words for b in BOOTS if b.name == boot)
    return guest(
        words, cma=[(RANGE[1] - size, RANGE[1])], log=[f"crashkernel: unrecognized char: {char}"]
    )


def border(
    *,
    main: Sequence[tuple[int, int]] = (BORDER_MAIN,),
    cma: Sequence[tuple[int, int]] = (BORDER_RANGE,),
    movable: int = MOVABLE_START,
    **more: Any,
) -> Observation:
    """The guest "border": 2 GiB, and its ZONE_MOVABLE begins at ``movable``."""
    zones = [
        (0, "DMA32", 0x1000, movable // 4096 - 0x1000),
        (0, "Movable", movable // 4096, (0x7FFE0000 - movable) // 4096),
    ]
    words = next(b.words for b in BOOTS if b.name == "border")
    seen = guest(words, main=main, cma=cma, **more)
    return replace(seen, files={**seen.files, "zoneinfo": zoneinfo(zones, cma)})


def built(**other: Observation) -> dict[str, Observation]:
    """A kernel as 7.3 is: it carries the word out, with the three known defects."""
    words = {b.name: b.words for b in BOOTS}
    sysfs_lost = ["sysfs: cannot create duplicate filename '/kernel/mm/cma/crashkernel'"]
    less = "crashkernel CMA reservation failed: 16384 MB requested, 512 MB reserved in 4 ranges"
    return {
        "first": guest(
            words["first"],
            cma=[RANGE],
            log=["crashkernel CMA reserved: 192 MB in 1 ranges"],
            shrink=SHRUNK + KEPT,
            kexec=KEXEC.format(RANGE[1] - 16 * MIB),
            offline=OFFLINE,
        ),
        "last": guest(words["last"], cma=[RANGE]),
        "alone": guest(words["alone"], main=()),
        "high": guest(words["high"], main=[(4 * GIB, 4 * GIB + 96 * MIB)], shrink=BOTH),
        "ranges": misread("ranges", 192 * MIB, "-"),
        "offset": misread("offset", 128 * MIB, "@"),
        "foo": misread("foo", 128 * MIB, "f"),
        "overask": guest(words["overask"], cma=FOUR, log=[less, *sysfs_lost]),
        "border": border(total_bytes=0, log=[NOT_ACTIVATED], files={AREA: b"0\n"}),
        **other,
    }


def unknown(**other: Observation) -> dict[str, Observation]:
    """A kernel as 6.1 is."""
    words = {b.name: b.words for b in BOOTS}
    kexec = KEXEC.format(0x9F000000)
    bad = ["crashkernel: unrecognized char: ,"]
    return {
        "first": guest(words["first"], cma=None, shrink=SHRUNK, kexec=kexec, offline=""),
        "last": guest(words["last"], main=(), cma=None, log=bad),
        "alone": guest(words["alone"], main=(), cma=None, log=bad),
        "high": guest(words["high"], cma=None, shrink=MAIN_ALONE),
        **other,
    }


def verdicts(boots: dict[str, Observation]) -> dict[str, str]:
    data = report(KERNEL, Seen(boots), {})
    assert data["good"] == all(check["good"] for check in data["checks"])
    return {check["check"]: check["verdict"] for check in data["checks"]}


def test_a_kernel_with_upstream_s_defects_alone_is_good() -> None:
    """Defects A, B and C are named as such, and crashlend's own words stand beside each."""
    data = report(KERNEL, Seen(built()), {})
    found = {check["check"]: check for check in data["checks"]}
    assert {name: c["verdict"] for name, c in found.items() if c["verdict"] != CONFORMS} == {
        "not built in": ABSENT,
        "bad word (ranges)": "defect C",
        "bad word (offset)": "defect C",
        "bad word (foo)": "defect C",
        "several areas in sysfs": "defect A",
        "border of a zone": "defect B",
    }
    assert data["good"]
    assert "are in ordinary use" in found["border of a zone"]["copes"]
    assert "is read as 192 MiB" in found["bad word (ranges)"]["copes"]
    assert "/sys/kernel/mm/cma is missing" in found["several areas in sysfs"]["copes"]


def test_a_kernel_that_does_not_know_the_word() -> None:
    """6.1: only what every kernel promises applies; its order is that of kernels before 6.17."""
    data = report(KERNEL, Seen(unknown()), {})
    assert data["good"]
    applied = {c["check"]: c["verdict"] for c in data["checks"] if c["verdict"] != ABSENT}
    assert applied == dict.fromkeys(
        ("alone", "shrinking", "shrinking two parts", "kexec_load"), CONFORMS
    )


def test_a_kernel_without_config_cma() -> None:
    """6.17 as Debian built it: the word is read, and the kernel says that it can't."""
    first = unknown()["first"]
    log = kmsg(b"crashkernel CMA reservation not supported")
    first = replace(first, files={**first.files, "log": log})
    words = {b.name: b.words for b in BOOTS}
    boots = unknown(
        first=first,
        last=guest(words["last"], cma=None),
        alone=guest(words["alone"], main=(), cma=None),
    )
    assert Seen(boots).feature == KNOWN
    found = verdicts(boots)
    assert (found["not built in"], found["order"], found["alone"]) == (CONFORMS,) * 3
    assert found["understood"] == ABSENT


FIRST, WORDS = built()["first"], {b.name: b.words for b in BOOTS}


def answered(boot: str, **answers: str) -> Observation:
    """A good guest, with other answers."""
    seen = built()[boot]
    return replace(seen, answers={**seen.answers, **{n: Answer(0, t) for n, t in answers.items()}})


@pytest.mark.parametrize(
    ("check", "boot", "seen"),
    [
        ("understood", "first", replace(FIRST, files={**FIRST.files, "log": kmsg()})),
        ("order", "last", guest(WORDS["last"], cma=[])),
        ("alone", "alone", guest(WORDS["alone"], main=(), cma=[RANGE])),
        ("alone", "alone", guest(WORDS["alone"], main=(), log=["crashkernel: memory"])),
        (
            "memory map",
            "first",
            replace(FIRST, files={**FIRST.files, "meminfo": b"CmaTotal: 0 kB\n"}),
        ),
        ("partial", "overask", guest(WORDS["overask"], cma=FOUR, log=["crashkernel CMA reserved"])),
        ("several areas in sysfs", "overask", guest(WORDS["overask"], cma=FOUR[:1])),
        ("bad word (foo)", "foo", guest(WORDS["foo"], cma=[(RANGE[0], RANGE[0] + 64 * MIB)])),
        *(
            (f"bad word ({boot})", boot, guest(WORDS[boot], main=(), cma=[]))
            for boot in ("ranges", "offset", "foo")
        ),
        ("border of a zone", "border", border(total_bytes=0)),
        ("border of a zone", "border", border(cma=())),
        ("border of a zone", "border", border(cma=[(0x65000000, 0x6D000000)])),
        ("border of a zone", "border", border(main=())),
        ("border of a zone", "border", border(main=(), cma=())),
        ("border of a zone", "border", border(total_bytes=512 * MIB, files={AREA: b"0\n"})),
        ("border of a zone", "border", border(movable=0x79000000, log=[NOT_ACTIVATED])),
        ("shrinking", "first", answered("first", shrink=SHRUNK.replace("a2ff", "a3ff") + KEPT)),
        ("shrinking leaves CMA", "first", answered("first", shrink=SHRUNK + "CmaTotal:  0 kB\n")),
        ("shrinking two parts", "high", answered("high", shrink=BOTH.replace("b2ff", "b1ff"))),
        ("shrinking two parts", "high", answered("high", shrink=SHRUNK)),
        (
            "kexec_load",
            "first",
            answered("first", kexec=KEXEC.format(RANGE[0]).replace("e 99", "e 0")),
        ),
        ("kexec_load", "first", answered("first", kexec=KEXEC.format(0x10000000))),
        ("offline", "first", answered("first", offline=OFFLINE.replace("1 online", "0 offline"))),
        ("hotplug", "first", answered("first", offline=OFFLINE.replace("../cpu/crash", "../cpu/"))),
        ("offline", "first", answered("first", offline="")),
        ("hotplug", "first", answered("first", offline="")),
        (
            "hotplug",
            "first",
            replace(FIRST, answers={**FIRST.answers, "offline": Answer(127, OFFLINE)}),
        ),
    ],
)
def test_what_is_not_as_promised_deviates(check: str, boot: str, seen: Observation) -> None:
    """Each check can fail, and fails the whole report."""
    boots = built(**{boot: seen})
    assert verdicts(boots)[check] == DEVIATES
    assert not report(KERNEL, Seen(boots), {})["good"]


@pytest.mark.parametrize("movable", [BORDER_RANGE[0], BORDER_RANGE[1], 0x79000000])
def test_a_border_beside_the_range_is_not_tried(movable: int) -> None:
    """All of the range is CMA, and nothing was put to the test: no verdict, and the report fails."""
    data = report(KERNEL, Seen(built(border=border(movable=movable))), {})
    (check,) = [c for c in data["checks"] if c["check"] == "border of a zone"]
    assert (check["verdict"], check["good"]) == (UNTRIED, False)
    assert "the range does not cross the border" in check["seen"]
    assert not data["good"]
    assert "or was not tried" in markdown(data)


def test_a_script_that_died_is_quoted() -> None:
    """With its exit code, and what it told."""
    first = replace(FIRST, answers={**FIRST.answers, "offline": Answer(2, "sh: syntax\nerror\n")})
    data = report(KERNEL, Seen(built(first=first)), {})
    seen = {c["check"]: c["seen"] for c in data["checks"]}
    assert seen["offline"] == "the script ended with 2 and told: sh: syntax error"
    assert seen["hotplug"] == seen["offline"]


def test_without_a_list_of_ranges_no_block_is_tried() -> None:
    """6.17 and 6.18 with CONFIG_CMA: the range is in the log alone, and the script ends at once."""
    first = answered("first", offline="")
    files = {n: d for n, d in first.files.items() if n != "crash_cma_ranges"}
    log = [b"cma: Reserved 192 MiB at 0x94000000", b"crashkernel CMA reserved: 192 MB in 1 ranges"]
    first = replace(first, files={**files, "log": kmsg(*log)})
    assert Seen({"first": first}).feature == BUILT
    found = verdicts(built(first=first))
    assert (found["offline"], found["hotplug"]) == (ABSENT, ABSENT)


def test_a_defect_that_crashlend_does_not_see_is_not_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verdict stays the defect's, the report fails."""
    monkeypatch.setattr("crashlend.lab.conform.border.lender_says", lambda _facts: (192 * MIB, ""))
    data = report(KERNEL, Seen(built()), {})
    (border,) = [c for c in data["checks"] if c["check"] == "border of a zone"]
    assert (border["verdict"], border["copes"], border["good"]) == ("defect B", "", False)
    assert not data["good"]


def test_a_kernel_with_the_defects_mended_conforms() -> None:
    """No warning and no memory for a bad word; a tree for each area; an active range."""
    bad = {n: guest(WORDS[n], cma=[]) for n in ("ranges", "offset", "foo")}
    overask = replace(
        built()["overask"],
        answers={
            "tell": Answer(
                0, built()["overask"].answers["tell"].text + "/sys/kernel/mm/cma/. Cg==\n"
            )
        },
    )
    found = verdicts(built(**bad, overask=overask, border=border()))
    assert set(found.values()) == {CONFORMS, ABSENT}


def test_a_guest_that_dies_is_what_its_checks_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other checks stand; of a kernel that lacks the feature its guests are not booted."""
    booted: list[str] = []
    boots = built()

    def observe(_kernel: Any, words: str, _memory: int, **_more: Any) -> Observation:
        name = next(b.name for b in BOOTS if b.words == words)
        booted.append(name)
        if name == "overask":
            raise ObserveError("no observation", "it died while it was telling")
        return boots[name]

    monkeypatch.setattr(conform_run, "observe", observe)
    data = conform(KERNEL)
    dead = [c["check"] for c in data["checks"] if "it died" in c["seen"]]
    assert dead == ["partial", "several areas in sysfs"]
    assert data["boots"] == len(BOOTS) <= 10
    assert booted.count("overask") == 2  # a guest that dies is tried once more
    assert [one["words"] for one in data["repeats"]] == [WORDS["overask"]]
    boots, booted[:] = unknown(), []
    data = conform(KERNEL)
    assert booted == [b.name for b in BOOTS if b.needs == UNKNOWN]
    # what does not apply was not tried
    assert {c["check"] for c in data["checks"] if not c["tried"]} == {
        c.name for c in CHECKS if c.needs > UNKNOWN
    }


def test_a_guest_that_died_once_is_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The verdicts are the second boot's; the report, the page and the terminal name the first."""
    booted: list[str] = []
    boots = built()

    def observe(_kernel: Any, words: str, _memory: int, **_more: Any) -> Observation:
        name = next(b.name for b in BOOTS if b.words == words)
        booted.append(name)
        if booted.count(name) == 1 and name in ("first", "foo"):
            raise ObserveError("no observation", "it died while it was telling; its last words: x")
        return boots[name]

    monkeypatch.setattr(conform_run, "observe", observe)
    monkeypatch.setattr("crashlend.lab.kernels.fetch", lambda _name, _say: KERNEL)
    assert main(["lab", "conform", "--kernel", "7.9"]) == 0
    assert capsys.readouterr().out.count("died and was booted again: ") == 2
    booted[:] = []
    data = conform(KERNEL)
    why = "it died while it was telling"
    assert data["repeats"] == [{"words": WORDS[n], "why": why} for n in ("first", "foo")]
    assert f"booted again, 2: `{WORDS['first']}` ({why}); " in markdown(data)
    booted[:] = ["first", "foo"]
    assert conform(KERNEL)["repeats"] == []
    page = markdown(conform(KERNEL))
    assert "booted again" not in page
    assert "No guest had to be booted twice" in page


def test_the_command_s_exit_code_and_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """0 and 1; the JSON file and the page are the same report."""
    monkeypatch.setattr("crashlend.lab.kernels.fetch", lambda _name, _say: KERNEL)
    monkeypatch.setattr("crashlend.lab.qemu.find_qemu", lambda: "qemu")
    worse = built(last=guest(WORDS["last"], cma=[]))
    for boots, code, flag in ((built(), 0, "--data"), (worse, 1, "-o")):
        seen = boots
        monkeypatch.setattr(
            conform_run,
            "observe",
            lambda _k, words, _m, seen=seen, **_o: seen[
                next(b.name for b in BOOTS if b.words == words)
            ],
        )
        out, page = tmp_path / "a.json", tmp_path / "a.md"
        words = [
            "lab",
            "conform",
            "--kernel",
            "7.9",
            flag,
            str(out),
            "--report",
            str(page),
            "--json",
        ]
        assert main(words) == code
        data = json.loads(out.read_text())
        assert json.loads(capsys.readouterr().out) == data
        assert page.read_text() == markdown(data)


# --- the program that asks kexec_load ------------------------------------------------------------


def test_the_program_is_an_executable_that_readelf_reads(tmp_path: Path) -> None:
    """Its entry lies right behind the headers, in the one segment."""
    (tmp_path / "program").write_bytes(kexec_load_program())
    text = subprocess.run(
        ["readelf", "-hlW", str(tmp_path / "program")], capture_output=True, text=True, check=True
    ).stdout
    assert "Entry point address:               0x400078" in text
    assert "R E" in text


def test_the_program_asks_what_its_stdin_says() -> None:
    """read(0, 56 bytes), kexec_load(entry, n, segment, flags), exit_group(errno), on a processor."""
    unicorn = pytest.importorskip("unicorn")
    from unicorn import x86_const as reg

    cpu = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    cpu.mem_map(0x400000, 0x1000)
    cpu.mem_map(0x700000, 0x2000)
    cpu.mem_write(0x400000, kexec_load_program())
    cpu.reg_write(reg.UC_X86_REG_RSP, 0x701000)
    asked = struct.pack("<7Q", 0x11, 1, 62 << 16 | 1, 2, 3, 0x44, 4096)
    assert len(asked) == ASKED_BYTES
    calls: list[tuple[int, ...]] = []

    def syscall(uc: Any, _data: object) -> None:
        names = ("RAX", "RDI", "RSI", "RDX", "R10")
        calls.append(tuple(uc.reg_read(getattr(reg, f"UC_X86_REG_{n}")) for n in names))
        number, _, buffer = calls[-1][:3]
        if number == 0:
            uc.mem_write(buffer, asked)
        elif number == 246:
            segment = bytes(uc.mem_read(calls[-1][3], 32))
            assert segment == asked[24:]
            uc.reg_write(reg.UC_X86_REG_RAX, (-99) & ((1 << 64) - 1))
        else:
            uc.emu_stop()

    cpu.hook_add(unicorn.UC_HOOK_INSN, syscall, None, 1, 0, reg.UC_X86_INS_SYSCALL)
    cpu.emu_start(0x400078, 0x400078 + len(CODE))
    assert [c[0] for c in calls] == [0, 246, 231]
    assert calls[0][1:2] == (0,)
    assert calls[0][3] == ASKED_BYTES
    assert (calls[1][1], calls[1][2], calls[1][4]) == (0x11, 1, 62 << 16 | 1)
    assert calls[2][1] & 0xFFFFFFFF == 99


# --- the pages -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", RESULTS)
def test_the_page_is_what_the_kept_result_gives(kernel: str) -> None:
    """docs/conformance/KERNEL.md from docs/results/conform-KERNEL.json, and all is well there."""
    data = json.loads((ROOT / f"docs/results/conform-{kernel}.json").read_text())
    assert (PAGES / f"{kernel}.md").read_text() == markdown(data)
    assert data["good"]
    assert [c["check"] for c in data["checks"]] == [c.name for c in CHECKS]


def test_the_pages_are_those_that_make_conform_writes() -> None:
    """One for each kernel of the target, and a result for each page."""
    (kernels,) = re.findall(
        r"(?m)^conform:.*\n\tfor kernel in (.*); do", (ROOT / "Makefile").read_text()
    )
    assert sorted(kernels.split()) == RESULTS == sorted(p.stem for p in PAGES.glob("*.md"))


def test_every_check_is_of_boots_that_there_are() -> None:
    """And a check never needs less than the boots that it rests on."""
    boots = {b.name: b for b in BOOTS}
    for check in CHECKS:
        assert all(boots[name].needs <= check.needs for name in check.boots)
    assert {name for check in CHECKS for name in check.boots} == set(boots)
    assert BUILT > KNOWN > UNKNOWN
