"""What an evaluation of prefixes found, as records to read: numbers with intervals, and who they come from.

How it came about is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..evaluation.statistics import Estimate
from ..records import Preference
from .attribution import Attribution
from .fairness import Equity

__all__ = ["PrefixAccuracy", "PrefixEvaluation"]

Floats = npt.NDArray[np.float64]

_HEAD = ("prefix", "accuracy", "gain", "of another user", "own - other")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixAccuracy:
    """How well held-out choices are predicted after one prefix; a tie counts half, users are resampled.

    Attributes:
        accuracy: the share of choices that are predicted; with folds, of users that nothing was
            fitted on.
        trained: with folds, the same choices by what was fitted on their users too.
        gain: accuracy less that without a prefix, on the same choices.
        shuffled: accuracy with the prefix of another user; None for a prefix that knows no users.
        own_gain: accuracy with the own prefix less that with another user's.
        questions: accuracy on each kind of question.
        with_baseline: Pearson's r, over users, of the accuracy with that without a prefix.
        unknown: choices of users that the prefix knows nothing of: they are left out.
    """

    accuracy: Estimate
    trained: Estimate | None
    gain: Estimate
    shuffled: Estimate | None
    own_gain: Estimate | None
    questions: Mapping[str, Estimate]
    with_baseline: Estimate
    unknown: int


@dataclass(frozen=True, kw_only=True)
class PrefixEvaluation:
    """How well users' held-out choices are predicted after each prefix.

    Attributes:
        prefixes: by name, "none" first.
        equity: accuracy and gain of each prefix by each attribute of users, corrected together.
        attribution: by name, what the sentences of a prefix do.
        choices: the choices that were to be predicted.
        margins: for each prefix one number a choice, shape (choices,): above 0 it is predicted; NaN where
            the prefix knows nothing of the user.
        questions: the kind of question of each choice; empty where none was asked for.
        skipped: rows of the data that are no choice of a user, by reason.
        settings: the arguments that matter to the numbers.
    """

    prefixes: Mapping[str, PrefixAccuracy]
    equity: tuple[Equity, ...]
    attribution: Mapping[str, Attribution]
    choices: tuple[Preference, ...] = field(repr=False)
    margins: Mapping[str, Floats] = field(repr=False)
    questions: tuple[str | None, ...] = field(repr=False)
    skipped: Mapping[str, int]
    settings: Mapping[str, Any]

    def grid(self) -> list[tuple[str, ...]]:
        """The accuracies as a grid of text; the first line is its head."""
        kinds = list(dict.fromkeys(k for one in self.prefixes.values() for k in one.questions))
        trained = any(one.trained is not None for one in self.prefixes.values())
        head = (*_HEAD, *kinds, *(["trained users"] if trained else []))
        lines = []
        for name, one in self.prefixes.items():
            numbers = [one.accuracy, one.gain, one.shuffled, one.own_gain]
            numbers += [one.questions.get(kind) for kind in kinds]
            numbers += [one.trained] if trained else []
            lines.append((name, *map(_said, numbers)))
        return [head, *lines]

    def remarks(self) -> list[str]:
        """Groups that differ, and what was left out and why, one sentence each."""
        said = [
            f"{one.measure} of {one.prefix!r} by {one.attribute}: gap {one.gap:.3f},"
            f" F = {one.f:.2f}, p = {one.p:.4f}, corrected {one.adjusted_p:.4f}."
            for one in self.equity
        ]
        said += [
            f"{count:,} rows left out: {reason.rstrip('.')}."
            for reason, count in self.skipped.items()
        ]
        # What has no margin without a prefix, which needs to know nothing, was not tested at all.
        if untested := int(np.isnan(next(iter(self.margins.values()))).sum()):
            said.append(f"{untested:,} choices of users that no fold leaves out.")
        said += [
            f"{one.unknown:,} choices of users that {name!r} knows nothing of."
            for name, one in self.prefixes.items()
            if one.unknown
        ]
        return said

    def to_dict(self) -> dict[str, Any]:
        """All numbers and counts as plain values; not the single choices and effects."""
        return {
            "prefixes": {name: asdict(one) for name, one in self.prefixes.items()},
            "equity": [asdict(one) for one in self.equity],
            "attribution": {
                name: [asdict(place) for place in one.places]
                for name, one in self.attribution.items()
            },
            "skipped": dict(self.skipped),
            "settings": dict(self.settings),
        }

    def __str__(self) -> str:
        grid = self.grid()
        widths = [max(len(line[i]) for line in grid) for i in range(len(grid[0]))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in grid
        ]
        users = len({choice.user for choice in self.choices})
        what = f"PrefixEvaluation: {len(self.choices):,} choices of {users:,} users"
        return "\n".join([what, *lines, *self.remarks()])


def _said(found: Estimate | None) -> str:
    if found is None or np.isnan(found.value):
        return ""
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
