# SPDX-License-Identifier: LGPL-2.1-or-later
"""The capture initramfs: what it holds, that it is deterministic, and init.sh's functions."""

from __future__ import annotations

import gzip
import json
import lzma
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from crashlend.capture import initramfs
from crashlend.capture.initramfs import CaptureSpec, build_initramfs, load_archive
from crashlend.capture.modules import Want
from crashlend.capture.target import Target
from crashlend.errors import CrashlendError
from crashlend.formats import newc

RELEASE = "6.1.0-test"
INIT = Path(initramfs.__file__).with_name("init.sh")
BUSYBOX = shutil.which("busybox")
TARGET = Target("UUID=1-2", "ext4", "/var/crash", "/dev/vda1", (Want("ext4", "file system"),))

needs_busybox = pytest.mark.skipif(BUSYBOX is None, reason="busybox is not installed")


def static_elf(*strings: str) -> bytes:
    """An executable without segments that holds ``strings`` the way busybox holds its applets."""
    header = b"\x7fELF\2\1\1" + bytes(9) + b"\2\0>\0" + bytes(44)
    return header + b"".join(b"\0" + text.encode() for text in strings) + b"\0"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host with stand-ins for busybox, makedumpfile and one module."""
    root = tmp_path / "root"
    for path, data in {
        "bin/busybox": static_elf(*initramfs.APPLETS.split(), "ls"),
        "usr/bin/makedumpfile": static_elf(),
        f"lib/modules/{RELEASE}/kernel/ext4.ko.xz": lzma.compress(b"ext4 module"),
        f"lib/modules/{RELEASE}/modules.dep": b"kernel/ext4.ko.xz:\n",
        f"boot/config-{RELEASE}": b"# CONFIG_RD_LZ4 is not set\nCONFIG_RD_XZ=y\n",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def unpack(data: bytes) -> dict[str, newc.Member]:
    unpacked = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else lzma.decompress(data)
    return {member.path: member for member in newc.parse(unpacked)[0]}


def test_contents(root: Path) -> None:
    built = build_initramfs(root, CaptureSpec(RELEASE, TARGET, dump_level=17, host="h/x"))
    members = unpack(built.data)
    assert members["init"].data == INIT.read_bytes()
    assert members["init"].mode & 0o111
    assert members["lib/modules/ext4.ko"].data == b"ext4 module"
    assert members["etc/crashlend/modules"].data == b"/lib/modules/ext4.ko\n"
    assert members["bin/sh"].data == b"busybox"
    assert "bin/ls" in members  # wished for and there
    assert "bin/wget" not in members  # wished for and not there
    assert members["dev/console"].device == (5, 1)
    assert stat.S_ISDIR(members["target"].mode)
    config = members["etc/crashlend/capture.conf"].data.decode()
    assert "DUMP_LEVEL='17'\n" in config
    assert "HOST='h_x'\n" in config
    assert {e.path for e in built.entries} >= {"/init", "/bin/makedumpfile", "/lib/modules/ext4.ko"}
    assert all(entry.why for entry in built.entries)
    assert built.unpacked_bytes == len(lzma.decompress(built.data))


def test_same_input_gives_the_same_bytes(root: Path) -> None:
    spec = CaptureSpec(RELEASE, TARGET)
    first = build_initramfs(root, spec)
    for path in root.rglob("*"):
        path.touch()
    assert build_initramfs(root, spec) == first


def test_compression_is_what_the_kernel_unpacks(root: Path) -> None:
    built = build_initramfs(root, CaptureSpec(RELEASE, TARGET))
    assert built.compression == "xz"
    assert built.data[7] == 1  # stream flags: CRC32, the only check that the kernel knows
    (root / f"boot/config-{RELEASE}").write_text("# CONFIG_RD_XZ is not set\n")
    built = build_initramfs(root, CaptureSpec(RELEASE, TARGET))
    assert built.compression == "gzip"
    assert built.data[4:8] == bytes(4)  # no time stamp
    (root / "proc/sys/kernel").mkdir(parents=True)
    (root / "proc/sys/kernel/osrelease").write_text(RELEASE + "\n")
    (root / "proc/config.gz").write_bytes(gzip.compress(b"CONFIG_RD_XZ=y\n"))
    (root / f"boot/config-{RELEASE}").unlink()
    assert initramfs.best_compression(initramfs.kernel_config(root, RELEASE)) == "xz"
    assert initramfs.kernel_config(root, "other") == {}


@pytest.mark.parametrize("path", ["bin/busybox", "usr/bin/makedumpfile"])
def test_missing_tools_name_their_package(root: Path, path: str) -> None:
    (root / path).unlink()
    with pytest.raises(CrashlendError) as caught:
        build_initramfs(root, CaptureSpec(RELEASE, TARGET))
    assert f"install the package {Path(path).name}" in caught.value.hint


def test_a_busybox_without_needed_applets_is_refused(root: Path) -> None:
    (root / "bin/busybox").write_bytes(static_elf("sh", "mount"))
    with pytest.raises(CrashlendError, match=r"lacks .*timeout"):
        build_initramfs(root, CaptureSpec(RELEASE, TARGET))


def test_hooks(root: Path, tmp_path: Path) -> None:
    hooks = tmp_path / "hooks"
    for name, text, mode in (
        ("pre.d/10-a", "#!/bin/sh\n", 0o755),
        ("post.d/README", "no hook\n", 0o644),
        ("failure.d/x", "#!/bin/busybox sh\n", 0o755),
    ):
        (hooks / name).parent.mkdir(parents=True, exist_ok=True)
        (hooks / name).write_text(text)
        (hooks / name).chmod(mode)
    spec = CaptureSpec(RELEASE, TARGET, hooks=hooks)
    found = {p for p in unpack(build_initramfs(root, spec).data) if "/hooks/" in p and "." in p}
    prefix = "etc/crashlend/hooks"
    assert found == {
        *(f"{prefix}/{stage}.d" for stage in ("pre", "failure")),
        *(f"{prefix}/{hook}" for hook in ("pre.d/10-a", "failure.d/x")),
    }
    (hooks / "pre.d/10-a").write_text("#!/usr/bin/python3\n")
    with pytest.raises(CrashlendError, match="10-a"):
        build_initramfs(root, spec)


# --- init.sh -------------------------------------------------------------------------------------


def shell(script: str, cwd: Path) -> str:
    """Run ``script`` in busybox's shell with the functions of init.sh."""
    setup = f". {INIT}; defaults; TMP=$PWD LOG=$PWD/log ETC=$PWD MOUNTPOINT=$PWD/target PATH="
    assert BUSYBOX is not None
    command = [BUSYBOX, "sh", "-c", f"{setup}{cwd}/bin:/bin:/usr/bin:/sbin:/usr/sbin\n{script}"]
    done = subprocess.run(command, cwd=cwd, capture_output=True, check=True, text=True, timeout=60)
    return done.stdout


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)


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


