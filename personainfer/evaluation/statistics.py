"""Estimate means, rates and log-odds with intervals, and correct p-values for many tests.

Each row of an array is one item. All measurements of an item, such as both orders of a judgement or both
sides of a pair, are resampled together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field

from ..arguments import Count, CountFromZero, Finite, Wanted, check_argument, read_numbers
from ..exceptions import InvalidArgumentError
from ..records import FloatArray

CONFIDENCE = 0.95
RESAMPLES = 10_000
_FEW = 64  # up to so many distinct items, a draw of counts is faster than a draw of items
_CELLS = 2_000_000  # numbers held at once while resampling
_MANY_DEGREES = 200  # above, an expansion gives t quantiles to eight digits


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number that was estimated from items, and its confidence interval.

    Attributes:
        value: the number; NaN: it cannot be estimated, as the win rate of items that are all ties.
        low, high: the ends of the interval; NaN: there is none, as for the mean of a single item.
        n: how many items, or groups of items, the number is of.
    """

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        # Nothing was measured if, for example, all items of a win rate are ties.
        if math.isnan(self.value):
            return f"- (n = {self.n:,})"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] (n = {self.n:,})"

    def to_dict(self) -> dict[str, float]:
        """Return the four numbers by name: "value", "low", "high" and "n"."""
        return asdict(self)


NOTHING = Estimate(math.nan, math.nan, math.nan, 0)


@dataclass(frozen=True, slots=True)
class LogOdds:
    """Log-odds ratios of words between two sets of texts. All arrays have the shape (words,).

    Attributes:
        value: the log-odds ratio, in nats; above 0: the word is likelier in the first set.
        standard_error: its standard error.
        z: `value` divided by `standard_error`.
    """

    value: FloatArray
    standard_error: FloatArray
    z: FloatArray


