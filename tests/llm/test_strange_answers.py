"""Answers of endpoints that no reader expects: each costs its row alone, with an error of this library."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from pydantic import BaseModel, field_validator

from personainfer.connections import LARGEST_REPLY
from personainfer.exceptions import ModelError, ReplyError
from personainfer.llm.client import LLM
from personainfer.llm.requests import Reply, Request, cached_reply
from personainfer.records import Message
from personainfer.testing import FakeLLM, Fault

from ..builders import WAYS, each_way, examples, reached
from ..fuzz_values import json_values, odd_in

COMPLETION = {
    "id": "x",
    "model": "other",
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "message": {
                "role": "assistant",
                "content": "yes",
                "refusal": None,
                "reasoning_content": "hm",
                "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}],
            },
            "logprobs": {
                "content": [
                    {
                        "token": "yes",
                        "logprob": -0.5,
                        "top_logprobs": [{"token": "no", "logprob": -1.0}],
                    }
                ]
            },
        }
    ],
    "usage": {
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "total_tokens": 9,
        "completion_tokens_details": {"reasoning_tokens": 1},
    },
}
NATIVE = {"message": {"content": "yes"}, "done_reason": "stop"}
PARTS = {"choices": [{"message": {"content": [{"type": "text", "text": "yes"}]}}]}
CHUNK = {
    "model": "other",
    "choices": [
        {
            "finish_reason": "stop",
            "delta": {"content": "yes", "tool_calls": [{"function": {"arguments": "{}"}}]},
        }
    ],
}
ERROR = {
    "error": {
        "message": "no",
        "code": "bad",
        "type": "x",
        "metadata": {"raw": "x", "reasons": ["y"]},
        "details": [{"retryDelay": "1s"}],
    }
}


def as_body(value: Any) -> bytes:
    return json.dumps(value).encode()


def as_stream(chunk: Any) -> bytes:
    return b"data: " + as_body(chunk) + b"\n\ndata: [DONE]\n\n"


replies = st.one_of(*(odd_in(one).map(as_body) for one in (COMPLETION, NATIVE, PARTS, ERROR)))
streams = odd_in(CHUNK).map(as_stream)
errors = odd_in(ERROR).map(as_body) | json_values.map(as_body)
header_values = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=30
) | st.sampled_from(
    [
        "Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
        "Mon, 01 Jan 2026 00:00:00 +99999999999999999999",
        "Mon, 01 Jan 0001 00:00:00 -0000",
        "9" * 400,
        "1e999",
        "-1",
    ]
)
headers = st.dictionaries(
    st.sampled_from(["Retry-After", "retry-after-ms", "x-ratelimit-reset-tokens", "Location"]),
    header_values,
    max_size=2,
)


class World:
    """An endpoint that answers the row "odd" with `fault`, and others with "fine"."""

    def __init__(self) -> None:
        self.fault: Fault | bytes = b""
        self.llm = FakeLLM(self._reply)

    def _reply(self, body: dict[str, Any]) -> Fault | bytes | str:
        return self.fault if body["messages"][-1]["content"].startswith("odd") else "fine"

    def ask(self, fault: Fault | bytes, *, logprobs: int = 0, cache: bool = False) -> list[Reply]:
        self.fault = fault
        client = LLM(
            "fake",
            api_base=self.llm.api_base,
            cache=cache,
            max_attempts=1,
            max_concurrency=1,
            timeout=30,
            patience=0.01,
        )
        rows = [f"{name} {fault!r:.80}" for name in ("first", "odd", "last")]
        turns = ((Message(role="user", content=row),) for row in rows)
        return client.ask_many([Request(one, logprobs=logprobs) for one in turns])


@pytest.fixture(scope="module", params=WAYS)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with reached(request.param):
        made = World()
        with made.llm:
            yield made


def check(found: list[Reply]) -> None:
    first, odd, last = found
    assert (first.text, last.text) == ("fine", "fine")
    assert odd.error is None or isinstance(odd.error, ModelError)


@pytest.mark.heavy
@examples(100, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=replies | streams)
def test_an_odd_reply_costs_its_row_alone(world: World, body: bytes) -> None:
    check(world.ask(body))


@pytest.mark.heavy
@examples(100, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=errors, status=st.sampled_from([400, 500]), headers=headers)
def test_an_odd_refusal_costs_its_row_alone(
    world: World, body: bytes, status: int, headers: dict[str, str]
) -> None:
    check(world.ask(Fault("status", code=status, headers=headers, body=body)))


STRANGE: dict[str, Fault | bytes] = {
    "a digit that int() refuses": as_body({"error": {"code": "²", "message": "x"}}),
    "a code of 5,000 digits": as_body({"error": {"code": "4" * 5000, "message": "x"}}),
    "a stream of a word": as_stream({"choices": ["x"]}),
    "a stream of a dict": as_stream({"choices": {"a": 1}}),
    "a stream of a number": as_stream({"choices": [{"delta": {"content": 5}}]}),
    "a stream with a list": as_stream({"choices": [{"delta": [1]}]}),
    "a stream of a call": as_stream({"choices": [{"delta": {"tool_calls": 5}}]}),
    "a date that no calendar has": Fault(
        "status",
        code=500,
        headers={"Retry-After": "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"},
        body=b"{}",
    ),
}


@pytest.mark.parametrize("name", STRANGE)
def test_what_once_ended_a_run_costs_its_row(world: World, name: str) -> None:
    found = world.ask(STRANGE[name])
    check(found)
    assert found[1].error is not None


def test_half_a_surrogate_in_the_tokens_costs_nothing(world: World) -> None:
    """Servers write it where an emoji spans two tokens, also where nobody asked for tokens."""
    token = {"token": "\ud83d", "logprob": -1.0}
    choice = {"message": {"content": "hi"}, "finish_reason": "stop"}
    body = as_body({"choices": [{**choice, "logprobs": {"content": [token]}}]})
    [_, odd, last] = world.ask(body, cache=True)
    assert (odd.text, odd.logprobs, last.text) == ("hi", [("?", {"?": -1.0})], "fine")


def test_whatever_a_reader_raises_costs_its_row(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next fault of a reader is one that nobody has thought of."""

    def fail(reply: dict[str, Any]) -> None:
        if "odd" in reply:
            raise ZeroDivisionError("whatever")

    monkeypatch.setattr("personainfer.llm.openai_protocol.embedded_status", fail)
    found = world.ask(as_body({"odd": 1}))
    check(found)
    error = found[1].error
    assert isinstance(error, ReplyError)
    assert "the reply cannot be read (ZeroDivisionError)" in str(error)
    assert "test_strange_answers.py, line " in error.__notes__[0]


