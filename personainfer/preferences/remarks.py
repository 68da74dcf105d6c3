"""Say in words how data was read, and what suggests that it was read wrongly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NOT_TOLD = ("compared_", "input", "history")  # prefixes of roles that `how_read` leaves out


def how_read(read: Mapping[str, Any]) -> str:
    """Say in one line which column was read in which role, and what labels mean; "" if no column is known.

    Columns that were only compared with the choice, "input" and "history" are left out.

    Args:
        read: `settings["read"]` of a table, as `Schema.describe` makes it; it may be empty.
    """
    columns = _columns(read)
    told = [
        role if role == column else f"{role} from {column!r}"
        for role, column in columns.items()
        if not role.startswith(_NOT_TOLD)
    ]
    labels = read.get("labels")
    if isinstance(labels, Mapping):
        labels = ", ".join(f"{label} = {verdict}" for label, verdict in labels.items())
    meaning = f"; labels: {labels}" if labels else ""
    return f"read {', '.join(told)}{meaning}" if told else ""


def remarks(read: Mapping[str, Any]) -> list[str]:
    """Return warnings, one sentence each: choices may be read the wrong way round, or data may be left out.

    Args:
        read: `settings["read"]` of a table, as `Schema.describe` makes it; it may be empty.

    Returns:
        The warnings; [] if there are none.
    """
    columns, said = _columns(read), []
    lower, scored = read.get("chosen_scored_lower", 0), read.get("pairs_scored", 0)
    if 2 * lower > scored:
        said.append(
            f"the chosen response has the lower score in {lower:,} of {scored:,} pairs with scores:"
            " are the columns swapped?"
        )
    if contradicted := read.get("contradicted_rows", 0):
        label, other = (columns.get(role, role) for role in ("label", "compared_label"))
        followed = f"{label!r}" if "label" in columns else "chosen and rejected"
        said.append(f"{other!r} contradicts {followed} in {contradicted:,} rows.")
    if apart := read.get("prompts_apart", 0):
        said.append(
            f"{apart:,} prompts come again later, and only neighbouring rows were paired: sort by prompt."
        )
    if read.get("prompt_within_responses"):
        said.append(
            "the responses hold the prompt, too, so it is there twice: leave it out of them, with the marks"
            " around it."
        )
    said.extend(
        f"{name!r} holds texts, too, and is no part of the prompt: if it is, put it into"
        f" {columns.get('prompt')!r}, or say with columns= which column is the prompt."
        for name in read.get("not_in_prompt", ())
    )
    return said


def _columns(read: Mapping[str, Any]) -> Mapping[str, str]:
    columns = read.get("columns")
    return columns if isinstance(columns, Mapping) else {}
