"""Convert the user's own columns, from a frame, a dataset or dicts, to Arrow tables, whole or in pieces.

A column whose values have no common type becomes JSON text, and the metadata of its field says so. The last
part of the module has the types of the columns that are added to a table, such as a judge's verdicts.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple

from ..exceptions import DataError, InvalidArgumentError
from ..preferences.cells import is_plain_null, read_json, without_na
from ..records import PersonaRow
from .column_values import (
    STORED_BYTES,
    is_kept,
    json_texts,
    kept_in_arrow,
    level_names,
    name_as_text,
    names_of,
    size_of,
)
from .file_formats import arrow_cells

if TYPE_CHECKING:
    import numpy as np
    import pandas
    import pyarrow
    from numpy.typing import NDArray

_JSON = {b"personainfer": b"json"}  # metadata of a field whose text is JSON
_TIMES = re.compile(r"\b(Date|Datetime|Duration|Time)\b")  # types of polars, also within others
_NO_ARROW = re.compile(r"\b(Object|U?Int128)\b")  # types of polars that Arrow has none for


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
    if package_of(original) == "datasets":
        return _DatasetColumns(original)
    if package_of(original) == "pyarrow":
        return _TableColumns(picked_rows(original, range(len(original))) if gaps else original)
    if package_of(original) != "pandas":
        return _TableColumns(_arrow_of_narwhals(in_narwhals(original)))
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


def without(original: Any, dropped: Collection[int], count: int) -> Any:
    """Return the user's frame or dataset without some rows.

    Args:
        original: the frame or dataset. None, and the columns of a saved table, are returned as they are: a
            file has only the rows that were kept.
        dropped: the positions of the rows to leave out, from 0.
        count: how many rows are left.
    """
    if original is None or not dropped or isinstance(original, OwnColumns):
        return original  # a file has only the rows that were kept
    left = [place for place in range(count + len(dropped)) if place not in dropped]
    if package_of(original) == "datasets":
        return original.select(left)
    if package_of(original) == "pyarrow":
        return picked_rows(original, left)
    return in_narwhals(original)[left].to_native()


def in_narwhals(frame: Any) -> Any:
    """Wrap a pandas or polars frame, or an Arrow table, as a narwhals DataFrame."""
    import narwhals

    return narwhals.from_native(frame, eager_only=True)


def cells_of(frame: Any, name: str) -> list[Any]:
    """Return the values of a column of a narwhals frame as Python values; pandas' NA becomes None.

    A value that Python lacks, such as a date in the year 20000, becomes text: see `arrow_cells`.
    """
    column = frame.get_column(name)
    kind = str(column.dtype)
    if column.implementation.is_polars() and _TIMES.search(kind) and not _NO_ARROW.search(kind):
        return arrow_cells(column.to_arrow())  # polars ends at years that Python lacks
    try:
        return without_na(column.to_list())
    except (ValueError, OverflowError):  # years that Python lacks
        if "Int128" not in kind:
            return arrow_cells(column.to_arrow())
    # Both within one value: Arrow lacks these numbers.
    import polars

    texts = column.to_frame().to_native().select(polars.struct(name).struct.json_encode())
    return [json.loads(text)[name] for text in texts.to_series().to_list()]


def package_of(value: object) -> str:
    """Return the package that an object's class comes from, such as "pandas"; import nothing.

    A class that is derived from one of a library of frames counts as that library's.
    """
    packages = [kind.__module__.partition(".")[0] for kind in type(value).__mro__]
    return next((package for package in packages if package in _OF_FRAMES), packages[0])


_OF_FRAMES = {"pandas", "polars", "pyarrow", "datasets"}


def pandas_of(source: Any) -> Any:
    """Convert an Arrow table or a polars frame to pandas, where whole numbers beside nulls stay whole.

    See `with_whole_numbers` for the types of such columns. The frame has the pandas index of which the
    metadata of a table tells.
    """
    about = package_of(source) == "pyarrow" and (source.schema.metadata or {}).get(b"pandas")
    if not about:
        return with_whole_numbers(source.to_pandas(integer_object_nulls=True))
    import pandas

    described = json.loads(about)
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
            if not _is_of_pandas(one["numpy_type"]):
                # pandas has no texts for lists and structs of Arrow's.
                if str(one["numpy_type"]).endswith("[pyarrow]"):
                    of_arrow.append(table.column_names.index(_field(one)))
                one = {**one, "numpy_type": "object"}
            columns.append(one)
    about = json.dumps({**described, "index_columns": [], "columns": columns}).encode()
    plain: Any = table.replace_schema_metadata({b"pandas": about})
    frame: pandas.DataFrame = with_whole_numbers(plain.to_pandas(integer_object_nulls=True))
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


def _is_of_pandas(dtype: object) -> bool:
    """Whether pandas knows a dtype by this text."""
    import pandas

    try:
        pandas.api.types.pandas_dtype(dtype)
    except (TypeError, ValueError, NotImplementedError):
        return False
    return True


# A full memory and a package that is missing: the types of columns have no part in them.
NOT_OF_VALUES = (MemoryError, ImportError)


@contextmanager
def pandas_errors() -> Iterator[None]:
    """Convert columns to pandas in this block: any error becomes a `DataError`.

    Such errors mean that pandas cannot hold the columns, or that the metadata of a file about them is wrong.
    `MemoryError` and `ImportError` are raised as they are.
    """
    try:
        yield
    except NOT_OF_VALUES:
        raise
    except Exception as error:  # of pandas and of Arrow, each with classes of its own
        raise not_convertible("pandas", error) from None


def is_failure(error: BaseException) -> bool:
    """Whether this is an error, and no wish to end the program. Panics of polars are no `Exception`."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def not_convertible(library: str, error: BaseException) -> DataError:
    """Make the error for columns that a library cannot hold. It is returned, not raised.

    Args:
        library: the library's name, such as "pandas".
        error: what the library raised.
    """
    return DataError(
        f"{library} cannot hold the data's own columns: {error!r:.200}.",
        hint="to_arrow() gives them as they are.",
    )


