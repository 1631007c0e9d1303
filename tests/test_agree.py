# SPDX-License-Identifier: LGPL-2.1-or-later
"""Prediction against booted kernels: what is compared, the checked-in list, and what was recorded."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from crashlend.cli import agree as verb
from crashlend.cli.main import main
from crashlend.crashkernel.boot import CMA_PART, LOW_PART, MAIN, predict
from crashlend.lab.agree import compare, record, report
from crashlend.lab.agree.cases import CASES, HOSTS, KERNELS, Case, choose
from crashlend.lab.agree.compare import Known, Verdict, judge, judge_all, read_known
from crashlend.lab.agree.data import (
    HostRecord,
    Result,
    digest,
    host_record,
    json_text,
    load,
)
from crashlend.lab.agree.record import Recorder, baseline_of, boot_of, boots_of, keep
from crashlend.lab.kernels import Kernel
from crashlend.lab.observation import END_MARK, Observation
from crashlend.lab.observe import OWN_WORDS, ObserveError
from crashlend.sizes import GIB, MIB

KERNELS_HERE = {
    name: Kernel(name, f"{name}.4-amd64", "trixie", Path("vmlinuz"), Path("modules"), None)
    for name in KERNELS
}
LATER = (
    (4, "sysfs: cannot create duplicate filename '/kernel/mm/cma/crashkernel'"),
    (3, "cma: CMA area crashkernel could not be activated"),
)
SYSLOG = {"err": 3, "warn": 4, "info": 6}


def observation(
    release: str = "7.3.4-amd64",
    words: str = "",
    *,
    memory_bytes: int = 2 * GIB,
    log: tuple[tuple[str, str], ...] = (),
    reserved: tuple[tuple[int, int], ...] = (),
    cma: tuple[tuple[int, int], ...] = (),
    size: int = 0,
) -> Observation:
    """What a guest with this memory tells, its kernel at 16 MiB, its initramfs at the top."""
    top = memory_bytes - 128 * 1024
    page = bytearray(4096)
    struct.pack_into("<II", page, 0x218, top - MIB, MIB)
    lines = [(5, "Linux version"), (6, f"Command line: {OWN_WORDS} {words}")]
    lines += [(SYSLOG[level], text) for level, text in log]
    lines += [
        (6, f"Memory: crashkernel= is in {words}"),
        (4, "cma: CMA area crashkernel could not"),
    ]
    lines[-1] = (3, "cma: CMA area crashkernel could not be activated")
    text = "".join(f"{level},{n},0,-;{line}\n" for n, (level, line) in enumerate(lines))
    iomem = f"00100000-{top - 1:08x} : System RAM\n  01000000-03ffffff : Kernel code\n"
    iomem += "".join(f"  {s:08x}-{e - 1:08x} : Crash kernel\n" for s, e in reserved)
    files = {
        "log": text.encode() + f"12,{len(lines)},9,-;{END_MARK}\n".encode(),
        "memmap": f"0x0 0x9fbff System RAM\n0x100000 {top - 1:#x} System RAM\n".encode(),
        "cmdline": f"{OWN_WORDS} {words}".rstrip(" ").encode() + b"\n",
        "iomem": iomem.encode(),
        "meminfo": b"MemTotal: 1 kB\nCmaTotal: 0 kB\n",
        "zoneinfo": b"Node 0, zone    DMA32\n  present  1000\n  start_pfn:           4096\n",
        "boot_params": bytes(page),
        "kexec_crash_size": f"{size}\n".encode(),
        "crash_cma_ranges": "".join(f"{s:08x}-{e - 1:08x}\n" for s, e in cma).encode(),
    }
    return Observation(release, words, memory_bytes, files, seconds=8.0)


HOST = host_record("2G", "7.3", observation())


def faithful(words: str, host: HostRecord = HOST) -> Observation:
    """What a guest tells whose kernel does exactly as predicted."""
    cmdline = f"{OWN_WORDS} {words}".rstrip(" ").encode()
    memory, kernel = host.boot(cmdline)
    found = predict(memory, cmdline, kernel)
    main_and_low = [r for r in found.ranges if r.kind != CMA_PART]
    return observation(
        host.release,
        words,
        log=tuple(found.messages),
        reserved=tuple(sorted((r.start, r.end) for r in main_and_low)),
        cma=tuple((r.start, r.end) for r in found.of_kind(CMA_PART)),
        size=sum(r.size for r in main_and_low),
    )


def result(words: str, seen: Observation, name: str = "a case") -> Result:
    return Result(name, "7.3", "2G", words, "", seen.cmdline.decode(), digest(seen))


def verdict(words: str, known: dict[str, Known] | None = None, **other: Any) -> Verdict:
    """The verdict on a guest that does as predicted but for what is ``other``."""
    seen = result(words, faithful(words))
    return judge(HOST, replace(seen, seen=replace(seen.seen, **other)), known or {})


# ---- what is compared


def test_what_is_predicted_and_seen_agrees() -> None:
    """Main part, low part and ,cma ranges, messages and size: a faithful kernel differs in nothing."""
    for words in ("crashkernel=256M", "crashkernel=512M,cma crashkernel=128M", "crashkernel=x", ""):
        assert verdict(words).agrees
        assert not verdict(words).fails
    parts = verdict("crashkernel=512M,cma crashkernel=128M").prediction.ranges
    assert [r.kind for r in parts] == [MAIN, CMA_PART]


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"reserved": ((0x7000_0000, 0x7800_0000),)}, compare.RESERVED),
        ({"cma": ((0x2000_0000, 0x4000_0000),)}, compare.CMA),
        ({"cma": ()}, compare.CMA),
        ({"crash_size_bytes": 1}, compare.SIZE),
        ({"messages": ()}, compare.MESSAGES),
        ({"messages": (("warn", "crashkernel: memory value expected"),)}, compare.MESSAGES),
    ],
)
def test_each_thing_that_differs_is_found(other: dict[str, Any], what: str) -> None:
    """A wrong address, size or message is a difference by itself, and fails the case."""
    found = verdict("crashkernel=512M,cma crashkernel=128M", **other)
    assert [d.what for d in found.differences] == [what]
    assert found.fails
    assert what in report.complaint(found)


def test_level_and_order_of_messages_count() -> None:
    """The same texts at another level, or in another order, are not what was predicted."""
    words = "crashkernel=512M,cma crashkernel=128M"
    said = result(words, faithful(words)).seen.messages
    assert len(said) == 3
    assert not verdict(words, messages=said[::-1]).agrees
    assert not verdict(words, messages=tuple(("warn", text) for _, text in said)).agrees


def test_kexec_crash_size_has_the_low_part_since_6_5() -> None:
    """Before 6.5 the kernel tells the main part alone (commit 16c6006af4d4)."""
    words, seen = "crashkernel=1G,high crashkernel=96M,low", observation()
    high = replace(
        seen,
        files={
            **seen.files,
            "memmap": b"0x100000 0xbfffffff System RAM\n0x100000000 0x23fffffff System RAM\n",
        },
    )
    for release, low in (("6.1.0-amd64", 0), ("6.12.4-amd64", 96 * MIB)):
        host = replace(host_record("8G", release[:4], high), release=release, cma_file=False)
        told = result(words, faithful(words, host))
        told = replace(told, seen=replace(told.seen, crash_size_bytes=GIB + low))
        found = judge(host, told, {})
        assert {r.kind for r in found.prediction.ranges} == {MAIN, LOW_PART}
        assert found.agrees, report.complaint(found)


def test_only_the_kernels_words_on_the_subject_are_kept() -> None:
    """Command line and memory line have the words in them, too; activation comes after booting."""
    said = (("warn", "crahskernel: Memory value"), ("warn", "Memory value expected after '@'"))
    assert digest(observation(words="crashkernel=1", log=said)).messages == said


def test_the_models_input_has_nothing_of_the_outcome() -> None:
    """A host's record is the same whatever its boot reserved."""
    other = observation(
        words="crashkernel=256M", reserved=((0x6000_0000, 0x7000_0000),), cma=((0, 4096),), size=1
    )
    assert host_record("2G", "7.3", other) == HOST


