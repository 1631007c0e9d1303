# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lab's installed Debian: what it is made of, files in its image, words on its console."""

from __future__ import annotations

import json
import re
import struct
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crashlend.errors import CrashlendError, FormatError
from crashlend.lab.kernels import Kernel
from crashlend.lab.packages import find_tool
from crashlend.lab.qemu import Report
from crashlend.lab.system import image, judge, trial, utils
from crashlend.lab.system.edit import copy_directory, read_file, replay, write_files
from crashlend.lab.system.kdumpfile import Bitmaps, read_bitmaps
from crashlend.lab.system.stamps import Stamps
from crashlend.lab.system.trial import (
    SystemOutcome,
    SystemSpec,
    check_lending,
    check_reload,
    check_saved,
    check_service,
)
from crashlend.lab.watch import PRODUCTIONS_OWN
from crashlend.ranges import Ranges
from crashlend.sizes import mib
from dump_files import DUMPED, flatten, kdump

PAGE = Path(__file__).parent.parent / "docs/adoption.md"


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A small ext4 image with one file in it."""
    tree, disk = tmp_path / "tree", tmp_path / "disk.ext4"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/hostname").write_text("debian\n")
    disk.touch()
    with disk.open("r+b") as stream:
        stream.truncate(16 << 20)
    tool = find_tool("mke2fs", "install the package e2fsprogs")
    subprocess.run([tool, "-q", "-F", "-t", "ext4", "-d", tree, disk], check=True)
    return disk


def test_files_are_put_into_an_image_and_read_again(disk: Path, tmp_path: Path) -> None:
    """New directories, a replaced file, modes: the file system holds and has what was written."""
    program = bytes(range(256)) * 40
    write_files(
        disk,
        {
            "/etc/hostname": (b"other\n", 0o644),
            "/usr/sbin/program": (program, 0o755),
        },
    )
    assert read_file(disk, "/etc/hostname") == b"other\n"
    assert read_file(disk, "/usr/sbin/program") == program
    assert read_file(disk, "/nowhere") == b""
    replay(disk)
    check = subprocess.run(["e2fsck", "-fn", disk], capture_output=True, check=False)
    assert check.returncode == 0, check.stdout
    copied = copy_directory(disk, "/usr", tmp_path / "out")
    assert (copied / "sbin/program").stat().st_mode & 0o777 == 0o755
    assert (copied / "sbin/program").read_bytes() == program
    write_files(disk, {"/usr/sbin/other": (b"new", 0o755)})
    (copied / "sbin/program").write_bytes(b"of an earlier run")
    again = copy_directory(disk, "/usr", tmp_path / "out")
    assert (again / "sbin/other").read_bytes() == b"new"
    assert (again / "sbin/program").read_bytes() == program


def test_what_is_no_image_is_said(tmp_path: Path) -> None:
    """A file without a file system: an error with its name, not silence."""
    (tmp_path / "file").write_bytes(bytes(4096))
    with pytest.raises(CrashlendError, match="file"):
        write_files(tmp_path / "file", {"/a": (b"b", 0o644)})
    with pytest.raises(CrashlendError, match="cannot read the file system"):
        replay(tmp_path / "file")


def test_stamps_come_in_order(tmp_path: Path) -> None:
    """Words count behind those before them alone, in whatever pieces they come."""
    console = tmp_path / "console"
    stamps = Stamps(console, [("panic", "panic"), ("up", "Linux version"), ("saved", "saved")])
    for piece in (b"Linux version 1\nsaved\npa", b"nic\nLinux ver", b"sion 1\n"):
        with console.open("ab") as stream:
            stream.write(piece)
        stamps.look()
    assert [*stamps.seen] == ["panic", "up"]


def test_a_kernel_of_no_release_is_no_system() -> None:
    """A system's kernel comes from the same suite as all else: others are refused in words."""
    other = Kernel("7.3", "7.3.4", "trixie-backports", Path("v"), Path("m"), None, "7.3.4-1")
    with pytest.raises(CrashlendError, match="no package of a Debian release's own"):
        image._packages(other, print)
    own = Kernel("path", "6.1.0", "bookworm", Path("v"), Path("m"), None, "")
    with pytest.raises(CrashlendError, match="no package of a Debian release's own"):
        image._packages(own, print)


