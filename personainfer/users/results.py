"""Records of an evaluation of prefixes: accuracies with intervals, and counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ..arguments import read_labels
from ..data.table_display import result_text
from ..evaluation.grouped import mean_by_group, rate_by_group
from ..evaluation.statistics import Estimate
from ..exceptions import DataError
from ..records import FloatArray, Preference
from .attribution import Attribution
from .groups import Equity, Measure, correlation, equities, left_out_of_groups
from .predictors import Flags

Groups = Mapping[str, Mapping[str, str]]

BARE: Final = "none"  # the name of the empty prefix
_HEAD = ("prefix", "accuracy", "gain", "of another user", "own - other")


class Count(NamedTuple):
    """A number of choices, and the number of users who made them."""

    choices: int
    users: int


@dataclass(frozen=True, slots=True)
class Scored:
    """The margins of one prefix, and flags of the texts. All arrays have the shape (choices,).

    A margin is above 0 if the choice is predicted, below 0 if it is not, 0 for a tie, and NaN if missing.

    Attributes:
        own: margins with the user's prefix.
        trained: with folds, margins by what was fitted on the user, too; else NaN.
        shuffled: margins with another user's prefix; NaN if the prefix knows fewer than two users.
        untuned: margins of the untuned scorer, with the user's prefix; NaN if there is none.
        known: whether the prefix works for this user, and a fold leaves the user out.
        turns_cut, responses_cut, unusable: as for `Predictions`, with the user's prefix.
        failed: whether the own margin is missing, although the prefix works for the user.
        short: whether the prefix has fewer than k examples, but at least one.
        empty: whether the prefix of a kind with examples has none.
        cut: whether a text was cut, for any of the margins.
    """

    own: FloatArray
    trained: FloatArray
    shuffled: FloatArray
    untuned: FloatArray
    known: Flags
    turns_cut: Flags
    responses_cut: Flags
    failed: Flags
    unusable: Flags
    short: Flags
    empty: Flags
    cut: Flags

    @classmethod
    def blank(cls, choices: int) -> Scored:
        """Make a record for so many choices, with all margins NaN and all flags False."""
        margins = [np.full(choices, np.nan) for _ in range(4)]
        return cls(*margins, *(np.zeros(choices, dtype=bool) for _ in range(8)))

    def take(self, which: Flags) -> Scored:
        """Select the choices where `which`, shape (choices,), is True."""
        return Scored(*(getattr(self, one.name)[which] for one in fields(self)))


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixAccuracy:
    """How well one prefix predicts held-out choices. A tie counts half; intervals resample users.

    Attributes:
        accuracy: the share of choices that are predicted; with folds, by what was fitted on other users.
        trained: with folds, the accuracy by what was fitted on these users, too; None without folds.
        gain: accuracy minus the accuracy without a prefix, on the same choices.
        over_untuned: accuracy minus that of the untuned scorer with the same prefix, on the same choices;
            None without an untuned scorer.
        shuffled: accuracy with the prefix of another user; None if the prefix has texts or examples of fewer
            than two users.
        own_gain: accuracy minus `shuffled`, on the same choices; None where `shuffled` is.
        questions: kind of question -> accuracy.
        with_baseline: Pearson's r, over users, between the accuracy and the accuracy without a prefix (of the
            untuned scorer, if there is one).
        unknown: how many choices are of users for whom the prefix does not work. They are left out.
        failed: choices without a margin: the text is longer than the model's context, the scorer gave no
            number, or a judge did not reply. They are left out.
        turns_cut: choices whose conversation lost its oldest turns.
        responses_cut: choices for which the end of a response was not scored.
        unusable: choices for which the judge's reply could not be used. They count as wrong.
        short: choices with fewer than k examples, but at least one.
        empty: choices without an example, so that the prefix is empty.
    """

    accuracy: Estimate
    trained: Estimate | None
    gain: Estimate
    over_untuned: Estimate | None
    shuffled: Estimate | None
    own_gain: Estimate | None
    questions: Mapping[str, Estimate]
    with_baseline: Estimate
    unknown: int
    failed: Count
    turns_cut: Count
    responses_cut: Count
    unusable: Count
    short: Count
    empty: Count


_REMARKS = {
    "failed": "no margin: too long for the model, no number, or no reply; left out",
    "turns_cut": "the oldest turns were cut",
    "responses_cut": "the end of a response was not scored",
    "unusable": "the judge's reply could not be used; counted as wrong",
    "short": "fewer examples than asked for",
    "empty": "no example, so the prefix is empty",
}


@dataclass(frozen=True, kw_only=True)
class PrefixEvaluation:
    """The result of `evaluate_prefixes`: how well does each prefix predict users' held-out choices?

    Attributes:
        prefixes: name of a prefix -> its accuracies, "none" first.
        equity: accuracy, gain and gain over the untuned scorer of each prefix, compared between the groups of
            each attribute of users; p-values corrected together. Empty without `groups`.
        attribution: name of a prefix -> the effects of its sentences.
        choices: the held-out choices.
        scored: name of a prefix -> the margins and flags of each choice.
        questions: the kind of question of each choice, None if it has none; empty without `questions=`.
        groups: attribute -> user -> value.
        skipped: reason -> how many rows of the data are not a choice of a user.
        settings: the arguments that the numbers depend on.
    """

    prefixes: Mapping[str, PrefixAccuracy]
    equity: tuple[Equity, ...]
    attribution: Mapping[str, Attribution]
    choices: tuple[Preference, ...] = field(repr=False)
    scored: Mapping[str, Scored] = field(repr=False)
    questions: tuple[str | None, ...] = field(repr=False)
    groups: Groups = field(repr=False)
    skipped: Mapping[str, int]
    settings: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        scored: Mapping[str, Scored],
        choices: Sequence[Preference],
        *,
        questions: tuple[str | None, ...],
        groups: Groups,
        attribution: Mapping[str, Attribution],
        skipped: Mapping[str, int],
        settings: Mapping[str, Any],
    ) -> PrefixEvaluation:
        """Compute all numbers from the margins. The arguments are the attributes of the same names."""
        confidence, seed = settings["confidence"], settings["draw_seed"]
        return cls(
            prefixes={
                name: _accuracy(one, scored[BARE], choices, questions, confidence)
                for name, one in scored.items()
            },
            equity=_equity(scored, choices, groups, confidence, seed),
            attribution=attribution,
            choices=tuple(choices),
            scored=scored,
            questions=questions,
            groups=groups,
            skipped=skipped,
            settings=settings,
        )

    @property
    def margins(self) -> dict[str, FloatArray]:
        """Name of a prefix -> margins of shape (choices,): above 0 the choice is predicted; NaN: missing."""
        return {name: one.own for name, one in self.scored.items()}

    def without_cuts(self) -> PrefixEvaluation:
        """Return the evaluation without the choices of which a text was cut, with any prefix.

        Nothing is scored again, and `attribution` stays as it is.

        Raises:
            DataError: no choice with a margin is left.
        """
        kept = ~np.any([one.cut for one in self.scored.values()], axis=0)
        if not any(np.isfinite(one.own[kept]).any() for one in self.scored.values()):
            raise DataError(
                "a text of every choice was cut.",
                hint="Use a model with a longer context, or raise max_response_tokens=.",
            )
        places = np.flatnonzero(kept)
        return PrefixEvaluation.of(
            {name: one.take(kept) for name, one in self.scored.items()},
            [self.choices[place] for place in places],
            questions=tuple(self.questions[p] for p in places) if self.questions else (),
            groups=self.groups,
            attribution=self.attribution,
            skipped=self.skipped,
            settings=self.settings,
        )

    def grid(self) -> list[tuple[str, ...]]:
        """Return the accuracies as a grid of text; the first line is its head."""
        kinds = list(dict.fromkeys(k for one in self.prefixes.values() for k in one.questions))
        columns = {
            kind: [one.questions.get(kind) for one in self.prefixes.values()] for kind in kinds
        }
        columns["trained users"] = [one.trained for one in self.prefixes.values()]
        columns["over untuned"] = [one.over_untuned for one in self.prefixes.values()]
        columns = {name: cells for name, cells in columns.items() if any(cells)}
        lines = []
        for row, (name, one) in enumerate(self.prefixes.items()):
            numbers = [one.accuracy, one.gain, one.shuffled, one.own_gain]
            numbers += [cells[row] for cells in columns.values()]
            lines.append((name, *map(_cell, numbers)))
        return [(*_HEAD, *columns), *lines]

    def remarks(self) -> list[str]:
        """Return sentences about differences between groups, and about choices that were left out or cut."""
        said = [
            f"{one.measure} of {one.prefix!r} by {one.attribute}: gap {one.gap:.3f},"
            f" F = {one.f:.2f}, p = {one.p:.4f}, corrected {one.adjusted_p:.4f}."
            for one in self.equity
        ]
        said += left_out_of_groups(self.equity)
        said += [
            f"{count:,} rows left out: {reason.rstrip('.')}."
            for reason, count in self.skipped.items()
        ]
        if untested := int((~self.scored[BARE].known).sum()):
            said.append(f"{untested:,} choices of users that no fold leaves out.")
        for name, one in self.prefixes.items():
            if one.unknown:
                said.append(f"{one.unknown:,} choices of users that {name!r} knows nothing of.")
            for what, why in _REMARKS.items():
                count: Count = getattr(one, what)
                if count.choices:
                    said.append(
                        f"{name!r}: {count.choices:,} choices of {count.users:,} users: {why}."
                    )
        return said

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers and counts as dicts and lists, without the single choices and effects.

        The keys are "prefixes", "equity", "attribution" (the mean effects by place), "skipped" and
        "settings". What cannot be estimated is NaN.
        """
        return {
            "prefixes": {
                name: {
                    key: value._asdict() if isinstance(value, Count) else value
                    for key, value in asdict(one).items()
                }
                for name, one in self.prefixes.items()
            },
            "equity": [asdict(one) for one in self.equity],
            "attribution": {
                name: [asdict(place) for place in one.places]
                for name, one in self.attribution.items()
            },
            "skipped": dict(self.skipped),
            "settings": dict(self.settings),
        }

    def __str__(self) -> str:
        users = len({choice.user for choice in self.choices})
        what = f"PrefixEvaluation: {len(self.choices):,} choices of {users:,} users"
        return result_text([what], self.grid(), self.remarks())


