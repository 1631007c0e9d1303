# SPDX-License-Identifier: LGPL-2.1-or-later
"""What can go wrong, what crashlend does then, and what shows it: fault_table.py as a page.

docs/what-can-go-wrong.md is that page (``make docs``). Tests hold that every trial and every test that
a row names exists. To add a row, add a Fault to its section in fault_table.py.
"""

from __future__ import annotations

import re

from crashlend.lab.fault_table import HARDWARE, SECTIONS

INTRODUCTION = """\
# What can go wrong

After each of these production has all memory that was not planned to be lent, and there is a verified
dump, or the machine comes back by itself with the reason recorded (capture.json, else the console).
Each row names what shows it: a trial, which crashes a real kernel (`make trial`), or a unit test
(`make unit`). What only real hardware could show is said to be so. This page is made from the table in
src/crashlend/lab/fault_table.py (`make docs`).
"""


def proofs() -> list[str]:
    """All that the table names as a proof, each once, without :data:`HARDWARE`."""
    named = [proof for section in SECTIONS for fault in section.faults for proof in fault.shown]
    return [proof for proof in dict.fromkeys(named) if proof != HARDWARE]


def page() -> str:
    """docs/what-can-go-wrong.md."""
    parts = [INTRODUCTION]
    for section in SECTIONS:
        rows = ["| What | What crashlend does | Shown by |", "|---|---|---|"]
        for fault in section.faults:
            shown = ", ".join(_cite(proof) for proof in fault.shown)
            rows.append(f"| {_cell(fault.what)} | {_cell(fault.then)} | {shown} |")
        parts.append(f"## {section.title}\n\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _cite(proof: str) -> str:
    return proof if proof == HARDWARE else f"`{proof}`"


def _cell(text: str) -> str:
    return re.sub(r"\|", r"\|", text)
