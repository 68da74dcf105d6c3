"""Read a stream of rows (dicts, tuples or `Preference`s) whose schema its first rows show."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from typing import Any, Final

from ..exceptions import DataError, InvalidArgumentError, PersonaInferError
from ..preferences.cells import ABSENT, without_na
from ..preferences.column_names import matches, vague_prompt, widened, with_later_columns
from ..preferences.conversations import read_pair, read_prompt
from ..preferences.recognition import FEW, LOOK_AHEAD, check_named, recognise, settle
from ..preferences.schemas import Mapped, Schema
from ..preferences.turns import ROLES, check_text
from ..records import Preference
from .arrow_columns import size_of
from .files import CSV_NULLS, SUPPORTED, BrokenRow, CsvRow
from .source_rows import (
    NO_ROWS,
    PreferenceSource,
    SourceRow,
    Valued,
    checked_row,
    read_row,
    several_rows,
    too_deep,
)

_IMPLICIT_LOOK_AHEAD = 32  # rows without a prompt that are believed to have none
_LOOK_AHEAD_BYTES = 256 * 2**20  # of the first rows, which are held all together
_END: Final = object()
_UNNAMED = (Preference, tuple, list)
_WHOLE = re.compile(r"(\d+)\.0")
_LABEL_ROLES = ("label", "other_label")  # whose words may mean something: labels= says what


class RowStream:
    """Rows whose schema is recognised from the first of them.

    The first rows are kept for the first pass, so that an iterator loses none and a slow source is not
    started twice. Later passes start again.
    """

    def __init__(self, items: Iterable[object], told: Mapped) -> None:
        iterator = iter(items)
        self._items, self._told, self._is_iterator = items, told, iterator is items
        self._iterator: Iterator[object] | None = map(_by_name, iterator)
        self.head: list[object] = []
        self.schema = self._peek(self.head, self._iterator)
        if self.schema is None:
            _check_unnamed(self.head, self._iterator, told)

    def source(self, total: int | None) -> PreferenceSource:
        schema = self.schema
        name = schema.name if schema else "records" if self.head else NO_ROWS
        if schema and not schema.is_single:
            return PreferenceSource(self._several, shape=name, summary=self._describe)
        return PreferenceSource(self.rows, shape=name, total=total, summary=self._describe)

    def _describe(self) -> dict[str, Any]:
        return self.schema.describe() if self.schema else {}

    def rows(self) -> Iterator[SourceRow]:
        head, iterator = self._start()
        return self._read(deque(head), iterator)

    def _start(self) -> tuple[list[object], Iterator[object]]:
        if self._iterator is None and self._is_iterator:
            raise InvalidArgumentError(
                "this iterator was read already.", hint="Pass a list to read it again."
            )
        head, iterator = self.head, self._iterator or map(_by_name, self._items)
        self.head, self._iterator = [], None
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
        """The schema, to which the row may add columns that no row before it had."""
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
        """The schema of the dicts at the start of a stream; the rows that were read are appended to `head`.

        These are `LOOK_AHEAD` rows, or `_LOOK_AHEAD_BYTES` of them. The rows of an iterator may be slow to
        come: of these it reads only as many as it needs to be sure, one if that has chosen and rejected.
        """
        enough = 1
        for _ in _growing(head, iterator):
            if len(head) < enough:
                continue
            if dicts := _dicts(head):
                if self._is_iterator and (schema := _sure_schema(dicts, self._told)):
                    return schema
                enough = 2 * len(head)
            elif any(isinstance(item, _UNNAMED) for item in head):
                return None
        if not (dicts := _dicts(head)):
            return None
        return _settled(dicts, self._told)


def _settled(dicts: Sequence[Mapping[str, Any]], told: Mapped) -> Schema:
    """The schema of rows by the columns that half of them have, and then the others; else by all columns."""
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
    """A named tuple as a dict: the order of its fields says nothing. Other items as they are."""
    return item._asdict() if isinstance(item, tuple) and hasattr(item, "_asdict") else item


def _check_unnamed(head: list[object], iterator: Iterator[object], told: Mapped) -> None:
    """Check rows without names: tuples, records, and what is no row at all. Rows that are read join `head`.

    Raises:
        InvalidArgumentError: an option that is about columns, which tuples and records do not have.
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
    """Raise InvalidArgumentError for three names of columns: `csv.reader` gives its header as a row."""
    names = {text for text in first if isinstance(text, str)}
    if len(names) == 3 and any(names <= {*s.columns.values()} for s in matches(names, Mapped())):
        raise InvalidArgumentError(
            f"the first row holds names of columns: {tuple(first)!r:.200}.",
            hint="Pass csv.DictReader(file) in place of csv.reader(file), or the file's path.",
        )


def _is_triple(item: object) -> bool:
    return isinstance(item, tuple | list) and len(item) == 3


def _growing(head: list[object], iterator: Iterator[object]) -> Iterator[object]:
    """The rows of `head`, then further ones, which join it, up to `LOOK_AHEAD` or `_LOOK_AHEAD_BYTES`."""
    yield from list(head)
    room = _LOOK_AHEAD_BYTES - sum(size_of(item, _LOOK_AHEAD_BYTES) for item in head)
    while len(head) < LOOK_AHEAD and room > 0 and (item := next(iterator, _END)) is not _END:
        head.append(item)
        room -= size_of(item, room)
        yield item


def _sure_schema(dicts: Sequence[Mapping[str, Any]], told: Mapped) -> Schema | None:
    """The schema of these rows, or None if further rows could change it."""
    names = _names(dicts)
    if not set(told.columns.values()) <= set(names):
        return None
    try:
        found = settle(matches(names, told), lambda s: [_values(s, d) for d in dicts], names)
    except PersonaInferError:
        return None
    schema = found.schema
    if "other_label" in schema.columns:  # such names are told from texts by all of the first rows
        return None
    # A first row with other responses beside its own may have texts where later ones have their names.
    looks_again = schema.kind in ("conversations", "group") or schema.depends_on_values
    may_be_other = schema.beside or schema.labels_are_texts or vague_prompt(schema)
    looks_again = looks_again or bool(may_be_other)
    if looks_again and len(dicts) < _IMPLICIT_LOOK_AHEAD:
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
            values = [*schema.filled(values, lambda name: _csv_user(item.get(name, ABSENT)))]
        if (place := schema.place_of_user) is not None:
            values[place] = _csv_user(values[place])
        return values
    values = without_na([item.get(name, ABSENT) for name in schema.columns.values()])
    return schema.filled(values, item.get) if schema.others else values


def _csv_user(value: object) -> object:
    """A user of a CSV file, who is 7 also where a missing one made the column floats: "7.0"."""
    if not isinstance(value, str) or value in CSV_NULLS:
        return None
    is_whole = _WHOLE.fullmatch(value)
    return is_whole[1] if is_whole else value


def _named_row(schema: Schema | None, item: Mapping[str, Any], problem: str = "") -> SourceRow:
    columns = dict(item)
    if (deep := too_deep(columns)) is not None:
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
