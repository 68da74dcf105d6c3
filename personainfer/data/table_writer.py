"""Write rows to a Parquet file as they arrive, one row group at a time, in bounded memory.

The file has a hidden name until it is complete. A column whose type changes on the way is widened, to JSON
text if necessary, so that no paid reply is lost.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import lru_cache
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..exceptions import DataError, InvalidArgumentError, visible
from ..local.atomic_files import put_in_place, unfinished_folder
from ..local.parquet import written_bytes
from ..local.paths import as_path, at_home, check_file, check_replaced, followed, place_errors
from ..records import PersonaRow, Preference, Usage
from .arrow_columns import (
    arrow_cells,
    is_json,
    json_array,
    json_field,
    text_array,
    with_arrays,
)
from .column_values import COLUMNS, MOST_FIELDS, RECORD, TAKEN_NAMES, fields_of, is_kept
from .file_formats import refuse_twins
from .own_columns import OwnColumns
from .table_display import persona_columns
from .table_reader import StoredTable, check_settings, record_of

if TYPE_CHECKING:
    import pyarrow

GROUP_ROWS = 1024  # rows of a row group: what is held in memory, written and read at once …
GROUP_BYTES = 32_000_000  # … or fewer, where rows are so large

Placed = tuple[int, PersonaRow]  # a row, and where its own columns lie in the input


def check_output(output: str | Path, data: object) -> Path:
    """Check the argument `output`, a file for a table, and return it as an absolute path.

    The file itself is not written.

    Args:
        output: the .parquet file.
        data: the input of the run; a path in it must be another file.

    Raises:
        InvalidArgumentError: the name has another ending, its folder does not exist, the place cannot be
            written to, it is the input, or a file that is not a table of personas is there.
        OSError: the disk is full or broken.
    """
    named = f"output={str(output)!r:.200}"
    if not isinstance(output, str | Path) or Path(output).suffix != ".parquet":
        raise InvalidArgumentError(
            f"{named} is not a path that ends in .parquet.",
            hint="For another format use to_pandas(), to_polars() or to_hf().",
            argument="output",
        )
    path = as_path(output, "output")
    with place_errors(path, "output"):
        if not path.parent.is_dir():
            raise InvalidArgumentError(
                f"{named}: there is no folder {str(path.parent)!r}.",
                hint="Make it first.",
                argument="output",
            )
        if not path.is_dir():
            check_file(path)
        with unfinished_folder(followed(path)):
            pass  # it can be made
        if isinstance(data, str | Path) and _is_same_file(path, data):
            raise InvalidArgumentError(
                f"{named} is the input.", hint="Name another file.", argument="output"
            )
        check_replaced(
            path,
            is_table,
            "a table of personas",
            named=named,
            argument="output",
            otherwise="or remove it",
        )
        return path.absolute()  # the program may go to another folder during a run


def check_free_names(names: Iterable[object]) -> None:
    """Raise InvalidArgumentError if a column of the data has a name that the table itself needs."""
    if not TAKEN_NAMES.isdisjoint(names):
        raise InvalidArgumentError(
            f"the data has a column {sorted(TAKEN_NAMES.intersection(names))[0]} already.",
            hint="Rename or drop it: it would be lost. Failed rows of a table of personas are asked"
            " again by retry_errors, or infer --retry.",
            argument="data",
        )


def _is_same_file(path: Path, data: str | Path) -> bool:
    read = at_home(data)
    return path.exists() and read.exists() and path.samefile(read)


def is_table(path: Path) -> bool:
    """Whether a file is a table of personas that this version can read."""
    try:
        StoredTable(path)
    except (DataError, InvalidArgumentError, OSError):
        return False
    return True


def write_table(
    path: Path,
    rows: Iterable[Placed],
    own: OwnColumns,
    about: Callable[[], tuple[Usage, Mapping[str, Any]]],
    *,
    added: Sequence[str] = (),
    is_part: bool = False,
) -> None:
    """Write rows as they arrive, with one row group of them in memory.

    The file replaces an older one when it is complete. After any failure, nothing is left behind. A
    UserWarning names columns with values that cannot be read, and are left out.

    Args:
        path: the file; its folder must exist.
        rows: (position in the source of the own columns, row), in rising order.
        own: the source of the user's own columns, and of the added ones.
        about: a function that returns the usage and the settings. It is called after the last row.
        added: the names of the columns that are not the user's own.
        is_part: whether the usage is that of more rows.

    Raises:
        InvalidArgumentError: a column of the data has the name of the column of records, or the settings
            cannot be written.
        DataError: two columns have the same name.
        OSError: the disk is full, or the place cannot be written to.
        Exception: whatever `rows` raises.
    """
    file = _Unfinished(path)
    flagged = unexplained = 0
    try:
        for group in _groups(rows, own):
            made = [row for _, row in group]
            file.write(_table(own.piece([place for place, _ in group], made), made))
            flagged += sum(bool(row.flags) for row in made)
            unexplained += sum(bool(row.unexplained) for row in made)
        usage, settings = about()
        check_settings(settings)
        file.finish(
            {
                "version": version("personainfer"),
                "usage": usage.model_dump(),
                "settings": dict(settings),
                "flagged": flagged,
                "unexplained": unexplained,
                "added": list(added),
                "is_part": is_part,
            }
        )
    finally:
        file.discard()


def _groups(rows: Iterable[Placed], own: OwnColumns) -> Iterator[list[Placed]]:
    """Yield rows in groups of bounded size; without rows, one empty group, so that columns are written."""
    group: list[Placed] = []
    size, empty = 0, True
    for place, row in rows:
        group.append((place, row))
        size += own.size(row) + _size(row.preference)
        empty = False
        if len(group) >= GROUP_ROWS or size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group or empty:
        yield group


def _size(pair: Preference | None) -> int:
    if pair is None:
        return 0
    prompt = pair.prompt
    asked = len(prompt) if isinstance(prompt, str) else sum(len(m.content) for m in prompt)
    return asked + len(pair.chosen) + len(pair.rejected)


def _table(own: pyarrow.Table, rows: Sequence[PersonaRow]) -> pyarrow.Table:
    if RECORD in own.column_names:
        raise InvalidArgumentError(
            f"the data has a column {RECORD}, which a saved table needs for itself.",
            hint="Rename the column.",
        )
    refuse_twins(own.column_names)  # nobody could read the file
    texts = persona_columns(rows) | {RECORD: [record_of(row) for row in rows]}
    return with_arrays(own, {name: text_array(values) for name, values in texts.items()})


class _Unfinished:
    """A file that is being written, in parts in a hidden folder beside it.

    A new part begins whenever a column is widened. At the end the parts are joined.
    """

    def __init__(self, path: Path) -> None:
        self._path = followed(path)
        self._place = ExitStack()
        self._folder = self._place.enter_context(unfinished_folder(self._path))
        self._parts: list[Path] = []
        self._left_out: dict[str, str] = {}  # columns with values that cannot be read, and why
        self._schema: pyarrow.Schema | None = None
        self._writer: Any = None

    def write(self, table: pyarrow.Table) -> None:
        """Append some rows. Their columns may differ from those of the rows before."""
        schema, fitted = _fitted(table, _widened(self._schema, table.schema), self._left_out)
        if self._schema is None or not schema.equals(self._schema, check_metadata=True):
            self._open_part(schema)
        if table.num_rows:
            self._writer.write_table(fitted, row_group_size=_rows_at_once(fitted))

    def finish(self, about: Mapping[str, Any]) -> None:
        """Join the parts into the file, and rename it to its own name.

        A UserWarning names columns whose values were left out. `about` goes into the metadata of the file.
        """
        if len(self._parts) > 1:
            self._join()
        self._writer.add_key_value_metadata({RECORD: json.dumps(about)})
        self._writer.close()
        try:
            StoredTable(self._parts[-1])  # a table is replaced by nothing that `load` would refuse
        except DataError:
            raise DataError(
                f"{self._path} is not written: what was made for it cannot be read again.",
                hint="Write another format: to_pandas(), to_polars() or to_hf().",
            ) from None
        put_in_place(self._parts[-1], self._path)
        # Now that the file is in its place: a warning may be an error.
        for name, why in self._left_out.items():
            warnings.warn(
                f"values of the column {visible(name)} are left out of the file: {why} while they were read.",
                stacklevel=3,
            )

    def discard(self) -> None:
        """Remove the hidden folder and whatever is left in it."""
        if self._writer is not None:
            with suppress(OSError):  # a full disk, for one, which has been told of already
                self._writer.close()
        self._place.close()

    def _open_part(self, schema: pyarrow.Schema) -> None:
        from pyarrow.parquet import ParquetWriter

        if self._writer is not None:
            self._writer.close()
        self._schema = schema
        self._parts.append(self._folder / f"{len(self._parts)}.parquet")
        self._writer = ParquetWriter(self._parts[-1], schema)

    def _join(self) -> None:
        """Write all parts into one file, with types that hold every value."""
        parts = list(self._parts)
        while (wider := self._joined(parts)) is not None:
            self._schema = wider

    def _joined(self, parts: Sequence[Path]) -> pyarrow.Schema | None:
        """Join the parts; return a wider schema if a value of an earlier part needs one, else None."""
        schema = self._schema
        assert schema is not None
        self._open_part(schema)
        for group in chain.from_iterable(map(_row_groups, parts)):
            wider, fitted = _fitted(group, schema, self._left_out)
            if not wider.equals(schema, check_metadata=True):
                return wider
            self._writer.write_table(fitted, row_group_size=_rows_at_once(fitted))
        return None


def _rows_at_once(table: pyarrow.Table) -> int:
    """Return how many rows a row group takes.

    Texts that come again and again count each time; in `OwnColumns.size` they count once.
    """
    too_large = written_bytes(table) // (2 * GROUP_BYTES)
    return max(1, table.num_rows // (too_large + 1))


def _row_groups(part: Path) -> Iterator[pyarrow.Table]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(part) as file:
        for number in range(file.num_row_groups):
            yield file.read_row_group(number)


# Schemas that grow


def _widened(known: pyarrow.Schema | None, new: pyarrow.Schema) -> pyarrow.Schema:
    """Return a schema that holds rows of both schemas; `known` is None for the first rows.

    The user's columns come in the order in which they first occurred, then ours.
    """
    import pyarrow

    if known is None:
        return pyarrow.schema([_storable(field) for field in new]).with_metadata(new.metadata)
    if known.equals(new, check_metadata=True):
        return known
    fields = {field.name: field for field in known}
    ours = {name: fields.pop(name) for name in (*COLUMNS, RECORD)}
    for field in new:
        if field.name not in ours:
            before = fields.get(field.name)
            fields[field.name] = _storable(field) if before is None else _common(before, field)
    return pyarrow.schema([*fields.values(), *ours.values()]).with_metadata(known.metadata)


def _common(one: pyarrow.Field[Any], other: pyarrow.Field[Any]) -> pyarrow.Field[Any]:
    """Return a field whose type holds the values of both fields; JSON text if there is no such type."""
    import pyarrow

    if one.equals(other, check_metadata=True):
        return one
    if is_json(one) or is_json(other):
        return json_field(one.name)
    schemas = [pyarrow.schema([field.remove_metadata()]) for field in (one, other)]
    try:
        merged = pyarrow.unify_schemas(schemas, promote_options="permissive")
    except pyarrow.ArrowException:
        return json_field(one.name)
    if fields_of(merged.field(0).type) > max(
        MOST_FIELDS, fields_of(one.type), fields_of(other.type)
    ):
        return json_field(one.name)  # each part of the file may have dicts with other keys
    return _storable(merged.field(0))


def _storable(field: pyarrow.Field[Any]) -> pyarrow.Field[Any]:
    """Return the field; JSON text for a type that Parquet lacks (empty structs, intervals of months)."""
    return field if _has_parquet(field.type) else json_field(field.name)


@lru_cache(maxsize=4096)
def _has_parquet(kind: pyarrow.DataType) -> bool:
    import pyarrow
    from pyarrow.parquet import ParquetFile, ParquetWriter

    try:
        written = pyarrow.BufferOutputStream()
        ParquetWriter(written, pyarrow.schema([("x", kind)])).close()
        ParquetFile(pyarrow.BufferReader(written.getvalue()))  # what is nested deep is only written
    except (pyarrow.ArrowException, OSError):
        return False
    return True


def _fitted(
    table: pyarrow.Table, schema: pyarrow.Schema, left_out: dict[str, str]
) -> tuple[pyarrow.Schema, pyarrow.Table]:
    """Convert a table to a schema; a column whose values do not fit, or not into Parquet, becomes JSON text.

    Args:
        table: some rows.
        schema: the schema that they should have.
        left_out: column -> why values of it are lost; such columns are added.

    Returns:
        The schema that the rows have now, and the rows.
    """
    import pyarrow

    fields, columns = [], []
    for field in schema:
        column = _fit(table, field, left_out)
        if column is None or not (is_json(field) or _can_be_written(column)):
            field = json_field(field.name)
            column = _fit(table, field, left_out)
        fields.append(field)
        columns.append(column)
    schema = pyarrow.schema(fields).with_metadata(schema.metadata)
    return schema, pyarrow.Table.from_arrays(columns, schema=schema)


def _fit(table: pyarrow.Table, field: pyarrow.Field[Any], left_out: dict[str, str]) -> Any:
    """Return the table's column in the type of the field; None if a value does not fit."""
    import pyarrow

    place = table.schema.get_field_index(field.name)
    if place < 0:
        missing = [None] * table.num_rows
        return json_array(missing) if is_json(field) else pyarrow.array(missing, field.type)
    column, own = table.column(place), table.schema.field(place)
    if is_json(own) == is_json(field) and own.type == field.type:
        return column
    if is_json(field):
        return json_array(_cells(column, field.name, left_out))
    try:
        wider: Any = column.cast(field.type)
        wider.validate()  # a cast makes impossible lists of nulls within structs
    except pyarrow.ArrowException:
        try:  # what casts do not know yet
            wider = pyarrow.array(column.to_pylist(), field.type)
        except (pyarrow.ArrowException, ValueError, TypeError, OverflowError):
            return None
    if _is_of_json(own.type) and _is_of_json(field.type):  # it cuts none of them
        return wider
    return wider if is_kept(_cells(column, field.name, {}), wider) else None


