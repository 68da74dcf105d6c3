"""Compute the posterior over candidate personas of one user from the choices that the user made.

Persona k predicts a choice with probability sigma(e_k / tau). e_k, from `explains` of any `Selector`, says
how well the persona explains the choice, in nats a token. This is the Bradley-Terry model with the lift a
token as the reward. Numpy only.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import InstanceOf

from ..arguments import PositiveNumber, Wanted, check_argument, read_items, read_numbers
from ..exceptions import InvalidArgumentError, shown_when_made
from ..personas.selection import explains_each
from ..records import FloatArray, Persona, Preference, Selector

_GRID = 121  # points on a grid, of which the best is refined: the objective may have several peaks
_GOLDEN = (np.sqrt(5.0) - 1.0) / 2.0
_REFINEMENTS = 60
_LARGEST = 1e300
_Bounds = Annotated[tuple[PositiveNumber, PositiveNumber], Wanted("must be two positive numbers.")]


class PersonaPosterior:
    """A distribution over K candidate personas, updated by each choice of one user.

    log p(k | choices) = log prior(k) + sum over choices of log sigma(e_k / tau), normalised over k.

    Args:
        personas: the K candidates.
        prior: K weights, at least 0 and not all 0, with any sum; None: equal weights.
        temperature: tau, in the unit of `explains`. With a smaller tau each choice counts more.

    Raises:
        InvalidArgumentError: there are no personas, or `prior` or `temperature` cannot be used.
    """

    def __init__(
        self,
        personas: Sequence[Persona | str],
        prior: npt.ArrayLike | None = None,
        temperature: float = 1.0,
    ) -> None:
        self.personas = tuple(read_items("personas", personas))
        if not self.personas:
            raise InvalidArgumentError("personas= is a sequence of at least one candidate.")
        self.temperature = float(check_argument("temperature", temperature, PositiveNumber))
        with np.errstate(divide="ignore"):  # a candidate of weight 0 is ruled out
            self._log_prior = np.log(_prior(prior, len(self.personas)))
        self._explains = np.zeros((0, len(self.personas)))

    @classmethod
    def from_preferences(
        cls,
        personas: Sequence[Persona],
        preferences: Sequence[Preference],
        selector: Selector,
        prior: npt.ArrayLike | None = None,
        temperature: float = 1.0,
    ) -> PersonaPosterior:
        """Score each candidate on each of one user's pairs, and compute the posterior.

        Args:
            personas: the K candidates.
            preferences: N pairs; `chosen` is the user's choice.
            selector: its `explains` scores the candidates, such as a `Likelihood`. A pair with NaN for one
                candidate is left out for all, with a warning.
            prior, temperature: as for the class.

        Raises:
            InvalidArgumentError: an argument cannot be used, or the selector refuses all pairs.
            ModelError: the selector's model failed.
        """
        preferences = read_items("preferences", preferences)
        personas = read_items("personas", personas)
        posterior = cls(personas, prior, temperature)
        pairs = [pair for pair in preferences for _ in personas]
        asked = personas * len(preferences)
        scores = explains_each(selector, pairs, asked, "selector")
        rows = scores.reshape(len(preferences), len(personas))
        known = ~np.isnan(rows).any(axis=1)
        if not known.all():
            warnings.warn(
                f"{np.count_nonzero(~known)} of {len(rows)} preferences have no score for some persona:"
                " they are left out.",
                stacklevel=2,
            )
        return posterior.update(rows[known])

    @shown_when_made
    def __repr__(self) -> str:
        pairs, candidates = self._explains.shape
        return f"PersonaPosterior({candidates} personas, {pairs} pairs, entropy {self.entropy:.3f})"

    def update(self, explains: npt.ArrayLike) -> PersonaPosterior:
        """Add further choices, and return the posterior itself.

        Args:
            explains: (N, K), or (K,) for one choice: how well each candidate explains each choice, finite.

        Raises:
            InvalidArgumentError: `explains` has another shape, or holds a number that is not finite.
        """
        self._explains = np.vstack([self._explains, self._matrix(explains)])
        return self

    @property
    def explains(self) -> FloatArray:
        """How well each candidate explains each choice so far, (N, K)."""
        return self._explains.copy()

    @property
    def log_probabilities(self) -> FloatArray:
        """log p of each candidate given all choices, (K,)."""
        last: FloatArray = self._path(self.temperature)[-1]
        return last

    @property
    def probabilities(self) -> FloatArray:
        """p of each candidate given all choices, (K,). The sum is 1."""
        return np.exp(self.log_probabilities)

    @property
    def top(self) -> Persona | str:
        """The most probable candidate; the first of several that are equally probable."""
        return self.personas[int(np.argmax(self.log_probabilities))]

    @property
    def entropy(self) -> float:
        """The entropy of the posterior, in nats: 0 if one candidate is certain, log K if all are equal."""
        return float(_entropy(self.log_probabilities[None])[0])

    @property
    def trajectory(self) -> FloatArray:
        """p of each candidate after 0, 1, …, N choices, (N + 1, K): the first row is the prior."""
        return np.exp(self._path(self.temperature))

    @property
    def entropy_trajectory(self) -> FloatArray:
        """The entropy of the posterior after 0, 1, …, N choices, (N + 1,), in nats."""
        return _entropy(self._path(self.temperature))

    def predict(self, explains: npt.ArrayLike) -> FloatArray:
        """Compute p of each of N further choices, (N,): the mean over the candidates by the posterior.

        The posterior does not change.

        Args:
            explains: (N, K), or (K,) for one choice, as for `update`.

        Raises:
            InvalidArgumentError: `explains` has another shape, or holds a number that is not finite.
        """
        return np.exp(self._log_predictive(self._matrix(explains), self.temperature))

    def fit_temperature(
        self, held_out: npt.ArrayLike, bounds: tuple[float, float] = (1e-3, 1e3)
    ) -> float:
        """Set the temperature to the one that best predicts held-out choices of this user, and return it.

        The objective is the sum of log p(held-out choice | choices so far). It is low if the posterior is
        overconfident, and also if it learns nothing. Of equally good temperatures the highest is taken, the
        most cautious one. Few choices of a single user give a poor estimate: see `fit_common_temperature`.

        Args:
            held_out: (N, K), as for `update`: choices that were not given to `update`.
            bounds: the smallest and the largest temperature to try.

        Raises:
            InvalidArgumentError: there is no held-out choice, or an argument cannot be used.
        """
        return PersonaPosterior.fit_common_temperature([self], [held_out], bounds)

    @staticmethod
    def fit_common_temperature(
        posteriors: Sequence[PersonaPosterior],
        held_out: Sequence[npt.ArrayLike],
        bounds: tuple[float, float] = (1e-3, 1e3),
    ) -> float:
        """Fit one temperature for many users, set it in all posteriors, and return it.

        The objective is that of `fit_temperature`, summed over the users.

        Args:
            posteriors: one for each user.
            held_out: for each user choices that were not given to `update`, (N_user, K_user).
            bounds: the smallest and the largest temperature to try.

        Raises:
            InvalidArgumentError: there is no held-out choice, or an argument cannot be used.
        """
        posteriors, held_out = (
            read_items("posteriors", posteriors),
            read_items("held_out", held_out),
        )
        for posterior in posteriors:
            check_argument("posteriors", posterior, InstanceOf[PersonaPosterior])
        if len(posteriors) != len(held_out) or not posteriors:
            raise InvalidArgumentError(
                f"{len(posteriors)} posteriors and {len(held_out)} held-out arrays: one each is needed."
            )
        check_argument("bounds", bounds, _Bounds)
        low, high = map(float, bounds)
        if low > high:
            raise InvalidArgumentError(
                f"bounds={bounds!r} must be the smaller one, then the larger."
            )
        pairs = [(one, one._matrix(rows)) for one, rows in zip(posteriors, held_out, strict=True)]
        if not sum(len(rows) for _, rows in pairs):
            raise InvalidArgumentError("held_out= holds no choice to fit the temperature on.")

        def objective(log_temperature: float) -> float:
            temperature = float(np.exp(log_temperature))
            return sum(float(one._log_predictive(r, temperature).sum()) for one, r in pairs)

        best = float(np.exp(_maximum(objective, np.log(low), np.log(high))))
        for posterior in posteriors:
            posterior.temperature = best
        return best

    def _path(self, temperature: float) -> FloatArray:
        """Compute log p of each candidate after 0, 1, …, N choices, (N + 1, K)."""
        gained = np.cumsum(_log_choice(self._explains, temperature), axis=0)
        joint = np.vstack([self._log_prior, self._log_prior + gained])
        # Else large sums would round the differences away.
        joint -= joint.max(axis=1, keepdims=True)
        return joint - _log_sum(joint)[:, None]

    def _log_predictive(self, explains: FloatArray, temperature: float) -> FloatArray:
        """Compute log p of each choice in `explains`, (N,), given all choices so far."""
        return _log_sum(self._path(temperature)[-1] + _log_choice(explains, temperature))

    def _matrix(self, explains: npt.ArrayLike) -> FloatArray:
        """Return `explains` as (N, K). Raises InvalidArgumentError for a wrong shape or an unfit number."""
        rows = read_numbers("explains", explains, dimensions=(0, 1, 2), infinite=True)
        if rows.ndim == 1 and rows.size:
            rows = rows[None]
        rows = rows.reshape(0, len(self.personas)) if rows.size == 0 else rows
        if rows.ndim != 2 or rows.shape[1] != len(self.personas):
            raise InvalidArgumentError(
                f"explains= has the shape {np.shape(explains)}, not (pairs, {len(self.personas)})."
            )
        if not np.isfinite(rows).all():
            raise InvalidArgumentError("explains= holds a value that is not a finite number.")
        return rows


def _prior(weights: npt.ArrayLike | None, size: int) -> FloatArray:
    """Scale weights to the sum 1, shape (size,). None: equal weights.

    Raises:
        InvalidArgumentError: the shape is not (size,), a weight is negative or not finite, or all are 0.
    """
    prior = np.ones(size) if weights is None else read_numbers("prior", weights, infinite=True)
    if prior.shape != (size,) or not np.isfinite(prior).all() or prior.min() < 0 or not prior.any():
        raise InvalidArgumentError(
            f"prior={weights!r:.80} must be {size} weights, not negative, and not all 0."
        )
    prior = prior / prior.max()  # else the sum may be too large for a float
    normalised: FloatArray = prior / prior.sum()
    return normalised


def _log_choice(explains: FloatArray, temperature: float) -> FloatArray:
    """Compute log sigma(explains / temperature), in the shape of `explains`. Ratios are clipped at ±1e300."""
    with np.errstate(over="ignore"):
        ratios = np.clip(explains / temperature, -_LARGEST, _LARGEST)
    return -np.logaddexp(0.0, -ratios)


def _log_sum(rows: FloatArray) -> FloatArray:
    """Compute log(sum(exp(row))) of each row: (n, k) -> (n,)."""
    result: FloatArray = np.logaddexp.reduce(rows, axis=1)
    return result


def _entropy(log_rows: FloatArray) -> FloatArray:
    terms = np.exp(log_rows) * -np.where(np.isneginf(log_rows), 0.0, log_rows)
    result: FloatArray = np.maximum(terms.sum(axis=1), 0.0)
    return result


def _maximum(objective: Callable[[float], float], low: float, high: float) -> float:
    """Find where a function of one variable is largest: the best point of a grid, refined by golden sections.

    Of equally good points the largest is returned.
    """
    grid = np.linspace(low, high, _GRID)
    best = _GRID - 1 - int(np.argmax([objective(float(point)) for point in grid[::-1]]))
    left, right = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, _GRID - 1)])
    for _ in range(_REFINEMENTS):
        inner, outer = right - _GOLDEN * (right - left), left + _GOLDEN * (right - left)
        if objective(inner) > objective(outer):
            right = outer
        else:
            left = inner
    middle = (left + right) / 2
    return max((high, middle, low), key=objective)  # if several are equal, the first
