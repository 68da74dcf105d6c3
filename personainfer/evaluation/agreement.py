"""Measure how far raters agree beyond chance: Cohen's kappa (two), Krippendorff's alpha (any number)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arguments import read_numbers
from ..exceptions import InvalidArgumentError
from ..records import FloatArray
from .statistics import CONFIDENCE, Estimate, bootstrap, check_confidence, wilson

_MOST_CATEGORIES = 128  # enough for a slider from 0 to 100; with more, resampling takes minutes
Level = Literal["nominal", "ordinal", "interval"]


def cohen_kappa(one: ArrayLike, other: ArrayLike, *, confidence: float = CONFIDENCE) -> Estimate:
    """Estimate Cohen's kappa of two raters: (p_o - p_e) / (1 - p_e) (Cohen 1960).

    p_o is the share of items on which the raters agree. p_e is the share that chance would give.

    Args:
        one, other: shape (n,): the category that each rater gave to each item, as numbers. NaN: the rater
            gave none, and the item is left out.
        confidence: how often the interval should cover the truth, between 0 and 1. It resamples items.

    Returns:
        The kappa, its interval, and the number of items with both ratings. Kappa is 1 if the raters always
        agree, 0 if they agree as often as by chance, and below 0 if they agree less often. It is NaN if no
        item has both ratings, or if both raters give every item one and the same category. If the raters
        always agree, resampling gives the interval no width. Its lower end is then the kappa at Wilson's
        upper limit for 0 disagreements in n items. If only one rater gives every item the same category,
        kappa is 0 whatever the other one says, and the interval is NaN.

    Raises:
        InvalidArgumentError: values that are not finite numbers, shapes that differ, more than 128
            categories, or a `confidence` that is not between 0 and 1.
    """
    confidence = check_confidence(confidence)
    first, second = read_numbers("one", one), read_numbers("other", other)
    if first.shape != second.shape:
        raise InvalidArgumentError(f"two raters of shapes {first.shape} and {second.shape}.")
    known = ~np.isnan(first) & ~np.isnan(second)
    if not known.any():
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    k, numbers = _categories(np.concatenate([first[known], second[known]]))
    one_hot = np.eye(k)
    rows, columns = np.split(numbers, 2)
    items = np.column_stack([rows == columns, one_hot[rows], one_hot[columns]])

    def kappa(sums: FloatArray) -> FloatArray:
        n = sums[:, 1 : k + 1].sum(axis=1)
        observed = sums[:, 0] / n
        expected = (sums[:, 1 : k + 1] * sums[:, k + 1 :]).sum(axis=1) / n**2
        return np.where(expected < 1.0, (observed - expected) / (1.0 - expected), np.nan)

    found = bootstrap(items, kappa, confidence=confidence)
    if min(len(np.unique(rows)), len(np.unique(columns))) < 2:
        return replace(found, low=float("nan"), high=float("nan"))
    shares = items.mean(axis=0)
    return _agreeing(found, 1.0 / (1.0 - float(shares[1 : k + 1] @ shares[k + 1 :])), confidence)


def krippendorff_alpha(
    ratings: ArrayLike, *, level: Level = "nominal", confidence: float = CONFIDENCE
) -> Estimate:
    """Estimate Krippendorff's alpha = 1 - D_o / D_e, for any number of raters and missing ratings.

    D_o is the mean distance between two ratings of one item, D_e between any two ratings (Krippendorff 2011,
    "Computing Krippendorff's Alpha-Reliability").

    Args:
        ratings: shape (raters, items), numbers; NaN: no rating. Items with fewer than two ratings are left
            out.
        level: the distance of two values. "nominal": 1 if they differ. "ordinal": the square of the
            difference of their mean ranks among all ratings. "interval": the square of their difference. The
            first two allow at most 128 different values.
        confidence: how often the interval should cover the truth, between 0 and 1. It resamples items.

    Returns:
        The alpha, its interval, and the number of items with two ratings or more. Alpha is 1 if all raters
        agree, 0 if they agree as often as by chance, and below 0 if they agree less often. It is NaN if no
        item has two ratings, or all ratings are equal. The interval of a single item is NaN. If the raters
        agree on every item, resampling gives the interval no width. Its lower end is then the alpha if D_o
        were the largest distance in the data, times Wilson's upper limit for 0 disagreements in n items; but
        not below -1.

    Raises:
        InvalidArgumentError: an unknown level, values that are not finite numbers, an array that has not two
            dimensions, more than 128 values, or a `confidence` that is not between 0 and 1.
    """
    InvalidArgumentError.check("level", level, ("nominal", "ordinal", "interval"))
    confidence = check_confidence(confidence)
    given = read_numbers("ratings", ratings, dimensions=(2,))
    paired = given[:, (~np.isnan(given)).sum(axis=0) >= 2]
    if not paired.size:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    found = {"nominal": _nominal, "ordinal": _ordinal, "interval": _interval}[level](paired)

    def alpha(sums: FloatArray) -> FloatArray:
        by_chance = found.by_chance(sums)
        return np.where(by_chance > 0.0, 1.0 - found.observed(sums) / by_chance, np.nan)

    n = np.count_nonzero(~np.isnan(paired))
    by_chance = float(found.by_chance(found.items.sum(axis=0, keepdims=True))[0])
    cost = found.widest * n / by_chance if by_chance else 0.0
    return _agreeing(bootstrap(found.items, alpha, confidence=confidence), cost, confidence)


class _Disagreement(NamedTuple):
    """Distances between ratings as functions of sums over items, as `bootstrap` needs them.

    There is no table of all pairs of values, because a slider has many values.

    Attributes:
        items: shape (items, m): what each item adds to each of m sums.
        observed: sums of shape (k, m) -> shape (k,): the sum of the distances within items; those of an item
            with r ratings are divided by r - 1.
        by_chance: sums of shape (k, m) -> shape (k,): the sum of the distances between all n ratings, divided
            by n - 1.
        widest: the largest distance of two values.
    """

    items: FloatArray
    observed: Callable[[FloatArray], FloatArray]
    by_chance: Callable[[FloatArray], FloatArray]
    widest: float


def _nominal(ratings: FloatArray) -> _Disagreement:
    _, counts = _counted(ratings)
    n = counts.sum(axis=1)
    apart = (n**2 - (counts**2).sum(axis=1)) / (n - 1.0)

    def by_chance(sums: FloatArray) -> FloatArray:
        n = sums[:, 1:].sum(axis=1)
        return np.asarray((n**2 - (sums[:, 1:] ** 2).sum(axis=1)) / (n - 1.0))

    return _Disagreement(np.column_stack([apart, counts]), lambda sums: sums[:, 0], by_chance, 1.0)


def _interval(ratings: FloatArray) -> _Disagreement:
    known = ~np.isnan(ratings)
    n = known.sum(axis=0)
    centred = ratings - ratings[known].mean()  # squares of large numbers would lose digits
    apart = sum(np.nansum((ratings - one) ** 2, axis=0) for one in ratings) / (n - 1.0)
    items = np.column_stack([apart, n, np.nansum(centred, axis=0), np.nansum(centred**2, axis=0)])

    def by_chance(sums: FloatArray) -> FloatArray:
        _, n, total, squares = sums.T
        spread = n * squares - total**2  # of equal ratings, rounding leaves a little
        return np.asarray(2.0 * np.where(spread > 1e-12 * n * squares, spread, 0.0) / (n - 1.0))

    return _Disagreement(
        items, lambda sums: sums[:, 0], by_chance, float(np.ptp(ratings[known])) ** 2
    )


def _ordinal(ratings: FloatArray) -> _Disagreement:
    k, counts = _counted(ratings)
    weights = 2.0 / (counts.sum(axis=1) - 1.0)
    lower, upper = np.nonzero(np.triu(counts.T @ counts, 1))  # pairs of values within some item
    pairs = counts[:, lower] * counts[:, upper] * weights[:, None]

    def ranks(sums: FloatArray) -> FloatArray:
        """Return the mean rank of each value among all ratings in order, shape (k, values)."""
        return np.asarray(np.cumsum(sums[:, :k], axis=1) - sums[:, :k] / 2.0)

    def observed(sums: FloatArray) -> FloatArray:
        place = ranks(sums)
        return np.asarray((sums[:, k:] * (place[:, lower] - place[:, upper]) ** 2).sum(axis=1))

    def by_chance(sums: FloatArray) -> FloatArray:
        place, times = ranks(sums), sums[:, :k]
        n = times.sum(axis=1)
        spread = n * (times * place**2).sum(axis=1) - (times * place).sum(axis=1) ** 2
        return np.asarray(2.0 * spread / (n - 1.0))

    place = ranks(counts.sum(axis=0, keepdims=True))
    return _Disagreement(
        np.column_stack([counts, pairs]), observed, by_chance, float(np.ptp(place)) ** 2
    )


def _counted(ratings: FloatArray) -> tuple[int, FloatArray]:
    """Count how often each item has each value.

    Args:
        ratings: shape (raters, items); NaN: no rating.

    Returns:
        k, the number of different values; and the counts, shape (items, k), with the values in rising order.

    Raises:
        InvalidArgumentError: there are more than 128 different values.
    """
    known = ~np.isnan(ratings)
    k, numbers = _categories(ratings[known])
    counts = np.zeros((ratings.shape[1], k))
    np.add.at(counts, (np.nonzero(known)[1], numbers), 1.0)
    return k, counts


def _categories(values: FloatArray) -> tuple[int, NDArray[np.intp]]:
    """Number the different values in rising order, from 0.

    Args:
        values: shape (n,), without NaN.

    Returns:
        How many different values there are, and the number of each value, shape (n,).

    Raises:
        InvalidArgumentError: there are more than 128 different values.
    """
    distinct, numbers = np.unique(values, return_inverse=True)
    if len(distinct) > _MOST_CATEGORIES:
        raise InvalidArgumentError(
            f"the ratings have {len(distinct):,} different values, more than {_MOST_CATEGORIES} categories.",
            hint='Round them, or use krippendorff_alpha(…, level="interval").',
        )
    return len(distinct), numbers


def _agreeing(found: Estimate, cost: float, confidence: float) -> Estimate:
    """Widen the interval of an agreement if all raters agree on all n items, so that it has no width.

    The share of items with disagreement is at most Wilson's upper limit for 0 of n.

    Args:
        found: the agreement, with the interval that resampling gave.
        cost: what would be subtracted from the agreement if every item had a disagreement.
        confidence: how often the interval should cover the truth, between 0 and 1.

    Returns:
        The agreement with the lower `low`, at least -1. `found` itself unless its value and its `low` are 1.
    """
    if not found.value == found.low == 1.0:
        return found
    low = 1.0 - wilson(0, found.n, confidence=confidence).high * cost
    return replace(found, low=max(low, -1.0))
