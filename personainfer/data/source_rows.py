"""Read rows of preference data as `SourceRow`s, by a known schema or by one that the first rows show."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import chain, islice, repeat
from typing import Any, Final, NamedTuple

from ..exceptions import (
    ContradictionError,
    DataError,
    InvalidArgumentError,
    PersonaInferError,
    shown_when_made,
)
from ..preferences.cells import ABSENT, LEAVE_OUT, parse_cell, without_na
from ..preferences.column_names import (
    check_roles,
    matches,
    vague_prompt,
    widened,
    with_later_columns,
)
from ..preferences.conversations import pair_problem, read_pair, read_prompt
from ..preferences.labels import check_labels
from ..preferences.pairing import by_rater
from ..preferences.recognition import FEW, LOOK_AHEAD, check_named, recognise, settle
from ..preferences.rows import read_all, read_group, read_one
from ..preferences.schemas import Mapped, Schema
from ..preferences.turns import ROLES, check_text
from ..records import Preference
from .column_values import DEEPEST, RECORD, are_flat, holds_too_deep, json_text, size_of
from .file_formats import CSV_NULLS, SUPPORTED, BrokenRow, CsvRow, FirstRows


class SourceRow(NamedTuple):
    """One row of the input, as it was read.

    Attributes:
        preference: the pair; None: there is none.
        error: why there is no pair, and what to do; None: there is one.
        columns: the row's own columns, by name, for dicts and files. Frames have the columns themselves, and
            tuples and `Preference` have none: then it is empty.
    """

    preference: Preference | None
    error: str | None
    columns: Mapping[str, Any]


NO_ROWS: Final = "no rows"  # the shape of a source that is empty
_NO_SIDES: Final = frozenset("prompt id user system tools".split())  # roles that tell no sides


class PreferenceSource:
    """An iterable of `SourceRow` in the order of the input.

    There is one for each input row; if a prompt has several responses, one for each pair. Frames, files and
    lists can be iterated again. An iterator can be read once: a second iteration raises
    InvalidArgumentError. If a file is damaged, a streamed data set breaks off, or a label contradicts how
    earlier ones were read, iterating raises DataError.

    Attributes:
        shape: the name of the recognised schema; "records" for tuples and `Preference`, "no rows" for no
            data.
        total: how many rows there are; None if only reading them tells.
        original: the user's own frame or dataset; None for files and iterables, and if a prompt has several
            responses.
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
        """Make a source without rows. `original` is the user's frame, if the data is one."""
        return cls(lambda: iter(()), shape=NO_ROWS, total=0, original=original)

    @property
    def is_empty(self) -> bool:
        """Whether the data had no row."""
        return self.shape == NO_ROWS

    @property
    def summary(self) -> dict[str, Any]:
        """How the rows were read, by name: "schema", "columns" (role -> column), "labels", options, counts.

        Counts are those of the rows read so far. What does not apply to the data is left out. {} for tuples
        and `Preference`, which have no columns.
        """
        return self._summary()

    def __iter__(self) -> Iterator[SourceRow]:
        return self._rows()

    @shown_when_made
    def __repr__(self) -> str:
        return f"PreferenceSource(shape={self.shape!r}, total={self.total})"


_NESTED = f"a value is nested too deep to be read. {LEAVE_OUT}"
_TOO_DEEP = f"{{0!r:.80}} is nested deeper than {DEEPEST} levels. Leave the column out, or store it as text."


def too_deep(columns: Mapping[str, Any]) -> SourceRow | None:
    """Make the row, with an error, for a row that has a value nested deeper than can be stored.

    Args:
        columns: the row's own columns.

    Returns:
        The row without such values; None if it has none.
    """
    deep = [name for name, value in columns.items() if holds_too_deep([value])]
    if not deep:
        return None
    kept = {name: value for name, value in columns.items() if name not in deep}
    return SourceRow(None, _TOO_DEEP.format(deep[0]), kept)


Valued = tuple[Sequence[object], Mapping[str, Any]]  # the values of a schema's columns, and the row


def single_rows(schema: Schema, rows: Iterable[Valued]) -> Iterator[SourceRow]:
    """Read data in which a row makes at most one pair. Counts of the schema start again.

    Raises:
        ContradictionError: a label contradicts how earlier ones were read.
    """
    schema.counts.clear()
    for values, columns in rows:
        yield read_row(schema, values, columns)


