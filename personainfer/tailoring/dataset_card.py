"""Render the Hugging Face card of an export: how its personas were made and checked, and what was left out.

The text is the template `templates/dataset_card.md`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.table import PersonaTable
from ..evaluation.results import partiality
from ..evaluation.summary import guess_text, summarise
from ..exceptions import visible
from .rows import TailoringRows

if TYPE_CHECKING:
    from jinja2 import Template

MARK = "<!-- Written by personainfer's export, which may replace it. -->"
LONG = 1024  # tokens: the default max_length of TRL's trainers for preferences and completions

# What YAML cannot hold as it is; and what begins HTML.
_ESCAPED = re.compile("[<\ufffe\uffff]")

_PURPOSE = {
    "chosen": "Each row shows the inferred persona of somebody who would prefer the chosen response.",
    "rejected": "Each row shows the inferred persona of somebody who would prefer the response that was"
    " rejected{so}.",
    "both": "Each row shows the inferred persona of somebody who would prefer one of two responses{where}.",
    "none": "The rows show no persona: they are there to compare with.",
}
_TURNED = {  # by format: where a persona prefers the rejected response, what the row does with it
    "dpo": "the two are swapped",
    "reward": "the two are swapped",
    "sft": "it is the completion",
    "kto": "it has the label true",
    "few-shot": "it is the one that is shown",
}
_SHOWN = {
    "system": "The persona is in the system message.",
    "user": "The persona is at the end of the last user message.",
    "plain": "Prompt and persona are one text, without chat messages.",
}


def dataset_card(
    table: PersonaTable,
    rows: TailoringRows,
    parts: Mapping[str, TailoringRows],
    *,
    title: str,
    format: str,
    trainers: str,
    columns: Sequence[str],
    long_prompts: int,
) -> str:
    """Render the card as Markdown, which begins with the YAML metadata that Hugging Face reads.

    Args:
        table: the personas. The card tells its settings, accuracies and flags.
        rows: the training rows that were made of `table`.
        parts: name of a split -> those of `rows` that are in it.
        title: the heading of the card. Line breaks in it become spaces.
        format: the name of the export's format, such as "trl-dpo".
        trainers: the trainers of TRL that read this format; "" if there are none.
        columns: the names of the columns.
        long_prompts: how many rows have a prompt of 1,024 tokens (`LONG`) or more.
    """
    found = summarise(table)
    persona, place = rows.settings["persona"], rows.settings["persona_in"]
    turned = _TURNED.get(rows.settings["format"], "")
    reasons = [f"{reason.replace('_', ' ')}: {count:,}" for reason, count in rows.left_out.items()]
    page: str = _template().render(
        title=" ".join(title.split()),
        mark=MARK,
        version=version("personainfer"),
        size=_size_category(len(rows)),
        format=format,
        trl=trainers,
        columns=", ".join(columns),
        purpose=_PURPOSE[persona].format(
            so=turned and f", so {turned}",
            where=turned and f"; where that is the one that was rejected, {turned}",
        ),
        shown="" if persona == "none" else _SHOWN[place],
        parts={
            name: {"path": f"data/{name}.parquet", "rows": len(p), "prompts": len(set(p.prompts))}
            for name, p in parts.items()
        },
        made=_made(table),
        accuracy=found.accuracy,
        guess=guess_text(found),
        judge=_code(table.settings["verified_by"])
        if "verified_by" in table.settings
        else "A judge",
        partial=" ".join(partiality(table.settings.get("verified_by", ""), table.settings)),
        flags={_code(name): count for name, count in found.flags.items()},
        left_out=f"Pairs with one persona: {', '.join(reasons)}.\n" if reasons else "Nothing.\n",
        long_prompts=long_prompts,
        long=LONG,
    )
    return visible(page)


def _made(table: PersonaTable) -> list[tuple[str, str]]:
    """List (label, value) pairs that say how the personas were made: model, prompt, options, number of pairs.

    The address of the model's endpoint is left out.
    """
    names = {
        "model": "model",
        "prompt_version": "prompt version",
        "protocol": "protocol",
        "exemplars": "worked examples shown",
        "candidates": "candidates a side",
        "rows_per_call": "pairs a call",
        "temperature": "temperature",
        "seed": "seed",
    }
    settings = table.settings
    said = [(n, _code(settings[key])) for key, n in names.items() if settings.get(key) is not None]
    if chosen := settings.get("selected_by"):
        model = "" if chosen["model"] is None else f" with {_code(chosen['model'])}"
        said.append(("chosen among the candidates by", f"{_code(chosen['kind'])}{model}"))
    said += [
        ("other model", f"{_code(retry['changed']['model'])}, for {retry['mended']:,} of the pairs")
        for retry in settings.get("retries", ())
        if "model" in retry["changed"] and retry["mended"]
    ]
    failed = len(table.failed_places())
    pairs = f"{len(table):,}, of which {failed:,} have an error"
    if count := table.count_unexplained():
        pairs += f" and {count:,} a side that no candidate explains"
    return [*said, ("pairs", pairs)]


def _code(value: object) -> str:
    """Format a value as Markdown code. Absolute paths, and paths after "local:", become file names.

    Folders may tell who exported the data.
    """
    text = " ".join(str(value).split()).replace("`", "'")
    start, colon, path = text.rpartition(":")
    if start == "local" or Path(path).is_absolute():
        path = Path(path).name
    return f"`{start}{colon}{path}`"


def _size_category(rows: int) -> str:
    """Return Hugging Face's name for the size of a data set, from "n<1K" to "n>1T"."""
    if rows < 1_000:
        return "n<1K"
    bounds = [f"{digits}{unit}" for unit in "KMB" for digits in (1, 10, 100)] + ["1T"]
    place = len(str(rows)) - 4
    return f"{bounds[place]}<n<{bounds[place + 1]}" if place < len(bounds) - 1 else "n>1T"


def _yaml(text: str) -> str:
    """Write a text as YAML that every reader takes as this text: in quotes, or "no" would be false.

    YAML's escapes are JSON's, but for characters beyond 16 bits, which JSON would write as two halves. "<" is
    escaped, because what shows a card may take its metadata as HTML.
    """
    quoted = json.dumps(visible(text), ensure_ascii=False)
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", quoted)


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    source = files(__package__).joinpath("templates").joinpath("dataset_card.md")
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["yaml"] = _yaml
    return environment.from_string(source.read_text(encoding="utf-8"))