def bootstrap(
    items: ArrayLike,
    statistic: Callable[[FloatArray], FloatArray],
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Estimate a statistic of sums over items, with an interval from resampled items.

    The nonparametric bootstrap (Efron & Tibshirani 1993, ch. 13) draws n of the n items with replacement.
    Each item keeps all its measurements, so comparisons stay paired. The order of the items does not matter.
    `percentiles` computes the interval from the values of the resamples.

    Args:
        items: shape (n, m): what each item adds to each of m sums.
        statistic: a function from k sums, shape (k, m), to k values, shape (k,). A value may be NaN.
        confidence: how often the interval should cover the truth, between 0 and 1.
        resamples: how many to draw.
        seed: of the draw; equal seeds give equal intervals.

    Returns:
        The statistic of all items; `n` counts the items. With fewer than two items the interval is NaN. With
        fewer than 15 items, or skewed values, it covers the truth less often than `confidence` says
        (docs/verification.md).

    Raises:
        InvalidArgumentError: a bad argument, or items that are not finite numbers.
    """
    confidence, resamples, seed = check_resampling(confidence, resamples, seed)
    rows = read_numbers("items", items, dimensions=(2,))
    if np.isnan(rows).any():
        raise InvalidArgumentError("items= holds NaN: an array (n, m) of finite numbers is needed.")
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(rows.sum(axis=0, keepdims=True))[0])
        if len(rows) < 2:
            return Estimate(value, math.nan, math.nan, len(rows))
        drawn = statistic(_resampled_sums(rows, resamples, np.random.default_rng(seed)))
    low, high = percentiles(drawn, len(rows), confidence)
    # Rounding may change the last digit of a sum of equal numbers.
    return Estimate(value, float(np.fmin(low, value)), float(np.fmax(high, value)), len(rows))


def bootstrap_mean(
    values: ArrayLike,
    *,
    bounds: tuple[float, float] | None = None,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Estimate the mean of all values, with an interval from resampled items.

    Args:
        values: shape (n,), or (n, k) for k values of each item; NaN is a missing value.
        bounds: the lowest and the highest possible value. If all items are equal, `widened` then gives the
            interval a width. None: the interval of equal items has the width 0.
        confidence, resamples, seed: as for `bootstrap`.

    Returns:
        The mean of all values that are there, so an item with more of them weighs more. `n` counts the items
        with a value; without any, value and interval are NaN. With one item the interval is NaN, unless its
        mean is one of the `bounds`.

    Raises:
        InvalidArgumentError: values that are not finite numbers, or outside of `bounds`.
    """
    confidence, resamples, seed = check_resampling(confidence, resamples, seed)
    table = _two_dimensional(values)
    if bounds is not None:
        check_within(table, bounds)
    present = ~np.isnan(table)
    items = np.stack([np.nansum(table, axis=1), present.sum(axis=1)], axis=1)[present.any(axis=1)]
    if not len(items):
        return NOTHING
    found = bootstrap(items, _ratio, confidence=confidence, resamples=resamples, seed=seed)
    return found if bounds is None else widened(found, bounds, confidence)


def widened(found: Estimate, bounds: tuple[float, float], confidence: float) -> Estimate:
    """Widen the interval of a mean if all n items are equal, so that resampling gave it no width.

    None of the n items differs, so the share d of all items that differ is at most the upper limit of
    Wilson's interval for 0 of n. The mean lies furthest away if these items have a value of `bounds`: low =
    mean - d (mean - lowest), high = mean + d (highest - mean). At a bound this is Wilson's interval.

    Args:
        found: the mean, with the interval that resampling gave.
        bounds: the lowest and the highest possible value.
        confidence: how often the interval should cover the truth, between 0 and 1.

    Returns:
        The mean with the wider interval. `found` itself if its interval has a width, if its mean is NaN, or
        if its interval is NaN and the mean is not one of the `bounds`.
    """
    lowest, highest = bounds
    at_a_bound = found.value in bounds
    if math.isnan(found.value) or not (at_a_bound or found.low == found.high):
        return found
    differing = wilson(0, found.n, confidence=confidence).high
    low = found.value - differing * (found.value - lowest)
    high = found.value + differing * (highest - found.value)
    return Estimate(found.value, low, high, found.n)


def bootstrap_rate(
    scores: ArrayLike,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Estimate the mean of scores between 0 and 1: call `bootstrap_mean` with the bounds 0 and 1.

    Args:
        scores: shape (n,), or (n, k) for k scores of each item; NaN is a missing score.
        confidence, resamples, seed: as for `bootstrap`.

    Raises:
        InvalidArgumentError: a score outside of 0 and 1, or what `bootstrap_mean` refuses.
    """
    return bootstrap_mean(
        scores, bounds=(0.0, 1.0), confidence=confidence, resamples=resamples, seed=seed
    )


def paired_difference(
    first: ArrayLike,
    second: ArrayLike,
    *,
    bounds: tuple[float, float] | None = None,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Estimate the mean of first - second over the items with both values, by resampled items.

    Args:
        first, second: shape (n,) each, the same items in the same order; NaN is a missing value.
        bounds: the lowest and the highest possible difference, as for `bootstrap_mean`.
        confidence, resamples, seed: as for `bootstrap`.

    Returns:
        The mean difference. `n` counts the items with both values; without any, value and interval are NaN.

    Raises:
        InvalidArgumentError: shapes that differ, or what `bootstrap_mean` refuses.
    """
    one, other = read_numbers("first", first), read_numbers("second", second)
    if one.shape != other.shape:
        raise InvalidArgumentError(
            f"a paired difference of the shapes {one.shape} and {other.shape}: both are (n,)."
        )
    return bootstrap_mean(
        one - other, bounds=bounds, confidence=confidence, resamples=resamples, seed=seed
    )


def wilson(successes: float, n: int, *, confidence: float = CONFIDENCE) -> Estimate:
    """Estimate the share successes / n with Wilson's score interval (Wilson 1927), for independent items.

    For n = 0, value and interval are NaN.

    Raises:
        InvalidArgumentError: `successes` is not between 0 and n, or `confidence` not between 0 and 1.
    """
    confidence = check_confidence(confidence)
    [share_of, whole] = read_numbers("successes and n", [successes, n])
    if not 0 <= share_of <= whole:
        raise InvalidArgumentError(f"{successes} successes of {n} items.")
    if n == 0:
        return NOTHING
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = float(successes) / n
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low, high = (centre - spread) / scale, (centre + spread) / scale
    return Estimate(share, min(max(low, 0.0), share), max(min(high, 1.0), share), n)


def holm(p_values: ArrayLike) -> FloatArray:
    """Adjust p-values so that the chance of any false finding is bounded (Holm 1979).

    Args:
        p_values: shape (n,): one p-value for each of n tests.

    Returns:
        Shape (n,), in the same order, each from its p-value to 1. If the findings are the tests whose
        adjusted p-value is at most q, the chance that any of them is false is at most q.

    Raises:
        InvalidArgumentError: a value that is not a number between 0 and 1, or another shape.
    """
    p = _p_values(p_values)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    steps = p[order] * np.arange(len(p), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def holm_of_tested(p_values: ArrayLike) -> FloatArray:
    """Adjust p-values of shape (n,) by `holm`. NaN stays NaN, and does not count as a test."""
    adjusted = np.array(p_values, dtype=np.float64)
    tested = ~np.isnan(adjusted)
    adjusted[tested] = holm(adjusted[tested])
    return adjusted


def benjamini_hochberg(p_values: ArrayLike) -> FloatArray:
    """Adjust p-values so that the expected share of false findings among all findings is bounded.

    The method is that of Benjamini & Hochberg, Journal of the Royal Statistical Society B 57, 1995.

    Args:
        p_values: shape (n,): one p-value for each of n tests.

    Returns:
        Shape (n,), in the same order, each from its p-value to 1. If the findings are the tests whose
        adjusted p-value is at most q, the expected share of false ones among them is at most q.

    Raises:
        InvalidArgumentError: a value that is not a number between 0 and 1, or another shape.
    """
    p = _p_values(p_values)
    order = np.argsort(-p, kind="stable")
    adjusted = np.empty_like(p)
    steps = p[order] * len(p) / np.arange(len(p), 0, -1)
    adjusted[order] = np.minimum(np.minimum.accumulate(steps), 1.0)
    return adjusted


def two_sided_p(z: ArrayLike) -> FloatArray:
    """Return two-sided p-values: the chance that a standard normal value is at least as far from 0 as each z.

    Args:
        z: a number, or an array of up to two dimensions. Infinite numbers have the p-value 0; NaN stays NaN.

    Returns:
        An array of the shape of `z`.
    """
    scores = read_numbers("z", z, dimensions=(0, 1, 2), infinite=True)
    return np.array([math.erfc(abs(s) / math.sqrt(2)) for s in scores.ravel()]).reshape(
        scores.shape
    )


def log_odds(
    first: ArrayLike,
    second: ArrayLike,
    *,
    prior: ArrayLike,
    texts: tuple[float, float, float] | None = None,
) -> LogOdds:
    """Measure how much likelier each word is in a first group of texts than in a second.

    Compute the log-odds ratio with an informative Dirichlet prior, its approximate standard error and
    z-score, of Monroe, Colaresi & Quinn, "Fightin' Words" (Political Analysis 16, 2008). Swapping the groups
    only changes the sign.

    Args:
        first, second: shape (words,): how often each word occurs in each group.
        prior: shape (words,): pseudo-counts above 0, added to both groups.
        texts: the number of texts in the first group, in the second, and of pseudo-texts in the prior. Give
            them if the counts are numbers of texts with a word: the odds of a word then compare texts with it
            to texts without it. None: the odds compare the word to all other words; counts of texts would
            then make the group with shorter texts seem to favour every word.

    Returns:
        The ratios, above 0 for words that are likelier in the first group, in nats. A single word without
        `texts` has the ratio 0, because there is no other word.

    Raises:
        InvalidArgumentError: shapes that differ, a count below 0 or missing, a prior that is not above 0, or
            more texts with a word than there are.
    """
    one, other = read_numbers("first", first), read_numbers("second", second)
    added = read_numbers("prior", prior)
    if not one.shape == other.shape == added.shape:
        raise InvalidArgumentError(
            f"counts of the shapes {one.shape} and {other.shape}, prior {added.shape}: all are (words,)."
        )
    if not ((one >= 0).all() and (other >= 0).all() and (added > 0).all()):
        raise InvalidArgumentError("counts are 0 or more, and the prior is above 0.")
    one, other = one + added, other + added
    if texts is None:
        value = _log_odds(one) - _log_odds(other)
        error = np.sqrt(1 / one + 1 / other)
        return LogOdds(value, error, value / error)
    rest, others = texts[0] + texts[2] - one, texts[1] + texts[2] - other
    if (rest <= 0).any() or (others <= 0).any() or (added >= texts[2]).any():
        raise InvalidArgumentError(f"more texts with a word than there are: {texts}, prior last.")
    value = np.log(one / rest) - np.log(other / others)
    error = np.sqrt(1 / one + 1 / rest + 1 / other + 1 / others)
    return LogOdds(value, error, value / error)


def _log_odds(counts: FloatArray) -> FloatArray:
    """Compute the log-odds of each word against all other words, shape (words,); 0 for a single word."""
    others = counts.sum() - counts
    if len(counts) < 2:
        return np.zeros_like(counts)
    found: FloatArray = np.log(counts) - np.log(others)
    return found


def _ratio(sums: FloatArray) -> FloatArray:
    return sums[:, 0] / sums[:, 1]


def _resampled_sums(rows: FloatArray, resamples: int, random: np.random.Generator) -> FloatArray:
    """Draw `resamples` times n of the n items with replacement; return the sums, shape (resamples, m)."""
    kinds, counts = np.unique(rows, axis=0, return_counts=True)
    if len(kinds) <= _FEW:  # the counts of a draw with replacement are multinomial
        drawn = random.multinomial(len(rows), counts / len(rows), size=resamples)
        return np.asarray(drawn @ kinds, dtype=np.float64)
    items = np.repeat(kinds, counts, axis=0)  # sorted: the order they came in does not matter
    columns = np.ascontiguousarray(items.T)  # column by column: up to six times faster than by rows
    step = max(1, _CELLS // len(items))
    parts = []
    for start in range(0, resamples, step):
        drawn = random.integers(len(items), size=(min(step, resamples - start), len(items)))
        parts.append([column[drawn].sum(axis=1) for column in columns])
    return np.concatenate(parts, axis=1).T


def percentiles(values: FloatArray, n: int, confidence: float) -> tuple[float, float]:
    """Return the expanded percentile interval of resampled values, as (low, high).

    Plain percentiles are too narrow for few items, for two reasons: the variance of resamples divides by n
    instead of n - 1, and normal quantiles stand where t quantiles are needed. The expanded interval takes the
    percentiles Phi(-d) and 1 - Phi(-d), where d = sqrt(n / (n - 1)) t_(n - 1) and t_(n - 1) is the t quantile
    (Hesterberg 2014, "What Teachers Should Know about the Bootstrap", arXiv 1411.5279, section 5.3).

    Args:
        values: shape (resamples,); NaN is a resample without a value, and is left out.
        n: how many items were resampled, 2 or more.
        confidence: how often the interval should cover the truth, between 0 and 1.

    Returns:
        The ends of the interval; NaN for both if all values are NaN.
    """
    known = values[~np.isnan(values)]
    if not len(known):
        return math.nan, math.nan
    distance = math.sqrt(n / (n - 1)) * t_quantile((1 + confidence) / 2, n - 1)
    tail = NormalDist().cdf(-distance)
    low, high = np.quantile(known, [tail, 1 - tail])
    return float(low), float(high)


def t_quantile(probability: float, freedom: int) -> float:
    """Return a quantile of Student's t distribution, by bisection of its distribution function.

    Args:
        probability: above 0.5 and below 1.
        freedom: degrees of freedom, a whole number from 1 up.
    """
    if freedom > _MANY_DEGREES:
        return _t_expansion(NormalDist().inv_cdf(probability), freedom)
    low, high = 0.0, math.pi / 2  # of the angle whose tangent is t / sqrt(freedom)
    for _ in range(60):
        middle = (low + high) / 2
        below = _t_within(middle, freedom) < 2 * probability - 1
        low, high = (middle, high) if below else (low, middle)
    return math.tan(low) * math.sqrt(freedom)


def _t_within(angle: float, freedom: int) -> float:
    """Return P(|T| < t) for t = tan(angle) sqrt(freedom): Abramowitz & Stegun 1964, 26.7.3 and 26.7.4."""
    cosine = math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = 0.0 if freedom == 1 else term
    for power in range(2 + odd, freedom - 1, 2):
        term *= cosine**2 * (power - 1) / power
        total += term
    return (angle + math.sin(angle) * total) * 2 / math.pi if odd else math.sin(angle) * total


def _t_expansion(z: float, freedom: int) -> float:
    """Return a t quantile for many degrees of freedom, from the normal quantile z (same source, 26.7.5)."""
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def _two_dimensional(values: ArrayLike) -> FloatArray:
    table = read_numbers("values", values, dimensions=(1, 2))
    return table.reshape(len(table), -1) if table.size else np.empty((0, 1))


def _p_values(given: ArrayLike) -> FloatArray:
    p = read_numbers("p_values", given)
    if not ((p >= 0) & (p <= 1)).all():
        raise InvalidArgumentError("p-values are an array (n,) of numbers between 0 and 1.")
    return p


_Confidence = Annotated[
    Finite, Field(gt=0, lt=1), Wanted("must lie between 0 and 1.", hint="Give 0.95 for 95 %.")
]


def check_confidence(confidence: float) -> float:
    """Return `confidence`, as `check_argument`. It must be above 0 and below 1."""
    return check_argument("confidence", confidence, _Confidence)


def check_resampling(confidence: float, resamples: int, seed: int) -> tuple[float, int, int]:
    """Return the arguments of a bootstrap, as `check_argument`.

    `confidence` must be above 0 and below 1, `resamples` at least 1, and `seed` at least 0.
    """
    return (
        check_confidence(confidence),
        check_argument("resamples", resamples, Count),
        check_argument("seed", seed, CountFromZero),
    )


def check_within(values: FloatArray, bounds: tuple[float, float]) -> None:
    """Check that all values, in an array of any shape, are within the bounds. NaN is within all bounds.

    Raises:
        InvalidArgumentError: a value is outside, or `bounds` is not the lower and then the higher number.
    """
    lowest, highest = read_numbers("bounds", bounds, infinite=True, length=2)
    if not lowest < highest:
        raise InvalidArgumentError(
            f"bounds={bounds!r} must be the lower one, then the higher.", argument="bounds"
        )
    outside = values[(values < lowest) | (values > highest)]
    if len(outside):
        raise InvalidArgumentError(
            f"a value of {outside[0]:g} is not between {lowest:g} and {highest:g}."
        )
