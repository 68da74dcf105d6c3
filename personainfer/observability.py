"""Observe runs: the logger "personainfer", and OpenTelemetry if it is installed.

Each run has a span and counters: numbers, the model's name and the kinds of errors. They never hold a prompt,
a reply, an address, a key, or the text of an error.
"""

from __future__ import annotations

import logging
from functools import cache
from types import TracebackType
from typing import Any, Protocol, Self

from .records import Usage

log = logging.getLogger("personainfer")
log.addHandler(logging.NullHandler())  # quiet until the user asks for more

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


class Counts(Protocol):
    """The counts of a run."""

    errors: int

    @property
    def usage(self) -> Usage:
        """Calls, replies, tokens and cost so far."""


class RunWatch:
    """One run, from its first request to its end; `rows` is how many items it has answered.

    Single calls have no spans, and the counters are updated every 64 rows: with OpenTelemetry's SDK, a span
    for each call or an update for each row would cost much of the time of a fast endpoint's call.
    """

    def __init__(self, model: str, counts: Counts) -> None:
        self.rows = 0
        self._model, self._counts = model, counts
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
        """Update the counters, if there are enough new rows."""
        if self._otel is not None and self.rows - self._told.get("rows", 0) >= _STEP:
            self._tell(self._otel)

    def _tell(self, otel: _OpenTelemetry) -> None:
        for name, value in self._count().items():
            if more := value - self._told.get(name, 0):
                otel.counters[name].add(more, {_MODEL: self._model})
                self._told[name] = value

    def _count(self) -> dict[str, float]:
        """The numbers so far; without a cost if a price is unknown."""
        found = self._counts.usage.model_dump(exclude_none=True)
        return {"rows": self.rows, "errors": self._counts.errors, **found}


def _ending(kind: type[BaseException] | None) -> str:
    if kind is None:
        return "is done"
    return "was stopped" if kind is GeneratorExit else f"ended with {kind.__name__}"


class _OpenTelemetry:
    """The instruments of this library, which do nothing until an SDK is set up."""

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
