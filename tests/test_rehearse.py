# SPDX-License-Identifier: LGPL-2.1-or-later
"""Rehearsals: the twin's shape, the stand-in for the target, the record and whether it applies."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import shutil
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from build import BLOCK, GIB, MIB, facts, host, write_tree
from crashlend import rehearsal as rehearsals
from crashlend.capture.initramfs import shell_variables
from crashlend.cli import rehearse as rehearse_verb
from crashlend.cli import twin_flags
from crashlend.cli.main import main
from crashlend.config import Settings
from crashlend.errors import CrashlendError, FormatError
from crashlend.formats import newc
from crashlend.lab import kernels
from crashlend.lab.kernels import Kernel
from crashlend.lab.outcome import Outcome
from crashlend.lab.packages import find_tool
from crashlend.lab.qemu import Report
from crashlend.lab.spec import Check, Spec
from crashlend.lab.twin import rehearse as twin_rehearse
from crashlend.lab.twin import standin
from crashlend.lab.twin.contents import read_capture, read_files
from crashlend.lab.twin.private import private
from crashlend.lab.twin.rehearse import Played, _Eyes
from crashlend.lab.twin.run import Payload, snapshot_payload, twin_spec
from crashlend.lab.twin.shape import resemble
from crashlend.lab.watch import PANIC, PRODUCTIONS_OWN
from crashlend.rehearsal import (
    PARTS,
    Rehearsal,
    fingerprints,
    in_words,
    read_rehearsal,
    write_rehearsal,
)

if TYPE_CHECKING:
    from crashlend.lab.twin.shape import Shape
    from crashlend.payload import Files

RESULTS = Path(__file__).resolve().parent.parent / "docs/results"
RESERVED = (0xA0000000, 0xA0000000 + 256 * MIB)


# ---- the shape


def changed(shape: Shape) -> set[str]:
    return {change.what for change in shape.changes}


def test_a_small_host_has_a_twin_of_its_own_shape() -> None:
    """Memory, CPUs, firmware, lent memory and crashkernel= are as on the host; nothing is changed."""
    known = facts(cmdline=b"root=/dev/vda1 crashkernel=1G,cma crashkernel=256M audit=1\n")
    shape = resemble(known, Settings())
    assert shape.cmdline == "crashkernel=1G,cma crashkernel=256M audit=1"
    assert (shape.cpus, shape.nodes, shape.firmware) == (2, 1, "bios")
    assert shape.lend_bytes == GIB
    # the bytes that firmware keeps for itself are no RAM
    assert 4 * GIB - MIB <= shape.memory_bytes <= 4 * GIB
    assert shape.changes == ()
    assert "la57=off" in shape.cpu_model


def test_a_large_host_is_scaled_and_it_is_said() -> None:
    """64 GiB, 64 CPUs and two nodes become less; each is a change with what the host has."""
    dimm = (5 * GIB, 69 * GIB)
    blocks = dict.fromkeys(range(40, 552), 1)
    known = facts(
        cmdline=b"crashkernel=1G,cma crashkernel=256M hugepages=1000 movablecore=32G\n",
        dimms=[dimm],
        nodes=blocks,
        cpus=64,
        flags="fpu la57",
    )
    shape = resemble(known, Settings())
    assert shape.memory_bytes == 4 * GIB
    assert shape.cpus == 8
    assert shape.lend_bytes == GIB
    assert {"memory", "CPUs", "hugepages", "movablecore"} <= changed(shape)
    host_bytes = next(c.host for c in shape.changes if c.what == "memory")
    assert 68 * 1024 - 1 <= float(host_bytes.split()[0]) <= 68 * 1024
    words = dict(word.split("=") for word in shape.cmdline.split() if "=" in word)
    assert 40 < int(words["hugepages"]) < 80
    assert words["movablecore"].endswith("M")
    assert "la57" not in shape.cpu_model


def test_a_range_of_sizes_is_what_came_of_it_on_the_host() -> None:
    """The twin's memory would choose another size: the words name what the host reserved."""
    known = facts(cmdline=b"crashkernel=1G-4G:64M,4G-:256M crashkernel=512M,cma\n")
    shape = resemble(known, Settings())
    assert shape.cmdline == "crashkernel=512M,cma crashkernel=256M"
    change = next(c for c in shape.changes if c.what == "crashkernel")
    assert change.host == "crashkernel=1G-4G:64M,4G-:256M"


