"""Questions on which users clash: the same prompt, or nearly, and they choose differently.

FamousPersona (arXiv 2505.13257) asks its people personal and divergent questions, and reports both apart;
here the two are found in the data. Numpy only.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from .bm25 import words
from .exceptions import InvalidArgumentError
from .neighbours import Embed, cosines, embedded
from .records import Message, Preference

__all__ = ["Question", "find_questions"]

Floats = npt.NDArray[np.float64]
Question = Literal["clashing", "personal"]

_DIMENSIONS = 1024
_OPPOSED = -0.25  # cosine of two choices: that of unrelated ones scatters around 0
_QUERIES = 512  # choices compared with all others at once


def find_questions(
    choices: Sequence[Preference], *, near: float = 0.9, embed: Embed | None = None
) -> list[Question]:
    """Whether each choice answers a question on which users clash.

    Two users clash where their prompts have a cosine of at least `near`, and what they prefer points
    in opposite directions: the cosine of emb(chosen) - emb(rejected) is below -0.25. It is -1 where
    one user chose what the other rejected. Every other choice is "personal".

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


def _whole(prompt: str | tuple[Message, ...]) -> str:
    """What was said in a conversation: "Why?" is another question after other words."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(turn.content for turn in prompt if turn.role != "system")


def word_counts(texts: list[str]) -> Floats:
    """How often each word occurs, in a fixed number of places by the hash of the word."""
    counts = np.zeros((len(texts), _DIMENSIONS))
    for row, text in enumerate(texts):
        for word in words(text):
            counts[row, zlib.crc32(word.encode()) % _DIMENSIONS] += 1
    return counts
