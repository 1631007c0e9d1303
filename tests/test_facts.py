# SPDX-License-Identifier: LGPL-2.1-or-later
"""Facts of hosts: what is read, what is missing, and snapshots of them."""

from __future__ import annotations

import errno
import io
import tarfile
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from build import (
    BLOCK,
    GIB,
    HUGE,
    MIB,
    PAGE,
    PAGE_OFFSET,
    PAGE_OFFSET_LA57,
    PRIVATE_LOG_LINE,
    RELEASE,
    RESERVATION,
    SECRET,
    SLAB,
    TEXT_BYTES,
    TEXT_PHYS,
    TEXT_VIRT,
    MemoryFiles,
    facts,
    host,
    write_tree,
)
from crashlend.errors import CrashlendError
from crashlend.facts import CrashNote, Facts, HugePool, KernelText, MemoryBlock, read_facts
from crashlend.hostfiles import ArchiveFiles, TreeFiles, open_host
from crashlend.snapshot import take_snapshot

if TYPE_CHECKING:
    from pathlib import Path

CMA_LOG = (
    b"cma: Reserved 256 MiB at 0x0000000110000000",
    b"crashkernel CMA reserved: 256 MB in 1 ranges",
)


def test_a_guest_s_facts_are_what_its_files_say() -> None:
    """Every field of a usual QEMU guest, from the files' own numbers."""
    some = facts()
    assert (some.arch, some.release, some.privileged) == ("x86_64", RELEASE, True)
    assert some.cmdline.endswith("crashkernel=1G,cma crashkernel=256M")
    crash = [r for r in some.iomem if r.name == "Crash kernel"]
    assert [(r.start, r.end, r.depth) for r in crash] == [(*RESERVATION, 1)]
    assert some.block_bytes == BLOCK
    assert some.blocks[0] == MemoryBlock(0, "online", ("none",), 0)
    assert some.blocks[-1] == MemoryBlock(39, "online", ("Normal",), 0)
    assert len(some.blocks) == 32
    assert some.crash_notes == (
        CrashNote(0, 0x13FC00000, 368),
        CrashNote(1, 0x13FC40000, 368),
    )
    assert some.vmcoreinfo == (0x102344000, 0x1000)
    assert some.page_offset == PAGE_OFFSET
    assert some.kernel_text == KernelText(TEXT_VIRT, TEXT_PHYS, TEXT_BYTES)
    assert (some.pm_timer_port, some.rsdp, some.efi) == (0x608, None, False)
    assert some.crash_size_bytes == 256 * MIB
    assert (some.crash_loaded, some.kexec_load_disabled, some.lockdown) == (False, False, "none")
    assert (some.cma_ranges, some.refusals, some.lent_blocks) == (None, (), ())
    assert some.firmware_map[1].type == "Reserved"
    assert some.firmware_map[1].end == 0xA0000
    assert some.missing == {}


def test_page_offset_is_read_off_kcore_with_five_levels_too() -> None:
    """KASLR and LA57 move the direct mapping; kcore says where it is (hazard 19)."""
    assert facts(page_offset=PAGE_OFFSET_LA57).page_offset == PAGE_OFFSET_LA57
    assert facts(page_offset=0xFFFF9A3C40000000).page_offset == 0xFFFF9A3C40000000


FIELDS: dict[str, tuple[str, object]] = {
    "/proc/iomem": ("iomem", ()),
    "/proc/kcore": ("page_offset", None),
    "/proc/zoneinfo": ("zones", ()),
    "/proc/meminfo": ("meminfo", {}),
    "/sys/kernel/vmcoreinfo": ("vmcoreinfo", None),
    "/sys/kernel/kexec_crash_size": ("crash_size_bytes", None),
    "/sys/kernel/kexec_crash_loaded": ("crash_loaded", None),
    "/proc/sys/kernel/kexec_load_disabled": ("kexec_load_disabled", None),
    "/sys/devices/system/memory/block_size_bytes": ("block_bytes", None),
}


@pytest.mark.parametrize("path", FIELDS)
@pytest.mark.parametrize("how", ["absent", "unreadable", "broken", "garbage", "empty"])
def test_what_cannot_be_read_is_missing_not_zero(path: str, how: str) -> None:
    """An absent, forbidden, failing, senseless or empty file is None or empty *and* named."""
    if how == "garbage" and path in ("/proc/zoneinfo", "/proc/meminfo"):
        pytest.skip("their parsers pass over unknown lines, as the kernel adds new ones")
    files: dict[str, bytes | None] = {
        "absent": {path: None},
        "garbage": {path: b"\xff\0 garbage"},
        "empty": {path: b""},
    }.get(how, {})  # type: ignore[assignment]
    errors = {"unreadable": {path: errno.EACCES}, "broken": {path: errno.EIO}}.get(how, {})
    some = facts(files=files, errors=errors)
    name, empty = FIELDS[path]
    assert getattr(some, name) == empty
    assert path in some.missing
    if how == "unreadable":
        assert "needs root" in some.missing[path]


