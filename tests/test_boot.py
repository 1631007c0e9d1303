# SPDX-License-Identifier: LGPL-2.1-or-later
"""What kernels reserve at boot, on memory maps made here.

The expected places are those of real boots (reference experiments E2, E3, E6), or follow from the
kernel's rules written beside them. The model was also run beside the kernels' own code, compiled in
user space, on tens of thousands of random maps: docs/decisions/0016.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import build
from crashlend.crashkernel.boot import BootMemory, Prediction, predict
from crashlend.crashkernel.early import (
    BRK_BYTES,
    MemoryMap,
    boot_memory,
    kernel_of,
    map_of_facts,
    map_of_size,
)
from crashlend.crashkernel.generations import ROWS, every_kernel, in_words, kernel_for
from crashlend.crashkernel.maps import parse_map
from crashlend.crashkernel.memblock import Free
from crashlend.crashkernel.params import early_words, swiotlb_bytes
from crashlend.errors import CrashlendError, FormatError, UsageError
from crashlend.ranges import Range, Ranges

K, M, G = 1 << 10, 1 << 20, 1 << 30
# QEMU's pc with 2 and 6 GiB: ACPI tables at the top of low memory, 3 GiB of it at most
PC_2G = Ranges([(0x1000, 0x9FC00 // 4096 * 4096), (M, 0x7FFDF000)])
PC_6G = Ranges([(0x1000, 0x9F000), (M, 0xBFFDF000), (4 * G, 7 * G)])
KERNEL = Range(0x1000000, 0x4A00000)
EARLY = Ranges([(0, M), KERNEL])


def run(
    words: str, version: str = "7.3", ram: Ranges = PC_2G, reserved: Ranges = EARLY, **more: object
) -> Prediction:
    memory = BootMemory(ram, reserved, **more)  # type: ignore[arg-type]
    line = " ".join(f"crashkernel={word}" for word in words.split())
    return predict(memory, line.encode(), kernel_for(version))


def places(got: Prediction) -> list[tuple[str, int, int]]:
    return [(r.kind, r.start, r.end) for r in got.ranges]


def texts(got: Prediction) -> list[str]:
    return [m.text for m in got.messages]


def test_the_main_part_is_at_the_top_of_low_memory_and_cma_below_it() -> None:
    """E2, a 2 GiB guest with Linux 7.3: 77000000-7effffff, and 67000000-76ffffff."""
    got = run("128M 256M,cma")
    assert places(got) == [
        ("main", 0x77000000, 0x7F000000),
        ("cma", 0x67000000, 0x77000000),
    ]
    assert texts(got) == [
        "crashkernel reserved: 0x0000000077000000 - 0x000000007f000000 (128 MB)",
        "cma: Reserved 256 MiB at 0x0000000067000000",
        "crashkernel CMA reserved: 256 MB in 1 ranges",
    ]
    assert got.iomem == Ranges([(0x77000000, 0x7F000000)])
    assert (got.production_loses_bytes, got.shared_bytes) == (128 * M, 256 * M)


def test_cma_goes_up_from_4_gib_where_ram_reaches_so_far() -> None:
    """E6, a 6 GiB guest: 512M,cma at 0x100000000, the main part below 4 GiB."""
    got = run("256M 512M,cma", ram=PC_6G)
    assert places(got)[0] == ("main", 0xAF000000, 0xBF000000)
    assert places(got)[1] == ("cma", 0x100000000, 0x120000000)
    # RAM must reach to 4 GiB plus the size
    small = run("256M 512M,cma", ram=Ranges([(M, 0xBFFDF000), (4 * G, 4 * G + 512 * M - 4096)]))
    assert places(small)[1][1] < 4 * G


def test_cma_is_halved_until_it_fits_in_at_most_four_ranges() -> None:
    """1100M in pieces of 600 and 300 MiB: 550 + 275 + 275, as in E3."""
    ram = Ranges([(M, 600 * M), (700 * M, 1000 * M), (1200 * M, 1500 * M), (1600 * M, 1700 * M)])
    got = run("64M 1100M,cma", ram=ram, reserved=Ranges([(0, M)]))
    assert [r.size // M for r in got.of_kind("cma")] == [550, 276, 276]  # whole pageblocks
    assert texts(got)[-1] == "crashkernel CMA reserved: 1100 MB in 3 ranges"
    assert "cma: Failed to reserve 1100 MiB" in texts(got)


def test_an_over_asked_cma_word_takes_nearly_all_and_keeps_it() -> None:
    """16G,cma in 2 GiB: halves from 1 GiB down, four ranges, a warning that calls it failed."""
    got = run("128M 16G,cma")
    sizes = [r.size // M for r in got.of_kind("cma")]
    assert sizes[0] == 1024
    assert len(sizes) == 4
    assert sum(sizes) > 1600
    assert texts(got)[1:3] == [
        "cma: Size (0x0000000400000000) of region at 0x0000000000000000 exceeds limit "
        "(0x000000007ffdf000)",
        "cma: Failed to reserve 16384 MiB",
    ]
    assert texts(got)[-1] == (
        f"crashkernel CMA reservation failed: 16384 MB requested, {sum(sizes)} MB reserved in 4 ranges"
    )


def test_a_size_of_2_64_is_zero_to_the_kernel() -> None:
    """E5's sibling: roundup() wraps ULLONG_MAX to 0, which is declared in vain once."""
    got = run("128M 99999999999999999999999,cma")
    assert got.request.cma_bytes == (1 << 64) - 1
    assert texts(got)[1:] == [
        "cma: Failed to reserve 0 MiB",
        "crashkernel CMA reservation failed: 17592186044415 MB requested, 0 MB reserved in 0 ranges",
    ]


