# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lab's Secure Boot guests: a disk that firmware can read, and firmware that checks."""

from __future__ import annotations

import argparse
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from build import GIB
from crashlend.cli import lab_verb, trial_flags
from crashlend.errors import CrashlendError, FormatError, UsageError
from crashlend.lab import firmware
from crashlend.lab.fat import pack_fat
from crashlend.lab.firmware import find_ovmf
from crashlend.lab.kernels import Kernel
from crashlend.lab.packages import find_tool
from crashlend.lab.qemu import Machine, Report
from crashlend.lab.secure import build_boot_disk, grub_configuration, is_signed
from crashlend.lab.shape import asked_shape, shape
from crashlend.lab.spec import Spec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

FILES = {
    "EFI/BOOT/BOOTX64.EFI": bytes(range(256)) * 9000,
    "EFI/debian/grub.cfg": b"boot\n",
    "empty": b"",
    "vmlinuz": b"k" * 2048,
}
ENABLED = {
    "variable": 1,
    "kernel": "secureboot: Secure boot enabled",
    "lockdown": "none [integrity] confidentiality",
}


# --- the disk ------------------------------------------------------------------------------------


def read_fat16(image: bytes) -> dict[str, bytes]:
    """Every file of a FAT16 image, read by its specification alone."""
    sector, cluster_sectors, reserved, tables, entries = struct.unpack_from("<HBHBH", image, 11)
    (table_sectors,) = struct.unpack_from("<H", image, 22)
    table_at = reserved * sector
    root_at = table_at + tables * table_sectors * sector
    data_at = root_at + entries * 32
    size = cluster_sectors * sector
    first, second = (
        image[table_at + n * table_sectors * sector :][: table_sectors * sector] for n in (0, 1)
    )
    assert first == second

    def chain(cluster: int) -> Iterator[int]:
        while cluster < 0xFFF8:
            yield cluster
            (cluster,) = struct.unpack_from("<H", first, 2 * cluster)

    def content(cluster: int) -> bytes:
        return b"".join(image[data_at + (c - 2) * size :][:size] for c in chain(cluster))

    def walk(raw: bytes, where: str) -> Iterator[tuple[str, bytes]]:
        for at in range(0, len(raw), 32):
            entry = raw[at : at + 32]
            if entry[0] == 0:
                return
            name = entry[:8].decode().rstrip()
            name += ("." + entry[8:11].decode().rstrip()) * (entry[8:11] != b"   ")
            cluster, length = struct.unpack_from("<HI", entry, 26)
            if name in (".", ".."):
                continue
            if entry[11] & 0x10:
                yield from walk(content(cluster), f"{where}{name}/")
            else:
                yield where + name, content(cluster)[:length] if length else b""

    return dict(walk(image[root_at:data_at], ""))


def fat_of(files: Mapping[str, bytes], where: Path) -> Path:
    """An image of such files."""
    for name, data in files.items():
        path = where / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    pack_fat(where / "tree", where / "fat")
    return where / "fat"


def test_the_disk_has_every_file_whole(tmp_path: Path) -> None:
    """By the specification's rules each path leads to its bytes; FAT knows no case."""
    image = fat_of(FILES, tmp_path)
    assert read_fat16(image.read_bytes()) == {name.upper(): data for name, data in FILES.items()}
    words = [find_tool("fsck.fat"), "-n", str(image)]
    assert subprocess.run(words, capture_output=True, check=False).returncode == 0


def test_a_directory_may_take_more_than_a_cluster(tmp_path: Path) -> None:
    """Its entries lie in a chain, as a file's bytes do; a new image replaces the old one."""
    many = {f"A/F{number:05}": bytes([number % 256]) * number for number in range(300)}
    fat_of(many, tmp_path)
    assert read_fat16(fat_of(many, tmp_path).read_bytes()) == many


def pe(certificates: int, size: int = 4096) -> bytes:
    """A PE32+ image with a certificate table of so many bytes at its end."""
    image = bytearray(size)
    image[:2] = b"MZ"
    struct.pack_into("<I", image, 0x3C, 0x80)
    image[0x80:0x84] = b"PE\0\0"
    struct.pack_into("<H", image, 0x80 + 24, 0x20B)
    struct.pack_into(
        "<II", image, 0x80 + 24 + 112 + 32, size - 512 if certificates else 0, certificates
    )
    return bytes(image)


