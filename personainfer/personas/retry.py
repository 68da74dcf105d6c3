"""`retry_errors`: send only the failed rows of a table again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack, cast

from ..api_keys import StoredText, holds_secret, shown_address
from ..arguments import takes_options
from ..data.source_rows import PreferenceSource
from ..data.table import PersonaTable
from ..exceptions import InvalidArgumentError, RowsFailedError
from ..llm.client import LLM, stored_options
from ..local.weights import check_stored_model
from ..observability import with_progress_bar
from ..records import Candidate, PersonaRow, Preference
from .infer import PersonaStream, iter_personas
from .options import READING, PersonaOptions


@takes_options(PersonaOptions)
def retry_errors(
    table: PersonaTable | str | Path,
    model: str | LLM | None = None,
    *,
    progress: bool | None = None,
    **options: Unpack[PersonaOptions],
) -> PersonaTable:
    """Send the failed rows of a table again, with the table's settings.

    A row is sent again if it has an error and a usable pair. All other rows are kept, among them rows whose
    input was bad, and rows where no candidate explains the choice, which is a finding and no failure. Replies
    that were paid for are in the cache: if one side of a row failed, only this side is paid for again.

    Args:
        table: a table, or the path of a saved one.
        model: None: the model that made the table. If the table comes from a file, whoever wrote the file
            could make you pay, or get your key and data. So these have to be given again: an `api_base`, or
            else a provider's model; and `extra_body`, `reasoning_effort`, a `max_tokens` above 500 and
            more than 8 `candidates`, which make calls cost more. An `api_base` with a password or a
            token has to be given again for any table.
        progress: as for `infer_personas`.
        options: as for `infer_personas`. The defaults are the table's settings. A table keeps no keys, limits
            and prices, and no `select`: give them again. `protocol`, `sides` and `candidates` cannot
            change. With `on_error="raise"`, the first row that fails again raises.

    Returns:
        A new table with the same rows and columns in the same order. Columns that `with_columns` added, such
        as verdicts, are None in the rows that were sent again. Its usage is the table's plus this call's.
        `settings["retries"]` has an entry for each call: how many rows were sent (`rows`), how many of them
        have no error now (`mended`), and which settings differed (`changed`).

    Raises:
        ValueError, TypeError: a bad argument, before any call is made. Without `exemplars`, also: the
            exemplars or instructions have changed since the table was made.
        RowsFailedError: a row failed again, with `on_error="raise"`.
        ModelError: a failure that would affect every row (a wrong key or model). Replies that were paid for
            are cached.
    """
    if not isinstance(table, PersonaTable):
        table = PersonaTable.load(table)
    settings, given = table.settings, cast("dict[str, Any]", options)
    _check(given, settings)
    # An error is raised below, where the row's own number is known.
    if raises := given.get("on_error") == "raise":
        given = {**given, "on_error": "keep"}
    places = [place for place in table.failed_places() if _can_be_asked(table[place], settings)]
    failed = [table[place] for place in places]
    changed: dict[int, PersonaRow] = {}
    with _stream([row.preference for row in failed], model, given, settings) as stream:
        rows = with_progress_bar(stream, progress, total=len(failed))
        for place, before, now in zip(places, failed, rows, strict=True):
            if raises and now.error is not None:
                raise RowsFailedError(f"row {before.index} failed again: {now.error}")
            changed[place] = _merged(before, now)
    return table.with_rows(
        changed,
        usage=table.usage + stream.usage,
        settings=_noted(settings, stream.settings, list(changed.values())),
    )


def _check(given: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    for name in READING:
        if given.get(name):
            raise InvalidArgumentError(
                f"{name}= has no use here: the pairs are in the table.",
                hint="Leave it out.",
                argument=name,
            )
    if given.get("on_error") == "drop":
        raise InvalidArgumentError(
            'on_error="drop": a table keeps its rows when they are asked again.',
            hint="Leave out the rows in table.errors afterwards.",
            argument="on_error",
        )
    for name, value in _fixed(settings).items():
        if name in given and given[name] != value:
            raise InvalidArgumentError(
                f"{name}={given[name]!r}, but the table was made with {name}={value!r}.",
                hint=f"Leave {name}= out, or make a new table with infer_personas.",
                argument=name,
            )


def _fixed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that cannot change: mixed protocols could not be compared with any table."""
    names = ("protocol", "candidates")
    fixed = {name: settings[name] for name in names if name in settings}
    sides = settings.get("sides")
    if sides:
        fixed["sides"] = sides[0] if len(sides) == 1 else "both"
    return fixed


