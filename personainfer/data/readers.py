"""Every container of preference data as one stream of `SourceRow`, in input order.

It does not know what a row must look like (shapes) nor what becomes of it. pandas, polars, datasets
and pyarrow are imported only for data that is theirs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from itertools import islice, repeat
from pathlib import Path
from typing import Any, Final, NamedTuple

from ..exceptions import DataError, InvalidArgumentError, PersonaInferError
from ..records import Message, Preference
from .files import SUPPORTED, BrokenRow, arrow_cells, check_readable, open_rows
from .schemas import (
    ABSENT,
    LEAVE_OUT,
    Shape,
    check_labels,
    check_roles,
    match,
    read_pair,
    recognise,
    surrogate_problem,
)

__all__ = [
    "SAME_TEXT",
    "PreferenceSource",
    "SourceRow",
    "pair_problem",
    "read_cells",
    "read_preferences",
]

SAME_TEXT: Final = f"chosen and rejected are the same text, so there is no preference. {LEAVE_OUT}"
_BATCH = 1024
_PEEK = 32
_END: Final = object()


class Mapped(NamedTuple):
    """What the caller says of the data: role to column, and label to verdict."""

    columns: Mapping[str, str]
    labels: Mapping[str, int]


class SourceRow(NamedTuple):
    """One row of the input: its preference, or in `error` why there is none and what to do.

    `columns` are the row's own columns for dicts and files; for frames, tuples and `Preference` it
    is empty.
    """

    preference: Preference | None
    error: str | None
    columns: Mapping[str, Any]


class PreferenceSource:
    """An iterable of `SourceRow`, one for each input row, in order.

    `original` is the user's own frame or dataset (None for streams), `total` the number of rows
    where it is known without reading them, `shape` the name of the recognised shape. Frames, files
    and lists can be iterated again; an iterator only once.
    """

    def __init__(
        self,
        rows: Callable[[], Iterator[SourceRow]],
        *,
        shape: str,
        total: int | None = None,
        original: Any = None,
    ) -> None:
        self._rows = rows
        self.shape = shape
        self.total = total
        self.original = original

    def __iter__(self) -> Iterator[SourceRow]:
        return self._rows()

    def __repr__(self) -> str:
        return f"PreferenceSource(shape={self.shape!r}, total={self.total})"


def read_preferences(
    data: object,
    *,
    columns: Mapping[str, str] | None = None,
    labels: Mapping[Any, str] | None = None,
) -> PreferenceSource:
    """Preference data of any supported kind as a stream of rows.

    Args:
        data: a pandas or polars frame, a pyarrow table, a Hugging Face dataset, a path, or an
            iterable of dicts, (prompt, chosen, rejected) tuples or `Preference`.
        columns: where names differ, our name to yours: `{"prompt": "question"}`. Our names are
            prompt, chosen, rejected, id, user, and, for two responses with a label that says which
            is better (1 or 2, "a" or "b"), response_1, response_2, label.

    Returns:
        The rows, lazily. A row that cannot be used has an error and costs no other row.

    Raises:
        InvalidArgumentError: the data is of no supported kind, a file or column does not exist.
        DataError: the columns are not recognised, or a file is not what its name says.
    """
    roles = Mapped(dict(columns or {}), check_labels(labels))
    check_roles(roles.columns)
    kinds = _kinds(data)
    if kinds & {"datasets.DatasetDict", "datasets.IterableDatasetDict"}:
        splits = ", ".join(map(repr, data))  # type: ignore[call-overload]
        raise InvalidArgumentError(
            f"a DatasetDict holds several datasets ({splits}).", hint="Pick one: data['train']."
        )
    if "datasets.Dataset" in kinds:
        return _from_dataset(data, roles)
    if "pyarrow.Table" in kinds:
        return _from_table(data, roles)
    if kinds & {"pandas.DataFrame", "polars.DataFrame", "polars.LazyFrame"}:
        return _from_frame(data, roles)
    if isinstance(data, str | Path):
        return _from_path(data, roles)
    return _from_iterable(data, roles)


def _kinds(data: object) -> set[str]:
    """The package and name of the classes of an object: known without importing the package."""
    return {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(data).__mro__}


# Frames and datasets: columns first

Batch = Iterable[Sequence[object]]


def _from_frame(data: Any, roles: Mapped) -> PreferenceSource:
    import narwhals as nw

    native = data.collect() if "polars.LazyFrame" in _kinds(data) else _held(data)
    names = list(native.columns)
    _refuse_twins(names)
    frame: Any = nw.from_native(native, eager_only=True)

    def batches(wanted: Sequence[str]) -> Iterator[Batch]:
        for start in range(0, len(frame), _BATCH):
            part = frame[start : start + _BATCH]
            yield zip(
                *(part.get_column(n).to_list() if n in names else repeat(ABSENT) for n in wanted),
                strict=False,
            )

    return _from_columns(names, batches, roles, total=len(frame), original=native)


def _held(frame: Any) -> Any:
    """The frame as it is now: its own may be sorted or cut in place. The values are not copied."""
    return frame.copy(deep=False) if "pandas.DataFrame" in _kinds(frame) else frame.clone()


def _from_table(data: Any, roles: Mapped) -> PreferenceSource:
    names = list(data.column_names)
    _refuse_twins(names)

    def batches(wanted: Sequence[str]) -> Iterator[Batch]:
        for start in range(0, len(data), _BATCH):
            yield _arrow_batch(data.slice(start, _BATCH), names, wanted)

    return _from_columns(names, batches, roles, total=len(data), original=data)


def _from_dataset(data: Any, roles: Mapped) -> PreferenceSource:
    names = list(data.column_names)

    def batches(wanted: Sequence[str]) -> Iterator[Batch]:
        # Only these columns, so that no image or audio beside them is decoded.
        view = data.select_columns([n for n in wanted if n in names]).with_format("arrow")
        for table in view.iter(batch_size=_BATCH):
            yield _arrow_batch(table, names, wanted)

    return _from_columns(names, batches, roles, total=len(data), original=data)


def _arrow_batch(table: Any, names: Sequence[str], wanted: Sequence[str]) -> Batch:
    columns = (arrow_cells(table.column(n)) if n in names else repeat(ABSENT) for n in wanted)
    return zip(*columns, strict=False)


def _refuse_twins(names: Sequence[object]) -> None:
    if twins := [name for name in names if names.count(name) > 1]:
        raise DataError(f"two columns have the name {twins[0]!r}.", hint="Rename or drop one.")


def _from_columns(
    names: Sequence[object],
    batches: Callable[[Sequence[str]], Iterator[Batch]],
    roles: Mapped,
    *,
    total: int,
    original: object,
) -> PreferenceSource:
    if not total:
        return PreferenceSource(lambda: iter(()), shape="no rows", total=0, original=original)
    shape = _shape(names, roles)
    wanted = tuple(shape.columns.values())
    shape.check(islice(next(batches(wanted)), _PEEK))

    def rows() -> Iterator[SourceRow]:
        for batch in batches(wanted):
            for values in batch:
                yield _read(shape, values, {})

    return PreferenceSource(rows, shape=shape.name, total=total, original=original)


def _shape(names: Sequence[object], roles: Mapped) -> Shape:
    # A name that is no text cannot be one of ours, but belongs in the list of what was found.
    found = [n if isinstance(n, str) else f"({n!r},)" for n in names]
    return recognise(found, roles.columns, roles.labels)


def read_cells(
    names: Sequence[object],
    cells: Callable[[str], Iterable[object]],
    columns: Mapping[str, str],
    labels: Mapping[Any, str] | None = None,
) -> list[SourceRow]:
    """The rows of one batch of a larger whole: all that it holds may be bad, and none of the rest.

    `cells` gives the values of a column, and is asked only for those that are needed.

    Raises:
        DataError, InvalidArgumentError: the names are not those of preference data.
    """
    _refuse_twins(names)
    shape = _shape(names, Mapped(columns, check_labels(labels)))
    values = (cells(n) if n in names else repeat(ABSENT) for n in shape.columns.values())
    return [_read(shape, row, {}) for row in zip(*values, strict=False)]


def _read(shape: Shape, values: Sequence[object], columns: Mapping[str, Any]) -> SourceRow:
    try:
        preference = shape.read(values)
    except ValueError as error:  # a DataError, or Python's refusal to print a gigantic integer
        return SourceRow(None, str(error), columns)
    return _checked(preference, columns)


def _checked(preference: Preference, columns: Mapping[str, Any]) -> SourceRow:
    problem = pair_problem(preference)
    return SourceRow(None if problem else preference, problem, columns)


def pair_problem(preference: Preference) -> str | None:
    """Why the texts of a preference cannot be used, with what to do; None if they can."""
    prompt = preference.prompt
    asked = prompt if isinstance(prompt, str) else prompt[-1].content if prompt else ""
    if not asked.strip():
        return f"prompt is empty: there is nothing to answer. {LEAVE_OUT}"
    chosen, rejected = preference.chosen.strip(), preference.rejected.strip()
    if not chosen or not rejected:
        return f"{'rejected' if chosen else 'chosen'} is empty. {LEAVE_OUT}"
    if chosen == rejected:
        return SAME_TEXT
    for name in ("prompt", "chosen", "rejected", "id", "user"):
        if not _encodable(getattr(preference, name)):
            return surrogate_problem(name)
    return None


def _encodable(value: str | tuple[Message, ...] | None) -> bool:
    if value is None or (type(value) is str and value.isascii()):
        return True
    if isinstance(value, tuple):
        return all(_encodable(each.role) and _encodable(each.content) for each in value)
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


# Streams: rows first


def _from_path(data: str | Path, roles: Mapped) -> PreferenceSource:
    rows, total = open_rows(data)
    stream = _Stream(rows, roles)
    check_readable(stream.head, f"{data} is not what its name says")
    return stream.source(total)


def _from_iterable(data: object, roles: Mapped) -> PreferenceSource:
    problem = None
    if isinstance(data, Mapping | Preference):
        problem = f"a single {type(data).__name__} is not rows."
    elif isinstance(data, tuple) and len(data) == 3 and all(isinstance(x, str) for x in data):
        problem = "a single (prompt, chosen, rejected) tuple is not rows."
    if problem:
        raise InvalidArgumentError(problem, hint="Pass a list of rows: [row].")
    no_rows = {"pandas.Series", "polars.Series", "builtins.bytes", "builtins.bytearray"}
    if _kinds(data) & no_rows or not _is_iterable(data):
        raise InvalidArgumentError(
            f"data of type {type(data).__name__} cannot be read.", hint=SUPPORTED
        )
    items: Any = data
    stream = _Stream(items, roles)
    check_readable(stream.head, "the input cannot be used")  # of a pipe, or the start of a file
    return stream.source(len(items) if isinstance(items, Sized) else None)


def _is_iterable(data: object) -> bool:
    try:
        iter(data)  # type: ignore[call-overload]
    except TypeError:
        return False
    return True


class _Stream:
    """Rows whose shape is recognised from the first of them.

    The rows looked at are kept for the first pass, so that an iterator loses none and a slow source
    is not started twice; later passes start anew.
    """

    def __init__(self, items: Iterable[object], roles: Mapped) -> None:
        self._items, self._roles = items, roles
        self._iterator: Iterator[object] | None = iter(items)
        self.head: list[object] = []
        self.shape = _peek(self.head, self._iterator, roles)

    def source(self, total: int | None) -> PreferenceSource:
        name = self.shape.name if self.shape else "records" if self.head else "no rows"
        return PreferenceSource(self.rows, shape=name, total=total)

    def rows(self) -> Iterator[SourceRow]:
        head, iterator = self.head, self._iterator or iter(self._items)
        if self._iterator is None and iterator is self._items:
            raise InvalidArgumentError(
                "this iterator was read already.", hint="Pass a list to read it again."
            )
        self.head, self._iterator = [], None
        return self._read(deque(head), iterator)

    def _read(self, queue: deque[object], iterator: Iterator[object]) -> Iterator[SourceRow]:
        shape = self.shape
        while True:
            item = queue.popleft() if queue else next(iterator, _END)
            if item is _END:
                return
            problem = ""
            if shape is None and isinstance(item, Mapping):  # the first dict after other rows
                head = [item, *queue]
                try:
                    shape = _peek(head, iterator, self._roles)
                except PersonaInferError as error:
                    problem = str(error)
                queue = deque(head[1:])
            yield _stream_row(shape, item, problem)


def _peek(head: list[object], iterator: Iterator[object], roles: Mapped) -> Shape | None:
    """The shape of the dicts at the start of a stream; what was taken is appended to `head`.

    It takes no more than it needs, but for the implicit shape, which is also what is left of a row
    without its prompt: that one is believed after the whole look ahead.
    """
    while True:
        dicts = [item for item in head if isinstance(item, Mapping)]
        names = {key: None for item in dicts for key in item if isinstance(key, str)}
        shape = match(names, roles.columns)
        settled = shape is not None and ("prompt" in shape.columns or bool(shape.labels))
        settled = settled and set(roles.columns.values()) <= names.keys()
        records = not dicts and any(isinstance(x, Preference | tuple | list) for x in head)
        if settled or records or len(head) >= _PEEK:
            break
        if (item := next(iterator, _END)) is _END:
            break
        head.append(item)
    if not dicts:
        return None
    shape = recognise(list(names), roles.columns, roles.labels)
    shape.check(_values(shape, item) for item in dicts)
    return shape


def _values(shape: Shape, item: Mapping[str, object]) -> list[object]:
    return [item.get(name, ABSENT) for name in shape.columns.values()]


def _stream_row(shape: Shape | None, item: object, problem: str) -> SourceRow:
    if isinstance(item, Mapping):
        columns = dict(item)
        return (
            _read(shape, _values(shape, item), columns)
            if shape
            else SourceRow(None, problem, columns)
        )
    if isinstance(item, Preference):
        return _checked(item, {})
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
        return _checked(read_pair(names, item[0], item[1], item[2]), {})
    except DataError as error:
        return SourceRow(None, str(error), {})
