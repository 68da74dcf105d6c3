"""Users who are trained on and users who are not: k folds, or one group left out at a time."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..exceptions import DataError, InvalidArgumentError
from ..records import FloatArray, Preference, Prompt
from ..tailoring.bm25 import words
from .similar_users import Embed, cosines, embedded

__all__ = [
    "Fold",
    "Question",
    "find_questions",
    "folds_of",
]


@dataclass(frozen=True, slots=True)
class Fold:
    """The users to fit on (`trained`), and the users to test on (`unseen`)."""

    name: str
    trained: tuple[str, ...]
    unseen: tuple[str, ...]


def folds_of(
    users: Sequence[str],
    folds: int | str,
    groups: Mapping[str, Mapping[str, str]] | None = None,
    seed: int = 0,
) -> list[Fold]:
    """Split users into folds: each is unseen in one, and trained on in the others.

    Args:
        users: their names, each once.
        folds: how many, drawn by `seed`; or an attribute of users, of which one value is left out at a
            time. Users without a value are unseen in no fold.
        groups: attribute -> user -> value.
        seed: of the draw.

    Raises:
        InvalidArgumentError: fewer than two folds, or an attribute that is not in `groups`.
        DataError: fewer users than folds, or an attribute with a single value.
    """
    if isinstance(folds, str):
        parts = _by_value(users, folds, groups)
    elif isinstance(folds, bool) or not isinstance(folds, int) or folds < 2:
        raise InvalidArgumentError(f"folds={folds!r} must be a whole number from 2 up, or a group.")
    elif folds > len(users):
        raise DataError(f"folds={folds}, but there are only {len(users)} users.")
    else:
        order = [users[place] for place in np.random.default_rng(seed).permutation(len(users))]
        parts = {str(n + 1): set(order[n::folds]) for n in range(folds)}
    return [
        Fold(
            name,
            tuple(user for user in users if user not in left_out),
            tuple(user for user in users if user in left_out),
        )
        for name, left_out in parts.items()
    ]


def _by_value(
    users: Sequence[str], attribute: str, groups: Mapping[str, Mapping[str, str]] | None
) -> dict[str, set[str]]:
    if attribute not in (groups or {}):
        known = ", ".join(groups or {}) or "none"
        raise InvalidArgumentError(
            f"folds={attribute!r} is no attribute of users.", hint=f"groups= has: {known}."
        )
    assert groups is not None
    parts: dict[str, set[str]] = {}
    for user in users:
        if user in groups[attribute]:
            parts.setdefault(groups[attribute][user], set()).add(user)
    if len(parts) < 2:
        raise DataError(f"the attribute {attribute!r} has {len(parts)} values here; 2 are needed.")
    return dict(sorted(parts.items()))


# Questions on which users choose differently


Question = Literal["clashing", "personal"]

_DIMENSIONS = 1024
_OPPOSED = -0.25  # cosine of two choices: that of unrelated ones scatters around 0
_QUERIES = 512  # choices compared with all others at once


def find_questions(
    choices: Sequence[Preference], *, near: float = 0.9, embed: Embed | None = None
) -> list[Question]:
    """Say of each choice whether its question is "clashing", one on which users disagree, or "personal".

    Two users clash where the cosine of their prompts is at least `near`, and that of their
    emb(chosen) - emb(rejected) is below -0.25. It is -1 where one chose what the other rejected.

    Args:
        choices: n choices with `user`.
        near: from 0 to 1; 1: only the same prompt.
        embed: texts -> vectors, such as `SentenceTransformer(…).encode`; None: counts of hashed words.

    Raises:
        InvalidArgumentError: near is not between 0 and 1.
    """
    if isinstance(near, bool) or not isinstance(near, int | float) or not 0 <= near <= 1:
        raise InvalidArgumentError(f"near={near!r} must lie between 0 and 1.")
    if not choices:
        return []
    embed = word_counts if embed is None else embed
    prompts = [" ".join(_whole(choice.prompt).casefold().split()) for choice in choices]
    where = embedded(prompts, embed)
    what = embedded([choice.chosen for choice in choices], embed)
    what = what - embedded([choice.rejected for choice in choices], embed)
    users = np.array([choice.user or "" for choice in choices])
    clashing = np.zeros(len(choices), dtype=bool)
    for start in range(0, len(choices), _QUERIES):
        part = slice(start, start + _QUERIES)
        same = cosines(where[part], where) >= near - 1e-9
        opposed = cosines(what[part], what) < _OPPOSED
        other = users[part, None] != users[None]
        clashing[part] = (same & opposed & other).any(axis=1)
    return ["clashing" if found else "personal" for found in clashing]


def _whole(prompt: Prompt) -> str:
    """All turns: "Why?" is another question in another conversation."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(turn.content for turn in prompt if turn.role != "system")


def word_counts(texts: list[str]) -> FloatArray:
    """Counts of words, hashed into a fixed number of dimensions."""
    counts = np.zeros((len(texts), _DIMENSIONS))
    for row, text in enumerate(texts):
        for word in words(text):
            counts[row, zlib.crc32(word.encode()) % _DIMENSIONS] += 1
    return counts
