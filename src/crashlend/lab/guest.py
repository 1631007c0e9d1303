# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the production guest boots: an ext4 root file system and a small initramfs, without root.

The root holds a Debian userland that fits the kernel, the kernel itself and all of its modules,
as on a host. Both files are cached under a key made of what is in them, never changed afterwards,
and shared by all trials: QEMU opens the root with ``snapshot=on``.

What runs in the guest is not here: the initramfs mounts a second disk with the label ``CRASH`` at
``/lab`` and starts ``/lab/init`` as process 1, with /proc, /sys, /dev and /run mounted.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from crashlend.errors import CrashlendError
from crashlend.formats import newc
from crashlend.lab.packages import (
    Say,
    Suite,
    cache_directory,
    find_tool,
    locked,
    run_tool,
    silent,
    unpack,
    write_atomically,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crashlend.lab.kernels import Kernel

ROOT_LABEL = "crashlend-root"
LAB_LABEL = "CRASH"
LAB_INIT = "/lab/init"
USERLAND = (
    "python3",
    "dash",  # a busybox sh runs its own applets before the programs of these packages
    "busybox-static",
    "makedumpfile",
    "kmod",
    "kexec-tools",  # for the bench and for comparison; nothing starts it: /lab/init is process 1
    "e2fsprogs",
    "xz-utils",
    "zstd",
)
FREE_BYTES = 256 << 20

# Depended on by maintainer scripts (dpkg, debconf) or by one script in makedumpfile (perl: 50 MB).
_LEFT_OUT = re.compile(r"(lib)?perl.*|debconf|debianutils|dpkg|tar|lsb-base|libgdbm.*")
_UNPACK_WITHOUT = ("doc", "doc-base", "info", "lintian", "locale", "man")
_DIRECTORIES = (
    "proc sys dev run tmp mnt root boot etc lab var/crash var/log var/lib var/tmp usr/sbin"
)
_MERGED = ("bin", "sbin", "lib", "lib64")
# For shell scripts in the guest; a name that a package brings is left alone.
_APPLETS = (
    "sh ash awk basename cat chmod chown chroot cmp cp cut date dd df dirname dmesg du echo env expr "
    "false find free grep gunzip gzip halt head hexdump hostname ip kill ln ls md5sum mkdir mknod "
    "mktemp mount mv nproc od pidof poweroff printf ps pwd readlink realpath reboot rm "
    "rmdir sed seq sha256sum sleep sort stat stty sync tail tar tee test timeout touch tr true "
    "umount uname uniq uptime usleep vi wc which xargs"
)
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/hostname": "crashlend\n",
    "etc/hosts": "127.0.0.1 localhost crashlend\n",
    "etc/fstab": f"LABEL={ROOT_LABEL} / ext4 defaults 0 1\n",
}
_ROOT_MODULES = ("virtio_pci", "virtio_blk", "ext4")
# What the lab's own disk takes beyond that, by the bus it is on.
DISK_MODULES = {"virtio": (), "ide": ("ata_piix", "sd_mod")}
# Where the checksum of ext4's metadata is a module, nothing but an alias leads to it.
_OPTIONAL_MODULES = ("crc32c_generic",)
_INIT = """#!/bin/sh
# Made by crashlend lab: boots the production guest.
export PATH=/bin
fail() {
    echo "crashlend-lab: boot failed: $*" >/dev/console
    poweroff -f
    sleep 60
}
# Not findfs: the busybox of Debian 11 has none. An ext4 label lies 1024 + 0x78 bytes in.
labelled() {
    for disk in /dev/vd? /dev/sd?; do
        [ -b "$disk" ] || continue
        label=$(dd if="$disk" bs=1 skip=1144 count=16 2>/dev/null | tr -d '\\000')
        [ "$label" = "$1" ] && echo "$disk" && return
    done
    return 1
}
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
while read -r module; do
    insmod "$module" || echo "crashlend-lab: insmod $module failed"
done </modules.list
root=
tries=0
while [ $tries -lt 300 ]; do
    root=$(labelled @ROOT@) && break
    tries=$((tries + 1))
    usleep 100000
done
[ -n "$root" ] || fail "no disk with the label @ROOT@"
mount -t ext4 -o rw "$root" /newroot || fail "cannot mount $root"
if lab=$(labelled @LAB@); then
    mount -t ext4 -o rw "$lab" /newroot/lab || fail "cannot mount $lab"
fi
[ -x /newroot@INIT@ ] || fail "there is no @INIT@"
mount -t tmpfs -o mode=0755 run /newroot/run
for name in proc sys dev; do
    mount --move /$name /newroot/$name
done
exec switch_root /newroot @INIT@
fail "cannot start @INIT@"
"""
# Raised when the same packages would give other files.
_LAYOUT = 1


