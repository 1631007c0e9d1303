# SPDX-License-Identifier: LGPL-2.1-or-later
"""A snapshot may bring the census along: a plan made elsewhere ranks blocks as the host would."""

from __future__ import annotations

import io
import struct
import tarfile
from pathlib import Path

import pytest

from crashlend.facts import read_facts
from crashlend.hostfiles import CENSUS, ArchiveFiles, TreeFiles
from crashlend.lenders.census import KPF, BlockCensus
from crashlend.snapshot import take_snapshot

PAGES = 4
FREE, SLAB = 1 << KPF["BUDDY"], 1 << KPF["SLAB"]


@pytest.fixture
def host(tmp_path: Path) -> TreeFiles:
    """A host of two memory blocks of four pages: one free, one with kernel data."""
    memory = tmp_path / "sys/devices/system/memory"
    for index in range(2):
        (memory / f"memory{index}").mkdir(parents=True)
        (memory / f"memory{index}/state").write_text("online\n")
    (memory / "block_size_bytes").write_text(f"{PAGES * 4096:x}\n")
    (tmp_path / "proc").mkdir()
    flags = [FREE] * PAGES + [SLAB, SLAB, SLAB, FREE]
    (tmp_path / "proc/kpageflags").write_bytes(struct.pack(f"={len(flags)}Q", *flags))
    return TreeFiles(tmp_path)


def test_census_comes_along_without_the_page_flags(host: TreeFiles) -> None:
    data, facts = take_snapshot(host, census=True)
    assert facts.block_census == (
        BlockCensus(0, 4, 0, 0, 0, 0, 0, kinds={"free": 4}),
        BlockCensus(1, 1, 0, 3, 0, 0, 0, kinds={"slab": 3, "free": 1}),
    )
    snapshot = ArchiveFiles(data, "snapshot")
    assert read_facts(snapshot).block_census == facts.block_census
    assert read_facts(snapshot, census=True).block_census == facts.block_census
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert "proc/kpageflags" not in archive.getnames()
        assert CENSUS.lstrip("/") in archive.getnames()


def test_without_census_there_is_none(host: TreeFiles) -> None:
    data, facts = take_snapshot(host)
    assert facts.block_census == ()
    snapshot = ArchiveFiles(data, "snapshot")
    assert read_facts(snapshot) == facts
    assert not snapshot.exists(CENSUS)


def test_a_spoilt_census_is_noted_not_believed(host: TreeFiles) -> None:
    (host.root / CENSUS.lstrip("/")).write_text('[{"index": 0}]')
    facts = read_facts(host)
    assert facts.block_census == ()
    assert "keys missing" in facts.missing[CENSUS]
