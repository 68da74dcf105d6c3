"""Fit rewards of users to their choices: low-rank rewards (LoRe), and Bradley-Terry with user effects.

LoRe (arXiv 2504.14439): the reward of a response for user u is sum_b w_ub r_b(response). A user's weights w_u
are not negative and sum to 1; each basis reward r_b is linear in the features of the response. The model is
log p(choice) = log sigma(reward of chosen - reward of rejected). L-BFGS (scipy) fits weights and basis
together. For a new user only the weights are fitted, which takes few choices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ..arguments import (
    Count,
    CountFromZero,
    Flag,
    NumberFromZero,
    PositiveNumber,
    check_argument,
    read_items,
    read_numbers,
    read_places,
)
from ..exceptions import InvalidArgumentError
from ..records import FloatArray, Preference, Prompt
from ..scoring.choice_models import (
    Encoded,
    Features,
    Response,
    encode,
    featured,
    fitted,
    incidence,
    log_loss,
    margins_of,
    minimise,
    one_hot,
    read_choices,
)
from ..scoring.interfaces import check_lengths, check_rows


class LowRankRewards:
    """A model of choices with a basis of `rank` rewards, and weights on the basis for each user.

    Call `fit` before the other methods.

    Args:
        rank: the number of basis rewards.
        features: a function (prompts, responses) -> (n, d), such as
            `lambda prompts, texts: model.encode(texts)`. None: each response of the fit has basis rewards of
            its own, and any other response has rewards of 0.
        fixed_basis: take the features themselves as the basis, such as the rewards of several models. Only
            the users' weights are fitted, and `rank` becomes the number of features. `ridge` and `seed` are
            not used. The features must be a dense array: `word_features` are sparse, and too many.
        ridge: the penalty on the basis is ridge / 2 times the sum of its squares.
        shrink: the penalty on the logits of the weights is shrink / 2 times the sum of their squares. It
            pulls each user's weights towards equal ones.
        steps: the most iterations of L-BFGS.
        seed: seeds the random start of the fit.

    Attributes:
        weights: user -> weights, shape (rank,), not negative; they sum to 1. Empty before the fit.
        evaluations: how often the last call of `fit` computed the loss; 0 with `fixed_basis`.

    Raises:
        InvalidArgumentError: a bad argument.
    """

    def __init__(
        self,
        rank: int = 5,
        *,
        features: Features | None = None,
        fixed_basis: bool = False,
        ridge: float = 3.0,
        shrink: float = 0.1,
        steps: int = 200,
        seed: int = 0,
    ) -> None:
        self.rank = check_argument("rank", rank, Count)
        self._steps = check_argument("steps", steps, Count)
        self._ridge = check_argument("ridge", ridge, PositiveNumber)
        self._shrink = check_argument("shrink", shrink, PositiveNumber)
        self._seed = check_argument("seed", seed, CountFromZero)
        self._features = check_argument("features", features, Callable[..., Any] | None)
        self._fixed = check_argument("fixed_basis", fixed_basis, Flag)
        if fixed_basis and features is None:
            raise InvalidArgumentError("fixed_basis=True needs features=, which are the basis.")
        self.weights: dict[str, FloatArray] = {}
        self.evaluations = 0

    def fit(self, choices: Iterable[Preference]) -> Self:
        """Fit the basis, and the weights of the users of these choices. An earlier fit is forgotten.

        Returns:
            This model.

        Raises:
            DataError: a choice has no user, or there are no choices.
            InvalidArgumentError: `choices` holds something else than `Preference` records, or the features
                are of another shape, not finite, or too large.
            MissingExtraError: scipy is not installed.
        """
        known = encode(choices)
        self._places = known.responses
        features = featured(self._features, list(known.responses))
        if self._fixed:
            if hasattr(features, "tocsr"):
                raise InvalidArgumentError(
                    "features= are sparse, and fixed_basis=True would fit a weight on each for each user.",
                    hint="Give the few numbers of a dense array, or leave fixed_basis= out.",
                    argument="features",
                )
            self.rank = features.shape[1]
            weights = fit_user_weights(
                margins_of(np.asarray(features, dtype=np.float64), known),
                known.user,
                shrink=self._shrink,
                steps=self._steps,
            )
        else:
            self._basis, weights = self._fit(features, known)
        self.weights = {user: weights[row] for user, row in known.users.items()}
        return self

    def fit_users(self, choices: Iterable[Preference]) -> Self:
        """Fit the weights of the users of these choices, new or known. The basis stays as `fit` left it.

        Only these choices count: earlier choices of a known user do not. Other users keep their weights.

        Returns:
            This model.

        Raises:
            InvalidArgumentError: `fit` was not called.
            DataError, InvalidArgumentError, MissingExtraError: as `fit`.
        """
        known = encode(choices)
        rewards = self._rewards(list(known.responses))
        weights = fit_user_weights(
            margins_of(rewards, known), known.user, shrink=self._shrink, steps=self._steps
        )
        self.weights |= {user: weights[row] for user, row in known.users.items()}
        return self

    def predict(self, choices: Iterable[Preference]) -> FloatArray:
        """Compute the log-odds that the user prefers `chosen`, for each choice, shape (n,).

        A user without weights gets the mean weights of all users.

        Raises:
            DataError: a choice has no user.
            InvalidArgumentError: `fit` was not called, or the features are of another shape or not finite.
        """
        choices = read_choices("choices", choices)
        if not choices:
            return np.zeros(0)
        known = encode(choices)
        margins = margins_of(self._rewards(list(known.responses)), known)
        mean = np.mean(list(self.weights.values()), axis=0)
        weights = np.array([self.weights.get(user, mean) for user in known.users])
        found: FloatArray = np.einsum("nb,nb->n", margins, weights[known.user])
        return found

    def rewards(self, prompts: Iterable[Prompt], responses: Iterable[str]) -> FloatArray:
        """Compute the basis rewards of n responses to n prompts, shape (n, rank).

        Raises:
            InvalidArgumentError: `fit` was not called, the numbers of prompts and responses differ, or the
                features are of another shape or not finite.
        """
        return self._rewards(_pairs(prompts, responses))

    def _rewards(self, responses: Sequence[tuple[Prompt, str]]) -> FloatArray:
        fitted(self.weights or None)
        if not responses:
            return np.zeros((0, self.rank))
        if self._features is None:
            found = np.zeros((len(responses), self.rank))
            places = [self._places.get(response, -1) for response in responses]
            known = np.array(places) >= 0
            found[known] = self._basis[np.array(places)[known]]
            return found
        width = self.rank if self._fixed else len(self._basis)
        features = featured(self._features, responses, width=width)
        return np.asarray(features if self._fixed else features @ self._basis, dtype=np.float64)

    def _fit(self, features: Any, known: Encoded) -> tuple[FloatArray, FloatArray]:
        """Fit the basis (d, rank) and the weights (users, rank), by maximum a posteriori."""
        users, width, rank = len(known.users), features.shape[1], self.rank
        differences = incidence(known, len(known.responses))
        of_user = one_hot(known.user, users)
        random = np.random.default_rng(self._seed)
        start = random.normal(scale=0.1, size=(width + users) * rank)
        self.evaluations = 0

        def split(x: FloatArray) -> tuple[FloatArray, FloatArray]:
            return x[: width * rank].reshape(width, rank), x[width * rank :].reshape(users, rank)

        def loss(x: FloatArray) -> tuple[float, FloatArray]:
            self.evaluations += 1
            basis, logits = split(x)
            weights = _softmax(logits)
            of_choice = weights[known.user]
            margins = differences @ np.asarray(features @ basis.astype(features.dtype))
            total, slope = log_loss(np.einsum("nb,nb->n", margins, of_choice))
            to_rewards = differences.T @ (slope[:, None] * of_choice)
            to_basis = np.asarray(features.T @ to_rewards.astype(features.dtype))
            to_weights = of_user.T @ (slope[:, None] * margins)
            to_logits = _softmax_slope(weights, to_weights)
            total += 0.5 * self._ridge * float((basis**2).sum())
            total += 0.5 * self._shrink * float((logits**2).sum())
            to_basis, to_logits = to_basis + self._ridge * basis, to_logits + self._shrink * logits
            return total, np.concatenate([to_basis.ravel(), to_logits.ravel()])

        basis, logits = split(minimise(loss, start, self._steps))
        return basis, _softmax(logits)


def fit_user_weights(
    margins: npt.ArrayLike, users: npt.ArrayLike, *, shrink: float = 0.1, steps: int = 200
) -> FloatArray:
    """Fit the weights of each user on given basis rewards.

    Args:
        margins: shape (choices, rank): each basis reward of the chosen response minus that of the rejected
            one.
        users: shape (choices,): the number of the user who made the choice, from 0, and below the number of
            choices.
        shrink: the penalty on the logits of the weights is shrink / 2 times the sum of their squares. Without
            it (0), the weights of a user whose choices all agree grow until the last step.
        steps: the most iterations of L-BFGS.

    Returns:
        Shape (highest number of a user + 1, rank): the weights, not negative, and each row sums to 1. A
        number without choices gets equal weights.

    Raises:
        InvalidArgumentError: the shapes do not fit, a margin is NaN or infinite, `users` holds something else
            than such numbers, `shrink` is not a number from 0 up, or `steps` not a whole number from 1 up.
        MissingExtraError: scipy is not installed.
    """
    shrink = check_argument("shrink", shrink, NumberFromZero)
    steps = check_argument("steps", steps, Count)
    given, place = read_numbers("margins", margins, dimensions=(2,)), read_places("users", users)
    if place.shape != given.shape[:1]:
        raise InvalidArgumentError(
            f"margins of the shape {given.shape} and users of the shape {place.shape}:"
            " (n, rank) and (n,) are needed."
        )
    if np.isnan(given).any():
        [row, *_] = np.flatnonzero(np.isnan(given).any(axis=1))
        raise InvalidArgumentError(
            f"margins[{row}] holds a missing number.",
            hint="Leave the choice out.",
            argument="margins",
        )
    count, rank = int(place.max()) + 1, given.shape[1]
    if not rank:
        raise InvalidArgumentError("margins= holds no basis reward.", argument="margins")
    of_user = one_hot(place, count)

    def loss(x: FloatArray) -> tuple[float, FloatArray]:
        logits = x.reshape(count, rank)
        weights = _softmax(logits)
        total, slope = log_loss(np.einsum("nb,nb->n", given, weights[place]))
        to_logits = _softmax_slope(weights, of_user.T @ (slope[:, None] * given))
        total += 0.5 * shrink * float((logits**2).sum())
        return total, (to_logits + shrink * logits).ravel()

    return _softmax(minimise(loss, np.zeros(count * rank), steps).reshape(count, rank))


class BradleyTerry:
    """A model of choices with a reward that all users share, and effects of each user.

    The reward of a response for user u is b . x + d_u . z, where x and z are features of the response. b and
    each d_u have normal priors: a logistic regression with random slopes, fitted by maximum a posteriori with
    L-BFGS (scipy). With `features=None`, b holds the strengths of Bradley & Terry (1952). Call `fit` before
    the other methods.

    Args:
        features: a function (prompts, responses) -> (n, d), which computes x. None: each response of the fit
            has a strength of its own, and any other response has the strength 0.
        user_features: a function (prompts, responses) -> (n, d'), which computes z. None: all users have the
            same rewards.
        ridge: the penalty on b is ridge / 2 times the sum of its squares.
        user_ridge: the penalty on all d_u is user_ridge / 2 times the sum of their squares: the larger, the
            more alike users are.
        steps: the most iterations of L-BFGS.

    Raises:
        InvalidArgumentError: a bad argument.
    """

    def __init__(
        self,
        features: Features | None = None,
        user_features: Features | None = None,
        *,
        ridge: float = 1.0,
        user_ridge: float = 4.0,
        steps: int = 200,
    ) -> None:
        self._ridge = check_argument("ridge", ridge, PositiveNumber)
        self._user_ridge = check_argument("user_ridge", user_ridge, PositiveNumber)
        self._steps = check_argument("steps", steps, Count)
        function = Callable[..., Any] | None
        self._features = check_argument("features", features, function)
        self._user_features = check_argument("user_features", user_features, function)
        self._effects: dict[str, FloatArray] = {}

    def fit(self, choices: Iterable[Preference]) -> Self:
        """Fit the shared reward and the users' effects. An earlier fit is forgotten.

        Returns:
            This model.

        Raises:
            DataError: a choice has no user, or there are no choices.
            InvalidArgumentError: `choices` holds something else than `Preference` records, or the features
                are of another shape, not finite, or too large.
            MissingExtraError: scipy is not installed.
        """
        known = encode(choices)
        responses = list(known.responses)
        self._places = known.responses
        shared = featured(self._features, responses)
        own = None if self._user_features is None else featured(self._user_features, responses)
        self._strengths, effects = self._fit(known, shared, own)
        self._effects = {user: effects[row] for user, row in known.users.items()}
        return self

    def predict(self, choices: Iterable[Preference]) -> FloatArray:
        """Compute the log-odds that the user prefers `chosen`, for each choice, shape (n,).

        A user who was not in the fit has no effects: the shared reward alone decides.

        Raises:
            DataError: a choice has no user.
            InvalidArgumentError: `fit` was not called, or the features are of another shape or not finite.
        """
        choices = read_choices("choices", choices)
        if not choices:
            return np.zeros(0)
        known = encode(choices)
        responses = list(known.responses)
        margins = margins_of(self._shared(responses), known)
        if self._user_features is not None:
            width = len(next(iter(self._effects.values())))
            own = featured(self._user_features, responses, width=width)
            nothing = np.zeros(width)
            effects = np.array([self._effects.get(user, nothing) for user in known.users])
            differences = _dense(incidence(known, len(responses)) @ own)
            margins = margins + np.einsum("nd,nd->n", differences, effects[known.user])
        return margins

    def rewards(self, prompts: Iterable[Prompt], responses: Iterable[str]) -> FloatArray:
        """Compute the reward that all users share, for each of n responses to n prompts, shape (n,).

        Raises:
            InvalidArgumentError: `fit` was not called, the numbers of prompts and responses differ, or the
                features are of another shape or not finite.
        """
        return self._shared(_pairs(prompts, responses))

    def _shared(self, responses: Sequence[Response]) -> FloatArray:
        fitted(self._effects or None)
        if not responses:
            return np.zeros(0)
        if self._features is None:
            strengths = np.append(self._strengths, 0.0)  # of a response that was not fitted
            return strengths[[self._places.get(one, -1) for one in responses]]
        features = featured(self._features, responses, width=len(self._strengths))
        return np.asarray(features @ self._strengths, dtype=np.float64)

    def _fit(self, known: Encoded, shared: Any, own: Any) -> tuple[FloatArray, FloatArray]:
        """Fit b, shape (d,), and the effects d_u of all users, shape (users, d'), by maximum a posteriori."""
        differences = incidence(known, len(known.responses))
        of_choice = differences @ shared
        users, width = len(known.users), of_choice.shape[1]
        own_choice = None if own is None else _dense(differences @ own)
        depth = 0 if own_choice is None else own_choice.shape[1]
        of_user = one_hot(known.user, users)

        def loss(x: FloatArray) -> tuple[float, FloatArray]:
            strengths, effects = x[:width], x[width:].reshape(users, depth)
            margins = np.asarray(of_choice @ strengths)
            if own_choice is not None:
                margins = margins + np.einsum("nd,nd->n", own_choice, effects[known.user])
            total, slope = log_loss(margins)
            total += 0.5 * self._ridge * float(strengths @ strengths)
            total += 0.5 * self._user_ridge * float((effects**2).sum())
            gradient = [np.asarray(of_choice.T @ slope) + self._ridge * strengths]
            if own_choice is not None:
                to_effects = of_user.T @ (slope[:, None] * own_choice)
                gradient.append((to_effects + self._user_ridge * effects).ravel())
            return total, np.concatenate(gradient)

        x = minimise(loss, np.zeros(width + users * depth), self._steps)
        return x[:width], x[width:].reshape(users, depth)


def _pairs(prompts: Iterable[Prompt], responses: Iterable[str]) -> list[Response]:
    """Pair prompts and responses. Raise InvalidArgumentError if they cannot be, or their numbers differ."""
    prompts, responses = read_items("prompts", prompts), read_items("responses", responses)
    check_lengths(prompts=prompts, responses=responses)
    rows = check_rows(prompts, [None] * len(prompts), responses)
    return [(prompt, response) for prompt, _, response in rows]


def _dense(matrix: Any) -> Any:
    return matrix.toarray() if hasattr(matrix, "toarray") else matrix


def _softmax(logits: FloatArray) -> FloatArray:
    found: FloatArray = np.exp(logits - logits.max(axis=1, keepdims=True))
    found /= found.sum(axis=1, keepdims=True)
    return found


def _softmax_slope(weights: FloatArray, to_weights: FloatArray) -> FloatArray:
    """Compute the gradient of a loss in the logits of a softmax from that in the softmax's weights.

    Args:
        weights: the softmax of each row of logits, shape (rows, weights).
        to_weights: the gradient of the loss in these weights, of the same shape, as is the result.
    """
    mean = (weights * to_weights).sum(axis=1, keepdims=True)
    found: FloatArray = weights * (to_weights - mean)
    return found
