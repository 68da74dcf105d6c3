"""Rows of preference data as `SourceRow`s: the `Preference` that each row states, or why there is none."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from ..exceptions import ContradictionError, shown_when_made
from ..preferences.cells import LEAVE_OUT
from ..preferences.conversations import pair_problem
from ..preferences.pairing import by_rater
from ..preferences.rows import read_all, read_group, read_one
from ..preferences.schemas import Schema
from ..records import Preference


class SourceRow(NamedTuple):
    """One row of the input: its preference, or an error that says why there is none and what to do.

    `columns` are the row's own columns for dicts and files; for frames, tuples and `Preference` it
    is empty.
    """

    preference: Preference | None
    error: str | None
    columns: Mapping[str, Any]


NO_ROWS: Final = "no rows"  # the shape of a source that is empty


class PreferenceSource:
    """An iterable of `SourceRow`, one for each input row, in order.

    `original` is the user's own frame or dataset (None for streams, and where a row makes several
    pairs), `total` the number of rows where it is known without reading them, `shape` the name of
    the recognised schema. Frames, files and lists can be iterated again, an iterator only once.
    """

    def __init__(
        self,
        rows: Callable[[], Iterator[SourceRow]],
        *,
        shape: str,
        total: int | None = None,
        original: Any = None,
        summary: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self._rows = rows
        self.shape = shape
        self.total = total
        self.original = original
        self._summary = summary

    @classmethod
    def empty(cls, original: Any = None) -> PreferenceSource:
        """A source of no rows, such as a frame's without any."""
        return cls(lambda: iter(()), shape=NO_ROWS, total=0, original=original)

    @property
    def is_empty(self) -> bool:
        """Whether the data had no row."""
        return self.shape == NO_ROWS

    @property
    def summary(self) -> dict[str, Any]:
        """How the rows were read: the columns by role, the coding of labels, what was counted so far.

        It is empty for tuples and records, which have no columns.
        """
        return self._summary()

    def __iter__(self) -> Iterator[SourceRow]:
        return self._rows()

    @shown_when_made
    def __repr__(self) -> str:
        return f"PreferenceSource(shape={self.shape!r}, total={self.total})"


_NESTED = f"a value is nested too deep to be read. {LEAVE_OUT}"
_DEEPEST = 50  # levels of a column's value: Arrow and JSON end the process or the run at some more
_TOO_DEEP = f"{{0!r:.80}} is nested deeper than {_DEEPEST} levels. Leave the column out, or store it as text."


_CONTAINERS: tuple[type, ...] = (dict, list, tuple, set, frozenset, type({}.values()))


def _container_types() -> tuple[type, ...]:
    # There are no arrays and series where the library was not imported.
    numpy, pandas = sys.modules.get("numpy"), sys.modules.get("pandas")
    # Another thread may import one just now: then it has no such name yet.
    found = getattr(numpy, "ndarray", None), getattr(pandas, "Series", None)
    return (*_CONTAINERS, *(kind for kind in found if kind is not None))


def holds_too_deep(values: Sequence[object]) -> bool:
    """Whether a value of a column is nested deeper than can be stored, or without end."""
    types = _container_types()
    if not any(issubclass(kind, types) for kind in set(map(type, values))):
        return False
    return any(isinstance(value, types) and _is_too_deep(value, types) for value in values)


def _is_too_deep(container: Any, types: tuple[type, ...]) -> bool:
    """Whether a container is nested deeper than can be stored; no recursion, each is seen once."""
    if not _holds_containers(container, types):  # as nearly all
        return False
    level = [container]  # those of one level that hold others
    for _ in range(_DEEPEST - 1):
        inner = (
            each
            for one in level
            for each in _items(one)
            if isinstance(each, types) and _holds_containers(each, types)
        )
        level = list({id(each): each for each in inner}.values())
        if not level:
            return False
    return True


_FLAT = {str, int, float, bool, type(None)}


def _holds_containers(one: Any, types: tuple[type, ...]) -> bool:
    kinds = set(map(type, _items(one)))  # a loop over the values takes four times as long
    return not kinds <= _FLAT and any(issubclass(kind, types) for kind in kinds)


def _items(one: Any) -> Iterable[Any]:
    """What a container holds; of an array of numbers nothing that could be one."""
    items: Iterable[Any] = one
    if isinstance(one, dict):
        items = one.values()
    elif not isinstance(one, _CONTAINERS):
        array = one if hasattr(one, "flat") else one.to_numpy() if one.dtype == object else None
        items = () if array is None or not array.dtype.hasobject else array.flat
    return items


def too_deep(columns: Mapping[str, Any]) -> SourceRow | None:
    """The error of a row with a value that is nested too deep, without that value; None: it has none."""
    types = _container_types()
    deep = [
        name
        for name, value in columns.items()
        if isinstance(value, types) and _is_too_deep(value, types)
    ]
    if not deep:
        return None
    kept = {name: value for name, value in columns.items() if name not in deep}
    return SourceRow(None, _TOO_DEEP.format(deep[0]), kept)


Valued = tuple[Sequence[object], Mapping[str, Any]]  # the values of a schema's columns, and the row


def single_rows(schema: Schema, rows: Iterable[Valued]) -> Iterator[SourceRow]:
    schema.counts.clear()
    for values, columns in rows:
        yield read_row(schema, values, columns)


def several_rows(schema: Schema, rows: Iterable[Valued]) -> Iterator[SourceRow]:
    """Read data in which one row makes several pairs, or several rows make one."""
    schema.counts.clear()
    if schema.kind != "group":
        for values, columns in rows:
            if (deep := too_deep(columns)) is not None:
                yield deep
                continue
            yield from _read_several(partial(read_all, schema, values), columns, schema)
        return
    before: set[int] = set()  # hashes of the keys: prompts can be long
    for key, group in by_rater(rows, lambda row: schema.rater_key(row[0])):
        if hash(key) in before:
            schema.counts["prompts_apart"] += 1
        before.add(hash(key))
        shared = {
            name: value
            for name, value in group[0][1].items()
            if not holds_too_deep([value])
            and all(_is_same(other.get(name), value) for _, other in group)
        }
        cells = [values for values, _ in group]
        yield from _read_several(partial(read_group, schema, cells), shared, schema)


def _is_same(one: object, other: object) -> bool:
    try:
        return bool(one == other)
    except (ValueError, TypeError):  # arrays; pandas' NA
        return repr(one) == repr(other)


def _read_several(
    read: Callable[[], list[Preference]], columns: Mapping[str, Any], schema: Schema
) -> Iterator[SourceRow]:
    schema.counts["prompts"] += 1
    try:
        found = read()
    except (ValueError, RecursionError) as error:
        schema.counts["prompts_without_a_pair"] += 1
        said = _NESTED if isinstance(error, RecursionError) else str(error)
        yield SourceRow(None, said, columns)
        return
    schema.counts["pairs_made"] += len(found)
    for preference in found:
        yield checked_row(preference, columns)


def read_row(schema: Schema, values: Sequence[object], columns: Mapping[str, Any]) -> SourceRow:
    try:
        preference = read_one(schema, values)
    except ContradictionError:
        raise
    except ValueError as error:  # a DataError, or Python's refusal to print a gigantic integer
        return SourceRow(None, str(error), columns)
    except RecursionError:
        return SourceRow(None, _NESTED, columns)
    return checked_row(preference, columns)


def checked_row(preference: Preference, columns: Mapping[str, Any]) -> SourceRow:
    problem = pair_problem(preference)
    return SourceRow(None if problem else preference, problem, columns)
