# SPDX-License-Identifier: LGPL-2.1-or-later
"""Prediction against observation: the same addresses, the same messages. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

from crashlend.crashkernel.boot import CMA_PART, LOW_PART, MAIN, predict
from crashlend.ranges import Ranges

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from crashlend.crashkernel.boot import Prediction
    from crashlend.crashkernel.generations import BootKernel
    from crashlend.lab.agree.data import HostRecord, Kept, Result, Seen

KNOWN = "agree/known.json"
MESSAGES, RESERVED, CMA, SIZE = "messages", "reserved", "cma", "crash size"
# kernels whose kexec_crash_size leaves the low part out: before commit 16c6006af4d4, Linux 6.5
_MAIN_ALONE = ("5.10", "6.1")


class Difference(NamedTuple):
    """One thing that is not as predicted, in words."""

    what: str
    predicted: str
    seen: str


@dataclass(frozen=True)
class Verdict:
    """One case, compared. ``reason`` is that of the checked-in list, where the case stands in it.

    ``agrees``: nothing differs. ``fails``: it differs without a reason, or stands in the list
    without differing just so.
    """

    result: Result
    prediction: Prediction
    differences: tuple[Difference, ...]
    reason: str = ""
    listed: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool:
        return not self.differences

    @property
    def fails(self) -> bool:
        return tuple(d.what for d in self.differences) != self.listed


def compare(prediction: Prediction, seen: Seen, kernel: BootKernel) -> tuple[Difference, ...]:
    """Where what was seen is not what was predicted."""
    main_alone = kernel.generation.name in _MAIN_ALONE
    counted = (MAIN,) if main_alone else (MAIN, LOW_PART)
    size = sum(r.size for r in prediction.ranges if r.kind in counted)
    pairs = (
        (
            MESSAGES,
            "\n".join(f"{m.level}: {m.text}" for m in prediction.messages),
            "\n".join(f"{level}: {text}" for level, text in seen.messages),
        ),
        (RESERVED, _ranges(prediction.iomem), _ranges(Ranges(seen.reserved))),
        (CMA, _ranges((r.start, r.end) for r in prediction.of_kind(CMA_PART)), _ranges(seen.cma)),
        (SIZE, str(size), str(seen.crash_size_bytes)),
    )
    return tuple(Difference(*pair) for pair in pairs if pair[1] != pair[2])


def judge(host: HostRecord, result: Result, known: Mapping[str, Known]) -> Verdict:
    """Predict one case from what its host knew, and compare."""
    cmdline = result.cmdline.encode()
    memory, kernel = host.boot(cmdline)
    prediction = predict(memory, cmdline, kernel)
    listed = known.get(result.name, Known((), ""))
    differences = compare(prediction, result.seen, kernel)
    return Verdict(result, prediction, differences, listed.reason, listed.differs)


class Known(NamedTuple):
    """An entry of the checked-in list: what differs, and why that is no bug of the model."""

    differs: tuple[str, ...]
    reason: str


def judge_all(kept: Kept, known: Mapping[str, Known] | None = None) -> tuple[Verdict, ...]:
    """All cases that were kept. ``known`` None: the checked-in list."""
    listed = read_known() if known is None else known
    return tuple(judge(kept.host_of(result), result, listed) for result in kept.results)


def read_known() -> dict[str, Known]:
    """The checked-in list of disagreements, by case."""
    value = json.loads(files("crashlend.lab").joinpath(KNOWN).read_text())
    return {name: Known(tuple(entry["differs"]), entry["reason"]) for name, entry in value.items()}


def _ranges(pairs: Iterable[tuple[int, int]]) -> str:
    return ", ".join(f"{start:#x}-{end:#x}" for start, end in pairs) or "none"
