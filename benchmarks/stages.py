"""Where the time of a warm row goes: each stage by itself, CPU microseconds a row.

    python benchmarks/stages.py [--rows 5000] [--repeats 5]

The stages run one after the other over all rows, as they never do in a run, so that each can be timed;
what a run takes beyond their sum is the handing on from one to the next. The least of the repeats counts.

What helped: flags that search both personas at once for any sign of one; a table that keeps the dicts of its
records, which the garbage collector does not visit; jobs that are made when workers need them. What did not:
`str.translate` instead of sets of words in the flags, requests as named tuples, one regular expression for
all protected words, `model_construct` instead of validation, templates filled by `str.format`, a set of the
pair's words for copies (3.5 µs to make, 3 to do without).
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "contenders")]

import server  # noqa: E402
from contest import pairs  # noqa: E402

import personainfer as pi  # noqa: E402
from personainfer.data import read_preferences  # noqa: E402
from personainfer.llm.requests import cached_reply  # noqa: E402
from personainfer.local.cache import ReplyCache  # noqa: E402
from personainfer.personas.flags import flags_in_text, pair_text  # noqa: E402
from personainfer.personas.prompts import PersonaPrompt, chosen_is_first  # noqa: E402
from personainfer.personas.requests import Plan  # noqa: E402

T = TypeVar("T")


class Clock:
    """CPU microseconds a row, by stage."""

    def __init__(self, rows: int, repeats: int) -> None:
        self.rows, self.repeats = rows, repeats
        self.stages: dict[str, float] = {}

    def time(self, stage: str, work: Callable[[], T]) -> T:
        """Do it a few times; the least counts."""
        least = float("inf")
        for _ in range(self.repeats):
            began = time.thread_time()
            made = work()
            least = min(least, time.thread_time() - began)
        self.stages[stage] = 1e6 * least / self.rows
        return made


def measure(rows: int = 5_000, repeats: int = 5) -> dict[str, float]:
    """Microseconds by stage; the last is a whole run."""
    clock, data = Clock(rows, repeats), pairs(rows)
    with (
        tempfile.TemporaryDirectory(prefix="personainfer-stages-") as folder,
        server.running() as base,
    ):
        options: dict[str, Any] = {"api_base": base, "api_key": "none", "cache_dir": folder}
        pi.infer_personas(data, "fake", progress=False, **options)
        gc.disable()
        _stages(clock, data, pi.LLM("fake", **options), ReplyCache(Path(folder)))
        gc.enable()
        clock.time(
            "all, in a run", lambda: pi.infer_personas(data, "fake", progress=False, **options)
        )
    return clock.stages


def _stages(clock: Clock, data: list[dict[str, str]], llm: pi.LLM, cache: ReplyCache) -> None:
    prompt = PersonaPrompt()
    plan = Plan(prompt, ("chosen", "rejected"))
    source = clock.time("read the pair", lambda: list(read_preferences(data)))
    known = [row.preference for row in source if row.preference is not None]
    orders = clock.time("their order", lambda: [chosen_is_first(pair) for pair in known])
    ordered = list(zip(known, orders, strict=True))
    requests = clock.time("the message", lambda: [plan.requests(*one)[0] for one in ordered])
    jobs = clock.time("its key", lambda: [llm.job(request) for request in requests])
    groups = [[job.key for job in jobs[at : at + 64]] for at in range(0, len(jobs), 64)]
    found = clock.time("look it up", lambda: [cache.get_many(group) for group in groups])
    texts = {key: text for group in found for key, text in group.items()}
    replies = clock.time(
        "decode the reply", lambda: [cached_reply(job, texts[job.key]) for job in jobs]
    )
    values = [reply.value for reply in replies if reply is not None]
    personas = clock.time(
        "two personas", lambda: [(v.person_1.persona(), v.person_2.persona()) for v in values]
    )

    def flags() -> list[Any]:
        return [
            flags_in_text(both, pair_text(pair), prompt.phrases)
            for pair, both in zip(known, personas, strict=True)
        ]

    clock.time("their flags", flags)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    json.dump(measure(options.rows, options.repeats), sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