def userland_suite(kernel: Kernel) -> str:
    """The suite whose userland goes with a kernel; those for kernels alone stand on another."""
    return "sid" if kernel.suite == "experimental" else kernel.suite.removesuffix("-backports")


def build_root(kernel: Kernel, say: Say = silent, more: Sequence[str] = ()) -> Path:
    """The production guest's root file system: a sparse ext4 image labelled ``crashlend-root``.

    Fetches what is missing. Takes some ten seconds the first time, then less than one. ``more``:
    packages beyond :data:`USERLAND`.

    Raises:
        CrashlendError: a tool or a package is missing, or the archive cannot be reached.

    """
    debs = userland(kernel, say, more)
    key = _key("root", kernel, *(deb.name for deb in debs), *sorted(_FILES.values()), _APPLETS)
    image = cache_directory() / "roots" / f"{kernel.release}-{key}.ext4"
    with locked(cache_directory() / "roots" / "lock", say):
        if image.exists():
            return image
        say(f"building the guest's root file system for {kernel.release}")
        with tempfile.TemporaryDirectory(prefix=".new-", dir=image.parent) as scratch:
            root = Path(scratch, "root")
            root.mkdir(mode=0o755)
            fill_root(root, kernel, debs)
            new = Path(scratch, "image")
            pack_ext4(root, new, ROOT_LABEL)
            new.rename(image)
    return image


def fill_root(root: Path, kernel: Kernel, debs: Sequence[Path]) -> None:
    """Lay out a bootable userland with the kernel's files below the empty directory ``root``."""
    for name in _MERGED:
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    without = [f"./usr/share/{name}" for name in _UNPACK_WITHOUT]
    for deb in debs:
        unpack(deb, root, without=without)
    for name in _DIRECTORIES.split():
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    (root / "var/tmp").chmod(0o1777)
    for name, text in _FILES.items():
        (root / name).write_text(text)
    _link_shells(root)
    _compile_python(root)

    _copy(kernel.vmlinuz, root / "boot" / f"vmlinuz-{kernel.release}")
    if kernel.config is not None:
        _copy(kernel.config, root / "boot" / f"config-{kernel.release}")
    modules = root / "usr/lib/modules" / kernel.release
    shutil.copytree(kernel.modules, modules, symlinks=True, copy_function=_copy)
    for name in ("build", "source"):  # lead to headers that are not here
        (modules / name).unlink(missing_ok=True)


