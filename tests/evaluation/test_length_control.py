"""A win rate at equal length: where it must differ from the plain one, and where it must not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from personainfer.evaluation.grouped import length_controlled_rate
from personainfer.evaluation.statistics import wilson

NAN = math.nan

Floats = NDArray[np.float64]


def outcomes(advantage: float, by_length: float, n: int = 2000) -> tuple[Floats, Floats]:
    """Drawn from the model itself: longer by 100 characters in the mean."""
    random = np.random.default_rng(0)
    d = random.normal(100, 200, n)
    p = 1 / (1 + np.exp(-(advantage + by_length * np.tanh(d / d.std()))))
    return np.where(random.random(n) < p, 1.0, -1.0), d


def test_a_judge_that_only_likes_length_is_seen_through() -> None:
    won, d = outcomes(0.0, 2.0)
    found = length_controlled_rate(won, d, range(2000), resamples=60)
    assert (won > 0).mean() > 0.62
    assert found.low < 0.5 < found.high
    assert found.value == pytest.approx(0.5, abs=0.04)


def test_an_advantage_beside_a_taste_for_length_is_found() -> None:
    won, d = outcomes(0.7, 1.5)
    found = length_controlled_rate(won, d, range(2000), resamples=60)
    assert found.value == pytest.approx(1 / (1 + math.exp(-0.7)), abs=0.04)
    assert found.low < found.value < found.high


def test_where_length_tells_nothing_it_is_the_plain_rate() -> None:
    """Each length difference comes with the same share of wins: the slope is 0."""
    won, d = [1, 1, -1, 1, 1, -1], [5, 5, 5, -5, -5, -5]
    assert length_controlled_rate(won, d, range(6)).value == pytest.approx(2 / 3)


def test_the_fit_by_hand() -> None:
    """Three of four longer responses won, one of four shorter ones: without the penalty b = log 3 / x.

    With d = ±1, x = tanh(1); the penalty draws b in, by symmetry a stays 0.
    """
    won, d = [1, 1, 1, -1, 1, -1, -1, -1], [1, 1, 1, 1, -1, -1, -1, -1]
    assert length_controlled_rate(won, d, range(8)).value == pytest.approx(0.5)
    # a: 8 p = wins must hold at the solution; one more win at d = 0 moves a, b stays near log 3 / x.
    found = length_controlled_rate([*won, 1, 1], [*d, 0, 0], range(10)).value
    x, share = math.tanh(1 / math.sqrt(0.8)), found
    a = math.log(share / (1 - share))

    def total(b: float) -> float:
        return 4 / (1 + math.exp(-(a + b * x))) + 4 / (1 + math.exp(-(a - b * x))) + 2 * share

    low, high = 0.0, 5.0  # the slope that the penalty leaves: its own equation
    for _ in range(60):
        b = (low + high) / 2
        p, q = (1 / (1 + math.exp(-(a + sign * b * x))) for sign in (1, -1))
        slope = x * (3 - 4 * p) - x * (1 - 4 * q) - b / 2.5**2
        low, high = (b, high) if slope > 0 else (low, b)
    assert total(b) == pytest.approx(6, abs=1e-6)


def test_ties_and_missing_judgements_are_left_out() -> None:
    won, d = outcomes(0.5, 1.0, 60)
    alone = length_controlled_rate(won, d, range(60))
    more = length_controlled_rate([*won, 0, NAN, 1], [*d, 900, 900, NAN], range(63))
    assert more == alone


def test_outcomes_that_length_separates_have_a_finite_fit() -> None:
    won, d = [1] * 10 + [-1] * 5, [*range(1, 11), *range(-5, 0)]
    found = length_controlled_rate(won, d, range(15))
    assert 0.05 < found.low <= found.value <= found.high < 0.95


def test_where_it_cannot_be_told() -> None:
    assert length_controlled_rate([0, NAN], [1, 2], range(2)).n == 0
    constant = length_controlled_rate([1, 1, -1], [7, 7, 7], range(3))
    assert math.isnan(constant.value)
    assert constant.n == 3
    rounded = length_controlled_rate([1, 1, -1], [0.1, 0.1, 0.1], range(3))
    assert math.isnan(rounded.value)
    all_won = length_controlled_rate([1, 1, 1], [7, 8, 9], range(3))
    assert (all_won.value, all_won.low) == pytest.approx((1, wilson(3, 3).low))
    equal = length_controlled_rate([1, 1, -1, 1], [0, 0, 0, 0], range(4))
    assert equal.value == 0.75


def test_one_prompt_has_no_interval() -> None:
    found = length_controlled_rate([1, -1, 1], [5, -3, 4], [0, 0, 0])
    assert 0 < found.value < 1
    assert math.isnan(found.low)
    assert math.isnan(found.high)


LISTS = st.lists(
    st.tuples(st.sampled_from([-1.0, 1.0]), st.integers(-3000, 3000)), min_size=2, max_size=30
)


@pytest.mark.heavy
@given(LISTS)
@settings(max_examples=40)
def test_whatever_the_outcomes_the_sides_can_be_swapped(rows: list[tuple[float, int]]) -> None:
    won, d = (np.array(values, dtype=float) for values in zip(*rows, strict=True))
    assume(len(set(d)) > 1)
    groups = np.arange(len(rows))
    found = length_controlled_rate(won, d, groups, resamples=20)
    swapped = length_controlled_rate(-won, -d, groups, resamples=20)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.value == pytest.approx(1 - swapped.value, abs=1e-6)
    assert (found.low, found.high) == pytest.approx((1 - swapped.high, 1 - swapped.low), abs=1e-6)


def test_shuffled_rows_and_repeated_prompts_give_the_same() -> None:
    won, d = outcomes(0.5, 1.0, 40)
    groups, order = np.arange(40), np.random.default_rng(2).permutation(40)
    found = length_controlled_rate(won, d, groups)
    shuffled = length_controlled_rate(won[order], d[order], groups[order])
    repeated = length_controlled_rate(np.tile(won, 3), np.tile(d, 3), np.tile(groups, 3))
    for other in (shuffled, repeated):
        assert other.n == found.n
        assert (other.value, other.low, other.high) == pytest.approx(
            (found.value, found.low, found.high), abs=1e-6
        )


@pytest.mark.heavy
@pytest.mark.parametrize("seed", range(40))
def test_an_interval_is_never_nan_where_the_rate_is_known(seed: int) -> None:
    """Two personas a prompt, with ties: some resamples hold nothing but wins."""
    random = np.random.default_rng(seed)
    prompts = np.repeat(np.arange(12), 2)
    outcomes = random.choice([1, 1, 1, 0, -1], size=24)
    differences = random.integers(-200, 200, size=24)
    found = length_controlled_rate(outcomes, differences, prompts, resamples=1000)
    assert 0 <= found.low <= found.value <= found.high <= 1