def test_what_a_validator_of_the_user_raises_ends_the_run(world: World) -> None:
    """It is a bug of theirs: each row would be paid for, and fail."""

    class Odd(BaseModel):
        answer: str

        @field_validator("answer")
        @classmethod
        def check(cls, value: str) -> str:
            raise KeyError("theirs")

    world.fault = as_body({"choices": [{"message": {"content": '{"answer": "x"}'}}]})
    calls = world.llm.calls
    client = LLM("fake", api_base=world.llm.api_base, cache=False, max_concurrency=1)
    with pytest.raises(KeyError, match="theirs") as caught:
        client.ask_many([([{"role": "user", "content": f"odd {n}"}], Odd) for n in range(9)])
    assert "check" in [frame.name for frame in caught.traceback]
    assert world.llm.calls - calls < 3


@each_way
@pytest.mark.parametrize("odd", [["1", None], [1, {}], ["1", {"1": "x"}], ["1"], "1", ["1", 5]])
def test_a_stored_reply_whose_logprobs_are_spoilt_is_asked_again(odd: object) -> None:
    llm = LLM("fake", api_base="http://127.0.0.1:9/v1", cache=False)
    job = llm.job(Request((Message(role="user", content="Hi"),)))
    good = ["1", {"1": -0.5, "2": -1}]
    stored = cached_reply(job, json.dumps({"text": "1", "logprobs": [good]}))
    assert stored is not None
    assert stored.logprobs == [("1", {"1": -0.5, "2": -1.0})]
    assert cached_reply(job, json.dumps({"text": "1", "logprobs": [good, odd]})) is None