def test_masked_units_and_the_job_are_laid_out(tmp_path: Path) -> None:
    """Systemd finds its masks as links to /dev/null, and starts the lab's job."""
    image._lay_out(tmp_path)
    units = tmp_path / "etc/systemd/system"
    assert all((units / name).readlink() == Path("/dev/null") for name in image.MASKED)
    assert (tmp_path / image.WANTS).resolve() == units / "crashlend-lab.service"
    assert f"ExecStart=/bin/sh {image.JOB}" in (units / "crashlend-lab.service").read_text()


# --- judging ---------------------------------------------------------------------------------------


GOOD_RELOAD = "\n".join(("block 15 went and came", *trial.RELOADED[1:]))
# a bit a page: of 256 MiB all but [64M, 128M)
ALL_BUT_LENT = b"\xff" * 2048 + bytes(2048) + b"\xff" * 4096


def outcome(**kind: Any) -> SystemOutcome:
    """What a good run of system-6.1 told; ``kind`` replaces parts of it."""
    lent = {"bytes": 64 << 20, "ranges": [[64 << 20, 128 << 20]]}
    status = {"by_crashlend": True, "lender": "movable", "lent": lent}
    told = {
        "loaded": "1\n",
        "reservation": "19689472\n",
        "command": "/sbin/kexec -p --version >/dev/null && /usr/sbin/crashlend kexec -p …",
        "payload": "7216556\n8247232\n",
        "status": json.dumps(status),
        "journal": "loaded kdump kernel",
        "reload": GOOD_RELOAD,
    }
    told |= kind.pop("told", {})
    stamps = {"panic": 100.0, "crash_kernel": 115.9, "saved": 165.4}
    return replace(
        SystemOutcome(
            SystemSpec(Kernel("6.1", "6.1.0", "bookworm", Path(), Path(), None, "6.1")),
            told,
            Report(seconds=170.0),
            stamps,
            Path("vmcore"),
            f"[   96.856559] {PRODUCTIONS_OWN}\n",
            PRODUCTIONS_OWN,
            {"2026/dump.2026": 25925772},
            Bitmaps(ALL_BUT_LENT, ALL_BUT_LENT),
        ),
        **kind,
    )


def failed(some: SystemOutcome, most_bytes: int = 24 << 20) -> list[str]:
    checks = [check_service(some), check_reload(some)]
    checks += [*check_lending(some, most_bytes), *check_saved(some)]
    return [check.name for check in checks if not check.ok]


def test_a_good_run_passes_every_check() -> None:
    """And its figures are kept: seconds from the panic, sizes of the payload."""
    assert failed(outcome()) == []
    kept = outcome().to_json()
    assert kept["seconds"]["panic_to_saved"] == 65.4
    assert kept["payload"] == {"kernel_bytes": 8247232, "initramfs_bytes": 7216556}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ({"told": {"loaded": "0\n"}}, "kdump-tools' service loaded"),
        ({"told": {"command": "/sbin/kexec -p --command-line=…"}}, "kdump-tools' service loaded"),
        ({"told": {"status": "no JSON"}}, "kdump-tools' service loaded"),
        ({"told": {"reservation": "268435456\n"}}, "the reservation is as small"),
        ({"told": {"reservation": ""}}, "the reservation is as small"),
        ({"told": {"status": '{"by_crashlend": true, "lent": {"ranges": []}}'}}, "memory is lent"),
        *(
            ({"told": {"reload": GOOD_RELOAD.replace(words, "")}}, "kdump-config try-reload")
            for words in trial.RELOADED
        ),
        ({"bitmaps": None}, "nothing of lent memory"),
        ({"bitmaps": Bitmaps(b"\xff" * 8192, ALL_BUT_LENT)}, "nothing of lent memory"),
        ({"bitmaps": Bitmaps(ALL_BUT_LENT, b"\xff" * 8192)}, "nothing of lent memory"),
        ({"bitmaps": Bitmaps(bytes(8192), bytes(8192))}, "nothing of lent memory"),
        ({"stamps": {"panic": 1.0}}, "the crash kernel came up"),
        ({"dump": None}, "kdump-tools saved its own dump"),
        ({"dmesg": "nothing"}, "the dump opens"),
        ({"report": Report(timed_out=True)}, "the system restarted by itself"),
    ],
)
def test_each_check_can_fail(kind: dict[str, Any], name: str) -> None:
    """Each thing that must hold is missed where it does not."""
    assert any(one.startswith(name) for one in failed(outcome(**kind)))


