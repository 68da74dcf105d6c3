"""`write_report`: a table of personas as one HTML page that needs no network.

Data cannot run as code: it enters the template as escaped text or as JSON, and the page's script puts it
into text nodes. The page's content policy allows no other script and no request.
"""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from ..data.atomic_files import check_file, write_file
from ..data.table import PersonaTable
from ..data.table_display import embedded_json, unexplained_texts
from ..exceptions import DataError, InvalidArgumentError, visible
from ..records import Persona, PersonaRow, Side
from .salience import SalientWord, salient_words
from .summary import (
    SIDES,
    TableSummary,
    best_score,
    guess_text,
    score_range,
    summarise,
    verified,
    verified_score,
)

_MADE_BY = "Made by personainfer"  # in the footer of each report
_WORDS = 12  # a side
_BINS = 24
_SIDE_LABELS = {
    "overall": "both sides",
    "chosen": "prefers the chosen response",
    "rejected": "prefers the rejected response",
}

Json = dict[str, Any]


def write_report(
    table: PersonaTable,
    path: str | Path,
    *,
    title: str = "Personas",
    words: Sequence[SalientWord] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write one self-contained page: figures, salient words, and a searchable list of all rows.

    Args:
        table: of `infer_personas`; with verdicts if it is the `.table` of what `verify_personas` found.
        path: the .html file to write; its folder must exist.
        title: the page's heading.
        words: what `salient_words` found; None: with its defaults.
        overwrite: replace a file that is not a report of this library, too. Reports are always replaced.

    Returns:
        The path of the page.

    Raises:
        InvalidArgumentError: not a table, or not an .html path in a folder that exists; the path holds
            something else than a report; or the file cannot be written.
    """
    path = _checked(table, path)
    if not overwrite:
        _check_replaced(path)
    found = summarise(table)
    page = page_from(
        "report.html",
        title=title,
        subtitle=_subtitle(table),
        tiles=_tiles(table, found),
        estimates=_estimates(found),
        guess=round(100 * found.guess, 2),
        estimates_note=(
            "A judge saw the persona and both responses, in both orders; the share of right answers,"
            f" with a 95 % interval over rows. {guess_text(found.guess)}"
        ),
        histograms=_histograms(found),
        histograms_note=(
            "The score of each side's best candidate, by what chose among them. Above 0 it explains why"
            " its holder would prefer that response; a side that nothing explains has no persona."
        ),
        words=_words(table, words),
        words_note=(
            "Words of the personas that speak for one side more than chance would have it, by log-odds"
            " with a Dirichlet prior, corrected for the number of words (adjusted p below 0.05)."
        ),
        filters=_filters(table),
        data=embedded_json([_row(table, place, row) for place, row in enumerate(table)]),
        footer=f"{_MADE_BY} {version('personainfer')}. A persona is a hypothesis about a choice,"
        " not a fact about a person.",
    )
    write_file(path, page)
    return path


def _checked(table: object, path: str | Path) -> Path:
    if not isinstance(table, PersonaTable):
        raise InvalidArgumentError(
            f"a report is made of a PersonaTable, not of {type(table).__name__}.",
            hint="Pass what infer_personas returned, or PersonaTable.load(path).",
        )
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise InvalidArgumentError(f"path={str(path)!r}: a report is an .html file.")
    if not path.parent.is_dir():
        raise InvalidArgumentError(
            f"path={str(path)!r}: there is no folder {path.parent}.", hint="Make it first."
        )
    return path


def _check_replaced(path: Path) -> None:
    """Raise InvalidArgumentError if the page would replace something that is not a report."""
    check_file(path)
    if path.exists() and _MADE_BY.encode() not in path.read_bytes():
        raise InvalidArgumentError(
            f"path={str(path)!r} exists, and is not a report of this library.",
            hint="It would be lost: name another file, or pass overwrite=True.",
        )


def page_from(template: str, **fields: Any) -> str:
    """The page that a template of this package makes of the fields, each of them escaped.

    `nonce`, which the page's content policy and its script share, is made here.
    """
    return _template(template).render(nonce=secrets.token_urlsafe(16), **fields)


@cache
def _template(name: str) -> Template:
    source = files(__package__).joinpath("templates").joinpath(name)
    environment = Environment(autoescape=True, undefined=StrictUndefined, finalize=_visible)
    return environment.from_string(source.read_text(encoding="utf-8"))


def _visible(value: object) -> object:
    """What a template puts in: text of the data with its control characters made visible."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _subtitle(table: PersonaTable) -> str:
    settings = table.settings
    parts = [f"inferred by {settings['model']}" if "model" in settings else ""]
    if settings.get("candidates", 1) > 1:
        parts.append(f"the best of {settings['candidates']} candidates a side")
    if "protocol" in settings:
        parts.append(f"{settings['protocol']} protocol")
    if "prompt_version" in settings:
        parts.append(f"prompt {settings['prompt_version']}")
    return ", ".join(filter(None, parts))


def _tiles(table: PersonaTable, found: TableSummary) -> list[Json]:
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


def _estimates(found: TableSummary) -> list[Json]:
    rows = []
    for side, one in found.accuracy.items():
        if not one.n:
            continue
        known = bool(np.isfinite(one.low))  # one row has no interval
        low, high = (one.low, one.high) if known else (one.value, one.value)
        rows.append(
            {
                "label": _SIDE_LABELS[side],
                "side": side,
                "figure": f"{one.value:.2f}  "
                + (f"[{low:.2f}, {high:.2f}]" if known else "(one row)"),
                "low": round(100 * low, 2),
                "width": round(100 * (high - low), 2),
                "at": round(100 * one.value, 2),
            }
        )
    return rows


def _histograms(found: TableSummary) -> list[Json]:
    if not found.scores:
        return []
    edges = np.linspace(*score_range(found.scores), _BINS + 1)
    counts = {side: np.histogram(scores, edges)[0] for side, scores in found.scores.items()}
    most = max(int(count.max()) for count in counts.values())
    return [
        {
            "label": _SIDE_LABELS[side].capitalize(),
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


def _words(table: PersonaTable, words: Sequence[SalientWord] | None) -> list[Json]:
    if words is None:
        try:
            words = salient_words(table)
        except DataError:  # one side only, or no persona at all: there is nothing to compare
            return []
    marked = [word for word in words if word.p_adjusted < 0.05]
    if not marked:
        return []
    most = max(abs(word.log_odds.value) for word in marked)
    return [
        {
            "label": f"Who {_SIDE_LABELS[side]}",
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


_KINDS = {
    "error": "with an error",
    "flagged": "with a flag",
    "unexplained": "with a side that nothing explains",
    "wrong": "judged wrong",
    "split": "judged right in one order",
    "right": "judged right",
}


def _filters(table: PersonaTable) -> list[Json]:
    """What the list can be narrowed to, with how many rows each leaves; what leaves none is left out."""
    counts: Counter[str] = Counter()
    for place, row in enumerate(table):
        counts.update(_row_kinds(table, place, row))
    named = [kind for kind in _KINDS if counts[kind]]
    flags = sorted(kind for kind in counts if kind not in _KINDS)
    return [
        {"value": kind, "label": _KINDS.get(kind, kind.replace("_", " ")), "count": counts[kind]}
        for kind in [*named, *flags]
    ]


def _row_kinds(table: PersonaTable, place: int, row: PersonaRow) -> list[str]:
    kinds = ["error"] if row.error is not None else []
    kinds += ["unexplained"] if row.unexplained else []
    kinds += ["flagged", *row.flags] if row.flags else []
    verdicts = {_verdict(table, place, side) for side in SIDES} - {None}
    worst = next((kind for kind in ("wrong", "split", "right") if kind in verdicts), None)
    return [*kinds, worst] if worst else kinds


def _verdict(table: PersonaTable, place: int, side: Side) -> str | None:
    """What the judge said of a persona: "right", "wrong", or "split" if its two orders differ."""
    is_right, score = verified(table, place, side), verified_score(table, place, side)
    if is_right is None:
        return None
    return "right" if is_right else "split" if score == 0.5 else "wrong"


def _row(table: PersonaTable, place: int, row: PersonaRow) -> Json:
    pair = row.preference
    scores = [score for side in SIDES if (score := best_score(row, side)) is not None]
    name = pair.id if pair and pair.id else str(row.index)
    return {
        "index": place,
        "name": name,
        "prompt": _prompt(row),
        "chosen": pair.chosen if pair else "",
        "rejected": pair.rejected if pair else "",
        "cp": _persona(table, place, row, "chosen"),
        "rp": _persona(table, place, row, "rejected"),
        "error": row.error,
        "score": min(scores) if scores else None,
        "kinds": _row_kinds(table, place, row),
        "others": [
            [title, lines]
            for title, lines in (
                ("Without a persona", unexplained_texts(row)),
                ("Verdicts and other columns", _added(table, place)),
                *((f"Candidates of who {_SIDE_LABELS[s]}", _candidates(row, s)) for s in SIDES),
            )
            if lines
        ],
    }


def _prompt(row: PersonaRow) -> str:
    if row.preference is None:
        return ""
    prompt = row.preference.prompt
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{turn.role}: {turn.text}" for turn in prompt)


def _persona(table: PersonaTable, place: int, row: PersonaRow, side: Side) -> Json | None:
    persona: Persona | None = getattr(row, side)
    if persona is None:
        return None
    verdicts = []
    judged, score = verified_score(table, place, side), best_score(row, side)
    if judged is not None:
        verdicts.append([_verdict(table, place, side), f"judge: {judged:.2f}"])
    if score is not None:
        verdicts.append(["score", f"score {score:+.3f}"])
    return {
        "text": str(persona),
        "evidence": persona.evidence,
        "flags": list(persona.flags),
        "verdicts": verdicts,
    }


def _added(table: PersonaTable, place: int) -> list[str]:
    """Further results of a row, such as why a judge gave no usable reply."""
    shown = {f"{side}_{name}" for side in SIDES for name in ("verified", "verified_score")}
    values = ((name, column[place]) for name, column in table.added.items() if name not in shown)
    return [
        f"{name.replace('_', ' ')}: {f'{value:.3f}' if isinstance(value, float) else value}"
        for name, value in values
        if value is not None
    ]


def _candidates(row: PersonaRow, side: Side) -> list[str]:
    candidates: Mapping[Side, Any] = {
        "chosen": row.chosen_candidates,
        "rejected": row.rejected_candidates,
    }
    return [
        f"{'' if one.score is None else f'{one.score:+.3f}  '}{one.persona}"
        for one in candidates[side]
    ]
