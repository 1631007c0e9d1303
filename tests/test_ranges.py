# SPDX-License-Identifier: LGPL-2.1-or-later
"""Ranges, against sets of ints."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from crashlend.ranges import Range, Ranges, align_down, align_up

numbers = st.integers(0, 60)
pairs = st.lists(st.tuples(numbers, numbers), max_size=8)
alignments = st.integers(1, 16)


def as_set(ranges: Ranges) -> set[int]:
    return {value for start, end in ranges for value in range(start, end)}


def pairs_set(items: list[tuple[int, int]]) -> set[int]:
    return {value for start, end in items for value in range(start, end)}


@given(pairs)
def test_any_pairs_become_the_same_set(items: list[tuple[int, int]]) -> None:
    """Order, overlaps, empty and inverted pairs change nothing but the notation."""
    assert as_set(Ranges(items)) == pairs_set(items)


@given(pairs)
def test_items_are_ascending_disjoint_and_apart(items: list[tuple[int, int]]) -> None:
    """There is one notation for a set: no empty, touching or unsorted range."""
    found = list(Ranges(items))
    assert all(r.start < r.end for r in found)
    assert all(a.end < b.start for a, b in zip(found, found[1:]))


@given(pairs, pairs)
def test_operators_are_those_of_sets(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> None:
    """Union, intersection, difference, covers and meets agree with Python's sets."""
    x, y = Ranges(a), Ranges(b)
    assert as_set(x | y) == as_set(x) | as_set(y)
    assert as_set(x & y) == as_set(x) & as_set(y)
    assert as_set(x - y) == as_set(x) - as_set(y)
    assert x.covers(y) == (as_set(x) >= as_set(y))
    assert x.meets(y) == bool(as_set(x) & as_set(y))


@given(pairs, pairs)
def test_equal_sets_are_equal_and_hash_alike(
    a: list[tuple[int, int]], b: list[tuple[int, int]]
) -> None:
    """Equality is equality of sets, not of how they were written."""
    x, y = Ranges(a), Ranges(b)
    assert (x == y) == (as_set(x) == as_set(y))
    assert hash((x | y) - y) == hash(x - y)


@given(pairs)
def test_size_truth_and_membership(items: list[tuple[int, int]]) -> None:
    """Size counts members, an empty set is false, ``in`` finds exactly the members."""
    ranges, members = Ranges(items), pairs_set(items)
    assert ranges.size == len(members)
    assert bool(ranges) == bool(members)
    assert {v for v in range(-1, 62) if v in ranges} == members


@given(pairs, alignments)
def test_aligning_inwards_keeps_only_whole_units(
    items: list[tuple[int, int]], alignment: int
) -> None:
    """A unit is kept exactly when every one of its integers is a member."""
    members = pairs_set(items)
    units = {
        v
        for v in members
        if {*range(v // alignment * alignment, (v // alignment + 1) * alignment)} <= members
    }
    assert as_set(Ranges(items).align_inwards(alignment)) == units


@given(pairs, alignments)
def test_aligning_outwards_adds_whole_units(items: list[tuple[int, int]], alignment: int) -> None:
    """A unit is there exactly when one of its integers was a member."""
    units = {v // alignment for v in pairs_set(items)}
    grown = as_set(Ranges(items).align_outwards(alignment))
    assert grown == {v for u in units for v in range(u * alignment, (u + 1) * alignment)}


@given(pairs)
def test_json_gives_the_set_back(items: list[tuple[int, int]]) -> None:
    """``to_json`` holds half-open pairs from which the same set is made."""
    ranges = Ranges(items)
    assert Ranges((s, e) for s, e in ranges.to_json()) == ranges


@given(st.integers(0, 1 << 64), st.integers(1, 1 << 40))
def test_align_up_and_down_bound_the_value(value: int, alignment: int) -> None:
    """The multiples on both sides are less than one alignment away."""
    up, down = align_up(value, alignment), align_down(value, alignment)
    assert down <= value <= up
    assert up % alignment == down % alignment == 0
    assert up - value < alignment
    assert value - down < alignment


def test_a_range_shows_as_hexadecimal() -> None:
    """Addresses in messages are hexadecimal, ends are half-open."""
    assert str(Range(0x1000, 0x2000)) == "0x1000-0x2000"
    assert Range(0x1000, 0x3000).size == 0x2000
