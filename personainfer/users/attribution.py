"""Find which sentences of a prefix move the prediction, and whether they do so more where it is right.

FamousPersona (arXiv 2505.13257) takes ContextCite (arXiv 2409.00729): score each choice with random subsets
of the sentences, fit a sparse linear model of the margin, and compare the effects of sentences between
successes and failures. If the same margins say what is a success, sentences that do nothing differ too:
their noise is part of the margin. Here some choices of a user decide whether the user is predicted, and the
effects come from the others.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..evaluation.statistics import CONFIDENCE, Estimate, bootstrap, bootstrap_mean, holm
from ..exceptions import DataError
from ..records import FloatArray, Preference
from .predictors import Case, Predictor
from .prefixes import Prefix

Flags = npt.NDArray[np.bool_]

ABLATIONS = 64  # as ContextCite and FamousPersona
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
    """By how much one sentence raises the margin of one choice, other sentences being in or out.

    `right` says whether the user's other choices, which this one is not part of, are predicted.
    """

    user: str
    choice: str
    place: int
    sentence: str
    effect: float
    right: bool


@dataclass(frozen=True, slots=True)
class SentencePlace:
    """What the sentences at one place (from 1) do; each user counts once, and users are resampled.

    `right` and `wrong` are the mean effects for users whose other choices are predicted and for those
    whose are not, `difference` is the one less the other. `p` is from permutations of right and wrong
    over users, `adjusted_p` is corrected over places (Holm). NaN where there is only one of the two.
    Where a sentence does the same for all users, resampling cannot vary, and the interval has a width of 0.
    """

    place: int
    right: Estimate
    wrong: Estimate
    difference: Estimate
    p: float
    adjusted_p: float


@dataclass(frozen=True)
class Attribution:
    """Every measured effect, and the effects by the place of the sentence.

    `left_out` counts choices of users with a single one, `failed` those that could not be scored.
    """

    prefix: str
    effects: tuple[SentenceEffect, ...]
    places: tuple[SentencePlace, ...]
    left_out: int = 0
    failed: int = 0

    def strongest(self, count: int = 5) -> list[SentenceEffect]:
        """The sentences that move a decision most, in either direction."""
        return sorted(self.effects, key=lambda one: -abs(one.effect))[:count]


def sentences(text: str) -> list[tuple[int, int]]:
    """Where each sentence of a prefix begins and ends.

    Of a text with tags, what comes before the first one is the library's own instruction and left out.
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
    limit: int | None = 64,
    ablations: int = ABLATIONS,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Attribution:
    """Measure the effect of each sentence of a prefix on the margin of choices.

    Half of each user's choices, drawn by `seed`, say whether the user is predicted with the whole prefix.
    The others are scored with random subsets of the sentences, each in with probability 1/2; with few
    sentences, with all subsets. The effects of one choice are the coefficients of a sparse linear fit
    (lasso, then least squares on the sentences that it keeps).

    Args:
        name: what the prefix is called.
        prefix: such as `persona_prefix("persona", …)`.
        choices: with `user`.
        predict: from `predictor_of`.
        limit: measure effects on at most N choices, drawn by `seed`; None: on all.
        ablations: how many subsets are scored for each choice.
        confidence: of the intervals.
        seed: of the draws and the permutations.

    Raises:
        DataError: no prefix of these choices has a sentence, or no user has two choices.
    """
    random = np.random.default_rng(seed)
    judged, measured, single = _halves(choices, random)
    if limit is not None and len(measured) > limit:
        drawn = sorted(random.permutation(len(measured))[:limit])
        measured = [measured[place] for place in drawn]
    texts = [prefix.before(choice).text for choice in measured]
    written = prefix.kind in ("few-shot", "persona", "gold")  # other kinds are words of the library
    spans = [sentences(text) if written else [] for text in texts]
    if not any(spans):
        if not measured and choices:
            raise DataError(
                "no user has two choices: some define what is right, others the effects."
            )
        raise DataError(f"the prefix {name!r} has no sentence to leave out.")
    masks = [_masks(len(one), ablations, random) for one in spans]
    people = {choice.user for choice in measured}
    judged = [choice for choice in judged if choice.user in people]
    cases = [_case(prefix, choice, prefix.before(choice).text) for choice in judged]
    for choice, text, where, rows in zip(measured, texts, spans, masks, strict=True):
        cases += [_case(prefix, choice, _without(text, where, row)) for row in rows]
    margins = predict(cases).margins
    right = _predicted(judged, margins[: len(judged)])
    effects: list[SentenceEffect] = []
    failed, start = 0, len(judged)
    for choice, text, where, rows in zip(measured, texts, spans, masks, strict=True):
        own, start = margins[start : start + len(rows)], start + len(rows)
        if np.isnan(own).any() or choice.user not in right:
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


def _halves(
    choices: Sequence[Preference], random: np.random.Generator
) -> tuple[list[Preference], list[Preference], int]:
    """Half of each user's choices, the others, and how many users have a single one."""
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
    """Which sentences each subset has, shape (subsets, count): all subsets if there are few enough."""
    if count == 0:
        return np.zeros((0, 0), dtype=bool)
    if 2**count <= ablations:
        return (np.arange(2**count)[:, None] >> np.arange(count) & 1).astype(bool)
    return random.random((ablations, count)) < 0.5


def _without(text: str, spans: Sequence[tuple[int, int]], kept: Flags) -> str:
    """The text without the sentences that are not kept."""
    for (start, end), keep in reversed(list(zip(spans, kept, strict=True))):
        if not keep:
            text = text[:start] + text[end:]
    return text


def _case(prefix: Prefix, choice: Preference, said: str) -> Case:
    return Case(choice, said, prefix.around(said, choice.prompt))


def _predicted(judged: Sequence[Preference], margins: FloatArray) -> dict[str | None, bool]:
    """Whether most of a user's choices are predicted; the mean margin decides where half of them are."""
    of_user: dict[str | None, list[float]] = defaultdict(list)
    for choice, margin in zip(judged, margins, strict=True):
        if not np.isnan(margin):
            of_user[choice.user].append(float(margin))
    return {
        user: bool((np.sign(mine).sum(), np.sum(mine)) > (0.0, 0.0))
        for user, mine in of_user.items()
    }


def _sparse_fit(masks: Flags, margins: FloatArray) -> FloatArray:
    """The effect of each sentence: least squares on the sentences that a lasso keeps; 0 for the others."""
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
    """Mean effect where right, where wrong, the difference, and its p; each user counts once."""
    users, place = np.unique([effect.user for effect in effects], return_inverse=True)
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
    """How often the difference is as large when right and wrong are shuffled over users."""
    if right.all() or not right.any():
        return float("nan")
    random = np.random.default_rng(seed)
    dealt = random.permuted(np.tile(right, (_PERMUTATIONS, 1)), axis=1)
    # Given how many are right, the difference of means is a straight line in the sum over the right ones.
    expected = float(values.mean() * right.sum())
    drawn = np.abs(dealt @ values - expected)
    observed = abs(float(values @ right) - expected)
    rounding = 1e-12 * max(1.0, float(np.abs(values).sum()))
    return float((1 + np.count_nonzero(drawn >= observed - rounding)) / (1 + len(drawn)))
