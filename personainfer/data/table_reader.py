"""A table of personas in a Parquet file, of which a group of rows at a time is in memory.

The user's columns come first, then those for people to read, then one column with each row's records
as JSON; the file's metadata says how the table was made. How such a file is written is not known here.
"""

from __future__ import annotations

import json
import os
import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from ..exceptions import DataError
from ..records import Candidate, Persona, PersonaRow, Preference, Usage
from .arrow_columns import OwnColumns

if TYPE_CHECKING:
    import pyarrow

__all__ = [
    "COLUMNS",
    "RECORD",
    "StoredColumns",
    "StoredRows",
    "StoredTable",
    "persona_columns",
    "record_of",
]

COLUMNS = ("chosen_persona", "rejected_persona", "persona_error")
RECORD = "personainfer"  # the column with the records, and the key of the metadata


# Arrow's reader of a file is not safe for several threads: it crashes, or waits for ever.
_reading = threading.Lock()


def _forget_lock() -> None:
    """A fork may have happened while another thread held the lock."""
    global _reading
    _reading = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_lock)


class StoredTable:
    """An open file: it can be replaced, even by what is read from it, and reads on as it was.

    Raises:
        DataError: another kind of file.
    """

    def __init__(self, path: str | Path) -> None:
        import pyarrow
        from pyarrow.parquet import ParquetFile

        self.path = path
        try:
            self._file = ParquetFile(path)
            about = json.loads((self._file.metadata.metadata or {})[RECORD.encode()])
            self.usage = Usage(**about["usage"])
            self.settings: dict[str, Any] = about["settings"]
            self.flagged: int | None = about.get("flagged")
            self._added: list[str] = about.get("added", [])
        except (pyarrow.ArrowInvalid, LookupError, TypeError, ValueError):
            raise DataError(
                f"{path} is not a table of personas that this version knows.",
                hint="A table is a .parquet file that PersonaTable.save, output= or infer -o wrote; a .jsonl"
                " file does not hold all of it.",
            ) from None
        meta = self._file.metadata
        groups = [meta.row_group(number) for number in range(meta.num_row_groups)]
        self.ends = [0]  # after each row group, how many rows came so far
        for group in groups:
            self.ends.append(self.ends[-1] + group.num_rows)
        self.row_bytes = sum(group.total_byte_size for group in groups) // max(self.ends[-1], 1)

    @property
    def rows(self) -> StoredRows:
        """The rows, read when they are asked for."""
        return StoredRows(self, {})

    @property
    def columns(self) -> StoredColumns:
        """The user's own columns, read when they are asked for."""
        return StoredColumns(self)

    @property
    def own_names(self) -> list[str]:
        """The names of the user's own columns."""
        ours = {*COLUMNS, RECORD, *self._added}
        return [name for name in self._file.schema_arrow.names if name not in ours]

    @property
    def added(self) -> dict[str, list[Any]]:
        """The columns that were added to the table, whole."""
        found: dict[str, list[Any]] = {name: [] for name in self._added}
        for number in range(len(self.ends) - 1 if found else 0):
            table = self.group(number, self._added)
            for name, values in found.items():
                values += table.column(name).to_pylist()
        return found

    def group(self, number: int, names: Sequence[str]) -> pyarrow.Table:
        """Some columns of a row group."""
        import pyarrow

        try:
            if not self._file.num_row_groups:
                table = self._file.schema_arrow.empty_table()
            else:  # a thread pool would not survive the forks of a data loader
                with _reading:
                    table = self._file.read_row_group(number, list(names), use_threads=False)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(
                f"{self.path} cannot be read: {error}", hint="Write the file again."
            ) from error
        about = table.schema.metadata or {}
        kept = {key: value for key, value in about.items() if key != RECORD.encode()}
        # By name once more: where a nested "a.b" is asked for, "a" comes along.
        return table.select(list(names)).replace_schema_metadata(kept or None)


