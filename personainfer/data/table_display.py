"""Write rows for people: lines for a terminal, a small page for a notebook, columns of text, cells of CSV.

`write_report` makes a whole page, with every row, search and intervals. Widths are in columns of a terminal.
"""

from __future__ import annotations

import html
import json
import math
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final
from unicodedata import normalize

from markupsafe import Markup
from rich.cells import cell_len, chop_cells, set_cell_size

from ..exceptions import visible
from ..records import Persona, PersonaRow, Preference
from .column_values import COLUMNS

_PARTS = ("trait", "preference", "evidence")
DETAILS = (
    *(f"{side}_{part}" for side in ("chosen", "rejected") for part in (*_PARTS, "flags")),
    "persona_unexplained",
)
_MARKED = 4  # characters in a column that a text may have, such as a letter and its marks
_CELL = "vertical-align: top; text-align: left; white-space: normal; max-width: 26em"
_CHIP = "font-size: 85%; border: 1px solid; border-radius: 1em; padding: 0 .5em; margin-right: .3em"
_QUOTE = "opacity: .7; margin-bottom: .3em"
_QUOTED = 160  # characters of a response that a notebook shows
_LABEL = 24  # columns of a row's name
_SIDE = 12  # columns of "  rejected  "
_NO_TERMINAL = 100  # columns of what is written to a file or a notebook
_WIDEST = 160  # columns: longer lines are hard to read
_NO_END = 1 << 30  # columns: a file and a notebook take lines of any length
LEAST_WIDTH = 24  # columns; narrower than that nothing can be read
MOST_WIDTH = 10_000  # a line is filled up with blanks to two fifths of it
_NARROW = 60  # below, a persona stands under its response, not beside it
_EXCERPT_LINES = 2  # of a response, or as many as its persona has


def terminal_width() -> int:
    """Return the columns of the terminal, or of $COLUMNS: at most 160; 100 if there is no terminal."""
    return min(shutil.get_terminal_size((_NO_TERMINAL, 24)).columns, _WIDEST)


