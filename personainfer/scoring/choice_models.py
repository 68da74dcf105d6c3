"""Models of users' choices that read no persona: the longer response, the majority, similar users.

A model is fitted on choices of users, and predicts other choices. A prediction is a margin: above 0 the model
predicts `chosen`, below 0 `rejected`; 0 is a tie, or the model knows nothing of the choice.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt

from ..arguments import NumberFromZero, check_argument, read_items, read_numbers
from ..exceptions import DataError, InvalidArgumentError, MissingExtraError, quoted
from ..records import FloatArray, Preference, Prompt

# A function of n prompts and n responses that returns (n, d), as an array or a sparse matrix.
Features = Callable[[Sequence[Prompt], Sequence[str]], Any]
Response = tuple[Prompt, str]
Places = npt.NDArray[np.int64]
Votes = dict[Hashable, dict[str | None, int]]  # a pair or a response -> user -> sum of votes

T = TypeVar("T")

_WORD = re.compile(r"\w+")
_DIMENSIONS = 2**16  # of hashed words; a collision of two words is harmless
_DOUBT = 2.0  # pseudo-votes for each response, half for and half against it: few votes count less


class ChoiceModel(Protocol):
    """A model that predicts choices of users from other choices of theirs."""

    def fit(self, choices: Sequence[Preference]) -> Self:
        """Learn from choices, each with a `user`, and return this model. An earlier fit is forgotten."""

    def predict(self, choices: Sequence[Preference]) -> FloatArray:
        """Return one margin for each choice, shape (n,).

        Above 0, the model predicts `chosen`; below 0, `rejected`. 0: a tie, or the model knows nothing.
        """


@dataclass(frozen=True)
class Encoded:
    """Choices as numbers.

    Attributes:
        users: user -> number, from 0.
        responses: (prompt, response) -> number, from 0.
        user, chosen, rejected: the numbers of each choice, shape (choices,).
    """

    users: dict[str, int]
    responses: dict[Response, int]
    user: Places
    chosen: Places
    rejected: Places


def read_choices(
    name: str,
    given: Iterable[Preference],
    *,
    each: str = "choice {}",
    of_users: bool = True,
) -> list[Preference]:
    """Check an argument that holds choices of users, and return it as a list.

    Args:
        name: the argument's name, for errors.
        given: `Preference` records. An iterator is used up.
        each: how an error names one choice; {} is replaced by its place, from 0.
        of_users: whether each choice must have a user.

    Raises:
        InvalidArgumentError: the argument holds something else than `Preference` records.
        DataError: a choice has no user, and `of_users` is True.
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
        if of_users and choice.user is None:
            raise DataError(
                f"{each.format(place)} has no user.", hint="Leave it out, or say whose it is."
            )
    return choices


