"""Observe runs: a progress bar, the logger "personainfer", and OpenTelemetry if it is installed.

In OpenTelemetry, each run has a span and counters: numbers, the model's name and the kinds of errors. They
never hold a prompt, a reply, an address, a key, or the text of an error.
"""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar, cast

from .exceptions import visible
from .records import Usage

T = TypeVar("T")

log = logging.getLogger("personainfer")
log.addHandler(logging.NullHandler())  # quiet until the user asks for more

_silent: ContextVar[bool] = ContextVar("personainfer.observability", default=False)
# Of litellm and instructor. Those that do not exist yet are made here, and found by their names there.
_TALKATIVE = ("LiteLLM", "instructor", "instructor.v2", "instructor.v2.retry")

_MODEL = "gen_ai.request.model"  # OpenTelemetry's own name for it
_STEP = 64  # rows
_COUNTERS = {  # name -> unit
    "rows": "{row}",
    "calls": "{call}",
    "cached": "{reply}",
    "retries": "{call}",
    "reasks": "{call}",
    "errors": "{request}",
    "prompt_tokens": "{token}",
    "completion_tokens": "{token}",
    "reasoning_tokens": "{token}",
    "cost": "USD",
}


@contextmanager
def silent_libraries() -> Iterator[None]:
    """Keep litellm and instructor from logging, and pydantic from warning, of replies that they cannot read.

    Such messages quote the reply, the prompt and any key in these; our own errors say what is wrong. This
    holds for what the block calls: other uses of these libraries do not change. At the level DEBUG, the two
    libraries log as before.
    """
    for name in _TALKATIVE:
        logging.getLogger(name).addFilter(_no_quotations)
    _filter_warnings()
    token = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(token)


def _filter_warnings() -> None:
    """Put our filter into Python's list of warning filters, unless it is there, and leave it there.

    litellm logs a reply when its call has ended. The filter matches nothing but what the blocks call, in
    threads, too: they have a copy of the context.
    """
    filters = cast("list[Any]", warnings.filters)
    if _no_serializer_warnings not in filters:  # code that catches warnings takes it off again
        filters.insert(0, _no_serializer_warnings)


