# SPDX-License-Identifier: LGPL-2.1-or-later
"""What each architecture must supply: the three hooks of the series, its image and entry code.

``reserve_lent``           which memory may be lent
``include_in_memory_map``  how the lent ranges reach the crash kernel
``exclude_from_vmcore``    what the core header's PT_LOADs leave out, and how they address the rest
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crashlend.errors import CrashlendError

if TYPE_CHECKING:
    from types import ModuleType


@dataclass(frozen=True)
class Segment:
    """One kexec segment: ``stored_bytes`` are copied to ``start``, ``memory_bytes`` are kept free.

    ``memory_bytes`` is a multiple of the page size and not below ``stored_bytes``.
    """

    name: str
    start: int
    stored_bytes: int
    memory_bytes: int

    @property
    def end(self) -> int:
        return self.start + self.memory_bytes


@dataclass(frozen=True)
class MapEntry:
    """One range of the crash kernel's memory map, ``kind`` in /sys/firmware/memmap's words."""

    start: int
    end: int
    kind: str


def for_machine(machine: str) -> ModuleType:
    """The architecture's module; CrashlendError for one that crashlend does not know."""
    from crashlend.arch import x86_64

    known = {"x86_64": x86_64}
    if machine not in known:
        raise CrashlendError(
            "cannot plan",
            f"crashlend does not know the architecture {machine or '(unknown)'}",
            hint=f"it knows {', '.join(known)}",
        )
    return known[machine]
