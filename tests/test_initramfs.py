# SPDX-License-Identifier: LGPL-2.1-or-later
"""The capture initramfs: what it holds, that it is deterministic."""

from __future__ import annotations

import gzip
import lzma
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from crashlend.capture import tools
from crashlend.capture.compression import best_compression, kernel_config
from crashlend.capture.initramfs import CaptureSpec, build_initramfs
from crashlend.capture.modules import Want
from crashlend.capture.script import script
from crashlend.capture.targets.filesystem import filesystem_target
from crashlend.capture.targets.target import File
from crashlend.errors import CrashlendError
from crashlend.formats import newc
from test_elf import build_elf

RELEASE = "6.1.0-test"
TARGET = filesystem_target("UUID=1-2", "ext4", "/var/crash", (Want("ext4", "file system"),))


def static_elf(*strings: str) -> bytes:
    """An executable without segments that holds ``strings`` the way busybox holds its applets."""
    header = b"\x7fELF\2\1\1" + bytes(9) + b"\2\0>\0" + bytes(44)
    return header + b"".join(b"\0" + text.encode() for text in strings) + b"\0"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host with stand-ins for busybox, makedumpfile and one module."""
    root = tmp_path / "root"
    for path, data in {
        "bin/busybox": static_elf(*tools.APPLETS.split(), "ls"),
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
    found, at = {}, 0
    while at < len(unpacked):  # one archive after the other, as the kernel does
        members, at = newc.parse(unpacked, start=at)
        found.update({member.path: member for member in members})
    return found


@pytest.mark.parametrize(("version", "threads"), [("1.7.8", "auto"), ("1.7.6", "0")])
def test_threads_bring_their_library(root: Path, version: str, threads: str) -> None:
    """What glibc opens when a thread ends is there where there are threads, and only there."""
    loader = "/lib64/ld-linux-x86-64.so.2"
    said = f"makedumpfile: version {version} (released on 30 Oct 2025)\nlzo\tenabled\n"
    program = build_elf(interpreter=loader) + said.encode()
    (root / "usr/bin/makedumpfile").write_bytes(program)
    (root / "lib64").mkdir()
    (root / loader.lstrip("/")).write_bytes(build_elf())
    (root / "lib64/libgcc_s.so.1").write_bytes(build_elf())
    members = unpack(build_initramfs(root, CaptureSpec(RELEASE, (TARGET,))).data)
    assert ("lib64/libgcc_s.so.1" in members) is (threads == "auto")
    config = members["etc/crashlend/capture.conf"].data.decode()
    assert f"COMPRESSIONS='-l -c'\nTHREADS='{threads}'\n" in config
    path = "/lib64/libgcc_s.so.1" if threads == "auto" else ""
    assert f"THREAD_LIBRARY='{path}'\n" in config


def test_contents(root: Path) -> None:
    built = build_initramfs(root, CaptureSpec(RELEASE, (TARGET,), dump_level=17, host="h/x"))
    members = unpack(built.data)
    assert members["init"].data == script(["fs"])
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
    assert "TARGETS='0'\n" in config
    target = members["etc/crashlend/targets/0.conf"]
    assert b"TARGET_KIND='fs'\nTARGET_SPEC='UUID=1-2'\nTARGET_DEVICE='UUID=1-2'\n" in target.data
    assert stat.S_IMODE(target.mode) == 0o600  # others hold keys
    assert {e.path for e in built.entries} >= {"/init", "/bin/makedumpfile", "/lib/modules/ext4.ko"}
    assert all(entry.why for entry in built.entries)
    assert built.unpacked_bytes == len(lzma.decompress(built.data))


def test_same_input_gives_the_same_bytes(root: Path) -> None:
    spec = CaptureSpec(RELEASE, (TARGET,))
    first = build_initramfs(root, spec)
    for path in root.rglob("*"):
        path.touch()
    assert build_initramfs(root, spec) == first


def test_compression_is_what_the_kernel_unpacks(root: Path) -> None:
    built = build_initramfs(root, CaptureSpec(RELEASE, (TARGET,)))
    assert built.compression == "xz"
    assert built.data[7] == 1  # stream flags: CRC32, the only check that the kernel knows
    (root / f"boot/config-{RELEASE}").write_text("# CONFIG_RD_XZ is not set\n")
    built = build_initramfs(root, CaptureSpec(RELEASE, (TARGET,)))
    assert built.compression == "gzip"
    assert built.data[4:8] == bytes(4)  # no time stamp
    (root / "proc/sys/kernel").mkdir(parents=True)
    (root / "proc/sys/kernel/osrelease").write_text(RELEASE + "\n")
    (root / "proc/config.gz").write_bytes(gzip.compress(b"CONFIG_RD_XZ=y\n"))
    (root / f"boot/config-{RELEASE}").unlink()
    assert best_compression(kernel_config(root, RELEASE)) == "xz"
    assert kernel_config(root, "other") == {}


@pytest.mark.parametrize("path", ["bin/busybox", "usr/bin/makedumpfile"])
def test_missing_tools_name_their_package(root: Path, path: str) -> None:
    (root / path).unlink()
    with pytest.raises(CrashlendError) as caught:
        build_initramfs(root, CaptureSpec(RELEASE, (TARGET,)))
    assert f"install the package {Path(path).name}" in caught.value.hint


def test_a_tool_that_is_nowhere_is_named(root: Path) -> None:
    """Neither busybox nor the host itself has it; the message names what would bring it."""
    (root / "bin/busybox").write_bytes(static_elf("sh", "mount"))
    with pytest.raises(CrashlendError, match=r"coreutils\) is not installed"):
        build_initramfs(root, CaptureSpec(RELEASE, (TARGET,)))


def test_a_target_takes_the_host_s_tools_where_busybox_has_none(root: Path) -> None:
    """But for a DHCP client: that is told with both ways out, and not by a network that stays down."""
    target = replace(TARGET, tools=("ip", "mkfifo"))
    (root / "usr/bin/mkfifo").write_bytes(static_elf())
    with pytest.raises(CrashlendError) as missing:
        build_initramfs(root, CaptureSpec(RELEASE, (target,)))
    assert missing.value.hint == "install the package busybox (or iproute2)"
    (root / "sbin").mkdir()
    (root / "sbin/ip").write_bytes(static_elf("iproute2"))
    members = unpack(build_initramfs(root, CaptureSpec(RELEASE, (target,))).data)
    assert members["bin/ip"].data == static_elf("iproute2")
    assert members["bin/mkfifo"].data == static_elf()
    target = replace(TARGET, tools=("ip", "udhcpc"))
    with pytest.raises(CrashlendError, match="by DHCP, and no busybox with udhcpc") as caught:
        build_initramfs(root, CaptureSpec(RELEASE, (target,)))
    assert "network_address = static" in caught.value.hint


def test_what_a_target_brings_is_for_root_alone(root: Path) -> None:
    """Its files, and what init reads of it; the list says what was decided."""
    key = File("etc/crashlend/key", b"secret", 0o600, "key")
    target = replace(TARGET, tools=("ip", "udhcpc"), files=(key,), says="by eth0")
    (root / "bin/busybox").write_bytes(static_elf(*tools.APPLETS.split(), "ip", "udhcpc"))
    built = build_initramfs(root, CaptureSpec(RELEASE, (target,)))
    members = unpack(built.data)
    assert members["etc/crashlend/key"].mode & 0o777 == 0o600
    assert members["etc/crashlend/targets/0.conf"].mode & 0o777 == 0o600
    whys = {entry.path: entry.why for entry in built.entries}
    assert whys["/etc/crashlend/targets/0.conf"].endswith(": by eth0")


def test_hooks(root: Path, tmp_path: Path) -> None:
    hooks = tmp_path / "hooks"
    for name, text, mode in (
        ("pre.d/10-a", "#!/bin/sh\n", 0o755),
        ("post.d/README", "no hook\n", 0o644),
        ("failure.d/x", "#!/bin/busybox sh\n", 0o700),
    ):
        (hooks / name).parent.mkdir(parents=True, exist_ok=True)
        (hooks / name).write_text(text)
        (hooks / name).chmod(mode)
    spec = CaptureSpec(RELEASE, (TARGET,), hooks=hooks)
    members = unpack(build_initramfs(root, spec).data)
    found = {path for path in members if "/hooks/" in path and "." in path}
    prefix = "etc/crashlend/hooks"
    modes = [members[f"{prefix}/{hook}"].mode & 0o777 for hook in ("pre.d/10-a", "failure.d/x")]
    assert modes == [0o755, 0o700]  # one for root alone stays so, and out of the cache
    assert found == {
        *(f"{prefix}/{stage}.d" for stage in ("pre", "failure")),
        *(f"{prefix}/{hook}" for hook in ("pre.d/10-a", "failure.d/x")),
    }
    (hooks / "pre.d/10-a").write_text("#!/usr/bin/python3\n")
    with pytest.raises(CrashlendError, match="10-a"):
        build_initramfs(root, spec)


def test_each_file_is_explained(root: Path) -> None:
    """The chain of a module ends in its own reason and begins with what it is for; so do others'."""
    (root / f"lib/modules/{RELEASE}/kernel/crc.ko.xz").write_bytes(lzma.compress(b"crc"))
    dependencies = b"kernel/ext4.ko.xz: kernel/crc.ko.xz\nkernel/crc.ko.xz:\n"
    (root / f"lib/modules/{RELEASE}/modules.dep").write_bytes(dependencies)
    want = Want("ext4", "file system", chain=("dump target X",))
    target = replace(TARGET, wants=(want,))
    built = build_initramfs(root, CaptureSpec(RELEASE, (target,)))
    entries = {entry.path: entry for entry in built.entries}
    assert (*entries["/lib/modules/crc.ko"].chain, entries["/lib/modules/crc.ko"].why) == (
        "dump target X",
        "file system",
        "needed by ext4",
    )
    assert all(entry.why for entry in built.entries)


