# SPDX-License-Identifier: LGPL-2.1-or-later
"""Module closures, against modprobe, and reading modules in every compression."""

from __future__ import annotations

import gzip
import lzma
import shutil
import subprocess
from pathlib import Path

import pytest

from crashlend.capture.modules import (
    Module,
    ModuleTree,
    Want,
    find_module_directory,
    module_name,
    normalize,
    read_module,
    read_module_tree,
)
from crashlend.errors import CrashlendError

RELEASE = "6.1.0-test"
FILES = {
    "modules.dep": """\
kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko kernel/lib/crc16.ko kernel/fs/mbcache.ko
kernel/fs/jbd2/jbd2.ko:
kernel/fs/mbcache.ko:
kernel/lib/crc16.ko:
kernel/crypto/crc32c_generic.ko:
kernel/arch/x86/crypto/crc32c-intel.ko:
kernel/drivers/a-post.ko: kernel/drivers/a-base.ko
kernel/drivers/a-base.ko:
kernel/drivers/circle1.ko:
kernel/drivers/circle2.ko:
kernel/drivers/virtio_blk.ko:
""",
    "modules.softdep": """\
# Soft dependencies extracted from modules themselves.
softdep jbd2 pre: crc32c
softdep ext4 ignored pre: crc32c post: a-post
softdep circle1 pre: circle2
softdep circle2 post: circle1
softdep virtio_blk pre: not-there builtin-one
""",
    "modules.alias": """\
# Aliases extracted from modules themselves.
alias fs-ext4 ext4
alias crc32c crc32c_generic
alias crc32c crc32c_intel
alias virtio:d00000002v* virtio_blk
""",
    "modules.builtin": "kernel/drivers/builtin-one.ko\n",
    "modules.builtin.modinfo": "builtin_one.alias=pci:v00001234d*\0builtin_one.license=GPL\0",
}


@pytest.fixture
def tree(tmp_path: Path) -> ModuleTree:
    directory = tmp_path / "lib/modules" / RELEASE
    directory.mkdir(parents=True)
    for name, text in FILES.items():
        (directory / name).write_text(text, encoding="utf-8")
    return read_module_tree(find_module_directory(tmp_path, RELEASE))


def names(modules: tuple[Module, ...]) -> list[str]:
    return [module.name for module in modules]


def test_soft_dependencies_then_dependencies_then_the_module(tree: ModuleTree) -> None:
    order = tree.closure([Want("fs-ext4", "file system")])
    soft = ["crc32c_generic", "crc32c_intel"]
    assert names(order) == ["mbcache", "crc16", *soft, "jbd2", "ext4", "a_base", "a_post"]
    why = {module.name: module.why for module in order}
    assert why["ext4"] == "file system"
    assert why["jbd2"] == "needed by ext4"
    assert why["crc32c_intel"] == "wanted before jbd2"
    assert why["a_post"] == "wanted after ext4"


def test_each_module_comes_once_and_circles_end(tree: ModuleTree) -> None:
    assert names(tree.closure([Want("circle1", "x"), Want("circle2", "x")])) == [
        "circle2",
        "circle1",
    ]


def test_what_is_built_in_needs_nothing(tree: ModuleTree) -> None:
    wants = [Want("builtin-one", "x"), Want("pci:v00001234d00005678", "x"), Want("virtio-blk", "x")]
    assert names(tree.closure(wants)) == ["virtio_blk"]


def test_an_unknown_module_is_an_error_unless_optional(tree: ModuleTree) -> None:
    assert tree.closure([Want("nonesuch", "x", optional=True)]) == ()
    with pytest.raises(CrashlendError, match="nonesuch") as caught:
        tree.closure([Want("nonesuch", "the disk")])
    assert "the disk" in str(caught.value)
    assert "depmod" in caught.value.hint


def test_missing_directory_and_missing_depmod_are_named(tmp_path: Path) -> None:
    with pytest.raises(CrashlendError, match="cannot find the modules of 1"):
        find_module_directory(tmp_path, "1")
    with pytest.raises(CrashlendError, match=r"modules\.dep"):
        read_module_tree(tmp_path)


def test_names() -> None:
    assert normalize("crc32c-intel") == "crc32c_intel"
    assert normalize("of:N*T*Cfoo,b-r[a-z]-x") == "of:N*T*Cfoo,b_r[a-z]_x"
    assert module_name("kernel/arch/x86/crypto/crc32c-intel.ko.xz") == "crc32c_intel"


def shown_by_modprobe(root: Path, release: str, name: str) -> list[str]:
    command = ["modprobe", "--show-depends", "-S", release, "-d", str(root), name]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    lines = (line.split() for line in done.stdout.splitlines())
    # modprobe may repeat a module that was already shown
    return list(dict.fromkeys(module_name(w[1]) for w in lines if w[0] == "insmod"))


