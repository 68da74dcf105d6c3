"""Users who are simulated: each weighs reward models in a way of their own, and chooses by the sum.

R_i(x, y) = sum over models b of w_ib * z_b(x, y), with w_i from a Dirichlet distribution: PersonalLLM
(arXiv 2409.20296, section 3). Labels and scores come from the same z-scores, and weights meet rewards by
the names of the models, never by their order. Numpy only.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..exceptions import DataError, InvalidArgumentError
from ..records import Preference
from .reward_matrix import RewardMatrix, check_models

__all__ = ["SimulatedUsers"]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Offered = Literal["random", "extremes"]

_NEAR = 1e-5  # Euclidean distance between weights below which two users are one, as published
_ROUNDS = 50  # of drawing again
_TOO_MANY = 0.5  # share of near duplicates from which drawing again would leave only oddities
_CELLS = 400_000  # utilities held at once: few enough for the cache of a processor
_SUM = 1e-6  # how far weights may be from adding up to one


class SimulatedUsers:
    """Users as weights over named reward models.

    Args:
        weights: shape (users, models): not negative, each row adding up to one.
        models: the name of each model.
        names: what users are called in their histories; None: "0", "1", …

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

    def __len__(self) -> int:
        """How many users there are."""
        return len(self.weights)

    def __repr__(self) -> str:
        return f"SimulatedUsers({len(self):,} users over {', '.join(self.models)})"

    @classmethod
    def sample(
        cls, n: int, *, models: Sequence[str], alpha: float = 0.05, seed: int = 0
    ) -> SimulatedUsers:
        """Draw n users from Dirichlet(alpha, …, alpha).

        With a small alpha each user follows one model, with a large one all agree. The draw belongs to
        the names, so the order in which they are given changes nothing. A user whose weights are nearer
        than 1e-5 to those of an earlier one is drawn again. At an extreme alpha, where more than half are
        such near duplicates, they stay, with a warning: what is left without them would not be what
        alpha describes.

        Args:
            n: how many users.
            models: the names of the models.
            alpha: the concentration; 0.05 in the main runs of PersonalLLM.
            seed: of the draw.
        """
        names = check_models(models)
        _check_count("n", n)
        if not _is_real(alpha) or not 0 < alpha < np.inf:
            raise InvalidArgumentError(f"alpha={alpha!r} must be a positive number.")
        ordered = sorted(names)
        random = np.random.default_rng(seed)
        drawn = _distinct_users(lambda count: _dirichlet(random, alpha, len(names), count), n)
        return cls(drawn[:, [ordered.index(name) for name in names]], models=names)

    def utilities(self, matrix: RewardMatrix) -> Floats:
        """What each response is worth to each user: shape (users, prompts, responses)."""
        return _utilities(self._weights_for(matrix), matrix.zscores)

    def choose(
        self,
        matrix: RewardMatrix,
        *,
        pairs: npt.ArrayLike | None = None,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Integers:
        """The place of the response that each user prefers for each prompt: shape (users, prompts).

        Args:
            matrix: rewards of the same models, in any order.
            pairs: two places for each prompt, shape (prompts, 2), or for each user and prompt, shape
                (users, prompts, 2): only these are offered. None: all responses.
            temperature: 0: the response of the highest utility (the first of equals). Above:
                P(response) is proportional to exp(utility / temperature): for a pair the
                Bradley-Terry model, for more Luce's choice axiom.
            seed: of the choices at a temperature. Each user has a stream of their own, so that other
                users change nothing.
        """
        weights = self._weights_for(matrix)
        _check_temperature(temperature)
        offered = None if pairs is None else _pairs(pairs, len(self), matrix.rewards.shape[:2])
        chosen = np.empty((len(self), len(matrix)), dtype=np.int64)
        for part in _parts(len(self), matrix.zscores[..., 0].size):
            values = _utilities(weights[part], matrix.zscores)
            if offered is not None:
                values = np.take_along_axis(values, offered[part], axis=2)
            if temperature > 0:
                values /= temperature
                for user, row in zip(range(part.start, part.stop), values, strict=True):
                    row += _gumbel(np.random.default_rng([seed, user]), row.shape)
            best = _best(values)
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
        """The choices of each user as records: user by user, `pairs_per_user` for each.

        Args:
            matrix: rewards of the same models, with prompts and responses.
            pairs_per_user: how many prompts, drawn without replacement for each user.
            offered: "random": two of the responses, any two with the same probability; "extremes":
                the user's best and worst response.
            temperature, seed: as for `choose`. The seed also draws prompts and pairs. Each user has a
                stream of their own.

        Returns:
            Preferences with `user` (the user's name) and `id` ("user:prompt", by place). Responses of
            the same text are never offered against each other; prompts that offer nothing else are
            not drawn.

        Raises:
            InvalidArgumentError: the matrix has no texts, or an argument cannot work.
            DataError: too few prompts with two different responses.
        """
        weights = self._weights_for(matrix)
        _check_temperature(temperature)
        _check_count("pairs_per_user", pairs_per_user)
        InvalidArgumentError.check("offered", offered, ("random", "extremes"))
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
                history.append(_record(matrix, prompt, best, worst, self.names[user]))
        return history

    def _weights_for(self, matrix: RewardMatrix) -> Floats:
        """The weights in the order of the matrix's models."""
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
        weights: Floats = self.weights[:, [self.models.index(name) for name in matrix.models]]
        return weights


# Drawing users


def _dirichlet(random: np.random.Generator, alpha: float, models: int, count: int) -> Floats:
    drawn = random.dirichlet(np.full(models, alpha), size=count)
    weights: Floats = drawn / drawn.sum(axis=1, keepdims=True)
    return weights


def _distinct_users(draw: Callable[[int], Floats], n: int) -> Floats:
    """n users, no two of them near duplicates; or a plain draw, where that would be another population."""
    users = draw(n)
    near = _near_duplicates(users)
    if near.mean() > _TOO_MANY:
        _warn(int(near.sum()), n)
        return users
    for _ in range(_ROUNDS):
        if not near.any():
            return users
        users = np.concatenate([users[~near], draw(int(near.sum()))])
        near = _near_duplicates(users)
    if near.any():
        _warn(int(near.sum()), n)
    return users


def _warn(near: int, n: int) -> None:
    warnings.warn(
        f"{near:,} of {n:,} users are near duplicates of others: there are too few different ones at"
        " this alpha.",
        stacklevel=4,
    )


def _near_duplicates(users: Floats) -> npt.NDArray[np.bool_]:
    """Which users are nearer than _NEAR to an earlier one that is kept."""
    kept = np.zeros(len(users), dtype=bool)
    # One of each cell of a grid first: where many are at one place, few are left to compare.
    _, first = np.unique(np.floor(users / (_NEAR / users.shape[1])), axis=0, return_index=True)
    kept[first] = True
    order = first[np.argsort(users[first] @ np.sqrt(np.arange(1, users.shape[1] + 1)))]
    along = users[order] @ np.sqrt(np.arange(1, users.shape[1] + 1))
    reach = _NEAR * np.sqrt(np.arange(1, users.shape[1] + 1).sum())  # |a.v - b.v| <= |a - b| |v|
    step = 1
    near: list[tuple[int, int]] = []
    while (close := np.flatnonzero(along[step:] - along[:-step] < reach)).size:
        one, other = order[close], order[close + step]
        same = np.linalg.norm(users[one] - users[other], axis=1) < _NEAR
        near += zip(np.minimum(one, other)[same], np.maximum(one, other)[same], strict=True)
        step += 1
    for earlier, later in sorted(near, key=lambda pair: pair[1]):
        if kept[earlier]:
            kept[later] = False
    return ~kept


# Choosing


def _utilities(weights: Floats, zscores: Floats) -> Floats:
    prompts, responses, models = zscores.shape
    by_response = zscores.transpose(1, 0, 2).reshape(-1, models)
    values: Floats = weights @ by_response.T
    return values.reshape(len(weights), responses, prompts).transpose(0, 2, 1)


def _best(values: Floats) -> Integers:
    """`values.argmax(axis=2)`, response by response: numpy's own is slow over so short an axis."""
    best = np.zeros(values.shape[:2], dtype=np.int16)
    worth = values[..., 0].copy()
    for response in range(1, values.shape[2]):
        better = values[..., response] > worth
        np.maximum(worth, values[..., response], out=worth)
        np.maximum(best, better * np.int16(response), out=best)
    return best.astype(np.int64)


def _gumbel(random: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Gumbel noise: the place of the highest value + noise then has the softmax of the values."""
    with np.errstate(divide="ignore"):
        noise: Floats = -np.log(random.standard_exponential(shape[::-1]).T)
    return noise


def _parts(users: int, cells: int) -> Iterator[slice]:
    """Users in groups whose utilities fit into memory."""
    size = max(1, _CELLS // cells)
    for start in range(0, users, size):
        yield slice(start, min(start + size, users))


def _askable(matrix: RewardMatrix, wanted: int) -> list[tuple[int, Integers]]:
    """Prompts, by place, that have responses of different texts, and the pairs of those."""
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


def _extremes(values: Floats, candidates: Integers) -> Integers:
    """The pair among the candidates whose utilities lie furthest apart."""
    margins = values[candidates[:, 0]] - values[candidates[:, 1]]
    pair: Integers = candidates[np.abs(margins).argmax()]
    return pair


def _decide(
    values: Floats, pair: Integers, temperature: float, random: np.random.Generator
) -> tuple[int, int]:
    """Which response of a pair is preferred to which."""
    one, other = (int(place) for place in pair)
    noise = random.logistic()  # drawn at any temperature, so that it changes no later draw
    preferred = values[one] - values[other] + temperature * noise >= 0
    return (one, other) if preferred else (other, one)


def _record(matrix: RewardMatrix, prompt: int, best: int, worst: int, user: str) -> Preference:
    prompts, responses = matrix.texts
    return Preference(
        prompt=prompts[prompt],
        chosen=responses[prompt][best],
        rejected=responses[prompt][worst],
        id=f"{user}:{prompt}",
        user=user,
    )


# Arguments


def _weights(given: npt.ArrayLike, models: Sequence[str]) -> Floats:
    try:
        weights = np.array(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"weights is no array of numbers: {error}") from None
    if weights.ndim != 2 or not len(weights) or weights.shape[1] != len(models):
        raise InvalidArgumentError(
            f"weights has the shape {weights.shape}, not (users, {len(models)} models)."
        )
    sums = weights.sum(axis=1)
    wrong = np.flatnonzero(~((np.abs(sums - 1.0) <= _SUM) & (weights >= 0).all(axis=1)))
    if len(wrong):
        raise InvalidArgumentError(
            f"the weights of user {wrong[0]} add up to {sums[wrong[0]]:g}, or one is negative or NaN"
            f" ({len(wrong):,} such users).",
            hint="Weights are not negative and add up to one; divide each row by its sum.",
        )
    weights.setflags(write=False)
    return weights


def _names(given: Sequence[str] | None, users: int) -> tuple[str, ...]:
    names = tuple(map(str, range(users))) if given is None else tuple(given)
    texts = not isinstance(given, str) and all(isinstance(name, str) for name in names)
    if not texts or not len(names) == len(set(names)) == users:
        raise InvalidArgumentError(f"names= must be {users} different texts.")
    return names


def _pairs(given: npt.ArrayLike, users: int, shape: tuple[int, ...]) -> Integers:
    pairs = np.asarray(given)
    if not np.issubdtype(pairs.dtype, np.integer) or pairs.shape[-3:] not in (
        (shape[0], 2),
        (users, shape[0], 2),
    ):
        raise InvalidArgumentError(
            f"pairs has the shape {pairs.shape} and the type {pairs.dtype}, not whole numbers of shape"
            f" ({shape[0]}, 2) or ({users}, {shape[0]}, 2)."
        )
    if pairs.min() < 0 or pairs.max() >= shape[1] or (pairs[..., 0] == pairs[..., 1]).any():
        raise InvalidArgumentError(
            f"pairs= must name two different responses each, by places from 0 to {shape[1] - 1}."
        )
    return np.broadcast_to(pairs.astype(np.int64), (users, shape[0], 2))


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise InvalidArgumentError(f"{name}={value!r} must be a whole number from 1 up.")


def _check_temperature(value: object) -> None:
    if not _is_real(value) or not 0 <= value < np.inf:  # type: ignore[operator]
        raise InvalidArgumentError(f"temperature={value!r} must be a number from 0 up.")


def _is_real(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)
