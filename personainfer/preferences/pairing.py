"""Make pairs from several responses to one prompt: by score, by rank, or from two lists.

The caller's option `pairs=` names the rule. Equal scores never make a pair.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import groupby, islice, pairwise, product
from typing import Any, Final, NamedTuple, TypeVar

from ..arguments import NumberFromZero, check_argument
from ..exceptions import DataError, InvalidArgumentError, NoPreferenceError
from .cells import is_null, listed_dicts, of_pairs, plain, wrong_type

PAIR_RULES: Final = ("best-worst", "all", "adjacent")
# Of one prompt, since they are in memory at once: all pairs of 447 responses.
MOST_PAIRS: Final = 100_000
# The first key that an item has is read. `answer` is last: beside another, it is only a solution's result.
_TEXT_KEYS = ("response", "completion", "text", "output", "generation", "content", "answer")
_SCORE_KEYS = ("overall_score", "score", "rating", "reward", "overall_rating", "pm_score")
_RANK_KEYS = ("rank", "ranking")
_RANKS: Final = frozenset("rank ranks ranked ranking rankings".split())  # words of a column's name
_SCORES: Final = frozenset("score scores reward rewards rating ratings".split())


Row = TypeVar("Row")


class Candidate(NamedTuple):
    """One of several responses to a prompt.

    Attributes:
        response: a text, a turn or several turns, as the data has them.
        score: the higher, the better; rank r becomes -r. None: unknown.
    """

    response: object
    score: float | None


def check_pairing(pairs: str | None, min_gap: float | None) -> float | None:
    """Return `min_gap`, as `check_argument`: a number from 0 up, or None. `pairs` is a known rule or None."""
    if pairs is not None:
        InvalidArgumentError.check("pairs", pairs, PAIR_RULES)
    return check_argument("min_gap", min_gap, NumberFromZero | None)


def as_score(name: str, value: object) -> float | None:
    """Read a score, also from text such as "3.5".

    Args:
        name: the column, for errors.
        value: the cell.

    Returns:
        The score, which may be infinite; None for a null, NaN, and the texts "", "n/a", "none" and "nan".

    Raises:
        DataError: the value is no number. True and False are none.
    """
    value = plain(value)
    if is_null(value) or (isinstance(value, str) and value.strip().lower() in ("", "n/a", "none")):
        return None
    try:
        if isinstance(value, bool):
            raise TypeError
        score = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise wrong_type(name, value, "a number") from None
    return None if math.isnan(score) else score  # the text "nan", too


@cache
def is_ranked(name: str) -> bool:
    """Whether a column's name says that it holds ranks, of which the lowest is the best.

    Only whole words count: "reranker_score" holds no ranks.

    Raises:
        InvalidArgumentError: the name has a word for ranks and one for scores, such as "rank_score".
    """
    words = {word.lower() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", name)}
    if words & _RANKS and words & _SCORES:
        raise InvalidArgumentError(
            f"{name!r} may hold ranks, of which the lowest is the best, or scores.",
            hint="Rename the column: to rank or to score.",
            argument="columns",
        )
    return bool(words & _RANKS)


def difference(one: float, other: float) -> float:
    """Return `one` - `other`; 0 for equal scores, also for infinite ones, whose difference would be NaN."""
    return 0.0 if one == other else one - other


def candidates_of(
    name: str, value: object, scores: object = None, score_name: str = "scores"
) -> list[Candidate]:
    """Read the responses in a cell, with their scores.

    Args:
        name: the column of the responses, for errors.
        value: a list of responses: texts, conversations, or dicts that hold a text and perhaps a score or
            rank.
        scores: a list with a score or rank of each response, from another column. None, or a null: the scores
            are in the dicts of `value`, or are unknown.
        score_name: the column of `scores`, whose name tells whether it holds ranks (see `is_ranked`).

    Returns:
        The responses in the order of the list.

    Raises:
        NoPreferenceError: `value` is null.
        DataError: `value` is no list, an item is a dict without a text, a score is no number, or `scores`
            does not have one score for each response.
        InvalidArgumentError: `score_name` may mean ranks or scores.
    """
    items = listed_dicts(plain(value), _TEXT_KEYS)
    if not isinstance(items, list | tuple):
        raise wrong_type(name, items, "a list of responses")
    items = [of_pairs(plain(item), _TEXT_KEYS) for item in items]
    given = plain(scores)
    if is_null(given):
        return [_candidate(name, item) for item in items]
    if not isinstance(given, list | tuple) or len(given) != len(items):
        size = len(given) if isinstance(given, list | tuple) else "no"
        raise DataError(f"{name!r} has {len(items)} responses and {score_name!r} {size} scores.")
    sign = -1 if is_ranked(score_name) else 1
    return [
        Candidate(_response(name, item), _signed(sign, as_score(score_name, score)))
        for item, score in zip(items, given, strict=True)
    ]


def _candidate(name: str, item: object) -> Candidate:
    score: float | None = None
    if isinstance(item, Mapping):
        for keys, sign in ((_SCORE_KEYS, 1), (_RANK_KEYS, -1)):
            key = next((k for k in keys if not is_null(item.get(k))), None)
            if score is None and key is not None:
                score = _signed(sign, as_score(f"{name} {key}", item[key]))
    return Candidate(_response(name, item), score)


def _response(name: str, item: object) -> object:
    if isinstance(item, Mapping) and "role" not in item:
        kinds = (str, Mapping, list, tuple)  # a text, a turn or several turns
        key = next((k for k in _TEXT_KEYS if isinstance(plain(item.get(k)), kinds)), None)
        if key is None:
            raise DataError(
                f"{name!r} has a response without a text ({', '.join(map(str, item)):.80}).",
                hint=f"One of {', '.join(_TEXT_KEYS)} must hold it.",
            )
        return item[key]
    return item


def _signed(sign: int, score: float | None) -> float | None:
    return None if score is None else sign * score


def pair_places(
    scores: Sequence[float | None], rule: str, min_gap: float = 0.0
) -> list[tuple[int, int]]:
    """Make pairs of responses by a rule.

    Args:
        scores: the score of each response; a response with None is in no pair.
        rule: "best-worst": one pair of the highest and the lowest score. "all": every two responses.
            "adjacent": each response and the next one in the order of scores. Equal scores are ordered by
            place; "best-worst" takes the first of several best, and the first of several worst.
        min_gap: the least difference of scores in a pair. A difference of 0 never makes a pair.

    Returns:
        (place of the better response, place of the worse one) of each pair, as indices of `scores`. The pairs
        whose better response has the highest score come first.

    Raises:
        NoPreferenceError: the rule makes no pair.
        DataError: the rule makes more than `MOST_PAIRS` pairs.
    """
    known = [(-score, place) for place, score in enumerate(scores) if score is not None]
    order = sorted(known)
    if rule == "best-worst" and order:
        worst = max(score for score, _ in order)
        found = [(order[0], next(each for each in order if each[0] == worst))]
    elif rule == "adjacent":
        found = list(pairwise(order))
    else:
        found = list(islice(_far_apart(order, min_gap), MOST_PAIRS + 1))
    kept = [(a[1], b[1]) for a, b in found if b[0] - a[0] > 0 and b[0] - a[0] >= min_gap]
    if len(kept) > MOST_PAIRS:
        raise _too_many(f"{len(scores)} responses to one prompt make")
    if not kept:
        wanted = f"by {min_gap:g} or more" if min_gap else "at all"
        raise NoPreferenceError(
            f"of {len(scores)} responses, {len(known)} with a score, no two differ {wanted}."
        )
    return kept


def _far_apart(
    order: Sequence[tuple[float, int]], min_gap: float
) -> Iterator[tuple[tuple[float, int], tuple[float, int]]]:
    """Yield every two of the sorted (-score, place) whose scores differ, and by at least `min_gap`.

    A binary search skips all other pairs, of which there may be very many.
    """
    least = max(min_gap, math.ulp(0.0))
    for place, best in enumerate(order):

        def distance(other: tuple[float, int], best: float = best[0]) -> float:
            return difference(other[0], best)

        first = bisect_left(order, least, lo=place + 1, key=distance)
        yield from ((best, order[other]) for other in range(first, len(order)))


def _too_many(what: str) -> DataError:
    return DataError(
        f"{what} more than {MOST_PAIRS:,} pairs.",
        hint='Use pairs="adjacent" or "best-worst", or a larger min_gap=; or divide the row.',
    )


def by_rater(
    rows: Iterable[Row], key: Callable[[Row], tuple[object, object]]
) -> Iterator[tuple[tuple[object, object], list[Row]]]:
    """Group rows by prompt and user: the ratings that one user gave to the responses of one prompt.

    The rows of a prompt must follow one another: if the prompt comes again later, a new group begins. Among
    the rows of a prompt, users may be in any order.

    Args:
        rows: rows that each hold one rated response. They are read lazily, a prompt at a time.
        key: a function row -> (prompt, user), of which the user must be hashable.

    Yields:
        (prompt, user), and the rows in which this user rated this prompt.
    """
    keyed = ((key(row), row) for row in rows)
    for asked, neighbours in groupby(keyed, key=lambda pair: pair[0][0]):
        users: dict[object, list[Row]] = {}
        for (_, user), row in neighbours:
            users.setdefault(user, []).append(row)
        yield from (((asked, user), found) for user, found in users.items())


def zip_lists(
    names: tuple[str, str], chosen: Sequence[Any], rejected: Sequence[Any], rule: str
) -> Iterator[tuple[object, object]]:
    """Pair a list of chosen with a list of rejected responses.

    Args:
        names: the columns of the two lists, for errors.
        chosen, rejected: the responses.
        rule: "all": each chosen with each rejected response. "adjacent": those at the same place.

    Returns:
        An iterator of (chosen, rejected).

    Raises:
        DataError: the rule is "adjacent" and the lists differ in length; the rule is "all" and makes more
            than `MOST_PAIRS` pairs; or the rule is "best-worst", which needs scores.
    """
    if rule == "all":
        if len(chosen) * len(rejected) > MOST_PAIRS:
            raise _too_many(f"{names[0]!r} and {names[1]!r} make")
        return product(chosen, rejected)
    if rule == "best-worst":
        raise DataError(
            f"{names[0]!r} and {names[1]!r} are lists without scores, so none is best.",
            hint='Use pairs="all" or pairs="adjacent".',
        )
    if len(chosen) != len(rejected):
        raise DataError(
            f"{names[0]!r} has {len(chosen)} responses and {names[1]!r} {len(rejected)}.",
            hint='Use pairs="all", or leave the row out.',
        )
    return zip(chosen, rejected, strict=True)
