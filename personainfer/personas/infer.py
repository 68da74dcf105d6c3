"""`infer_personas`: preference data in, personas out; and its async, streaming and costing twins.

It joins the rooms above: readers make preferences, a plan makes requests, packed or not, llm makes
replies, table holds the result. It does not know how a model is reached or a persona is scored.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Unpack

from ..collector import keep, rarely_collecting
from ..data.arrow_columns import own_columns, own_names, without
from ..data.readers import PreferenceSource, SourceRow, read_preferences
from ..data.table import PersonaRow, PersonaTable
from ..data.table_reader import COLUMNS, RECORD, StoredTable
from ..data.table_writer import check_output, write_table
from ..exceptions import (
    DataError,
    InvalidArgumentError,
    ModelError,
    PersonaInferError,
    RowsFailedError,
)
from ..llm.client import LLM
from ..llm.runs import Run
from ..llm.workers import Reply
from ..records import Usage
from .costs import CostEstimate, estimate, first_body
from .multi_pair import PackedRun, start
from .options import OnError, PersonaOptions, planned
from .plan import Plan, Selector, choose

__all__ = [
    "CostEstimate",
    "PersonaStream",
    "ainfer_personas",
    "check_free",
    "checked",
    "collected",
    "estimate_cost",
    "first_request",
    "infer_personas",
    "iter_personas",
    "prepare",
    "shown",
    "watched",
]

_TAKEN = frozenset((*COLUMNS, RECORD))
_ROWS_KEPT = 4096  # rows between two looks at whether the garbage collector has anything to find


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
        model: see `LLM`; None: $PERSONAINFER_MODEL, else the embedded model.
        output: a .parquet file that the rows are written to as they come, in bounded memory, whole or
            not at all; the table that is returned reads them from there. `PersonaTable.load` does too.
        progress: a bar on standard error; None: in a terminal or a notebook.
        sides: "both", or the persona of one side only.
        protocol: "joint": one call gives both personas; "separate": one call a side, as in "Whose Boat
            Does it Float?" (arXiv 2501.11549, section 2).
        candidates: hypotheses a side, sampled; more than one needs `select`.
        select: an object whose `.explains(preferences, personas)` scores them. The best is kept, the
            others stay in `row.chosen_candidates` with their scores; a side that no candidate explains
            (score above 0) gets none, and the row says so.
        exemplars: "default", "none", or your own worked examples.
        rows_per_call: so many pairs are asked about in one call, fewer where they are long: the
            instructions are then paid for once a call. What its reply leaves open is asked again pair
            by pair. `max_tokens` is for each row, `timeout` for the whole call. Needs the joint
            protocol. Whether personas are as good as those of single calls is not known.
        columns: our name to yours where they differ: {"prompt": "question"}.
        on_error: a row that fails is kept with its error, or raised at once, or dropped and counted
            in `settings["dropped"]`.
        options: the rest configures the LLM that a model string makes: see `LLM`.

    Returns:
        A table with one row for each input row, in the same order.

    Raises:
        ValueError, TypeError: a bad argument, before any call is made.
        ModelError: only for what would fail every row (key, model); what was paid for is cached.
    """
    path = None if output is None else check_output(output, data)
    return collected(_start(data, model, options), progress, path)


async def ainfer_personas(
    data: object,
    model: str | LLM | None = None,
    *,
    output: str | Path | None = None,
    progress: bool | None = None,
    **options: Unpack[PersonaOptions],
) -> PersonaTable:
    """`infer_personas` for coroutines; cancelling it stops the run and keeps what is paid for."""
    path = None if output is None else check_output(output, data)
    stream = await asyncio.to_thread(_start, data, model, options)
    try:
        return await asyncio.to_thread(collected, stream, progress, path)
    except asyncio.CancelledError:
        stream.cancel()
        raise


def iter_personas(
    data: object, model: str | LLM | None = None, **options: Unpack[PersonaOptions]
) -> PersonaStream:
    """`infer_personas` as an iterator: rows in input order as they come, in bounded memory."""
    return _start(data, model, options)


def estimate_cost(
    data: object, model: str | LLM | None = None, **options: Unpack[PersonaOptions]
) -> CostEstimate:
    """What `infer_personas` with the same arguments would take; reads all data, makes no call."""
    plan, source, llm = prepare(data, model, options)
    return estimate(llm, source, plan)


def first_request(
    data: object, model: str | LLM | None = None, **options: Unpack[PersonaOptions]
) -> dict[str, Any]:
    """The body of the first request that `infer_personas` with the same arguments would send."""
    plan, source, llm = prepare(data, model, options)
    return first_body(llm, checked(source), plan)