@pytest.mark.parametrize(("word", "size"), [("100K", 2 * M), ("3M", 4 * M), ("2M", 2 * M)])
def test_an_area_is_whole_pageblocks(word: str, size: int) -> None:
    """E5: 100K makes 2 MiB, 3M makes 4 MiB."""
    assert [r.size for r in run(f"128M {word},cma").of_kind("cma")] == [size]


def test_without_config_cma_the_word_is_read_and_nothing_comes_of_it() -> None:
    """E4: the main part is still made."""
    memory = BootMemory(PC_2G, EARLY)
    line = b"crashkernel=128M crashkernel=256M,cma"
    got = predict(memory, line, kernel_for("6.17", config_cma=False))
    assert texts(got)[-1] == "crashkernel CMA reservation not supported"
    assert [kind for kind, _, _ in places(got)] == ["main"]


def test_high_takes_a_low_part_and_falls_back_to_low_memory_alone() -> None:
    got = run("256M,high", ram=PC_6G)
    assert places(got) == [
        ("low", 0xAF000000, 0xBF000000),
        ("main", 0x1B0000000, 0x1C0000000),
    ]
    assert texts(got)[0] == ("crashkernel low memory reserved: 0xaf000000 - 0xbf000000 (256 MB)")
    assert places(run("256M,high")) == [("main", 0x6F000000, 0x7F000000)]
    assert [k for k, _, _ in places(run("256M,high 0,low", ram=PC_6G))] == ["main"]


def test_a_size_that_does_not_fit_below_4_gib_goes_above_with_the_default_low_part() -> None:
    got = run("3000M", ram=PC_6G)
    assert [(k, e - s) for k, s, e in places(got)] == [("low", 256 * M), ("main", 3000 * M)]


def test_without_room_for_the_low_part_the_main_part_is_given_back() -> None:
    """And ,cma finds that memory whole again."""
    ram = Ranges([(M, 128 * M), (4 * G, 6 * G)])
    got = run("1G,high 2G,cma", ram=ram, reserved=Ranges())
    assert texts(got)[0] == "cannot allocate crashkernel low memory (size:0x10000000)."
    assert got.messages[0].level == "err"
    assert places(got) == [("cma", 4 * G, 6 * G)]


@pytest.mark.parametrize(
    ("version", "word", "start"),
    [
        ("7.3", "64M@256M", 256 * M),
        ("7.3", "64M@257M", None),  # CRASH_ALIGN is 16 MiB
        ("6.1", "64M@257M", 257 * M),  # 1 MiB there
        ("6.1", "64M@0x10100001", None),
        ("7.3", "64M@16M", None),  # the kernel is there
        ("7.3", "64M@0xffffffffff000000", None),  # base + size wraps
        ("6.1", "64M@0xffffffffff000000", None),
    ],
)
def test_a_fixed_address_is_taken_or_nothing(version: str, word: str, start: int | None) -> None:
    got = run(word, version)
    assert [s for _, s, _ in places(got)] == ([start] if start else [])
    if start is None:
        assert texts(got) == ["crashkernel reservation failed - memory is in use."]


