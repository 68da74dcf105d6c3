"""What `infer` prints at its end: rows, failures, calls, cost, how data was read, the next commands."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from ..preferences.remarks import how_read, remarks
from .streams import counted, note, print_json, suggest, usd

if TYPE_CHECKING:
    from ..data.table import PersonaTable
    from ..evaluation.verification import Verifier
    from ..personas.infer import PersonaStream
    from ..records import PersonaRow, Usage

FAILED = 3  # the exit code if rows failed
_SHOWN = 3  # how many rows with an error the summary names


class Done(NamedTuple):
    """The outcome of `infer`.

    Attributes:
        rows, failed, unexplained: how many rows in all, with an error, and with a side that no candidate
            explains.
        asked: whether any of the failed rows was asked for, and could be again. The others have bad data.
        errors: the position in the input and the error, for at most the first three rows with one.
        usage: the calls, tokens and cost.
        read: how the data was read, as `settings["read"]` of a table; empty: nothing is known.
    """

    rows: int
    failed: int
    unexplained: int
    asked: bool
    errors: list[tuple[int, str]]
    usage: Usage
    read: Mapping[str, Any]

    @classmethod
    def counted(cls, rows: Iterable[PersonaRow], stream: PersonaStream) -> Done:
        """Read all rows of a stream, and count them.

        Args:
            rows: the rows of the stream, such as an iterator that also writes them.
            stream: the stream, which knows the usage once all rows are read.
        """
        count, failed, unexplained, asked, errors = 0, 0, 0, False, list[tuple[int, str]]()
        for row in rows:
            count += 1
            unexplained += bool(row.unexplained)
            if row.error is not None:
                failed += 1
                asked |= row.preference is not None
                errors += [(row.index, row.error)][: _SHOWN - len(errors)]
        read = stream.source.summary
        return cls(count, failed, unexplained, asked, errors, stream.usage, read)

    @classmethod
    def of(cls, table: PersonaTable) -> Done:
        """Count the rows of a table that infer made."""
        places = table.failed_places()
        asked = any(table[n].preference is not None for n in places)
        errors = [(table[n].index, table[n].error or "") for n in places[:_SHOWN]]
        read, unexplained = table.settings.get("read") or {}, table.count_unexplained()
        return cls(len(table), len(places), unexplained, asked, errors, table.usage, read)


def finish(
    done: Done,
    path: Path | None,
    as_json: bool,
    following: Sequence[str] = (),
    judge: Verifier | None = None,
) -> None:
    """Print the outcome of `infer` and the next commands as text on standard error, or as JSON.

    Args:
        done: the outcome.
        path: the file that was written; None: the rows went to standard output.
        as_json: print one JSON object in place of the text, without the next commands: on standard output,
            or, if `path` is None, on standard error.
        following: the commands to suggest.
        judge: its usage is printed, too; None: there is none.

    Raises:
        typer.Exit: with the code `FAILED`, if rows failed.
    """
    if as_json:
        told: dict[str, Any] = {"rows": done.rows, "failed": done.failed}
        errors = [f"row {index}: {error}" for index, error in done.errors]
        told |= {"unexplained": done.unexplained, "errors": errors}
        told |= {"read": done.read, "output": str(path or "-"), "usage": done.usage.model_dump()}
        if judge is not None:
            told["judge_usage"] = judge.usage.model_dump()
        print_json(told, err=path is None)
    else:
        usage = done.usage
        where = f" in {path}" if path else ""
        note(f"{counted(done.rows, 'row')}{where}, {done.failed:,} failed")
        if done.unexplained:
            note(f"{counted(done.unexplained, 'row')} with a choice that no candidate explains")
        note(_calls(usage))
        if judge is not None:
            note(f"the judge: {_calls(judge.usage)}")
        for line in filter(None, (how_read(done.read), *remarks(done.read))):
            note(line)
        for error, rows in _by_error(done.errors).items():
            note(f"  row{'s' * (len(rows) > 1)} {', '.join(map(str, rows))}: {error}")
        if more := done.failed - len(done.errors):
            note(f"  … and {more:,} more; persona_error says why")
        if done.failed == done.rows:
            following = ()
        if path is not None and path.suffix == ".parquet" and done.asked:
            following = (f"infer --retry {shlex.quote(str(path))} …", *following)
        suggest(*following)
    if done.failed:
        raise typer.Exit(FAILED)


def _by_error(errors: Iterable[tuple[int, str]]) -> dict[str, list[int]]:
    """Return error -> the positions of its rows."""
    found: dict[str, list[int]] = {}
    for index, error in errors:
        found.setdefault(error, []).append(index)
    return found


def _calls(usage: Usage) -> str:
    calls = counted(usage.calls, "call")
    return f"{calls}, {usage.cached:,} from the cache, cost {usd(usage.cost)}"
