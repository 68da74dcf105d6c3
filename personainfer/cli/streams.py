"""Read rows from files and pipes; print rows, notes and errors.

Data goes to standard output, everything else to standard error.
"""

from __future__ import annotations

import io
import os
import shlex
import stat
import sys
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

import typer

from ..exceptions import InvalidArgumentError, MissingFileError, visible, visible_in_json
from ..local.atomic_files import atomic_text_writer
from ..local.line_marks import NO_MARK, has_mark, marked
from ..local.paths import check_replaced, place_errors

if TYPE_CHECKING:
    from ..personas.infer import PersonaStream
    from ..records import PersonaRow

_SUPPORTED = (
    "Supported are .jsonl, .json, .csv (also with .gz), .parquet, hf:owner/name:split, and - for JSONL on a"
    " pipe."
)


# Input


def rows_of(data: str, limit: int | None) -> Any:
    """Return data for `infer_personas`: what the argument DATA of a command stands for.

    Args:
        data: the path of a file; "-": JSON lines on standard input.
        limit: only the first rows, which are read as they are among all; None: all.

    Returns:
        The path itself, if it is a file and there is no `limit`; else the rows.

    Raises:
        InvalidArgumentError: there is no such file, it cannot be read, or standard input is closed.
        DataError: with `limit`, the content of the file cannot be read.
    """
    from ..data.file_formats import FirstRows, bounded_lines, check_file, jsonl_rows, open_rows

    if data == "-":
        if sys.stdin is None:
            raise InvalidArgumentError("standard input is closed.", hint="Name a file.")
        rows: Iterable[object] = jsonl_rows(bounded_lines(sys.stdin.buffer), "standard input")
        return rows if limit is None else FirstRows(rows, limit)
    try:
        check_file(data)  # first, so that a missing file is found before a fault of the model
    except MissingFileError:
        raise
    except InvalidArgumentError as error:
        raise InvalidArgumentError(error.message, hint=_SUPPORTED) from None
    return data if limit is None else FirstRows(open_rows(data)[0], limit)


# Output


def written_rows(
    stream: PersonaStream,
    out: IO[str],
    progress: bool | None,
    details: bool = False,
    told: Mapping[str, Any] | None = None,
) -> Iterator[PersonaRow]:
    """Write each row as a line of JSON as soon as it is ready, then yield it. Close the stream at the end.

    The first line of a file gets a mark, so that another run may replace the file.

    Args:
        stream: the rows.
        out: standard output, or an open file.
        progress: whether to show a bar; None: in a terminal.
        details: whether to add the columns that `PersonaTable.to_pandas(details=True)` adds.
        told: the options by which the sides were read, which `PersonaTable.from_data` reads from the lines.

    Raises:
        InvalidArgumentError: with `details`, the data has a column with the name of an added one.
    """
    from ..observability import with_progress_bar

    with stream:
        bar = with_progress_bar(stream, progress, total=stream.source.total)
        for place, row in enumerate(bar):
            line = _line(row, details, told)
            out.write(line if place or out is sys.stdout else marked(line, "inferred"))
            out.flush()
            yield row


def _line(row: PersonaRow, details: bool, told: Mapping[str, Any] | None = None) -> str:
    """Return a row as a line of JSON: the user's own columns, then the personas. Raises as `written_rows`."""
    from ..data.column_values import RECORD
    from ..data.own_columns import own_values
    from ..data.table_display import detail_columns, persona_columns

    own = own_values(row)
    made: dict[str, Any] = {name: text for name, (text,) in persona_columns([row]).items()}
    if details:
        _check_details(own)
        made |= {name: value for name, (value,) in detail_columns([row]).items()}
    if told:
        made[RECORD] = told
    return _json({**{name: _uncut(value) for name, value in own.items()}, **made}) + "\n"


def check_details(data: str) -> None:
    """Raise InvalidArgumentError if the first row of the file has a column that --details adds."""
    from ..data.file_formats import open_rows

    if data != "-":  # which can be read only once
        _check_details(next((row for row in open_rows(data)[0] if isinstance(row, dict)), {}))


def _check_details(own: Container[str]) -> None:
    from ..data.table_display import DETAILS

    if taken := [name for name in DETAILS if name in own]:
        raise InvalidArgumentError(
            f"the data has a column {taken[0]} already.",
            hint="Rename it, or leave out --details.",
        )


def _uncut(value: Any) -> Any:
    """Return the value with texts for pandas' times that have nanoseconds: JSON's writer would cut them."""
    from ..data.column_values import are_flat

    if isinstance(value, dict):
        return {name: _uncut(each) for name, each in value.items()}
    if isinstance(value, list | tuple) and not are_flat(value):
        return [_uncut(each) for each in value]
    is_finer = getattr(value, "nanosecond", 0) or getattr(value, "nanoseconds", 0)
    return str(value) if is_finer else value


