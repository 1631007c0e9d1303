# SPDX-License-Identifier: LGPL-2.1-or-later
"""Facts of hosts that no one has under the desk: hundreds of GiB to 64 TiB, many nodes, holes.

Shaped as such servers are: node 0 has memory below a 2 GiB hole for devices, each node begins at a
boundary of its own, memory blocks have 2 GiB, and firmware keeps odd pieces here and there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from build import GIB, MIB, PAGE, PAGE_OFFSET, PAGE_OFFSET_LA57, facts
from crashlend.facts import CrashNote, Facts, FirmwareRange, MemoryBlock
from crashlend.formats.procfs import Resource, Zone
from crashlend.lenders.census import BlockCensus

TIB = 1 << 40
BIG_BLOCK = 2 * GIB
HOLE = (2 * GIB - 64 * MIB, 4 * GIB)  # devices, flash
LOW_PART = (1 * GIB, 1 * GIB + 256 * MIB)


@dataclass(frozen=True)
class Big:
    """A host of ``nodes`` × ``node_bytes``; node n begins at n × ``stride_bytes``.

    ``odd_bytes`` of the last node's end are missing, and firmware keeps ``pieces`` stretches of
    64 KiB in each node.
    """

    nodes: int
    node_bytes: int
    stride_bytes: int
    la57: bool = False
    cpus: int = 256
    pieces: int = 2
    odd_bytes: int = 0

    def spans(self) -> list[tuple[int, int, int]]:
        """(node, start, end) of memory above 1 MiB, holes left out."""
        out = [(0, MIB, HOLE[0])]
        for node in range(self.nodes):
            start = max(node * self.stride_bytes, HOLE[1])
            end = node * self.stride_bytes + self.node_bytes
            if node == self.nodes - 1:
                end -= self.odd_bytes
            for piece in range(self.pieces):
                hole = start + (end - start) * (piece + 1) // (self.pieces + 1) // PAGE * PAGE
                out.append((node, start, hole))
                start = hole + 64 * 1024
            out.append((node, start, end))
        return out

    def facts(self, *, census: bool = False) -> Facts:
        """The facts, with 512 MiB reserved at the top of node 0 and 256 MiB below 4 GiB."""
        spans = self.spans()
        top = max(end for node, _, end in spans if node == 0) // BIG_BLOCK * BIG_BLOCK
        parts = (LOW_PART, (top - 512 * MIB, top))
        ram = [Resource(0x1000, 0x9F000, "System RAM", 0)]
        for _, start, end in spans:
            ram.append(Resource(start, end, "System RAM", 0))
            ram += [Resource(*p, "Crash kernel", 1) for p in parts if start <= p[0] < end]
        kept = [FirmwareRange(0x9F000, 0x100000, "Reserved"), FirmwareRange(*HOLE, "Reserved")]
        for (_, _, end), (_, start, _) in zip(spans[1:], spans[2:]):
            if start - end == 64 * 1024:
                kept.append(FirmwareRange(end, start, "ACPI Non-volatile Storage"))
                ram.append(Resource(end, start, "ACPI Non-volatile Storage", 0))
        known = [FirmwareRange(r.start, r.end, r.name) for r in ram if r.name == "System RAM"]
        blocks = self._blocks(spans)
        return replace(
            facts(),
            iomem=tuple(sorted(ram, key=lambda r: (r.start, r.depth))),
            firmware_map=tuple(sorted([*known, *kept], key=lambda r: r.start)),
            block_bytes=BIG_BLOCK,
            blocks=blocks,
            zones=self._zones(spans),
            meminfo={
                "MemTotal": sum(end - start for _, start, end in spans) * 63 // 64,
                "MemAvailable": sum(end - start for _, start, end in spans) // 2,
            },
            cpu_flags=("la57", "pdpe1gb") if self.la57 else ("pdpe1gb",),
            page_offset=PAGE_OFFSET_LA57 if self.la57 else PAGE_OFFSET,
            crash_notes=tuple(CrashNote(c, 8 * GIB + c * PAGE, 368) for c in range(self.cpus)),
            crash_size_bytes=sum(end - start for start, end in parts),
            block_census=tuple(
                BlockCensus(b.index, BIG_BLOCK // PAGE, 0, b.index % 5 == 0, 0, 0, 0)
                for b in blocks
            )
            if census
            else (),
        )

    def _blocks(self, spans: list[tuple[int, int, int]]) -> tuple[MemoryBlock, ...]:
        owner = {
            index: node
            for node, start, end in reversed(spans)
            for index in range(start // BIG_BLOCK, -(-end // BIG_BLOCK))
        }
        zones = {0: ("none",), 1: ("DMA32",)}
        return tuple(
            MemoryBlock(index, "online", zones.get(index, ("Normal",)), owner[index])
            for index in sorted(owner)
        )

    def _zones(self, spans: list[tuple[int, int, int]]) -> tuple[Zone, ...]:
        out = [Zone(0, "DMA32", 0x1000, 0x80000, 0x7F000, 0x7E000, 0x40000)]
        for node in range(self.nodes):
            mine = [(start, end) for n, start, end in spans if n == node and start >= HOLE[1]]
            pages = sum(end - start for start, end in mine) // PAGE
            first = mine[0][0] // PAGE
            out.append(Zone(node, "Normal", first, pages, pages, pages * 63 // 64, pages // 2))
        return tuple(out)


BIG_HOSTS = {
    "512 GiB": Big(nodes=2, node_bytes=256 * GIB, stride_bytes=256 * GIB, cpus=64),
    "1 TiB": Big(nodes=2, node_bytes=512 * GIB, stride_bytes=512 * GIB, odd_bytes=3 * MIB + PAGE),
    "6 TiB": Big(nodes=8, node_bytes=768 * GIB, stride_bytes=TIB, cpus=448, pieces=5),
    "64 TiB": Big(nodes=32, node_bytes=2 * TIB, stride_bytes=4 * TIB, la57=True, cpus=1792),
}