@lru_cache(maxsize=4096)
def _is_of_json(kind: pyarrow.DataType) -> bool:
    """Whether a type consists of texts, numbers, booleans and nulls only, also in lists and structs."""
    from pyarrow import types

    if types.is_list(kind) or types.is_struct(kind):
        return all(_is_of_json(kind.field(place).type) for place in range(kind.num_fields))
    known = types.is_string, types.is_integer, types.is_float64, types.is_boolean, types.is_null
    return any(check(kind) for check in known)


def _cells(column: Any, name: str, left_out: dict[str, str]) -> list[Any]:
    """Return the values of a column; only None, and an entry in `left_out`, if they cannot be read."""
    try:
        return arrow_cells(column)
    except Exception as error:  # of whatever class: it is a type that nobody has tried
        left_out.setdefault(name, type(error).__name__)  # its message may hold values
        return [None] * len(column)


def _can_be_written(column: Any) -> bool:
    """Whether Parquet takes these values and gives them back.

    Of some types it lacks a few values, such as far years in seconds.
    """
    import pyarrow
    from pyarrow import parquet

    if pyarrow.types.is_dictionary(column.type):
        chunks: list[Any] = getattr(column, "chunks", [column])
        if _is_plain_dictionary(column.type) and not any(c.dictionary.null_count for c in chunks):
            return True
    elif _is_plain(column.type):
        return True
    try:
        written = pyarrow.BufferOutputStream()
        parquet.write_table(pyarrow.Table.from_arrays([column], ["x"]), written)
        read = parquet.read_table(pyarrow.BufferReader(written.getvalue())).column(0)
    except (pyarrow.ArrowException, OSError):
        return False
    return read.type == column.type or is_kept(arrow_cells(column), read)  # durations: as numbers


