"""Find out whether `chosen` and `rejected` hold the responses, or only name them.

In some files the columns `chosen` and `rejected` hold "response_b", "b", "2", the name of a model, or a place
in a list of responses. Such a name must not become the response.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ..exceptions import DataError
from .cells import is_null, parse_cell, plain
from .labels import label_key, label_number, word_verdict
from .schemas import Schema

# A function that returns the first rows, as values in the order of a schema's columns.
Head = Callable[[Schema], Sequence[Sequence[object]]]
_LONGEST = 80  # a name has at most so many characters
_LEAST_SHARE = 0.95  # at least so large a share of the first rows must hold names
_ENOUGH = 5  # the same words in so many rows are no chance
_PAIR_KINDS = ("pair", "conversations")
_WORD_FOR_SIDE = re.compile(
    r"(?:response|output|completion|model|candidate|assistant)[ _-]?[0-9a-d]", re.I
)
# It may be a quiz's answer, too.
_WORD_FOR_CHOICE = re.compile(r"(?:answer|option)[ _-]?[0-9a-d]", re.I)
_OF_TEXTS = re.compile(
    "response|answer|output|completion|candidate|generation|text|option|choice|message|reply|replies",
    re.I,
)
_NAMING_KEY = re.compile(r"(?:^|_)(?:id|name|model|key|label|letter)$", re.I)
_MODEL_KEYS = ("model", "model_name", "name", "id")


def without_names(schemas: Sequence[Schema], head: Head, names: Sequence[object]) -> list[Schema]:
    """Leave out schemas that would read the names of responses as texts of responses.

    The columns of chosen and rejected hold names if nearly all of the first rows (95 %) do: the response "a"
    in a single row is a text.

    Args:
        schemas: the candidates, the likeliest first.
        head: a function schema -> the first rows, as values in the order of the schema's columns.
        names: the names of all columns of the data.

    Returns:
        All schemas if chosen and rejected hold texts; else those that find the responses in other columns.

    Raises:
        DataError: chosen and rejected hold names, and no schema finds the responses that they name.
    """
    pairs = [schema for schema in schemas if schema.kind in _PAIR_KINDS]
    if not pairs or not (found := _named(pairs[0], head, names)):
        return list(schemas)
    rest = [schema for schema in schemas if schema.kind not in _PAIR_KINDS]
    if not found.is_known and not pairs[0].told.labels:  # nobody knows which text a name means
        rest = [schema for schema in rest if "other_label" not in schema.columns]
    if rest:
        return rest
    chosen, rejected = (pairs[0].columns[role] for role in ("chosen", "rejected"))
    named = pairs[0].beside
    example = {role: named.get(role, "…") for role in ("response_1", "response_2")}
    example["label"] = chosen
    if "other_chosen" in named:
        example = {role: named[f"other_{role}"] for role in ("chosen", "rejected")}
    raise DataError(
        f"{chosen!r} and {rejected!r} do not hold responses: in each of the first rows they name"
        f" them, as {found.chosen!r} and {found.rejected!r} do.",
        hint="If these words are the answers, say so:"
        f" columns={{'chosen': {chosen!r}, 'rejected': {rejected!r}}}. If not, put the texts there, or, where"
        " other columns hold two responses, say which:",
        argument="columns",
        example=example,
    )


class _Named(NamedTuple):
    """What chosen and rejected hold in one row, if it names responses.

    `is_known`: whether it is clear which responses the names mean.
    """

    chosen: object
    rejected: object
    is_known: bool


def _named(schema: Schema, head: Head, names: Sequence[object]) -> _Named | None:
    """Return an example of the names that chosen and rejected hold; None if they hold texts."""
    both = ("chosen", "rejected")
    rows = _rows(schema, {**{role: schema.columns[role] for role in both}, **schema.beside}, head)
    told = [row for row in rows if not any(is_null(row[role]) for role in both)]
    short = [row for row in told if _may_name(*(plain(row[role]) for role in both))]
    long = len(told) - len(short)
    short = [row for row in short if label_key(row["chosen"]) != label_key(row["rejected"])]
    least = _LEAST_SHARE * (long + len(short))
    if not short or len(short) < least:
        return None
    called = tuple(schema.beside.get(role, "") for role in ("response_1", "response_2"))
    if {*both} <= schema.told.columns.keys():  # the caller may mean numbers or words as answers
        short = [{role: row[role] for role in row if role != "responses"} for row in short]
    naming = [row for row in short if _names_sides(row, called) or _are_words_for_sides(row)]
    if len(naming) < least and _names_columns(schema, short, head, names):
        naming = short
    if len(naming) < least:
        naming = _names_beside(schema, head, names)
    is_known = len(naming) >= least
    if not is_known and not _are_words_beside(schema, short):
        return None
    naming = naming if is_known else short
    return _Named(plain(naming[0]["chosen"]), plain(naming[0]["rejected"]), is_known)


def _are_words_beside(schema: Schema, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether chosen and rejected hold the same words again and again, beside two texts in other columns.

    Such words, none of which is a text of its own row, may be names of models, or the data's own names for
    the responses, such as "#1" and "#2".
    """
    if len(rows) < _ENOUGH or schema.told.columns:
        return False
    words = [{str(plain(row[role])).strip() for role in ("chosen", "rejected")} for row in rows]
    others = (("response_1", "response_2"), ("other_chosen", "other_rejected"))
    return len(set().union(*words)) <= len(words) and any(
        _are_other_texts(words, [[plain(row[role]) for role in roles] for row in rows])
        for roles in others
        if roles[0] in schema.beside
    )


