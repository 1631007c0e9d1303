# SPDX-License-Identifier: LGPL-2.1-or-later
"""Frozen dataclasses to JSON and back: ``from_json(T, to_json(x)) == x`` for every x.

Only what Facts and Plan are made of: dataclasses, named tuples of ints, tuples, str-keyed dicts,
Optional, str, int, float, bool and None.
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, TypeVar, Union

from crashlend.errors import FormatError
from crashlend.ranges import Ranges

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """Turn ``value`` into what ``json.dumps`` takes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Ranges):
        return value.to_json()
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    return value


def from_json(kind: type[T], value: Any, where: str = "$") -> T:
    """Build a ``kind`` from what :func:`to_json` made; FormatError names the path that is off."""
    result: T = _convert(kind, value, where)
    return result


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    if origin is Union:
        inner = [arg for arg in typing.get_args(kind) if arg is not type(None)]
        return None if value is None else _convert(inner[0], value, where)
    if kind is Ranges:
        pairs = _convert(typing.Tuple[typing.Tuple[int, int], ...], value, where)  # noqa: UP006
        return Ranges(pairs)
    if origin is tuple or (isinstance(kind, type) and issubclass(kind, tuple)):
        _expect(value, list, where)
        args = typing.get_args(kind) or tuple(typing.get_type_hints(kind).values())
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_convert(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
        if len(args) != len(value):
            raise FormatError("JSON", f"{where}: {len(args)} items expected, {len(value)} found")
        items = [_convert(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, value))]
        return kind(*items) if origin is None else tuple(items)
    if origin is dict:
        _expect(value, dict, where)
        item = typing.get_args(kind)[1]
        return {key: _convert(item, v, f"{where}.{key}") for key, v in value.items()}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        _expect(value, dict, where)
        hints = typing.get_type_hints(kind)
        names = {f.name for f in dataclasses.fields(kind)}
        if names != set(value):
            odd = ", ".join(sorted(names ^ set(value)))
            raise FormatError("JSON", f"{where}: keys missing or unknown: {odd}")
        return kind(**{n: _convert(hints[n], value[n], f"{where}.{n}") for n in names})
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    _expect(value, kind, where)
    if kind is int and isinstance(value, bool):
        raise FormatError("JSON", f"{where}: int expected, bool found")
    return value


def _expect(value: Any, kind: type, where: str) -> None:
    if not isinstance(value, kind):
        raise FormatError(
            "JSON", f"{where}: {kind.__name__} expected, {type(value).__name__} found"
        )
