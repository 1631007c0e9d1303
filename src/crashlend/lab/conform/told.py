# SPDX-License-Identifier: LGPL-2.1-or-later
"""Facts of an observed guest: its files as it told them, read by the product's own reader.

There is no Python in such a guest, so nothing of /proc/kcore can be told: what crashlend answers here
rests on all the other evidence (lenders/activation.py). The trials of suites/conform.py have the marks.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING

from crashlend.config import Settings
from crashlend.errors import CrashlendError
from crashlend.facts import Facts, read_facts
from crashlend.lab.observation import FILES
from crashlend.plan import make_plan

if TYPE_CHECKING:
    from crashlend.lab.observation import Observation

# Each file as a line: its path, and its bytes in base64.
TELL = r"""
for file in /proc/sys/kernel/arch /proc/sys/kernel/osrelease /proc/cpuinfo \
    /sys/kernel/kexec_crash_loaded /sys/kernel/mm/cma/*/total_pages \
    /sys/devices/system/memory/block_size_bytes \
    /sys/devices/system/memory/memory*/state /sys/devices/system/memory/memory*/valid_zones; do
    [ -r "$file" ] && echo "$file $(base64 <"$file" | tr -d '\n')"
done
[ -d /sys/kernel/mm/cma ] && echo "/sys/kernel/mm/cma/. Cg=="
true
"""


class ToldFiles:
    """HostFiles of what a guest told: the observer's own files, and those of :data:`TELL`."""

    def __init__(self, seen: Observation) -> None:
        self.files = {path: seen.files[name] for name, path in FILES.items() if name in seen.files}
        self.files["/dev/kmsg"] = seen.files["log"]
        for line in seen.answers["tell"].text.splitlines():
            path, _, data = line.partition(" ")
            try:
                self.files[path] = base64.b64decode(data, validate=True)
            except binascii.Error as error:
                raise CrashlendError("the guest told what is no file", f"{path}: {error}") from None

    def read(self, path: str, limit: int = 1 << 26, offset: int = 0) -> bytes:
        if path not in self.files:
            raise FileNotFoundError(path)
        return self.files[path][offset : offset + limit]

    def names(self, path: str) -> list[str]:
        inside = f"{path.rstrip('/')}/"
        return sorted({p[len(inside) :].split("/")[0] for p in self.files if p.startswith(inside)})

    def exists(self, path: str) -> bool:
        return path in self.files or any(p.startswith(f"{path}/") for p in self.files)


def facts_of(seen: Observation) -> Facts:
    """What crashlend would know of this guest, but for its pages."""
    return read_facts(ToldFiles(seen))


def lender_says(facts: Facts) -> tuple[int, str]:
    """What the plan would lend, in bytes, and the refusal; one of them is nothing."""
    try:
        return make_plan(facts, Settings(), None).lent.size, ""
    except CrashlendError as error:
        return 0, str(error)
