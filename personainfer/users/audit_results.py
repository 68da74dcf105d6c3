"""The numbers of an audit with intervals, and the verdict that follows from them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from statistics import NormalDist
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ..arguments import PositiveNumber, check_argument, read_numbers
from ..evaluation.grouped import (
    group_sums,
    length_controlled_difference,
    length_controlled_rate,
    mean_by_group,
    rate_by_group,
)
from ..evaluation.results import text_table
from ..evaluation.statistics import NOTHING, Estimate, bootstrap
from ..records import FloatArray, Preference
from ..scoring.choice_models import length_only
from .groups import Equity, equities
from .results import mean_difference, right_share
from .similar_users import find_questions

Flags = npt.NDArray[np.bool_]
Users = npt.NDArray[Any]

FEW_SHOT: Final = "few-shot"  # the baseline that the scorer reads
_GUESS = 0.5  # the accuracy of a guess
_MEASURES = {"own - shuffled": "own - another user's"}  # as the table names them
_POWER = 0.8  # the chance to find the smallest effect that matters
_LENGTH_RESAMPLES = 500  # of the accuracies at equal length, each of which is a regression
_CLEARLY = 0.1  # the share of its length by which a response is clearly longer than the other
_NEVER = 60  # of so many choices none: rarer than 1 in 20 (rule of three)


class Margins(NamedTuple):
    """What was predicted for each held-out choice; arrays of shape (choices,), NaN where there is none.

    Attributes:
        choices: the held-out choices of users with a persona.
        own, shuffled: by k, with the user's persona and with another user's.
        none: without a persona.
        few_shot: with examples in place of the persona; None where there is no history.
        baselines: by name, of the models that read no persona.
        tokens: by condition, the tokens that the scorer reads, estimated.
        unusable: choices for which the judge's reply with the own persona could not be used.
        cut: choices of which a text was cut, with the own persona.
        neither: the share of a judge's answers with the own persona that picked neither response, which
            counts as wrong; NaN where no judge was asked.
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
    """Accuracy with the own persona, with another user's, and the difference on the same choices."""

    own: Estimate
    shuffled: Estimate
    own_minus_shuffled: Estimate


