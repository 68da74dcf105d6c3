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
    """Infer the failed rows again, with the settings of the table.

    A row is sent again if it has an error and a pair that can be used. All other rows are kept as they are:
    also those whose input was bad, and those where no candidate explains the choice, which is a finding
    and not a failure. Replies that were paid for are in the cache: if one side of a row failed, only that
    side is paid for again.

    Args:
        table: a table, or the path of a saved one.
        model: None: the model that made the table. An `api_base` that comes from a file, or that had a
            password or a token, has to be given again; otherwise whoever wrote the file would get your key.
            So has a provider's model that comes from a file, unless `api_base` is given, and what makes
            calls cost more than usual, if it comes from a file: `extra_body`, `reasoning_effort`, a
            `max_tokens` above 500, more than 8 `candidates`.
        progress: as for `infer_personas`.
        options: as for `infer_personas`. By default they are those of the table, except keys, limits and
            prices, which a table does not keep. `select` has to be given again. `protocol`, `sides`
            and `candidates` cannot change. `on_error="raise"` raises for the first row that fails
            again.

    Returns:
        A new table with the same rows and columns in the same order. Columns that were added with
        `with_columns`, such as verdicts, are None for the rows that were sent again. Its usage adds this
        call to the table's; `settings["retries"]` has an entry for each call: how many `rows` were sent,
        how many have no error now (`mended`), and the settings that differed (`changed`).

    Raises:
        ValueError, TypeError: a bad argument, before any call is made; also exemplars or instructions
            other than those that made the table, unless `exemplars` is given.
        RowsFailedError: a row failed again, with `on_error="raise"`.
        ModelError: only for what would fail every row (key, model); what was paid for is cached.
    """
    if not isinstance(table, PersonaTable):
        table = PersonaTable.load(table)
    settings, given = table.settings, cast("dict[str, Any]", options)
    _check(given, settings)
    if raises := given.get("on_error") == "raise":  # here, where the row's own number is known
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
    """The settings that cannot change: a table of mixed protocols could not be compared with any other."""
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
    """Whether the candidates have scores. They have none if the judge failed."""
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
    # An LLM has options of its own, so the table says only how often it is called.
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
    # Older tables may have a second version after a "+": that of a prompt about several pairs.
    same = version is None or version.split("+")[0] == now
    if "exemplars" not in given and not same:
        raise InvalidArgumentError(
            f"the table was made with other exemplars or instructions ({version}, not {now}).",
            hint="Give exemplars=: those of the table, or others if you want them mixed.",
        )
    return stream


def _check_address(model: str, given: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raise InvalidArgumentError if the key would go where the caller did not say.

    A provider in a model's name says where, too: it may be one whose models are anybody's.
    """
    base = settings.get("api_base")
    # By litellm, a provider may ask for the key at an address of its own, whatever `api_base` says.
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
    """The new row, with the old row's personas on sides that got none."""
    kept = {
        side: getattr(before, side)
        for side in ("chosen", "rejected")
        if not getattr(now, side) and not getattr(now, f"{side}_candidates")
    }
    return replace(now, index=before.index, columns=before.columns, **kept)


def _noted(
    settings: Mapping[str, Any], now: Mapping[str, Any], rows: Sequence[PersonaRow]
) -> dict[str, Any]:
    """The settings of the table, with an entry for this call."""
    retry = {
        "rows": len(rows),
        "mended": sum(row.error is None for row in rows),
        "changed": {name: value for name, value in now.items() if settings.get(name) != value},
    }
    return {**settings, "retries": [*settings.get("retries", ()), retry]}
