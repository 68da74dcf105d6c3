"""Which vectors are nearest, and which users to a user: cosines, numpy only.

Where vectors come from is not known here: `Embed` is any callable, such as the `encode` of a
sentence-transformers model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..exceptions import DataError, InvalidArgumentError
from ..records import Message, Preference

__all__ = ["Embed", "cosines", "nearest_users", "prompt_text", "user_vectors"]

Floats = npt.NDArray[np.float64]
Embed = Callable[[list[str]], npt.ArrayLike]  # n texts -> (n, dimensions)

_QUERIES = 1024  # users compared with all others at once


def cosines(one: npt.ArrayLike, other: npt.ArrayLike) -> Floats:
    """The cosine of each vector with each: (n, d) and (m, d) -> (n, m); 0 for a vector of zeros."""
    found: Floats = _unit(one) @ _unit(other).T
    return found


def user_vectors(
    histories: Sequence[Preference],
    embed: Embed,
    *,
    of: Literal["difference", "chosen", "rejected"] = "difference",
) -> dict[str, Floats]:
    """A vector for each user: the mean over choices of emb(chosen) - emb(rejected).

    Or of one of the two alone: PersonalLLM, arXiv 2409.20296, section 4.2.

    Args:
        histories: choices with `user`.
        embed: texts -> vectors; each distinct text is embedded once.
        of: what is averaged.

    Raises:
        DataError: a choice has no user.
    """
    InvalidArgumentError.check("of", of, ("difference", "chosen", "rejected"))
    users: dict[str, list[int]] = {}
    for place, choice in enumerate(histories):
        if choice.user is None:
            raise DataError(
                f"choice {place} has no user.", hint="Leave it out, or say whose it is."
            )
        users.setdefault(choice.user, []).append(place)
    vectors = np.zeros(1)
    if of != "rejected":
        vectors = vectors + embedded([choice.chosen for choice in histories], embed)
    if of != "chosen":
        sign = -1.0 if of == "difference" else 1.0
        vectors = vectors + sign * embedded([choice.rejected for choice in histories], embed)
    return {user: vectors[places].mean(axis=0) for user, places in users.items()}


def nearest_users(
    vectors: Mapping[str, npt.ArrayLike], k: int = 20, *, of: Sequence[str] | None = None
) -> dict[str, list[str]]:
    """For each user the k others of the highest cosine, the nearest first.

    Args:
        vectors: from `user_vectors`.
        k: how many; PersonalLLM takes 20.
        of: the users asked about; None: all.

    Raises:
        InvalidArgumentError: k is no number from 1 up, or vectors differ in length.
        DataError: a vector is not finite.
    """
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise InvalidArgumentError(f"k={k!r} must be a whole number from 1 up.")
    names = list(vectors)
    place = {name: row for row, name in enumerate(names)}
    asked = names if of is None else list(of)
    if unknown := [name for name in asked if name not in place]:
        raise InvalidArgumentError(f"of= names user {unknown[0]!r}, who has no vector.")
    lengths = {np.shape(vectors[name]) for name in names}
    if len(lengths) > 1 or any(len(shape) != 1 for shape in lengths):
        raise InvalidArgumentError(f"vectors= have the shapes {sorted(lengths)}: one is needed.")
    stacked = np.array([np.asarray(vectors[name], dtype=np.float64) for name in names])
    if (broken := np.flatnonzero(~np.isfinite(stacked).all(axis=-1))).size:
        raise DataError(f"the vector of user {names[broken[0]]!r} is not finite.")
    units = _unit(stacked).astype(np.float32)
    count = min(k, len(names) - 1)
    found: dict[str, list[str]] = {}
    for start in range(0, len(asked), _QUERIES):
        part = asked[start : start + _QUERIES]
        rows = np.array([place[name] for name in part])
        near = units[rows] @ units.T
        near[np.arange(len(rows)), rows] = -np.inf  # nobody is a neighbour of themselves
        for name, best in zip(part, _top(near, count), strict=True):
            found[name] = [names[row] for row in best]
    return found


def embedded(texts: Sequence[str], embed: Embed) -> Floats:
    """The vector of each text, of which each distinct one is embedded once."""
    distinct = list(dict.fromkeys(texts))
    vectors = np.asarray(embed(distinct), dtype=np.float64)
    if vectors.ndim != 2 or len(vectors) != len(distinct) or not np.isfinite(vectors).all():
        raise InvalidArgumentError(
            f"embed= gives an array of shape {vectors.shape} for {len(distinct)} texts, or one that is"
            " not finite.",
            hint="It takes a list of n texts and returns n vectors.",
        )
    place = {text: row for row, text in enumerate(distinct)}
    found: Floats = vectors[[place[text] for text in texts]]
    return found


def prompt_text(prompt: str | tuple[Message, ...]) -> str:
    """What a prompt asks, for a search: the last turn of a conversation."""
    return prompt if isinstance(prompt, str) else prompt[-1].content if prompt else ""


def _top(scores: npt.NDArray[Any], count: int) -> npt.NDArray[np.int64]:
    """The places of the highest scores of each row, in order; the first of equals comes first."""
    if count == 0:
        return np.empty((len(scores), 0), dtype=np.int64)
    best = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    best.sort(axis=1)
    order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
    top: npt.NDArray[np.int64] = np.take_along_axis(best, order, axis=1)
    return top


def _unit(vectors: npt.ArrayLike) -> Floats:
    found = np.asarray(vectors, dtype=np.float64)
    lengths = np.linalg.norm(found, axis=-1, keepdims=True)
    unit: Floats = found / np.where(lengths > 0, lengths, 1.0)
    return unit
