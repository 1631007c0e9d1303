# SPDX-License-Identifier: LGPL-2.1-or-later
"""The files that become the crash kernel: its image and its initramfs, found and read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from crashlend.errors import CrashlendError, FormatError
from crashlend.formats.bzimage import BzImage
from crashlend.plan import Payload

if TYPE_CHECKING:
    from crashlend.config import Settings

KERNEL_HINT = "--kernel takes a bzImage, such as /boot/vmlinuz-RELEASE"
INITRAMFS_HINT = "without --initramfs crashlend builds one"
KERNEL_PATHS = ("boot/vmlinuz-{release}", "lib/modules/{release}/vmlinuz")
# No kernel or initramfs is larger; a wrong path (/dev/zero) must not eat production's memory.
MAX_BYTES = 512 * 1024 * 1024


@dataclass(frozen=True)
class Files:
    """What was read: paths for messages, bytes for the load."""

    kernel_path: Path
    kernel: bytes
    initramfs_path: Path
    initramfs: bytes
    payload: Payload


def find_kernel(settings: Settings, release: str, root: Path = Path("/")) -> Path:
    """The image that the settings name, else the running release's; CrashlendError if absent."""
    if settings.kernel:
        return root / settings.kernel.lstrip("/")
    places = [root / path.format(release=release) for path in KERNEL_PATHS]
    for place in places:
        if place.is_file():
            return place
    raise CrashlendError(
        "no kernel image for the crash kernel",
        f"{' and '.join(map(str, places))} do not exist",
        hint="name one with --kernel",
    )


def read_files(
    kernel_path: Path,
    initramfs_path: Path,
    *,
    threads: bool = False,
    notes: tuple[str, ...] = (),
    target_bytes: int = 0,
) -> Files:
    """Read both files and the image's header; the rest is the payload's (plan.py)."""
    kernel = _read(kernel_path, "the kernel image", KERNEL_HINT)
    initramfs = _read(initramfs_path, "the initramfs", INITRAMFS_HINT)
    try:
        image = BzImage.parse(kernel)
    except FormatError as error:
        raise CrashlendError(
            f"cannot use the kernel image {kernel_path}",
            error.why,
            hint=error.hint or KERNEL_HINT,
        ) from error
    return Files(
        kernel_path,
        kernel,
        initramfs_path,
        initramfs,
        Payload(image, len(initramfs), threads, notes, target_bytes),
    )


def _read(path: Path, what: str, hint: str) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise CrashlendError(
            f"cannot read {what} {path}", error.strerror or str(error), hint=hint
        ) from error
    if not data or len(data) > MAX_BYTES:
        raise CrashlendError(
            f"cannot use {what} {path}",
            "it is empty" if not data else "it is over 512 MiB",
            hint=hint,
        )
    return data
