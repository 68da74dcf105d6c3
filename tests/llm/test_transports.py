"""The ways to a model, and what the wire says: headers, statuses, schemas, litellm."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import os
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from email.utils import formatdate
from time import monotonic, sleep, time
from typing import Any, Literal, cast

import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, create_model

import personainfer as pi
from personainfer.api_keys import Secrets
from personainfer.connections import attempts
from personainfer.event_loop import the_loop
from personainfer.exceptions import (
    AuthenticationError,
    InvalidArgumentError,
    MissingExtraError,
    ModelNotFoundError,
    RateLimitError,
    ReplyError,
    RequestRejectedError,
    TransportError,
)
from personainfer.llm.dialect import Dialect
from personainfer.llm.openai_protocol import wire_schema
from personainfer.llm.pricing import Price, find_price
from personainfer.llm.refusals import error_text, redact, retry_after, status_error
from personainfer.llm.transports import EndpointTransport
from personainfer.testing import FakeLLM, Fault, Reply

from ..builders import AnyServer, each_way, pairs


class Inner(BaseModel):
    kind: Literal["a", "b"] = "a"
    title: str = Field(max_length=5, json_schema_extra={"pattern": "^x$"})


class Outer(BaseModel):
    inner: Inner
    many: list[Inner]


def test_the_wire_schema_is_strict_and_resolved() -> None:
    schema = wire_schema(Outer, tight=False)
    assert "$defs" not in str(schema)
    assert "$ref" not in str(schema)
    inner = schema["properties"]["inner"]
    assert inner["additionalProperties"] is False
    assert inner["required"] == ["kind", "title"]
    assert inner["properties"]["title"] == {"type": "string"}
    assert schema["properties"]["many"]["items"] == inner


def test_the_schema_of_a_model_is_made_once() -> None:
    assert wire_schema(Outer, tight=False) is wire_schema(Outer, tight=False)
    assert wire_schema(Outer, tight=False) != wire_schema(Outer, tight=True)


def test_bounds_of_strings_stay_where_a_grammar_is_made_of_them() -> None:
    title = wire_schema(Outer, tight=True)["properties"]["inner"]["properties"]["title"]
    assert title == {"type": "string", "maxLength": 5, "pattern": "^x$"}


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"Retry-After-Ms": "1500"}, 1.5),
        ({"x-ratelimit-reset-requests": "120ms"}, 0.12),
        ({"x-ratelimit-reset-tokens": "6m0s"}, 360.0),
        ({"x-ratelimit-reset-tokens": "1h2m3.5s", "x-ratelimit-reset-requests": "2s"}, 3723.5),
        (
            {
                "x-ratelimit-reset-tokens": "60s",
                "x-ratelimit-remaining-tokens": "500",
                "x-ratelimit-reset-requests": "2s",
                "x-ratelimit-remaining-requests": "0",
            },
            2.0,
        ),
        (
            {
                "x-ratelimit-reset-requests": "20h3m0s",
                "x-ratelimit-remaining-requests": "9120",
                "x-ratelimit-reset-tokens": "1.2s",
                "x-ratelimit-remaining-tokens": "12",
            },
            1.2,
        ),
        ({"RateLimit-Reset": "40000", "RateLimit-Remaining": "9120"}, None),
        ({"X-RateLimit-Reset": "40000", "X-RateLimit-Remaining": "9120"}, None),
        ({"Retry-After": "3", "x-ratelimit-reset-tokens": "60s"}, 3.0),
        ({"Retry-After": ".5"}, 0.5),
        ({"Retry-After": "30 seconds"}, 30.0),
        ({"RateLimit-Remaining": "0", "RateLimit-Reset": "30"}, 30.0),
        (
            {
                "anthropic-ratelimit-input-tokens-remaining": "0",
                "anthropic-ratelimit-input-tokens-reset": "2025-11-30T10:00:21Z",
                "anthropic-ratelimit-requests-remaining": "49",
                "anthropic-ratelimit-requests-reset": "2025-11-30T10:00:01Z",
                "Date": "Sun, 30 Nov 2025 10:00:00 GMT",
            },
            21.0,
        ),
        ({"Retry-After": "soon"}, None),
    ],
)
def test_retry_after_in_every_form(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == pytest.approx(seconds)


@each_way
def test_a_schema_that_holds_itself_is_refused_before_any_call(llm: FakeLLM) -> None:
    class Tree(BaseModel):
        leaves: list[Tree]

    Tree.model_rebuild(_types_namespace={"Tree": Tree})
    with pytest.raises(InvalidArgumentError, match="Tree holds itself"):
        pi.LLM("m", api_base=llm.api_base).ask([{"role": "user", "content": "Hi"}], Tree)
    assert llm.calls == 0


def test_words_that_say_when_count_more_than_the_reset_of_some_limit() -> None:
    headers = {"x-ratelimit-reset-requests": "20h3m0s"}
    assert retry_after(headers, "rate limit: please try again in 1.2s") == 1.2
    assert retry_after({**headers, "Retry-After": "3"}, "please try again in 1.2s") == 3


def test_retry_after_as_a_date_or_an_epoch() -> None:
    assert retry_after({"Retry-After": formatdate(time() + 30, usegmt=True)}) == pytest.approx(
        30, abs=2
    )
    assert retry_after({"Retry-After": formatdate(time() - 30, usegmt=True)}) == 0
    reset = time() + 20
    for said in (str(reset), str(int(reset * 1000))):  # in seconds, in milliseconds
        assert retry_after({"x-ratelimit-reset": said}) == pytest.approx(20, abs=2)


@pytest.mark.parametrize("own", [-3600, 3600])
def test_a_date_is_read_by_the_clock_of_the_endpoint(own: int) -> None:
    """This machine's clock may be an hour behind it, or ahead."""
    there = int(time()) + own
    for name, said in (
        ("Retry-After", formatdate(there + 7, usegmt=True)),
        ("x-ratelimit-reset", str(1000 * (there + 7))),
    ):
        assert retry_after({"Date": formatdate(there, usegmt=True), name: said}) == 7


