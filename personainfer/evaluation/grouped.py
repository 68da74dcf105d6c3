"""Wins and losses; means and rates of items that belong to groups, such as the rows of one prompt.

The mean is over items; intervals come from resampling whole groups. `n` is the number of groups.

`length_controlled_rate` estimates what a win rate would be if the responses of both sides were equally long,
by the regression of length-controlled AlpacaEval (Dubois et al. 2024, arXiv 2404.04475, section 3), for one
pair of models: logit P(win) = a + b tanh(d / sd(d)), where d is the difference of the lengths, and the
length-controlled rate is that at d = 0. Their term for how hard an instruction is needs many models, and
is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arguments import Count, CountFromZero, check_argument, read_labels, read_numbers
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
    check_within,
    percentiles,
    widened,
    wilson,
)

# The standard deviation of a normal prior on b, without which outcomes that length separates would
# have no finite fit. The scale is the weakly informative one of Gelman, Jakulin, Pittau & Su 2008
# (Annals of Applied Statistics 2): a length difference hardly ever moves the odds more than that.
_PRIOR_SCALE = 2.5
_REFITS = 2000  # resamples, each of which is a regression
_CELLS = 500_000  # numbers held at once while resampling
_MOST_STEPS = 100
_LONGEST_STEP = 2.0  # Newton's own can be much too long where outcomes are nearly separated
_CLOSE = 1e-9


Groups = Iterable[Hashable]  # what each item belongs to: any labels, none of them missing


@dataclass(frozen=True, slots=True)
class WinRate:
    """Wins, ties and losses, and two rates.

    `rate` is wins / (wins + losses), ties apart ("Whose Boat Does it Float?", arXiv 2501.11549: W),
    with Wilson's interval; `rate_with_ties` counts a tie as half a win, with a bootstrap interval.
    """

    wins: int
    ties: int
    losses: int
    rate: Estimate
    rate_with_ties: Estimate

    def __str__(self) -> str:
        return f"{self.rate}: {self.wins:,} wins, {self.ties:,} ties, {self.losses:,} losses"

    def to_dict(self) -> dict[str, Any]:
        """Counts and rates by name."""
        return asdict(self)


def group_sums(items: FloatArray, groups: NDArray[np.intp]) -> FloatArray:
    """The sums of the items of each group: (n, m) and the number of each item's group (n,) -> (groups, m)."""
    rows = np.asarray(items, dtype=np.float64)
    numbers, places = np.unique(groups, return_inverse=True)
    sums = np.zeros((len(numbers), rows.shape[1]))
    np.add.at(sums, places, rows)
    return sums


def check_lengths(*given: NDArray[Any]) -> None:
    """Raise InvalidArgumentError unless all are of one length: values, and the group of each."""
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
    """The mean of all values, resampling groups: `n` is how many of them there are.

    Args:
        values: shape (n,); NaN is a missing one.
        groups: shape (n,): what each value belongs to.
        bounds: the lowest and the highest possible value. If all groups have the same mean, resampling
            would give an interval of width 0; with bounds, it has a width: see `widened`.
        confidence: of the interval.

    Raises:
        InvalidArgumentError: values that are not finite numbers or outside of `bounds`, a missing group, or
            lengths that differ.
    """
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
    """`mean_by_group` of scores between 0 and 1; Wilson's interval if resampling cannot vary."""
    return mean_by_group(scores, groups, bounds=(0.0, 1.0), confidence=confidence)


def win_rate(
    outcomes: ArrayLike,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> WinRate:
    """Wins, ties, losses and rates of items.

    Args:
        outcomes: shape (n,): above 0 a win, 0 a tie, below 0 a loss, NaN left out.
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
    """`win_rate`, resampling groups for both of its rates.

    Args:
        outcomes: shape (n,): above 0 a win, 0 a tie, below 0 a loss, NaN left out.
        groups: shape (n,): what each item belongs to.
        confidence: of the intervals.
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
    """ΔPQ = W_P + W_Q - 1, where W = wins / (wins + losses): from -1 to 1, and 0 for no difference.

    "Whose Boat Does it Float?" (arXiv 2501.11549), there times 100. Both outcomes of a group
    are resampled together. Where a W is 0 or 1, which resampling cannot vary, the interval is put
    together from those of both W (Zou & Donner 2008, MOVER), as if they were independent. Where one is won
    just where the other is lost, ΔPQ cannot vary either: see `widened`.

    Args:
        personalization, quality: shape (n,) each, the same items in the same order: above 0 a win, 0 a
            tie, below 0 a loss, NaN a judgement that is missing or left out.
        groups: shape (n,): what each item belongs to.
        confidence: of the interval.

    Returns:
        NaN where either has neither wins nor losses; `n` counts the groups that have any.
    """
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
    _check_resampling(confidence, resamples, seed)
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
    if d.min() == d.max():  # whose deviation may be above 0 by rounding
        return Estimate(math.nan, math.nan, math.nan, len(kinds))
    x, y = _length_term(d), won.astype(np.float64)
    share = len(kinds) / len(won)  # a prompt is one observation, however often it is asked
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
    """The first `length_controlled_rate` less the second, of the same items: groups are resampled together.

    Args:
        first, second: shape (n,) each: above 0 a win, below 0 a loss; items with a tie or NaN in either are
            left out.
        differences, groups, confidence, resamples, seed: as for `length_controlled_rate`.

    Returns:
        NaN where every item has the same difference of lengths, other than 0.
    """
    _check_resampling(confidence, resamples, seed)
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


def _check_resampling(confidence: float, resamples: int, seed: int) -> None:
    check_confidence(confidence)
    check_argument("resamples", resamples, Count)
    check_argument("seed", seed, CountFromZero)


def _length_term(d: FloatArray) -> FloatArray:
    """tanh(d / sd(d)) of differences of lengths; 0 where there are none."""
    if not d.any():
        return np.zeros(len(d))
    d = d / np.abs(d).max()  # the unit does not matter, and the square of a tiny one is 0
    term: FloatArray = np.tanh(d / d.std())
    return term


def _by_resampling(
    statistic: Callable[[FloatArray], FloatArray],
    places: NDArray[np.int64],
    resamples: int,
    seed: int,
    confidence: float,
) -> Estimate:
    """A statistic of how often each item counts, (k, n) -> (k,), with percentiles over resamples of groups.

    The interval of a single group is NaN.
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