def several_rows(schema: Schema, rows: Iterable[Valued]) -> Iterator[SourceRow]:
    """Read data in which one row makes several pairs, or several rows make one.

    Counts of the schema start again.

    Yields:
        A row for each pair, or one with an error for a row, or a group of rows, that makes none. For a group,
        it has the columns that are equal in all rows of the group.
    """
    schema.counts.clear()
    if schema.kind != "group":
        for values, columns in rows:
            if not are_flat(columns.values()) and (deep := too_deep(columns)) is not None:
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
    """Whether two values are the same, whatever they are; arrays and tensors are compared as JSON text.

    The order of a dict's keys does not count.
    """
    if type(one) is type(other) and isinstance(one, str | int):
        return one == other
    if isinstance(one, dict) and isinstance(other, dict):  # in whatever order their keys are
        return one.keys() == other.keys() and all(_is_same(one[key], other[key]) for key in one)
    return json_text(one) == json_text(other)


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
    """Read one row by its schema.

    Args:
        schema: the schema of the data.
        values: the row's values, in the order of the schema's columns.
        columns: the row's own columns, which the result gets.

    Returns:
        The row; with an error if it cannot be used.

    Raises:
        ContradictionError: a label contradicts how earlier ones were read.
    """
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
    """Make the row of a preference, or one with an error if the pair cannot be used (equal responses …)."""
    problem = pair_problem(preference)
    return SourceRow(None if problem else preference, problem, columns)


# Rows whose schema the first of them show

_IMPLICIT_LOOK_AHEAD = 32  # rows without a prompt that are believed to have none
_LOOK_AHEAD_BYTES = 256 * 2**20  # of the first rows, which are held all together
_END: Final = object()
_UNNAMED = (Preference, tuple, list)
_WHOLE = re.compile(r"(0|[1-9]\d{0,19})\.0")  # up to 2**64; such as "007.0" is no number
_LABEL_ROLES = ("label", "other_label")  # whose words may mean something: labels= says what


