# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where production's pstore keeps a panic over a reset, and what the capture needs to write there.

Only the backend that production uses is any good: another one's records nobody would look for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from crashlend.capture.hosttree import read_text

if TYPE_CHECKING:
    from pathlib import Path

# The names that backends give themselves, and their modules. ERST (acpi/apei) is always built in.
# efi_pstore calls itself "efi" in older kernels, 6.1 for one.
MODULES = {"efi": "efi_pstore", "efi_pstore": "efi_pstore", "ramoops": "ramoops"}
# ramoops must find production's own layout, which no firmware tells: its parameters, as they are.
_RAMOOPS = (
    *("mem_address", "mem_size", "mem_type", "record_size", "console_size", "ftrace_size"),
    *("pmsg_size", "ecc"),
)
# enum kmsg_dump_reason (include/linux/kmsg_dump.h): up to KMSG_DUMP_SHUTDOWN, for the record is
# written at the reboot; by itself ramoops keeps panics and oopses alone
_UP_TO_SHUTDOWN = "max_reason=4"


class PstoreModule(NamedTuple):
    """A module that the crash kernel inserts, with its parameters."""

    name: str
    parameters: tuple[str, ...] = ()


def find_pstore(root: Path) -> tuple[PstoreModule, ...]:
    """The module of production's backend; empty where there is none, or it is built in."""
    backend = read_text(root / "sys/module/pstore/parameters/backend")
    name = MODULES.get(backend)
    if name is None:
        return ()
    if name != "ramoops":
        return (PstoreModule(name),)
    values = {key: read_text(root / "sys/module/ramoops/parameters" / key) for key in _RAMOOPS}
    # where firmware describes the memory, the driver of the crash kernel finds it as well
    given = values["mem_address"] not in ("", "0")
    words = tuple(f"{key}={value}" for key, value in values.items() if value) if given else ()
    return (PstoreModule(name, (*words, _UP_TO_SHUTDOWN)),)