@dataclass(frozen=True, kw_only=True)
class PersonaAudit:
    """Whether personas know their users. A tie counts half; intervals resample users, which `n` counts.

    Attributes:
        verdict: one of "knows its user", "knows people in general", "no better than length", "no better
            than none", and "cannot tell: too few choices, about N more are needed". docs/audit.md has
            the rule.
        own: accuracy on held-out choices with the user's persona.
        shuffled: with the persona of another user.
        none: without a persona.
        baselines: accuracy by the name of the baseline.
        own_minus_shuffled: on the same choices, as all differences.
        own_minus_none: what any persona gains, and the own one with it.
        own_minus_best_baseline: against the best of them, which is chosen anew in each resample. NaN
            without baselines.
        own_minus_length: against a rule that only knows which response is longer (by a tenth), and whether
            this persona leads to the longer or the shorter one on the user's other choices.
        unseen: of users whose choices nothing was fitted on.
        by_group: own accuracy, and own - shuffled, by attribute of users, corrected together.
        curve: the accuracies by k, from how many choices the persona was made.
        tokens: the tokens that the scorer reads a decision, by condition, at four bytes a token.
        choices: the held-out choices that were predicted.
        margins: what was predicted for each.
        left_out: baselines that could not be fitted, and why.
        unknown: held-out choices of users without a persona, which are left out.
        failed: choices without a margin with the own persona: too long, or no number. Left out.
        skipped: rows of the data that are no choice of a user, by reason.
        settings: the arguments that matter to the numbers.
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
        """All numbers of these margins, and the verdict."""
        confidence, seed = settings["confidence"], settings["draw_seed"]
        choices, most = margins.choices, max(margins.own)
        users, lengths = _users(choices), _longer_by(choices)
        own, shuffled = right_share(margins.own[most]), right_share(margins.shuffled[most])
        none = right_share(margins.none)
        longest = np.array([max(len(c.chosen.strip()), len(c.rejected.strip())) for c in choices])
        clear = np.where(np.abs(lengths) > _CLEARLY * longest, lengths, 0)
        twin = right_share(length_only(margins.own[most], clear, users))
        predicted = dict(margins.baselines)
        if margins.few_shot is not None:
            predicted[FEW_SHOT] = margins.few_shot
        baselines = {name: right_share(predicted[name]) for name in names if name in predicted}
        unseen = np.array([str(user) not in fitted_users for user in users], dtype=bool)

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
            none=rate_by_group(none, users, confidence=confidence),
            baselines={
                name: rate_by_group(one, users, confidence=confidence)
                for name, one in baselines.items()
            },
            own_minus_shuffled=whole.own_minus_shuffled,
            own_minus_none=gain,
            own_minus_best_baseline=_against_best(own, list(baselines.values()), users, confidence),
            own_minus_length=over_length,
            unseen=accuracies(own, shuffled, unseen),
            by_group=equities(
                [("persona", "accuracy", own), ("persona", "own - shuffled", own - shuffled)],
                [str(user) for user in users],
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

    # Computed when they are asked for: they cost more than all other numbers together.

    @cached_property
    def equal_length(self) -> Accuracies:
        """What the accuracies would be if both responses were equally long (arXiv 2404.04475)."""
        own, shuffled = self._margins
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
        """The accuracies on questions on which users choose differently."""
        which = np.array(find_questions(self.choices)) == "clashing"
        own, shuffled = (right_share(one)[which] for one in self._margins)
        return _accuracies(own, shuffled, _users(self.choices)[which], self.settings["confidence"])

    @property
    def _margins(self) -> tuple[FloatArray, FloatArray]:
        """With the own and with another user's persona, of the personas made from the most choices."""
        most = max(self.margins.own)
        return self.margins.own[most], self.margins.shuffled[most]

    @property
    def best_baseline(self) -> str | None:
        """The name of the baseline of the highest accuracy."""
        return max(self.baselines, key=lambda name: self.baselines[name].value, default=None)

    def grid(self) -> list[tuple[str, ...]]:
        """The accuracies as a grid of text; the first line is its head."""
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
        """What a reader of the numbers should know, one sentence each."""
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
        """All numbers and counts as plain values; not the single choices."""
        names = [name for name in self.__dataclass_fields__ if name not in ("choices", "margins")]
        found = {name: getattr(self, name) for name in (*names, "equal_length", "clashing")}
        found["neither"] = self.margins.neither
        return {name: _plain(value) for name, value in found.items()}

    def __str__(self) -> str:
        what = (
            f"PersonaAudit: {len(self.choices):,} choices of {self.own.n:,} users: {self.verdict}"
        )
        return "\n".join([what, *text_table(self.grid()), *self.remarks()])


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return asdict(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


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
    """The verdict on a persona, from differences of accuracy on the same choices.

    Args:
        over_shuffled, over_none, over_length: own accuracy less that with another user's persona, with
            none, and by length alone.
        own: the accuracy with the own persona. A persona that is not shown to predict more than half of
            the choices is not said to know anything, whatever it is better than: without it, or with
            another one, a judge may be worse than a guess.
        smallest: the smallest difference that matters.
        more: how many more choices are needed to find it.
        same_as_shuffled, same_as_none: none of many predictions is another one, so that there is no doubt.
        only_length: the predictions follow the length of the responses, and without a persona they do not.
    """
    cannot_tell = f"cannot tell: too few choices, about {more:,} more are needed"
    # A fifth of what the persona predicts above chance, so that a few ties in length decide nothing.
    beyond_length = over_length.low > 0 and over_length.value >= (own.value - _GUESS) / 5
    above_guess = own.low > _GUESS
    not_above = "no better than none" if own.high < _GUESS + smallest else cannot_tell
    by_length = not beyond_length and over_length.value < smallest
    if (
        own.high < _GUESS + smallest
        and over_shuffled.value < smallest
        and over_none.value < smallest
        and not only_length
    ):  # hardly more than a guess: one of two differences is soon above 0 by chance
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
    # Little of what the persona gains is its user's own: less than what matters, or than half of it.
    general = same_as_shuffled or over_shuffled.high < max(smallest, over_none.value / 2)
    if general and over_none.low > 0:
        if beyond_length:
            return "knows people in general" if above_guess else not_above
        return "no better than length" if by_length else cannot_tell
    return cannot_tell


def choices_needed(differences: npt.ArrayLike, users: npt.ArrayLike, smallest: float) -> int:
    """How many more choices show a mean difference of this size in 8 of 10 audits, at 95 % confidence.

    n' = v (2.8 / smallest)^2, where v / n is the squared standard error of the mean over users with all
    their choices, and 2.8 the sum of the normal quantiles of 0.975 and 0.8; less the n that there are. At
    least a quarter of them: they were not enough. Two digits.

    Args:
        differences, users: shape (choices,); NaN is a missing one.
        smallest: the size, above 0.
    """
    given, of_user = read_numbers("differences", differences), np.asarray(users)
    check_argument("smallest", smallest, PositiveNumber)
    known = ~np.isnan(given)
    n = int(known.sum())
    sums = group_sums(np.stack([given[known], np.ones(n)], axis=1), of_user[known])
    people = len(sums)
    variance = 0.0  # of one choice
    if people > 2:
        rest = sums[:, 0] - sums[:, 1] * sums[:, 0].mean() / sums[:, 1].mean()
        variance = float(rest @ rest) * people / (people - 1) / n
    # Of two predictions that agree on half of the choices, where the data do not say it.
    variance = variance or 0.5
    reach = NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(_POWER)
    more = max(variance * (reach / smallest) ** 2 - n, n / 4)
    digits = 10 ** max(math.floor(math.log10(more)) - 1, 0)
    return int(math.ceil(more / digits) * digits)


def _never_differ(one: FloatArray, other: FloatArray) -> bool:
    """Whether all predictions are the same, and there are many of them."""
    known = ~(np.isnan(one) | np.isnan(other))
    return int(known.sum()) >= _NEVER and bool((one[known] == other[known]).all())


def _mostly_same(one: FloatArray, other: FloatArray) -> bool:
    """Whether nine of ten predictions are the same, of those for which neither is a tie."""
    decided = ~np.isnan(one + other) & (one != 0.5) & (other != 0.5)
    return bool(decided.any() and (one[decided] == other[decided]).mean() >= 0.9)


# Parts of the numbers


def _users(choices: Sequence[Preference]) -> Users:
    return np.array([choice.user for choice in choices])


def _longer_by(choices: Sequence[Preference]) -> npt.NDArray[Any]:
    """By how many characters the chosen response is the longer one, shape (choices,)."""
    return np.array([len(one.chosen.strip()) - len(one.rejected.strip()) for one in choices])


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
    """Own accuracy less that of the best baseline, which is found anew in each resample of users."""
    table = np.stack([own, *baselines], axis=1)
    known = ~np.isnan(table).any(axis=1)
    if not baselines or not known.any():
        return NOTHING
    items = np.concatenate([table[known], np.ones((int(known.sum()), 1))], axis=1)

    def statistic(sums: FloatArray) -> FloatArray:
        found: FloatArray = (sums[:, 0] - sums[:, 1:-1].max(axis=1)) / sums[:, -1]
        return found

    return bootstrap(group_sums(items, users[known]), statistic, confidence=confidence)