class RowStream:
    """Rows, such as dicts, whose schema is recognised from the first of them.

    These are read when the object is made, and kept for the first pass: no row of an iterator is lost, and a
    slow source is not started twice. A later pass iterates `items` again.

    Args:
        items: dicts, tuples, `Preference` or `BrokenRow`; or the `FirstRows` of these.
        told: the caller's options about the data.

    Attributes:
        head: the rows that were read ahead; [] after the first pass has begun.
        schema: the schema; None for tuples and `Preference`, as long as no dict has come.

    Raises:
        InvalidArgumentError: an option does not apply to this data, or the first row holds names of columns.
        DataError: no schema fits, or none of the first rows can be read.
    """

    def __init__(self, items: Iterable[object], told: Mapped) -> None:
        self._count = items.count if isinstance(items, FirstRows) else None
        items = items.rows if isinstance(items, FirstRows) else items
        iterator = iter(items)
        self._items, self._told, self._is_iterator = items, told, iterator is items
        self._iterator: Iterator[object] | None = map(_by_name, iterator)
        self.head: list[object] = []
        self.schema = self._peek(self.head, self._iterator)
        if self.schema is None:
            _check_unnamed(self.head, self._iterator, told)

    def source(self, total: int | None) -> PreferenceSource:
        """Make the source of these rows. `total` is how many items there are; None: unknown."""
        schema = self.schema
        name = schema.name if schema else "records" if self.head else NO_ROWS
        if schema and not schema.is_single:
            return PreferenceSource(self._several, shape=name, summary=self._describe)
        return PreferenceSource(self.rows, shape=name, total=total, summary=self._describe)

    def _describe(self) -> dict[str, Any]:
        return self.schema.describe() if self.schema else {}

    def rows(self) -> Iterator[SourceRow]:
        """Read the items as rows, one for each.

        Raises:
            InvalidArgumentError: `items` is an iterator, and was read before.
        """
        head, iterator = self._start()
        return self._read(deque(head), iterator)

    def _start(self) -> tuple[list[object], Iterator[object]]:
        if self._iterator is None and self._is_iterator:
            raise InvalidArgumentError(
                "this iterator was read already.", hint="Pass a list to read it again."
            )
        head, iterator = self.head, self._iterator or map(_by_name, self._items)
        self.head, self._iterator = [], None
        if self._count is not None:
            head = head[: self._count]
            iterator = islice(iterator, self._count - len(head))
        return head, iterator

    def _several(self) -> Iterator[SourceRow]:
        head, iterator = self._start()
        assert self.schema is not None
        return several_rows(self.schema, self._valued(chain(head, iterator)))

    def _valued(self, items: Iterable[object]) -> Iterator[Valued]:
        for item in items:
            assert self.schema is not None
            if isinstance(item, Mapping):
                with suppress(DataError):
                    schema = self._schema_of(item)
                    yield _values(schema, item), item
                    continue
            self.schema.counts["rows_not_read"] += 1

    def _schema_of(self, item: Mapping[str, object]) -> Schema:
        """Return the schema for a row. Columns that no row before had may take roles that are free so far.

        Raises:
            DataError: such a column is likelier to hold the prompt or the choice than the one read so far.
        """
        assert self.schema is not None
        if not item.keys() <= self.schema.present:
            self.schema = with_later_columns(self.schema, item)
        return self.schema

    def _read(self, queue: deque[object], iterator: Iterator[object]) -> Iterator[SourceRow]:
        if self.schema is not None:
            self.schema.counts.clear()
        while True:
            item = queue.popleft() if queue else next(iterator, _END)
            if item is _END:
                return
            known = self.schema
            if type(item) is dict and known is not None and item.keys() <= known.present:
                yield _named_row(known, item)  # as nearly all are
                continue
            if not isinstance(item, Mapping):
                yield _unnamed_row(item)
                continue
            problem = ""
            if self.schema is None:  # the first dict after other rows
                head = [item, *queue]
                try:
                    self.schema = self._peek(head, iterator)
                except PersonaInferError as error:
                    problem = str(error)
                queue = deque(head[1:])
            schema = None
            if not problem:
                try:
                    schema = self._schema_of(item)
                except DataError as error:
                    problem = str(error)
            yield _named_row(schema, item, problem)

    def _peek(self, head: list[object], iterator: Iterator[object]) -> Schema | None:
        """Find the schema by the first rows of a stream; None if no dict is among them.

        Rows are read up to `LOOK_AHEAD` rows or `_LOOK_AHEAD_BYTES`. The rows of an iterator may come slowly:
        of them only as many are read as make the schema certain, one if it has chosen and rejected.

        Args:
            head: rows that were read before; the rows that are read now are appended.
            iterator: further rows.
        """
        enough = 1
        for _ in _growing(head, iterator):
            if len(head) < enough:
                continue
            if dicts := _dicts(head):
                told = self._with_options(dicts)
                if self._is_iterator and (schema := _sure_schema(dicts, told)):
                    return schema
                enough = 2 * len(head)
            elif any(isinstance(item, _UNNAMED) for item in head):
                return None
        if not (dicts := _dicts(head)):
            return None
        return _settled(dicts, self._with_options(dicts))

    def _with_options(self, dicts: Sequence[Mapping[str, Any]]) -> Mapped:
        if RECORD not in dicts[0]:
            return self._told
        return with_options(self._told, dicts[0][RECORD], _names(dicts))


def record(cell: object) -> Mapping[str, Any]:
    """Return what infer's lines, or saved tables, hold in a column `personainfer`; {}: it is not ours."""
    with suppress(DataError):
        cell = parse_cell(RECORD, cell)  # a table and a CSV file hold it as text
    parts = ("columns", "labels", "preference")
    found = {name: cell.get(name) for name in parts} if isinstance(cell, Mapping) else {}
    return {name: part for name, part in found.items() if isinstance(part, Mapping)}


