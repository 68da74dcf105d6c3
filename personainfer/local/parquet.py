"""Read Parquet files, from others and saved by this library, in memory that is bounded by what they hold.

A file of a few KB can hold gigabytes: a column stores each different text once, and how often it comes again;
Arrow and Python write out each of them.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..exceptions import DataError

if TYPE_CHECKING:
    import pyarrow

_READ_BYTES: Final = 2**20  # of the file at once
_ROWS: Final = 2**14  # of a batch at most
_USUAL_BYTES: Final = 2**25  # of a batch, if its rows are as long as others
# Of a group of rows that is packed like no text, the largest rows may all be in one batch.
_BATCH_BYTES: Final = 2**27
_FEW_ROWS: Final = 64
_FEWEST_ROWS: Final = 8
_NO_DICTIONARY: Final = "Not yet implemented"  # in Arrow's error: a column cannot be read as one
_LARGE_GROUP: Final = 2**29  # bytes of a group, unpacked, that are read whatever the file's size
_USUALLY_PACKED: Final = 30  # times the size of the file: texts that people wrote are packed less
_MOST_PACKED: Final = 1000
_WRITTEN_BYTES: Final = 2**28  # of a group as a whole; more, if …
_MOST_SHARED: Final = 4  # … it is no more than so many times what it takes with its texts held once


def parquet_batches(path: Path) -> Iterator[pyarrow.RecordBatch]:
    """Read a file in batches of rows that fit into memory.

    A column of texts may come as a dictionary, see `written_out`. Arrow's metadata is asked only for the
    sizes of row groups: Arrow ends the process if the metadata of a column is damaged.

    Raises:
        DataError: a row group would fill the memory, because Arrow unpacks each of its pages whole.
        pyarrow.ArrowException, OSError: the file cannot be read.
    """
    import pyarrow

    with pyarrow.OSFile(str(path), "rb") as file:  # once: another one may take its name meanwhile
        yield from _batches(path, file)


def _batches(path: Path, file: pyarrow.OSFile) -> Iterator[pyarrow.RecordBatch]:
    from pyarrow.parquet import ParquetFile

    on_disk, metadata = file.size(), ParquetFile(file).metadata
    texts = set(_texts(metadata.schema))
    fixed = _flat_bytes(metadata.schema, {"FIXED_LEN_BYTE_ARRAY"})
    flat = _flat_bytes(metadata.schema, {*_WIDTHS, "FIXED_LEN_BYTE_ARRAY"})
    listed = listed_bytes(file, metadata.schema)
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        values = sum(size for _, size in listed.get(number, ()))
        size = max(group.total_byte_size, group.num_rows * fixed, values, 1)
        if size > most_unpacked(on_disk):
            raise DataError(
                f"{path}: {size:,} bytes are packed into a file of {on_disk:,}.",
                hint="No real data packs that well: check where the file comes from.",
            )
        size = max(size, group.num_rows * flat)
        # Not fewer than need be: Arrow makes the dictionaries anew for each batch.
        rows = min(_ROWS, _USUAL_BYTES * group.num_rows // size)
        if size > max(_BATCH_BYTES, _USUALLY_PACKED * on_disk):
            rows = min(rows, _FEW_ROWS * _BATCH_BYTES // size)
        done = 0
        while done < group.num_rows:
            left = len(texts)
            try:
                for batch in _group_batches(file, metadata, number, max(rows, 1), texts, done):
                    done += len(batch)
                    yield batch
            except OSError as error:
                if not texts or _NO_DICTIONARY not in str(error):
                    raise
                # Texts stored as what differs from the one before: none is longer than all that is stored.
                texts.clear()
                rows = min(rows, max(_FEWEST_ROWS, _USUAL_BYTES // size))
                continue
            if left == len(texts):  # the group has ended, whatever the file says of its rows
                break


def most_unpacked(on_disk: int) -> int:
    """Return the most bytes to which a file of `on_disk` bytes, or a part of it, may unpack.

    These are 1,000 times as many, since no real data packs so well, and at least half a gigabyte.
    """
    return max(_LARGE_GROUP, _MOST_PACKED * on_disk)


def with_dictionaries(file: Any, metadata: Any) -> Any:
    """Open the same file again, for `whole_group`: each different text of a column is held once."""
    import pyarrow.parquet as pq

    texts = list(_texts(metadata.schema))
    return pq.ParquetFile(file, metadata=metadata, read_dictionary=texts)


def whole_group(packed: Any, plain: Any, number: int, names: Sequence[str]) -> pyarrow.Table:
    """Read some columns of a row group.

    Args:
        packed: the file as `with_dictionaries` opens it.
        plain: the same file, opened without that.
        number: the number of the row group, from 0.
        names: the columns to read, in the order of the result. None at all: a table that has only its number
            of rows.

    Raises:
        pyarrow.ArrowException, OSError: the file is damaged, or texts that come again and again would fill
            the memory (`ArrowInvalid`).
    """
    import pyarrow
    from pyarrow.types import is_dictionary

    # By name once more: where a nested "a.b" is asked for, "a" comes along. A thread pool would not survive
    # the forks of a data loader.
    table: pyarrow.Table = packed.read_row_group(number, list(names), use_threads=False)
    if not names:
        return table  # which knows its number of rows
    table = table.select(list(names))
    schema = plain.schema_arrow
    wanted = pyarrow.schema([schema.field(name) for name in names])
    # Columns that are dictionaries for the user, too, stay as they are.
    unpacked = [name for name in names if not is_dictionary(wanted.field(name).type)]
    written = written_bytes(table.select(unpacked))
    if written > max(_WRITTEN_BYTES, _MOST_SHARED * table.nbytes):
        raise pyarrow.ArrowInvalid(f"a group of rows unpacks to {written:,} bytes")
    try:
        return table.cast(wanted)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError, ValueError):
        # Dictionaries within lists and structs, as older versions of Arrow cannot write them out.
        table = plain.read_row_group(number, list(names), use_threads=False)
        return table.select(list(names))


def least_bytes(kind: pyarrow.DataType) -> float:
    """Return the least bytes that Arrow takes for each row of a column of this type; 0 for nulls."""
    import pyarrow
    from pyarrow import types

    if isinstance(kind, pyarrow.BaseExtensionType):
        return least_bytes(kind.storage_type)
    if types.is_struct(kind):
        return sum(least_bytes(kind.field(place).type) for place in range(kind.num_fields))
    if types.is_fixed_size_list(kind):
        return float(kind.list_size) * least_bytes(kind.value_type)
    try:
        return kind.bit_width / 8
    except ValueError:
        return 0 if types.is_null(kind) else 4  # where a text or a list begins


def _in_pieces(file: pyarrow.OSFile, texts: Collection[str], metadata: Any) -> Any:
    """Return a reader of the file in pieces; the columns `texts`, by their paths, come as dictionaries."""
    import pyarrow.parquet as pq

    few: dict[str, Any] = {"buffer_size": _READ_BYTES, "pre_buffer": False}
    return pq.ParquetFile(file, metadata=metadata, read_dictionary=list(texts), **few)


def _group_batches(
    file: pyarrow.OSFile, metadata: Any, number: int, rows: int, texts: set[str], done: int
) -> Iterator[pyarrow.RecordBatch]:
    """Read batches of a row group, of at most `rows` rows; the first `done` rows are left out.

    The columns `texts`, by their paths, are read as dictionaries: each different text is held once. Arrow
    adds to a dictionary until the group ends, also texts that the file stores one by one. If a dictionary
    grows large and few of its texts come again, its column is removed from `texts` (in place), and the
    batches end: the caller reads on, and gets this column without a dictionary, in less time and memory. Near
    the end of a group they do not end, since to read on means to pass over all rows before.
    """
    group = metadata.row_group(number)
    seen, before, written = 0, dict[str, int](), Counter[str]()
    with _in_pieces(file, texts, metadata) as pieces:
        for batch in pieces.iter_batches(batch_size=rows, row_groups=[number]):
            seen += len(batch)
            if seen > done:
                yield batch.slice(max(0, len(batch) - (seen - done)))
                done = seen
            found = _dictionaries(batch, metadata.schema)
            written.update({path: _shared_bytes(column) for path, column in found.items()})
            held = {path: column.dictionary.nbytes for path, column in found.items()}
            different = {path for path, size in held.items() if size > written[path] // 2}
            if any(held[p] > max(before.get(p, held[p]), _USUAL_BYTES // 4) for p in different):
                texts -= different
                rest = group.num_rows - seen
                if rest > seen or rest * group.total_byte_size > _BATCH_BYTES * group.num_rows:
                    return
            before = held


def _dictionaries(batch: pyarrow.RecordBatch, schema: Any) -> dict[str, Any]:
    """Return the columns of a batch that are dictionaries, also those in lists and structs, by path."""
    import pyarrow

    paths = (schema.column(place).path for place in range(len(schema)))
    leaves = (leaf for column in batch.columns for leaf in _leaves(column))
    return {
        p: c for p, c in zip(paths, leaves, strict=False) if isinstance(c, pyarrow.DictionaryArray)
    }


def _leaves(column: Any) -> Iterator[Any]:
    parts = _parts(column)
    for part in parts:
        yield from _leaves(part)
    if not parts:
        yield column


def written_out(batch: pyarrow.RecordBatch) -> pyarrow.RecordBatch:
    """Return the batch with texts in place of dictionaries: Python reads it several times as fast.

    Dictionaries within lists and structs stay.
    """
    import pyarrow

    for place, column in enumerate(batch.columns):
        if isinstance(column, pyarrow.DictionaryArray):
            batch = batch.set_column(place, batch.schema.names[place], column.dictionary_decode())
    return batch


def small_batches(
    batch: pyarrow.RecordBatch, most_bytes: int, most_values: int
) -> Iterator[tuple[int, pyarrow.RecordBatch, str]]:
    """Split a batch into parts that Python can hold at once.

    Args:
        batch: the rows.
        most_bytes: a part has fewer bytes than this when it is written out.
        most_values: a part has at most so many values, counting those within lists.

    Yields:
        The position of the part's first row in the batch, the part, and "". If a single row is too large, the
        part is that row, and the text says so: "has more than 5,000,000 values".
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


