"""Read personas that somebody else made from columns beside the preference data."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from ..exceptions import DataError, InvalidArgumentError
from ..preferences.cells import is_null, parse_cell
from ..preferences.recognition import LOOK_AHEAD
from ..records import Persona, PersonaRow
from .arrow_columns import arrow_cells, cells_of, in_narwhals, package_of
from .column_values import COLUMNS, RECORD
from .containers import read_with_columns
from .file_formats import CSV_NULLS
from .own_columns import own_names
from .source_rows import SourceRow, record

Names = Mapping[str, str | None]  # side -> the column of its personas
# How a record or a list begins that was written as JSON or by Python, perhaps within a fence.
_AS_JSON = re.compile(r"""\s*(?:```(?:json)?\s*)?(?:\{|\[\s*["'{])""")
_FIELDS = ("trait", "preference", "evidence", "flags", "sentence")


def read_personas(
    data: object, names: Names, columns: Mapping[str, str] | None
) -> tuple[list[PersonaRow], Any]:
    """Read the rows of preference data, with the personas that some of its columns hold.

    Args:
        data: data of any kind that `read_preferences` reads.
        names: "chosen" and "rejected" -> the column with the personas of that side; None: there are none.
        columns: our names of the other columns -> the data's, as for `read_preferences`.

    Returns:
        The rows, and the frame or dataset from which they were read; None if they carry their columns. A
        column `personainfer` that this library wrote is in neither. A row has an error if it has no
        preference or no persona, or if one of its personas cannot be read. If it has no persona, and both
        names are given, its error is the text of a column persona_error, if there is one.

    Raises:
        InvalidArgumentError: both names are None; a name is not a column; a column `chosen_persona` or
            `rejected_persona` is not named, which the table would replace; the columns hold the personas of
            the first and the second response, of which a label chooses one; or as `read_preferences`.
        DataError, MissingExtraError: as `read_preferences`.
    """
    wanted = {side: name for side, name in names.items() if name is not None}
    if not wanted or not all(isinstance(name, str) for name in wanted.values()):
        raise InvalidArgumentError(
            "chosen_persona= and rejected_persona= name the columns of the personas; one may be None."
        )
    source = read_with_columns(data, columns)
    original = source.original
    errors = "persona_error" if not names.keys() - wanted.keys() else None
    if original is None:
        read = list(source)
        found: Iterable[object] = (name for row in read for name in row.columns)
        own: list[Any] = list(dict.fromkeys(found))
        _check_names(own, wanted, bool(read))
        values: Iterable[Mapping[str, Any]] = (row.columns for row in read)
    else:
        _check_names(own := own_names(original), wanted, True)
        read = list(source)
        values = _columns_of(original, sorted(_texts(own) & {*wanted.values(), errors}))
    _check_sides(source.summary.get("columns", {}), wanted)
    if RECORD in _texts(own) and _check_records(original, read):
        if original is None:
            read = [row._replace(columns=_without_record(row.columns)) for row in read]
        elif package_of(original) == "datasets":
            original = original.remove_columns([RECORD])
        else:
            original = in_narwhals(original).drop(RECORD).to_native()
    rows = [
        _row(place, one, given, wanted, errors)
        for place, (one, given) in enumerate(zip(read, values, strict=True))
    ]
    return rows, original


def _check_records(original: Any, read: list[SourceRow]) -> bool:
    """Whether the column `personainfer` is that of infer's lines, or of a saved table, by the first rows.

    Raises:
        InvalidArgumentError: the data is a table that was saved, and its sides are read exchanged.
    """
    head: Iterable[Mapping[str, Any]] = (row.columns for row in read[:LOOK_AHEAD])
    if original is not None:
        head = _columns_of(original, [RECORD], LOOK_AHEAD)
    records = [record(each.get(RECORD)) for each in head]
    for was, row in zip(records, read, strict=False):
        told = tuple(was.get("preference", {}).get(side) for side in ("chosen", "rejected"))
        if row.preference and told == (row.preference.rejected, row.preference.chosen):
            raise InvalidArgumentError(
                "the data is a table that was saved, whose run read the other response as the chosen one.",
                hint="Open the file: PersonaTable.load(path). Or read the sides as the run did, with its"
                f" columns= and labels=. If you exchanged them yourself, drop the column {RECORD}.",
                argument="data",
            )
    return any(records)


def _without_record(own: Mapping[str, Any]) -> Mapping[str, Any]:
    return {name: value for name, value in own.items() if name != RECORD}


def _texts(names: Iterable[object]) -> set[str]:
    return {name for name in names if isinstance(name, str)}  # pandas' NA equals nothing


def _check_names(found: list[Any], wanted: Mapping[str, str], has_rows: bool) -> None:
    texts = _texts(found)
    for side, name in wanted.items():
        if has_rows and name not in texts:
            close = get_close_matches(name, map(str, found), n=1)
            nearest = f"Nearest is {close[0]!r}. " if close else ""
            raise InvalidArgumentError(
                f"{side}_persona={name!r} is not a column of the data, whose columns are"
                f" {', '.join(map(repr, found[:20]))}.",
                hint=f"{nearest}Where there are no personas of that side, give {side}_persona=None.",
            )
    for name in COLUMNS[:2]:
        if name in texts and name not in wanted.values():
            raise InvalidArgumentError(
                f"the data has a column {name}, which the table would replace, and whose personas are"
                " not read.",
                hint="Rename or drop it.",
            )


_NUMBER = re.compile(r"(?<![a-z])[a-z]$|\d+$")  # "a" of persona_a, "1" of response1


def _check_sides(read: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Raise InvalidArgumentError if the columns hold the personas of the first and the second response.

    In such data, a label says for each row which response was chosen. The columns are told by their names:
    persona_a beside response_a, persona1 beside response1.
    """
    responses = [read[role] for role in ("response_1", "response_2") if role in read]
    ends = [
        {found[0] for name in both if (found := _NUMBER.search(name.lower()))}
        for both in (responses, wanted.values())
    ]
    if len(ends[0]) == 2 and ends[0] == ends[1]:
        personas = " and ".join(map(repr, wanted.values()))
        raise InvalidArgumentError(
            f"{personas} seem to be the personas of {' and '.join(map(repr, responses))}, of which now one"
            " and now the other is chosen.",
            hint="Give columns of the chosen and of the rejected response's personas, with other names.",
        )


def _columns_of(
    original: Any, names: list[str], count: int | None = None
) -> Iterator[Mapping[str, Any]]:
    """Yield some columns' values of each row of a frame or dataset as a dict. `count`: of the first rows."""
    if package_of(original) == "datasets":
        table = original.select_columns(names).with_format("arrow")[:count]
        cells = [arrow_cells(table.column(name)) for name in names]
    elif package_of(original) == "pyarrow":
        cells = [arrow_cells(original.column(name).slice(0, count)) for name in names]
    else:
        frame = in_narwhals(original)[:count]
        cells = [cells_of(frame, name) for name in names]
    for values in zip(*cells, strict=True):
        yield dict(zip(names, values, strict=True))


def _row(
    place: int,
    read: SourceRow,
    given: Mapping[str, Any],
    wanted: Mapping[str, str],
    errors: str | None,
) -> PersonaRow:
    if read.preference is None:
        return PersonaRow(place, None, error=read.error, columns=read.columns)
    personas: dict[str, Persona | None] = {}
    error = None
    for side, name in wanted.items():
        try:
            personas[side] = _persona(name, given.get(name))
        except DataError as problem:
            error = error or str(problem)
    if error is None and not any(personas.values()):
        listed = " and ".join(map(repr, wanted.values()))
        told = given.get(errors) if errors else None
        said = isinstance(told, str) and not _is_nothing(told)
        error = str(told) if said else f"the row has no persona in {listed}."
    return PersonaRow(
        place,
        read.preference,
        chosen=personas.get("chosen"),
        rejected=personas.get("rejected"),
        error=error,
        columns=read.columns,
    )


def _persona(name: str, value: object) -> Persona | None:
    """Read the persona in a cell; None for a null, a blank text, or a word such as NULL.

    Raises:
        DataError: the cell of the column `name` holds something else than a sentence or a record.
    """
    if isinstance(value, Persona):
        return value
    if is_null(value) or (isinstance(value, str) and _is_nothing(value)):
        return None
    if isinstance(value, str) and _AS_JSON.match(value):
        value = parse_cell(name, value.strip(" \n`").removeprefix("json"))
        if isinstance(value, list) and len(value) == 1:
            return _persona(name, value[0])
    try:
        if isinstance(value, str):
            return Persona.parse(value)
        if isinstance(value, Mapping):
            return _record(name, value)
    except (ValidationError, InvalidArgumentError):
        raise DataError(
            f"{name!r} holds a persona that cannot be used: {str(value)!r:.80}.",
            hint=f"Give a sentence, or a record of {', '.join(_FIELDS)}, in text.",
        ) from None
    raise DataError(
        f"{name!r} is of type {type(value).__name__}, not a persona.",
        hint="Give a sentence, or a record of trait and preference.",
    )


def _is_nothing(text: str) -> bool:
    """Whether a text is blank, or a word that programs write for a missing value, such as NULL."""
    return not text.strip() or text.strip() in CSV_NULLS


def _record(name: str, value: Mapping[Any, Any]) -> Persona | None:
    fields = {key: _plain(each) for key, each in value.items() if not is_null(each)}
    if not fields:
        return None
    if "sentence" in fields and "trait" not in fields and "preference" not in fields:
        parsed = Persona.parse(fields.pop("sentence"))
        return Persona(**{**parsed.model_dump(), **fields})
    phrases = [fields.get("trait", name), fields.get("preference", name)]  # one may be missing
    persona = None if "sentence" not in fields and "" in phrases else Persona(**fields)
    if persona is None or (persona.sentence is None and not (persona.trait and persona.preference)):
        raise DataError(
            f"{name!r} holds a record without a trait or a preference.", hint="Give both of them."
        )
    return persona


def _plain(value: Any) -> Any:
    """Return a NumPy array as a list: pandas holds flags as an array. Any other value stays as it is."""
    return value.tolist() if type(value).__module__ == "numpy" else value
