"""Models of users' choices that read no persona: the longer response, the majority, similar users.

A model is fitted on choices with users, and predicts others by margins: above 0 the chosen response is
predicted, below 0 the other one, and 0 is a tie, also where the model knows nothing.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from ..exceptions import DataError, InvalidArgumentError, MissingExtraError, quoted
from ..records import FloatArray, Preference, Prompt

# Prompts and responses, n of each -> (n, d), as an array or a sparse matrix.
Features = Callable[[Sequence[Prompt], Sequence[str]], Any]
Response = tuple[Prompt, str]
Places = npt.NDArray[np.int64]

_WORD = re.compile(r"\w+")
_DIMENSIONS = 2**16  # of hashed words; a collision of two words is harmless
_DOUBT = 2.0  # votes of nobody, half for and half against, that are added to each response


class ChoiceModel(Protocol):
    """Predicts the choices of users, fitted on other choices of theirs."""

    def fit(self, choices: Sequence[Preference]) -> Self:
        """Learn from choices with `user`; an earlier fit is forgotten."""

    def predict(self, choices: Sequence[Preference]) -> FloatArray:
        """One margin a choice, shape (n,): above 0 the chosen response is predicted."""


@dataclass(frozen=True)
class Encoded:
    """Choices as places in lists of users and responses; arrays have the shape (choices,)."""

    users: dict[str, int]
    responses: dict[Response, int]
    user: Places
    chosen: Places
    rejected: Places


def read_choices(
    name: str, given: Iterable[Preference], *, each: str = "choice {}"
) -> list[Preference]:
    """An argument that holds choices of users, as a list.

    Args:
        name: of the argument.
        given: `Preference` records with a user.
        each: how an error names one of them, by its place.

    Raises:
        InvalidArgumentError: something else than records.
        DataError: a choice has no user.
    """
    hint = "read_preferences of personainfer.data makes such records of any data: row.preference."
    if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
        raise InvalidArgumentError(
            f"{name}={given!r:.80} holds no Preference records.", hint=hint, argument=name
        )
    choices = list(given)
    for place, choice in enumerate(choices):
        if not isinstance(choice, Preference):
            raise InvalidArgumentError(
                f"{name}[{place}] is {choice!r:.40}, no Preference.", hint=hint, argument=name
            )
        if choice.user is None:
            raise DataError(
                f"{each.format(place)} has no user.", hint="Leave it out, or say whose it is."
            )
    return choices


def encode(choices: Sequence[Preference]) -> Encoded:
    """Number the users and responses; a response is known by its prompt and its text.

    Raises:
        DataError: a choice has no user, or there is none.
        InvalidArgumentError: something else than `Preference` records.
    """
    choices = read_choices("choices", choices)
    if not choices:
        raise DataError("there are no choices to fit a model on.")
    users: dict[str, int] = {}
    responses: dict[Response, int] = {}
    rows = []
    for choice in choices:
        assert choice.user is not None  # `read_choices` raises
        chosen, rejected = (choice.prompt, choice.chosen), (choice.prompt, choice.rejected)
        rows.append(
            (
                users.setdefault(choice.user, len(users)),
                responses.setdefault(chosen, len(responses)),
                responses.setdefault(rejected, len(responses)),
            )
        )
    return Encoded(users, responses, *np.array(rows, dtype=np.int64).T)


class LongerWins:
    """The longer response is predicted, in characters, without white space at its ends."""

    def fit(self, choices: Sequence[Preference]) -> Self:
        """Nothing is learned."""
        return self

    def predict(self, choices: Sequence[Preference]) -> FloatArray:
        """The difference of the lengths."""
        return np.array(
            [len(c.chosen.strip()) - len(c.rejected.strip()) for c in choices], dtype=np.float64
        )


def length_only(
    margins: FloatArray, lengths: npt.NDArray[Any], users: npt.NDArray[Any]
) -> FloatArray:
    """The predictions of a rule that knows of a persona only whether it leads to longer responses.

    Whether the longer or the shorter response is predicted is what the persona's predictions for most of
    the user's other choices were; where they say neither, those for all users.

    Args:
        margins: shape (choices,): the predictions with the persona.
        lengths: the length of the chosen response less that of the other; 0 where they count as equal.
        users: whose choice it is.

    Returns:
        1, 0 or -1 for each choice; NaN where there is no margin.
    """
    toward_longer = np.nan_to_num(np.sign(margins) * np.sign(lengths))
    _, place = np.unique(users, return_inverse=True)
    others = np.bincount(place, toward_longer)[place] - toward_longer
    everybody = toward_longer.mean() if len(toward_longer) else 0.0
    found: FloatArray = np.sign(others + everybody) * np.sign(lengths)
    return np.where(np.isnan(margins), np.nan, found)


class MajorityVote:
    """What most of the other users chose on the same pair; else, how often they chose each response.

    A user's own choices count for others only, so that the choices to predict may be fitted on, too.
    """

    def fit(self, choices: Sequence[Preference]) -> Self:
        """Count the votes of each user."""
        self._votes: dict[Hashable, dict[str | None, int]] = {}
        for choice in choices:
            pair, sign = _pair(choice)
            for what, vote in ((pair, sign), *_signs(choice)):
                of_user = self._votes.setdefault(what, {})
                of_user[choice.user] = of_user.get(choice.user, 0) + vote
        return self

    def predict(self, choices: Sequence[Preference]) -> FloatArray:
        """The mean vote of others on the pair, from -1 to 1, or the difference of both responses' votes."""
        return np.array([self._margin(choice) for choice in choices], dtype=np.float64)

    def _margin(self, choice: Preference) -> float:
        pair, sign = _pair(choice)
        votes, voters = self._others(pair, choice.user)
        if votes:
            return sign * votes / voters
        (chosen, _), (rejected, _) = _signs(choice)
        one, other = (self._others(what, choice.user) for what in (chosen, rejected))
        return one[0] / (one[1] + _DOUBT) - other[0] / (other[1] + _DOUBT)

    def _others(self, what: Hashable, user: str | None) -> tuple[int, int]:
        """The sum of the votes of everybody else, and how many they are."""
        of_user = self._votes.get(what, {})
        signs = [(vote > 0) - (vote < 0) for who, vote in of_user.items() if who != user]
        return sum(signs), len(signs)