# ---- the checked-in list


def test_a_listed_disagreement_passes_and_keeps_its_reason() -> None:
    """It must differ in just what is listed."""
    known = {"a case": Known((compare.SIZE,), "why")}
    found = verdict("crashkernel=256M", known, crash_size_bytes=1)
    assert not found.agrees
    assert not found.fails
    assert found.reason == "why"
    more = verdict("crashkernel=256M", known, crash_size_bytes=1, messages=())
    assert more.fails


def test_a_listed_disagreement_that_is_gone_fails() -> None:
    """The list must not outlive what it explains."""
    found = verdict("crashkernel=256M", {"a case": Known((compare.SIZE,), "why")})
    assert found.agrees
    assert found.fails
    assert "is listed" in report.complaint(found)


def test_every_entry_of_the_list_is_of_a_case_and_has_a_reason() -> None:
    """An entry for nothing would never be looked at."""
    names = {case.name for case in CASES}
    for name, entry in read_known().items():
        assert name in names
        assert len(entry.reason) > 20
        assert entry.differs


# ---- the table of cases


def test_names_are_unique_and_hosts_exist() -> None:
    """Names are file names and keys of the list."""
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))
    assert {case.host for case in CASES} == set(HOSTS)
    assert all(case.kernel in KERNELS for case in CASES)
    assert all(c.isalnum() or c in "-._" for name in names for c in name)


