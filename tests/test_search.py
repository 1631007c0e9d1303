# SPDX-License-Identifier: LGPL-2.1-or-later
"""The bench's search on oracles that keep the order, that break it, and that lie now and then."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashlend.lab.bench.search import Finding, Probe, Quest, evaluate, next_size

if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT = 500


def run(quest: Quest, oracle: Callable[[int], bool]) -> list[Probe]:
    """Search to the end; fails when there is none."""
    probes: list[Probe] = []
    while (size := next_size(quest, probes)) is not None:
        assert quest.low <= size <= quest.high
        probes.append(Probe(size, oracle(size)))
        assert len(probes) < LIMIT
    return probes


@st.composite
def quests(draw: st.DrawFn) -> Quest:
    low = draw(st.integers(1, 60))
    high = draw(st.integers(low, low + 250))
    return Quest(
        low,
        high,
        guess=draw(st.integers(low, high)),
        stride=draw(st.integers(1, 16)),
        confirm=draw(st.integers(1, 3)),
    )


@given(quests(), st.integers(0, 320))
def test_the_threshold_is_found_to_the_step(quest: Quest, threshold: int) -> None:
    """Where the order holds the answer is the threshold, confirmed from both sides."""
    probes = run(quest, lambda size: size >= threshold)
    found = evaluate(probes)
    assert found.exceptions == ()
    if threshold > quest.high:
        assert (found.answer, found.below, found.failed) == (None, quest.high, quest.confirm)
    elif threshold <= quest.low:
        assert (found.answer, found.below, found.passed) == (quest.low, None, quest.confirm)
    else:
        expected = Finding(threshold, threshold - 1, (), quest.confirm, quest.confirm, 0)
        assert found == expected


@given(quests(), st.integers(0, 320))
def test_the_search_is_short(quest: Quest, threshold: int) -> None:
    """Doubling strides, then halves: about twice the logarithm of the distance, and confirmation."""
    probes = run(quest, lambda size: size >= threshold)
    distance = abs(min(max(threshold, quest.low), quest.high) - quest.guess)
    strides = (distance // quest.stride + 1).bit_length() + 1
    halves = (2 * distance + 2 * quest.stride + 2).bit_length()
    assert len(probes) <= 1 + strides + halves + 2 * quest.confirm


def test_a_good_guess_costs_its_confirmation_alone() -> None:
    """A guess that is right is seen twice, and so is the size below it."""
    probes = run(Quest(8, 256, guess=91), lambda size: size >= 91)
    assert [p.size for p in probes] == [91, 90, 91, 90]


@given(quests(), st.sets(st.integers(1, 320)))
def test_no_size_above_the_answer_was_seen_to_fail(quest: Quest, enough: set[int]) -> None:
    """Whatever the order: neither the answer nor a larger size failed; exceptions are named."""
    probes = run(quest, lambda size: size in enough)
    found = evaluate(probes)
    failed = {p.size for p in probes if not p.enough}
    passed = {p.size for p in probes if p.enough}
    if found.answer is None:
        assert quest.high not in enough
    else:
        assert found.answer in enough
        assert not [size for size in failed if size >= found.answer]
        assert found.passed >= quest.confirm
        if found.answer > quest.low:
            assert found.below == found.answer - 1
            assert found.failed >= quest.confirm
    assert set(found.exceptions) == {s for s in passed if any(f >= s for f in failed)}


@given(quests(), st.integers(0, 320), st.floats(0, 0.4), st.integers())
def test_noise_neither_hangs_the_search_nor_passes_for_enough(
    quest: Quest, threshold: int, noise: float, seed: int
) -> None:
    """With probes that lie the search ends, and its answer passed every time it was looked at."""
    dice = random.Random(seed)
    probes = run(quest, lambda size: (size >= threshold) != (dice.random() < noise))
    found = evaluate(probes)
    if found.answer is not None:
        looks = [p.enough for p in probes if p.size == found.answer]
        assert all(looks)
        assert len(looks) >= quest.confirm


@given(quests(), st.integers(0, 320), st.integers(0, 40))
def test_an_interrupted_search_goes_on_where_it_was(
    quest: Quest, threshold: int, kept: int
) -> None:
    """Replaying any number of its probes leads to the same ones."""
    probes = run(quest, lambda size: size >= threshold)
    seen = probes[:kept]
    while (size := next_size(quest, seen)) is not None:
        seen.append(Probe(size, size >= threshold))
    assert seen == probes


def test_a_size_that_is_enough_only_sometimes_is_not() -> None:
    """One failure among passes counts, and is told."""
    probes = [Probe(90, True), Probe(89, False), Probe(90, False), Probe(91, True), Probe(91, True)]
    assert evaluate(probes) == Finding(91, 90, (90,), 2, 1, 1)
    assert next_size(Quest(8, 256, guess=90), probes) is None


@pytest.mark.parametrize(
    ("low", "high", "guess", "stride", "confirm"),
    [(5, 4, 5, 1, 2), (1, 9, 10, 1, 2), (1, 9, 0, 1, 2), (1, 9, 5, 0, 2), (1, 9, 5, 1, 0)],
)
def test_what_is_no_search_is_refused(
    low: int, high: int, guess: int, stride: int, confirm: int
) -> None:
    """Bounds the wrong way round, a guess outside, no stride, no probe."""
    with pytest.raises(ValueError, match="not a search"):
        Quest(low, high, guess, stride, confirm)
