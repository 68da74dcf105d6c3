"""Simulate users who choose by a weighted sum of rewards, each with other weights.

The utility of response y to prompt x for user i is R_i(x, y) = sum over models b of w_ib z_b(x, y), with
weights w_i from a Dirichlet distribution and z-scored rewards z_b (PersonalLLM, arXiv 2409.20296, section 3).
Choices and scores use the same z-scores. Weights and rewards are matched by the names of the models, never by
their order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..arguments import (
    Count,
    CountFromZero,
    NumberFromZero,
    PositiveNumber,
    check_argument,
    read_items,
    read_numbers,
    read_places,
)
from ..exceptions import DataError, InvalidArgumentError, shown_when_made
from ..records import FloatArray, Preference
from .reward_matrix import RewardMatrix, check_models
from .user_weights import draw_weights

Integers = npt.NDArray[np.int64]
Offered = Literal["random", "extremes"]

_CELLS = 400_000  # utilities held at once: they fit the cache of a processor
_SUM_TOLERANCE = 1e-6  # how far weights may be from adding up to one
_TIE_TOLERANCE = 1e-12  # difference of utilities that is rounding


class SimulatedUsers:
    """Users, each with weights over named reward models.

    Args:
        weights: shape (users, models): not negative, and each row adds up to one. A frame whose columns are
            the models is read by their names.
        models: the name of each model.
        names: the ids of the users in their histories; None: "0", "1", …

    Attributes:
        weights, models, names: what was given; `weights` as an array that cannot be written, the others as
            tuples.
        redrawn: how often `sample` drew a user again, because the user was too near to another one; else 0.

    Raises:
        InvalidArgumentError: weights that do not add up to one, or shapes and names that do not fit.
    """

    def __init__(
        self,
        weights: npt.ArrayLike,
        *,
        models: Sequence[str],
        names: Sequence[str] | None = None,
    ) -> None:
        self.models = check_models(models)
        self.weights = _weights(weights, self.models)
        self.names = _names(names, len(self.weights))
        self.redrawn = 0

    def __len__(self) -> int:
        """How many users there are."""
        return len(self.weights)

    @shown_when_made
    def __repr__(self) -> str:
        return f"SimulatedUsers({len(self):,} users over {', '.join(self.models)})"

    @classmethod
    def sample(
        cls,
        n: int,
        *,
        models: Sequence[str],
        alpha: float = 0.05,
        min_distance: float = 0.0,
        seed: int = 0,
    ) -> SimulatedUsers:
        """Draw the weights of n users from Dirichlet(alpha, …, alpha).

        With a small alpha, each user follows one model; with a large one, all users agree. The order of
        `models` does not change the draw.

        Args:
            n: how many users.
            models: the names of the models.
            alpha: the concentration, above 0; 0.05 in the main runs of PersonalLLM.
            min_distance: draw a user again whose weights are nearer than this (Euclidean distance) to those
                of an earlier user; 0: keep all, as PersonalLLM's sampler does. Users who follow one model are
                near each other, so a distance above 0 removes most of them: with ten models and alpha 0.02,
                1e-5 leaves 1 % of users with all weight on one model, instead of 13 %. A warning says if near
                users are left.
            seed: of the draw, from 0; equal seeds give equal users.

        Returns:
            The users, with the names "0", "1", …

        Raises:
            InvalidArgumentError: a bad argument.
        """
        names = check_models(models)
        n = check_argument("n", n, Count)
        seed = check_argument("seed", seed, CountFromZero)
        alpha = check_argument("alpha", alpha, PositiveNumber)
        min_distance = check_argument("min_distance", min_distance, NumberFromZero)
        ordered = sorted(names)
        drawn, redrawn = draw_weights(n, len(names), alpha, min_distance, seed)
        users = cls(drawn[:, [ordered.index(name) for name in names]], models=names)
        users.redrawn = redrawn
        return users

    def utilities(self, matrix: RewardMatrix) -> FloatArray:
        """Compute the utility of each response for each user, shape (users, prompts, responses).

        The utility is the sum of the response's z-scores, weighted by the user. Memory for all is taken at
        once.

        Raises:
            InvalidArgumentError: the matrix has other models.
        """
        return _utilities(self.weights_for(matrix), matrix.zscores)

    def choose(
        self,
        matrix: RewardMatrix,
        *,
        pairs: npt.ArrayLike | None = None,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Integers:
        """Let each user choose a response to each prompt; return places, shape (users, prompts).

        A place is that of a response in the matrix, from 0, also if `pairs` are offered.

        Args:
            matrix: rewards of the same models, in any order.
            pairs: the two places that are offered: for each prompt, shape (prompts, 2), or for each user and
                prompt, shape (users, prompts, 2). None: all responses are offered.
            temperature: 0: users choose the highest utility, and ties are drawn. Above 0: P(response) is
                proportional to exp(utility / temperature), which is the Bradley-Terry model for a pair, and
                Luce's choice axiom for more responses.
            seed: of ties, and of choices at a temperature above 0. Each user has a random stream, so more or
                fewer later users do not change a user's choices.

        Raises:
            InvalidArgumentError: the matrix has other models, or a bad argument.
        """
        weights = self.weights_for(matrix)
        temperature = check_argument("temperature", temperature, NumberFromZero)
        seed = check_argument("seed", seed, CountFromZero)
        offered = None if pairs is None else _pairs(pairs, len(self), matrix.rewards.shape[:2])
        chosen = np.empty((len(self), len(matrix)), dtype=np.int64)
        for part in _parts(len(self), matrix.zscores[..., 0].size):
            values = _utilities(weights[part], matrix.zscores)
            if offered is not None:
                values = np.take_along_axis(values, offered[part], axis=2)
            if temperature > 0:
                values /= max(temperature, 1.0)  # dividing by a tiny one would overflow
                for user, row in zip(range(part.start, part.stop), values, strict=True):
                    noise = _gumbel(np.random.default_rng([seed, user]), row.shape)
                    row += min(temperature, 1.0) * noise
            best, tied = _best(values)
            for row in np.flatnonzero(tied.any(axis=1)):
                random = np.random.default_rng([seed, part.start + int(row)])
                best[row] = _drawn_ties(values[row], best[row], random)
            if offered is not None:
                best = np.take_along_axis(offered[part], best[..., None], axis=2)[..., 0]
            chosen[part] = best
        return chosen

    def histories(
        self,
        matrix: RewardMatrix,
        *,
        pairs_per_user: int = 5,
        offered: Offered = "random",
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[Preference]:
        """Let each user choose between two responses to some prompts; return the choices as records.

        Args:
            matrix: rewards of the same models, with prompts and responses.
            pairs_per_user: how many prompts, drawn without replacement for each user.
            offered: "random": two responses, drawn from all pairs of different texts; "extremes": the two
                responses whose utilities for the user differ most.
            temperature: as for `choose`.
            seed: of prompts, pairs, ties, and choices at a temperature above 0.

        Returns:
            `pairs_per_user` preferences for each user, in the order of users, with `user` (the user's name)
            and `id` ("user:place of the prompt"). Responses with the same text, or an empty one, are never
            offered; a prompt without two different responses is not drawn.

        Raises:
            InvalidArgumentError: the matrix has no texts or other models, or a bad argument.
            DataError: fewer than `pairs_per_user` prompts have two different responses.
        """
        weights = self.weights_for(matrix)
        temperature = check_argument("temperature", temperature, NumberFromZero)
        pairs_per_user = check_argument("pairs_per_user", pairs_per_user, Count)
        seed = check_argument("seed", seed, CountFromZero)
        InvalidArgumentError.check("offered", offered, ("random", "extremes"))
        prompts, responses = matrix.texts
        pairs = _askable(matrix, pairs_per_user)
        history: list[Preference] = []
        for user, row in enumerate(weights):
            random = np.random.default_rng([seed, user])
            drawn = random.choice(len(pairs), size=pairs_per_user, replace=False)
            for prompt, candidates in (pairs[place] for place in drawn):
                values = matrix.zscores[prompt] @ row
                if offered == "extremes":
                    pair = _extremes(values, candidates)
                else:
                    pair = candidates[random.integers(len(candidates))]
                best, worst = _decide(values, pair, temperature, random)
                history.append(
                    Preference(
                        prompt=prompts[prompt],
                        chosen=responses[prompt][best],
                        rejected=responses[prompt][worst],
                        id=f"{self.names[user]}:{prompt}",
                        user=self.names[user],
                    )
                )
        return history

    def weights_for(self, matrix: RewardMatrix) -> FloatArray:
        """Return the weights with models in the order of the matrix, shape (users, models).

        Raises:
            InvalidArgumentError: the matrix has other models.
        """
        if not isinstance(matrix, RewardMatrix):
            raise InvalidArgumentError(f"matrix is a {type(matrix).__name__}, not a RewardMatrix.")
        here, there = set(self.models), set(matrix.models)
        if here != there:
            without = f"no weight for {', '.join(sorted(there - here))}" if there - here else ""
            unknown = f"no rewards of {', '.join(sorted(here - there))}" if here - there else ""
            raise InvalidArgumentError(
                "users and matrix name different models: "
                f"{'; '.join(filter(None, (without, unknown)))}.",
                hint="Sample users with models=matrix.models.",
            )
        return self.weights[:, [self.models.index(name) for name in matrix.models]]


# Choosing


def _utilities(weights: FloatArray, zscores: FloatArray) -> FloatArray:
    prompts, responses, models = zscores.shape
    by_response = zscores.transpose(1, 0, 2).reshape(-1, models)
    values: FloatArray = weights @ by_response.T
    return values.reshape(len(weights), responses, prompts).transpose(0, 2, 1)


def _best(values: FloatArray) -> tuple[Integers, npt.NDArray[np.bool_]]:
    """Find the first place of the highest value along the last axis, and whether it is tied.

    Both have the shape of `values` without the last axis. Values that differ by rounding alone are tied. The
    loop over responses is faster than `values.argmax(axis=2)` over so short an axis.
    """
    best = np.zeros(values.shape[:2], dtype=np.int16)
    tied = np.zeros(values.shape[:2], dtype=bool)
    worth = values[..., 0].copy()
    for response in range(1, values.shape[2]):
        lead = values[..., response] - worth
        better = lead > _TIE_TOLERANCE
        tied &= ~better
        tied |= np.abs(lead) <= _TIE_TOLERANCE
        np.maximum(worth, values[..., response], out=worth)
        np.maximum(best, better * np.int16(response), out=best)
    return best.astype(np.int64), tied


def _drawn_ties(values: FloatArray, best: Integers, random: np.random.Generator) -> Integers:
    """Choose for one user the response with the highest value to each prompt; draw among tied ones.

    Args:
        values: shape (prompts, responses).
        best: shape (prompts,): the choice where nothing is tied.
        random: the user's random stream.

    Returns:
        Places of responses, shape (prompts,).
    """
    highest = values >= values.max(axis=1, keepdims=True) - _TIE_TOLERANCE
    order = random.random(values.shape)
    several = highest.sum(axis=1) > 1
    return np.where(several, np.where(highest, order, -1.0).argmax(axis=1), best)


def _gumbel(random: np.random.Generator, shape: tuple[int, ...]) -> FloatArray:
    """Draw Gumbel noise of this shape: argmax(values + noise) is a draw from the softmax of the values."""
    with np.errstate(divide="ignore"):
        noise: FloatArray = -np.log(random.standard_exponential(shape[::-1]).T)
    return noise


def _parts(users: int, cells: int) -> Iterator[slice]:
    """Yield slices of users whose utilities (`cells` for each user) stay below `_CELLS`."""
    size = max(1, _CELLS // cells)
    for start in range(0, users, size):
        yield slice(start, min(start + size, users))


def _askable(matrix: RewardMatrix, wanted: int) -> list[tuple[int, Integers]]:
    """Return (place of a prompt, pairs of places of different responses), for prompts with such a pair.

    The pairs of a prompt have the shape (pairs, 2).

    Raises:
        DataError: fewer than `wanted` prompts have such a pair.
    """
    _, responses = matrix.texts
    count = matrix.rewards.shape[1]
    places = np.array([(a, b) for a in range(count) for b in range(a + 1, count)], dtype=np.int64)
    found = []
    for prompt, texts in enumerate(responses):
        said = [text.strip() for text in texts]
        different = [bool(said[a] and said[b]) and said[a] != said[b] for a, b in places]
        if any(different):
            found.append((prompt, places if all(different) else places[different]))
    if len(found) < wanted:
        raise DataError(
            f"pairs_per_user={wanted}, but only {len(found)} prompts have two different responses."
        )
    return found


def _extremes(values: FloatArray, candidates: Integers) -> Integers:
    """Return the pair among the candidates, shape (pairs, 2), whose utilities differ most."""
    margins = values[candidates[:, 0]] - values[candidates[:, 1]]
    pair: Integers = candidates[np.abs(margins).argmax()]
    return pair


def _decide(
    values: FloatArray, pair: Integers, temperature: float, random: np.random.Generator
) -> tuple[int, int]:
    """Let a user choose between two responses to a prompt.

    Args:
        values: the user's utility of each response, shape (responses,).
        pair: the places of the two responses, shape (2,).
        temperature: the scale of the logistic noise that is added to the difference of the utilities. 0: the
            higher utility wins. The noise decides a tie at any temperature.
        random: one number is drawn from it.

    Returns:
        (the place of the preferred response, the place of the other one).
    """
    one, other = (int(place) for place in pair)
    noise = random.logistic()  # always drawn, so that later draws do not depend on the temperature
    margin = values[one] - values[other]
    if abs(margin) <= _TIE_TOLERANCE:  # a tie: the noise alone decides
        return (one, other) if noise >= 0 else (other, one)
    return (one, other) if margin + temperature * noise >= 0 else (other, one)


# Arguments


def _weights(given: Any, models: Sequence[str]) -> FloatArray:
    """Read weights, shape (users, models). A frame whose columns are the models is read by their names."""
    columns = list(getattr(given, "column_names", getattr(given, "columns", ())))  # Arrow's first
    if not set(models).isdisjoint(columns):
        if Counter(columns) != Counter(models):
            raise InvalidArgumentError(
                f"weights= has the columns {', '.join(map(str, columns))}, and the models are"
                f" {', '.join(models)}.",
                hint="Give the frame one column for each model, and no other.",
                argument="weights",
            )
        given = np.column_stack([np.asarray(given[name]) for name in models])
    weights = read_numbers("weights", given, dimensions=(0, 1, 2, 3), infinite=True)
    if weights.ndim != 2 or not len(weights) or weights.shape[1] != len(models):
        raise InvalidArgumentError(
            f"weights has the shape {weights.shape}, not (users, {len(models)} models)."
        )
    sums = weights.sum(axis=1)
    wrong = np.flatnonzero(~((np.abs(sums - 1.0) <= _SUM_TOLERANCE) & (weights >= 0).all(axis=1)))
    if len(wrong):
        raise InvalidArgumentError(
            f"the weights of user {wrong[0]} add up to {sums[wrong[0]]:g}, or one is negative or NaN"
            f" ({len(wrong):,} such users).",
            hint="Weights are not negative and add up to one; divide each row by its sum.",
        )
    weights.setflags(write=False)
    return weights


def _names(given: Sequence[str] | None, users: int) -> tuple[str, ...]:
    names = tuple(map(str, range(users)) if given is None else read_items("names", given))
    texts = all(isinstance(name, str) for name in names)
    if not texts or not len(names) == len(set(names)) == users:
        raise InvalidArgumentError(f"names= must be {users} different texts.")
    return names


def _pairs(given: npt.ArrayLike, users: int, shape: tuple[int, ...]) -> Integers:
    pairs = read_places("pairs", given, dimensions=(2, 3), below=shape[1])
    if pairs.shape not in ((shape[0], 2), (users, shape[0], 2)):
        raise InvalidArgumentError(
            f"pairs= has the shape {pairs.shape}: ({shape[0]}, 2) or ({users}, {shape[0]}, 2) is needed.",
            argument="pairs",
        )
    if (pairs[..., 0] == pairs[..., 1]).any():
        raise InvalidArgumentError(
            "pairs= must name two different responses each.", argument="pairs"
        )
    return np.broadcast_to(pairs, (users, shape[0], 2))
