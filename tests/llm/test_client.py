"""LLM: requests, retries, re-asks, keys. The model is a real server on loopback."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import logging
import pickle
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel, Field, field_validator

import personainfer as pi
from personainfer.api_keys import Stored, as_stored, environment_key
from personainfer.exceptions import (
    CacheError,
    InvalidArgumentError,
    ModelError,
    PersonaInferError,
    RateLimitError,
    ReplyError,
    RequestRejectedError,
    TransportError,
)
from personainfer.llm.client import make_beside
from personainfer.llm.dialect import Dialect
from personainfer.llm.requests import Request
from personainfer.records import Message
from personainfer.testing import FakeLLM, Fault, Reply

from ..builders import pairs


class City(BaseModel):
    name: str
    people: int


MESSAGES = [{"role": "user", "content": "Name a city."}]


# litellm takes seconds to import.
by_litellm_too = pytest.mark.parametrize(
    "name", ["fake", pytest.param("litellm/openai/fake", marks=pytest.mark.heavy)]
)


def fake(server: FakeLLM, **options: Any) -> pi.LLM:
    return pi.LLM("fake", api_base=server.api_base, **options)


def test_options_of_a_file_stay_marked_as_such() -> None:
    """Without the mark, a stranger's table would decide what is paid."""
    told = as_stored(
        {"max_tokens": 900, "seed": 1, "reasoning_effort": "low", "extra_body": {"top_k": 2}}
    )
    llm = pi.LLM("fake", api_base="http://127.0.0.1:9/v1", **told)
    for settings in (llm.options, llm.settings, pickle.loads(pickle.dumps(llm)).options):
        assert {name: settings[name] for name in told} == told
        assert all(isinstance(settings[name], Stored) for name in told)


def test_ask_gives_a_record_or_text(llm: FakeLLM) -> None:
    model = fake(llm)
    reply = model.ask(MESSAGES, City)
    assert isinstance(reply.value, City)
    assert not reply.cached
    assert model.ask(MESSAGES, City).cached
    plain = model.ask([pi.Message(role="user", content="Say hello.")])
    assert plain.value == plain.text
    assert llm.calls == 2


def test_ask_many_keeps_the_order_and_the_errors() -> None:
    def reply(body: dict[str, Any]) -> Any:
        number = int(body["messages"][-1]["content"])
        return Fault.status(400) if number == 3 else f"reply {number}"

    with FakeLLM(reply=reply) as server:
        requests = [([{"role": "user", "content": str(n)}],) for n in range(6)]
        replies = fake(server).ask_many(requests)
    assert [r.value for r in replies] == [f"reply {n}" if n != 3 else None for n in range(6)]
    assert isinstance(replies[3].error, RequestRejectedError)


def test_the_shared_prefix_comes_first_and_equals_writing_it_out(llm: FakeLLM) -> None:
    system = (pi.Message(role="system", content="Be brief."),)
    user = (pi.Message(role="user", content="Name a city."),)
    model = fake(llm)
    model.ask_many([pi.Request(user, City, prefix=system)])
    model.ask_many([pi.Request((*system, *user), City)])
    assert llm.calls == 1
    assert [m["role"] for m in llm.requests[0]["messages"]] == ["system", "user"]


def test_samples_of_one_request_are_separate_calls(llm: FakeLLM) -> None:
    message = (pi.Message(role="user", content="Name a city."),)
    model = fake(llm, temperature=1.0, seed=5)
    model.ask_many([pi.Request(message, City, sample=n) for n in range(3)])
    assert sorted(body["seed"] for body in llm.requests) == [5, 6, 7]


def test_a_reply_that_breaks_the_schema_is_asked_again_with_the_reason() -> None:
    replies = iter(['{"name": "Oslo"}', '{"name": "Oslo", "people": 700000}'])
    with FakeLLM(reply=lambda body: next(replies)) as server:
        model = fake(server)
        assert model.ask(MESSAGES, City).value == City(name="Oslo", people=700000)
        again = server.requests[1]["messages"]
    assert again[1] == {"role": "assistant", "content": '{"name": "Oslo"}'}
    assert "people" in again[2]["content"]
    assert model.usage.reasks == 1


def _too_small(city: City) -> str | None:
    return f"{city.name} is too small." if city.people < 100 else None


@pytest.mark.parametrize(
    ("second", "people"),
    [
        ('{"name": "Oslo", "people": 700000}', 700000),
        ('{"name": "Bo", "people": 2}', 1),  # no better: the first one stands
        ("no idea", 1),
    ],
)
def test_a_doubtful_reply_is_asked_again_once(second: str, people: int) -> None:
    replies = iter(['{"name": "Å", "people": 1}', second])
    request = pi.Request((pi.Message.model_validate(MESSAGES[0]),), City, doubt=_too_small)
    with FakeLLM(reply=lambda body: next(replies)) as server:
        model = fake(server)
        (reply,) = model.ask_many([request])
        (again,) = fake(server).ask_many([request])  # the one that stands is cached
        (asked,), (told,) = (body["messages"] for body in server.requests)
    assert (reply.error, reply.value.people, again.value.people) == (None, people, people)
    assert told == {"role": "user", "content": f"{asked['content']}\nÅ is too small."}
    assert (model.usage.calls, model.usage.reasks) == (2, 1)


