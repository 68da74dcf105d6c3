"""Estimate means, rates and win rates of items in groups, such as the rows of one prompt.

A mean is over items, so a group with more items weighs more. Its interval comes from resampling whole groups,
and `n` is the number of groups.

`length_controlled_rate` estimates the win rate that two models would have if their responses were equally
long, by the regression of length-controlled AlpacaEval (Dubois et al. 2024, arXiv 2404.04475, section 3):
logit P(win) = a + b tanh(d / sd(d)), where d is the difference of the lengths, at d = 0. The term of the
paper for the difficulty of an instruction is left out, because it needs many models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arguments import read_labels, read_numbers
from ..exceptions import InvalidArgumentError
from ..records import FloatArray
from .statistics import (
    CONFIDENCE,
    NOTHING,
    RESAMPLES,
    Estimate,
    bootstrap,
    bootstrap_rate,
    check_confidence,
    check_resampling,
    check_within,
    percentiles,
    widened,
    wilson,
)

# The standard deviation of a normal prior on b. Without a prior, the fit would not be finite if length
# alone decides every outcome. The scale is the weakly informative one of Gelman, Jakulin, Pittau & Su 2008
# (Annals of Applied Statistics 2).
_PRIOR_SCALE = 2.5
_REFITS = 2000  # resamples, each of which is a regression
_CELLS = 500_000  # numbers held at once while resampling
_MOST_STEPS = 100
_LONGEST_STEP = 2.0  # a full Newton step is much too long if length nearly decides every outcome
_CLOSE = 1e-9


Groups = Iterable[Hashable]  # the label of each item's group, none of them missing


@dataclass(frozen=True, slots=True)
class WinRate:
    """Counts of wins, ties and losses, and two rates.

    Attributes:
        wins, ties, losses: how many items are won, tied and lost.
        rate: wins / (wins + losses), without ties: W of "Whose Boat Does it Float?" (arXiv 2501.11549). NaN
            if there are only ties.
        rate_with_ties: (wins + ties / 2) / (wins + ties + losses).
    """

    wins: int
    ties: int
    losses: int
    rate: Estimate
    rate_with_ties: Estimate

    def __str__(self) -> str:
        return f"{self.rate}: {self.wins:,} wins, {self.ties:,} ties, {self.losses:,} losses"

    def to_dict(self) -> dict[str, Any]:
        """Return the counts and the rates by the names of the attributes; a rate is a dict, too."""
        return asdict(self)


def group_sums(items: FloatArray, groups: NDArray[np.intp]) -> FloatArray:
    """Sum the items of each group.

    Args:
        items: shape (n, m).
        groups: a number for each item's group, shape (n,).

    Returns:
        Shape (groups, m), in the order of the numbers.
    """
    rows = np.asarray(items, dtype=np.float64)
    numbers, places = np.unique(groups, return_inverse=True)
    sums = np.zeros((len(numbers), rows.shape[1]))
    np.add.at(sums, places, rows)
    return sums


def check_lengths(*given: NDArray[Any]) -> None:
    """Raise InvalidArgumentError unless all arrays have the same length."""
    if len({len(one) for one in given}) > 1:
        shapes = ", ".join(str(one.shape) for one in given)
        raise InvalidArgumentError(f"values and groups of the shapes {shapes}: all are (n,).")


def mean_by_group(
    values: ArrayLike,
    groups: Groups,
    *,
    bounds: tuple[float, float] | None = None,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """Estimate the mean of all values, with an interval from resampled groups.

    Args:
        values: shape (n,); NaN is a missing value.
        groups: the label of each value's group, length (n,), such as the user or the prompt.
        bounds: the lowest and the highest possible value. If all groups have the same mean, `widened` then
            gives the interval a width. None: the interval then has the width 0.
        confidence: how often the interval should cover the truth, between 0 and 1.

    Returns:
        The mean over values, so a group with more values weighs more. `n` counts groups with a value; without
        any, value and interval are NaN. With one group the interval is NaN, unless the mean is one of the
        `bounds`.

    Raises:
        InvalidArgumentError: values that are not finite numbers or outside of `bounds`, a missing group, or
            lengths that differ.
    """
    confidence = check_confidence(confidence)
    given, (_, numbers) = read_numbers("values", values), read_labels("groups", groups)
    check_lengths(given, numbers)
    if bounds is not None:
        check_within(given, bounds)
    known = ~np.isnan(given)
    if not known.any():
        return NOTHING
    items = np.stack([given[known], np.ones(known.sum())], axis=1)
    sums = group_sums(items, numbers[known])
    found = bootstrap(sums, lambda s: s[:, 0] / s[:, 1], confidence=confidence)
    return found if bounds is None else widened(found, bounds, confidence)


def rate_by_group(scores: ArrayLike, groups: Groups, *, confidence: float = CONFIDENCE) -> Estimate:
    """Estimate the mean of scores between 0 and 1: call `mean_by_group` with the bounds 0 and 1.

    Args:
        scores: shape (n,); NaN is a missing score.
        groups, confidence: as for `mean_by_group`.

    Raises:
        InvalidArgumentError: a score outside of 0 and 1, or what `mean_by_group` refuses.
    """
    return mean_by_group(scores, groups, bounds=(0.0, 1.0), confidence=confidence)


def win_rate(
    outcomes: ArrayLike,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> WinRate:
    """Count wins, ties and losses of independent items, and estimate their rates.

    `rate` has Wilson's interval, `rate_with_ties` a bootstrap interval over items.

    Args:
        outcomes: shape (n,): above 0 a win, 0 a tie, below 0 a loss; NaN is left out.
        confidence, resamples, seed: as for `bootstrap`.

    Returns:
        The counts and both rates. A rate of no items is NaN, as `rate` is if all are ties.

    Raises:
        InvalidArgumentError: outcomes that are not finite numbers of this shape, or a bad argument.
    """
    given = read_numbers("outcomes", outcomes)
    kept = np.sign(given[~np.isnan(given)])
    wins, losses = int((kept > 0).sum()), int((kept < 0).sum())
    return WinRate(
        wins=wins,
        ties=len(kept) - wins - losses,
        losses=losses,
        rate=wilson(wins, wins + losses, confidence=confidence),
        rate_with_ties=bootstrap_rate(
            (kept + 1) / 2, confidence=confidence, resamples=resamples, seed=seed
        ),
    )


def win_rate_by_group(
    outcomes: ArrayLike, groups: Groups, *, confidence: float = CONFIDENCE
) -> WinRate:
    """Count wins, ties and losses of items in groups; the intervals of both rates resample groups.

    Args:
        outcomes: shape (n,): above 0 a win, 0 a tie, below 0 a loss; NaN is left out.
        groups: the label of each item's group, length (n,).
        confidence: how often the intervals should cover the truth, between 0 and 1.

    Returns:
        The counts of items, and both rates. A rate of no items is NaN, as `rate` is if all are ties.

    Raises:
        InvalidArgumentError: outcomes that are not finite numbers, a missing group, or lengths that differ.
    """
    given, (_, numbers) = np.sign(read_numbers("outcomes", outcomes)), read_labels("groups", groups)
    won = np.where(given == 0, np.nan, (given + 1) / 2)
    wins, ties, losses = (int((given == sign).sum()) for sign in (1, 0, -1))
    return WinRate(
        wins=wins,
        ties=ties,
        losses=losses,
        rate=rate_by_group(won, numbers, confidence=confidence),
        rate_with_ties=rate_by_group((given + 1) / 2, numbers, confidence=confidence),
    )


def delta_pq(
    personalization: ArrayLike,
    quality: ArrayLike,
    groups: Groups,
    *,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """Estimate ΔPQ = W_P + W_Q - 1, where W = wins / (wins + losses): from -1 to 1, 0 for no difference.

    W_P is of the outcomes `personalization`, W_Q of `quality`. "Whose Boat Does it Float?" (arXiv 2501.11549)
    gives ΔPQ times 100. The interval resamples groups, each with both outcomes. If a W is 0 or 1, it does not
    vary between resamples; the interval is then composed from the intervals of both W as if they were
    independent (MOVER, Zou & Donner 2008). If ΔPQ itself does not vary, as when one outcome is won wherever
    the other is lost, `widened` gives the interval a width.

    Args:
        personalization, quality: shape (n,) each, the same items in the same order: above 0 a win, 0 a tie,
            below 0 a loss; NaN is a missing judgement.
        groups: the label of each item's group, length (n,).
        confidence: how often the interval should cover the truth, between 0 and 1.

    Returns:
        ΔPQ; NaN if either outcome has neither wins nor losses. `n` counts groups with a win or a loss.

    Raises:
        InvalidArgumentError: outcomes that are not finite numbers, a missing group, or lengths that differ.
    """
    confidence = check_confidence(confidence)
    one, other = read_numbers("personalization", personalization), read_numbers("quality", quality)
    _, numbers = read_labels("groups", groups)
    check_lengths(one, other, numbers)
    outcomes = np.stack([one, other])
    known = (~np.isnan(outcomes) & (outcomes != 0)).any(axis=0)
    if not known.any():
        return NOTHING
    counts = np.concatenate([outcomes > 0, outcomes < 0]).T.astype(np.float64)
    sums = group_sums(counts[known], numbers[known])

    def statistic(s: FloatArray) -> FloatArray:
        return s[:, 0] / (s[:, 0] + s[:, 2]) + s[:, 1] / (s[:, 1] + s[:, 3]) - 1

    found = bootstrap(sums, statistic, confidence=confidence)
    won, lost = sums.sum(axis=0).reshape(2, 2)
    if math.isnan(found.value):
        return found
    if won.all() and lost.all():
        return widened(found, (-1.0, 1.0), confidence)
    rates = [win_rate_by_group(each, numbers, confidence=confidence).rate for each in outcomes]
    below = math.hypot(*(rate.value - rate.low for rate in rates))
    above = math.hypot(*(rate.high - rate.value for rate in rates))
    low, high = max(found.value - below, -1.0), min(found.value + above, 1.0)
    return Estimate(found.value, low, high, found.n)


def length_controlled_rate(
    outcomes: ArrayLike,
    differences: ArrayLike,
    groups: Groups,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = _REFITS,
    seed: int = 0,
) -> Estimate:
    """Estimate wins / (wins + losses) at equal length, with an interval from resampled groups.

    Swapping the sides turns the rate r into 1 - r. Repeating all items equally often changes nothing.

    Args:
        outcomes: shape (n,): above 0 a win, below 0 a loss; 0 (a tie) and NaN are left out.
        differences: shape (n,): the length of the side whose wins are counted, minus that of the other side;
            NaN is left out.
        groups: the label of each item's group, such as its prompt, length (n,).
        confidence: how often the interval should cover the truth, between 0 and 1.
        resamples: how many to draw. Each is a regression.
        seed: of the draw.

    Returns:
        The rate at equal length. It is the plain rate if all differences are 0, or all items are won, or all
        lost. It is NaN if all differences are equal and not 0, because length and quality then cannot be
        separated. The interval of a single group is NaN, unless all its items are won or all lost. `n` counts
        groups with a win or a loss; without any, value and interval are NaN.

    Raises:
        InvalidArgumentError: values that are not finite numbers, a missing group, lengths that differ, or a
            bad argument.
    """
    confidence, resamples, seed = check_resampling(confidence, resamples, seed)
    given, lengths = read_numbers("outcomes", outcomes), read_numbers("differences", differences)
    _, numbers = read_labels("groups", groups)
    check_lengths(given, lengths, numbers)
    decided = ~np.isnan(given) & (given != 0) & ~np.isnan(lengths)
    won, d, names = given[decided] > 0, lengths[decided], numbers[decided]
    if not len(won):
        return NOTHING
    if won.all() or not won.any() or not d.any():
        return rate_by_group(won, names, confidence=confidence)
    kinds, places = np.unique(names, return_inverse=True)
    if d.min() == d.max():  # not d.std() == 0, which rounding may prevent
        return Estimate(math.nan, math.nan, math.nan, len(kinds))
    x, y = _length_term(d), won.astype(np.float64)
    # All items weigh as much as the groups, so repeated items do not outweigh the prior.
    share = len(kinds) / len(won)
    return _by_resampling(
        lambda times: _rates(x, y, times, share), places, resamples, seed, confidence
    )


def length_controlled_difference(
    first: ArrayLike,
    second: ArrayLike,
    differences: ArrayLike,
    groups: Groups,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = _REFITS,
    seed: int = 0,
) -> Estimate:
    """Estimate the difference of two length-controlled rates, first - second, on the same items.

    Args:
        first, second: shape (n,) each: above 0 a win, below 0 a loss; an item with a tie or NaN in either is
            left out.
        differences, groups, confidence, resamples, seed: as for `length_controlled_rate`.

    Returns:
        The difference, from -1 to 1. It is NaN if all differences of lengths are equal and not 0. The
        interval of a single group is NaN. `n` counts groups with an item that is not left out; without any,
        value and interval are NaN.

    Raises:
        InvalidArgumentError: as `length_controlled_rate`.
    """
    confidence, resamples, seed = check_resampling(confidence, resamples, seed)
    one, other = read_numbers("first", first), read_numbers("second", second)
    lengths = read_numbers("differences", differences)
    _, numbers = read_labels("groups", groups)
    check_lengths(one, other, lengths, numbers)
    decided = ~np.isnan(one * other * lengths) & (one != 0) & (other != 0)
    d, names = lengths[decided], numbers[decided]
    if not len(d):
        return NOTHING
    kinds, places = np.unique(names, return_inverse=True)
    if d.any() and d.min() == d.max():
        return Estimate(math.nan, math.nan, math.nan, len(kinds))
    x = _length_term(d)
    won = [(a[decided] > 0).astype(np.float64) for a in (one, other)]
    share = len(kinds) / len(d)

    def difference(times: FloatArray) -> FloatArray:
        return _rates(x, won[0], times, share) - _rates(x, won[1], times, share)

    found = _by_resampling(difference, places, resamples, seed, confidence)
    if len(kinds) < 2:
        return found
    return widened(found, (-1.0, 1.0), confidence)  # both won the same items


def _length_term(d: FloatArray) -> FloatArray:
    """Compute tanh(d / sd(d)) of differences of lengths, shape (n,); all 0 if every difference is 0."""
    if not d.any():
        return np.zeros(len(d))
    d = d / np.abs(d).max()  # without this, the squares of tiny differences would be 0
    term: FloatArray = np.tanh(d / d.std())
    return term


def _by_resampling(
    statistic: Callable[[FloatArray], FloatArray],
    places: NDArray[np.int64],
    resamples: int,
    seed: int,
    confidence: float,
) -> Estimate:
    """Estimate a statistic by resampled groups.

    Args:
        statistic: how often each item counts in each of k resamples, shape (k, n) -> values (k,).
        places: the number of each item's group, from 0, shape (n,).
        resamples, seed, confidence: as for `bootstrap`.

    Returns:
        The statistic of all items. The interval of a single group is NaN.
    """
    groups = int(places.max()) + 1
    value = float(statistic(np.ones((1, len(places))))[0])
    if groups < 2:
        return Estimate(value, math.nan, math.nan, groups)
    random = np.random.default_rng(seed)
    drawn = np.concatenate([statistic(times) for times in _resampled(places, resamples, random)])
    low, high = percentiles(drawn, groups, confidence)
    return Estimate(value, min(low, value), max(high, value), groups)


def _resampled(
    places: NDArray[np.int64], resamples: int, random: np.random.Generator
) -> Iterator[FloatArray]:
    """Draw resamples of groups. Yield parts of shape (resamples, n): how often each item is drawn.

    Args:
        places: the number of each item's group, from 0, shape (n,).
        resamples: how many to draw in all parts together.
        random: draws them.
    """
    groups = int(places.max()) + 1
    even = np.full(groups, 1 / groups)
    step = max(1, _CELLS // len(places))
    for start in range(0, resamples, step):
        times = random.multinomial(groups, even, size=min(step, resamples - start))
        yield times[:, places].astype(np.float64)


def _rates(x: FloatArray, y: FloatArray, times: FloatArray, share: float) -> FloatArray:
    """Fit the regression to each resample, and return the rates at x = 0, shape (k,).

    Args:
        x: the length term of each item, shape (n,).
        y: 1 for a win, 0 for a loss, shape (n,).
        times: how often each item counts in each resample, shape (k, n).
        share: the weight of an item that counts once.

    Returns:
        The rates. A resample in which all items are won, or all lost, has no finite fit; its rate is 1 or 0.
    """
    total, wins = times.sum(axis=1), times @ y
    rates: FloatArray = wins / total
    both = (wins > 0) & (wins < total)
    if both.any():
        rates[both] = 1 / (1 + np.exp(-_fit(x, y, share * times[both])[:, 0]))
    return rates


def _fit(x: FloatArray, y: FloatArray, weights: FloatArray) -> FloatArray:
    """Fit logit P(y = 1) = a + b x by Newton's method, with a normal prior on b.

    Args:
        x: shape (n,).
        y: shape (n,): 1 or 0.
        weights: shape (k, n): the weights of the items, for each of k fits. In each row some items with y = 1
            and some with y = 0 must have a weight, else its fit is not finite.

    Returns:
        a and b of each fit, shape (k, 2).
    """
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