def test_a_high_reservation_stays_high() -> None:
    """The twin has memory above 4 GiB for it, and the words for both parts."""
    low, high = (0xA0000000, 0xA0000000 + 128 * MIB), (4 * GIB + 256 * MIB, 4 * GIB + 512 * MIB)
    known = facts(cmdline=b"crashkernel=256M,high\n", reservations=[low, high])
    shape = resemble(known, Settings())
    assert shape.cmdline.split() == ["crashkernel=256M,high", "crashkernel=128M,low"]
    assert shape.memory_bytes >= 4 * GIB - MIB


def test_a_host_with_nothing_reserved_can_be_estimated() -> None:
    """Before the first crashkernel= word an estimate's twin has a reservation; a rehearsal's has none."""
    known = facts(cmdline=b"root=/dev/vda1\n", reservations=())
    shape = resemble(known, Settings(), least_lend_bytes=512 * MIB, reserve_bytes=256 * MIB)
    assert (shape.cmdline, shape.lend_bytes) == ("crashkernel=256M", 512 * MIB)
    assert {"crashkernel", "lent"} == changed(shape)
    assert resemble(known, Settings()).cmdline == ""


def test_the_hosts_own_devices_are_not_named() -> None:
    """Words for what boots, consoles and hardware, and init's, stay out; all others are kept."""
    line = b"BOOT_IMAGE=/vmlinuz root=UUID=1 ro quiet console=tty0 rd.luks.uuid=2 mem=3G nomodule audit=1 "
    line += b'foo.bar="a b" nokaslr crashkernel=256M -- single\n'
    shape = resemble(facts(cmdline=line), Settings())
    assert shape.cmdline == 'crashkernel=256M audit=1 foo.bar="a b" nokaslr'


def test_more_is_lent_than_the_twin_has() -> None:
    """What is lent is cut to the twin's room, in whole blocks, and it is said."""
    known = facts(cmdline=b"crashkernel=256M\n", dimms=[(5 * GIB, 69 * GIB)])
    shape = resemble(known, Settings(lend=16 * GIB))
    assert 0 < shape.lend_bytes < 2 * GIB
    assert shape.lend_bytes % BLOCK == 0
    assert "lent" in changed(shape)
    assert resemble(known, Settings(lend=16 * GIB, lender="none")).lend_bytes == 0


def test_firmware_and_lockdown() -> None:
    """UEFI stays UEFI; Secure Boot only with a signed kernel; a machine to stop has BIOS."""
    known = facts(efi=True)
    assert resemble(known, Settings()).firmware == "uefi"
    locked = facts(efi=True, lockdown="integrity")
    assert resemble(locked, Settings(), signed=True).firmware == "secure"
    unsigned = resemble(locked, Settings())
    assert unsigned.firmware == "uefi"
    assert "firmware" in changed(unsigned)
    assert resemble(known, Settings(), simple=True).firmware == "bios"


# ---- the initramfs and its stand-in

FS = {
    "TARGET_KIND": "fs",
    "TARGET_SPEC": "UUID=0b5c9f8e-5f0d-4d8b-9d3a-0123456789ab",
    "TARGET_DEVICE": "UUID=0b5c9f8e-5f0d-4d8b-9d3a-0123456789ab",
    "TARGET_FSTYPE": "ext4",
    "TARGET_OPTIONS": "",
    "TARGET_PATH": "/var/crash",
}


