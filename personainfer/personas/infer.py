"""Public entry points: read rows, send requests, collect a PersonaTable. Also async and streaming."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Unpack

from ..arguments import takes_options
from ..data.arrow_columns import own_names
from ..data.containers import read_preferences
from ..data.source_rows import PreferenceSource, SourceRow
from ..data.table import PersonaTable
from ..data.table_writer import TAKEN_NAMES, check_free_names, check_output
from ..event_loop import thread_errors
from ..exceptions import DataError, ModelError, PersonaInferError, RowsFailedError
from ..llm.client import LLM
from ..llm.requests import Reply, Run
from ..observability import with_progress_bar
from ..records import PersonaRow, Selector, Usage
from .costs import CostEstimate, estimate, first_body
from .options import READING, OnError, PersonaOptions, planned
from .requests import Plan
from .selection import choose, of_one_run, selector_settings


@takes_options(PersonaOptions)
def infer_personas(
    data: object,
    model: str | LLM | None = None,
    *,
    output: str | Path | None = None,
    progress: bool | None = None,
    **options: Unpack[PersonaOptions],
) -> PersonaTable:
    """Infer who would prefer each response of each pair, and why.

    Args:
        data: pandas or polars frame, pyarrow table, Hugging Face dataset, a path (.jsonl, .json, .csv,
            .parquet), or an iterable of dicts, (prompt, chosen, rejected) tuples or `Preference`.
        model: a model's name or an `LLM`. None: $PERSONAINFER_MODEL, else "local".
        output: a .parquet file for the rows. They are written as they come, in bounded memory, and the
            file appears whole or not at all. The returned table reads its rows from it.
        progress: a bar on standard error. None: in a terminal or a notebook.
        options: see below. Those from `api_base` on configure the model that a name stands for.

    With more than one of `candidates`, hypotheses are sampled and `select` scores them. The best one is
    kept if it explains the choice (score above 0), and `row.chosen_candidates` has all with their scores.
    With one candidate, `select` keeps it or says that it explains nothing (`row.unexplained`).
    The "separate" protocol is that of "Whose Boat Does it Float?" (arXiv 2501.11549, section 2). Rows
    that `on_error="drop"` leaves out are counted in `settings["dropped"]`.

    Returns:
        A table with one row for each input row, in the same order.

    Raises:
        ValueError, TypeError: a bad argument, before any call is made.
        ModelError: only for what would fail every row (key, model); what was paid for is cached.
    """
    return _start(data, model, options, output).table(progress)


@takes_options(PersonaOptions)
async def ainfer_personas(
    data: object,
    model: str | LLM | None = None,
    *,
    output: str | Path | None = None,
    progress: bool | None = None,
    **options: Unpack[PersonaOptions],
) -> PersonaTable:
    """`infer_personas` as a coroutine. Cancelling it stops the run; replies that were paid for are cached."""
    with thread_errors():
        stream = await asyncio.to_thread(_start, data, model, options, output)
    try:
        return await asyncio.to_thread(stream.table, progress)
    except asyncio.CancelledError:
        stream.cancel()
        raise


@takes_options(PersonaOptions)
def iter_personas(
    data: object, model: str | LLM | None = None, **options: Unpack[PersonaOptions]
) -> PersonaStream:
    """`infer_personas` as an iterator: rows in input order as they come, in bounded memory."""
    return _start(data, model, options)


@takes_options(PersonaOptions)
def estimate_cost(
    data: object, model: str | LLM | None = None, **options: Unpack[PersonaOptions]
) -> CostEstimate:
    """Estimate `infer_personas` with the same arguments: reads all data, makes no call."""
    plan, source, llm = prepare(data, model, options)
    return estimate(llm, source, plan)


def first_request(
    data: object, model: str | LLM | None = None, **options: Unpack[PersonaOptions]
) -> dict[str, Any]:
    """The body of the first request that `infer_personas` with the same arguments would send."""
    plan, source, llm = prepare(data, model, options)
    return first_body(llm, checked(source), plan)


class PersonaStream(Iterator[PersonaRow]):
    """Rows as they are inferred. `usage` is the usage so far; `close` stops every call.

    `run` yields each row with its replies; None: the requests of `plan`, sent to `llm`. `output` is the
    file that `table` writes.
    """

    def __init__(
        self,
        source: PreferenceSource,
        llm: LLM,
        plan: Plan,
        *,
        on_error: OnError = "keep",
        select: Selector | None = None,
        run: Run[SourceRow] | None = None,
        output: Path | None = None,
    ) -> None:
        self.source = source
        self.llm = llm
        self._plan = plan
        self._output = output
        self._select = of_one_run(select, llm)
        self._drops = on_error == "drop"
        self._dropped: set[int] = set()  # the places of rows that were left out
        self._run = run or llm.run(plan.asked(checked(source)))
        self._rows = _results(self._run, plan, on_error, self._select, self._dropped)

    def __next__(self) -> PersonaRow:
        return next(self._rows)

    def __enter__(self) -> PersonaStream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def dropped(self) -> int:
        """How many rows `on_error="drop"` left out so far."""
        return len(self._dropped)

    @property
    def settings(self) -> dict[str, Any]:
        """How the personas are made, for the table's settings."""
        dropped = {"dropped": self.dropped} if self.dropped else {}
        chosen_by = selector_settings(self._select)
        read = {"read": self.source.summary} if self.source.summary else {}
        return {**self.llm.settings, **self._plan.settings, **chosen_by, **dropped, **read}

    @property
    def usage(self) -> Usage:
        """The usage so far."""
        return self._run.tally.usage

    def table(self, progress: bool | None = False) -> PersonaTable:
        """All rows as a table, in memory or in a file, with a progress bar."""
        with self:
            return PersonaTable.collect(
                with_progress_bar(self._rows, progress, total=self.source.total),
                original=self.source.original,
                dropped=self._dropped if self._drops else None,
                about=lambda: (self.usage, self.settings),
                output=self._output,
            )

    def close(self) -> None:
        """Stop. Replies that were paid for are in the cache."""
        self._rows.close()
        self._run.close()

    def cancel(self) -> None:
        """From another thread: make the iteration end with an error."""
        self._run.cancel()