def test_choosing_cases() -> None:
    """By kernel and by parts of names; nothing chosen is an error, not a run without cases."""
    assert choose() == CASES
    assert {case.kernel for case in choose(("6.1",))} == {"6.1"}
    assert all("numa" in c.name or "uefi" in c.name for c in choose((), ("numa", "uefi")))
    with pytest.raises(Exception, match="no such case"):
        choose(("6.1",), ("nothing of that name",))


# ---- recording


class Lab:
    """Stands for observe: guests that do as predicted, but for the fates that are told."""

    def __init__(self, fates: dict[str, Any] | None = None) -> None:
        self.fates = fates or {}
        self.lines: list[str] = []

    def __call__(self, kernel: Kernel, line: str, memory_bytes: int, **_: Any) -> Observation:
        self.lines.append(line)
        fate = self.fates.get(line)
        if isinstance(fate, Exception):
            raise fate
        return fate or faithful(line)


CASE = Case("plain-2G-7.3", "7.3", "2G", "crashkernel=256M", "a plain size")
OTHER = replace(CASE, name="bad", words="crashkernel=lots")


def recorder(tmp_path: Path, fake: Lab) -> Recorder:
    return Recorder(tmp_path, KERNELS_HERE, 2, run=fake)


def test_a_hosts_baseline_is_booted_once_and_first() -> None:
    """Two cases of one host and kernel share it; it has the host's words and no crashkernel=."""
    boots = boots_of([CASE, OTHER, replace(CASE, name="hole", host="one-hole")])
    assert [boot.words for boot in boots] == ["", CASE.words, OTHER.words, "", CASE.words]
    assert boots[3].line == HOSTS["one-hole"].words
    uefi = boot_of(replace(CASE, host="uefi-2G"))
    assert uefi.cmdline == f"{OWN_WORDS} {CASE.words} initrd=initrd".encode()
    assert boots[4].cmdline == f"{OWN_WORDS} {HOSTS['one-hole'].words} {CASE.words}".encode()


def test_what_was_recorded_is_not_booted_again(tmp_path: Path) -> None:
    """A file stands for the very same boot alone: other words, or another build, are another boot."""
    fake = Lab()
    lab = recorder(tmp_path, fake)
    assert lab.record(boots_of([CASE])) == {}
    told = lab.load(boot_of(CASE))
    assert told is not None
    assert told.files == faithful(CASE.words).files
    assert lab.load(replace(boot_of(CASE), words="crashkernel=257M")) is None
    newer = {**KERNELS_HERE, "7.3": replace(KERNELS_HERE["7.3"], version="7.3.5-1")}
    assert replace(lab, kernels=newer).load(boot_of(CASE)) is None
    (tmp_path / "plain-2G-7.3.json").write_text("{")
    assert lab.load(boot_of(CASE)) is None