def test_linux_6_1_says_other_things_and_reads_low_for_plain_words_too() -> None:
    got = run("3000M 64M,low", "6.1", ram=PC_6G)
    ram_mb = PC_6G.size >> 20
    assert texts(got) == [
        "Reserving 64MB of low memory at 2992MB for crashkernel (low RAM limit: 4096MB)",
        f"Reserving 3000MB of memory at 4160MB for crashkernel (System RAM: {ram_mb}MB)",
    ]
    bad = run("3000M x,low", "6.1", ram=PC_6G)
    assert texts(bad)[0] == "crashkernel: memory value expected"
    assert [r.size for r in bad.of_kind("low")] == [256 * M]


def test_linux_6_1_never_looks_below_16_mib() -> None:
    ram = Ranges([(M, 100 * M)])
    assert places(run("84M", "6.1", ram=ram, reserved=Ranges())) == [("main", 16 * M, 100 * M)]
    assert places(run("96M", "6.1", ram=ram, reserved=Ranges())) == []
    assert texts(run("96M", "6.1", ram=ram, reserved=Ranges())) == [
        "crashkernel reservation failed - No suitable area found."
    ]
    assert places(run("84M", "6.12", ram=Ranges([(0, 90 * M)]), reserved=Ranges())) == []


def test_a_generation_without_cma_depends_on_the_order_of_the_words() -> None:
    for version in ("5.10", "6.1", "6.12"):
        assert places(run("128M 256M,cma", version)) == []
        assert [k for k, _, _ in places(run("256M,cma 128M", version))] == ["main"]


def test_high_beside_cma_works_on_6_1_alone_of_the_old_kernels() -> None:
    assert [k for k, _, _ in places(run("1G,cma 256M,high", "6.1"))] == ["main"]
    assert places(run("1G,cma 256M,high", "6.12")) == []


def test_nothing_is_placed_across_a_node() -> None:
    """Two nodes of 1 GiB each, no hole between them."""
    ram = Ranges([(M, 2 * G)])
    got = run("1100M", ram=ram, reserved=Ranges(), boundaries=(G,))
    assert texts(got) == ["cannot allocate crashkernel (size:0x44c00000)"]
    assert places(run("1100M", ram=ram, reserved=Ranges())) != []


def test_arm64_reads_cma_from_7_3_on_and_takes_a_low_part_of_128_mib() -> None:
    memory = BootMemory(Ranges([(G, 3 * G), (5 * G, 9 * G)]), Ranges([(G, G + 64 * M)]))
    line = b"crashkernel=512M,high crashkernel=1G,cma"
    old = predict(memory, line, kernel_for("7.2", "arm64"))
    new = predict(memory, line, kernel_for("7.3", "arm64"))
    assert [(r.kind, r.size) for r in old.ranges] == [("low", 128 * M), ("main", 512 * M)]
    assert [(r.kind, r.start) for r in new.ranges][2] == ("cma", 5 * G)


def test_s390_reads_words_but_is_not_placed() -> None:
    got = predict(
        BootMemory(PC_2G, EARLY), b"crashkernel=128M crashkernel=1G,cma", kernel_for("7.3", "s390x")
    )
    assert not got.modelled
    assert (got.request.accepted, got.request.size_bytes, got.request.cma_bytes) == (
        True,
        128 * M,
        0,
    )
    assert got.ranges == ()


def test_versions_between_rows_are_the_row_before() -> None:
    assert kernel_for("6.16.3-amd64").generation.name == "6.12"
    assert kernel_for("7.1").generation.name == "6.17"
    assert kernel_for("9.0").generation.name == "7.2"
    for text in ("", "6", "x.y", "6.x", "12345.1"):
        with pytest.raises(UsageError):
            kernel_for(text)
    with pytest.raises(UsageError, match="alpha"):
        kernel_for("6.1", "alpha")


