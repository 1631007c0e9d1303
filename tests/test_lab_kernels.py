# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

import gzip
import lzma
from typing import TYPE_CHECKING

import pytest

from crashlend.errors import CrashlendError, FormatError, UsageError
from crashlend.lab import guest, kernels
from crashlend.lab.packages import Package

if TYPE_CHECKING:
    from pathlib import Path

NAMES = (
    "linux-image-6.1.0-47-amd64",
    "linux-image-6.1.0-56-amd64",
    "linux-image-6.1.0-56-amd64-unsigned",
    "linux-image-6.1.0-56-amd64-dbg",
    "linux-image-6.1.0-56-rt-amd64",
    "linux-image-6.1.0-9-cloud-amd64",
    "linux-image-6.12.115+deb13-amd64",
    "linux-image-6.12.115+deb13.1-amd64",
    "linux-image-7.2.12+deb13-amd64",
    "linux-image-7.2.9+deb13-amd64",
    "linux-image-7.2.13+deb13-amd64-unsigned",
    "linux-image-7.3-amd64",
    "linux-image-7.4-rc1-amd64",
    "linux-image-amd64",
    "linux-image-6.1.0-56-arm64",
)
DEPENDENCIES = """\
kernel/fs/ext4/ext4.ko.xz: kernel/fs/jbd2/jbd2.ko.xz kernel/lib/crc16.ko.xz
kernel/fs/jbd2/jbd2.ko.xz:
kernel/lib/crc16.ko.xz:
kernel/drivers/virtio/virtio.ko.xz:
kernel/drivers/virtio/virtio_ring.ko.xz: kernel/drivers/virtio/virtio.ko.xz
kernel/drivers/block/virtio-blk.ko.xz: kernel/drivers/virtio/virtio_ring.ko.xz \
kernel/drivers/virtio/virtio.ko.xz
"""


