"""The user's own columns, of a frame, a dataset or dicts: as Arrow tables, whole or in pieces, and in pandas.

The metadata of an Arrow table tells what pandas had: the types of columns, and an index. The second part of
the module reads and writes them.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

from ..preferences.cells import is_plain_null, read_json
from ..records import PersonaRow
from .arrow_columns import (
    NOT_OF_VALUES,
    ColumnType,
    added_array,
    arrow_of_narwhals,
    column_of,
    in_narwhals,
    package_of,
    taken,
)
from .column_values import (
    STORED_BYTES,
    in_utf_8,
    is_kept,
    kept_in_arrow,
    level_names,
    name_as_text,
    names_of,
    size_of,
)

if TYPE_CHECKING:
    import pandas
    import pyarrow


class OwnColumns(ABC):
    """The source of the user's own columns: those of the data, without personas and other added columns."""

    @abstractmethod
    def piece(self, places: Sequence[int], rows: Sequence[PersonaRow]) -> pyarrow.Table:
        """Return the user's own columns of some rows as an Arrow table, in the order of the rows.

        Args:
            places: the positions of the rows in the source, from 0, in rising order.
            rows: the same rows. Only a source whose rows carry their columns reads them.

        Raises:
            DataError: the columns are those of a saved table, whose file is damaged.
        """

    @abstractmethod
    def size(self, row: PersonaRow) -> int:
        """Estimate how many bytes the columns of the input data take in a row.

        A source that has one table of all rows returns the mean over the rows, whatever the row.
        """


def own_columns(
    original: Any, *, gaps: bool = False, rows: Iterable[Mapping[str, Any]] = ()
) -> OwnColumns:
    """Make the source of the user's own columns.

    Args:
        original: the user's frame, Arrow table or dataset; None: each row carries its columns. A source is
            returned as it is.
        gaps: whether some rows will be left out. A pandas index that only counts the rows then becomes a
            column, except the labels 0, 1, … of an Arrow table; otherwise the metadata of the Arrow table
            tells its start, stop and step.
        rows: the columns of each row, if they are at hand. They then have the same names in each piece as in
            all.
    """
    if original is None:
        return _RowColumns(rows)
    if isinstance(original, OwnColumns):  # of a stored table
        return original
    if (package := package_of(original)) == "datasets":
        return _DatasetColumns(original)
    if package == "pyarrow":
        return _TableColumns(picked_rows(original, range(len(original))) if gaps else original)
    if package != "pandas":
        return _TableColumns(arrow_of_narwhals(in_narwhals(original)))
    table = _arrow_of_pandas(original)  # with the index, which narwhals drops
    return _TableColumns(with_index_column(table, range(len(table)), len(table)) if gaps else table)


def own_names(original: Any) -> list[Any]:
    """Return the names of the columns of a frame, an Arrow table or a dataset."""
    by_name = package_of(original) in ("pandas", "polars")
    return list(original.columns if by_name else original.column_names)


def arrow_names(original: Any, rows: Sequence[PersonaRow]) -> list[str]:
    """Return the names that the user's own columns have in Arrow and in a file.

    The levels of a pandas index are among them, also one that only counts the rows.

    Args:
        original: the user's frame, Arrow table or dataset; None: each row carries its columns.
        rows: the rows. Only data whose rows carry their columns reads them.
    """
    if original is None:
        return list(names_of([own_values(row) for row in rows]))
    if package_of(original) == "pyarrow":
        # Also with an index of 0, 1, …: it is a column in a part of the saved table.
        return with_index_column(original.slice(0, 0), (), len(original)).column_names
    names = list(names_of([dict.fromkeys(own_names(original))]))
    if package_of(original) == "pandas":
        names += level_names(original.index.names, names)
    return names


def own_values(row: PersonaRow) -> Mapping[str, Any]:
    """Return the user's own columns of a row, by name.

    A row without any, such as one that came from a tuple, gives the fields of its `Preference` that are not
    None; {} if it has no `Preference` either.
    """
    if row.columns or row.preference is None:
        return row.columns
    return row.preference.model_dump(exclude_none=True)