def _pair(choice: Preference) -> tuple[Hashable, int]:
    """The pair, whichever was chosen, and 1 if the response that sorts first was chosen, else -1."""
    first, second = sorted((choice.chosen, choice.rejected))
    return (choice.prompt, first, second), 1 if choice.chosen == first else -1


def _signs(choice: Preference) -> tuple[tuple[Response, int], tuple[Response, int]]:
    return ((choice.prompt, choice.chosen), 1), ((choice.prompt, choice.rejected), -1)


class SimilarUsersVote:
    """The vote of other users, each weighed by how much they agreed with the user before.

    The agreement of two users is the cosine of their votes on responses (chosen 1, rejected -1, sums over
    choices), with `doubt` added to the product of the norms, so that a few common responses say little.
    Users who disagreed count with the opposite sign.

    Args:
        doubt: the larger, the less a short common history says.
    """

    def __init__(self, doubt: float = 5.0) -> None:
        self.doubt = doubt

    def fit(self, choices: Sequence[Preference]) -> Self:
        """Collect the votes.

        Raises:
            MissingExtraError: scipy is not installed.
        """
        sparse = MissingExtraError.require("scipy.sparse")
        known = encode(choices)
        self._known = known
        rows = np.concatenate([known.user, known.user])
        columns = np.concatenate([known.chosen, known.rejected])
        signs = np.repeat([1.0, -1.0], len(choices))
        shape = (len(known.users), len(known.responses))
        votes = sparse.csr_matrix((signs, (rows, columns)), shape=shape)
        self._votes = votes.sign()
        norms = np.sqrt(np.asarray(votes.multiply(votes).sum(axis=1))).ravel()
        common = (votes @ votes.T).tocsr()
        common.setdiag(0.0)
        common.eliminate_zeros()
        pairs = common.tocoo()
        pairs.data /= norms[pairs.row] * norms[pairs.col] + self.doubt
        self._agreement = pairs.tocsr()
        return self

    def predict(self, choices: Sequence[Preference]) -> FloatArray:
        """The difference of the weighed votes on both responses."""
        scores = (self._agreement @ self._votes).tocsr()
        users, responses = self._known.users, self._known.responses
        found = np.zeros(len(choices))
        for place, choice in enumerate(choices):
            row = users.get(choice.user or "")
            for response, sign in _signs(choice):
                column = responses.get(response)
                if row is not None and column is not None:
                    found[place] += sign * scores[row, column]
        return found


