"""Runs of one LLM in several threads: what they have in common is asked once."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import personainfer as pi
from personainfer.testing import FakeLLM, Fault

from ..builders import pairs


def test_the_same_pairs_at_once_from_threads_are_asked_once() -> None:
    with FakeLLM(latency=0.01) as server:
        llm = pi.LLM("fake", api_base=server.api_base)
        start = threading.Barrier(3)

        def run(_: int) -> Any:
            start.wait()
            return pi.infer_personas(pairs(200), llm)

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