def test_what_can_not_be_compared_is_named_and_not_kept(tmp_path: Path) -> None:
    """A guest that died, a log that wrapped, a command line that was changed: no observation."""
    wrapped = faithful("crashkernel=1M")
    wrapped.files["log"] = wrapped.files["log"].split(b"\n", 1)[1]  # type: ignore[index]
    fates = {
        CASE.words: ObserveError("no observation", "it died"),
        "crashkernel=1M": wrapped,
        "crashkernel=2M": faithful("crashkernel=3M"),
    }
    cases = [replace(CASE, name=f"c{n}", words=words) for n, words in enumerate(fates)]
    lab = recorder(tmp_path, Lab(fates))
    failed = lab.record([boot_of(case) for case in cases])
    assert set(failed) == {"c0", "c1", "c2"}
    assert "died" in failed["c0"]
    assert "beginning" in failed["c1"]
    assert "command line" in failed["c2"]
    assert not list(tmp_path.glob("*.json"))


def test_a_case_needs_its_baseline(tmp_path: Path) -> None:
    """Without what the host knew there is no prediction: the case is left out, not guessed."""
    lab = recorder(tmp_path, Lab())
    lab.record([boot_of(CASE)])
    assert keep(lab, [CASE], "QEMU").results == ()
    lab.record([baseline_of(CASE)])
    kept = keep(lab, [CASE], "QEMU")
    assert [r.name for r in kept.results] == [CASE.name]
    assert load(json_text(kept)) == kept


# ---- the verb


@pytest.fixture
def lab_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run the verb on two cases and made-up guests: its exit code."""
    monkeypatch.setattr("crashlend.lab.kernels.fetch", lambda name, say: KERNELS_HERE[name])
    monkeypatch.setattr("crashlend.lab.records.machine_facts", lambda: {"qemu": "QEMU"})
    monkeypatch.setattr("crashlend.lab.agree.cases.CASES", (CASE, OTHER))

    def run(fake: Lab, *words: str) -> int:
        monkeypatch.setattr(record, "Recorder", partial(Recorder, run=fake))
        return main(["lab", "agree", "-o", str(tmp_path / "out"), *words])

    return run


def test_verb_ends_with_0_where_all_agree(
    lab_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It writes the data and the page, and says how many agree."""
    data, page = tmp_path / "agree.json", tmp_path / "agreement.md"
    assert lab_run(Lab(), "--data", str(data), "--report", str(page)) == 0
    assert "cases: 2, agree: 2" in capsys.readouterr().out
    kept = load(data.read_text())
    assert page.read_text() == report.markdown(kept, judge_all(kept))


def test_verb_ends_with_1_on_a_disagreement_and_shows_it(
    lab_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was predicted and what was seen are printed, each line of both."""
    fake = Lab({OTHER.words: observation(words=OTHER.words, log=(("warn", "crashkernel: no!"),))})
    assert lab_run(fake) == 1
    out = capsys.readouterr().out
    assert "warn: crashkernel: memory value expected" in out
    assert "warn: crashkernel: no!" in out


def test_verb_ends_with_1_where_a_case_was_not_observed(
    lab_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """A guest that died is no agreement; with --resume that one alone is booted again."""
    assert lab_run(Lab({OTHER.words: ObserveError("no observation", "it died")}), "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert told["cases"] == 1
    assert "it died" in told["unobserved"]["bad"]
    again = Lab()
    assert lab_run(again, "--resume") == 0
    assert again.lines == [OTHER.words]


def test_verb_boots_nothing_where_it_is_told_so(
    lab_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """--no-boot reports what is there; with nothing there it has no verdict, and fails."""
    assert lab_run(Lab(), "--no-boot") == 1
    assert lab_run(Lab({OTHER.words: ObserveError("no observation", "it died")})) == 1
    capsys.readouterr()
    fake = Lab()
    assert lab_run(fake, "--no-boot") == 0
    assert "cases: 1, agree: 1" in capsys.readouterr().out
    assert not fake.lines


def test_verb_lists_cases_and_refuses_unknown_kernels(
    lab_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither boots anything."""
    fake = Lab()
    assert lab_run(fake, "--list") == 0
    assert CASE.words in capsys.readouterr().out
    assert lab_run(fake, "--kernel", "2.6") == 2
    assert not fake.lines
    assert Path("build/agree") == verb.DIRECTORY