def _texts(schema: Any) -> Iterator[str]:
    columns = (schema.column(place) for place in range(len(schema)))
    return (column.path for column in columns if column.physical_type == "BYTE_ARRAY")


_WIDTHS: Final = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 12}
_POSITION: Final = 4  # bytes: where a text begins, or its place in a dictionary
# Bytes that Arrow holds of each value in a list: where lists begin, and what is null.
_LEVELS: Final = 4


def _width(column: Any) -> int:
    """Return the bytes that Arrow takes for a value of a column, besides the letters of texts."""
    if column.physical_type == "FIXED_LEN_BYTE_ARRAY":
        return int(column.length)
    return _WIDTHS.get(column.physical_type, _POSITION)


def _flat_bytes(schema: Any, kinds: Collection[str]) -> int:
    """Return the bytes of a row's values of some physical types, apart from those within lists."""
    columns = (schema.column(place) for place in range(len(schema)))
    flat = (one for one in columns if not one.max_repetition_level)
    return sum(_width(one) for one in flat if one.physical_type in kinds)


def listed_bytes(file: Any, schema: Any) -> dict[int, list[tuple[str, int]]]:
    """Find how many bytes Arrow takes for the columns of each row group.

    A list of nulls, or of one number again and again, takes a few bytes of a file however long it is.

    Args:
        file: the open file. Its end is read.
        schema: the Parquet schema of the file.

    Returns:
        The number of the row group, from 0 -> (the path of a column, its bytes) for each column. {} if no
        column has lists.

    Raises:
        OSError: the metadata of the columns is damaged.
    """
    if not paths_of_lists(schema):
        return {}
    columns = [schema.column(place) for place in range(len(schema))]
    widths = [_width(one) + _LEVELS * bool(one.max_repetition_level) for one in columns]
    return {
        number: [
            (column.path, count * width)
            for column, count, width in zip(columns, counts, widths, strict=False)
        ]
        for number, counts in enumerate(_counts_of_values(file))
    }