def _cell(found: Estimate | None) -> str:
    if found is None or np.isnan(found.value):
        return ""
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def right_share(margins: FloatArray) -> FloatArray:
    """Turn margins into shares: 1 if the choice is predicted, 0.5 for a tie, 0 if not; NaN stays NaN."""
    return (np.sign(margins) + 1) / 2


def _accuracy(
    of: Scored,
    bare: Scored,
    choices: Sequence[Preference],
    kinds: Sequence[str | None],
    confidence: float,
) -> PrefixAccuracy:
    _, users = read_labels("users", [choice.user for choice in choices])
    margins = (of.own, of.trained, of.shuffled, of.untuned)
    own, trained, shuffled, untuned = (right_share(each) for each in margins)
    without = right_share(bare.own)
    questions, asked = read_labels("questions", [kind or "" for kind in kinds])

    def rate(scores: FloatArray, which: Flags | slice = slice(None)) -> Estimate | None:
        if np.isnan(scores).all():
            return None
        return rate_by_group(scores[which], users[which], confidence=confidence)

    def difference(one: FloatArray, other: FloatArray) -> Estimate | None:
        return None if np.isnan(other).all() else mean_difference(one - other, users, confidence)

    baseline = without if np.isnan(bare.untuned).all() else right_share(bare.untuned)
    counted = (of.failed, of.turns_cut, of.responses_cut, of.unusable, of.short, of.empty)
    counts = [Count(int(one.sum()), len(set(users[one].tolist()))) for one in counted]
    return PrefixAccuracy(
        accuracy=rate_by_group(own, users, confidence=confidence),
        trained=rate(trained),
        gain=mean_difference(own - without, users, confidence, of_itself=of is bare),
        over_untuned=difference(own, untuned),
        shuffled=rate(shuffled),
        own_gain=difference(own, shuffled),
        questions={
            kind: rate_by_group(own[asked == place], users[asked == place], confidence=confidence)
            for place, kind in enumerate(questions)
            if kind
        },
        with_baseline=correlation(*_by_user(users, own, baseline), confidence=confidence),
        unknown=int((bare.known & ~of.known).sum()),
        **dict(zip(_REMARKS, counts, strict=True)),
    )


