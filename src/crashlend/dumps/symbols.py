# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where a kernel's debug symbols may be on this machine. No network."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

# RELEASE is what uname -r said. Debian, Ubuntu and Arch; Fedora, RHEL and SUSE; builds of one's own
PLACES = (
    "usr/lib/debug/boot/vmlinux-{}",
    "usr/lib/debug/lib/modules/{}/vmlinux",
    "usr/lib/debug/usr/lib/modules/{}/vmlinux",
    "usr/lib/debug/boot/vmlinux-{}.debug",
    "usr/lib/modules/{}/build/vmlinux",
    "lib/modules/{}/build/vmlinux",
    "boot/vmlinux-{}",
)


def find_vmlinux(release: str, root: Path = Path("/")) -> Optional[Path]:
    """The ELF image with the symbols of this kernel, or None."""
    if not release or "/" in release:
        return None
    found = (root / place.format(release) for place in PLACES)
    return next((path for path in found if path.is_file()), None)