MAKEDUMPFILE = """
case "$*" in
  *" -l "*) echo "makedumpfile: invalid option -- 'l'" >&2; exit 1 ;;
esac
for out; do :; done
echo "$*" >args
printf vmcore >"$out"
exit $(cat exit)
"""
STUBS = """
say() { echo "$*" >>said; }
bounded() { shift; "$@"; }
DIR=$PWD
"""


@needs_busybox
def test_the_dump_falls_back_to_other_compressions(tmp_path: Path) -> None:
    executable(tmp_path / "bin/makedumpfile", MAKEDUMPFILE)
    (tmp_path / "exit").write_text("0")
    out = shell(STUBS + 'dump; echo "$REASON|$VMCORE_BYTES|$DUMP_ARGS|$DUMP_EXIT"', tmp_path)
    assert out == "|6|-c -d 31|0\n"
    assert (tmp_path / "vmcore").read_bytes() == b"vmcore"
    assert not (tmp_path / "vmcore.incomplete").exists()


@needs_busybox
def test_a_failing_dump_stays_incomplete_and_is_not_tried_again(tmp_path: Path) -> None:
    executable(tmp_path / "bin/makedumpfile", "echo No space left >&2\n" + MAKEDUMPFILE)
    (tmp_path / "exit").write_text("1")
    out = shell(STUBS + 'DUMP_LEVEL=0; dump; echo "$REASON|$VMCORE|$DUMP_EXIT"', tmp_path)
    assert out == "makedumpfile ended with 1: No space left||1\n"
    assert (tmp_path / "vmcore.incomplete").exists()
    assert (tmp_path / "args").read_text().startswith("--message-level 6 -c -d 0 /proc/vmcore ")


@needs_busybox
def test_a_dump_that_does_not_grow_is_ended(tmp_path: Path) -> None:
    executable(tmp_path / "bin/makedumpfile", "exec sleep 50\n")
    out = shell(STUBS + 'STALL_TIMEOUT=1; dump; echo "$REASON"', tmp_path)
    assert out == "makedumpfile ended with 137: the dump had not grown for 1 s\n"


@needs_busybox
def test_directories_never_collide(tmp_path: Path) -> None:
    script = STUBS + "date() { echo now; }\n DIR=; HOST=h\n" + 'make_directory; echo "$DIR"\n' * 3
    base = tmp_path / "target/var/crash/h-now"
    assert shell(script, tmp_path).split() == [str(base), f"{base}-1", f"{base}-2"]
    report = json.loads((base / "capture.json").read_text())
    assert report["reason"] == "the capture did not finish"


@needs_busybox
def test_hooks_get_the_documented_environment(tmp_path: Path) -> None:
    executable(tmp_path / "hooks/post.d/10-env", "env | grep ^CRASHLEND_ | sort >env\n")
    executable(tmp_path / "hooks/post.d/20-fails", "exit 3\n")
    executable(tmp_path / "hooks/post.d/30-last", "echo done\n")
    (tmp_path / "hooks/post.d/40-not-executable").write_text("exit 1\n")
    shell(STUBS + "VMCORE=/v REASON='a b' CAPTURE_JSON=/j; run_hooks post failed", tmp_path)
    assert (tmp_path / "env").read_text().splitlines() == [
        "CRASHLEND_CAPTURE_JSON=/j",
        f"CRASHLEND_DIR={tmp_path}",
        "CRASHLEND_REASON=a b",
        "CRASHLEND_STATUS=failed",
        "CRASHLEND_TARGET_MOUNT=",
        "CRASHLEND_VMCORE=/v",
    ]
    assert "20-fails ended with 3" in (tmp_path / "said").read_text()
    assert (tmp_path / "log").read_text() == "done\n"


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
    assert {*initramfs.APPLETS.split()} <= {*listed.stdout.split()}


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing() -> None:
    subprocess.run(["shellcheck", "-s", "dash", str(INIT)], check=True)
