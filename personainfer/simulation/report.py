"""Write a result as one HTML page that needs no network.

Data in the page cannot run as code: it enters the template as escaped text or as JSON, which the page's
script writes into text nodes. The page's content security policy allows no other script, and no request.
"""

from __future__ import annotations

import re
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from ..arguments import Flag, check_argument
from ..data.table import PersonaTable
from ..data.table_display import HARMLESS_CELL, embedded_json, visible_value
from ..evaluation.results import ResponseComparison, TableFindings
from ..evaluation.salience import SalientWord
from ..evaluation.summary import guess_text, summarise
from ..exceptions import InvalidArgumentError
from ..local.atomic_files import write_file
from ..local.paths import as_path, check_file, check_replaced, opened_file, place_errors
from ..tailoring.embeddings import Embedder
from ..users.audit_verdict import PersonaAudit
from ..users.records import UserPersonas
from ..users.results import PrefixEvaluation
from .persona_groups import PersonaGroup, persona_groups
from .plots import Json, estimates, groups, histograms, tiles, user_tiles, words
from .report_rows import FLAG, KINDS, PageRow, page_rows

_MADE_BY = "Made by personainfer"  # in the footer of each report
_GENERATOR = '<meta name="generator" content="personainfer">'  # in the head of each report
_MOST_BYTES = 52_000_000  # of rows in a page, which a browser opens in seconds
# Characters of a text, tried in turn if rows are too large.
_TEXT_LIMITS = (8000, 4000, 2000, 1000, 500)
_PERSONAS = {"cp": "Who prefers the chosen response", "rp": "Who prefers the rejected response"}


@runtime_checkable
class Result(Protocol):
    """A result that `write_report` takes: numbers as a grid of text, and sentences about them."""

    def grid(self) -> list[tuple[str, ...]]:
        """Return the lines of the grid; the first line is its head."""

    def remarks(self) -> list[str]:
        """Return sentences about what limits the numbers."""


