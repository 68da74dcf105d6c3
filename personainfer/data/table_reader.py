"""Read a table of personas from a Parquet file, one row group at a time.

The file has the user's columns, then the personas as text, then one column with each row's records as JSON.
Its metadata says how the table was made. Positions count from 0.
"""

from __future__ import annotations

import json
import os
import re
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ..exceptions import DataError, InvalidArgumentError, quoted
from ..local.parquet import (
    least_bytes,
    listed_bytes,
    most_unpacked,
    paths_of_lists,
    whole_group,
    with_dictionaries,
)
from ..local.paths import check_file
from ..preferences.cells import read_json
from ..records import Candidate, Persona, PersonaRow, Preference, Usage
from .arrow_columns import ColumnType, conversion_errors, stored_type, taken
from .column_values import COLUMNS, RECORD, TAKEN_NAMES, fits_utf_8, has_other_keys, in_utf_8
from .file_formats import missing_file
from .own_columns import OwnColumns, index_columns, pandas_of, with_index_column
from .table_display import persona_columns

if TYPE_CHECKING:
    import pyarrow

_MOST_VALUES = 200_000  # of known settings: each that is wrong takes memory for its error
_BLOCK = 8192  # rows that are read at once where a table is in another order than its file


# Arrow's reader of a file is not safe for several threads: it crashes, or waits for ever.
_reading = threading.Lock()


def _forget_lock() -> None:
    """Make a new lock in a fork: another thread of the parent process may have held the lock."""
    global _reading
    _reading = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_lock)


