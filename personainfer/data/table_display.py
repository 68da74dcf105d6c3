"""Rows as text for a terminal, and as a small HTML page for a notebook.

`write_report` makes the whole page, with every row, search and intervals.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..exceptions import visible
from ..records import Persona, PersonaRow

_CELL = "vertical-align: top; text-align: left; white-space: normal; max-width: 26em"
_CHIP = "font-size: 85%; border: 1px solid; border-radius: 1em; padding: 0 .5em; margin-right: .3em"


def text_lines(row: PersonaRow, width: int, label: str | None = None) -> list[str]:
    """One row: its name and prompt, its personas with their flags, its error.

    Its name is the label of the user's index, else the data's id, else its place in the input.
    """
    name = label or (row.preference.id if row.preference else None) or str(row.index)
    lines = [f"{name}  {_first_line(row, width)}"]
    for mark, persona in (("+", row.chosen), ("-", row.rejected)):
        if persona is not None:
            flags = f"  [{', '.join(persona.flags)}]" if persona.flags else ""
            lines.append(f"  {mark} {persona}{flags}")
    lines += [f"  ? {text}" for text in unexplained_texts(row)]
    if row.error is not None:
        lines.append(f"  ! {row.error}")
    return [visible(line).replace("\n", "\\n") for line in lines]


def unexplained_texts(row: PersonaRow) -> list[str]:
    """A sentence for each side that no candidate explains."""
    tried = {"chosen": row.chosen_candidates, "rejected": row.rejected_candidates}
    found = []
    for side in row.unexplained:
        best = max(one.score for one in tried[side] if one.score is not None)
        found.append(
            f"no persona explains why somebody would prefer the {side} response: the best of"
            f" {len(tried[side])} scores {best:.3f}."
        )
    return found


def html_page(
    rows: Sequence[PersonaRow],
    said: str,
    lines: Iterable[str],
    hidden: int,
    labels: Sequence[str] | None = None,
) -> str:
    """The first rows as a table below a line about all of them; `hidden` counts the rows left out.

    `labels` are those of the user's index; without them a row's place in the input is shown.

    It takes the notebook's own colours, and everything that comes from the data is escaped.
    """
    head = "".join(
        f"<th style='text-align: left'>{name}</th>"
        for name in ("", "prompt", "prefers the chosen response", "prefers the rejected response")
    )
    more = f"<p>… and {hidden} rows more: <code>write_report(table, 'report.html')</code></p>"
    told = "".join(f"<br>{_escaped(line)}" for line in lines)
    named = zip(labels or [str(row.index) for row in rows], rows, strict=True)
    body = "".join(_html_row(label, row) for label, row in named)
    return (
        f"<p>{_escaped(said)}{told}</p>"
        f"<table><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>{more if hidden else ''}"
    )


def figures(added: Mapping[str, Sequence[Any]], neither: float = 0.0) -> Iterator[str]:
    """A line for each side that `verify_personas` judged: the mean score and how many have one.

    `neither` is the share of answers that picked neither response, which count as wrong: a guess is then
    right less often than half of the time.
    """
    for side in ("chosen", "rejected"):
        scores = added.get(f"{side}_verified_score")
        known = [float(score) for score in scores if score is not None] if scores else []
        if known:
            mean = sum(known) / len(known)
            guess = f"a guess: {(1 - neither) / 2:.2f}"
            yield f"the judge's score of the {side} personas: {mean:.2f}, {len(known)} judged ({guess})"


def _escaped(text: str) -> str:
    return html.escape(visible(text))


def _html_row(label: str, row: PersonaRow) -> str:
    cells = [_cell(_escaped(label)), _cell(_escaped(_first_line(row, 80)))]
    if row.chosen is None and row.rejected is None:
        cells.append(_cell(f"<em>{_escaped(_reason(row))}</em>", span=2))
    else:
        cells += [_cell(_person(row, persona)) for persona in (row.chosen, row.rejected)]
    return f"<tr>{''.join(cells)}</tr>"


def _cell(content: str, span: int = 1) -> str:
    return f"<td colspan='{span}' style='{_CELL}'>{content}</td>"


def _person(row: PersonaRow, persona: Persona | None) -> str:
    if persona is None:
        return f"<em>{_escaped(_reason(row))}</em>"
    chips = "".join(
        f"<span style='{_CHIP}'>{_escaped(flag.replace('_', ' '))}</span>" for flag in persona.flags
    )
    because = _escaped(persona.evidence)
    return (
        f"<span title='{because}'>{_escaped(str(persona))}</span>{'<br>' if chips else ''}{chips}"
    )


def _reason(row: PersonaRow) -> str:
    """Why a persona is missing."""
    return " ".join([*unexplained_texts(row), row.error or ""]).strip()


def _first_line(row: PersonaRow, width: int) -> str:
    if row.preference is None:
        return ""
    prompt = row.preference.prompt
    text = " ".join((prompt if isinstance(prompt, str) else prompt[-1].content).split())
    return text if len(text) <= width else text[: width - 1] + "…"