def _can_be_asked(row: PersonaRow, settings: Mapping[str, Any]) -> bool:
    if row.preference is None:
        return False
    sides = settings.get("sides", ("chosen", "rejected"))
    return not all(_is_scored(getattr(row, f"{side}_candidates")) for side in sides)


def _is_scored(candidates: Sequence[Candidate]) -> bool:
    """Whether the candidates of a side have scores. They have none if the judge failed."""
    return any(candidate.score is not None for candidate in candidates)


def _stream(
    pairs: Sequence[Preference | None],
    model: str | LLM | None,
    given: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> PersonaStream:
    model = model or settings.get("model")
    if model is None:
        raise InvalidArgumentError(
            "the table does not remember its model.", hint="Name one: retry_errors(table, model)."
        )
    options = _fixed(settings)
    options["exemplars"] = "none" if settings.get("exemplars") == 0 else "default"
    # An LLM has options of its own, so the table adds only the number of candidates.
    said = {"candidates": settings.get("candidates")} if isinstance(model, LLM) else settings
    options |= stored_options(said, given, "the table")
    if not isinstance(model, LLM):
        if isinstance(model, StoredText):
            check_stored_model(model, "the table")
        _check_address(model, given, settings)
        if model == settings.get("model") and "api_base" in settings:
            options["api_base"] = settings["api_base"]
    stream = iter_personas(pairs or PreferenceSource.empty(), model, **{**options, **given})
    version, now = settings.get("prompt_version"), stream.settings["prompt_version"]
    # In older tables the version of a prompt about several pairs may follow after a "+".
    same = version is None or version.split("+")[0] == now
    if "exemplars" not in given and not same:
        raise InvalidArgumentError(
            f"the table was made with other exemplars or instructions ({version}, not {now}).",
            hint="Give exemplars=: those of the table, or others if you want them mixed.",
        )
    return stream


def _check_address(model: str, given: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raise InvalidArgumentError if the key would go to an address or provider that the caller did not name.

    The provider in a model's name decides, too, where the key goes, and anybody may offer models there.
    """
    base = settings.get("api_base")
    # With litellm, a provider may send the key to an address of its own, whatever `api_base` is.
    signs_in = isinstance(model, StoredText) and model.strip().startswith("litellm/")
    if model != settings.get("model") or (given.get("api_base") is not None and not signs_in):
        return
    if base is None or signs_in:
        if isinstance(model, StoredText) and model.strip().partition(":")[0] != "local":
            raise InvalidArgumentError(
                f"the table was made with the model {shown_address(model)!r}.",
                hint="Your key and your data would go to the provider in its name: name the model yourself.",
                argument="model",
            )
        return
    if isinstance(base, StoredText) or holds_secret(base):
        raise InvalidArgumentError(
            f"the table was made with the model {model!r} at {shown_address(base)!r}.",
            hint="Your key would go there: give api_base= again, or another model=.",
            argument="api_base",
        )


def _merged(before: PersonaRow, now: PersonaRow) -> PersonaRow:
    """Return the new row, with the old row's persona on each side that got none."""
    kept = {
        side: getattr(before, side)
        for side in ("chosen", "rejected")
        if not getattr(now, side) and not getattr(now, f"{side}_candidates")
    }
    return replace(now, index=before.index, columns=before.columns, **kept)


def _noted(
    settings: Mapping[str, Any], now: Mapping[str, Any], rows: Sequence[PersonaRow]
) -> dict[str, Any]:
    """Add an entry for this call to the table's settings."""
    retry = {
        "rows": len(rows),
        "mended": sum(row.error is None for row in rows),
        "changed": {name: value for name, value in now.items() if settings.get(name) != value},
    }
    return {**settings, "retries": [*settings.get("retries", ()), retry]}
