"""Rewards of users, fitted to their choices: low-rank rewards, and Bradley-Terry with user effects.

LoRe (arXiv 2504.14439): the reward of a response for user u is sum_b w_ub r_b(response), with the weights of
a user on the simplex, and log p(choice) = log sigma(reward of chosen - reward of rejected). Basis rewards
r_b are linear in features of the response. Both are fitted together by L-BFGS (scipy); a new user takes a few
weights, fitted from a few choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ..arguments import read_numbers, read_places
from ..exceptions import InvalidArgumentError
from ..records import FloatArray, Preference, Prompt
from ..scoring.choice_models import (
    Encoded,
    Features,
    Response,
    encode,
    featured,
    incidence,
    log_loss,
    margins_of,
    minimise,
    one_hot,
)


class LowRankRewards:
    """A model of choices with a basis of `rank` rewards and weights for each user.

    Args:
        rank: how many rewards the basis has.
        features: (prompts, responses) -> (n, d), such as `lambda prompts, texts: model.encode(texts)`.
            None: each response is a feature of its own, which says nothing of responses that were not
            fitted.
        fixed_basis: the features are the basis, such as the rewards of several models: only the users'
            weights are fitted, and `rank` is the number of features.
        ridge: penalty on the basis, half the sum of its squares times this.
        shrink: penalty on the users' log-weights, which pulls users towards the mean of all rewards.
        steps: the most iterations of L-BFGS.
        seed: of the start, which is drawn.

    Attributes:
        weights: user -> weights, shape (rank,), which sum to 1.
        evaluations: how often the last fit computed the loss.
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
        for name, count in {"rank": rank, "steps": steps}.items():
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise InvalidArgumentError(f"{name}={count!r} must be a whole number from 1 up.")
        for name, size in {"ridge": ridge, "shrink": shrink}.items():
            if not isinstance(size, int | float) or not 0 < size < np.inf:
                raise InvalidArgumentError(f"{name}={size!r} must be a positive number.")
        if fixed_basis and features is None:
            raise InvalidArgumentError("fixed_basis=True needs features=, which are the basis.")
        self.rank, self._features, self._fixed = rank, features, fixed_basis
        self._ridge, self._shrink, self._steps, self._seed = ridge, shrink, steps, seed
        self.weights: dict[str, FloatArray] = {}
        self.evaluations = 0

    def fit(self, choices: Sequence[Preference]) -> Self:
        """Fit the basis and the weights of the users of these choices.

        Raises:
            DataError: a choice has no user.
            MissingExtraError: scipy is not installed.
        """
        known = encode(choices)
        if self._features is None:
            self._places = known.responses
        features = featured(self._features, list(known.responses))
        if self._fixed:
            self.rank = features.shape[1]
            self._basis = np.eye(self.rank)
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

    def fit_users(self, choices: Sequence[Preference]) -> Self:
        """Fit the weights of the users of these choices, new or known, on the basis as it is."""
        known = encode(choices)
        rewards = self._rewards(list(known.responses))
        weights = fit_user_weights(
            margins_of(rewards, known), known.user, shrink=self._shrink, steps=self._steps
        )
        self.weights |= {user: weights[row] for user, row in known.users.items()}
        return self

    def predict(self, choices: Sequence[Preference]) -> FloatArray:
        """The log-odds of each choice, shape (n,); a user without weights has the mean of all users."""
        if not choices:
            return np.zeros(0)
        known = encode(choices)
        margins = margins_of(self._rewards(list(known.responses)), known)
        mean = np.mean(list(self.weights.values()), axis=0)
        weights = np.array([self.weights.get(user, mean) for user in known.users])
        found: FloatArray = np.einsum("nb,nb->n", margins, weights[known.user])
        return found

    def rewards(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:
        """The basis rewards of responses, shape (n, rank)."""
        return self._rewards(list(zip(prompts, responses, strict=True)))

    def _rewards(self, responses: Sequence[tuple[Prompt, str]]) -> FloatArray:
        if self._features is None:
            found = np.zeros((len(responses), self.rank))
            places = [self._places.get(response, -1) for response in responses]
            known = np.array(places) >= 0
            found[known] = self._basis[np.array(places)[known]]
            return found
        return np.asarray(featured(self._features, responses) @ self._basis, dtype=np.float64)

    def _fit(self, features: Any, known: Encoded) -> tuple[FloatArray, FloatArray]:
        """The basis (d, rank) and the weights (users, rank) of the highest posterior."""
        users, width, rank = len(known.users), features.shape[1], self.rank
        differences = incidence(known, len(known.responses))
        of_user = one_hot(known.user, users)
        random = np.random.default_rng(self._seed)
        start = np.concatenate(
            [
                random.normal(scale=0.1, size=width * rank),
                random.normal(scale=0.1, size=users * rank),
            ]
        )

        self.evaluations = 0

        def loss(x: FloatArray) -> tuple[float, FloatArray]:
            self.evaluations += 1
            basis = x[: width * rank].reshape(width, rank)
            logits = x[width * rank :].reshape(users, rank)
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
            gradient = np.concatenate(
                [
                    (to_basis + self._ridge * basis).ravel(),
                    (to_logits + self._shrink * logits).ravel(),
                ]
            )
            return total, gradient

        x = minimise(loss, start, self._steps)
        return x[: width * rank].reshape(width, rank), _softmax(
            x[width * rank :].reshape(users, rank)
        )


def fit_user_weights(
    margins: npt.ArrayLike, users: npt.ArrayLike, *, shrink: float = 0.1, steps: int = 200
) -> FloatArray:
    """The weights of each user on a basis that is given, shape (users, rank), on the simplex.

    Args:
        margins: shape (choices, rank): each basis reward of the chosen response less that of the other.
        users: shape (choices,): whose choice it is, as whole numbers from 0.
        shrink: penalty on the log-weights.
        steps: the most iterations.

    Raises:
        InvalidArgumentError: shapes that do not fit, a margin that is missing or infinite, users who are no
            whole numbers from 0.
    """
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
    """A model of choices with strengths that all users share, and effects of each user.

    The reward of a response for user u is b . x + d_u . z, where x and z are features of the response, with
    normal priors on b and on each d_u: a logistic regression with random slopes, fitted to its highest
    posterior by L-BFGS (scipy). Where each response is a feature of its own, b are the strengths of Bradley
    & Terry (1952).

    Args:
        features: (prompts, responses) -> (n, d) of the shared part. None: each response has a strength of
            its own, which says nothing of responses that were not fitted.
        user_features: the same for what users add. None: users differ in nothing.
        ridge: penalty on the shared part, half the sum of its squares times this.
        user_ridge: penalty on the users' part: the larger, the more alike users are.
        steps: the most iterations of L-BFGS.
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
        for name, size in {"ridge": ridge, "user_ridge": user_ridge}.items():
            if not isinstance(size, int | float) or not 0 < size < np.inf:
                raise InvalidArgumentError(f"{name}={size!r} must be a positive number.")
        self._features, self._user_features = features, user_features
        self._ridge, self._user_ridge, self._steps = ridge, user_ridge, steps

    def fit(self, choices: Sequence[Preference]) -> Self:
        """Fit both parts.

        Raises:
            DataError: a choice has no user.
            MissingExtraError: scipy is not installed.
        """
        known = encode(choices)
        responses = list(known.responses)
        self._places = known.responses
        shared = featured(self._features, responses)
        own = None if self._user_features is None else featured(self._user_features, responses)
        width, depth = shared.shape[1], 0 if own is None else own.shape[1]
        x = self._fit(known, shared, own)
        self._strengths = x[:width]
        self._effects = {
            user: x[width + row * depth : width + (row + 1) * depth]
            for user, row in known.users.items()
        }
        return self

    def predict(self, choices: Sequence[Preference]) -> FloatArray:
        """The log-odds of each choice, shape (n,); a new user has no effects."""
        if not choices:
            return np.zeros(0)
        known = encode(choices)
        responses = list(known.responses)
        margins = margins_of(self._shared(responses), known)
        if self._user_features is not None:
            own = featured(self._user_features, responses)
            nothing = np.zeros(own.shape[1])
            effects = np.array([self._effects.get(user, nothing) for user in known.users])
            differences = incidence(known, len(responses)) @ own
            if hasattr(differences, "toarray"):
                differences = differences.toarray()
            margins = margins + np.einsum("nd,nd->n", differences, effects[known.user])
        return margins

    def rewards(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:
        """The reward of each response that all users share, shape (n,)."""
        return self._shared(list(zip(prompts, responses, strict=True)))

    def _shared(self, responses: Sequence[Response]) -> FloatArray:
        """The shared reward of each response."""
        if self._features is None:
            strengths = np.append(self._strengths, 0.0)  # of a response that was not fitted
            return strengths[[self._places.get(one, -1) for one in responses]]
        return np.asarray(featured(self._features, responses) @ self._strengths, dtype=np.float64)

    def _fit(self, known: Encoded, shared: Any, own: Any) -> FloatArray:
        """The strengths, then the effects of one user after the other."""
        differences = incidence(known, len(known.responses))
        of_choice = differences @ shared
        users, width = len(known.users), of_choice.shape[1]
        own_choice: Any = None if own is None else differences @ own
        if hasattr(own_choice, "toarray"):
            own_choice = own_choice.toarray()
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

        return minimise(loss, np.zeros(width + users * depth), self._steps)


def _softmax(logits: FloatArray) -> FloatArray:
    found: FloatArray = np.exp(logits - logits.max(axis=1, keepdims=True))
    found /= found.sum(axis=1, keepdims=True)
    return found


def _softmax_slope(weights: FloatArray, to_weights: FloatArray) -> FloatArray:
    """The slope in the logits, from that in the weights."""
    mean = (weights * to_weights).sum(axis=1, keepdims=True)
    found: FloatArray = weights * (to_weights - mean)
    return found