def with_options(told: Mapped, cell: object, names: Iterable[str]) -> Mapped:
    """Add the options by which infer read its lines, as a cell of one tells.

    Options of the caller come first: of columns that tell the sides, either the caller's or infer's are used.
    Infer's are not used if all of these were renamed, and the data now has a column "chosen" and one
    "rejected".

    Args:
        told: the caller's options.
        cell: of the column `personainfer`; one of the data's own is not read.
        names: the columns of the data.
    """
    ours, present = record(cell), set(names)
    try:
        check_roles(columns := ours.get("columns", {}))
        labels = check_labels(ours.get("labels"))
    except InvalidArgumentError:  # the data's own
        return told
    sides = {role: name for role, name in columns.items() if role not in _NO_SIDES}
    are_renamed = present.isdisjoint(sides.values()) and {"chosen", "rejected"} <= present
    if are_renamed or told.columns.keys() - _NO_SIDES:
        sides = {}
    others = {
        role: columns[role] for role in _NO_SIDES & columns.keys() if columns[role] in present
    }
    return told._replace(columns={**sides, **others, **told.columns}, labels=told.labels or labels)


def _settled(dicts: Sequence[Mapping[str, Any]], told: Mapped) -> Schema:
    """Find the schema of rows.

    The columns that at least half of the rows have decide, and the other columns are added. If those decide
    nothing, all columns do.
    """
    names = _names(dicts)
    check_named(names, told)
    usual = [name for name in names if 2 * sum(name in item for item in dicts) >= len(dicts)]

    def values(schema: Schema) -> list[Sequence[object]]:
        return [_values(schema, item) for item in dicts]

    is_csv = all(type(item) is CsvRow for item in dicts)
    try:
        usually = [replace(each, is_csv=is_csv) for each in matches(usual, told)]
        schemas = widened(settle(usually, values, usual).schema, names)
    except PersonaInferError:
        schemas = recognise(names, told)
    return settle([replace(each, is_csv=is_csv) for each in schemas], values, names).schema


def _dicts(items: Iterable[object]) -> list[Mapping[str, Any]]:
    return [item for item in items if isinstance(item, Mapping)]


def _by_name(item: object) -> object:
    """Return a named tuple as a dict, since the order of its fields says nothing; other items as they are."""
    return item._asdict() if isinstance(item, tuple) and hasattr(item, "_asdict") else item


def _check_unnamed(head: list[object], iterator: Iterator[object], told: Mapped) -> None:
    """Check the first rows if none of them is a dict: tuples, records, and what is no row at all.

    Args:
        head: the first rows; rows that are read here are appended.
        iterator: further rows.
        told: the caller's options about the data.

    Raises:
        InvalidArgumentError: an option is about columns, which tuples and records do not have.
        DataError: none of the first rows can be read.
    """
    problem: str | None = None
    # A role under its own name, such as user="user", is what a record has.
    renamed = {ours: yours for ours, yours in told.columns.items() if ours != yours}
    options = told._replace(columns=renamed)._asdict()
    given = [name for name, value in options.items() if value]
    if given and any(isinstance(item, _UNNAMED) for item in head):
        raise InvalidArgumentError(
            f"{given[0]}= needs rows with named columns; these are (prompt, chosen, rejected) or Preference.",
            hint="Leave the option out, or pass dicts.",
            argument=given[0],
        )
    if head and _is_triple(head[0]):
        _refuse_header(head[0])
    for count, item in enumerate(_growing(head, iterator), 1):
        if isinstance(item, Mapping) or (row := _unnamed_row(item)).error is None:
            return
        if count == 1:
            problem = row.error
    are_rows = any(isinstance(item, Preference) or _is_triple(item) for item in head)
    if all(isinstance(item, BrokenRow) for item in head) or (are_rows and len(head) < FEW):
        return
    raise DataError(
        f"none of the first {len(head)} rows can be read. The first: {problem}",
        hint="" if are_rows else SUPPORTED,
    )


def _refuse_header(first: Any) -> None:
    """Raise InvalidArgumentError for three names of columns: `csv.reader` gives a file's header as a row."""
    names = {text for text in first if isinstance(text, str)}
    if len(names) == 3 and any(names <= {*s.columns.values()} for s in matches(names, Mapped())):
        raise InvalidArgumentError(
            f"the first row holds names of columns: {tuple(first)!r:.200}.",
            hint="Pass csv.DictReader(file) in place of csv.reader(file), or the file's path.",
        )


def _is_triple(item: object) -> bool:
    return isinstance(item, tuple | list) and len(item) == 3