def initramfs(
    targets: list[dict[str, str]] | None = None,
    modules: str = "virtio_pci virtio-blk ext4",
    **variables: str,
) -> bytes:
    """A capture initramfs as far as a twin looks at it, in an xz archive."""
    targets = [FS] if targets is None else targets
    names = " ".join(map(str, range(len(targets))))
    members = [
        newc.regular("init", b"#!/bin/sh\n", 0o755),
        newc.regular(
            "etc/crashlend/capture.conf",
            shell_variables({"TARGETS": names, "DUMP_LEVEL": "31", **variables}),
        ),
        newc.regular(
            "etc/crashlend/modules",
            "".join(f"/lib/modules/{name}.ko\n" for name in modules.split()).encode(),
        ),
        *(
            newc.regular(f"etc/crashlend/targets/{n}.conf", shell_variables(target))
            for n, target in enumerate(targets)
        ),
    ]
    return lzma.compress(newc.build(members), lzma.FORMAT_XZ, lzma.CHECK_CRC32)


def test_an_initramfs_is_read_as_the_kernel_unpacks_it() -> None:
    """Plain, gzip and xz archives behind each other with padding; the last file of a name wins."""
    first = newc.build([newc.regular("a", b"1"), newc.regular("b", b"1")])
    second = gzip.compress(newc.build([newc.regular("b", b"2")]))
    third = lzma.compress(newc.build([newc.regular("c", b"3")]), lzma.FORMAT_XZ)
    data = first + bytes(8) + second + bytes(-len(second) % 4) + third + bytes(4)
    assert read_files(data) == {"a": b"1", "b": b"2", "c": b"3"}
    with pytest.raises(FormatError):
        read_files(first + b"nonsense")


def test_a_capture_says_its_targets_and_modules() -> None:
    """Quoted values come back as they were; modules without path and suffix."""
    target = {**FS, "TARGET_OPTIONS": "it's a; $HOME"}
    capture = read_capture(initramfs([target], HOST="a b"))
    assert capture.targets == (target,)
    assert capture.variables["HOST"] == "a b"
    assert capture.modules == ("virtio_pci", "virtio_blk", "ext4")


def test_another_programs_initramfs_is_refused() -> None:
    """An initramfs without crashlend's settings says nothing of its target: a clear refusal."""
    foreign = newc.build([newc.regular("init", b"#!/bin/sh\n", 0o755)])
    with pytest.raises(CrashlendError, match="not crashlend's own"):
        read_capture(foreign)


def made(tmp_path: Path, data: bytes, builtin: str = "") -> standin.StandIn:
    """The stand-in for that capture, with a kernel whose modules are one made-up tree."""
    modules = tmp_path / "lib/modules/6.1.0-test"
    (modules / "kernel").mkdir(parents=True)
    names = ("virtio_pci", "virtio_blk", "ext4")
    for name in names:
        (modules / f"kernel/{name}.ko").write_bytes(b"\x7fELF" + name.encode())
    (modules / "modules.dep").write_text("".join(f"kernel/{name}.ko:\n" for name in names))
    (modules / "modules.alias").write_text("alias fs-ext4 ext4\n")
    (modules / "modules.builtin").write_text(builtin)
    kernel = Kernel("k", "6.1.0-test", "bookworm", Path("vmlinuz"), modules, None)
    return standin.make_standin(read_capture(data), kernel, tmp_path)


def test_the_stand_in_has_the_targets_uuid_and_bus(tmp_path: Path) -> None:
    """An NVMe host's ext4 by UUID: the same on NVMe; only the lab's hooks come behind the initramfs."""
    found = made(tmp_path, initramfs(modules="nvme_core nvme ext4"))
    assert (found.bus, found.uuid, found.path) == ("nvme", FS["TARGET_DEVICE"][5:], "/var/crash")
    assert found.changes == ()
    assert set(read_files(found.archive)) == {
        "etc/crashlend/hooks/pre.d/00-twin",
        "etc/crashlend/hooks/post.d/98-twin",
        "etc/crashlend/hooks/post.d/99-twin",
    }
    # the superblock, as the capture reads it (ext4: 1024 + 0x68)
    with found.image.open("rb") as file:
        file.seek(1128)
        assert file.read(16).hex() == found.uuid.replace("-", "")
    assert "nvme,drive=standin,serial=standin" in found.words(found.image)


def test_a_label_is_enough(tmp_path: Path) -> None:
    """A target by label has a stand-in with that label (ext4: at 1024 + 0x78)."""
    target = {**FS, "TARGET_DEVICE": "LABEL=dumps", "TARGET_SPEC": "LABEL=dumps"}
    found = made(tmp_path, initramfs([target]))
    with found.image.open("rb") as file:
        file.seek(1144)
        assert file.read(16).rstrip(b"\0") == b"dumps"
    assert found.changes == ()


