"""A budget holds where the endpoint does not tell what a call cost."""

from __future__ import annotations

import copy
import json
import os
import threading
import time
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest
from pydantic import create_model

import personainfer as pi
from personainfer.api_keys import Secrets
from personainfer.exceptions import (
    AuthenticationError,
    BudgetExceededError,
    InvalidArgumentError,
    ModelError,
    TransportError,
)
from personainfer.llm.pricing import Price, ReplySize, find_batch_price, find_price
from personainfer.llm.refusals import provider_errors
from personainfer.llm.requests import Request
from personainfer.llm.transports import EndpointTransport, Sending
from personainfer.testing import FakeLLM, Fault, Reply

from ..builders import each_way, pairs

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
    {"prompt_tokens": True, "completion_tokens": True},
    {"prompt_tokens": "1", "completion_tokens": "1"},
    {"prompt_tokens": 3, "completion_tokens": float("nan")},
    [1],
]
SAID = {"message": {"content": "hello"}, "finish_reason": "stop"}


@pytest.mark.heavy
@each_way
@pytest.mark.parametrize("usage", LIES)
def test_calls_whose_tokens_are_not_told_count_as_what_was_reserved(usage: object) -> None:
    told = {"choices": [SAID]} if usage is None else {"choices": [SAID], "usage": usage}
    with FakeLLM(faults=[Fault.response(told)] * 300) as server:
        llm = fake(server, budget=20.0)
        replies = ask(llm, 100)
        # 500 tokens of a reply are reserved, 5 USD, and the prompt's.
        assert 1 <= server.calls <= 4
    assert "budget" in str(replies[-1].error)
    assert replies[0].error is None
    assert llm.usage.cost is not None
    assert 5 < llm.usage.cost <= 20


@pytest.mark.heavy
@each_way
@pytest.mark.parametrize("message", [{"content": ""}, {"content": None, "refusal": "I cannot"}])
@pytest.mark.parametrize("finish", ["stop", "length", "content_filter", "error"])
@pytest.mark.parametrize("said", [{}, {"completion_tokens": -5}, {"completion_tokens": "5"}])
def test_so_do_replies_without_a_text(
    message: dict[str, Any], finish: str, said: dict[str, Any]
) -> None:
    """A model may have thought its tokens away."""
    choice = {"message": message, "finish_reason": finish}
    reply = {"choices": [choice], "usage": {"prompt_tokens": 3, **said}}
    with FakeLLM(faults=[Fault.response(reply)] * 300) as server:
        llm = fake(server, budget=20.0, max_attempts=1)
        replies = ask(llm, 20)
        assert 1 <= server.calls <= 4
    assert "budget" in str(replies[-1].error)


@each_way
@pytest.mark.parametrize("status", [201, 203, 206])
def test_a_reply_counts_with_any_status_of_success(status: int) -> None:
    told = {"choices": [SAID], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}
    with FakeLLM(faults=[Fault.response(told, status)]) as server:
        llm = fake(server)
        assert ask(llm, 1)[0].text == "hello"
    assert llm.usage.cost == pytest.approx(0.04)


BROKEN = {"message": "flagged mid-stream"}
TOOK = {"prompt_tokens": 30, "completion_tokens": 10}
HALF = {"message": {"content": "The user"}, "finish_reason": "error"}
STREAM = "".join(
    f"data: {json.dumps(chunk)}\n\n"
    for chunk in ({"choices": [{"delta": {"content": "T"}}]}, {"error": BROKEN})
)


@each_way
@pytest.mark.parametrize("code", [400, 403, 429, 500, 502, None])
@pytest.mark.parametrize("place", ["top", "choice", "status", "within"])
def test_an_error_that_tells_what_it_took_is_charged_as_such(code: int | None, place: str) -> None:
    error = {"error": {**BROKEN, "code": code}}
    told: dict[str, Any] = {**error, "usage": TOOK}
    if place == "choice":
        told["choices"] = [{**HALF, "error": told.pop("error")}]
    elif place == "within":
        told["error"]["usage"] = told.pop("usage")
    status = (code or 500) if place in ("status", "within") else 200
    with FakeLLM(faults=[Fault.response(told, status)] * 9) as server:
        llm = fake(server, budget=6.5, max_attempts=1)
        assert ask(llm, 1)[0].error is not None
    assert server.calls >= 1
    assert llm.usage.cost == pytest.approx(0.4 * server.calls)
    assert llm.account.bounds.budget is not None
    assert llm.account.bounds.budget.spent == llm.usage.cost


LAVISH = {"prompt_tokens": 30, "completion_tokens": 2000}  # more than were asked for
CUT = {"choices": [{"delta": {"content": "T"}}], "usage": LAVISH}


@pytest.mark.heavy
@each_way
@pytest.mark.parametrize(
    "reply",
    [
        json.dumps({"choices": [HALF], "usage": LAVISH}),
        json.dumps({"choices": "x", "usage": LAVISH}),
        json.dumps({"data": {"choices": [HALF], "usage": LAVISH}}),
        json.dumps({"choices": [{"message": {"content": "\ud800"}}], "usage": LAVISH}),
        f"data: {json.dumps(CUT)}\n\n",
        f"data: {json.dumps(CUT)}\n\ndata: {{broken\n\n",
    ],
    ids=[
        "broken off",
        "no completion",
        "wrapped",
        "surrogate",
        "cut stream",
        "broken stream",
    ],
)
def test_what_a_reply_tells_that_it_took_is_charged_where_the_reply_cannot_be_used(
    reply: str,
) -> None:
    with FakeLLM(lambda _: reply.encode()) as server:
        llm = fake(server, budget=100.0, max_attempts=1)
        assert ask(llm, 1)[0].error is not None
    assert llm.usage.cost == pytest.approx(20.3 * server.calls)
    assert llm.account.bounds.budget is not None
    assert llm.account.bounds.budget.spent == llm.usage.cost


