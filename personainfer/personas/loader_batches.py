"""Read a data loader's batch as rows, and add the columns of personas to a copy of the batch.

A batch is a pandas, polars or Arrow table, a mapping of columns, or a list of dicts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence, Set
from typing import Any, NamedTuple

from ..data.arrow_columns import cells_of, decoded_cells, in_narwhals, package_of
from ..data.column_values import COLUMNS
from ..data.containers import KnownSchemas, read_cells
from ..data.own_columns import own_names
from ..data.source_rows import SourceRow
from ..data.table import PersonaTable
from ..data.table_display import persona_columns
from ..exceptions import InvalidArgumentError, PersonaInferError
from ..preferences.cells import ABSENT
from ..preferences.schemas import Mapped

_SUPPORTED = (
    "It is a mapping of columns, a pandas or polars DataFrame, a pyarrow Table, or a list of dicts."
)


class BatchKind(NamedTuple):
    """How batches of one type are read and returned.

    Attributes:
        names: a function batch -> names of its columns.
        rows: a function (batch, the caller's options about the data, the schemas of earlier batches) -> rows.
            A new schema is added to the schemas. It raises DataError if the columns are no preference data,
            and InvalidArgumentError if they are no columns of one length.
        check_drop: a function that raises InvalidArgumentError if no rows of the batch can be dropped: a
            column that is not read is none, or has another length.
        result: a function (batch, table of its personas) -> the new batch. The table, and so the new batch,
            lack the rows that were dropped.
        is_frame: whether the batch is a pandas, polars or Arrow table, whose columns the table of personas
            keeps.
    """

    names: Callable[[Any], Sequence[Any]]
    rows: Callable[[Any, Mapped, KnownSchemas], list[SourceRow]]
    result: Callable[[Any, PersonaTable], Any]
    is_frame: bool = False
    check_drop: Callable[[Any], object] = id


def batch_kind(batch: object) -> BatchKind:
    """Return how to read a batch of this type, and how to return it with personas.

    Raises:
        InvalidArgumentError: the type is not supported, or an item of a list is not a dict.
    """
    name = f"{package_of(batch)}.{type(batch).__name__}"
    if name in _FRAMES:
        return BatchKind(own_names, _rows_of_frame, _FRAMES[name], is_frame=True)
    if isinstance(batch, Mapping):
        return _COLUMNS
    if isinstance(batch, list | tuple):
        for place, row in enumerate(batch):
            if not isinstance(row, Mapping):
                raise InvalidArgumentError(
                    f"row {place} of a batch is of type {type(row).__name__}, not a dict.",
                    hint=_SUPPORTED,
                )
        return _DICTS
    raise InvalidArgumentError(
        f"a batch of type {type(batch).__name__} cannot be used.", hint=_SUPPORTED
    )


# Frames


def _pandas_result(batch: Any, table: PersonaTable) -> Any:
    """Return a frame with the new columns, which get the string type of the batch's own columns, if any."""
    import pandas

    frame = table.to_pandas()
    own = [kind for kind in batch.dtypes if isinstance(kind, pandas.StringDtype)]
    return frame.astype(dict.fromkeys(COLUMNS, own[0])) if own else frame


_FRAMES: dict[str, Callable[[Any, PersonaTable], Any]] = {
    "pandas.DataFrame": _pandas_result,
    "polars.DataFrame": lambda _, table: table.to_polars(),
    "pyarrow.Table": lambda _, table: table.to_arrow(),
}


def _rows_of_frame(batch: Any, told: Mapped, known: KnownSchemas) -> list[SourceRow]:
    if not len(batch):
        return []  # some loaders pass an empty batch first, to learn the columns

    def cells(name: str) -> Iterable[object]:
        if package_of(batch) == "pyarrow":
            return decoded_cells(batch.column(name))
        return cells_of(in_narwhals(batch), name)

    return read_cells(own_names(batch), cells, told, known)


# Mappings of columns


def _rows_of_columns(
    batch: Mapping[str, Any], told: Mapped, known: KnownSchemas
) -> list[SourceRow]:
    sizes: dict[str, int] = {}

    def cells(name: str) -> Iterable[object]:
        values = batch[name]
        sizes[name] = _length(name, values)
        if package_of(values) == "pyarrow":  # a chunked array has no tolist
            return values.to_pylist()  # type: ignore[no-any-return]
        return values.tolist() if hasattr(values, "tolist") else values  # type: ignore[no-any-return]

    rows = read_cells(list(batch), cells, told, known) if batch else []
    _check_equal(sizes)
    return rows


def _check_columns(batch: Mapping[str, Any]) -> None:
    """Raise InvalidArgumentError unless all columns of a batch are columns of one length."""
    if package_of(batch) != "datasets":  # those have one length; to look at them decodes them
        _check_equal({name: _length(name, values) for name, values in batch.items()})


def _check_equal(sizes: Mapping[str, int]) -> None:
    if len(set(sizes.values())) > 1:
        raise InvalidArgumentError(f"the columns of a batch have different lengths: {sizes}.")


def _length(name: str, values: Any) -> int:
    """Return how many values a column has.

    Raises:
        InvalidArgumentError: it is no column: a single value, an iterator, or a dict or set, whose values
            have no places.
    """
    shape = getattr(values, "shape", None)  # of an array; () if it holds a single value
    sized = hasattr(values, "__len__") if shape is None else len(shape) > 0
    if not sized or isinstance(values, str | bytes | Mapping | Set):
        raise InvalidArgumentError(
            f"the column {name!r} of a batch is one {type(values).__name__}, not a list.",
            hint="Give batches, not single rows: in datasets, map(…, batched=True).",
        )
    return len(values) if shape is None else shape[0]


def _result_of_columns(batch: Mapping[str, Any], table: PersonaTable) -> Mapping[str, Any]:
    result = copy.copy(batch) if isinstance(batch, MutableMapping) else dict(batch)
    if table.settings.get("dropped"):
        kept = [row.index for row in table]
        for name, values in batch.items():
            result[name] = _at_places(values, kept)
    for name, texts in persona_columns(table).items():
        result[name] = _like(batch, texts)
    return result


def _at_places(values: Any, places: Sequence[int]) -> Any:
    """Return the values at these places (0, 1, …), in the column's own type if that can be."""
    import numpy

    index = numpy.array(places, dtype=numpy.int64)  # an empty list would have no type
    if hasattr(values, "iloc"):
        return values.iloc[index]  # pandas would take what is in brackets for labels
    if package_of(values) == "pyarrow":
        return values.take(index)
    if hasattr(values, "tolist") and hasattr(values, "dtype"):  # an array or a tensor
        return values[index]
    return [values[place] for place in places]


def _like(batch: Mapping[str, Any], texts: list[str | None]) -> Any:
    """Return the texts as a NumPy array if all columns of the batch are arrays; else as a list.

    For a batch of Hugging Face `datasets`, return what `_typed` does.
    """
    import numpy

    if package_of(batch) == "datasets":
        return _typed(texts)
    arrays = [values for values in batch.values() if isinstance(values, numpy.ndarray)]
    if not arrays or len(arrays) < len(batch):
        return texts
    if any(values.dtype.kind in "UT" for values in arrays):
        return _typed(texts)
    return numpy.array(texts, dtype=object)


def _typed(texts: list[str | None]) -> Any:
    """Return a NumPy array whose type is text even if all values are None; the list itself before NumPy 2.

    Hugging Face takes a column's type from the first batch that it writes. If all errors of that batch
    were None without a type, later batches could not hold an error.
    """
    import numpy

    strings = getattr(numpy.dtypes, "StringDType", None)  # since numpy 2
    return texts if strings is None else numpy.array(texts, dtype=strings(na_object=None))


# Lists of dicts


def _names_of_dicts(batch: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in batch for name in row))


def _rows_of_dicts(
    batch: Sequence[Mapping[str, Any]], told: Mapped, known: KnownSchemas
) -> list[SourceRow]:
    def cells(name: str) -> Iterable[object]:
        return [row.get(name, ABSENT) for row in batch]

    try:
        return read_cells(_names_of_dicts(batch), cells, told, known)
    except PersonaInferError as error:  # a list may be short, so that all of its rows may be bad
        return [SourceRow(None, str(error), {}) for _ in batch]


def _result_of_dicts(
    batch: Sequence[Mapping[str, Any]], table: PersonaTable
) -> list[dict[str, Any]]:
    columns = persona_columns(table).items()
    return [
        {**batch[row.index], **{name: texts[place] for name, texts in columns}}
        for place, row in enumerate(table)
    ]


_COLUMNS = BatchKind(list, _rows_of_columns, _result_of_columns, check_drop=_check_columns)
_DICTS = BatchKind(_names_of_dicts, _rows_of_dicts, _result_of_dicts)
