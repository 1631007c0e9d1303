# SPDX-License-Identifier: LGPL-2.1-or-later
"""The tour shows plans of real hosts to the byte, in a newcomer's words, and claims no more."""

from __future__ import annotations

import io
import json
import re
import tarfile
from importlib.resources import files
from pathlib import Path

import pytest

from crashlend.cli.main import main
from crashlend.config import Settings
from crashlend.errors import CrashlendError
from crashlend.facts import Facts, read_facts
from crashlend.formats.elfcore import PT_LOAD
from crashlend.hostfiles import TreeFiles
from crashlend.jsonable import from_json, to_json
from crashlend.plan import make_plan
from crashlend.ranges import Ranges
from crashlend.tour import LOW, NAMES, Stop, make_stop, read_packaged

MIB = 1 << 20
GIB = 1 << 30
SNAPSHOTS = Path(str(files("crashlend").joinpath("snapshots")))
EVERY = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def stops() -> dict[str, Stop]:
    return {name: make_stop(name) for name in NAMES}


def archived(name: str, path: str) -> bytes:
    """One file of a packaged archive, read by tarfile alone."""
    with tarfile.open(SNAPSHOTS / f"{name}.tar.gz") as archive:
        stream = archive.extractfile(path)
        assert stream is not None
        return stream.read()


def iomem(name: str, what: str) -> Ranges:
    """The resources of that name in the archive, by a reader of its own."""
    lines = archived(name, "proc/iomem").decode().splitlines()
    found = [re.match(r" *(\w+)-(\w+) : (.*)", line) for line in lines]
    return Ranges((int(m[1], 16), int(m[2], 16) + 1) for m in found if m and m[3] == what)


@EVERY
def test_every_snapshot_plans_to_the_byte(stops: dict[str, Stop], name: str) -> None:
    """The seed's line gives 1.1 GiB: 100 MiB taken, 1 GiB shared, whatever the host is like."""
    stop = stops[name]
    assert stop.words == ("crashkernel=1G,cma", "crashkernel=100M")
    assert stop.request.accepted
    assert (stop.request.size_bytes, stop.request.cma_bytes) == (100 * MIB, GIB)
    costs = stop.plan.costs
    assert (costs.taken_bytes, costs.shared_bytes) == (100 * MIB, GIB)
    assert costs.crash_kernel_bytes is not None
    assert costs.crash_kernel_bytes > 1124 * MIB
    assert costs.required_bytes is not None
    assert costs.required_bytes < 100 * MIB
    assert not stop.plan.incomplete
    assert stop.plan.layout is not None


@EVERY
def test_lent_memory_is_ram_that_nothing_else_has(stops: dict[str, Stop], name: str) -> None:
    stop = stops[name]
    assert iomem(name, "System RAM").covers(stop.plan.lent)
    for what in ("Crash kernel", "Kernel code", "Kernel rodata", "Kernel data", "Kernel bss"):
        assert iomem(name, what), what
        assert not stop.plan.lent.meets(iomem(name, what)), what


@EVERY
def test_core_header_leaves_out_what_it_says(stops: dict[str, Stop], name: str) -> None:
    """Covered and left out are all RAM; left out are reservation, lent memory and first MiB."""
    stop = stops[name]
    header = stop.core_header
    ram = iomem(name, "System RAM")
    assert header.covered | header.left_out == ram
    assert not header.covered.meets(header.left_out)
    assert header.left_out == iomem(name, "Crash kernel") | stop.plan.lent | (ram & LOW)
    assert stop.plan.layout is not None
    assert header.pt_loads == sum(h.type == PT_LOAD for h in stop.plan.layout.program_headers)
    assert header.notes == len(stop.facts.crash_notes) + 1


@EVERY
def test_facts_are_what_the_archive_says(stops: dict[str, Stop], name: str) -> None:
    facts = stops[name].facts
    assert facts.missing == {}
    assert facts.refusals == ()
    assert facts.release == archived(name, "proc/sys/kernel/osrelease").decode().strip()
    assert facts.cmdline == archived(name, "proc/cmdline").decode().rstrip("\n")
    assert facts.block_bytes == int(
        archived(name, "sys/devices/system/memory/block_size_bytes"), 16
    )
    assert facts.crash_size_bytes == iomem(name, "Crash kernel").size
    meminfo = archived(name, "proc/meminfo").decode()
    total = re.search(r"MemTotal: +(\d+) kB", meminfo)
    assert total
    assert facts.meminfo["MemTotal"] == int(total[1]) * 1024
    # what the allocator manages is what MemTotal counts
    assert sum(zone.managed for zone in facts.zones) * 4096 == facts.meminfo["MemTotal"]
    code = iomem(name, "Kernel code")[0]
    assert facts.kernel_text is not None
    assert facts.kernel_text.phys == code.start
    assert facts.vmcoreinfo is not None
    assert facts.vmcoreinfo[0] in iomem(name, "System RAM")
    assert all(note.phys in iomem(name, "System RAM") for note in facts.crash_notes)
    assert from_json(Facts, json.loads(json.dumps(to_json(facts)))) == facts