class StoredTable:
    """An open file of a table. It can still be read after the file on disk was replaced.

    Attributes:
        path: the file.
        usage: the calls, tokens and cost of the run.
        settings: how the personas were made.
        flagged: how many rows have a flag; None: the file does not tell.
        unexplained: how many rows have a side that no candidate explains; None: the file does not tell.
        is_part: whether the usage is that of more rows than the table has.
        ends: 0, and how many rows there are up to the end of each row group.
        row_bytes: the mean bytes of a row, unpacked.

    Raises:
        DataError: the file is not a table of personas that this version can read.
        InvalidArgumentError: there is no such file (`MissingFileError`), or it is a folder, a pipe or a
            device.
        OSError: the system cannot open or read the file.
    """

    def __init__(self, path: str | Path) -> None:
        import pyarrow
        from pyarrow.parquet import ParquetFile

        self.path = path
        if not Path(path).exists():
            raise missing_file(path, (".parquet",))
        check_file(Path(path))
        try:
            self._opened = opened = pyarrow.OSFile(str(path), "rb")
            self._file = ParquetFile(opened)
            self._packed = with_dictionaries(opened, self._file.metadata)
            self._most_bytes = most_unpacked(opened.size())
            about = read_json((self._file.metadata.metadata or {})[RECORD.encode()])
            self.usage = Usage(**read_json(json.dumps(about["usage"]), _MOST_VALUES))
            self.settings: dict[str, Any] = dict(about["settings"])
            check_settings(self.settings, is_read=True)
            self.flagged = _count_or_none(about.get("flagged"))
            self.unexplained = _count_or_none(about.get("unexplained"))
            self.is_part = about.get("is_part") is True
            self._added: list[str] = about.get("added", [])
            _check_columns(self._file.schema_arrow, self._added)
            _check_groups(self._file.metadata)
            self._lists = paths_of_lists(self._file.metadata.schema)
        except (pyarrow.ArrowException, OSError, *_SPOILT) as error:
            if getattr(error, "errno", None) is not None:  # it is not the user's
                raise
            raise DataError(
                f"{path} is not a table of personas that this version knows.",
                hint="A table is a .parquet file that PersonaTable.save, output= or infer -o wrote; a .jsonl"
                " file does not hold all of it.",
            ) from None
        meta = self._file.metadata
        self._about = _known_metadata(self._file.schema_arrow, meta.num_rows)
        groups = [meta.row_group(number) for number in range(meta.num_row_groups)]
        self.ends = [0, *accumulate(group.num_rows for group in groups)]
        self.row_bytes = sum(group.total_byte_size for group in groups) // max(self.ends[-1], 1)

    @property
    def rows(self) -> StoredRows:
        """All rows, each of which is read when it is asked for."""
        return StoredRows(self)

    @property
    def columns(self) -> StoredColumns:
        """The user's own columns, read when they are asked for."""
        return StoredColumns(self)

    @property
    def own_names(self) -> list[str]:
        """The names of the user's own columns."""
        ours = {*COLUMNS, RECORD, *self._added}
        return [name for name in self._file.schema_arrow.names if name not in ours]

    @cached_property
    def arrow_names(self) -> list[str]:
        """The names of the user's own columns, and of a pandas index that only counts the rows."""
        table = self._file.schema_arrow.empty_table().select(self.own_names)
        return with_index_column(
            table.replace_schema_metadata(self._about), (), self.ends[-1]
        ).column_names

    @property
    def added(self) -> dict[str, list[Any]]:
        """The columns that were added to the table, by name, each with the values of all rows.

        Each access reads them from the file, and raises DataError if they are damaged.
        """
        found: dict[str, list[Any]] = {name: [] for name in self._added}
        for number in range(len(self.ends) - 1 if found else 0):
            table = self.group(number, self._added)
            for name, values in found.items():
                values += table.column(name).to_pylist()
        return found

    @property
    def added_kinds(self) -> dict[str, ColumnType]:
        """The types of the columns that were added to the table, by name."""
        schema = self._file.schema_arrow
        return {name: stored_type(schema.field(name).type) for name in self._added}

    def rows_at(
        self, places: Sequence[int], group: Callable[[int], pyarrow.Table]
    ) -> pyarrow.Table:
        """Read the rows at some positions, in the order of the positions.

        Each row group that has some of them is read once.

        Args:
            places: the positions in the file.
            group: a function from the number of a row group to its columns that are wanted.

        Raises:
            DataError: the rows take more memory than any real table of this size.
        """
        import numpy as np
        import pyarrow

        wanted = np.asarray(places, dtype=np.int64)
        order = np.argsort(wanted, kind="stable")
        rising = wanted[order]
        bounds = np.searchsorted(rising, self.ends)
        pieces: list[pyarrow.Table] = []
        size = 0
        for number, (start, stop) in enumerate(pairwise(bounds)):
            if start < stop:
                pieces.append(taken(group(number), rising[start:stop] - self.ends[number]))
                size += pieces[-1].nbytes
            self._check_bytes(size)
        found = pyarrow.concat_tables(pieces or [group(0).slice(0, 0)])
        return taken(found, np.argsort(order))

    def group(self, number: int, names: Sequence[str]) -> pyarrow.Table:
        """Read some columns of a row group; it blocks while another thread reads a table file.

        Args:
            number: the number of the row group, from 0.
            names: the columns, in the order of the result.

        Raises:
            DataError: the file is damaged, or the columns take more memory than those of any real table.
        """
        import pyarrow

        # Before it is read: millions of equal numbers take a few bytes of the file.
        schema = self._file.schema_arrow
        count = self.ends[number + 1] - self.ends[number] if len(self.ends) > 1 else 0
        self._check_bytes(count * sum(least_bytes(schema.field(name).type) for name in names))
        try:
            self._check_bytes(self._in_lists(number, names))
            if not self._file.num_row_groups:
                table = self._file.schema_arrow.empty_table()
            else:
                with _reading:
                    table = whole_group(self._packed, self._file, number, names)
            for name in {*COLUMNS, RECORD, *self._added}.intersection(names):
                table.column(name).validate(full=True)  # that its texts are UTF-8
            if table.num_rows != count:
                raise pyarrow.ArrowInvalid("a group has another number of rows than the file says")
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"{self.path} cannot be read: {str(error).rstrip('.')}.",
                hint="Write the file again.",
            ) from error
        return table.select(list(names)).replace_schema_metadata(self._about or None)

    def _in_lists(self, number: int, names: Sequence[str]) -> int:
        """Return the bytes of columns of a row group in memory if one of them has lists, else 0."""
        starts = tuple(f"{name}." for name in names)
        if not any(path.startswith(starts) for path in self._lists):
            return 0
        return sum(size for path, size in self._listed.get(number, ()) if path.startswith(starts))

    @cached_property
    def _listed(self) -> dict[int, list[tuple[str, int]]]:
        """`listed_bytes` of the file, kept: the end of the file, which it reads, may be long."""
        with _reading:
            return listed_bytes(self._opened, self._file.metadata.schema)

    def _check_bytes(self, size: float) -> None:
        """Raise DataError if no real table has so many bytes that are read at once."""
        if size > self._most_bytes:
            raise DataError(
                f"{self.path} unpacks to more than {self._most_bytes:,} bytes.",
                hint="No real table packs that well: check where the file comes from.",
            )


