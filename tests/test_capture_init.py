# SPDX-License-Identifier: LGPL-2.1-or-later
"""The functions of the crash kernel's /init, each by itself."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from capture_shell import BUSYBOX, STUBS, needs_busybox, shell
from crashlend.capture import tools
from crashlend.capture.initramfs import load_archive
from crashlend.capture.script import KINDS, script
from crashlend.errors import CrashlendError
from crashlend.formats import newc

if TYPE_CHECKING:
    from pathlib import Path


@needs_busybox
@pytest.mark.parametrize("value", ["", "it's", 'a "b" $(c) `d` \\ e', "a\nb", "$HOME", "x" * 2000])
def test_shell_variables_survive_quoting(tmp_path: Path, value: str) -> None:
    archive = load_archive({"LENDER": value})
    assert len(archive) % 4 == 0
    members, _ = newc.parse(archive)
    conf = next(m.data for m in members if m.path == "etc/crashlend/load.conf")
    (tmp_path / "load.conf").write_bytes(conf)
    assert shell('. ./load.conf; printf "%s|" "$LENDER"', tmp_path) == value + "|"


def test_names_that_are_no_variables_are_refused() -> None:
    with pytest.raises(CrashlendError, match="not a shell variable"):
        load_archive({"x;reboot": "1"})


@needs_busybox
def test_the_report_is_json(tmp_path: Path) -> None:
    script = """
    REASON='say "no" \\ é' LENDER=movable LENT_BYTES=4096 ALLOW_MISSING_USER_DATA=yes
    LENT_RANGES='0x1000-0x2000,8192-12288 bogus 5- ' DUMP_ARGS='-l -d 31' DUMP_EXIT=0
    DMESG_BYTES=7 AT_BOOT=305 DUMP_VERSION=1.7.2
    echo 1 >least
    capture_json "$REASON"
    """
    report: dict[str, Any] = json.loads(shell(script, tmp_path))
    assert report["schema"] == 1
    assert report["ok"] is False
    assert report["reason"] == 'say "no" \\ '
    assert report["lent"] == {"bytes": 4096, "ranges": [[4096, 8192], [8192, 12288]]}
    assert report["allow_missing_user_data"] is True
    assert report["dump_level"] == 31
    assert report["makedumpfile"] == {"version": "1.7.2", "exit": 0, "args": ["-l", "-d", "31"]}
    assert report["seconds"]["boot"] == 3.05
    used = report["crash_kernel"]["mem_total_bytes"] - report["crash_kernel"]["peak_used_bytes"]
    assert used == 1024
    (tmp_path / "least").unlink()
    empty = json.loads(shell("capture_json ''", tmp_path))
    assert (empty["ok"], empty["lent"]["ranges"]) == (True, [])
    assert empty["makedumpfile"]["exit"] is None
    assert empty["crash_kernel"]["peak_used_bytes"] == 0


RECORD = (
    '{"steps":[{"step":"self","ms":0,"bad":0},{"step":"watch","ms":12,"passes":3,"quiet":true}],'
    '"tsc_khz":2300846,"clock":"pm"}'
)


@needs_busybox
@pytest.mark.parametrize(
    ("kind", "data", "found"),
    [
        ("0x434c4e44", RECORD, True),
        ("0x434c4e44", RECORD[:-1] + ',"reset":"digest of the kernel\'s copy"}', True),
        ("0x434c4e44", '{"steps":[],"reset":"exception 13 at 0xaf3f0123"}', True),
        ("0x434c4e44", '{"steps":[]}', True),
        ("0x1", RECORD, False),
        ("0x434c4e44", "", False),
        ("0x434c4e44", RECORD[:-1], False),
        ("0x434c4e44", RECORD.replace(",", ";", 1), False),
        ("0x434c4e44", RECORD.replace("pm", 'p"m'), False),
        ("0x434c4e44", RECORD + RECORD, False),
    ],
)
def test_purgatory_s_record_is_taken_when_it_is_whole(
    tmp_path: Path, kind: str, data: str, found: bool
) -> None:
    """What is no such JSON object is null: a damaged record must not spoil the report."""
    for number, (node_kind, text) in enumerate([("0x1", "?"), (kind, data)]):
        node = tmp_path / f"nodes/{number}"
        node.mkdir(parents=True)
        (node / "type").write_text(node_kind + "\n")
        (node / "data").write_bytes(text.encode().ljust(1023) + b"\n")
    got = json.loads(shell("purgatory_record nodes", tmp_path))
    assert got == (json.loads(data) if found else None)
    assert json.loads(shell("purgatory_record nowhere", tmp_path)) is None


@needs_busybox
def test_ram_ranges_are_half_open_and_sorted(tmp_path: Path) -> None:
    for index, (start, end, kind) in enumerate(
        [
            ("0x100000000", "0x13fffffff", "System RAM"),
            ("0x0", "0x9fbff", "System RAM"),
            ("0x9fc00", "0x9ffff", "Reserved"),
        ]
    ):
        entry = tmp_path / f"memmap/{index}"
        entry.mkdir(parents=True)
        for name, text in (("start", start), ("end", end), ("type", kind)):
            (entry / name).write_text(text + "\n")
    assert shell("ram_ranges memmap iomem", tmp_path).split() == [
        "0-654336",
        "4294967296-5368709120",
    ]
    (tmp_path / "iomem").write_text(
        "00001000-0009fbff : System RAM\n00100000-1fffffff : System RAM\n"
        "  01000000-01ffffff : Kernel code\n20000000-2fffffff : Reserved\n"
    )
    from_iomem = ["4096-654336", "1048576-536870912"]
    assert shell("ram_ranges none iomem", tmp_path).split() == from_iomem
    # words of the command line add memory that the loader's map does not have
    (tmp_path / "cmdline").write_text("quiet memmap=128M@1G elfcorehdr=0x1\n")
    assert shell("ram_ranges memmap iomem cmdline", tmp_path).split() == from_iomem
    (tmp_path / "cmdline").write_text("quiet nomemmap=1\n")
    assert shell("ram_ranges memmap iomem cmdline", tmp_path).split() != from_iomem


@needs_busybox
@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (
            "[    4.0] sysrq: Trigger a crash\n[    4.1][  T1] Kernel panic - not syncing: x: y\n",
            "Kernel panic - not syncing: x: y",
        ),
        ("[1.0] sysrq: Trigger a crash\n[1.1] BUG: x\n", "sysrq: Trigger a crash"),
        ("[1.0] nothing\n", ""),
        (
            "[1.0] watchdog: BUG: soft lockup\n[2.0] BUG: kernel NULL pointer, address: 0\n"
            "[2.1] Oops: 0002 [#1]\n",
            "BUG: kernel NULL pointer, address: 0",
        ),
        ("[1.0] general protection fault: 0\n", "general protection fault: 0"),
    ],
)
def test_panic_line(tmp_path: Path, log: str, expected: str) -> None:
    (tmp_path / "dmesg").write_text(log)
    assert shell("panic_line dmesg", tmp_path) == expected


@needs_busybox
def test_flush_truncates_nothing(tmp_path: Path) -> None:
    """bounded() writes to /proc/self/oom_score_adj, which root and others may raise."""
    (tmp_path / "f").write_bytes(b"content")
    shell('bounded() { shift; "$@"; }; flush f', tmp_path)
    assert (tmp_path / "f").read_bytes() == b"content"


@needs_busybox
def test_directories_never_collide(tmp_path: Path) -> None:
    script = STUBS + "DIR=; TARGET_PATH=/var/crash\n"
    script += 'directory_begin h-now && put_first && echo "$DIR"\n' * 3
    base = tmp_path / "target/var/crash/h-now"
    assert shell(script, tmp_path).split() == [str(base), f"{base}-1", f"{base}-2"]
    report = json.loads((base / "capture.json").read_text())
    assert report["reason"] == "the capture did not finish"


@needs_busybox
def test_file_systems_are_found_by_uuid_and_label(tmp_path: Path) -> None:
    uuid = "0123abcd-4567-89ab-cdef-0123456789ab"
    raw = bytes.fromhex(uuid.replace("-", ""))
    for name, fields in {
        "other": {1128: bytes(16)},
        "short": {},
        "ext4": {1128: raw, 1144: b"my disk"},
        "xfs": {32: raw, 108: b"twelve bytes"},
    }.items():
        data = bytearray(64 if name == "short" else 4096)
        for at, value in fields.items():
            data[at : at + len(value)] = value
        (tmp_path / name).write_bytes(data)
    for spec, fstype, expected in [
        (f"UUID={uuid.upper()}", "ext4", "ext4"),
        (f"UUID={uuid}", "xfs", "xfs"),
        ("LABEL=my disk", "ext4", "ext4"),
        ("LABEL=twelve bytes", "xfs", "xfs"),
        ("LABEL=none", "xfs", ""),
    ]:
        script = STUBS + f"find_device '{spec}' {fstype} gone other short ext4 xfs"
        assert shell(script, tmp_path).strip() == expected


@needs_busybox
def test_this_hosts_busybox_has_every_applet() -> None:
    assert BUSYBOX is not None
    listed = subprocess.run([BUSYBOX, "--list"], capture_output=True, check=True, text=True)
    assert {*tools.APPLETS.split()} <= {*listed.stdout.split()}


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing() -> None:
    subprocess.run(["shellcheck", "-s", "dash", "-"], input=script(KINDS), check=True)
