"""Measure how much each sentence of a prefix changes predictions, for users predicted well and for others.

A prefix is a text about a user before a prompt, see `prefixes`. FamousPersona (arXiv 2505.13257) uses
ContextCite (arXiv 2409.00729): score each choice with random subsets of the sentences, fit a sparse linear
model of the margin, and compare the effects of sentences between successes and failures. If one margin gave
both the effect and the success, sentences without any effect would differ as well, because their noise is
part of the margin. This module therefore splits the choices of each user: one half decides whether the user
is predicted, and the effects are measured on the other half. A margin is a prediction as in `predictors`:
above 0 the choice is predicted.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..arguments import read_labels
from ..evaluation.statistics import (
    CONFIDENCE,
    Estimate,
    bootstrap,
    bootstrap_mean,
    holm_of_tested,
)
from ..exceptions import DataError
from ..records import FloatArray, Preference
from .predictors import Case, Flags, Predictor
from .prefixes import Prefix

ABLATIONS = 64  # as ContextCite and FamousPersona
LIMIT = 64  # choices on which the effects of a prefix are measured
WITH_SENTENCES = ("few-shot", "persona", "gold")  # other kinds of prefixes are words of the library
_PERMUTATIONS = 9_999
_PENALTY = 0.01  # of the sparse fit, in standard deviations of the margin
_SWEEPS = 200
_TAG = re.compile(r"(?<!\s)\s*+</?[a-z_]+>\s*")
# Full-width marks end a sentence by themselves: no space follows them.
_SENTENCE = re.compile(
    r"\S(?:[^\n.!?…。\uff01\uff1f]++|[.!?…]++(?!\s|$))*+(?:[.!?…]++|[。\uff01\uff1f]++|$)",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class SentenceEffect:
    """The effect of one sentence of a user's prefix on the margin of one choice.

    Attributes:
        user, choice: their ids; "" for a choice without an id.
        place: the number of the sentence in the prefix, from 1.
        sentence: its text.
        effect: the coefficient of the sentence in the linear model: how much it raises the margin, in the
            unit of the margin.
        right: whether the whole prefix predicts most of the user's choices in the half on which no effect is
            measured.
    """

    user: str
    choice: str
    place: int
    sentence: str
    effect: float
    right: bool


@dataclass(frozen=True, slots=True)
class SentencePlace:
    """The mean effect of the sentences at one place of the prefix. Each user counts once.

    Intervals resample users. If a sentence has the same effect for all users, its interval has a width of 0.

    Attributes:
        place: the number of the sentence, from 1.
        right, wrong: the mean effect for users with `SentenceEffect.right`, and for users without.
        difference: `right` minus `wrong`.
        p: the p-value of the difference, by permutation of right and wrong over users.
        adjusted_p: `p` corrected for the number of places (Holm 1979). `difference`, `p` and `adjusted_p` are
            NaN if no user is right, or all are.
    """

    place: int
    right: Estimate
    wrong: Estimate
    difference: Estimate
    p: float
    adjusted_p: float


@dataclass(frozen=True)
class Attribution:
    """The effects of the sentences of one prefix.

    Attributes:
        prefix: the name of the prefix.
        effects: one effect for each sentence and each measured choice.
        places: mean effects by the place of the sentence, from the first place.
        left_out: how many users have a single choice, which is left out.
        failed: how many of the measured choices have no effect, because a margin is missing or infinite.
    """

    prefix: str
    effects: tuple[SentenceEffect, ...]
    places: tuple[SentencePlace, ...]
    left_out: int = 0
    failed: int = 0

    def strongest(self, count: int = 5) -> list[SentenceEffect]:
        """Return the `count` effects with the largest absolute value, largest first."""
        return sorted(self.effects, key=lambda one: -abs(one.effect))[:count]


def sentences(text: str) -> list[tuple[int, int]]:
    """Find the start and the end of each sentence of a prefix, in characters.

    If the text has tags, such as <persona>, only the sentences after the first tag count: those before it are
    the library's own instruction. A tag is not a sentence.
    """
    found = list(_SENTENCE.finditer(text))
    tags = [match.start() for match in found if _TAG.fullmatch(match.group())] or [-1]
    return [m.span() for m in found if m.start() > tags[0] and not _TAG.fullmatch(m.group())]


def attribute_prefix(
    name: str,
    prefix: Prefix,
    choices: Sequence[Preference],
    predict: Predictor,
    *,
    limit: int | None = LIMIT,
    ablations: int = ABLATIONS,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Attribution:
    """Measure the effect of each sentence of a prefix on the margin of choices.

    Half of each user's choices, drawn at random, say whether the whole prefix predicts the user: whether it
    predicts most of them (`SentenceEffect.right`). Users with a single choice are left out. Each other choice
    is scored with subsets of the sentences: with all subsets if there are at most `ablations`, else with
    random ones, which keep a sentence with probability 1/2. The effects on a choice are the coefficients of a
    sparse linear model of the margin (a lasso selects sentences; least squares on these gives their
    coefficients; the others are 0).

    Args:
        name: the name of the prefix, for the result.
        prefix: such as `persona_prefix("persona", …)`.
        choices: the choices to predict, each with a `user` for whom the prefix works.
        predict: a function from `predictor_of`.
        limit: measure effects on at most this many choices, drawn at random; None: on all of the other half.
        ablations: the most subsets to score for each choice.
        confidence: of the intervals, between 0 and 1.
        seed: of the draws, and of the permutations for `SentencePlace.p`.

    Returns:
        The effects, and their means for users with `right` and without.

    Raises:
        DataError: no prefix of these choices has a sentence (only the kinds "few-shot", "persona" and "gold"
            have them), no user has two choices, or the prefix knows nothing of a user.
        InvalidArgumentError, ModelError, CacheError: from `predict`.
    """
    random = np.random.default_rng(seed)
    judged, measured, texts, spans, single = drawn_halves(name, prefix, choices, random, limit)
    masks = [_masks(len(one), ablations, random) for one in spans]
    people = {choice.user for choice in measured}
    judged = [choice for choice in judged if choice.user in people]
    cases = [Case.of(prefix, choice, prefix.before(choice).text) for choice in judged]
    for choice, text, where, rows in zip(measured, texts, spans, masks, strict=True):
        cases += [Case.of(prefix, choice, _without(text, where, row)) for row in rows]
    margins = predict(cases).margins
    right = _predicted(judged, margins[: len(judged)])
    effects: list[SentenceEffect] = []
    failed, start = 0, len(judged)
    for choice, text, where, rows in zip(measured, texts, spans, masks, strict=True):
        own, start = margins[start : start + len(rows)], start + len(rows)
        if not np.isfinite(own).all() or choice.user not in right:
            failed += 1
            continue
        fitted = zip(where, _sparse_fit(rows, own), strict=True)
        effects += [
            SentenceEffect(
                choice.user or "",
                choice.id or "",
                place,
                text[first:last],
                float(effect),
                right[choice.user],
            )
            for place, ((first, last), effect) in enumerate(fitted, start=1)
        ]
    return Attribution(name, tuple(effects), _places(effects, confidence, seed), single, failed)


# Which choices, and which versions of their prefix


class Halves(NamedTuple):
    """The choices that give the effects of a prefix.

    Attributes:
        judged: the choices that decide who is predicted.
        measured: the choices to measure effects on.
        texts: the text of the prefix before each measured choice.
        spans: the start and the end of each sentence in these texts.
        single: how many users have a single choice, which is in neither half.
    """

    judged: list[Preference]
    measured: list[Preference]
    texts: list[str]
    spans: list[list[tuple[int, int]]]
    single: int


def drawn_halves(
    name: str,
    prefix: Prefix,
    choices: Sequence[Preference],
    random: np.random.Generator,
    limit: int | None = LIMIT,
) -> Halves:
    """Draw the choices to judge and to measure, and find the sentences before the latter.

    Args:
        name, prefix, choices, limit: as for `attribute_prefix`.
        random: draws.

    Raises:
        DataError: as `attribute_prefix`.
    """
    judged, measured, single = _halves(choices, random)
    if choices and not measured:
        raise DataError(
            "no user has two choices: one half decides who is predicted, the other gives effects."
        )
    if limit is not None and len(measured) > limit:
        drawn = sorted(random.permutation(len(measured))[:limit])
        measured = [measured[place] for place in drawn]
    texts = [prefix.before(choice).text for choice in measured]
    written = prefix.kind in WITH_SENTENCES
    spans = [sentences(text) if written else [] for text in texts]
    if not any(spans):
        raise DataError(f"the prefix {name!r} has no sentence to leave out.")
    return Halves(judged, measured, texts, spans, single)


def _halves(
    choices: Sequence[Preference], random: np.random.Generator
) -> tuple[list[Preference], list[Preference], int]:
    """Split the choices of each user into two halves at random.

    Returns:
        The choices that decide who is predicted, the choices to measure effects on, and how many users have a
        single choice, which is in neither list.
    """
    of_user: dict[str | None, list[Preference]] = defaultdict(list)
    for choice in choices:
        of_user[choice.user].append(choice)
    judged: list[Preference] = []
    measured: list[Preference] = []
    for mine in of_user.values():
        order = random.permutation(len(mine))
        half = len(mine) // 2
        judged += [mine[place] for place in order[:half]]
        measured += [mine[place] for place in order[half:] if half]
    return judged, measured, sum(len(mine) == 1 for mine in of_user.values())


def _masks(count: int, ablations: int, random: np.random.Generator) -> Flags:
    """Draw subsets of `count` sentences, shape (subsets, count); True: the subset has the sentence."""
    if count == 0:
        return np.zeros((0, 0), dtype=bool)
    if 2**count <= ablations:
        return (np.arange(2**count)[:, None] >> np.arange(count) & 1).astype(bool)
    return random.random((ablations, count)) < 0.5


def _without(text: str, spans: Sequence[tuple[int, int]], kept: Flags) -> str:
    """Return a text without the sentences that are not kept.

    Args:
        text: the text.
        spans: the start and the end of each sentence, in order.
        kept: for each sentence whether it is kept.
    """
    for (start, end), keep in reversed(list(zip(spans, kept, strict=True))):
        if not keep:
            text = text[:start] + text[end:]
    return text


def _predicted(judged: Sequence[Preference], margins: FloatArray) -> dict[str | None, bool]:
    """Return for each user whether most choices are predicted; the sum of the margins decides a tie.

    A user without any margin is left out.

    Args:
        judged: the choices.
        margins: the margin of each; NaN: missing.
    """
    of_user: dict[str | None, list[float]] = defaultdict(list)
    for choice, margin in zip(judged, margins, strict=True):
        if not np.isnan(margin):
            of_user[choice.user].append(float(margin))
    return {
        user: bool((np.sign(mine).sum(), np.sum(mine)) > (0.0, 0.0))
        for user, mine in of_user.items()
    }


def _sparse_fit(masks: Flags, margins: FloatArray) -> FloatArray:
    """Fit a linear model of margins on the sentences that the prefix has, and return its coefficients.

    A lasso on standardised columns selects sentences; least squares on these gives their coefficients. The
    others are 0, and all are 0 if the margins do not vary.

    Args:
        masks: shape (subsets, sentences): whether the subset has the sentence.
        margins: shape (subsets,).

    Returns:
        Shape (sentences,), in the unit of the margins.
    """
    spread = margins.std()
    effects = np.zeros(masks.shape[1])
    if not spread > 1e-12 * max(1.0, float(np.abs(margins).max())):
        return effects
    x = masks - masks.mean(axis=0)
    scale = x.std(axis=0)
    x = x / np.where(scale > 0, scale, 1.0)
    y = (margins - margins.mean()) / spread
    weights = np.zeros(x.shape[1])
    rest = y.copy()
    for _ in range(_SWEEPS):  # coordinate descent
        before = weights.copy()
        for place in np.flatnonzero(scale):
            rest += x[:, place] * weights[place]
            pull = float(x[:, place] @ rest) / len(y)
            weights[place] = np.sign(pull) * max(abs(pull) - _PENALTY, 0.0)
            rest -= x[:, place] * weights[place]
        if np.abs(weights - before).max() < 1e-9:
            break
    kept = np.flatnonzero(weights)
    if len(kept):
        design = np.column_stack([np.ones(len(masks)), masks[:, kept]])
        effects[kept] = np.linalg.lstsq(design, margins, rcond=None)[0][1:]
    return effects


# Effects by place


def _places(
    effects: Sequence[SentenceEffect], confidence: float, seed: int
) -> tuple[SentencePlace, ...]:
    found = []
    for place in sorted({effect.place for effect in effects}):
        here = [effect for effect in effects if effect.place == place]
        found.append((place, *_compared(here, confidence, seed)))
    adjusted = holm_of_tested([p for *_, p in found])
    return tuple(SentencePlace(*one, float(p)) for one, p in zip(found, adjusted, strict=True))


def _compared(
    effects: Sequence[SentenceEffect], confidence: float, seed: int
) -> tuple[Estimate, Estimate, Estimate, float]:
    """Return the fields `right`, `wrong`, `difference` and `p` of a `SentencePlace`."""
    users, place = read_labels("users", [effect.user for effect in effects])
    sums = np.bincount(place, [effect.effect for effect in effects])
    values = sums / np.bincount(place)
    right = np.zeros(len(users), dtype=bool)
    right[place] = [effect.right for effect in effects]
    items = np.stack([values * right, right, values * ~right, ~right], axis=1).astype(np.float64)

    def difference(sums: FloatArray) -> FloatArray:
        return sums[:, 0] / sums[:, 1] - sums[:, 2] / sums[:, 3]

    return (
        bootstrap_mean(values[right], confidence=confidence),
        bootstrap_mean(values[~right], confidence=confidence),
        bootstrap(items, difference, confidence=confidence),
        _permuted_p(values, right, seed),
    )


def _permuted_p(values: FloatArray, right: Flags, seed: int) -> float:
    """Return the two-sided p-value of the difference of two means, by permutation of the labels.

    Args:
        values: one value for each user.
        right: the label of each user.
        seed: of the permutations.

    Returns:
        The p-value; NaN if all labels are equal.
    """
    if right.all() or not right.any():
        return float("nan")
    random = np.random.default_rng(seed)
    dealt = random.permuted(np.tile(right, (_PERMUTATIONS, 1)), axis=1)
    # The number of right users is fixed, so the difference of means is a linear function of their sum.
    expected = float(values.mean() * right.sum())
    drawn = np.abs(dealt @ values - expected)
    observed = abs(float(values @ right) - expected)
    rounding = 1e-12 * max(1.0, float(np.abs(values).sum()))
    return float((1 + np.count_nonzero(drawn >= observed - rounding)) / (1 + len(drawn)))