def test_modules_of_another_release(root: Path) -> None:
    """Another installed kernel will do; one that is not there is refused with those that are."""
    for name in ("kernel", "modules.dep"):
        source = root / f"lib/modules/{RELEASE}" / name
        place = root / "lib/modules/6.9-other" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, place) if source.is_dir() else shutil.copy(source, place)
    built = build_initramfs(root, CaptureSpec("6.9-other", (TARGET,)))
    assert "/lib/modules/ext4.ko" in {entry.path for entry in built.entries}
    with pytest.raises(CrashlendError, match=r"6\.8-missing") as caught:
        build_initramfs(root, CaptureSpec("6.8-missing", (TARGET,)))
    assert "6.1.0-test, 6.9-other" in caught.value.hint
    assert "install that kernel's package" in caught.value.hint


def test_programs_are_an_archive_apart(root: Path) -> None:
    """Where the kernel has the filter for machine code; together the two hold the same files."""
    one = build_initramfs(root, CaptureSpec(RELEASE, (TARGET,)))
    config = root / f"boot/config-{RELEASE}"
    config.write_text("CONFIG_RD_XZ=y\nCONFIG_XZ_DEC_X86=y\n")
    two = build_initramfs(root, CaptureSpec(RELEASE, (TARGET,)))
    assert two.entries == one.entries
    unpacked = lzma.decompress(two.data)
    first, _ = newc.parse(unpacked)
    assert {*unpack(two.data)} >= {e.path[1:] for e in one.entries}
    assert [m.path for m in first if m.path.startswith("bin/makedumpfile")] == []
