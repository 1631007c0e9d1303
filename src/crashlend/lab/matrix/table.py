# SPDX-License-Identifier: LGPL-2.1-or-later
"""The table of a matrix: TOML whose rows are trials, told in the words of ``lab trial``. Pure.

    [defaults]
    memory = "2G"

    [[trial]]
    kernel = ["6.1", "7.3"]
    firmware = ["bios", "uefi"]
    lend = "512M"

A value that is a list stands for each of its elements: this row is four cells. A flag that may be
given more than once (dimm) takes a list in the list. Beside the flags a row has ``expect``
(refused, lost, "came back", corrupted), ``words`` and ``exit``, as a trial of the suite has.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Callable

import tomllib

from crashlend.errors import EXIT_REFUSED, UsageError
from crashlend.lab.kernels import is_name
from crashlend.lab.spec import CAME_BACK, CORRUPTED, LOST, REFUSED, Spec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    # The words of a trial's flags to its kernel's name and the other fields of its Spec;
    # UsageError for what ``lab trial`` would not take.
    Parse = Callable[[Sequence[str]], tuple[str, Mapping[str, Any]]]

DEFAULTS, TRIAL = "defaults", "trial"
EXPECTATIONS = ("", REFUSED, LOST, CAME_BACK, CORRUPTED)
# what a row says beside the flags of a trial, and the type of each
BESIDE: dict[str, type] = {"expect": str, "words": str, "exit": int}
# flags that mean this machine's files, or this terminal
HERE_ALONE = ("keep", "json", "modules")
HOST = ("kernel", "lender", "firmware")  # what a cell is named by


@dataclass(frozen=True)
class Cell:
    """One trial of a matrix: plain JSON, so that any machine can run it.

    ``kernel`` is a name that ``lab kernels`` lists, ``spec`` the other fields of a Spec; ``expect``,
    ``words`` and ``exit`` are those of spec.Trial. ``name`` is for people, and unique in its table.
    """

    name: str
    kernel: str
    spec: dict[str, Any]
    expect: str = ""
    words: str = ""
    exit: int = EXIT_REFUSED

    @property
    def id(self) -> str:
        """Twelve hex digits of what this trial is told; the same in every table and order.

        A field that has its default does not count: a flag that comes later changes no id.
        """
        fields = Spec.__dataclass_fields__
        told = {
            key: value
            for key, value in _plain(self.spec).items()
            if key not in fields or value != _plain(fields[key].default)
        }
        content: dict[str, Any] = {"kernel": self.kernel, "spec": told}
        if self.expect:
            content |= {"expect": self.expect, "words": self.words, "exit": self.exit}
        text = json.dumps(content, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        """What :meth:`from_json` reads back, on any machine."""
        content: dict[str, Any] = _plain(asdict(self))
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Cell:
        """The cell that ``to_json`` made this of."""
        spec = {k: tuple(v) if isinstance(v, list) else v for k, v in content["spec"].items()}
        return cls(**{**content, "spec": spec})


def read_table(text: str, parse: Parse) -> list[Cell]:
    """The cells of a table, in the order of its rows; UsageError says which row and key is off."""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError("the table is not TOML", str(error)) from None
    unknown = sorted(set(content) - {DEFAULTS, TRIAL})
    if unknown:
        raise UsageError(
            "cannot read the table", f"[{unknown[0]}] is not known", hint="[defaults], [[trial]]"
        )
    defaults, rows = content.get(DEFAULTS, {}), content.get(TRIAL, [])
    is_rows = isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
    if not isinstance(defaults, dict) or not is_rows or not rows:
        why = "it has no [[trial]]" if not rows else "write [defaults] once and [[trial]] per row"
        raise UsageError("cannot read the table", why)
    cells: list[Cell] = []
    origin: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        for values in _products({**defaults, **row}, f"trial {number}"):
            cell = _cell(values, f"trial {number}", parse)
            if cell.id in origin:
                why = f"it is in trial {origin[cell.id]} already: {_host(cell)}"
                raise UsageError(f"trial {number}", why, hint="each guest is to be there once")
            origin[cell.id] = number
            cells.append(cell)
    return _named(cells)


def _products(row: Mapping[str, Any], where: str) -> Iterator[dict[str, Any]]:
    """Every combination of the row's values; the last key changes fastest."""
    for key, value in row.items():
        if value == []:
            raise UsageError(f"{where}, {key}", "the list is empty", hint="leave the key out")
    choices = [value if isinstance(value, list) else [value] for value in row.values()]
    for values in itertools.product(*choices):
        yield dict(zip(row, values, strict=True))


def _cell(values: Mapping[str, Any], where: str, parse: Parse) -> Cell:
    beside = {key: value for key, value in values.items() if key in BESIDE}
    for key, value in beside.items():
        if type(value) is not BESIDE[key]:
            raise UsageError(f"{where}, {key}", f"{value!r} is not of type {BESIDE[key].__name__}")
    if beside.get("expect", "") not in EXPECTATIONS:
        hint = ", ".join(filter(None, EXPECTATIONS))
        raise UsageError(f"{where}, expect", f"{beside['expect']!r} is not known", hint=hint)
    words: list[str] = []
    for key, value in values.items():
        if key in BESIDE:
            continue
        one = _words(key, value, where)
        try:
            parse(one)  # by itself, so that the error is this key's
        except UsageError as error:
            raise UsageError(f"{where}, {key} = {value!r}", str(error), hint=error.hint) from None
        words += one
    kernel, fields = parse(words)
    if not is_name(kernel):
        why = f"{kernel!r} is no kernel that every machine can fetch"
        raise UsageError(f"{where}, kernel", why, hint="a name of crashlend lab kernels")
    return Cell("", kernel, dict(fields), **beside)


def _words(key: str, value: object, where: str) -> list[str]:
    """The flag as it would stand on the command line."""
    if key in HERE_ALONE:
        raise UsageError(f"{where}, {key}", "a matrix has it for all trials, or not at all")
    if key == "kernel" and not isinstance(value, str):
        # 6.10 would be 6.1
        raise UsageError(f"{where}, {key} = {value!r}", "it is a name", hint=f'write "{value}"')
    if isinstance(value, bool):
        return [f"--{key}"] if value else []
    if isinstance(value, (str, int, float)):
        return [f"--{key}={value}"]
    if isinstance(value, list) and value:
        return [word for one in value for word in _words(key, one, where)]
    raise UsageError(f"{where}, {key} = {value!r}", "write text, a number, true or false")


def _named(cells: Sequence[Cell]) -> list[Cell]:
    """The cells with their names: kernel, lender and firmware, and what else tells them apart."""
    alike: dict[str, list[Cell]] = {}
    for cell in cells:
        alike.setdefault(_host(cell), []).append(cell)
    named = []
    for cell in cells:
        told = _told(cell)
        others = [_told(other) for other in alike[_host(cell)]]
        keys = [key for key in told if any(other[key] != told[key] for other in others)]
        name = " ".join([_host(cell), *(f"{key}={told[key]}" for key in keys)])
        named.append(replace(cell, name=name))
    return named


def _host(cell: Cell) -> str:
    return " ".join(str(_told(cell)[key]) for key in HOST)


def _told(cell: Cell) -> dict[str, Any]:
    return {**cell.spec, "kernel": cell.kernel, "expect": cell.expect, "words": cell.words}


def _plain(value: Any) -> Any:
    """The value as JSON has it: tuples are lists."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value