CALL = {"function": {"name": "f", "arguments": '{"text": "yes"}'}}
WHOLE = '{"text": "yes"}'
IN_PARTS = [{"type": "text", "text": "I record it now:"}]


class Answer(BaseModel):
    text: str


@each_way
@pytest.mark.parametrize(
    "answer",
    [
        {"choices": [{"message": {"content": words, **called}, "finish_reason": "tool_calls"}]}
        for words in (
            "I record it now:",
            "<think>{ hm }</think>",
            '{"other": 1}',
            WHOLE,
            "",
            None,
            PARTS,
        )
        for called in ({"tool_calls": [CALL]}, {"function_call": CALL["function"]})
    ]
    + [
        {"choices": [{"message": {"content": WHOLE}, "finish_reason": "stop", **inner}], **outer}
        for error in (
            {"message": "", "type": "", "param": "", "code": None},
            {"code": 0, "message": "Success"},
            {"code": "200", "message": "ok", "details": []},
        )
        for inner, outer in ((dict[str, Any](), {"error": error}), ({"error": error}, {}))
    ]
    + [
        {"code": 200, "msg": "ok", name: {"choices": [{"message": {"content": WHOLE}}]}}
        for name in ("data", "result", "response")
    ]
    + [
        {"choices": [{"message": {"content": WHOLE, **odd}, "finish_reason": "stop"}]}
        for odd in (
            {"tool_calls": ["x"]},
            {"tool_calls": {"a": 1}},
            {"function_call": "auto"},
            {"tool_calls": [{"function": None}]},
        )
    ]
    + [
        {"choices": [{"message": {"content": WHOLE}}], "error": "null"},
        {"choices": [{"message": {"content": None, "parsed": {"text": "yes"}}}]},
        {"choices": [{"message": {"content": [{"type": "json", "json": {"text": "yes"}}]}}]},
        {"choices": [{"delta": {"content": WHOLE}, "finish_reason": "stop"}]},
    ],
)
def test_a_whole_answer_is_read_whatever_is_beside_it(answer: dict[str, Any]) -> None:
    with FakeLLM(lambda _: as_body(answer)) as server:
        llm = LLM("fake", api_base=server.api_base, cache=False)
        reply = llm.ask([Message(role="user", content="Hi")], Answer)
        assert (reply.value, server.calls) == (Answer(text="yes"), 1)


@each_way
def test_an_envelope_without_a_completion_counts_as_what_was_reserved() -> None:
    with FakeLLM(lambda _: as_body({"code": 200, "msg": "ok", "data": {"text": "yes"}})) as server:
        llm = LLM("fake", api_base=server.api_base, cache=False, prices=(1e4, 1e4), max_attempts=1)
        with pytest.raises(ModelError):
            llm.ask([Message(role="user", content="Hi")])
        assert (llm.usage.cost or 0) > 5


def test_a_reply_with_a_long_header_is_read(world: World) -> None:
    """Gateways report in some which rules they applied."""
    headers = {"Content-Security-Policy": "x" * 20_000}
    [_, odd, _] = world.ask(Fault("status", code=200, headers=headers, body=as_body(COMPLETION)))
    assert odd.text == "yes"


def test_a_packed_reply_is_bounded_whose_header_comes_twice(world: World) -> None:
    """The first of the two headers is empty, as if nothing were packed."""
    bomb = gzip.compress(b'{"choices": "' + b" " * LARGEST_REPLY)
    headers = {"Content-Encoding": "", "content-encoding": "gzip"}
    error = world.ask(Fault("status", headers=headers, body=bomb))[1].error
    assert "larger than" in str(error)


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85"])
def test_an_event_stream_ends_its_lines_by_line_feeds_alone(world: World, sign: str) -> None:
    chunk = {"choices": [{"delta": {"content": f"a{sign}b"}, "finish_reason": "stop"}]}
    body = f"data: {json.dumps(chunk, ensure_ascii=False)}\r\n\r\ndata: [DONE]\r\n\r\n"
    assert world.ask(body.encode())[1].text == f"a{sign}b"