@pytest.mark.skipif(shutil.which("modprobe") is None, reason="modprobe is not installed")
@pytest.mark.parametrize("name", ["fs-ext4", "virtio_blk", "crc32c", "a-post", "jbd2"])
def test_order_is_that_of_modprobe(tree: ModuleTree, tmp_path: Path, name: str) -> None:
    for module in tree.files.values():
        file = tree.directory / module
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    # depmod would rewrite the text files from the (empty) modules; modprobe reads the indexes
    _write_indexes(tree.directory)
    assert names(tree.closure([Want(name, "x")])) == shown_by_modprobe(tmp_path, RELEASE, name)


def _write_indexes(directory: Path) -> None:
    """Write the .bin indexes of depmod for the text files (format: kmod, libkmod-index.h)."""
    dep = [(module_name(line.split(":")[0]), line) for line in _text(directory, "dep")]
    alias = [(normalize(w[1]), w[2]) for w in map(str.split, _text(directory, "alias"))]
    builtin = [(module_name(line), "") for line in _text(directory, "builtin")]
    for name, pairs in (("dep", dep), ("alias", alias), ("builtin", builtin), ("symbols", [])):
        (directory / f"modules.{name}.bin").write_bytes(_index(pairs))


def _text(directory: Path, name: str) -> list[str]:
    text = (directory / f"modules.{name}").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if not line.startswith("#")]


def _index(pairs: list[tuple[str, str]]) -> bytes:
    out = bytearray(b"\xb0\x07\xf4\x57\x00\x02\x00\x01" + bytes(4))

    def node(entries: list[tuple[str, int, str]]) -> int:
        """Write the trie below ``entries`` (key rest, priority, value); its flagged offset."""
        here = [(priority, value) for key, priority, value in entries if not key]
        first = sorted({key[0] for key, _, _ in entries if key})
        offsets = []
        if first:
            for code in range(ord(first[0]), ord(first[-1]) + 1):
                below = [(k[1:], p, v) for k, p, v in entries if k and ord(k[0]) == code]
                offsets.append(node(below) if below else 0)
        at = len(out)
        flags = 0
        if first:
            flags |= 0x20000000
            out.extend(bytes([ord(first[0]), ord(first[-1])]))
            out.extend(b"".join(offset.to_bytes(4, "big") for offset in offsets))
        if here:
            flags |= 0x40000000
            out.extend(len(here).to_bytes(4, "big"))
            for priority, value in here:
                out.extend(priority.to_bytes(4, "big") + value.encode() + b"\0")
        return at | flags

    root = node([(key, priority, value) for priority, (key, value) in enumerate(pairs)])
    out[8:12] = root.to_bytes(4, "big")
    return bytes(out)


def test_order_is_that_of_modprobe_on_this_host() -> None:
    found = sorted(Path("/lib/modules").glob("*/modules.dep.bin"))
    if not found or shutil.which("modprobe") is None:
        pytest.skip("no kernel modules or no modprobe on this host")
    release = found[-1].parent.name
    tree = read_module_tree(find_module_directory(Path("/"), release))
    for name in ("ext4", "xfs", "virtio_blk", "nvme", "ahci"):
        if tree.lookup(name):
            ours = names(tree.closure([Want(name, "x")]))
            assert ours == shown_by_modprobe(Path("/"), release, name)


def test_modules_are_decompressed(tmp_path: Path) -> None:
    data = b"\x7fELF" + bytes(1000)
    (tmp_path / "a.ko").write_bytes(data)
    (tmp_path / "a.ko.xz").write_bytes(lzma.compress(data))
    (tmp_path / "a.ko.gz").write_bytes(gzip.compress(data))
    for name in ("a.ko", "a.ko.xz", "a.ko.gz"):
        assert read_module(tmp_path / name) == data


@pytest.mark.skipif(shutil.which("zstd") is None, reason="zstd is not installed")
def test_zstd_modules_are_decompressed(tmp_path: Path) -> None:
    (tmp_path / "a.ko").write_bytes(b"module")
    subprocess.run(["zstd", "-q", str(tmp_path / "a.ko")], check=True)
    assert read_module(tmp_path / "a.ko.zst") == b"module"
    (tmp_path / "a.ko.zst").write_bytes(b"damaged")
    with pytest.raises(CrashlendError, match="cannot decompress"):
        read_module(tmp_path / "a.ko.zst")


def test_without_zstd_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "a.ko.zst").write_bytes(b"")
    with pytest.raises(CrashlendError) as caught:
        read_module(tmp_path / "a.ko.zst")
    assert "zstd" in caught.value.hint


@pytest.mark.parametrize("name", ["a.ko.xz", "a.ko.gz"])
def test_damaged_modules_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x1f\x8b damaged")
    with pytest.raises(CrashlendError, match=name.replace(".", r"\.")):
        read_module(tmp_path / name)
