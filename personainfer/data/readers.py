"""Every container of preference data as one stream of `SourceRow`s, in input order.

pandas, polars, datasets and pyarrow are imported only for data of their own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from functools import partial
from itertools import chain, groupby, islice, repeat
from pathlib import Path
from typing import Any, Final, NamedTuple

from ..exceptions import ContradictionError, DataError, InvalidArgumentError, PersonaInferError
from ..preferences.conversations import ABSENT, LEAVE_OUT, read_pair, surrogate_problem
from ..preferences.labels import check_labels
from ..preferences.pairing import check_pairing
from ..preferences.recognition import LOOK_AHEAD, check_roles, matches, recognise, settle
from ..preferences.schemas import Mapped, Schema
from ..records import Preference, Prompt
from .files import SUPPORTED, BrokenRow, arrow_cells, check_readable, open_rows

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
_IMPLICIT_LOOK_AHEAD = 32  # rows without a prompt that are believed to have none
_END: Final = object()


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

    @property
    def summary(self) -> dict[str, Any]:
        """How the rows were read: the coding of labels, the rule of pairs, what was counted so far.

        It is empty where the data says chosen and rejected by itself and nothing was changed.
        """
        return self._summary()

    def __iter__(self) -> Iterator[SourceRow]:
        return self._rows()

    def __repr__(self) -> str:
        return f"PreferenceSource(shape={self.shape!r}, total={self.total})"


def read_preferences(
    data: object,
    *,
    columns: Mapping[str, str] | None = None,
    labels: Mapping[Any, str] | None = None,
    pairs: str | None = None,
    min_gap: float | None = None,
    min_votes: int | None = None,
    safe_rejected: bool = False,
) -> PreferenceSource:
    """Preference data of any supported kind as a stream of rows.

    Args:
        data: a pandas or polars frame, a pyarrow table, a Hugging Face dataset, a path,
            "hf:owner/name:split", an iterable of dicts, (prompt, chosen, rejected) tuples or
            `Preference`, or what this function returned.
        columns: where names differ, our name to yours: `{"prompt": "question"}`. Our names are
            prompt, chosen, rejected, id, user, system; response_1, response_2 and label for two
            responses with a label that says which is better; responses and scores for a list of
            responses; response, score and group for one response a row.
        labels: where a label's coding is your own, its values to "first", "second" or "tie":
            `{0: "first", 1: "second", 2: "tie"}`.
        pairs: which pairs to make where a prompt has several responses: "best-worst", "all", or
            "adjacent" (each and the next lower one). Equal scores never make a pair.
        min_gap: the least difference between the scores of a pair.
        min_votes: the least votes that both responses must have (SHP).
        safe_rejected: only pairs whose rejected response is marked as safe (PKU-SafeRLHF).

    Returns:
        The rows, lazily. A row that cannot be used has an error and costs no other row.

    Raises:
        InvalidArgumentError: the data is of no supported kind, a file or column does not exist.
        DataError: the columns are not recognised, the labels' coding is not certain, none of the
            first rows can be read, or a file is not what its name says.
    """
    check_pairing(pairs, min_gap)
    told = Mapped(
        dict(columns or {}), check_labels(labels), pairs, min_gap, min_votes, safe_rejected
    )
    check_roles(told.columns)
    if isinstance(data, PreferenceSource):
        if any(told):
            raise InvalidArgumentError("data was read already, so columns= and the like are late.")
        return data
    kinds = _kinds(data)
    if kinds & {"datasets.DatasetDict", "datasets.IterableDatasetDict"}:
        splits = ", ".join(map(repr, data))  # type: ignore[call-overload]
        raise InvalidArgumentError(
            f"a DatasetDict holds several datasets ({splits}).", hint="Pick one: data['train']."
        )
    if "datasets.Dataset" in kinds:
        return _from_dataset(data, told)
    if "pyarrow.Table" in kinds:
        return _from_table(data, told)
    if kinds & {"pandas.DataFrame", "polars.DataFrame", "polars.LazyFrame"}:
        return _from_frame(data, told)
    if isinstance(data, str | Path):
        return _from_path(data, told)
    return _from_iterable(data, told)


def _kinds(data: object) -> set[str]:
    """The package and name of the classes of an object: known without importing the package."""
    return {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(data).__mro__}


# Frames and datasets: columns first

Batch = Iterable[Sequence[object]]


def _from_frame(data: Any, told: Mapped) -> PreferenceSource:
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

    return _from_columns(names, batches, told, total=len(frame), original=native)


def _held(frame: Any) -> Any:
    """The frame as it is now: its own may be sorted or cut in place. The values are not copied."""
    return frame.copy(deep=False) if "pandas.DataFrame" in _kinds(frame) else frame.clone()


def _from_table(data: Any, told: Mapped) -> PreferenceSource:
    names = list(data.column_names)
    _refuse_twins(names)

    def batches(wanted: Sequence[str]) -> Iterator[Batch]:
        for start in range(0, len(data), _BATCH):
            yield _arrow_batch(data.slice(start, _BATCH), names, wanted)

    return _from_columns(names, batches, told, total=len(data), original=data)


def _from_dataset(data: Any, told: Mapped) -> PreferenceSource:
    names = list(data.column_names)

    def batches(wanted: Sequence[str]) -> Iterator[Batch]:
        # Only these columns, so that no image or audio beside them is decoded.
        view = data.select_columns([n for n in wanted if n in names]).with_format("arrow")
        for table in view.iter(batch_size=_BATCH):
            yield _arrow_batch(table, names, wanted)

    return _from_columns(names, batches, told, total=len(data), original=data)


def _arrow_batch(table: Any, names: Sequence[str], wanted: Sequence[str]) -> Batch:
    columns = (arrow_cells(table.column(n)) if n in names else repeat(ABSENT) for n in wanted)
    return zip(*columns, strict=False)


def _refuse_twins(names: Sequence[object]) -> None:
    if twins := [name for name in names if names.count(name) > 1]:
        raise DataError(f"two columns have the name {twins[0]!r}.", hint="Rename or drop one.")


def _from_columns(
    names: Sequence[object],
    batches: Callable[[Sequence[str]], Iterator[Batch]],
    told: Mapped,
    *,
    total: int,
    original: object,
) -> PreferenceSource:
    if not total:
        return PreferenceSource(lambda: iter(()), shape="no rows", total=0, original=original)
    schemas = recognise(_texts(names), told)

    def head(schema: Schema) -> list[Sequence[object]]:
        return list(islice(next(batches(tuple(schema.columns.values()))), LOOK_AHEAD))

    schema = settle(schemas, head, names).schema
    wanted = tuple(schema.columns.values())
    if schema.is_single:
        return PreferenceSource(
            lambda: _single_rows(schema, ((v, {}) for batch in batches(wanted) for v in batch)),
            shape=schema.name,
            total=total,
            original=original,
            summary=schema.describe,
        )
    every = _texts(names)

    def valued() -> Iterator[Valued]:
        for values in chain.from_iterable(batches(every)):
            row = dict(zip(every, values, strict=True))
            yield [row.get(name, ABSENT) for name in wanted], row

    return PreferenceSource(
        lambda: _several_rows(schema, valued()), shape=schema.name, summary=schema.describe
    )


def _texts(names: Sequence[object]) -> list[str]:
    # A name that is no text cannot be one of ours, but belongs in the list of what was found.
    return [n if isinstance(n, str) else f"({n!r},)" for n in names]


def read_cells(
    names: Sequence[object],
    cells: Callable[[str], Iterable[object]],
    columns: Mapping[str, str],
    labels: Mapping[Any, str] | None = None,
) -> list[SourceRow]:
    """The rows of one batch of a larger whole. Rows that cannot be read have an error.

    `cells` gives the values of a column, and is asked only for those that are needed. Labels have to
    be certain from this batch alone, or be explained by `labels`.

    Raises:
        DataError, InvalidArgumentError: the names are not those of preference data, or the labels
            are not certain.
    """
    _refuse_twins(names)
    told = Mapped(columns, check_labels(labels))
    schema = recognise(_texts(names), told)[0]
    values = (cells(n) if n in names else repeat(ABSENT) for n in schema.columns.values())
    rows = list(zip(*values, strict=False))
    schema = schema.settled(rows)
    return [_read(schema, row, {}) for row in rows]


# Rows of a schema

Valued = tuple[Sequence[object], Mapping[str, Any]]  # the values of a schema's columns, and the row


def _single_rows(schema: Schema, rows: Iterable[Valued]) -> Iterator[SourceRow]:
    schema.counts.clear()
    for values, columns in rows:
        yield _read(schema, values, columns)


def _several_rows(schema: Schema, rows: Iterable[Valued]) -> Iterator[SourceRow]:
    """The rows of data of which one row makes several pairs, or several rows make one."""
    schema.counts.clear()
    if schema.kind != "group":
        for values, columns in rows:
            yield from _read_several(partial(schema.read_all, values), columns, schema)
        return
    for _, each in groupby(rows, key=lambda row: schema.group_key(row[0])):
        group = list(each)
        shared = {
            name: value
            for name, value in group[0][1].items()
            if all(_is_same(other.get(name), value) for _, other in group)
        }
        cells = [values for values, _ in group]
        yield from _read_several(partial(schema.read_group, cells), shared, schema)


def _is_same(one: object, other: object) -> bool:
    try:
        return bool(one == other)
    except ValueError:  # arrays
        return repr(one) == repr(other)


def _read_several(
    read: Callable[[], list[Preference]], columns: Mapping[str, Any], schema: Schema
) -> Iterator[SourceRow]:
    schema.counts["prompts"] += 1
    try:
        found = read()
    except ValueError as error:
        schema.counts["prompts_without_a_pair"] += 1
        yield SourceRow(None, str(error), columns)
        return
    schema.counts["pairs_made"] += len(found)
    for preference in found:
        yield _checked(preference, columns)


def _read(schema: Schema, values: Sequence[object], columns: Mapping[str, Any]) -> SourceRow:
    try:
        preference = schema.read(values)
    except ContradictionError:
        raise
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


def _encodable(value: Prompt | None) -> bool:
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


def _from_path(data: str | Path, told: Mapped) -> PreferenceSource:
    rows, total = open_rows(data)
    stream = _Stream(rows, told)
    check_readable(stream.head, f"{data} is not what its name says")
    return stream.source(total)


def _from_iterable(data: object, told: Mapped) -> PreferenceSource:
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
    stream = _Stream(items, told)
    check_readable(stream.head, "the input cannot be used")  # of a pipe, or the start of a file
    return stream.source(len(items) if isinstance(items, Sized) else None)


def _is_iterable(data: object) -> bool:
    try:
        iter(data)  # type: ignore[call-overload]
    except TypeError:
        return False
    return True


class _Stream:
    """Rows whose schema is recognised from the first of them.

    The rows looked at are kept for the first pass, so that an iterator loses none and a slow source
    is not started twice; later passes start anew.
    """

    def __init__(self, items: Iterable[object], told: Mapped) -> None:
        self._items, self._told = items, told
        self._iterator: Iterator[object] | None = iter(items)
        self.head: list[object] = []
        self.schema = _peek(self.head, self._iterator, told)

    def source(self, total: int | None) -> PreferenceSource:
        schema = self.schema
        name = schema.name if schema else "records" if self.head else "no rows"
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
        return _several_rows(schema, dicts)

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
    """The schema of the dicts at the start of a stream; what was taken is appended to `head`.

    It takes no more than it needs to be sure: one row where that one can be read and says chosen and
    rejected by itself, up to `LOOK_AHEAD` where labels are numbers.
    """
    enough = 1
    while True:
        dicts = [item for item in head if isinstance(item, Mapping)]
        if not dicts and any(isinstance(x, Preference | tuple | list) for x in head):
            return None
        if dicts and len(head) >= enough:
            if schema := _sure_schema(dicts, told):
                return schema
            enough = 2 * len(head)
        if len(head) >= LOOK_AHEAD or (item := next(iterator, _END)) is _END:
            break
        head.append(item)
    if not dicts:
        return None
    names = _names(dicts)
    return settle(recognise(names, told), lambda s: [_values(s, d) for d in dicts], names).schema


def _sure_schema(dicts: Sequence[Mapping[str, Any]], told: Mapped) -> Schema | None:
    """The schema of these rows, if more of them could not change it."""
    names = _names(dicts)
    if not set(told.columns.values()) <= set(names):
        return None
    try:
        found = settle(matches(names, told), lambda s: [_values(s, d) for d in dicts], names)
    except PersonaInferError:
        return None
    schema = found.schema
    looks_again = schema.kind in ("conversations", "group") or schema.depends_on_values
    if looks_again and len(dicts) < _IMPLICIT_LOOK_AHEAD:
        return None
    if schema.coding is not None and not schema.coding.is_sure:
        return None
    return schema if found.is_readable else None


def _names(dicts: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for item in dicts for key in item if isinstance(key, str)))


def _values(schema: Schema, item: Mapping[str, object]) -> list[object]:
    return [item.get(name, ABSENT) for name in schema.columns.values()]


def _stream_row(schema: Schema | None, item: object, problem: str) -> SourceRow:
    if isinstance(item, Mapping):
        columns = dict(item)
        return (
            _read(schema, _values(schema, item), columns)
            if schema
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