@contextmanager
def opened_lines(output: str, data: str) -> Iterator[IO[str]]:
    """Yield standard output ("-"), or a .jsonl file that gets its name when the block ends without an error.

    Args:
        output: "-", or the path of the file.
        data: the path of the input, which must not be the same file.

    Raises:
        typer.BadParameter: `output` is no .jsonl file in an existing folder, or is the input.
        InvalidArgumentError: `output` is a file that is neither empty nor written by infer, or cannot be
            written to.
        OSError: the disk is full.
    """
    if output == "-":
        yield data_out()
        return
    path = Path(output)
    if path.suffix != ".jsonl" or not path.parent.is_dir() or path.is_dir():
        raise typer.BadParameter(
            f"{output!r} is neither - nor a .jsonl or .parquet file in a folder that exists.",
            param_hint="--output",
        )
    if path.exists() and Path(data).exists() and path.samefile(data):
        raise typer.BadParameter(
            f"{output!r} is the input: name another file.", param_hint="--output"
        )
    check_replaced(
        path,
        _is_replaceable,
        "a file of lines that infer wrote",
        named=f"output={output!r}",
        argument="output",
        otherwise=f"or remove it ({NO_MARK})",
    )
    with ExitStack() as stack:
        with place_errors(path, "output"):
            file = stack.enter_context(atomic_text_writer(path))
        yield file


def _is_replaceable(there: Path) -> bool:
    return has_mark(there, "inferred") or not there.is_file()  # the writer refuses what is no file


def data_out() -> IO[str]:
    """Return standard output for data. From now on it writes UTF-8.

    Raises:
        InvalidArgumentError: standard output is closed.
    """
    if sys.stdout is None:
        raise InvalidArgumentError("standard output is closed.", hint="Name a file: --output.")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    return sys.stdout


def bar_beside_lines(progress: bool | None) -> bool | None:
    """Decide whether to show a bar while lines are written to standard output.

    Args:
        progress: what the user asked for; None: nothing.

    Returns:
        `progress` if it is not None. Otherwise None (a bar if standard error is a terminal) if standard
        output is a file, and False if it is not: a terminal, or a program behind a pipe, would mix the bar
        into the lines.
    """
    if progress is not None:
        return progress
    try:
        return None if stat.S_ISREG(os.fstat(sys.stdout.fileno()).st_mode) else False
    except (AttributeError, OSError, ValueError):  # closed, or no file of the system
        return False


def print_request(body: dict[str, Any], as_json: bool) -> None:
    """Print a request on standard output: as JSON, or its fields, and then each message as text.

    Without `as_json`, `body` loses its messages.
    """
    if as_json:
        return print_json(body)
    messages = body.pop("messages")
    told = [f"\n--- {message['role']}\n{message['content']}" for message in messages]
    return say("\n".join([_json(body), *told]), data_out())


def _json(value: object) -> str:
    """Return a value as JSON in which control characters are escaped. NaN becomes null."""
    from pydantic_core import PydanticSerializationError, to_json

    from ..data.column_values import in_utf_8, name_as_text

    def written(value: object) -> str:
        text = to_json(value, fallback=name_as_text, bytes_mode="base64", inf_nan_mode="null")
        return visible_in_json(text.decode())

    try:
        return written(value)
    except (PydanticSerializationError, UnicodeEncodeError):  # text that is not UTF-8 came in
        return written(in_utf_8(value))


def print_json(value: object, *, err: bool = False) -> None:
    """Print a value as one line of JSON on standard output, or (`err`) on standard error."""
    typer.echo(_json(value), file=sys.stderr if err else data_out())


def say(text: str, file: IO[str] | None = None) -> None:
    """Print text for people on standard output, or to a stream. Control characters are shown as escapes."""
    typer.echo(visible(text), file=file)


def note(text: str) -> None:
    """Print text for people on standard error. Control characters are shown as escapes."""
    typer.echo(visible(text), err=True)


def suggest(*commands: str) -> None:
    """Suggest commands on standard error. " …" at a command's end stands for the options of this run."""
    for n, command in enumerate(commands):
        said = command.removesuffix(" …")
        again = " (with the same options)" if said != command else ""
        note(f"{'     ' if n else 'Next:'} personainfer {said}{again}")


def table_commands(path: str | Path, columns: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return commands to show a table in a file, and to write its report into the current folder."""
    options = [part for column in columns or () for part in ("--column", column)]
    table, page = shlex.join([str(path), *options]), f"{Path(path).stem}.html"
    return (f"show {table}", f"report {table} -o {shlex.quote(page)}")


def counted(number: int, what: str) -> str:
    """Return a number with its noun, such as "1,000 rows" or "1 row"."""
    return f"{number:,} {what}" + "s" * (number != 1)


def usd(cost: float | None) -> str:
    """Return a cost in USD as text; "unknown" for None."""
    return "unknown" if cost is None else f"${cost:,.4f}"


# Ends


def fail(code: int, message: str) -> NoReturn:
    """Print an error on standard error, and end with an exit code: raise typer.Exit."""
    note(f"Error: {message}")
    raise typer.Exit(code) from None


def abandon_stdout() -> None:
    """Send what is still written to standard output nowhere: its reader is gone, and flushing would fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