class StoredRows(Sequence[PersonaRow]):
    """Rows of a table file, read from the file when they are used.

    Reading a row, or counting, raises DataError if the file is damaged.

    Args:
        file: the table file.
        changed: position in the file -> the row that takes the place of the row there; None: no row is
            changed.
        places: the positions in the file of the rows in view, in their order; None: all rows.
    """

    def __init__(
        self,
        file: StoredTable,
        changed: Mapping[int, PersonaRow] | None = None,
        places: Sequence[int] | None = None,
    ) -> None:
        self._file = file
        self._changed = dict(changed or {})
        self._places = range(file.ends[-1]) if places is None else places
        self._records = lru_cache(maxsize=2)(self._read_records)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._row(place) for place in self._places[index]]
        return self._row(self._places[index])

    def __iter__(self) -> Iterator[PersonaRow]:
        if _is_monotonic(self._places):  # two row groups at a time are enough
            yield from map(self._row, self._places)
            return
        for start in range(0, len(self), _BLOCK):
            block = self._places[start : start + _BLOCK]
            texts = self._file.rows_at(block, self._record_group).column(0)
            for place, text in zip(block, texts.to_pylist(), strict=True):
                yield self._changed.get(place) or _row_of(str(text))

    def at(self, positions: Sequence[int]) -> StoredRows:
        """Return a view of the rows at some positions among these. It reads nothing."""
        return StoredRows(self._file, self._changed, _positions_of(self._places, positions))

    def with_rows(self, changed: Mapping[int, PersonaRow]) -> StoredRows:
        """Return a view in which `changed` (position among these -> row) replaces some rows."""
        new = {self._places[position]: row for position, row in changed.items()}
        return StoredRows(self._file, {**self._changed, **new}, self._places)

    def failed(self) -> list[int]:
        """Return the positions of the rows that have an error. Only the column of errors is read."""
        errors = self.texts(["persona_error"])["persona_error"]
        return [position for position, error in enumerate(errors) if error is not None]

    def flagged(self) -> int:
        """Count the rows of which a persona has a flag."""
        return self._count(self._file.flagged, lambda row: bool(row.flags))

    def unexplained(self) -> int:
        """Count the rows that have a side whose choice no candidate explains."""
        return self._count(self._file.unexplained, lambda row: bool(row.unexplained))

    def _count(self, in_file: int | None, is_counted: Callable[[PersonaRow], bool]) -> int:
        """Count rows.

        Args:
            in_file: the count of all rows that the file tells; None: it tells none, so each row is read. Each
                row is also read if not all are in view.
            is_counted: whether a row counts.
        """
        if in_file is None or len(self) < self._file.ends[-1]:
            return sum(map(is_counted, self))
        before = self._file.rows
        return in_file + sum(
            is_counted(row) - is_counted(before[place]) for place, row in self._changed.items()
        )

    def texts(self, names: Sequence[str] = COLUMNS) -> dict[str, list[str | None]]:
        """Read columns of text, as `persona_columns` returns them; `names` are some of `COLUMNS`."""
        table = self._file.rows_at(self._places, lambda number: self._file.group(number, names))
        found: dict[str, list[str | None]] = {
            name: table.column(name).to_pylist() for name in names
        }
        if "persona_error" in found:
            found["persona_error"] = [_without_finding(text) for text in found["persona_error"]]
        for position, place in enumerate(self._places if self._changed else ()):
            if place in self._changed:
                for name, (text,) in persona_columns([self._changed[place]]).items():
                    if name in found:
                        found[name][position] = text
        return found

    def _row(self, place: int) -> PersonaRow:
        if place in self._changed:
            return self._changed[place]
        number = bisect_right(self._file.ends, place) - 1
        text = self._records(number)[place - self._file.ends[number]]
        return _row_of(text.as_py())

    def _record_group(self, number: int) -> pyarrow.Table:
        return self._file.group(number, [RECORD])

    def _read_records(self, number: int) -> pyarrow.ChunkedArray[Any]:
        return self._record_group(number).column(0)


