"""Find users with a similar taste, and questions on which users disagree, by cosines of embeddings."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..arguments import Count, Finite, Wanted, check_argument, read_items, read_labels, read_numbers
from ..exceptions import DataError, InvalidArgumentError
from ..records import FloatArray, Preference, Prompt
from ..scoring.choice_models import read_choices
from ..tailoring.bm25 import words
from ..tailoring.embeddings import unit_vectors
from .records import one_spelling

# n texts -> vectors of shape (n, dimensions), such as `SentenceTransformer(…).encode`
Embed = Callable[[list[str]], npt.ArrayLike]

_QUERIES = 1024  # users compared with all others at once


def cosines(one: npt.ArrayLike, other: npt.ArrayLike) -> FloatArray:
    """Return the cosines between two sets of vectors: (n, d) and (m, d) -> (n, m).

    The cosine to a vector of zeros is 0.
    """
    first, second = (read_numbers("vectors", v, dimensions=(2,)) for v in (one, other))
    return unit_vectors(first) @ unit_vectors(second).T


def user_vectors(
    histories: Sequence[Preference],
    embed: Embed,
    *,
    of: Literal["difference", "chosen", "rejected"] = "difference",
) -> dict[str, FloatArray]:
    """Represent each user by the mean embedding of the user's choices.

    The method is that of PersonalLLM (arXiv 2409.20296, section 4.2).

    Args:
        histories: `Preference` records with `user`, of all users.
        embed: n texts -> vectors of shape (n, dimensions). It gets each distinct chosen response once, and
            each distinct rejected one, in a call each.
        of: what is averaged: "difference": emb(chosen) - emb(rejected); "chosen": emb(chosen); "rejected":
            emb(rejected).

    Returns:
        User -> vector of shape (dimensions,).

    Raises:
        DataError: a choice has no user.
        InvalidArgumentError: something else than `Preference` records, or `embed` did not return one finite
            vector for each text.
    """
    InvalidArgumentError.check("of", of, ("difference", "chosen", "rejected"))
    histories = read_choices("histories", histories)
    users: dict[str, list[int]] = {}
    for place, choice in enumerate(histories):
        users.setdefault(choice.user or "", []).append(place)
    vectors = np.zeros(1)
    if of != "rejected":
        vectors = vectors + embedded([choice.chosen for choice in histories], embed)
    if of != "chosen":
        sign = -1.0 if of == "difference" else 1.0
        vectors = vectors + sign * embedded([choice.rejected for choice in histories], embed)
    return {user: vectors[places].mean(axis=0) for user, places in users.items()}


def nearest_users(
    vectors: Mapping[str, npt.ArrayLike],
    k: int = 20,
    *,
    of: Sequence[str] | None = None,
    among: Sequence[str] | None = None,
) -> dict[str, list[str]]:
    """Find for each user the k other users whose vectors have the highest cosine, highest first.

    Args:
        vectors: user -> vector of shape (dimensions,), from `user_vectors`.
        k: how many neighbours; 20 in PersonalLLM.
        of: the users to find neighbours for; None: all.
        among: the users to search, such as a database of known users. None: all users that `of` does not
            name, so that test users are not neighbours of each other; all users if `of` is None, too.

    Returns:
        User -> up to k users. A user whose vector is all zeros has no direction, and an empty list.

    Raises:
        InvalidArgumentError: k is not a whole number from 1 up, a user has no vector, no user is left to
            search, or vectors differ in length.
        DataError: a vector is not finite.
    """
    k = check_argument("k", k, Count)
    if not isinstance(vectors, Mapping):
        raise InvalidArgumentError(
            f"vectors={vectors!r:.60} is not a mapping of users to vectors.", argument="vectors"
        )
    names = list(vectors)
    place = {name: row for row, name in enumerate(names)}
    asked = _named("of", names if of is None else of, place)
    tested = set() if of is None else set(asked)
    searched = _named(
        "among",
        [name for name in names if name not in tested] if among is None else among,
        place,
    )
    if of is not None and not searched:
        raise InvalidArgumentError(
            "of= names every user, and nobody is left to search.",
            hint="Name the users to search in among=.",
        )
    lengths = {np.shape(vectors[name]) for name in names}
    if len(lengths) > 1 or any(len(shape) != 1 for shape in lengths):
        raise InvalidArgumentError(f"vectors= have the shapes {sorted(lengths)}: one is needed.")
    stacked = np.stack(
        [read_numbers(f"vectors[{name!r}]", vectors[name], infinite=True) for name in names]
        or [np.zeros(0)]
    )
    if (broken := np.flatnonzero(~np.isfinite(stacked).all(axis=-1))).size:
        raise DataError(f"the vector of user {names[broken[0]]!r} is not finite.")
    units = unit_vectors(stacked).astype(np.float32)
    columns = np.array([place[name] for name in searched], dtype=np.int64)
    column_of = {name: column for column, name in enumerate(searched)}
    found: dict[str, list[str]] = {}
    for start in range(0, len(asked), _QUERIES):
        part = asked[start : start + _QUERIES]
        near = units[[place[name] for name in part]] @ units[columns].T
        own = [(row, column_of[name]) for row, name in enumerate(part) if name in column_of]
        if own:
            near[tuple(np.transpose(own))] = -np.inf  # nobody is a neighbour of themselves
        for name, best in zip(part, _top(near, min(k, len(searched))), strict=True):
            near_ones = [searched[row] for row in best if searched[row] != name]
            found[name] = near_ones if units[place[name]].any() else []
    return found


def _named(argument: str, users: Sequence[str], place: Mapping[str, int]) -> list[str]:
    """Return the users of an argument, each once. Raise InvalidArgumentError if one has no vector."""
    found = read_items(argument, users)
    for name in found:
        if not isinstance(name, Hashable) or name not in place:
            raise InvalidArgumentError(
                f"{argument}= names user {name!r:.80}, who has no vector.", argument=argument
            )
    return list(dict.fromkeys(found))


def embedded(texts: Sequence[str], embed: Embed) -> FloatArray:
    """Embed texts, each distinct one once: n texts -> vectors of shape (n, dimensions).

    Raises:
        InvalidArgumentError: `embed` is no function, or returns another shape, or numbers that are not
            finite.
    """
    check_argument("embed", embed, Callable[..., Any])
    distinct = list(dict.fromkeys(texts))
    vectors = read_numbers(
        "the result of embed", embed(distinct), dimensions=(0, 1, 2, 3), infinite=True
    )
    if vectors.ndim != 2 or len(vectors) != len(distinct) or not np.isfinite(vectors).all():
        raise InvalidArgumentError(
            f"embed= gives an array of shape {vectors.shape} for {len(distinct)} texts, or one that is"
            " not finite.",
            hint="It takes a list of n texts and returns n vectors.",
        )
    place = {text: row for row, text in enumerate(distinct)}
    return vectors[[place[text] for text in texts]]


def prompt_text(prompt: Prompt) -> str:
    """Return the text by which a prompt is searched: the prompt, or the last turn of a conversation."""
    return prompt if isinstance(prompt, str) else prompt[-1].content if prompt else ""


def _top(scores: npt.NDArray[Any], count: int) -> npt.NDArray[np.int64]:
    """Return the places of the highest scores of each row, (n, m) -> (n, count), highest first.

    Equal scores are in the order of their places. `count` is at most m.
    """
    if count == 0:
        return np.empty((len(scores), 0), dtype=np.int64)
    best = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    best.sort(axis=1)
    order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
    return np.take_along_axis(best, order, axis=1)


# Questions on which users choose differently


Question = Literal["clashing", "personal"]

_DIMENSIONS = 1024
_OPPOSED = -0.25  # cosine of two choices: that of unrelated ones scatters around 0
_SAME = 1e-6  # by which the cosine of equal vectors may differ from 1 in single precision
_CHOICES = 512  # compared with all others at once
_Cosine = Annotated[Finite, Field(ge=0, le=1), Wanted("must lie between 0 and 1.")]


def find_questions(
    choices: Iterable[Preference], *, near: float = 0.9, embed: Embed | None = None
) -> list[Question]:
    """Return for each choice whether its question is "clashing" (users disagree on it) or "personal".

    A choice clashes with a choice of another user if the cosine of their prompts is at least `near`, and the
    cosine of their emb(chosen) - emb(rejected) is below -0.25. The latter is -1 if each user chose what the
    other one rejected.

    Args:
        choices: `Preference` records with `user`.
        near: the least cosine of two prompts that are one question, from 0 to 1; 1: only the same prompt.
        embed: n texts -> vectors of shape (n, dimensions), such as `SentenceTransformer(…).encode`; None:
            counts of words.

    Returns:
        One kind for each choice, in order.

    Raises:
        DataError: a choice has no user.
        InvalidArgumentError: something else than `Preference` records, `near` is not between 0 and 1, or
            `embed` did not return one finite vector for each text.
    """
    near = check_argument("near", near, _Cosine)
    choices = read_choices("choices", choices)
    if not choices:
        return []
    embed = word_counts if embed is None else embed
    prompts = [one_spelling(_whole(choice.prompt)) for choice in choices]
    distinct, place = read_labels("prompts", prompts)
    where = unit_vectors(embedded(distinct, embed)).astype(np.float32)
    what = embedded([choice.chosen for choice in choices], embed)
    what = what - embedded([choice.rejected for choice in choices], embed)
    taste = unit_vectors(what).astype(np.float32)
    _, users = read_labels("users", [choice.user or "" for choice in choices])
    clashing = np.zeros(len(choices), dtype=bool)
    order = np.argsort(place, kind="stable")  # choices of one prompt are compared at once
    for start in range(0, len(choices), _CHOICES):
        part = order[start : start + _CHOICES]
        same = np.greater_equal(where[place[part]] @ where.T, near - _SAME)
        same[np.arange(len(part)), place[part]] = True  # also where a prompt has no words
        of_choices = same[:, place]
        others = np.flatnonzero(of_choices.any(axis=0))
        opposed = np.less(taste[part] @ taste[others].T, _OPPOSED)
        found = opposed & of_choices[:, others] & (users[part, None] != users[others])
        clashing[part] = found.any(axis=1)
    return ["clashing" if found else "personal" for found in clashing]


def _whole(prompt: Prompt) -> str:
    """Return all turns but system messages, because "Why?" is another question in another conversation."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(turn.content for turn in prompt if turn.role != "system")


def word_counts(texts: list[str]) -> FloatArray:
    """Count the words of each text, hashed into 1024 dimensions: n texts -> (n, 1024)."""
    counts = np.zeros((len(texts), _DIMENSIONS))
    for row, text in enumerate(texts):
        for word in words(text):
            counts[row, zlib.crc32(word.encode()) % _DIMENSIONS] += 1
    return counts