def with_whole_numbers(frame: Any, rows: Sequence[Mapping[Any, Any]] | None = None) -> Any:
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


class _RowColumns(OwnColumns):
    """Columns of dicts, files and tuples: each row carries its own."""

    def __init__(self, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self._names: dict[Any, str] = {}  # of all pieces, in which a key has one name
        names_of(rows, self._names)

    def piece(self, places: Sequence[int], rows: Sequence[PersonaRow]) -> pyarrow.Table:
        return _arrow_of_dicts([own_values(row) for row in rows], self._names)

    def size(self, row: PersonaRow) -> int:
        return size_of(row.columns, number=STORED_BYTES)


class _TableColumns(OwnColumns):
    """Columns of a frame, held as an Arrow table."""

    def __init__(self, table: pyarrow.Table) -> None:
        self._table = table
        self._size = table.nbytes // max(table.num_rows, 1)

    def piece(self, places: Sequence[int], rows: Sequence[PersonaRow]) -> pyarrow.Table:
        if _gapless(places):
            return self._table.slice(places[0] if places else 0, len(places))
        return taken(self._table, places)

    def size(self, row: PersonaRow) -> int:
        return self._size


class _DatasetColumns(OwnColumns):
    """Columns of a Hugging Face dataset. It may be larger than memory, so it is read in pieces."""

    def __init__(self, dataset: Any) -> None:
        self._view = dataset.with_format("arrow")
        self._size = dataset.data.nbytes // max(dataset.data.num_rows, 1)

    def piece(self, places: Sequence[int], rows: Sequence[PersonaRow]) -> pyarrow.Table:
        if _gapless(places):
            start = places[0] if places else 0
            return self._view[start : start + len(places)]  # type: ignore[no-any-return]
        return self._view[list(places)]  # type: ignore[no-any-return]

    def size(self, row: PersonaRow) -> int:
        return int(self._size)


def taken(table: pyarrow.Table, places: Sequence[int] | NDArray[np.int64]) -> pyarrow.Table:
    """Return the rows of an Arrow table at some positions (from 0), in the order of the positions."""
    import numpy as np
    import pyarrow

    at = np.asarray(places, dtype=np.int64)
    if not len(at):
        return table.slice(0, 0)
    try:
        return table.take(at)
    except (pyarrow.ArrowNotImplementedError, pyarrow.ArrowInvalid):
        if table.num_columns > 1:  # most likely Arrow can take the others, and in less time
            columns = [taken(table.select([n]), at).column(0) for n in range(table.num_columns)]
            return pyarrow.Table.from_arrays(columns, schema=table.schema)
        # It can slice what it cannot take, such as views.
        rows = [table.slice(place, 1) for place in at.tolist()]
        return pyarrow.concat_tables(rows).combine_chunks()


def _gapless(places: Sequence[int]) -> bool:
    return not places or places[-1] - places[0] + 1 == len(places)


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
    found = {n: _column("", list(map(_none_if_null, each))) for n, each in unfit.items()}
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
    metadata = table.schema.metadata
    described = json.loads(metadata[b"pandas"])
    first = len(described["columns"]) - sum(isinstance(n, str) for n in described["index_columns"])
    for level, (about, name) in enumerate(zip(described["index_columns"], own_levels, strict=True)):
        about = about if isinstance(about, dict) else described["columns"][first + level]
        about["name"] = None if name is None else name_as_text(name)
    return table.replace_schema_metadata({**metadata, b"pandas": json.dumps(described).encode()})


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


def _none_if_null(value: Any) -> Any:
    return None if is_plain_null(value) else value


def _arrow_of_narwhals(frame: Any) -> pyarrow.Table:
    """Convert a narwhals frame to Arrow; columns of objects and of 128-bit integers become JSON text.

    Arrow would hold the addresses of polars' objects, and has no integers of 128 bits.
    """
    unfit = [name for name, kind in frame.schema.items() if _NO_ARROW.search(str(kind))]
    table: pyarrow.Table = frame.drop(unfit).to_arrow()
    for name in unfit:
        field, values = _column(name, frame[name].to_list())
        table = table.add_column(frame.columns.index(name), field, values)
    return table


def _arrow_of_dicts(rows: Sequence[Mapping[Any, Any]], known: dict[Any, str]) -> pyarrow.Table:
    import pyarrow

    names = names_of(rows, known)
    columns = [_column(text, [row.get(name) for row in rows]) for text, name in names.items()]
    schema = pyarrow.schema([field for field, _ in columns])
    return pyarrow.Table.from_arrays([array for _, array in columns], schema=schema)


def _column(name: str, values: Sequence[Any]) -> tuple[pyarrow.Field[Any], pyarrow.Array[Any]]:
    """Make the field and the array of a column.

    The array has a type of Arrow's if that gives the same values back. Otherwise texts are written with
    escapes (see `text_array`), and all other values as JSON text.
    """
    import pyarrow

    if (array := kept_in_arrow(values)) is None:
        if not all(value is None or isinstance(value, str) for value in values):
            return as_json(pyarrow.field(name, pyarrow.string())), json_array(values)
        array = text_array(values)
    return pyarrow.field(name, array.type), array


def as_json(field: pyarrow.Field[Any]) -> pyarrow.Field[Any]:
    """Return a field of the same name and the type string, whose metadata say that its text is JSON.

    The type and the metadata of the given field are dropped.
    """
    import pyarrow

    return pyarrow.field(field.name, pyarrow.string(), metadata=_JSON)


def is_json(field: pyarrow.Field[Any]) -> bool:
    """Whether the metadata of a field says that its column holds values as JSON text: see `as_json`."""
    return (field.metadata or {}).get(b"personainfer") == b"json"


def json_array(values: Sequence[Any]) -> pyarrow.Array[Any]:
    """Write each value as JSON text, in an Arrow array without nulls: None is the text "null"."""
    import pyarrow

    return pyarrow.array(json_texts(values), pyarrow.string())


def with_arrays(table: pyarrow.Table, new: Mapping[str, pyarrow.Array[Any]]) -> pyarrow.Table:
    """Return the table with new columns, by name, at its end, in place of columns of the same names."""
    import pyarrow

    kept = [place for place, name in enumerate(table.column_names) if name not in new]
    fields = [table.schema.field(place) for place in kept]
    fields += [pyarrow.field(name, array.type) for name, array in new.items()]
    arrays: list[Any] = [*(table.column(place) for place in kept), *new.values()]
    schema = pyarrow.schema(fields).with_metadata(table.schema.metadata)
    return pyarrow.Table.from_arrays(arrays, schema=schema)  # even if there were no columns before


def picked_rows(table: pyarrow.Table, places: Sequence[int]) -> pyarrow.Table:
    """Return the rows of a whole Arrow table at some positions, in their order, `with_index_column`.

    There is no such column for the labels 0, 1, …, which every frame has that was given none.
    """
    is_slice = isinstance(places, range) and places.step == 1
    rows = (
        table.slice(places[0] if places else 0, len(places)) if is_slice else taken(table, places)
    )
    return rows if _has_default_index(table) else with_index_column(rows, places, len(table))


def _has_default_index(table: pyarrow.Table) -> bool:
    """Whether the pandas index of a table has the labels 0, 1, … and no name."""
    try:
        (told,) = read_json((table.schema.metadata or {})[b"pandas"])["index_columns"]
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

    about = table.schema.metadata or {}
    try:
        described = read_json(about[b"pandas"])
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
    metadata = {**about, b"pandas": json.dumps(described).encode()}
    return table.append_column(field, values).replace_schema_metadata(metadata)


def index_columns(table: pyarrow.Table) -> list[str]:
    """Return the columns from which `pandas_of` reads the pandas index of a table; [] if it has none.

    These are the columns of the levels; for an index that only counts the rows, any column.
    """
    told = json.loads((table.schema.metadata or {}).get(b"pandas") or b"{}").get("index_columns")
    return level_columns(table) or table.column_names[:1] if told else []


def level_columns(table: pyarrow.Table) -> list[str]:
    """Return the columns that are levels of the pandas index of a table."""
    described = json.loads((table.schema.metadata or {}).get(b"pandas") or b"{}")
    told = described.get("index_columns") or ()
    return [name for name in table.column_names if name in told]


def text_array(values: Sequence[str | None]) -> pyarrow.Array[Any]:
    r"""Make an Arrow array of texts; None is null. A lone surrogate, which UTF-8 lacks, becomes \udcff."""
    import pyarrow

    try:
        return pyarrow.array(values, pyarrow.string())
    except UnicodeError:
        escaped = [
            v if v is None else v.encode("utf-8", "backslashreplace").decode() for v in values
        ]
        return pyarrow.array(escaped, pyarrow.string())


# Columns that were added to a table


Added = Mapping[str, Sequence[Any]]


class ColumnType(NamedTuple):
    """The type of a column that is added to a table, by its name in Arrow and in pandas.

    Attributes:
        arrow: its name in Arrow, such as "float64".
        pandas: its dtype in pandas, such as "Int64".
        listed: whether each value is a list of values of the type `arrow`.
    """

    arrow: Any  # a str, which pyarrow is typed to take only as a literal
    pandas: str
    listed: bool = False

    def in_arrow(self) -> Any:
        """Return the type as pyarrow's data type."""
        import pyarrow

        kind = pyarrow.type_for_alias(self.arrow)
        return pyarrow.list_(kind) if self.listed else kind


_TYPES: dict[type, ColumnType] = {
    str: ColumnType("string", "object"),
    bool: ColumnType("bool", "boolean"),
    int: ColumnType("int64", "Int64"),
    float: ColumnType("float64", "float64"),
}


Kinds = Mapping[str, ColumnType]


def stored_type(kind: pyarrow.DataType) -> ColumnType:
    """Return the type of an added column by its Arrow type in the file of the table.

    Other programs may have written its texts in another way, such as with categories.

    Raises:
        ValueError: no added column has values of this type.
    """
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    texts = types.is_string, types.is_large_string, types.is_string_view, types.is_null
    if any(check(kind) for check in texts):
        return _TYPES[str]
    for known in _TYPES.values():
        if known.in_arrow() == kind:
            return known
    raise ValueError(f"an added column of the type {kind}")


LISTS_OF_TEXT = ColumnType("string", "object", listed=True)


def type_of(name: str, values: Sequence[Any]) -> ColumnType:
    """Find the type of a column by its values; text if every value is None, or if there is no value.

    Args:
        name: the name of the column, for errors.
        values: Python's str, bool, int or float, or None. A column with int and float is of the type float.

    Raises:
        InvalidArgumentError: values of several types or of another type, an int of more than 64 bits, or one
            among floats that no float equals.
    """
    found = {type(value) for value in values if value is not None} or {str}
    if found == {int, float}:
        if not all(_is_float(value) for value in values if type(value) is int):
            raise InvalidArgumentError(
                f"the column {name} holds a whole number that beside fractions would become another one.",
                hint="Give the column as text.",
            )
        found = {float}
    if found == {int} and any(not -(2**63) <= v < 2**63 for v in values if v is not None):
        raise InvalidArgumentError(
            f"the column {name} holds a whole number of more than 64 bits.", hint="Give it as text."
        )
    if len(found) > 1 or not found <= set(_TYPES):
        kinds = ", ".join(sorted(kind.__name__ for kind in found))
        raise InvalidArgumentError(
            f"the column {name} holds values of the type {kinds}.",
            hint="Give str, bool, int or float, one of them, or None.",
        )
    return _TYPES[found.pop()]


def _is_float(number: int) -> bool:
    """Whether a float equals this whole number."""
    try:
        return float(number) == number
    except OverflowError:
        return False


def plain_values(values: Any) -> list[Any]:
    """Return the values of a list, array, series or iterator as a new list of Python values.

    pandas' NA and NaT become None, NumPy's numbers Python's, and NumPy's arrays within a list become lists.

    Raises:
        TypeError: the object has no values, or some that Python lacks.
    """
    for convert in ("to_pylist", "to_list", "tolist"):  # Arrow, polars and pandas, numpy
        if callable(getattr(values, convert, None)):
            try:
                values = getattr(values, convert)()
            except NOT_OF_VALUES:
                raise
            except BaseException as error:  # such as a year that Python lacks
                if not is_failure(error):
                    raise
                raise TypeError(str(error)) from None
            break
    return [_plain(value) for value in values]


def _plain(value: Any) -> Any:
    kind = type(value)
    if kind.__module__ == "numpy":
        return value.tolist()  # of an array a list, which no column of ours holds
    return None if kind.__name__ in ("NAType", "NaTType") else value  # what pandas has for None


def added_array(values: Sequence[Any], kind: ColumnType) -> pyarrow.Array[Any]:
    """Convert the values of an added column, as `type_of` takes them, to an Arrow array of its type.

    Every conversion of added columns goes by this one. For lone surrogates in texts see `text_array`.
    """
    import pyarrow

    if kind.arrow == "string" and not kind.listed:
        return text_array(values)
    if kind.arrow == "float64":  # Arrow takes no whole numbers of more than 64 bits
        values = [value if value is None else float(value) for value in values]
    array: pyarrow.Array[Any] = pyarrow.array(values, kind.in_arrow())
    return array


class WithAdded(OwnColumns):
    """The user's own columns and the added ones, for a file that holds both."""

    def __init__(self, own: OwnColumns, added: Added, kinds: Kinds) -> None:
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
