"""Measure how much users differ: votes on responses, and text features that each user prefers.

As in PersonalLLM (arXiv 2409.20296, section 3).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import InstanceOf

from ..arguments import Count, check_argument, read_items, read_numbers, read_places
from ..data.table_display import result_text
from ..evaluation.statistics import (
    CONFIDENCE,
    Estimate,
    bootstrap_mean,
    bootstrap_rate,
    check_confidence,
)
from ..exceptions import DataError, InvalidArgumentError
from ..records import FloatArray
from ..tailoring.bm25 import words
from .reward_matrix import RewardMatrix
from .simulated_users import SimulatedUsers

Feature = Callable[[str], float]

_SENTENCE_END = re.compile(r"(?<![.!?])[.!?]++(?=\s|$)")
_LIST_ITEM = re.compile(r"^[^\S\n]*(?:[-*•]|\d+[.)])\s", re.MULTILINE)
_FIRST_PERSON = frozenset("i me my mine myself we us our".split())
_SECOND_PERSON = frozenset("you your yours yourself".split())


@dataclass(frozen=True)
class Votes:
    """What users prefer on each prompt, as `votes` counts it.

    Attributes:
        shares: shape (prompts, responses): the share of users who prefer each response, from 0 to 1.
        users: how many users there are.
    """

    shares: FloatArray
    users: int

    @property
    def top_share(self) -> FloatArray:
        """The share of users who prefer the most popular response, from 0 to 1, shape (prompts,)."""
        found: FloatArray = self.shares.max(axis=1)
        return found

    @property
    def winners(self) -> npt.NDArray[np.int64]:
        """How many responses are preferred by at least one user, shape (prompts,)."""
        found: npt.NDArray[np.int64] = np.count_nonzero(self.shares, axis=1)
        return found

    @property
    def entropy(self) -> FloatArray:
        """The entropy of each prompt's vote, -sum p log p in nats, shape (prompts,): 0 if all users agree."""
        logs = np.log(np.where(self.shares > 0, self.shares, 1.0))
        most = math.log(min(self.users, self.shares.shape[1]))  # rounding may exceed it
        found: FloatArray = np.clip(-(self.shares * logs).sum(axis=1), 0.0, most)
        return found

    @property
    def entropy_bounds(self) -> tuple[float, float]:
        """The lowest and the highest entropy of a vote, in nats, for intervals: 0 and log(winners).

        `winners` is the number of users or of responses, whichever is smaller, and at least 2.
        """
        winners = max(2, min(self.users, self.shares.shape[1]))
        return 0.0, math.log(winners)

    def summary(self) -> dict[str, Estimate]:
        """Return means over prompts, and shares of prompts, by name.

        Their 95 % intervals resample prompts.
        """
        return {
            "share of the top response": bootstrap_rate(self.top_share),
            "prompts where it has a majority": bootstrap_rate(self.top_share > 0.5),
            "distinct winners a prompt": bootstrap_mean(
                self.winners, bounds=(1.0, max(self.shares.shape[1], 2))
            ),
            "entropy of the vote, nats": bootstrap_mean(self.entropy, bounds=self.entropy_bounds),
        }

    def __str__(self) -> str:
        head = f"Votes of {self.users:,} users on {len(self.shares):,} prompts"
        return result_text([head, *(f"{name}: {one}" for name, one in self.summary().items())])


def votes(choices: npt.ArrayLike, responses: int) -> Votes:
    """Compute which share of users chooses each response.

    Args:
        choices: the place of the chosen response, from 0, shape (users, prompts), as `SimulatedUsers.choose`
            returns it.
        responses: how many responses each prompt has.

    Raises:
        InvalidArgumentError: `choices` holds something else than places below `responses`, or nothing.
    """
    responses = check_argument("responses", responses, Count)
    chosen = read_places("choices", choices, dimensions=(2,), below=responses)
    counts = np.stack([(chosen == place).sum(axis=0) for place in range(responses)], axis=1)
    return Votes(counts / len(chosen), len(chosen))


# Words


class WordEntropy(NamedTuple):
    """How much users disagree on prompts with a word.

    Attributes:
        word: the word, in lower case.
        prompts: how many prompts have it.
        entropy: the mean entropy of the votes on these prompts, in nats.
    """

    word: str
    prompts: int
    entropy: Estimate


def entropy_by_word(
    found: Votes, prompts: Sequence[str], *, floor: int = 20, confidence: float = CONFIDENCE
) -> list[WordEntropy]:
    """Find the words of prompts on which users agree least: the highest mean entropy is first.

    Args:
        found: votes on the prompts.
        prompts: the texts of the prompts, in the order of the votes.
        floor: leave out words that occur in fewer prompts.
        confidence: of the intervals, between 0 and 1. They resample prompts.

    Returns:
        One record for each word that reaches the floor; empty if none does.

    Raises:
        InvalidArgumentError: the number of prompts is not that of the votes, or a bad argument.
    """
    confidence = check_confidence(confidence)
    floor = check_argument("floor", floor, Count)
    check_argument("found", found, InstanceOf[Votes])
    prompts = read_items("prompts", prompts)
    if len(prompts) != len(found.shares):
        raise InvalidArgumentError(f"{len(prompts)} prompts= for votes on {len(found.shares)}.")
    places: dict[str, list[int]] = {}
    for place, prompt in enumerate(prompts):
        for word in set(words(prompt)):
            places.setdefault(word, []).append(place)
    entropy, bounds = found.entropy, found.entropy_bounds

    def mean(where: Sequence[int]) -> Estimate:
        return bootstrap_mean(entropy[where], bounds=bounds, confidence=confidence)

    kept = [
        WordEntropy(word, len(where), mean(where))
        for word, where in places.items()
        if len(where) >= floor
    ]
    return sorted(kept, key=lambda one: (-one.entropy.value, one.word))


