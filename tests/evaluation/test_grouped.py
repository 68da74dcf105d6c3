"""Rates whose groups are resampled, against values computed by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from personainfer.evaluation.grouped import (
    delta_pq,
    group_sums,
    length_controlled_rate,
    mean_by_group,
    rate_by_group,
    win_rate_by_group,
)
from personainfer.evaluation.statistics import wilson
from personainfer.exceptions import InvalidArgumentError

NAN = math.nan


def test_sums_of_each_group() -> None:
    items = np.array([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])
    assert group_sums(items, np.array([7, 3, 7])).tolist() == [[2, 20], [5, 50]]


def test_a_mean_is_over_items_and_its_n_counts_groups() -> None:
    found = mean_by_group([1, 1, 1, 5, NAN], [0, 0, 0, 1, 2])
    assert (found.value, found.n) == (2.0, 2)  # (1 + 1 + 1 + 5) / 4; the third group has nothing
    assert math.isnan(mean_by_group([NAN], [0]).value)


def test_a_repeated_group_changes_nothing() -> None:
    scores, groups = np.array([1, 0, 0, 1, 1, 0.5]), np.arange(6)
    once = rate_by_group(scores, groups)
    thrice = rate_by_group(np.tile(scores, 3), np.tile(groups, 3))
    assert thrice == once
    independent = rate_by_group(np.tile(scores, 3), np.arange(18))
    assert independent.high - independent.low < 0.7 * (once.high - once.low)


def test_a_rate_of_one_is_not_certain() -> None:
    found = rate_by_group([1, 1, 1, 1], [0, 0, 1, 2])
    assert (found.low, found.high, found.n) == pytest.approx((wilson(3, 3).low, 1, 3))
    assert rate_by_group([0, 0], [0, 1]) == wilson(0, 2)


def test_wins_ties_losses_and_missing_judgements() -> None:
    found = win_rate_by_group([1, 1, 1, 0, 0, -1, NAN], range(7))
    assert (found.wins, found.ties, found.losses) == (3, 2, 1)
    assert found.rate.value == 3 / 4
    assert found.rate.n == 4
    assert found.rate_with_ties.value == (3 + 2 / 2) / 6
    assert found.rate_with_ties.n == 6


# ΔPQ = W_P + W_Q - 1


@pytest.mark.parametrize(
    ("personalization", "quality", "expected"),
    [
        ([1, 1, 1, -1], [1, -1, 1, -1], 0.75 + 0.5 - 1),
        ([1, 1, 0, -1], [-1, 1, 0, -1], 2 / 3 + 1 / 3 - 1),
        ([1, NAN, 0, -1], [1, 1, 1, -1], 1 / 2 + 3 / 4 - 1),  # a missing judgement leaves the other
        ([1, 1, 1, 1], [1, 1, 1, 1], 1.0),
        ([-1, -1, -1, 0], [-1, -1, NAN, -1], -1.0),
    ],
    ids=["wins", "ties", "missing", "all won", "all lost"],
)
def test_delta_pq_by_hand(
    personalization: list[float], quality: list[float], expected: float
) -> None:
    found = delta_pq(personalization, quality, range(4))
    assert found.value == pytest.approx(expected)
    assert found.low <= found.value <= found.high
    assert -1 <= found.low < found.high <= 1  # never certain
    lost = delta_pq(-np.array(personalization), -np.array(quality), range(4))
    assert lost.value == pytest.approx(-expected)


def test_delta_pq_is_the_mean_of_both_advantages() -> None:
    """(W - 0.5) / 0.5 of each, as it is explained where it was proposed."""
    random = np.random.default_rng(0)
    p, q = random.choice([-1.0, 0.0, 1.0], size=(2, 50), p=[0.2, 0.3, 0.5])
    rates = [win_rate_by_group(one, range(50)).rate.value for one in (p, q)]
    assert delta_pq(p, q, range(50)).value == pytest.approx(
        np.mean([(w - 0.5) / 0.5 for w in rates])
    )


def test_delta_pq_needs_wins_or_losses_of_both() -> None:
    assert math.isnan(delta_pq([0, 0], [1, -1], range(2)).value)
    assert delta_pq([0, NAN], [0, 0], range(2)).n == 0


def test_both_judgements_of_a_prompt_are_resampled_together() -> None:
    """Where one is won just where the other is lost, ΔPQ hardly varies; where they agree, twice as much."""
    quality = np.array([1.0, -1.0] * 50)
    opposite = delta_pq(-quality, quality, range(100))
    same = delta_pq(quality, quality, range(100))
    rest = wilson(0, 100).high  # of the prompts in general, so many may be otherwise
    assert (opposite.value, opposite.low, opposite.high) == pytest.approx((0, -rest, rest))
    # W of 100 prompts at 1/2 has a standard deviation of 0.05, and ΔPQ = 2 W - 1.
    assert same.high - same.low == pytest.approx(2 * 1.96 * 0.1, rel=0.1)


def test_shuffled_rows_and_repeated_prompts_give_the_same_interval() -> None:
    random = np.random.default_rng(1)
    p, q = random.choice([-1.0, 0.0, 1.0], size=(2, 30))
    groups = np.arange(30)
    found = delta_pq(p, q, groups)
    order = random.permutation(30)
    assert delta_pq(p[order], q[order], groups[order]) == found
    assert delta_pq(np.tile(p, 2), np.tile(q, 2), np.tile(groups, 2)) == found


@pytest.mark.parametrize(
    "call",
    [
        lambda: mean_by_group([1.0, 0.0, 1.0], ["a", "b"]),
        lambda: rate_by_group([1.0, 0.0], ["a"]),
        lambda: win_rate_by_group([1, -1], ["a"]),
        lambda: delta_pq([1, 1], [1], ["a", "b"]),
        lambda: delta_pq([1, 1], [1, 1], ["a"]),
        lambda: length_controlled_rate([1, -1], [1.0], ["a", "b"]),
    ],
)
def test_values_and_groups_of_unequal_lengths_are_refused(call: Callable[[], object]) -> None:
    with pytest.raises(InvalidArgumentError, match="shapes"):
        call()