def test_versions_in_words() -> None:
    spans = every_kernel("x86_64")
    assert in_words(spans) == "of any version"
    assert in_words(spans[:3]) == "up to 6.16"
    assert in_words([spans[0], spans[3], spans[4]]) == "up to 5.19 and 6.17 or later"
    for arch in ROWS:
        assert every_kernel(arch)[-1].last == ""


# --- the search ----------------------------------------------------------------------------------


@st.composite
def memories(draw: st.DrawFn) -> BootMemory:
    unit = draw(st.sampled_from([4 * K, M, 64 * M]))
    edge = st.integers(0, 200).map(lambda n: n * unit)
    ram = Ranges(draw(st.lists(st.tuples(edge, edge), min_size=1, max_size=8)))
    reserved = Ranges(draw(st.lists(st.tuples(edge, edge), max_size=6)))
    return BootMemory(ram, reserved, tuple(draw(st.lists(edge, max_size=2))))


SIZES = st.sampled_from(["1M", "16M", "100M", "1G", "3G", "12345678", "64M@128M", "0x5000000"])
LINES = st.tuples(
    st.sampled_from(["crashkernel=%s", "crashkernel=%s,high"]),
    SIZES,
    st.sampled_from(["", " crashkernel=%s,cma"]),
    st.sampled_from(["3M", "256M", "8G", "17E", "16E"]),
).map(lambda t: (t[0] % t[1] + (t[2] % t[3] if t[2] else "")).encode())


@given(memories(), LINES, st.sampled_from(["5.10", "6.1", "6.12", "6.17", "7.3"]))
def test_what_is_reserved_was_free_and_nothing_is_reserved_twice(
    memory: BootMemory, line: bytes, version: str
) -> None:
    """On any map: disjoint ranges of free RAM, aligned as the kernel aligns, none across a node."""
    got = predict(memory, line, kernel_for(version))
    free = memory.ram - memory.reserved
    assert sum(r.size for r in got.ranges) == Ranges((r.start, r.end) for r in got.ranges).size
    for r in got.ranges:
        assert free.covers(Ranges([(r.start, r.end)]))
        assert r.start % (2 * M if r.kind == "cma" else M) == 0
        assert not any(r.start < b < r.end for b in memory.boundaries)
    assert len(got.of_kind("cma")) <= 4
    assert predict(memory, line, kernel_for(version)) == got


@given(memories(), st.binary(max_size=200))
def test_any_line_on_any_memory_gives_an_answer(memory: BootMemory, line: bytes) -> None:
    for span in every_kernel("x86_64"):
        predict(memory, b"crashkernel=" + line, span.kernel)
        boot_memory(MemoryMap(memory.ram, memory.reserved), b"memmap=" + line, span.kernel)
        boot_memory(MemoryMap(memory.ram, memory.reserved), line, span.kernel)


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=6),
    st.integers(1, 20),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(0, 60),
    st.integers(0, 60),
    st.booleans(),
)
def test_find_is_the_first_place_from_either_end(
    parts: list[tuple[int, int]], size: int, align: int, start: int, end: int, up: bool
) -> None:
    """Against trying every address; in pages, for the first one is never given."""
    page = 4096
    ranges = Ranges((s * page, e * page) for s, e in parts)
    got = Free(ranges).find(size * page, align * page, start * page, end * page, bottom_up=up)
    good = [
        at
        for at in range(max(start, 1), end - size + 1)
        if at % align == 0 and ranges.covers(Ranges([(at * page, (at + size) * page)]))
    ]
    assert got == ((min(good) if up else max(good)) * page if good else 0)


@given(st.integers(1, 40), st.integers(0, 10))
def test_put_back_undoes_take(size: int, at: int) -> None:
    free = Free(Ranges([(4096, 8192), (10000, 10100)]))
    whole = free.take(10000 + at, size)
    free.put_back(whole)
    assert free.find(100, 1, 0, 1 << 20) == 10000


# --- what was taken before ---------------------------------------------------------------------


def early(words: bytes, ram: Ranges = PC_6G, **more: object) -> BootMemory:
    return boot_memory(MemoryMap(ram, Ranges(), **more), words, kernel_for("7.3"))  # type: ignore[arg-type]


