"""Summarise a table of personas for a report or a plot: counts, accuracy by side, scores.

Verdicts are read from the columns that `verify_personas` adds, scores from the candidates of the rows.
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
        complete: how many rows have a persona of every side that was inferred.
        errors: how many rows have an error.
        unexplained: how many rows have a side that no candidate explains.
        flagged: how many rows have a flag.
        flags: flag -> number of personas, the most frequent first.
        accuracy: side ("overall" first, if both were judged) -> the share of orders in which the judge was
            right; empty without verdicts.
        guess: the accuracy of a judge that guesses: half the share of orders in which the judge picked a
            response; 0.5 without verdicts. In a part of a table it is that of the whole.
        judged: how many rows the table had when it was judged; 0: unknown.
        scores: side -> the score of the best candidate in each row with one, shape (rows with a score,). A
            side without scores is left out.
    """

    rows: int
    complete: int
    errors: int
    unexplained: int
    flagged: int
    flags: Mapping[str, int]
    accuracy: Mapping[str, Estimate]
    guess: float
    judged: int
    scores: Mapping[Side, np.ndarray]


def summarise(table: PersonaTable) -> TableSummary:
    """Count and average what `TableSummary` holds, over all rows of a table."""
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
        judged=table.settings.get("verified_rows", 0),
        scores={side: np.array(scores) for side, scores in best.items() if scores},
    )


def guess_text(found: TableSummary) -> str:
    """Return sentences that say the accuracy of a judge that guesses, and whether more rows were judged."""
    neither = 1 - 2 * found.guess
    said = (
        f"A guess is right in {found.guess:.0%} of the orders: in {neither:.0%} the judge picked"
        " neither response, which counts as wrong."
        if neither
        else "A guess is right half of the time."
    )
    if found.rows >= found.judged:
        return said
    return (
        f"{said} The table that it judged had {found.judged:,} rows, of which these are {found.rows:,}; if"
        " they were picked by its verdicts, their accuracy says nothing."
    )


def best_score(row: PersonaRow, side: Side) -> float | None:
    """Return the highest score of a side's candidates; None if no candidate has a finite score."""
    candidates = row.chosen_candidates if side == "chosen" else row.rejected_candidates
    scores = (c.score for c in candidates if c.score is not None and isfinite(c.score))
    return max(scores, default=None)


def score_range(scores: Mapping[Side, np.ndarray]) -> tuple[float, float]:
    """Return the lowest and the highest score of all sides, as the range of a histogram.

    If they are nearly equal, the range is made slightly wider, because bins need a width.

    Args:
        scores: side -> finite scores, as `TableSummary.scores`. There must be at least one score.
    """
    every = np.concatenate(list(scores.values()))
    low, high = float(every.min()), float(every.max())
    least = 1e-6 * max(1.0, abs(low), abs(high))
    return (low, high) if high - low > least else (low - least, high + least)


def verified_score(table: PersonaTable, index: int, side: Side) -> float | None:
    """Return the share of orders in which the judge was right about one persona; None without a verdict."""
    scores = table.added.get(f"{side}_verified_score")
    score = None if scores is None else scores[index]
    # The column may be the user's own, with values that are no shares, such as those of a scale.
    return float(score) if isinstance(score, int | float) and 0 <= score <= 1 else None


def verified(table: PersonaTable, index: int, side: Side) -> bool | None:
    """Whether the judge was right about one persona in both orders; None without a verdict."""
    verdicts = table.added.get(f"{side}_verified")
    if verdicts is not None:
        return None if verdicts[index] is None else bool(verdicts[index])
    score = verified_score(table, index, side)
    return None if score is None else score > 0.5


def _accuracy(table: PersonaTable) -> dict[str, Estimate]:
    """Compute `TableSummary.accuracy`. Intervals resample rows, each with both sides."""
    columns: dict[str, np.ndarray] = {}
    for side in SIDES:
        if f"{side}_verified_score" in table.added:
            scores = (verified_score(table, index, side) for index in range(len(table)))
            columns[side] = np.array([np.nan if s is None else s for s in scores], dtype=float)
    found = {side: bootstrap_rate(scores) for side, scores in columns.items()}
    if len(columns) == len(SIDES):
        return {"overall": bootstrap_rate(np.stack(list(columns.values()), axis=1)), **found}
    return found
