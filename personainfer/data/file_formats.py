"""Read files of preference data row by row: .jsonl, .json, .csv, .parquet, and data sets of the hub.

A row that cannot be parsed becomes a `BrokenRow`; the others are still read. A file that is not in the format
of its name raises `DataError`.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import os
import re
import zlib
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from ..exceptions import DataError, InvalidArgumentError, MissingExtraError, MissingFileError
from ..local.parquet import parquet_batches, small_batches, written_out
from ..local.paths import at_home
from ..preferences import cells
from ..preferences.cells import TooManyValuesError, TwinKeysError, read_json
from .arrow_columns import arrow_cells

if TYPE_CHECKING:
    import pyarrow as pa

SUPPORTED: Final = (
    "Supported are pandas and polars frames, pyarrow tables, Hugging Face datasets, paths "
    "(.jsonl .json .csv .parquet, the text ones also with .gz), hf:owner/name[:split], and "
    "iterables of dicts, (prompt, chosen, rejected) tuples or Preference."
)
# What programs write into a CSV file for a missing value; pandas reads the same words as one. Then what
# spreadsheets write in the place of a text that begins with "-" or "=", which they take for a formula.
CSV_NULLS: Final = frozenset(
    "nan NaN NAN -nan -NaN null NULL Null None NA N/A n/a <NA> #N/A #NA NaT"
    " #NAME? #VALUE! #REF! #DIV/0! #NUM! #NULL! #ERROR!".split()
)
LONGEST_LINE = 64 * 2**20  # bytes: a packed file of 1 MB can hold a line of 1 GB
_MOST_READ_AGAIN = 4 * LONGEST_LINE  # characters of a CSV file, where quotes stay open
_LARGEST_JSON = 512 * 2**20  # bytes of a file that is read as a whole …
_MOST_JSON_VALUES = 20_000_000  # … and its values: 200 in each of 100,000 rows
_MOST_UNPACKED = 2**24  # bytes to which any packed file may unpack; a larger one …
_MOST_PACKED = 200  # … to so many times its size: texts that people wrote are packed less
_UNPACKED_AT_ONCE = 2**18  # bytes
_MOST_COLUMNS = 100_000  # of a CSV file
_MOST_EMPTY = 2**20  # lines of a file, as a sheet has; more, if a tenth as many are not
_MOST_NEIGHBOURS = 1_000  # files among which the one that was meant is looked for
_HUB = "hf:"  # before the name of a data set on the Hugging Face hub
_UTF8_BOM = b"\xef\xbb\xbf"
_SEPARATORS: Final = ";\t|"  # of CSV files that are not separated by commas
_LINE_FEED = re.compile(rb"[^\r\n]*\r?\n")  # at the end of a first line
# In the place of a carriage return, which ends a row for Python's reader; no text decoded from UTF-8 has it.
_RETURN = "\udc0d"
_OPENS = re.compile(r', +"[^",\r\n]')  # in a line of a CSV file
_SIGNATURES = {
    b"PAR1": "Parquet",
    b"\x1f\x8b": "gzip-compressed data",
    b"PK\x03\x04": "a zip archive",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}


@dataclass(frozen=True)
class BrokenRow:
    """A row of a file that could not be parsed; `error` says why, and what to do."""

    error: str


@dataclass(frozen=True)
class _Rows:
    """The rows of a file. Each iteration opens the file and reads it again."""

    path: Path
    parse: Callable[[Path], Iterable[object]]

    def __iter__(self) -> Iterator[object]:
        return iter(self.parse(self.path))


@dataclass(frozen=True)
class StreamedRows:
    """The rows of a data set that the package `datasets` streams. Each iteration streams them again.

    Iterating raises DataError if they do not all come: the hub or the connection fails, or a file is damaged.
    Each has its own classes of errors.
    """

    name: str
    rows: Iterable[object]

    def __iter__(self) -> Iterator[object]:
        came = 0
        try:
            for row in self.rows:
                yield row
                came += 1
        except MemoryError:
            raise
        except Exception as error:
            said = str(error).rstrip(".") or type(error).__name__
            raise DataError(
                f"{self.name:.200} breaks off after {came:,} rows: {said}.",
                hint="Check the connection, and try again.",
            ) from error


@dataclass(frozen=True)
class FirstRows:
    """The first rows of a file or a pipe. Those behind them, too, show what its columns and labels mean."""

    rows: Iterable[object]
    count: int

    def __iter__(self) -> Iterator[object]:
        return islice(self.rows, self.count)


def open_rows(data: str | Path) -> tuple[Iterable[object], int | None]:
    """Open a file or a data set of the hub, as rows.

    A .json file is read whole at once; other files are read when the rows are iterated.

    Args:
        data: a path, or "hf:owner/name", with ":split" or ":config:split" behind it if there are several.

    Returns:
        The rows, dicts or `BrokenRow`; and how many they are, or None if only reading them tells. Iterating
        the rows raises DataError if the file turns out to be damaged.

    Raises:
        InvalidArgumentError: there is no such file (`MissingFileError`), format or split.
        DataError: the file is not what its name says, or the data set cannot be loaded.
        MissingExtraError: a data set of the hub is named, and `datasets` is not installed.
    """
    check_file(data)
    if str(data).startswith(_HUB):
        return _hub_rows(str(data))
    path = at_home(data)
    suffix = _suffix(path)
    if suffix == ".json":
        listed = _json_rows(path)
        return listed, len(listed)
    total = _parquet_total(path) if suffix == ".parquet" else None
    return _Rows(path, _PARSERS[suffix]), total


def check_file(data: str | Path) -> None:
    """Check that data can be opened by its name, without reading it.

    For a data set of the hub, only the form of the name is checked, and that `datasets` is installed.

    Raises:
        InvalidArgumentError: there is no such file (`MissingFileError`) or format, or the path is a folder, a
            pipe or a device.
        MissingExtraError: `datasets` is not installed.
    """
    if str(data).startswith(_HUB):
        _hub_name(str(data))
        MissingExtraError.require("datasets")
        return
    path = at_home(data)
    suffix = _suffix(path)
    _require_file(data, path, suffix)
    if suffix not in _PARSERS:
        raise InvalidArgumentError(f"{path} is in no supported format.", hint=SUPPORTED)


def _hub_name(data: str) -> tuple[str, str | None, str | None]:
    """Split "hf:owner/name", "hf:owner/name:split" or "hf:owner/name:config:split".

    Returns:
        The name, the config and the split; None for a config or a split that is not given.

    Raises:
        InvalidArgumentError: the text has another form; or the folder that the process is in has something of
            that name, which the package `datasets` would read.
    """
    name, *rest = data.removeprefix(_HUB).split(":")
    if not name.strip() or len(rest) > 2 or not all(part.strip() for part in rest):
        raise InvalidArgumentError(
            f"{data!r:.200} is not a name of a data set.",
            hint='Write "hf:owner/name", "hf:owner/name:split" or "hf:owner/name:config:split".',
        )
    if os.path.exists(name) and not (os.path.isabs(name) or name.startswith(".")):
        raise InvalidArgumentError(
            f"{data!r:.200}: {name} is in the folder that you are in, and would be read in place of the data"
            " set of the hub.",
            hint=f'Go to another folder; or write "hf:./{name}" if you mean what is here.',
        )
    return name, rest[0] if len(rest) == 2 else None, rest[-1] if rest else None


def _hub_rows(data: str) -> tuple[Iterable[object], int | None]:
    """Stream the rows of one split, without a download of the whole. Results and errors as `open_rows`."""
    datasets = MissingExtraError.require("datasets")
    name, config, split = _hub_name(data)
    try:
        found = datasets.load_dataset(name, config, streaming=True)
    except Exception as error:  # of the hub, the network, or the files: each has its own classes
        raise DataError(
            f"{data!r:.200} cannot be loaded: {str(error).rstrip('.')}.",
            hint="Check the name, the connection, and HF_TOKEN if the data set is gated.",
        ) from error
    if split is None:
        split = "train" if "train" in found else next(iter(found)) if len(found) == 1 else None
    if split not in found:
        listed = ", ".join(map(repr, found))
        problem = "has several splits" if split is None else f"has no split {split!r}"
        raise InvalidArgumentError(f"{name} {problem}: {listed}.", hint=f'Write "hf:{name}:split".')
    rows = found[split]
    known = (rows.info.splits or {}).get(split)
    total = known.num_examples if known and known.num_examples else None
    return StreamedRows(repr(data), rows), total


def check_readable(head: Sequence[object], problem: str) -> None:
    """Check that at least one of the first rows could be parsed; no rows at all are fine.

    Args:
        head: the first rows.
        problem: how the error begins.

    Raises:
        DataError: every row is a `BrokenRow`.
    """
    broken = [row for row in head if isinstance(row, BrokenRow)]
    if broken and len(broken) == len(head):
        raise DataError(
            f"{problem}: none of its first {len(broken)} rows can be read. "
            f"The first: {broken[0].error}"
        )


def _suffix(path: Path) -> str:
    """Return the extension in lower case, without .gz; "" for .parquet.gz: Parquet compresses by itself."""
    name = path.name.lower()
    plain = name.removesuffix(".gz")
    suffix = Path(plain).suffix
    return "" if suffix == ".parquet" and plain != name else suffix


def _require_file(data: str | Path, path: Path, suffix: str) -> None:
    try:
        if path.is_file():
            return
        kind = "a folder" if path.is_dir() else "a pipe or a device" if path.exists() else ""
    except (OSError, ValueError):  # too long, or otherwise no name that a file could have
        kind = ""
    shown = f"{str(data)!r:.200}"
    if kind:
        hint = "Name a file in it." if path.is_dir() else "Copy it to a file first."
        raise InvalidArgumentError(f"{shown} is {kind}.", hint=hint)
    if suffix not in _PARSERS:
        raise InvalidArgumentError(
            f"{shown} is not a file; a string is read as a path.", hint=SUPPORTED
        )
    raise missing_file(path, _PARSERS)


def missing_file(path: str | Path, suffixes: Collection[str]) -> MissingFileError:
    """Make the error for a file that does not exist; its hint names a similar file in the folder.

    The error is returned, not raised.

    Args:
        path: the file that does not exist.
        suffixes: the extensions (".csv") that a file in the hint may have. Of such files, it has the name
            that is most like that of `path`.
    """
    path = Path(path)
    nearby: list[str] = []
    with suppress(OSError, ValueError):
        others = islice(path.parent.iterdir(), _MOST_NEIGHBOURS)
        nearby = [other.name for other in others if _suffix(other) in suffixes]
    close = get_close_matches(path.name, nearby, n=1, cutoff=0.0)
    hint = f"Nearest in {str(path.parent)!r} is {close[0]!r}." if close else "Check the folder."
    return MissingFileError(f"file not found: {str(path)!r:.200}.", hint=hint)


def _mismatch(path: str | Path, expected: str, found: str, advice: str) -> DataError:
    return DataError(f"{path} should be {expected}, but holds {found}.", hint=advice)


def _found(start: bytes) -> str | None:
    """Name what a file holds that is not text, by its first bytes; None for text."""
    for signature, name in _SIGNATURES.items():
        if start.startswith(signature):
            return name
    # A text may hold a NUL somewhere, but not in its first line or beside what is not UTF-8.
    binary = b"\0" in start.split(b"\n", 1)[0] or (b"\0" in start and not _is_utf8(start))
    return "binary data" if binary else None


def _is_utf8(start: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)  # the last character may be cut
    except UnicodeDecodeError:
        return False
    return True


@contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader[Any]]:
    """Open a text file as bytes, unpacked if its name ends in .gz.

    Raises:
        DataError: the file is not text, or not packed as its name says; or, from within the block, it cannot
            be read to its end.
    """
    packed = path.name.lower().endswith(".gz")
    try:
        with path.open("rb") as raw:
            start = raw.read(2)
        if packed and start and start != b"\x1f\x8b":
            raise _mismatch(
                path, "gzip", _found(start) or "something else", "Rename it without .gz."
            )
        with io.BufferedReader(_Unpacked(path), 2**16) if packed else path.open("rb") as file:
            if found := _found(file.peek(4096)[:4096]):
                advice = "Save it as UTF-8." if "UTF" in found else "Give it the right extension."
                raise _mismatch(path, "text", found, advice)
            yield file
    except (EOFError, zlib.error, OSError) as error:
        raise DataError(
            f"{path} cannot be read to its end: {error}.", hint="Copy or write the file again."
        ) from error


class _Unpacked(io.RawIOBase):
    """The content of a .gz file. Reading it raises DataError if it unpacks to far more than its size."""

    def __init__(self, path: Path) -> None:
        self._path, self._count = path, 0
        self._most = max(_MOST_UNPACKED, _MOST_PACKED * path.stat().st_size)
        self._file = gzip.GzipFile(path)

    def close(self) -> None:
        self._file.close()
        super().close()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(memoryview(buffer)[:_UNPACKED_AT_ONCE])
        self._count += count
        if self._count > self._most:
            raise DataError(
                f"{self._path} unpacks to more than {self._most:,} bytes.",
                hint="No real data packs that well: check where the file comes from, or unpack it first.",
            )
        return count


def _jsonl(path: Path) -> Iterator[object]:
    with _opened(path) as file:
        yield from jsonl_rows(bounded_lines(file), path)


def bounded_lines(file: IO[bytes]) -> Iterator[bytes | None]:
    """Yield the lines of a file with their line ends; None for a line that is too long.

    A line of `LONGEST_LINE` bytes (64 MiB) or more is too long. It is skipped in bounded memory.
    """
    while line := file.readline(LONGEST_LINE):
        if len(line) < LONGEST_LINE or line.endswith(b"\n"):
            yield line
            continue
        while (rest := file.readline(2**20)) and not rest.endswith(b"\n"):
            pass
        yield None


def jsonl_rows(lines: Iterable[bytes | None], name: str | Path) -> Iterator[object]:
    """Parse JSON lines as they come, from an open file or a pipe; empty lines are skipped.

    Args:
        lines: the lines as bytes; None: a line that was too long.
        name: the file, for errors.

    Yields:
        A dict, or a `BrokenRow` for a line that is not a JSON object.

    Raises:
        DataError: the first line begins a JSON list, or nearly all lines are empty.
    """
    empty = 0
    for number, line in enumerate(lines, 1):
        if line is None:
            yield BrokenRow(
                f"line {number} is longer than {LONGEST_LINE:,} bytes. Cut its texts or remove it."
            )
            continue
        text = line.removeprefix(_UTF8_BOM).strip()  # files that were joined have several
        if number == 1 and (text == b"[" or text.startswith(b"[{")):
            raise _mismatch(name, "one JSON object a line", "a JSON list", "Rename it to .json.")
        if text:
            yield _json_line(number, text)
        else:
            empty += 1
            _check_empty(empty, number, name)


def _check_empty(empty: int, lines: int, name: str | Path) -> None:
    """Raise DataError if more than a million lines are empty, and ten times as many as are not.

    A small packed file can hold many millions of them.
    """
    if empty > max(_MOST_EMPTY, 10 * (lines - empty)):
        raise DataError(
            f"of the first {lines:,} lines of {name}, {empty:,} are empty.",
            hint="Remove the empty lines.",
        )


def _json_line(number: int, text: bytes) -> object:
    try:
        row = read_json(text, is_data=True)
    except UnicodeDecodeError as error:
        return BrokenRow(f"line {number} is not UTF-8: {error.reason}. Save the file as UTF-8.")
    except (TooManyValuesError, TwinKeysError) as error:
        return BrokenRow(f"line {number} cannot be read: {error}")
    except ValueError as error:
        why = getattr(error, "msg", str(error))  # without its own count of lines, which is 1
        return BrokenRow(f"line {number} is not JSON: {why}. Correct the line or remove it.")
    if isinstance(row, dict):
        return row
    kind = type(row).__name__
    return BrokenRow(f'line {number} holds a {kind}, not an object. Write {{"prompt": …}}.')


def _json_rows(path: Path) -> list[object]:
    value = _json_value(path)
    if isinstance(value, dict):
        lists = [each for each in value.values() if isinstance(each, list)]
        listed = value.get("rows") if "features" in value else None  # of the datasets-server
        value = lists[0] if len(lists) == 1 else listed or value
    if isinstance(value, list):
        return [
            _unwrapped(each) if isinstance(each, dict) else _no_object(type(each).__name__)
            for each in value
        ]
    advice = 'Write [{"prompt": …, "chosen": …, "rejected": …}, …].'
    if isinstance(value, dict) and all(isinstance(each, dict | list) for each in value.values()):
        advice += " If pandas wrote it, pass the frame: pandas.read_json(path), with its orient=."
    raise _mismatch(path, "a list of objects", f"a single {type(value).__name__}", advice)


def _unwrapped(row: dict[str, Any]) -> object:
    """Return the row in what the datasets-server of the hub says of one; another row as it is."""
    if row.keys() != {"row_idx", "row", "truncated_cells"} or not isinstance(row["row"], dict):
        return row
    if cut := row["truncated_cells"]:
        cells = ", ".join(map(repr, cut))
        return BrokenRow(f"the datasets-server has cut {cells:.80}. Load the data set itself.")
    return row["row"]


def _json_value(path: Path) -> object:
    """Parse a .json file as a whole; an empty file is an empty list."""
    with _opened(path) as file:
        content = file.read(_LARGEST_JSON + 1)
    if len(content) > _LARGEST_JSON:
        raise _too_large(path, f"{_LARGEST_JSON:,} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _mismatch(path, "JSON", "text that is not UTF-8", "Save it as UTF-8.") from None
    del content  # half a gigabyte
    if text.isspace() or not text:
        return []
    try:
        return read_json(text, _MOST_JSON_VALUES, is_data=True)
    except TooManyValuesError:
        raise _too_large(path, f"{_MOST_JSON_VALUES:,} values") from None
    except TwinKeysError as error:
        raise DataError(f"{path}: in one of its objects {error.message}", hint=error.hint) from None
    except ValueError as error:
        advice = "Correct it; if it holds one object a line, rename it to .jsonl."
        raise _mismatch(path, "JSON", f"something else ({error})", advice) from error


def _too_large(path: Path, bound: str) -> DataError:
    return DataError(
        f"{path} holds more than {bound}, which are read as a whole.",
        hint="Write one object a line, to a .jsonl file: it is read row by row.",
    )


@cache
def _no_object(kind: str) -> BrokenRow:
    return BrokenRow(f"the row is a {kind}, not an object. Correct or remove it.")


def _csv(path: Path) -> Iterator[object]:
    # The module's limit of 128 KiB a field is for the whole process, and long responses pass it.
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_LINE))
    with _opened(path) as file:
        # A carriage return, which programs write without quotes, begins no row unless all lines end so.
        newline = "\n" if _LINE_FEED.match(file.peek(1)) else ""
        # Undecodable bytes become lone surrogates, which cost their row and no other.
        text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline=newline)
        lines = _CsvLines(text, path)
        reader = csv.reader(lines, strict=True, skipinitialspace=lines.have_blanks())
        header: list[str] | None = None
        empty = 0
        while True:
            start = lines.begin_row()
            try:
                fields = next(reader)
                if header and len(fields) != len(header) and lines.hold_rows_of(len(header)):
                    raise csv.Error("a quote stays open over the rows below it")
            except StopIteration:
                return
            except csv.Error as error:
                if header is None and any(f'"{each}"' in lines.first for each in _SEPARATORS):
                    _csv_header(path, [lines.first])  # which raises the error that says so
                lines.go_back()
                yield BrokenRow(f"line {start} is not CSV: {error}. Correct its quotes.")
                continue
            if lines.have_returns:
                fields = [field.replace(_RETURN, "\r") for field in fields]
            if not fields:
                empty += 1
                _check_empty(empty, start, path)
                continue
            if header is None:
                header = _csv_header(path, fields)
                names = fields
                known = {*names}
            elif fields[-1] in known and known == {fields[0].strip('\ufeff"'), *fields[1:]}:
                yield _header_again(path, start, names, fields)
            else:
                yield _csv_row(start, header, fields)


class _CsvLines:
    """The lines of a CSV file, in which the reader of the rows can go back.

    A row has several lines if a quote is open at the end of one. The reader says where each row begins, and
    goes back to its second line if such a quote was a mistake. A row that is too long raises DataError, since
    its end is not known.

    Attributes:
        first: the first line, once `have_blanks` has looked at it.
        have_returns: whether a line had carriage returns within it, which are now `_RETURN`.
    """

    first = ""
    have_returns = False

    def __init__(self, text: IO[str], path: Path) -> None:
        self._text, self._path = text, path
        self._begin, self._length, self._commas, self._read_again = 1, 0, 0, 0
        self._row: list[str] = []
        self._next: deque[str] = deque()  # lines that are read again

    def have_blanks(self) -> bool:
        """Whether blanks come after the commas of the header, or before a quote of the first row.

        People write files so. In a cell a quote is written twice: a single one after a blank begins a cell.

        Raises:
            DataError: the header has too many columns.
        """
        first = [self._text.readline(LONGEST_LINE) for _ in range(2)]
        self.first = first[0]
        _check_columns(first[0].count(","), self._path)
        self._next.extend(first)
        names = next(csv.reader(first[:1]), [])
        return any(name.startswith(" ") for name in names[1:]) or bool(_OPENS.search(first[1]))

    def begin_row(self) -> int:
        """Begin a row with the next line, and return the number of that line, from 1."""
        self._begin += len(self._row)
        self._row, self._length, self._commas = [], 0, 0
        return self._begin

    def go_back(self) -> None:
        """Go back to the second line of this row, which is read next.

        Raises:
            DataError: too much has been read again, since many quotes stay open.
        """
        self._read_again += self._length - len(self._row[0])
        if self._read_again > _MOST_READ_AGAIN:
            raise DataError(
                f"{self._path} has too many quotes that stay open, the last one in line {self._begin}.",
                hint="Correct them, or write the file with another program.",
            )
        self._next.extendleft(reversed(self._row[1:]))
        self._row = self._row[:1]

    def hold_rows_of(self, fields: int) -> bool:
        """Whether the inner lines of this row are rows themselves, each of so many fields.

        Inner lines are all but the first and the last one; without any, False.
        """
        inner = self._row[1:-1]
        return bool(inner) and all(len(found) == fields for found in csv.reader(inner))

    def __iter__(self) -> _CsvLines:
        return self

    def __next__(self) -> str:
        line = (
            self._next.popleft() if self._next else self._text.readline(LONGEST_LINE - self._length)
        )
        body = line.rstrip("\r\n")  # some lines end with two carriage returns
        if "\r" in body:
            self.have_returns = True
            line = body.replace("\r", _RETURN) + line[len(body) :]
        self._row.append(line)
        self._length += len(line)
        if not line:
            raise StopIteration
        if self._length >= LONGEST_LINE:
            raise self._too_large(f"longer than {LONGEST_LINE:,} characters")
        if self._length > cells.MOST_VALUES:
            self._commas += line.count(",")
            if self._commas > (most := 4 * cells.MOST_VALUES):  # a cell of JSON has some, too
                raise self._too_large(f"of more than {most:,} fields")
        return line

    def _too_large(self, bound: str) -> DataError:
        return DataError(
            f"the row of {self._path} that begins at line {self._begin} is {bound}.",
            hint="Correct its quotes, cut its texts, or remove it.",
        )


class CsvRow(dict[str, str]):
    """A row of a CSV file, whose cells are all text: a missing value is "", or a word such as NULL."""


def _check_columns(commas: int, path: Path) -> None:
    if commas > _MOST_COLUMNS:
        raise DataError(
            f"the header of {path} has {commas:,} commas.",
            hint="Is it the right file? Drop columns that are not needed.",
        )


def _csv_header(path: Path, fields: list[str]) -> list[str]:
    _check_columns(len(fields) - 1, path)  # it may have several lines
    separator = next((each for each in _SEPARATORS if each in fields[0]), None)
    if len(fields) == 1 and separator:
        raise DataError(
            f"{path} is separated by {separator!r}, not by commas: {fields[0]!r:.80}.",
            hint=f"Pass the frame: pandas.read_csv(path, sep={separator!r}). Or save the file with commas.",
        )
    if fields.count("") > 1:  # columns of a sheet that nobody filled; pandas calls them so
        fields = [name or f"Unnamed: {place}" for place, name in enumerate(fields)]
    refuse_twins(fields, path)
    return fields


def refuse_twins(names: Iterable[object], source: str | Path = "the data") -> None:
    """Raise DataError if two columns have the same name.

    Args:
        names: the names of the columns.
        source: the file, for the error.
    """
    if twins := [name for name, times in Counter(names).items() if times > 1]:
        raise DataError(
            f"{source} has the column {twins[0]!r:.80} twice.", hint="Rename or drop one of them."
        )


def _csv_row(number: int, header: list[str], fields: list[str]) -> object:
    if len(fields) == len(header):
        return CsvRow(zip(header, fields, strict=True))
    return BrokenRow(
        f"line {number} has {len(fields)} fields where the header has {len(header)}. "
        "Put fields that hold commas in quotes."
    )


def _header_again(path: Path, number: int, header: list[str], fields: list[str]) -> BrokenRow:
    """Make the row of a header within a file, which files have that were joined.

    Raises:
        DataError: its names are in another order than those of the first header.
    """
    if fields[1:] == header[1:]:
        return BrokenRow(f"line {number} is the header again. Remove it.")
    raise DataError(
        f"line {number} of {path} is the header again, but in another order: {fields!r:.200}.",
        hint="Read each of the files that were joined by itself.",
    )


def _parquet(path: Path) -> Iterator[object]:
    import pyarrow as pa

    first = 1  # the number of the batch's first row
    try:
        for batch in parquet_batches(path):
            bounds = LONGEST_LINE, cells.MOST_VALUES
            for place, part, problem in small_batches(batch, *bounds):
                if problem:
                    yield BrokenRow(f"row {first + place} {problem}. Cut it or remove it.")
                else:
                    yield from _arrow_rows(written_out(part))
            first += len(batch)
    except (pa.ArrowException, OSError, UnicodeError) as error:  # names of columns, too
        raise DataError(f"{path} cannot be read: {error}", hint="Write the file again.") from error


def _arrow_rows(batch: pa.RecordBatch) -> Iterator[dict[str, object]]:
    columns = map(arrow_cells, batch.columns)
    for values in zip(*columns, strict=True):
        yield dict(zip(batch.schema.names, values, strict=True))


def _parquet_total(path: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            refuse_twins(file.schema_arrow.names, path)
            return int(file.metadata.num_rows)
    except (pa.ArrowException, OSError, UnicodeError) as error:  # names of columns, too
        with path.open("rb") as raw:
            found = _found(raw.read(4096)) or "text"
        damaged = "a damaged or cut-off file" if found == "Parquet" else found
        raise _mismatch(
            path, "Parquet", damaged, "Write it again, or give it the right extension."
        ) from error


_PARSERS: Final[dict[str, Callable[[Path], Iterable[object]]]] = {
    ".jsonl": _jsonl,
    ".json": _json_rows,
    ".csv": _csv,
    ".parquet": _parquet,
}
FILES: Final = tuple(_PARSERS)
