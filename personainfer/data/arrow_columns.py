"""Convert the user's own columns, from a frame, a dataset or dicts, to Arrow tables, whole or in pieces.

A column whose values have no common type becomes JSON text, and the metadata of its field says so."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple

from ..exceptions import DataError, InvalidArgumentError
from ..preferences.cells import is_null, without_na
from ..records import PersonaRow
from .column_values import STORED_BYTES, is_kept, json_text, kept_in_arrow, names_of, size_of
from .file_formats import arrow_cells

if TYPE_CHECKING:
    import pyarrow

_JSON = {b"personainfer": b"json"}  # metadata of a field whose text is JSON
_NO_ARROW = re.compile(r"\b(Object|U?Int128)\b")  # types of polars that Arrow has none for


class OwnColumns(ABC):
    """The source of the input's own columns."""

    @abstractmethod
    def piece(self, places: Sequence[int], rows: Sequence[PersonaRow]) -> pyarrow.Table:
        """The columns of some rows. `places` are their positions in the input, in rising order."""

    @abstractmethod
    def size(self, row: PersonaRow) -> int:
        """About how many bytes the columns of a row take."""


def own_columns(original: Any, *, gaps: bool = False) -> OwnColumns:
    """The columns of the user's frame or dataset; if it is None, the columns in the rows.

    `gaps`: rows will be left out, so a pandas index is kept even if it only counts the rows.
    """
    if original is None:
        return _RowColumns()
    if isinstance(original, OwnColumns):  # of a stored table
        return original
    if package_of(original) == "datasets":
        return _DatasetColumns(original)
    if package_of(original) == "pandas":  # keeps the index, which narwhals drops
        return _TableColumns(_arrow_of_pandas(original, True if gaps else None))
    return _TableColumns(_arrow_of_narwhals(in_narwhals(original)))


def own_names(original: Any) -> list[Any]:
    """The names of the columns of a frame or dataset."""
    by_name = package_of(original) in ("pandas", "polars")
    return list(original.columns if by_name else original.column_names)


def own_values(row: PersonaRow) -> Mapping[str, Any]:
    """A row's own columns; for tuples and `Preference`s, the fields of the pair."""
    if row.columns or row.preference is None:
        return row.columns
    return row.preference.model_dump(exclude_none=True)


def without(original: Any, dropped: Collection[int], count: int) -> Any:
    """The user's frame without the rows at some places; `count` rows are left."""
    if original is None or not dropped or isinstance(original, OwnColumns):
        return original  # a file has only the rows that were kept
    left = [place for place in range(count + len(dropped)) if place not in dropped]
    if package_of(original) == "datasets":
        return original.select(left)
    if package_of(original) == "pyarrow":
        return taken(original, left)
    return in_narwhals(original)[left].to_native()


def in_narwhals(frame: Any) -> Any:
    """The frame as narwhals sees it."""
    import narwhals

    return narwhals.from_native(frame, eager_only=True)


def cells_of(frame: Any, name: str) -> list[Any]:
    """The values of a column of a frame that narwhals sees; None for pandas' NA."""
    column = frame.get_column(name)
    try:
        return without_na(column.to_list())
    except (ValueError, OverflowError):  # years that Python lacks
        return arrow_cells(column.to_arrow())


def package_of(value: object) -> str:
    """The name of the package that an object's class comes from; nothing is imported."""
    return type(value).__module__.split(".", 1)[0]


def pandas_of(source: Any) -> Any:
    """An Arrow table or a polars frame as a pandas frame, in which whole numbers stay whole."""
    return with_whole_numbers(source.to_pandas(integer_object_nulls=True))


# A full memory and a package that is missing: the types of columns have no part in them.
NOT_OF_VALUES = (MemoryError, ImportError)


