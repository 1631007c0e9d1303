# SPDX-License-Identifier: LGPL-2.1-or-later
"""Writes docs/proof.md from the results of the trials bytes-… and flips-… (make proof)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HEAD = """\
# Proof to the byte

Written by `make proof` from the results in docs/results. How it is done, and what it does not show:
[decision 14](decisions/0014-proof-to-the-byte.md).

## Is what the crash kernel reads what production had?

The machine is stopped where production ends, at purgatory's entry, and its memory copied. Every byte of
every PT_LOAD of raw /proc/vmcore is compared with that copy. As the negative control single bits are then
flipped in the machine's memory, at the first and the last byte of every range and in a middle: exactly
those bytes must differ, in each PT_LOAD that shows them.

| trial | kernel | lender | the crash kernel runs in | PT_LOADs | bytes compared | differ | bits flipped | bytes found, of |
|---|---|---|---|---|---|---|---|---|
"""
AFTER = """
Compared page by page, nothing outside of the first MiB, lent memory and the reservation changed from the
stop to the machine's end in {calm} of {trials} trials.
"""
ELSEWHERE = "nothing but the crash kernel's own memory changed until the end"
FLIPS = """
## Does a damaged image start?

Stopped at the same place, the loaded image gets one flipped bit, and the machine goes on; then the same
with the next, each from the same state. Places: the edges of each segment's constant bytes, the others
from a seed. Without a flip the crash kernel came up in {up} of {trials} trials.

"""
TABLE = """\
| segment | flips | reset, record and console say why | reset without a reason | crash kernel up | hang |
|---|---|---|---|---|---|
"""
COLUMNS = ("flips", "reset_with_reason", "reset_without_reason", "crash_kernel_up", "hang")
OWN = """
Before it has verified itself, purgatory's own code runs on trust: no program can do so before its first
instruction. A flip there may reset the machine at once, or make a loop endless, which nothing but a hardware
watchdog ends. What its flips led to:

| flips | outcome |
|---|---|
"""


def table_row(*cells: object) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(map(str, cells)) + " |\n"


def bytes_row(name: str, trial: dict[str, Any]) -> str:
    """One trial of the comparison as a line of the table."""
    seen = trial["bytes"]
    shown = sum(s <= a < e for a in seen["flipped"] for s, e, _ in seen["pt_loads"])
    return table_row(
        f"[{name}](results/{name}.json)",
        *(trial["kernel"], trial["lender"]),
        "lent memory" if "-lent-" in name else "the reservation",
        *(len(seen["pt_loads"]), seen["compared_bytes"], seen["differing_bytes"]),
        *(len(seen["flipped"]), f"{seen['control']['differing_bytes']} of {shown}"),
    )


def flips_section(name: str, trial: dict[str, Any]) -> str:
    """One trial of flipped bits: its table by segment, and what became of purgatory's own."""
    seen = trial["flips"]
    text = f"[{name}](results/{name}.json):\n\n{TABLE}"
    for segment, counts in seen["segments"].items():
        text += table_row(segment, *(counts[column] for column in COLUMNS))
    outcomes: dict[str, int] = {}
    for flip in seen["flips"]:
        if flip["segment"] == "purgatory":
            # addresses differ from flip to flip, the kind of end does not
            words = f"{flip['how']}: {flip['reason'].split(' at ')[0] or 'no record of why'}"
            outcomes[words] = outcomes.get(words, 0) + 1
    if outcomes:
        text += OWN + "".join(table_row(n, words) for words, n in sorted(outcomes.items()))
    return text + "\n"


def page(results: Path) -> str:
    """The whole page from a directory of results."""
    trials = {
        path.stem: json.loads(path.read_text())["trial"]
        for pattern in ("bytes-*.json", "flips-*.json")
        for path in sorted(results.glob(pattern))
    }
    text = HEAD
    compared = {name: trial for name, trial in trials.items() if "bytes" in trial}
    text += "".join(bytes_row(name, trial) for name, trial in compared.items())
    calm = sum(
        any(check["name"] == ELSEWHERE and check["ok"] for check in trial["checks"])
        for trial in compared.values()
    )
    text += AFTER.format(calm=calm, trials=len(compared))
    flips = {name: trial for name, trial in trials.items() if "flips" in trial}
    up = sum(trial["flips"]["control"]["how"] == "crash kernel up" for trial in flips.values())
    text += FLIPS.format(up=up, trials=len(flips))
    for name, trial in flips.items():
        if "-boot-" not in name:
            text += flips_section(name, trial)
    for name, trial in flips.items():
        if "-boot-" in name:
            detail = trial["checks"][-1]["detail"]
            text += f"With `on_mismatch = boot` ([{name}](results/{name}.json)): {detail}.\n"
    return text


if __name__ == "__main__":
    sys.stdout.write(page(Path(sys.argv[1])))
