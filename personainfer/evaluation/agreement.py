"""How far raters agree beyond chance: Cohen's kappa of two of them, Krippendorff's alpha of any number."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from ..arguments import read_numbers
from ..exceptions import InvalidArgumentError
from ..records import FloatArray
from .statistics import CONFIDENCE, Estimate, bootstrap, wilson

Level = Literal["nominal", "ordinal", "interval"]


def cohen_kappa(one: ArrayLike, other: ArrayLike, *, confidence: float = CONFIDENCE) -> Estimate:
    """Cohen's kappa: (p_o - p_e) / (1 - p_e) of two raters (Cohen 1960).

    Args:
        one, other: shape (n,): the category that each rater gave to each item, as numbers; NaN: none, and
            the item is left out.
        confidence: of the bootstrap interval over items.

    Returns:
        1 where they always agree, 0 where they agree as often as by chance. NaN where both always give
        one and the same category: chance would agree as well. Where they always agree, resampling cannot
        vary: the interval then ends at the kappa of as many disagreements as Wilson's upper limit for
        none of n allows. Its interval is NaN where one rater gives every item the same category, since
        kappa is 0 then whatever the other one says.
    """
    first, second = read_numbers("one", one), read_numbers("other", other)
    if first.shape != second.shape:
        raise InvalidArgumentError(f"two raters of shapes {first.shape} and {second.shape}.")
    known = ~np.isnan(first) & ~np.isnan(second)
    if not known.any():
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    categories, numbers = np.unique(
        np.concatenate([first[known], second[known]]), return_inverse=True
    )
    rows, columns = np.split(numbers, 2)
    k = len(categories)
    items = np.zeros((len(rows), k, k))
    items[np.arange(len(rows)), rows, columns] = 1.0

    def kappa(sums: FloatArray) -> FloatArray:
        shares = sums.reshape(-1, k, k) / sums.sum(axis=1)[:, None, None]
        observed = shares.trace(axis1=1, axis2=2)
        expected = (shares.sum(axis=1) * shares.sum(axis=2)).sum(axis=1)
        return np.where(expected < 1.0, (observed - expected) / (1.0 - expected), np.nan)

    found = bootstrap(items.reshape(len(rows), -1), kappa, confidence=confidence)
    if min(len(np.unique(rows)), len(np.unique(columns))) < 2:
        return replace(found, low=float("nan"), high=float("nan"))
    shares = items.mean(axis=0)
    return _agreeing(
        found, 1.0 / (1.0 - float(shares.sum(axis=0) @ shares.sum(axis=1))), confidence
    )


def krippendorff_alpha(
    ratings: ArrayLike, *, level: Level = "nominal", confidence: float = CONFIDENCE
) -> Estimate:
    """Krippendorff's alpha: 1 - D_o / D_e, for any number of raters and missing ratings.

    By the coincidences of values within an item (Krippendorff 2011, "Computing Krippendorff's
    Alpha-Reliability").

    Args:
        ratings: shape (raters, items), numbers; NaN: no rating. An item with one rating says nothing.
        level: how far two values are apart: "nominal": they differ; "ordinal": by the ratings between
            them; "interval": by the square of their difference.
        confidence: of the bootstrap interval over items.

    Returns:
        1 where all agree, 0 where they agree as often as by chance; NaN where no item has two ratings or
        all ratings are the same. Where all agree, the interval is as that of `cohen_kappa`, as if those
        who disagree were as far apart as they can be.
    """
    InvalidArgumentError.check("level", level, ("nominal", "ordinal", "interval"))
    given = read_numbers("ratings", ratings, dimensions=(2,))
    paired = given[:, (~np.isnan(given)).sum(axis=0) >= 2]
    if not paired.size:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    categories = np.unique(paired[~np.isnan(paired)])
    counts = (paired[:, :, None] == categories).sum(axis=0).astype(np.float64)  # items, categories
    pairs = counts[:, :, None] * counts[:, None, :]
    pairs -= counts[:, :, None] * np.eye(len(categories))  # no rating is paired with itself
    coincidences = pairs / (counts.sum(axis=1) - 1.0)[:, None, None]

    def alpha(sums: FloatArray) -> FloatArray:
        table = sums.reshape(-1, len(categories), len(categories))
        totals = table.sum(axis=2)
        n = totals.sum(axis=1)
        apart = _distances(categories, totals, level)
        observed = (table * apart).sum(axis=(1, 2)) / n
        expected = (totals[:, :, None] * totals[:, None, :] * apart).sum(axis=(1, 2)) / (
            n * (n - 1.0)
        )
        return np.where(expected > 0.0, 1.0 - observed / expected, np.nan)

    found = bootstrap(coincidences.reshape(len(counts), -1), alpha, confidence=confidence)
    totals = counts.sum(axis=0, keepdims=True)
    apart = _distances(categories, totals, level)[0]
    expected = float((totals.T * totals * apart).sum() / (totals.sum() * (totals.sum() - 1.0)))
    return _agreeing(found, float(apart.max()) / expected if expected else 0.0, confidence)


def _agreeing(found: Estimate, cost: float, confidence: float) -> Estimate:
    """The estimate, with an interval of some width where all raters agree on all items.

    Of n items all agree on, the share of disagreement in general is at most Wilson's upper limit for 0 of
    n. `cost` is what a share of 1 takes off.
    """
    if not found.value == found.low == 1.0:
        return found
    low = 1.0 - wilson(0, found.n, confidence=confidence).high * cost
    return replace(found, low=max(low, -1.0))


def _distances(categories: FloatArray, totals: FloatArray, level: Level) -> FloatArray:
    """How far each two values are apart, squared, shape (k or 1, values, values)."""
    if level == "nominal":
        return (1.0 - np.eye(len(categories)))[None]
    if level == "interval":
        return ((categories[:, None] - categories) ** 2)[None]
    ranks = np.cumsum(totals, axis=1) - totals / 2.0  # the middle of each value's ratings
    return np.asarray((ranks[:, :, None] - ranks[:, None, :]) ** 2)