class _NoQuotations(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not _silent.get() or record.levelno <= logging.DEBUG


class _SerializerWarnings:
    """Stands where a filter of warnings has a regular expression; matches in `silent_libraries` alone.

    If the filter is copied or sent to another process, the copy is an expression that matches nothing.
    """

    pattern, flags = "(?!)", 0

    def match(self, text: str) -> bool:
        return _silent.get() and text.startswith("Pydantic serializer warnings")

    def __reduce__(self) -> tuple[Any, ...]:
        return re.compile, (self.pattern,)


_no_quotations = _NoQuotations()
_no_serializer_warnings = ("ignore", _SerializerWarnings(), UserWarning, None, 0)


class Counts(Protocol):
    """The counts of a run.

    Attributes:
        errors: how many requests have failed so far.
    """

    errors: int

    @property
    def usage(self) -> Usage:
        """Calls, replies, tokens and cost so far."""


class RunWatch:
    """A context manager for one run, from its first request to its end, that logs the run and counts it.

    The beginning is logged at the level DEBUG, the end, with all counts, at INFO. With OpenTelemetry, the run
    is a span with counters. Single calls have no spans, and the counters are updated every 64 rows: with
    OpenTelemetry's SDK, a span for each call or an update for each row would take a good part of the time of
    a call to a fast endpoint.

    Args:
        model: the name of the model.
        counts: the counts of the run, which are read when they are needed.

    Attributes:
        rows: how many rows are done. The user of the object sets it.
    """

    def __init__(self, model: str, counts: Counts) -> None:
        self.rows = 0
        # The name may be that of a stranger's table; a line feed in it would begin a line of the log.
        self._model, self._counts = visible(" ".join(model.split())), counts
        self._told: dict[str, float] = {}
        self._otel = _open_telemetry()
        self._span: Any = None

    def __enter__(self) -> Self:
        log.debug("a run with %s begins", self._model)
        if self._otel is not None:
            self._span = self._otel.tracer.start_span(
                "personainfer.run", attributes={_MODEL: self._model}
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if log.isEnabledFor(logging.INFO):
            said = ", ".join(f"{value:g} {name}" for name, value in self._count().items())
            log.info("a run with %s %s: %s", self._model, _ending(kind), said)
        if self._otel is not None:
            self._tell(self._otel)
            counts = self._count()
            self._span.set_attributes({f"personainfer.{name}": n for name, n in counts.items()})
            self._span.set_attribute("personainfer.stopped", kind is GeneratorExit)
            if kind is not None and kind is not GeneratorExit:
                self._span.set_attribute("error.type", kind.__name__)
                self._span.set_status(self._otel.failed, kind.__name__)
            self._span.end()

    def tell(self) -> None:
        """Update the counters of OpenTelemetry if 64 or more rows are new. Call it after each row."""
        if self._otel is not None and self.rows - self._told.get("rows", 0) >= _STEP:
            self._tell(self._otel)

    def _tell(self, otel: _OpenTelemetry) -> None:
        for name, value in self._count().items():
            if more := value - self._told.get(name, 0):
                otel.counters[name].add(more, {_MODEL: self._model})
                self._told[name] = value

    def _count(self) -> dict[str, float]:
        """Return the numbers so far by name; without the cost if a price is unknown."""
        found = self._counts.usage.model_dump(exclude_none=True)
        return {"rows": self.rows, "errors": self._counts.errors, **found}


def _ending(kind: type[BaseException] | None) -> str:
    if kind is None:
        return "is done"
    return "was stopped" if kind is GeneratorExit else f"ended with {kind.__name__}"


class _OpenTelemetry:
    """The instruments of this library. They do nothing until the user's program sets up an SDK."""

    def __init__(self) -> None:
        from opentelemetry import metrics, trace

        self.tracer = trace.get_tracer("personainfer")
        self.failed = trace.StatusCode.ERROR
        meter = metrics.get_meter("personainfer")
        self.counters = {
            name: meter.create_counter(f"personainfer.{name}", unit=unit)
            for name, unit in _COUNTERS.items()
        }


@cache
def _open_telemetry() -> _OpenTelemetry | None:
    try:
        return _OpenTelemetry()
    except ImportError:
        return None


def progress_bar(progress: bool | None, *, total: int | None, unit: str) -> Any:
    """Make a tqdm bar, which is written to standard error or shown in a notebook.

    Args:
        progress: True: shown. False: the bar does nothing. None: shown in a terminal or a notebook.
        total: how many items there are; None: unknown.
        unit: what an item is, such as "row".
    """
    return _bar_class()(total=total, unit=unit, leave=False, disable=not _is_shown(progress))


def _bar_class() -> Any:
    """Return tqdm's widget in a notebook with ipywidgets, else its text bar, where tqdm.auto would warn."""
    if _in_a_notebook() and _is_installed("ipywidgets"):
        from tqdm.notebook import tqdm_notebook

        return tqdm_notebook
    from tqdm.std import tqdm

    return tqdm


def with_progress_bar(
    items: Iterable[T], progress: bool | None, *, total: int | None, unit: str = "row"
) -> Iterator[T]:
    """Iterate over the items as they are, counted by a progress bar if one is shown.

    Args:
        items: the items.
        progress, total, unit: as for `progress_bar`.
    """
    return _counted(items, total, unit) if _is_shown(progress) else iter(items)


def _counted(items: Iterable[T], total: int | None, unit: str) -> Iterator[T]:
    with progress_bar(True, total=total, unit=unit) as bar:
        for item in items:
            yield item
            bar.update()


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ValueError:  # imported as None: hidden
        return False


def _is_shown(progress: bool | None) -> bool:
    if progress is not None:
        return progress
    return (sys.stderr is not None and sys.stderr.isatty()) or _in_a_notebook()


def _in_a_notebook() -> bool:
    shell = sys.modules.get("IPython")
    return "ipykernel" in sys.modules and shell is not None and shell.get_ipython() is not None
