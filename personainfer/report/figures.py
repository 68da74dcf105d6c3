"""The figures at the top of a report: counts, accuracy, scores, and the words that mark a side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..data.table import PersonaTable
from ..evaluation.salience import FLOOR, SalientWord, salient_words
from ..evaluation.summary import SIDES, TableSummary, score_range
from ..exceptions import DataError
from .persona_groups import PersonaGroup

SIDE_LABELS = {
    "overall": "both sides",
    "chosen": "prefers the chosen response",
    "rejected": "prefers the rejected response",
}
_WORDS = 12  # a side
_BINS = 24

Json = dict[str, Any]


def tiles(table: PersonaTable, found: TableSummary) -> list[Json]:
    share = f" ({found.complete / found.rows:.0%})" if found.rows else ""
    tiles = [
        ("rows", f"{found.rows:,}"),
        (f"with personas{share}", f"{found.complete:,}"),
        ("with an error", f"{found.errors:,}"),
        *([("unexplained", f"{found.unexplained:,}")] if found.unexplained else []),
        ("flagged", f"{found.flagged:,}"),
        ("calls", f"{table.usage.calls:,}"),
    ]
    if table.usage.cost:
        tiles.append(("cost", f"${table.usage.cost:,.2f}"))
    return [{"label": label, "value": value} for label, value in tiles]


def estimates(found: TableSummary) -> list[Json]:
    rows = []
    for side, one in found.accuracy.items():
        if not one.n:
            continue
        known = bool(np.isfinite(one.low))  # one row has no interval
        low, high = (one.low, one.high) if known else (one.value, one.value)
        rows.append(
            {
                "label": SIDE_LABELS[side],
                "side": side,
                "figure": f"{one.value:.2f}  "
                + (f"[{low:.2f}, {high:.2f}]" if known else "(one row)"),
                "low": round(100 * low, 2),
                "width": round(100 * (high - low), 2),
                "at": round(100 * one.value, 2),
            }
        )
    return rows


def histograms(found: TableSummary) -> list[Json]:
    if not found.scores:
        return []
    edges = np.linspace(*score_range(found.scores), _BINS + 1)
    counts = {side: np.histogram(scores, edges)[0] for side, scores in found.scores.items()}
    most = max(int(count.max()) for count in counts.values())
    return [
        {
            "label": SIDE_LABELS[side].capitalize(),
            "side": side,
            "low": f"{edges[0]:.2f}",
            "high": f"{edges[-1]:.2f}",
            "described": f"{(scores > 0).mean():.0%} of {len(scores):,} above 0, median"
            f" {np.median(scores):.3f}",
            "bars": [
                {"height": round(100 * int(n) / most, 1), "below": bool(edges[place + 1] <= 0)}
                for place, n in enumerate(counts[side])
            ],
        }
        for side, scores in found.scores.items()
    ]


def words(table: PersonaTable, found: Sequence[SalientWord] | None) -> tuple[list[Json], str]:
    """The words that mark each side; and why there are none, where that is so."""
    if found is None:
        try:
            found = salient_words(table)
        except (
            DataError
        ) as error:  # one side only, or no persona at all: there is nothing to compare
            return [], str(error)
    if not found:
        return [], f"No word is in {FLOOR} personas or more, so none is compared."
    marked = [word for word in found if word.p_adjusted < 0.05]
    if not marked:
        count = (
            f"None of {len(found):,} words"
            if len(found) > 1
            else "One word is compared, and it does not"
        )
        marks = "marks" if len(found) > 1 else "mark"
        return [], f"{count} {marks} a side more than chance would have it."
    most = max(abs(word.log_odds.value) for word in marked)
    sides = [
        {
            "label": f"Who {SIDE_LABELS[side]}",
            "side": side,
            "words": [
                {
                    "word": word.word,
                    "width": round(100 * abs(word.log_odds.value) / most, 1),
                    "figure": f"{word.chosen} : {word.rejected}",
                }
                for word in [w for w in marked if w.side == side][:_WORDS]
            ],
        }
        for side in SIDES
    ]
    return sides, ""


def groups(table: PersonaTable, found: Sequence[PersonaGroup]) -> list[Json]:
    """What people want: each group with its share, its sides and its examples."""
    most = max((one.share for one in found), default=1.0)
    return [
        {
            "kind": f"group-{number}",
            "label": one.label,
            "share": f"{one.share:.0%}",
            "width": round(100 * one.share / most, 1),
            "chosen": one.chosen,
            "rejected": one.rejected,
            "of_chosen": round(100 * one.chosen / len(one.members), 1),
            "examples": [
                {"side": place.side, "text": str(getattr(table[place.row], place.side))}
                for place in one.examples
            ],
        }
        for number, one in enumerate(found, 1)
    ]
