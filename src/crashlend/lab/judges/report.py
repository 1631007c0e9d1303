# SPDX-License-Identifier: LGPL-2.1-or-later
"""docs/judges.md and docs/results/judges.json from what the judges read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from crashlend.errors import CrashlendError
from crashlend.lab.judges.guests import CASES, KERNEL, TOOLS, Reading
from crashlend.lab.judges.known import KNOWN
from crashlend.lab.judges.verdict import judge
from crashlend.lab.markdown import table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from crashlend.lab.judges.verdict import Verdict

HEAD = """\
# Two judges

Written by `make judges` (`crashlend lab judges`) from [results/judges.json](results/judges.json).

A crash kernel finds all it is told through its boot_params: the memory that it may use, its command line,
its initramfs, and the core header that becomes /proc/vmcore. In one guest after the other the same kernel
image and the same initramfs are loaded by crashlend (`kexec_load`) and by two others, and what then really
lies in the reservation is read through /proc/kcore and compared, subject by subject:

- **kernel**: `kexec -s -p`, which has the kernel itself build everything (`kexec_file_load`), with its
  `,cma` ranges where there are any; against `crashlend load --syscall load`, which lends the same ranges.
- **kexec-tools**: `kexec -c -p`, which builds everything in user space and knows nothing of `,cma`; against
  `crashlend load --lender none`.

The reader is not the builder: the tables of boot_params are written from the kernel's header once more and
checked with gcc, and pyelftools reads the core header. Where a loader prints the memory map that it makes
(`kexec -d`), that must be the one that was read.

A subject is equal, or the difference is in `lab/judges/known.py` with its reason. Any other difference
fails, and so does a row of that table that is no longer so
([decision 20](decisions/0020-the-kernel-and-kexec-tools-judge.md)).

## Guests

"""
FIELD = "boot_params "
EMPTY = {"0x0", "0", "nothing", "no"}
COLUMNS = (
    "guest",
    "kernel",
    "shows",
    "judge",
    "subjects",
    "equal",
    "known",
    "unexplained",
    "printed",
)


def verdicts(readings: Iterable[Reading]) -> list[Verdict]:
    """Both judges' verdicts on each guest, by the table of known.py."""
    return [verdict for reading in readings for verdict in judge(reading, KNOWN)]


def machine_in(text: str) -> dict[str, object]:
    """The machine that the readings in that file were made on."""
    return dict(json.loads(text).get("machine", {}))


def json_text(readings: Iterable[Reading], machine: Mapping[str, Any]) -> str:
    """The content of docs/results/judges.json: a line per load, so that people can compare."""
    guests = []
    for reading in readings:
        data = reading.to_json()
        loads = data.pop("loads")
        inner = ",\n".join(
            f"   {json.dumps(name)}: {{\n"
            + ",\n".join(
                f"    {json.dumps(key)}: {json.dumps(value)}" for key, value in load.items()
            )
            + "}"
            for name, load in loads.items()
        )
        guests.append(f'{json.dumps(data)[:-1]}, "loads": {{\n{inner}}}}}')
    body = ",\n  ".join(guests)
    return f'{{"schema": 1,\n "machine": {json.dumps(machine)},\n "guests": [\n  {body}]}}\n'


def readings_from(text: str) -> list[Reading]:
    """The readings in that file; CrashlendError where it has none."""
    try:
        return [Reading.from_json(guest) for guest in json.loads(text)["guests"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise CrashlendError("the file is no readings of lab judges", why) from error


def markdown(readings: Sequence[Reading]) -> str:
    """docs/judges.md."""
    found = verdicts(readings)
    shows = {case.name: case.shows for case in CASES}
    releases = {reading.name: reading.release for reading in readings}
    rows = [
        (
            *(v.guest, releases[v.guest], shows.get(v.guest, ""), v.judge),
            len(v.equal) + len(v.known) + len(v.unknown),
            *(len(v.equal), len(v.known), len(v.unknown), _witness(v)),
        )
        for v in found
    ]
    tools = sorted({reading.kexec_tools for reading in readings})
    return (
        HEAD
        + table(COLUMNS, rows)
        + f"\n*known*: differences that the table below explains; *printed*: whether the map that the "
        f"loader printed agrees with the one that was read. {', '.join(tools)}.\n\n"
        "## Differences, and why they are right\n"
        + "".join(_section(name, found) for name in (KERNEL, TOOLS))
        + _subjects(found)
    )


def _witness(verdict: Verdict) -> str:
    return "differs" if verdict.misread else "agrees" if verdict.witnessed else "none"


def _section(judge_name: str, found: Sequence[Verdict]) -> str:
    """The differences from one judge, each with what both sides have in the first guest that has it."""
    rows: dict[int, list[Any]] = {}
    guests: dict[int, list[str]] = {}
    mine = [v for v in found if v.judge == judge_name]
    for verdict in mine:
        for finding, known in verdict.known:
            rows.setdefault(id(known), [known, finding])
            named = guests.setdefault(id(known), [])
            if verdict.guest not in named:
                named.append(verdict.guest)
    order = {id(known): number for number, known in enumerate(KNOWN)}
    lines = [
        (
            *(finding.subject, _cell(finding.theirs), _cell(finding.ours)),
            "all" if len(guests[key]) == len(mine) else ", ".join(guests[key]),
            *(known.why, known.source),
        )
        for key, (known, finding) in sorted(rows.items(), key=lambda item: order.get(item[0], 0))
    ]
    head = ("subject", judge_name, "crashlend", "guests", "why it is right", "source")
    return f"\n### {judge_name}\n\n" + table(head, lines)


def _cell(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:100]}… ({len(text)} characters)"


def _subjects(found: Sequence[Verdict]) -> str:
    """All that never differs, by the first word; what is empty on every side is counted alone."""
    differ = {f.subject for v in found for f in (*(f for f, _ in v.known), *v.unknown)}
    values: dict[str, set[str]] = {}
    for verdict in found:
        for finding in verdict.equal:
            values.setdefault(finding.subject, set()).add(finding.ours)
    always = {subject: seen for subject, seen in values.items() if subject not in differ}
    told = sorted(subject for subject, seen in always.items() if not seen <= EMPTY)
    fields = [subject for subject in told if subject.startswith(FIELD)]
    others = [subject for subject in told if not subject.startswith(FIELD)]
    return (
        f"\n## Equal in each of the {len(found)} comparisons\n\n"
        f"{len(always)} of {len(always) + len(differ)} subjects, {len(always) - len(told)} of them "
        "zero or nothing on every side. The others:\n\n"
        + "".join(f"- {subject}\n" for subject in others)
        + f"- {len(fields)} fields of boot_params: "
        + ", ".join(subject.removeprefix(FIELD) for subject in fields)
        + "\n"
    )