def test_zeroed_addresses_are_missing_not_zero() -> None:
    """Without CAP_SYS_ADMIN iomem reads zero: it is taken for hidden, the host for unprivileged."""
    some = facts(hidden=True)
    assert (some.iomem, some.privileged) == ((), False)
    assert "hides addresses" in some.missing["/proc/iomem"]


@pytest.mark.parametrize(
    ("path", "zero", "name"),
    [
        ("/sys/kernel/vmcoreinfo", b"0 0\n", "vmcoreinfo"),
        ("/sys/devices/system/memory/block_size_bytes", b"0\n", "block_bytes"),
        ("/sys/devices/system/memory/block_size_bytes", b"-8000000\n", "block_bytes"),
    ],
)
def test_impossible_numbers_are_missing(path: str, zero: bytes, name: str) -> None:
    """A zero or negative address or size of what is never zero is no fact."""
    some = facts(files={path: zero})
    assert getattr(some, name) is None
    assert path in some.missing


@pytest.mark.parametrize("text", [b"0\n", b"-10\n", b"x\n"])
def test_a_cpu_without_a_note_address_is_named(text: bytes) -> None:
    """A zeroed crash note is left out of the facts, and said so."""
    path = "/sys/devices/system/cpu/cpu1/crash_notes"
    some = facts(files={path: text})
    assert [note.cpu for note in some.crash_notes] == [0]
    assert path in some.missing


def test_an_absent_optional_file_is_not_missing() -> None:
    """No FADT, no EFI, no lockdown, no state file: normal on many hosts, nothing to report."""
    paths = ("/sys/firmware/acpi/tables/FACP", "/sys/kernel/security/lockdown", "/dev/kmsg")
    some = facts(files=dict.fromkeys(paths))
    assert some.missing == {}
    assert (some.pm_timer_port, some.lockdown) == (None, None)


def test_crash_notes_are_of_physical_cpus_only() -> None:
    """Neighbours such as cpufreq and cpuidle are no CPUs; cpu10 comes after cpu2."""
    some = facts(cpus=12, files={"/sys/devices/system/cpu/cpufreq/boost": b"1"})
    assert [note.cpu for note in some.crash_notes] == list(range(12))


@pytest.mark.parametrize(
    ("text", "level"),
    [("none", "none"), ("integrity", "integrity"), ("confidentiality", "confidentiality")],
)
def test_lockdown_is_the_word_in_brackets(text: str, level: str) -> None:
    """The file lists all levels; the one in force is bracketed."""
    assert facts(lockdown=text).lockdown == level


def test_cma_ranges_come_from_the_file_else_from_the_log() -> None:
    """6.19 has the file, 6.17 the log, also where CmaTotal is 0: all ranges are lost then."""
    assert facts(cma_ranges=[(4 * GIB, 5 * GIB)]).cma_ranges == ((4 * GIB, 5 * GIB),)
    assert facts(cma_ranges=[]).cma_ranges == ()
    assert facts(log=CMA_LOG).cma_ranges == ((0x110000000, 0x120000000),)
    assert facts().cma_ranges is None
    assert facts(log=CMA_LOG, cmdline=b"crashkernel=256M\n").cma_ranges is None
    meminfo = b"MemTotal: 4000000 kB\nCmaTotal: 262144 kB\n"
    old = facts(log=CMA_LOG, files={"/proc/meminfo": meminfo})
    assert old.cma_ranges == ((0x110000000, 0x120000000),)


@pytest.mark.parametrize(
    ("kind", "lender", "words"),
    [
        ({"files": {"/sys/hypervisor/type": b"xen\n"}}, "movable", "Xen"),
        (
            {"files": {"/sys/bus/vmbus/drivers/hv_balloon/1eccfd72-4b41-45ef/x": b""}},
            "movable",
            "Hyper-V",
        ),
        ({"log": [b"Memory Encryption Features active: AMD SME"]}, "any", "AMD SME"),
        ({"flags": "fpu tdx_guest"}, "any", "TDX"),
        ({"files": {"/dev/sev-guest": b""}}, "any", "SEV"),
        ({"files": {"/proc/meminfo": b"Unaccepted: 4 kB\n"}}, "any", "unaccepted"),
    ],
)
def test_hosts_that_keep_or_encrypt_memory_are_recognised(
    kind: dict[str, Any], lender: str, words: str
) -> None:
    """Xen, Hyper-V's balloon, SME, SEV, TDX and unaccepted memory each leave a refusal."""
    (refusal,) = facts(**kind).refusals
    assert refusal.lender == lender
    assert words in refusal.reason