@each_way
@pytest.mark.parametrize(
    "reply",
    [
        json.dumps({"choices": [{**HALF, "error": BROKEN}]}),
        json.dumps({"error": BROKEN, "usage": {"input_tokens": 3, "output_tokens": 1}}),
        json.dumps({"type": "message", "content": [], "usage": {"input_tokens": 3}}),
        json.dumps({"output": "hello"}),
        STREAM,
    ],
)
def test_an_error_counts_as_what_was_reserved_if_a_model_ran(reply: str) -> None:
    with FakeLLM(lambda _: reply.encode()) as server:
        llm = fake(server, budget=20.0, max_attempts=1)
        replies = ask(llm, 50)
        assert 1 <= server.calls <= 4
    assert "budget" in str(replies[-1].error)


@each_way
def test_a_prompt_of_which_each_byte_is_a_token_does_not_pass_the_budget() -> None:
    def reply(body: dict[str, Any]) -> Reply:
        return Reply("ok", prompt_tokens=len(body["messages"][0]["content"]), completion_tokens=1)

    with FakeLLM(reply=reply) as server:
        llm = fake(server, budget=30.0)
        [answer] = llm.ask_many([([{"role": "user", "content": "7" * 4000}],)])
    assert "budget" in str(answer.error)
    assert server.calls == 0