@pytest.mark.parametrize(
    ("targets", "modules", "why"),
    [
        ([{"TARGET_KIND": "nfs", "TARGET_SPEC": "nfs://h/x"}], "virtio_blk", "of the kind nfs"),
        ([{**FS, "TARGET_FSTYPE": "f2fs"}], "virtio_blk", "makes no f2fs"),
        ([{**FS, "TARGET_STACK": "lvm"}], "virtio_blk", "has no TARGET_STACK"),
        ([{**FS, "TARGET_DEVICE": "/dev/sda1"}], "virtio_blk", "neither by UUID nor by label"),
        ([FS], "mpt3sas", "no disk for any of mpt3sas"),
        ([], "virtio_blk", "no target"),
    ],
)
def test_what_has_no_stand_in_is_replaced_and_it_is_said(
    tmp_path: Path, targets: list[dict[str, str]], modules: str, why: str
) -> None:
    """Then it is ext4 on virtio, whose modules, target and init's part come behind the initramfs."""
    found = made(tmp_path, initramfs(targets, modules))
    assert (found.bus, found.label) == ("virtio_blk", standin.LABEL)
    change = next(c for c in found.changes if c.what == "dump target")
    assert why in change.why
    combined = read_capture(standin.appended(initramfs(targets, modules), found.archive))
    assert combined.variables["TARGETS"] == standin.LABEL
    assert combined.targets[0]["TARGET_DEVICE"] == f"LABEL={standin.LABEL}"
    assert {"virtio_pci", "virtio_blk", "ext4"} <= set(combined.modules)
    files = read_files(found.archive)
    assert b"fs_open()" in files["init"]


def test_of_several_targets_the_first_that_can_be_had(tmp_path: Path) -> None:
    """A network target before a local one is left out, and it is said; the local one is unchanged."""
    remote = {"TARGET_KIND": "ssh", "TARGET_SPEC": "ssh://a@b/c"}
    data = initramfs([remote, FS])
    found = made(tmp_path, data)
    combined = read_capture(standin.appended(data, found.archive))
    assert combined.targets == (FS,)
    assert [c.what for c in found.changes] == ["dump targets"]


def test_a_final_action_that_never_ends_is_replaced(tmp_path: Path) -> None:
    """Shell and halt become reboot, poweroff stays: the twin must end by itself."""
    data = initramfs(FINAL_ACTION="shell")
    found = made(tmp_path, data)
    combined = read_capture(standin.appended(data, found.archive))
    assert combined.variables["FINAL_ACTION"] == "reboot"
    assert [c.what for c in found.changes] == ["final action"]


def test_a_driver_that_is_built_in_counts(tmp_path: Path) -> None:
    """Where the initramfs loads no disk's driver, one that is built into the kernel will do."""
    assert made(tmp_path, initramfs(modules=""), "kernel/virtio_blk.ko\n").bus == "virtio_blk"


def test_a_twin_loads_with_the_hosts_settings(tmp_path: Path) -> None:
    """What the host's settings say reaches the guest's load; the unchanged initramfs comes first."""
    data = initramfs()
    disk = made(tmp_path, data)
    kernel = Kernel("k", "6.1.0-test", "bookworm", tmp_path / "vmlinuz", tmp_path, None)
    settings = Settings(nr_cpus=3, append="quiet", dump_level=23, lend_min=64 * MIB)
    shape = resemble(facts(), settings)
    spec = twin_spec(Payload(kernel, data, ()), shape, settings, disk, tmp_path, timeout_seconds=9)
    words = spec.commands[0].words
    assert words[words.index("--nr-cpus") + 1] == "3"
    assert "--append=quiet" in words
    assert "--shrink" not in words
    shrinking = replace(settings, shrink_on_load=True, shrink_margin=8 * MIB)
    spec = twin_spec(Payload(kernel, data, ()), shape, shrinking, disk, tmp_path, timeout_seconds=9)
    words = spec.commands[0].words
    assert words[words.index("--shrink") + 1 :][:2] == ("--shrink-margin", str(8 * MIB))
    assert (spec.dump_level, spec.lend_bytes, spec.cmdline) == (23, GIB, shape.cmdline)
    assert spec.initramfs is not None
    assert spec.initramfs.read_bytes().startswith(data)
    assert spec.initramfs.stat().st_mode & 0o777 == 0o600