def pack_ext4(directory: Path, image: Path, label: str, *, free_bytes: int = FREE_BYTES) -> None:
    """Make an ext4 file system image of a directory's content, owned by root.

    Args:
        directory: what to pack.
        image: the file to make; it is sparse.
        label: of the file system, up to 16 characters.
        free_bytes: room beyond the content.

    """
    blocks = 0
    for where, directories, files in os.walk(directory):
        for name in (*directories, *files):
            blocks += 1 + -(-os.lstat(os.path.join(where, name)).st_size // 4096)
    # bitmaps, inode tables and group descriptors take less than a fiftieth
    size = (blocks * 4096 + free_bytes) * 51 // 50 + (8 << 20)
    with image.open("wb") as file:
        file.truncate(size // 4096 * 4096)
    words = [find_tool("mke2fs", "install the package e2fsprogs"), "-q", "-F", "-t", "ext4"]
    words += ["-b", "4096", "-m", "0", "-O", "^has_journal", "-E", "root_owner=0:0"]
    words += ["-L", label, "-d", str(directory), str(image)]
    run_tool(words, f"cannot make the file system {label}")


def build_boot_initramfs(
    kernel: Kernel,
    say: Say = silent,
    *,
    root_label: str = ROOT_LABEL,
    lab_label: str = LAB_LABEL,
    disk: str = "virtio",
) -> Path:
    """The initramfs that boots the guest: busybox, the modules for its disks, a short init.

    Args:
        kernel: what it is for.
        say: gets progress.
        root_label: the ext4 label of the root file system, found on any disk.
        lab_label: the label of the disk that is mounted at /lab, if there is one.
        disk: the bus of that disk, a key of :data:`DISK_MODULES`.

    Raises:
        CrashlendError: the kernel cannot read such disks, or a package is missing.

    """
    deb = busybox_package(kernel, say)
    init = _INIT
    for mark, value in (("@ROOT@", root_label), ("@LAB@", lab_label), ("@INIT@", LAB_INIT)):
        init = init.replace(mark, value)
    key = _key("initramfs", kernel, deb.name, init, disk)
    path = cache_directory() / "roots" / f"{kernel.release}-{key}.cpio.gz"
    with locked(cache_directory() / "roots" / "lock", say):
        if path.exists():
            return path
        members = _initramfs_members(kernel, read_busybox(deb), init, DISK_MODULES[disk])
        # level 1: the guest unpacks it the same, the build is faster
        write_atomically(path, gzip.compress(newc.build(members), 1, mtime=0))
    return path


def busybox_package(kernel: Kernel, say: Say = silent) -> Path:
    """The package with the static busybox that goes with a kernel, fetched."""
    return Suite(userland_suite(kernel), say).download(["busybox-static"])[0]


def read_busybox(deb: Path) -> bytes:
    """The program busybox out of its package; CrashlendError when there is none."""
    with tempfile.TemporaryDirectory(prefix="crashlend-busybox-") as scratch:
        (Path(scratch) / "bin").mkdir()
        unpack(deb, Path(scratch))
        found = [p for p in Path(scratch).glob("**/bin/busybox") if p.is_file()]
        if not found:
            raise CrashlendError("cannot build the boot initramfs", f"no busybox in {deb.name}")
        return found[0].read_bytes()


def modules_in_order(dependencies: str, builtin: str, wanted: Sequence[str]) -> list[str]:
    """Which module files to insert, in order, so that all of ``wanted`` are there.

    Args:
        dependencies: the text of modules.dep.
        builtin: the text of modules.builtin.
        wanted: names of modules.

    Returns:
        Paths relative to the modules directory, each after those that it needs.

    Raises:
        CrashlendError: the kernel has a wanted module neither as a file nor built in.

    """
    needs: dict[str, list[str]] = {}
    paths: dict[str, str] = {}
    for line in dependencies.splitlines():
        path, _, rest = line.partition(":")
        paths[_module_name(path)] = path
        needs[path] = rest.split()
    inside = {_module_name(path) for path in builtin.split()}
    order: dict[str, None] = {}
    for name in wanted:
        if name in paths:
            # modules.dep has all that a module needs, what must come first last
            order.update(dict.fromkeys((*reversed(needs[paths[name]]), paths[name])))
        elif name not in inside:
            why = f"it has no {name}, neither as a module nor built in"
            raise CrashlendError("cannot boot this kernel in the lab", why)
    return list(order)


def read_module(path: Path) -> bytes:
    """A kernel module, decompressed: busybox inserts plain ones alone."""
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix == ".gz":
        return gzip.decompress(path.read_bytes())
    if path.suffix == ".zst":
        zstd = find_tool("zstd", "install the package zstd")
        return subprocess.run([zstd, "-dcq", path], check=True, capture_output=True).stdout
    return path.read_bytes()


def userland(kernel: Kernel, say: Say, more: Sequence[str] = ()) -> list[Path]:
    """The guest's packages, fetched: :data:`USERLAND`, ``more``, and what they depend on."""
    suite = Suite(userland_suite(kernel), say)
    names = [*USERLAND, *more]
    extra: list[Path] = []
    if kernel.suite.endswith("-backports"):
        # makedumpfile must not be older than the kernel, and backports has none. apt says whether
        # the newest one runs on this suite's libraries.
        try:
            extra = Suite("sid", say).download(["makedumpfile"])
            local = [*(n for n in names if n != "makedumpfile"), *map(str, extra)]
            suite.resolve(local)
            names = local
        except CrashlendError as error:
            say(f"taking the older makedumpfile of {suite.name}: {error}")
            extra = []
    found = [p for p in suite.resolve(names) if not _LEFT_OUT.fullmatch(p.name)]
    if extra:
        found = [p for p in found if p.name != "makedumpfile"]
    return [*suite.fetch(found), *extra]


def _link_shells(root: Path) -> None:
    # /bin/busybox before Debian 13, /usr/bin/busybox since: the same with merged /usr
    if (root / "usr/bin/dash").exists() and not os.path.lexists(root / "usr/bin/sh"):
        (root / "usr/bin/sh").symlink_to("dash")
    for name in _APPLETS.split():
        if not any(os.path.lexists(root / where / name) for where in ("usr/bin", "usr/sbin")):
            (root / "usr/bin" / name).symlink_to("busybox")


def _compile_python(root: Path) -> None:
    """Compile the standard library, as its postinst does: imports are slow under emulation.

    It takes the guest's own Python, run with its own loader. Where that does not run (another
    machine, a sandbox) the guest compiles what it needs on each boot: slower, not wrong.
    """
    loader = root / "usr/lib64/ld-linux-x86-64.so.2"
    libraries = f"{root}/usr/lib/x86_64-linux-gnu:{root}/usr/lib"
    for directory in sorted((root / "usr/lib").glob("python3.*")):
        command = [str(loader), "--library-path", libraries, str(root / "usr/bin" / directory.name)]
        command += ["-S", "-m", "compileall", "-q", "-x", "/(test|tests|lib2to3|idlelib)/"]
        command += ["--invalidation-mode", "unchecked-hash", "-s", str(root), "-p", "/"]
        environment = {"PYTHONHOME": str(root / "usr"), "PATH": os.defpath}
        try:
            subprocess.run(
                [*command, str(directory)],
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                timeout=120,
            )
        except (OSError, subprocess.TimeoutExpired):
            return


def _initramfs_members(
    kernel: Kernel, busybox: bytes, init: str, more_modules: Sequence[str]
) -> list[newc.Member]:
    dependencies = (kernel.modules / "modules.dep").read_text()
    builtin_file = kernel.modules / "modules.builtin"
    builtin = builtin_file.read_text() if builtin_file.exists() else ""
    available = {_module_name(line.partition(":")[0]) for line in dependencies.splitlines()}
    optional = [name for name in _OPTIONAL_MODULES if name in available]
    order = modules_in_order(dependencies, builtin, [*optional, *_ROOT_MODULES, *more_modules])

    members = [newc.directory(name) for name in ("proc", "sys", "dev", "newroot")]
    members.append(newc.character_device("dev/console", 5, 1))
    members.append(newc.regular("init", init.encode(), 0o755))
    members.append(newc.regular("bin/busybox", busybox, 0o755))
    applets = "sh mount insmod dd tr usleep sleep poweroff switch_root"
    members += [newc.symlink(f"bin/{name}", "busybox") for name in applets.split()]
    listed = []
    for path in order:
        name = f"modules/{_module_name(path)}.ko"
        members.append(newc.regular(name, read_module(kernel.modules / path)))
        listed.append(f"/{name}\n")
    members.append(newc.regular("modules.list", "".join(listed).encode()))
    return members


def _module_name(path: str) -> str:
    return path.rsplit("/", 1)[-1].partition(".ko")[0].replace("-", "_")


def _copy(source: str | Path, target: str | Path) -> str:
    """Link instead of copying where that works: nothing here is written to afterwards."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target)
    return str(target)


def _key(kind: str, kernel: Kernel, *parts: str) -> str:
    digest = hashlib.sha256(f"{kind} {_LAYOUT} {kernel.release} {kernel.version}\n".encode())
    if not kernel.version:  # not a package: the files are all that is known
        digest.update(kernel.vmlinuz.read_bytes())
        digest.update((kernel.modules / "modules.dep").read_bytes())
    digest.update("\n".join(parts).encode())
    return digest.hexdigest()[:16]