def word_features(prompts: Sequence[Prompt], responses: Sequence[str]) -> Any:
    """The words and pairs of words of each response, hashed: a sparse matrix (n, 65,536) of unit rows.

    Each is weighed by 1 + log of its count. Prompts are not read: both responses of a pair share one.
    """
    sparse = MissingExtraError.require("scipy.sparse")
    rows, columns = [], []
    for row, text in enumerate(responses):
        words = _WORD.findall(text.casefold())
        for term in (*words, *map(" ".join, pairwise(words))):
            rows.append(row)
            columns.append(zlib.crc32(term.encode()) % _DIMENSIONS)
    counts = sparse.csr_matrix(
        (np.ones(len(rows)), (rows, columns)), shape=(len(responses), _DIMENSIONS)
    )
    counts.data = 1.0 + np.log(counts.data)
    norms = np.sqrt(np.asarray(counts.multiply(counts).sum(axis=1))).ravel()
    return sparse.diags(1.0 / np.maximum(norms, 1e-12)) @ counts


# What models with features share


def featured(features: Features | None, responses: Sequence[Response]) -> Any:
    """The features of each response, (n, d); without a function, each response is a feature of its own.

    Raises:
        InvalidArgumentError: another shape, or a number that is not finite.
    """
    if features is None:
        sparse = MissingExtraError.require("scipy.sparse")
        return sparse.identity(len(responses), format="csr")
    prompts, texts = zip(*responses, strict=True)
    found = features(list(prompts), list(texts))
    if not hasattr(found, "tocsr"):
        masked = isinstance(found, np.ma.MaskedArray)
        found = found.astype(np.float64).filled(np.nan) if masked else np.asarray(found)
        if found.dtype not in (np.float32, np.float64):
            found = found.astype(np.float64)
    if found.ndim != 2 or found.shape[0] != len(responses):
        raise InvalidArgumentError(
            f"features= gives the shape {found.shape} for {len(responses)} responses.",
            hint="It takes n prompts and n responses, and returns (n, d).",
        )
    sums = np.asarray(
        found.sum(axis=1)
    ).ravel()  # one NaN in a million numbers, and nothing is fitted
    if not np.isfinite(sums).all():
        place = int(np.flatnonzero(~np.isfinite(sums))[0])
        raise InvalidArgumentError(
            f"features= gives numbers that are not finite for the response {quoted(texts[place])}.",
            argument="features",
        )
    return found


def incidence(known: Encoded, responses: int) -> Any:
    """A sparse matrix (choices, responses): 1 for the chosen one, -1 for the other."""
    sparse = MissingExtraError.require("scipy.sparse")
    n = len(known.user)
    rows = np.concatenate([np.arange(n), np.arange(n)])
    columns = np.concatenate([known.chosen, known.rejected])
    return sparse.csr_matrix((np.repeat([1.0, -1.0], n), (rows, columns)), shape=(n, responses))


def one_hot(places: npt.NDArray[Any], count: int) -> Any:
    """A sparse matrix (n, count) with a 1 in each row."""
    sparse = MissingExtraError.require("scipy.sparse")
    n = len(places)
    return sparse.csr_matrix((np.ones(n), (np.arange(n), places)), shape=(n, count))


def margins_of(rewards: FloatArray, known: Encoded) -> FloatArray:
    return rewards[known.chosen] - rewards[known.rejected]


def log_loss(margins: FloatArray) -> tuple[float, FloatArray]:
    """The sum of -log sigma(margin), and its slope in each margin."""
    with np.errstate(over="ignore", invalid="ignore"):  # `minimise` looks at the result
        total = float(np.logaddexp(0.0, -margins).sum())
        return total, -1.0 / (1.0 + np.exp(margins))


def minimise(loss: Any, start: FloatArray, steps: int) -> FloatArray:
    """The parameters of the smallest loss, by L-BFGS from `start`.

    Args:
        loss: parameters -> (loss, gradient).
        start: shape (parameters,).
        steps: the most iterations.

    Raises:
        InvalidArgumentError: the loss is not finite there, as with features beyond 1e150.
    """
    optimize = MissingExtraError.require("scipy.optimize")
    found = optimize.minimize(
        loss, start, jac=True, method="L-BFGS-B", options={"maxiter": steps, "maxcor": 20}
    )
    if not np.isfinite(found.fun):
        raise InvalidArgumentError(
            "no parameters fit these numbers: they are too large.", hint="Scale the features."
        )
    return np.asarray(found.x, dtype=np.float64)