@pytest.mark.parametrize("own", [-3600, 3600])
@pytest.mark.parametrize("within", ["metadata", ""])
def test_so_is_a_date_in_the_body(own: int, within: str) -> None:
    """OpenRouter repeats the headers of the provider there."""
    there = int(time()) + own
    said = {"headers": {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": 1000 * (there + 7)}}
    error = {"message": "Rate limit exceeded", **({within: said} if within else said)}
    headers = {"Date": formatdate(there, usegmt=True)}
    text = error_text(json.dumps({"error": error}).encode(), headers)
    found: Any = status_error(429, headers, text, Secrets())
    assert found.retry_after == 7


@pytest.mark.parametrize("status", [408, 500, 502, 503, 504, 529])
def test_a_server_that_failed_is_left_alone_as_long_as_it_asks(status: int) -> None:
    error: Any = status_error(status, {"retry-after": "8"}, "Overloaded", Secrets())
    may_have_run = status in (408, 502, 504)
    assert error.retry_after == 8
    assert isinstance(error, TransportError if may_have_run else RateLimitError)
    assert getattr(error, "unanswered", False) == may_have_run
    plain = status_error(status, {"x-ratelimit-reset-tokens": "8s"}, "Overloaded", Secrets())
    assert isinstance(plain, RateLimitError) == (status == 503)


def waits(error: Exception) -> float:
    """The seconds before the fifth call, if the four before fail so."""
    retrying, sum_of_them = attempts(5), 0.0
    for number in range(1, 5):
        state = tenacity.RetryCallState(cast("Any", retrying), None, (), {})
        state.attempt_number = number
        state.set_exception((type(error), error, None))
        sum_of_them += retrying.wait(state)
    return sum_of_them


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (529, ""),
        (503, "The model is overloaded. Please try again later."),
        (503, "server busy, please try again. maximum pending requests exceeded"),
        (503, "The request queue is full."),
        (503, "<title>503 Service Temporarily Unavailable</title>"),
        (498, "Flex tier capacity exceeded"),
        (200, "Capacity temporarily exceeded, please try again."),
    ],
)
def test_a_server_with_too_much_to_do_is_given_half_a_minute(status: int, words: str) -> None:
    assert 30 < waits(status_error(status, {}, words, Secrets())) < 45
    assert waits(status_error(503, {}, "upstream connect error", Secrets())) < 10


