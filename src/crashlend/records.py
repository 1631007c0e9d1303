# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether the record of a load (state.json's ``loaded``) is one that crashlend can have written. Pure."""

from __future__ import annotations

from typing import Any

RANGES = ("lent", "zone", "cma", "system_ram", "reservation")
NOTE_NUMBERS = 3  # CPU, physical address, bytes


def fault(record: Any) -> str:
    """What is off about a record, in words; empty when nothing is, or there is none.

    All that is there must have its form; what is not there is of an older version.
    """
    if record is None:
        return ""
    if not isinstance(record, dict):
        return "the load is no object"
    bad = [name for name in RANGES if not _are_ranges(record.get(name, []))]
    if not _are_notes(record.get("notes", [])):
        bad.append("notes")
    if not _are_texts(record.get("settings", {})):
        bad.append("settings")
    if not isinstance(record.get("crash_kernel_bytes", 0), (int, type(None))):
        bad.append("crash_kernel_bytes")
    if bad:
        return f"{bad[0]} of the load: {record[bad[0]]!r:.60}"
    return fault(record.get("previous"))


def _are_ranges(value: Any) -> bool:
    """Pairs of integers, each half-open and not empty."""
    return isinstance(value, list) and all(
        _are_numbers(pair, 2) and 0 <= pair[0] < pair[1] for pair in value
    )


def _are_notes(value: Any) -> bool:
    return isinstance(value, list) and all(_are_numbers(note, NOTE_NUMBERS) for note in value)


def _are_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _are_numbers(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(type(x) is int for x in value)
