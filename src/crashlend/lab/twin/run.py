# SPDX-License-Identifier: LGPL-2.1-or-later
"""A host's twin: its files, its shape and its stand-in as one trial of the lab."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from crashlend.lab.captures import build_capture
from crashlend.lab.kernels import fetch, from_files, is_name, machine_suite
from crashlend.lab.spec import Command, Spec
from crashlend.lab.twin.contents import read_capture
from crashlend.lab.twin.shape import Change
from crashlend.lab.twin.standin import appended, make_standin

if TYPE_CHECKING:
    from crashlend.config import Settings
    from crashlend.facts import Facts
    from crashlend.lab.kernels import Kernel
    from crashlend.lab.packages import Say
    from crashlend.lab.twin.shape import Shape
    from crashlend.lab.twin.standin import StandIn

# the lab's own disk; the stand-in may have the usual name, when the host is itself a guest of the lab
LAB_LABEL = "crashlend-twin"


@dataclass(frozen=True)
class Payload:
    """The host's kernel and capture initramfs. ``initramfs`` is as on the host, byte for byte."""

    kernel: Kernel
    initramfs: bytes
    changes: tuple[Change, ...]


def snapshot_payload(kernel: Kernel, facts: Facts, initramfs: bytes | None, say: Say) -> Payload:
    """For facts of another host: ``initramfs`` may be None, then the lab's userland makes one."""
    changes = list(kernel_changes(kernel, facts))
    if initramfs is None:
        why = (
            "a snapshot holds none; this one is made of the lab's own userland, for ext4 on virtio"
        )
        changes.append(Change("initramfs", "not in the snapshot", "crashlend's", why))
        with tempfile.TemporaryDirectory(prefix="crashlend-") as empty:
            initramfs = build_capture(kernel, Path(empty), say).read_bytes()
    return Payload(kernel, initramfs, tuple(changes))


def kernel_changes(kernel: Kernel, facts: Facts) -> tuple[Change, ...]:
    """That the twin runs another kernel than the host, where it does."""
    if kernel.release == facts.release:
        return ()
    return (Change("kernel", facts.release, kernel.release, "the one that was named"),)


def find_twin_kernel(name: str, modules: Path | None, say: Say) -> Kernel:
    """The kernel of a name of ``lab kernels``, or of a file."""
    if is_name(name):
        return fetch(name, say)
    path = Path(name)
    return from_files(path, modules or path.parent, suite=machine_suite())


def twin_spec(
    payload: Payload,
    shape: Shape,
    settings: Settings,
    standin: StandIn,
    directory: Path,
    *,
    more: tuple[Command, ...] = (),
    timeout_seconds: float,
    syscall: str | None = None,
    dma_quiesce: str | None = None,
    poison: bool = True,
    accel: str = "tcg",
) -> Spec:
    """The trial that is the twin; ``more`` commands follow the load. Writes its initramfs."""
    initramfs = directory / "twin.initramfs"
    # its keys: copies of it are as private
    initramfs.touch(0o600)
    initramfs.write_bytes(appended(payload.initramfs, standin.archive))
    load = ["load", "--nr-cpus", str(settings.nr_cpus), "--on-mismatch", settings.on_mismatch]
    load += ["--lend-share", str(settings.lend_share), "--lend-min", str(settings.lend_min)]
    if settings.shrink_on_load:
        load.append("--shrink")
    if settings.shrink_margin is not None:
        load += ["--shrink-margin", str(settings.shrink_margin)]
    if settings.append:
        load += [f"--append={settings.append}"]
    return Spec(
        kernel=payload.kernel,
        memory_bytes=shape.memory_bytes,
        cpus=shape.cpus,
        nodes=shape.nodes,
        firmware=shape.firmware,
        machine="q35" if shape.firmware == "secure" else "pc",
        cpu_model=shape.cpu_model,
        cmdline=shape.cmdline,
        lender=settings.lender if shape.lend_bytes else "none",
        lend_bytes=shape.lend_bytes or None,
        syscall=syscall or settings.syscall,
        placement=settings.placement,
        dump_level=settings.dump_level,
        allow_missing_user_data=settings.allow_missing_user_data,
        dma_quiesce=dma_quiesce or settings.dma_quiesce,
        accel=accel,
        timeout_seconds=timeout_seconds,
        poison=poison,
        scan=False,
        commands=(Command(tuple(load)), *more),
        devices=standin.words(standin.image),
        lab_label=LAB_LABEL,
        initramfs=initramfs,
    )


def make_twin_disk(payload: Payload, directory: Path) -> StandIn:
    """The stand-in for the payload's dump target, made in ``directory``."""
    return make_standin(read_capture(payload.initramfs), payload.kernel, directory)