def test_the_first_mib_the_image_and_the_ramdisk_are_taken() -> None:
    got = early(b"", kernel=KERNEL, ramdisk=Range(0xBFD00000, 0xBFFDE123))
    assert got.reserved.covers(Ranges([(0, M), (KERNEL.start, KERNEL.end + BRK_BYTES)]))
    assert got.reserved.covers(Ranges([(0xBFD00000, 0xBFFDF000)]))


def test_node_data_lies_at_the_top_of_each_node() -> None:
    got = early(b"", nodes=(5 * G,))
    for top in (5 * G, 7 * G):
        assert top - 4096 in got.reserved
    known = early(b"", nodes=(5 * G,), node_data=False)
    assert known.reserved == Ranges([(0, M)])


@pytest.mark.parametrize(
    ("words", "ram"),
    [
        (b"mem=1G", [(M, G)]),
        (b"mem=0", [(M, 2 * G)]),
        (b"mem=nopentium", [(M, 2 * G)]),
        (b"memmap=64M$512M", [(M, 512 * M), (576 * M, 2 * G)]),
        (b"memmap=64M#512M,64M!1G", [(M, 512 * M), (576 * M, G), (G + 64 * M, 2 * G)]),
        (b"memmap=1G", [(M, G)]),
        (b"memmap=1G@4G", [(M, 2 * G), (4 * G, 5 * G)]),
        (b"memmap=exactmap memmap=1G@1M", [(M, G + M)]),
        (b"memmap=1G%512M-1+2", [(M, 512 * M), (512 * M + G, 2 * G)]),
        (b"memmap=64M%512M-1", [(M, 512 * M), (576 * M, 2 * G)]),
        (b"memmap=64M%3G+1", [(M, 2 * G), (3 * G, 3 * G + 64 * M)]),
        (b"memmap=64M%512M", [(M, 512 * M), (576 * M, 2 * G)]),
        (b'"memmap=64M$512M"', [(M, 512 * M), (576 * M, 2 * G)]),
        (b"quiet -- mem=1G", [(M, 2 * G)]),
        (b"mem=1G\0 mem=512M", [(M, G)]),
        (b"memmap=", [(M, 2 * G)]),
    ],
)
def test_words_change_memory_as_the_kernel_reads_them(
    words: bytes, ram: list[tuple[int, int]]
) -> None:
    assert early(words, Ranges([(0, 2 * G)])).ram - Ranges([(0, M)]) == Ranges(ram)


def test_where_ram_and_something_else_overlap_it_is_not_ram() -> None:
    found = MemoryMap(Ranges([(M, G)]), Ranges([(512 * M, 513 * M)]))
    got = boot_memory(found, b"memmap=1G@0", kernel_for("7.3"))
    assert not got.ram.meets(Ranges([(512 * M, 513 * M)]))


def test_a_cma_word_comes_before_the_crash_kernel() -> None:
    kernel = kernel_for("7.3")
    line = b"cma=64M crashkernel=128M crashkernel=256M,cma"
    memory = early(line)
    assert 4 * G in memory.reserved
    got = predict(memory, line, kernel)
    assert places(got)[1] == ("cma", 4 * G + 64 * M, 4 * G + 320 * M)
    off = boot_memory(MemoryMap(PC_6G, Ranges()), line, kernel_for("7.3", config_cma=False))
    assert 4 * G not in off.reserved


def test_early_words_are_cut_as_the_kernel_cuts_them() -> None:
    assert list(early_words(b'a=1 "b c=2 3" d-e="x y" f -- g=1')) == [
        (b"a", b"1"),
        (b"b c", b"2 3"),
        (b"d_e", b"x y"),
        (b"f", b""),
    ]


@pytest.mark.parametrize(
    ("words", "size"),
    [
        (b"", 64 * M),
        (b"swiotlb=force", 64 * M),
        (b"swiotlb=noforce", 64 * M),
        (b"swiotlb=0", 64 * M),
        (b"swiotlb=65536", 128 * M),
        (b"swiotlb=262144,force", 512 * M),
        (b"swiotlb=1", 256 * K),
        (b"swiotlb=65536K", 128 * M),
        (b"swiotlb=262144 swiotlb=65536", 128 * M),
        (b"quiet -- swiotlb=262144", 64 * M),
    ],
)
def test_bounce_buffers_are_counted_in_slabs(words: bytes, size: int) -> None:
    assert swiotlb_bytes(words) == size