def test_what_a_twin_keeps_is_its_users_alone(tmp_path: Path) -> None:
    """Whatever the umask, directories come to be 0700 and files 0600; also where the twin failed."""

    def fails(place: Path) -> None:
        with private(place) as where:
            (where / "saved").mkdir()
            (where / "saved/vmcore").write_bytes(b"")
            (where / "lab.ext4").write_bytes(b"")
            raise CrashlendError("the lab can't")

    was = os.umask(0)
    try:
        for _ in range(2):  # and once more, into what is there
            with pytest.raises(CrashlendError, match="the lab can't"):
                fails(tmp_path / "kept")
            modes = {p.name: p.stat().st_mode & 0o777 for p in (tmp_path / "kept").rglob("*")}
            assert modes == {"saved": 0o700, "vmcore": 0o600, "lab.ext4": 0o600}
            shutil.rmtree(tmp_path / "kept/saved")
    finally:
        os.umask(was)
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o700


def test_a_directory_that_others_see_keeps_nothing(tmp_path: Path) -> None:
    """The host's keys go into none that is there for others, nor behind a link."""
    public = tmp_path / "public"
    public.mkdir(mode=0o755)
    (tmp_path / "link").symlink_to(public)
    for place in (public, tmp_path / "link"):
        with pytest.raises(CrashlendError, match="others can look into it"), private(place):
            pytest.fail("it was taken")
    assert public.stat().st_mode & 0o777 == 0o755


# ---- the verdict


def played(*checks: Check, **more: Any) -> Played:
    """A rehearsal whose trial ended like that."""
    kernel = Kernel("k", "6.1.0-test", "bookworm", Path("v"), Path("m"), None)
    report = Report([{"event": "crashing", "at": 1.0}], 2.0)
    capture = more.pop("capture", {})
    outcome = Outcome(Spec(kernel=kernel), report, {}, capture, "", checks, "", **more)
    return Played(resemble(facts(), Settings()), (), outcome)


def test_a_failed_rehearsal_says_why() -> None:
    """The crash kernel's last words, or the capture's own reason, before the check that failed."""
    bad = Check("dump saved", False, "nothing was left on the disk")
    assert played(Check("dump saved", True, "")).reason == ""
    died = played(bad, death_by_memory="System is deadlocked on memory")
    assert died.reason.startswith("System is deadlocked on memory (dump saved")
    told = played(bad, capture={"reason": "cannot mount /dev/vdc"})
    assert told.reason.startswith("cannot mount /dev/vdc")
    assert played(bad).reason == "dump saved: nothing was left on the disk"


def test_a_capture_that_is_up_is_not_given_up(tmp_path: Path) -> None:
    """Before the crash kernel is up its panic ends the twin at once; a silent dump never does."""
    console = tmp_path / "console.log"
    console.write_text(f"{PRODUCTIONS_OWN}\n[ 0.1] {PANIC}: System is deadlocked on memory\n")
    told: list[str] = []
    eyes = _Eyes(console, told.append)
    assert "deadlocked" in eyes.given_up()
    eyes.see({"event": "crash_kernel", "at": 3.0})
    eyes.see({"event": "crash_kernel", "at": 4.0})
    assert eyes.given_up() == ""
    assert told == ["   3.0 s  the crash kernel is up"]


# ---- the record