FAILED = "failed to load kdump kernel ... failed!"
OOM = f"{PRODUCTIONS_OWN}\nOut of memory: Killed process 1\nKernel panic - not syncing: Out of memory\n"


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ({}, "the control saved its dump"),
        ({"stamps": {}}, "the control never got as far"),
        ({"dump": None, "stamps": {"panic": 1.0}}, "nothing on the control's console"),
        ({"dump": None, "stamps": {"panic": 1.0}, "console": OOM}, ""),
        (
            {
                "dump": None,
                "stamps": {"panic": 1.0},
                "told": {"loaded": "0", "journal": f"locate_hole failed\n{FAILED}"},
            },
            "",
        ),
        (
            {
                "dump": None,
                "stamps": {"panic": 1.0},
                "told": {
                    "loaded": "0",
                    "journal": f"Cannot open /var/lib/kdump/initrd.img\n{FAILED}",
                },
            },
            "kexec does not say",
        ),
        (
            {"dump": None, "stamps": {"panic": 1.0}, "told": {"loaded": "0", "journal": "?"}},
            "kexec does not say",
        ),
    ],
)
def test_a_control_must_have_lost_its_dump_for_lack_of_memory(
    kind: dict[str, Any], why: str
) -> None:
    """No dump alone is no control: kexec refused, or the crash kernel died for memory."""
    found = judge.why_not_lost(outcome(**kind))
    assert found.startswith(why)
    assert bool(found) is bool(why)


def test_kdumpctls_steps_are_judged_by_what_they_leave() -> None:
    """Exit code, whether a crash kernel is loaded, and whether memory is lent, each step on its own.

    What came up after the crash is what the restart was to load: its line has the word that was put in.
    """
    line = f"[    0.1] Kernel command line: ro panic=1 {utils.CHANGED} nokaslr\r\n"
    good = {
        name: f'kdump: ok\nexit 0\n  "loaded": {str(loaded).lower()},\n    "bytes": {int(lent) << 29},\n'
        for name, (loaded, lent) in utils.WANTED.items()
    }
    assert all(check.ok for check in utils.check_steps(good, line))
    for name, text in good.items():
        for bad in (text.replace("exit 0", "exit 1"), text.replace("loaded", "ladoed"), ""):
            checks = utils.check_steps({**good, name: bad}, line)
            assert [c.ok for c in checks].count(False) == 1
    for bad in ("", line.replace(utils.CHANGED, ""), line + "Kernel command line: ro"):
        assert [c.name for c in utils.check_steps(good, bad) if not c.ok] == [
            "the restart loads what was changed"
        ]


@pytest.mark.parametrize("more", ["", utils.STEPS, trial.RELOAD], ids=["", "utils", "reload"])
def test_the_job_is_shell(more: str, tmp_path: Path) -> None:
    """What the guest's shell is given parses, with kdumpctl's steps in it, or a reload."""
    (tmp_path / "job").write_text(trial._JOB.format(port="/dev/ttyS1", more=more))
    subprocess.run(["sh", "-n", tmp_path / "job"], check=True)


def dump_file(path: Path, had: bytes, saved: bytes, **fields: Any) -> Path:
    """A dump of makedumpfile's up to its bitmaps [diskdump_mod.h], of header version 0."""
    half = -(-max(len(had), len(saved)) // 4096)
    values = {"block": 4096, "sub": 1, "blocks": 2 * half, "mapnr": 8 * len(had)} | fields
    header = b"KDUMP   ".ljust(428, b"\0") + struct.pack("<iiII", *values.values())
    body = had.ljust(half * 4096, b"\0") + saved.ljust(half * 4096, b"\0")
    path.write_bytes(header.ljust(4096, b"\0") + bytes(4096) + body)
    return path


def test_the_bitmaps_of_a_dump(tmp_path: Path) -> None:
    """The two are found behind header and sub-header; each page is a bit, the lowest first."""
    path = dump_file(tmp_path / "vmcore", b"\x81\xff", b"\x80")
    bitmaps = read_bitmaps(path)
    first = Ranges([(0, 8 * 4096)])
    assert bitmaps.pages(bitmaps.had, first) == 2
    assert bitmaps.pages(bitmaps.saved, first) == 1
    assert bitmaps.pages(bitmaps.had, Ranges([(7 * 4096, 16 * 4096)])) == 9
    assert bitmaps.pages(bitmaps.had, Ranges([(1 << 40, (1 << 40) + 4096)])) == 0


@pytest.mark.parametrize("kind", ["empty", "elf", "block", "sub", "blocks", "cut"])
def test_no_dump_and_a_damaged_one_are_errors(kind: str, tmp_path: Path) -> None:
    """Whatever is wrong with the header: FormatError, and no bitmap."""
    fields = {"block": {"block": 0}, "sub": {"sub": -1}, "blocks": {"blocks": 1 << 30}}
    path = dump_file(tmp_path / "vmcore", b"\xff", b"\xff", **fields.get(kind, {}))
    if kind in ("empty", "elf"):
        path.write_bytes(b"\x7fELF".ljust(900, b"\0") if kind == "elf" else b"")
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FormatError):
        read_bitmaps(path)