def text_lines(row: PersonaRow, width: int, label: str | None = None) -> list[str]:
    """Write one row as lines: the prompt, both responses beside the personas that prefer them, and the error.

    If the row has no persona, its responses are left out. A sentence for each side that no candidate explains
    comes before the error. Personas, these sentences and the error are whole; prompts and responses are cut.
    Control characters are written as escapes.

    Args:
        row: the row.
        width: the columns of a line at most; less than 24 counts as 24.
        label: the row's name; None: the data's id of the pair, or else the row's position in the input.
    """
    name = label or (row.preference.id if row.preference else None) or str(row.index)
    width = max(width, LEAST_WIDTH)
    name = _cut(_one_line(name), min(_LABEL, width // 2))
    prompt = _cut(_one_line(short_prompt(row.preference)), width - cell_len(name) - 2)
    lines = [f"{name}  {prompt}".rstrip()]
    if row.chosen is not None or row.rejected is not None:
        for side, response, persona in sides(row):
            flags = f" [{', '.join(persona.flags)}]" if persona and persona.flags else ""
            lines += _side_lines(side, response, f"{persona or 'no persona'}{flags}", width)
    for mark, text in (*(("?", text) for text in unexplained_texts(row)), ("!", row.error)):
        if text is not None:
            first, *rest = wrapped(_one_line(text), width - 4)
            lines += [f"  {mark} {first}", *(f"    {line}" for line in rest)]
    return lines


def sides(row: PersonaRow) -> list[tuple[str, str, Persona | None]]:
    """Return (side, response, persona) for "chosen" and "rejected".

    The response is "" if the row has no pair; the persona is None if there is none.
    """
    pair = row.preference
    return [
        ("chosen", pair.chosen if pair else "", row.chosen),
        ("rejected", pair.rejected if pair else "", row.rejected),
    ]


def _side_lines(side: str, response: str, who: str, width: int) -> list[str]:
    """Write a response on the left and its persona on the right; one above the other below 60 columns.

    Args:
        side: "chosen" or "rejected", which stands before the response.
        response: the response, which is cut after a few lines.
        who: the persona that prefers it, with its flags, or "no persona". It is shown whole.
        width: the columns of a line at most, 24 or more.
    """
    response, who = _one_line(response), _one_line(who)
    if width < _NARROW:
        excerpt = _excerpt(f"{side}: {response}", width - 2, _EXCERPT_LINES)
        told = wrapped(who, width - 6)
        return [*(f"  {line}" for line in excerpt), *(f"      {line}" for line in told)]
    room = width - _SIDE - 2
    left = room * 2 // 5
    told = wrapped(who, room - left)
    excerpt = _excerpt(response, left, max(_EXCERPT_LINES, len(told)))
    height = max(len(excerpt), len(told))
    excerpt += [""] * (height - len(excerpt))
    told += [""] * (height - len(told))
    names = [f"  {side}", *[""] * (height - 1)]
    return [
        f"{name:<{_SIDE}}{set_cell_size(text, left)}  {persona}".rstrip()
        for name, text, persona in zip(names, excerpt, told, strict=True)
    ]


def wrapped(text: str, width: int) -> list[str]:
    """Break a text into lines of at most `width` columns, between words if possible."""
    lines: list[str] = []
    for word in text.split(" "):
        room = width - cell_len(lines[-1]) - 1 if lines else -1
        if cell_len(word) <= room:
            lines[-1] += f" {word}"
        else:
            lines += chop_cells(word, width) or [""]
    return lines


def _excerpt(text: str, width: int, height: int) -> list[str]:
    """Return the first `height` lines of a text; an ellipsis ends the last one if the text is longer."""
    # What can be seen is wrapped, not a whole book.
    lines = wrapped(text[: width * (height + 1)], width)
    if len(lines) > height:
        lines = lines[:height]
        lines[-1] = _cut(lines[-1] + " " * width, width).rstrip("… ") + "…"
    return lines


def _cut(text: str, width: int) -> str:
    """Return the text, or its beginning and an ellipsis, in at most `width` columns.

    Marks above and below letters have no width, so the number of characters is limited as well.
    """
    begin = text[: _MARKED * width]
    if begin == text and cell_len(text) <= width:
        return text
    return set_cell_size(begin, min(cell_len(begin), width - 1)).rstrip() + "…"


def _one_line(text: str) -> str:
    return visible(" ".join(text.split()))


def unexplained_texts(row: PersonaRow) -> list[str]:
    """Write a sentence for each side whose choice no candidate explains, with the best score."""
    tried = {"chosen": row.chosen_candidates, "rejected": row.rejected_candidates}
    found = []
    for side in row.unexplained:
        best = max(one.score for one in tried[side] if one.score is not None)
        found.append(
            f"no persona explains why somebody would prefer the {side} response: the best of"
            f" {len(tried[side])} scores {best:.3f}."
        )
    return found


def persona_columns(rows: Iterable[PersonaRow]) -> dict[str, list[str | None]]:
    """Write the columns of rows that people read.

    Returns:
        Name -> values for `COLUMNS`: the sentence of the persona of each side, and the error; None if there
        is none.
    """
    chosen: list[str | None] = []
    rejected: list[str | None] = []
    errors: list[str | None] = []
    for row in rows:
        chosen.append(str(row.chosen) if row.chosen else None)
        rejected.append(str(row.rejected) if row.rejected else None)
        errors.append(row.error)
    return dict(zip(COLUMNS, (chosen, rejected, errors), strict=True))


def detail_columns(rows: Iterable[PersonaRow]) -> dict[str, list[Any]]:
    """Write the parts of the personas, and the unexplained sides, as columns.

    Returns:
        Name -> values for `DETAILS`. Flags are lists of text, other values are texts. None: there is no
        persona; in `persona_unexplained`, no side is unexplained.
    """
    columns: dict[str, list[Any]] = {name: [] for name in DETAILS}
    for row in rows:
        for side, persona in (("chosen", row.chosen), ("rejected", row.rejected)):
            for part in _PARTS:
                columns[f"{side}_{part}"].append(persona and getattr(persona, part))
            columns[f"{side}_flags"].append(None if persona is None else list(persona.flags))
        columns["persona_unexplained"].append(" ".join(unexplained_texts(row)) or None)
    return columns


def html_page(
    rows: Sequence[PersonaRow],
    said: str,
    lines: Iterable[str],
    hidden: int,
    labels: Sequence[str] | None = None,
) -> str:
    """Write the first rows of a table as HTML, below a line about all rows.

    The page has the notebook's own colours. Everything that comes from the data is escaped.

    Args:
        rows: the rows to show.
        said: the line about all rows.
        lines: further lines below it.
        hidden: how many rows are left out, which the last line says; 0: there is no such line.
        labels: the name of each row; None: its position in the input.
    """
    head = "".join(
        f"<th style='text-align: left'>{name}</th>"
        for name in (
            "",
            "prompt",
            "the chosen response, and who prefers it",
            "the rejected response, and who prefers it",
        )
    )
    more = f"<p>… and {hidden} rows more: <code>write_report(table, 'report.html')</code></p>"
    told = "".join(f"<br>{escaped(line)}" for line in lines)
    named = zip(labels or [str(row.index) for row in rows], rows, strict=True)
    body = "".join(_html_row(label, row) for label, row in named)
    return without_formulas(
        f"<p>{escaped(said)}{told}</p>"
        f"<table><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>{more if hidden else ''}"
    )


def without_formulas(page: str) -> str:
    """Wrap HTML so that a notebook typesets no formula in it, such as between the dollars of "$5 or $10"."""
    return f"<div class='tex2jax_ignore mathjax_ignore'>{page}</div>"


def figures(added: Mapping[str, Sequence[Any]], neither: float = 0.0) -> Iterator[str]:
    """Yield a line for each side that `verify_personas` judged: the mean score, and how many have one.

    Args:
        added: the added columns of a table, by name; without a column of scores, there is no line.
        neither: the share of orders, from 0 to 1, without a pick of a response. These count as wrong, so a
            guess is right less often than half of the time; the line says how often.
    """
    for side in ("chosen", "rejected"):
        scores = added.get(f"{side}_verified_score")
        known = [float(score) for score in scores or () if isinstance(score, int | float)]
        if known:
            mean = sum(known) / len(known)
            guess = f"a guess: {(1 - neither) / 2:.2f}"
            yield f"the judge's score of the {side} personas: {mean:.2f}, {len(known)} judged ({guess})"


def escaped(text: str) -> str:
    """Escape a text for HTML. Control characters become visible escapes."""
    return html.escape(visible(text))


def result_text(
    head: Sequence[str], grid: Sequence[Sequence[str]] = (), remarks: Iterable[str] = ()
) -> str:
    """Write a result as text: lines, a grid whose columns are aligned to the left, and sentences.

    In a terminal, sentences are wrapped, and a grid that is too wide is written in parts, one below the
    other, each with the first column; a line whose other cells are empty in a later part is left out there.
    Names and reasons in it may come from an endpoint or the data, so control characters are escaped.
    """
    width = shutil.get_terminal_size((_NO_END, 24)).columns
    said = [line for remark in remarks for line in visible(remark).split("\n")]
    fitted = [part for line in said for part in _fitted(line, width)]
    return visible("\n".join([*head, *_grid_lines(grid, width), *fitted]))


def _fitted(line: str, width: int) -> list[str]:
    return [line] if cell_len(line) <= width else wrapped(line, max(width, LEAST_WIDTH))


def _grid_lines(grid: Sequence[Sequence[str]], width: int) -> list[str]:
    """Write a grid as lines of at most `width` columns, or of the first column and one other."""
    padded: list[list[str]] = []
    for texts in zip(*grid, strict=True):
        cells = [visible(cell) for cell in texts]
        widest = max(map(len, cells))
        padded.append([cell.ljust(widest) for cell in cells])
    first, *others = padded or [[]]
    parts = [first]
    for column in others:
        wider = [f"{line}  {cell}" for line, cell in zip(parts[-1], column, strict=True)]
        if parts[-1] is first or len(wider[0]) <= width:
            parts[-1] = wider
        else:
            parts.append([f"{name}  {cell}" for name, cell in zip(first, column, strict=True)])
    return [
        line.rstrip()
        for part in parts
        for line, name in zip(part, first, strict=True)
        if part is parts[0] or line.rstrip() != name.rstrip()  # else its cells here are all empty
    ]


def _html_row(label: str, row: PersonaRow) -> str:
    cells = [_cell(escaped(label)), _cell(escaped(_begin(short_prompt(row.preference), 80)))]
    if row.chosen is None and row.rejected is None:
        cells.append(_cell(f"<em>{escaped(_reason(row))}</em>", span=2))
    else:
        cells += [_cell(_quote(said) + _person(row, persona)) for _, said, persona in sides(row)]
    return f"<tr>{''.join(cells)}</tr>"


def _cell(content: str, span: int = 1) -> str:
    return f"<td colspan='{span}' style='{_CELL}'>{content}</td>"


def _quote(response: str) -> str:
    """Write the beginning of a response, to stand above the persona that prefers it."""
    text = _begin(response, _QUOTED)
    return f"<div style='{_QUOTE}'>{escaped(text)}</div>" if text else ""


def _person(row: PersonaRow, persona: Persona | None) -> str:
    if persona is None:
        return f"<em>{escaped(_reason(row))}</em>"
    chips = "".join(
        f"<span style='{_CHIP}'>{escaped(flag.replace('_', ' '))}</span>" for flag in persona.flags
    )
    because = escaped(persona.evidence)
    return f"<span title='{because}'>{escaped(str(persona))}</span>{'<br>' if chips else ''}{chips}"


def _reason(row: PersonaRow) -> str:
    """Say why a row has no persona, or one of a side is missing."""
    return " ".join([*unexplained_texts(row), row.error or ""]).strip()


def _begin(text: str, most: int) -> str:
    """Return a text on one line; of a longer one, the first characters and an ellipsis, `most` together."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def short_prompt(pair: Preference | None) -> str:
    """Return the prompt; of a conversation, how many turns come before the last one, and the last one.

    "" if there is no pair, or no turn.
    """
    if pair is None:
        return ""
    if isinstance(pair.prompt, str):
        return pair.prompt
    if not pair.prompt:  # of a row with an error
        return ""
    earlier = len(pair.prompt) - 1
    told = f"[{earlier} earlier turn{'s' * (earlier > 1)}] " if earlier else ""
    return told + pair.prompt[-1].content


def embedded_json(rows: Sequence[object]) -> Markup:
    """Write JSON to stand in a script element of a page, where "<" opens no tag and ends no script.

    Control characters in texts become visible escapes; NaN and infinite numbers become null.
    """
    text = json.dumps(_all_visible(rows), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def visible_value(value: object) -> object:
    """Prepare a value for a template: a text gets visible escapes for control characters.

    Texts that are marked as HTML, and other values, stay as they are.
    """
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _all_visible(value: object) -> object:
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {name: _all_visible(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_all_visible(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no such numbers, and a page with one shows nothing
    return value


# Cells of CSV files

# What begins as a formula and is none: the item of a list that calls nothing, or a line of signs alone. The
# script of a report reads this text, too, in which it writes Python's \w as JavaScript has it.
HARMLESS_CELL: Final = (
    r"(?:[+-] (?![^\n]{0,300}[\w.]\s{0,300}\()[^|!\n]{0,300}|[=+-]{2,290}[ \t]{0,9})(?:\n|$)"
)
_HARMLESS = re.compile(HARMLESS_CELL)
_CELL_BEGIN = re.compile(r'[;\t\n][\s";]*')  # in a text that is split where it should not be
_FORMULA = ("=", "+", "-", "@")  # a spreadsheet may run a cell that begins so


def csv_cell(text: str) -> str:
    """Return the text of a cell with an apostrophe before what a spreadsheet could run as a formula.

    Some skip blanks, or read full-width signs as usual ones. One that separates cells by semicolons or tabs
    begins a cell after each of them, and a row after each line break, whatever is in quotes. Control
    characters become visible escapes.
    """
    text = visible(text)
    inner = _CELL_BEGIN.sub(lambda run: run[0] + "'" * _may_run(text, run.end()), text)
    begin = text.lstrip("\n \u3000\xa0")[:1]
    return f"'{inner}" if text.startswith("\t") or _is_sign(begin) else inner


def _may_run(text: str, place: int) -> bool:
    return _is_sign(text[place : place + 1]) and not _HARMLESS.match(text, place)


def _is_sign(begin: str) -> bool:
    return normalize("NFKC", begin).startswith(_FORMULA)
