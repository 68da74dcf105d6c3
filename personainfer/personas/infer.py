"""Public entry points: read rows, send requests, and collect a PersonaTable, all at once or row by row."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from ..arguments import takes_options
from ..data.column_values import TAKEN_NAMES
from ..data.containers import read_preferences
from ..data.own_columns import own_names
from ..data.source_rows import PreferenceSource, SourceRow
from ..data.table import PersonaTable
from ..data.table_writer import check_free_names, check_output
from ..event_loop import thread_errors
from ..exceptions import DataError, ModelError, PersonaInferError, RowsFailedError
from ..llm.client import LLM
from ..llm.requests import Reply, Run
from ..observability import with_progress_bar
from ..records import PersonaRow, Selector, Usage
from .costs import CostEstimate, estimate, first_body
from .options import READING, OnError, PersonaOptions, planned
from .requests import AskedRow, Plan
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
    """Infer who would prefer each response of each pair, and why. The call waits for all requests.

    Args:
        data: pandas or polars frame, pyarrow table, Hugging Face dataset, a path (.jsonl, .json, .csv,
            .parquet), "hf:owner/name:split", an iterable of dicts, (prompt, chosen, rejected) tuples or
            `Preference`, or the result of `data.read_preferences`.
        model: a model's name or an `LLM`. None: $PERSONAINFER_MODEL, else "local".
        output: a .parquet file for the rows. They are written as they come, in bounded memory, and the
            file appears whole or not at all. The returned table reads its rows from it. None: rows are kept
            in memory.
        progress: whether a bar is shown on standard error. None: in a terminal or a notebook.
        options: see the list of options. Those from `api_base` on configure the model that a name stands for;
            an `LLM` has its own.

    With more than one of `candidates`, personas are sampled for each side, and `select` scores them. The best
    one is kept if it explains the choice (score above 0), and `row.chosen_candidates` has all with their
    scores. With one candidate, `select` keeps it or says that it explains nothing (`row.unexplained`). The
    "separate" protocol is that of "Whose Boat Does it Float?" (arXiv 2501.11549, section 2). Rows that
    `on_error="drop"` leaves out are counted in `settings["dropped"]`. After any error, replies that were paid
    for are in the cache, unless `cache=False`.

    Returns:
        A table with one row for each input row, in the same order; with `pairs`, one row for each pair that
        the rule makes. A row that failed has its error.

    Raises:
        InvalidArgumentError, UnknownOptionError, DataError: an argument or the data cannot be used. These are
            ValueErrors and TypeErrors, and come before any call is made. Only a label that contradicts those
            of earlier rows (`ContradictionError`), and a `select` that fails for all of the first rows, are
            found later.
        MissingExtraError: the model or the data needs a package that is not installed.
        ModelError: a failure that would affect every row (a wrong key or model).
        RowsFailedError, ModelError, DataError: a row failed, with `on_error="raise"`.
        CacheError: the cache of replies cannot be read or written.
        OSError: the disk is full.
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
    """Infer personas as `infer_personas` does, as a coroutine, which leaves the event loop free.

    Arguments, result and errors are the same. If its task is cancelled or dropped, the run stops. Replies
    that were paid for are in the cache.
    """
    # A run may take hours, and the loop looks up names of hosts in its own threads, which are few.
    threads = ThreadPoolExecutor(1, "personainfer-run")
    loop, run = asyncio.get_running_loop(), copy_context().run
    try:
        with thread_errors():
            started = partial(run, _start, data, model, options, output)
            stream = await loop.run_in_executor(threads, started)
        try:
            return await loop.run_in_executor(threads, partial(run, stream.table, progress))
        except BaseException:  # also GeneratorExit: the loop was closed, and nobody waits
            stream.cancel()
            raise
    finally:
        threads.shutdown(wait=False)


@takes_options(PersonaOptions)
def iter_personas(
    data: object, model: str | LLM | None = None, **options: Unpack[PersonaOptions]
) -> PersonaStream:
    """Infer personas as `infer_personas` does, but give the rows one by one, as they come, in bounded memory.

    Args:
        data, model, options: as for `infer_personas`.

    Returns:
        An iterator over the rows in the order of the input. Requests of later rows are sent ahead. Close it,
        or use it in a `with` block, to stop the run early.

    Raises:
        InvalidArgumentError, UnknownOptionError, DataError, MissingExtraError: as `infer_personas`, at once.
            The iterator raises the other errors of `infer_personas`.
    """
    return _start(data, model, options)


@takes_options(PersonaOptions)
def estimate_cost(
    data: object, model: str | LLM | None = None, **options: Unpack[PersonaOptions]
) -> CostEstimate:
    """Estimate the calls, tokens and cost of `infer_personas` with the same data, model and options.

    All data is read, the cache of replies is looked up, and no call is made. The calls of a judge that
    selects, two for each candidate, are not in the estimate.

    Raises:
        InvalidArgumentError, UnknownOptionError, DataError, MissingExtraError, CacheError: as
            `infer_personas`.
    """
    plan, source, llm = prepare(data, model, options)
    return estimate(llm, source, plan)


def first_request(
    data: object, model: str | LLM | None = None, **options: Unpack[PersonaOptions]
) -> dict[str, Any]:
    """Return the JSON body of the first request that `infer_personas` would send for this data.

    Args:
        data, model, options: as for `infer_personas`.

    Raises:
        InvalidArgumentError, UnknownOptionError, MissingExtraError: as `infer_personas`.
        DataError: as `infer_personas`; or no row of the data has a pair.
    """
    plan, source, llm = prepare(data, model, options)
    return first_body(llm, checked(source), plan)