def test_a_row_that_is_too_large_for_a_gpu_is_no_word_of_too_much_to_do() -> None:
    words = "CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has a total capacity of 79.15 GiB"
    assert waits(status_error(500, {}, words, Secrets())) < 10


@given(st.dictionaries(st.sampled_from(["Retry-After", "x-ratelimit-reset-tokens"]), st.text()))
def test_no_header_breaks_it(headers: dict[str, str]) -> None:
    seconds = retry_after(headers)
    assert seconds is None or seconds >= 0


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (400, "too long", RequestRejectedError),
        (401, "bad key", AuthenticationError),
        (403, "not yours", AuthenticationError),
        (404, "no model", ModelNotFoundError),
        (408, "late", TransportError),
        (413, "large", RequestRejectedError),
        (422, "schema", RequestRejectedError),
        (429, "slow down", RateLimitError),
        (429, "insufficient_quota", AuthenticationError),
        (500, "oops", TransportError),
        (529, "overloaded", TransportError),
    ],
)
def test_each_status_has_its_error(status: int, text: str, kind: type[Exception]) -> None:
    error = status_error(status, {}, text, Secrets())
    assert type(error) is kind
    assert text in str(error)


def test_keys_are_redacted_wherever_they_stand() -> None:
    text = redact("key my-key, sk-abcdef1234567 and Bearer tok.en", Secrets(["my-key"]))
    assert text == "key [key], [key] and Bearer [key]"


@each_way
@pytest.mark.parametrize("listed", ["team-fast", "llama-3.1-8b-instant"])
def test_an_alias_is_no_other_model(listed: str) -> None:
    """A gateway's alias (litellm#22709): the reply bears the name of what is behind it."""
    with FakeLLM(Fault.other_model("llama-3.1-8b-instant"), model=listed) as server:
        table = pi.infer_personas(pairs(3), "team-fast", api_base=server.api_base)
        assert server.calls == 3
    assert not table.errors
    assert table.settings["answered_as"] == ["llama-3.1-8b-instant"]


@pytest.mark.parametrize("prefix", ["openai/", "hosted_vllm/", ""])
def test_prefixes_of_litellm_name_the_same_endpoint(llm: FakeLLM, prefix: str) -> None:
    table = pi.infer_personas(pairs(1), prefix + "fake", api_base=llm.api_base + "/")
    assert not table.errors
    assert llm.requests[0]["model"] == "fake"


# Not by litellm, which asks for the name after its prefix alone.
@pytest.mark.parametrize("knows", ["openai/gpt-oss-20b", "hosted_vllm/x"])
def test_a_prefix_that_belongs_to_the_name_is_found_out(knows: str) -> None:
    with FakeLLM(known_models=[knows], model=knows) as server:
        table = pi.infer_personas(pairs(8), knows, api_base=server.api_base, max_concurrency=2)
        assert not table.errors
        assert server.requests[0]["model"] == knows.partition("/")[2]
        assert server.calls <= 8 + 2
        with pytest.raises(ModelNotFoundError):
            pi.infer_personas(pairs(1), "openai/other", api_base=server.api_base)


def test_so_it_is_for_requests_whose_refusal_comes_late() -> None:
    """Others have been answered by their full name meanwhile."""
    late = itertools.count()
    refused = b'{"error": "the model `x` does not exist"}'

    def reply(body: dict[str, Any]) -> Any:
        if body["model"] == "openai/x":
            return None
        return Fault("hang", code=404, body=refused, seconds=0.05 * next(late))

    with FakeLLM(reply) as server:
        table = pi.infer_personas(
            pairs(16), "openai/x", api_base=server.api_base, max_concurrency=8
        )
        assert not table.errors


