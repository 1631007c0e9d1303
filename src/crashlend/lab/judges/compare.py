# SPDX-License-Identifier: LGPL-2.1-or-later
"""Two crash images side by side: what a judge's loader left, and what crashlend left.

Every subject is compared, none is left out because it is likely to differ; places inside the
reservation alone are each loader's own business, so of an address there only that counts.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crashlend.formats.cmdline import parameter_name, split
from crashlend.lab.judges.image import BOOT_PARAMS, EFI_SETUP, MAP_TYPES, Header
from crashlend.ranges import Range, Ranges

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from crashlend.lab.judges.image import Entry, Image

KERNEL_TEXT_BASE = 0xFFFFFFFF80000000
NOTHING = "nothing"
INSIDE = "in the reservation"
# what points at a part of the image: a field, and the one with its upper half
POINTERS = (
    ("hdr.ramdisk_image", "ext_ramdisk_image"),
    ("hdr.cmd_line_ptr", "ext_cmd_line_ptr"),
    ("efi_info.efi_memmap", "efi_info.efi_memmap_hi"),
    ("hdr.setup_data", ""),
)
# words whose value is a place in the reservation
ADDRESS_WORDS = ("elfcorehdr",)
SETUP_DATA = {
    1: "SETUP_E820_EXT",
    2: "SETUP_DTB",
    3: "SETUP_PCI",
    9: "SETUP_RNG_SEED",
}
PURGATORYS_RECORD = 0x434C4E44  # "CLND"


@dataclass(frozen=True)
class Finding:
    """One subject: what the judge has, and what crashlend has, in words that may be compared."""

    subject: str
    theirs: str
    ours: str

    @property
    def equal(self) -> bool:
        return self.theirs == self.ours


def compare(theirs: Image, ours: Image, reservation: Ranges) -> list[Finding]:
    """All subjects, equal or not. ``reservation`` are the ranges of crashkernel=."""
    out = [
        *_pointers(theirs, ours, reservation),
        *_fields(theirs, ours),
        *_setup_data(theirs, ours),
        *_efi(theirs, ours),
        *_maps(theirs, ours, reservation),
        *_words(theirs, ours, reservation),
        Finding("initramfs", _ramdisk(theirs), _ramdisk(ours)),
        *_core(theirs, ours),
    ]
    return sorted(out, key=lambda finding: finding.subject)


def told(entries: Iterable[Entry], read: Iterable[Entry]) -> Finding:
    """Whether the memory map that a loader printed is the one that was read from memory."""
    return Finding("the map that the loader printed", show_map(entries), show_map(read))


def show_map(entries: Iterable[Entry]) -> str:
    """A memory map on one line, in ascending order."""
    return ", ".join(f"{e.start:#x}-{e.end:#x} {e.type}" for e in sorted(entries)) or NOTHING


def _pointers(theirs: Image, ours: Image, reservation: Ranges) -> Iterator[Finding]:
    def where(image: Image, low: str, high: str) -> str:
        at = int(image.fields.get(high, 0)) << 32 | int(image.fields.get(low, 0))
        return NOTHING if not at else INSIDE if at in reservation else f"{at:#x}"

    for low, high in POINTERS:
        yield Finding(f"boot_params {low}", where(theirs, low, high), where(ours, low, high))


def _fields(theirs: Image, ours: Image) -> Iterator[Finding]:
    """All of boot_params but the pointers, and but the number of map entries (see _maps)."""
    done = {name for pointer in POINTERS for name in pointer} | {"e820_entries"}
    others = sorted((theirs.fields.keys() | ours.fields.keys()) - BOOT_PARAMS.keys())
    for name in (*BOOT_PARAMS, *others):
        if name not in done:
            yield Finding(f"boot_params {name}", _field(theirs, name), _field(ours, name))


def _field(image: Image, name: str) -> str:
    value = image.fields.get(name, 0)
    if isinstance(value, int):
        return f"{value:#x}"
    data = bytes.fromhex(value).rstrip(b"\0")
    # one byte all over is a filler; what is long is told apart by its digest
    if len(set(data)) == 1:
        return f"{len(data)} times {data[0]:#04x}"
    return data.hex() if len(data) <= 16 else f"sha256 {hashlib.sha256(data).hexdigest()[:16]}"


def _setup_data(theirs: Image, ours: Image) -> Iterator[Finding]:
    kinds = sorted({kind for image in (theirs, ours) for kind, _, _ in image.setup_data})
    for kind in kinds:
        name = SETUP_DATA.get(
            kind, "purgatory's record" if kind == PURGATORYS_RECORD else str(kind)
        )
        yield Finding(f"setup_data {name}", _nodes(theirs, kind), _nodes(ours, kind))


def _nodes(image: Image, kind: int) -> str:
    found = [
        f"{size} bytes, sha256 {digest[:16]}" for k, size, digest in image.setup_data if k == kind
    ]
    return ", ".join(found) or NOTHING


def _efi(theirs: Image, ours: Image) -> Iterator[Finding]:
    """What the crash kernel needs for EFI's runtime services."""
    for name in EFI_SETUP:
        yield Finding(
            f"setup_data SETUP_EFI {name}",
            *(
                f"{image.efi[name]:#x}" if name in image.efi else NOTHING
                for image in (theirs, ours)
            ),
        )
    shown = [
        ", ".join(
            f"{d.phys:#x} {d.pages} pages at {d.virt:#x} type {d.type} attribute {d.attribute:#x}"
            for d in sorted(image.efi_map, key=lambda d: d.phys)
        )
        or NOTHING
        for image in (theirs, ours)
    ]
    yield Finding("EFI memory map", *shown)