def test_a_doubtful_reply_stands_if_no_attempt_is_left() -> None:
    request = pi.Request((pi.Message.model_validate(MESSAGES[0]),), City, doubt=_too_small)
    with FakeLLM({"name": "Å", "people": 1}) as server:
        (reply,) = fake(server, max_attempts=1).ask_many([request])
        assert (server.calls, reply.value.people) == (1, 1)


def test_a_doubtful_reply_stands_if_the_endpoint_fails_afterwards() -> None:
    request = pi.Request((pi.Message.model_validate(MESSAGES[0]),), City, doubt=_too_small)
    replies: Iterator[Any] = iter(['{"name": "Å", "people": 1}', Fault.status(400)])
    with FakeLLM(reply=lambda body: next(replies)) as server:
        (reply,) = fake(server).ask_many([request])
    assert (reply.error, reply.value.people) == (None, 1)


@pytest.mark.heavy
def test_a_doubtful_reply_stands_if_the_endpoint_is_full_afterwards() -> None:
    """It is paid: the first request is not sent again."""
    calls: Counter[tuple[str, bool]] = Counter()

    def reply(body: dict[str, Any]) -> Any:
        said = body["messages"][-1]["content"]
        row, _, again = said.partition("\n")
        calls[row, bool(again)] += 1
        if again and calls[row, True] <= 3:
            return Fault.rate_limit(0)
        return '{"name": "Å", "people": 1}'

    requests = [
        pi.Request((pi.Message(role="user", content=str(n)),), City, doubt=_too_small)
        for n in range(5)
    ]
    with FakeLLM(reply=reply) as server:
        replies = fake(server, cache=False, max_concurrency=2).ask_many(requests)
    assert [reply.error for reply in replies] == [None] * 5
    assert {calls[str(n), False] for n in range(5)} == {1}


def test_the_final_reply_is_cached_under_the_first_request() -> None:
    replies = iter(["nothing", '{"name": "Oslo", "people": 1}'])
    with FakeLLM(reply=lambda body: next(replies)) as server:
        fake(server).ask(MESSAGES, City)
        assert fake(server).ask(MESSAGES, City).cached
        assert server.calls == 2


@pytest.mark.heavy
@pytest.mark.parametrize("schema", [City, None])
@pytest.mark.parametrize(
    "row", ["", "[1", "null", "[" * 100_000, '{"text": 5}', '{"text": {"a": 1}}', '{"txt": ""}']
)
def test_a_row_of_the_cache_that_is_no_reply_is_asked_again(
    llm: FakeLLM, schema: type[City] | None, row: str
) -> None:
    before = fake(llm).ask(MESSAGES, schema)
    with sqlite3.connect(pi.cache_info().directory / "cache.db") as database:
        database.execute("UPDATE Cache SET value = ?", (row,))
    database.close()
    assert fake(llm).ask(MESSAGES, schema) == before
    assert fake(llm).ask(MESSAGES, schema).cached
    assert llm.calls == 2


def test_json_inside_a_fence_is_read() -> None:
    text = 'Sure:\n```json\n{"name": "Oslo", "people": 2}\n```'
    with FakeLLM(reply=text) as server:
        assert fake(server).ask(MESSAGES, City).value.people == 2
        assert server.calls == 1


RECOVERABLE: dict[str, Callable[[], Fault]] = {
    "429 with Retry-After": lambda: Fault.rate_limit(0),
    "429": lambda: Fault.rate_limit(),
    "500": lambda: Fault.status(500),
    "503": lambda: Fault.status(503),
    "503 with Retry-After": lambda: Fault.status(503, headers={"Retry-After": "0"}),
    "reset": lambda: Fault.reset(),
    "reset in the body": lambda: Fault.reset_mid_body(),
    "hang": lambda: Fault.hang(),
    "empty body": lambda: Fault.empty(),
    "invalid JSON": lambda: Fault.invalid_json(),
    "schema": lambda: Fault.bad_schema(),
    "refusal": lambda: Fault.refusal("I cannot help with that."),
    "length": lambda: Fault.truncated(),
    "not UTF-8": lambda: Fault.not_utf8(),
    "10 MB": lambda: Fault.huge(),
}


@pytest.mark.parametrize("name", RECOVERABLE)
def test_one_fault_is_recovered_from(name: str) -> None:
    with FakeLLM(faults=[RECOVERABLE[name]()]) as server:
        reply = fake(server, timeout=0.5 if name == "hang" else 20.0).ask(MESSAGES, City)
        assert isinstance(reply.value, City)
        assert server.calls == 2


@pytest.mark.parametrize("name", RECOVERABLE)
def test_a_fault_that_stays_is_a_clear_error_and_is_not_cached(name: str) -> None:
    with FakeLLM(reply=RECOVERABLE[name]()) as server:
        model = fake(server, timeout=0.3, max_attempts=1)
        with pytest.raises(ModelError) as caught:
            model.ask(MESSAGES, City)
        assert len(str(caught.value)) > 20
        assert isinstance(caught.value, RateLimitError | TransportError | ReplyError)
        assert pi.cache_info().replies == 0


def test_a_constant_429_ends_and_fails_the_rest_without_calls() -> None:
    with FakeLLM(reply=Fault.rate_limit(0)) as server:
        table = pi.infer_personas(
            pairs(200), "fake", api_base=server.api_base, max_attempts=1, max_concurrency=8
        )
        assert server.calls < 100
    assert len(table.errors) == 200
    assert "fewer requests" in str(table[199].error)