def test_an_unsigned_kernel_is_refused_before_the_guest_starts(tmp_path: Path) -> None:
    """Shim would refuse it, on a console that nobody reads."""
    assert is_signed(pe(512))
    assert not is_signed(pe(0))
    assert not is_signed(b"\0" * 4096)
    with pytest.raises(FormatError):
        is_signed(b"MZ")
    vmlinuz = tmp_path / "vmlinuz"
    vmlinuz.write_bytes(pe(0))
    kernel = Kernel("own", "6.1", "bookworm", vmlinuz, tmp_path, None)
    with pytest.raises(CrashlendError, match="has no signature"):
        build_boot_disk(kernel, vmlinuz, "", tmp_path, print)


def test_grub_gives_each_word_to_the_kernel_as_it_is() -> None:
    """What its shell would expand is quoted."""
    text = grub_configuration("console=ttyS0 a=$b 'c")
    assert "linux /vmlinuz 'console=ttyS0' 'a=$b' ''\\''c'\n" in text
    assert text.endswith("boot\n")


# --- firmware and machine ------------------------------------------------------------------------


def argv(directory: Path, monkeypatch: pytest.MonkeyPatch, **words: Any) -> list[str]:
    variables = directory / "VARS"
    variables.write_bytes(b"keys")
    pair = (directory / "CODE", variables)
    monkeypatch.setattr(firmware, "find_ovmf", lambda secure=False: pair if secure else None)
    machine = Machine(Path("vmlinuz"), Path("initramfs"), "words", GIB, machine="q35", **words)
    return machine.argv(directory)


def test_a_secure_guest_starts_from_its_disk_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU's -kernel would go around shim; variables are guarded by SMM, and fresh ones."""
    found = argv(tmp_path, monkeypatch, firmware="secure", boot_disk="boot.fat")
    assert not {"-kernel", "-initrd", "-append"} & set(found)
    assert "q35,smm=on,memory-backend=ram" in found
    assert "driver=cfi.pflash01,property=secure,value=on" in found
    assert "ide-hd,bus=ide.0,drive=boot,bootindex=1" in found
    assert (tmp_path / "efi-variables.fd").read_bytes() == b"keys"


@pytest.mark.parametrize(
    ("words", "machine"),
    [([], "pc"), (["--machine", "q35"], "q35"), (["--firmware", "secure"], "q35")],
)
def test_secure_boot_takes_a_q35(words: list[str], machine: str) -> None:
    """By itself; the other machine has no SMM to guard firmware's variables."""
    parser = argparse.ArgumentParser()
    lab_verb.add_arguments(parser)
    assert trial_flags.spec_fields(parser.parse_args(["trial", *words]))["machine"] == machine
    with pytest.raises(UsageError, match="SMM"):
        trial_flags.spec_fields(
            parser.parse_args(["trial", "--firmware", "secure", "--machine", "pc"])
        )


def test_secure_firmware_is_code_with_smm_and_variables_with_keys(tmp_path: Path) -> None:
    """Plain code ignores the keys; plain variables have none."""
    for name in ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd", "OVMF_CODE_4M.secboot.fd"):
        (tmp_path / name).touch()
    with pytest.raises(CrashlendError, match="with Secure Boot"):
        find_ovmf((str(tmp_path),), secure=True)
    (tmp_path / "OVMF_VARS_4M.ms.fd").touch()
    found = find_ovmf((str(tmp_path),), secure=True)
    assert [path.name for path in found] == ["OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.ms.fd"]


@pytest.mark.parametrize(
    ("told", "secure"),
    [
        (ENABLED, True),
        ({**ENABLED, "variable": 0}, False),
        ({**ENABLED, "kernel": "secureboot: Secure boot disabled"}, False),
        ({**ENABLED, "kernel": None}, False),
        ({**ENABLED, "lockdown": "[none] integrity confidentiality"}, False),
        ({}, None),
    ],
)
def test_firmware_kernel_and_lockdown_must_all_say_so(
    told: dict[str, Any], secure: bool | None
) -> None:
    """lockdown=integrity on the command line, or a variable alone, is no Secure Boot."""
    booted = {"event": "booted", "efi": True, "secure": told, "nodes": {}, "crash_ranges": []}
    report = Report(events=[booted])
    assert shape(report)["secure"] is secure
    kernel = Kernel("6.1", "6.1", "bookworm", Path("v"), Path("m"), None)
    asked = asked_shape(Spec(kernel, firmware="secure", machine="q35"))
    assert (asked["firmware"], asked["secure"]) == ("uefi", True)
