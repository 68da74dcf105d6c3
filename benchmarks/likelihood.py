"""How fast `Likelihood` scores: by transformers against one text at a time, embedded against bare decoding.

    python benchmarks/likelihood.py tailored.jsonl [--rows 499] [--parts 5] [--ways transformers]

Six texts a row: two responses after each of two personas and after none. *One by one* is what is usually
written: each text through the model alone, all of its logits, log softmax, the response's tokens
gathered. *Bare decoding* asks llama.cpp for as many tokens after the same prompts, as many at once and in
the same order, with neither grammar nor log-probabilities. Each part of the rows is scored both ways, in
turn first and second, and what counts is the ratio within a part: its median over the parts. *packing* is
the library against itself without `onednn`: it says whether that module earns its place.

On two cores with instructions for bfloat16, nothing else running: transformers 3.17 x (2.96-3.31, 3 parts
of 20 rows), embedded 0.91 x (0.86-0.94, 5 parts of 12 rows), packing 2.04 x (1.94-2.09, 4 parts of 15
rows). On two of an Intel Xeon at 2.5 GHz without them: packing 0.95 x (0.92-0.96, 3 parts of 4 rows).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import personainfer as pi
from personainfer.local.local_models import SLOTS
from personainfer.local.weights import find_weights
from personainfer.personas import place_persona, prompt_messages
from personainfer.scoring import transformers_scorer as torch_scoring
from personainfer.scoring.interfaces import TokenText
from personainfer.scoring.llamacpp import EmbeddedEndpoint, ForcedDecoding

BARS = {"transformers": 3.0, "embedded": 0.9, "packing": 1.0}

Texts = tuple[list[str], list[str | None], list[str]]  # prompts, personas, responses
Way = Callable[[Texts], float]  # returns seconds


def texts_of(rows: Sequence[dict[str, Any]]) -> Texts:
    """Six of each row."""
    texts: Texts = ([], [], [])
    for row in rows:
        for persona in (row["chosen_persona"], row["rejected_persona"], None):
            for response in ("response_for_chosen_persona", "response_for_rejected_persona"):
                for column, value in zip(
                    texts, (row["prompt"], persona, row[response]), strict=True
                ):
                    column.append(value)
    return texts


def tokens_of(model: pi.Likelihood, texts: Texts) -> list[TokenText]:
    """What the library would score, in the order of the texts."""
    scorer = model._scorer()
    prefixes = [
        place_persona(prompt_messages(prompt), persona, "user")
        for prompt, persona in zip(texts[0], texts[1], strict=True)
    ]
    parts = zip(scorer.encode_prefixes(prefixes), scorer.encode(texts[2]), strict=True)
    return [TokenText(prefix, response[:128]) for prefix, response in parts]


def transformers_ways() -> tuple[Way, Way]:
    """By the library, and one by one with the model as it was loaded."""
    import torch
    import transformers

    ours = pi.Likelihood("local:smollm2", device="cpu")
    weights = find_weights("local:smollm2", engine=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(weights.parent), gguf_file=weights.name, dtype="float32"
    ).eval()

    def library(texts: Texts) -> float:
        began = time.perf_counter()
        library.found = ours.log_likelihood(*texts)  # type: ignore[attr-defined]
        return time.perf_counter() - began

    def one_by_one(texts: Texts) -> float:
        found = []
        began = time.perf_counter()
        for text in tokens_of(ours, texts):
            ids = torch.tensor([text.prefix + text.response])
            with torch.inference_mode():
                scores = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
            each = scores.gather(1, ids[0, 1:, None])[len(text.prefix) - 1 :, 0]
            found.append(float(each.sum()))
        seconds = time.perf_counter() - began
        if hasattr(library, "found") and len(library.found) == len(found):
            np.testing.assert_allclose(library.found, found, rtol=1e-3)
            del library.found
        return seconds

    return library, one_by_one


def packing_ways() -> tuple[Way, Way]:
    """By the library, and by the library with torch's own linear layers."""
    ours, plain = (pi.Likelihood("local:smollm2", device="cpu") for _ in range(2))

    def library(texts: Texts) -> float:
        began = time.perf_counter()
        ours.log_likelihood(*texts)
        return time.perf_counter() - began

    def unpacked(texts: Texts) -> float:
        with mock.patch.object(torch_scoring, "pack_linear_layers"):  # of use in the first call
            began = time.perf_counter()
            plain.log_likelihood(*texts)
        return time.perf_counter() - began

    return library, unpacked


def embedded_ways() -> tuple[Way, Way]:
    """By the library, and the same server decoding freely."""
    ours, endpoint = (
        pi.Likelihood("local:smollm2"),
        EmbeddedEndpoint(find_weights("local:smollm2"), concurrency=SLOTS),
    )

    def library(texts: Texts) -> float:
        tokens = list(dict.fromkeys(tokens_of(ours, texts)))
        began = time.perf_counter()
        ours._scorer().score(tokens)
        return time.perf_counter() - began

    def bare(texts: Texts) -> float:
        tokens = list(dict.fromkeys(tokens_of(ours, texts)))
        scorer = _FreeDecoding(endpoint)
        began = time.perf_counter()
        scorer.score(tokens)
        return time.perf_counter() - began

    return library, bare


class _FreeDecoding(ForcedDecoding):
    """The same order of requests; what the model says is its own."""

    async def _find_grammar(self, text: str) -> Callable[[Sequence[int]], str]:
        return str

    async def _score(self, text: TokenText) -> Any:
        body = {
            "prompt": text.prefix,
            "n_predict": len(text.response),
            "temperature": 0,
            "samplers": [],
            "cache_prompt": True,
            "ignore_eos": True,
            "response_fields": ["stop_type"],
        }
        await self._endpoint.ask("/completion", body)
        return np.zeros(len(text.response))


WAYS: dict[str, Callable[[], tuple[Way, Way]]] = {
    "transformers": transformers_ways,
    "embedded": embedded_ways,
    "packing": packing_ways,
}


def measure(name: str, rows: Sequence[dict[str, Any]], parts: int) -> dict[str, Any]:
    """Seconds of each part by both ways, and by how much the library is the faster one."""
    ours, other = WAYS[name]()
    for way in (ours, other):  # what is loaded or compiled at first use is not measured
        way(texts_of(rows[:1]))
    seconds: dict[str, list[float]] = {"library": [], "other": []}
    for number in range(parts):
        texts = texts_of(rows[number::parts])
        timed = [("library", partial(ours, texts)), ("other", partial(other, texts))]
        for way_name, run in timed[:: 1 if number % 2 else -1]:
            seconds[way_name].append(run())
        ratio = seconds["other"][-1] / seconds["library"][-1]
        print(f"{name}, part {number + 1}: {len(texts[0])} texts, {ratio:.2f} x", flush=True)
    pairs = zip(seconds["other"], seconds["library"], strict=True)
    return seconds | {"ratios": [other_s / ours_s for other_s, ours_s in pairs]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path)
    parser.add_argument("--rows", type=int, default=499)
    parser.add_argument("--parts", type=int, default=5)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    options = parser.parse_args()
    with options.path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines][: options.rows]
    for name in options.ways:
        found = measure(name, rows, min(options.parts, len(rows)))
        middle, bar = statistics.median(found["ratios"]), BARS[name]
        verdict = "met" if middle >= bar else "missed"
        print(f"{name}: {middle:.2f} x, bar {bar}: {verdict}")
        print(json.dumps({key: [round(v, 2) for v in values] for key, values in found.items()}))


if __name__ == "__main__":
    main()