_MOST_COLUMNS = 5000  # of rows that bring more and more of them


def checked(source: PreferenceSource) -> Iterator[SourceRow]:
    """The rows. One with columns that no table can hold gets an error, and loses these columns.

    They are those with a name that the table needs, and those that rows bring beyond `_MOST_COLUMNS` names:
    a table has a cell for each row and name.

    Raises:
        InvalidArgumentError: the first row that has columns has a name that the table needs, as most likely
            all have.
    """
    known: set[str] = set()
    most = _MOST_COLUMNS
    for row in source:
        if row.columns.keys() <= known:
            yield row
            continue
        if not known:
            check_free_names(row.columns)
            most = max(most, len(row.columns))
        unfit: Set[str] = TAKEN_NAMES.intersection(row.columns)
        problem = "which the table needs. Rename it."
        if not unfit and len(known) + len(row.columns.keys() - known) > most:
            unfit = row.columns.keys() - known
            problem = f"and all rows together more than {most:,} columns. Put them into one, as an object."
        if not unfit:
            known.update(row.columns)
            yield row
            continue
        names = ", ".join(sorted(map(repr, unfit))[:3]) + (", …" if len(unfit) > 3 else "")
        left = {name: value for name, value in row.columns.items() if name not in unfit}
        yield SourceRow(None, f"the row has {names}, {problem}", left)


def _results(
    run: Run[SourceRow],
    plan: Plan,
    on_error: OnError,
    select: Selector | None,
    dropped: set[int],
) -> Generator[PersonaRow, None, None]:
    """The rows of a run.

    It is a function, not a method: a generator that held the stream would keep an abandoned run open.
    """
    try:
        rows = _rows(run, plan, on_error)
        for row in choose(rows, select) if select else rows:
            if row.error is None or on_error == "keep":
                yield row
            elif on_error == "drop":
                dropped.add(row.index)
            else:
                raise RowsFailedError(f"row {row.index}: {row.error}")
    finally:
        run.close()


def _rows(run: Run[SourceRow], plan: Plan, on_error: OnError) -> Iterator[PersonaRow]:
    for index, (row, replies) in enumerate(run):
        result = plan.result(index, row, replies)
        if result.error is not None and on_error == "raise":
            raise _row_error(index, row, replies)
        yield result


def _start(
    data: object,
    model: str | LLM | None,
    options: Mapping[str, Any],
    output: str | Path | None = None,
) -> PersonaStream:
    plan, source, llm = prepare(data, model, options)
    return PersonaStream(
        source,
        llm,
        plan,
        on_error=options.get("on_error", "keep"),
        select=options.get("select"),
        output=None if output is None else check_output(output, data),
    )


def prepare(
    data: object, model: str | LLM | None, options: Mapping[str, Any], *, select_later: bool = False
) -> tuple[Plan, PreferenceSource, LLM]:
    """Check every argument, cheapest first, before anything is read or sent; `select` may come later."""
    plan, llm = planned(model, options, select_later=select_later)
    reading: dict[str, Any] = {name: options[name] for name in READING if name in options}
    source = read_preferences(data, **reading)
    if source.original is not None:
        check_free_names(own_names(source.original))
    return plan, source, llm


def _row_error(index: int, row: SourceRow, replies: Sequence[Reply]) -> PersonaInferError:
    for reply in replies:
        if reply.error is not None:
            return _in_row(reply.error, index)
    return DataError(f"row {index}: {row.error}")


def _in_row(error: ModelError, index: int) -> ModelError:
    return type(error)(f"row {index}: {error.message}", hint=error.hint)