class StoredColumns(OwnColumns):
    """The user's own columns of a table file, read when they are asked for.

    Args:
        file: the table file.
        places: the positions in the file of the rows in view, in their order; None: all rows.

    Attributes:
        names: the names of the columns.
        arrow_names: these, and the name that a pandas index has as a column if it only counts the rows.
    """

    def __init__(self, file: StoredTable, places: Sequence[int] | None = None) -> None:
        self._file = file
        self._is_whole = places is None
        self._places = range(file.ends[-1]) if places is None else places
        self.names, self.arrow_names = file.own_names, file.arrow_names
        self._group = lru_cache(maxsize=1)(lambda number: file.group(number, file.own_names))

    def __reduce__(self) -> tuple[Any, ...]:
        import pyarrow

        whole = self.piece(range(len(self._places)), ())
        return pyarrow.concat_tables, ([whole],)  # as for rows

    def at(self, positions: Sequence[int]) -> StoredColumns:
        """Return the columns of the rows at some positions among these. It reads nothing."""
        return StoredColumns(self._file, _positions_of(self._places, positions))

    def piece(self, places: Sequence[int], rows: Sequence[PersonaRow]) -> pyarrow.Table:
        """Read the columns of some rows, as `OwnColumns.piece`; the positions `places` must have no gaps.

        Raises:
            DataError: the file is damaged.
        """
        start = places[0] if places else 0
        wanted = self._places[start : start + len(places)]
        found = self._file.rows_at(wanted, self._group)
        return found if self._is_whole else self._labelled(found, wanted)

    def first(self, count: int) -> pyarrow.Table:
        """Read the columns of the first `count` rows, with a pandas RangeIndex as a column."""
        places = self._places[:count]
        return self._labelled(self._file.rows_at(places, self._group), places)

    def index(self) -> Any:
        """Return the pandas index of the rows; None if the data had none. No other column is read.

        Raises:
            DataError: the file is damaged, or its metadata about the index is wrong.
        """
        if not self.names:
            return None
        if not (wanted := index_columns(self._group(0))):
            return None
        found = self._file.rows_at(self._places, lambda number: self._file.group(number, wanted))
        with conversion_errors("pandas"):
            return pandas_of(self._labelled(found, self._places)).index

    def _labelled(self, rows: pyarrow.Table, places: Sequence[int]) -> pyarrow.Table:
        return with_index_column(rows, places, self._file.ends[-1])

    def size(self, row: PersonaRow) -> int:
        """Return the mean bytes of a row of the file, for any row."""
        return self._file.row_bytes


def _positions_of(places: Sequence[int], positions: Sequence[int]) -> Sequence[int]:
    """Return the places at some positions; as a range if possible, which takes no memory."""
    if isinstance(positions, range) and positions and positions.step > 0:
        return places[positions.start : positions.stop : positions.step]
    return [places[position] for position in positions]


def _is_monotonic(places: Sequence[int]) -> bool:
    if isinstance(places, range):
        return True
    import numpy as np

    steps = np.diff(np.asarray(places, dtype=np.int64))
    return bool((steps > 0).all() or (steps < 0).all())


def record_of(row: PersonaRow) -> str:
    """Write the pair, the personas, the candidates and the error of a row as JSON, without its columns."""
    sides = {"chosen": row.chosen, "rejected": row.rejected}
    tried = {"chosen": row.chosen_candidates, "rejected": row.rejected_candidates}
    record = {
        "index": row.index,
        "error": row.error,
        "preference": row.preference and row.preference.model_dump(),
        **{side: persona and _dumped(persona) for side, persona in sides.items()},
        "candidates": {
            side: [(_dumped(candidate.persona), candidate.score) for candidate in candidates]
            for side, candidates in tried.items()
        },
    }
    text = json.dumps(record)
    is_plain = _SURROGATE not in text or fits_utf_8(record)
    return text if is_plain else json.dumps(in_utf_8(record))


