"""Which sentences of a prefix move the decision: each is left out once.

FamousPersona (arXiv 2505.13257) compares what sentences do where the choice is predicted and where it is
not; so is done here, by the place of the sentence, with p-values from permutations within users, corrected.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..evaluation.grouped import group_sums, mean_by_group
from ..evaluation.statistics import CONFIDENCE, Estimate, bootstrap, holm
from ..exceptions import DataError
from ..records import Preference
from .predictors import Case, Predictor
from .prefixes import Prefix

__all__ = ["Attribution", "SentenceEffect", "SentencePlace", "attribute_prefix", "sentences"]

Floats = npt.NDArray[np.float64]

_PERMUTATIONS = 9_999
_TAG = re.compile(r"\s*</?[a-z_]+>\s*")
# Full-width marks end a sentence by themselves: no space follows them.
_SENTENCE = re.compile(r"\S.*?(?:[.!?…]+(?=\s|$)|[。\uff01\uff1f]+|$)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class SentenceEffect:
    """By how much one sentence raises the margin of one choice: margin with it less margin without.

    `right` says whether the choice is predicted with the whole prefix; a tie is not.
    """

    user: str
    choice: str
    place: int
    sentence: str
    effect: float
    right: bool


@dataclass(frozen=True, slots=True)
class SentencePlace:
    """What the sentences at one place (from 1) do, users resampled.

    `right` and `wrong` are the mean effects where choices are predicted and where they are not,
    `difference` is the one less the other; `p` is from permutations of right and wrong within each
    user, `adjusted_p` corrected over places (Holm). NaN where one of the two does not occur.
    """

    place: int
    right: Estimate
    wrong: Estimate
    difference: Estimate
    p: float
    adjusted_p: float


@dataclass(frozen=True)
class Attribution:
    """Every effect that was measured, and the effects by the place of the sentence."""

    prefix: str
    effects: tuple[SentenceEffect, ...]
    places: tuple[SentencePlace, ...]

    def strongest(self, count: int = 5) -> list[SentenceEffect]:
        """The sentences that move a decision most, in either direction."""
        return sorted(self.effects, key=lambda one: -abs(one.effect))[:count]


def sentences(text: str) -> list[tuple[int, int]]:
    """Where each sentence of a prefix begins and ends; lines that are nothing but a tag belong to none."""
    return [match.span() for match in _SENTENCE.finditer(text) if not _TAG.fullmatch(match.group())]


def attribute_prefix(
    name: str,
    prefix: Prefix,
    choices: Sequence[Preference],
    predict: Predictor,
    *,
    limit: int | None = 64,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Attribution:
    """Leave each sentence of the prefix out, and measure by how much the margin falls.

    Args:
        name: what the prefix is called.
        prefix: such as `persona_prefix("persona", …)`.
        choices: with `user`.
        predict: from `predictor_of`.
        limit: as many of the choices, drawn by `seed`; None: all. The paper takes 64.
        confidence: of the intervals.
        seed: of the draw and the permutations.

    Raises:
        DataError: no prefix of these choices has a sentence.
    """
    random = np.random.default_rng(seed)
    count = len(choices) if limit is None else min(limit, len(choices))
    drawn = [choices[place] for place in sorted(random.permutation(len(choices))[:count])]
    asked = [_cases(prefix, choice) for choice in drawn]
    if not any(len(cases) > 1 for cases in asked):
        raise DataError(f"the prefix {name!r} has no sentence to leave out.")
    margins = np.split(
        predict([case for cases in asked for case in cases]),
        np.cumsum([len(c) for c in asked])[:-1],
    )
    effects = tuple(
        effect
        for choice, cases, found in zip(drawn, asked, margins, strict=True)
        for effect in _effects(choice, cases[0].prefix, found)
    )
    return Attribution(name, effects, _places(effects, confidence, seed))


def _cases(prefix: Prefix, choice: Preference) -> list[Case]:
    """The choice with the whole prefix, and without each sentence of it."""
    text = prefix.text(choice.user or "", choice.prompt)
    parts = [text[:start] + text[end:] for start, end in sentences(text)]
    return [Case(choice, said, prefix.around(said, choice.prompt)) for said in (text, *parts)]


def _effects(choice: Preference, text: str, margins: Floats) -> list[SentenceEffect]:
    whole, *without = (float(margin) for margin in margins)
    return [
        SentenceEffect(
            choice.user or "", choice.id or "", place, text[start:end], whole - less, whole > 0
        )
        for place, ((start, end), less) in enumerate(
            zip(sentences(text), without, strict=True), start=1
        )
    ]


def _places(
    effects: Sequence[SentenceEffect], confidence: float, seed: int
) -> tuple[SentencePlace, ...]:
    found = []
    for place in sorted({effect.place for effect in effects}):
        here = [effect for effect in effects if effect.place == place]
        found.append((place, *_compared(here, confidence, seed)))
    tested = [p for *_, p in found if not np.isnan(p)]
    adjusted = iter(holm(tested) if tested else ())
    return tuple(
        SentencePlace(*one, p if np.isnan(p) else float(next(adjusted)))
        for one in found
        for p in one[-1:]
    )


def _compared(
    effects: Sequence[SentenceEffect], confidence: float, seed: int
) -> tuple[Estimate, Estimate, Estimate, float]:
    """Mean effect where right, where wrong, the difference, and its p."""
    values = np.array([effect.effect for effect in effects])
    right = np.array([effect.right for effect in effects])
    users = np.array([effect.user for effect in effects])
    means = [
        mean_by_group(values[which], users[which], confidence=confidence)
        for which in (right, ~right)
    ]
    items = np.stack([values * right, right, values * ~right, ~right], axis=1)

    def difference(sums: Floats) -> Floats:
        found: Floats = sums[:, 0] / sums[:, 1] - sums[:, 2] / sums[:, 3]
        return found

    both = bootstrap(group_sums(items, users), difference, confidence=confidence)
    return means[0], means[1], both, _permuted_p(values, right, users, seed)


def _permuted_p(
    values: Floats, right: npt.NDArray[np.bool_], users: npt.NDArray[np.str_], seed: int
) -> float:
    """How often the difference is as large when right and wrong are dealt anew within each user."""
    if right.all() or not right.any():
        return float("nan")
    random = np.random.default_rng(seed)
    sums, expected = np.zeros(_PERMUTATIONS), 0.0
    for user in np.unique(users):
        mine = users == user
        dealt = random.permuted(np.tile(right[mine], (_PERMUTATIONS, 1)), axis=1)
        sums += dealt @ values[mine]
        # Exact: the mean of the sums drawn would put one of two mirrored sums further out than the other.
        expected += float(values[mine].mean() * right[mine].sum())
    # Given how many are right, the difference of means is a straight line in the sum over the right ones.
    observed = abs(float(values @ right) - expected)
    return float(
        (1 + np.count_nonzero(np.abs(sums - expected) >= observed - 1e-12)) / (1 + len(sums))
    )
