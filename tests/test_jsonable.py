# SPDX-License-Identifier: LGPL-2.1-or-later
"""Dataclasses to JSON and back."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, replace
from typing import Any, Optional, Tuple  # noqa: UP035

import pytest
from hypothesis import given
from hypothesis import strategies as st

from build import GIB, SLAB, facts
from crashlend.errors import FormatError
from crashlend.facts import Facts
from crashlend.jsonable import from_json, to_json
from crashlend.ranges import Range, Ranges

HOSTS = [
    facts(),
    facts(hidden=True),
    facts(cma_ranges=[(4 * GIB, 5 * GIB)], lent=[38, 39], movable=[38, 39], efi=True),
    facts(census={33: [(SLAB, 3)]}, cmdline=b"a=\xff\xfe \xc3\xa9 \x01"),
    facts(files={"/proc/iomem": b"garbage", "/proc/kcore": None}),
]


@dataclass(frozen=True)
class Sample:
    number: int
    share: float
    name: str
    maybe: Optional[int]
    pair: Tuple[int, str]  # noqa: UP006
    ranges: Ranges
    range: Range


SAMPLE = Sample(1, 0.5, "x", None, (2, "y"), Ranges([(1, 4), (6, 9)]), Range(3, 5))


@pytest.mark.parametrize("some", HOSTS)
def test_facts_to_json_and_back_is_identity(some: Facts) -> None:
    """Through real JSON text, with hidden addresses, odd bytes and unread files alike."""
    assert from_json(Facts, json.loads(json.dumps(to_json(some)))) == some


@given(st.binary(max_size=60), st.dictionaries(st.text(max_size=9), st.text(max_size=9)))
def test_any_command_line_survives_json(line: bytes, missing: dict[str, str]) -> None:
    """Bytes that are no UTF-8 come back as the same bytes."""
    some = replace(HOSTS[0], cmdline=line.decode("utf-8", "surrogateescape"), missing=missing)
    back = from_json(Facts, json.loads(json.dumps(to_json(some))))
    assert back == some
    assert back.cmdline_bytes == line


def test_a_plan_s_kinds_of_values_come_back() -> None:
    """Ranges, named tuples, Optional, pairs and floats."""
    assert from_json(Sample, json.loads(json.dumps(to_json(SAMPLE)))) == SAMPLE
    whole = replace(SAMPLE, share=2.0, maybe=3)
    assert from_json(Sample, {**to_json(whole), "share": 2}) == whole


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"number": "1"}, r"\$\.number: int expected, str found"),
        ({"number": True}, r"\$\.number: int expected, bool found"),
        ({"number": None}, r"\$\.number"),
        ({"pair": [1]}, r"\$\.pair: 2 items expected, 1 found"),
        ({"pair": [1, 2]}, r"\$\.pair\[1\]: str expected"),
        ({"ranges": [[1]]}, r"\$\.ranges\[0\]"),
        ({"ranges": [1]}, r"\$\.ranges\[0\]"),
        ({"ranges": [["a", "b"]]}, r"\$\.ranges\[0\]\[0\]"),
        ({"extra": 1}, r"\$: keys missing or unknown: extra"),
    ],
)
def test_wrong_json_is_refused_with_its_path(change: dict[str, Any], where: str) -> None:
    """FormatError names the place; nothing is converted silently."""
    with pytest.raises(FormatError, match=where):
        from_json(Sample, {**to_json(SAMPLE), **change})


def test_a_missing_key_is_refused() -> None:
    """Facts of another version are not half-read."""
    value = to_json(HOSTS[0])
    del value["rsdp"]
    with pytest.raises(FormatError, match="rsdp"):
        from_json(Facts, value)


@given(st.data())
def test_mutated_json_is_read_or_refused(data: st.DataObject) -> None:
    """Any value in any place gives facts or FormatError, no other exception."""
    value = copy.deepcopy(to_json(HOSTS[2]))
    key = data.draw(st.sampled_from(sorted(value)))
    json_value = st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=5,
    )
    value[key] = data.draw(json_value)
    try:
        assert isinstance(from_json(Facts, value), Facts)
    except FormatError as error:
        assert "$" in str(error)  # noqa: PT017