def test_fingerprints_change_with_what_they_stand_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of kernel, initramfs, settings, layout and version changes its own fingerprint alone."""
    known, settings = facts(), Settings()
    before = fingerprints(known, settings, b"k", b"i")
    assert set(before) == set(PARTS)

    def differs(after: dict[str, str]) -> set[str]:
        return {part for part in PARTS if before[part] != after.get(part)}

    assert differs(fingerprints(known, settings, b"K", b"i")) == {"kernel"}
    assert differs(fingerprints(known, settings, b"k", b"I")) == {"initramfs"}
    assert differs(fingerprints(known, replace(settings, dump_level=1), b"k", b"i")) == {"settings"}
    assert differs(fingerprints(facts(cpus=3), settings, b"k", b"i")) == {"layout"}
    words = facts(cmdline=b"crashkernel=512M\n")
    assert differs(fingerprints(words, settings, b"k", b"i")) == {"layout"}
    # a value that is the default is none: a setting that a later version brings changes nothing
    assert differs(fingerprints(known, replace(settings, dump_level=31), b"k", b"i")) == set()
    monkeypatch.setattr(rehearsals, "__version__", "99")
    assert differs(fingerprints(known, settings, b"k", b"i")) == {"crashlend"}
    monkeypatch.undo()
    # where a file lies is nothing, what is in it all
    named = replace(settings, kernel="/boot/other", initramfs="/x")
    assert differs(fingerprints(known, named, b"k", b"i")) == set()


def test_another_boot_of_the_same_host_is_the_same() -> None:
    """Addresses are not in a fingerprint: the reservation may lie elsewhere."""
    here = facts(reservations=[RESERVED])
    there = facts(reservations=[(0x90000000, 0x90000000 + 256 * MIB)])
    assert fingerprints(here, Settings(), b"k", b"i") == fingerprints(there, Settings(), b"k", b"i")


def test_the_load_that_was_rehearsed_is_no_change() -> None:
    """A load that shrinks the reservation gives its rest to production: the rehearsal still applies."""
    small = [(RESERVED[0], RESERVED[0] + 19 * MIB)]
    before = replace(facts(reservations=[RESERVED]), meminfo={"MemTotal": 16 * GIB - 620 * MIB})
    after = replace(facts(reservations=small), meminfo={"MemTotal": 16 * GIB - 383 * MIB})
    assert fingerprints(before, Settings(), b"", b"") == fingerprints(after, Settings(), b"", b"")
    nothing = replace(after, crash_size_bytes=0)
    assert fingerprints(nothing, Settings(), b"", b"") != fingerprints(after, Settings(), b"", b"")


def rehearsal(**more: Any) -> Rehearsal:
    values: dict[str, Any] = {
        "date": "2026-01-02T03:04:05Z",
        "ok": True,
        "reason": "",
        "release": "6.1.0",
        "fingerprints": fingerprints(facts(), Settings(), b"k", b"i"),
    }
    return Rehearsal(**{**values, **more})


def test_a_record_says_whether_it_still_applies() -> None:
    """Exactly this, or what has changed since; unknown files are not compared."""
    now = fingerprints(facts(), Settings(), b"k", b"i")
    assert in_words(None, now) == "never rehearsed"
    words = in_words(rehearsal(), now)
    assert words == "rehearsed on 2026-01-02T03:04:05Z with exactly this: the dump was saved"
    newer = fingerprints(facts(), Settings(), b"newer", b"i")
    assert rehearsal().changed(newer) == ("kernel",)
    assert "the kernel image changed since" in in_words(rehearsal(), newer)
    assert rehearsal().changed(fingerprints(facts(), Settings(), None, None)) == ()
    words = in_words(rehearsal(), fingerprints(facts(), Settings(), None, None))
    assert "exactly this" not in words
    assert words.endswith("not compared: the kernel image, the capture initramfs")
    assert "not compared: the capture initramfs" in in_words(
        rehearsal(), fingerprints(facts(), Settings(), b"newer", None)
    )
    unseen = fingerprints(replace(facts(), iomem=()), Settings(), b"k", b"i")
    assert rehearsal().not_compared(unseen) == ("layout",)
    assert "it failed: too small" in in_words(rehearsal(ok=False, reason="too small"), now)


def test_a_record_is_kept_and_read_back(tmp_path: Path) -> None:
    """What is written is read back whole; none is none; a damaged one is an error with a hint."""
    place = tmp_path / "var/rehearsal.json"
    assert read_rehearsal(place) is None
    one = rehearsal(twin=("memory: less",), result={"checks": []})
    write_rehearsal(one, place)
    assert read_rehearsal(place) == one
    for damaged in ("{", "[]", '{"schema": 2}', '{"schema": 1, "date": 3}'):
        place.write_text(damaged)
        with pytest.raises(CrashlendError, match="no record") as caught:
            read_rehearsal(place)
        assert caught.value.hint == "rehearse again"


def test_status_of_a_snapshot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit codes: 4 never, 0 rehearsed and the same, 1 when settings differ or it failed."""
    root = tmp_path / "root"
    write_tree(root, host())
    words = ["lab", "rehearse", "--status", "--root", str(root), "-o", str(tmp_path / "r.json")]
    assert main(words) == 4
    kept = fingerprints(facts(), Settings(), b"k", b"i")
    write_rehearsal(rehearsal(fingerprints=kept), tmp_path / "r.json")
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["changed"] == []
    assert answer["not_compared"] == ["kernel", "initramfs"]
    assert answer["rehearsed"]["ok"] is True
    assert main([*words, "--dump-level", "1"]) == 1
    assert "the settings changed since" in capsys.readouterr().out
    write_rehearsal(rehearsal(fingerprints=kept, ok=False), tmp_path / "r.json")
    assert main(words) == 1