@pytest.mark.parametrize("at", [0, 2])
def test_the_refusal_of_one_row_leaves_no_other_name_for_the_next_run(at: int) -> None:
    refused = Fault.status(404, message="Not Found")  # a firewall's

    def reply(body: dict[str, Any]) -> Any:
        return refused if "poison" in body["messages"][-1]["content"] else None

    rows = [*pairs(4)]
    rows.insert(at, {"prompt": "poison", "chosen": "a", "rejected": "b"})
    with FakeLLM(reply, known_models=["fake"]) as server:
        model = pi.LLM("openai/fake", api_base=server.api_base, cache=False, max_concurrency=4)
        with suppress(ModelNotFoundError):  # the first refusal of a run is believed
            pi.infer_personas(rows, model)
        later = pi.infer_personas([{**row, "prompt": "later"} for row in pairs(4)], model)
        asked = [one["model"] for one in server.requests if "later" in str(one["messages"][-1])]
    assert (len(later.errors), asked) == (0, ["fake"] * 4)


def test_a_name_is_learned_from_a_reply_that_is_cut_off() -> None:
    """Meanwhile a row that a firewall redirects was refused by both names."""
    rows: Any = [([{"role": "user", "content": text}],) for text in ("a", "blocked", "c", "d")]
    cut = {"message": {"role": "assistant", "content": "cut"}, "finish_reason": "length"}
    late = Fault("hang", code=200, body=json.dumps({"choices": [cut]}).encode(), seconds=0.3)

    def reply(body: dict[str, Any]) -> Any:
        if body["messages"][-1]["content"] == "blocked":
            return Fault("hang", code=302, body=b"{}", seconds=0.1)
        if body["model"] != "openai/x":
            return Fault.status(404, message="no such model")
        return late if body["max_tokens"] == 50 else "fine"

    with FakeLLM(reply) as server:
        options: dict[str, Any] = {"max_tokens": 50, "cache": False, "max_concurrency": 4}
        model = pi.LLM("openai/x", api_base=server.api_base, **options)
        for _ in range(2):
            found = [one.text for one in model.ask_many(rows)]
            assert found == ["fine", "", "fine", "fine"]