class PersonaStream(Iterator[PersonaRow]):
    """An iterator over the rows of a run, as their personas are inferred.

    Requests of later rows are in flight meanwhile. `close`, or the end of a `with` block, stops them.

    Args:
        source: the rows of the data.
        llm: the model that is asked.
        plan: how personas are asked for.
        on_error: what happens to a row that failed. "keep": it is yielded with its error; "drop": it is left
            out; "raise": it ends the iteration with an error.
        select: scores the candidates of each row; None: nothing is selected.
        run: an iterator of rows with their replies, such as those of a batch. None: a run that sends the
            requests of `plan` to `llm`.
        output: the .parquet file that `table` writes; None: `table` keeps the rows in memory.

    Attributes:
        source, llm: as they were given.
    """

    def __init__(
        self,
        source: PreferenceSource,
        llm: LLM,
        plan: Plan,
        *,
        on_error: OnError = "keep",
        select: Selector | None = None,
        run: Run[AskedRow] | None = None,
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
        """How many rows `on_error="drop"` left out so far; 0 with another `on_error`."""
        return len(self._dropped)

    @property
    def settings(self) -> dict[str, Any]:
        """What a table keeps of how its rows were made: the model, the prompt, and how the data was read.

        The settings hold no key of a provider. Their counts are complete after the last row.
        """
        dropped = {"dropped": self.dropped} if self.dropped else {}
        chosen_by = selector_settings(self._select)
        read = {"read": self.source.summary} if self.source.summary else {}
        return {**self.llm.settings, **self._plan.settings, **chosen_by, **dropped, **read}

    @property
    def usage(self) -> Usage:
        """The calls, tokens and cost of the run so far, also for rows that are still to be yielded."""
        return self._run.tally.usage

    @property
    def judged(self) -> Usage:
        """What a judge that selects took of the budget of the run so far."""
        paid: Usage = getattr(self._select, "paid", Usage())
        return paid

    def table(self, progress: bool | None = False) -> PersonaTable:
        """Collect the rows as a table, and close the stream. The call waits for all replies.

        Take no row from the stream before: it would be missing in the table.

        Args:
            progress: whether a bar is shown on standard error. None: in a terminal or a notebook.

        Returns:
            The table, whose rows are in memory, or in the file `output`.
        """
        with self:
            return PersonaTable.collect(
                with_progress_bar(self._rows, progress, total=self.source.total),
                original=self.source.original,
                dropped=self._dropped if self._drops else None,
                about=lambda: (self.usage, self.settings),
                output=self._output,
            )

    def close(self) -> None:
        """Stop the run: cancel the calls in flight. Replies that were paid for are in the cache."""
        self._rows.close()
        self._run.close()

    def cancel(self) -> None:
        """Make the iteration, in whatever thread, raise `asyncio.CancelledError` at its next step."""
        self._run.cancel()


_MOST_COLUMNS = 5000  # of rows that bring more and more of them


def checked(source: PreferenceSource) -> Iterator[SourceRow]:
    """Yield the rows of a source. A row with columns that no table can hold is replaced by an error.

    Such columns have a name that the table needs itself; or they are new, and with them all rows so far have
    more than `_MOST_COLUMNS` different columns, each of which takes a cell in every row of a table. The row
    with the error keeps its other columns.

    Raises:
        InvalidArgumentError: a column of the first row that has columns has a name that the table needs. Most
            likely all rows have it.
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
    run: Run[AskedRow],
    plan: Plan,
    on_error: OnError,
    select: Selector | None,
    dropped: set[int],
) -> Generator[PersonaRow, None, None]:
    """Yield the rows of a run, and close the run at the end.

    This is a function, not a method: a generator that held the stream would keep an abandoned run open.

    Args:
        run: each row with its replies.
        plan: how personas are asked for.
        on_error, select: as for `PersonaStream`.
        dropped: the places of rows that are left out are added to this set.
    """
    try:
        rows = _rows(run, plan, on_error)
        for row in run.around(choose(rows, select)) if select else rows:
            if row.error is None or on_error == "keep":
                yield row
            elif on_error == "drop":
                dropped.add(row.index)
            else:
                raise RowsFailedError(f"row {row.index}: {row.error}")
    finally:
        run.close()


def _rows(run: Run[AskedRow], plan: Plan, on_error: OnError) -> Iterator[PersonaRow]:
    for index, (asked, replies) in enumerate(run):
        result = plan.result(index, asked, replies)
        if result.error is not None and on_error == "raise":
            raise _row_error(index, asked[0], replies)
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
    """Check the arguments of `infer_personas`, and make what they describe. No request is sent to the model.

    Arguments are checked before the first rows of the data are read, which tell how all rows are read.

    Args:
        data, model, options: as for `infer_personas`.
        select_later: whether `select` may still be missing if there are several candidates.

    Returns:
        How personas are asked for, the rows of the data, and the model.

    Raises:
        InvalidArgumentError, UnknownOptionError, DataError, MissingExtraError: an argument or the data cannot
            be used, or a package is not installed.
        ModelNotFoundError, AuthenticationError, ModelError, CacheError: as the constructor of `LLM`.
    """
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