def test_status_of_a_host_whose_initramfs_cannot_be_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not compared is not the same: exit 4, said in words and in JSON; 0 where all is compared."""

    def cannot(_release: str) -> Files:
        raise CrashlendError("cannot build the initramfs", "no busybox")

    def can(_release: str) -> Files:
        return cast("Files", SimpleNamespace(kernel=b"k", initramfs=b"i"))

    get = [cannot]
    monkeypatch.setattr(rehearse_verb, "facts_from", lambda _: facts())
    monkeypatch.setattr(rehearse_verb, "settings_from", lambda _: Settings())
    monkeypatch.setattr(rehearse_verb, "files_getter", lambda *_: get[-1])
    words = ["lab", "rehearse", "--status", "-o", str(tmp_path / "r.json")]
    write_rehearsal(rehearsal(), tmp_path / "r.json")
    assert main([*words, "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["not_compared"] == ["kernel", "initramfs"]
    assert main(words) == 4
    assert "not compared: the kernel image" in capsys.readouterr().out
    get.append(can)
    assert main(words) == 0
    assert "exactly this" in capsys.readouterr().out


def test_a_snapshot_has_no_kernel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both verbs say so, and how to name one; and that a snapshot's record needs a place."""
    root = tmp_path / "root"
    write_tree(root, host())
    for verb in (["estimate"], ["lab", "rehearse", "-o", str(tmp_path / "r")]):
        assert main([*verb, "--root", str(root)]) == 2
        told = capsys.readouterr().err
        assert "a snapshot holds none" in told
        assert "--kernel" in told
    assert main(["lab", "rehearse", "--status", "--root", str(root)]) == 2


def test_an_unprivileged_reader_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without root's view of memory there is no twin, and the hint says what to do."""
    root = tmp_path / "root"
    write_tree(root, host(hidden=True))
    assert main(["estimate", "--root", str(root), "--kernel", "6.1"]) == 1
    assert "root" in capsys.readouterr().err


