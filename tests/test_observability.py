"""What is told of runs: to loggers and to OpenTelemetry, in numbers and never in the words of a row."""

from __future__ import annotations

import contextvars
import json
import logging
import pickle
import re
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import personainfer as pi
from personainfer.exceptions import AuthenticationError, RowsFailedError
from personainfer.observability import silent_libraries
from personainfer.testing import FakeLLM, Fault

from .builders import AnyServer, pairs

ROOT = Path(__file__).parents[1]
SECRET = "secret-key"


class Told:
    """What OpenTelemetry's exporters got."""

    def __init__(self, spans: InMemorySpanExporter, reader: InMemoryMetricReader) -> None:
        self._spans, self._reader = spans, reader

    @property
    def spans(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Name, status and attributes of each span that ended."""
        return [
            (span.name, span.status.status_code.name, dict(span.attributes or {}))
            for span in self._spans.get_finished_spans()
        ]

    def counters(self, model: str) -> dict[str, float]:
        """Each counter of a model so far."""
        found: dict[str, float] = {}
        data: Any = self._reader.get_metrics_data()
        for metric in data.resource_metrics[0].scope_metrics[0].metrics if data else ():
            for point in metric.data.data_points:
                assert set(point.attributes) == {"gen_ai.request.model"}
                if point.attributes["gen_ai.request.model"] == model:
                    found[metric.name.removeprefix("personainfer.")] = point.value
        return found


@pytest.fixture(scope="session")
def exporters() -> tuple[InMemorySpanExporter, InMemoryMetricReader]:
    """An SDK, which a process can set up once."""
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracing = TracerProvider()
    tracing.add_span_processor(SimpleSpanProcessor(spans))
    trace.set_tracer_provider(tracing)
    metrics.set_meter_provider(MeterProvider([reader]))
    return spans, reader


@pytest.fixture
def told(exporters: tuple[InMemorySpanExporter, InMemoryMetricReader]) -> Iterator[Told]:
    """The exporters, with no spans of earlier tests."""
    exporters[0].clear()
    yield Told(*exporters)
    exporters[0].clear()


def options(llm: FakeLLM, model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "api_base": llm.api_base, "api_key": SECRET, **more}


def test_a_run_is_a_span_and_counters(told: Told) -> None:
    faults = [Fault.rate_limit(0), Fault.bad_schema(), Fault.status(400)]
    data = [*pairs(6), {**pairs(1)[0], "chosen": ""}]
    with FakeLLM(faults=faults) as llm:
        one = options(llm, "counted", prices=(1.0, 2.0), max_concurrency=1)
        table = pi.infer_personas(data, **one)
    assert len(table.errors) == 2
    usage = table.usage
    assert usage.cost is not None
    expected = {
        "rows": 7,
        "calls": 8,
        "cached": 0,
        "retries": 1,
        "reasks": 1,
        "errors": 1,  # the row that is bad was never asked about
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "cost": usage.cost,
    }
    assert told.counters("counted") == {k: pytest.approx(v) for k, v in expected.items() if v}
    ((name, status, attributes),) = told.spans
    assert (name, status) == ("personainfer.run", "UNSET")
    assert attributes == {
        "gen_ai.request.model": "counted",
        "personainfer.stopped": False,
        **{f"personainfer.{name}": pytest.approx(value) for name, value in expected.items()},
    }


def test_counters_add_up_over_runs_and_an_unknown_price_is_left_out(
    told: Told, llm: FakeLLM
) -> None:
    for _ in range(2):
        pi.infer_personas(pairs(5), **options(llm, "twice"))
    counters = told.counters("twice")
    assert (counters["rows"], counters["calls"], counters["cached"]) == (10, 5, 5)
    assert "cost" not in counters
    assert [span["personainfer.cached"] for *_, span in told.spans] == [0, 5]


@pytest.mark.heavy
def test_counters_grow_during_a_run(told: Told, llm: FakeLLM) -> None:
    with pi.iter_personas(pairs(400), **options(llm, "long", max_concurrency=4)) as rows:
        for _ in range(300):
            next(rows)
        assert 100 <= told.counters("long")["rows"] <= 300
        assert told.spans == []
    ((_, status, attributes),) = told.spans
    assert (status, attributes["personainfer.stopped"]) == ("UNSET", True)
    assert attributes["personainfer.rows"] == 300


def test_a_span_is_a_part_of_the_users_own(told: Told, llm: FakeLLM) -> None:
    with trace.get_tracer("mine").start_as_current_span("mine") as mine:
        pi.infer_personas(pairs(2), **options(llm, "within"))
    finished = told._spans.get_finished_spans()
    assert [span.name for span in finished] == ["personainfer.run", "mine"]
    assert finished[0].parent is not None
    assert finished[0].parent.span_id == mine.get_span_context().span_id


def test_an_error_is_told_by_its_kind(told: Told) -> None:
    with FakeLLM(api_key="another") as llm, pytest.raises(AuthenticationError):
        pi.infer_personas(pairs(2), **options(llm, "refused"))
    ((_, status, attributes),) = told.spans
    assert (status, attributes["error.type"]) == ("ERROR", "AuthenticationError")


def test_no_words_of_rows_or_keys_are_told(told: Told, caplog: pytest.LogCaptureFixture) -> None:
    """Even where the endpoint's errors repeat them."""
    caplog.set_level(logging.DEBUG, logger="personainfer")
    words = {"prompt": "Prompt-words?", "chosen": "Chosen-words.", "rejected": "Rejected-words."}
    faults = [
        Fault.status(500, message=f"{words} {SECRET}"),
        Fault.status(400, message=f"{words} {SECRET}"),
        Fault.rate_limit(0),
        Fault.invalid_json(),
    ]
    with FakeLLM(faults=faults) as llm:
        given = options(llm, "discreet", cache=False, max_concurrency=1)
        with pytest.raises(RowsFailedError, match="Prompt-words"):
            pi.infer_personas([words], **given).raise_for_errors()
        assert not pi.infer_personas([words], **given).errors
        everything = f"{told.spans} {told.counters('discreet')} {caplog.text}"
        assert llm.calls == 5
    for word in ("words", SECRET, llm.model + "://", "127.0.0.1"):
        assert word not in everything
    assert "attempt 1 failed: TransportError" in caplog.text
    assert "no reply: RequestRejectedError" in caplog.text
    assert "refused, and sent again: RateLimitError" in caplog.text
    assert "attempt 1 failed: ReplyError" in caplog.text
    assert "a run with discreet is done: 1 rows, 1 errors, 2 calls" in caplog.text


def run_python(script: str, *arguments: str) -> tuple[str, str]:
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return run.stdout, run.stderr


RUN = """
    import sys
    import personainfer as pi
    data = [("Why?", "Yes.", "No."), ("Why?", "", "No.")]
    pi.infer_personas(data, "fake", api_base=sys.argv[1], progress=False)
"""


@pytest.mark.heavy
def test_it_is_quiet_until_asked(llm: FakeLLM) -> None:
    llm._script = [Fault.status(500), Fault.rate_limit(0)]
    assert run_python(RUN, llm.api_base) == ("", "")
    loud = "\n    import logging; logging.basicConfig(level=logging.INFO)" + RUN
    _, told = run_python(loud, llm.api_base)
    assert told.startswith("INFO:personainfer:a run with fake is done: 2 rows, 0 errors, 0 calls")


@pytest.mark.heavy
def test_it_is_not_needed(llm: FakeLLM) -> None:
    without = "\n    import sys; sys.modules['opentelemetry'] = None" + RUN
    assert run_python(without, llm.api_base) == ("", "")
    assert llm.calls == 1


def quote_a_reply() -> None:
    logging.getLogger("instructor.v2.retry").error("input_value='A private reply'")
    logging.getLogger("LiteLLM").warning("Unmapped finish_reason 'a key'")
    warnings.warn("Pydantic serializer warnings:\n input_value='A private reply'", stacklevel=1)


def test_libraries_that_quote_replies_are_silent_in_our_calls_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with warnings.catch_warnings(record=True) as warned, silent_libraries():
        quote_a_reply()
        warnings.warn("another", stacklevel=1)
        other = threading.Thread(target=quote_a_reply)
        other.start()
        other.join()
    assert len(caplog.records) == 2
    assert [str(one.message)[:8] for one in warned] == ["another", "Pydantic"]
    caplog.clear()
    with pytest.warns(UserWarning, match="Pydantic serializer"):
        quote_a_reply()
    assert len(caplog.records) == 2


def test_other_code_can_read_the_filters_of_warnings() -> None:
    """scikit-learn hands them to its workers, by their patterns."""
    with warnings.catch_warnings():
        before = list(warnings.filters)
        for _ in range(3):
            with silent_libraries(), silent_libraries():
                pass
        copied = pickle.loads(pickle.dumps(warnings.filters))
        assert all(one[1] is None or isinstance(one[1], str | re.Pattern) for one in copied)
        assert all(hasattr(one[1], "pattern") for one in warnings.filters if one[1] is not None)
        assert len(warnings.filters) <= len(before) + 1


def test_what_a_library_does_when_its_call_has_ended_is_as_quiet() -> None:
    """litellm logs a reply in a thread, with a copy of the context."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with silent_libraries():
            context = contextvars.copy_context()
        context.run(quote_a_reply)
    assert not warned


@pytest.mark.heavy
@pytest.mark.parametrize(
    "reply",
    [
        {"choices": [{"message": {"content": "A private reply"}, "finish_reason": "stop"}]},
        {"choices": [{"message": {"content": ["A private reply"]}, "finish_reason": "stop"}]},
        {"choices": [{"message": {"content": "{}"}, "finish_reason": "A private reply"}]},
        {"choices": [{"message": {"content": "{}"}}], "usage": {"prompt_tokens": "A private reply"}},
        {"choices": {"A private reply": 1}},
        {"error": {"message": "A private reply"}},
    ],
)  # fmt: skip
def test_no_reply_that_litellm_cannot_read_is_logged_or_warned_of(
    reply: dict[str, Any], caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    body = json.dumps({"id": "1", "object": "chat.completion", "model": "m", **reply}).encode()
    with AnyServer(body=body) as server, caplog.at_level(logging.INFO):
        options: dict[str, Any] = {
            "api_base": f"{server.address}/v1",
            "api_key": "k",
            "max_attempts": 2,
        }
        table = pi.infer_personas([("A private reply?", "a", "b")], "litellm/openai/m", **options)
    assert table.errors
    assert "A private reply" not in caplog.text
    assert not [one for one in recwarn if "A private reply" in str(one.message)]


def test_the_name_of_a_model_acts_on_no_terminal_and_begins_no_line_of_a_log(
    llm: FakeLLM, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "personainfer")
    pi.infer_personas(pairs(1), "a\x1b[31mb\nc", api_base=llm.api_base, cache=False)
    told = [one.getMessage() for one in caplog.records if "a run with" in one.getMessage()]
    assert len(told) == 2
    assert all("a\\x1b[31mb c" in one and one.isprintable() for one in told)