def _maps(theirs: Image, ours: Image, reservation: Ranges) -> Iterator[Finding]:
    """The memory map by type, as sets; what of the reservation is no RAM, by what lies there.

    Where in it the core header lies is the loader's choice, and so it is left out of the sets.
    """
    types = [
        *MAP_TYPES.values(),
        *sorted({e.type for i in (theirs, ours) for e in i.memory_map} - set(MAP_TYPES.values())),
    ]
    for kind in types:
        sides = [_of_type(image, kind) - reservation for image in (theirs, ours)]
        yield _sets(f"memory map: {kind}", *sides)
    yield Finding(
        "memory map: not RAM in the reservation",
        *(_left_out(image, reservation) for image in (theirs, ours)),
    )
    yield Finding(
        "memory map: other entries in the reservation",
        *(
            ", ".join(
                sorted(
                    {
                        f"{_holds(image, Range(e.start, e.end))}: {e.type}"
                        for e in image.memory_map
                        if e.type != "RAM" and reservation.meets(Ranges([(e.start, e.end)]))
                    }
                )
            )
            or NOTHING
            for image in (theirs, ours)
        ),
    )
    yield Finding("memory map: entries overlap", *(_overlap(image) for image in (theirs, ours)))


def _of_type(image: Image, kind: str) -> Ranges:
    return Ranges((e.start, e.end) for e in image.memory_map if e.type == kind)


def _overlap(image: Image) -> str:
    entries = sorted(image.memory_map)
    return "yes" if any(a.end > b.start for a, b in zip(entries, entries[1:])) else "no"


def _left_out(image: Image, reservation: Ranges) -> str:
    out = [_holds(image, hole) for hole in reservation - _of_type(image, "RAM")]
    return ", ".join(sorted(out)) or NOTHING


def _holds(image: Image, hole: Range) -> str:
    """What lies in a part of the reservation that the crash kernel may not use as RAM."""
    found = []
    core_at = image.places.get("elfcorehdr", -1)
    if hole.start <= core_at < hole.end:
        found.append("the core header")
    moved = [h for h in image.headers if h.type == "PT_LOAD" and h.offset != h.paddr]
    found += [
        f"a copy of {h.paddr:#x}-{h.end:#x}" for h in moved if hole.start <= h.offset < hole.end
    ]
    return " and ".join(found) or f"{hole.size} bytes of nothing known"