def test_the_bitmaps_of_a_flattened_dump_are_those_of_the_dump(tmp_path: Path) -> None:
    """The one parser of dumps reads both; pages of another size are refused, not miscounted."""
    (tmp_path / "plain").write_bytes(kdump())
    (tmp_path / "flat").write_bytes(flatten(kdump()))
    bitmaps = read_bitmaps(tmp_path / "plain")
    assert read_bitmaps(tmp_path / "flat") == bitmaps
    everything = Ranges([(0, 1 << 40)])
    assert bitmaps.pages(bitmaps.saved, everything) == sum(end - first for first, end in DUMPED)
    assert bitmaps.pages(bitmaps.had, Ranges([(0x40000 * 4096, 0x48000 * 4096)])) == 0
    dump_file(tmp_path / "big", b"\xff", b"\xff", block=8192, blocks=2)
    with pytest.raises(FormatError, match="8192"):
        read_bitmaps(tmp_path / "big")


def test_a_dump_of_kdump_tools_is_made_ordinary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the product's own reader, as people do it; a stream that is cut short is no dump."""
    monkeypatch.setattr(trial, "find_tool", lambda *_: "/bin/true")
    flat = tmp_path / "crash/202611260054/dump.202611260054"
    flat.parent.mkdir(parents=True)
    flat.write_bytes(flatten(kdump()))
    dump, _, kept = trial.read_dump(tmp_path / "crash", tmp_path)
    assert dump is not None
    assert dump.read_bytes() == kdump()
    assert list(kept) == [str(flat.relative_to(tmp_path / "crash"))]
    flat.write_bytes(flatten(kdump(), end=False))
    assert trial.read_dump(tmp_path / "crash", tmp_path)[0] is None


def test_the_adoption_pages_figures_are_those_of_kept_results() -> None:
    """Each figure under "What was tried" is in the kept result that the page names; all passed."""
    page = " ".join(PAGE.read_text().partition("## What was tried")[2].split())
    kept = {}
    for name in ("system-6.1", "system-control-6.1", "system-utils-6.1"):
        assert f"(results/{name}.json)" in page
        kept[name] = json.loads((PAGE.parent / f"results/{name}.json").read_text())
        assert kept[name]["passed"] is True
    first = kept["system-6.1"]["trial"]
    payload = sum(first["payload"].values())
    row = f"| {mib(first['reservation_bytes'])}; kernel and initramfs are {mib(payload)} |"
    assert f"{row} {mib(first['lent_bytes'])} |" in page
    refused = kept["system-control-6.1"]["trial"]["kdump_tools_said"]
    (room,) = [line for line in refused if line.startswith(judge.NO_ROOM[0])]
    assert f"`{room.rstrip('.')}`" in page
    for name in ("system-6.1", "system-utils-6.1"):
        seconds = kept[name]["trial"]["seconds"]
        (holes,) = [c["detail"] for c in kept[name]["checks"] if c["name"].startswith("nothing of")]
        lent, pages = re.findall(r"0 of (\d+) lent pages.*of all (\d+) pages", holes)[0]
        for figure in (
            f"up {seconds['panic_to_crash_kernel']} s after the panic",
            f"saved after {seconds['panic_to_saved']} s",
            f"none of the {lent}",
            pages,
        ):
            assert figure in page


def test_the_adoption_lines_are_the_documented_ones() -> None:
    """What the lab configures is what docs/adoption.md tells people to write."""
    page = PAGE.read_text()
    assert f"\n    {trial.ADOPTION}\n" in page
    assert f"\n    {utils.ADOPTION}\n" in page
