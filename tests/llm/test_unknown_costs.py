"""A budget holds where the endpoint does not tell what a call cost."""

from __future__ import annotations

from typing import Any

import pytest

import personainfer as pi
from personainfer.api_keys import Secrets
from personainfer.exceptions import TransportError
from personainfer.llm.endpoint_faults import provider_errors
from personainfer.testing import FakeLLM, Fault, Reply

from ..builders import pairs

PRICES = (10_000.0, 10_000.0)  # USD a million tokens


def fake(server: FakeLLM, **options: Any) -> pi.LLM:
    return pi.LLM(
        "fake", api_base=server.api_base, prices=PRICES, max_tokens=500, cache=False, **options
    )


def ask(llm: pi.LLM, count: int) -> list[Any]:
    return llm.ask_many([([{"role": "user", "content": str(n)}],) for n in range(count)])


LIES: list[Any] = [
    None,
    {},
    *({"prompt_tokens": count, "completion_tokens": count} for count in (0, -7, None, False)),
    {"prompt_tokens": 0, "completion_tokens": -(10**30), "total_tokens": -1},
]


@pytest.mark.parametrize("usage", LIES)
def test_calls_whose_tokens_are_not_told_count_as_what_was_reserved(usage: object) -> None:
    reply = {"choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}]}
    told = reply if usage is None else {**reply, "usage": usage}
    with FakeLLM(faults=[Fault.response(told)] * 300) as server:
        llm = fake(server, budget=20.0)
        replies = ask(llm, 100)
        # 500 tokens of a reply are reserved, 5 USD, and the prompt's.
        assert 1 <= server.calls <= 4
    assert "budget" in str(replies[-1].error)
    assert replies[0].error is None
    assert llm.usage.cost is not None
    assert 5 < llm.usage.cost <= 20


def test_calls_that_time_out_count_as_what_was_reserved() -> None:
    with FakeLLM(latency=5) as server:
        llm = fake(server, budget=20.0, timeout=0.1)
        replies = ask(llm, 50)
        assert 1 <= server.calls <= 4
    assert "budget" in str(replies[-1].error)
    assert llm.usage.cost is not None
    assert 5 < llm.usage.cost <= 20


def test_what_was_refused_or_never_sent_costs_nothing() -> None:
    with FakeLLM(faults=[Fault.status(400)]) as server:
        llm = fake(server, budget=20.0, max_attempts=1)
        assert ask(llm, 1)[0].error is not None
    assert llm.usage.cost == 0
    assert ask(llm, 1)[0].error is not None  # nobody listens there now
    assert llm.usage.cost == 0


def test_what_the_endpoint_tells_is_what_is_charged() -> None:
    with FakeLLM(reply=lambda body: Reply("yes", prompt_tokens=3, completion_tokens=1)) as server:
        llm = fake(server, budget=20.0)
        ask(llm, 100)
        assert server.calls == 100
    assert llm.usage.cost == pytest.approx(4.0)


def test_a_batch_of_pairs_stops_at_its_budget_without_usage() -> None:
    def reply(body: dict[str, Any]) -> Reply:
        return Reply("{}", prompt_tokens=0, completion_tokens=0)

    with FakeLLM(reply=reply) as server:
        table = pi.infer_personas(pairs(100), fake(server, budget=200.0, max_attempts=1))
        assert 1 <= server.calls < 40
    assert "budget" in str(table[99].error)
    assert table.usage.cost is not None
    assert 100 < table.usage.cost <= 200


@pytest.mark.parametrize("count", [float("nan"), float("inf"), "many", [1], {"a": 1}, 10**400])
def test_counts_that_are_no_numbers_count_as_what_was_reserved_or_more(count: object) -> None:
    usage = {"prompt_tokens": count, "completion_tokens": count}
    reply = {"choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}]}
    with FakeLLM(faults=[Fault.response({**reply, "usage": usage})] * 300) as server:
        llm = fake(server, budget=20.0, max_attempts=1)
        replies = ask(llm, 50)
        assert 1 <= server.calls <= 4
    assert "budget" in str(replies[-1].error)


def test_a_call_of_an_sdk_that_broke_off_may_have_been_paid_and_one_without_connection_was_not() -> (
    None
):
    import httpx
    import openai

    def unanswered(cause: Exception) -> bool:
        request: Any = httpx.Request("POST", "http://127.0.0.1:9/v1")
        with pytest.raises(TransportError) as caught, provider_errors("it", 1.0, Secrets(["key"])):
            raise openai.APIConnectionError(request=request) from cause  # "Connection error."
        return caught.value.unanswered

    assert unanswered(httpx.ReadError("reset"))
    assert unanswered(httpx.RemoteProtocolError("Server disconnected"))
    assert not unanswered(httpx.ConnectError("refused"))
    assert not unanswered(httpx.ConnectTimeout("late"))