def paths_of_lists(schema: Any) -> list[str]:
    """Return the paths of the columns whose values are within lists."""
    columns = (schema.column(place) for place in range(len(schema)))
    return [column.path for column in columns if column.max_repetition_level]


# The fields of FileMetaData that lead to the counts: row_groups, columns, meta_data, num_values.
_COUNTS: Final[dict[int, Any]] = {4: {1: {3: {5: {}}}}}


def _counts_of_values(file: Any) -> list[list[int]]:
    """Read from the end of a file how many values each column of each row group has, also within lists."""
    size = file.size()  # by no position, which forks share
    length = int.from_bytes(file.read_at(4, size - 8), "little")
    told = _Thrift(file.read_at(length, size - 8 - length))
    try:
        groups = told.struct(_COUNTS).get(4, [])
        return [[one[3][5] for one in group[1]] for group in groups]
    except (LookupError, RecursionError, TypeError):
        raise OSError("what it tells of its columns is damaged") from None


class _Thrift:
    """Reads chosen fields of data in Thrift's compact protocol, in which a Parquet file has its metadata.

    https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def struct(self, wanted: dict[int, Any]) -> dict[int, Any]:
        """Read a struct.

        Args:
            wanted: the numbers of the fields to keep -> the same for the struct, or the list of structs, in
                that field; {} for other fields.

        Returns:
            The number of a field -> its value.
        """
        found, number = dict[int, Any](), 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._integer()
            value = self._value(head & 15, wanted.get(number, {}))
            if number in wanted:
                found[number] = value
        return found

    def _value(self, kind: int, wanted: dict[int, Any]) -> Any:
        if kind in (1, 2):  # a boolean, whose value the head of the field tells
            return None
        if kind in (4, 5, 6):
            return self._integer()
        if kind in (9, 10):
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._varint()
            inner = 3 if head & 15 in (1, 2) else head & 15
            values = (self._value(inner, wanted) for _ in range(count))
            return list(values) if wanted else deque(values, maxlen=0)
        if kind == 11:
            kinds = self._byte() if (count := self._varint()) else 0
            for _ in range(count):
                self._value(kinds >> 4, {})
                self._value(kinds & 15, {})
            return None
        if kind == 12:
            return self.struct(wanted)
        length = self._varint() if kind == 8 else {3: 1, 7: 8, 13: 16}[kind]
        self._at += length
        return None

    def _byte(self) -> int:
        byte = self._data[self._at]
        self._at += 1
        return byte

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)


def written_bytes(table: pyarrow.Table) -> int:
    """Return the bytes of a table if each value of a dictionary is written out in each of its rows."""
    return sum(_size_in_python(chunk)[0] for column in table.columns for chunk in column.chunks)


def _size_in_python(column: Any) -> tuple[int, int]:
    """Return the bytes of an Arrow column with each value written out, and how many values it has."""
    import pyarrow

    if isinstance(column, pyarrow.DictionaryArray):
        return _shared_bytes(column), len(column)
    parts = _parts(column)
    if not parts:
        return column.nbytes, len(column)
    inner = [_size_in_python(part) for part in parts]
    return sum(size for size, _ in inner), len(column) + sum(values for _, values in inner)


def _parts(column: Any) -> list[Any]:
    """Return the columns within a column of lists, structs, maps or an extension type; else []."""
    import pyarrow

    if isinstance(column, pyarrow.ExtensionArray):
        return [column.storage]
    if isinstance(column, pyarrow.MapArray):
        begin, end = column.offsets[0].as_py(), column.offsets[-1].as_py()
        return [part.slice(begin, end - begin) for part in (column.keys, column.items)]
    if isinstance(column, pyarrow.StructArray):
        return list(column.flatten())
    return [column.flatten()] if hasattr(column, "flatten") else []


def _shared_bytes(column: Any) -> int:
    """Return the bytes of a dictionary's texts, written out in each row: Python has a text for each."""
    import pyarrow.compute as pc

    words: Any = column.dictionary
    try:
        lengths: Any = pc.binary_length(words)
    except NotImplementedError:  # numbers
        return 8 * len(column)
    return pc.sum(lengths.take(column.indices)).as_py() or 0
