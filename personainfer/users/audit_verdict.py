"""The numbers of an audit with intervals, and the verdict that follows from them."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from statistics import NormalDist
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ..arguments import PositiveNumber, check_argument, read_labels, read_numbers
from ..data.table_display import result_text
from ..evaluation.grouped import (
    group_sums,
    length_controlled_difference,
    length_controlled_rate,
    mean_by_group,
    rate_by_group,
)
from ..evaluation.results import plain
from ..evaluation.statistics import NOTHING, Estimate, bootstrap
from ..records import FloatArray, Preference
from ..scoring.choice_models import length_only
from .groups import Equity, equities, left_out_of_groups
from .predictors import Flags
from .results import mean_difference, right_share
from .similar_users import find_questions

Users = npt.NDArray[np.intp]  # a number for each user, who may have an id of any length

FEW_SHOT: Final = "few-shot"  # the baseline that the scorer predicts
_GUESS = 0.5  # the accuracy of a guess
_MEASURES = {"own - shuffled": "own - another user's"}  # the names in the printed table
_POWER = 0.8  # the chance to find the smallest effect that matters
_LENGTH_RESAMPLES = 500  # few, because each is a regression
_CLEARLY = 0.1  # a response is clearly longer if the lengths differ by more than this share of the longer one
_NEVER = 60  # an event that did not occur in so many choices is rarer than 1 in 20 (rule of three)


class Margins(NamedTuple):
    """The margins of the held-out choices under each condition: arrays of shape (choices,), NaN if missing.

    Above 0 the choice is predicted, below 0 it is not, 0 is a tie. k is the number of choices that a persona
    was made from; it is 0 if the personas were given.

    Attributes:
        choices: the held-out choices of users with a persona.
        own: k -> margins with the user's persona.
        shuffled: k -> margins with another user's persona.
        none: margins without a persona.
        few_shot: margins with examples in place of the persona; None without a history.
        baselines: name -> margins of a model that reads no persona.
        tokens: condition -> estimated tokens that the scorer reads for each choice.
        unusable: how many choices have a reply of the judge that could not be used, with the own persona.
        cut: of how many choices a text was cut, with the own persona.
        neither: the share of a judge's answers with the own persona that picked neither response, which
            counts as wrong; NaN without a judge.
    """

    choices: tuple[Preference, ...]
    own: Mapping[int, FloatArray]
    shuffled: Mapping[int, FloatArray]
    none: FloatArray
    few_shot: FloatArray | None
    baselines: Mapping[str, FloatArray]
    tokens: Mapping[str, FloatArray]
    unusable: int
    cut: int
    neither: float = math.nan


@dataclass(frozen=True, slots=True)
class Accuracies:
    """How often choices are predicted with the user's own persona and with another user's.

    Attributes:
        own: accuracy with the persona of the user who made the choice.
        shuffled: accuracy with the persona of another user.
        own_minus_shuffled: `own` minus `shuffled`, over choices that were predicted with both.
    """

    own: Estimate
    shuffled: Estimate
    own_minus_shuffled: Estimate


@dataclass(frozen=True, kw_only=True)
class PersonaAudit:
    """The result of `audit_personas`: do personas know their users?

    Accuracy is the share of held-out choices that are predicted; a tie counts half. Each accuracy is over the
    choices that have this prediction, and each difference over those that have both. Intervals resample
    users, and `n` counts users. "Own" is the persona of the user who made the choice. If there are personas
    made from several numbers k of choices, only `curve` has all of them; the rest is of the largest k.

    Attributes:
        verdict: one of "knows its user", "knows people in general", "no better than length", "no better than
            none", and "cannot tell: too few choices, about N more are needed". docs/audit.md has the rule.
        own: accuracy with the user's persona.
        shuffled: accuracy with the persona of another user.
        none: accuracy without a persona.
        baselines: name of a baseline -> its accuracy.
        own_minus_shuffled: `own` minus `shuffled`.
        own_minus_none: `own` minus `none`. Any other persona may gain as much.
        own_minus_best_baseline: `own` minus the accuracy of the best baseline, which is found again in each
            resample. NaN without baselines.
        own_minus_length: `own` minus the accuracy of a rule that knows only which response is longer, and
            whether the persona predicted the longer or the shorter one on most of the user's other choices.
            Lengths that differ by at most a tenth of the longer one count as equal, and give a tie.
        unseen: accuracies for the users that are not in the argument `fitted_users`: for all, if it is empty.
        by_group: `own`, and `own_minus_shuffled`, compared between the groups of each attribute in the
            argument `groups`; empty without it. All p-values are corrected together (Holm 1979).
        curve: k -> accuracies with personas made from k choices; empty if the personas were given.
        tokens: condition -> mean tokens that the scorer reads for a choice, at four bytes a token.
        choices: the held-out choices of users with a persona.
        margins: the predictions of `choices` under each condition, NaN where one is missing.
        left_out: name of a baseline that could not be fitted -> the reason.
        unknown: how many held-out choices are of users without a persona. No number counts them.
        failed: how many of `choices` have no margin with the own persona: the text is too long, the scorer
            gave no number, or a judge did not reply. They do not count in `own` and its differences.
        skipped: reason -> how many rows of the data are not a choice of a user.
        settings: the arguments that the numbers depend on.
    """

    verdict: str
    own: Estimate
    shuffled: Estimate
    none: Estimate
    baselines: Mapping[str, Estimate]
    own_minus_shuffled: Estimate
    own_minus_none: Estimate
    own_minus_best_baseline: Estimate
    own_minus_length: Estimate
    unseen: Accuracies
    by_group: tuple[Equity, ...]
    curve: Mapping[int, Accuracies]
    tokens: Mapping[str, Estimate]
    choices: tuple[Preference, ...] = field(repr=False)
    margins: Margins = field(repr=False)
    left_out: Mapping[str, str]
    unknown: int
    failed: int
    skipped: Mapping[str, int]
    settings: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        margins: Margins,
        *,
        names: Sequence[str],
        left_out: Mapping[str, str],
        groups: Mapping[str, Mapping[str, str]],
        fitted_users: Collection[str],
        unknown: int,
        skipped: Mapping[str, int],
        settings: Mapping[str, Any],
    ) -> PersonaAudit:
        """Compute all numbers and the verdict from the margins.

        Args:
            margins: the predictions.
            names: the baselines in the order in which they are shown.
            left_out, unknown, skipped: as the attributes.
            groups: attribute -> user -> value.
            fitted_users: users whose choices something was fitted on.
            settings: with `smallest_effect`, `confidence` and `draw_seed`.
        """
        confidence, seed = settings["confidence"], settings["draw_seed"]
        choices, most = margins.choices, max(margins.own)
        users = _users(choices)
        own, shuffled = right_share(margins.own[most]), right_share(margins.shuffled[most])
        none = right_share(margins.none)
        twin = right_share(length_only(margins.own[most], _clearly_longer_by(choices), users))
        predicted = dict(margins.baselines)
        if margins.few_shot is not None:
            predicted[FEW_SHOT] = margins.few_shot
        baselines = {name: right_share(predicted[name]) for name in names if name in predicted}
        unseen = np.array([choice.user not in fitted_users for choice in choices], dtype=bool)

        rate = partial(rate_by_group, groups=users, confidence=confidence)

        def accuracies(one: FloatArray, other: FloatArray, which: Flags | slice) -> Accuracies:
            return _accuracies(one[which], other[which], users[which], confidence)

        whole = accuracies(own, shuffled, slice(None))
        gain = mean_difference(own - none, users, confidence)
        over_length = mean_difference(own - twin, users, confidence)
        smallest = settings["smallest_effect"]
        verdict = verdict_of(
            whole.own_minus_shuffled,
            gain,
            over_length,
            own=whole.own,
            smallest=smallest,
            more=choices_needed(own - shuffled, users, smallest),
            same_as_shuffled=_never_differ(own, shuffled),
            same_as_none=_never_differ(own, none),
            only_length=_mostly_same(own, twin) and not _mostly_same(own, none),
        )
        return cls(
            verdict=verdict,
            own=whole.own,
            shuffled=whole.shuffled,
            none=rate(none),
            baselines={name: rate(one) for name, one in baselines.items()},
            own_minus_shuffled=whole.own_minus_shuffled,
            own_minus_none=gain,
            own_minus_best_baseline=_against_best(own, list(baselines.values()), users, confidence),
            own_minus_length=over_length,
            unseen=accuracies(own, shuffled, unseen),
            by_group=equities(
                [("persona", "accuracy", own), ("persona", "own - shuffled", own - shuffled)],
                [str(choice.user) for choice in choices],
                groups,
                confidence=confidence,
                seed=seed,
            ),
            curve={
                k: accuracies(right_share(one), right_share(margins.shuffled[k]), slice(None))
                for k, one in margins.own.items()
                if k
            },
            tokens={
                name: mean_by_group(read, users, confidence=confidence)
                for name, read in margins.tokens.items()
            },
            choices=choices,
            margins=margins,
            left_out=left_out,
            unknown=unknown,
            failed=int(np.isnan(own).sum()),
            skipped=skipped,
            settings={**settings, "fitted_users": sorted(fitted_users)},
        )

    # Computed when they are first read, because they take longer than all other numbers together.

    @cached_property
    def equal_length(self) -> Accuracies:
        """Estimates of the accuracies if both responses were equally long (arXiv 2404.04475).

        Ties are left out.
        """
        own, shuffled = map(np.sign, self._margins)  # a margin may be infinite
        lengths, users = _longer_by(self.choices), _users(self.choices)
        options: dict[str, Any] = {
            "confidence": self.settings["confidence"],
            "resamples": _LENGTH_RESAMPLES,
        }
        return Accuracies(
            length_controlled_rate(own, lengths, users, **options),
            length_controlled_rate(shuffled, lengths, users, **options),
            length_controlled_difference(own, shuffled, lengths, users, **options),
        )

    @cached_property
    def clashing(self) -> Accuracies:
        """Accuracies on prompts on which users choose differently: see `find_questions`."""
        which = np.array(find_questions(self.choices)) == "clashing"
        own, shuffled = (right_share(one)[which] for one in self._margins)
        return _accuracies(own, shuffled, _users(self.choices)[which], self.settings["confidence"])

    @property
    def _margins(self) -> tuple[FloatArray, FloatArray]:
        """The margins with the own and with another user's persona, for the largest k."""
        most = max(self.margins.own)
        return self.margins.own[most], self.margins.shuffled[most]

    @property
    def best_baseline(self) -> str | None:
        """The name of the baseline with the highest accuracy; None if no baseline predicts a choice."""
        known = {name: one.value for name, one in self.baselines.items() if one.n}
        return max(known, key=lambda name: known[name], default=None)

    def grid(self) -> list[tuple[str, ...]]:
        """Return the accuracies as a grid of text; the first line is its head.

        The first call computes `equal_length` and `clashing`, which takes longer than all other numbers
        together.
        """
        lines = [
            ("own persona", self.own, None),
            ("another user's", self.shuffled, self.own_minus_shuffled),
            ("none", self.none, self.own_minus_none),
            *((name, one, None) for name, one in self.baselines.items()),
            ("best baseline", None, self.own_minus_best_baseline),
            ("length of the response", None, self.own_minus_length),
        ]
        parts = [
            ("at equal length", self.equal_length),
            ("clashing questions", self.clashing),
            ("unseen users", self.unseen),
            *((f"k = {k}", one) for k, one in self.curve.items()),
        ]
        lines += [(f"own, {name}", one.own, None) for name, one in parts]
        differences = {f"own, {name}": one.own_minus_shuffled for name, one in parts}
        return [
            ("", "accuracy", "own less this", "own - another user's"),
            *(
                (name, _cell(value), _cell(less), _cell(differences.get(name)))
                for name, value, less in lines
            ),
        ]

    def remarks(self) -> list[str]:
        """Return sentences about what limits the numbers, such as choices that were left out."""
        said = []
        best = self.best_baseline
        if best is not None and self.own_minus_best_baseline.low <= 0:
            said.append(
                f"The persona is not shown to predict better than {best!r}, which needs no persona."
            )
        said += [
            f"{_MEASURES.get(one.measure, one.measure)} by {one.attribute}: gap {one.gap:.3f},"
            f" corrected p = {one.adjusted_p:.4f}."
            for one in self.by_group
        ]
        said += left_out_of_groups(self.by_group)
        read = ", ".join(f"{name} {one.value:.0f}" for name, one in self.tokens.items())
        if self.margins.neither > 0:  # not where it is NaN
            said.append(
                f"With the own persona the judge answered “neither” in {self.margins.neither:.0%} of its"
                " answers, which counts as wrong."
            )
        said.append(f"Tokens a decision, about: {read}.")
        said += [f"{name!r} is left out: {why}" for name, why in self.left_out.items()]
        users = {str(choice.user) for choice in self.choices}
        if (fitted := self.settings.get("fitted_users")) and users.isdisjoint(fitted):
            said.append(
                f"None of the {len(fitted):,} users of fitted_users= is among these users, so all are unseen."
            )
        counts = {
            "held-out choices of users without a persona, left out": self.unknown,
            "choices without a margin (too long, no number, or no reply), left out": self.failed,
            "choices of which a text was cut": self.margins.cut,
            "replies of the judge that could not be used, counted as wrong": self.margins.unusable,
        }
        said += [f"{count:,} {what}." for what, count in counts.items() if count]
        said += [f"{n:,} rows left out: {why.rstrip('.')}." for why, n in self.skipped.items()]
        return said

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers and counts as dicts and lists, by the names of the attributes.

        `choices` and `margins` are left out, except for `margins.neither`, as "neither". `equal_length` and
        `clashing` are added; the first call computes them, which takes a while. What cannot be estimated is
        NaN.
        """
        names = [name for name in self.__dataclass_fields__ if name not in ("choices", "margins")]
        found = {name: getattr(self, name) for name in (*names, "equal_length", "clashing")}
        found["neither"] = self.margins.neither
        return {name: plain(value) for name, value in found.items()}

    def __str__(self) -> str:
        users = len({choice.user for choice in self.choices})
        what = f"PersonaAudit: {len(self.choices):,} choices of {users:,} users: {self.verdict}"
        return result_text([what], self.grid(), self.remarks())


def _cell(found: Estimate | None) -> str:
    if found is None:
        return ""
    if math.isnan(found.value):  # such as at equal length where one rule decides every choice
        return "-"
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


# The verdict


def verdict_of(
    over_shuffled: Estimate,
    over_none: Estimate,
    over_length: Estimate,
    *,
    own: Estimate,
    smallest: float,
    more: int,
    same_as_shuffled: bool = False,
    same_as_none: bool = False,
    only_length: bool = False,
) -> str:
    """Return the verdict on personas, from differences of accuracy on the same choices.

    Args:
        over_shuffled, over_none, over_length: own accuracy minus the accuracy with another user's persona,
            without a persona, and by length alone.
        own: the accuracy with the own persona. Its interval must be above 0.5 for a verdict "knows …",
            because without the persona, or with another one, a judge may be worse than a guess.
        smallest: the smallest difference that matters.
        more: how many more choices are needed to find a difference of this size.
        same_as_shuffled, same_as_none: whether all of many predictions equal those with another user's
            persona, or without one, so that a difference is ruled out.
        only_length: whether the predictions follow the length of the responses, and do not without a persona.
    """
    cannot_tell = f"cannot tell: too few choices, about {more:,} more are needed"
    # At least a fifth of the accuracy above chance, so that a few ties in length do not decide.
    beyond_length = over_length.low > 0 and over_length.value >= (own.value - _GUESS) / 5
    above_guess = own.low > _GUESS
    not_above = "no better than none" if own.high < _GUESS + smallest else cannot_tell
    by_length = not beyond_length and over_length.value < smallest
    # Hardly better than a guess, so an interval above 0 may be chance.
    if (
        own.high < _GUESS + smallest
        and over_shuffled.value < smallest
        and over_none.value < smallest
        and not only_length
    ):
        return "no better than none"
    if over_shuffled.low > 0:
        if over_none.high < 0:
            return "no better than none"
        if beyond_length:
            return "knows its user" if above_guess else not_above
        return "no better than length" if by_length else cannot_tell
    if same_as_none:
        return "no better than none"
    if (same_as_shuffled or over_shuffled.high < smallest) and over_none.high < smallest:
        return "no better than length" if only_length else "no better than none"
    # The gain over another user's persona is small: below what matters, or below half of the whole gain.
    general = same_as_shuffled or over_shuffled.high < max(smallest, over_none.value / 2)
    if general and over_none.low > 0:
        if beyond_length:
            return "knows people in general" if above_guess else not_above
        return "no better than length" if by_length else cannot_tell
    return cannot_tell


def choices_needed(differences: npt.ArrayLike, users: Iterable[Hashable], smallest: float) -> int:
    """Estimate how many more choices show a mean difference in 8 of 10 audits, at 95 % confidence.

    more = v (2.8 / smallest)^2 - n, where n is the number of choices, v / n the squared standard error of the
    mean difference with users as clusters, and 2.8 the sum of the normal quantiles of 0.975 and 0.8. If the
    differences give no v (two users or fewer, or all alike), v = 0.5: that of two predictions that agree on
    half of the choices.

    Args:
        differences: shape (choices,); NaN is a missing one.
        users: the user of each difference, length (choices,).
        smallest: the size of the mean difference, above 0.

    Returns:
        `more`, rounded up to two digits; at least n / 4, because the n choices were not enough.
    """
    given, (_, of_user) = read_numbers("differences", differences), read_labels("users", users)
    smallest = check_argument("smallest", smallest, PositiveNumber)
    known = ~np.isnan(given)
    n = int(known.sum())
    sums = group_sums(np.stack([given[known], np.ones(n)], axis=1), of_user[known])
    people = len(sums)
    variance = 0.0  # of one choice
    if people > 2:
        rest = sums[:, 0] - sums[:, 1] * sums[:, 0].mean() / sums[:, 1].mean()
        variance = float(rest @ rest) * people / (people - 1) / n
    variance = variance or 0.5
    reach = NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(_POWER)
    more = max(variance * (reach / smallest) ** 2 - n, n / 4)
    digits = 10 ** max(math.floor(math.log10(more)) - 1, 0)
    return int(math.ceil(more / digits) * digits)


def _never_differ(one: FloatArray, other: FloatArray) -> bool:
    """Whether at least 60 predictions are known in both arrays, and all of these are equal.

    Args:
        one, other: shape (choices,): 1 for a predicted choice, 0.5 for a tie, 0 for another; NaN: missing.
    """
    known = ~(np.isnan(one) | np.isnan(other))
    return int(known.sum()) >= _NEVER and bool((one[known] == other[known]).all())


def _mostly_same(one: FloatArray, other: FloatArray) -> bool:
    """Whether 90 % or more of the predictions are equal, of those that both arrays have and neither as a tie.

    Args:
        one, other: as for `_never_differ`.
    """
    decided = ~np.isnan(one + other) & (one != 0.5) & (other != 0.5)
    return bool(decided.any() and (one[decided] == other[decided]).mean() >= 0.9)


# Parts of the numbers


def _users(choices: Sequence[Preference]) -> Users:
    return read_labels("users", [choice.user for choice in choices])[1]


def _longer_by(choices: Sequence[Preference]) -> npt.NDArray[Any]:
    """Return the characters of the chosen response minus those of the rejected one, shape (choices,)."""
    return np.array([len(one.chosen.strip()) - len(one.rejected.strip()) for one in choices])


def _clearly_longer_by(choices: Sequence[Preference]) -> npt.NDArray[Any]:
    """Return the same as `_longer_by`, but 0 if no response is clearly longer (`_CLEARLY`)."""
    lengths = _longer_by(choices)
    longest = np.array([max(len(c.chosen.strip()), len(c.rejected.strip())) for c in choices])
    return np.where(np.abs(lengths) > _CLEARLY * longest, lengths, 0)


def _accuracies(
    own: FloatArray, shuffled: FloatArray, users: Users, confidence: float
) -> Accuracies:
    return Accuracies(
        rate_by_group(own, users, confidence=confidence),
        rate_by_group(shuffled, users, confidence=confidence),
        mean_difference(own - shuffled, users, confidence),
    )


def _against_best(
    own: FloatArray, baselines: Sequence[FloatArray], users: Users, confidence: float
) -> Estimate:
    """Estimate own accuracy minus that of the best baseline, which is found again in each resample of users.

    Only choices with all predictions count; NaN if there are none, or no baseline. A baseline that predicts
    no choice is left out.

    Args:
        own: 1 for a predicted choice, 0.5 for a tie, 0 for another one, shape (choices,); NaN: missing.
        baselines: the same of each baseline.
        users: the user of each choice.
        confidence: of the interval.
    """
    baselines = [one for one in baselines if not np.isnan(one).all()]
    table = np.stack([own, *baselines], axis=1)
    known = ~np.isnan(table).any(axis=1)
    if not baselines or not known.any():
        return NOTHING
    items = np.concatenate([table[known], np.ones((int(known.sum()), 1))], axis=1)

    def statistic(sums: FloatArray) -> FloatArray:
        found: FloatArray = (sums[:, 0] - sums[:, 1:-1].max(axis=1)) / sums[:, -1]
        return found

    return bootstrap(group_sums(items, users[known]), statistic, confidence=confidence)