@pytest.mark.heavy
@pytest.mark.parametrize("model", ["m", "litellm/openai/m"])
def test_no_more_connections_are_opened_than_the_process_may_have(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    with FakeLLM(latency=0.05) as server:
        options: dict[str, Any] = {"api_base": server.api_base, "api_key": "k"}
        assert not pi.infer_personas(pairs(60), model, **options).errors
        assert 2 <= server.in_flight_peak <= 8


def test_models_at_once_open_no_more_connections_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    most = 64 + 10 + len(os.listdir("/dev/fd"))
    with FakeLLM(latency=0.02) as server:
        monkeypatch.setattr(resource, "getrlimit", lambda _: (most, most))
        llms = [pi.LLM("m", api_base=server.api_base, cache=False) for _ in range(3)]
        asked = [[([{"role": "user", "content": str(n)}],) for n in range(20)] for _ in llms]
        with ThreadPoolExecutor() as threads:
            replies = [*threads.map(pi.LLM.ask_many, llms, asked)]
        assert not any(reply.error for each in replies for reply in each)
        assert 6 <= server.in_flight_peak <= 10 + len(llms)


@pytest.mark.heavy
@each_way
def test_a_request_that_waits_for_a_connection_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs nothing of a budget, and counts in no minute."""
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))  # 8 connections
    options: dict[str, Any] = {"api_key": "k", "max_attempts": 1, "cache": False}
    with FakeLLM(latency=5) as server:
        options |= {"prices": (0.0, 10_000.0), "max_tokens": 100, "budget": 100.0, "rpm": 60}
        llm = pi.LLM("m", api_base=server.api_base, timeout=0.5, **options)
        llm.ask_many([([{"role": "user", "content": str(n)}],) for n in range(24)])
        window = llm.account.bounds.requests
        assert window is not None
        assert 2 <= server.calls <= llm.usage.calls <= server.calls + 2
        assert len(window._sent) == llm.usage.calls
        assert llm.usage.cost == pytest.approx(1.0 * llm.usage.calls)


@pytest.mark.heavy
@pytest.mark.parametrize("model", ["m", "litellm/openai/m"])
def test_rpm_counts_from_when_a_request_has_a_connection(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    came: list[float] = []
    said = json.dumps({"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]})

    def late_at_first(_: Any) -> Fault:
        came.append(monotonic())
        return Fault("hang", body=said.encode(), seconds=0.4 if len(came) <= 8 else 0.0)

    with FakeLLM(late_at_first) as server:
        llm = pi.LLM(model, api_base=server.api_base, api_key="k", cache=False, rpm=16)
        window = llm.account.bounds.requests
        assert window is not None
        window._seconds = 0.5
        replies = llm.ask_many([([{"role": "user", "content": str(n)}],) for n in range(30)])
        assert {reply.text for reply in replies} == {"yes"}
    assert all(late - early > 0.45 for early, late in zip(came, came[16:], strict=False))


# litellm takes seconds to import: what is tried with it shares one test each.


@pytest.mark.heavy
def test_the_litellm_path_gives_the_same_personas(llm: FakeLLM) -> None:
    direct = pi.infer_personas(pairs(3), "fake", api_base=llm.api_base)
    through = pi.infer_personas(
        pairs(3), "litellm/openai/fake", api_base=llm.api_base, api_key="k", cache=False
    )
    assert not through.errors
    assert llm.calls == 6
    assert [str(row.chosen) for row in through] == [str(row.chosen) for row in direct]


@pytest.mark.heavy
def test_litellm_asks_for_log_probabilities_and_gives_them_back() -> None:
    logprobs = {"content": [{"token": "x", "logprob": -0.5, "bytes": None, "top_logprobs": []}]}
    with FakeLLM(Reply("x", logprobs=logprobs)) as server:
        model = pi.LLM("litellm/openai/gpt-4o-mini", api_base=server.api_base, api_key="k")
        message = pi.Message(role="user", content="?")
        reply = model.ask_many([pi.Request((message,), logprobs=3)])[0]
    assert (reply.error, reply.logprobs) == (None, [("x", {"x": -0.5})])
    assert server.requests[0]["top_logprobs"] == 3


@pytest.mark.heavy
def test_litellm_faults_are_translated_and_its_own_retries_are_off() -> None:
    options: dict[str, Any] = {"api_key": "k", "max_attempts": 1, "cache": False}
    faults: list[tuple[Fault, type[Exception]]] = [
        (Fault.status(500), TransportError),
        (Fault.status(400), RequestRejectedError),
        (Fault.status(401), AuthenticationError),
        (Fault.status(404), ModelNotFoundError),
        (Fault.rate_limit(3600), RateLimitError),
        (Fault.invalid_json(), ReplyError),
        (Fault.truncated(), ReplyError),
    ]
    for fault, kind in faults:
        with FakeLLM(reply=fault) as server:
            model = pi.LLM("litellm/openai/fake", api_base=server.api_base, **options)
            with pytest.raises(kind):
                model.ask([{"role": "user", "content": "hello"}], Inner)
            # A short request tells whether the row alone has to wait for an hour.
            assert server.calls == (2 if kind is RateLimitError else 1)


@pytest.mark.heavy
def test_litellm_honours_retry_after() -> None:
    with FakeLLM(faults=[Fault.rate_limit(0)]) as server:
        model = pi.LLM("litellm/openai/fake", api_base=server.api_base, api_key="k")
        assert model.ask([{"role": "user", "content": "hello"}]).text
        assert server.calls == 2


def test_missing_extras_name_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        MissingExtraError,
        match="pip install xllamacpp gguf huggingface-hub, or name another model",
    ):
        pi.LLM("local")


def test_weights_that_are_not_there_are_named() -> None:
    pytest.importorskip("xllamacpp", reason="the embedded engine is not installed")
    with pytest.raises(InvalidArgumentError, match=r"no file ./none\.gguf"):
        pi.LLM("local:./none.gguf")


def test_prices_come_from_the_list_or_the_user() -> None:
    listed = find_price("gpt-4o-mini", None)
    assert listed is not None
    assert listed == find_price("openai/gpt-4o-mini", None)
    assert find_price("gpt-4o-mini", (1, 2)) == Price(1e-6, 2e-6)
    assert find_price("no-such-model", None) is None
    for bad in (-2.0, float("nan"), float("inf")):
        with pytest.raises(InvalidArgumentError, match="prices="):
            pi.LLM("x", prices=(1, bad))


@pytest.mark.heavy
def test_two_schemas_of_one_name_are_two_over_litellm(llm: FakeLLM) -> None:
    one, other = (create_model("Reply", **{name: (str, ...)}) for name in ("colour", "animal"))  # type: ignore[call-overload]
    model = pi.LLM("litellm/openai/m", api_base=llm.api_base, api_key="k", cache=False)
    for schema in (one, other, one, other):
        model.ask([{"role": "user", "content": "say"}], schema)
    sent = [
        next(iter(body["response_format"]["json_schema"]["schema"]["properties"]))
        for body in llm.requests
    ]
    assert sent == ["colour", "animal", "colour", "animal"]


@pytest.mark.heavy
def test_instructor_asks_again_over_litellm_with_its_validation_error() -> None:
    """The forms and the re-asks are instructor's; the calls, the attempts and the cache are ours."""
    replies = iter(['{"kind": "a"}', '{"kind": "c", "title": "x"}', '{"kind": "b", "title": "x"}'])
    with FakeLLM(lambda body: next(replies)) as server:
        model = pi.LLM("litellm/openai/fake", api_base=server.api_base, api_key="k")
        asked = [{"role": "user", "content": "hello"}]
        assert model.ask(asked, Inner).value == Inner(kind="b", title="x")
        assert model.ask(asked, Inner).cached
        assert server.calls == 3
        first, second, third = (body["messages"] for body in server.requests)
    assert first == asked
    assert second[1]["content"] == '{"kind": "a"}'
    assert second[2]["content"].startswith("Correct your JSON ONLY RESPONSE")
    assert "title" in second[2]["content"]
    assert third[1]["content"] == '{"kind": "c", "title": "x"}'
    assert (model.usage.calls, model.usage.reasks) == (3, 2)
    sent = server.requests[0]["response_format"]["json_schema"]["schema"]
    assert sent == {"title": "Inner", **wire_schema(Inner, tight=False)}


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("refused", "form"),
    [
        ({"json_schema"}, "json_object"),
        ({"json_schema", "json_object"}, "tools"),
        ({"json_schema", "json_object", "tools"}, "text"),
    ],
)
def test_over_litellm_the_form_that_a_provider_takes_is_found_once(
    refused: set[str], form: str
) -> None:
    def reply(body: dict[str, Any]) -> Any:
        asked = (body.get("response_format") or {}).get("type") or ("tools" in body and "tools")
        if asked in refused:
            return Fault.status(
                400, message=f"response_format {asked} is unavailable, so are tools"
            )
        return '{"kind": "b", "title": "x"}'

    with FakeLLM(reply) as server:
        model = pi.LLM("litellm/openai/fake", api_base=server.api_base, api_key="k", cache=False)
        key = key_with_schema(model)
        for number in range(3):
            value = model.ask([{"role": "user", "content": f"hello {number}"}], Inner).value
            assert value == Inner(kind="b", title="x")
        assert server.calls == 3 + len(refused)
    assert model.settings["reply_form"] == form
    assert key_with_schema(model) == key  # what was paid for is found


