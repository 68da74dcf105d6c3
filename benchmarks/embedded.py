"""The embedded model: rows a minute through this library, and by posting the same bodies to xllamacpp.

Every run is a fresh process with a fresh server, 8 requests at once, temperature 0, no cache of replies.
`python benchmarks/embedded.py [--model local:smollm2] [--rounds 5] [--rows 30]`
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import llama
from pydantic import BaseModel

import personainfer as pi
from personainfer.data import read_preferences
from personainfer.personas.prompts import PersonaPrompt, pair_message

DATA = Path(__file__).parent.parent / "examples/data/preferences.jsonl"
TIMEOUT = 1800.0  # seconds for one run


class Yes(BaseModel):
    """The shortest reply there is."""

    answer: Literal["yes"]


FIRST = pi.Request((pi.Message(role="user", content="Say yes."),), Yes)  # starts the server


def pairs(rows: int) -> list[pi.Preference]:
    """The example pairs, as many as asked for."""
    return [row.preference for row in read_preferences(DATA) if row.preference][:rows]


def through_library(model: str, rows: int) -> dict[str, Any]:
    """`infer_personas`; the start of the server is timed neither here nor in the direct run."""
    data = pairs(rows)
    llm = pi.LLM(model, max_concurrency=llama.SLOTS, cache=False)
    llm.ask(FIRST.messages, FIRST.schema)
    start = time.perf_counter()
    table = pi.infer_personas(data, llm, progress=False)
    seconds = time.perf_counter() - start
    filled = sum(row.error is None for row in table)
    return {
        "seconds": seconds,
        "filled": filled,
        "calls": table.usage.calls,
        "tokens": table.usage.completion_tokens,
    }


def direct(model: str, rows: int) -> dict[str, Any]:
    """The same bodies posted to a server of their own."""
    llm, prompt = pi.LLM(model, cache=False), PersonaPrompt()
    requests = [pi.Request((pair_message(p),), prompt.schema, prompt.prefix) for p in pairs(rows)]
    bodies = [json.loads(llm.job(request).body) for request in requests]
    with llama.running(model) as address:
        llama.post(address, "/v1/chat/completions", json.loads(llm.job(FIRST).body))
        return asyncio.run(_post_all(address, bodies))


async def _post_all(address: str, bodies: list[dict[str, Any]]) -> dict[str, Any]:
    import aiohttp

    replies: list[dict[str, Any]] = []
    waiting = iter(bodies)

    async def work(session: aiohttp.ClientSession) -> None:
        for body in waiting:
            async with session.post(f"{address}/v1/chat/completions", json=body) as response:
                replies.append(await response.json())

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT)) as session:
        start = time.perf_counter()
        await asyncio.gather(*(work(session) for _ in range(llama.SLOTS)))
        seconds = time.perf_counter() - start
    filled = sum(reply["choices"][0]["finish_reason"] == "stop" for reply in replies)
    tokens = sum(reply["usage"]["completion_tokens"] for reply in replies)
    return {"seconds": seconds, "filled": filled, "calls": len(replies), "tokens": tokens}


WAYS = {"library": through_library, "direct": direct}


def measure(rounds: int = 5, rows: int = 30, model: str = "local") -> dict[str, Any]:
    """By way, rows a minute of each round, interleaved; the order turns from round to round."""
    results: dict[str, Any] = {way: {"rates": [], "runs": []} for way in WAYS}
    for number in range(rounds):
        for way in list(WAYS)[:: 1 if number % 2 else -1]:
            command = [
                sys.executable,
                __file__,
                "--way",
                way,
                "--rows",
                str(rows),
                "--model",
                model,
            ]
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=TIMEOUT, check=True
            )
            found = json.loads(done.stdout.splitlines()[-1])
            results[way]["rates"].append(60 * rows / found["seconds"])
            results[way]["runs"].append(found)
            said = f"{results[way]['rates'][-1]:.1f} rows/min, {found}"
            print(f"round {number + 1}: {way}: {said}", file=sys.stderr, flush=True)
    for result in results.values():
        result["median"] = statistics.median(result["rates"])
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="local")
    parser.add_argument("--rows", type=int, default=30, help="of the 30 example pairs")
    parser.add_argument("--way", choices=WAYS, help="run only this, once")
    options = parser.parse_args()
    if options.way:
        print(json.dumps(WAYS[options.way](options.model, options.rows)))
    else:
        print(json.dumps(measure(options.rounds, options.rows, options.model), indent=1))
