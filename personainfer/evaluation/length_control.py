"""Estimate what a win rate would be if the responses of both sides were equally long.

The regression of length-controlled AlpacaEval (Dubois et al. 2024, arXiv 2404.04475, section 3), for one
pair of models: logit P(win) = a + b tanh(d / sd(d)), where d is the difference of the lengths, and the
length-controlled rate is that at d = 0. Their term for how hard an instruction is needs many models, and
is left out. Numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..records import FloatArray
from .grouped import check_lengths, rate_by_group
from .statistics import CONFIDENCE, NOTHING, Estimate, check_confidence, percentiles

# The standard deviation of a normal prior on b, without which outcomes that length separates would
# have no finite fit. The scale is the weakly informative one of Gelman, Jakulin, Pittau & Su 2008
# (Annals of Applied Statistics 2): a length difference hardly ever moves the odds more than that.
_PRIOR_SCALE = 2.5
_RESAMPLES = 2000
_CELLS = 500_000  # numbers held at once while resampling
_MOST_STEPS = 100
_LONGEST_STEP = 2.0  # Newton's own can be much too long where outcomes are nearly separated
_CLOSE = 1e-9


def length_controlled_rate(
    outcomes: ArrayLike,
    differences: ArrayLike,
    groups: ArrayLike,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = _RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Wins / (wins + losses) at equal length, resampling groups.

    Swapping the sides turns the rate r into 1 - r; a repeated group changes nothing.

    Args:
        outcomes: shape (n,): above 0 a win, below 0 a loss; 0 (a tie) and NaN are left out.
        differences: shape (n,): the length of the side whose wins are counted, minus the other's; NaN is
            left out.
        groups: shape (n,): what each item belongs to, such as its prompt.
        confidence: of the interval (percentiles).
        resamples: how many are drawn.
        seed: of the draw.

    Returns:
        The plain rate where all lengths are equal, or all items won, or all lost; NaN where every item
        has the same difference, so that length and quality cannot be told apart. The interval of a single
        group is NaN.
    """
    check_confidence(confidence)
    check_lengths(outcomes, differences, groups)
    given, lengths = (np.asarray(a, dtype=np.float64) for a in (outcomes, differences))
    decided = ~np.isnan(given) & (given != 0) & ~np.isnan(lengths)
    won, d, names = given[decided] > 0, lengths[decided], np.asarray(groups)[decided]
    if not len(won):
        return NOTHING
    if won.all() or not won.any() or not d.any():
        return rate_by_group(won, names, confidence=confidence)
    kinds, places = np.unique(names, return_inverse=True)
    if d.min() == d.max():  # whose deviation may be above 0 by rounding
        return Estimate(math.nan, math.nan, math.nan, len(kinds))
    x, y = np.tanh(d / d.std()), won.astype(np.float64)
    share = len(kinds) / len(won)  # a prompt is one observation, however often it is asked
    value = float(_rates(x, y, np.ones((1, len(won))), share)[0])
    if len(kinds) < 2:
        return Estimate(value, math.nan, math.nan, len(kinds))
    random = np.random.default_rng(seed)
    drawn = np.concatenate(
        [_rates(x, y, times, share) for times in _resampled(places, resamples, random)]
    )
    low, high = percentiles(drawn, len(kinds), confidence)
    return Estimate(value, min(low, value), max(high, value), len(kinds))


def _resampled(
    places: NDArray[np.int64], resamples: int, random: np.random.Generator
) -> Iterator[FloatArray]:
    """How often each item is drawn in each resample of groups: (some resamples, n) at a time."""
    groups = int(places.max()) + 1
    even = np.full(groups, 1 / groups)
    step = max(1, _CELLS // len(places))
    for start in range(0, resamples, step):
        times = random.multinomial(groups, even, size=min(step, resamples - start))
        yield times[:, places].astype(np.float64)


def _rates(x: FloatArray, y: FloatArray, times: FloatArray, share: float) -> FloatArray:
    """The fitted rate at x = 0 for each line of counts, (k, n) -> (k,); an item weighs `share`.

    A line in which all items won, or all lost, has no finite fit: its rate is 1 or 0. Counts are whole
    numbers, whose sums are exact, so that no such line is missed by rounding.
    """
    total, wins = times.sum(axis=1), times @ y
    rates: FloatArray = wins / total
    both = (wins > 0) & (wins < total)
    if both.any():
        rates[both] = 1 / (1 + np.exp(-_fit(x, y, share * times[both])[:, 0]))
    return rates


def _fit(x: FloatArray, y: FloatArray, weights: FloatArray) -> FloatArray:
    """The penalised maximum of the likelihood by Newton's method: a and b of each line, (k, 2)."""
    share = (weights @ y) / weights.sum(axis=1)
    found = np.stack([np.log(share / (1 - share)), np.zeros(len(share))], axis=1)
    moving = np.arange(len(found))
    for _ in range(_MOST_STEPS):
        w = weights[moving]
        a, b = found[moving].T
        p = 1 / (1 + np.exp(-(a[:, None] + b[:, None] * x)))
        error, curve = w * (y - p), w * p * (1 - p)
        to_a, to_b = error.sum(axis=1), error @ x - b / _PRIOR_SCALE**2
        aa, ab, bb = curve.sum(axis=1), curve @ x, curve @ x**2 + 1 / _PRIOR_SCALE**2
        determinant = aa * bb - ab**2
        steps = np.stack([bb * to_a - ab * to_b, aa * to_b - ab * to_a], axis=1)
        steps /= determinant[:, None]
        found[moving] += np.clip(steps, -_LONGEST_STEP, _LONGEST_STEP)
        moving = moving[np.abs(steps).max(axis=1) > _CLOSE]
        if not len(moving):
            break
    return found
