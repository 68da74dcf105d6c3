"""Make pairs from several responses to one prompt: by score, by rank, or from two lists.

The caller picks the rule. Equal scores never make a pair.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import groupby, islice, pairwise, product
from typing import Any, Final, NamedTuple, TypeVar

from ..exceptions import DataError, InvalidArgumentError, NoPreferenceError
from .cells import is_null, plain, wrong_type

PAIR_RULES: Final = ("best-worst", "all", "adjacent")
MOST_PAIRS: Final = 100_000  # of one prompt, in memory at once: every two of 447 responses
# An `answer` beside the others is the short one at the end of a solution.
_TEXT_KEYS = ("response", "completion", "text", "output", "generation", "content", "answer")
_SCORE_KEYS = ("overall_score", "score", "rating", "reward", "overall_rating", "pm_score")
_RANK_KEYS = ("rank", "ranking")
_RANKS: Final = frozenset("rank ranks ranked ranking rankings".split())  # words of a column's name
_SCORES: Final = frozenset("score scores reward rewards rating ratings".split())


Row = TypeVar("Row")


class Candidate(NamedTuple):
    """One of several responses; a higher score is better, and a rank counts as its negative."""

    response: object
    score: float | None


def check_pairing(pairs: str | None, min_gap: float | None) -> None:
    """Raise `InvalidArgumentError` for a rule that does not exist or a gap that is not a number."""
    if pairs is not None:
        InvalidArgumentError.check("pairs", pairs, PAIR_RULES)
    if min_gap is not None and (
        isinstance(min_gap, bool) or not isinstance(min_gap, int | float) or not min_gap >= 0
    ):
        raise InvalidArgumentError(
            f"min_gap={min_gap!r} must be a number of 0 or more.",
            hint="It is the least difference between the scores of a pair.",
        )


def as_score(name: str, value: object) -> float | None:
    """A score as a number; None for a null. Raises `DataError` for anything else."""
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
    """Whether a column of that name holds ranks, where the lowest is the best. A reranker's scores are none.

    Raises:
        InvalidArgumentError: the name speaks of both, as "rank_score" does.
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
    """The first score less the other; 0 for equal ones, be they infinite."""
    return 0.0 if one == other else one - other


def candidates_of(
    name: str, value: object, scores: object = None, score_name: str = "scores"
) -> list[Candidate]:
    """The responses in a cell, with their scores.

    Args:
        name: the column of the responses.
        value: a list of texts, or of records that hold a text and a score or rank.
        scores: a list of scores or ranks, where another column has them.
        score_name: the column of the scores; if `is_ranked` says so, lower is better.

    Raises:
        DataError: it is no such list, or the scores do not fit it.
    """
    items = plain(value)
    if not isinstance(items, list | tuple):
        raise wrong_type(name, items, "a list of responses")
    given = plain(scores)
    if is_null(given):
        return [_candidate(name, plain(item)) for item in items]
    if not isinstance(given, list | tuple) or len(given) != len(items):
        size = len(given) if isinstance(given, list | tuple) else "no"
        raise DataError(f"{name!r} has {len(items)} responses and {score_name!r} {size} scores.")
    sign = -1 if is_ranked(score_name) else 1
    return [
        Candidate(_response(name, plain(item)), _signed(sign, as_score(score_name, score)))
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
    """The pairs (place of the better, place of the worse) that a rule makes, best first.

    Args:
        scores: one each; None takes no part.
        rule: "best-worst": the highest and the lowest; "all": every two; "adjacent": each and the
            next lower one in the order of scores. Of equal scores the one that comes first counts.
        min_gap: the least difference; a difference of 0 never makes a pair.

    Raises:
        NoPreferenceError: there is no such pair.
        DataError: there are more than `MOST_PAIRS`.
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
    """Every two of the sorted responses that differ by `min_gap` and at all. No other two are looked at."""
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
    """The ratings that one person gave to the responses of one prompt, each list with its key.

    Rows of a prompt follow one another; those of several users may be mixed among them.

    Args:
        rows: one rated response each.
        key: of a row: what its prompt is, and who rated it.
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
    """The pairs of a list of chosen and a list of rejected responses.

    "all" takes every chosen with every rejected one, "adjacent" those at the same place.

    Raises:
        DataError: "adjacent", and the lists have different lengths; "best-worst", which needs scores;
            "all", and there are more than `MOST_PAIRS`.
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
