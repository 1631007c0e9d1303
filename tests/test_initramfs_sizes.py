# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kept sizes of capture initramfs: what is promised of them, and the table that shows them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
ROWS = json.loads((ROOT / "docs/results/initramfs-sizes.json").read_text())["rows"]


def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sizes", ROOT / "tools/initramfs_sizes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# xfs.ko of 7.3 alone is 0.8 MiB, and AHCI has three modules of SCSI beside its own.
ABOVE = [("7.3", "xfs", "AHCI")]


def test_ext4_and_xfs_take_3_mib_at_most() -> None:
    """On virtio, NVMe and AHCI, with Debian's usual busybox; one cell is above, and the page says so."""
    limit = tool().LIMIT_BYTES
    promised = [r for r in ROWS if r["fstype"] in ("ext4", "xfs") and r["busybox"] == "shared"]
    assert {r["kernel"] for r in promised} == {"5.10", "6.1", "6.12", "7.3"}
    assert {r["bus"] for r in promised} == {"virtio", "NVMe", "AHCI"}
    above = [(r["kernel"], r["fstype"], r["bus"]) for r in promised if r["bytes"] > limit]
    assert above == ABOVE
    assert all(r["bytes"] <= limit * 1.02 for r in promised)


def test_the_page_shows_what_was_measured() -> None:
    """docs/initramfs.md has the table of the kept result."""
    assert tool().table(ROWS) in (ROOT / "docs/initramfs.md").read_text()
