# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the judges say of a guest: each subject equal, differing for a known reason, or wrong."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from crashlend.lab.judges.compare import Finding, compare, told
from crashlend.lab.judges.guests import CASES, KERNEL, LENDING, OURS, TOOLS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from crashlend.lab.judges.guests import Reading

JUDGES = (KERNEL, TOOLS)
# guest → whose memory map must be seen printed
MUST_PRINT = {case.name: [name for name in JUDGES if name not in case.silent] for case in CASES}


@dataclass(frozen=True)
class Known:
    """One difference that is right. What is not in the table is wrong, and so is what is no longer so.

    ``subject``, ``theirs``, ``ours`` and ``guests`` are shell patterns of what compare.py says and of
    the names of guests.CASES; in every guest that one of ``guests`` matches the difference must be
    there, with each of ``judges``. ``why`` is for people: the reason, why ours is right, and the source
    that shows it.
    """

    subject: str
    theirs: str
    ours: str
    why: str
    source: str
    judges: tuple[str, ...] = JUDGES
    guests: tuple[str, ...] = ("*",)

    def applies(self, guest: str, judge: str) -> bool:
        """Whether the difference must be there."""
        return judge in self.judges and any(fnmatchcase(guest, name) for name in self.guests)

    def explains(self, finding: Finding) -> bool:
        """Whether it is this difference."""
        pairs = ((finding.subject, self.subject), (finding.theirs, self.theirs))
        return all(fnmatchcase(*pair) for pair in (*pairs, (finding.ours, self.ours)))


@dataclass(frozen=True)
class Verdict:
    """What one judge says of one guest.

    ``known`` are differences with their row of the table, ``unknown`` those without one, ``gone`` rows
    of which nothing was seen, ``misread`` what the loader itself printed otherwise. ``mute``: it
    printed no memory map where it must have.
    """

    guest: str
    judge: str
    equal: tuple[Finding, ...]
    known: tuple[tuple[Finding, Known], ...]
    unknown: tuple[Finding, ...]
    gone: tuple[Known, ...]
    misread: tuple[Finding, ...]
    witnessed: bool
    mute: bool = False

    @property
    def passed(self) -> bool:
        return not (self.unknown or self.gone or self.misread or self.mute)

    def complaints(self) -> Iterator[str]:
        """What is wrong, a line each."""
        for finding in self.unknown:
            yield f"{finding.subject}: {self.judge} has {finding.theirs}; crashlend {finding.ours}"
        for row in self.gone:
            yield f"{row.subject}: no longer differs as the table says"
        for finding in self.misread:
            yield f"{finding.subject}: {finding.theirs}; read was {finding.ours}"
        if self.mute:
            yield f"{self.judge} printed no memory map that could be read"


def judge(reading: Reading, table: Sequence[Known]) -> list[Verdict]:
    """Both judges' verdicts on one guest."""
    return [
        _judge(reading, table, name, ours if ours in reading.loads else LENDING)
        for name, ours in OURS.items()
    ]


def _judge(reading: Reading, table: Sequence[Known], theirs: str, ours: str) -> Verdict:
    left, right = reading.loads[theirs], reading.loads[ours]
    findings = compare(left.image, right.image, right.reservation)
    rows = [row for row in table if row.applies(reading.name, theirs)]
    found = [(finding, _row(finding, rows)) for finding in findings if not finding.equal]
    seen = {id(row) for _, row in found if row is not None}
    witness = [] if left.printed is None else [told(left.printed, left.image.memory_map)]
    return Verdict(
        guest=reading.name,
        judge=theirs,
        equal=tuple(finding for finding in findings if finding.equal),
        known=tuple((finding, row) for finding, row in found if row is not None),
        unknown=tuple(finding for finding, row in found if row is None),
        gone=tuple(row for row in rows if id(row) not in seen),
        misread=tuple(finding for finding in witness if not finding.equal),
        witnessed=bool(witness),
        mute=not witness and theirs in MUST_PRINT.get(reading.name, ()),
    )


def _row(finding: Finding, rows: Iterable[Known]) -> Known | None:
    return next((row for row in rows if row.explains(finding)), None)