@contextmanager
def pandas_errors() -> Iterator[None]:
    """Raise DataError where pandas cannot hold columns, or what a file tells it of them is wrong."""
    try:
        yield
    except NOT_OF_VALUES:
        raise
    except Exception as error:  # of pandas and of Arrow, each with classes of its own
        raise not_convertible("pandas", error) from None


def not_convertible(library: str, error: BaseException) -> DataError:
    """The error of columns that a library cannot hold."""
    return DataError(
        f"{library} cannot hold the data's own columns: {error!r:.200}.",
        hint="to_arrow() gives them as they are.",
    )


def with_whole_numbers(frame: Any, rows: Sequence[Mapping[Any, Any]] | None = None) -> Any:
    """The pandas frame, whose columns of whole numbers are "Int64" where some are missing.

    pandas makes them floats, in which ids of more than 15 digits lose their last ones. So do such ids among
    fractions: that column is of the type "object".

    Args:
        frame: such columns are of the type "object" in it, or floats if there are `rows`.
        rows: what it was made of.
    """
    import pandas

    for place, name in enumerate(frame.columns):
        if frame.dtypes.iloc[place] != (object if rows is None else float):
            continue
        values: Any = frame.iloc[:, place] if rows is None else [row.get(name) for row in rows]
        there = [value for value in values if not is_null(value)]
        if there and all(isinstance(v, Integral) and not isinstance(v, bool) for v in there):
            kind = "Int64" if -(2**63) <= min(there) <= max(there) < 2**63 else "object"
            whole = [None if is_null(value) else int(value) for value in values]
            frame.isetitem(place, pandas.Series(whole, frame.index, kind))
        elif rows is not None and any(
            type(v) is not float and isinstance(v, Integral) and float(v) != v for v in there
        ):
            frame.isetitem(place, pandas.Series(values, frame.index, object))
    return frame


class _RowColumns(OwnColumns):
    """Columns of dicts, files and tuples, which each row carries."""

    def piece(self, places: Sequence[int], rows: Sequence[PersonaRow]) -> pyarrow.Table:
        return _arrow_of_dicts([own_values(row) for row in rows])

    def size(self, row: PersonaRow) -> int:
        return size_of(row.columns, number=STORED_BYTES)


class _TableColumns(OwnColumns):
    """Columns of a frame, which is turned into an Arrow table before the first call."""

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
    """Columns of a Hugging Face dataset. It may be larger than memory, so pieces of it are read."""

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


def taken(table: pyarrow.Table, places: Sequence[int]) -> pyarrow.Table:
    """The rows of an Arrow table at these places, in this order."""
    import numpy as np
    import pyarrow

    if not places:
        return table.slice(0, 0)
    try:
        return table.take(np.asarray(places, dtype=np.int64))
    except (pyarrow.ArrowNotImplementedError, pyarrow.ArrowInvalid):
        # It can slice what it cannot take, such as views.
        return pyarrow.concat_tables([table.slice(place, 1) for place in places]).combine_chunks()


def _gapless(places: Sequence[int]) -> bool:
    return not places or places[-1] - places[0] + 1 == len(places)


def _arrow_of_pandas(frame: Any, index: bool | None) -> pyarrow.Table:
    """The frame with its index. A column, or a level of the index, that Arrow would cut becomes JSON text."""
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
    # Of several levels it would leave out one that only counts, which is wrong for picked rows.
    table = pyarrow.Table.from_pandas(
        frame, preserve_index=index or (True if len(levels) > 1 else None)
    )
    for place, (field, values) in found.items():
        table = table.set_column(place, field.with_name(table.column_names[place]), values)
    return table


def _is_arrow(series: Any) -> bool:
    """Whether Arrow takes a pandas series or index, and gives back what objects it has."""
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
    return None if is_null(value) else value


