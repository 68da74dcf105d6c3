"""The commands `show`, `report` and `formats`, and the rows that `infer` prints in a terminal."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import personainfer as pi

from ..arguments import MOST
from ..exceptions import DataError, InvalidArgumentError
from .options import AnyTable, AsJson, TableColumns, pairs
from .streams import data_out, note, print_json, say, suggest, table_commands

if TYPE_CHECKING:
    from ..personas.infer import PersonaStream
    from ..records import PersonaRow

_ROWS = 10


def show(
    table: AnyTable,
    column: TableColumns = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=MOST, help="Only the first N rows.")
    ] = _ROWS,
    width: Annotated[
        int | None,
        typer.Option(
            min=24,
            max=MOST,
            help="Columns. Default: those of the terminal, or 80.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Print a table: each prompt, what both responses say, and who prefers them."""
    found = opened_table(table, column)
    say(found.format(limit=limit, width=width or _columns()), file=data_out())
    again, *following = table_commands(table, column)
    if len(found) > limit:
        note(f"All of them: personainfer {again} -n {len(found)}")
    suggest(*following)


def report(
    table: AnyTable,
    output: Annotated[Path, typer.Option("--output", "-o", help="The .html file to write.")],
    column: TableColumns = None,
    title: Annotated[str, typer.Option(help="The page's heading.")] = "Personas",
    embedder: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Groups personas by meaning: a sentence-transformers model, its name or folder."
            " Default: by frequent phrases.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that is not a report, too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write one HTML page with figures and all rows. The page needs no network."""
    path = pi.write_report(
        opened_table(table, column), output, title=title, embedder=embedder, overwrite=overwrite
    )
    if as_json:
        return print_json({"report": str(path)})
    say(str(path))
    return note(f"Open it in a browser: {path.resolve().as_uri()}")


def formats(as_json: AsJson = False) -> None:
    """List the files that can be read, an example row of each kind of data, and the formats of export."""
    from ..data.file_formats import FILES
    from ..preferences.recognition import example_rows
    from ..tailoring.export import EXPORT_FORMATS

    rows = example_rows()
    if as_json:
        exports = {
            n: {"columns": f.columns, "trainers": f.trainers} for n, f in EXPORT_FORMATS.items()
        }
        return print_json({"files": FILES, "rows": rows, "exports": exports})
    files = (
        f"{', '.join(FILES)} (the text ones also with .gz), hf:owner/name:split, and - for JSONL"
    )
    say(f"Files that infer and estimate read: {files}")
    say("Rows of preference data that are recognised, one of each kind:")
    for name, row in rows.items():
        say(f"  {name}: {json.dumps(row, ensure_ascii=False)}")
    say("Formats of export:")
    for name, each in EXPORT_FORMATS.items():
        trainers = f" ({each.trainers})" if each.trainers else ""
        say(f"  {name}: {each.columns}{trainers}")
    return None


def opened_table(path: Path, columns: list[str] | None = None) -> pi.PersonaTable:
    """Open a table of infer or verify, or a file of pairs with personas that somebody else made.

    Args:
        path: the file. A .parquet file without `columns` is a table.
        columns: texts OURS=YOURS, for names of columns that differ; None: no name differs.

    Raises:
        DataError: the file cannot be read, or holds no personas.
        InvalidArgumentError: a column that `columns` names is not in the file.
        typer.BadParameter: a text in `columns` has another form, or the file is a table.
    """
    from ..data.table_writer import is_table

    if path.suffix == ".parquet" and not columns:
        return pi.PersonaTable.load(path)
    if path.suffix == ".parquet" and is_table(path):  # what is made of it could not be saved
        raise typer.BadParameter(
            f"{str(path)!r} is a table of infer or verify, whose columns are known: leave this out.",
            param_hint="--column",
        )
    named = pairs("--column", columns or ())
    sides = {f"{side}_persona": f"{side}_persona" for side in ("chosen", "rejected")}
    sides = {name: named.pop(name, default) for name, default in sides.items()}
    try:
        return pi.PersonaTable.from_data(path, columns=named or None, **sides)
    except InvalidArgumentError as error:
        if error.argument == "columns" or columns:
            raise
        raise DataError(
            f"{path} is not a table of personas: {error.message}",
            hint="Say which columns they are: --column chosen_persona=… --column rejected_persona=…"
            f" Or infer them: personainfer infer {path} -o personas.parquet.",
        ) from None


def in_a_terminal() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()


def printed_rows(stream: PersonaStream) -> Iterator[PersonaRow]:
    """Print each row for people as soon as it is ready, then yield it. Close the stream at the end."""
    from ..data.table_display import text_lines

    out = data_out()
    with stream:
        for row in stream:
            out.write("\n".join([*text_lines(row, _columns()), "\n"]))
            out.flush()
            yield row


def _columns() -> int:
    """Return the width of the terminal in columns; 80 if there is none."""
    return shutil.get_terminal_size((80, 24)).columns