def test_hyper_v_s_driver_without_a_device_is_no_refusal() -> None:
    """Only a bound balloon counts; the driver's own files are there on every such kernel."""
    assert facts(files={"/sys/bus/vmbus/drivers/hv_balloon/bind": b""}).refusals == ()


def test_huge_pools_are_counted_per_node_and_size() -> None:
    """Empty pools are left out."""
    base = "/sys/devices/system/node"
    some = facts(
        files={
            f"{base}/node0/hugepages/hugepages-2048kB/nr_hugepages": b"200\n",
            f"{base}/node0/hugepages/hugepages-1048576kB/nr_hugepages": b"0\n",
            f"{base}/node1/hugepages/hugepages-1048576kB/nr_hugepages": b"2\n",
        }
    )
    assert some.huge_pools == (HugePool(0, 2 * MIB, 200), HugePool(1, GIB, 2))


def test_the_census_counts_online_blocks() -> None:
    """With the flags of pages there is a row per online block, else none."""
    some = facts(census={33: [(SLAB, 3), (HUGE, 512)]}, offline=[39])
    row = next(c for c in some.block_census if c.index == 33)
    assert (row.unmovable, row.huge, row.free) == (3, 512, BLOCK // PAGE - 515)
    assert 39 not in {c.index for c in some.block_census}
    assert facts().block_census == ()


@pytest.mark.parametrize(
    "state",
    [
        b"[]",
        b"{}",
        b"5",
        b'{"blocks": 5}',
        b'{"blocks": [1]}',
        b'{"blocks": {"x": {"step": "lent"}}}',
        b"{",
        b"[" * 100000,
    ],
)
def test_a_damaged_state_file_is_missing_not_a_traceback(state: bytes) -> None:
    """Whatever is in /run/crashlend/state.json, facts are read, and it is named."""
    path = "/run/crashlend/state.json"
    some = facts(files={path: state})
    assert some.lent_blocks == ()
    assert path in some.missing


def test_only_blocks_that_are_surely_lent_count_as_lent() -> None:
    """Blocks on their way there or back are not lent."""
    steps = {31: "taking", 32: "lent", 33: "returning", 34: "spoiled"}
    blocks = ", ".join(f'"{i}": {{"step": "{step}"}}' for i, step in steps.items())
    text = f'{{"schema": 1, "blocks": {{{blocks}}}, "loaded": null}}'.encode()
    assert facts(files={"/run/crashlend/state.json": text}).lent_blocks == (32,)


# --- snapshots -----------------------------------------------------------------------------------

KINDS: list[dict[str, Any]] = [
    {},
    {"hidden": True},
    {"efi": True, "lent": [38], "movable": [38]},
    {"cma_ranges": [(4 * GIB, 5 * GIB)]},
    {"log": CMA_LOG, "files": {"/proc/meminfo": b"MemTotal: 4000000 kB\nCmaTotal: 262144 kB\n"}},
    {"files": {"/proc/iomem": b"garbage", "/sys/bus/vmbus/drivers/hv_balloon/1eccfd72-4/x": b""}},
    {"cmdline": b"a=\xff\xfe\x01 crashkernel=1G,cma\n"},
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_snapshot_gives_the_same_facts_packed_and_unpacked(
    kind: dict[str, Any], tmp_path: Path
) -> None:
    """Facts of the archive and of its unpacked tree are those of the host."""
    errors = {"/sys/kernel/kexec_crash_size": errno.EACCES, "/proc/kcore": errno.EPERM}
    data, some = take_snapshot(MemoryFiles(host(**kind), errors))
    assert some == facts(errors=errors, **kind)
    archive = read_facts(ArchiveFiles(data, "x"))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        tar.extractall(tmp_path)
    tree = read_facts(TreeFiles(tmp_path))
    for other in (archive, tree):
        assert same_but_for_wording(other, some)
    assert archive == tree


def same_but_for_wording(a: Facts, b: Facts) -> bool:
    """Equal facts, and the same paths missing (the reasons may be told in other words)."""
    x, y = vars(a).copy(), vars(b).copy()
    return set(x.pop("missing")) == set(y.pop("missing")) and x == y


def test_a_snapshot_of_a_real_tree_is_that_of_memory(tmp_path: Path) -> None:
    """TreeFiles below a directory reads what the files in memory say."""
    assert read_facts(TreeFiles(write_tree(tmp_path, host()))) == facts()


def test_a_snapshot_holds_no_kernel_memory_and_not_the_whole_log() -> None:
    """Of kcore only the headers, of the log only the lines that facts need."""
    data, _ = take_snapshot(MemoryFiles(host(log=CMA_LOG)))
    files = ArchiveFiles(data, "x").files
    assert not any(SECRET in content for content in files.values())
    assert len(files["/proc/kcore"]) == 64 + 56 * 6
    assert files["/dev/kmsg"].count(b"\n") == 3  # the first line and the two of CMA
    assert PRIVATE_LOG_LINE.strip() not in files["/dev/kmsg"]
    assert not any("kpageflags" in path for path in files)


def test_the_census_comes_along_as_counts(tmp_path: Path) -> None:
    """A snapshot with census ranks blocks elsewhere, without the flags of single pages."""
    files = MemoryFiles(host(census={33: [(SLAB, 3)]}))
    data, some = take_snapshot(files, census=True)
    assert some.block_census
    archive = ArchiveFiles(data, "x")
    assert "/proc/kpageflags" not in archive.files
    assert read_facts(archive).block_census == some.block_census


def test_facts_read_no_file_that_a_snapshot_lacks() -> None:
    """Every file that was read is in the archive, so that nothing is left to the other host."""
    files = MemoryFiles(host(efi=True))
    data, _ = take_snapshot(files)
    stored = ArchiveFiles(data, "x").files
    assert {p for p in files.read_paths if p in files.files} <= set(stored)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_mutated_archives_are_read_or_refused(data: st.DataObject) -> None:
    """A damaged snapshot is facts with gaps or CrashlendError, nothing else."""
    changed = bytearray(data.draw(st.sampled_from(ARCHIVES)))
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.just(len(changed)) | st.integers(0, len(changed)))
    try:
        read_facts(ArchiveFiles(bytes(changed[:cut]), "x"))
    except CrashlendError as error:
        assert error.hint  # noqa: PT017


def plain_tar(data: bytes) -> bytes:
    """The same archive without compression, so that mutations reach the headers."""
    import gzip

    return gzip.decompress(data)


ARCHIVES = [take_snapshot(MemoryFiles(host()))[0]]
ARCHIVES.append(plain_tar(ARCHIVES[0])[:60000])


@pytest.mark.parametrize("kind", ["absent", "empty directory", "text file", "endless file"])
def test_a_root_that_is_no_snapshot_is_an_error_in_words(kind: str, tmp_path: Path) -> None:
    """A path that is not there, a directory without /proc and any other file: line and hint."""
    place = tmp_path / "x"
    if kind == "empty directory":
        place.mkdir()
    elif kind == "text file":
        place.write_text("hello\n" * 1000)
    elif kind == "endless file":
        place.symlink_to("/dev/zero")
    with pytest.raises(CrashlendError) as caught:
        open_host(place)
    assert caught.value.hint


@given(
    st.sampled_from(sorted(host())),
    st.binary(max_size=40),
)
@settings(max_examples=300, deadline=None)
def test_no_content_of_a_file_breaks_facts(path: str, content: bytes) -> None:
    """Any bytes in any file: facts are read, and survive as JSON."""
    from crashlend.jsonable import from_json, to_json

    some = facts(files={path: content})
    assert from_json(Facts, to_json(some)) == some


@pytest.mark.parametrize(
    ("cmdline", "port"),
    [
        (b"ro console=tty0 console=ttyS0,115200n8\n", 0x3F8),
        (b"console=ttyS0 console=ttyS1\n", 0x2F8),
        (b"console=ttyS1 console=tty0\n", 0x2F8),
        (b"console=ttyS0 console=ttyS4\n", 0x3F8),
        (b"console=ttyS9\n", None),
        (b"xconsole=ttyS0 console=ttyAMA0\n", None),
    ],
)
def test_the_serial_port_is_that_of_the_last_console(cmdline: bytes, port: int | None) -> None:
    """The last console=ttyS behind an I/O port; a UART in memory (0x0) is none."""
    files: dict[str, bytes | None] = {
        f"/sys/class/tty/ttyS{n}/port": text
        for n, text in ((0, b"0x3F8\n"), (1, b"0x2F8\n"), (4, b"0x0\n"))
    }
    assert facts(cmdline=cmdline, files=files).serial_port == port