def key_with_schema(model: pi.LLM) -> bytes:
    prefix, question = (pi.Message(role=role, content="Hi") for role in ("system", "user"))
    return model.job(pi.Request((question,), Inner, (prefix,))).key


# The refusal of one row


@pytest.mark.heavy
@each_way
@pytest.mark.parametrize("behind", [0, 5])  # when the row is refused, nobody else is answered yet
@pytest.mark.parametrize(
    "words",
    [
        "Blocked by policy rule 17: temperature",
        "Input rejected (seed)",
        "Request rejected: tool",
        "Detected system prompt",
        "max_tokens is too large: limit is 30",
    ],
)
def test_a_refusal_of_one_row_changes_how_no_other_is_asked(words: str, behind: int) -> None:
    asked = []

    def reply(body: dict[str, Any]) -> Any:
        question = body["messages"][-1]["content"]
        if "odd" in question:  # litellm may put words around it
            return Fault.status(400, message=words)
        asked.append({name: body.get(name) for name in ("temperature", "seed", "max_tokens")})
        asked[-1] |= {"json": "response_format" in body, "first": body["messages"][0]["role"]}
        answer = Reply('{"kind": "b", "title": "x"}')
        return Fault("hang", seconds=0.1, body=answer.render(body)) if question == "0" else answer

    system = (pi.Message(role="system", content="Be kind."),)
    questions = [str(number) for number in range(20)]
    questions.insert(behind, "odd")
    with FakeLLM(reply) as server:
        model = pi.LLM("fake", api_base=server.api_base, cache=False, seed=1, max_concurrency=2)
        replies = model.ask_many(
            [
                pi.Request((pi.Message(role="user", content=one),), Inner, system)
                for one in questions
            ]
        )
    assert [one.error is None for one in replies] == [one != "odd" for one in questions]
    # Before anybody is answered, others may be asked so until one is.
    assert all(one == asked[-1] for one in (asked if behind else asked[-10:]))
    assert asked[-1] == {
        "temperature": 0.0,
        "seed": 1,
        "max_tokens": 500,
        "json": True,
        "first": "system",
    }


