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
    """Send the failed rows of a table again, with the table's settings, and return a new table.

    A row is sent again if it has an error and a usable pair. All other rows are kept, among them rows whose
    input was bad, and rows where no candidate explains the choice, which is a finding and no failure. Replies
    that were paid for are in the cache: if one side of a row failed, only this side is paid for again. The
    call waits for all replies.

    Args:
        table: a table, or the path of a saved one. Neither is changed.
        model: as for `infer_personas`. None: the model that made the table. If the table comes from a file,
            whoever wrote the file could make you pay, or get your key and data. So the call is refused
            unless you give these again: the file's `api_base`, or, without one, the model of a provider; and
            `extra_body`, `reasoning_effort`, a `max_tokens` above 500 and more than 8 `candidates`, which
            make calls cost more. An `api_base` with a password or a token has to be given again for any
            table.
        progress: as for `infer_personas`.
        options: as for `infer_personas`, without those that say how data is read. The defaults are the
            table's settings. A table keeps no keys, limits and prices, and no `select`: give them again. A
            table whose personas were selected is refused without `select`.
            `protocol`, `sides` and `candidates` cannot change. `on_error="drop"` is refused.

    Returns:
        A new table with the same rows and columns in the same order. Columns that `with_columns` added, such
        as verdicts, are None in the rows that were sent again. Its usage is the table's plus this call's.
        `settings["retries"]` has an entry for each call: how many rows were sent (`rows`), how many of them
        have no error now (`mended`), and which settings differed (`changed`).

    Raises:
        InvalidArgumentError, UnknownOptionError: a bad argument, before any call is made; or `exemplars` is
            not given, and the exemplars or instructions have changed since the table was made.
        MissingFileError, DataError: there is no file at the path, or the file is no table.
        MissingExtraError: the model needs a package that is not installed.
        RowsFailedError: a row failed again, with `on_error="raise"`. The rows that were mended are not
            returned, but their replies are cached.
        ModelError: a failure that would affect every row (a wrong key or model). Replies that were paid for
            are cached.
        CacheError: the cache of replies cannot be read or written.
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
    # With several candidates, `select` is asked for in any case.
    is_single = settings.get("candidates") in (None, 1)
    if failed and is_single and settings.get("selected_by") and "select" not in given:
        raise InvalidArgumentError(
            "a judge or scorer selected the personas of the table.",
            hint="Name it again; select=None or --judge none keeps what the model writes now.",
            argument="select",
        )
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
    """Return the settings that cannot change: a table of mixed protocols is comparable with no other."""
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
    """Whether any candidate of a side has a score. None has one if the selector failed."""
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
    """Raise InvalidArgumentError if a file would decide where the key goes, or which model is paid.

    Without an address, the provider in the model's name decides where the key goes. With `api_base=` in this
    call, a file may name the model.
    """
    base = settings.get("api_base")
    # With litellm, a provider may send the key to an address of its own, whatever `api_base` is.
    signs_in = isinstance(model, StoredText) and model.strip().startswith("litellm/")
    if model != settings.get("model") or (given.get("api_base") is not None and not signs_in):
        return
    of_the_caller = base is None or not (isinstance(base, StoredText) or holds_secret(base))
    if base is not None and not (of_the_caller or signs_in):
        raise InvalidArgumentError(
            f"the table was made with the model {model!r} at {shown_address(base)!r}.",
            hint="Your key would go there: give api_base= again, or another model=.",
            argument="api_base",
        )
    if isinstance(model, StoredText) and model.strip().partition(":")[0] != "local":
        raise InvalidArgumentError(
            f"the table was made with the model {shown_address(model)!r}.",
            hint="A file would decide where your key and your data go, or what you pay for: name the model"
            " yourself.",
            argument="model",
        )


def _merged(before: PersonaRow, now: PersonaRow) -> PersonaRow:
    """Return the new row, with the old persona on each side that got neither a persona nor candidates.

    Index and own columns are those of the old row.
    """
    kept = {
        side: getattr(before, side)
        for side in ("chosen", "rejected")
        if not getattr(now, side) and not getattr(now, f"{side}_candidates")
    }
    return replace(now, index=before.index, columns=before.columns, **kept)


def _noted(
    settings: Mapping[str, Any], now: Mapping[str, Any], rows: Sequence[PersonaRow]
) -> dict[str, Any]:
    """Return the table's settings with an entry for this call at the end of "retries".

    Args:
        settings: the table's settings.
        now: the settings of this call's run.
        rows: the rows that were sent again.
    """
    now = {"selected_by": None, **now} if rows else now  # a run without a selector does not name it
    retry = {
        "rows": len(rows),
        "mended": sum(row.error is None for row in rows),
        "changed": {name: value for name, value in now.items() if settings.get(name) != value},
    }
    return {**settings, "retries": [*settings.get("retries", ()), retry]}