def _arrow_of_narwhals(frame: Any) -> pyarrow.Table:
    """The frame; of polars' objects, Arrow would hold the addresses, and it has no integers of 128 bits."""
    unfit = [name for name, kind in frame.schema.items() if _NO_ARROW.search(str(kind))]
    table: pyarrow.Table = frame.drop(unfit).to_arrow()
    for name in unfit:
        field, values = _column(name, frame[name].to_list())
        table = table.add_column(frame.columns.index(name), field, values)
    return table


def _arrow_of_dicts(rows: Sequence[Mapping[str, Any]]) -> pyarrow.Table:
    import pyarrow

    names = names_of(rows)
    columns = [_column(text, [row.get(name) for row in rows]) for text, name in names.items()]
    schema = pyarrow.schema([field for field, _ in columns])
    return pyarrow.Table.from_arrays([array for _, array in columns], schema=schema)


def _column(name: str, values: Sequence[Any]) -> tuple[pyarrow.Field[Any], pyarrow.Array[Any]]:
    """A column of these values; JSON text if Arrow would not give them back."""
    import pyarrow

    if (array := kept_in_arrow(values)) is None:
        if not all(value is None or isinstance(value, str) for value in values):
            return as_json(pyarrow.field(name, pyarrow.string())), json_array(values)
        array = text_array(values)
    return pyarrow.field(name, array.type), array


def as_json(field: pyarrow.Field[Any]) -> pyarrow.Field[Any]:
    """The field of a column of that name that holds JSON text."""
    import pyarrow

    return pyarrow.field(field.name, pyarrow.string(), metadata=_JSON)


def is_json(field: pyarrow.Field[Any]) -> bool:
    """Whether a column holds JSON text because its values have no common type."""
    return (field.metadata or {}).get(b"personainfer") == b"json"


def json_array(values: Sequence[Any]) -> pyarrow.Array[Any]:
    """Any values as JSON text; None is "null"."""
    import pyarrow

    return pyarrow.array([json_text(value) for value in values], pyarrow.string())


def with_texts(
    table: pyarrow.Table, columns: Iterable[tuple[str, Sequence[str | None]]]
) -> pyarrow.Table:
    """The table with columns of text at its end; they replace columns of the same name.

    Their type is string even where all values are null.
    """
    import pyarrow

    new = dict(columns)
    kept = [place for place, name in enumerate(table.column_names) if name not in new]
    fields = [table.schema.field(place) for place in kept]
    fields += [pyarrow.field(name, pyarrow.string()) for name in new]
    arrays = [table.column(place) for place in kept] + [text_array(v) for v in new.values()]
    schema = pyarrow.schema(fields).with_metadata(table.schema.metadata)
    return pyarrow.Table.from_arrays(arrays, schema=schema)  # even if there were no columns before


def with_index_column(table: pyarrow.Table, places: Sequence[int]) -> pyarrow.Table:
    """The table with the labels of a pandas RangeIndex written out as a column.

    Arrow stores such an index as start, stop and step of the whole table, which is wrong for picked rows;
    `places` are their positions.
    """
    about = table.schema.metadata or {}
    described = json.loads(about.get(b"pandas") or b"{}")
    indexes = described.get("index_columns", [])
    counted = [each for each in indexes if isinstance(each, dict) and each.get("kind") == "range"]
    if len(counted) != 1 or len(indexes) != 1:
        return table
    import pyarrow

    start, step, name = (counted[0][key] for key in ("start", "step", "name"))
    field = "__index_level_0__" if name is None or name in table.column_names else str(name)
    described["index_columns"] = [field]
    kind = {"pandas_type": "int64", "numpy_type": "int64", "metadata": None}
    described["columns"] += [{"name": name, "field_name": field, **kind}]
    labels = pyarrow.array([start + step * place for place in places], pyarrow.int64())
    metadata = {**about, b"pandas": json.dumps(described).encode()}
    return table.append_column(field, labels).replace_schema_metadata(metadata)