def _growing(head: list[object], iterator: Iterator[object]) -> Iterator[object]:
    """Yield the rows of `head`, then further ones, each of which is appended to `head` first.

    It ends at `LOOK_AHEAD` rows or `_LOOK_AHEAD_BYTES`.
    """
    yield from list(head)
    room = _LOOK_AHEAD_BYTES - sum(size_of(item, _LOOK_AHEAD_BYTES) for item in head)
    while len(head) < LOOK_AHEAD and room > 0 and (item := next(iterator, _END)) is not _END:
        head.append(item)
        room -= size_of(item, room)
        yield item


def _sure_schema(dicts: Sequence[Mapping[str, Any]], told: Mapped) -> Schema | None:
    """Return the schema of these rows; None if further rows could change it."""
    names = _names(dicts)
    if not set(told.columns.values()) <= set(names):
        return None
    try:
        schemas = matches(names, told)
        found = settle(schemas, lambda s: [_values(s, d) for d in dicts], names)
    except PersonaInferError:
        return None
    schema = found.schema
    if "other_label" in schema.columns:  # such names are told from texts by all of the first rows
        return None
    # A first row with other responses beside its own may have texts where later ones have their names.
    may_be_other = schema.beside or schema.labels_are_texts or vague_prompt(schema)
    # Of several columns of users, or of system messages, the first row may have an empty one.
    has_several = any(each.others for each in schemas)
    looks_again = schema.kind in ("conversations", "group") or schema.depends_on_values
    if (looks_again or may_be_other or has_several) and len(dicts) < _IMPLICIT_LOOK_AHEAD:
        return None
    if schema.coding is not None and not schema.coding.is_sure:
        return None
    return schema if found.is_readable else None


def _names(dicts: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for item in dicts for key in item if isinstance(key, str)))


def _values(schema: Schema, item: Mapping[str, object]) -> Sequence[object]:
    if type(item) is CsvRow:
        cells = ((role, item.get(name, ABSENT)) for role, name in schema.columns.items())
        values: list[object] = [
            None if v in CSV_NULLS and role not in _LABEL_ROLES else v for role, v in cells
        ]
        if schema.others:
            rest = {name: None if value in CSV_NULLS else value for name, value in item.items()}
            values = [*schema.filled(values, rest.get)]
        for place in schema.places_of_ids:
            if whole := _WHOLE.fullmatch(str(values[place])):
                number = float(whole[1])  # pandas writes 7 as "7.0" beside nulls
                values[place] = whole[1] if number < 2**53 else number
        return values
    values = without_na(list(map(item.get, schema.columns.values(), repeat(ABSENT))))
    return schema.filled(values, item.get) if schema.others else values


def _named_row(schema: Schema | None, item: Mapping[str, Any], problem: str = "") -> SourceRow:
    columns = dict(item)
    if not are_flat(columns.values()) and (deep := too_deep(columns)) is not None:
        return deep
    if schema is None:
        return SourceRow(None, problem, columns)
    return read_row(schema, _values(schema, item), columns)


def _unnamed_row(item: object) -> SourceRow:
    if isinstance(item, Preference):
        return _record_row(item)
    if isinstance(item, BrokenRow):
        return SourceRow(None, item.error, {})
    if type(item) is tuple or isinstance(item, list):
        return _tuple_row(item)
    kind = type(item).__name__  # of a tuple, too, whose fields may have names of their own
    return SourceRow(None, f"the row is of type {kind}, not a dict, tuple or Preference.", {})


_ROLES = frozenset(ROLES.values())


def _record_row(item: Preference) -> SourceRow:
    if isinstance(item.prompt, tuple) and any(turn.role not in _ROLES for turn in item.prompt):
        try:
            item = item.model_copy(update={"prompt": read_prompt(item.prompt)})
        except DataError as error:
            return SourceRow(None, str(error), {})
    return checked_row(item, {})


def _tuple_row(item: Sequence[object]) -> SourceRow:
    if len(item) != 3:
        return SourceRow(
            None, f"the row has {len(item)} fields, not (prompt, chosen, rejected).", {}
        )
    names = ("prompt", "chosen", "rejected")
    try:
        for name, value in zip(names, item, strict=True):
            check_text(name, value, is_response=name != "prompt")
        return checked_row(read_pair(names, item[0], item[1], item[2]), {})
    except DataError as error:
        return SourceRow(None, str(error), {})
