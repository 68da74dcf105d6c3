"""Runs of one LLM in several threads: what they have in common is asked once."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from pydantic import BaseModel, field_validator

import personainfer as pi
from personainfer.exceptions import ReplyError
from personainfer.testing import FakeLLM, Fault

from ..builders import pairs


@pytest.mark.heavy
@pytest.mark.parametrize("of_one", [lambda llm: llm, copy.copy], ids=["one", "copies"])
def test_the_same_pairs_at_once_from_threads_are_asked_once(
    of_one: Callable[[pi.LLM], pi.LLM],
) -> None:
    with FakeLLM(latency=0.01) as server:
        llm = pi.LLM("fake", api_base=server.api_base)
        start = threading.Barrier(3)

        def run(_: int) -> Any:
            model = of_one(llm)
            start.wait()
            return pi.infer_personas(pairs(200), model)

        with ThreadPoolExecutor(3) as threads:
            tables = list(threads.map(run, range(3)))
        assert server.calls == 200
    assert not any(table.errors for table in tables)
    assert sum(table.usage.calls for table in tables) == 200
    assert sum(table.usage.cached for table in tables) == 400
    assert [str(row.chosen) for row in tables[0]] == [str(row.chosen) for row in tables[2]]


def test_a_run_that_is_stopped_leaves_its_requests_to_the_other() -> None:
    with FakeLLM(faults=[Fault.hang()] * 8) as server:
        llm = pi.LLM("fake", api_base=server.api_base, max_concurrency=8)
        stopped = pi.iter_personas(pairs(8), llm)

        def read() -> None:
            with suppress(asyncio.CancelledError):
                next(stopped)

        first = threading.Thread(target=read)
        first.start()
        while server.in_flight < 8:
            threading.Event().wait(0.01)
        with ThreadPoolExecutor(1) as threads:
            other = threads.submit(pi.infer_personas, pairs(8), llm)
            threading.Event().wait(0.1)
            stopped.cancel()
            table = other.result(timeout=30)
        first.join(30)
    assert not table.errors


def answer(suffix: str) -> type[BaseModel]:
    """A schema that asks in the same bytes as its likes: no endpoint is told what its validator does."""

    class Answer(BaseModel):
        text: str

        @field_validator("text")
        @classmethod
        def _with_suffix(cls, text: str) -> str:
            if suffix == "refuses":
                raise ValueError("never")
            return text + suffix

    return Answer


def test_each_request_has_the_reply_in_its_own_schema() -> None:
    one, other = answer(" one"), answer(" other")
    messages = [pi.Message(role="user", content="hi")]
    with FakeLLM(reply='{"text": "yes"}') as server:
        llm = pi.LLM("fake", api_base=server.api_base, cache=False)
        replies = llm.ask_many([(messages, one), (messages, other), (messages, one)])
        assert [reply.value for reply in replies] == [
            one.model_construct(text="yes one"),
            other.model_construct(text="yes other"),
            one.model_construct(text="yes one"),
        ]
        assert server.calls == 1


def test_a_reply_that_fits_one_schema_alone_is_asked_for_by_the_other() -> None:
    messages = [pi.Message(role="user", content="hi")]
    with FakeLLM(reply='{"text": "yes"}') as server:
        llm = pi.LLM("fake", api_base=server.api_base, cache=False, max_attempts=1)
        good, bad = llm.ask_many([(messages, answer("")), (messages, answer("refuses"))])
        assert good.error is None
        assert isinstance(bad.error, ReplyError)
        assert server.calls == 2


def lower(is_lower: bool) -> type[BaseModel]:
    """A schema that takes texts of one case alone."""

    class Answer(BaseModel):
        text: str

        @field_validator("text")
        @classmethod
        def _of_its_case(cls, text: str) -> str:
            if text.islower() != is_lower:
                raise ValueError("the case")
            return text

    return Answer


def test_the_replies_to_the_same_bytes_in_two_schemas_are_both_cached() -> None:
    messages = [pi.Message(role="user", content="hi")]
    texts = iter(['{"text": "yes"}', *['{"text": "YES"}'] * 9])
    with FakeLLM(reply=lambda _: next(texts)) as server:
        llm = pi.LLM("fake", api_base=server.api_base)
        for _ in range(3):
            assert llm.ask(messages, lower(True)).text == '{"text": "yes"}'
            assert llm.ask(messages, lower(False)).text == '{"text": "YES"}'
            assert server.calls == 2


def test_so_they_are_if_one_run_asks_for_both() -> None:
    messages = [pi.Message(role="user", content="hi")]
    texts = iter(['{"text": "yes"}', *['{"text": "YES"}'] * 9])
    with FakeLLM(reply=lambda _: next(texts)) as server:
        llm = pi.LLM("fake", api_base=server.api_base)
        for _ in range(3):
            replies = llm.ask_many([(messages, lower(True)), (messages, lower(False))])
            assert [reply.text for reply in replies] == ['{"text": "yes"}', '{"text": "YES"}']
            assert llm.ask(messages, lower(True)).cached
        assert server.calls == 2


def test_a_reply_that_one_schema_refuses_is_read_by_the_other() -> None:
    messages = [pi.Message(role="user", content="hi")]
    with FakeLLM(reply='{"text": "yes"}') as server:
        llm = pi.LLM("fake", api_base=server.api_base, cache=False, max_attempts=1)
        bad, good = llm.ask_many([(messages, answer("refuses")), (messages, answer(""))])
    assert isinstance(bad.error, ReplyError)
    assert good.value.text == "yes"


@pytest.mark.heavy
@pytest.mark.parametrize("cache", [True, False])
def test_of_threads_that_cannot_read_a_shared_reply_one_asks_anew(cache: bool) -> None:
    """Each of them asked, and the second to end found its request gone: a bare KeyError ended its run."""
    messages = [pi.Message(role="user", content="hi")]
    texts = iter(['{"text": "yes"}', *['{"text": "YES"}'] * 9])
    with FakeLLM(reply=lambda _: next(texts), latency=0.3) as server:
        llm = pi.LLM("fake", api_base=server.api_base, cache=cache)
        with ThreadPoolExecutor(4) as threads:
            first = threads.submit(llm.ask, messages, lower(True))
            time.sleep(0.1)
            others = [threads.submit(llm.ask, messages, lower(False)) for _ in range(3)]
        assert first.result().text == '{"text": "yes"}'
        assert [one.result().text for one in others] == ['{"text": "YES"}'] * 3
        assert server.calls == 2


def test_so_it_is_between_threads() -> None:
    forms = {name: answer(name) for name in ("one", "other")}
    messages = [pi.Message(role="user", content="hi")]
    with FakeLLM(reply='{"text": "yes "}', latency=0.2) as server:
        llm = pi.LLM("fake", api_base=server.api_base, cache=False)
        start = threading.Barrier(2)

        def ask(name: str) -> Any:
            start.wait()
            return llm.ask(messages, forms[name]).value

        with ThreadPoolExecutor(2) as threads:
            found = dict(zip(forms, threads.map(ask, forms), strict=True))
        assert {name: value.text for name, value in found.items()} == {
            "one": "yes one",
            "other": "yes other",
        }
        assert server.calls == 1


def of_a_fork(work: Callable[[], object]) -> int:
    """The exit status of a fork that does this: 0 if it is done in 20 seconds, without an error."""
    child = os.fork()
    if not child:
        signal.alarm(20)
        code = 1
        try:
            work()
            gc.collect()  # what the fork forgets of its parent must not be closed
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


has_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@pytest.mark.heavy
@has_fork
def test_a_fork_that_goes_on_with_a_run_of_its_parent_is_told_so() -> None:
    with FakeLLM() as server:
        rows = pi.iter_personas(pairs(5), "fake", api_base=server.api_base, cache=False)
        next(rows)

        def go_on() -> None:
            with pytest.raises(pi.PersonaInferError, match="fork"):
                list(rows)

        assert of_a_fork(go_on) == 0
        assert len(list(rows)) == 4


@pytest.mark.heavy
@has_fork
@pytest.mark.parametrize("what", ["the model", "a stream that has not begun"])
def test_a_fork_has_connections_and_places_of_its_own(what: str) -> None:
    """With those of its parent, whose calls are in flight, it waited for ever, or read their replies."""
    with FakeLLM(latency=0.2) as server:
        llm = pi.LLM("fake", api_base=server.api_base, max_concurrency=4, timeout=15)
        others = pairs(30)[24:]
        later = pi.iter_personas(others, llm)
        rows = pi.iter_personas(pairs(12), llm)
        next(rows)
        time.sleep(0.1)  # what has come is written: SQLite takes no fork meanwhile

        def infer() -> None:
            found = list(later) if "stream" in what else pi.infer_personas(others, llm)
            assert [row.error for row in found] == [None] * 6

        assert of_a_fork(infer) == 0
        assert [row.error for row in rows] == [None] * 11
        assert server.calls == 12 + 6


@pytest.mark.heavy
@has_fork
def test_what_a_fork_drops_of_its_parent_gives_nothing_back() -> None:
    """Calls of the parent that waited at the gate were closed there, and settled in the fork's budget."""
    with FakeLLM(latency=0.5) as server:
        options: dict[str, Any] = {"budget": 0.7, "prices": (10.0, 10.0), "rpm": 1000}
        llm = pi.LLM("fake", api_base=server.api_base, max_concurrency=4, **options)
        pi.infer_personas(pairs(1), llm)
        streams = [pi.iter_personas(pairs(12), llm), pi.iter_personas(pairs(30)[20:], llm)]
        next(streams[0])
        begun = pi.iter_personas([pairs(1)[0], *pairs(50)[40:]], llm)
        next(begun)  # it was cached: those after it wait for a place
        streams.append(begun)
        del begun
        time.sleep(0.1)
        budget, requests, _ = llm.account.bounds
        assert budget is not None
        assert requests is not None

        def drop() -> None:
            before = budget.taken, budget._in_flight, requests._held
            assert before[:2] == (budget.spent, 0)
            streams.clear()
            gc.collect()
            assert (budget.taken, budget._in_flight, requests._held) == before

        assert of_a_fork(drop) == 0


def test_a_run_that_was_closed_before_it_began_is_no_longer_open(llm: FakeLLM) -> None:
    asked = pi.LLM("fake", api_base=llm.api_base, cache=False)
    stream = pi.iter_personas(pairs(2), asked)
    stream.close()
    assert not asked.account.in_flight.has_runs