def text_array(values: Sequence[str | None]) -> pyarrow.Array[Any]:
    r"""A column of text. A lone surrogate, which UTF-8 cannot hold, is written as \udcff."""
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
    """One type by its names in Arrow and Hugging Face, in pandas, and in polars; `listed`: lists of it."""

    arrow: Any  # a str, which pyarrow is typed to take only as a literal
    pandas: str
    polars: str
    listed: bool = False

    def in_arrow(self) -> Any:
        """The type, as pyarrow has it."""
        import pyarrow

        kind = pyarrow.type_for_alias(self.arrow)
        return pyarrow.list_(kind) if self.listed else kind

    def in_polars(self) -> Any:
        """The type, as polars has it."""
        import polars

        kind = getattr(polars, self.polars)
        return polars.List(kind) if self.listed else kind

    def in_hf(self) -> Any:
        """The type, as a feature of Hugging Face datasets."""
        import datasets

        kind = datasets.Value(self.arrow)
        return datasets.Sequence(kind) if self.listed else kind


_TYPES: dict[type, ColumnType] = {
    str: ColumnType("string", "object", "String"),
    bool: ColumnType("bool", "boolean", "Boolean"),
    int: ColumnType("int64", "Int64", "Int64"),
    float: ColumnType("float64", "float64", "Float64"),
}


Kinds = Mapping[str, ColumnType]


def stored_type(kind: pyarrow.DataType) -> ColumnType:
    """The type of a column that was added to a table, as its file has it."""
    return next((known for known in _TYPES.values() if known.arrow == _alias(kind)), _TYPES[str])


def _alias(kind: pyarrow.DataType) -> str:
    return {"double": "float64"}.get(str(kind), str(kind))


LISTS_OF_TEXT = ColumnType("string", "object", "String", listed=True)


def type_of(name: str, values: Sequence[Any]) -> ColumnType:
    """The type of a column; text where every value is None.

    Raises:
        InvalidArgumentError: values of several types, or that no column can hold.
    """
    found = {type(value) for value in values if value is not None} or {str}
    if found == {int, float}:
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


def plain_values(values: Any) -> list[Any]:
    """The values of a list, array, series or iterator as a new list of Python values.

    Raises:
        TypeError: something that has no values.
    """
    for convert in ("to_pylist", "to_list", "tolist"):  # Arrow, polars and pandas, numpy
        if callable(getattr(values, convert, None)):
            values = getattr(values, convert)()
            break
    return [_plain(value) for value in values]


def _plain(value: Any) -> Any:
    kind = type(value)
    if kind.__module__ == "numpy":
        return value.item()
    return None if kind.__name__ in ("NAType", "NaTType") else value  # what pandas has for None


def with_added(table: pyarrow.Table, added: Added, kinds: Kinds) -> pyarrow.Table:
    """The table with these columns at its end, in these types."""
    for name, values in added.items():
        table = table.append_column(name, _array(values, kinds[name]))
    return table


def _array(values: Sequence[Any], kind: ColumnType) -> pyarrow.Array[Any]:
    import pyarrow

    if kind.arrow == "string" and not kind.listed:
        return text_array(values)
    array: pyarrow.Array[Any] = pyarrow.array(values, kind.in_arrow())
    return array


class WithAdded(OwnColumns):
    """The user's own columns and the added ones, for a file that holds both."""

    def __init__(self, own: OwnColumns, added: Added, kinds: Kinds) -> None:
        self._own, self._added, self._kinds = own, added, kinds

    def piece(self, places: Sequence[int], rows: Sequence[PersonaRow]) -> pyarrow.Table:
        """The columns of the rows from the first of `places` to the last."""
        start = places[0] if places else 0
        table = self._own.piece(places, rows)
        for name, kind in self._kinds.items():
            values = self._added[name][start : start + len(places)]
            table = table.append_column(name, _array(values, kind))
        return table

    def size(self, row: PersonaRow) -> int:
        """About how many bytes the columns of a row take."""
        return self._own.size(row) + 16 * len(self._added)
