"""Read every supported container of preference data as one stream of `SourceRow`s, in input order.

pandas, polars, datasets and pyarrow are imported only for data of their own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

from ..arguments import Count, Flag, check_argument
from ..exceptions import DataError, InvalidArgumentError, visible
from ..preferences.cells import ABSENT, plain
from ..preferences.column_names import check_roles
from ..preferences.labels import ENOUGH, check_labels
from ..preferences.pairing import check_pairing
from ..preferences.recognition import LOOK_AHEAD, recognise, settle
from ..preferences.schemas import Mapped, Schema
from ..records import Preference
from .arrow_columns import NOT_OF_VALUES, cells_of, decoded_cells, in_narwhals
from .column_values import RECORD
from .file_formats import (
    SUPPORTED,
    StreamedRows,
    check_readable,
    open_rows,
    refuse_twins,
)
from .source_rows import (
    PreferenceSource,
    RowStream,
    SourceRow,
    Valued,
    read_row,
    several_rows,
    single_rows,
    with_options,
)

_BATCH = 1024
_NO_ROWS = {"pandas.Series", "polars.Series", "builtins.bytes", "builtins.bytearray"}


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
    """Read preference data of any supported kind as a stream of rows.

    The first rows are read at once, to recognise the columns; the others when the result is iterated. Data
    without any row gives an empty source and a UserWarning.

    Args:
        data: a pandas or polars frame, a pyarrow table or another object that gives an Arrow stream (a
            relation of DuckDB), a Hugging Face dataset, a path (.jsonl, .json, .csv, .parquet),
            "hf:owner/name" or "hf:owner/name:split", an iterable of dicts, (prompt, chosen, rejected) tuples
            or `Preference`, or what this function returned.
        columns: if your columns have other names, our name -> yours: `{"prompt": "question"}`. Our names are
            prompt, chosen, rejected, id, user, system, tools; response_1, response_2 and label for two
            responses with a label that says which is better; responses with scores or a label for a list of
            responses; response, score and group for one response a row, where rows with the same prompt and
            the same group are rated together. Lines of the command infer tell how it read them.
        labels: if a label's coding is your own, its values -> "first", "second" or "tie", as in
            `{0: "first", 1: "second", 2: "tie"}`.
        pairs: which pairs to make if a prompt has several responses: "best-worst", "all", or "adjacent" (each
            and the next lower one). Equal scores never make a pair. None: such data is refused.
        min_gap: the least difference between the scores of a pair; None: any.
        min_votes: the least votes that both responses must have (SHP); None: any.
        safe_rejected: only pairs whose rejected response is marked as safe (PKU-SafeRLHF).

    Returns:
        A source that yields one `SourceRow` for each input row; if a prompt has several responses, one for
        each pair. A row that cannot be used has an error and costs no other row. (If a prompt has several
        responses, a line that is no row at all has no `SourceRow`, but is counted in the source's `summary`.)

    Raises:
        InvalidArgumentError: the data is of no supported kind, a file (`MissingFileError`) or a column does
            not exist, or an option has a wrong value or does not apply to this data.
        DataError: the columns are not recognised, the labels' coding is not certain, a prompt has several
            responses and `pairs` is None, none of the first rows can be read, a file is not what its name
            says, or a data set of the hub cannot be loaded. Iterating the result raises it, too: a file is
            damaged further on, a streamed data set breaks off, or a label contradicts how earlier ones were
            read (`ContradictionError`).
        MissingExtraError: `datasets` is not installed, and a data set of the hub is read.
    """
    min_gap = check_pairing(pairs, min_gap)
    min_votes = check_argument("min_votes", min_votes, Count | None)
    safe_rejected = check_argument("safe_rejected", safe_rejected, Flag)
    check_roles({} if columns is None else columns)
    told = Mapped(
        dict(columns or {}), check_labels(labels), pairs, min_gap, min_votes, safe_rejected
    )
    if isinstance(data, PreferenceSource):
        if any(told):
            raise InvalidArgumentError(
                "data was read already, so columns= and other options of reading come too late."
            )
        return data
    source = _read(data, told)
    if source.is_empty:
        warnings.warn(_no_row_came(data), stacklevel=2)
    return source


def read_with_columns(data: object, columns: Mapping[str, str] | None) -> PreferenceSource:
    """Read data as `read_preferences` does, for a function that has its argument `columns` and no other.

    If the hint of an error advises `labels=` or `pairs=`, it also says to call `read_preferences` with that
    option, and to pass what it returns as the data.

    Raises:
        InvalidArgumentError, DataError, MissingExtraError: as `read_preferences`.
    """
    try:
        return read_preferences(data, columns=columns)
    except DataError as error:
        if not any(f"{option}=" in error.hint for option in ("labels", "pairs")):
            raise
        raise DataError(
            error.message,
            hint=f"{error.hint} It is an option of reading: pass read_preferences(data, …) of"
            " personainfer.data in place of the data.",
            argument=error.argument,
        ) from None


def _no_row_came(data: object) -> str:
    if isinstance(data, str | Path):
        return f"no row came: {visible(str(data))} holds none."
    if isinstance(data, Iterator):
        return "no row came from the iterator: it is empty, or was read before. A list can be read again."
    return "no row came: the data holds none."


def _read(data: object, told: Mapped) -> PreferenceSource:
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
    # Such as a relation of DuckDB. Of a series of dicts, pandas would cut values to a common type.
    if hasattr(type(data), "__arrow_c_stream__") and not kinds & _NO_ROWS:
        return _from_table(_whole_table(data), told)
    return _from_iterable(data, told)


def _kinds(data: object) -> set[str]:
    """Return the class of an object and its base classes as "package.name"; import no package."""
    return {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(data).__mro__}


# Frames and datasets: columns first

Batch = Iterable[Sequence[object]]


def _from_frame(data: Any, told: Mapped) -> PreferenceSource:
    native = data.collect() if "polars.LazyFrame" in _kinds(data) else _held(data)
    names = list(native.columns)
    refuse_twins(names)
    frame = in_narwhals(native)
    known = {name for name in names if isinstance(name, str)}  # pandas' NA equals nothing

    def batches(wanted: Sequence[str]) -> Iterator[Batch]:
        for start in range(0, len(frame), _BATCH):
            part = frame[start : start + _BATCH]
            yield zip(
                *(cells_of(part, n) if n in known else repeat(ABSENT) for n in wanted),
                strict=False,
            )

    return _from_columns(names, batches, told, total=len(frame), original=native)


def _held(frame: Any) -> Any:
    """Copy a frame, but not its values: the user may sort or cut the original in place."""
    return frame.copy(deep=False) if "pandas.DataFrame" in _kinds(frame) else frame.clone()


def _from_table(data: Any, told: Mapped) -> PreferenceSource:
    names = list(data.column_names)
    refuse_twins(names)

    def batches(wanted: Sequence[str]) -> Iterator[Batch]:
        for start in range(0, len(data), _BATCH):
            yield _arrow_batch(data.slice(start, _BATCH), names, wanted)

    return _from_columns(names, batches, told, total=len(data), original=data)


def _whole_table(data: Any) -> Any:
    """Read an object that gives an Arrow stream (`__arrow_c_stream__`) as a whole: it may give it only once.

    Raises:
        InvalidArgumentError: the stream is no table, or fails.
    """
    import pyarrow as pa

    try:
        return pa.table(data)
    except NOT_OF_VALUES:
        raise
    except Exception as error:  # of the object itself, such as a relation whose query fails
        said = str(error).partition("\n")[0] or type(error).__name__
        raise InvalidArgumentError(
            f"the {type(data).__name__} is no Arrow table: {said}",
            hint=SUPPORTED,
        ) from error


def _from_dataset(data: Any, told: Mapped) -> PreferenceSource:
    if data.format["type"] == "custom":
        raise InvalidArgumentError(
            "the dataset has a transform, which columns that are read as stored do not go through.",
            hint="Pass list(data) for what it gives, or data.with_format(None) for what is stored.",
        )
    names = list(data.column_names)

    def batches(wanted: Sequence[str]) -> Iterator[Batch]:
        # Only these columns, so that no image or audio in other columns is decoded.
        view = data.select_columns([n for n in names if n in wanted]).with_format("arrow")
        for table in view.iter(batch_size=_BATCH):
            yield _arrow_batch(table, names, wanted)

    return _from_columns(names, batches, told, total=len(data), original=data)


def _arrow_batch(table: Any, names: Sequence[str], wanted: Sequence[str]) -> Batch:
    columns = (decoded_cells(table.column(n)) if n in names else repeat(ABSENT) for n in wanted)
    return zip(*columns, strict=False)


def _from_columns(
    names: Sequence[object],
    batches: Callable[[Sequence[str]], Iterator[Batch]],
    told: Mapped,
    *,
    total: int,
    original: object,
) -> PreferenceSource:
    if not total:
        return PreferenceSource.empty(original)
    if RECORD in _texts(names):
        ((first, *_), *_) = next(batches((RECORD,)))
        told = with_options(told, first, _texts(names))
    schemas = recognise(_texts(names), told)

    def rows(schema: Schema) -> Iterator[Sequence[object]]:
        wanted = tuple(schema.columns.values())
        more = tuple(chain.from_iterable(schema.others.values()))
        found = chain.from_iterable(batches((*wanted, *more)))
        return _filled(schema, found, more) if more else found

    def head(schema: Schema) -> list[Sequence[object]]:
        return list(islice(rows(schema), LOOK_AHEAD))

    schema = settle(schemas, head, names).schema
    wanted = tuple(schema.columns.values())
    if schema.is_single:
        return PreferenceSource(
            lambda: single_rows(schema, ((values, {}) for values in rows(schema))),
            shape=schema.name,
            total=total,
            original=original,
            summary=schema.describe,
        )
    every = _texts(names)

    def valued() -> Iterator[Valued]:
        for values in chain.from_iterable(batches(every)):
            row = dict(zip(every, values, strict=True))
            yield schema.filled([row.get(name, ABSENT) for name in wanted], row.get), row

    return PreferenceSource(
        lambda: several_rows(schema, valued()), shape=schema.name, summary=schema.describe
    )


def _filled(
    schema: Schema, rows: Iterable[Sequence[object]], more: Sequence[str]
) -> Iterator[Sequence[object]]:
    """Fill empty values of rows from further columns of the same role.

    Args:
        schema: has the further columns in `others`.
        rows: each row has the values of the schema's columns, then those of the columns `more`.
        more: the names of the further columns.

    Yields:
        For each row, the values of the schema's columns.
    """
    for values in rows:
        cells = dict(zip(more, values[-len(more) :], strict=True))
        yield schema.filled(values[: -len(more)], cells.get)


def _texts(names: Sequence[object]) -> list[str]:
    # A name that is not text cannot be one of ours, but belongs in the list of what was found.
    return [n if isinstance(n, str) else f"({n!r},)" for n in names]


# How batches were read, by the names of their columns.
KnownSchemas = dict[tuple[object, ...], Schema]


def read_cells(
    names: Sequence[object],
    cells: Callable[[str], Iterable[object]],
    told: Mapped,
    known: KnownSchemas,
) -> list[SourceRow]:
    """Read the rows of one batch of a larger data set.

    Labels that are numbers must be certain from this batch alone, so that no batch is read in another way
    than the whole data would be. If they are not certain, as in a small last batch, the batch is read as an
    earlier one was.

    Args:
        names: the names of the columns.
        cells: a function from a column's name to its values. It is called only for columns that are needed.
        told: the caller's options about the data, which hold for all batches.
        known: how earlier batches were read, by the names of their columns. This batch is added.

    Returns:
        A row for each row of the batch. Rows that cannot be read have an error.

    Raises:
        DataError: the names are not those of preference data, a name occurs twice, or the labels are not
            certain.
        InvalidArgumentError: an option does not apply to this data.
    """
    refuse_twins(names)
    texts = {name for name in names if isinstance(name, str)}  # pandas' NA equals nothing

    def head(schema: Schema) -> list[Sequence[object]]:
        more = tuple(chain.from_iterable(schema.others.values()))
        wanted = (*schema.columns.values(), *more)
        values = (cells(n) if n in texts else repeat(ABSENT) for n in wanted)
        rows = zip(*values, strict=False)
        return list(_filled(schema, rows, more) if more else rows)

    schemas = recognise(_texts(names), told)
    try:
        schema, is_readable = settle(schemas, head, names, is_batch=True)
    except DataError:
        if (earlier := known.get(tuple(names))) is None:
            raise
        rows = head(earlier)
        read = [read_row(earlier, row, {}) for row in rows]
        if not _is_rest(earlier, rows) and any(row.preference for row in read):
            raise
        return read
    if is_readable:
        known.setdefault(tuple(names), schema)
    return [read_row(schema, row, {}) for row in head(schema)]


def _is_rest(schema: Schema, rows: Sequence[Sequence[object]]) -> bool:
    """Whether a batch has too few rows to show how labels are coded, and the schema explains them all."""
    coding = schema.coding
    labels = [schema.row(row)["label"] for row in rows] if coding else []
    return len(rows) < ENOUGH and (coding is None or coding.knows(labels))


# Streams: rows first


def _from_path(data: str | Path, told: Mapped) -> PreferenceSource:
    rows, total = open_rows(data)
    stream = RowStream(rows, told)
    check_readable(stream.head, f"{data} is not what its name says")
    return stream.source(total)


def _from_iterable(data: object, told: Mapped) -> PreferenceSource:
    problem = None
    if isinstance(data, Mapping) and _are_columns(data):
        raise InvalidArgumentError(
            "a dict of columns is not rows.", hint="Pass a frame: pandas.DataFrame(data)."
        )
    if "personainfer.PersonaTable" in _kinds(data):
        raise InvalidArgumentError(
            "a PersonaTable is not preference data.",
            hint="Give the data that it was made from, or [row.preference for row in table]. To ask again for"
            " its failed rows: retry_errors(table).",
        )
    if isinstance(data, Mapping | Preference):
        problem = f"a single {type(data).__name__} is not rows."
    elif isinstance(data, tuple) and len(data) == 3 and all(isinstance(x, str) for x in data):
        problem = "a single (prompt, chosen, rejected) tuple is not rows."
    if problem:
        raise InvalidArgumentError(problem, hint="Pass a list of rows: [row].")
    if _kinds(data) & _NO_ROWS or not _is_iterable(data):
        raise InvalidArgumentError(
            f"data of type {type(data).__name__} cannot be read.", hint=SUPPORTED
        )
    items: Any = data
    if "datasets.IterableDataset" in _kinds(data):
        items = StreamedRows("the IterableDataset", items)
    stream = RowStream(items, told)
    check_readable(stream.head, "the input cannot be used")  # of a pipe, or the start of a file
    return stream.source(len(items) if isinstance(items, Sized) else None)


def _are_columns(data: Mapping[Any, Any]) -> bool:
    """Whether a dict holds columns: two or more lists of one length. Lists of dicts are messages."""
    values = [plain(value) for value in data.values()]
    lists = [value for value in values if isinstance(value, list | tuple)]
    sizes = {len(value) for value in lists}
    held = any(isinstance(each, Mapping) for value in lists for each in value)
    return len(values) > 1 and len(lists) == len(values) and len(sizes) == 1 and not held


def _is_iterable(data: object) -> bool:
    try:
        iter(data)  # type: ignore[call-overload]
    except TypeError:
        return False
    return True