class _RowColumns(OwnColumns):
    """Columns of dicts, files and tuples: each row carries its own."""

    def __init__(self, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self._names: dict[Any, str] = {}  # of all pieces, in which a key has one name
        names_of(rows, self._names)

    def piece(self, places: Sequence[int], rows: Sequence[PersonaRow]) -> pyarrow.Table:
        import pyarrow

        dicts = [own_values(row) for row in rows]
        names = names_of(dicts, self._names)
        columns = [
            column_of(text, [row.get(name) for row in dicts]) for text, name in names.items()
        ]
        schema = pyarrow.schema([field for field, _ in columns])
        return pyarrow.Table.from_arrays([array for _, array in columns], schema=schema)

    def size(self, row: PersonaRow) -> int:
        return size_of(row.columns, number=STORED_BYTES)


class _TableColumns(OwnColumns):
    """Columns of a frame, held as an Arrow table."""

    def __init__(self, table: pyarrow.Table) -> None:
        self._table = table
        self._size = table.nbytes // max(table.num_rows, 1)

    def piece(self, places: Sequence[int], rows: Sequence[PersonaRow]) -> pyarrow.Table:
        return taken(self._table, places)

    def size(self, row: PersonaRow) -> int:
        return self._size


class _DatasetColumns(OwnColumns):
    """Columns of a Hugging Face dataset. It may be larger than memory, so it is read in pieces."""

    def __init__(self, dataset: Any) -> None:
        self._view = dataset.with_format("arrow")
        self._size = dataset.data.nbytes // max(dataset.data.num_rows, 1)

    def piece(self, places: Sequence[int], rows: Sequence[PersonaRow]) -> pyarrow.Table:
        start, stop = (places[0], places[-1] + 1) if places else (0, 0)
        is_run = stop - start == len(places)
        return self._view[start:stop] if is_run else self._view[list(places)]  # type: ignore[no-any-return]

    def size(self, row: PersonaRow) -> int:
        return int(self._size)


class WithAdded(OwnColumns):
    """The user's own columns and the added ones, for a file that holds both."""

    def __init__(
        self,
        own: OwnColumns,
        added: Mapping[str, Sequence[Any]],
        kinds: Mapping[str, ColumnType],
    ) -> None:
        self._own, self._added, self._kinds = own, added, kinds

    def piece(self, places: Sequence[int], rows: Sequence[PersonaRow]) -> pyarrow.Table:
        """Return the columns of some rows, as `OwnColumns.piece`; `places` must have no gaps."""
        start = places[0] if places else 0
        table = self._own.piece(places, rows)
        for name, kind in self._kinds.items():
            values = self._added[name][start : start + len(places)]
            table = table.append_column(name, added_array(values, kind))
        return table

    def size(self, row: PersonaRow) -> int:
        """Estimate how many bytes the columns of the input data and the added ones take in a row."""
        return self._own.size(row) + 16 * len(self._added)


# pandas


def _arrow_of_pandas(frame: Any) -> pyarrow.Table:
    """Convert a pandas frame, which stays as it is, and its index to an Arrow table.

    A column, or a level of the index, whose values Arrow would change becomes JSON text. Of an index that
    only counts the rows, the metadata tells start, stop and step: see `with_index_column`.
    """
    import pandas
    import pyarrow

    names = list(names_of([dict.fromkeys(frame.columns)]))
    if [*map(str, frame.columns)] != names:
        frame = frame.set_axis(names, axis=1)
    frame = frame.copy(deep=False)
    columns = [frame.iloc[:, place] for place in range(frame.shape[1])]
    levels = [frame.index.get_level_values(level) for level in range(frame.index.nlevels)]
    unfit = {n: each for n, each in enumerate([*columns, *levels]) if not _is_arrow(each)}
    found = {
        n: column_of("", [None if is_plain_null(value) else value for value in each])
        for n, each in unfit.items()
    }
    for place in found.keys() & range(len(columns)):
        frame.isetitem(place, found[place][1].to_pylist())
    if found and max(found) >= len(columns):
        for level, labels in enumerate(levels):
            if (place := len(columns) + level) in found:
                levels[level] = pandas.Index(found[place][1].to_pylist(), name=labels.name)
        frame.index = levels[0] if len(levels) == 1 else pandas.MultiIndex.from_arrays(levels)
    own_levels = list(frame.index.names)
    frame.index = frame.index.set_names(level_names(own_levels, names))
    # Of several levels it would leave out one that only counts, which is wrong for picked rows.
    table = pyarrow.Table.from_pandas(frame, preserve_index=True if len(levels) > 1 else None)
    table = _with_own_levels(table, own_levels)
    for place, (field, values) in found.items():
        table = table.set_column(place, field.with_name(table.column_names[place]), values)
    return table


def _with_own_levels(table: pyarrow.Table, own_levels: Sequence[Any]) -> pyarrow.Table:
    """Write the user's own names of the levels of a pandas index into the metadata of a table about them.

    pandas gets these names back. The names of the columns stay: see `level_names`.
    """
    described = _told_of_pandas(table)
    first = len(described["columns"]) - sum(isinstance(n, str) for n in described["index_columns"])
    for level, (about, name) in enumerate(zip(described["index_columns"], own_levels, strict=True)):
        about = about if isinstance(about, dict) else described["columns"][first + level]
        about["name"] = None if name is None else name_as_text(name)
    return _telling(table, described)


def _is_arrow(series: Any) -> bool:
    """Whether Arrow can hold a pandas series or index. Objects and categories have to come back unchanged."""
    import pyarrow

    categories = getattr(series.dtype, "categories", None)
    values = series if categories is None else categories
    if values.dtype == object:
        is_fit = kept_in_arrow(values.to_numpy(), nan_is_null=True) is not None
        if categories is None or not is_fit:
            return is_fit
    try:
        array: Any = pyarrow.array(series, from_pandas=True)
    except NOT_OF_VALUES:
        raise
    except Exception:  # of pandas, of Arrow, and of the user's own types
        return False
    return categories is None or is_kept(categories.tolist(), array.dictionary)


def pandas_frame(own: Any, count: int) -> pandas.DataFrame:
    """Return the user's own columns of `count` rows (dicts, a frame or an Arrow table) as a pandas frame."""
    import pandas

    if isinstance(own, list):
        try:
            frame = pandas.DataFrame(own)
        except UnicodeEncodeError:  # as in all that is saved
            own = in_utf_8(own)
            frame = pandas.DataFrame(own)
        return _with_whole_numbers(frame, own)  # type: ignore[no-any-return]
    if package_of(own) not in ("polars", "pyarrow"):
        return in_narwhals(own).to_pandas()  # type: ignore[no-any-return]
    no_columns = package_of(own) == "pyarrow" and not own.num_columns
    return pandas.DataFrame(index=range(count)) if no_columns else pandas_of(own)


def pandas_of(source: Any) -> Any:
    """Convert an Arrow table or a polars frame to pandas, where whole numbers beside nulls stay whole.

    See `_with_whole_numbers` for the types of such columns. The frame has the pandas index of which the
    metadata of a table tells.
    """
    described = _told_of_pandas(source) if package_of(source) == "pyarrow" else {}
    if not described:
        return _with_whole_numbers(source.to_pandas(integer_object_nulls=True))
    import pandas

    told = described["index_columns"]
    names = [name for name in told if isinstance(name, str) and name in source.column_names]
    frame = _own_frame(source.drop_columns(names), described)
    # As columns, since pandas would read whole numbers beside nulls in an index as floats.
    columns = _own_frame(source.select(names), {**described, "column_indexes": []})
    own_names = {_field(one): _level_name(one) for one in described["columns"]}
    levels: list[pandas.Index[Any]] = []
    for one in told:
        labels: pandas.Index[Any]
        if isinstance(one, dict):
            labels = pandas.RangeIndex(one["start"], one["stop"], one["step"], name=one["name"])
        elif one in names:
            level: Any = columns.iloc[:, names.index(one)]
            # Without its own name, which pandas takes where the user's is None.
            labels = pandas.Index(level.rename(None), level.dtype, name=own_names.get(one))
        else:  # somebody dropped the column
            continue
        if len(labels) == source.num_rows:
            levels.append(labels)
    if levels:
        frame.index = levels[0] if len(levels) == 1 else pandas.MultiIndex.from_arrays(levels)
    return frame


def _own_frame(table: pyarrow.Table, described: Mapping[str, Any]) -> pandas.DataFrame:
    """Convert an Arrow table to pandas, with the types that its columns had there, and without an index.

    Args:
        table: the columns.
        described: what its metadata tells of these and of other columns, as pyarrow writes it for pandas.
    """
    import pandas

    if not table.num_columns:
        return pandas.DataFrame(index=range(table.num_rows))
    columns, of_arrow = [], []
    for one in described["columns"]:
        if _field(one) in table.column_names:
            if not _is_known(one["numpy_type"]):
                # pandas has no texts for lists and structs of Arrow's.
                if str(one["numpy_type"]).endswith("[pyarrow]"):
                    of_arrow.append(table.column_names.index(_field(one)))
                one = {**one, "numpy_type": "object"}
            columns.append(one)
    about = json.dumps({**described, "index_columns": [], "columns": columns}).encode()
    plain: Any = table.replace_schema_metadata({b"pandas": about})
    frame: pandas.DataFrame = _with_whole_numbers(plain.to_pandas(integer_object_nulls=True))
    for place in of_arrow:
        frame.isetitem(place, pandas.arrays.ArrowExtensionArray(table.column(place)))
    return frame


def _field(column: Mapping[str, Any]) -> Any:
    """Return the name in Arrow of a column of which the metadata for pandas tell; old ones tell one name."""
    return column.get("field_name", column["name"])


def _level_name(column: Mapping[str, Any]) -> Any:
    """Return the user's name of a level of the index; for old metadata, their name of one without a name."""
    name = column["name"]
    is_made_up = "field_name" not in column and re.fullmatch(r"__index_level_\d+__", str(name))
    return None if is_made_up else name


def _is_known(dtype: object) -> bool:
    """Whether pandas knows a dtype by this text."""
    import pandas

    try:
        pandas.api.types.pandas_dtype(dtype)
    except (TypeError, ValueError, NotImplementedError):
        return False
    return True


def _with_whole_numbers(frame: Any, rows: Sequence[Mapping[Any, Any]] | None = None) -> Any:
    """Give the columns of whole numbers, some of which are missing, a type that keeps every digit.

    pandas makes such columns floats, in which ids of more than 15 digits lose their last ones. They become
    "Int64", or "object" if a number has more than 64 bits. A column that mixes fractions with such long ids
    becomes "object".

    Args:
        frame: a pandas frame; it is changed in place.
        rows: the dicts that the frame was made of: then its columns of floats are looked at. None: whole
            numbers beside nulls are in columns of the type "object", and these are looked at.

    Returns:
        The same frame.
    """
    import pandas

    for place, name in enumerate(frame.columns):
        if frame.dtypes.iloc[place] != (object if rows is None else float):
            continue
        values: Any = frame.iloc[:, place] if rows is None else [row.get(name) for row in rows]
        there = [value for value in values if not is_plain_null(value)]
        if there and all(isinstance(v, Integral) and not isinstance(v, bool) for v in there):
            kind = "Int64" if -(2**63) <= min(there) <= max(there) < 2**63 else "object"
            whole = [None if is_plain_null(value) else int(value) for value in values]
            frame.isetitem(place, pandas.Series(whole, frame.index, kind))
        elif rows is not None and any(
            type(v) is not float and isinstance(v, Integral) and float(v) != v for v in there
        ):
            frame.isetitem(place, pandas.Series(values, frame.index, object))
    return frame


# The index of pandas


def picked_rows(table: pyarrow.Table, places: Sequence[int]) -> pyarrow.Table:
    """Return the rows of a whole Arrow table at some positions, in their order, `with_index_column`.

    There is no such column for the labels 0, 1, …, which every frame has that was given none.
    """
    rows = taken(table, places, copied=not isinstance(places, range))
    return rows if _has_default_index(table) else with_index_column(rows, places, len(table))


def _has_default_index(table: pyarrow.Table) -> bool:
    """Whether the pandas index of a table has the labels 0, 1, … and no name."""
    try:
        (told,) = _told_of_pandas(table)["index_columns"]
        return (told["start"], told["step"], told["name"]) == (0, 1, None)
    except (LookupError, TypeError, ValueError):
        return False


def with_index_column(table: pyarrow.Table, places: Sequence[int], count: int) -> pyarrow.Table:
    """Write the labels of a pandas RangeIndex into a column, where the metadata of a table tells them.

    Arrow stores such an index as the start, stop and step of the whole table, which is wrong for picked rows.

    Args:
        table: some rows of a whole table.
        places: the positions of these rows in the whole table, from 0.
        count: how many rows the whole table has.

    Returns:
        The table with that column; the same table if it has no pandas index, one of another kind, or one of
        another number of rows, which is not the table's.
    """
    import pyarrow

    try:
        described = _told_of_pandas(table)
        (told,) = described["index_columns"]
        labels = range(told["start"], told["stop"], told["step"])
        if len(labels) != count:
            return table
        values = pyarrow.array([labels[place] for place in places], pyarrow.int64())
        (field,) = level_names([told["name"]], table.column_names)
        kind = {"pandas_type": "int64", "numpy_type": "int64", "metadata": None}
        described["columns"] += [{"name": told["name"], "field_name": field, **kind}]
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
        return table  # there is no such index, or what is told of it is spoilt
    described["index_columns"] = [field]
    return _telling(table.append_column(field, values), described)


def index_columns(table: pyarrow.Table) -> list[str]:
    """Return the columns from which `pandas_of` reads the pandas index of a table; [] if it has none.

    These are the columns of the levels; for an index that only counts the rows, any column.
    """
    has_index = _told_of_pandas(table).get("index_columns")
    return level_columns(table) or table.column_names[:1] if has_index else []


def level_columns(table: pyarrow.Table) -> list[str]:
    """Return the columns that are levels of the pandas index of a table."""
    told = _told_of_pandas(table).get("index_columns") or ()
    return [name for name in table.column_names if name in told]


def _told_of_pandas(table: pyarrow.Table) -> Any:
    """Return what the metadata of an Arrow table tells pandas, a dict if it is not spoilt; {} for nothing."""
    return read_json((table.schema.metadata or {}).get(b"pandas") or "{}")


def _telling(table: pyarrow.Table, described: Mapping[str, Any]) -> pyarrow.Table:
    """Return the table with metadata that tell pandas what is described."""
    about = {**(table.schema.metadata or {}), b"pandas": json.dumps(described).encode()}
    return table.replace_schema_metadata(about)