def make_vmlinuz(release: str, *, magic: bytes = b"HdrS") -> bytes:
    """A bzImage as far as its setup header goes: boot protocol 2.15, one page of kernel."""
    image = bytearray(5 * 512 + 4096)
    image[0x1F1] = 4  # setup_sects
    image[0x1F4:0x1F8] = (4096 // 16).to_bytes(4, "little")  # syssize
    image[0x1FE:0x202] = b"\x55\xaa\xeb\x6a"
    image[0x202:0x206] = magic
    image[0x206:0x208] = (0x20F).to_bytes(2, "little")
    image[0x20E:0x210] = (0x280).to_bytes(2, "little")  # kernel_version, counted from 0x200
    image[0x211] = 1  # loaded high
    image[0x230:0x234] = (1 << 21).to_bytes(4, "little")  # kernel_alignment
    image[0x234] = 1  # relocatable
    image[0x236:0x238] = (0x3F).to_bytes(2, "little")  # xloadflags
    image[0x238:0x23C] = (2047).to_bytes(4, "little")
    image[0x258:0x260] = (1 << 24).to_bytes(8, "little")
    image[0x260:0x264] = (1 << 22).to_bytes(4, "little")
    text = f"{release} (builder@host) #1 SMP\0".encode() if release else b"\0"
    image[0x480 : 0x480 + len(text)] = text
    return bytes(image)


def make_kernel_files(root: Path, release: str) -> tuple[Path, Path]:
    modules = root / "lib/modules" / release
    modules.mkdir(parents=True)
    (modules / "modules.dep").write_text("")
    vmlinuz = root / f"vmlinuz-{release}"
    vmlinuz.write_bytes(make_vmlinuz(release))
    return vmlinuz, modules


def test_the_newest_stock_build_of_each_version_is_chosen() -> None:
    """By number and not by letter; signed where there is one; no -rt, -dbg or -rc."""
    assert kernels.choose_images(NAMES) == {
        "6.1": "linux-image-6.1.0-56-amd64",
        "6.1-cloud": "linux-image-6.1.0-9-cloud-amd64",
        "6.12": "linux-image-6.12.115+deb13.1-amd64",
        "7.2": "linux-image-7.2.13+deb13-amd64-unsigned",
        "7.3": "linux-image-7.3-amd64",
    }


def test_the_choice_does_not_depend_on_the_order_of_names() -> None:
    assert kernels.choose_images(reversed(NAMES)) == kernels.choose_images(NAMES)


def test_a_split_image_comes_with_its_parts() -> None:
    """What apt offers decides, not the version: those of the same build, and no others."""
    flavour = "7.3.4+deb13-cloud-amd64"
    parts = [f"linux-{kind}-{flavour}" for kind in ("base", "binary", "modules")]
    image = Package(f"linux-image-{flavour}", "7.3.4-1", "amd64", ("linux-base", "kmod", *parts))
    known = [*parts, "linux-base"]
    assert kernels.parts_of(image, known) == [image.name, *parts]
    assert kernels.parts_of(image, []) == [image.name]


def test_a_whole_image_comes_alone() -> None:
    image = Package("linux-image-6.1.0-56-amd64", "6.1.192-2", "amd64", ("kmod", "linux-base"))
    assert kernels.parts_of(image, ["linux-base", "kmod"]) == [image.name]


def test_each_version_has_its_suite() -> None:
    assert kernels.suites_of("6.1-cloud") == ("bookworm",)
    assert kernels.suites_of("7.3")[0] == "trixie-backports"


@pytest.mark.parametrize("name", ["", "6", "6.1-rt", "newest", "../6.1"])
def test_other_names_are_refused_before_anything_is_fetched(name: str) -> None:
    with pytest.raises(UsageError):
        kernels.fetch(name)


def test_the_release_is_read_from_the_image() -> None:
    assert kernels.read_release(make_vmlinuz("6.1.0-56-amd64")) == "6.1.0-56-amd64"


@pytest.mark.parametrize(
    "image", [b"", b"\x7fELF", make_vmlinuz("6.1", magic=b"Hdr?"), make_vmlinuz("")[:0x300]]
)
def test_what_is_no_bzimage_is_a_format_error(image: bytes) -> None:
    with pytest.raises(FormatError):
        kernels.read_release(image)


def test_own_files_may_be_given_by_either_directory(tmp_path: Path) -> None:
    vmlinuz, modules = make_kernel_files(tmp_path, "6.9.0-own")
    (tmp_path / "config-6.9.0-own").write_text("CONFIG_CMA=y\n")
    kernel = kernels.from_files(vmlinuz, modules)
    assert (kernel.release, kernel.modules) == ("6.9.0-own", modules.resolve())
    assert kernel.config == (tmp_path / "config-6.9.0-own").resolve()
    assert kernels.from_files(vmlinuz, tmp_path) == kernel


def test_modules_of_another_kernel_are_refused(tmp_path: Path) -> None:
    _, modules = make_kernel_files(tmp_path / "a", "6.9.0-a")
    vmlinuz, _ = make_kernel_files(tmp_path / "b", "6.9.0-b")
    with pytest.raises(CrashlendError, match=r"modules are those of 6\.9\.0-a"):
        kernels.from_files(vmlinuz, modules)


def test_modules_without_an_index_are_refused(tmp_path: Path) -> None:
    vmlinuz, modules = make_kernel_files(tmp_path, "6.9.0-own")
    (modules / "modules.dep").unlink()
    with pytest.raises(CrashlendError, match=r"no modules\.dep") as caught:
        kernels.from_files(vmlinuz, modules)
    assert "depmod" in caught.value.hint


def test_modules_come_after_those_they_need() -> None:
    order = guest.modules_in_order(DEPENDENCIES, "", ["virtio_blk", "ext4"])
    names = [path.rsplit("/", 1)[-1] for path in order]
    assert names == [
        "virtio.ko.xz",
        "virtio_ring.ko.xz",
        "virtio-blk.ko.xz",
        "crc16.ko.xz",
        "jbd2.ko.xz",
        "ext4.ko.xz",
    ]


def test_what_is_built_in_needs_no_file() -> None:
    builtin = "kernel/drivers/virtio/virtio-pci.ko\n"
    assert guest.modules_in_order("", builtin, ["virtio_pci"]) == []
    with pytest.raises(CrashlendError, match="no virtio_pci"):
        guest.modules_in_order("", "", ["virtio_pci"])


def test_modules_are_decompressed(tmp_path: Path) -> None:
    data = b"\x7fELF module"
    for name, content in (
        ("a.ko", data),
        ("a.ko.xz", lzma.compress(data)),
        ("a.ko.gz", gzip.compress(data)),
    ):
        (tmp_path / name).write_bytes(content)
        assert guest.read_module(tmp_path / name) == data


@pytest.mark.parametrize(
    ("suite", "userland"),
    [("bookworm", "bookworm"), ("trixie-backports", "trixie"), ("experimental", "sid")],
)
def test_a_suite_of_kernels_stands_on_another(suite: str, userland: str, tmp_path: Path) -> None:
    kernel = kernels.Kernel("x", "1.0", suite, tmp_path, tmp_path, None)
    assert guest.userland_suite(kernel) == userland
