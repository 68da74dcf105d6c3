"""Make Arrow arrays of the values of columns, and read values out of Arrow and polars.

A column whose values have no common type becomes JSON text, and the metadata of its field says so. The last
part of the module has the types of the columns that are added to a table, such as a judge's verdicts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from ..exceptions import DataError, InvalidArgumentError, PersonaInferError
from ..preferences.cells import parse_cell, without_na
from .column_values import json_texts, kept_in_arrow, name_as_text

if TYPE_CHECKING:
    import numpy as np
    import pyarrow
    from numpy.typing import NDArray

_JSON = {b"personainfer": b"json"}  # metadata of a field whose text is JSON
_TIMES = re.compile(r"\b(Date|Datetime|Duration|Time)\b")  # types of polars, also within others
_NO_ARROW = re.compile(r"\b(Object|U?Int128)\b")  # types of polars that Arrow has none for


def package_of(value: object) -> str:
    """Return the package that an object's class comes from, such as "pandas"; import nothing.

    A class that is derived from one of a library of frames counts as that library's.
    """
    packages = [kind.__module__.partition(".")[0] for kind in type(value).__mro__]
    return next((package for package in packages if package in _OF_FRAMES), packages[0])


_OF_FRAMES = {"pandas", "polars", "pyarrow", "datasets"}


def in_narwhals(frame: Any) -> Any:
    """Wrap a pandas or polars frame, or an Arrow table, as a narwhals DataFrame."""
    import narwhals

    return narwhals.from_native(frame, eager_only=True)


# Values to arrays


def column_of(name: str, values: Sequence[Any]) -> tuple[pyarrow.Field[Any], pyarrow.Array[Any]]:
    """Make the field and the array of a column.

    The array has a type of Arrow's if that gives the same values back. Otherwise texts are written with
    escapes (see `text_array`), and all other values as JSON text.
    """
    import pyarrow

    if (array := kept_in_arrow(values)) is None:
        if not all(value is None or isinstance(value, str) for value in values):
            return json_field(name), json_array(values)
        array = text_array(values)
    return pyarrow.field(name, array.type), array


def json_field(name: str) -> pyarrow.Field[Any]:
    """Return a field of the type string, whose metadata say that its text is JSON."""
    import pyarrow

    return pyarrow.field(name, pyarrow.string(), metadata=_JSON)


def is_json(field: pyarrow.Field[Any]) -> bool:
    """Whether the metadata of a field says that its column holds values as JSON text: see `json_field`."""
    return (field.metadata or {}).items() >= _JSON.items()


def json_array(values: Sequence[Any]) -> pyarrow.Array[Any]:
    """Write each value as JSON text, in an Arrow array without nulls: None is the text "null"."""
    import pyarrow

    return pyarrow.array(json_texts(values), pyarrow.string())


def text_array(values: Sequence[str | None]) -> pyarrow.Array[Any]:
    r"""Make an Arrow array of texts; None is null. A lone surrogate, which UTF-8 lacks, becomes \udcff."""
    import pyarrow

    try:
        return pyarrow.array(values, pyarrow.string())
    except UnicodeError:
        escaped = [value if value is None else name_as_text(value) for value in values]
        return pyarrow.array(escaped, pyarrow.string())


def arrow_of_narwhals(frame: Any) -> pyarrow.Table:
    """Convert a narwhals frame to Arrow; columns of objects and of 128-bit integers become JSON text.

    Arrow would hold the addresses of polars' objects, and has no integers of 128 bits.
    """
    unfit = [name for name, kind in frame.schema.items() if _NO_ARROW.search(str(kind))]
    table: pyarrow.Table = frame.drop(unfit).to_arrow()
    for name in unfit:
        field, values = column_of(name, frame[name].to_list())
        table = table.add_column(frame.columns.index(name), field, values)
    return table


def with_arrays(table: pyarrow.Table, new: Mapping[str, pyarrow.Array[Any]]) -> pyarrow.Table:
    """Return the table with new columns, by name, at its end, in place of columns of the same names."""
    import pyarrow

    kept = [place for place, name in enumerate(table.column_names) if name not in new]
    fields = [table.schema.field(place) for place in kept]
    fields += [pyarrow.field(name, array.type) for name, array in new.items()]
    arrays: list[Any] = [*(table.column(place) for place in kept), *new.values()]
    schema = pyarrow.schema(fields).with_metadata(table.schema.metadata)
    return pyarrow.Table.from_arrays(arrays, schema=schema)  # even if there were no columns before


def taken(
    table: pyarrow.Table, places: Sequence[int] | NDArray[np.int64], *, copied: bool = False
) -> pyarrow.Table:
    """Return the rows of an Arrow table at some positions (from 0), in the order of the positions.

    Neighbours are a slice: it copies nothing, but the whole table stays in memory and in pickles. Where the
    rows may outlive the table, they are `copied`.
    """
    import numpy as np
    import pyarrow

    at = np.asarray(places, dtype=np.int64)
    if not len(at) or (not copied and (np.diff(at) == 1).all()):
        return table.slice(at[0] if len(at) else 0, len(at))
    try:
        return table.take(at)
    except (pyarrow.ArrowNotImplementedError, pyarrow.ArrowInvalid):
        if table.num_columns > 1:  # most likely Arrow can take the others, and in less time
            columns = [
                taken(table.select([n]), at, copied=copied).column(0)
                for n in range(table.num_columns)
            ]
            return pyarrow.Table.from_arrays(columns, schema=table.schema)
        # It can slice what it cannot take, such as views.
        rows = [table.slice(place, 1) for place in at.tolist()]
        return pyarrow.concat_tables(rows).combine_chunks()


# Arrays to values


def arrow_cells(column: Any) -> list[object]:
    """Return the values of an Arrow column as Python values; null is None.

    A value that Python lacks becomes text: a date after the year 9999 as Arrow writes it, a text that is not
    UTF-8 with lone surrogates for its wrong bytes. Python's times of day end at microseconds: if one of a
    column has a finer part, all times of that column become text, also within lists and structs.
    """
    import pyarrow as pa

    if "time64[ns]" in str(column.type):
        for times in (pa.time64("us"), pa.string()):
            with suppress(ValueError, TypeError, NotImplementedError):  # values would be cut
                column = column.cast(_with_times(column.type, times))
                break
    try:
        return list(column.to_pylist())
    except _NO_PYTHON_VALUE:
        return [_arrow_cell(scalar) for scalar in column]


def decoded_cells(column: Any) -> list[object]:
    """Return the values of an Arrow column, as `arrow_cells`, with those of the type arrow.json parsed.

    `datasets` writes its feature Json so, also within lists and structs. What is not JSON stays text.
    """
    cells = arrow_cells(column)
    if _JSON_TYPE not in str(column.type):
        return cells
    return [_decoded(column.type, cell) for cell in cells]


_JSON_TYPE = "extension<arrow.json>"


def _decoded(kind: Any, value: Any) -> Any:
    import pyarrow as pa

    if str(kind) == _JSON_TYPE:
        with suppress(DataError):
            return parse_cell("", value)
    elif pa.types.is_struct(kind) and isinstance(value, dict):
        return value | {f.name: _decoded(f.type, value[f.name]) for f in kind if f.name in value}
    elif isinstance(value, list) and (inner := getattr(kind, "value_type", None)) is not None:
        return [_decoded(inner, each) for each in value]
    return value


def _with_times(kind: Any, times: Any) -> Any:
    """Return an Arrow type with `times` in place of each time of day with nanoseconds within it."""
    import pyarrow as pa

    if kind == pa.time64("ns"):
        return times
    if pa.types.is_struct(kind):
        return pa.struct([one.with_type(_with_times(one.type, times)) for one in kind])
    for is_list, made in ((pa.types.is_list, pa.list_), (pa.types.is_large_list, pa.large_list)):
        if is_list(kind):
            return made(kind.value_field.with_type(_with_times(kind.value_type, times)))
    return kind


# A year, a zone of time, names that are there twice, or a type that Python does not have.
_NO_PYTHON_VALUE = (ArithmeticError, LookupError, ValueError, NotImplementedError)


def _arrow_cell(scalar: Any) -> object:
    """Return the value of one cell, as `arrow_cells`."""
    import pyarrow as pa

    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        if not isinstance(scalar, pa.StringScalar | pa.LargeStringScalar):
            return "\udcff"
        return scalar.as_buffer().to_pybytes().decode("utf-8", "surrogateescape")
    except _NO_PYTHON_VALUE:
        try:
            return scalar.cast(pa.string()).as_py()
        except _NO_PYTHON_VALUE:
            return f"a value of {scalar.type} that Python lacks"


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


# A full memory and a package that is missing: the types of columns have no part in them.
NOT_OF_VALUES = (MemoryError, ImportError)


@contextmanager
def conversion_errors(library: str) -> Iterator[None]:
    """Convert columns to those of a library, such as "pandas", in this block: errors become a `DataError`.

    They mean that the library cannot hold the columns, or that the metadata of a file about them is wrong.
    Errors of ours, `MemoryError` and `ImportError` are raised as they are.
    """
    try:
        yield
    except (PersonaInferError, *NOT_OF_VALUES):
        raise
    except BaseException as error:  # of the library and of Arrow, each with classes of its own
        if not is_failure(error):
            raise
        raise DataError(
            f"{library} cannot hold the data's own columns: {error!r:.200}.",
            hint="to_arrow() gives them as they are.",
        ) from None


def is_failure(error: BaseException) -> bool:
    """Whether this is an error, and no wish to end the program. Panics of polars are no `Exception`."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


# Columns that are added to a table


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


TEXT = ColumnType("string", "object")
LISTS_OF_TEXT = TEXT._replace(listed=True)
_TYPES: dict[type, ColumnType] = {
    str: TEXT,
    bool: ColumnType("bool", "boolean"),
    int: ColumnType("int64", "Int64"),
    float: ColumnType("float64", "float64"),
}


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
        return TEXT
    for known in _TYPES.values():
        if known.in_arrow() == kind:
            return known
    raise ValueError(f"an added column of the type {kind}")


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