@EVERY
def test_census_counts_every_page_of_every_block(stops: dict[str, Stop], name: str) -> None:
    """The snapshot brings its census, so the plan ranks blocks as load did on that host."""
    facts = stops[name].facts
    assert facts.block_bytes is not None
    assert [c.index for c in facts.block_census] == [
        b.index for b in facts.blocks if b.state == "online"
    ]
    for c in facts.block_census:
        pages = c.free + c.movable + c.unmovable + c.unknown + c.huge + c.poisoned
        assert pages <= facts.block_bytes // 4096


@EVERY
def test_unpacked_snapshot_has_the_same_facts(
    stops: dict[str, Stop], name: str, tmp_path: Path
) -> None:
    with tarfile.open(SNAPSHOTS / f"{name}.tar.gz") as archive:
        for member in archive:  # extractall's filter is younger than Debian 12's Python
            path = tmp_path / member.name
            stream = archive.extractfile(member)
            (path if stream is None else path.parent).mkdir(parents=True, exist_ok=True)
            if stream is not None:
                path.write_bytes(stream.read())
    assert read_facts(TreeFiles(tmp_path)) == stops[name].facts


def test_hosts_are_of_three_kinds(stops: dict[str, Stop]) -> None:
    """Both lenders; one range and several; 4 GiB and 64 GiB; one node and two."""
    vm, fragmented, server = (stops[name] for name in NAMES)
    assert (vm.plan.lender, fragmented.plan.lender, server.plan.lender) == (
        *("movable", "movable", "cma"),
    )
    assert len(fragmented.plan.lent) >= 4
    assert max(r.size for r in fragmented.ram) < 256 * MIB  # not even RHEL 10's default would fit
    assert server.nodes == 2
    assert server.ram.size > 63 * GIB
    assert server.facts.block_bytes == 2 * GIB
    cma = archived("server", "sys/kernel/kexec/crash_cma_ranges").split()[0]
    assert server.plan.lent[0].start == int(cma.split(b"-")[0], 16)


def test_a_big_host_lends_whole_blocks_of_its_own_size(stops: dict[str, Stop]) -> None:
    """Lender movable on blocks of 2 GiB: 1 GiB asked for becomes 2, and the plan says so."""
    server = stops["server"]
    plan = make_plan(server.facts, Settings(lender="movable"), server.payload)
    assert plan.lent.size == 2 * GIB
    assert len(plan.lent) == 1
    assert any("2048 MiB here: the request is rounded up" in note for note in plan.notes)
    passed = {p.index for p in plan.offer.passed_over}
    # both below 4 GiB, the one across the two nodes, and the last, of which half is not there
    assert {0, 1, 16, 32} <= passed


def test_text_is_for_newcomers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tour"]) == 0
    out = capsys.readouterr().out
    for words in ("taken from production", "shared until the crash", "the crash kernel has"):
        assert out.count(f"\n{words}  ") == len(NAMES), words
    assert "crashkernel=1G,cma crashkernel=100M" in out
    assert "no crash was run" in out
    assert "make demo" in out
    assert "crashlend lab demo" in out
    assert "PT_LOADs" in out
    lines = out.splitlines()
    assert max(map(len, lines)) <= 100
    assert len(lines) <= 60, "about two screens"


@EVERY
def test_one_stop_alone(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tour", name]) == 0
    out = capsys.readouterr().out
    assert f"\n{name}: " in out
    assert not any(f"\n{other}: " in out for other in NAMES if other != name)
    assert "no crash was run" in out


def test_json(capsys: pytest.CaptureFixture[str], stops: dict[str, Stop]) -> None:
    assert main(["tour", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["schema"] == 1
    assert answer["crash_was_run"] is False
    assert [host["name"] for host in answer["hosts"]] == list(NAMES)
    for host in answer["hosts"]:
        stop = stops[host["name"]]
        assert host["plan"] == json.loads(json.dumps(stop.plan.to_json()))
        assert host["memory_bytes"] == stop.ram.size
        assert host["request"]["cma_bytes"] == GIB
        assert host["core_header"]["covered_bytes"] == stop.core_header.covered.size


def test_unknown_name_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["tour", "mainframe"])
    assert caught.value.code == 2
    assert "mainframe" in capsys.readouterr().err


def test_missing_snapshot_is_one_clear_error() -> None:
    with pytest.raises(CrashlendError, match="cannot read the packaged snapshot nothing"):
        read_packaged("nothing")


@EVERY
def test_payload_is_that_of_the_guests_own_kernel(stops: dict[str, Stop], name: str) -> None:
    stop = stops[name]
    assert stop.payload.image.release == stop.facts.release
    assert stop.payload.initramfs_bytes > MIB
    header = stop.payload.image.setup_header
    assert header[0x202 - 0x1F1 :][:4] == b"HdrS"


def test_all_that_is_packaged_is_small_and_wanted() -> None:
    names = sorted(path.name for path in SNAPSHOTS.iterdir())
    assert names == sorted(f"{n}.{kind}" for n in NAMES for kind in ("json", "tar.gz"))
    assert sum(path.stat().st_size for path in SNAPSHOTS.iterdir()) < 300_000
    for name in NAMES:
        data = (SNAPSHOTS / f"{name}.tar.gz").read_bytes()
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            assert all(member.isfile() or member.isdir() for member in archive)
