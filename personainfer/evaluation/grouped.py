"""Wins and losses; means and rates of items that belong to groups, such as the rows of one prompt.

The mean is over items; intervals come from resampling whole groups. `n` is the number of groups.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..exceptions import InvalidArgumentError
from ..records import FloatArray
from .statistics import (
    CONFIDENCE,
    NOTHING,
    RESAMPLES,
    Estimate,
    bootstrap,
    bootstrap_rate,
    widened,
    wilson,
)


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


def group_sums(items: ArrayLike, groups: ArrayLike) -> FloatArray:
    """The sums of the items of each group: (n, m) and (n,) -> (groups, m), sorted by group."""
    rows = np.asarray(items, dtype=np.float64)
    names, places = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.zeros((len(names), rows.shape[1]))
    np.add.at(sums, places, rows)
    return sums


def check_lengths(*given: ArrayLike) -> None:
    """Raise InvalidArgumentError unless all are of one shape (n,): values, and the group of each."""
    shapes = [np.shape(np.asarray(one)) for one in given]
    if len(set(shapes)) > 1 or len(shapes[0]) != 1:
        raise InvalidArgumentError(
            f"values and groups of the shapes {', '.join(map(str, shapes))}: all are (n,)."
        )


def mean_by_group(
    values: ArrayLike, groups: ArrayLike, *, confidence: float = CONFIDENCE
) -> Estimate:
    """The mean of all values, resampling groups: `n` is how many of them there are.

    Args:
        values: shape (n,); NaN is a missing one.
        groups: shape (n,): what each value belongs to.
        confidence: of the interval.
    """
    check_lengths(values, groups)
    given = np.asarray(values, dtype=np.float64)
    known = ~np.isnan(given)
    if not known.any():
        return NOTHING
    items = np.stack([given[known], np.ones(known.sum())], axis=1)
    sums = group_sums(items, np.asarray(groups)[known])
    return bootstrap(sums, lambda s: s[:, 0] / s[:, 1], confidence=confidence)


def rate_by_group(
    scores: ArrayLike, groups: ArrayLike, *, confidence: float = CONFIDENCE
) -> Estimate:
    """`mean_by_group` of scores between 0 and 1; Wilson's interval if resampling cannot vary."""
    return widened(mean_by_group(scores, groups, confidence=confidence), (0.0, 1.0), confidence)


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
    given = np.asarray(outcomes, dtype=np.float64)
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
    outcomes: ArrayLike, groups: ArrayLike, *, confidence: float = CONFIDENCE
) -> WinRate:
    """`win_rate`, resampling groups for both of its rates.

    Args:
        outcomes: shape (n,): above 0 a win, 0 a tie, below 0 a loss, NaN left out.
        groups: shape (n,): what each item belongs to.
        confidence: of the intervals.
    """
    check_lengths(outcomes, groups)
    given = np.sign(np.asarray(outcomes, dtype=np.float64))
    won = np.where(given == 0, np.nan, (given + 1) / 2)
    wins, ties, losses = (int((given == sign).sum()) for sign in (1, 0, -1))
    return WinRate(
        wins=wins,
        ties=ties,
        losses=losses,
        rate=rate_by_group(won, groups, confidence=confidence),
        rate_with_ties=rate_by_group((given + 1) / 2, groups, confidence=confidence),
    )


def delta_pq(
    personalization: ArrayLike,
    quality: ArrayLike,
    groups: ArrayLike,
    *,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """ΔPQ = W_P + W_Q - 1, where W = wins / (wins + losses): from -1 to 1, and 0 for no difference.

    "Whose Boat Does it Float?" (arXiv 2501.11549), there times 100. Both outcomes of a group
    are resampled together. Where a W is 0 or 1, which resampling cannot vary, the interval is put
    together from those of both W (Zou & Donner 2008, MOVER), as if they were independent.

    Args:
        personalization, quality: shape (n,) each, the same items in the same order: above 0 a win, 0 a
            tie, below 0 a loss, NaN a judgement that is missing or left out.
        groups: shape (n,): what each item belongs to.
        confidence: of the interval.

    Returns:
        NaN where either has neither wins nor losses; `n` counts the groups that have any.
    """
    check_lengths(personalization, quality, groups)
    outcomes = np.stack([np.asarray(o, dtype=np.float64) for o in (personalization, quality)])
    known = (~np.isnan(outcomes) & (outcomes != 0)).any(axis=0)
    if not known.any():
        return NOTHING
    counts = np.concatenate([outcomes > 0, outcomes < 0]).T.astype(np.float64)
    sums = group_sums(counts[known], np.asarray(groups)[known])

    def statistic(s: FloatArray) -> FloatArray:
        found: FloatArray = s[:, 0] / (s[:, 0] + s[:, 2]) + s[:, 1] / (s[:, 1] + s[:, 3]) - 1
        return found

    found = bootstrap(sums, statistic, confidence=confidence)
    won, lost = sums.sum(axis=0).reshape(2, 2)
    if math.isnan(found.value) or (won.all() and lost.all()):
        return found
    rates = [win_rate_by_group(one, groups, confidence=confidence).rate for one in outcomes]
    below = math.hypot(*(rate.value - rate.low for rate in rates))
    above = math.hypot(*(rate.high - rate.value for rate in rates))
    low, high = max(found.value - below, -1.0), min(found.value + above, 1.0)
    return Estimate(found.value, low, high, found.n)
