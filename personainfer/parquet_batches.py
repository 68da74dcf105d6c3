"""Read the rows of a Parquet file in memory that is bounded by what the file holds.

A Parquet file of a few KB can hold gigabytes: a column stores each different text once, and how often it
comes again. Arrow and Python write out each of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from .exceptions import DataError

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS: Final = 1024  # of a batch
_FEWEST_ROWS: Final = 64
_BATCH_BYTES: Final = 2**30  # of one batch, if each of its texts is the longest there is
_MOST_REPEATED: Final = 10_000  # values in one byte of a column of lists; masks of 0 and 1 have 400
_DICTIONARY_PAGE: Final = 2


def parquet_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """The batches of a file, of no more rows than the memory holds; texts may be dictionaries.

    Raises:
        DataError: a list holds the same values again and again, millions of times.
        pyarrow.ArrowException, OSError: the file cannot be read.
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file, path.open("rb") as raw:
        row_bytes = _largest_row(file.metadata, raw)
        rows = min(_ROWS, _BATCH_BYTES // max(row_bytes, 1))
        shared: list[str] = []
        if rows < _FEWEST_ROWS:  # slower, and each text is in memory once
            rows, shared = _ROWS, list(_texts(file.metadata.schema))
    with pq.ParquetFile(path, read_dictionary=shared) as file:
        yield from file.iter_batches(batch_size=rows)


def small_batches(
    batch: pa.RecordBatch, most_bytes: int, most_values: int
) -> Iterator[tuple[int, pa.RecordBatch, str]]:
    """The parts of a batch that Python can hold at once, each with the place of its first row in the batch.

    A part of one row may be too large: then the text says that it has too many bytes or values; else "".
    """
    todo = [(0, batch)]
    while todo:
        start, part = todo.pop()
        sizes = [_size_in_python(column) for column in part.columns]
        problem = ""
        if sum(size for size, _ in sizes) >= most_bytes:
            problem = f"is longer than {most_bytes:,} bytes"
        elif sum(values for _, values in sizes) > most_values:
            problem = f"has more than {most_values:,} values"
        if problem and len(part) > 1:
            half = len(part) // 2
            todo += [(start + half, part.slice(half)), (start, part.slice(0, half))]
        elif len(part):
            yield start, part, problem


def _largest_row(metadata: Any, raw: IO[bytes]) -> int:
    """How many bytes the texts of a row can take: the dictionaries' of its columns, by the row group."""
    schema = metadata.schema
    kinds = [schema.column(place) for place in range(len(schema))]
    largest = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        size = 0
        for place, kind in enumerate(kinds):
            column = group.column(place)
            in_lists = kind.max_repetition_level > 0
            if in_lists and column.num_values > _MOST_REPEATED * column.total_uncompressed_size:
                raise DataError(
                    f"the column {kind.path!r} holds {column.num_values:,} values in"
                    f" {column.total_uncompressed_size:,} bytes, all the same.",
                    hint="Leave the column out.",
                )
            if kind.physical_type == "BYTE_ARRAY":
                values = -(-column.num_values // max(group.num_rows, 1)) if in_lists else 1
                size += values * _dictionary_bytes(column, raw)
        largest = max(largest, size)
    return largest


def _dictionary_bytes(column: Any, raw: IO[bytes]) -> int:
    """The size of a column's dictionary of texts, from the header of its page; 0: it has none."""
    raw.seek(column.dictionary_page_offset or column.data_page_offset)
    header = raw.read(32)
    # Thrift's compact form: the page's kind, then its size, each a 32-bit integer after its field's mark.
    kind, rest = _thrift_integer(header)
    size, _ = _thrift_integer(rest)
    return max(size, 0) if kind == _DICTIONARY_PAGE else 0


def _thrift_integer(header: bytes) -> tuple[int, bytes]:
    """The integer of the next field, and what follows it; -1 where there is another field."""
    if header[:1] != b"\x15":
        return -1, b""
    value = 0
    for place, byte in enumerate(header[1:6]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), header[place + 2 :]
    return -1, b""


def _texts(schema: Any) -> Iterator[str]:
    columns = (schema.column(place) for place in range(len(schema)))
    return (column.path for column in columns if column.physical_type == "BYTE_ARRAY")


def _size_in_python(column: Any) -> tuple[int, int]:
    """How many bytes an Arrow column has if each value is written out, and how many values that are."""
    import pyarrow as pa

    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if isinstance(column, pa.DictionaryArray):
        return _shared_bytes(column), len(column)
    parts = _parts(column)
    if not parts:
        return column.nbytes, len(column)
    inner = [_size_in_python(part) for part in parts]
    return sum(size for size, _ in inner), len(column) + sum(values for _, values in inner)


def _parts(column: Any) -> list[Any]:
    """The columns of the values within lists, structs and maps; none for other columns."""
    import pyarrow as pa

    if isinstance(column, pa.MapArray):
        begin, end = column.offsets[0].as_py(), column.offsets[-1].as_py()
        return [part.slice(begin, end - begin) for part in (column.keys, column.items)]
    if isinstance(column, pa.StructArray):
        return list(column.flatten())
    return [column.flatten()] if hasattr(column, "flatten") else []


def _shared_bytes(column: pa.DictionaryArray) -> int:
    """The bytes of texts that several rows share: Python has one text for each row."""
    import pyarrow.compute as pc

    words = column.dictionary
    try:
        lengths = pc.binary_length(words)
    except NotImplementedError:  # numbers
        return 8 * len(column)
    return pc.sum(lengths.take(column.indices)).as_py() or 0