def _are_other_texts(words: Sequence[set[str]], values: Sequence[Sequence[object]]) -> bool:
    """Whether the texts in `values` mostly differ between rows, and none is a word of its own row."""
    texts = [{text.strip() for text in row if isinstance(text, str)} for row in values]
    differ = len(set().union(*texts)) > max(2, len(texts) / 2)
    return differ and not any(map(set.intersection, words, texts))


def _rows(schema: Schema, columns: Mapping[str, str], head: Head) -> list[dict[str, Any]]:
    wanted = replace(schema, columns=columns)
    return [dict(zip(columns, values, strict=True)) for values in head(wanted)]


def _may_name(*values: object) -> bool:
    return all(
        (isinstance(value, str) and len(value) <= _LONGEST)
        or (isinstance(value, int) and not isinstance(value, bool) and value.bit_length() <= 64)
        for value in values
    )


def _names_sides(row: Mapping[str, Any], called: tuple[str, ...]) -> bool:
    """Whether chosen and rejected name two responses that are in other columns of the row.

    Args:
        row: role -> value.
        called: the columns of response_1 and response_2; "" if there is none.
    """
    chosen, rejected = (plain(row[role]) for role in ("chosen", "rejected"))
    if "responses" in row:
        return _names_places(chosen, rejected, _opened(row["responses"]))
    texts = [plain(row[role]) for role in ("response_1", "response_2") if role in row]
    if chosen in texts or rejected in texts:
        return False
    models = [plain(row[role]) for role in ("model_1", "model_2") if role in row]
    if models and {chosen, rejected} == set(filter(_may_name, models)):
        return True
    if len(texts) < 2 or any(map(is_null, texts)):
        return False
    sides = {_side(chosen, called), _side(rejected, called)}
    return sides in ({"first", "second"}, {"0", "1"}, {"1", "2"})


def _side(value: object, called: tuple[str, ...]) -> str | None:
    key = label_key(value)
    return word_verdict(key, (called[0], called[1])) or label_number(key)


def _opened(cell: object) -> object:
    """Return a plain value, with the list or dict that a text holds, as all of them are in a CSV file."""
    value = plain(cell)
    ends = value.strip() if isinstance(value, str) else ""
    if ends[:1] + ends[-1:] not in ("[]", "{}"):  # to find that prose is no list takes long
        return value
    try:
        return parse_cell("", value)
    except DataError:
        return value


def _names_places(chosen: object, rejected: object, responses: object) -> bool:
    """Whether chosen and rejected are places in a list of responses, or names of its items."""
    if not isinstance(responses, list | tuple) or chosen in responses or rejected in responses:
        return False
    for key in _MODEL_KEYS:
        called = [each.get(key) for each in responses if isinstance(each, Mapping)]
        if chosen in called and rejected in called:
            return True
    places = [label_key(value) for value in (chosen, rejected)]
    sides = {word_verdict(each, ("", "")) for each in places}
    if len(responses) == 2 and sides == {"first", "second"}:
        return True
    return all(each.isdecimal() and int(each) <= len(responses) for each in places)


