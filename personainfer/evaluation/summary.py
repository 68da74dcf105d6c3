"""Summarise a table of personas for a report or a plot: counts, accuracy by side, scores.

Verdicts come from the columns that `verify_personas` adds, scores from the candidates of the rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

import numpy as np

from ..data.table import PersonaTable
from ..records import PersonaRow, Side
from .statistics import Estimate, bootstrap_rate

SIDES: tuple[Side, ...] = ("chosen", "rejected")


@dataclass(frozen=True)
class TableSummary:
    """Counts and averages of a table.

    Attributes:
        rows: how many rows there are.
        complete: rows with a persona of every side that was asked for.
        errors: rows with an error.
        unexplained: rows with a side that no candidate explains.
        flagged: rows with a flag; `flags`: for each flag the number of personas.
        accuracy: for each side the share of orders in which the judge was right; empty without verdicts.
        guess: the accuracy of a judge that guesses; below 0.5 if the judge may answer "neither".
        scores: for each side the score of each row's best candidate, shape (k,); empty without candidates.
    """

    rows: int
    complete: int
    errors: int
    unexplained: int
    flagged: int
    flags: Mapping[str, int]
    accuracy: Mapping[str, Estimate]
    guess: float
    scores: Mapping[Side, np.ndarray]


def summarise(table: PersonaTable) -> TableSummary:
    """Count and average what the table holds."""
    sides: list[Side] = [side for side in SIDES if side in table.settings.get("sides", SIDES)]
    flags: Counter[str] = Counter()
    complete = errors = unexplained = flagged = 0
    best: dict[Side, list[float]] = {side: [] for side in SIDES}
    for row in table:
        complete += all(getattr(row, side) is not None for side in sides)
        errors += row.error is not None
        unexplained += bool(row.unexplained)
        flagged += bool(row.flags)
        for side in SIDES:
            persona = getattr(row, side)
            flags.update(persona.flags if persona is not None else ())
            score = best_score(row, side)
            if score is not None:
                best[side].append(score)
    return TableSummary(
        rows=len(table),
        complete=complete,
        errors=errors,
        unexplained=unexplained,
        flagged=flagged,
        flags=dict(flags.most_common()),
        accuracy=_accuracy(table),
        guess=(1 - table.settings.get("verified_neither", 0.0)) / 2,
        scores={side: np.array(scores) for side, scores in best.items() if scores},
    )


def guess_text(guess: float) -> str:
    """The accuracy of a guess, for comparison with a judge's."""
    if guess == 0.5:
        return "A guess is right half of the time."
    return (
        f"A guess is right in {guess:.0%} of the orders: in {1 - 2 * guess:.0%} the judge answered"
        " “neither”, which counts as wrong."
    )


def best_score(row: PersonaRow, side: Side) -> float | None:
    """The score of the candidate that explains the choice best; None where no score is a number."""
    candidates = row.chosen_candidates if side == "chosen" else row.rejected_candidates
    scores = (c.score for c in candidates if c.score is not None and isfinite(c.score))
    return max(scores, default=None)


def score_range(scores: Mapping[Side, np.ndarray]) -> tuple[float, float]:
    """From the least score to the greatest, or a little further: far enough to divide into bins."""
    every = np.concatenate(list(scores.values()))
    low, high = float(every.min()), float(every.max())
    least = 1e-6 * max(1.0, abs(low), abs(high))
    return (low, high) if high - low > least else (low - least, high + least)


def verified_score(table: PersonaTable, index: int, side: Side) -> float | None:
    """The share of orders in which the judge was right of one persona; None without a verdict."""
    scores = table.added.get(f"{side}_verified_score")
    score = None if scores is None else scores[index]
    return (
        float(score) if isinstance(score, int | float) else None
    )  # a column may be the user's own


def verified(table: PersonaTable, index: int, side: Side) -> bool | None:
    """Whether the judge was right of one persona, in both orders; None without a verdict."""
    verdicts = table.added.get(f"{side}_verified")
    if verdicts is not None:
        return None if verdicts[index] is None else bool(verdicts[index])
    score = verified_score(table, index, side)
    return None if score is None else score > 0.5


def _accuracy(table: PersonaTable) -> dict[str, Estimate]:
    """By side and for both; the items are rows, so that the two sides of a row stay together."""
    columns: dict[str, np.ndarray] = {}
    for side in SIDES:
        if f"{side}_verified_score" in table.added:
            scores = (verified_score(table, index, side) for index in range(len(table)))
            columns[side] = np.array([np.nan if s is None else s for s in scores], dtype=float)
    found = {side: bootstrap_rate(scores) for side, scores in columns.items()}
    if len(columns) == len(SIDES):
        return {"overall": bootstrap_rate(np.stack(list(columns.values()), axis=1)), **found}
    return found
