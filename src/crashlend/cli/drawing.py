# SPDX-License-Identifier: LGPL-2.1-or-later
"""Physical memory as a drawing for the terminal: one line per stretch, one cell per few MiB."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crashlend.cli.output import BLUE, DIM, RED, styled
from crashlend.ranges import Ranges
from crashlend.sizes import mib

if TYPE_CHECKING:
    from collections.abc import Sequence

COLUMNS = 64
MAX_LINES = 16
GIB = 1 << 30


@dataclass(frozen=True)
class Layer:
    """One kind of memory: what is drawn later covers what was drawn before."""

    name: str
    ranges: Ranges
    glyph: str
    plain: str
    style: str


def memory_layers(ram: Ranges, lent: Ranges, reservation: Ranges) -> list[Layer]:
    """The three kinds of memory of every drawing, in the words of the tables."""
    return [
        Layer("production", ram, "·", ".", DIM),
        Layer("shared until the crash", lent, "▒", "L", BLUE),
        Layer("taken from production", reservation, "█", "R", RED),
    ]


def draw_memory(layers: Sequence[Layer], *, unicode: bool, max_lines: int = MAX_LINES) -> list[str]:
    """Draw the layers over the addresses they span; lines without any memory are left out."""
    everything = Ranges()
    for layer in layers:
        everything |= layer.ranges
    if not everything:
        return []
    cell = 1 << 24
    touched = everything.align_outwards(cell * COLUMNS)
    while touched.size // (cell * COLUMNS) > max_lines:
        cell *= 2
        touched = touched.align_outwards(cell * COLUMNS)
    lines = []
    starts = (start for part in touched for start in range(part.start, part.end, cell * COLUMNS))
    for start in starts:
        stretch = Ranges([(start, start + cell * COLUMNS)])
        cells = [" "] * COLUMNS
        for layer in layers:
            for part in layer.ranges & stretch:
                first, last = (part.start - start) // cell, (part.end - 1 - start) // cell
                for index in range(first, last + 1):
                    cells[index] = styled(layer.glyph if unicode else layer.plain, layer.style)
        lines.append(f"{start / GIB:7.2f} GiB {''.join(cells)}")
    legend = ", ".join(
        f"{styled(layer.glyph if unicode else layer.plain, layer.style)} {layer.name}"
        for layer in layers
        if layer.ranges
    )
    return [*lines, f"            {legend}; each cell is {mib(cell)}"]
