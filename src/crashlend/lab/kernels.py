# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernels that the lab crashes: Debian's of every age, the running one, and one's own.

A kernel is named by its version ("6.1", "7.3"), with ``-cloud`` for the small build for virtual
machines. A name stands for the newest build that Debian offers today; each build is unpacked once
and stays in the cache under its exact package version.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from crashlend.errors import CrashlendError, FormatError, UsageError
from crashlend.formats.bzimage import BzImage
from crashlend.lab.packages import (
    Say,
    Suite,
    cache_directory,
    find_tool,
    locked,
    run_tool,
    silent,
    unpack,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from crashlend.lab.packages import Package

RUNNING = "running"
# The kernel that each release was published with; security updates bring others there as well.
HOME_SUITES = {"5.10": "bullseye", "6.1": "bookworm", "6.12": "trixie"}
# Every other version is looked for here, in this order.
ROLLING_SUITES = ("trixie-backports", "sid", "experimental")
# The userland for a kernel that no suite is known for.
DEFAULT_SUITE = "trixie"

_IMAGE = re.compile(
    r"linux-image-(?P<release>(?P<version>\d+\.\d+)[^-]*(?:-[0-9][^-]*)?)"
    r"-(?P<cloud>cloud-)?amd64(?P<unsigned>-unsigned)?"
)
_META = "crashlend-kernel.json"


@dataclass(frozen=True)
class Kernel:
    """A kernel that is here, unpacked.

    Attributes:
        name: as the lab lists it ("6.1", "7.3-cloud", "running"), or the path it came from.
        release: what ``uname -r`` says under it.
        suite: the Debian suite whose userland fits it.
        vmlinuz: the bzImage.
        modules: the ``lib/modules/RELEASE`` directory, with modules.dep.
        config: the build configuration, if known.
        version: the exact package version, empty when it is no package.

    """

    name: str
    release: str
    suite: str
    vmlinuz: Path
    modules: Path
    config: Path | None
    version: str = ""


class NoKernelError(UsageError):
    """The name is well formed, and Debian offers no such kernel, or no more."""


@dataclass(frozen=True)
class KernelOffer:
    """A kernel that can be fetched, or is here already (``fetched``)."""

    name: str
    suite: str
    package: str
    version: str
    fetched: bool


class _Build(NamedTuple):
    """A package of the archive that holds, or depends on, a kernel image."""

    order: tuple[int, ...]
    signed: bool
    package: str


def choose_images(names: Iterable[str]) -> dict[str, str]:
    """Of all ``linux-image-*`` package names the newest stock build per kernel name.

    Returns:
        ``{"6.1": "linux-image-6.1.0-56-amd64", "6.1-cloud": ...}``. Real-time, debug and
        release-candidate builds do not match; an unsigned image is taken only where it is newer
        than every signed one.

    """
    best: dict[str, _Build] = {}
    for name in names:
        match = _IMAGE.fullmatch(name)
        if match is None or "rc" in match["release"]:
            continue
        order = tuple(int(number) for number in re.findall(r"\d+", match["release"]))
        key = match["version"] + ("-cloud" if match["cloud"] else "")
        build = _Build(order, not match["unsigned"], name)
        best[key] = max(build, best.get(key, build))
    return {key: build.package for key, build in best.items()}


def parts_of(image: Package, known: Iterable[str]) -> list[str]:
    """The packages that make up a kernel: the image and what it depends on of the same build.

    From 6.19 on ``linux-image-RELEASE`` is empty and depends on ``linux-binary-RELEASE``,
    ``linux-modules-RELEASE`` and ``linux-base-RELEASE``; before, it holds everything.
    """
    match = _IMAGE.fullmatch(image.name)
    if match is None:
        return [image.name]
    flavour = f"-{match['release']}-{match['cloud'] or ''}amd64"
    here = set(known)
    parts = [name for name in image.depends if name.startswith("linux-") and flavour in name]
    return [image.name, *(name for name in dict.fromkeys(parts) if name in here)]


def suites_of(name: str) -> tuple[str, ...]:
    """Where to look for a kernel name, best first."""
    home = HOME_SUITES.get(name.removesuffix("-cloud"))
    return (home,) if home else ROLLING_SUITES


def list_kernels(say: Say = silent) -> list[KernelOffer]:
    """What :func:`fetch` can supply, oldest kernel first.

    Fetches package lists that are older than a week. A suite that cannot be read is left out, and
    ``say`` tells; kernels that were fetched before are listed in any case.
    """
    offers: dict[str, KernelOffer] = {}
    if _running_files() is not None:
        release = platform.release()
        offers[RUNNING] = KernelOffer(RUNNING, machine_suite(), "", release, True)
    for suite_name in dict.fromkeys((*HOME_SUITES.values(), *ROLLING_SUITES)):
        try:
            found = _offers(Suite(suite_name, say))
        except CrashlendError as error:
            say(f"{suite_name} is left out: {error}")
            continue
        for name, image in found.items():
            if suite_name in suites_of(name) and name not in offers:
                fetched = (_directory(image) / _META).exists()
                offer = KernelOffer(name, suite_name, image.name, image.version, fetched)
                offers[name] = offer
    for kernel in _cached():
        gone = KernelOffer(kernel.name, kernel.suite, "", kernel.version, True)
        offers.setdefault(kernel.name, gone)
    return sorted(offers.values(), key=lambda offer: _name_order(offer.name))


def is_name(name: str) -> bool:
    """Whether this is the form of a name that means the same kernel on every machine."""
    return re.fullmatch(r"\d+\.\d+(-cloud)?", name) is not None


def fetch(name: str, say: Say = silent) -> Kernel:
    """Get a kernel by name; fetches and unpacks it unless that build is here.

    Raises:
        UsageError: nothing goes by this name; NoKernelError where it is a name.
        CrashlendError: the archive cannot be reached, or a tool is missing.

    """
    if name == RUNNING:
        return _running()
    if not is_name(name):
        raise UsageError(f"no kernel {name!r}", "not a name", hint="see crashlend lab kernels")
    trouble: CrashlendError | None = None
    for suite_name in suites_of(name):
        suite = Suite(suite_name, say)
        try:
            image = _offers(suite).get(name)
            if image is None:
                continue
            return _fetch_image(name, suite, image)
        except CrashlendError as error:
            # the next suite's kernel would not be the one that this name stands for
            trouble = error
            break
    here = [kernel for kernel in _cached() if kernel.name == name]
    if here:
        why = trouble or "it is no longer offered"
        say(f"{name}: {why}; taking {here[-1].version}, which is here")
        return here[-1]
    if trouble is not None:
        raise trouble
    where = ", ".join(suites_of(name))
    raise NoKernelError(f"no kernel {name!r}", f"not in {where}", hint="see crashlend lab kernels")


def from_files(
    vmlinuz: Path, modules: Path, *, suite: str = DEFAULT_SUITE, name: str = ""
) -> Kernel:
    """A kernel from one's own files.

    Args:
        vmlinuz: a bzImage.
        modules: its ``lib/modules/RELEASE`` directory, or one that holds ``lib/modules/RELEASE``.
        suite: the Debian suite to take the guest's userland from.
        name: what to call it; empty for the path.

    Raises:
        FormatError: not a bzImage.
        CrashlendError: the modules are another kernel's, or were not indexed.

    """
    what = f"cannot use the kernel {vmlinuz}"
    try:
        release = read_release(vmlinuz.read_bytes())
    except OSError as error:
        raise CrashlendError(what, error.strerror or str(error)) from None
    tried = (modules, modules / "lib/modules" / release, modules / release)
    directory = next((d for d in tried if (d / "modules.dep").is_file()), None)
    if directory is None:
        hint = f"make it: depmod -b DIRECTORY {release}"
        raise CrashlendError(what, f"there is no modules.dep in {modules}", hint=hint)
    directory = directory.resolve()
    if directory.name != release:
        why = f"it is {release}, but the modules are those of {directory.name}"
        raise CrashlendError(what, why, hint="modules fit one build alone")
    configs = (vmlinuz.with_name(f"config-{release}"), directory / "config")
    config = next((path.resolve() for path in configs if path.is_file()), None)
    return Kernel(name or str(vmlinuz), release, suite, vmlinuz.resolve(), directory, config)


def read_release(image: bytes) -> str:
    """What ``uname -r`` says under this bzImage; FormatError when it does not say."""
    release = BzImage.parse(image).release
    if not release:
        raise FormatError("kernel image", "it has no version string", offset=0x20E)
    return release


def machine_suite() -> str:
    """The Debian suite that this machine runs, else :data:`DEFAULT_SUITE`."""
    try:
        system = platform.freedesktop_os_release()  # Python 3.10
    except (OSError, AttributeError):
        return DEFAULT_SUITE
    is_debian = system.get("ID") == "debian"
    return (system.get("VERSION_CODENAME") if is_debian else None) or DEFAULT_SUITE


def _running_files() -> tuple[Path, Path] | None:
    release = platform.release()
    modules = Path("/lib/modules", release)
    vmlinuz = next(
        (p for p in (Path(f"/boot/vmlinuz-{release}"), modules / "vmlinuz") if p.is_file()), None
    )
    return (vmlinuz, modules) if vmlinuz and (modules / "modules.dep").is_file() else None


def _running() -> Kernel:
    files = _running_files()
    if files is None:
        why = f"there is no /boot/vmlinuz-{platform.release()} with its /lib/modules"
        raise CrashlendError("cannot use the running kernel", why, hint="name a Debian kernel")
    if not os.access(files[0], os.R_OK):
        hint = f"copy it as root to where you can read it, and give that file with --modules {files[1]}"
        raise CrashlendError(
            "cannot use the running kernel", f"{files[0]} is not readable", hint=hint
        )
    return from_files(*files, suite=machine_suite(), name=RUNNING)


def _offers(suite: Suite) -> dict[str, Package]:
    chosen = choose_images(suite.find(r"linux-image-\d.*"))
    packages = {package.name: package for package in suite.candidates(chosen.values())}
    found = {name: packages[image] for name, image in chosen.items() if image in packages}
    # experimental has release candidates under the names of releases
    return {name: image for name, image in found.items() if "~rc" not in image.version}


def _directory(image: Package) -> Path:
    return cache_directory() / "kernels" / f"{image.name}_{image.version.replace(':', '%3a')}"


def _cached() -> list[Kernel]:
    """The kernels that were fetched, older ones first."""
    found = [_load(path.parent) for path in (cache_directory() / "kernels").glob(f"*/{_META}")]
    return sorted(found, key=lambda kernel: [int(n) for n in re.findall(r"\d+", kernel.release)])


def _load(directory: Path) -> Kernel:
    meta = json.loads((directory / _META).read_text())
    release = meta["release"]
    config = directory / "boot" / f"config-{release}"
    return Kernel(
        name=meta["name"],
        release=release,
        suite=meta["suite"],
        vmlinuz=directory / "boot" / f"vmlinuz-{release}",
        modules=directory / "usr/lib/modules" / release,
        config=config if config.is_file() else None,
        version=meta["version"],
    )


def _fetch_image(name: str, suite: Suite, image: Package) -> Kernel:
    directory = _directory(image)
    with locked(cache_directory() / "kernels" / "lock", suite.say):
        if (directory / _META).exists():
            return _load(directory)
        parts = parts_of(image, suite.find(r"linux-.*"))
        debs = suite.download(parts)
        suite.say(f"unpacking {image.name} {image.version}")
        with tempfile.TemporaryDirectory(prefix=".new-", dir=directory.parent) as scratch:
            new = Path(scratch, "kernel")
            new.mkdir()
            release = _unpack_kernel(debs, new)
            meta = {"name": name, "suite": suite.name, "release": release, "version": image.version}
            (new / _META).write_text(json.dumps(meta))
            # left by a version of crashlend that marked its kernels differently
            shutil.rmtree(directory, ignore_errors=True)
            new.rename(directory)
        for deb in debs:
            deb.unlink(missing_ok=True)  # what is unpacked is kept; 100 MB each otherwise
    return _load(directory)


def _unpack_kernel(debs: Sequence[Path], root: Path) -> str:
    """Unpack below ``root`` with merged /usr, index the modules, return the release."""
    (root / "usr/lib").mkdir(parents=True)
    (root / "lib").symlink_to("usr/lib")
    for deb in debs:
        unpack(deb, root, without=("./usr/share", "./boot/System.map*"))
    what = f"cannot use {debs[0].name}"
    builds = sorted((root / "usr/lib/modules").glob("*/kernel"))
    if len(builds) != 1:
        raise CrashlendError(what, f"it has modules for {len(builds)} kernels instead of one")
    modules = builds[0].parent
    (root / "boot").mkdir(exist_ok=True)
    # Where the image package is split, its files lie with the modules, and postinst copies them.
    for name in ("vmlinuz", "config"):
        path = root / "boot" / f"{name}-{modules.name}"
        if not path.exists() and (modules / name).exists():
            os.link(modules / name, path)
    if not (root / "boot" / f"vmlinuz-{modules.name}").is_file():
        raise CrashlendError(what, f"it has no kernel image for {modules.name}")
    # Debian's packages come without modules.dep and the like: postinst makes them.
    depmod = find_tool("depmod", "install the package kmod")
    run_tool([depmod, "-b", str(root), modules.name], what)
    return modules.name


def _name_order(name: str) -> tuple[int, ...]:
    numbers = [int(n) for n in re.findall(r"\d+", name)]
    return (*(numbers or [0, 0]), int(name.endswith("-cloud")))