def mean_difference(
    differences: FloatArray, users: npt.NDArray[Any], confidence: float, *, of_itself: bool = False
) -> Estimate:
    """Estimate the mean of differences, with an interval that resamples users.

    Args:
        differences: shape (choices,), from -1 to 1; NaN is a missing one.
        users: the user of each choice.
        confidence: of the interval, between 0 and 1.
        of_itself: whether this is the gain of a prefix over itself. Its interval keeps the width 0. Otherwise
            `widened` gives an interval a width if all users have the same mean.
    """
    bounds = None if of_itself else (-1.0, 1.0)
    return mean_by_group(differences, users, bounds=bounds, confidence=confidence)


def _by_user(users: npt.NDArray[Any], *scores: FloatArray) -> list[FloatArray]:
    """Return the mean of each user's scores: an array of shape (users,) for each array of shape (choices,).

    Only choices with all scores count; a user without such a choice has NaN.
    """
    known = ~np.isnan(np.stack(scores)).any(axis=0)
    _, place = np.unique(users, return_inverse=True)
    counts = np.bincount(place, known)
    with np.errstate(invalid="ignore"):
        return [np.bincount(place, np.where(known, one, 0.0)) / counts for one in scores]


def _equity(
    scored: Mapping[str, Scored],
    choices: Sequence[Preference],
    groups: Groups,
    confidence: float,
    seed: int,
) -> tuple[Equity, ...]:
    bare = right_share(scored[BARE].own)
    measured: list[tuple[str, Measure, FloatArray]] = []
    for name, of in scored.items():
        right = right_share(of.own)
        measured.append((name, "accuracy", right))
        if name != BARE:
            measured.append((name, "gain", right - bare))
        if not np.isnan(of.untuned).all():
            measured.append((name, "over untuned", right - right_share(of.untuned)))
    users = [choice.user or "" for choice in choices]
    return equities(measured, users, groups, confidence=confidence, seed=seed)