class PersonaStream(Iterator[PersonaRow]):
    """Rows as they are inferred. `usage` counts so far; closing it stops every call.

    With `absent` no call is made: see `LLM.run`.
    """

    def __init__(
        self,
        source: PreferenceSource,
        llm: LLM,
        plan: Plan,
        *,
        on_error: OnError = "keep",
        select: Selector | None = None,
        absent: Callable[[bytes], ModelError] | None = None,
    ) -> None:
        self.source = source
        self.llm = llm
        self.on_error = on_error
        self._select = select
        self.dropped_rows: set[int] = set()  # the places of rows that were left out
        self._plan, self._run = plan, start(llm, checked(source), plan, absent)
        self._rows = _results(self._run, plan, on_error, select, self.dropped_rows)

    def __next__(self) -> PersonaRow:
        return next(self._rows)

    def __enter__(self) -> PersonaStream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def dropped(self) -> int:
        """How many rows `on_error="drop"` left out so far."""
        return len(self.dropped_rows)

    @property
    def settings(self) -> dict[str, Any]:
        """How the personas are made, as the table will remember it."""
        dropped = {"dropped": self.dropped} if self.dropped else {}
        return {**self.llm.settings, **self._plan.settings, **_selected(self._select), **dropped}

    @property
    def usage(self) -> Usage:
        """What the run took so far."""
        return self._run.tally.usage

    def close(self) -> None:
        """Stop; what is paid for is in the cache."""
        self._rows.close()
        self._run.close()

    def cancel(self) -> None:
        """From another thread: make the iteration end with an error."""
        self._run.cancel()


def checked(source: PreferenceSource) -> Iterator[SourceRow]:
    """The rows, as long as none has a column of its own with a name of ours."""
    for row in source:
        check_free(row.columns)
        yield row


def _selected(select: Selector | None) -> dict[str, dict[str, str | None]]:
    """What chose among the candidates; never where it was reached."""
    if select is None:
        return {}
    model = getattr(select, "model", None)
    named = None if model is None else str(model)
    return {"selected_by": {"kind": type(select).__name__, "model": named}}


def _results(
    run: Run[SourceRow] | PackedRun,
    plan: Plan,
    on_error: OnError,
    select: Selector | None,
    dropped: set[int],
) -> Generator[PersonaRow, None, None]:
    """The rows of a run. Not a method: a stream that is let go must close its run there and then."""
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


def _rows(run: Run[SourceRow] | PackedRun, plan: Plan, on_error: OnError) -> Iterator[PersonaRow]:
    for index, (row, replies) in enumerate(run):
        result = plan.result(index, row, replies)
        if result.error is not None and on_error == "raise":
            raise _row_error(index, row, replies)
        yield result


def collected(
    stream: PersonaStream, progress: bool | None, output: Path | None = None
) -> PersonaTable:
    """What a stream gives, as a table: in memory, or in a file."""
    original = stream.source.original
    with stream, rarely_collecting():
        rows = shown(stream, progress)
        if output is None:
            made: Sequence[PersonaRow] = _kept(rows, stream)
        else:  # what cannot be written is found before the first row is asked for
            columns = own_columns(original, gaps=stream.on_error == "drop")
            placed = ((row.index, row) for row in rows)
            write_table(output, placed, columns, lambda: (stream.usage, stream.settings))
            file = StoredTable(output)
            made, original = file.rows, file.columns if original is None else original
    return PersonaTable(
        made,
        original=without(original, stream.dropped_rows, len(made)),
        usage=stream.usage,
        settings=stream.settings,
    )


def _kept(rows: Iterator[PersonaRow], stream: PersonaStream) -> list[PersonaRow]:
    """The rows as a list. Those from the cache leave no cycles behind for the collector to look for.

    Of fewer rows it may do so all the same: a loop over small tables makes cycles of its own.
    """
    made: list[PersonaRow] = []
    calls = 0
    while group := list(islice(rows, _ROWS_KEPT)):
        made += group
        before, calls = calls, stream.usage.calls
        if calls == before and len(group) == _ROWS_KEPT:
            keep()
    return made


def shown(stream: PersonaStream, progress: bool | None) -> Iterator[PersonaRow]:
    """The rows, beside a bar on standard error: None, where somebody may be looking."""
    if watched(progress):
        from tqdm.auto import tqdm

        with tqdm(stream, total=stream.source.total, unit="row", leave=False) as bar:
            yield from bar
    else:
        yield from stream


def watched(progress: bool | None) -> bool:
    """Whether to show a bar; None: where somebody may be looking."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules if progress is None else progress


def _start(data: object, model: str | LLM | None, options: Mapping[str, Any]) -> PersonaStream:
    plan, source, llm = prepare(data, model, options)
    return PersonaStream(
        source,
        llm,
        plan,
        on_error=options.get("on_error", "keep"),
        select=options.get("select"),
    )


def prepare(
    data: object, model: str | LLM | None, options: Mapping[str, Any], *, select_later: bool = False
) -> tuple[Plan, PreferenceSource, LLM]:
    """Check every argument, cheapest first, before anything is read or sent; `select` may come later."""
    plan, llm = planned(model, options, select_later=select_later)
    source = read_preferences(data, columns=options.get("columns"))
    if source.original is not None:
        check_free(own_names(source.original))
    return plan, source, llm


def check_free(names: Iterable[object]) -> None:
    """Raise InvalidArgumentError if a column of the data has a name that a new one will have."""
    if not _TAKEN.isdisjoint(names):
        raise InvalidArgumentError(
            f"the data has a column {sorted(_TAKEN.intersection(names))[0]} already.",
            hint="Rename or drop it: it would be lost. Failed rows of a table of personas are asked"
            " again by retry_errors, or infer --retry.",
        )


def _row_error(index: int, row: SourceRow, replies: Sequence[Reply]) -> PersonaInferError:
    for reply in replies:
        if reply.error is not None:
            return _in_row(reply.error, index)
    return DataError(f"row {index}: {row.error}")


def _in_row(error: ModelError, index: int) -> ModelError:
    return type(error)(f"row {index}: {error.message}", hint=error.hint)