# How JSON begins halves of surrogate pairs, and other letters. Only where it stands, all texts are looked at.
_SURROGATE = "\\ud"


def _dumped(persona: Persona) -> dict[str, Any]:
    return persona.model_dump(exclude_none=True)


# Version 0.1.0 wrote what is now `PersonaRow.unexplained` as an error.
_FINDING = re.compile(
    r"(?:; )?(?:chosen|rejected): no persona explains this choice: the best of \d+"
    r" scores (?:-?\d+\.\d+|-inf)\."
)


def _without_finding(error: str | None) -> str | None:
    if error is None or "no persona explains" not in error:
        return error
    return _FINDING.sub("", error).removeprefix("; ") or None


# What spoilt records and metadata raise while they are read.
_SPOILT = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)


def _count_or_none(value: object) -> int | None:
    if value is None or (isinstance(value, int) and value >= 0):
        return value
    raise ValueError("no count")


def _check_columns(schema: pyarrow.Schema, added: object) -> None:
    """Raise ValueError, KeyError or TypeError unless a table can have these columns.

    Args:
        schema: the schema of the file. It has our columns, as text, and no name twice.
        added: what the file says of the added columns: a list of their names, none of them twice. Each is in
            the file, in a type that added columns have.
    """
    import pyarrow.types as kinds

    for name in (*COLUMNS, RECORD):
        kind = schema.field(name).type  # KeyError: it is missing
        if not (kinds.is_string(kind) or kinds.is_large_string(kind)):
            raise ValueError(name)
    if not isinstance(added, list) or not TAKEN_NAMES.isdisjoint(added):
        raise ValueError("added columns")
    for names in (schema.names, added):
        if len(set(names)) < len(names):
            raise ValueError("a column that is there twice")
    for name in added:
        if not isinstance(name, str):
            raise TypeError("the name of a column")
        stored_type(schema.field(name).type)


def _check_groups(metadata: Any) -> None:
    """Raise ValueError for a large row group with too few bytes for a record in each of its rows.

    A record takes at least `_SHORTEST_RECORD` bytes. Millions of nulls take no room in the file, and would
    fill the memory. `metadata` is that of a Parquet file.
    """
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        is_large = group.num_rows > _FEWEST_ROWS_TO_CHECK
        if is_large and group.total_byte_size < _SHORTEST_RECORD * group.num_rows:
            raise ValueError("rows without a record")


_FEWEST_ROWS_TO_CHECK = 10_000
_SHORTEST_RECORD = 8  # bytes; ours take more than 100


class _Checked(BaseModel):
    model_config = ConfigDict(strict=True)


class _Selected(_Checked):
    kind: str
    model: str | None


class _Retry(_Checked):
    rows: int
    mended: int
    changed: dict[str, Any]


class _Read(_Checked):
    columns: dict[str, str] = {}
    chosen_scored_lower: int = 0
    pairs_scored: int = 0
    contradicted_rows: int = 0
    prompts_apart: int = 0
    not_in_prompt: list[str] = []


class _Settings(_Checked):
    """The settings that this version reads, and their types. Other settings of a file are kept unread."""

    model: str | None = None
    api_base: str | None = None
    protocol: str = ""
    prompt_version: str | None = None
    candidates: int = 1
    sides: list[Literal["chosen", "rejected"]] = []
    read: _Read | None = None
    selected_by: _Selected | None = None
    verified_by: str = ""
    verified_neither: float = 0.0
    verified_rows: int = 0
    personas_from: dict[str, str] = {}
    retries: list[_Retry] = []