def test_larger_bounce_buffers_make_the_default_low_part_larger() -> None:
    """max(swiotlb + 8 MiB, 256 MiB), on x86 alone."""
    memory = BootMemory(PC_6G, EARLY)
    for version in ("6.1", "6.12", "7.3"):
        line = b"swiotlb=262144 crashkernel=256M,high"
        got = predict(memory, line, kernel_for(version))
        assert [r.size for r in got.of_kind("low")] == [520 * M]
        assert got.request.low_bytes == 520 * M
    arm = predict(memory, b"swiotlb=262144 crashkernel=256M,high", kernel_for("7.3", "arm64"))
    assert [r.size for r in arm.of_kind("low")] == [128 * M]


def test_a_hosts_memory_is_the_firmwares_and_its_image_where_it_lies() -> None:
    facts = build.facts()
    found = map_of_facts(facts)
    assert found.ram == Ranges(
        (r.start, r.end) for r in facts.firmware_map if r.type == "System RAM"
    )
    assert found.kernel is not None
    assert found.kernel.start == build.TEXT_PHYS
    kernel, how = kernel_of(facts)
    assert kernel.generation.name == "6.1"
    assert "by its version it does not know ,cma" in how


def test_what_a_host_shows_of_cma_counts_more_than_its_version() -> None:
    """RHEL and others backport: crash_cma_ranges is there under a 6.1 that knows ,cma."""
    facts = replace(build.facts(), cma_ranges=())
    kernel, how = kernel_of(facts)
    assert kernel.knows_cma
    assert "it knows ,cma (it tells of such ranges)" in how
    forced, _ = kernel_of(facts, config_cma=True)
    assert forced.carries_cma


@pytest.mark.parametrize("size", [256 * M, 300 * M, G, 2 * G, 3 * G, 64 * G, 1 << 52])
def test_a_typical_machine_of_any_size_boots(size: int) -> None:
    line = b"crashkernel=16M,cma crashkernel=32M"
    memory = boot_memory(map_of_size(size), line, kernel_for("7.3"))
    assert size - 2 * M < memory.ram.size <= size
    assert len(predict(memory, line, kernel_for("7.3")).ranges) == 2


@pytest.mark.parametrize("size", [0, 1, 64 * M - 1, (1 << 52) + 1])
def test_sizes_that_no_machine_has_are_refused(size: int) -> None:
    with pytest.raises(CrashlendError):
        map_of_size(size)


# --- maps as text --------------------------------------------------------------------------------

LOG = b"""\
[    0.000000] BIOS-provided physical RAM map:
[    0.000000] BIOS-e820: [mem 0x0000000000000000-0x000000000009fbff] usable
[    0.000000] BIOS-e820: [mem 0x000000000009fc00-0x000000000009ffff] reserved
[    0.000000] BIOS-e820: [mem 0x0000000000100000-0x000000007ffdefff] usable
[    0.000000] BIOS-e820: [mem 0x000000007ffdf000-0x000000007fffffff] reserved
[    0.000000] RAMDISK: [mem 0x7fdc2000-0x7ffdefff]
[    0.000000] NODE_DATA(0) allocated [mem 0x7fd97000-0x7fdc1fff]
[    0.000000]   node   0: [mem 0x0000000000001000-0x000000000009efff]
[    0.000000]   node   1: [mem 0x0000000040000000-0x000000007ffdefff]
"""
IOMEM = b"""\
00000000-00000fff : Reserved
00001000-0009fbff : System RAM
00100000-7ffdefff : System RAM
  01000000-01c00d47 : Kernel code
  03a40000-045fffff : Kernel bss
  77000000-7effffff : Crash kernel
7ffdf000-7fffffff : Reserved
"""
PLAIN = b"""\
# as in /sys/firmware/memmap
0x0-0x9fbff System RAM
0x9fc00-0x9ffff Reserved

0x100000-0x7ffdefff System RAM
0x7ffdf000-0x7fffffff Reserved
"""