def test_an_endpoint_that_asks_for_an_hour_is_given_up() -> None:
    with (
        FakeLLM(reply=Fault.rate_limit(3600)) as server,
        pytest.raises(RateLimitError, match="3600"),
    ):
        fake(server).ask(MESSAGES)


def test_after_giving_up_a_new_call_tries_again() -> None:
    faults = [Fault.rate_limit(3600)] * 2  # of the request, and of the short one that tells why
    with FakeLLM(faults=faults) as server:
        model = fake(server)
        with pytest.raises(RateLimitError):
            model.ask(MESSAGES)
        assert model.ask(MESSAGES).text


def test_no_connection_is_a_clear_error() -> None:
    with FakeLLM() as server:
        base = server.api_base
    with pytest.raises(TransportError, match="connection"):
        pi.LLM("fake", api_base=base, max_attempts=1).ask(MESSAGES)


@pytest.mark.heavy
def test_concurrency_stays_within_its_bound() -> None:
    with FakeLLM(latency=0.1) as server:
        pi.infer_personas(pairs(60), "fake", api_base=server.api_base, max_concurrency=5)
        assert server.in_flight_peak == 5


def test_budget_stops_before_it_is_passed_and_keeps_what_is_paid() -> None:
    with FakeLLM() as server:
        options: dict[str, Any] = {"api_base": server.api_base, "prices": (1.0, 2.0)}
        usage = pi.infer_personas(pairs(1), "fake", **options).usage
        assert usage.cost is not None
        budget = 20 * usage.cost
        table = pi.infer_personas(pairs(100), "fake", budget=budget, max_concurrency=4, **options)
        done = [row for row in table if row.error is None]
        assert table.usage.cost is not None
        assert table.usage.cost <= budget
        assert 5 < len(done) < 25
        assert "budget" in str(table[99].error)
        more = pi.infer_personas(pairs(100), "fake", **options)
        assert more.usage.cached == len(done)
        assert not more.errors


@pytest.mark.heavy
def test_no_more_than_rpm_are_sent_in_the_minute_after_a_pause() -> None:
    """Those that waited for the end of the pause count from then on."""
    arrived: list[float] = []

    def reply(_: object) -> Fault | Reply:
        arrived.append(time.monotonic())
        return Fault.rate_limit(0.9) if len(arrived) == 1 else Reply("fine")

    with FakeLLM(reply) as server:
        model = fake(server, cache=False, rpm=8, max_concurrency=8)
        assert model.account.bounds.requests is not None
        model.account.bounds.requests._seconds = 1.0
        model.ask_many([([{"role": "user", "content": str(n)}],) for n in range(24)])
    assert len(arrived) == 25
    # Half of a window: a busy machine may note an arrival late.
    assert max(sum(one <= at < one + 0.5 for at in arrived) for one in arrived) <= 8


def test_no_minute_holds_more_tokens_than_the_limit_while_no_reply_has_told_how_many() -> None:
    taken: list[int] = []

    def reply(body: dict[str, Any]) -> Reply:
        prompt = len(json.dumps(body["messages"], ensure_ascii=False)) * 9 // 10  # as digits take
        taken.append(prompt + body["max_tokens"])
        return Reply("fine", prompt_tokens=prompt, completion_tokens=body["max_tokens"])

    with FakeLLM(reply) as server:
        model = fake(server, cache=False, tpm=10_000, max_tokens=500)
        asked = (Message(role="user", content=f"{'1234567890' * 40}{n}") for n in range(100))
        run = model.run((None, [Request((one,))]) for one in asked)
        threading.Timer(0.4, run.cancel).start()
        with suppress(asyncio.CancelledError):
            for _ in run:
                pass
    assert 6000 < sum(taken) <= 10_000


def test_no_minute_holds_more_tokens_where_replies_are_longer_than_they_may_be() -> None:
    with FakeLLM(lambda _: Reply("fine", prompt_tokens=10, completion_tokens=300)) as server:
        model = fake(server, cache=False, tpm=2000, max_tokens=10)
        for said in ("first", "other"):  # a single one may be odd
            model.ask([{"role": "user", "content": said}])
        asked = (Message(role="user", content=f"{n:05}") for n in range(100))
        run = model.run((None, [Request((one,))]) for one in asked)
        threading.Timer(0.3, run.cancel).start()
        with suppress(asyncio.CancelledError):
            for _ in run:
                pass
    assert server.calls * 310 <= 2000