def check_settings(settings: Mapping[str, Any], *, is_read: bool = False) -> None:
    """Raise InvalidArgumentError unless a file can hold settings, in the types in which they are read.

    `is_read` says that they come from JSON, which needs no proof that it can hold them.
    """
    try:
        if not is_read:
            if not isinstance(settings, Mapping):
                raise TypeError(f"{quoted(settings, 60)} is not a mapping")
            if has_other_keys([dict(settings)]):  # `json` would make texts of numbers
                raise TypeError("a name in it is no text")
            settings = read_json(json.dumps(dict(settings)))
        known = {name: settings[name] for name in _Settings.model_fields if name in settings}
        _Settings.model_validate(read_json(json.dumps(known), _MOST_VALUES))
    except ValidationError as error:
        (first, *_) = error.errors()
        why = f"{first['loc'][0]!r}: {first['msg']}"
    except (TypeError, ValueError, RecursionError) as error:
        why = str(error)
    else:
        return
    raise InvalidArgumentError(
        f"settings= cannot be kept in a file: {why:.200}.",
        hint="Give names that are texts, with texts, numbers, lists and dicts.",
        argument="settings",
    )


def _known_metadata(schema: pyarrow.Schema, rows: int) -> dict[bytes, bytes]:
    """Return the metadata of a schema without our own, and without what pandas or datasets could not read.

    Args:
        schema: the schema of the file.
        rows: how many rows the file has.
    """
    kept = {key: value for key, value in (schema.metadata or {}).items() if key != RECORD.encode()}
    for key, is_known in ((b"pandas", _is_of_pandas), (b"huggingface", _is_of_datasets)):
        if key in kept:
            try:
                known = is_known(read_json(kept[key]), schema, rows)
            except _SPOILT:
                known = False
            if not known:
                del kept[key]
    return kept


def _is_of_pandas(about: Any, schema: pyarrow.Schema, rows: int) -> bool:
    names = set(schema.names)
    fields = {"name", "pandas_type", "numpy_type", "metadata"}  # old ones tell no field_name
    return (
        all(isinstance(about[key], list) for key in ("index_columns", "columns", "column_indexes"))
        and all(_is_index(one, names, rows) for one in about["index_columns"])
        and all(fields <= column.keys() for column in about["columns"])
        and all({"pandas_type", "numpy_type"} <= one.keys() for one in about["column_indexes"])
        and not any(one["pandas_type"] == "categorical" for one in about["column_indexes"])
    )


def _is_index(one: Any, names: set[str], rows: int) -> bool:
    """Whether this is the name of a column, or a range of labels that fit into 64 bits."""
    if not isinstance(one, dict):
        return one in names
    ends = (one["start"], one["stop"], one["step"], one["start"] + rows * one["step"])
    is_named = one["name"] is None or isinstance(one["name"], str)
    return one["kind"] == "range" and is_named and all(abs(end) < 2**62 for end in ends)


def _is_of_datasets(about: Any, schema: pyarrow.Schema, rows: int) -> bool:
    features = about["info"]["features"]
    return all(isinstance(kind, dict | list) for kind in features.values())


def _row_of(text: object) -> PersonaRow:
    """Read the row of a record, which has no columns.

    Raises:
        DataError: the text is not a record as `record_of` writes it.
    """
    try:
        text = str(text)
        record = read_json(text)
        # Older versions, and other programs, wrote halves of surrogate pairs, which no request can hold.
        may_be = _SURROGATE in text or "\\uD" in text
        is_plain = not may_be or fits_utf_8(record)
        return _read_record(record if is_plain else in_utf_8(record))
    except _SPOILT as error:
        many = isinstance(error, ValidationError) and error.error_count() > 100
        why = "it has very many wrong values" if many else f"{error!r:.100}"
        raise DataError(
            f"a row's record in the table cannot be read: {why}.",
            hint="The file was changed by hand or damaged: infer the personas again.",
        ) from None


def _read_record(record: dict[str, Any]) -> PersonaRow:
    tried = {
        side: tuple(Candidate(Persona(**fields), score) for fields, score in kept)
        for side, kept in record["candidates"].items()
    }
    chosen, rejected = record["chosen"], record["rejected"]
    return PersonaRow(
        record["index"],
        None if record["preference"] is None else Preference(**record["preference"]),
        chosen=None if chosen is None else Persona(**chosen),
        rejected=None if rejected is None else Persona(**rejected),
        error=_without_finding(record["error"]),
        chosen_candidates=tried["chosen"],
        rejected_candidates=tried["rejected"],
    )