def write_report(
    result: PersonaTable | UserPersonas | Result,
    path: str | Path,
    *,
    title: str | None = None,
    words: Sequence[SalientWord] | None = None,
    embedder: Embedder | str | Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Write one self-contained HTML page: figures, groups of personas, salient words, and all rows.

    Args:
        result: a table of personas; personas of users; or the result of `verify_personas`,
            `compare_personas`, `rate_personas`, `compare_responses`, `evaluate_prefixes` or `audit_personas`.
        path: the .html file to write. Its folder must exist.
        title: the heading of the page; None: the kind of the result, such as "Personas" or "Persona audit".
        words: the result of `salient_words`; None: compute it with its defaults. Used for a result with a
            table.
        embedder: to group personas of a table by meaning: a sentence-transformers model, or a function from n
            texts to vectors (n, dimensions). None: group them by frequent phrases. See
            `personainfer.simulation.persona_groups`.
        overwrite: also replace a file that is not a report of this library. Reports are always replaced.

    Returns:
        The path of the page. The page holds at most about 52 MB of rows. If there are more, the texts are
        cut, then the list of rows, and rows that are too large alone are left out. The page says so; its
        figures are of all rows.

    Raises:
        InvalidArgumentError: `result` is of another type; `path` is not an .html file in a folder that
            exists, is a file that is not a report (see `overwrite`), or cannot be written; or there is no
            model `embedder`.
        MissingExtraError: `embedder` needs a package that is not installed.
        ModelError: `embedder` did not return one finite vector for each text.
        OSError: the disk is full.
    """
    overwrite = check_argument("overwrite", overwrite, Flag)
    path = _checked(result, path)
    check_file(path)
    if not overwrite:
        check_replaced(path, _is_report, "a report of this library")
    table = _table_of(result)
    found = persona_groups(table, embedder=embedder) if table is not None else []
    rows = page_rows(result if table is None else table)
    _add_groups(rows, found)
    data, cut = _within_bytes(rows)
    page = _template().render(
        title=_heading(result, table) if title is None else title,
        subtitle=_subtitle(result, table),
        nonce=secrets.token_urlsafe(16),
        measured=_measured(result),
        **_figures(result, table, words, found, embedder is not None),
        cut=cut,
        filters=_filters(rows, found),
        has_scores=any(row.get("score") is not None for row in rows),
        has_verdicts=any(row.get("judged") is not None for row in rows),
        has_responses=any(row.get("chosen") for row in rows),
        labels=_labels(result),
        data=data,
        harmless_cell=HARMLESS_CELL,
        footer=f"{_MADE_BY} {version('personainfer')}. A persona is a hypothesis about a choice,"
        " not a fact about a person.",
    )
    with place_errors(path):
        write_file(path, page)
    return path


def _checked(result: object, path: str | Path) -> Path:
    if not isinstance(result, PersonaTable | UserPersonas | Result):
        raise InvalidArgumentError(
            f"a report is made of a PersonaTable or another result, not of {type(result).__name__}.",
            hint="Pass what infer_personas returned, or PersonaTable.load(path).",
        )
    path = as_path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise InvalidArgumentError(f"path={str(path)!r}: a report is an .html file.")
    if not path.parent.is_dir():
        raise InvalidArgumentError(
            f"path={str(path)!r}: there is no folder {path.parent}.", hint="Make it first."
        )
    return path


def _is_report(path: Path) -> bool:
    """Whether a file is a report of this library. A file that cannot be read is not."""
    with suppress(OSError), opened_file(path) as file:
        begin = file.read(4096)
        if _GENERATOR.encode() in begin:
            return True
        # Reports of 0.1 have only the footer, which a page of the user may quote.
        return b"script-src 'nonce-" in begin and _MADE_BY.encode() in file.read(2 * _MOST_BYTES)
    return False


@cache
def _template() -> Template:
    source = files(__package__).joinpath("templates").joinpath("report.html")
    environment = Environment(autoescape=True, undefined=StrictUndefined, finalize=visible_value)
    return environment.from_string(source.read_text(encoding="utf-8"))


def _table_of(result: object) -> PersonaTable | None:
    """Return the table of personas that the result is, or has; None: neither."""
    if isinstance(result, PersonaTable):
        return result
    return result.table if isinstance(result, TableFindings) else None


# What stands above the rows


def _heading(result: object, table: PersonaTable | None) -> str:
    """Name the kind of a result in words, such as "Personas" or "Persona audit"."""
    name = "Personas" if table is not None else type(result).__name__
    return re.sub(r"(?<=[a-z])([A-Z])", lambda found: f" {found[1].lower()}", name)


def _subtitle(result: object, table: PersonaTable | None) -> str:
    """Say which model wrote the personas, how, and which model judged them, as far as it is known."""
    settings = dict(table.settings if table is not None else getattr(result, "settings", {}))
    parts = [f"personas by {settings['model']}" if "model" in settings else ""]
    if made := settings.get("personas_from"):
        parts.append(f"personas of the data ({', '.join(made.values())})")
    if settings.get("candidates", 1) > 1:
        parts.append(f"the best of {settings['candidates']} candidates a side")
    if chooser := (settings.get("selected_by") or {}).get("model"):
        parts.append(f"chosen by {chooser}")
    if "protocol" in settings:
        parts.append(f"{settings['protocol']} protocol")
    if "prompt_version" in settings:
        parts.append(f"prompt version {settings['prompt_version']}")
    judge = getattr(result, "judge", None) or settings.get("verified_by") or settings.get("scorer")
    parts.append(f"judged by {judge}" if judge else "")
    return ", ".join(filter(None, parts))


def _measured(result: object) -> Json | None:
    """Return the grid, the verdict and the remarks of a `Result`; None for any other result."""
    if not isinstance(result, Result):
        return None
    head, *lines = result.grid()
    # On a narrow page, a cell may break before its "(n = 12)", but not within a number or an interval.
    parts = [[re.split(r" (?=\(n = )", cell) for cell in line] for line in lines]
    verdict = getattr(result, "verdict", None)
    verdict = f"Verdict: {verdict}." if verdict else ""
    said = {"verdict": verdict, "remarks": result.remarks()}
    return {"name": _heading(result, None), "head": head, "lines": parts, **said}


def _figures(
    result: object,
    table: PersonaTable | None,
    given: Sequence[SalientWord] | None,
    found: Sequence[PersonaGroup],
    by_meaning: bool,
) -> Json:
    """Return the template's values about the personas of a table; empty values without a table."""
    if table is None:
        return {
            **dict.fromkeys(("estimates", "histograms", "words", "groups"), ()),
            "tiles": user_tiles(result) if isinstance(result, UserPersonas) else (),
            **dict.fromkeys(("estimates_note", "words_note", "groups_note"), ""),
            "guess": 50,
            "is_table": False,
        }
    summary = summarise(table)
    marked, why_none = words(table, given)
    how = (
        "the meaning of what they want"
        if by_meaning
        else "the most frequent phrase that they share"
    )
    share = sum(one.share for one in found)
    return {
        "is_table": True,
        "tiles": tiles(table, summary),
        "estimates": estimates(summary),
        "guess": round(100 * summary.guess, 2),
        "estimates_note": (
            "A judge saw the persona and both responses, in both orders; the share of right answers,"
            f" with a 95 % interval over rows. {guess_text(summary)}"
        ),
        "histograms": histograms(summary),
        "words": marked,
        "words_note": why_none
        or (
            "Words of the personas that speak for one side more than chance would have it, by log-odds"
            " with a Dirichlet prior, corrected for the number of words (adjusted p below 0.05)."
        ),
        "groups": groups(table, found),
        "groups_note": (
            f"Personas grouped by {how}: {share:.0%} of them are in these groups."
            if found
            else "No groups: too few personas want something similar."
        ),
    }


# The rows


def _labels(result: object) -> Json:
    """Return the page's names for the personas and responses of a row, and a note on its marks."""
    responses = {"chosen": "Chosen response", "rejected": "Rejected response"}
    if isinstance(result, PersonaTable | TableFindings):
        return {**_PERSONAS, **responses, "note": ""}
    if isinstance(result, ResponseComparison):
        responses = {
            "chosen": "Response of the test model",
            "rejected": "Response of the base model",
        }
        note = "Whose response the judge preferred in both orders; a tie where the orders differ."
    elif isinstance(result, PrefixEvaluation | PersonaAudit):
        note = (
            "A choice of a user, and each prefix with which it was predicted: green if rightly, red if not."
            " The number is the scorer's margin: its score of the chosen response less that of the other."
        )
    else:
        note = ""
    return {"cp": "Persona", "rp": "", **responses, "note": note}


def _add_groups(rows: Sequence[PageRow], found: Sequence[PersonaGroup]) -> None:
    for number, one in enumerate(found, 1):
        for place in {member.row for member in one.members}:
            rows[place]["kinds"].append(f"group-{number}")


def _filters(rows: Sequence[PageRow], found: Sequence[PersonaGroup]) -> list[Json]:
    """Return the filters of the list of rows that match at least one row, each with its count."""
    counts = Counter(kind for row in rows for kind in row["kinds"])
    wanted = {f"group-{number}": f"wants: {one.label}" for number, one in enumerate(found, 1)}
    others = sorted(kind for kind in counts if kind not in KINDS and kind not in wanted)
    named = {kind: kind.removeprefix(FLAG).replace("_", " ") for kind in others}
    labels = {**KINDS, **named, **wanted}
    return [
        {"value": kind, "label": label, "count": counts[kind]}
        for kind, label in labels.items()
        if counts[kind]
    ]


def _within_bytes(rows: Sequence[PageRow]) -> tuple[Markup, str]:
    """Return the rows as JSON of `_MOST_BYTES` at most, and a sentence on how they were cut, or "".

    Texts are cut first. If that is not enough, the last rows are left out, and rows that would fill a quarter
    of the page each.
    """
    whole = _MOST_BYTES
    tried = [(None, whole), *((limit, whole) for limit in _TEXT_LIMITS)]
    for limit, most in [*tried, (_TEXT_LIMITS[-1], whole // 4)]:
        kept, large = _that_fit(rows, limit, most)
        if len(kept) == len(rows):
            break
    data = Markup(f"[{', '.join(kept)}]")
    if limit is None:
        return data, ""
    cut = f"texts cut at {limit:,} characters, to keep the page small."
    if len(kept) == len(rows):
        return data, f"The list holds all rows, with {cut}"
    which, more = (
        ("", f" Rows that are too large for it: {large:,}.") if large else ("the first ", "")
    )
    return data, (
        f"The list holds {which}{len(kept):,} of {len(rows):,} rows, with {cut}{more} The figures above are"
        " of all rows. For other rows, write a report on a slice of the table."
    )


def _that_fit(rows: Sequence[PageRow], limit: int | None, most: int) -> tuple[list[str], int]:
    """Return the first rows that fit into `_MOST_BYTES`, as JSON, with texts of at most `limit` characters.

    Rows of more than `most` bytes are left out; the second value says how many these are.
    """
    kept, size, large = [], 0, 0
    for row in rows:
        shown: Any = row if limit is None else {**_short(row, limit), "kinds": row["kinds"]}
        text = embedded_json([shown])[1:-1]
        length = len(text.encode(errors="replace")) + 2
        if length > most:
            large += 1
            continue
        size += length
        if size > _MOST_BYTES:
            break
        kept.append(text)
    return kept, large


def _short(value: Any, limit: int) -> Any:
    """Return a value in which each text has at most `limit` characters."""
    if isinstance(value, str):
        return value if len(value) <= limit else value[: limit - 1] + "…"
    if isinstance(value, Mapping):
        return {name: _short(one, limit) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_short(one, limit) for one in value]
    return value