@pytest.mark.parametrize(("budget", "calls"), [(40.0, 1), (20.0, 0)])
def test_a_request_that_a_library_wrote_longer_is_reserved_by_its_size(
    budget: float, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def send(
        self: EndpointTransport, body: bytes, timeout: float, dialect: Any, sending: Sending
    ) -> Any:
        sending.is_written(3000, has_limit=True)
        return await as_it_is(self, body, timeout, dialect, sending)

    as_it_is = EndpointTransport._send
    monkeypatch.setattr(EndpointTransport, "_send", send)
    reply = Reply("ok", prompt_tokens=3000, completion_tokens=1)
    with FakeLLM(reply=reply) as server:
        llm = fake(server, budget=budget)
        replies = ask(llm, 2)
    assert [one.error is None for one in replies].count(True) == server.calls == calls
    assert "this call may cost" in str(replies[-1].error)
    assert llm.usage.cost == pytest.approx(30.01 * calls)


@pytest.mark.heavy
def test_so_is_one_to_which_litellm_adds_the_schema() -> None:
    """It writes a schema with two blanks for each level into the prompt of a model that takes no schemas."""
    fields: dict[str, Any] = {f"f{n}": (int | None, None) for n in range(40)}
    inner: Any = create_model("inner", **fields)
    schema = create_model("schema", one=(inner, ...), more=(list[inner], ...))

    def reply(body: dict[str, Any]) -> Reply | Fault:
        if (body.get("response_format") or {}).get("type") == "json_schema" or "tools" in body:
            return Fault.status(400, message="response_format and tools are not supported")
        size = len("".join(message["content"] for message in body["messages"]))
        return Reply('{"one": {}, "more": []}', prompt_tokens=size, completion_tokens=1)

    with FakeLLM(reply) as server:
        options: dict[str, Any] = {"prices": (1000.0, 0.0), "cache": False, "api_key": "k"}
        for budget in (10.0, 40.0):
            llm = pi.LLM("litellm/openai/m", api_base=server.api_base, budget=budget, **options)
            replies = llm.ask_many(
                [
                    pi.Request((pi.Message(role="user", content=f"hi {n}"),), schema)
                    for n in range(3)
                ]
            )
            assert llm.usage.cost is not None
            assert llm.usage.cost <= budget
            assert any("may cost" in str(one.error) for one in replies)
        assert any(one.error is None for one in replies)


@each_way
def test_a_dearer_call_is_charged_as_such() -> None:
    usage = {
        "prompt_tokens": 3_000,
        "completion_tokens": 100,
        "completion_tokens_details": {"reasoning_tokens": 90},
    }
    with FakeLLM(faults=[Fault.response({"choices": [SAID], "usage": usage})] * 2) as server:
        llm = fake(server, budget=100.0)
        llm.price = Price(
            0.001, 0.01, reasoning=0.02, call=0.5, longer=((2_000, 0.002, 0.03, 0.05),)
        )
        ask(llm, 2)
    assert llm.usage.cost == pytest.approx(2 * (3_000 * 0.002 + 100 * 0.03 + 90 * 0.05 + 0.5))


def test_the_prices_of_the_list_are_those_of_dearer_calls_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listed: dict[str, dict[str, Any]] = {
        "thinks": {
            "input_cost_per_token": 1.0,
            "output_cost_per_token": 2.0,
            "output_cost_per_reasoning_token": 5.0,
            "input_cost_per_token_above_200k_tokens": 3.0,
            "output_cost_per_token_above_200k_tokens": 4.0,
        },
        "searches": {
            "litellm_provider": "perplexity",
            "input_cost_per_token": 1.0,
            "output_cost_per_token": 1.0,
            "search_context_cost_per_query": {"low": 5.0, "high": 12.0},
        },
    }
    listed["has a price of batches"] = {
        **listed["thinks"],
        "input_cost_per_token_batches": 0.5,
        "output_cost_per_token_batches": 1.0,
    }
    monkeypatch.setattr("personainfer.llm.pricing._listed", lambda: listed)
    thinks = find_price("thinks", None)
    assert thinks is not None
    assert thinks.cost(10, 10, 10) == 10 + 20 + 30
    assert thinks.cost(200_001, 10) == 3 * 200_001 + 40
    assert thinks.most(10, 10) == thinks.cost(10, 10, 10)
    for name in ("thinks", "has a price of batches"):
        halves = find_batch_price(name, None)
        assert halves is not None
        assert halves.cost(200_001, 10, 10) == thinks.cost(200_001, 10, 10) / 2
    for end in ("", "_above_200k_tokens"):
        listed["thinks"][f"input_cost_per_token{end}_priority"] = 7.0
    quick = find_price("thinks", None, {"service_tier": "priority"})
    assert quick is not None
    assert quick.cost(10, 10, 10) == 7 * thinks.cost(10, 10, 10)
    assert quick.cost(200_001, 10) == 7 * 200_001 + 280
    assert find_price("thinks", None, {"service_tier": "default", "top_k": 1}) == thinks
    searches = find_price("searches", None)
    assert searches is not None
    assert searches.cost(0, 0) == 12
    plain = {"input_cost_per_token": 1.0, "output_cost_per_token": 2.0}
    tier = {"range": [1000, 5000], "input_cost_per_token": 3.0, "output_cost_per_token": 4.0}
    listed["tiers"] = {**plain, "tiered_pricing": [{**plain, "range": [0, 1000]}, tier]}
    tiers = find_price("tiers", None)
    assert tiers is not None
    assert (tiers.cost(1000, 10), tiers.cost(1001, 10)) == (1020, 3 * 1001 + 40)
    thought = "output_cost_per_reasoning_token"
    first = {**plain, "range": [0, 1000], thought: 6.0}
    listed["tiers alone"] = {"tiered_pricing": [first, {**tier, thought: 9.0}]}
    alone = find_price("tiers alone", None)
    assert alone is not None
    assert (alone.cost(1000, 10, 10), alone.cost(1001, 10, 10)) == (1060, 3 * 1001 + 90)
    halves = find_batch_price("tiers alone", None)
    assert halves is not None
    assert halves.cost(1001, 10, 10) == (3 * 1001 + 90) / 2
    listed["flexible"] = {**plain, "input_cost_per_token_flex": 0.5}  # a reply may cost as much
    flexible = find_price("flexible", None, {"service_tier": "flex"})
    assert flexible is not None
    assert flexible.cost(10, 10) == 5 + 20


def test_an_address_at_which_the_list_has_higher_prices_counts_at_these(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = {"input_cost_per_token": 1.0, "output_cost_per_token": 2.0}
    regions = {f"regional_processing_uplift_multiplier_{name}": 1.5 for name in ("eu", "us")}
    listed = {
        "o": {**plain, **regions, "fedramp_uplift_multiplier": 3.0},
        "v": {**plain, "regional_endpoint_uplift_multiplier": 2.0},
        "azure/model-router": {**plain, "output_cost_per_token": 0.0},
    }
    monkeypatch.setattr("personainfer.llm.pricing._listed", lambda: listed)
    for place, times in {"": 1.0, "eu.": 1.5, "EU.": 1.5, "us.": 1.5, "gov.": 3.0}.items():
        llm = pi.LLM("openai/o", api_base=f"https://{place}api.openai.com/v1", api_key="k")
        assert llm.price == Price(times, 2 * times)
        assert llm.batch_price == Price(times / 2, times)
    for place, times in {"": 2.0, "europe global": 2.0, "global": 1.0}.items():
        assert find_price("v", None, place=f"litellm:vertex_ai: {place}") == Price(times, 2 * times)
    assert find_price("azure/model-router", None) is None  # another model's price comes to it


WRITTEN: list[dict[str, Any]] = [
    {"prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 40}},
    {"prompt_tokens_details": {"cache_creation_tokens": 40}, "cache_creation_input_tokens": 40},
    {"prompt_tokens_details": None, "cacheWriteInputTokens": 40, "cache_creation": {"x": 1}},
]


@pytest.mark.parametrize("told", [*WRITTEN, {}, {"prompt_tokens_details": {"cached_tokens": 40}}])
def test_what_a_provider_writes_into_its_cache_is_charged_at_the_dearer_price(
    told: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = {
        "input_cost_per_token": 1.0,
        "input_cost_per_token_batches": 0.5,
        "cache_creation_input_token_cost": 1.25,
        "cache_creation_input_token_cost_above_12hr": 2.5,
        "output_cost_per_token": 2.0,
    }
    monkeypatch.setattr("personainfer.llm.pricing._listed", lambda: {"m": listed})
    usage = {"prompt_tokens": 100, "completion_tokens": 10, **told}
    with FakeLLM(faults=[Fault.response({"choices": [SAID], "usage": usage})]) as server:
        llm = pi.LLM("m", api_base=server.api_base, cache=False, budget=1e9)
        ask(llm, 1)
    assert llm.usage.cost == 100 + 20 + (40 * 0.25 if told in WRITTEN else 0)
    kept = find_price("m", None, {"prompt_cache_retention": "24h"})
    halves = find_batch_price("m", None)
    assert (llm.price, halves, kept) != (None, None, None)
    assert [one and one.most(100, 10) for one in (llm.price, halves, kept)] == [145, 72.5, 270]


@pytest.mark.parametrize("total", [{}, {"total_tokens": 20}, {"total_tokens": 520}])
def test_what_is_cached_of_a_prompt_is_charged_if_it_is_not_counted_with_the_prompt(
    total: dict[str, int],
) -> None:
    """As by gateways to Claude, whose own protocol counts it apart."""
    told = {"cache_creation_input_tokens": 200, "cache_read_input_tokens": 300, **total}
    usage = {"prompt_tokens": 10, "completion_tokens": 10, **told}
    with FakeLLM(faults=[Fault.response({"choices": [SAID], "usage": usage})]) as server:
        llm = pi.LLM("m", api_base=server.api_base, cache=False, prices=(1e6, 1e6))
        ask(llm, 1)
    assert (llm.usage.prompt_tokens, llm.usage.completion_tokens) == (510, 10)
    assert llm.usage.cost == 520


@each_way
@pytest.mark.parametrize(
    "fields",
    [
        {"service_tier": "fast"},
        {"models": ["x"]},
        {"tools": [{"type": "web_search"}]},
        {"search_parameters": {"mode": "on"}},
        {"a field of tomorrow": 1},
        {"extra_body": {"service_tier": "fast"}},
    ],
)
def test_a_budget_asks_for_the_price_of_what_the_list_does_not_price(
    fields: dict[str, Any],
) -> None:
    where: dict[str, Any] = {"api_base": "http://127.0.0.1:9/v1", "extra_body": fields}
    assert pi.LLM("gpt-4o", **where).price is None
    with pytest.raises(InvalidArgumentError, match=r"with extra_body=.* not known. Give prices="):
        pi.LLM("gpt-4o", budget=1.0, **where)
    assert pi.LLM("gpt-4o", budget=1.0, prices=(9.0, 9.0), **where).price is not None


def test_a_budget_takes_a_price_of_0_from_the_caller_and_not_from_the_list(
    llm: FakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list has 0 for models that are paid, too: in another currency, by the hour, or not entered yet."""
    listed = {"input_cost_per_token": 0.0, "output_cost_per_token": 0.0}
    monkeypatch.setattr("personainfer.llm.pricing._listed", lambda: {"m": listed})
    where: dict[str, Any] = {"api_base": llm.api_base, "cache": False}
    for judged in (False, True):
        select = pi.Verifier("m", **where) if judged else None
        name, prices = ("n", (1, 1)) if judged else ("m", None)
        with pytest.raises(InvalidArgumentError, match=r"price of .*'m' is not known\. Give"):
            pi.infer_personas(pairs(1), name, budget=1.0, prices=prices, select=select, **where)
    assert llm.calls == 0
    table = pi.infer_personas(pairs(1), "m", budget=1.0, prices=(0, 0), **where)
    assert table.usage.cost == 0


def test_the_price_of_a_single_token_is_no_price_of_a_million() -> None:
    """A budget in such prices, which litellm's list has, would be a million times too large."""
    where = "http://127.0.0.1:9/v1"
    for prices in ((2.5e-06, 1e-05), (0, 6e-4)):
        with pytest.raises(InvalidArgumentError, match=r"single token.*USD a million tokens"):
            pi.LLM("m", api_base=where, prices=prices, budget=1)
    for prices in ((0, 0), (0, 0.001), (0.15, 0.6)):
        assert pi.LLM("m", api_base=where, prices=prices, budget=1).is_priced


@each_way
def test_a_dearer_tier_counts_at_its_price(llm: FakeLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("input_cost_per_token", "output_cost_per_token")
    listed = {name + end: usd for name in names for end, usd in (("", 1.0), ("_priority", 1.7))}
    monkeypatch.setattr("personainfer.llm.pricing._listed", lambda: {"m": listed})
    plain, dearer = (
        pi.LLM("m", api_base=llm.api_base, cache=False, extra_body={"service_tier": tier})
        for tier in ("default", "priority")
    )
    assert dearer.price is not None
    assert dearer.price == dearer.batch_price
    inner = {"extra_body": {"service_tier": "priority"}}
    assert find_price("m", None, inner) == find_batch_price("m", None, inner) == dearer.price
    for one, price in ((plain, 1.0), (dearer, 1.7)):
        pi.infer_personas(pairs(2), one)
        tokens = one.usage.prompt_tokens + one.usage.completion_tokens
        assert one.usage.cost == pytest.approx(price * tokens)


@pytest.mark.heavy
@each_way
def test_calls_that_time_out_count_as_what_was_reserved() -> None:
    with FakeLLM(latency=5) as server:
        llm = fake(server, budget=20.0, timeout=0.5)
        replies = ask(llm, 50)
        assert 1 <= server.calls <= 4
    assert "budget" in str(replies[-1].error)
    assert llm.usage.cost is not None
    assert 5 < llm.usage.cost <= 20


@each_way
@pytest.mark.parametrize("status", [408, 502, 504, 520, 524])
def test_so_do_calls_that_a_gateway_lost(status: int) -> None:
    with FakeLLM(faults=[Fault.status(status)] * 50) as server:
        llm = fake(server, budget=20.0, max_attempts=1)
        replies = ask(llm, 5)
        assert 1 <= server.calls <= 4
    assert "budget" in str(replies[-1].error)


@each_way
@pytest.mark.parametrize("status", [400, 500])
@pytest.mark.parametrize("usage", [{"input_tokens": 3}, {"total_tokens": 4}, {"prompt_tokens": 3}])
def test_so_do_errors_that_tell_it_in_part(status: int, usage: dict[str, int]) -> None:
    told = {"error": BROKEN, "usage": usage}
    with FakeLLM(faults=[Fault.response(told, status)] * 50) as server:
        llm = fake(server, budget=20.0, max_attempts=1)
        replies = ask(llm, 5)
        assert 1 <= server.calls <= 4
    assert "budget" in str(replies[-1].error)


@each_way
@pytest.mark.parametrize(
    "usage",
    [None, {}, {"prompt_tokens": 0, "completion_tokens": 0}, [3], {"used": 1000, "limit": 1000}],
)
def test_a_refusal_that_tells_of_no_token_costs_nothing(usage: Any) -> None:
    told = {"error": BROKEN, "usage": usage}
    with FakeLLM(faults=[Fault.response(told, 400)]) as server:
        llm = fake(server, budget=20.0, max_attempts=1)
        assert ask(llm, 1)[0].error is not None
    assert llm.usage.cost == 0


@each_way
def test_what_was_refused_or_never_sent_costs_nothing() -> None:
    with FakeLLM(faults=[Fault.status(400)]) as server:
        llm = fake(server, budget=20.0, max_attempts=1)
        assert ask(llm, 1)[0].error is not None
    assert llm.usage.cost == 0
    assert ask(llm, 1)[0].error is not None  # nobody listens there now
    assert llm.usage.cost == 0


@pytest.mark.heavy
@each_way
@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_of_all_costs_nothing_for_those_in_flight(status: int) -> None:
    late = (
        Fault("hang", code=status, body=b"no", seconds=seconds) for seconds in (0.05, *[3.0] * 99)
    )
    with FakeLLM(lambda _: next(late)) as server:
        llm = fake(server, budget=1000.0)
        with pytest.raises(AuthenticationError):
            ask(llm, 20)
        assert server.calls > 1
    assert llm.usage.cost == 0
    assert llm.account.bounds.budget is not None
    assert llm.account.bounds.budget.spent == 0


@each_way
def test_where_credit_ends_those_in_flight_count_as_what_was_reserved() -> None:
    """The provider may have run them."""
    late = (
        Fault("hang", code=402, body=b"no", seconds=seconds) for seconds in (0.05, *[30.0] * 99)
    )
    with FakeLLM(lambda _: next(late)) as server:
        llm = fake(server, budget=1000.0)
        with pytest.raises(AuthenticationError):
            ask(llm, 20)
    assert llm.usage.cost is not None
    assert llm.usage.cost > 0


@each_way
def test_what_the_endpoint_tells_is_what_is_charged() -> None:
    with FakeLLM(reply=lambda body: Reply("yes", prompt_tokens=3, completion_tokens=1)) as server:
        llm = fake(server, budget=20.0)
        ask(llm, 100)
        assert server.calls == 100
    assert llm.usage.cost == pytest.approx(4.0)


@each_way
def test_a_batch_of_pairs_stops_at_its_budget_without_usage() -> None:
    def reply(body: dict[str, Any]) -> Reply:
        return Reply("{}", prompt_tokens=0, completion_tokens=0)

    with FakeLLM(reply=reply) as server:
        table = pi.infer_personas(pairs(100), fake(server, budget=200.0, max_attempts=1))
        assert 1 <= server.calls < 40
    assert "budget" in str(table[99].error)
    assert table.usage.cost is not None
    assert 100 < table.usage.cost <= 200


@each_way
@pytest.mark.parametrize("fault", [Fault.reset(), Fault.reset_mid_body()], ids=["before", "within"])
def test_a_call_that_breaks_off_counts_as_what_was_reserved(fault: Fault) -> None:
    with FakeLLM(lambda _: fault) as server:
        llm = fake(server, budget=20.0, max_attempts=1)
        replies = ask(llm, 5)
        assert 1 <= server.calls <= 4
    assert "budget" in str(replies[-1].error)


@each_way
@pytest.mark.parametrize(
    "count", [float("nan"), float("inf"), "many", [1], {"a": 1}, 10**400, -7, None]
)
def test_counts_that_are_no_numbers_count_as_what_was_reserved_or_more(count: object) -> None:
    usage = {"prompt_tokens": count, "completion_tokens": count}
    reply = {"choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}]}
    with FakeLLM(faults=[Fault.response({**reply, "usage": usage})] * 300) as server:
        llm = fake(server, budget=20.0, max_attempts=1)
        replies = ask(llm, 50)
        assert 1 <= server.calls <= 4
    assert "budget" in str(replies[-1].error)


@pytest.mark.heavy
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


@pytest.mark.heavy
@each_way
def test_a_request_that_waited_is_reserved_anew_when_the_model_turns_out_to_reason() -> None:
    """It is then sent with 8 times the tokens, which its reservation has to hold."""
    asked: Counter[str] = Counter()

    def reply(body: dict[str, Any]) -> Reply | Fault:
        text, limit = body["messages"][-1]["content"], body["max_tokens"]
        asked[text] += 1
        if text == "waits" and asked[text] == 1:
            return Fault.rate_limit(0.4)
        if text == "reasons" and asked[text] == 1:
            cut_off = Reply("<think>hm", "length", completion_tokens=limit)
            return Fault("hang", seconds=0.15, body=cut_off.render(body))
        return Reply("fine", completion_tokens=limit)

    with FakeLLM(reply) as server:
        llm = pi.LLM(
            "fake",
            api_base=server.api_base,
            cache=False,
            max_tokens=1000,
            prices=(0, 1),
            budget=0.0125,
            max_concurrency=3,
        )
        llm.ask_many([([{"role": "user", "content": one}],) for one in ("reasons", "waits", "x")])
    assert llm.usage.cost is not None
    assert llm.usage.cost <= 0.0125


@each_way
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_has_what_is_left_of_the_budget() -> None:
    with FakeLLM(Reply("fine", prompt_tokens=5, completion_tokens=500)) as server:
        llm = fake(server, budget=11.0)
        ask(llm, 1)  # 505 tokens for 5.05 USD
        if (child := os.fork()) == 0:
            error = ask(llm, 1)[0].error
            os._exit(0 if isinstance(error, BudgetExceededError) else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert server.calls == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_in_a_fork_copies_have_together_what_is_left() -> None:
    with FakeLLM(Reply("fine", prompt_tokens=5, completion_tokens=500)) as server:
        llm = fake(server, budget=18.0, rpm=3)
        copies = [copy.copy(llm), copy.deepcopy(llm)]
        budget, window, _ = llm.account.bounds
        assert budget is not None
        assert window is not None
        ask(llm, 1)  # 505 tokens for 5.05 USD
        if (child := os.fork()) == 0:
            for one in copies:
                ask(one, 1)
            fits = [one.account.bounds == (budget, window, None) for one in (llm, *copies)]
            fits += [abs(budget.spent - 3 * 5.05) < 1e-9, window._held == 3]  # of the parent, too
            fits.append(isinstance(ask(llm, 1)[0].error, BudgetExceededError))
            os._exit(0 if all(fits) else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert server.calls == 3


@pytest.mark.heavy
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_in_a_fork_the_calls_that_its_parent_has_in_flight_count_at_their_most() -> None:
    with FakeLLM(Reply("fine", prompt_tokens=5, completion_tokens=500), latency=0.3) as server:
        llm = fake(server, budget=8.0, rpm=60, extra_body={"enable_thinking": True})
        asking = threading.Thread(target=ask, args=(llm, 1))
        asking.start()
        while not server.calls:
            time.sleep(0.01)
        if (child := os.fork()) == 0:
            error = ask(llm, 1)[0].error
            os._exit(0 if isinstance(error, BudgetExceededError) else 1)
        asking.join()
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert server.calls == 1
        assert llm.usage.calls == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_knows_how_long_replies_were() -> None:
    with FakeLLM(Reply("fine", prompt_tokens=5, completion_tokens=4400)) as server:
        llm = fake(server, budget=100.0, extra_body={"enable_thinking": True}, max_concurrency=16)
        budget = llm.account.bounds.budget
        assert budget is not None
        ask(llm, 1)
        if (child := os.fork()) == 0:
            ask(llm, 30)
            os._exit(0 if budget.spent <= 100 else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_in_a_fork_the_judge_counts_in_the_budget_of_its_model() -> None:
    with FakeLLM(Reply({"answer": "1"}, prompt_tokens=5, completion_tokens=1)) as server:
        llm = fake(server, budget=50.0)
        judge = pi.Verifier("judge", api_base=server.api_base, prices=PRICES, cache=False)
        ask(llm, 1)
        if (child := os.fork()) == 0:
            judge.share_budget(llm).verdicts(
                [pi.Preference(prompt="?", chosen="a", rejected="b")], ["x"]
            )
            assert llm.account.bounds.budget is not None
            spent = llm.account.bounds.budget.spent - 0.06  # by the parent
            os._exit(0 if abs(spent - (judge.usage.cost or 1.0)) < 1e-9 else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.parametrize(
    ("options", "is_shared"),
    [
        ({}, True),
        ({"rpm": 9000, "tpm": 1e9}, True),
        ({"extra_headers": {}}, True),
        ({"rpm": 60}, False),
        ({"api_key": "another"}, False),
        ({"api_base": "http://localhost:9/v1"}, False),
    ],
)
def test_a_judge_counts_in_the_minute_of_its_model_if_both_have_one_address_and_key(
    options: dict[str, Any], is_shared: bool
) -> None:
    judged = Reply({"answer": "1"}, prompt_tokens=1, completion_tokens=1)
    with FakeLLM(judged) as server:
        llm = fake(server, rpm=9000, tpm=1e9)
        options = {"api_base": server.api_base, "cache": False, "max_attempts": 1, **options}
        judge = pi.Verifier("judge", **options).share_budget(llm)
        with suppress(ModelError):
            judge.verdicts([pi.Preference(prompt="?", chosen="a", rejected="b")], ["x"])
        window = llm.account.bounds.requests
        assert window is not None
        assert window._held == (2 if is_shared else 0)
        assert (judge._within.requests is window) == is_shared  # also if its calls failed


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("model", "judge"),
    [
        ("m", "litellm/openai/j"),
        ("litellm/openai/m", "openai/j"),
        ("litellm/openai/m", "litellm/hosted_vllm/j"),
    ],
)
def test_an_address_is_one_by_whatever_way_and_provider_it_is_called(
    model: str, judge: str
) -> None:
    there: dict[str, Any] = {"api_key": "sk-mine", "cache": False}
    llm = pi.LLM(model, api_base="http://127.0.0.1:9/v1", rpm=10, **there)
    same = pi.Verifier(judge, api_base="http://127.0.0.1:9/v1/", **there).share_budget(llm)
    assert same._within.requests is llm.account.bounds.requests
    other = pi.Verifier(judge, api_base="http://127.0.0.1:8/v1", **there).share_budget(llm)
    assert other._within.requests is None


def test_a_judge_that_was_given_as_an_llm_has_its_own_minute() -> None:
    with FakeLLM() as server:
        llm, judge = fake(server, rpm=60), fake(server)
        assert pi.Verifier(judge).share_budget(llm)._within == judge.account.bounds


@pytest.mark.filterwarnings("ignore:the judge gave no usable reply")
def test_a_judge_is_in_the_budget_of_the_run_for_which_it_chooses_whatever_others_do() -> None:
    judged = Reply({"answer": "1"}, prompt_tokens=1, completion_tokens=100)
    with FakeLLM() as model, FakeLLM(judged) as server:
        judge = pi.Verifier(
            "judge",
            api_base=server.api_base,
            prices=PRICES,
            cache=False,
            soft=False,
            max_tokens=100,
        )
        poor, rich = fake(model, budget=11.0), pi.LLM("fake", api_base=model.api_base, cache=False)
        first, second = (pi.iter_personas(pairs(20), llm, select=judge) for llm in (poor, rich))
        assert len(list(first)) == 20  # 40 personas in both orders, for 1.01 USD each
        in_the_budget = judge.usage.cost
        assert in_the_budget is not None
        assert in_the_budget + (poor.usage.cost or 0.0) <= 11
        assert poor.account.bounds.budget is not None
        assert poor.account.bounds.budget.spent <= 11
        assert len(list(second)) == 20  # the other run has no budget
        assert poor.account.bounds.budget.spent <= 11
        assert judge.usage.calls == server.calls


def test_calls_in_flight_are_free_at_a_wrong_key_only_where_no_model_ever_ran() -> None:
    """A firewall's 403, or a key that is revoked, says nothing of what runs."""
    asked: Counter[str] = Counter()

    def reply(body: Any) -> Fault | Reply:
        text = body["messages"][-1]["content"]
        asked[text] += 1
        if text == "0":
            return Reply("hello and", "length", completion_tokens=500)
        # The refusal comes last: by then the others are answered, or in flight.
        return Fault.hang() if text in "123" else Fault("hang", 401, seconds=0.1, body=b"no")

    with FakeLLM(reply) as server:
        llm = fake(server, budget=100.0, max_attempts=1, timeout=2, max_concurrency=8)
        with pytest.raises(AuthenticationError):
            ask(llm, 5)
    assert llm.usage.cost is not None
    assert llm.usage.cost > 3 * 5 + 5  # those that hang at their most


@pytest.mark.parametrize(
    "thinking",
    [
        {"extra_body": {"thinking_budget": 4000}},
        {"extra_body": {"enable_thinking": True}},
        {"reasoning_effort": "high"},
        {"extra_body": {"n_predict": 4400}},
        {"extra_body": {"n_predict": -1}},
        {"extra_body": {"generationConfig": {"maxOutputTokens": "4400"}}},
        {"extra_body": {"stages": [{"limit_of_a_reply": 4400}]}},
    ],
)
def test_thinking_that_the_request_asks_for_is_reserved(thinking: dict[str, Any]) -> None:
    """Providers need not count it in max_tokens: here it takes 4,000 tokens, 40 USD."""
    with FakeLLM(Reply("fine", prompt_tokens=5, completion_tokens=4400)) as server:
        llm = fake(server, budget=100.0, max_concurrency=16, **thinking)
        replies = ask(llm, 30)
        assert 1 <= server.calls <= 2
    assert "budget" in str(replies[-1].error)
    assert llm.usage.cost is not None
    assert llm.usage.cost <= 100


@pytest.mark.parametrize(
    ("endpoint", "effort", "is_known"),
    [
        ("https://api.openai.com/v1", "high", True),
        ("https://mine.openai.azure.com/openai/v1", "high", True),
        ("http://127.0.0.1:9/v1", "high", False),
        ("http://127.0.0.1:9/v1", "none", True),
    ],
)
def test_openai_counts_thinking_in_the_limit_of_a_reply(
    endpoint: str, effort: str, is_known: bool
) -> None:
    """So a batch of its reasoning models keeps a budget, without a single call before it."""
    llm = pi.LLM("gpt-5", api_base=endpoint, api_key="none", reasoning_effort=effort, cache=False)
    assert llm.most_is_known is is_known


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("model", "is_known"), [("gpt-5", True), ("anthropic/claude-sonnet-4-5", False)]
)
def test_so_it_does_through_litellm(model: str, is_known: bool) -> None:
    llm = pi.LLM(model, api_key="none", reasoning_effort="high", cache=False)
    assert llm.most_is_known is is_known


def test_later_runs_and_batches_know_how_much_a_model_thinks() -> None:
    with FakeLLM(Reply("fine", prompt_tokens=5, completion_tokens=4400)) as server:
        llm = fake(server, budget=100.0, extra_body={"enable_thinking": True}, max_concurrency=16)
        ask(llm, 1)
        before = server.calls
        assert llm.most_tokens() >= 4400
        ask(llm, 30)
        assert server.calls - before <= 1
        assert llm.account.bounds.budget is not None
        assert llm.account.bounds.budget.spent <= 100


def test_so_does_a_judge_that_thinks_and_is_paid_by_another() -> None:
    with FakeLLM(Reply("fine", prompt_tokens=5, completion_tokens=4400)) as server:
        payer = fake(server, budget=100.0)
        judge = fake(server, extra_body={"enable_thinking": True}, max_concurrency=16)
        asked = [(None, [Request([pi.Message(role="user", content=str(n))])]) for n in range(30)]
        list(judge.run(asked, within=payer.account.bounds))
        assert payer.account.bounds.budget is not None
        assert payer.account.bounds.budget.spent <= 100


def size(fields: dict[str, Any]) -> ReplySize:
    return ReplySize.of(fields, max_tokens=100)


def test_fields_that_ask_for_longer_replies_or_for_several_count() -> None:
    assert size({"google": {"thinking_config": {"thinking_budget": 0}}}).more == 0
    assert size({"reasoning": {"max_tokens": 300}}) == ReplySize(300, 1, is_told=False)
    assert size({"n": 3, "best_of": 2, "options": {"num_predict": 9}}).most(100) == 6 * 109
    assert size({"enable_thinking": False, "top_k": 20, "stop_token_ids": [1]}) == ReplySize()
    assert size({"candidateCount": 3}).most(100) == 300
    assert size({"thinking": {"budget_tokens": 10**400}}).more == 2**53


@pytest.mark.parametrize(
    "fields",
    [
        {"n_predict": 2000},
        {"n_predict": -1},
        {"max_length": 2000},
        {"Max-New-Tokens": 2000},
        {"generationConfig": {"maxOutputTokens": 2000, "thinkingConfig": {"thinkingBudget": 9}}},
        {"google": {"thinkingConfig": {"thinkingLevel": "high"}}},
        {"a field of tomorrow": "2000"},
        {"stages": [{"length": 50}, {"length": 101}]},
        {"prompt_mode": "reasoning"},
    ],
)
def test_a_field_by_any_name_that_may_ask_for_a_longer_reply_is_not_told(
    fields: dict[str, Any],
) -> None:
    assert not size(fields).is_told


def test_fields_that_lengthen_no_reply_keep_its_size_told() -> None:
    plain: dict[str, Any] = {
        "top_k": -1,
        "topK": 200,
        "seed": 12345,
        "stop_token_ids": [151645, 151643],
        "logit_bias": {"50256": -100},
        "chat_template_kwargs": {"enable_thinking": False},
        "options": {"num_ctx": 32768, "seed": 7, "num_keep": -1, "top_k": 400},
        "metadata": {"run": 20260101},
        "keep_alive": -1,
        "priority": -3,
        "truncate_prompt_tokens": 4096,
        "json_schema": {"maxLength": 4000},
        "reasoning": None,
        "a field of tomorrow": 50,
        "another": {"temperature_last": True, "mode": "fast"},
    }
    assert size(plain) == ReplySize()


def test_labels_and_lengths_of_the_prompt_ask_for_no_longer_reply() -> None:
    labels = {"n": 300, "budget": 100_000, "thinking": "no"}
    assert size({"metadata": labels, "google": {"labels": labels}}) == ReplySize()
    assert size({"max_input_tokens": 9, "options": {"max_prompt_tokens": 9}}) == ReplySize()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_in_this_process_has_the_same_budget(copied: Any) -> None:
    llm = pi.LLM("fake", api_base="http://127.0.0.1:9", prices=PRICES, budget=5.0)
    assert copied(llm).account is llm.account
    assert copied(pi.Verifier(llm))._judge.llm.account.bounds.budget is llm.account.bounds.budget


def test_models_that_always_search_cost_their_searches() -> None:
    for model in ("gpt-4o-search-preview", "openai/gpt-4o-mini-search-preview"):
        price = find_price(model, None)
        assert price is not None
        assert price.call >= 0.02
    assert find_price("gemini/deep-research-pro-preview-12-2025", None) is None


@pytest.mark.parametrize("told", [2000, 2**31])
def test_a_reply_that_tells_many_tokens_holds_up_no_other(told: int) -> None:
    """2,500 tokens a minute: were each later request taken for as many, it would wait a minute or more."""
    counts = iter([told, *[5] * 9])
    with FakeLLM(
        lambda _: Reply("fine", prompt_tokens=3, completion_tokens=next(counts))
    ) as server:
        llm = pi.LLM(
            "fake",
            api_base=server.api_base,
            cache=False,
            max_tokens=10,
            tpm=2500.0,
            max_concurrency=1,
            timeout=5,
        )
        ended = threading.Event()

        def run() -> None:
            ask(llm, 4)
            ended.set()

        threading.Thread(target=run, daemon=True).start()
        assert ended.wait(5)
        assert server.calls == 4


def test_after_replies_that_were_too_long_each_run_begins_with_one_call_alone() -> None:
    with FakeLLM(Reply("fine", prompt_tokens=5, completion_tokens=4400)) as server:
        llm = fake(server, budget=200.0, max_concurrency=16)
        ask(llm, 1)
        for _ in range(3):
            ask(llm, 30)
        assert llm.account.bounds.budget is not None
        assert (
            llm.account.bounds.budget.spent < 200 + 45
        )  # the one call of the last run that makes any
        assert server.calls == 5


def test_so_does_a_judge_that_another_model_pays() -> None:
    with FakeLLM(Reply("fine", prompt_tokens=5, completion_tokens=4400)) as server:
        payer, judge = fake(server, budget=200.0), fake(server, max_concurrency=16)
        for count in (1, 30, 30):
            asked = [
                (None, [Request([pi.Message(role="user", content=str(n))])]) for n in range(count)
            ]
            list(judge.run(asked, within=payer.account.bounds))
        assert payer.account.bounds.budget is not None
        assert payer.account.bounds.budget.spent < 200 + 45


def test_what_a_reply_took_beyond_what_was_asked_is_reserved_in_its_run_alone() -> None:
    counts = iter([4000, *[5] * 9])  # 40 USD
    with FakeLLM(
        lambda _: Reply("fine", prompt_tokens=3, completion_tokens=next(counts))
    ) as server:
        llm = fake(server, budget=60.0, max_concurrency=1)
        assert [reply.error is None for reply in ask(llm, 2)] == [True, False]
        assert ask(llm, 1)[0].error is None
        assert server.calls == 2


@each_way
def test_prompts_that_an_endpoint_makes_longer_are_reserved_so_from_then_on() -> None:
    """A gateway's own system message, or what it finds for a question: here 20,000 tokens, 200 USD."""
    with FakeLLM(Reply("fine", prompt_tokens=20_000, completion_tokens=5)) as server:
        llm = fake(server, budget=1000.0, max_concurrency=2)
        for runs in (1, 2, 3):
            replies = ask(llm, 40)
            assert "budget" in str(replies[-1].error)
            assert llm.account.bounds.budget is not None
            # What was in flight when it was first told, and one call at the beginning of a later run.
            assert llm.account.bounds.budget.spent < 1000 + 200 * runs
    assert 4 <= server.calls <= 6


def test_a_call_that_tells_nothing_counts_with_what_the_endpoint_adds_to_prompts() -> None:
    said: dict[str, Any] = {"choices": [SAID]}
    told = {**said, "usage": {"prompt_tokens": 20_000, "completion_tokens": 5}}
    with FakeLLM(faults=[Fault.response(told), Fault.response(said)]) as server:
        llm = fake(server, budget=1000.0, max_concurrency=1)
        ask(llm, 2)
    assert llm.usage.cost is not None
    assert llm.usage.cost > 2 * 200


def test_a_count_that_no_reply_can_have_is_not_reserved_for_others() -> None:
    with FakeLLM(Reply("fine", prompt_tokens=2**31, completion_tokens=2**31)) as server:
        llm = fake(server)
        ask(llm, 1)
        assert 0 < llm.account.beyond < 2**20
        assert 0 < llm.account.added < 2**20


def test_a_short_request_that_was_not_sent_does_not_prove_an_endpoint_alive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While it waited, another reply took more than was reserved for it."""
    llm = pi.LLM(
        "fake",
        api_base="http://127.0.0.1:9",
        prices=PRICES,
        budget=1e6,
        cache=False,
        max_attempts=1,
        max_concurrency=1,
    )
    complete = llm.transport.complete

    async def later(body: bytes, *others: Any) -> Any:
        if json.loads(body)["messages"][-1]["content"] == "?" and not llm.account.beyond:
            llm.account.beyond = 1000
        return await complete(body, *others)

    monkeypatch.setattr(llm.transport, "complete", later)
    assert "not sent, since 20 requests" in str(ask(llm, 30)[-1].error)


def test_a_short_request_for_which_too_little_is_left_is_sent_no_more() -> None:
    """A library writes it larger than it is: each try forgot what the one before had learned."""

    def reply(body: Any) -> Fault | Reply:
        is_first = body["messages"][-1]["content"] == "0"
        fine = Reply("fine", prompt_tokens=1, completion_tokens=1)
        return fine if is_first else Fault("status", 403)

    with FakeLLM(reply) as server:
        size = len(fake(server).job(Request([pi.Message(role="user", content="?")])).body)
        left = (2 + 2 * (size + 500) + 300) * PRICES[0] / 1e6  # the refusal holds a text
        llm = fake(server, max_attempts=1, max_concurrency=1, budget=left)
        complete = llm.transport.complete
        tried = 0

        async def larger(body: bytes, timeout: float, asked: Any, sending: Any) -> Any:
            nonlocal tried
            if json.loads(body)["messages"][-1]["content"] != "?":
                return await complete(body, timeout, asked, sending)
            tried += 1
            assert tried < 9
            sending.is_written(len(body) + 400, has_limit=True)
            raise AssertionError("it was sent")

        llm.transport.complete = larger  # type: ignore[method-assign]
        first, second = ask(llm, 2)
    assert (first.error, tried) == (None, 1)
    assert second.error is not None


@pytest.mark.heavy
def test_without_a_budget_thinking_is_asked_for_at_once() -> None:
    """The first request need not show how long replies become: if it hangs, the others do not wait for it."""
    came: list[float] = []

    def reply(body: Any) -> Fault | Reply:
        came.append(time.monotonic())
        is_first = body["messages"][-1]["content"] == "0"
        return Fault("hang", seconds=5.0) if is_first else Reply("fine")

    with FakeLLM(reply) as server:
        options: dict[str, Any] = {"timeout": 4.0, "max_attempts": 1, "max_concurrency": 8}
        replies = ask(fake(server, reasoning_effort="high", **options), 8)
    assert [reply.error is None for reply in replies] == [False] + [True] * 7
    assert came[-1] - came[0] < 4
