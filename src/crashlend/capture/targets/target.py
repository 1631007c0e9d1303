# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a dump target is: plain data that the initramfs and its init are made from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crashlend.capture.modules import Want


# for errors about disks, whichever module finds them
DISK_HINT = (
    "set target to a file system of its own: UUID=…, LABEL=…, PARTUUID=… or /dev/… (ext4, xfs or "
    "btrfs on a disk, RAID1, LUKS or a plain LVM volume)"
)


class Program(NamedTuple):
    """A program of the host that the capture needs: the first of ``candidates`` that exists.

    ``path`` is where it goes in the initramfs (no leading "/"), ``package`` what brings it.
    """

    candidates: tuple[str, ...]
    path: str
    package: str
    why: str


class File(NamedTuple):
    """A file of the initramfs (no leading "/"): a key, a list of known hosts, a configuration."""

    path: str
    data: bytes
    mode: int
    why: str


@dataclass(frozen=True)
class Target:
    """One place for dumps, as the crash kernel needs to know it.

    ``kind`` names init's part for it (``fs``, ``raw``, ``nfs``, ``ssh``, ``http``: init/KIND.sh),
    ``spec`` is how people name it. ``variables`` are what that part reads, by name (they all begin
    with ``TARGET_``); ``wants`` the kernel modules on the way, each with its reason; ``parts`` are
    further parts of init (``stack``, ``network``); ``tools`` are those of busybox that its parts call
    beyond what every capture has; ``says`` tells people what was decided for it. ``memory_bytes`` is
    what reaching it takes at once (LUKS), 0 where that is nothing to speak of; ``notes`` are what
    people should know.
    """

    kind: str
    spec: str
    variables: Mapping[str, str] = field(default_factory=dict)
    wants: tuple[Want, ...] = ()
    programs: tuple[Program, ...] = ()
    files: tuple[File, ...] = ()
    parts: tuple[str, ...] = ()
    says: str = ""
    memory_bytes: int = 0
    notes: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