def encode(choices: Iterable[Preference]) -> Encoded:
    """Number the users and the responses of choices, in the order of their first appearance.

    Equal texts after different prompts are two responses.

    Raises:
        DataError: a choice has no user, or there are no choices.
        InvalidArgumentError: `choices` holds something else than `Preference` records.
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
    """Predicts the longer response, in characters, without white space at its ends."""

    def fit(self, choices: Iterable[Preference]) -> Self:
        """Do nothing: this model learns nothing from choices."""
        return self

    def predict(self, choices: Iterable[Preference]) -> FloatArray:
        """Return the length of `chosen` minus the length of `rejected`, in characters, shape (n,).

        Raises:
            InvalidArgumentError: `choices` holds something else than `Preference` records.
        """
        pairs = read_choices("choices", choices, of_users=False)
        lengths = [len(one.chosen.strip()) - len(one.rejected.strip()) for one in pairs]
        return np.array(lengths, dtype=np.float64)


def length_only(
    margins: FloatArray, lengths: npt.NDArray[Any], users: npt.NDArray[Any]
) -> FloatArray:
    """Predict choices by a rule that knows of a persona only whether it predicts longer responses.

    For each choice, the rule looks at the persona's predictions for the same user's other choices. If most of
    these predictions are the longer response, the rule predicts the longer response. If most are the shorter
    one, it predicts the shorter one. If both are as many, the predictions for all users' choices decide.

    Args:
        margins: shape (choices,): the margins that were predicted with the persona. Above 0: the chosen
            response is predicted. NaN: there is no prediction.
        lengths: shape (choices,): the length of the chosen response minus that of the rejected one; 0 if the
            two count as equal.
        users: shape (choices,): who made the choice.

    Returns:
        Shape (choices,): 1 predicts the chosen response, -1 the rejected one. 0 predicts neither: the lengths
        are equal, or nothing decides. NaN where the margin is NaN.
    """
    toward_longer = np.nan_to_num(np.sign(margins) * np.sign(lengths))
    _, place = np.unique(users, return_inverse=True)
    others = np.bincount(place, toward_longer)[place] - toward_longer
    everybody = toward_longer.mean() if len(toward_longer) else 0.0
    found: FloatArray = np.sign(others + everybody) * np.sign(lengths)
    return np.where(np.isnan(margins), np.nan, found)


class MajorityVote:
    """Predicts what most of the other users chose on the same pair of responses.

    If no other user chose on this pair, or as many chose the one as the other response, the model compares
    how often others chose each of the two responses, whatever the other response was. A user's own choices
    never predict the same user's choices, so the fit may include choices to predict. Choices without a user
    count as those of one user.
    """

    def __init__(self) -> None:
        self._votes: Votes | None = None

    def fit(self, choices: Iterable[Preference]) -> Self:
        """Count the votes of each user. An earlier fit is forgotten.

        Raises:
            InvalidArgumentError: `choices` holds something else than `Preference` records.
        """
        self._votes = {}
        for choice in read_choices("choices", choices, of_users=False):
            pair, sign = _pair(choice)
            for what, vote in ((pair, sign), *_signs(choice)):
                of_user = self._votes.setdefault(what, {})
                of_user[choice.user] = of_user.get(choice.user, 0) + vote
        return self

    def predict(self, choices: Iterable[Preference]) -> FloatArray:
        """Return one margin for each choice, shape (n,): the mean vote of others on the pair, from -1 to 1.

        Each other user has one vote: 1 for `chosen`, -1 for `rejected`, 0 if their choices cancel out. If the
        votes are none, or their sum is 0, the margin is the mean vote on `chosen` minus the mean vote on
        `rejected`, in all pairs with that response. Each of these means has two votes more, one for and one
        against the response, so that few votes count less.

        Raises:
            InvalidArgumentError: `fit` was not called, or `choices` holds something else than `Preference`
                records.
        """
        pairs = read_choices("choices", choices, of_users=False)
        votes = fitted(self._votes)
        return np.array([_margin(votes, choice) for choice in pairs], dtype=np.float64)


def _margin(votes: Votes, choice: Preference) -> float:
    pair, sign = _pair(choice)
    vote, voters = _others(votes, pair, choice.user)
    if vote:
        return sign * vote / voters
    (chosen, _), (rejected, _) = _signs(choice)
    one, other = (_others(votes, what, choice.user) for what in (chosen, rejected))
    return one[0] / (one[1] + _DOUBT) - other[0] / (other[1] + _DOUBT)


def _others(votes: Votes, what: Hashable, user: str | None) -> tuple[int, int]:
    """Sum the votes (1, 0 or -1) of all other users on a pair or a response, and count these users."""
    signs = [(vote > 0) - (vote < 0) for who, vote in votes.get(what, {}).items() if who != user]
    return sum(signs), len(signs)


def _pair(choice: Preference) -> tuple[Hashable, int]:
    """Return a key of the pair, and 1 if the response that sorts first was chosen, else -1."""
    first, second = sorted((choice.chosen, choice.rejected))
    return (choice.prompt, first, second), 1 if choice.chosen == first else -1


def _signs(choice: Preference) -> tuple[tuple[Response, int], tuple[Response, int]]:
    return ((choice.prompt, choice.chosen), 1), ((choice.prompt, choice.rejected), -1)


class SimilarUsersVote:
    """Predicts by the votes of other users, each weighted by the agreement with the user in the fit.

    A choice is a vote of 1 for the chosen and of -1 for the rejected response. For the agreement, a user's
    votes on the same response are added up; for a prediction, only the sign of that sum counts. The agreement
    of two users is the cosine of their votes, with `doubt` added to the product of the norms. A user with a
    negative agreement counts with the opposite sign.

    Args:
        doubt: shrinks the agreement of users who have few responses in common; at least 0.

    Raises:
        InvalidArgumentError: `doubt` is not a number from 0 up.
    """

    def __init__(self, doubt: float = 5.0) -> None:
        self.doubt = check_argument("doubt", doubt, NumberFromZero)
        self._known: Encoded | None = None

    def fit(self, choices: Iterable[Preference]) -> Self:
        """Compute the votes and the agreement of all users. An earlier fit is forgotten.

        Raises:
            DataError: a choice has no user, or there are no choices.
            InvalidArgumentError: `choices` holds something else than `Preference` records.
            MissingExtraError: scipy is not installed.
        """
        sparse = MissingExtraError.require("scipy.sparse")
        choices = read_choices("choices", choices)
        known = encode(choices)
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
        self._known = known
        return self

    def predict(self, choices: Iterable[Preference]) -> FloatArray:
        """Return the weighted votes on `chosen` minus those on `rejected`, shape (n,).

        0 for a choice of a user who was not in the fit. A response that was not in the fit has no votes.

        Raises:
            InvalidArgumentError: `fit` was not called, or `choices` holds something else than `Preference`
                records.
        """
        pairs, known = read_choices("choices", choices, of_users=False), fitted(self._known)
        scores = (self._agreement @ self._votes).tocsr()
        users, responses = known.users, known.responses
        found = np.zeros(len(pairs))
        for place, choice in enumerate(pairs):
            row = users.get(choice.user or "")
            for response, sign in _signs(choice):
                column = responses.get(response)
                if row is not None and column is not None:
                    found[place] += sign * scores[row, column]
        return found


def word_features(prompts: Sequence[Prompt], responses: Sequence[str]) -> Any:
    """Hash the words and bigrams of each response into a sparse matrix (n, 65,536) with rows of length 1.

    The weight of a term is 1 + log(count) before its row is scaled. A response without words has a row of
    zeros. Prompts are ignored, since both responses of a pair have the same.

    Raises:
        InvalidArgumentError: `responses` holds something else than texts.
        MissingExtraError: scipy is not installed.
    """
    sparse = MissingExtraError.require("scipy.sparse")
    rows, columns = [], []
    texts = read_items("responses", responses)
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidArgumentError(f"responses[{row}]={text!r:.80} is not text.")
        words = _WORD.findall(text.casefold())
        for term in (*words, *map(" ".join, pairwise(words))):
            rows.append(row)
            columns.append(zlib.crc32(term.encode()) % _DIMENSIONS)
    counts = sparse.csr_matrix(
        (np.ones(len(rows)), (rows, columns)), shape=(len(texts), _DIMENSIONS)
    )
    counts.data = 1.0 + np.log(counts.data)
    norms = np.sqrt(np.asarray(counts.multiply(counts).sum(axis=1))).ravel()
    return sparse.diags(1.0 / np.maximum(norms, 1e-12)) @ counts


# What models share


def fitted(state: T | None) -> T:
    """Return what `fit` has kept. Raise InvalidArgumentError if it is None: `fit` was not called."""
    if state is None:
        raise InvalidArgumentError("the model is not fitted.", hint="Call fit(choices) first.")
    return state


def featured(
    features: Features | None, responses: Sequence[Response], *, width: int | None = None
) -> Any:
    """Compute the features of n responses, (n, d). With `features=None` they are the identity matrix (n, n).

    Args:
        features: the function that computes them.
        responses: the responses, each with its prompt.
        width: the d that is needed, which is that of the fit; None: any.

    Returns:
        An array of floats; a sparse matrix stays one.

    Raises:
        InvalidArgumentError: the features have another shape, or hold a number that is not finite.
        MissingExtraError: `features` is None, and scipy is not installed.
    """
    if features is None:
        sparse = MissingExtraError.require("scipy.sparse")
        return sparse.identity(len(responses), format="csr")
    texts = [text for _, text in responses]
    found = features([prompt for prompt, _ in responses], texts)
    if not hasattr(found, "tocsr"):
        narrow = str(getattr(found, "dtype", "")).endswith("float32")  # of NumPy or torch: stays so
        if narrow and not (
            isinstance(found, np.ma.MaskedArray) or getattr(found, "requires_grad", False)
        ):
            found = np.asarray(found)
        else:
            found = read_numbers(
                "the result of features", found, dimensions=(0, 1, 2, 3), infinite=True
            )
    if found.ndim != 2 or found.shape[0] != len(responses):
        raise InvalidArgumentError(
            f"features= gives the shape {found.shape} for {len(responses)} responses.",
            hint="It takes n prompts and n responses, and returns (n, d).",
            argument="features",
        )
    if width is not None and found.shape[1] != width:
        raise InvalidArgumentError(
            f"features= gives {found.shape[1]} numbers a response, and gave {width} at the fit.",
            argument="features",
        )
    sums = np.asarray(found.sum(axis=1)).ravel()  # a single NaN would spoil the whole fit
    if not np.isfinite(sums).all():
        place = int(np.flatnonzero(~np.isfinite(sums))[0])
        raise InvalidArgumentError(
            f"features= gives numbers that are not finite for the response {quoted(texts[place])}.",
            argument="features",
        )
    return found


def incidence(known: Encoded, responses: int) -> Any:
    """Return a sparse matrix (choices, responses): 1 for the chosen response, -1 for the rejected one."""
    sparse = MissingExtraError.require("scipy.sparse")
    n = len(known.user)
    rows = np.concatenate([np.arange(n), np.arange(n)])
    columns = np.concatenate([known.chosen, known.rejected])
    return sparse.csr_matrix((np.repeat([1.0, -1.0], n), (rows, columns)), shape=(n, responses))


def one_hot(places: npt.NDArray[Any], count: int) -> Any:
    """Return a sparse matrix (n, count) that has a 1 in row i and column places[i]."""
    sparse = MissingExtraError.require("scipy.sparse")
    n = len(places)
    return sparse.csr_matrix((np.ones(n), (np.arange(n), places)), shape=(n, count))


def margins_of(rewards: FloatArray, known: Encoded) -> FloatArray:
    """Return the reward of the chosen response minus that of the rejected one, shape (choices,).

    Args:
        rewards: the reward of each response, shape (responses,).
        known: the choices, whose numbers are places in `rewards`.
    """
    return rewards[known.chosen] - rewards[known.rejected]


def log_loss(margins: FloatArray) -> tuple[float, FloatArray]:
    """Return the sum of -log sigma(margin), in nats, and its derivative in each margin, shape (n,)."""
    with np.errstate(over="ignore", invalid="ignore"):  # `minimise` checks the result
        total = float(np.logaddexp(0.0, -margins).sum())
        return total, -1.0 / (1.0 + np.exp(margins))


def minimise(loss: Any, start: FloatArray, steps: int) -> FloatArray:
    """Minimise a loss by L-BFGS, and return the parameters.

    Args:
        loss: a function of parameters -> (loss, gradient).
        start: the parameters to begin with, shape (parameters,).
        steps: the most iterations.

    Raises:
        InvalidArgumentError: the loss at the end is not finite, as with features beyond 1e150.
        MissingExtraError: scipy is not installed.
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
