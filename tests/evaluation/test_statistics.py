"""The numbers: known values, and what must hold for any data."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from personainfer.evaluation.agreement import cohen_kappa, krippendorff_alpha
from personainfer.evaluation.grouped import delta_pq, mean_by_group, win_rate
from personainfer.evaluation.statistics import (
    Estimate,
    benjamini_hochberg,
    bootstrap,
    bootstrap_mean,
    bootstrap_rate,
    holm,
    log_odds,
    paired_difference,
    percentiles,
    t_quantile,
    two_sided_p,
    wilson,
)
from personainfer.exceptions import InvalidArgumentError
from personainfer.users.groups import correlation

FEW: dict[str, Any] = {"resamples": 200}  # enough for what does not depend on how many there are
brief = settings(max_examples=40)
numbers = st.floats(-1e6, 1e6, allow_nan=False)
scores = st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=80)
p_values = st.lists(st.floats(0, 1), min_size=1, max_size=40)
counts = st.lists(
    st.tuples(st.integers(0, 500), st.integers(0, 500)).filter(any), min_size=2, max_size=40
)


def same(one: Estimate, other: Estimate) -> bool:
    return all(
        a == b or (math.isnan(a) and math.isnan(b))
        for a, b in zip(one.to_dict().values(), other.to_dict().values(), strict=True)
    )


@brief
@given(st.lists(numbers, min_size=2, max_size=200))
def test_the_interval_of_a_mean_holds_the_mean(values: list[float]) -> None:
    found = bootstrap_mean(values, **FEW)
    assert found.low <= found.value <= found.high
    assert found.value == pytest.approx(np.mean(values), abs=1e-6)
    assert min(values) - 1e-6 <= found.low
    assert found.high <= max(values) + 1e-6
    assert found.n == len(values)


@pytest.mark.heavy
@brief
@given(st.lists(numbers, min_size=2, max_size=150), st.randoms(use_true_random=False))
def test_the_order_of_the_items_does_not_matter(values: list[float], random: Any) -> None:
    shuffled = random.sample(values, len(values))
    one, other = bootstrap_mean(values, **FEW), bootstrap_mean(shuffled, **FEW)
    assert_allclose(list(one.to_dict().values()), list(other.to_dict().values()), rtol=1e-9)


@pytest.mark.heavy
@brief
@given(scores, scores)
def test_swapping_what_is_compared_changes_the_sign(one: list[float], other: list[float]) -> None:
    n = min(len(one), len(other))
    there = paired_difference(one[:n], other[:n], resamples=4000)
    back = paired_difference(other[:n], one[:n], resamples=4000)
    assert there.value == pytest.approx(-back.value)
    # The draws differ, and another item in one of them moves its mean by up to 2 / n.
    assert there.low == pytest.approx(-back.high, abs=0.05 + 2 / n)


def test_the_interval_agrees_with_the_normal_one_for_many_items() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=1000)
    found = bootstrap_mean(values, resamples=4000)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert_allclose(
        [found.low, found.high], [values.mean() - half, values.mean() + half], atol=0.015
    )


@pytest.mark.parametrize("kinds", [2, 200], ids=["few kinds of items", "many"])
def test_both_ways_of_drawing_have_the_same_spread(kinds: int) -> None:
    """Items of few kinds are drawn by kind: the same distribution."""
    values = np.random.default_rng(1).integers(0, kinds, size=400)
    found = bootstrap_mean(values, resamples=4000)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.06)


@pytest.mark.heavy
def test_an_interval_covers_as_often_as_it_says() -> None:
    random = np.random.default_rng(2)
    found = [bootstrap_rate(random.random(60) < 0.7, resamples=1000) for _ in range(400)]
    covered = np.mean([one.low <= 0.7 <= one.high for one in found])
    assert 0.91 <= covered <= 0.98


def test_what_is_measured_on_one_item_stays_together() -> None:
    """Two equal values an item tell no more than one: the interval must not shrink."""
    once = np.random.default_rng(3).integers(0, 2, size=300).astype(float)
    single, double = bootstrap_rate(once), bootstrap_rate(np.stack([once, once], axis=1))
    assert same(single, double)
    apart = bootstrap_rate(np.concatenate([once, once]))
    assert (apart.high - apart.low) < 0.8 * (double.high - double.low)


def test_missing_values_are_left_out() -> None:
    nan = math.nan
    found = bootstrap_mean([[1.0, nan], [nan, nan], [0.0, 0.5]])
    assert (found.value, found.n) == (0.5, 2)
    assert paired_difference([1.0, nan, 3.0], [0.0, 5.0, nan]).value == 1.0
    assert math.isnan(bootstrap_mean([]).value)
    assert math.isnan(bootstrap_mean([nan, nan]).value)
    assert bootstrap_mean([nan]).n == 0


def test_one_item_has_a_value_and_no_interval() -> None:
    found = bootstrap_mean([2.5])
    assert (found.value, found.n) == (2.5, 1)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_a_rate_without_exception_is_not_certain(score: float) -> None:
    found = bootstrap_rate([score] * 10)
    assert found.value == score
    assert found.high - found.low == pytest.approx(0.2775, abs=1e-4)  # Wilson's for 10 of 10


def test_equal_seeds_give_equal_intervals() -> None:
    values = np.random.default_rng(4).random(100)
    assert same(bootstrap_mean(values, seed=7), bootstrap_mean(values, seed=7))
    assert not same(bootstrap_mean(values, seed=7), bootstrap_mean(values, seed=8))


def test_any_statistic_of_sums_can_be_resampled() -> None:
    """Two win rates of the same items, added: ΔPQ of arXiv 2501.11549."""
    items = np.array([[1, 1, 0, 1], [1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1]] * 50, dtype=float)
    found = bootstrap(items, lambda s: s[:, 0] / s[:, 1] + s[:, 2] / s[:, 3] - 1)
    assert found.value == pytest.approx(2 / 3 + 3 / 4 - 1)
    assert found.low < found.value < found.high


# Newcombe (Statistics in Medicine 17, 1998), table I, method 3.
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_known_values(successes: int, n: int, low: float, high: float) -> None:
    found = wilson(successes, n)
    assert_allclose([found.low, found.high], [low, high], atol=5e-5)
    assert found.value == successes / n


@brief
@given(st.integers(1, 300), st.data())
def test_wilson_is_symmetric_and_holds_the_share(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    one, other = wilson(k, n), wilson(n - k, n)
    assert 0 <= one.low <= one.value <= one.high <= 1
    assert_allclose([one.low, one.high], [1 - other.high, 1 - other.low], atol=1e-12)


@brief
@given(st.lists(st.sampled_from([-1, 0, 1]), max_size=60))
def test_a_win_rate_counts_and_keeps_ties_apart(outcomes: list[int]) -> None:
    found = win_rate(outcomes, **FEW)
    assert (found.wins, found.ties, found.losses) == tuple(outcomes.count(o) for o in (1, 0, -1))
    decided = found.wins + found.losses
    assert found.rate.n == decided
    assert decided == 0 or found.rate.value == found.wins / decided
    if outcomes:
        half = (found.wins + found.ties / 2) / len(outcomes)
        assert found.rate_with_ties.value == pytest.approx(half)
    back = win_rate([-o for o in outcomes], **FEW)
    assert (back.wins, back.losses) == (found.losses, found.wins)


def test_outcomes_that_are_not_known_are_left_out() -> None:
    assert win_rate([1, math.nan, -1, math.nan]).rate_with_ties.n == 2


def test_corrections_known_values() -> None:
    given_p = [0.01, 0.04, 0.03, 0.005]
    assert_allclose(holm(given_p), [0.03, 0.06, 0.06, 0.02])
    assert_allclose(benjamini_hochberg(given_p), [0.02, 0.04, 0.04, 0.02])
    assert holm([]).shape == (0,)


@brief
@given(p_values)
def test_corrected_p_values_keep_their_order_and_never_shrink(given_p: list[float]) -> None:
    p = np.array(given_p)
    for correct in (holm, benjamini_hochberg):
        adjusted = correct(p)
        assert (adjusted >= p - 1e-15).all()
        assert (adjusted <= 1).all()
        assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= -1e-15).all()
    assert (holm(p) >= benjamini_hochberg(p) - 1e-12).all()
    assert holm(p).min() == pytest.approx(min(1.0, p.min() * len(p)))


@pytest.mark.heavy
@brief
@given(p_values, st.randoms(use_true_random=False))
def test_corrections_do_not_depend_on_the_order(given_p: list[float], random: Any) -> None:
    order = random.sample(range(len(given_p)), len(given_p))
    p = np.array(given_p)
    for correct in (holm, benjamini_hochberg):
        assert_allclose(correct(p[order]), correct(p)[order])


def test_p_values_of_known_z() -> None:
    assert_allclose(two_sided_p([0.0, 1.959964, -2.575829]), [1.0, 0.05, 0.01], atol=1e-7)


def test_log_odds_known_values() -> None:
    found = log_odds([30, 70], [10, 90], prior=[1, 1])
    value = math.log(31 / 71) - math.log(11 / 91)
    assert found.value[0] == pytest.approx(value)
    assert found.standard_error[0] == pytest.approx(math.sqrt(1 / 31 + 1 / 11))
    assert_allclose(found.z, found.value / found.standard_error)


def test_log_odds_of_texts_with_a_word_do_not_depend_on_other_words() -> None:
    found = log_odds([30, 100], [10, 40], prior=[1, 4], texts=(100, 40, 5))
    value = math.log(31 / 74) - math.log(11 / 34)
    assert found.value[0] == pytest.approx(value)
    error = math.sqrt(1 / 31 + 1 / 74 + 1 / 11 + 1 / 34)
    assert found.standard_error[0] == pytest.approx(error)
    assert found.z[0] == pytest.approx(value / error)
    [alone] = log_odds([30], [10], prior=[1], texts=(100, 40, 5)).value
    assert alone == pytest.approx(value)


@pytest.mark.heavy
@brief
@given(counts)
def test_swapping_the_groups_changes_the_sign_of_log_odds_and_nothing_else(
    words: list[tuple[int, int]],
) -> None:
    one, other = np.array(words, dtype=float).T
    prior = (one + other) / 10
    there, back = log_odds(one, other, prior=prior), log_odds(other, one, prior=prior)
    assert np.isfinite(there.z).all()
    assert_allclose(there.value, -back.value, atol=1e-9)
    assert_allclose(there.z, -back.z, atol=1e-9)
    assert_allclose(there.standard_error, back.standard_error)


@pytest.mark.heavy
@brief
@given(counts)
def test_a_stronger_prior_of_both_groups_draws_log_odds_to_nothing(
    words: list[tuple[int, int]],
) -> None:
    one, other = np.array(words, dtype=float).T
    both = one + other
    weak, strong = (np.abs(log_odds(one, other, prior=w * both).z).max() for w in (0.1, 100.0))
    assert strong <= weak + 1e-9


@pytest.mark.heavy
@brief
@given(scores)
def test_a_larger_confidence_gives_a_wider_interval(values: list[float]) -> None:
    wide, narrow = (bootstrap_rate(values, confidence=c, **FEW) for c in (0.99, 0.5))
    assert wide.low <= narrow.low
    assert narrow.high <= wide.high


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: bootstrap_mean([1, 2], confidence=95), "confidence=95"),
        (lambda: bootstrap_mean([1, 2], resamples=0), "resamples=0"),
        (lambda: bootstrap_mean(np.zeros((2, 2, 2))), "shape"),
        (lambda: bootstrap([1.0, 2.0], lambda s: s[:, 0]), "shape"),
        (lambda: bootstrap([[math.nan]], lambda s: s[:, 0]), "finite"),
        (lambda: bootstrap_rate([0.5, 2.0]), "between 0 and 1"),
        (lambda: paired_difference([1, 2], [1]), "shapes"),
        (lambda: wilson(3, 2), "3 successes of 2"),
        (lambda: holm([0.5, math.nan]), "between 0 and 1"),
        (lambda: benjamini_hochberg([1.5]), "between 0 and 1"),
        (lambda: log_odds([1], [1, 2], prior=[1]), "shapes"),
        (lambda: log_odds([1, 1], [1, 2], prior=[1, 0]), "above 0"),
        (lambda: log_odds([4], [1], prior=[1], texts=(3, 3, 1)), "more texts"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_computed_is_refused(call: Any, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda wrong: bootstrap_mean([], **wrong),
        lambda wrong: mean_by_group([], [], **wrong),
        lambda wrong: delta_pq([], [], [], **wrong),
        lambda wrong: cohen_kappa([], [], **wrong),
        lambda wrong: krippendorff_alpha([[math.nan]], **wrong),
        lambda wrong: correlation([1, 2, 3, 4], [1, 2, 4, 3], **wrong),
    ],
)
def test_a_bad_confidence_is_refused_whatever_the_data(call: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="confidence=95"):
        call({"confidence": 95})


def test_estimates_read_as_a_line() -> None:
    assert str(wilson(3, 4)) == "0.750 [0.301, 0.954] (n = 4)"
    assert str(win_rate([1, 1, 0])).startswith("1.000 [0.342, 1.000] (n = 2): 2 wins, 1 ties")


@pytest.mark.parametrize(
    ("probability", "freedom", "known"),  # scipy.stats.t.ppf
    [
        (0.975, 1, 12.7062047362),
        (0.975, 2, 4.3026527297),
        (0.975, 3, 3.1824463053),
        (0.95, 6, 1.9431802805),
        (0.995, 7, 3.4994832974),
        (0.975, 30, 2.0422724563),
        (0.975, 200, 1.9718962236),
        (0.975, 201, 1.9718365068),
        (0.975, 100_000, 1.9599877075),
    ],
)
def test_quantiles_of_t_are_those_of_the_tables(
    probability: float, freedom: int, known: float
) -> None:
    assert t_quantile(probability, freedom) == pytest.approx(known, abs=1e-7)


@pytest.mark.heavy
@pytest.mark.parametrize("n", [8, 13, 25])
def test_intervals_of_few_items_cover_as_often_as_those_of_many(n: int) -> None:
    random = np.random.default_rng(n)
    found = [bootstrap_mean(random.normal(size=n), resamples=2000, seed=s) for s in range(500)]
    assert 0.925 <= np.mean([one.low <= 0 <= one.high for one in found]) <= 0.975


def test_two_items_span_all_that_resampling_gives() -> None:
    drawn = np.linspace(0.0, 1.0, 101)
    assert percentiles(drawn, 2, 0.95) == pytest.approx((0.0, 1.0))


def test_what_was_not_measured_is_a_dash() -> None:
    assert str(Estimate(math.nan, math.nan, math.nan, 0)) == "- (n = 0)"
