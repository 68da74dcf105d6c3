"""What replies cost in money, memory and calls."""

from __future__ import annotations

import json
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import personainfer as pi
from personainfer.testing import FakeLLM, Fault

from .attack import PAIRS, attack, broken_if, peak_memory


@attack(
    3,
    "A budget holds where the endpoint does not tell what a call took.",
    "tests/llm/test_unknown_costs.py::test_calls_whose_tokens_are_not_told_count_as_what_was_reserved",
)
def spend_without_telling(folder: Path) -> str:
    reply = {"choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}]}
    fault = Fault("status", 200, body=json.dumps(reply).encode())
    with FakeLLM(faults=[fault] * 300) as server:
        llm = pi.LLM(
            "fake",
            api_base=server.api_base,
            prices=(10_000.0, 10_000.0),  # USD a million tokens: 5 USD a reply of 500
            max_tokens=500,
            budget=20.0,
            cache=False,
        )
        llm.ask_many([([{"role": "user", "content": str(n)}],) for n in range(100)])
        seen = f"{server.calls} calls of 5 USD, budget 20 USD"
        broken_if(server.calls > 4, f"{seen}, told cost {llm.usage.cost}")
    return seen


@attack(
    8,
    "A packed reply is bounded after it is unpacked.",
    "tests/llm/test_hostile_replies.py::test_a_packed_reply_is_bounded_after_it_is_unpacked",
)
def unpack_a_reply_without_end(folder: Path) -> str:
    compressor = zlib.compressobj(1, wbits=31)  # gzip
    packed = compressor.compress(b'{"choices": "')
    packed += b"".join(compressor.compress(b" " * 10**6) for _ in range(250)) + compressor.flush()
    bomb = Fault("body", headers={"Content-Encoding": "gzip"}, body=packed)
    with FakeLLM(faults=[bomb]) as llm:
        pi.infer_personas(PAIRS[:1], "fake", api_base=llm.api_base, max_attempts=1)
    seen = f"{len(packed) / 1e6:.1f} MB that unpack to 250 MB: {peak_memory():.0f} MB in memory"
    broken_if(peak_memory() > 300, seen)
    return seen


@attack(
    26,
    "The same pairs at once from several threads on one LLM are sent once.",
    "tests/llm/test_shared_requests.py::test_the_same_pairs_at_once_from_threads_are_asked_once",
)
def ask_the_same_from_two_threads(folder: Path) -> str:
    with FakeLLM(latency=0.02) as server:
        llm = pi.LLM("fake", api_base=server.api_base)
        start = threading.Barrier(2)

        def run(_: int) -> None:
            start.wait()
            pi.infer_personas(PAIRS, llm)

        with ThreadPoolExecutor(2) as threads:
            list(threads.map(run, range(2)))
        seen = f"{server.calls} calls for {len(PAIRS)} pairs"
        broken_if(server.calls > len(PAIRS), seen)
    return seen