def test_a_log_tells_ram_ramdisk_nodes_and_node_data() -> None:
    found = parse_map(LOG)
    assert found.ram == Ranges([(0, 0x9FC00), (M, 0x7FFDF000)])
    assert found.ramdisk == Range(0x7FDC2000, 0x7FFDF000)
    assert found.nodes == (0x40000000,)
    assert not found.node_data
    assert found.taken == Ranges([(0x7FD97000, 0x7FDC2000)])


def test_a_log_of_7_3_calls_ram_system_ram() -> None:
    newer = LOG.replace(b"usable", b"System RAM").replace(b"reserved", b"device reserved")
    assert parse_map(newer).ram == parse_map(LOG).ram


def test_iomem_tells_the_image_too() -> None:
    found = parse_map(IOMEM)
    assert found.ram == Ranges([(0x1000, 0x9FC00), (M, 0x7FFDF000)])
    assert found.kernel == Range(0x1000000, 0x4600000)


def test_the_three_forms_agree() -> None:
    line = b"crashkernel=128M crashkernel=1G,cma"
    kernel = kernel_for("7.3")
    got = [
        predict(boot_memory(parse_map(text), line, kernel), line, kernel).ranges
        for text in (IOMEM, PLAIN)
    ]
    assert got[0] == got[1]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "no RAM"),
        (b"hello\n", "line 1 is not START-END TYPE"),
        (b"0x1000-0x1fff System RAM\nfoo", "line 2"),
        (b"0x2000-0x1000 System RAM\n", "line 1 ends below its start"),
        (b"0x0-0x1fffffffffffffff System RAM\n", "above 2^52"),
        (b"00000000-00000000 : System RAM\n00000000-00000000 : Reserved\n", "zero"),
        (b"0x1000-0x1fff Reserved\n", "no RAM"),
        (b"BIOS-e820: [mem 0x0-0x0] reserved\n", "no RAM"),
        (b"\xff\xfe\x00", "START-END"),
    ],
)
def test_what_is_no_map_is_refused_with_its_line(text: bytes, why: str) -> None:
    with pytest.raises(FormatError, match=why.replace("^", r"\^")):
        parse_map(text)


def test_entries_of_no_bytes_and_overlaps_are_fine() -> None:
    text = (
        PLAIN + b"0x5000-0x4fff System RAM\n0x200000-0x2fffff Reserved\n0x0-0x1fffff System RAM\n"
    )
    found = parse_map(text)
    memory = boot_memory(found, b"", kernel_for("7.3"))
    assert not memory.ram.meets(Ranges([(0x200000, 0x300000)]))


@given(st.binary(max_size=400))
def test_any_bytes_are_a_map_or_an_error(data: bytes) -> None:
    for text in (data, b"BIOS-e820: [mem 0x" + data, b"00000000-00000fff : " + data):
        with contextlib.suppress(FormatError):
            parse_map(text)


def test_a_map_of_100000_entries_gives_a_result() -> None:
    """Each entry 2 MiB with a hole behind it; the largest run is the last one."""
    lines = [f"{n * 4 * M:#x}-{n * 4 * M + 2 * M - 1:#x} System RAM" for n in range(1, 100_000)]
    lines.append(f"{1 << 40:#x}-{(1 << 40) + G - 1:#x} System RAM")
    line = b"crashkernel=64M,high crashkernel=1G,cma"
    kernel = kernel_for("7.3")
    memory = boot_memory(parse_map("\n".join(lines).encode()), line, kernel)
    got = predict(memory, line, kernel)
    # no piece below 4 GiB holds a low part
    assert texts(got)[0].startswith("cannot allocate crashkernel low memory")
    assert len(memory.ram) > 90_000
    assert 0 < got.shared_bytes <= G


def test_a_map_of_strange_lines_is_refused_or_read_at_once() -> None:
    """Thousands of digits are no node's number; spaces by the hundred thousand are passed over."""
    log = b"BIOS-e820: [mem 0x0-0x7fffffff] usable\nnode  " + b"1" * 5000 + b": [mem 0x0-0xfff]\n"
    assert parse_map(log).nodes == ()
    wide = b" " * 200_000
    line = wide + b"0x0-0x7fffffff" + wide + b"System RAM" + wide + b"\n"
    assert parse_map(line).ram.size == 2 * G
    with pytest.raises(FormatError):
        parse_map(b"0-1" + wide.replace(b" ", b"x ") + b"\n")
