# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tools of the capture on hosts without busybox, firmware of modules, and who checks signatures."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from crashlend.capture import signatures
from crashlend.capture.contents import Contents
from crashlend.capture.firmware import add_firmware, firmware_names
from crashlend.capture.modules import Module
from crashlend.capture.tools import APPLETS, add_tools
from crashlend.errors import CrashlendError
from disk_host import plain_host

if TYPE_CHECKING:
    from pathlib import Path

PROGRAMS = (
    "cat cp date dd grep mkdir mount mv od rm sed setsid sleep sort stat sync tail timeout tr"
)
STATIC = b"\x7fELF\2\1\1" + bytes(9) + b"\2\0>\0" + bytes(44)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host whose tools are coreutils, util-linux, kmod and dash, as static programs."""
    for name in (*PROGRAMS.split(), "umount", "uname", "dash"):
        place = tmp_path / "usr/bin" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(STATIC + name.encode())
    (tmp_path / "usr/bin/kmod").write_bytes(STATIC + b"kmod")
    (tmp_path / "usr/sbin").mkdir()
    (tmp_path / "usr/sbin/insmod").symlink_to("../bin/kmod")
    return tmp_path


def test_every_tool_of_init_is_there_without_busybox(root: Path) -> None:
    """Each applet is a program of the host or a script, and nothing is a link to busybox."""
    contents = Contents()
    add_tools(contents, root)
    assert {f"bin/{name}" for name in APPLETS.split()} <= {*contents.members}
    assert contents.members["bin/sh"].data.endswith(b"dash")
    assert contents.members["bin/insmod"].data.endswith(b"kmod")
    assert not [m for m in contents.members.values() if m.data == b"busybox"]
    chains = {entry.chain for entry in contents.entries}
    assert chains == {("this host has no busybox",)}


def test_one_program_under_many_names_is_there_once(root: Path) -> None:
    """As coreutils of some distributions: the second name is a link to the first."""
    (root / "usr/bin/coreutils").write_bytes(STATIC + b"all")
    for name in ("cat", "cp"):
        (root / "usr/bin" / name).unlink()
        (root / "usr/bin" / name).symlink_to("coreutils")
    contents = Contents()
    add_tools(contents, root)
    assert contents.members["bin/cat"].data.endswith(b"all")
    assert contents.members["bin/cp"].data == b"/bin/cat"


def test_what_a_busybox_lacks_is_the_host_s_own(root: Path) -> None:
    """Some builds have no usleep or setsid: that is no reason to have no capture."""
    applets = [name for name in APPLETS.split() if name not in ("usleep", "setsid")]
    listed = b"".join(b"\0" + name.encode() for name in applets) + b"\0"
    (root / "usr/bin/busybox").write_bytes(STATIC + listed)
    contents = Contents()
    add_tools(contents, root)
    assert contents.members["bin/cat"].data == b"busybox"
    assert contents.members["bin/setsid"].data.endswith(b"setsid")
    assert contents.members["bin/usleep"].data.startswith(b"#!/bin/sh\n")
    assert {e.chain for e in contents.entries if e.path == "/bin/setsid"} == {
        ("this host's busybox lacks it",)
    }


@pytest.mark.parametrize(("name", "package"), [("mount", "util-linux"), ("dd", "coreutils")])
def test_a_missing_tool_names_its_package(root: Path, name: str, package: str) -> None:
    """Or busybox, which has all of them."""
    (root / "usr/bin" / name).unlink()
    with pytest.raises(CrashlendError) as caught:
        add_tools(Contents(), root)
    assert caught.value.hint == f"install the package busybox (or {package})"


def test_a_tool_that_is_a_script_is_refused(root: Path) -> None:
    """Its interpreter would be missing."""
    (root / "usr/bin/cat").write_bytes(b"#!/usr/bin/coreutils --coreutils-prog-shebang=cat\n")
    with pytest.raises(CrashlendError, match="not a program but a script"):
        add_tools(Contents(), root)


def test_a_dynamic_busybox_comes_before_a_static_one(root: Path) -> None:
    """It shares its C library with makedumpfile, which is there anyway."""
    listed = b"".join(b"\0" + name.encode() for name in APPLETS.split()) + b"\0"
    (root / "usr/bin/busybox").write_bytes(STATIC + listed)
    contents = Contents()
    add_tools(contents, root)
    assert contents.members["bin/sh"].data == b"busybox"


@pytest.mark.parametrize(
    ("microseconds", "expected"), [(200000, "0.200000"), (2500000, "2.500000")]
)
def test_usleep_in_the_shell(root: Path, tmp_path: Path, microseconds: int, expected: str) -> None:
    """The script hands sleep a fraction."""
    contents = Contents()
    add_tools(contents, root)
    for name, text in (("usleep", contents.members["bin/usleep"].data), ("sleep", b"echo $1\n")):
        (tmp_path / name).write_bytes(text if name == "usleep" else b"#!/bin/sh\n" + text)
        (tmp_path / name).chmod(0o755)
    shell = shutil.which("dash") or "/bin/sh"
    done = subprocess.run(
        [shell, str(tmp_path / "usleep"), str(microseconds)],
        env={"PATH": f"{tmp_path}:/bin:/usr/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == expected


INFO = (
    b"\0license=GPL\0firmware=qla/one.bin\0firmware=../etc/shadow\0firmware=x/*.bin\0firmware=two\0"
)


def test_firmware_that_modules_name() -> None:
    """Patterns and ways out of the directory are not followed."""
    assert [*firmware_names(INFO)] == ["qla/one.bin", "two"]
    assert [*firmware_names(b"firmware=no\0")] == []


def test_firmware_of_the_host_is_put_in(tmp_path: Path) -> None:
    """As the host has it: compressed or not, updates first; what it lacks is left out."""
    for path in ("lib/firmware/qla/one.bin.xz", "lib/firmware/updates/qla/one.bin.xz"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(path.encode())
    contents = Contents()
    add_firmware(contents, tmp_path, "6.1", Module("qla", tmp_path, "driver", ("disk",)), INFO)
    assert [*contents.members] == ["lib/firmware/updates/qla/one.bin.xz"]
    assert contents.entries[0].why == "firmware of qla"
    assert contents.entries[0].chain == ("disk", "driver")


@pytest.mark.parametrize(
    ("path", "data", "enforced"),
    [
        ("sys/module/module/parameters/sig_enforce", b"Y\n", True),
        ("sys/module/module/parameters/sig_enforce", b"N\n", False),
        ("sys/kernel/security/lockdown", b"none [integrity] confidentiality\n", True),
        ("sys/kernel/security/lockdown", b"[none] integrity confidentiality\n", False),
        ("sys/kernel/boot_params/data", bytes(0x1EC) + b"\3", True),
        ("sys/kernel/boot_params/data", bytes(0x1EC) + b"\2", False),
        ("proc/cmdline", b"ro module.sig_enforce quiet\n", True),
        ("proc/cmdline", b"ro lockdown=integrity\n", True),
        ("proc/cmdline", b"ro ima_policy=tcb|secure_boot\n", True),
        ("proc/cmdline", b'ima_policy="appraise_tcb"\n', True),
        ("proc/cmdline", b"ima_appraise=enforce\n", True),
        ("proc/cmdline", b"ima_policy=tcb ima_appraise=log\n", False),
        ("sys/kernel/security/ima/policy", b"x\nappraise func=MODULE_CHECK a=b\n", True),
        ("sys/kernel/security/ima/policy", b"dont_appraise func=MODULE_CHECK\n", False),
        ("proc/cmdline", b"ro quiet\n", False),
    ],
)
def test_signatures_stay_where_they_are_checked(
    tmp_path: Path, path: str, data: bytes, enforced: bool
) -> None:
    """Each sign that the crash kernel will take signed modules alone is enough."""
    host = plain_host(tmp_path)
    host.write(path, data)
    assert signatures.are_enforced(tmp_path, {}) is enforced
    assert signatures.are_enforced(tmp_path, {"CONFIG_MODULE_SIG_FORCE": "y"})
    assert signatures.are_enforced(tmp_path, {}, "lockdown=confidentiality")