def _is_plain_dictionary(kind: pyarrow.DictionaryType[Any, Any]) -> bool:
    """Whether Parquet takes dictionaries of a type, unless a null is among their values."""
    from pyarrow import types

    inner = kind.value_type
    is_odd = types.is_nested(inner) or types.is_null(inner) or types.is_temporal(inner)
    return not is_odd and _is_plain(inner)


@lru_cache(maxsize=4096)
def _is_plain(kind: pyarrow.DataType) -> bool:
    """Whether Parquet is known to take all values of a type; the types of most columns are such."""
    from pyarrow import types

    if types.is_fixed_size_list(kind) and not kind.list_size:
        return False
    lists = types.is_list, types.is_large_list, types.is_fixed_size_list
    if types.is_struct(kind) or any(check(kind) for check in lists):
        return all(_is_plain(kind.field(place).type) for place in range(kind.num_fields))
    if types.is_timestamp(kind):
        return bool(kind.unit != "s")  # Parquet counts no seconds
    texts = types.is_string, types.is_large_string, types.is_binary, types.is_large_binary
    numbers = types.is_integer, types.is_float32, types.is_float64, types.is_decimal
    others = types.is_boolean, types.is_null, types.is_date32
    return any(check(kind) for check in (*texts, *numbers, *others))