@each_way
@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("long", [(0,), (0, 1), (3,)], ids=["first", "first two", "later"])
def test_a_limit_that_long_rows_are_told_is_not_that_of_others(
    width: int, long: tuple[int, ...]
) -> None:
    """vLLM names what a long prompt leaves of the context. Other rows would be cut off, and paid."""
    asked: list[int] = []

    def reply(body: dict[str, Any]) -> Any:
        number, limit = int(body["messages"][-1]["content"].split()[-1]), body["max_tokens"]
        if number in long:
            left = 96 - number
            refused = Fault.status(400, message=f"max_tokens must be at most {left}, got {limit}")
            return refused if limit > left else "fine"
        asked.append(limit)
        return "fine"

    with FakeLLM(reply) as server:
        model = pi.LLM("fake", api_base=server.api_base, cache=False, max_concurrency=width)
        turns = ([{"role": "user", "content": f"row {number}"}] for number in range(12))
        replies = model.ask_many((turn,) for turn in turns)
    assert [one.text for one in replies] == ["fine"] * 12
    assert set(asked) == {500}


@each_way
@pytest.mark.parametrize("width", [1, 4])
def test_a_limit_that_all_rows_are_told_is_learned(width: int) -> None:
    def reply(body: dict[str, Any]) -> Any:
        if "temperature" in body:
            return Fault.status(400, message="temperature is not supported")
        if body["max_tokens"] > 100:
            return Fault.status(400, message="max_tokens must be at most 100")
        return "fine"

    with FakeLLM(reply) as server:
        model = pi.LLM("fake", api_base=server.api_base, cache=False, max_concurrency=width)
        turns = ([{"role": "user", "content": f"row {number}"}] for number in range(30))
        replies = model.ask_many((turn,) for turn in turns)
        assert [one.text for one in replies] == ["fine"] * 30
        assert server.calls <= 30 + 2 * width + 3


# What a reply is stored under

GATEWAYS: dict[str, tuple[str, dict[str, str]]] = {
    "plain": ("", {}),
    "a route": ("?route=a", {}),
    "another one": ("?route=b", {}),
    "a model with a long name": ("?model=Llama31Instruct70BTurboFP8", {}),
    "another long name": ("?model=Qwen25Coder32BInstructAWQ", {}),
    "a provider": ("", {"x-portkey-provider": "openai"}),
    "another provider": ("", {"X-Portkey-Provider": "anthropic"}),
    "a host": ("", {"Host": "llama.example.com"}),
    "a key that names a provider": ("", {"x-portkey-virtual-key": "openai-1"}),
    "a name in camel case": ("", {"X-ModelId": "one"}),
    "another value of it": ("", {"X-ModelId": "two"}),
    "a name without hyphens": ("", {"targetmodels": "one"}),
}
KEYS: dict[str, tuple[str, dict[str, str]]] = {
    "a key": ("?key=one&code=one", {"X-Provider-Api-Key": "one"}),
    "another key": ("?key=two&code=two", {"X-Provider-Api-Key": "two"}),
    "a trace": ("", {"traceparent": "00-1-2-01", "X-Request-Id": "1", "X-Title": "Tea"}),
}