def test_the_stand_ins_image_is_a_file_system(tmp_path: Path) -> None:
    """A check of the file system finds nothing wrong, and it is sparse."""
    found = made(tmp_path, initramfs())
    words = [find_tool("e2fsck"), "-fn", str(found.image)]
    done = subprocess.run(words, capture_output=True, check=False)
    assert done.returncode == 0
    assert found.image.stat().st_blocks * 512 < 128 * MIB


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A rehearsal that takes no time; what it did, in order."""
    did: list[str] = []
    monkeypatch.setattr(rehearse_verb, "demand_lab", lambda _: None)
    monkeypatch.setattr(rehearse_verb, "facts_from", lambda _: facts())
    monkeypatch.setattr(rehearse_verb, "twin_payload", lambda *_: None)
    monkeypatch.setattr(twin_rehearse, "rehearse", lambda *_: did.append("played"))
    monkeypatch.setattr(twin_rehearse, "record", lambda *_: rehearsal(result={"checks": []}))
    return did


def test_a_result_is_told_before_it_is_kept(
    quick: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Where the record can't be written after all, what took so long is not lost."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    words = ["lab", "rehearse", "-o", str(tmp_path / "new/r.json")]
    assert main(words) == 0
    assert read_rehearsal(tmp_path / "new/r.json") is not None
    capsys.readouterr()
    monkeypatch.setattr(rehearse_verb, "write_rehearsal", full)
    for more, told in (([], "the dump was saved"), (["--json"], '"ok": true')):
        assert main([*words, *more]) == 1
        out, err = capsys.readouterr()
        assert told in out
        assert "is not kept in" in err
    assert len(quick) == 3


def test_where_nothing_can_be_kept_nothing_is_booted(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The place is tried first, and nothing is left there."""
    (tmp_path / "file").write_bytes(b"")
    for place in (tmp_path / "file/r.json", tmp_path):
        assert main(["lab", "rehearse", "-o", str(place)]) == 1
        assert "cannot keep the result" in capsys.readouterr().err
    assert quick == []
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_kept_rehearsals_succeed_and_fail() -> None:
    """Records of docs/results are of today's form; some saved their dump, some failed with a reason."""
    found = [read_rehearsal(path) for path in sorted(RESULTS.glob("rehearsal-*.json"))]
    assert {one.ok for one in found if one is not None} == {True, False}
    for one in found:
        assert one is not None
        assert one.result is not None
        assert bool(one.reason) is not one.ok
        assert set(one.fingerprints) == set(PARTS)
        assert one.result["target"]


# ---- what is missing is said


@pytest.mark.parametrize("verb", [["estimate"], ["lab", "rehearse", "-o", "/nonexistent/r"]])
def test_without_the_labs_libraries_the_hint_names_them(
    verb: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No qemu.qmp: exit 1, and the hint says what to install or where else to go on."""
    monkeypatch.setitem(sys.modules, "qemu.qmp", None)
    assert main(verb) == 1
    assert "crashlend[lab]" in capsys.readouterr().err


def test_an_old_python_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python 3.9 runs everything else: the hint is a snapshot for a workstation."""
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    assert main(["estimate"]) == 1
    told = capsys.readouterr().err
    assert "needs Python 3.11" in told
    assert "snapshot" in told


def test_on_a_host_its_own_files_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without flags: the kernel that load would take, with its modules, and a capture built here."""
    asked: dict[str, Any] = {}
    kernel = Kernel("k", facts().release, "bookworm", tmp_path / "vmlinuz", tmp_path, None)

    def from_files(image: Path, modules: Path, **more: Any) -> Kernel:
        asked.update(image=image, modules=modules)
        return kernel

    monkeypatch.setattr(kernels, "from_files", from_files)
    monkeypatch.setattr(twin_flags, "find_kernel", lambda settings, release: Path("/boot/k"))
    monkeypatch.setattr(twin_flags, "capture_spec", lambda *words: words)
    monkeypatch.setattr(
        twin_flags, "build_initramfs", lambda root, spec: SimpleNamespace(data=b"built")
    )
    args = Namespace(root=Path("/"), twin_kernel=None, modules=None)
    payload = twin_flags.twin_payload(args, Settings(), facts(), lambda _: None)
    assert asked == {"image": Path("/boot/k"), "modules": Path("/lib/modules")}
    assert payload == Payload(kernel, b"built", ())
    (tmp_path / "own").write_bytes(b"given")
    named = Settings(initramfs=str(tmp_path / "own"))
    assert twin_flags.twin_payload(args, named, facts(), lambda _: None).initramfs == b"given"


def test_another_kernel_than_the_hosts_is_a_change() -> None:
    """A twin that runs another release says so."""
    kernel = Kernel("6.1", "6.1.0-56-amd64", "bookworm", Path("v"), Path("m"), None)
    payload = snapshot_payload(kernel, facts(), b"given", lambda _: None)
    assert [(c.what, c.host, c.twin) for c in payload.changes] == [
        ("kernel", facts().release, "6.1.0-56-amd64")
    ]