# Features


def _share(names: frozenset[str]) -> Feature:
    return lambda text: sum(word in names for word in words(text)) / max(len(words(text)), 1)


TEXT_FEATURES: Mapping[str, Feature] = {
    "words": lambda text: len(words(text)),
    "letters a word": lambda text: sum(map(len, words(text))) / max(len(words(text)), 1),
    "words a sentence": lambda text: len(words(text)) / max(len(_SENTENCE_END.findall(text)), 1),
    "list items": lambda text: len(_LIST_ITEM.findall(text)),
    "paragraphs": lambda text: len([part for part in text.split("\n\n") if part.strip()]),
    "question marks": lambda text: text.count("?"),
    "exclamation marks": lambda text: text.count("!"),
    "digits": lambda text: sum(character.isdigit() for character in text) / max(len(text), 1),
    "first person": _share(_FIRST_PERSON),
    "second person": _share(_SECOND_PERSON),
}


@dataclass(frozen=True)
class FeatureRegression:
    """The text features that each user prefers.

    Attributes:
        features: the names of the features that vary.
        coefficients: shape (users, features): by how much one standard deviation more of a feature raises the
            chance (from 0 to 1) that a response is the user's best instead of the worst, if the other
            features are equal.
        r_squared: shape (users,): the share of variance that the features explain, from 0 to 1.
        constant: the names of features that do not vary, and were left out.
    """

    features: tuple[str, ...]
    coefficients: FloatArray
    r_squared: FloatArray
    constant: tuple[str, ...] = ()

    def __str__(self) -> str:
        means = [bootstrap_mean(column) for column in self.coefficients.T]
        lines = [f"{name}: {mean}" for name, mean in zip(self.features, means, strict=True)]
        head = f"FeatureRegression of {len(self.coefficients):,} users, mean coefficients"
        return result_text([head, *lines])


def feature_regression(
    users: SimulatedUsers,
    matrix: RewardMatrix,
    features: Mapping[str, Feature] = TEXT_FEATURES,
) -> FeatureRegression:
    """Fit, for each user, which text features tell the user's best response from the worst.

    The regression is ordinary least squares of 1 (best) and 0 (worst) on features and an intercept, over the
    responses of the highest and the lowest utility to every prompt: a linear probability model. The features
    are standardised over all responses. A feature that is the same for all responses is left out. The default
    features are simple ones, in place of the semantic and syntactic features of PersonalLLM.

    Args:
        users: the users, whose utilities decide which response is the best (of equal ones, the first).
        matrix: rewards of the users' models, with prompts and responses.
        features: name -> function from a text to a number.

    Returns:
        A coefficient for each user and each feature that was not left out, and R squared for each user.

    Raises:
        DataError: all features are left out, or one is not a finite number.
        InvalidArgumentError: the matrix has no texts, or other models than the users; or a bad argument.
    """
    check_argument("users", users, InstanceOf[SimulatedUsers])
    check_argument("matrix", matrix, InstanceOf[RewardMatrix])
    check_argument("features", features, Mapping[str, Callable[..., Any]])
    _, responses = matrix.texts
    values = [[[f(text) for f in features.values()] for text in row] for row in responses]
    table = read_numbers("the values of features", values, dimensions=(3,), infinite=True)
    if (broken := np.argwhere(~np.isfinite(table))).size:
        prompt, response, feature = broken[0]
        raise DataError(
            f"the feature {list(features)[feature]!r} of response {response} to prompt {prompt} is not a"
            " finite number.",
            hint="Leave the feature out, or return a number for every text.",
        )
    largest = np.abs(table).max(axis=(0, 1))
    varies = np.ptp(table, axis=(0, 1)) > 1e-12 * largest  # whatever the unit of the feature
    if not varies.any():
        raise DataError("no feature varies over the responses.", hint="Give other features.")
    table = table[..., varies] / largest[varies]
    table = (table - table.mean(axis=(0, 1))) / table.std(axis=(0, 1))
    fits = [_fit(table, values) for values in _each_user(users, matrix)]
    kept, constant = tuple(compress(features, varies)), tuple(compress(features, ~varies))
    coefficients, explained = map(np.array, zip(*fits, strict=True))
    return FeatureRegression(kept, coefficients, explained, constant)


def _each_user(users: SimulatedUsers, matrix: RewardMatrix) -> Iterator[FloatArray]:
    """Yield the utilities of each user, shape (prompts, responses), one at a time to save memory."""
    for row in users.weights:
        yield SimulatedUsers(row[None], models=users.models).utilities(matrix)[0]


def _fit(table: FloatArray, utilities: FloatArray) -> tuple[FloatArray, float]:
    """Fit one user.

    Args:
        table: the features, shape (prompts, responses, features).
        utilities: shape (prompts, responses).

    Returns:
        The coefficients, shape (features,), and R squared.
    """
    prompts = np.arange(len(table))
    best, worst = utilities.argmax(axis=1), utilities.argmin(axis=1)
    rows = np.concatenate([table[prompts, best], table[prompts, worst]])
    target = np.repeat([1.0, 0.0], len(table))
    design = np.column_stack([np.ones(len(rows)), rows])
    solution, *_ = np.linalg.lstsq(design, target, rcond=None)
    unexplained = ((target - design @ solution) ** 2).sum() / (0.25 * len(target))
    return solution[1:], float(1.0 - unexplained)
