"""The numbers of an evaluation of prefixes, with intervals, as records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ..evaluation.grouped import mean_by_group, rate_by_group
from ..evaluation.results import text_table
from ..evaluation.statistics import Estimate
from ..exceptions import DataError
from ..records import FloatArray, Preference
from .attribution import Attribution
from .groups import Equity, Measure, correlation, equities

Flags = npt.NDArray[np.bool_]
Groups = Mapping[str, Mapping[str, str]]

BARE: Final = "none"  # the name of the empty prefix
_HEAD = ("prefix", "accuracy", "gain", "of another user", "own - other")


class Count(NamedTuple):
    """How many choices, and of how many users."""

    choices: int
    users: int


@dataclass(frozen=True, slots=True)
class Scored:
    """The margins of one prefix and what happened to the texts; all arrays have the shape (choices,).

    Attributes:
        own, trained, shuffled, untuned: margins with the user's prefix, with what was trained on the
            user, with another user's prefix, and by the untuned scorer; NaN where there is none.
        known: the prefix has something for this user.
        turns_cut, responses_cut, failed, unusable: as for `Predictions`, with the user's prefix.
        short, empty: fewer than k examples, none.
        cut: a text was cut, with any of these prefixes.
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
        """No margins yet, and no flags."""
        margins = [np.full(choices, np.nan) for _ in range(4)]
        return cls(*margins, *(np.zeros(choices, dtype=bool) for _ in range(8)))

    def take(self, which: Flags) -> Scored:
        """Some of the choices."""
        return Scored(*(getattr(self, one.name)[which] for one in fields(self)))


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixAccuracy:
    """How well one prefix predicts held-out choices. A tie counts half; intervals resample users.

    Attributes:
        accuracy: the share of choices that are predicted; with folds, of users that nothing was
            fitted on.
        trained: with folds, the same choices by what was fitted on their users too.
        gain: accuracy less that without a prefix, on the same choices.
        over_untuned: accuracy less that of the untuned scorer with the same prefix; None without one.
        shuffled: accuracy with the prefix of another user; None for a prefix without users.
        own_gain: accuracy with the own prefix less that with another user's.
        questions: accuracy on each kind of question.
        with_baseline: Pearson's r, over users, of the accuracy with that without a prefix (of the
            untuned scorer, where there is one).
        unknown: choices of users that the prefix has nothing for. They are left out.
        failed: choices without a margin: longer than the model's context, or no number. Left out.
        turns_cut: choices whose conversation lost its oldest turns.
        responses_cut: choices of whose responses the end was not scored.
        unusable: choices for which the judge's reply could not be used. They count as wrong.
        short: choices with fewer examples than asked for, but some.
        empty: choices without any example: the prefix is empty.
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
    "failed": "no margin: too long for the model, or no number; left out",
    "turns_cut": "the oldest turns were cut",
    "responses_cut": "the end of a response was not scored",
    "unusable": "the judge's reply could not be used; counted as wrong",
    "short": "fewer examples than asked for",
    "empty": "no example, so the prefix is empty",
}


@dataclass(frozen=True, kw_only=True)
class PrefixEvaluation:
    """How well each prefix predicts users' held-out choices.

    Attributes:
        prefixes: by name, "none" first.
        equity: accuracy and gain of each prefix by each attribute of users, corrected together.
        attribution: by name, what the sentences of a prefix do.
        choices: the choices that were to be predicted.
        scored: by name, the margins and what was cut, one item a choice.
        questions: the kind of question of each choice; empty where none was asked for.
        groups: attribute -> user -> value.
        skipped: rows of the data that are not a user's choice, by reason.
        settings: the arguments that matter to the numbers.
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
        """All numbers of these margins."""
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
        """For each prefix one number a choice: above 0 it is predicted; NaN where there is none."""
        return {name: one.own for name, one in self.scored.items()}

    def without_cuts(self) -> PrefixEvaluation:
        """The same evaluation without the choices whose texts were cut, with any prefix.

        Raises:
            DataError: a text of every choice that has a margin was cut.
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
        """The accuracies as a grid of text; the first line is its head."""
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
        """Groups that differ, and what was left out or cut and why, one sentence each."""
        said = [
            f"{one.measure} of {one.prefix!r} by {one.attribute}: gap {one.gap:.3f},"
            f" F = {one.f:.2f}, p = {one.p:.4f}, corrected {one.adjusted_p:.4f}."
            for one in self.equity
        ]
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
        """All numbers and counts as plain values; not the single choices and effects."""
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
        return "\n".join([what, *text_table(self.grid()), *self.remarks()])


def _cell(found: Estimate | None) -> str:
    if found is None or np.isnan(found.value):
        return ""
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def right_share(margins: FloatArray) -> FloatArray:
    """1 where the choice is predicted, 0.5 for a tie, NaN where there is no margin."""
    return (np.sign(margins) + 1) / 2


def _accuracy(
    of: Scored,
    bare: Scored,
    choices: Sequence[Preference],
    kinds: Sequence[str | None],
    confidence: float,
) -> PrefixAccuracy:
    users = np.array([choice.user for choice in choices])
    margins = (of.own, of.trained, of.shuffled, of.untuned)
    own, trained, shuffled, untuned = (right_share(each) for each in margins)
    without = right_share(bare.own)
    asked = np.array([kind or "" for kind in kinds])

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
            kind: rate_by_group(own[asked == kind], users[asked == kind], confidence=confidence)
            for kind in sorted({kind for kind in kinds if kind})
        },
        with_baseline=correlation(*_by_user(users, own, baseline), confidence=confidence),
        unknown=int((bare.known & ~of.known).sum()),
        **dict(zip(_REMARKS, counts, strict=True)),
    )


def mean_difference(
    differences: FloatArray, users: npt.NDArray[Any], confidence: float, *, of_itself: bool = False
) -> Estimate:
    """The mean of differences between -1 and 1, resampling users.

    Where it is the same for all users, the interval has a width all the same (`widened`); but not for the
    gain of a prefix over itself.
    """
    bounds = None if of_itself else (-1.0, 1.0)
    return mean_by_group(differences, users, bounds=bounds, confidence=confidence)


def _by_user(users: npt.NDArray[Any], *scores: FloatArray) -> list[FloatArray]:
    """The mean of each user's scores over choices that have all of them; NaN for a user without."""
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