def key_of(query: str = "", headers: dict[str, str] | None = None, model: str = "fake") -> bytes:
    """The key of a reply at an endpoint with this query and these headers."""
    base = f"http://127.0.0.1:9/v1{query}"
    llm = pi.LLM(model, api_base=base, api_key="k", extra_headers=headers, cache=False)
    return llm.job(pi.Request((pi.Message(role="user", content="Hi"),))).key


@pytest.mark.parametrize(
    "model", ["fake", pytest.param("litellm/openai/fake", marks=pytest.mark.heavy)]
)
def test_what_chooses_the_model_behind_an_address_is_part_of_what_a_reply_is_stored_under(
    model: str,
) -> None:
    keys = {key_of(*one, model=model) for one in GATEWAYS.values()}
    assert len(keys) == len(GATEWAYS)


def test_keys_and_numbers_of_a_run_are_no_part_of_it() -> None:
    assert key_of(*KEYS["a key"]) == key_of(*KEYS["another key"])
    assert key_of("?x=sk-abcdefgh1") == key_of("?x=sk-abcdefgh2")
    assert key_of("?Ab3Jx0pQ7vW2mN5tR9yZ") == key_of("?Zb3Jx0pQ7vW2mN5tR9yA")
    assert key_of(*KEYS["a trace"]) == key_of()
    earlier = "c38cedd9db70b6d0758918f79b84388477dca4511ac8bd62ac0755fb78e44b67"
    assert key_of().hex() == earlier  # whose replies are still found


def test_rows_that_were_refused_and_then_failed_hold_no_memory() -> None:
    loop = the_loop()
    # The loop keeps timers that were cancelled, and their contexts, until it has passed the earlier ones.
    timer: Future[asyncio.TimerHandle] = Future()
    loop.call_soon_threadsafe(lambda: timer.set_result(loop.call_later(9.0, int)))

    def reply(body: dict[str, Any]) -> Any:
        if body["messages"][-1]["content"] in ("first", "?"):
            return Reply("hello")
        if "temperature" in body:
            return Fault.status(400, message="temperature is not supported")
        return Fault.invalid_json("body")

    with FakeLLM(reply) as server:
        model = pi.LLM("fake", api_base=server.api_base, cache=False, max_attempts=1)
        asked = [{"role": "user", "content": "first"}]
        assert model.ask(asked).text
        replies = model.ask_many([([{"role": "user", "content": str(n)}],) for n in range(30)])
    assert all(one.error is not None for one in replies)
    del replies
    transport = model.transport
    assert isinstance(transport, EndpointTransport)
    for _ in range(100):  # the loop may still be at the end of the last request
        gc.collect()
        others = [one for one in gc.get_objects() if type(one) is Dialect]
        held = sum(one._first is transport.dialect._first for one in others)
        if held == 1:
            break
        sleep(0.05)
    loop.call_soon_threadsafe(timer.result().cancel)
    assert held == 1


@pytest.mark.heavy
@each_way
def test_a_server_that_hangs_up_after_each_answer_loses_few_requests() -> None:
    body = {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}
    with AnyServer(body=json.dumps(body).encode(), hangs_up=True) as server:
        options: dict[str, Any] = {"max_concurrency": 4, "cache": False}
        llm = pi.LLM("m", api_base=server.address, **options)
        turns = ([{"role": "user", "content": str(number)}] for number in range(80))
        assert not [one.error for one in llm.ask_many((turn,) for turn in turns) if one.error]
        assert len(server.asked) >= 80
    assert llm.usage.retries <= 20  # one for each connection that is kept, and those beside it