class StoredRows(Sequence[PersonaRow]):
    """The rows of a stored table, made when they are looked at; `changed` take the place of some."""

    def __init__(self, file: StoredTable, changed: Mapping[int, PersonaRow]) -> None:
        self._file = file
        self._changed = dict(changed)
        self._records = lru_cache(maxsize=2)(self._read_records)

    def __len__(self) -> int:
        return self._file.ends[-1]

    @overload
    def __getitem__(self, index: int) -> PersonaRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[PersonaRow]: ...
    def __getitem__(self, index: int | slice) -> PersonaRow | list[PersonaRow]:
        if isinstance(index, slice):
            return [self._row(place) for place in range(len(self))[index]]
        return self._row(range(len(self))[index])

    def __iter__(self) -> Iterator[PersonaRow]:
        return map(self._row, range(len(self)))

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)  # where it is unpickled the file may not be

    def with_rows(self, changed: Mapping[int, PersonaRow]) -> StoredRows:
        """The same rows but for some, by their place."""
        return StoredRows(self._file, {**self._changed, **changed})

    def failed(self) -> list[int]:
        """The places of the rows that have an error; reads no more than their column."""
        ((_, errors),) = self.texts(["persona_error"])
        return [place for place, error in enumerate(errors) if error is not None]

    def flagged(self) -> int:
        """How many rows have a flag."""
        count = self._file.flagged
        if count is None:  # written before that was counted
            return sum(bool(row.flags) for row in self)
        before = self._file.rows
        return count + sum(
            bool(row.flags) - bool(before[place].flags) for place, row in self._changed.items()
        )

    def texts(self, names: Sequence[str] = COLUMNS) -> list[tuple[str, list[str | None]]]:
        """`persona_columns` of the rows, as they are in the file."""
        found: dict[str, list[str | None]] = {name: [] for name in names}
        for number in range(len(self._file.ends) - 1):
            table = self._file.group(number, names)
            for name, texts in found.items():
                texts += table.column(name).to_pylist()
        for place, row in self._changed.items():
            for name, (text,) in persona_columns([row]):
                if name in found:
                    found[name][place] = text
        return list(found.items())

    def _row(self, place: int) -> PersonaRow:
        if place in self._changed:
            return self._changed[place]
        number = bisect_right(self._file.ends, place) - 1
        text = self._records(number)[place - self._file.ends[number]]
        return _row_of(text.as_py())

    def _read_records(self, number: int) -> pyarrow.ChunkedArray[Any]:
        return self._file.group(number, [RECORD]).column(0)


class StoredColumns(OwnColumns):
    """The user's own columns of a stored table, read when they are asked for."""

    def __init__(self, file: StoredTable) -> None:
        self._file = file
        self.names = file.own_names
        self._group = lru_cache(maxsize=1)(lambda number: file.group(number, file.own_names))

    def __reduce__(self) -> tuple[Any, ...]:
        import pyarrow

        whole = self.piece(range(self._file.ends[-1]), ())
        return pyarrow.concat_tables, ([whole],)  # as for rows

    def piece(self, places: Sequence[int], rows: Sequence[PersonaRow]) -> pyarrow.Table:
        """The columns of the rows from the first of `places` to the last."""
        import pyarrow

        start = places[0] if places else 0
        stop, ends = start + len(places), self._file.ends
        pieces = [
            self._group(number).slice(max(start - first, 0), stop - max(start, first))
            for number, (first, end) in enumerate(pairwise(ends))
            if first < stop and end > start
        ]
        return pyarrow.concat_tables(pieces or [self._group(0).slice(0, 0)])

    def size(self, row: PersonaRow) -> int:
        """About how many bytes the columns of a row take."""
        return self._file.row_bytes


def persona_columns(rows: Iterable[PersonaRow]) -> list[tuple[str, list[str | None]]]:
    """What people read of each row: a sentence for each side, and the error."""
    chosen: list[str | None] = []
    rejected: list[str | None] = []
    errors: list[str | None] = []
    for row in rows:
        chosen.append(str(row.chosen) if row.chosen else None)
        rejected.append(str(row.rejected) if row.rejected else None)
        errors.append(row.error)
    return list(zip(COLUMNS, (chosen, rejected, errors), strict=True))


def record_of(row: PersonaRow) -> str:
    """The records of a row as JSON; its columns are not among them."""
    sides = {"chosen": row.chosen, "rejected": row.rejected}
    tried = {"chosen": row.chosen_candidates, "rejected": row.rejected_candidates}
    record = {
        "index": row.index,
        "error": row.error,
        "preference": row.preference and row.preference.model_dump(),
        **{side: persona and persona.model_dump() for side, persona in sides.items()},
        "candidates": {
            side: [(candidate.persona.model_dump(), candidate.score) for candidate in candidates]
            for side, candidates in tried.items()
        },
    }
    return json.dumps(record)


def _row_of(text: str) -> PersonaRow:
    record = json.loads(text)
    tried = {
        side: tuple(Candidate(Persona(**fields), score) for fields, score in kept)
        for side, kept in record["candidates"].items()
    }
    return PersonaRow(
        record["index"],
        record["preference"] and Preference.model_validate(record["preference"]),
        chosen=record["chosen"] and Persona.model_validate(record["chosen"]),
        rejected=record["rejected"] and Persona.model_validate(record["rejected"]),
        error=record["error"],
        chosen_candidates=tried["chosen"],
        rejected_candidates=tried["rejected"],
    )