def test_tokens_that_no_reply_tells_stay_in_the_window_as_the_most_that_is_possible() -> None:
    said = {"choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}]}
    with FakeLLM(faults=[Fault.response(said)]) as server:
        model = fake(server, cache=False, tpm=10_000, max_tokens=400)
        assert model.ask([{"role": "user", "content": "?"}]).text == "hello"
    assert model.account.bounds.tokens is not None
    assert 400 < model.account.bounds.tokens._total < 800


def test_the_budget_holds_for_scripts_that_take_a_token_a_byte() -> None:
    def reply(body: dict[str, Any]) -> Reply:
        said = body["messages"][0]["content"]
        return Reply("yes", prompt_tokens=len(said.encode()), completion_tokens=1)

    with FakeLLM(reply=reply) as server:
        model = fake(server, prices=(1.0, 0.0), budget=0.008, max_concurrency=1)
        messages = [{"role": "user", "content": "\u1218\u120d" * 500}]  # Amharic: 3,000 bytes
        replies = model.ask_many(
            [([*messages, {"role": "user", "content": str(n)}],) for n in range(5)]
        )
    assert (model.usage.cost or 0) <= 0.008
    assert [reply.error is None for reply in replies] == [True, True, False, False, False]


def test_usage_counts_retries_and_reasks_with_their_tokens() -> None:
    with FakeLLM(faults=[Fault.status(500), Fault.bad_schema()]) as server:
        model = fake(server, prices=(1.0, 1.0))
        model.ask(MESSAGES, City)
        one = fake(server, prices=(1.0, 1.0), cache=False)
        one.ask(MESSAGES, City)
    assert (model.usage.calls, model.usage.retries, model.usage.reasks) == (3, 1, 1)
    assert model.usage.prompt_tokens > 2 * one.usage.prompt_tokens
    assert (model.usage.cost or 0) > 2 * (one.usage.cost or 0)


@by_litellm_too
def test_the_key_is_in_no_file_log_repr_or_error(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "sk-secret0123456789abcdef"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    said: list[str] = []
    with caplog.at_level(logging.DEBUG), FakeLLM(api_key="another") as server:
        given: list[dict[str, Any]] = [{"api_key": key}, {}]
        for options in given:
            model = pi.LLM(name, api_base=server.api_base, max_attempts=1, **options)
            said += [repr(model), str(vars(model))] if "api_key" not in options else [repr(model)]
            with pytest.raises(PersonaInferError) as caught:
                model.ask(MESSAGES)
            said += [str(caught.value), repr(caught.value), repr(caught.value.__cause__)]
    with FakeLLM(reply=Fault.status(500, message=f"bad key {key}")) as server:
        model = pi.LLM(name, api_base=server.api_base, api_key=key, max_attempts=1)
        with pytest.raises(TransportError) as broken:
            model.ask(MESSAGES)
        said += [str(broken.value), repr(broken.value.__context__)]
    said += [record.getMessage() for record in caplog.records]
    for file in tmp_path.rglob("*"):
        if file.is_file():
            assert key.encode() not in file.read_bytes()
    assert not [text for text in said if "secret0123456789" in text]


@by_litellm_too
@pytest.mark.parametrize("fault", [Fault.status(401), Fault.status(500), Fault.reset()])
def test_no_secret_is_among_the_variables_that_a_traceback_shows(name: str, fault: Fault) -> None:
    """Programs that report errors show the `repr` of each variable."""
    with FakeLLM(faults=[fault] * 3) as server:
        options: dict[str, Any] = {
            "api_base": f"{server.api_base}?token=secret-token",
            "api_key": "secret-key",
            "extra_headers": {"X-Tenant": "secret-header"},
        }
        model = pi.LLM(name, max_attempts=1, cache=False, **options)
        del options
        try:
            model.ask(MESSAGES)
        except PersonaInferError as error:
            seen = traceback.TracebackException.from_exception(error, capture_locals=True)
    frames = [frame for frame in seen.stack if "tests" not in frame.filename]
    assert len(frames) > 3
    shown = " ".join(str(frame.locals) for frame in frames)
    assert "secret-" not in " ".join([shown, str(vars(model)), str(vars(model.transport))])


@by_litellm_too
def test_logs_hold_no_text_and_no_secret(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """At INFO of all loggers, and at DEBUG of this library's. Others may log what they send at DEBUG."""
    with FakeLLM(faults=[Fault.status(500), Fault.bad_schema()]) as server:
        base, headers = server.api_base, {"X-Tenant": "secret-header"}
        if name == "fake":
            base += "?token=secret-token"
        secrets: dict[str, Any] = {"api_key": "secret-key", "extra_headers": headers}
        model = pi.LLM(name, api_base=base, max_attempts=3, **secrets)
        with (
            caplog.at_level(logging.INFO),
            caplog.at_level(logging.DEBUG, logger="personainfer"),
        ):
            pi.infer_personas([("A private question?", "a", "b")], model)
    said = [f"{record.name}: {record.getMessage()}" for record in caplog.records]
    assert any(line.startswith("personainfer:") for line in said)
    assert not [line for line in said if "secret" in line or "private" in line]


@by_litellm_too
def test_logs_hold_no_reply_that_is_asked_again_and_no_refusal(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    faults = [Fault.status(500, message="a private refusal")]
    with FakeLLM("a private reply", faults=faults) as server, caplog.at_level(logging.INFO):
        model = pi.LLM(name, api_base=server.api_base, api_key="k", max_attempts=3, cache=False)
        with pytest.raises(ReplyError):
            model.ask([{"role": "user", "content": "A question?"}], City)
        assert server.calls == 3
    assert not [one for one in caplog.records if "private" in one.getMessage()]


def test_an_llm_pickles_without_its_connections(llm: FakeLLM) -> None:
    model = fake(llm, seed=4)
    model.ask(MESSAGES, City)
    copy = pickle.loads(pickle.dumps(model))
    assert copy.ask(MESSAGES, City).cached
    assert copy.usage.cached == 1


def test_many_threads_share_one_llm(llm: FakeLLM) -> None:
    model = fake(llm)
    tables: list[pi.PersonaTable] = []
    threads = [
        threading.Thread(target=lambda n=n: tables.append(pi.infer_personas(pairs(20 + n), model)))
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(len(table) for table in tables) == [20, 21, 22, 23]
    assert not [row for table in tables for row in table.errors]


@pytest.mark.heavy
def test_an_abandoned_stream_leaves_nothing_running() -> None:
    with FakeLLM(latency=0.5) as server:
        stream = pi.iter_personas(pairs(1000), "fake", api_base=server.api_base, max_concurrency=4)
        next(stream)
        del stream
        gc.collect()
        assert server.calls < 20


def test_the_first_request_can_be_looked_at(llm: FakeLLM) -> None:
    request = pi.Request((pi.Message(role="user", content="é\u2028"),), City)
    body = json.loads(fake(llm).job(request).body)
    assert body["messages"] == [{"role": "user", "content": "é\u2028"}]
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["name", "people"]
    assert llm.calls == 0


@pytest.mark.parametrize("there", ["", "another"])
def test_the_environment_names_the_model_where_an_llm_is_made(
    llm: FakeLLM, monkeypatch: pytest.MonkeyPatch, there: str
) -> None:
    monkeypatch.setenv("PERSONAINFER_MODEL", "fake")
    made = pi.LLM(api_base=llm.api_base)
    monkeypatch.setenv("PERSONAINFER_MODEL", there)
    assert made.model == pickle.loads(pickle.dumps(made)).model == "fake"


def test_a_path_is_that_of_the_folder_where_an_object_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "m.gguf").write_bytes(b"GGUF" + name.encode() * 1000)
    monkeypatch.chdir(tmp_path / "a")
    llm = pi.LLM("local:./m.gguf", cache_dir="replies")
    made = [pickle.dumps(llm), pickle.dumps(pi.AddPersonas("local:m.gguf", cache_dir="replies"))]
    scorer = pi.Likelihood("local:m.gguf")
    monkeypatch.chdir(tmp_path / "b")
    there, added = map(pickle.loads, made)
    for one in (there, added.llm):
        assert one.reached == llm.reached
        assert one.options["cache_dir"] == tmp_path / "a" / "replies"
        assert one.cache.directory == tmp_path / "a" / "replies"
    assert there.model == llm.model == "local:./m.gguf"
    assert pickle.loads(pickle.dumps(scorer)).model == f"local:{tmp_path / 'a' / 'm.gguf'}"


@pytest.mark.parametrize(("written", "same"), [(0, 0.0), (-0.0, 0.0), (1, 1.0)])
def test_a_temperature_is_one_however_it_is_written(
    llm: FakeLLM, written: float, same: float
) -> None:
    for temperature in (same, written):
        fake(llm, temperature=temperature).ask(MESSAGES)
    assert llm.calls == 1


@pytest.mark.parametrize(
    "requests",
    [
        ["just text"],
        [([],)],
        [(MESSAGES, City, 3)],
        [([{"role": "user"}],)],
        [([{"role": "user", "content": 5}],)],
        [(["just text"],)],
        [(5,)],
        [(MESSAGES, int)],
        [(MESSAGES, "City")],
        [pi.Request(MESSAGES)],  # type: ignore[arg-type]
    ],
)
def test_bad_requests_are_refused(llm: FakeLLM, requests: list[Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        fake(llm).ask_many(requests)
    assert llm.calls == 0


def test_a_reply_counts_only_after_it_is_on_disk(tmp_path: Path) -> None:
    """When a row comes out, another process can read its reply from the cache."""
    with FakeLLM() as server:
        options: dict[str, Any] = {"api_base": server.api_base, "cache_dir": tmp_path / "c"}
        for seen, row in enumerate(pi.iter_personas(pairs(20), "fake", **options), 1):
            assert row.error is None
            assert pi.cache_info(tmp_path / "c").replies >= seen


def test_logprobs_free_replies_have_no_surprises() -> None:
    reply = Reply(json.dumps({"name": "Rome", "people": 3}), prompt_tokens=11, completion_tokens=7)
    with FakeLLM(reply=lambda body: reply) as server:
        model = fake(server)
        model.ask(MESSAGES, City)
        assert (model.usage.prompt_tokens, model.usage.completion_tokens) == (11, 7)


def test_an_endpoint_that_is_gone_is_noticed(tmp_path: Path) -> None:
    with FakeLLM(faults=[Fault.reset()], fault_rate=1.0) as server:
        table = pi.infer_personas(
            pairs(300), "fake", api_base=server.api_base, max_attempts=1, max_concurrency=8
        )
        assert server.calls < 60
    assert len(table.errors) == 300
    assert "in a row failed" in str(table[299].error)


def test_threads_that_share_a_model_share_its_usage() -> None:
    """A sum that another thread interrupts must not be lost."""
    model = pi.LLM("fake", api_base="http://127.0.0.1:9/v1")

    def end_runs() -> None:
        for _ in range(500):
            model.add_usage(pi.Usage(calls=1))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=end_runs) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert model.usage.calls == 4000


@pytest.mark.heavy
def test_an_endpoint_whose_replies_are_useless_is_not_gone() -> None:
    numbers = itertools.count()
    with FakeLLM(
        reply=lambda _: Fault.reset() if next(numbers) % 3 else Fault.bad_schema()
    ) as server:
        table = pi.infer_personas(
            pairs(60), "fake", api_base=server.api_base, max_attempts=1, max_concurrency=1
        )
        assert server.calls == 60
    assert not any("in a row" in str(row.error) for row in table)


def test_the_key_of_openai_is_sent_to_openai_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-openai-0123")
    with (
        FakeLLM(api_key="sk-of-openai-0123") as server,
        pytest.raises(PersonaInferError, match="401"),
    ):
        fake(server).ask(MESSAGES)
    for host, key in (("api.openai.com", "sk-of-openai-0123"), ("model.invalid", "")):
        assert pi.LLM("m", api_base=f"https://{host}/v1", cache=False).transport.key == key


@pytest.mark.parametrize(
    ("base", "key"),
    [
        ("https://api.openai.com/v1", "sk-openai"),
        ("http://api.openai.com/v1", ""),
        ("https://x.openai.azure.com/openai/v1", "az-key"),
        ("https://x.services.ai.azure.com/v1", "az-key"),
        ("http://x.openai.azure.com/openai/v1", ""),
        ("https://anybodys-machine.westeurope.cloudapp.azure.com/v1", ""),
        ("https://anybodys.eastus.inference.ml.azure.com/v1", ""),
        ("https://openai.azure.com.example/v1", ""),
    ],
)
def test_keys_of_the_environment_go_to_the_providers_own_hosts_and_not_in_clear(
    base: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "az-key")
    assert environment_key(base) == key


def test_a_role_is_escaped(llm: FakeLLM) -> None:
    odd = pi.Message(role='us"er', content="x")
    body = json.loads(fake(llm).job(pi.Request((odd,))).body)
    assert body["messages"][0]["role"] == 'us"er'


def test_replies_are_counted_and_cleared_under_the_name_the_user_gave(llm: FakeLLM) -> None:
    pi.infer_personas(pairs(3), "openai/fake", api_base=llm.api_base)
    assert pi.cache_info().models == {"openai/fake": 3}
    assert pi.clear_cache(model="openai/fake") == 3


@pytest.mark.parametrize("prices", ["12", b"12", {1.0, 2.0}, {1: "a", 2: "b"}, iter([1.0, 2.0])])
def test_two_prices_are_a_pair_in_an_order(prices: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="prices="):
        pi.LLM("m", api_base="http://127.0.0.1:9/v1", prices=prices)


def test_an_llm_keeps_the_options_that_were_checked(llm: FakeLLM) -> None:
    """One dict may be for several models, and be filled further for the second."""
    body: dict[str, Any] = {"top_k": 20, "options": {"stop": ["a"]}}
    headers, prices = {"X-Team": "mine"}, [0.0, 1000.0]
    options: dict[str, Any] = {"extra_body": body, "extra_headers": headers, "prices": prices}
    model = pi.LLM("fake", api_base=llm.api_base, cache=False, **options)
    before = model.settings, model.batch_price
    body["thinking"] = {"type": "enabled"}
    body["options"]["stop"].append("b")
    headers["X-Team"], prices[1] = "another", 0.0
    model.settings["extra_body"]["model"] = model.options["extra_body"]["model"] = "dear"
    model.ask([{"role": "user", "content": "hi"}])
    [sent] = llm.requests
    assert (sent["model"], sent["options"], "thinking" in sent) == ("fake", {"stop": ["a"]}, False)
    assert llm.headers[-1]["x-team"] == "mine"
    assert (model.settings["extra_body"], model.batch_price) == (before[0]["extra_body"], before[1])


@pytest.mark.parametrize(
    "options",
    [
        {"max_attempts": None},
        {"max_tokens": None},
        {"timeout": float("inf")},
        {"api_key": "sk-with-newline\n"},
        {"cache_dir": 5},
        {"seed": 1.5},
        {"rpm": True},
    ],
)
def test_bad_options_are_refused_at_once(llm: FakeLLM, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        fake(llm, **options)


LOGPROBS = {
    "content": [
        {
            "token": "Rome",
            "logprob": -0.25,
            "bytes": [82],
            "top_logprobs": [{"token": "Rome", "logprob": -0.25}, {"token": "Oslo", "logprob": -2}],
        },
        {"token": "!", "logprob": -1.5},
    ]
}


def test_log_probabilities_are_asked_for_read_and_cached() -> None:
    with FakeLLM(Reply("Rome!", logprobs=LOGPROBS)) as server:
        model = fake(server)
        request = pi.Request((pi.Message(role="user", content="A city?"),), logprobs=5)
        fresh, again = (model.ask_many([request])[0] for _ in range(2))
        assert (server.calls, fresh.cached, again.cached) == (1, False, True)
        sent = server.requests[0]
    assert (sent["logprobs"], sent["top_logprobs"]) == (True, 5)
    assert fresh.logprobs == [("Rome", {"Rome": -0.25, "Oslo": -2.0}), ("!", {"!": -1.5})]
    assert again.logprobs == fresh.logprobs


def test_log_probabilities_are_another_request_and_never_asked_for_unasked(llm: FakeLLM) -> None:
    model = fake(llm)
    message = (pi.Message(role="user", content="A city?"),)
    plain, with_them = model.ask_many([pi.Request(message), pi.Request(message, logprobs=1)])
    assert llm.calls == 2
    assert sorted("logprobs" in sent or "top_logprobs" in sent for sent in llm.requests) == [
        False,
        True,
    ]
    assert plain.logprobs is None
    assert with_them.logprobs is None  # an endpoint may leave them out


NO_LOGARITHMS = [
    {"content": [{"token": "x", "logprob": -1, "top_logprobs": [{"token": "y", "logprob": one}]}]}
    for one in (1000.0, float("nan"), float("inf"))
]


@pytest.mark.parametrize(
    "odd",
    [
        *({"content": 5}, {"content": [5]}, {"content": [{"token": "x"}]}, [1], {"content": None}),
        *("x", *NO_LOGARITHMS),
    ],
    ids=str,
)
def test_log_probabilities_in_another_form_cost_no_reply(odd: Any) -> None:
    with FakeLLM(Reply("Rome", logprobs=odd)) as server:
        reply = fake(server).ask_many([pi.Request((pi.Message(role="user", content="?"),))])[0]
    assert (reply.value, reply.logprobs, reply.error) == ("Rome", None, None)


def test_cached_log_probabilities_that_are_none_cost_no_reply() -> None:
    """Earlier versions kept what endpoints sent."""
    model = pi.LLM("fake", api_base="http://127.0.0.1:9/v1")
    request = pi.Request((pi.Message(role="user", content="A city?"),), logprobs=5)
    stored = {"text": "Rome", "logprobs": [["Rome", {"Rome": 1000.0}]]}
    assert model.cache is not None
    model.cache.set_many([(model.job(request).key, json.dumps(stored))], model="fake")
    reply = model.ask_many([request])[0]
    assert (reply.text, reply.logprobs) == ("Rome", None)


def test_extra_fields_are_sent_and_miss_the_cache_of_requests_without_them(llm: FakeLLM) -> None:
    for extra in (None, {"top_k": 20}, {"top_k": 30}, {"top_k": 20}):
        fake(llm, extra_body=extra).ask(MESSAGES, City)
    assert [body.get("top_k") for body in llm.requests] == [None, 20, 30]
    assert fake(llm, extra_body={"top_k": 20}).settings["extra_body"] == {"top_k": 20}
    assert "extra_body" not in fake(llm).settings
    google = {"google": {"thinking_config": {"thinking_budget": 0}}}
    fake(llm, extra_body={"extra_body": google}).ask(MESSAGES, City)
    assert llm.requests[-1]["extra_body"] == google


@pytest.mark.parametrize(
    "extra",
    [
        {"messages": []},
        {"temperature": 1.0},
        {"extra_body": {"max_tokens": 9}},  # litellm would send it over ours
        {"x": object()},
        {1: 2},
        "top_k",
        [1],
    ],
)
def test_extra_fields_that_cannot_be_sent_are_refused(extra: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="extra_body=") as caught:
        pi.LLM("fake", api_base="http://127.0.0.1:9/v1", extra_body=extra)
    assert caught.value.argument == "extra_body"


def test_limits_that_are_named_by_turns_are_not_asked_for_without_end() -> None:
    """Two servers behind one address, with limits of their own."""
    numbers = itertools.count()

    def refuse(_: object) -> Fault:
        return Fault.status(400, message=f"max_tokens must be at most {1000 - next(numbers) % 2}")

    with FakeLLM(refuse) as server:
        with pytest.raises(RequestRejectedError, match="max_tokens"):
            fake(server, max_attempts=1).ask(MESSAGES)
        assert server.calls < 10


def test_limits_that_fall_without_end_are_given_up() -> None:
    numbers = itertools.count()
    with FakeLLM(
        lambda _: Fault.status(400, message=f"max_tokens must be at most {400 - next(numbers)}")
    ) as server:
        with pytest.raises(RequestRejectedError, match="max_tokens"):
            fake(server, max_attempts=1).ask(MESSAGES)
        assert server.calls < 40


def test_a_text_that_utf_8_cannot_hold_is_an_error_before_any_request(llm: FakeLLM) -> None:
    requests = [
        pi.Request([pi.Message(role="user", content=text)]) for text in ("a", "half \ud800")
    ]
    with pytest.raises(InvalidArgumentError, match=r"requests\[1\]: a message holds bytes"):
        pi.LLM("fake", api_base=llm.api_base).ask_many(requests)
    assert llm.calls == 0


class Odd(BaseModel):
    answer: str = Field(json_schema_extra={"enum": ["half \ud800"]})


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Request([Message(role="us\ud800er", content="q")]), "a message holds bytes"),
        (
            Request(
                [Message(role="user", content="q")], None, (Message(role="user", content="\ud800"),)
            ),
            "a message holds bytes",
        ),
        (Request([Message(role="user", content="q")], Odd), "the schema of a request holds half"),
    ],
    ids=["role", "prefix", "schema"],
)
def test_a_request_that_utf_8_cannot_hold_is_an_error_wherever_that_is(
    llm: FakeLLM, request_: Request, said: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        pi.LLM("fake", api_base=llm.api_base).ask_many([request_])
    assert llm.calls == 0


def test_in_a_run_a_request_that_utf_8_cannot_hold_costs_its_item_and_no_other(
    llm: FakeLLM,
) -> None:
    texts = ["a", "half \ud800", "b", "half \ud800"]
    requests = ((text, [Request([Message(role="user", content=text)])]) for text in texts)
    run = pi.LLM("fake", api_base=llm.api_base).run(requests)
    errors = {text: reply.error for text, (reply,) in run}
    assert errors["a"] is errors["b"] is None
    assert "not sent" in str(errors["half \ud800"])
    assert (llm.calls, run.tally.errors) == (2, 2)


@pytest.mark.heavy
def test_a_system_that_starts_no_more_threads_is_an_error(endpoint: dict[str, Any]) -> None:
    """In a process of its own, whose loop has not started."""
    script = f"""
        import gc, threading, warnings
        import personainfer as pi

        def refused(_):
            raise RuntimeError("can't start new thread")

        pairs = [{pairs(1)[0]!r}]
        start, threading.Thread.start = threading.Thread.start, refused
        with warnings.catch_warnings(record=True) as warned:
            try:
                pi.infer_personas(pairs, **{endpoint!r})
            except pi.PersonaInferError as error:
                print(error)
            gc.collect()
        threading.Thread.start = start
        print(warned, pi.infer_personas(pairs, **{endpoint!r}).errors)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "starts no more threads" in done.stdout
    assert done.stdout.endswith("[] []\n")


def test_a_cache_in_the_folder_of_no_user_is_said() -> None:
    with pytest.raises(CacheError, match="cannot be used"):
        pi.LLM("m", api_base="http://127.0.0.1:9/v1", cache_dir="~no-such-user/x")


class Cancelling(BaseModel):
    text: str

    @field_validator("text")
    @classmethod
    def cancel(cls, _: str) -> str:
        raise asyncio.CancelledError


def test_a_cancellation_that_is_not_of_the_run_is_an_error_of_its_row(llm: FakeLLM) -> None:
    """The caller would wait for that reply without end."""

    def doubt(_: Any) -> str:
        raise asyncio.CancelledError

    asked = [pi.Message(role="user", content="q")]
    requests = [Request(asked, Cancelling), Request(asked, doubt=doubt), Request(asked, sample=1)]
    model = pi.LLM("fake", api_base=llm.api_base, cache=False)
    replies = model.ask_many(requests)
    assert [one.error is None for one in replies] == [False, False, True]
    assert "cancelled from within" in str(replies[0].error)


class CancellingTheTask(BaseModel):
    text: str

    @field_validator("text")
    @classmethod
    def cancel(cls, text: str) -> str:
        task = asyncio.current_task()
        if text == "cancel" and task is not None:
            task.cancel()
            raise ValueError("asked again")
        return text


@pytest.mark.heavy
def test_after_a_cancellation_from_within_a_late_row_is_asked_again() -> None:
    """Its time-out is taken for no further cancellation."""
    asked: list[str] = []

    def reply(body: dict[str, Any]) -> str:
        asked.append(body["messages"][-1]["content"])
        if asked[-1] == "cancel":
            time.sleep(0.1)  # by then the other row waits, and the same worker takes it
        elif asked.count("late") == 1:
            time.sleep(0.6)
        return json.dumps({"text": asked[-1]})

    with FakeLLM(reply) as server:
        options: dict[str, Any] = {"cache": False, "max_concurrency": 1, "max_attempts": 9}
        llm = pi.LLM("fake", api_base=server.api_base, timeout=0.4, **options)
        rows = [[{"role": "user", "content": text}] for text in ("cancel", "late")]
        replies = llm.ask_many((row, CancellingTheTask) for row in rows)
    assert [one.error is None for one in replies] == [False, True]
    assert "cancelled from within" in str(replies[0].error)


def test_in_a_fork_no_request_waits_for_one_of_the_parent() -> None:
    """The parent was learning what the endpoint takes when it was forked, and had a request under way."""
    dialect, bodies = Dialect("m"), [b'{"seed": 1, "n": 1}', b'{"seed": 1, "n": 2}']

    def refusal() -> RequestRejectedError:
        return RequestRejectedError("seed is not supported", unsupported="seed")

    async def ask(body: bytes, *, is_refused: bool) -> None:
        asked: Any = SimpleNamespace(key=b"", trial=None)
        is_first = not dialect.proven and await dialect.wait_for_turn()
        version = dialect.version
        try:
            await asyncio.sleep(0)
            if is_refused:
                dialect.refused(version, refusal(), body, asked)
            else:
                dialect.accepted(version, body, asked)
        finally:
            if is_first:
                dialect.end_turn()

    async def parent() -> None:
        asked: Any = SimpleNamespace(key=b"", trial=None)
        dialect.refused(dialect.version, refusal(), bodies[0], asked)
        assert await dialect.wait_for_turn()

    async def child() -> None:
        await ask(bodies[0], is_refused=True)
        await asyncio.gather(*(ask(bodies[1], is_refused=False) for _ in range(3)))

    asyncio.run(parent())
    dialect.renew_in_fork()
    asyncio.run(asyncio.wait_for(child(), 5))


@pytest.mark.heavy
def test_of_models_made_in_turn_only_those_of_the_first_company_are_told_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    local = f"local:{tmp_path / 'm.gguf'}"
    monkeypatch.setenv("AZURE_API_BASE", "https://x.openai.azure.com")
    for company in ("OPENAI", "ANTHROPIC", "AZURE"):
        monkeypatch.setenv(f"{company}_API_KEY", f"own-key-of-{company}")
    names = ("openai/a", "litellm/openai/b", "anthropic/claude-x", "azure/gpt-4o")
    company_of = dict(zip(names, ("openai", "openai", "anthropic", "azure"), strict=True))
    options: dict[str, Any] = {
        "api_key": "key",
        "extra_headers": {"X-Team": "secret"},
        "rpm": 9,
        "prices": (1, 1),
        "budget": 1,
        "cache": False,
    }
    for order in itertools.permutations([local, *names]):
        made: list[pi.LLM] = []
        for name in order:
            made.append(make_beside(made, name, options))
        called = [llm for llm in made if llm.model != local]
        first = company_of[called[0].model]
        for llm in called:
            is_told = company_of[llm.model] == first
            told = llm.transport.key == "key", bool(llm._headers)
            assert told == (is_told, is_told), order
        assert len({id(llm.account.bounds.budget) for llm in made}) == 1
        windows = {(company_of[llm.model], id(llm.account.bounds.requests)) for llm in called}
        assert len(windows) == 3, order