def _words(theirs: Image, ours: Image, reservation: Ranges) -> Iterator[Finding]:
    """Each word that one side alone has, and the order of those that both have."""

    def value(word: str) -> str:
        name, _, text = word.partition("=")
        if name not in ADDRESS_WORDS:
            return word
        scale = 10 if text.endswith("K") else 0
        at = int(text.rstrip("K"), 0) << scale
        return f"{name}={INSIDE}" if at in reservation else word

    sides = [[value(word) for word in split(image.cmdline)] for image in (theirs, ours)]
    both = set(sides[0]) & set(sides[1])
    own = sorted({parameter_name(word) for side in sides for word in side if word not in both})
    for name in own:
        yield Finding(
            f"word {name}",
            *(
                " ".join(w for w in side if parameter_name(w) == name and w not in both) or NOTHING
                for side in sides
            ),
        )
    # where the loader's own word stands means nothing
    rest = [
        " ".join(w for w in side if w in both and w.partition("=")[0] not in ADDRESS_WORDS)
        for side in sides
    ]
    yield Finding("order of the words", *rest)


def _ramdisk(image: Image) -> str:
    return f"{image.ramdisk_bytes} bytes, sha256 {image.ramdisk_sha256[:16]}"


def _core(theirs: Image, ours: Image) -> Iterator[Finding]:
    for name in sorted(theirs.core.keys() | ours.core.keys()):
        sides = [str(image.core.get(name, NOTHING)) for image in (theirs, ours)]
        yield Finding(f"core header {name}", *sides)
    notes = [[h for h in image.headers if h.type == "PT_NOTE"] for image in (theirs, ours)]
    yield Finding("PT_NOTEs in their order", *(_places(side) for side in notes))
    yield from _usual("PT_NOTE", notes)

    loads = [[h for h in image.headers if h.type == "PT_LOAD"] for image in (theirs, ours)]
    text = [[h for h in side if h.vaddr >= KERNEL_TEXT_BASE] for side in loads]
    ram = [[h for h in side if h.vaddr < KERNEL_TEXT_BASE] for side in loads]
    yield Finding("PT_LOAD of the kernel's text", *(_mapped(side) for side in text))
    yield _sets("PT_LOADs of RAM", *(Ranges(map(_span, side)) for side in ram))
    # the same set could be cut in other pieces, or have a byte twice
    yield Finding("PT_LOADs of RAM more than needed", *(str(_needless(side)) for side in ram))
    offsets = [" ".join(sorted({f"{h.vaddr - h.paddr:#x}" for h in side})) for side in ram]
    yield Finding("PT_LOADs: virtual address less physical", *offsets)
    moved = [", ".join(_place(h) for h in side if h.offset != h.paddr) or NOTHING for side in loads]
    yield Finding("PT_LOADs that show another place", *moved)
    yield from _usual("PT_LOAD", loads)
    known = ("PT_NOTE", "PT_LOAD")
    others = [
        ", ".join(h.type for h in image.headers if h.type not in known) or NOTHING
        for image in (theirs, ours)
    ]
    yield Finding("other program headers", *others)


def _usual(kind: str, sides: list[list[Header]]) -> Iterator[Finding]:
    """What all headers of a kind have in common."""
    for name in ("flags", "align"):
        values = [" ".join(sorted({str(getattr(h, name)) for h in side})) for side in sides]
        yield Finding(f"{kind} {name}", *values)
    sizes = ["no" if all(h.filesz == h.memsz for h in side) else "yes" for side in sides]
    yield Finding(f"{kind} with less in the file than in memory", *sizes)


def _span(header: Header) -> tuple[int, int]:
    return header.paddr, header.end


def _place(header: Header) -> str:
    return f"{header.paddr:#x}-{header.end:#x}"


def _places(headers: Iterable[Header]) -> str:
    return ", ".join(map(_place, headers)) or NOTHING


def _needless(headers: list[Header]) -> int:
    """By how many headers are there more than their set has ranges."""
    return len(headers) - len(Ranges(map(_span, headers)))


def _mapped(headers: Iterable[Header]) -> str:
    return ", ".join(f"{_place(h)} at {h.vaddr:#x}" for h in headers) or NOTHING


def _sets(subject: str, theirs: Ranges, ours: Ranges) -> Finding:
    """Two sets: each as it is where they are equal, else what each side has alone."""
    if theirs == ours:
        return Finding(subject, show(theirs), show(ours))
    return Finding(subject, f"also {show(theirs - ours)}", f"also {show(ours - theirs)}")


def show(ranges: Ranges) -> str:
    """Ranges on one line."""
    return ", ".join(str(r) for r in ranges) or NOTHING
