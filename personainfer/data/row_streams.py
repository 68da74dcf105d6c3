"""Read a stream of rows (dicts, tuples or `Preference`s) whose schema its first rows show."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Final

from ..exceptions import DataError, InvalidArgumentError, PersonaInferError
from ..preferences.cells import ABSENT
from ..preferences.column_names import matches
from ..preferences.conversations import read_pair
from ..preferences.recognition import FEW, LOOK_AHEAD, recognise, settle
from ..preferences.schemas import Mapped, Schema
from ..records import Preference
from .arrow_columns import size_of
from .files import CSV_NULLS, SUPPORTED, BrokenRow, CsvRow
from .source_rows import (
    NO_ROWS,
    PreferenceSource,
    SourceRow,
    checked_row,
    read_row,
    several_rows,
    too_deep,
)

_IMPLICIT_LOOK_AHEAD = 32  # rows without a prompt that are believed to have none
_LOOK_AHEAD_BYTES = 256 * 2**20  # of the first rows, which are held all together
_END: Final = object()
_UNNAMED = (Preference, tuple, list)
_LABEL_ROLES = ("label", "other_label")  # whose words may mean something: labels= says what


class RowStream:
    """Rows whose schema is recognised from the first of them.

    The first rows are kept for the first pass, so that an iterator loses none and a slow source is not
    started twice. Later passes start again.
    """

    def __init__(self, items: Iterable[object], told: Mapped) -> None:
        self._items, self._told = items, told
        self._iterator: Iterator[object] | None = iter(items)
        self.head: list[object] = []
        self.schema = _peek(self.head, self._iterator, told)
        if self.schema is None:
            _check_unnamed(self.head, self._iterator, told)

    def source(self, total: int | None) -> PreferenceSource:
        schema = self.schema
        name = schema.name if schema else "records" if self.head else NO_ROWS
        if schema and not schema.is_single:
            return PreferenceSource(self._several, shape=name, summary=schema.describe)
        summary = schema.describe if schema else dict
        return PreferenceSource(self.rows, shape=name, total=total, summary=summary)

    def rows(self) -> Iterator[SourceRow]:
        head, iterator = self._start()
        return self._read(deque(head), iterator)

    def _start(self) -> tuple[list[object], Iterator[object]]:
        head, iterator = self.head, self._iterator or iter(self._items)
        if self._iterator is None and iterator is self._items:
            raise InvalidArgumentError(
                "this iterator was read already.", hint="Pass a list to read it again."
            )
        self.head, self._iterator = [], None
        return head, iterator

    def _several(self) -> Iterator[SourceRow]:
        head, iterator = self._start()
        schema = self.schema
        assert schema is not None
        dicts = (
            (_values(schema, item), item)
            for item in chain(head, iterator)
            if isinstance(item, Mapping)
        )
        return several_rows(schema, dicts)

    def _read(self, queue: deque[object], iterator: Iterator[object]) -> Iterator[SourceRow]:
        schema = self.schema
        if schema is not None:
            schema.counts.clear()
        while True:
            item = queue.popleft() if queue else next(iterator, _END)
            if item is _END:
                return
            problem = ""
            if schema is None and isinstance(item, Mapping):  # the first dict after other rows
                head = [item, *queue]
                try:
                    schema = _peek(head, iterator, self._told)
                except PersonaInferError as error:
                    problem = str(error)
                queue = deque(head[1:])
            yield _stream_row(schema, item, problem)


def _peek(head: list[object], iterator: Iterator[object], told: Mapped) -> Schema | None:
    """The schema of the dicts at the start of a stream; the rows that were read are appended to `head`.

    It reads only as many rows as it needs to be sure: one if that row has chosen and rejected, up to
    `LOOK_AHEAD` if labels are numbers, or `_LOOK_AHEAD_BYTES` of them.
    """
    enough = 1
    room = _LOOK_AHEAD_BYTES - sum(size_of(item, _LOOK_AHEAD_BYTES) for item in head)
    while True:
        dicts = [item for item in head if isinstance(item, Mapping)]
        if not dicts and any(isinstance(x, _UNNAMED) for x in head):
            return None
        if dicts and len(head) >= enough:
            if schema := _sure_schema(dicts, told):
                return schema
            enough = 2 * len(head)
        is_full = len(head) >= LOOK_AHEAD or room <= 0
        if is_full or (item := next(iterator, _END)) is _END:
            break
        head.append(item)
        room -= size_of(item, room)
    if not dicts:
        return None
    names = _names(dicts)
    return settle(recognise(names, told), lambda s: [_values(s, d) for d in dicts], names).schema


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
    for count, item in enumerate(_growing(head, iterator), 1):
        row = _stream_row(None, item, "")
        if isinstance(item, Mapping) or row.error is None:
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
    looks_again = schema.kind in ("conversations", "group") or schema.depends_on_values
    if looks_again and len(dicts) < _IMPLICIT_LOOK_AHEAD:
        return None
    if schema.coding is not None and not schema.coding.is_sure:
        return None
    return schema if found.is_readable else None


def _names(dicts: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for item in dicts for key in item if isinstance(key, str)))


def _values(schema: Schema, item: Mapping[str, object]) -> list[object]:
    if type(item) is CsvRow:
        cells = ((role, item.get(name, ABSENT)) for role, name in schema.columns.items())
        return [None if v in CSV_NULLS and role not in _LABEL_ROLES else v for role, v in cells]
    return [item.get(name, ABSENT) for name in schema.columns.values()]


def _stream_row(schema: Schema | None, item: object, problem: str) -> SourceRow:
    if isinstance(item, Mapping):
        columns = dict(item)
        if (deep := too_deep(columns)) is not None:
            return deep
        return (
            read_row(schema, _values(schema, item), columns)
            if schema
            else SourceRow(None, problem, columns)
        )
    if isinstance(item, Preference):
        return checked_row(item, {})
    if isinstance(item, BrokenRow):
        return SourceRow(None, item.error, {})
    if isinstance(item, tuple | list):
        return _tuple_row(item)
    kind = type(item).__name__
    return SourceRow(None, f"the row is of type {kind}, not a dict, tuple or Preference.", {})


def _tuple_row(item: Sequence[object]) -> SourceRow:
    if len(item) != 3:
        return SourceRow(
            None, f"the row has {len(item)} fields, not (prompt, chosen, rejected).", {}
        )
    try:
        names = ("prompt", "chosen", "rejected")
        return checked_row(read_pair(names, item[0], item[1], item[2]), {})
    except DataError as error:
        return SourceRow(None, str(error), {})