def _names_columns(
    schema: Schema, rows: Iterable[Mapping[str, Any]], head: Head, names: Sequence[object]
) -> bool:
    """Whether all values of chosen and rejected are names of columns that hold texts or conversations."""
    found = {plain(row[role]) for row in rows for role in ("chosen", "rejected")}
    others = {name for name in names if isinstance(name, str)} - set(schema.columns.values())
    if not found <= others:
        return False
    cells = _rows(schema, {name: name for name in map(str, found)}, head)
    values = [value for row in cells for value in map(plain, row.values()) if not is_null(value)]
    return bool(values) and all(isinstance(value, str | list | tuple | Mapping) for value in values)


def _are_words_for_sides(row: Mapping[str, Any]) -> bool:
    """Whether chosen and rejected are words such as "response_1" and "response_2"."""
    both = [str(plain(row[role])).strip() for role in ("chosen", "rejected")]
    has_others = "responses" in row or "response_1" in row
    words = (_WORD_FOR_SIDE, _WORD_FOR_CHOICE) if has_others else (_WORD_FOR_SIDE,)
    return both[0] != both[1] and any(all(map(each.fullmatch, both)) for each in words)


def _names_beside(schema: Schema, head: Head, names: Sequence[object]) -> list[dict[str, Any]]:
    """Return the rows in which chosen and rejected name texts in other columns.

    A name may be a key of a dict of texts, a value (such as an id) in a dict that holds a text, the start or
    end of a column's name, or a place in a list. Places are not looked for where the caller named chosen and
    rejected.
    """
    is_told = {"chosen", "rejected"} <= schema.told.columns.keys()
    both = {role: schema.columns[role] for role in ("chosen", "rejected")}
    told = [plain(row[role]) for row in _rows(schema, both, head) for role in both]
    called = {str(value) for value in told if _may_name(value)}
    # Further columns are not read: they may hold images.
    others = {
        f"={name}": name
        for name in names
        if isinstance(name, str)
        and name not in schema.columns.values()
        and (_OF_TEXTS.search(name) or called & _parts(name))
    }
    if not others:
        return []
    naming: list[dict[str, Any]] = []
    for row in _rows(schema, both | others, head):
        values = [plain(row[role]) for role in both]
        if any(map(is_null, values)) or not _may_name(*values):
            continue
        cells = {name: _opened(row[key]) for key, name in others.items()}
        lists = [] if is_told else [each for each in cells.values() if _are_texts(each)]
        if (
            any(set(values) <= _called(cell) for cell in cells.values())
            or all(_is_in_a_name(str(value), cells) for value in values)
            or any(_names_places(values[0], values[1], each) for each in lists)
        ):
            naming.append(row)
    return naming


def _parts(name: str) -> set[str]:
    """Return the starts and ends of a column's name at underscores: "gpt4" and "output" of "gpt4_output".

    Longer ones than `_LONGEST` name no response and are left out: all parts of a name of 100,000 underscores
    would fill the memory.
    """
    start, end = name[: _LONGEST + 1], name[-_LONGEST - 1 :]
    starts = {start[:cut] for cut, letter in enumerate(start) if letter == "_"}
    return starts | {end[cut + 1 :] for cut, letter in enumerate(end) if letter == "_"}


def _called(cell: object) -> set[object]:
    """Return the names of the texts in a cell: keys of a dict of texts; ids and names in a list of dicts."""
    if isinstance(cell, Mapping):
        texts = {name for name, value in cell.items() if isinstance(value, str | list | Mapping)}
        return texts | _called(list(cell.values()))
    records = [each for each in cell if isinstance(each, Mapping)] if isinstance(cell, list) else []
    if len(records) < 2:
        return set()
    return {
        value
        for each in records
        for key, value in each.items()
        if _NAMING_KEY.search(str(key)) and _may_name(value)
    }


def _are_texts(cell: object) -> bool:
    return isinstance(cell, list | tuple) and all(isinstance(each, str | Mapping) for each in cell)


def _is_in_a_name(value: str, cells: Mapping[str, object]) -> bool:
    """Whether `value` begins or ends the name of a column (column -> cell) that holds a text in this row."""
    return any(isinstance(cell, str) and value in _parts(name) for name, cell in cells.items())
